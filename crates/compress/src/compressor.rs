//! A passage from text to text: pieces, what a model says of them, scores of words, a choice.

use crate::Error;
use crate::choose::{Amount, Known};
use crate::read::{EncoderReader, Pieces, Reader, Reading, RunReader, read};
use crate::score::{self, Frequencies, Relevance};
use crate::text::{Fences, Protect, Word, joined, words};
use regard_lab::experiment::is_run;
use regard_models::Folder;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a word is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// How much the last layers of an encoder look at it.
    Attention,
    /// How little a causal model expected it.
    SelfInformation,
    /// Its sentence's nearness to the passage, and then the length of its vector.
    Embedding,
    /// Chance.
    Random,
    /// Its nearness to the beginning or the end of the passage.
    HeadTail,
    /// Little if it is a function word; chance among equals.
    StopWords,
    /// How often it occurs here, and how seldom elsewhere.
    TfIdf,
}

impl Method {
    /// Whether a model is read for it.
    pub fn reads(self) -> bool {
        matches!(self, Method::Attention | Method::SelfInformation | Method::Embedding)
    }
}

/// How texts are compressed.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much stays.
    pub amount: Amount,
    /// What a word is worth; by default what the model is for.
    pub method: Option<Method>,
    /// The share of the tokens whose sentences go on to be judged word by word, in (0, 1]; all of them by default, and for
    /// [`Method::Embedding`] as many as stay.
    pub sentences: Option<f64>,
    /// What the text will be asked: words of sentences that are near to it count more.
    pub question: Option<String>,
    /// What stays whatever its score.
    pub protect: Protect,
    /// Of [`Method::Random`].
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { amount: Amount::Keep(0.5), method: None, sentences: None, question: None, protect: Protect::default(), seed: 0 }
    }
}

impl Options {
    fn check(&self) -> Result<(), Error> {
        let share = |name: &'static str, value: f64| {
            let message = format!("{value} is outside (0, 1]; it is the share that stays");
            if value > 0.0 && value <= 1.0 { Ok(()) } else { Err(Error::Option { name, message }) }
        };
        match self.amount {
            Amount::Keep(keep) => share("keep", keep)?,
            Amount::Tokens(0) => return Err(Error::Option { name: "tokens", message: "0 leaves nothing; write at least 1".into() }),
            Amount::Threshold(threshold) if threshold.is_nan() || threshold < 0.0 => {
                return Err(Error::Option {
                    name: "threshold",
                    message: format!("{threshold} is not a score of 0 or more; 1 is the mean"),
                });
            }
            _ => (),
        }
        self.sentences.map_or(Ok(()), |value| share("sentences", value))
    }
}

/// Time in each stage.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stages {
    /// Words, sentences, pieces.
    pub split: Duration,
    /// In the model.
    pub read: Duration,
    /// Scores and the choice.
    pub choose: Duration,
}

impl std::ops::AddAssign for Stages {
    fn add_assign(&mut self, other: Self) {
        self.split += other.split;
        self.read += other.read;
        self.choose += other.choose;
    }
}

/// Compresses the passages of a text one after another.
pub struct Compressor {
    reader: Arc<dyn Reader>,
    method: Method,
    options: Options,
    frequencies: Frequencies,
    /// The vector of the question.
    sought: Option<Vec<f32>>,
    fences: Fences,
    /// Bytes of the passages before.
    bytes: u64,
    /// Of [`Amount::Tokens`]: tokens that may still stay, and those that are still to come.
    budget: Option<(u64, u64)>,
}

impl Compressor {
    /// With the language model that is part of this crate.
    ///
    /// # Errors
    /// If an option is out of its range.
    pub fn embedded(options: Options) -> Result<Self, Error> {
        Self::new(Arc::new(RunReader::embedded()?), options)
    }

    /// With the model of a folder: an encoder of the BERT family as Hugging Face writes it, a name on its hub, or a run of `regard train` on language.
    /// Of an encoder the first `layers` layers are read, by default all.
    ///
    /// # Errors
    /// If there is no such model, or an option does not fit it.
    pub fn open(model: &str, layers: Option<usize>, options: Options) -> Result<Self, Error> {
        let run = is_run(Path::new(model));
        if run && layers.is_some() {
            let message =
                format!("{model} is a run of regard train, which is read whole; an encoder of the BERT family may be read in part");
            return Err(Error::Option { name: "layers", message });
        }
        let reader: Arc<dyn Reader> =
            if run { Arc::new(RunReader::open(Path::new(model))?) } else { Arc::new(EncoderReader::open(&Folder::find(model)?, layers)?) };
        Self::new(reader, options)
    }

