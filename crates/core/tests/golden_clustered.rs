//! The golden files of `golden/clustered.py`: choices, the definition and the kernel against clustered attention written a second time,
//! in PyTorch, with gradients by autograd.

mod common;

use common::golden::{Golden, add_errors, near};
use common::heads::Tensor;
use common::{Random, levels, values};
use regard_core::mechanism::{Choices, Gradients, Inputs, Plan, Planned};
use regard_core::oracle::{Defined, Storage};
use regard_core::{Dims, Output, Par, Saved};
use std::collections::HashMap;

fn files() -> Vec<Golden> {
    Golden::all("clustered", 9, |_| "clustered")
}

/// Tensors of results that are numbers.
fn results(golden: &Golden) -> Vec<String> {
    let names = golden.file.names().into_iter().filter_map(|name| name.strip_prefix("expected_").map(str::to_owned));
    let mut names: Vec<String> = names.filter(|name| !["assignment", "sizes", "representatives"].contains(&name.as_str())).collect();
    names.sort();
    names
}

/// Everything that the kernel computes.
fn run(golden: &Golden, plan: &Planned<'_>, par: Par) -> Vec<(&'static str, Vec<f64>)> {
    let Dims { batch, heads, queries, dv, .. } = plan.dims();
    let mut o = Tensor::unfilled(Storage::F32, [batch, heads, queries, dv]);
    let mut lse = vec![f32::NAN; batch * heads * queries];
    plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par).unwrap();
    let unfilled = |like: &Tensor| Tensor::unfilled(Storage::F32, like.shape);
    let [mut dq, mut dk, mut dv] = [&golden.q, &golden.k, &golden.v].map(unfilled);
    let has = |name| plan.gradients().contains(&name);
    let mut dx = golden.x.as_ref().filter(|_| has("dx")).map(unfilled);
    let mut dthreshold = golden.threshold.as_ref().filter(|_| has("dthreshold")).map(|threshold| vec![f32::NAN; threshold.len()]);
    let heads = regard_core::Gradients {
        dq: Some(dq.view_mut()),
        dk: Some(dk.view_mut()),
        dv: Some(dv.view_mut()),
        ..regard_core::Gradients::default()
    };
    let mut gradients = Gradients { dx: dx.as_mut().map(Tensor::view_mut), dthreshold: dthreshold.as_deref_mut(), ..heads.into() };
    plan.backward(&Saved { o: o.view(), lse: &lse, d_o: golden.d_o.view() }, &mut gradients, par).unwrap();
    let wide = |flat: &[f32]| flat.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let mut all = vec![("o", values(o.view())), ("lse", wide(&lse))];
    all.extend([("dq", values(dq.view())), ("dk", values(dk.view())), ("dv", values(dv.view()))]);
    all.extend(dx.map(|dx| ("dx", values(dx.view()))));
    all.extend(dthreshold.map(|dthreshold| ("dthreshold", wide(&dthreshold))));
    all
}

#[test]
fn clusters_are_those_of_every_file_at_every_level() {
    for golden in files() {
        let inputs = golden.inputs();
        for level in levels() {
            let choices = golden.choose(&inputs, Par::default().level(level));
            let plan = golden.plan(&inputs, &choices);
            assert_eq!(plan.traces().len(), 3);
            golden.check_traces(&plan, &format!("at {level}"));
        }
    }
}

#[test]
fn the_definition_agrees_with_every_file() {
    for golden in files() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs, Par::default());
        let truth = golden.plan(&inputs, &choices).oracle().truth(Some(&values(golden.d_o.view())));
        for Defined { name, values, sizes } in &truth {
            let expected = golden.expected(name);
            near(&format!("{name} of {}", golden.name), values, &expected, |i| 1e-12 * sizes[i].max(expected[i].abs()));
        }
        let mut names: Vec<String> = truth.iter().map(|defined| defined.name.to_owned()).collect();
        names.sort();
        assert_eq!(names, results(&golden), "{}", golden.name);
    }
}

/// The largest error of each tensor that the formula makes in plain f32. A file has few numbers: also with other signs in q, by which
/// nothing is chosen.
fn plain_errors(golden: &Golden, inputs: &Inputs<'_>, choices: &Choices) -> HashMap<&'static str, f64> {
    let (random, d_o) = (&mut Random::new(1), values(golden.d_o.view()));
    let (mut worst, mut q) = (HashMap::new(), golden.q.clone());
    for _ in 0..7 {
        let inputs = Inputs { q: q.view(), ..inputs.clone() };
        let oracle = golden.plan(&inputs, choices).oracle();
        add_errors(&mut worst, oracle.as_ref(), &d_o);
        drop(oracle);
        q.floats_mut().iter_mut().for_each(|x| *x *= random.pick(&[-1.0, 1.0]));
    }
    worst
}

/// At most twice the largest error of a plain f32 implementation and 1e-6 of the largest summand.
#[test]
fn the_kernel_keeps_the_budget_on_every_file() {
    let mut worst = 0.0f64;
    for golden in files() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs, Par::default());
        let plan = golden.plan(&inputs, &choices);
        let (truth, plain) = (plan.oracle().truth(Some(&values(golden.d_o.view()))), plain_errors(&golden, &inputs, &choices));
        for level in levels() {
            let found = run(&golden, &plan, Par::default().level(level));
            assert_eq!(found.len(), truth.len(), "{}", golden.name);
            for (name, found) in found {
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
    for option in ["threshold", "representative", "log_size", "soft", "temperature", "metric", "block", "scale", "training"] {
        assert!(files.iter().any(|golden| golden.file.options().contains_key(option)), "no file with {option}");
    }
    for tensor in ["x", "threshold", "lengths", "expected_dx", "expected_dthreshold"] {
        assert!(files.iter().any(|golden| golden.file.names().contains(&tensor.to_owned())), "no file with {tensor}");
    }
    assert!(files.iter().any(|golden| golden.causal && golden.file.options()["block"] == "16"), "no causal file with a block of 16");
}
