//! `regard embed` on small models of the repository.

mod common;

use common::{Desk, Outcome, regard};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models").join(name)
}

fn golden(name: &str) -> Vec<Value> {
    let text = fs::read(model(name).join("golden.json")).expect("golden.json is there");
    let mut golden: Value = serde_json::from_slice(&text).expect("it is JSON");
    golden["texts"].as_array_mut().expect("texts").split_off(0)
}

/// Runs it on a small model with these further arguments.
fn embed(name: &str, arguments: &[&str]) -> Outcome {
    let model = model(name);
    regard([&["embed", "--model", model.to_str().expect("UTF-8")], arguments].concat())
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(|x| x.as_f64().expect("a number")).collect()
}

#[track_caller]
fn near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(off <= 1e-4, "off by {off}");
}

/// A file with the golden texts as lines.
fn golden_file(desk: &Desk, name: &str) -> String {
    let texts: Vec<String> = golden(name).iter().map(|text| text["text"].as_str().expect("a text").to_owned()).collect();
    let path = desk.path("texts.txt");
    fs::write(&path, texts.join("\n") + "\n").expect("texts are written");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn lines_in_the_order_of_texts() {
    for (name, cut) in [("bert", 1), ("roberta", 2), ("distilbert", 1)] {
        let desk = Desk::new();
        let texts = golden_file(&desk, name);
        for batch in ["1", "16", "1k"] {
            let outcome = embed(name, &["--ids", "--batch", batch, &texts]).done();
            let found = lines(&outcome.stdout);
            let expected = golden(name);
            assert_eq!(found.len(), expected.len());
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found["index"], index);
                assert_eq!(found["ids"], expected["ids"]);
                assert_eq!(found["tokens"], expected["ids"].as_array().expect("ids").len());
                near(&floats(&found["embedding"]), &floats(&expected["embedding"]));
            }
            let warnings: Vec<&str> = outcome.stderr.lines().collect();
            assert_eq!(warnings, [format!("warning: {cut} of 6 texts have more than the model's 20 tokens and were cut")]);
        }
    }
}

#[test]
fn a_file_of_tensors() {
    let desk = Desk::new();
    let texts = golden_file(&desk, "bert");
    embed("bert", &["--output", desk.output().to_str().unwrap(), &texts, &texts]).done();
    let bytes = fs::read(desk.output()).expect("the output is there");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let embeddings = file.tensor("embeddings").expect("embeddings");
    assert_eq!((embeddings.shape(), file.names().len()), (&[12, 24][..], 1));
    let values: Vec<f64> = embeddings.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes).into()).collect();
    for (found, expected) in values.chunks_exact(24).zip(golden("bert").iter().cycle()) {
        near(found, &floats(&expected["embedding"]));
    }
    assert_eq!(desk.files(), ["out.safetensors", "texts.txt"]);
}

#[test]
fn what_a_text_is() {
    let desk = Desk::new();
    let write = |name: &str, text: &str| {
        fs::write(desk.path(name), text).expect("written");
        desk.path(name).to_str().expect("UTF-8").to_owned()
    };
    let tokens = |files: &[&str]| -> Vec<u64> {
        lines(&embed("bert", files).done().stdout).iter().map(|line| line["tokens"].as_u64().expect("a number")).collect()
    };
    let (empty, lines) = (write("empty", ""), write("lines", "a\r\n\nthe cat"));
    assert_eq!(tokens(&[&empty]), [0u64; 0]);
    assert_eq!(tokens(&[&lines, &empty, &lines]), [3, 2, 4, 3, 2, 4]);
    assert_eq!(tokens(&[&write("ended", "a\n\n")]), [3, 2]);
    let output = desk.path("none.safetensors");
    embed("bert", &["--output", output.to_str().unwrap(), &empty]).done();
    let bytes = fs::read(output).expect("the output is there");
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor("embeddings").unwrap().shape(), [0, 24]);
}

#[test]
fn pooling_and_length() {
    let desk = Desk::new();
    let texts = golden_file(&desk, "bert");
    let expected = &golden("bert")[2];
    let found = lines(&embed("bert", &["--pool", "cls", "--no-normalize", &texts]).done().stdout);
    near(&floats(&found[2]["embedding"]), &floats(&expected["hidden"])[..24]);
    let found = lines(&embed("bert", &["--pool", "cls", "--threads", "1", "--level", "portable", &texts]).done().stdout);
    let length = floats(&found[2]["embedding"]).iter().map(|x| x * x).sum::<f64>();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
}

#[test]
fn refusals() {
    let desk = Desk::new();
    let texts = golden_file(&desk, "bert");
    fs::write(desk.path("latin"), b"fine\nfine\nna\xefve\n").expect("written");
    let latin = desk.path("latin").to_str().unwrap().to_owned();
    embed("bert", &[&texts, &latin]).refused(1, &["latin, line 3: not UTF-8"]);
    embed("bert", &["no such file"]).refused(1, &["cannot read no such file"]);
    embed("bert", &["--output", "/no/such/folder/x.safetensors", &texts]).refused(1, &["cannot write /no/such/folder/x.safetensors"]);
    embed("bert", &["--ids", "--output", "x.safetensors", &texts]).refused(2, &["--ids"]);
    embed("bert", &["--batch", "0", &texts]).refused(2, &["--batch"]);
    embed("bert", &["--pool", "max", &texts]).refused(2, &["mean", "cls"]);
    embed("no/such/model", &[&texts]).refused(1, &["there is no such folder"]);
    let kept = desk.path("kept.jsonl");
    fs::write(&kept, "before").expect("written");
    embed("bert", &["--output", kept.to_str().unwrap(), &latin]).refused(1, &["line 3"]);
    assert_eq!(fs::read_to_string(&kept).unwrap(), "before");
    assert_eq!(desk.files(), ["kept.jsonl", "latin", "texts.txt"]);
    let missing = regard(["embed", "--model", "./no/such", &texts]);
    missing.refused(1, &["./no/such", "there is no such folder"]);
}