    /// With any model.
    ///
    /// # Errors
    /// If an option is out of its range or does not fit the model.
    pub fn new(reader: Arc<dyn Reader>, options: Options) -> Result<Self, Error> {
        options.check()?;
        let usual = if reader.is_causal() { Method::SelfInformation } else { Method::Attention };
        let method = options.method.unwrap_or(usual);
        fits(method, &*reader, &options)?;
        let sought = options.question.as_deref().map(|question| vector(&*reader, question)).transpose()?;
        let frequencies = Frequencies::default();
        Ok(Compressor { reader, method, options, frequencies, sought, fences: Fences::default(), bytes: 0, budget: None })
    }

    /// With the texts that [`Method::TfIdf`] looks for words in.
    #[must_use]
    pub fn with_frequencies(self, frequencies: Frequencies) -> Self {
        Compressor { frequencies, ..self }
    }

    /// What words are worth.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Begins another text. With [`Amount::Tokens`] its tokens must be known beforehand, from [`Compressor::count`].
    pub fn begin(&mut self, tokens: u64) {
        (self.fences, self.bytes) = (Fences::default(), 0);
        self.budget = match self.options.amount {
            Amount::Tokens(wanted) => Some((wanted, tokens)),
            _ => None,
        };
    }

    /// Tokens of a passage, a word without any counting as one.
    ///
    /// # Errors
    /// If the tokenizer has nothing for a part of it.
    pub fn count(&self, text: &str) -> Result<u64, Error> {
        let words = words(text);
        let own = score::pieces_of(&words, &self.reader.splitter().pieces(text)?);
        Ok(own.iter().map(|range| range.len().max(1) as u64).sum())
    }

    /// Compresses a passage.
    ///
    /// # Errors
    /// If the model refuses it.
    pub fn passage<'t>(&mut self, text: &'t str) -> Result<Passage<'t>, Error> {
        let start = Instant::now();
        let words = words(text);
        let protected = self.options.protect.mask(text, &words, &mut self.fences);
        let pieces = self.reader.splitter().pieces(text)?;
        let split = start.elapsed();
        let vectors = self.method == Method::Embedding || self.options.sentences.is_some() || self.sought.is_some();
        let reading = if self.method.reads() || vectors { Some(read(&*self.reader, &pieces.ids, vectors)?) } else { None };
        let reads = start.elapsed();
        let own = score::pieces_of(&words, &pieces);
        let scored = Scored { text, words: &words, pieces: &pieces, own: &own, reading: reading.as_ref() };
        let (scores, relevance) = self.scores(&scored);
        let costs = own.iter().map(|range| range.len().max(1) as u32).collect();
        let nearness = relevance.map(Relevance::into_cosines);
        let mut passage = Passage { text, words, scores, protected, kept: Vec::new(), costs, nearness, stages: Stages::default() };
        passage.kept = self.choose(&passage);
        self.bytes += text.len() as u64;
        passage.stages = Stages { split, read: reads - split, choose: start.elapsed() - reads };
        Ok(passage)
    }

    /// Chooses among the words of a passage again, for another share of the tokens.
    pub fn choose_again(&self, passage: &mut Passage<'_>, keep: f64) {
        passage.kept = self.within(passage, keep);
    }

    fn within(&self, passage: &Passage<'_>, keep: f64) -> Vec<bool> {
        let share = self.options.sentences.or((self.method == Method::Embedding).then_some(keep));
        let known = passage.known(share);
        known.within((keep * known.total() as f64 - 1e-9).ceil() as u64)
    }

    fn choose(&mut self, passage: &Passage<'_>) -> Vec<bool> {
        let known = passage.known(self.options.sentences);
        match (self.options.amount, &mut self.budget) {
            (Amount::Threshold(threshold), _) => known.above(threshold),
            (Amount::Keep(keep), _) => self.within(passage, keep),
            (Amount::Tokens(wanted), None) => known.within(wanted),
            (Amount::Tokens(_), Some((left, ahead))) => {
                let total = known.total();
                let kept = known.within((*left as f64 * total as f64 / (*ahead).max(total).max(1) as f64).round() as u64);
                let used = kept.iter().zip(&passage.costs).filter(|(kept, _)| **kept).map(|(_, &cost)| u64::from(cost)).sum::<u64>();
                (*left, *ahead) = (left.saturating_sub(used), ahead.saturating_sub(total));
                kept
            }
        }
    }

    fn scores(&self, scored: &Scored<'_>) -> (Vec<f32>, Option<Relevance>) {
        let &Scored { text, words, pieces, own, reading } = scored;
        let nothing = Reading { weights: Vec::new(), vectors: Vec::new() };
        let said = reading.unwrap_or(&nothing);
        let width = self.reader.width();
        let mut scores = match self.method {
            Method::Attention => score::attention(text, (pieces, own), said),
            Method::SelfInformation => score::information(own, said),
            Method::Embedding => score::lengths(own, said, width),
            Method::Random => score::random(self.options.seed, words, self.bytes),
            Method::HeadTail => score::head_tail(words),
            Method::StopWords => self.stop_words(text, words),
            Method::TfIdf => score::tf_idf(text, words, &self.frequencies),
        };
        if said.vectors.is_empty() || words.is_empty() {
            return (scores, None);
        }
        let whole = || score::mean(&said.vectors, width, 0..pieces.ids.len());
        let relevance = Relevance::new(words, own, said, &self.sought.clone().unwrap_or_else(whole));
        if self.sought.is_some() {
            relevance.weigh(words, &mut scores);
        }
        (scores, Some(relevance))
    }
}

