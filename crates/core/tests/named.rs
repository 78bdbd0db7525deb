//! The exact kernel, case by case: what is visible, what is empty, what is not a number, and where bits must not change.

mod common;

use common::heads::{Heads, Tensor, run, sizes};
use common::{Outcome, Random, levels, ways};
use regard_core::oracle::{Definition, Storage};
use regard_core::simd::Level;
use regard_core::{
    Alignment, Dims, Dropout, Element, Gradients, Output, Par, Problem, Saved, Scores, Sight, Strided, StridedMut, View, ViewMut, bf16,
    exact, f16,
};
use std::ops::Range;

/// Every level, on the caller's thread.
fn pars() -> impl Iterator<Item = Par> {
    levels().map(|level| Par::serial().level(level))
}

fn assert_all(values: &[f64], value: f64, what: &str) {
    assert!(values.iter().all(|&x| x == value), "{what} is not all {value}: {values:?}");
}

fn assert_same_bits(a: &Outcome, b: &Outcome, what: &str) {
    for ((name, x), (_, y)) in a.tensors.iter().zip(&b.tensors) {
        let bits = |values: &[f64]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(x), bits(y), "{name}: {what}");
    }
}

/// Which keys each query sees, told by the kernel's own weights: scores are 0 and values one-hot, so that `o` is the row
/// of weights. One query head takes the path for few query rows, twelve take the tiled one.
fn pictured(sight: Sight<'_>, scores: Scores<'_>, [queries, keys]: [usize; 2]) -> String {
    let mut pictures = Vec::new();
    for (heads, par) in [1, 12].into_iter().flat_map(|heads| pars().map(move |par| (heads, par))) {
        let mut all = Heads::single(sizes([heads, 1], [queries, keys], [1, keys]), 1);
        all.k.floats_mut().fill(0.0);
        all.v.floats_mut().iter_mut().enumerate().for_each(|(at, x)| *x = f32::from(u8::from(at / keys == at % keys)));
        let outcome = all.run(&all.problem(sight, scores), par);
        pictures.extend(outcome.get("o").chunks(queries * keys).map(|head| head.chunks(keys).map(drawn).collect::<Vec<_>>().join(" ")));
    }
    assert!(pictures.iter().all(|picture| *picture == pictures[0]), "{pictures:?}");
    pictures.swap_remove(0)
}

fn picture(sight: Sight<'_>, sizes: [usize; 2]) -> String {
    pictured(sight, Scores::new(), sizes)
}

/// One row of weights; what is visible has equal weight.
fn drawn(weights: &[f64]) -> String {
    let count = weights.iter().filter(|&&weight| weight > 0.0).count() as f64;
    assert!(weights.iter().all(|&weight| weight == 0.0 || (weight * count - 1.0).abs() < 1e-6), "{weights:?}");
    weights.iter().map(|&weight| if weight > 0.0 { '1' } else { '.' }).collect()
}

#[test]
fn reaches_are_inclusive() {
    let square = [5, 5];
    assert_eq!(picture(Sight::full().window(Some(0), Some(0)), square), "1.... .1... ..1.. ...1. ....1");
    assert_eq!(picture(Sight::causal().window(Some(0), None), square), "1.... .1... ..1.. ...1. ....1");
    assert_eq!(picture(Sight::causal().window(Some(2), None), square), "1.... 11... 111.. .111. ..111");
    assert_eq!(picture(Sight::full().window(Some(1), Some(2)), square), "111.. 1111. .1111 ..111 ...11");
    assert_eq!(picture(Sight::full().window(Some(2), None), square), "11111 11111 11111 .1111 ..111");
    assert_eq!(picture(Sight::full().window(None, Some(1)), square), "11... 111.. 1111. 11111 11111");
    assert_eq!(picture(Sight::causal().window(None, Some(3)), square), "1.... 11... 111.. 1111. 11111");
    assert_eq!(picture(Sight::full().window(Some(usize::MAX), Some(usize::MAX)), [2, 3]), "111 111");
}

#[test]
fn sinks_lift_the_left_reach_only() {
    assert_eq!(picture(Sight::causal().window(Some(1), None).sinks(2), [5, 5]), "1.... 11... 111.. 1111. 11.11");
    assert_eq!(picture(Sight::full().window(Some(0), Some(0)).sinks(2), [5, 5]), "1.... 11... 111.. 11.1. 11..1");
    assert_eq!(picture(Sight::causal().sinks(2), [3, 3]), "1.. 11. 111");
    assert_eq!(picture(Sight::causal().window(Some(0), None).sinks(usize::MAX), [3, 3]), "1.. 11. 111");
}

#[test]
fn until_only_ends_a_lifetime() {
    assert_eq!(picture(Sight::full().until(&[2, 0, 4, i64::MAX]), [4, 4]), "1.11 1.11 ..11 ..11");
    assert_eq!(picture(Sight::causal().until(&[1, 3, 4, 4]), [4, 4]), "1... .1.. .11. ..11");
    assert_eq!(picture(Sight::causal().until(&[-3, i64::MIN, 2, 9]), [4, 4]), ".... .... .... ...1");
    assert_eq!(picture(Sight::full().until(&[1, 2]).alignment(Alignment::TopLeft), [4, 2]), "11 .1 .1 .1");
}

#[test]
fn unequal_lengths_align_at_either_end() {
    assert_eq!(picture(Sight::causal(), [2, 4]), "111. 1111");
    assert_eq!(picture(Sight::causal().alignment(Alignment::TopLeft), [2, 4]), "1... 11..");
    assert_eq!(picture(Sight::causal(), [4, 2]), ".. .. 1. 11");
    assert_eq!(picture(Sight::causal().alignment(Alignment::TopLeft), [4, 2]), "1. 11 11 11");
    assert_eq!(picture(Sight::full().window(Some(0), Some(1)), [2, 4]), "..11 ...1");
}

#[test]
fn lengths_count_from_the_front() {
    assert_eq!(picture(Sight::causal().lengths(&[3]), [4, 4]), "1... 11.. 111. ....");
    assert_eq!(picture(Sight::causal().lengths(&[3]).lengths_q(&[2]), [4, 4]), "11.. 111. .... ....");
    assert_eq!(picture(Sight::causal().lengths(&[3]), [2, 4]), "11.. 111.");
    assert_eq!(picture(Sight::full().lengths(&[0]), [2, 2]), ".. ..");
    assert_eq!(picture(Sight::full().lengths_q(&[1]), [3, 2]), "11 .. ..");
}

#[test]
fn packed_sequences_do_not_meet() {
    let offsets = ([0, 2, 2, 5], [0, 1, 3, 6]);
    assert_eq!(picture(Sight::full().offsets(&offsets.0, &offsets.1), [5, 6]), "1..... 1..... ...111 ...111 ...111");
    assert_eq!(picture(Sight::causal().offsets(&offsets.0, &offsets.1), [5, 6]), "...... 1..... ...1.. ...11. ...111");
    let until = [1, 1, 1, 1, 2, 3];
    assert_eq!(picture(Sight::causal().offsets(&offsets.0, &offsets.1).until(&until), [5, 6]), "...... 1..... ...1.. ....1. .....1");
}

