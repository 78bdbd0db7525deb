//! Checkpoints: a folder for each, complete or not there at all.
//!
//! `step-00000250/` holds the parameters (`model.bpk`), the optimiser's state (`optimizer.bpk`) and where training stands (`state.json`). It is
//! written under another name, flushed to the disk, and renamed; whatever a killed run leaves half-written is under that other name.

use crate::Error;
use crate::model::Model;
use burn::module::Module;
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::store::ModuleRecord;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Where training stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Tokens shown.
    pub tokens: u64,
    /// The best validation quality so far, and its step.
    pub best: Option<(f64, u64)>,
    /// Evaluations since the best one.
    pub worse: u64,
    /// Bytes of the metrics that belong to these steps.
    pub metrics: u64,
    /// A hash of the configuration; another one does not go on from here.
    pub config: String,
    /// Codes of codebooks that started again.
    pub restarts: u64,
}

const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";

/// The checkpoints of a run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// Those under a folder, which is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(|error| Error::file(folder, error))?;
        Ok(Checkpoints { folder: folder.into() })
    }

    /// The newest complete checkpoint.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn newest(&self) -> Result<Option<PathBuf>, Error> {
        Ok(self.all()?.pop())
    }

    /// Complete checkpoints, oldest first.
    fn all(&self) -> Result<Vec<PathBuf>, Error> {
        let refuse = |error| Error::file(&self.folder, error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(refuse)? {
            let path = entry.map_err(refuse)?.path();
            let step = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("step-"));
            if step.is_some_and(|step| step.bytes().all(|byte| byte.is_ascii_digit())) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Writes a checkpoint and drops older ones but the last before it and the best.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn save(&self, model: &Model, optimizer: &ModuleOptimizer, state: &State) -> Result<PathBuf, Error> {
        let target = self.folder.join(format!("step-{:08}", state.step));
        let draft = self.folder.join(".draft");
        let refuse = |path: &Path| {
            let path = path.to_owned();
            move |error| Error::file(path, error)
        };
        if draft.exists() {
            fs::remove_dir_all(&draft).map_err(refuse(&draft))?;
        }
        fs::create_dir_all(&draft).map_err(refuse(&draft))?;
        let record = |path: &Path, error: &dyn std::fmt::Display| Error::data(path, "checkpoint", error.to_string());
        let path = draft.join(MODEL);
        model.clone().into_record().save(&path).map_err(|error| record(&path, &error))?;
        let path = draft.join(OPTIMIZER);
        optimizer.to_record().save(&path).map_err(|error| record(&path, &error))?;
        let path = draft.join(STATE);
        let text = serde_json::to_string_pretty(state).map_err(|error| record(&path, &error))?;
        fs::write(&path, text + "\n").map_err(refuse(&path))?;
        for name in [MODEL, OPTIMIZER, STATE] {
            let path = draft.join(name);
            File::open(&path).and_then(|file| file.sync_all()).map_err(refuse(&path))?;
        }
        if target.exists() {
            self.remove(&target)?;
        }
        fs::rename(&draft, &target).map_err(refuse(&target))?;
        self.drop_older(state)?;
        Ok(target)
    }

    fn drop_older(&self, state: &State) -> Result<(), Error> {
        let all = self.all()?;
        let best = state.best.map(|(_, step)| self.folder.join(format!("step-{step:08}")));
        for old in &all[..all.len().saturating_sub(2)] {
            if Some(old) != best.as_ref() {
                self.remove(old)?;
            }
        }
        Ok(())
    }

    /// Takes a checkpoint's name away first: what a kill leaves of it is none any more.
    fn remove(&self, checkpoint: &Path) -> Result<(), Error> {
        let dropped = self.folder.join(".dropped");
        if dropped.exists() {
            fs::remove_dir_all(&dropped).map_err(|error| Error::file(&dropped, error))?;
        }
        fs::rename(checkpoint, &dropped).map_err(|error| Error::file(checkpoint, error))?;
        fs::remove_dir_all(&dropped).map_err(|error| Error::file(&dropped, error))
    }

    /// The checkpoint of a step.
    pub fn of(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }
}

/// Parameters of a checkpoint, put into a model of its shape.
///
/// # Errors
/// If the file cannot be read or is that of another model; the parameter is named.
pub fn load_model(checkpoint: &Path, model: Model) -> Result<Model, Error> {
    load(checkpoint, model, false)
}

/// Parameters of a checkpoint that may have more than the model: those of a mechanism that it was trained with.
///
/// # Errors
/// As [`load_model`].
pub fn load_with_rest(checkpoint: &Path, model: Model) -> Result<Model, Error> {
    load(checkpoint, model, true)
}

fn load(checkpoint: &Path, model: Model, rest: bool) -> Result<Model, Error> {
    let path = checkpoint.join(MODEL);
    let record = ModuleRecord::load(&path).map_err(|error| Error::data(&path, "checkpoint", error.to_string()))?;
    let loaded = model.try_load_record(record.allow_unused(rest));
    loaded.map_err(|error| Error::data(&path, "checkpoint of another model", error.to_string()))
}

/// The optimiser's state of a checkpoint.
///
/// # Errors
/// If the file cannot be read.
pub fn load_optimizer(checkpoint: &Path, optimizer: ModuleOptimizer) -> Result<ModuleOptimizer, Error> {
    let path = checkpoint.join(OPTIMIZER);
    let record = OptimizerRecord::load(&path).map_err(|error| Error::data(&path, "checkpoint", error.to_string()))?;
    Ok(optimizer.load_record(record))
}

/// Where training stood.
///
/// # Errors
/// If the file cannot be read.
pub fn load_state(checkpoint: &Path) -> Result<State, Error> {
    let path = checkpoint.join(STATE);
    let text = fs::read_to_string(&path).map_err(|error| Error::file(&path, error))?;
    serde_json::from_str(&text).map_err(|error| Error::data(&path, "checkpoint", error.to_string()))
}
