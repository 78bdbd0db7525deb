//! What neural attention search has to hold beyond what every mechanism does: each trap by name.

mod common;

use common::heads::{Heads, Tensor, sizes};
use common::steps::rows;
use common::{Random, levels, values};
use regard_core::mechanism::{Choices, Gradients, Inputs, Mechanism, Memory, Pass, Plan, Planned, State, Token, Tokens, Trace};
use regard_core::oracle::Storage;
use regard_core::{Dims, Output, Par, Saved, Sight};

const GLOBAL: i64 = 0;
const LOCAL: i64 = 1;
const WINDOW: i64 = 2;

fn nats(options: &[(&str, &str)]) -> Mechanism {
    let mut mechanism = Mechanism::by_name("nats").unwrap();
    options.iter().for_each(|(name, value)| mechanism.set(name, value).unwrap());
    mechanism
}

fn inputs<'a>(heads: &'a Heads, sight: Sight<'a>) -> Inputs<'a> {
    Inputs::new(heads.q.view(), heads.k.view(), heads.v.view(), sight)
}

fn typed<'a>(heads: &'a Heads, types: &'a [i64]) -> Inputs<'a> {
    Inputs { types: Some(types), ..inputs(heads, Sight::causal()) }
}

fn by_logits<'a>(heads: &'a Heads, logits: &'a [f32]) -> Inputs<'a> {
    Inputs { type_logits: Some(logits), ..inputs(heads, Sight::causal()) }
}

fn choose(mechanism: &Mechanism, inputs: &Inputs<'_>) -> Choices {
    mechanism.choose(inputs, Pass::default(), Par::default()).unwrap()
}

