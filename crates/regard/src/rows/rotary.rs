//! Rotary embedding of heads `[B,H,N,D]`: each pair of dims `(a, b)` turns by `position · f_i`. Nothing is saved: backward is the
//! turn by the negative angle. Su et al. 2021.

use super::present;
use crate::autodiff::{self, Operation, Parents, Step};
use crate::flex::{self, typed};
use crate::{Error, Tally, door};
use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, TensorData};
use regard_core::rows::{Frequencies, Pairing, Rotary, rotary as kernel};
use regard_core::{Par, Strided, StridedMut};
use std::sync::Arc;

/// cos and sin of every token's angles, computed once per batch and shared by queries, keys and layers.
#[derive(Debug, Clone)]
pub struct Turns {
    kernel: Arc<kernel::Turns>,
    rotary: Rotary,
    frequencies: Arc<Frequencies>,
    positions: Arc<[i64]>,
}

impl Turns {
    /// Turns of tokens at these positions, `[B·N]` row-major. The length of the sequence is the largest position and 1.
    ///
    /// # Errors
    /// If the rotary dims are odd or its options are out of range.
    pub fn new(rotary: Rotary, positions: impl Into<Arc<[i64]>>) -> Result<Self, Error> {
        let positions = positions.into();
        let last = positions.iter().max().copied().unwrap_or(0).max(0);
        let frequencies = Arc::new(rotary.frequencies(last as usize + 1)?);
        let kernel = Arc::new(kernel::Turns::with(&rotary, &frequencies, &positions, Par::default())?);
        Ok(Turns { kernel, rotary, frequencies, positions })
    }

    /// cos and sin, `[tokens · dims/2]` each, times the attention factor.
    fn tables(&self) -> [Vec<f32>; 2] {
        let angles = || self.positions.iter().flat_map(|p| self.frequencies.inverse.iter().map(|f| *p as f64 * f));
        let factor = self.frequencies.attention_factor;
        [angles().map(|a| (a.cos() * factor) as f32).collect(), angles().map(|a| (a.sin() * factor) as f32).collect()]
    }
}

/// x `[B,H,N,D]` turned; token n of batch row b is number `b·N + n` of the positions. Dims behind the rotary ones pass.
///
/// # Errors
/// If there is not one position per token, or a head is narrower than the rotary dims.
pub fn rotary(x: Tensor<4>, turns: &Turns) -> Result<Tensor<4>, Error> {
    door::plain_float(&x, "x")?;
    let [batch, _, tokens, width] = x.dims();
    door::expect("positions", &[turns.positions.len()], &[batch * tokens])?;
    if width < turns.rotary.dims {
        let message = format!("{} dims turn, heads have {width}", turns.rotary.dims);
        return Err(regard_core::Error::Value { name: "rotary", message }.into());
    }
    if door::has_kernels(&x) {
        return autodiff::run(Turn(turns.kernel.clone()), [Some(x.into())]);
    }
    Tally::add(|tally| tally.composed += 1);
    Ok(composed(x, turns))
}

fn composed(x: Tensor<4>, turns: &Turns) -> Tensor<4> {
    let ([batch, heads, tokens, width], pairs) = (x.dims(), turns.rotary.dims / 2);
    let halves = turns.rotary.pairing == Pairing::Halves;
    let upload = |table: Vec<f32>| {
        let shape = if halves { [batch, 1, tokens, 1, pairs] } else { [batch, 1, tokens, pairs, 1] };
        Tensor::<5>::from_data(TensorData::new(table, shape), &x.device()).cast(x.dtype())
    };
    let [cos, sin] = turns.tables().map(upload);
    // Both members of a pair along one dimension of size 2.
    let (shape, dim) = if halves { ([batch, heads, tokens, 2, pairs], 3) } else { ([batch, heads, tokens, pairs, 2], 4) };
    let turned = x.clone().narrow(3, 0, 2 * pairs).reshape(shape);
    let (a, b) = (turned.clone().narrow(dim, 0, 1), turned.narrow(dim, 1, 1));
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    let second = b * cos + a * sin;
    let turned = Tensor::cat(vec![first, second], dim).reshape([batch, heads, tokens, 2 * pairs]);
    if width == 2 * pairs { turned } else { Tensor::cat(vec![turned, x.narrow(3, 2 * pairs, width - 2 * pairs)], 3) }
}

#[derive(Debug, Clone)]
struct Turn(Arc<kernel::Turns>);

impl Operation<1> for Turn {
    type Saved = ();

    fn reads(&self, _tracked: [bool; 1]) -> [bool; 1] {
        [false]
    }

    fn forward(&self, parents: &Parents<1>, _keep: bool) -> Result<(FlexTensor, ()), Error> {
        Ok((self.apply(present(parents, 0), false)?, ()))
    }

    fn backward(&self, step: Step<Self, 1>, _wanted: [bool; 1]) -> Result<Parents<1>, Error> {
        Ok([Some(self.apply(&step.gradient, true)?)])
    }
}

impl Turn {
    fn apply(&self, x: &FlexTensor, back: bool) -> Result<FlexTensor, Error> {
        let x = flex::with_rows(x);
        typed!(x, T => {
            let (shape, strides) = flex::layout(&x, "x")?;
            let from = Strided::<T>::new(flex::Stored::storage(&x), x.layout().start_offset(), shape, strides, "x")?;
            let mut values = vec![T::default(); shape.iter().product()];
            let mut into = StridedMut::contiguous(&mut values, shape, "y")?;
            let run = if back { kernel::Turns::backward::<T> } else { kernel::Turns::forward::<T> };
            run(&self.0, &from, &mut into, Par::default())?;
            Ok(flex::Stored::tensor(values, &shape))
        })
    }
}
