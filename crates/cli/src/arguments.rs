//! Flags that several verbs share.

use crate::failure::Failure;
use clap::{Args, ValueEnum};
use rayon::ThreadPoolBuilder;
use regard_core::Par;
use regard_core::simd::Level;
use std::path::{Path, PathBuf};

/// Bytes of a thread's stack: what a program's first thread has.
const STACK: usize = 8 << 20;

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
    /// Starts the threads, settles the level, and does the work on one of the threads: from outside, every operation would
    /// have to wake them.
    pub fn on_pool<T: Send>(&self, work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
        let Device::Cpu = self.device;
        let level = self.level.unwrap_or_else(Level::detect);
        if !level.is_available() {
            return Err(Failure::Usage(format!("level {level} is not available: this processor has {}", Level::detect())));
        }
        let pool = ThreadPoolBuilder::new().num_threads(self.threads.unwrap_or(0).into()).stack_size(STACK).build_global();
        let count = self.threads.map_or_else(String::new, |threads| format!("{threads} "));
        pool.map_err(|error| Failure::Usage(format!("cannot start {count}threads: {error}")))?;
        Par::cap(level);
        regard_core::on_pool(work)
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
