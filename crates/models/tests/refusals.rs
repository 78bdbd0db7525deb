//! Bad folders: the file, the tensor and the numbers are named.

mod common;

use burn::tensor::Device;
use common::copy;
use regard_models::{Folder, TextEncoder};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Opening this folder fails and says all of this.
#[track_caller]
fn refused(folder: &Path, fragments: &[&str]) {
    let opened = Folder::open(folder).and_then(|folder| TextEncoder::open(&folder, &Device::flex()));
    let message = opened.expect_err("the folder is bad").to_string();
    for fragment in fragments {
        assert!(message.contains(fragment), "{fragment:?} is not in {message:?}");
    }
}

fn configured(name: &str, key: &str, value: Value) -> tempfile::TempDir {
    let folder = copy(name);
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
    folder
}

#[test]
fn missing_files() {
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let folder = copy("bert");
        fs::remove_file(folder.path().join(file)).unwrap();
        refused(folder.path(), &[file, "missing"]);
    }
    refused(&common::small("bert").join("config.json"), &["not a folder"]);
}

#[test]
fn truncated_files() {
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let whole = fs::read(common::small("bert").join(file)).unwrap();
        for length in [0, 4, 100, whole.len() / 2, whole.len() - 2] {
            let folder = copy("bert");
            fs::write(folder.path().join(file), &whole[..length]).unwrap();
            refused(folder.path(), &[file]);
        }
    }
    let whole = fs::read(common::small("bert").join("model.safetensors")).unwrap();
    let folder = copy("bert");
    fs::write(folder.path().join("model.safetensors"), &whole[..whole.len() - 8]).unwrap();
    refused(folder.path(), &["model.safetensors", &format!("{} bytes", whole.len() - 8), "truncated"]);
    fs::write(folder.path().join("model.safetensors"), [&whole[..], &[0; 8]].concat()).unwrap();
    refused(folder.path(), &["model.safetensors"]);
}

#[test]
fn numbers_that_do_not_fit() {
    let cases = [
        (
            "hidden_size",
            json!(48),
            "tensor \"bert.embeddings.word_embeddings.weight\" has shape [17, 24], the configuration asks for [17, 48]",
        ),
        ("vocab_size", json!(18), "has shape [17, 24], the configuration asks for [18, 24]"),
        ("vocab_size", json!(1u64 << 62), "both are below 2^31"),
        (
            "max_position_embeddings",
            json!(1 << 30),
            "position_embeddings.weight\" has shape [20, 24], the configuration asks for [1073741824, 24]",
        ),
        ("intermediate_size", json!(1u64 << 40), "intermediate.dense.weight\" has shape [40, 24]"),
        ("num_attention_heads", json!(5), "5 heads do not divide a width of 24"),
        ("num_attention_heads", json!(0), "heads 0"),
        ("num_hidden_layers", json!(1u64 << 60), "tensor \"bert.encoder.layer.2.attention.self.query.weight\" is missing"),
        (
            "num_hidden_layers",
            json!(1),
            "tensor \"bert.encoder.layer.1.attention.output.dense.weight\" is there, the configuration has 1 layers",
        ),
        ("num_hidden_layers", json!(-1), "config.json: invalid value"),
        ("hidden_size", json!("wide"), "config.json: invalid type"),
        ("model_type", json!("gpt2"), "unknown architecture \"gpt2\""),
        ("model_type", Value::Null, "no model_type"),
        ("hidden_act", json!("mish"), "unknown activation \"mish\""),
        ("position_embedding_type", json!("relative_key"), "\"relative_key\" is not supported"),
        ("is_decoder", json!(true), "is_decoder"),
        ("layer_norm_eps", json!(-1.0), "layer_norm_eps -1"),
    ];
    for (key, value, fragment) in cases {
        refused(configured("bert", key, value).path(), &[fragment]);
    }
    refused(configured("roberta", "pad_token_id", json!(21)).path(), &["max_position_embeddings 22, but the first token stands at 22"]);
    let missing = configured("distilbert", "model_type", json!("bert"));
    refused(missing.path(), &["missing field `hidden_size`"]);
}

#[test]
fn tensors_of_another_type() {
    let folder = copy("bert");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap().replace("\"F32\"", "\"I32\"");
    fs::write(&path, [&bytes[..8], header.as_bytes(), &bytes[8 + length..]].concat()).unwrap();
    refused(folder.path(), &["model.safetensors", "word_embeddings.weight\" is I32, expected F32, F16 or BF16"]);
}

#[test]
fn a_tokenizer_of_another_model() {
    let folder = copy("bert");
    fs::copy(common::small("roberta").join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    refused(folder.path(), &["tokenizer.json", "has id 265, the model has a vocabulary of 17"]);
}

#[test]
fn names_that_are_nowhere() {
    for name in ["./no/such/folder", "/no/such", "a/b/c", "no such"] {
        let message = Folder::find(name).expect_err("it is nowhere").to_string();
        assert!(message.contains(name) && message.contains("there is no such folder"), "{message}");
    }
}
