//! Records of runs and comparisons, as `regard report` reads them.

use crate::compare::{Compared, Finished};
use crate::experiment::Opened;
use crate::task::Facts;
use regard_report::schema::{self, Compare, Origin, TrainingRun};

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
