//! What records look like: one file of JSON, whose top object names its kind and version.
//!
//! `docs/records.md` lists every field. Reading is strict about what it knows (a wrong value is refused with file, path,
//! what was found and what was expected) and lets pass what it does not know, so that records may grow. A record that
//! says another version is refused: its fields may mean something else.

mod bench;
mod compression;
mod machine;
mod place;
mod refusal;
mod training;

pub use bench::{Approximation, Bench, Deviation, Measurement};
pub use compression::{Compression, Left, Retention};
pub use machine::{Machine, Origin};
pub use refusal::Refusal;
pub use serde_json::Value;
pub use training::{Compare, Configuration, Difference, Moment, Run, Speed, Task, TrainingRun};

use place::Place;
use serde::Serialize;

/// The kinds and versions that are known.
pub const SCHEMAS: [&str; 4] = ["regard/bench/1", "regard/training-run/1", "regard/compare/1", "regard/compression/1"];

/// A record and the name of the file that it came from.
///
/// ```
/// let text = r#"{"schema": "regard/bench/1", "machine": {"cpu": "Example"}, "results": []}"#;
/// let record = regard_report::Record::read("bench.json", text)?;
/// assert_eq!(record.origin().machine.cpu.as_deref(), Some("Example"));
///
/// let refusal = regard_report::Record::read("bench.json", r#"{"schema": "regard/bench/2"}"#).unwrap_err();
/// assert!(refusal.to_string().starts_with(r#"bench.json: schema: found "regard/bench/2", expected one of regard/bench/1"#));
/// # Ok::<(), regard_report::Refusal>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The file, for people.
    pub file: String,
    /// What it says.
    pub contents: Contents,
}

/// What a record says. As JSON, it names its schema first.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "schema")]
pub enum Contents {
    /// A benchmark.
    #[serde(rename = "regard/bench/1")]
    Bench(Bench),
    /// One configuration, trained.
    #[serde(rename = "regard/training-run/1")]
    TrainingRun(TrainingRun),
    /// Several configurations, compared.
    #[serde(rename = "regard/compare/1")]
    Compare(Compare),
    /// Compressed texts, evaluated.
    #[serde(rename = "regard/compression/1")]
    Compression(Compression),
}

impl Record {
    /// Reads a record's text. `file` is its name in messages and on the page.
    ///
    /// # Errors
    /// Text that is no JSON, another kind or version, a value that the schema does not allow.
    pub fn read(file: &str, text: &str) -> Result<Record, Refusal> {
        let json = |error: serde_json::Error| Refusal::Json { file: file.to_owned(), reason: error.to_string() };
        let value: Value = serde_json::from_str(text).map_err(json)?;
        let place = Place::whole(file, &value);
        let schema = place.at("schema")?.text()?;
        let contents = match schema.as_str() {
            "regard/bench/1" => Contents::Bench(Bench::read(&place)?),
            "regard/training-run/1" => Contents::TrainingRun(TrainingRun::read(&place)?),
            "regard/compare/1" => Contents::Compare(Compare::read(&place)?),
            "regard/compression/1" => Contents::Compression(Compression::read(&place)?),
            _ => return Err(Refusal::Version { file: file.to_owned(), found: schema }),
        };
        Ok(Record { file: file.to_owned(), contents })
    }

    /// Where it came from.
    pub fn origin(&self) -> &Origin {
        match &self.contents {
            Contents::Bench(bench) => &bench.origin,
            Contents::TrainingRun(run) => &run.origin,
            Contents::Compare(compare) => &compare.origin,
            Contents::Compression(compression) => &compression.origin,
        }
    }

    /// Its kind and version.
    pub fn schema(&self) -> &'static str {
        match self.contents {
            Contents::Bench(_) => SCHEMAS[0],
            Contents::TrainingRun(_) => SCHEMAS[1],
            Contents::Compare(_) => SCHEMAS[2],
            Contents::Compression(_) => SCHEMAS[3],
        }
    }
}
