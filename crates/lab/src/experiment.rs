//! Configurations as people write them: a task, a model, what mixes its tokens, and how it is trained.

use crate::Error;
use crate::compare::Comparison;
use crate::compare::write;
use crate::model::{Mixing, Model, ModelConfig};
use crate::section::Section;
use crate::task::{About, Task, TaskConfig};
use crate::train::{Event, OTHER, Outcome, Parents, Run, Training, load_kept};
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

    /// Refuses tokens that are not those of the encoder that a model starts from: its table would mean other words.
    fn check_tokens(&self, model: &ModelConfig) -> Result<(), Error> {
        let ModelConfig::Pretrained(model) = model else { return Ok(()) };
        let from = model.from.display();
        let read = |folder: PathBuf| {
            let path = folder.join("tokenizer.json");
            fs::read(&path).map_err(|error| Error::file(&path, error))
        };
        let Some(tokens) = self.written["tokens"]["model"].as_str() else {
            return Err(Error::key("task.tokens", format!("the model {from} reads tokens of its own; write tokens: {{model: {from}}}")));
        };
        if read(self.base.join(tokens))? != read(model.folder())? {
            let message = format!("the tokenizer of {tokens} is not that of the model {from}; write tokens: {{model: {from}}}");
            return Err(Error::key("task.tokens", message));
        }
        Ok(())
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
        let model = ModelConfig::read(section.section("model")?)?.within(base);
        let training = Training::read(section.section("train")?)?;
        let mixing = Mixing::read("attention", &section.value("attention").unwrap_or_else(|| Value::from("exact")))?;
        let opened = Opened::new(&mut section, base)?;
        section.done()?;
        opened.check_tokens(&model)?;
        Ok(Experiment { opened, run: Run { model, mixing, training }, title })
    }

    /// Trains as [`Run::train`] does, with the teacher that the configuration names.
    ///
    /// # Errors
    /// As [`Run::train`]; also if the teacher's run is not there, or learned from other data.
    pub fn train(&self, folder: Option<&Path>, observe: &mut dyn FnMut(Event)) -> Result<Outcome, Error> {
        let teacher = self.teacher()?;
        let parents = Parents { teacher: teacher.as_ref(), ..Parents::default() };
        self.run.train_from(parents, &*self.opened.task, folder, observe)
    }

    fn teacher(&self) -> Result<Option<Model>, Error> {
        let Some(from) = self.run.training.distil.as_ref().and_then(|distil| distil.from.as_ref()) else { return Ok(None) };
        let folder = self.opened.base.join(from);
        let other = Experiment::reopen(&folder)?;
        let [theirs, ours] = [&other.opened, &self.opened].map(|opened| &opened.task.facts().fingerprint);
        if theirs != ours {
            let message = format!("{} learned from other data: its fingerprint is {theirs}, that of this task {ours}", from.display());
            return Err(Error::key("train.distil.from", message));
        }
        Ok(Some(load_kept(&other.run, &*other.opened.task, &folder)?.0))
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
        let (path, kept) = (folder.join(RUN), json!({"base": base, "title": self.title, "experiment": whole}));
        if let Ok(text) = fs::read_to_string(&path) {
            let there: Value = serde_json::from_str(&text).map_err(|error| Error::data(&path, "experiment", error.to_string()))?;
            if there["experiment"] != kept["experiment"] {
                return Err(Error::data(&path, "experiment", OTHER));
            }
        }
        write(&path, &kept)
    }

    /// The experiment of a folder of a run.
    ///
    /// # Errors
    /// If there is none, or its task's data is not there any more.
    pub fn reopen(folder: &Path) -> Result<Self, Error> {
        let (section, base) = kept(folder)?;
        Self::read(section, &base)
    }

    /// [`Experiment::reopen`] with another file as the test split.
    ///
    /// # Errors
    /// As there; also if the task makes its data itself.
    pub fn reopen_with_test(folder: &Path, file: &Path) -> Result<Self, Error> {
        let (mut section, base) = kept(folder)?;
        let name = section.peek("task").and_then(|task| task["name"].as_str()).unwrap_or_default().to_owned();
        let keys = About::of(&name)?.keys();
        if !keys.contains_key("test") {
            return Err(Error::key("--data", format!("the task {name} has no file for its test split")));
        }
        let file = fs::canonicalize(file).map_err(|error| Error::file(file, error))?;
        section.set(&format!("task.test={}", Value::from(file.display().to_string())))?;
        // A file takes no share of another one; what is left over goes to the others as by default.
        if keys.contains_key("splits") {
            section.set("task.splits=null")?;
        }
        Self::read(section, &base)
    }
}

/// What [`Experiment::keep`] wrote, and where its paths start.
fn kept(folder: &Path) -> Result<(Section, PathBuf), Error> {
    let path = folder.join(RUN);
    let text = fs::read_to_string(&path).map_err(|error| Error::file(&path, error))?;
    let damaged = |message: String| Error::data(&path, "experiment", message);
    let mut whole: Value = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    let base = whole["base"].as_str().map(PathBuf::from).ok_or_else(|| damaged("there is no base".into()))?;
    let Value::Object(values) = whole["experiment"].take() else { return Err(damaged("there are no keys".into())) };
    Ok((Section::new("", values), base))
}

/// Whether a folder is that of a run which `regard train` made.
pub fn is_run(folder: &Path) -> bool {
    folder.join(RUN).is_file()
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
        let mut comparison = Comparison::read(&mut section)?;
        comparison.model = comparison.model.within(base);
        let opened = Opened::new(&mut section, base)?;
        section.done()?;
        opened.check_tokens(&comparison.model)?;
        Ok(Contest { opened, comparison, title })
    }
}
