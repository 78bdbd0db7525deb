//! `language`: windows over texts, characters and tokens.

mod common;

use common::{all, asked, data, example, folder, open, refusal, tokens};
use regard_lab::task::{Inputs, Metric, Split, Targets};

/// What a model would predict is what comes next.
fn follows(task: &dyn regard_lab::task::Task, stream: &[u32], context: usize) {
    let train = task.facts().sizes[0].expect("it ends") as usize;
    for index in [0, 1, 7, train - 1] {
        let found = example(task, Split::Train, index as u64);
        assert_eq!(tokens(&found), &stream[index..index + context]);
        let next: Vec<Option<u32>> = stream[index + 1..=index + context].iter().copied().map(Some).collect();
        assert_eq!(asked(&found), next);
    }
}

#[test]
fn windows_cover_every_part() {
    let text: Vec<u8> = (0..1000u32).map(|at| (at * at % 251) as u8).collect();
    let folder = folder(&[("a.txt", &text[..300]), ("b.txt", &text[300..])]);
    let task = open(folder.path(), "{name: language, train: [a.txt, b.txt], context: 32}");
    let stream: Vec<u32> = text.iter().copied().map(u32::from).collect();
    let facts = task.facts();
    assert_eq!(
        (facts.sizes, facts.metric, facts.inputs),
        ([Some(800 - 32), Some(4), Some(4)], Metric::BitsPerByte, Inputs::Tokens { vocabulary: 256 })
    );
    follows(&*task, &stream[..800], 32);
    for (split, part) in [(Split::Validation, &stream[800..900]), (Split::Test, &stream[900..])] {
        let windows = all(&*task, split);
        let shown: Vec<u32> = windows.iter().flat_map(|window| tokens(window).to_vec()).collect();
        let next: Vec<u32> = windows
            .iter()
            .flat_map(|window| asked(window).iter().map(|token| token.expect("every one is asked")).collect::<Vec<_>>())
            .collect();
        assert_eq!((shown.as_slice(), next.as_slice()), (&part[..99], &part[1..]), "every token but the first is asked once");
        assert_eq!(tokens(&windows[3]).len(), 3, "the last window is shorter");
    }
}

#[test]
fn hidden_tokens_are_asked_for_and_no_others() {
    let text: Vec<u8> = (0..40_000u32).map(|at| b'a' + (at * at % 23) as u8).collect();
    let folder = folder(&[("a.txt", &text)]);
    let task = open(folder.path(), "{name: language, train: a.txt, context: 200, masked: 0.15, splits: [0.5, 0.5, 0]}");
    let facts = task.facts();
    assert_eq!((facts.inputs, facts.targets, facts.causal), (Inputs::Tokens { vocabulary: 257 }, Targets::Tokens(257), false));
    let [mut hidden, mut other, mut same] = [0.0; 3];
    for (number, window) in all(&*task, Split::Validation).iter().enumerate() {
        let was = &text[20_000 + 200 * number..][..200];
        for ((&shown, asked), &was) in tokens(window).iter().zip(asked(window)).zip(was) {
            assert!(asked.is_none_or(|asked| asked == u32::from(was)), "what is asked is what stood there");
            match asked {
                None => assert_eq!(shown, u32::from(was), "what is not asked stays"),
                Some(_) if shown == 256 => hidden += 1.0,
                Some(asked) if shown == *asked => same += 1.0,
                Some(_) => other += 1.0,
            }
        }
    }
    let total = hidden + other + same;
    assert!((total / 20_000.0 - 0.155f64).abs() < 0.01, "{total}");
    assert!((hidden / total - 0.8).abs() < 0.03 && (other / total - 0.1).abs() < 0.03 && (same / total - 0.1).abs() < 0.03);
    let message = refusal(folder.path(), "{name: language, train: a.txt, masked: 1.5}");
    assert_eq!(message, "task.masked: is 1.5; it is a share of the tokens between 0 and 1, such as 0.15");
}

#[test]
fn the_floor_is_the_loss_of_frequencies() {
    // Train has 6 a and 2 b, the test asks for a and b: with one more of each, -ln(7/10) and -ln(3/10).
    let folder = folder(&[("train.txt", b"aababaaa"), ("test.txt", b"bab")]);
    let task = open(folder.path(), "{name: language, train: train.txt, validation: test.txt, test: test.txt, tokens: chars, context: 2}");
    let floor = task.facts().floor.expect("it is known");
    let due = -((7.0f64 / 10.0).ln() + (3.0f64 / 10.0).ln()) / 2.0;
    assert!((floor - due).abs() < 1e-12, "{floor} {due}");
    assert_eq!(task.facts().metric, Metric::Loss);
}

