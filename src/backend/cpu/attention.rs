//! Attention in blocks of queries and keys, without the matrix of all scores.
//!
//! For a block of keys that the caches hold, K' and V are packed into micro-panels. Then for each block of queries:
//! scores by the macro-kernel, the maximum and the unnormalised exponentials of each row in vectors
//! ([`weigh`]), and their product with V, added to y. Where there are several blocks of keys, a greater maximum
//! rescales the sums that there are (Milakov and Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135).

use std::ptr;

use super::blocking::Blocking;
use super::epilogue::activations::exp_of_negative;
use super::gemv::Gemv;
use super::isa::Simd;
use super::macrokernel::{B, MacroTile, blocks, even, multiply, scratch_a_len};
use super::microkernel::MicroKernels;
use super::pack::{Matrix, Panels, Word, pack_b, packed_b_len};
use super::plan::SETS_BYTES;
use super::rows::{Exponentials, Largest, Scaled, Source, Tail, fold_row};

/// What is computed, of which sizes. Each of `kv_heads` heads of K and V serves equally many of `q_heads` heads of Q, one
/// after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention {
    /// Micro-kernels of f32.
    pub kernels: &'static MicroKernels,
    pub blocking: Blocking,
    /// The factor of Q K'.
    pub scale: f32,
    /// Whether query i sees no key beyond i.
    pub is_causal: bool,
    pub mask: MaskKind,
    pub batch: usize,
    pub q_heads: usize,
    /// At least 1 where there are heads of Q, and a divisor of their number.
    pub kv_heads: usize,
    pub queries: usize,
    pub keys: usize,
    /// Of a head of Q and K.
    pub size: usize,
    /// Of a head of V and y.
    pub value_size: usize,
}

/// What the elements of a mask are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MaskKind {
    None,
    /// f32, added to the scores.
    Added,
    /// Bytes of 0 or 1: a key whose byte is 0 is not seen, as by minus infinity that is added.
    Seen,
}

/// Vectors of batch items, heads and places in a sequence: each is contiguous, the strides are any, in elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads<P> {
    pub start: P,
    pub item: usize,
    pub head: usize,
    pub row: usize,
}

/// Where the operands of [`Attention::piece`] are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionOperands {
    pub q: Heads<*const f32>,
    pub k: Heads<*const f32>,
    pub v: Heads<*const f32>,
    /// Overlaps no other.
    pub y: Heads<*mut f32>,
    /// Of elements as [`Attention::mask`] says; not read where there are none.
    pub mask: *const u8,
    /// In elements, from item to item, from head to head, from query to query, and from key to key, which is 0 or 1; 0
    /// where the mask is broadcast.
    pub mask_strides: [usize; 4],
}

/// The most keys in a block.
const KEYS: usize = 512;

/// Blocks of keys but the last are multiples of this.
const KEYS_MULTIPLE: usize = 64;

/// The most queries in a block, or fewer in whole micro-panels.
const QUERIES: usize = 64;

/// Up to so many rows by the same K and V read them as they lie: to pack them would take longer.
const FEW_ROWS: usize = 6;

/// What begins on a cache line.
const LINE: usize = 16;

/// The sizes of a thread's scratch memory, in words, one part behind the other.
struct Parts {
    k: usize,
    v: usize,
    q: usize,
    scores: usize,
    state: usize,
}

impl Attention {
    /// Into how many pieces the work of so many threads is best divided: 0 where there is nothing to compute.
    pub(crate) fn pieces(&self, threads: usize) -> usize {
        let groups = self.batch * self.kv_heads;
        if groups == 0 || self.group() * self.queries * self.value_size == 0 {
            return 0;
        }
        // K and V are packed once for each.
        let parts = if threads == 1 { 1 } else { (4 * threads).div_ceil(groups) };
        groups * parts.min(self.group() * self.query_blocks())
    }

    /// The words of scratch memory that a piece needs, which need not be initialised.
    pub(crate) fn scratch_words(&self) -> usize {
        let Parts { k, v, q, scores, state } = self.parts();
        k + v + q + scores + state
    }

    fn parts(&self) -> Parts {
        let (kernels, keys, rows) = (self.kernels, self.key_block().min(self.keys), self.query_block());
        let packed =
            |k, cols| if self.packs() { packed_b_len(kernels, k, cols).next_multiple_of(LINE) } else { 0 };
        Parts {
            k: packed(self.size, keys),
            v: packed(keys, self.value_size),
            q: scratch_a_len(kernels, &self.blocking, rows, self.size).next_multiple_of(LINE),
            scores: rows * self.score_stride(),
            state: 2 * self.group() * self.queries,
        }
    }

