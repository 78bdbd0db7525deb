//! What attention over codewords has to hold beyond what every mechanism does: each trap by name.

mod common;

use common::heads::{Heads, Tensor, sizes};
use common::sample::Sample;
use common::{Random, levels, values};
use regard_core::mechanism::{Choices, Gradients, Inputs, Mechanism, Memory, Pass, Plan, Tokens, Vq, VqQk};
use regard_core::oracle::Storage;
use regard_core::quantise::{Codebook, Statistics};
use regard_core::{Error, Output, Par, Saved, Scores, Sight};

fn mechanism(name: &str, options: &[(&str, &str)]) -> Mechanism {
    let mut mechanism = Mechanism::by_name(name).unwrap();
    options.iter().for_each(|(name, value)| mechanism.set(name, value).unwrap());
    mechanism
}

/// Tensors and codebooks of keys and queries.
struct Given {
    heads: Heads,
    codebook: Tensor,
    codebook_q: Tensor,
}

impl Given {
    fn draw([heads, kv_heads]: [usize; 2], lengths: [usize; 2], codes: usize, seed: u64) -> Self {
        let heads = Heads::single(sizes([heads, kv_heads], lengths, [8, 5]), seed);
        let random = &mut Random::new(seed + 1);
        let codebook = Tensor::normal(random, Storage::F32, [1, kv_heads, codes, 8]);
        let codebook_q = Tensor::normal(random, Storage::F32, [1, heads.dims.heads, codes, 8]);
        Given { heads, codebook, codebook_q }
    }

    fn inputs(&self, name: &str, causal: bool) -> Inputs<'_> {
        let sight = if causal { Sight::causal() } else { Sight::full() };
        Inputs {
            codebook: Some(self.codebook.view()),
            codebook_q: (name == "vq_qk").then(|| self.codebook_q.view()),
            ..Inputs::new(self.heads.q.view(), self.heads.k.view(), self.heads.v.view(), sight)
        }
    }

    /// The same with codewords in place of keys, and where queries are quantised of queries.
    fn quantised(&self, name: &str) -> Heads {
        let k = rounded(&self.heads.k, &self.codebook);
        let q = if name == "vq_qk" { rounded(&self.heads.q, &self.codebook_q) } else { self.heads.q.clone() };
        Heads { q, k, ..self.heads.clone() }
    }
}

/// The nearest codeword as it is said, ties to the lowest.
fn nearest(row: &[f32], codebook: &[f32]) -> usize {
    let distance = |codeword: &[f32]| row.iter().zip(codeword).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum::<f64>();
    let all: Vec<f64> = codebook.chunks(row.len()).map(distance).collect();
    (0..all.len()).fold(0, |best, code| if all[code] < all[best] { code } else { best })
}

/// Every row's codeword.
fn rounded(rows: &Tensor, codebook: &Tensor) -> Tensor {
    let ([_, heads, count, width], codes) = (rows.shape, codebook.shape[2]);
    let of = |(at, row): (usize, &[f32])| {
        let codebook = &codebook.floats()[at / count % heads * codes * width..][..codes * width];
        codebook[nearest(row, codebook) * width..][..width].to_vec()
    };
    Tensor::new(rows.shape, rows.floats().chunks(width).enumerate().flat_map(of).collect())
}

fn choose(mechanism: &Mechanism, inputs: &Inputs<'_>) -> Choices {
    mechanism.choose(inputs, Pass::default(), Par::default()).unwrap()
}

/// `o` and `lse`.
fn run(mechanism: &Mechanism, inputs: &Inputs<'_>) -> (Vec<f64>, Vec<f64>) {
    let choices = choose(mechanism, inputs);
    let plan = mechanism.plan(inputs, &choices, Pass::default()).unwrap();
    let dims = plan.dims();
    let mut o = Tensor::unfilled(Storage::F32, [dims.batch, dims.heads, dims.queries, dims.dv]);
    let mut lse = vec![f32::NAN; dims.batch * dims.heads * dims.queries];
    plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, Par::default()).unwrap();
    (values(o.view()), lse.into_iter().map(f64::from).collect())
}

