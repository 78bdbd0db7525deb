//! Measurements as they come. A sweep writes them after every one, so that one that is stopped can go on where it was.

use super::plan::Plan;
use super::record::{self, Machine, Record};
use crate::failure::Failure;
use crate::output::Draft;
use regard_core::Par;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::Path;

const SCHEMA: &str = "regard/bench/1";

/// What measurements are made on, beside what each of them says.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
pub struct Inputs {
    seed: u64,
    value_dim: usize,
    tensors: Option<String>,
    captured: Option<String>,
}

impl Inputs {
    /// Those of a plan.
    pub fn of(plan: &Plan) -> Self {
        let captured = plan.captured.as_ref().and_then(|source| source.file());
        Inputs { seed: plan.source.seed, value_dim: plan.source.sizes.dv, tensors: plan.source.file(), captured }
    }
}

/// As written.
#[derive(Serialize)]
pub struct Written<'l> {
    schema: &'static str,
    command: String,
    seed: u64,
    inputs: &'l Inputs,
    machine: &'l Machine,
    results: Vec<&'l Record>,
}

/// As read.
#[derive(Deserialize)]
struct Read {
    schema: String,
    inputs: Option<Inputs>,
    machine: Machine,
    results: Vec<Record>,
}

/// What was measured.
pub struct Log<'l> {
    inputs: Inputs,
    machine: Machine,
    records: Vec<Record>,
    /// Of an earlier run, not yet asked for.
    earlier: Vec<Record>,
    /// JSON and rows, written after every measurement.
    files: [Option<&'l Path>; 2],
}

impl<'l> Log<'l> {
    /// An empty one.
    pub fn new(files: [Option<&'l Path>; 2], inputs: Inputs, machine: Machine) -> Self {
        Log { inputs, machine, records: Vec::new(), earlier: Vec::new(), files }
    }

    /// Goes on with a file, if there is one: its ceilings stay, so that fractions of them can be compared.
    pub fn resumed(file: &Path, files: [Option<&'l Path>; 2], inputs: Inputs, par: Par) -> Result<Self, Failure> {
        let refuse = |reason: String| Failure::Data(format!("cannot go on with {}: {reason}", file.display()));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Log::new(files, inputs, Machine::measured(par))),
            Err(error) => return Err(refuse(error.to_string())),
        };
        let read: Read = serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        if read.schema != SCHEMA {
            return Err(refuse(format!("its schema is {}, expected {SCHEMA}", read.schema)));
        }
        if read.inputs.as_ref() != Some(&inputs) {
            return Err(refuse("it was measured on other inputs (seed, value_dim, tensors or captured); name another file".into()));
        }
        if let Some((name, values)) = Machine::here(par).difference(&read.machine) {
            return Err(refuse(format!("its {name} is {values}; name another file")));
        }
        Ok(Log { earlier: read.results, ..Log::new(files, inputs, read.machine) })
    }

    /// What it is measured on.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What was measured or asked for so far.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// An earlier record, if there is such a one.
    pub fn recall(&mut self, is_meant: impl Fn(&Record) -> bool) -> Option<&Record> {
        let at = self.earlier.iter().position(is_meant)?;
        let record = self.earlier.remove(at);
        self.records.push(record);
        self.records.last()
    }

    /// Takes in a new one, and writes all where a file is kept.
    pub fn add(&mut self, record: Record) -> Result<(), Failure> {
        self.records.push(record);
        let [json, rows] = self.files;
        if let Some(file) = json {
            let text = serde_json::to_string_pretty(&self.json()).map_err(|error| Failure::Data(error.to_string()))?;
            Draft::beside(file)?.finish(|file| writeln!(file, "{text}"))?;
        }
        if let Some(file) = rows {
            Draft::beside(file)?.finish(|file| record::write_csv(self.all(), file))?;
        }
        Ok(())
    }

    /// Everything, what was not asked for at the end.
    pub fn all(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().chain(&self.earlier)
    }

    /// All that is written.
    pub fn json(&self) -> Written<'_> {
        let command = crate::machine::command();
        let (inputs, machine) = (&self.inputs, &self.machine);
        Written { schema: SCHEMA, command, seed: inputs.seed, inputs, machine, results: self.all().collect() }
    }
}
