//! One thread's share of a product: blocks, strips and panels.

use super::blocking::{Blocking, K_MULTIPLE};
use super::finish::Finish;
use super::kernel::{Kernels, TileFn};
use super::pack::{Matrix, Panels, pack_a, pack_b, packed_a_len, strip_stride};
use super::tile::{AForm, Results, Tile};

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
    /// Whether the sums go on from what C holds; else C is not read.
    pub accumulate: bool,
    /// [`Tile::results`], for the whole part.
    pub results: *const Results,
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
        if rows <= kernels.max_rows() {
            return Self { count: 1, rows, longer: 0 };
        }
        let count = rows.div_ceil(kernels.max_rows());
        Self { count, rows: rows / count, longer: rows % count }
    }

    /// The rows of the longest strip.
    fn longest(&self) -> usize {
        self.rows + usize::from(self.longer > 0)
    }

    /// The rows of a strip.
    fn rows(&self, strip: usize) -> usize {
        self.rows + usize::from(strip < self.longer)
    }

    /// The first row of a strip.
    fn first(&self, strip: usize) -> usize {
        strip * self.rows + strip.min(self.longer)
    }
}

/// The numbers of scratch memory for packed strips of A.
pub(super) fn scratch_a_len(kernels: &Kernels, blocking: &Blocking, rows: usize, k: usize) -> usize {
    let strips = Strips::new(kernels, rows.max(1)).count.min(blocking.strips);
    strips * packed_a_len(kernels, kernels.max_rows(), k.min(blocking.k_outer))
}

/// The columns and the k of a block of B that is packed at a time.
pub(super) fn scratch_b_len(kernels: &Kernels, blocking: &Blocking, cols: usize, k: usize) -> usize {
    super::pack::packed_b_len(kernels, k.min(blocking.k_outer), cols.min(blocking.cols))
}

/// The size of even blocks of at most `limit`, multiples of `multiple` but for the last.
fn even(length: usize, limit: usize, multiple: usize) -> usize {
    if length <= limit {
        return length;
    }
    length.div_ceil(length.div_ceil(limit)).next_multiple_of(multiple)
}

/// Starts and lengths of the blocks of `length`. Stepped ranges would divide.
fn blocks(length: usize, block: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let first = next;
        next += block;
        (first < length).then(|| (first, block.min(length - first)))
    })
}

/// What is done with each tile of a part, in the order in which they are to be computed.
pub(super) trait Visitor {
    /// # Safety
    /// As the micro-kernel.
    unsafe fn tile(&mut self, function: TileFn, tile: &Tile);
    /// The sums of these rows and columns are complete.
    ///
    /// # Safety
    /// As [`Kernels::finish`], for those rows and columns.
    unsafe fn finish(&mut self, kernels: &Kernels, finish: &Finish, area: Area);
}

/// Rows and columns of a part of C.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    pub row: usize,
    pub rows: usize,
    pub col: usize,
    pub cols: usize,
}

/// Computes tile by tile.
struct Compute;

impl Visitor for Compute {
    #[inline]
    unsafe fn tile(&mut self, function: TileFn, tile: &Tile) {
        // SAFETY: by the trait's contract.
        unsafe { function(tile) };
    }

    #[inline]
    unsafe fn finish(&mut self, kernels: &Kernels, finish: &Finish, area: Area) {
        // SAFETY: by the trait's contract.
        unsafe { (kernels.finish)(&finish.part(area)) };
    }
}

/// Computes a part of C.
///
/// # Safety
/// The matrices cover the part; nothing else accesses its C or the scratch memory meanwhile; the
/// instruction set is there.
pub(super) unsafe fn multiply(part: &Part<'_>) {
    // SAFETY: by the function's own contract.
    unsafe { visit(part, &mut Compute) };
}