/// dq, dk and dv.
fn gradients(mechanism: &Mechanism, inputs: &Inputs<'_>, heads: &Heads) -> [Vec<f64>; 3] {
    let choices = choose(mechanism, inputs);
    let plan = mechanism.plan(inputs, &choices, Pass::default()).unwrap();
    let mut o = Tensor::unfilled(Storage::F32, heads.d_o.shape);
    let mut lse = vec![f32::NAN; heads.d_o.shape[..3].iter().product()];
    plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, Par::default()).unwrap();
    let [mut dq, mut dk, mut dv] = [&heads.q, &heads.k, &heads.v].map(|x| Tensor::unfilled(Storage::F32, x.shape));
    let [for_q, for_k, for_v] = [dq.view_mut(), dk.view_mut(), dv.view_mut()].map(Some);
    let mut into = Gradients::from(regard_core::Gradients { dq: for_q, dk: for_k, dv: for_v, ..regard_core::Gradients::default() });
    plan.backward(&Saved { o: o.view(), lse: &lse, d_o: heads.d_o.view() }, &mut into, Par::default()).unwrap();
    [dq, dk, dv].map(|x| values(x.view()))
}

#[track_caller]
fn near(found: &[f64], expected: &[f64], tolerance: f64, how: &str) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().filter(|x| x.is_finite()).fold(1.0f64, |most, x| most.max(x.abs()));
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        assert!(x == y || (x - y).abs() <= tolerance * largest, "[{i}] is {x}, expected {y}: {how}");
    }
}

const BLOCKS: [&str; 4] = ["1", "7", "128", "300"];

#[test]
fn it_is_dense_softmax_over_codewords_for_any_block_and_recent() {
    for (name, lengths) in [("vq", [300, 300]), ("vq_qk", [300, 300]), ("vq", [41, 300]), ("vq", [300, 140])] {
        let given = Given::draw([4, 2], lengths, 13, 5);
        let quantised = given.quantised(name);
        for causal in [true, false] {
            let sight = if causal { Sight::causal() } else { Sight::full() };
            let problem = quantised.problem(sight, Scores::new());
            let sample = Sample::new(&problem.definition(), Storage::F32, &(0..lengths[0]).collect::<Vec<_>>());
            for block in BLOCKS {
                for recent in BLOCKS.into_iter().filter(|recent| name == "vq" || *recent == "1") {
                    let options = [("block", block), ("recent", recent)];
                    let mechanism = mechanism(name, &options[..if name == "vq" { 2 } else { 1 }]);
                    let (o, lse) = run(&mechanism, &given.inputs(name, causal));
                    sample.check((&o, &lse), &format!("{name}, block {block}, recent {recent}, causal {causal}, {lengths:?}"));
                }
            }
        }
    }
}

/// Two results over different keys, merged by their log-sum-exp.
fn merged(parts: [&(Vec<f64>, Vec<f64>); 2], width: usize) -> (Vec<f64>, Vec<f64>) {
    let [(o1, l1), (o2, l2)] = parts;
    let lse: Vec<f64> = l1.iter().zip(l2).map(|(x, y)| x.max(*y) + (x.min(*y) - x.max(*y)).exp().ln_1p()).collect();
    let row = |i: usize| ((l1[i / width] - lse[i / width]).exp(), (l2[i / width] - lse[i / width]).exp());
    let o = (0..o1.len()).map(|i| o1[i] * row(i).0 + o2[i] * row(i).1).collect();
    (o, lse)
}

#[test]
fn the_far_part_and_a_window_are_the_whole() {
    let given = Given::draw([4, 2], [200, 200], 13, 8);
    let quantised = given.quantised("vq");
    for causal in [true, false] {
        let (inputs, whole) = (given.inputs("vq", causal), run(&mechanism("vq", &[]), &given.inputs("vq", causal)));
        for (block, recent) in [("1", "1"), ("16", "7"), ("128", "64"), ("7", "150"), ("512", "1000")] {
            let far = run(&mechanism("vq", &[("block", block), ("recent", recent), ("exclude_recent", "true")]), &inputs);
            let sight = if causal { Sight::causal() } else { Sight::full() };
            let of_window = Inputs::new(quantised.q.view(), quantised.k.view(), quantised.v.view(), sight);
            let (o, lse) = merged([&far, &run(&mechanism("local", &[("window", recent)]), &of_window)], 5);
            near(&o, &whole.0, 3e-6, &format!("block {block}, recent {recent}, causal {causal}"));
            near(&lse, &whole.1, 3e-6, &format!("lse, block {block}, recent {recent}, causal {causal}"));
            let reach = recent.parse::<usize>().unwrap();
            for n in 0..200 {
                let sees = n >= reach || (!causal && n + reach < 200);
                assert_eq!(far.1[n] > f64::NEG_INFINITY, sees, "row {n}, recent {recent}, causal {causal}");
                assert!(sees || far.0[n * 5..(n + 1) * 5].iter().all(|&x| x == 0.0), "row {n} sees nothing");
            }
        }
    }
}

