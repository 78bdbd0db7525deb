//! Some rows of a large problem: what the definition says of them and how far an honest plain implementation is off.

use regard_core::oracle::{Definition, ForwardRow, Storage, Weights, plain_rows};

/// Rows of every head of every batch row.
pub struct Sample {
    queries: usize,
    rows: Vec<usize>,
    /// By batch row and head, then by row.
    truth: Vec<Vec<ForwardRow>>,
    plain_o: f64,
    plain_lse: f64,
}

impl Sample {
    pub fn new(definition: &Definition, storage: Storage, rows: &[usize]) -> Self {
        let mut sample = Sample { queries: definition.queries, rows: rows.to_vec(), truth: Vec::new(), plain_o: 0.0, plain_lse: 0.0 };
        for head in 0..definition.batch * definition.heads {
            let at = [head / definition.heads, head % definition.heads];
            let truth = definition.forward_rows(at[0], at[1], rows);
            for weights in [Weights::Normalised, Weights::FromLse] {
                let plain = plain_rows(definition, at, rows, storage, weights);
                truth.iter().zip(&plain).for_each(|(truth, plain)| sample.allow(truth, plain));
            }
            sample.truth.push(truth);
        }
        sample
    }

    fn allow(&mut self, truth: &ForwardRow, plain: &ForwardRow) {
        let error = |x: f64, y: f64| if x == y { 0.0 } else { (x - y).abs() };
        self.plain_o = truth.o.iter().zip(&plain.o).map(|(x, y)| error(*x, *y)).fold(self.plain_o, f64::max);
        self.plain_lse = self.plain_lse.max(error(truth.lse, plain.lse));
    }

    /// Checks these rows of `o [B, H, N, Dv]` and `lse [B, H, N]`; gives the worst error as a share of its budget.
    pub fn check(&self, (o, lse): (&[f64], &[f64]), how: &str) -> f64 {
        let mut worst = 0.0f64;
        for (head, truth) in self.truth.iter().enumerate() {
            for (&row, truth) in self.rows.iter().zip(truth) {
                let (at, width) = (head * self.queries + row, truth.o.len());
                let place = |name| format!("{name} of row {row} of head {head}, {how}");
                let budget = 2.0 * self.plain_lse + 1e-6 * truth.lse.abs().max(1.0);
                worst = worst.max(share(lse[at], truth.lse, budget, || place("lse")));
                for (d, (&x, &y)) in o[at * width..][..width].iter().zip(&truth.o).enumerate() {
                    let budget = 2.0 * self.plain_o + 1e-6 * truth.largest_term_o[d];
                    worst = worst.max(share(x, y, budget, || place("o")));
                }
            }
        }
        worst
    }
}

fn share(found: f64, defined: f64, budget: f64, place: impl Fn() -> String) -> f64 {
    if found == defined {
        return 0.0;
    }
    let share = (found - defined).abs() / budget;
    assert!(share <= 1.0, "{found:e} is defined as {defined:e}, {share:.2} of the budget: {}", place());
    share
}
