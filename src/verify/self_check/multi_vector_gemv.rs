//! Multi-vector GEMV: a matrix times a few vectors at a time, in one pass over the matrix.
//!
//! Self-checks share no kernel with the products that they verify, and no choice of kernels either: theirs
//! are always the best of the machine, whatever `ANE_MATMUL_CPU` says.

#![allow(
    clippy::inline_always,
    reason = "vectors must be inlined into the functions that enable their instructions"
)]

use crate::backend::isa::{self, Simd};

/// The vectors that one pass multiplies with.
pub(super) const VECTORS: usize = 2;

/// The sums of a row: its products with the vectors, and the sum of its magnitudes, weighted.
pub(super) const SUMS: usize = VECTORS + 1;

/// The longest sums in f32; they are added up in f64.
const BLOCK: usize = 1024;

/// Some rows of a matrix, or as many columns, and the vectors.
#[derive(Debug, Clone, Copy)]
struct Gemv {
    rows: usize,
    /// The terms of each sum.
    terms: usize,
    matrix: *const f32,
    /// From one contiguous run of the matrix to the next.
    stride: usize,
    /// `VECTORS` vectors of `terms` numbers, then the weights of the magnitudes.
    vectors: *const f32,
    /// From one vector to the next.
    vector_stride: usize,
    /// Those of row `i`: `SUMS` numbers from `i * SUMS` on. Nothing is written for magnitudes where they
    /// are not asked for.
    sums: *mut f32,
}

/// Rows of contiguous terms.
///
/// # Safety
/// As [`Simd`]; the pointers cover what [`Gemv`] says.
#[inline(always)]
unsafe fn gemv_rows<V: Simd, const ROWS: usize, const SIZES: bool>(g: &Gemv) {
    let whole = g.rows / ROWS * ROWS;
    // SAFETY: by the function's own contract; the rows stay below `rows`.
    unsafe {
        for row in (0..whole).step_by(ROWS) {
            rows::<V, ROWS, SIZES>(g, row);
        }
        for row in whole..g.rows {
            rows::<V, 1, SIZES>(g, row);
        }
    }
}

#[inline(always)]
unsafe fn rows<V: Simd, const ROWS: usize, const SIZES: bool>(g: &Gemv, first: usize) {
    // SAFETY: by the contract of `gemv_rows`.
    unsafe {
        let matrix = g.matrix.add(first * g.stride);
        // A page for each row: the hardware does not see the next one coming.
        let ahead = matrix.wrapping_add(ROWS * g.stride);
        let (mut sums, mut sizes) = ([[V::splat(0.0); VECTORS]; ROWS], [V::splat(0.0); ROWS]);
        let whole = g.terms / V::LANES * V::LANES;
        for term in (0..whole).step_by(V::LANES) {
            for row in 0..ROWS {
                V::prefetch(ahead.wrapping_add(row * g.stride + term));
            }
            terms::<V, ROWS, SIZES>(g, matrix, term, None, &mut sums, &mut sizes);
        }
        if whole < g.terms {
            let mask = Some(V::mask(g.terms - whole));
            terms::<V, ROWS, SIZES>(g, matrix, whole, mask, &mut sums, &mut sizes);
        }
        // Through memory: summing up a register would keep the sums in the 16 that narrower vectors can
        // name, while the loop needs more.
        let (sums, sizes) = std::hint::black_box((sums, sizes));
        for (row, sums) in sums.iter().enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                g.sums.add((first + row) * SUMS + i).write(sum.sum());
            }
        }
        if SIZES {
            for (row, size) in sizes.iter().enumerate() {
                g.sums.add((first + row) * SUMS + VECTORS).write(size.sum());
            }
        }
    }
}

