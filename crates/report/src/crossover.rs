//! Where one line of times begins to be below another: on logarithmic axes both are straight between two lengths that
//! were measured, so the crossing of the straight pieces is what a reader sees, and what is listed.

/// A time at a length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Time {
    /// Tokens.
    pub length: f64,
    /// Seconds.
    pub seconds: f64,
    /// Whether it was reckoned and not measured.
    pub reckoned: bool,
}

/// A change of who is faster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crossover {
    /// Tokens, between two lengths.
    pub length: f64,
    /// Seconds, of both.
    pub seconds: f64,
    /// The lengths around it.
    pub between: [f64; 2],
    /// Whether the candidate is the faster one beyond.
    pub faster_beyond: bool,
    /// Whether one of the four times was reckoned.
    pub reckoned: bool,
}

/// All changes between a reference and a candidate, at lengths that both have, shortest first.
pub fn crossovers(reference: &[Time], candidate: &[Time]) -> Vec<Crossover> {
    let shared = shared(reference, candidate);
    shared.windows(2).filter_map(|pair| between(pair[0], pair[1])).collect()
}

/// Times of both at the lengths that both have, shortest first; a time of 0 has no logarithm.
pub fn shared(reference: &[Time], candidate: &[Time]) -> Vec<[Time; 2]> {
    let partner = |time: &Time| candidate.iter().find(|other| other.length == time.length).map(|other| [*time, *other]);
    let mut shared: Vec<[Time; 2]> =
        reference.iter().filter_map(partner).filter(|pair| pair.iter().all(|time| time.seconds > 0.0)).collect();
    shared.sort_by(|a, b| a[0].length.total_cmp(&b[0].length));
    shared
}

fn between(left: [Time; 2], right: [Time; 2]) -> Option<Crossover> {
    let lead = |[reference, candidate]: [Time; 2]| (reference.seconds / candidate.seconds).ln();
    let (before, after) = (lead(left), lead(right));
    if (before > 0.0) == (after > 0.0) {
        return None;
    }
    let share = before / (before - after);
    let along = |a: f64, b: f64| (a.ln() + share * (b.ln() - a.ln())).exp();
    Some(Crossover {
        length: along(left[0].length, right[0].length),
        seconds: along(left[0].seconds, right[0].seconds),
        between: [left[0].length, right[0].length],
        faster_beyond: after > 0.0,
        reckoned: left.iter().chain(&right).any(|time| time.reckoned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(power: f64, factor: f64, lengths: &[f64]) -> Vec<Time> {
        let time = |&length: &f64| Time { length, seconds: factor * length.powf(power), reckoned: length > 8000.0 };
        lengths.iter().map(time).collect()
    }

    #[test]
    fn power_laws_cross_where_they_are_equal() {
        let lengths = [1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
        let found = crossovers(&line(2.0, 1e-9, &lengths), &line(1.0, 3e-6, &lengths));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!((found[0].length - 3000.0).abs() < 1e-6 && (found[0].seconds - 9e-3).abs() < 1e-9, "{found:?}");
        assert_eq!((found[0].between, found[0].faster_beyond, found[0].reckoned), ([2048.0, 4096.0], true, false));
    }

    #[test]
    fn lines_that_do_not_meet_have_none_and_lengths_of_one_alone_do_not_count() {
        assert_eq!(crossovers(&line(2.0, 1e-9, &[1024.0, 2048.0]), &line(2.0, 2e-9, &[1024.0, 2048.0])), []);
        assert_eq!(crossovers(&line(2.0, 1e-9, &[1024.0, 4096.0]), &line(1.0, 3e-6, &[1024.0, 8192.0])), []);
    }

    #[test]
    fn a_crossing_beside_a_reckoned_time_says_so() {
        let lengths = [4096.0, 16384.0];
        let found = crossovers(&line(2.0, 1e-9, &lengths), &line(1.0, 8e-6, &lengths));
        assert!(found[0].reckoned, "{found:?}");
    }
}
