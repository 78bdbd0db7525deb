//! Five combinations of options at 4,097 tokens, one more than blocks divide: everything the kernel computes, against the
//! definition. And how much memory a quarter of a million tokens take beside inputs and results.

mod common;

use common::heads::{Heads, Tensor, sizes};
use common::{Random, levels};
use regard_core::oracle::Storage;
use regard_core::{Dims, Dropout, Gradients, Output, Par, Problem, Saved, Scores, Sight, exact};
use std::process::Command;

const N: usize = 4097;

/// Checks every output and gradient on all threads, at every level; in 16 bits at the best, because each verdict takes four
/// more backward passes of the definition.
fn verify(name: &str, heads: &Heads, problem: &Problem<'_>) {
    let judge = heads.judge(problem);
    let enough = if heads.storage == Storage::F32 { usize::MAX } else { 1 };
    for level in levels().collect::<Vec<_>>().into_iter().rev().take(enough) {
        let share = judge.weigh(&heads.run(problem, Par::default().level(level)), &format!("at {level} in {name}"));
        println!("{name} at {level}: worst error/budget {share:.2}");
    }
}

#[test]
fn causal_with_grouped_heads_and_key_biases() {
    let heads = Heads::single(sizes([2, 1], [N, N], [16, 16]), 1);
    let bias: Vec<f32> = (0..N).map(|j| if j % 11 == 3 { f32::NEG_INFINITY } else { (j as f32 * 0.7).sin() }).collect();
    verify("causal, grouped heads, key biases", &heads, &heads.problem(Sight::causal(), Scores::new().key_bias(&bias)));
}

#[test]
fn a_window_with_sinks_and_alibi() {
    let heads = Heads::single(sizes([2, 2], [N, N], [32, 16]), 2);
    let sight = Sight::full().window(Some(299), Some(70)).sinks(5);
    verify("window, sinks, ALiBi", &heads, &heads.problem(sight, Scores::new().alibi()));
}

/// One key in ten lives for ever, another one in ten until the next that does, the others for 64 tokens.
fn lifetimes(count: usize, random: &mut Random) -> Vec<i64> {
    let kinds: Vec<f64> = (0..count).map(|_| random.unit()).collect();
    let next = |j: usize| (j + 1..count).find(|&i| kinds[i] < 0.1).map_or(i64::MAX, |i| i as i64 + 1);
    let ends = |(j, &kind): (usize, &f64)| match kind {
        kind if kind < 0.1 => i64::MAX,
        kind if kind < 0.2 => next(j),
        _ => j as i64 + 65,
    };
    kinds.iter().enumerate().map(ends).collect()
}

#[test]
fn lifetimes_with_a_softcap() {
    let heads = Heads::single(sizes([2, 2], [N, N], [16, 32]), 3);
    let random = &mut Random::new(3);
    let until = [lifetimes(N, random), lifetimes(N, random)].concat();
    verify("lifetimes, soft-cap", &heads, &heads.problem(Sight::causal().until(&until), Scores::new().softcap(3.0)));
}

/// So many heads that a job of the backward pass takes several pieces of keys.
#[test]
fn lifetimes_of_sixteen_heads() {
    const SHORT: usize = 1100;
    let heads = Heads::single(sizes([16, 16], [SHORT, SHORT], [16, 8]), 31);
    let random = &mut Random::new(31);
    let until: Vec<i64> = (0..16).flat_map(|_| lifetimes(SHORT, random)).collect();
    verify("lifetimes of sixteen heads", &heads, &heads.problem(Sight::causal().until(&until), Scores::new()));
}

#[test]
fn packed_sequences_with_a_dense_bias_and_dropout() {
    let heads = Heads::single(sizes([1, 1], [N, N], [16, 16]), 4).with_bias([1, 1], 5);
    let (queries, keys) = ([0, 1000, 1001, 1001, 2500, N], [0, 900, 1100, 1163, 2500, N]);
    let scores = Scores::new().dropout(Dropout { probability: 0.1, seed: 6, step: 7 });
    verify("packed, dense bias, dropout", &heads, &heads.problem(Sight::full().offsets(&queries, &keys), scores));
}

#[test]
fn padded_rows_of_bf16() {
    let heads = Heads::draw(Dims { batch: 2, ..sizes([1, 1], [N, N], [16, 16]) }, Storage::Bf16, 8);
    verify("bf16, causal, lengths", &heads, &heads.problem(Sight::causal().lengths(&[N - 65, 700]), Scores::new()));
}

/// Names the process that measures itself.
const CHILD: &str = "REGARD_MEASURES_ITS_MEMORY";

/// The most memory that this process ever held, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a system with /proc");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse::<usize>().ok()).expect("a number of kB") * 1024
}

/// What forward and backward take beside inputs, outputs and gradients, all of which are touched before.
fn beside_inputs_and_results(tokens: usize, sight: Sight<'_>) -> usize {
    let heads = Heads::single(sizes([1, 1], [tokens, tokens], [64, 64]), 9);
    let problem = heads.problem(sight, Scores::new());
    let [mut o, mut dq, mut dk, mut dv] = [(); 4].map(|()| Tensor::unfilled(Storage::F32, heads.q.shape));
    let mut lse = vec![f32::NAN; tokens];
    let before = peak();
    exact::forward(&problem, &mut Output { o: o.view_mut(), lse: Some(&mut lse) }, Par::default()).unwrap();
    let saved = Saved { o: o.view(), lse: &lse, d_o: heads.d_o.view() };
    let (q, k, v) = (Some(dq.view_mut()), Some(dk.view_mut()), Some(dv.view_mut()));
    exact::backward(&problem, &saved, &mut Gradients { dq: q, dk: k, dv: v, ..Gradients::default() }, Par::default()).unwrap();
    assert!([&o, &dq, &dk, &dv].iter().all(|tensor| tensor.floats().iter().all(|x| x.is_finite())));
    peak() - before
}

/// In a window of 256: memory does not depend on what is visible, and all pairs would take half an hour. A process of its
/// own measures, because the peak of this one belongs to whatever ran before.
#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
fn a_quarter_of_a_million_tokens_in_a_window_take_64_mib_beside_inputs_and_results() {
    const TEST: &str = "a_quarter_of_a_million_tokens_in_a_window_take_64_mib_beside_inputs_and_results";
    if std::env::var_os(CHILD).is_some() {
        let bytes = beside_inputs_and_results(262_144, Sight::causal().window(Some(255), None));
        println!("{} KiB beside inputs and results", bytes / 1024);
        return assert!(bytes < 64 << 20, "{bytes} bytes beside inputs and results");
    }
    let program = std::env::current_exe().expect("this test");
    let child = Command::new(program).args(["--exact", TEST, "--nocapture"]).env(CHILD, "1").output().expect("it starts");
    let said = String::from_utf8_lossy(&child.stdout);
    println!("{said}");
    assert!(child.status.success() && said.contains("KiB beside inputs and results"), "{}", String::from_utf8_lossy(&child.stderr));
}
