//! The micro-kernels at every level of this machine: each has register tiles of its own.

#[path = "support/levels.rs"]
mod levels;
#[allow(dead_code)] // `portable.rs` uses the rest
#[path = "support/products.rs"]
mod products;

use levels::levels;
use products::{every_gate_product, every_row, every_tile};
use rnncore::simd::{Element, Kernel, Lanewise, Simd, Vector};

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

#[test]
fn every_level_multiplies_in_the_order_of_k() {
    for level in levels() {
        f32::dispatch(level, Products);
        f64::dispatch(level, Products);
    }
}