#[test]
fn characters_are_characters() {
    let text = "größer 🙂 größer\n".repeat(9000);
    let folder = folder(&[("a.txt", text.as_bytes())]);
    let task = open(folder.path(), "{name: language, train: a.txt, tokens: chars, context: 16}");
    let mut known: Vec<char> = text.chars().collect();
    known.sort_unstable();
    known.dedup();
    let stream: Vec<u32> = text.chars().map(|char| known.binary_search(&char).expect("it is known") as u32).collect();
    assert_eq!(task.facts().inputs, Inputs::Tokens { vocabulary: known.len() });
    follows(&*task, &stream[..stream.len() * 8 / 10], 16);
    let last = all(&*task, Split::Test).pop().expect("a window");
    assert_eq!(asked(&last).last(), Some(&stream.last().copied()));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let latin = [b"line\n".repeat(30_000), b"na\xc3\xafve na\xefve\n".to_vec()].concat();
    let folder = folder(&[("latin.txt", &latin), ("short.txt", b"too short"), ("empty.txt", b"")]);
    for (keys, message) in [
        (
            "train: latin.txt, tokens: chars",
            "latin.txt: line 30001: is not UTF-8: byte 0xef is its byte 10; convert the file, such as with iconv -f latin1 -t utf-8",
        ),
        ("train: short.txt", "short.txt: file: 7 tokens to learn from are too few for a context of 256"),
        ("train: empty.txt", "empty.txt: file: 0 tokens to learn from are too few for a context of 256"),
        ("train: short.txt, context: 0", "task.context: is 0; it lies between 1 and 268435456"),
        ("train: short.txt, tokens: chars, metric: bits_per_byte", "task.metric: is bits_per_byte, which is for tokens: bytes; write loss"),
        ("train: short.txt, splits: [1, 0, 0]", "task.splits: leaves nothing to test on, such as [0.9, 0.1, 0]"),
    ] {
        assert_eq!(refusal(folder.path(), &format!("{{name: language, {keys}}}")), message);
    }
    let missing = refusal(folder.path(), "{name: language, train: [short.txt, none.txt]}");
    assert!(missing.starts_with("none.txt: No such file"), "{missing}");
}

#[test]
fn tiny_shakespeare_is_that_of_nano_gpt() {
    let Some(base) = data("tinyshakespeare/input.txt") else { return };
    let keys = "name: language, train: tinyshakespeare/input.txt, splits: [0.9, 0.1, 0]";
    let task = open(&base, &format!("{{{keys}, tokens: chars}}"));
    let facts = task.facts();
    assert_eq!(facts.inputs, Inputs::Tokens { vocabulary: 65 });
    assert_eq!(facts.sizes[0], Some(1_003_854 - 256));
    assert_eq!(facts.sizes[1], Some(111_540u64.saturating_sub(1).div_ceil(256)));
    assert_eq!(facts.sizes[1], facts.sizes[2]);
    assert_eq!(task.notes().len(), 1, "the test split is the validation split");
    // "First Citizen" in the order of the characters.
    assert_eq!(tokens(&example(&*task, Split::Train, 0))[..6], [18, 47, 56, 57, 58, 1]);
    let floor = facts.floor.expect("it is known");
    assert!((3.0..3.6).contains(&floor), "entropy of letters: {floor}");
    let bytes = open(&base, &format!("{{{keys}}}"));
    let bits = bytes.facts().floor.expect("it is known");
    assert!((bits - floor * std::f64::consts::LOG2_E).abs() < 0.01, "{bits} bits are {floor} nats");
    assert_eq!((facts.fingerprint.as_str(), bytes.facts().fingerprint.as_str()), ("ed9fc9d60dd9f76a", "8fec6d610b9c94a8"));
}

#[test]
fn tokens_of_a_model() {
    let Some(base) = data("stories260k/tokenizer.json") else { return };
    let keys = "name: language, train: tinystories/clean.txt, tokens: {model: stories260k}, context: 512";
    let task = open(&base, &format!("{{{keys}}}"));
    let facts = task.facts();
    assert_eq!((facts.inputs, facts.metric), (Inputs::Tokens { vocabulary: 512 }, Metric::Loss));
    let all = facts.sizes[0].expect("it ends") + 512;
    // 917 stories of 955 characters, about 2.6 characters a token.
    assert!((200_000..400_000).contains(&all), "{all}");
    assert_eq!(facts.fingerprint, "7d907a03809c2185");
}
