//! The golden files of `golden/vq.py`: the definition and the kernel against attention over codewords written a second time, dense, in
//! PyTorch, with gradients by autograd.

mod common;

use common::golden::{Golden, add_errors, near};
use common::heads::Tensor;
use common::{Random, levels, values};
use regard_core::mechanism::{Plan, Planned};
use regard_core::oracle::{Oracle, Storage};
use regard_core::{Output, Par, Problem, Saved, Scores, Strided};
use std::collections::HashMap;

fn files() -> Vec<Golden> {
    Golden::all("vq", 12, |_| "vq")
}

/// Everything that the kernel computes.
fn run(golden: &Golden, plan: &Planned<'_>, par: Par) -> Vec<(&'static str, Vec<f64>)> {
    let mut o = Tensor::unfilled(Storage::F32, golden.d_o.shape);
    let mut lse = vec![f32::NAN; golden.d_o.shape[..3].iter().product()];
    plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par).unwrap();
    let [mut dq, mut dk, mut dv] = [&golden.q, &golden.k, &golden.v].map(|x| Tensor::unfilled(Storage::F32, x.shape));
    let [for_q, for_k, for_v] = [dq.view_mut(), dk.view_mut(), dv.view_mut()].map(Some);
    let parts = regard_core::Gradients { dq: for_q, dk: for_k, dv: for_v, ..regard_core::Gradients::default() };
    plan.backward(&Saved { o: o.view(), lse: &lse, d_o: golden.d_o.view() }, &mut parts.into(), par).unwrap();
    let lse = lse.iter().map(|&x| f64::from(x)).collect();
    let [dq, dk, dv] = [dq, dk, dv].map(|x| values(x.view()));
    vec![("o", values(o.view())), ("lse", lse), ("dq", dq), ("dk", dk), ("dv", dv)]
}

#[test]
fn codes_and_losses_are_those_of_every_file() {
    for golden in files() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs, Par::default());
        let plan = golden.plan(&inputs, &choices);
        golden.check_traces(&plan, "");
        let loss: Vec<f64> = plan.loss().into_iter().collect();
        let expected = golden.file.floats("expected_loss").expect("it is written").values;
        // The weight is an option in f32.
        near(&format!("loss of {}", golden.name), &loss, &expected, |i| f64::from(f32::EPSILON) / 2.0 * expected[i]);
    }
}

#[test]
fn the_definition_agrees_with_every_file() {
    for golden in files() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs, Par::default());
        let oracle = golden.plan(&inputs, &choices).oracle();
        let truth = oracle.truth(Some(&values(golden.d_o.view())));
        assert_eq!(truth.iter().map(|defined| defined.name).collect::<Vec<_>>(), ["o", "lse", "dq", "dk", "dv"]);
        for defined in &truth {
            let expected = golden.expected(defined.name);
            let how = format!("{} of {}", defined.name, golden.name);
            near(&how, &defined.values, &expected, |i| 1e-12 * defined.sizes[i].max(expected[i].abs()));
        }
    }
}

/// Codewords in place of rows, those of padding as they are.
fn quantised(rows: &Tensor, codebook: &Tensor, codes: &[i64]) -> Tensor {
    let ([_, heads, count, width], all) = (rows.shape, codebook.shape[2]);
    let of = |(at, (row, &code)): (usize, (&[f32], &i64))| match usize::try_from(code) {
        Ok(code) => codebook.floats()[(at / count % heads * all + code) * width..][..width].to_vec(),
        Err(_) => row.to_vec(),
    };
    Tensor::new(rows.shape, rows.floats().chunks(width).zip(codes).enumerate().flat_map(of).collect())
}

/// The largest error of each tensor that plain f32 implementations make: of the formula, and of exact attention over codewords, where
/// weights are both `e / Σe` and `exp(s - lse)`. A file has few numbers: of the latter also with other signs in v.
fn plain_errors(golden: &Golden, oracle: &dyn Oracle) -> HashMap<&'static str, f64> {
    let codes = |name: &str| golden.file.integers(&format!("expected_{name}")).expect("it is written").values;
    let k = quantised(&golden.k, golden.codebook.as_ref().expect("it is read"), &codes("codes"));
    let q = golden.codebook_q.as_ref().map_or_else(|| golden.q.clone(), |codebook| quantised(&golden.q, codebook, &codes("codes_q")));
    let (options, d_o) = (golden.file.options(), values(golden.d_o.view()));
    let gap: usize = options.get("exclude_recent").map_or(0, |_| options["recent"].parse().expect("an integer"));
    let [n, m] = [&golden.q, &golden.k].map(|rows| rows.shape[2]);
    let far: Vec<u8> = (0..n * m).map(|at| u8::from((at / m).abs_diff(at % m) >= gap)).collect();
    let mut sight = golden.inputs().sight;
    if gap > 0 {
        sight = sight.mask(Strided::contiguous(&far, [1, 1, n, m], "mask").unwrap());
    }
    let scores = options.get("scale").map_or_else(Scores::new, |scale| Scores::new().scale(scale.parse().expect("a number")));
    let mut exact = Problem::new(q.view(), k.view(), golden.v.view(), sight, scores).unwrap().definition();
    let mut worst = HashMap::new();
    add_errors(&mut worst, oracle, &d_o);
    let random = &mut Random::new(1);
    for _ in 0..6 {
        add_errors(&mut worst, &exact, &d_o);
        exact.v.iter_mut().for_each(|x| *x *= random.pick(&[-1.0, 1.0]));
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
        let oracle = plan.oracle();
        let (truth, plain) = (oracle.truth(Some(&values(golden.d_o.view()))), plain_errors(&golden, oracle.as_ref()));
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
    for option in ["mechanism", "causal", "block", "recent", "exclude_recent", "beta", "scale"] {
        assert!(files.iter().any(|golden| golden.file.options().contains_key(option)), "no file with {option}");
    }
    for tensor in ["codebook_q", "lengths", "lengths_q", "expected_codes_q", "expected_loss"] {
        assert!(files.iter().any(|golden| golden.file.names().contains(&tensor.to_owned())), "no file with {tensor}");
    }
}
