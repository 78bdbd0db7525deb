//! What clustered attention has to hold beyond what every mechanism does: each trap by name.

mod common;

use common::heads::{Heads, Tensor, sizes};
use common::{Random, values};
use regard_core::mechanism::{Choices, Clustered, Gradients, Inputs, Mechanism, Memory, Pass, Plan, Tokens, Trace};
use regard_core::oracle::Storage;
use regard_core::{Output, Par, Saved, Sight};

const TRAINING: Pass = Pass { training: true, seed: 0, step: 0 };

fn clustered(options: &[(&str, &str)]) -> Mechanism {
    let mut mechanism = Mechanism::by_name("clustered").unwrap();
    options.iter().for_each(|(name, value)| mechanism.set(name, value).unwrap());
    mechanism
}

fn inputs<'a>(heads: &'a Heads, x: &'a Tensor, causal: bool) -> Inputs<'a> {
    let sight = if causal { Sight::causal() } else { Sight::full() };
    Inputs { x: Some(x.view()), ..Inputs::new(heads.q.view(), heads.k.view(), heads.v.view(), sight) }
}

fn hidden(rows: &[Vec<f32>]) -> Tensor {
    Tensor::new([1, 1, rows.len(), rows[0].len()], rows.concat())
}

/// `o` and `lse`.
fn forward(mechanism: &Mechanism, inputs: &Inputs<'_>, choices: &Choices, pass: Pass) -> (Vec<f64>, Vec<f32>) {
    let plan = mechanism.plan(inputs, choices, pass).unwrap();
    let dims = plan.dims();
    let mut o = Tensor::unfilled(Storage::F32, [dims.batch, dims.heads, dims.queries, dims.dv]);
    let mut lse = vec![f32::NAN; dims.batch * dims.heads * dims.queries];
    plan.forward(&mut Output { o: o.view_mut(), lse: Some(&mut lse) }, Par::default()).unwrap();
    (values(o.view()), lse)
}

fn run(mechanism: &Mechanism, inputs: &Inputs<'_>) -> (Vec<f64>, Vec<f32>) {
    forward(mechanism, inputs, &mechanism.choose(inputs, Pass::default(), Par::default()).unwrap(), Pass::default())
}

fn traces(mechanism: &Mechanism, inputs: &Inputs<'_>) -> [Trace; 3] {
    let choices = mechanism.choose(inputs, Pass::default(), Par::default()).unwrap();
    mechanism.plan(inputs, &choices, Pass::default()).unwrap().traces().try_into().unwrap()
}

fn assignment(mechanism: &Mechanism, x: &Tensor) -> Vec<i64> {
    let tokens = x.shape[2];
    let heads = Heads::single(sizes([1, 1], [tokens, tokens], [1, 1]), 1);
    let [assignment, ..] = traces(mechanism, &inputs(&heads, x, false));
    assert_eq!(assignment.shape, [1, tokens]);
    assignment.values
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| x.into()).collect()
}

#[track_caller]
fn near(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        assert!((x - y).abs() <= tolerance * y.abs().max(1.0), "[{i}] is {x}, expected {y}");
    }
}

/// Divided by its length; none where it is similar to nothing.
fn direction(row: &[f32]) -> Option<Vec<f32>> {
    let length = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    (length as f32 != 0.0).then(|| row.iter().map(|&x| (f64::from(x) / length) as f32).collect())
}

