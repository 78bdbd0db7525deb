//! `regard attend` against the definition.

mod common;

use common::{Bundle, Desk, bundle, filled, normals, problem};
use regard_core::oracle::{Definition, Dense, Forward, Storage, Weights, plain};
use regard_core::simd::Level;
use safetensors::Dtype;
use std::fs;

/// Twice the error of a plain float32 implementation, and a millionth of the largest term.
fn budget(definition: &Definition, truth: &Forward, storage: Storage) -> f64 {
    let error = |weights| difference(&plain(definition, None, storage, weights).0.o, &truth.o);
    2.0 * error(Weights::Normalised).max(error(Weights::FromLse)) + 1e-6 * largest(&truth.largest_term_o)
}

fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() }).fold(0.0, |largest, x| if x <= largest { largest } else { x })
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, x| x.abs().max(largest))
}

#[track_caller]
fn close(found: &Bundle, definition: &Definition, storage: Storage, case: &str) {
    let truth = definition.forward();
    let allowed = budget(definition, &truth, storage);
    let error = difference(&found.values("o"), &truth.o);
    assert!(error <= allowed, "o of {case} is off by {error}, allowed are {allowed}");
    let error = difference(&found.values("lse"), &truth.lse);
    assert!(error <= 1e-5 * (1.0 + largest(&finite(&truth.lse))), "lse of {case} is off by {error}");
}

fn finite(values: &[f64]) -> Vec<f64> {
    values.iter().copied().filter(|x| x.is_finite()).collect()
}

fn storages() -> [(Dtype, Storage); 2] {
    [(Dtype::F32, Storage::F32), (Dtype::BF16, Storage::Bf16)]
}

#[test]
fn every_dtype_and_level_is_close_to_the_definition() {
    let definition = Definition { causal: true, window_left: Some(4), sinks: 1, ..problem(1) };
    for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
        for (dtype, storage) in storages() {
            let desk = Desk::with(&bundle(&definition, dtype));
            let found = desk.results(&format!("--mechanism local --causal --set window=5 --set sinks=1 --level {level}"));
            assert_eq!(found.dtype_and_shape("o"), (dtype, vec![2, 4, 9, 6]));
            assert_eq!(found.dtype_and_shape("lse"), (Dtype::F32, vec![2, 4, 9]));
            assert_eq!(found.names(), ["lse", "o"]);
            close(&found, &definition, storage, &format!("{dtype:?} at {level}, seed=1"));
        }
    }
}

#[test]
fn doubles_are_the_definition_itself() {
    let mut definition = Definition { causal: true, scale: Some(0.3), softcap: Some(7.0), ..problem(2) };
    definition.q.iter_mut().for_each(|x| *x += 1e-12);
    definition.key_bias = Some(normals(21, 48));
    definition.bias = Some(Dense { batch: 1, heads: 4, values: normals(22, 4 * 9 * 12) });
    let d_o = normals(23, 2 * 4 * 9 * 6);
    let desk = Desk::with(
        &bundle(&definition, Dtype::F64)
            .floats("key_bias", Dtype::F64, &[2, 2, 12], definition.key_bias.as_ref().unwrap())
            .floats("bias", Dtype::F64, &[1, 4, 9, 12], &definition.bias.as_ref().unwrap().values)
            .floats("do", Dtype::F64, &[2, 4, 9, 6], &d_o),
    );
    let found = desk.results("--mechanism exact --causal --set scale=0.3 --set softcap=7 --received --gradients");
    let (forward, gradients) = (definition.forward(), definition.backward(&d_o));
    let expected: [(&str, &[f64], &[usize]); 8] = [
        ("o", &forward.o, &[2, 4, 9, 6]),
        ("lse", &forward.lse, &[2, 4, 9]),
        ("received", &forward.received, &[2, 4, 12]),
        ("dq", &gradients.dq, &[2, 4, 9, 8]),
        ("dk", &gradients.dk, &[2, 2, 12, 8]),
        ("dv", &gradients.dv, &[2, 2, 12, 6]),
        ("dkey_bias", &gradients.dkey_bias, &[2, 2, 12]),
        ("dbias", &gradients.dbias, &[1, 4, 9, 12]),
    ];
    for (name, values, shape) in expected {
        assert_eq!(found.dtype_and_shape(name), (Dtype::F64, shape.to_vec()));
        assert_eq!(found.values(name), values, "{name}");
    }
}

#[test]
fn the_default_scale_of_doubles_is_not_rounded() {
    let definition = problem(3);
    let found = Desk::with(&bundle(&definition, Dtype::F64)).results("--mechanism exact");
    assert_eq!(found.values("o"), definition.forward().o);
}

