//! What HyperAttention has to hold beyond what every mechanism does: each trap by name.

mod common;

use common::heads::{Heads, Tensor, sizes};
use common::{Random, levels, values};
use regard_core::mechanism::{Gradients, Hyper, Inputs, Mechanism, Pass, Plan, Trace};
use regard_core::oracle::{Oracle, Storage};
use regard_core::{Alignment, Dims, Error, Output, Par, Saved, Sight, Strided, View};

fn hyper(options: &[(&str, &str)]) -> Mechanism {
    let mut mechanism = Mechanism::by_name("hyper").unwrap();
    options.iter().for_each(|(name, value)| mechanism.set(name, value).unwrap());
    mechanism
}

fn inputs<'a>(heads: &'a Heads, sight: Sight<'a>) -> Inputs<'a> {
    Inputs::new(heads.q.view(), heads.k.view(), heads.v.view(), sight)
}

fn seeded(seed: u64) -> Pass {
    Pass { seed, ..Pass::default() }
}

/// Everything that is computed, by name.
type Found = Vec<(&'static str, Vec<f64>)>;

fn get<'a>(found: &'a Found, name: &str) -> &'a [f64] {
    &found.iter().find(|(tensor, _)| *tensor == name).unwrap().1
}

/// Forward and backward.
fn run(mechanism: &Mechanism, inputs: &Inputs<'_>, d_o: &Tensor, storage: Storage) -> Found {
    let choices = mechanism.choose(inputs, Pass::default(), Par::default()).unwrap();
    let plan = mechanism.plan(inputs, &choices, Pass::default()).unwrap();
    let Dims { batch, heads, queries, dv, .. } = plan.dims();
    let mut o = Tensor::unfilled(storage, [batch, heads, queries, dv]);
    let mut lse = vec![f32::NAN; batch * heads * queries];
    plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, Par::default()).unwrap();
    let [mut dq, mut d_k, mut d_v] = [inputs.q, inputs.k, inputs.v].map(|view| Tensor::unfilled(storage, view.shape()));
    let parts = regard_core::Gradients {
        dq: Some(dq.view_mut()),
        dk: Some(d_k.view_mut()),
        dv: Some(d_v.view_mut()),
        ..regard_core::Gradients::default()
    };
    let saved = Saved { o: o.view(), lse: &lse, d_o: d_o.view() };
    plan.backward(&saved, &mut parts.into(), Par::default()).unwrap();
    let lse = lse.into_iter().map(f64::from).collect();
    let [o, dq, d_k, d_v] = [o, dq, d_k, d_v].map(|tensor| values(tensor.view()));
    vec![("o", o), ("lse", lse), ("dq", dq), ("dk", d_k), ("dv", d_v)]
}

fn traces(mechanism: &Mechanism, inputs: &Inputs<'_>) -> [Trace; 4] {
    let choices = mechanism.choose(inputs, Pass::default(), Par::default()).unwrap();
    mechanism.plan(inputs, &choices, Pass::default()).unwrap().traces().try_into().unwrap()
}

/// Twice the error of plain implementations and a millionth of the largest summand, for everything that is defined or, without the gradient
/// of the output, for that alone; some values of it.
#[track_caller]
fn within_budget(found: &Found, oracle: &dyn Oracle, d_o: Option<&[f64]>, looks: impl Fn(&str, usize) -> bool) {
    let (truth, plain) = (oracle.truth(d_o), oracle.plain(d_o, Storage::F32));
    for (at, defined) in truth.iter().enumerate() {
        let error = |values: &[f64]| {
            let pairs = values.iter().zip(&defined.values).filter(|(x, y)| x != y);
            pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
        };
        let allowed = plain.iter().map(|plain| error(&plain[at].values)).fold(0.0, f64::max);
        for (i, (x, y)) in get(found, defined.name).iter().zip(&defined.values).enumerate().filter(|(i, _)| looks(defined.name, *i)) {
            let budget = 2.0 * allowed + 1e-6 * defined.sizes[i];
            assert!(x == y || (x - y).abs() <= budget, "{}[{i}] is {x}, defined {y}, budget {budget:e}", defined.name);
        }
    }
}

