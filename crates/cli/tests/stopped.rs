//! What is left behind by a program that is stopped from outside.

#![cfg(unix)]

mod common;

use common::Desk;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Waits until something is so, for a minute at most.
fn wait_until(mut so: impl FnMut() -> bool, what: &str) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Stops a benchmark that has opened its JSON file.
fn stopped_by(signal: &str, number: i32) {
    let desk = Desk::new();
    std::fs::write(desk.path("bench.json"), "old").unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_regard"))
        .args(["bench", "--length", "64k", "--runs", "1000", "--json", desk.path("bench.json").to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("regard starts");
    wait_until(|| desk.files().iter().any(|name| name.starts_with(".regard-")), "no draft was opened");
    let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    wait_until(|| child.try_wait().expect("regard can be waited for").is_some(), "regard did not end");
    assert_eq!(child.wait().unwrap().signal(), Some(number), "{signal}");
    assert_eq!(desk.files(), ["bench.json"], "{signal}");
    assert_eq!(std::fs::read_to_string(desk.path("bench.json")).unwrap(), "old", "{signal}");
}

#[test]
fn an_interrupt_leaves_no_draft_behind() {
    stopped_by("INT", 2);
}

#[test]
fn a_request_to_end_leaves_no_draft_behind() {
    stopped_by("TERM", 15);
}

#[test]
fn a_sweep_that_is_stopped_leaves_what_it_has() {
    let desk = Desk::new();
    let [yaml, json, csv] = ["sweep.yaml", "sweep.json", "sweep.csv"].map(|name| desk.path(name));
    std::fs::write(&yaml, "mechanisms: exact\nlengths: [64, 64k]\nforms: [causal]\npasses: [forward]\nheads: 1\nruns: 100000\n").unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_regard"))
        .args(["bench", "--sweep", yaml.to_str().unwrap(), "--json", json.to_str().unwrap(), "--csv", csv.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("regard starts");
    wait_until(|| json.exists() && csv.exists(), "nothing was written after the first measurement");
    let sent = Command::new("kill").args(["-INT".into(), child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    wait_until(|| child.try_wait().expect("regard can be waited for").is_some(), "regard did not end");
    let mut files = desk.files();
    files.sort();
    assert_eq!(files, ["sweep.csv", "sweep.json", "sweep.yaml"]);
    let written: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!((written["results"].as_array().unwrap().len(), &written["results"][0]["length"]), (1, &64.into()));
    assert_eq!(std::fs::read_to_string(csv).unwrap().lines().count(), 2);
}