    /// The heads of Q that a head of K and V serves.
    fn group(&self) -> usize {
        self.q_heads / self.kv_heads.max(1)
    }

    fn packs(&self) -> bool {
        self.group() * self.queries > FEW_ROWS
    }

    /// The queries in a block, the same however the work is divided.
    fn query_block(&self) -> usize {
        even(self.queries, QUERIES / self.kernels.mr() * self.kernels.mr(), 1)
    }

    fn query_blocks(&self) -> usize {
        self.queries.div_ceil(self.query_block().max(1))
    }

    /// The keys in a block: half of the second-level cache for K and V.
    fn key_block(&self) -> usize {
        let words = self.blocking.l2_bytes / size_of::<Word>() / 2;
        let most = words / (self.size + self.value_size).max(1) / KEYS_MULTIPLE * KEYS_MULTIPLE;
        even(self.keys, most.clamp(KEYS_MULTIPLE, KEYS), KEYS_MULTIPLE)
    }

    /// From row to row of scores: not a power of 2, which would make them meet in a set of the cache.
    fn score_stride(&self) -> usize {
        self.key_block().next_multiple_of(2 * LINE) + LINE
    }

    /// Computes one of `pieces` pieces, their number being a result of [`Attention::pieces`] for any number of threads.
    /// The results do not depend on that number.
    ///
    /// With S the largest |scale| sum |q k| + |mask| over the keys that a query sees and u = 2^-24, an element of its
    /// result is off by up to `(2 (size + 2) u S + 2^-16 + (2 keys + 16) u) sum p |v|` to first order, where p are the
    /// exact weights, and 2^-126 sum |v|: a score is off by (size + 2) u S, which its weight and their sum have
    /// relative to themselves; the exponentials are as in [`softmax`](super::rows::softmax), and the rest are sums.
    ///
    /// It is NaN where a query sees no key, or a score is NaN or infinity; 0 where there are no keys. V of keys that a
    /// query does not see has weight 0, which does not hide NaN or infinity there; those of keys beyond its own place
    /// may or may not show where it is causal.
    ///
    /// # Safety
    /// The operands cover what the sizes say; `scratch` has [`Attention::scratch_words`] words and starts on a cache
    /// line for speed; nothing else accesses it or y's rows of this piece meanwhile; the instruction set is there.
    pub(crate) unsafe fn piece(
        &self,
        operands: &AttentionOperands,
        index: usize,
        pieces: usize,
        scratch: *mut f32,
    ) {
        let parts = pieces / (self.batch * self.kv_heads);
        let (pair, part) = (index / parts, index % parts);
        let row_blocks = self.group() * self.query_blocks();
        let piece = Piece {
            of: self,
            operands,
            item: pair / self.kv_heads,
            kv_head: pair % self.kv_heads,
            first_block: part * row_blocks / parts,
            last_block: (part + 1) * row_blocks / parts,
            scratch: Scratch::new(&self.parts(), scratch),
        };
        // SAFETY: by the function's own contract.
        unsafe { piece.run() };
    }
}

/// [`Parts`] in place.
#[derive(Clone, Copy)]
struct Scratch {
    k: *mut f32,
    v: *mut f32,
    q: *mut f32,
    scores: *mut f32,
    state: *mut f32,
}

impl Scratch {
    fn new(parts: &Parts, start: *mut f32) -> Self {
        let k = start;
        let v = k.wrapping_add(parts.k);
        let q = v.wrapping_add(parts.v);
        let scores = q.wrapping_add(parts.q);
        Self { k, v, q, scores, state: scores.wrapping_add(parts.scores) }
    }
}

/// Some blocks of queries, of all heads that share a head of K and V.
struct Piece<'a> {
    of: &'a Attention,
    operands: &'a AttentionOperands,
    item: usize,
    kv_head: usize,
    first_block: usize,
    last_block: usize,
    scratch: Scratch,
}

/// Some queries of a head.
#[derive(Clone, Copy)]
struct Queries {
    head: usize,
    first: usize,
    rows: usize,
    /// So many keys are seen by any of them.
    keys: usize,
    /// Their place among those of the piece.
    state: *mut f32,
}

/// Some keys, of which the first of a piece begin with 0.
#[derive(Clone, Copy)]
struct Keys {
    first: usize,
    count: usize,
}

