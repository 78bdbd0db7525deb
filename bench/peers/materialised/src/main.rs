//! Attention as the formula reads, speaking the measuring protocol: what anybody would write from a matrix product and
//! a softmax. `S = scale · Q Kᵀ`, all of it stored; then the softmax of every row; then `O = S V`. f32 forward.
//!
//! It is meant to be hard to beat: products by `matrixmultiply` (AVX-512 where there is), the softmax in the compiler's
//! vectors, threads over heads, or over blocks of rows where heads are fewer than threads, memory allocated beforehand.

mod softmax;

use ndarray::{ArrayView2, ArrayViewMut2, ShapeError, linalg::general_mat_mul};
use peer_protocol::{Call, Data, Engine, Inputs, Pass, Result, Tensor, seconds_per_call, serve};
use rayon::prelude::*;

/// Below so many operations a call stays on one thread, as Regard's do.
const SERIAL_FLOPS: usize = 1_000_000;

fn main() -> Result<()> {
    serve(Peer::default())
}

#[derive(Default)]
struct Peer {
    loaded: Option<Loaded>,
}

struct Loaded {
    inputs: Inputs,
    /// `[B·H, N, M]`.
    scores: Vec<f32>,
    o: Tensor,
}

impl Engine for Peer {
    fn hello(&self) -> (&'static str, Option<String>) {
        ("materialised", None)
    }

    fn load(&mut self, inputs: Inputs) -> Result<()> {
        let ([batch, heads, queries, _], kv) = (inputs.q.shape, inputs.k.shape);
        if heads != kv[1] {
            return Err("as many key/value heads as query heads, please".into());
        }
        self.loaded = Some(Loaded {
            scores: vec![0.0; batch * heads * queries * kv[2]],
            o: Tensor::zeros_like(inputs.output_shape(), &inputs.q.data),
            inputs,
        });
        Ok(())
    }

    fn run(&mut self, pass: Pass, call: &Call) -> Result<f64> {
        call.plain()?;
        if pass == Pass::Backward || call.causal {
            return Err("only the full forward pass is measured here".into());
        }
        let loaded = self.loaded.as_mut().ok_or("nothing is loaded")?;
        seconds_per_call(call.repeat, || loaded.attend(call.threads))
    }

    fn outputs(&self) -> Result<Vec<(&'static str, &Tensor)>> {
        let loaded = self.loaded.as_ref().ok_or("nothing is loaded")?;
        Ok(vec![("o", &loaded.o)])
    }
}

/// The values of q, k, v, if they are f32.
fn values(Inputs { q, k, v, .. }: &Inputs) -> Option<[&[f32]; 3]> {
    Some([q.as_f32()?, k.as_f32()?, v.as_f32()?])
}

impl Loaded {
    fn attend(&mut self, threads: usize) -> Result<()> {
        let sizes = Sizes::of(&self.inputs);
        let (Some([q, k, v]), Data::F32(o)) = (values(&self.inputs), &mut self.o.data) else {
            return Err("only f32 is measured here".into());
        };
        let Sizes { heads, queries, keys, width, out } = sizes;
        let rows = queries.div_ceil(threads.div_ceil(heads));
        let mut blocks = Vec::with_capacity(heads * queries.div_ceil(rows));
        let of_heads = self.scores.chunks_mut(queries * keys).zip(o.chunks_mut(queries * out));
        for (head, (scores, o)) in of_heads.enumerate() {
            let q = q[head * queries * width..][..queries * width].chunks(rows * width);
            let (k, v) = (&k[head * keys * width..][..keys * width], &v[head * keys * out..][..keys * out]);
            let outputs = scores.chunks_mut(rows * keys).zip(o.chunks_mut(rows * out));
            blocks.extend(q.zip(outputs).map(|(q, (scores, o))| Block { q, k, v, scores, o }));
        }
        if threads == 1 || sizes.flops() < SERIAL_FLOPS {
            blocks.into_iter().try_for_each(|block| block.attend(sizes))
        } else {
            blocks.into_par_iter().try_for_each(|block| block.attend(sizes))
        }
        .map_err(Into::into)
    }
}

/// Sizes of a call; `heads` counts those of all sequences.
#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    queries: usize,
    keys: usize,
    width: usize,
    out: usize,
}

impl Sizes {
    fn of(inputs: &Inputs) -> Self {
        let [batch, heads, queries, width] = inputs.q.shape;
        let [_, _, keys, out] = inputs.v.shape;
        Sizes { heads: batch * heads, queries, keys, width, out }
    }

    fn flops(self) -> usize {
        2 * self.heads * self.queries * self.keys * (self.width + self.out)
    }
}

/// Rows of one head.
struct Block<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    scores: &'a mut [f32],
    o: &'a mut [f32],
}

impl Block<'_> {
    fn attend(self, Sizes { keys, width, out, .. }: Sizes) -> std::result::Result<(), ShapeError> {
        let Block { q, k, v, scores, o } = self;
        let rows = q.len() / width;
        let q = ArrayView2::from_shape((rows, width), q)?;
        let k = ArrayView2::from_shape((keys, width), k)?;
        let v = ArrayView2::from_shape((keys, out), v)?;
        let mut s = ArrayViewMut2::from_shape((rows, keys), &mut *scores)?;
        general_mat_mul(1.0 / (width as f32).sqrt(), &q, &k.t(), 0.0, &mut s);
        scores.chunks_mut(keys).for_each(softmax::softmax);
        let s = ArrayView2::from_shape((rows, keys), &*scores)?;
        general_mat_mul(1.0, &s, &v, 0.0, &mut ArrayViewMut2::from_shape((rows, out), o)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values in (-3, 3) that follow from their place.
    fn drawn(shape: [usize; 4], seed: usize) -> Tensor {
        let count = shape.iter().product();
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 6007) as f32 / 1001.0 - 3.0;
        Tensor::from_f32(shape, &(0..count).map(value).collect::<Vec<_>>())
    }

    /// The formula in f64, one number of the output.
    fn expected([q, k, v]: [&[f32]; 3], column: usize, width: usize) -> f64 {
        let logit = |k: &[f32]| {
            let dot: f64 = q.iter().zip(k).map(|(a, b)| f64::from(a * b)).sum();
            dot / (width as f64).sqrt()
        };
        let weights: Vec<f64> = k.chunks(width).map(|k| logit(k).exp()).collect();
        let total: f64 = weights.iter().sum();
        let values = v.chunks(width).map(|v| f64::from(v[column]));
        weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / total
    }

    #[test]
    fn every_row_is_attention_on_one_thread_and_on_three() {
        for (n, threads) in [(1, 1), (5, 3), (64, 3), (65, 1), (200, 3)] {
            let [b, h, d] = [1, 2, 8];
            let [q, k, v] = [1, 2, 3].map(|seed| drawn([b, h, n, d], seed));
            let mut peer = Peer::default();
            let inputs = Inputs { q, k, v, d_o: None, side: Default::default() };
            peer.load(inputs).unwrap();
            peer.loaded.as_mut().unwrap().attend(threads).unwrap();
            let loaded = peer.loaded.as_ref().unwrap();
            let [q, k, v] = values(&loaded.inputs).unwrap();
            for (at, &found) in loaded.o.as_f32().unwrap().iter().enumerate() {
                let (row, column, head) = (at / d, at % d, at / (n * d));
                let [k, v] = [k, v].map(|x| &x[head * n * d..][..n * d]);
                let expected = expected([&q[row * d..][..d], k, v], column, d);
                assert!((f64::from(found) - expected).abs() < 1e-5, "{n} rows, {threads} threads: {found}, not {expected}");
            }
        }
    }
}
