//! Activations on vectors, and their derivatives, which take the activation's output.
//!
//! # One exponential, two quotients
//!
//! Both `sigmoid` and `tanh` are quotients of sums of `e^-y` and 1. The usual range reduction (Cody
//! and Waite 1980) writes `y = n ln 2 + r` with an integer `n` and `|r| <= ln 2 / 2`, and with
//!
//! ```text
//! t = 2^n        g = 1 - e^-r = r - r^2 q(r)        e^-y = (1 - g) / t
//! ```
//!
//! where `q` is a polynomial, multiplying numerator and denominator by `t` gives
//!
//! ```text
//! sigmoid(y)  = 1 / (1 + e^-y)                  = t / ((t + 1) - g)
//! tanh(y / 2) = (1 - e^-y) / (1 + e^-y)         = ((t - 1) + g) / ((t + 1) - g)
//! ```
//!
//! What the textbook form `1 / (1 + exp(-x))` loses, it loses by rounding the exponential before it
//! adds 1. Here that rounding does not happen: `t - 1` and `t + 1` are exact wherever it matters, `g`
//! is small, so its error is too, and each sum rounds once. Where `n` is 0, `t - 1` is 0, and `tanh`
//! keeps all the relative accuracy of `g`: no second polynomial is needed for small arguments.
//! Nothing is looked up, so no lane waits for a gather, and there is one division.
//!
//! # How good it is
//!
//! Largest error in units in the last place, wherever the exact result is a normal number; below that
//! the result is 0 or the subnormal number. In f32 these are all arguments that exist
//! (`examples/activations_exhaustive.rs`), in f64 a dense sample (`tests/activations.rs`).
//!
//! |           | f32, fused | f32, `portable` | f64, fused | f64, `portable` |
//! |-----------|------------|-----------------|------------|-----------------|
//! | `sigmoid` | 1.95       | 1.95            | 1.5        | 1.5             |
//! | `tanh`    | 1.97       | 1.996           | 2.0        | 2.1             |
//!
//! A NaN gives a NaN. Results at 0 and the infinities are exact, no result is beyond 1, `tanh` is odd
//! bit for bit, and the f32 functions never decrease from one argument to the next.

use crate::simd::{Broadcast, Element, Lanewise};
use std::f64::consts::{LN_2, LOG2_E};

/// Coefficients of `q`, from the constant term up: `q(r) = q0 - q1 r + q2 r^2 - ...` on
/// `|r| <= 0.3475`. Minimax fits of the relative error of `g`, with coefficients rounded to their type
/// within the fit: 1.4e-8 for f32, 1.9e-17 for f64.
struct Fit {
    f32: [f64; 5],
    f64: [f64; 10],
}

const FIT: Fit = Fit {
    f32: [
        0.4999999701976776,
        0.16666541993618011,
        0.04166749492287636,
        0.008366725407540798,
        0.0013865485088899732,
    ],
    f64: [
        0.5000000000000006,
        0.1666666666666659,
        0.04166666666657301,
        0.008333333333388095,
        0.001388888893269381,
        0.00019841269723379305,
        2.4801503969056115e-05,
        2.7557402450587654e-06,
        2.7626547030824906e-07,
        2.5055783030826014e-08,
    ],
};

/// The fit that gives half of `g` from half of `r`, which saves `tanh` a doubling. The coefficients
/// change by powers of two, so they remain numbers of their type.
const HALF_FIT: Fit = Fit {
    f32: halve(FIT.f32),
    f64: halve(FIT.f64),
};

const fn halve<const N: usize>(mut q: [f64; N]) -> [f64; N] {
    let mut scale = 2.0;
    let mut i = 0;
    while i < N {
        q[i] *= scale;
        scale *= 2.0;
        i += 1;
    }
    q
}

/// The one of two that belongs to the type of number; the choice is made at compile time.
#[inline(always)]
fn choose<E: Element, T>(f32: T, f64: T) -> T {
    if E::MANTISSA_BITS == 23 { f32 } else { f64 }
}

/// `x` in every lane.
#[inline(always)]
fn constant<E: Element, S: Broadcast<E>>(s: S, x: f64) -> S::V {
    s.splat(E::from_f64(x))
}

/// The integer `n` nearest to `y * scale`, and `2^(n + shift)`.
///
/// In a sum with `1.5 * 2^MANTISSA_BITS` there is no room for a fraction, so it is rounded to an
/// integer; with the exponent's bias and `shift` added too, its low bits are an exponent.
#[inline(always)]
fn round_to_power<E: Element, S: Broadcast<E>>(
    s: S,
    y: S::V,
    scale: f64,
    shift: f64,
) -> (S::V, S::V) {
    let bias = choose::<E, _>(127.0, 1023.0);
    let magic = constant(s, (3_u64 << (E::MANTISSA_BITS - 1)) as f64 + bias + shift);
    let sum = y.mul_add(constant(s, scale), magic);
    (sum - magic, sum.low_bits_to_exponent())
}

