//! Products of a matrix and a vector, which memory bandwidth limits.

use super::isa::Vector;
use super::pack::Word;
use super::pack::upcast::Load;

/// `y = M x`, M stored by rows of contiguous k or by columns of contiguous outputs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gemv {
    pub outputs: usize,
    pub k: usize,
    /// Of the function's type of element.
    pub matrix: *const u8,
    /// From one contiguous run of M to the next, in elements.
    pub stride: usize,
    /// k contiguous numbers: f64 for a matrix of f64, else f32.
    pub x: *const Word,
    /// `outputs` contiguous numbers, which need not be initialised.
    pub y: *mut Word,
}

/// The functions of an instruction set for one type of element of M.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GemvFunctions {
    /// [`gemv_rows`].
    pub rows: unsafe fn(&Gemv),
    /// [`gemv_columns`].
    pub columns: unsafe fn(&Gemv),
}

/// The vectors of a row that are summed side by side; the same for every row, so that its result
/// does not depend on its neighbours.
const CHAINS: usize = 2;

/// M by rows: a scalar product for each output.
///
/// # Safety
/// As [`Vector`]; the pointers cover what [`Gemv`] says; nothing else accesses y meanwhile.
#[inline(always)]
pub(crate) unsafe fn gemv_rows<V: Vector, E: Load<V>>(g: &Gemv) {
    const ROWS: usize = 4;
    let whole = g.outputs / ROWS * ROWS;
    // SAFETY: by the function's own contract; the rows stay below `outputs`.
    unsafe {
        for row in (0..whole).step_by(ROWS) {
            dot::<V, E, ROWS>(g, row);
        }
        for row in whole..g.outputs {
            dot::<V, E, 1>(g, row);
        }
    }
}

#[inline(always)]
unsafe fn dot<V: Vector, E: Load<V>, const ROWS: usize>(g: &Gemv, first: usize) {
    // SAFETY: by the contract of `gemv_rows`.
    unsafe {
        let rows = g.matrix.cast::<E::Bits>().add(first * g.stride);
        let mut sums = [[V::zero(); CHAINS]; ROWS];
        let step = CHAINS * V::LANES;
        let whole = g.k / step * step;
        for k in (0..whole).step_by(step) {
            for chain in 0..CHAINS {
                products::<V, E, ROWS>(g, rows, k + chain * V::LANES, None, chain, &mut sums);
            }
        }
        for chain in 0..CHAINS {
            let k = whole + chain * V::LANES;
            if k < g.k {
                products::<V, E, ROWS>(g, rows, k, Some(g.k - k), chain, &mut sums);
            }
        }
        for (i, [first_chain, second_chain]) in sums.into_iter().enumerate() {
            g.y.cast::<V::Number>().add(first + i).write(first_chain.add(second_chain).sum());
        }
    }
}

#[inline(always)]
unsafe fn products<V: Vector, E: Load<V>, const ROWS: usize>(
    g: &Gemv,
    rows: *const E::Bits,
    k: usize,
    part: Option<usize>,
    chain: usize,
    sums: &mut [[V; CHAINS]; ROWS],
) {
    // SAFETY: by the contract of `gemv_rows`.
    unsafe {
        let x = V::load_part(g.x.cast::<V::Number>().add(k), part.map(|count| V::mask(count)));
        for (i, sum) in sums.iter_mut().enumerate() {
            sum[chain] = E::load_part(rows.add(i * g.stride + k), part).mul_add(x, sum[chain]);
        }
    }
}

/// How many bytes ahead each row of f32 or f64 is prefetched (1x3072x768 of f32 with B in memory took 414 us with this,
/// longer blocks and shorter passes, and 457 without; with B in the third level no less; Zen 4).
const AHEAD_BYTES: usize = 256;

/// M by columns: rows of k are added to y, which stays in the first-level cache.
///
/// # Safety
/// As [`gemv_rows`].
#[inline(always)]
pub(crate) unsafe fn gemv_columns<V: Vector, E: Load<V>>(g: &Gemv) {
    // The rows of a pass and y are no more than the ways of a first-level cache, in whose sets rows that are a
    // multiple of 4 KiB apart all meet. Vectors of half a line go in pairs, and nothing asks for f32 ahead: 1x3072x384
    // took 125 us so and 165 as whole lines do, 1x3072x768 from memory 685 and 723 (Zen 1, 2026-12-01).
    // SAFETY: by the function's own contract.
    unsafe {
        if const { size_of::<V>() == 32 } {
            passes::<V, E, 6, 2>(g);
        } else {
            passes::<V, E, 7, 1>(g);
        }
    }
}

