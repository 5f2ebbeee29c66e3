//! One thread's share of a product: blocks, strips and panels.

use super::blocking::{Blocking, K_MULTIPLE};
use super::finish::Finish;
use super::kernel::{AForm, Kernels, Tile};
use super::pack::{Matrix, Panels, pack_a, pack_b, packed_a_len, strip_stride};

/// How many rows of B are asked for before their use where nothing else hides the latency of the
/// last-level cache (of 4 to 24, 24 was fastest on a Zen 5 core, 2026-11-24).
const ROWS_AHEAD: usize = 24;

/// The numbers in a cache line.
const LINE: usize = 64 / size_of::<f32>();

/// Where B comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum B {
    /// Packed when the product was compiled.
    Packed(Panels),
    /// Read as it lies, not transposed.
    Plain(Matrix),
    /// Packed block by block into scratch memory.
    Pack(Matrix),
}

/// A part of C to compute: `rows` x `cols`, at least one of each, sums over `k`, at least 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub kernels: &'a Kernels,
    pub blocking: &'a Blocking,
    pub rows: usize,
    pub cols: usize,
    pub k: usize,
    pub a: Matrix,
    pub pack_a: bool,
    pub b: B,
    /// The part's C and what follows its sums; `None` leaves the sums.
    pub finish: Option<Finish>,
    pub c: *mut f32,
    pub c_stride: usize,
    /// Room for [`scratch_a_len`] and [`scratch_b_len`].
    pub scratch_a: *mut f32,
    pub scratch_b: *mut f32,
}

/// Strips of `rows` rows: as few as fit the kernel, of even size.
#[derive(Debug, Clone, Copy)]
struct Strips {
    count: usize,
    rows: usize,
    /// So many strips have one row more.
    longer: usize,
}

impl Strips {
    fn new(kernels: &Kernels, rows: usize) -> Self {
        let count = rows.div_ceil(kernels.max_rows());
        Self { count, rows: rows / count, longer: rows % count }
    }

    /// The rows of the longest strip.
    fn longest(&self) -> usize {
        self.rows + usize::from(self.longer > 0)
    }

    /// The first row of a strip; of the one past the last, all rows.
    fn first(&self, strip: usize) -> usize {
        strip * self.rows + strip.min(self.longer)
    }
}

/// The numbers of scratch memory for packed strips of A.
pub(super) fn scratch_a_len(kernels: &Kernels, blocking: &Blocking, rows: usize, k: usize) -> usize {
    let strips = rows.min(blocking.rows + kernels.max_rows()).div_ceil(kernels.max_rows()) + 1;
    strips * packed_a_len(kernels, kernels.max_rows(), k.min(blocking.k_outer))
}

/// The columns and the k of a block of B that is packed at a time.
pub(super) fn scratch_b_len(kernels: &Kernels, blocking: &Blocking, cols: usize, k: usize) -> usize {
    super::pack::packed_b_len(kernels, k.min(blocking.k_outer), cols.min(blocking.cols))
}

/// The size of even blocks of at most `limit`, multiples of `multiple` but for the last.
fn even(length: usize, limit: usize, multiple: usize) -> usize {
    length.div_ceil(length.div_ceil(limit)).next_multiple_of(multiple)
}

