//! The micro-kernel, written once over [`Simd`], and the functions of each instruction set.
//!
//! Every element of C is one chain of fused multiply-adds over k, in order, whatever tile it falls
//! into: results do not depend on tile sizes, on the blocking of k, on the number of threads or on m.

use std::sync::LazyLock;

use super::finish::{Finish, finish};
use super::gemv::{Gemv, gemv_columns, gemv_rows};
use super::project::{Projection, project_columns, project_rows};
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
}

/// How A lies under a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AForm {
    /// Rows of contiguous k: A as given.
    ByK = 0,
    /// Contiguous rows for each k: A transposed, or packed.
    ByRow = 1,
}

/// Computes `MR` rows by `NV` vectors of C.
///
/// # Safety
/// As [`Simd`]; the tile's pointers and strides stay inside A, B and C: of the last vector of B and C
/// only `tail` numbers with `TAIL`. With `PACK`, `packed` has room for `k` rows of whole vectors. Nothing
/// else accesses the tile of C meanwhile.
#[inline(always)]
unsafe fn tile<
    V: Simd,
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
        let mut sums = [[V::splat(0.0); NV]; MR];
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
            V::prefetch(ahead);
            if NV > PANEL {
                // Few rows: B is all that is waited for.
                for v in 1..NV {
                    V::prefetch(ahead.wrapping_add(v / PANEL * t.b_panel_stride + v % PANEL * V::LANES));
                }
            }
            if PACK && NV > 1 {
                V::prefetch(ahead.wrapping_add((NV - 1) * V::LANES));
                V::prefetch(ahead.wrapping_add(NV * V::LANES - 1));
            }
            ahead = ahead.wrapping_add(t.ahead_stride);
            let mut b_row = [V::splat(0.0); NV];
            for (v, x) in b_row.iter_mut().enumerate() {
                let b = b.add(v / PANEL * t.b_panel_stride + v % PANEL * V::LANES);
                *x = if last(v) { V::load_masked(b, mask) } else { V::load(b) };
                if PACK {
                    x.store(packed.add(v * V::LANES));
                }
            }
            packed = packed.wrapping_add(t.packed_stride);
            for (i, row) in sums.iter_mut().enumerate() {
                let a = V::splat(*a.add(i * row_stride));
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = a.mul_add(b_row[v], *sum);
                }
            }
            // One step past the end at last, never read from.
            a = a.wrapping_add(k_stride);
            b = b.wrapping_add(t.b_stride);
        }
        // By reference: an array that is moved goes through memory.
        for (i, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                let c = t.c.add(i * t.c_stride + column(v));
                if last(v) { sum.store_masked(c, mask) } else { sum.store(c) }
            }
        }
    }
}

