//! Mechanisms whose time grows with length, against the same formulas in tensor operations under Burn's autodiff.

mod common;

use burn::tensor::{Device, Distribution, Tensor, activation};
use common::factored::{Draw, everything};
use common::seeded;
use regard::mechanism::{GatedLinear, Hyper, Linear, Mechanism, Vq, VqQk};
use regard::{Attention, attention};

const N: usize = 37;

fn normal<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// The largest difference.
fn distance<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    (a - b).abs().max().into_scalar::<f32>()
}

/// Values and gradients of two outputs are alike, and the gradients are not nothing.
fn alike(ours: Tensor<4>, plain: Tensor<4>, leaves: &[&Tensor<4>]) {
    assert!(distance(ours.clone().inner(), plain.clone().inner()) < 2e-5);
    let slope = Tensor::random(ours.dims(), Distribution::Normal(0.0, 1.0), &ours.device());
    let (a, b) = ((ours * slope.clone()).sum().backward(), (plain * slope).sum().backward());
    for (at, leaf) in leaves.iter().enumerate() {
        let (a, b) = (leaf.grad(&a).unwrap(), leaf.grad(&b).unwrap());
        assert!(b.clone().abs().max().into_scalar::<f32>() > 1e-3, "leaf {at}");
        assert!(distance(a.clone(), b.clone()) < 1e-4, "leaf {at} is {} off", distance(a, b));
    }
}

/// q with two heads for each of one kv head, k, v; tracked.
fn heads(device: &Device) -> [Tensor<4>; 3] {
    [2, 1, 1].map(|heads| normal([1, heads, N, 8], device).require_grad())
}

fn shared(x: &Tensor<4>) -> Tensor<4> {
    x.clone().repeat_dim(1, 2)
}

/// Ones on and below the diagonal.
fn earlier(device: &Device) -> Tensor<4> {
    Tensor::<2>::ones([N, N], device).tril(0).reshape([1, 1, N, N])
}

#[test]
fn linear_attention_is_a_sum_over_features() {
    let device = Device::flex().autodiff();
    let _alone = seeded(&device, 1);
    let [q, k, v] = heads(&device);
    let feature = |x: Tensor<4>| activation::relu(x.clone()) + (-activation::relu(-x)).exp();
    let weights = feature(q.clone()).matmul(feature(shared(&k)).swap_dims(2, 3)) * earlier(&device);
    let plain = weights.clone().matmul(shared(&v)) / (weights.sum_dim(3) + 1e-6);
    let ours = attention(q.clone(), k.clone(), v.clone(), &Attention::causal().mechanism(Linear::default())).unwrap();
    alike(ours, plain, &[&q, &k, &v]);
}

#[test]
fn gated_linear_attention_is_its_recurrence() {
    let device = Device::flex().autodiff();
    let _alone = seeded(&device, 2);
    let [q, k, v] = heads(&device);
    let gates = (-normal([1, 2, N, 8], &device).abs()).detach().require_grad();
    let mut state = Tensor::<4>::zeros([1, 2, 8, 8], &device);
    let at = |x: &Tensor<4>, t: usize| x.clone().narrow(2, t, 1);
    let rows: Vec<Tensor<4>> = (0..N)
        .map(|t| {
            let decay = at(&gates, t).exp().swap_dims(2, 3);
            state = state.clone() * decay + at(&shared(&k), t).swap_dims(2, 3).matmul(at(&shared(&v), t));
            at(&q, t).matmul(state.clone()) / 8f64.sqrt()
        })
        .collect();
    let how = Attention::causal().mechanism(GatedLinear::default()).gates(gates.clone());
    let ours = attention(q.clone(), k.clone(), v.clone(), &how).unwrap();
    alike(ours, Tensor::cat(rows, 2), &[&q, &k, &v, &gates]);
}

/// The nearest codewords of rows, with the gradient of the rows.
fn quantised(x: &Tensor<4>, codebook: &Tensor<3>) -> Tensor<4> {
    let words = codebook.clone().unsqueeze_dim::<4>(0);
    let squares = words.clone().powi_scalar(2).sum_dim(3).swap_dims(2, 3);
    let codes = (squares - x.clone().matmul(words.clone().swap_dims(2, 3)) * 2.0).argmin(3);
    let nearest = words.gather(2, codes.repeat_dim(3, x.dims()[3]));
    x.clone() + (nearest - x.clone()).detach()
}

