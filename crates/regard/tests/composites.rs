//! Mechanisms that choose, and scores of keys: fused kernels against tensor operations under Burn's own autodiff.

mod common;

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use common::learned::{Case, apart, compare, largest};
use common::{Random, tensor, values};
use regard::reduce::received_score;
use regard::{Attention, Tally, attention, attention_scored};
use regard_core::oracle::Storage;

fn device() -> Device {
    Device::flex().autodiff()
}

#[test]
fn fused_values_and_gradients_are_those_of_the_composite() {
    for case in Case::all() {
        let before = Tally::read();
        compare(&case, 1..4, |draw| draw.run(&device(), DType::F32, false));
        let tally = Tally::read() - before;
        assert_eq!((tally.fused, tally.composed), (3, 6), "{}", case.name);
    }
}

/// What is learned from has a gradient in the composite where it should.
#[test]
fn the_composite_passes_gradients_to_what_is_learned() {
    for (name, at) in [("soft", 4), ("gates", 4), ("gates", 5), ("gates by keys", 5), ("types, padded", 6), ("types, sharp", 6)] {
        let case = Case::all().into_iter().find(|case| case.name == name).expect("a case");
        let found = common::learned::Draw::new(&case, 1).run(&device(), DType::F64, true);
        assert!(largest(&found[at]) > 1e-3, "{name}: {:e}", largest(&found[at]));
    }
}

/// A mask `[1, H, N, M]`, a key bias that hides, windows, lengths, shared heads.
fn scored(device: &Device) -> Vec<(&'static str, Attention)> {
    let random = &mut Random::new(5);
    let mask: Vec<bool> = (0..4 * 21 * 21).map(|_| random.chance(0.7)).collect();
    let mask = Tensor::<4, Bool>::from_data(TensorData::new(mask, [1, 4, 21, 21]), device);
    let hide = |x: f64| if x > 1.0 { f64::NEG_INFINITY } else { x };
    let bias: Vec<f64> = random.normals(Storage::F32, 2 * 2 * 21).into_iter().map(hide).collect();
    vec![
        ("full", Attention::full()),
        ("causal", Attention::causal()),
        ("window", Attention::causal().window(6).sinks(2)),
        ("lengths", Attention::full().lengths([21, 13])),
        ("mask", Attention::full().mask(mask)),
        ("key bias", Attention::causal().key_bias(tensor(&bias, [2, 2, 21], DType::F32, device))),
        ("until", Attention::causal().until((0..2 * 2 * 21).map(|at| at as i64 % 21 + 4).collect::<Vec<_>>())),
        ("alibi, softcap", Attention::causal().alibi().softcap(2.0)),
    ]
}

#[test]
fn scores_and_their_gradients_are_those_of_the_composite() {
    let random = &mut Random::new(9);
    let (q, k) = (random.normals(Storage::F32, 2 * 4 * 21 * 6), random.normals(Storage::F32, 2 * 2 * 21 * 6));
    let weights = tensor::<2>(&random.normals(Storage::F32, 2 * 21), [2, 21], DType::F32, &device());
    let run = |how: &Attention| {
        let leaf = |values: &[f64], heads| tensor::<4>(values, [2, heads, 21, 6], DType::F32, &device()).require_grad();
        let (q, k) = (leaf(&q, 4), leaf(&k, 2));
        let score = received_score(q.clone(), k.clone(), how).expect("it fits");
        let gradients = (score.clone() * weights.clone()).sum().backward();
        [values(score), values(q.grad(&gradients).expect("dq")), values(k.grad(&gradients).expect("dk"))]
    };
    for (name, how) in scored(&device()) {
        let before = Tally::read();
        let (fused, composed) = (run(&how), run(&how.clone().unfused()));
        let tally = Tally::read() - before;
        assert_eq!((tally.fused, tally.composed), (1, 1));
        for (what, (a, b)) in ["score", "dq", "dk"].into_iter().zip(fused.iter().zip(&composed)) {
            assert!(largest(b) > 1e-2 && apart(a, b) <= 1e-5 * largest(b), "{what}, {name}: {:e} of {:e}", apart(a, b), largest(b));
        }
    }
}

#[test]
fn attention_and_its_scores_at_once_are_each_alone() {
    let random = &mut Random::new(11);
    let mut leaf = |heads| tensor::<4>(&random.normals(Storage::F32, 2 * heads * 21 * 6), [2, heads, 21, 6], DType::F32, &device());
    let (q, k, v) = (leaf(4), leaf(2), leaf(2));
    for (name, how) in scored(&device()) {
        let how = how.unfused();
        let (o, score) = attention_scored(q.clone().require_grad(), k.clone(), v.clone(), &how).expect("it fits");
        let alone = attention(q.clone(), k.clone(), v.clone(), &how).expect("it fits");
        assert_eq!(values(o), values(alone), "{name}");
        assert_eq!(values(score), values(received_score(q.clone(), k.clone(), &how).expect("it fits")), "{name}");
    }
}

/// More queries than a block of the composite.
#[test]
fn blocks_add_up() {
    let random = &mut Random::new(13);
    let q = tensor::<4>(&random.normals(Storage::F32, 4200 * 4), [1, 1, 4200, 4], DType::F32, &Device::flex());
    let how = Attention::causal().window(50);
    let (fused, composed) = (received_score(q.clone(), q.clone(), &how), received_score(q.clone(), q, &how.unfused()));
    assert!(apart(&values(fused.expect("it fits")), &values(composed.expect("it fits"))) < 1e-4);
}
