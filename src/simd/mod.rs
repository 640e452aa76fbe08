//! Vectors of floats, and the choice of the instructions that work on them.
//!
//! A kernel is written once, as a [`Kernel`]: a value that carries its arguments and a method `run`,
//! generic over a token `S:` [`Simd`]. The token stands for an instruction set; its vectors
//! `S::V:` [`Vector`] are all the arithmetic that a kernel needs. Which token runs is decided at run
//! time by a [`Level`], a small value that is detected once and then passed down:
//!
//! ```
//! use rnncore::simd::{Element, Kernel, Lanewise, Level, Simd, Vector};
//!
//! /// y += a * x
//! struct Axpy<'a> {
//!     a: f32,
//!     x: &'a [f32],
//!     y: &'a mut [f32],
//! }
//!
//! impl Kernel<f32> for Axpy<'_> {
//!     type Output = ();
//!
//!     #[inline(always)]
//!     fn run<S: Simd<f32>>(self, s: S) {
//!         let a = s.splat(self.a);
//!         for (x, y) in self.x.chunks(S::LANES).zip(self.y.chunks_mut(S::LANES)) {
//!             let sum = a.mul_add(s.load_partial(x), s.load_partial(y));
//!             sum.store_partial(y);
//!         }
//!     }
//! }
//!
//! let (x, mut y) = ([1.0_f32; 19], [2.0_f32; 19]);
//! f32::dispatch(Level::detect(), Axpy { a: 3.0, x: &x, y: &mut y });
//! assert_eq!(y, [5.0; 19]);
//! ```
//!
//! # How the instruction set reaches the code
//!
//! A `#[target_feature]` function may use its instructions, and whatever is inlined into it may use
//! them too. So every operation here and every `run` is `#[inline(always)]`, and each level has one
//! function with `#[target_feature]`, [`Simd::enter`], into which all of it dissolves. A method that
//! is not inlined still gives the right values, but each of its operations becomes a call.
//!
//! # Why it is sound
//!
//! A token can be had in two ways only: the portable one always, the others after the processor was
//! asked. A vector can be had from a token only. A value of either type thus proves that its
//! instructions exist, and the safe operations need no check.
//!
//! # The levels
//!
//! | name       | needs                                        | f32 lanes | f64 lanes | file          |
//! |------------|----------------------------------------------|-----------|-----------|---------------|
//! | `portable` | nothing                                      | 4         | 2         | `portable.rs` |
//! | `avx2`     | AVX2 and FMA                                 | 8         | 4         | `avx2.rs`     |
//! | `avx512`   | AVX-512 F, DQ, BW and VL, with AVX2 and FMA  | 16        | 8         | `avx512.rs`   |
//! | `neon`     | AArch64, which always has it                 | 4         | 2         | `neon.rs`     |
//!
//! All of them agree bit for bit on every operation but [`Lanewise::mul_add`] and
//! [`Lanewise::neg_mul_add`], which round once where the level has a fused multiply-add and twice on
//! `portable`. (The bits of a NaN are nobody's promise; that it is one, is.)

#![allow(unsafe_code)] // intrinsics and raw pointers live here, so that kernels need few of either

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod group;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::fmt::{self, Debug, Display, Formatter};
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use group::{Group, Grouped};
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use portable::Portable;

mod sealed {
    /// Nobody else may add an element: unsafe code relies on every bit pattern being a number.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// A type of number that networks are made of: `f32` or `f64`.
pub trait Element:
    sealed::Sealed
    + Copy
    + Default
    + Send
    + Sync
    + PartialEq
    + PartialOrd
    + Debug
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// The number 0.
    const ZERO: Self;
    /// The number 1.
    const ONE: Self;
    /// NumPy's name of the type.
    const NAME: &'static str;
    /// Stored bits of the significand: 23 or 52.
    const MANTISSA_BITS: u32;

    /// The nearest number of this type.
    fn from_f64(x: f64) -> Self;

