//! What an activation's result is held against: the exact value, and the distance from it in units in
//! the last place. Shared by `tests/activations.rs` and `examples/activations_exhaustive.rs`.
//!
//! For f32 the exact value is the standard library's f64 function, whose error is 2^-29 of an f32
//! unit. For f64 it is a sum of two f64 ("double-double", Dekker 1971), some 100 bits, computed here.

use rnncore::math;
use rnncore::simd::{Element, Kernel, Level, Simd, Vector};

/// The functions under test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `tanh x`
    Tanh,
}

impl Activation {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Sigmoid, Self::Tanh];

    /// `y[i] = f(x[i])` with the vectors of `level`.
    pub fn apply<E: Element>(self, level: Level, x: &[E], y: &mut [E]) {
        assert_eq!(x.len(), y.len());
        E::dispatch(
            level,
            Apply {
                function: self,
                x,
                y,
            },
        );
    }
}

struct Apply<'a, E> {
    function: Activation,
    x: &'a [E],
    y: &'a mut [E],
}

impl<E: Element> Kernel<E> for Apply<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        for (x, y) in self.x.chunks(S::LANES).zip(self.y.chunks_mut(S::LANES)) {
            let x = s.load_partial(x);
            let result = match self.function {
                Activation::Sigmoid => math::sigmoid(s, x),
                Activation::Tanh => math::tanh(s, x),
            };
            result.store_partial(y);
        }
    }
}

/// A type of number with an exact value to hold it against.
pub trait Checked: Element {
    /// Largest error allowed, in units in the last place.
    const BAR: f64;

    /// `f(self)`, with at least twenty bits more than the type has.
    fn exact(self, f: Activation) -> Exact;
}

impl Checked for f32 {
    const BAR: f64 = 2.0;

    fn exact(self, f: Activation) -> Exact {
        let x = f64::from(self);
        let hi = match f {
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
        };
        Exact {
            hi,
            lo: 0.0,
            scale: 1.0,
        }
    }
}

impl Checked for f64 {
    const BAR: f64 = 4.0;

    fn exact(self, f: Activation) -> Exact {
        match f {
            Activation::Sigmoid => sigmoid(self),
            Activation::Tanh => tanh(self),
        }
    }
}

/// `(hi + lo) / scale`. The scale, a power of two, keeps `lo` out of the subnormal numbers.
#[derive(Clone, Copy, Debug)]
pub struct Exact {
    /// The value times `scale`, rounded.
    pub hi: f64,
    /// What the rounding left.
    pub lo: f64,
    /// 1, or 2^200 for tiny values.
    pub scale: f64,
}

impl Exact {
    /// The distance of `got` in units in the last place of the exact value. Where that is not a
    /// normal number 0 is right too, and a subnormal unit is the measure. A NaN is infinitely far from
    /// everything but a NaN.
    pub fn distance<E: Checked>(self, got: E) -> f64 {
        if self.hi.is_nan() || got.to_f64().is_nan() {
            let both = self.hi.is_nan() && got.to_f64().is_nan();
            return if both { 0.0 } else { f64::INFINITY };
        }
        let smallest_exponent = if E::MANTISSA_BITS == 23 { -126 } else { -1022 };
        let binade = exponent(self.hi) - exponent(self.scale);
        if got == E::ZERO && (binade < smallest_exponent || self.hi == 0.0) {
            return 0.0;
        }
        let unit = binade.max(smallest_exponent) - E::MANTISSA_BITS as i32;
        let error = (got.to_f64() * self.scale - self.hi) - self.lo;
        // In two steps, each within the range of f64, where a subnormal's unit has no inverse.
        let shift = -unit - exponent(self.scale);
        error.abs() * power_of_two(shift / 2) * power_of_two(shift - shift / 2)
    }
}

/// The exponent of the binade that `x` is in; that of the smallest normal number for smaller ones.
fn exponent(x: f64) -> i32 {
    let biased = (x.to_bits() >> 52 & 0x7ff) as i32;
    biased.max(1) - 1023
}

