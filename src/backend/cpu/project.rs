//! Products of a matrix with a few vectors at a time, in one pass over the matrix: for self-checks,
//! which share no kernel with the products that they verify.

use super::kernel::{self, Kernels};
use super::simd::Simd;

/// The vectors that one pass multiplies with.
pub(crate) const VECTORS: usize = 2;

/// The numbers that a pass finds for a row: its products with the vectors, and the sum of its
/// magnitudes, weighted.
pub(crate) const FOUND: usize = VECTORS + 1;

/// The longest sums in f32; they are added up in f64.
const BLOCK: usize = 1024;

/// Some rows of a matrix, or as many columns, and the vectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Projection {
    pub rows: usize,
    /// The terms of each sum.
    pub terms: usize,
    pub matrix: *const f32,
    /// From one contiguous run of the matrix to the next.
    pub stride: usize,
    /// `VECTORS` vectors of `terms` numbers, then the weights of the magnitudes.
    pub vectors: *const f32,
    /// From one vector to the next.
    pub vector_stride: usize,
    /// Where the sums of row `i` go: `FOUND` numbers from `i * FOUND` on. Nothing is written for
    /// magnitudes where they are not asked for.
    pub found: *mut f32,
}

/// Rows of contiguous terms.
///
/// # Safety
/// As [`Simd`]; the pointers cover what [`Projection`] says.
#[inline(always)]
pub(super) unsafe fn project_rows<V: Simd, const ROWS: usize, const SIZES: bool>(p: &Projection) {
    let whole = p.rows / ROWS * ROWS;
    // SAFETY: by the function's own contract; the rows stay below `rows`.
    unsafe {
        for row in (0..whole).step_by(ROWS) {
            rows::<V, ROWS, SIZES>(p, row);
        }
        for row in whole..p.rows {
            rows::<V, 1, SIZES>(p, row);
        }
    }
}

#[inline(always)]
unsafe fn rows<V: Simd, const ROWS: usize, const SIZES: bool>(p: &Projection, first: usize) {
    // SAFETY: by the contract of `project_rows`.
    unsafe {
        let matrix = p.matrix.add(first * p.stride);
        // A page for each row: the hardware does not see the next one coming.
        let ahead = matrix.wrapping_add(ROWS * p.stride);
        let (mut sums, mut sizes) = ([[V::splat(0.0); VECTORS]; ROWS], [V::splat(0.0); ROWS]);
        let whole = p.terms / V::LANES * V::LANES;
        for term in (0..whole).step_by(V::LANES) {
            for row in 0..ROWS {
                V::prefetch(ahead.wrapping_add(row * p.stride + term));
            }
            terms::<V, ROWS, SIZES>(p, matrix, term, None, &mut sums, &mut sizes);
        }
        if whole < p.terms {
            let mask = Some(V::mask(p.terms - whole));
            terms::<V, ROWS, SIZES>(p, matrix, whole, mask, &mut sums, &mut sizes);
        }
        // Through memory: summing up a register would keep the sums in the 16 that narrower vectors can
        // name, while the loop needs more.
        let (sums, sizes) = std::hint::black_box((sums, sizes));
        for (row, sums) in sums.iter().enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                p.found.add((first + row) * FOUND + i).write(sum.sum());
            }
        }
        if SIZES {
            for (row, size) in sizes.iter().enumerate() {
                p.found.add((first + row) * FOUND + VECTORS).write(size.sum());
            }
        }
    }
}

#[inline(always)]
unsafe fn terms<V: Simd, const ROWS: usize, const SIZES: bool>(
    p: &Projection,
    matrix: *const f32,
    term: usize,
    mask: Option<V::Mask>,
    sums: &mut [[V; VECTORS]; ROWS],
    sizes: &mut [V; ROWS],
) {
    // SAFETY: by the contract of `project_rows`.
    unsafe {
        let mut factors = [V::splat(0.0); VECTORS];
        for (i, factor) in factors.iter_mut().enumerate() {
            *factor = V::load_part(p.vectors.add(i * p.vector_stride + term), mask);
        }
        for (row, (sums, size)) in sums.iter_mut().zip(sizes).enumerate() {
            let x = V::load_part(matrix.add(row * p.stride + term), mask);
            for (sum, factor) in sums.iter_mut().zip(factors) {
                *sum = x.mul_add(factor, *sum);
            }
            if SIZES {
                let weight = V::load_part(p.vectors.add(VECTORS * p.vector_stride + term), mask);
                *size = x.abs().mul_add(weight, *size);
            }
        }
    }
}

/// Columns: the runs of the matrix are terms, of `rows` contiguous numbers each.
///
/// # Safety
/// As [`project_rows`].
#[inline(always)]
pub(super) unsafe fn project_columns<V: Simd, const SIZES: bool>(p: &Projection) {
    let whole = p.rows / V::LANES * V::LANES;
    // SAFETY: by the function's own contract; the columns stay below `rows`.
    unsafe {
        for col in (0..whole).step_by(V::LANES) {
            columns::<V, SIZES>(p, col, V::LANES, None);
        }
        if whole < p.rows {
            columns::<V, SIZES>(p, whole, p.rows - whole, Some(V::mask(p.rows - whole)));
        }
    }
}

