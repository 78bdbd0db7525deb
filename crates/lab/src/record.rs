//! Records of runs and comparisons, as `regard report` reads them.

use crate::compare::{Agreement, Compared, Finished};
use crate::experiment::Opened;
use crate::task::Facts;
use regard_report::schema::{self, Compare, Origin, Speed, TrainingRun};
use serde_json::{Map, Value};
use std::path::Path;

/// What was learned, for a record.
pub fn task(opened: &Opened) -> schema::Task {
    let Facts { name, metric, floor, fingerprint, .. } = opened.task.facts();
    schema::Task {
        name: (*name).to_owned(),
        metric: metric.name().to_owned(),
        higher_is_better: metric.higher_is_better(),
        split: Some("test".to_owned()),
        floor: *floor,
        fingerprint: Some(fingerprint.clone()),
        config: opened.written.as_object().cloned().unwrap_or_default(),
    }
}

/// The record of one finished run.
pub fn training_run(origin: Origin, opened: &Opened, name: &str, finished: &Finished) -> TrainingRun {
    let compared = Compared::alone(name, finished.clone());
    TrainingRun { origin, task: task(opened), configuration: compared.record() }
}

/// The record of a comparison.
pub fn compare(origin: Origin, opened: &Opened, all: &[Compared]) -> Compare {
    Compare { origin, task: task(opened), configurations: all.iter().map(Compared::record).collect() }
}

/// The record of an encoder under other mechanisms, on the texts of a file whose longest has `longest` tokens.
pub fn agreement(origin: Origin, [model, file]: [&Path; 2], all: &[Agreement], longest: usize) -> Compare {
    let written = |path: &Path| Value::from(path.display().to_string());
    let task = schema::Task {
        name: "embed".to_owned(),
        metric: "cosine to exact".to_owned(),
        higher_is_better: true,
        split: None,
        floor: None,
        fingerprint: None,
        config: Map::from_iter([("model".to_owned(), written(model)), ("data".to_owned(), written(file))]),
    };
    let configuration = |agreement: &Agreement| schema::Configuration {
        name: agreement.mixing.name.clone(),
        config: agreement.mixing.written.clone(),
        runs: vec![schema::Run {
            quality: Some(agreement.mean()),
            worst: Some(agreement.least()),
            tokens_kept: agreement.kept.clone(),
            inference: vec![Speed { length: longest as u64, tokens_per_s: Some(agreement.tokens_per_s), peak_bytes: None }],
            ..schema::Run::default()
        }],
        ..schema::Configuration::default()
    };
    Compare { origin, task, configurations: all.iter().map(configuration).collect() }
}
