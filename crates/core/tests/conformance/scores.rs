//! Received attention as a score: the worked table, 1 under uniform attention, gradients; soft masks and gates of training.

use super::common::Random;
use super::common::heads::{Heads, Tensor, sizes};
use super::tokens::reducer;
use regard_core::oracle::{Definition, Storage};
use regard_core::reduce::{Prune, Reducer, Tokens, Uniform};
use regard_core::{Dims, Output, Par, Problem, Scores, Sight, Strided, exact};

fn lse_of(problem: &Problem<'_>, storage: Storage) -> Vec<f32> {
    let Dims { batch, heads, queries, dv, .. } = *problem.dims();
    let mut lse = vec![f32::NAN; batch * heads * queries];
    let mut o = Tensor::unfilled(storage, [batch, heads, queries, dv]);
    exact::forward(problem, &mut Output { o: o.view_mut(), lse: Some(&mut lse) }, Par::default()).unwrap();
    lse
}

/// The score of every key.
fn score_of(problem: &Problem<'_>) -> Vec<f32> {
    let Dims { batch, heads, keys, .. } = *problem.dims();
    let (mut received, mut score) = (vec![f32::NAN; batch * heads * keys], vec![f32::NAN; batch * keys]);
    exact::received(problem, &lse_of(problem, Storage::F32), &mut received, Par::default()).unwrap();
    Uniform::new(problem, Par::default()).score(&received, &mut score).unwrap();
    score
}

/// The score by its formula, from the definition.
fn defined(definition: &Definition) -> Vec<f64> {
    let Definition { batch, heads, queries, keys, .. } = *definition;
    let mut scores = Vec::new();
    for b in 0..batch {
        let (mut received, mut uniform) = (vec![0.0; keys], vec![0.0; keys]);
        for (h, i) in (0..heads).flat_map(|h| (0..queries).map(move |i| (h, i))) {
            let seen: Vec<usize> = (0..keys).filter(|&j| definition.visible(b, h, i, j)).collect();
            for (&j, weight) in seen.iter().map(|j| (j, definition.weights(b, h, i)[*j])) {
                received[j] += weight;
                uniform[j] += 1.0 / seen.len() as f64;
            }
        }
        scores.extend(received.iter().zip(uniform).map(|(c, u)| if u > 0.0 { c / u } else { 0.0 }));
    }
    scores
}

#[test]
fn the_worked_table_sums_to_six_five_nineteen() {
    let rows = [[0.4f32, 0.1, 0.5], [0.1, 0.3, 0.6], [0.1, 0.1, 0.8]];
    let bias = Tensor::new([1, 1, 3, 3], rows.as_flattened().iter().map(|a| a.ln()).collect());
    let zeros = || Tensor::new([1, 1, 3, 1], vec![0.0; 3]);
    let heads = Heads { bias: Some(bias), ..Heads::given([zeros(), zeros(), zeros()]) };
    let score = score_of(&heads.problem(Sight::full(), Scores::new()));
    for (found, expected) in score.iter().zip([0.6, 0.5, 1.9]) {
        assert!((found - expected).abs() < 1e-6, "{score:?}");
    }
}

/// Problems with every kind of visibility, two batch rows or packed sequences, four query heads over two.
fn each_sight(mut check: impl FnMut(&str, Heads, Sight<'_>, Scores<'_>)) {
    let (n, m) = (9, 9);
    let dims = |batch, queries, keys| Dims { batch, ..sizes([4, 2], [queries, keys], [3, 2]) };
    let draw = |batch| Heads::single(dims(batch, n, m), 5);
    let mask: Vec<u8> = (0..2 * 4 * 81).map(|at| u8::from(at % 7 != 0 && at % 3 != 1)).collect();
    let mask = |heads: usize| Strided::contiguous(&mask, [1, heads, n, m], "mask").unwrap();
    let hidden: Vec<f32> = (0..2 * 2 * m).map(|at| if at % 4 == 1 { f32::NEG_INFINITY } else { 0.0 }).collect();
    let until: Vec<i64> = (0..2 * 2 * m as i64).map(|at| at % 11).collect();
    let positions: Vec<i64> = (0..2 * 2 * m as i64).map(|at| at * 5 % 23).collect();
    let offsets = [0, 4, 4, 9];
    check("full", draw(2), Sight::full(), Scores::new());
    check("causal", draw(2), Sight::causal(), Scores::new());
    check("window", draw(2), Sight::full().window(Some(2), Some(1)), Scores::new());
    check("causal window with sinks", draw(2), Sight::causal().window(Some(2), None).sinks(2), Scores::new());
    check("lengths", draw(2), Sight::causal().lengths(&[5, 9]), Scores::new());
    check("fewer queries", Heads::single(dims(2, 4, m), 5), Sight::causal(), Scores::new());
    check("rows that see nothing", Heads::single(dims(2, n, 4), 5), Sight::causal(), Scores::new());
    check("packed", draw(1), Sight::causal().offsets(&offsets, &offsets), Scores::new());
    check("until", draw(2), Sight::causal().until(&until), Scores::new());
    check("positions", draw(2), Sight::causal().positions(&positions[..2 * n], &positions), Scores::new());
    check("a mask for all heads", draw(2), Sight::causal().mask(mask(1)), Scores::new());
    check("a mask per head", draw(2), Sight::full().mask(mask(4)), Scores::new());
    check("hidden keys", draw(2), Sight::causal(), Scores::new().key_bias(&hidden));
}