#[test]
fn gradients_take_the_dtype_and_shape_of_their_inputs() {
    let mut definition = problem(4);
    definition.key_bias = Some(normals(41, 48));
    definition.bias = Some(Dense { batch: 2, heads: 1, values: normals(42, 2 * 9 * 12) });
    let d_o = normals(43, 2 * 4 * 9 * 6);
    let desk = Desk::with(
        &bundle(&definition, Dtype::BF16)
            .floats("key_bias", Dtype::F32, &[2, 2, 12], definition.key_bias.as_ref().unwrap())
            .floats("bias", Dtype::BF16, &[2, 1, 9, 12], &definition.bias.as_ref().unwrap().values)
            .floats("do", Dtype::BF16, &[2, 4, 9, 6], &d_o),
    );
    let found = desk.results("--mechanism exact --gradients --received");
    assert_eq!(found.dtype_and_shape("dq"), (Dtype::BF16, vec![2, 4, 9, 8]));
    assert_eq!(found.dtype_and_shape("dkey_bias"), (Dtype::F32, vec![2, 2, 12]));
    assert_eq!(found.dtype_and_shape("dbias"), (Dtype::BF16, vec![2, 1, 9, 12]));
    assert_eq!(found.dtype_and_shape("received"), (Dtype::F32, vec![2, 4, 12]));
    let (truth, gradients) = (definition.forward(), definition.backward(&d_o));
    assert!(difference(&found.values("received"), &truth.received) < 1e-4);
    for (name, expected) in [("dq", &gradients.dq), ("dk", &gradients.dk), ("dv", &gradients.dv), ("dkey_bias", &gradients.dkey_bias)] {
        let error = difference(&found.values(name), expected);
        assert!(error < 0.05 * largest(expected), "{name} is off by {error}, seed=4");
    }
}

#[test]
fn padding_is_zero_and_unseen() {
    let definition = Definition { lengths: Some(vec![12, 5]), lengths_q: Some(vec![7, 0]), causal: true, ..problem(5) };
    let file = bundle(&definition, Dtype::F32).integers("lengths", &[2], &[12, 5]).integers("lengths_q", &[2], &[7, 0]);
    let desk = Desk::with(&file);
    for arguments in ["--mechanism exact --causal", "--mechanism exact --causal --step"] {
        let found = desk.results(arguments);
        close(&found, &definition, Storage::F32, arguments);
        assert!(found.values("o")[4 * 9 * 6..].iter().all(|&x| x == 0.0));
        assert!(found.values("lse")[4 * 9..].iter().all(|&x| x == f64::NEG_INFINITY));
    }
}

#[test]
fn packed_and_ragged_files_are_read() {
    let packed = Definition { batch: 1, offsets_q: Some(vec![0, 4, 4, 9]), offsets_k: Some(vec![0, 5, 7, 12]), causal: true, ..problem(6) };
    let packed = filled(packed, 6);
    let file = bundle(&packed, Dtype::F32).integers("offsets_q", &[4], &[0, 4, 4, 9]).integers("offsets_k", &[4], &[0, 5, 7, 12]);
    close(&Desk::with(&file).results("--mechanism exact --causal"), &packed, Storage::F32, "packed");

    let spans = vec![[0, 12], [3, 6], [1, 0], [11, 1]];
    let key_positions: Vec<i64> = (0..48).map(|i| 2 * (i % 12)).collect();
    let query_positions: Vec<i64> = (0..18).map(|i| 4 + 2 * (i % 9)).collect();
    let file = bundle(&problem(7), Dtype::F32)
        .integers("key_spans", &[2, 2, 2], &spans.iter().flatten().map(|&x| x as i64).collect::<Vec<_>>())
        .integers("key_positions", &[2, 2, 12], &key_positions)
        .integers("query_positions", &[2, 9], &query_positions);
    let ragged = Definition {
        key_spans: Some(spans),
        key_positions: Some(key_positions),
        query_positions: Some(query_positions),
        causal: true,
        ..problem(7)
    };
    close(&Desk::with(&file).results("--mechanism exact --causal"), &ragged, Storage::F32, "ragged");
}

