//! Mechanisms that choose, and reducers, under Burn's autodiff.

mod common;

use burn::tensor::{Device, Distribution, Tensor, activation};
use common::seeded;
use regard::mechanism::{Clustered, Nats};
use regard::reduce::{Reducer, Shown, mean_keys, received_score, reduce};
use regard::{Attention, AttentionLayerConfig, Packed, attention, attention_scored};

fn normal<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn distance<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    (a - b).abs().max().into_scalar::<f32>()
}

#[test]
fn logits_of_types_have_gradients_and_given_types_give_the_same_output() {
    let device = Device::flex().autodiff();
    let _alone = seeded(&device, 1);
    let [q, k, v] = [4, 2, 2].map(|heads| normal([2, heads, 40, 8], &device).require_grad());
    let logits = normal([2, 2, 40, 3], &device).require_grad();
    let how = Attention::causal().mechanism(Nats { window: Some(4), ..Nats::default() });
    let o = attention(q.clone(), k.clone(), v.clone(), &how.clone().type_logits(logits.clone())).unwrap();
    let gradients = (o.clone() * o.clone()).sum().backward();
    let of_logits = logits.grad(&gradients).unwrap();
    assert_eq!(of_logits.dims(), [2, 2, 40, 3]);
    assert!(of_logits.clone().abs().max().into_scalar::<f32>() > 1e-3);
    assert!(of_logits.sum_dim(3).abs().max().into_scalar::<f32>() < 1e-4, "through a softmax, gradients of the three add up to nothing");

    let types: Vec<i64> = logits
        .into_data()
        .iter::<f32>()
        .collect::<Vec<_>>()
        .chunks(3)
        .enumerate()
        .map(|(at, x)| {
            let largest = (1..3).fold(0, |best, kind| if x[kind] > x[best] { kind } else { best });
            if at % 40 == 0 { 0 } else { largest as i64 }
        })
        .collect();
    let given = attention(q.clone(), k, v, &how.types(types)).unwrap();
    assert_eq!(distance(o.inner(), given.clone().inner()), 0.0);
    let again = (given.clone() * given).sum().backward();
    assert_eq!(distance(q.grad(&gradients).unwrap(), q.grad(&again).unwrap()), 0.0);
}

#[test]
fn clusters_pass_gradients_to_hidden_states_and_thresholds() {
    let device = Device::flex().autodiff();
    let _alone = seeded(&device, 2);
    let [q, k, v] = [2, 2, 2].map(|heads| normal([1, heads, 30, 8], &device).require_grad());
    let centres = normal([1, 5, 6], &device).repeat_dim(1, 6);
    let x = (centres + normal([1, 30, 6], &device) * 0.3).require_grad();
    let soft = Clustered { soft: 2, ..Clustered::default() };
    let o = attention(q.clone(), k, v, &Attention::full().mechanism(soft).hidden_states(x.clone())).unwrap();
    let gradients = o.powi_scalar(2).sum().backward();
    assert!(x.grad(&gradients).unwrap().abs().max().into_scalar::<f32>() > 1e-4);
    assert!(q.grad(&gradients).unwrap().abs().max().into_scalar::<f32>() > 1e-3);
}

/// The score by tensor operations, under Burn's own autodiff.
fn plain_score(q: &Tensor<4>, k: &Tensor<4>) -> Tensor<2> {
    let [_, heads, _, width] = q.dims();
    let k = k.clone().repeat_dim(1, heads / k.dims()[1]);
    let weights = activation::softmax(q.clone().matmul(k.swap_dims(2, 3)) / (width as f64).sqrt(), 3);
    weights.sum_dim(2).mean_dim(1).squeeze_dims(&[1, 2])
}

