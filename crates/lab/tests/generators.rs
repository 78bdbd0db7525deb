//! Generators, read by somebody who knows the rules of each task and nothing of how its examples are made.

mod common;

use common::{all, asked, class, config, example, open, refusal, tokens};
use regard_lab::task::listops::{CLOSE, MAX, MED, MIN};
use regard_lab::task::needle::{ASK, FACT};
use regard_lab::task::{Example, Metric, Split};
use std::collections::{HashMap, HashSet};
use std::path::Path;

fn generated(yaml: &str, count: u64) -> Vec<Example> {
    let task = open(Path::new("."), yaml);
    Split::ALL.iter().flat_map(|split| (0..count).map(|index| example(&*task, *split, index)).collect::<Vec<_>>()).collect()
}

#[test]
fn recall_asks_for_the_value_of_every_key_once() {
    for (length, pairs, vocabulary) in [(64, 4, 8192), (128, 8, 8192), (256, 16, 8192), (512, 64, 8192), (8, 2, 9), (16, 4, 17)] {
        let yaml = format!("{{name: recall, length: {length}, pairs: {pairs}, vocabulary: {vocabulary}}}");
        for example in generated(&yaml, 50) {
            let (tokens, asked) = (tokens(&example), asked(&example));
            assert_eq!((tokens.len(), asked.len()), (length, length));
            assert!(tokens.iter().all(|token| (*token as usize) < vocabulary));
            let half = vocabulary as u32 / 2;
            let shown: HashMap<u32, u32> = tokens[..2 * pairs].chunks(2).map(|pair| (pair[0], pair[1])).collect();
            assert_eq!(shown.len(), pairs, "keys differ");
            assert!(shown.iter().all(|(key, value)| (1..half).contains(key) && (half..vocabulary as u32).contains(value)));
            assert_eq!(shown.values().collect::<HashSet<_>>().len(), pairs, "values differ");
            let queries: Vec<usize> = (0..length).filter(|at| asked[*at].is_some()).collect();
            assert_eq!(queries.len(), pairs);
            assert!(queries.iter().all(|at| *at >= 2 * pairs && at % 2 == 0));
            assert!(queries.iter().all(|at| asked[*at] == shown.get(&tokens[*at]).copied()));
            assert_eq!(queries.iter().map(|at| tokens[*at]).collect::<HashSet<_>>().len(), pairs, "every key is asked for");
        }
    }
}

#[test]
fn recall_draws_distances_by_the_power_law() {
    for power in [0.01, 1.0] {
        let examples = generated(&format!("{{name: recall, length: 34, pairs: 1, power: {power}}}"), 1000);
        let mut counts = [0u32; 16];
        for example in &examples {
            let query = asked(example).iter().position(Option::is_some).expect("one is asked");
            counts[query / 2 - 1] += 1;
        }
        let weights: Vec<f64> = (1..=16).map(|place| f64::from(place).powf(power - 1.0)).collect();
        for (place, (found, weight)) in counts.iter().zip(&weights).enumerate() {
            let share = weight / weights.iter().sum::<f64>();
            let due = share * examples.len() as f64;
            // Five standard deviations of a count.
            let apart = (f64::from(*found) - due).abs();
            assert!(apart < 5.0 * (due * (1.0 - share)).sqrt(), "power {power}, place {place}: {found} of {due:.0}");
        }
    }
}

/// The value of the expression at the head of some tokens, its depth, its most arguments, and what is left.
fn evaluate(tokens: &[u32]) -> (u32, usize, usize, &[u32]) {
    let (first, mut rest) = tokens.split_first().expect("an expression");
    if *first < 10 {
        return (*first, 1, 0, rest);
    }
    let (mut values, mut deepest, mut most) = (Vec::new(), 0, 0);
    while rest[0] != CLOSE {
        let (value, depth, arguments, left) = evaluate(rest);
        values.push(value);
        (deepest, most, rest) = (deepest.max(depth), most.max(arguments), left);
    }
    let value = match *first {
        MIN => *values.iter().min().expect("an argument"),
        MAX => *values.iter().max().expect("an argument"),
        MED => {
            let rank = |value: u32| values.iter().filter(|other| **other < value).count();
            let at = |place: usize| {
                let here =
                    |value: &&u32| rank(**value) <= place && place < rank(**value) + values.iter().filter(|other| other == value).count();
                *values.iter().find(here).expect("a value of this rank")
            };
            if values.len() % 2 == 1 { at(values.len() / 2) } else { (at(values.len() / 2 - 1) + at(values.len() / 2)) / 2 }
        }
        _ => values.iter().fold(0, |sum, value| (sum + value) % 10),
    };
    (value, deepest + 1, most.max(values.len()), &rest[1..])
}