fn trace(mechanism: &Mechanism, inputs: &Inputs<'_>, name: &str) -> Trace {
    let choices = choose(mechanism, inputs);
    let traces = mechanism.plan(inputs, &choices, Pass::default()).unwrap().traces();
    traces.into_iter().find(|trace| trace.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn forward(plan: &Planned<'_>, par: Par) -> (Tensor, Vec<f32>) {
    let Dims { batch, heads, queries, dv, .. } = plan.dims();
    let mut o = Tensor::unfilled(Storage::F32, [batch, heads, queries, dv]);
    let mut lse = vec![f32::NAN; batch * heads * queries];
    plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par).unwrap();
    (o, lse)
}

/// One head whose scores are all equal, with unit vectors for values: a row of `o` is above 0 where it sees a key.
fn looking(queries: usize, keys: usize) -> Heads {
    let units = (0..keys * keys).map(|i| f32::from(u8::from(i / keys == i % keys))).collect();
    let zeros = |n: usize| Tensor::new([1, 1, n, 1], vec![0.0; n]);
    Heads::given([zeros(queries), zeros(keys), Tensor::new([1, 1, keys, keys], units)])
}

/// The keys that each row of one head sees, at every level.
fn seen(mechanism: &Mechanism, queries: usize, types: &[i64], keys: usize) -> Vec<Vec<usize>> {
    let heads = looking(queries, keys);
    let inputs = typed(&heads, types);
    let choices = choose(mechanism, &inputs);
    let plan = mechanism.plan(&inputs, &choices, Pass::default()).unwrap();
    let at = |level| {
        let (o, _) = forward(&plan, Par::default().level(level));
        let row = |row: &[f32]| (0..keys).filter(|&j| row[j] > 0.0).collect();
        o.floats().chunks(keys).map(row).collect::<Vec<Vec<usize>>>()
    };
    let mut all: Vec<_> = levels().map(at).collect();
    all.dedup();
    assert_eq!(all.len(), 1, "levels differ");
    all.remove(0)
}

/// The gradient of the logits, where `o` has the gradient of the heads.
fn logit_gradient(mechanism: &Mechanism, inputs: &Inputs<'_>, d_o: &Tensor) -> Vec<f32> {
    let choices = choose(mechanism, inputs);
    let plan = mechanism.plan(inputs, &choices, Pass::default()).unwrap();
    let (o, lse) = forward(&plan, Par::default());
    let mut into = vec![f32::NAN; inputs.type_logits.unwrap().len()];
    let mut gradients = Gradients { dtype_logits: Some(&mut into), ..Gradients::default() };
    plan.backward(&Saved { o: o.view(), lse: &lse, d_o: d_o.view() }, &mut gradients, Par::default()).unwrap();
    into
}

/// Logits that choose these types.
fn choosing(types: &[i64]) -> Vec<f32> {
    types.iter().flat_map(|&kind| [GLOBAL, LOCAL, WINDOW].map(|of| if of == kind { 1.0 } else { 0.0 })).collect()
}

#[test]
fn a_local_lives_up_to_the_next_global_inclusive() {
    let types = [LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL];
    let rows = seen(&nats(&[("window", "0")]), 7, &types, 7);
    assert_eq!(rows, [&[0][..], &[0, 1], &[0, 1, 2], &[2, 3], &[2, 3, 4], &[2, 3, 4, 5], &[2, 5, 6]]);
    let heads = looking(7, 7);
    let until = trace(&nats(&[]), &typed(&heads, &types), "until");
    assert_eq!((until.shape, until.values), (vec![1, 1, 7], vec![3, 3, 7, 6, 6, 7, 7]));
}

#[test]
fn without_a_later_global_a_local_lives_to_the_end() {
    let rows = seen(&nats(&[("window", "0")]), 150, &[LOCAL; 150], 150);
    rows.iter().enumerate().for_each(|(i, row)| assert_eq!(*row, (0..=i).collect::<Vec<_>>()));
}

#[test]
fn a_window_key_is_seen_by_window_plus_1_queries() {
    for window in [0usize, 1, 3, 15, 16, 63, 64, 1000] {
        let rows = seen(&nats(&[("window", &window.to_string())]), 140, &[WINDOW; 140], 140);
        for j in 0..140 {
            let by: Vec<usize> = (0..140).filter(|&i| rows[i].contains(&j)).collect();
            assert_eq!(by, (j..140.min(j + window + 1)).collect::<Vec<_>>(), "key {j} with window {window}");
        }
    }
    let rows = seen(&nats(&[]), 40, &[WINDOW; 40], 40);
    assert_eq!(rows[39], (23..40).collect::<Vec<_>>(), "16 if nothing is said");
}

#[test]
fn a_window_key_outlives_a_global() {
    let rows = seen(&nats(&[("window", "3")]), 6, &[WINDOW, LOCAL, GLOBAL, GLOBAL, LOCAL, GLOBAL], 6);
    assert_eq!(rows, [&[0][..], &[0, 1], &[0, 1, 2], &[0, 2, 3], &[2, 3, 4], &[2, 3, 4, 5]]);
}

#[test]
fn queries_stand_at_the_end_of_more_keys() {
    let types = [GLOBAL, LOCAL, WINDOW, GLOBAL, LOCAL, WINDOW];
    assert_eq!(seen(&nats(&[("window", "2")]), 2, &types, 6), [&[0, 2, 3, 4][..], &[0, 3, 4, 5]]);
}

#[test]
fn token_0_is_global_by_logits_and_as_it_is_by_types() {
    let heads = Heads::single(sizes([4, 2], [3, 3], [4, 4]), 1);
    let types = [WINDOW, LOCAL, WINDOW, LOCAL, WINDOW, LOCAL];
    let logits = choosing(&types);
    let mechanism = nats(&[("window", "0")]);
    assert_eq!(trace(&mechanism, &by_logits(&heads, &logits), "types").values, [0, 1, 2, 0, 2, 1]);
    assert_eq!(trace(&mechanism, &by_logits(&heads, &logits), "until").values, [3, 3, 3, 3, 2, 3]);
    assert_eq!(trace(&mechanism, &typed(&heads, &types), "types").values, types);
    assert_eq!(trace(&mechanism, &typed(&heads, &types), "until").values, [1, 3, 3, 3, 2, 3]);
}

#[test]
fn a_state_forces_its_first_token_once() {
    let heads = Heads::single(sizes([2, 1], [4, 4], [4, 4]), 1);
    let all_window = choosing(&[WINDOW; 4]);
    for first in [0, 1, 3] {
        let mut state = nats(&[("window", "0")]).start().unwrap();
        for tokens in [0..first, first..4] {
            let (k, v) = (rows(&heads.k, tokens.clone()), rows(&heads.v, tokens.clone()));
            state.prefill(&Tokens { type_logits: Some(&all_window[tokens.start * 3..tokens.end * 3]), ..Tokens::new(k, v) }).unwrap();
        }
        assert_eq!(held_of(&state), [2], "token 0 and the last one, after {first}");
    }
}

#[test]
fn ties_go_to_the_lower_number() {
    let logits =
        [[5.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [-0.0, 0.0, -1.0], [-2.0, -1.0, -1.0]];
    let heads = Heads::single(sizes([1, 1], [7, 7], [4, 4]), 1);
    assert_eq!(trace(&nats(&[]), &by_logits(&heads, &logits.concat()), "types").values, [0, 0, 1, 0, 0, 0, 1]);
}

#[test]
fn all_global_is_exact_attention() {
    let heads = Heads::single(sizes([4, 2], [130, 150], [16, 8]), 5);
    let exact = Mechanism::by_name("exact").unwrap();
    let plain = inputs(&heads, Sight::causal());
    let types = vec![GLOBAL; 2 * 150];
    let logits = choosing(&types);
    for given in [typed(&heads, &types), by_logits(&heads, &logits)] {
        let [(o, lse, pairs), (exact_o, exact_lse, exact_pairs)] = [(&nats(&[]), &given), (&exact, &plain)].map(|(mechanism, inputs)| {
            let choices = choose(mechanism, inputs);
            let plan = mechanism.plan(inputs, &choices, Pass::default()).unwrap();
            let (o, lse) = forward(&plan, Par::default());
            (o.floats().to_vec(), lse, plan.pairs())
        });
        assert_eq!(pairs, exact_pairs);
        let near = |found: &[f32], expected: &[f32]| found.iter().zip(expected).all(|(x, y)| (x - y).abs() <= 4e-6 * y.abs().max(1.0));
        assert!(near(&o, &exact_o) && near(&lse, &exact_lse));
    }
}

fn held_of(state: &State) -> Vec<usize> {
    let State::Nats(live) = state else { panic!("nats started it") };
    live.held()
}

/// Takes in tokens from `start` on whose types are given by kv heads.
fn take_in(state: &mut State, heads: &Heads, start: usize, types: &[Vec<i64>]) {
    let end = start + types[0].len();
    let (k, v) = (rows(&heads.k, start..end), rows(&heads.v, start..end));
    state.prefill(&Tokens { types: Some(&types.concat()), ..Tokens::new(k, v) }).unwrap();
}

#[test]
fn memory_falls_after_a_global() {
    let heads = Heads::single(sizes([2, 2], [1000, 1000], [8, 8]), 3);
    let mut state = nats(&[("window", "4")]).start().unwrap();
    take_in(&mut state, &heads, 0, &[vec![LOCAL; 900], vec![WINDOW; 900]]);
    let before = state.bytes();
    assert_eq!(held_of(&state), [900, 5], "heads are ragged");
    take_in(&mut state, &heads, 900, &[vec![GLOBAL], vec![GLOBAL]]);
    assert_eq!(held_of(&state), [901, 5], "the global itself sees the locals");
    take_in(&mut state, &heads, 901, &[vec![LOCAL], vec![WINDOW]]);
    assert_eq!(held_of(&state), [2, 5]);
    assert_eq!(state.tokens(), 902);
    assert!(4 * state.bytes() < before, "{} bytes after {before}", state.bytes());
}

#[test]
fn a_state_of_one_token_in_ten_global_stays_far_below_all_keys() {
    let (tokens, random) = (3000, &mut Random::new(4));
    let heads = Heads::single(sizes([4, 2], [tokens, tokens], [8, 8]), 9);
    let draw = |random: &mut Random| if random.chance(0.1) { GLOBAL } else { random.pick(&[LOCAL, WINDOW]) };
    let types: [Vec<i64>; 2] = std::array::from_fn(|_| (0..tokens).map(|_| draw(random)).collect());
    let mut state = nats(&[]).start().unwrap();
    let mut most = 0;
    for t in 0..tokens {
        let kept: Vec<i64> = types.iter().map(|head| head[t]).collect();
        let tokens = Tokens { types: Some(&kept), ..Tokens::new(rows(&heads.k, t..t + 1), rows(&heads.v, t..t + 1)) };
        let mut o = Tensor::unfilled(Storage::F32, [1, 4, 1, 8]);
        let token = Token { q: rows(&heads.q, t..t + 1), kept: tokens, bias: None, mask: None };
        state.step(&token, &mut Output { o: o.view_mut(), lse: None }, Par::serial()).unwrap();
        let held = held_of(&state);
        for (head, held) in types.iter().zip(&held) {
            let globals = head[..=t].iter().filter(|&&kind| kind == GLOBAL).count();
            let since = head[..=t].iter().rev().skip(1).take_while(|&&kind| kind != GLOBAL).count() + 2;
            assert!(*held <= globals + since + 17, "{held} keys after token {t} with {globals} globals");
        }
        most = most.max(state.bytes());
    }
    let all = 2 * tokens * (8 + 8) * 4;
    assert!(2 * most < all, "{most} bytes, all keys are {all}");
    assert!(held_of(&state).iter().all(|&held| 8 * held < tokens), "{:?}", held_of(&state));
}

/// `[1, 1, tokens, 1]` of given numbers.
fn column(values: &[f32]) -> Tensor {
    Tensor::new([1, 1, values.len(), 1], values.to_vec())
}

#[test]
fn a_globals_gradient_sees_the_locals_that_it_cuts_off() {
    // All scores are 0, so the last row is the mean of values 0, 2 and 3; local 1 was cut off by global 2.
    let logits = [[9.0, 0.0, 0.0], [0.0, 1.0, 0.5], [1.0, 0.25, 0.5], [0.0, 0.5, 1.0]].concat();
    let mechanism = nats(&[("window", "0")]);
    let gradient = |local: f32| {
        let zeros = || column(&[0.0; 4]);
        let heads = Heads::given([zeros(), zeros(), column(&[1.0, local, -2.0, 5.0])]);
        logit_gradient(&mechanism, &by_logits(&heads, &logits), &column(&[0.0, 0.0, 0.0, 1.0]))
    };
    for local in [7.0, -3.0] {
        let o = (1.0 - 2.0 + 5.0) / 3.0;
        let slope = |value: f64| (value - o) / 3.0;
        // By g: the last row sees global 2, and would see local 1 without it. By l and w: neither type shows key 2 to it.
        let slopes = [slope(-2.0) - slope(local), 0.0, 0.0];
        let exponentials = [1.0f64, 0.25, 0.5].map(f64::exp);
        let sum: f64 = exponentials.iter().sum();
        let mean: f64 = exponentials.iter().zip(slopes).map(|(e, slope)| e / sum * slope).sum();
        let found = gradient(local as f32);
        for kind in 0..3 {
            let expected = exponentials[kind] / sum * (slopes[kind] - mean);
            assert!((f64::from(found[6 + kind]) - expected).abs() < 1e-6, "{found:?}, expected {expected} by type {kind}");
        }
    }
}

#[test]
fn forced_tokens_have_no_gradient_and_others_do() {
    let dims = Dims { batch: 2, ..sizes([4, 2], [30, 30], [8, 8]) };
    let heads = Heads::single(dims, 6);
    let random = &mut Random::new(2);
    let logits: Vec<f32> = (0..2 * 2 * 30 * 3).map(|_| random.normal()).collect();
    let found = logit_gradient(&nats(&[("window", "3")]), &by_logits(&heads, &logits), &heads.d_o);
    for (at, token) in found.chunks(3).enumerate() {
        // Its own row sees the last token whatever its type.
        let nothing = token.iter().all(|x| x.abs() < if at % 30 == 29 { 1e-6 } else { f32::MIN_POSITIVE });
        assert_eq!(nothing, [0, 29].contains(&(at % 30)), "{token:?} of token {}", at % 30);
        assert!(token.iter().sum::<f32>().abs() <= 1e-6 * token.iter().fold(1.0, |most: f32, x| most.max(x.abs())), "softmax: {token:?}");
    }
}

#[test]
fn every_packed_sequence_forces_its_own_first_token() {
    let offsets = [0, 5, 5, 6, 11];
    let heads = Heads::single(sizes([2, 2], [11, 11], [8, 8]), 8);
    let mut logits = choosing(&[WINDOW; 22]);
    for token in [2, 8] {
        logits[token * 3..][..3].copy_from_slice(&[0.0, 1.0, 0.5]);
    }
    let given = Inputs { type_logits: Some(&logits), ..inputs(&heads, Sight::causal().offsets(&offsets, &offsets)) };
    let mechanism = nats(&[("window", "1")]);
    let types = trace(&mechanism, &given, "types").values;
    assert_eq!(types[..11], [0, 2, 1, 2, 2, 0, 0, 2, 1, 2, 2]);
    assert_eq!(types[11..], [0, 2, 2, 2, 2, 0, 0, 2, 2, 2, 2]);
    let until = trace(&mechanism, &given, "until").values;
    assert_eq!(until[..11], [11, 3, 11, 5, 6, 11, 11, 3, 11, 5, 6], "positions count inside a sequence");
    let found = logit_gradient(&mechanism, &given, &heads.d_o);
    for (at, token) in found.chunks(3).enumerate() {
        let (forced, free) = ([0, 5, 6].contains(&(at % 11)), [1, 2, 7, 8].contains(&(at % 11)));
        let nothing = token.iter().all(|&x| x == 0.0);
        assert!(if nothing { !free } else { !forced }, "{token:?} of token {}", at % 11);
    }
}

#[test]
fn types_of_queries_say_how_far_back_a_row_looks() {
    let types = [WINDOW, LOCAL, GLOBAL, WINDOW, WINDOW, WINDOW, GLOBAL, LOCAL];
    let rows = seen(&nats(&[("query_typed", "true")]), 8, &types, 8);
    let all = [&[0][..], &[1], &[0, 1, 2], &[0, 1, 2, 3], &[1, 2, 3, 4], &[2, 3, 4, 5], &[0, 1, 2, 3, 4, 5, 6], &[7]];
    assert_eq!(rows, all, "a window of 3 if nothing is said");
    let rows = seen(&nats(&[("query_typed", "true"), ("window", "1")]), 3, &[WINDOW, GLOBAL, LOCAL], 5);
    assert_eq!(rows, [&[1, 2][..], &[0, 1, 2, 3], &[4]], "at the end of more keys");
    let rows = seen(&nats(&[("query_typed", "true"), ("window", "0")]), 3, &[WINDOW, WINDOW, LOCAL], 3);
    assert_eq!(rows, [[0], [1], [2]]);
}

#[test]
fn a_state_with_types_of_queries_keeps_every_key() {
    let heads = Heads::single(sizes([2, 1], [50, 50], [8, 8]), 3);
    let mut state = nats(&[("query_typed", "true")]).start().unwrap();
    state.prefill(&Tokens::new(heads.k.view(), heads.v.view())).unwrap();
    assert_eq!(held_of(&state), [50]);
}

/// What choosing says against these inputs.
fn refusal(options: &[(&str, &str)], inputs: &Inputs<'_>) -> String {
    nats(options).choose(inputs, Pass::default(), Par::default()).unwrap_err().to_string()
}

#[track_caller]
fn says(found: &str, expected: &str) {
    assert!(found.contains(expected), "{found:?} does not say {expected:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    for (name, value) in [("window", "-1"), ("window", "x"), ("query_typed", "maybe"), ("scale", "x"), ("types", "0")] {
        assert!(Mechanism::by_name("nats").unwrap().set(name, value).is_err(), "{name}={value}");
    }
    let heads = Heads::single(sizes([4, 2], [5, 5], [4, 4]), 1);
    let (mut types, logits) = ([WINDOW; 10], [0.0; 30]);
    let given = typed(&heads, &types);
    says(&refusal(&[], &Inputs { type_logits: Some(&logits), ..given.clone() }), "types and type_logits exclude each other");
    says(&refusal(&[], &inputs(&heads, Sight::causal())), "nats needs the types of its tokens, or type_logits");
    says(&refusal(&[], &Inputs { sight: Sight::full(), ..given.clone() }), "nats is causal only");
    says(&refusal(&[], &typed(&heads, &types[..9])), "types has shape [9], expected [10]");
    says(&refusal(&[], &by_logits(&heads, &logits[..10])), "type_logits has shape [10], expected [30]");
    says(&refusal(&[("query_typed", "true")], &given), "types has shape [10], expected [20]");
    says(&refusal(&[], &Inputs { key_bias: Some(&[0.0; 10]), ..given.clone() }), "nats reads no key_bias");
    says(&refusal(&[], &Inputs { until: Some(&[5; 10]), ..given.clone() }), "nats reads no until");
    let spans = Sight::causal().key_spans(&[[0, 5]; 2]);
    says(&refusal(&[], &Inputs { sight: spans, ..given.clone() }), "nats takes no key_spans and no key_positions");
    let (queries, keys) = ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    let positions = Sight::causal().positions(&queries, &keys);
    says(&refusal(&[], &Inputs { sight: positions, ..given.clone() }), "nats takes no key_spans and no key_positions");
    types[8] = 7;
    says(&refusal(&[], &typed(&heads, &types)), "7 at [0, 1, 3] is none of 0 (global), 1 (local), 2 (window)");
    types[8] = -1;
    says(&refusal(&[], &typed(&heads, &types)), "-1 at [0, 1, 3]");
}

#[test]
fn gradients_that_are_not_there_are_refused() {
    let heads = Heads::single(sizes([4, 2], [5, 5], [4, 4]), 1);
    let (types, logits, rows_logits) = ([WINDOW; 10], [0.0; 30], [0.0; 60]);
    let refused = |mechanism: &Mechanism, inputs: &Inputs<'_>, count: usize| {
        let choices = choose(mechanism, inputs);
        let plan = mechanism.plan(inputs, &choices, Pass::default()).unwrap();
        let mut into = vec![0.0; count];
        let mut gradients = Gradients { dtype_logits: Some(&mut into), ..Gradients::default() };
        let saved = Saved { o: heads.d_o.view(), lse: &[0.0; 20], d_o: heads.d_o.view() };
        plan.backward(&saved, &mut gradients, Par::default()).unwrap_err().to_string()
    };
    says(&refused(&nats(&[]), &typed(&heads, &types), 30), "there is no gradient of type_logits where types are given");
    let by_rows = refused(&nats(&[("query_typed", "true")]), &by_logits(&heads, &rows_logits), 60);
    says(&by_rows, "query_typed has none of type_logits");
    says(&refused(&nats(&[]), &by_logits(&heads, &logits), 29), "dtype_logits has shape [29], expected [30]");
    let mechanism = nats(&[]);
    let given = by_logits(&heads, &logits);
    let choices = choose(&mechanism, &given);
    let plan = mechanism.plan(&given, &choices, Pass::default()).unwrap();
    let saved = Saved { o: heads.d_o.view(), lse: &[0.0; 20], d_o: heads.d_o.view() };
    let mut dthreshold = [0.0; 4];
    let mut gradients = Gradients { dthreshold: Some(&mut dthreshold), ..Gradients::default() };
    says(&plan.backward(&saved, &mut gradients, Par::default()).unwrap_err().to_string(), "q, k, v and type_logits only");
}

#[test]
fn what_a_state_does_not_take_is_refused_and_changes_nothing() {
    let heads = Heads::single(sizes([4, 2], [3, 3], [4, 4]), 1);
    let (k, v) = (heads.k.view(), heads.v.view());
    let (types, logits) = ([GLOBAL; 6], [0.0; 18]);
    let mut state = nats(&[]).start().unwrap();
    let mut refused = |tokens: Tokens<'_>, expected: &str| {
        says(&state.prefill(&tokens).unwrap_err().to_string(), expected);
        assert_eq!((state.tokens(), state.bytes()), (0, 0));
    };
    refused(Tokens::new(k, v), "nats needs either the types of its tokens or type_logits");
    refused(Tokens { types: Some(&types), type_logits: Some(&logits), ..Tokens::new(k, v) }, "either");
    refused(Tokens { types: Some(&types[..5]), ..Tokens::new(k, v) }, "types has shape [5], expected [6]");
    refused(Tokens { types: Some(&[0, 0, 0, 0, 7, 0]), ..Tokens::new(k, v) }, "7 at [0, 1, 1]");
    let (k, v) = (rows(&heads.k, 0..1), rows(&heads.v, 0..1));
    let bias = Tensor::new([1, 1, 1, 1], vec![0.0]);
    let kept = Tokens { types: Some(&types[..2]), ..Tokens::new(k, v) };
    let token = Token { q: rows(&heads.q, 0..1), kept, bias: Some(bias.view()), mask: None };
    let mut o = Tensor::unfilled(Storage::F32, [1, 4, 1, 4]);
    let refusal = state.step(&token, &mut Output { o: o.view_mut(), lse: None }, Par::default()).unwrap_err();
    says(&refusal.to_string(), "steps of nats take no bias and no mask");
    assert_eq!((state.tokens(), values(heads.k.view()).len()), (0, 24));
}

