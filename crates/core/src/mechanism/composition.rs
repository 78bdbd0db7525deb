//! What a plan comes to for devices without a kernel of ours: choices as integers, and what they stand for.

use super::clustered::Merging;
use super::nats::Typing;
use crate::Problem;

/// A plan that tensor operations can follow.
#[derive(Debug)]
pub enum Composition<'p> {
    /// One exact problem.
    Exact(&'p Problem<'p>),
    /// Keys with types, whose logits have a gradient.
    Typed(Typing<'p>),
    /// Clusters of tokens.
    Merged(Merging<'p>),
}
