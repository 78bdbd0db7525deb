//! What training adds to the loss so that a mechanism learns how much to keep or to merge.
//!
//! The core gives the value and its gradient; as a tensor the value has that gradient by the type logits or the thresholds:
//! `x·g - constant(x·g) + value`, on every device.

use super::Attention;
use super::host::{Host, Scores};
use crate::Error;
use burn::tensor::{DType, Tensor, TensorData};
use regard_core::mechanism::Plan as _;
use regard_core::{Par, mechanism};

/// `weight` times a mechanism's penalty for this call, `[1]` in f32, with gradients by what it learns from.
///
/// Of `nats`: the share of causal pairs that its types leave visible, by type logits. Of `clustered`: the squared distance of the share of
/// clusters to `target`, by thresholds. q `[B,H,N,Dk]` and k `[B,G,M,Dk]` are those of the attention; neither has a gradient here.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use regard::mechanism::Nats;
/// use regard::{Attention, penalty};
///
/// let device = Device::flex().autodiff();
/// let normal = |shape| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
/// let (q, k, logits) = (normal([1, 4, 20, 8]), normal([1, 2, 20, 8]), normal([1, 2, 20, 3]).require_grad());
/// let how = Attention::causal().mechanism(Nats::default()).type_logits(logits.clone());
/// let share = penalty(&q, &k, &how, 1.0)?;
/// assert!((0.0..=1.0).contains(&share.clone().into_scalar::<f32>()));
/// assert_eq!(logits.grad(&share.backward()).unwrap().dims(), [1, 2, 20, 3]);
/// # Ok::<(), regard::Error>(())
/// ```
///
/// # Errors
/// If the mechanism learns nothing of that kind, lacks an option, or a shape does not fit.
pub fn penalty(q: &Tensor<4>, k: &Tensor<4>, how: &Attention, weight: f32) -> Result<Tensor<1>, Error> {
    how.check([q, k, k])?;
    let host = Host::new(how, [q, k], None, Scores::Shapes);
    let mechanism::Penalty { value, dtype_logits, dthreshold } = host.plan(|_, plan| Ok(plan.penalty(weight, Par::default())?))?;
    let mut sum = Tensor::<1>::full([1], value, (&q.device(), DType::F32));
    if let (Some(logits), Some(slopes)) = (&how.learned.type_logits, dtype_logits) {
        sum = sum + with_slopes(logits, slopes);
    }
    if let (Some(threshold), Some(slopes)) = (&how.learned.threshold, dthreshold) {
        sum = sum + with_slopes(threshold, slopes);
    }
    Ok(sum)
}

/// Zero, with these slopes.
fn with_slopes<const D: usize>(x: &Tensor<D>, slopes: Vec<f32>) -> Tensor<1> {
    let slopes = Tensor::<D>::from_data(TensorData::new(slopes, x.dims()), (&x.device(), DType::F32));
    let moved = (x.clone().cast(DType::F32) * slopes).sum();
    moved.clone() - moved.detach()
}
