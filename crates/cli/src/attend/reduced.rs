//! A reducer behind exact attention: who goes on to the next layer.

use super::{Call, Named, mixed};
use crate::attend::inputs::Loaded;
use crate::tensor::{Float, Tensor};
use regard_core::mechanism::Plan;
use regard_core::reduce::{Reducer, Reduction, Tokens, Uniform};
use regard_core::rows::{Matrix, MatrixMut};
use regard_core::{Dims, Error, Output};

/// What exact attention writes, `score [B, M]`, and of x what is left: `reduced [B, K, E]`, `kept [B, K]`, `map [B, N]`,
/// `sizes [B, K]`.
pub fn attend(call: &Call<'_>, reducer: &Reducer, loaded: Loaded) -> Result<Vec<Named>, Error> {
    let tokens = Gathered::new(call, &loaded)?;
    let mut results = vec![("score", tokens.score_tensor(loaded.float))];
    if tokens.x.is_some() {
        results.extend(tokens.reduced(call, reducer, loaded.float)?);
    }
    results.extend(mixed(call, loaded)?);
    Ok(results)
}

/// The valid tokens of all batch rows, end to end, in f32.
struct Gathered {
    batch: usize,
    queries: usize,
    offsets: Vec<usize>,
    /// `[B, N]`.
    score: Vec<f32>,
    x: Option<Vec<f32>>,
    width: usize,
    keys: Vec<f32>,
    dk: usize,
    gate_logits: Option<Vec<f32>>,
}

impl Gathered {
    fn new(call: &Call<'_>, loaded: &Loaded) -> Result<Self, Error> {
        let Dims { batch, kv_heads, queries, keys, dk, .. } = loaded.dims;
        if queries != keys {
            return Err(Error::Shape { tensor: "q", found: vec![queries], expected: vec![keys] });
        }
        let count = |b: usize| loaded.lengths.as_ref().map_or(queries, |lengths| lengths[b]);
        let offsets = (0..batch).scan(0, |end, b| {
            *end += count(b);
            Some(*end)
        });
        let rows: Vec<[usize; 2]> = (0..batch).flat_map(|b| (0..count(b)).map(move |n| [b, n])).collect();
        let k = loaded.k.to_f64();
        let mean = |[b, n]: [usize; 2], d: usize| {
            let heads = (0..kv_heads).map(|g| k[((b * kv_heads + g) * keys + n) * dk + d]);
            (heads.sum::<f64>() / kv_heads as f64) as f32
        };
        let gathered = |tensor: &Tensor, width: usize| {
            let values = tensor.to_f64();
            let row = |[b, n]: [usize; 2]| (b * queries + n) * width..(b * queries + n + 1) * width;
            rows.iter().flat_map(|&at| &values[row(at)]).map(|&x| x as f32).collect::<Vec<_>>()
        };
        let width = loaded.x.as_ref().map_or(0, |x| x.shape[3]);
        Ok(Gathered {
            batch,
            queries,
            score: score(call, loaded)?,
            x: loaded.x.as_ref().map(|x| gathered(x, width)),
            gate_logits: loaded.gate_logits.as_ref().map(|logits| gathered(logits, 1)),
            keys: rows.iter().flat_map(|&at| (0..dk).map(move |d| (at, d))).map(|(at, d)| mean(at, d)).collect(),
            offsets: std::iter::once(0).chain(offsets).collect(),
            width,
            dk,
        })
    }

    fn score_tensor(&self, float: Float) -> Tensor {
        let values: Vec<f64> = self.score.iter().map(|&x| f64::from(x)).collect();
        Tensor::rounded(if float == Float::F64 { float } else { Float::F32 }, &[self.batch, self.queries], &values)
    }

