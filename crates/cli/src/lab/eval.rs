//! `regard eval`: a trained model on a split of its task, with the mechanism it was trained with or with another.

use super::{describe, refuse};
use crate::arguments::{Execution, Json};
use crate::compress::evaluate::{self, Sources};
use crate::failure::Failure;
use crate::output::{self, JsonTarget};
use clap::{Args, ValueEnum};
use regard_lab::experiment::Experiment;
use regard_lab::model::Mixing;
use regard_lab::section::plain;
use regard_lab::task::Split;
use regard_lab::train::{Scope, load_kept};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Evaluate a trained model
#[derive(Args)]
#[command(
    after_help = "With another mechanism the parameters stay as they are: how much of the quality is left shows how near it is to the one trained with.

Examples:
  regard eval runs/shakespeare
  regard eval runs/shakespeare --attention local --set window=32
  regard eval --task compression --classifier runs/reviews --model sentence-transformers/all-MiniLM-L6-v2 --books chapters.txt"
)]
pub struct Eval {
    /// Folder of a run that regard train made
    #[arg(value_name = "DIR", required_unless_present = "task", conflicts_with = "task")]
    run: Option<PathBuf>,
    /// Evaluate something else: compression, what is left of texts when words are left out
    #[arg(long, value_enum)]
    task: Option<Other>,
    /// The split
    #[arg(long, value_enum, default_value_t = Part::Test)]
    split: Part,
    /// Examples at most
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    examples: u64,
    /// Another mechanism, as regard list names it
    #[arg(long, value_name = "NAME")]
    attention: Option<String>,
    /// Set an option of the mechanism
    #[arg(long, value_name = "KEY=VALUE", requires = "attention")]
    set: Vec<String>,
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    pub execution: Execution,
}

#[derive(Clone, Copy, ValueEnum)]
enum Other {
    Compression,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Train,
    Validation,
    Test,
}

impl Part {
    fn split(self) -> Split {
        match self {
            Part::Train => Split::Train,
            Part::Validation => Split::Validation,
            Part::Test => Split::Test,
        }
    }
}

/// Evaluates and prints.
pub fn run(eval: &Eval) -> Result<(), Failure> {
    match (&eval.task, &eval.run) {
        (None, Some(run)) => of_run(eval, run),
        _ => evaluate::run(&eval.sources, &eval.json),
    }
}

fn of_run(eval: &Eval, run: &Path) -> Result<(), Failure> {
    let target = JsonTarget::new(eval.json.path())?;
    let mut experiment = Experiment::reopen(run).map_err(refuse)?;
    if let Some(name) = &eval.attention {
        experiment.run.mixing = mixing(name, &eval.set)?;
    }
    let task = &*experiment.opened.task;
    let (model, device) = load_kept(&experiment.run, task, run).map_err(refuse)?;
    let scope = Scope { split: eval.split.split(), examples: eval.examples, batch: experiment.run.training.batch };
    let found = regard_lab::train::evaluate(&model, task, scope, &device).map_err(refuse)?;
    describe(task);
    if target.leaves_stdout() {
        let metric = task.facts().metric.name();
        let rate = found.tokens as f64 / found.elapsed.as_secs_f64();
        let name = &experiment.run.mixing.name;
        output::print(&format!(
            "{name}: {metric} {:.4}, loss {:.4}, {} examples, {rate:.0} tokens/s\n",
            found.quality,
            found.loss,
            found.scores.len()
        ))?;
    }
    target.write(&json!({
        "schema": "regard/eval/1", "mechanism": experiment.run.mixing.name, "options": experiment.run.mixing.written,
        "metric": task.facts().metric.name(), "quality": found.quality, "loss": found.loss, "examples": found.scores.len(),
        "tokens": found.tokens, "seconds": found.elapsed.as_secs_f64(), "tokens_kept": found.kept,
    }))
}

fn mixing(name: &str, settings: &[String]) -> Result<Mixing, Failure> {
    let mut written = Map::from_iter([("mechanism".to_owned(), Value::from(name))]);
    for setting in settings {
        let (key, value) =
            setting.split_once('=').ok_or_else(|| Failure::Usage(format!("--set {setting} is not of the form key=value")))?;
        written.insert(key.to_owned(), Value::from(plain(&Value::from(value))));
    }
    Mixing::read("--attention", &Value::Object(written)).map_err(|error| Failure::Usage(error.to_string()))
}
