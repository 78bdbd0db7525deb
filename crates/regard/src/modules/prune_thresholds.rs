//! Learned pruning: a threshold for every layer. Kim et al. 2022, "Learned Token Pruning", arXiv 2107.00910.
//!
//! In training nothing is removed: a token's output is multiplied by `m_j = sigmoid((c_j - t) / T)`, 1 for protected ones, and the mean of the
//! masks joins the loss. Afterwards tokens with `c_j < t` are really removed. `c` is [`crate::reduce::received_score`], through which
//! gradients reach queries and keys.

use super::protected;
use crate::{Error, Packed, door};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData, activation};
use regard_core::reduce::{PerLayer, Prune, Rule};

/// Thresholds of layers.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use regard::Packed;
/// use regard::modules::PruneThresholds;
/// use regard::reduce::Prune;
///
/// let device = Device::flex().autodiff();
/// let thresholds = PruneThresholds::new(Prune { protect: 0, ..Prune::default() }, 2, &device)?;
/// let tokens = Packed::new(Tensor::ones([2, 4], &device), &[2])?;
/// let score = Tensor::from_floats([0.5, 1.5], &device); // the first stands at the threshold: half of it is left
/// let soft = thresholds.soft(tokens, score, 0)?;
/// let gradients = (soft.tokens.into_x().sum() + soft.penalty).backward();
/// assert!(thresholds.threshold.grad(&gradients).is_some());
/// # Ok::<(), regard::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct PruneThresholds {
    /// `[L]`.
    pub threshold: Param<Tensor<1>>,
    #[module(skip)]
    options: Prune,
}

/// Tokens of a layer while training.
#[derive(Debug, Clone)]
pub struct Softened {
    /// Multiplied by their masks.
    pub tokens: Packed,
    /// How much of each is left, `[T]`.
    pub mask: Tensor<1>,
    /// The mean of the masks, `[1]`: what a shorter sequence lowers.
    pub penalty: Tensor<1>,
}

impl PruneThresholds {
    /// For so many layers, starting at the thresholds of the options, whose temperature and protected tokens hold too.
    ///
    /// # Errors
    /// If an option is out of its range.
    pub fn new(options: Prune, layers: usize, device: &Device) -> Result<Self, Error> {
        regard_core::reduce::Config::check(&options)?;
        let start: Vec<f32> = (0..layers).map(|layer| options.threshold.at(layer) as f32).collect();
        let threshold = Param::from_tensor(Tensor::from_data(TensorData::new(start, [layers]), device));
        Ok(PruneThresholds { threshold, options })
    }

    /// What training makes of the tokens of a layer, from their scores `[T]`.
    ///
    /// # Errors
    /// If a shape does not fit, or there is no such layer.
    pub fn soft(&self, tokens: Packed, score: Tensor<1>, layer: usize) -> Result<Softened, Error> {
        door::expect("score", &score.dims(), &[tokens.tokens()])?;
        let threshold = self.threshold.val();
        let [layers] = threshold.dims();
        if layer >= layers {
            let message = format!("layer {layer} of {layers}");
            return Err(regard_core::Error::Value { name: "layer", message }.into());
        }
        let above = (score - threshold.narrow(0, layer, 1)) * (1.0 / f64::from(self.options.temperature));
        let mask = activation::sigmoid(above);
        let mask = match protected(&tokens, self.options.protect) {
            Some(safe) => mask.mask_fill(safe, 1.0),
            None => mask,
        };
        let x = tokens.x().clone() * mask.clone().cast(tokens.x().dtype()).unsqueeze_dim(1);
        Ok(Softened { tokens: tokens.with_x(x)?, penalty: mask.clone().mean(), mask })
    }

    /// What has been learned, for [`crate::reduce::reduce`] and encoders: thresholds are read back.
    pub fn reducer(&self) -> Prune {
        let mut thresholds: Vec<f64> = self.threshold.val().into_data().iter::<f64>().collect();
        let rest = thresholds.pop().unwrap_or_else(|| self.options.threshold.at(0));
        Prune { rule: Some(Rule::Learned), threshold: PerLayer::new(thresholds, rest), ..self.options.clone() }
    }
}
