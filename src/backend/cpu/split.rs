//! How a product is shared among threads.

use std::ops::Range;

use super::kernel::Kernels;

/// C in even parts: ranges of items of the batch, rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    // So many parts of each.
    items: usize,
    rows: usize,
    cols: usize,
}

/// What one thread computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Share {
    pub items: Range<usize>,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

/// Packing a number of an operand costs about as much as so many multiply-adds (vector stores and
/// shuffles against two multiply-adds of 16 lanes a cycle).
const PACK_COST: usize = 16;

impl Split {
    /// For `threads` threads. `pack_b`: every part packs its own columns of B.
    pub(super) fn new(
        kernels: &Kernels,
        threads: usize,
        items: usize,
        rows: usize,
        cols: usize,
        pack_b: bool,
    ) -> Self {
        let one = Self { items: 1, rows: 1, cols: 1 };
        // Whole items need no part of an operand twice.
        if items.is_multiple_of(threads) || items >= 8 * threads {
            return Self { items: threads, ..one };
        }
        let panels = cols.div_ceil(kernels.panel());
        let mut best = (usize::MAX, one);
        for row_parts in 1..=threads.min(rows) {
            let col_parts = (threads / row_parts).min(panels).max(1);
            let (rows, cols) = (rows.div_ceil(row_parts), panels.div_ceil(col_parts) * kernels.panel());
            let cost =
                rows.saturating_mul(cols).saturating_add(PACK_COST * (rows + if pack_b { cols } else { 0 }));
            if cost < best.0 {
                best = (cost, Self { rows: row_parts, cols: col_parts, ..one });
            }
        }
        best.1
    }

    pub(super) fn parts(&self) -> usize {
        self.items * self.rows * self.cols
    }

    /// The share `index` of C; it may be empty. Columns begin at panels.
    pub(super) fn share(
        &self,
        kernels: &Kernels,
        index: usize,
        items: usize,
        rows: usize,
        cols: usize,
    ) -> Share {
        let part =
            |index: usize, parts: usize, length: usize| length * index / parts..length * (index + 1) / parts;
        let panel = kernels.panel();
        let panels = part(index / self.rows % self.cols, self.cols, cols.div_ceil(panel));
        Share {
            items: part(index / (self.rows * self.cols), self.items, items),
            rows: part(index % self.rows, self.rows, rows),
            cols: panels.start * panel..(panels.end * panel).min(cols),
        }
    }
}
