//! `regard attend` with what chooses first: lifetimes, clusters, reducers. Every kernel against its definition in f64.

mod common;

use common::{Bundle, Desk, bundle, filled, normals};
use regard_core::oracle::Definition;
use safetensors::Dtype;

const N: usize = 21;
const E: usize = 10;

/// Batch 2, 4 query heads on 2 kv heads, as many queries as keys, hidden states, and the gradient of the output.
fn square(dtype: Dtype) -> Bundle {
    let sizes = Definition { batch: 2, heads: 4, kv_heads: 2, queries: N, keys: N, dk: 8, dv: 6, ..Definition::default() };
    let x: Vec<f64> =
        normals(40, 2 * N * E).chunks(E).enumerate().flat_map(|(n, row)| row.iter().map(move |x| x + 4.0 * (n % 4) as f64)).collect();
    bundle(&filled(sizes, 9), dtype).floats("x", dtype, &[2, N, E], &x).floats("do", dtype, &[2, 4, N, 6], &normals(41, 2 * 4 * N * 6))
}

fn logits(dtype: Dtype) -> Bundle {
    square(dtype).floats("type_logits", dtype, &[2, 2, N, 3], &normals(42, 2 * 2 * N * 3))
}

/// The same call in f32 and by the definition in f64: the same choices, and floats that are near.
fn agree(make: fn(Dtype) -> Bundle, arguments: &str) -> Bundle {
    let single = Desk::with(&make(Dtype::F32)).results(arguments);
    let double = Desk::with(&make(Dtype::F64)).results(arguments);
    assert_eq!(single.names(), double.names(), "{arguments}");
    for name in single.names() {
        if single.dtype_and_shape(name).0 == Dtype::I64 {
            assert_eq!(single.indices(name), double.indices(name), "{name}, {arguments}");
            continue;
        }
        let largest = double.values(name).into_iter().filter(|x| x.is_finite()).fold(1.0, |a: f64, x| a.max(x.abs()));
        for (x, y) in single.values(name).into_iter().zip(double.values(name)) {
            assert!(x == y || (x - y).abs() <= 2e-5 * largest, "{name}: {x} and {y}, {arguments}");
        }
    }
    single
}

#[test]
fn lifetimes_are_chosen_by_logits_and_have_gradients() {
    let found = agree(logits, "--mechanism nats --causal --set window=3 --gradients");
    assert_eq!(found.names(), ["dk", "dq", "dtype_logits", "dv", "lse", "o", "types", "until"]);
    assert!(found.values("dtype_logits").iter().any(|x| x.abs() > 1e-3), "types matter");
    let (types, until) = (found.indices("types"), found.indices("until"));
    assert!(
        types.chunks(N).all(|head| head[0] == 0) && until.iter().all(|&until| until <= N as i64),
        "token 0 is global, lifetimes are clipped"
    );
    assert!((0..types.len()).all(|j| types[j] != 2 || until[j] == (j as i64 % N as i64 + 4).min(N as i64)), "window keys see four queries");
}

#[test]
fn clusters_attend_as_defined() {
    for arguments in [
        "threshold=0.7",
        "threshold=0.7 --set log_size=false --set representative=leader",
        "threshold=0.7 --set soft=2",
        "threshold=0.3 --set metric=keys",
        "threshold=0.7 --set block=4 --causal",
    ] {
        let found = agree(square, &format!("--mechanism clustered --gradients --set {arguments}"));
        let sizes = found.indices("sizes");
        assert!(sizes.iter().any(|&size| size > 1), "something merges: {sizes:?}, {arguments}");
    }
    let learned = |dtype| square(dtype).floats("threshold", dtype, &[4], &[0.5, 0.75, 0.25, 0.875]);
    assert!(agree(learned, "--mechanism clustered --gradients").names().contains(&"dthreshold"));
}

fn codebook(dtype: Dtype) -> Bundle {
    square(dtype).floats("codebook", dtype, &[2, 5, 8], &normals(43, 2 * 5 * 8))
}

fn shares(dtype: Dtype) -> Bundle {
    square(dtype).floats("mix", dtype, &[4], &[0.5, -0.75, 0.0, 2.0])
}