#[test]
fn keys_of_a_window_without_end_live_on_and_locals_are_theirs_alone() {
    let heads = Heads::single(sizes([1, 1], [6, 6], [4, 4]), 2);
    let types = [LOCAL, WINDOW, WINDOW, WINDOW, GLOBAL, WINDOW];
    for window in [usize::MAX, i64::MAX as usize, i64::MAX as usize - 3] {
        let mut state = nats(&[("window", &window.to_string())]).start().unwrap();
        take_in(&mut state, &heads, 0, &[types[..4].to_vec()]);
        assert_eq!(held_of(&state), [4], "no global came: {window}");
        take_in(&mut state, &heads, 4, &[types[4..].to_vec()]);
        assert_eq!(held_of(&state), [5], "the local died with the global, nobody else: {window}");
    }
}

#[test]
fn rules_that_would_be_ignored_are_refused() {
    let heads = Heads::single(sizes([1, 1], [5, 5], [4, 4]), 3);
    let (types, until) = ([GLOBAL; 5], [2; 5]);
    let lives = Inputs { types: Some(&types), ..inputs(&heads, Sight::causal().until(&until)) };
    says(&refusal(&[], &lives), "no until beside them");
    let reaches = Inputs { types: Some(&types), ..inputs(&heads, Sight::causal().window(Some(1), None)) };
    says(&refusal(&[("query_typed", "true")], &reaches), "no window beside them");
    let tokens = Tokens { types: Some(&types), ..Tokens::new(heads.k.view(), heads.v.view()) };
    for ignored in [Tokens { key_bias: Some(&[0.0; 5]), ..tokens }, Tokens { until: Some(&until), ..tokens }] {
        says(&nats(&[]).start().unwrap().prefill(&ignored).unwrap_err().to_string(), "no key_bias and no until");
    }
    let mut by_queries = nats(&[("query_typed", "true")]).start().unwrap();
    let wrong = Tokens { types: Some(&[0, 1, 9, 0, 0]), ..tokens };
    says(&by_queries.prefill(&wrong).unwrap_err().to_string(), "9 at");
}

