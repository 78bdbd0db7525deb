//! `regard compare`: several mechanisms and reducers on one task, side by side, each trained; or with `--model`, none.

use super::watch::Watch;
use super::{check_folder, describe, in_file, origin, page_draft, refuse, section, swap, table, write_page};
use crate::arguments::{Execution, Json};
use crate::failure::Failure;
use crate::memory::peak_during;
use crate::output::{self, JsonTarget};
use clap::Args;
use regard_core::Par;
use regard_lab::compare::{Compared, Watch as Watched};
use regard_lab::experiment::{Contest, folder_of};
use regard_lab::record;
use regard_lab::section::Section;
use regard_report::Contents;
use std::path::{Path, PathBuf};

/// What is compared where no file says otherwise.
const DEFAULT: &str = include_str!("../../../../configs/compare.yaml");
const DEFAULT_NAME: &str = "configs/compare.yaml";

/// Train several mechanisms and reducers on one task under one budget, and see quality, time, memory and compression side by side
#[derive(Args)]
#[command(
    after_help = "Without a configuration: recall of five mechanisms, in less than three minutes on two cores. With an output folder, what is finished is
kept, and an interrupted comparison goes on with --resume. With --model nothing is trained: the parameters of a run or of an encoder stay, and
the mechanism is swapped.

Examples:
  regard compare --report page.html
  regard compare configs/recall.yaml --output runs/recall --json recall.json
  regard compare --model runs/shakespeare --attention exact,local --set local.window=32
  regard compare --model all-MiniLM-L6-v2 --data texts.txt"
)]
pub struct Compare {
    /// What to compare: task, model, train, seeds, configurations, lengths
    #[arg(value_name = "CONFIG")]
    config: Option<PathBuf>,
    /// Folder of the runs; nothing is kept without it
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Go on with the comparison that is in the folder
    #[arg(long, requires = "output")]
    resume: bool,
    /// Folder that the task's paths start from, that of the configuration without it; with --model a file: texts, one a line or the column
    /// text of a .tsv, for an encoder, another test split for a run
    #[arg(long, value_name = "DIR|FILE")]
    pub(super) data: Option<PathBuf>,
    /// Keep the parameters and swap the mechanism: folder of a run that regard train made, or of an encoder from Hugging Face
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "output", "resume"])]
    model: Option<PathBuf>,
    /// With --model, mechanisms and reducers, as regard list names them; all that fit without it
    #[arg(long, value_name = "A,B", value_delimiter = ',', requires = "model")]
    pub(super) attention: Vec<String>,
    /// Set a key of the configuration, such as train.steps=500; with --model an option, such as local.window=32
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// Write a page of the comparison
    #[arg(long, value_name = "FILE")]
    pub(super) report: Option<PathBuf>,
    #[command(flatten)]
    pub(super) json: Json,
    #[command(flatten)]
    pub execution: Execution,
}

/// Trains everything, measures everything, and leaves a record.
pub fn run(compare: &Compare) -> Result<(), Failure> {
    if let Some(model) = &compare.model {
        return swap::run(compare, model);
    }
    let par = Par::default();
    let target = JsonTarget::new(compare.json.path())?;
    let page = page_draft(compare.report.as_ref())?;
    let contest = compare.contest()?;
    if let Some(folder) = &compare.output {
        check_folder(folder, compare.resume)?;
    }
    let task = &*contest.opened.task;
    describe(task);
    let all = measured(&contest, compare.output.as_deref())?;
    let record = Contents::Compare(record::compare(origin(par, contest.title.clone()), &contest.opened, &all));
    if let Some(folder) = &compare.output {
        JsonTarget::new(Some(&folder.join("record.json")))?.write(&record)?;
    }
    if target.leaves_stdout() {
        output::print(&table::table(&all, task.facts()))?;
    }
    if let Some(page) = page {
        write_page(page, &record, "compare")?;
    }
    target.write(&record)
}

fn measured(contest: &Contest, folder: Option<&Path>) -> Result<Vec<Compared>, Failure> {
    let mut watch = Watch::new("");
    let peak = |call: &mut dyn FnMut()| peak_during(call).1.map(|bytes| bytes as u64);
    let all = {
        let mut watched = Watched { progress: &mut |progress| watch.progress(progress), peak: &peak };
        contest.comparison.run(&*contest.opened.task, folder, &mut watched).map_err(refuse)?
    };
    watch.finish();
    Ok(all)
}

impl Compare {
    fn contest(&self) -> Result<Contest, Failure> {
        let Some(path) = &self.config else {
            let name = Path::new(DEFAULT_NAME);
            let mut section = Section::parse(name, DEFAULT).map_err(refuse)?;
            self.set.iter().try_for_each(|setting| section.set(setting)).map_err(|error| Failure::Usage(format!("--set {error}")))?;
            return Contest::read(section, Path::new(".")).map_err(in_file(name));
        };
        let base = self.data.clone().unwrap_or_else(|| folder_of(path));
        Contest::read(section(path, &self.set)?, &base).map_err(in_file(path))
    }
}