#[test]
fn spans_and_positions_place_the_keys_of_a_ragged_cache() {
    assert_eq!(picture(Sight::causal().key_spans(&[[2, 3]]), [2, 6]), "..11.. ..111.");
    let placed = Sight::causal().positions(&[5, 9], &[9, 5, 6, 0]);
    assert_eq!(picture(placed, [2, 4]), ".1.1 1111");
    assert_eq!(picture(placed.window(Some(3), None).sinks(1), [2, 4]), ".1.1 1.11");
    assert_eq!(picture(placed.until(&[i64::MAX, 9, 4, i64::MAX]), [2, 4]), ".1.1 1..1");
}

#[test]
fn masks_and_infinite_biases_hide() {
    let mask = [1, 0, 1, 0, 0, 0];
    assert_eq!(picture(Sight::full().mask(Strided::contiguous(&mask, [1, 1, 2, 3], "mask").unwrap()), [2, 3]), "1.1 ...");
    let hidden = f32::NEG_INFINITY;
    assert_eq!(pictured(Sight::causal(), Scores::new().key_bias(&[0.0, hidden, 0.0]), [3, 3]), "1.. 1.. 1.1");
    let bias = [0.0, hidden, hidden, hidden, hidden, hidden];
    let bias = Strided::contiguous(&bias, [1, 1, 2, 3], "bias").unwrap().into();
    assert_eq!(pictured(Sight::full(), Scores::new().bias(bias), [2, 3]), "1.. ...");
}

#[test]
fn windows_of_every_size_see_as_many_keys_as_they_say() {
    let mut all = Heads::single(sizes([1, 1], [300, 300], [8, 8]), 4);
    all.k.floats_mut().fill(0.0);
    for (window, par) in [1, 2, 16, 63, 64, 65, 256, 257, 300, 301].into_iter().flat_map(|w| pars().map(move |par| (w, par))) {
        let check = |sight: Sight<'_>, count: &dyn Fn(usize) -> usize| {
            let outcome = all.run(&all.problem(sight, Scores::new()), par);
            for (i, lse) in outcome.get("lse").iter().enumerate() {
                assert_eq!(lse.exp().round() as usize, count(i), "row {i}, window {window}, {sight:?}");
            }
        };
        let reach = Some(window - 1);
        let causal = |i: usize| window.min(i + 1);
        check(Sight::causal().window(reach, None), &causal);
        check(Sight::causal().window(reach, None).sinks(5), &|i| causal(i) + 5.min(i + 1 - causal(i)));
        check(Sight::full().window(reach, reach), &|i| causal(i) + (window - 1).min(299 - i));
    }
}

/// Sizes that take the path for few query rows and sizes that take the tiled one, rows side by side and in strips.
fn small_sizes() -> [Dims; 4] {
    let tiled = [sizes([4, 2], [70, 70], [16, 24]), sizes([2, 1], [150, 130], [40, 72])];
    [sizes([4, 2], [1, 70], [16, 16]), sizes([2, 1], [4, 33], [7, 5]), tiled[0], tiled[1]]
}

#[test]
fn rows_that_see_nothing_are_zero_and_give_no_gradient() {
    for (dims, par) in small_sizes().into_iter().flat_map(|dims| pars().map(move |par| (dims, par))) {
        let heads = Heads::single(dims, 5);
        let caches = dims.kv_heads * dims.keys;
        let (never, hidden, dark) = (vec![0; caches], vec![f32::NEG_INFINITY; caches], vec![0; dims.queries * dims.keys]);
        let mask = Strided::contiguous(&dark, [1, 1, dims.queries, dims.keys], "mask").unwrap();
        let all_queries = [dims.queries];
        let nothing = [
            heads.problem(Sight::full().until(&never), Scores::new()),
            heads.problem(Sight::full(), Scores::new().key_bias(&hidden)),
            heads.problem(Sight::causal().mask(mask), Scores::new()),
            heads.problem(Sight::full().lengths(&[0]).lengths_q(&all_queries), Scores::new()),
            heads.problem(Sight::full().lengths_q(&[0]), Scores::new()),
        ];
        for (at, problem) in nothing.iter().enumerate() {
            for (name, values) in heads.run(problem, par).tensors {
                assert_all(&values, if name == "lse" { f64::NEG_INFINITY } else { 0.0 }, &format!("{name} in {at} of {dims:?}"));
            }
        }
    }
}

#[test]
fn a_hidden_row_among_others_is_zero() {
    let heads = Heads::single(sizes([2, 2], [70, 70], [16, 16]), 6);
    let hidden = |row: usize| row == 3 || (16..48).contains(&row) || row == 69;
    let mask: Vec<u8> = (0..70 * 70).map(|at| u8::from(!hidden(at / 70))).collect();
    let sight = Sight::full().mask(Strided::contiguous(&mask, [1, 1, 70, 70], "mask").unwrap());
    let outcome = heads.verify(&heads.problem(sight, Scores::new()), "hidden rows");
    for row in (0..140).filter(|row| hidden(row % 70)) {
        assert_eq!(outcome.get("lse")[row], f64::NEG_INFINITY);
        assert_all(&outcome.get("o")[row * 16..][..16], 0.0, "o");
        assert_all(&outcome.get("dq")[row * 16..][..16], 0.0, "dq");
    }
}

#[test]
fn a_key_that_nobody_sees_gets_no_gradient() {
    let heads = Heads::single(sizes([2, 1], [40, 70], [8, 8]), 7);
    let mut until = vec![70; 70];
    until[20] = 0;
    let outcome = heads.verify(&heads.problem(Sight::causal().until(&until), Scores::new()), "a dead key");
    for (name, width) in [("dk", 8), ("dv", 8), ("dkey_bias", 1)] {
        assert_all(&outcome.get(name)[20 * width..21 * width], 0.0, name);
    }
    assert_eq!((outcome.get("received")[20], outcome.get("received")[90]), (0.0, 0.0));
}

#[test]
fn huge_and_tiny_values_give_numbers() {
    for (dims, par) in small_sizes().into_iter().flat_map(|dims| pars().map(move |par| (dims, par))) {
        for (factor, which) in [1e4, 1e-30].into_iter().flat_map(|factor| ["q", "k", "v", "qk", "qkv"].map(|which| (factor, which))) {
            let mut heads = Heads::single(dims, 8);
            for (name, tensor) in [('q', &mut heads.q), ('k', &mut heads.k), ('v', &mut heads.v)] {
                if which.contains(name) {
                    tensor.floats_mut().iter_mut().for_each(|x| *x *= factor);
                }
            }
            let problem = heads.problem(Sight::full(), Scores::new());
            let outcome = heads.run(&problem, par);
            let largest = heads.v.floats().iter().fold(0.0f32, |max, x| max.max(x.abs()));
            assert!(outcome.get("o").iter().all(|x| x.abs() <= f64::from(largest) * 1.000001), "o, {factor:e} in {which}, {dims:?}");
            for (name, values) in outcome.tensors {
                assert!(values.iter().all(|x| x.is_finite()), "{name} with {factor:e} in {which}, {dims:?}, {par:?}");
            }
        }
    }
}

#[test]
fn one_huge_row_among_normal_ones_keeps_the_budget() {
    for (factor, dims) in [1e4, 1e-30].into_iter().flat_map(|factor| small_sizes().map(|dims| (factor, dims))) {
        let mut heads = Heads::single(dims, 9);
        let middle = dims.keys / 2;
        heads.v.row_mut(middle).flatten().for_each(|x| *x *= factor);
        heads.verify(&heads.problem(Sight::full(), Scores::new()), "one row of v");
    }
}

