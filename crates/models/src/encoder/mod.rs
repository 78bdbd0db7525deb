//! Encoders of the BERT family: words and positions, summed and normalised, then layers of attention and feed-forward.
//!
//! BERT (Devlin et al. 2018) and what has its layout, MiniLM for one; RoBERTa (Liu et al. 2019), whose positions start behind the number
//! of the padding token; DistilBERT (Sanh et al. 2019), which has no token types. Every token is of type 0, so that the table of
//! positions takes that row in when it is loaded. Texts are packed: nothing is padded, and no token sees another text.

mod config;
mod layer;
mod pool;
mod weights;

pub use pool::{Pooling, pool};

use crate::checkpoint::Checkpoint;
use crate::{Error, Folder};
use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use config::Config;
use layer::{Layer, Mixed, Norm, parameter};
use regard::mechanism::Causality;
use regard::reduce::{Reducer, Reduction, Shown, mean_keys, reduce};
use regard::rows::embedding;
use regard::{Attention, Mechanism, Packed, Pass};
use weights::Weights;

/// An encoder with its parameters, in f32: a module, trained like any other on a device with autodiff.
#[derive(Module, Debug)]
pub struct Encoder {
    #[module(skip)]
    config: Config,
    words: Param<Tensor<2>>,
    places: Param<Tensor<2>>,
    norm: Norm,
    layers: Vec<Layer>,
    #[module(skip)]
    attention: Attention,
    #[module(skip)]
    reducer: Option<Reducer>,
}

impl Encoder {
    /// The encoder of a folder, without its tokenizer.
    ///
    /// # Errors
    /// The first file or tensor that does not fit.
    pub fn read(folder: &Folder, device: &Device) -> Result<Self, Error> {
        Ok(Self::open(folder, device, |_| Ok(()))?.0)
    }

    /// Reads the configuration, finds every tensor and checks its shape, hands both to `check`, and only then reads values.
    pub(crate) fn open<T>(folder: &Folder, device: &Device, check: impl FnOnce(Sizes) -> Result<T, Error>) -> Result<(Self, T), Error> {
        let config = Config::read(&folder.config)?;
        let checkpoint = Checkpoint::open(&folder.weights)?;
        let weights = Weights::find(&checkpoint, &config)?;
        let checked = check(Sizes { vocabulary: config.vocabulary, limit: config.limit() })?;
        Ok((Self::load(&weights, config, device), checked))
    }

    fn load(weights: &Weights<'_>, config: Config, device: &Device) -> Self {
        let width = config.width;
        let table = |values: Vec<f32>| {
            let rows = values.len() / width;
            parameter(values, [rows, width], device)
        };
        let mut places = weights.places.values();
        if let Some(types) = &weights.types {
            let first = &types.values()[..width];
            for place in places.chunks_exact_mut(width) {
                place.iter_mut().zip(first).for_each(|(place, kind)| *place += kind);
            }
        }
        Encoder {
            words: table(weights.words.values()),
            places: table(places),
            norm: Norm::load(&weights.norm, config.epsilon, device),
            layers: weights.layers.iter().map(|layer| Layer::load(layer, &config, device)).collect(),
            attention: Attention::full(),
            reducer: None,
            config,
        }
    }

    /// Another way to attend in every layer: a window, a mechanism. Exact attention over the whole text by default.
    #[must_use]
    pub fn with_attention(self, attention: Attention) -> Self {
        Encoder { attention, ..self }
    }

    /// Fewer tokens from layer to layer: the reducer acts between attention and feed-forward, and merged tokens are attended to in
    /// proportion to what they stand for. None by default.
    #[must_use]
    pub fn with_reducer(self, reducer: impl Into<Reducer>) -> Self {
        Encoder { reducer: Some(reducer.into()), ..self }
    }

    /// The first `layers` layers alone, or all if it has no more.
    #[must_use]
    pub fn with_depth(mut self, layers: usize) -> Self {
        self.layers.truncate(layers);
        self
    }

