//! `regard eval --task compression`: what is left of texts when words are left out, by every method at every share.

use crate::arguments::Json;
use crate::failure::Failure;
use crate::lab::{describe, origin, page_draft, refuse as refuse_lab, write_page};
use crate::output::{self, JsonTarget};
use clap::Args;
use indicatif::ProgressBar;
use regard_compress::evaluate::{Contender, Measured, accuracies, cosines, facts_kept, planted};
use regard_compress::read::{EncoderReader, Reader, RunReader};
use regard_compress::{Compressor, Frequencies, Method, Options};
use regard_core::Par;
use regard_lab::experiment::Experiment;
use regard_lab::task::Split;
use regard_lab::train::load_kept;
use regard_models::{Folder, TextEncoder};
use regard_report::Contents;
use regard_report::schema::{Compression, Left, Retention};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Words of a part of a book that facts are planted in, and facts in each.
const PART: (usize, usize) = (600, 3);

/// What the evaluation of compressed texts reads.
#[derive(Args)]
pub struct Sources {
    /// Encoder whose attention and sentence vectors say what words are worth, and which judges how near texts are: a folder or a name on the hub
    #[arg(long, value_name = "DIR|NAME", requires = "task")]
    model: Option<String>,
    /// Also judge the attention of the encoder's first N layers
    #[arg(long, value_name = "N,…", value_delimiter = ',', requires = "model")]
    layers: Vec<usize>,
    /// Run of regard train on language whose surprise says what words are worth; the model that is part of the program by default
    #[arg(long, value_name = "RUN", requires = "task")]
    language: Option<PathBuf>,
    /// Run of regard train on classify, which judges the texts of its test split
    #[arg(long, value_name = "RUN", requires = "task")]
    classifier: Option<PathBuf>,
    /// Books that facts are planted in
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "task")]
    books: Vec<PathBuf>,
    /// Texts of the classifier's test split, and parts of books, at most
    #[arg(long, value_name = "N", default_value_t = 500, requires = "task")]
    texts: u64,
    /// Shares of the tokens that stay
    #[arg(long, value_name = "SHARE,…", value_delimiter = ',', default_value = "0.75,0.5,0.33,0.2", requires = "task")]
    keep: Vec<f64>,
    /// Also write a page of charts
    #[arg(long, value_name = "FILE", requires = "task")]
    report: Option<PathBuf>,
}

/// Everything that a measure needs.
struct Contest<'a> {
    contenders: Vec<Contender>,
    keep: &'a [f64],
    bar: ProgressBar,
}

/// What a contender leaves at some shares.
type Measure<'a> = dyn Fn((&Contender, &[f64])) -> Result<Vec<Measured>, regard_compress::Error> + 'a;

/// Measures, prints a table, writes the record and the page.
pub fn run(sources: &Sources, json: &Json) -> Result<(), Failure> {
    let par = Par::default();
    let target = JsonTarget::new(json.path())?;
    let page = page_draft(sources.report.as_ref())?;
    if sources.classifier.is_none() && sources.books.is_empty() {
        return Err(Failure::Usage("--task compression needs texts: --classifier RUN, --books FILE, or both".into()));
    }
    let mut contest = Contest { contenders: contenders(sources)?, keep: &sources.keep, bar: ProgressBar::new_spinner() };
    let mut measures = Vec::new();
    if let Some(run) = &sources.classifier {
        measures.extend(contest.reviews(run, sources)?);
    }
    if !sources.books.is_empty() {
        measures.extend(contest.books(sources)?);
    }
    contest.bar.finish_and_clear();
    if target.leaves_stdout() {
        output::print(&table(&measures))?;
    }
    let contents = Contents::Compression(Compression { origin: origin(par, Some("Compressed texts".into())), measures });
    if let Some(page) = page {
        write_page(page, &contents, "compression.json")?;
    }
    target.write(&contents)
}

fn contenders(sources: &Sources) -> Result<Vec<Contender>, Failure> {
    let language: Arc<dyn Reader> = match &sources.language {
        Some(run) => Arc::new(RunReader::open(run).map_err(super::refuse)?),
        None => Arc::new(RunReader::embedded().map_err(super::refuse)?),
    };
    let reader: Arc<dyn Reader> = match &sources.model {
        Some(model) => encoder(model, None)?,
        None => Arc::clone(&language),
    };
    let by = |name: &str, method: Method| Contender {
        name: name.into(),
        method,
        reader: Arc::clone(&reader),
        frequencies: Frequencies::default(),
    };
    let told = Contender { reader: Arc::clone(&language), ..by("self-information", Method::SelfInformation) };
    let others =
        [("random", Method::Random), ("head-tail", Method::HeadTail), ("stop words", Method::StopWords), ("tf-idf", Method::TfIdf)];
    let looking = [("attention", Method::Attention), ("embedding", Method::Embedding)];
    let looks = looking.into_iter().filter(|_| !reader.is_causal());
    let mut all: Vec<Contender> = looks.map(|(name, method)| by(name, method)).collect();
    for &layers in &sources.layers {
        let reader = encoder(sources.model.as_deref().unwrap_or_default(), Some(layers))?;
        all.push(Contender { reader, ..by(&format!("attention, {layers} layers"), Method::Attention) });
    }
    all.extend(language.is_causal().then_some(told));
    all.extend(others.map(|(name, method)| by(name, method)));
    for contender in &all {
        let options = Options { method: Some(contender.method), ..Options::default() };
        Compressor::new(Arc::clone(&contender.reader), options).map_err(super::refuse)?;
    }
    Ok(all)
}

fn encoder(model: &str, layers: Option<usize>) -> Result<Arc<dyn Reader>, Failure> {
    let folder = Folder::find(model).map_err(model_error)?;
    Ok(Arc::new(EncoderReader::open(&folder, layers).map_err(super::refuse)?))
}

