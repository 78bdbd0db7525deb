//! `regard train`: a model on a task, as a file says.

use super::watch::Watch;
use super::{check_folder, describe, in_file, origin, page_draft, refuse, section, write_page};
use crate::arguments::{Execution, Json};
use crate::failure::Failure;
use crate::output::{self, JsonTarget};
use clap::Args;
use regard_core::Par;
use regard_lab::compare::Finished;
use regard_lab::experiment::{Experiment, folder_of};
use regard_lab::record::training_run;
use regard_report::Contents;
use std::path::PathBuf;

/// Train a model on a task, as a file in YAML says
#[derive(Args)]
#[command(
    after_help = "Checkpoints, metrics and the result go to the output folder; an interrupted run goes on with --resume, to the same bits.

Examples:
  regard train configs/shakespeare.yaml --output runs/shakespeare
  regard train configs/shakespeare.yaml --output runs/local --set attention=local --set train.steps=500"
)]
pub struct Train {
    /// What to train: task, model, attention, train
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
    /// Folder of the run
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Go on with the run that is in the folder
    #[arg(long)]
    resume: bool,
    /// Folder that the task's paths start from; that of the configuration without it
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Set a key of the configuration, such as train.steps=500
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seed of parameters, order, dropout and sampling; that of the configuration, or 0, without it
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Write a page of the run
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    pub execution: Execution,
}

/// Trains, evaluates on the test split, and leaves a record.
pub fn run(train: &Train) -> Result<(), Failure> {
    let par = Par::default();
    let target = JsonTarget::new(train.json.path())?;
    let page = page_draft(train.report.as_ref())?;
    let section = section(&train.config, &train.set)?;
    let base = train.data.clone().unwrap_or_else(|| folder_of(&train.config));
    let mut experiment = Experiment::read(section, &base).map_err(in_file(&train.config))?;
    if let Some(seed) = train.seed {
        experiment.run.training.seed = seed;
    }
    check_folder(&train.output, train.resume)?;
    let task = &*experiment.opened.task;
    describe(task);
    experiment.keep(&train.output).map_err(refuse)?;
    let mut watch = Watch::new(&experiment.run.mixing.name);
    let outcome = experiment.train(Some(&train.output), &mut |event| watch.event(&event)).map_err(refuse)?;
    watch.finish();
    let finished = Finished::new(&experiment.run, task, outcome);
    let record = Contents::TrainingRun(training_run(
        origin(par, experiment.title.clone()),
        &experiment.opened,
        &experiment.run.mixing.name,
        &finished,
    ));
    JsonTarget::new(Some(&train.output.join("record.json")))?.write(&record)?;
    if target.leaves_stdout() {
        output::print(&summary(&finished, task.facts().metric.name()))?;
    }
    if let Some(page) = page {
        write_page(page, &record, "record.json")?;
    }
    target.write(&record)
}

fn summary(finished: &Finished, metric: &str) -> String {
    let Finished { quality, parameters, steps, seconds, tokens, .. } = finished;
    format!(
        "{metric} {quality:.4} on the test split; {parameters} parameters, {steps} steps, {tokens} tokens in {seconds:.1} s ({:.0} tokens/s)\n",
        *tokens as f64 / seconds
    )
}
