//! `regard attend`: a mechanism applied to the tensors of a file.

mod definition;
mod inputs;
mod kernel;
mod reduced;
mod step;
mod vocabulary;

use crate::arguments::Execution;
use crate::chosen::{Chosen, Setting};
use crate::failure::Failure;
use crate::files::{self, Archive};
use crate::memory;
use crate::output::Draft;
use crate::tensor::{Float, Tensor};
use clap::Args;
use inputs::Loaded;
use regard_core::mechanism::{Pass, Trace};
use regard_core::{Error, Par};
use serde_json::Value;
use std::path::PathBuf;

/// Apply a mechanism to the tensors q, k, v of a file
#[derive(Args)]
#[command(
    after_help = "Shapes: q [B,H,N,Dk], k [B,G,M,Dk], v [B,G,M,Dv], H a multiple of G; one dtype of f32, bf16, f16, or f64 for the definition.
Writes o [B,H,N,Dv] and lse [B,H,N]. `regard list` names the options and the further tensors of each mechanism.

Example:
  regard attend --input qkv.safetensors --output out.safetensors --mechanism local --causal --set window=512"
)]
pub struct Attend {
    /// Safetensors file to read
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Safetensors file to write; may be the input
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Mechanism or reducer, as `regard list` names them
    #[arg(long, value_name = "NAME")]
    mechanism: String,
    /// A query sees no key after its own position
    #[arg(long)]
    causal: bool,
    /// Set an option of the mechanism
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Setting>,
    /// Seed of whatever is random
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Also write the gradients dq, dk, dv and those of biases, for the tensor do, of the shape of o
    #[arg(long)]
    gradients: bool,
    /// Also write the attention that each key received, B × H × M
    #[arg(long)]
    received: bool,
    /// Decode token by token after a prefill of the first M-N keys
    #[arg(long, requires = "causal", conflicts_with_all = ["gradients", "received"])]
    step: bool,
    #[command(flatten)]
    pub execution: Execution,
}

/// A tensor with its name in the output file.
type Named = (&'static str, Tensor);

/// What a mechanism chose, as a tensor of integers.
fn integers(trace: Trace) -> Named {
    (trace.name, Tensor::integers(trace.shape, &trace.values))
}

/// One call, settled.
struct Call<'a> {
    chosen: &'a Chosen,
    pass: Pass,
    par: Par,
    causal: bool,
    gradients: bool,
    received: bool,
    step: bool,
}

/// Reads, attends, writes.
pub fn run(attend: &Attend) -> Result<(), Failure> {
    let chosen = Chosen::one(&attend.mechanism, &attend.set)?;
    let call = attend.settled(&chosen)?;
    let draft = Draft::beside(&attend.output)?;
    let archive = Archive::open(&attend.input)?;
    vocabulary::check(&archive, &call)?;
    let loaded = Loaded::read(&archive, &call)?;
    let results = compute(&call, loaded).map_err(|error| refuse(error, &archive, &chosen))?;
    draft.finish(|file| files::write(&results, file))
}

impl Attend {
    /// Refuses what does not go together.
    fn settled<'a>(&self, chosen: &'a Chosen) -> Result<Call<'a>, Failure> {
        let &Attend { causal, gradients, received, step, seed, .. } = self;
        chosen.check_causal(causal)?;
        if received && !chosen.about().traces.contains(&"received") {
            return Err(Failure::Usage(format!("{} does not write received: leave --received out", self.mechanism)));
        }
        if let Some(reducer) = chosen.reducer.as_ref().filter(|_| step) {
            return Err(Failure::Usage(format!("{} shortens whole sequences: leave --step out", reducer.about().name)));
        }
        let drops = chosen.options().get("dropout").and_then(Value::as_f64).is_some_and(|probability| probability > 0.0);
        if step && drops {
            return Err(Failure::Usage("--step decodes, where nothing is dropped: leave dropout out".into()));
        }
        let pass = Pass { training: gradients || drops, seed, step: 0 };
        Ok(Call { chosen, pass, par: Par::default(), causal, gradients, received, step })
    }
}

fn compute(call: &Call<'_>, loaded: Loaded) -> Result<Vec<Named>, Error> {
    match &call.chosen.reducer {
        Some(reducer) => reduced::attend(call, reducer, loaded),
        None => mixed(call, loaded),
    }
}

/// What the mechanism makes of the tokens.
fn mixed(call: &Call<'_>, loaded: Loaded) -> Result<Vec<Named>, Error> {
    match (loaded.float, call.step) {
        (Float::F64, _) => definition::attend(call, loaded),
        (_, true) => step::attend(call, loaded),
        (_, false) => kernel::attend(call, loaded),
    }
}

/// What is wrong with options or their combination is the caller's; what is wrong with tensors is the file's.
fn refuse(error: Error, archive: &Archive, chosen: &Chosen) -> Failure {
    match &error {
        Error::Combination(message) => Failure::Usage(message.clone()),
        Error::Value { name, .. } if chosen.options().contains_key(*name) => Failure::Usage(error.to_string()),
        _ => Failure::Data(format!("{}: {error}", archive.path().display())),
    }
}

/// Refuses a call whose tensors and results do not fit into memory.
fn check_room(archive: &Archive, loaded: &[&str], results: &[Vec<usize>], float: Float) -> Result<(), Failure> {
    let read = archive.bytes(loaded);
    let mut written = 0.0;
    for shape in results {
        let extent: f64 = shape.iter().map(|&size| size.max(1) as f64).product();
        if extent > isize::MAX as f64 / 16.0 {
            return Err(Failure::Data(format!(
                "{}: a result would have shape {shape:?}, too large for any machine",
                archive.path().display()
            )));
        }
        written += shape.iter().map(|&size| size as f64).product::<f64>() * float.bytes() as f64;
    }
    // The definition holds its inputs as f32 and as f64, and its results with their largest terms.
    let copies = if float == Float::F64 { 3.0 } else { 1.0 };
    memory::check_room(copies * (read as f64 + written), &format!("{}: this call", archive.path().display()))
}