/// The leader scan as it is said.
fn scanned(rows: &[Vec<f32>], threshold: f32) -> Vec<i64> {
    let directions: Vec<Option<Vec<f32>>> = rows.iter().map(|row| direction(row)).collect();
    let (mut leaders, mut all): (Vec<usize>, Vec<i64>) = (Vec::new(), Vec::new());
    for (i, row) in directions.iter().enumerate() {
        let mut best: Option<(f32, usize)> = None;
        for (cluster, &leader) in leaders.iter().enumerate() {
            let (Some(a), Some(b)) = (row, &directions[leader]) else { continue };
            let sum = a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>() as f32;
            let cosine = if a == b { 1.0 } else { sum.clamp(-1.0, 1.0) };
            if cosine >= threshold && best.is_none_or(|(most, _)| cosine > most) {
                best = Some((cosine, cluster));
            }
        }
        if best.is_none() {
            leaders.push(i);
        }
        all.push(best.map_or(leaders.len() - 1, |(_, cluster)| cluster) as i64);
    }
    all
}

/// Rows of a few kinds with noise: some alike bit for bit, some zeros.
fn rows_of_kinds(random: &mut Random, [tokens, kinds, width]: [usize; 3], noise: f32) -> Vec<Vec<f32>> {
    let kinds: Vec<Vec<f32>> = (0..kinds).map(|_| (0..width).map(|_| random.normal()).collect()).collect();
    let row = |random: &mut Random| {
        if random.chance(0.02) {
            return vec![0.0; width];
        }
        let (kind, noise) = (random.below(kinds.len()), if random.chance(0.3) { 0.0 } else { noise });
        kinds[kind].iter().map(|x| x + noise * random.normal()).collect()
    };
    (0..tokens).map(|_| row(random)).collect()
}

#[test]
fn the_leader_scan_is_the_obvious_one_for_any_number_of_threads() {
    let random = &mut Random::new(11);
    let mut merged = 0;
    for draw in 0..200 {
        let tokens = random.pick(&[1, 2, 31, 64, 255, 256, 257, 600]);
        let width = random.pick(&[1, 2, 3, 8, 16, 17, 33, 64, 100]);
        let (kinds, noise) = (1 + random.below(tokens), random.pick(&[0.0, 0.05, 0.3]));
        let rows = rows_of_kinds(random, [tokens, kinds, width], noise);
        let threshold = random.pick(&["-1", "-0.2", "0", "0.3", "0.6", "0.9", "0.97", "1", "1.5"]);
        let expected = scanned(&rows, threshold.parse().unwrap());
        let (mechanism, x) = (clustered(&[("threshold", threshold)]), hidden(&rows));
        for threads in 1..=3 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let found = pool.install(|| assignment(&mechanism, &x));
            assert!(found == expected, "draw {draw}: {tokens} rows of {width}, threshold {threshold}, {threads} threads");
        }
        merged += usize::from(expected.last().is_some_and(|last| (*last as usize) < tokens - 1));
    }
    assert!(merged > 100, "only {merged} draws merged anything");
}

#[test]
fn every_level_makes_the_same_clusters() {
    let rows = rows_of_kinds(&mut Random::new(5), [700, 90, 48], 0.2);
    let (mechanism, x) = (clustered(&[]), hidden(&rows));
    let heads = Heads::single(sizes([1, 1], [700, 700], [1, 1]), 1);
    let inputs = inputs(&heads, &x, false);
    for level in common::levels() {
        let choices = mechanism.choose(&inputs, Pass::default(), Par::default().level(level)).unwrap();
        let found = mechanism.plan(&inputs, &choices, Pass::default()).unwrap().traces();
        assert_eq!(found[0].values, scanned(&rows, 0.9), "at {level}");
    }
}

#[test]
fn rows_alike_bit_for_bit_have_cosine_1() {
    let random = &mut Random::new(3);
    for width in [1, 2, 7, 16, 63, 512] {
        let kinds: Vec<Vec<f32>> = (0..40).map(|_| (0..width).map(|_| 1e3 * random.normal()).collect()).collect();
        let rows: Vec<Vec<f32>> = kinds.iter().chain(&kinds).cloned().collect();
        let found = assignment(&clustered(&[("threshold", "1")]), &hidden(&rows));
        assert_eq!(found[..40], found[40..], "width {width}");
    }
}