/// `lead - r^2 q(r)`, which is `g` where `lead` is `r`. After Estrin: neighbouring terms pair up, for
/// a short chain of dependent operations.
#[inline(always)]
fn one_minus_exp<E: Element, S: Broadcast<E>>(s: S, r: S::V, lead: S::V, fit: &Fit) -> S::V {
    let c = |x| constant(s, x);
    let r2 = r * r;
    let q = if E::MANTISSA_BITS == 23 {
        let q = &fit.f32;
        let q01 = r.neg_mul_add(c(q[1]), c(q[0]));
        let q23 = r.neg_mul_add(c(q[3]), c(q[2]));
        r2.mul_add(r2.mul_add(c(q[4]), q23), q01)
    } else {
        let q = &fit.f64;
        let q01 = r.neg_mul_add(c(q[1]), c(q[0]));
        let q23 = r.neg_mul_add(c(q[3]), c(q[2]));
        let q45 = r.neg_mul_add(c(q[5]), c(q[4]));
        let q67 = r.neg_mul_add(c(q[7]), c(q[6]));
        let q89 = r.neg_mul_add(c(q[9]), c(q[8]));
        let r4 = r2 * r2;
        let q03 = r2.mul_add(q23, q01);
        let q47 = r2.mul_add(q67, q45);
        r4.mul_add(r4.mul_add(q89, q47), q03)
    };
    r2.neg_mul_add(q, lead)
}

/// The logistic function `1 / (1 + e^-x)`.
///
/// * Below the lower clamp `n` is one less than the smallest normal exponent, and `t` and the result
///   are 0. Above the upper one the result has long been 1.
/// * `t + 1` would lose `t = ulp / 2` to the tie rule, the one place where the error exceeds 2 units.
///   Adding `t` to `1 - ulp` keeps it, and `ulp` comes back with `r`, where it costs no time: the
///   polynomial takes longer.
/// * `ln 2` is subtracted in two parts. The first has so few bits that its product with `n` is exact
///   also on a level that rounds a product before it adds.
#[inline(always)]
pub fn sigmoid<E: Element, S: Broadcast<E>>(s: S, x: S::V) -> S::V {
    let c = |x| constant(s, x);
    let (lowest, highest) = choose::<E, _>((-88.0, 40.0), (-709.0, 40.0));
    let (ln_2, ln_2_rest) = choose::<E, _>(
        (0.693145751953125, 1.4286068203094173e-06),
        (0.6931471803691238, 1.9082149292705877e-10),
    );
    let ulp = choose::<E, _>(f64::from(f32::EPSILON), f64::EPSILON);

    let y = x.max(c(lowest)).min(c(highest));
    let (n, t) = round_to_power(s, y, LOG2_E, 0.0);
    let r = n.neg_mul_add(c(ln_2_rest), n.neg_mul_add(c(ln_2), y));
    let g = one_minus_exp(s, r, r - c(ulp), &FIT);
    t / ((t + c(1.0 - ulp)) - g)
}

/// The hyperbolic tangent, `(1 - e^-2x) / (1 + e^-2x)` on the magnitude of `x`.
///
/// * Above the clamp the result has long been 1.
/// * All of `y`, `r`, `g` and `t` are halved; the quotient does not notice.
/// * `ln 2` is subtracted in one part: its error grows with `n`, but `tanh` flattens sooner.
#[inline(always)]
pub fn tanh<E: Element, S: Broadcast<E>>(s: S, x: S::V) -> S::V {
    let c = |x| constant(s, x);
    let y = x.abs().min(c(20.0));
    let (n, t) = round_to_power(s, y, 2.0 * LOG2_E, -1.0);
    let r = n.neg_mul_add(c(0.5 * LN_2), y);
    let g = one_minus_exp(s, r, r, &HALF_FIT);
    (((t - c(0.5)) + g) / ((t + c(0.5)) - g)).copysign(x)
}

/// The rectifier: `x`, or 0 where `x` is negative. Its derivative needs no function: the gradient
/// passes where the output is positive, `dy.select_positive(y)`.
#[inline(always)]
pub fn relu<E: Element, S: Broadcast<E>>(_: S, x: S::V) -> S::V {
    x.positive_or_zero()
}

/// The derivative of the sigmoid whose output is `y`: `y (1 - y)`.
#[inline(always)]
pub fn d_sigmoid<E: Element, S: Broadcast<E>>(s: S, y: S::V) -> S::V {
    y * (s.splat(E::ONE) - y)
}

/// The derivative of the hyperbolic tangent whose output is `y`: `1 - y^2`.
#[inline(always)]
pub fn d_tanh<E: Element, S: Broadcast<E>>(s: S, y: S::V) -> S::V {
    y.neg_mul_add(y, s.splat(E::ONE))
}

/// What a recurrence carries on: `v`, or +0 where its magnitude is below [`flush_threshold`]. A NaN
/// stays.
///
/// A value that shrinks at every step ends among the subnormal numbers, where an operation may take a
/// hundred cycles; this ends it earlier.
#[inline(always)]
pub fn flush<E: Element, S: Broadcast<E>>(s: S, v: S::V) -> S::V {
    v.keep_if_at_least(v.abs(), s.splat(flush_threshold()))
}

/// The smallest magnitude that [`flush`] keeps: `2^-100` in f32, `2^-900` in f64.
///
/// It is so far above the smallest normal number, `2^-126` and `2^-1022`, that the product of a kept
/// value and any weight or gate down to `2^-26` is normal as well, and so small that it counts for
/// nothing beside any other term of a sum.
#[inline(always)]
#[must_use]
pub fn flush_threshold<E: Element>() -> E {
    // 2^-100 and 2^-900, written as the bits of an f64: no function for powers is constant.
    E::from_f64(f64::from_bits(
        choose::<E, u64>(1023 - 100, 1023 - 900) << 52,
    ))
}
