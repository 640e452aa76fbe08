//! Every operation of every level of this machine, against the same words in scalars.

use super::*;

/// A kernel that needs no output beyond slices: `run` gets the inputs and the room.
struct Try<'a, E> {
    what: Operation,
    /// Three operands of as many numbers.
    operands: [&'a [E]; 3],
    out: &'a mut [E],
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Add,
    Sub,
    Mul,
    Div,
    Neg,
    MulAdd,
    NegMulAdd,
    Min,
    Max,
    Abs,
    Copysign,
    KeepIfAtLeast,
    PositiveOrZero,
    SelectPositive,
    LowBitsToExponent,
}

use Operation::*;

/// Those that have a definition in scalars; the other one has a test of its own.
const OPERATIONS: [Operation; 14] = [
    Add,
    Sub,
    Mul,
    Div,
    Neg,
    MulAdd,
    NegMulAdd,
    Min,
    Max,
    Abs,
    Copysign,
    KeepIfAtLeast,
    PositiveOrZero,
    SelectPositive,
];

impl Operation {
    #[inline(always)]
    fn on_vectors<E: Element, V: Lanewise<E>>(self, a: V, b: V, c: V) -> V {
        match self {
            Add => a + b,
            Sub => a - b,
            Mul => a * b,
            Div => a / b,
            Neg => -a,
            MulAdd => a.mul_add(b, c),
            NegMulAdd => a.neg_mul_add(b, c),
            Min => a.min(b),
            Max => a.max(b),
            Abs => a.abs(),
            Copysign => a.copysign(b),
            KeepIfAtLeast => a.keep_if_at_least(b, c),
            PositiveOrZero => a.positive_or_zero(),
            SelectPositive => a.select_positive(b),
            LowBitsToExponent => a.low_bits_to_exponent(),
        }
    }

    /// The definition, with `fused` saying how often a multiply-add rounds.
    fn on_scalars<E: Scalar>(self, a: E, b: E, c: E, fused: bool) -> E {
        match self {
            Add => a + b,
            Sub => a - b,
            Mul => a * b,
            Div => a / b,
            Neg => -a,
            MulAdd => a.multiply_add(b, c, fused),
            NegMulAdd => (-a).multiply_add(b, c, fused),
            Min => {
                if a > b {
                    b
                } else {
                    a
                }
            }
            Max => {
                if a < b {
                    b
                } else {
                    a
                }
            }
            Abs => a.magnitude(E::ONE),
            Copysign => a.magnitude(b),
            KeepIfAtLeast => {
                if b < c {
                    E::ZERO
                } else {
                    a
                }
            }
            PositiveOrZero => {
                if a < E::ZERO {
                    E::ZERO
                } else {
                    a
                }
            }
            SelectPositive => {
                if b <= E::ZERO {
                    E::ZERO
                } else {
                    a
                }
            }
            LowBitsToExponent => unreachable!("not among OPERATIONS"),
        }
    }
}

impl<E: Element> Kernel<E> for Try<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let chunks = self.operands.map(|operand| operand.chunks(S::LANES));
        let [a, b, c] = chunks;
        for (((a, b), c), out) in a.zip(b).zip(c).zip(self.out.chunks_mut(S::LANES)) {
            let [a, b, c] = [a, b, c].map(|operand| s.load_partial(operand));
            self.what.on_vectors(a, b, c).store_partial(out);
        }
    }
}

/// What the definitions need of a number.
trait Scalar: Element {
    fn multiply_add(self, b: Self, c: Self, fused: bool) -> Self;
    /// The magnitude of `self`, the sign of `sign`.
    fn magnitude(self, sign: Self) -> Self;
    fn bits(self) -> u64;
    fn of_bits(bits: u64) -> Self;
}

macro_rules! scalar {
    ($E:ident, $Bits:ident) => {
        impl Scalar for $E {
            fn multiply_add(self, b: Self, c: Self, fused: bool) -> Self {
                if fused {
                    self.mul_add(b, c)
                } else {
                    self * b + c
                }
            }

            fn magnitude(self, sign: Self) -> Self {
                self.copysign(sign)
            }

            fn bits(self) -> u64 {
                u64::from(self.to_bits())
            }

            fn of_bits(bits: u64) -> Self {
                $E::from_bits(bits as $Bits)
            }
        }
    };
}

scalar!(f32, u32);
scalar!(f64, u64);