/// Queries and keys along one line, so that logits are from -80 to 80; the first queries see the lowest ones alone.
fn steep(seed: u64) -> Given {
    let mut given = Given::draw([2, 1], [150, 150], 6, seed);
    let random = &mut Random::new(seed);
    for (tensor, ends) in [(&mut given.codebook, 8.0), (&mut given.codebook_q, 10.0)] {
        let rows = tensor.floats_mut().chunks_mut(8).enumerate();
        rows.for_each(|(code, row)| row.fill_with(|| ends * ((code % 6) as f32 / 2.5 - 1.0) / 8f32.sqrt()));
    }
    for (tensor, codebook, first) in [(&mut given.heads.k, &given.codebook, 0), (&mut given.heads.q, &given.codebook_q, 4)] {
        let count = tensor.shape[2];
        for (at, row) in tensor.floats_mut().chunks_mut(8).enumerate() {
            let code = if at % count < 40 { first + at % 2 } else { random.below(6) };
            row.iter_mut().zip(&codebook.floats()[code * 8..]).for_each(|(x, y)| *x = y + 0.01 * random.normal());
        }
    }
    given
}

#[test]
fn logits_of_80_neither_overflow_nor_vanish() {
    let given = steep(3);
    for name in ["vq", "vq_qk"] {
        let quantised = given.quantised(name);
        for (causal, block) in [(true, "1"), (true, "16"), (true, "128"), (false, "128")] {
            let sight = if causal { Sight::causal() } else { Sight::full() };
            let problem = quantised.problem(sight, Scores::new().scale(1.0));
            let definition = problem.definition();
            let logits: Vec<f64> = (0..150).flat_map(|i| [0, 1, 100, 149].map(|j| definition.score(0, 0, i, j))).collect();
            assert!(logits.iter().any(|x| *x < -79.0) && logits.iter().any(|x| *x > 79.0), "{logits:?}");
            let (mechanism, how) =
                (mechanism(name, &[("block", block), ("scale", "1")]), format!("{name}, block {block}, causal {causal}"));
            let inputs = given.inputs(name, causal);
            let (o, lse) = run(&mechanism, &inputs);
            Sample::new(&problem.definition(), Storage::F32, &(0..150).collect::<Vec<_>>()).check((&o, &lse), &how);
            let expected = problem.definition().backward(&values(given.heads.d_o.view()));
            for (found, expected) in gradients(&mechanism, &inputs, &given.heads).iter().zip([expected.dq, expected.dk, expected.dv]) {
                near(found, &expected, 2e-5, &how);
            }
        }
    }
}

#[test]
fn gradients_of_long_sequences_pass_through_states_of_codes() {
    for (name, heads) in [("vq", [1, 1]), ("vq", [4, 2]), ("vq_qk", [2, 1])] {
        let given = Given::draw(heads, [1500, 1500], 9, 21);
        let problem = given.quantised(name);
        for causal in [true, false] {
            let definition = problem.problem(if causal { Sight::causal() } else { Sight::full() }, Scores::new()).definition();
            let expected = definition.backward(&values(given.heads.d_o.view()));
            let found = gradients(&mechanism(name, &[]), &given.inputs(name, causal), &given.heads);
            for (found, expected) in found.iter().zip([expected.dq, expected.dk, expected.dv]) {
                near(found, &expected, 4e-6, &format!("{name} {heads:?} causal {causal}"));
            }
        }
    }
}

