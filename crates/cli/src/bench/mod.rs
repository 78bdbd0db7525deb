//! `regard bench`: how fast the mechanisms are here, as fractions of what this machine can do, and how exact.

mod accuracy;
mod case;
mod draw;
mod heads;
mod measure;
mod record;

use crate::arguments::{Execution, Json, count};
use crate::chosen::{Chosen, Setting};
use crate::failure::{Failure, warn};
use crate::files::Archive;
use crate::memory;
use crate::output::{self, JsonTarget};
use crate::tensor::Float;
use case::{Case, Phase};
use clap::{Args, ValueEnum};
use heads::{Captured, Sizes, Source};
use indicatif::{ProgressBar, ProgressStyle};
use measure::Evictor;
use record::{Machine, Record};
use regard_core::Par;
use serde_json::json;
use std::path::PathBuf;

/// Measure speed, memory and error of mechanisms on this machine
#[derive(Args)]
#[command(
    after_help = "The machine's own ceilings are measured first. backward is forward and backward together. decode attends with one query to
LENGTH keys that no cache holds. Errors are those of sampled rows against the mechanism's definition in f64.

Examples:
  regard bench                           the whole table: exact and local, every pass, causal, 512 to 16k tokens
  regard bench --mechanism local --set window=512 --length 4k,16k --causal --json bench.json"
)]
pub struct Bench {
    /// Mechanisms; exact and local by default
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    mechanism: Vec<String>,
    /// Passes; all by default
    #[arg(long, value_enum, value_delimiter = ',')]
    pass: Vec<Phase>,
    /// Tokens, k for 1024; 512 to 16k by default, with --tensors as many as the file has
    #[arg(long, value_parser = count, value_delimiter = ',')]
    length: Vec<usize>,
    /// Sequences; 1 by default
    #[arg(long, value_name = "B", value_parser = count)]
    batch: Option<usize>,
    /// Query heads; 8 by default
    #[arg(long, value_name = "H", value_parser = count)]
    heads: Option<usize>,
    /// Key/value heads; as many as query heads by default
    #[arg(long, value_name = "G", value_parser = count)]
    kv_heads: Option<usize>,
    /// Width of a head; 64 by default
    #[arg(long, value_name = "D", value_parser = count)]
    head_dim: Option<usize>,
    /// Storage type; f32 by default, with --tensors the file's
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// A query sees no key after its own position (without any choice of work this is on)
    #[arg(long)]
    causal: bool,
    /// Counted runs; by default 5 up to 4k tokens, 2 up to 8k, then 1
    #[arg(long, value_name = "R", value_parser = count)]
    runs: Option<usize>,
    /// Set an option; name the mechanism where there are several
    #[arg(long, value_name = "[MECHANISM.]KEY=VALUE")]
    set: Vec<Setting>,
    /// Measure on q, k, v of a safetensors file in place of random ones
    #[arg(long, value_name = "FILE", conflicts_with_all = ["batch", "heads", "kv_heads", "head_dim"])]
    tensors: Option<PathBuf>,
    /// Seed of whatever is random
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    execution: Execution,
    #[command(flatten)]
    json: Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
    F16,
}

impl Dtype {
    fn float(self) -> Float {
        match self {
            Dtype::F32 => Float::F32,
            Dtype::Bf16 => Float::Bf16,
            Dtype::F16 => Float::F16,
        }
    }
}

impl Bench {
    /// Whether nobody chose what to measure.
    fn is_whole_table(&self) -> bool {
        let lists_empty = self.mechanism.is_empty() && self.pass.is_empty() && self.length.is_empty() && self.set.is_empty();
        let sizes = [self.batch, self.heads, self.kv_heads, self.head_dim];
        lists_empty && sizes.iter().all(Option::is_none) && self.dtype.is_none() && self.tensors.is_none()
    }

