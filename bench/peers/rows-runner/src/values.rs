//! Inputs that every program can make for itself, bit for bit: value i of array `seed` is the sum of the four bytes of a hash
//! of both, centred and divided by 148, so that it is nearly normal. `rows_peer.py` has the same lines.

use bytemuck::Pod;
use peer_protocol::Aligned;
use regard_core::Element;

fn hash(seed: u32, i: usize) -> u32 {
    let mut x = (i as u32).wrapping_add(seed.wrapping_mul(0x9e37_79b9));
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// Nearly normal values of this spread.
pub fn normal<T: Element + Pod>(seed: u32, len: usize, spread: f32) -> Aligned<T> {
    let mut values = Aligned::zeros(len);
    for (i, value) in values.iter_mut().enumerate() {
        let sum: i32 = hash(seed, i).to_le_bytes().iter().map(|byte| i32::from(*byte)).sum();
        *value = T::from_f32((sum - 510) as f32 / 148.0 * spread);
    }
    values
}

/// Numbers below `bound`.
pub fn ids(seed: u32, len: usize, bound: usize) -> Vec<i64> {
    (0..len).map(|i| i64::from(hash(seed, i)) % bound.max(1) as i64).collect()
}
