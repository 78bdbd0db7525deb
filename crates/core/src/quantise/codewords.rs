//! The nearest codeword of every row: `argmin_s ‖k - C_s‖²`, which is `argmax_s k·C_s - ‖C_s‖²/2`.
//!
//! Rows stand in the lanes, codewords are broadcast; a register tile starts at `-‖C_s‖²/2`, and best, second best and the best's
//! number run along in lanes. Where the two best are nearer to one another than an f32 sum can be off, all codewords are compared
//! by their distances in f64, ties to the lowest number: so a code depends neither on the level nor on threads.

use crate::Par;
use crate::exact::pack;
use crate::simd::{Aligned, Along, Lanes, Rows, Task, dispatch, product};
use crate::view::{DisjointRows, StridedMut, View};
use std::ops::Range;

/// Rows that one thread looks up at a time.
const PIECE: usize = 512;
/// Codewords are padded to a multiple of this, and rows of them to as many values.
pub(crate) const PAD: usize = 16;

/// The codewords of one head.
#[derive(Debug, Clone)]
pub(crate) struct Codewords {
    count: usize,
    width: usize,
    stride: usize,
    rows: Aligned<f32>,
    /// `‖C_s‖²/2`, infinite beyond the last.
    halves: Vec<f32>,
    /// The largest `‖C_s‖`.
    longest: f64,
}

impl Codewords {
    /// Of head `h` of `[1, heads, S, D]`.
    pub(crate) fn of(view: &View<'_>, h: usize) -> Self {
        let [_, _, count, width] = view.shape();
        let (padded, stride) = (count.next_multiple_of(PAD), width.next_multiple_of(PAD));
        let mut rows = Aligned::zeros(padded * stride);
        let (mut halves, mut longest) = (vec![f32::INFINITY; padded], 0.0f64);
        for (code, row) in rows.take(padded * stride).chunks_mut(stride).take(count).enumerate() {
            row[..width].iter_mut().enumerate().for_each(|(d, x)| *x = view.at([0, h, code, d]));
            let square: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
            halves[code] = (square / 2.0) as f32;
            longest = longest.max(square.sqrt());
        }
        Codewords { count, width, stride, rows, halves, longest }
    }

    /// S.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// S, padded; codewords beyond S are zeros.
    pub(crate) fn padded(&self) -> usize {
        self.halves.len()
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// All rows, padded.
    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows::new(self.rows.get(self.padded() * self.stride), self.stride)
    }

    /// One codeword.
    pub(crate) fn row(&self, code: usize) -> &[f32] {
        &self.rows.get(self.padded() * self.stride)[code * self.stride..][..self.width]
    }

    /// The codes of rows `rows` of head `[b, h]`.
    pub(crate) fn nearest(&self, view: &View<'_>, head: [usize; 2], rows: Range<usize>, into: &mut [u32], par: Par) {
        let pieces: Vec<Range<usize>> = (0..rows.len()).step_by(PIECE).map(|at| at..rows.len().min(at + PIECE)).collect();
        let mut codes = StridedMut::contiguous(into, [1, 1, rows.len(), 1], "codes").expect("one a row");
        let codes = DisjointRows::new(&mut codes, &pieces);
        par.run(pieces.len(), 2.0 * (rows.len() * self.count * self.width) as f64, |jobs| {
            let mut scratch = Scratch::default();
            while let Some(piece) = jobs.take() {
                let mut claim = codes.claim(0, 0, piece);
                let range = rows.start + pieces[piece].start..rows.start + pieces[piece].end;
                let into = claim.together().expect("codes stand side by side");
                dispatch(par.level_in_use(), Search { codewords: self, view, head, rows: range, into, scratch: &mut scratch });
            }
        });
    }

    /// How far the difference of two f32 scores of a row of this length can be off.
    #[inline(always)]
    fn slack(&self, square: f64) -> f64 {
        let largest = 1.001 * square.sqrt() * self.longest + self.longest * self.longest / 2.0;
        2.0 * (self.width + 8) as f64 * f64::from(f32::EPSILON) / 2.0 * largest
    }

