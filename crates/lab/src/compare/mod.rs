//! Several configurations on one task under one budget, with the same seeds, the same examples and the same start.
//!
//! Every (configuration, seed) is a training run in a folder of its own; one that is finished is not repeated, one that was stopped goes on.

mod interval;
mod speed;

pub use interval::{Interval, paired};
pub use speed::{Peak, speeds};

use crate::Error;
use crate::model::{Mixing, ModelConfig};
use crate::section::Section;
use crate::task::Task;
use crate::train::{Event, Line, Outcome, Run, Training};
use regard_core::mechanism::Mechanism;
use regard_report::schema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// What is compared.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// Sizes of every model.
    pub model: ModelConfig,
    /// How each is trained; its seed is one of `seeds`.
    pub training: Training,
    /// One run of each configuration for each.
    pub seeds: Vec<u64>,
    /// Mechanisms and reducers, names unlike one another.
    pub configurations: Vec<Mixing>,
    /// Lengths at which speed is measured beside the task's own.
    pub lengths: Vec<usize>,
}

/// What one (configuration, seed) came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// The seed.
    pub seed: u64,
    /// What it was made with; a result of something else is not taken for it.
    pub config: Value,
    /// Of the task's data.
    pub fingerprint: String,
    /// The task's metric on the test split.
    pub quality: f64,
    /// The metric of every example there.
    pub scores: Vec<f32>,
    /// Share of the tokens that left each layer there.
    pub kept: Vec<f64>,
    /// Trained parameters.
    pub parameters: u64,
    /// Steps of training.
    pub steps: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Tokens shown in training.
    pub tokens: u64,
    /// All lines of metrics.
    pub lines: Vec<Line>,
}

/// A configuration with everything that is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Its name.
    pub name: String,
    /// As it was written.
    pub config: Value,
    /// One for every seed.
    pub runs: Vec<Finished>,
    /// How far it is from exact attention, where that is among the configurations.
    pub difference: Option<Interval>,
    /// Of training.
    pub training: Vec<schema::Speed>,
    /// Of inference.
    pub inference: Vec<schema::Speed>,
}