/// Computes a part of C.
///
/// # Safety
/// The matrices cover the part; nothing else accesses its C or the scratch memory meanwhile; the
/// instruction set is there.
pub(super) unsafe fn multiply(part: &Part<'_>) {
    let Part { kernels, blocking, rows, cols, k, .. } = *part;
    let cols_block =
        if matches!(part.b, B::Pack(_)) { even(cols, blocking.cols, kernels.panel()) } else { cols };
    let k_block = even(k, blocking.k_outer, K_MULTIPLE);
    let strips = Strips::new(kernels, rows);
    let strips_block = (blocking.rows / kernels.max_rows()).max(1);
    let strips_block = even(strips.count, strips_block, 1);
    for first_col in (0..cols).step_by(cols_block) {
        let block_cols = cols_block.min(cols - first_col);
        for first_k in (0..k).step_by(k_block) {
            let block_k = k_block.min(k - first_k);
            let panels = match part.b {
                B::Packed(panels) => panels,
                B::Plain(b) => Panels::plain(kernels, b.at(first_k, first_col).start, b.stride),
                B::Pack(b) => {
                    if b.transposed {
                        // SAFETY: the block lies inside B, and the scratch memory holds a block.
                        unsafe {
                            pack_b(kernels, b.at(first_k, first_col), block_k, block_cols, part.scratch_b);
                        };
                    }
                    Panels::packed(kernels, part.scratch_b, block_k, block_cols)
                }
            };
            // B as it lies is packed while the first strip uses it.
            let source = match part.b {
                B::Pack(b) if !b.transposed => {
                    Some(Panels::plain(kernels, b.at(first_k, first_col).start, b.stride))
                }
                _ => None,
            };
            let block_first_k = if matches!(part.b, B::Packed(_)) { first_k } else { 0 };
            for first_strip in (0..strips.count).step_by(strips_block) {
                let block = Block {
                    strips,
                    first_strip,
                    last_strip: strips.count.min(first_strip + strips_block),
                    first_col,
                    cols: block_cols,
                    panels,
                    source: source.filter(|_| first_strip == 0),
                    panels_first_k: block_first_k,
                    first_k,
                    k: block_k,
                };
                // SAFETY: the block is inside the part.
                unsafe { block.compute(part) };
            }
        }
    }
}

/// Some strips of A times some panels of B.
struct Block {
    strips: Strips,
    first_strip: usize,
    last_strip: usize,
    first_col: usize,
    cols: usize,
    panels: Panels,
    /// Where the first strip reads B, packing it into `panels`.
    source: Option<Panels>,
    panels_first_k: usize,
    first_k: usize,
    k: usize,
}

impl Block {
    /// The first row of a strip, and its rows.
    fn strip(&self, strip: usize) -> (usize, usize) {
        let first = self.strips.first(strip);
        (first, self.strips.first(strip + 1) - first)
    }

    /// Where a strip of this block is packed.
    fn packed_strip(&self, part: &Part<'_>, strip: usize) -> *mut f32 {
        let step = packed_a_len(part.kernels, part.kernels.max_rows(), self.k);
        part.scratch_a.wrapping_add((strip - self.first_strip) * step)
    }

    /// # Safety
    /// As [`multiply`].
    unsafe fn compute(&self, part: &Part<'_>) {
        let kernels = part.kernels;
        let panel = kernels.panel();
        let strips = self.first_strip..self.last_strip;
        if part.pack_a {
            for strip in strips.clone() {
                let (first, rows) = self.strip(strip);
                let a = part.a.at(first, self.first_k);
                // SAFETY: the strip lies inside A; scratch memory holds a block's strips.
                unsafe { pack_a(kernels, a, rows, self.k, self.packed_strip(part, strip)) };
            }
        }
        // With a single strip no panel is used twice, and k need not be cut.
        let k_inner =
            if strips.len() == 1 { self.k } else { even(self.k, part.blocking.k_inner, K_MULTIPLE) };
        let wide = match self.source {
            Some(_) => 1,
            None => kernels.max_panels(self.strips.longest()),
        };
        let whole_panels = self.cols / panel;
        let mut index = 0;
        while index * panel < self.cols {
            let count = if index + wide <= whole_panels { wide } else { 1 };
            let cols = (count * panel).min(self.cols - index * panel);
            let span = Span { index, count, cols, narrow: cols < panel };
            for inner in (0..self.k).step_by(k_inner) {
                let inner_k = k_inner.min(self.k - inner);
                for strip in strips.clone() {
                    // SAFETY: strip and panels lie inside the block.
                    unsafe { self.tile(part, strip, span, inner, inner_k) };
                }
            }
            index += count;
        }
    }

