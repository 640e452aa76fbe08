//! AVX2 with FMA: 8 f32 or 4 f64 in each of 16 registers.
//!
//! Partial vectors go through masked loads and stores, whose masks are windows of one static array.

use super::{Broadcast, Element, Kernel, Lanewise, Simd, Vector};
use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// The token of AVX2 and FMA: proof that the processor has both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// The token, on a processor that has the instructions.
    pub(super) fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        there.then_some(Self(()))
    }
}

/// The one function of this level that is compiled with its instructions.
#[target_feature(enable = "avx2,fma")]
#[inline(never)]
fn enter<E: Element, K: Kernel<E>>(s: impl Simd<E>, kernel: K) -> K::Output {
    kernel.run(s)
}

/// A run of set words, then a run of clear ones: the window of `lanes` words that begins `n` words
/// before the middle has its first `n` words set.
static WINDOWS_32: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
static WINDOWS_64: [i64; 8] = [-1, -1, -1, -1, 0, 0, 0, 0];

macro_rules! avx2 {
    (
        $V:ident, $E:ident, $lanes:literal, $Register:ident, $windows:ident,
        $set1:ident, $zero:ident, $loadu:ident, $storeu:ident, $maskload:ident, $maskstore:ident,
        $add:ident, $sub:ident, $mul:ident, $div:ident, $fmadd:ident, $fnmadd:ident,
        $min:ident, $max:ident, $and:ident, $andnot:ident, $or:ident, $xor:ident, $cmp:ident,
        $to_bits:ident, $from_bits:ident, $shift_left:ident, $unpack_low:ident, $unpack_high:ident, $permute:ident
    ) => {
        #[doc = concat!("A vector of ", stringify!($lanes), " `", stringify!($E), "`.")]
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        pub struct $V($Register);

        impl $V {
            /// The mask register whose first `n` lanes are set.
            ///
            /// # Safety
            /// * `n` is at most the number of lanes.
            #[inline(always)]
            unsafe fn mask(n: usize) -> __m256i {
                // SAFETY: the array holds two vectors, and the window begins at most one before its
                // middle. Masks are made while loading or storing, that is, with a token or a vector.
                unsafe { _mm256_loadu_si256($windows.as_ptr().add($lanes - n).cast()) }
            }

            /// The sign bit of every lane.
            #[inline(always)]
            fn signs() -> $Register {
                // SAFETY: called with a vector at hand, which proves the instructions.
                unsafe { $set1(-0.0) }
            }
        }

        impl Add for $V {
            type Output = Self;

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $add(self.0, other.0) })
            }
        }

        impl Sub for $V {
            type Output = Self;

            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $sub(self.0, other.0) })
            }
        }

        impl Mul for $V {
            type Output = Self;

            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $mul(self.0, other.0) })
            }
        }

        impl Div for $V {
            type Output = Self;

            #[inline(always)]
            fn div(self, other: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $div(self.0, other.0) })
            }
        }

        impl Neg for $V {
            type Output = Self;

            #[inline(always)]
            fn neg(self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $xor(self.0, Self::signs()) })
            }
        }

        impl Lanewise<$E> for $V {
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $fmadd(self.0, b.0, c.0) })
            }

            #[inline(always)]
            fn neg_mul_add(self, b: Self, c: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $fnmadd(self.0, b.0, c.0) })
            }

            /// The instruction returns its second operand on a NaN and on two zeros.
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $min(other.0, self.0) })
            }

            /// The instruction returns its second operand on a NaN and on two zeros.
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $max(other.0, self.0) })
            }

            #[inline(always)]
            fn abs(self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $andnot(Self::signs(), self.0) })
            }

            #[inline(always)]
            fn copysign(self, sign: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $or(self.abs().0, $and(Self::signs(), sign.0)) })
            }

            #[inline(always)]
            fn low_bits_to_exponent(self) -> Self {
                const BITS: i32 = <$E as Element>::MANTISSA_BITS as i32;
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $from_bits($shift_left::<BITS>($to_bits(self.0))) })
            }

            #[inline(always)]
            fn keep_if_at_least(self, magnitude: Self, threshold: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $and($cmp::<_CMP_NLT_UQ>(magnitude.0, threshold.0), self.0) })
            }

            #[inline(always)]
            fn positive_or_zero(self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $max($zero(), self.0) })
            }

            #[inline(always)]
            fn select_positive(self, gate: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $and($cmp::<_CMP_NLE_UQ>(gate.0, $zero()), self.0) })
            }
        }

        impl Vector<$E> for $V {
            const LANES: usize = $lanes;

            #[inline(always)]
            fn interleave(self, other: Self) -> (Self, Self) {
                // SAFETY: a vector proves the instructions.
                unsafe {
                    // Within each half of the register, then the halves into place.
                    let (low, high) = ($unpack_low(self.0, other.0), $unpack_high(self.0, other.0));
                    (
                        Self($permute::<0x20>(low, high)),
                        Self($permute::<0x31>(low, high)),
                    )
                }
            }

            #[inline(always)]
            fn unpair(self) -> (Self, Self) {
                const HALF: i32 = size_of::<$E>() as i32 * 4;
                // SAFETY: a vector proves the instructions.
                unsafe {
                    (
                        Self($from_bits($shift_left::<HALF>($to_bits(self.0)))),
                        Self($and(self.0, $set1($E::from_bits(!0 << HALF)))),
                    )
                }
            }

            #[inline(always)]
            unsafe fn store_raw(self, to: *mut $E) {
                // SAFETY: the caller vouches for room for LANES values.
                unsafe { $storeu(to, self.0) }
            }

            #[inline(always)]
            unsafe fn store_partial_raw(self, to: *mut $E, n: usize) {
                // SAFETY: the caller vouches for n and for room for n values; others are masked out.
                unsafe { $maskstore(to, Self::mask(n), self.0) }
            }
        }

        impl Broadcast<$E> for Avx2 {
            type V = $V;

            #[inline(always)]
            fn splat(self, x: $E) -> $V {
                // SAFETY: the token proves the instructions.
                $V(unsafe { $set1(x) })
            }
        }

        impl Simd<$E> for Avx2 {
            const REGISTERS: usize = 16;

            #[inline(always)]
            fn in_order(self, value: $V) -> $V {
                /// # Safety
                /// * The processor has the instructions.
                #[target_feature(enable = "avx2,fma")]
                #[inline]
                unsafe fn here(mut value: $Register) -> $Register {
                    // SAFETY: no instruction, but the compiler must have the value, and may not know that
                    // memory stays as it is.
                    unsafe {
                        std::arch::asm!("/* {} */", inout(ymm_reg) value, options(nostack, preserves_flags));
                    }
                    value
                }
                // SAFETY: the token proves the instructions.
                $V(unsafe { here(value.0) })
            }

            #[inline(always)]
            unsafe fn load_raw(self, from: *const $E) -> $V {
                // SAFETY: the caller vouches for LANES values.
                $V(unsafe { $loadu(from) })
            }

            #[inline(always)]
            unsafe fn load_partial_raw(self, from: *const $E, n: usize) -> $V {
                // SAFETY: the caller vouches for n and for n values; others are masked out.
                $V(unsafe { $maskload(from, $V::mask(n)) })
            }

            #[inline(always)]
            fn enter<K: Kernel<$E>>(self, kernel: K) -> K::Output {
                // SAFETY: the token proves the instructions.
                unsafe { enter(self, kernel) }
            }
        }
    };
}

