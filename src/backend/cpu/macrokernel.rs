//! The macro-kernel: the loops over NC, KC and MC around the micro-kernels.

use super::blocking::{Blocking, K_MULTIPLE};
use super::epilogue::Epilogue;
use super::epilogue::requantize::Requantize;
use super::microkernel::{AForm, MicroKernel, MicroKernels, MicroTile};
use super::pack::{Matrix, Panels, Word, a_panel_stride, pack_a, pack_b, packed_a_len, packed_b_len};

/// How many rows ahead B is prefetched where nothing else hides the latency of the
/// last-level cache (of 4 to 24, 24 was fastest on a Zen 5 core, 2026-11-24).
const ROWS_AHEAD: usize = 24;

/// The same for a single stream of narrow elements, which the processor foresees up to the end of a page: a product of
/// one row with B in memory took 200 us with so many rows of 32 bytes, 212 with a third of them and 255 without; in the
/// cache it takes as long (1x3072x768 of int8, AVX2; Zen 1, 2026-12-01).
const NARROW_ROWS_AHEAD: usize = 96;

/// The words in a cache line.
pub(crate) const LINE: usize = 64 / size_of::<Word>();

/// Where B comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum B {
    /// Packed when the product was compiled.
    Packed(Panels),
    /// Read as it lies, not transposed.
    Plain(Matrix),
    /// Packed block by block into scratch memory.
    Pack(Matrix),
}

/// A part of C to compute: `rows` x `cols`, at least one of each, sums over `k` words, at least 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MacroTile<'a> {
    pub kernels: &'a MicroKernels,
    pub blocking: &'a Blocking,
    pub rows: usize,
    pub cols: usize,
    pub k: usize,
    pub a: Matrix,
    pub pack_a: bool,
    pub b: B,
    /// Whether the sums go on from what C holds; else C is not read.
    pub accumulate: bool,
    /// [`MicroTile::requantize`], for the whole part.
    pub requantize: *const Requantize,
    /// What follows the part's sums; `None` leaves them.
    pub epilogue: Option<Epilogue>,
    pub c: *mut Word,
    /// In words.
    pub c_stride: usize,
    /// Room for [`scratch_a_len`] and [`scratch_b_len`].
    pub scratch_a: *mut Word,
    pub scratch_b: *mut Word,
}

/// Micro-panels of A: as few as MR allows, of even size.
#[derive(Debug, Clone, Copy)]
struct RowPanels {
    count: usize,
    rows: usize,
    /// So many micro-panels have one row more.
    longer: usize,
}

impl RowPanels {
    fn new(kernels: &MicroKernels, rows: usize) -> Self {
        if rows <= kernels.mr() {
            return Self { count: 1, rows, longer: 0 };
        }
        let count = rows.div_ceil(kernels.mr());
        Self { count, rows: rows / count, longer: rows % count }
    }

    /// The rows of the first micro-panel, which none exceeds.
    fn most_rows(&self) -> usize {
        self.rows + usize::from(self.longer > 0)
    }

    /// The rows of a micro-panel.
    fn rows(&self, panel: usize) -> usize {
        self.rows + usize::from(panel < self.longer)
    }

    /// The first row of a micro-panel.
    fn first_row(&self, panel: usize) -> usize {
        panel * self.rows + panel.min(self.longer)
    }
}

/// The words of scratch memory for packed micro-panels of A.
pub(crate) fn scratch_a_len(kernels: &MicroKernels, blocking: &Blocking, rows: usize, k: usize) -> usize {
    let panels = RowPanels::new(kernels, rows.max(1)).count.min(blocking.mc_panels);
    panels * packed_a_len(kernels, kernels.mr(), k.min(blocking.kc))
}

/// The words of a block of B that is packed at a time.
pub(crate) fn scratch_b_len(kernels: &MicroKernels, blocking: &Blocking, cols: usize, k: usize) -> usize {
    packed_b_len(kernels, k.min(blocking.kc), cols.min(blocking.nc))
}

/// The size of even blocks of at most `limit`, multiples of `multiple` but for the last.
pub(crate) fn even(length: usize, limit: usize, multiple: usize) -> usize {
    if length <= limit {
        return length;
    }
    length.div_ceil(length.div_ceil(limit)).next_multiple_of(multiple)
}

/// Starts and lengths of the blocks of `length`. Stepped ranges would divide.
pub(crate) fn blocks(length: usize, block: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let first = next;
        next += block;
        (first < length).then(|| (first, block.min(length - first)))
    })
}

