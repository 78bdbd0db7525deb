//! `regard compress`, with the model inside and with a small encoder of the repository.

mod common;

use common::{Desk, Outcome, regard};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const TEXT: &str = "The old lighthouse keeper, who had not slept for 3 nights, saw a strange green light above the harbour.\n\
    He thought that it was only a lantern of the fishermen; but it came nearer, and it made no sound at all.\n\n\
    In the morning nobody in the town of Kelstone would believe a word of what he had to say about it.\n";

fn compress(desk: &Desk, arguments: &[&str]) -> Outcome {
    let path = desk.path("text.txt");
    if !path.exists() {
        fs::write(&path, TEXT).unwrap();
    }
    regard([&["compress"], arguments, &[path.to_str().unwrap()]].concat())
}

fn piped(arguments: &[&str], text: &[u8]) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_regard"))
        .args([&["compress"], arguments].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("regard starts");
    // A call that is refused early closes its end.
    let _ = child.stdin.take().expect("a pipe").write_all(text);
    Outcome::from(child.wait_with_output().expect("it ends"))
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// Whether words stand in a text in this order, none of them split.
#[track_caller]
fn in_order(kept: &str, text: &str) {
    let mut rest = words(text).into_iter();
    assert!(words(kept).iter().all(|word| rest.any(|other| other == *word)), "{kept}");
}

#[test]
fn whole_words_stay_in_order_and_protected_ones_with_them() {
    let desk = Desk::new();
    for method in ["self-information", "random", "head-tail"] {
        for keep in ["0.7", "0.4", "0.2"] {
            let kept = compress(&desk, &["--keep", keep, "--method", method]).done().stdout;
            in_order(&kept, TEXT);
            assert!(["not", "3", "no", "nobody"].iter().all(|word| words(&kept).contains(word)), "{method} {keep}: {kept}");
            assert!(words(&kept).len() < words(TEXT).len(), "{method} {keep}");
        }
    }
    assert_eq!(compress(&desk, &["--keep", "1"]).done().stdout, TEXT);
    let held = compress(&desk, &["--keep", "0.01"]).done();
    assert_eq!(words(&held.stdout), ["not", "3", "no", "nobody"]);
    assert!(held.stderr.contains("that were asked for: protected words stay in any case"), "{held:?}");
    assert_eq!(compress(&desk, &["--keep", "0.4"]).done().stderr, "");
    let free = compress(&desk, &["--keep", "0.02", "--protect-nothing"]).done().stdout;
    assert_eq!(words(&free).len(), 1, "{free}");
    let held = compress(&desk, &["--keep", "0.02", "--protect-nothing", "--protect", "light(house)?\\b"]).done().stdout;
    assert_eq!(words(&held), ["lighthouse", "light"]);
}

#[test]
fn the_json_says_what_stays_where_it_stood_and_how_long_it_took() {
    let desk = Desk::new();
    let outcome = compress(&desk, &["--keep", "0.5", "--format", "json"]).done();
    let found: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert_eq!(
        (&found["schema"], &found["method"], &found["model"]),
        (&"regard/compress/1".into(), &"self-information".into(), &"embedded".into())
    );
    let file = &found["files"][0];
    let all = file["passages"][0]["words"].as_array().unwrap();
    let text = |word: &Value| &TEXT[word[0].as_u64().unwrap() as usize..word[1].as_u64().unwrap() as usize];
    assert_eq!(all.iter().map(text).collect::<Vec<_>>(), words(TEXT));
    let kept: Vec<&str> = all.iter().filter(|word| word[3] == true).map(text).collect();
    assert_eq!(kept, words(file["passages"][0]["text"].as_str().unwrap()));
    assert_eq!(file["words_kept"], kept.len());
    assert_eq!(all.iter().filter(|word| word[4] == true).map(text).collect::<Vec<_>>(), ["not", "3", "no", "nobody"]);
    let [tokens, left] = ["tokens", "tokens_kept"].map(|key| file[key].as_f64().unwrap());
    assert!(left <= (0.5 * tokens).ceil() && left > 0.4 * tokens && file["ratio"] == left / tokens, "{left} of {tokens}");
    assert!(["split", "read", "choose"].iter().all(|stage| file["seconds"][stage].as_f64().unwrap() > 0.0));
}

#[test]
fn an_encoder_looks_and_answers_questions() {
    let desk = Desk::new();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models/bert");
    let with = |more: &[&str]| compress(&desk, &[&["--model", model.to_str().unwrap()], more].concat());
    let looked = with(&["--keep", "0.5"]).done().stdout;
    in_order(&looked, TEXT);
    let asked = with(&["--keep", "0.5", "--question", "What did he see?"]).done().stdout;
    in_order(&asked, TEXT);
    assert_ne!(looked, asked);
    in_order(&with(&["--method", "embedding", "--keep", "0.4"]).done().stdout, TEXT);
    let all = with(&["--keep", "0.5", "--format", "json"]).done().stdout;
    let scores = |json: &str| serde_json::from_str::<Value>(json).unwrap()["files"][0]["passages"][0]["words"].clone();
    let first = with(&["--keep", "0.5", "--format", "json", "--layers", "1"]).done().stdout;
    assert_ne!(scores(&all), scores(&first));
    assert_eq!(scores(&all), scores(&with(&["--keep", "0.5", "--format", "json", "--layers", "2"]).done().stdout));
    with(&["--layers", "0"]).refused(2, &["--layers: 0 of 2; read 1 to 2 of them"]);
    with(&["--layers", "3"]).refused(2, &["--layers: 3 of 2; read 1 to 2 of them"]);
    compress(&desk, &["--layers", "1"]).refused(2, &["--model"]);
    let long = "why ".repeat(600);
    with(&["--question", &long]).refused(2, &["--question:", "tokens, the model has room for", "ask for less"]);
    with(&["--method", "self-information"]).refused(2, &["--method: self-information needs a causal model"]);
    compress(&desk, &["--question", "Who?"]).refused(2, &["--question: a causal model has no vectors of sentences"]);
    compress(&desk, &["--method", "attention"]).refused(2, &["--method: this model is causal; attention and embedding need an encoder"]);
}

#[test]
fn pages_shade_words_and_say_nothing_else() {
    let desk = Desk::new();
    fs::write(desk.path("text.txt"), "A <b>bold</b> & \"quoted\" word of nobody\n").unwrap();
    let page = compress(&desk, &["--format", "html", "--keep", "0.5"]).done().stdout;
    assert!(page.contains("&lt;b&gt;bold&lt;/b&gt;") && page.contains("&amp;") && !page.contains("<b>"), "{page}");
    assert_eq!(page.matches("<i class=").count(), 7);
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</body></html>\n"));
}

#[test]
fn a_number_of_tokens_holds_for_the_whole_file_and_pipes_work() {
    let text = TEXT.repeat(250);
    for arguments in [["--tokens", "2500", "--protect-nothing", "-"], ["--tokens", "2500", "--protect-nothing", "--format=text"]] {
        let kept = piped(&arguments, text.as_bytes()).done().stdout;
        in_order(&kept, &text);
        let counted = piped(&["--keep", "1", "--format", "json"], kept.as_bytes()).done().stdout;
        let counted: Value = serde_json::from_str(&counted).unwrap();
        let tokens = counted["files"][0]["tokens"].as_u64().unwrap();
        assert!((2400..=2500).contains(&tokens), "{tokens}");
    }
    let high = piped(&["--threshold", "2", "--protect-nothing"], text.as_bytes()).done().stdout;
    let low = piped(&["--threshold", "0.5", "--protect-nothing"], text.as_bytes()).done().stdout;
    assert!(!high.is_empty() && high.len() < low.len() && low.len() < text.len());
}

#[test]
fn what_cannot_be_compressed_is_refused_and_nothing_is_left_behind() {
    piped(&[], b"").refused(1, &["standard input has no words"]);
    piped(&[], b" \n\t\n").refused(1, &["standard input has no words"]);
    piped(&[], b"abc\0def").refused(1, &["standard input, line 1: a zero byte: this is not a text"]);
    piped(&[], b"one\ntwo \xff").refused(1, &["standard input, line 2: not UTF-8; convert the file first"]);
    assert_eq!(piped(&["--keep", "0.1"], b"word").done().stdout, "word");
    let desk = Desk::new();
    for keep in ["0", "1.5", "-0.5", "nan"] {
        compress(&desk, &[&format!("--keep={keep}")]).refused(2, &["--keep:", "is outside (0, 1]"]);
    }
    compress(&desk, &["--tokens", "0"]).refused(2, &["--tokens: 0 leaves nothing"]);
    compress(&desk, &["--threshold=-1"]).refused(2, &["--threshold: -1 is not a score of 0 or more"]);
    compress(&desk, &["--sentences", "2"]).refused(2, &["--sentences: 2 is outside (0, 1]"]);
    compress(&desk, &["--keep", "0.5", "--tokens", "10"]).refused(2, &["cannot be used with"]);
    compress(&desk, &["--protect", "(["]).refused(2, &["--protect: the pattern \"([\" does not parse"]);
    compress(&desk, &["--model", "no/such/folder"]).refused(1, &["no/such/folder"]);
    regard(["compress", "missing.txt"]).refused(1, &["cannot read missing.txt"]);
    let output = desk.path("out.txt");
    fs::write(&output, "old").unwrap();
    fs::write(desk.path("text.txt"), [TEXT.repeat(300).as_bytes(), b"\xff"].concat()).unwrap();
    compress(&desk, &["--output", output.to_str().unwrap()]).refused(1, &["text.txt, line 1201: not UTF-8"]);
    assert_eq!(fs::read_to_string(&output).unwrap(), "old");
    assert_eq!(desk.files(), ["out.txt", "text.txt"]);
    fs::write(desk.path("text.txt"), TEXT).unwrap();
    compress(&desk, &["--output", "/no/such/folder/out"]).refused(1, &["cannot write /no/such/folder/out"]);
    compress(&desk, &["--output", desk.path("text.txt").to_str().unwrap(), "--keep", "0.5"]).done();
    in_order(&fs::read_to_string(desk.path("text.txt")).unwrap(), TEXT);
}

#[test]
fn an_evaluation_needs_texts() {
    regard(["eval", "--task", "compression"]).refused(2, &["--task compression needs texts: --classifier RUN, --books FILE, or both"]);
    regard(["eval", "--task", "compression", "--books", "missing.txt"]).refused(1, &["cannot read missing.txt"]);
    regard(["eval"]).refused(2, &["required"]);
}