#[test]
fn ties_go_to_the_earliest_leader() {
    let rows = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [3.0, 3.0]].map(|row| row.to_vec());
    assert_eq!(assignment(&clustered(&[("threshold", "0.7")]), &hidden(&rows)), [0, 1, 0, 0]);
    let rows = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]].map(|row| row.to_vec());
    assert_eq!(assignment(&clustered(&[("threshold", "0.7")]), &hidden(&rows)), [0, 1, 0]);
}

#[test]
fn a_zero_row_leads_alone_and_nothing_is_not_a_number() {
    let rows = [[0.0, 0.0], [1.0, 0.0], [0.0, -0.0], [1.0, 0.1], [0.0, 0.0]].map(|row| row.to_vec());
    let x = hidden(&rows);
    for threshold in ["-1", "0", "0.9"] {
        assert_eq!(assignment(&clustered(&[("threshold", threshold)]), &x), [0, 1, 2, 1, 3], "threshold {threshold}");
    }
    let heads = Heads::single(sizes([2, 1], [5, 5], [4, 4]), 1);
    for causal in [false, true] {
        for options in [&[("block", "2")][..], &[("soft", "3")], &[("rule", "matching"), ("target", "1")]] {
            if causal && options[0].0 == "rule" {
                continue;
            }
            let (o, lse) = run(&clustered(options), &inputs(&heads, &x, causal));
            assert!(o.iter().all(|x| x.is_finite()) && lse.iter().all(|x| x.is_finite()), "{options:?}");
        }
    }
}

#[test]
fn identical_tokens_with_log_size_are_exact_attention() {
    let (random, tokens) = (&mut Random::new(8), 60);
    let kinds: Vec<usize> = (0..tokens).map(|_| random.below(7)).collect();
    let mut heads = Heads::single(sizes([4, 2], [tokens, tokens], [8, 8]), 2);
    for tensor in [&mut heads.q, &mut heads.k, &mut heads.v] {
        let width = tensor.shape[3];
        for head in tensor.floats_mut().chunks_mut(tokens * width) {
            let same = head.to_vec();
            head.chunks_mut(width).zip(&kinds).for_each(|(row, kind)| row.copy_from_slice(&same[kind * width..(kind + 1) * width]));
        }
    }
    let x = hidden(&kinds.iter().map(|&kind| (0..9).map(|d| ((kind * 9 + d) as f32).sin()).collect()).collect::<Vec<_>>());
    for causal in [false, true] {
        let inputs = inputs(&heads, &x, causal);
        let exact = run(&Mechanism::by_name("exact").unwrap(), &Inputs { x: None, ..inputs.clone() });
        for metric in ["hidden", "keys"] {
            let options = [("threshold", "1"), ("block", "16"), ("metric", metric)];
            let (o, lse) = run(&clustered(&options), &inputs);
            near(&o, &exact.0, 1e-5);
            near(&widen(&lse), &widen(&exact.1), 1e-5);
            let without = run(&clustered(&[&options[..], &[("log_size", "false")]].concat()), &inputs);
            assert!(without.0.iter().zip(&exact.0).any(|(x, y)| (x - y).abs() > 1e-2), "sizes count for nothing");
        }
    }
}

#[test]
fn causal_clusters_do_not_know_later_tokens() {
    let rows = rows_of_kinds(&mut Random::new(4), [120, 6, 10], 0.1);
    let later = rows_of_kinds(&mut Random::new(40), [120, 50, 10], 0.5);
    for first in [1, 16, 33, 48, 119] {
        let spoilt: Vec<Vec<f32>> = rows[..first].iter().chain(&later[first..]).cloned().collect();
        let heads = Heads::single(sizes([2, 1], [120, 120], [8, 8]), 9);
        let mechanism = clustered(&[("block", "16"), ("threshold", "0.8")]);
        let (before, _) = run(&mechanism, &inputs(&heads, &hidden(&rows), true));
        let (after, _) = run(&mechanism, &inputs(&heads, &hidden(&spoilt), true));
        let differ = (0..before.len()).filter(|&i| before[i].to_bits() != after[i].to_bits() && i / 8 % 120 < first).count();
        assert_eq!(differ, 0, "{differ} values before token {first}");
    }
}