#[inline(always)]
unsafe fn terms<V: Simd, const ROWS: usize, const SIZES: bool>(
    g: &Gemv,
    matrix: *const f32,
    term: usize,
    mask: Option<V::Mask>,
    sums: &mut [[V; VECTORS]; ROWS],
    sizes: &mut [V; ROWS],
) {
    // SAFETY: by the contract of `gemv_rows`.
    unsafe {
        let mut factors = [V::splat(0.0); VECTORS];
        for (i, factor) in factors.iter_mut().enumerate() {
            *factor = V::load_part(g.vectors.add(i * g.vector_stride + term), mask);
        }
        for (row, (sums, size)) in sums.iter_mut().zip(sizes).enumerate() {
            let x = V::load_part(matrix.add(row * g.stride + term), mask);
            for (sum, factor) in sums.iter_mut().zip(factors) {
                *sum = x.mul_add(factor, *sum);
            }
            if SIZES {
                let weight = V::load_part(g.vectors.add(VECTORS * g.vector_stride + term), mask);
                *size = x.abs().mul_add(weight, *size);
            }
        }
    }
}

/// Columns: the runs of the matrix are terms, of `rows` contiguous numbers each.
///
/// # Safety
/// As [`gemv_rows`].
#[inline(always)]
unsafe fn gemv_columns<V: Simd, const SIZES: bool>(g: &Gemv) {
    let whole = g.rows / V::LANES * V::LANES;
    // SAFETY: by the function's own contract; the columns stay below `rows`.
    unsafe {
        for col in (0..whole).step_by(V::LANES) {
            columns::<V, SIZES>(g, col, V::LANES, None);
        }
        if whole < g.rows {
            columns::<V, SIZES>(g, whole, g.rows - whole, Some(V::mask(g.rows - whole)));
        }
    }
}

#[inline(always)]
unsafe fn columns<V: Simd, const SIZES: bool>(g: &Gemv, first: usize, count: usize, mask: Option<V::Mask>) {
    /// How far ahead the matrix is asked for, in terms.
    const AHEAD: usize = 16;
    const MOST_LANES: usize = 16;
    // SAFETY: by the contract of `gemv_rows`; no vector has more lanes.
    unsafe {
        let mut sums = [V::splat(0.0); SUMS];
        for term in 0..g.terms {
            V::prefetch(g.matrix.wrapping_add((term + AHEAD) * g.stride + first));
            let x = V::load_part(g.matrix.add(term * g.stride + first), mask);
            for (i, sum) in sums.iter_mut().enumerate().take(VECTORS) {
                *sum = x.mul_add(V::splat(*g.vectors.add(i * g.vector_stride + term)), *sum);
            }
            if SIZES {
                let weight = V::splat(*g.vectors.add(VECTORS * g.vector_stride + term));
                sums[VECTORS] = x.abs().mul_add(weight, sums[VECTORS]);
            }
        }
        let mut lanes = [0f32; MOST_LANES];
        for (i, sum) in sums.iter().enumerate().take(VECTORS + usize::from(SIZES)) {
            sum.store(lanes.as_mut_ptr());
            for (col, &x) in lanes.iter().enumerate().take(count) {
                g.sums.add((first + col) * SUMS + i).write(x);
            }
        }
    }
}

/// A matrix in memory, by rows or as its transpose.
#[derive(Debug, Clone, Copy)]
pub(super) struct F32Matrix<'a> {
    pub data: &'a [f32],
    /// From one contiguous run of the matrix to the next.
    pub stride: usize,
    pub rows: usize,
    pub cols: usize,
    /// Whether the runs are the matrix's columns.
    pub transposed: bool,
}

