//! One vector per text from the vectors of its tokens, as sentence-transformers makes it (Reimers, Gurevych 2019).

use burn::tensor::Tensor;
use regard::Packed;

/// Shorter vectors are not stretched to length 1.
const SHORTEST: f64 = 1e-12;

/// Which vector stands for a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// The mean over all tokens, special ones included.
    #[default]
    Mean,
    /// The first token.
    First,
}

/// A vector per sequence, `[B, E]`; zeros for a sequence without tokens. `normalise` divides each by its Euclidean norm.
pub fn pool(packed: &Packed, pooling: Pooling, normalise: bool) -> Tensor<2> {
    let [_, width] = packed.x().dims();
    let device = packed.x().device();
    let rows: Vec<Tensor<2>> = packed
        .ranges()
        .map(|range| match pooling {
            _ if range.is_empty() => Tensor::zeros([1, width], (&device, packed.x().dtype())),
            Pooling::Mean => packed.x().clone().narrow(0, range.start, range.len()).mean_dim(0),
            Pooling::First => packed.x().clone().narrow(0, range.start, 1),
        })
        .collect();
    if rows.is_empty() {
        return Tensor::zeros([0, width], (&device, packed.x().dtype()));
    }
    let vectors = Tensor::cat(rows, 0);
    if !normalise {
        return vectors;
    }
    let norm = (vectors.clone() * vectors.clone()).sum_dim(1).sqrt();
    vectors / norm.clamp_min(SHORTEST)
}
