//! What linear and gated linear attention have to hold beyond what every mechanism does: each trap by name.

mod common;

use common::heads::{Heads, Tensor, sizes};
use common::steps::rows;
use common::{Random, levels, values};
use regard_core::mechanism::{Gradients, Inputs, Mechanism, Memory, Pass, Plan, State, Token, Tokens};
use regard_core::oracle::{Oracle, Storage};
use regard_core::{Dims, Error, Output, Par, Saved, Sight, Strided, View};

fn linear(options: &[(&str, &str)]) -> Mechanism {
    named("linear", options)
}

fn gated(options: &[(&str, &str)]) -> Mechanism {
    named("gated_linear", options)
}

fn named(name: &str, options: &[(&str, &str)]) -> Mechanism {
    let mut mechanism = Mechanism::by_name(name).unwrap();
    options.iter().for_each(|(name, value)| mechanism.set(name, value).unwrap());
    mechanism
}

fn inputs<'a>(heads: &'a Heads, gates: Option<&'a Tensor>, sight: Sight<'a>) -> Inputs<'a> {
    Inputs { gates: gates.map(Tensor::view), ..Inputs::new(heads.q.view(), heads.k.view(), heads.v.view(), sight) }
}

/// Gates for some heads, each value made from its token.
fn gates(dims: Dims, mut gate: impl FnMut(usize) -> f32) -> Tensor {
    let Dims { batch, heads, queries, dk, .. } = dims;
    let values = (0..batch * heads * queries * dk).map(|at| gate(at / dk % queries)).collect();
    Tensor::new([batch, heads, queries, dk], values)
}

/// Gates of 0, weak ones, and some of 20 a step.
fn mixed(dims: Dims, seed: u64) -> Tensor {
    let mut random = Random::new(seed);
    gates(dims, |_| -random.pick(&[0.0, 0.01, 0.3, 20.0]) * random.unit() as f32)
}

type Found = Vec<(&'static str, Vec<f64>)>;

/// Forward and backward, into memory that holds no numbers before.
fn run(mechanism: &Mechanism, inputs: &Inputs<'_>, d_o: &Tensor, par: Par) -> Found {
    let choices = mechanism.choose(inputs, Pass::default(), par).unwrap();
    let plan = mechanism.plan(inputs, &choices, Pass::default()).unwrap();
    let mut o = Tensor::unfilled(Storage::F32, d_o.shape);
    let mut lse = vec![f32::NAN; d_o.shape[..3].iter().product()];
    plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par).unwrap();
    assert!(lse.iter().all(|x| x.is_nan()), "there is no log-sum-exp to write");
    let [mut dq, mut dk, mut dv] = [&inputs.q, &inputs.k, &inputs.v].map(|x| Tensor::unfilled(Storage::F32, x.shape()));
    let mut dgates = inputs.gates.map(|gates| Tensor::unfilled(Storage::F32, gates.shape()));
    let parts = regard_core::Gradients {
        dq: Some(dq.view_mut()),
        dk: Some(dk.view_mut()),
        dv: Some(dv.view_mut()),
        ..regard_core::Gradients::default()
    };
    let mut gradients = Gradients { dgates: dgates.as_mut().map(Tensor::view_mut), ..parts.into() };
    plan.backward(&Saved { o: o.view(), lse: &lse, d_o: d_o.view() }, &mut gradients, par).unwrap();
    let all = [("o", Some(o)), ("dq", Some(dq)), ("dk", Some(dk)), ("dv", Some(dv)), ("dgates", dgates)];
    all.into_iter().filter_map(|(name, tensor)| Some((name, values(tensor?.view())))).collect()
}

fn oracle(mechanism: &Mechanism, inputs: &Inputs<'_>) -> Box<dyn Oracle> {
    let choices = mechanism.choose(inputs, Pass::default(), Par::default()).unwrap();
    mechanism.plan(inputs, &choices, Pass::default()).unwrap().oracle()
}

/// What is right, and how far off a plain implementation is at most.
struct Judge {
    truth: Vec<(&'static str, Vec<f64>, Vec<f64>, f64)>,
}

impl Judge {
    fn new(oracle: &dyn Oracle, d_o: &Tensor) -> Self {
        let d_o = values(d_o.view());
        let (truth, plain) = (oracle.truth(Some(&d_o)), oracle.plain(Some(&d_o), Storage::F32));
        let worst = |at: usize| {
            let error = |plain: &Vec<_>| -> f64 {
                let plain: &regard_core::oracle::Defined = &plain[at];
                plain.values.iter().zip(&truth[at].values).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
            };
            plain.iter().map(error).fold(0.0, f64::max)
        };
        let errors: Vec<f64> = (0..truth.len()).map(worst).collect();
        let with = |(defined, error): (regard_core::oracle::Defined, f64)| (defined.name, defined.values, defined.sizes, error);
        Judge { truth: truth.into_iter().zip(errors).map(with).collect() }
    }

