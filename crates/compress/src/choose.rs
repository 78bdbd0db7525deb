//! Which words stay.

use crate::text::Word;

/// How much stays.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// A share of the pieces, in (0, 1].
    Keep(f64),
    /// Pieces of the whole text.
    Tokens(u64),
    /// Every word whose score is at least this; 1 is the mean of a passage.
    Threshold(f32),
}

/// What is known of the words of a passage.
pub(crate) struct Known<'a> {
    pub(crate) words: &'a [Word],
    pub(crate) scores: &'a [f32],
    /// Pieces of each word, at least 1.
    pub(crate) costs: &'a [u32],
    pub(crate) protected: &'a [bool],
    /// How near each sentence is to what is looked for, and the share of the pieces that the sentences may have which go on to be judged word
    /// by word.
    pub(crate) sentences: Option<(&'a [f32], f64)>,
}

impl Known<'_> {
    pub(crate) fn total(&self) -> u64 {
        self.costs.iter().map(|&cost| u64::from(cost)).sum()
    }

    /// The best words that fit into `budget` pieces: protected ones first, whatever they cost, then by score; of equals the first. One word
    /// stays in any case.
    pub(crate) fn within(&self, budget: u64) -> Vec<bool> {
        let mut kept = self.protected.to_vec();
        let costs = |kept: &[bool]| kept.iter().zip(self.costs).filter(|(kept, _)| **kept).map(|(_, &cost)| u64::from(cost)).sum::<u64>();
        let mut left = budget.saturating_sub(costs(&kept));
        let open = self.open(budget);
        let mut order: Vec<usize> = (0..self.words.len()).filter(|&at| !kept[at] && open[at]).collect();
        order.sort_by(|&one, &other| self.scores[other].total_cmp(&self.scores[one]).then(one.cmp(&other)));
        for &at in &order {
            if u64::from(self.costs[at]) <= left {
                left -= u64::from(self.costs[at]);
                kept[at] = true;
            }
        }
        if !kept.contains(&true)
            && let Some(&best) = order.first()
        {
            kept[best] = true;
        }
        kept
    }

    /// Words of at least a score, and protected ones.
    pub(crate) fn above(&self, threshold: f32) -> Vec<bool> {
        let open = self.open(0);
        let stays = |at: usize| self.protected[at] || (open[at] && self.scores[at] >= threshold);
        (0..self.words.len()).map(stays).collect()
    }

    /// Words of the sentences that go on: the best ones until their share of the pieces, or the budget if that is more, is full.
    fn open(&self, budget: u64) -> Vec<bool> {
        let Some((cosines, share)) = self.sentences else { return vec![true; self.words.len()] };
        let mut sizes = vec![0u64; cosines.len()];
        self.words.iter().zip(self.costs).for_each(|(word, &cost)| sizes[word.sentence] += u64::from(cost));
        let room = ((share * self.total() as f64).ceil() as u64).max(budget);
        let mut order: Vec<usize> = (0..cosines.len()).collect();
        order.sort_by(|&one, &other| cosines[other].total_cmp(&cosines[one]).then(one.cmp(&other)));
        let (mut open, mut used) = (vec![false; cosines.len()], 0);
        for sentence in order {
            if used >= room {
                break;
            }
            open[sentence] = true;
            used += sizes[sentence];
        }
        self.words.iter().map(|word| open[word.sentence]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::words;

    struct Case {
        words: Vec<Word>,
        scores: Vec<f32>,
        costs: Vec<u32>,
        protected: Vec<bool>,
    }

    impl Case {
        fn known<'a>(&'a self, sentences: Option<(&'a [f32], f64)>) -> Known<'a> {
            Known { words: &self.words, scores: &self.scores, costs: &self.costs, protected: &self.protected, sentences }
        }
    }

    fn case() -> Case {
        Case {
            words: words("One two three. Four five six."),
            scores: vec![5.0, 1.0, 4.0, 3.0, 1.0, 2.0],
            costs: vec![1, 1, 2, 3, 1, 1],
            protected: vec![false, false, false, false, true, false],
        }
    }

    fn places(kept: &[bool]) -> Vec<usize> {
        (0..kept.len()).filter(|&at| kept[at]).collect()
    }

    #[test]
    fn the_best_words_that_fit_stay_with_those_that_are_protected() {
        let case = case();
        let within = |budget: u64| places(&case.known(None).within(budget));
        assert_eq!(within(9), [0, 1, 2, 3, 4, 5]);
        assert_eq!(within(4), [0, 2, 4]);
        assert_eq!(within(5), [0, 2, 4, 5], "four does not fit, six does");
        assert_eq!(within(0), [4]);
        let free = Case { protected: vec![false; 6], ..case };
        assert_eq!(places(&free.known(None).within(0)), [0], "one word stays in any case");
        assert_eq!(places(&free.known(None).above(3.0)), [0, 2, 3]);
    }

    #[test]
    fn sentences_come_before_words() {
        let case = case();
        let within = |share: f64, budget: u64| places(&case.known(Some((&[0.1, 0.9], share))).within(budget));
        assert_eq!(within(0.5, 4), [3, 4], "the second sentence alone");
        assert_eq!(within(0.9, 4), [0, 2, 4], "both");
        assert_eq!(within(0.1, 8), [0, 2, 3, 4, 5], "what the budget has room for");
    }
}
