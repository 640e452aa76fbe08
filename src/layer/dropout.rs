//! Dropout masks as a function of where they apply, so that nothing is stored and anyone can replay them.
//!
//! `bits = fold(..fold(fold(seed, kind), call).., feature)` with the finaliser of splitmix64 (Steele, Lea
//! and Flood 2014) between; a value is kept when the upper 53 bits, as a fraction, are at least p.

use crate::error::Result;
use crate::memory::{product, zeros};
use crate::parallel::Meter;
use crate::shape::Schedule;
use crate::simd::Element;

/// What a mask applies to.
#[derive(Clone, Copy)]
enum Kind {
    BetweenLayers = 0,
    Recurrent = 1,
}

/// Drawing a value costs about as much as so many multiply-adds.
const HASH: usize = 30;

/// The time index of a mask that holds for all steps.
const NO_TIME: u64 = u64::MAX;

/// The masks of one forward call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masks {
    /// The layer's seed.
    pub seed: u64,
    /// The layer's call number.
    pub call: u64,
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn fold(state: u64, value: u64) -> u64 {
    mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(value.wrapping_add(1))))
}

impl Masks {
    fn stream(self, kind: Kind, layer: usize, direction: usize, t: u64) -> u64 {
        [kind as u64, self.call, layer as u64, direction as u64, t]
            .into_iter()
            .fold(self.seed, fold)
    }

    /// Drops features of the packed sequence [N, width] that leaves `layer`; the same call on a gradient
    /// is its derivative.
    pub fn between_layers<E: Element>(
        self,
        layer: usize,
        p: f64,
        schedule: &Schedule,
        width: usize,
        values: &mut [E],
        meter: &Meter<'_>,
    ) -> Result<()> {
        let mut rows = values.chunks_exact_mut(width);
        for t in 0..schedule.steps() {
            let stream = self.stream(Kind::BetweenLayers, layer, 0, t as u64);
            for (&user_row, row) in schedule
                .order()
                .iter()
                .zip(rows.by_ref().take(schedule.active(t)))
            {
                let row_stream = fold(stream, user_row as u64);
                for (feature, value) in row.iter_mut().enumerate() {
                    *value = match keep::<E>(fold(row_stream, feature as u64), p) {
                        Some(scale) => *value * scale,
                        None => E::ZERO,
                    };
                }
                meter.spend(HASH * width)?;
            }
        }
        Ok(())
    }

    /// [B, H] in the schedule's order: what multiplies h' inside the recurrent product, at all steps.
    pub fn recurrent<E: Element>(
        self,
        (layer, direction): (usize, usize),
        p: f64,
        schedule: &Schedule,
        hidden: usize,
    ) -> Result<Vec<E>> {
        let len = product(&[schedule.batch(), hidden], "the recurrent mask (B * H)")?;
        let mut mask = zeros(len, "the recurrent mask")?;
        let stream = self.stream(Kind::Recurrent, layer, direction, NO_TIME);
        for (&user_row, row) in schedule.order().iter().zip(mask.chunks_exact_mut(hidden)) {
            let row_stream = fold(stream, user_row as u64);
            for (feature, value) in row.iter_mut().enumerate() {
                *value = keep::<E>(fold(row_stream, feature as u64), p).unwrap_or(E::ZERO);
            }
        }
        Ok(mask)
    }
}

/// The scale of a kept value.
fn keep<E: Element>(bits: u64, p: f64) -> Option<E> {
    let fraction = (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
    (fraction >= p).then(|| E::from_f64(1.0 / (1.0 - p)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::Watch;

    #[test]
    fn masks_keep_their_share_and_repeat() {
        let schedule = Schedule::ragged(50, 4, &[50, 10, 0, 30]).unwrap();
        let watch = Watch::unattended();
        let meter = watch.meter();
        let masks = Masks { seed: 3, call: 1 };
        let mut values = vec![1f64; schedule.packed_rows() * 16];
        masks
            .between_layers(0, 0.25, &schedule, 16, &mut values, &meter)
            .unwrap();
        let kept = values.iter().filter(|&&v| v != 0.0).count() as f64 / values.len() as f64;
        assert!((kept - 0.75).abs() < 0.04, "{kept}");
        assert!(values.iter().all(|&v| v == 0.0 || v == 1.0 / 0.75));
        let mut again = vec![1f64; values.len()];
        masks
            .between_layers(0, 0.25, &schedule, 16, &mut again, &meter)
            .unwrap();
        assert_eq!(values, again);
        Masks { call: 2, ..masks }
            .between_layers(0, 0.25, &schedule, 16, &mut again, &meter)
            .unwrap();
        assert_ne!(values, again);
    }

    #[test]
    fn a_row_keeps_its_mask_wherever_it_is_sorted() {
        let masks = Masks { seed: 9, call: 0 };
        let dense = Schedule::dense(3, 2).unwrap();
        let sorted = Schedule::ragged(3, 2, &[1, 3]).unwrap();
        let plain = masks.recurrent::<f64>((1, 0), 0.5, &dense, 8).unwrap();
        let swapped = masks.recurrent::<f64>((1, 0), 0.5, &sorted, 8).unwrap();
        assert_eq!(plain[..8], swapped[8..]);
        assert_eq!(plain[8..], swapped[..8]);
    }

    #[test]
    fn dropped_is_zero_even_where_the_value_is_not_finite() {
        let watch = Watch::unattended();
        let meter = watch.meter();
        let schedule = Schedule::dense(1, 1).unwrap();
        let mut values = vec![f64::NAN; 64];
        Masks { seed: 0, call: 0 }
            .between_layers(0, 0.5, &schedule, 64, &mut values, &meter)
            .unwrap();
        assert!(values.contains(&0.0));
    }
}
