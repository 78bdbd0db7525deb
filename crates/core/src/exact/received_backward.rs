//! The gradient of received attention `c_j = Σ_i A_ij` to q and k.
//!
//! `Σ_j c_j dc_j = Σ_i Σ_j A_ij dc_j` is the sum of the outputs of attention over values `dc` of width 1. So the gradient is that of
//! attention with `v = dc` and `dO = 1`; its output, which the way back needs, is one forward pass. Values are those of a query head: the
//! query heads of a group take turns, one of each group at a time, and dk is summed over the turns in f32.

use super::{backward, forward};
use crate::problem::{Output, Saved};
use crate::simd::Singles;
use crate::view::{Strided, StridedMut, View, ViewMut};
use crate::{Dims, Gradients, Par, Problem};

/// Fills dq and dk from the log-sum-exp and the gradient of received attention; sizes are checked.
pub(super) fn run(problem: &Problem<'_>, [lse, d_received]: [&[f32]; 2], [dq, dk]: [&mut ViewMut<'_>; 2], par: Par) {
    let Dims { batch, heads, kv_heads, queries, keys, dk: width, .. } = problem.dims;
    let shape = [batch, kv_heads, keys, width];
    let (mut sum, mut part) = (vec![0.0f32; shape.iter().product()], vec![0.0f32; shape.iter().product()]);
    let mut o = vec![0.0f32; batch * kv_heads * queries];
    let of_output = [batch, kv_heads, queries, 1];
    for r in 0..problem.dims.group() {
        let v = Strided::contiguous(d_received, [batch, heads, keys, 1], "dreceived").expect("dreceived was checked");
        let turn = problem.one_of_each_group(r, View::F32(v.every(r, problem.dims.group())));
        let lse = heads_of(lse, &problem.dims, r);
        let out = StridedMut::contiguous(&mut o, of_output, "o").expect("o was sized");
        forward::run_in::<Singles>(&turn, &mut Output { o: ViewMut::F32(out), lse: None }, par);
        let ones = Strided::new(&[1.0], 0, of_output, [0; 4], "do").expect("one element is there");
        let o = Strided::contiguous(&o, of_output, "o").expect("o was sized");
        let saved = Saved { o: View::F32(o), lse: &lse, d_o: View::F32(ones) };
        let into = StridedMut::contiguous(&mut part, shape, "dk").expect("dk was sized");
        let mut gradients = Gradients { dq: Some(dq.every(r, problem.dims.group())), dk: Some(ViewMut::F32(into)), ..Gradients::default() };
        backward::run(&turn, &saved, &mut gradients, par);
        sum.iter_mut().zip(&part).for_each(|(sum, part)| *sum += part);
    }
    dk.round(&sum, par);
}

/// The rows of query heads `r`, `r + H/G` and so on of `[B, H, N]`.
fn heads_of(lse: &[f32], dims: &Dims, r: usize) -> Vec<f32> {
    let heads = lse.chunks(dims.queries.max(1)).skip(r).step_by(dims.group());
    heads.flatten().copied().collect()
}
