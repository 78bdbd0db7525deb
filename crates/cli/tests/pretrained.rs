//! Encoders of checkpoints in `regard train`, and `regard compare --model`, as people call them.

mod common;

use common::{Desk, Outcome, regard};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn encoder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models").join(name).canonicalize().expect("it is there")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

/// A table of texts with a label that a word decides, and a configuration that starts from a small encoder.
fn desk(more: &str) -> Desk {
    let desk = Desk::new();
    let words = ["the", "a", "dog", "mat", "cat"];
    let row = |index: usize| {
        let text: Vec<&str> = (0..7).map(|at| words[(index * 31 + at * at * 7 + index / (at + 1)) % 5]).collect();
        format!("{}\t{}\n", if text.contains(&"cat") { "yes" } else { "no" }, text.join(" "))
    };
    let table = |rows: std::ops::Range<usize>| format!("label\ttext\n{}", rows.map(row).collect::<String>());
    fs::write(desk.path("train.tsv"), table(0..120)).expect("it is written");
    fs::write(desk.path("other.tsv"), table(200..220)).expect("it is written");
    let bert = encoder("bert");
    let config = format!(
        "task: {{name: classify, train: train.tsv, tokens: {{model: {0}}}, longest: 20}}\nmodel: {{from: {0}}}\n\
         train: {{batch: 8, steps: 12, warm_up: 2, evaluate_every: 6, log_every: 1}}\n{more}",
        bert.display()
    );
    fs::write(desk.path("config.yaml"), config).expect("it is written");
    desk
}

fn train(desk: &Desk, output: &str, more: &[&str]) -> Outcome {
    let (config, output) = (desk.path("config.yaml"), desk.path(output));
    regard([&["train", text(&config), "--output", text(&output)], more].concat())
}

fn json(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).expect("it is JSON")
}

#[test]
fn an_encoder_is_tuned_evaluated_and_swapped() {
    let desk = desk("");
    let run = desk.path("run");
    let record = json(&train(&desk, "run", &["--json"]).done());
    let frozen = json(&train(&desk, "frozen", &["--json", "--set", "model.train=new"]).done());
    let parameters = |record: &Value| record["configuration"]["parameters"].as_u64().expect("a count");
    assert_eq!(parameters(&frozen), 2 * 24 + 24 * 2 + 2);
    assert!(parameters(&record) > 5000);
    let quality = &record["configuration"]["runs"][0]["quality"];
    assert_eq!(&json(&regard(["eval", text(&run), "--json"]).done())["quality"], quality);

    let swapped = regard(["compare", "--model", text(&run), "--json"]).done();
    let all = json(&swapped);
    assert_eq!(all["schema"], "regard/compare/1");
    let names: Vec<&str> = all["configurations"].as_array().expect("a list").iter().map(|each| each["name"].as_str().unwrap()).collect();
    assert!(names[0] == "exact" && names.contains(&"hyper") && names.contains(&"tome") && !names.contains(&"vq"), "{names:?}");
    assert_eq!(&all["configurations"][0]["runs"][0]["quality"], quality);
    let page = desk.path("page.html");
    let other = desk.path("other.tsv");
    let two = ["compare", "--model", text(&run), "--attention", "exact,local", "--set", "local.window=1"];
    let table = regard([&two[..], &["--data", text(&other), "--report", text(&page)]].concat()).done();
    assert!(table.stderr.contains("test 20") && table.stdout.contains("local"), "{table:?}");
    assert!(fs::read_to_string(page).expect("a page").starts_with("<!doctype html>"));

    let taught =
        train(&desk, "taught", &["--json", "--set", "train.distil={from: run}", "--set", "attention={mechanism: local, window: 2}"]);
    assert!(json(&taught.done())["configuration"]["runs"][0]["quality"].is_number());
}