#[test]
fn two_mechanisms_together_attend_as_defined() {
    let merged = agree(codebook, "--mechanism local+vq --gradients --causal --set local.window=4 --set scale=0.3");
    assert_eq!(merged.names(), ["codes", "dk", "dq", "dv", "loss", "lse", "o"]);
    agree(codebook, "--mechanism local+vq --gradients --set local+vq.local.window=4");
    let split = agree(square, "--mechanism local/linear --gradients --causal --set local.window=4 --set local.scale=0.3 --set split=1");
    assert_eq!(split.names(), ["dk", "dq", "dv", "o"]);
    let summed = agree(shares, "--mechanism local~linear --gradients --set local.window=4");
    assert_eq!(summed.names(), ["dk", "dmix", "dq", "dv", "o"]);
    for (make, arguments) in
        [(codebook as fn(Dtype) -> Bundle, "local+vq --set vq.block=4"), (square, "local/linear"), (shares, "local~linear")]
    {
        let desk = Desk::with(&make(Dtype::F32));
        let arguments = format!("--mechanism {arguments} --causal --set local.window=4");
        let (whole, steps) = (desk.results(&arguments).values("o"), desk.results(&format!("{arguments} --step")).values("o"));
        let off = whole.iter().zip(&steps).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
        assert!(off <= 1e-5, "{arguments}: {off}");
    }
}

#[test]
fn steps_are_the_rows_of_the_whole() {
    for (make, arguments) in
        [(logits as fn(Dtype) -> Bundle, "--mechanism nats"), (square, "--mechanism clustered --set block=5 --set threshold=0.7")]
    {
        let desk = Desk::with(&make(Dtype::F32));
        let whole = desk.results(&format!("{arguments} --causal")).values("o");
        let steps = desk.results(&format!("{arguments} --causal --step")).values("o");
        let off = whole.iter().zip(&steps).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
        assert!(off <= 1e-5, "{arguments}: {off}");
    }
}

#[test]
fn reducers_hand_on_fewer_tokens() {
    for (arguments, kept) in [
        ("prune --set keep=0.5", 11),
        ("prune --set rule=coreset --set count=4", 4),
        ("tome --set keep=0.7", 15),
        ("pitome --set keep=0.9", 19),
    ] {
        let found = agree(square, &format!("--mechanism {arguments}"));
        assert_eq!(found.names(), ["kept", "lse", "map", "o", "reduced", "score", "sizes"]);
        assert_eq!(found.dtype_and_shape("reduced"), (Dtype::F32, vec![2, kept, E]));
        let (rows, map, sizes) = (found.indices("kept"), found.indices("map"), found.indices("sizes"));
        assert!(rows.chunks(kept).all(|rows| rows[0] == 0 && rows.is_sorted()), "the first token is protected, order is kept: {rows:?}");
        assert!(rows.chunks(kept).zip(map.chunks(N)).all(|(rows, map)| (0..kept).all(|i| map[rows[i] as usize] == i as i64)));
        let stand_for: i64 = sizes.iter().sum();
        assert_eq!(stand_for, if arguments.starts_with("prune") { 2 * kept as i64 } else { 2 * N as i64 });
        let mean = found.values("score").iter().sum::<f64>() / (2 * N) as f64;
        assert!((mean - 1.0).abs() < 1e-5, "scores are 1 on average: {mean}");
    }
}

#[test]
fn bad_choices_are_refused_with_their_numbers() {
    let refused = |bundle: &Bundle, arguments: &str, code, fragments: &[&str]| {
        let desk = Desk::with(bundle);
        desk.attend(arguments).refused(code, fragments);
        assert_eq!(desk.files(), ["in.safetensors"], "{arguments}");
    };
    let plain = square(Dtype::F32);
    refused(&plain, "--mechanism nats --causal", 2, &["type_logits"]);
    refused(&plain, "--mechanism nats", 2, &["causal only"]);
    refused(&plain.clone().integers("types", &[2, 2, N], &[3; 4 * N]), "--mechanism nats --causal", 1, &["types", "3 at [0, 0, 0]"]);
    refused(&plain.clone().integers("types", &[2, 3, N], &[0; 6 * N]), "--mechanism nats --causal", 1, &["[2, 3, 21]", "[2, 2, 21]"]);
    refused(&plain, "--mechanism clustered --set threshold=-1.5", 2, &["-1.5", "at least -1"]);
    refused(&plain, "--mechanism prune --set keep=0", 2, &["0 is not above 0"]);
    refused(&plain, "--mechanism prune --set keep=0.1 --set protect=9", 2, &["9 are protected", "keeps 3 of 21"]);
    refused(&plain, "--mechanism delete_gate", 2, &["gate_logits"]);
    refused(&plain, "--mechanism tome --causal --step", 2, &["--step"]);
    refused(&plain, "--mechanism tome --set ratio=2", 2, &["ratio", "r, decrease, keep, protect"]);
}