impl Compressor {
    /// Chance, and 1 more for words that are none of them.
    fn stop_words(&self, text: &str, words: &[Word]) -> Vec<f32> {
        let chance = score::random(self.options.seed, words, self.bytes);
        let worth = |word: &Word| if score::is_stop_word(&text[word.span.clone()]) { 0.0 } else { 1.0 };
        words.iter().zip(chance).map(|(word, chance)| chance + worth(word)).collect()
    }
}

/// A passage on its way.
struct Scored<'a> {
    text: &'a str,
    words: &'a [Word],
    pieces: &'a Pieces,
    own: &'a [std::ops::Range<usize>],
    reading: Option<&'a Reading>,
}

fn fits(method: Method, reader: &dyn Reader, options: &Options) -> Result<(), Error> {
    let refuse = |name, message: &str| Err(Error::Option { name, message: message.into() });
    match method {
        Method::SelfInformation if !reader.is_causal() => {
            refuse("method", "self-information needs a causal model: a run of regard train on language without masked")
        }
        Method::Attention | Method::Embedding if reader.is_causal() => {
            refuse("method", "this model is causal; attention and embedding need an encoder, or a run on language with masked")
        }
        _ if reader.is_causal() && (options.question.is_some() || options.sentences.is_some()) => {
            refuse("question", "a causal model has no vectors of sentences; questions and a share of sentences need an encoder")
        }
        _ => Ok(()),
    }
}

/// The mean vector of a question.
fn vector(reader: &dyn Reader, question: &str) -> Result<Vec<f32>, Error> {
    let pieces = reader.splitter().pieces(question)?;
    let refuse = |message: String| Err(Error::Option { name: "question", message });
    match pieces.ids.len() {
        0 => refuse("it has no words".into()),
        count if count > reader.room() => refuse(format!("{count} tokens, the model has room for {}; ask for less", reader.room())),
        count => Ok(score::mean(&read(reader, &pieces.ids, true)?.vectors, reader.width(), 0..count)),
    }
}

/// A passage with what became of its words.
#[derive(Debug, Clone)]
pub struct Passage<'t> {
    /// The passage.
    pub text: &'t str,
    /// Its words.
    pub words: Vec<Word>,
    /// What each is worth; 1 is the mean, but for chance and the nearness to an end.
    pub scores: Vec<f32>,
    /// Which stay whatever they are worth.
    pub protected: Vec<bool>,
    /// Which stay.
    pub kept: Vec<bool>,
    /// Tokens of each.
    pub costs: Vec<u32>,
    /// How near each sentence is to the whole or to the question, where that was asked for.
    pub nearness: Option<Vec<f32>>,
    /// Where the time went.
    pub stages: Stages,
}

impl Passage<'_> {
    /// The words that stay, as a text.
    pub fn compressed(&self) -> String {
        joined(self.text, &self.words, &self.kept)
    }

    fn known(&self, share: Option<f64>) -> Known<'_> {
        let sentences = self.nearness.as_deref().zip(share);
        Known { words: &self.words, scores: &self.scores, costs: &self.costs, protected: &self.protected, sentences }
    }

    /// Tokens of the passage.
    pub fn tokens(&self) -> u64 {
        self.costs.iter().map(|&cost| u64::from(cost)).sum()
    }

    /// Tokens of the words that stay.
    pub fn tokens_kept(&self) -> u64 {
        self.kept.iter().zip(&self.costs).filter(|(kept, _)| **kept).map(|(_, &cost)| u64::from(cost)).sum()
    }
}
