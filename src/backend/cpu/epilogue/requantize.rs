//! Results from the sums of integers, before a microtile is stored.

#![cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "no other has dot products of integers")
)]

use crate::backend::cpu::isa::SimdInteger;
use crate::backend::cpu::microkernel::{MicroTile, StoreOp, Sums, store_each};

/// What turns the sums of integers of a part of C into results.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requantize {
    /// The zero-point compensation of each column: the sum of B's column times the zero point of A, taken off its
    /// sums.
    pub compensation: *const i32,
    /// The scale of each column; null for results that are the sums, as i32.
    pub scales: *const f32,
    /// What follows the sums of each row; null where that is nothing, or the same scale for all, which
    /// `scales` has then.
    pub rows: *const RowTerms,
}

/// What turns the sums of a row into those of the description.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RowTerms {
    /// The zero-point compensation of B, added to each sum modulo 2^32.
    pub add: i32,
    /// The scale of the row.
    pub scale: f32,
}

/// The sums times the scale of the column.
struct ByColumn {
    /// Of the tile's columns.
    scales: *const f32,
}

/// With what rows add, times the scales of row and column.
struct ByRow {
    /// Of the tile's columns.
    scales: *const f32,
    /// Of the tile's rows.
    rows: *const RowTerms,
}

impl<V: SimdInteger> StoreOp<V> for ByColumn {
    #[inline(always)]
    unsafe fn apply(&self, sum: V, _: usize, col: usize, mask: Option<V::Mask>) -> V {
        // SAFETY: by the trait's contract.
        unsafe { sum.i32_to_f32().mul(V::load_part(self.scales.add(col), mask)) }
    }
}

impl<V: SimdInteger> StoreOp<V> for ByRow {
    #[inline(always)]
    unsafe fn apply(&self, sum: V, row: usize, col: usize, mask: Option<V::Mask>) -> V {
        // SAFETY: by the trait's contract.
        unsafe {
            let terms = &*self.rows.add(row);
            let scale = V::splat(terms.scale).mul(V::load_part(self.scales.add(col), mask));
            sum.add_i32(V::splat_i32(terms.add)).i32_to_f32().mul(scale)
        }
    }
}

/// The negative compensation of each column, from which its sums start.
///
/// # Safety
/// As [`microkernel`](crate::backend::cpu::microkernel::microkernel); [`Requantize`] is for the part that the tile belongs to.
#[inline(always)]
pub(crate) unsafe fn start_of_columns<V: SimdInteger, const NV: usize, const TAIL: bool>(
    t: &MicroTile,
) -> [V; NV] {
    // SAFETY: by the function's own contract.
    unsafe {
        let mut start = [V::splat_i32(0); NV];
        let Some(requantize) = t.requantize.as_ref() else {
            return start;
        };
        let mask = V::mask(t.tail);
        for (v, start) in start.iter_mut().enumerate() {
            let compensation = requantize.compensation.wrapping_add(t.col + v * V::LANES).cast();
            *start = start.sub_i32(V::load_part(compensation, (TAIL && v == NV - 1).then_some(mask)));
        }
        start
    }
}

/// Writes a tile to C: what [`MicroTile::requantize`] makes of its sums, or the sums.
///
/// # Safety
/// As [`microkernel`](crate::backend::cpu::microkernel::microkernel); [`Requantize`] is for the part that the tile belongs to.
#[inline(always)]
pub(crate) unsafe fn store_requantized<V: SimdInteger, const MR: usize, const NV: usize, const TAIL: bool>(
    t: &MicroTile,
    sums: &[[V; NV]; MR],
) {
    // SAFETY: by the function's own contract.
    unsafe {
        let Some(part) = t.requantize.as_ref().filter(|part| t.complete && !part.scales.is_null()) else {
            return store_each::<V, Sums, MR, NV, TAIL>(t, sums, &Sums);
        };
        let scales = part.scales.wrapping_add(t.col);
        if part.rows.is_null() {
            store_each::<V, ByColumn, MR, NV, TAIL>(t, sums, &ByColumn { scales });
        } else {
            let rows = part.rows.wrapping_add(t.row);
            store_each::<V, ByRow, MR, NV, TAIL>(t, sums, &ByRow { scales, rows });
        }
    }
}
