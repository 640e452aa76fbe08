//! The activations against exact values: every level, both types, arguments spread over all bit
//! patterns. `examples/activations_exhaustive.rs` does the same for all f32 there are.

#[path = "support/ulp.rs"]
mod ulp;

use rnncore::math;
use rnncore::simd::{Broadcast, Element, Grouped, Kernel, Level, Simd, Vector};
use ulp::{Activation, Checked, Exact, power_of_two};

/// Miri is slow; what it looks for does not depend on the numbers.
const SAMPLES: u64 = if cfg!(miri) { 64 } else { 150_000 };

/// A number and its bits, of which f32 has the low 32.
trait Bits: Checked {
    fn of_bits(bits: u64) -> Self;
    fn bits(self) -> u64;
}

impl Bits for f32 {
    fn of_bits(bits: u64) -> Self {
        f32::from_bits(bits as u32)
    }

    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Bits for f64 {
    fn of_bits(bits: u64) -> Self {
        f64::from_bits(bits)
    }

    fn bits(self) -> u64 {
        self.to_bits()
    }
}

fn apply<E: Bits>(f: Activation, level: Level, x: &[E]) -> Vec<E> {
    let mut y = vec![E::ZERO; x.len()];
    f.apply(level, x, &mut y);
    y
}

/// Pairs of neighbouring numbers, in the order of their bits, from all over the type.
fn spread<E: Bits>() -> Vec<E> {
    let last = if E::MANTISSA_BITS == 23 {
        u64::from(u32::MAX)
    } else {
        u64::MAX
    };
    let starts = (0..SAMPLES).map(|i| (last / SAMPLES) * i);
    starts
        .flat_map(|bits| [E::of_bits(bits), E::of_bits(bits + 1)])
        .collect()
}

/// Numbers where something happens, with their neighbours on both sides: the clamps, the ends of the
/// reduction's intervals, where results saturate, vanish or become subnormal, 0, infinity, NaN.
fn edges<E: Bits>() -> Vec<E> {
    let mut middles = vec![0.0, 1e-300, power_of_two(-126), power_of_two(-1022), 1.0];
    middles.extend([
        9.0109, 10.0, 17.33, 19.06, 20.0, 36.74, 40.0, 87.33, 87.68, 88.0, 103.97,
    ]);
    middles.extend([
        708.39,
        709.0,
        709.09,
        744.44,
        1e30,
        1e300,
        f64::MAX,
        f64::INFINITY,
        f64::NAN,
    ]);
    // Where the f32 functions are at their worst.
    middles.extend([1.0383568, 17.334003, 0.51958114, 0.5196337]);
    middles.extend((0..60).map(|n| (f64::from(n) + 0.5) * std::f64::consts::LN_2 / 2.0));
    let around = if cfg!(miri) { 0 } else { 3 };
    let mut edges = Vec::new();
    for middle in middles.iter().flat_map(|&m| [m, -m]) {
        let bits = E::from_f64(middle).bits();
        edges.extend((bits.saturating_sub(around)..=bits.saturating_add(around)).map(E::of_bits));
    }
    edges
}

/// Numbers at even distances over the range in which results change.
fn dense<E: Bits>() -> Vec<E> {
    let lowest = if E::MANTISSA_BITS == 23 {
        -104.0
    } else {
        -745.0
    };
    let at = |from: f64, to: f64, i| from + (to - from) * i as f64 / SAMPLES as f64;
    let wide = (0..SAMPLES / 4).map(|i| at(lowest, 40.0, i));
    let narrow = (0..SAMPLES / 4).map(|i| at(-1.0, 1.0, i));
    wide.chain(narrow).map(E::from_f64).collect()
}

fn meets_the_bar<E: Bits>() {
    for f in Activation::ALL {
        let x: Vec<E> = [spread(), edges(), dense()].concat();
        let exact: Vec<Exact> = x.iter().map(|x| x.exact(f)).collect();
        for level in Level::available() {
            let y = apply(f, level, &x);
            let mut worst = (0.0, E::ZERO, E::ZERO);
            for ((&x, &y), exact) in x.iter().zip(&y).zip(&exact) {
                let distance = exact.distance(y);
                if distance > worst.0 {
                    worst = (distance, x, y);
                }
                let bounded = y.to_f64().abs() <= 1.0 || y.to_f64().is_nan();
                assert!(bounded, "{f:?}({x:?}) = {y:?} on {}", level.name());
            }
            let (distance, x, y) = worst;
            println!(
                "{f:?} {} {}: {distance:.3} ulp at {x:?}",
                E::NAME,
                level.name()
            );
            assert!(
                distance <= E::BAR,
                "{f:?}({x:?}) = {y:?}: {distance} ulp, {}",
                level.name()
            );
        }
    }
}

#[test]
fn float32_is_within_2_ulp() {
    meets_the_bar::<f32>();
}

#[test]
fn float64_is_within_4_ulp() {
    meets_the_bar::<f64>();
}

#[test]
fn neighbours_do_not_decrease_by_more_than_one_ulp() {
    let x = spread::<f32>();
    for (f, level) in product() {
        let y = apply(f, level, &x);
        for (x, y) in x.chunks(2).zip(y.chunks(2)) {
            if x[0].is_nan() || x[1].is_nan() {
                continue; // bits beyond infinity have no order
            }
            let (low, high) = if x[0] < x[1] {
                (y[0], y[1])
            } else {
                (y[1], y[0])
            };
            assert!(
                low <= high.next_up(),
                "{f:?} {}: {x:?} to {y:?}",
                level.name()
            );
        }
    }
}

fn product() -> impl Iterator<Item = (Activation, Level)> {
    let levels = Level::available();
    Activation::ALL
        .into_iter()
        .flat_map(move |f| levels.clone().into_iter().map(move |l| (f, l)))
}

fn landmarks<E: Bits>() {
    let inputs = [
        0.0,
        -0.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        -f64::NAN,
    ];
    let x: Vec<E> = inputs.map(E::from_f64).to_vec();
    for level in Level::available() {
        let y = apply(Activation::Sigmoid, level, &x);
        let bits: Vec<u64> = y[..4].iter().map(|y| y.bits()).collect();
        let exact = [0.5, 0.5, 1.0, 0.0].map(|y| E::from_f64(y).bits());
        assert_eq!(bits, exact, "sigmoid on {}", level.name());
        assert!(y[4].to_f64().is_nan() && y[5].to_f64().is_nan());

        let y = apply(Activation::Tanh, level, &x);
        let bits: Vec<u64> = y[..4].iter().map(|y| y.bits()).collect();
        let exact = [0.0, -0.0, 1.0, -1.0].map(|y| E::from_f64(y).bits());
        assert_eq!(bits, exact, "tanh on {}", level.name());
        assert!(y[4].to_f64().is_nan() && y[5].to_f64().is_nan());
    }
}

#[test]
fn zero_infinity_and_nan_give_what_they_must() {
    landmarks::<f32>();
    landmarks::<f64>();
}

fn tanh_is_odd_for<E: Bits>() {
    let x: Vec<E> = [spread(), edges(), dense()].concat();
    let minus_x: Vec<E> = x.iter().map(|&x| -x).collect();
    for level in Level::available() {
        let y = apply(Activation::Tanh, level, &x);
        let minus_y = apply(Activation::Tanh, level, &minus_x);
        for ((x, &y), minus_y) in x.iter().zip(&y).zip(&minus_y) {
            let nan = y.to_f64().is_nan() && minus_y.to_f64().is_nan();
            assert!(
                nan || (-y).bits() == minus_y.bits(),
                "{x:?} on {}",
                level.name()
            );
        }
    }
}

#[test]
fn tanh_is_odd_bit_for_bit() {
    tanh_is_odd_for::<f32>();
    tanh_is_odd_for::<f64>();
}

#[test]
fn a_lane_does_not_depend_on_its_neighbours() {
    let x = dense::<f32>();
    let x = &x[..x.len().min(10_000)];
    for (f, level) in product() {
        let y = apply(f, level, x);
        for (i, chunk) in x.chunks(3).enumerate() {
            let alone = apply(f, level, chunk);
            assert_eq!(
                alone,
                y[3 * i..3 * i + chunk.len()],
                "{f:?} on {}",
                level.name()
            );
        }
    }
}

/// An activation of groups of N vectors; the rest that fills no group stays.
struct ApplyGroups<'a, E, const N: usize> {
    f: Activation,
    x: &'a [E],
    y: &'a mut [E],
}

