//! Threads of the pool that do not fall asleep between two calls.
//!
//! Waking a thread takes tens of microseconds, as long as many an operation of a small model, and there are hundreds of those in a
//! step of training. So a call leaves a job behind that looks for work for a while: the next call finds that thread awake.

use rayon::Yield;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a thread looks for work in vain.
const PATIENCE: Duration = Duration::from_micros(300);
/// How long it looks at most before it is the pool's again: if it is one that waits for something else, that long.
const TERM: Duration = Duration::from_millis(5);

static THREADS: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static CALLING: Cell<usize> = const { Cell::new(0) };
}

/// A call under way. Its thread is none that waits for calls.
pub(super) struct Call;

impl Call {
    /// Begins one, which wants `count` threads beside its own.
    pub(super) fn begin(count: usize) -> Self {
        CALLS.fetch_add(1, Ordering::Relaxed);
        CALLING.set(CALLING.get() + 1);
        let more = |awake: usize| (awake < count).then_some(awake + 1);
        while THREADS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
            let caller = rayon::current_thread_index();
            rayon::spawn(move || {
                let counted = Counted;
                if CALLING.get() == 0 && rayon::current_thread_index() != caller {
                    counted.look();
                }
            });
        }
        Call
    }

    /// Does whatever work there is until the condition holds, or for as long as a thread is patient.
    pub(super) fn until(&self, holds: impl Fn() -> bool) {
        let mut since = Instant::now();
        while !holds() && since.elapsed() < PATIENCE {
            if rayon::yield_now() == Some(Yield::Executed) {
                since = Instant::now();
            } else {
                thread::yield_now();
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        CALLING.set(CALLING.get() - 1);
    }
}

/// One of [`THREADS`] while it lives.
struct Counted;

impl Counted {
    fn look(&self) {
        let start = Instant::now();
        let (mut seen, mut since) = (CALLS.load(Ordering::Relaxed), start);
        while since.elapsed() < PATIENCE && start.elapsed() < TERM {
            let calls = CALLS.load(Ordering::Relaxed);
            if rayon::yield_now() == Some(Yield::Executed) || calls != seen {
                (seen, since) = (calls, Instant::now());
            } else {
                thread::yield_now();
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Par;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Work that is shared among threads, with more of it inside.
    fn nested() -> usize {
        let sum = AtomicUsize::new(0);
        Par::default().run(8, 1e9, |jobs| {
            while let Some(job) = jobs.take() {
                Par::default().run(4, 1e9, |jobs| {
                    while let Some(inner) = jobs.take() {
                        sum.fetch_add(job * 4 + inner, Ordering::Relaxed);
                    }
                });
            }
        });
        sum.into_inner()
    }

    #[test]
    fn every_job_is_done_once_and_threads_are_given_back() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| {
            for _ in 0..200 {
                assert_eq!(nested(), (0..32).sum());
            }
            assert_eq!(CALLING.get(), 0);
        });
        drop(pool);
        // Other tests have threads awake, too, but not all the time.
        let given_back = (0..10_000).any(|_| {
            thread::sleep(Duration::from_millis(1));
            THREADS.load(Ordering::Relaxed) == 0
        });
        assert!(given_back, "threads look for work for ever");
    }

    #[test]
    fn a_panic_leaves_the_count_of_calls_as_it_was() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| {
            let panicked = catch_unwind(AssertUnwindSafe(|| Par::default().run(2, 1e9, |_| panic!("on purpose"))));
            assert!(panicked.is_err());
            assert_eq!(CALLING.get(), 0);
            assert_eq!(nested(), (0..32).sum());
        });
    }
}
