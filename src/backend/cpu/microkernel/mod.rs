//! Micro-kernels: written once over vectors, instantiated for each instruction set.
//!
//! - [`microkernel`] computes a microtile of C; [`MultiplyAdd`] is what differs between formats of A and B.
//! - [`instances`] lists all that are compiled, and chooses by instruction set and format.
//! - [`weight_only`]: micro-kernels of their own for a float A by 8 and 4-bit weights.
//!
//! Every element of C is one chain of fused multiply-adds over k, in order, whatever microtile it falls
//! into: results do not depend on MR and NR, on the blocking of k, on the number of threads or on m.

pub(crate) mod instances;
pub(crate) mod weight_only;

use super::epilogue::requantize::Requantize;
use super::isa::{Vector, words_of};
use super::pack::{Format, Word};
use instances::VectorFunctions;

/// One call of a micro-kernel: a microtile of C from a micro-panel of A and one of B.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MicroTile {
    pub k: usize,
    pub a: *const Word,
    /// Words of A from a row to the next; those of a number where A is packed or transposed.
    pub a_row_stride: usize,
    /// Words of A from k to k + 1; those of a number where A is neither packed nor transposed.
    pub a_k_stride: usize,
    pub b: *const Word,
    /// Words of B from k to k + 1.
    pub b_stride: usize,
    /// Words of B from a micro-panel to the next one.
    pub b_panel_stride: usize,
    /// f32, f64, or i32 for sums of integers.
    pub c: *mut Word,
    /// In words.
    pub c_stride: usize,
    /// What is prefetched, a cache line for each k: any address will do.
    pub ahead: *const Word,
    pub ahead_stride: usize,
    /// Where B is packed to while it is used, for the micro-panels of A that follow; else unused.
    pub packed: *mut Word,
    pub packed_stride: usize,
    /// The columns in the last vector, where not all are there.
    pub tail: usize,
    /// Whether the sums go on from what C holds; else C is not read.
    pub accumulate: bool,
    /// Whether the sums are complete after this call.
    pub complete: bool,
    /// What makes results of complete sums of integers; null leaves the sums.
    pub requantize: *const Requantize,
    /// The first row and column in the part of C that `requantize` is for.
    pub row: usize,
    pub col: usize,
}

pub(crate) type MicroKernel = unsafe fn(&MicroTile);

/// How the rows of A lie under a microtile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AForm {
    /// Each row is contiguous: [`MicroTile::a_k_stride`] is a number.
    ByRow = 0,
    /// Rows are adjacent for each k, since A is packed or transposed: [`MicroTile::a_row_stride`] is a number.
    ByK = 1,
}

/// Micro-kernels by [`AForm`], or one list for both forms, and then by rows - 1.
type ByRows = &'static [&'static [MicroKernel]];

fn by_form(functions: ByRows, form: AForm) -> &'static [MicroKernel] {
    functions.get(form as usize).or(functions.first()).copied().unwrap_or_default()
}

/// The micro-kernels of one instruction set for one format of A and B.
pub(crate) struct MicroKernels {
    pub name: &'static str,
    pub format: Format,
    /// What else there is of the instruction set.
    pub vector: &'static VectorFunctions,
    /// The vectors in a micro-panel of B: NR of them have [`MicroKernels::nr`] columns.
    pub panel_vectors: usize,
    /// The words that a vector of B takes in memory.
    pub b_words: usize,
    /// By rows - 1. One vector, masked.
    single: ByRows,
    /// `single` with half as many lanes, which cores whose vector units are narrower than their registers take half
    /// the time for. Empty where there are none.
    half: ByRows,
    /// All vectors, the last one masked.
    tail: ByRows,
    whole: ByRows,
    /// `whole`, packing what it reads of B. The first of several micro-panels of A does that, and has more than half
    /// of MR rows: there are none for fewer. Empty where B is always packed.
    packing: ByRows,
    /// Two and four whole micro-panels, whatever the [`AForm`]: fewer rows leave registers for more columns.
    wide: [&'static [MicroKernel]; 2],
}

impl std::fmt::Debug for MicroKernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl MicroKernels {
    /// The numbers in a vector.
    pub(crate) fn lanes(&self) -> usize {
        self.vector.lanes
    }

    /// NR: the columns of a micro-panel of B.
    pub(crate) fn nr(&self) -> usize {
        self.lanes() * self.panel_vectors
    }

    /// The words of a number of A and C.
    pub(crate) fn number_words(&self) -> usize {
        self.format.number_words()
    }

    /// The words of B in a row of a micro-panel.
    pub(crate) fn panel_words(&self) -> usize {
        self.panel_vectors * self.b_words
    }

