//! What training does to every parameter at every step: Adam's update, and the sum of squares by which
//! gradients are clipped.
//!
//! In NumPy an operation is a pass over memory, and Adam has a dozen of them: a tenth of a training step
//! of two layers. Here it is one pass. Nothing is fused, and sums have a fixed order: all instruction
//! sets give the same bits.

use crate::simd::{Element, Kernel, Level, Simd};

/// One step of Adam. With gradient g, mean m, variance v and weights w, in this order:
///
/// ```text
/// p = weight_decay w + l1 sign(w)      where there is a penalty
/// w = w - lr p                         decoupled (AdamW); else g = g + p
/// m = beta1 m + (1 - beta1) g
/// v = beta2 v + (1 - beta2) g g
/// c = sqrt(1 - beta2^t)
/// w = w - lr c / (1 - beta1^t) m / (sqrt(v) + eps c)
/// ```
///
/// The last line is the textbook's, numerator and denominator multiplied by c: a division less for every
/// weight.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// The learning rate.
    pub lr: f64,
    /// The shares of mean and variance that are kept.
    pub betas: (f64, f64),
    /// Added to the root of the variance.
    pub eps: f64,
    /// The weight of w in the penalty.
    pub weight_decay: f64,
    /// The weight of sign(w) in the penalty.
    pub l1: f64,
    /// Whether the penalty acts on w and not through g.
    pub decoupled: bool,
    /// t, which counts from 1.
    pub step: f64,
}

/// What belongs to one array of parameters; all of one length.
pub struct Arrays<'a, E> {
    /// The parameters.
    pub w: &'a mut [E],
    /// Their gradients.
    pub g: &'a [E],
    /// m
    pub mean: &'a mut [E],
    /// v
    pub variance: &'a mut [E],
}

/// Numbers of which the penalty is held at once.
const BLOCK: usize = 512;

impl Adam {
    /// Makes the step.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn update<E: Element>(&self, level: Level, arrays: Arrays<'_, E>) {
        let n = arrays.w.len();
        let others = [arrays.g.len(), arrays.mean.len(), arrays.variance.len()];
        assert_eq!([n; 3], others);
        let rates = Rates::of(self);
        if self.weight_decay == 0.0 && self.l1 == 0.0 {
            E::dispatch(level, Step(rates, arrays));
            return;
        }
        let parameters = arrays.w.chunks_mut(BLOCK).zip(arrays.g.chunks(BLOCK));
        let means = arrays.mean.chunks_mut(BLOCK);
        let state = means.zip(arrays.variance.chunks_mut(BLOCK));
        for ((w, g), (mean, variance)) in parameters.zip(state) {
            let mut penalised = [E::ZERO; BLOCK];
            let g = {
                let here = &mut penalised[..g.len()];
                here.copy_from_slice(g);
                self.penalise(w, here);
                &*here
            };
            let arrays = Arrays {
                w,
                g,
                mean,
                variance,
            };
            E::dispatch(level, Step(rates, arrays));
        }
    }

    /// Lets the penalty act on w or on g.
    fn penalise<E: Element>(&self, w: &mut [E], g: &mut [E]) {
        let [lr, weight_decay, l1] = [self.lr, self.weight_decay, self.l1].map(E::from_f64);
        for (w, g) in w.iter_mut().zip(g) {
            let sign = if *w > E::ZERO {
                E::ONE
            } else if *w < E::ZERO {
                -E::ONE
            } else {
                *w // 0 or NaN
            };
            let mut penalty = E::ZERO;
            if weight_decay != E::ZERO {
                penalty = weight_decay * *w; // 0 times infinity would be NaN
            }
            if l1 != E::ZERO {
                penalty += l1 * sign;
            }
            if self.decoupled {
                *w = *w - lr * penalty;
            } else {
                *g += penalty;
            }
        }
    }
}

/// The settings as the loop uses them.
#[derive(Clone, Copy)]
struct Rates<E> {
    kept: (E, E),
    taken: (E, E),
    eps: E,
    rate: E,
}

impl<E: Element> Rates<E> {
    fn of(adam: &Adam) -> Self {
        let (beta1, beta2) = adam.betas;
        let c = (1.0 - beta2.powf(adam.step)).sqrt();
        let element = E::from_f64;
        Self {
            kept: (element(beta1), element(beta2)),
            taken: (element(1.0 - beta1), element(1.0 - beta2)),
            eps: element(adam.eps * c),
            rate: element(adam.lr * c / (1.0 - beta1.powf(adam.step))),
        }
    }
}

struct Step<'a, E>(Rates<E>, Arrays<'a, E>);

impl<E: Element> Kernel<E> for Step<'_, E> {
    type Output = ();

    // One number after the other: the compiler makes vectors of it.
    #[inline(always)]
    fn run<S: Simd<E>>(self, _: S) {
        let Self(
            rates,
            Arrays {
                w,
                g,
                mean,
                variance,
            },
        ) = self;
        for (((w, &g), m), v) in w.iter_mut().zip(g).zip(mean).zip(variance) {
            *m = rates.kept.0 * *m + rates.taken.0 * g;
            *v = rates.kept.1 * *v + rates.taken.1 * (g * g);
            *w = *w - rates.rate * (*m / (v.sqrt() + rates.eps));
        }
    }
}

