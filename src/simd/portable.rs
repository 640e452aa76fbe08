//! The level that every machine has: plain Rust on small arrays, which the compiler may turn into
//! whatever vectors the target's baseline offers.
//!
//! It multiplies and adds in two roundings: where the baseline lacks a fused multiply-add, asking for
//! one would call a function for every lane.

use super::{Broadcast, Element, Kernel, Lanewise, Simd, Vector};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// The token of the portable level, which proves nothing and needs nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Portable;

/// The one call boundary of this level.
#[inline(never)]
fn enter<E: Element, K: Kernel<E>>(s: impl Simd<E>, kernel: K) -> K::Output {
    kernel.run(s)
}

macro_rules! portable {
    ($V:ident, $E:ident, $lanes:literal, $align:literal) => {
        #[doc = concat!("A vector of ", stringify!($lanes), " `", stringify!($E), "`.")]
        #[derive(Clone, Copy)]
        #[repr(C, align($align))]
        pub struct $V([$E; $lanes]);

        impl $V {
            /// A loop and not `array::from_fn`, which leaves copies through the stack.
            #[inline(always)]
            fn zip(mut self, other: Self, op: impl Fn($E, $E) -> $E) -> Self {
                for i in 0..$lanes {
                    self.0[i] = op(self.0[i], other.0[i]);
                }
                self
            }
        }

        impl Add for $V {
            type Output = Self;

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.zip(other, |a, b| a + b)
            }
        }

        impl Sub for $V {
            type Output = Self;

            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                self.zip(other, |a, b| a - b)
            }
        }

        impl Mul for $V {
            type Output = Self;

            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                self.zip(other, |a, b| a * b)
            }
        }

        impl Div for $V {
            type Output = Self;

            #[inline(always)]
            fn div(self, other: Self) -> Self {
                self.zip(other, |a, b| a / b)
            }
        }

        impl Neg for $V {
            type Output = Self;

            #[inline(always)]
            fn neg(self) -> Self {
                self.zip(self, |a, _| -a)
            }
        }

        impl Lanewise<$E> for $V {
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                self * b + c
            }

            #[inline(always)]
            fn neg_mul_add(self, b: Self, c: Self) -> Self {
                c - self * b
            }

            #[inline(always)]
            fn min(self, other: Self) -> Self {
                self.zip(other, |a, b| if a > b { b } else { a })
            }

            #[inline(always)]
            fn max(self, other: Self) -> Self {
                self.zip(other, |a, b| if a < b { b } else { a })
            }

            #[inline(always)]
            fn abs(self) -> Self {
                self.zip(self, |a, _| a.abs())
            }

            #[inline(always)]
            fn copysign(self, sign: Self) -> Self {
                self.zip(sign, $E::copysign)
            }

            #[inline(always)]
            fn low_bits_to_exponent(self) -> Self {
                self.zip(self, |a, _| $E::from_bits(a.to_bits() << $E::MANTISSA_BITS))
            }

            #[inline(always)]
            fn keep_if_at_least(self, magnitude: Self, threshold: Self) -> Self {
                let tiny = magnitude.zip(threshold, |a, b| if a < b { 1.0 } else { 0.0 });
                self.zip(tiny, |a, tiny| if tiny == 1.0 { 0.0 } else { a })
            }

            #[inline(always)]
            fn positive_or_zero(self) -> Self {
                self.zip(self, |a, _| if a < 0.0 { 0.0 } else { a })
            }

            #[inline(always)]
            fn select_positive(self, gate: Self) -> Self {
                self.zip(gate, |a, gate| if gate <= 0.0 { 0.0 } else { a })
            }
        }

        impl Vector<$E> for $V {
            const LANES: usize = $lanes;

            #[inline(always)]
            fn interleave(self, other: Self) -> (Self, Self) {
                let (mut low, mut high) = (self, self);
                for lane in 0..$lanes / 2 {
                    (low.0[2 * lane], low.0[2 * lane + 1]) = (self.0[lane], other.0[lane]);
                    let upper = lane + $lanes / 2;
                    (high.0[2 * lane], high.0[2 * lane + 1]) = (self.0[upper], other.0[upper]);
                }
                (low, high)
            }

            #[inline(always)]
            fn unpair(self) -> (Self, Self) {
                const HALF: u32 = size_of::<$E>() as u32 * 4;
                (
                    self.zip(self, |a, _| $E::from_bits(a.to_bits() << HALF)),
                    self.zip(self, |a, _| $E::from_bits(a.to_bits() & !0 << HALF)),
                )
            }

            #[inline(always)]
            unsafe fn store_raw(self, to: *mut $E) {
                // SAFETY: the caller vouches for room for LANES values; an array has the alignment
                // of its elements.
                unsafe { to.cast::<[$E; $lanes]>().write(self.0) }
            }

            #[inline(always)]
            unsafe fn store_partial_raw(self, to: *mut $E, n: usize) {
                for i in 0..n {
                    // SAFETY: the caller vouches for room for n values.
                    unsafe { to.add(i).write(self.0[i]) }
                }
            }
        }

        impl Broadcast<$E> for Portable {
            type V = $V;

            #[inline(always)]
            fn splat(self, x: $E) -> $V {
                $V([x; $lanes])
            }
        }

        impl Simd<$E> for Portable {
            const FOR_SPEED: bool = cfg!(miri);
            const REGISTERS: usize = if cfg!(target_arch = "aarch64") {
                32
            } else {
                16
            };

            #[inline(always)]
            unsafe fn load_raw(self, from: *const $E) -> $V {
                // SAFETY: the caller vouches for LANES values; an array has the alignment of its
                // elements.
                $V(unsafe { from.cast::<[$E; $lanes]>().read() })
            }

            #[inline(always)]
            unsafe fn load_partial_raw(self, from: *const $E, n: usize) -> $V {
                let mut lanes = [0.0; $lanes];
                for (i, lane) in lanes.iter_mut().enumerate().take(n) {
                    // SAFETY: the caller vouches for n values.
                    *lane = unsafe { from.add(i).read() };
                }
                $V(lanes)
            }

            #[inline(always)]
            fn enter<K: Kernel<$E>>(self, kernel: K) -> K::Output {
                enter(self, kernel)
            }
        }
    };
}

portable!(F32x4, f32, 4, 16);
portable!(F64x2, f64, 2, 16);
