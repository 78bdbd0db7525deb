//! Kernels of row operations, compiled here rather than by whoever calls them. The operations are generic over the storage type, and every
//! one of them is a kernel for every level: without this list each crate that calls one compiles it again, for minutes.
//!
//! It rests on [`crate::simd::dispatch`] being a generic function that is never inlined: those are shared with later crates, as far
//! as this crate made them. Ids are `i64` here; other ids, and maps between storage types, work as well and are compiled where they are called.

use super::{Linear, Turns, activation, cross_entropy, embedding, norm, softmax, squares, swiglu};
use crate::view::Element;
use half::{bf16, f16};
use std::hint::black_box;

/// Never read; the operations that it names are compiled.
#[used]
static COMPILED: [fn(); 3] = [operations::<f32>, operations::<bf16>, operations::<f16>];

/// Names every operation on one storage type.
fn operations<T: Element>() {
    black_box(activation::forward::<T> as fn(_, _, _, _) -> _);
    black_box(activation::backward::<T> as fn(_, _, _, _, _) -> _);
    black_box(swiglu::forward::<T> as fn(_, _, _, _) -> _);
    black_box(swiglu::backward::<T> as fn(_, _, _, _) -> _);
    black_box(softmax::forward::<T> as fn(_, _, _) -> _);
    black_box(softmax::backward::<T> as fn(_, _, _, _) -> _);
    black_box(softmax::log_forward::<T> as fn(_, _, _) -> _);
    black_box(softmax::log_backward::<T> as fn(_, _, _, _) -> _);
    black_box(cross_entropy::forward::<T, i64> as fn(_, _, _, _) -> _);
    black_box(cross_entropy::backward::<T, i64> as fn(_, _, _, _, _) -> _);
    black_box(norm::forward::<T> as fn(_, _, _, _) -> _);
    black_box(norm::forward_added::<T> as fn(_, _, _, _) -> _);
    black_box(norm::backward::<T> as fn(_, _, _, _, _) -> _);
    black_box(embedding::forward::<T, i64> as fn(_, _, _, _) -> _);
    black_box(embedding::backward::<T, i64> as fn(_, _, _, _) -> _);
    black_box(Turns::forward::<T> as fn(_, _, _, _) -> _);
    black_box(Turns::backward::<T> as fn(_, _, _, _) -> _);
    black_box(Linear::<T>::forward::<T> as fn(_, _, _, _, _) -> _);
    black_box(Linear::<T>::backward::<T> as fn(_, _, _, _, _) -> _);
    black_box(squares::sum_of_squares::<T> as fn(_, _) -> _);
}
