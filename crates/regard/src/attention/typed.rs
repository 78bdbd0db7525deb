//! Keys with types whose logits have a gradient, as tensor operations: `A_ij = M_ij e^{s_ij} / Σ_j M_ij e^{s_ij}`,
//! `M_ij = g_j + l_j Π_{m=j}^{i-1} (1 - g_m) + w_j [i - j ≤ window]`, types straight through to the softmax of their logits.
//!
//! At hard types the product is 1 or 0, and its slope by one factor is that of the others: with δ = g - constant(g), which is 0, and c
//! globals among the factors it is `1 - Σ δ_m` for c = 0, `-Σ g_m δ_m` for c = 1, 0 for more. Both sums are differences of running sums
//! over keys, so that nothing is larger than a block of scores. A hidden key's `e^s` is a constant, at most 1e4 times the sum of its row.

use super::composed::{HIDDEN, rows_of};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation};
use regard_core::Intervals;
use regard_core::mechanism::Typing;
use std::collections::HashMap;
use std::ops::Range;

/// The most that a hidden key counts.
const HIGHEST: f64 = 1e4;

/// Types on the device. Per key `[B, G, 1, 1, M]`, per query `[B, G, 1, N, 1]`.
pub(super) struct Types {
    /// Global, local, window: 0 or 1, with gradients.
    kinds: [Tensor<5>; 3],
    keys: Running,
    queries: Running,
    key_position: Tensor<5>,
    query_position: Tensor<5>,
    window: f64,
}

/// Sums over the keys before a position: of globals, of δ, and of globals' δ.
struct Running {
    globals: Tensor<5>,
    moved: Tensor<5>,
    moved_globals: Tensor<5>,
}

impl Types {
    /// `logits [B, G, M, 3]`.
    pub(super) fn new(typing: &Typing<'_>, intervals: &Intervals, logits: Tensor<4>) -> Self {
        let ([batch, kv_heads, keys, _], device, dtype) = (logits.dims(), logits.device(), logits.dtype());
        let queries = intervals.query_position.len() / (batch * kv_heads).max(1);
        let numbers = |values: Vec<f32>, count: usize| {
            Tensor::<5>::from_data(TensorData::new(values, [batch, kv_heads, 1, 1, count]), &device).cast(dtype)
        };
        let of = |kind: i64| numbers(typing.types.iter().map(|&own| f32::from(u8::from(own == kind))).collect(), keys);
        let free = numbers(typing.free.iter().map(|&free| f32::from(u8::from(free))).collect(), keys);
        let soft = activation::softmax(logits, 3);
        let moved = |kind: usize| {
            let soft = soft.clone().narrow(3, kind, 1).reshape([batch, kv_heads, 1, 1, keys]);
            (soft.clone() - soft.detach()) * free.clone()
        };
        let before = |x: Tensor<5>| x.clone().cumsum(4) - x;
        let (globals, moved_global) = (of(0), moved(0));
        let at_keys = Running {
            globals: before(globals.clone()),
            moved: before(moved_global.clone()),
            moved_globals: before(moved_global.clone() * globals.clone()),
        };
        let places = places(intervals, [batch * kv_heads, queries, keys], &device).reshape([batch, kv_heads, queries]);
        let at_queries = |x: &Tensor<5>| {
            let x: Tensor<3> = x.clone().reshape([batch, kv_heads, keys]);
            x.gather(2, places.clone()).reshape([batch, kv_heads, 1, queries, 1])
        };
        let positions = |values: &[i32]| values.iter().map(|&position| position as f32).collect();
        Types {
            kinds: [globals + moved_global, of(1) + moved(1), of(2) + moved(2)],
            queries: at_keys.each(at_queries),
            keys: at_keys,
            key_position: numbers(positions(&intervals.key_position), keys),
            query_position: numbers(positions(&intervals.query_position), queries).reshape([batch, kv_heads, 1, queries, 1]),
            window: typing.window as f64,
        }
    }

    /// Weights of a block, from its scores `[B, G, H/G, rows, columns]` and the pairs that no type could show.
    pub(super) fn weights(&self, scores: Tensor<5>, never: Tensor<5, Bool>, (rows, columns): (&Range<usize>, &Range<usize>)) -> Tensor<5> {
        let shape = scores.dims();
        let m = self.multiplicities(rows, columns).expand(shape).mask_fill(never.clone(), 0.0);
        let visible = m.clone().detach().greater_elem(0.5);
        let shown = scores.clone().mask_fill(visible.clone().bool_not(), HIDDEN);
        let maximum = shown.clone().detach().max_dim(4);
        let e = (shown - maximum.clone()).exp().mask_fill(visible.clone().bool_not(), 0.0);
        let sum = e.clone().detach().sum_dim(4);
        let nothing = sum.clone().equal_elem(0.0);
        let highest = (sum.mask_fill(nothing, 1.0) * HIGHEST).log();
        let scores = scores.detach().mask_fill(never, HIDDEN);
        let hidden = (scores - maximum).min_pair(highest.expand(shape)).exp();
        let weights = m * hidden.mask_where(visible, e);
        let sum = weights.clone().sum_dim(4);
        let nothing = sum.clone().detach().equal_elem(0.0);
        weights / sum.mask_fill(nothing, 1.0)
    }

    /// `M`, `[B, G, 1, rows, columns]`.
    fn multiplicities(&self, rows: &Range<usize>, columns: &Range<usize>) -> Tensor<5> {
        let (query, key) = (|x: &Tensor<5>| rows_of(x, 3, rows), |x: &Tensor<5>| rows_of(x, 4, columns));
        let between = |of: fn(&Running) -> &Tensor<5>| query(of(&self.queries)) - key(of(&self.keys));
        let globals = between(|running| &running.globals);
        let (none, one) = (globals.clone().equal_elem(0.0).float(), globals.equal_elem(1.0).float());
        let dtype = self.key_position.dtype();
        let survives = none.cast(dtype) * (between(|running| &running.moved) * -1.0 + 1.0)
            - one.cast(dtype) * between(|running| &running.moved_globals);
        let behind = query(&self.query_position) - key(&self.key_position);
        let near = behind.lower_equal_elem(self.window).float().cast(dtype);
        let [global, local, window] = self.kinds.each_ref().map(key);
        global + local * survives + window * near
    }
}

impl Running {
    fn each(&self, change: impl Fn(&Tensor<5>) -> Tensor<5>) -> Self {
        Running { globals: change(&self.globals), moved: change(&self.moved), moved_globals: change(&self.moved_globals) }
    }
}

/// The key row that stands where each query does, `[B·G·N]`; any row where there is none.
fn places(intervals: &Intervals, [caches, queries, keys]: [usize; 3], device: &Device) -> Tensor<1, Int> {
    let mut all = Vec::with_capacity(caches * queries);
    for cache in 0..caches {
        let mut starts = HashMap::new();
        for m in 0..keys {
            let at = cache * keys + m;
            starts.entry(intervals.key_sequence[at]).or_insert(m as i32 - intervals.key_position[at]);
        }
        for at in cache * queries..(cache + 1) * queries {
            let start = starts.get(&intervals.query_sequence[at]).copied().unwrap_or(0);
            all.push((start + intervals.query_position[at]).clamp(0, keys as i32 - 1));
        }
    }
    let count = all.len();
    Tensor::from_data(TensorData::new(all, [count]), device)
}
