//! `regard list`, and what every verb says about itself.

mod common;

use common::{Desk, regard};
use regard_core::mechanism::Mechanism;
use regard_core::reduce::Reducer;
use serde_json::Value;
use std::fs;

#[test]
fn json_holds_what_the_contract_says() {
    let text = regard(["list", "--json"]).done().stdout;
    assert!(text.trim_start().trim_start_matches('{').trim_start().starts_with("\"schema\""));
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list["schema"], "regard/list/1");
    assert_eq!(list["caches"], Value::Array(vec![]));
    let reducers = list["reducers"].as_array().unwrap();
    assert!(reducers.iter().map(|entry| entry["name"].as_str().unwrap()).eq(Reducer::ALL.iter().map(|about| about.name)));
    assert!(reducers.iter().all(|entry| entry["tensors"].as_array().unwrap().contains(&"x".into())));
    let mechanisms = list["mechanisms"].as_array().unwrap();
    assert_eq!(mechanisms.len(), Mechanism::ALL.len());
    for (entry, about) in mechanisms.iter().zip(Mechanism::ALL) {
        assert_eq!(entry["name"], about.name);
        assert!(["optional", "required", "never"].contains(&entry["causal"].as_str().unwrap()));
        assert_eq!(entry["tensors"].as_array().unwrap().len(), about.tensors.len());
        assert_eq!(entry["traces"].as_array().unwrap().len(), about.traces.len());
        for (option, about) in entry["options"].as_array().unwrap().iter().zip(about.options) {
            assert_eq!((&option["name"], &option["type"]), (&Value::from(about.name), &Value::from(about.kind)));
            assert_eq!(option["default"].is_null(), about.default.is_empty());
        }
    }
}

#[test]
fn json_goes_to_a_file_if_one_is_named() {
    let desk = Desk::new();
    let path = desk.path("list.json");
    let stdout = regard(["list", "--json", path.to_str().unwrap()]).done().stdout;
    assert!(stdout.contains("exact") && !stdout.contains("schema"));
    let list: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(list["schema"], "regard/list/1");
    assert_eq!(desk.files(), ["list.json"]);
}

#[test]
fn people_get_every_name() {
    let text = regard(["list"]).done().stdout;
    for about in Mechanism::ALL {
        assert!(text.contains(about.name) && text.contains(about.about));
        assert!(about.options.iter().all(|option| text.contains(option.name)));
    }
    assert!(Reducer::ALL.iter().all(|about| text.contains(about.name) && text.contains(about.about)));
}

#[test]
fn the_version_names_the_level() {
    let text = regard(["--version"]).done().stdout;
    let level = regard_core::simd::Level::detect();
    assert!(text.starts_with(&format!("regard {} (level {level}", env!("CARGO_PKG_VERSION"))), "{text}");
}

#[test]
fn every_help_ends_with_an_example() {
    for verb in ["", "list", "attend", "bench", "embed", "compress", "train", "eval", "compare", "report", "completions"] {
        let arguments = [verb, "--help"].into_iter().filter(|argument| !argument.is_empty());
        let text = regard(arguments).done().stdout;
        assert!(text.lines().last().unwrap().starts_with("  regard "), "{text}");
    }
}

#[test]
fn a_call_without_a_verb_is_a_usage_error() {
    let outcome = regard::<_, &str>([]);
    assert_eq!(outcome.code, 2);
    assert!(outcome.stderr.contains("Usage: regard"), "{outcome:?}");
    regard(["atend"]).refused(2, &["attend"]);
}

#[test]
fn shells_complete() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(regard(["completions", shell]).done().stdout.contains("mechanism"));
    }
    regard(["completions", "basic"]).refused(2, &["basic"]);
}
