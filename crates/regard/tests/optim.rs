//! The one-pass AdamW beside Burn's.

mod common;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Distribution, Tensor};
use common::seeded;
use regard::optim::{AdamW, squared_length};

fn device() -> Device {
    Device::flex().autodiff()
}

fn stepped(mut linear: Linear, optimizer: &mut ModuleOptimizer, x: &Tensor<2>, steps: usize) -> Linear {
    for _ in 0..steps {
        let loss = (linear.forward(x.clone()) - 1.0).powi_scalar(2).mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &linear);
        linear = optimizer.step(1e-2, linear, gradients);
    }
    linear
}

fn values(linear: &Linear) -> Vec<f32> {
    let weight = linear.weight.val().into_data().try_to_vec::<f32>().unwrap();
    let bias = linear.bias.as_ref().unwrap().val().into_data().try_to_vec::<f32>().unwrap();
    [weight, bias].concat()
}

fn furthest(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn it_goes_where_burns_goes() {
    let _alone = seeded(&device(), 1);
    let linear = LinearConfig::new(33, 17).init(&device());
    let x = Tensor::random([20, 33], Distribution::Normal(0.0, 1.0), &device());
    let start = values(&linear);
    let ours = stepped(linear.clone(), &mut AdamW { decay: 0.1, vector_decay: 0.1, ..AdamW::default() }.init(), &x, 20);
    let mut burn = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.1).init();
    let theirs = stepped(linear, &mut burn, &x, 20);
    let (ours, theirs) = (values(&ours), values(&theirs));
    assert!(furthest(&ours, &start) > 0.05, "twenty steps lead away");
    assert!(furthest(&ours, &theirs) < 1e-5, "{}", furthest(&ours, &theirs));
}

#[test]
fn vectors_decay_by_themselves() {
    let _alone = seeded(&device(), 2);
    let linear = LinearConfig::new(8, 4).init(&device());
    let bias = |linear: &Linear| linear.bias.as_ref().unwrap().val().into_data().try_to_vec::<f32>().unwrap();
    let x = Tensor::zeros([3, 8], &device());
    // Without inputs the weights have a gradient of 0, and only decay moves them.
    let decayed = stepped(linear.clone(), &mut AdamW { decay: 0.5, ..AdamW::default() }.init(), &x, 1);
    let weight = |linear: &Linear| linear.weight.val().into_data().try_to_vec::<f32>().unwrap();
    let wanted: Vec<f32> = weight(&linear).iter().map(|x| x * (1.0 - 0.5e-2)).collect();
    assert!(furthest(&weight(&decayed), &wanted) < 1e-7);
    let moved = furthest(&bias(&decayed), &bias(&linear));
    assert!((moved - 1e-2).abs() < 1e-5, "a first step is as long as the rate: {moved}");
}

#[test]
fn its_state_is_burns() {
    let _alone = seeded(&device(), 3);
    let linear = LinearConfig::new(8, 4).init(&device());
    let x = Tensor::random([5, 8], Distribution::Normal(0.0, 1.0), &device());
    let how = AdamW { decay: 0.1, ..AdamW::default() };
    let mut whole = how.init();
    let straight = stepped(stepped(linear.clone(), &mut whole, &x, 3), &mut whole, &x, 3);
    let mut first = how.init();
    let half = stepped(linear, &mut first, &x, 3);
    let record = half.clone().into_record().into_bytes().unwrap();
    let half = LinearConfig::new(8, 4).init(&device()).load_record(burn::store::ModuleRecord::from_bytes(record).unwrap());
    let mut second = how.init().from_bytes(first.into_bytes().unwrap()).unwrap();
    assert_eq!(values(&stepped(half, &mut second, &x, 3)), values(&straight));
}

#[test]
fn lengths_are_those_of_burn() {
    let _alone = seeded(&device(), 4);
    let x = Tensor::<2>::random([33, 57], Distribution::Normal(0.0, 1.0), &Device::flex());
    let wanted = f64::from(x.clone().square().sum().into_scalar::<f32>());
    for x in [x.clone(), x.clone().transpose()] {
        assert!((squared_length(x) - wanted).abs() < 1e-5 * wanted);
    }
    assert!((squared_length(x.clone().narrow(0, 3, 1).squeeze_dim::<1>(0)) - squared_length(x.narrow(0, 3, 1))).abs() < 1e-6);
}
