//! What became of the tokens: which rows stand where, and what each consists of.
//!
//! Output row r stands at the position of input row `kept[r]` and is the mean of its members weighted by size,
//! `y_r = Σ_{map[i] = r} w_i x_i`, `w_i = size_i / Σ size`. A token that merged with nobody is copied, one that is gone is nobody's
//! member: pruning and merging are one formula. Backward: `dx_i = w_i dy_map[i]`, 0 for what is gone.

use super::Tokens;
use crate::rows::matrix::{Matrix, MatrixMut, check_length};
use crate::rows::sweep::{Sweep, blocks, load, store, sweep};
use crate::simd::{Aligned, Lanes};
use crate::view::{DisjointRows, Element};
use crate::{Error, Par};
use std::ops::Range;

/// The outcome of one reducer, or of several after one another, on packed sequences of T rows, of which T' are left.
#[derive(Debug, Clone, PartialEq)]
pub struct Reduction {
    offsets: Vec<usize>,
    kept: Vec<usize>,
    map: Vec<Option<usize>>,
    sizes: Vec<f32>,
    /// `[T]`, the share of an input row in its output row; 0 for what is gone.
    weights: Vec<f32>,
    members: Members,
}

/// Which input rows an output row consists of, ascending: those of output row r are `rows[starts[r]..starts[r + 1]]`.
#[derive(Debug, Clone, PartialEq)]
struct Members {
    starts: Vec<usize>,
    rows: Vec<usize>,
}

impl Members {
    fn new(map: &[Option<usize>], outputs: usize) -> Self {
        let mut starts = vec![0; outputs + 1];
        map.iter().flatten().for_each(|&r| starts[r + 1] += 1);
        (0..outputs).for_each(|r| starts[r + 1] += starts[r]);
        let (mut next, mut rows) = (starts.clone(), vec![0; starts[outputs]]);
        for (row, r) in map.iter().enumerate().filter_map(|(row, r)| r.map(|r| (row, r))) {
            rows[next[r]] = row;
            next[r] += 1;
        }
        Members { starts, rows }
    }

    fn of(&self, r: usize) -> &[usize] {
        &self.rows[self.starts[r]..self.starts[r + 1]]
    }
}

impl Reduction {
    /// From the row that each row goes to: itself where it stays, none where it is gone. A row that another goes to stays.
    pub(super) fn new<T: Element>(tokens: &Tokens<'_, T>, parents: &[Option<usize>]) -> Self {
        let kept: Vec<usize> = (0..parents.len()).filter(|&row| parents[row] == Some(row)).collect();
        let place = |row: &usize| kept.partition_point(|kept| kept < row);
        let map: Vec<Option<usize>> = parents.iter().map(|parent| parent.as_ref().map(place)).collect();
        let mut sizes = vec![0.0; kept.len()];
        for (row, r) in map.iter().enumerate().filter_map(|(row, r)| r.map(|r| (row, r))) {
            sizes[r] += tokens.size(row);
        }
        let weights = map.iter().enumerate().map(|(row, r)| r.map_or(0.0, |r| tokens.size(row) / sizes[r])).collect();
        let offsets = tokens.offsets.iter().map(place).collect();
        let members = Members::new(&map, kept.len());
        Reduction { offsets, kept, map, sizes, weights, members }
    }

    /// `[S+1]`, the sequences of the output.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// `[T']`, ascending: the input row at whose position each output row stands.
    pub fn kept(&self) -> &[usize] {
        &self.kept
    }

    /// `[T]`: the output row that each input row went into, if any.
    pub fn map(&self) -> &[Option<usize>] {
        &self.map
    }

    /// `[T']`: how many original tokens each output row stands for.
    pub fn sizes(&self) -> &[f32] {
        &self.sizes
    }

    /// `[T']`, `ln size`: added to the keys of later layers, it makes attention over merged tokens proportional (Bolya et al. 2023).
    pub fn log_sizes(&self) -> Vec<f32> {
        self.sizes.iter().map(|size| size.ln()).collect()
    }

