//! `regard bench --sweep`: a file in YAML, small sizes.

mod common;

use common::{Desk, bundle, filled, problem, regard};
use regard_core::oracle::Definition;
use safetensors::Dtype;
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

/// Goes on with what [`swept`] wrote.
fn resume(desk: &Desk, yaml: &str, more: &str) -> common::Outcome {
    let (file, json, csv) = (desk.path("sweep.yaml"), desk.path("sweep.json"), desk.path("sweep.csv"));
    fs::write(&file, yaml).unwrap();
    let arguments = format!("bench --sweep {} --json {} --csv {} --resume{more}", file.display(), json.display(), csv.display());
    regard(arguments.split(' '))
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
fn gradients_of_calls_too_large_for_a_definition_are_those_of_their_first_tokens() {
    let yaml = "
mechanisms: [exact, linear, gated_linear, clustered, vq: {codebook_size: 32, block: 64}, vq_qk: {codebook_size_q: 32}, hyper: {min_len: 64, block: 32, samples: 32}]
lengths: [700]
passes: [backward]
forms: [causal]
heads: 4
kv_heads: 2
head_dim: 32
runs: 1
";
    let (json, _) = swept(&Desk::new(), yaml);
    for result in json["results"].as_array().unwrap() {
        assert!(result["error"]["rel_l2"].as_f64().is_some_and(|error| error > 0.0 && error < 1e-4), "{result}");
        let length = result["error"]["length"].as_u64();
        assert_eq!(length, (result["mechanism"] != "exact").then_some(279), "{result}");
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
fn a_sweep_goes_on_where_it_was() {
    let desk = Desk::new();
    let (mut json, csv) = swept(&desk, SMALL);
    let names = |json: &Value| {
        let name = |r: &Value| format!("{} {} {} {}", r["mechanism"], r["pass"], r["length"], r["causal"]);
        json["results"].as_array().unwrap().iter().map(name).collect::<Vec<_>>()
    };
    let (all, machine) = (names(&json), json["machine"].clone());
    let results = json["results"].as_array_mut().unwrap();
    results.truncate(20);
    results.remove(3);
    for result in &mut *results {
        result["median_s"] = 1234.5.into();
    }
    fs::write(desk.path("sweep.json"), json.to_string()).unwrap();
    let outcome = resume(&desk, SMALL, "").done();
    assert_eq!(outcome.stdout.matches("1234.50 s").count(), 19, "{outcome:?}");
    let json: Value = serde_json::from_str(&fs::read_to_string(desk.path("sweep.json")).unwrap()).unwrap();
    assert_eq!((names(&json), &json["machine"]), (all, &machine));
    let kept = json["results"].as_array().unwrap().iter().map(|result| result["median_s"] == 1234.5);
    assert_eq!(kept.enumerate().filter(|(_, kept)| !kept).map(|(at, _)| at).collect::<Vec<_>>(), [3, 20, 21, 22, 23]);
    assert_eq!(fs::read_to_string(desk.path("sweep.csv")).unwrap().lines().count(), csv.lines().count());

    // What is asked for no longer is not thrown away, and other options are measured.
    let other = SMALL.replace("window: 16", "window: 17").replace("[64, 128, 256]", "64");
    resume(&desk, &other, "").done();
    let json: Value = serde_json::from_str(&fs::read_to_string(desk.path("sweep.json")).unwrap()).unwrap();
    let windows = json["results"].as_array().unwrap().iter().filter(|result| result["options"]["window"] == 17).count();
    assert_eq!((json["results"].as_array().unwrap().len(), windows), (24 + 4, 4));
}

#[test]
fn a_sweep_does_not_go_on_with_what_was_measured_on_something_else() {
    let desk = Desk::new();
    fs::write(desk.path("sweep.json"), "{}").unwrap();
    resume(&desk, SMALL, "").refused(1, &["cannot go on with", "sweep.json"]);
    fs::remove_file(desk.path("sweep.json")).unwrap();
    let small = SMALL.replace("[64, 128, 256]", "64");
    resume(&desk, &small, "").done();
    let written = fs::read_to_string(desk.path("sweep.json")).unwrap();
    resume(&desk, &format!("{small}seed: 3\n"), "").refused(1, &["other inputs (seed"]);
    resume(&desk, &small, " --level portable").refused(1, &["level is", "here it is portable"]);
    assert_eq!(fs::read_to_string(desk.path("sweep.json")).unwrap(), written);
    let yaml = desk.path("sweep.yaml").display().to_string();
    regard(["bench", "--sweep", &yaml, "--resume"]).refused(2, &["--resume needs --json FILE"]);
    regard(["bench", "--resume"]).refused(2, &["--sweep"]);
}

#[test]
fn a_file_of_tensors_is_swept() {
    let sizes = Definition { batch: 1, queries: 40, keys: 40, ..problem(1) };
    let desk = Desk::with(&bundle(&filled(sizes, 1), Dtype::F32));
    let name = desk.input().file_name().unwrap().to_string_lossy().into_owned();
    let yaml = format!("mechanisms: [local: {{window: 8}}]\nlengths: [16, 100]\nforms: [causal]\nruns: 1\ntensors: {name}\n");
    let (json, _) = swept(&desk, &yaml);
    assert!(json["inputs"]["tensors"].as_str().unwrap().ends_with(&name), "{json}");
    let results = json["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    for result in results {
        assert_eq!((&result["heads"], &result["kv_heads"]), (&Value::from(4), &Value::from(2)));
        assert!(result["approximation"]["captured"]["max_abs"].is_number(), "{result}");
    }
    let (json, _) = swept(&desk, &yaml.replace("lengths: [16, 100]\n", ""));
    assert!(json["results"].as_array().unwrap().iter().all(|result| result["length"] == 40), "{json}");
    for key in ["heads: 4", "value_dim: 8", "captured: x.safetensors"] {
        fs::write(desk.path("sweep.yaml"), format!("{yaml}{key}\n")).unwrap();
        let outcome = regard(["bench", "--sweep", &desk.path("sweep.yaml").display().to_string()]);
        outcome.refused_after(1, &["says what the file of tensors says already"]);
    }
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
