//! `regard bench --sweep`: a file in YAML, small sizes.

mod common;

use common::{Desk, regard};
use serde_json::Value;
use std::fs;

const SMALL: &str = "
mechanisms: [exact, local: {window: 16}]
lengths: [64, 128, 256]
passes: [forward, backward]
heads: 2
head_dim: 16
runs: 1
extrapolate: {exact: 128}
";

fn swept(desk: &Desk, yaml: &str) -> (Value, String) {
    let (file, json, csv) = (desk.path("sweep.yaml"), desk.path("sweep.json"), desk.path("sweep.csv"));
    fs::write(&file, yaml).unwrap();
    let arguments = format!("bench --sweep {} --json {} --csv {}", file.display(), json.display(), csv.display());
    regard(arguments.split(' ')).done();
    (serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap(), fs::read_to_string(csv).unwrap())
}

fn refused(yaml: &str, words: &[&str]) {
    let desk = Desk::new();
    let file = desk.path("sweep.yaml");
    fs::write(&file, yaml).unwrap();
    regard(["bench", "--sweep", &file.display().to_string()]).refused(1, words);
}

#[test]
fn every_mechanism_runs_at_every_length_in_every_form() {
    let (json, csv) = swept(&Desk::new(), SMALL);
    assert_eq!(json["schema"], "regard/bench/1");
    let results = json["results"].as_array().unwrap();
    assert_eq!(results.len(), 2 * 3 * 2 * 2);
    assert_eq!(csv.lines().count(), 1 + results.len());
    assert!(csv.starts_with("mechanism,pass,dtype,causal,"), "{csv}");
    let local = results.iter().find(|result| result["mechanism"] == "local").unwrap();
    assert_eq!(local["options"]["window"], 16);
}

#[test]
fn two_mechanisms_together_are_swept_with_options_of_both() {
    let yaml = "
mechanisms: [local+vq: {local.window: 16, vq.codebook_size: 8, vq.block: 32}, local/linear, local~gated_linear, linear, gated_linear, clustered, vq, vq_qk]
lengths: [128]
passes: [forward, backward, decode]
forms: [causal]
heads: 2
head_dim: 16
runs: 1
";
    let (json, _) = swept(&Desk::new(), yaml);
    let results = json["results"].as_array().unwrap();
    let merged: Vec<&Value> = results.iter().filter(|result| result["mechanism"] == "local+vq").collect();
    assert_eq!(merged.len(), 3);
    assert_eq!((&merged[0]["options"]["local.window"], &merged[0]["options"]["vq.block"]), (&Value::from(16), &Value::from(32)));
    for result in results {
        assert!(result["error"]["max_abs"].as_f64().is_some_and(|error| error < 1e-3), "{result}");
        assert!(result["ceiling_fraction"].as_f64().unwrap() < 1.0, "{result}");
    }
}

#[test]
fn times_that_were_not_measured_say_so() {
    let (json, _) = swept(&Desk::new(), SMALL);
    for result in json["results"].as_array().unwrap() {
        let reckoned = result["mechanism"] == "exact" && result["length"] == 256;
        assert_eq!(result["extrapolated_from"].as_u64(), reckoned.then_some(128), "{result}");
        assert_eq!(result["runs"] == 0, reckoned, "{result}");
    }
    let of = |length: u64| {
        let same = |r: &&Value| r["mechanism"] == "exact" && r["pass"] == "forward" && r["causal"] == true && r["length"] == length;
        json["results"].as_array().unwrap().iter().find(same).unwrap()["median_s"].as_f64().unwrap()
    };
    assert!((of(256) / of(128) - 4.0).abs() < 1e-6, "the work of a causal pass grows fourfold");
}

#[test]
fn keys_of_the_earlier_benchmark_mean_the_nearest_thing_here() {
    let earlier = "
mechanisms: [exact]
sequence_len: 64
n_head: 2
d_k: 16
d_v: 8
global_batch_size: 3
d_model: 512
n_code: 64
";
    let desk = Desk::new();
    let (json, _) = swept(&desk, earlier);
    let first = &json["results"][0];
    let numbers = ["length", "heads", "head_dim", "batch"].map(|key| first[key].as_u64().unwrap());
    assert_eq!(numbers, [64, 2, 16, 3]);
    let outcome = regard(["bench", "--sweep", &desk.path("sweep.yaml").display().to_string()]).done();
    assert!(outcome.stderr.contains("d_model has no effect"), "{outcome:?}");
}

#[test]
fn files_that_do_not_fit_are_refused() {
    refused("lenghts: [1k]", &["unknown key \"lenghts\"", "did you mean \"lengths\"?"]);
    refused("lengths: [1k]\nsequence_len: 2k", &["sequence_len says what another key has said already"]);
    refused("lengths: [none]", &["lengths", "none is not a count"]);
    refused("mechanisms: [exact]", &["lengths is missing"]);
    refused("mechanisms: [exat]\nlengths: 64", &["unknown mechanism \"exat\"", "exact"]);
    refused("mechanisms: [local: {windw: 3}]\nlengths: 64", &["local has no option \"windw\""]);
    refused("forms: [sideways]\nlengths: 64", &["forms has no value \"sideways\""]);
    refused("passes: [sideways]\nlengths: 64", &["passes has no value \"sideways\""]);
    refused("heads: 3\nkv_heads: 2\nlengths: 64", &["heads is 3", "2 kv_heads"]);
    refused("lengths: [64\n", &["line"]);
    refused("- 3", &["expected keys and values"]);
    refused("lengths: 64\ncaptured: nowhere.safetensors", &["nowhere.safetensors"]);
}
