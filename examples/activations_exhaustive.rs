//! Every f32 there is, and a dense sample of the f64, through `sigmoid` and `tanh`, on every level of
//! this machine.
//!
//! ```text
//! make activations        or: cargo run --release --example activations_exhaustive
//! ```
//!
//! Prints the largest error and where it is, and how often a result is less than that of the next
//! smaller argument. Fails when
//!
//! - an error exceeds 2 units in the last place where the exact result is a normal number, or 4 in f64,
//! - 0 or an infinity gives anything but exactly what it must, or a NaN is made or lost,
//! - a result is beyond 1 in magnitude,
//! - `tanh` is not odd,
//! - a result is less by more than one unit than that of the next smaller f32.
//!
//! Takes some minutes: two functions of 2^32 arguments against an f64 value, and of millions against a
//! sum of two.

#[path = "../tests/support/ulp.rs"]
mod ulp;

use rnncore::simd::{Element, Level};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use ulp::{Activation, Checked};

/// Arguments computed together.
const BLOCK: u32 = 1 << 14;
/// Blocks of all f32 of one sign.
const FLOAT32_BLOCKS: u32 = (1 << 31) / BLOCK;
/// Blocks of the f64 of one sign that are tried: half of them even in their bits, that is in every
/// binade, and half even in value over the range in which results change.
const FLOAT64_BLOCKS: u32 = 128;
/// The end of that range.
const FLOAT64_RANGE: f64 = 746.0;

/// What is known of one function on one level.
#[derive(Clone, Copy, Default)]
struct Record {
    /// The largest error in units in the last place, and its argument.
    worst: f64,
    at: f64,
    decreases: u64,
    largest_decrease: f64,
    beyond_one: u64,
    not_odd: u64,
    not_exact: u64,
}

impl Record {
    fn meets(&self, bar: f64) -> bool {
        let faults = self.beyond_one + self.not_odd + self.not_exact;
        self.worst <= bar && self.largest_decrease <= 1.0 && faults == 0
    }

    fn merge(&mut self, other: &Record) {
        if other.worst > self.worst {
            (self.worst, self.at) = (other.worst, other.at);
        }
        self.decreases += other.decreases;
        self.largest_decrease = self.largest_decrease.max(other.largest_decrease);
        self.beyond_one += other.beyond_one;
        self.not_odd += other.not_odd;
        self.not_exact += other.not_exact;
    }

    /// Takes one result and its distance from the exact value.
    fn error<E: Element>(&mut self, x: E, y: E, distance: f64) {
        if distance > self.worst {
            (self.worst, self.at) = (distance, x.to_f64());
        }
        if y.to_f64().abs() > 1.0 {
            self.beyond_one += 1;
        }
    }

    /// Takes the results of two neighbouring arguments, that of the smaller one first.
    fn step<E: Sampled>(&mut self, low: E, high: E) {
        if low > high {
            self.decreases += 1;
            self.largest_decrease = self.largest_decrease.max(low.units_from(high));
        }
    }
}

/// A type of number, and the magnitudes that are tried of it.
trait Sampled: Checked {
    /// Blocks of magnitudes.
    const BLOCKS: u32;
    /// Whether a block holds all numbers between its first and its last.
    const EVERY: bool;

    /// The magnitudes of a block, from the smallest on.
    fn block(index: u32) -> Vec<Self>;

    /// How many units apart two numbers of one sign are.
    fn units_from(self, other: Self) -> f64;
}

impl Sampled for f32 {
    const BLOCKS: u32 = FLOAT32_BLOCKS;
    const EVERY: bool = true;

    /// With the first of the next block, so that every pair of neighbours is in one.
    fn block(index: u32) -> Vec<f32> {
        let start = index * BLOCK;
        (start..=start + BLOCK).map(f32::from_bits).collect()
    }

    fn units_from(self, other: f32) -> f64 {
        f64::from(self.to_bits().abs_diff(other.to_bits()))
    }
}

impl Sampled for f64 {
    const BLOCKS: u32 = FLOAT64_BLOCKS;
    const EVERY: bool = false;

    fn block(index: u32) -> Vec<f64> {
        let half = FLOAT64_BLOCKS / 2;
        let count = f64::from(half * BLOCK);
        let first = u64::from(index % half * BLOCK);
        let numbers = first..first + u64::from(BLOCK);
        if index < half {
            let step = f64::INFINITY.to_bits() / u64::from(half * BLOCK);
            numbers.map(|k| f64::from_bits(k * step)).collect()
        } else {
            let at = |k| FLOAT64_RANGE * k as f64 / count;
            numbers.map(at).collect()
        }
    }

