//! Attention over keys that are codewords: softmax over `s_ij = scale q_i·C_c(j)`, where c(j) is the code of key j.
//!
//! All keys of a code have one logit, so those that a whole block of queries sees come to one key per code: with `n_s` of them and `U_s`
//! the sum of their values, `x` the logits and `m` the largest one that query i sees,
//! `o_i = (Σ_s e^(x_is - m) U_s + Σ_near e^(x_ij - m) v_j) / (Σ_s e^(x_is - m) n_s + Σ_near e^(x_ij - m))`.
//! Logits and exponentials are computed once per query and code; a near key takes the row of its code, masked.
//!
//! Logits come from queries and codewords, or from a table where queries are codewords as well. A block is one job's step: a job walks
//! through the blocks of a piece of one sequence and kv head, so that counts and sums go from block to block.

mod backward;
mod broadcast;
mod careful;
mod decode;
mod forward;
mod layout;
mod leave;
mod queries;
mod ranks;
mod shared_queries;
mod state;
mod summary;

pub(crate) use layout::{Rule, Sequence};
pub(crate) use queries::{Queries, Tables, table};
pub(crate) use summary::Summary;

use crate::quantise::Codewords;
use crate::view::View;
use crate::{Dims, Error, Output, Par, Saved};
use std::sync::Arc;

/// One problem; nothing is checked past this.
pub(crate) struct Coded<'a> {
    pub(crate) dims: Dims,
    pub(crate) queries: Queries<'a>,
    /// Of each kv head.
    pub(crate) codewords: Arc<[Codewords]>,
    /// `[B, G, M]`; of valid keys below S.
    pub(crate) codes: &'a [u32],
    pub(crate) v: View<'a>,
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) rule: Rule,
    pub(crate) scale: f32,
}

impl Coded<'_> {
    pub(crate) fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        out.check(&self.dims, self.v.dtype())?;
        if !broadcast::run(self, out, par) {
            forward::run(self, out, par);
        }
        Ok(())
    }

    pub(crate) fn backward(&self, saved: &Saved<'_>, gradients: &mut crate::Gradients<'_>, par: Par) -> Result<(), Error> {
        saved.check(&self.dims)?;
        gradients.check(&self.dims, None)?;
        backward::run(self, saved, gradients, par);
        Ok(())
    }

    /// Pairs of queries and keys that would cost as much: logits and sums by codewords, near keys one by one, and the search for codes.
    pub(crate) fn pairs(&self) -> u64 {
        let Dims { heads, kv_heads, dk, dv, .. } = self.dims;
        let codes = self.codewords.first().map_or(0, Codewords::count);
        let [codes_q, attending] = match &self.queries {
            Queries::Rows(_) => [0, 0],
            Queries::Codes { codewords, .. } => {
                [codewords[0].count(), if self.fewer_queries().is_some() { codewords[0].count() } else { 0 }]
            }
        };
        let of = |sequence: &Sequence| {
            let (n, m) = (sequence.queries.len(), sequence.keys.len() * kv_heads / heads);
            // Half of a block's near keys are seen by a query on average.
            let near: usize = sequence.near(&self.rule) / 2;
            let logits = if codes_q == 0 { n * codes } else { n * codes_q + codes_q * codes };
            let rows = if attending == 0 { n } else { attending };
            (logits + m * codes) * dk + (rows * codes + near + m) * dv
        };
        (self.sequences.iter().map(of).sum::<usize>() * heads / (dk + dv)) as u64
    }

    /// Products of a pass per value of a row, were it all to do.
    fn flops(&self) -> f64 {
        let codes = self.codewords.first().map_or(0, Codewords::padded);
        2.0 * (self.dims.batch * self.dims.heads * self.dims.queries) as f64 * (codes * (self.dims.dk + self.dims.dv)) as f64
    }
}