impl<E: Element, const N: usize> Kernel<E> for ApplyGroups<'_, E, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let (grouped, len) = (Grouped::<S, N>(s), N * S::LANES);
        let groups = self.x.chunks_exact(len).zip(self.y.chunks_exact_mut(len));
        for (x, y) in groups {
            let mut group = grouped.splat(E::ZERO);
            for (vector, x) in group.0.iter_mut().zip(x.chunks(S::LANES)) {
                *vector = s.load(x);
            }
            let result = match self.f {
                Activation::Sigmoid => math::sigmoid(grouped, group),
                Activation::Tanh => math::tanh(grouped, group),
            };
            for (vector, y) in result.0.into_iter().zip(y.chunks_mut(S::LANES)) {
                vector.store(y);
            }
        }
    }
}

fn groups_give_the_bits_of_vectors<E: Bits, const N: usize>() {
    // Edges first and last, in groups with ordinary numbers and with one another.
    let mut x: Vec<E> = [edges(), dense(), edges()].concat();
    x.resize(x.len().next_multiple_of(16 * N), E::ONE);
    for (f, level) in product() {
        let alone = apply(f, level, &x);
        let mut y = vec![E::ZERO; x.len()];
        let (x, together) = (&x, &mut y);
        E::dispatch(level, ApplyGroups::<E, N> { f, x, y: together });
        for ((x, y), alone) in x.iter().zip(&y).zip(&alone) {
            let nan = y.to_f64().is_nan() && alone.to_f64().is_nan();
            assert!(
                nan || y.bits() == alone.bits(),
                "{f:?}({x:?}) in {N} on {}",
                level.name()
            );
        }
    }
}

