//! How a product is shared among threads.

use std::ops::Range;

use crate::description::layout::Layout;

/// C in even parts: ranges of items of the batch, rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Split {
    // So many parts of each.
    items: usize,
    rows: usize,
    cols: usize,
    /// Columns begin at multiples of this.
    nr: usize,
}

/// What one thread computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    pub items: Range<usize>,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

impl Share {
    pub(crate) fn all_of(c: &Layout) -> Self {
        Self { items: 0..c.batch(), rows: 0..c.rows(), cols: 0..c.cols() }
    }
}

/// Packing a number of an operand costs about as much as so many multiply-adds (vector stores and
/// shuffles against two multiply-adds of 16 lanes a cycle).
const PACK_COST: usize = 16;

impl Split {
    /// For `threads` threads. `pack_b`: every part packs its own columns of B.
    pub(crate) fn new(nr: usize, threads: usize, c: &Layout, pack_b: bool) -> Self {
        let (items, rows, cols) = (c.batch(), c.rows(), c.cols());
        let one = Self { items: 1, rows: 1, cols: 1, nr };
        // Whole items need no part of an operand twice.
        if items.is_multiple_of(threads) || items >= 8 * threads {
            return Self { items: threads, ..one };
        }
        let panels = cols.div_ceil(nr);
        let mut best = (usize::MAX, one);
        for row_parts in 1..=threads.min(rows) {
            let col_parts = (threads / row_parts).min(panels).max(1);
            let (rows, cols) = (rows.div_ceil(row_parts), panels.div_ceil(col_parts) * nr);
            let cost =
                rows.saturating_mul(cols).saturating_add(PACK_COST * (rows + if pack_b { cols } else { 0 }));
            if cost < best.0 {
                best = (cost, Self { rows: row_parts, cols: col_parts, ..one });
            }
        }
        best.1
    }

    /// By columns alone.
    pub(crate) fn columns(nr: usize, threads: usize) -> Self {
        Self { items: 1, rows: 1, cols: threads, nr }
    }

    pub(crate) fn parts(&self) -> usize {
        self.items * self.rows * self.cols
    }

    /// The share `index` of C; it may be empty.
    pub(crate) fn share(&self, index: usize, c: &Layout) -> Share {
        let part =
            |index: usize, parts: usize, length: usize| length * index / parts..length * (index + 1) / parts;
        let panels = part(index / self.rows % self.cols, self.cols, c.cols().div_ceil(self.nr));
        Share {
            items: part(index / (self.rows * self.cols), self.items, c.batch()),
            rows: part(index % self.rows, self.rows, c.rows()),
            cols: panels.start * self.nr..(panels.end * self.nr).min(c.cols()),
        }
    }
}