fn softmax_over(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let device = q.device();
    let hidden = (earlier(&device) - 1.0) * 1e30;
    activation::softmax(q.matmul(k.swap_dims(2, 3)) / 8f64.sqrt() + hidden, 3).matmul(v)
}

#[test]
fn quantised_keys_and_queries_are_codewords_with_the_gradient_of_themselves() {
    let device = Device::flex().autodiff();
    let _alone = seeded(&device, 3);
    let [q, k, v] = heads(&device);
    let (of_keys, of_queries) = (normal([1, 9, 8], &device), normal([2, 7, 8], &device));
    let how = Attention::causal().mechanism(Vq { block: 8, recent: 5, ..Vq::default() }).codebook(of_keys.clone());
    let ours = attention(q.clone(), k.clone(), v.clone(), &how).unwrap();
    alike(ours, softmax_over(q.clone(), shared(&quantised(&k, &of_keys)), shared(&v)), &[&q, &k, &v]);

    let both = Attention::causal().mechanism(VqQk { block: 8, ..VqQk::default() }).codebook(of_keys.clone()).codebook_q(of_queries.clone());
    let ours = attention(q.clone(), k.clone(), v.clone(), &both).unwrap();
    let plain = softmax_over(quantised(&q, &of_queries), shared(&quantised(&k, &of_keys)), shared(&v));
    alike(ours, plain, &[&q, &k, &v]);
}

#[test]
fn hashed_attention_takes_planes_and_is_exact_in_one_block() {
    let device = Device::flex().autodiff();
    let _alone = seeded(&device, 4);
    let [q, k, v] = heads(&device);
    let hyper = Hyper { block: 1000, ..Hyper::default() };
    let how = Attention::causal().mechanism(hyper).hyperplanes(normal([8, 4], &device));
    let ours = attention(q.clone(), k.clone(), v.clone(), &how).unwrap();
    alike(ours, softmax_over(q.clone(), shared(&k), shared(&v)), &[&q, &k, &v]);
}

/// Kernels against tensor operations, on padded and on packed sequences.
fn compare(which: impl Fn(&Attention) -> bool) {
    let device = Device::flex().autodiff();
    for (at, how) in everything().into_iter().enumerate().filter(|(_, how)| which(how)) {
        let draw = Draw::new(at as u64);
        draw.check(&draw.run(&device, &how), &draw.run(&device, &how.clone().unfused()), &format!("{at}: {how:?}"));
    }
}

#[test]
fn tensor_operations_give_what_kernels_give() {
    compare(|how| !how.reads("hyperplanes"));
}

#[test]
fn listed_keys_in_tensor_operations_give_what_kernels_give() {
    compare(|how| how.reads("hyperplanes"));
}

#[test]
fn what_does_not_fit_is_refused_with_its_numbers() {
    let device = Device::flex();
    let _alone = seeded(&device, 7);
    let [q, k, v] = [2, 1, 1].map(|heads| normal([1, heads, N, 8], &device));
    let refused = |how: Attention, words: &[&str]| {
        let error = attention(q.clone(), k.clone(), v.clone(), &how).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let gated = Attention::causal().mechanism(GatedLinear::default());
    refused(gated.clone().gates(Tensor::ones([1, 2, N, 8], &device)), &["gates", "1"]);
    refused(gated.clone().gates(Tensor::zeros([1, 2, N, 4], &device)), &["gates", "4", "8"]);
    refused(gated, &["gates"]);
    refused(Attention::causal().mechanism(Vq::default()).codebook(normal([1, 9, 6], &device)), &["codebook", "6", "8"]);
    refused(Attention::causal().mechanism(Mechanism::by_name("vq_qk").unwrap()), &["codebook"]);
    let hashed = Attention::causal().mechanism(Hyper::default()).hyperplanes(normal([6, 4], &device));
    refused(hashed.clone(), &["hyperplanes", "6", "8"]);
    refused(hashed.unfused(), &["hyperplanes", "6", "8"]);
}