/// Softmax attention of one query over keys with sizes, in f64.
fn attend(q: &[f64], keys: &[(Vec<f64>, Vec<f64>, f64)]) -> Vec<f64> {
    let scale = 1.0 / (q.len() as f64).sqrt();
    let weights: Vec<f64> =
        keys.iter().map(|(k, _, size)| size * (scale * q.iter().zip(k).map(|(x, y)| x * y).sum::<f64>()).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..keys[0].1.len()).map(|d| keys.iter().zip(&weights).map(|((_, v, _), weight)| weight * v[d]).sum::<f64>() / sum).collect()
}

#[test]
fn every_block_reads_clusters_of_the_prefix_before_it() {
    let (tokens, width) = (70, 6);
    let rows = rows_of_kinds(&mut Random::new(6), [tokens, 9, 10], 0.2);
    let heads = Heads::single(sizes([1, 1], [tokens, tokens], [width, width]), 3);
    let [q, k, v] = [&heads.q, &heads.k, &heads.v].map(|tensor| values(tensor.view()));
    let row = |all: &[f64], n: usize| all[n * width..(n + 1) * width].to_vec();
    for block in [1usize, 3, 16, 64, 100] {
        let mechanism = clustered(&[("block", &block.to_string()), ("threshold", "0.8")]);
        let x = hidden(&rows);
        let (o, _) = run(&mechanism, &inputs(&heads, &x, true));
        for p in 0..tokens {
            let boundary = p / block * block;
            let prefix = scanned(&rows[..boundary], 0.8);
            let mut keys = Vec::new();
            for cluster in 0..prefix.iter().max().map_or(0, |last| last + 1) {
                let members: Vec<usize> = (0..boundary).filter(|&n| prefix[n] == cluster).collect();
                let mean = |all: &[f64]| -> Vec<f64> {
                    (0..width).map(|d| members.iter().map(|&n| all[n * width + d]).sum::<f64>() / members.len() as f64).collect()
                };
                keys.push((mean(&k), mean(&v), members.len() as f64));
            }
            keys.extend((boundary..=p).map(|n| (row(&k, n), row(&v, n), 1.0)));
            near(&row(&o, p), &attend(&row(&q, p), &keys), 1e-5);
        }
    }
}

#[test]
fn each_kv_head_clusters_its_own_keys() {
    let tokens = 40;
    let mut heads = Heads::single(sizes([4, 2], [tokens, tokens], [3, 5]), 17);
    let random = &mut Random::new(1);
    for (g, head) in heads.k.floats_mut().chunks_mut(tokens * 3).enumerate() {
        head.copy_from_slice(&rows_of_kinds(random, [tokens, 5 + 20 * g, 3], 0.01).concat());
    }
    let x = hidden(&vec![vec![1.0]; tokens]);
    for causal in [false, true] {
        let mechanism = clustered(&[("metric", "keys"), ("threshold", "0.99"), ("block", "8")]);
        let together = inputs(&heads, &x, causal);
        let (o, _) = run(&mechanism, &together);
        let [all, sizes_of_all, _] = traces(&mechanism, &together);
        assert_eq!(all.shape, [1, 2, tokens]);
        assert_eq!(sizes_of_all.shape[..2], [1, 2]);
        let cut = |tensor: &Tensor, g: usize| {
            let [_, count, _, width] = tensor.shape;
            let per = count / 2 * tokens * width;
            Tensor::new([1, count / 2, tokens, width], tensor.floats()[g * per..(g + 1) * per].to_vec())
        };
        let alone = |g: usize| Heads::given([cut(&heads.q, g), cut(&heads.k, g), cut(&heads.v, g)]);
        for g in 0..2 {
            let heads = alone(g);
            let [own, ..] = traces(&mechanism, &inputs(&heads, &x, causal));
            assert_eq!(own.values, all.values[g * tokens..(g + 1) * tokens]);
            near(&o[g * 2 * tokens * 5..(g + 1) * 2 * tokens * 5], &run(&mechanism, &inputs(&heads, &x, causal)).0, 1e-6);
        }
        assert!(all.values[..tokens] != all.values[tokens..], "heads differ");
    }
}

