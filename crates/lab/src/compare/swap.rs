//! The parameters of a finished run under other mechanisms: how much of what was learned is left without any training.

use super::{Compared, Finished, is_exact, pair};
use crate::Error;
use crate::experiment::Experiment;
use crate::model::{Mixing, Model, check};
use crate::task::{Facts, Task};
use crate::train::{Evaluation, Run, kept, load_state, load_with_rest};
use burn::module::Module;
use burn::tensor::Device;
use regard_core::mechanism::Mechanism;
use regard_core::reduce::Reducer;
use regard_report::schema::Speed;
use serde_json::{Value, json};
use std::path::Path;

/// Every mechanism and reducer that has a form for a task and learns no tensors of its own, by default options; exact attention first.
pub fn fitting(facts: &Facts) -> Vec<Mixing> {
    let learns_nothing = |needs: &[&[&str]]| needs.iter().any(|needs| needs.iter().all(|&tensor| tensor == "x"));
    let mechanisms = Mechanism::ALL.iter().filter(|about| learns_nothing(about.needs)).map(|about| json!(about.name));
    let gated = |tensors: &[&str]| tensors.contains(&"gate_logits");
    let reducers = Reducer::ALL.iter().filter(|about| !gated(about.tensors)).map(|about| json!({"reduce": about.name}));
    let all = mechanisms.chain(reducers).filter_map(|written| Mixing::read("attention", &written).ok());
    let mut fitting: Vec<Mixing> = all.filter(|mixing| check(mixing, facts).is_ok()).collect();
    fitting.sort_by_key(|mixing| !is_exact(mixing));
    fitting
}

/// What a run's parameters are worth on its test split with each of some mechanisms and reducers inside. `told` hears the name of each.
///
/// # Errors
/// If there is no run in the folder, or a mechanism has no form for its task or needs parameters that the run does not have.
pub fn swapped(experiment: &Experiment, folder: &Path, mixings: &[Mixing], told: &mut dyn FnMut(&str)) -> Result<Vec<Compared>, Error> {
    let task = &*experiment.opened.task;
    let mut all = Vec::new();
    for mixing in mixings {
        told(&mixing.name);
        all.push(worth(&Run { mixing: mixing.clone(), ..experiment.run.clone() }, task, folder)?);
    }
    pair(&mut all, mixings.iter().position(is_exact));
    Ok(all)
}

fn worth(run: &Run, task: &dyn Task, folder: &Path) -> Result<Compared, Error> {
    let (checkpoint, device) = (kept(run, folder)?, Device::flex());
    let model = Model::new(&run.model, &run.mixing, task.facts(), run.training.seed, &device)?;
    let unfit = |error: Error| Error::key(&run.mixing.name, format!("the run's parameters do not fit: {error}"));
    let model = load_with_rest(&checkpoint, model).map_err(unfit)?.valid();
    let found = run.tested(&model, task, &device)?;
    let state = load_state(&checkpoint)?;
    let speed = speed(&found, task.facts().longest);
    let finished = Finished {
        seed: run.training.seed,
        config: run.json(),
        fingerprint: task.facts().fingerprint.clone(),
        quality: found.quality,
        zero_shot: None,
        scores: found.scores,
        kept: found.kept,
        parameters: model.num_params() as u64,
        steps: state.step,
        seconds: state.seconds,
        tokens: state.tokens,
        lines: Vec::new(),
    };
    let config = Value::Object(run.mixing.written.clone());
    Ok(Compared { config, inference: vec![speed], ..Compared::alone(&run.mixing.name, finished) })
}

/// Of the evaluation itself, in the batches of training.
fn speed(found: &Evaluation, longest: usize) -> Speed {
    Speed { length: longest as u64, tokens_per_s: Some(found.tokens as f64 / found.elapsed.as_secs_f64()), peak_bytes: None }
}
