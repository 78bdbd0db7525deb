//! Types of keys from hidden states, for `nats`: `logits = x W + b`, three for every kv head and token.
//!
//! In training Gumbel noise `-ln(-ln u)` is added and the largest wins, straight through to the softmax of the noisy logits: a sample of the
//! types by their probabilities at a temperature of 1. `u` is a hash of (seed, step, sequence, head, token, type), so that a padded batch and
//! the same sequences packed draw alike. Afterwards the largest logit wins. Deng et al. 2024; Jang et al. 2017 (Gumbel-softmax).

use crate::rows::{self, Activation};
use crate::{Attention, Error, Pass};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};

/// Global, local, window.
const TYPES: usize = 3;

/// A linear map from hidden states to the logits of types.
#[derive(Module, Debug)]
pub struct TypeProjection {
    /// `[E, 3·G]`.
    pub linear: Linear,
}

impl TypeProjection {
    /// For hidden states of width E and G kv heads.
    pub fn new(width: usize, kv_heads: usize, device: &Device) -> Self {
        TypeProjection { linear: LinearConfig::new(width, TYPES * kv_heads).init(device) }
    }

    /// `[B, G, N, 3]` of `[B, N, E]`, without noise.
    ///
    /// # Errors
    /// If the width is another.
    pub fn logits(&self, x: Tensor<3>) -> Result<Tensor<4>, Error> {
        let [batch, n, _] = x.dims();
        let bias = self.linear.bias.as_ref().map(|bias| bias.val());
        let logits = rows::linear(x, self.linear.weight.val(), bias, Activation::None)?;
        let heads = logits.dims()[2] / TYPES;
        Ok(logits.reshape([batch, n, heads, TYPES]).swap_dims(1, 2))
    }

    /// The logits that choose, `[B, G, M, 3]` of hidden states `[B, M, E]`: with noise where this attention's pass is one of training.
    ///
    /// # Errors
    /// If the width is another.
    pub fn noisy_logits(&self, x: Tensor<3>, how: &Attention) -> Result<Tensor<4>, Error> {
        let logits = self.logits(x)?;
        if !how.rules.pass().training {
            return Ok(logits);
        }
        let noise = noise(how, logits.dims());
        Ok(logits.clone() + Tensor::<4>::from_data(TensorData::new(noise, logits.dims()), &logits.device()).cast(logits.dtype()))
    }

    /// Attention whose keys have the types of these hidden states, `[B, M, E]`.
    ///
    /// # Errors
    /// If the width is another.
    pub fn attention(&self, x: Tensor<3>, how: Attention) -> Result<Attention, Error> {
        let logits = self.noisy_logits(x, &how)?;
        Ok(how.type_logits(logits))
    }
}

/// `[B, G, M, 3]`.
fn noise(how: &Attention, [batch, heads, tokens, types]: [usize; 4]) -> Vec<f32> {
    let pass = how.rules.pass();
    let places: Vec<[usize; 2]> = match how.rules.key_offsets() {
        Some(offsets) => {
            let ranges = offsets.windows(2).enumerate();
            ranges.flat_map(|(sequence, ends)| (0..ends[1] - ends[0]).map(move |token| [sequence, token])).take(tokens).collect()
        }
        None => (0..tokens).map(|token| [0, token]).collect(),
    };
    let mut all = Vec::with_capacity(batch * heads * tokens * types);
    for [b, head] in (0..batch).flat_map(|b| (0..heads).map(move |head| [b, head])) {
        for &[sequence, token] in &places {
            all.extend((0..types).map(|kind| gumbel(pass, [b + sequence, head, token, kind])));
        }
    }
    all
}

/// `-ln(-ln u)` of one logit.
fn gumbel(pass: Pass, at: [usize; 4]) -> f32 {
    let hash = at.iter().fold(mix(pass.seed ^ mix(pass.step)), |hash, &index| mix(hash ^ index as u64));
    let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -(-uniform.ln()).ln() as f32
}

/// SplitMix64 (Steele et al. 2014): a step and its mixer.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_the_moments_of_gumbels_distribution() {
        let pass = Pass { training: true, seed: 7, step: 3 };
        let draws: Vec<f64> = (0..60_000).map(|at| f64::from(gumbel(pass, [at / 300, at % 5, at / 5 % 20, at / 100 % 3]))).collect();
        let draws: Vec<f64> = draws.iter().step_by(3).copied().collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        let (euler, expected) = (0.577_215_66, std::f64::consts::PI.powi(2) / 6.0);
        assert!((mean - euler).abs() < 0.04 && (variance - expected).abs() < 0.08, "mean {mean}, variance {variance}");
    }

    #[test]
    fn every_index_changes_the_draw() {
        let pass = Pass { training: true, seed: 7, step: 3 };
        let draw = gumbel(pass, [0, 0, 0, 0]);
        for at in [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] {
            assert_ne!(draw, gumbel(pass, at));
        }
        assert_ne!(draw, gumbel(Pass { seed: 8, ..pass }, [0; 4]));
        assert_ne!(draw, gumbel(Pass { step: 4, ..pass }, [0; 4]));
    }
}
