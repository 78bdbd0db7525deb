//! Exact softmax attention, fused and tiled: nothing of size N×M is ever stored, forward or backward.

mod careful;
mod dropout;
mod forward;
mod pack;
mod plan;
mod score;

use crate::{Error, Gradients, Output, Par, Problem, Saved};

/// Attention: `o = softmax(s) v` and, if wanted, `lse`.
///
/// # Errors
/// If an output does not fit the problem.
pub fn forward(problem: &Problem<'_>, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
    out.check(&problem.dims, problem.q.dtype())?;
    forward::run(problem, out, par);
    Ok(())
}

/// Floating-point operations of a forward pass if every pair were visible; decides about threads only.
fn flops(problem: &Problem<'_>) -> f64 {
    let dims = &problem.dims;
    2.0 * (dims.batch * dims.heads) as f64 * dims.queries as f64 * dims.keys as f64 * (dims.dk + dims.dv) as f64
}

/// Backward pass.
///
/// # Errors
/// If a saved value or a gradient does not fit the problem.
pub fn backward(_problem: &Problem<'_>, _saved: &Saved<'_>, _gradients: &mut Gradients<'_>, _par: Par) -> Result<(), Error> {
    unimplemented!()
}

/// Received attention `[B, H, M]`.
///
/// # Errors
/// If a slice does not fit the problem.
pub fn received(_problem: &Problem<'_>, _lse: &[f32], _into: &mut [f32], _par: Par) -> Result<(), Error> {
    unimplemented!()
}
