//! The micro-kernel: written once over vectors, instantiated for each instruction set.
//!
//! Every element of C is one chain of fused multiply-adds over k, in order, whatever tile it falls
//! into: results do not depend on tile sizes, on the blocking of k, on the number of threads or on m.

use super::simd::Simd;

/// One call of the micro-kernel: a tile of C from a strip of A and a strip of B.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub k: usize,
    pub a: *const f32,
    /// From row to row where k is contiguous, from k to k where rows are.
    pub a_stride: usize,
    pub b: *const f32,
    /// From k to k.
    pub b_stride: usize,
    /// From a panel's columns to the next panel's.
    pub b_panel_stride: usize,
    pub c: *mut f32,
    pub c_stride: usize,
    /// What is asked for ahead of its use, a cache line for each k: any address will do.
    pub ahead: *const f32,
    pub ahead_stride: usize,
    /// Where B is packed to while it is used, for the strips of A that follow; else unused.
    pub packed: *mut f32,
    pub packed_stride: usize,
    /// The columns in the last vector, where not all are there.
    pub tail: usize,
    /// Whether the sums go on from what C holds; else C is not read.
    pub accumulate: bool,
    /// Whether the sums are complete after this tile.
    pub complete: bool,
    /// What makes results of complete sums of integers; null leaves the sums.
    pub results: *const Results,
    /// The tile's first row and column in the part of C that `results` is for.
    pub row: usize,
    pub col: usize,
}

/// What turns the sums of integers of a part of C into results.
#[derive(Debug, Clone, Copy)]
pub(super) struct Results {
    /// Taken off the sums of each column.
    pub taken_off: *const i32,
    /// The scale of each column; null for results that are the sums, as i32.
    pub scales: *const f32,
    /// What follows the sums of each row; null where that is nothing, or the same scale for all, which
    /// `scales` has then.
    pub rows: *const RowTerms,
}

/// What turns the sums of a row into those of the description.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowTerms {
    /// Added to each sum, modulo 2^32.
    pub add: i32,
    /// The scale of the row.
    pub scale: f32,
}

/// How A lies under a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AForm {
    /// Rows of contiguous k: A as given.
    ByK = 0,
    /// Contiguous rows for each k: A transposed, or packed.
    ByRow = 1,
}

/// What a lane of a vector holds, and how products of it are summed.
pub(super) trait Dot<V: Simd> {
    /// The words of 32 bits that a vector of B takes in memory.
    const B_WORDS: usize = V::LANES;

    /// Loads a vector of B.
    ///
    /// # Safety
    /// As [`Simd`], for the lanes that the mask selects, if there is one.
    #[inline(always)]
    unsafe fn load_b(from: *const f32, mask: Option<V::Mask>) -> V {
        // SAFETY: by the trait's contract.
        unsafe { V::load_part(from, mask) }
    }

    /// What the sums of each row start from, where they do not go on from what C holds.
    ///
    /// # Safety
    /// As [`tile`].
    #[inline(always)]
    unsafe fn start<const NV: usize, const TAIL: bool>(_: &Tile) -> [V; NV] {
        // SAFETY: by the trait's contract.
        [unsafe { V::splat(0.0) }; NV]
    }

    /// `sum + a * b`, in each lane.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn add_product(a: V, b: V, sum: V) -> V;

    /// Writes a tile to C.
    ///
    /// # Safety
    /// As [`tile`].
    #[inline(always)]
    unsafe fn store<const MR: usize, const NV: usize, const TAIL: bool>(t: &Tile, sums: &[[V; NV]; MR]) {
        // SAFETY: by the function's own contract.
        unsafe { store_each::<V, AsTheyAre, MR, NV, TAIL>(t, sums, &AsTheyAre) };
    }
}

/// What becomes of a vector of sums.
pub(super) trait Outcome<V: Simd> {
    /// The vector at a row and a column of the tile, of which `mask` selects the columns that are there.
    ///
    /// # Safety
    /// As [`tile`].
    unsafe fn of(&self, sum: V, row: usize, col: usize, mask: Option<V::Mask>) -> V;
}

/// Sums that are results.
pub(super) struct AsTheyAre;

impl<V: Simd> Outcome<V> for AsTheyAre {
    #[inline(always)]
    unsafe fn of(&self, sum: V, _: usize, _: usize, _: Option<V::Mask>) -> V {
        sum
    }
}

/// Writes the outcome of a tile to C.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
pub(super) unsafe fn store_each<
    V: Simd,
    O: Outcome<V>,
    const MR: usize,
    const NV: usize,
    const TAIL: bool,
