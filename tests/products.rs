//! The micro-kernels at every level of this machine: each has register tiles of its own.

#[path = "support/levels.rs"]
mod levels;
#[allow(dead_code)] // `portable.rs` uses the rest
#[path = "support/products.rs"]
mod products;

use std::panic::{AssertUnwindSafe, catch_unwind};

use levels::levels;
use products::{every_gate_product, every_row, every_tile};
use rnncore::gemm::view::{Field, Layout};
use rnncore::shape::Schedule;
use rnncore::simd::{Element, Kernel, Lanewise, Portable, Simd, Vector};

/// All of them, at the level that runs it.
struct Products;

impl<E: Element> Kernel<E> for Products {
    type Output = ();

    fn run<S: Simd<E>>(self, s: S) {
        // Fused or not: the vectors' own, whose definition `simd` tests.
        let multiply_add = |a, b, c| {
            let mut result = [E::ZERO];
            s.splat(a)
                .mul_add(s.splat(b), s.splat(c))
                .store_partial(&mut result);
            result[0]
        };
        every_tile(s, multiply_add);
        every_row(s, multiply_add);
        every_gate_product(s, multiply_add);
    }
}

/// A walk down vectors of this level, made at the portable one.
struct WalkOfAnotherLevel;

impl Kernel<f32> for WalkOfAnotherLevel {
    type Output = bool;

    fn run<S: Simd<f32>>(self, s: S) -> bool {
        let schedule = Schedule::dense(1, 2).expect("a good schedule");
        let layout = Layout {
            schedule: &schedule,
            first_step: 0,
            slots: 1,
            width: 4,
        };
        let mut values = [0f32; 8];
        let mut field = Field::new(&mut values, layout);
        let mut block = field.block(0, 0..2, 0, 4);
        let down = block.down(Portable, 0..2, 0);
        catch_unwind(AssertUnwindSafe(|| down.load(s, 0, 0, 0))).is_err()
    }
}

#[test]
fn walks_serve_the_lanes_that_they_were_made_for() {
    for level in levels() {
        let refused = f32::dispatch(level, WalkOfAnotherLevel);
        assert_eq!(refused, ["avx2", "avx512"].contains(&level.name()));
    }
}

#[test]
fn every_level_multiplies_in_the_order_of_k() {
    for level in levels() {
        f32::dispatch(level, Products);
        f64::dispatch(level, Products);
    }
}
