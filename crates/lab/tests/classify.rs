//! `classify`: the same rows in every format, real reviews, and what is said of rows that are wrong.

mod common;

use common::{all, class, data, example, folder, open, refusal, text, tokens};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use regard_lab::task::{Inputs, Split, Targets};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Texts that no format can hold without thought, and labels.
const ROWS: [(&str, i64); 6] = [
    ("plain words", 0),
    ("a, comma and a \"quote\"", 1),
    ("two\nlines", 1),
    ("naïve café 🙂 日本語", 0),
    ("  spaces kept  ", 1),
    ("\"", 0),
];

fn csv(rows: &[(&str, i64)], end: &str) -> String {
    let row = |(text, label): &(&str, i64)| format!("{label},\"{}\"{end}", text.replace('"', "\"\""));
    format!("label,text{end}{}", rows.iter().map(row).collect::<String>())
}

fn jsonl(rows: &[(&str, i64)]) -> String {
    rows.iter().map(|(text, label)| format!("{}\n", serde_json::json!({"id": 7, "text": text, "label": label}))).collect()
}

fn parquet(path: &Path, rows: &[(&str, i64)], compression: Compression) {
    let schema =
        parse_message_type("message rows { required int64 id; optional binary text (UTF8); required int64 label; }").expect("a schema");
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut file =
        SerializedFileWriter::new(File::create(path).expect("it is made"), Arc::new(schema), Arc::new(properties)).expect("a file");
    for part in rows.chunks(4) {
        let mut group = file.next_row_group().expect("a group");
        let labels: Vec<i64> = part.iter().map(|row| row.1).collect();
        let texts: Vec<ByteArray> = part.iter().map(|row| row.0.into()).collect();
        let mut column = group.next_column().expect("no error").expect("id");
        column.typed::<Int64Type>().write_batch(&labels, None, None).expect("it is written");
        column.close().expect("it is closed");
        let mut column = group.next_column().expect("no error").expect("text");
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&vec![1; texts.len()]), None).expect("it is written");
        column.close().expect("it is closed");
        let mut column = group.next_column().expect("no error").expect("label");
        column.typed::<Int64Type>().write_batch(&labels, None, None).expect("it is written");
        column.close().expect("it is closed");
        group.close().expect("it is closed");
    }
    file.close().expect("it is closed");
}

#[test]
fn every_format_says_the_same() {
    let marked = format!("\u{feff}{}", csv(&ROWS, "\n"));
    let blank = csv(&ROWS, "\n").replace("\n0,", "\n\n\n0,");
    let files = [
        ("rows.csv", csv(&ROWS, "\n")),
        ("dos.csv", csv(&ROWS, "\r\n")),
        ("mark.csv", marked),
        ("blank.csv", blank),
        ("open.csv", csv(&ROWS, "\n").trim_end().to_owned()),
        ("rows.jsonl", jsonl(&ROWS)),
        ("dos.jsonl", jsonl(&ROWS).replace('\n', "\r\n\r\n")),
    ];
    let folder = folder(&files.each_ref().map(|(name, text)| (*name, text.as_bytes())));
    let zstd = Compression::ZSTD(ZstdLevel::default());
    for (name, compression) in [("plain", Compression::UNCOMPRESSED), ("snappy", Compression::SNAPPY), ("zstd", zstd)] {
        parquet(&folder.path().join(format!("{name}.parquet")), &ROWS, compression);
    }
    let mut prints = HashSet::new();
    let names = files.iter().map(|(name, _)| *name).chain(["plain.parquet", "snappy.parquet", "zstd.parquet"]);
    for name in names {
        let task = open(folder.path(), &format!("{{name: classify, train: {name}, test: {name}, splits: [0.99, 0.01, 0]}}"));
        let found: Vec<(String, i64)> = all(&*task, Split::Test).iter().map(|row| (text(row), class(row).into())).collect();
        assert_eq!(found, ROWS.map(|(text, label)| (text.to_owned(), label)), "{name}");
        assert_eq!(task.facts().balance.iter().map(|label| label.name.as_str()).collect::<Vec<_>>(), ["0", "1"]);
        prints.insert(task.facts().fingerprint.clone());
    }
    assert_eq!(prints.len(), 1, "{prints:?}");
}