#[test]
fn codes_are_the_nearest_at_every_level_and_ties_go_to_the_lowest() {
    let random = &mut Random::new(17);
    for draw in 0..60 {
        let (width, codes) = (random.pick(&[1, 2, 7, 8, 17, 64]), random.pick(&[1, 2, 15, 16, 17, 33, 130]));
        let rows = random.pick(&[1, 31, 32, 33, 600]);
        let mut keys = Tensor::normal(random, Storage::F32, [1, 1, rows, width]);
        let mut codebook = Tensor::normal(random, Storage::F32, [1, 1, codes, width]);
        if draw % 3 == 0 {
            // Whole numbers tie, and so do codewords that are alike.
            [&mut keys, &mut codebook].into_iter().for_each(|x| x.floats_mut().iter_mut().for_each(|x| *x = x.round()));
        }
        let expected: Vec<i64> = keys.floats().chunks(width).map(|row| nearest(row, codebook.floats()) as i64).collect();
        for level in levels() {
            let found = Codebook::new(&codebook.view()).unwrap().codes(&keys.view(), Par::default().level(level)).unwrap();
            assert_eq!(found, expected, "draw {draw}: {rows} rows, {codes} codes of {width} at {level}");
        }
    }
}

#[test]
fn a_codebook_of_all_keys_gives_every_key_its_own_code() {
    let mut given = Given::draw([2, 2], [70, 70], 70, 4);
    given.codebook = given.heads.k.clone();
    let inputs = given.inputs("vq", true);
    let (choices, vq) = (choose(&mechanism("vq", &[]), &inputs), mechanism("vq", &[]));
    let plan = vq.plan(&inputs, &choices, Pass::default()).unwrap();
    let [trace] = plan.traces().try_into().unwrap();
    assert_eq!(trace.values, (0..140).map(|i| i % 70).collect::<Vec<i64>>());
    assert_eq!(plan.loss(), Some(0.0));
    let problem = given.heads.problem(Sight::causal(), Scores::new());
    let (o, lse) = run(&vq, &inputs);
    Sample::new(&problem.definition(), Storage::F32, &(0..70).collect::<Vec<_>>()).check((&o, &lse), "all keys");
}

#[test]
fn the_loss_is_the_mean_squared_distance_of_keys_to_codewords() {
    let given = Given::draw([2, 2], [30, 30], 5, 6);
    let rounded = given.quantised("vq").k;
    let inputs = Inputs { sight: Sight::causal().lengths(&[20]), ..given.inputs("vq", true) };
    let squares = given.heads.k.floats().chunks(8).zip(rounded.floats().chunks(8)).enumerate().filter(|(at, _)| at % 30 < 20);
    let distance = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum::<f64>();
    let expected = 0.5 * squares.map(|(_, pair)| distance(pair)).sum::<f64>() / 40.0;
    let vq = mechanism("vq", &[("beta", "0.5")]);
    let choices = choose(&vq, &inputs);
    let loss = vq.plan(&inputs, &choices, Pass::default()).unwrap().loss().unwrap();
    assert!((loss - expected).abs() < 1e-12 * expected, "{loss} is not {expected}");
}

#[test]
fn where_queries_are_codewords_too_their_distance_joins_the_loss() {
    let given = Given::draw([4, 2], [24, 30], 5, 6);
    let rounded = given.quantised("vq_qk");
    let inputs = Inputs { sight: Sight::causal().lengths(&[20]).lengths_q(&[17]), ..given.inputs("vq_qk", true) };
    let mean = |rows: &Tensor, rounded: &Tensor, valid: usize| {
        let squares = rows.floats().iter().zip(rounded.floats()).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2));
        let [_, heads, count, width] = rows.shape;
        squares.enumerate().filter(|(at, _)| at / width % count < valid).map(|(_, square)| square).sum::<f64>() / (heads * valid) as f64
    };
    let distances = [mean(&given.heads.q, &rounded.q, 17), mean(&given.heads.k, &rounded.k, 20)];
    assert!(distances.iter().all(|distance| *distance > 0.1), "{distances:?}");
    let vq_qk = mechanism("vq_qk", &[("beta", "0.5")]);
    let choices = choose(&vq_qk, &inputs);
    let loss = vq_qk.plan(&inputs, &choices, Pass::default()).unwrap().loss().unwrap();
    let expected = 0.5 * (distances[0] + distances[1]);
    assert!((loss - expected).abs() < 1e-12 * expected, "{loss} is not {expected}");
    assert_eq!(["codebook", "codebook_q", "x"].map(|tensor| vq_qk.commitment(tensor)), [0.5, 0.5, 0.0]);
    assert_eq!(["codebook", "codebook_q"].map(|tensor| mechanism("vq", &[]).commitment(tensor)), [1e-4, 0.0]);
}

