//! Keys in the order in which they become far, and what of a code is kept for its first few keys and for all later ones.

use std::cmp::Ordering;

/// No number.
const NONE: u32 = u32::MAX;

/// The first few keys of every code, and the codes that have more.
#[derive(Debug, Default)]
pub(super) struct Ranks {
    /// Of every code its number in `many`, or [`NONE`].
    places: Vec<u32>,
    /// Codes in the order in which they come to have more than a few keys, and how many keys of all codes there are then.
    many: Vec<(u32, u32)>,
    /// Numbers of keys that are among the first few of their code.
    few: Vec<u32>,
}

impl Ranks {
    /// Of keys with these codes, below `count`, at most `few` of a code one by one.
    pub(super) fn new(codes: impl Iterator<Item = u32>, count: usize, few: usize) -> Self {
        let mut ranks = Ranks { places: vec![NONE; count], ..Ranks::default() };
        let mut seen = vec![0usize; count];
        for (key, code) in codes.enumerate() {
            let seen = &mut seen[code as usize];
            *seen += 1;
            match (*seen).cmp(&(few + 1)) {
                Ordering::Less => ranks.few.push(key as u32),
                Ordering::Equal => {
                    ranks.places[code as usize] = ranks.many.len() as u32;
                    ranks.many.push((code, key as u32 + 1));
                }
                Ordering::Greater => {}
            }
        }
        ranks
    }

    /// Codes that ever have more than a few keys.
    pub(super) fn places(&self) -> usize {
        self.many.len()
    }

    /// Where a code stands among them.
    #[inline(always)]
    pub(super) fn place(&self, code: usize) -> Option<usize> {
        let place = self.places[code];
        (place != NONE).then_some(place as usize)
    }

    /// The codes with more than a few of the first `far` keys: always the first of all that there are.
    pub(super) fn many(&self, far: usize) -> impl ExactSizeIterator<Item = usize> {
        let count = self.many.partition_point(|&(_, from)| from as usize <= far);
        self.many[..count].iter().map(|&(code, _)| code as usize)
    }

    /// Keys that are ever taken one by one.
    pub(super) fn slots(&self) -> usize {
        self.few.len()
    }

    /// Where a key stands among them.
    #[inline(always)]
    pub(super) fn slot(&self, key: usize) -> Option<usize> {
        self.few.binary_search(&(key as u32)).ok()
    }

    /// Number and slot of every key that is taken by itself where the first `far` are far.
    pub(super) fn few(&self, far: usize, code: impl Fn(usize) -> usize) -> impl Iterator<Item = (usize, usize)> {
        let many = self.many(far).len();
        let keys = self.few.iter().map(|&key| key as usize).take_while(move |&key| key < far).enumerate();
        keys.filter(move |&(_, key)| self.place(code(key)).is_none_or(|place| place >= many)).map(|(slot, key)| (key, slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_move_from_few_to_many_as_keys_become_far() {
        let codes = [0usize, 1, 0, 0, 2, 1, 1, 0];
        let ranks = Ranks::new(codes.iter().map(|&code| code as u32), 3, 2);
        let at = |far: usize| {
            let few: Vec<usize> = ranks.few(far, |key| codes[key]).map(|(key, _)| key).collect();
            (ranks.many(far).collect::<Vec<_>>(), few)
        };
        assert_eq!(at(0), (vec![], vec![]));
        assert_eq!(at(3), (vec![], vec![0, 1, 2]));
        assert_eq!(at(4), (vec![0], vec![1]));
        assert_eq!(at(8), (vec![0, 1], vec![4]));
        assert_eq!((ranks.place(1), ranks.place(2), ranks.slot(5), ranks.slot(3)), (Some(1), None, Some(4), None));
    }
}