#[test]
fn a_vector_does_not_depend_on_its_group() {
    groups_give_the_bits_of_vectors::<f32, 1>();
    groups_give_the_bits_of_vectors::<f32, 2>();
    groups_give_the_bits_of_vectors::<f32, 3>();
    groups_give_the_bits_of_vectors::<f64, 2>();
    groups_give_the_bits_of_vectors::<f64, 4>();
}

/// The derivatives, the rectifier and the flush of two vectors' worth of numbers.
struct Others<'a, E> {
    x: &'a [E],
    out: [&'a mut [E]; 4],
}

impl<E: Element> Kernel<E> for Others<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let [d_sigmoid, d_tanh, relu, flush] = self.out;
        for (i, x) in self.x.chunks(S::LANES).enumerate() {
            let at = i * S::LANES..i * S::LANES + x.len();
            let x = s.load_partial(x);
            math::d_sigmoid(s, x).store_partial(&mut d_sigmoid[at.clone()]);
            math::d_tanh(s, x).store_partial(&mut d_tanh[at.clone()]);
            math::relu(s, x).store_partial(&mut relu[at.clone()]);
            math::flush(s, x).store_partial(&mut flush[at]);
        }
    }
}

fn others_hold_for<E: Bits>() {
    let tiny = math::flush_threshold::<E>();
    let below = E::of_bits(tiny.bits() - 1);
    let mut x: Vec<E> = (-20..=20)
        .map(|i| E::from_f64(f64::from(i) / 20.0))
        .collect();
    x.extend([tiny, -tiny, below, -below, E::of_bits(1), -E::of_bits(1)]);
    x.extend([f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::NAN].map(E::from_f64));
    let epsilon = power_of_two(-(E::MANTISSA_BITS as i32));

    for level in Level::available() {
        let mut out = [const { Vec::new() }; 4];
        out.fill(vec![E::ZERO; x.len()]);
        E::dispatch(
            level,
            Others {
                x: &x,
                out: out.each_mut().map(|v| &mut v[..]),
            },
        );
        let [d_sigmoid, d_tanh, relu, flush] = &out;
        for (i, &x) in x.iter().enumerate() {
            let value = x.to_f64();
            if value.is_nan() {
                assert!(
                    out.iter().all(|y| y[i].to_f64().is_nan()),
                    "NaN on {}",
                    level.name()
                );
                continue;
            }
            if value.is_finite() {
                let close = |got: E, exact: f64| (got.to_f64() - exact).abs() <= epsilon;
                assert!(
                    close(d_sigmoid[i], value * (1.0 - value)),
                    "d_sigmoid({x:?})"
                );
                assert!(close(d_tanh[i], 1.0 - value * value), "d_tanh({x:?})");
            }
            assert_eq!(
                relu[i],
                if value < 0.0 { E::ZERO } else { x },
                "relu({x:?})"
            );
            let kept = value.abs() >= tiny.to_f64();
            assert_eq!(flush[i], if kept { x } else { E::ZERO }, "flush({x:?})");
        }
    }
}

