//! The definition against results that PyTorch computed.

mod common;

use common::{Bundle, Desk};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

const RESULTS: [&str; 8] = ["o", "lse", "received", "dq", "dk", "dv", "dkey_bias", "dbias"];

#[test]
fn every_golden_file_is_reproduced() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/exact");
    let files = fs::read_dir(folder).expect("golden/exact is there");
    let mut count = 0;
    for path in files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|end| end == "safetensors")) {
        check(&path);
        count += 1;
    }
    assert!(count >= 19, "only {count} golden files");
}

fn check(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let golden = Bundle::read(path);
    let desk = Desk::with_bytes(&bytes);
    let found = desk.results(&format!("--mechanism exact --gradients --received {}", flags(&bytes)));
    for name in RESULTS {
        let expected_name = format!("expected_{name}");
        if !golden.names().contains(&expected_name.as_str()) {
            continue;
        }
        let (values, expected) = (found.values(name), golden.values(&expected_name));
        assert_eq!(values.len(), expected.len(), "{name} of {}", path.display());
        for (at, (a, b)) in values.iter().zip(&expected).enumerate() {
            let close = a == b || (a - b).abs() <= 1e-11 * (1.0 + b.abs());
            assert!(close, "{name}[{at}] of {} is {a}, not {b}", path.display());
        }
    }
}

/// The options in the file's metadata as flags.
fn flags(bytes: &[u8]) -> String {
    let (_, metadata) = safetensors::SafeTensors::read_metadata(bytes).expect("the file is valid");
    let options: HashMap<String, String> = metadata.metadata().clone().unwrap_or_default();
    let flag = |(key, value): (&String, &String)| match key.as_str() {
        "causal" if value.eq_ignore_ascii_case("true") => "--causal".to_owned(),
        "causal" => String::new(),
        _ => format!("--set {key}={}", value.to_lowercase()),
    };
    options.iter().map(flag).collect::<Vec<_>>().join(" ")
}