/// The sum of the squares of `values`.
pub fn sum_of_squares<E: Element>(level: Level, values: &[E]) -> f64 {
    E::dispatch(level, Squares(values))
}

struct Squares<'a, E>(&'a [E]);

impl<E: Element> Kernel<E> for Squares<'_, E> {
    type Output = f64;

    // As many sums as the additions of one processor overlap: the compiler makes vectors of them.
    #[inline(always)]
    fn run<S: Simd<E>>(self, _: S) -> f64 {
        let mut sums = [0.0; 32];
        let (blocks, rest) = self.0.as_chunks::<32>();
        for block in blocks {
            for (sum, x) in sums.iter_mut().zip(block) {
                *sum += x.to_f64() * x.to_f64();
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum += x.to_f64() * x.to_f64();
        }
        sums.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAM: Adam = Adam {
        lr: 0.1,
        betas: (0.9, 0.99),
        eps: 1e-3,
        weight_decay: 0.0,
        l1: 0.0,
        decoupled: false,
        step: 3.0,
    };

    fn values<E: Element>(n: usize, factor: f64) -> Vec<E> {
        (0..n)
            .map(|k| E::from_f64(factor * ((k * 37 % 101) as f64 - 50.0)))
            .collect()
    }

    fn updated<E: Element>(level: Level, adam: &Adam, n: usize) -> [Vec<E>; 3] {
        let (mut w, g) = (values(n, 0.02), values(n, 0.3));
        let (mut mean, mut variance) = (values(n, 0.1), values(n, 0.2));
        for v in &mut variance {
            *v = *v * *v;
        }
        adam.update(
            level,
            Arrays {
                w: &mut w,
                g: &g,
                mean: &mut mean,
                variance: &mut variance,
            },
        );
        [w, mean, variance]
    }

    fn kinds() -> [Adam; 6] {
        let kind = |weight_decay, l1, decoupled| Adam {
            weight_decay,
            l1,
            decoupled,
            ..ADAM
        };
        [
            ADAM,
            kind(0.3, 0.0, false),
            kind(0.3, 0.2, false),
            kind(0.0, 0.2, true),
            kind(0.3, 0.0, true),
            kind(0.3, 0.2, true),
        ]
    }

    #[test]
    fn a_step_is_the_textbooks() {
        for adam in kinds() {
            let [w, mean, variance] = updated::<f64>(Level::detect(), &adam, BLOCK + 101);
            let n = w.len();
            let (before, g) = (values::<f64>(n, 0.02), values::<f64>(n, 0.3));
            let (m, v) = (values::<f64>(n, 0.1), values::<f64>(n, 0.2));
            for k in 0..n {
                let sign = if before[k] == 0.0 {
                    0.0
                } else {
                    before[k].signum()
                };
                let p = adam.weight_decay * before[k] + adam.l1 * sign;
                let g = if adam.decoupled { g[k] } else { g[k] + p };
                let m = 0.9 * m[k] + 0.1 * g;
                let v = 0.99 * v[k] * v[k] + 0.01 * g * g;
                let (m_hat, v_hat) = (m / (1.0 - 0.729), v / (1.0 - 0.970299));
                let apart = if adam.decoupled { 0.1 * p } else { 0.0 };
                let want = before[k] - apart - 0.1 * m_hat / (v_hat.sqrt() + 1e-3);
                for (got, want) in [(w[k], want), (mean[k], m), (variance[k], v)] {
                    assert!(
                        (got - want).abs() <= 1e-13 * want.abs().max(1.0),
                        "{got} {want}"
                    );
                }
            }
        }
    }

    fn levels_agree<E: Element>() {
        for adam in kinds() {
            for n in [0, 1, 7, 16, BLOCK + 3, 3 * BLOCK] {
                let want = updated::<E>(Level::available()[0], &adam, n);
                for level in Level::available() {
                    assert_eq!(updated::<E>(level, &adam, n), want);
                }
            }
        }
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        levels_agree::<f32>();
        levels_agree::<f64>();
    }

    fn squares_add_up<E: Element>() {
        for n in [0, 1, 31, 32, 33, 1003] {
            let numbers: Vec<E> = values(n, 0.02);
            let want: f64 = numbers.iter().map(|x| x.to_f64().powi(2)).sum();
            let found = Level::available()
                .into_iter()
                .map(|l| sum_of_squares(l, &numbers));
            let found: Vec<f64> = found.collect();
            assert!(
                (found[0] - want).abs() <= 1e-13 * want,
                "{n}: {found:?} {want}"
            );
            assert!(
                found.iter().all(|&other| other == found[0]),
                "{n}: {found:?}"
            );
        }
    }

    #[test]
    fn squares_add_up_to_the_same_bits() {
        squares_add_up::<f32>();
        squares_add_up::<f64>();
        let large = sum_of_squares(Level::detect(), &[f32::MAX; 3]);
        assert_eq!(large, 3.0 * f64::from(f32::MAX).powi(2));
    }

    #[test]
    #[should_panic(expected = "left == right")]
    fn lengths_that_differ_are_refused() {
        let (mut w, mut mean, mut variance) = ([0.0; 3], [0.0; 3], [0.0; 3]);
        ADAM.update(
            Level::detect(),
            Arrays {
                w: &mut w,
                g: &[0.0; 4],
                mean: &mut mean,
                variance: &mut variance,
            },
        );
    }
}
