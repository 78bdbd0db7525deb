//! Ranks of rows by the hyperplanes that they lie above.
//!
//! Products come from the register tile with hyperplanes in the lanes, summed in the order of channels at every level.

use super::Stream;
use crate::Par;
use crate::simd::{Along, Lanes, Rows, Task, dispatch, product};
use crate::view::{DisjointRows, StridedMut, View};
use std::ops::Range;

/// Rows that one thread hashes at a time.
const PIECE: usize = 512;
/// Lanes of the widest register.
const LANES: usize = 16;
/// Bits of a rank.
pub(crate) const MOST_BITS: usize = 32;

/// Normals of hyperplanes.
#[derive(Debug, Clone)]
pub(crate) struct Hyperplanes {
    width: usize,
    bits: usize,
    /// `[width][columns]`, columns filled up with zeros to whole registers.
    normals: Vec<f32>,
}

impl Hyperplanes {
    /// `[1, 1, width, bits]` as they are.
    pub(crate) fn given(view: &View<'_>) -> Self {
        let [_, _, width, bits] = view.shape();
        Self::new([width, bits], |d, t| view.at([0, 0, d, t]))
    }

    /// Normal numbers from a seed.
    pub(crate) fn drawn([width, bits]: [usize; 2], seed: u64) -> Self {
        let stream = Stream::new(&[seed]);
        Self::new([width, bits], |d, t| stream.normal((d * bits + t) as u64) as f32)
    }

    fn new([width, bits]: [usize; 2], at: impl Fn(usize, usize) -> f32) -> Self {
        let columns = bits.next_multiple_of(LANES);
        let mut normals = vec![0.0; width * columns];
        for (d, row) in normals.chunks_mut(columns).enumerate() {
            row[..bits].iter_mut().enumerate().for_each(|(t, x)| *x = at(d, t));
        }
        Hyperplanes { width, bits, normals }
    }

    pub(crate) fn bits(&self) -> usize {
        self.bits
    }

    /// Ranks of all rows, `[B, heads, rows]`.
    pub(crate) fn ranks(&self, view: &View<'_>, par: Par) -> Vec<u32> {
        let [batch, heads, rows, width] = view.shape();
        let mut ranks = vec![0; batch * heads * rows];
        let pieces: Vec<Range<usize>> = (0..rows).step_by(PIECE).map(|at| at..rows.min(at + PIECE)).collect();
        let mut all = StridedMut::contiguous(&mut ranks, [batch, heads, rows, 1], "ranks").expect("its own shape");
        let all = DisjointRows::new(&mut all, &pieces);
        let flops = 2.0 * (batch * heads * rows * width) as f64 * LANES as f64;
        par.run(batch * heads * pieces.len(), flops, |jobs| {
            while let Some(job) = jobs.take() {
                let [b, h, piece] = [job / pieces.len() / heads, job / pieces.len() % heads, job % pieces.len()];
                let mut claim = all.claim(b, h, piece);
                let into = claim.together().expect("rows of one number follow one another");
                dispatch(par.level_in_use(), Hash { planes: self, view, head: [b, h], rows: pieces[piece].clone(), into });
            }
        });
        drop(all);
        ranks
    }
}

/// Ranks of some rows of a head.
struct Hash<'a> {
    planes: &'a Hyperplanes,
    view: &'a View<'a>,
    head: [usize; 2],
    rows: Range<usize>,
    into: &'a mut [u32],
}

impl Task for Hash<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Hash { planes, view, head: [b, h], rows, into } = self;
        let (width, columns) = (planes.width, planes.bits.next_multiple_of(LANES));
        let mut staged = vec![0.0; R * width];
        let mut sides = [0.0f32; LANES];
        for (ranks, first) in into.chunks_mut(R).zip(rows.step_by(R)) {
            for (i, row) in staged.chunks_mut(width).enumerate().take(ranks.len()) {
                view.widen_row(s, [b, h, first + i], row);
            }
            ranks.fill(0);
            for column in (0..planes.bits).step_by(S::N) {
                let normals = Rows::new(&planes.normals[column..], columns);
                let tile = product::<S, _, R, 1>(s, [[s.zero(); 1]; R], Along(Rows::new(&staged, width)), normals, width);
                for (rank, [row]) in ranks.iter_mut().zip(tile) {
                    s.store(&mut sides, row);
                    for (t, &side) in sides[..S::N].iter().enumerate() {
                        *rank |= u32::from(side > 0.0) << ((column + t) % MOST_BITS);
                    }
                }
            }
            ranks.iter_mut().for_each(|rank| *rank = rank_of(*rank));
        }
    }
}

/// The number whose Gray code is `bin`.
fn rank_of(bin: u32) -> u32 {
    let mut rank = bin;
    for shift in [1, 2, 4, 8, 16] {
        rank ^= rank >> shift;
    }
    rank
}

/// The bin of a rank: its Gray code.
pub(crate) fn bin_of(rank: u32) -> u32 {
    rank ^ (rank >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_the_inverse_gray_code_of_its_bin() {
        for x in (0..1 << 12).chain([u32::MAX, u32::MAX - 1, 1 << 31, 0x1234_5678]) {
            assert_eq!([bin_of(rank_of(x)), rank_of(bin_of(x))], [x, x]);
            assert_eq!((bin_of(x) ^ bin_of(x.wrapping_add(1))).count_ones(), 1);
        }
    }
}