#[test]
fn derivatives_rectifier_and_flush() {
    others_hold_for::<f32>();
    others_hold_for::<f64>();
}

#[test]
fn d_sigmoid_keeps_its_accuracy_where_the_gate_is_nearly_open() {
    let y = [
        f32::from_bits(1.0_f32.to_bits() - 1),
        f32::from_bits(1.0_f32.to_bits() - 7),
    ];
    for level in Level::available() {
        let mut out = [const { Vec::new() }; 4];
        out.fill(vec![0.0; y.len()]);
        f32::dispatch(
            level,
            Others {
                x: &y,
                out: out.each_mut().map(|v| &mut v[..]),
            },
        );
        for (y, d) in y.iter().zip(&out[0]) {
            let exact = f64::from(*y) * (1.0 - f64::from(*y));
            assert!(
                (f64::from(*d) / exact - 1.0).abs() < 1e-7,
                "{d} for {exact}"
            );
        }
    }
}

#[test]
fn flush_thresholds_are_the_documented_powers() {
    assert_eq!(
        f64::from(math::flush_threshold::<f32>()),
        power_of_two(-100)
    );
    assert_eq!(math::flush_threshold::<f64>(), power_of_two(-900));
}

/// The exact values themselves, against 400-bit arithmetic (Python's mpmath): `x`, then `sigmoid(x)`,
/// times 2^200 below -600, and `tanh(x)`, each as a sum of two f64.
const GOLDEN: [(f64, f64, f64, f64, f64); 19] = [
    (0.0, 0.5, 0.0, 0.0, 0.0),
    (1e-300, 0.5, 0.0, 1e-300, 0.0),
    (3e-09, 0.50000000075, 4.896702420764778e-17, 3e-09, -9e-27),
    (
        0.1,
        0.52497918747894,
        -2.5084310194303448e-17,
        0.09966799462495582,
        3.542433877641546e-18,
    ),
    (
        -0.1,
        0.47502081252106,
        2.5084310194303448e-17,
        -0.09966799462495582,
        -3.542433877641546e-18,
    ),
    (
        0.3,
        0.574442516811659,
        -4.7456482573436975e-17,
        0.2913126124515909,
        -6.4602656586469586e-18,
    ),
    (
        0.75,
        0.679178699175393,
        -1.5920503191692054e-18,
        0.6351489523872873,
        1.7012977006564836e-17,
    ),
    (
        -1.5,
        0.18242552380635635,
        -8.506488503282418e-18,
        -0.9051482536448664,
        -4.1992024501810215e-17,
    ),
    (
        2.0,
        0.8807970779778824,
        1.8545107241082462e-17,
        0.9640275800758169,
        -1.9413550547557176e-17,
    ),
    (
        -5.25,
        0.005220125693558397,
        -1.8083056874770221e-19,
        -0.9999449286177708,
        1.2077885898389078e-17,
    ),
    (
        11.0,
        0.9999832985781519,
        -3.0845703504113845e-17,
        0.9999999994421064,
        1.7718241332219464e-18,
    ),
    (
        -17.3,
        3.066941200502269e-08,
        1.4620677317025635e-24,
        -0.9999999999999981,
        -6.153361002932893e-18,
    ),
    (
        19.0,
        0.9999999943972036,
        4.286535379372559e-17,
        0.9999999999999999,
        4.823964662155506e-17,
    ),
    (
        -36.9,
        9.430476078526807e-17,
        1.5777775454061683e-33,
        -1.0,
        1.7786775813533272e-32,
    ),
    (
        -80.0,
        1.8048513878454153e-35,
        -1.2636603623764078e-51,
        -1.0,
        6.514977064415042e-70,
    ),
    (
        -300.5,
        3.1225412772322846e-131,
        2.3777947889417906e-147,
        -1.0,
        0.0,
    ),
    (
        -590.0,
        5.837886901742308e-257,
        -2.863202050835652e-273,
        -1.0,
        0.0,
    ),
    (
        -650.25,
        6.39752917656544e-223,
        3.7286654628595362e-239,
        -1.0,
        0.0,
    ),
    (
        -708.25,
        4.139351671604956e-248,
        -1.2853039235765872e-264,
        -1.0,
        0.0,
    ),
];

