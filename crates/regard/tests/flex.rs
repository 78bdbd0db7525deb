//! Attention on Burn's CPU device against its definition, fused and composed.

mod common;

use burn::tensor::{DType, Device, Tensor};
use common::{Case, Layout, Random, Wish, draws, values};
use regard::mechanism::Local;
use regard::{Attention, Tally, attention};
use regard_core::oracle::Storage;

fn device() -> Device {
    Device::flex().autodiff()
}

const STORAGES: [Storage; 3] = [Storage::F32, Storage::Bf16, Storage::F16];

#[test]
fn fused_values_and_gradients_keep_the_budget() {
    draws(1..241, &STORAGES, |case, judge| {
        let layout = Layout::ALL[case.seed as usize % 4];
        let before = Tally::read();
        let outcome = case.on(&device(), layout).run();
        let tally = Tally::read() - before;
        let tensors = 3 + u64::from(case.definition.key_bias.is_some()) + u64::from(case.definition.bias.is_some());
        assert_eq!((tally.fused, tally.composed, tally.gradients), (1, 0, tensors), "seed={}", case.seed);
        judge.check(&outcome, &format!("fused, {layout:?}"))
    });
}

#[test]
fn composed_values_and_gradients_keep_the_budget() {
    draws(1..161, &[Storage::F32], |case, judge| {
        let layout = Layout::ALL[case.seed as usize % 4];
        let mut held = case.on(&device(), layout);
        held.how = held.how.unfused();
        let before = Tally::read();
        let outcome = held.run();
        assert_eq!((Tally::read() - before).composed, 1);
        judge.check(&outcome, &format!("composed, {layout:?}"))
    });
}

/// The composite is the second opinion: in f64 it is the definition.
#[test]
fn composed_in_f64_is_the_definition() {
    for seed in 1..161 {
        let mut case = Case::draw(&Wish::draw(&mut Random::new(seed), &[Storage::F32]), seed);
        if case.definition.scale.is_none() {
            case.definition.scale = Some(0.5);
        }
        let outcome = case.stored_as(DType::F64, &device(), Layout::Contiguous).run();
        case.judge().check_f64(&outcome, "composed in f64");
    }
}