    /// A strip times adjacent panels, `k` numbers from `inner` on.
    ///
    /// # Safety
    /// As [`multiply`].
    unsafe fn tile(&self, part: &Part<'_>, strip: usize, span: Span, inner: usize, k: usize) {
        let Part { kernels, a, .. } = *part;
        let (first, rows) = self.strip(strip);
        let (a, a_stride, form) = if part.pack_a {
            let stride = strip_stride(kernels, rows);
            let start = self.packed_strip(part, strip).wrapping_add(inner * stride);
            (start.cast_const(), stride, AForm::ByRow)
        } else {
            let form = if a.transposed { AForm::ByRow } else { AForm::ByK };
            (a.at(first, self.first_k + inner).start, a.stride, form)
        };
        let panels_k = self.panels_first_k + inner;
        let packed = self.panels.at(span.index, panels_k, span.narrow);
        let packed_stride = self.panels.stride_of(span.narrow);
        let source = self.source.filter(|_| strip == self.first_strip);
        let (b, b_stride) = match &source {
            Some(source) => (source.at(span.index, inner, span.narrow), source.stride),
            None => (packed, packed_stride),
        };
        let col = self.first_col + span.index * kernels.panel();
        let (ahead, ahead_stride) = self.ahead(strip, span, inner, k);
        let tile = Tile {
            k,
            a,
            a_stride,
            b,
            b_stride,
            b_panel_stride: self.panels.step,
            ahead,
            ahead_stride,
            packed: packed.cast_mut(),
            packed_stride,
            c: part.c.wrapping_add(first * part.c_stride + col),
            c_stride: part.c_stride,
            tail: kernels.lanes,
            accumulate: self.first_k + inner > 0,
        };
        // SAFETY: the tile lies inside the block.
        unsafe { run_tile(kernels, form, rows, span.cols, span.count, source.is_some(), tile) };
        if self.first_k + inner + k == part.k
            && let Some(finish) = &part.finish
        {
            // SAFETY: the tile just computed, while it is in the first-level cache.
            unsafe { (kernels.finish)(&finish.part(first, rows, col, span.cols)) };
        }
    }

    /// What to ask the caches for during a tile, and its stride: a line for each k.
    fn ahead(&self, strip: usize, span: Span, inner: usize, k: usize) -> (*const f32, usize) {
        let panels = self.source.as_ref().unwrap_or(&self.panels);
        let first_k = if self.source.is_some() { 0 } else { self.panels_first_k };
        let here = |k| panels.at(span.index, first_k + k, span.narrow);
        let strip = strip - self.first_strip;
        let alone = self.last_strip - self.first_strip == 1;
        if alone || (strip == 0 && self.source.is_some()) {
            return (here(inner + ROWS_AHEAD), panels.stride_of(span.narrow));
        }
        // The strips share the lines of what comes next: the rest of the panel, or the next panel.
        let next = if inner + k < self.k {
            here(inner + k)
        } else {
            panels.at(span.index + span.count, first_k, false)
        };
        (next.wrapping_add(strip % 2 * LINE), panels.stride)
    }
}

/// Adjacent panels that a tile spans: `count` whole ones, or a narrower one.
#[derive(Debug, Clone, Copy)]
struct Span {
    index: usize,
    count: usize,
    cols: usize,
    narrow: bool,
}

/// Runs the micro-kernels that cover `cols` columns: `count` whole panels, or one that is narrower.
///
/// # Safety
/// As the micro-kernels, for all of the columns.
unsafe fn run_tile(
    kernels: &Kernels,
    form: AForm,
    rows: usize,
    cols: usize,
    count: usize,
    pack: bool,
    mut tile: Tile,
) {
    let lanes = kernels.lanes;
    // SAFETY: by the caller's contract; narrower panels are covered vector by vector.
    unsafe {
        if count > 1 {
            return kernels.wide(form, rows, count)(&tile);
        }
        if cols == kernels.panel() {
            return kernels.whole(form, rows, pack)(&tile);
        }
        let vectors = cols.div_ceil(lanes);
        let tail = cols - (vectors - 1) * lanes;
        if vectors == kernels.panel_vectors {
            tile.tail = tail;
            return kernels.tail(form, rows, pack)(&tile);
        }
        for vector in 0..vectors {
            tile.tail = if vector + 1 == vectors { tail } else { lanes };
            kernels.single(form, rows, pack)(&tile);
            tile.b = tile.b.wrapping_add(lanes);
            tile.packed = tile.packed.wrapping_add(lanes);
            tile.c = tile.c.wrapping_add(lanes);
        }
    }
}