    fn units_from(self, other: f64) -> f64 {
        self.to_bits().abs_diff(other.to_bits()) as f64
    }
}

/// Holds a block of arguments of both signs against the exact values.
fn check_block<E: Sampled>(f: Activation, levels: &[Level], index: u32, records: &mut [Record]) {
    let magnitudes = E::block(index);
    let mut results = [const { Vec::new() }; 2];
    for (sign, results) in [E::ONE, -E::ONE].into_iter().zip(&mut results) {
        let x: Vec<E> = magnitudes.iter().map(|&m| m * sign).collect();
        let exact: Vec<_> = x.iter().map(|x| x.exact(f)).collect();
        for (&level, record) in levels.iter().zip(&mut *records) {
            let mut y = vec![E::ZERO; x.len()];
            f.apply(level, &x, &mut y);
            for ((&x, &y), exact) in x.iter().zip(&y).zip(&exact) {
                record.error(x, y, exact.distance(y));
            }
            for pair in y.windows(2).filter(|_| E::EVERY) {
                let (low, high) = if sign > E::ZERO {
                    (pair[0], pair[1])
                } else {
                    (pair[1], pair[0])
                };
                record.step(low, high);
            }
            results.push(y);
        }
    }
    if f == Activation::Tanh {
        let [plus, minus] = &results;
        for ((plus, minus), record) in plus.iter().zip(minus).zip(records) {
            let differ = plus.iter().zip(minus).filter(|&(&p, &m)| !same(p, -m));
            record.not_odd += differ.count() as u64;
        }
    }
}

/// Whether two numbers are equal in all their bits, or both NaN.
fn same<E: Element>(a: E, b: E) -> bool {
    let (a, b) = (a.to_f64(), b.to_f64());
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// How many of 0, -0 and the infinities do not give exactly what they must.
fn not_exact<E: Element>(f: Activation, level: Level) -> u64 {
    let x = [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY].map(E::from_f64);
    let exact = match f {
        Activation::Sigmoid => [0.5, 0.5, 1.0, 0.0],
        Activation::Tanh => [0.0, -0.0, 1.0, -1.0],
    };
    let mut y = [E::ZERO; 4];
    f.apply(level, &x, &mut y);
    let pairs = y.iter().zip(exact.map(E::from_f64));
    pairs.filter(|&(&y, exact)| !same(y, exact)).count() as u64
}

/// Blocks until none is left.
fn work<E: Sampled>(f: Activation, levels: &[Level], next: &AtomicU32) -> Vec<Record> {
    let mut records = vec![Record::default(); levels.len()];
    loop {
        let block = next.fetch_add(1, Ordering::Relaxed);
        if block >= E::BLOCKS {
            return records;
        }
        check_block::<E>(f, levels, block, &mut records);
    }
}

fn check<E: Sampled>(f: Activation, levels: &[Level]) -> Vec<Record> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU32::new(0);
    let mut total = vec![Record::default(); levels.len()];
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| work::<E>(f, levels, &next)))
            .collect();
        for worker in workers {
            let found = worker.join().expect("a worker failed");
            for (total, record) in total.iter_mut().zip(found) {
                total.merge(&record);
            }
        }
    });
    for (total, &level) in total.iter_mut().zip(levels) {
        total.not_exact = not_exact::<E>(f, level);
    }
    total
}

/// Prints a line for each function and level; says whether all of them meet the bar.
fn report<E: Sampled>(levels: &[Level]) -> bool {
    let mut good = true;
    for f in Activation::ALL {
        for (level, r) in levels.iter().zip(check::<E>(f, levels)) {
            let (name, met) = (format!("{f:?}").to_lowercase(), r.meets(E::BAR));
            print!("{:7} {name:8} {:9} {:7.4}", E::NAME, level.name(), r.worst);
            print!(
                " {:>14.7e} {:>10} {:>8}",
                r.at, r.decreases, r.largest_decrease
            );
            print!(" {:>9} {:>8} {:>8}", r.beyond_one, r.not_odd, r.not_exact);
            println!("  {}", if met { "met" } else { "MISSED" });
            good &= met;
        }
    }
    good
}

fn main() -> ExitCode {
    let levels = Level::available();
    print!("type    function level     max ulp             at");
    println!("  decreases  largest  beyond 1  not odd  inexact");
    let (float32, float64) = (report::<f32>(&levels), report::<f64>(&levels));
    if float32 && float64 {
        println!("all bounds are met");
        ExitCode::SUCCESS
    } else {
        println!("a bound is MISSED");
        ExitCode::FAILURE
    }
}
