//! Training: from a configuration to parameters, resumable at every checkpoint to the same bits.
//!
//! What a step does is a function of the configuration, the step's number and the state of parameters and optimiser, which checkpoints
//! hold. A budget in seconds is the exception: where a run ends, and how its rate falls, then depend on the clock.

mod checkpoint;
mod config;
mod evaluate;
mod metrics;
mod optimizer;
mod parts;

pub use checkpoint::{Checkpoints, State, load_model, load_state, load_with_rest};
pub use config::{Decay, Distil, Start, Training};
pub use evaluate::{Evaluation, Scope, evaluate};
pub use metrics::{Line, Metrics};

use crate::Error;
use crate::batch::Sampler;
use crate::draw::Stream;
use crate::model::{Mixing, Model, ModelConfig};
use crate::task::{Facts, Split, Targets, Task};
use burn::module::Module;
use burn::optim::{GradientsAccumulator, ModuleOptimizer};
use burn::tensor::Device;
use checkpoint::load_optimizer;
use parts::{Lesson, Replicas};
use regard::{Codes, Pass};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Why a folder is not gone on with.
pub(crate) const OTHER: &str =
    "this is a run of another configuration; name another folder, or go on with the configuration it was begun with";

/// A model, what mixes its tokens, and how it is trained on one task.
#[derive(Debug, Clone)]
pub struct Run {
    /// Sizes of the model.
    pub model: ModelConfig,
    /// Mechanism and reducer.
    pub mixing: Mixing,
    /// Everything else.
    pub training: Training,
}

/// What a run says while it goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A line of metrics was due.
    Step {
        /// Steps done.
        step: u64,
        /// Loss of the last one.
        loss: f32,
        /// Tokens a second since the line before.
        tokens_per_s: f64,
        /// Seconds until the budget is used up, as it looks.
        left: f64,
    },
    /// The validation split was looked at.
    Evaluated {
        /// Steps done.
        step: u64,
        /// Mean loss.
        loss: f64,
        /// The task's metric.
        quality: f64,
    },
    /// A checkpoint was written.
    Saved(PathBuf),
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// With the parameters that were kept, not tracked.
    pub model: Model,
    /// On the test split.
    pub test: Evaluation,
    /// All lines of metrics.
    pub lines: Vec<Line>,
    /// Where training stands.
    pub state: State,
    /// Trained parameters.
    pub parameters: usize,
    /// The metric on the test split ahead of the first step, where parameters started as another run's.
    pub zero_shot: Option<f64>,
}

/// What a run learns from beside its task.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parents<'a> {
    /// Whose parameters it starts with, wherever both have one of that name.
    pub start: Option<&'a Model>,
    /// Whose answers it learns from, where the configuration distils.
    pub teacher: Option<&'a Model>,
}

impl Run {
    /// The run as JSON, as records hold it.
    pub fn json(&self) -> Value {
        json!({"model": self.model, "attention": self.mixing.written, "train": self.training})
    }

    /// A hash of everything that what is learned depends on.
    fn hash(&self, facts: &Facts) -> String {
        let text = format!("{} {} {}", self.json(), facts.name, facts.fingerprint);
        let parts: Vec<u64> = text.bytes().map(u64::from).collect();
        format!("{:016x}", Stream::of(&parts).bits(0))
    }

    /// Trains to the end of the budget. With a folder there are checkpoints and metrics in it, and a run that is there goes on.
    ///
    /// # Errors
    /// If model and task do not fit, a file cannot be read or written, the folder holds another run, or the loss is not a number any more.
    pub fn train(&self, task: &dyn Task, folder: Option<&Path>, observe: &mut dyn FnMut(Event)) -> Result<Outcome, Error> {
        self.train_from(Parents::default(), task, folder, observe)
    }

