//! Cross-entropy of logits `[rows, classes]` against labels, the mean over the rows that have one:
//! `loss_i = lse_i - (1 - ε) x_iy - ε mean_j x_ij`. Saved: the logits and one lse per row, no probabilities. The loss is f32.

use super::present;
use crate::autodiff::{self, Operation, Parents, Step};
use crate::flex::{self, Rows, typed};
use crate::{Error, Tally, door};
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Int, Tensor, activation};
use regard_core::Par;
use regard_core::rows::cross_entropy as kernel;
use std::sync::Arc;

/// How labels count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Labels {
    /// The number that means "no label"; -100 by default.
    pub ignored: i64,
    /// Label smoothing ε in [0, 1]: so much of the target is spread over all classes.
    pub smoothing: f32,
}

impl Default for Labels {
    fn default() -> Self {
        Labels { ignored: -100, smoothing: 0.0 }
    }
}

/// The mean loss `[1]`, in f32, of logits `[rows, classes]` against labels `[rows]`; 0 where no row has a label.
///
/// # Errors
/// If shapes or devices do not fit, smoothing is outside [0, 1], or, on the CPU, a label is not a class; its row is named.
pub fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>, how: Labels) -> Result<Tensor<1>, Error> {
    door::plain_float(&logits, "logits")?;
    door::same_place(&logits, "labels", &labels)?;
    door::expect("labels", &labels.dims(), &[logits.dims()[0]])?;
    if !(0.0..=1.0).contains(&how.smoothing) {
        let message = format!("{} is not between 0 and 1", how.smoothing);
        return Err(regard_core::Error::Value { name: "smoothing", message }.into());
    }
    if door::has_kernels(&logits) {
        let labels = labels.into_data().iter::<i64>().collect();
        return autodiff::run(CrossEntropy { labels, how }, [Some(logits.into())]);
    }
    Tally::add(|tally| tally.composed += 1);
    Ok(composed(logits, labels, how))
}

fn composed(logits: Tensor<2>, labels: Tensor<1, Int>, how: Labels) -> Tensor<1> {
    let rows = logits.dims()[0];
    let dtype = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let logarithms = activation::log_softmax(logits.cast(dtype), 1);
    let unlabelled = labels.clone().equal_elem(how.ignored);
    let classes = labels.mask_fill(unlabelled.clone(), 0).reshape([rows, 1]);
    let own = logarithms.clone().gather(1, classes).reshape([rows]);
    let all = logarithms.mean_dim(1).reshape([rows]);
    let losses = own * (how.smoothing - 1.0) - all * how.smoothing;
    let counted = unlabelled.clone().bool_not().float().cast(dtype).sum().clamp_min(1.0);
    losses.mask_fill(unlabelled, 0.0).sum() / counted
}

#[derive(Debug, Clone)]
struct CrossEntropy {
    labels: Arc<[i64]>,
    how: Labels,
}

impl CrossEntropy {
    fn kernel(&self) -> regard_core::rows::Labels<'_, i64> {
        regard_core::rows::Labels::new(&self.labels).ignoring(self.how.ignored).smoothing(self.how.smoothing)
    }
}

impl Operation<1> for CrossEntropy {
    /// The log-sum-exp of every row.
    type Saved = Arc<[f32]>;

    fn reads(&self, _tracked: [bool; 1]) -> [bool; 1] {
        [true]
    }

    fn forward(&self, parents: &Parents<1>, _keep: bool) -> Result<(FlexTensor, Arc<[f32]>), Error> {
        let x = flex::as_rows(present(parents, 0));
        let mut lse = vec![0.0; self.labels.len()];
        let loss: f32 = typed!(x, T => {
            kernel::forward(&flex::matrix::<T>(&x, "logits")?, &self.kernel(), &mut lse, Par::default()).map_err(Error::from)
        })?;
        Ok((flex::tensor(vec![loss], &[1], DType::F32), lse.into()))
    }

    fn backward(&self, step: Step<Self, 1>, _wanted: [bool; 1]) -> Result<Parents<1>, Error> {
        let x = flex::as_rows(present(&step.parents, 0));
        let dloss = flex::flat(&step.gradient)[0];
        let dx = typed!(x, T => {
            let mut dx = Rows::<T>::like(&x);
            let from = (&step.saved[..], dloss);
            kernel::backward(&flex::matrix(&x, "logits")?, &self.kernel(), from, &mut dx.matrix("dx")?, Par::default())?;
            Ok(dx.into_tensor())
        })?;
        Ok([Some(dx)])
    }
}