/// Numbers that tell rules apart: both zeros, both infinities, NaN, subnormal, ordinary, and a product
/// that a fused multiply-add does not round.
fn numbers<E: Scalar>() -> Vec<E> {
    let mut numbers: Vec<E> = [
        0.0,
        1.0,
        1.5,
        0.1,
        3.0,
        1e-30,
        1e30,
        f64::INFINITY,
        f64::NAN,
    ]
    .into_iter()
    .flat_map(|x| [E::from_f64(x), -E::from_f64(x)])
    .collect();
    let above_one = E::of_bits(E::ONE.bits() + 1);
    numbers.extend([
        above_one,
        -above_one * above_one,
        E::of_bits(1),
        -E::of_bits(12345),
    ]);
    // Miri is slow; what it looks for does not depend on the numbers.
    numbers.truncate(if cfg!(miri) { 3 } else { usize::MAX });
    numbers
}

/// The same number, bit for bit; one NaN is as good as another.
fn assert_same<E: Scalar>(got: E, expected: E, context: &dyn Fn() -> String) {
    let nan = got.to_f64().is_nan() && expected.to_f64().is_nan();
    assert!(
        nan || got.bits() == expected.bits(),
        "{}: {got:?}, not {expected:?}",
        context()
    );
}

fn operations_follow_their_definitions<E: Scalar>() {
    let numbers = numbers::<E>();
    let mut operands = [const { Vec::new() }; 3];
    for &a in &numbers {
        for &b in &numbers {
            for &c in &numbers {
                operands[0].push(a);
                operands[1].push(b);
                operands[2].push(c);
            }
        }
    }
    let mut out = vec![E::ZERO; operands[0].len()];
    for level in Level::available() {
        for what in OPERATIONS {
            let operands = operands.each_ref().map(|operand| &operand[..]);
            E::dispatch(
                level,
                Try {
                    what,
                    operands,
                    out: &mut out,
                },
            );
            for (i, &got) in out.iter().enumerate() {
                let [a, b, c] = operands.map(|operand| operand[i]);
                let expected = what.on_scalars(a, b, c, level.name() != "portable");
                let context = || format!("{what:?} of {a:?}, {b:?}, {c:?} on {}", level.name());
                assert_same(got, expected, &context);
            }
        }
    }
}

#[test]
fn operations_follow_their_definitions_f32() {
    operations_follow_their_definitions::<f32>();
}

#[test]
fn operations_follow_their_definitions_f64() {
    operations_follow_their_definitions::<f64>();
}

/// Every operation on groups of N, next to the same operation on each member.
struct TryGroups<'a, E> {
    what: Operation,
    /// Three operands of as many numbers; a vector begins at each.
    operands: [&'a [E]; 3],
}

impl<E: Element> TryGroups<'_, E> {
    /// What groups of N give, and what their members do: lane after lane.
    #[inline(always)]
    fn of<S: Simd<E>, const N: usize>(&self, s: S) -> [Vec<E>; 2] {
        let mut results = [const { Vec::new() }; 2];
        let len = self.operands[0].len();
        for first in (0..len - S::LANES).step_by(N * S::LANES) {
            // The last members begin again in front: the numbers seldom fill a group.
            let at = |n: usize| (first + n * S::LANES) % (len - S::LANES);
            let [a, b, c] = self.operands.map(|operand| {
                let mut group = Grouped::<S, N>(s).splat(E::ZERO);
                for n in 0..N {
                    group.0[n] = s.load(&operand[at(n)..]);
                }
                group
            });
            let group = self.what.on_vectors(a, b, c);
            let mut lanes = vec![E::ZERO; S::LANES];
            for n in 0..N {
                let alone = self.what.on_vectors(a.0[n], b.0[n], c.0[n]);
                for (result, vector) in results.iter_mut().zip([group.0[n], alone]) {
                    vector.store(&mut lanes);
                    result.extend_from_slice(&lanes);
                }
            }
        }
        results
    }
}

impl<E: Element> Kernel<E> for TryGroups<'_, E> {
    type Output = [[Vec<E>; 2]; 3];

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Self::Output {
        [self.of::<S, 1>(s), self.of::<S, 2>(s), self.of::<S, 4>(s)]
    }
}