    /// MR: the most rows of a micro-panel of A.
    pub(crate) fn mr(&self) -> usize {
        self.whole[0].len()
    }

    /// The vectors that `cols` columns fill. Widths are powers of two: a division would take longer than
    /// a small microtile.
    pub(crate) fn vectors(&self, cols: usize) -> usize {
        (cols + self.lanes() - 1) >> self.lanes().trailing_zeros()
    }

    /// The whole micro-panels in `cols` columns.
    pub(crate) fn whole_panels(&self, cols: usize) -> usize {
        cols >> self.nr().trailing_zeros()
    }

    /// The most micro-panels of B that one call spans for `rows` rows: 1, 2 or 4.
    pub(crate) fn max_panels(&self, rows: usize) -> usize {
        match self.wide.iter().rposition(|by_rows| rows <= by_rows.len()) {
            Some(wide) => 2 << wide,
            None => 1,
        }
    }

    /// One vector, of which [`MicroTile::tail`] columns are there.
    pub(crate) fn single(&self, form: AForm, rows: usize) -> MicroKernel {
        by_form(self.single, form)[rows - 1]
    }

    /// Half a vector, of which [`MicroTile::tail`] columns are there; `None` for more columns, and where there are none.
    pub(crate) fn half(&self, form: AForm, rows: usize) -> Option<MicroKernel> {
        by_form(self.half, form).get(rows - 1).copied()
    }

    /// A micro-panel, of whose last vector [`MicroTile::tail`] columns are there.
    pub(crate) fn tail(&self, form: AForm, rows: usize) -> MicroKernel {
        by_form(self.tail, form)[rows - 1]
    }

    /// A whole micro-panel.
    pub(crate) fn whole(&self, form: AForm, rows: usize) -> MicroKernel {
        by_form(self.whole, form)[rows - 1]
    }

    /// A whole micro-panel of B, packing it, for more than half of MR rows.
    pub(crate) fn packing(&self, form: AForm, rows: usize) -> MicroKernel {
        let functions = by_form(self.packing, form);
        functions[rows + functions.len() - self.mr() - 1]
    }

    /// 2 or 4 whole micro-panels, no more than [`MicroKernels::max_panels`].
    pub(crate) fn wide(&self, rows: usize, panels: usize) -> MicroKernel {
        self.wide[panels / 4][rows - 1]
    }
}

/// What a lane of a vector holds, and how products of it are summed.
pub(crate) trait MultiplyAdd<V: Vector> {
    /// The words of 32 bits that a vector of B takes in memory.
    const B_WORDS: usize = V::LANES * words_of::<V>();

    /// Loads a vector of B.
    ///
    /// # Safety
    /// As [`Vector`], for the lanes that the mask selects, if there is one.
    #[inline(always)]
    unsafe fn load_b(from: *const Word, mask: Option<V::Mask>) -> V {
        // SAFETY: by the trait's contract.
        unsafe { V::load_part(from.cast(), mask) }
    }

    /// What the sums of each row start from, where they do not go on from what C holds.
    ///
    /// # Safety
    /// As [`microkernel`].
    #[inline(always)]
    unsafe fn start<const NV: usize, const TAIL: bool>(_: &MicroTile) -> [V; NV] {
        // SAFETY: by the trait's contract.
        [unsafe { V::zero() }; NV]
    }

    /// `sum + a * b`, in each lane.
    ///
    /// # Safety
    /// As [`Vector`].
    unsafe fn multiply_add(a: V, b: V, sum: V) -> V;

