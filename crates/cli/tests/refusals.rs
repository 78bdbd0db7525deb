//! What the program refuses: the exit code, the words, and that nothing is left behind.

mod common;

use common::{Bundle, Desk, bundle, forged, normals, problem, regard};
use safetensors::Dtype;
use std::fs;
use std::process::{Command, Stdio};

fn good() -> Bundle {
    bundle(&problem(1), Dtype::F32)
}

const EXACT: &str = "--mechanism exact";

/// Refused with exit 1, and nothing but the input is there afterwards.
#[track_caller]
fn file_is_refused(bytes: &[u8], fragments: &[&str]) {
    let desk = Desk::with_bytes(bytes);
    let outcome = desk.attend(EXACT);
    outcome.refused(1, fragments);
    outcome.refused(1, &["in.safetensors"]);
    assert_eq!(desk.files(), ["in.safetensors"]);
}

#[track_caller]
fn header_is_refused(header: &str, data: usize, fragments: &[&str]) {
    file_is_refused(&forged(header, &vec![0; data]), fragments);
}

#[track_caller]
fn tensors_are_refused(bundle: &Bundle, arguments: &str, fragments: &[&str]) {
    let desk = Desk::with(bundle);
    desk.attend(arguments).refused(1, fragments);
    assert_eq!(desk.files(), ["in.safetensors"]);
}

#[track_caller]
fn usage_is_refused(bundle: &Bundle, arguments: &str, fragments: &[&str]) {
    let desk = Desk::with(bundle);
    desk.attend(arguments).refused(2, fragments);
    assert_eq!(desk.files(), ["in.safetensors"]);
}

#[test]
fn truncated_files() {
    let bytes = good().bytes();
    file_is_refused(&bytes[..bytes.len() - 10], &["tensor", "truncated"]);
    file_is_refused(&bytes[..40], &["truncated", "header"]);
    file_is_refused(&bytes[..5], &["truncated", "5 bytes", "at least 8"]);
    file_is_refused(b"", &["truncated", "0 bytes"]);
}

#[test]
fn forged_header_lengths() {
    let mut bytes = good().bytes();
    for (length, fragment) in [(u64::MAX, "longer than 100000000"), (100_000_001, "100000001"), (1 << 20, "1048576")] {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        file_is_refused(&bytes, &["header", fragment]);
    }
}

