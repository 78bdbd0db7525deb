//! Compressed texts as text, as JSON, and as a page that shades words.

use crate::failure::Failure;
use crate::output::{self, Draft};
use clap::ValueEnum;
use regard_compress::{Method, Passage, Stages};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
    Html,
}

/// Sums over the passages of a file.
#[derive(Default)]
pub struct Totals {
    pub bytes: usize,
    pub words: usize,
    pub words_kept: usize,
    pub passages: u64,
    pub protected: usize,
    pub tokens: u64,
    pub tokens_kept: u64,
    pub stages: Stages,
}

impl Totals {
    pub fn add(&mut self, passage: &Passage<'_>) {
        self.bytes += passage.text.len();
        self.words += passage.words.len();
        self.words_kept += passage.kept.iter().filter(|kept| **kept).count();
        self.passages += 1;
        self.protected += passage.protected.iter().filter(|protected| **protected).count();
        self.tokens += passage.tokens();
        self.tokens_kept += passage.tokens_kept();
        self.stages += passage.stages;
    }

    /// The share of the tokens that stays.
    fn ratio(&self) -> f64 {
        self.tokens_kept as f64 / self.tokens.max(1) as f64
    }

    fn json(&self) -> Value {
        let seconds = json!({"split": self.stages.split.as_secs_f64(), "read": self.stages.read.as_secs_f64(),
            "choose": self.stages.choose.as_secs_f64()});
        json!({"tokens": self.tokens, "tokens_kept": self.tokens_kept, "ratio": self.ratio(), "words": self.words,
            "words_kept": self.words_kept, "seconds": seconds})
    }
}

/// Writes passages as they come.
pub struct Writer {
    format: Format,
    draft: Option<Draft>,
    files: usize,
    passages: usize,
    /// What is written as soon as there is a word.
    pending: String,
}

impl Writer {
    /// Prepares the place, so that one that cannot be written to is found before any work is done.
    pub fn new(format: Format, output: Option<&Path>) -> Result<Self, Failure> {
        let output = output.filter(|path| path.as_os_str() != "-");
        Ok(Writer { format, draft: output.map(Draft::beside).transpose()?, files: 0, passages: 0, pending: String::new() })
    }

    fn put(&self, text: &str) -> Result<(), Failure> {
        match &self.draft {
            Some(draft) => draft.add(text),
            None => output::print(text),
        }
    }

    /// Ahead of all files.
    pub fn begin(&mut self, method: Method, model: Option<&str>) {
        match self.format {
            Format::Text => (),
            Format::Html => self.pending.push_str(HEAD),
            Format::Json => {
                let head = json!({"schema": "regard/compress/1", "method": name(method), "model": model.unwrap_or("embedded")}).to_string();
                self.pending += &format!("{},\"files\":[", head.trim_end_matches('}'));
            }
        }
    }

    /// Ahead of a file.
    pub fn file(&mut self, name: &str) {
        let first = self.files == 0;
        (self.files, self.passages) = (self.files + 1, 0);
        match self.format {
            Format::Text => (),
            Format::Html => self.pending += &format!("<h1>{}</h1>\n<p>", escaped(name)),
            Format::Json => self.pending += &format!("{}{{\"name\":{},\"passages\":[", if first { "\n" } else { ",\n" }, Value::from(name)),
        }
    }

    /// A passage; `before`: what came before it in its file. White space ahead of the first word is dropped.
    pub fn passage(&mut self, passage: &Passage<'_>, before: &Totals) -> Result<(), Failure> {
        if before.words == 0 && passage.words.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        self.put(&pending)?;
        let first = self.passages == 0;
        self.passages += 1;
        match self.format {
            Format::Text => self.put(&passage.compressed()),
            Format::Html => self.put(&shaded(passage)),
            Format::Json => self.put(&format!("{}{}", if first { "\n" } else { ",\n" }, words(passage, before.bytes))),
        }
    }

    /// Behind a file.
    pub fn end(&self, totals: &Totals) -> Result<(), Failure> {
        match self.format {
            Format::Text => Ok(()),
            Format::Html => {
                let share = 100.0 * totals.ratio();
                self.put(&format!("</p>\n<footer>{} of {} tokens, {share:.1}%</footer>\n", totals.tokens_kept, totals.tokens))
            }
            Format::Json => self.put(&format!("],{}", totals.json().to_string().trim_start_matches('{'))),
        }
    }

    /// Behind all files.
    pub fn finish(self) -> Result<(), Failure> {
        match self.format {
            Format::Text => (),
            Format::Html => self.put("</body></html>\n")?,
            Format::Json => self.put("]}\n")?,
        }
        self.draft.map_or(Ok(()), |draft| draft.finish(|_| Ok(())))
    }
}

fn name(method: Method) -> &'static str {
    match method {
        Method::Attention => "attention",
        Method::SelfInformation => "self-information",
        Method::Embedding => "embedding",
        Method::Random => "random",
        Method::HeadTail => "head-tail",
        Method::StopWords => "stop-words",
        Method::TfIdf => "tf-idf",
    }
}

/// `[start, end, score, kept, protected]` of every word, bytes of the file, and the text that stays.
fn words(passage: &Passage<'_>, start: usize) -> String {
    let word = |at: usize| {
        let span = &passage.words[at].span;
        json!([start + span.start, start + span.end, passage.scores[at], passage.kept[at], passage.protected[at]])
    };
    let words: Vec<Value> = (0..passage.words.len()).map(word).collect();
    json!({"start": start, "words": words, "text": passage.compressed()}).to_string()
}

/// Every word shaded by its score; those that left are struck through.
fn shaded(passage: &Passage<'_>) -> String {
    let (mut page, mut end) = (String::new(), 0);
    for (at, word) in passage.words.iter().enumerate() {
        page.push_str(&escaped(&passage.text[end..word.span.start]));
        let shade = (passage.scores[at] * 3.0).clamp(0.0, 9.0) as u32;
        let kind = if passage.kept[at] { "k" } else { "d" };
        let held = if passage.protected[at] { " p" } else { "" };
        let text = escaped(&passage.text[word.span.clone()]);
        let _ = write!(page, "<i class=\"{kind} s{shade}{held}\" title=\"{:.2}\">{text}</i>", passage.scores[at]);
        end = word.span.end;
    }
    page.push_str(&escaped(&passage.text[end..]));
    page
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const HEAD: &str = include_str!("head.html");
