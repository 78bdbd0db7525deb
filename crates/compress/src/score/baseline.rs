//! Scores that no model is needed for: what a method has to beat.

use crate::text::{Word, is_negation};
use regard_lab::draw::Stream;
use std::collections::{BTreeMap, HashSet};

/// Words of English that a sentence is built with rather than about.
const STOP_WORDS: &str = "a about above after again against all am an and any are as at be because been before being below between both but by can \
    could did do does doing down during each few for from further had has have having he her here hers herself him himself his how i if in into is it its \
    itself just me more most my myself of off on once only or other our ours ourselves out over own same she should so some such than that the their \
    theirs them themselves then there these they this those through to too under until up upon us very was we were what when where which while who whom \
    why will with would you your yours yourself yourselves shall may might must";

/// The word without punctuation, in lower case.
fn bare(word: &str) -> String {
    word.trim_matches(|letter: char| !letter.is_alphanumeric()).to_lowercase()
}

/// Whether a word is one of [`STOP_WORDS`]; negations never are.
pub(crate) fn is_stop_word(word: &str) -> bool {
    let word = bare(word);
    word.is_empty() || (!is_negation(&word) && STOP_WORDS.split_whitespace().any(|stop| stop == word))
}

/// A number for each word, drawn from the seed and its place in the whole text.
pub(crate) fn random(seed: u64, words: &[Word], start: u64) -> Vec<f32> {
    let stream = Stream::of(&[seed]);
    words.iter().map(|word| stream.unit(start + word.span.start as u64) as f32).collect()
}

/// The more the nearer a word is to either end.
pub(crate) fn head_tail(words: &[Word]) -> Vec<f32> {
    let last = words.len().saturating_sub(1) as f32;
    (0..words.len()).map(|at| (at as f32 - last / 2.0).abs() / last.max(1.0)).collect()
}

/// In how many of some texts each word occurs.
#[derive(Debug, Clone, Default)]
pub struct Frequencies {
    texts: u64,
    of: BTreeMap<String, u64>,
}

impl Frequencies {
    /// Counts one more text.
    pub fn add(&mut self, text: &str) {
        self.texts += 1;
        let words: HashSet<String> = text.split_whitespace().map(bare).collect();
        words.into_iter().for_each(|word| *self.of.entry(word).or_default() += 1);
    }
}

/// `tf · ln((1 + n) / (1 + df))` of each word: how often it occurs here, and in how few of the texts that were counted.
pub(crate) fn tf_idf(text: &str, words: &[Word], frequencies: &Frequencies) -> Vec<f32> {
    let bare: Vec<String> = words.iter().map(|word| bare(&text[word.span.clone()])).collect();
    let mut here: BTreeMap<&str, u64> = BTreeMap::new();
    bare.iter().for_each(|word| *here.entry(word).or_default() += 1);
    let value = |word: &String| {
        let rare = (1 + frequencies.texts) as f64 / (1 + frequencies.of.get(word).copied().unwrap_or(0)) as f64;
        if word.is_empty() { 0.0 } else { here[word.as_str()] as f64 * rare.ln() }
    };
    bare.iter().map(|word| value(word) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::words;

    #[test]
    fn words_that_say_something_are_no_stop_words() {
        let stop: Vec<bool> = ["The", "whale,", "“of", "not", "—", "couldn’t"].map(is_stop_word).to_vec();
        assert_eq!(stop, [true, false, true, false, true, false]);
    }

    #[test]
    fn rare_words_are_worth_more() {
        let mut frequencies = Frequencies::default();
        ["the whale", "the ship", "the sea the"].iter().for_each(|text| frequencies.add(text));
        let text = "The whale whale sea";
        let scores = tf_idf(text, &words(text), &frequencies);
        assert_eq!(scores[0], 0.0);
        assert!(scores[1] > scores[3] && scores[3] > 0.0, "{scores:?}");
    }

    #[test]
    fn ends_come_before_the_middle_and_chance_depends_on_the_seed() {
        let words = words("a b c d e");
        assert_eq!(head_tail(&words), [0.5, 0.25, 0.0, 0.25, 0.5]);
        assert_eq!(random(3, &words, 10), random(3, &words, 10));
        assert_ne!(random(3, &words, 10), random(4, &words, 10));
    }
}