>(
    t: &Tile,
    sums: &[[V; NV]; MR],
    outcome: &O,
) {
    // Row by row in so many words: a loop that is not unrolled would index the sums, and they would go
    // through memory all along. Rows that the tile does not have are left out by `const`, before the
    // optimiser: they were a sixth of all that it was given of this crate.
    macro_rules! rows {
        ($($row:literal)*) => {$(
            if const { $row < MR } {
                let mask = V::mask(t.tail);
                for (v, sum) in sums[$row].iter().enumerate() {
                    let mask = (TAIL && v == NV - 1).then_some(mask);
                    let col = v * V::LANES;
                    outcome.of(*sum, $row, col, mask).store_part(t.c.add($row * t.c_stride + col), mask);
                }
            }
        )*};
    }
    const { assert!(MR <= 14) };
    // SAFETY: by the function's own contract.
    unsafe {
        rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
    }
}

/// One f32 in a lane.
pub(super) struct Fma;

impl<V: Simd> Dot<V> for Fma {
    #[inline(always)]
    unsafe fn add_product(a: V, b: V, sum: V) -> V {
        // SAFETY: by the trait's contract.
        unsafe { a.mul_add(b, sum) }
    }
}

/// Computes `MR` rows by `NV` vectors of C.
///
/// # Safety
/// As [`Simd`]; the tile's pointers and strides stay inside A, B and C: of the last vector of B and C
/// only `tail` numbers with `TAIL`. With `PACK`, `packed` has room for `k` rows of whole vectors. Nothing
/// else accesses the tile of C meanwhile.
#[inline(always)]
pub(super) unsafe fn tile<
    V: Simd,
    D: Dot<V>,
    const PANEL: usize,
    const MR: usize,
    const NV: usize,
    const TAIL: bool,
    const BY_K: bool,
    const PACK: bool,
>(
    t: &Tile,
) {
    // SAFETY: by the function's own contract.
    unsafe {
        let mask = V::mask(t.tail);
        let last = |v: usize| TAIL && v == NV - 1;
        let column = |v: usize| v * V::LANES;
        let mut sums = [D::start::<NV, TAIL>(t); MR];
        if t.accumulate {
            for (i, row) in sums.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    let c = t.c.add(i * t.c_stride + column(v));
                    *sum = if last(v) { V::load_masked(c, mask) } else { V::load(c) };
                }
            }
        }
        let (row_stride, k_stride) = if BY_K { (t.a_stride, 1) } else { (1, t.a_stride) };
        let (mut a, mut b, mut ahead, mut packed) = (t.a, t.b, t.ahead, t.packed);
        for _ in 0..t.k {
            // Four panels are as many streams, which the processor foresees by itself: to ask as well costs
            // a tenth of a product of one row (Zen 5, 2026-11-25).
            if const { NV <= 2 * PANEL } {
                V::prefetch(ahead);
                if const { NV > PANEL } {
                    // Few rows: B is all that is waited for.
                    for v in 1..NV {
                        let of_panel = v / PANEL * t.b_panel_stride;
                        V::prefetch(ahead.wrapping_add(of_panel + v % PANEL * D::B_WORDS));
                    }
                }
            }
            if const { PACK && NV > 1 } {
                V::prefetch(ahead.wrapping_add((NV - 1) * V::LANES));
                V::prefetch(ahead.wrapping_add(NV * V::LANES - 1));
            }
            ahead = ahead.wrapping_add(t.ahead_stride);
            let mut b_row = [V::splat(0.0); NV];
            for (v, x) in b_row.iter_mut().enumerate() {
                let b = b.add(v / PANEL * t.b_panel_stride + v % PANEL * D::B_WORDS);
                *x = D::load_b(b, last(v).then_some(mask));
                if PACK {
                    x.store(packed.add(v * V::LANES));
                }
            }
            packed = packed.wrapping_add(t.packed_stride);
            for (i, row) in sums.iter_mut().enumerate() {
                let a = V::splat(*a.add(i * row_stride));
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = D::add_product(a, b_row[v], *sum);
                }
            }
            // One step past the end at last, never read from.
            a = a.wrapping_add(k_stride);
            b = b.wrapping_add(t.b_stride);
        }
        D::store::<MR, NV, TAIL>(t, &sums);
    }
}

/// Copies `rows` rows of `cols` numbers in whole vectors: what is missing of a row's last vector is 0.
///
/// # Safety
/// As [`Simd`]; the rows can be read, and at `to` there is room for their whole vectors.
#[inline(always)]
pub(super) unsafe fn copy_rows<V: Simd>(
    from: *const f32,
    from_stride: usize,
    rows: usize,
    cols: usize,
    to: *mut f32,
    to_stride: usize,
) {
    // SAFETY: by the function's own contract.
    unsafe {
        let whole = cols / V::LANES * V::LANES;
        let mask = V::mask(cols - whole);
        for row in 0..rows {
            let (from, to) = (from.add(row * from_stride), to.add(row * to_stride));
            for col in (0..whole).step_by(V::LANES) {
                V::load(from.add(col)).store(to.add(col));
            }
            if whole < cols {
                V::load_masked(from.add(whole), mask).store(to.add(whole));
            }
        }
    }
}
