//! Keys, and queries where they have codes, as codewords: a row is replaced, its gradient goes straight through.

use super::Attention;
use super::composed::Call;
use super::rules::Constant;
use crate::Error;
use burn::tensor::{DType, Tensor, TensorData};
use regard_core::mechanism::{Coded, Trace};

/// Keys at distances below a reach that are left out, or read as they are.
pub(super) struct Near {
    pub(super) reach: i64,
    /// `[B, G, M, Dk]`.
    pub(super) keys: Option<Tensor<4>>,
}

/// `[B, H, N, Dv]`.
pub(super) fn attention(coded: &Coded<'_>, traces: &[Trace], how: &Attention, [q, k, v]: [Tensor<4>; 3]) -> Result<Tensor<4>, Error> {
    let codes = |name: &str| traces.iter().find(|trace| trace.name == name);
    let read = |x: &Tensor<4>, words: &Option<Constant>, name: &str| match (words, codes(name)) {
        (Some(words), Some(codes)) => through(x, words, codes),
        _ => x.clone(),
    };
    let own = coded.near_is_read.then(|| k.clone());
    let keys = read(&k, &how.rules.codebook, "codes");
    let queries = read(&q, &how.rules.codebook_q, "codes_q");
    let mut call = Call::new(coded.problem, how, [queries, keys, v]);
    let keys = own.map(|keys| keys.cast(call.dtype));
    call.near = (coded.near > 0).then(|| Near { reach: i64::try_from(coded.near).unwrap_or(i64::MAX).min(1 << 30), keys });
    call.attention()
}

/// The codeword of every row, with the row's gradient.
fn through(x: &Tensor<4>, words: &Constant, codes: &Trace) -> Tensor<4> {
    let [_, heads, tokens, _] = x.dims();
    let dtype = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let word = |(at, &code): (usize, &i64)| words.row(at / tokens % heads, code.max(0) as usize);
    let nearest: Vec<f32> = codes.values.iter().enumerate().flat_map(word).copied().collect();
    let nearest = Tensor::<4>::from_data(TensorData::new(nearest, x.dims()), (&x.device(), dtype));
    let x = x.clone().cast(dtype);
    x.clone() - x.detach() + nearest
}