fn exact_oracle(inputs: &Inputs<'_>) -> Box<dyn Oracle> {
    let exact = Mechanism::by_name("exact").unwrap();
    let choices = exact.choose(inputs, Pass::default(), Par::default()).unwrap();
    exact.plan(inputs, &choices, Pass::default()).unwrap().oracle()
}

/// One row for each of the `2^bits` sides of the axes, in some order.
fn corners(bits: usize) -> Tensor {
    let random = &mut Random::new(3);
    let mut corners: Vec<usize> = (0..1 << bits).collect();
    (1..corners.len()).rev().for_each(|i| corners.swap(i, random.below(i + 1)));
    let side = |corner: usize, t: usize| if corner >> t & 1 == 1 { 1.0 } else { -1.0 };
    Tensor::new([1, 1, 1 << bits, bits], corners.iter().flat_map(|&corner| (0..bits).map(move |t| side(corner, t))).collect())
}

#[test]
fn neighbouring_buckets_differ_in_one_side() {
    let bits = 7;
    let rows = corners(bits);
    let axes = Tensor::new([1, 1, bits, bits], (0..bits * bits).map(|i| f32::from(u8::from(i % (bits + 1) == 0))).collect());
    let heads = Heads::given([rows.clone(), rows.clone(), rows.clone()]);
    let [order_q, order_k, buckets_q, buckets_k] =
        traces(&hyper(&[]), &Inputs { hyperplanes: Some(axes.view()), ..inputs(&heads, Sight::full()) });
    assert_eq!([&order_q.values, &buckets_q.values], [&order_k.values, &buckets_k.values]);
    for (bucket, row) in buckets_k.values.iter().zip(rows.floats().chunks(bits)) {
        let bin: i64 = row.iter().enumerate().map(|(t, &x)| i64::from(x > 0.0) << t).sum();
        assert_eq!(*bucket, bin, "of {row:?}");
    }
    let neighbours = |bins: &[i64]| bins.windows(2).filter(|pair| (pair[0] ^ pair[1]).count_ones() == 1).count();
    let in_order: Vec<i64> = order_k.values.iter().map(|&row| buckets_k.values[row as usize]).collect();
    assert_eq!(neighbours(&in_order), 127);
    let mut by_gray_code: Vec<i64> = (0..128).collect();
    by_gray_code.sort_by_key(|bin| bin ^ (bin >> 1));
    assert!(neighbours(&by_gray_code) < 100, "ranks by the Gray code itself: {} of 127", neighbours(&by_gray_code));
}

#[test]
fn rows_of_equal_rank_stay_in_order() {
    let heads = Heads::single(sizes([2, 2], [400, 300], [8, 8]), 4);
    let [order_q, order_k, buckets_q, buckets_k] = traces(&hyper(&[("bits", "3")]), &inputs(&heads, Sight::full()));
    for (order, buckets, rows) in [(&order_q, &buckets_q, 400), (&order_k, &buckets_k, 300)] {
        for (order, buckets) in order.values.chunks(rows).zip(buckets.values.chunks(rows)) {
            let rank = |row: i64| (0..8).find(|rank: &i64| rank ^ (rank >> 1) == buckets[row as usize]).unwrap();
            assert!(order.windows(2).all(|pair| (rank(pair[0]), pair[0]) < (rank(pair[1]), pair[1])));
        }
    }
}