#[test]
fn listops_are_worth_their_class() {
    for (yaml, lengths, depths, arguments, count) in [
        ("{name: listops}", 501..=1999, 10, 10, 60),
        ("{name: listops, preset: mini}", 16..=128, 6, 5, 500),
        ("{name: listops, preset: mini, shortest: 1, longest: 9, depth: 2, arguments: 3}", 1..=9, 2, 3, 500),
    ] {
        let (mut deepest, mut most, mut classes) = (0, 0, HashSet::new());
        for example in generated(yaml, count) {
            let (value, depth, wide, rest) = evaluate(tokens(&example));
            assert!(rest.is_empty() && value == class(&example) && lengths.contains(&tokens(&example).len()), "{example:?}");
            (deepest, most) = (deepest.max(depth), most.max(wide));
            classes.insert(value);
        }
        assert_eq!((deepest, most, classes.len()), (depths, arguments, 10), "{yaml}: bounds are reached, not passed");
    }
}

#[test]
fn listops_nodes_are_as_likely_as_the_paper_has_them() {
    let yaml = "{name: listops, shortest: 1, longest: 100000, depth: 3, arguments: 5, sizes: [null, 5000, 5000]}";
    let examples = generated(yaml, 5000);
    let digits = examples.iter().filter(|example| tokens(example).len() == 1).count() as f64;
    let all = examples.len() as f64;
    assert!((digits - 0.75 * all).abs() < 5.0 * (all * 0.75 * 0.25).sqrt(), "{digits} of {all} are digits");
    let mut operators = [0u32; 4];
    let firsts: Vec<u32> = examples.iter().map(|example| tokens(example)[0]).filter(|first| *first >= MIN).collect();
    firsts.iter().for_each(|first| operators[(first - MIN) as usize] += 1);
    let due = firsts.len() as f64 / 4.0;
    assert!(operators.iter().all(|found| (f64::from(*found) - due).abs() < 5.0 * (due * 0.75).sqrt()), "{operators:?}");
}

#[test]
fn copies_are_what_was_shown() {
    for (symbols, delay, alphabet) in [(10, 100, 8), (1, 1, 1), (3, 7, 2)] {
        let yaml = format!("{{name: copy, symbols: {symbols}, delay: {delay}, alphabet: {alphabet}}}");
        for example in generated(&yaml, 50) {
            let (tokens, asked) = (tokens(&example), asked(&example));
            let (blank, delimiter, start) = (alphabet as u32, alphabet as u32 + 1, symbols + delay);
            assert_eq!((tokens.len(), asked.len()), (delay + 2 * symbols, delay + 2 * symbols));
            assert!(tokens[..symbols].iter().all(|token| *token < blank));
            assert_eq!(tokens.iter().filter(|token| **token == delimiter).count(), 1);
            assert_eq!(tokens[start - 1], delimiter);
            assert!(tokens[symbols..start - 1].iter().chain(&tokens[start..]).all(|token| *token == blank));
            assert!(asked[..start].iter().all(Option::is_none));
            assert!(asked[start..].iter().zip(tokens).all(|(asked, shown)| *asked == Some(*shown)));
        }
    }
}

