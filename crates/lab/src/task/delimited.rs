//! Rows of columns: CSV as RFC 4180 has it, and TSV, in which quotes are characters like any other.
//!
//! A row is found again by the byte where it begins. Blank lines are passed over; every other row has as many columns as the first.

use super::file::Places;
use super::lines::{long, mark, utf8};
use crate::Error;
use crate::names::meant;
use csv_core::{ReadRecordResult, Reader, ReaderBuilder, Terminator};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// What is said of a row that is not there any more.
const GONE: &str = "no row begins here: the file has changed since it was opened";

/// A column: its number, counted from 1, or its name in the header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Column {
    /// Counted from 1.
    Number(usize),
    /// In the first row of the file.
    Name(String),
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Column::Number(number) => number.fmt(f),
            Column::Name(name) => name.fmt(f),
        }
    }
}

/// How rows are written.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Whether columns are divided by tabs and never quoted; else by commas.
    pub tabs: bool,
    /// Whether the first row names the columns.
    pub header: bool,
    /// The most bytes of a row.
    pub limit: usize,
}

/// A file of rows.
#[derive(Debug)]
pub struct Delimited {
    file: Places,
    layout: Layout,
    header: Vec<String>,
    columns: usize,
}

/// One row.
#[derive(Debug, Default)]
pub struct Row {
    /// Of its first line, counted from 1; 0 where only its byte is known.
    pub line: u64,
    /// Where it begins.
    pub at: u64,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    columns: usize,
}

impl Delimited {
    /// Opens a file and reads its first row.
    pub fn open(path: &Path, layout: Layout) -> Result<Self, Error> {
        let file = Places::open(path)?;
        let mut row = Row::default();
        if !Rows::new(path, layout)?.next(&mut row)? {
            return Err(Error::data(path, "line 1", "the file has no rows"));
        }
        let mut delimited = Delimited { file, layout, header: Vec::new(), columns: row.columns };
        if layout.header {
            delimited.header = (0..row.columns).map(|column| delimited.text(&row, column).map(str::to_owned)).collect::<Result<_, _>>()?;
        }
        Ok(delimited)
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Columns of every row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The place of a column, counted from 0.
    pub fn column(&self, column: &Column) -> Result<usize, Error> {
        let message = match column {
            Column::Number(number) if (1..=self.columns).contains(number) => return Ok(number - 1),
            Column::Number(number) => format!("there is no column {number}; columns are 1 to {}", self.columns),
            Column::Name(name) => match self.header.iter().position(|known| known == name) {
                Some(place) => return Ok(place),
                None => {
                    let known = || self.header.iter().map(String::as_str);
                    let all = known().collect::<Vec<_>>().join(", ");
                    format!("there is no column \"{name}\"{}; there are {all}", meant(name, known()))
                }
            },
        };
        Err(Error::data(self.path(), "line 1", message))
    }

    /// Every row after the header, in order.
    pub fn scan(&self, visit: &mut dyn FnMut(&Row) -> Result<(), Error>) -> Result<(), Error> {
        let mut rows = Rows::new(self.path(), self.layout)?;
        let mut row = Row::default();
        if self.layout.header {
            rows.next(&mut row)?;
        }
        while rows.next(&mut row)? {
            self.check(&row)?;
            visit(&row)?;
        }
        Ok(())
    }

    /// The row that begins at a byte.
    pub fn row(&self, at: u64) -> Result<Row, Error> {
        let mut most = 4096;
        loop {
            let bytes = self.file.read_up_to(at, most)?;
            let whole = bytes.len() < most || most > 2 * self.layout.limit;
            let mut row = Row::default();
            let mut rows = Rows::of(self.path(), self.layout, &bytes[..]);
            match rows.next(&mut row) {
                // A row that ends with what was read may go on beyond it.
                Ok(_) | Err(_) if !whole && rows.reader.is_empty() => most *= 8,
                Ok(true) => {
                    row.at = at;
                    self.check(&row)?;
                    return Ok(row);
                }
                Ok(false) => return Err(Error::data(self.path(), format!("byte {at}"), GONE)),
                Err(error) => return Err(error),
            }
        }
    }

    /// A column of a row, as text.
    pub fn text<'a>(&self, row: &'a Row, column: usize) -> Result<&'a str, Error> {
        utf8(row.field(column), self.path(), || format!("{}, column {}", row.place(), self.name(column)))
    }

    /// A column of a row, as a finite number.
    pub fn number(&self, row: &Row, column: usize) -> Result<f32, Error> {
        let text = self.text(row, column)?.trim();
        text.parse().ok().filter(|number: &f32| number.is_finite()).ok_or_else(|| {
            let place = format!("{}, column {}", row.place(), self.name(column));
            Error::data(self.path(), place, format!("\"{}\" is not a number", short(text)))
        })
    }

    /// How the header, or else its number, names a column.
    pub fn name(&self, column: usize) -> String {
        self.header.get(column).cloned().unwrap_or_else(|| (column + 1).to_string())
    }

    fn check(&self, row: &Row) -> Result<(), Error> {
        if row.columns == self.columns {
            return Ok(());
        }
        let hint = if self.layout.tabs { "a tab within a text divides it" } else { "a comma within a text needs quotes around it" };
        Err(Error::data(self.path(), row.place(), format!("has {} columns, the first row has {}; {hint}", row.columns, self.columns)))
    }
}

