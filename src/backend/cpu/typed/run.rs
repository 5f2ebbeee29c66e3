//! One run: blocks of C, each summed in the order of k whatever the number of threads.

use std::ops::Range;
use std::sync::Arc;

use super::Plan;
use super::finish::Output;
use super::load::{Part, floats, integers, quantized, scale, scale_for};
use crate::backend::f32_only::not_f32;
use crate::backend::{BackendId, Run, RunArgs};
use crate::element::ElementType;
use crate::error::Result;
use crate::quantization::{QuantA, QuantB};
use crate::view::AnyView;
use crate::weights::Weights;

/// The rows and columns of a block of C, and the products that are summed from one load of A and B: all
/// three blocks stay in a second-level cache.
const ROWS: usize = 32;
const COLS: usize = 64;
const DEPTH: usize = 256;

/// A number that is summed.
trait Number: Copy + Default {
    fn multiply_add(self, a: Self, b: Self) -> Self;
}

impl Number for f32 {
    fn multiply_add(self, a: Self, b: Self) -> Self {
        self + a * b
    }
}

impl Number for i32 {
    // A description's k keeps every sum in range.
    fn multiply_add(self, a: Self, b: Self) -> Self {
        self.wrapping_add(a.wrapping_mul(b))
    }
}

/// The blocks of one thread.
struct Blocks<T> {
    a: Vec<T>,
    b: Vec<T>,
    sums: Vec<T>,
}

impl<T: Number> Blocks<T> {
    fn new() -> Result<Self> {
        let block = |len| crate::alloc::filled(len, T::default(), "blocks of operands");
        Ok(Self { a: block(ROWS * DEPTH)?, b: block(DEPTH * COLS)?, sums: block(ROWS * COLS)? })
    }

    /// Adds the product of the first `rows` rows and `depth` columns of A with B to the sums, all packed.
    fn multiply(&mut self, rows: usize, cols: usize, depth: usize) {
        for (a, sums) in self.a.chunks(depth).zip(self.sums.chunks_mut(cols)).take(rows) {
            for (&a, b) in a.iter().zip(self.b.chunks(cols)) {
                for (sum, &b) in sums.iter_mut().zip(b) {
                    *sum = sum.multiply_add(a, b);
                }
            }
        }
    }
}

struct Scratch {
    floats: Blocks<f32>,
    /// Only where sums are of integers.
    integers: Option<Blocks<i32>>,
}

pub(in super::super) struct TypedRun {
    plan: Arc<Plan>,
    scratch: Vec<Scratch>,
}

impl TypedRun {
    pub(in super::super) fn new(plan: Arc<Plan>) -> Result<Self> {
        let mut scratch = Vec::new();
        for _ in 0..plan.threads {
            let whole = plan.product.types().accumulator == ElementType::I32;
            scratch.push(Scratch { floats: Blocks::new()?, integers: whole.then(Blocks::new).transpose()? });
        }
        Ok(Self { plan, scratch })
    }
}

impl Run for TypedRun {
    fn run(&mut self, mut args: RunArgs<'_>) -> Result<()> {
        let plan = &*self.plan;
        let b =
            args.b.or(plan.weights.as_ref().map(Weights::view)).ok_or_else(|| not_f32(&BackendId::CPU))?;
        let output = Output::new(&plan.product, plan.scales, args.bias, args.residual, &mut args.c);
        if output.layout().is_empty() {
            return Ok(());
        }
        let call = Call {
            plan,
            a: args.a,
            b,
            scales_b: plan.weights.as_ref().and_then(Weights::scales),
            output,
            scratch: self.scratch.as_mut_ptr(),
        };
        let blocks = call.blocks();
        let each = blocks.div_ceil(plan.threads);
        let share = |thread: usize| (thread * each).min(blocks)..((thread + 1) * each).min(blocks);
        match &plan.pool {
            None => call.compute(0, 0..blocks),
            Some(pool) => pool.run(plan.threads, &|thread| call.compute(thread, share(thread))),
        }
        Ok(())
    }
}

struct Call<'a> {
    plan: &'a Plan,
    a: AnyView<'a>,
    b: AnyView<'a>,
    scales_b: Option<AnyView<'a>>,
    output: Output<'a>,
    scratch: *mut Scratch,
}

// SAFETY: the scratch memory comes from an exclusive borrow that outlives the run; each thread uses its
// own part alone.
unsafe impl Sync for Call<'_> {}