    /// By distances in f64.
    #[inline(always)]
    fn nearest_exactly(&self, row: &[f32]) -> u32 {
        let (mut best, mut least) = (0, f64::INFINITY);
        for code in 0..self.count {
            let distance = squared_distance(row, self.row(code));
            if distance < least {
                (best, least) = (code, distance);
            }
        }
        best as u32
    }
}

/// In eight interleaved parts, so that the order of the sum is the same at every level.
#[inline(always)]
pub(crate) fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    const PARTS: usize = 8;
    let mut sums = [0.0f64; PARTS];
    let ((a, rest_of_a), (b, rest_of_b)) = (a.as_chunks::<PARTS>(), b.as_chunks::<PARTS>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, &x), &y) in sums.iter_mut().zip(a).zip(b) {
            let difference = f64::from(x) - f64::from(y);
            *sum += difference * difference;
        }
    }
    for ((sum, &x), &y) in sums.iter_mut().zip(rest_of_a).zip(rest_of_b) {
        let difference = f64::from(x) - f64::from(y);
        *sum += difference * difference;
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Rows of a panel as they stand and transposed.
#[derive(Default)]
struct Scratch {
    staged: Aligned<f32>,
    panel: Aligned<f32>,
}

/// The codes of some rows.
struct Search<'a> {
    codewords: &'a Codewords,
    view: &'a View<'a>,
    head: [usize; 2],
    rows: Range<usize>,
    into: &'a mut [u32],
    scratch: &'a mut Scratch,
}

impl Task for Search<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let (width, stride) = (self.codewords.width, self.codewords.width.next_multiple_of(S::N));
        let staged = self.scratch.staged.take(2 * S::N * stride);
        let panel = self.scratch.panel.take(stride * 2 * S::N);
        for (piece, into) in self.into.chunks_mut(2 * S::N).enumerate() {
            let first = self.rows.start + piece * 2 * S::N;
            pack::stage_rows(s, self.view, self.head, first..first + into.len(), staged);
            pack::transpose_panel(s, staged, width, panel, None);
            let [best, second, code, square] = run_through::<S, R>(s, self.codewords, panel);
            for (lane, into) in into.iter_mut().enumerate() {
                let decided = f64::from(best[lane]) - f64::from(second[lane]) > self.codewords.slack(square[lane].into());
                *into = if decided { code[lane] as u32 } else { self.codewords.nearest_exactly(&staged[lane * stride..][..width]) };
            }
        }
    }
}

/// Best and second best score of each row of a panel, the number of the best, and the square of the row's length.
#[inline(always)]
fn run_through<S: Lanes, const R: usize>(s: S, codewords: &Codewords, panel: &[f32]) -> [[f32; 32]; 4] {
    let lowest = s.splat(f32::NEG_INFINITY);
    let (mut best, mut second, mut code) = ([lowest; 2], [lowest; 2], [s.zero(); 2]);
    for first in (0..codewords.padded()).step_by(R) {
        let mut start = [[s.zero(); 2]; R];
        for (row, half) in start.iter_mut().zip(&codewords.halves[first..first + R]) {
            *row = [s.splat(-half); 2];
        }
        let x = product::<S, _, R, 2>(s, start, Along(codewords.rows().from(first)), Rows::new(panel, 2 * S::N), codewords.width);
        for (r, row) in x.into_iter().enumerate() {
            let number = s.splat((first + r) as f32);
            for c in 0..2 {
                second[c] = s.max(s.min(row[c], best[c]), second[c]);
                code[c] = s.select(s.greater(row[c], best[c]), number, code[c]);
                best[c] = s.max(row[c], best[c]);
            }
        }
    }
    let mut square = [s.zero(); 2];
    for t in 0..codewords.width {
        for (c, sum) in square.iter_mut().enumerate() {
            let x = s.load(&panel[(t * 2 + c) * S::N..]);
            *sum = s.mul_add(x, x, *sum);
        }
    }
    let mut all = [[0.0f32; 32]; 4];
    for (lanes, registers) in all.iter_mut().zip([best, second, code, square]) {
        s.store(lanes, registers[0]);
        s.store(&mut lanes[S::N..], registers[1]);
    }
    all
}
