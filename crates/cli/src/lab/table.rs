//! A comparison as rows for people.

use crate::memory::readable;
use regard_lab::compare::{Compared, front};
use regard_lab::task::Facts;
use regard_report::schema::Speed;
use std::fmt::Write as _;

/// Quality, distance from exact, what is kept, speed and memory at every length; `*` marks the front.
pub fn table(all: &[Compared], facts: &Facts) -> String {
    let lengths: Vec<u64> = all.first().map(|first| first.inference.iter().map(|speed| speed.length).collect()).unwrap_or_default();
    let wide = all.iter().map(|compared| compared.name.chars().count()).max().unwrap_or(0).max("configuration".len());
    let shot = all.iter().any(|compared| compared.zero_shot().is_some());
    let mut text = format!("\n{:<wide$}  {:>12}", "configuration", facts.metric.name());
    if shot {
        let _ = write!(text, " {:>9}", "zero-shot");
    }
    let _ = write!(text, " {:>26} {:>6}", "against exact (95%)", "kept");
    for length in &lengths {
        let _ = write!(text, " {:>9} {:>9} {:>9}", format!("train {}", short(*length)), format!("infer {}", short(*length)), "memory");
    }
    text.push('\n');
    let front = front(all, facts.longest, facts.metric.higher_is_better());
    for (compared, front) in all.iter().zip(front) {
        let mark = if front { '*' } else { ' ' };
        let kept =
            compared.runs.first().and_then(|run| run.kept.last()).map_or_else(|| "-".to_owned(), |kept| format!("{:.0}%", 100.0 * kept));
        let _ = write!(text, "{:<wide$}{mark} {:>12}", compared.name, format!("{:.4}", compared.quality()));
        if shot {
            let _ = write!(text, " {:>9}", compared.zero_shot().map_or_else(|| "-".to_owned(), |quality| format!("{quality:.4}")));
        }
        let _ = write!(text, " {:>26} {kept:>6}", difference(compared));
        for length in &lengths {
            let at = |speeds: &[Speed]| speeds.iter().find(|speed| speed.length == *length).copied();
            let (training, inference) = (at(&compared.training), at(&compared.inference));
            let memory = inference.and_then(|speed| speed.peak_bytes).map_or_else(|| "-".to_owned(), |bytes| readable(bytes as f64));
            let _ = write!(text, " {:>9} {:>9} {memory:>9}", rate(training), rate(inference));
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "\nSpeeds in tokens/s. * no other configuration is better and faster at {} tokens. kept: tokens behind the last layer. memory: of inference.",
        facts.longest
    );
    text
}

fn difference(compared: &Compared) -> String {
    compared.difference.map_or_else(String::new, |interval| format!("{:+.4} [{:+.4}, {:+.4}]", interval.mean, interval.low, interval.high))
}

fn short(length: u64) -> String {
    if length >= 1024 && length.is_multiple_of(1024) { format!("{}k", length / 1024) } else { length.to_string() }
}

fn rate(speed: Option<Speed>) -> String {
    let Some(rate) = speed.and_then(|speed| speed.tokens_per_s) else { return "-".into() };
    match rate {
        1e6.. => format!("{:.2}M", rate / 1e6),
        1e4.. => format!("{:.0}k", rate / 1e3),
        1e3.. => format!("{:.1}k", rate / 1e3),
        _ => format!("{rate:.0}"),
    }
}
