//! Attention in parts: leaves exactly, and queries of one head over listed keys, each a few tensor operations under Burn's autodiff.
//!
//! A part leaves for each of its queries the largest score m, `Σ e^(s - m)` and `Σ e^(s - m) v`, m a constant; parts are brought to their
//! largest m and added up.

use super::composed::{HIDDEN, rows_of};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use regard_core::Dims;
use regard_core::mechanism::hyper::{Meeting, Rows, Sorted};
use std::ops::Range;

/// Scores of a leaf at a time.
const BLOCK: usize = 1 << 24;

/// Sums of some queries, `[rows, Dv]`, `[rows, 1]`, `[rows, 1]`, and where the queries stand among all.
struct Piece {
    rows: Vec<usize>,
    values: Tensor<2>,
    weights: Tensor<2>,
    maximum: Tensor<2>,
}

struct Call<'a> {
    sorted: &'a Sorted<'a>,
    dims: Dims,
    device: Device,
    dtype: DType,
    qkv: [Tensor<4>; 3],
    /// The same row by row, `[B·H·N, Dk]`, `[B·G·M, Dk]`, `[B·G·M, Dv]`.
    rows: [Tensor<2>; 3],
}

/// `[B, H, N, Dv]`.
pub(super) fn attention(sorted: &Sorted<'_>, qkv: [Tensor<4>; 3]) -> Tensor<4> {
    let (dims, device) = (*sorted.problem.dims(), qkv[0].device());
    let Dims { batch, heads, queries, dv, .. } = dims;
    let dtype = if qkv[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let qkv = qkv.map(|x| x.cast(dtype));
    if [batch, queries, dims.keys].contains(&0) {
        return Tensor::zeros([batch, heads, queries, dv], (&device, dtype));
    }
    let rows = qkv.each_ref().map(|x| {
        let [batch, heads, count, width] = x.dims();
        x.clone().reshape([batch * heads * count, width])
    });
    let call = Call { sorted, dims, device, dtype, qkv, rows };
    let leaves = sorted.leaves.iter().flat_map(|leaf| call.leaf(leaf)).collect();
    let levels = sorted.levels.iter().map(|level| level.iter().map(|meeting| call.meeting(meeting)).collect());
    let parts: Vec<Piece> = std::iter::once(leaves).chain(levels).map(|pieces| call.spread(pieces)).collect();
    call.merge(&parts).reshape([batch, heads, queries, dv])
}

impl Call<'_> {
    fn row(&self, [b, h, n]: [usize; 3]) -> usize {
        (b * self.dims.heads + h) * self.dims.queries + n
    }

    fn places(&self, rows: impl Iterator<Item = usize>) -> Tensor<1, Int> {
        let rows: Vec<i32> = rows.map(|row| row as i32).collect();
        let count = rows.len();
        Tensor::from_data(TensorData::new(rows, [count]), &self.device)
    }

    fn meeting(&self, meeting: &Meeting) -> Piece {
        let Dims { kv_heads, keys, .. } = self.dims;
        let first = (meeting.batch * kv_heads + meeting.head / self.dims.group()) * keys;
        let rows: Vec<usize> = meeting.queries.iter().map(|&n| self.row([meeting.batch, meeting.head, n as usize])).collect();
        let at = self.places(meeting.keys.iter().map(|&m| first + m as usize));
        let [q, k, v] = &self.rows;
        let q = q.clone().select(0, self.places(rows.iter().copied()));
        let [k, v] = [k, v].map(|x| x.clone().select(0, at.clone()));
        let weights = TensorData::new(meeting.weights.clone(), [1, meeting.weights.len()]);
        let weights = Tensor::<2>::from_data(weights, (&self.device, DType::F32)).cast(self.dtype);
        let scores = q.matmul(k.transpose()) * self.sorted.problem.scale() + weights;
        let maximum = scores.clone().detach().max_dim(1);
        let e = (scores - maximum.clone()).exp();
        Piece { rows, values: e.clone().matmul(v), weights: e.sum_dim(1), maximum }
    }

    /// All heads of a leaf, some rows at a time.
    fn leaf(&self, leaf: &Rows) -> Vec<Piece> {
        let (heads, keys) = (self.dims.heads, leaf.keys.len());
        let rows = (BLOCK / (heads * keys).max(1)).max(1);
        leaf.queries.clone().step_by(rows).map(|start| self.some_of(leaf, start..leaf.queries.end.min(start + rows))).collect()
    }

    fn some_of(&self, leaf: &Rows, queries: Range<usize>) -> Piece {
        let Dims { heads, kv_heads, dk, dv, .. } = self.dims;
        let (group, n, m) = (self.dims.group(), queries.len(), leaf.keys.len());
        let of_batch = |at: usize, rows| rows_of(&rows_of(&self.qkv[at], 0, &(leaf.batch..leaf.batch + 1)), 2, rows);
        let q = of_batch(0, &queries).reshape([kv_heads, group * n, dk]);
        let k = of_batch(1, &leaf.keys).reshape([kv_heads, m, dk]);
        let v = of_batch(2, &leaf.keys).reshape([kv_heads, m, dv]);
        let mut scores: Tensor<3> = (q.matmul(k.swap_dims(1, 2)) * self.sorted.problem.scale()).reshape([heads, n, m]);
        if self.sorted.causal {
            let position = |i: usize| queries.start + i + m - leaf.queries.end;
            let hidden: Vec<bool> = (0..n * m).map(|at| at % m > position(at / m)).collect();
            let hidden = Tensor::<3, Bool>::from_data(TensorData::new(hidden, [1, n, m]), &self.device);
            scores = scores.mask_fill(hidden.expand([heads, n, m]), HIDDEN);
        }
        let maximum = scores.clone().detach().max_dim(2);
        let e = (scores - maximum.clone()).exp();
        let values = e.clone().reshape([kv_heads, group * n, m]).matmul(v).reshape([heads * n, dv]);
        let rows = (0..heads * n).map(|at| self.row([leaf.batch, at / n, queries.start + at % n])).collect();
        Piece { rows, values, weights: e.sum_dim(2).reshape([heads * n, 1]), maximum: maximum.reshape([heads * n, 1]) }
    }

    /// Pieces that share no query as one of all queries.
    fn spread(&self, pieces: Vec<Piece>) -> Piece {
        let all = self.dims.batch * self.dims.heads * self.dims.queries;
        let count: usize = pieces.iter().map(|piece| piece.rows.len()).sum();
        let mut places = vec![count; all];
        pieces.iter().flat_map(|piece| &piece.rows).enumerate().for_each(|(place, &row)| places[row] = place);
        let places = self.places(places.into_iter());
        let nothing = |width, x: f32| Tensor::<2>::full([1, width], x, (&self.device, self.dtype));
        let together = |of: fn(&Piece) -> &Tensor<2>, last| {
            let parts = pieces.iter().map(|piece| of(piece).clone()).chain([last]).collect();
            Tensor::cat(parts, 0).select(0, places.clone())
        };
        let values = together(|piece| &piece.values, nothing(self.dims.dv, 0.0));
        let weights = together(|piece| &piece.weights, nothing(1, 0.0));
        let maximum = together(|piece| &piece.maximum, nothing(1, HIDDEN));
        Piece { rows: Vec::new(), values, weights, maximum }
    }

    /// `[B·H·N, Dv]`, zeros where a query sees nothing.
    fn merge(&self, parts: &[Piece]) -> Tensor<2> {
        let all = self.dims.batch * self.dims.heads * self.dims.queries;
        let most = parts.iter().skip(1).fold(parts[0].maximum.clone(), |most, part| most.max_pair(part.maximum.clone()));
        let zeros = |width| Tensor::<2>::zeros([all, width], (&self.device, self.dtype));
        let (mut values, mut weights) = (zeros(self.dims.dv), zeros(1));
        for part in parts {
            let share = (part.maximum.clone() - most.clone()).exp();
            values = values + part.values.clone() * share.clone();
            weights = weights + part.weights.clone() * share;
        }
        let nothing = weights.clone().equal_elem(0.0);
        values / weights.mask_fill(nothing, 1.0)
    }
}
