//! `regard compare --model`: parameters stay, the mechanism is swapped. A folder of a run is evaluated on its task, an encoder of a checkpoint
//! compares its vectors with those of exact attention.

use super::compare::Compare;
use super::{describe, origin, page_draft, refuse, table, write_page};
use crate::embed::texts::Texts;
use crate::failure::{Failure, warn};
use crate::output::{self, JsonTarget};
use regard_core::Par;
use regard_core::reduce::Reducer;
use regard_lab::compare::{Agreement, agreements, fitting, swapped};
use regard_lab::experiment::{Experiment, is_run};
use regard_lab::model::Mixing;
use regard_lab::record;
use regard_lab::task::{Facts, Inputs, Metric, Targets};
use regard_report::Contents;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Tokens that an encoder computes together.
const TOGETHER: usize = 2048;

/// Measures everything and leaves a record.
pub fn run(compare: &Compare, model: &Path) -> Result<(), Failure> {
    let par = Par::default();
    let target = JsonTarget::new(compare.json.path())?;
    let page = page_draft(compare.report.as_ref())?;
    let named = named(&compare.attention, &compare.set)?;
    let origin = origin(par, None);
    let found = if is_run(model) {
        let experiment = match &compare.data {
            Some(file) => Experiment::reopen_with_test(model, file),
            None => Experiment::reopen(model),
        };
        of_run(&experiment.map_err(refuse)?, model, named, origin)?
    } else {
        of_encoder(model, compare.data.as_ref(), named, origin)?
    };
    if target.leaves_stdout() {
        output::print(&found.text)?;
    }
    let record = Contents::Compare(found.record);
    if let Some(page) = page {
        write_page(page, &record, "compare")?;
    }
    target.write(&record)
}

/// What is printed and what is kept.
struct Found {
    text: String,
    record: regard_report::schema::Compare,
}

fn of_run(experiment: &Experiment, folder: &Path, named: Vec<Mixing>, origin: regard_report::schema::Origin) -> Result<Found, Failure> {
    let facts = experiment.opened.task.facts();
    let mixings = if named.is_empty() { with(&experiment.run.mixing, fitting(facts)) } else { named };
    let all = swapped(experiment, folder, &mixings, &mut |_| ()).map_err(refuse)?;
    describe(&*experiment.opened.task);
    let text = table::table(&all, facts);
    Ok(Found { text, record: record::compare(origin, &experiment.opened, &all) })
}

/// What a run was trained with, ahead of the others where it is not among them.
fn with(trained: &Mixing, mut others: Vec<Mixing>) -> Vec<Mixing> {
    if let Some(at) = others.iter().position(|other| other.name == trained.name) {
        others.remove(at);
    }
    others.insert(0, trained.clone());
    others
}

fn of_encoder(model: &Path, data: Option<&PathBuf>, named: Vec<Mixing>, origin: regard_report::schema::Origin) -> Result<Found, Failure> {
    let missing = || Failure::Usage("--data FILE is missing: the texts of which vectors are compared".into());
    let file = data.ok_or_else(missing)?;
    let texts = Texts::read(std::slice::from_ref(file))?;
    let lines = texts.lines(0..texts.len());
    let lines = if file.extension().is_some_and(|extension| extension == "tsv") { column(&lines) } else { lines };
    let mixings = if named.is_empty() { inside_encoders() } else { named };
    let (all, longest) = agreements(model, &lines, &mixings, TOGETHER).map_err(refuse)?;
    if all.iter().any(|agreement| agreement.cosines.iter().any(|cosine| cosine.is_nan())) {
        warn("some vectors are not numbers");
    }
    Ok(Found { text: agreement_table(&all, lines.len(), longest), record: record::agreement(origin, [model, file], &all, longest) })
}

/// Texts of a table: the column that the first line names text, else the last one.
fn column<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    let named = lines.first().and_then(|first| first.split('\t').position(|name| name == "text"));
    let cell = |line: &&'a str| match named {
        Some(at) => line.split('\t').nth(at).unwrap_or_default(),
        None => line.rsplit('\t').next().unwrap_or_default(),
    };
    lines.iter().skip(usize::from(named.is_some())).map(cell).collect()
}