#[test]
fn a_blend_of_more_clusters_than_there_are_is_one_of_all() {
    let rows = rows_of_kinds(&mut Random::new(2), [50, 6, 8], 0.05);
    let heads = Heads::single(sizes([2, 2], [50, 50], [8, 8]), 21);
    let x = hidden(&rows);
    let inputs = inputs(&heads, &x, false);
    let [_, _, representatives] = traces(&clustered(&[]), &inputs);
    let clusters = representatives.values.len();
    let exact = clusters.to_string();
    let (all, _) = run(&clustered(&[("soft", "5000"), ("temperature", "1")]), &inputs);
    let (same, _) = run(&clustered(&[("soft", &exact), ("temperature", "1")]), &inputs);
    assert_eq!(all, same);
    let (one, _) = run(&clustered(&[("soft", "1")]), &inputs);
    let (hard, _) = run(&clustered(&[]), &inputs);
    // Every token's most similar leader may have come after it joined; leaders have themselves.
    for leader in representatives.values {
        let at = leader as usize * 8;
        near(&one[at..at + 8], &hard[at..at + 8], 1e-6);
    }
    assert!(all.iter().zip(&hard).any(|(x, y)| (x - y).abs() > 1e-2));
}

#[test]
fn matching_comes_to_its_target() {
    let tokens = 33;
    let rows = rows_of_kinds(&mut Random::new(12), [tokens, 33, 8], 0.1);
    let heads = Heads::single(sizes([2, 1], [tokens, tokens], [8, 8]), 5);
    let x = hidden(&rows);
    let count = |target: &str| {
        let [found, sizes, _] = traces(&clustered(&[("rule", "matching"), ("target", target)]), &inputs(&heads, &x, false));
        assert_eq!(sizes.values.iter().sum::<i64>(), tokens as i64);
        found.values.iter().max().unwrap() + 1
    };
    assert_eq!(count("1000"), 33);
    assert_eq!(count("32"), 32);
    assert_eq!(count("17"), 17);
    let lonely = rows.iter().filter(|row| direction(row).is_none()).count() as i64;
    assert_eq!(count("10"), 10.max(lonely + 1), "several rounds");
    assert_eq!(count("1"), lonely + 1, "nothing is similar to zeros");
    assert_eq!(count("0.5"), 17, "a share, rounded up");
}

#[test]
fn matching_merges_the_best_pairs_of_a_source_and_a_target() {
    // Sources 0, 2, 4; targets 1, 3. The source 2 is nearest to 3, 0 to 1, and 4 is between both.
    let rows = [[1.0, 0.2], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 1.1]].map(|row| row.to_vec());
    let merged = |target: &str| assignment(&clustered(&[("rule", "matching"), ("target", target)]), &hidden(&rows));
    assert_eq!(merged("4"), [0, 1, 2, 2, 3]);
    assert_eq!(merged("3"), [0, 0, 1, 1, 2]);
    assert_eq!(merged("2"), [0, 0, 1, 1, 1]);
    assert_eq!(merged("1"), [0, 0, 0, 0, 0]);
    let equal = [[1.0, 0.0]; 5].map(|row| row.to_vec());
    assert_eq!(assignment(&clustered(&[("rule", "matching"), ("target", "3")]), &hidden(&equal)), [0, 0, 0, 1, 2], "earlier of equals");
}

