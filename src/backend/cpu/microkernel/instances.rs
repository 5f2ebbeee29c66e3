//! Everything that is compiled for an instruction set, and the choice by instruction set and format.

#[cfg(feature = "half")]
use std::marker::PhantomData;

use super::weight_only::{self, PanelArgs};
use super::{Fma, MicroKernel, MicroKernels, MicroTile, MultiplyAdd, microkernel};
use crate::backend::cpu::attention::{self, AttentionFunctions, Weights};
use crate::backend::cpu::epilogue::{Epilogue, apply, apply_f64};
use crate::backend::cpu::gemv::{Gemv, GemvFunctions, gemv_columns, gemv_rows};
use crate::backend::cpu::isa::{self, Dot, Isa, Simd, Vector, words_of};
use crate::backend::cpu::pack::upcast::{self, Elements, UpcastFunctions, upcast_rows};
#[cfg(feature = "half")]
use crate::backend::cpu::pack::upcast::{Bf16, Element, F16};
use crate::backend::cpu::pack::{Format, Word, copy_rows};
use crate::backend::cpu::rows::{self, NormRows, RowFunctions, Softmax, Unary};

/// What there is of an instruction set besides micro-kernels, for numbers of f32 or of f64.
pub(crate) struct VectorFunctions {
    /// The numbers in a vector.
    pub lanes: usize,
    /// [`Vector::transpose`], with strides in words.
    pub transpose: unsafe fn(*const Word, usize, usize, usize, *mut Word, usize),
    /// [`copy_rows`], with strides in words.
    pub copy: unsafe fn(*const Word, usize, usize, usize, *mut Word, usize),
    /// Of narrower elements to f32, whichever numbers the rest is for.
    pub upcast: UpcastFunctions,
    pub gemv: GemvFunctions,
    /// For a matrix of f16, and of bf16.
    #[cfg(feature = "half")]
    pub gemv_f16: GemvFunctions,
    #[cfg(feature = "half")]
    pub gemv_bf16: GemvFunctions,
    pub epilogue: unsafe fn(&Epilogue),
    pub weight_only: weight_only::Kernels,
    pub rows: RowFunctions,
    pub attention: AttentionFunctions,
}

/// The micro-kernels of an instruction set without its extensions.
pub(crate) struct InstructionSet {
    pub f32: MicroKernels,
    pub f64: MicroKernels,
    /// For a B of f16.
    #[cfg(feature = "half")]
    pub from_f16: MicroKernels,
    /// For a B of bf16.
    #[cfg(feature = "half")]
    pub from_bf16: MicroKernels,
}

/// Micro-kernels for the numbers of rows, the first of them the first.
macro_rules! by_rows {
    ($operation:ty, $nv:expr, $tail:expr, $pack:expr, $by_row:expr, $by_k:expr; $($rows:literal)*) => {
        &[$(tile::<$operation, $rows, { $nv }, $tail, $pack, $by_row, $by_k> as MicroKernel),*]
    };
}

/// [`by_rows`] for both forms of A apart, for either in one, or for the one that is met.
macro_rules! by_form {
    (both; $operation:ty, $nv:expr, $tail:expr, $pack:expr; $($rows:literal)*) => {
        &[
            by_rows!($operation, $nv, $tail, $pack, true, false; $($rows)*),
            by_rows!($operation, $nv, $tail, $pack, false, true; $($rows)*),
        ]
    };
    (either; $operation:ty, $nv:expr, $tail:expr, $pack:expr; $($rows:literal)*) => {
        &[by_rows!($operation, $nv, $tail, $pack, false, false; $($rows)*)]
    };
    (by_row; $operation:ty, $nv:expr, $tail:expr, $pack:expr; $($rows:literal)*) => {
        &[by_rows!($operation, $nv, $tail, $pack, true, false; $($rows)*)]
    };
}

