//! AVX2 with FMA: eight lanes, sixteen registers.
#![allow(unsafe_code)]

use super::{EXP2_FLOOR, Lanes, MOST_LANES, Task};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// The token, where the processor has the instructions.
    #[inline]
    pub fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
fn inside<T: Task>(s: Avx2, task: T) -> T::Output {
    task.run::<Avx2, 4>(s)
}

/// One call of an intrinsic whose only demand is the feature that the token proves.
macro_rules! proven {
    ($call:expr) => {
        // SAFETY: `Avx2` exists only where the processor has the instructions.
        unsafe { $call }
    };
}

impl Lanes for Avx2 {
    const N: usize = 8;
    const FUSED: bool = true;
    type F = __m256;
    type I = __m256i;
    type M = __m256;

    #[inline(always)]
    fn vectorize<T: Task>(self, task: T) -> T::Output {
        proven!(inside(self, task))
    }

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // SAFETY: a prefetch reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        proven!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from = &from[..8];
        // SAFETY: the slice has eight elements.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> __m256 {
        let from = &from[..8];
        // SAFETY: the slice has eight elements of two bytes.
        let bits = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
        proven!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))))
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> __m256 {
        let from = &from[..8];
        // SAFETY: the slice has eight elements of two bytes.
        let bits = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
        proven!(_mm256_cvtph_ps(bits))
    }
    #[inline(always)]
    fn store(self, into: &mut [f32], x: __m256) {
        let into = &mut into[..8];
        // SAFETY: the slice has eight elements.
        unsafe { _mm256_storeu_ps(into.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        proven!(_mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        proven!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn mul_sub(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        proven!(_mm256_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn exp2(self, x: __m256) -> __m256 {
        let t = self.max(self.splat(-127.0), self.min(self.splat(128.0), x));
        let n = self.floor(t);
        let r = self.sub(t, n);
        let mut p = self.splat(EXP2_FLOOR[5]);
        for c in EXP2_FLOOR[..5].iter().rev() {
            p = self.mul_add(p, r, self.splat(*c));
        }
        self.scale_by_power(p, n)
    }
    #[inline(always)]
    fn floor(self, x: __m256) -> __m256 {
        proven!(_mm256_floor_ps(x))
    }
    #[inline(always)]
    fn scale_by_power(self, x: __m256, n: __m256) -> __m256 {
        let exponent = proven!(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
        proven!(_mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))))
    }
    #[inline(always)]
    fn sum(self, x: __m256) -> f32 {
        let four = proven!(_mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)));
        let two = proven!(_mm_add_ps(four, _mm_movehl_ps(four, four)));
        proven!(_mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two))))
    }
    #[inline(always)]
    fn sums(self, x: &[__m256; MOST_LANES]) -> __m256 {
        let mut fours = [self.zero(); 2];
        for (four, x) in fours.iter_mut().zip(x.as_chunks::<4>().0) {
            let (first, second) = proven!((_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3])));
            *four = proven!(_mm256_hadd_ps(first, second));
        }
        let lower = proven!(_mm256_permute2f128_ps::<0x20>(fours[0], fours[1]));
        self.add(lower, proven!(_mm256_permute2f128_ps::<0x31>(fours[0], fours[1])))
    }
    #[inline(always)]
    fn largest(self, x: __m256) -> f32 {
        let four = proven!(_mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)));
        let two = proven!(_mm_max_ps(four, _mm_movehl_ps(four, four)));
        proven!(_mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two))))
    }
    #[inline(always)]
    fn load_i(self, from: &[i32]) -> __m256i {
        let from = &from[..8];
        // SAFETY: the slice has eight elements.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m256i {
        proven!(_mm256_set1_epi32(x))
    }
    #[inline(always)]
    fn xor_i(self, a: __m256i, b: __m256i) -> __m256i {
        proven!(_mm256_xor_si256(a, b))
    }
    #[inline(always)]
    fn mul_i(self, a: __m256i, b: __m256i) -> __m256i {
        proven!(_mm256_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn shift_right_15(self, a: __m256i) -> __m256i {
        proven!(_mm256_srli_epi32::<15>(a))
    }
    #[inline(always)]
    fn shift_right_16(self, a: __m256i) -> __m256i {
        proven!(_mm256_srli_epi32::<16>(a))
    }
    #[inline(always)]
    fn sub_i(self, a: __m256i, b: __m256i) -> __m256i {
        proven!(_mm256_sub_epi32(a, b))
    }
    #[inline(always)]
    fn to_float(self, a: __m256i) -> __m256 {
        proven!(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn between(self, x: __m256i, low: i32, high: i32) -> __m256 {
        proven!(_mm256_castsi256_ps(_mm256_xor_si256(
            _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(low), x), _mm256_cmpgt_epi32(x, _mm256_set1_epi32(high))),
            _mm256_set1_epi32(-1)
        )))
    }
    #[inline(always)]
    fn below_unsigned(self, a: __m256i, b: __m256i) -> __m256 {
        let flip = self.splat_i(i32::MIN);
        proven!(_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_xor_si256(b, flip), _mm256_xor_si256(a, flip))))
    }
    #[inline(always)]
    fn greater(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b))
    }
    #[inline(always)]
    fn equal(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, b))
    }
    #[inline(always)]
    fn any_not_at_most(self, a: __m256, b: __m256) -> bool {
        proven!(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLE_UQ>(a, b))) != 0
    }
    #[inline(always)]
    fn select(self, mask: __m256, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_blendv_ps(b, a, mask))
    }
    #[inline(always)]
    fn keep(self, mask: __m256, a: __m256) -> __m256 {
        proven!(_mm256_and_ps(mask, a))
    }
    #[inline(always)]
    fn transpose(self, from: &[f32], from_step: usize, into: &mut [f32], into_step: usize, factor: Option<f32>) {
        let mut rows = [self.zero(); 8];
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
    fn store_bf16(self, into: &mut [bf16], x: __m256) {
        let into = &mut into[..8];
        let bits = proven!(_mm256_castps_si256(x));
        let odd = proven!(_mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1)));
        let rounded = proven!(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))));
        let nan = proven!(_mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x)));
        let upper = proven!(_mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0_0000), nan)));
        let packed = proven!(_mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256::<1>(upper)));
        // SAFETY: the slice has eight elements of two bytes.
        unsafe { _mm_storeu_si128(into.as_mut_ptr().cast(), packed) }
    }
    #[inline(always)]
    fn store_f16(self, into: &mut [f16], x: __m256) {
        let into = &mut into[..8];
        let bits = proven!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        // SAFETY: the slice has eight elements of two bytes.
        unsafe { _mm_storeu_si128(into.as_mut_ptr().cast(), bits) }
    }
    #[inline(always)]
    fn abs(self, x: __m256) -> __m256 {
        proven!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), x))
    }
    #[inline(always)]
    fn swap_pairs(self, x: __m256) -> __m256 {
        proven!(_mm256_permute_ps::<0b10_11_00_01>(x))
    }
}

/// Three rounds of doubling blocks: 1 → 2 lanes inside 128 bits, then the 128-bit halves.
#[inline(always)]
unsafe fn transpose_registers(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: called from a method of the token only.
    unsafe {
        let (mut pairs, mut fours, mut out) = (r, r, r);
        for i in (0..8).step_by(2) {
            pairs[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
            pairs[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
        }
        for i in (0..8).step_by(4) {
            for half in 0..2 {
                let (x, y) = (_mm256_castps_pd(pairs[i + half]), _mm256_castps_pd(pairs[i + half + 2]));
                fours[i + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(x, y));
                fours[i + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(x, y));
            }
        }
        for i in 0..4 {
            out[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
            out[i + 4] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
        }
        out
    }
}