#[test]
fn others_start_as_exact_attention() {
    let desk = desk("start: exact\nconfigurations: [{mechanism: local, window: 1}, exact]\n");
    let (config, runs) = (desk.path("config.yaml"), desk.path("runs"));
    let call = |more: &[&str]| regard([&["compare", text(&config), "--output", text(&runs)], more].concat());
    let done = call(&[]).done();
    assert!(done.stdout.contains("zero-shot"), "{done:?}");
    let record: Value = serde_json::from_str(&fs::read_to_string(runs.join("record.json")).expect("a record")).expect("JSON");
    assert!(record["configurations"][0]["runs"][0]["zero_shot"].is_number(), "{record}");
    assert!(record["configurations"][1]["runs"][0]["zero_shot"].is_null(), "{record}");
    assert!(call(&["--resume"]).done().stderr.contains("finished before"));
    regard(["compare", text(&config), "--set", "lengths=[64]"]).refused_after(1, &["64 tokens", "20 positions"]);
}

#[test]
fn vectors_of_an_encoder_are_compared() {
    let desk = desk("");
    let (bert, file) = (encoder("bert"), desk.path("texts.txt"));
    fs::write(&file, "the cat sat on the mat\na dog\n\nthe dog ran on , on a mat .\n").expect("it is written");
    let call = |more: &[&str]| regard([&["compare", "--model", text(&bert)], more].concat());
    let table = call(&["--data", text(&file)]).done();
    assert!(table.stdout.contains("mean cosine") && table.stdout.contains("4 texts"), "{table:?}");
    let record = json(&call(&["--data", text(&file), "--attention", "exact,local,prune", "--set", "prune.keep=0.5", "--json"]).done());
    assert_eq!((&record["schema"], &record["task"]["metric"]), (&Value::from("regard/compare/1"), &Value::from("cosine to exact")));
    let run = |at: usize| &record["configurations"][at]["runs"][0];
    assert_eq!((&run(0)["quality"], &run(0)["worst"]), (&Value::from(1.0), &Value::from(1.0)));
    assert!(run(2)["worst"].as_f64() <= run(2)["quality"].as_f64() && run(2)["tokens_kept"][1].as_f64() < Some(0.7), "{record}");
    let rows = json(&call(&["--data", text(&desk.path("train.tsv")), "--attention", "exact", "--json"]).done());
    assert!(rows["configurations"][0]["runs"][0]["inference"][0]["tokens_per_s"].as_f64() > Some(0.0), "{rows}");

    call(&[]).refused(2, &["--data FILE is missing"]);
    call(&["--data", text(&file), "--attention", "vq"]).refused(1, &["vq does not fit into an encoder: it learns codebook"]);
    call(&["--data", text(&file), "--attention", "locl"]).refused(2, &["did you mean \"local\"?"]);
    call(&["--data", text(&file), "--attention", "exact,local", "--set", "window=3"]).refused(2, &["could be of several"]);
    regard(["compare", "--model", text(&desk.path("none")), "--data", text(&file)]).refused(1, &["none: not a folder"]);
    regard(["compare", text(&desk.path("config.yaml")), "--model", text(&bert)]).refused(2, &["cannot be used with"]);
    regard(["compare", "--attention", "exact"]).refused(2, &["--model"]);
    let embed = ["embed", "--model", text(&bert), "--mechanism", "vq", text(&file)];
    regard(embed).refused(2, &["vq does not fit into an encoder"]);
}

#[test]
fn another_vocabulary_and_missing_folders_are_named() {
    let desk = desk("");
    let refused = |set: &str, fragments: &[&str]| train(&desk, "wrong", &["--set", set]).refused_after(1, fragments);
    let tokens = format!("task.tokens={{model: {}}}", encoder("roberta").display());
    refused(&tokens, &["config.yaml: task.tokens: the tokenizer of", "roberta is not that of the model"]);
    refused("model.from=no/such", &["no/such"]);
    refused("train.distil={from: no/such}", &["no/such"]);
    refused("model.width=32", &["model.width: unknown key"]);
}
