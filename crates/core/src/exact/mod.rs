//! Exact softmax attention, fused and tiled: nothing of size N×M is ever stored, forward or backward.

mod backward;
mod careful;
mod chunks;
mod dbias;
mod decode;
mod dropout;
mod forward;
mod live;
pub(crate) mod multiplicity;
pub(crate) mod pack;
mod plan;
mod received;
mod received_backward;
mod score;
pub(crate) mod softmax;

use crate::problem::{check_flat, expect};
use crate::simd::Singles;
use crate::{Error, Gradients, Output, Par, Problem, Saved, ViewMut};
use std::ops::Range;

/// Attention: `o = softmax(s) v` and, if wanted, `lse`.
///
/// # Errors
/// If an output does not fit the problem.
pub fn forward(problem: &Problem<'_>, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
    out.check(&problem.dims, problem.q.dtype())?;
    if decode::suits(problem) {
        decode::run(problem, out, par);
    } else {
        forward::run(problem, out, par);
    }
    Ok(())
}

/// The same in tiles, however few queries there are: scores then have the bits that [`backward`] computes again, and a row of `o` does
/// not depend on how many others stand beside it. So products are of f32, as they are there.
pub(crate) fn forward_tiled(problem: &Problem<'_>, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
    out.check(&problem.dims, problem.q.dtype())?;
    forward::run_in::<Singles>(problem, out, par);
    Ok(())
}

/// Floating-point operations of a forward pass if every pair were visible; decides about threads only.
fn flops(problem: &Problem<'_>) -> f64 {
    let dims = &problem.dims;
    2.0 * (dims.batch * dims.heads) as f64 * dims.queries as f64 * dims.keys as f64 * (dims.dk + dims.dv) as f64
}

/// Gradients of `q`, `k`, `v` and of the biases, as far as `gradients` asks for them.
///
/// # Errors
/// If a saved value or a gradient does not fit the problem.
pub fn backward(problem: &Problem<'_>, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
    saved.check(&problem.dims)?;
    gradients.check(&problem.dims, problem.bias_repeats())?;
    backward::run(problem, saved, gradients, par);
    Ok(())
}

/// Received attention `c_j = Σ_i A_ij`, `[B, H, M]`, before dropout, from the log-sum-exp `[B, H, N]` of a forward pass.
///
/// # Errors
/// If a slice does not fit the problem.
pub fn received(problem: &Problem<'_>, lse: &[f32], into: &mut [f32], par: Par) -> Result<(), Error> {
    let heads = problem.dims.batch * problem.dims.heads;
    check_flat("lse", Some(lse), heads * problem.dims.queries)?;
    check_flat("received", Some(into), heads * problem.dims.keys)?;
    received::run(problem, lse, into, par);
    Ok(())
}

/// Gradients of q and k from that of received attention, `[B, H, M]`, and the log-sum-exp `[B, H, N]` of a forward pass:
/// `dq [B, H, N, Dk]`, `dk [B, G, M, Dk]`.
///
/// # Errors
/// If a slice or a gradient does not fit the problem.
pub fn received_backward(
    problem: &Problem<'_>,
    lse: &[f32],
    d_received: &[f32],
    (mut dq, mut dk): (ViewMut<'_>, ViewMut<'_>),
    par: Par,
) -> Result<(), Error> {
    let dims = &problem.dims;
    check_flat("lse", Some(lse), dims.batch * dims.heads * dims.queries)?;
    check_flat("dreceived", Some(d_received), dims.batch * dims.heads * dims.keys)?;
    expect("dq", dq.shape(), [dims.batch, dims.heads, dims.queries, dims.dk])?;
    expect("dk", dk.shape(), [dims.batch, dims.kv_heads, dims.keys, dims.dk])?;
    received_backward::run(problem, [lse, d_received], [&mut dq, &mut dk], par);
    Ok(())
}

/// The rectangle `rows × columns` of the weights of one head, row-major, before dropout: for pictures.
///
/// # Errors
/// If the log-sum-exp does not fit the problem, or the rectangle reaches outside.
pub fn weights(
    problem: &Problem<'_>,
    lse: &[f32],
    [b, h]: [usize; 2],
    rows: Range<usize>,
    columns: Range<usize>,
) -> Result<Vec<f32>, Error> {
    let dims = &problem.dims;
    check_flat("lse", Some(lse), dims.batch * dims.heads * dims.queries)?;
    check_rectangle(problem, "weights", [b, h], [&rows, &columns])?;
    Ok(careful::rectangle(problem, lse, [b, h], rows, columns))
}

/// The rectangle `rows × columns` of dropout's `Z` for one head, row-major: 0 or `1/(1 - p)`, 1 everywhere without
/// dropout, 0 for padding.
///
/// # Errors
/// If the rectangle reaches outside.
pub fn dropout_weights(problem: &Problem<'_>, at: [usize; 2], rows: Range<usize>, columns: Range<usize>) -> Result<Vec<f32>, Error> {
    check_rectangle(problem, "dropout_weights", at, [&rows, &columns])?;
    Ok(careful::dropout_rectangle(problem, at, rows, columns))
}

fn check_rectangle(
    problem: &Problem<'_>,
    name: &'static str,
    [b, h]: [usize; 2],
    [rows, columns]: [&Range<usize>; 2],
) -> Result<(), Error> {
    let dims = &problem.dims;
    if b < dims.batch && h < dims.heads && rows.end <= dims.queries && columns.end <= dims.keys {
        return Ok(());
    }
    Err(Error::value(name, format!("batch row {b}, head {h}, rows {rows:?}, columns {columns:?} reach outside {dims:?}")))
}