#[rustfmt::skip] // one line for each line of the macro's head
avx2!(
    F32x8, f32, 8, __m256, WINDOWS_32,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_maskload_ps, _mm256_maskstore_ps,
    _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_div_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps,
    _mm256_min_ps, _mm256_max_ps, _mm256_and_ps, _mm256_andnot_ps, _mm256_or_ps, _mm256_xor_ps, _mm256_cmp_ps,
    _mm256_castps_si256, _mm256_castsi256_ps, _mm256_slli_epi32,
    _mm256_unpacklo_ps, _mm256_unpackhi_ps, _mm256_permute2f128_ps
);

#[rustfmt::skip] // one line for each line of the macro's head
avx2!(
    F64x4, f64, 4, __m256d, WINDOWS_64,
    _mm256_set1_pd, _mm256_setzero_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_maskload_pd, _mm256_maskstore_pd,
    _mm256_add_pd, _mm256_sub_pd, _mm256_mul_pd, _mm256_div_pd, _mm256_fmadd_pd, _mm256_fnmadd_pd,
    _mm256_min_pd, _mm256_max_pd, _mm256_and_pd, _mm256_andnot_pd, _mm256_or_pd, _mm256_xor_pd, _mm256_cmp_pd,
    _mm256_castpd_si256, _mm256_castsi256_pd, _mm256_slli_epi64,
    _mm256_unpacklo_pd, _mm256_unpackhi_pd, _mm256_permute2f128_pd
);