#[test]
fn every_level_hashes_alike() {
    let heads = Heads::single(sizes([2, 1], [500, 500], [33, 8]), 5);
    let (mechanism, inputs) = (hyper(&[("bits", "19")]), inputs(&heads, Sight::full()));
    let of = |level| {
        let choices = mechanism.choose(&inputs, Pass::default(), Par::default().level(level)).unwrap();
        mechanism.plan(&inputs, &choices, Pass::default()).unwrap().traces()
    };
    let all: Vec<_> = levels().map(of).collect();
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn columns_of_hyperplanes_outdo_the_option() {
    let heads = Heads::single(sizes([1, 1], [200, 200], [6, 6]), 6);
    let planes = Tensor::normal(&mut Random::new(1), Storage::F32, [1, 1, 6, 5]);
    let mechanism = hyper(&[("bits", "2")]);
    let most = |inputs: &Inputs<'_>| traces(&mechanism, inputs)[3].values.iter().copied().max().unwrap();
    assert!(most(&inputs(&heads, Sight::full())) < 4);
    assert!((16..32).contains(&most(&Inputs { hyperplanes: Some(planes.view()), ..inputs(&heads, Sight::full()) })));
}

#[test]
fn padding_is_neither_sorted_nor_drawn() {
    let storage = Storage::F32;
    let (tokens, padded) = (90, 300);
    let mut heads = Heads::single(sizes([2, 1], [padded, padded], [8, 5]), 7);
    let long = |tensor: &Tensor, tokens: usize| {
        let [batch, heads, rows, width] = tensor.shape;
        let some = tensor.floats().chunks(rows * width).flat_map(|head| &head[..tokens * width]);
        Tensor::new([batch, heads, tokens, width], some.copied().collect())
    };
    let short = Heads::given([&heads.q, &heads.k, &heads.v].map(|x| long(x, tokens)));
    for tensor in [&mut heads.q, &mut heads.k, &mut heads.v] {
        (tokens..padded).for_each(|n| tensor.row_mut(n).for_each(|row| row.fill(30.0)));
    }
    for (causal, samples) in [(false, "7"), (true, "7"), (false, "1000"), (true, "1000")] {
        let mechanism = hyper(&[("block", "16"), ("samples", samples), ("min_len", "20")]);
        let (lengths, sight) = ([tokens], if causal { Sight::causal() } else { Sight::full() });
        let all = run(&mechanism, &inputs(&heads, sight.lengths(&lengths)), &heads.d_o, storage);
        let alone = run(&mechanism, &inputs(&short, sight), &long(&heads.d_o, tokens), storage);
        for (name, values) in &alone {
            let width = match *name {
                "lse" => 1,
                "o" | "dv" => 5,
                _ => 8,
            };
            for (h, own) in values.chunks(tokens * width).enumerate() {
                let found = &get(&all, name)[h * padded * width..][..padded * width];
                assert!(found[..tokens * width] == *own, "{name} of head {h}, causal={causal}, samples={samples}");
                let empty = if *name == "lse" { f64::NEG_INFINITY } else { 0.0 };
                assert!(found[tokens * width..].iter().all(|x| *x == empty), "{name} of padding");
            }
        }
    }
}

#[test]
fn later_tokens_do_not_move_earlier_rows() {
    let (tokens, first) = (512, 384);
    let before = Heads::single(sizes([1, 1], [tokens, tokens], [16, 16]), 8);
    let mut after = before.clone();
    let random = &mut Random::new(9);
    for tensor in [&mut after.q, &mut after.k, &mut after.v] {
        // All towards one side, so that every other place among the queries moves.
        (first..tokens).for_each(|n| tensor.row_mut(n).for_each(|row| row.iter_mut().for_each(|x| *x = 1.0 + 0.1 * random.normal())));
    }
    for by_norm in ["false", "true"] {
        let mechanism = hyper(&[("block", "16"), ("samples", "16"), ("min_len", "64"), ("by_norm", by_norm)]);
        let [one, other] = [&before, &after].map(|heads| run(&mechanism, &inputs(heads, Sight::causal()), &heads.d_o, Storage::F32));
        let inputs_before = inputs(&before, Sight::causal());
        let choices = mechanism.choose(&inputs_before, Pass::default(), Par::default()).unwrap();
        let oracle = mechanism.plan(&inputs_before, &choices, Pass::default()).unwrap().oracle();
        within_budget(&other, oracle.as_ref(), None, |name, i| i / if name == "o" { 16 } else { 1 } < first);
        assert!(get(&one, "o")[first * 16..] != get(&other, "o")[first * 16..]);
        // By their places among the queries, as published, most of the earlier queries of the first square would change blocks.
        let places = |heads: &Heads| {
            let [order, ..] = traces(&mechanism, &inputs(heads, Sight::causal()));
            let square: Vec<i64> = order.values.into_iter().filter(|&row| row >= 256).collect();
            (256..first as i64).map(|row| square.iter().position(|&own| own == row).unwrap() / 16).collect::<Vec<_>>()
        };
        let moved = places(&before).iter().zip(places(&after)).filter(|(before, after)| **before != *after).count();
        assert!(moved > 64, "the construction moves only {moved} of 128 queries");
    }
}

#[test]
fn with_all_other_keys_drawn_it_is_exact_attention() {
    for (causal, [queries, keys]) in [(false, [150, 150]), (true, [150, 150]), (false, [40, 170]), (true, [40, 170]), (true, [170, 40])] {
        let heads = Heads::single(sizes([4, 2], [queries, keys], [8, 5]), 10);
        let inputs = inputs(&heads, if causal { Sight::causal() } else { Sight::full() });
        let mechanism = hyper(&[("block", "8"), ("samples", "1000"), ("min_len", "10")]);
        let found = run(&mechanism, &inputs, &heads.d_o, Storage::F32);
        within_budget(&found, exact_oracle(&inputs).as_ref(), Some(&values(heads.d_o.view())), |_, _| true);
        let sampled = run(&hyper(&[("block", "8"), ("samples", "9"), ("min_len", "10")]), &inputs, &heads.d_o, Storage::F32);
        assert!(get(&sampled, "o").iter().zip(get(&found, "o")).any(|(x, y)| (x - y).abs() > 0.01), "nothing is left out");
    }
}

/// Sums before they are divided, `Σ e^s v` and `Σ e^s`, of every row, one seed after the other.
fn sums(mechanism: &Mechanism, inputs: &Inputs<'_>, seed: u64) -> Vec<f64> {
    let choices = mechanism.choose(inputs, seeded(seed), Par::default()).unwrap();
    let plan = mechanism.plan(inputs, &choices, seeded(seed)).unwrap();
    let Dims { heads, queries, dv, .. } = plan.dims();
    let mut o = Tensor::unfilled(Storage::F32, [1, heads, queries, dv]);
    let mut lse = vec![f32::NAN; heads * queries];
    plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, Par::default()).unwrap();
    let sums = lse.iter().map(|&lse| f64::from(lse).exp());
    sums.zip(values(o.view()).chunks(dv)).flat_map(|(sum, o)| o.iter().map(move |x| x * sum).chain([sum]).collect::<Vec<_>>()).collect()
}

