//! What a measurement leaves behind: JSON for scripts, rows for people.

use super::accuracy::Deviation;
use crate::machine;
use crate::memory::readable;
use crate::tensor::Float;
use regard_core::Par;
use regard_core::simd::ceiling;
use serde::Serialize;
use serde_json::{Map, Value};

/// What was measured on, and its ceilings.
#[derive(Serialize)]
pub struct Machine {
    cpu: Option<String>,
    features: Vec<&'static str>,
    threads: usize,
    level: &'static str,
    compiler: Option<&'static str>,
    commit: Option<&'static str>,
    fma_gflops: f64,
    bf16_gflops: Option<f64>,
    read_gbps: f64,
}

impl Machine {
    /// Measures the ceilings.
    pub fn measured(par: Par) -> Self {
        Machine {
            cpu: machine::cpu(),
            features: machine::features(),
            threads: par.threads_in_use(),
            level: par.level_in_use().name(),
            compiler: machine::compiler(),
            commit: machine::commit(),
            fma_gflops: ceiling::fma_gflops(par),
            bf16_gflops: ceiling::bf16_gflops(par),
            read_gbps: ceiling::read_gbps(par),
        }
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
#[derive(Serialize)]
pub struct Record {
    pub mechanism: &'static str,
    pub pass: &'static str,
    pub dtype: &'static str,
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
}

/// Distance from exact attention.
#[derive(Serialize)]
pub struct Approximation {
    pub random: Option<Deviation>,
    pub captured: Option<Deviation>,
}

impl Record {
    /// Its row of the table.
    pub fn row(&self) -> String {
        let unknown = || "-".to_owned();
        let speed = self.gbps.map_or_else(|| format!("{:.1} GFLOP/s", self.gflops), |gbps| format!("{gbps:.1} GB/s"));
        row([
            self.mechanism,
            self.pass,
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

fn row([mechanism, pass, length, median, speed, ceiling, memory, largest, relative]: [&str; 9]) -> String {
    format!("{mechanism:<10} {pass:<9} {length:>7} {median:>10} {speed:>14} {ceiling:>10} {memory:>12} {largest:>10} {relative:>10}\n")
}

fn duration(seconds: f64) -> String {
    match seconds {
        ..1e-3 => format!("{:.1} µs", seconds * 1e6),
        ..1.0 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}
