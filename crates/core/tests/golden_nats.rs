//! The golden files of `golden/nats.py`: the definition and the kernel against neural attention search written a second time,
//! dense, in PyTorch, with gradients by autograd.

mod common;

use common::golden::{Golden, add_errors, near};
use common::heads::Tensor;
use common::{Random, levels, values};
use regard_core::mechanism::{Gradients, Inputs, Plan, Planned};
use regard_core::oracle::{Defined, Oracle, Storage};
use regard_core::{Dims, Output, Par, Problem, Saved, Scores, Strided};
use std::collections::HashMap;

fn files() -> Vec<Golden> {
    Golden::all("nats", 15, |_| "nats")
}

/// Tensors of results that are numbers.
fn results(golden: &Golden) -> Vec<String> {
    let names = golden.file.names().into_iter().filter_map(|name| name.strip_prefix("expected_").map(str::to_owned));
    names.filter(|name| !["types", "until", "visible"].contains(&name.as_str())).collect()
}

fn forward(plan: &Planned<'_>, par: Par) -> (Tensor, Vec<f32>) {
    let Dims { batch, heads, queries, dv, .. } = plan.dims();
    let mut o = Tensor::unfilled(Storage::F32, [batch, heads, queries, dv]);
    let mut lse = vec![f32::NAN; batch * heads * queries];
    plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par).unwrap();
    (o, lse)
}

/// Everything that the kernel computes.
fn run(golden: &Golden, plan: &Planned<'_>, par: Par) -> Vec<(&'static str, Vec<f64>)> {
    let (o, lse) = forward(plan, par);
    let Dims { batch, heads, keys, .. } = plan.dims();
    let mut received = vec![f32::NAN; batch * heads * keys];
    plan.received(&lse, &mut received, par).unwrap();
    let [mut dq, mut dk, mut dv] = [&golden.q, &golden.k, &golden.v].map(|x| Tensor::unfilled(Storage::F32, x.shape));
    let learns = plan.gradients().contains(&"dtype_logits");
    let mut dtype_logits = vec![f32::NAN; golden.type_logits.as_ref().filter(|_| learns).map_or(0, Vec::len)];
    let parts = regard_core::Gradients {
        dq: Some(dq.view_mut()),
        dk: Some(dk.view_mut()),
        dv: Some(dv.view_mut()),
        ..regard_core::Gradients::default()
    };
    let mut gradients = Gradients { dtype_logits: learns.then_some(&mut dtype_logits[..]), ..parts.into() };
    plan.backward(&Saved { o: o.view(), lse: &lse, d_o: golden.d_o.view() }, &mut gradients, par).unwrap();
    let wide = |flat: &[f32]| flat.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let mut all = vec![("o", values(o.view())), ("lse", wide(&lse)), ("received", wide(&received))];
    all.extend([("dq", values(dq.view())), ("dk", values(dk.view())), ("dv", values(dv.view()))]);
    all.extend(learns.then(|| ("dtype_logits", wide(&dtype_logits))));
    all
}

#[test]
fn types_and_lifetimes_are_those_of_every_file() {
    for golden in files() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs, Par::default());
        golden.check_traces(&golden.plan(&inputs, &choices), "");
    }
}

/// With all scores equal and unit vectors for values, `o` is above 0 where a row sees a key.
#[test]
fn rows_see_the_keys_of_every_file() {
    for golden in files() {
        let expected = golden.file.flags("expected_visible").expect("it is written");
        let [_, _, keys, _] = golden.k.shape;
        let [batch, kv_heads, ..] = golden.v.shape;
        let zeros = |shape: [usize; 4]| Tensor::new(shape, vec![0.0; shape.iter().product()]);
        let (q, k) = (zeros(golden.q.shape), zeros(golden.k.shape));
        let units = (0..batch * kv_heads * keys * keys).map(|i| f32::from(u8::from(i / keys % keys == i % keys))).collect();
        let v = Tensor::new([batch, kv_heads, keys, keys], units);
        let inputs = Inputs { q: q.view(), k: k.view(), v: v.view(), ..golden.inputs() };
        let choices = golden.choose(&inputs, Par::default());
        let plan = golden.plan(&inputs, &choices);
        let pairs = expected.values.iter().filter(|&&sees| sees != 0).count();
        assert_eq!(plan.pairs(), pairs as u64, "{}", golden.name);
        for level in levels() {
            let (o, _) = forward(&plan, Par::default().level(level));
            let sees: Vec<u8> = o.floats().iter().map(|&x| u8::from(x > 0.0)).collect();
            assert_eq!(sees, expected.values, "at {level} in {}", golden.name);
        }
    }
}

