//! The commands that measure a benchmark's results again, for records that do not say how they were made.

use crate::figures::bench::{Setup, plain, setups};
use crate::schema::{Bench, Measurement};
use serde_json::Value;

/// One command for every shape, mechanism with its options, and set of passes and lengths.
pub fn of(bench: &Bench) -> Vec<String> {
    let mut commands = Vec::new();
    for setup in setups(bench) {
        let of_setup: Vec<&Measurement> = bench.results.iter().filter(|each| Setup::of(each) == setup).collect();
        for (i, each) in of_setup.iter().enumerate() {
            let same = |other: &&Measurement| other.mechanism == each.mechanism && other.options == each.options;
            if of_setup[..i].iter().any(same) {
                continue;
            }
            let lengths = of_setup.iter().copied().filter(same).map(|other| other.length).collect();
            commands.push(command(each, lengths));
        }
    }
    joined(commands)
}

/// A command in two parts, between which passes go.
struct Command {
    head: String,
    pass: String,
    tail: String,
}

fn command(each: &Measurement, mut lengths: Vec<u64>) -> Command {
    lengths.sort_unstable();
    lengths.dedup();
    let lengths: Vec<String> = lengths.iter().map(u64::to_string).collect();
    let Measurement { mechanism, dtype, batch, heads, kv_heads, head_dim, .. } = each;
    let mut tail = format!(
        " --length {} --dtype {} --batch {batch} --heads {heads} --kv-heads {kv_heads} --head-dim {head_dim}",
        lengths.join(","),
        quoted(dtype)
    );
    if each.causal {
        tail.push_str(" --causal");
    }
    let known = each.options.iter().filter(|(_, value)| !value.is_null());
    for (key, value) in known {
        tail.push_str(&format!(" --set {}", quoted(&setting(key, value))));
    }
    Command { head: format!("regard bench --mechanism {} --pass ", quoted(mechanism)), pass: quoted(&each.pass), tail }
}

fn setting(key: &str, value: &Value) -> String {
    format!("{key}={}", plain(value))
}

/// Commands that differ in their pass only are one.
fn joined(commands: Vec<Command>) -> Vec<String> {
    let mut joined: Vec<Command> = Vec::new();
    for command in commands {
        match joined.iter_mut().find(|earlier| earlier.head == command.head && earlier.tail == command.tail) {
            Some(earlier) => earlier.pass = format!("{},{}", earlier.pass, command.pass),
            None => joined.push(command),
        }
    }
    joined.into_iter().map(|Command { head, pass, tail }| head + &pass + &tail).collect()
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "_-=.,/:+".contains(character);
    if !word.is_empty() && word.chars().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Contents, Record};

    #[test]
    fn passes_and_lengths_are_gathered_and_words_quoted() {
        let result = |mechanism: &str, pass: &str, length: u32| {
            format!(
                r#"{{"mechanism": "{mechanism}", "pass": "{pass}", "dtype": "f32", "batch": 1, "heads": 8, "kv_heads": 2, "head_dim": 64,
                "length": {length}, "causal": true, "options": {{"window": 256, "scale": null}}, "median_s": 1.0, "runs": 1}}"#
            )
        };
        let results = [result("local", "forward", 2048), result("local", "forward", 1024), result("local", "backward", 1024)];
        let results = [results.join(","), result("local", "backward", 2048), result("it's", "forward", 1)].join(",");
        let text = format!(r#"{{"schema": "regard/bench/1", "machine": {{}}, "results": [{results}]}}"#);
        let Contents::Bench(bench) = Record::read("x", &text).unwrap().contents else { panic!("a benchmark") };
        let rest = "--dtype f32 --batch 1 --heads 8 --kv-heads 2 --head-dim 64 --causal --set window=256";
        assert_eq!(
            of(&bench),
            [
                format!("regard bench --mechanism local --pass forward,backward --length 1024,2048 {rest}"),
                format!(r"regard bench --mechanism 'it'\''s' --pass forward --length 1 {rest}"),
            ]
        );
    }
}