    fn reduced(&self, call: &Call<'_>, reducer: &Reducer, float: Float) -> Result<Vec<Named>, Error> {
        let (total, x) = (self.offsets[self.batch], self.x.as_deref().unwrap_or_default());
        let valid = |b: usize| self.offsets[b + 1] - self.offsets[b];
        let scores: Vec<f32> = (0..self.batch).flat_map(|b| &self.score[b * self.queries..][..valid(b)]).copied().collect();
        let x = Matrix::new(x, [total, self.width], "x")?;
        let mut tokens = Tokens::new(&self.offsets);
        tokens.score = Some(&scores);
        tokens.x = Some(x);
        tokens.keys = Some(Matrix::new(&self.keys, [total, self.dk], "k")?);
        tokens.gate_logits = self.gate_logits.as_deref();
        let layer = (0..MANY_LAYERS).find(|&layer| reducer.acts(layer)).unwrap_or_default();
        let reduction = reducer.reduce(&tokens, layer, call.par)?;
        let mut left = vec![0.0; reduction.kept().len() * self.width];
        reduction.apply(&x, &mut MatrixMut::new(&mut left, [reduction.kept().len(), self.width], "reduced")?, call.par)?;
        Ok(self.padded(&reduction, &left, float))
    }

    /// One row per batch row again, as long as the longest: -1 pads positions, 0 everything else.
    fn padded(&self, reduction: &Reduction, left: &[f32], float: Float) -> Vec<Named> {
        let ends = reduction.offsets();
        let longest = ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        let place = |b: usize, i: usize| (ends[b] + i < ends[b + 1]).then_some(ends[b] + i);
        let cells = || (0..self.batch).flat_map(move |b| (0..longest).map(move |i| (b, i)));
        let kept = |(b, i): (usize, usize)| place(b, i).map_or(-1, |at| (reduction.kept()[at] - self.offsets[b]) as i64);
        let size = |(b, i): (usize, usize)| place(b, i).map_or(0, |at| reduction.sizes()[at].round() as i64);
        let row = |(b, i): (usize, usize)| (0..self.width).map(move |d| place(b, i).map_or(0.0, |at| f64::from(left[at * self.width + d])));
        let target = |at: usize| {
            let (b, n) = (at / self.queries, at % self.queries);
            let inside = (n < self.offsets[b + 1] - self.offsets[b]).then_some(self.offsets[b] + n);
            inside.and_then(|token| reduction.map()[token]).map_or(-1, |to| (to - ends[b]) as i64)
        };
        let shape = vec![self.batch, longest];
        let values: Vec<f64> = cells().flat_map(row).collect();
        vec![
            ("reduced", Tensor::rounded(float, &[self.batch, longest, self.width], &values)),
            ("kept", Tensor::integers(shape.clone(), &cells().map(kept).collect::<Vec<_>>())),
            ("sizes", Tensor::integers(shape, &cells().map(size).collect::<Vec<_>>())),
            ("map", Tensor::integers(vec![self.batch, self.queries], &(0..self.batch * self.queries).map(target).collect::<Vec<_>>())),
        ]
    }
}

/// No model has more.
const MANY_LAYERS: usize = 1 << 16;

/// Received attention over that of uniform attention, `[B, M]`, in f32.
fn score(call: &Call<'_>, loaded: &Loaded) -> Result<Vec<f32>, Error> {
    let single = loaded.in_single();
    let inputs = single.inputs(call.causal)?;
    let choices = call.chosen.mechanism.choose(&inputs, call.pass, call.par)?;
    let plan = call.chosen.mechanism.plan(&inputs, &choices, call.pass)?;
    let Dims { batch, heads, queries, keys, dv, .. } = plan.dims();
    let problem = plan.problem().ok_or_else(|| Error::Combination("scores are those of exact attention".into()))?;
    let mut o = Tensor::zeros(single.float, &[batch, heads, queries, dv]);
    let mut lse = vec![0.0; batch * heads * queries];
    plan.forward(&mut Output { o: o.view_mut("o")?, lse: Some(&mut lse) }, call.par)?;
    let mut received = vec![0.0; batch * heads * keys];
    plan.received(&lse, &mut received, call.par)?;
    let mut score = vec![0.0; batch * keys];
    Uniform::new(problem, call.par).score(&received, &mut score)?;
    Ok(score)
}
