//! `regard embed`: a vector for every line of text.

mod sink;
pub mod texts;

use crate::arguments::{self, Execution};
use crate::chosen::{Chosen, Setting};
use crate::failure::{Failure, warn};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use regard_models::{Attention, Encoder, Error, Folder, Pooling, TextEncoder, Tokens, batches};
use sink::Sink;
use std::path::PathBuf;
use texts::Texts;

/// Texts that are made into tokens together.
const TOGETHER: usize = 1024;

/// Make a vector of every line of text, with an encoder of the BERT family
#[derive(Args)]
#[command(
    after_help = "Writes a line {\"index\", \"tokens\", \"embedding\"} for each text, in order, or a file F.safetensors with embeddings [n,E].

Example:
  regard embed --model sentence-transformers/all-MiniLM-L6-v2 --output vectors.safetensors reviews.txt"
)]
pub struct Embed {
    /// Folder with config.json, model.safetensors and tokenizer.json, or a name on the Hugging Face hub
    #[arg(long, value_name = "DIR|NAME")]
    model: String,
    /// Tokens that are computed together; a longer text is computed alone
    #[arg(long, value_name = "N", value_parser = arguments::count, default_value = "2k")]
    batch: usize,
    /// What stands for a text: the mean over its tokens, or its first token
    #[arg(long, value_enum, default_value_t = Pool::Mean)]
    pool: Pool,
    /// Leave vectors as long as they are instead of dividing each by its Euclidean norm
    #[arg(long)]
    no_normalize: bool,
    /// Mechanism of every layer, as `regard list` names them
    #[arg(long, value_name = "NAME", default_value = "exact")]
    mechanism: String,
    /// Reducer between attention and feed-forward: fewer tokens from layer to layer
    #[arg(long, value_name = "NAME")]
    reducer: Option<String>,
    /// Set an option of the mechanism or the reducer
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Setting>,
    /// Also write the ids of the tokens
    #[arg(long)]
    ids: bool,
    /// File to write: safetensors if its name ends so, else JSON lines; standard output by default
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Files with one text per line, - for standard input, which is also the default
    #[arg(value_name = "FILE|-")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    pub execution: Execution,
}

#[derive(Clone, Copy, ValueEnum)]
enum Pool {
    Mean,
    Cls,
}

impl From<Pool> for Pooling {
    fn from(pool: Pool) -> Self {
        match pool {
            Pool::Mean => Pooling::Mean,
            Pool::Cls => Pooling::First,
        }
    }
}

/// Reads, encodes, writes.
pub fn run(embed: &Embed) -> Result<(), Failure> {
    let mut sink = Sink::new(embed.output.as_deref(), embed.ids)?;
    let texts = Texts::read(&embed.files)?;
    let (mechanism, reducer) = Chosen::pair(&embed.mechanism, embed.reducer.as_deref(), &embed.set)?;
    Encoder::check(&mechanism).map_err(|error| Failure::Usage(error.to_string()))?;
    let model = open(&embed.model)?.with_attention(Attention::full().mechanism(mechanism));
    let model = match reducer {
        Some(reducer) => model.with_reducer(reducer),
        None => model,
    };
    let bar = progress(texts.len());
    let mut cut = 0;
    for start in (0..texts.len()).step_by(TOGETHER) {
        let lines = texts.lines(start..texts.len().min(start + TOGETHER));
        let tokens = model.tokenizer.encode(&lines).map_err(refuse)?;
        cut += tokens.iter().filter(|tokens| tokens.truncated).count();
        for batch in batches(&tokens, embed.batch) {
            write(embed, &model, &tokens[batch.clone()], &mut sink)?;
            bar.inc(batch.len() as u64);
        }
    }
    bar.finish_and_clear();
    if cut > 0 {
        let (all, limit) = (texts.len(), model.tokenizer.limit());
        warn(&format!("{cut} of {all} texts have more than the model's {limit} tokens and were cut"));
    }
    sink.finish(model.encoder.width())
}

fn open(name: &str) -> Result<TextEncoder, Failure> {
    let folder = Folder::find(name).map_err(refuse)?;
    TextEncoder::open(&folder, &regard_models::cpu()).map_err(refuse)
}

fn write(embed: &Embed, model: &TextEncoder, tokens: &[Tokens], sink: &mut Sink) -> Result<(), Failure> {
    let vectors = model.vectors(tokens, embed.pool.into(), !embed.no_normalize).map_err(refuse)?;
    sink.take(tokens, &vectors, model.encoder.width())
}

fn refuse(error: Error) -> Failure {
    Failure::Data(error.to_string())
}

fn progress(texts: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} texts {eta}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(texts as u64).with_style(style)
}