/// The head of a text, for messages.
pub fn short(text: &str) -> String {
    let head: String = text.chars().take(40).collect();
    if head.len() < text.len() { head + "…" } else { head }
}

impl Row {
    fn field(&self, column: usize) -> &[u8] {
        let start = if column == 0 { 0 } else { self.ends[column - 1] };
        &self.bytes[start..self.ends[column]]
    }

    /// Room for more bytes and columns.
    fn grow(&mut self, filled: usize) {
        if filled == self.bytes.len() {
            self.bytes.resize(2 * filled.max(512), 0);
        }
        if self.columns == self.ends.len() {
            self.ends.resize(2 * self.columns.max(8), 0);
        }
    }

    /// Drops the first half of a `\r\n` that ends a row of tabs.
    fn trim(&mut self, tabs: bool) {
        if tabs && self.field(self.columns - 1).ends_with(b"\r") {
            self.ends[self.columns - 1] -= 1;
        }
    }

    /// For messages.
    pub fn place(&self) -> String {
        if self.line == 0 { format!("byte {}", self.at) } else { format!("line {}", self.line) }
    }
}

/// Rows one after another.
struct Rows<'a, R> {
    path: &'a Path,
    layout: Layout,
    parser: Reader,
    reader: R,
    line: u64,
    at: u64,
}

impl<'a> Rows<'a, BufReader<std::fs::File>> {
    /// Of a whole file.
    fn new(path: &'a Path, layout: Layout) -> Result<Self, Error> {
        let mut reader = BufReader::with_capacity(1 << 16, super::file::open(path)?);
        let at = mark(path, &mut reader)?;
        Ok(Rows { at, line: 1, ..Rows::of(path, layout, reader) })
    }
}

impl<'a, R: BufRead> Rows<'a, R> {
    /// Of a reader that stands at a place whose line is not known.
    fn of(path: &'a Path, layout: Layout, reader: R) -> Self {
        let mut builder = ReaderBuilder::new();
        if layout.tabs {
            builder.delimiter(b'\t').quoting(false).terminator(Terminator::Any(b'\n'));
        }
        Rows { path, layout, parser: builder.build(), reader, line: 0, at: 0 }
    }

    fn next(&mut self, row: &mut Row) -> Result<bool, Error> {
        self.blank()?;
        (row.line, row.at, row.columns) = (self.line, self.at, 0);
        let mut filled = 0;
        loop {
            row.grow(filled);
            let input = self.reader.fill_buf().map_err(|error| Error::file(self.path, error))?;
            let last = input.is_empty();
            if last && self.at == row.at {
                return Ok(false);
            }
            // A file that ends without a line end gets one, which ends its row unless a quote is open.
            let input = if last { b"\n" } else { input };
            let (result, read, wrote, ended) = self.parser.read_record(input, &mut row.bytes[filled..], &mut row.ends[row.columns..]);
            filled += wrote;
            row.columns += ended;
            if !last {
                self.pass(read);
            }
            match result {
                _ if filled > self.layout.limit => return Err(long(self.path, row.line, self.layout.limit)),
                ReadRecordResult::Record => {
                    row.trim(self.layout.tabs);
                    return Ok(true);
                }
                ReadRecordResult::InputEmpty if last => {
                    return Err(Error::data(self.path, row.place(), "a quote opens in this row and never closes"));
                }
                _ => {}
            }
        }
    }

    /// Goes on by bytes that were looked at.
    fn pass(&mut self, count: usize) {
        if self.line > 0 {
            let seen = self.reader.fill_buf().map_or(&[][..], |input| &input[..count]);
            self.line += seen.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        self.reader.consume(count);
        self.at += count as u64;
    }

    /// Passes over line ends, so that a row's place is that of its first byte.
    fn blank(&mut self) -> Result<(), Error> {
        loop {
            let input = self.reader.fill_buf().map_err(|error| Error::file(self.path, error))?;
            match input.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count() {
                0 => return Ok(()),
                blank => self.pass(blank),
            }
        }
    }
}