#[inline(always)]
unsafe fn columns<V: Simd, const SIZES: bool>(
    p: &Projection,
    first: usize,
    count: usize,
    mask: Option<V::Mask>,
) {
    /// How far ahead the matrix is asked for, in terms.
    const AHEAD: usize = 16;
    const MOST_LANES: usize = 16;
    // SAFETY: by the contract of `project_rows`; no vector has more lanes.
    unsafe {
        let mut sums = [V::splat(0.0); FOUND];
        for term in 0..p.terms {
            V::prefetch(p.matrix.wrapping_add((term + AHEAD) * p.stride + first));
            let x = V::load_part(p.matrix.add(term * p.stride + first), mask);
            for (i, sum) in sums.iter_mut().enumerate().take(VECTORS) {
                *sum = x.mul_add(V::splat(*p.vectors.add(i * p.vector_stride + term)), *sum);
            }
            if SIZES {
                let weight = V::splat(*p.vectors.add(VECTORS * p.vector_stride + term));
                sums[VECTORS] = x.abs().mul_add(weight, sums[VECTORS]);
            }
        }
        let mut lanes = [0f32; MOST_LANES];
        for (i, sum) in sums.iter().enumerate().take(VECTORS + usize::from(SIZES)) {
            sum.store(lanes.as_mut_ptr());
            for (col, &x) in lanes.iter().enumerate().take(count) {
                p.found.add((first + col) * FOUND + i).write(x);
            }
        }
    }
}

/// A matrix in memory, by rows or as its transpose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct F32Matrix<'a> {
    pub data: &'a [f32],
    /// From one contiguous run of the matrix to the next.
    pub stride: usize,
    pub rows: usize,
    pub cols: usize,
    /// Whether the runs are the matrix's columns.
    pub transposed: bool,
}

/// The vectors of [`Projector::project`], one after the other: `VECTORS` of them, then the weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vectors<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// The kernels of this machine for products with a few vectors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Projector(&'static Kernels);

impl Projector {
    pub(crate) fn new() -> Self {
        Self(kernel::detect().unwrap_or(kernel::portable()))
    }

    /// Adds to `found`, for every row of the matrix, its products with the vectors and, with `sizes`,
    /// the sum of its magnitudes times the weights.
    ///
    /// # Panics
    /// When the matrix, the vectors or `found` are shorter than they should be.
    pub(crate) fn project(
        self,
        matrix: &F32Matrix<'_>,
        vectors: &Vectors<'_>,
        sizes: bool,
        found: &mut [[f64; FOUND]],
    ) {
        /// Rows whose sums wait to be added up.
        const ROWS: usize = 64;
        let F32Matrix { data, stride, rows, cols, transposed } = *matrix;
        if rows == 0 || cols == 0 {
            return;
        }
        let (runs, run) = if transposed { (cols, rows) } else { (rows, cols) };
        assert!(data.len() >= (runs - 1) * stride + run, "a short matrix");
        assert!(
            vectors.data.len() >= VECTORS * vectors.stride + cols && vectors.stride >= cols,
            "short vectors"
        );
        assert!(found.len() >= rows, "too few sums");
        let kernel = match (transposed, sizes) {
            (false, false) => self.0.project_rows[0],
            (false, true) => self.0.project_rows[1],
            (true, false) => self.0.project_columns[0],
            (true, true) => self.0.project_columns[1],
        };
        let mut sums = [[0f32; FOUND]; ROWS];
        for row in (0..rows).step_by(ROWS) {
            let count = ROWS.min(rows - row);
            for col in (0..cols).step_by(BLOCK) {
                let start = if transposed { col * stride + row } else { row * stride + col };
                let projection = Projection {
                    rows: count,
                    terms: BLOCK.min(cols - col),
                    matrix: data[start..].as_ptr(),
                    stride,
                    vectors: vectors.data[col..].as_ptr(),
                    vector_stride: vectors.stride,
                    found: sums.as_mut_ptr().cast(),
                };
                // SAFETY: `detect` gives kernels of this machine; the lengths were checked above, and
                // `sums` has room for `count` rows.
                unsafe { kernel(&projection) };
                for (found, sums) in found[row..].iter_mut().zip(&sums[..count]) {
                    for (found, &sum) in found.iter_mut().zip(sums).take(VECTORS + usize::from(sizes)) {
                        *found += f64::from(sum);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn every_kernel_projects_rows_and_columns() {
        const SIZES: [(usize, usize); 6] = [(1, 1), (3, 7), (4, 16), (9, 33), (70, 1100), (130, 2050)];
        // The large ones take an interpreter longer than all other tests.
        let sizes_here = if cfg!(miri) { &SIZES[..4] } else { &SIZES };
        let mut random = Random::new(5);
        for kernels in kernel::here() {
            for &(rows, cols) in sizes_here {
                for transposed in [false, true] {
                    let (runs, run) = if transposed { (cols, rows) } else { (rows, cols) };
                    let (stride, vector_stride) = (run + 3, cols + 5);
                    let integers = |count: usize, random: &mut Random| -> Vec<f32> {
                        (0..count).map(|_| random.below(9) as f32 - 4.0).collect()
                    };
                    let data = integers((runs - 1) * stride + run, &mut random);
                    let vectors = integers(VECTORS * vector_stride + cols, &mut random);
                    for sizes in [false, true] {
                        let mut found = vec![[1.0; FOUND]; rows];
                        Projector(kernels).project(
                            &F32Matrix { data: &data, stride, rows, cols, transposed },
                            &Vectors { data: &vectors, stride: vector_stride },
                            sizes,
                            &mut found,
                        );
                        for (row, found) in found.iter().enumerate() {
                            for (i, &found) in found.iter().enumerate() {
                                let term = |col: usize| {
                                    let at = if transposed { col * stride + row } else { row * stride + col };
                                    let x = if i == VECTORS { data[at].abs() } else { data[at] };
                                    f64::from(x * vectors[i * vector_stride + col])
                                };
                                let sum: f64 =
                                    if i == VECTORS && !sizes { 0.0 } else { (0..cols).map(term).sum() };
                                assert_eq!(
                                    found,
                                    1.0 + sum,
                                    "{kernels:?} {rows}x{cols} {transposed} {sizes} {row} {i}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
