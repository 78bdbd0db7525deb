//! Files of texts with labels, as rows that are found again by a byte.

use super::columnar;
use super::json::JsonLines;
use crate::Error;
use crate::task::delimited::{Column, Delimited, Layout, short};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Columns divided by tabs; quotes are characters like any other.
    Tsv,
    /// Columns divided by commas, quoted where they need it.
    Csv,
    /// A JSON object a line.
    Jsonl,
    /// Apache Parquet; its two columns are unpacked to a temporary file once.
    Parquet,
}

/// What to read of a file.
#[derive(Debug, Clone)]
pub struct Reading {
    pub format: Option<Format>,
    pub text: Column,
    pub label: Column,
    pub header: Option<bool>,
    pub line_limit: usize,
}

/// A text and its label, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub text: String,
    pub label: String,
}

/// A row where it was found.
#[derive(Debug)]
pub struct Found {
    /// For [`Table::row`].
    pub at: u64,
    /// For messages: `line 7`.
    pub place: String,
    pub row: Row,
}

/// Rows of a file.
pub trait Table: Send + Sync {
    /// All of them in order.
    fn scan(&self, visit: &mut dyn FnMut(Found) -> Result<(), Error>) -> Result<(), Error>;

    /// The one at a byte.
    fn row(&self, at: u64) -> Result<Row, Error>;

    /// The file.
    fn path(&self) -> &Path;
}

/// Opens a file by its format, which its name says where nothing else does.
pub fn open(path: &Path, reading: &Reading) -> Result<Box<dyn Table>, Error> {
    match format(path, reading)? {
        Format::Tsv => Columns::open(path, reading, true),
        Format::Csv => Columns::open(path, reading, false),
        Format::Jsonl => Ok(Box::new(JsonLines::open(path, reading)?)),
        Format::Parquet => Ok(Box::new(columnar::unpack(path, reading)?)),
    }
}

fn format(path: &Path, reading: &Reading) -> Result<Format, Error> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    match (reading.format, extension.as_str()) {
        (Some(format), _) => Ok(format),
        (None, "tsv") => Ok(Format::Tsv),
        (None, "csv") => Ok(Format::Csv),
        (None, "jsonl" | "ndjson") => Ok(Format::Jsonl),
        (None, "parquet") => Ok(Format::Parquet),
        _ => Err(Error::key(
            "task.format",
            format!("the name {} does not say how it is written; set tsv, csv, jsonl or parquet", path.display()),
        )),
    }
}

/// The name of a column of a format that has no numbers.
pub fn named<'a>(column: &'a Column, key: &str) -> Result<&'a str, Error> {
    match column {
        Column::Name(name) => Ok(name),
        Column::Number(number) => Err(Error::key(format!("task.{key}"), format!("is column {number}; this format has names only"))),
    }
}

/// The refusal of a text that says nothing.
pub fn empty() -> String {
    "the text is empty; skip_empty: true leaves such rows out".into()
}

struct Columns {
    rows: Delimited,
    text: usize,
    label: usize,
}

impl Columns {
    fn open(path: &Path, reading: &Reading, tabs: bool) -> Result<Box<dyn Table>, Error> {
        let named = |column: &Column| matches!(column, Column::Name(_));
        let header = reading.header.unwrap_or(named(&reading.text) || named(&reading.label));
        if !header && (named(&reading.text) || named(&reading.label)) {
            return Err(Error::key("task.header", "is false; without a header, text and label are numbers of columns, counted from 1"));
        }
        let rows = Delimited::open(path, Layout { tabs, header, limit: reading.line_limit })?;
        let (text, label) = (rows.column(&reading.text)?, rows.column(&reading.label)?);
        Ok(Box::new(Columns { rows, text, label }))
    }

    fn of(&self, row: &crate::task::delimited::Row) -> Result<Row, Error> {
        Ok(Row { text: self.rows.text(row, self.text)?.into(), label: self.rows.text(row, self.label)?.into() })
    }
}

impl Table for Columns {
    fn scan(&self, visit: &mut dyn FnMut(Found) -> Result<(), Error>) -> Result<(), Error> {
        self.rows.scan(&mut |row| visit(Found { at: row.at, place: row.place(), row: self.of(row)? }))
    }

    fn row(&self, at: u64) -> Result<Row, Error> {
        self.of(&self.rows.row(at)?)
    }

    fn path(&self) -> &Path {
        self.rows.path()
    }
}

/// A label for messages.
pub fn quoted(label: &str) -> String {
    format!("\"{}\"", short(label))
}
