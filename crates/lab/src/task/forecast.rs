//! Forecasts: the next rows of a table of numbers, from the rows before them (as in Zhou et al. 2021, "Informer").
//!
//! An example is `context` rows; at its last position the `horizon` rows after it are asked, of the columns `target`, row by row:
//! horizon × columns numbers. At other positions nothing is (NaN). Every column is shifted and scaled by its mean and standard
//! deviation in train, in inputs and targets alike. Splits follow time; a window of validation or test may begin in the part
//! before, so that every row of a part is asked for, but its targets never lie there. The floor is the squared error of the mean.
//! Numbers are written to a temporary file once, 4 bytes each.

use super::delimited::{Column, Delimited, Layout};
use super::file::{Places, Spill};
use super::open::{LONGEST, Source, open, within};
use super::shares::{Shares, TEST_IS_VALIDATION};
use super::{Example, Facts, Input, Inputs, Metric, Split, Target, Targets, Task};
use crate::Error;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Rows that are read at once where all are.
const ROWS: u64 = 4096;

/// Keys of `forecast`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Forecast {
    /// A CSV file with a header, its rows in the order of time. Must be there.
    pub file: PathBuf,
    /// Columns to read; null for all of them.
    pub columns: Option<Vec<Column>>,
    /// Those of them that are asked for; null for all.
    pub target: Option<Vec<Column>>,
    /// Rows that are shown.
    pub context: usize,
    /// Rows that are asked for.
    pub horizon: usize,
    /// Shares of train, validation and test, in the order of time.
    pub splits: [f64; 3],
    /// The most bytes of a row.
    pub line_limit: usize,
}

impl Default for Forecast {
    fn default() -> Self {
        let (file, splits) = (PathBuf::new(), [0.7, 0.1, 0.2]);
        Forecast { file, columns: None, target: None, context: 96, horizon: 24, splits, line_limit: 1 << 24 }
    }
}

struct Series {
    rows: Places,
    width: usize,
    /// Mean and standard deviation of every column in train.
    scales: Vec<(f64, f64)>,
    /// Places of the columns that are asked for.
    asked: Vec<usize>,
    context: u64,
    horizon: u64,
    /// Rows of every split.
    parts: [Range<u64>; 3],
}

impl Forecast {
    pub(super) fn open(&self, base: &Path) -> Result<Box<dyn Task>, Error> {
        self.check()?;
        let shares = Shares::choose(Some(self.splits), [false, false])?;
        let table = Delimited::open(&base.join(&self.file), Layout { tabs: false, header: true, limit: self.line_limit.min(1 << 30) })?;
        let places = self.places(&table)?;
        let mut spill = Spill::new()?;
        table.scan(&mut |row| places.iter().try_for_each(|place| spill.write(&table.number(row, *place)?.to_le_bytes())))?;
        let parts = shares.cut(spill.written() / (4 * places.len() as u64));
        let asked = self.asked(&table, &places)?;
        let mut series = Series {
            rows: spill.finish()?,
            width: places.len(),
            scales: Vec::new(),
            asked,
            context: self.context as u64,
            horizon: self.horizon as u64,
            parts,
        };
        let sizes = series.sizes();
        if sizes[0] == 0 {
            let (rows, need) = (series.parts[0].end, self.context + self.horizon);
            let message = format!("{rows} rows to learn from are too few for {need} of a context and a horizon");
            return Err(Error::data(table.path(), "file", message));
        }
        series.scales = series.scale()?;
        let facts = self.facts(&series, sizes)?;
        open(series, facts, if shares.tests() { Vec::new() } else { vec![TEST_IS_VALIDATION.into()] })
    }

    fn check(&self) -> Result<(), Error> {
        if self.file.as_os_str().is_empty() {
            return Err(Error::key("task.file", "is missing; it names a CSV file"));
        }
        within("context", self.context, 1..=LONGEST)?;
        within("horizon", self.horizon, 1..=LONGEST / self.context)
    }

    fn places(&self, table: &Delimited) -> Result<Vec<usize>, Error> {
        match &self.columns {
            None => Ok((0..table.columns()).collect()),
            Some(columns) if columns.is_empty() => Err(Error::key("task.columns", "names no column")),
            Some(columns) => columns.iter().map(|column| table.column(column)).collect(),
        }
    }

