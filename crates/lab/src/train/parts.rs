//! The examples of a step in parts: one behind the other for less memory, or side by side on replicas of the model.
//!
//! Data parallelism: every replica has the same parameters, a device, a share of the threads, and a part of the examples. Gradients are added up on
//! the first device in the order of the parts, so that a step has the same bits as with as many parts one behind the other.

use super::{Distil, Training};
use crate::Error;
use crate::batch::Batch;
use crate::model::{Answers, Model};
use crate::task::{Example, Facts};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use rayon::{ThreadPool, ThreadPoolBuilder};
use regard::{Codes, Pass};
use std::panic::resume_unwind;
use std::thread;

/// Bytes of stack of a replica's threads.
const STACK: usize = 8 << 20;

/// What is asked of every part of a step.
#[derive(Clone, Copy)]
pub(super) struct Lesson<'a> {
    pub training: &'a Training,
    /// Whose answers it learns from, and how much.
    pub teacher: Option<(&'a Model, &'a Distil)>,
    pub pass: Pass,
}

/// A part, with what it is of the whole step.
pub(super) struct Part {
    pub batch: Batch,
    /// Of the answers and of the examples.
    pub shares: [f64; 2],
}

/// What became of a part.
pub(super) struct Learned {
    /// Its share of the loss.
    pub loss: f32,
    pub gradients: GradientsParams,
    pub codes: Vec<Codes>,
}

/// Examples in `count` parts, or in fewer if there are not as many.
pub(super) fn divided(mut examples: Vec<Example>, count: usize, facts: &Facts) -> Vec<Part> {
    let (all, most) = (examples.len(), examples.len().div_ceil(count).max(1));
    let mut batches = Vec::new();
    while !examples.is_empty() {
        let rest = examples.split_off(most.min(examples.len()));
        batches.push(Batch::pack(std::mem::replace(&mut examples, rest), facts));
    }
    let answers: usize = batches.iter().map(|batch| batch.asked.count()).sum();
    let shares = |batch: &Batch| [batch.asked.count() as f64 / answers.max(1) as f64, batch.lengths.len() as f64 / all as f64];
    batches.into_iter().map(|batch| Part { shares: shares(&batch), batch }).collect()
}

impl Lesson<'_> {
    /// Loss and gradients of a part.
    pub fn learn(&self, part: &Part, model: &Model, device: &Device) -> Result<Learned, Error> {
        let said = model.answers(&part.batch, self.pass, device)?;
        let [answers, examples] = part.shares;
        let own = self.loss(&said, &part.batch, device)? * answers;
        let loss = own.clone().into_scalar::<f32>();
        let gradients = GradientsParams::from_grads((own + said.flow.loss * examples).backward(), model);
        Ok(Learned { loss, gradients, codes: said.flow.codes })
    }

    /// The mean loss over the answers to a batch, with what a teacher adds.
    fn loss(&self, said: &Answers, batch: &Batch, device: &Device) -> Result<Tensor<1>, Error> {
        let own = said.loss(&batch.asked, self.training.label_smoothing)?;
        let Some((teacher, distil)) = self.teacher else { return Ok(own) };
        let taught = teacher.answers(batch, Pass::default(), &device.clone().inner())?.said;
        let taught = Tensor::from_data(taught.into_data(), device);
        Ok(own + said.divergence(taught, distil.temperature)? * distil.weight)
    }
}

/// Where replicas of a model stand; the first device is that of the model itself.
pub(super) struct Replicas(Vec<(Device, ThreadPool)>);

impl Replicas {
    /// One on each device, which share the threads there are.
    pub fn new(devices: Vec<Device>) -> Result<Self, Error> {
        let threads = (rayon::current_num_threads() / devices.len().max(1)).max(1);
        let refuse = |error| Error::key("train.replicas", format!("{threads} threads cannot be had: {error}"));
        let pool = || ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build().map_err(refuse);
        Ok(Replicas(devices.into_iter().map(|device| Ok((device, pool()?))).collect::<Result<_, Error>>()?))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// As many parts as there are replicas, or fewer, side by side.
    pub fn learn(&self, lesson: Lesson<'_>, parts: &[Part], model: &Model) -> Result<Vec<Learned>, Error> {
        let main = &self.0[0].0;
        thread::scope(|scope| {
            let running: Vec<_> = parts
                .iter()
                .zip(&self.0)
                .map(|(part, (device, pool))| {
                    let replica = model.clone().fork(device);
                    scope.spawn(move || pool.install(move || lesson.learn(part, &replica, device)))
                })
                .collect();
            let ended = running.into_iter().map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)));
            ended.map(|learned| learned.map(|learned| Learned { gradients: learned.gradients.to_device(main, model), ..learned })).collect()
        })
    }
}
