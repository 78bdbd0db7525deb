//! `regard train`, `regard eval` and `regard compare`, as people call them.

mod common;

use common::{Outcome, regard};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use tempfile::TempDir;

const CONFIG: &str = "
task: {name: copy, symbols: 4, delay: 2, alphabet: 8}
model: {width: 16, layers: 1, heads: 2}
train: {batch: 8, steps: 60, warm_up: 5, evaluate_every: 20, evaluate_examples: 16, checkpoint_every: 7, log_every: 1}
";

struct Desk(TempDir);

impl Desk {
    fn new(config: &str) -> Self {
        let desk = Desk(tempfile::tempdir().expect("a temporary folder"));
        fs::write(desk.config(), config).expect("the configuration is written");
        desk
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("config.yaml")
    }

    fn run(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn train(&self, name: &str, more: &[&str]) -> Outcome {
        regard(self.arguments(name, more))
    }

    fn arguments(&self, name: &str, more: &[&str]) -> Vec<String> {
        let (config, run) = (self.config(), self.run(name));
        let mut all = vec!["train".to_owned(), text(&config), "--output".into(), text(&run)];
        all.extend(more.iter().map(|&word| word.to_owned()));
        all
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("the path is UTF-8").to_owned()
}

/// Lines of metrics without the one thing that a second run does not repeat.
fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("there are metrics");
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).expect("a line is JSON");
        line.as_object_mut().expect("an object").remove("tokens_per_s");
        line
    };
    text.lines().map(line).collect()
}

#[test]
fn a_run_leaves_a_record_that_a_page_is_made_of() {
    let desk = Desk::new(CONFIG);
    let page = desk.run("page.html");
    let done = desk.train("run", &["--report", &text(&page)]).done();
    assert!(done.stdout.contains("on the test split") && done.stderr.contains("fingerprint"), "{done:?}");
    let record: Value = serde_json::from_str(&fs::read_to_string(desk.run("run").join("record.json")).unwrap()).unwrap();
    assert_eq!(record["schema"], "regard/training-run/1");
    assert_eq!(record["task"]["name"], "copy");
    assert_eq!(record["configuration"]["runs"][0]["steps"], 60);
    let curve = record["configuration"]["runs"][0]["curve"].as_array().unwrap();
    assert_eq!(curve.len(), 60);
    assert!(curve[19]["validation_loss"].is_number());
    assert!(fs::read_to_string(page).unwrap().starts_with("<!doctype html>"));
    regard(["report", &text(&desk.run("run").join("record.json")), "--output", &text(&desk.run("again.html"))]).done();
    let eval = regard(["eval", &text(&desk.run("run")), "--json"]).done();
    let eval: Value = serde_json::from_str(&eval.stdout).unwrap();
    assert_eq!(eval["quality"], record["configuration"]["runs"][0]["quality"]);
    let near = regard(["eval", &text(&desk.run("run")), "--attention", "local", "--set", "window=1", "--json"]).done();
    let near: Value = serde_json::from_str(&near.stdout).unwrap();
    assert_ne!(eval["loss"], near["loss"], "a token that sees itself alone says something else");
}

/// Ten kills that no handler sees, at moments that a fixed sequence gives.
#[test]
fn a_run_that_is_killed_ten_times_ends_as_if_nothing_had_been() {
    let desk = Desk::new(CONFIG);
    let steps = ["--set", "train.steps=6000"];
    desk.train("whole", &steps).done();
    let mut moment = 12_345u64;
    let mut killed = 0;
    while killed < 10 {
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let more = [steps[0], steps[1], "--resume"];
        let mut child = Command::new(env!("CARGO_BIN_EXE_regard"))
            .args(desk.arguments("pieces", &more))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("regard starts");
        sleep(Duration::from_millis(20 + (moment >> 33) % 180));
        let running = child.try_wait().expect("it can be asked").is_none();
        child.kill().ok();
        child.wait().expect("it ends");
        killed += 1;
        assert!(running, "kill {killed} came too late: make the run longer");
        assert_readable(&desk.run("pieces"));
    }
    let last = desk.train("pieces", &[steps[0], steps[1], "--resume"]).done();
    assert!(last.stdout.contains("6000 steps"), "{last:?}");
    assert_eq!(metrics(&desk.run("whole")), metrics(&desk.run("pieces")));
    assert_eq!(metrics(&desk.run("whole")).iter().filter(|line| line["loss"].is_number()).count(), 6000);
}

