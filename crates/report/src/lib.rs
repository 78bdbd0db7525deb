//! Records of measurements in, one HTML file out: it opens without a network, prints, and says the same in charts,
//! tables and CSV. It knows no model and runs nothing.
//!
//! ```
//! let text = r#"{"schema": "regard/bench/1", "machine": {}, "results": [{
//!     "mechanism": "exact", "pass": "forward", "dtype": "f32", "batch": 1, "heads": 8, "kv_heads": 8, "head_dim": 64,
//!     "length": 1024, "causal": true, "options": {}, "median_s": 0.0037, "runs": 5}]}"#;
//! let record = regard_report::Record::read("bench.json", text)?;
//! let page = regard_report::page(&[record]);
//! assert!(page.starts_with("<!doctype html>"));
//! assert!(page.contains("3.70 ms"));
//! # Ok::<(), regard_report::Refusal>(())
//! ```
//!
//! A record's text is never trusted: it reaches the page as escaped text or as JSON that cannot end its script, and the
//! page's policy lets no other script run and nothing be fetched.

mod chart;
mod commands;
mod crossover;
mod escape;
mod figures;
mod page;
pub mod schema;
mod statistics;
mod table;
mod units;

pub use page::page;
pub use schema::{Contents, Record, Refusal};