#[test]
fn sums_are_unbiased_over_seeds() {
    let heads = Heads::single(sizes([2, 1], [6, 30], [4, 3]), 11);
    let planes = Tensor::normal(&mut Random::new(2), Storage::F32, [1, 1, 4, 3]);
    let inputs = Inputs { hyperplanes: Some(planes.view()), ..inputs(&heads, Sight::full()) };
    let expected = sums(&hyper(&[("block", "100")]), &inputs, 0);
    for by_norm in ["false", "true"] {
        let mechanism = hyper(&[("block", "5"), ("samples", "4"), ("by_norm", by_norm)]);
        let rounds = 4000;
        let (mut mean, mut squares) = (vec![0.0; expected.len()], vec![0.0; expected.len()]);
        for seed in 0..rounds {
            for (i, x) in sums(&mechanism, &inputs, seed).into_iter().enumerate() {
                let off = x - expected[i];
                (mean[i], squares[i]) = (mean[i] + off / rounds as f64, squares[i] + off * off / rounds as f64);
            }
        }
        for (i, (mean, squares)) in mean.iter().zip(&squares).enumerate() {
            // Five standard deviations of a mean: one of 48 is beyond that by chance once in 36,000 runs.
            let deviation = (squares - mean * mean).sqrt() / (rounds as f64).sqrt();
            assert!(deviation > 1e-4 * expected[i].abs(), "nothing is left to chance");
            assert!(mean.abs() <= 5.0 * deviation, "by_norm={by_norm}: sum {i} is off by {mean} ± {deviation}, of {}", expected[i]);
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for storage in [Storage::F32, Storage::Bf16] {
        let heads = Heads::draw(Dims { batch: 2, ..sizes([4, 2], [900, 900], [16, 24]) }, storage, 12);
        for causal in [false, true] {
            for by_norm in ["false", "true"] {
                let mechanism = hyper(&[("block", "32"), ("samples", "24"), ("min_len", "100"), ("by_norm", by_norm)]);
                let bits = |threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let inputs = inputs(&heads, if causal { Sight::causal() } else { Sight::full() });
                    let found = pool.install(|| run(&mechanism, &inputs, &heads.d_o, storage));
                    found.into_iter().flat_map(|(_, values)| values).map(f64::to_bits).collect::<Vec<_>>()
                };
                let one = bits(1);
                assert!(one == bits(2) && one == bits(3), "{storage:?} causal={causal} by_norm={by_norm}");
            }
        }
    }
}

#[test]
fn strides_change_no_bit() {
    let heads = Heads::single(sizes([4, 2], [300, 300], [16, 8]), 13);
    let swapped = |tensor: &Tensor| {
        let [_, heads, rows, width] = tensor.shape;
        let place = |at: usize| (at / width % heads * rows + at / width / heads) * width + at % width;
        (0..tensor.floats().len()).map(|at| tensor.floats()[place(at)]).collect::<Vec<f32>>()
    };
    let [q, k, v] = [&heads.q, &heads.k, &heads.v].map(|tensor| (swapped(tensor), tensor.shape));
    let view = |(data, [b, h, n, d]): &(Vec<f32>, [usize; 4])| -> View<'static> {
        let data: &'static [f32] = Vec::leak(data.clone());
        Strided::contiguous(data, [*b, *n, *h, *d], "x").unwrap().permuted([0, 2, 1, 3]).into()
    };
    let mechanism = hyper(&[("block", "16"), ("samples", "16"), ("min_len", "40")]);
    for sight in [Sight::full(), Sight::causal()] {
        let together = run(&mechanism, &inputs(&heads, sight), &heads.d_o, Storage::F32);
        let apart = run(&mechanism, &Inputs::new(view(&q), view(&k), view(&v), sight), &heads.d_o, Storage::F32);
        assert!(together == apart);
    }
}