/// Some codes have a few keys, others many, and a key passes from one sum to the other on its way through the blocks.
#[test]
fn gradients_are_the_same_however_many_keys_a_code_has() {
    for (name, heads) in [("vq", [2, 1]), ("vq", [1, 1]), ("vq_qk", [2, 1])] {
        let mut given = Given::draw(heads, [900, 900], 12, 33);
        let random = &mut Random::new(5);
        let codebook = given.codebook.clone();
        // Code s takes the more keys the higher it is, the last one half of them.
        for row in given.heads.k.floats_mut().chunks_mut(8) {
            let code = (0..11).find(|_| random.chance(0.5)).map_or(0, |code| 11 - code);
            row.iter_mut().zip(&codebook.floats()[code * 8..]).for_each(|(x, y)| *x = y + 0.01 * random.normal());
        }
        let problem = given.quantised(name);
        for (causal, options) in [(true, vec![]), (true, vec![("block", "16")]), (false, vec![])] {
            let definition = problem.problem(if causal { Sight::causal() } else { Sight::full() }, Scores::new()).definition();
            let expected = definition.backward(&values(given.heads.d_o.view()));
            let found = gradients(&mechanism(name, &options), &given.inputs(name, causal), &given.heads);
            for (found, expected) in found.iter().zip([expected.dq, expected.dk, expected.dv]) {
                near(found, &expected, 4e-6, &format!("{name} {heads:?} causal {causal} {options:?}"));
            }
        }
    }
}

/// Keys of two heads, their codes and the codebook that gave them.
fn trained(seed: u64) -> (Tensor, Codebook, Vec<i64>) {
    let keys = Tensor::normal(&mut Random::new(seed), Storage::F32, [3, 2, 40, 4]);
    let codebook = Codebook::drawn(&keys.view(), 6, seed).unwrap();
    let codes = codebook.codes(&keys.view(), Par::default()).unwrap();
    (keys, codebook, codes)
}

#[test]
fn a_step_of_the_averages_is_their_definition() {
    let (keys, mut codebook, mut codes) = trained(2);
    codes[..5].fill(-1);
    let before = codebook.clone();
    codebook.after_step(&Statistics::of(&keys.view(), &codes, 6, 0).unwrap()).unwrap();
    for head in 0..2 {
        for code in 0..6 {
            let mut members = Vec::new();
            for (at, row) in keys.floats().chunks(4).enumerate() {
                if at / 40 % 2 == head && codes[at] == code as i64 {
                    members.push(row);
                }
            }
            let at = head * 6 + code;
            let size = 0.99 * f64::from(before.sizes[at]) + 0.01 * members.len() as f64;
            assert!((f64::from(codebook.sizes[at]) - size).abs() < 1e-6, "size of {code}");
            for d in 0..4 {
                let sum = members.iter().map(|row| f64::from(row[d])).sum::<f64>();
                let sum = 0.99 * f64::from(before.sums[at * 4 + d]) + 0.01 * sum;
                assert!((f64::from(codebook.rows[at * 4 + d]) - sum / size).abs() < 1e-5, "codeword {code} of head {head}");
            }
        }
    }
    assert_eq!(codebook.restarts, 0);
}

#[test]
fn a_codebook_written_down_and_read_again_goes_on_as_before() {
    let (keys, mut codebook, codes) = trained(5);
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let floats = |bytes: Vec<u8>| bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect::<Vec<f32>>();
    for step in 0..30 {
        let statistics = Statistics::of(&keys.view(), &codes, 6, step).unwrap();
        let Codebook { shape, rows, sizes, sums, decay, floor, restarts } = codebook.clone();
        let [rows, sizes, sums] = [rows, sizes, sums].map(|numbers| floats(bytes(&numbers)));
        let mut read = Codebook { shape, rows, sizes, sums, decay, floor, restarts };
        assert_eq!(read, codebook);
        read.after_step(&statistics).unwrap();
        codebook.after_step(&statistics).unwrap();
        assert_eq!(read, codebook, "step {step}");
    }
}

