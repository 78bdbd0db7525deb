//! What reducers read: packed sequences, rows of all of them end to end, nothing padded.

use crate::rows::matrix::{Matrix, check_length};
use crate::view::Element;
use crate::{Error, oracle};
use std::ops::Range;

/// Packed sequences between two layers. A reducer reads what its [`super::About`] lists and ignores the rest.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a, T = f32> {
    /// `[S+1]`: sequence `s` is rows `offsets[s]..offsets[s+1]`, the last of them is T.
    pub offsets: &'a [usize],
    /// `[T]`, how much each token is attended to, 1 on average: [`super::Uniform::score`].
    pub score: Option<&'a [f32]>,
    /// `[T, E]`, hidden states.
    pub x: Option<Matrix<'a, T>>,
    /// `[T, Dk]`, keys averaged over heads.
    pub keys: Option<Matrix<'a, T>>,
    /// `[T]`, how many original tokens each row stands for; 1 without it.
    pub sizes: Option<&'a [f32]>,
    /// `[T]`, a token with a negative one is deleted.
    pub gate_logits: Option<&'a [f32]>,
    /// `[T]`, tokens that stay what they are, beside the leading ones that a reducer protects.
    pub protected: Option<&'a [bool]>,
}

impl<'a, T: Element> Tokens<'a, T> {
    /// Sequences of which nothing is known yet.
    pub fn new(offsets: &'a [usize]) -> Self {
        Tokens { offsets, score: None, x: None, keys: None, sizes: None, gate_logits: None, protected: None }
    }

    /// T, rows of all sequences.
    pub fn rows(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// The rows of each sequence.
    pub(super) fn sequences(&self) -> impl Iterator<Item = Range<usize>> + use<'a, T> {
        self.offsets.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// Refuses offsets, shapes and sizes that do not fit.
    pub(super) fn check(&self) -> Result<(), Error> {
        let ascending = self.offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        if self.offsets.first() != Some(&0) || !ascending {
            return Err(Error::value("offsets", format!("offsets must ascend from 0, found {:?}", self.offsets)));
        }
        let rows = self.rows();
        for (tensor, length) in [
            ("score", self.score.map(<[_]>::len)),
            ("sizes", self.sizes.map(<[_]>::len)),
            ("gate_logits", self.gate_logits.map(<[_]>::len)),
            ("protected", self.protected.map(<[_]>::len)),
        ] {
            check_length(length.unwrap_or(rows), rows, tensor)?;
        }
        for (tensor, matrix) in [("x", &self.x), ("keys", &self.keys)] {
            matrix.as_ref().map_or(Ok(()), |matrix| matrix.check([rows, matrix.shape()[1]], tensor))?;
        }
        match self.sizes.unwrap_or_default().iter().enumerate().find(|(_, size)| !(**size > 0.0 && size.is_finite())) {
            Some((row, size)) => Err(Error::value("sizes", format!("row {row} stands for {size} tokens, a number above 0 is needed"))),
            None => Ok(()),
        }
    }

    /// How many tokens a row stands for.
    pub(super) fn size(&self, row: usize) -> f32 {
        self.sizes.map_or(1.0, |sizes| sizes[row])
    }

    /// `[T]`: whether a token is protected, as one of the first `leading` of its sequence or by name.
    pub(super) fn protected(&self, leading: usize) -> Vec<bool> {
        let mut protected = self.protected.map_or_else(|| vec![false; self.rows()], <[_]>::to_vec);
        for rows in self.sequences() {
            let end = rows.end.min(rows.start.saturating_add(leading));
            protected[rows.start..end].fill(true);
        }
        protected
    }

    /// One sequence for the oracle; what is absent is empty.
    pub(super) fn definition(&self, rows: Range<usize>) -> oracle::reduce::Sequence {
        let wide = |values: Option<&[f32]>| values.map_or_else(Vec::new, |x| x[rows.clone()].iter().map(|&x| f64::from(x)).collect());
        let vectors = |matrix: &Option<Matrix<'_, T>>| {
            let of_row = |matrix: &Matrix<'_, T>, row| (0..matrix.shape()[1]).map(|d| f64::from(matrix.at(row, d).to_f32())).collect();
            matrix.as_ref().map_or_else(Vec::new, |matrix| rows.clone().map(|row| of_row(matrix, row)).collect())
        };
        oracle::reduce::Sequence {
            length: rows.len(),
            score: wide(self.score),
            gate_logits: wide(self.gate_logits),
            x: vectors(&self.x),
            keys: vectors(&self.keys),
            protected: self.protected.map_or_else(|| vec![false; rows.len()], |protected| protected[rows.clone()].to_vec()),
        }
    }
}

/// A tensor that a reducer cannot do without.
pub(super) fn need<V>(value: Option<V>, reducer: &str, tensor: &str) -> Result<V, Error> {
    value.ok_or_else(|| Error::Combination(format!("{reducer} reads {tensor}, which is not there")))
}