    /// Writes a tile to C.
    ///
    /// # Safety
    /// As [`microkernel`].
    #[inline(always)]
    unsafe fn store<const MR: usize, const NV: usize, const TAIL: bool>(t: &MicroTile, sums: &[[V; NV]; MR]) {
        // SAFETY: by the function's own contract.
        unsafe { store_each::<V, Sums, MR, NV, TAIL>(t, sums, &Sums) };
    }
}

/// What a vector of sums becomes before it is stored.
pub(crate) trait StoreOp<V: Vector> {
    /// The vector at a row and a column of the tile, of which `mask` selects the columns that are there.
    ///
    /// # Safety
    /// As [`microkernel`].
    unsafe fn apply(&self, sum: V, row: usize, col: usize, mask: Option<V::Mask>) -> V;
}

/// The sums themselves.
pub(crate) struct Sums;

impl<V: Vector> StoreOp<V> for Sums {
    #[inline(always)]
    unsafe fn apply(&self, sum: V, _: usize, _: usize, _: Option<V::Mask>) -> V {
        sum
    }
}

/// Writes a microtile to C.
///
/// # Safety
/// As [`microkernel`].
#[inline(always)]
pub(crate) unsafe fn store_each<
    V: Vector,
    O: StoreOp<V>,
    const MR: usize,
    const NV: usize,
    const TAIL: bool,
>(
    t: &MicroTile,
    sums: &[[V; NV]; MR],
    op: &O,
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
                    let c = t.c.add($row * t.c_stride + col * words_of::<V>());
                    op.apply(*sum, $row, col, mask).store_part(c.cast(), mask);
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

/// An f32 or f64 in a lane.
pub(crate) struct Fma;

impl<V: Vector> MultiplyAdd<V> for Fma {
    #[inline(always)]
    unsafe fn multiply_add(a: V, b: V, sum: V) -> V {
        // SAFETY: by the trait's contract.
        unsafe { a.mul_add(b, sum) }
    }
}

/// Computes `MR` rows by `NV` vectors of C.
///
/// # Safety
/// As [`Vector`]; the tile's pointers and strides stay inside A, B and C: of the last vector of B and C
/// only `tail` numbers with `TAIL`. A lies as `BY_ROW` or `BY_K` say; with neither, in
/// either form. With `PACK`, `packed` has room for `k` rows of whole vectors. Nothing
/// else accesses the tile of C meanwhile.
#[inline(always)]
pub(crate) unsafe fn microkernel<
    V: Vector,
    D: MultiplyAdd<V>,
    const PANEL: usize,
    const MR: usize,
    const NV: usize,
    const TAIL: bool,
    const PACK: bool,
    const BY_ROW: bool,
    const BY_K: bool,
>(
    t: &MicroTile,
) {
    // SAFETY: by the function's own contract.
    unsafe {
        let mask = V::mask(t.tail);
        let last = |v: usize| TAIL && v == NV - 1;
        let words = const { words_of::<V>() };
        let vector_words = const { V::LANES * words_of::<V>() };
        let mut sums = [D::start::<NV, TAIL>(t); MR];
        if t.accumulate {
            for (i, row) in sums.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    let c = t.c.add(i * t.c_stride + v * vector_words).cast();
                    *sum = if last(v) { V::load_masked(c, mask) } else { V::load(c) };
                }
            }
        }
        let row_stride = if BY_K { words } else { t.a_row_stride };
        let k_stride = if BY_ROW { words } else { t.a_k_stride };
        let (mut a, mut b, mut ahead, mut packed) = (t.a, t.b, t.ahead, t.packed);
        // A closure would not be inlined, and would not have the instruction set.
        macro_rules! step {
            () => {{
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
                    V::prefetch(ahead.wrapping_add((NV - 1) * vector_words));
                    V::prefetch(ahead.wrapping_add(NV * vector_words - 1));
                }
                ahead = ahead.wrapping_add(t.ahead_stride);
                let a_row = |i: usize| V::splat(*a.add(i * row_stride).cast());
                let b_vector = |v: usize| {
                    let b = b.add(v / PANEL * t.b_panel_stride + v % PANEL * D::B_WORDS);
                    D::load_b(b, last(v).then_some(mask))
                };
                if const { NV > 2 * PANEL } {
                    // Few rows and many columns: all of A stays in registers, and each vector of B passes by.
                    let mut a = [V::zero(); MR];
                    for (i, a) in a.iter_mut().enumerate() {
                        *a = a_row(i);
                    }
                    for v in 0..NV {
                        let b = b_vector(v);
                        for (a, row) in a.iter().zip(&mut sums) {
                            row[v] = D::multiply_add(*a, b, row[v]);
                        }
                    }
                } else {
                    let mut b = [V::zero(); NV];
                    for (v, b) in b.iter_mut().enumerate() {
                        *b = b_vector(v);
                        if PACK {
                            b.store(packed.add(v * vector_words).cast());
                        }
                    }
                    packed = packed.wrapping_add(t.packed_stride);
                    for (i, row) in sums.iter_mut().enumerate() {
                        let a = a_row(i);
                        for (b, sum) in b.iter().zip(row) {
                            *sum = D::multiply_add(a, *b, *sum);
                        }
                    }
                }
                // One step past the end at last, never read from.
                a = a.wrapping_add(k_stride);
                b = b.wrapping_add(t.b_stride);
            }};
        }
        let mut k = t.k;
        // So that the processor foresees the loop's end (64 steps take a twentieth less on a Zen 4 core); more sums
        // leave no registers for what the compiler moves from step to step.
        if const { NV == PANEL && !TAIL && !PACK && MR * NV <= 12 } {
            while k >= 4 {
                step!();
                step!();
                step!();
                step!();
                k -= 4;
            }
        }
        for _ in 0..k {
            step!();
        }
        D::store::<MR, NV, TAIL>(t, &sums);
    }
}
