//! Results from the sums of integers, before a tile is stored.

use super::super::simd::Simd;
use super::super::tile::{Tile, store_each};

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
    // SAFETY: by the function's own contract; what is loaded belongs to columns that the mask selects.
    unsafe {
        let Some(results) = t.results.as_ref() else {
            return store_each::<V, MR, NV, TAIL>(t, sums, |sum, _, _, _| sum);
        };
        let exact = |sum: V, col, mask| {
            sum.sub_integers(V::load_part(results.taken_off.cast::<f32>().add(col), mask))
        };
        if results.scales.is_null() {
            return store_each::<V, MR, NV, TAIL>(t, sums, |sum, _, col, mask| exact(sum, col, mask));
        }
        let scale = |col, mask| V::load_part(results.scales.add(col), mask);
        if results.rows.is_null() {
            return store_each::<V, MR, NV, TAIL>(t, sums, |sum, _, col, mask| {
                exact(sum, col, mask).to_floats().mul(scale(col, mask))
            });
        }
        store_each::<V, MR, NV, TAIL>(t, sums, |sum, row, col, mask| {
            let terms = &*results.rows.add(row);
            let sum = exact(sum, col, mask).add_integers(V::splat_integer(terms.add));
            sum.to_floats().mul(V::splat(terms.scale).mul(scale(col, mask)))
        });
    }
}
