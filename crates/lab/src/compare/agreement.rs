//! An encoder of a checkpoint under other mechanisms and reducers: how near its vectors stay to those of exact attention, and how fast it
//! gets. Nothing is trained.

use crate::Error;
use crate::model::Mixing;
use burn::tensor::Device;
use regard::Attention;
use regard_models::{Encoder, Folder, Pooling, TextEncoder, Tokens, batches, pool};
use std::path::Path;
use std::time::Instant;

/// Rounds that are timed, all settings in turns; the fastest counts.
const ROUNDS: usize = 3;

/// What one mechanism or reducer came to.
#[derive(Debug, Clone)]
pub struct Agreement {
    /// Which.
    pub mixing: Mixing,
    /// The cosine of every text's vector to that of exact attention, in order.
    pub cosines: Vec<f32>,
    /// The fastest round, tokenizing left out.
    pub tokens_per_s: f64,
    /// Share of the tokens that left each layer.
    pub kept: Vec<f64>,
}

impl Agreement {
    /// The mean cosine.
    pub fn mean(&self) -> f64 {
        self.cosines.iter().map(|&cosine| f64::from(cosine)).sum::<f64>() / self.cosines.len() as f64
    }

    /// The least cosine.
    pub fn least(&self) -> f64 {
        f64::from(self.cosines.iter().copied().fold(f32::INFINITY, f32::min))
    }
}

/// Texts as an encoder reads them.
struct Texts {
    tokens: Vec<Tokens>,
    /// Tokens that are computed together.
    together: usize,
}

/// What an encoder made of texts.
#[derive(Default)]
struct Made {
    vectors: Vec<f32>,
    left: Vec<usize>,
    seconds: f64,
}

/// What every mechanism and reducer makes of texts, and the tokens of the longest. `together`: tokens that are computed together.
///
/// # Errors
/// If the folder is not that of an encoder, there are no texts, or a mechanism does not fit into an encoder.
pub fn agreements(folder: &Path, texts: &[&str], mixings: &[Mixing], together: usize) -> Result<(Vec<Agreement>, usize), Error> {
    let model = TextEncoder::open(&Folder::open(folder)?, &Device::flex())?;
    let encoders = mixings.iter().map(|mixing| configured(&model.encoder, mixing)).collect::<Result<Vec<_>, _>>()?;
    let texts = Texts { tokens: model.tokenizer.encode(texts)?, together };
    let total: usize = texts.tokens.iter().map(|text| text.ids.len()).sum();
    if total == 0 {
        return Err(Error::key("--data", "there are no texts in it"));
    }
    let exact = texts.through(&model.encoder)?.vectors;
    let mut best: Vec<Made> = Vec::new();
    for round in 0..ROUNDS {
        for (at, encoder) in encoders.iter().enumerate() {
            let made = texts.through(encoder)?;
            if round == 0 {
                best.push(made);
            } else if made.seconds < best[at].seconds {
                best[at].seconds = made.seconds;
            }
        }
    }
    let width = model.encoder.width();
    let agreement = |(mixing, made): (&Mixing, Made)| Agreement {
        mixing: mixing.clone(),
        cosines: cosines(&made.vectors, &exact, width),
        tokens_per_s: total as f64 / made.seconds,
        kept: made.left.iter().map(|&left| left as f64 / total as f64).collect(),
    };
    let longest = texts.tokens.iter().map(|text| text.ids.len()).max().unwrap_or_default();
    Ok((mixings.iter().zip(best).map(agreement).collect(), longest))
}

/// The same parameters with something else inside.
fn configured(encoder: &Encoder, mixing: &Mixing) -> Result<Encoder, Error> {
    Encoder::check(&mixing.mechanism)?;
    let encoder = encoder.clone().with_attention(Attention::full().mechanism(mixing.mechanism.clone()));
    Ok(match &mixing.reducer {
        Some(reducer) => encoder.with_reducer(reducer.clone()),
        None => encoder,
    })
}

impl Texts {
    fn through(&self, encoder: &Encoder) -> Result<Made, Error> {
        let mut made = Made::default();
        let start = Instant::now();
        for batch in batches(&self.tokens, self.together) {
            let ids: Vec<&[u32]> = self.tokens[batch].iter().map(|text| &text.ids[..]).collect();
            let encoded = encoder.forward(&ids)?;
            made.left.resize(encoded.left.len().max(made.left.len()), 0);
            made.left.iter_mut().zip(&encoded.left).for_each(|(sum, left)| *sum += left);
            made.vectors.extend(pool(&encoded, Pooling::Mean, true).into_data().iter::<f32>());
        }
        made.seconds = start.elapsed().as_secs_f64();
        Ok(made)
    }
}

/// Of unit vectors, one by one. A text without tokens is zeros on both sides, and agrees.
fn cosines(a: &[f32], b: &[f32], width: usize) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let pairs = a.chunks_exact(width).zip(b.chunks_exact(width));
    pairs.map(|(a, b)| if a == b { 1.0 } else { dot(a, b) as f32 }).collect()
}
