//! What sentences are worth: how near their vectors are to that of the passage, or to that of a question.

use crate::read::Reading;
use crate::text::Word;
use std::ops::Range;

/// Cosines are divided by this before they weigh words: a sentence nearer by it makes its words e times as important.
const TEMPERATURE: f32 = 0.1;

/// The mean of vectors `[pieces, width]` over some pieces.
pub(crate) fn mean(vectors: &[f32], width: usize, pieces: Range<usize>) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    for vector in vectors[pieces.start * width..pieces.end * width].chunks_exact(width) {
        sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum += x);
    }
    let count = pieces.len().max(1) as f32;
    sum.iter_mut().for_each(|x| *x /= count);
    sum
}

/// How near each sentence is to what is looked for, cosines in [-1, 1].
pub(crate) struct Relevance(Vec<f32>);

impl Relevance {
    /// Of the sentences of a passage to a vector.
    pub(crate) fn new(words: &[Word], own: &[Range<usize>], reading: &Reading, sought: &[f32]) -> Self {
        let near = |sentence: &[(usize, &Word)]| {
            let (first, last) = (sentence[0].0, sentence[sentence.len() - 1].0);
            cosine(&mean(&reading.vectors, sought.len(), own[first].start..own[last].end), sought)
        };
        let numbered: Vec<(usize, &Word)> = words.iter().enumerate().collect();
        Relevance(numbered.chunk_by(|one, next| one.1.sentence == next.1.sentence).map(near).collect())
    }

    /// For every sentence.
    pub(crate) fn into_cosines(self) -> Vec<f32> {
        self.0
    }

    /// Makes words of relevant sentences more important.
    pub(crate) fn weigh(&self, words: &[Word], scores: &mut [f32]) {
        let mean = self.0.iter().sum::<f32>() / self.0.len().max(1) as f32;
        scores.iter_mut().zip(words).for_each(|(score, word)| *score *= ((self.0[word.sentence] - mean) / TEMPERATURE).exp());
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::words;

    #[test]
    fn sentences_that_point_the_same_way_count_more() {
        let words = words("One two. Three four.");
        let own: Vec<Range<usize>> = (0..4).map(|at| at..at + 1).collect();
        let reading = Reading { weights: vec![1.0; 4], vectors: vec![1.0, 0.0, 0.0, 1.0, 0.0, 2.0, 0.0, 4.0] };
        let relevance = Relevance::new(&words, &own, &reading, &[0.0, 3.0]);
        let mut scores = vec![1.0, 2.0, 1.0, 2.0];
        relevance.weigh(&words, &mut scores);
        let cosines = relevance.into_cosines();
        assert!((cosines[0] - 0.5f32.sqrt()).abs() < 1e-6 && (cosines[1] - 1.0).abs() < 1e-6);
        assert!(scores[2] > 10.0 * scores[0] && (scores[3] / scores[2] - 2.0).abs() < 1e-5, "{scores:?}");
    }
}