#[test]
fn exact_values_are_exact() {
    let same = |exact: Exact, hi: f64, lo: f64| {
        assert!((exact.hi - hi + (exact.lo - lo)).abs() <= hi.abs() * power_of_two(-95));
    };
    for (x, sigmoid_hi, sigmoid_lo, tanh_hi, tanh_lo) in GOLDEN {
        let sigmoid = x.exact(Activation::Sigmoid);
        assert_eq!(
            sigmoid.scale,
            if x < -600.0 { power_of_two(200) } else { 1.0 }
        );
        same(sigmoid, sigmoid_hi, sigmoid_lo);
        same(x.exact(Activation::Tanh), tanh_hi, tanh_lo);
    }
}

#[test]
fn distance_counts_units_in_the_last_place() {
    let of = |hi| Exact {
        hi,
        lo: 0.0,
        scale: 1.0,
    };
    assert_eq!(of(1.0).distance(1.0_f32), 0.0);
    assert_eq!(of(1.0).distance(1.0_f32.next_up()), 1.0);
    assert_eq!(of(1.0).distance(1.0_f32.next_down()), 0.5);
    assert_eq!(of(-0.75).distance(0.75_f64), power_of_two(53) * 1.5);
    assert_eq!(
        Exact {
            hi: 1.0,
            lo: 1e-17,
            scale: 1.0
        }
        .distance(1.0_f64),
        1e-17 / f64::EPSILON
    );
    let tiny = Exact {
        hi: 1.5 * power_of_two(-800),
        lo: 0.0,
        scale: power_of_two(200),
    };
    assert_eq!(tiny.distance(1.5 * power_of_two(-1000)), 0.0);
    assert_eq!(tiny.distance((1.5 * power_of_two(-1000)).next_up()), 1.0);
    // No normal number: 0 is right, and so is a neighbour, but not 1.
    assert_eq!(of(1e-40).distance(0.0_f32), 0.0);
    assert!(of(1e-40).distance(1e-40_f32) <= 0.5);
    assert!(of(1e-40).distance(1.0_f32) > 1e30);
    assert!(of(1e-30).distance(0.0_f32) > 1e6);
    assert_eq!(of(f64::NAN).distance(f32::NAN), 0.0);
    assert_eq!(of(f64::NAN).distance(0.0_f32), f64::INFINITY);
    assert_eq!(of(0.5).distance(f32::NAN), f64::INFINITY);
}