/// Everything that an encoder can have inside.
fn inside_encoders() -> Vec<Mixing> {
    fitting(&Facts {
        name: "embed",
        inputs: Inputs::Tokens { vocabulary: 1 },
        targets: Targets::Classes(1),
        metric: Metric::Accuracy,
        causal: false,
        longest: 1,
        sizes: [None; 3],
        balance: Vec::new(),
        floor: None,
        fingerprint: String::new(),
    })
}

fn agreement_table(all: &[Agreement], texts: usize, longest: usize) -> String {
    let wide = all.iter().map(|agreement| agreement.mixing.name.chars().count()).max().unwrap_or(0).max("configuration".len());
    let mut text = format!("{:<wide$} {:>12} {:>12} {:>6} {:>12}\n", "configuration", "mean cosine", "least cosine", "kept", "tokens/s");
    for agreement in all {
        let kept = agreement.kept.last().map_or_else(|| "-".to_owned(), |kept| format!("{:.0}%", 100.0 * kept));
        let (name, mean, least, rate) = (&agreement.mixing.name, agreement.mean(), agreement.least(), agreement.tokens_per_s);
        text += &format!("{name:<wide$} {mean:>12.6} {least:>12.6} {kept:>6} {rate:>12.0}\n");
    }
    text + &format!(
        "\nCosines to the vectors of exact attention, {texts} texts of at most {longest} tokens. kept: tokens behind the last layer.\n"
    )
}

/// Mechanisms and reducers by name, with what is set of them.
fn named(names: &[String], settings: &[String]) -> Result<Vec<Mixing>, Failure> {
    let mut written: Vec<(&str, Map<String, Value>)> = names.iter().map(|name| (name.as_str(), Map::new())).collect();
    for setting in settings {
        let usage = |message: String| Failure::Usage(format!("--set {setting} {message}"));
        let (name, value) = setting.split_once('=').ok_or_else(|| usage("is not of the form key=value".into()))?;
        let (target, key) = match name.split_once('.') {
            Some((target, key)) => (written.iter_mut().find(|(name, _)| *name == target), key),
            None if names.len() == 1 => (written.first_mut(), name),
            None => return Err(usage("could be of several mechanisms; write --set mechanism.key=value".into())),
        };
        let (_, options) = target.ok_or_else(|| usage("is of no mechanism that --attention names".into()))?;
        if options.insert(key.to_owned(), Value::from(value)).is_some() {
            return Err(usage("is set twice".into()));
        }
    }
    let read = |written| Mixing::read("--attention", &written).map_err(|error| Failure::Usage(error.to_string()));
    written.into_iter().map(|(name, options)| read(mixing(name, options))).collect()
}

/// As a configuration would have it.
fn mixing(name: &str, mut options: Map<String, Value>) -> Value {
    if Reducer::by_name(name).is_some() {
        options.insert("reducer".to_owned(), Value::from(name));
        return json!({ "reduce": options });
    }
    options.insert("mechanism".to_owned(), Value::from(name));
    Value::Object(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_gives_its_column_of_texts() {
        assert_eq!(column(&["label\ttext\tid", "1\tone two\t7", "0\tthree\t8"]), ["one two", "three"]);
        assert_eq!(column(&["1\tone two", "0\tthree"]), ["one two", "three"]);
        assert_eq!(column(&["alone"]), ["alone"]);
        assert!(column(&[]).is_empty());
    }

    #[test]
    fn settings_find_their_mechanism() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let settings = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect::<Vec<_>>();
        let read = named(&names(&["local", "tome"]), &settings(&["local.window=3", "tome.keep=0.5"])).unwrap();
        assert_eq!(read[0].written["window"], "3");
        assert_eq!(read[1].written["reduce"]["keep"], "0.5");
        let refused = |all: &[&str]| match named(&names(&["local", "exact"]), &settings(all)) {
            Err(Failure::Usage(message)) => message,
            _ => panic!("it is no usage"),
        };
        assert!(refused(&["window=3"]).contains("could be of several"));
        assert!(refused(&["hyper.block=3"]).contains("of no mechanism"));
        assert!(refused(&["local.window=3", "local.window=4"]).contains("set twice"));
        assert!(refused(&["local.windw=3"]).contains("did you mean \"window\""));
    }
}
