//! Numbers for people. Three digits are enough to compare; the CSV beside every table has all of them.

use serde::Serialize;

/// What a number counts, which decides how it is written. The page's script writes axes by the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Nothing: a plain number.
    Plain,
    /// Whole things: layers, steps.
    Whole,
    /// Tokens, 1k = 1024.
    Tokens,
    /// Seconds.
    Seconds,
    /// Bytes, 1 KiB = 1024.
    Bytes,
    /// A share of one, written in percent.
    Share,
    /// Tokens per second.
    Rate,
}

impl Unit {
    /// A number as a table shows it.
    pub fn show(self, x: f64) -> String {
        match self {
            Unit::Plain => digits(x),
            Unit::Whole => format!("{x}"),
            Unit::Tokens => tokens(x),
            Unit::Seconds => seconds(x),
            Unit::Bytes => bytes(x),
            Unit::Share => format!("{} %", digits(100.0 * x)),
            Unit::Rate => scaled(x, 1000.0, &["", " k", " M", " G"]),
        }
    }
}

/// Three digits, in powers of ten where plain writing would be long.
fn digits(x: f64) -> String {
    let size = x.abs();
    if size == 0.0 || !x.is_finite() {
        return format!("{x}");
    }
    if !(1e-3..1e5).contains(&size) {
        return format!("{x:.2e}");
    }
    let decimals = (2 - size.log10().floor() as i32).max(0) as usize;
    format!("{x:.decimals$}")
}

fn scaled(x: f64, base: f64, names: &[&str]) -> String {
    let mut step = 0;
    let mut rest = x;
    while rest.abs() >= base && step + 1 < names.len() {
        rest /= base;
        step += 1;
    }
    format!("{}{}", digits(rest), names[step])
}

fn tokens(x: f64) -> String {
    let whole = x.round();
    if whole >= 1024.0 && whole % 1024.0 == 0.0 { format!("{}k", whole / 1024.0) } else { format!("{whole}") }
}

fn seconds(x: f64) -> String {
    match x {
        0.0 => "0 s".to_owned(),
        ..1e-6 => format!("{} ns", digits(x * 1e9)),
        ..1e-3 => format!("{} µs", digits(x * 1e6)),
        ..1.0 => format!("{} ms", digits(x * 1e3)),
        _ => format!("{} s", digits(x)),
    }
}

fn bytes(x: f64) -> String {
    scaled(x, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        let shown = [
            (Unit::Seconds, 0.001_062_838, "1.06 ms"),
            (Unit::Seconds, 104.108_573, "104 s"),
            (Unit::Seconds, 2.5e-7, "250 ns"),
            (Unit::Bytes, 464_912.0, "454 KiB"),
            (Unit::Bytes, 0.0, "0 B"),
            (Unit::Tokens, 262_144.0, "256k"),
            (Unit::Tokens, 1000.0, "1000"),
            (Unit::Share, 0.685, "68.5 %"),
            (Unit::Rate, 9433.2, "9.43 k"),
            (Unit::Plain, 5.288e-7, "5.29e-7"),
            (Unit::Plain, -0.5, "-0.500"),
        ];
        for (unit, number, text) in shown {
            assert_eq!(unit.show(number), text);
        }
    }
}