#[test]
fn the_definition_agrees_with_every_file() {
    for golden in files() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs, Par::default());
        let oracle = golden.plan(&inputs, &choices).oracle();
        let truth = oracle.truth(Some(&golden.d_o()));
        let mut names: Vec<String> = truth.iter().map(|defined| defined.name.to_owned()).collect();
        for Defined { name, values, sizes } in &truth {
            let expected = golden.expected(name);
            near(&format!("{name} of {}", golden.name), values, &expected, |i| 1e-12 * sizes[i].max(expected[i].abs()));
        }
        if let Some(received) = oracle.received() {
            near(&format!("received of {}", golden.name), &received, &golden.expected("received"), |_| 1e-12);
        }
        names.push("received".to_owned());
        names.sort();
        let mut written = results(&golden);
        written.sort();
        assert_eq!(names, written, "{}", golden.name);
    }
}

/// The largest error of each tensor that plain f32 implementations make: of the formula, and of exact attention under the written
/// mask, where weights are both `e / Σe` and `exp(s - lse)`. A file has few numbers: of the latter also with other signs in q.
fn plain_errors(golden: &Golden, oracle: &dyn Oracle) -> HashMap<&'static str, f64> {
    let visible = golden.file.flags("expected_visible").expect("it is written");
    let sight = golden.inputs().sight.mask(Strided::contiguous(&visible.values, visible.four(), "mask").unwrap());
    let options = golden.file.options();
    let scale = options.get("scale").map(|scale| scale.parse().expect("a number"));
    let scores = scale.map_or_else(Scores::new, |scale| Scores::new().scale(scale));
    let mut masked = Problem::new(golden.q.view(), golden.k.view(), golden.v.view(), sight, scores).unwrap().definition();
    let (random, d_o) = (&mut Random::new(1), golden.d_o());
    let mut worst = HashMap::new();
    add_errors(&mut worst, oracle, &d_o);
    for _ in 0..6 {
        add_errors(&mut worst, &masked, &d_o);
        masked.q.iter_mut().for_each(|x| *x *= random.pick(&[-1.0, 1.0]));
    }
    worst
}

/// At most twice the largest error of a plain f32 implementation and 1e-6 of the largest summand. Received attention is a sum of
/// weights, each as exact as its exponent: scores up to 100 are known to 6e-6.
#[test]
fn the_kernel_keeps_the_budget_on_every_file() {
    let mut worst = 0.0f64;
    for golden in files() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs, Par::default());
        let plan = golden.plan(&inputs, &choices);
        let oracle = plan.oracle();
        let (truth, plain) = (oracle.truth(Some(&golden.d_o())), plain_errors(&golden, oracle.as_ref()));
        for level in levels() {
            for (name, found) in run(&golden, &plan, Par::default().level(level)) {
                let (expected, how) = (golden.expected(name), format!("{name} at {level} in {}", golden.name));
                let Some(defined) = truth.iter().find(|defined| defined.name == name) else {
                    near(&how, &found, &expected, |i| 1e-5 * expected[i].max(1.0));
                    continue;
                };
                worst = worst.max(near(&how, &found, &expected, |i| 2.0 * plain[name] + 1e-6 * defined.sizes[i]));
            }
        }
    }
    println!("worst error/budget {worst:.2}");
}

#[test]
fn every_option_and_tensor_has_a_file() {
    let files = files();
    for option in ["window", "query_typed", "scale"] {
        assert!(files.iter().any(|golden| golden.file.options().contains_key(option)), "no file with {option}");
    }
    for tensor in ["types", "type_logits", "lengths", "lengths_q", "expected_dtype_logits"] {
        assert!(files.iter().any(|golden| golden.file.names().contains(&tensor.to_owned())), "no file with {tensor}");
    }
}