const TRAINING: Pass = Pass { training: true, seed: 0, step: 0 };

/// `Σ M_ij / Σ_{j ≤ i} 1` by its formula, for types that need not be hard, and queries at these positions.
fn visible_share(types: &[[f64; 3]], positions: std::ops::Range<i64>, window: i64) -> Option<f64> {
    let (mut visible, mut all) = (0.0, 0.0);
    for i in positions {
        for j in (0..types.len()).filter(|&j| j as i64 <= i) {
            let [global, local, near] = types[j];
            let survives: f64 = types[j..types.len().min(i as usize)].iter().map(|kind| 1.0 - kind[0]).product();
            visible += global + local * survives + if i - j as i64 <= window { near } else { 0.0 };
            all += 1.0;
        }
    }
    (all > 0.0).then(|| visible / all)
}

fn softmax(logits: [f64; 3]) -> [f64; 3] {
    let exponentials = logits.map(f64::exp);
    exponentials.map(|x| x / exponentials.iter().sum::<f64>())
}

/// One sequence of one kv head: where its logits are, and where its queries stand.
struct Stretch {
    keys: std::ops::Range<usize>,
    positions: std::ops::Range<i64>,
}

/// The penalty and its gradient by differences: types are hard, and go straight through to the softmax of their logits.
fn penalty_by_formula(logits: &[f32], stretches: &[Stretch], (window, weight): (i64, f64)) -> (f64, Vec<f64>) {
    let wide: Vec<[f64; 3]> = logits.as_chunks::<3>().0.iter().map(|x| x.map(f64::from)).collect();
    let at_types = |moved: &[[f64; 3]]| {
        let types = |stretch: &Stretch| {
            let of = |key: usize| {
                let forced = key == stretch.keys.start || key + 1 == stretch.keys.end;
                let best = (1..3).fold(0, |best, kind| if wide[key][kind] > wide[key][best] { kind } else { best });
                let hard = |kind| f64::from(u8::from(kind == if forced { 0 } else { best }));
                let (now, then) = (softmax(moved[key]), softmax(wide[key]));
                [0, 1, 2].map(|kind| hard(kind) + if forced { 0.0 } else { now[kind] - then[kind] })
            };
            stretch.keys.clone().map(of).collect::<Vec<_>>()
        };
        let shares: Vec<f64> =
            stretches.iter().filter_map(|stretch| visible_share(&types(stretch), stretch.positions.clone(), window)).collect();
        weight * shares.iter().sum::<f64>() / shares.len().max(1) as f64
    };
    let slope = |at: usize| {
        let by = |step: f64| {
            let mut moved = wide.clone();
            moved[at / 3][at % 3] += step;
            at_types(&moved)
        };
        (by(1e-4) - by(-1e-4)) / 2e-4
    };
    (at_types(&wide), (0..logits.len()).map(slope).collect())
}

