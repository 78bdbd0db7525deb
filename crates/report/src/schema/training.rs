//! `regard/training-run/1`, one configuration trained with one or more seeds, and `regard/compare/1`, several of them on
//! one task.

use super::machine::Origin;
use super::place::Place;
use super::{Refusal, Value};
use serde::Serialize;
use serde_json::Map;

/// One configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainingRun {
    /// Where it came from.
    #[serde(flatten)]
    pub origin: Origin,
    /// What was learned.
    pub task: Task,
    /// What learned it.
    pub configuration: Configuration,
}

/// Several configurations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compare {
    /// Where it came from.
    #[serde(flatten)]
    pub origin: Origin,
    /// What was learned.
    pub task: Task,
    /// What learned it.
    pub configurations: Vec<Configuration>,
}

/// What is learned, and what counts as quality.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// What `quality` is: accuracy, F1, perplexity …
    pub metric: String,
    /// Whether more of it is better.
    pub higher_is_better: bool,
    /// The texts on which quality was measured, such as `test`.
    pub split: Option<String>,
    /// The metric of whoever knows how often labels occur and nothing else.
    pub floor: Option<f64>,
    /// A hash of the first examples.
    pub fingerprint: Option<String>,
    /// As it was written.
    pub config: Map<String, Value>,
}

/// A model and how it was trained.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Configuration {
    /// Its name, unlike the others'.
    pub name: String,
    /// Everything that was chosen.
    pub config: Map<String, Value>,
    /// Trained parameters.
    pub parameters: Option<u64>,
    /// How far its quality is from that of exact attention.
    pub difference: Option<Difference>,
    /// One for every seed.
    pub runs: Vec<Run>,
}

/// A mean of paired differences and its 95% interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The mean.
    pub mean: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// What one seed came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Run {
    /// The seed.
    pub seed: u64,
    /// The task's metric; none where it was not measured.
    pub quality: Option<f64>,
    /// The metric of the example that has the worst one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst: Option<f64>,
    /// The metric ahead of training, where parameters started as those of exact attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_shot: Option<f64>,
    /// Share of the tokens that leave each layer, in the order of layers.
    pub tokens_kept: Vec<f64>,
    /// Speed of training at lengths.
    pub training: Vec<Speed>,
    /// Speed of inference at lengths.
    pub inference: Vec<Speed>,
    /// The curve of training.
    pub curve: Vec<Moment>,
    /// Steps of the optimiser.
    pub steps: Option<u64>,
    /// Seconds of training.
    pub seconds: Option<f64>,
    /// Tokens shown in training.
    pub tokens: Option<u64>,
}

/// How fast, and how large, at one length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// Tokens of a sequence.
    pub length: u64,
    /// Tokens per second.
    pub tokens_per_s: Option<f64>,
    /// Largest memory of the process, bytes.
    pub peak_bytes: Option<u64>,
}

/// A point of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Moment {
    /// Steps of the optimiser.
    pub step: u64,
    /// Loss on what is trained on.
    pub training_loss: Option<f64>,
    /// Loss on what is held out.
    pub validation_loss: Option<f64>,
}

impl TrainingRun {
    pub(super) fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(TrainingRun {
            origin: Origin::read(place)?,
            task: Task::read(&place.at("task")?)?,
            configuration: Configuration::read(&place.at("configuration")?)?,
        })
    }
}

impl Compare {
    pub(super) fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        let configurations = place.list("configurations", Configuration::read)?;
        for (i, configuration) in configurations.iter().enumerate() {
            if configurations[..i].iter().any(|earlier| earlier.name == configuration.name) {
                let name = place.list("configurations", |each| each.at("name"))?.swap_remove(i);
                return Err(name.refuse("a name that no earlier configuration has"));
            }
        }
        Ok(Compare { origin: Origin::read(place)?, task: Task::read(&place.at("task")?)?, configurations })
    }
}

impl Task {
    fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Task {
            name: place.at("name")?.text()?,
            metric: place.at("metric")?.text()?,
            higher_is_better: place.at("higher_is_better")?.truth()?,
            split: place.maybe("split", Place::text)?,
            floor: place.maybe("floor", Place::number)?,
            fingerprint: place.maybe("fingerprint", Place::text)?,
            config: place.maybe("config", Place::object)?.cloned().unwrap_or_default(),
        })
    }
}

impl Configuration {
    fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Configuration {
            name: place.at("name")?.text()?,
            config: place.maybe("config", Place::object)?.cloned().unwrap_or_default(),
            parameters: place.maybe("parameters", Place::count)?,
            difference: place.maybe("difference", Difference::read)?,
            runs: place.list("runs", Run::read)?,
        })
    }
}

impl Run {
    fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Run {
            seed: place.at("seed")?.count()?,
            quality: place.maybe("quality", Place::number)?,
            worst: place.maybe("worst", Place::number)?,
            zero_shot: place.maybe("zero_shot", Place::number)?,
            tokens_kept: place.list_if_known("tokens_kept", Place::share)?,
            training: place.list_if_known("training", Speed::read)?,
            inference: place.list_if_known("inference", Speed::read)?,
            curve: place.list_if_known("curve", Moment::read)?,
            steps: place.maybe("steps", Place::count)?,
            seconds: place.maybe("seconds", Place::amount)?,
            tokens: place.maybe("tokens", Place::count)?,
        })
    }
}

impl Difference {
    fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Difference { mean: place.at("mean")?.number()?, low: place.at("low")?.number()?, high: place.at("high")?.number()? })
    }
}

impl Speed {
    fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Speed {
            length: place.at("length")?.positive_count()?,
            tokens_per_s: place.maybe("tokens_per_s", Place::amount)?,
            peak_bytes: place.maybe("peak_bytes", Place::count)?,
        })
    }
}

impl Moment {
    fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Moment {
            step: place.at("step")?.count()?,
            training_loss: place.maybe("training_loss", Place::number)?,
            validation_loss: place.maybe("validation_loss", Place::number)?,
        })
    }
}
