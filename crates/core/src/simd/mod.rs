//! Lanes of f32 and the instruction sets that carry them.
//!
//! One generic body runs on every level: a [`Task`] is written once over [`Lanes`] and [`dispatch`] hands it the token
//! of the level in use. A token can only be made here, after the processor has been asked, so holding one proves that
//! its instructions exist. This folder and `DisjointRows` are the only places of the crate with `unsafe`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod ceiling;
mod form;
mod portable;
mod product;
mod scratch;

pub use form::{Form, Pairs, Singles};
pub use product::{Across, Along, Left, Rows, Strips, product};
pub use scratch::Aligned;

use half::{bf16, f16};
use std::fmt;
use std::str::FromStr;

/// The most lanes that a register of any level has.
pub(crate) const MOST_LANES: usize = 16;

/// Values of f32 in a cache line.
pub(crate) const LINE: usize = 16;

/// Vector registers of f32, of i32 with as many lanes, and masks over them.
///
/// Code over lanes is written with loops, not with closures: a closure is compiled for the baseline, and unless the
/// compiler happens to inline it, every operation in it becomes a call.
///
/// Slices handed to loads and stores must have at least [`Lanes::N`] elements, else the call panics.
pub trait Lanes: Copy + Send + Sync + 'static {
    /// Lanes in a register.
    const N: usize;
    /// Whether [`Lanes::mul_add`] is one instruction.
    const FUSED: bool;
    /// Whether forms of one loop for many sizes are worth their compilation: not in plain Rust on x86-64, where processors without AVX2 are
    /// rare and the compiler takes minutes.
    const SPECIALISED: bool = Self::FUSED || !cfg!(target_arch = "x86_64");
    /// A register of f32.
    type F: Copy;
    /// A register of i32.
    type I: Copy;
    /// One bit per lane.
    type M: Copy;

    /// Asks for the cache line of an element that will be read or written soon. A hint: it may point anywhere.
    fn prefetch<T>(self, at: *const T);

    /// Runs `task` inside a function compiled for this level, so that everything inlined into it uses its registers.
    fn vectorize<T: Task>(self, task: T) -> T::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// The first lanes of a slice.
    fn load(self, from: &[f32]) -> Self::F;
    /// The first lanes of a slice of bf16, widened.
    fn load_bf16(self, from: &[bf16]) -> Self::F;
    /// The first lanes of a slice of f16, widened.
    fn load_f16(self, from: &[f16]) -> Self::F;
    /// Writes all lanes to the front of a slice.
    fn store(self, into: &mut [f32], x: Self::F);
    /// The first lanes of a slice of fewer; the others are `fill`.
    #[inline(always)]
    fn load_part(self, from: &[f32], fill: f32) -> Self::F {
        self.load(&filled_up(from, fill))
    }
    /// The first lanes of a slice of fewer bf16, widened; the others are `fill`.
    #[inline(always)]
    fn load_part_bf16(self, from: &[bf16], fill: f32) -> Self::F {
        self.load_bf16(&filled_up(from, bf16::from_f32(fill)))
    }
    /// Writes the first lanes to a slice of fewer.
    #[inline(always)]
    fn store_part(self, into: &mut [f32], x: Self::F) {
        let mut part = [0.0; MOST_LANES];
        self.store(&mut part, x);
        write_part(into, &part);
    }
    /// Writes the first lanes, rounded to nearest even, to a slice of fewer bf16.
    #[inline(always)]
    fn store_part_bf16(self, into: &mut [bf16], x: Self::F) {
        let mut part = [bf16::ZERO; MOST_LANES];
        self.store_bf16(&mut part, x);
        write_part(into, &part);
    }
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `√a`.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// `a · b + c`, fused where the level has it.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a · b`, fused where the level has it.
    fn mul_sub(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of each lane; where one is not a number, `b`.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of each lane; where one is not a number, `b`.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `2^x` with a relative error of at most 1.6e-7; 0 for -inf, inf for large x, not a number for not a number.
    fn exp2(self, x: Self::F) -> Self::F;
    /// The largest integer not above `x`.
    fn floor(self, x: Self::F) -> Self::F;
    /// `x · 2^n` for an integral `n`.
    fn scale_by_power(self, x: Self::F, n: Self::F) -> Self::F;
    /// Sum of the lanes.
    fn sum(self, x: Self::F) -> f32;
    /// Largest lane.
    fn largest(self, x: Self::F) -> f32;
    /// The largest of some bf16, -inf of none, where the level finds it without widening them. Where one is not a number, it is any.
    #[inline(always)]
    fn largest_bf16(self, _of: &[bf16]) -> Option<f32> {
        None
    }

    /// The first lanes of a slice of i32.
    fn load_i(self, from: &[i32]) -> Self::I;
    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// `a ^ b`.
    fn xor_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a · b` modulo 2^32.
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Logical shift right by 15.
    fn shift_right_15(self, a: Self::I) -> Self::I;
    /// Logical shift right by 16.
    fn shift_right_16(self, a: Self::I) -> Self::I;
    /// `a - b`.
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// i32 to the nearest f32.
    fn to_float(self, a: Self::I) -> Self::F;

    /// Lanes with `low <= x <= high`.
    fn between(self, x: Self::I, low: i32, high: i32) -> Self::M;
    /// Lanes with `a < b` as unsigned numbers.
    fn below_unsigned(self, a: Self::I, b: Self::I) -> Self::M;
    /// Lanes with `a > b`; false where one is not a number.
    fn greater(self, a: Self::F, b: Self::F) -> Self::M;
    /// Lanes with `a == b`; false where one is not a number.
    fn equal(self, a: Self::F, b: Self::F) -> Self::M;
    /// Whether in some lane `a <= b` does not hold, be it that one is not a number.
    fn any_not_at_most(self, a: Self::F, b: Self::F) -> bool;
    /// `a` where the mask is set, else `b`.
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F;

    /// Transposes the `N × N` block at the front of `from` (rows `from_step` apart) into rows `into_step` apart,
    /// multiplied by `factor`, or bit by bit: lanes may hold pairs.
    fn transpose(self, from: &[f32], from_step: usize, into: &mut [f32], into_step: usize, factor: Option<f32>);

    /// Writes the sums of four registers to the front of a slice.
    #[inline(always)]
    fn sum_four(self, x: [Self::F; 4], into: &mut [f32]) {
        for (to, x) in into[..4].iter_mut().zip(x) {
            *to = self.sum(x);
        }
    }

    /// Lane i: the sum of register i of the first `N`.
    #[inline(always)]
    fn sums(self, x: &[Self::F; MOST_LANES]) -> Self::F {
        let mut sums = [0.0; MOST_LANES];
        for (sum, x) in sums.iter_mut().zip(x).take(Self::N) {
            *sum = self.sum(*x);
        }
        self.load(&sums)
    }

    /// Zero in every lane.
    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }

    /// `a` where the mask is set, else 0.
    #[inline(always)]
    fn keep(self, mask: Self::M, a: Self::F) -> Self::F {
        self.select(mask, a, self.zero())
    }

    /// `tanh x` within a few units of the last place: with `e = 2^t - 1` for `t = 2x·log2 e` it is `e / (e + 2)`, and
    /// `e` near 0 comes from the polynomial without its constant, so that nothing cancels.
    #[inline(always)]
    fn tanh(self, x: Self::F) -> Self::F {
        let bounded = self.max(self.splat(-10.0), self.min(self.splat(10.0), x));
        let t = self.mul(bounded, self.splat(2.0 * std::f32::consts::LOG2_E));
        let n = self.floor(self.add(t, self.splat(0.5)));
        let r = self.sub(t, n);
        let mut p = self.splat(EXPM1_NEAREST[5]);
        for c in EXPM1_NEAREST[..5].iter().rev() {
            p = self.mul_add(p, r, self.splat(*c));
        }
        let power = self.scale_by_power(self.splat(1.0), n);
        let e = self.mul_add(power, self.mul(p, r), self.sub(power, self.splat(1.0)));
        self.div(e, self.add(e, self.splat(2.0)))
    }

    /// `e^x` for `x` up to 87, with a relative error of at most 1.7e-7 and 8e-8 times `|x|` (the rounding of `x log2 e` and of the constant
    /// in it): near 0 it is 1 plus a small number, so that products of many of them do not drift. 0 below -88, not a number for not a number.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        let t = self.mul(x, self.splat(std::f32::consts::LOG2_E));
        let bounded = self.max(self.splat(-126.0), self.min(self.splat(126.0), t));
        let n = self.floor(self.add(bounded, self.splat(0.5)));
        let r = self.sub(bounded, n);
        let mut p = self.splat(EXPM1_NEAREST[5]);
        for c in EXPM1_NEAREST[..5].iter().rev() {
            p = self.mul_add(p, r, self.splat(*c));
        }
        let power = self.scale_by_power(self.splat(1.0), n);
        let e = self.mul_add(power, self.mul(p, r), power);
        self.select(self.greater(self.splat(-126.0), t), self.zero(), e)
    }

    /// Writes all lanes to the front of a slice, each rounded to the nearest bf16, ties to even; what is not a
    /// number becomes some quiet one.
    fn store_bf16(self, into: &mut [bf16], x: Self::F);
    /// The first `2N` elements of a slice of bf16, widened, in an order of the level's own.
    #[inline(always)]
    fn load_two_bf16(self, from: &[bf16]) -> [Self::F; 2] {
        [self.load_bf16(from), self.load_bf16(&from[Self::N..])]
    }
    /// [`Lanes::store_bf16`] for `2N` elements in the order of [`Lanes::load_two_bf16`].
    #[inline(always)]
    fn store_two_bf16(self, into: &mut [bf16], x: [Self::F; 2]) {
        self.store_bf16(into, x[0]);
        self.store_bf16(&mut into[Self::N..], x[1]);
    }
    /// As [`Lanes::store_two_bf16`], but numbers nearer to 0 than 2^-126 may become 0.
    #[inline(always)]
    fn store_two_normal_bf16(self, into: &mut [bf16], x: [Self::F; 2]) {
        self.store_two_bf16(into, x);
    }
    /// Two registers as pairs of bf16, rounded to nearest even; what is not a number becomes some quiet one.
    #[inline(always)]
    fn pair(self, [first, second]: [Self::F; 2]) -> Self::F {
        let (mut lower, mut upper) = ([0.0f32; MOST_LANES], [0.0f32; MOST_LANES]);
        self.store(&mut lower, first);
        self.store(&mut upper, second);
        for (lower, upper) in lower.iter_mut().zip(upper) {
            *lower = pair_of(bf16::from_f32(*lower), bf16::from_f32(upper));
        }
        self.load(&lower)
    }
    /// The first lanes of two slices in pairs, bit by bit.
    #[inline(always)]
    fn pair_bf16(self, [first, second]: [&[bf16]; 2]) -> Self::F {
        let mut pairs = [0.0f32; MOST_LANES];
        for (to, (first, second)) in pairs.iter_mut().zip(first[..Self::N].iter().zip(&second[..Self::N])) {
            *to = pair_of(*first, *second);
        }
        self.load(&pairs)
    }
    /// The first and the second of every pair, widened.
    #[inline(always)]
    fn unpair(self, pairs: Self::F) -> [Self::F; 2] {
        let mut lower = [0.0f32; MOST_LANES];
        self.store(&mut lower, pairs);
        let mut upper = lower;
        for (lower, upper) in lower.iter_mut().zip(&mut upper) {
            (*lower, *upper) = (f32::from_bits(lower.to_bits() << 16), f32::from_bits(upper.to_bits() & 0xffff_0000));
        }
        [self.load(&lower), self.load(&upper)]
    }
    /// `sum + a₁ · b₁ + a₂ · b₂` of pairs.
    #[inline(always)]
    fn dot_pairs(self, a: Self::F, b: Self::F, sum: Self::F) -> Self::F {
        let (a, b) = (self.unpair(a), self.unpair(b));
        self.mul_add(a[1], b[1], self.mul_add(a[0], b[0], sum))
    }
    /// Writes all lanes to the front of a slice, each rounded to the nearest f16, ties to even.
    fn store_f16(self, into: &mut [f16], x: Self::F);
    /// `|x|`.
    fn abs(self, x: Self::F) -> Self::F;
    /// Lanes 0 and 1 exchanged, 2 and 3, and so on.
    fn swap_pairs(self, x: Self::F) -> Self::F;

    /// `1 / x` within 2 units of the last place for `x` from 2^-125 to 2^125; beyond, not always a number.
    #[inline(always)]
    fn reciprocal(self, x: Self::F) -> Self::F {
        self.div(self.splat(1.0), x)
    }
    /// `1 / x` to 13 bits at least.
    #[inline(always)]
    fn rough_reciprocal(self, x: Self::F) -> Self::F {
        self.reciprocal(x)
    }
    /// `2^x` to 13 bits at least; exactly 1 at 0.
    #[inline(always)]
    fn rough_exp2(self, x: Self::F) -> Self::F {
        self.exp2(x)
    }
}

/// Out of line, as [`write_part`]: what the loop around it holds would leave its registers for the instructions in line.
#[cold]
#[inline(never)]
pub(crate) fn filled_up<T: Copy>(from: &[T], fill: T) -> [T; MOST_LANES] {
    let mut part = [fill; MOST_LANES];
    part[..from.len()].copy_from_slice(from);
    part
}

/// The front of `part`, as far as the slice goes.
#[cold]
#[inline(never)]
pub(crate) fn write_part<T: Copy>(into: &mut [T], part: &[T; MOST_LANES]) {
    into.copy_from_slice(&part[..into.len()]);
}

/// Coefficients of the degree-5 polynomial with the least relative error to `2^r` on `[0, 1)` among those that are exactly
/// 1 at 0 (Remez, 8.2e-8): the weight of a row's largest key is exactly 1.
pub(crate) const EXP2_FLOOR: [f32; 6] = [1.0, 0.693_151_3, 0.240_164_44, 0.055_799_913, 0.009_017_031, 0.001_867_13];
/// The same of degree 3 (8.6e-5).
#[cfg(target_arch = "x86_64")]
pub(crate) const ROUGH_EXP2_FLOOR: [f32; 4] = [1.0, 0.695_116_8, 0.227_645, 0.077_067_04];
/// `(2^r - 1) / r` on `[-1/2, 1/2]`, degree 5.
const EXPM1_NEAREST: [f32; 6] = [std::f32::consts::LN_2, 0.240_226_5, 0.055_504_09, 0.009_618_129, 0.001_333_355_8, 0.000_154_035_3];

/// The lane that holds a pair: bits that are moved and never computed with as an f32.
#[inline(always)]
pub(crate) fn pair_of(first: bf16, second: bf16) -> f32 {
    f32::from_bits(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16)
}

/// Neighbours as pairs, where they stand: not from an odd place in memory on, nor where the first of two is the upper half.
pub(crate) fn as_pairs(values: &[bf16]) -> Option<&[f32]> {
    let start = values.as_ptr().cast::<f32>();
    if !start.is_aligned() || cfg!(target_endian = "big") {
        return None;
    }
    // SAFETY: the start is aligned, half as many values of twice the size lie in the slice, and any bits are an f32.
    #[allow(unsafe_code)]
    Some(unsafe { std::slice::from_raw_parts(start, values.len() / 2) })
}

/// Writes two rows of one length in pairs to the front of `into`; an empty one stands for zeros.
#[inline(always)]
pub(crate) fn zip_pairs<S: Lanes>(s: S, [first, second]: [&[bf16]; 2], into: &mut [f32]) {
    if second.is_empty() {
        for (to, first) in into.iter_mut().zip(first) {
            *to = pair_of(*first, bf16::ZERO);
        }
        return;
    }
    let whole = first.len() / S::N * S::N;
    for at in (0..whole).step_by(S::N) {
        s.store(&mut into[at..], s.pair_bf16([&first[at..], &second[at..]]));
    }
    for at in whole..first.len() {
        into[at] = pair_of(first[at], second[at]);
    }
}

/// Whether lines of memory are best asked for long before they are read: on Intel's cores (Sapphire Rapids). Zen 4 reads a third more slowly
/// then.
pub(crate) fn asks_early() -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx512::is_intel();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Work that can run on any level.
pub trait Task {
    /// What it gives back.
    type Output;
    /// The work, once per level.
    fn run<S: Lanes, const R: usize>(self, s: S) -> Self::Output;
}

/// An instruction set. Ordered: a later one includes the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Plain Rust, 8 lanes; whatever the compiler's baseline makes of it.
    Portable,
    /// AVX2 with FMA and F16C, 8 lanes.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL), 16 lanes.
    Avx512,
}

impl Level {
    /// Every level, lowest first.
    pub const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

    /// The best level of this processor.
    pub fn detect() -> Level {
        #[cfg(target_arch = "x86_64")]
        {
            if avx512::Avx512::<false>::new().is_some() {
                return Level::Avx512;
            }
            if avx2::Avx2::new().is_some() {
                return Level::Avx2;
            }
        }
        Level::Portable
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        self <= Level::detect()
    }

    /// Whether products of bf16 are fastest in pairs, by an instruction that the processor has.
    pub(crate) fn prefers_pairs(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self >= Level::Avx512 && avx512::has_fast_pairs();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Level::ALL
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or_else(|| format!("unknown level \"{text}\": portable, avx2 or avx512"))
    }
}

/// Runs a task at `level`, or at the best one below it that the processor has. Never inlined, so that crates share what is compiled of it.
#[inline(never)]
pub fn dispatch<T: Task>(level: Level, task: T) -> T::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if level >= Level::Avx512
            && let Some(s) = avx512::Avx512::<false>::new()
        {
            return s.vectorize(task);
        }
        if level >= Level::Avx2
            && let Some(s) = avx2::Avx2::new()
        {
            return s.vectorize(task);
        }
    }
    let _ = level;
    portable::Portable.vectorize(task)
}

#[cfg(test)]
mod tests;
