//! How a call runs: at which level, on how many threads.

mod awake;

use crate::simd::Level;
use std::ops::Range;
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
    in_pairs: bool,
}

impl Default for Par {
    fn default() -> Self {
        let highest = Level::ALL.get(HIGHEST.load(Ordering::Relaxed)).copied().unwrap_or(Level::detect());
        Par::of(Level::detect().min(highest), rayon::current_num_threads())
    }
}

impl Par {
    /// The best level, the caller's thread only.
    pub fn serial() -> Self {
        Par::of(Level::detect(), 1)
    }

    fn of(level: Level, threads: usize) -> Self {
        Par { level, threads, in_pairs: level.prefers_pairs() }
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
        Par::of(level.min(Level::detect()), self.threads)
    }

    /// Multiplies bf16 in pairs even where that is slower, or no instruction does it: what a test needs that has to see it everywhere.
    #[doc(hidden)]
    #[must_use]
    pub fn in_pairs(self) -> Self {
        Par { in_pairs: true, ..self }
    }

    /// Whether products of bf16 are taken in pairs where the kernel can.
    pub(crate) fn multiplies_pairs(&self) -> bool {
        self.in_pairs
    }

    /// The level in use.
    pub fn level_in_use(&self) -> Level {
        self.level
    }

    /// The number of threads in use.
    pub fn threads_in_use(&self) -> usize {
        self.threads
    }

    /// Runs `work` on as many threads as `jobs` and `flops` are worth; each takes job numbers in order.
    pub(crate) fn run(&self, jobs: usize, flops: f64, work: impl Fn(&Jobs<'_>) + Sync) {
        let threads = self.worth(jobs, flops);
        self::run(threads, &[Share::new(0..jobs)], work);
    }

    /// [`Par::run`] for jobs of equal size, neighbours together: each thread begins with a share of its own, the same one in every call, and
    /// then helps the others. What it has left in its cache is what it reads and writes next.
    pub(crate) fn run_in_shares(&self, jobs: usize, flops: f64, work: impl Fn(&Jobs<'_>) + Sync) {
        let threads = self.worth(jobs, flops);
        let shares: Vec<Share> = (0..threads).map(|i| Share::new(i * jobs / threads..(i + 1) * jobs / threads)).collect();
        self::run(threads, &shares, work);
    }

    fn worth(&self, jobs: usize, flops: f64) -> usize {
        if flops < SERIAL_FLOPS { 1 } else { self.threads.min(jobs).max(1) }
    }
}

fn run(threads: usize, shares: &[Share], work: impl Fn(&Jobs<'_>) + Sync) {
    if threads <= 1 {
        return work(&Jobs { shares, first: 0 });
    }
    let ended = AtomicUsize::new(1);
    // In place: a caller outside the pool works, too, instead of waiting to be woken.
    rayon::in_place_scope(|scope| {
        let call = awake::Call::begin(threads - 1);
        let inside = rayon::current_thread_index();
        let (ended, work) = (&ended, &work);
        for number in 1..threads {
            scope.spawn(move |_| {
                // A thread of the pool has the same number in every call; where the caller is none of them, so has what is spawned.
                let number = inside.and_then(|_| rayon::current_thread_index()).unwrap_or(number);
                work(&Jobs { shares, first: number % shares.len() });
                ended.fetch_add(1, Ordering::Release);
            });
        }
        work(&Jobs { shares, first: inside.unwrap_or(0) % shares.len() });
        call.until(|| ended.load(Ordering::Acquire) == threads);
    });
}

/// Does `work` on a thread of the pool. A call from outside works on its own thread beside the pool's, so that a pool of as many threads
/// as there are cores has one too many: a training loop, or whatever calls operations in turn, is faster on the pool.
pub fn on_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// Jobs that are handed out in order.
#[derive(Debug)]
struct Share {
    next: AtomicUsize,
    end: usize,
}

impl Share {
    fn new(jobs: Range<usize>) -> Self {
        Share { next: AtomicUsize::new(jobs.start), end: jobs.end }
    }

    fn take(&self) -> Option<usize> {
        let job = self.next.fetch_add(1, Ordering::Relaxed);
        (job < self.end).then_some(job)
    }
}

/// Hands out job numbers, each once: those of a thread's own share, then those of the next ones.
#[derive(Debug)]
pub(crate) struct Jobs<'a> {
    shares: &'a [Share],
    first: usize,
}

impl Jobs<'_> {
    pub(crate) fn take(&self) -> Option<usize> {
        let (before, own) = self.shares.split_at(self.first);
        own.iter().chain(before).find_map(Share::take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_job_is_done_once() {
        for (jobs, threads) in [(0, 2), (1, 3), (7, 2), (100, 3), (100, 200)] {
            for in_shares in [false, true] {
                let done = Mutex::new(Vec::new());
                let work = |jobs: &Jobs<'_>| {
                    while let Some(job) = jobs.take() {
                        done.lock().unwrap().push(job);
                    }
                };
                let par = Par::default().threads(threads);
                if in_shares {
                    par.run_in_shares(jobs, 1e9, work)
                } else {
                    par.run(jobs, 1e9, work)
                }
                let mut done = done.into_inner().unwrap();
                done.sort_unstable();
                assert_eq!(done, (0..jobs).collect::<Vec<_>>(), "{threads} {in_shares}");
            }
        }
    }
}
