//! One vector per text from the vectors of its tokens, as sentence-transformers makes it (Reimers, Gurevych 2019).

use super::Encoded;
use burn::tensor::{Tensor, TensorData};

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

/// A vector per sequence, `[B, E]`; zeros for a sequence without tokens. Vectors that stand for several tokens count as often.
/// `normalise` divides each by its Euclidean norm.
pub fn pool(encoded: &Encoded, pooling: Pooling, normalise: bool) -> Tensor<2> {
    let packed = &encoded.tokens;
    let sizes = encoded.sizes();
    let [_, width] = packed.x().dims();
    let device = packed.x().device();
    let rows: Vec<Tensor<2>> = packed
        .ranges()
        .map(|range| match pooling {
            _ if range.is_empty() => Tensor::zeros([1, width], (&device, packed.x().dtype())),
            Pooling::Mean => mean(packed.x().clone().narrow(0, range.start, range.len()), &sizes[range]),
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

/// The mean of rows `[T, E]`, each counted as often as its size says.
fn mean(rows: Tensor<2>, sizes: &[f32]) -> Tensor<2> {
    if sizes.iter().all(|&size| size == 1.0) {
        return rows.mean_dim(0);
    }
    let total: f32 = sizes.iter().sum();
    let shares: Vec<f32> = sizes.iter().map(|size| size / total).collect();
    let shares = Tensor::<2>::from_data(TensorData::new(shares, [1, sizes.len()]), &rows.device());
    shares.matmul(rows)
}
