//! Words that stay whatever their score: those with a digit, code, negations, and what a user's patterns match.

use super::Word;
use crate::Error;
use regex::Regex;
use std::ops::Range;

/// What is protected.
#[derive(Debug, Clone)]
pub struct Protect {
    /// Words with a digit.
    pub digits: bool,
    /// Fenced blocks of code, and code between backticks.
    pub code: bool,
    /// Words that turn a sentence into its opposite.
    pub negations: bool,
    patterns: Vec<Regex>,
}

impl Default for Protect {
    fn default() -> Self {
        Protect { digits: true, code: true, negations: true, patterns: Vec::new() }
    }
}

/// Whether a text that is read piece by piece is inside a fenced block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fences {
    inside: bool,
}

const NEGATIONS: [&str; 13] =
    ["no", "not", "nor", "never", "neither", "none", "nobody", "nothing", "nowhere", "without", "cannot", "hardly", "except"];

impl Protect {
    /// Nothing at all.
    pub fn nothing() -> Self {
        Protect { digits: false, code: false, negations: false, patterns: Vec::new() }
    }

    /// Also every word that a regular expression touches.
    ///
    /// # Errors
    /// If the expression does not parse; the place is named.
    pub fn with_pattern(mut self, pattern: &str) -> Result<Self, Error> {
        let regex = Regex::new(pattern).map_err(|error| Error::Pattern { pattern: pattern.into(), message: error.to_string() })?;
        self.patterns.push(regex);
        Ok(self)
    }

    /// Which words of a text are protected; `fences` says whether it begins inside a block of code, and then whether it ends there.
    pub fn mask(&self, text: &str, words: &[Word], fences: &mut Fences) -> Vec<bool> {
        let mut spans = if self.code { code(text, fences) } else { Vec::new() };
        spans.extend(
            self.patterns.iter().flat_map(|pattern| pattern.find_iter(text)).map(|found| found.range()).filter(|span| !span.is_empty()),
        );
        spans.sort_unstable_by_key(|span| span.start);
        let (mut open, mut end) = (spans.into_iter().peekable(), 0);
        words
            .iter()
            .map(|word| {
                while let Some(span) = open.next_if(|span| span.start < word.span.end) {
                    end = end.max(span.end);
                }
                word.span.start < end || self.holds(&text[word.span.clone()])
            })
            .collect()
    }

    fn holds(&self, word: &str) -> bool {
        (self.digits && word.contains(|letter: char| letter.is_ascii_digit())) || (self.negations && is_negation(word))
    }
}

/// Whether a word says no, with whatever punctuation.
pub fn is_negation(word: &str) -> bool {
    let word = word.to_lowercase().replace('’', "'");
    let bare = word.trim_matches(|letter: char| !letter.is_alphanumeric());
    bare.ends_with("n't") || NEGATIONS.contains(&bare)
}

/// Blocks between lines that begin with three backticks or tildes, those lines included, and what stands between backticks in a line.
fn code(text: &str, fences: &mut Fences) -> Vec<Range<usize>> {
    let (mut spans, mut start) = (Vec::new(), 0);
    for line in text.split_inclusive('\n') {
        let bare = line.trim_start();
        let fence = bare.starts_with("```") || bare.starts_with("~~~");
        if fence || fences.inside {
            spans.push(start..start + line.len());
        } else {
            let ticks: Vec<usize> = line.match_indices('`').map(|(at, _)| start + at).collect();
            spans.extend(ticks.chunks_exact(2).map(|pair| pair[0]..pair[1] + 1));
        }
        fences.inside ^= fence;
        start += line.len();
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::super::words;
    use super::*;

    fn protected<'t>(protect: &Protect, text: &'t str) -> Vec<&'t str> {
        let words = words(text);
        let mask = protect.mask(text, &words, &mut Fences::default());
        words.iter().zip(mask).filter(|(_, protected)| *protected).map(|(word, _)| &text[word.span.clone()]).collect()
    }

    #[test]
    fn numbers_negations_and_code_are_protected() {
        let text = "He didn’t pay 3,000 for `let x = 1` and NOT,\n```rust\nfn main() {}\n```\nas was said to no-one. Nothing else";
        assert_eq!(
            protected(&Protect::default(), text),
            ["didn’t", "3,000", "`let", "x", "=", "1`", "NOT,", "```rust", "fn", "main()", "{}", "```", "Nothing"]
        );
        assert_eq!(protected(&Protect::nothing(), text), Vec::<&str>::new());
    }

    #[test]
    fn patterns_protect_every_word_that_they_touch() {
        let protect = Protect::nothing().with_pattern("(?i)white whale|Ahab").unwrap();
        assert_eq!(protected(&protect, "Ahab's leg. The White\nWhale! a white whale"), ["Ahab's", "white", "whale"]);
        let message = Protect::nothing().with_pattern("(").unwrap_err().to_string();
        assert!(message.starts_with("the pattern \"(\" does not parse: regex parse error"), "{message}");
    }

    #[test]
    fn a_block_of_code_goes_on_in_the_next_piece() {
        let mut fences = Fences::default();
        let mut count = |text: &str| Protect::default().mask(text, &words(text), &mut fences).into_iter().filter(|held| *held).count();
        assert_eq!((count("a\n```\nb\n"), count("c d\n"), count("```\ne\n")), (2, 2, 1));
    }
}
