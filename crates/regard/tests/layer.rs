//! The layer against Burn's own multi-head attention, and packed sequences against one at a time.

mod common;

use burn::module::Module;
use burn::nn::Initializer;
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::tensor::{Bool, Device, Distribution, Tensor, TensorData};
use common::seeded;
use regard::mechanism::Local;
use regard::rows::Rotary;
use regard::{Attention, AttentionLayer, AttentionLayerConfig, LayerInput, Packed, Pass, Tally};

const WIDTH: usize = 48;
const HEADS: usize = 4;

fn normal<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn distance<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    (a - b).abs().max().into_scalar::<f32>()
}

/// Burn's layer without dropout, and ours with its record.
fn pair(device: &Device) -> (MultiHeadAttention, AttentionLayer) {
    let wide = Initializer::Normal { mean: 0.0, std: 0.2 };
    let theirs = MultiHeadAttentionConfig::new(WIDTH, HEADS).with_dropout(0.0).with_initializer(wide).init(device);
    let ours = AttentionLayerConfig::new(WIDTH, HEADS).init(device).unwrap();
    let ours = ours.load_record(theirs.clone().into_record());
    (theirs, ours)
}

fn bools<const D: usize>(shape: [usize; D], device: &Device, value: impl Fn(usize) -> bool) -> Tensor<D, Bool> {
    let count = shape.iter().product();
    Tensor::from_data(TensorData::new((0..count).map(value).collect::<Vec<bool>>(), shape), device)
}

#[test]
fn a_record_of_burns_layer_gives_the_same_output_under_every_mask() {
    let device = Device::flex();
    let _alone = seeded(&device, 1);
    let (theirs, ours) = pair(&device);
    let [batch, n] = [3, 37];
    let x = normal([batch, n, WIDTH], &device);
    let ends = bools([batch, n], &device, |i| i % n >= n - 5 * (i / n));
    let scattered = bools([batch, n], &device, |i| i % 5 == 3);
    let future = bools([batch, n, n], &device, |i| i % n > i / n % n);
    let masks =
        [(None, None), (Some(ends.clone()), None), (Some(scattered), None), (None, Some(future.clone())), (Some(ends), Some(future))];
    for (at, (pad, hidden)) in masks.into_iter().enumerate() {
        let (mut a, mut b) = (MhaInput::self_attn(x.clone()), LayerInput::self_attn(x.clone()));
        if let Some(pad) = pad {
            (a, b) = (a.mask_pad(pad.clone()), b.mask_pad(pad));
        }
        if let Some(hidden) = hidden {
            (a, b) = (a.mask_attn(hidden.clone()), b.mask_attn(hidden));
        }
        let (theirs, ours) = (theirs.forward(a).context, ours.forward(b).unwrap());
        assert!(theirs.clone().abs().mean().into_scalar::<f32>() > 0.1, "the outputs are not sensitive");
        let apart = distance(theirs, ours);
        assert!(apart <= 1e-5, "masks {at}: {apart:e}");
    }
}

#[test]
fn a_record_of_burns_layer_gives_the_same_gradients() {
    let device = Device::flex().autodiff();
    let _alone = seeded(&device, 2);
    let (theirs, ours) = pair(&device);
    let (query, memory) = (normal([2, 9, WIDTH], &device).require_grad(), normal([2, 21, WIDTH], &device));
    let weights = normal([2, 9, WIDTH], &device);
    let a = theirs.forward(MhaInput::new(query.clone(), memory.clone(), memory.clone())).context;
    let b = ours.forward(LayerInput::new(query.clone(), memory.clone(), memory)).unwrap();
    let (a, b) = ((a * weights.clone()).sum().backward(), (b * weights).sum().backward());
    let near = |name: &str, a: Tensor<2>, b: Tensor<2>| {
        let (apart, largest) = (distance(a.clone(), b), a.abs().max().into_scalar::<f32>());
        assert!(apart <= 1e-5 * largest, "{name}: {apart:e} of {largest}");
    };
    near("x", query.grad(&a).unwrap().flatten(0, 1), query.grad(&b).unwrap().flatten(0, 1));
    for (name, a_linear, b_linear) in [
        ("query", &theirs.query, &ours.query),
        ("key", &theirs.key, &ours.key),
        ("value", &theirs.value, &ours.value),
        ("output", &theirs.output, &ours.output),
    ] {
        near(name, a_linear.weight.grad(&a).unwrap(), b_linear.weight.grad(&b).unwrap());
    }
}