/// Fails unless the forward pass of spoilt tensors gives what the clean ones define to every row but the spoilt ones, and
/// something not finite to those. A budget, not bits: rows of a tile share a rescale.
fn assert_confined(heads: &Heads, sight: Sight<'_>, spoil: impl Fn(&mut Heads), is_spoilt: impl Fn(usize) -> bool) {
    let (dims, clean) = (heads.dims, heads.problem(sight, Scores::new()).definition().forward());
    let mut spoilt = heads.clone();
    spoil(&mut spoilt);
    for par in pars() {
        let mut o = Tensor::unfilled(Storage::F32, heads.d_o.shape);
        let mut lse = vec![f32::NAN; dims.heads * dims.queries];
        exact::forward(&spoilt.problem(sight, Scores::new()), &mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par).unwrap();
        let close = |x: f32, y: f64| f64::from(x) == y || (f64::from(x) - y).abs() < 1e-5;
        for (row, (o, lse)) in o.floats().chunks(dims.dv).zip(&lse).enumerate() {
            let kept = o.iter().zip(&clean.o[row * dims.dv..]).all(|(&x, &y)| close(x, y)) && close(*lse, clean.lse[row]);
            let finite = o.iter().all(|x| x.is_finite());
            let spoilt = is_spoilt(row % dims.queries);
            assert!(if spoilt { !finite } else { kept }, "row {row}, spoilt: {spoilt}, gives {o:?} and lse {lse}, {par:?}");
        }
    }
}

#[test]
fn what_is_not_a_number_reaches_only_rows_that_see_it() {
    let spoil = |key: usize, value: f32, in_values: bool| {
        move |heads: &mut Heads| {
            let tensor = if in_values { &mut heads.v } else { &mut heads.k };
            tensor.row_mut(key).for_each(|row| row[2] = value);
        }
    };
    let many = Heads::single(sizes([2, 1], [150, 150], [16, 16]), 10);
    let few = Heads::single(sizes([2, 1], [3, 5000], [16, 16]), 11);
    let until: Vec<i64> = (0..5000).map(|j| if j == 4100 { 4999 } else { i64::MAX }).collect();
    let kinds = [(f32::NAN, false), (f32::NAN, true), (f32::INFINITY, true), (f32::NEG_INFINITY, true)];
    for (value, in_values) in kinds {
        assert_confined(&many, Sight::causal(), spoil(77, value, in_values), |row| row >= 77);
        assert_confined(&many, Sight::causal().window(Some(30), None), spoil(77, value, in_values), |row| (77..=107).contains(&row));
        assert_confined(&many, Sight::causal().lengths(&[77]).lengths_q(&[150]), spoil(77, value, in_values), |_| false);
        assert_confined(&few, Sight::causal().window(Some(2499), None), spoil(2499, value, in_values), |row| row == 0 || row == 1);
        assert_confined(&few, Sight::causal().until(&until), spoil(4100, value, in_values), |row| row <= 1);
    }
}

#[test]
fn a_query_that_is_not_a_number_spoils_its_own_row() {
    let spoil = |heads: &mut Heads| heads.q.row_mut(1).for_each(|row| row[0] = f32::NAN);
    assert_confined(&Heads::single(sizes([2, 1], [150, 150], [16, 16]), 12), Sight::causal(), spoil, |row| row == 1);
    assert_confined(&Heads::single(sizes([2, 1], [3, 150], [16, 16]), 12), Sight::causal(), spoil, |row| row == 1);
}

/// A tensor, one of its heads and a row that holds something not finite.
#[derive(Debug, Clone, Copy)]
struct Stain {
    tensor: &'static str,
    head: usize,
    row: usize,
    value: f32,
}

impl Stain {
    fn on(self, heads: &Heads) -> Heads {
        let mut stained = heads.clone();
        let tensor = match self.tensor {
            "q" => &mut stained.q,
            "k" => &mut stained.k,
            "v" => &mut stained.v,
            _ => &mut stained.d_o,
        };
        let [_, _, rows, width] = tensor.shape;
        tensor.floats_mut()[(self.head * rows + self.row) * width + 2] = self.value;
        stained
    }

    /// Which rows of each result it reaches, told by visibility alone: the definition of each result says what it is made of.
    fn reach(self, definition: &Definition) -> impl Fn(&str, usize) -> bool {
        let Definition { heads, kv_heads, queries, keys, .. } = *definition;
        let group = heads / kv_heads;
        let pairs = |row: usize| (0..keys).filter(move |&j| definition.visible(0, row / queries, row % queries, j));
        let by_query = matches!(self.tensor, "q" | "do");
        let meets = |row: usize| match by_query {
            true => row == self.head * queries + self.row && pairs(row).next().is_some(),
            false => row / queries / group == self.head && pairs(row).any(|j| j == self.row),
        };
        let spoilt: Vec<bool> = (0..heads * queries).map(meets).collect();
        let mut seen = vec![[false; 2]; heads * keys];
        for row in (0..heads * queries).filter(|&row| spoilt[row]) {
            pairs(row).for_each(|j| {
                seen[row / queries * keys + j][0] = true;
                seen[row / queries / group * keys + j][1] = true;
            });
        }
        let visible: Vec<bool> = (0..heads * queries * keys)
            .map(|at| spoilt[at / keys] && definition.visible(0, at / keys / queries, at / keys % queries, at % keys))
            .collect();
        move |name, row| match (name, self.tensor) {
            ("o" | "lse" | "received", "do") | ("lse" | "received" | "dv", "v") => false,
            ("o" | "lse" | "dq", _) => spoilt[row],
            ("received", _) => seen[row][0],
            ("dk" | "dv" | "dkey_bias", _) => seen[row][1],
            _ => visible[row],
        }
    }
}

/// Fails unless a stain reaches exactly the rows that see it, and all others keep the budget.
fn assert_reach(name: &str, heads: &Heads, (sight, scores): (Sight<'_>, Scores<'_>), stains: &[Stain]) {
    let Dims { dk, dv, .. } = heads.dims;
    let judge = heads.judge(&heads.problem(sight, scores));
    for par in pars() {
        let clean = heads.run(&heads.problem(sight, scores), par);
        for stain in stains {
            let stained = stain.on(heads);
            let reached = stain.reach(&judge.definition);
            let mut outcome = stained.run(&stained.problem(sight, scores), par);
            for (tensor, values) in &mut outcome.tensors {
                let width = if matches!(*tensor, "o" | "dv") {
                    dv
                } else if matches!(*tensor, "dq" | "dk") {
                    dk
                } else {
                    1
                };
                for (row, (values, clean)) in values.chunks_mut(width).zip(clean.get(tensor).chunks(width)).enumerate() {
                    if reached(tensor, row) {
                        assert!(values.iter().any(|x| !x.is_finite()), "{tensor} row {row} is finite, {stain:?}, {par:?}, {name}");
                        values.copy_from_slice(clean);
                    }
                }
            }
            judge.weigh(&outcome, &format!("{stain:?} at {} in {name}", par.level_in_use()));
        }
    }
}

/// What is not a number in every tensor, and infinities in those that are only summed; query head 2 and its kv head.
fn stains(query: usize, key: usize) -> Vec<Stain> {
    let with = |tensor, head, row| move |value| Stain { tensor, head, row, value };
    let infinite = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let summed = infinite.map(with("v", 1, key)).into_iter().chain(infinite.map(with("do", 2, query)));
    [with("q", 2, query)(f32::NAN), with("k", 1, key)(f32::NAN)].into_iter().chain(summed).collect()
}