/// What is done with each microtile of a part, in the order in which they are to be computed.
pub(crate) trait Visitor {
    /// # Safety
    /// As the micro-kernel.
    unsafe fn microtile(&mut self, function: MicroKernel, tile: &MicroTile);
    /// The sums of these rows and columns are complete.
    ///
    /// # Safety
    /// As the instruction set's epilogue, for those rows and columns.
    unsafe fn epilogue(&mut self, kernels: &MicroKernels, epilogue: &Epilogue, area: Area);
}

/// Rows and columns of a part of C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Area {
    pub row: usize,
    pub rows: usize,
    pub col: usize,
    pub cols: usize,
}

/// Computes microtile by microtile.
struct Compute;

impl Visitor for Compute {
    #[inline]
    unsafe fn microtile(&mut self, function: MicroKernel, tile: &MicroTile) {
        // SAFETY: by the trait's contract.
        unsafe { function(tile) };
    }

    #[inline]
    unsafe fn epilogue(&mut self, kernels: &MicroKernels, epilogue: &Epilogue, area: Area) {
        // SAFETY: by the trait's contract.
        unsafe { (kernels.vector.epilogue)(&epilogue.part(area)) };
    }
}

/// Computes a part of C.
///
/// # Safety
/// The matrices cover the part; nothing else accesses its C or the scratch memory meanwhile; the
/// instruction set is there.
pub(crate) unsafe fn multiply(part: &MacroTile<'_>) {
    // SAFETY: by the function's own contract.
    unsafe { visit(part, &mut Compute) };
}

/// Packs where the part says so, and visits its microtiles.
///
/// # Safety
/// As [`multiply`]; for a visitor that accesses no memory, and a part that packs nothing, the pointers
/// may be any.
pub(crate) unsafe fn visit<V: Visitor>(part: &MacroTile<'_>, visitor: &mut V) {
    let MacroTile { kernels, blocking, rows, cols, k, .. } = *part;
    let row_panels = RowPanels::new(kernels, rows);
    let b = match part.b {
        // A single micro-panel of A uses nothing of B twice.
        B::Pack(b) if !b.transposed && row_panels.count == 1 => B::Plain(b),
        b => b,
    };
    let nc = if matches!(b, B::Pack(_)) { even(cols, blocking.nc, kernels.nr()) } else { cols };
    let kc = even(k, blocking.kc, K_MULTIPLE);
    let mc = even(row_panels.count, blocking.mc_panels, 1);
    for (first_col, block_cols) in blocks(cols, nc) {
        for (first_k, block_k) in blocks(k, kc) {
            // B as it lies is packed while the first micro-panel of A uses it.
            let (panels, source) = match b {
                B::Packed(panels) => (panels, None),
                B::Plain(b) => {
                    (Panels::plain(kernels, b.at(kernels, first_k, first_col).start, b.stride), None)
                }
                B::Pack(b) => {
                    let (b, packed) = (b.at(kernels, first_k, first_col), part.scratch_b);
                    let source = if b.transposed {
                        // SAFETY: the block lies inside B, and the scratch memory holds a block.
                        unsafe { pack_b(kernels, b, block_k, block_cols, packed) };
                        None
                    } else {
                        Some(Panels::plain(kernels, b.start, b.stride))
                    };
                    (Panels::packed(kernels, packed, block_k, block_cols), source)
                }
            };
            let panels_first_k = if matches!(b, B::Packed(_)) { first_k } else { 0 };
            for (first_panel, block_panels) in blocks(row_panels.count, mc) {
                let block = Block {
                    row_panels,
                    first_panel,
                    last_panel: first_panel + block_panels,
                    first_col,
                    cols: block_cols,
                    panels,
                    source: source.filter(|_| first_panel == 0),
                    panels_first_k,
                    first_k,
                    k: block_k,
                };
                // SAFETY: the block is inside the part.
                unsafe { block.visit(part, visitor) };
            }
        }
    }
}

/// Some micro-panels of A times some micro-panels of B.
struct Block {
    row_panels: RowPanels,
    /// The micro-panels of A, from this one to before `last_panel`.
    first_panel: usize,
    last_panel: usize,
    first_col: usize,
    cols: usize,
    /// The micro-panels of B, or B as it lies.
    panels: Panels,
    /// Where the first micro-panel of A reads B, packing it into `panels`.
    source: Option<Panels>,
    /// The row of `panels` at which the block begins: 0 where they hold this block alone.
    panels_first_k: usize,
    first_k: usize,
    k: usize,
}