fn groups_do_as_their_members<E: Scalar>() {
    let numbers = numbers::<E>();
    let of = |k: usize| numbers[k % numbers.len()];
    // Not in step with one another, and more than any group holds.
    let operands = [1, 5, 11].map(|step| (0..211).map(|k| of(k * step + k / 7)).collect());
    let operands: &[Vec<E>; 3] = &operands;
    for level in Level::available() {
        for what in OPERATIONS.into_iter().chain([LowBitsToExponent]) {
            let operands = operands.each_ref().map(|operand| &operand[..]);
            for [groups, members] in E::dispatch(level, TryGroups { what, operands }) {
                assert!(groups.len() >= operands[0].len() - 16);
                for (i, (&group, &member)) in groups.iter().zip(&members).enumerate() {
                    let context = || format!("{what:?} of lane {i} on {}", level.name());
                    assert_same(group, member, &context);
                }
            }
        }
    }
}

#[test]
fn groups_do_as_their_members_f32() {
    groups_do_as_their_members::<f32>();
}

#[test]
fn groups_do_as_their_members_f64() {
    groups_do_as_their_members::<f64>();
}

/// What splatted groups hold.
struct Splat;

impl<E: Element> Kernel<E> for Splat {
    type Output = Vec<E>;

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Vec<E> {
        let group = Grouped::<S, 3>(s).splat(E::from_f64(7.0));
        let mut lanes = vec![E::ZERO; 3 * S::LANES];
        for (vector, lanes) in group.0.into_iter().zip(lanes.chunks_mut(S::LANES)) {
            vector.store(lanes);
        }
        lanes
    }
}

#[test]
fn every_member_of_a_group_is_splatted() {
    for level in Level::available() {
        assert!(f32::dispatch(level, Splat).iter().all(|&x| x == 7.0));
        assert!(f64::dispatch(level, Splat).iter().all(|&x| x == 7.0));
    }
}

/// Each power of two of the type, from the sum that holds its biased exponent.
struct Powers<'a, E>(&'a mut [E]);

impl<E: Element> Kernel<E> for Powers<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let magic = (3_u64 << (E::MANTISSA_BITS - 1)) as f64;
        for (biased, power) in self.0.iter_mut().enumerate() {
            let sum = s.splat(E::from_f64(magic + biased as f64));
            sum.low_bits_to_exponent()
                .store_partial(std::slice::from_mut(power));
        }
    }
}

fn low_bits_become_an_exponent<E: Scalar>(bias: usize) {
    for level in Level::available() {
        let mut powers = vec![E::ONE; 2 * bias + 1];
        E::dispatch(level, Powers(&mut powers));
        assert_eq!(powers[0].bits(), E::ZERO.bits(), "{}", level.name());
        for (biased, power) in powers.iter().enumerate().skip(1) {
            let exponent = (biased as u64 + 1023) - bias as u64;
            assert_eq!(
                power.to_f64(),
                f64::from_bits(exponent << 52),
                "{}",
                level.name()
            );
        }
    }
}

#[test]
fn low_bits_become_an_exponent_f32() {
    low_bits_become_an_exponent::<f32>(127);
}

#[test]
fn low_bits_become_an_exponent_f64() {
    low_bits_become_an_exponent::<f64>(1023);
}

/// Loads of each kind and length from `from`, stored whole; and a vector of `from`, stored in part.
struct Moves<'a, E> {
    from: &'a [E],
    guard: E,
}

impl<E: Scalar> Kernel<E> for Moves<'_, E> {
    /// Of each length 0..=LANES: the vector loaded, and the memory around a partial store.
    type Output = (usize, Vec<(Vec<E>, Vec<E>)>);

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Self::Output {
        assert_eq!(S::LANES, <S::V as Vector<E>>::LANES);
        assert!(S::REGISTERS == 16 || S::REGISTERS == 32);
        let moves = (0..=S::LANES).map(|n| {
            // A slice of its own length, so that Miri and the guards see every step beyond it.
            let exact: Vec<E> = self.from[..n].to_vec();
            let mut loaded = vec![self.guard; S::LANES];
            s.load_partial(&exact).store(&mut loaded);
            let mut stored = vec![self.guard; n + 2];
            s.load(self.from).store_partial(&mut stored[1..=n]);
            (loaded, stored)
        });
        (S::LANES, moves.collect())
    }
}

fn partial_moves_touch_what_they_must<E: Scalar>() {
    let from: Vec<E> = (1..=16).map(|i| E::from_f64(f64::from(i))).collect();
    let guard = E::from_f64(-7.0);
    for level in Level::available() {
        let (lanes, moves) = E::dispatch(level, Moves { from: &from, guard });
        assert_eq!(moves.len(), lanes + 1);
        for (n, (loaded, stored)) in moves.iter().enumerate() {
            let mut expected = from[..n].to_vec();
            expected.resize(lanes, E::ZERO);
            assert_eq!(*loaded, expected, "load of {n} on {}", level.name());
            let expected = [&[guard], &from[..n], &[guard]].concat();
            assert_eq!(*stored, expected, "store of {n} on {}", level.name());
        }
    }
}