    /// Places among the columns that are read.
    fn asked(&self, table: &Delimited, places: &[usize]) -> Result<Vec<usize>, Error> {
        let Some(target) = &self.target else { return Ok((0..places.len()).collect()) };
        let find = |column: &Column| {
            let place = table.column(column)?;
            let message = || Error::key("task.target", format!("is column {column}, which is not among columns"));
            places.iter().position(|known| *known == place).ok_or_else(message)
        };
        match target.as_slice() {
            [] => Err(Error::key("task.target", "names no column")),
            target => target.iter().map(find).collect(),
        }
    }

    fn facts(&self, series: &Series, sizes: [u64; 3]) -> Result<Facts, Error> {
        Ok(Facts {
            name: "forecast",
            inputs: Inputs::Rows { width: series.width },
            targets: Targets::Values(self.horizon * series.asked.len()),
            metric: Metric::SquaredError,
            causal: false,
            longest: self.context,
            sizes: sizes.map(Some),
            balance: Vec::new(),
            floor: series.floor(sizes[2])?,
            fingerprint: String::new(),
        })
    }
}

impl Series {
    /// The row with the first target of a split's first example.
    fn first(&self, split: usize) -> u64 {
        self.parts[split].start.max(self.context)
    }

    /// Windows whose targets lie in each split.
    fn sizes(&self) -> [u64; 3] {
        [0, 1, 2].map(|split| (self.parts[split].end + 1).saturating_sub(self.first(split) + self.horizon))
    }

    /// Rows as written.
    fn read(&self, rows: Range<u64>) -> Result<Vec<f32>, Error> {
        let row = 4 * self.width as u64;
        let bytes = self.rows.read(rows.start * row, ((rows.end - rows.start) * row) as usize)?;
        Ok(bytes.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect())
    }

    /// Every row of a range, with its number.
    fn visit(&self, range: Range<u64>, each: &mut dyn FnMut(u64, &[f32])) -> Result<(), Error> {
        let mut at = range.start;
        while at < range.end {
            let next = range.end.min(at + ROWS);
            self.read(at..next)?.chunks_exact(self.width).zip(at..).for_each(|(row, number)| each(number, row));
            at = next;
        }
        Ok(())
    }

    /// Means and deviations of train (Welford 1962); a column that never changes is only shifted.
    fn scale(&self) -> Result<Vec<(f64, f64)>, Error> {
        let mut sums = vec![(0.0, 0.0); self.width];
        let mut count = 0.0;
        self.visit(self.parts[0].clone(), &mut |_, row| {
            count += 1.0;
            for ((mean, squares), value) in sums.iter_mut().zip(row) {
                let apart = f64::from(*value) - *mean;
                *mean += apart / count;
                *squares += apart * (f64::from(*value) - *mean);
            }
        })?;
        let deviation = |squares: f64| if squares > 0.0 { (squares / count).sqrt() } else { 1.0 };
        Ok(sums.into_iter().map(|(mean, squares)| (mean, deviation(squares))).collect())
    }

    fn scaled(&self, column: usize, value: f32) -> f32 {
        let (mean, deviation) = self.scales[column];
        ((f64::from(value) - mean) / deviation) as f32
    }

    /// The mean square of test's targets, each row as often as windows ask for it.
    fn floor(&self, windows: u64) -> Result<Option<f64>, Error> {
        if windows == 0 {
            return Ok(None);
        }
        let first = self.first(2);
        let mut sum = 0.0;
        self.visit(first..self.parts[2].end, &mut |number, row| {
            let place = number - first;
            let times = place.min(windows - 1) + 1 - (place + 1).saturating_sub(self.horizon);
            let square: f64 = self.asked.iter().map(|column| f64::from(self.scaled(*column, row[*column])).powi(2)).sum();
            sum += times as f64 * square;
        })?;
        Ok(Some(sum / (windows * self.horizon * self.asked.len() as u64) as f64))
    }
}

impl Source for Series {
    fn example(&self, split: Split, index: u64) -> Result<Example, Error> {
        let now = self.first(split as usize) + index;
        let mut rows = self.read(now - self.context..now + self.horizon)?;
        rows.chunks_exact_mut(self.width)
            .flat_map(|row| row.iter_mut().enumerate())
            .for_each(|(column, value)| *value = self.scaled(column, *value));
        let next = rows.split_off(self.context as usize * self.width);
        let asked = next.chunks_exact(self.width).flat_map(|row| self.asked.iter().map(|column| row[*column]));
        let silent = (self.context as usize - 1) * self.horizon as usize * self.asked.len();
        let target = std::iter::repeat_n(f32::NAN, silent).chain(asked).collect();
        Ok(Example { input: Input::Rows(rows), target: Target::Values(target) })
    }
}
