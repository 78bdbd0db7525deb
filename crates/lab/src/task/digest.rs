//! Hashes of contents: FNV-1a in 64 bits (Fowler, Noll and Vo).

use super::{Example, Input, Target};

/// What was hashed so far.
pub struct Digest(u64);

impl Digest {
    pub fn new() -> Self {
        Digest(0xcbf2_9ce4_8422_2325)
    }

    /// Of a run of bytes.
    pub fn of(bytes: &[u8]) -> u64 {
        let mut digest = Digest::new();
        digest.bytes(bytes);
        digest.0
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub fn value(&self) -> u64 {
        self.0
    }

    /// Takes in an example: kinds, lengths and values, NaN as one value.
    pub fn example(&mut self, example: &Example) {
        match &example.input {
            Input::Tokens(tokens) => self.words(0, tokens.iter().copied()),
            Input::Rows(rows) => self.words(1, rows.iter().map(|value| bits(*value))),
        }
        match &example.target {
            Target::Class(class) => self.words(2, [*class].into_iter()),
            Target::Tokens(tokens) => self.words(3, tokens.iter().map(|token| token.map_or(u32::MAX, |token| token))),
            Target::Values(values) => self.words(4, values.iter().map(|value| bits(*value))),
        }
    }

    fn words(&mut self, kind: u8, words: impl ExactSizeIterator<Item = u32>) {
        self.bytes(&[kind]);
        self.bytes(&(words.len() as u64).to_le_bytes());
        words.for_each(|word| self.bytes(&word.to_le_bytes()));
    }
}

fn bits(value: f32) -> u32 {
    if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(Digest::of(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(Digest::of(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(Digest::of(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
