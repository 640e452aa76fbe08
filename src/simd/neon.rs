//! NEON, which every AArch64 processor has: 4 f32 or 2 f64 in each of 32 registers.
//!
//! Its minimum and maximum instructions return a NaN for a NaN on either side, unlike those of the
//! other levels, so both are a comparison and a selection here. Partial vectors pass through a small
//! array: the instruction set has no masked loads and stores.

use super::{Broadcast, Element, Kernel, Lanewise, Simd, Vector};
use std::arch::aarch64::*;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// The token of NEON: proof that the processor has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neon(());

impl Neon {
    /// The token, on a processor that has the instructions.
    pub(super) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

/// The one function of this level that is compiled with its instructions.
#[target_feature(enable = "neon")]
#[inline(never)]
fn enter<E: Element, K: Kernel<E>>(s: impl Simd<E>, kernel: K) -> K::Output {
    kernel.run(s)
}

macro_rules! neon {
    (
        $V:ident, $E:ident, $lanes:literal, $Register:ident, $Bits:ident,
        $dup:ident, $ld1:ident, $st1:ident, $dup_bits:ident, $to_bits:ident, $from_bits:ident,
        $add:ident, $sub:ident, $mul:ident, $div:ident, $fma:ident, $fms:ident, $abs:ident, $neg:ident,
        $select:ident, $clear:ident, $greater:ident, $less:ident, $less_equal:ident, $shift_left:ident, $zip_low:ident, $zip_high:ident
    ) => {
        #[doc = concat!("A vector of ", stringify!($lanes), " `", stringify!($E), "`.")]
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        pub struct $V($Register);

        impl $V {
            /// +0 in the lanes that `mask` sets, `self` in the others.
            #[inline(always)]
            fn clear(self, mask: $Bits) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $from_bits($clear($to_bits(self.0), mask)) })
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
                Self(unsafe { $neg(self.0) })
            }
        }

        impl Lanewise<$E> for $V {
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $fma(c.0, self.0, b.0) })
            }

            #[inline(always)]
            fn neg_mul_add(self, b: Self, c: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $fms(c.0, self.0, b.0) })
            }

            #[inline(always)]
            fn min(self, other: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $select($greater(self.0, other.0), other.0, self.0) })
            }

            #[inline(always)]
            fn max(self, other: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $select($less(self.0, other.0), other.0, self.0) })
            }

            #[inline(always)]
            fn abs(self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $abs(self.0) })
            }

            #[inline(always)]
            fn copysign(self, sign: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                Self(unsafe { $select($dup_bits((-0.0 as $E).to_bits()), sign.0, self.0) })
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
                self.clear(unsafe { $less(magnitude.0, threshold.0) })
            }

            #[inline(always)]
            fn positive_or_zero(self) -> Self {
                // SAFETY: a vector proves the instructions.
                self.clear(unsafe { $less(self.0, $dup(0.0)) })
            }

            #[inline(always)]
            fn select_positive(self, gate: Self) -> Self {
                // SAFETY: a vector proves the instructions.
                self.clear(unsafe { $less_equal(gate.0, $dup(0.0)) })
            }
        }

        impl Vector<$E> for $V {
            const LANES: usize = $lanes;

            #[inline(always)]
            fn interleave(self, other: Self) -> (Self, Self) {
                // SAFETY: a vector proves the instructions.
                unsafe {
                    (
                        Self($zip_low(self.0, other.0)),
                        Self($zip_high(self.0, other.0)),
                    )
                }
            }

            #[inline(always)]
            fn unpair(self) -> (Self, Self) {
                const HALF: i32 = size_of::<$E>() as i32 * 4;
                // SAFETY: a vector proves the instructions.
                unsafe {
                    let bits = $to_bits(self.0);
                    (
                        Self($from_bits($shift_left::<HALF>(bits))),
                        Self($from_bits($clear(bits, $dup_bits((1 << HALF) - 1)))),
                    )
                }
            }

            #[inline(always)]
            unsafe fn store_raw(self, to: *mut $E) {
                // SAFETY: the caller vouches for room for LANES values.
                unsafe { $st1(to, self.0) }
            }

            #[inline(always)]
            unsafe fn store_partial_raw(self, to: *mut $E, n: usize) {
                let mut lanes = [0.0; $lanes];
                // SAFETY: the array has room for LANES values.
                unsafe { $st1(lanes.as_mut_ptr(), self.0) };
                for (i, lane) in lanes.iter().enumerate().take(n) {
                    // SAFETY: the caller vouches for room for n values.
                    unsafe { to.add(i).write(*lane) }
                }
            }
        }

        impl Broadcast<$E> for Neon {
            type V = $V;

            #[inline(always)]
            fn splat(self, x: $E) -> $V {
                // SAFETY: the token proves the instructions.
                $V(unsafe { $dup(x) })
            }
        }

        impl Simd<$E> for Neon {
            const REGISTERS: usize = 32;

            #[inline(always)]
            unsafe fn load_raw(self, from: *const $E) -> $V {
                // SAFETY: the caller vouches for LANES values.
                $V(unsafe { $ld1(from) })
            }

            #[inline(always)]
            unsafe fn load_partial_raw(self, from: *const $E, n: usize) -> $V {
                let mut lanes = [0.0; $lanes];
                for (i, lane) in lanes.iter_mut().enumerate().take(n) {
                    // SAFETY: the caller vouches for n values.
                    *lane = unsafe { from.add(i).read() };
                }
                // SAFETY: the array holds LANES values.
                $V(unsafe { $ld1(lanes.as_ptr()) })
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
neon!(
    F32x4, f32, 4, float32x4_t, uint32x4_t,
    vdupq_n_f32, vld1q_f32, vst1q_f32, vdupq_n_u32, vreinterpretq_u32_f32, vreinterpretq_f32_u32,
    vaddq_f32, vsubq_f32, vmulq_f32, vdivq_f32, vfmaq_f32, vfmsq_f32, vabsq_f32, vnegq_f32,
    vbslq_f32, vbicq_u32, vcgtq_f32, vcltq_f32, vcleq_f32, vshlq_n_u32,
    vzip1q_f32, vzip2q_f32
);

#[rustfmt::skip] // one line for each line of the macro's head
neon!(
    F64x2, f64, 2, float64x2_t, uint64x2_t,
    vdupq_n_f64, vld1q_f64, vst1q_f64, vdupq_n_u64, vreinterpretq_u64_f64, vreinterpretq_f64_u64,
    vaddq_f64, vsubq_f64, vmulq_f64, vdivq_f64, vfmaq_f64, vfmsq_f64, vabsq_f64, vnegq_f64,
    vbslq_f64, vbicq_u64, vcgtq_f64, vcltq_f64, vcleq_f64, vshlq_n_u64,
    vzip1q_f64, vzip2q_f64
);
