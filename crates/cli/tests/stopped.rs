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
