//! Micro-kernels for a float A by packed integers, which are upcast in registers and scaled group by group.

use crate::backend::cpu::isa::Simd;
use crate::backend::cpu::pack::Word;

/// One micro-panel of B, a vector of columns, by some rows of A.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanelArgs {
    /// Group by group: words of [`Simd::LANES`] columns, then a scale for each column.
    pub b: *const Word,
    pub groups: usize,
    /// The words of each column in a group, and in the last one.
    pub words: usize,
    pub last_words: usize,
    /// As many numbers of each row as a word has integers, row by row, for each word in turn.
    pub a: *const f32,
    /// Subtracted from each integer.
    pub offset: f32,
    /// Where the sums go: row by row, [`Simd::LANES`] numbers each.
    pub sums: *mut f32,
}

/// Computes `ROWS` rows, adding the products of each in `CHAINS` sums by turns, or in as many as a word has
/// integers.
///
/// # Safety
/// As [`Simd`]; the micro-panel's pointers cover what it says.
#[inline(always)]
pub(crate) unsafe fn panel<
    V: Simd,
    const BITS: u32,
    const ROWS: usize,
    const CHAINS: usize,
    const OFFSET: bool,
>(
    p: &PanelArgs,
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
                let word = V::load_words(b.cast());
                b = b.add(V::LANES);
                V::for_each_integer::<BITS>(word, |i, x| {
                    let x = if OFFSET { x.sub(offset) } else { x };
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let sum = &mut sums[i % CHAINS];
                        *sum = V::splat(*a.add(row * integers + i)).mul_add(x, *sum);
                    }
                });
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

/// How far ahead B is prefetched (1x3072x768 with 4-bit weights from memory took 37 us with
/// this and 42 with a third of it; Zen 5, 2026-11-25).
const AHEAD_WORDS: usize = 3072;

pub(crate) type PanelFn = unsafe fn(&PanelArgs);

/// The functions of one instruction set.
pub(crate) struct Kernels {
    /// By 4 or 8 bits, without or with an offset, for 1, 2, 4 and perhaps 8 rows.
    pub panels: [[&'static [PanelFn]; 2]; 2],
    /// [`Simd::HALVES_APART`].
    pub halves_apart: bool,
}

impl Kernels {
    /// The rows of the smallest tile that has `rows`, or of the largest one.
    pub(crate) fn tile_rows(&self, rows: usize) -> usize {
        rows.next_power_of_two().min(1 << (self.panels[0][0].len() - 1))
    }

    /// The function for integers of `bits` bits and tiles of `rows` rows.
    pub(crate) fn panel(&self, bits: usize, offset: bool, rows: usize) -> PanelFn {
        self.panels[usize::from(bits == 8)][usize::from(offset)][rows.trailing_zeros() as usize]
    }
}