fn case(options: &[&'static str], seed: u64) -> Case {
    Case::draw(&Wish { options: options.to_vec(), storage: Storage::F32, queries: 33, keys: 33 }, seed)
}

#[test]
fn no_view_is_copied() {
    for layout in Layout::ALL {
        let case = case(&["causal", "bias", "key_bias", "mask"], 5);
        let held = case.on(&device(), layout);
        let before = Tally::read();
        held.run();
        assert_eq!((Tally::read() - before).copies, 0, "{layout:?}");
    }
}

/// Each subset of the tensors tracked: the others have no gradient, and it is not computed.
#[test]
fn untracked_parents_cost_nothing() {
    let case = case(&["causal", "key_bias", "bias"], 7);
    let truth = case.judge();
    for subset in 0..32u32 {
        let held = case.on(&device(), Layout::Transposed);
        let wanted = |i: u32| subset >> i & 1 == 1;
        let q = if wanted(0) { held.q.meant() } else { held.q.constant() };
        let k = if wanted(1) { held.k.meant() } else { held.k.constant() };
        let v = if wanted(2) { held.v.meant() } else { held.v.constant() };
        let (key_bias, bias) = (held.key_bias.clone().expect("drawn"), held.bias.clone().expect("drawn"));
        let how = held.how.clone().key_bias(if wanted(3) { key_bias.clone() } else { key_bias.clone().without_autodiff() });
        let how = how.bias(if wanted(4) { bias.meant() } else { bias.constant() });
        let loss = (attention(q, k, v, &how).expect("it fits") * held.d_o.clone()).sum();
        if subset == 0 {
            continue;
        }
        let before = Tally::read();
        let gradients = loss.backward();
        assert_eq!((Tally::read() - before).gradients, u64::from(subset.count_ones()), "subset {subset:05b}");
        let leaves = [&held.q.stored, &held.k.stored, &held.v.stored].map(|x| x.grad(&gradients).is_some());
        assert_eq!(leaves, [wanted(0), wanted(1), wanted(2)], "subset {subset:05b}");
        assert_eq!([key_bias.grad(&gradients).is_some(), bias.stored.grad(&gradients).is_some()], [wanted(3), wanted(4)]);
        if wanted(1) {
            let outcome = [vec![], vec![], held.k.gradient(&gradients), vec![], vec![], vec![]];
            truth.check(&outcome, &format!("subset {subset:05b}"));
        }
    }
}

/// Without autodiff there is no graph; with a constant from a device without autodiff there is one.
#[test]
fn devices_with_and_without_autodiff_mix() {
    let case = case(&["causal"], 9);
    let plain = case.on(&Device::flex(), Layout::Contiguous);
    let tracked = case.on(&device(), Layout::Contiguous);
    let alone = attention(plain.q.meant(), plain.k.meant(), plain.v.meant(), &plain.how).expect("it fits");
    assert!(!alone.device().is_autodiff());
    let mixed = attention(tracked.q.meant(), plain.k.meant(), plain.v.meant(), &plain.how).expect("it fits");
    let before = Tally::read();
    let gradients = (mixed.clone() * tracked.d_o.clone()).sum().backward();
    assert_eq!((Tally::read() - before).gradients, 1);
    assert_eq!(values(alone), values(mixed));
    let outcome = [vec![], tracked.q.gradient(&gradients), vec![], vec![], vec![], vec![]];
    case.judge().check(&outcome, "mixed");
}

/// Expanded tensors (strides of 0) and a gradient of the output that is one number, repeated.
#[test]
fn expanded_views_sum_their_gradients() {
    let random = &mut Random::new(11);
    let [q, k, v] = [(); 3].map(|()| random.normals(Storage::F32, 9 * 8));
    let leaf = |values: &[f64]| common::tensor(values, [1, 1, 9, 8], DType::F32, &device()).require_grad();
    let (q, k, v) = (leaf(&q), leaf(&k), leaf(&v));
    let before = Tally::read();
    let all = [3, 4, 9, 8];
    let o = attention(q.clone().expand(all), k.clone().expand([3, 2, 9, 8]), v.clone().expand([3, 2, 9, 8]), &Attention::causal());
    let expanded = o.expect("it fits").sum().backward();
    assert_eq!((Tally::read() - before).copies, 0);
    let one = attention(q.clone(), k.clone(), v.clone(), &Attention::causal()).expect("it fits").sum().backward();
    for x in [&q, &k, &v] {
        let (found, single) = (values(x.grad(&expanded).expect("a gradient")), values(x.grad(&one).expect("a gradient")));
        found.iter().zip(single).for_each(|(x, y)| assert!((x - 12.0 * y).abs() <= 1e-5 * (1.0 + y.abs()), "{x} {y}"));
    }
}

/// One tensor three times: its gradients add up.
#[test]
fn self_attention_of_one_tensor() {
    let values_of_x = Random::new(13).normals(Storage::F32, 2 * 3 * 17 * 8);
    let gradient = |how: &Attention| {
        let x = common::tensor(&values_of_x, [2, 3, 17, 8], DType::F32, &device()).require_grad();
        let o = attention(x.clone(), x.clone(), x.clone(), how).expect("it fits");
        let gradients = (o.clone() * o).sum().backward();
        values(x.grad(&gradients).expect("a gradient"))
    };
    let (fused, composed) = (gradient(&Attention::causal()), gradient(&Attention::causal().unfused()));
    fused.iter().zip(composed).for_each(|(x, y)| assert!((x - y).abs() < 1e-4, "{x} {y}"));
}

/// Parents that gradient checkpointing computes again in the backward pass.
#[test]
fn gradient_checkpointing_changes_nothing() {
    let case = case(&["causal"], 15);
    let run = |device: Device| {
        let held = case.on(&device, Layout::Contiguous);
        let scaled = |x: Tensor<4>| (x * 0.5).exp().log() * 2.0;
        let o = attention(scaled(held.q.meant()), scaled(held.k.meant()), scaled(held.v.meant()), &held.how).expect("it fits");
        let gradients = (o * held.d_o.clone()).sum().backward();
        [held.q.gradient(&gradients), held.k.gradient(&gradients), held.v.gradient(&gradients)]
    };
    assert_eq!(run(device()), run(device().gradient_checkpointing()));
}

#[test]
fn a_mechanism_of_the_list_runs_with_its_own_options() {
    let case = case(&["causal"], 17);
    let held = case.on(&device(), Layout::Contiguous);
    let run = |how: &Attention| values(attention(held.q.meant(), held.k.meant(), held.v.meant(), how).expect("it fits"));
    let local = Local { window: 5, sinks: 2, scale: None };
    assert_eq!(run(&Attention::causal().mechanism(local.clone())), run(&Attention::causal().window(5).sinks(2)));
    let unfused = run(&Attention::causal().mechanism(local).unfused());
    run(&Attention::causal().window(5).sinks(2)).iter().zip(unfused).for_each(|(x, y)| assert!((x - y).abs() < 1e-5));
}

/// More rows than fit a block of the composite.
#[test]
fn composed_blocks_meet() {
    let random = &mut Random::new(19);
    let shape = [1, 2, 4100, 4];
    let [q, k, v] = [(); 3].map(|()| common::tensor(&random.normals(Storage::F32, 2 * 4100 * 4), shape, DType::F32, &Device::flex()));
    let how = Attention::causal().window(300);
    let fused = attention(q.clone(), k.clone(), v.clone(), &how).expect("it fits");
    let composed = attention(q, k, v, &how.unfused()).expect("it fits");
    assert!((fused - composed).abs().max().into_scalar::<f32>() < 1e-5);
}

#[test]
fn lengths_of_zero() {
    for (queries, keys) in [(0, 3), (3, 0)] {
        for how in [Attention::full(), Attention::full().unfused()] {
            let tensor = |n: usize| Tensor::<4>::zeros([1, 2, n, 4], &Device::flex());
            let o = attention(tensor(queries), tensor(keys), tensor(keys), &how).expect("it fits");
            assert_eq!(o.dims(), [1, 2, queries, 4]);
            assert_eq!(values(o).iter().sum::<f64>(), 0.0);
        }
    }
}