#[test]
fn tabs_divide_and_quotes_are_characters() {
    let rows = "2\t\"quoted\" text, with comma\r\n10\t\"\r\n2\tshort\n9\tlast\rword";
    let folder = folder(&[("rows.tsv", rows.as_bytes()), ("named.tsv", format!("stars\treview\n{rows}").as_bytes())]);
    let numbers = open(folder.path(), "{name: classify, train: rows.tsv, test: rows.tsv, text: 2, label: 1, splits: [0.9, 0.1, 0]}");
    let names =
        open(folder.path(), "{name: classify, train: named.tsv, test: named.tsv, text: review, label: stars, splits: [0.9, 0.1, 0]}");
    for task in [numbers, names] {
        let found = all(&*task, Split::Test);
        assert_eq!(found.iter().map(text).collect::<Vec<_>>(), ["\"quoted\" text, with comma", "\"", "short", "last\rword"]);
        assert_eq!(
            task.facts().balance.iter().map(|label| label.name.as_str()).collect::<Vec<_>>(),
            ["2", "9", "10"],
            "whole numbers by value"
        );
        assert_eq!(found.iter().map(class).collect::<Vec<_>>(), [0, 2, 0, 1]);
    }
}

/// A file of so many rows whose texts all differ.
fn many(count: usize) -> String {
    (0..count).map(|row| format!("{}\ttext number {row}\n", if row % 3 == 0 { "b" } else { "a" })).collect()
}

#[test]
fn splits_share_no_text_and_stay() {
    let doubled = many(2000) + &many(2000);
    let folder = folder(&[("once.tsv", many(2000).as_bytes()), ("twice.tsv", doubled.as_bytes())]);
    let of = |name: &str, seed: u64| open(folder.path(), &format!("{{name: classify, train: {name}, text: 2, label: 1, seed: {seed}}}"));
    let texts = |name: &str, seed: u64| {
        let task = of(name, seed);
        Split::ALL.map(|split| all(&*task, split).iter().map(text).collect::<Vec<_>>())
    };
    let once = texts("once.tsv", 0);
    assert_eq!(once, texts("once.tsv", 0));
    assert_ne!(once, texts("once.tsv", 1));
    let sizes = once.each_ref().map(Vec::len);
    assert_eq!(sizes.iter().sum::<usize>(), 2000);
    assert!(sizes.iter().zip([1600, 200, 200]).all(|(found, due): (&usize, usize)| found.abs_diff(due) < 80), "{sizes:?}");
    let twice = texts("twice.tsv", 0);
    let sets = twice.each_ref().map(|texts| texts.iter().cloned().collect::<HashSet<_>>());
    assert_eq!(sets, once.map(|texts| texts.into_iter().collect::<HashSet<_>>()), "a text that is there twice stays in its split");

    let facts = of("once.tsv", 0).facts().clone();
    assert_eq!(facts.balance.iter().map(|label| label.counts[0]).sum::<u64>(), sizes[0] as u64);
    assert_eq!(facts.floor, Some(facts.balance[0].counts[2] as f64 / sizes[2] as f64));
}

#[test]
fn balance_and_floor_are_printed() {
    let folder = folder(&[
        ("a.tsv", b"yes\tone\nno\ttwo\nyes\tthree\nno\tfour\nyes\tfive\n"),
        ("b.tsv", b"yes\tsix\nno\tseven\nno\teight\nno\tnine\n"),
    ]);
    let task = open(folder.path(), "{name: classify, train: a.tsv, validation: b.tsv, test: b.tsv, text: 2, label: 1, longest: 4}");
    let fingerprint = &task.facts().fingerprint;
    let due = format!(
        "classify: tokens below 256 -> one of 2 classes, at most 4 positions\n\
         examples: train 5, validation 4, test 4\n\
         label no: train 2 (40.0%) validation 3 (75.0%) test 3 (75.0%)\n\
         label yes: train 3 (60.0%) validation 1 (25.0%) test 1 (25.0%)\n\
         floor: 0.2500 (accuracy of the majority)\n\
         fingerprint: {fingerprint}"
    );
    assert_eq!(task.facts().to_string(), due);
    assert!(fingerprint.len() == 16 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()));
}

