//! What the page's script draws: a description in JSON, whose names `assets/page.js` knows.

use crate::table::Table;
use crate::units::Unit;
use serde::Serialize;

/// A chart.
#[derive(Clone, Debug, Serialize)]
pub struct Chart {
    /// How its series are drawn.
    pub kind: Kind,
    /// Across.
    pub x: Axis,
    /// Upward.
    pub y: Axis,
    /// What is drawn, first one below.
    pub series: Vec<Series>,
}

/// How series are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Points along x, joined.
    Lines,
    /// Points that nothing joins.
    Scatter,
    /// A row for every name of `y.names`; the second coordinate of a point is the row.
    Rows,
}

/// An axis.
#[derive(Clone, Debug, Serialize)]
pub struct Axis {
    /// What it says, with its unit.
    pub label: String,
    /// What its numbers count.
    pub unit: Unit,
    /// Whether it is logarithmic.
    pub log: bool,
    /// What must be on it, whatever the numbers are.
    pub include: Vec<f64>,
    /// Names of rows, for [`Kind::Rows`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

impl Axis {
    /// With equal steps.
    pub fn linear(label: &str, unit: Unit) -> Self {
        Axis { label: label.to_owned(), unit, log: false, include: Vec::new(), names: Vec::new() }
    }

    /// With equal factors.
    pub fn logarithmic(label: &str, unit: Unit) -> Self {
        Axis { log: true, ..Axis::linear(label, unit) }
    }

    /// Reaches these numbers.
    pub fn including(mut self, numbers: &[f64]) -> Self {
        self.include.extend_from_slice(numbers);
        self
    }

    /// Of rows with names.
    pub fn rows(names: Vec<String>) -> Self {
        Axis { names, ..Axis::linear("", Unit::Plain) }
    }

    /// Whether a number can be drawn on it.
    pub fn holds(&self, x: f64) -> bool {
        x.is_finite() && (!self.log || x > 0.0)
    }
}

/// A line, a cloud, or marks.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// Its name in the legend.
    pub label: String,
    /// What it is.
    pub role: Role,
    /// Its colour and marker: the same name has the same ones in every chart of a record.
    pub slot: usize,
    /// Its points.
    pub points: Vec<Point>,
}

/// What a series is, which decides how it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// What was measured.
    Measured,
    /// A limit: dashed, without markers.
    Limit,
    /// Crossings: rings on top.
    Crossing,
    /// The best that can be had: joined, dashed, without markers.
    Front,
    /// Single runs behind their mean: small and pale, not in the legend.
    Single,
}

/// A point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Point {
    /// Across.
    pub x: f64,
    /// Upward.
    pub y: f64,
    /// Reckoned, not measured: hollow, and its line dashed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reckoned: bool,
    /// Half of an interval across.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_half: Option<f64>,
    /// Lowest and highest, upward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub y_range: Option<[f64; 2]>,
}

impl Point {
    /// Of two numbers.
    pub fn new(x: f64, y: f64) -> Self {
        Point { x, y, ..Point::default() }
    }
}

/// A chart, what it shows in words, and its numbers.
pub struct Figure {
    /// Its title.
    pub title: String,
    /// A sentence or two below the title.
    pub about: String,
    /// What was found, as a list below the chart.
    pub findings: Vec<String>,
    /// The chart.
    pub chart: Chart,
    /// The numbers.
    pub table: Table,
}

impl Figure {
    /// Whether there is anything to draw.
    pub fn is_drawn(&self) -> bool {
        self.chart.series.iter().any(|series| series.role == Role::Measured && !series.points.is_empty())
    }
}
