//! Fewer tokens for the next layer: reducers of the core's list on packed sequences, between attention and feed-forward.
//!
//! A reducer looks at what it is shown ([`Shown`]): how much each token was attended to ([`received_score`]), its keys averaged over
//! heads, its hidden state. It decides on the host, one read-back per reduction; the tokens that go on are a shorter [`Packed`]
//! with the positions they had, and what happened to whom is a [`Reduction`], which composes over layers. The decision is
//! a constant for gradients, those of hidden states flow through it.

use crate::attention::{composed, fused};
use crate::autodiff::{self, Operation, Parents, Step};
use crate::flex::{self, Fresh, Rows, typed};
use crate::rows::present;
use crate::{Attention, Error, Packed, Tally, door};
use burn::backend::flex::FlexTensor;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
pub use regard_core::reduce::{DeleteGate, Pitome, Prune, Reducer, Reduction, Tome};
use regard_core::reduce::{Tokens, Uniform};
use regard_core::rows::Matrix;
use regard_core::{Output, Par, exact};
use std::sync::Arc;

/// What a reducer may look at, beside the hidden states. What it does not read may be left out.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// How much each token is attended to, `[T]`: [`received_score`].
    pub score: Option<Tensor<1>>,
    /// Keys averaged over heads, `[T, Dk]`: [`mean_keys`].
    pub keys: Option<Tensor<2>>,
    /// A logit per token, `[T]`; a token with a negative one is deleted.
    pub gate_logits: Option<Tensor<1>>,
    /// How many original tokens each row stands for, `[T]`; 1 without it.
    pub sizes: Option<Arc<[f32]>>,
}

/// What is left of packed sequences.
#[derive(Debug, Clone)]
pub struct Reduced {
    /// The tokens that go on, with the positions they had.
    pub tokens: Packed,
    /// What became of whom.
    pub reduction: Reduction,
}

/// Keys `[1, G, T, Dk]` of packed sequences averaged over heads, `[T, Dk]`.
pub fn mean_keys(k: &Tensor<4>) -> Tensor<2> {
    k.clone().mean_dim(1).squeeze_dims(&[0, 1])
}

/// Applies a reducer behind the attention of layer `layer`, counted from 0.
///
/// # Errors
/// If the reducer needs what is not shown, a shape does not fit, or an option is out of its range.
pub fn reduce(reducer: &Reducer, packed: &Packed, shown: &Shown, layer: usize) -> Result<Reduced, Error> {
    let rows = packed.tokens();
    let flat = |x: &Option<Tensor<1>>| x.as_ref().map(|x| host(x.clone()));
    let (score, gate_logits) = (flat(&shown.score), flat(&shown.gate_logits));
    let keys = shown.keys.as_ref().map(|keys| (host(keys.clone()), keys.dims()));
    let reads_x = reducer.about().tensors.contains(&"x");
    let x = reads_x.then(|| (host(packed.x().clone()), packed.x().dims()));
    let mut tokens = Tokens::new(packed.offsets());
    (tokens.score, tokens.gate_logits, tokens.sizes) = (score.as_deref(), gate_logits.as_deref(), shown.sizes.as_deref());
    if let Some((keys, shape)) = &keys {
        tokens.keys = Some(Matrix::new(keys, *shape, "keys")?);
    }
    if let Some((x, shape)) = &x {
        tokens.x = Some(Matrix::new(x, *shape, "x")?);
    }
    let reduction = reducer.reduce(&tokens, layer, Par::default())?;
    if reduction.kept().len() == rows {
        return Ok(Reduced { tokens: packed.clone(), reduction });
    }
    let before = shown.sizes.clone().unwrap_or_else(|| vec![1.0; rows].into());
    let x = apply(packed.x().clone(), &reduction, &before)?;
    let lengths: Vec<usize> = reduction.offsets().windows(2).map(|pair| pair[1] - pair[0]).collect();
    let positions: Vec<usize> = reduction.kept().iter().map(|&row| packed.positions()[row]).collect();
    Ok(Reduced { tokens: Packed::with_positions(x, &lengths, positions)?, reduction })
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().convert::<f32>().try_into_vec::<f32>().expect("it was converted")
}

/// The rows that go on, `[T', E]`: each the size-weighted mean of those that went to it.
fn apply(x: Tensor<2>, reduction: &Reduction, before: &[f32]) -> Result<Tensor<2>, Error> {
    if door::has_kernels(&x) {
        return autodiff::run(Apply { reduction: Arc::new(reduction.clone()) }, [Some(x.into())]);
    }
    Tally::add(|tally| tally.composed += 1);
    let (device, [_, width]) = (x.device(), x.dims());
    let went: Vec<(usize, usize)> = reduction.map().iter().enumerate().filter_map(|(row, to)| to.map(|to| (row, to))).collect();
    let ints = |values: Vec<i32>| {
        let count = values.len();
        Tensor::<1, Int>::from_data(TensorData::new(values, [count]), &device)
    };
    let shares: Vec<f32> = went.iter().map(|&(row, to)| before[row] / reduction.sizes()[to]).collect();
    let shares = Tensor::<2>::from_data(TensorData::new(shares, [went.len(), 1]), &device).cast(x.dtype());
    let (rows, to) = (ints(went.iter().map(|went| went.0 as i32).collect()), ints(went.iter().map(|went| went.1 as i32).collect()));
    let zeros = Tensor::zeros([reduction.kept().len(), width], (&device, x.dtype()));
    Ok(zeros.select_assign(0, to, x.select(0, rows) * shares, IndexingUpdateOp::Add))
}