impl Piece<'_> {
    /// The queries of a block.
    fn queries(&self, block: usize) -> Queries {
        let Attention { queries, keys, is_causal, .. } = *self.of;
        let (blocks, rows) = (self.of.query_blocks(), self.of.query_block());
        let (head, first) = (block / blocks, block % blocks * rows);
        let rows = rows.min(queries - first);
        Queries {
            head: self.kv_head * self.of.group() + head,
            first,
            rows,
            keys: if is_causal { keys.min(first + rows) } else { keys },
            state: self.scratch.state.wrapping_add(2 * (head * queries + first)),
        }
    }

    fn row_blocks(&self) -> impl Iterator<Item = Queries> {
        (self.first_block..self.last_block).map(|block| self.queries(block))
    }

    fn at<P>(&self, of: &Heads<P>, head: usize, row: usize) -> usize {
        self.item * of.item + head * of.head + row * of.row
    }

    /// # Safety
    /// As [`Attention::piece`].
    unsafe fn run(&self) {
        let Attention { kernels, size, value_size, .. } = *self.of;
        let AttentionOperands { k, y, .. } = self.operands;
        // SAFETY: by the function's own contract; the places are inside the operands and the scratch memory.
        unsafe {
            if self.of.keys == 0 {
                for queries in self.row_blocks() {
                    for row in queries.first..queries.first + queries.rows {
                        y.start.add(self.at(y, queries.head, row)).write_bytes(0, value_size);
                    }
                }
                return;
            }
            let seen = self.row_blocks().map(|queries| queries.keys).max().unwrap_or(0);
            for (first, count) in blocks(seen, self.of.key_block()) {
                let keys = Keys { first, count };
                if self.of.packs() {
                    let k_start = k.start.add(self.at(k, self.kv_head, first)).cast();
                    let matrix = Matrix { start: k_start, stride: k.row, transposed: true };
                    pack_b(kernels, matrix, size, count, self.scratch.k.cast());
                    pack_b(kernels, self.v(first), count, value_size, self.scratch.v.cast());
                }
                for queries in self.row_blocks() {
                    if first < queries.keys {
                        self.block(queries, keys);
                    }
                }
            }
        }
    }

    /// V from a key on.
    fn v(&self, first: usize) -> Matrix {
        let v = &self.operands.v;
        let start = v.start.wrapping_add(self.at(v, self.kv_head, first)).cast();
        Matrix { start, stride: v.row, transposed: false }
    }

    /// Some queries by some keys.
    ///
    /// # Safety
    /// As [`Attention::piece`].
    unsafe fn block(&self, queries: Queries, keys: Keys) {
        let Attention { kernels, value_size, .. } = *self.of;
        let Queries { head, first, rows, .. } = queries;
        let (y, vector) = (&self.operands.y, kernels.vector);
        // What no query sees is left out.
        let seen = keys.count.min(queries.keys - keys.first);
        let weights = Weights {
            scores: self.scratch.scores,
            stride: self.of.score_stride(),
            rows,
            cols: seen,
            seen_by_first: if self.of.is_causal { Some((first + 1, keys.first)) } else { None },
            scale: self.of.scale,
            mask: self.mask(head, first, keys.first),
            state: queries.state,
            is_first: keys.first == 0,
            y: y.start.wrapping_add(self.at(y, head, first)),
            y_stride: y.row,
            y_cols: value_size,
        };
        let packed = Panels::packed(kernels, self.scratch.v.cast_const().cast(), keys.count, value_size);
        // SAFETY: by the function's own contract; all is inside the operands and the scratch memory.
        unsafe {
            self.scores(queries, keys, seen);
            (vector.attention.weigh)(&weights);
            multiply(&MacroTile {
                kernels,
                blocking: &self.of.blocking,
                rows,
                cols: value_size,
                k: seen,
                a: Matrix {
                    start: weights.scores.cast_const().cast(),
                    stride: weights.stride,
                    transposed: false,
                },
                pack_a: false,
                b: if self.of.packs() { B::Packed(packed) } else { B::Plain(self.v(keys.first)) },
                accumulate: !weights.is_first,
                requantize: ptr::null(),
                epilogue: None,
                c: weights.y.cast(),
                c_stride: weights.y_stride,
                scratch_a: ptr::null_mut(),
                scratch_b: ptr::null_mut(),
            });
            if keys.first + seen == queries.keys {
                (vector.attention.finish)(&weights);
            }
        }
    }

    /// Q K' of some queries and the first `seen` of some keys.
    ///
    /// # Safety
    /// As [`Attention::piece`].
    unsafe fn scores(&self, queries: Queries, keys: Keys, seen: usize) {
        let Attention { kernels, size, .. } = *self.of;
        let (AttentionOperands { q, k, .. }, stride) = (self.operands, self.of.score_stride());
        let q_start = q.start.wrapping_add(self.at(q, queries.head, queries.first));
        // SAFETY: by the function's own contract; all is inside the operands and the scratch memory.
        unsafe {
            if size == 0 {
                for row in 0..queries.rows {
                    self.scratch.scores.add(row * stride).write_bytes(0, seen);
                }
                return;
            }
            if !self.of.packs() {
                for row in 0..queries.rows {
                    (kernels.vector.gemv.rows)(&Gemv {
                        outputs: seen,
                        k: size,
                        matrix: k.start.add(self.at(k, self.kv_head, keys.first)).cast(),
                        stride: k.row,
                        x: q_start.add(row * q.row).cast(),
                        y: self.scratch.scores.add(row * stride).cast(),
                    });
                }
                return;
            }
            multiply(&MacroTile {
                kernels,
                blocking: &self.of.blocking,
                rows: queries.rows,
                // Micro-panels are whole but for the last of what is packed.
                cols: seen.next_multiple_of(kernels.nr()).min(keys.count),
                k: size,
                a: Matrix { start: q_start.cast(), stride: q.row, transposed: false },
                pack_a: (q.row * size_of::<f32>()).is_multiple_of(SETS_BYTES),
                b: B::Packed(Panels::packed(kernels, self.scratch.k.cast_const().cast(), size, keys.count)),
                accumulate: false,
                requantize: ptr::null(),
                epilogue: None,
                c: self.scratch.scores.cast(),
                c_stride: stride,
                scratch_a: self.scratch.q.cast(),
                scratch_b: ptr::null_mut(),
            });
        }
    }

    #[allow(clippy::cast_ptr_alignment, reason = "a mask is aligned for its elements")]
    fn mask(&self, head: usize, query: usize, key: usize) -> Mask {
        let AttentionOperands { mask, mask_strides: strides, .. } = *self.operands;
        let first: usize = [self.item, head, query, key]
            .into_iter()
            .zip(strides)
            .map(|(index, stride)| index * stride)
            .sum();
        let [.., row_stride, key_stride] = strides;
        let is_same = key_stride == 0;
        match self.of.mask {
            MaskKind::None => Mask::None,
            MaskKind::Added => {
                Mask::Added { start: mask.cast::<f32>().wrapping_add(first), row_stride, is_same }
            }
            MaskKind::Seen => Mask::Seen { start: mask.wrapping_add(first), row_stride, is_same },
        }
    }
}

