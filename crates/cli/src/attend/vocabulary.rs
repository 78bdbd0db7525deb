//! Which tensors a file may hold for a mechanism.

use super::Call;
use crate::failure::{Failure, warn};
use crate::files::Archive;

/// Every tensor that some mechanism reads beside q, k, v.
const KNOWN: [&str; 20] = [
    "key_bias",
    "bias",
    "mask",
    "until",
    "lengths",
    "lengths_q",
    "offsets_q",
    "offsets_k",
    "key_spans",
    "key_positions",
    "query_positions",
    "types",
    "type_logits",
    "gates",
    "codebook",
    "codebook_q",
    "hyperplanes",
    "threshold",
    "mix",
    "gate_logits",
];
/// May stand in any file.
const ALWAYS: [&str; 5] = ["q", "k", "v", "x", "do"];
/// Those of a ragged cache.
const RAGGED: [&str; 3] = ["key_spans", "key_positions", "query_positions"];

/// Whether a mechanism, or a reducer beside it, reads a tensor.
fn reads(call: &Call<'_>, name: &str) -> bool {
    let reducer = call.chosen.reducer.as_ref().is_some_and(|reducer| reducer.about().tensors.contains(&name));
    reducer || call.chosen.about().tensors.contains(&name)
}

/// Refuses what another mechanism would read, and what the call excludes; warns of strangers.
pub fn check(archive: &Archive, call: &Call<'_>) -> Result<(), Failure> {
    let by = call.chosen.name();
    for name in archive.names().filter(|name| !ALWAYS.contains(name) && !reads(call, name)) {
        if KNOWN.contains(&name) {
            return Err(archive.refuse(name, &format!("is not read by {}; leave it out of the file", by)));
        }
        warn(&format!("{}: tensor {name:?} is none that {} reads; ignored", archive.path().display(), by));
    }
    let packed = ["offsets_q", "offsets_k"].into_iter().chain(RAGGED);
    if let Some(name) = packed.filter(|_| call.step).find(|name| archive.entry(name).is_some()) {
        return Err(Failure::Usage(format!("--step does not go with the tensor \"{name}\" in {}", archive.path().display())));
    }
    if call.gradients && archive.entry("do").is_none() {
        return Err(archive.refuse("do", "is missing; --gradients needs it, [B,H,N,Dv] of q's dtype"));
    }
    Ok(())
}
