//! What a record was made on, and with what.

use super::Refusal;
use super::place::Place;
use serde::Serialize;

/// The machine, its ceilings where they were measured, and what the program was made from.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Machine {
    /// The processor's model.
    pub cpu: Option<String>,
    /// What computed, where it was not the processor.
    pub device: Option<String>,
    /// The processor's features that matter.
    pub features: Vec<String>,
    /// Threads in use.
    pub threads: Option<u64>,
    /// SIMD level in use.
    pub level: Option<String>,
    /// The compiler.
    pub compiler: Option<String>,
    /// The commit of the program.
    pub commit: Option<String>,
    /// Fused multiply-add in f32, GFLOP/s.
    pub fma_gflops: Option<f64>,
    /// Dot products of bf16, GFLOP/s.
    pub bf16_gflops: Option<f64>,
    /// Memory read, GB/s.
    pub read_gbps: Option<f64>,
}

impl Machine {
    pub(super) fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Machine {
            cpu: place.maybe("cpu", Place::text)?,
            device: place.maybe("device", Place::text)?,
            features: place.list_if_known("features", Place::text)?,
            threads: place.maybe("threads", Place::positive_count)?,
            level: place.maybe("level", Place::text)?,
            compiler: place.maybe("compiler", Place::text)?,
            commit: place.maybe("commit", Place::text)?,
            fma_gflops: place.maybe("fma_gflops", Place::amount)?,
            bf16_gflops: place.maybe("bf16_gflops", Place::amount)?,
            read_gbps: place.maybe("read_gbps", Place::amount)?,
        })
    }
}

/// Where a record came from: what every kind of record may say at its top.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Origin {
    /// A title for people.
    pub title: Option<String>,
    /// When it was made, as ISO 8601 writes it.
    pub date: Option<String>,
    /// The command that makes it again.
    pub command: Option<String>,
    /// The commit, where `machine` does not say.
    pub commit: Option<String>,
    /// Whether sources differed from that commit.
    pub modified: Option<bool>,
    /// The seed of whatever was random, where one seed served all.
    pub seed: Option<u64>,
    /// What it was made on.
    pub machine: Machine,
}

impl Origin {
    pub(super) fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Origin {
            title: place.maybe("title", Place::text)?,
            date: place.maybe("date", Place::text)?,
            command: place.maybe("command", Place::text)?,
            commit: place.maybe("commit", Place::text)?,
            modified: place.maybe("modified", Place::truth)?,
            seed: place.maybe("seed", Place::count)?,
            machine: Machine::read(&place.at("machine")?)?,
        })
    }

    /// The commit, wherever it stands.
    pub fn commit(&self) -> Option<&str> {
        self.commit.as_deref().or(self.machine.commit.as_deref())
    }
}
