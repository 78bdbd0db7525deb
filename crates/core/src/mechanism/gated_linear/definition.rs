//! The definition: the state, token by token.

use crate::Dims;
use crate::mechanism::owned::widened;
use crate::oracle::{Formula, ForwardRow, Judged, Leaves, Oracle, Real};
use crate::scan::Scan;
use std::ops::Range;

#[derive(Clone)]
struct Definition {
    dims: Dims,
    scale: f64,
    /// Batch row and tokens of every sequence.
    sequences: Vec<(usize, Range<usize>)>,
}

pub(super) fn oracle(scan: &Scan<'_>) -> Box<dyn Oracle> {
    let (dims, [q, k, v]) = (scan.dims(), scan.views());
    let definition = Definition {
        dims,
        scale: scan.rules().scale.map_or_else(|| 1.0 / (dims.dk as f64).sqrt(), f64::from),
        sequences: scan.sequences().iter().map(|sequence| (sequence.batch, sequence.keys.clone())).collect(),
    };
    let gates = scan.gates().expect("checked by the scan");
    let leaves = vec![("q", widened(&q)), ("k", widened(&k)), ("v", widened(&v)), ("gates", widened(&gates))];
    Box::new(Judged::new(definition, leaves))
}

impl Definition {
    /// One query head of one sequence: rows of o.
    fn run<T: Real>(&self, leaves: &Leaves<T>, (b, tokens): &(usize, Range<usize>), h: usize) -> Vec<T> {
        let Dims { heads, kv_heads, keys, dk, dv, .. } = self.dims;
        let [query, key] = [b * heads + h, b * kv_heads + h / self.dims.group()].map(|head| head * keys);
        let row = |name, width, at: usize| &leaves.get(name)[at * width..(at + 1) * width];
        let zero = T::from_f64(0.0);
        let (mut state, mut all) = (vec![vec![zero; dv]; dk], Vec::new());
        for n in tokens.clone() {
            let (q, k, v) = (row("q", dk, query + n), row("k", dk, key + n), row("v", dv, key + n));
            let mut o = vec![zero; dv];
            for (d, sums) in state.iter_mut().enumerate() {
                let (gate, q) = (row("gates", dk, query + n)[d].exp(), T::from_f64(self.scale) * q[d]);
                for ((sum, &v), o) in sums.iter_mut().zip(v).zip(&mut o) {
                    *sum = gate * *sum + k[d] * v;
                    *o = *o + q * *sum;
                }
            }
            all.extend(o.into_iter().map(|x| x.over(T::from_f64(1.0))));
        }
        all
    }
}

impl Formula for Definition {
    fn evaluate<T: Real>(&self, leaves: &Leaves<T>) -> (Vec<T>, Option<Vec<T>>) {
        let Dims { batch, heads, queries, dv, .. } = self.dims;
        let mut o = vec![T::from_f64(0.0); batch * heads * queries * dv];
        for sequence @ (b, tokens) in &self.sequences {
            for h in 0..heads {
                let rows = self.run(leaves, sequence, h);
                o[((b * heads + h) * queries + tokens.start) * dv..][..rows.len()].copy_from_slice(&rows);
            }
        }
        (o, None)
    }

    fn rows(&self, leaves: &Leaves<f64>, [b, h]: [usize; 2], rows: &[usize]) -> Option<Vec<ForwardRow>> {
        let dv = self.dims.dv;
        let mut all: Vec<Vec<f64>> = vec![vec![0.0; dv]; rows.len()];
        for sequence @ (_, tokens) in self.sequences.iter().filter(|(batch, tokens)| *batch == b && rows.iter().any(|n| tokens.contains(n)))
        {
            let found = self.run(leaves, sequence, h);
            for (o, n) in all.iter_mut().zip(rows).filter(|(_, n)| tokens.contains(n)) {
                o.copy_from_slice(&found[(n - tokens.start) * dv..][..dv]);
            }
        }
        let row = |o: Vec<f64>| ForwardRow { largest_term_o: o.iter().map(|x| x.abs()).collect(), o, lse: f64::NEG_INFINITY };
        Some(all.into_iter().map(row).collect())
    }

    fn refine(&mut self, option: &str, value: f64) {
        if option == "scale" {
            self.scale = value;
        }
    }
}
