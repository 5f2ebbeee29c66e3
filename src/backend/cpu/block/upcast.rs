//! Any types, as f32: blocks of A and B are upcast and multiplied by the kernels of f32.
//!
//! `docs/quantization.md` defines the arithmetic. What has no kernel of its own is computed by this, and the others
//! are tested against it.

use std::ops::Range;

use crate::backend::cpu::buffer::Buffer;
use crate::backend::cpu::epilogue::Epilogue;
#[cfg(feature = "half")]
use crate::backend::cpu::gemv::Gemv;
use crate::backend::cpu::macrokernel::{B, MacroTile, multiply};
use crate::backend::cpu::microkernel::MicroKernels;
#[cfg(feature = "half")]
use crate::backend::cpu::pack::panels16;
#[cfg(feature = "half")]
use crate::backend::cpu::pack::upcast::load_row;
use crate::backend::cpu::pack::upcast::{Part, load, map, quantized, rows, scale, scale_for};
use crate::backend::cpu::pack::{K_STEP, Matrix, Panels, Word, pack_b, packed_b_len, packed_cols};
use crate::backend::cpu::plan::{ConstantB, is_loaded_first};
use crate::backend::cpu::run::{Block, Call, RunB, Scratch, blocks};
use crate::description::element::ElementType;
use crate::description::quantization::{QuantA, QuantB};
use crate::operands::view::AnyView;
use crate::operands::weights::Weights;

/// Where the sums of a block go, and what follows them.
struct Sums {
    /// The first, and the distance of rows.
    c: (*mut Word, usize),
    /// Whether they are added to what is there.
    accumulate: bool,
    epilogue: Option<Epilogue>,
}

impl Sums {
    fn apart(buffer: &mut Buffer, cols: usize, accumulate: bool) -> Self {
        Self { c: (buffer.start_mut(), cols), accumulate, epilogue: None }
    }
}

