//! What does not fit is refused with its numbers, on both routes, before any work.

use burn::tensor::{Bool, DType, Device, Tensor};
use regard::mechanism::Local;
use regard::{Attention, Dropout, attention};

fn zeros(shape: [usize; 4]) -> Tensor<4> {
    Tensor::zeros(shape, &Device::flex())
}

/// The message of both routes, which must agree.
fn refusal([q, k, v]: [Tensor<4>; 3], how: Attention) -> String {
    let fused = attention(q.clone(), k.clone(), v.clone(), &how).expect_err("fused took it").to_string();
    let composed = attention(q, k, v, &how.unfused()).expect_err("composed took it").to_string();
    assert_eq!(fused, composed);
    fused
}

fn refused(how: Attention) -> String {
    refusal([zeros([2, 4, 5, 8]), zeros([2, 2, 6, 8]), zeros([2, 2, 6, 3])], how)
}

#[test]
fn shapes() {
    let found = refusal([zeros([2, 4, 5, 8]), zeros([2, 3, 6, 8]), zeros([2, 3, 6, 8])], Attention::full());
    assert_eq!(found, "4 query heads do not divide over 3 key/value heads");
    let found = refusal([zeros([2, 4, 5, 8]), zeros([2, 2, 6, 7]), zeros([2, 2, 6, 8])], Attention::full());
    assert_eq!(found, "k has shape [2, 2, 6, 7], expected [2, 2, 6, 8]");
    let device = Device::flex();
    let found = refused(Attention::full().key_bias(Tensor::zeros([2, 4, 6], &device)));
    assert_eq!(found, "key_bias has shape [2, 4, 6], expected [2, 2, 6]");
    let found = refused(Attention::full().bias(zeros([2, 2, 5, 6])));
    assert_eq!(found, "bias has shape [2, 2, 5, 6], expected [2, 4, 5, 6]");
    let found = refused(Attention::full().mask(Tensor::<4, Bool>::full([1, 1, 5, 7], true, &device)));
    assert_eq!(found, "mask has shape [1, 1, 5, 7], expected [2, 4, 5, 6]");
    let found = refused(Attention::full().lengths([6, 7]));
    assert_eq!(found, "lengths: 7 in batch row 1 exceeds the 6 that are there");
    let found = refused(Attention::full().until([1; 5]));
    assert_eq!(found, "until has shape [5], expected [24]");
}

#[test]
fn dtypes() {
    let q = zeros([2, 4, 5, 8]);
    let k = zeros([2, 4, 5, 8]).cast(DType::BF16);
    assert_eq!(refusal([q.clone(), k, q], Attention::full()), "k is bf16, expected f32 as q is");
}

#[test]
fn options() {
    assert_eq!(refused(Attention::full().window(0)), "window: 0 keys: a window has at least 1");
    assert_eq!(refused(Attention::full().softcap(-1.0)), "softcap: -1 is not above 0");
    let dropout = Dropout { probability: 1.0, seed: 1, step: 0 };
    assert_eq!(refused(Attention::full().dropout(dropout)), "dropout: 1 is outside [0, 1)");
    let found = refused(Attention::full().mechanism(Local::default()).alibi());
    assert_eq!(found, "options of exact attention are set beside the mechanism local, which has its own");
    let found = refused(Attention::full().offsets([0, 5], [0, 6]));
    assert_eq!(found, "packed sequences need a batch of 1, found 2");
}

#[test]
fn strategies_of_checkpointing() {
    let tensor = |device: Device| Tensor::<4>::zeros([1, 2, 3, 4], &device);
    let (a, b) = (tensor(Device::flex().autodiff()), tensor(Device::flex().autodiff().gradient_checkpointing()));
    let found = refusal([a.clone(), b, a], Attention::full());
    assert_eq!(found, "k has another strategy of gradient checkpointing than the tensors before it");
}
