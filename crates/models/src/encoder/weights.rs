//! Where the tensors of an encoder lie in a checkpoint: all are found and their shapes checked before one is read.

use super::config::{Config, Names};
use crate::Error;
use crate::checkpoint::{Checkpoint, Slot};

/// Weight and bias.
pub(crate) type Pair<'a> = [Slot<'a>; 2];

/// All tensors of an encoder.
#[derive(Debug)]
pub(crate) struct Weights<'a> {
    pub(crate) words: Slot<'a>,
    pub(crate) places: Slot<'a>,
    pub(crate) types: Option<Slot<'a>>,
    pub(crate) norm: Pair<'a>,
    pub(crate) layers: Vec<LayerWeights<'a>>,
}

/// Those of a layer. Weights of maps are `[out, in]`.
#[derive(Debug)]
pub(crate) struct LayerWeights<'a> {
    pub(crate) qkv: [Pair<'a>; 3],
    pub(crate) out: Pair<'a>,
    pub(crate) attention_norm: Pair<'a>,
    pub(crate) widen: Pair<'a>,
    pub(crate) narrow: Pair<'a>,
    pub(crate) output_norm: Pair<'a>,
}

impl<'a> Weights<'a> {
    pub(crate) fn find(checkpoint: &'a Checkpoint, config: &Config) -> Result<Self, Error> {
        let place = Place::new(checkpoint, config.names);
        let &Config { vocabulary, width, layers, places, .. } = config;
        let one_more = place.layer(layers, config.names.out);
        if checkpoint.has(&format!("{one_more}.weight")) {
            return Err(checkpoint.refuse(&format!("{one_more}.weight"), format!("is there, the configuration has {layers} layers")));
        }
        let table = |name: &str, rows: usize| checkpoint.slot(&place.name(&format!("embeddings.{name}.weight")), &[rows, width]);
        Ok(Weights {
            words: table("word_embeddings", vocabulary)?,
            places: table("position_embeddings", places)?,
            types: config.types.map(|types| table("token_type_embeddings", types)).transpose()?,
            norm: place.norm(&place.name("embeddings.LayerNorm"), width)?,
            layers: (0..layers).map(|layer| LayerWeights::find(&place, config, layer)).collect::<Result<_, _>>()?,
        })
    }
}

impl<'a> LayerWeights<'a> {
    fn find(place: &Place<'a>, config: &Config, layer: usize) -> Result<Self, Error> {
        let &Config { width, inner, names, .. } = config;
        let map = |name: &str, shape: [usize; 2]| place.map(&place.layer(layer, name), shape);
        let norm = |name: &str| place.norm(&place.layer(layer, name), width);
        let [q, k, v] = names.qkv;
        Ok(LayerWeights {
            qkv: [map(q, [width; 2])?, map(k, [width; 2])?, map(v, [width; 2])?],
            out: map(names.out, [width; 2])?,
            attention_norm: norm(names.attention_norm)?,
            widen: map(names.widen, [inner, width])?,
            narrow: map(names.narrow, [width, inner])?,
            output_norm: norm(names.output_norm)?,
        })
    }
}

/// A checkpoint with the prefix that its names have.
struct Place<'a> {
    checkpoint: &'a Checkpoint,
    prefix: &'static str,
    layers: &'static str,
}

impl<'a> Place<'a> {
    /// An encoder saved alone has no prefix, as a part of a larger model it has one.
    fn new(checkpoint: &'a Checkpoint, names: &Names) -> Self {
        let inside = checkpoint.has(&format!("{}.embeddings.word_embeddings.weight", names.prefix));
        Place { checkpoint, prefix: if inside { names.prefix } else { "" }, layers: names.layers }
    }

    fn name(&self, name: &str) -> String {
        let dot = if self.prefix.is_empty() { "" } else { "." };
        format!("{}{dot}{name}", self.prefix)
    }

    fn layer(&self, layer: usize, name: &str) -> String {
        self.name(&format!("{}.{layer}.{name}", self.layers))
    }

    fn map(&self, name: &str, [out, inputs]: [usize; 2]) -> Result<Pair<'a>, Error> {
        let weight = self.checkpoint.slot(&format!("{name}.weight"), &[out, inputs])?;
        Ok([weight, self.checkpoint.slot(&format!("{name}.bias"), &[out])?])
    }

    /// Checkpoints that were once TensorFlow's say gamma and beta.
    fn norm(&self, name: &str, width: usize) -> Result<Pair<'a>, Error> {
        let old = self.checkpoint.has(&format!("{name}.gamma"));
        let [weight, bias] = if old { ["gamma", "beta"] } else { ["weight", "bias"] };
        let slot = |part: &str| self.checkpoint.slot(&format!("{name}.{part}"), &[width]);
        Ok([slot(weight)?, slot(bias)?])
    }
}