#[test]
fn scores_and_their_gradients_are_those_of_the_weights() {
    let device = Device::flex().autodiff();
    let _alone = seeded(&device, 3);
    let (q, k) = (normal([2, 3, 25, 8], &device).require_grad(), normal([2, 3, 25, 8], &device).require_grad());
    let weight = normal([2, 25], &device);
    let (ours, plain) = (received_score(q.clone(), k.clone(), &Attention::full()).unwrap(), plain_score(&q, &k));
    assert!(distance(ours.clone().inner(), plain.clone().inner()) < 1e-5);
    let (a, b) = ((ours * weight.clone()).sum().backward(), (plain * weight).sum().backward());
    for x in [&q, &k] {
        let (a, b) = (x.grad(&a).unwrap(), x.grad(&b).unwrap());
        assert!(b.clone().abs().max().into_scalar::<f32>() > 1e-3 && distance(a, b) < 1e-5);
    }
    let (o, score) = attention_scored(q.clone(), k.clone(), k.clone(), &Attention::causal()).unwrap();
    assert_eq!(distance(o.inner(), attention(q.clone(), k.clone(), k.clone(), &Attention::causal()).unwrap().inner()), 0.0);
    assert!(distance(score, received_score(q, k, &Attention::causal()).unwrap()) < 1e-6);
}

#[test]
fn reduced_sequences_keep_positions_and_pass_gradients() {
    let device = Device::flex().autodiff();
    let _alone = seeded(&device, 4);
    let x = normal([17, 6], &device).require_grad();
    let packed = Packed::new(x.clone(), &[10, 0, 7]).unwrap();
    let k = normal([1, 2, 17, 4], &device);
    let mut tome = Reducer::by_name("tome").unwrap();
    tome.set("r", "3").unwrap();
    let shown = Shown { keys: Some(mean_keys(&k)), ..Shown::default() };
    let reduced = reduce(&tome, &packed, &shown, 0).unwrap();
    assert!(reduced.tokens.lengths().eq([7, 0, 4]));
    assert_eq!(reduced.reduction.sizes().iter().sum::<f32>(), 17.0);
    let gradients = reduced.tokens.x().clone().sum().backward();
    let dx = x.grad(&gradients).unwrap().into_data().iter::<f32>().collect::<Vec<_>>();
    for (token, row) in dx.chunks(6).enumerate() {
        let target = reduced.reduction.map()[token].expect("nothing is deleted");
        assert!(row.iter().all(|d| (d - 1.0 / reduced.reduction.sizes()[target]).abs() < 1e-6), "a member passes its share");
    }
    let mut prune = Reducer::by_name("prune").unwrap();
    prune.set("keep", "0.5").unwrap();
    let score = Tensor::<1>::from_floats([0.5, 2.0, 0.1, 3.0, 0.2, 0.9, 0.1, 1.5, 0.3, 0.4, 0.1, 0.2, 3.0, 0.1, 0.1, 2.0, 0.5], &device);
    let pruned = reduce(&prune, &packed, &Shown { score: Some(score), ..Shown::default() }, 0).unwrap();
    assert_eq!(pruned.tokens.positions(), [0, 1, 3, 5, 7, 0, 2, 5, 6]);
}

#[test]
fn a_layer_takes_a_mechanism_that_reads_its_tokens() {
    let device = Device::flex().autodiff();
    let _alone = seeded(&device, 5);
    let layer = AttentionLayerConfig::new(16, 2).init(&device).unwrap();
    let x = normal([1, 4, 16], &device).repeat_dim(1, 5).require_grad();
    let exact = layer.clone().forward(x.clone()).unwrap();
    let alone = Clustered { threshold: 2.0, ..Clustered::default() };
    let unmerged = layer.clone().attention(Attention::full().mechanism(alone)).forward(x.clone()).unwrap();
    assert!(distance(exact.clone().inner(), unmerged.inner()) < 1e-5, "nothing merges above a threshold of 1");
    let merged = layer.attention(Attention::full().mechanism(Clustered::default())).forward(x.clone()).unwrap();
    assert!(distance(exact.inner(), merged.clone().inner()) < 1e-5, "merging equal tokens changes nothing");
    let gradients = merged.powi_scalar(2).sum().backward();
    assert!(x.grad(&gradients).unwrap().abs().max().into_scalar::<f32>() > 1e-5);
}
