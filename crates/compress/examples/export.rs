//! Writes the model of a run on language as this crate embeds it: `outline.json`, `model.safetensors` in half precision, `tokenizer.json`.
//!
//! ```sh
//! regard train configs/encoder.yaml --data FOLDER --output runs/encoder
//! cargo run --release -p regard-compress --example export -- runs/encoder crates/compress/model
//! ```

use regard_lab::experiment::Experiment;
use regard_lab::model::Outline;
use regard_lab::task::Inputs;
use regard_lab::train::load_kept;
use std::error::Error;
use std::fs;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [run, output] = &arguments[..] else { return Err("export RUN FOLDER".into()) };
    let (run, output) = (Path::new(run), Path::new(output));
    let experiment = Experiment::reopen(run)?;
    let opened = &experiment.opened;
    let facts = opened.task.facts();
    let Inputs::Tokens { vocabulary } = facts.inputs else { return Err("the run's task has no tokens".into()) };
    let written = experiment.run.json();
    let outline = Outline {
        model: written["model"].as_object().cloned().ok_or("the run's model has no sizes")?,
        attention: written["attention"].clone(),
        vocabulary,
        longest: facts.longest,
        causal: facts.causal,
    };
    let (model, _) = load_kept(&experiment.run, &*opened.task, run)?;
    fs::create_dir_all(output)?;
    fs::write(output.join("outline.json"), serde_json::to_string_pretty(&outline)? + "\n")?;
    fs::write(output.join("model.safetensors"), model.weights()?)?;
    if let Some(tokens) = opened.written["tokens"]["model"].as_str() {
        let (from, to) = (opened.base.join(tokens).join("tokenizer.json"), output.join("tokenizer.json"));
        if !to.exists() {
            fs::copy(from, to)?;
        }
    }
    Ok(())
}