/// Adds `KS` rows at a time, `NV` vectors side by side.
///
/// # Safety
/// As [`gemv_rows`].
#[inline(always)]
unsafe fn passes<V: Vector, E: Load<V>, const KS: usize, const NV: usize>(g: &Gemv) {
    const BLOCK_BYTES: usize = 16 << 10;
    let block_len = BLOCK_BYTES / size_of::<V::Number>();
    // SAFETY: by the function's own contract; a block stays below `outputs`.
    unsafe {
        for first in (0..g.outputs).step_by(block_len) {
            let block = block_len.min(g.outputs - first);
            let mut k = 0;
            while k + KS <= g.k {
                axpy::<V, E, KS, NV>(g, first, block, k, true);
                k += KS;
            }
            while k < g.k {
                axpy::<V, E, 1, NV>(g, first, block, k, false);
                k += 1;
            }
        }
    }
}

/// `ask`: whether the next pass is as long, and may be asked for.
#[inline(always)]
unsafe fn axpy<V: Vector, E: Load<V>, const KS: usize, const NV: usize>(
    g: &Gemv,
    first: usize,
    block: usize,
    k: usize,
    ask: bool,
) {
    // SAFETY: by the contract of `gemv_columns`.
    unsafe {
        let mut x = [V::zero(); KS];
        for (i, x) in x.iter_mut().enumerate() {
            *x = V::splat(*g.x.cast::<V::Number>().add(k + i));
        }
        let step = NV * V::LANES;
        // Rows of narrow elements are short streams. Those of the next pass are asked for line by line: as many
        // for each step as a pass has lines for it.
        let line = 64 / size_of::<E::Bits>();
        let ahead =
            if ask && size_of::<E::Bits>() < size_of::<f32>() { (KS * step).div_ceil(line) } else { 0 };
        let mut col = 0;
        while col + step <= block {
            let row = k + KS + col % line / step * ahead;
            let next = g.matrix.cast::<E::Bits>().wrapping_add(row * g.stride + first + col);
            for i in 0..ahead {
                V::prefetch_l2(next.wrapping_add(i * g.stride));
            }
            add_rows::<V, E, KS, NV>(g, first + col, k, x, None);
            col += step;
        }
        while col < block {
            let part = Some(block - col).filter(|&there| there < V::LANES);
            add_rows::<V, E, KS, 1>(g, first + col, k, x, part);
            col += V::LANES;
        }
    }
}

#[inline(always)]
unsafe fn add_rows<V: Vector, E: Load<V>, const KS: usize, const NV: usize>(
    g: &Gemv,
    col: usize,
    k: usize,
    x: [V; KS],
    part: Option<usize>,
) {
    // SAFETY: by the contract of `gemv_columns`.
    unsafe {
        let y = g.y.cast::<V::Number>().add(col);
        let mask = part.map(|count| V::mask(count));
        // Beyond the columns lie those of another thread.
        let columns_ahead = AHEAD_BYTES / size_of::<E::Bits>();
        let whole_lines = size_of::<V>() != 32 && size_of::<E::Bits>() >= size_of::<f32>();
        let ahead = whole_lines && col + columns_ahead < g.outputs;
        let mut sums = [V::zero(); NV];
        if k > 0 {
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = V::load_part(y.add(v * V::LANES), mask);
            }
        }
        for (i, x) in x.into_iter().enumerate() {
            let row = g.matrix.cast::<E::Bits>().add((k + i) * g.stride + col);
            if ahead {
                V::prefetch(row.wrapping_add(columns_ahead));
            }
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = x.mul_add(E::load_part(row.add(v * V::LANES), part), *sum);
            }
        }
        for (v, sum) in sums.into_iter().enumerate() {
            sum.store_part(y.add(v * V::LANES), mask);
        }
    }
}