fn check_penalty(inputs: &Inputs<'_>, stretches: &[Stretch], window: usize) {
    let mechanism = nats(&[("window", &window.to_string())]);
    let choices = mechanism.choose(inputs, TRAINING, Par::default()).unwrap();
    let found = mechanism.plan(inputs, &choices, TRAINING).unwrap().penalty(0.5, Par::default()).unwrap();
    let logits = inputs.type_logits.unwrap();
    let (value, gradient) = penalty_by_formula(logits, stretches, (window as i64, 0.5));
    assert!((f64::from(found.value) - value).abs() <= 1e-6 * value, "{} is {value}", found.value);
    let (found, largest) = (found.dtype_logits.unwrap(), gradient.iter().fold(0.0f64, |most, x| most.max(x.abs())));
    assert!(largest > 1e-4 || stretches.iter().all(|stretch| stretch.keys.len() < 3 || stretch.positions.is_empty()));
    for (at, (x, y)) in found.iter().zip(gradient).enumerate() {
        assert!((f64::from(*x) - y).abs() <= 1e-6 * largest, "dtype_logits[{at}] is {x}, by differences {y}");
    }
}

#[test]
fn the_penalty_is_the_share_of_visible_pairs_with_its_slope() {
    let random = &mut Random::new(31);
    for (seed, [queries, keys], window) in
        [(1, [23, 23], 3), (2, [9, 30], 0), (3, [30, 12], 4), (4, [1, 1], 2), (5, [17, 17], 1000), (6, [64, 64], 7)]
    {
        let heads = Heads::single(sizes([4, 2], [queries, keys], [4, 4]), seed);
        let logits: Vec<f32> = (0..2 * keys * 3).map(|_| random.normal()).collect();
        let first = keys as i64 - queries as i64;
        let stretch = |g: usize| Stretch { keys: g * keys..(g + 1) * keys, positions: first..keys as i64 };
        check_penalty(&by_logits(&heads, &logits), &[stretch(0), stretch(1)], window);
    }
}