#[test]
fn what_is_not_finite_reaches_whoever_sees_it_forward_and_backward() {
    let heads = Heads::single(sizes([4, 2], [150, 150], [16, 24]), 40);
    let check = |name: &str, sight: Sight<'_>, [query, key]: [usize; 2]| {
        assert_reach(name, &heads, (sight, Scores::new()), &stains(query, key));
    };
    check("full", Sight::full(), [149, 0]);
    check("causal, early", Sight::causal(), [1, 0]);
    check("causal, late", Sight::causal(), [77, 101]);
    check("window, sinks", Sight::causal().window(Some(30), None).sinks(3), [90, 60]);
    check("a sink", Sight::causal().window(Some(30), None).sinks(3), [149, 1]);
    check("padding", Sight::causal().lengths(&[77]).lengths_q(&[150]), [20, 77]);
    check("lengths", Sight::full().lengths(&[77]).lengths_q(&[90]), [100, 76]);
    check("packed", Sight::causal().offsets(&[0, 40, 100, 150], &[0, 50, 90, 150]), [60, 70]);
    let until = [scattered(150, 41), scattered(150, 42)].concat();
    let alive = (150..300).filter(|&j| until[j] > j as i64 - 140).map(|j| j - 150).nth(40).expect("some live on");
    check("lifetimes, causal", Sight::causal().until(&until), [120, alive]);
    check("lifetimes", Sight::full().until(&until), [30, alive]);
    let random = &mut Random::new(43);
    let mask: Vec<u8> = (0..150 * 150).map(|_| u8::from(random.chance(0.3))).collect();
    check("mask", Sight::causal().mask(Strided::contiguous(&mask, [1, 1, 150, 150], "mask").unwrap()), [66, 33]);
    let positions: Vec<i64> = (0..300).map(|_| random.below(150) as i64).collect();
    let queries: Vec<i64> = (0..150).map(|i| (i * 7 % 150) as i64).collect();
    let spans = [[0, 150], [37, 100]];
    check("spans, positions", Sight::causal().positions(&queries, &positions).key_spans(&spans), [77, 60]);
    check("spans", Sight::causal().key_spans(&spans), [140, 20]);
}

#[test]
fn what_is_not_finite_reaches_whoever_sees_it_with_every_part_of_a_score() {
    let mut heads = Heads::single(sizes([4, 2], [150, 140], [16, 24]), 44).with_bias([1, 4], 45);
    let random = &mut Random::new(46);
    let hidden = heads.bias.iter_mut().flat_map(|bias| bias.floats_mut().iter_mut());
    hidden.filter(|_| random.chance(0.3)).for_each(|x| *x = f32::NEG_INFINITY);
    let key_bias: Vec<f32> = (0..280).map(|j| if j % 5 == 3 { f32::NEG_INFINITY } else { (j as f32 * 0.3).sin() }).collect();
    let dropout = Dropout { probability: 0.3, seed: 4, step: 1 };
    let rich = Scores::new().softcap(4.0).alibi().key_bias(&key_bias).dropout(dropout);
    let key_biased = Heads { bias: None, ..heads.clone() };
    for (query, key) in [(100, 50), (60, 143 % 140), (12, 48)] {
        assert_reach("every part", &heads, (Sight::causal(), rich), &stains(query, key));
        let biased = Scores::new().key_bias(&key_bias);
        assert_reach("key biases", &key_biased, (Sight::causal(), biased), &stains(query, key));
    }
}

#[test]
fn what_is_not_finite_reaches_whoever_sees_it_with_few_queries() {
    let heads = Heads::single(sizes([4, 2], [3, 5000], [16, 24]), 47);
    let check = |name: &str, sight: Sight<'_>, [query, key]: [usize; 2]| {
        assert_reach(name, &heads, (sight, Scores::new()), &stains(query, key));
    };
    check("causal", Sight::causal(), [1, 4999]);
    check("window", Sight::causal().window(Some(2499), None), [0, 2499]);
    let until: Vec<i64> = (0..10_000).map(|j| if j % 5000 == 4100 { 4999 } else { i64::MAX }).collect();
    check("lifetimes", Sight::causal().until(&until), [2, 4100]);
}

#[test]
fn a_score_of_minus_infinity_hides() {
    for dims in [sizes([2, 1], [70, 70], [16, 16]), sizes([2, 1], [3, 70], [16, 16])] {
        let mut heads = Heads::single(dims, 48);
        heads.q.floats_mut().iter_mut().for_each(|x| *x = x.abs());
        let infinite = Stain { tensor: "k", head: 0, row: 33, value: f32::NEG_INFINITY }.on(&heads);
        let mut key_bias = vec![0.0; 70];
        key_bias[33] = f32::NEG_INFINITY;
        let judge = heads.judge(&heads.problem(Sight::full(), Scores::new().key_bias(&key_bias)));
        for par in pars() {
            judge.weigh(&infinite.run(&infinite.problem(Sight::full(), Scores::new()), par), "a key far below all others");
        }
    }
}

#[test]
fn later_tokens_and_other_batch_rows_change_nothing() {
    let dims = Dims { batch: 2, ..sizes([2, 1], [130, 130], [16, 16]) };
    let before = Heads::single(dims, 13);
    let mut after = before.clone();
    for tensor in [&mut after.q, &mut after.k, &mut after.v] {
        let (rows, width) = (tensor.shape[2], tensor.shape[3]);
        let half = tensor.floats().len() / 2;
        let (first, second) = tensor.floats_mut().split_at_mut(half);
        first.chunks_mut(width).enumerate().filter(|(row, _)| row % rows >= 100).for_each(|(_, row)| row.fill(3.0));
        second.fill(-2.0);
    }
    let judge = before.judge(&before.problem(Sight::causal(), Scores::new()));
    for par in pars() {
        let mut outcome = after.run(&after.problem(Sight::causal(), Scores::new()), par);
        let clean = before.run(&before.problem(Sight::causal(), Scores::new()), par);
        for (name, values) in &mut outcome.tensors {
            let width = if *name == "o" { 16 } else { 1 };
            let early = |at: usize| ["o", "lse"].contains(name) && at / width / 130 < 2 && at / width % 130 < 100;
            values.iter_mut().zip(clean.get(name)).enumerate().filter(|(at, _)| !early(*at)).for_each(|(_, (x, y))| *x = *y);
        }
        judge.weigh(&outcome, "rows before what was changed");
    }
}

fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start").install(work)
}

/// Forward passes over bf16, in pairs and widened.
fn in_pairs_and_widened(q: &[bf16], k: &[bf16], v: &[bf16], shape: [usize; 4], sight: Sight<'_>) -> [Vec<f32>; 2] {
    let view = |values| View::Bf16(Strided::contiguous(values, shape, "tensor").unwrap());
    let problem = Problem::new(view(q), view(k), view(v), sight, Scores::new()).unwrap();
    [Par::serial().in_pairs(), Par::serial().level(Level::Avx2)].map(|par| {
        let mut o = vec![f32::NAN; q.len()];
        let to = ViewMut::F32(StridedMut::contiguous(&mut o, shape, "o").unwrap());
        exact::forward(&problem, &mut Output { o: to, lse: None }, par).unwrap();
        o
    })
}