#[test]
fn induction_asks_what_followed() {
    for (length, vocabulary) in [(256, 16), (3, 2), (4, 20)] {
        let mut places = HashSet::new();
        for example in generated(&format!("{{name: induction, length: {length}, vocabulary: {vocabulary}}}"), 300) {
            let (tokens, asked) = (tokens(&example), asked(&example));
            let special: Vec<usize> = (0..length).filter(|at| tokens[*at] == vocabulary - 1).collect();
            assert!(special.len() == 2 && special[1] == length - 1 && tokens.len() == length);
            assert!(asked[..length - 1].iter().all(Option::is_none));
            assert_eq!(asked[length - 1], Some(tokens[special[0] + 1]));
            assert!(tokens[special[0] + 1] < vocabulary - 1);
            places.insert(special[0]);
        }
        let reached = (places.contains(&0), places.contains(&(length - 3)));
        assert!(length > 4 || reached == (true, true), "the first and the last place occur: {places:?}");
    }
}

/// Facts of a sequence by name, with the places where they begin.
fn facts(tokens: &[u32], digits: usize) -> HashMap<u32, (usize, Vec<u32>)> {
    let begins = tokens.iter().enumerate().filter(|(_, token)| **token == FACT);
    begins.map(|(at, _)| (tokens[at + 1], (at, tokens[at + 2..at + 2 + digits].to_vec()))).collect()
}

#[test]
fn needles_are_found_under_their_name() {
    for (length, digits, count) in [(1024, 5, 1), (64, 5, 4), (9, 2, 1), (11, 1, 3), (7, 2, 1)] {
        let mut depths = HashSet::new();
        for example in generated(&format!("{{name: needle, length: {length}, digits: {digits}, facts: {count}, names: 8}}"), 200) {
            let (tokens, asked) = (tokens(&example), asked(&example));
            let facts = facts(tokens, digits);
            assert!(facts.len() == count && tokens.len() == length, "{tokens:?}");
            let question = length - digits - 1;
            assert_eq!(tokens.iter().filter(|token| **token == ASK).count(), 1);
            assert_eq!(tokens[question], ASK);
            let (place, number) = &facts[&tokens[question + 1]];
            assert_eq!(tokens[question + 2..], number[..digits - 1]);
            assert!(asked[..=question].iter().all(Option::is_none));
            assert!(asked[question + 1..].iter().zip(number).all(|(asked, digit)| *asked == Some(*digit) && *digit < 10));
            let special = count * (digits + 2) + digits + 1;
            assert_eq!(tokens.iter().filter(|token| **token >= ASK + 1 + 8).count(), length - special, "the rest is filler");
            depths.insert(*place);
        }
        let filler = length - count * (digits + 2) - digits - 1;
        assert!(depths.len() > filler.min(20) / 2, "it lies in many places: {depths:?}");
    }
}

#[test]
fn a_needle_lies_as_deep_as_asked() {
    for (place, at) in [(0.0, 0), (0.5, 6), (1.0, 11)] {
        for example in generated(&format!("{{name: needle, length: 24, place: {place}}}"), 20) {
            assert_eq!(tokens(&example).iter().position(|token| *token == FACT), Some(at));
        }
    }
}

const DEFAULTS: [(&str, &str); 8] = [
    ("{name: recall}", "61b1c9a66eb03e2a"),
    ("{name: recall, length: 256, pairs: 16}", "7251fedf1dd9075b"),
    ("{name: listops}", "33f8cc2c95c255db"),
    ("{name: listops, preset: mini}", "2585bf97e18a0572"),
    ("{name: copy}", "46a24bd2649bed4f"),
    ("{name: induction}", "24e8abc14aa948c7"),
    ("{name: needle}", "531785c160bbb9ba"),
    ("{name: needle, facts: 4}", "af888986d13f3ca8"),
];

#[test]
fn fingerprints_stay() {
    let found: Vec<(&str, String)> =
        DEFAULTS.iter().map(|(yaml, _)| (*yaml, open(Path::new("."), yaml).facts().fingerprint.clone())).collect();
    let due: Vec<(&str, String)> = DEFAULTS.iter().map(|(yaml, print)| (*yaml, (*print).to_owned())).collect();
    assert_eq!(found, due);
}

