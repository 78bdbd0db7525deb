//! A learned threshold for every query head, for `clustered`: the least cosine of a token and the leader that it joins.

use crate::Attention;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

/// Thresholds of heads. While training, tokens pass gates by them ([`crate::mechanism::clustered`]); [`crate::penalty`] keeps them from
/// drifting to where nothing merges.
#[derive(Module, Debug)]
pub struct ClusterThreshold {
    /// `[H]`.
    pub threshold: Param<Tensor<1>>,
}

impl ClusterThreshold {
    /// For H heads, all of which start alike.
    pub fn new(heads: usize, start: f64, device: &Device) -> Self {
        ClusterThreshold { threshold: Param::from_tensor(Tensor::full([heads], start, device)) }
    }

    /// Attention with these thresholds. No cosine is below -1, so none of them counts as less; the gradient passes as if it did.
    pub fn attention(&self, how: Attention) -> Attention {
        let threshold = self.threshold.val();
        let clipped = threshold.clone().detach().clamp_min(-1.0) - threshold.clone().detach();
        how.threshold(threshold + clipped)
    }
}