    fn source(&self) -> Result<Source, Failure> {
        let float = self.dtype.map(Dtype::float);
        if let Some(path) = &self.tensors {
            let archive = Archive::open(path)?;
            for name in archive.names().filter(|name| !["q", "k", "v", "x", "do"].contains(name)) {
                warn(&format!("{}: bench reads q, k and v; tensor {name:?} is ignored", path.display()));
            }
            return Captured::read(&archive).map(|captured| Source::captured(captured, float, self.seed));
        }
        let (heads, head_dim) = (self.heads.unwrap_or(8), self.head_dim.unwrap_or(64));
        let kv_heads = self.kv_heads.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(Failure::Usage(format!("--heads {heads} does not divide over --kv-heads {kv_heads}")));
        }
        let sizes = Sizes { batch: self.batch.unwrap_or(1), heads, kv_heads, dk: head_dim, dv: head_dim };
        Ok(Source::random(sizes, float.unwrap_or(Float::F32), self.seed))
    }

    fn plan(&self) -> Result<Plan, Failure> {
        let or_default = |names: &[String]| if names.is_empty() { vec!["exact".to_owned(), "local".to_owned()] } else { names.to_vec() };
        let source = self.source()?;
        let lengths = match (self.length.as_slice(), &source.captured) {
            ([], None) => (9..=14).map(|power| 1 << power).collect(),
            ([], Some(captured)) => vec![captured.length()],
            (lengths, _) => lengths.to_vec(),
        };
        let phases = if self.pass.is_empty() { Phase::value_variants().to_vec() } else { self.pass.clone() };
        let chosen = Chosen::all(&or_default(&self.mechanism), &self.set)?;
        let causal = self.causal || self.is_whole_table();
        chosen.iter().try_for_each(|chosen| chosen.check_causal(causal))?;
        for length in lengths.iter().filter(|&&length| source.captured.as_ref().is_some_and(|captured| captured.is_repeated_at(length))) {
            warn(&format!("length {length} is longer than the file: its rows are repeated, with noise"));
        }
        for chosen in chosen.iter().filter(|chosen| phases.iter().any(|&phase| !is_measured(chosen, phase))) {
            warn(&format!("{} needs as many queries as keys: its decoding is not measured", chosen.about().name));
        }
        Ok(Plan { chosen, phases, lengths, source, causal, runs: self.runs })
    }
}

/// What is measured.
struct Plan {
    chosen: Vec<Chosen>,
    phases: Vec<Phase>,
    lengths: Vec<usize>,
    source: Source,
    causal: bool,
    runs: Option<usize>,
}

impl Plan {
    fn runs(&self, length: usize) -> usize {
        self.runs.unwrap_or(match length {
            0..=4096 => 5,
            4097..=8192 => 2,
            _ => 1,
        })
    }

    /// Refuses lengths whose tensors, results and definition do not fit into memory.
    fn check_room(&self) -> Result<(), Failure> {
        let longest = self.lengths.iter().copied().max().unwrap_or_default();
        let Sizes { batch, heads, kv_heads, dk, dv } = self.source.sizes;
        let row = (heads * (dk + dv) + kv_heads * (dk + dv)) as f64;
        let stored = 2 * self.source.float.bytes() + size_of::<f64>();
        let evictor = if self.phases.contains(&Phase::Decode) { Evictor::BYTES as f64 } else { 0.0 };
        memory::check_room(batch as f64 * longest as f64 * row * stored as f64 + evictor, &format!("--length {longest}"))
    }
}

/// Measures and reports.
pub fn run(bench: &Bench) -> Result<(), Failure> {
    let plan = bench.plan()?;
    let target = JsonTarget::new(bench.json.path())?;
    plan.check_room()?;
    let par = bench.execution.par()?;
    let bar = progress(&plan);
    bar.set_message("the machine's ceilings");
    let machine = Machine::measured(par);
    let table = target.leaves_stdout();
    if table {
        bar.suspend(|| output::print(&machine.heading()))?;
    }
    let report = |record: &Record| if table { bar.suspend(|| output::print(&record.row())) } else { Ok(()) };
    let records = measure_all(&plan, &machine, par, &bar, report)?;
    bar.finish_and_clear();
    target.write(&json!({ "schema": "regard/bench/1", "machine": machine, "results": records }))
}

fn progress(plan: &Plan) -> ProgressBar {
    let cases = plan.chosen.iter().flat_map(|chosen| plan.phases.iter().filter(|&&phase| is_measured(chosen, phase)));
    let bar = ProgressBar::new((plan.lengths.len() * cases.count()) as u64);
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A mechanism that needs as many queries as keys has no pass of one query over many keys: it decodes by its state.
fn is_measured(chosen: &Chosen, phase: Phase) -> bool {
    phase != Phase::Decode || !chosen.about().square
}

fn measure_all(
    plan: &Plan,
    machine: &Machine,
    par: Par,
    bar: &ProgressBar,
    report: impl Fn(&Record) -> Result<(), Failure>,
) -> Result<Vec<Record>, Failure> {
    let mut records = Vec::new();
    let evictor = plan.phases.contains(&Phase::Decode).then(Evictor::new);
    for &length in &plan.lengths {
        let heads = plan.source.heads(length);
        for chosen in &plan.chosen {
            for &phase in plan.phases.iter().filter(|&&phase| is_measured(chosen, phase)) {
                bar.set_message(format!("{} {} at {length}", chosen.about().name, phase.name()));
                let case = Case { chosen, phase, source: &plan.source, heads: &heads, causal: plan.causal, par };
                let record = case.measured(plan.runs(length), evictor.as_ref(), machine)?;
                report(&record)?;
                records.push(record);
                bar.inc(1);
            }
        }
    }
    Ok(records)
}
