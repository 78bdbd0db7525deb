//! `regard bench`: how fast the mechanisms are here, as fractions of what this machine can do, and how exact.

mod accuracy;
mod case;
mod draw;
mod heads;
mod log;
mod measure;
mod plan;
mod record;
mod sweep;

use crate::arguments::{Execution, Json, count};
use crate::chosen::{Chosen, Setting};
use crate::failure::{Failure, warn};
use crate::files::Archive;
use crate::output::{self, Draft, JsonTarget};
use crate::tensor::Float;
use case::Phase;
use clap::{Args, ValueEnum};
use heads::{Captured, Sizes, Source};
use log::{Inputs, Log};
use plan::{Plan, is_measured};
use record::{Machine, Record};
use regard_core::Par;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Measure speed, memory and error of mechanisms on this machine
#[derive(Args)]
#[command(
    after_help = "The machine's own ceilings are measured first. backward is forward and backward together. decode attends with one query to
LENGTH keys that no cache holds. Errors are those of sampled rows against the mechanism's definition in f64.
A sweep writes its files after every measurement; one that was stopped goes on with --resume.

Examples:
  regard bench                           the whole table: exact and local, every pass, causal, 512 to 16k tokens
  regard bench --mechanism local --set window=512 --length 4k,16k --causal --json bench.json
  regard bench --sweep --csv sweep.csv   every mechanism, forward and backward, causal and not, 1k to 256k tokens"
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
    /// All mechanisms over 1k to 256k tokens, or what a YAML file says
    #[arg(long, value_name = "FILE", num_args = 0..=1, conflicts_with_all = ["mechanism", "pass", "length", "batch", "heads", "kv_heads", "head_dim", "dtype", "causal", "runs", "set", "tensors"])]
    sweep: Option<Option<PathBuf>>,
    /// Go on with the sweep in the JSON file: what it has is not measured again
    #[arg(long, requires = "sweep")]
    resume: bool,
    /// Write a row for every measurement to FILE
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Seed of whatever is random
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    pub execution: Execution,
    #[command(flatten)]
    json: Json,
}

/// How tensors are stored.
#[derive(Clone, Copy, ValueEnum)]
pub enum Dtype {
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

    /// What there is already, where a sweep goes on; only sweeps leave what they have behind when they are stopped.
    fn log(&self, inputs: Inputs, par: Par) -> Result<Log<'_>, Failure> {
        let file = self.json.path().filter(|path| path.as_os_str() != "-");
        let files = if self.sweep.is_some() { [file, self.csv.as_deref()] } else { [None; 2] };
        match file {
            Some(file) if self.resume => Log::resumed(file, files, inputs, par),
            None if self.resume => Err(Failure::Usage("--resume needs --json FILE: the file to go on with".into())),
            _ => Ok(Log::new(files, inputs, Machine::measured(par))),
        }
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
        source.warn_of_repeats(&lengths);
        for chosen in chosen.iter().filter(|chosen| phases.iter().any(|&phase| !is_measured(chosen, phase))) {
            warn(&format!("{} needs as many queries as keys: its decoding is not measured", chosen.about().name));
        }
        let forms = vec![causal];
        let mut plan = Plan { chosen, phases, lengths, forms, source, captured: None, runs: self.runs, extrapolate: BTreeMap::new() };
        plan.want();
        Ok(plan)
    }
}

/// Measures and reports.
pub fn run(bench: &Bench) -> Result<(), Failure> {
    let plan = match &bench.sweep {
        Some(path) => sweep::plan(path.as_deref())?,
        None => bench.plan()?,
    };
    let target = JsonTarget::new(bench.json.path())?;
    let csv = bench.csv.as_deref().map(Draft::beside).transpose()?;
    plan.check_room()?;
    let par = Par::default();
    let bar = plan.progress();
    bar.set_message("the machine's ceilings");
    let mut log = bench.log(Inputs::of(&plan), par)?;
    let table = target.leaves_stdout();
    if table {
        bar.suspend(|| output::print(&log.machine().heading()))?;
    }
    let report = |record: &Record| if table { bar.suspend(|| output::print(&record.row())) } else { Ok(()) };
    plan.measure(&mut log, par, &bar, report)?;
    bar.finish_and_clear();
    if let Some(csv) = csv {
        csv.finish(|file| record::write_csv(log.all(), file))?;
    }
    target.write(&log.json())
}
