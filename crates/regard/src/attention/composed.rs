//! On every other device: blocks of queries, each a few tensor operations, under Burn's autodiff.
//!
//! The core checks the call and gives its plan as integers (a problem whose tensors are one zero, repeated), which are
//! uploaded; visibility is then two comparisons per pair. Scores are computed in f32 (f64 for f64). Hidden scores are a
//! large negative number rather than -inf, which WGSL need not know, and the maximum of a row is taken to be far above it, so
//! that their weights are zero. The maximum is a constant; that changes no gradient. The product with v is divided, not its
//! weights. Keys that no query of a block sees are left out.

use super::coded::{self, Near};
use super::host::{Host, Scores};
use super::typed::Types;
use super::{Asked, Attention, factored, joined, merged, sorted};
use crate::{Error, Tally};
use burn::tensor::kind::Basic;
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use regard_core::mechanism::{Composition, Plan as _, Trace, Typing};
use regard_core::reduce::Uniform;
use regard_core::{Dims, Intervals, Par, Problem, alibi_slopes, exact};
use std::ops::Range;

/// Scores at or below this are hidden.
pub(super) const HIDDEN: f32 = -1e30;
/// Scores in a block: 256 MiB. A GPU multiplies short blocks slowly.
const BLOCK: usize = 1 << 26;

fn elsewhere(name: &str) -> Error {
    regard_core::Error::Combination(format!("{name} with these options runs on Burn's CPU device only")).into()
}

pub(super) fn attention(qkv: [Tensor<4>; 3], how: &Attention) -> Result<Tensor<4>, Error> {
    asked(qkv, how, Asked::default())
}

/// Attention that leaves what was chosen where it is asked for.
pub(super) fn asked([q, k, v]: [Tensor<4>; 3], how: &Attention, asked: Asked) -> Result<Tensor<4>, Error> {
    Tally::add(|tally| tally.composed += 1);
    let host = Host::new(how, [&q, &k], Some(&v), Scores::Shapes);
    host.plan(|name, plan| {
        let dtype = q.dtype();
        if let Some(traces) = &asked.traces {
            traces.get_or_init(|| plan.traces());
        }
        let composition = plan.composition().ok_or_else(|| elsewhere(name))?;
        Ok(follow(&composition, &plan.traces(), how, [q, k, v])?.cast(dtype))
    })
}

/// `[B, H, N, Dv]`, in f32, or in f64 as q is.
pub(super) fn follow(composition: &Composition<'_>, traces: &[Trace], how: &Attention, qkv: [Tensor<4>; 3]) -> Result<Tensor<4>, Error> {
    match composition {
        Composition::Exact(problem) => Call::new(problem, how, qkv).attention(),
        Composition::Typed(typing) => match how.learned.type_logits.as_ref().filter(|logits| logits.is_autodiff()) {
            Some(logits) => Call::typed(typing, logits, how, qkv).attention(),
            None => Call::new(typing.problem, how, qkv).attention(),
        },
        Composition::Merged(merging) => Ok(merged::attention(merging, how, qkv)),
        Composition::Coded(coded) => coded::attention(coded, traces, how, qkv),
        Composition::Summed(summed) => Ok(factored::summed(Call::new(summed.problem, how, qkv), summed)),
        Composition::Decaying(decaying) => {
            let missing = || regard_core::Error::Combination("gates are missing".into());
            let gates = how.learned.gates.clone().ok_or_else(missing)?;
            let dtype = if qkv[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 };
            let [q, k, v] = qkv;
            Ok(factored::decaying(decaying, [q, k, v, gates].map(|x| x.cast(dtype))))
        }
        Composition::Sorted(parts) => Ok(sorted::attention(parts, qkv)),
        Composition::Joined(joined) => joined::attention(joined, how, &qkv),
    }
}

/// The score of every key, `[B, M]`: see [`crate::reduce::received_score`]. In f32, or in f64 as q is.
pub(crate) fn score(q: Tensor<4>, k: Tensor<4>, how: &Attention) -> Result<Tensor<2>, Error> {
    Tally::add(|tally| tally.composed += 1);
    let host = Host::new(how, [&q, &k], None, Scores::Values);
    host.plan(|name, plan| {
        let missing = || regard_core::Error::Combination(format!("{name} has no received attention"));
        let problem = plan.problem().ok_or_else(missing)?;
        let Dims { batch, heads, keys, .. } = *problem.dims();
        let mut shares = vec![0.0; batch * heads * keys];
        Uniform::new(problem, Par::default()).backward(&vec![1.0; batch * keys], &mut shares)?;
        // One number per key, which every head has.
        let shares = shares.chunks(keys.max(1)).step_by(heads).flatten().copied().collect();
        let call = Call::new(problem, how, [q, k.clone(), k.narrow(3, 0, 1)]);
        let shares = Tensor::<2>::from_data(TensorData::new(shares, [batch, keys]), &call.device).cast(call.dtype);
        Ok(call.received()? * shares)
    })
}

