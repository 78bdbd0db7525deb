//! AVX-512: sixteen lanes, thirty-two registers.
#![allow(unsafe_code)]

use super::{EXP2_FLOOR, Lanes, MOST_LANES, ROUGH_EXP2_FLOOR, Task};
use half::{bf16, f16};
use std::arch::x86_64::*;
use std::sync::LazyLock;

/// One call of an intrinsic whose only demand is the feature that the token proves.
macro_rules! proven {
    ($call:expr) => {
        // SAFETY: `Avx512` exists only where the processor has the instructions.
        unsafe { $call }
    };
}

/// Proof that the processor has AVX-512 F, BW, DQ, VL and FMA; with `PAIRS` also BF16, whose instructions are then used.
#[derive(Debug, Clone, Copy)]
pub struct Avx512<const PAIRS: bool>(());

impl<const PAIRS: bool> Avx512<PAIRS> {
    /// The token, where the processor has the instructions.
    #[inline]
    pub fn new() -> Option<Self> {
        let has = (!PAIRS || is_x86_feature_detected!("avx512bf16"))
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Avx512(()))
    }
}

/// Whether a product of pairs takes no longer than one of f32: not on Intel's cores, where it takes twice as long and more (Emerald Rapids:
/// 172 GFLOP/s on two cores where f32 comes to 340), so that there is nothing in it.
pub fn has_fast_pairs() -> bool {
    Avx512::<true>::new().is_some() && !is_intel()
}

/// Whether Intel made the processor.
pub fn is_intel() -> bool {
    static INTEL: LazyLock<bool> = LazyLock::new(|| {
        let vendor = __cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
    });
    *INTEL
}

impl<const PAIRS: bool> Avx512<PAIRS> {
    /// Adds the odd to the even quarters of each register; those of `a` come first.
    #[inline(always)]
    fn fold(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b)))
    }

    /// Adds, in every quarter, the upper to the lower half of each register; those of `a` and `b` in turn.
    #[inline(always)]
    fn zip_add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)))
    }

    /// The bits of each lane's nearest bf16, ties to even, in its upper half; what is not a number becomes a quiet one.
    #[inline(always)]
    fn rounded(self, x: __m512) -> __m512i {
        let bits = proven!(_mm512_castps_si512(x));
        let odd = proven!(_mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x1_0000)));
        let half = proven!(_mm512_mask_blend_epi32(odd, _mm512_set1_epi32(0x7fff), _mm512_set1_epi32(0x8000)));
        let number = proven!(_mm512_cmp_ps_mask::<_CMP_ORD_Q>(x, x));
        proven!(_mm512_mask_add_epi32(_mm512_set1_epi32(QUIET), number, bits, half))
    }

    /// Whether all lanes are rounded as they ought to be by the instruction for it, which takes numbers below 2^-126 for zero.
    #[inline(always)]
    fn rounds_at_once(self, [first, second]: [__m512; 2]) -> bool {
        const DENORMAL: i32 = 0x20;
        PAIRS && proven!(_mm512_fpclass_ps_mask::<DENORMAL>(first)) | proven!(_mm512_fpclass_ps_mask::<DENORMAL>(second)) == 0
    }

    /// Both rounded to bf16 by that instruction, the first in the lower half of each lane.
    #[inline(always)]
    fn halves_at_once(self, [first, second]: [__m512; 2]) -> __m512i {
        let halves = proven!(_mm512_cvtne2ps_pbh(second, first));
        // SAFETY: both are 64 bytes that may hold anything.
        let halves = unsafe { std::mem::transmute::<__m512bh, __m512i>(halves) };
        proven!(_mm512_permutexvar_epi16(ZIPPED, halves))
    }

    /// Both rounded to bf16, the first in the lower half of each lane.
    #[inline(always)]
    fn halves(self, [first, second]: [__m512; 2]) -> __m512i {
        if self.rounds_at_once([first, second]) {
            return self.halves_at_once([first, second]);
        }
        let lower = proven!(_mm512_srli_epi32::<16>(self.rounded(first)));
        proven!(_mm512_mask_blend_epi16(0xaaaa_aaaa, lower, self.rounded(second)))
    }

    /// Each lane's nearest bf16.
    #[inline(always)]
    fn narrowed(self, x: __m512) -> __m256i {
        if self.rounds_at_once([x; 2]) {
            let halves = proven!(_mm512_cvtneps_pbh(x));
            // SAFETY: both are 32 bytes that may hold anything.
            return unsafe { std::mem::transmute::<__m256bh, __m256i>(halves) };
        }
        proven!(_mm512_castsi512_si256(_mm512_permutexvar_epi16(UPPER_HALVES, self.rounded(x))))
    }

    /// The larger and the smaller integers.
    #[inline(always)]
    fn outermost(self, [high, low]: [__m512i; 2], x: __m512i) -> [__m512i; 2] {
        proven!([_mm512_max_epi16(high, x), _mm512_min_epi16(low, x)])
    }

    #[inline(always)]
    fn store_halves(self, into: &mut [bf16], halves: __m512i) {
        let into = &mut into[..32];
        // SAFETY: the slice has thirty-two elements of two bytes.
        unsafe { _mm512_storeu_si512(into.as_mut_ptr().cast(), halves) }
    }

    /// The lower and the upper bf16 of each lane as f32.
    #[inline(always)]
    fn widened(self, halves: __m512i) -> [__m512; 2] {
        let upper = proven!(_mm512_and_si512(halves, _mm512_set1_epi32(UPPER_HALF)));
        [proven!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))), proven!(_mm512_castsi512_ps(upper))]
    }
}