/// What a comparison says while it goes on.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A configuration with a seed is under way.
    Begins(&'a str, u64),
    /// What its training says.
    Training(&'a Event),
    /// It was finished before.
    Found(&'a str, u64),
    /// It is finished.
    Finished(&'a str, &'a Finished),
    /// Speed is measured at a length.
    Measures(&'a str, usize),
}

/// Who is told, and who knows how much memory a call takes.
pub struct Watch<'a> {
    /// Told of everything.
    pub progress: &'a mut dyn FnMut(Progress<'_>),
    /// See [`Peak`].
    pub peak: Peak<'a>,
}

impl Comparison {
    /// Reads what stands under `model`, `train`, `seeds`, `configurations` and `lengths`.
    ///
    /// # Errors
    /// An unknown key, a value out of its range, or two configurations of one name.
    pub fn read(section: &mut Section) -> Result<Self, Error> {
        let model = ModelConfig::read(section.section("model")?)?;
        let training = Training::read(section.section("train")?)?;
        let seeds: Vec<u64> = section.or("seeds", vec![training.seed])?;
        let written: Vec<Value> = section.or("configurations", Vec::new())?;
        let mixing = |(at, value): (usize, &Value)| Mixing::read(&format!("configurations[{at}]"), value);
        let configurations: Vec<Mixing> = written.iter().enumerate().map(mixing).collect::<Result<_, _>>()?;
        let lengths: Vec<Value> = section.or("lengths", Vec::new())?;
        let lengths = lengths.iter().map(|value| length(&section.name("lengths"), value)).collect::<Result<_, _>>()?;
        let comparison = Comparison { model, training, seeds, configurations, lengths };
        comparison.check()?;
        Ok(comparison)
    }

    fn check(&self) -> Result<(), Error> {
        if self.configurations.is_empty() {
            return Err(Error::key("configurations", "is missing; write configurations: [exact, local]"));
        }
        if self.seeds.is_empty() {
            return Err(Error::key("seeds", "there is none; write seeds: [0]"));
        }
        let names: Vec<&str> = self.configurations.iter().map(|mixing| mixing.name.as_str()).collect();
        match names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            Some((_, name)) => Err(Error::key("configurations", format!("two are named \"{name}\"; give one a name: of its own"))),
            None => Ok(()),
        }
    }

    /// Trains and measures everything. Speeds come last, one behind the other, so that they are measured under one load.
    ///
    /// # Errors
    /// The first thing that goes wrong.
    pub fn run(&self, task: &dyn Task, folder: Option<&Path>, watch: &mut Watch<'_>) -> Result<Vec<Compared>, Error> {
        let mut all = Vec::new();
        for mixing in &self.configurations {
            let runs = self.seeds.iter().map(|&seed| self.finished(mixing, seed, task, folder, watch)).collect::<Result<Vec<_>, _>>()?;
            let config = Value::Object(mixing.written.clone());
            let (name, difference) = (mixing.name.clone(), None);
            all.push(Compared { name, config, runs, difference, training: Vec::new(), inference: Vec::new() });
        }
        self.pair(&mut all);
        for (mixing, compared) in self.configurations.iter().zip(&mut all) {
            for length in self.measured(task) {
                (watch.progress)(Progress::Measures(&mixing.name, length));
                let [training, inference] = speeds(&self.of(mixing, self.seeds[0]), task, length, watch.peak)?;
                compared.training.push(training);
                compared.inference.push(inference);
            }
        }
        Ok(all)
    }

    /// The task's own length and the others, rising.
    fn measured(&self, task: &dyn Task) -> Vec<usize> {
        let mut lengths = self.lengths.clone();
        lengths.push(task.facts().longest);
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    fn of(&self, mixing: &Mixing, seed: u64) -> Run {
        Run { model: self.model.clone(), mixing: mixing.clone(), training: Training { seed, ..self.training.clone() } }
    }

    /// Differences from exact attention without a reducer.
    fn pair(&self, all: &mut [Compared]) {
        let is_exact = |mixing: &Mixing| matches!(mixing.mechanism, Mechanism::Exact(_)) && mixing.reducer.is_none();
        let Some(exact) = self.configurations.iter().position(is_exact) else { return };
        let scores = |compared: &Compared| compared.runs.iter().map(|run| run.scores.clone()).collect::<Vec<_>>();
        let truth = scores(&all[exact]);
        for (_, compared) in all.iter_mut().enumerate().filter(|(at, _)| *at != exact) {
            compared.difference = paired(&scores(compared), &truth);
        }
    }

    fn finished(
        &self,
        mixing: &Mixing,
        seed: u64,
        task: &dyn Task,
        folder: Option<&Path>,
        watch: &mut Watch<'_>,
    ) -> Result<Finished, Error> {
        let run = self.of(mixing, seed);
        let own = folder.map(|folder| folder.join(file_name(&mixing.name)).join(format!("seed-{seed}")));
        if let Some(finished) = own.as_deref().map(|own| earlier(own, &run, task)).transpose()?.flatten() {
            (watch.progress)(Progress::Found(&mixing.name, seed));
            return Ok(finished);
        }
        (watch.progress)(Progress::Begins(&mixing.name, seed));
        let outcome = run.train(task, own.as_deref(), &mut |event| (watch.progress)(Progress::Training(&event)))?;
        let finished = Finished::new(&run, task, outcome);
        if let Some(own) = &own {
            write(&own.join(RESULT), &finished)?;
        }
        (watch.progress)(Progress::Finished(&mixing.name, &finished));
        Ok(finished)
    }
}

const RESULT: &str = "result.json";

/// What an earlier call left for this run, if it was the same.
fn earlier(folder: &Path, run: &Run, task: &dyn Task) -> Result<Option<Finished>, Error> {
    let path = folder.join(RESULT);
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).map_err(|error| Error::file(&path, error))?;
    let found: Finished = serde_json::from_str(&text).map_err(|error| Error::data(&path, "result", error.to_string()))?;
    if found.config != run.json() || found.fingerprint != task.facts().fingerprint {
        let message = "this is the result of another configuration or of other data; name another folder for the output";
        return Err(Error::data(&path, "config", message));
    }
    Ok(Some(found))
}

/// Writes beside the target and renames.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::data(path, "JSON", error.to_string()))?;
    let mut draft = path.as_os_str().to_owned();
    draft.push(".draft");
    let draft = PathBuf::from(draft);
    fs::write(&draft, text + "\n").map_err(|error| Error::file(&draft, error))?;
    fs::rename(&draft, path).map_err(|error| Error::file(path, error))
}