#[test]
fn files_of_their_own() {
    let folder = folder(&[("a.tsv", many(30).as_bytes()), ("b.tsv", b"a\tx\nb\ty\n"), ("c.tsv", b"b\tz\n")]);
    let rows = "text: 2, label: 1";
    let task = open(folder.path(), &format!("{{name: classify, train: a.tsv, validation: b.tsv, test: c.tsv, {rows}}}"));
    assert_eq!(task.facts().sizes, [Some(30), Some(2), Some(1)]);
    assert!(task.notes().is_empty());
    let unseen =
        open(folder.path(), &format!("{{name: classify, train: c.tsv, test: b.tsv, splits: [1, 0, 0], labels: {{a: a, b: b}}, {rows}}}"));
    assert_eq!(unseen.notes(), ["the validation split has no examples", "the train split has no example of a"]);
    let task = open(folder.path(), &format!("{{name: classify, train: a.tsv, validation: b.tsv, splits: [1, 0, 0], {rows}}}"));
    assert_eq!(task.facts().sizes, [Some(30), Some(2), Some(2)]);
    assert_eq!(task.notes(), ["the test split is the validation split: results on it are of the data that choices were made by"]);
    let message = refusal(folder.path(), &format!("{{name: classify, train: a.tsv, test: b.tsv, splits: [0.8, 0.1, 0.1], {rows}}}"));
    assert_eq!(message, "task.splits: gives test a share, which has a file of its own; write 0 there");
}