#[test]
fn pairs_of_bf16_give_what_widened_values_give() {
    let shape = [1, 2, 150, 18];
    let random = &mut Random::new(61);
    let mut draw = |factor: f32| -> Vec<bf16> { (0..2 * 150 * 18).map(|_| bf16::from_f32(random.normal() * factor)).collect() };
    let (q, k, mut v) = (draw(1.0), draw(1.0), draw(1.0));
    let far = |of: [Vec<f32>; 2]| {
        let [pairs, widened] = of;
        assert!(
            pairs.iter().zip(&widened).all(|(a, b)| a.is_finite() == b.is_finite() && a.is_nan() == b.is_nan()),
            "not finite elsewhere"
        );
        pairs.iter().zip(&widened).filter(|(a, _)| a.is_finite()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    assert_ne!(far(in_pairs_and_widened(&q, &k, &v, shape, Sight::causal())), 0.0, "weights are rounded in pairs only");
    let peaked: Vec<bf16> = q.iter().map(|x| bf16::from_f32(x.to_f32() * 100.0)).collect();
    for sight in [Sight::full(), Sight::causal().window(Some(40), None).sinks(3)] {
        for q in [&q, &peaked] {
            let error = far(in_pairs_and_widened(q, &k, &v, shape, sight));
            assert!(error < 0.02, "{error}");
        }
    }
    v[18 * 100] = bf16::INFINITY;
    v[18 * 101 + 3] = bf16::NAN;
    let error = far(in_pairs_and_widened(&q, &k, &v, shape, Sight::causal()));
    assert!(error < 0.02, "{error} with values that are not finite");
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let tiled = Heads::single(sizes([4, 2], [300, 300], [32, 24]), 14);
    let decode = Heads::single(sizes([4, 2], [1, 9000], [64, 64]), 15);
    let biased = Heads::single(sizes([4, 2], [300, 280], [32, 32]), 16).with_bias([1, 4], 17);
    let narrow = Heads::draw(sizes([4, 2], [300, 300], [32, 24]), Storage::Bf16, 18);
    let until: Vec<i64> = (0..600).map(|j| if j % 7 == 0 { 300 } else { j % 300 + 40 }).collect();
    let dropout = Dropout { probability: 0.2, seed: 7, step: 1 };
    let problems = [
        (&tiled, tiled.problem(Sight::causal(), Scores::new())),
        (&tiled, tiled.problem(Sight::causal().until(&until), Scores::new().softcap(20.0))),
        (&tiled, tiled.problem(Sight::causal().window(Some(70), None).sinks(4).offsets(&[0, 100, 300], &[0, 120, 300]), Scores::new())),
        (&decode, decode.problem(Sight::causal(), Scores::new())),
        (&biased, biased.problem(Sight::full(), Scores::new().dropout(dropout))),
        (&narrow, narrow.problem(Sight::causal(), Scores::new().alibi())),
    ];
    for (at, (heads, problem)) in problems.iter().enumerate() {
        let Dims { heads: h, queries, keys, dk, dv, .. } = heads.dims;
        assert!(2 * h * queries * keys * (dk + dv) > 4_000_000, "a call this small stays on one thread");
        for (way, par) in ways(heads.storage) {
            let with = |threads| in_pool(threads, || heads.run(problem, par.threads(threads)));
            let one = with(1);
            for threads in [2, 3, 2, 3] {
                assert_same_bits(&one, &with(threads), &format!("{threads} threads at {way}, problem {at}"));
            }
        }
    }
}

/// Keys `keys` of a problem with one batch row, for the same queries.
fn part(heads: &Heads, keys: Range<usize>) -> Problem<'_> {
    let cut = |tensor: &'_ Tensor| {
        let [_, heads, rows, width] = tensor.shape;
        (keys.start * width, [1, heads, keys.len(), width], [0, rows * width, width, 1].map(|stride| stride as isize))
    };
    let (k, v) = (cut(&heads.k), cut(&heads.v));
    let k = Strided::new(heads.k.floats(), k.0, k.1, k.2, "k").unwrap();
    let v = Strided::new(heads.v.floats(), v.0, v.1, v.2, "v").unwrap();
    Problem::new(heads.q.view(), k.into(), v.into(), Sight::full(), Scores::new()).unwrap()
}

/// `lse = logaddexp(l1, l2)`, `o = o1·exp(l1 - lse) + o2·exp(l2 - lse)`, in f64.
fn merged([first, second]: [&Outcome; 2], dv: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut o, mut lse) = (Vec::new(), Vec::new());
    for (row, (&a, &b)) in first.get("lse").iter().zip(second.get("lse")).enumerate() {
        let top = a.max(b);
        lse.push(top + ((a - top).exp() + (b - top).exp()).ln());
        for d in row * dv..(row + 1) * dv {
            o.push(first.get("o")[d] * (a - lse[row]).exp() + second.get("o")[d] * (b - lse[row]).exp());
        }
    }
    (o, lse)
}

fn narrowed(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}

/// dq, and dk and dv of a part of the keys, from the merged output.
fn part_gradients(heads: &Heads, part: &Problem<'_>, (o, lse): (&Tensor, &[f32])) -> [Vec<f32>; 3] {
    let Dims { heads: h, kv_heads, queries, keys, dk, dv, .. } = *part.dims();
    let mut dq = Tensor::unfilled(Storage::F32, [1, h, queries, dk]);
    let mut d_k = Tensor::unfilled(Storage::F32, [1, kv_heads, keys, dk]);
    let mut d_v = Tensor::unfilled(Storage::F32, [1, kv_heads, keys, dv]);
    let saved = Saved { o: o.view(), lse, d_o: heads.d_o.view() };
    let (q, k, v) = (Some(dq.view_mut()), Some(d_k.view_mut()), Some(d_v.view_mut()));
    exact::backward(part, &saved, &mut Gradients { dq: q, dk: k, dv: v, ..Gradients::default() }, Par::default()).unwrap();
    [dq, d_k, d_v].map(|tensor| tensor.floats().to_vec())
}

/// Rows of one kv head after another: those of the first part, then those of the second.
fn joined(heads: usize, [first, second]: [&[f32]; 2]) -> Vec<f64> {
    let of = |values: &[f32], head: usize| values.chunks(values.len() / heads).nth(head).unwrap_or_default().to_vec();
    (0..heads).flat_map(|head| [of(first, head), of(second, head)].concat()).map(f64::from).collect()
}

#[test]
fn parts_merged_by_lse_are_the_whole_forward_and_backward() {
    for (dims, cut) in [(sizes([4, 2], [70, 190], [16, 24]), 90), (sizes([2, 2], [3, 300], [16, 16]), 1)] {
        let heads = Heads::single(dims, 19);
        let parts = [part(&heads, 0..cut), part(&heads, cut..dims.keys)];
        let outcomes = parts.each_ref().map(|part| run(part, heads.d_o.view(), None, Par::default()));
        let (o, lse) = merged(outcomes.each_ref(), dims.dv);
        let single = (Tensor::new(heads.d_o.shape, narrowed(&o)), narrowed(&lse));
        let [first, second] = parts.each_ref().map(|part| part_gradients(&heads, part, (&single.0, &single.1)));
        let dq = first[0].iter().zip(&second[0]).map(|(x, y)| f64::from(*x) + f64::from(*y)).collect();
        let [dk, dv] = [1, 2].map(|at| joined(dims.kv_heads, [&first[at], &second[at]]));
        let judge = heads.judge(&heads.problem(Sight::full(), Scores::new()));
        let received = judge.forward.received.clone();
        let dkey_bias = judge.gradients.dkey_bias.clone();
        let tensors = vec![("o", o), ("lse", lse), ("received", received), ("dq", dq), ("dk", dk), ("dv", dv), ("dkey_bias", dkey_bias)];
        judge.weigh(&Outcome { tensors }, "merged parts");
    }
}