fn model_error(error: regard_models::Error) -> Failure {
    Failure::Data(error.to_string())
}

fn read(path: &PathBuf) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::Data(format!("cannot read {}: {error}", path.display())))
}

impl Contest<'_> {
    /// A measure of contenders at all shares.
    fn all(&self, contenders: &[&Contender], measure: &Measure<'_>) -> Result<(Vec<Left>, u64), Failure> {
        let (mut results, mut count) = (Vec::new(), 0);
        for contender in contenders {
            self.bar.set_message(contender.name.clone());
            self.bar.tick();
            let found = measure((contender, self.keep)).map_err(super::refuse)?;
            for (found, &keep) in found.iter().zip(self.keep) {
                let (value, error) = found.mean();
                count = found.values.len() as u64;
                results.push(Left { method: contender.name.clone(), keep, ratio: found.ratio, value, error: Some(error) });
            }
        }
        Ok((results, count))
    }

    /// How words are counted that are rare elsewhere.
    fn learn(&mut self, texts: &[String]) {
        let mut frequencies = Frequencies::default();
        texts.iter().for_each(|text| frequencies.add(text));
        self.contenders.iter_mut().for_each(|contender| contender.frequencies = frequencies.clone());
    }

    /// What a classifier says of its test texts, and how near their vectors are.
    fn reviews(&mut self, run: &Path, sources: &Sources) -> Result<Vec<Retention>, Failure> {
        let experiment = Experiment::reopen(run).map_err(refuse_lab)?;
        let task = &*experiment.opened.task;
        describe(task);
        let (model, device) = load_kept(&experiment.run, task, run).map_err(refuse_lab)?;
        let texts = |split: Split, most: u64| -> Result<Vec<String>, Failure> {
            let count = task.facts().sizes[split as usize].unwrap_or(0).min(most);
            let texts = (0..count).map(|at| task.text(split, at)).collect::<Result<Option<Vec<_>>, _>>().map_err(refuse_lab)?;
            texts.ok_or_else(|| {
                Failure::Data(format!("{}: the task {} has no texts; name a run on classify", run.display(), task.facts().name))
            })
        };
        let test = texts(Split::Test, sources.texts)?;
        self.learn(&texts(Split::Train, u64::MAX)?);
        let everyone: Vec<&Contender> = self.contenders.iter().collect();
        let (results, count) = self.all(&everyone, &|way| accuracies((&model, task, &device), &test, way))?;
        let whole = accuracies((&model, task, &device), &test, (everyone[0], &[1.0])).map_err(super::refuse)?[0].mean().0;
        let about = "How often a fixed classifier is right about compressed test texts.".to_owned();
        let mut measures = vec![Retention { name: "accuracy".into(), about, count, whole: Some(whole), results }];
        if let Some(model) = &sources.model {
            let encoder = TextEncoder::open(&Folder::find(model).map_err(model_error)?, &regard_models::cpu()).map_err(model_error)?;
            let (results, count) = self.all(&everyone, &|way| cosines(&encoder, &test, way))?;
            let about = "Cosine between the encoder's vectors of a text and of what is left of it.".to_owned();
            measures.push(Retention { name: "cosine".into(), about, count, whole: Some(1.0), results });
        }
        Ok(measures)
    }

    /// Which planted facts are still there.
    fn books(&mut self, sources: &Sources) -> Result<Vec<Retention>, Failure> {
        let books = sources.books.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let most = (sources.texts as usize).div_ceil(books.len());
        let parts: Vec<_> = books.iter().enumerate().flat_map(|(at, book)| planted(book, (PART.0, most), PART.1, at as u64)).collect();
        if parts.is_empty() {
            return Err(Failure::Data(format!("the books are too short; facts go into parts of {} words", PART.0)));
        }
        self.learn(&books.iter().flat_map(|book| book.split("\n\n").map(str::to_owned)).collect::<Vec<_>>());
        let everyone: Vec<&Contender> = self.contenders.iter().collect();
        let asked: Vec<&Contender> = everyone.iter().copied().filter(|contender| contender.takes_questions()).collect();
        let mut measures = Vec::new();
        for (name, contenders, with) in [("facts kept", everyone, false), ("facts kept, question known", asked, true)] {
            let (results, count) = self.all(&contenders, &|way| facts_kept(&parts, way, with))?;
            let question = if with { " with the fact's question in mind" } else { "" };
            let about =
                format!("Share of planted facts whose answer still stands word for word in parts of books that were compressed{question}.");
            measures.push(Retention { name: name.into(), about, count, whole: Some(1.0), results });
        }
        Ok(measures)
    }
}

fn table(measures: &[Retention]) -> String {
    let mut text = String::new();
    for measure in measures.iter().filter(|measure| !measure.results.is_empty()) {
        let mut shares: Vec<f64> = Vec::new();
        measure.results.iter().for_each(|left| {
            if !shares.contains(&left.keep) {
                shares.push(left.keep)
            }
        });
        let whole = measure.whole.map_or_else(String::new, |whole| format!(", {whole:.4} on whole texts"));
        let _ = writeln!(text, "\n{} ({}{whole})", measure.name, measure.count);
        let _ = write!(text, "{:<18}", "kept");
        shares.iter().for_each(|share| _ = write!(text, "{share:>18}"));
        for (at, left) in measure.results.iter().enumerate() {
            if at % shares.len() == 0 {
                let _ = write!(text, "\n{:<18}", left.method);
            }
            let error = 1.96 * left.error.unwrap_or(0.0);
            let _ = write!(text, "{:>18}", format!("{:.4} ±{error:.4}", left.value));
        }
        text.push('\n');
    }
    text
}
