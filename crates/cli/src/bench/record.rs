//! What a measurement leaves behind: JSON for scripts, rows for people.

use super::accuracy::Deviation;
use crate::machine;
use crate::memory::readable;
use crate::tensor::Float;
use regard_core::Par;
use regard_core::simd::ceiling;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::io;

/// What was measured on, and its ceilings.
#[derive(Serialize, Deserialize)]
pub struct Machine {
    cpu: Option<String>,
    features: Vec<String>,
    threads: usize,
    level: String,
    compiler: Option<String>,
    commit: Option<String>,
    fma_gflops: f64,
    bf16_gflops: Option<f64>,
    read_gbps: f64,
}

impl Machine {
    /// Asks what this machine is; its ceilings are not known yet.
    pub fn here(par: Par) -> Self {
        Machine {
            cpu: machine::cpu(),
            features: machine::features().into_iter().map(Into::into).collect(),
            threads: par.threads_in_use(),
            level: par.level_in_use().name().into(),
            compiler: machine::compiler().map(Into::into),
            commit: machine::commit().map(Into::into),
            fma_gflops: 0.0,
            bf16_gflops: None,
            read_gbps: 0.0,
        }
    }

    /// Measures the ceilings.
    pub fn measured(par: Par) -> Self {
        Machine {
            fma_gflops: ceiling::fma_gflops(par),
            bf16_gflops: ceiling::bf16_gflops(par),
            read_gbps: ceiling::read_gbps(par),
            ..Machine::here(par)
        }
    }

    /// The first thing in which another one differs, ceilings aside: its name, and what it is here and there.
    pub fn difference(&self, other: &Machine) -> Option<(&'static str, String)> {
        let unknown = |x: &Option<String>| x.clone().unwrap_or_else(|| "unknown".into());
        let facts = |machine: &Machine| {
            [
                ("processor", unknown(&machine.cpu)),
                ("features", machine.features.join(" ")),
                ("threads", machine.threads.to_string()),
                ("level", machine.level.clone()),
                ("compiler", unknown(&machine.compiler)),
                ("commit", unknown(&machine.commit)),
            ]
        };
        let differs = |((name, here), (_, there)): ((&'static str, String), (_, String))| {
            (here != there).then(|| (name, format!("{there}, here it is {here}")))
        };
        facts(self).into_iter().zip(facts(other)).find_map(differs)
    }

    /// The arithmetic that a storage type can reach, GFLOP/s.
    pub fn arithmetic(&self, float: Float) -> f64 {
        self.bf16_gflops.filter(|_| float == Float::Bf16).unwrap_or(self.fma_gflops)
    }

    /// Memory read, GB/s.
    pub fn reading(&self) -> f64 {
        self.read_gbps
    }

    /// The head of the table.
    pub fn heading(&self) -> String {
        let Machine { threads, level, fma_gflops, read_gbps, .. } = self;
        let cpu = self.cpu.as_deref().unwrap_or("unknown processor");
        let bf16 = self.bf16_gflops.map_or_else(String::new, |gflops| format!(", bf16 dot {gflops:.0} GFLOP/s"));
        let columns = row(["mechanism", "pass", "length", "median", "speed", "of ceiling", "extra memory", "max error", "rel. error"]);
        format!(
            "{cpu}, {threads} threads, level {level}\nceilings: FMA {fma_gflops:.0} GFLOP/s{bf16}, memory read {read_gbps:.1} GB/s\n\n{columns}"
        )
    }
}

/// One measurement.
#[derive(Serialize, Deserialize)]
pub struct Record {
    pub mechanism: String,
    pub pass: String,
    pub dtype: String,
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub length: usize,
    pub causal: bool,
    pub options: Map<String, Value>,
    pub median_s: f64,
    pub min_s: f64,
    pub runs: usize,
    pub gflops: f64,
    pub gbps: Option<f64>,
    pub ceiling_fraction: f64,
    pub extra_bytes: Option<usize>,
    pub error: Option<Deviation>,
    pub approximation: Option<Approximation>,
    /// The length that was measured, where time was reckoned and not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extrapolated_from: Option<usize>,
}

/// Distance from exact attention.
#[derive(Serialize, Deserialize)]
pub struct Approximation {
    pub random: Option<Deviation>,
    pub captured: Option<Deviation>,
}

impl Record {
    fn cells(&self) -> [String; COLUMNS.len()] {
        fn known<T: ToString>(x: Option<T>) -> String {
            x.map_or_else(String::new, |x| x.to_string())
        }
        let relative = |deviation: Option<Deviation>| known(deviation.and_then(|deviation| deviation.rel_l2));
        let approximation = |of: fn(&Approximation) -> Option<Deviation>| relative(self.approximation.as_ref().and_then(of));
        [
            self.mechanism.clone(),
            self.pass.clone(),
            self.dtype.clone(),
            self.causal.to_string(),
            self.batch.to_string(),
            self.heads.to_string(),
            self.kv_heads.to_string(),
            self.head_dim.to_string(),
            self.length.to_string(),
            Value::Object(self.options.clone()).to_string(),
            self.median_s.to_string(),
            self.min_s.to_string(),
            self.runs.to_string(),
            self.gflops.to_string(),
            known(self.gbps),
            self.ceiling_fraction.to_string(),
            known(self.extra_bytes),
            known(self.error.map(|error| error.max_abs)),
            relative(self.error),
            approximation(|of| of.random),
            approximation(|of| of.captured),
            known(self.extrapolated_from),
        ]
    }

    /// Its row of the table.
    pub fn row(&self) -> String {
        let unknown = || "-".to_owned();
        let speed = self.gbps.map_or_else(|| format!("{:.1} GFLOP/s", self.gflops), |gbps| format!("{gbps:.1} GB/s"));
        row([
            &self.mechanism,
            &self.pass,
            &self.length.to_string(),
            &duration(self.median_s),
            &speed,
            &format!("{:.0}%", 100.0 * self.ceiling_fraction),
            &self.extra_bytes.map_or_else(unknown, |bytes| readable(bytes as f64)),
            &self.error.map_or_else(unknown, |error| format!("{:.1e}", error.max_abs)),
            &self.error.and_then(|error| error.rel_l2).map_or_else(unknown, |error| format!("{error:.1e}")),
        ])
    }
}

/// The columns of [`write_csv`].
const COLUMNS: [&str; 22] = [
    "mechanism",
    "pass",
    "dtype",
    "causal",
    "batch",
    "heads",
    "kv_heads",
    "head_dim",
    "length",
    "options",
    "median_s",
    "min_s",
    "runs",
    "gflops",
    "gbps",
    "ceiling_fraction",
    "extra_bytes",
    "error_max_abs",
    "error_rel_l2",
    "random_rel_l2",
    "captured_rel_l2",
    "extrapolated_from",
]; // fmt

/// A row for every measurement; what is unknown is empty.
pub fn write_csv<'r>(records: impl Iterator<Item = &'r Record>, into: impl io::Write) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(into);
    writer.write_record(COLUMNS)?;
    for record in records {
        writer.write_record(record.cells())?;
    }
    writer.flush()
}

fn row([mechanism, pass, length, median, speed, ceiling, memory, largest, relative]: [&str; 9]) -> String {
    format!("{mechanism:<12} {pass:<9} {length:>7} {median:>10} {speed:>14} {ceiling:>10} {memory:>12} {largest:>10} {relative:>10}\n")
}

fn duration(seconds: f64) -> String {
    match seconds {
        ..1e-3 => format!("{:.1} µs", seconds * 1e6),
        ..1.0 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}
