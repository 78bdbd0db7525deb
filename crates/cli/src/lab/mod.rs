//! `regard train`, `regard eval`, `regard compare`: what the three share.

pub mod compare;
pub mod eval;
mod swap;
mod table;
pub mod train;
mod watch;

use crate::failure::Failure;
use crate::{machine, output};
use regard_core::Par;
use regard_lab::Error;
use regard_lab::section::Section;
use regard_lab::task::Task;
use regard_report::schema::{Machine, Origin};
use regard_report::{Contents, Record, page};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What is wrong with a file or a run.
pub fn refuse(error: Error) -> Failure {
    Failure::Data(error.to_string())
}

/// A configuration, with what the command line changes in it.
pub fn section(path: &Path, settings: &[String]) -> Result<Section, Failure> {
    let named = |error: Error| match error {
        Error::Key { .. } => Failure::Data(format!("{}: {error}", path.display())),
        other => refuse(other),
    };
    let mut section = Section::open(path).map_err(named)?;
    settings.iter().try_for_each(|setting| section.set(setting)).map_err(|error| Failure::Usage(format!("--set {error}")))?;
    Ok(section)
}

/// An error in a configuration, with the name of its file.
pub fn in_file(path: &Path) -> impl Fn(Error) -> Failure {
    move |error| match error {
        Error::Key { .. } => Failure::Data(format!("{}: {error}", path.display())),
        other => refuse(other),
    }
}

/// Refuses a folder that holds something, unless it is to be gone on with.
pub fn check_folder(folder: &Path, resume: bool) -> Result<(), Failure> {
    let mut entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::Data(format!("cannot use {}: {error}", folder.display()))),
    };
    if !resume && entries.next().is_some() {
        let message = "is not empty; add --resume to go on with the run in it, or name another folder";
        return Err(Failure::Data(format!("{} {message}", folder.display())));
    }
    Ok(())
}

/// Says what a task's data looks like, ahead of results.
pub fn describe(task: &dyn Task) {
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "{}", task.facts());
    for note in task.notes() {
        let _ = writeln!(stderr, "note: {note}");
    }
}

/// Where a record comes from.
pub fn origin(par: Par, title: Option<String>) -> Origin {
    Origin {
        title,
        command: Some(machine::command()),
        machine: Machine {
            cpu: machine::cpu(),
            features: machine::features().into_iter().map(str::to_owned).collect(),
            threads: Some(par.threads_in_use() as u64),
            level: Some(par.level_in_use().name().to_owned()),
            compiler: machine::compiler().map(str::to_owned),
            commit: machine::commit().map(str::to_owned),
            ..Machine::default()
        },
        ..Origin::default()
    }
}

/// Writes the page of one record.
pub fn write_page(draft: output::Draft, contents: &Contents, name: &str) -> Result<(), Failure> {
    let record = Record { file: name.to_owned(), contents: contents.clone() };
    draft.finish(|file| file.write_all(page(&[record]).as_bytes()))
}

/// The page that `--report` names.
pub fn page_draft(path: Option<&PathBuf>) -> Result<Option<output::Draft>, Failure> {
    path.map(|path| output::Draft::beside(path)).transpose()
}
