//! A model that `regard train` made on the task `language`: from both sides, where tokens were hidden, or in one direction.

use super::{Reader, Reading, Splitter};
use crate::Error;
use burn::tensor::Device;
use regard::Pass;
use regard_core::Par;
use regard_core::rows::{Labels, Matrix, cross_entropy};
use regard_lab::batch::{Asked, Batch};
use regard_lab::experiment::Experiment;
use regard_lab::model::{Model, Outline};
use regard_lab::task::Input;
use regard_lab::train::load_kept;
use std::path::Path;

/// How much such a model's last layers look at each piece, or how little it expected it.
#[derive(Debug)]
pub struct RunReader {
    model: Model,
    device: Device,
    splitter: Splitter,
    room: usize,
    causal: bool,
}

impl RunReader {
    /// The model of a folder of a run.
    ///
    /// # Errors
    /// If there is none, or it learned something other than language of bytes or of a tokenizer's tokens.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let experiment = Experiment::reopen(folder)?;
        let facts = experiment.opened.task.facts();
        let refuse = |message: String| Error::Model(format!("{}: {message}", folder.display()));
        if facts.name != "language" {
            return Err(refuse(format!("a run on the task {}; a model that reads texts is one on language", facts.name)));
        }
        let splitter = match &experiment.opened.written["tokens"] {
            tokens if tokens.is_null() || tokens == "bytes" => Splitter::Bytes,
            tokens => match tokens["model"].as_str() {
                Some(model) => Splitter::open(&experiment.opened.base.join(model).join("tokenizer.json"))?,
                None => return Err(refuse(format!("it reads {tokens}; bytes or tokens of a tokenizer were expected"))),
            },
        };
        let (model, device) = load_kept(&experiment.run, &*experiment.opened.task, folder)?;
        Ok(RunReader { model, device, splitter, room: facts.longest, causal: facts.causal })
    }

    /// A model from its outline, its weights and its tokenizer, as the example `export` writes them.
    ///
    /// # Errors
    /// If they do not fit one another.
    pub fn parse(outline: &[u8], weights: &[u8], tokenizer: &[u8]) -> Result<Self, Error> {
        let outline: Outline = serde_json::from_slice(outline).map_err(|error| Error::Model(format!("outline: {error}")))?;
        let device = regard_models::cpu();
        let model = outline.model(&device)?.with_weights(weights)?;
        let splitter = Splitter::parse(tokenizer).map_err(Error::Model)?;
        Ok(RunReader { model, device, splitter, room: outline.longest, causal: outline.causal })
    }

    /// The language model that is part of this crate; configs/compress.yaml says how it was trained.
    ///
    /// # Errors
    /// If the program was built with files that do not fit one another.
    pub fn embedded() -> Result<Self, Error> {
        Self::parse(
            include_bytes!("../../model/outline.json"),
            include_bytes!("../../model/model.safetensors"),
            include_bytes!("../../model/tokenizer.json"),
        )
    }

    fn attended(&self, batch: &Batch, vectors: bool) -> Result<Reading, Error> {
        let flow = self.model.attended(batch, &self.device)?;
        let layers = flow.scores.unwrap_or_default();
        let last = layers.len().div_ceil(2);
        let mut weights = vec![0.0; batch.tokens()];
        for scores in layers.into_iter().rev().take(last) {
            weights.iter_mut().zip(scores.into_data().iter::<f32>()).for_each(|(sum, score)| *sum += score / last as f32);
        }
        let vectors = if vectors { flow.tokens.into_x().into_data().iter::<f32>().collect() } else { Vec::new() };
        Ok(Reading { weights, vectors })
    }

    /// `-ln p` of every token but the first of each chunk, which gets the mean of the others.
    fn surprise(&self, batch: &Batch) -> Result<Reading, Error> {
        let Asked::Tokens { rows, labels } = &batch.asked else { return Err(Error::Model("a language model answers with tokens".into())) };
        let said = self.model.answers(batch, Pass::default(), &self.device)?.said;
        let ([count, width], data) = (said.dims(), said.into_data());
        let logits = data.as_slice::<f32>().map_err(|error| Error::Model(format!("answers are no f32: {error:?}")))?;
        let refuse = |error: regard_core::Error| Error::Model(error.to_string());
        let mut lse = vec![0.0; count];
        let matrix = Matrix::new(logits, [count, width], "logits").map_err(refuse)?;
        cross_entropy::forward(&matrix, &Labels::new(labels), &mut lse, Par::default()).map_err(refuse)?;
        let mut weights = vec![f32::NAN; batch.tokens()];
        for (((row, label), said), lse) in rows.iter().zip(labels).zip(logits.chunks_exact(width)).zip(lse) {
            weights[row + 1] = lse - said[*label as usize];
        }
        let mean = weights.iter().filter(|weight| !weight.is_nan()).sum::<f32>() / rows.len().max(1) as f32;
        weights.iter_mut().filter(|weight| weight.is_nan()).for_each(|weight| *weight = mean);
        Ok(Reading { weights, vectors: Vec::new() })
    }

    /// Chunks end to end; a model of one direction is asked for the next token wherever there is one.
    fn batch(&self, chunks: &[&[u32]]) -> Batch {
        let lengths: Vec<usize> = chunks.iter().map(|chunk| chunk.len()).collect();
        let (mut rows, mut labels, mut start) = (Vec::new(), Vec::new(), 0);
        for chunk in chunks {
            rows.extend(start..start + chunk.len().saturating_sub(1));
            labels.extend_from_slice(chunk.get(1..).unwrap_or_default());
            start += chunk.len();
        }
        Batch { input: Input::Tokens(chunks.concat()), lengths, asked: Asked::Tokens { rows, labels } }
    }
}

impl Reader for RunReader {
    fn splitter(&self) -> &Splitter {
        &self.splitter
    }

    fn room(&self) -> usize {
        self.room
    }

    fn is_causal(&self) -> bool {
        self.causal
    }

    fn width(&self) -> usize {
        if self.causal { 0 } else { self.model.width() }
    }

    fn read(&self, chunks: &[&[u32]], vectors: bool) -> Result<Vec<Reading>, Error> {
        let batch = self.batch(chunks);
        let whole = if self.causal { self.surprise(&batch)? } else { self.attended(&batch, vectors)? };
        let width = whole.vectors.len() / batch.tokens().max(1);
        let mut start = 0;
        let readings = batch.lengths.iter().map(|length| {
            let own = start..start + length;
            start = own.end;
            Reading { weights: whole.weights[own.clone()].to_vec(), vectors: whole.vectors[own.start * width..own.end * width].to_vec() }
        });
        Ok(readings.collect())
    }
}
