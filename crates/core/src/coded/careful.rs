//! Single rows by the definition, where a tile came out with values that are not finite: it multiplies hidden keys by zero, and zero times
//! infinity is not a number.

use super::Coded;
use super::layout::Block;
use super::summary::{Keys, Summary};
use crate::quantise::Codewords;

/// The output of row n of head h, and its log-sum-exp.
#[cold]
pub(super) fn row(coded: &Coded<'_>, (summary, keys, block): (&Summary, Keys<'_>, &Block), [h, n]: [usize; 2], o: &mut [f32]) -> f32 {
    let codewords = &coded.codewords[keys.head[1]];
    let mut query = vec![0.0; coded.dims.dk];
    let query = coded.query([keys.head[0], h, n], &mut query);
    let far: Vec<(usize, f64)> =
        (0..codewords.count()).map(|code| (code, f64::from(summary.counts()[code]))).filter(|(_, count)| *count > 0.0).collect();
    let position = (block.position + (n - block.rows.start) as i64) as i32;
    let mut near = Vec::new();
    for keys in &block.near {
        let sees = |key: &usize| {
            let (first, last) = keys.seen_by(*key, coded.rule.gap);
            (first..=last).contains(&position)
        };
        near.extend(keys.keys().filter(sees));
    }
    let logit = |code: usize| logit(query, codewords, code) * f64::from(coded.scale);
    let of_far = far.iter().map(|&(code, _)| logit(code));
    let of_near = near.iter().map(|&key| logit(keys.codes[key] as usize));
    let logits: Vec<f64> = of_far.chain(of_near).collect();
    let most = logits.iter().fold(f64::NEG_INFINITY, |most, &x| if x > most || x.is_nan() { x } else { most });
    if logits.is_empty() {
        o.fill(0.0);
        return f32::NEG_INFINITY;
    }
    let counts = far.iter().map(|(_, count)| *count).chain(near.iter().map(|_| 1.0));
    let weights: Vec<f64> = logits.iter().map(|x| (x - most).exp()).collect();
    let sum: f64 = weights.iter().zip(counts).map(|(weight, count)| weight * count).sum();
    for (d, o) in o.iter_mut().enumerate() {
        let of_far = far.iter().map(|&(code, _)| summary.sum(code)[d]);
        let value = |&key: &usize| f64::from(coded.v.at([keys.head[0], keys.head[1], keys.first + key, d]));
        let of_near = near.iter().map(value);
        *o = (of_far.chain(of_near).zip(&weights).map(|(value, weight)| value * weight).sum::<f64>() / sum) as f32;
    }
    (most + sum.ln()) as f32
}

fn logit(query: &[f32], codewords: &Codewords, code: usize) -> f64 {
    query.iter().zip(codewords.row(code)).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}
