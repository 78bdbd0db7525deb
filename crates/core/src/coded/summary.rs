//! Counts and sums of values per code, of some of the keys of one sequence and kv head.
//!
//! Sums are carried in f64, so that keys can be taken out again, and kept beside in f32 for the tiles.

use super::layout::{Block, Sequence};
use crate::quantise::PAD;
use crate::simd::{Aligned, Lanes, Rows};
use crate::view::View;
use std::ops::Range;

/// What stands for the far keys.
#[derive(Debug, Clone)]
pub(crate) struct Summary {
    width: usize,
    stride: usize,
    /// Keys of each code, padded.
    counts: Vec<u32>,
    sums: Vec<f64>,
    rows: Aligned<f32>,
    /// Codes whose f32 row is behind.
    changed: Vec<u32>,
    is_changed: Vec<bool>,
    row: Vec<f32>,
    /// Keys that are held: below the first number, and from the second on.
    held: [usize; 2],
}

/// The keys of one kv head of a sequence.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) values: &'a View<'a>,
    pub(crate) head: [usize; 2],
    /// The row of key 0.
    pub(crate) first: usize,
    /// Their codes.
    pub(crate) codes: &'a [u32],
}

impl Summary {
    /// Of nothing, for so many codes and values of that width.
    pub(crate) fn new(codes: usize, width: usize, keys: usize) -> Self {
        let (padded, stride) = (codes.next_multiple_of(PAD), width.next_multiple_of(PAD));
        Summary {
            width,
            stride,
            counts: vec![0; padded],
            sums: vec![0.0; codes * width],
            rows: Aligned::zeros(padded * stride),
            changed: Vec::new(),
            is_changed: vec![false; padded],
            row: vec![0.0; width],
            held: [0, keys],
        }
    }

    pub(crate) fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// The sum of the values of a code.
    pub(crate) fn sum(&self, code: usize) -> &[f64] {
        &self.sums[code * self.width..][..self.width]
    }

    /// The same of all codes in f32, padded.
    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows::new(self.rows.get(self.counts.len() * self.stride), self.stride)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.counts.capacity() * size_of::<u32>()
            + self.sums.capacity() * size_of::<f64>()
            + self.counts.len() * self.stride * size_of::<f32>()
    }

    /// Holds what is far from a block.
    #[inline(always)]
    pub(crate) fn move_to<S: Lanes>(&mut self, s: S, keys: Keys<'_>, block: &Block) {
        let [before, after] = self.held;
        self.take_in(s, keys, before..block.before, 1.0);
        self.take_in(s, keys, block.before..before, -1.0);
        self.take_in(s, keys, after..block.after, -1.0);
        self.take_in(s, keys, block.after..after, 1.0);
        self.held = [block.before, block.after];
        self.bring_up_to_date();
    }

    #[inline(always)]
    fn take_in<S: Lanes>(&mut self, s: S, keys: Keys<'_>, range: Range<usize>, sign: f64) {
        let [b, g] = keys.head;
        let mut row = std::mem::take(&mut self.row);
        for key in range {
            keys.values.widen_row(s, [b, g, keys.first + key], &mut row);
            self.add(keys.codes[key] as usize, &row, sign);
        }
        self.row = row;
    }

    /// Takes a value in (1) or out (-1).
    #[inline(always)]
    pub(crate) fn add(&mut self, code: usize, row: &[f32], sign: f64) {
        let sums = &mut self.sums[code * self.width..][..self.width];
        self.counts[code] = self.counts[code].wrapping_add_signed(sign as i32);
        if self.counts[code] == 0 {
            sums.fill(0.0);
        } else {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += sign * f64::from(x));
        }
        if !self.is_changed[code] {
            self.is_changed[code] = true;
            self.changed.push(code as u32);
        }
    }

    /// Rounds the sums that changed.
    #[inline(always)]
    pub(crate) fn bring_up_to_date(&mut self) {
        let rows = self.rows.take(self.counts.len() * self.stride);
        for code in self.changed.drain(..) {
            let code = code as usize;
            let sums = &self.sums[code * self.width..][..self.width];
            rows[code * self.stride..][..self.width].iter_mut().zip(sums).for_each(|(row, &sum)| *row = sum as f32);
            self.is_changed[code] = false;
        }
    }
}

impl<'a> Keys<'a> {
    /// Of kv head `g` of a sequence.
    pub(crate) fn of(sequence: &Sequence, g: usize, values: &'a View<'a>, codes: &'a [u32]) -> Self {
        let [_, kv_heads, keys, _] = values.shape();
        let row = (sequence.batch * kv_heads + g) * keys;
        let codes = &codes[row + sequence.keys.start..row + sequence.keys.end];
        Keys { values, head: [sequence.batch, g], first: sequence.keys.start, codes }
    }
}
