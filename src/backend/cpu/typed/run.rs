//! One run: blocks of A and B as f32, multiplied by the kernels of f32, whatever the number of threads.

use std::ops::Range;
use std::sync::Arc;

use super::Plan;
use super::finish::Output;
#[cfg(feature = "half")]
use super::halves::HalfPanels;
use super::load::{Part, load, map, quantized, rows, run_stride, scale, scale_for};
use crate::alloc;
use crate::backend::cpu::buffer::Buffer;
use crate::backend::cpu::kernel::Kernels;
use crate::backend::cpu::pack::{K_STEP, Matrix, Panels, packed_b_len, packed_cols};
use crate::backend::cpu::product::{self, B, multiply};
use crate::backend::cpu::split::{Share, Split};
use crate::backend::cpu::workers::Workers;
use crate::backend::f32_only::not_f32;
use crate::backend::{BackendId, Run, RunArgs};
use crate::description::element::ElementType;
use crate::description::quantization::{QuantA, QuantB};
use crate::error::Result;
use crate::operands::view::AnyView;
use crate::operands::weights::Weights;

/// The rows of a block of C: each number of B is used so often that its conversion costs little.
const ROWS: usize = 168;

/// A block of B, whose numbers stay in a second-level cache together with A's and C's.
#[derive(Debug, Clone, Copy)]
struct BlockOfB {
    depth: usize,
    cols: usize,
}

/// Integers less their zero points are at most 255 in magnitude: the sums of a block's products stay among
/// the integers that f32 has.
const _: () = {
    let largest =
        if BlockOfB::SQUARE.depth > BlockOfB::FLAT.depth { BlockOfB::SQUARE } else { BlockOfB::FLAT };
    assert!(largest.depth * 255 * 255 <= 1 << f32::MANTISSA_DIGITS);
};

impl BlockOfB {
    const SQUARE: Self = Self { depth: 256, cols: 192 };
    /// Long runs of B as it lies, where few rows wait for its reading.
    const FLAT: Self = Self { depth: 32, cols: 1536 };
    /// The most rows that wait.
    const FEW_ROWS: usize = 16;

    fn of(plan: &Plan) -> Self {
        let product = &plan.product;
        // Panels of 16 bits take the place of constant weights.
        let as_it_lies = !product.constant_b() || plan.weights.is_some();
        let flat = as_it_lies && !product.transpose_b() && product.m() <= Self::FEW_ROWS;
        if flat { Self::FLAT } else { Self::SQUARE }
    }
}

/// The memory of one thread.
struct Scratch {
    a: Buffer,
    b: Buffer,
    /// For [`B::Pack`].
    packed: Buffer,
    /// Sums in f32, of one block of k where they are of integers.
    sums: Buffer,
    /// Sums of integers.
    integers: Vec<i32>,
    row_scales: Vec<f32>,
    /// A row of a block of C.
    row: Vec<f32>,
}

impl Scratch {
    fn new(plan: &Plan) -> Result<Self> {
        const WHAT: &str = "blocks of operands";
        let product = &plan.product;
        let BlockOfB { depth, cols } = BlockOfB::of(plan);
        let (rows, cols, depth) = (product.m().min(ROWS), product.n().min(cols), product.k().min(depth));
        let block = |transposed: bool, rows: usize, cols: usize| {
            let (runs, elements) = if transposed { (cols, rows) } else { (rows, cols) };
            Buffer::zeroed(runs * run_stride(elements), WHAT)
        };
        let whole = product.types().accumulator == ElementType::I32;
        Ok(Self {
            a: block(product.transpose_a(), rows, depth)?,
            b: block(product.transpose_b(), depth, cols)?,
            packed: Buffer::zeroed(packed_b_len(plan.kernels, depth, cols), WHAT)?,
            sums: Buffer::zeroed(rows * cols, WHAT)?,
            integers: alloc::filled(if whole { rows * cols } else { 0 }, 0, WHAT)?,
            row_scales: alloc::filled(rows, 0.0, WHAT)?,
            row: alloc::filled(cols, 0.0, WHAT)?,
        })
    }
}

pub(in super::super) struct TypedRun {
    plan: Arc<Plan>,
    workers: Workers<Scratch>,
}

impl TypedRun {
    pub(in super::super) fn new(plan: Arc<Plan>) -> Result<Self> {
        let workers = Workers::new(plan.threads, || Scratch::new(&plan))?;
        Ok(Self { plan, workers })
    }
}