#[test]
fn matching_is_as_defined() {
    for (seed, options) in [
        &[("target", "0.4")][..],
        &[("target", "5"), ("representative", "leader")],
        &[("target", "9"), ("soft", "3")],
        &[("target", "7"), ("metric", "keys")],
    ]
    .into_iter()
    .enumerate()
    {
        let heads = Heads::single(sizes([4, 2], [30, 30], [8, 5]), 60 + seed as u64);
        let x = hidden(&rows_of_kinds(&mut Random::new(seed as u64), [30, 8, 6], 0.4));
        let mechanism = clustered(&[&[("rule", "matching")], options].concat());
        let inputs = inputs(&heads, &x, false);
        let choices = mechanism.choose(&inputs, TRAINING, Par::default()).unwrap();
        let truth = mechanism.plan(&inputs, &choices, TRAINING).unwrap().oracle().truth(Some(&values(heads.d_o.view())));
        let (o, lse) = forward(&mechanism, &inputs, &choices, TRAINING);
        near(&o, &truth[0].values, 1e-5);
        near(&widen(&lse), &truth[1].values, 1e-5);
        let [dq, dk, dv, dx, _] = backward(&mechanism, &inputs, &choices, &heads.d_o);
        for (found, name) in [(dq, "dq"), (dk, "dk"), (dv, "dv"), (dx, "dx")] {
            let Some(defined) = truth.iter().find(|defined| defined.name == name) else { continue };
            near(&found, &defined.values, 1e-4);
        }
    }
}

/// Gradients of q, k, v, and of x and thresholds where they have one.
fn backward(mechanism: &Mechanism, inputs: &Inputs<'_>, choices: &Choices, d_o: &Tensor) -> [Vec<f64>; 5] {
    let plan = mechanism.plan(inputs, choices, TRAINING).unwrap();
    let leaves: Vec<&str> = plan.oracle().leaves().into_iter().map(|(name, _)| name).collect();
    let (o, lse) = forward(mechanism, inputs, choices, TRAINING);
    let o = Tensor::new(d_o.shape, o.into_iter().map(|x| x as f32).collect());
    let x = inputs.x.expect("given");
    let [mut dq, mut dk, mut dv, mut dx] = [inputs.q, inputs.k, inputs.v, x].map(|view| Tensor::unfilled(Storage::F32, view.shape()));
    let mut dthreshold = vec![f32::NAN; d_o.shape[1]];
    let heads = regard_core::Gradients { dq: Some(dq.view_mut()), dk: Some(dk.view_mut()), dv: Some(dv.view_mut()), ..Default::default() };
    let mut gradients = Gradients {
        heads,
        dx: leaves.contains(&"x").then(|| dx.view_mut()),
        dthreshold: leaves.contains(&"threshold").then_some(&mut dthreshold[..]),
        ..Gradients::default()
    };
    plan.backward(&Saved { o: o.view(), lse: &lse, d_o: d_o.view() }, &mut gradients, Par::default()).unwrap();
    let [dq, dk, dv, dx] = [dq, dk, dv, dx].map(|tensor| values(tensor.view()));
    [dq, dk, dv, dx, widen(&dthreshold)]
}

