//! The calls into Regard's kernels: the only file here that knows their interface.
//!
//! TODO, until the kernels of `regard-core` exist: a plain, serial attention stands in for them, so that everything
//! around this file can run. Replace the bodies of `level`, `ceilings`, `forward` and `forward_backward`, and delete
//! everything below the line that says so.

use half::bf16;
use peer_protocol::{Ceilings, Data, Inputs, Result, Tensor};

/// Gradients of the inputs, in the inputs' storage type.
pub struct Gradients {
    pub dq: Tensor,
    pub dk: Tensor,
    pub dv: Tensor,
}

impl Gradients {
    pub fn zeros_like(inputs: &Inputs) -> Self {
        let zeros = |tensor: &Tensor| Tensor::zeros_like(tensor.shape, &tensor.data);
        Self {
            dq: zeros(&inputs.q),
            dk: zeros(&inputs.k),
            dv: zeros(&inputs.v),
        }
    }
}

/// The SIMD level the kernels chose, for the record.
pub fn level() -> Option<String> {
    Some("stand-in".into())
}

/// The machine's limits, measured now in the pool of the caller.
pub fn ceilings(_threads: usize) -> Ceilings {
    Ceilings::default()
}

/// `o = softmax(q kᵀ / √D) v`; also used for decoding, where `q` has one row. Runs in the pool of the caller.
pub fn forward(inputs: &Inputs, causal: bool, o: &mut Tensor) -> Result<()> {
    store(&plain(inputs, causal)?.o, o);
    Ok(())
}

/// `o` and the gradients of `q`, `k`, `v` for the given `do`.
pub fn forward_backward(
    inputs: &Inputs,
    causal: bool,
    o: &mut Tensor,
    gradients: &mut Gradients,
) -> Result<()> {
    let result = plain(inputs, causal)?;
    store(&result.o, o);
    store(&result.dq, &mut gradients.dq);
    store(&result.dk, &mut gradients.dk);
    store(&result.dv, &mut gradients.dv);
    Ok(())
}

// ---- Everything below goes when the kernels come. ----

struct Plain {
    o: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

fn plain(inputs: &Inputs, causal: bool) -> Result<Plain> {
    let [batch, heads, n, d] = inputs.q.shape;
    let [_, groups, m, dv] = inputs.v.shape;
    let (q, k, v) = (widened(&inputs.q), widened(&inputs.k), widened(&inputs.v));
    let d_o = inputs.d_o.as_ref().map(widened);
    let mut out = Plain {
        o: vec![0.0; batch * heads * n * dv],
        dq: vec![0.0; q.len()],
        dk: vec![0.0; k.len()],
        dv: vec![0.0; v.len()],
    };
    let scale = 1.0 / (d as f32).sqrt();
    for row in 0..batch * heads * n {
        let (head, i) = (row / n, row % n);
        let group = head / heads * groups + head % heads / (heads / groups);
        let seen = if causal {
            (i + 1 + m).saturating_sub(n)
        } else {
            m
        };
        let qi = &q[row * d..][..d];
        let key = |j: usize| (group * m + j) * d..(group * m + j + 1) * d;
        let value = |j: usize| (group * m + j) * dv..(group * m + j + 1) * dv;
        let scores: Vec<f32> = (0..seen).map(|j| scale * dot(qi, &k[key(j)])).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = scores.iter().map(|s| (s - max).exp()).sum();
        let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp() / sum).collect();
        let oi = &mut out.o[row * dv..][..dv];
        for (j, &p) in weights.iter().enumerate() {
            add(oi, p, &v[value(j)]);
        }
        let Some(d_o) = &d_o else { continue };
        let doi = &d_o[row * dv..][..dv];
        let delta = dot(doi, oi);
        for (j, &p) in weights.iter().enumerate() {
            let ds = scale * p * (dot(doi, &v[value(j)]) - delta);
            add(&mut out.dv[value(j)], p, doi);
            add(&mut out.dk[key(j)], ds, qi);
            add(&mut out.dq[row * d..][..d], ds, &k[key(j)]);
        }
    }
    Ok(out)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn add(into: &mut [f32], weight: f32, values: &[f32]) {
    into.iter_mut()
        .zip(values)
        .for_each(|(x, y)| *x += weight * y);
}

fn widened(tensor: &Tensor) -> Vec<f32> {
    match &tensor.data {
        Data::F32(values) => values.to_vec(),
        Data::Bf16(values) => values.iter().map(|x| x.to_f32()).collect(),
    }
}

fn store(from: &[f32], into: &mut Tensor) {
    match &mut into.data {
        Data::F32(values) => values.copy_from_slice(from),
        Data::Bf16(values) => values
            .iter_mut()
            .zip(from)
            .for_each(|(x, y)| *x = bf16::from_f32(*y)),
    }
}
