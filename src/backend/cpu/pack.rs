//! Operands in the order in which the micro-kernel reads them.

use super::kernel::Kernels;

/// Where the panels of a part of B lie: blocks of adjacent columns, all of them as wide as the
/// kernel's panel but the last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panels {
    pub base: *const f32,
    /// From panel to panel.
    pub step: usize,
    /// From k to k, in every panel but a narrower last one.
    pub stride: usize,
    /// From k to k in a last panel that is narrower.
    pub last_stride: usize,
    /// The row of B that counts as the first.
    pub first_k: usize,
}

impl Panels {
    /// A matrix as it is: k rows, `stride` apart.
    pub(super) fn plain(kernels: &Kernels, base: *const f32, stride: usize) -> Self {
        Self { base, step: kernels.panel_vectors * kernels.b_words, stride, last_stride: stride, first_k: 0 }
    }

    /// What [`pack_b`] made of `k` rows and `cols` columns.
    pub(super) fn packed(kernels: &Kernels, base: *const f32, k: usize, cols: usize) -> Self {
        let stride = kernels.panel_vectors * kernels.b_words;
        let last = cols & (kernels.panel() - 1);
        let last_stride = kernels.vectors(last) * kernels.b_words;
        Self { base, step: stride * k, stride, last_stride, first_k: 0 }
    }

    /// From the panel `first` and the row `k` on; only the last panel may be narrower.
    pub(super) fn at(&self, panel: usize, k: usize, narrow: bool) -> *const f32 {
        self.base.wrapping_add(panel * self.step + (self.first_k + k) * self.stride_of(narrow))
    }

    /// From k to k.
    pub(super) fn stride_of(&self, narrow: bool) -> usize {
        if narrow { self.last_stride } else { self.stride }
    }
}

/// The columns that `cols` take when packed: whole vectors.
pub(super) fn packed_cols(kernels: &Kernels, cols: usize) -> usize {
    kernels.vectors(cols) * kernels.lanes
}

/// The words of 32 bits in the panels of `k` rows and `cols` columns: the numbers that [`pack_b`] writes.
pub(super) fn packed_b_len(kernels: &Kernels, k: usize, cols: usize) -> usize {
    k * kernels.vectors(cols) * kernels.b_words
}

/// A matrix in memory: where it starts, the distance between its contiguous runs, and whether those
/// are columns of the operand instead of rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix {
    pub start: *const f32,
    pub stride: usize,
    pub transposed: bool,
}

impl Matrix {
    /// The part from `row` and `col` on.
    pub(super) fn at(&self, row: usize, col: usize) -> Self {
        let (run, offset) = if self.transposed { (col, row) } else { (row, col) };
        Self { start: self.start.wrapping_add(run * self.stride + offset), ..*self }
    }
}

/// Rows of k copied side by side while the source's pages and the target's lines are at hand.
pub(super) const K_STEP: usize = 8;

/// Packs `k` rows and `cols` columns of op(B) into panels; missing columns of the last vector are 0.
///
/// # Safety
/// `b` covers them, and `to` has room for [`packed_b_len`]; the instruction set is there.
pub(super) unsafe fn pack_b(kernels: &Kernels, b: Matrix, k: usize, cols: usize, to: *mut f32) {
    let panel = kernels.panel();
    let lanes = kernels.lanes;
    // SAFETY: rows, columns and targets stay below k, cols and the packed length.
    unsafe {
        if b.transposed {
            for first in (0..cols).step_by(panel) {
                let width = packed_cols(kernels, panel.min(cols - first));
                let to = to.add(first * k);
                for row in (0..k).step_by(lanes) {
                    for col in (0..width).step_by(lanes) {
                        let from = b.at(row, first + col).start;
                        let (rows, ks) = (lanes.min(cols - first - col), lanes.min(k - row));
                        (kernels.transpose)(from, b.stride, rows, ks, to.add(row * width + col), width);
                    }
                }
            }
        } else {
            for row in (0..k).step_by(K_STEP) {
                let rows = K_STEP.min(k - row);
                for first in (0..cols).step_by(panel) {
                    let there = panel.min(cols - first);
                    let width = packed_cols(kernels, there);
                    let to = to.add(first * k + row * width);
                    (kernels.copy)(b.at(row, first).start, b.stride, rows, there, to, width);
                }
            }
        }
    }
}

/// From k to k in a packed strip of `rows` rows of A.
pub(super) fn strip_stride(kernels: &Kernels, rows: usize) -> usize {
    // Whole vectors are written; one that is cut short is completed by the next k.
    if rows <= kernels.lanes { rows } else { rows.next_multiple_of(kernels.lanes) }
}

/// The numbers that [`pack_a`] may touch from `to` on.
pub(super) fn packed_a_len(kernels: &Kernels, rows: usize, k: usize) -> usize {
    strip_stride(kernels, rows) * k + kernels.lanes
}

/// Packs a strip of `rows` rows and `k` columns of op(A), so that the rows lie side by side.
///
/// # Safety
/// `a` covers them, and `to` has room for [`packed_a_len`]; the instruction set is there.
pub(super) unsafe fn pack_a(kernels: &Kernels, a: Matrix, rows: usize, k: usize, to: *mut f32) {
    let stride = strip_stride(kernels, rows);
    let lanes = kernels.lanes;
    // SAFETY: as for `pack_b`; a vector reaches at most one vector past the last row's end.
    unsafe {
        if a.transposed {
            (kernels.copy)(a.start, a.stride, k, rows, to, stride);
        } else {
            for col in (0..k).step_by(lanes) {
                for row in (0..rows).step_by(lanes) {
                    let from = a.at(row, col).start;
                    let to = to.add(col * stride + row);
                    (kernels.transpose)(
                        from,
                        a.stride,
                        lanes.min(rows - row),
                        lanes.min(k - col),
                        to,
                        stride,
                    );
                }
            }
        }
    }
}
