//! Modules that own what mechanisms and reducers learn: types, thresholds, gates, codewords.
//!
//! [`TypeProjection`], [`ClusterThreshold`], [`GateProjection`] and [`Codebook`] live in an [`crate::AttentionLayer`]; [`PruneThresholds`] and [`DeletionGate`] stand between
//! layers. Each is soft while training and hard afterwards; whatever is random in them is a function of (seed, step).
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use regard::mechanism::Nats;
//! use regard::{Attention, AttentionLayerConfig, LayerInput, Pass};
//!
//! let device = Device::flex().autodiff();
//! let layer = AttentionLayerConfig::new(32, 4).with_types(true).init(&device)?;
//! let layer = layer.attention(Attention::causal().mechanism(Nats { window: Some(4), ..Nats::default() }));
//! let x = Tensor::<3>::random([2, 20, 32], Distribution::Default, &device);
//! let input = LayerInput::self_attn(x).pass(Pass { training: true, seed: 1, step: 0 });
//! let (y, sparsity) = layer.forward_with_penalty(input, 5e-7)?;
//! let gradients = (y.powi_scalar(2).mean() + sparsity).backward();
//! assert!(layer.types.unwrap().linear.weight.grad(&gradients).is_some());
//! # Ok::<(), regard::Error>(())
//! ```

mod cluster_threshold;
mod codebook;
mod deletion_gate;
mod gate_projection;
mod prune_thresholds;
mod type_projection;

pub use cluster_threshold::ClusterThreshold;
pub use codebook::{Codebook, Statistics};
pub use deletion_gate::{DeletionGate, Gates};
pub use gate_projection::GateProjection;
pub use prune_thresholds::{PruneThresholds, Softened};
pub use type_projection::TypeProjection;

use crate::Packed;
use burn::tensor::{Bool, Tensor, TensorData};

/// Which tokens are among the first `protect` of their sequence, `[T]`; none where that is nobody.
fn protected(tokens: &Packed, protect: usize) -> Option<Tensor<1, Bool>> {
    let mut safe = vec![false; tokens.tokens()];
    for range in tokens.ranges() {
        safe[range.start..range.end.min(range.start.saturating_add(protect))].fill(true);
    }
    let count = safe.len();
    safe.contains(&true).then(|| Tensor::from_data(TensorData::new(safe, [count]), &tokens.x().device()))
}