/// The bits of an f32 that is not a number.
const QUIET: i32 = 0x7fc0_0000;
/// The half of an f32 that a bf16 has.
const UPPER_HALF: i32 = 0xffff_0000_u32.cast_signed();
/// Sixteen-bit lanes 1, 3, … 31, each index in a lane of its own; the upper half of the register is not used.
const UPPER_HALVES: __m512i = {
    let mut lanes = [0u16; 32];
    let mut i = 0;
    while i < 16 {
        lanes[i] = 2 * i as u16 + 1;
        i += 1;
    }
    // SAFETY: both are 64 bytes that may hold anything.
    unsafe { std::mem::transmute(lanes) }
};

/// Sixteen-bit lanes 0, 16, 1, 17, … 15, 31.
const ZIPPED: __m512i = {
    let mut lanes = [0u16; 32];
    let mut i = 0;
    while i < 16 {
        lanes[2 * i] = i as u16;
        lanes[2 * i + 1] = 16 + i as u16;
        i += 1;
    }
    // SAFETY: both are 64 bytes that may hold anything.
    unsafe { std::mem::transmute(lanes) }
};

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
fn inside<T: Task>(s: Avx512<false>, task: T) -> T::Output {
    task.run::<Avx512<false>, 8>(s)
}

#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
fn inside_with_pairs<T: Task>(s: Avx512<true>, task: T) -> T::Output {
    task.run::<Avx512<true>, 8>(s)
}

impl<const PAIRS: bool> Lanes for Avx512<PAIRS> {
    const N: usize = 16;
    const FUSED: bool = true;
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;