#[test]
fn thresholds_learn_by_the_slope_of_the_output() {
    let tokens = 40;
    let rows = rows_of_kinds(&mut Random::new(31), [tokens, 5, 8], 0.3);
    let heads = Heads::single(sizes([2, 1], [tokens, tokens], [8, 8]), 77);
    let x = hidden(&rows);
    for metric in ["hidden", "keys"] {
        let mechanism = clustered(&[("temperature", "0.3"), ("metric", metric)]);
        let thresholds = [0.3, 0.5];
        let base = Inputs { threshold: Some(&thresholds), ..inputs(&heads, &x, false) };
        let choices = mechanism.choose(&base, TRAINING, Par::default()).unwrap();
        let [.., dthreshold] = backward(&mechanism, &base, &choices, &heads.d_o);
        let d_o = values(heads.d_o.view());
        let loss = |thresholds: &[f32]| -> f64 {
            let moved = Inputs { threshold: Some(thresholds), ..base.clone() };
            forward(&mechanism, &moved, &choices, TRAINING).0.iter().zip(&d_o).map(|(o, d)| o * d).sum()
        };
        assert!(dthreshold.iter().any(|d| d.abs() > 0.1), "{dthreshold:?}");
        for (head, [up, down]) in [[[0.31, 0.5], [0.29, 0.5]], [[0.3, 0.51], [0.3, 0.49]]].into_iter().enumerate() {
            let difference = (loss(&up) - loss(&down)) / 0.02;
            near(&[dthreshold[head]], &[difference], 3e-3);
        }
        // Without training there is no gate.
        let hard = forward(&mechanism, &base, &choices, Pass::default()).0;
        assert!(hard != forward(&mechanism, &base, &choices, TRAINING).0);
    }
}

#[test]
fn the_penalty_is_the_squared_distance_to_the_target() {
    let rows = rows_of_kinds(&mut Random::new(31), [40, 5, 8], 0.3);
    let heads = Heads::single(sizes([2, 1], [40, 40], [8, 8]), 77);
    let x = hidden(&rows);
    let config = Clustered { target: Some(0.25), ..Clustered::default() };
    let thresholds = [0.2, 0.999];
    let inputs = Inputs { threshold: Some(&thresholds), ..inputs(&heads, &x, false) };
    let mechanism = Mechanism::from(config.clone());
    let choices = mechanism.choose(&inputs, TRAINING, Par::default()).unwrap();
    let Choices::Clustered(chosen) = &choices else { panic!("clustered chose") };
    let (loss, slopes) = config.penalty(&inputs, chosen, 0.5, Par::default()).unwrap();
    let [_, sizes, _] = traces(&mechanism, &inputs);
    let counts: Vec<f64> = sizes.values.chunks(sizes.shape[2]).map(|sizes| sizes.iter().filter(|size| **size > 0).count() as f64).collect();
    let expected: f64 = counts.iter().map(|m| 0.25 * (m / 40.0 - 0.25).powi(2)).sum();
    near(&[f64::from(loss)], &[expected], 1e-6);
    assert!(counts[0] < 10.0 && slopes[0] < 0.0, "too few clusters: the threshold rises: {counts:?} {slopes:?}");
    assert!(counts[1] > 10.0 && slopes[1] > 0.0, "too many clusters: it falls: {counts:?} {slopes:?}");
    assert!(Clustered::default().penalty(&inputs, chosen, 0.5, Par::default()).is_err(), "without a target");
}

