//! One query after far keys only: a step of decoding.

use super::Coded;
use super::forward::{Attend, Run, Scratch, share};
use super::layout::{Block, Near};
use super::summary::{Keys, Summary};
use crate::simd::dispatch;
use crate::{Error, Output, Par};

impl Coded<'_> {
    /// The output of the one query of every head, over what was summed up for each kv head.
    pub(crate) fn step(&self, summaries: &[Summary], out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        out.check(&self.dims, "f32")?;
        let block = Block { rows: 0..1, position: 0, before: 0, after: 0, near: [Near::Before(0..0), Near::After(0..0)] };
        share(self, out, |shared| {
            par.run(self.dims.heads, self.flops(), |jobs| {
                let mut scratch = Scratch::default();
                while let Some(h) = jobs.take() {
                    let g = h / self.dims.group();
                    let keys = Keys { values: &self.v, head: [0, g], first: 0, codes: &[] };
                    let attend = Attend { shared, summary: &summaries[g], keys, block: &block, h };
                    dispatch(par.level_in_use(), Run(attend, &mut scratch));
                }
            });
        });
        Ok(())
    }
}