#[test]
fn headers_that_are_not_valid() {
    header_is_refused("{\"q\": ", 0, &["header is not valid"]);
    header_is_refused("[1, 2]", 0, &["does not begin with {"]);
    header_is_refused("{\"q\": 3}", 0, &["\"q\"", "not valid"]);
    header_is_refused(r#"{"q":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, &["\"q\"", "-1"]);
    header_is_refused(r#"{"q":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#, 4, &["\"q\"", "1.5"]);
    header_is_refused(r#"{"q":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, 4, &["\"q\"", "unknown dtype", "F33"]);
    file_is_refused(&forged("", &[]), &["does not begin with {"]);
    let deep = "{\"q\":".repeat(100_000);
    header_is_refused(&deep, 0, &["not valid"]);
    file_is_refused(&[&8u64.to_le_bytes()[..], b"{\"\xff\xfe\": 1}"].concat(), &["not valid"]);
}

#[test]
fn duplicate_names() {
    let one = r#""q":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let other = r#""q":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#;
    header_is_refused(&format!("{{{one},{other}}}"), 8, &["\"q\"", "twice"]);
}

#[test]
fn offsets_that_cannot_be() {
    let header = |shape: &str, start: u64, end: u64| format!(r#"{{"q":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}}}"#);
    header_is_refused(&header("[4]", 0, 16), 8, &["\"q\"", "0..16", "8 bytes"]);
    header_is_refused(&header("[4]", 16, 0), 16, &["\"q\"", "16..0"]);
    header_is_refused(&header("[3]", 0, 16), 16, &["\"q\"", "[3]", "12 bytes", "16"]);
    header_is_refused(&header("[1]", 4, 8), 8, &["\"q\"", "hole"]);
    header_is_refused(&header("[1]", 0, 4), 8, &["end at byte 4", "8"]);
    let overlapping = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    header_is_refused(overlapping, 12, &["\"b\"", "overlap"]);
}

#[test]
fn shapes_beyond_every_memory() {
    let header = |shape: &str| format!(r#"{{"q":{{"dtype":"F32","shape":{shape},"data_offsets":[0,16]}}}}"#);
    header_is_refused(&header("[1,1,1099511627776,4]"), 16, &["\"q\"", "1099511627776"]);
    header_is_refused(&header("[1099511627776,1099511627776,1,4]"), 16, &["\"q\"", "overflows"]);
    header_is_refused(&header("[0,1099511627776,1099511627776,4]"), 16, &["\"q\"", "overflows"]);
    header_is_refused(&header("[18446744073709551616]"), 16, &["\"q\""]);
}

#[test]
fn results_beyond_every_memory() {
    let wide = |width: usize| good().with("k", Dtype::F32, &[2, 2, 0, 8], Vec::new()).with("v", Dtype::F32, &[2, 2, 0, width], Vec::new());
    tensors_are_refused(&wide(1 << 40), EXACT, &["memory"]);
    tensors_are_refused(&wide(1 << 56), EXACT, &["too large"]);
}

#[test]
fn wrong_dtypes() {
    let problem = problem(1);
    let q = good().with("q", Dtype::I32, &[2, 4, 9, 8], vec![0; 4 * 2 * 4 * 9 * 8]);
    tensors_are_refused(&q, EXACT, &["\"q\"", "i32", "f32 or bf16 or f16 or f64"]);
    let k = good().floats("k", Dtype::BF16, &[2, 2, 12, 8], &problem.k);
    tensors_are_refused(&k, EXACT, &["\"k\"", "bf16", "f32"]);
    let key_bias = good().floats("key_bias", Dtype::BF16, &[2, 2, 12], &normals(9, 48));
    tensors_are_refused(&key_bias, EXACT, &["\"key_bias\"", "bf16", "f32"]);
    let lengths = good().floats("lengths", Dtype::F32, &[2], &[3.0, 4.0]);
    tensors_are_refused(&lengths, EXACT, &["\"lengths\"", "F32", "I32 or I64"]);
    let mask = good().integers("mask", &[1, 1, 9, 12], &[1; 108]);
    tensors_are_refused(&mask, EXACT, &["\"mask\"", "I64", "BOOL or U8"]);
}

#[test]
fn wrong_shapes() {
    let three_heads = good().floats("q", Dtype::F32, &[2, 3, 9, 8], &normals(9, 2 * 3 * 9 * 8));
    tensors_are_refused(&three_heads, EXACT, &["in.safetensors", "3 query heads do not divide over 2"]);
    let flat = good().floats("q", Dtype::F32, &[2 * 4 * 9 * 8], &normals(9, 2 * 4 * 9 * 8));
    tensors_are_refused(&flat, EXACT, &["\"q\"", "[576]", "four dimensions"]);
    let narrow = good().floats("k", Dtype::F32, &[2, 2, 12, 7], &normals(9, 2 * 2 * 12 * 7));
    tensors_are_refused(&narrow, EXACT, &["in.safetensors", "k has shape [2, 2, 12, 7], expected [2, 2, 12, 8]"]);
    let key_bias = good().floats("key_bias", Dtype::F32, &[2, 12], &normals(9, 24));
    tensors_are_refused(&key_bias, EXACT, &["\"key_bias\"", "[2, 12]", "[2, 2, 12]"]);
    let bias = good().floats("bias", Dtype::F32, &[2, 3, 9, 12], &normals(9, 2 * 3 * 9 * 12));
    tensors_are_refused(&bias, EXACT, &["\"bias\"", "[2, 3, 9, 12]", "[2 or 1, 4 or 1, 9, 12]"]);
    let d_o = good().floats("do", Dtype::F32, &[2, 4, 9, 5], &normals(9, 2 * 4 * 9 * 5));
    tensors_are_refused(&d_o, "--mechanism exact --gradients", &["\"do\"", "[2, 4, 9, 6]"]);
}

#[test]
fn numbers_that_are_none() {
    let mut q = problem(1).q;
    q[100] = f64::NAN;
    tensors_are_refused(&good().floats("q", Dtype::F32, &[2, 4, 9, 8], &q), EXACT, &["\"q\"", "NaN", "[0, 1, 3, 4]"]);
    let mut v = problem(1).v;
    v[0] = f64::NEG_INFINITY;
    tensors_are_refused(&good().floats("v", Dtype::F32, &[2, 2, 12, 6], &v), EXACT, &["\"v\"", "-inf", "[0, 0, 0, 0]"]);
    let bias = |value| good().floats("key_bias", Dtype::F32, &[2, 2, 12], &[&[0.0; 47][..], &[value]].concat());
    tensors_are_refused(&bias(f64::INFINITY), EXACT, &["\"key_bias\"", "inf", "[1, 1, 11]"]);
    tensors_are_refused(&bias(f64::NAN), EXACT, &["\"key_bias\"", "NaN", "[1, 1, 11]"]);
    Desk::with(&bias(f64::NEG_INFINITY)).attend(EXACT).done();
}

#[test]
fn missing_things() {
    tensors_are_refused(&good().without("v"), EXACT, &["\"v\"", "missing", "\"q\""]);
    tensors_are_refused(&good(), "--mechanism exact --gradients", &["\"do\"", "missing", "--gradients"]);
    let desk = Desk::new();
    desk.attend(EXACT).refused(1, &["cannot open", "in.safetensors"]);
    assert!(desk.files().is_empty());
    let folder = Desk::new();
    fs::create_dir(folder.input()).unwrap();
    folder.attend(EXACT).refused(1, &["not a regular file"]);
}

#[test]
fn lengths_that_do_not_fit() {
    let lengths = |values: [i64; 2]| good().integers("lengths", &[2], &values);
    tensors_are_refused(&lengths([12, 13]), EXACT, &["in.safetensors", "lengths", "13", "12"]);
    tensors_are_refused(&lengths([-2, 3]), EXACT, &["\"lengths\"", "-2", "at least 0"]);
    tensors_are_refused(&good().integers("lengths", &[3], &[1, 2, 3]), EXACT, &["\"lengths\"", "[3]", "[2]"]);
    let spans = good().integers("key_spans", &[2, 2, 2], &[0, 12, 0, 12, 0, 12, 1, 12]);
    tensors_are_refused(&spans, EXACT, &["key_spans", "(1, 12)", "12 keys"]);
}

#[test]
fn packed_sequences_that_do_not_fit() {
    let offsets = |bundle: Bundle| bundle.integers("offsets_q", &[2], &[0, 9]).integers("offsets_k", &[2], &[0, 12]);
    tensors_are_refused(&offsets(good()), EXACT, &["offsets_q", "batch of 1, not 2"]);
    tensors_are_refused(&offsets(good()).without("offsets_k"), EXACT, &["\"offsets_q\"", "needs the tensor \"offsets_k\""]);
    let sizes = regard_core::oracle::Definition { batch: 1, ..problem(1) };
    let single = bundle(&common::filled(sizes, 2), Dtype::F32);
    usage_is_refused(&offsets(single.clone()).integers("lengths", &[1], &[3]), EXACT, &["offsets", "lengths"]);
    usage_is_refused(&offsets(single.clone()), "--mechanism exact --causal --step", &["--step", "offsets_q"]);
    tensors_are_refused(&offsets(single).integers("offsets_k", &[2], &[0, 11]), EXACT, &["offsets_k", "12"]);
}

#[test]
fn tensors_of_other_mechanisms() {
    let types = good().integers("types", &[2, 2, 12], &[0; 48]);
    tensors_are_refused(&types, EXACT, &["\"types\"", "not read by exact"]);
    let key_bias = good().floats("key_bias", Dtype::F32, &[2, 2, 12], &normals(9, 48));
    tensors_are_refused(&key_bias, "--mechanism local", &["\"key_bias\"", "not read by local"]);
    let spans = good().integers("key_spans", &[2, 2, 2], &[0, 12, 0, 12, 0, 12, 0, 12]);
    tensors_are_refused(&spans, "--mechanism local", &["\"key_spans\"", "not read by local"]);
}

#[test]
fn unknown_tensors_are_ignored_with_a_warning_and_known_companions_without() {
    let nan = [f64::NAN; 4];
    let strange = Desk::with(&good().floats("hidden", Dtype::F32, &[4], &nan));
    assert!(strange.attend(EXACT).done().stderr.contains("warning: "));
    let companions = Desk::with(&good().floats("x", Dtype::F32, &[4], &nan).floats("do", Dtype::F32, &[4], &nan));
    assert_eq!(companions.attend(EXACT).done().stderr, "");
}

#[test]
fn options() {
    let refused = |arguments: &str, fragments: &[&str]| usage_is_refused(&good(), arguments, fragments);
    refused("--mechanism exact --set window_left=-1", &["window_left=-1", "at least 0"]);
    refused("--mechanism local --set window=0", &["window=0", "at least 1"]);
    refused("--mechanism local --set window=-3", &["window=-3"]);
    refused("--mechanism local --set windw=3", &["\"windw\"", "did you mean \"window\"?"]);
    refused("--mechanism exact --set window_lft=3", &["did you mean \"window_left\"?"]);
    refused("--mechanism local --set window=3 --set window=3", &["window", "twice"]);
    refused("--mechanism local --set window", &["key=value"]);
    refused("--mechanism local --set exact.window_left=3", &["exact.window_left", "no mechanism"]);
    refused("--mechanism exact --set softcap=nan", &["softcap=nan"]);
    refused("--mechanism exact --set alibi=yes", &["alibi=yes", "true or false"]);
    refused("--mechanism exact --set dropout=1", &["dropout=1", "[0, 1)"]);
    refused("--mechanism exakt", &["\"exakt\"", "did you mean \"exact\"?", "local"]);
    refused("--mechanism exact --level sse9", &["sse9", "portable, avx2 or avx512"]);
    refused("--mechanism exact --threads 0", &["--threads"]);
    refused("--mechanism exact --seed=-1", &["--seed"]);
    refused("--mechanism exact --device cuda", &["--device"]);
    refused("--mechanism exact --gradient", &["--gradients"]);
    refused("", &["--mechanism"]);
}

#[test]
fn levels_the_machine_lacks() {
    use regard_core::simd::Level;
    if let Some(missing) = Level::ALL.into_iter().find(|level| !level.is_available()) {
        let arguments = format!("--mechanism exact --level {missing}");
        usage_is_refused(&good(), &arguments, &["not available", Level::detect().name()]);
    }
}

#[test]
fn steps() {
    let step = "--mechanism exact --causal --step";
    usage_is_refused(&good(), "--mechanism exact --step", &["--causal"]);
    usage_is_refused(&good(), &format!("{step} --gradients"), &["--step", "--gradients"]);
    usage_is_refused(&good(), &format!("{step} --received"), &["--step", "--received"]);
    usage_is_refused(&good(), &format!("{step} --set alignment=top_left"), &["top_left"]);
    usage_is_refused(&good(), &format!("{step} --set dropout=0.1"), &["--step", "dropout"]);
    let sizes = regard_core::oracle::Definition { queries: 13, ..problem(1) };
    let long = bundle(&common::filled(sizes, 1), Dtype::F32);
    tensors_are_refused(&long, step, &["in.safetensors", "13 queries", "12 keys"]);
    let short = good().integers("lengths", &[2], &[12, 5]);
    tensors_are_refused(&short, step, &["batch row 1", "9 queries", "5 keys"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let desk = Desk::with(&good());
    desk.attend_to(&desk.path("no/such/folder/out.safetensors"), EXACT).refused(1, &["cannot write", "no/such/folder"]);
    fs::create_dir(desk.path("folder")).unwrap();
    desk.attend_to(&desk.path("folder"), EXACT).refused(1, &["cannot write", "not a regular file"]);
    assert_eq!(desk.files(), ["folder", "in.safetensors"]);
    regard(["list", "--json", desk.path("no/such/list.json").to_str().unwrap()]).refused(1, &["cannot write"]);
}

#[test]
fn a_failure_leaves_the_old_output() {
    let desk = Desk::with(&good().without("k"));
    fs::write(desk.output(), "old").unwrap();
    desk.attend(EXACT).refused(1, &["\"k\""]);
    assert_eq!(fs::read(desk.output()).unwrap(), b"old");
    assert_eq!(desk.files(), ["in.safetensors", "out.safetensors"]);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_regard"));
    let mut child = child.arg("list").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn benchmarks() {
    let refused = |arguments: &str, fragments: &[&str]| regard(format!("bench {arguments}").split(' ')).refused(2, fragments);
    refused("--mechanism exact,lokal", &["did you mean \"local\"?"]);
    refused("--mechanism local,local", &["twice"]);
    refused("--set window=64", &["exact or local", "exact.window=64"]);
    refused("--set vq.block=64", &["vq.block"]);
    refused("--mechanism local --set local.widow=64", &["did you mean \"window\"?"]);
    refused("--heads 6 --kv-heads 4", &["6", "4"]);
    refused("--length 0", &["--length"]);
    refused("--length 5m", &["5m"]);
    refused("--runs 0", &["--runs"]);
    refused("--pass sideways", &["--pass"]);
    refused("--tensors x.safetensors --heads 4", &["--tensors", "--heads"]);
    regard(["bench", "--tensors", "nowhere.safetensors"]).refused(1, &["cannot open", "nowhere.safetensors"]);
    regard(["bench", "--length", "4000000000k"]).refused(1, &["memory"]);
}
