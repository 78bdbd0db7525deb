//! A folder as a whole: texts in, vectors out.

use crate::encoder::{Encoder, Pooling, pool};
use crate::{Error, Folder, Tokenizer, Tokens};
use burn::tensor::Device;
use regard::Attention;
use regard::reduce::Reducer;

/// A tokenizer with its encoder.
#[derive(Debug)]
pub struct TextEncoder {
    /// What makes tokens.
    pub tokenizer: Tokenizer,
    /// What makes vectors of them.
    pub encoder: Encoder,
}

impl TextEncoder {
    /// Opens a folder. Configuration, shapes and vocabulary are checked before anything large is allocated.
    ///
    /// # Errors
    /// The first file or tensor that does not fit.
    pub fn open(folder: &Folder, device: &Device) -> Result<Self, Error> {
        let tokenizer = |sizes: crate::encoder::Sizes| Tokenizer::open(&folder.tokenizer, sizes.vocabulary, sizes.limit);
        let (encoder, tokenizer) = Encoder::open(folder, device, tokenizer)?;
        Ok(TextEncoder { tokenizer, encoder })
    }

    /// Another way to attend in every layer.
    #[must_use]
    pub fn with_attention(self, attention: Attention) -> Self {
        TextEncoder { encoder: self.encoder.with_attention(attention), ..self }
    }

    /// Fewer tokens from layer to layer.
    #[must_use]
    pub fn with_reducer(self, reducer: impl Into<Reducer>) -> Self {
        TextEncoder { encoder: self.encoder.with_reducer(reducer), ..self }
    }

    /// One vector per text, `E` floats each, texts one behind the other.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    pub fn vectors(&self, texts: &[Tokens], pooling: Pooling, normalise: bool) -> Result<Vec<f32>, Error> {
        let ids: Vec<&[u32]> = texts.iter().map(|text| &text.ids[..]).collect();
        let vectors = pool(&self.encoder.forward(&ids)?, pooling, normalise);
        Ok(vectors.into_data().iter::<f32>().collect())
    }
}
