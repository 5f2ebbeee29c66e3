//! Products of a matrix and a vector, which memory bandwidth limits.

use super::isa::Simd;

/// `y = M x`, M stored by rows of contiguous k or by columns of contiguous outputs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gemv {
    pub outputs: usize,
    pub k: usize,
    pub matrix: *const f32,
    /// From one contiguous run of M to the next.
    pub stride: usize,
    /// k contiguous numbers.
    pub x: *const f32,
    /// `outputs` contiguous numbers, which need not be initialised.
    pub y: *mut f32,
}

/// The vectors of a row that are summed side by side; the same for every row, so that its result
/// does not depend on its neighbours.
const CHAINS: usize = 2;

/// M by rows: a scalar product for each output.
///
/// # Safety
/// As [`Simd`]; the pointers cover what [`Gemv`] says; nothing else accesses y meanwhile.
#[inline(always)]
pub(crate) unsafe fn gemv_rows<V: Simd>(g: &Gemv) {
    const ROWS: usize = 4;
    let whole = g.outputs / ROWS * ROWS;
    // SAFETY: by the function's own contract; the rows stay below `outputs`.
    unsafe {
        for row in (0..whole).step_by(ROWS) {
            dot::<V, ROWS>(g, row);
        }
        for row in whole..g.outputs {
            dot::<V, 1>(g, row);
        }
    }
}

#[inline(always)]
unsafe fn dot<V: Simd, const ROWS: usize>(g: &Gemv, first: usize) {
    // SAFETY: by the contract of `gemv_rows`.
    unsafe {
        let rows = g.matrix.add(first * g.stride);
        let mut sums = [[V::splat(0.0); CHAINS]; ROWS];
        let step = CHAINS * V::LANES;
        let whole = g.k / step * step;
        for k in (0..whole).step_by(step) {
            for chain in 0..CHAINS {
                products(g, rows, k + chain * V::LANES, None, chain, &mut sums);
            }
        }
        for chain in 0..CHAINS {
            let k = whole + chain * V::LANES;
            if k < g.k {
                products(g, rows, k, Some(V::mask(g.k - k)), chain, &mut sums);
            }
        }
        for (i, [first_chain, second_chain]) in sums.into_iter().enumerate() {
            g.y.add(first + i).write(first_chain.add(second_chain).sum());
        }
    }
}

#[inline(always)]
unsafe fn products<V: Simd, const ROWS: usize>(
    g: &Gemv,
    rows: *const f32,
    k: usize,
    mask: Option<V::Mask>,
    chain: usize,
    sums: &mut [[V; CHAINS]; ROWS],
) {
    // SAFETY: by the contract of `gemv_rows`.
    unsafe {
        let x = V::load_part(g.x.add(k), mask);
        for (i, sum) in sums.iter_mut().enumerate() {
            sum[chain] = V::load_part(rows.add(i * g.stride + k), mask).mul_add(x, sum[chain]);
        }
    }
}

/// The rows of k that one pass over y adds.
const PASS: usize = 8;

/// M by columns: rows of k are added to y, which stays in the first-level cache.
///
/// # Safety
/// As [`gemv_rows`].
#[inline(always)]
pub(crate) unsafe fn gemv_columns<V: Simd>(g: &Gemv) {
    /// 8 KiB of y.
    const BLOCK: usize = 2048;
    // SAFETY: by the function's own contract; a block stays below `outputs`.
    unsafe {
        for first in (0..g.outputs).step_by(BLOCK) {
            let block = BLOCK.min(g.outputs - first);
            let mut k = 0;
            while k + PASS <= g.k {
                axpy::<V, PASS>(g, first, block, k);
                k += PASS;
            }
            while k < g.k {
                axpy::<V, 1>(g, first, block, k);
                k += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn axpy<V: Simd, const KS: usize>(g: &Gemv, first: usize, block: usize, k: usize) {
    // SAFETY: by the contract of `gemv_columns`.
    unsafe {
        let mut x = [V::splat(0.0); KS];
        for (i, x) in x.iter_mut().enumerate() {
            *x = V::splat(*g.x.add(k + i));
        }
        let whole = block / V::LANES * V::LANES;
        for col in (0..whole).step_by(V::LANES) {
            add_rows(g, first + col, k, x, None);
        }
        if whole < block {
            add_rows(g, first + whole, k, x, Some(V::mask(block - whole)));
        }
    }
}

#[inline(always)]
unsafe fn add_rows<V: Simd, const KS: usize>(
    g: &Gemv,
    col: usize,
    k: usize,
    x: [V; KS],
    mask: Option<V::Mask>,
) {
    // SAFETY: by the contract of `gemv_columns`.
    unsafe {
        let y = g.y.add(col);
        let mut sum = if k == 0 { V::splat(0.0) } else { V::load_part(y, mask) };
        for (i, x) in x.into_iter().enumerate() {
            sum = x.mul_add(V::load_part(g.matrix.add((k + i) * g.stride + col), mask), sum);
        }
        sum.store_part(y, mask);
    }
}
