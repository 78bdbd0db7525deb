//! How a call runs: at which level, on how many threads.

mod awake;

use crate::simd::Level;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The place in [`Level::ALL`] of the level that [`Par::default`] does not go beyond.
static HIGHEST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Below so many floating-point operations a call stays on the caller's thread.
const SERIAL_FLOPS: f64 = 1e6;

/// Level and threads of a call. Threads come from the caller's rayon pool; results have the same bits for any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Par {
    level: Level,
    threads: usize,
}

impl Default for Par {
    fn default() -> Self {
        let highest = Level::ALL.get(HIGHEST.load(Ordering::Relaxed)).copied().unwrap_or(Level::detect());
        Par { level: Level::detect().min(highest), threads: rayon::current_num_threads() }
    }
}

impl Par {
    /// The best level, the caller's thread only.
    pub fn serial() -> Self {
        Par { level: Level::detect(), threads: 1 }
    }

    /// No call of this process that begins with [`Par::default`] goes beyond this level, operations on tensors included.
    pub fn cap(level: Level) {
        let place = Level::ALL.iter().position(|known| *known == level);
        HIGHEST.store(place.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// At most `threads` threads.
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        Par { threads: threads.max(1), ..self }
    }

    /// At most `level`.
    #[must_use]
    pub fn level(self, level: Level) -> Self {
        Par { level: level.min(Level::detect()), ..self }
    }

    /// The level in use.
    pub fn level_in_use(&self) -> Level {
        self.level
    }

    /// The number of threads in use.
    pub fn threads_in_use(&self) -> usize {
        self.threads
    }

    /// Runs `work` on as many threads as `jobs` and `flops` are worth; each takes job numbers from the counter.
    pub(crate) fn run(&self, jobs: usize, flops: f64, work: impl Fn(&Jobs) + Sync) {
        let counter = Jobs { next: AtomicUsize::new(0), end: jobs };
        let threads = if flops < SERIAL_FLOPS { 1 } else { self.threads.min(jobs) };
        if threads <= 1 {
            return work(&counter);
        }
        let ended = AtomicUsize::new(1);
        // In place: a caller outside the pool works, too, instead of waiting to be woken.
        rayon::in_place_scope(|scope| {
            let call = awake::Call::begin(threads - 1);
            for _ in 1..threads {
                scope.spawn(|_| {
                    work(&counter);
                    ended.fetch_add(1, Ordering::Release);
                });
            }
            work(&counter);
            call.until(|| ended.load(Ordering::Acquire) == threads);
        });
    }
}

/// Does `work` on a thread of the pool. A call from outside works on its own thread beside the pool's, so that a pool of as many threads
/// as there are cores has one too many: a training loop, or whatever calls operations in turn, is faster on the pool.
pub fn on_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// Hands out `0..end` in order, each number once.
#[derive(Debug)]
pub(crate) struct Jobs {
    next: AtomicUsize,
    end: usize,
}

impl Jobs {
    pub(crate) fn take(&self) -> Option<usize> {
        let job = self.next.fetch_add(1, Ordering::Relaxed);
        (job < self.end).then_some(job)
    }
}
