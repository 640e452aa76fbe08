//! The ceiling: how many multiply-adds the processor does when nothing holds it up.
//!
//! A kernel is as good as its share of that number, so it is measured, and in the same run:
//!
//! ```text
//! sums[1..N] = 0                   N chains, each in a register
//! repeat: sums[k] = sums[k] * 1 + 1    for k in 1..N
//! ```
//!
//! A multiply-add takes some four cycles, and two or more begin in each: the chains, which do not wait
//! for one another, keep all of them busy. No memory is touched. The sums count the rounds, so the
//! answer itself says that the work was done.

use std::hint::black_box;

use crate::error::Result;
use crate::parallel::{Team, Watch};
use crate::simd::{Element, Kernel, Lanewise, Level, Simd, Vector};

/// Rounds between two looks at the watch: a fraction of a millisecond. A float32 counts so far exactly.
const BLOCK: usize = 1 << 16;
/// The most lanes that a vector has.
const MAX_LANES: usize = 16;

/// Does `rounds` multiply-adds in every lane of every chain, on each of `threads` threads, and returns
/// how many that were: fewer where the team could not be had whole.
///
/// # Errors
/// The watch stopped the call.
pub fn multiply_adds<E: Element>(
    level: Level,
    rounds: usize,
    threads: usize,
    watch: &Watch<'_>,
) -> Result<u64> {
    let team = Team::assemble(threads, watch);
    let mut counts = vec![0; team.size()];
    team.run(counts.iter_mut().collect(), |count: &mut u64| {
        let meter = watch.meter();
        for first in (0..rounds).step_by(BLOCK) {
            let rounds = BLOCK.min(rounds - first);
            let done = E::dispatch(level, Chains { rounds });
            *count += done;
            meter.spend(done as usize)?;
        }
        Ok(())
    })?;
    Ok(counts.iter().sum())
}

/// The chains of one thread.
struct Chains {
    rounds: usize,
}

impl<E: Element> Kernel<E> for Chains {
    type Output = u64;

    /// As many chains as the registers hold beside the two factors, or somewhat fewer.
    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> u64 {
        if S::REGISTERS < 32 {
            count::<E, S, 12>(s, self.rounds)
        } else {
            count::<E, S, 24>(s, self.rounds)
        }
    }
}

#[inline(always)]
fn count<E: Element, S: Simd<E>, const N: usize>(s: S, rounds: usize) -> u64 {
    // Nobody may know these: the sums would be known as well.
    let (factor, term) = black_box((E::ONE, E::ONE));
    let (factor, term) = (s.splat(factor), s.splat(term));
    let mut sums = [s.splat(E::ZERO); N];
    for _ in 0..rounds {
        for k in 0..N {
            sums[k] = sums[k].mul_add(factor, term);
        }
    }
    let mut lanes = [E::ZERO; MAX_LANES];
    let mut total = 0.0;
    for sum in sums {
        sum.store(&mut lanes);
        total += lanes[..S::LANES].iter().map(|x| x.to_f64()).sum::<f64>();
    }
    total as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts_every_round<E: Element>(lanes: impl Fn(Level) -> u64) {
        let watch = Watch::unattended();
        for level in Level::available() {
            let done =
                |rounds, threads| multiply_adds::<E>(level, rounds, threads, &watch).unwrap();
            let round = done(1, 1);
            // Eight chains hide four cycles where two begin in each.
            assert_eq!(round % lanes(level), 0);
            assert!(round >= 8 * lanes(level));
            for rounds in [0, 1, BLOCK - 1, BLOCK, BLOCK + 3] {
                let once = rounds as u64 * round;
                assert_eq!(done(rounds, 1), once);
                // Another test may have the pool: then one thread did its own share alone.
                assert!([once, 3 * once].contains(&done(rounds, 3)));
            }
        }
    }

    fn float32_lanes(level: Level) -> u64 {
        match level.name() {
            "avx512" => 16,
            "avx2" => 8,
            _ => 4,
        }
    }

    #[test]
    fn counts_every_round_in_float32() {
        counts_every_round::<f32>(float32_lanes);
    }

    #[test]
    fn counts_every_round_in_float64() {
        counts_every_round::<f64>(|level| float32_lanes(level) / 2);
    }

    #[test]
    fn a_poll_stops_it() {
        let stop = || true;
        let watch = Watch::new(&stop);
        let result = multiply_adds::<f32>(Level::detect(), usize::MAX, 1, &watch);
        assert_eq!(result, Err(crate::error::Error::Interrupted));
    }
}
