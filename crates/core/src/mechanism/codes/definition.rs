//! The definition: dense softmax over codewords in place of keys, and where they are quantised of queries. Codes are constants, and a
//! codeword is the row that it stands for and a constant, so that gradients go straight through.

use super::{Codes, NOBODY};
use crate::Problem;
use crate::oracle::{self, Formula, ForwardRow, Judged, Leaves, Oracle, Real, Row};
use crate::view::View;

/// Codes of a tensor and what they stand for.
#[derive(Clone)]
pub(in crate::mechanism) struct Coding {
    /// Rows as they were when they were coded.
    rows: Vec<f64>,
    /// The codeword of each row; of padding the row itself.
    codewords: Vec<f64>,
}

impl Coding {
    pub(in crate::mechanism) fn new(rows: &View<'_>, codebook: &View<'_>, codes: &Codes) -> Self {
        let ([_, heads, count, width], mut coding) = (rows.shape(), Coding { rows: Vec::new(), codewords: Vec::new() });
        for (at, &code) in codes.values.iter().enumerate() {
            let [b, h, n] = [at / count / heads, at / count % heads, at % count];
            for d in 0..width {
                let x = f64::from(rows.at([b, h, n, d]));
                coding.rows.push(x);
                coding.codewords.push(if code == NOBODY { x } else { codebook.at([0, h, code as usize, d]).into() });
            }
        }
        coding
    }

    fn through<T: Real>(&self, leaf: &[T]) -> Vec<T> {
        let of = |((&x, &row), &codeword): ((&T, &f64), &f64)| T::from_f64(codeword) + (x - T::from_f64(row));
        leaf.iter().zip(&self.rows).zip(&self.codewords).map(of).collect()
    }
}

/// Codings, visibility and scale.
#[derive(Clone)]
struct Definition {
    /// Exact attention; its leaves are emptied.
    base: oracle::Definition,
    keys: Coding,
    queries: Option<Coding>,
    near: Near,
}

/// What becomes of keys nearer than this.
#[derive(Debug, Clone, Copy)]
pub(in crate::mechanism) enum Near {
    /// Nobody reads them.
    LeftOut(usize),
    /// They are read, not quantised.
    AsTheyAre(usize),
}

pub(in crate::mechanism) fn oracle(problem: &Problem<'_>, keys: Coding, queries: Option<Coding>, near: Near) -> Box<dyn Oracle> {
    let mut base = problem.definition();
    let [q, k, v] = [&mut base.q, &mut base.k, &mut base.v].map(std::mem::take);
    let definition = Definition { base, keys, queries, near };
    Box::new(Judged::new(definition, vec![("q", q), ("k", k), ("v", v)]))
}

impl Definition {
    /// Queries and keys as they are compared, and keys as they are.
    fn compared<T: Real>(&self, leaves: &Leaves<T>) -> [Vec<T>; 3] {
        let (q, k) = (leaves.get("q"), leaves.get("k"));
        [self.queries.as_ref().map_or_else(|| q.to_vec(), |coding| coding.through(q)), self.keys.through(k), k.to_vec()]
    }

    fn is_near(row: &Row<'_>, j: usize, reach: usize) -> bool {
        (row.position() - row.key_position(j)).abs() < i64::try_from(reach).unwrap_or(i64::MAX)
    }

    fn seen(&self, row: &Row<'_>) -> Vec<usize> {
        let left_out = |j: usize| matches!(self.near, Near::LeftOut(reach) if Self::is_near(row, j, reach));
        row.sequence.keys.clone().filter(|&j| row.sees(j) && !left_out(j)).collect()
    }

    /// Values weighted and summed, the sum of weights, and the log-sum-exp.
    fn attend<T: Real>(&self, row: &Row<'_>, [q, coded, own]: [&[T]; 3], v: &[T], seen: &[usize]) -> (Vec<T>, T, T) {
        let (dk, dv, nothing) = (self.base.dk, self.base.dv, T::from_f64(0.0));
        let scale = T::from_f64(self.base.scale.unwrap_or(1.0 / (dk as f64).sqrt()));
        let query = &q[row.query_index() * dk..][..dk];
        let score = |&j: &usize| {
            let keys = if matches!(self.near, Near::AsTheyAre(reach) if Self::is_near(row, j, reach)) { own } else { coded };
            let key = &keys[row.key_index(j) * dk..][..dk];
            scale * query.iter().zip(key).fold(nothing, |sum, (&x, &y)| sum + x * y)
        };
        let scores: Vec<T> = seen.iter().map(score).collect();
        let largest = scores.iter().fold(T::from_f64(f64::NEG_INFINITY), |max, &s| if s > max { s } else { max }).constant();
        let weights: Vec<T> = scores.iter().map(|&s| (s - largest).exp()).collect();
        let sum = weights.iter().fold(nothing, |sum, &weight| sum + weight);
        let total = |d: usize| {
            let term = |(&j, &weight): (&usize, &T)| weight * v[row.key_index(j) * dv + d];
            seen.iter().zip(&weights).map(term).fold(nothing, |total, term| total + term)
        };
        ((0..dv).map(total).collect(), sum, largest + sum.ln())
    }
}

impl Formula for Definition {
    fn evaluate<T: Real>(&self, leaves: &Leaves<T>) -> (Vec<T>, Option<Vec<T>>) {
        let (compared, v) = (self.compared(leaves), leaves.get("v"));
        let (mut o, mut lse) = (Vec::new(), Vec::new());
        for [b, h, i] in self.base.every_row() {
            let row = self.base.row(b, h, i);
            let seen = row.as_ref().map_or_else(Vec::new, |row| self.seen(row));
            let Some(row) = row.filter(|_| !seen.is_empty()) else {
                o.extend(vec![T::from_f64(0.0); self.base.dv]);
                lse.push(T::from_f64(f64::NEG_INFINITY));
                continue;
            };
            let (totals, sum, log_sum) = self.attend(&row, compared.each_ref().map(Vec::as_slice), v, &seen);
            o.extend(totals.into_iter().map(|total| total.over(sum)));
            lse.push(log_sum);
        }
        (o, Some(lse))
    }

    fn refine(&mut self, option: &str, value: f64) {
        if option == "scale" {
            self.base.scale = Some(value);
        }
    }

    fn rows(&self, leaves: &Leaves<f64>, [b, h]: [usize; 2], rows: &[usize]) -> Option<Vec<ForwardRow>> {
        let (compared, v, dv) = (self.compared(leaves), leaves.get("v"), self.base.dv);
        let of = |&i: &usize| {
            let row = self.base.row(b, h, i);
            let seen = row.as_ref().map_or_else(Vec::new, |row| self.seen(row));
            let Some(row) = row.filter(|_| !seen.is_empty()) else {
                return ForwardRow { o: vec![0.0; dv], lse: f64::NEG_INFINITY, largest_term_o: vec![0.0; dv] };
            };
            let (totals, sum, lse) = self.attend(&row, compared.each_ref().map(Vec::as_slice), v, &seen);
            // No weight is above 1.
            let largest = |d: usize| seen.iter().map(|&j| v[row.key_index(j) * dv + d].abs()).fold(0.0, f64::max) / sum;
            ForwardRow { o: totals.iter().map(|total| total / sum).collect(), lse, largest_term_o: (0..dv).map(largest).collect() }
        };
        Some(rows.iter().map(of).collect())
    }
}
