//! The machine's own ceilings, measured: what a kernel's speed is a fraction of.

use super::{Form, Lanes, Pairs, Singles, Task, dispatch};
use crate::Par;
use crate::simd::Aligned;
use std::hint::black_box;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// How long all threads work before anything counts: an idle processor may take tens of milliseconds to be woken.
const WARM: Duration = Duration::from_millis(50);

/// The time that is counted.
const WINDOW: Duration = Duration::from_millis(25);

/// Readings at most; the best one counts.
const READINGS: usize = 10;

/// Two readings in a row agree if they differ by no more than this fraction.
const AGREEMENT: f64 = 0.03;

/// Fused multiply-adds of f32 at the level in use, GFLOP/s over all threads: independent chains that never leave the
/// registers.
pub fn fma_gflops(par: Par) -> f64 {
    gflops_in::<Singles>(par)
}

/// The same for products of bf16 pairs, where the kernel uses them: the processor has an instruction, and it is the faster way.
pub fn bf16_gflops(par: Par) -> Option<f64> {
    par.multiplies_pairs().then(|| gflops_in::<Pairs>(par))
}

fn gflops_in<M: Form>(par: Par) -> f64 {
    const ROUNDS: usize = 100_000;
    settled(|| rate(par, |_, _| M::dispatch(par.level_in_use(), Chains::<M> { rounds: ROUNDS, form: PhantomData }))) / 1e9
}

/// Memory read over all threads from arrays far larger than the caches, GB/s.
pub fn read_gbps(par: Par) -> f64 {
    const BYTES: usize = 256 << 20;
    const PIECE: usize = (4 << 20) / 4;
    let mut memory = Aligned::<f32>::new();
    memory.take(BYTES / 4).fill(1.0);
    let values = memory.get(BYTES / 4);
    let share = values.len() / par.threads_in_use();
    let read = |thread: usize, piece: usize| {
        let own = &values[thread * share..(thread + 1) * share];
        let size = PIECE.min(share);
        let start = piece % (share / size) * size;
        black_box(dispatch(par.level_in_use(), Read { values: &own[start..start + size] }));
        (size * 4) as f64
    };
    settled(|| rate(par, read)) / 1e9
}

/// The best reading, once two in a row agree or there have been many.
fn settled(mut reading: impl FnMut() -> f64) -> f64 {
    let mut last = reading();
    let mut best = last;
    for _ in 1..READINGS {
        let next = reading();
        best = best.max(next);
        if (next - last).abs() <= AGREEMENT * next.max(last) {
            break;
        }
        last = next;
    }
    best
}

/// What `piece(thread, number)` reports, per second, summed over all threads: the same window of time for each, after
/// a while in which all of them work.
fn rate(par: Par, piece: impl Fn(usize, usize) -> f64 + Sync) -> f64 {
    let start = Instant::now() + WARM;
    let work = |thread: usize| {
        let (mut number, mut done, mut counted_from) = (0, 0.0, None);
        while start.elapsed() < WINDOW {
            let work = piece(thread, number);
            number += 1;
            match counted_from {
                Some(_) => done += work,
                // Whoever is woken too late to warm up has done nothing in the first part of the window.
                None if Instant::now() >= start => counted_from = Some(if number == 1 { start } else { Instant::now() }),
                None => {}
            }
        }
        counted_from.map_or(0.0, |from: Instant| done / from.elapsed().as_secs_f64())
    };
    std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = (1..par.threads_in_use()).map(|thread| scope.spawn(move || work(thread))).collect();
        let own = work(0);
        own + others.into_iter().map(|other| other.join().expect("a measuring thread panicked")).sum::<f64>()
    })
}

struct Chains<M> {
    rounds: usize,
    form: PhantomData<M>,
}

impl<M: Form> Task for Chains<M> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) -> f64 {
        if R >= 8 {
            chains::<S, M, 12>(s, self.rounds)
        } else if S::FUSED {
            chains::<S, M, 10>(s, self.rounds)
        } else {
            chains::<S, M, 5>(s, self.rounds)
        }
    }
}

/// As many independent chains as stay in the registers of the level.
#[inline(always)]
fn chains<S: Lanes, M: Form, const C: usize>(s: S, rounds: usize) -> f64 {
    let factor = M::join(s, [s.splat(black_box(0.999)); 2]);
    let term = M::join(s, [s.splat(black_box(0.001)); 2]);
    let mut chains = [s.splat(black_box(1.0)); C];
    for _ in 0..rounds {
        for x in &mut chains {
            *x = M::multiply_add(s, factor, term, *x);
        }
    }
    let mut total = s.zero();
    for x in chains {
        total = s.add(total, x);
    }
    black_box(s.sum(total));
    (rounds * C * S::N * 2 * M::PER_LANE) as f64
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_repeated_until_two_agree_and_the_best_counts() {
        let best_of = |readings: &[f64]| {
            let mut left = readings.iter().copied();
            (settled(|| left.next().expect("another reading was not due")), left.len())
        };
        assert_eq!(best_of(&[195.0, 381.0, 385.0, 999.0]), (385.0, 1));
        assert_eq!(best_of(&[385.0, 380.0, 999.0]), (385.0, 1));
        assert_eq!(best_of(&[1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 9.0]), (2.0, 1));
    }

    #[test]
    fn every_thread_counts_in_the_same_window() {
        let piece = |thread: usize, _: usize| {
            std::thread::sleep(Duration::from_millis(1));
            if thread == 0 { 1.0 } else { 1000.0 }
        };
        let (one, three) = (rate(Par::serial(), piece), rate(Par::serial().threads(3), piece));
        assert!(one > 0.0 && one < 1000.0, "{one} pieces a second");
        assert!(three > 10.0 * one, "{three} against {one}");
    }
}