#[test]
fn dead_codes_start_again_at_keys_of_the_batch_the_same_way_every_time() {
    let (keys, codebook, _) = trained(9);
    let only_code_2 = vec![2i64; 3 * 2 * 40];
    let train = |seed: u64| {
        let mut codebook = codebook.clone();
        let mut first = None;
        for step in 0..480u64 {
            codebook.after_step(&Statistics::of(&keys.view(), &only_code_2, 6, seed + step).unwrap()).unwrap();
            if codebook.restarts > 0 && first.is_none() {
                first = Some((step, codebook.clone()));
            }
        }
        first.expect("0.99^459 is below 0.01")
    };
    let (step, restarted) = train(1);
    assert_eq!((step, restarted.restarts), (458, 10), "five unused codes of each of two heads, after 459 steps");
    assert_eq!(restarted, train(1).1);
    assert_ne!(restarted, train(2).1, "another seed draws other keys");
    for (at, row) in restarted.rows.chunks(4).enumerate().filter(|(at, _)| at % 6 != 2) {
        let of_head = keys.floats().chunks(4).enumerate().filter(|(key, _)| key / 40 % 2 == at / 6);
        assert!(of_head.into_iter().any(|(_, key)| key == row), "codeword {at} is no key of its head");
        assert_eq!(restarted.sizes[at], 1.0);
    }
}

#[test]
fn usage_and_perplexity_say_how_many_codes_are_used() {
    let keys = Tensor::normal(&mut Random::new(1), Storage::F32, [1, 2, 8, 4]);
    let codes = [0, 1, 2, 3, 0, 1, 2, 3, 5, 5, 5, 5, 5, 5, -1, -1];
    let statistics = Statistics::of(&keys.view(), &codes, 8, 0).unwrap();
    assert_eq!([statistics.usage(0), statistics.usage(1)], [0.5, 0.125]);
    assert!((statistics.perplexity(0) - 4.0).abs() < 1e-12 && (statistics.perplexity(1) - 1.0).abs() < 1e-12);
    let padding = Statistics::of(&keys.view(), &[-1; 16], 8, 0).unwrap();
    assert_eq!((padding.usage(0), padding.perplexity(0)), (0.0, 0.0));
}

#[test]
fn a_state_has_the_same_bytes_after_thousands_of_steps() {
    for (name, options) in [("vq", &[][..]), ("vq", &[("recent", "20"), ("exclude_recent", "true")]), ("vq_qk", &[])] {
        let given = Given::draw([2, 1], [3000, 3000], 10, 7);
        let mut state = mechanism(name, options).start().unwrap();
        let mut bytes = Vec::new();
        for at in (0..3000).step_by(50) {
            let [k, v] = [&given.heads.k, &given.heads.v].map(|tensor| common::steps::rows(tensor, at..at + 50));
            let codebook_q = (name == "vq_qk").then(|| given.codebook_q.view());
            state.prefill(&Tokens { codebook: Some(given.codebook.view()), codebook_q, ..Tokens::new(k, v) }).unwrap();
            bytes.push(state.bytes());
        }
        assert!(bytes.iter().all(|&each| each == bytes[0]) && bytes[0] > 10 * 5 * 4, "{name}: {bytes:?}");
        assert!(bytes[0] < 40 * (5 + 1) * 16, "S (Dv + 1) and what is recent: {bytes:?}");
    }
}

