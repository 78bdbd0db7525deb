//! `regard report`: records in, a page out, and what happens to a page that was there when something is wrong.

mod common;

use common::{Desk, Outcome, regard};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn committed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/records").join(name)
}

fn report(records: &[&Path], output: &Path) -> Outcome {
    let arguments = ["report", "--output", output.to_str().unwrap()].map(str::to_owned);
    regard(arguments.into_iter().chain(records.iter().map(|path| path.display().to_string())))
}

/// A record with this text beside a page that is there already is refused, and the page stays.
#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let desk = Desk::new();
    let (record, page) = (desk.path("record.json"), desk.path("page.html"));
    fs::write(&record, text).unwrap();
    fs::write(&page, "what was there").unwrap();
    report(&[&committed("2026-11-23-bench.json"), &record], &page).refused(1, words);
    assert_eq!(fs::read_to_string(&page).unwrap(), "what was there");
    assert_eq!(desk.files(), ["page.html", "record.json"]);
}

#[test]
fn a_page_says_what_its_records_say() {
    let desk = Desk::new();
    let page = desk.path("page.html");
    let outcome = report(&[&committed("2026-11-23-bench.json"), &committed("2026-11-26-clustered.json")], &page).done();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", ""));
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.starts_with("<!doctype html>") && text.ends_with("</html>\n"));
    let record: Value = serde_json::from_str(&fs::read_to_string(committed("2026-11-23-bench.json")).unwrap()).unwrap();
    assert!(text.contains(record["machine"]["commit"].as_str().unwrap()));
    assert!(text.contains("regard bench --mechanism exact --pass forward,backward,decode --length 512,1024,2048,4096,8192,16384"));
}

#[test]
fn what_sweep_measures_report_shows() {
    let desk = Desk::new();
    let (yaml, json, page) = (desk.path("sweep.yaml"), desk.path("sweep.json"), desk.path("page.html"));
    fs::write(&yaml, "mechanisms: [exact, local: {window: 16}]\nlengths: [64, 128]\nheads: 2\nhead_dim: 16\nruns: 1\n").unwrap();
    let arguments = format!("bench --sweep {} --json {}", yaml.display(), json.display());
    regard(arguments.split(' ')).done();
    report(&[&json], &page).done();
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("Forward and backward, causal: f32, batch 1, 2 heads, width 16"));
    assert!(text.contains(&format!("<dt>Command</dt><dd>regard {arguments}</dd>")) && text.contains("<dt>Seeds</dt><dd>0</dd>"));
    let record: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    for result in record["results"].as_array().unwrap() {
        assert!(text.contains(&result["median_s"].to_string()), "{result}");
    }
}

#[test]
fn an_existing_page_is_kept_when_a_record_is_wrong() {
    refused("{", &["record.json is not JSON", "line 1"]);
    refused("[]", &["record.json: the record: found a list of 0, expected an object"]);
    refused(r#"{"schema": "regard/bench/2"}"#, &["record.json", "found \"regard/bench/2\"", "expected one of regard/bench/1"]);
    refused(r#"{"schema": "regard/peer/1"}"#, &["found \"regard/peer/1\"", "regard/compare/1"]);
    refused(r#"{"schema": "regard/bench/1", "machine": {}}"#, &["record.json: results: found nothing, expected a list"]);
    refused(
        r#"{"schema": "regard/bench/1", "machine": {}, "results": [{"mechanism": 3}]}"#,
        &["record.json: results[0].mechanism: found 3, expected text"],
    );
}

#[test]
fn files_that_are_not_there_or_cannot_be_written_are_named() {
    let desk = Desk::new();
    let record = committed("2026-11-23-bench.json");
    report(&[&desk.path("nowhere.json")], &desk.path("page.html")).refused(1, &["cannot read", "nowhere.json"]);
    report(&[&record], &desk.path("no/folder/page.html")).refused(1, &["cannot write", "page.html", "does the folder exist"]);
    fs::create_dir(desk.path("folder")).unwrap();
    report(&[&record], &desk.path("folder")).refused(1, &["folder", "not a regular file"]);
    fs::write(desk.path("bytes.json"), [0xff, 0xfe]).unwrap();
    report(&[&desk.path("bytes.json")], &desk.path("page.html")).refused(1, &["cannot read", "bytes.json"]);
    assert_eq!(desk.files(), ["bytes.json", "folder"]);
}

#[test]
fn records_and_an_output_are_needed() {
    regard(["report"]).refused(2, &["--output", "RECORD"]);
    regard(["report", "--output", "page.html"]).refused(2, &["RECORD"]);
    regard(["report", "record.json"]).refused(2, &["--output"]);
    let help = regard(["report", "--help"]).done().stdout;
    assert!(help.contains("regard report sweep.json --output page.html"), "{help}");
}
