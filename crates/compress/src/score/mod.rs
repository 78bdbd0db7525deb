//! What each word of a passage is worth.

mod baseline;
mod relevance;

pub use baseline::Frequencies;
pub(crate) use baseline::{head_tail, is_stop_word, random, tf_idf};
pub(crate) use relevance::{Relevance, mean};

use crate::read::{Pieces, Reading};
use crate::text::Word;
use std::ops::Range;

/// The pieces of each word: those that begin in it. A word that no piece begins in has none.
pub(crate) fn pieces_of(words: &[Word], pieces: &Pieces) -> Vec<Range<usize>> {
    let mut next = 0;
    let until = |next: &mut usize, end: usize| {
        while pieces.spans.get(*next).is_some_and(|span| span.start < end) {
            *next += 1;
        }
        *next
    };
    words
        .iter()
        .map(|word| {
            let first = until(&mut next, word.span.start);
            first..until(&mut next, word.span.end)
        })
        .collect()
}

/// Received attention of words: the most of any of a word's pieces that is no punctuation, in units of the mean over all such pieces.
pub(crate) fn attention(text: &str, (pieces, own): (&Pieces, &[Range<usize>]), reading: &Reading) -> Vec<f32> {
    let counts: Vec<bool> =
        pieces.spans.iter().map(|span| text.get(span.clone()).is_none_or(|piece| piece.contains(char::is_alphanumeric))).collect();
    let counted = || counts.iter().zip(&reading.weights).filter(|(counts, _)| **counts).map(|(_, weight)| *weight);
    let mean = counted().sum::<f32>() / counted().count().max(1) as f32;
    let most = |range: &Range<usize>| range.clone().filter(|&piece| counts[piece]).map(|piece| reading.weights[piece]).fold(0.0, f32::max);
    own.iter().map(|range| most(range) / mean.max(f32::MIN_POSITIVE)).collect()
}

/// Self-information of words: the sum over a word's pieces, in units of the mean over words.
pub(crate) fn information(own: &[Range<usize>], reading: &Reading) -> Vec<f32> {
    relative(own.iter().map(|range| reading.weights[range.clone()].iter().sum()).collect())
}

/// Scores in units of their mean.
fn relative(mut scores: Vec<f32>) -> Vec<f32> {
    let mean = scores.iter().sum::<f32>() / scores.len().max(1) as f32;
    scores.iter_mut().for_each(|score| *score /= mean.max(f32::MIN_POSITIVE));
    scores
}

/// Lengths of the vectors of words, which is how much each has in the mean over a text; in units of their mean.
pub(crate) fn lengths(own: &[Range<usize>], reading: &Reading, width: usize) -> Vec<f32> {
    let length = |piece: usize| reading.vectors[piece * width..][..width].iter().map(|x| x * x).sum::<f32>().sqrt();
    relative(own.iter().map(|range| range.clone().map(length).fold(0.0, f32::max)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::words;

    fn pieces(spans: &[Range<usize>]) -> Pieces {
        Pieces { ids: vec![0; spans.len()], spans: spans.to_vec() }
    }

    #[test]
    fn a_word_is_worth_its_best_piece_and_punctuation_nothing() {
        let text = "un,do  - it";
        let pieces = pieces(&[0..2, 2..3, 3..5, 7..8, 9..11]);
        let own = pieces_of(&words(text), &pieces);
        assert_eq!(own, [0..3, 3..4, 4..5]);
        let reading = Reading { weights: vec![1.0, 50.0, 2.0, 60.0, 3.0], vectors: Vec::new() };
        assert_eq!(attention(text, (&pieces, &own), &reading), [1.0, 0.0, 1.5]);
        let due = [53.0f32, 60.0, 3.0].map(|sum| sum * 3.0 / 116.0);
        assert!(information(&own, &reading).iter().zip(due).all(|(found, due)| (found - due).abs() < 1e-6));
    }

    #[test]
    fn a_word_without_a_piece_has_none() {
        let text = "a \u{200b} b";
        let own = pieces_of(&words(text), &pieces(&[0..1, 6..7]));
        assert_eq!(own, [0..1, 1..1, 1..2]);
    }
}
