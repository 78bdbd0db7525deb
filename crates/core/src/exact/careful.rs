//! Single weights without tiles, for rectangles of them.

use super::dropout::Mask;
use crate::Problem;
use crate::sight::Scope;
use std::ops::Range;

/// The score of one pair in natural units; -inf where it is hidden.
fn score(problem: &Problem<'_>, scope: &Scope<'_>, [b, h, i]: [usize; 3], j: usize) -> f32 {
    let g = h / problem.dims.group();
    let hidden = !scope.sees(i, j) || problem.dense_mask().is_some_and(|mask| mask.at([b, h, i, j]) == 0);
    let key_bias = problem.key_bias(b, g).map_or(0.0, |bias| bias[j]);
    let bias = problem.bias().map_or(0.0, |bias| bias.at([b, h, i, j]));
    if hidden || key_bias == f32::NEG_INFINITY || bias == f32::NEG_INFINITY {
        return f32::NEG_INFINITY;
    }
    let dot: f32 = (0..problem.dims.dk).map(|d| problem.q.at([b, h, i, d]) * problem.k.at([b, g, j, d])).sum();
    let scaled = dot * problem.scale();
    let capped = problem.softcap().map_or(scaled, |cap| cap * (scaled / cap).tanh());
    let distance = (scope.query_position(i) - scope.key_position(j)).abs() as f32;
    capped + key_bias + bias - problem.slope(h) * std::f32::consts::LN_2 * distance
}

/// A rectangle of the weights of one head, row-major.
pub(super) fn rectangle(problem: &Problem<'_>, lse: &[f32], [b, h]: [usize; 2], rows: Range<usize>, columns: Range<usize>) -> Vec<f32> {
    let dims = &problem.dims;
    let weight = |i: usize, j: usize| {
        let scope = problem.sight.scope(dims, problem.sight.sequence_of_query(b, i), h / dims.group());
        let score = score(problem, &scope, [b, h, i], j);
        if score == f32::NEG_INFINITY { 0.0 } else { (score - lse[(b * dims.heads + h) * dims.queries + i]).exp() }
    };
    rows.flat_map(|i| columns.clone().map(move |j| (i, j))).map(|(i, j)| weight(i, j)).collect()
}

/// A rectangle of dropout's factors of one head, row-major.
pub(super) fn dropout_rectangle(problem: &Problem<'_>, [b, h]: [usize; 2], rows: Range<usize>, columns: Range<usize>) -> Vec<f32> {
    let Some(mask) = problem.dropout().map(Mask::new) else { return vec![1.0; rows.len() * columns.len()] };
    let factor = |scope: &Scope<'_>, i: usize, j: usize| {
        let inside = scope.queries.contains(&i) && scope.keys.contains(&j);
        let hash = || mask.weight(mask.row(scope.sequence, h, i - scope.queries.start), j - scope.keys.start);
        if inside { hash() } else { 0.0 }
    };
    let row = |i: usize| {
        let scope = problem.sight.scope(&problem.dims, problem.sight.sequence_of_query(b, i), h / problem.dims.group());
        columns.clone().map(move |j| factor(&scope, i, j)).collect::<Vec<_>>()
    };
    rows.flat_map(row).collect()
}