#[test]
fn values_without_norms_are_drawn_evenly() {
    let mut heads = Heads::single(sizes([1, 1], [40, 40], [8, 4]), 14);
    heads.v.floats_mut().fill(0.0);
    let mechanism = hyper(&[("block", "4"), ("samples", "6"), ("by_norm", "true")]);
    let found = run(&mechanism, &inputs(&heads, Sight::full()), &heads.d_o, Storage::F32);
    assert!(get(&found, "o").iter().all(|x| *x == 0.0) && get(&found, "lse").iter().all(|x| x.is_finite()));
}

#[test]
fn what_is_not_a_number_reaches_only_rows_that_see_it() {
    let mut heads = Heads::single(sizes([1, 1], [256, 256], [8, 8]), 15);
    heads.v.row_mut(200).for_each(|row| row[3] = f32::NAN);
    heads.k.row_mut(230).for_each(|row| row[0] = f32::INFINITY);
    for by_norm in ["false", "true"] {
        let mechanism = hyper(&[("block", "8"), ("samples", "8"), ("min_len", "16"), ("by_norm", by_norm)]);
        let found = run(&mechanism, &inputs(&heads, Sight::causal()), &heads.d_o, Storage::F32);
        assert!(get(&found, "o")[..200 * 8].iter().all(|x| x.is_finite()), "by_norm={by_norm}");
        assert!(get(&found, "o")[200 * 8..].iter().any(|x| x.is_nan()));
    }
}