/// A name as a folder can have it.
fn file_name(name: &str) -> String {
    let letter = |letter: char| if letter.is_ascii_alphanumeric() || "-_.".contains(letter) { letter } else { '-' };
    name.chars().map(letter).collect()
}

fn length(place: &str, value: &Value) -> Result<usize, Error> {
    let written = crate::section::plain(value);
    let (digits, factor) = written.strip_suffix('k').map_or((written.as_str(), 1), |digits| (digits, 1024));
    let number = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(factor)).filter(|&number| number > 0);
    number.ok_or_else(|| Error::key(place, format!("{written} is not a length such as 512 or 4k")))
}

impl Finished {
    /// What a run came to.
    pub fn new(run: &Run, task: &dyn Task, outcome: Outcome) -> Self {
        Finished {
            seed: run.training.seed,
            config: run.json(),
            fingerprint: task.facts().fingerprint.clone(),
            quality: outcome.test.quality,
            scores: outcome.test.scores,
            kept: outcome.test.kept,
            parameters: outcome.parameters as u64,
            steps: outcome.state.step,
            seconds: outcome.state.seconds,
            tokens: outcome.state.tokens,
            lines: outcome.lines,
        }
    }

    fn record(&self) -> schema::Run {
        schema::Run {
            seed: self.seed,
            quality: Some(self.quality),
            tokens_kept: self.kept.clone(),
            training: Vec::new(),
            inference: Vec::new(),
            curve: curve(&self.lines),
            steps: Some(self.steps),
            seconds: Some(self.seconds),
            tokens: Some(self.tokens),
        }
    }
}

/// Lines of metrics as a curve: one moment for every step that has any.
pub fn curve(lines: &[Line]) -> Vec<schema::Moment> {
    let mut moments: Vec<schema::Moment> = Vec::new();
    for line in lines {
        if moments.last().is_none_or(|last| last.step != line.step) {
            moments.push(schema::Moment { step: line.step, training_loss: None, validation_loss: None });
        }
        let last = moments.last_mut().expect("one was pushed");
        last.training_loss = last.training_loss.or(line.loss.map(f64::from));
        last.validation_loss = last.validation_loss.or(line.validation_loss);
    }
    moments
}

impl Compared {
    /// One run, with nothing to compare it with.
    pub fn alone(name: &str, run: Finished) -> Self {
        let config = run.config.clone();
        Compared { name: name.into(), config, runs: vec![run], difference: None, training: Vec::new(), inference: Vec::new() }
    }

    /// As a record says it. Speeds, which are measured once, stand with the first seed.
    pub fn record(&self) -> schema::Configuration {
        let mut runs: Vec<schema::Run> = self.runs.iter().map(Finished::record).collect();
        if let Some(first) = runs.first_mut() {
            (first.training, first.inference) = (self.training.clone(), self.inference.clone());
        }
        schema::Configuration {
            name: self.name.clone(),
            config: self.config.as_object().cloned().unwrap_or_default(),
            parameters: self.runs.first().map(|run| run.parameters),
            difference: self.difference.map(|Interval { mean, low, high }| schema::Difference { mean, low, high }),
            runs,
        }
    }

    /// Mean quality over seeds.
    pub fn quality(&self) -> f64 {
        self.runs.iter().map(|run| run.quality).sum::<f64>() / self.runs.len() as f64
    }

    /// Inference at a length, tokens a second.
    pub fn inference_at(&self, length: usize) -> Option<f64> {
        self.inference.iter().find(|speed| speed.length == length as u64).and_then(|speed| speed.tokens_per_s)
    }
}

/// Which configurations no other beats in quality and speed at once.
pub fn front(all: &[Compared], length: usize, higher_is_better: bool) -> Vec<bool> {
    let point = |compared: &Compared| {
        let quality = compared.quality();
        (if higher_is_better { quality } else { -quality }, compared.inference_at(length).unwrap_or(0.0))
    };
    let points: Vec<(f64, f64)> = all.iter().map(point).collect();
    let beaten = |a: &(f64, f64)| points.iter().any(|b| b.0 >= a.0 && b.1 >= a.1 && (b.0 > a.0 || b.1 > a.1));
    points.iter().map(|a| !beaten(a)).collect()
}
