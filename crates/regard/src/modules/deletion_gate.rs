//! A learned gate that deletes tokens behind one layer of an encoder: `logit_j = w·norm(x_j) + b`. Kallini et al. 2024 (MrT5), arXiv 2410.20771.
//!
//! In training nothing is removed: `G_j = k sigmoid(-logit_j)`, 0 for protected tokens, is a key bias in all later layers, and `a · mean G` joins
//! the loss, with `a` steered by [`DeleteGate::controller`]. Afterwards [`crate::reduce::reduce`] removes the tokens with negative logits.

use super::protected;
use crate::{Error, Packed, rows};
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor, activation};
use regard_core::reduce::DeleteGate;

/// ε of the norm.
const EPSILON: f32 = 1e-5;

/// A layer norm and a linear map to one logit.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use regard::Packed;
/// use regard::modules::DeletionGate;
/// use regard::reduce::DeleteGate;
///
/// let device = Device::flex().autodiff();
/// let gate = DeletionGate::new(DeleteGate::default(), 8, &device)?;
/// let tokens = Packed::new(Tensor::random([5, 8], Distribution::Default, &device), &[5])?;
/// let gates = gate.gates(&tokens)?;
/// assert_eq!(gates.key_bias(4).dims(), [1, 4, 5]); // for `Attention::key_bias` of later layers
/// assert!((-1.0..=0.0).contains(&(gates.open.mean().into_scalar::<f32>() / 30.0)));
/// # Ok::<(), regard::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct DeletionGate {
    /// Of a token, `[E]`.
    pub norm: LayerNorm,
    /// `[E, 1]`.
    pub linear: Linear,
    #[module(skip)]
    options: DeleteGate,
}

/// What a gate says of every token.
#[derive(Debug, Clone)]
pub struct Gates {
    /// `[T]`; a token with a negative one is deleted at inference ([`crate::reduce::Shown::gate_logits`]).
    pub logits: Tensor<1>,
    /// G, `[T]`: from `k`, deleted, to 0, there.
    pub open: Tensor<1>,
}

impl Gates {
    /// G as a bias of the keys of G' kv heads, `[1, G', T]`.
    pub fn key_bias(&self, kv_heads: usize) -> Tensor<3> {
        let [tokens] = self.open.dims();
        self.open.clone().reshape([1, 1, tokens]).expand([1, kv_heads, tokens])
    }
}

impl DeletionGate {
    /// For tokens of width E.
    ///
    /// # Errors
    /// If an option is out of its range.
    pub fn new(options: DeleteGate, width: usize, device: &Device) -> Result<Self, Error> {
        regard_core::reduce::Config::check(&options)?;
        let norm = LayerNormConfig::new(width).with_epsilon(f64::from(EPSILON)).init(device);
        Ok(DeletionGate { norm, linear: LinearConfig::new(width, 1).init(device), options })
    }

    /// Logits and gates of tokens.
    ///
    /// # Errors
    /// If the width is another.
    pub fn gates(&self, tokens: &Packed) -> Result<Gates, Error> {
        let beta = self.norm.beta.as_ref().map(|beta| beta.val());
        let x = rows::layer_norm(tokens.x().clone(), self.norm.gamma.val(), beta, EPSILON)?;
        let bias = self.linear.bias.as_ref().map(|bias| bias.val());
        let logits = rows::linear(x, self.linear.weight.val(), bias, rows::Activation::None)?.squeeze_dim::<1>(1);
        let open = activation::sigmoid(-logits.clone()) * self.options.k;
        let open = match protected(tokens, self.options.protect) {
            Some(safe) => open.mask_fill(safe, 0.0),
            None => open,
        };
        Ok(Gates { logits, open })
    }

    /// Its options, a reducer for [`crate::reduce::reduce`] and encoders.
    pub fn reducer(&self) -> DeleteGate {
        self.options.clone()
    }
}
