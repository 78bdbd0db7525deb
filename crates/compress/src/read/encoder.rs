//! An encoder of the BERT family that reads.

use super::{Reader, Reading, Splitter};
use crate::Error;
use regard_models::{Encoder, Folder, cpu};

/// How much an encoder's last layers look at each piece.
#[derive(Debug)]
pub struct EncoderReader {
    encoder: Encoder,
    splitter: Splitter,
    around: [Vec<u32>; 2],
}

impl EncoderReader {
    /// The encoder and the tokenizer of a folder; with `layers`, as many of the first layers as that. What is said of a piece takes time in
    /// proportion to them.
    ///
    /// # Errors
    /// The first file or tensor that does not fit; if there are fewer layers.
    pub fn open(folder: &Folder, layers: Option<usize>) -> Result<Self, Error> {
        let splitter = Splitter::open(&folder.tokenizer)?;
        let around = splitter.around()?;
        let encoder = Encoder::read(folder, &cpu())?;
        let special = around.concat();
        if let Some(id) = special.iter().find(|id| **id as usize >= encoder.vocabulary()) {
            let message = format!("token {id} of the tokenizer is not among the model's {}; they are of two models", encoder.vocabulary());
            return Err(Error::Model(format!("{}: {message}", folder.tokenizer.display())));
        }
        if special.len() >= encoder.limit() {
            return Err(Error::Model(format!("{} special tokens leave no room in {} positions", special.len(), encoder.limit())));
        }
        let depth = encoder.depth();
        if let Some(layers) = layers.filter(|layers| !(1..=depth).contains(layers)) {
            return Err(Error::Option { name: "layers", message: format!("{layers} of {depth}; read 1 to {depth} of them") });
        }
        Ok(EncoderReader { encoder: encoder.with_depth(layers.unwrap_or(depth)), splitter, around })
    }
}

impl Reader for EncoderReader {
    fn splitter(&self) -> &Splitter {
        &self.splitter
    }

    fn room(&self) -> usize {
        self.encoder.limit() - self.around.iter().map(Vec::len).sum::<usize>()
    }

    fn is_causal(&self) -> bool {
        false
    }

    fn width(&self) -> usize {
        self.encoder.width()
    }

    fn read(&self, chunks: &[&[u32]], vectors: bool) -> Result<Vec<Reading>, Error> {
        let [before, behind] = &self.around;
        let texts: Vec<Vec<u32>> = chunks.iter().map(|chunk| [before, *chunk, behind].concat()).collect();
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let attended = self.encoder.attended(&texts, self.encoder.depth().div_ceil(2), vectors)?;
        let scores: Vec<f32> = attended.scores.into_data().iter::<f32>().collect();
        let width = if vectors { self.width() } else { 0 };
        let hidden: Vec<f32> = if vectors { attended.tokens.into_x().into_data().iter::<f32>().collect() } else { Vec::new() };
        let mut start = 0;
        let reading = chunks.iter().map(|chunk| {
            let own = start + before.len()..start + before.len() + chunk.len();
            start = own.end + behind.len();
            Reading { weights: scores[own.clone()].to_vec(), vectors: hidden[own.start * width..own.end * width].to_vec() }
        });
        Ok(reading.collect())
    }
}
