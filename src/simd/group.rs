//! Several vectors that go through the same operations side by side.
//!
//! The equations of a cell are one long chain, each operation waiting for the one before it, and a
//! processor looks only so far ahead for something else to do. Written for a group of vectors, the chains
//! of all of them stand next to each other. Nothing else changes: not the equations, not a bit of a
//! result.

use std::ops::{Add, Div, Mul, Neg, Sub};

use super::{Broadcast, Element, Lanewise};

/// N vectors, or whatever else is computed lane by lane.
#[derive(Clone, Copy, Debug)]
pub struct Group<V, const N: usize>(pub [V; N]);

/// What makes groups of N of the vectors that S makes.
#[derive(Clone, Copy, Debug)]
pub struct Grouped<S, const N: usize>(pub S);

impl<E: Element, S: Broadcast<E>, const N: usize> Broadcast<E> for Grouped<S, N> {
    type V = Group<S::V, N>;

    #[inline(always)]
    fn splat(self, x: E) -> Self::V {
        Group([self.0.splat(x); N])
    }
}

/// Each operation, member by member. A plain loop: `array::from_fn` leaves its array in memory.
macro_rules! member_by_member {
    ($($operation:ident: $($other:ident)*;)*) => {
        $(#[inline(always)]
        fn $operation(self $(, $other: Self)*) -> Self {
            let mut result = self;
            for n in 0..N {
                result.0[n] = self.0[n].$operation($($other.0[n]),*);
            }
            result
        })*
    };
}

macro_rules! operators {
    ($($Trait:ident: $operation:ident $($other:ident)?;)*) => {
        $(impl<V: Copy + $Trait<Output = V>, const N: usize> $Trait for Group<V, N> {
            type Output = Self;

            member_by_member!($operation: $($other)?;);
        })*
    };
}

operators! {
    Add: add other;
    Sub: sub other;
    Mul: mul other;
    Div: div other;
    Neg: neg;
}

impl<E: Element, V: Lanewise<E>, const N: usize> Lanewise<E> for Group<V, N> {
    member_by_member! {
        mul_add: b c;
        neg_mul_add: b c;
        min: other;
        max: other;
        abs: ;
        copysign: sign;
        low_bits_to_exponent: ;
        keep_if_at_least: magnitude threshold;
        positive_or_zero: ;
        select_positive: gate;
    }
}