impl Call<'_> {
    /// The scale of each row of a float A that is quantised on the way; NaN where an element is not finite.
    pub(crate) fn row_scales(&self, item: usize, rows: &Range<usize>, scratch: &mut Scratch) {
        let product = &self.plan.product;
        if product.quantization().a != QuantA::DynamicPerRow {
            return;
        }
        for rows in blocks(rows, self.plan.blocks.rows) {
            let largest = &mut scratch.row_scales[rows.clone()];
            largest.fill(0.0);
            for depth in blocks(&(0..product.k()), self.plan.blocks.k) {
                let part = self.part_a(item, &rows, &depth);
                self.loaded(&self.a, &part, &mut scratch.a, |a| {
                    map(&part, a, |row, _, x| {
                        let largest = &mut largest[row - rows.start];
                        // NaN stays, which f32::max would drop.
                        *largest =
                            if x.is_finite() && !largest.is_nan() { largest.max(x.abs()) } else { f32::NAN };
                        x
                    });
                });
            }
            for scale in largest {
                *scale = if scale.is_nan() { f32::NAN } else { scale_for(*scale) };
            }
        }
    }

    pub(crate) fn upcast_block(&self, block: &Block, scratch: &mut Scratch) {
        if self.plan.product.types().accumulator == ElementType::I32 {
            self.integer_block(block, scratch);
        } else {
            self.float_block(block, scratch);
        }
    }

    fn part_a(&self, item: usize, rows: &Range<usize>, depth: &Range<usize>) -> Part {
        Part { item, transpose: self.plan.product.transpose_a(), rows: rows.clone(), cols: depth.clone() }
    }

    fn part_b(&self, item: usize, depth: &Range<usize>, cols: &Range<usize>) -> Part {
        Part { item, transpose: self.plan.product.transpose_b(), rows: depth.clone(), cols: cols.clone() }
    }

    /// A part of op(X) in `buffer`, where `f` has changed its numbers.
    fn loaded(
        &self,
        view: &AnyView<'_>,
        part: &Part,
        buffer: &mut Buffer,
        f: impl FnOnce(&mut [f32]),
    ) -> Matrix {
        let to = buffer.numbers(part.loaded_len());
        load(self.plan.kernels.vector, view, part, to);
        f(to);
        Matrix { start: buffer.start(), stride: part.stride(), transposed: part.transpose }
    }

    /// A part of B in `packed` or, as far as it is to be packed, in `buffer`, and the kernels that read it for
    /// `rows` rows.
    #[cfg_attr(not(feature = "half"), expect(unused_variables, reason = "only 16-bit panels ask for `rows`"))]
    fn loaded_b(
        &self,
        part: &Part,
        rows: usize,
        buffer: &mut Buffer,
        packed: &mut Buffer,
    ) -> (&'static MicroKernels, B) {
        let (plan, kernels) = (self.plan, self.plan.kernels);
        let (k, cols) = (part.rows.len(), part.cols.len());
        let packed_len = packed_b_len(kernels, k, cols);
        match &self.b {
            #[cfg(feature = "half")]
            RunB::Packed(b) if rows <= b.kernels.mr() => {
                let panels = b.panels(&plan.product, part.item, part.cols.start, part.rows.start);
                return (b.kernels, B::Packed(panels));
            }
            #[cfg(feature = "half")]
            RunB::Packed(b) => {
                panels16::upcast(b, &plan.product, part, packed.numbers(packed_len));
            }
            RunB::View(view) if !is_loaded_first(&plan.product) => {
                pack(kernels, view, part, packed.numbers(packed_len));
            }
            RunB::View(view) => {
                let b = self.loaded(view, part, buffer, |b| self.dequantize(part, b));
                return (kernels, B::Pack(b));
            }
            #[cfg(not(feature = "half"))]
            RunB::Packed(_) => unreachable!("16-bit elements need the feature `half`"),
            RunB::Integers(_) => unreachable!("a plan of this algorithm has no packed integers"),
        }
        (kernels, B::Packed(Panels::packed(kernels, packed.start(), k, cols)))
    }

    /// Some columns of items that share B, summed in C: each part of B is converted once for all of their rows.
    pub(crate) fn upcast_in_place(
        &self,
        items: &Range<usize>,
        rows: &Range<usize>,
        cols: &Range<usize>,
        scratch: &mut Scratch,
    ) {
        let (plan, k) = (self.plan, self.plan.product.k());
        for depth in blocks(&(0..k), plan.blocks.k) {
            let part = self.part_b(items.start, &depth, cols);
            let (kernels, mut b) = self.loaded_b(&part, rows.len(), &mut scratch.upcast_b, &mut scratch.b);
            if let B::Pack(loaded) = b {
                let packed = scratch.b.start_mut();
                // SAFETY: what is loaded covers the part, for which the buffer has room; a plan's kernels are of
                // instructions that are here.
                unsafe { pack_b(kernels, loaded, depth.len(), cols.len(), packed) };
                b = B::Packed(Panels::packed(kernels, packed, depth.len(), cols.len()));
            }
            for item in items.clone() {
                for rows in blocks(rows, plan.blocks.rows) {
                    let a = self.loaded(&self.a, &self.part_a(item, &rows, &depth), &mut scratch.a, |_| {});
                    let last = depth.end == k;
                    let sums = Sums {
                        c: self.output.place_of(item, rows.start, cols.start),
                        accumulate: depth.start > 0,
                        epilogue: if last { self.output.epilogue(item, &rows, cols) } else { None },
                    };
                    let block = Block { item, rows, cols: cols.clone() };
                    self.multiply(&block, depth.len(), a, (kernels, b), &sums, &mut scratch.b);
                }
            }
        }
    }

    fn float_block(&self, block: &Block, scratch: &mut Scratch) {
        let Block { item, rows, cols } = block;
        let k = self.plan.product.k();
        #[cfg(feature = "half")]
        let multiplied = self.multiply_row(block, scratch);
        #[cfg(not(feature = "half"))]
        let multiplied = false;
        for depth in blocks(&(0..if multiplied { 0 } else { k }), self.plan.blocks.k) {
            let a = self.loaded(&self.a, &self.part_a(*item, rows, &depth), &mut scratch.a, |_| {});
            let part = self.part_b(*item, &depth, cols);
            let b = self.loaded_b(&part, rows.len(), &mut scratch.upcast_b, &mut scratch.b);
            let sums = Sums::apart(&mut scratch.c, cols.len(), depth.start > 0);
            self.multiply(block, depth.len(), a, b, &sums, &mut scratch.b);
        }
        let sums = scratch.c.numbers(rows.len() * cols.len());
        if k == 0 {
            sums.fill(0.0);
        }
        // SAFETY: this block of C is this call's alone.
        unsafe { self.output.block(block, sums, cols.len(), &mut scratch.row) };
    }

    /// The sums of a run's single row by a B of 16-bit elements, read as it lies; `false` where that is not
    /// what runs.
    #[cfg(feature = "half")]
    fn multiply_row(&self, block: &Block, scratch: &mut Scratch) -> bool {
        let Block { item, rows, cols } = block;
        let (plan, product) = (self.plan, &self.plan.product);
        if !plan.is_row_by_16_bits(self.m) {
            return false;
        }
        let (vector, k, layout) = (plan.kernels.vector, product.k(), product.b());
        let stride = layout.leading_dimension();
        let first = layout.item_offset(*item) + cols.start * if product.transpose_b() { stride } else { 1 };
        let (functions, matrix): (_, *const u8) = match &self.b {
            RunB::View(AnyView::F16(view)) => (vector.gemv_f16, view.data()[first..].as_ptr().cast()),
            RunB::View(AnyView::Bf16(view)) => (vector.gemv_bf16, view.data()[first..].as_ptr().cast()),
            RunB::View(_) | RunB::Packed(_) | RunB::Integers(_) => return false,
        };
        let x = &mut scratch.row[..k];
        load_row(vector, &self.a, *item, product.transpose_a(), rows.start, x);
        let (x, y) = (x.as_ptr(), scratch.c.numbers(cols.len()).as_mut_ptr());
        let gemv = Gemv { outputs: cols.len(), k, matrix, stride, x: x.cast(), y: y.cast() };
        // SAFETY: the executor has checked that the operands cover their layouts; the scratch memory has room for
        // the row and the block's sums; elements are of the function's type, and the instructions are here.
        unsafe { if product.transpose_b() { (functions.rows)(&gemv) } else { (functions.columns)(&gemv) } };
        true
    }

    /// The product of a block, to where its sums are.
    fn multiply(
        &self,
        block: &Block,
        depth: usize,
        a: Matrix,
        (kernels, b): (&MicroKernels, B),
        sums: &Sums,
        packed: &mut Buffer,
    ) {
        let part = MacroTile {
            kernels,
            blocking: &self.plan.blocking,
            rows: block.rows.len(),
            cols: block.cols.len(),
            k: depth,
            a,
            pack_a: false,
            b,
            accumulate: sums.accumulate,
            requantize: std::ptr::null(),
            epilogue: sums.epilogue,
            c: sums.c.0,
            c_stride: sums.c.1,
            scratch_a: std::ptr::null_mut(),
            scratch_b: packed.start_mut(),
        };
        // SAFETY: the loaded matrices cover the block, and the sums and the packed B have room for it.
        unsafe { multiply(&part) };
    }

    /// Loaded elements of B as the numbers that are summed: integers stay such, less their zero point.
    fn dequantize(&self, part: &Part, b: &mut [f32]) {
        let product = &self.plan.product;
        let scheme = product.quantization().b;
        if product.types().accumulator == ElementType::I32 {
            return subtract_zero_point(b, scheme.zero_point());
        }
        if scheme == QuantB::None {
            return;
        }
        #[allow(clippy::cast_precision_loss, reason = "of at most 8 bits")]
        let zero_point = scheme.zero_point() as f32;
        let scales = self.scales_b();
        let scale_at = |p: usize, col: usize| match (&scales, scheme) {
            (None, _) => self.plan.scales.b,
            (Some(scales), QuantB::PerGroup { group_size, .. }) => {
                scale(scales, part.item, p / group_size as usize, col)
            }
            (Some(scales), QuantB::PerColumn { .. }) => scale(scales, part.item, 0, col),
            (Some(scales), _) => scale(scales, part.item, 0, 0),
        };
        map(part, b, |p, col, x| scale_at(p, col) * (x - zero_point));
    }

    /// Those of a constant B.
    fn scales_b(&self) -> Option<AnyView<'_>> {
        match &self.plan.b {
            ConstantB::Plain(weights) => Weights::scales(weights),
            ConstantB::None | ConstantB::Packed(_) | ConstantB::Integers(_) => None,
        }
    }

    fn integer_block(&self, block: &Block, scratch: &mut Scratch) {
        let Block { item, rows, cols } = block;
        let (plan, product) = (self.plan, &self.plan.product);
        let quantization = product.quantization();
        let dynamic = quantization.a == QuantA::DynamicPerRow;
        let count = rows.len() * cols.len();
        scratch.sums[..count].fill(0);
        for depth in blocks(&(0..product.k()), plan.blocks.k) {
            let part = self.part_a(*item, rows, &depth);
            let a = self.loaded(&self.a, &part, &mut scratch.a, |a| {
                if dynamic {
                    map(&part, a, |row, _, x| {
                        let scale = scratch.row_scales[row];
                        if scale.is_nan() { 0.0 } else { quantized(x, scale) }
                    });
                } else {
                    subtract_zero_point(a, quantization.a.zero_point());
                }
            });
            let part = self.part_b(*item, &depth, cols);
            let b = self.loaded_b(&part, rows.len(), &mut scratch.upcast_b, &mut scratch.b);
            let sums = Sums::apart(&mut scratch.c, cols.len(), false);
            self.multiply(block, depth.len(), a, b, &sums, &mut scratch.b);
            for (sum, &x) in scratch.sums.iter_mut().zip(&*scratch.c.numbers(count)) {
                #[allow(clippy::cast_possible_truncation, reason = "an integer below 2^24")]
                let x = x as i32;
                // A description's k keeps every sum in range.
                *sum = sum.wrapping_add(x);
            }
        }
        let columns = plan.of_columns(&plan.column_scales, *item, cols.start);
        let b = self.scales_b().map_or(plan.scales.b, |scales| scale(&scales, *item, 0, 0));
        let shared = product.alpha() * b;
        let sums = scratch.sums[..count].chunks(cols.len());
        let scaled = scratch.c.numbers(cols.len());
        for (row, sums) in rows.clone().zip(sums) {
            if product.types().output == ElementType::I32 {
                // SAFETY: this block of C is this call's alone, and C is of type i32.
                unsafe { self.output.put(*item, row, cols.start, sums, |sum: i32| sum) };
                continue;
            }
            let row_scale = if dynamic { scratch.row_scales[row] } else { plan.scales.a };
            for (col, (x, &sum)) in scaled.iter_mut().zip(sums).enumerate() {
                let column = columns.map_or(shared, |columns| columns[col]);
                #[allow(clippy::cast_precision_loss, reason = "rounded, as documented")]
                let sum = sum as f32;
                *x = sum * (row_scale * column);
            }
            // SAFETY: this block of C is this call's alone.
            unsafe { self.output.row(*item, row, cols.start, scaled, &mut scratch.row[..cols.len()]) };
        }
    }
}

/// Brings elements of a B that is not transposed into micro-panels.
fn pack(kernels: &MicroKernels, view: &AnyView<'_>, part: &Part, to: &mut [f32]) {
    let k = part.rows.len();
    // Few rows at a time, so that their pages stay at hand.
    for ks in blocks(&part.rows, K_STEP) {
        for cols in blocks(&part.cols, kernels.nr()) {
            let width = packed_cols(kernels, cols.len());
            let start = (cols.start - part.cols.start) * k + (ks.start - part.rows.start) * width;
            rows(kernels.vector, view, part.item, &ks, &cols, &mut to[start..], width);
        }
    }
}

fn subtract_zero_point(numbers: &mut [f32], zero_point: i32) {
    if zero_point != 0 {
        #[allow(clippy::cast_precision_loss, reason = "of at most 8 bits")]
        let zero_point = zero_point as f32;
        for x in numbers {
            *x -= zero_point;
        }
    }
}
