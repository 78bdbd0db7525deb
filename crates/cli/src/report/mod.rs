//! `regard report`: a page of records.

use crate::failure::Failure;
use crate::output::Draft;
use clap::Args;
use regard_report::{Record, page};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Make one HTML page of records: charts, tables and CSV, in a file that needs no network
#[derive(Args)]
#[command(
    after_help = "A record is a JSON file that regard wrote: regard/bench/1, regard/training-run/1 or regard/compare/1. Each is shown with its machine,
commit, seeds and command, in the order given; training runs of one task on one machine share their charts.

Examples:
  regard bench --sweep --json sweep.json
  regard report sweep.json --output page.html"
)]
pub struct Report {
    /// Files to show
    #[arg(required = true, value_name = "RECORD")]
    records: Vec<PathBuf>,
    /// The page
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Reads everything, then writes the page.
pub fn run(report: &Report) -> Result<(), Failure> {
    let draft = Draft::beside(&report.output)?;
    let records = report.records.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    draft.finish(|file| file.write_all(page(&records).as_bytes()))
}

fn read(path: &Path) -> Result<Record, Failure> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| Failure::Data(format!("cannot read {name}: {error}")))?;
    Record::read(&name, &text).map_err(|refusal| Failure::Data(refusal.to_string()))
}