/// Every checkpoint under its own name is whole.
fn assert_readable(run: &Path) {
    let Ok(entries) = fs::read_dir(run.join("checkpoints")) else { return };
    let steps: Vec<PathBuf> =
        entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| text(path).contains("step-")).collect();
    if steps.is_empty() {
        return;
    }
    for path in &steps {
        let state: Value =
            serde_json::from_str(&fs::read_to_string(path.join("state.json")).expect("there is a state")).expect("it is whole");
        assert!(text(path).ends_with(&format!("step-{:08}", state["step"].as_u64().unwrap())), "{}", path.display());
    }
    regard(["eval", &text(run), "--examples", "8"]).done();
}

#[test]
fn nothing_is_overwritten_without_a_word() {
    let desk = Desk::new(CONFIG);
    desk.train("run", &["--set", "train.steps=3"]).done();
    desk.train("run", &["--set", "train.steps=3"]).refused(1, &["is not empty", "--resume"]);
    desk.train("run", &["--set", "train.steps=3", "--set", "train.rate=0.5", "--resume"]).refused(1, &["a run of another configuration"]);
    desk.train("run", &["--set", "train.steps=3", "--set", "model.width=32", "--resume"]).refused(1, &["a run of another configuration"]);
    desk.train("run", &["--set", "train.steps=3", "--resume"]).done();
}

#[test]
fn what_is_wrong_in_a_configuration_is_named() {
    let desk = Desk::new(CONFIG);
    let refused = |set: &str, fragments: &[&str]| {
        let outcome = desk.train("wrong", &["--set", set]);
        outcome.refused(1, fragments);
        assert!(!desk.run("wrong").exists(), "nothing is written");
    };
    refused("train.lerning_rate=1", &["config.yaml: train.lerning_rate: unknown key, did you mean"]);
    refused("train.rate=fast", &["train.rate: invalid type"]);
    refused("model.heads=3", &["model.heads: a width of 16 does not divide over 3 heads"]);
    refused("attention=locl", &["unknown mechanism \"locl\", did you mean \"local\"?"]);
    refused("task.alfabet=3", &["task.alfabet: is no key of copy, did you mean \"alphabet\"?"]);
    refused("task.name=recal", &["did you mean \"recall\"?"]);
    refused("layers=3", &["layers: unknown key"]);
    desk.train("wrong", &["--set", "train"]).refused(2, &["is not of the form key=value"]);
    fs::write(desk.config(), "task: {name: copy\n").unwrap();
    desk.train("wrong", &[]).refused(1, &["config.yaml", "line"]);
    fs::remove_file(desk.config()).unwrap();
    desk.train("wrong", &[]).refused(1, &["config.yaml"]);
    regard(["eval", &text(&desk.run("nothing"))]).refused(1, &["nothing"]);
}

#[test]
fn configurations_are_compared_and_what_is_finished_is_kept() {
    let desk = Desk::new(&format!("{CONFIG}seeds: [0, 1]\nconfigurations: [exact, {{mechanism: local, window: 2}}]\nlengths: [64]\n"));
    let run = desk.run("runs");
    let call = |more: &[&str]| {
        let mut all = vec!["compare".to_owned(), text(&desk.config()), "--output".into(), text(&run)];
        all.extend(more.iter().map(|&word| word.to_owned()));
        regard(all)
    };
    let done = call(&[]).done();
    assert!(done.stdout.contains("exact") && done.stdout.contains("local") && done.stdout.contains("infer 64"), "{done:?}");
    let record: Value = serde_json::from_str(&fs::read_to_string(run.join("record.json")).unwrap()).unwrap();
    assert_eq!(record["schema"], "regard/compare/1");
    let configurations = record["configurations"].as_array().unwrap();
    assert_eq!(configurations.iter().map(|each| each["runs"].as_array().unwrap().len()).collect::<Vec<_>>(), [2, 2]);
    assert!(configurations[0]["difference"].is_null());
    let difference = &configurations[1]["difference"];
    let mean =
        |at: usize| configurations[at]["runs"].as_array().unwrap().iter().map(|run| run["quality"].as_f64().unwrap()).sum::<f64>() / 2.0;
    assert!((difference["mean"].as_f64().unwrap() - (mean(1) - mean(0))).abs() < 1e-6, "{difference}");
    assert!(difference["low"].as_f64().unwrap() <= difference["mean"].as_f64().unwrap());
    call(&[]).refused(1, &["is not empty", "--resume"]);
    let again = call(&["--resume"]).done();
    assert!(again.stderr.contains("finished before"), "{again:?}");
    call(&["--resume", "--set", "train.steps=61"]).refused(1, &["result of another configuration"]);
}

#[test]
fn two_configurations_of_one_name_are_refused() {
    let desk = Desk::new(&format!("{CONFIG}configurations: [local, {{mechanism: local, window: 2}}]\n"));
    regard(["compare", &text(&desk.config())]).refused(1, &["two are named \"local\""]);
}