#[test]
fn the_penalty_is_a_mean_over_packed_sequences_that_have_pairs() {
    let random = &mut Random::new(33);
    let heads = Heads::single(sizes([2, 2], [25, 25], [4, 4]), 7);
    let logits: Vec<f32> = (0..2 * 25 * 3).map(|_| random.normal()).collect();
    let offsets = [0, 0, 11, 12, 25];
    let sight = Sight::causal().offsets(&offsets, &offsets);
    let stretches: Vec<Stretch> = (0..2)
        .flat_map(|g| offsets.windows(2).map(move |pair| (g, pair[0], pair[1])).collect::<Vec<_>>())
        .map(|(g, start, end)| Stretch { keys: g * 25 + start..g * 25 + end, positions: 0..(end - start) as i64 })
        .collect();
    check_penalty(&Inputs { type_logits: Some(&logits), ..inputs(&heads, sight) }, &stretches, 2);
}

#[test]
fn in_training_the_last_token_is_global_too() {
    let heads = Heads::single(sizes([2, 1], [5, 5], [4, 4]), 3);
    let logits = choosing(&[WINDOW; 5]);
    let (mechanism, inputs) = (nats(&[]), by_logits(&heads, &logits));
    let types = |pass| {
        let choices = mechanism.choose(&inputs, pass, Par::default()).unwrap();
        mechanism.plan(&inputs, &choices, pass).unwrap().traces().pop().unwrap().values
    };
    assert_eq!(types(TRAINING), [GLOBAL, WINDOW, WINDOW, WINDOW, GLOBAL]);
    assert_eq!(types(Pass::default()), [GLOBAL, WINDOW, WINDOW, WINDOW, WINDOW]);
}

#[test]
fn only_types_of_keys_have_a_penalty() {
    let heads = Heads::single(sizes([2, 2], [5, 5], [4, 4]), 4);
    let types = [WINDOW; 10];
    let penalty = |options: &[(&str, &str)]| {
        let (mechanism, inputs) = (nats(options), typed(&heads, &types));
        let choices = choose(&mechanism, &inputs);
        mechanism.plan(&inputs, &choices, Pass::default()).unwrap().penalty(1.0, Par::default())
    };
    let given = penalty(&[("window", "1")]).unwrap();
    assert_eq!((given.value, given.dtype_logits), (9.0 / 15.0, None));
    says(&penalty(&[("query_typed", "true")]).unwrap_err().to_string(), "query_typed has no penalty");
}