/// Copies `rows` rows of `cols` numbers in whole vectors: what is missing of a row's last vector is 0.
///
/// # Safety
/// As [`Simd`]; the rows can be read, and at `to` there is room for their whole vectors.
#[inline(always)]
unsafe fn copy_rows<V: Simd>(
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

pub(super) type TileFn = unsafe fn(&Tile);

/// Tile functions by the form of A, then by rows - 1.
type ByRows = [&'static [TileFn]; 2];

/// Tile functions of a panel of B, by what is there of it.
struct PanelTiles {
    /// One vector, masked.
    single: ByRows,
    /// All vectors, the last one masked.
    tail: ByRows,
    whole: ByRows,
}

/// The functions of one instruction set.
pub(super) struct Kernels {
    pub name: &'static str,
    /// The numbers in a vector.
    pub lanes: usize,
    /// The vectors in a panel of B.
    pub panel_vectors: usize,
    reading: PanelTiles,
    /// The same, packing what is read of B.
    packing: PanelTiles,
    /// Two and four whole panels: fewer rows leave registers for more columns.
    wide: [ByRows; 2],
    /// [`Simd::transpose`].
    pub transpose: unsafe fn(*const f32, usize, usize, usize, *mut f32, usize),
    /// [`copy_rows`].
    pub copy: unsafe fn(*const f32, usize, usize, usize, *mut f32, usize),
    pub gemv_rows: unsafe fn(&Gemv),
    pub gemv_columns: unsafe fn(&Gemv),
    pub finish: unsafe fn(&Finish),
    /// Without and with magnitudes.
    pub project_rows: [unsafe fn(&Projection); 2],
    /// The same.
    pub project_columns: [unsafe fn(&Projection); 2],
}

impl Kernels {
    /// The columns of a panel of B.
    pub(super) fn panel(&self) -> usize {
        self.lanes * self.panel_vectors
    }

    /// The vectors that `cols` columns fill. Widths are powers of two: a division would take longer than
    /// a small tile.
    pub(super) fn vectors(&self, cols: usize) -> usize {
        (cols + self.lanes - 1) >> self.lanes.trailing_zeros()
    }

    /// The whole panels in `cols` columns.
    pub(super) fn whole_panels(&self, cols: usize) -> usize {
        cols >> self.panel().trailing_zeros()
    }

    /// The most rows that a tile of one panel has.
    pub(super) fn max_rows(&self) -> usize {
        self.reading.whole[0].len()
    }

    /// The most panels that a tile of `rows` rows spans: 1, 2 or 4.
    pub(super) fn max_panels(&self, rows: usize) -> usize {
        match self.wide.iter().rposition(|by_rows| rows <= by_rows[0].len()) {
            Some(wide) => 2 << wide,
            None => 1,
        }
    }

    fn panel_tiles(&self, pack: bool) -> &PanelTiles {
        if pack { &self.packing } else { &self.reading }
    }

    /// One vector, of which [`Tile::tail`] columns are there.
    pub(super) fn single(&self, form: AForm, rows: usize, pack: bool) -> TileFn {
        self.panel_tiles(pack).single[form as usize][rows - 1]
    }

    /// A panel, of whose last vector [`Tile::tail`] columns are there.
    pub(super) fn tail(&self, form: AForm, rows: usize, pack: bool) -> TileFn {
        self.panel_tiles(pack).tail[form as usize][rows - 1]
    }

    /// A whole panel.
    pub(super) fn whole(&self, form: AForm, rows: usize, pack: bool) -> TileFn {
        self.panel_tiles(pack).whole[form as usize][rows - 1]
    }

    /// 2 or 4 whole panels, no more than [`Kernels::max_panels`].
    pub(super) fn wide(&self, form: AForm, rows: usize, panels: usize) -> TileFn {
        self.wide[panels / 4][form as usize][rows - 1]
    }
}

macro_rules! by_rows {
    ($nv:expr, $tail:expr, $pack:expr; $($rows:literal)*) => {
        [
            &[$(tile::<$rows, { $nv }, $tail, true, $pack> as TileFn),*],
            &[$(tile::<$rows, { $nv }, $tail, false, $pack> as TileFn),*],
        ]
    };
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A module with the functions of one instruction set, each enabling `$feature`.
macro_rules! instruction_set {
    (
        $(#[$cfg:meta])* $module:ident, $vector:ty, $name:literal, $(features: $feature:literal,)?
        panel_vectors: $panel:literal, rows: [$($one:literal)*], two: [$($two:literal)*], four: [$($four:literal)*],
        project: $project:literal
    ) => {
        $(#[$cfg])*
        mod $module {
            use super::*;

            const PANEL: usize = $panel;
            type V = $vector;

            $(#[target_feature(enable = $feature)])?
            unsafe fn tile<
                const MR: usize,
                const NV: usize,
                const TAIL: bool,
                const BY_K: bool,
                const PACK: bool,
            >(
                t: &Tile,
            ) {
                // SAFETY: this function's contract is the same, and it enables the instruction set.
                unsafe { super::tile::<V, PANEL, MR, NV, TAIL, BY_K, PACK>(t) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn transpose(
                from: *const f32, from_stride: usize, rows: usize, cols: usize, to: *mut f32, to_stride: usize,
            ) {
                // SAFETY: as for `tile`.
                unsafe { V::transpose(from, from_stride, rows, cols, to, to_stride) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn copy(
                from: *const f32, from_stride: usize, rows: usize, cols: usize, to: *mut f32, to_stride: usize,
            ) {
                // SAFETY: as for `tile`.
                unsafe { copy_rows::<V>(from, from_stride, rows, cols, to, to_stride) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn rows(g: &Gemv) {
                // SAFETY: as for `tile`.
                unsafe { gemv_rows::<V>(g) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn columns(g: &Gemv) {
                // SAFETY: as for `tile`.
                unsafe { gemv_columns::<V>(g) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn epilogue(f: &Finish) {
                // SAFETY: as for `tile`.
                unsafe { finish::<V>(f) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn projected_rows<const SIZES: bool>(p: &Projection) {
                // SAFETY: as for `tile`.
                unsafe { project_rows::<V, $project, SIZES>(p) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn projected_columns<const SIZES: bool>(p: &Projection) {
                // SAFETY: as for `tile`.
                unsafe { project_columns::<V, SIZES>(p) }
            }

            pub(super) static KERNELS: Kernels = Kernels {
                name: $name,
                lanes: <V as Simd>::LANES,
                panel_vectors: PANEL,
                reading: PanelTiles {
                    single: by_rows!(1, true, false; $($one)*),
                    tail: by_rows!(PANEL, true, false; $($one)*),
                    whole: by_rows!(PANEL, false, false; $($one)*),
                },
                packing: PanelTiles {
                    single: by_rows!(1, true, true; $($one)*),
                    tail: by_rows!(PANEL, true, true; $($one)*),
                    whole: by_rows!(PANEL, false, true; $($one)*),
                },
                wide: [
                    by_rows!(2 * PANEL, false, false; $($two)*),
                    by_rows!(4 * PANEL, false, false; $($four)*),
                ],
                transpose,
                copy,
                gemv_rows: rows,
                gemv_columns: columns,
                finish: epilogue,
                project_rows: [projected_rows::<false>, projected_rows::<true>],
                project_columns: [projected_columns::<false>, projected_columns::<true>],
            };
        }
    };
}

// 32 registers: 14 x 2 sums, 2 of B; a broadcast of A is an operand of the multiplication.
instruction_set! {
    #[cfg(target_arch = "x86_64")]
    avx512, super::super::simd::avx512::Avx512, "avx512", features: "avx512f,avx512dq,avx2,fma",
    panel_vectors: 2, rows: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], two: [1 2 3 4 5 6], four: [1 2 3], project: 4
}

// 16 registers: 6 x 2 sums, 2 of B, 1 of A.
instruction_set! {
    #[cfg(target_arch = "x86_64")]
    avx2, super::super::simd::avx2::Avx2, "avx2", features: "avx2,fma",
    panel_vectors: 2, rows: [1 2 3 4 5 6], two: [1 2 3], four: [1], project: 2
}

// 32 registers: 6 x 4 sums, 4 of B, 1 of A.
instruction_set! {
    #[cfg(target_arch = "aarch64")]
    neon, super::super::simd::neon::Neon, "neon", features: "neon",
    panel_vectors: 4, rows: [1 2 3 4 5 6], two: [1 2 3], four: [1], project: 2
}

// 16 registers of 4 lanes at least on every 64-bit machine: 3 x 8 numbers of sums and 8 of B.
instruction_set! {
    portable, super::super::simd::portable::Portable, "portable",
    panel_vectors: 1, rows: [1 2 3 4], two: [1 2], four: [1], project: 1
}

/// Every instruction set that this machine has, the fastest first; the portable one is always there.
static HERE: LazyLock<Vec<&'static Kernels>> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    let known = {
        let fma = is_x86_feature_detected!("fma");
        let avx512 = fma && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
        let avx2 = fma && is_x86_feature_detected!("avx2");
        [(avx512 && avx2, &avx512::KERNELS), (avx2, &avx2::KERNELS)]
    };
    #[cfg(target_arch = "aarch64")]
    let known = [(true, &neon::KERNELS)];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let known: [(bool, &Kernels); 0] = [];
    known
        .into_iter()
        .chain([(true, &portable::KERNELS)])
        .filter_map(|(here, kernels)| here.then_some(kernels))
        .collect()
});

/// The environment variable that forces an instruction set by name, for tests.
const FORCE: &str = "ANE_MATMUL_CPU";

/// The fastest instruction set of this machine, or the one that `ANE_MATMUL_CPU` names.
pub(super) fn detect() -> Result<&'static Kernels, String> {
    let Some(wanted) = std::env::var_os(FORCE) else {
        return Ok(HERE[0]);
    };
    let wanted = wanted.to_string_lossy();
    HERE.iter().copied().find(|kernels| kernels.name == wanted).ok_or_else(|| {
        let here = HERE.iter().map(|kernels| kernels.name).collect::<Vec<_>>().join(", ");
        format!("{FORCE}={wanted} names no kernels that this machine has; here: {here}")
    })
}

/// The kernels that every machine has.
pub(super) fn portable() -> &'static Kernels {
    &portable::KERNELS
}

/// Every instruction set that this machine has.
#[cfg(test)]
pub(super) fn here() -> &'static [&'static Kernels] {
    &HERE
}
