//! Rows hashed by direction, and put in order of their hashes.
//!
//! Bit t of a row's bin is `x·R_t > 0` for the columns of hyperplanes R `[Dk, bits]`: two rows at an angle a differ in each bit with
//! probability a/π (Charikar 2002). The rank of a bin is its inverse Gray code, `bin = rank ^ (rank >> 1)`, so that neighbouring ranks
//! differ in one bit. [`sorted`] is a stable radix sort of ranks; [`Stream`] gives numbers that depend on their index alone.

mod angular;
mod random;
mod sort;

pub(crate) use angular::{Hyperplanes, MOST_BITS, bin_of};
pub(crate) use random::Stream;
pub(crate) use sort::sorted;