    /// [`Run::train`] with what other models know.
    ///
    /// # Errors
    /// As [`Run::train`]; also if the configuration distils and there is no teacher, or the task asks for numbers.
    pub fn train_from(
        &self,
        parents: Parents<'_>,
        task: &dyn Task,
        folder: Option<&Path>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Outcome, Error> {
        let mut trainer = Trainer::open(self, parents, task, folder)?;
        while !trainer.is_done() {
            trainer.step(observe)?;
        }
        trainer.finish()
    }
}

/// The parameters that a run in a folder kept, in a model of this run, with the device that they are on.
///
/// # Errors
/// If there is no checkpoint, or it is of another model.
pub fn load_kept(run: &Run, task: &dyn Task, folder: &Path) -> Result<(Model, Device), Error> {
    let device = Device::flex();
    let model = Model::new(&run.model, &run.mixing, task.facts(), run.training.seed, &device)?;
    Ok((load_model(&kept(run, folder)?, model)?.valid(), device))
}

/// The checkpoint whose parameters a run in a folder kept.
///
/// # Errors
/// If there is none.
pub fn kept(run: &Run, folder: &Path) -> Result<PathBuf, Error> {
    let path = folder.join("checkpoints");
    let none = || Error::data(folder, "checkpoints", "there is none yet");
    if !path.is_dir() {
        return Err(none());
    }
    let checkpoints = Checkpoints::open(&path)?;
    let newest = checkpoints.newest()?.ok_or_else(none)?;
    let best = load_state(&newest)?.best.filter(|_| run.training.patience.is_some());
    Ok(best.map_or(newest, |(_, step)| checkpoints.of(step)))
}

struct Trainer<'a> {
    run: &'a Run,
    task: &'a dyn Task,
    device: Device,
    /// `None` only while a step is under way.
    model: Option<Model>,
    optimizer: ModuleOptimizer,
    /// Where there is more than one.
    replicas: Option<Replicas>,
    state: State,
    metrics: Metrics,
    checkpoints: Option<Checkpoints>,
    /// Since the last line: tokens and time.
    recent: (u64, Duration),
    /// Whose answers it learns from, and how much.
    teacher: Option<(&'a Model, &'a Distil)>,
    zero_shot: Option<f64>,
    /// The best parameters so far, where a run that keeps them has no folder for them.
    best: Option<Model>,
}

impl<'a> Trainer<'a> {
    fn open(run: &'a Run, parents: Parents<'a>, task: &'a dyn Task, folder: Option<&Path>) -> Result<Self, Error> {
        let device = Device::flex().autodiff();
        let config = run.hash(task.facts());
        let teacher = run.training.distil.as_ref().map(|distil| teacher(parents.teacher, distil, task.facts())).transpose()?;
        let mut model = Model::new(&run.model, &run.mixing, task.facts(), run.training.seed, &device)?;
        let mut zero_shot = None;
        if let Some(start) = parents.start {
            model = model.adopt(start)?;
            zero_shot = Some(run.tested(&model.valid(), task, &device.clone().inner())?.quality);
        }
        let mut trainer = Trainer {
            run,
            task,
            teacher,
            zero_shot,
            best: None,
            model: Some(model),
            optimizer: optimizer::optimizer(&run.training),
            replicas: replicas(run, &device)?,
            state: State { config, ..State::default() },
            metrics: Metrics::default(),
            checkpoints: folder.map(|folder| Checkpoints::open(&folder.join("checkpoints"))).transpose()?,
            recent: (0, Duration::ZERO),
            device,
        };
        if let Some(folder) = folder {
            trainer.go_on(folder)?;
        }
        Ok(trainer)
    }

    /// Takes up the newest checkpoint of a folder.
    fn go_on(&mut self, folder: &Path) -> Result<(), Error> {
        let newest = self.checkpoints.as_ref().map(Checkpoints::newest).transpose()?.flatten();
        if let Some(path) = newest {
            let state = load_state(&path)?;
            if state.config != self.state.config {
                return Err(Error::data(&path, "state.json", OTHER));
            }
            self.model = self.model.take().map(|model| load_model(&path, model)).transpose()?;
            self.optimizer = load_optimizer(&path, self.optimizer.clone())?;
            self.state = state;
        }
        self.metrics = Metrics::open(&folder.join("metrics.jsonl"), self.state.metrics)?;
        Ok(())
    }

    /// The share of the budget that is used up, from 0 to 1.
    fn used(&self) -> f64 {
        let training = &self.run.training;
        let seconds = training.seconds.map_or(0.0, |seconds| self.state.seconds / seconds);
        seconds.max(self.state.step as f64 / training.steps.max(1) as f64)
    }

