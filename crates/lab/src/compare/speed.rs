//! How fast a configuration trains and answers, and how much memory that takes, at lengths beyond the task's own: its examples are
//! repeated to the length, and the model gets as many positions.

use crate::Error;
use crate::batch::{Batch, widths};
use crate::model::Model;
use crate::task::{Example, Facts, Input, Split, Target, Task};
use crate::train::Run;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Device;
use regard::Pass;
use regard::optim::AdamW;
use regard_report::schema::Speed;
use std::time::Instant;

/// Tokens that are computed together at least.
const TOGETHER: usize = 4096;
/// Calls of which the fastest counts, where one takes less than a second.
const CALLS: usize = 3;

/// Runs something and says how many bytes it held at most, where that is known.
pub type Peak<'a> = &'a dyn Fn(&mut dyn FnMut()) -> Option<u64>;

/// Speeds of training and of inference at a length.
///
/// # Errors
/// If model and task do not fit, or the task gives no example.
pub fn speeds(run: &Run, task: &dyn Task, length: usize, peak: Peak<'_>) -> Result<[Speed; 2], Error> {
    let facts = Facts { longest: length.max(task.facts().longest), ..task.facts().clone() };
    let sequences = TOGETHER.div_ceil(length);
    let size = facts.sizes[0].unwrap_or(u64::MAX).max(1);
    let examples = (0..sequences as u64).map(|at| Ok(repeated(task.example(Split::Train, at % size)?, &facts, length)));
    let batch = Batch::pack(examples.collect::<Result<_, Error>>()?, &facts);
    let device = Device::flex().autodiff();
    let model = Model::new(&run.model, &run.mixing, &facts, 0, &device)?;
    let inference = {
        let (model, device) = (model.valid(), device.clone().inner());
        timed(&batch, length, peak, || {
            let answers = model.answers(&batch, Pass::default(), &device)?;
            answers.said.into_data();
            Ok(())
        })?
    };
    let mut optimizer = AdamW::default().init();
    let mut held = Some(model);
    let training = timed(&batch, length, peak, || {
        let model = held.take().expect("the last call put it back");
        let answers = model.answers(&batch, Pass { training: true, seed: 0, step: 0 }, &device)?;
        let loss = answers.loss(&batch.asked, 0.0)? + answers.flow.loss;
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        held = Some(optimizer.step(1e-6, model, gradients));
        Ok(())
    })?;
    Ok([training, inference])
}

fn timed(batch: &Batch, length: usize, peak: Peak<'_>, mut call: impl FnMut() -> Result<(), Error>) -> Result<Speed, Error> {
    let mut result = Ok(());
    let peak_bytes = peak(&mut || result = call());
    result?;
    let mut least = f64::INFINITY;
    for _ in 0..CALLS {
        let start = Instant::now();
        call()?;
        least = least.min(start.elapsed().as_secs_f64());
        if least > 1.0 {
            break;
        }
    }
    Ok(Speed { length: length as u64, tokens_per_s: Some(batch.tokens() as f64 / least), peak_bytes })
}

/// An example again and again, up to a length.
fn repeated(example: Example, facts: &Facts, length: usize) -> Example {
    fn cycled<T: Clone>(values: &[T], count: usize) -> Vec<T> {
        values.iter().cycle().take(count).cloned().collect()
    }
    let (features, numbers) = widths(facts);
    Example {
        input: match example.input {
            Input::Tokens(tokens) => Input::Tokens(cycled(&tokens, length)),
            Input::Rows(rows) => Input::Rows(cycled(&rows, length * features)),
        },
        target: match example.target {
            Target::Class(class) => Target::Class(class),
            Target::Tokens(tokens) => Target::Tokens(cycled(&tokens, length)),
            Target::Values(values) => Target::Values(cycled(&values, length * numbers)),
        },
    }
}