    /// The same number, exactly.
    fn to_f64(self) -> f64;

    /// The square root, correctly rounded.
    fn sqrt(self) -> Self;

    /// The bits of two numbers in those of one, each rounded to the half of its bits that holds the sign
    /// and the exponent: `low` goes to the lower half, `high` to the upper one. The half of a float32 is
    /// a bfloat16. Rounded to nearest, of two to the even one; a NaN stays one.
    /// [`Vector::unpair`] takes them out.
    fn pair(low: Self, high: Self) -> Self;

    /// Runs `kernel` with the token of `level`: the one place where a run-time value becomes a type.
    fn dispatch<K: Kernel<Self>>(level: Level, kernel: K) -> K::Output;
}

/// Bytes of a cache line, and of the widest vector.
pub const LINE: usize = 64;

/// A computation that any instruction set can run.
pub trait Kernel<E: Element> {
    /// What it returns.
    type Output;

    /// Does the work with the vectors of `s`. Implementations are marked `#[inline(always)]`.
    fn run<S: Simd<E>>(self, s: S) -> Self::Output;
}

/// Whose numbers are computed with: all that an equation asks of an instruction set.
pub trait Broadcast<E: Element>: Copy {
    /// The numbers.
    type V: Lanewise<E>;

    /// `x` in every lane.
    fn splat(self, x: E) -> Self::V;
}

/// A token: the proof that an instruction set is there. Its numbers are the vector of this level.
pub trait Simd<E: Element>: Broadcast<E, V: Vector<E>> + Send + Sync + 'static {
    /// Numbers in one vector.
    const LANES: usize = <Self::V as Vector<E>>::LANES;

    /// Whether the level is there for speed. One that is not takes every row through the same loops (pairs of
    /// bfloat16 apart), for the sake of the module's size; Miri, which knows no other level, shall see all of them.
    const FOR_SPEED: bool = true;

    /// Architectural vector registers: what bounds a kernel's register tile.
    const REGISTERS: usize;

    /// The first `LANES` values of `from`.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline(always)]
    fn load(self, from: &[E]) -> Self::V {
        assert!(from.len() >= Self::LANES, "load: too few values");
        // SAFETY: the slice holds LANES values.
        unsafe { self.load_raw(from.as_ptr()) }
    }

    /// The first `min(from.len(), LANES)` values of `from`, and 0 in the other lanes.
    #[inline(always)]
    fn load_partial(self, from: &[E]) -> Self::V {
        // SAFETY: n is at most LANES and at most the slice's length.
        unsafe { self.load_partial_raw(from.as_ptr(), from.len().min(Self::LANES)) }
    }

    /// The `LANES` values at `from`.
    ///
    /// # Safety
    /// * `from` is valid for reading `LANES` initialised values.
    /// * It is aligned to one value; more is not asked.
    unsafe fn load_raw(self, from: *const E) -> Self::V;

    /// The `n` values at `from`, and 0 in the other lanes. Memory beyond them is not read.
    ///
    /// # Safety
    /// * `n` is at most `LANES`.
    /// * `from` is valid for reading `n` initialised values and aligned to one value.
    unsafe fn load_partial_raw(self, from: *const E, n: usize) -> Self::V;

    /// Asks for `values` to be brought into the nearest cache: they will be needed soon. A hint; where the
    /// processor has no such instruction, nothing.
    #[inline(always)]
    fn prefetch(self, values: &[E]) {
        #[cfg(target_arch = "x86_64")]
        for line in values.chunks(LINE / size_of::<E>()) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: every x86-64 processor has the instruction; it reads nothing, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = values;
    }

    /// Asks for the cache line of a value, if there is one, to be brought into the second-level cache. A hint as
    /// [`Self::prefetch`].
    #[inline(always)]
    fn prefetch_far(self, value: *const E) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            // SAFETY: as above.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(value.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = value;
    }

    /// `value`, which the compiler is kept from computing after any load or store that follows: for loops that
    /// have no register for what is loaded early. Only where a level has so few of them; elsewhere nothing.
    #[inline(always)]
    fn in_order(self, value: Self::V) -> Self::V {
        value
    }

    /// Compiles `kernel` with this level's instructions and runs it. The kernel is inlined here, and this is
    /// not inlined where several callers share it.
    fn enter<K: Kernel<E>>(self, kernel: K) -> K::Output;
}