#[test]
fn the_score_is_one_under_uniform_attention_for_every_mask() {
    each_sight(|name, mut heads, sight, scores| {
        heads.q.floats_mut().fill(0.0);
        let problem = heads.problem(sight, scores);
        let definition = problem.definition();
        let Definition { batch, heads, queries, keys, .. } = definition;
        let seen = |b, j| (0..heads).any(|h| (0..queries).any(|i| definition.visible(b, h, i, j)));
        for (at, score) in score_of(&problem).iter().enumerate() {
            let expected = f32::from(u8::from(seen(at / keys, at % keys)));
            assert!((score - expected).abs() < 2e-6, "{name}: key {at} of {batch} x {keys} has {score}, expected {expected}");
        }
    });
}

#[test]
fn scores_are_as_defined() {
    each_sight(|name, heads, sight, scores| {
        let problem = heads.problem(sight, scores);
        for (found, expected) in score_of(&problem).iter().zip(defined(&problem.definition())) {
            assert!((f64::from(*found) - expected).abs() < 5e-6 * (1.0 + expected), "{name}: {found} {expected}");
        }
    });
}

/// `Σ dc·c` by the definition.
fn value(definition: &Definition, dc: &[f32]) -> f64 {
    definition.forward().received.iter().zip(dc).map(|(c, dc)| c * f64::from(*dc)).sum()
}

