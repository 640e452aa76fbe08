//! One direction's parameters, packed.

use crate::cell::Spec;
use crate::error::Result;
use crate::gemm::pack::{Panels, Storage, columns_per_panel};
use crate::memory::{Buffer, product};
use crate::parallel::Team;
use crate::simd::{Element, Kernel, Level, Simd};

/// The parameters of one direction as the caller has them.
#[derive(Clone, Copy)]
pub struct Params<'a, E> {
    /// [G*H, I]
    pub weight_ih: &'a [E],
    /// [G*H, H]
    pub weight_hh: &'a [E],
    /// `[G*H]` twice, input side and recurrent side.
    pub bias: Option<(&'a [E], &'a [E])>,
}

/// What a level's vectors look like, for code that packs but does not compute.
#[derive(Clone, Copy, Debug)]
pub struct Lanes {
    /// The level.
    pub level: Level,
    /// Values in a vector.
    pub lanes: usize,
    /// Vector registers.
    pub registers: usize,
}

impl Lanes {
    /// Of `level`, for elements E.
    pub fn of<E: Element>(level: Level) -> Self {
        struct Ask(Level);
        impl<E: Element> Kernel<E> for Ask {
            type Output = Lanes;
            #[inline(always)]
            fn run<S: Simd<E>>(self, _s: S) -> Lanes {
                Lanes {
                    level: self.0,
                    lanes: S::LANES,
                    registers: S::REGISTERS,
                }
            }
        }
        E::dispatch(level, Ask(level))
    }

    /// Vectors of columns in a panel of a plain product.
    pub const fn column_vectors(self) -> usize {
        columns_per_panel(self.registers)
    }
}

/// Blocks of units in a forward panel: a cell with one gate takes two, to fill its tile.
pub const fn blocks_per_panel(slots: usize) -> usize {
    if slots == 1 { 2 } else { 1 }
}

fn gates_of(spec: &Spec, slots: std::ops::Range<usize>) -> Vec<usize> {
    spec.gate[slots].to_vec()
}

/// Packed for forward.
pub struct ForwardWeights<E> {
    /// W, of the slots that x feeds.
    pub input: Panels<E>,
    /// U, of the slots that h' feeds.
    pub recurrent: Panels<E>,
    /// U, of the slots that r*h' feeds.
    pub candidate: Option<Panels<E>>,
    /// [blocks of units, slots, lanes]: where the sums begin.
    pub bias: Buffer<E>,
}

impl<E: Element> ForwardWeights<E> {
    /// Packs `params` of a cell like `spec` with `hidden` units and `features` inputs. The storage is that
    /// of W and U; biases stay what they are.
    pub fn pack(
        spec: &Spec,
        team: &Team<'_>,
        lanes: Lanes,
        params: Params<'_, E>,
        (hidden, features): (usize, usize),
        storage: Storage,
    ) -> Result<Self> {
        let per_panel = blocks_per_panel(spec.slots);
        let pack = |weights, slots, depth| {
            Panels::by_unit(
                team,
                weights,
                &gates_of(spec, slots),
                (hidden, depth),
                (lanes.level, lanes.lanes),
                (per_panel, storage),
            )
        };
        let input = pack(params.weight_ih, 0..spec.input, features)?;
        let recurrent = pack(params.weight_hh, spec.recurrent(), hidden)?;
        let candidate = if spec.has_reset_stage() {
            Some(pack(params.weight_hh, spec.candidate(), hidden)?)
        } else {
            None
        };
        let bias = Self::pack_bias(spec, lanes.lanes, params.bias, hidden)?;
        Ok(Self {
            input,
            recurrent,
            candidate,
            bias,
        })
    }

    /// Whether W and U are stored as bfloat16, which only the products of single rows read.
    #[inline(always)]
    pub fn is_short(&self) -> bool {
        self.recurrent.is_short()
    }

    fn pack_bias(
        spec: &Spec,
        lanes: usize,
        bias: Option<(&[E], &[E])>,
        hidden: usize,
    ) -> Result<Buffer<E>> {
        let blocks = hidden.div_ceil(lanes);
        let len = product(&[blocks, spec.slots, lanes], "packed biases (G * H)")?;
        let mut packed = Buffer::zeroed(len, "packed biases")?;
        let Some((input, recurrent)) = bias else {
            return Ok(packed);
        };
        for unit in 0..hidden {
            for slot in 0..spec.slots {
                let row = spec.gate[slot] * hidden + unit;
                let mut sum = E::ZERO;
                if slot < spec.input {
                    sum += input[row];
                }
                if spec.is_recurrent(slot) {
                    sum += recurrent[row];
                }
                packed[(unit / lanes * spec.slots + slot) * lanes + unit % lanes] = sum;
            }
        }
        Ok(packed)
    }
}

/// Packed for backward.
pub struct BackwardWeights<E> {
    /// U as it is, depth over the recurrent slots.
    pub recurrent: Panels<E>,
    /// U as it is, depth over the candidate's slots.
    pub candidate: Option<Panels<E>>,
    /// W as it is, depth over the input slots.
    pub input: Panels<E>,
}

impl<E: Element> BackwardWeights<E> {
    /// Packs `params` of a cell like `spec` with `hidden` units and `features` inputs.
    pub fn pack(
        spec: &Spec,
        team: &Team<'_>,
        lanes: Lanes,
        params: Params<'_, E>,
        (hidden, features): (usize, usize),
    ) -> Result<Self> {
        let pack = |weights, slots, columns| {
            let gates = gates_of(spec, slots);
            Panels::by_column(
                team,
                weights,
                &gates,
                (hidden, columns),
                lanes.lanes,
                lanes.column_vectors(),
            )
        };
        let of_candidate = || pack(params.weight_hh, spec.candidate(), hidden);
        Ok(Self {
            recurrent: pack(params.weight_hh, spec.recurrent(), hidden)?,
            candidate: spec.has_reset_stage().then(of_candidate).transpose()?,
            input: pack(params.weight_ih, 0..spec.input, features)?,
        })
    }
}