impl Call<'_> {
    /// Blocks of C over all items.
    fn blocks(&self) -> usize {
        let layout = self.output.layout();
        layout.batch() * layout.rows().div_ceil(ROWS) * layout.cols().div_ceil(COLS)
    }

    fn compute(&self, thread: usize, blocks: Range<usize>) {
        // SAFETY: there is scratch memory for every thread, and this one's is used here alone.
        let scratch = unsafe { &mut *self.scratch.add(thread) };
        let layout = self.output.layout();
        let (down, across) = (layout.rows().div_ceil(ROWS), layout.cols().div_ceil(COLS));
        for block in blocks {
            let (item, row, col) =
                (block / across / down, block / across % down * ROWS, block % across * COLS);
            let rows = row..layout.rows().min(row + ROWS);
            let cols = col..layout.cols().min(col + COLS);
            match &mut scratch.integers {
                None => self.float_block(item, rows, cols, &mut scratch.floats),
                Some(blocks) => self.integer_block(item, rows, cols, blocks, &mut scratch.floats),
            }
        }
    }

    fn part_a(&self, item: usize, rows: &Range<usize>, depth: &Range<usize>) -> Part {
        Part { item, transpose: self.plan.product.transpose_a(), rows: rows.clone(), cols: depth.clone() }
    }

    fn part_b(&self, item: usize, depth: &Range<usize>, cols: &Range<usize>) -> Part {
        Part { item, transpose: self.plan.product.transpose_b(), rows: depth.clone(), cols: cols.clone() }
    }

    fn float_block(&self, item: usize, rows: Range<usize>, cols: Range<usize>, blocks: &mut Blocks<f32>) {
        blocks.sums.fill(0.0);
        for depth in depths(self.plan.product.k()) {
            floats(
                &self.a,
                &self.part_a(item, &rows, &depth),
                &mut blocks.a[..rows.len() * depth.len()],
                |_, _, x| x,
            );
            let b = &mut blocks.b[..depth.len() * cols.len()];
            self.load_b(&self.part_b(item, &depth, &cols), b);
            blocks.multiply(rows.len(), cols.len(), depth.len());
        }
        let alpha = self.plan.product.alpha();
        for (row, sums) in rows.zip(blocks.sums.chunks_mut(cols.len())) {
            for sum in sums.iter_mut() {
                *sum *= alpha;
            }
            // SAFETY: this block of C is this call's alone.
            unsafe { self.output.row(item, row, cols.start, sums, &mut blocks.a[..cols.len()]) };
        }
    }

    /// Loads a part of op(B), dequantised.
    fn load_b(&self, part: &Part, out: &mut [f32]) {
        let scheme = self.plan.product.quantization().b;
        if scheme == QuantB::None {
            return floats(&self.b, part, out, |_, _, x| x);
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
        floats(&self.b, part, out, |p, col, x| scale_at(p, col) * (x - zero_point));
    }

    fn integer_block(
        &self,
        item: usize,
        rows: Range<usize>,
        cols: Range<usize>,
        blocks: &mut Blocks<i32>,
        floats: &mut Blocks<f32>,
    ) {
        let product = &self.plan.product;
        let quantization = product.quantization();
        let mut row_scales = [self.plan.scales.a; ROWS];
        if quantization.a == QuantA::DynamicPerRow {
            self.row_scales(item, &rows, &mut row_scales, &mut floats.a);
        }
        blocks.sums.fill(0);
        for depth in depths(product.k()) {
            let a = &mut blocks.a[..rows.len() * depth.len()];
            self.load_a(&self.part_a(item, &rows, &depth), &row_scales, a, &mut floats.a);
            let b = &mut blocks.b[..depth.len() * cols.len()];
            integers(&self.b, &self.part_b(item, &depth, &cols), quantization.b.zero_point(), b);
            blocks.multiply(rows.len(), cols.len(), depth.len());
        }
        let columns = self.plan.column_scales(item, cols.start);
        let shared = product.alpha() * self.plan.shared_scale(item);
        for ((row, sums), row_scale) in rows.zip(blocks.sums.chunks(cols.len())).zip(row_scales) {
            if product.types().output == ElementType::I32 {
                // SAFETY: this block of C is this call's alone, and C is of type i32.
                unsafe { self.output.put(item, row, cols.start, sums, |sum: i32| sum) };
                continue;
            }
            let scaled = &mut floats.sums[..cols.len()];
            for (col, (x, &sum)) in scaled.iter_mut().zip(sums).enumerate() {
                let column = columns.map_or(shared, |columns| columns[col]);
                #[allow(clippy::cast_precision_loss, reason = "rounded, as documented")]
                let sum = sum as f32;
                *x = sum * (row_scale * column);
            }
            // SAFETY: this block of C is this call's alone.
            unsafe { self.output.row(item, row, cols.start, scaled, &mut floats.b[..cols.len()]) };
        }
    }

    /// Loads integers of A, quantised where it is float, less their zero point.
    fn load_a(&self, part: &Part, row_scales: &[f32; ROWS], out: &mut [i32], scratch: &mut [f32]) {
        match self.plan.product.quantization().a {
            QuantA::DynamicPerRow => {
                let scratch = &mut scratch[..out.len()];
                floats(&self.a, part, scratch, |_, _, x| x);
                let depth = part.cols.len();
                for ((out, x), &scale) in out.chunks_mut(depth).zip(scratch.chunks(depth)).zip(row_scales) {
                    for (out, &x) in out.iter_mut().zip(x) {
                        *out = if scale.is_nan() { 0 } else { quantized(x, scale) };
                    }
                }
            }
            scheme => integers(&self.a, part, scheme.zero_point(), out),
        }
    }

    /// The scale of each row of a float A; NaN where an element is not finite.
    fn row_scales(&self, item: usize, rows: &Range<usize>, scales: &mut [f32; ROWS], scratch: &mut [f32]) {
        let mut largest = [0f32; ROWS];
        for depth in depths(self.plan.product.k()) {
            let block = &mut scratch[..rows.len() * depth.len()];
            floats(&self.a, &self.part_a(item, rows, &depth), block, |_, _, x| x);
            for (largest, row) in largest.iter_mut().zip(block.chunks(depth.len())) {
                for x in row {
                    // NaN stays, which f32::max would drop.
                    *largest =
                        if x.is_finite() && !largest.is_nan() { largest.max(x.abs()) } else { f32::NAN };
                }
            }
        }
        for (scale, largest) in scales.iter_mut().zip(largest) {
            *scale = if largest.is_nan() { f32::NAN } else { scale_for(largest) };
        }
    }
}

fn depths(k: usize) -> impl Iterator<Item = Range<usize>> {
    (0..k).step_by(DEPTH).map(move |start| start..k.min(start + DEPTH))
}
