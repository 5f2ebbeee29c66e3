//! Results from the sums of integers, before a tile is stored.

use super::super::simd::Simd;
use super::super::tile::{AsTheyAre, Outcome, RowTerms, Tile, store_each};

/// Vectors whose lanes are taken for i32.
///
/// # Safety
/// As [`Simd`].
pub(in super::super) unsafe trait Integers: Simd {
    unsafe fn splat_integer(x: i32) -> Self;
    /// Modulo 2^32.
    unsafe fn add_integers(self, other: Self) -> Self;
    /// Modulo 2^32.
    unsafe fn sub_integers(self, other: Self) -> Self;
    /// The nearest f32 of each lane.
    unsafe fn to_floats(self) -> Self;
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

impl<V: Integers> Outcome<V> for ByColumn {
    #[inline(always)]
    unsafe fn of(&self, sum: V, _: usize, col: usize, mask: Option<V::Mask>) -> V {
        // SAFETY: by the trait's contract.
        unsafe { sum.to_floats().mul(V::load_part(self.scales.add(col), mask)) }
    }
}

impl<V: Integers> Outcome<V> for ByRow {
    #[inline(always)]
    unsafe fn of(&self, sum: V, row: usize, col: usize, mask: Option<V::Mask>) -> V {
        // SAFETY: by the trait's contract.
        unsafe {
            let terms = &*self.rows.add(row);
            let scale = V::splat(terms.scale).mul(V::load_part(self.scales.add(col), mask));
            sum.add_integers(V::splat_integer(terms.add)).to_floats().mul(scale)
        }
    }
}

/// What is taken off the sums of each column, from which they start.
///
/// # Safety
/// As [`tile`](super::super::tile::tile); the results are for the part that the tile belongs to.
#[inline(always)]
pub(in super::super) unsafe fn start_of_columns<V: Integers, const NV: usize, const TAIL: bool>(
    t: &Tile,
) -> [V; NV] {
    // SAFETY: by the function's own contract.
    unsafe {
        let mut start = [V::splat_integer(0); NV];
        let Some(results) = t.results.as_ref() else {
            return start;
        };
        let mask = V::mask(t.tail);
        for (v, start) in start.iter_mut().enumerate() {
            let taken_off = results.taken_off.wrapping_add(t.col + v * V::LANES).cast();
            *start = start.sub_integers(V::load_part(taken_off, (TAIL && v == NV - 1).then_some(mask)));
        }
        start
    }
}

/// Writes a tile to C: what [`Tile::results`] makes of its sums, or the sums.
///
/// # Safety
/// As [`tile`](super::super::tile::tile); the results are for the part that the tile belongs to.
#[inline(always)]
pub(in super::super) unsafe fn store_results<
    V: Integers,
    const MR: usize,
    const NV: usize,
    const TAIL: bool,
>(
    t: &Tile,
    sums: &[[V; NV]; MR],
) {
    // SAFETY: by the function's own contract.
    unsafe {
        let Some(part) = t.results.as_ref().filter(|part| t.complete && !part.scales.is_null()) else {
            return store_each::<V, AsTheyAre, MR, NV, TAIL>(t, sums, &AsTheyAre);
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
