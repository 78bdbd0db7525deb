//! Stable sort by small numbers: digit by digit from the lowest, each by counting.

/// Bits of a digit.
const DIGIT: usize = 8;

/// The places `0..ranks.len()` in ascending order of ranks below `2^bits`; equal ones keep their order.
pub(crate) fn sorted(ranks: &[u32], bits: usize) -> Vec<u32> {
    let mut places: Vec<u32> = (0..ranks.len() as u32).collect();
    let mut other = vec![0; places.len()];
    for low in (0..bits).step_by(DIGIT) {
        deal(ranks, low, &places, &mut other);
        std::mem::swap(&mut places, &mut other);
    }
    places
}

/// Sorts places by one digit of their ranks.
fn deal(ranks: &[u32], low: usize, from: &[u32], into: &mut [u32]) {
    let digit = |place: u32| (ranks[place as usize] >> low) as usize & ((1 << DIGIT) - 1);
    let mut starts = [0u32; 1 << DIGIT];
    from.iter().for_each(|&place| starts[digit(place)] += 1);
    let mut end = 0;
    for start in &mut starts {
        end += std::mem::replace(start, end);
    }
    for &place in from {
        let at = &mut starts[digit(place)];
        into[*at as usize] = place;
        *at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Stream;
    use super::sorted;

    #[test]
    fn it_is_the_stable_sort() {
        for (case, (count, bits)) in
            [(0, 1), (1, 1), (300, 1), (300, 7), (300, 8), (5000, 9), (5000, 17), (300, 32)].into_iter().enumerate()
        {
            let stream = Stream::new(&[case as u64]);
            let ranks: Vec<u32> = (0..count).map(|i| stream.below(i, 1 << bits) as u32).collect();
            let mut expected: Vec<u32> = (0..count as u32).collect();
            expected.sort_by_key(|&place| ranks[place as usize]);
            assert_eq!(sorted(&ranks, bits), expected, "{count} numbers of {bits} bits");
        }
    }
}