#[test]
fn no_keys_no_queries_and_no_batch_are_problems_too() {
    let base = sizes([4, 2], [20, 20], [8, 8]);
    for par in pars() {
        let empty = |dims| {
            let heads = Heads::single(dims, 20);
            heads.run(&heads.problem(Sight::causal(), Scores::new()), par)
        };
        let no_keys = empty(Dims { keys: 0, ..base });
        assert_all(no_keys.get("o"), 0.0, "o");
        assert_all(no_keys.get("lse"), f64::NEG_INFINITY, "lse");
        assert_all(no_keys.get("dq"), 0.0, "dq");
        assert_eq!((no_keys.get("o").len(), no_keys.get("dk").len(), no_keys.get("received").len()), (640, 0, 0));
        let no_queries = empty(Dims { queries: 0, ..base });
        assert_eq!((no_queries.get("o").len(), no_queries.get("lse").len()), (0, 0));
        ["received", "dk", "dv", "dkey_bias"].into_iter().for_each(|name| assert_all(no_queries.get(name), 0.0, name));
        assert_eq!((no_queries.get("dk").len(), no_queries.get("received").len()), (320, 80));
        let no_batch = empty(Dims { batch: 0, ..base });
        assert!(no_batch.tensors.iter().all(|(_, values)| values.is_empty()));
        let nothing = empty(Dims { queries: 0, keys: 0, ..base });
        assert!(nothing.tensors.iter().all(|(_, values)| values.is_empty()));
    }
}

#[test]
fn heads_and_widths_of_every_shape_keep_the_budget() {
    let shapes = [
        ("one kv head for all", sizes([6, 1], [40, 50], [16, 16])),
        ("one kv head for all, few queries", sizes([6, 1], [1, 90], [16, 16])),
        ("three query heads on each kv head", sizes([6, 2], [33, 65], [24, 8])),
        ("values wider than keys", sizes([2, 2], [20, 40], [8, 72])),
        ("values of one feature", sizes([2, 2], [20, 40], [40, 1])),
        ("600 features", sizes([2, 1], [20, 70], [600, 600])),
        ("600 features, few queries", sizes([2, 1], [1, 70], [600, 520])),
        ("1025 features of values", sizes([1, 1], [17, 19], [3, 1025])),
        ("lengths that divide by nothing", sizes([2, 1], [101, 307], [13, 11])),
        ("one key", sizes([2, 2], [40, 1], [16, 16])),
    ];
    for (name, dims) in shapes {
        let heads = Heads::single(dims, 21);
        heads.verify(&heads.problem(Sight::full(), Scores::new()), name);
        heads.verify(&heads.problem(Sight::causal(), Scores::new()), name);
    }
}

/// How a tensor of a given shape may lie in memory: (offset, strides, length).
type Layout = (usize, [isize; 4], usize);

fn layouts([b, h, n, d]: [usize; 4]) -> [(&'static str, Layout); 5] {
    let total = b * h * n * d;
    let signed = |strides: [usize; 4]| strides.map(|stride| stride as isize);
    let [batch, head, row, _] = signed([h * n * d, n * d, d, 1]);
    [
        ("[B, N, H, D]", (0, signed([n * h * d, d, h * d, 1]), total)),
        ("tokens backwards", ((n - 1) * d, [batch, head, -row, 1], total)),
        ("everything backwards", (total - 1, [-batch, -head, -row, -1], total)),
        ("every second feature", (1, signed([2 * h * n * d, 2 * n * d, 2 * d, 2]), 2 * total)),
        ("rows with a gap", (3, signed([h * n * (d + 5), n * (d + 5), d + 5, 1]), 3 + b * h * n * (d + 5))),
    ]
}

/// The values of a contiguous tensor in another layout.
fn laid<T: Element>(values: &[T], shape: [usize; 4], (offset, strides, length): Layout) -> Vec<T> {
    let mut data = vec![T::from_f32(f32::NAN); length];
    let contiguous = Strided::contiguous(values, shape, "x").unwrap();
    for at in (0..values.len()).map(|i| unravelled(i, shape)) {
        let moved: isize = at.iter().zip(strides).map(|(&i, stride)| i as isize * stride).sum();
        data[(offset as isize + moved) as usize] = contiguous.at(at);
    }
    data
}

fn unravelled(i: usize, [_, h, n, d]: [usize; 4]) -> [usize; 4] {
    [i / d / n / h, i / d / n % h, i / d % n, i % d]
}

/// Compares every layout of q, k, v and dO with the contiguous one, for one storage type.
fn layouts_keep_bits<T: Element>(dims: Dims)
where
    for<'a> View<'a>: From<Strided<'a, T>>,
{
    let Dims { batch, heads, kv_heads, queries, keys, dk, dv } = dims;
    let shapes = [[batch, heads, queries, dk], [batch, kv_heads, keys, dk], [batch, kv_heads, keys, dv], [batch, heads, queries, dv]];
    let random = &mut Random::new(22);
    let values = shapes.map(|shape| (0..shape.iter().product()).map(|_| T::from_f32(random.normal())).collect::<Vec<T>>());
    let solve = |data: [&[T]; 4], layouts: [Layout; 4], par| {
        let [q, k, v, d_o] = [0, 1, 2, 3].map(|i| View::from(Strided::new(data[i], layouts[i].0, shapes[i], layouts[i].1, "x").unwrap()));
        run(&Problem::new(q, k, v, Sight::causal(), Scores::new()).unwrap(), d_o, None, par)
    };
    let plain = shapes.map(|[b, h, n, d]| (0, [h * n * d, n * d, d, 1].map(|stride| stride as isize), b * h * n * d));
    for (par, kind) in pars().flat_map(|par| (0..5).map(move |kind| (par, kind))) {
        let chosen = shapes.map(|shape| layouts(shape)[kind].1);
        let data = [0, 1, 2, 3].map(|i| laid(&values[i], shapes[i], chosen[i]));
        let contiguous = solve(values.each_ref().map(|x| &x[..]), plain, par);
        let name = format!("{} at {}, {dims:?}", layouts(shapes[0])[kind].0, par.level_in_use());
        assert_same_bits(&contiguous, &solve(data.each_ref().map(|x| &x[..]), chosen, par), &name);
    }
}

#[test]
fn inputs_in_any_layout_give_the_bits_of_their_copies() {
    let tiled = [sizes([4, 2], [37, 70], [16, 32]), sizes([2, 1], [70, 140], [40, 72])];
    let few = [sizes([2, 1], [3, 70], [20, 16]), sizes([4, 2], [2, 70], [64, 96]), sizes([2, 2], [1, 70], [33, 40])];
    for dims in tiled.into_iter().chain(few).map(|dims| Dims { batch: 2, ..dims }) {
        layouts_keep_bits::<f32>(dims);
        layouts_keep_bits::<bf16>(dims);
        layouts_keep_bits::<f16>(dims);
    }
}

#[test]
fn repeated_inputs_give_the_bits_of_their_copies() {
    for queries in [40, 2] {
        let dims = Dims { batch: 2, ..sizes([2, 2], [queries, 70], [16, 16]) };
        let heads = Heads::single(dims, 23);
        let one = Heads::single(sizes([1, 1], [queries, 70], [16, 16]), 24);
        let copied = |tensor: &Tensor, shape: [usize; 4]| Tensor::new(shape, tensor.floats().repeat(4));
        let (q, k, v) = (copied(&one.q, heads.q.shape), copied(&one.k, heads.k.shape), copied(&one.v, heads.v.shape));
        for par in pars() {
            let copies = Problem::new(q.view(), k.view(), v.view(), Sight::causal(), Scores::new()).unwrap();
            let repeats =
                [(&one.q, q.shape), (&one.k, k.shape), (&one.v, v.shape)].map(|(one, shape)| one.view().broadcast(shape, "x").unwrap());
            let repeats = Problem::new(repeats[0], repeats[1], repeats[2], Sight::causal(), Scores::new()).unwrap();
            let d_o = heads.d_o.view();
            assert_same_bits(&run(&copies, d_o, None, par), &run(&repeats, d_o, None, par), "stride 0");
        }
    }
}

/// A tensor `[B, H, N, D]` that lies as `[B, N, H, D]` with a gap behind every token.
struct Gapped {
    shape: [usize; 4],
    data: Vec<f32>,
}

impl Gapped {
    const GAP: usize = 3;

    fn new(shape: [usize; 4]) -> Self {
        let [b, h, n, d] = shape;
        Gapped { shape, data: vec![f32::NAN; b * n * (h * d + Self::GAP)] }
    }

    fn strides(&self) -> [usize; 4] {
        let [_, h, n, d] = self.shape;
        [n * (h * d + Self::GAP), d, h * d + Self::GAP, 1]
    }

    fn view(&self) -> Strided<'_, f32> {
        Strided::new(&self.data, 0, self.shape, self.strides().map(|stride| stride as isize), "x").unwrap()
    }

    fn view_mut(&mut self) -> ViewMut<'_> {
        let strides = self.strides();
        ViewMut::F32(StridedMut::new(&mut self.data, self.shape, strides, "x").unwrap())
    }

    /// Fails unless it holds these values, and nothing was written into the gaps.
    fn assert_holds(&self, values: &[f64], name: &str) {
        let view = self.view();
        let found: Vec<u64> = (0..values.len()).map(|i| f64::from(view.at(unravelled(i, self.shape))).to_bits()).collect();
        assert_eq!(found, values.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), "{name}");
        assert_eq!(self.data.iter().filter(|x| x.is_nan()).count(), self.data.len() - values.len(), "gaps of {name}");
    }
}

