//! `config.json` of the BERT family, and how each architecture names its tensors.

use crate::Error;
use regard::rows::Activation;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Longer configurations are refused unread.
const LONGEST: u64 = 1 << 20;

/// An encoder in numbers.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) vocabulary: usize,
    /// E.
    pub(crate) width: usize,
    pub(crate) layers: usize,
    /// H.
    pub(crate) heads: usize,
    /// Between the two maps of the feed-forward block.
    pub(crate) inner: usize,
    /// Rows of the table of positions.
    pub(crate) places: usize,
    /// The row of the first token of a text.
    pub(crate) first_place: usize,
    /// Rows of the table of token types, where there is one.
    pub(crate) types: Option<usize>,
    pub(crate) activation: Activation,
    pub(crate) epsilon: f32,
    pub(crate) names: &'static Names,
}

/// Names of tensors, without `.weight` and `.bias`. Those of a layer follow `layers.NUMBER.`.
#[derive(Debug)]
pub(crate) struct Names {
    /// What may stand before everything.
    pub(crate) prefix: &'static str,
    pub(crate) layers: &'static str,
    pub(crate) qkv: [&'static str; 3],
    pub(crate) out: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) widen: &'static str,
    pub(crate) narrow: &'static str,
    pub(crate) output_norm: &'static str,
}

const BERT: Names = Names {
    prefix: "bert",
    layers: "encoder.layer",
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    widen: "intermediate.dense",
    narrow: "output.dense",
    output_norm: "output.LayerNorm",
};
const ROBERTA: Names = Names { prefix: "roberta", ..BERT };
const DISTILBERT: Names = Names {
    prefix: "distilbert",
    layers: "transformer.layer",
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    out: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    widen: "ffn.lin1",
    narrow: "ffn.lin2",
    output_norm: "output_layer_norm",
};

/// As BERT and RoBERTa write it.
#[derive(Deserialize)]
struct Bert {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    pad_token_id: Option<usize>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

/// As DistilBERT writes it.
#[derive(Deserialize)]
struct DistilBert {
    vocab_size: usize,
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    #[serde(default = "gelu")]
    activation: String,
    max_position_embeddings: usize,
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn epsilon() -> f32 {
    1e-12
}

impl Config {
    /// Reads and checks a `config.json`.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let refuse = |message: String| Error::file(path, message);
        let length = fs::metadata(path).map_err(|error| refuse(format!("cannot be read: {error}")))?.len();
        if length > LONGEST {
            return Err(refuse(format!("{length} bytes; a configuration has at most {LONGEST}")));
        }
        let text = fs::read(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
        let value: Value = serde_json::from_slice(&text).map_err(|error| refuse(format!("not valid JSON: {error}")))?;
        Self::parse(value).map_err(refuse)
    }

    fn parse(value: Value) -> Result<Self, String> {
        let config = match value.get("model_type").and_then(Value::as_str) {
            Some("bert") => Self::bert(typed(value)?)?,
            Some("roberta" | "xlm-roberta" | "camembert") => Self::roberta(typed(value)?)?,
            Some("distilbert") => Self::distilbert(typed(value)?)?,
            Some(other) => {
                return Err(format!("unknown architecture {other:?}; there are bert, roberta, xlm-roberta, camembert, distilbert"));
            }
            None => return Err("it has no model_type; there are bert, roberta, xlm-roberta, camembert, distilbert".to_owned()),
        };
        config.checked()
    }

    fn bert(bert: Bert) -> Result<Self, String> {
        if let Some(other) = bert.position_embedding_type.filter(|kind| kind != "absolute") {
            return Err(format!("position_embedding_type {other:?} is not supported, only \"absolute\""));
        }
        if bert.is_decoder {
            return Err("is_decoder is set; this is an encoder only".to_owned());
        }
        Ok(Config {
            vocabulary: bert.vocab_size,
            width: bert.hidden_size,
            layers: bert.num_hidden_layers,
            heads: bert.num_attention_heads,
            inner: bert.intermediate_size,
            places: bert.max_position_embeddings,
            first_place: 0,
            types: Some(bert.type_vocab_size),
            activation: activation(&bert.hidden_act)?,
            epsilon: bert.layer_norm_eps,
            names: &BERT,
        })
    }

    /// RoBERTa counts positions from behind the number of its padding token.
    fn roberta(roberta: Bert) -> Result<Self, String> {
        let padding = roberta.pad_token_id.unwrap_or(1);
        let first_place = padding.checked_add(1).ok_or_else(|| format!("pad_token_id {padding} is too large"))?;
        Ok(Config { first_place, names: &ROBERTA, ..Self::bert(roberta)? })
    }

    fn distilbert(distilbert: DistilBert) -> Result<Self, String> {
        Ok(Config {
            vocabulary: distilbert.vocab_size,
            width: distilbert.dim,
            layers: distilbert.n_layers,
            heads: distilbert.n_heads,
            inner: distilbert.hidden_dim,
            places: distilbert.max_position_embeddings,
            first_place: 0,
            types: None,
            activation: activation(&distilbert.activation)?,
            epsilon: epsilon(),
            names: &DISTILBERT,
        })
    }

    fn checked(self) -> Result<Self, String> {
        let Config { vocabulary, width, heads, inner, places, first_place, .. } = self;
        let sizes = [("vocabulary", vocabulary), ("width", width), ("heads", heads), ("feed-forward width", inner)];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(format!("{name} 0; it is at least 1"));
        }
        if self.types == Some(0) {
            return Err("type_vocab_size 0; it is at least 1".to_owned());
        }
        if width % heads != 0 {
            return Err(format!("{heads} heads do not divide a width of {width}"));
        }
        if first_place >= places {
            return Err(format!("max_position_embeddings {places}, but the first token stands at {first_place}"));
        }
        if vocabulary > i32::MAX as usize || places > i32::MAX as usize {
            return Err(format!("vocabulary {vocabulary}, positions {places}; both are below 2^31"));
        }
        if !(self.epsilon >= 0.0 && self.epsilon.is_finite()) {
            return Err(format!("layer_norm_eps {} is not a finite number of at least 0", self.epsilon));
        }
        Ok(self)
    }

    /// Tokens of the longest text.
    pub(crate) fn limit(&self) -> usize {
        self.places - self.first_place
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn activation(name: &str) -> Result<Activation, String> {
    match name {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        "silu" | "swish" => Ok(Activation::Silu),
        "tanh" => Ok(Activation::Tanh),
        other => Err(format!("unknown activation {other:?}; there are gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish, tanh")),
    }
}