#[test]
fn a_state_of_few_clusters_stops_growing() {
    let rows = rows_of_kinds(&mut Random::new(9), [2000, 4, 8], 0.0);
    let heads = Heads::single(sizes([2, 1], [2000, 2000], [8, 8]), 7);
    let x = hidden(&rows);
    let mut state = clustered(&[("block", "32")]).start().unwrap();
    let mut bytes = Vec::new();
    for at in (0..2000).step_by(100) {
        let [k, v] = [&heads.k, &heads.v].map(|tensor| common::steps::rows(tensor, at..at + 100));
        state.prefill(&Tokens { x: Some(common::steps::rows(&x, at..at + 100)), ..Tokens::new(k, v) }).unwrap();
        bytes.push(state.bytes());
    }
    let zeros = rows.iter().filter(|row| direction(row).is_none()).count();
    assert!(*bytes.last().unwrap() < 4 * (64 + 2 * zeros) * 2 * (8 + 8 + 12), "{bytes:?}");
    assert!(bytes[0] > 32 * 16 * 4, "a block alone takes that: {bytes:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |name: &str, value: &str| assert!(Mechanism::by_name("clustered").unwrap().set(name, value).is_err(), "{name}={value}");
    for (name, values) in [
        ("threshold", &["-1.1", "NaN", "inf", "x"][..]),
        ("temperature", &["0", "-1", "NaN"]),
        ("block", &["0", "-1"]),
        ("target", &["0", "-3", "1.5", "NaN", "inf"]),
        ("rule", &["means"]),
        ("representative", &["median"]),
        ("metric", &["values"]),
        ("soft", &["-1", "0.5"]),
        ("nothing", &["1"]),
    ] {
        values.iter().for_each(|value| refused(name, value));
    }

    let heads = Heads::single(sizes([2, 1], [6, 6], [4, 4]), 1);
    let x = hidden(&vec![vec![1.0, 2.0]; 6]);
    let given = inputs(&heads, &x, false);
    let refusal = |config: Clustered, inputs: &Inputs<'_>| {
        Mechanism::from(config).choose(inputs, Pass::default(), Par::default()).unwrap_err().to_string()
    };
    let default = Clustered::default;
    for config in [
        Clustered { threshold: f32::NAN, ..default() },
        Clustered { threshold: -1.5, ..default() },
        Clustered { temperature: 0.0, ..default() },
        Clustered { block: 0, ..default() },
        Clustered { target: Some(0.0), ..default() },
    ] {
        assert!(refusal(config.clone(), &given).contains("expected"), "{config:?}");
    }
    let matching = || Clustered { rule: regard_core::mechanism::clustered::Rule::Matching, ..default() };
    assert!(refusal(matching(), &given).contains("target"));
    let causal = inputs(&heads, &x, true);
    assert!(refusal(Clustered { target: Some(2.0), ..matching() }, &causal).contains("no causal form"));
    assert!(refusal(default(), &Inputs { x: None, ..given.clone() }).contains("hidden states x"));
    let shorter = hidden(&vec![vec![1.0, 2.0]; 5]);
    assert!(refusal(default(), &Inputs { x: Some(shorter.view()), ..given.clone() }).contains("x has shape"));
    for thresholds in [&[0.5][..], &[0.5, f32::NAN], &[-2.0, 0.5]] {
        assert!(refusal(default(), &Inputs { threshold: Some(thresholds), ..given.clone() }).contains("threshold"));
    }
    let other = Heads::single(sizes([2, 1], [6, 5], [4, 4]), 1);
    assert!(refusal(default(), &inputs(&other, &x, false)).contains("N = M"));
    let lengths = Inputs { sight: Sight::full().lengths(&[4]).lengths_q(&[3]), ..given.clone() };
    assert!(refusal(default(), &lengths).contains("N = M"));
    let windowed = Inputs { sight: Sight::full().window(Some(1), None), ..given.clone() };
    assert!(refusal(default(), &windowed).contains("window"));

    let mechanism = clustered(&[]);
    let choices = mechanism.choose(&given, Pass::default(), Par::default()).unwrap();
    let soft = clustered(&[("soft", "1")]);
    assert!(soft.plan(&given, &choices, Pass::default()).is_err(), "choices without blends");
    let other = Heads::single(sizes([2, 1], [5, 5], [4, 4]), 1);
    let fewer = Inputs { x: Some(shorter.view()), ..inputs(&other, &x, false) };
    assert!(mechanism.plan(&fewer, &choices, Pass::default()).is_err(), "choices of other tokens");
    let plan = mechanism.plan(&given, &choices, Pass::default()).unwrap();
    let saved = Saved { o: heads.d_o.view(), lse: &[0.0; 12], d_o: heads.d_o.view() };
    let mut dthreshold = [0.0; 2];
    let mut gradients = Gradients { dthreshold: Some(&mut dthreshold), ..Gradients::default() };
    assert!(plan.backward(&saved, &mut gradients, Par::default()).is_err(), "no gate, no gradient");
}