    /// Refuses a mechanism that an encoder cannot have inside: one that is causal only, or that runs on parameters of its own (gates,
    /// codebooks, types), which no checkpoint has.
    ///
    /// # Errors
    /// If it is one of those.
    pub fn check(mechanism: &Mechanism) -> Result<(), Error> {
        let about = mechanism.about();
        let refuse = |reason: String| Err(Error::Mechanism { name: about.name, reason });
        if about.causality == Causality::Required {
            return refuse("it is causal only, and an encoder sees the whole text".into());
        }
        let given = |needs: &&[&str]| needs.iter().all(|&tensor| tensor == "x");
        match about.needs.first() {
            Some(first) if !about.needs.iter().any(given) => {
                refuse(format!("it learns {}, which no checkpoint of an encoder has", first.join(" and ")))
            }
            _ => Ok(()),
        }
    }

    /// Tokens of its vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    /// E, the width of its vectors.
    pub fn width(&self) -> usize {
        self.config.width
    }

    /// Layers.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The most tokens of a text.
    pub fn limit(&self) -> usize {
        self.config.limit()
    }

    /// What the first layer is given: words and positions, summed and normalised. `[T, E]`, packed.
    ///
    /// # Errors
    /// If a text is longer than [`Encoder::limit`], or an id is not in the vocabulary.
    pub fn embed(&self, texts: &[&[u32]]) -> Result<Packed, Error> {
        let lengths: Vec<usize> = texts.iter().map(|ids| ids.len()).collect();
        if let Some((text, length)) = lengths.iter().enumerate().find(|(_, length)| **length > self.limit()) {
            return Err(Error::Text(format!("text {text} has {length} tokens, the model has {} positions", self.limit())));
        }
        let ids = texts.iter().flat_map(|ids| ids.iter().map(|&id| i32::try_from(id).unwrap_or(i32::MAX))).collect();
        let places = lengths.iter().flat_map(|&length| (0..length).map(|place| (self.config.first_place + place) as i32)).collect();
        let words = gather(self.words.val(), ids)?;
        let x = self.norm.added(words, gather(self.places.val(), places)?)?;
        Ok(Packed::new(x, &lengths)?)
    }

    /// The vectors of the last layer for every token of every text, `[T, E]`, packed; with a reducer, for the tokens that are left.
    ///
    /// # Errors
    /// If a text is longer than [`Encoder::limit`], an id is not in the vocabulary, or the attention does not fit.
    pub fn forward(&self, texts: &[&[u32]]) -> Result<Encoded, Error> {
        self.forward_in(texts, Pass::default())
    }

    /// [`Encoder::forward`] in a pass of training or of evaluation: what mechanisms draw is a function of its seed and step.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    pub fn forward_in(&self, texts: &[&[u32]], pass: Pass) -> Result<Encoded, Error> {
        let how = if pass.training { self.attention.clone().pass(pass) } else { self.attention.clone() };
        self.through(self.embed(texts)?, self.layers.len(), &how)
    }

    /// The first `count` layers, applied to what [`Encoder::embed`] gave.
    ///
    /// # Errors
    /// If the attention or the reducer does not fit.
    pub fn layers(&self, tokens: Packed, count: usize) -> Result<Encoded, Error> {
        self.through(tokens, count, &self.attention)
    }

    /// How much each token is attended to in the last `last` layers, and with `vectors` also what the last layer makes of it. Without, the last layer
    /// is computed as far as its queries and keys.
    ///
    /// # Errors
    /// As [`Encoder::forward`]; also if the mechanism has no received attention.
    pub fn attended(&self, texts: &[&[u32]], last: usize, vectors: bool) -> Result<Attended, Error> {
        let mut encoded = Encoded { tokens: self.embed(texts)?, reduction: None, left: Vec::new() };
        let (count, first) = (self.layers.len(), self.layers.len().saturating_sub(last));
        let mut scores = Tensor::zeros([encoded.tokens.tokens()], &encoded.tokens.x().device());
        for (at, layer) in self.layers.iter().enumerate() {
            let how = encoded.attention(self.attention.clone(), layer.heads());
            let x = encoded.tokens.x().clone();
            if at + 1 == count && !vectors {
                scores = scores + layer.score(x, &how)?;
                break;
            }
            let mixed = layer.mix(x, &how, at >= first)?;
            scores = mixed.score.into_iter().fold(scores, |scores, score| scores + score);
            encoded.tokens = encoded.tokens.with_x(layer.feed(mixed.x)?)?;
        }
        Ok(Attended { scores: scores / (count - first).max(1) as f32, tokens: encoded.tokens })
    }

    fn through(&self, tokens: Packed, count: usize, how: &Attention) -> Result<Encoded, Error> {
        let mut encoded = Encoded { tokens, reduction: None, left: Vec::new() };
        if encoded.tokens.tokens() == 0 {
            return Ok(encoded);
        }
        for (at, layer) in self.layers.iter().enumerate().take(count) {
            let how = encoded.attention(how.clone(), layer.heads());
            let reducer = self.reducer.as_ref().filter(|reducer| reducer.acts(at));
            let scored = reducer.is_some_and(|reducer| reducer.about().tensors.contains(&"score"));
            let mixed = layer.mix(encoded.tokens.x().clone(), &how, scored)?;
            encoded.tokens = encoded.tokens.with_x(mixed.x.clone())?;
            if let Some(reducer) = reducer {
                encoded = encoded.reduced(reducer, mixed, at)?;
            }
            let x = layer.feed(encoded.tokens.x().clone())?;
            encoded.tokens = encoded.tokens.with_x(x)?;
            encoded.left.push(encoded.tokens.tokens());
        }
        Ok(encoded)
    }
}