impl Block {
    /// # Safety
    /// As [`visit`].
    unsafe fn visit<V: Visitor>(&self, part: &MacroTile<'_>, visitor: &mut V) {
        let kernels = part.kernels;
        let nr = kernels.nr();
        if part.pack_a {
            let mut first = self.row_panels.first_row(self.first_panel);
            let mut to = part.scratch_a;
            for panel in self.first_panel..self.last_panel {
                let rows = self.row_panels.rows(panel);
                // SAFETY: the rows lie inside A; scratch memory holds a block's micro-panels.
                unsafe { pack_a(kernels, part.a.at(kernels, first, self.first_k), rows, self.k, to) };
                first += rows;
                to = to.wrapping_add(self.packed_a_panel_len(kernels));
            }
        }
        // With a single micro-panel of A nothing of B is used twice, and k need not be cut.
        let kc_l1 = if self.last_panel - self.first_panel == 1 {
            self.k
        } else {
            even(self.k, part.blocking.kc_l1, K_MULTIPLE)
        };
        let wide = match self.source {
            Some(_) => 1,
            None => kernels.max_panels(self.row_panels.most_rows()),
        };
        let whole_panels = kernels.whole_panels(self.cols);
        let mut index = 0;
        while index * nr < self.cols {
            let count = if index + wide <= whole_panels { wide } else { 1 };
            let cols = (count * nr).min(self.cols - index * nr);
            let span = Span { index, count, cols, narrow: cols < nr };
            if span.narrow {
                // SAFETY: the span lies inside the block.
                unsafe { self.pack_narrow(kernels, span) };
            }
            for (inner, inner_k) in blocks(self.k, kc_l1) {
                // SAFETY: the span lies inside the block.
                unsafe { self.rows_of(part, span, inner, inner_k, visitor) };
            }
            index += count;
        }
    }

    /// Packs a narrower micro-panel of B, which no micro-kernel packs on its way.
    ///
    /// # Safety
    /// As [`visit`].
    unsafe fn pack_narrow(&self, kernels: &MicroKernels, span: Span) {
        let Some(source) = self.source else { return };
        let from = source.at(span.index, 0, true);
        let to = self.panels.at(span.index, self.panels_first_k, true).cast_mut();
        // SAFETY: the micro-panel lies inside the block, and so does its place in scratch memory.
        unsafe {
            (kernels.vector.copy)(
                from,
                source.stride,
                self.k,
                span.cols,
                to,
                kernels.vectors(span.cols) * kernels.b_words,
            );
        }
    }

    /// Words from a packed micro-panel of A to the next one.
    fn packed_a_panel_len(&self, kernels: &MicroKernels) -> usize {
        packed_a_len(kernels, kernels.mr(), self.k)
    }

