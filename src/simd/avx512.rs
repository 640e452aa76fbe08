//! AVX-512 with F, DQ, BW and VL: 16 f32 or 8 f64 in each of 32 registers.
//!
//! Partial vectors and selections go through the mask registers.

use super::{Broadcast, Element, Kernel, Lanewise, Simd, Vector};
use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// The token of AVX-512 F, DQ, BW and VL, AVX2 and FMA: proof that the processor has them all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// The token, on a processor that has the instructions.
    pub(super) fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma");
        there.then_some(Self(()))
    }
}

/// The one function of this level that is compiled with its instructions.
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
#[inline(never)]
fn enter<E: Element, K: Kernel<E>>(s: impl Simd<E>, kernel: K) -> K::Output {
    kernel.run(s)
}

macro_rules! avx512 {
    (
        $V:ident, $E:ident, $lanes:literal, $Register:ident, $Mask:ident,
        $set1:ident, $zero:ident, $loadu:ident, $storeu:ident, $maskload:ident, $maskstore:ident,
        $add:ident, $sub:ident, $mul:ident, $div:ident, $fmadd:ident, $fnmadd:ident,
        $min:ident, $max:ident, $and:ident, $andnot:ident, $or:ident, $xor:ident, $cmp:ident, $maskmov:ident,
        $to_bits:ident, $from_bits:ident, $shift_left:ident, $permute:ident, $indices:expr
    ) => {
        #[doc = concat!("A vector of ", stringify!($lanes), " `", stringify!($E), "`.")]
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        pub struct $V($Register);

        impl $V {
            /// The mask whose first `n` lanes are set; `n` is at most the number of lanes.
            #[inline(always)]
            fn mask(n: usize) -> $Mask {
                ((1_u32 << n) - 1) as $Mask
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
                const BITS: u32 = <$E as Element>::MANTISSA_BITS;
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $from_bits($shift_left::<BITS>($to_bits(self.0))) })
            }

            #[inline(always)]
            fn keep_if_at_least(self, magnitude: Self, threshold: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $maskmov($cmp::<_CMP_NLT_UQ>(magnitude.0, threshold.0), self.0) })
            }

            #[inline(always)]
            fn positive_or_zero(self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $max($zero(), self.0) })
            }

            #[inline(always)]
            fn select_positive(self, gate: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $maskmov($cmp::<_CMP_NLE_UQ>(gate.0, $zero()), self.0) })
            }
        }

        impl Vector<$E> for $V {
            const LANES: usize = $lanes;

            #[inline(always)]
            fn interleave(self, other: Self) -> (Self, Self) {
                // SAFETY: a vector proves the instructions.
                unsafe {
                    let (low, high) = $indices;
                    (
                        Self($permute(self.0, low, other.0)),
                        Self($permute(self.0, high, other.0)),
                    )
                }
            }

            #[inline(always)]
            fn unpair(self) -> (Self, Self) {
                const HALF: u32 = size_of::<$E>() as u32 * 4;
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

        impl Broadcast<$E> for Avx512 {
            type V = $V;

            #[inline(always)]
            fn splat(self, x: $E) -> $V {
                // SAFETY: the token proves the instructions.
                $V(unsafe { $set1(x) })
            }
        }

        impl Simd<$E> for Avx512 {
            const REGISTERS: usize = 32;

            #[inline(always)]
            unsafe fn load_raw(self, from: *const $E) -> $V {
                // SAFETY: the caller vouches for LANES values.
                $V(unsafe { $loadu(from) })
            }

            #[inline(always)]
            unsafe fn load_partial_raw(self, from: *const $E, n: usize) -> $V {
                // SAFETY: the caller vouches for n and for n values; others are masked out.
                $V(unsafe { $maskload($V::mask(n), from) })
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
avx512!(
    F32x16, f32, 16, __m512, __mmask16,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mask_storeu_ps,
    _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_div_ps, _mm512_fmadd_ps, _mm512_fnmadd_ps,
    _mm512_min_ps, _mm512_max_ps, _mm512_and_ps, _mm512_andnot_ps, _mm512_or_ps, _mm512_xor_ps, _mm512_cmp_ps_mask, _mm512_maskz_mov_ps,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_slli_epi32,
    _mm512_permutex2var_ps, (
        _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
        _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31),
    )
);

#[rustfmt::skip] // one line for each line of the macro's head
avx512!(
    F64x8, f64, 8, __m512d, __mmask8,
    _mm512_set1_pd, _mm512_setzero_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_maskz_loadu_pd, _mm512_mask_storeu_pd,
    _mm512_add_pd, _mm512_sub_pd, _mm512_mul_pd, _mm512_div_pd, _mm512_fmadd_pd, _mm512_fnmadd_pd,
    _mm512_min_pd, _mm512_max_pd, _mm512_and_pd, _mm512_andnot_pd, _mm512_or_pd, _mm512_xor_pd, _mm512_cmp_pd_mask, _mm512_maskz_mov_pd,
    _mm512_castpd_si512, _mm512_castsi512_pd, _mm512_slli_epi64,
    _mm512_permutex2var_pd, (
        _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11),
        _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15),
    )
);