/// Packs where the part says so, and visits its tiles.
///
/// # Safety
/// As [`multiply`]; for a visitor that accesses no memory, and a part that packs nothing, the pointers
/// may be any.
pub(super) unsafe fn visit<V: Visitor>(part: &Part<'_>, visitor: &mut V) {
    let Part { kernels, blocking, rows, cols, k, .. } = *part;
    let cols_block =
        if matches!(part.b, B::Pack(_)) { even(cols, blocking.cols, kernels.panel()) } else { cols };
    let k_block = even(k, blocking.k_outer, K_MULTIPLE);
    let strips = Strips::new(kernels, rows);
    let strips_block = even(strips.count, blocking.strips, 1);
    for (first_col, block_cols) in blocks(cols, cols_block) {
        for (first_k, block_k) in blocks(k, k_block) {
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
            for (first_strip, block_strips) in blocks(strips.count, strips_block) {
                let block = Block {
                    strips,
                    first_strip,
                    last_strip: first_strip + block_strips,
                    first_col,
                    cols: block_cols,
                    panels,
                    source: source.filter(|_| first_strip == 0),
                    panels_first_k: block_first_k,
                    first_k,
                    k: block_k,
                };
                // SAFETY: the block is inside the part.
                unsafe { block.visit(part, visitor) };
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
    /// # Safety
    /// As [`visit`].
    unsafe fn visit<V: Visitor>(&self, part: &Part<'_>, visitor: &mut V) {
        let kernels = part.kernels;
        let panel = kernels.panel();
        if part.pack_a {
            let mut first = self.strips.first(self.first_strip);
            let mut to = part.scratch_a;
            for strip in self.first_strip..self.last_strip {
                let rows = self.strips.rows(strip);
                // SAFETY: the strip lies inside A; scratch memory holds a block's strips.
                unsafe { pack_a(kernels, part.a.at(first, self.first_k), rows, self.k, to) };
                first += rows;
                to = to.wrapping_add(self.packed_strip_len(kernels));
            }
        }
        // With a single strip no panel is used twice, and k need not be cut.
        let k_inner = if self.last_strip - self.first_strip == 1 {
            self.k
        } else {
            even(self.k, part.blocking.k_inner, K_MULTIPLE)
        };
        let wide = match self.source {
            Some(_) => 1,
            None => kernels.max_panels(self.strips.longest()),
        };
        let whole_panels = kernels.whole_panels(self.cols);
        let mut index = 0;
        while index * panel < self.cols {
            let count = if index + wide <= whole_panels { wide } else { 1 };
            let cols = (count * panel).min(self.cols - index * panel);
            let span = Span { index, count, cols, narrow: cols < panel };
            for (inner, inner_k) in blocks(self.k, k_inner) {
                // SAFETY: the span lies inside the block.
                unsafe { self.strips_of(part, span, inner, inner_k, visitor) };
            }
            index += count;
        }
    }

    /// From packed strip to packed strip.
    fn packed_strip_len(&self, kernels: &Kernels) -> usize {
        packed_a_len(kernels, kernels.max_rows(), self.k)
    }

    /// All strips times adjacent panels, `k` numbers from `inner` on.
    ///
    /// # Safety
    /// As [`visit`].
    unsafe fn strips_of<V: Visitor>(
        &self,
        part: &Part<'_>,
        span: Span,
        inner: usize,
        k: usize,
        visitor: &mut V,
    ) {
        let Part { kernels, a, .. } = *part;
        let first_row = self.strips.first(self.first_strip);
        let col = self.first_col + span.index * kernels.panel();
        let packed = self.panels.at(span.index, self.panels_first_k + inner, span.narrow);
        let packed_stride = self.panels.stride_of(span.narrow);
        let complete = self.first_k + inner + k == part.k;
        let form = if part.pack_a || a.transposed { AForm::ByRow } else { AForm::ByK };
        let mut tile = Tile {
            k,
            a: a.at(first_row, self.first_k + inner).start,
            a_stride: a.stride,
            b: packed,
            b_stride: packed_stride,
            b_panel_stride: self.panels.step,
            ahead: packed,
            ahead_stride: 0,
            packed: packed.cast_mut(),
            packed_stride,
            c: part.c.wrapping_add(first_row * part.c_stride + col),
            c_stride: part.c_stride,
            tail: kernels.lanes,
            accumulate: part.accumulate || self.first_k + inner > 0,
            complete,
            results: part.results,
            row: first_row,
            col,
        };
        let finish = part.finish.filter(|_| complete);
        let (next, next_stride) = self.next(span, inner + k);
        let strip_len = self.packed_strip_len(kernels);
        let mut row = first_row;
        for (index, strip) in (self.first_strip..self.last_strip).enumerate() {
            let rows = self.strips.rows(strip);
            if part.pack_a {
                tile.a_stride = strip_stride(kernels, rows);
                tile.a = part.scratch_a.wrapping_add(index * strip_len + inner * tile.a_stride);
            }
            let source = self.source.filter(|_| index == 0);
            (tile.b, tile.b_stride) = match source {
                Some(source) => (source.at(span.index, inner, span.narrow), source.stride),
                None => (packed, packed_stride),
            };
            (tile.ahead, tile.ahead_stride) = if source.is_some() || self.last_strip - self.first_strip == 1 {
                // The stride of a single row may be any.
                (tile.b.wrapping_add(ROWS_AHEAD.wrapping_mul(tile.b_stride)), tile.b_stride)
            } else {
                // The strips share the lines of what comes next.
                (next.wrapping_add(index % 2 * LINE), next_stride)
            };
            // SAFETY: the tile lies inside the block.
            unsafe { cover(kernels, form, rows, span, source.is_some(), &tile, visitor) };
            if let Some(finish) = &finish {
                // SAFETY: the tile just computed, while it is in the first-level cache.
                unsafe { visitor.finish(kernels, finish, Area { row, rows, col, cols: span.cols }) };
            }
            tile.c = tile.c.wrapping_add(rows * part.c_stride);
            tile.a = tile.a.wrapping_add(rows * if a.transposed { 1 } else { a.stride });
            row += rows;
            tile.row = row;
        }
    }

    /// What of B is used after `k` numbers of a span, and the distance of its rows: the rest of its
    /// panels, or the next one.
    fn next(&self, span: Span, k: usize) -> (*const f32, usize) {
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

/// Adjacent panels that a tile spans: `count` whole ones, or a narrower one.
#[derive(Debug, Clone, Copy)]
struct Span {
    index: usize,
    count: usize,
    cols: usize,
    narrow: bool,
}

/// Visits the tiles that cover a span.
///
/// # Safety
/// As the micro-kernels, for all of the columns.
unsafe fn cover<V: Visitor>(
    kernels: &Kernels,
    form: AForm,
    rows: usize,
    span: Span,
    pack: bool,
    tile: &Tile,
    visitor: &mut V,
) {
    let Span { count, cols, .. } = span;
    let lanes = kernels.lanes;
    // SAFETY: by the caller's contract; narrower panels are covered vector by vector.
    unsafe {
        if count > 1 {
            return visitor.tile(kernels.wide(form, rows, count), tile);
        }
        if cols == kernels.panel() {
            return visitor.tile(kernels.whole(form, rows, pack), tile);
        }
        let vectors = kernels.vectors(cols);
        let tail = cols - (vectors - 1) * lanes;
        let mut tile = *tile;
        if vectors == kernels.panel_vectors {
            tile.tail = tail;
            return visitor.tile(kernels.tail(form, rows, pack), &tile);
        }
        for vector in 0..vectors {
            tile.tail = if vector + 1 == vectors { tail } else { lanes };
            visitor.tile(kernels.single(form, rows, pack), &tile);
            tile.b = tile.b.wrapping_add(kernels.b_words);
            tile.packed = tile.packed.wrapping_add(kernels.b_words);
            tile.c = tile.c.wrapping_add(lanes);
            tile.col += lanes;
        }
    }
}