    #[inline(always)]
    fn vectorize<T: Task>(self, task: T) -> T::Output {
        if PAIRS { proven!(inside_with_pairs(Avx512(()), task)) } else { proven!(inside(Avx512(()), task)) }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // SAFETY: a prefetch reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from = &from[..16];
        // SAFETY: the slice has sixteen elements.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> __m512 {
        let from = &from[..16];
        // SAFETY: the slice has sixteen elements of two bytes.
        let bits = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
        proven!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits))))
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> __m512 {
        let from = &from[..16];
        // SAFETY: the slice has sixteen elements of two bytes.
        let bits = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
        proven!(_mm512_cvtph_ps(bits))
    }
    #[inline(always)]
    fn store(self, into: &mut [f32], x: __m512) {
        let into = &mut into[..16];
        // SAFETY: the slice has sixteen elements.
        unsafe { _mm512_storeu_ps(into.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        proven!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn mul_sub(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }
    /// The polynomial on `x - floor x`; `scalef` floors its exponent by itself.
    #[inline(always)]
    fn exp2(self, x: __m512) -> __m512 {
        let r = proven!(_mm512_reduce_ps::<0x09>(x));
        let mut p = self.splat(EXP2_FLOOR[5]);
        for c in EXP2_FLOOR[..5].iter().rev() {
            p = self.mul_add(p, r, self.splat(*c));
        }
        self.scale_by_power(p, x)
    }
    #[inline(always)]
    fn floor(self, x: __m512) -> __m512 {
        proven!(_mm512_roundscale_ps::<0x09>(x))
    }
    #[inline(always)]
    fn scale_by_power(self, x: __m512, n: __m512) -> __m512 {
        proven!(_mm512_scalef_ps(x, n))
    }
    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        proven!(_mm512_reduce_add_ps(x))
    }
    /// Halves fold into quarters of one register, so that four sums share their last steps.
    #[inline(always)]
    fn sum_four(self, x: [__m512; 4], into: &mut [f32]) {
        let into = &mut into[..4];
        let quarters = self.fold(self.fold(x[0], x[1]), self.fold(x[2], x[3]));
        let halves = self.add(quarters, proven!(_mm512_permute_ps::<0b01_00_11_10>(quarters)));
        let all = self.add(halves, proven!(_mm512_permute_ps::<0b10_11_00_01>(halves)));
        let first = proven!(_mm512_maskz_compress_ps(0x1111, all));
        // SAFETY: the slice has four elements.
        unsafe { _mm_storeu_ps(into.as_mut_ptr(), _mm512_castps512_ps128(first)) }
    }
    /// Two rows fold into one register, four into one, and so on: 45 instructions for sixteen sums.
    #[inline(always)]
    fn sums(self, x: &[__m512; MOST_LANES]) -> __m512 {
        let mut fours = [self.zero(); 4];
        for (four, x) in fours.iter_mut().zip(x.as_chunks::<4>().0) {
            let (first, second) = (self.zip_add(x[0], x[1]), self.zip_add(x[2], x[3]));
            let (first, second) = proven!((_mm512_castps_pd(first), _mm512_castps_pd(second)));
            let (lower, upper) = proven!((_mm512_unpacklo_pd(first, second), _mm512_unpackhi_pd(first, second)));
            *four = proven!(_mm512_add_ps(_mm512_castpd_ps(lower), _mm512_castpd_ps(upper)));
        }
        self.fold(self.fold(fours[0], fours[1]), self.fold(fours[2], fours[3]))
    }
    #[inline(always)]
    fn largest(self, x: __m512) -> f32 {
        proven!(_mm512_reduce_max_ps(x))
    }
    /// Taken for integers, the largest positive number is the largest and the largest negative one the smallest.
    #[inline(always)]
    fn largest_bf16(self, of: &[bf16]) -> Option<f32> {
        let none = proven!(_mm512_set1_epi16(bf16::NEG_INFINITY.to_bits().cast_signed()));
        let (mut one, mut two) = ([none; 2], [none; 2]);
        let mut pairs = of.chunks_exact(64);
        for pair in &mut pairs {
            // SAFETY: the slice has sixty-four elements of two bytes.
            let x = unsafe { [_mm512_loadu_si512(pair.as_ptr().cast()), _mm512_loadu_si512(pair[32..].as_ptr().cast())] };
            (one, two) = (self.outermost(one, x[0]), self.outermost(two, x[1]));
        }
        for part in pairs.remainder().chunks(32) {
            let mask = __mmask32::MAX >> (32 - part.len());
            // SAFETY: of memory, only the lanes of the mask are read, which are elements of the slice.
            one = self.outermost(one, unsafe { _mm512_mask_loadu_epi16(none, mask, part.as_ptr().cast()) });
        }
        let [high, low] = self.outermost(self.outermost(one, two[0]), two[1]);
        let [even, odd] = self.widened(proven!(_mm512_mask_mov_epi16(high, _mm512_movepi16_mask(high), low)));
        Some(self.largest(self.max(even, odd)))
    }
    #[inline(always)]
    fn load_i(self, from: &[i32]) -> __m512i {
        let from = &from[..16];
        // SAFETY: the slice has sixteen elements.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        proven!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn xor_i(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_xor_si512(a, b))
    }
    #[inline(always)]
    fn mul_i(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn shift_right_15(self, a: __m512i) -> __m512i {
        proven!(_mm512_srli_epi32::<15>(a))
    }
    #[inline(always)]
    fn shift_right_16(self, a: __m512i) -> __m512i {
        proven!(_mm512_srli_epi32::<16>(a))
    }
    #[inline(always)]
    fn sub_i(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn to_float(self, a: __m512i) -> __m512 {
        proven!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn between(self, x: __m512i, low: i32, high: i32) -> __mmask16 {
        proven!(_mm512_mask_cmple_epi32_mask(_mm512_cmpge_epi32_mask(x, _mm512_set1_epi32(low)), x, _mm512_set1_epi32(high)))
    }
    #[inline(always)]
    fn below_unsigned(self, a: __m512i, b: __m512i) -> __mmask16 {
        proven!(_mm512_cmplt_epu32_mask(a, b))
    }
    #[inline(always)]
    fn greater(self, a: __m512, b: __m512) -> __mmask16 {
        proven!(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b))
    }
    #[inline(always)]
    fn equal(self, a: __m512, b: __m512) -> __mmask16 {
        proven!(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b))
    }
    #[inline(always)]
    fn any_not_at_most(self, a: __m512, b: __m512) -> bool {
        proven!(_mm512_cmp_ps_mask::<_CMP_NLE_UQ>(a, b)) != 0
    }
    #[inline(always)]
    fn select(self, mask: __mmask16, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mask_mov_ps(b, mask, a))
    }
    #[inline(always)]
    fn keep(self, mask: __mmask16, a: __m512) -> __m512 {
        proven!(_mm512_maskz_mov_ps(mask, a))
    }
    #[inline(always)]
    fn transpose(self, from: &[f32], from_step: usize, into: &mut [f32], into_step: usize, factor: Option<f32>) {
        let mut rows = [self.zero(); 16];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = self.load(&from[i * from_step..]);
            if let Some(factor) = factor {
                *row = self.mul(*row, self.splat(factor));
            }
        }
        let columns = proven!(transpose_registers(rows));
        for (i, column) in columns.into_iter().enumerate() {
            self.store(&mut into[i * into_step..], column);
        }
    }
    /// Rounds by adding half a unit, less one where the last kept bit is 0.
    #[inline(always)]
    fn store_bf16(self, into: &mut [bf16], x: __m512) {
        let (into, halves) = (&mut into[..16], self.narrowed(x));
        // SAFETY: the slice has sixteen elements of two bytes.
        unsafe { _mm256_storeu_si256(into.as_mut_ptr().cast(), halves) }
    }
    #[inline(always)]
    fn load_part(self, from: &[f32], fill: f32) -> __m512 {
        // SAFETY: of memory, only the lanes of the mask are read, which are elements of the slice.
        unsafe { _mm512_mask_loadu_ps(self.splat(fill), first_lanes(from.len()), from.as_ptr()) }
    }
    #[inline(always)]
    fn load_part_bf16(self, from: &[bf16], fill: f32) -> __m512 {
        let fill = proven!(_mm256_set1_epi16(bf16::from_f32(fill).to_bits().cast_signed()));
        // SAFETY: of memory, only the lanes of the mask are read, which are elements of the slice.
        let bits = unsafe { _mm256_mask_loadu_epi16(fill, first_lanes(from.len()), from.as_ptr().cast()) };
        proven!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits))))
    }
    #[inline(always)]
    fn store_part(self, into: &mut [f32], x: __m512) {
        // SAFETY: of memory, only the lanes of the mask are written, which are elements of the slice.
        unsafe { _mm512_mask_storeu_ps(into.as_mut_ptr(), first_lanes(into.len()), x) }
    }
    #[inline(always)]
    fn store_part_bf16(self, into: &mut [bf16], x: __m512) {
        let halves = self.narrowed(x);
        // SAFETY: of memory, only the lanes of the mask are written, which are elements of the slice.
        unsafe { _mm256_mask_storeu_epi16(into.as_mut_ptr().cast(), first_lanes(into.len()), halves) }
    }
    /// Elements at even and at odd places: two instructions for both.
    #[inline(always)]
    fn load_two_bf16(self, from: &[bf16]) -> [__m512; 2] {
        let from = &from[..32];
        // SAFETY: the slice has thirty-two elements of two bytes.
        let bits = unsafe { _mm512_loadu_si512(from.as_ptr().cast()) };
        self.widened(bits)
    }
    #[inline(always)]
    fn store_two_bf16(self, into: &mut [bf16], x: [__m512; 2]) {
        self.store_halves(into, self.halves(x));
    }
    #[inline(always)]
    fn store_two_normal_bf16(self, into: &mut [bf16], x: [__m512; 2]) {
        self.store_halves(into, if PAIRS { self.halves_at_once(x) } else { self.halves(x) });
    }
    #[inline(always)]
    fn pair(self, [first, second]: [__m512; 2]) -> __m512 {
        let halves = if PAIRS { self.halves_at_once([first, second]) } else { self.halves([first, second]) };
        proven!(_mm512_castsi512_ps(halves))
    }
    #[inline(always)]
    fn pair_bf16(self, [first, second]: [&[bf16]; 2]) -> __m512 {
        let (first, second) = (&first[..16], &second[..16]);
        // SAFETY: both slices have sixteen elements of two bytes.
        let (first, second) = unsafe { (_mm256_loadu_si256(first.as_ptr().cast()), _mm256_loadu_si256(second.as_ptr().cast())) };
        let both = proven!(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second));
        proven!(_mm512_castsi512_ps(_mm512_permutexvar_epi16(ZIPPED, both)))
    }
    #[inline(always)]
    fn unpair(self, pairs: __m512) -> [__m512; 2] {
        self.widened(proven!(_mm512_castps_si512(pairs)))
    }
    #[inline(always)]
    fn dot_pairs(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        if !PAIRS {
            let (a, b) = (self.unpair(a), self.unpair(b));
            return self.mul_add(a[1], b[1], self.mul_add(a[0], b[0], sum));
        }
        // SAFETY: all are 64 bytes that may hold anything.
        let [a, b] = unsafe { std::mem::transmute::<[__m512; 2], [__m512bh; 2]>([a, b]) };
        proven!(_mm512_dpbf16_ps(sum, a, b))
    }
    #[inline(always)]
    fn store_f16(self, into: &mut [f16], x: __m512) {
        let into = &mut into[..16];
        let bits = proven!(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        // SAFETY: the slice has sixteen elements of two bytes.
        unsafe { _mm256_storeu_si256(into.as_mut_ptr().cast(), bits) }
    }
    #[inline(always)]
    fn abs(self, x: __m512) -> __m512 {
        proven!(_mm512_abs_ps(x))
    }
    #[inline(always)]
    fn swap_pairs(self, x: __m512) -> __m512 {
        proven!(_mm512_permute_ps::<0b10_11_00_01>(x))
    }
    /// An estimate of 14 bits and one step of Newton.
    #[inline(always)]
    fn reciprocal(self, x: __m512) -> __m512 {
        let r = proven!(_mm512_rcp14_ps(x));
        self.mul_add(r, self.mul_sub(x, r, self.splat(1.0)), r)
    }
    #[inline(always)]
    fn rough_reciprocal(self, x: __m512) -> __m512 {
        proven!(_mm512_rcp14_ps(x))
    }
    #[inline(always)]
    fn rough_exp2(self, x: __m512) -> __m512 {
        let r = proven!(_mm512_reduce_ps::<0x09>(x));
        let mut p = self.splat(ROUGH_EXP2_FLOOR[3]);
        for c in ROUGH_EXP2_FLOOR[..3].iter().rev() {
            p = self.mul_add(p, r, self.splat(*c));
        }
        self.scale_by_power(p, x)
    }
}

