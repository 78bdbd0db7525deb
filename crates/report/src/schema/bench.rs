//! `regard/bench/1`: how fast, how large and how exact mechanisms are, over lengths. What `regard bench` writes.

use super::machine::Origin;
use super::place::Place;
use super::{Refusal, Value};
use serde::Serialize;
use serde_json::Map;

/// A benchmark.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bench {
    /// Where it came from.
    #[serde(flatten)]
    pub origin: Origin,
    /// What was measured.
    pub results: Vec<Measurement>,
}

/// One mechanism in one pass at one length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// Its name in the list.
    pub mechanism: String,
    /// `forward`, `backward` (forward and backward together) or `decode` (one query, `length` keys).
    pub pass: String,
    /// Storage type.
    pub dtype: String,
    /// Sequences.
    pub batch: u64,
    /// Query heads.
    pub heads: u64,
    /// Key/value heads.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Tokens.
    pub length: u64,
    /// Whether a query sees no later key.
    pub causal: bool,
    /// The mechanism's options.
    pub options: Map<String, Value>,
    /// Seconds, the median of the runs.
    pub median_s: f64,
    /// Seconds, the fastest run.
    pub min_s: Option<f64>,
    /// Counted runs; 0 where time was reckoned.
    pub runs: u64,
    /// GFLOP/s by the median.
    pub gflops: Option<f64>,
    /// GB/s by the median, of memory that had to be read.
    pub gbps: Option<f64>,
    /// Share of what the machine can do.
    pub ceiling_fraction: Option<f64>,
    /// Memory beside inputs and outputs, bytes.
    pub extra_bytes: Option<u64>,
    /// Distance from the mechanism's own definition in f64.
    pub error: Option<Deviation>,
    /// Distance from exact attention.
    pub approximation: Option<Approximation>,
    /// The measured length from which time was reckoned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extrapolated_from: Option<u64>,
}

/// Distance of some numbers from what they should be. What is not a number is written as `null`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Deviation {
    /// The largest absolute difference.
    pub max_abs: Option<f64>,
    /// The length of the difference over the length of what should be.
    pub rel_l2: Option<f64>,
}

/// Distance from exact attention.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Approximation {
    /// On random q, k, v.
    pub random: Option<Deviation>,
    /// On captured q, k, v.
    pub captured: Option<Deviation>,
}

impl Bench {
    pub(super) fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Bench { origin: Origin::read(place)?, results: place.list("results", Measurement::read)? })
    }
}

impl Measurement {
    fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Measurement {
            mechanism: place.at("mechanism")?.text()?,
            pass: place.at("pass")?.text()?,
            dtype: place.at("dtype")?.text()?,
            batch: place.at("batch")?.positive_count()?,
            heads: place.at("heads")?.positive_count()?,
            kv_heads: place.at("kv_heads")?.positive_count()?,
            head_dim: place.at("head_dim")?.positive_count()?,
            length: place.at("length")?.positive_count()?,
            causal: place.at("causal")?.truth()?,
            options: place.maybe("options", Place::object)?.cloned().unwrap_or_default(),
            median_s: place.at("median_s")?.amount()?,
            min_s: place.maybe("min_s", Place::amount)?,
            runs: place.at("runs")?.count()?,
            gflops: place.maybe("gflops", Place::amount)?,
            gbps: place.maybe("gbps", Place::amount)?,
            ceiling_fraction: place.maybe("ceiling_fraction", Place::amount)?,
            extra_bytes: place.maybe("extra_bytes", Place::count)?,
            error: place.maybe("error", Deviation::read)?,
            approximation: place.maybe("approximation", Approximation::read)?,
            extrapolated_from: place.maybe("extrapolated_from", Place::positive_count)?,
        })
    }
}

impl Deviation {
    fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Deviation { max_abs: place.maybe("max_abs", Place::amount)?, rel_l2: place.maybe("rel_l2", Place::amount)? })
    }
}

impl Approximation {
    fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Approximation { random: place.maybe("random", Deviation::read)?, captured: place.maybe("captured", Deviation::read)? })
    }
}
