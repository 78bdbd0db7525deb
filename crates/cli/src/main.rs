//! `regard`: attention on files of tensors, how fast it is on this machine, vectors of texts, texts with
//! fewer words, and pages of what was measured.
//!
//! Results go to standard output, progress and warnings to standard error. The program ends with 0 when all is done, 2
//! when it was called wrongly, 1 when a file, a tensor or the machine stands in the way.

mod arguments;
mod attend;
mod bench;
mod chosen;
mod compress;
mod embed;
mod failure;
mod files;
mod lab;
mod list;
mod machine;
mod memory;
mod output;
mod report;
mod tensor;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use failure::Failure;
use std::any::Any;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::path::Path;
use std::process::ExitCode;

/// Attention for long sequences: exact and approximate mechanisms behind one interface.
#[derive(Parser)]
#[command(name = "regard", version = machine::version(), arg_required_else_help = true)]
#[command(
    after_help = "Example:\n  regard attend --input qkv.safetensors --output out.safetensors --mechanism local --causal --set window=512"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    List(list::List),
    Attend(attend::Attend),
    Bench(bench::Bench),
    Embed(embed::Embed),
    Compress(compress::Compress),
    Train(lab::train::Train),
    Eval(lab::eval::Eval),
    Compare(lab::compare::Compare),
    Report(report::Report),
    /// Print a script that completes this program's arguments in a shell
    #[command(after_help = "Example:\n  regard completions bash > ~/.local/share/bash-completion/completions/regard")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

fn main() -> ExitCode {
    memory::keep_freed();
    panic::set_hook(Box::new(report_bug));
    let verb = Cli::parse().verb;
    match panic::catch_unwind(AssertUnwindSafe(|| run(verb))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.report(),
        Err(_) => ExitCode::from(1),
    }
}

fn run(verb: Verb) -> Result<(), Failure> {
    output::remove_drafts_when_stopped()?;
    match verb {
        Verb::List(list) => list::run(&list),
        Verb::Attend(attend) => attend.execution.on_pool(|| attend::run(&attend)),
        Verb::Bench(bench) => bench.execution.on_pool(|| bench::run(&bench)),
        Verb::Embed(embed) => embed.execution.on_pool(|| embed::run(&embed)),
        Verb::Compress(compress) => compress.execution.on_pool(|| compress::run(&compress)),
        Verb::Train(train) => train.execution.on_pool(|| lab::train::run(&train)),
        Verb::Eval(eval) => eval.execution.on_pool(|| lab::eval::run(&eval)),
        Verb::Compare(compare) => compare.execution.on_pool(|| lab::compare::run(&compare)),
        Verb::Report(report) => report::run(&report),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "regard", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
    }
}

/// One line for what should not have happened. Nothing half-written stays behind: the stack unwinds.
fn report_bug(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map_or_else(String::new, |location| {
        let file = Path::new(location.file()).file_name().unwrap_or_default();
        format!(" ({}:{})", file.to_string_lossy(), location.line())
    });
    let message = payload(panic.payload()).replace('\n', " ");
    let _ = writeln!(std::io::stderr(), "internal error: {message}{place}; this is a bug, please report it");
}

fn payload(payload: &dyn Any) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "no message",
    }
}
