//! `regard/compression/1`: what is left of texts when words are left out. What `regard eval --task compression` writes.

use super::Refusal;
use super::machine::Origin;
use super::place::Place;
use serde::Serialize;

/// An evaluation of compressed texts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compression {
    /// Where it came from.
    #[serde(flatten)]
    pub origin: Origin,
    /// What was measured.
    pub measures: Vec<Retention>,
}

/// One measure of what is left.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Retention {
    /// What is measured.
    pub name: String,
    /// On what, for people.
    pub about: String,
    /// Texts, or facts.
    pub count: u64,
    /// The measure on whole texts.
    pub whole: Option<f64>,
    /// For every method and share.
    pub results: Vec<Left>,
}

/// What one method leaves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Left {
    /// Who says what words are worth.
    pub method: String,
    /// The share of the tokens that was to stay.
    pub keep: f64,
    /// The share that stayed.
    pub ratio: f64,
    /// The measure.
    pub value: f64,
    /// Its standard error.
    pub error: Option<f64>,
}

impl Compression {
    pub(super) fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Compression { origin: Origin::read(place)?, measures: place.list("measures", Retention::read)? })
    }
}

impl Retention {
    fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Retention {
            name: place.at("name")?.text()?,
            about: place.at("about")?.text()?,
            count: place.at("count")?.count()?,
            whole: place.maybe("whole", Place::number)?,
            results: place.list("results", Left::read)?,
        })
    }
}

impl Left {
    fn read(place: &Place<'_>) -> Result<Self, Refusal> {
        Ok(Left {
            method: place.at("method")?.text()?,
            keep: place.at("keep")?.share()?,
            ratio: place.at("ratio")?.share()?,
            value: place.at("value")?.number()?,
            error: place.maybe("error", Place::amount)?,
        })
    }
}