/// Tensors and plan of a call, on the device.
pub(super) struct Call<'a> {
    problem: &'a Problem<'a>,
    dims: Dims,
    device: Device,
    /// Of scores.
    pub(super) dtype: DType,
    pub(super) qkv: [Tensor<4>; 3],
    key_bias: Option<Tensor<5>>,
    bias: Option<Tensor<4>>,
    mask: Option<Tensor<4, Bool>>,
    slopes: Option<Tensor<5>>,
    intervals: Intervals,
    plan: Plan,
    types: Option<Types>,
    pub(super) near: Option<Near>,
}

/// [`Intervals`] uploaded: per query `[B, G, 1, N, 1]`, per key `[B, G, 1, 1, M]`, or `[1, 1, …]` where they are those of all caches.
struct Plan {
    query_sequence: Tensor<5, Int>,
    query_position: Tensor<5, Int>,
    key_sequence: Tensor<5, Int>,
    key_position: Tensor<5, Int>,
    first: Tensor<5, Int>,
    last: Tensor<5, Int>,
}

impl Plan {
    fn new(intervals: &Intervals, dims: &Dims, device: &Device) -> Self {
        let Intervals { query_sequence, query_position, key_sequence, key_position, first, last } = intervals;
        let all_alike = [query_sequence, query_position].into_iter().all(|values| are_alike(values, dims.queries))
            && [key_sequence, key_position, first, last].into_iter().all(|values| are_alike(values, dims.keys));
        let [batch, kv_heads] = if all_alike { [dims.batch.min(1), dims.kv_heads.min(1)] } else { [dims.batch, dims.kv_heads] };
        let upload = |values: &[i32], shape: [usize; 5]| {
            Tensor::from_data(TensorData::new(values[..shape.iter().product()].to_vec(), shape), device)
        };
        let query = |values| upload(values, [batch, kv_heads, 1, dims.queries, 1]);
        let key = |values| upload(values, [batch, kv_heads, 1, 1, dims.keys]);
        Plan {
            query_sequence: query(query_sequence),
            query_position: query(query_position),
            key_sequence: key(key_sequence),
            key_position: key(key_position),
            first: key(first),
            last: key(last),
        }
    }
}

/// Whether all rows of so many values are equal.
fn are_alike(values: &[i32], length: usize) -> bool {
    values.chunks_exact(length.max(1)).all(|row| row == &values[..length])
}

pub(super) fn rows_of<const D: usize, K: Basic>(x: &Tensor<D, K>, dim: usize, range: &Range<usize>) -> Tensor<D, K> {
    x.clone().narrow(dim, range.start, range.len())
}

impl<'a> Call<'a> {
    pub(super) fn new(problem: &'a Problem<'a>, how: &Attention, qkv: [Tensor<4>; 3]) -> Self {
        let dims = *problem.dims();
        let device = qkv[0].device();
        let dtype = if qkv[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let intervals = Intervals::new(problem);
        let per_key = [dims.batch, dims.kv_heads, 1, 1, dims.keys];
        let slopes = || {
            let slopes = TensorData::new(alibi_slopes(dims.heads), [1, dims.kv_heads, dims.group(), 1, 1]);
            Tensor::<5>::from_data(slopes, &device).cast(dtype)
        };
        Call {
            problem,
            dims,
            dtype,
            qkv: qkv.map(|x| x.cast(dtype)),
            key_bias: how.key_bias.clone().map(|bias| bias.cast(dtype).reshape(per_key)),
            bias: how.bias.clone().map(|bias| bias.cast(dtype)),
            mask: how.mask.clone(),
            slopes: problem.has_alibi().then(slopes),
            plan: Plan::new(&intervals, &dims, &device),
            intervals,
            device,
            types: None,
            near: None,
        }
    }

    /// Keys whose types have a gradient.
    fn typed(typing: &'a Typing<'a>, logits: &Tensor<4>, how: &Attention, qkv: [Tensor<4>; 3]) -> Self {
        let call = Self::new(typing.base, how, qkv);
        let types = Types::new(typing, &call.intervals, logits.clone().cast(call.dtype));
        Call { types: Some(types), ..call }
    }

    fn is_empty(&self) -> bool {
        [self.dims.batch, self.dims.queries, self.dims.keys].contains(&0)
    }

    /// Query rows, block by block.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let rows = (BLOCK / (self.dims.batch * self.dims.heads * self.dims.keys)).clamp(1, self.dims.queries);
        (0..self.dims.queries).step_by(rows).map(move |start| start..self.dims.queries.min(start + rows))
    }

