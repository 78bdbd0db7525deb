//! Configurations: keys, defaults, and what is said of a typo.

mod common;

use common::{config, refusal, repository};
use regard_lab::Error;
use regard_lab::compare::Comparison;
use regard_lab::model::{Mixing, ModelConfig};
use regard_lab::section::Section;
use regard_lab::task::{ABOUT, About, TaskConfig};
use regard_lab::train::Training;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn a_typo_is_refused_with_the_nearest_name() {
    for (yaml, message) in [
        (
            "{name: recal}",
            "task.name: there is no task \"recal\", did you mean \"recall\"?; there are classify, language, images, forecast, recall, listops, copy, induction, needle",
        ),
        (
            "{name: recall, pears: 3}",
            "task.pears: is no key of recall, did you mean \"pairs\"?; there are length, pairs, vocabulary, power, sizes, seed",
        ),
        (
            "{pairs: 3}",
            "task.name: is missing; it is one of classify, language, images, forecast, recall, listops, copy, induction, needle",
        ),
        ("{name: 3}", "task.name: is 3; it is one of classify, language, images, forecast, recall, listops, copy, induction, needle"),
        ("[recall]", "task: keys and values were expected, such as {name: recall, pairs: 8}"),
        ("{name: recall, pairs: four}", "task.pairs: is \"four\": invalid type: string \"four\", expected usize; the default is 4"),
        ("{name: recall, pairs: -1}", "task.pairs: is -1: invalid value: integer `-1`, expected usize; the default is 4"),
        (
            "{name: listops, preset: midi}",
            "task.preset: is \"midi\": unknown variant `midi`, expected `full` or `mini`; the default is \"full\"",
        ),
        (
            "{name: recall, sizes: [1, 2]}",
            "task.sizes: is [1,2]: invalid length 2, expected an array of length 3; the default is [null,1000,1000]",
        ),
        ("{name: classify}", "task.train: is missing; it names the file to learn from"),
        ("{name: language}", "task.train: is missing; it names the text to learn from"),
        ("{name: images}", "task.train: is missing; it names the file to learn from"),
        ("{name: forecast}", "task.file: is missing; it names a CSV file"),
    ] {
        assert_eq!(refusal(Path::new("."), yaml), message);
    }
}

#[test]
fn the_message_survives_a_reader_of_yaml() {
    let error = serde_saphyr::from_str::<TaskConfig>("{name: recall, pears: 3}").expect_err("a typo");
    assert!(error.to_string().contains("did you mean \"pairs\"?"), "{error}");
}

#[test]
fn k_is_1024() {
    assert_eq!(
        config("{name: needle, length: 4k, sizes: [null, 1k, 2k]}"),
        config("{name: needle, length: 4096, sizes: [null, 1024, 2048]}")
    );
    assert_eq!(config("{name: listops, longest: 1k}"), config("{name: listops, longest: 1024}"));
}

#[test]
fn what_is_written_is_read_back() {
    for about in ABOUT {
        let config = about.default();
        assert_eq!(config.name(), about.name);
        let written = serde_json::to_value(&config).expect("it is written");
        assert_eq!(TaskConfig::read(written).expect("it is read"), config);
        let yaml = format!("{{name: {}}}", about.name);
        assert_eq!(common::config(&yaml), config);
    }
    let labels = config("{name: classify, train: a.tsv, labels: {z: [1, 2], a: x}, tokens: {model: m}, text: 3, label: stars}");
    assert_eq!(TaskConfig::read(serde_json::to_value(&labels).expect("it is written")).expect("it is read"), labels);
}

/// `docs/tasks.md` has a table of keys for every task, in their order and with their defaults.
#[test]
fn documentation_names_every_key_with_its_default() {
    let path = repository().join("docs/tasks.md");
    let text = std::fs::read_to_string(&path).expect("docs/tasks.md is there");
    for about in ABOUT {
        let start = text.find(&format!("\n## {}\n", about.name)).unwrap_or_else(|| panic!("{} has no section", about.name));
        let section = text[start + 4..].split("\n## ").next().expect("a section");
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let found: Vec<(String, Value)> = rows.map(|(key, rest)| (key.to_owned(), default_of(rest))).collect();
        let due: Vec<(String, Value)> = keys(&about);
        assert_eq!(found, due, "section {}", about.name);
    }
}

fn keys(about: &About) -> Vec<(String, Value)> {
    about.keys().into_iter().map(|(key, value)| (key, if value == "" { "must be there".into() } else { value })).collect()
}

/// The second column of a row of the table.
fn default_of(rest: &str) -> Value {
    let cell = rest.split(" | ").next().expect("a cell").trim_matches('`');
    serde_saphyr::from_str(cell).unwrap_or_else(|error| panic!("{cell}: {error}"))
}

/// Examples of `docs/tasks.md` are read, and opened where the data is.
#[test]
fn examples_of_the_documentation_open() {
    #[derive(serde::Deserialize)]
    struct Written {
        task: TaskConfig,
    }
    let text = std::fs::read_to_string(repository().join("docs/tasks.md")).expect("docs/tasks.md is there");
    let blocks: Vec<&str> = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().expect("a block")).collect();
    assert_eq!(blocks.len(), ABOUT.len() + 1);
    let base = common::data("yelp/train.tsv");
    for block in blocks {
        let written: Written = serde_saphyr::from_str(block).unwrap_or_else(|error| panic!("{block}: {error}"));
        let file = matches!(written.task, TaskConfig::Classify(_) | TaskConfig::Language(_) | TaskConfig::Images(_));
        match (&base, &written.task) {
            (_, TaskConfig::Forecast(_)) => {}
            (None, _) if file => {}
            (base, task) => drop(task.open(base.as_deref().unwrap_or(Path::new("."))).unwrap_or_else(|error| panic!("{block}: {error}"))),
        }
    }
}

/// Every file of YAML below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.flat_map(below).filter(|path| path.extension().is_some_and(|ending| ending == "yaml")).collect()
}

#[test]
fn every_configuration_that_is_committed_is_read() {
    let mut read = 0;
    for path in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs")) {
        let section = Section::open(&path).unwrap_or_else(|error| panic!("{error}"));
        if section.peek("task").is_some() {
            read += 1;
            check(section).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
    assert!(read >= 10, "{read} configurations");
}

/// Reads a run or a comparison without its task's data.
fn check(mut section: Section) -> Result<(), Error> {
    TaskConfig::read(section.value("task").unwrap_or_default())?;
    section.take::<String>("title")?;
    if section.peek("configurations").is_some() {
        Comparison::read(&mut section)?;
    } else {
        ModelConfig::read(section.section("model")?)?;
        Training::read(section.section("train")?)?;
        Mixing::read("attention", &section.value("attention").unwrap_or_else(|| "exact".into()))?;
    }
    section.done()
}
