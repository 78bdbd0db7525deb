//! Vectors of the texts in a JSON file, once for every line of standard input, with the seconds it took as a JSON line.
//!
//! `embed_peer MODEL TEXTS.json VECTORS.safetensors TOKENS`: the side of Regard in `bench/peers/embed_peer.py`. Every turn writes
//! its vectors; tokenizing is part of every turn.

use regard_models::{Folder, Pooling, TextEncoder, batches, cpu};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    Ok(regard::on_pool(|| run().map_err(|error| error.to_string()))?)
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, texts, vectors, most] = &arguments[..] else { return Err("MODEL TEXTS.json VECTORS.safetensors TOKENS".into()) };
    let most = most.parse()?;
    let texts: Vec<String> = serde_json::from_slice(&std::fs::read(texts)?)?;
    let model = TextEncoder::open(&Folder::open(Path::new(model))?, &cpu())?;
    for line in stdin().lock().lines() {
        line?;
        let start = Instant::now();
        let found = embed(&model, &texts, most)?;
        let seconds = start.elapsed().as_secs_f64();
        write(&found, model.encoder.width(), Path::new(vectors))?;
        writeln!(stdout(), "{{\"seconds\": {seconds}}}")?;
    }
    Ok(())
}

fn embed(model: &TextEncoder, texts: &[String], most: usize) -> Result<Vec<f32>, regard_models::Error> {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let tokens = model.tokenizer.encode(&texts)?;
    let mut vectors = Vec::new();
    for batch in batches(&tokens, most) {
        vectors.extend(model.vectors(&tokens[batch], Pooling::Mean, true)?);
    }
    Ok(vectors)
}

fn write(vectors: &[f32], width: usize, path: &Path) -> Result<(), Box<dyn Error>> {
    let bytes: Vec<u8> = vectors.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![vectors.len() / width, width], &bytes)?;
    Ok(serialize_to_file([("embeddings", view)], None, path)?)
}
