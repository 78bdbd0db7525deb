//! `regard bench`, run once at small sizes.

mod common;

use common::{Desk, bundle, filled, problem, regard};
use regard_core::oracle::Definition;
use safetensors::Dtype;
use serde_json::Value;
use std::fs;

fn json(arguments: &str) -> Value {
    let outcome = regard(format!("bench --json --runs 1 {arguments}").split_whitespace()).done();
    assert!(outcome.stdout.trim_start_matches(['{', '\n', ' ']).starts_with("\"schema\""), "{outcome:?}");
    serde_json::from_str(&outcome.stdout).expect("nothing but JSON is on standard output")
}

#[test]
fn json_holds_what_the_contract_says_and_people_get_a_table() {
    let desk = Desk::new();
    let path = desk.path("bench.json");
    let sizes = "--heads 4 --kv-heads 2 --head-dim 16 --length 64,300 --dtype bf16 --causal";
    let arguments = format!("bench {sizes} --set local.window=100 --runs 1 --json {}", path.display());
    let table = regard(arguments.split(' ')).done().stdout;
    assert!(table.contains("ceilings") && table.contains("decode"), "{table}");
    let bench: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(bench["schema"], "regard/bench/1");
    let machine = &bench["machine"];
    assert!(machine["threads"].as_u64().unwrap() > 0 && machine["fma_gflops"].as_f64().unwrap() > 0.0);
    for key in ["cpu", "features", "level", "compiler", "commit", "bf16_gflops", "read_gbps"] {
        assert!(machine.get(key).is_some(), "{key} is missing");
    }
    let results = bench["results"].as_array().unwrap();
    assert_eq!(results.len(), 2 * 3 * 2);
    results.iter().for_each(check);
}

fn check(result: &Value) {
    assert_eq!((&result["dtype"], &result["batch"], &result["head_dim"]), (&Value::from("bf16"), &Value::from(1), &Value::from(16)));
    assert_eq!((&result["heads"], &result["kv_heads"], &result["runs"]), (&Value::from(4), &Value::from(2), &Value::from(1)));
    for key in ["median_s", "min_s", "gflops", "ceiling_fraction", "extra_bytes"] {
        assert!(result[key].as_f64().is_some_and(|x| x > 0.0), "{key} of {result}");
    }
    assert_eq!(result["gbps"].is_null(), result["pass"] != "decode", "{result}");
    assert!(result["error"]["rel_l2"].as_f64().unwrap() < 0.1, "{result}");
    let exact = result["mechanism"] == "exact";
    assert_eq!(result["approximation"].is_null(), exact, "{result}");
    assert!(exact || result["options"]["window"] == 100, "{result}");
    assert!(exact || result["approximation"]["captured"].is_null() && result["approximation"]["random"]["rel_l2"].is_number(), "{result}");
}

#[test]
fn windows_count_the_pairs_that_see_each_other() {
    let bench = json("--heads 4 --head-dim 16 --causal --pass forward --length 512 --set local.window=1");
    let operations = |result: &Value| result["gflops"].as_f64().unwrap() * result["median_s"].as_f64().unwrap() * 1e9;
    let near = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-6, "{found} operations, not {expected}");
    near(operations(&bench["results"][0]), 4.0 * 64.0 * 512.0 * 512.0 / 2.0);
    near(operations(&bench["results"][1]), 4.0 * 64.0 * 512.0);
}

#[test]
fn a_files_tensors_are_cut_or_repeated() {
    let sizes = Definition { batch: 1, queries: 40, keys: 40, ..problem(1) };
    let desk = Desk::with(&bundle(&filled(sizes, 1), Dtype::F32).integers("until", &[1, 2, 40], &[7; 80]));
    let file = desk.input();
    let arguments = format!(
        "bench --json --runs 1 --mechanism local --set window=8 --pass forward,backward --length 16,100 --tensors {}",
        file.display()
    );
    let outcome = regard(arguments.split(' ')).done();
    assert!(outcome.stderr.contains("length 100 is longer than the file") && !outcome.stderr.contains("length 16 "), "{outcome:?}");
    assert!(outcome.stderr.contains("tensor \"until\" is ignored") && !outcome.stderr.contains("tensor \"q\""), "{outcome:?}");
    let bench: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let results = bench["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    for result in results {
        assert_eq!((&result["heads"], &result["kv_heads"], &result["causal"]), (&Value::from(4), &Value::from(2), &Value::from(false)));
        let approximation = &result["approximation"];
        assert!(approximation["random"]["max_abs"].is_number() && approximation["captured"]["max_abs"].is_number(), "{result}");
    }
}