    fn is_done(&self) -> bool {
        let training = &self.run.training;
        let metric = self.task.facts().metric;
        let good = training.stop_at.zip(self.state.best).is_some_and(|(wanted, (best, _))| best == wanted || metric.beats(best, wanted));
        let stuck = training.patience.is_some_and(|patience| self.state.worse >= patience);
        good || stuck || self.used() >= 1.0
    }

    /// One step, and what is due behind it.
    fn step(&mut self, observe: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let start = Instant::now();
        let (loss, gradient, rate) = self.learn()?;
        let elapsed = start.elapsed();
        self.state.step += 1;
        self.state.seconds += elapsed.as_secs_f64();
        self.recent.1 += elapsed;
        if !loss.is_finite() {
            return Err(self.diverged(loss));
        }
        let training = &self.run.training;
        let (step, at_end) = (self.state.step, self.used() >= 1.0);
        if step.is_multiple_of(training.log_every) || at_end || step == 1 {
            self.log(Line { step, loss: Some(loss), gradient, rate: Some(rate), ..Line::default() }, observe)?;
        }
        let mut save = step.is_multiple_of(training.checkpoint_every);
        if step.is_multiple_of(training.evaluate_every) || at_end {
            let best = self.evaluate(observe)?;
            save |= best && training.patience.is_some();
        }
        if save || self.is_done() { self.save(observe) } else { Ok(()) }
    }

    fn diverged(&self, loss: f32) -> Error {
        let last = self.checkpoints.as_ref().and_then(|checkpoints| checkpoints.newest().ok().flatten());
        let good = last.map_or_else(|| "there is no checkpoint".into(), |path| format!("the last good checkpoint is {}", path.display()));
        let message =
            format!("the loss is {loss} at step {}; {good}; lower the rate, clip the gradient or warm up for longer", self.state.step);
        Error::key("train.rate", message)
    }

    /// Loss, length of the gradient and rate of a step.
    fn learn(&mut self) -> Result<(f32, Option<f32>, f64), Error> {
        let training = &self.run.training;
        let step = self.state.step;
        let model = self.model.take().expect("the last step put it back");
        self.device.seed(Stream::of(&[training.seed, step]).bits(0));
        let examples = Sampler { seed: training.seed, batch: training.batch as u64 }.examples(self.task, step)?;
        let count = training.accumulate * training.replicas;
        let parts = parts::divided(examples, count, self.task.facts());
        let lesson = Lesson { training, teacher: self.teacher, pass: Pass { training: true, seed: training.seed, step } };
        let mut gradients = GradientsAccumulator::new();
        let (mut loss, mut codes) = (0.0, Vec::new());
        for parts in parts.chunks(self.replicas.as_ref().map_or(1, Replicas::count)) {
            let learned = match &self.replicas {
                Some(replicas) => replicas.learn(lesson, parts, &model)?,
                None => vec![lesson.learn(&parts[0], &model, &self.device)?],
            };
            for learned in learned {
                loss += learned.loss;
                gradients.accumulate(&model, learned.gradients);
                join(&mut codes, learned.codes)?;
            }
        }
        let tokens: usize = parts.iter().map(|part| part.batch.tokens()).sum();
        self.state.tokens += tokens as u64;
        self.recent.0 += tokens as u64;
        let rate = training.rate_at(step, self.after_warm_up());
        let (gradients, length) = optimizer::clip(gradients.grads(), &model, training.clip);
        let mut model = self.optimizer.step(rate, model, gradients);
        for (block, codes) in model.blocks.iter_mut().zip(&codes) {
            self.state.restarts += block.attention.after_step(codes)?;
        }
        self.model = Some(model);
        Ok((loss, length, rate))
    }

    /// The share of the budget behind warm-up that is used up.
    fn after_warm_up(&self) -> f64 {
        let training = &self.run.training;
        training.done(self.state.step).max(training.seconds.map_or(0.0, |seconds| self.state.seconds / seconds))
    }

    fn log(&mut self, line: Line, observe: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let (tokens, elapsed) = std::mem::take(&mut self.recent);
        let tokens_per_s = tokens as f64 / elapsed.as_secs_f64();
        let left = self.state.seconds * (1.0 / self.used().max(1e-9) - 1.0);
        observe(Event::Step { step: line.step, loss: line.loss.unwrap_or(f32::NAN), tokens_per_s, left: left.max(0.0) });
        self.metrics.add(Line { tokens_per_s: Some(tokens_per_s), ..line })
    }