    /// All micro-panels of A times adjacent ones of B, `k` words from `inner` on.
    ///
    /// # Safety
    /// As [`visit`].
    unsafe fn rows_of<V: Visitor>(
        &self,
        part: &MacroTile<'_>,
        span: Span,
        inner: usize,
        k: usize,
        visitor: &mut V,
    ) {
        let MacroTile { kernels, a, .. } = *part;
        let first_row = self.row_panels.first_row(self.first_panel);
        let col = self.first_col + span.index * kernels.nr();
        let packed = self.panels.at(span.index, self.panels_first_k + inner, span.narrow);
        let packed_stride = self.panels.stride_of(span.narrow);
        let complete = self.first_k + inner + k == part.k;
        let words = kernels.number_words();
        let (form, a_row_stride, a_k_stride) = if part.pack_a || a.transposed {
            (AForm::ByK, words, a.stride)
        } else {
            (AForm::ByRow, a.stride, words)
        };
        let mut tile = MicroTile {
            k,
            a: a.at(kernels, first_row, self.first_k + inner).start,
            a_row_stride,
            a_k_stride,
            b: packed,
            b_stride: packed_stride,
            b_panel_stride: self.panels.step,
            ahead: packed,
            ahead_stride: 0,
            packed: packed.cast_mut(),
            packed_stride,
            c: part.c.wrapping_add(first_row * part.c_stride + col * words),
            c_stride: part.c_stride,
            tail: kernels.lanes(),
            accumulate: part.accumulate || self.first_k + inner > 0,
            complete,
            requantize: part.requantize,
            row: first_row,
            col,
        };
        let epilogue = part.epilogue.filter(|_| complete);
        let source = self.source.filter(|_| !span.narrow);
        let (next, next_stride) = self.next(span, inner + k);
        let a_panel_len = self.packed_a_panel_len(kernels);
        let mut row = first_row;
        for (index, panel) in (self.first_panel..self.last_panel).enumerate() {
            let rows = self.row_panels.rows(panel);
            if part.pack_a {
                tile.a_k_stride = a_panel_stride(kernels, rows);
                tile.a = part.scratch_a.wrapping_add(index * a_panel_len + inner * tile.a_k_stride);
            }
            let source = source.filter(|_| index == 0);
            (tile.b, tile.b_stride) = match source {
                Some(source) => (source.at(span.index, inner, false), source.stride),
                None => (packed, packed_stride),
            };
            let narrow = span.count == 1 && kernels.b_words < kernels.lanes();
            let rows_ahead = match kernels.max_panels(1) {
                1 if narrow => NARROW_ROWS_AHEAD,
                // The rest of what several streams had.
                _ if narrow => 0,
                _ => ROWS_AHEAD,
            };
            (tile.ahead, tile.ahead_stride) = if source.is_some() || self.last_panel - self.first_panel == 1 {
                // The stride of a single row may be any.
                (tile.b.wrapping_add(rows_ahead.wrapping_mul(tile.b_stride)), tile.b_stride)
            } else {
                // The micro-panels of A share the lines of what comes next.
                (next.wrapping_add(index % 2 * LINE), next_stride)
            };
            // SAFETY: the microtile lies inside the block.
            unsafe { cover(kernels, form, rows, span, source.is_some(), &tile, visitor) };
            if let Some(epilogue) = &epilogue {
                // SAFETY: what was just computed, while it is in the first-level cache.
                unsafe { visitor.epilogue(kernels, epilogue, Area { row, rows, col, cols: span.cols }) };
            }
            tile.c = tile.c.wrapping_add(rows * part.c_stride);
            tile.a = tile.a.wrapping_add(rows * if a.transposed { words } else { a.stride });
            row += rows;
            tile.row = row;
        }
    }

    /// What of B is used after `k` words of a span, and the distance of its rows: the rest of its
    /// micro-panels, or the next one.
    fn next(&self, span: Span, k: usize) -> (*const Word, usize) {
        let (panels, first_k) = match &self.source {
            Some(source) => (source, 0),
            None => (&self.panels, self.panels_first_k),
        };
        let start = if k < self.k {
            panels.at(span.index, first_k + k, span.narrow)
        } else {
            panels.at(span.index + span.count, first_k, false)
        };
        (start, panels.stride)
    }
}

/// Adjacent micro-panels of B that one call spans: `count` whole ones, or a narrower one.
#[derive(Debug, Clone, Copy)]
struct Span {
    index: usize,
    count: usize,
    cols: usize,
    narrow: bool,
}

/// Visits the microtiles that cover a span.
///
/// # Safety
/// As the micro-kernels, for all of the columns.
unsafe fn cover<V: Visitor>(
    kernels: &MicroKernels,
    form: AForm,
    rows: usize,
    span: Span,
    pack: bool,
    tile: &MicroTile,
    visitor: &mut V,
) {
    let Span { count, cols, .. } = span;
    let lanes = kernels.lanes();
    // SAFETY: by the caller's contract; narrower micro-panels are covered vector by vector.
    unsafe {
        if count > 1 {
            return visitor.microtile(kernels.wide(rows, count), tile);
        }
        if cols == kernels.nr() {
            let function = if pack { kernels.packing(form, rows) } else { kernels.whole(form, rows) };
            return visitor.microtile(function, tile);
        }
        let vectors = kernels.vectors(cols);
        let tail = cols - (vectors - 1) * lanes;
        let half = kernels.half(form, rows).filter(|_| 2 * tail <= lanes);
        let mut tile = *tile;
        if vectors == kernels.panel_vectors && half.is_none() {
            tile.tail = tail;
            return visitor.microtile(kernels.tail(form, rows), &tile);
        }
        let single = kernels.single(form, rows);
        for vector in 1..=vectors {
            let last = vector == vectors;
            tile.tail = if last { tail } else { lanes };
            visitor.microtile(half.filter(|_| last).unwrap_or(single), &tile);
            tile.b = tile.b.wrapping_add(kernels.b_words);
            tile.c = tile.c.wrapping_add(lanes * kernels.number_words());
            tile.col += lanes;
        }
    }
}