    /// A sibling's rounding counts too: constant gates round the same way at every token, by luck hardly or a lot.
    fn allow(&mut self, sibling: &Judge) {
        for ((.., own), (.., plain)) in self.truth.iter_mut().zip(&sibling.truth) {
            *own = own.max(*plain);
        }
    }

    fn check(&self, found: &Found, how: &str) {
        assert_eq!(self.truth.len(), found.len(), "{how}");
        for ((name, values, sizes, plain), (_, found)) in self.truth.iter().zip(found) {
            for (i, (&x, &y)) in found.iter().zip(values).enumerate() {
                let share = (x - y).abs() / (2.0 * plain + 1e-6 * sizes[i]);
                assert!(x == y || share <= 1.0, "{name}[{i}] is {x:e}, defined {y:e}, {share:.2} of the budget: {how}");
            }
        }
    }
}

const CHUNKS: [&str; 6] = ["1", "7", "16", "64", "100", "130"];

#[test]
fn the_chunk_changes_no_result_of_linear() {
    for (map, causal) in [("elu1", true), ("relu", false), ("softmax", true), ("squared_relu", true)] {
        let heads = Heads::single(sizes([2, 1], [130, 130], [6, 5]), 1);
        let sight = if causal { Sight::causal() } else { Sight::full() };
        let inputs = inputs(&heads, None, sight);
        let judge = Judge::new(oracle(&linear(&[("feature_map", map)]), &inputs).as_ref(), &heads.d_o);
        for (chunk, level) in CHUNKS.into_iter().flat_map(|chunk| levels().map(move |level| (chunk, level))) {
            let mechanism = linear(&[("feature_map", map), ("chunk", chunk)]);
            let found = run(&mechanism, &inputs, &heads.d_o, Par::default().level(level));
            judge.check(&found, &format!("{map}, causal {causal}, chunk {chunk} at {level}"));
        }
    }
}

#[test]
fn the_chunk_changes_no_result_of_gated_linear_however_fast_it_forgets() {
    let dims = sizes([2, 1], [130, 130], [6, 5]);
    let heads = Heads::single(dims, 2);
    let every = [
        ("mixed", mixed(dims, 3)),
        ("no decay", gates(dims, |_| 0.0)),
        ("e^-20 a step", gates(dims, |_| -20.0)),
        ("e^-20 and none in turns", gates(dims, |t| if t % 3 == 0 { -20.0 } else { 0.0 })),
        ("weak", gates(dims, |_| -0.01)),
    ];
    for (name, gates) in &every {
        let judge_of = |heads: &Heads, gates: &Tensor| {
            let inputs = inputs(heads, Some(gates), Sight::causal());
            Judge::new(oracle(&gated(&[]), &inputs).as_ref(), &heads.d_o)
        };
        let mut judge = judge_of(&heads, gates);
        for seed in 1..=3u8 {
            let mut sibling = gates.clone();
            sibling.floats_mut().iter_mut().for_each(|gate| *gate *= 1.0 - f32::from(seed) / 50.0);
            judge.allow(&judge_of(&Heads::single(dims, 20 + u64::from(seed)), &sibling));
        }
        let inputs = inputs(&heads, Some(gates), Sight::causal());
        for (chunk, level) in CHUNKS.into_iter().flat_map(|chunk| levels().map(move |level| (chunk, level))) {
            let found = run(&gated(&[("chunk", chunk)]), &inputs, &heads.d_o, Par::default().level(level));
            judge.check(&found, &format!("{name}, chunk {chunk} at {level}"));
        }
    }
}

/// With the identity sums have either sign, and a quotient by one near 0 has no budget: here they are all above 0.
#[test]
fn the_identity_is_divided_too() {
    let mut heads = Heads::single(sizes([2, 1], [70, 70], [6, 5]), 17);
    for tensor in [&mut heads.q, &mut heads.k] {
        tensor.floats_mut().iter_mut().for_each(|x| *x = x.abs());
    }
    for (sight, window) in [(Sight::causal(), "1000"), (Sight::full(), "1000"), (Sight::causal(), "1"), (Sight::full(), "1")] {
        let (mechanism, call) = (linear(&[("feature_map", "identity"), ("window", window)]), inputs(&heads, None, sight));
        let judge = Judge::new(oracle(&mechanism, &call).as_ref(), &heads.d_o);
        judge.check(&run(&mechanism, &call, &heads.d_o, Par::default()), &format!("causal {} window {window}", sight.is_causal()));
    }
}

#[test]
fn gates_of_zero_are_linear_attention_without_a_map_and_a_division() {
    let dims = sizes([4, 2], [75, 75], [8, 6]);
    let (heads, still) = (Heads::single(dims, 4), gates(dims, |_| 0.0));
    let (plain, gated_inputs) = (inputs(&heads, None, Sight::causal()), inputs(&heads, Some(&still), Sight::causal()));
    let identity = linear(&[("feature_map", "identity"), ("normalize", "false")]);
    let judge = Judge::new(oracle(&identity, &plain).as_ref(), &heads.d_o);
    let mut found = run(&gated(&[("scale", "1")]), &gated_inputs, &heads.d_o, Par::default());
    found.retain(|(name, _)| *name != "dgates");
    judge.check(&found, "gates of zero");
    judge.check(&run(&identity, &plain, &heads.d_o, Par::default()), "linear");
}

#[test]
fn a_gate_of_minus_infinity_forgets_everything_before() {
    let dims = sizes([1, 1], [50, 50], [4, 4]);
    let (heads, gates) = (Heads::single(dims, 5), gates(dims, |t| if t == 21 { f32::NEG_INFINITY } else { -0.1 }));
    let whole = inputs(&heads, Some(&gates), Sight::causal());
    let judge = Judge::new(oracle(&gated(&[]), &whole).as_ref(), &heads.d_o);
    let found = run(&gated(&[]), &whole, &heads.d_o, Par::default());
    judge.check(&found, "forgetting");
    let tail = Heads::given([&heads.q, &heads.k, &heads.v].map(|x| Tensor::new([1, 1, 29, 4], x.floats()[21 * 4..].to_vec())));
    let tail_gates = Tensor::new([1, 1, 29, 4], gates.floats()[21 * 4..].to_vec());
    let alone = run(&gated(&[]), &inputs(&tail, Some(&tail_gates), Sight::causal()), &tail.d_o, Par::default());
    for (x, y) in found[0].1[21 * 4..].iter().zip(&alone[0].1) {
        assert!((x - y).abs() <= 1e-5, "{x} after forgetting, {y} alone");
    }
}

/// One head and so many tokens that passes divide into parts.
#[test]
fn parts_of_a_long_sequence_are_the_whole() {
    let dims = sizes([1, 1], [1100, 1100], [2, 2]);
    let (heads, decays) = (Heads::single(dims, 6), mixed(dims, 7));
    let long = inputs(&heads, Some(&decays), Sight::causal());
    let found = run(&gated(&[]), &long, &heads.d_o, Par::default());
    Judge::new(oracle(&gated(&[]), &long).as_ref(), &heads.d_o).check(&found, "gated");
    let heads = Heads::single(sizes([2, 1], [600, 600], [2, 2]), 8);
    for (sight, options) in [(Sight::causal(), &[][..]), (Sight::full(), &[]), (Sight::causal(), &[("window", "40")])] {
        let (mechanism, call) = (linear(options), inputs(&heads, None, sight));
        let found = run(&mechanism, &call, &heads.d_o, Par::default());
        Judge::new(oracle(&mechanism, &call).as_ref(), &heads.d_o).check(&found, &format!("{options:?}, causal {}", sight.is_causal()));
    }
}

/// Queries and keys of different numbers, padded apart, over more than one block of keys before the first query.
#[test]
fn queries_stand_at_the_end_of_their_keys() {
    for ([queries, keys], lengths, lengths_q) in [([30, 200], [200, 150], [30, 4]), ([90, 20], [20, 0], [90, 90])] {
        let dims = Dims { batch: 2, ..sizes([2, 1], [queries, keys], [4, 3]) };
        let heads = Heads::single(dims, 9);
        for (sight, options) in [(Sight::causal(), &[][..]), (Sight::full(), &[]), (Sight::causal(), &[("window", "9")])] {
            let (mechanism, call) = (linear(options), inputs(&heads, None, sight.lengths(&lengths).lengths_q(&lengths_q)));
            let judge = Judge::new(oracle(&mechanism, &call).as_ref(), &heads.d_o);
            judge.check(&run(&mechanism, &call, &heads.d_o, Par::default()), &format!("{dims:?} {options:?}"));
        }
    }
}

fn step(state: &mut State, token: Token<'_>, dims: Dims) -> Result<Vec<f32>, Error> {
    let mut o = Tensor::unfilled(Storage::F32, [1, dims.heads, 1, dims.dv]);
    state.step(&token, &mut Output { o: o.view_mut(), lse: None }, Par::serial())?;
    Ok(o.floats().to_vec())
}

/// A hundred thousand tokens; a million are an example's (`linear 1024 1 64 1000000`).
#[test]
fn a_state_does_not_grow() {
    let dims = sizes([2, 1], [64, 64], [4, 4]);
    let (heads, decays) = (Heads::single(dims, 10), gates(dims, |_| -0.05));
    for (mechanism, settled) in [(linear(&[]), 1), (gated(&[]), 1), (linear(&[("window", "200")]), 200)] {
        let (mut state, mut bytes) = (mechanism.start().unwrap(), 0);
        for t in 0..100_000 {
            let at = t % 64..t % 64 + 1;
            let mut kept = Tokens::new(rows(&heads.k, at.clone()), rows(&heads.v, at.clone()));
            kept.gates = (mechanism.about().name == "gated_linear").then(|| rows(&decays, at.clone()));
            let o = step(&mut state, Token { q: rows(&heads.q, at), kept, bias: None, mask: None }, dims).unwrap();
            assert!(o.iter().all(|x| x.is_finite()), "{mechanism:?} after {t} tokens");
            if t + 1 == settled {
                bytes = state.bytes();
            }
            assert!(t < settled || state.bytes() == bytes, "{} bytes after {t} tokens of {mechanism:?}, {bytes} before", state.bytes());
        }
        assert_eq!(state.tokens(), 100_000);
        assert!((1..100_000).contains(&bytes), "{bytes} bytes of {mechanism:?}");
    }
}

#[test]
fn what_is_not_a_number_reaches_the_rows_that_see_it() {
    let dims = sizes([1, 1], [100, 100], [4, 4]);
    let decays = gates(dims, |_| -0.1);
    for (mechanism, last) in [(linear(&[]), 100), (gated(&[]), 100), (linear(&[("window", "10")]), 47)] {
        let clean = Heads::single(dims, 11);
        for which in 0..3 {
            let mut heads = clean.clone();
            [&mut heads.q, &mut heads.k, &mut heads.v][which].row_mut(37).for_each(|row| row.fill(f32::NAN));
            let last = if which == 0 { 38 } else { last };
            let o = |heads: &Heads| {
                let gates = (mechanism.about().name == "gated_linear").then_some(&decays);
                let mut o = Tensor::unfilled(Storage::F32, [1, 1, 100, 4]);
                let out = &mut Output { o: o.view_mut(), lse: None };
                mechanism.forward(&inputs(heads, gates, Sight::causal()), Pass::default(), out, Par::default()).unwrap();
                o.floats().to_vec()
            };
            let (found, before) = (o(&heads), o(&clean));
            for (n, (row, clean)) in found.chunks(4).zip(before.chunks(4)).enumerate() {
                let sees = (37..last).contains(&n);
                assert!(row.iter().all(|x| x.is_nan() == sees), "row {n} is {row:?}: {mechanism:?}, tensor {which}");
                let close = row.iter().zip(clean).all(|(x, y)| (x - y).abs() <= 1e-5 * y.abs().max(1.0));
                assert!(sees || close, "row {n} is {row:?}, {clean:?} without: {mechanism:?}, tensor {which}");
            }
        }
    }
}

/// Heads inside of tokens, as layers leave them.
#[test]
fn strides_change_no_bit() {
    let dims = sizes([2, 1], [70, 70], [5, 6]);
    let (heads, decays) = (Heads::single(dims, 12), mixed(dims, 13));
    let turned = |tensor: &Tensor| {
        let [_, h, n, d] = tensor.shape;
        (0..n * h * d).map(|at| tensor.floats()[(at / d % h * n + at / d / h) * d + at % d]).collect::<Vec<f32>>()
    };
    let all = [&heads.q, &heads.k, &heads.v, &decays].map(|tensor| (tensor.shape, turned(tensor)));
    let [q, k, v, g] = [0, 1, 2, 3].map(|at| {
        let ([b, h, n, d], values) = &all[at];
        let strides = [h * n * d, *d, h * d, 1].map(|stride| stride as isize);
        View::from(Strided::new(values, 0, [*b, *h, *n, *d], strides, "x").unwrap())
    });
    for mechanism in [linear(&[]), linear(&[("window", "8")]), gated(&[])] {
        let reads = mechanism.about().name == "gated_linear";
        let straight = inputs(&heads, reads.then_some(&decays), Sight::causal());
        let strided = Inputs { gates: reads.then_some(g), ..Inputs::new(q, k, v, Sight::causal()) };
        let [a, b] = [&straight, &strided].map(|inputs| run(&mechanism, inputs, &heads.d_o, Par::default()));
        assert!(a == b, "{mechanism:?}");
    }
}

fn refusal(mechanism: &Mechanism, inputs: &Inputs<'_>) -> String {
    let found = mechanism.choose(inputs, Pass::default(), Par::default()).map(|_| ());
    found.expect_err("it is refused").to_string()
}

#[test]
fn refusals_name_the_numbers() {
    let set = |name: &str, option: &str, value: &str| named(name, &[]).set(option, value).expect_err("it is refused").to_string();
    let maps = "feature_map=exp: expected elu1, relu, identity, squared_relu or softmax";
    assert_eq!(set("linear", "feature_map", "exp"), maps);
    assert_eq!(set("linear", "chunk", "0"), "chunk=0: expected an integer of at least 1");
    assert_eq!(set("linear", "window", "0"), "window=0: expected an integer of at least 1");
    assert_eq!(set("linear", "eps", "-1"), "eps=-1: expected a number of at least 0");
    assert_eq!(set("gated_linear", "chunk", "0"), "chunk=0: expected an integer of at least 1");
    assert!(set("linear", "scale", "1").contains("unknown option"));

    let dims = sizes([2, 1], [9, 9], [4, 3]);
    let heads = Heads::single(dims, 14);
    for (value, said) in [(0.25, "0.25"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let mut gates = gates(dims, |_| -1.0);
        gates.floats_mut()[(9 + 5) * 4 + 2] = value;
        let found = refusal(&gated(&[]), &inputs(&heads, Some(&gates), Sight::causal()));
        assert_eq!(found, format!("gates: {said} at [0, 1, 5, 2]: logarithms of gates are numbers of at most 0"));
    }
    let still = gates(dims, |_| 0.0);
    assert_eq!(refusal(&gated(&[]), &inputs(&heads, Some(&still), Sight::full())), "gated_linear is causal only");
    assert!(refusal(&gated(&[]), &inputs(&heads, None, Sight::causal())).contains("needs gates"));
    assert_eq!(refusal(&linear(&[]), &inputs(&heads, Some(&still), Sight::causal())), "linear reads no gates");
    let short = Tensor::new([1, 1, 9, 4], vec![0.0; 36]);
    let found = refusal(&gated(&[]), &inputs(&heads, Some(&short), Sight::causal()));
    assert_eq!(found, "gates has shape [1, 1, 9, 4], expected [1, 2, 9, 4]");
    let unequal = Heads::single(sizes([2, 1], [9, 11], [4, 3]), 15);
    let found = refusal(&gated(&[]), &inputs(&unequal, Some(&still), Sight::causal()));
    assert_eq!(found, "gated_linear needs N = M, found 9 queries and 11 keys");
    let windowed = inputs(&heads, None, Sight::causal().window(Some(3), None));
    assert!(refusal(&linear(&[]), &windowed).contains("no mask, window, sinks"));
}

#[test]
fn steps_refuse_what_does_not_fit() {
    let dims = sizes([2, 1], [9, 9], [4, 3]);
    let (heads, still) = (Heads::single(dims, 16), gates(dims, |_| 0.0));
    let ask = |mechanism: &Mechanism, gates: Option<&Tensor>| {
        let mut kept = Tokens::new(rows(&heads.k, 0..1), rows(&heads.v, 0..1));
        kept.gates = gates.map(|gates| rows(gates, 0..1));
        let token = Token { q: rows(&heads.q, 0..1), kept, bias: None, mask: None };
        step(&mut mechanism.start().unwrap(), token, dims).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(ask(&gated(&[]), Some(&still)), Ok(()));
    assert_eq!(ask(&linear(&[]), None), Ok(()));
    assert!(ask(&gated(&[]), None).unwrap_err().contains("needs gates"));
    assert!(ask(&linear(&[]), Some(&still)).unwrap_err().contains("reads no gates"));
    let growing = Tensor::new([1, 2, 1, 4], vec![0.5; 8]);
    assert!(ask(&gated(&[]), Some(&growing)).unwrap_err().contains("0.5 at [0, 0, 0, 0]"));
}
