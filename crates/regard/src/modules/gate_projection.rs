//! Gates from hidden states, and what becomes of outputs, for `gated_linear`. Yang et al. 2024 (GLA), arXiv 2312.06635.
//!
//! `g = logsigmoid(x W_down W_up + b) / 16` per query head and channel of the keys, at most 0: a low rank keeps it cheap, the 16th root keeps
//! what is remembered near 1. Outputs are not divided by anything, so each head is brought to one size by an RMS norm, and let through by a
//! gate of the token: `y = rms(o) ∘ swish(x W_gate)`, ahead of the output projection.

use crate::rows::{self, Activation};
use crate::{Attention, Error};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Tensor, activation};

/// Between hidden states and gates.
const RANK: usize = 16;
/// The root that is taken of a gate.
const ROOT: f64 = 16.0;
/// ε of the norm.
const EPSILON: f64 = 1e-5;

/// Gates of the keys' channels, norm and gate of the outputs.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use regard::mechanism::GatedLinear;
/// use regard::modules::GateProjection;
/// use regard::{Attention, attention};
///
/// let device = Device::flex();
/// let normal = |shape| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
/// let x = Tensor::<3>::random([2, 20, 32], Distribution::Default, &device);
/// let gates = GateProjection::new(32, [4, 8], &device);
/// let how = gates.attention(x.clone(), Attention::causal().mechanism(GatedLinear::default()))?;
/// let o = attention(normal([2, 4, 20, 8]), normal([2, 2, 20, 8]), normal([2, 2, 20, 8]), &how)?;
/// assert_eq!(gates.output(x, o)?.dims(), [2, 20, 32]);
/// # Ok::<(), regard::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct GateProjection {
    /// `[E, 16]`, without bias.
    pub down: Linear,
    /// `[16, H·D]`.
    pub up: Linear,
    /// RMS norm of every head's output, `[D]`.
    pub norm: RmsNorm,
    /// `[E, H·D]`, without bias.
    pub gate: Linear,
}

impl GateProjection {
    /// For hidden states of width E and H query heads of width D.
    pub fn new(width: usize, [heads, head_dim]: [usize; 2], device: &Device) -> Self {
        let inner = heads * head_dim;
        GateProjection {
            down: LinearConfig::new(width, RANK).with_bias(false).init(device),
            up: LinearConfig::new(RANK, inner).init(device),
            norm: RmsNormConfig::new(head_dim).with_epsilon(EPSILON).init(device),
            gate: LinearConfig::new(width, inner).with_bias(false).init(device),
        }
    }

    /// Logarithms of gates, `[B, H, N, D]` of `[B, N, E]`.
    ///
    /// # Errors
    /// If the width is another.
    pub fn gates(&self, x: Tensor<3>) -> Result<Tensor<4>, Error> {
        let [batch, n, _] = x.dims();
        let [width] = self.norm.gamma.dims();
        let low = rows::linear(x, self.down.weight.val(), None, Activation::None)?;
        let bias = self.up.bias.as_ref().map(|bias| bias.val());
        let logits = rows::linear(low, self.up.weight.val(), bias, Activation::None)?;
        let heads = logits.dims()[2] / width;
        let logits: Tensor<4> = logits.reshape([batch, n, heads, width]).swap_dims(1, 2);
        Ok(activation::log_sigmoid(logits) * (1.0 / ROOT))
    }

    /// Attention with the gates of these hidden states, `[B, N, E]`.
    ///
    /// # Errors
    /// If the width is another.
    pub fn attention(&self, x: Tensor<3>, how: Attention) -> Result<Attention, Error> {
        Ok(how.gates(self.gates(x)?))
    }

    /// What an output projection takes, `[B, N, H·D]`, of hidden states `[B, N, E]` and outputs `[B, H, N, D]`.
    ///
    /// # Errors
    /// If a width is another.
    pub fn output(&self, x: Tensor<3>, o: Tensor<4>) -> Result<Tensor<3>, Error> {
        let [batch, heads, n, width] = o.dims();
        let normed = rows::rms_norm(o.swap_dims(1, 2), self.norm.gamma.val(), self.norm.epsilon as f32)?;
        let open = rows::linear(x, self.gate.weight.val(), None, Activation::Silu)?;
        Ok(normed.reshape([batch, n, heads * width]) * open)
    }
}
