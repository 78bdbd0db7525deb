//! How the program ends when it cannot do what it was asked.

use std::io::Write;
use std::process::ExitCode;

/// Why a run ends early.
#[derive(Debug)]
pub enum Failure {
    /// Flags, names or values of options, combinations.
    Usage(String),
    /// Files, tensors, memory.
    Data(String),
    /// Whoever read standard output has left.
    Closed,
}

impl Failure {
    /// Says what is wrong and how the program ends.
    pub fn report(&self) -> ExitCode {
        let (message, code) = match self {
            Failure::Usage(message) => (message, 2),
            Failure::Data(message) => (message, 1),
            Failure::Closed => return ExitCode::SUCCESS,
        };
        let _ = writeln!(std::io::stderr(), "error: {message}");
        ExitCode::from(code)
    }
}

/// Something the caller should know although the run goes on.
pub fn warn(message: &str) {
    let _ = writeln!(std::io::stderr(), "warning: {message}");
}
