//! The functions of each instruction set, and the choice among them.

use std::sync::LazyLock;

use super::finish::{Finish, finish};
use super::gemv::{Gemv, gemv_columns, gemv_rows};
use super::project::{Projection, project_columns, project_rows};
use super::simd::Simd;
use super::tile::{AForm, Fma, Tile, copy_rows, tile};
use super::widen::{self, Elements, Widening, widen_rows};

pub(super) type TileFn = unsafe fn(&Tile);

/// Tile functions by the form of A, then by rows - 1; none where the kernels never meet that form.
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
    /// The words of 32 bits that a vector of B takes in memory.
    pub b_words: usize,
    reading: PanelTiles,
    /// The same, packing what is read of B.
    packing: PanelTiles,
    /// Two and four whole panels: fewer rows leave registers for more columns.
    wide: [ByRows; 2],
    /// [`Simd::transpose`].
    pub transpose: unsafe fn(*const f32, usize, usize, usize, *mut f32, usize),
    /// [`copy_rows`].
    pub copy: unsafe fn(*const f32, usize, usize, usize, *mut f32, usize),
    pub widening: Widening,
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
                unsafe { super::tile::<V, Fma, PANEL, MR, NV, TAIL, BY_K, PACK>(t) }
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
            unsafe fn widen_f32(r: &Elements) {
                // SAFETY: as for `tile`.
                unsafe { widen_rows::<V, widen::F32>(r) }
            }

            #[cfg(feature = "half")]
            $(#[target_feature(enable = $feature)])?
            unsafe fn widen_f16(r: &Elements) {
                // SAFETY: as for `tile`.
                unsafe { widen_rows::<V, widen::F16>(r) }
            }

            #[cfg(feature = "half")]
            $(#[target_feature(enable = $feature)])?
            unsafe fn widen_bf16(r: &Elements) {
                // SAFETY: as for `tile`.
                unsafe { widen_rows::<V, widen::Bf16>(r) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn widen_i8(r: &Elements) {
                // SAFETY: as for `tile`.
                unsafe { widen_rows::<V, widen::I8>(r) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn widen_u8(r: &Elements) {
                // SAFETY: as for `tile`.
                unsafe { widen_rows::<V, widen::U8>(r) }
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

            pub(super) const TABLE: Kernels = Kernels {
                name: $name,
                lanes: <V as Simd>::LANES,
                panel_vectors: PANEL,
                b_words: <V as Simd>::LANES,
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
                widening: Widening {
                    f32: widen_f32,
                    #[cfg(feature = "half")]
                    f16: widen_f16,
                    #[cfg(feature = "half")]
                    bf16: widen_bf16,
                    i8: widen_i8,
                    u8: widen_u8,
                },
                gemv_rows: rows,
                gemv_columns: columns,
                finish: epilogue,
                project_rows: [projected_rows::<false>, projected_rows::<true>],
                project_columns: [projected_columns::<false>, projected_columns::<true>],
            };

            pub(super) static KERNELS: Kernels = TABLE;
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
    avx2, super::super::simd::avx2::Avx2, "avx2", features: "avx2,f16c,fma",
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

/// The same for an A that is always in rows.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! by_k {
    ($nv:expr, $tail:expr; $($rows:literal)*) => {
        [&[$(tile::<$rows, { $nv }, $tail> as TileFn),*], &[]]
    };
}

/// A module with the tiles of another [`Dot`] over the vectors of `$base`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! dot_products {
    ($module:ident, $base:ident, $vector:ty, $dot:ty, $name:literal, $feature:literal,
     panel_vectors: $panel:literal, rows: [$($one:literal)*], two: [$($two:literal)*], four: [$($four:literal)*]) => {
        pub(super) mod $module {
            use super::*;

            const PANEL: usize = $panel;

            #[target_feature(enable = $feature)]
            unsafe fn tile<const MR: usize, const NV: usize, const TAIL: bool>(t: &Tile) {
                // SAFETY: this function's contract is the same, and it enables the instruction set.
                unsafe { super::tile::<$vector, $dot, PANEL, MR, NV, TAIL, true, false>(t) }
            }

            // B is in panels: nothing is packed on the way.
            const TILES: PanelTiles = PanelTiles {
                single: by_k!(1, true; $($one)*),
                tail: by_k!(PANEL, true; $($one)*),
                whole: by_k!(PANEL, false; $($one)*),
            };

            pub(super) static KERNELS: Kernels = Kernels {
                name: $name,
                reading: TILES,
                packing: TILES,
                wide: [
                    by_k!(2 * PANEL, false; $($two)*),
                    by_k!(4 * PANEL, false; $($four)*),
                ],
                ..$base::TABLE
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
dot_products! {
    bf16_pairs, avx512, super::super::simd::avx512::Avx512, super::super::simd::avx512_dot::Bf16Pairs,
    "avx512-bf16", "avx512f,avx512dq,avx512bf16,avx2,fma",
    panel_vectors: 2, rows: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], two: [1 2 3 4 5 6], four: [1 2 3]
}

#[cfg(target_arch = "x86_64")]
dot_products! {
    int8_quads, avx512, super::super::simd::avx512::Avx512, super::super::simd::avx512_dot::Int8Quads,
    "avx512-vnni", "avx512f,avx512dq,avx512vnni,avx2,fma",
    panel_vectors: 2, rows: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], two: [1 2 3 4 5 6], four: [1 2 3]
}

#[cfg(target_arch = "aarch64")]
dot_products! {
    int8_quads, neon, super::super::simd::neon::Neon, super::super::simd::neon_dot::Int8Quads,
    "neon-dotprod", "neon,dotprod",
    panel_vectors: 4, rows: [1 2 3 4 5 6], two: [1 2 3], four: [1]
}

#[cfg(feature = "half")]
mod halves;

#[cfg(feature = "half")]
pub(super) use halves::halves;

/// What lies in the 32 bits of a lane where products are summed by a dot-product instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Two bf16, summed in f32.
    Bf16Pair,
    /// Four 8-bit integers, signed in B, and in A unsigned on x86-64 and signed on AArch64, summed in i32 modulo 2^32.
    Int8Quad,
}

impl Lane {
    pub(super) const ALL: [Self; 2] = [Self::Bf16Pair, Self::Int8Quad];
}

/// The dot-product functions that go with `kernels`, where this machine has them and no other kernels
/// are forced.
pub(super) fn dot(kernels: &Kernels, lane: Lane) -> Option<&'static Kernels> {
    dot_here(kernels, lane).filter(|dot| FORCED.as_ref().is_none_or(|wanted| wanted == dot.name))
}

fn dot_here(kernels: &Kernels, lane: Lane) -> Option<&'static Kernels> {
    #[cfg(target_arch = "x86_64")]
    if kernels.name == avx512::KERNELS.name
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
    {
        return match lane {
            Lane::Bf16Pair => is_x86_feature_detected!("avx512bf16").then_some(&bf16_pairs::KERNELS),
            Lane::Int8Quad => is_x86_feature_detected!("avx512vnni").then_some(&int8_quads::KERNELS),
        };
    }
    // The first element of a word is its lowest byte, and lies first in memory.
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    if kernels.name == neon::KERNELS.name && lane == Lane::Int8Quad {
        return std::arch::is_aarch64_feature_detected!("dotprod").then_some(&int8_quads::KERNELS);
    }
    let _ = (kernels, lane);
    None
}

/// Every instruction set that this machine has, the fastest first; the portable one is always there.
static HERE: LazyLock<Vec<&'static Kernels>> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    let known = {
        let fma = is_x86_feature_detected!("fma");
        let avx512 = fma && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
        let avx2 = fma && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
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

/// What [`FORCE`] says; empty is as if it were not there.
static FORCED: LazyLock<Option<String>> = LazyLock::new(|| {
    std::env::var_os(FORCE).filter(|name| !name.is_empty()).map(|name| name.to_string_lossy().into_owned())
});

/// The fastest instruction set of this machine, or the one that `ANE_MATMUL_CPU` names, itself or by its
/// dot products.
pub(super) fn detect() -> Result<&'static Kernels, String> {
    let Some(wanted) = FORCED.as_ref() else {
        return Ok(HERE[0]);
    };
    let dots = |kernels| Lane::ALL.into_iter().filter_map(move |lane| dot_here(kernels, lane));
    let names = |kernels: &'static Kernels| std::iter::once(kernels).chain(dots(kernels)).map(|k| k.name);
    HERE.iter().copied().find(|&kernels| names(kernels).any(|name| name == wanted)).ok_or_else(|| {
        let here = HERE.iter().copied().flat_map(names).collect::<Vec<_>>().join(", ");
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