#[test]
fn outputs_in_another_layout_hold_the_same_bits() {
    for (queries, par) in [40, 2].into_iter().flat_map(|queries| pars().map(move |par| (queries, par))) {
        let heads = Heads::single(Dims { batch: 2, ..sizes([4, 2], [queries, 70], [16, 24]) }, 25);
        let problem = heads.problem(Sight::causal(), Scores::new());
        let expected = heads.run(&problem, par);
        let [mut o, mut dq] = [heads.d_o.shape, heads.q.shape].map(Gapped::new);
        let [mut dk, mut dv] = [heads.k.shape, heads.v.shape].map(Gapped::new);
        let mut lse = vec![f32::NAN; 2 * 4 * queries];
        exact::forward(&problem, &mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par).unwrap();
        let saved = Saved { o: o.view().into(), lse: &lse, d_o: heads.d_o.view() };
        let (q, k, v) = (Some(dq.view_mut()), Some(dk.view_mut()), Some(dv.view_mut()));
        exact::backward(&problem, &saved, &mut Gradients { dq: q, dk: k, dv: v, ..Gradients::default() }, par).unwrap();
        for (tensor, name) in [(&o, "o"), (&dq, "dq"), (&dk, "dk"), (&dv, "dv")] {
            tensor.assert_holds(expected.get(name), name);
        }
    }
}

#[test]
fn an_output_without_lse_has_the_same_bits() {
    for (dims, par) in small_sizes().into_iter().flat_map(|dims| pars().map(move |par| (dims, par))) {
        let heads = Heads::single(dims, 26);
        let problem = heads.problem(Sight::causal(), Scores::new());
        let mut o = Tensor::unfilled(Storage::F32, heads.d_o.shape);
        exact::forward(&problem, &mut Output { o: o.view_mut(), lse: None }, par).unwrap();
        let found: Vec<f64> = o.floats().iter().map(|&x| x.into()).collect();
        assert_eq!(found, heads.run(&problem, par).get("o"));
    }
}

/// One gradient alone.
fn alone(heads: &Heads, problem: &Problem<'_>, name: &str, saved: &Saved<'_>) -> Vec<f64> {
    let shape = match name {
        "dq" => heads.q.shape,
        "dk" => heads.k.shape,
        "dv" => heads.v.shape,
        "dkey_bias" => [1, heads.dims.kv_heads, heads.dims.keys, 1],
        _ => heads.bias.as_ref().expect("a bias").shape,
    };
    let mut gradient = Tensor::unfilled(Storage::F32, shape);
    let mut gradients = Gradients::default();
    match name {
        "dq" => gradients.dq = Some(gradient.view_mut()),
        "dk" => gradients.dk = Some(gradient.view_mut()),
        "dv" => gradients.dv = Some(gradient.view_mut()),
        "dkey_bias" => gradients.dkey_bias = Some(gradient.floats_mut()),
        _ => gradients.dbias = Some(gradient.floats_mut()),
    }
    exact::backward(problem, saved, &mut gradients, Par::default()).unwrap();
    gradient.floats().iter().map(|&x| x.into()).collect()
}

#[test]
fn a_gradient_alone_has_the_bits_of_a_full_call() {
    let heads = Heads::single(sizes([4, 2], [70, 300], [16, 24]), 27).with_bias([1, 4], 28);
    let key_bias: Vec<f32> = (0..600).map(|j| (j as f32 * 0.7).sin()).collect();
    let problem = heads.problem(Sight::causal(), Scores::new().key_bias(&key_bias));
    let full = heads.run(&problem, Par::default());
    let (o, lse) = (Tensor::new(heads.d_o.shape, narrowed(full.get("o"))), narrowed(full.get("lse")));
    let saved = Saved { o: o.view(), lse: &lse, d_o: heads.d_o.view() };
    for name in ["dq", "dk", "dv", "dkey_bias", "dbias"] {
        assert_eq!(alone(&heads, &problem, name, &saved), full.get(name), "{name}");
    }
    exact::backward(&problem, &saved, &mut Gradients::default(), Par::default()).unwrap();
}

/// Weights are `exp(s - lse)` with both in f32: a unit in the last place of each, and of the terms of a score.
fn weight_budget(definition: &Definition, [h, i, j]: [usize; 3]) -> f64 {
    let score = definition.score(0, h, i, j);
    let weight = definition.weights(0, h, i)[j];
    if score.is_finite() { weight * (1e-6 * (4.0 + score.abs())) } else { 0.0 }
}