fn check_received_gradient(name: &str, heads: &Heads, problem: &Problem<'_>) {
    let Dims { batch, heads: h, keys, .. } = *problem.dims();
    let random = &mut Random::new(3);
    let dc: Vec<f32> = (0..batch * h * keys).map(|_| random.normal()).collect();
    let (mut dq, mut dk) = (Tensor::unfilled(Storage::F32, heads.q.shape), Tensor::unfilled(Storage::F32, heads.k.shape));
    exact::received_backward(problem, &lse_of(problem, Storage::F32), &dc, (dq.view_mut(), dk.view_mut()), Par::default()).unwrap();
    let definition = problem.definition();
    let check = |what: &str, found: &[f32], field: fn(&mut Definition) -> &mut Vec<f64>| {
        for (at, found) in found.iter().enumerate() {
            let moved = |step: f64| {
                let mut definition = definition.clone();
                field(&mut definition)[at] += step;
                value(&definition, &dc)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((slope - f64::from(*found)).abs() < 3e-6 * (1.0 + slope.abs()), "{name}: {what}[{at}] is {found}, differences {slope}");
        }
    };
    check("dq", dq.floats(), |definition| &mut definition.q);
    check("dk", dk.floats(), |definition| &mut definition.k);
}

#[test]
fn the_gradient_of_received_attention_is_finite_differences() {
    each_sight(|name, heads, sight, scores| {
        check_received_gradient(name, &heads, &heads.problem(sight, scores));
        let biased = heads.clone().with_bias([1, 4], 8);
        check_received_gradient(name, &biased, &biased.problem(sight, scores.alibi().softcap(2.0)));
    });
    let empty = Heads::single(sizes([2, 1], [0, 3], [3, 2]), 1);
    check_received_gradient("no queries", &empty, &empty.problem(Sight::full(), Scores::new()));
}

#[test]
fn the_gradient_of_received_attention_narrows_at_the_end() {
    let dims = Dims { batch: 2, ..sizes([4, 2], [70, 70], [16, 8]) };
    let heads = Heads::draw(dims, Storage::Bf16, 2);
    let problem = heads.problem(Sight::causal(), Scores::new());
    let random = &mut Random::new(3);
    let dc: Vec<f32> = (0..2 * 4 * 70).map(|_| random.normal()).collect();
    let run = |storage, threads: usize| {
        let (mut dq, mut dk) = (Tensor::unfilled(storage, heads.q.shape), Tensor::unfilled(storage, heads.k.shape));
        let views = (dq.view_mut(), dk.view_mut());
        exact::received_backward(&problem, &lse_of(&problem, Storage::Bf16), &dc, views, Par::default().threads(threads)).unwrap();
        [super::common::values(dq.view()), super::common::values(dk.view())].concat()
    };
    let wide = run(Storage::F32, 1);
    assert_eq!(wide, run(Storage::F32, 2));
    for (wide, narrow) in wide.iter().zip(run(Storage::Bf16, 2)) {
        assert!((wide - narrow).abs() <= wide.abs() / 256.0, "{wide} {narrow}");
    }
}

#[test]
fn the_gradient_of_the_score_reaches_every_head() {
    let heads = Heads::single(sizes([4, 2], [5, 5], [3, 2]), 1);
    let problem = heads.problem(Sight::causal(), Scores::new());
    let uniform = Uniform::new(&problem, Par::default());
    let random = &mut Random::new(1);
    let mut normals = |count| -> Vec<f32> { (0..count).map(|_| random.normal()).collect() };
    let (received, dscore) = (normals(20), normals(5));
    let (mut score, mut dreceived) = (vec![0.0; 5], vec![f32::NAN; 20]);
    uniform.score(&received, &mut score).unwrap();
    uniform.backward(&dscore, &mut dreceived).unwrap();
    let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    assert!((dot(&score, &dscore) - dot(&received, &dreceived)).abs() < 1e-4);
    assert!(uniform.score(&received[1..], &mut score).unwrap_err().to_string().contains("received has shape [19], expected [20]"));
}

#[test]
fn a_soft_mask_has_the_gradient_of_its_score_and_threshold() {
    let (score, dmask) = ([0.9f32, 1.2, 0.2, 1.0], [0.5f32, -1.0, 2.0, 0.7]);
    let prune = Prune { temperature: 0.25, ..Prune::default() };
    let mask = |score: &[f32], t| prune.soft_mask(&Tokens { score: Some(score), ..Tokens::<f32>::new(&[0, 4]) }, t).unwrap();
    let value = |score: &[f32], t| -> f32 { mask(score, t).iter().zip(dmask).map(|(m, dm)| m * dm).sum() };
    let found = mask(&score, 1.0);
    assert_eq!((found[0], found[3]), (1.0, 0.5)); // the first is protected
    let (dscore, dt) = prune.soft_mask_backward(&found, &dmask).unwrap();
    let slope = (value(&score, 1.01) - value(&score, 0.99)) / 0.02;
    assert!((slope - dt).abs() < 3e-3, "{slope} {dt}");
    for at in 0..4 {
        let moved = |step: f32| {
            let mut score = score;
            score[at] += step;
            value(&score, 1.0)
        };
        let slope = (moved(0.01) - moved(-0.01)) / 0.02;
        assert!((slope - dscore[at]).abs() < 3e-3, "{at}: {slope} {}", dscore[at]);
    }
}

#[test]
fn gates_close_softly_and_the_controller_stays_in_bounds() {
    let logits = [0.5f32, -2.0, 0.0];
    let Reducer::DeleteGate(gate) = reducer("delete_gate", &[("target_rate", "0.6")]) else { panic!("delete_gate") };
    let gates = |logits: &[f32]| gate.gates(&Tokens { gate_logits: Some(logits), ..Tokens::<f32>::new(&[0, 3]) }).unwrap();
    let found = gates(&logits);
    assert_eq!(found[2], -15.0);
    assert!((found[1] + 30.0 / (1.0 + (-2f32).exp())).abs() < 1e-5);
    let slopes = gate.gates_backward(&found, &[1.0; 3]).unwrap();
    for at in 0..3 {
        let moved = |step: f32| {
            let mut logits = logits;
            logits[at] += step;
            gates(&logits)[at]
        };
        assert!(((moved(0.01) - moved(-0.01)) / 0.02 - slopes[at]).abs() < 1e-2, "{at}: {}", slopes[at]);
    }
    let mut controller = gate.controller();
    assert!((controller.step(0.2) - 0.5 * 0.1 * 0.4).abs() < 1e-4);
    assert!((controller.step(0.2) - 0.5 * 0.19 * 0.4).abs() < 1e-4);
    assert_eq!((0..9).map(|_| controller.step(1.0)).last(), Some(0.0));
    controller.integral = 1e3;
    controller.error = 0.0;
    assert_eq!((controller.step(0.0), controller.sum), (10.0, 10.0));
    controller.step(1.0);
    assert_eq!((controller.step(1.0), controller.sum), (0.0, 0.0));
}