/// Numbers of which every operation works lane by lane.
pub trait Lanewise<E: Element>:
    Copy
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// `self * b + c`: rounded once, except on `portable`, which multiplies and then adds.
    fn mul_add(self, b: Self, c: Self) -> Self;

    /// `c - self * b`: rounded once, except on `portable`, which multiplies and then subtracts.
    fn neg_mul_add(self, b: Self, c: Self) -> Self;

    /// `if self > other { other } else { self }`: a NaN in `self` stays, a NaN in `other` does not
    /// count, and of two zeros `self` is taken.
    fn min(self, other: Self) -> Self;

    /// `if self < other { other } else { self }`: a NaN in `self` stays, a NaN in `other` does not
    /// count, and of two zeros `self` is taken.
    fn max(self, other: Self) -> Self;

    /// The number without its sign.
    fn abs(self) -> Self;

    /// The magnitude of `self` with the sign of `sign`.
    fn copysign(self, sign: Self) -> Self;

    /// Reads the number's bits as an integer, shifts it left by [`Element::MANTISSA_BITS`], and reads
    /// it as a number again: the low bits become sign and exponent, and the significand becomes 1.
    ///
    /// This makes powers of two. Adding `1.5 * 2^MANTISSA_BITS + bias` to a number leaves its nearest
    /// integer `n`, plus the bias of the exponent, in the low bits of the sum; shifted up, they are
    /// `2^n`, or +0 when `n` is one less than the smallest normal exponent.
    fn low_bits_to_exponent(self) -> Self;

    /// Lanes of `self` where `!(magnitude < threshold)`, which a NaN satisfies; +0 elsewhere.
    fn keep_if_at_least(self, magnitude: Self, threshold: Self) -> Self;

    /// The rectifier: `if self < 0 { +0 } else { self }`. A NaN stays, and so does -0.
    fn positive_or_zero(self) -> Self;

    /// Lanes of `self` where `!(gate <= 0)`, which a NaN satisfies; +0 elsewhere.
    fn select_positive(self, gate: Self) -> Self;
}

/// Some numbers, one a lane, that come from memory and return to it.
pub trait Vector<E: Element>: Lanewise<E> {
    /// Numbers in one vector.
    const LANES: usize;

    /// The lanes of both in turn, `self` first: the lower halves, then the upper halves. Transposes are
    /// made of it.
    fn interleave(self, other: Self) -> (Self, Self);

    /// Both numbers of every lane, each of which [`Element::pair`] made of two: the low ones, the high
    /// ones. Exact.
    fn unpair(self) -> (Self, Self);

    /// Writes all lanes to the beginning of `to`.
    ///
    /// # Panics
    /// When `to` is shorter than `LANES`.
    #[inline(always)]
    fn store(self, to: &mut [E]) {
        assert!(to.len() >= Self::LANES, "store: too little room");
        // SAFETY: the slice has room for LANES values.
        unsafe { self.store_raw(to.as_mut_ptr()) }
    }

    /// Writes the first `min(to.len(), LANES)` lanes to the beginning of `to`.
    #[inline(always)]
    fn store_partial(self, to: &mut [E]) {
        // SAFETY: n is at most LANES and at most the slice's length.
        unsafe { self.store_partial_raw(to.as_mut_ptr(), to.len().min(Self::LANES)) }
    }

    /// Writes all lanes at `to`.
    ///
    /// # Safety
    /// * `to` is valid for writing `LANES` values.
    /// * It is aligned to one value; more is not asked.
    unsafe fn store_raw(self, to: *mut E);

