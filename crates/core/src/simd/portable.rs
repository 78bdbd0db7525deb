//! The level every machine has: arrays of eight, left to the compiler.

use super::{EXP2_FLOOR, Lanes, Task};
use half::{bf16, f16};

/// Adding and subtracting this rounds a small f32 to an integer.
const ROUND: f32 = 12_582_912.0;

#[derive(Debug, Clone, Copy)]
pub struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 8] {
    std::array::from_fn(f)
}

#[inline(always)]
fn each_i(f: impl Fn(usize) -> i32) -> [i32; 8] {
    std::array::from_fn(f)
}

#[inline(always)]
fn floor(x: f32) -> f32 {
    let bounded = x.clamp(-4_194_304.0, 4_194_304.0);
    let nearest = (bounded + ROUND) - ROUND;
    if nearest > bounded { nearest - 1.0 } else { nearest }
}

/// `2^n` for an integral `n`: 0 below -126, inf above 127.
#[inline(always)]
fn power(n: f32) -> f32 {
    f32::from_bits((((n.clamp(-127.0, 128.0) as i32) + 127) as u32) << 23)
}

#[inline(always)]
fn exp2(x: f32) -> f32 {
    let t = x.clamp(-127.0, 128.0);
    let n = floor(t);
    let r = t - n;
    let mut p = EXP2_FLOOR[5];
    for c in EXP2_FLOOR[..5].iter().rev() {
        p = p * r + c;
    }
    p * power(n)
}

impl Lanes for Portable {
    const N: usize = 8;
    const FUSED: bool = false;
    type F = [f32; 8];
    type I = [i32; 8];
    type M = [bool; 8];

    fn vectorize<T: Task>(self, task: T) -> T::Output {
        task.run::<Self, 4>(self)
    }

    #[inline(always)]
    fn prefetch<T>(self, _at: *const T) {}

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> [f32; 8] {
        let from = &from[..8];
        each(|i| from[i])
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> [f32; 8] {
        let from = &from[..8];
        each(|i| from[i].to_f32())
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> [f32; 8] {
        let from = &from[..8];
        each(|i| from[i].to_f32())
    }
    #[inline(always)]
    fn store(self, into: &mut [f32], x: [f32; 8]) {
        into[..8].copy_from_slice(&x);
    }
    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn sqrt(self, a: [f32; 8]) -> [f32; 8] {
        each(|i| a[i].sqrt())
    }
    #[inline(always)]
    fn mul_add(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn mul_sub(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        each(|i| c[i] - a[i] * b[i])
    }
    #[inline(always)]
    fn max(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn exp2(self, x: [f32; 8]) -> [f32; 8] {
        each(|i| exp2(x[i]))
    }
    #[inline(always)]
    fn floor(self, x: [f32; 8]) -> [f32; 8] {
        each(|i| floor(x[i]))
    }
    #[inline(always)]
    fn scale_by_power(self, x: [f32; 8], n: [f32; 8]) -> [f32; 8] {
        each(|i| x[i] * power(n[i]))
    }
    #[inline(always)]
    fn sum(self, x: [f32; 8]) -> f32 {
        ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
    }
    #[inline(always)]
    fn largest(self, x: [f32; 8]) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn load_i(self, from: &[i32]) -> [i32; 8] {
        let from = &from[..8];
        each_i(|i| from[i])
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> [i32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn xor_i(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        each_i(|i| a[i] ^ b[i])
    }
    #[inline(always)]
    fn mul_i(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        each_i(|i| a[i].wrapping_mul(b[i]))
    }
    #[inline(always)]
    fn shift_right_15(self, a: [i32; 8]) -> [i32; 8] {
        each_i(|i| ((a[i] as u32) >> 15) as i32)
    }
    #[inline(always)]
    fn shift_right_16(self, a: [i32; 8]) -> [i32; 8] {
        each_i(|i| ((a[i] as u32) >> 16) as i32)
    }
    #[inline(always)]
    fn sub_i(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        each_i(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn to_float(self, a: [i32; 8]) -> [f32; 8] {
        each(|i| a[i] as f32)
    }
    #[inline(always)]
    fn between(self, x: [i32; 8], low: i32, high: i32) -> [bool; 8] {
        std::array::from_fn(|i| low <= x[i] && x[i] <= high)
    }
    #[inline(always)]
    fn below_unsigned(self, a: [i32; 8], b: [i32; 8]) -> [bool; 8] {
        std::array::from_fn(|i| (a[i] as u32) < b[i] as u32)
    }
    #[inline(always)]
    fn greater(self, a: [f32; 8], b: [f32; 8]) -> [bool; 8] {
        std::array::from_fn(|i| a[i] > b[i])
    }
    #[inline(always)]
    fn equal(self, a: [f32; 8], b: [f32; 8]) -> [bool; 8] {
        std::array::from_fn(|i| a[i] == b[i])
    }
    #[inline(always)]
    fn any_not_at_most(self, a: [f32; 8], b: [f32; 8]) -> bool {
        let mut all = true;
        for i in 0..8 {
            all &= a[i] <= b[i];
        }
        !all
    }
    #[inline(always)]
    fn select(self, mask: [bool; 8], a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| if mask[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn transpose(self, from: &[f32], from_step: usize, into: &mut [f32], into_step: usize, factor: Option<f32>) {
        for column in 0..8 {
            let out = &mut into[column * into_step..][..8];
            for (row, x) in out.iter_mut().enumerate() {
                let value = from[row * from_step + column];
                *x = factor.map_or(value, |factor| value * factor);
            }
        }
    }
    #[inline(always)]
    fn store_bf16(self, into: &mut [bf16], x: [f32; 8]) {
        for (to, x) in into[..8].iter_mut().zip(x) {
            *to = bf16::from_f32(x);
        }
    }
    #[inline(always)]
    fn store_f16(self, into: &mut [f16], x: [f32; 8]) {
        for (to, x) in into[..8].iter_mut().zip(x) {
            *to = f16::from_f32(x);
        }
    }
    #[inline(always)]
    fn abs(self, x: [f32; 8]) -> [f32; 8] {
        each(|i| x[i].abs())
    }
    #[inline(always)]
    fn swap_pairs(self, x: [f32; 8]) -> [f32; 8] {
        each(|i| x[i ^ 1])
    }
}