#[test]
fn a_value_that_is_no_number_reaches_only_the_rows_that_see_it() {
    for (name, block) in [("vq", "128"), ("vq", "16"), ("vq_qk", "128")] {
        let mut given = Given::draw([2, 1], [100, 100], 7, 31);
        let clean = run(&mechanism(name, &[("block", block)]), &given.inputs(name, true));
        given.heads.v.row_mut(60).for_each(|row| row[1] = f32::NAN);
        let (o, _) = run(&mechanism(name, &[("block", block)]), &given.inputs(name, true));
        for (i, (x, y)) in o.iter().zip(&clean.0).enumerate() {
            let spoilt = i / 5 % 100 >= 60 && i % 5 == 1;
            assert!(x.is_nan() == spoilt && (spoilt || (x - y).abs() < 1e-5), "{name}, block {block}: o[{i}] is {x}, was {y}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for (name, option) in [("vq", "recent"), ("vq", "block"), ("vq", "codebook_size"), ("vq_qk", "block"), ("vq_qk", "codebook_size_q")] {
        for value in ["0", "-1", "0.5", "x"] {
            assert!(Mechanism::by_name(name).unwrap().set(option, value).is_err(), "{option}={value} of {name}");
        }
    }
    assert!(["vq", "vq_qk"].iter().all(|name| Mechanism::by_name(name).unwrap().set("beta", "-1").is_err()));
    let given = Given::draw([4, 2], [6, 6], 3, 1);
    let refusal =
        |mechanism: Mechanism, inputs: &Inputs<'_>| mechanism.choose(inputs, Pass::default(), Par::default()).unwrap_err().to_string();
    let vq = || mechanism("vq", &[]);
    let inputs = given.inputs("vq", true);
    for config in [Vq { recent: 0, ..Vq::default() }, Vq { block: 0, ..Vq::default() }, Vq { beta: -1.0, ..Vq::default() }] {
        assert!(refusal(config.clone().into(), &inputs).contains("expected"), "{config:?}");
        assert!(Mechanism::from(config).start().is_err());
    }
    assert!(refusal(VqQk { block: 0, ..VqQk::default() }.into(), &given.inputs("vq_qk", true)).contains("block"));
    assert!(refusal(VqQk { beta: f32::NAN, ..VqQk::default() }.into(), &given.inputs("vq_qk", true)).contains("beta"));
    assert!(
        refusal(vq(), &Inputs { codebook: None, ..inputs.clone() })
            .contains("codebook is missing: the codewords of 2 heads, each 8 values")
    );
    let of = |shape: [usize; 4]| Tensor::new(shape, vec![0.5; shape.iter().product()]);
    for shape in [[1, 2, 3, 7], [1, 4, 3, 8], [2, 2, 3, 8]] {
        let (other, message) = (of(shape), format!("codebook has shape {shape:?}, expected [1, 2, 3, 8]"));
        assert_eq!(refusal(vq(), &Inputs { codebook: Some(other.view()), ..inputs.clone() }), message);
    }
    let empty = of([1, 2, 0, 8]);
    assert!(refusal(vq(), &Inputs { codebook: Some(empty.view()), ..inputs.clone() }).contains("0 codewords"));
    let without = Inputs { codebook_q: None, ..given.inputs("vq_qk", true) };
    assert!(refusal(mechanism("vq_qk", &[]), &without).contains("codebook_q is missing: the codewords of 4 heads"));
    let windowed = Inputs { sight: Sight::causal().window(Some(1), None), ..inputs.clone() };
    assert!(refusal(vq(), &windowed).contains("window"));
    assert!(refusal(vq(), &Inputs { codebook_q: Some(given.codebook_q.view()), ..inputs.clone() }).contains("reads no codebook_q"));

    let choices = choose(&vq(), &inputs);
    let larger = of([1, 2, 4, 8]);
    assert!(vq().plan(&Inputs { codebook: Some(larger.view()), ..inputs.clone() }, &choices, Pass::default()).is_err(), "codes of three");
    let longer = Given::draw([4, 2], [7, 7], 3, 1);
    assert!(vq().plan(&longer.inputs("vq", true), &choices, Pass::default()).is_err(), "codes of six keys");

    let keys = given.heads.k.view();
    assert!(Codebook::drawn(&keys, 0, 1).is_err() && Codebook::new(&empty.view()).is_err());
    assert!(matches!(Statistics::of(&keys, &[0; 5], 3, 1), Err(Error::Shape { .. })));
    assert!(Statistics::of(&keys, &[3; 12], 3, 1).unwrap_err().to_string().contains("3 is none of 3 codes"));
    let statistics = Statistics::of(&keys, &[0; 12], 3, 1).unwrap();
    assert!(Codebook::drawn(&keys, 4, 1).unwrap().after_step(&statistics).is_err());

    let mut state = vq().start().unwrap();
    let tokens = Tokens::new(given.heads.k.view(), given.heads.v.view());
    assert!(state.prefill(&tokens).unwrap_err().to_string().contains("codebook is missing"));
    state.prefill(&Tokens { codebook: Some(given.codebook.view()), ..tokens }).unwrap();
    let changed = of(given.codebook.shape);
    let error = state.prefill(&Tokens { codebook: Some(changed.view()), ..tokens }).unwrap_err();
    assert!(error.to_string().contains("the same with every token"), "{error}");
}