    /// Writes the first `n` lanes at `to`. Memory beyond them is not touched.
    ///
    /// # Safety
    /// * `n` is at most `LANES`.
    /// * `to` is valid for writing `n` values and aligned to one value.
    unsafe fn store_partial_raw(self, to: *mut E, n: usize);
}

/// The instruction set that runs: detected once, passed down as a value, forced by name where a user
/// or a test wants to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Level(Token);

/// What a level holds: its token, which nobody else can make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl Level {
    /// Names of all levels, whether this machine has them or not.
    pub const NAMES: [&'static str; 4] = ["portable", "avx2", "avx512", "neon"];

    /// The best level of this machine. The processor is asked once per process.
    #[must_use]
    pub fn detect() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Level::available().pop().expect("portable is everywhere"))
    }

    /// The level called `name`.
    ///
    /// # Errors
    /// When there is no such level, or this machine lacks it.
    pub fn named(name: &str) -> Result<Level, LevelError> {
        let found = Level::available()
            .into_iter()
            .find(|level| level.name() == name);
        found.ok_or_else(|| LevelError {
            name: name.to_owned(),
        })
    }

    /// All levels of this machine, from the simplest to the best.
    #[must_use]
    pub fn available() -> Vec<Level> {
        let tokens = [
            Some(Token::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Token::Avx2),
            #[cfg(target_arch = "x86_64")]
            Avx512::detect().map(Token::Avx512),
            #[cfg(target_arch = "aarch64")]
            Neon::detect().map(Token::Neon),
        ];
        tokens.into_iter().flatten().map(Level).collect()
    }

    /// Its name: `portable`, `avx2`, `avx512` or `neon`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Token::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Token::Neon(_) => "neon",
        }
    }
}

/// A name that stands for no level, or for one that this machine lacks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LevelError {
    name: String,
}

impl Display for LevelError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Level::available().into_iter().map(Level::name).collect();
        write!(
            f,
            "instruction level: expected one of {}, got {:?}",
            names.join(", "),
            self.name
        )?;
        if Level::NAMES.contains(&self.name.as_str()) {
            write!(f, ", which this machine lacks")?;
        }
        Ok(())
    }
}

impl Error for LevelError {}

macro_rules! element {
    ($E:ident, $name:literal) => {
        impl Element for $E {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NAME: &'static str = $name;
            const MANTISSA_BITS: u32 = $E::MANTISSA_DIGITS - 1;

            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $E
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }

            #[inline(always)]
            fn sqrt(self) -> Self {
                <$E>::sqrt(self)
            }

            fn pair(low: Self, high: Self) -> Self {
                const HALF: u32 = size_of::<$E>() as u32 * 4;
                let [low, high] = [low, high].map(|x| {
                    let bits = x.to_bits();
                    if x.is_nan() {
                        // What makes it one may all be in the lower half.
                        return bits >> HALF | 1 << (Self::MANTISSA_BITS - 1 - HALF);
                    }
                    // A tie carries into an odd upper half only. Beyond the largest number is infinity.
                    let odd = bits >> HALF & 1;
                    (bits + ((1 << (HALF - 1)) - 1 + odd)) >> HALF
                });
                $E::from_bits(high << HALF | low)
            }

            #[inline]
            fn dispatch<K: Kernel<Self>>(level: Level, kernel: K) -> K::Output {
                match level.0 {
                    Token::Portable(s) => Simd::<$E>::enter(s, kernel),
                    #[cfg(target_arch = "x86_64")]
                    Token::Avx2(s) => Simd::<$E>::enter(s, kernel),
                    #[cfg(target_arch = "x86_64")]
                    Token::Avx512(s) => Simd::<$E>::enter(s, kernel),
                    #[cfg(target_arch = "aarch64")]
                    Token::Neon(s) => Simd::<$E>::enter(s, kernel),
                }
            }
        }
    };
}

element!(f32, "float32");
element!(f64, "float64");