#[test]
fn partial_moves_touch_what_they_must_f32() {
    partial_moves_touch_what_they_must::<f32>();
}

#[test]
fn partial_moves_touch_what_they_must_f64() {
    partial_moves_touch_what_they_must::<f64>();
}

/// Whole moves between addresses that are aligned to one value only.
struct Misaligned<'a, E>(&'a mut [E]);

impl<E: Element> Kernel<E> for Misaligned<'_, E> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> usize {
        let (from, to) = self.0.split_at_mut(17);
        s.load(&from[1..]).store(&mut to[2..]);
        S::LANES
    }
}

#[test]
fn whole_moves_need_no_alignment() {
    for level in Level::available() {
        let mut memory: Vec<f32> = (0_u8..40).map(f32::from).collect();
        let before = memory.clone();
        let lanes = f32::dispatch(level, Misaligned(&mut memory));
        assert_eq!(
            memory[19..19 + lanes],
            before[1..1 + lanes],
            "{}",
            level.name()
        );
        assert_eq!(memory[..19], before[..19], "{}", level.name());
        assert_eq!(
            memory[19 + lanes..],
            before[19 + lanes..],
            "{}",
            level.name()
        );
    }
}

/// A whole load or store of too short a slice.
struct TooShort {
    store: bool,
}

impl Kernel<f64> for TooShort {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<f64>>(self, s: S) {
        let mut short = vec![1.0; S::LANES - 1];
        if self.store {
            s.splat(2.0).store(&mut short);
        } else {
            s.load(&short).store_partial(&mut short);
        }
    }
}

#[test]
fn whole_moves_of_short_slices_panic() {
    for level in Level::available() {
        for store in [false, true] {
            let outcome = std::panic::catch_unwind(|| f64::dispatch(level, TooShort { store }));
            assert!(outcome.is_err(), "{}", level.name());
        }
    }
}

#[test]
fn levels_have_the_documented_names_in_the_documented_order() {
    let names: Vec<_> = Level::available().into_iter().map(Level::name).collect();
    let positions: Vec<_> = names
        .iter()
        .map(|name| Level::NAMES.iter().position(|n| n == name))
        .collect();
    assert!(positions.iter().all(Option::is_some), "{names:?}");
    assert!(positions.is_sorted(), "{names:?}");
    assert_eq!(names[0], "portable");
    assert_eq!(Level::detect().name(), *names.last().unwrap());
    assert_eq!(names.contains(&"neon"), cfg!(target_arch = "aarch64"));
    for level in Level::available() {
        assert_eq!(Level::named(level.name()), Ok(level));
    }
}

#[test]
fn a_wrong_name_is_told_what_there_is() {
    let here: Vec<_> = Level::available().into_iter().map(Level::name).collect();
    let expected = format!(
        "instruction level: expected one of {}, got \"sse\"",
        here.join(", ")
    );
    assert_eq!(Level::named("sse").unwrap_err().to_string(), expected);
    let missing = if cfg!(target_arch = "aarch64") {
        "avx512"
    } else {
        "neon"
    };
    let message = Level::named(missing).unwrap_err().to_string();
    assert!(
        message.ends_with(&format!("got {missing:?}, which this machine lacks")),
        "{message}"
    );
}

#[test]
fn elements_know_their_type() {
    assert_eq!((f32::NAME, f32::MANTISSA_BITS), ("float32", 23));
    assert_eq!((f64::NAME, f64::MANTISSA_BITS), ("float64", 52));
    assert_eq!(
        (f32::from_f64(0.1), 0.1_f32.to_f64()),
        (0.1, f64::from(0.1_f32))
    );
}

/// The lanes of two vectors in turn.
struct Interleave;

impl<E: Element> Kernel<E> for Interleave {
    type Output = (Vec<E>, usize);

    fn run<S: Simd<E>>(self, s: S) -> Self::Output {
        let numbers: Vec<E> = (0..2 * S::LANES).map(|k| E::from_f64(k as f64)).collect();
        let (low, high) = s.load(&numbers).interleave(s.load(&numbers[S::LANES..]));
        let mut both = vec![E::ZERO; 2 * S::LANES];
        low.store(&mut both);
        high.store(&mut both[S::LANES..]);
        (both, S::LANES)
    }
}