/// [`MicroKernels`] of the module's `tile`.
macro_rules! microkernels {
    (
        $name:expr, $format:expr, $operation:ty, forms: $forms:ident, half: $half:expr, wide_by_row: $wide_by_row:expr,
        rows: [$($one:literal)*], packing: [$($packing:literal)*], two: [$($two:literal)*], four: [$($four:literal)*]
    ) => {
        MicroKernels {
            name: $name,
            format: $format,
            vector: &VECTOR,
            panel_vectors: PANEL,
            b_words: <$operation as MultiplyAdd<V>>::B_WORDS,
            single: by_form!($forms; $operation, 1, true, false; $($one)*),
            tail: by_form!($forms; $operation, PANEL, true, false; $($one)*),
            half: $half,
            whole: by_form!($forms; $operation, PANEL, false, false; $($one)*),
            packing: by_form!($forms; $operation, PANEL, false, true; $($packing)*),
            wide: [
                by_rows!($operation, 2 * PANEL, false, false, $wide_by_row, false; $($two)*),
                by_rows!($operation, 4 * PANEL, false, false, $wide_by_row, false; $($four)*),
            ],
        }
    };
}

/// Functions over vectors `V` of f32 or f64 that enable `$feature`.
macro_rules! number_functions {
    ($($feature:literal)?) => {
        $(#[target_feature(enable = $feature)])?
        pub(super) unsafe fn tile<
            D: MultiplyAdd<V>,
            const MR: usize,
            const NV: usize,
            const TAIL: bool,
            const PACK: bool,
            const BY_ROW: bool,
            const BY_K: bool,
        >(
            t: &MicroTile,
        ) {
            // SAFETY: this function's contract is the same, and it enables the instruction set.
            unsafe { microkernel::<V, D, PANEL, MR, NV, TAIL, PACK, BY_ROW, BY_K>(t) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn transpose(
            from: *const Word, from_stride: usize, rows: usize, cols: usize, to: *mut Word, to_stride: usize,
        ) {
            let (from_stride, to_stride) = (from_stride / words_of::<V>(), to_stride / words_of::<V>());
            // SAFETY: as for `tile`.
            unsafe { V::transpose(from.cast(), from_stride, rows, cols, to.cast(), to_stride) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn copy(
            from: *const Word, from_stride: usize, rows: usize, cols: usize, to: *mut Word, to_stride: usize,
        ) {
            let (from_stride, to_stride) = (from_stride / words_of::<V>(), to_stride / words_of::<V>());
            // SAFETY: as for `tile`.
            unsafe { copy_rows::<V>(from.cast(), from_stride, rows, cols, to.cast(), to_stride) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn rows<E: upcast::Load<V>>(g: &Gemv) {
            // SAFETY: as for `tile`.
            unsafe { gemv_rows::<V, E>(g) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn columns<E: upcast::Load<V>>(g: &Gemv) {
            // SAFETY: as for `tile`.
            unsafe { gemv_columns::<V, E>(g) }
        }
    };
}

/// A module with the micro-kernels of f64 of an instruction set whose f32 are in `$base`.
macro_rules! float64 {
    (
        $(#[$cfg:meta])* $module:ident, $base:ident, $vector:ty, $name:literal, $(features: $feature:literal,)?
        panel_vectors: $panel:literal, half: $half:expr,
        rows: [$($one:literal)*], packing: [$($packing:literal)*], two: [$($two:literal)*], four: [$($four:literal)*]
    ) => {
        $(#[$cfg])*
        mod $module {
            use super::*;

            const PANEL: usize = $panel;
            type V = $vector;

            number_functions! { $($feature)? }

            $(#[target_feature(enable = $feature)])?
            unsafe fn epilogue(e: &Epilogue) {
                // SAFETY: as for `tile`.
                unsafe { apply_f64::<V>(e) }
            }

            static VECTOR: VectorFunctions = VectorFunctions {
                lanes: V::LANES,
                transpose,
                copy,
                gemv: GemvFunctions { rows: rows::<upcast::F64>, columns: columns::<upcast::F64> },
                epilogue,
                ..super::$base::FUNCTIONS
            };

            pub(super) const KERNELS: MicroKernels = microkernels! {
                concat!($name, " f64"), Format::F64, Fma, forms: both, half: $half, wide_by_row: false,
                rows: [$($one)*], packing: [$($packing)*], two: [$($two)*], four: [$($four)*]
            };
        }
    };
}

/// A module with all of one instruction set, whose functions enable `$feature`.
///
/// `rows`: up to MR for one micro-panel of B, `packing` those of more than half of MR; `two`, `four`: for so many
/// micro-panels. `half`: [`MicroKernels::half`]. `upcast`: the same for a B of 16-bit elements. `weight_only`: rows x chains, of
/// 4-bit integers and of 8-bit ones, which have half as many in a word.
macro_rules! instruction_set {
    (
        $(#[$cfg:meta])* $module:ident, f64: $f64:ident, $vector:ty, $name:literal, $(features: $feature:literal,)?
        panel_vectors: $panel:literal, half: $half:expr,
        rows: [$($one:literal)*], packing: [$($packing:literal)*], two: [$($two:literal)*], four: [$($four:literal)*],
        upcast: [$($upcast_one:literal)*], [$($upcast_two:literal)*], [$($upcast_four:literal)*],
        weight_only: [$($w4_rows:literal x $w4_chains:literal)*],
        [$($w8_rows:literal x $w8_chains:literal)*]
    ) => {
        $(#[$cfg])*
        mod $module {
            use super::*;

            const PANEL: usize = $panel;
            type V = $vector;

            number_functions! { $($feature)? }

            $(#[target_feature(enable = $feature)])?
            unsafe fn upcast<E: upcast::Element>(e: &Elements) {
                // SAFETY: as for `tile`.
                unsafe { upcast_rows::<V, E>(e) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn epilogue(e: &Epilogue) {
                // SAFETY: as for `tile`.
                unsafe { apply::<V>(e) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn normalize(n: &NormRows) {
                // SAFETY: as for `tile`.
                unsafe { rows::normalize::<V>(n) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn softmax(s: &Softmax) {
                // SAFETY: as for `tile`.
                unsafe { rows::softmax::<V>(s) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn unary(u: &Unary) {
                // SAFETY: as for `tile`.
                unsafe { rows::unary::<V>(u) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn weigh(w: &Weights) {
                // SAFETY: as for `tile`.
                unsafe { attention::weigh::<V>(w) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn finish(w: &Weights) {
                // SAFETY: as for `tile`.
                unsafe { attention::finish::<V>(w) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn weight_only<const BITS: u32, const ROWS: usize, const CHAINS: usize, const OFFSET: bool>(
                p: &PanelArgs,
            ) {
                // SAFETY: as for `tile`.
                unsafe { weight_only::panel::<V, BITS, ROWS, CHAINS, OFFSET>(p) }
            }

            pub(super) static VECTOR: VectorFunctions = FUNCTIONS;

            pub(super) const FUNCTIONS: VectorFunctions = VectorFunctions {
                lanes: V::LANES,
                transpose,
                copy,
                upcast: UpcastFunctions {
                    f32: upcast::<upcast::F32>,
                    #[cfg(feature = "half")]
                    f16: upcast::<F16>,
                    #[cfg(feature = "half")]
                    bf16: upcast::<Bf16>,
                    i8: upcast::<upcast::I8>,
                    u8: upcast::<upcast::U8>,
                },
                gemv: GemvFunctions { rows: rows::<upcast::F32>, columns: columns::<upcast::F32> },
                #[cfg(feature = "half")]
                gemv_f16: GemvFunctions { rows: rows::<F16>, columns: columns::<F16> },
                #[cfg(feature = "half")]
                gemv_bf16: GemvFunctions { rows: rows::<Bf16>, columns: columns::<Bf16> },
                epilogue,
                weight_only: weight_only::Kernels {
                    panels: [
                        [&[$(weight_only::<4, $w4_rows, $w4_chains, false>),*], &[$(weight_only::<4, $w4_rows, $w4_chains, true>),*]],
                        [&[$(weight_only::<8, $w8_rows, $w8_chains, false>),*], &[$(weight_only::<8, $w8_rows, $w8_chains, true>),*]],
                    ],
                    halves_apart: V::HALVES_APART,
                },
                rows: RowFunctions { normalize, softmax, unary },
                attention: AttentionFunctions { weigh, finish },
            };

            pub(super) static KERNELS: InstructionSet = InstructionSet {
                f32: microkernels! {
                    $name, Format::F32, Fma, forms: both, half: $half, wide_by_row: false,
                    rows: [$($one)*], packing: [$($packing)*], two: [$($two)*], four: [$($four)*]
                },
                f64: super::$f64::KERNELS,
                #[cfg(feature = "half")]
                from_f16: microkernels! {
                    concat!($name, " from f16"), Format::F16, Upcast<F16>, forms: either, half: &[], wide_by_row: false,
                    rows: [$($upcast_one)*], packing: [], two: [$($upcast_two)*], four: [$($upcast_four)*]
                },
                #[cfg(feature = "half")]
                from_bf16: microkernels! {
                    concat!($name, " from bf16"), Format::Bf16, Upcast<Bf16>, forms: either, half: &[], wide_by_row: false,
                    rows: [$($upcast_one)*], packing: [], two: [$($upcast_two)*], four: [$($upcast_four)*]
                },
            };
        }
    };
}

/// AVX2's: 14 sums, 1 of B, 1 of A in its 16 registers.
#[cfg(target_arch = "x86_64")]
static HALF_OF_AVX512: &[&[MicroKernel]] = {
    use avx2::tile;
    by_form!(both; Fma, 1, true, false; 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
};

// 32 registers: 14 x 2 sums, 2 of B; a broadcast of A is an operand of the multiplication.
instruction_set! {
    #[cfg(target_arch = "x86_64")]
    avx512, f64: avx512_f64, isa::avx512::Avx512, "avx512", features: "avx512f,avx512dq,avx2,fma",
    panel_vectors: 2, half: HALF_OF_AVX512,
    rows: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], packing: [8 9 10 11 12 13 14], two: [1 2 3 4 5 6], four: [1 2 3],
    upcast: [1 2 3 4], [1 2 3 4], [1 2 3],
    weight_only: [1 x 8 2 x 4 4 x 2 8 x 1], [1 x 8 2 x 4 4 x 2 8 x 1]
}

// 16 registers: 6 x 2 sums, 2 of B, 1 of A.
instruction_set! {
    #[cfg(target_arch = "x86_64")]
    avx2, f64: avx2_f64, isa::avx2::Avx2, "avx2", features: "avx2,f16c,fma",
    panel_vectors: 2, half: &[],
    rows: [1 2 3 4 5 6], packing: [4 5 6], two: [1 2 3], four: [1],
    upcast: [1 2 3 4], [1 2 3], [1],
    weight_only: [1 x 4 2 x 4 4 x 2], [1 x 4 2 x 2 4 x 1]
}

// 32 registers: 6 x 4 sums, 4 of B, 1 of A.
instruction_set! {
    #[cfg(target_arch = "aarch64")]
    neon, f64: neon_f64, isa::neon::Neon, "neon", features: "neon",
    panel_vectors: 4, half: &[],
    rows: [1 2 3 4 5 6], packing: [4 5 6], two: [1 2 3], four: [1],
    upcast: [1 2 3 4], [1 2 3], [1],
    weight_only: [1 x 4 2 x 2 4 x 1], [1 x 4 2 x 2 4 x 1]
}

// 16 registers of 4 lanes at least on every 64-bit machine: 3 x 8 numbers of sums and 8 of B.
instruction_set! {
    portable, f64: portable_f64, isa::portable::Portable, "portable",
    panel_vectors: 1, half: &[],
    rows: [1 2 3 4], packing: [3 4], two: [1 2], four: [1],
    upcast: [1 2], [1 2], [1],
    weight_only: [1 x 2 2 x 1], [1 x 2 2 x 1]
}

/// AVX2's of f64, as of f32.
#[cfg(target_arch = "x86_64")]
static HALF_OF_AVX512_F64: &[&[MicroKernel]] = {
    use avx2_f64::tile;
    by_form!(both; Fma, 1, true, false; 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
};

// As many registers as for f32, of half as many lanes.
float64! {
    #[cfg(target_arch = "x86_64")]
    avx512_f64, avx512, isa::avx512::Avx512F64, "avx512", features: "avx512f,avx512dq,avx2,fma",
    panel_vectors: 2, half: HALF_OF_AVX512_F64,
    rows: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], packing: [8 9 10 11 12 13 14], two: [1 2 3 4 5 6], four: [1 2 3]
}

float64! {
    #[cfg(target_arch = "x86_64")]
    avx2_f64, avx2, isa::avx2::Avx2F64, "avx2", features: "avx2,f16c,fma",
    panel_vectors: 2, half: &[],
    rows: [1 2 3 4 5 6], packing: [4 5 6], two: [1 2 3], four: [1]
}

float64! {
    #[cfg(target_arch = "aarch64")]
    neon_f64, neon, isa::neon::NeonF64, "neon", features: "neon",
    panel_vectors: 4, half: &[],
    rows: [1 2 3 4 5 6], packing: [4 5 6], two: [1 2 3], four: [1]
}

float64! {
    portable_f64, portable, isa::portable::PortableF64, "portable",
    panel_vectors: 1, half: &[],
    rows: [1 2 3 4], packing: [3 4], two: [1 2], four: [1]
}

/// A 16-bit element of B in each lane, upcast as it is loaded: a product of few rows waits for the reading of B
/// alone, which is then half as long. More rows would upcast B once for each micro-panel of A; they find
/// micro-panels of f32 that were made of these.
#[cfg(feature = "half")]
struct Upcast<E>(PhantomData<E>);

#[cfg(feature = "half")]
impl<V: Simd, E: Element> MultiplyAdd<V> for Upcast<E> {
    const B_WORDS: usize = V::LANES / 2;

    #[inline(always)]
    unsafe fn load_b(from: *const Word, _: Option<V::Mask>) -> V {
        // SAFETY: by the trait's contract; micro-panels hold whole vectors.
        unsafe { E::upcast(from.cast()) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: V, b: V, sum: V) -> V {
        // SAFETY: by the trait's contract.
        unsafe { a.mul_add(b, sum) }
    }
}

/// A module with the micro-kernels of dot products, over the vectors of `$base`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! extension {
    ($module:ident, $base:ident, $vector:ty, $operation:ty, $name:literal, $format:expr, $feature:literal,
     panel_vectors: $panel:literal, rows: [$($one:literal)*], two: [$($two:literal)*], four: [$($four:literal)*]) => {
        mod $module {
            use super::*;
            use super::$base::VECTOR;

            const PANEL: usize = $panel;
            type V = $vector;

            #[target_feature(enable = $feature)]
            unsafe fn tile<
                D: MultiplyAdd<V>,
                const MR: usize,
                const NV: usize,
                const TAIL: bool,
                const PACK: bool,
                const BY_ROW: bool,
                const BY_K: bool,
            >(
                t: &MicroTile,
            ) {
                // SAFETY: this function's contract is the same, and it enables the instruction set.
                unsafe { microkernel::<V, D, PANEL, MR, NV, TAIL, PACK, BY_ROW, BY_K>(t) }
            }

            pub(super) static KERNELS: MicroKernels = microkernels! {
                $name, $format, $operation, forms: by_row, half: &[], wide_by_row: true,
                rows: [$($one)*], packing: [], two: [$($two)*], four: [$($four)*]
            };
        }
    };
}

#[cfg(all(target_arch = "x86_64", feature = "half"))]
extension! {
    avx512_bf16, avx512, isa::avx512::Avx512, isa::avx512_dot::Bf16Pairs, "avx512-bf16", Format::Bf16Pairs,
    "avx512f,avx512dq,avx512bf16,avx2,fma",
    panel_vectors: 2, rows: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], two: [1 2 3 4 5 6], four: [1 2 3]
}

#[cfg(target_arch = "x86_64")]
extension! {
    avx512_vnni, avx512, isa::avx512::Avx512, isa::avx512_dot::Int8Quads, "avx512-vnni", Format::Int8Quads,
    "avx512f,avx512dq,avx512vnni,avx2,fma",
    panel_vectors: 2, rows: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], two: [1 2 3 4 5 6], four: [1 2 3]
}

#[cfg(target_arch = "x86_64")]
extension! {
    avx512_madd, avx512, isa::avx512::Avx512, isa::madd::Int8Pairs, "avx512-vpmaddwd", Format::Int8Pairs,
    "avx512f,avx512dq,avx512bw,avx2,fma",
    panel_vectors: 2, rows: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], two: [1 2 3 4 5 6], four: [1 2 3]
}

#[cfg(target_arch = "x86_64")]
extension! {
    avx2_madd, avx2, isa::avx2::Avx2, isa::madd::Int8Pairs, "avx2-vpmaddwd", Format::Int8Pairs, "avx2,f16c,fma",
    panel_vectors: 2, rows: [1 2 3 4 5 6], two: [], four: []
}

#[cfg(target_arch = "aarch64")]
extension! {
    neon_dotprod, neon, isa::neon::Neon, isa::neon_dot::Int8Quads, "neon-dotprod", Format::Int8Quads,
    "neon,dotprod",
    panel_vectors: 4, rows: [1 2 3 4 5 6], two: [1 2 3], four: [1]
}

#[cfg(all(target_arch = "aarch64", feature = "half"))]
extension! {
    neon_bf16, neon, isa::neon::Neon, isa::neon_bf16::Bf16Pairs, "neon-bf16", Format::Bf16Pairs,
    "neon,bf16",
    panel_vectors: 4, rows: [1 2 3 4 5 6], two: [1 2 3], four: [1]
}

pub(crate) fn of(isa: Isa) -> &'static InstructionSet {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &avx512::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &avx2::KERNELS,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => &neon::KERNELS,
        Isa::Portable => &portable::KERNELS,
    }
}

/// The micro-kernels of dot products, where there are any.
pub(crate) fn dot(isa: Isa, dot: Dot) -> Option<&'static MicroKernels> {
    match (isa, dot) {
        #[cfg(all(target_arch = "x86_64", feature = "half"))]
        (Isa::Avx512, Dot::Bf16) => Some(&avx512_bf16::KERNELS),
        #[cfg(all(target_arch = "x86_64", not(feature = "half")))]
        (Isa::Avx512, Dot::Bf16) => None,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, Dot::Int8) => Some(&avx512_vnni::KERNELS),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, Dot::Int8Pairs) => Some(&avx512_madd::KERNELS),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Dot::Int8Pairs) => Some(&avx2_madd::KERNELS),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Dot::Bf16 | Dot::Int8) => None,
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon, Dot::Int8Pairs) => None,
        #[cfg(all(target_arch = "aarch64", feature = "half"))]
        (Isa::Neon, Dot::Bf16) => Some(&neon_bf16::KERNELS),
        #[cfg(all(target_arch = "aarch64", not(feature = "half")))]
        (Isa::Neon, Dot::Bf16) => None,
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon, Dot::Int8) => Some(&neon_dotprod::KERNELS),
        (Isa::Portable, Dot::Bf16 | Dot::Int8 | Dot::Int8Pairs) => None,
    }
}