/// `2^exponent`, exactly, which `powi` does not promise.
pub fn power_of_two(exponent: i32) -> f64 {
    assert!((-1022..=1023).contains(&exponent));
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// An unevaluated sum of two f64, the second at most half a unit of the first.
#[derive(Clone, Copy)]
struct Double(f64, f64);

impl Double {
    /// The sum of two f64, exactly (Knuth's two-sum).
    fn sum(a: f64, b: f64) -> Self {
        let s = a + b;
        let t = s - a;
        Self(s, (a - (s - t)) + (b - t))
    }

    /// The product of two f64, exactly.
    fn product(a: f64, b: f64) -> Self {
        let p = a * b;
        Self(p, a.mul_add(b, -p))
    }

    fn plus(self, other: Self) -> Self {
        let high = Self::sum(self.0, other.0);
        let low = Self::sum(self.1, other.1);
        let first = Self::sum(high.0, high.1 + low.0);
        Self::sum(first.0, first.1 + low.1)
    }

    fn times(self, other: Self) -> Self {
        let p = Self::product(self.0, other.0);
        Self::sum(p.0, p.1 + (self.0 * other.1 + self.1 * other.0))
    }

    /// Long division, three digits of 53 bits.
    fn over(self, other: Self) -> Self {
        let mut rest = self;
        let mut digits = [0.0; 3];
        for digit in &mut digits {
            *digit = rest.0 / other.0;
            rest = rest.plus(other.times(Self(-*digit, 0.0)));
        }
        Self::sum(digits[0], digits[1]).plus(Self(digits[2], 0.0))
    }

    /// Exact for a power of two.
    fn scaled(self, by: f64) -> Self {
        Self(self.0 * by, self.1 * by)
    }
}

const ONE: Double = Double(1.0, 0.0);

/// ln 2 in three parts, of which the first leaves room for a product with any exponent.
const LN_2: [f64; 3] = [
    0.6931471805592082,
    7.371002565167799e-13,
    1.94704509238075e-31,
];

/// `n` and `e^r - 1`, so that `e^y = 2^n e^r`, for `|y|` up to 745.
fn reduced(y: f64) -> (i32, Double) {
    let n = (y / std::f64::consts::LN_2).round();
    let r = Double::sum(y, -n * LN_2[0]).plus(Double::product(-n, LN_2[1]));
    let r = r.plus(Double(-n * LN_2[2], 0.0));
    // The Taylor series of (e^r - 1) / r, from its 28th term inwards.
    let series = (2..=28).rev().fold(ONE, |tail, k| {
        r.times(tail).over(Double(f64::from(k), 0.0)).plus(ONE)
    });
    (n as i32, r.times(series))
}

/// `1 / (1 + e^-x)`, from `e^x` where `x` is negative.
fn sigmoid(x: f64) -> Exact {
    if x.is_nan() || !(-745.0..100.0).contains(&x) {
        let hi = if x.is_nan() {
            x
        } else {
            f64::from(u8::from(x > 0.0))
        };
        return Exact {
            hi,
            lo: 0.0,
            scale: 1.0,
        };
    }
    let scale = if x < -600.0 { power_of_two(200) } else { 1.0 };
    let (n, m) = reduced(-x.abs());
    // Where there is a scale, e^x is nothing beside 1.
    let e = m
        .plus(ONE)
        .scaled(power_of_two(if scale > 1.0 { n + 200 } else { n }));
    let denominator = if scale > 1.0 { ONE } else { ONE.plus(e) };
    let y = (if x < 0.0 { e } else { ONE }).over(denominator);
    Exact {
        hi: y.0,
        lo: y.1,
        scale,
    }
}

/// `(1 - e^-2|x|) / (1 + e^-2|x|)` with the sign of `x`.
fn tanh(x: f64) -> Exact {
    let tiny = x.abs() < 1e-100; // tanh x = x (1 - x^2 / 3 + ...)
    if x.is_nan() || tiny || x.abs() > 300.0 {
        let hi = if x.is_nan() || tiny { x } else { x.signum() };
        return Exact {
            hi,
            lo: 0.0,
            scale: 1.0,
        };
    }
    let (n, m) = reduced(-2.0 * x.abs());
    let power = power_of_two(n);
    let m = m.scaled(power).plus(Double::sum(power, -1.0)); // e^-2|x| - 1
    let y = m.scaled(-x.signum()).over(m.plus(Double(2.0, 0.0)));
    Exact {
        hi: y.0,
        lo: y.1,
        scale: 1.0,
    }
}