    /// Looks at the validation split; says whether it is the best so far.
    fn evaluate(&mut self, observe: &mut dyn FnMut(Event)) -> Result<bool, Error> {
        let training = &self.run.training;
        let model = self.model.as_ref().expect("no step is under way").valid();
        let scope = Scope { split: Split::Validation, examples: training.evaluate_examples, batch: training.batch };
        let found = evaluate(&model, self.task, scope, &self.device.clone().inner())?;
        let step = self.state.step;
        observe(Event::Evaluated { step, loss: found.loss, quality: found.quality });
        let line = Line { step, validation_loss: Some(found.loss), validation_quality: Some(found.quality), ..Line::default() };
        self.metrics.add(line)?;
        let metric = self.task.facts().metric;
        let best = self.state.best.is_none_or(|(best, _)| metric.beats(found.quality, best));
        if best {
            (self.state.best, self.state.worse) = (Some((found.quality, step)), 0);
            if training.patience.is_some() && self.checkpoints.is_none() {
                self.best.clone_from(&self.model);
            }
        } else {
            self.state.worse += 1;
        }
        Ok(best)
    }

    fn save(&mut self, observe: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let Some(checkpoints) = &self.checkpoints else { return Ok(()) };
        self.state.metrics = self.metrics.sync()?;
        let model = self.model.as_ref().expect("no step is under way");
        observe(Event::Saved(checkpoints.save(model, &self.optimizer, &self.state)?));
        Ok(())
    }

    /// The parameters that are kept, on the test split.
    fn finish(self) -> Result<Outcome, Error> {
        let mut model = self.best.or(self.model).expect("no step is under way");
        if let (Some(_), Some((_, step)), Some(checkpoints)) = (self.run.training.patience, self.state.best, &self.checkpoints) {
            model = load_model(&checkpoints.of(step), model)?;
        }
        let parameters = model.num_params() - self.run.model.frozen(&model);
        let model = model.valid();
        let test = self.run.tested(&model, self.task, &self.device.inner())?;
        let (lines, state, zero_shot) = (self.metrics.lines().to_vec(), self.state, self.zero_shot);
        Ok(Outcome { model, test, lines, state, parameters, zero_shot })
    }
}

impl Run {
    /// A model on the test split.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn tested(&self, model: &Model, task: &dyn Task, device: &Device) -> Result<Evaluation, Error> {
        evaluate(model, task, Scope { split: Split::Test, examples: TEST_EXAMPLES, batch: self.training.batch }, device)
    }
}

/// Replicas of the model, where the configuration wants more than one.
fn replicas(run: &Run, device: &Device) -> Result<Option<Replicas>, Error> {
    let count = run.training.replicas;
    if count == 1 {
        return Ok(None);
    }
    if run.model.dropout() > 0.0 {
        let message = "dropout draws from the one generator of the device that replicas share; leave out model.dropout, or write 1";
        return Err(Error::key("train.replicas", message));
    }
    Replicas::new(vec![device.clone(); count]).map(Some)
}

/// Refuses to distil where nobody teaches, or there are no shares of answers to learn from.
fn teacher<'a>(teacher: Option<&'a Model>, distil: &'a Distil, facts: &Facts) -> Result<(&'a Model, &'a Distil), Error> {
    if matches!(facts.targets, Targets::Values(_)) {
        let message = format!("the task {} asks for numbers, and a teacher gives probabilities of answers", facts.name);
        return Err(Error::key("train.distil", message));
    }
    let missing = || Error::key("train.distil.from", "is missing; it names the folder of the run that teaches");
    Ok((teacher.ok_or_else(missing)?, distil))
}

/// Examples of the last evaluation where the task makes them without end.
const TEST_EXAMPLES: u64 = 1 << 20;

/// Adds what a part of a step says of the codes of every layer.
fn join(all: &mut Vec<Codes>, more: Vec<Codes>) -> Result<(), Error> {
    if all.is_empty() {
        *all = more;
        return Ok(());
    }
    for (codes, more) in all.iter_mut().zip(&more) {
        for (codes, more) in [(&mut codes.keys, &more.keys), (&mut codes.queries, &more.queries)] {
            if let (Some(codes), Some(more)) = (codes, more) {
                codes.join(more).map_err(regard::Error::from)?;
            }
        }
    }
    Ok(())
}
