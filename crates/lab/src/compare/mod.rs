//! Several configurations on one task under one budget, with the same seeds, the same examples and the same start.
//!
//! Every (configuration, seed) is a training run in a folder of its own; one that is finished is not repeated, one that was stopped goes on.
//! With `start: exact`, or a teacher, the run of exact attention with the same seed comes first.
//!
//! Without training, [`swapped`] keeps the parameters of a finished run and swaps the mechanism, [`agreements`] does that with an encoder of a
//! checkpoint.

mod agreement;
mod interval;
mod speed;
mod swap;

pub use agreement::{Agreement, agreements};
pub use interval::{Interval, paired};
pub use speed::{Peak, speeds};
pub use swap::{fitting, swapped};

use crate::Error;
use crate::model::{Mixing, Model, ModelConfig};
use crate::names::meant;
use crate::section::Section;
use crate::task::{Facts, Task};
use crate::train::{Event, Line, Outcome, Parents, Run, Start, Training, load_kept};
use burn::tensor::Device;
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
    /// How each is trained; its seed is one of `seeds`. What starts as exact attention or learns from it is not exact attention itself.
    pub training: Training,
    /// How those are trained that start as exact attention, where that is another way.
    pub healing: Option<Training>,
    /// Names of those that start from nothing although others start as exact attention.
    pub from_scratch: Vec<String>,
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
    /// The metric there ahead of training, where parameters started as those of exact attention.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub zero_shot: Option<f64>,
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
    /// Reads what stands under `model`, `train`, `healing`, `seeds`, `configurations`, `from_scratch`, `lengths` and `start`.
    ///
    /// # Errors
    /// An unknown key, a value out of its range, or two configurations of one name.
    pub fn read(section: &mut Section) -> Result<Self, Error> {
        let model = ModelConfig::read(section.section("model")?)?;
        let train = section.section("train")?;
        let healing = section.take("healing")?.map(|over| train.over("healing", over)).transpose()?;
        let start = section.take::<Start>("start")?;
        let following = |section| Training::read(section).map(|training| Training { start, ..training });
        let (training, healing) = (following(train)?, healing.map(following).transpose()?);
        let from_scratch = section.or("from_scratch", Vec::new())?;
        let seeds: Vec<u64> = section.or("seeds", vec![training.seed])?;
        let written: Vec<Value> = section.or("configurations", Vec::new())?;
        let mixing = |(at, value): (usize, &Value)| Mixing::read(&format!("configurations[{at}]"), value);
        let configurations: Vec<Mixing> = written.iter().enumerate().map(mixing).collect::<Result<_, _>>()?;
        let lengths: Vec<Value> = section.or("lengths", Vec::new())?;
        let lengths = lengths.iter().map(|value| length(&section.name("lengths"), value)).collect::<Result<_, _>>()?;
        let comparison = Comparison { model, training, healing, from_scratch, seeds, configurations, lengths };
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
        if let Some((_, name)) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            return Err(Error::key("configurations", format!("two are named \"{name}\"; give one a name: of its own")));
        }
        let folders: Vec<String> = names.iter().map(|name| file_name(name)).collect();
        if let Some((at, folder)) = folders.iter().enumerate().find(|(at, folder)| folders[..*at].contains(folder)) {
            let message = format!("\"{}\" has the folder {folder} of another; give one a name: of other letters", names[at]);
            return Err(Error::key("configurations", message));
        }
        if self.follows() && self.exact().is_none() {
            return Err(Error::key("configurations", "exact is not among them, which the others start as or learn from; add exact"));
        }
        let healed = self.healing.is_some() || !self.from_scratch.is_empty();
        if healed && self.training.start.is_none() {
            return Err(Error::key("start", "is missing: healing and from_scratch are of those that start as exact; write start: exact"));
        }
        if let Some(unknown) = self.from_scratch.iter().find(|name| !names.contains(&name.as_str())) {
            let meant = meant(unknown, names.iter().copied());
            return Err(Error::key(
                "from_scratch",
                format!("no configuration is named \"{unknown}\"{meant}; there are {}", names.join(", ")),
            ));
        }
        match &self.training.distil {
            Some(distil) if distil.from.is_some() => {
                Err(Error::key("train.distil.from", "in a comparison the teacher is exact attention of the same seed; leave it out"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the others need what exact attention learned.
    fn follows(&self) -> bool {
        self.training.start.is_some() || self.training.distil.is_some()
    }

    /// The first configuration of exact attention without a reducer.
    fn exact(&self) -> Option<usize> {
        self.configurations.iter().position(is_exact)
    }

    /// Trains and measures everything. Speeds come last, one behind the other, so that they are measured under one load.
    ///
    /// # Errors
    /// The first thing that goes wrong.
    pub fn run(&self, task: &dyn Task, folder: Option<&Path>, watch: &mut Watch<'_>) -> Result<Vec<Compared>, Error> {
        self.rehearse(task)?;
        let place = Place { task, folder };
        let mut order: Vec<usize> = (0..self.configurations.len()).collect();
        let first = self.exact().filter(|_| self.follows());
        order.sort_by_key(|&at| Some(at) != first);
        let (mut all, mut exact): (Vec<Compared>, Vec<Model>) = (Vec::new(), Vec::new());
        for &at in &order {
            let mixing = &self.configurations[at];
            let mut runs = Vec::new();
            for (which, &seed) in self.seeds.iter().enumerate() {
                let (finished, model) = self.finished(mixing, seed, exact.get(which), place, watch)?;
                runs.push(finished);
                exact.extend(model.filter(|_| Some(at) == first));
            }
            all.push(Compared { config: Value::Object(mixing.written.clone()), ..Compared::of(&mixing.name, runs) });
        }
        let mut all: Vec<(usize, Compared)> = order.into_iter().zip(all).collect();
        all.sort_by_key(|(at, _)| *at);
        let mut all: Vec<Compared> = all.into_iter().map(|(_, compared)| compared).collect();
        pair(&mut all, self.exact());
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

    /// Refuses what does not fit the model or the task before hours are spent on the rest.
    fn rehearse(&self, task: &dyn Task) -> Result<(), Error> {
        let longest = self.measured(task).into_iter().max().unwrap_or_default();
        let facts = Facts { longest, ..task.facts().clone() };
        self.configurations.iter().try_for_each(|mixing| Model::new(&self.model, mixing, &facts, 0, &Device::flex()).map(drop))
    }

    /// The task's own length and the others, rising.
    fn measured(&self, task: &dyn Task) -> Vec<usize> {
        let mut lengths = self.lengths.clone();
        lengths.push(task.facts().longest);
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    /// The run of a configuration. Exact attention has nobody to start as or to learn from.
    fn of(&self, mixing: &Mixing, seed: u64) -> Run {
        let mut training = self.training.clone();
        if self.exact().is_some_and(|exact| self.configurations[exact].name == mixing.name) {
            (training.start, training.distil) = (None, None);
        } else if self.from_scratch.contains(&mixing.name) {
            training.start = None;
        } else if let Some(healing) = &self.healing {
            training = healing.clone();
        }
        Run { model: self.model.clone(), mixing: mixing.clone(), training: Training { seed, ..training } }
    }

    /// What a run came to, and its model where it is at hand or others follow it.
    fn finished(
        &self,
        mixing: &Mixing,
        seed: u64,
        exact: Option<&Model>,
        place: Place<'_>,
        watch: &mut Watch<'_>,
    ) -> Result<(Finished, Option<Model>), Error> {
        let run = self.of(mixing, seed);
        let own = place.folder.map(|folder| folder.join(file_name(&mixing.name)).join(format!("seed-{seed}")));
        if let Some(finished) = own.as_deref().map(|own| earlier(own, &run, place.task)).transpose()?.flatten() {
            (watch.progress)(Progress::Found(&mixing.name, seed));
            let followed = own.filter(|_| self.follows() && exact.is_none());
            let model = followed.map(|own| load_kept(&run, place.task, &own)).transpose()?;
            return Ok((finished, model.map(|(model, _)| model)));
        }
        (watch.progress)(Progress::Begins(&mixing.name, seed));
        let parents = Parents { start: exact.filter(|_| run.training.start.is_some()), teacher: exact };
        let outcome = run.train_from(parents, place.task, own.as_deref(), &mut |event| (watch.progress)(Progress::Training(&event)))?;
        let model = outcome.model.clone();
        let finished = Finished::new(&run, place.task, outcome);
        if let Some(own) = &own {
            write(&own.join(RESULT), &finished)?;
        }
        (watch.progress)(Progress::Finished(&mixing.name, &finished));
        Ok((finished, Some(model)))
    }
}

/// What is learned, and where runs are kept.
#[derive(Clone, Copy)]
struct Place<'a> {
    task: &'a dyn Task,
    folder: Option<&'a Path>,
}

fn is_exact(mixing: &Mixing) -> bool {
    matches!(mixing.mechanism, Mechanism::Exact(_)) && mixing.reducer.is_none() && !mixing.causal
}

/// Differences of all others from the one that is exact attention without a reducer.
fn pair(all: &mut [Compared], exact: Option<usize>) {
    let Some(exact) = exact else { return };
    let scores = |compared: &Compared| compared.runs.iter().map(|run| run.scores.clone()).collect::<Vec<_>>();
    let truth = scores(&all[exact]);
    for (_, compared) in all.iter_mut().enumerate().filter(|(at, _)| *at != exact) {
        compared.difference = paired(&scores(compared), &truth);
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

/// A name as a folder can have it; combinations of two mechanisms keep names apart.
fn file_name(name: &str) -> String {
    let letter = |letter: char| match letter {
        '/' => '=',
        letter if letter.is_ascii_alphanumeric() || "-_.+~".contains(letter) => letter,
        _ => '-',
    };
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
            zero_shot: outcome.zero_shot,
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
            worst: None,
            zero_shot: self.zero_shot,
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
        Self::of(name, vec![run])
    }

    /// The runs of one configuration, nothing measured yet.
    fn of(name: &str, runs: Vec<Finished>) -> Self {
        let config = runs.first().map_or(Value::Null, |run| run.config.clone());
        Compared { name: name.into(), config, runs, difference: None, training: Vec::new(), inference: Vec::new() }
    }

    /// Mean quality over seeds ahead of training, where that was measured.
    pub fn zero_shot(&self) -> Option<f64> {
        let all: Vec<f64> = self.runs.iter().filter_map(|run| run.zero_shot).collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
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
