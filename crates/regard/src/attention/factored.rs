//! Sums of features, and sums that decay, as tensor operations under Burn's autodiff.
//!
//! Features: `o_i = Σ_j φ(q_i)·φ(k_j) v_j / (Σ_j φ(q_i)·φ(k_j) + ε)` in blocks of queries, as softmax attention is. Decay: tokens in chunks of 16;
//! a pair of one chunk decays by the sum of the gates between its tokens, which is added up for each pair by itself, so that no strong gate
//! takes the digits of a weak one; what came before is a state `[Dk, Dv]`.

use super::composed::{Call, rows_of};
use burn::tensor::{Bool, Tensor, TensorData, activation};
use regard_core::mechanism::linear::FeatureMap;
use regard_core::mechanism::{Decaying, Summed};
use std::ops::Range;

/// Tokens that meet pair by pair.
const CHUNK: usize = 16;

/// φ of every row, over the last dimension.
fn features(map: FeatureMap, x: Tensor<4>) -> Tensor<4> {
    match map {
        FeatureMap::Elu1 => activation::relu(x.clone()) + (-activation::relu(-x)).exp(),
        FeatureMap::Relu => activation::relu(x),
        FeatureMap::Identity => x,
        FeatureMap::SquaredRelu => activation::relu(x).powi_scalar(2),
        FeatureMap::Softmax => activation::softmax(x, 3),
    }
}

/// `[B, H, N, Dv]`.
pub(super) fn summed(call: Call<'_>, how: &Summed<'_>) -> Tensor<4> {
    let mut call = call;
    let [q, k, v] = call.qkv;
    call.qkv = [features(how.map, q), features(how.map, k), v];
    let block = |rows: Range<usize>| {
        let columns = call.columns(&rows);
        let products = call.products(&rows, &columns);
        let weights = products.clone().mask_fill(call.hidden(&rows, &columns).expand(products.dims()), 0.0);
        let [batch, kv_heads, group, n, m] = weights.dims();
        let weights: Tensor<4> = weights.reshape([batch, kv_heads, group * n, m]);
        let sums = weights.clone().matmul(rows_of(&call.qkv[2], 2, &columns));
        let o = match how.epsilon {
            None => sums,
            Some(epsilon) => {
                let denominator = weights.sum_dim(3) + epsilon;
                let nothing = denominator.clone().equal_elem(0.0);
                let o = sums / denominator.mask_fill(nothing.clone(), 1.0);
                let dims = o.dims();
                o.mask_fill(nothing.expand(dims), 0.0)
            }
        };
        let width = o.dims()[3];
        o.reshape([batch, kv_heads * group, n, width])
    };
    call.in_blocks(block)
}

/// `[B, H, N, Dv]` of q, k, v and gates.
pub(super) fn decaying(how: &Decaying, [q, k, v, gates]: [Tensor<4>; 4]) -> Tensor<4> {
    let ([batch, heads, tokens, _], [.., width]) = (q.dims(), v.dims());
    let [k, v] = [k, v].map(|x| repeated(x, heads));
    let zeros = |count: usize| Tensor::<4>::zeros([1, heads, count, width], (&q.device(), q.dtype()));
    let row = |b: usize| {
        let (mut pieces, mut end) = (Vec::new(), 0);
        for (_, rows) in how.sequences.iter().filter(|(row, rows)| *row == b && !rows.is_empty()) {
            pieces.extend((rows.start > end).then(|| zeros(rows.start - end)));
            let own = [&q, &k, &v, &gates].map(|x| rows_of(&rows_of(x, 0, &(b..b + 1)), 2, rows));
            pieces.push(sequence(own) * how.scale);
            end = rows.end;
        }
        pieces.extend((end < tokens).then(|| zeros(tokens - end)));
        if pieces.is_empty() { zeros(0) } else { Tensor::cat(pieces, 2) }
    };
    let rows: Vec<Tensor<4>> = (0..batch).map(row).collect();
    if rows.is_empty() { Tensor::zeros([0, heads, tokens, width], (&q.device(), q.dtype())) } else { Tensor::cat(rows, 0) }
}

/// Kv heads as often as query heads read them.
fn repeated(x: Tensor<4>, heads: usize) -> Tensor<4> {
    let [batch, kv_heads, tokens, width] = x.dims();
    let grouped: Tensor<5> = x.reshape([batch, kv_heads, 1, tokens, width]);
    grouped.expand([batch, kv_heads, heads / kv_heads, tokens, width]).reshape([batch, heads, tokens, width])
}

/// One sequence, `[1, H, T, ·]`.
fn sequence([q, k, v, gates]: [Tensor<4>; 4]) -> Tensor<4> {
    let ([_, heads, tokens, dk], [.., dv]) = (q.dims(), v.dims());
    let mut state = Tensor::<4>::zeros([1, heads, dk, dv], (&q.device(), q.dtype()));
    let mut pieces = Vec::new();
    for start in (0..tokens).step_by(CHUNK) {
        let rows = start..tokens.min(start + CHUNK);
        let [q, k, v, gates] = [&q, &k, &v, &gates].map(|x| rows_of(x, 2, &rows));
        let count = rows.len();
        let decay = between(&gates);
        let last = rows_of(&decay, 2, &(count - 1..count)).reshape([1, heads, count, dk]).exp();
        let of_queries: Tensor<5> = q.clone().reshape([1, heads, count, 1, dk]);
        let of_keys: Tensor<5> = k.clone().reshape([1, heads, 1, count, dk]);
        let weights: Tensor<4> = (of_queries * of_keys * decay.exp()).sum_dim(4).reshape([1, heads, count, count]);
        let past = gates.cumsum(2);
        pieces.push(weights.tril(0).matmul(v.clone()) + (q * past.clone().exp()).matmul(state.clone()));
        let kept = rows_of(&past, 2, &(count - 1..count)).exp().swap_dims(2, 3);
        state = state * kept + (k * last).swap_dims(2, 3).matmul(v);
    }
    Tensor::cat(pieces, 2)
}

/// The sum of the gates of tokens behind j up to i, `[1, H, i, j, Dk]`; 0 where i is not behind j.
fn between(gates: &Tensor<4>) -> Tensor<5> {
    let [_, heads, count, dk] = gates.dims();
    let all = [1, heads, count, count, dk];
    let outside = (0..count * count).map(|at| at / count <= at % count).collect::<Vec<bool>>();
    let outside = Tensor::<5, Bool>::from_data(TensorData::new(outside, [1, 1, count, count, 1]), &gates.device());
    let gates: Tensor<5> = gates.clone().reshape([1, heads, count, 1, dk]);
    gates.expand(all).mask_fill(outside.expand(all), 0.0).cumsum(2)
}