/// How much tokens are looked at.
#[derive(Debug, Clone)]
pub struct Attended {
    /// `[T]`: mean received attention over layers and heads, in units of that of uniform attention.
    pub scores: Tensor<1>,
    /// Vectors of the last layer if they were asked for; else those ahead of it.
    pub tokens: Packed,
}

/// What an encoder made of packed texts.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// A vector per token that is left, with the position it had.
    pub tokens: Packed,
    /// What became of the tokens of the texts; none without a reducer.
    pub reduction: Option<Reduction>,
    /// Tokens that left each layer.
    pub left: Vec<usize>,
}

impl Encoded {
    /// Attention inside the sequences that are left, with what the mechanism reads of them.
    fn attention(&self, how: Attention, heads: usize) -> Attention {
        let how = self.tokens.attention(how);
        let how = if how.reads("x") { how.hidden_states(self.tokens.x().clone().unsqueeze()) } else { how };
        match &self.reduction {
            Some(reduction) if reduction.sizes().iter().any(|&size| size != 1.0) => how.key_bias(self.log_sizes(reduction, heads)),
            _ => how,
        }
    }

    fn reduced(self, reducer: &Reducer, mixed: Mixed, layer: usize) -> Result<Self, Error> {
        let shown = Shown {
            score: mixed.score,
            keys: reducer.about().tensors.contains(&"keys").then(|| mean_keys(&mixed.k)),
            sizes: self.reduction.as_ref().map(|reduction| reduction.sizes().into()),
            gate_logits: None,
        };
        let reduced = reduce(reducer, &self.tokens, &shown, layer)?;
        let reduction = match &self.reduction {
            Some(earlier) => reduced.reduction.after(earlier).map_err(regard::Error::from)?,
            None => reduced.reduction,
        };
        Ok(Encoded { tokens: reduced.tokens, reduction: Some(reduction), left: self.left })
    }

    /// `ln size` of every token, `[1, H, T]`.
    fn log_sizes(&self, reduction: &Reduction, heads: usize) -> Tensor<3> {
        let logs = reduction.log_sizes();
        let count = logs.len();
        Tensor::<3>::from_data(TensorData::new(logs, [1, 1, count]), &self.tokens.x().device()).expand([1, heads, count])
    }

    /// How many tokens of the texts each vector stands for.
    pub fn sizes(&self) -> Vec<f32> {
        self.reduction.as_ref().map_or_else(|| vec![1.0; self.tokens.tokens()], |reduction| reduction.sizes().to_vec())
    }
}

/// What a tokenizer has to fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) vocabulary: usize,
    pub(crate) limit: usize,
}

/// Rows of a table, `[T, E]`.
fn gather(table: Tensor<2>, ids: Vec<i32>) -> Result<Tensor<2>, Error> {
    let count = ids.len();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, count]), &table.device());
    Ok(embedding(table, ids)?.squeeze_dim(0))
}
