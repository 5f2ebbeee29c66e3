//! One run: panels of B shared among the threads, each by all rows of A.

use std::ops::Range;
use std::sync::Arc;

use super::super::buffer::Buffer;
use super::super::finish::Finish;
use super::super::typed::finish::Output;
use super::super::typed::load::load_row;
use super::super::workers::Workers;
use super::Plan;
use super::kernel::Panel;
use crate::backend::f32_only::f32_view;
use crate::backend::{Run, RunArgs};
use crate::description::activation::Activation;
use crate::description::element::ElementType;
use crate::error::Result;
use crate::operands::view::{AnyView, TensorView};

/// The rows of A that are kept at a time: in a second-level cache up to a k of some thousand.
const ROWS: usize = 64;

struct Scratch {
    /// Rows of A in the order of the kernel.
    a: Buffer,
    /// A row of A as f32, and then of sums.
    row: Buffer,
    sums: Buffer,
}

pub(super) struct WeightOnlyRun {
    plan: Arc<Plan>,
    workers: Workers<Scratch>,
}

impl WeightOnlyRun {
    pub(super) fn new(plan: Arc<Plan>) -> Result<Self> {
        const WHAT: &str = "rows of A";
        let rows = plan.product.m().min(ROWS).next_power_of_two();
        let workers = Workers::new(plan.threads, || {
            Ok(Scratch {
                a: Buffer::zeroed(rows.saturating_mul(plan.padded_k()), WHAT)?,
                row: Buffer::zeroed(plan.product.k().max(plan.kernels.lanes), WHAT)?,
                sums: Buffer::zeroed(rows * plan.kernels.lanes, WHAT)?,
            })
        })?;
        Ok(Self { plan, workers })
    }
}

impl Plan {
    /// k with every group in whole words.
    fn padded_k(&self) -> usize {
        let packed = &self.packed;
        ((packed.groups - 1) * packed.words + packed.last_words) * (32 / packed.bits)
    }
}

impl Run for WeightOnlyRun {
    fn run(&mut self, mut args: RunArgs<'_>) -> Result<()> {
        let plan = &*self.plan;
        let floats = Floats::new(&args);
        let output =
            Output::new(plan.engine, &plan.product, plan.scales, args.bias, args.residual, &mut args.c);
        if output.layout().is_empty() {
            return Ok(());
        }
        let panels = output.layout().cols().div_ceil(plan.kernels.lanes);
        let call = Call { plan, a: args.a, output, floats };
        let each = panels.div_ceil(plan.threads);
        match &plan.pool {
            None => {
                call.compute(0..panels, self.workers.caller());
                Ok(())
            }
            Some(pool) => self.workers.run(&**pool, plan.threads, |thread, scratch| {
                call.compute((thread * each).min(panels)..((thread + 1) * each).min(panels), scratch);
            }),
        }
    }
}

/// What follows the sums, where all of it is f32, and C too.
struct Floats<'a> {
    bias: Option<&'a [f32]>,
    residual: Option<TensorView<'a, f32>>,
}

impl<'a> Floats<'a> {
    fn new(args: &RunArgs<'a>) -> Option<Self> {
        let f32_or_none =
            |view: &Option<AnyView<'a>>| view.is_none_or(|view| view.element_type() == ElementType::F32);
        if args.c.element_type() != ElementType::F32
            || !f32_or_none(&args.bias)
            || !f32_or_none(&args.residual)
        {
            return None;
        }
        Some(Self {
            bias: args.bias.and_then(f32_view).map(|view| view.data()),
            residual: args.residual.and_then(f32_view),
        })
    }
}

struct Call<'a> {
    plan: &'a Plan,
    a: AnyView<'a>,
    output: Output<'a>,
    floats: Option<Floats<'a>>,
}