impl Run for TypedRun {
    fn run(&mut self, mut args: RunArgs<'_>) -> Result<()> {
        let plan = &*self.plan;
        let b = args.b.or(plan.weights.as_ref().map(Weights::view)).map(Source::Given);
        #[cfg(feature = "half")]
        let b = b.or(plan.halves.as_deref().map(Source::Halves));
        let b = b.ok_or_else(|| not_f32(&BackendId::CPU))?;
        let layout = *args.c.layout();
        let output =
            Output::new(plan.kernels, &plan.product, plan.scales, args.bias, args.residual, &mut args.c);
        if layout.is_empty() {
            return Ok(());
        }
        let call =
            Call { plan, a: args.a, b, scales_b: plan.weights.as_ref().and_then(Weights::scales), output };
        let (items, rows, cols) = (layout.batch(), layout.rows(), layout.cols());
        match &plan.pool {
            None => {
                let share = Share { items: 0..items, rows: 0..rows, cols: 0..cols };
                call.compute(&share, self.workers.caller());
                Ok(())
            }
            Some(pool) => {
                let split = Split::new(plan.kernels, plan.threads, items, rows, cols, true);
                self.workers.run(&**pool, split.parts(), |index, scratch| {
                    call.compute(&split.share(plan.kernels, index, items, rows, cols), scratch);
                })
            }
        }
    }
}

/// Where a run finds B.
enum Source<'a> {
    Given(AnyView<'a>),
    #[cfg(feature = "half")]
    Halves(&'a HalfPanels),
}

struct Call<'a> {
    plan: &'a Plan,
    a: AnyView<'a>,
    b: Source<'a>,
    scales_b: Option<AnyView<'a>>,
    output: Output<'a>,
}