#[test]
fn examples_depend_on_seed_split_and_number_alone() {
    for (yaml, _) in DEFAULTS {
        let (one, two) = (open(Path::new("."), yaml), open(Path::new("."), yaml));
        let backwards: Vec<Example> = (0..20).rev().map(|index| example(&*two, Split::Train, index)).collect();
        let forwards: Vec<Example> = (0..20).map(|index| example(&*one, Split::Train, index)).collect();
        assert!(forwards.iter().eq(backwards.iter().rev()), "{yaml}");
        let sequences: HashSet<Vec<u32>> = generated(yaml, 100).iter().map(|example| tokens(example).to_vec()).collect();
        assert_eq!(sequences.len(), 300, "{yaml}: no example is in two splits, none twice in one");
        let other = open(Path::new("."), &yaml.replace('}', ", seed: 1}"));
        assert_ne!(one.facts().fingerprint, other.facts().fingerprint, "{yaml}: another seed");
    }
}

#[test]
fn facts_of_generators() {
    let recall = open(Path::new("."), "{name: recall}");
    let facts = recall.facts();
    assert_eq!((facts.name, facts.sizes, facts.longest, facts.causal), ("recall", [None, Some(1000), Some(1000)], 64, true));
    assert_eq!((facts.metric, facts.floor), (Metric::Accuracy, Some(1.0 / 4096.0)));
    let far = recall.example(Split::Test, 1000).expect_err("there are 1000");
    assert_eq!(far.to_string(), "example: 1000 of Test was asked for, which has 1000 (counted from 0)");
    example(&*recall, Split::Train, u64::MAX);

    let listops = open(Path::new("."), "{name: listops, preset: mini, sizes: [500, 300, 200]}");
    let facts = listops.facts();
    for split in Split::ALL {
        let classes: Vec<u32> = all(&*listops, split).iter().map(class).collect();
        let counts: Vec<u64> = (0..10).map(|class| classes.iter().filter(|found| **found == class).count() as u64).collect();
        assert_eq!(counts, facts.balance.iter().map(|label| label.counts[split as usize]).collect::<Vec<_>>());
    }
    let most = facts.balance.iter().max_by_key(|label| (label.counts[0], std::cmp::Reverse(&label.name))).expect("ten labels");
    assert_eq!(facts.floor, Some(most.counts[2] as f64 / 200.0));
    assert!(facts.to_string().contains("accuracy of the majority"), "{facts}");
}

#[test]
fn impossible_sizes_are_refused_with_their_key() {
    for (yaml, message) in [
        ("{name: recall, length: 63}", "task.length: is 63; it is even"),
        ("{name: recall, pairs: 17}", "task.pairs: is 17; it lies between 1 and 16"),
        ("{name: recall, pairs: 0}", "task.pairs: is 0; it lies between 1 and 16"),
        ("{name: recall, vocabulary: 64}", "task.vocabulary: is 64; it lies between 65 and 2147483648"),
        ("{name: recall, power: -1}", "task.power: is -1; it lies between 0 and 10"),
        ("{name: recall, length: 1000000000000000000}", "task.length: is 1000000000000000000; it lies between 4 and 268435456"),
        ("{name: recall, sizes: [0, 1, 1]}", "task: there is nothing to learn from: the train split has no examples"),
        ("{name: listops, shortest: 3000}", "task.shortest: is 3000; it lies between 0 and 1999"),
        ("{name: listops, arguments: 1}", "task.arguments: is 1; it lies between 2 and 268435456"),
        ("{name: listops, depth: 65}", "task.depth: is 65; it lies between 1 and 64"),
        (
            "{name: listops, depth: 2}",
            "task.shortest: of 1000000 expressions none had 501 to 1999 tokens; set more depth or arguments, or wider bounds",
        ),
        ("{name: copy, delay: 0}", "task.delay: is 0; it lies between 1 and 268435456"),
        ("{name: induction, length: 2}", "task.length: is 2; it lies between 3 and 268435456"),
        ("{name: induction, vocabulary: 1}", "task.vocabulary: is 1; it lies between 2 and 2147483648"),
        ("{name: needle, length: 12}", "task.length: is 12; it lies between 13 and 268435456"),
        ("{name: needle, facts: 33}", "task.names: is 32; it lies between 33 and 268435456"),
        ("{name: needle, place: 1.5}", "task.place: is 1.5; it lies between 0 and 1"),
        ("{name: needle, place: 0.5, facts: 2}", "task.place: is for one fact, there are 2"),
    ] {
        assert_eq!(refusal(Path::new("."), yaml), message);
        config(yaml);
    }
}
