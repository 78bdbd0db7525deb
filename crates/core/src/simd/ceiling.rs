//! The machine's own ceilings, measured: what a kernel's speed is a fraction of.

use super::{Lanes, Task, dispatch};
use crate::Par;
use crate::simd::Aligned;
use std::hint::black_box;
use std::time::Instant;

/// Samples of which the median is reported.
const SAMPLES: usize = 7;

/// Fused multiply-adds of f32 at the level in use, GFLOP/s over all threads: median of several short runs of
/// independent chains that never leave the registers.
pub fn fma_gflops(par: Par) -> f64 {
    median(|| {
        let start = Instant::now();
        let flops = on_every_thread(par, |_| dispatch(par.level_in_use(), Chains { rounds: ROUNDS }));
        flops / start.elapsed().as_secs_f64() / 1e9
    })
}

/// Rounds of every chain: some ten milliseconds, so that starting threads does not count.
const ROUNDS: usize = 4_000_000;

/// The same for products of bf16 pairs, where the processor has them and the kernel uses them.
pub fn bf16_gflops(_par: Par) -> Option<f64> {
    None
}

/// Memory read over all threads from arrays far larger than the caches, GB/s.
pub fn read_gbps(par: Par) -> f64 {
    const BYTES: usize = 256 << 20;
    let mut memory = Aligned::<f32>::new();
    memory.take(BYTES / 4).fill(1.0);
    let values = memory.get(BYTES / 4);
    let share = values.len() / par.threads_in_use();
    median(|| {
        let start = Instant::now();
        let read = on_every_thread(par, |thread| {
            let part = &values[thread * share..(thread + 1) * share];
            black_box(dispatch(par.level_in_use(), Read { values: part }));
            (part.len() * 4) as f64
        });
        read / start.elapsed().as_secs_f64() / 1e9
    })
}

fn median(sample: impl Fn() -> f64) -> f64 {
    sample();
    let mut samples: Vec<f64> = (0..SAMPLES).map(|_| sample()).collect();
    samples.sort_by(f64::total_cmp);
    samples[SAMPLES / 2]
}

/// Sum of what `work` reports on each thread.
fn on_every_thread(par: Par, work: impl Fn(usize) -> f64 + Sync) -> f64 {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..par.threads_in_use())
            .map(|thread| {
                scope.spawn({
                    let work = &work;
                    move || work(thread)
                })
            })
            .collect();
        let own = work(0);
        own + others.into_iter().map(|other| other.join().expect("a measuring thread panicked")).sum::<f64>()
    })
}

struct Chains {
    rounds: usize,
}

impl Task for Chains {
    type Output = f64;

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) -> f64 {
        if R >= 8 {
            chains::<S, 12>(s, self.rounds)
        } else if S::FUSED {
            chains::<S, 10>(s, self.rounds)
        } else {
            chains::<S, 5>(s, self.rounds)
        }
    }
}

/// As many independent chains as stay in the registers of the level.
#[inline(always)]
fn chains<S: Lanes, const C: usize>(s: S, rounds: usize) -> f64 {
    let (factor, term) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
    let mut chains = [s.splat(black_box(1.0)); C];
    for _ in 0..rounds {
        for x in &mut chains {
            *x = s.mul_add(*x, factor, term);
        }
    }
    let mut total = s.zero();
    for x in chains {
        total = s.add(total, x);
    }
    black_box(s.sum(total));
    (rounds * C * S::N * 2) as f64
}

struct Read<'a> {
    values: &'a [f32],
}

impl Task for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) -> f32 {
        let mut sums = [s.zero(); 8];
        for lines in self.values.chunks_exact(8 * S::N) {
            for (sum, line) in sums.iter_mut().zip(lines.chunks_exact(S::N)) {
                *sum = s.add(*sum, s.load(line));
            }
        }
        s.sum(sums.into_iter().fold(s.zero(), |sum, x| s.add(sum, x)))
    }
}