#[test]
fn labels_are_mapped_and_others_left_out() {
    let folder = folder(&[("a.tsv", b"5\tgood\n1\tbad\n3\tso so\n4\tfine\n 2 \tpoor\n")]);
    let base =
        "name: classify, train: a.tsv, test: a.tsv, splits: [1, 0, 0], text: 2, label: 1, labels: {positive: [4, 5], negative: [1, '2']}";
    let task = open(folder.path(), &format!("{{{base}, others: leave_out}}"));
    let found: Vec<(String, u32)> = all(&*task, Split::Test).iter().map(|row| (text(row), class(row))).collect();
    assert_eq!(found, [("good", 0), ("bad", 1), ("fine", 0), ("poor", 1)].map(|(text, class)| (text.to_owned(), class)));
    let notes = ["2 rows were left out: they have a label that labels does not name", "the validation split has no examples"];
    assert_eq!(task.notes(), notes, "one row of each file");
    assert_eq!(
        refusal(folder.path(), &format!("{{{base}}}")),
        "a.tsv: line 3: unknown label \"3\", did you mean \"5\"?; there are 1, 2, 4, 5; others: leave_out passes over rows with other labels"
    );
    let twice = "{name: classify, train: a.tsv, text: 2, label: 1, labels: {a: [1, 2], b: 2}}";
    assert_eq!(refusal(folder.path(), twice), "task.labels: names \"2\" twice");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let named = "label\ttext\n";
    let files: [(&str, &[u8]); 15] = [
        ("quote.csv", b"label,text\na,x\nb,\"y\nc,z\n"),
        ("short.tsv", b"label\ttext\na\tx\nb\n"),
        ("tab.tsv", b"label\ttext\na\tx\ty\n"),
        ("comma.csv", b"label,text\na,x\n\n\nb,y, z\n"),
        ("empty.tsv", b"label\ttext\na\tx\nb\t \n"),
        ("nothing.tsv", b""),
        ("header.tsv", named.as_bytes()),
        ("one.tsv", b"label\ttext\na\tx\na\ty\n"),
        ("latin.tsv", b"label\ttext\na\tna\xc3\xafve\nb\tnai\xefve\n"),
        ("wide.tsv", b"\xff\xfel\0a\0"),
        ("zipped.tsv", b"\x1f\x8b\x08\0"),
        ("broken.jsonl", b"{\"text\": \"x\", \"label\": 1}\n\n{\"text\": \"y\", \"label\": }\n"),
        ("field.jsonl", b"{\"text\": \"x\", \"label\": 1}\n{\"tekst\": \"y\", \"label\": 2}\n"),
        ("kind.jsonl", b"{\"text\": 3, \"label\": 1}\n"),
        ("new.tsv", b"label\ttext\na\tx\nc\ty\n"),
    ];
    let folder = folder(&files);
    std::fs::write(folder.path().join("tokenizer.json"), "{\"model\": ").expect("it is written");
    std::fs::write(folder.path().join("good.tsv"), "label\ttext\na\tx\nb\ty\n").expect("it is written");
    std::fs::write(folder.path().join("bad.parquet"), "PAR1 and nothing more").expect("it is written");
    for (keys, message) in [
        ("train: short.tsv", "short.tsv: line 3: has 1 columns, the first row has 2; a tab within a text divides it"),
        ("train: tab.tsv", "tab.tsv: line 2: has 3 columns, the first row has 2; a tab within a text divides it"),
        ("train: comma.csv", "comma.csv: line 5: has 3 columns, the first row has 2; a comma within a text needs quotes around it"),
        ("train: quote.csv", "quote.csv: line 3: a quote opens in this row and never closes"),
        ("train: empty.tsv", "empty.tsv: line 3: the text is empty; skip_empty: true leaves such rows out"),
        ("train: nothing.tsv", "nothing.tsv: line 1: the file has no rows"),
        ("train: header.tsv", "header.tsv: file: has no rows to learn from"),
        ("train: one.tsv", "one.tsv: file: every row has the label \"a\"; there is nothing to learn"),
        (
            "train: latin.tsv",
            "latin.tsv: line 3, column text: is not UTF-8: byte 0xef is its byte 4; convert the file, such as with iconv -f latin1 -t utf-8",
        ),
        ("train: wide.tsv", "wide.tsv: line 1: is UTF-16; convert it, such as with iconv -f utf-16 -t utf-8"),
        ("train: zipped.tsv", "zipped.tsv: line 1: is compressed; decompress it first, such as with gunzip"),
        ("train: broken.jsonl", "broken.jsonl: line 3: is not JSON: expected value at line 1 column 24"),
        ("train: field.jsonl", "field.jsonl: line 2: there is no field \"text\", did you mean \"tekst\"?; there are tekst, label"),
        ("train: kind.jsonl", "kind.jsonl: line 1: field \"text\" is not a text"),
        ("train: good.tsv, text: tekst", "good.tsv: line 1: there is no column \"tekst\", did you mean \"text\"?; there are label, text"),
        ("train: good.tsv, text: 3", "good.tsv: line 1: there is no column 3; columns are 1 to 2"),
        ("train: good.tsv, text: 0", "good.tsv: line 1: there is no column 0; columns are 1 to 2"),
        (
            "train: good.tsv, validation: new.tsv",
            "new.tsv: line 3: unknown label \"c\", did you mean \"b\"?; there are a, b; others: leave_out passes over rows with other labels",
        ),
        ("train: good.tsv, tokens: chars", "task.tokens: is chars, which are for language; write bytes or {model: DIR}"),
        ("train: good.tsv, longest: 0", "task.longest: is 0; it lies between 1 and 268435456"),
        ("train: good.tsv, tokens: {model: m}", "task.tokens: m/tokenizer.json is not there; {model: DIR} names a folder that holds it"),
        (
            "train: good.tsv, header: false",
            "task.header: is false; without a header, text and label are numbers of columns, counted from 1",
        ),
        ("train: good.tsv, tokens: {model: ''}", "tokenizer.json: tokenizer: EOF while parsing a value at line 1 column 10"),
        ("train: good", "task.format: the name good does not say how it is written; set tsv, csv, jsonl or parquet"),
        (
            "train: good.tsv, splits: [0.5, 0.6, 0]",
            "task.splits: is [0.5, 0.6, 0.0]; shares of train (above 0), validation and test sum to 1, such as [0.8, 0.1, 0.1]",
        ),
    ] {
        assert_eq!(refusal(folder.path(), &format!("{{name: classify, {keys}}}")), message);
    }
    let missing = refusal(folder.path(), "{name: classify, train: none.tsv}");
    assert!(missing.starts_with("none.tsv: No such file"), "{missing}");
    let damaged = refusal(folder.path(), "{name: classify, train: bad.parquet}");
    assert!(damaged.starts_with("bad.parquet: file: is not a sound Parquet file"), "{damaged}");
    let task = open(folder.path(), "{name: classify, train: empty.tsv, test: good.tsv, skip_empty: true, labels: {a: a, b: b}}");
    assert!(task.notes().contains(&"1 rows were left out: they have no text".to_owned()), "{:?}", task.notes());
}

