//! Classes of texts, from TSV, CSV, JSON Lines or Parquet.
//!
//! One pass checks every row, counts labels and keeps the byte where each row begins: 8 bytes a row, never the file. Rows are read when
//! they are asked for, so a file may be larger than memory. Without files of their own, validation and test are shares of the train
//! file by a hash of (seed, text): the same text is never in two of them, and a row that is added moves no other.

mod columnar;
mod json;
mod labels;
mod table;

pub use super::delimited::Column;
pub use labels::Labels;
pub use table::Format;

use super::digest::Digest;
use super::open::{LONGEST, Source, open, within};
use super::shares::{Shares, TEST_IS_VALIDATION};
use super::tokens::{Model, Tokens};
use super::{Example, Facts, Input, Inputs, Label, Metric, Split, Target, Targets, Task};
use crate::Error;
use crate::draw::mix;
use labels::Classes;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use table::{Found, Reading, Table, empty};

/// What to do with a label that `labels` does not name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Others {
    /// Say where it is and stop.
    #[default]
    Refuse,
    /// Pass over its row.
    LeaveOut,
}

/// Keys of `classify`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Classify {
    /// The file to learn from. Must be there.
    pub train: PathBuf,
    /// A file for validation; null for a share of `train`.
    pub validation: Option<PathBuf>,
    /// A file for the test; null for a share of `train`.
    pub test: Option<PathBuf>,
    /// How files are written: `tsv`, `csv`, `jsonl`, `parquet`; null for what their names end in.
    pub format: Option<Format>,
    /// Whether the first row of TSV and CSV names the columns; null for yes where `text` or `label` is a name.
    pub header: Option<bool>,
    /// The column of texts: its name, or its number from 1.
    pub text: Column,
    /// The column of labels: its name, or its number from 1.
    pub label: Column,
    /// Classes in order and the labels of each; null for a class for every label of `train`.
    pub labels: Option<Labels>,
    /// What becomes of rows with other labels: `refuse` or `leave_out`.
    pub others: Others,
    /// `bytes`, or `{model: DIR}` for the `tokenizer.json` of a folder.
    pub tokens: Tokens,
    /// Longer texts are cut to so many tokens.
    pub longest: usize,
    /// Shares of train, validation and test; null for 0.8, 0.1, 0.1, or what files of their own leave over.
    pub splits: Option<[f64; 3]>,
    /// Whether rows without text are passed over; else they are refused.
    pub skip_empty: bool,
    /// The most bytes of a row.
    pub line_limit: usize,
    /// Another seed, other shares.
    pub seed: u64,
}

impl Default for Classify {
    fn default() -> Self {
        Classify {
            train: PathBuf::new(),
            validation: None,
            test: None,
            format: None,
            header: None,
            text: Column::Name("text".into()),
            label: Column::Name("label".into()),
            labels: None,
            others: Others::Refuse,
            tokens: Tokens::Bytes,
            longest: 1024,
            splits: None,
            skip_empty: false,
            line_limit: 1 << 24,
            seed: 0,
        }
    }
}

/// What makes tokens of a text.
enum Encoder {
    Bytes,
    Model(Box<Model>),
}

/// Rows of one split.
#[derive(Clone)]
struct Part {
    table: Arc<dyn Table>,
    rows: Arc<Vec<u64>>,
}

struct Texts {
    parts: [Part; 3],
    classes: Classes,
    encoder: Encoder,
    longest: usize,
}

/// What the pass over the files finds.
struct Pass<'a> {
    config: &'a Classify,
    classes: Classes,
    shares: Shares,
    rows: [Vec<u64>; 3],
    /// By class.
    counts: Vec<[u64; 3]>,
    longest: usize,
    skipped: [u64; 2],
}

impl Classify {
    pub(super) fn open(&self, base: &Path) -> Result<Box<dyn Task>, Error> {
        if self.train.as_os_str().is_empty() {
            return Err(Error::key("task.train", "is missing; it names the file to learn from"));
        }
        let encoder = self.encoder(base)?;
        let shares = Shares::choose(self.splits, [self.validation.is_some(), self.test.is_some()])?;
        let classes = Classes::new(self.labels.as_ref(), self.others).map_err(|message| Error::key("task.labels", message))?;
        let mut pass = Pass { config: self, classes, shares, rows: Default::default(), counts: Vec::new(), longest: 0, skipped: [0; 2] };
        let train = self.table(base, &self.train)?;
        pass.read(&*train, None)?;
        pass.settle(train.path())?;
        let mut tables = [Arc::clone(&train), Arc::clone(&train), train];
        for (split, path) in [(Split::Validation, &self.validation), (Split::Test, &self.test)] {
            if let Some(path) = path {
                tables[split as usize] = self.table(base, path)?;
                pass.read(&*tables[split as usize], Some(split))?;
            }
        }
        pass.finish(tables, encoder)
    }

    fn table(&self, base: &Path, path: &Path) -> Result<Arc<dyn Table>, Error> {
        let reading = Reading {
            format: self.format,
            text: self.text.clone(),
            label: self.label.clone(),
            header: self.header,
            line_limit: self.line_limit.min(1 << 30),
        };
        table::open(&base.join(path), &reading).map(Arc::from)
    }

