//! Configurations as people write them: a task, a model, what mixes its tokens, and how it is trained.

use crate::Error;
use crate::compare::Comparison;
use crate::compare::write;
use crate::model::{Mixing, ModelConfig};
use crate::section::Section;
use crate::task::{Task, TaskConfig};
use crate::train::{Run, Training};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A task with its data, and where its files are looked for.
pub struct Opened {
    /// The task.
    pub task: Box<dyn Task>,
    /// As it was written.
    pub written: Value,
    /// The folder that its paths start from.
    pub base: PathBuf,
}

impl Opened {
    fn new(section: &mut Section, base: &Path) -> Result<Self, Error> {
        let missing = || Error::key("task", "is missing; write task: {name: recall}");
        let written = section.value("task").ok_or_else(missing)?;
        let config: TaskConfig = serde_json::from_value(written.clone()).map_err(|error| Error::key("task", error.to_string()))?;
        Ok(Opened { task: config.open(base)?, written, base: base.into() })
    }
}

/// The folder of a file, where its relative paths start.
pub fn folder_of(path: &Path) -> PathBuf {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// One run on one task.
pub struct Experiment {
    /// What is learned.
    pub opened: Opened,
    /// What learns it.
    pub run: Run,
    /// For people.
    pub title: Option<String>,
}

impl Experiment {
    /// Reads `title`, `task`, `model`, `attention` and `train`.
    ///
    /// # Errors
    /// What is wrong in the file, or in the task's data.
    pub fn read(mut section: Section, base: &Path) -> Result<Self, Error> {
        let title = section.take("title")?;
        let model = ModelConfig::read(section.section("model")?)?;
        let training = Training::read(section.section("train")?)?;
        let mixing = Mixing::read("attention", &section.value("attention").unwrap_or_else(|| Value::from("exact")))?;
        let opened = Opened::new(&mut section, base)?;
        section.done()?;
        Ok(Experiment { opened, run: Run { model, mixing, training }, title })
    }

    /// Writes into a folder what [`Experiment::reopen`] reads.
    ///
    /// # Errors
    /// If it cannot be written, or something else is there.
    pub fn keep(&self, folder: &Path) -> Result<(), Error> {
        fs::create_dir_all(folder).map_err(|error| Error::file(folder, error))?;
        let base = fs::canonicalize(&self.opened.base).map_err(|error| Error::file(&self.opened.base, error))?;
        let mut whole = self.run.json();
        whole["task"] = self.opened.written.clone();
        write(&folder.join(RUN), &json!({"base": base, "title": self.title, "experiment": whole}))
    }

    /// The experiment of a folder of a run.
    ///
    /// # Errors
    /// If there is none, or its task's data is not there any more.
    pub fn reopen(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(RUN);
        let text = fs::read_to_string(&path).map_err(|error| Error::file(&path, error))?;
        let damaged = |message: String| Error::data(&path, "experiment", message);
        let mut whole: Value = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let base = whole["base"].as_str().map(PathBuf::from).ok_or_else(|| damaged("there is no base".into()))?;
        let Value::Object(values) = whole["experiment"].take() else { return Err(damaged("there are no keys".into())) };
        Self::read(Section::new("", values), &base)
    }
}

const RUN: &str = "run.json";

/// Several configurations on one task.
pub struct Contest {
    /// What is learned.
    pub opened: Opened,
    /// Who learns it.
    pub comparison: Comparison,
    /// For people.
    pub title: Option<String>,
}

impl Contest {
    /// Reads `title`, `task`, `model`, `train`, `seeds`, `configurations` and `lengths`.
    ///
    /// # Errors
    /// What is wrong in the file, or in the task's data.
    pub fn read(mut section: Section, base: &Path) -> Result<Self, Error> {
        let title = section.take("title")?;
        let comparison = Comparison::read(&mut section)?;
        let opened = Opened::new(&mut section, base)?;
        section.done()?;
        Ok(Contest { opened, comparison, title })
    }
}