    /// The outcome of `earlier` and then this one, from the rows that `earlier` began with. This one's tokens must have carried
    /// the sizes of `earlier`.
    ///
    /// # Errors
    /// If this one did not begin with as many rows as `earlier` left.
    pub fn after(&self, earlier: &Reduction) -> Result<Reduction, Error> {
        check_length(self.map.len(), earlier.kept.len(), "tokens")?;
        let map: Vec<Option<usize>> = earlier.map.iter().map(|row| row.and_then(|row| self.map[row])).collect();
        let share = |(weight, row): (&f32, &Option<usize>)| row.map_or(0.0, |row| weight * self.weights[row]);
        Ok(Reduction {
            offsets: self.offsets.clone(),
            kept: self.kept.iter().map(|&row| earlier.kept[row]).collect(),
            sizes: self.sizes.clone(),
            weights: earlier.weights.iter().zip(&earlier.map).map(share).collect(),
            members: Members::new(&map, self.kept.len()),
            map,
        })
    }

    /// `y [T', E]` from `x [T, E]`.
    ///
    /// # Errors
    /// If a shape does not fit, or the elements of a row are not neighbours.
    pub fn apply<T: Element>(&self, x: &Matrix<'_, T>, y: &mut MatrixMut<'_, T>, par: Par) -> Result<(), Error> {
        let [_, width] = x.shape();
        x.check([self.map.len(), width], "x")?;
        y.check([self.kept.len(), width], "y")?;
        let blocks = blocks(y.shape());
        let work = Apply { reduction: self, x, y: y.share(&blocks) };
        sweep(&work, &blocks, self.map.len() * width, par);
        Ok(())
    }

    /// `dx [T, E]` from `dy [T', E]`.
    ///
    /// # Errors
    /// As [`Reduction::apply`].
    pub fn backward<T: Element>(&self, dy: &Matrix<'_, T>, dx: &mut MatrixMut<'_, T>, par: Par) -> Result<(), Error> {
        let [_, width] = dy.shape();
        dy.check([self.kept.len(), width], "dy")?;
        dx.check([self.map.len(), width], "dx")?;
        let blocks = blocks(dx.shape());
        let work = Backward { reduction: self, dy, dx: dx.share(&blocks) };
        sweep(&work, &blocks, self.map.len() * width, par);
        Ok(())
    }
}

struct Apply<'a, T> {
    reduction: &'a Reduction,
    x: &'a Matrix<'a, T>,
    y: DisjointRows<'a, T>,
}

impl<T: Element> Sweep for Apply<'_, T> {
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, scratch: &mut Aligned<f32>) {
        let mut y = self.y.claim(0, 0, block);
        let sum = scratch.take(self.x.shape()[1]);
        for (i, r) in rows.enumerate() {
            let members = self.reduction.members.of(r);
            if let [only] = members {
                y.row(i).copy_from_slice(self.x.row(*only));
                continue;
            }
            sum.fill(0.0);
            for &member in members {
                let (x, weight) = (self.x.row(member), s.splat(self.reduction.weights[member]));
                for at in (0..x.len()).step_by(S::N) {
                    store(s, sum, at, s.mul_add(weight, load(s, x, at, 0.0), load(s, sum, at, 0.0)));
                }
            }
            T::narrow(sum, y.row(i));
        }
    }
}

struct Backward<'a, T> {
    reduction: &'a Reduction,
    dy: &'a Matrix<'a, T>,
    dx: DisjointRows<'a, T>,
}

impl<T: Element> Sweep for Backward<'_, T> {
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let mut dx = self.dx.claim(0, 0, block);
        for (i, row) in rows.enumerate() {
            let Some(r) = self.reduction.map[row] else {
                dx.row(i).fill(T::default());
                continue;
            };
            let (dy, weight) = (self.dy.row(r), s.splat(self.reduction.weights[row]));
            for at in (0..dy.len()).step_by(S::N) {
                store(s, dx.row(i), at, s.mul(weight, load(s, dy, at, 0.0)));
            }
        }
    }
}