impl Call<'_> {
    fn compute(&self, panels: Range<usize>, scratch: &mut Scratch) {
        if panels.is_empty() {
            return;
        }
        let layout = *self.output.layout();
        for item in 0..layout.batch() {
            for first in (0..layout.rows()).step_by(ROWS) {
                let rows = first..layout.rows().min(first + ROWS);
                self.pack_rows(item, &rows, scratch);
                for panel in panels.clone() {
                    self.panel(item, &rows, panel, scratch);
                }
            }
        }
    }

    /// The tiles of some rows: how many rows each has, and how many of them are there.
    fn tiles(&self, rows: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let kernels = self.plan.kernels;
        let mut left = rows;
        std::iter::from_fn(move || {
            (left > 0).then(|| {
                let tile = kernels.tile_rows(left);
                let there = tile.min(left);
                left -= there;
                (tile, there)
            })
        })
    }

    /// Brings rows of A into the kernel's order; rows that a tile has beyond them are 0.
    fn pack_rows(&self, item: usize, rows: &Range<usize>, scratch: &mut Scratch) {
        let plan = self.plan;
        let (k, padded_k, packed) = (plan.product.k(), plan.padded_k(), &plan.packed);
        let per_word = 32 / packed.bits;
        let group = super::pack::group_len(plan.product.quantization().b, k);
        let padded_group = packed.words * per_word;
        // SAFETY: this thread's memory, of these lengths.
        let (a, row) = unsafe {
            (
                std::slice::from_raw_parts_mut(scratch.a.start_mut(), scratch.a.bytes() / size_of::<f32>()),
                std::slice::from_raw_parts_mut(scratch.row.start_mut(), k),
            )
        };
        let mut next = rows.start;
        let mut rest = a;
        for (tile, there) in self.tiles(rows.len()) {
            let (a, others) = rest.split_at_mut(tile * padded_k);
            rest = others;
            // What lies there from other rows would be multiplied by the offset.
            if there < tile || k != padded_k {
                a.fill(0.0);
            }
            for i in 0..there {
                self.row(item, next, row);
                next += 1;
                if tile == 1 && group == padded_group {
                    a[..k].copy_from_slice(row);
                    continue;
                }
                for (numbers, to) in row.chunks(group).zip(a.chunks_mut(padded_group * tile)) {
                    for (numbers, to) in numbers.chunks(per_word).zip(to.chunks_mut(per_word * tile)) {
                        to[i * per_word..][..numbers.len()].copy_from_slice(numbers);
                    }
                }
            }
        }
    }

    /// A row of op(A) as f32.
    fn row(&self, item: usize, row: usize, out: &mut [f32]) {
        load_row(self.plan.engine, &self.a, item, self.plan.product.transpose_a(), row, out);
    }

    fn panel(&self, item: usize, rows: &Range<usize>, panel: usize, scratch: &mut Scratch) {
        let Plan { packed, kernels, .. } = self.plan;
        let (padded_k, lanes) = (self.plan.padded_k(), kernels.lanes);
        let (mut a, mut sums) = (scratch.a.start(), scratch.sums.start_mut());
        for (tile, _) in self.tiles(rows.len()) {
            let call = Panel {
                b: packed.panel(item, panel),
                groups: packed.groups,
                words: packed.words,
                last_words: packed.last_words,
                a,
                offset: packed.offset,
                sums,
            };
            // SAFETY: A, B and the sums are packed for these kernels, whose instructions are here.
            unsafe { kernels.panel(packed.bits, packed.offset != 0.0, tile)(&call) };
            a = a.wrapping_add(tile * padded_k);
            sums = sums.wrapping_add(tile * lanes);
        }
        self.finish(item, rows, panel * lanes, scratch);
    }

    /// What follows the sums of some rows and of a panel's columns from `col` on.
    fn finish(&self, item: usize, rows: &Range<usize>, col: usize, scratch: &mut Scratch) {
        let plan = self.plan;
        let (layout, lanes, alpha) = (self.output.layout(), plan.kernels.lanes, plan.product.alpha());
        let cols = lanes.min(layout.cols() - col);
        // SAFETY: this thread's memory, of these lengths.
        let (sums, row) = unsafe {
            (
                std::slice::from_raw_parts_mut(scratch.sums.start_mut(), rows.len() * lanes),
                std::slice::from_raw_parts_mut(scratch.row.start_mut(), cols),
            )
        };
        let Some(floats) = &self.floats else {
            for (index, sums) in rows.clone().zip(sums.chunks_mut(lanes)) {
                let sums = &mut sums[..cols];
                for sum in sums.iter_mut() {
                    *sum *= alpha;
                }
                // SAFETY: these columns of C are this thread's alone.
                unsafe { self.output.row(item, index, col, sums, row) };
            }
            return;
        };
        let stride = layout.leading_dimension();
        let c = self.output.words().wrapping_add(layout.item_offset(item) + rows.start * stride + col);
        for (index, sums) in sums.chunks(lanes).enumerate() {
            // SAFETY: these columns of C are this thread's alone, and do not overlap its scratch memory.
            unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), c.add(index * stride), cols) };
        }
        let residual = floats.residual.map(|view| {
            let layout = view.layout();
            let start = layout.item_offset(item) + rows.start * layout.leading_dimension() + col;
            (view.data().as_ptr().wrapping_add(start), layout.leading_dimension())
        });
        let finish = Finish {
            c,
            c_stride: stride,
            rows: rows.len(),
            cols,
            alpha: (alpha.to_bits() != 1f32.to_bits()).then_some(alpha),
            bias: floats.bias.map(|bias| bias.as_ptr().wrapping_add(col)),
            residual,
            activation: plan.product.activation(),
        };
        let nothing = finish.alpha.is_none() && finish.bias.is_none() && residual.is_none();
        if !nothing || finish.activation != Activation::None {
            // SAFETY: bias, residual and these columns of C cover it.
            unsafe { (plan.engine.finish)(&finish) };
        }
    }
}