#[test]
fn a_damaged_parquet_file_is_refused() {
    let folder = folder(&[]);
    let path = folder.path().join("rows.parquet");
    parquet(&path, &ROWS, Compression::SNAPPY);
    let sound = std::fs::read(&path).expect("it is there");
    let yaml = "{name: classify, train: rows.parquet}";
    let column = refusal(folder.path(), "{name: classify, train: rows.parquet, text: tekst}");
    assert_eq!(column, "rows.parquet: schema: there is no column \"tekst\", did you mean \"text\"?; there are id, text, label");
    for kept in [0, 3, 40, sound.len() / 2, sound.len() - 1] {
        std::fs::write(&path, &sound[..kept]).expect("it is written");
        let message = refusal(folder.path(), yaml);
        assert!(message.starts_with("rows.parquet: file: is not a sound Parquet file"), "{kept} bytes: {message}");
    }
}

/// Rows are found again wherever they begin and however long they are.
#[test]
fn rows_of_every_length_are_read_back() {
    let lengths = [1, 4000, 4093, 4094, 4095, 4096, 4097, 32_767, 32_768, 40_000, 7, 300_000];
    let texts: Vec<String> = lengths.iter().map(|length| "x".repeat(length - 1) + "y").collect();
    let rows: Vec<(&str, i64)> = texts.iter().zip(0..).map(|(text, row)| (text.as_str(), row % 2)).collect();
    let tsv: String = rows.iter().map(|(text, label)| format!("{label}\t{text}\n")).collect();
    let quoted = csv(&rows, "\r\n").replace('y', "\r\n\"\"y");
    let folder = folder(&[("a.tsv", tsv.as_bytes()), ("a.csv", quoted.as_bytes()), ("a.jsonl", jsonl(&rows).as_bytes())]);
    for (keys, head) in [
        ("train: a.tsv, test: a.tsv, text: 2, label: 1", ""),
        ("train: a.csv, test: a.csv", "\r\n\""),
        ("train: a.jsonl, test: a.jsonl", ""),
    ] {
        let task = open(folder.path(), &format!("{{name: classify, {keys}, longest: 1000k}}"));
        let found: Vec<String> = all(&*task, Split::Test).iter().map(text).collect();
        assert!(found.iter().eq(texts.iter().map(|text| text.replace('y', &format!("{head}y"))).collect::<Vec<_>>().iter()), "{keys}");
    }
}

/// 50 MB without a line end.
#[test]
fn a_line_of_50_megabytes_is_refused_where_it_is() {
    let long = "word ".repeat(10_000_000);
    let json = format!("{{\"label\": 1, \"text\": \"{long}\"}}\n");
    let files = [
        ("a.tsv", format!("label\ttext\na\tx\nb\t{long}\n")),
        ("a.csv", format!("label,text\na,x\nb,\"{long}\n")),
        ("a.jsonl", format!("{{\"label\": 0, \"text\": \"x\"}}\n{{\"label\": 1, \"text\": \"y\"}}\n{json}")),
    ];
    let folder = folder(&files.each_ref().map(|(name, text)| (*name, text.as_bytes())));
    for (name, _) in &files {
        let message = refusal(folder.path(), &format!("{{name: classify, train: {name}}}"));
        assert_eq!(
            message,
            format!("{name}: line 3: is longer than 16777216 bytes; is this the right file and format? line_limit sets another limit")
        );
    }
    let yaml = "{name: classify, train: a.jsonl, test: a.jsonl, splits: [0.99, 0.01, 0], line_limit: 60000000, longest: 60000000}";
    let task = open(folder.path(), yaml);
    assert_eq!(tokens(&example(&*task, Split::Test, 2)).len(), 50_000_000);
    assert_eq!(task.facts().longest, 50_000_000);
}

#[test]
fn a_file_that_changes_is_noticed() {
    let folder = folder(&[("a.tsv", many(100).as_bytes())]);
    let task = open(folder.path(), "{name: classify, train: a.tsv, text: 2, label: 1}");
    std::fs::write(folder.path().join("a.tsv"), "x\ty\n").expect("it is written");
    let error = task.example(Split::Train, 50).expect_err("it is gone");
    assert!(error.to_string().ends_with("no row begins here: the file has changed since it was opened"), "{error}");
}

