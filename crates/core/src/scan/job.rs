//! Work by numbers, each with the working memory of its thread.

use super::block::Forms;
use crate::Par;
use crate::par::Jobs;
use crate::simd::{Lanes, Task, dispatch};
use std::cell::RefCell;

/// Something that is done for every number below some end.
pub(super) trait Job: Sync {
    fn run<S: Lanes, const R: usize>(&self, s: S, number: usize, forms: &mut Forms);
}

thread_local! {
    static FORMS: RefCell<Forms> = RefCell::default();
}

/// Does it for `0..count` on as many threads as that is worth.
pub(super) fn run(job: &impl Job, count: usize, flops: f64, par: Par) {
    par.run(count, flops, |jobs| {
        FORMS.with_borrow_mut(|forms| dispatch(par.level_in_use(), Worker { job, jobs, forms }));
    });
}

struct Worker<'a, J> {
    job: &'a J,
    jobs: &'a Jobs<'a>,
    forms: &'a mut Forms,
}

impl<J: Job> Task for Worker<'_, J> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        while let Some(number) = self.jobs.take() {
            self.job.run::<S, R>(s, number, self.forms);
        }
    }
}