/// A part of a mask; `is_same` where it is the same for all keys of a query.
#[derive(Debug, Clone, Copy)]
enum Mask {
    None,
    Added { start: *const f32, row_stride: usize, is_same: bool },
    Seen { start: *const u8, row_stride: usize, is_same: bool },
}

/// Rows of scores that become weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights {
    scores: *mut f32,
    stride: usize,
    rows: usize,
    cols: usize,
    /// How many keys the first row sees, and how many of these come before the first column; each further row sees one
    /// more. `None` where all are seen.
    seen_by_first: Option<(usize, usize)>,
    scale: f32,
    mask: Mask,
    /// The largest score so far and the sum of weights, of each row.
    state: *mut f32,
    /// Whether these are the first keys.
    is_first: bool,
    y: *mut f32,
    y_stride: usize,
    y_cols: usize,
}

/// The functions of an instruction set.
pub(crate) struct AttentionFunctions {
    /// [`weigh`].
    pub weigh: unsafe fn(&Weights),
    /// [`finish`].
    pub finish: unsafe fn(&Weights),
}

/// Scores become `e^(scale score + mask - max)`, 0 where a key is not seen. Sums of earlier keys, in y too, are rescaled
/// to a greater maximum.
///
/// # Safety
/// As [`Simd`]; the pointers cover what [`Weights`] says, and nothing else accesses scores, state and y meanwhile.
#[inline(always)]
pub(crate) unsafe fn weigh<V: Simd>(w: &Weights) {
    // SAFETY: by the function's own contract.
    unsafe {
        let constant = |term: f32| Constant { term: V::splat(term) };
        for row in 0..w.rows {
            match w.mask {
                Mask::None => weigh_row::<V, _>(w, row, &constant(0.0)),
                Mask::Added { start, row_stride, is_same } => {
                    let start = start.add(row * row_stride);
                    if is_same {
                        weigh_row::<V, _>(w, row, &constant(*start));
                    } else {
                        weigh_row::<V, _>(w, row, &Added { start });
                    }
                }
                Mask::Seen { start, row_stride, is_same } => {
                    let start = start.add(row * row_stride);
                    if is_same {
                        let term = if *start == 0 { f32::NEG_INFINITY } else { 0.0 };
                        weigh_row::<V, _>(w, row, &constant(term));
                    } else {
                        weigh_row::<V, _>(w, row, &Seen { start });
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn weigh_row<V: Simd, T: Source<V>>(w: &Weights, row: usize, terms: &T) {
    // SAFETY: by the contract of [`weigh`].
    unsafe {
        let scores = w.scores.add(row * w.stride);
        let state = w.state.add(2 * row);
        let seen = match w.seen_by_first {
            Some((by_first, before)) => (by_first + row).saturating_sub(before).min(w.cols),
            None => w.cols,
        };
        let x = &Scores { start: scores.cast_const(), scale: V::splat(w.scale), terms };
        let (old_max, old_sum) = if w.is_first { (f32::NEG_INFINITY, 0.0) } else { (*state, *state.add(1)) };
        let largest = fold_row::<V, _>(&Largest { x }, seen).largest();
        let max = old_max.max(largest);
        // Where nothing was seen yet, weights are e^-infinity instead of NaN.
        let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let exponentials = Exponentials { x, base: V::splat(base), y: scores };
        let mut sum = fold_row::<V, _>(&exponentials, seen).sum();
        scores.add(seen).write_bytes(0, w.cols - seen);
        #[allow(clippy::float_cmp, reason = "the factor is 1 where they are the same")]
        if !w.is_first && old_max != base {
            let factor = exp_of_negative(V::splat(old_max - base));
            let mut lanes = [0.0; 16];
            factor.store(lanes.as_mut_ptr());
            sum += old_sum * lanes[0];
            fold_row::<V, _>(&Scaled { y: w.y.add(row * w.y_stride), factor }, w.y_cols);
        } else {
            sum += old_sum;
        }
        state.write(max);
        state.add(1).write(sum);
    }
}

/// Scores times a factor, with a mask.
struct Scores<'a, V, T> {
    start: *const f32,
    scale: V,
    terms: &'a T,
}

impl<V: Simd, T: Source<V>> Source<V> for Scores<'_, V, T> {
    #[inline(always)]
    unsafe fn at(&self, col: usize, tail: Option<Tail<V>>) -> V {
        // SAFETY: by the trait's contract.
        unsafe {
            let score = V::load_part(self.start.add(col), tail.map(|tail| tail.mask));
            score.mul_add(self.scale, self.terms.at(col, tail))
        }
    }
}

/// The same term for each key.
struct Constant<V> {
    term: V,
}

impl<V: Simd> Source<V> for Constant<V> {
    #[inline(always)]
    unsafe fn at(&self, _: usize, _: Option<Tail<V>>) -> V {
        self.term
    }
}

/// Terms from memory.
struct Added {
    start: *const f32,
}

impl<V: Simd> Source<V> for Added {
    #[inline(always)]
    unsafe fn at(&self, col: usize, tail: Option<Tail<V>>) -> V {
        // SAFETY: by the trait's contract.
        unsafe { V::load_part(self.start.add(col), tail.map(|tail| tail.mask)) }
    }
}

/// 0 where a byte is not 0, else minus infinity.
struct Seen {
    start: *const u8,
}

impl<V: Simd> Source<V> for Seen {
    #[inline(always)]
    unsafe fn at(&self, col: usize, tail: Option<Tail<V>>) -> V {
        // SAFETY: by the trait's contract.
        unsafe {
            let from = self.start.add(col);
            let seen = if let Some(tail) = tail {
                let mut bytes = [0; 16];
                ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), tail.count);
                V::from_u8(bytes.as_ptr())
            } else {
                V::from_u8(from)
            };
            V::splat(0.0).select_less(seen, V::splat(0.0), V::splat(f32::NEG_INFINITY))
        }
    }
}

/// y over the sum of weights.
///
/// # Safety
/// As [`weigh`].
#[inline(always)]
pub(crate) unsafe fn finish<V: Simd>(w: &Weights) {
    for row in 0..w.rows {
        // SAFETY: by the function's own contract.
        unsafe {
            let factor = V::splat(1.0 / *w.state.add(2 * row + 1));
            fold_row::<V, _>(&Scaled { y: w.y.add(row * w.y_stride), factor }, w.y_cols);
        }
    }
}
