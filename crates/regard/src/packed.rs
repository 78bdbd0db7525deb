//! Sequences end to end in one tensor, without padding: what layers and encoders pass on.
//!
//! Row `t` of x `[T, E]` is a token; sequence `s` has the rows `offsets[s]..offsets[s + 1]`, and `positions[t]` is where a token stands in
//! its own sequence. Lengths and positions are known on the host, so that plans are made without reading a tensor back.

use crate::{Error, door};
use burn::tensor::Tensor;
use regard_core::Error as CoreError;
use std::ops::Range;
use std::sync::Arc;

/// Sequences of any lengths, 0 included, one behind the other.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use regard::{Attention, Packed};
///
/// let x = Tensor::<2>::zeros([5, 8], &Device::flex());
/// let packed = Packed::new(x, &[2, 0, 3])?;
/// assert_eq!((packed.offsets(), packed.positions()), (&[0, 2, 2, 5][..], &[0, 1, 0, 1, 2][..]));
/// let inside = packed.attention(Attention::causal()); // no token sees another sequence
/// # let _ = inside;
/// # Ok::<(), regard::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Packed {
    x: Tensor<2>,
    offsets: Arc<[usize]>,
    positions: Arc<[usize]>,
}

impl Packed {
    /// Sequences of these lengths, with positions 0, 1, 2 … in each.
    ///
    /// # Errors
    /// If the lengths do not add up to the rows of x.
    pub fn new(x: Tensor<2>, lengths: &[usize]) -> Result<Self, Error> {
        let positions: Arc<[usize]> = lengths.iter().flat_map(|&length| 0..length).take(x.dims()[0].saturating_add(1)).collect();
        Self::with_positions(x, lengths, positions)
    }

    /// Sequences of these lengths whose tokens stand at positions of their own: what is left of a sequence keeps its places.
    ///
    /// # Errors
    /// If the lengths or the positions do not fit the rows of x, or positions do not rise inside a sequence.
    pub fn with_positions(x: Tensor<2>, lengths: &[usize], positions: impl Into<Arc<[usize]>>) -> Result<Self, Error> {
        let (rows, positions) = (x.dims()[0], positions.into());
        let offsets = offsets(lengths, rows)?;
        door::expect("positions", &[positions.len()], &[rows])?;
        for (sequence, range) in offsets.windows(2).map(|ends| ends[0]..ends[1]).enumerate() {
            check_rising(sequence, &positions[range])?;
        }
        Ok(Packed { x, offsets, positions })
    }

    /// The same sequences with other values, `[T, E']`.
    ///
    /// # Errors
    /// If the number of rows is another.
    pub fn with_x(self, x: Tensor<2>) -> Result<Self, Error> {
        let [_, width] = x.dims();
        door::expect("x", &x.dims(), &[self.tokens(), width])?;
        Ok(Packed { x, ..self })
    }

    /// The tokens, `[T, E]`.
    pub fn x(&self) -> &Tensor<2> {
        &self.x
    }

    /// The tokens, `[T, E]`, given away.
    pub fn into_x(self) -> Tensor<2> {
        self.x
    }

    /// T, the tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }

    /// B, the number of sequences.
    pub fn sequences(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Where sequences start, and T: B + 1 rising numbers.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Where each token stands in its own sequence, `[T]`.
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// The rows of each sequence.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        self.offsets.windows(2).map(|ends| ends[0]..ends[1])
    }

    /// The tokens of each sequence.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = usize> {
        self.ranges().map(|range| range.len())
    }

    /// Attention that stays inside these sequences, for `q`, `k`, `v` of shape `[1, H, T, D]`.
    #[must_use]
    pub fn attention(&self, how: crate::Attention) -> crate::Attention {
        how.offsets(self.offsets.clone(), self.offsets.clone())
    }
}

/// Starts of sequences of these lengths, which must fill `rows`.
fn offsets(lengths: &[usize], rows: usize) -> Result<Arc<[usize]>, Error> {
    let mut offsets = vec![0usize];
    for length in lengths {
        offsets.push(offsets[offsets.len() - 1].saturating_add(*length));
    }
    let total = offsets[lengths.len()];
    if total != rows {
        let message = format!("{} sequences have {total} tokens together, x has {rows} rows", lengths.len());
        return Err(CoreError::Value { name: "lengths", message }.into());
    }
    Ok(offsets.into())
}

fn check_rising(sequence: usize, positions: &[usize]) -> Result<(), Error> {
    let fall = positions.windows(2).position(|pair| pair[0] >= pair[1]);
    fall.map_or(Ok(()), |at| {
        let message =
            format!("sequence {sequence} has {} at token {at} and {} behind it; they must rise", positions[at], positions[at + 1]);
        Err(CoreError::Value { name: "positions", message }.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn x(rows: usize) -> Tensor<2> {
        Tensor::zeros([rows, 4], &Device::flex())
    }

    fn refusal(result: Result<Packed, Error>) -> String {
        result.expect_err("it does not fit").to_string()
    }

    #[test]
    fn lengths_become_offsets_and_positions() {
        let packed = Packed::new(x(5), &[0, 2, 0, 3, 0]).unwrap();
        assert_eq!((packed.sequences(), packed.tokens()), (5, 5));
        assert_eq!(packed.offsets(), [0, 0, 2, 2, 5, 5]);
        assert_eq!(packed.positions(), [0, 1, 0, 1, 2]);
        assert!(packed.lengths().eq([0, 2, 0, 3, 0]));
        let none = Packed::new(x(0), &[]).unwrap();
        assert_eq!((none.sequences(), none.tokens(), none.offsets()), (0, 0, &[0][..]));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_numbers() {
        assert_eq!(refusal(Packed::new(x(5), &[2, 2])), "lengths: 2 sequences have 4 tokens together, x has 5 rows");
        assert!(refusal(Packed::new(x(5), &[usize::MAX, 7])).contains("x has 5 rows"));
        assert_eq!(refusal(Packed::with_positions(x(3), &[3], vec![0, 1])), "positions has shape [2], expected [3]");
        let falling = refusal(Packed::with_positions(x(4), &[1, 3], vec![9, 4, 6, 6]));
        assert_eq!(falling, "positions: sequence 1 has 6 at token 1 and 6 behind it; they must rise");
        let packed = Packed::new(x(5), &[5]).unwrap();
        assert_eq!(refusal(packed.with_x(x(4))), "x has shape [4, 4], expected [5, 4]");
    }
}
