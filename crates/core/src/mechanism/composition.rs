//! What a plan comes to for devices without a kernel of ours: choices as integers, and what they stand for.

use super::Trace;
use super::clustered::Merging;
use super::combined::Join;
use super::hyper::Sorted;
use super::nats::Typing;
use crate::Problem;
use crate::scan::Map;
use std::ops::Range;

/// A plan that tensor operations can follow.
#[derive(Debug)]
pub enum Composition<'p> {
    /// One exact problem.
    Exact(&'p Problem<'p>),
    /// Keys with types, whose logits have a gradient.
    Typed(Typing<'p>),
    /// Clusters of tokens.
    Merged(Merging<'p>),
    /// Codewords in place of keys.
    Coded(Coded<'p>),
    /// Features in place of exponentials.
    Summed(Summed<'p>),
    /// A sum that decays by gates.
    Decaying(Decaying),
    /// Listed keys of listed queries.
    Sorted(Sorted<'p>),
    /// Two of these.
    Joined(Box<Joined<'p>>),
}

/// An exact problem whose keys, and queries where they have codes, are read as codewords. Codes are among the traces of the plan.
#[derive(Debug)]
pub struct Coded<'p> {
    /// With keys and queries as they are.
    pub problem: &'p Problem<'p>,
    /// Keys at distances below this are excepted.
    pub near: usize,
    /// Whether those are read as they are; else nobody reads them.
    pub near_is_read: bool,
}

/// `o_i = Σ_j φ(q_i)·φ(k_j) v_j / (Σ_j φ(q_i)·φ(k_j) + ε)` over the keys that a problem lets queries see.
#[derive(Debug)]
pub struct Summed<'p> {
    /// For visibility.
    pub problem: &'p Problem<'p>,
    /// φ.
    pub map: Map,
    /// ε, where there is a denominator; 0 of it gives 0.
    pub epsilon: Option<f32>,
}

/// `S_t = diag(e^{g_t}) S_{t-1} + k_t v_tᵀ`, `o_t = scale S_tᵀ q_t`.
#[derive(Debug)]
pub struct Decaying {
    /// Batch row and rows of every sequence, ascending.
    pub sequences: Vec<(usize, Range<usize>)>,
    /// Factor on q.
    pub scale: f32,
}

/// Heads split between two plans, or a sum of both.
#[derive(Debug)]
pub struct Joined<'p> {
    /// Never a merge: that is [`Coded`].
    pub join: Join,
    /// The plans and what they chose.
    pub parts: [(Composition<'p>, Vec<Trace>); 2],
    /// Query heads and kv heads of each.
    pub heads: [[Range<usize>; 2]; 2],
}