/// The message of what is refused.
fn refusal<T>(result: Result<T, Error>) -> String {
    result.err().expect("it is refused").to_string()
}

#[test]
fn what_does_not_fit_is_refused_with_its_numbers() {
    let heads = Heads::single(sizes([2, 1], [20, 20], [8, 8]), 16);
    let plain = inputs(&heads, Sight::full());
    let choose = |config: Hyper, inputs: &Inputs<'_>| Mechanism::from(config).choose(inputs, Pass::default(), Par::default());
    let said = refusal(choose(Hyper { block: 0, samples: 0, ..Hyper::default() }, &plain));
    assert!(said.contains("block") && said.contains("0 keys") && said.contains("samples=0"), "{said}");
    assert!(choose(Hyper { samples: 0, ..Hyper::default() }, &plain).is_ok());
    for bits in [0, 33] {
        let said = refusal(choose(Hyper { bits, ..Hyper::default() }, &plain));
        assert!(said.contains("bits") && said.contains(&bits.to_string()) && said.contains("32"), "{said}");
        let planes = Tensor::new([1, 1, 8, bits], vec![0.5; 8 * bits]);
        let said = refusal(choose(Hyper::default(), &Inputs { hyperplanes: Some(planes.view()), ..plain.clone() }));
        assert!(said.contains("hyperplanes") && said.contains(&format!("{bits} columns")), "{said}");
    }
    let planes = Tensor::new([1, 1, 9, 3], vec![0.5; 27]);
    let said = refusal(choose(Hyper::default(), &Inputs { hyperplanes: Some(planes.view()), ..plain.clone() }));
    assert!(said.contains("hyperplanes") && said.contains("[1, 1, 9, 3]") && said.contains("[1, 1, 8, 3]"), "{said}");
    let biases = vec![0.0; 20];
    let said = refusal(choose(Hyper::default(), &Inputs { key_bias: Some(&biases), ..plain.clone() }));
    assert!(said.contains("key_bias"), "{said}");
    for sight in [Sight::causal().window(Some(3), None), Sight::causal().alignment(Alignment::TopLeft)] {
        assert!(refusal(choose(Hyper::default(), &inputs(&heads, sight))).contains("hyper"));
    }
    for (option, value) in [("block", "0"), ("bits", "0"), ("bits", "33"), ("samples", "-1"), ("by_norm", "2"), ("depth", "1")] {
        let said = hyper(&[]).set(option, value).expect_err("it is refused").to_string();
        assert!(said.contains(option), "{said}");
    }
}

#[test]
fn choices_and_gradients_of_something_else_are_refused() {
    let (heads, other) = (Heads::single(sizes([2, 1], [20, 20], [8, 8]), 17), Heads::single(sizes([2, 1], [21, 20], [8, 8]), 17));
    let mechanism = hyper(&[("block", "4"), ("samples", "2")]);
    let (own, others) = (inputs(&heads, Sight::full()), inputs(&other, Sight::full()));
    let choices = mechanism.choose(&own, Pass::default(), Par::default()).unwrap();
    let said = refusal(mechanism.plan(&others, &choices, Pass::default()));
    assert!(said.contains("40") && said.contains("42"), "{said}");
    let plan = mechanism.plan(&own, &choices, Pass::default()).unwrap();
    let (o, lse, mut dkey_bias) = (Tensor::unfilled(Storage::F32, [1, 2, 20, 8]), [0.0; 40], [0.0; 20]);
    let biases = regard_core::Gradients { dkey_bias: Some(&mut dkey_bias), ..regard_core::Gradients::default() };
    let saved = Saved { o: o.view(), lse: &lse, d_o: heads.d_o.view() };
    assert!(refusal(plan.backward(&saved, &mut Gradients::from(biases), Par::default())).contains("biases"));
}
