//! Attention on a GPU, in f32: tensor operations in blocks, against the definition. Mesa's software Vulkan (Debian:
//! mesa-vulkan-drivers) is enough for the features `wgpu` and `vulkan`; `cuda` takes a real one.
#![cfg(any(feature = "wgpu", feature = "vulkan", feature = "cuda"))]

mod common;

use burn::tensor::{DType, Device, Tensor};
use common::learned::{Case, compare};
use common::{Layout, Random, draws, gpus, values};
use regard::reduce::received_score;
use regard::{Attention, Tally, attention};
use regard_core::oracle::Storage;

#[test]
fn values_and_gradients_keep_the_budget() {
    for device in gpus() {
        draws(1..121, &[Storage::F32], |case, judge| {
            let layout = Layout::ALL[case.seed as usize % 4];
            let before = Tally::read();
            let outcome = case.on(&device, layout).run();
            assert_eq!((Tally::read() - before).composed, 1);
            judge.check(&outcome, &format!("{device:?}, {layout:?}"))
        });
    }
}

/// Choices are made on the host from what is read back; everything else runs here, against the same operations in f64 on the CPU.
#[test]
fn mechanisms_that_choose_keep_the_budget() {
    for (case, device) in Case::all().iter().flat_map(|case| gpus().into_iter().map(move |device| (case, device))) {
        compare(case, 1..5, |draw| draw.run(&device, DType::F32, false));
    }
}

/// Codes are chosen on the host from what is read back; against the kernels on the CPU.
#[test]
fn mechanisms_whose_time_grows_with_length_give_what_kernels_give() {
    for (at, how) in common::factored::everything().into_iter().enumerate() {
        let draw = common::factored::Draw::new(at as u64);
        let expected = draw.run(&Device::flex().autodiff(), &how);
        for device in gpus() {
            draw.check(&draw.run(&device, &how), &expected, &format!("{at}: {how:?}, {device:?}"));
        }
    }
}

/// What a GPU gives is what the CPU gives.
fn agree_with_the_kernels(run: impl Fn(&Device) -> [Vec<f64>; 3]) {
    let expected = run(&Device::flex().autodiff());
    for device in gpus() {
        for (x, y) in run(&device).iter().flatten().zip(expected.iter().flatten()) {
            assert!((x - y).abs() <= 1e-4 * (1.0 + y.abs()), "{x} {y} {device:?}");
        }
    }
}

#[test]
fn scores_and_their_gradients_are_those_of_the_kernels() {
    let random = &mut Random::new(17);
    let (q, k) = (random.normals(Storage::F32, 2 * 4 * 21 * 6), random.normals(Storage::F32, 2 * 2 * 21 * 6));
    let run = |device: &Device| {
        let leaf = |values: &[f64], heads| common::tensor(values, [2, heads, 21, 6], DType::F32, device).require_grad();
        let (q, k) = (leaf(&q, 4), leaf(&k, 2));
        let score = received_score(q.clone(), k.clone(), &Attention::causal().window(9)).expect("it fits");
        let gradients = score.clone().powi_scalar(2).sum().backward();
        [values(score), values(q.grad(&gradients).expect("dq")), values(k.grad(&gradients).expect("dk"))]
    };
    agree_with_the_kernels(run);
}

#[test]
fn expanded_views_sum_their_gradients() {
    let random = &mut Random::new(11);
    let [q, k, v] = [(); 3].map(|()| random.normals(Storage::F32, 9 * 8));
    let leaf = |values: &[f64], device: &Device| common::tensor(values, [1, 1, 9, 8], DType::F32, device).require_grad();
    let run = |device: &Device| {
        let (q, k, v) = (leaf(&q, device), leaf(&k, device), leaf(&v, device));
        let expanded = |x: &Tensor<4>, heads: usize| x.clone().expand([3, heads, 9, 8]);
        let o = attention(expanded(&q, 4), expanded(&k, 2), expanded(&v, 2), &Attention::causal()).expect("it fits");
        let gradients = (o.clone() * o).sum().backward();
        [&q, &k, &v].map(|x| values(x.grad(&gradients).expect("a gradient")))
    };
    agree_with_the_kernels(run);
}

#[test]
fn tensors_on_two_devices_are_refused() {
    for device in gpus() {
        let (here, there) = (Tensor::<4>::zeros([1, 1, 2, 4], &device), Tensor::<4>::zeros([1, 1, 2, 4], &Device::flex()));
        let error = attention(here.clone(), there, here, &Attention::full()).expect_err("it was taken");
        assert!(error.to_string().starts_with("k is on "), "{error}");
    }
}