/// Rows and columns of one item.
#[derive(Debug, Clone)]
struct Block {
    item: usize,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl Call<'_> {
    fn compute(&self, share: &Share, scratch: &mut Scratch) {
        let whole = self.plan.product.types().accumulator == ElementType::I32;
        for item in share.items.clone() {
            for rows in blocks(&share.rows, ROWS) {
                if self.plan.product.quantization().a == QuantA::DynamicPerRow {
                    self.row_scales(item, &rows, scratch);
                } else {
                    scratch.row_scales.fill(self.plan.scales.a);
                }
                for cols in blocks(&share.cols, BlockOfB::of(self.plan).cols) {
                    let block = Block { item, rows: rows.clone(), cols };
                    if whole {
                        self.integer_block(&block, scratch);
                    } else {
                        self.float_block(&block, scratch);
                    }
                }
            }
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
        let out = numbers(buffer, part.loaded_len());
        load(self.plan.kernels, view, part, out);
        f(out);
        Matrix { start: out.as_ptr(), stride: part.stride(), transposed: part.transpose }
    }

    /// A part of B in `packed` or, as far as it is to be packed, in `buffer`, and the kernels that read it.
    #[cfg_attr(not(feature = "half"), expect(unused_variables, reason = "only 16-bit panels ask for `rows`"))]
    fn part_of_b(
        &self,
        part: &Part,
        rows: usize,
        buffer: &mut Buffer,
        packed: &mut Buffer,
    ) -> (&'static Kernels, B) {
        let kernels = self.plan.kernels;
        let (k, cols) = (part.rows.len(), part.cols.len());
        match &self.b {
            Source::Given(view) => {
                let b = if self.plan.b_as_stored() && !part.transpose {
                    let out = numbers(packed, packed_b_len(kernels, k, cols));
                    pack(kernels, view, part, out);
                    B::Packed(Panels::packed(kernels, out.as_ptr(), k, cols))
                } else {
                    B::Pack(self.loaded(view, part, buffer, |b| self.dequantize(part, b)))
                };
                (kernels, b)
            }
            #[cfg(feature = "half")]
            Source::Halves(halves) if rows <= halves.kernels.max_rows() => {
                let panels = halves.panels(&self.plan.product, part.item, part.cols.start, part.rows.start);
                (halves.kernels, B::Packed(panels))
            }
            #[cfg(feature = "half")]
            Source::Halves(halves) => {
                let out = numbers(packed, packed_b_len(kernels, k, cols));
                halves.expand(&self.plan.product, part, out);
                (kernels, B::Packed(Panels::packed(kernels, out.as_ptr(), k, cols)))
            }
        }
    }

    fn float_block(&self, block: &Block, scratch: &mut Scratch) {
        let Block { item, rows, cols } = block;
        let product = &self.plan.product;
        for depth in blocks(&(0..product.k()), BlockOfB::of(self.plan).depth) {
            let a = self.loaded(&self.a, &self.part_a(*item, rows, &depth), &mut scratch.a, |_| {});
            let part = self.part_b(*item, &depth, cols);
            let b = self.part_of_b(&part, rows.len(), &mut scratch.b, &mut scratch.packed);
            self.multiply(block, depth.len(), a, b, &mut scratch.packed, &mut scratch.sums, depth.start > 0);
        }
        let sums = numbers(&mut scratch.sums, rows.len() * cols.len());
        if product.k() == 0 {
            sums.fill(0.0);
        }
        let row_scratch = &mut scratch.row[..cols.len()];
        for (row, sums) in rows.clone().zip(sums.chunks_mut(cols.len())) {
            for sum in sums.iter_mut() {
                *sum *= product.alpha();
            }
            // SAFETY: this block of C is this call's alone.
            unsafe { self.output.row(*item, row, cols.start, sums, row_scratch) };
        }
    }

    /// `sums = A B`, or added to them.
    #[allow(clippy::too_many_arguments, reason = "the parts of a thread's memory, borrowed apart")]
    fn multiply(
        &self,
        block: &Block,
        depth: usize,
        a: Matrix,
        (kernels, b): (&Kernels, B),
        packed: &mut Buffer,
        sums: &mut Buffer,
        accumulate: bool,
    ) {
        let part = product::Part {
            kernels,
            blocking: &self.plan.blocking,
            rows: block.rows.len(),
            cols: block.cols.len(),
            k: depth,
            a,
            pack_a: false,
            b,
            accumulate,
            results: std::ptr::null(),
            finish: None,
            c: sums.start_mut(),
            c_stride: block.cols.len(),
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
            return take_off(b, scheme.zero_point());
        }
        if scheme == QuantB::None {
            return;
        }
        #[allow(clippy::cast_precision_loss, reason = "of at most 8 bits")]
        let zero_point = scheme.zero_point() as f32;
        let scale_at = |p: usize, col: usize| match (&self.scales_b, scheme) {
            (None, _) => self.plan.scales.b,
            (Some(scales), QuantB::PerGroup { group_size, .. }) => {
                scale(scales, part.item, p / group_size as usize, col)
            }
            (Some(scales), QuantB::PerColumn { .. }) => scale(scales, part.item, 0, col),
            (Some(scales), _) => scale(scales, part.item, 0, 0),
        };
        map(part, b, |p, col, x| scale_at(p, col) * (x - zero_point));
    }

    fn integer_block(&self, block: &Block, scratch: &mut Scratch) {
        let Block { item, rows, cols } = block;
        let product = &self.plan.product;
        let quantization = product.quantization();
        let count = rows.len() * cols.len();
        scratch.integers[..count].fill(0);
        for depth in blocks(&(0..product.k()), BlockOfB::of(self.plan).depth) {
            let part = self.part_a(*item, rows, &depth);
            let a = self.loaded(&self.a, &part, &mut scratch.a, |a| {
                if quantization.a == QuantA::DynamicPerRow {
                    map(&part, a, |row, _, x| {
                        let scale = scratch.row_scales[row - rows.start];
                        if scale.is_nan() { 0.0 } else { quantized(x, scale) }
                    });
                } else {
                    take_off(a, quantization.a.zero_point());
                }
            });
            let part = self.part_b(*item, &depth, cols);
            let b = self.part_of_b(&part, rows.len(), &mut scratch.b, &mut scratch.packed);
            self.multiply(block, depth.len(), a, b, &mut scratch.packed, &mut scratch.sums, false);
            for (sum, &x) in scratch.integers.iter_mut().zip(&*numbers(&mut scratch.sums, count)) {
                #[allow(clippy::cast_possible_truncation, reason = "an integer below 2^24")]
                let x = x as i32;
                // A description's k keeps every sum in range.
                *sum = sum.wrapping_add(x);
            }
        }
        let columns = self.plan.column_scales(*item, cols.start);
        let shared = product.alpha() * self.plan.shared_scale(*item);
        let sums = scratch.integers[..count].chunks(cols.len());
        let scaled = numbers(&mut scratch.sums, cols.len());
        for ((row, sums), row_scale) in rows.clone().zip(sums).zip(&scratch.row_scales) {
            if product.types().output == ElementType::I32 {
                // SAFETY: this block of C is this call's alone, and C is of type i32.
                unsafe { self.output.put(*item, row, cols.start, sums, |sum: i32| sum) };
                continue;
            }
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

    /// The scale of each row of a float A; NaN where an element is not finite.
    fn row_scales(&self, item: usize, rows: &Range<usize>, scratch: &mut Scratch) {
        let largest = &mut scratch.row_scales[..rows.len()];
        largest.fill(0.0);
        for depth in blocks(&(0..self.plan.product.k()), BlockOfB::of(self.plan).depth) {
            let part = self.part_a(item, rows, &depth);
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

/// The first numbers of a buffer.
fn numbers(buffer: &mut Buffer, count: usize) -> &mut [f32] {
    assert!(count * size_of::<f32>() <= buffer.bytes());
    // SAFETY: the buffer has as many, and is borrowed for as long.
    unsafe { std::slice::from_raw_parts_mut(buffer.start_mut(), count) }
}

/// Brings elements of a B that is not transposed into panels.
fn pack(kernels: &Kernels, view: &AnyView<'_>, part: &Part, out: &mut [f32]) {
    let k = part.rows.len();
    // Few rows at a time, so that their pages stay at hand.
    for ks in blocks(&part.rows, K_STEP) {
        for cols in blocks(&part.cols, kernels.panel()) {
            let width = packed_cols(kernels, cols.len());
            let start = (cols.start - part.cols.start) * k + (ks.start - part.rows.start) * width;
            rows(kernels, view, part.item, &ks, &cols, &mut out[start..], width);
        }
    }
}

fn take_off(numbers: &mut [f32], zero_point: i32) {
    if zero_point != 0 {
        #[allow(clippy::cast_precision_loss, reason = "of at most 8 bits")]
        let zero_point = zero_point as f32;
        for x in numbers {
            *x -= zero_point;
        }
    }
}

/// `range` in blocks.
fn blocks(range: &Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = range.end;
    range.clone().step_by(size).map(move |start| start..end.min(start + size))
}
