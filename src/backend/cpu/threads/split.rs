//! How a product is shared among threads.

use std::ops::Range;

use crate::description::layout::Layout;

/// C in even shares, one for each thread: ranges of items of the batch, rows and columns. A share is cut into
/// pieces, so that threads that are done take over from those that came late or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Split {
    // So many parts of each.
    items: usize,
    rows: usize,
    cols: usize,
    /// Columns begin at multiples of this.
    nr: usize,
    cut: Cut,
}

/// Where a share is cut: at multiples of so many rows or columns of it, or between items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Nowhere,
    Items,
    Rows(usize),
    Cols(usize),
}

/// A part of C.
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

/// What a share does with its operands besides multiplying them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operands {
    pub pack_a: bool,
    pub pack_b: bool,
    /// A B that is not packed is read anew for so many rows.
    pub mc: usize,
}

/// Packing a number of an operand costs about as much as so many multiply-adds (vector stores and
/// shuffles against two multiply-adds of 16 lanes a cycle).
const PACK_COST: usize = 16;

/// Reading one from a last-level cache, as far as arithmetic does not hide it.
const READ_COST: usize = 6;

/// The pieces of a share: a half, a quarter, and two eighths.
const PIECES: usize = 4;

impl Operands {
    /// Of a share, in multiply-adds for each k.
    fn cost(&self, rows: usize, cols: usize) -> usize {
        let of = |pack: bool| if pack { PACK_COST } else { READ_COST };
        let passes = if self.pack_b { 1 } else { rows.div_ceil(self.mc) };
        let operands = of(self.pack_a) * rows + of(self.pack_b).saturating_mul(cols).saturating_mul(passes);
        rows.saturating_mul(cols).saturating_add(operands)
    }
}

impl Split {
    /// For `threads` threads.
    pub(crate) fn new(nr: usize, threads: usize, c: &Layout, operands: Operands) -> Self {
        let (items, rows, cols) = (c.batch(), c.rows(), c.cols());
        let one = Self { items: 1, rows: 1, cols: 1, nr, cut: Cut::Nowhere };
        // Whole items need no part of an operand twice.
        if items.is_multiple_of(threads) || items >= 8 * threads {
            return Self { items: threads, ..one };
        }
        let panels = cols.div_ceil(nr);
        let mut best = (usize::MAX, one);
        for row_parts in 1..=threads.min(rows) {
            let col_parts = (threads / row_parts).min(panels).max(1);
            let cost = operands.cost(rows.div_ceil(row_parts), panels.div_ceil(col_parts) * nr);
            if cost < best.0 {
                best = (cost, Self { rows: row_parts, cols: col_parts, ..one });
            }
        }
        best.1
    }

    /// By columns alone.
    pub(crate) fn columns(nr: usize, threads: usize) -> Self {
        Self { items: 1, rows: 1, cols: threads, nr, cut: Cut::Nowhere }
    }

    /// With shares that are cut between items, where they have several, else by the first of `cuts` that a share is
    /// large enough for.
    pub(crate) fn cut(self, c: &Layout, cuts: [Cut; 2]) -> Self {
        let largest = Share {
            items: 0..c.batch() / self.items,
            rows: 0..c.rows() / self.rows,
            cols: 0..c.cols() / self.cols,
        };
        let cut = [Cut::Items].into_iter().chain(cuts).find(|cut| match cut {
            Cut::Nowhere => false,
            // All shares have the same items, if they are not split by these.
            Cut::Items => self.items > 1 && largest.items.len() > 1,
            Cut::Rows(unit) => largest.rows.len() > *unit,
            Cut::Cols(unit) => largest.cols.len() > *unit,
        });
        Self { cut: cut.unwrap_or(Cut::Nowhere), ..self }
    }

    /// The ranges of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn shares(&self) -> usize {
        self.items * self.rows * self.cols
    }

    /// The pieces of each share.
    pub(crate) fn pieces(&self) -> usize {
        if self.cut == Cut::Nowhere { 1 } else { PIECES }
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

    /// A piece of the share `index`; it may be empty.
    pub(crate) fn piece(&self, index: usize, piece: usize, c: &Layout) -> Share {
        let mut share = self.share(index, c);
        let (range, unit) = match self.cut {
            Cut::Nowhere => return share,
            Cut::Items => (&mut share.items, 1),
            Cut::Rows(unit) => (&mut share.rows, unit),
            Cut::Cols(unit) => (&mut share.cols, unit),
        };
        let units = range.len().div_ceil(unit);
        let at = |units: usize| range.end.min(range.start + units * unit);
        let end = if piece + 1 == PIECES { units } else { units - (units >> (piece + 1)) };
        *range = at(units - (units >> piece))..at(end);
        share
    }
}