#[test]
fn reviews_of_yelp() {
    let Some(folder) = data("yelp/train.tsv") else { return };
    let task = open(&folder, "{name: classify, train: yelp/train.tsv, test: yelp/test.tsv, text: 3, label: 1}");
    let facts = task.facts();
    assert_eq!(facts.sizes[0].zip(facts.sizes[1]).map(|(train, validation)| train + validation), Some(5000));
    let counts = |at: fn([u64; 3]) -> u64| facts.balance.iter().map(|label| at(label.counts)).collect::<Vec<_>>();
    assert_eq!(counts(|counts| counts[0] + counts[1]), [750, 435, 516, 1111, 2188]);
    assert_eq!(counts(|counts| counts[2]), [722, 419, 545, 1073, 2241]);
    assert_eq!((facts.floor, facts.targets), (Some(2241.0 / 5000.0), Targets::Classes(5)));
    assert_eq!(facts.fingerprint, "b0d0231863a1a2c4");

    let yaml = "{name: classify, train: yelp/train.tsv, test: yelp/test.tsv, text: 3, label: 1, labels: {negative: [1, 2], positive: [4, 5]}, others: leave_out}";
    let two = open(&folder, yaml);
    assert_eq!(two.facts().sizes[2], Some(722 + 419 + 1073 + 2241));
    assert_eq!(two.facts().floor, Some(3314.0 / 4455.0));
}

/// A folder with a tokenizer, the key of its golden texts, and its size.
const MODELS: [(&str, &str, usize); 3] =
    [("minilm", "sentences", 30_522), ("stories260k", "prompts", 512), ("tokenizers/gpt2", "texts", 50_257)];

#[derive(serde::Deserialize)]
struct Golden {
    text: String,
    #[serde(alias = "ids_prompt")]
    ids: Vec<u32>,
}

/// Texts that are not empty with the tokens that they should come to.
fn golden(base: &Path, (model, key, _): (&str, &str, usize)) -> Vec<Golden> {
    let read = std::fs::read(base.join(model).join("golden.json")).expect("it is there");
    let mut all: HashMap<String, serde_json::Value> = serde_json::from_slice(&read).expect("it is JSON");
    let texts = all.remove(key).unwrap_or_else(|| panic!("{model} has {:?}", all.keys()));
    let texts: Vec<Golden> = serde_json::from_value(texts).expect("texts and ids");
    texts.into_iter().filter(|golden| !golden.text.trim().is_empty()).collect()
}

#[test]
fn word_pieces_and_byte_pairs_are_those_of_the_model() {
    for model in MODELS {
        let Some(base) = data(&format!("{}/golden.json", model.0)) else { return };
        let due = golden(&base, model);
        let row = |(row, golden): (usize, &Golden)| format!("{}\n", serde_json::json!({"text": golden.text, "label": row % 2}));
        let folder = folder(&[("rows.jsonl", due.iter().enumerate().map(row).collect::<String>().as_bytes())]);
        let keys = format!("train: rows.jsonl, test: rows.jsonl, tokens: {{model: {}}}", base.join(model.0).display());
        let task = open(folder.path(), &format!("{{name: classify, {keys}, longest: 4k}}"));
        assert_eq!(task.facts().inputs, Inputs::Tokens { vocabulary: model.2 });
        let found = all(&*task, Split::Test);
        assert_eq!(found.len(), due.len());
        for (found, due) in found.iter().zip(&due) {
            assert_eq!(tokens(found), due.ids, "{}: {:?}", model.0, due.text);
        }
    }
}

#[test]
fn long_texts_are_cut_within_special_tokens() {
    let Some(base) = data("minilm/golden.json") else { return };
    let due = golden(&base, MODELS[0]);
    let row = |(row, golden): (usize, &Golden)| format!("{}\n", serde_json::json!({"text": golden.text, "label": row % 2}));
    let folder = folder(&[("rows.jsonl", due.iter().enumerate().map(row).collect::<String>().as_bytes())]);
    let keys = format!("name: classify, train: rows.jsonl, test: rows.jsonl, tokens: {{model: {}}}", base.join("minilm").display());
    let cut = open(folder.path(), &format!("{{{keys}, longest: 5}}"));
    for (found, due) in all(&*cut, Split::Test).iter().zip(&due) {
        let whole = if due.ids.len() <= 5 { due.ids.clone() } else { [&due.ids[..4], &due.ids[due.ids.len() - 1..]].concat() };
        assert_eq!(tokens(found), whole);
    }
    let few = refusal(folder.path(), &format!("{{{keys}, longest: 2}}"));
    assert_eq!(few, "task.longest: is 2; the tokenizer alone adds 2 special tokens to every text");
}
