//! Tiles of a B in panels of 16-bit elements, which become f32 as they are read: a product of few rows
//! waits for the reading of B alone, which is then half as long.
//!
//! More rows would convert B once for each strip of them; they find panels of f32 that were made of these.

use std::marker::PhantomData;

#[cfg(target_arch = "aarch64")]
use super::neon;
use super::portable;
use super::{ByRows, Kernels, PanelTiles, TileFn};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::backend::cpu::simd;
use crate::backend::cpu::tile::{Dot, Tile};
use crate::backend::cpu::widen::{Bf16, Element, F16, Widen};

/// A 16-bit element of B in each lane.
struct Halves<E>(PhantomData<E>);

impl<V: Widen, E: Element> Dot<V> for Halves<E> {
    const B_WORDS: usize = V::LANES / 2;

    #[inline(always)]
    unsafe fn load_b(from: *const f32, _: Option<V::Mask>) -> V {
        // SAFETY: by the trait's contract; panels hold whole vectors.
        unsafe { E::widen(from.cast()) }
    }

    #[inline(always)]
    unsafe fn add_product(a: V, b: V, sum: V) -> V {
        // SAFETY: by the trait's contract.
        unsafe { a.mul_add(b, sum) }
    }
}

macro_rules! halves {
    (
        $(#[$cfg:meta])* $module:ident, $base:ident, $vector:ty, $element:ty, $name:literal,
        $(features: $feature:literal,)?
        rows: [$($one:literal)*], two: [$($two:literal)*], four: [$($four:literal)*]
    ) => {
        $(#[$cfg])*
        mod $module {
            use super::*;

            const PANEL: usize = $base::TABLE.panel_vectors;

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
                unsafe {
                    crate::backend::cpu::tile::tile::<
                        $vector, Halves<$element>, PANEL, MR, NV, TAIL, BY_K, PACK,
                    >(t);
                }
            }

            const SINGLE: ByRows = by_rows!(1, true, false; $($one)*);
            const TAIL: ByRows = by_rows!(PANEL, true, false; $($one)*);
            const WHOLE: ByRows = by_rows!(PANEL, false, false; $($one)*);

            pub(super) static KERNELS: Kernels = Kernels {
                name: $name,
                b_words: $base::TABLE.lanes / 2,
                reading: PanelTiles { single: SINGLE, tail: TAIL, whole: WHOLE },
                // B is in panels: nothing is packed on the way.
                packing: PanelTiles { single: SINGLE, tail: TAIL, whole: WHOLE },
                wide: [
                    by_rows!(2 * PANEL, false, false; $($two)*),
                    by_rows!(4 * PANEL, false, false; $($four)*),
                ],
                ..$base::TABLE
            };
        }
    };
}

halves! {
    #[cfg(target_arch = "x86_64")]
    avx512_f16, avx512, simd::avx512::Avx512, F16, "avx512 from f16", features: "avx512f,avx512dq,avx2,fma",
    rows: [1 2 3 4], two: [1 2 3 4], four: [1 2 3]
}

halves! {
    #[cfg(target_arch = "x86_64")]
    avx512_bf16, avx512, simd::avx512::Avx512, Bf16, "avx512 from bf16", features: "avx512f,avx512dq,avx2,fma",
    rows: [1 2 3 4], two: [1 2 3 4], four: [1 2 3]
}

halves! {
    #[cfg(target_arch = "x86_64")]
    avx2_f16, avx2, simd::avx2::Avx2, F16, "avx2 from f16", features: "avx2,f16c,fma",
    rows: [1 2 3 4], two: [1 2 3], four: [1]
}

halves! {
    #[cfg(target_arch = "x86_64")]
    avx2_bf16, avx2, simd::avx2::Avx2, Bf16, "avx2 from bf16", features: "avx2,f16c,fma",
    rows: [1 2 3 4], two: [1 2 3], four: [1]
}

halves! {
    #[cfg(target_arch = "aarch64")]
    neon_f16, neon, simd::neon::Neon, F16, "neon from f16", features: "neon",
    rows: [1 2 3 4], two: [1 2 3], four: [1]
}

halves! {
    #[cfg(target_arch = "aarch64")]
    neon_bf16, neon, simd::neon::Neon, Bf16, "neon from bf16", features: "neon",
    rows: [1 2 3 4], two: [1 2 3], four: [1]
}

halves! {
    portable_f16, portable, simd::portable::Portable, F16, "portable from f16",
    rows: [1 2], two: [1 2], four: [1]
}

halves! {
    portable_bf16, portable, simd::portable::Portable, Bf16, "portable from bf16",
    rows: [1 2], two: [1 2], four: [1]
}

/// The kernels for a B in 16-bit panels that go with `kernels`: f16, or else bf16.
pub(in super::super) fn halves(kernels: &Kernels, f16: bool) -> &'static Kernels {
    match (kernels.name, f16) {
        #[cfg(target_arch = "x86_64")]
        ("avx512", true) => &avx512_f16::KERNELS,
        #[cfg(target_arch = "x86_64")]
        ("avx512", false) => &avx512_bf16::KERNELS,
        #[cfg(target_arch = "x86_64")]
        ("avx2", true) => &avx2_f16::KERNELS,
        #[cfg(target_arch = "x86_64")]
        ("avx2", false) => &avx2_bf16::KERNELS,
        #[cfg(target_arch = "aarch64")]
        ("neon", true) => &neon_f16::KERNELS,
        #[cfg(target_arch = "aarch64")]
        ("neon", false) => &neon_bf16::KERNELS,
        (_, true) => &portable_f16::KERNELS,
        (_, false) => &portable_bf16::KERNELS,
    }
}
