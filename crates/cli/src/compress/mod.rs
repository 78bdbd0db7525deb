//! `regard compress`: fewer tokens, same meaning.

pub mod evaluate;
mod format;
mod input;

use crate::arguments::Execution;
use crate::failure::{Failure, warn};
use clap::{Args, ValueEnum};
use format::{Format, Totals, Writer};
use indicatif::{ProgressBar, ProgressStyle};
use input::Input;
use regard_compress::text::{Passages, Protect};
use regard_compress::{Amount, Compressor, Error, Method, Options};
use std::path::PathBuf;

/// Leave words out of a text that it can be understood without
#[derive(Args)]
#[command(
    after_help = "Words stay in order and whole. What a word is worth says a language model by how little it expected it (a small one is part of the
program), or an encoder by how much it looks at it.

Examples:
  regard compress --keep 0.3 chapter.txt > short.txt
  regard compress --model sentence-transformers/all-MiniLM-L6-v2 --question \"Who saw the whale first?\" --tokens 500 chapter.txt
  regard compress --format html --output shaded.html chapter.txt"
)]
pub struct Compress {
    /// Share of the tokens that stays, above 0 and up to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, conflicts_with_all = ["tokens", "threshold"])]
    keep: f64,
    /// Tokens of each file that stay
    #[arg(long, value_name = "N", conflicts_with = "threshold")]
    tokens: Option<u64>,
    /// Lowest score of a word that stays; 1 is the mean
    #[arg(long, value_name = "SCORE")]
    threshold: Option<f32>,
    /// What a word is worth; by default attention, and self-information with a causal model
    #[arg(long, value_enum)]
    method: Option<By>,
    /// Folder or hub name of an encoder, or the folder of a run of regard train on language; a small language model that is part of the program by default
    #[arg(long, value_name = "DIR|NAME")]
    model: Option<String>,
    /// Read the first N layers of the encoder alone: faster in proportion
    #[arg(long, value_name = "N", requires = "model")]
    layers: Option<usize>,
    /// What the text will be asked; words of sentences that are near to it count more
    #[arg(long, value_name = "TEXT")]
    question: Option<String>,
    /// Share of the tokens whose sentences go on to be judged word by word
    #[arg(long, value_name = "SHARE")]
    sentences: Option<f64>,
    /// Regular expression; every word that it touches stays. May be given several times
    #[arg(long, value_name = "REGEX")]
    protect: Vec<String>,
    /// Do not protect numbers, code and negations
    #[arg(long)]
    protect_nothing: bool,
    /// Seed of the method random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The text; scores, offsets and times; or a page that shades words by their score
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// File to write; standard output by default
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Texts, - for standard input, which is also the default
    #[arg(value_name = "FILE|-")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    pub execution: Execution,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    Attention,
    SelfInformation,
    Embedding,
    Random,
    HeadTail,
}

impl From<By> for Method {
    fn from(by: By) -> Self {
        match by {
            By::Attention => Method::Attention,
            By::SelfInformation => Method::SelfInformation,
            By::Embedding => Method::Embedding,
            By::Random => Method::Random,
            By::HeadTail => Method::HeadTail,
        }
    }
}

/// Reads, chooses, writes, passage by passage.
pub fn run(compress: &Compress) -> Result<(), Failure> {
    let options = compress.options()?;
    let mut writer = Writer::new(compress.format, compress.output.as_deref())?;
    let inputs = Input::all(&compress.files)?;
    let mut compressor = match &compress.model {
        Some(model) => Compressor::open(model, compress.layers, options),
        None => Compressor::embedded(options),
    }
    .map_err(refuse)?;
    writer.begin(compressor.method(), compress.model.as_deref());
    let bar = progress(inputs.iter().map(Input::length).sum());
    for input in inputs {
        one(compress, &mut compressor, input, &mut writer, &bar)?;
    }
    bar.finish_and_clear();
    writer.finish()
}

fn one(compress: &Compress, compressor: &mut Compressor, input: Input, writer: &mut Writer, bar: &ProgressBar) -> Result<(), Failure> {
    let name = input.name().to_owned();
    let [first, second] = input.twice(compress.tokens.is_some())?;
    let mut ahead = 0;
    if let Some(first) = first {
        for text in Passages::new(first, &name) {
            ahead += compressor.count(&text.map_err(refuse)?).map_err(refuse)?;
        }
    }
    compressor.begin(ahead);
    writer.file(&name);
    let mut totals = Totals::default();
    for text in second.into_iter().flat_map(|second| Passages::new(second, &name)) {
        let text = text.map_err(refuse)?;
        let passage = compressor.passage(&text).map_err(refuse)?;
        writer.passage(&passage, &totals)?;
        totals.add(&passage);
        bar.inc(text.len() as u64);
    }
    if totals.words == 0 {
        return Err(refuse(Error::Empty { name }));
    }
    if let Some(wanted) = compress.wanted(&totals).filter(|wanted| totals.protected > 0 && totals.tokens_kept > *wanted) {
        let message = "that were asked for: protected words stay in any case, but for --protect-nothing";
        warn(&format!("{name}: {} tokens stay of {wanted} {message}", totals.tokens_kept));
    }
    writer.end(&totals)
}

impl Compress {
    /// Tokens that may stay of a file, each passage rounded up.
    fn wanted(&self, totals: &Totals) -> Option<u64> {
        let share = || (self.keep * totals.tokens as f64).ceil() as u64 + totals.passages;
        self.tokens.or_else(|| self.threshold.is_none().then(share))
    }

    fn options(&self) -> Result<Options, Failure> {
        let protect = if self.protect_nothing { Protect::nothing() } else { Protect::default() };
        let protect = self.protect.iter().try_fold(protect, |protect, pattern| protect.with_pattern(pattern)).map_err(refuse)?;
        let amount = match (self.tokens, self.threshold) {
            (Some(tokens), _) => Amount::Tokens(tokens),
            (_, Some(threshold)) => Amount::Threshold(threshold),
            _ => Amount::Keep(self.keep),
        };
        let method = self.method.map(Method::from);
        Ok(Options { amount, method, sentences: self.sentences, question: self.question.clone(), protect, seed: self.seed })
    }
}

fn refuse(error: Error) -> Failure {
    match error {
        Error::Pattern { .. } => Failure::Usage(format!("--protect: {error}")),
        Error::Option { .. } => Failure::Usage(format!("--{error}")),
        error => Failure::Data(error.to_string()),
    }
}

fn progress(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes).with_style(style)
}
