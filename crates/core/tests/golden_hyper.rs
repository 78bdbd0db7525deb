//! The golden files of `golden/hyper.py`: the definition and the kernel against HyperAttention written a second time, dense, in PyTorch,
//! with orders, blocks and draws by its own rules and gradients by autograd.

mod common;

use common::golden::{Golden, add_errors, near};
use common::heads::{Tensor, shuffle};
use common::{Random, levels, siblings, values};
use regard_core::mechanism::{Plan, Planned};
use regard_core::oracle::{Defined, Oracle, Storage};
use regard_core::{Dims, Output, Par, Saved};
use std::collections::HashMap;

fn files() -> Vec<Golden> {
    Golden::all("hyper", 16, |_| "hyper")
}

/// Everything that the kernel computes.
fn run(golden: &Golden, plan: &Planned<'_>, par: Par) -> Vec<(&'static str, Vec<f64>)> {
    let Dims { batch, heads, queries, dv, .. } = plan.dims();
    let mut o = Tensor::unfilled(Storage::F32, [batch, heads, queries, dv]);
    let mut lse = vec![f32::NAN; batch * heads * queries];
    plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par).unwrap();
    let [mut dq, mut dk, mut dv] = [&golden.q, &golden.k, &golden.v].map(|x| Tensor::unfilled(Storage::F32, x.shape));
    let parts = regard_core::Gradients {
        dq: Some(dq.view_mut()),
        dk: Some(dk.view_mut()),
        dv: Some(dv.view_mut()),
        ..regard_core::Gradients::default()
    };
    plan.backward(&Saved { o: o.view(), lse: &lse, d_o: golden.d_o.view() }, &mut parts.into(), par).unwrap();
    let lse = lse.into_iter().map(f64::from).collect();
    let [o, dq, dk, dv] = [o, dq, dk, dv].map(|tensor| values(tensor.view()));
    vec![("o", o), ("lse", lse), ("dq", dq), ("dk", dk), ("dv", dv)]
}

#[test]
fn orders_and_buckets_are_those_of_every_file_at_every_level() {
    for golden in files() {
        let inputs = golden.inputs();
        for level in levels() {
            let choices = golden.choose(&inputs, Par::default().level(level));
            let plan = golden.plan(&inputs, &choices);
            golden.check_traces(&plan, &format!("at {level}"));
            let pairs = golden.file.integers("expected_pairs").expect("it is written").values;
            assert_eq!(vec![plan.pairs() as i64], pairs, "{}", golden.name);
        }
    }
}

#[test]
fn the_definition_agrees_with_every_file() {
    for golden in files() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs, Par::default());
        let truth = golden.plan(&inputs, &choices).oracle().truth(Some(&golden.d_o()));
        assert_eq!(truth.iter().map(|defined| defined.name).collect::<Vec<_>>(), ["o", "lse", "dq", "dk", "dv"]);
        for Defined { name, values, sizes } in &truth {
            let expected = golden.expected(name);
            near(&format!("{name} of {}", golden.name), values, &expected, |i| 1e-12 * sizes[i].max(expected[i].abs()));
        }
    }
}

#[test]
fn single_rows_are_those_of_every_file() {
    for golden in files() {
        let inputs = golden.inputs();
        let choices = golden.choose(&inputs, Par::default());
        let plan = golden.plan(&inputs, &choices);
        let (Dims { batch, heads, queries, dv, .. }, oracle) = (plan.dims(), plan.oracle());
        let (o, lse) = (golden.expected("o"), golden.expected("lse"));
        for head in 0..batch * heads {
            let rows: Vec<usize> = (0..queries).rev().step_by(3).collect();
            for (row, &n) in oracle.rows([head / heads, head % heads], &rows).expect("rows are apart").iter().zip(&rows) {
                let (at, how) = (head * queries + n, format!("row {n} of head {head} of {}", golden.name));
                near(&how, &row.o, &o[at * dv..(at + 1) * dv], |d| 1e-12 * row.largest_term_o[d]);
                near(&how, &[row.lse], &[lse[at]], |_| 1e-12 * lse[at].abs().max(1.0));
            }
        }
    }
}

/// The largest error of each tensor that plain f32 implementations make. A file has few numbers: also with its rows in another order and
/// with other signs.
fn plain_errors(golden: &Golden, oracle: &mut dyn Oracle) -> HashMap<&'static str, f64> {
    let (random, mut worst, mut d_o) = (&mut Random::new(1), HashMap::new(), golden.d_o());
    let widths = [golden.q.shape[3], golden.k.shape[3], golden.v.shape[3]];
    for _ in 0..=siblings(golden.q.shape[2] * golden.k.shape[2]) {
        add_errors(&mut worst, oracle, &d_o);
        oracle.leaves().into_iter().zip(widths).for_each(|((_, leaf), width)| shuffle(random, leaf, width));
        shuffle(random, &mut d_o, widths[2]);
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
        let truth = plan.oracle().truth(Some(&golden.d_o()));
        let plain = plain_errors(&golden, plan.oracle().as_mut());
        for level in levels() {
            for ((name, found), defined) in run(&golden, &plan, Par::default().level(level)).into_iter().zip(&truth) {
                assert_eq!(name, defined.name);
                let how = format!("{name} at {level} in {}", golden.name);
                let share = near(&how, &found, &golden.expected(name), |i| 2.0 * plain[name] + 1e-6 * defined.sizes[i]);
                worst = worst.max(share);
            }
        }
    }
    println!("worst error/budget {worst:.2}");
}

#[test]
fn every_option_and_tensor_has_a_file() {
    let files = files();
    for option in ["bits", "block", "samples", "min_len", "by_norm", "scale"] {
        assert!(files.iter().any(|golden| golden.file.options().contains_key(option)), "no file with {option}");
    }
    for tensor in ["hyperplanes", "lengths", "lengths_q"] {
        assert!(files.iter().any(|golden| golden.file.names().contains(&tensor.to_owned())), "no file with {tensor}");
    }
}