/// The vectors of [`Kernels::gemv`], one after the other: `VECTORS` of them, then the weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vectors<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// The functions of one instruction set, each without and with magnitudes.
pub(super) struct Kernels {
    name: &'static str,
    rows: [unsafe fn(&Gemv); 2],
    columns: [unsafe fn(&Gemv); 2],
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A module with the functions of one instruction set, each enabling `$feature`; `$rows` are summed side by
/// side.
macro_rules! instruction_set {
    ($module:ident, $vector:ty, $(features: $feature:literal,)? rows: $rows:literal) => {
        mod $module {
            use super::*;

            $(#[target_feature(enable = $feature)])?
            unsafe fn rows<const SIZES: bool>(g: &Gemv) {
                // SAFETY: this function's contract is the same, and it enables the instruction set.
                unsafe { gemv_rows::<$vector, $rows, SIZES>(g) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn columns<const SIZES: bool>(g: &Gemv) {
                // SAFETY: as for `rows`.
                unsafe { gemv_columns::<$vector, SIZES>(g) }
            }

            pub(super) static KERNELS: Kernels = Kernels {
                name: stringify!($module),
                rows: [rows::<false>, rows::<true>],
                columns: [columns::<false>, columns::<true>],
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
instruction_set! { avx512, isa::avx512::Avx512, features: "avx512f,avx512dq,avx2,fma", rows: 4 }
#[cfg(target_arch = "x86_64")]
instruction_set! { avx2, isa::avx2::Avx2, features: "avx2,fma", rows: 2 }
#[cfg(target_arch = "aarch64")]
instruction_set! { neon, isa::neon::Neon, features: "neon", rows: 2 }
instruction_set! { portable, isa::portable::Portable, rows: 1 }

/// Every instruction set that this machine has, the fastest first; the portable one is always there.
fn here() -> impl Iterator<Item = &'static Kernels> {
    #[cfg(target_arch = "x86_64")]
    let known = {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
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
}

impl Kernels {
    /// The best of this machine.
    pub(super) fn best() -> &'static Self {
        here().next().unwrap_or(&portable::KERNELS)
    }

    /// Adds to `sums`, for every row of the matrix, its products with the vectors and, with `sizes`, the sum
    /// of its magnitudes times the weights.
    ///
    /// # Panics
    /// When the matrix, the vectors or `sums` are shorter than they should be.
    pub(super) fn gemv(
        &self,
        matrix: &F32Matrix<'_>,
        vectors: &Vectors<'_>,
        sizes: bool,
        sums: &mut [[f64; SUMS]],
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
        assert!(sums.len() >= rows, "too few sums");
        let kernel = if transposed { self.columns } else { self.rows }[usize::from(sizes)];
        let mut block = [[0f32; SUMS]; ROWS];
        for row in (0..rows).step_by(ROWS) {
            let count = ROWS.min(rows - row);
            for col in (0..cols).step_by(BLOCK) {
                let start = if transposed { col * stride + row } else { row * stride + col };
                let gemv = Gemv {
                    rows: count,
                    terms: BLOCK.min(cols - col),
                    matrix: data[start..].as_ptr(),
                    stride,
                    vectors: vectors.data[col..].as_ptr(),
                    vector_stride: vectors.stride,
                    sums: block.as_mut_ptr().cast(),
                };
                // SAFETY: `here` gives kernels of this machine; the lengths were checked above, and
                // `block` has room for `count` rows.
                unsafe { kernel(&gemv) };
                for (sums, block) in sums[row..].iter_mut().zip(&block[..count]) {
                    for (sum, &x) in sums.iter_mut().zip(block).take(VECTORS + usize::from(sizes)) {
                        *sum += f64::from(x);
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
    fn every_kernel_multiplies_rows_and_columns() {
        const SIZES: [(usize, usize); 6] = [(1, 1), (3, 7), (4, 16), (9, 33), (70, 1100), (130, 2050)];
        // The large ones take an interpreter longer than all other tests.
        let sizes_here = if cfg!(miri) { &SIZES[..4] } else { &SIZES };
        let mut random = Random::new(5);
        for kernels in here() {
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
                        let mut sums = vec![[1.0; SUMS]; rows];
                        kernels.gemv(
                            &F32Matrix { data: &data, stride, rows, cols, transposed },
                            &Vectors { data: &vectors, stride: vector_stride },
                            sizes,
                            &mut sums,
                        );
                        for (row, sums) in sums.iter().enumerate() {
                            for (i, &sum) in sums.iter().enumerate() {
                                let term = |col: usize| {
                                    let at = if transposed { col * stride + row } else { row * stride + col };
                                    let x = if i == VECTORS { data[at].abs() } else { data[at] };
                                    f64::from(x * vectors[i * vector_stride + col])
                                };
                                let expected: f64 =
                                    if i == VECTORS && !sizes { 0.0 } else { (0..cols).map(term).sum() };
                                assert_eq!(
                                    sum,
                                    1.0 + expected,
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
