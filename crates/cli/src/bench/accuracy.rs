//! How far results are from a definition, on sampled rows.

use rayon::prelude::*;
use regard_core::oracle::{Definition, ForwardRow, Oracle};
use regard_core::{Dims, View};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Rows of a head that are looked at.
const ROWS: usize = 8;

/// Distance of some numbers from what they should be.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Deviation {
    /// The largest absolute difference.
    pub max_abs: f64,
    /// The length of the difference over the length of what should be; none if that is 0.
    pub rel_l2: Option<f64>,
    /// The first tokens of two kv heads that were compared by themselves, where no part of the measured call could be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
}

/// Differences so far.
#[derive(Clone, Copy, Default)]
pub struct Differences {
    max_abs: f64,
    squared: f64,
    squared_expected: f64,
}

impl Differences {
    /// Takes in a row. Something that is not a number stays visible.
    pub fn add(&mut self, found: impl IntoIterator<Item = f64>, expected: &[f64]) {
        for (found, expected) in found.into_iter().zip(expected) {
            let difference = (found - expected).abs();
            self.max_abs = if difference <= self.max_abs { self.max_abs } else { difference };
            self.squared += difference * difference;
            self.squared_expected += expected * expected;
        }
    }

    /// What they come to.
    pub fn deviation(self) -> Deviation {
        let relative = (self.squared / self.squared_expected).sqrt();
        Deviation { max_abs: self.max_abs, rel_l2: (self.squared_expected > 0.0).then_some(relative), length: None }
    }
}

/// A row of an output.
pub type At = [usize; 3];

/// Rows `[b, h, i]` spread over the first and the last head.
pub fn sample(dims: &Dims) -> Vec<At> {
    let heads = BTreeSet::from([[0, 0], [dims.batch - 1, dims.heads - 1]]);
    let last = dims.queries - 1;
    let rows: BTreeSet<usize> = (0..ROWS).map(|i| i * last / (ROWS - 1)).collect();
    heads.into_iter().flat_map(|[b, h]| rows.iter().map(move |&i| [b, h, i])).collect()
}

/// How far some rows of `o` are from a definition; none where it has no single rows.
pub fn of_forward(definition: &dyn Oracle, o: View<'_>, rows: &[At]) -> Option<Differences> {
    // Rows of one head together: what they have in common is computed once.
    let of_head = |rows: &&[At]| definition.rows([rows[0][0], rows[0][1]], &rows.iter().map(|at| at[2]).collect::<Vec<_>>());
    let heads: Vec<&[At]> = rows.chunk_by(|a, b| a[..2] == b[..2]).collect();
    let expected: Vec<Vec<ForwardRow>> = heads.par_iter().map(of_head).collect::<Option<_>>()?;
    let mut differences = Differences::default();
    for (&at, expected) in rows.iter().zip(expected.iter().flatten()) {
        differences.add(row(o, at), &expected.o);
    }
    Some(differences)
}

/// How far some rows of `dq` are from a definition; none with dropout, whose draws the definition keeps to itself.
pub fn of_dq(definition: &Definition, d_o: View<'_>, dq: View<'_>, rows: &[At]) -> Option<Differences> {
    if definition.dropout.is_some() {
        return None;
    }
    let expected: Vec<Vec<f64>> = rows.par_iter().map(|&at| dq_row(definition, &row(d_o, at).collect::<Vec<_>>(), at)).collect();
    let mut differences = Differences::default();
    for (&at, expected) in rows.iter().zip(&expected) {
        differences.add(row(dq, at), expected);
    }
    Some(differences)
}

/// `dq_i = scale Σ_j A_j (dO·v_j - dO·o) (1 - tanh²(scale q·k_j / c)) k_j`.
fn dq_row(definition: &Definition, d_o: &[f64], [b, h, i]: At) -> Vec<f64> {
    let Definition { heads, kv_heads, queries, keys, dk, dv, .. } = *definition;
    let first_key = (b * kv_heads + h / (heads / kv_heads)) * keys;
    let q = vector(&definition.q, (b * heads + h) * queries + i, dk);
    let scale = definition.scale.unwrap_or(1.0 / (dk as f64).sqrt());
    let through_cap = |raw: f64| definition.softcap.map_or(1.0, |c| 1.0 - (raw / c).tanh().powi(2));
    let o = &definition.forward_rows(b, h, &[i])[0].o;
    let mut dq = vec![0.0; dk];
    for (j, weight) in definition.weights(b, h, i).into_iter().enumerate().filter(|(_, weight)| *weight > 0.0) {
        let (k, v) = (vector(&definition.k, first_key + j, dk), vector(&definition.v, first_key + j, dv));
        let slope = scale * weight * (dot(d_o, v) - dot(d_o, o)) * through_cap(scale * dot(q, k));
        dq.iter_mut().zip(k).for_each(|(sum, k)| *sum += slope * k);
    }
    dq
}

/// A row of a tensor, widened.
pub fn row(tensor: View<'_>, [b, h, i]: At) -> impl Iterator<Item = f64> {
    (0..tensor.shape()[3]).map(move |d| f64::from(tensor.at([b, h, i, d])))
}

fn vector(tensor: &[f64], index: usize, size: usize) -> &[f64] {
    &tensor[index * size..(index + 1) * size]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