    fn encoder(&self, base: &Path) -> Result<Encoder, Error> {
        within("longest", self.longest, 1..=LONGEST)?;
        match &self.tokens {
            Tokens::Bytes => Ok(Encoder::Bytes),
            Tokens::Chars => Err(Error::key("task.tokens", "is chars, which are for language; write bytes or {model: DIR}")),
            Tokens::Model(folder) => Ok(Encoder::Model(Box::new(Model::open(&base.join(folder), Some(self.longest))?))),
        }
    }
}

impl Pass<'_> {
    /// Every row of a file, all for one split or shared out.
    fn read(&mut self, table: &dyn Table, split: Option<Split>) -> Result<(), Error> {
        table.scan(&mut |found| self.take(&found, split).map_err(|message| Error::data(table.path(), &found.place, message)))
    }

    fn take(&mut self, found: &Found, split: Option<Split>) -> Result<(), String> {
        let text = found.row.text.as_str();
        if text.trim().is_empty() {
            self.skipped[0] += 1;
            return if self.config.skip_empty { Ok(()) } else { Err(empty()) };
        }
        let Some(class) = self.classes.find(&found.row.label)? else {
            self.skipped[1] += 1;
            return Ok(());
        };
        let split = split.unwrap_or_else(|| self.shares.of(mix(Digest::of(text.as_bytes()) ^ mix(self.config.seed))));
        self.counts.resize(self.classes.names().len(), [0; 3]);
        self.counts[class as usize][split as usize] += 1;
        self.rows[split as usize].push(found.at);
        self.longest = self.longest.max(text.len());
        Ok(())
    }

    /// After the train file no class is added.
    fn settle(&mut self, path: &Path) -> Result<(), Error> {
        let former = self.classes.settle();
        self.counts.resize(former.len(), [0; 3]);
        self.counts = former.iter().map(|class| self.counts[*class]).collect();
        match self.classes.names() {
            [] => Err(Error::data(path, "file", "has no rows to learn from")),
            [only] => Err(Error::data(path, "file", format!("every row has the label {}; there is nothing to learn", table::quoted(only)))),
            _ => Ok(()),
        }
    }

    fn skipped(&self) -> Vec<String> {
        let [empty, other] = self.skipped;
        let said = [(empty, "have no text"), (other, "have a label that labels does not name")];
        said.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} rows were left out: they {what}")).collect()
    }

    fn finish(mut self, tables: [Arc<dyn Table>; 3], encoder: Encoder) -> Result<Box<dyn Task>, Error> {
        let mut notes = self.skipped();
        let mut parts: Vec<Part> =
            tables.into_iter().zip(&mut self.rows).map(|(table, rows)| Part { table, rows: Arc::new(std::mem::take(rows)) }).collect();
        if self.config.test.is_none() && !self.shares.tests() {
            parts[2] = parts[1].clone();
            self.counts.iter_mut().for_each(|counts| counts[2] = counts[1]);
            notes.push(TEST_IS_VALIDATION.into());
        }
        let parts: [Part; 3] = parts.try_into().unwrap_or_else(|_| unreachable!("three splits"));
        if parts[0].rows.is_empty() {
            return Err(Error::data(parts[0].table.path(), "file", "has no rows to learn from"));
        }
        let (vocabulary, longest) = match &encoder {
            Encoder::Bytes => (256, self.longest.min(self.config.longest)),
            Encoder::Model(model) => (model.vocabulary(), self.config.longest),
        };
        let facts = Facts {
            name: "classify",
            inputs: Inputs::Tokens { vocabulary },
            targets: Targets::Classes(self.classes.names().len()),
            metric: Metric::Accuracy,
            causal: false,
            longest,
            sizes: [0, 1, 2].map(|split| Some(parts[split].rows.len() as u64)),
            balance: self.classes.names().iter().zip(self.counts).map(|(name, counts)| Label { name: name.clone(), counts }).collect(),
            floor: None,
            fingerprint: String::new(),
        };
        open(Texts { parts, classes: self.classes, encoder, longest: self.config.longest }, facts, notes)
    }
}

impl Texts {
    /// The text of a row, and its class.
    fn row(&self, split: Split, index: u64) -> Result<(String, u32), Error> {
        let part = &self.parts[split as usize];
        let at = part.rows[index as usize];
        let row = part.table.row(at)?;
        let changed = || Error::data(part.table.path(), format!("byte {at}"), "the file has changed since it was opened");
        let class = self.classes.known(&row.label).ok_or_else(changed)?;
        Ok((row.text, class))
    }

    fn told(&self, text: &str, class: u32) -> Result<Example, Error> {
        let tokens = match &self.encoder {
            Encoder::Bytes => text.bytes().take(self.longest).map(u32::from).collect(),
            Encoder::Model(model) => model.encode(text, true)?,
        };
        Ok(Example { input: Input::Tokens(tokens), target: Target::Class(class) })
    }
}

impl Source for Texts {
    fn example(&self, split: Split, index: u64) -> Result<Example, Error> {
        let (text, class) = self.row(split, index)?;
        self.told(&text, class)
    }

    fn text(&self, split: Split, index: u64) -> Result<Option<String>, Error> {
        Ok(Some(self.row(split, index)?.0))
    }

    fn retold(&self, split: Split, index: u64, text: &str) -> Result<Option<Example>, Error> {
        let (_, class) = self.row(split, index)?;
        self.told(text, class).map(Some)
    }
}