#[test]
fn interleaving_takes_lanes_in_turn() {
    fn check<E: Element>() {
        for level in Level::available() {
            let (both, lanes) = E::dispatch(level, Interleave);
            let expected = (0..lanes)
                .flat_map(|k| [k, lanes + k])
                .map(|k| E::from_f64(k as f64));
            assert_eq!(both, expected.collect::<Vec<E>>(), "{}", level.name());
        }
    }
    check::<f32>();
    check::<f64>();
}

/// What pairs hold: the low numbers, then the high ones.
struct Unpair<'a, E>(&'a [E]);

impl<E: Element> Kernel<E> for Unpair<'_, E> {
    type Output = [Vec<E>; 2];

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Self::Output {
        let mut both = [const { Vec::new() }; 2];
        for pairs in self.0.chunks(S::LANES) {
            let (low, high) = s.load_partial(pairs).unpair();
            for (numbers, half) in both.iter_mut().zip([low, high]) {
                let mut lanes = vec![E::ZERO; S::LANES];
                half.store(&mut lanes);
                numbers.extend_from_slice(&lanes[..pairs.len()]);
            }
        }
        both
    }
}

fn pairs_hold_rounded_numbers<E: Scalar>() {
    let half = size_of::<E>() as u32 * 4;
    // The neighbours of a number whose lower half is 0, and what lies between them.
    let rounded = |x: E| {
        let below = x.bits() >> half << half;
        let [below, above] = [below, below + (1 << half)].map(E::of_bits);
        // Exact, or so large that infinity, which counts as the next power of two, is no nearer.
        let distances = [x.to_f64() - below.to_f64(), above.to_f64() - x.to_f64()].map(f64::abs);
        let even = if below.bits() >> half & 1 == 0 {
            below
        } else {
            above
        };
        match distances {
            _ if x == below || x.to_f64().is_nan() => x,
            [a, b] if a < b => below,
            [a, b] if a > b => above,
            _ => even,
        }
    };
    let mut low: Vec<E> = numbers::<E>();
    for x in low.clone().into_iter().filter(|x| x.to_f64().is_finite()) {
        let middle = x.bits() >> half << half | 1 << (half - 1);
        low.extend([middle - 1, middle, middle + 1, middle + (1 << half)].map(E::of_bits));
    }
    let high: Vec<E> = low.iter().rev().copied().collect();
    let pairs: Vec<E> = low
        .iter()
        .zip(&high)
        .map(|(&low, &high)| E::pair(low, high))
        .collect();
    for level in Level::available() {
        let both = E::dispatch(level, Unpair(&pairs));
        for (got, from) in both.into_iter().zip([&low, &high]) {
            for (&got, &x) in got.iter().zip(from) {
                assert_same(got, rounded(x), &|| {
                    format!("half of {x:?} on {}", level.name())
                });
            }
        }
    }
}

#[test]
fn pairs_hold_rounded_numbers_f32() {
    pairs_hold_rounded_numbers::<f32>();
}

#[test]
fn pairs_hold_rounded_numbers_f64() {
    pairs_hold_rounded_numbers::<f64>();
}

#[test]
fn the_half_of_a_float32_is_a_bfloat16() {
    for (bits, expected) in [
        (0x3f80_0000, 0x3f80_u32), // 1
        (0x3f80_8000, 0x3f80),     // a tie: 1 is even
        (0x3f80_8001, 0x3f81),
        (0x3f81_8000, 0x3f82), // a tie: the next one is even
        (0xbf81_7fff, 0xbf81),
        (0x3fff_8000, 0x4000), // carries into the exponent
        (0x8000_0000, 0x8000), // -0
        (0x0000_0001, 0x0000), // subnormals
        (0x0000_8001, 0x0001),
        (0x807f_ffff, 0x8080),
        (0x7f7f_7fff, 0x7f7f), // the largest that stays finite
        (0x7f7f_ffff, 0x7f80), // the largest of float32
        (0xff80_0000, 0xff80), // -infinity
        (0x7f80_0001, 0x7fc0), // NaNs whose upper half is infinity's, or all ones
        (0xffff_ffff, 0xffff),
    ] {
        let pair = f32::pair(f32::from_bits(bits), 1.0).to_bits();
        assert_eq!(pair, 0x3f80_0000 | expected, "{bits:#x}");
        let pair = f32::pair(-2.0, f32::from_bits(bits)).to_bits();
        assert_eq!(pair, expected << 16 | 0xc000, "{bits:#x}");
    }
}