#[test]
fn a_rectangle_of_weights_is_the_definition() {
    let heads = Heads::single(sizes([4, 2], [40, 70], [16, 16]), 29).with_bias([1, 1], 30);
    let sight = Sight::causal().window(Some(20), None).sinks(2);
    let problem = heads.problem(sight, Scores::new().alibi().softcap(3.0));
    let (definition, outcome) = (problem.definition(), heads.run(&problem, Par::default()));
    let lse = narrowed(outcome.get("lse"));
    let (rows, columns) = (7..31, 1..69);
    for h in 0..4 {
        let weights = exact::weights(&problem, &lse, [0, h], rows.clone(), columns.clone()).unwrap();
        assert_eq!(weights.len(), rows.len() * columns.len());
        let pairs = rows.clone().flat_map(|i| columns.clone().map(move |j| [h, i, j]));
        for (at, &weight) in pairs.zip(&weights) {
            let [h, i, j] = at;
            let error = (f64::from(weight) - definition.weights(0, h, i)[j]).abs();
            assert!(error <= weight_budget(&definition, at), "{at:?} is {weight:e}, off by {error:e}");
        }
        let whole = exact::weights(&problem, &lse, [0, h], 0..40, 0..70).unwrap();
        whole.chunks(70).for_each(|row| assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{row:?}"));
    }
}

#[test]
fn received_attention_sums_to_the_rows_that_see_something() {
    let heads = Heads::single(sizes([4, 2], [90, 60], [16, 16]), 31);
    let until: Vec<i64> = (0..120).map(|j| (j % 60) as i64 + 10).collect();
    for sight in [Sight::full(), Sight::causal(), Sight::causal().until(&until), Sight::full().lengths_q(&[50])] {
        let scores = Scores::new().dropout(Dropout { probability: 0.3, seed: 1, step: 0 });
        for par in pars() {
            let outcome = heads.run(&heads.problem(sight, scores), par);
            let (received, lse) = (outcome.get("received"), outcome.get("lse"));
            for (received, lse) in received.chunks(60).zip(lse.chunks(90)) {
                let rows = lse.iter().filter(|lse| lse.is_finite()).count() as f64;
                assert!(rows > 20.0 && (received.iter().sum::<f64>() / rows - 1.0).abs() < 2e-6, "{rows} {sight:?}");
            }
        }
    }
}

#[test]
fn columns_say_how_much_a_word_is_used() {
    let weights = [[0.4f32, 0.1, 0.5], [0.1, 0.3, 0.6], [0.1, 0.1, 0.8]];
    let scores: Vec<f32> = weights.iter().flatten().map(|weight| weight.ln()).collect();
    let mut heads = Heads::single(sizes([1, 1], [3, 3], [4, 4]), 32);
    heads.q.floats_mut().fill(0.0);
    heads.bias = Some(Tensor::new([1, 1, 3, 3], scores));
    for par in pars() {
        let received = narrowed(heads.run(&heads.problem(Sight::full(), Scores::new()), par).get("received"));
        assert!(received.iter().zip([0.6, 0.5, 1.9]).all(|(x, y)| (x - y).abs() < 1e-6), "{received:?}");
    }
}

#[test]
fn dropout_depends_on_seed_and_step_alone() {
    let heads = Heads::single(sizes([4, 2], [70, 70], [16, 16]), 33);
    let with = |dropout: Dropout| heads.run(&heads.problem(Sight::causal(), Scores::new().dropout(dropout)), Par::default());
    let first = Dropout { probability: 0.3, seed: 5, step: 6 };
    let outcome = with(first);
    assert_same_bits(&outcome, &with(first), "the same call");
    for other in [Dropout { seed: 6, ..first }, Dropout { step: 7, ..first }] {
        assert_ne!(outcome.get("o"), with(other).get("o"), "{other:?}");
        assert_eq!(outcome.get("lse"), with(other).get("lse"), "lse is that of all keys");
    }
    let none = with(Dropout { probability: 0.0, ..first });
    assert_same_bits(&none, &heads.run(&heads.problem(Sight::causal(), Scores::new()), Par::default()), "probability 0");
}

/// Lifetimes of every kind: none, short, long, for ever, and over before they start.
fn scattered(count: usize, seed: u64) -> Vec<i64> {
    let random = &mut Random::new(seed);
    let mut until = |j: usize| match random.below(8) {
        0 => random.pick(&[-3, 0]),
        1 => j as i64 - 2,
        2 | 3 => i64::MAX,
        4 => count as i64 / 2,
        _ => (j + 1 + random.below(count / 3)) as i64,
    };
    (0..count).map(&mut until).collect()
}

#[test]
fn scattered_lifetimes_keep_the_budget() {
    let until = [scattered(280, 1), scattered(280, 2)].concat();
    let bias: Vec<f32> = (0..560).map(|j| if j % 13 == 5 { f32::NEG_INFINITY } else { (j as f32 * 0.3).sin() }).collect();
    for (storage, widths) in [(Storage::F32, [16, 16]), (Storage::F32, [24, 40]), (Storage::Bf16, [32, 16])] {
        let heads = Heads::draw(sizes([4, 2], [280, 280], widths), storage, 21);
        let causal = Sight::causal().until(&until);
        heads.verify(&heads.problem(causal, Scores::new()), "lifetimes, grouped heads");
        heads.verify(
            &heads.problem(causal.window(Some(90), None).sinks(7), Scores::new().key_bias(&bias)),
            "lifetimes, window, sinks, key biases",
        );
        heads.verify(&heads.problem(Sight::full().until(&until), Scores::new()), "lifetimes seen from both sides");
    }
    let dropout = Dropout { probability: 0.2, seed: 4, step: 1 };
    let rich = Heads::single(sizes([2, 2], [280, 280], [16, 16]), 22).with_bias([1, 2], 23);
    rich.verify(
        &rich.problem(Sight::causal().until(&until), Scores::new().softcap(5.0).dropout(dropout)),
        "lifetimes, dense bias, dropout",
    );
}

#[test]
fn scattered_lifetimes_in_packed_sequences_and_ragged_caches_keep_the_budget() {
    let until = [scattered(500, 3), scattered(500, 4)].concat();
    let packed = Heads::single(sizes([4, 2], [450, 500], [16, 16]), 24);
    let (queries, keys) = ([0, 130, 130, 450], [0, 140, 200, 500]);
    packed.verify(&packed.problem(Sight::causal().offsets(&queries, &keys).until(&until), Scores::new()), "lifetimes, packed");
    let ragged = Heads::single(sizes([4, 2], [300, 500], [16, 16]), 25);
    let spans = [[0, 500], [37, 420]];
    ragged.verify(&ragged.problem(Sight::causal().key_spans(&spans).until(&until), Scores::new()), "lifetimes, spans");
    let random = &mut Random::new(26);
    let turned: Vec<i64> = (0..300).map(|_| random.below(520) as i64).collect();
    let ascending: Vec<i64> = (200..500).collect();
    let positions: Vec<i64> = (0..1000).map(|_| random.below(500) as i64).collect();
    for queries in [&ascending, &turned] {
        let sight = Sight::causal().positions(queries, &positions).key_spans(&spans);
        ragged.verify(&ragged.problem(sight, Scores::new()), "spans, positions");
        ragged.verify(&ragged.problem(sight.until(&until), Scores::new()), "lifetimes, spans, positions");
    }
}

#[test]
fn thousands_of_keys_may_die_at_once() {
    let until: Vec<i64> = (0..5000).map(|j| if j % 3 == 0 { 4950 } else { 4940 + j % 40 }).collect();
    let heads = Heads::single(sizes([2, 1], [100, 5000], [16, 16]), 27);
    heads.verify(&heads.problem(Sight::causal().until(&until), Scores::new()), "all die");
}

#[test]
fn scattered_lifetimes_give_the_same_bits_on_any_number_of_threads() {
    let until = [scattered(1500, 5), scattered(1500, 6)].concat();
    let heads = Heads::single(sizes([4, 2], [1500, 1500], [16, 16]), 28);
    let problem = heads.problem(Sight::causal().until(&until), Scores::new());
    let on = |threads| in_pool(threads, || heads.run(&problem, Par::default().threads(threads)));
    let one = on(1);
    for threads in [2, 5] {
        assert_same_bits(&one, &on(threads), "another number of threads");
    }
}