    /// `[B, H, N, Dv]`.
    pub(super) fn attention(&self) -> Result<Tensor<4>, Error> {
        if self.is_empty() {
            return Ok(self.nothing());
        }
        let blocks = self.blocks().map(|rows| self.block(rows)).collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::cat(blocks, 2))
    }

    /// The same of blocks that are made otherwise.
    pub(super) fn in_blocks(&self, block: impl Fn(Range<usize>) -> Tensor<4>) -> Tensor<4> {
        if self.is_empty() { self.nothing() } else { Tensor::cat(self.blocks().map(block).collect(), 2) }
    }

    fn nothing(&self) -> Tensor<4> {
        let Dims { batch, heads, queries, dv, .. } = self.dims;
        Tensor::zeros([batch, heads, queries, dv], (&self.device, self.dtype))
    }

    /// Attention that every key receives, summed over query heads, `[B, M]`; before dropout.
    fn received(&self) -> Result<Tensor<2>, Error> {
        let Dims { batch, keys, .. } = self.dims;
        let zeros = |count: usize| Tensor::<2>::zeros([batch, count], (&self.device, self.dtype));
        let mut sum = zeros(keys);
        if self.is_empty() {
            return Ok(sum);
        }
        for rows in self.blocks() {
            let columns = self.columns(&rows);
            let (weights, divisor) = self.weights(&rows, &columns);
            let weights = if let Some(divisor) = divisor { weights / divisor } else { weights };
            let part: Tensor<2> = weights.sum_dim(3).sum_dim(2).sum_dim(1).reshape([batch, columns.len()]);
            let [before, after] = [columns.start, keys - columns.end].map(|count| (count > 0).then(|| zeros(count)));
            sum = sum + Tensor::cat(before.into_iter().chain([part]).chain(after).collect(), 1);
        }
        Ok(sum)
    }

    /// The keys that some query rows meet; one where they meet none.
    pub(super) fn columns(&self, rows: &Range<usize>) -> Range<usize> {
        let seen = self.intervals.columns(rows.clone(), self.dims.batch * self.dims.kv_heads);
        if seen.is_empty() { 0..1 } else { seen }
    }

    /// `[B, G, H/G, rows, columns]`, and what a row of it is divided by, `[B, G, H/G, rows, 1]`, so that it adds up to 1, or to 0 where it
    /// sees nothing.
    fn weights(&self, rows: &Range<usize>, columns: &Range<usize>) -> (Tensor<5>, Option<Tensor<5>>) {
        let scores = self.scores(rows, columns);
        let mut hidden = self.hidden(rows, columns).expand(scores.dims());
        if self.key_bias.is_some() || self.bias.is_some() {
            hidden = hidden.bool_or(scores.clone().lower_equal_elem(HIDDEN));
        }
        if let Some(types) = &self.types {
            return (types.weights(scores, hidden, (rows, columns)), None);
        }
        let scores = scores.mask_fill(hidden, HIDDEN);
        // Where all are hidden, each weight is 0 and not 1.
        let maximum = scores.clone().detach().max_dim(4).clamp_min(HIDDEN / 2.0);
        let weights = (scores - maximum).exp();
        let sum = weights.clone().sum_dim(4);
        let nothing = sum.clone().equal_elem(0.0);
        (weights, Some(sum.mask_fill(nothing, 1.0)))
    }

    /// Attention of some query rows, `[B, H, rows, Dv]`.
    fn block(&self, rows: Range<usize>) -> Result<Tensor<4>, Error> {
        let Dims { batch, heads, kv_heads, dv, .. } = self.dims;
        let columns = self.columns(&rows);
        let (weights, divisor) = self.weights(&rows, &columns);
        let weights = self.dropped(weights, &rows, &columns)?;
        let stacked = |width| [batch, kv_heads, self.dims.group() * rows.len(), width];
        let o = weights.reshape(stacked(columns.len())).matmul(rows_of(&self.qkv[2], 2, &columns));
        let o = if let Some(divisor) = divisor { o / divisor.reshape(stacked(1)) } else { o };
        Ok(o.reshape([batch, heads, rows.len(), dv]))
    }

    /// `[B, G, H/G, rows, columns]`.
    fn scores(&self, rows: &Range<usize>, columns: &Range<usize>) -> Tensor<5> {
        let scale = self.problem.scale();
        let mut scores = self.products_with(&self.qkv[1], scale, (rows, columns));
        if let Some(Near { reach, keys: Some(keys) }) = &self.near {
            let own = self.products_with(keys, scale, (rows, columns));
            let near = self.distance(rows, columns).lower_elem(*reach).expand(own.dims());
            scores = scores.mask_where(near, own);
        }
        if let Some(cap) = self.problem.softcap() {
            // Not a division: Burn's gradient of one takes the reciprocal in f32, whatever the dtype.
            scores = (scores * (1.0 / f64::from(cap))).tanh() * cap;
        }
        if let Some(bias) = &self.key_bias {
            scores = scores + rows_of(bias, 4, columns);
        }
        if let Some(bias) = &self.bias {
            scores = scores + self.grouped(rows_of(&rows_of(bias, 2, rows), 3, columns));
        }
        if let Some(slopes) = &self.slopes {
            scores = scores - self.distance(rows, columns).float().cast(self.dtype) * slopes.clone();
        }
        scores
    }

    /// `q·k`, `[B, G, H/G, rows, columns]`.
    pub(super) fn products(&self, rows: &Range<usize>, columns: &Range<usize>) -> Tensor<5> {
        self.products_with(&self.qkv[1], 1.0, (rows, columns))
    }

    fn products_with(&self, keys: &Tensor<4>, scale: f32, (rows, columns): (&Range<usize>, &Range<usize>)) -> Tensor<5> {
        let Dims { batch, kv_heads, dk, .. } = self.dims;
        let group = self.dims.group();
        let q = rows_of(&self.qkv[0], 2, rows).reshape([batch, kv_heads, group * rows.len(), dk]);
        let q = if scale == 1.0 { q } else { q * scale };
        q.matmul(rows_of(keys, 2, columns).swap_dims(2, 3)).reshape([batch, kv_heads, group, rows.len(), columns.len()])
    }

    /// How far a query and a key are apart, `[B, G, 1, rows, columns]`.
    fn distance(&self, rows: &Range<usize>, columns: &Range<usize>) -> Tensor<5, Int> {
        (rows_of(&self.plan.query_position, 3, rows) - rows_of(&self.plan.key_position, 4, columns)).abs()
    }

    /// `[B|1, H|1, rows, columns]` with its heads in groups.
    fn grouped<K: Basic>(&self, x: Tensor<4, K>) -> Tensor<5, K> {
        let [batch, heads, rows, columns] = x.dims();
        let [kv_heads, group] = if heads == self.dims.heads { [self.dims.kv_heads, self.dims.group()] } else { [1, 1] };
        x.reshape([batch, kv_heads, group, rows, columns])
    }

    /// `[B|.., G, H/G|1, rows, columns]`, true where a query does not see a key.
    pub(super) fn hidden(&self, rows: &Range<usize>, columns: &Range<usize>) -> Tensor<5, Bool> {
        let query = |x: &Tensor<5, Int>| rows_of(x, 3, rows);
        let key = |x: &Tensor<5, Int>| rows_of(x, 4, columns);
        let plan = &self.plan;
        let position = query(&plan.query_position);
        let early = position.clone().lower(key(&plan.first));
        let late = position.greater(key(&plan.last));
        let strangers = query(&plan.query_sequence).not_equal(key(&plan.key_sequence));
        let mut hidden = early.bool_or(late).bool_or(strangers);
        if let Some(Near { reach, keys: None }) = &self.near {
            hidden = hidden.bool_or(self.distance(rows, columns).lower_elem(*reach));
        }
        let Some(mask) = &self.mask else { return hidden };
        let Dims { batch, kv_heads, .. } = self.dims;
        let all = [batch, kv_heads, self.dims.group(), rows.len(), columns.len()];
        let masked = self.grouped(rows_of(&rows_of(mask, 2, rows), 3, columns)).bool_not();
        hidden.expand(all).bool_or(masked.expand(all))
    }

    /// Weights after dropout.
    fn dropped(&self, weights: Tensor<5>, rows: &Range<usize>, columns: &Range<usize>) -> Result<Tensor<5>, Error> {
        if self.problem.dropout().is_none() {
            return Ok(weights);
        }
        let Dims { batch, heads, .. } = self.dims;
        let mut factors = Vec::with_capacity(batch * heads * rows.len() * columns.len());
        for at in (0..batch).flat_map(|b| (0..heads).map(move |h| [b, h])) {
            factors.extend(exact::dropout_weights(self.problem, at, rows.clone(), columns.clone())?);
        }
        let factors = Tensor::<5>::from_data(TensorData::new(factors, weights.dims()), &self.device);
        Ok(weights * factors.cast(self.dtype))
    }
}