/// Rotary, norms, shared heads, a causal window: a sequence in a pack is that sequence alone.
#[test]
fn packed_sequences_are_what_each_is_alone() {
    let device = Device::flex();
    let _alone = seeded(&device, 5);
    let config = AttentionLayerConfig::new(WIDTH, HEADS).with_kv_heads(Some(2)).with_head_dim(Some(16)).with_qk_norm(Some(1e-6));
    let layer = config.init(&device).unwrap().rotary(Rotary::new(16));
    for how in [Attention::full(), Attention::causal().window(7), Attention::causal().mechanism(Local { window: 8, ..Local::default() })] {
        let layer = layer.clone().attention(how);
        let lengths = [5, 0, 23, 1, 64];
        let x = normal([93, WIDTH], &device);
        let packed = layer.forward_packed(&Packed::new(x.clone(), &lengths).unwrap(), None, Pass::default()).unwrap();
        for (range, length) in packed.ranges().zip(lengths) {
            if length == 0 {
                continue;
            }
            let alone = layer.forward(x.clone().slice([range.clone()]).unsqueeze::<3>()).unwrap();
            let apart = distance(packed.x().clone().slice([range]), alone.squeeze_dim(0));
            assert!(apart <= 2e-6, "a sequence of {length}: {apart:e}");
        }
    }
}

#[test]
fn turns_made_once_are_turns_made_here() {
    let device = Device::flex();
    let _alone = seeded(&device, 4);
    let layer = AttentionLayerConfig::new(WIDTH, HEADS).init(&device).unwrap().rotary(Rotary::new(12));
    let x = Packed::new(normal([20, WIDTH], &device), &[12, 8]).unwrap();
    let turns = layer.turns(x.positions().iter().copied()).unwrap();
    let shared = layer.forward_packed(&x, turns.as_ref(), Pass::default()).unwrap();
    let own = layer.forward_packed(&x, None, Pass::default()).unwrap();
    assert_eq!(distance(shared.into_x(), own.into_x()), 0.0);
}

#[test]
fn dropout_acts_while_training_and_is_a_function_of_seed_and_step() {
    let device = Device::flex();
    let _alone = seeded(&device, 5);
    let layer = AttentionLayerConfig::new(WIDTH, HEADS).with_dropout(0.5).init(&device).unwrap();
    let x = normal([1, 30, WIDTH], &device);
    let run = |training, step| layer.forward(LayerInput::self_attn(x.clone()).pass(Pass { training, seed: 1, step })).unwrap();
    assert_eq!(distance(run(false, 0), run(false, 1)), 0.0);
    assert_eq!(distance(run(true, 4), run(true, 4)), 0.0);
    assert!(distance(run(true, 4), run(true, 5)) > 1e-3);
    assert!(distance(run(true, 4), run(false, 4)) > 1e-3);
}

#[test]
fn a_layer_runs_fused_kernels_only() {
    let device = Device::flex().autodiff();
    let _alone = seeded(&device, 6);
    let layer = AttentionLayerConfig::new(WIDTH, HEADS).with_qk_norm(Some(1e-6)).init(&device).unwrap().rotary(Rotary::new(12));
    let before = Tally::read();
    layer.forward(normal([2, 11, WIDTH], &device)).unwrap().sum().backward();
    let tally = Tally::read() - before;
    assert_eq!((tally.fused, tally.composed), (9, 0)); // 4 projections, 2 norms, 2 turns, attention
}

#[test]
fn what_does_not_fit_is_refused_with_its_numbers() {
    let device = Device::flex();
    let _alone = seeded(&device, 7);
    let refusal = |config: AttentionLayerConfig| config.init(&device).expect_err("it does not fit").to_string();
    assert_eq!(refusal(AttentionLayerConfig::new(50, 4)), "n_heads: a width of 50 does not divide over 4 heads: set head_dim");
    let shared = AttentionLayerConfig::new(48, 4).with_kv_heads(Some(3));
    assert_eq!(refusal(shared), "n_heads: 4 query heads do not divide over 3 key/value heads");
    assert_eq!(refusal(AttentionLayerConfig::new(48, 4).with_dropout(1.0)), "dropout: 1 is outside [0, 1)");
    let layer = AttentionLayerConfig::new(WIDTH, HEADS).init(&device).unwrap();
    let wrong = layer.forward(normal([2, 5, 40], &device)).expect_err("the width is another");
    assert_eq!(wrong.to_string(), "query has shape [2, 5, 40], expected [2, 5, 48]");
    let mask = bools([2, 4], &device, |_| false);
    let wrong = layer.forward(LayerInput::self_attn(normal([2, 5, WIDTH], &device)).mask_pad(mask));
    assert_eq!(wrong.expect_err("the mask is short").to_string(), "mask_pad has shape [2, 4], expected [2, 5]");
}
