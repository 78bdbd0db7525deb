//! The golden files of `golden/linear.py`: the definitions and the kernel against linear and gated linear attention written a second
//! time in PyTorch, with gradients by autograd.

mod common;

use common::golden::{Golden, add_errors, near};
use common::heads::Tensor;
use common::{Random, levels, values};
use regard_core::mechanism::{Gradients, Plan, Planned};
use regard_core::oracle::{Oracle, Storage};
use regard_core::{Output, Par, Saved};
use std::collections::HashMap;

fn files() -> Vec<Golden> {
    Golden::all("linear", 20, |file| if file.floats("gates").is_some() { "gated_linear" } else { "linear" })
}

/// Everything that the kernel computes.
fn run(golden: &Golden, plan: &Planned<'_>, par: Par) -> Vec<(&'static str, Vec<f64>)> {
    let [batch, heads, queries, _] = golden.q.shape;
    let mut o = Tensor::unfilled(Storage::F32, golden.d_o.shape);
    plan.forward(&mut Output { o: o.view_mut(), lse: None }, par).unwrap();
    let [mut dq, mut dk, mut dv] = [&golden.q, &golden.k, &golden.v].map(|x| Tensor::unfilled(Storage::F32, x.shape));
    let mut dgates = golden.gates.as_ref().map(|gates| Tensor::unfilled(Storage::F32, gates.shape));
    let parts = regard_core::Gradients {
        dq: Some(dq.view_mut()),
        dk: Some(dk.view_mut()),
        dv: Some(dv.view_mut()),
        ..regard_core::Gradients::default()
    };
    let mut gradients = Gradients { dgates: dgates.as_mut().map(Tensor::view_mut), ..parts.into() };
    let lse = vec![f32::NAN; batch * heads * queries];
    plan.backward(&Saved { o: o.view(), lse: &lse, d_o: golden.d_o.view() }, &mut gradients, par).unwrap();
    let all = [("o", Some(o)), ("dq", Some(dq)), ("dk", Some(dk)), ("dv", Some(dv)), ("dgates", dgates)];
    all.into_iter().filter_map(|(name, tensor)| Some((name, values(tensor?.view())))).collect()
}

#[test]
fn the_definitions_agree_with_every_file() {
    for golden in files() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs, Par::default());
        let truth = golden.plan(&inputs, &choices).oracle().truth(Some(&golden.d_o()));
        for defined in &truth {
            let (name, expected) = (defined.name, golden.expected(defined.name));
            let budget = |i: usize| 1e-12 * defined.sizes[i].max(expected[i].abs());
            near(&format!("{name} of {}", golden.name), &defined.values, &expected, budget);
        }
        let written = golden.file.names().iter().filter(|name| name.starts_with("expected_")).count();
        assert_eq!(truth.len(), written, "{}", golden.name);
    }
}

/// The largest error of each tensor that the plain f32 implementation makes, on the file and, as that has few numbers, with other signs
/// in its values and in the gradient of its output.
fn plain_errors(golden: &Golden, mut oracle: Box<dyn Oracle>) -> HashMap<&'static str, f64> {
    let (random, mut d_o) = (&mut Random::new(1), golden.d_o());
    let mut worst = HashMap::new();
    for _ in 0..6 {
        add_errors(&mut worst, oracle.as_ref(), &d_o);
        let mut leaves = oracle.leaves();
        let v = &mut leaves.iter_mut().find(|(name, _)| *name == "v").expect("it is a leaf").1;
        v.iter_mut().chain(&mut d_o).for_each(|x| *x *= random.pick(&[-1.0, 1.0]));
    }
    worst
}

#[test]
fn the_kernel_keeps_the_budget_on_every_file() {
    let mut worst = 0.0f64;
    for golden in files() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs, Par::default());
        let plan = golden.plan(&inputs, &choices);
        let (truth, plain) = (plan.oracle().truth(Some(&golden.d_o())), plain_errors(&golden, plan.oracle()));
        for level in levels() {
            for (name, found) in run(&golden, &plan, Par::default().level(level)) {
                let (expected, how) = (golden.expected(name), format!("{name} at {level} in {}", golden.name));
                let defined = truth.iter().find(|defined| defined.name == name).expect("it is defined");
                worst = worst.max(near(&how, &found, &expected, |i| 2.0 * plain[name] + 1e-6 * defined.sizes[i]));
            }
        }
    }
    println!("worst error/budget {worst:.2}");
}

#[test]
fn every_option_and_tensor_has_a_file() {
    let files = files();
    for option in ["feature_map", "eps", "normalize", "window", "scale"] {
        assert!(files.iter().any(|golden| golden.file.options().contains_key(option)), "no file with {option}");
    }
    for tensor in ["gates", "lengths", "lengths_q", "offsets_q", "offsets_k", "expected_dgates"] {
        assert!(files.iter().any(|golden| golden.file.names().contains(&tensor.to_owned())), "no file with {tensor}");
    }
}