/// The mask of so many lanes from the first on, all where there are more.
#[inline(always)]
fn first_lanes(count: usize) -> __mmask16 {
    if count < 16 { (1 << count) - 1 } else { __mmask16::MAX }
}

/// Four rounds of doubling blocks: 1 → 2 → 4 lanes inside 128 bits, then two shuffles of 128-bit quarters.
#[inline(always)]
unsafe fn transpose_registers(r: [__m512; 16]) -> [__m512; 16] {
    // SAFETY: called from a method of the token only.
    unsafe {
        let (mut pairs, mut fours, mut out) = (r, r, r);
        for i in (0..16).step_by(2) {
            pairs[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
            pairs[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
        }
        for i in (0..16).step_by(4) {
            for half in 0..2 {
                let (x, y) = (_mm512_castps_pd(pairs[i + half]), _mm512_castps_pd(pairs[i + half + 2]));
                fours[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
                fours[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
            }
        }
        for j in 0..4 {
            let even = [_mm512_shuffle_f32x4::<0x88>(fours[j], fours[4 + j]), _mm512_shuffle_f32x4::<0x88>(fours[8 + j], fours[12 + j])];
            let odd = [_mm512_shuffle_f32x4::<0xdd>(fours[j], fours[4 + j]), _mm512_shuffle_f32x4::<0xdd>(fours[8 + j], fours[12 + j])];
            out[j] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
            out[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]);
            out[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
            out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]);
        }
        out
    }
}
