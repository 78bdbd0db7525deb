//! Flags that several verbs share.

use crate::failure::Failure;
use clap::{Args, ValueEnum};
use rayon::ThreadPoolBuilder;
use regard_core::Par;
use regard_core::simd::Level;
use std::path::{Path, PathBuf};

/// How a verb computes.
#[derive(Args)]
pub struct Execution {
    /// Threads, 1 to 1024; the machine's cores by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Highest SIMD level to use: portable, avx2 or avx512; the best there is by default
    #[arg(long)]
    level: Option<Level>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
}

#[derive(Clone, Copy, ValueEnum)]
enum Device {
    Cpu,
}

impl Execution {
    /// Builds the pool of threads and settles the level.
    pub fn par(&self) -> Result<Par, Failure> {
        let Device::Cpu = self.device;
        let level = self.level.unwrap_or_else(Level::detect);
        if !level.is_available() {
            return Err(Failure::Usage(format!("level {level} is not available: this processor has {}", Level::detect())));
        }
        if let Some(threads) = self.threads {
            let pool = ThreadPoolBuilder::new().num_threads(threads.into()).build_global();
            pool.map_err(|error| Failure::Usage(format!("cannot start {threads} threads: {error}")))?;
        }
        Par::cap(level);
        Ok(Par::default().level(level))
    }
}

/// `--json [FILE]`.
#[derive(Args)]
pub struct Json {
    /// Write JSON to FILE, or to standard output and nothing else there
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

impl Json {
    /// The file, `-` for standard output.
    pub fn path(&self) -> Option<&Path> {
        self.json.as_deref()
    }
}

/// A count of at least 1 in which `k` stands for 1024.
pub fn count(text: &str) -> Result<usize, String> {
    let (digits, factor) = text.strip_suffix('k').map_or((text, 1), |digits| (digits, 1024));
    let number = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(factor));
    number.filter(|&number| number > 0).ok_or_else(|| format!("{text} is not a count such as 512 or 4k"))
}