#[derive(Debug, Clone)]
struct Apply {
    reduction: Arc<Reduction>,
}

impl Operation<1> for Apply {
    type Saved = ();

    fn reads(&self, _tracked: [bool; 1]) -> [bool; 1] {
        [false]
    }

    fn forward(&self, parents: &Parents<1>, _keep: bool) -> Result<(FlexTensor, ()), Error> {
        let x = flex::as_rows(present(parents, 0));
        let y = typed!(x, T => {
            let mut y = Rows::<T>::new(&[self.reduction.kept().len(), x.layout().shape()[1]]);
            self.reduction.apply(&flex::matrix(&x, "x")?, &mut y.matrix("y")?, Par::default())?;
            Ok(y.into_tensor())
        })?;
        Ok((y, ()))
    }

    fn backward(&self, step: Step<Self, 1>, _wanted: [bool; 1]) -> Result<Parents<1>, Error> {
        let dy = flex::as_rows(&step.gradient);
        let dx = typed!(dy, T => {
            let mut dx = Rows::<T>::new(&[self.reduction.map().len(), dy.layout().shape()[1]]);
            self.reduction.backward(&flex::matrix(&dy, "dy")?, &mut dx.matrix("dx")?, Par::default())?;
            Ok(dx.into_tensor())
        })?;
        Ok([Some(dx)])
    }
}

/// How much every key of `k [B,G,M,Dk]` is attended to by `q [B,H,N,Dk]`, `[B, M]` in f32: received attention over that of uniform attention,
/// 1 on average under every mask. Differentiable in q and k, by one more sweep of `Q·Kᵀ`. In f64 where q is.
///
/// # Errors
/// If something does not fit, or the mechanism has no received attention.
pub fn received_score(q: Tensor<4>, k: Tensor<4>, how: &Attention) -> Result<Tensor<2>, Error> {
    how.check([&q, &k, &k])?;
    if !how.is_fused(&q) {
        return composed::score(q, k, how);
    }
    autodiff::run(Received { how: how.clone() }, [Some(q.into()), Some(k.into())])
}

#[derive(Debug, Clone)]
struct Received {
    how: Attention,
}

impl Operation<2> for Received {
    /// The log-sum-exp, and what uniform attention would give.
    type Saved = (Arc<[f32]>, Uniform);

    fn reads(&self, _tracked: [bool; 2]) -> [bool; 2] {
        [true; 2]
    }

    fn forward(&self, parents: &Parents<2>, _keep: bool) -> Result<(FlexTensor, Self::Saved), Error> {
        let [q, k] = [0, 1].map(|at| present(parents, at));
        self.how.with_problem([q, k], |problem| {
            let dims = *problem.dims();
            let mut lse = vec![0.0; dims.batch * dims.heads * dims.queries];
            let mut o = Fresh::like(q, [dims.batch, dims.heads, dims.queries, dims.dv]);
            exact::forward(problem, &mut Output { o: o.view_mut("o")?, lse: Some(&mut lse) }, Par::default())?;
            let (score, uniform) = fused::score(problem, &lse)?;
            let score = FlexTensor::from_data(TensorData::new(score, [dims.batch, dims.keys]));
            Ok((score, (lse.into(), uniform)))
        })
    }

    fn backward(&self, step: Step<Self, 2>, wanted: [bool; 2]) -> Result<Parents<2>, Error> {
        let (lse, uniform) = &step.saved;
        let [q, k] = [0, 1].map(|at| present(&step.parents, at));
        let dscore = flex::flat(&step.gradient);
        let shape = |x: &FlexTensor| -> [usize; 4] { std::array::from_fn(|at| x.layout().shape()[at]) };
        let (mut dq, mut dk) = (Fresh::like(q, shape(q)), Fresh::like(k, shape(k)));
        self.how.with_problem([q, k], |problem| {
            let dims = *problem.dims();
            let mut dreceived = vec![0.0; dims.batch * dims.heads * dims.keys];
            uniform.backward(&dscore, &mut dreceived)?;
            exact::received_backward(problem, lse, &dreceived, (dq.view_mut("dq")?, dk.view_mut("dk")?), Par::default())?;
            Ok(())
        })?;
        Ok([wanted[0].then(|| dq.into_tensor()), wanted[1].then(|| dk.into_tensor())])
    }
}
