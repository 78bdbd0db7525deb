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
use burn::tensor::{Device, Int, Tensor, TensorData};
use config::Config;
use layer::{Layer, Norm};
use regard::rows::embedding;
use regard::{Attention, Packed};
use weights::Weights;

/// An encoder with its parameters, in f32.
#[derive(Debug)]
pub struct Encoder {
    config: Config,
    words: Tensor<2>,
    places: Tensor<2>,
    norm: Norm,
    layers: Vec<Layer>,
    attention: Attention,
}

impl Encoder {
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
            Tensor::from_data(TensorData::new(values, [rows, width]), device)
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
            config,
        }
    }

    /// Another way to attend in every layer: a window, a mechanism. Exact attention over the whole text by default.
    #[must_use]
    pub fn with_attention(self, attention: Attention) -> Self {
        Encoder { attention, ..self }
    }

    /// E, the width of its vectors.
    pub fn width(&self) -> usize {
        self.config.width
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
        let words = gather(&self.words, ids)?;
        let x = self.norm.added(words, gather(&self.places, places)?)?;
        Ok(Packed::new(x, &lengths)?)
    }

    /// The vectors of the last layer for every token of every text, `[T, E]`, packed.
    ///
    /// # Errors
    /// If a text is longer than [`Encoder::limit`], an id is not in the vocabulary, or the attention does not fit.
    pub fn forward(&self, texts: &[&[u32]]) -> Result<Packed, Error> {
        self.layers(self.embed(texts)?, self.layers.len())
    }

    /// The first `count` layers, applied to what [`Encoder::embed`] gave.
    ///
    /// # Errors
    /// If the attention does not fit.
    pub fn layers(&self, packed: Packed, count: usize) -> Result<Packed, Error> {
        if packed.tokens() == 0 {
            return Ok(packed);
        }
        let how = packed.attention(self.attention.clone());
        let mut x = packed.x().clone();
        for layer in self.layers.iter().take(count) {
            x = layer.forward(x, &how)?;
        }
        Ok(packed.with_x(x)?)
    }
}

/// What a tokenizer has to fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) vocabulary: usize,
    pub(crate) limit: usize,
}

/// Rows of a table, `[T, E]`.
fn gather(table: &Tensor<2>, ids: Vec<i32>) -> Result<Tensor<2>, Error> {
    let count = ids.len();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, count]), &table.device());
    Ok(embedding(table.clone(), ids)?.squeeze_dim(0))
}
