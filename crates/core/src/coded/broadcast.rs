//! Bidirectional attention of queries that are codewords: all of one code share one output, so each code attends once per sequence and
//! head.

use super::forward::{self, share};
use super::{Coded, Queries, Sequence};
use crate::quantise::Codewords;
use crate::view::{StridedMut, ViewMut};
use crate::{Dims, Output, Par};
use std::sync::Arc;

impl Coded<'_> {
    /// The codewords of queries, where there are fewer than queries and all of one code see the same keys.
    pub(super) fn fewer_queries(&self) -> Option<&[Codewords]> {
        match &self.queries {
            Queries::Codes { codewords, .. } if !self.rule.causal && codewords[0].count() < self.dims.queries => Some(codewords),
            _ => None,
        }
    }
}

/// Runs the forward pass where codes can attend for their queries; whether they can.
pub(super) fn run(coded: &Coded<'_>, out: &mut Output<'_>, par: Par) -> bool {
    let Some(codewords) = coded.fewer_queries() else { return false };
    let count = codewords[0].count();
    // Packed sequences are all of one batch row, and codes attend in each of them.
    let together = if coded.dims.batch == 1 { 1 } else { coded.sequences.len() };
    share(coded, out, |shared| {
        shared.clear_padding();
        for sequences in coded.sequences.chunks(together.max(1)) {
            let attended = attend(coded, sequences, count, par);
            let Queries::Codes { codes, .. } = &coded.queries else { continue };
            let Dims { heads, queries, dv, .. } = coded.dims;
            par.run(sequences.len() * heads, (sequences.len() * heads * queries * dv) as f64, |jobs| {
                while let Some(job) = jobs.take() {
                    let (sequence, h) = (&sequences[job / heads], job % heads);
                    let head = sequence.batch * heads + h;
                    for n in sequence.queries.clone() {
                        let row = head * count + codes[head * queries + n] as usize;
                        shared.o.write(sequence.batch, h, n, |_| &attended.o[row * dv..(row + 1) * dv]);
                        if let Some(lse) = &shared.lse {
                            lse.claim(sequence.batch, h, n).row(0)[0] = attended.lse[row];
                        }
                    }
                }
            });
        }
    });
    true
}

/// `[B, H, S_q, Dv]` and `[B, H, S_q]`.
struct Attended {
    o: Vec<f32>,
    lse: Vec<f32>,
}

/// Every code of some sequences.
fn attend(coded: &Coded<'_>, sequences: &[Sequence], count: usize, par: Par) -> Attended {
    let Dims { batch, heads, dv, .. } = coded.dims;
    let Queries::Codes { codewords, tables, .. } = &coded.queries else { unreachable!("codes attend for queries that have them") };
    let every_code: Vec<u32> = (0..batch * heads * count).map(|at| (at % count) as u32).collect();
    let of_codes = Coded {
        dims: Dims { queries: count, ..coded.dims },
        queries: Queries::Codes { codewords: Arc::clone(codewords), codes: &every_code, tables: Arc::clone(tables) },
        codewords: Arc::clone(&coded.codewords),
        codes: coded.codes,
        v: coded.v,
        sequences: sequences.iter().map(|sequence| sequence.with_queries(count)).collect(),
        rule: coded.rule,
        scale: coded.scale,
    };
    let (mut o, mut lse) = (vec![0.0; batch * heads * count * dv], vec![0.0; batch * heads * count]);
    let rows = StridedMut::contiguous(&mut o, [batch, heads, count, dv], "o").expect("its own shape");
    forward::run(&of_codes, &mut Output { o: ViewMut::F32(rows), lse: Some(&mut lse) }, par);
    Attended { o, lse }
}