#[test]
fn masks_lifetimes_and_biases_are_read() {
    let mut definition = problem(8);
    let mask: Vec<u8> = (0..108).map(|i| u8::from(i % 7 != 2)).collect();
    definition.mask = Some(Dense { batch: 1, heads: 1, values: mask.iter().map(|&x| x != 0).collect() });
    definition.until = Some((0..48).map(|i| (i * 5) % 17).collect());
    definition.key_bias = Some(normals(81, 48));
    definition.bias = Some(Dense { batch: 1, heads: 4, values: normals(82, 4 * 108) });
    definition.causal = true;
    for (dtype, mask_dtype) in [(Dtype::F32, Dtype::BOOL), (Dtype::BF16, Dtype::U8)] {
        let file = bundle(&definition, dtype)
            .with("mask", mask_dtype, &[1, 1, 9, 12], mask.clone())
            .integers("until", &[2, 2, 12], definition.until.as_ref().unwrap())
            .floats("key_bias", dtype, &[2, 2, 12], definition.key_bias.as_ref().unwrap())
            .floats("bias", dtype, &[1, 4, 9, 12], &definition.bias.as_ref().unwrap().values);
        let desk = Desk::with(&file);
        let storage = if dtype == Dtype::F32 { Storage::F32 } else { Storage::Bf16 };
        for arguments in ["--mechanism exact --causal", "--mechanism exact --causal --step"] {
            close(&desk.results(arguments), &definition, storage, &format!("{arguments} on {dtype:?}, seed=8"));
        }
    }
}

#[test]
fn step_by_step_is_the_same_within_the_budget() {
    for (mechanism, window_left, sinks) in [("exact", None, 0), ("local --set window=4 --set sinks=2", Some(3), 2)] {
        let sizes = Definition { queries: 70, keys: 130, causal: true, window_left, sinks, ..problem(9) };
        let definition = filled(sizes, 9);
        for (dtype, storage) in storages() {
            let desk = Desk::with(&bundle(&definition, dtype));
            close(&desk.results(&format!("--mechanism {mechanism} --causal --step")), &definition, storage, mechanism);
        }
        let doubles = Desk::with(&bundle(&definition, Dtype::F64)).results(&format!("--mechanism {mechanism} --causal --step"));
        assert_eq!(doubles.values("o"), definition.forward().o);
    }
}

#[test]
fn the_same_call_writes_the_same_bytes_on_any_number_of_threads() {
    let sizes = Definition { queries: 150, keys: 150, ..problem(10) };
    let desk = Desk::with(&bundle(&filled(sizes, 10), Dtype::F32).floats("do", Dtype::F32, &[2, 4, 150, 6], &normals(11, 2 * 4 * 150 * 6)));
    let written = |threads: usize| {
        let arguments = format!("--mechanism exact --set dropout=0.2 --seed 5 --gradients --received --threads {threads}");
        desk.attend(&arguments).done();
        fs::read(desk.output()).unwrap()
    };
    let once = written(1);
    assert!(once == written(1) && once == written(2) && once == written(5));
}

#[test]
fn dropout_follows_the_seed() {
    let desk = Desk::with(&bundle(&problem(12), Dtype::F32));
    let o = |arguments: &str| desk.results(&format!("--mechanism exact {arguments}")).values("o");
    let seeded = o("--set dropout=0.5 --seed 3");
    assert_eq!(seeded, o("--set dropout=0.5 --seed 3"));
    assert_ne!(seeded, o("--set dropout=0.5 --seed 4"));
    assert_ne!(seeded, o("--seed 3"));
    assert_eq!(o("--set dropout=0"), o("--seed 3"));
}

#[test]
fn the_output_may_be_the_input() {
    let definition = problem(13);
    let desk = Desk::with(&bundle(&definition, Dtype::F32));
    desk.attend_to(&desk.input(), "--mechanism exact").done();
    assert_eq!(desk.files(), ["in.safetensors"]);
    close(&Bundle::read(&desk.input()), &definition, Storage::F32, "in place");
}

#[test]
fn nothing_to_attend_to_is_fine() {
    for (batch, queries, keys) in [(0, 9, 12), (2, 0, 12), (2, 9, 0), (2, 0, 0)] {
        let definition = filled(Definition { batch, queries, keys, ..problem(14) }, 14);
        let d_o = normals(15, batch * 4 * queries * 6);
        for dtype in [Dtype::F32, Dtype::F64] {
            let file = bundle(&definition, dtype).floats("do", dtype, &[batch, 4, queries, 6], &d_o);
            let found = Desk::with(&file).results("--mechanism exact --gradients --received");
            assert_eq!(found.dtype_and_shape("o"), (dtype, vec![batch, 4, queries, 6]));
            assert!(found.values("o").iter().all(|&x| x == 0.0));
            assert!(found.values("lse").iter().all(|&x| x == f64::NEG_INFINITY));
        }
    }
}
