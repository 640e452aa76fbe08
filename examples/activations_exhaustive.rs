//! Every f32 there is, through `sigmoid` and `tanh`, on every level of this machine.
//!
//! ```text
//! cargo run --release --example activations_exhaustive
//! ```
//!
//! Prints the largest error and where it is, and how often a result is less than that of the next
//! smaller argument. Fails when an error exceeds 2 units in the last place, a result is beyond 1, a
//! NaN is made or lost, `tanh` is not odd, or a step goes down by more than one unit. Takes some
//! minutes: two functions of 2^32 arguments, each against an f64 value.

#[path = "../tests/support/ulp.rs"]
mod ulp;

use rnncore::simd::Level;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use ulp::{Activation, Checked};

/// Arguments computed together; their bits follow one another.
const BLOCK: u32 = 1 << 14;

/// What is known of one function on one level.
#[derive(Clone, Copy)]
struct Record {
    worst: f64,
    at: f32,
    decreases: u64,
    largest_decrease: f64,
    beyond_one: u64,
    not_odd: u64,
}

const NOTHING: Record = Record {
    worst: 0.0,
    at: 0.0,
    decreases: 0,
    largest_decrease: 0.0,
    beyond_one: 0,
    not_odd: 0,
};

impl Record {
    fn meets_the_bar(&self) -> bool {
        let faults = self.beyond_one + self.not_odd;
        self.worst <= f32::BAR && self.largest_decrease <= 1.0 && faults == 0
    }

    fn merge(&mut self, other: &Record) {
        if other.worst > self.worst {
            (self.worst, self.at) = (other.worst, other.at);
        }
        self.decreases += other.decreases;
        self.largest_decrease = self.largest_decrease.max(other.largest_decrease);
        self.beyond_one += other.beyond_one;
        self.not_odd += other.not_odd;
    }

    /// Takes one result and the argument's exact value.
    fn error(&mut self, x: f32, y: f32, distance: f64) {
        if distance > self.worst {
            (self.worst, self.at) = (distance, x);
        }
        if y.abs() > 1.0 {
            self.beyond_one += 1;
        }
    }

    /// Takes the results of two neighbouring arguments, that of the smaller one first.
    fn step(&mut self, low: f32, high: f32) {
        if low > high {
            self.decreases += 1;
            // Results of one sign are as many units apart as their bits.
            let units = f64::from(low.to_bits().abs_diff(high.to_bits()));
            self.largest_decrease = self.largest_decrease.max(units);
        }
    }
}

/// Holds a block of arguments of both signs, whose magnitudes have the bits from `start` on, and the
/// next one, against the exact values.
fn check_block(f: Activation, levels: &[Level], start: u32, records: &mut [Record]) {
    let magnitudes: Vec<f32> = (start..=start + BLOCK).map(f32::from_bits).collect();
    let mut results = [const { Vec::new() }; 2];
    for (sign, results) in [1.0, -1.0].into_iter().zip(&mut results) {
        let x: Vec<f32> = magnitudes.iter().map(|m| m * sign).collect();
        let exact: Vec<_> = x.iter().map(|x| x.exact(f)).collect();
        for (&level, record) in levels.iter().zip(&mut *records) {
            let mut y = vec![0.0; x.len()];
            f.apply(level, &x, &mut y);
            for ((&x, &y), exact) in x.iter().zip(&y).zip(&exact) {
                record.error(x, y, exact.distance(y));
            }
            for y in y.windows(2) {
                let (low, high) = if sign > 0.0 {
                    (y[0], y[1])
                } else {
                    (y[1], y[0])
                };
                record.step(low, high);
            }
            results.push(y);
        }
    }
    if f == Activation::Tanh {
        let [plus, minus] = &results;
        for ((plus, minus), record) in plus.iter().zip(minus).zip(records) {
            let differ = plus.iter().zip(minus).filter(|(p, m)| {
                let nan = p.is_nan() && m.is_nan();
                !nan && p.to_bits() != (-**m).to_bits()
            });
            record.not_odd += differ.count() as u64;
        }
    }
}

/// Blocks until none is left.
fn work(f: Activation, levels: &[Level], next: &AtomicU32) -> Vec<Record> {
    let mut records = vec![NOTHING; levels.len()];
    loop {
        let block = next.fetch_add(1, Ordering::Relaxed);
        if block >= (1 << 31) / BLOCK {
            return records;
        }
        check_block(f, levels, block * BLOCK, &mut records);
    }
}

fn check(f: Activation, levels: &[Level]) -> Vec<Record> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU32::new(0);
    let mut total = vec![NOTHING; levels.len()];
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| work(f, levels, &next)))
            .collect();
        for worker in workers {
            for (total, record) in total
                .iter_mut()
                .zip(worker.join().expect("a worker failed"))
            {
                total.merge(&record);
            }
        }
    });
    total
}

fn main() -> ExitCode {
    let levels = Level::available();
    let mut good = true;
    println!("function level     max ulp            at  decreases  largest  beyond 1  not odd");
    for f in Activation::ALL {
        for (level, r) in levels.iter().zip(check(f, &levels)) {
            let name = format!("{f:?}").to_lowercase();
            print!("{name:8} {:9} {:7.4} {:>13e}", level.name(), r.worst, r.at);
            print!(
                " {:>10} {:>8} {:>9} {:>8}",
                r.decreases, r.largest_decrease, r.beyond_one, r.not_odd
            );
            println!("{}", if r.meets_the_bar() { "" } else { "  MISSED" });
            good &= r.meets_the_bar();
        }
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
