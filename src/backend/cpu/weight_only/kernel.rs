//! The kernel, written once over [`Lanes`], and the functions of each instruction set.

use super::lanes::{self, Lanes};

/// One panel of B, a vector of columns, by some rows of A.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panel {
    /// Group by group: words of [`Lanes::LANES`] columns, then a scale for each column.
    pub b: *const u32,
    pub groups: usize,
    /// The words of each column in a group, and in the last one.
    pub words: usize,
    pub last_words: usize,
    /// As many numbers of each row as a word has integers, row by row, for each word in turn.
    pub a: *const f32,
    /// Subtracted from each integer.
    pub offset: f32,
    /// Where the sums go: row by row, [`Lanes::LANES`] numbers each.
    pub sums: *mut f32,
}

/// Computes `ROWS` rows, adding the products of each in `CHAINS` sums by turns, or in as many as a word has
/// integers.
///
/// # Safety
/// As [`Lanes`]; the panel's pointers cover what it says.
#[inline(always)]
unsafe fn panel<V: Lanes, const BITS: u32, const ROWS: usize, const CHAINS: usize, const OFFSET: bool>(
    p: &Panel,
) {
    // SAFETY: by the function's own contract.
    unsafe {
        let integers = (32 / BITS) as usize;
        let offset = V::splat(p.offset);
        let mut totals = [V::splat(0.0); ROWS];
        let (mut a, mut b) = (p.a, p.b);
        for group in 1..=p.groups {
            let words = if group == p.groups { p.last_words } else { p.words };
            let mut sums = [[V::splat(0.0); CHAINS]; ROWS];
            for _ in 0..words {
                V::prefetch(b.wrapping_add(AHEAD_WORDS));
                let word = V::words(b);
                b = b.add(V::LANES);
                for i in 0..integers {
                    #[allow(clippy::cast_possible_truncation, reason = "below 8")]
                    let mut x = V::integers::<BITS>(word, i as u32);
                    if OFFSET {
                        x = x.sub(offset);
                    }
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let sum = &mut sums[i % CHAINS];
                        *sum = V::splat(*a.add(row * integers + i)).mul_add(x, *sum);
                    }
                }
                a = a.add(ROWS * integers);
            }
            let scale = V::load(b.cast());
            b = b.add(V::LANES);
            for (total, sums) in totals.iter_mut().zip(&sums) {
                let mut sum = sums[0];
                for other in &sums[1..CHAINS.min(integers)] {
                    sum = sum.add(*other);
                }
                *total = sum.mul_add(scale, *total);
            }
        }
        for (row, total) in totals.iter().enumerate() {
            total.store(p.sums.add(row * V::LANES));
        }
    }
}

/// How far ahead of its use a part of B is asked for (1x3072x768 with 4-bit weights from memory took 37 us with
/// this and 42 with a third of it; Zen 5, 2026-11-25).
const AHEAD_WORDS: usize = 3072;

pub(super) type PanelFn = unsafe fn(&Panel);

/// The functions of one instruction set.
pub(super) struct Kernels {
    pub lanes: usize,
    /// By 4 or 8 bits, without or with an offset, for 1, 2, 4 and perhaps 8 rows.
    panels: [[&'static [PanelFn]; 2]; 2],
}

impl Kernels {
    /// The rows of the smallest tile that has `rows`, or of the largest one.
    pub(super) fn tile_rows(&self, rows: usize) -> usize {
        rows.next_power_of_two().min(1 << (self.panels[0][0].len() - 1))
    }

    /// The function for integers of `bits` bits and tiles of `rows` rows.
    pub(super) fn panel(&self, bits: usize, offset: bool, rows: usize) -> PanelFn {
        self.panels[usize::from(bits == 8)][usize::from(offset)][rows.trailing_zeros() as usize]
    }
}

/// A module with the functions of one instruction set, each enabling `$feature`.
macro_rules! instruction_set {
    ($(#[$cfg:meta])* $module:ident, $vector:ty, $(features: $feature:literal,)? tiles: [$($rows:literal x $chains:literal)*]) => {
        $(#[$cfg])*
        mod $module {
            use super::*;

            type V = $vector;

            $(#[target_feature(enable = $feature)])?
            unsafe fn panel<const BITS: u32, const ROWS: usize, const CHAINS: usize, const OFFSET: bool>(p: &Panel) {
                // SAFETY: this function's contract is the same, and it enables the instruction set.
                unsafe { super::panel::<V, BITS, ROWS, CHAINS, OFFSET>(p) }
            }

            pub(super) static KERNELS: Kernels = Kernels {
                lanes: V::LANES,
                panels: [
                    [&[$(panel::<4, $rows, $chains, false>),*], &[$(panel::<4, $rows, $chains, true>),*]],
                    [&[$(panel::<8, $rows, $chains, false>),*], &[$(panel::<8, $rows, $chains, true>),*]],
                ],
            };
        }
    };
}

instruction_set! {
    #[cfg(target_arch = "x86_64")]
    avx512, lanes::Avx512, features: "avx512f", tiles: [1 x 8 2 x 4 4 x 2 8 x 1]
}

instruction_set! {
    #[cfg(target_arch = "x86_64")]
    avx2, lanes::Avx2, features: "avx2,fma", tiles: [1 x 4 2 x 2 4 x 1]
}

instruction_set! {
    #[cfg(target_arch = "aarch64")]
    neon, lanes::Neon, features: "neon", tiles: [1 x 4 2 x 2 4 x 1]
}

instruction_set! {
    portable, lanes::Portable, tiles: [1 x 2 2 x 1]
}

/// The functions of the instruction set that the engine uses, by its name.
pub(super) fn of(name: &str) -> &'static Kernels {
    match name {
        #[cfg(target_arch = "x86_64")]
        "avx512" => &avx512::KERNELS,
        #[cfg(target_arch = "x86_64")]
        "avx2" => &avx2::KERNELS,
        #[cfg(target_arch = "aarch64")]
        "neon" => &neon::KERNELS,
        _ => &portable::KERNELS,
    }
}
