//! One run: rows of A become words block by block, and C is finished tile by tile or row by row.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::buffer::Buffer;
use super::super::finish::Finish;
use super::super::kernel::{Kernels, Lane, TileFn};
use super::super::pack::{Matrix, Panels, packed_b_len};
use super::super::product::{Area, B, Part, Visitor, visit};
use super::super::split::{Share, Split};
use super::super::tile::{Results, RowTerms, Tile};
use super::super::typed::TypedRun;
use super::super::typed::finish::Output;
use super::super::workers::Workers;
use super::rows::{SLACK_WORDS, Words, direct, has_subnormals, has_terms, offset, write};
use super::words::{Packer, words};
use super::{DotPlan, SET_WORDS};
use crate::alloc;
use crate::backend::f32_only::not_f32;
use crate::backend::{BackendId, Run, RunArgs};
use crate::description::activation::Activation;
use crate::description::element::ElementType;
use crate::error::Result;
use crate::operands::view::AnyView;

/// Rows whose sums lie in scratch memory, where C cannot hold them: four strips of tiles.
const ROWS_APART: usize = 56;

pub(super) struct DotRun {
    plan: Arc<DotPlan>,
    workers: Workers<Scratch>,
    /// For operands with subnormal elements.
    exact: Option<TypedRun>,
}

/// The memory of one thread.
struct Scratch {
    a: Buffer,
    /// Sums that C cannot hold.
    c: Buffer,
    terms: Vec<RowTerms>,
    /// k or n numbers.
    row: Vec<f32>,
    /// For a B that comes with the run.
    b: Option<BlockOfB>,
}

/// Some columns of B.
struct BlockOfB {
    packer: Packer,
    panels: Buffer,
    /// [`Results::taken_off`].
    taken_off: Vec<i32>,
}

/// From row to row of A's words.
fn a_stride(plan: &DotPlan) -> usize {
    let words = words(plan.lane, plan.typed.product.k());
    if words.is_multiple_of(SET_WORDS) { words + 16 } else { words }
}

/// The rows whose words are made at a time: they stay in half of the second-level cache.
fn block_rows(plan: &DotPlan) -> usize {
    let strip = plan.kernels.max_rows();
    let bytes = a_stride(plan) * size_of::<u32>();
    let rows = (plan.blocking.plain_a_bytes / 2 / bytes).max(strip) / strip * strip;
    let rows = if plan.in_place() { rows } else { rows.min(ROWS_APART) };
    rows.min(plan.typed.product.m().max(1))
}

/// The columns of B that are packed at a time: half of the second-level cache.
fn block_cols(plan: &DotPlan) -> usize {
    let n = plan.typed.product.n();
    if plan.b.is_some() {
        return n;
    }
    let (panel, words) = (plan.kernels.panel(), words(plan.lane, plan.typed.product.k()));
    let some = plan.blocking.plain_a_bytes / 2 / size_of::<u32>();
    ((some / words / panel).max(1) * panel).min(n)
}

impl DotRun {
    pub(super) fn new(plan: Arc<DotPlan>) -> Result<Self> {
        const WHAT: &str = "packed operands";
        let product = &plan.typed.product;
        let (n, k) = (product.n(), product.k());
        let (rows, cols) = (block_rows(&plan), block_cols(&plan));
        let workers = Workers::new(plan.typed.threads, || {
            let b = match plan.b {
                Some(_) => None,
                None => Some(BlockOfB {
                    packer: Packer::new(plan.kernels, plan.lane, product)?,
                    panels: Buffer::zeroed(packed_b_len(plan.kernels, words(plan.lane, k), cols), WHAT)?,
                    taken_off: alloc::filled(if plan.lane == Lane::Int8Quad { cols } else { 0 }, 0, WHAT)?,
                }),
            };
            Ok(Scratch {
                a: Buffer::zeroed(rows.saturating_mul(a_stride(&plan)).saturating_add(SLACK_WORDS), WHAT)?,
                c: Buffer::zeroed(if plan.in_place() { 0 } else { rows.saturating_mul(cols) }, WHAT)?,
                terms: alloc::filled(rows, RowTerms::default(), WHAT)?,
                row: alloc::filled(n.max(k), 0f32, WHAT)?,
                b,
            })
        })?;
        let exact = match plan.lane {
            Lane::Bf16Pair => Some(TypedRun::new(Arc::clone(&plan.typed))?),
            Lane::Int8Quad => None,
        };
        Ok(Self { plan, workers, exact })
    }
}

impl Run for DotRun {
    fn run(&mut self, mut args: RunArgs<'_>) -> Result<()> {
        if let Some(exact) = &mut self.exact
            // SAFETY: a plan's kernels are of instructions that are here.
            && unsafe { has_subnormals(&args.a) }
        {
            return exact.run(args);
        }
        let plan = &*self.plan;
        let typed = &*plan.typed;
        if plan.b.is_none() && args.b.is_none() {
            return Err(not_f32(&BackendId::CPU));
        }
        let layout = *args.c.layout();
        let output =
            Output::new(typed.kernels, &typed.product, typed.scales, args.bias, args.residual, &mut args.c);
        if layout.is_empty() {
            return Ok(());
        }
        let call = Call {
            plan,
            a: args.a,
            b: args.b,
            bias: args.bias,
            residual: args.residual,
            output,
            subnormal_b: AtomicBool::new(false),
        };
        let (items, rows, cols) = (layout.batch(), layout.rows(), layout.cols());
        match &typed.pool {
            None => {
                let share = Share { items: 0..items, rows: 0..rows, cols: 0..cols };
                call.compute(&share, self.workers.caller());
            }
            Some(pool) => {
                let split = Split::new(plan.kernels, typed.threads, items, rows, cols, plan.b.is_none());
                self.workers.run(&**pool, split.parts(), |index, scratch| {
                    call.compute(&split.share(plan.kernels, index, items, rows, cols), scratch);
                })?;
            }
        }
        if let Some(exact) = &mut self.exact
            && call.subnormal_b.into_inner()
        {
            return exact.run(args);
        }
        Ok(())
    }
}

struct Call<'a> {
    plan: &'a DotPlan,
    a: AnyView<'a>,
    /// Where it comes with the run.
    b: Option<AnyView<'a>>,
    bias: Option<AnyView<'a>>,
    residual: Option<AnyView<'a>>,
    output: Output<'a>,
    /// Whether packing met a subnormal element, so that C is not what it should be.
    subnormal_b: AtomicBool,
}

// SAFETY: C comes from an exclusive borrow that outlives the run; each share accesses its own part of it alone.
unsafe impl Sync for Call<'_> {}

fn f32_start(view: &AnyView<'_>) -> *const f32 {
    match view {
        AnyView::F32(view) => view.data().as_ptr(),
        _ => std::ptr::null(),
    }
}

/// Columns of B, packed.
#[derive(Debug, Clone, Copy)]
struct Columns {
    panels: Panels,
    /// [`Results::taken_off`], from the first column on.
    taken_off: *const i32,
}

impl Call<'_> {
    fn compute(&self, share: &Share, scratch: &mut Scratch) {
        if share.rows.is_empty() || share.cols.is_empty() {
            return;
        }
        let (rows_block, cols_block) = (block_rows(self.plan), block_cols(self.plan));
        for item in share.items.clone() {
            for first in share.cols.clone().step_by(cols_block) {
                let cols = first..share.cols.end.min(first + cols_block);
                let columns = self.columns(item, &cols, scratch);
                for first in share.rows.clone().step_by(rows_block) {
                    let rows = first..share.rows.end.min(first + rows_block);
                    self.block(item, &rows, &cols, &columns, scratch);
                }
            }
        }
    }

    /// Some columns of B: as they were packed when the product was compiled, or packed now.
    fn columns(&self, item: usize, cols: &Range<usize>, scratch: &mut Scratch) -> Columns {
        let plan = self.plan;
        let (n, k) = (plan.typed.product.n(), words(plan.lane, plan.typed.product.k()));
        if let Some(packed) = &plan.b {
            let start = packed.item(item).wrapping_add(cols.start * k);
            let panels = Panels::packed(plan.kernels, start, k, n - cols.start);
            return Columns { panels, taken_off: plan.of_columns(&plan.taken_off, item, cols.start) };
        }
        let (Some(block), Some(view)) = (&mut scratch.b, &self.b) else {
            unreachable!("a B that is not constant comes with the run, which has checked it");
        };
        let sums = block.taken_off.get_mut(..cols.len()).unwrap_or_default();
        let start = block.panels.start_mut();
        // SAFETY: the executor has checked that B covers its layout; the panels have room for a block's
        // columns; a plan's kernels are of instructions that are here.
        if unsafe { block.packer.pack(view, item, cols, start, sums) } {
            self.subnormal_b.store(true, Ordering::Relaxed);
        }
        let offset = offset(&plan.typed);
        for sum in &mut *sums {
            *sum = sum.wrapping_mul(offset);
        }
        Columns { panels: Panels::packed(plan.kernels, start, k, cols.len()), taken_off: sums.as_ptr() }
    }

    fn block(
        &self,
        item: usize,
        rows: &Range<usize>,
        cols: &Range<usize>,
        columns: &Columns,
        scratch: &mut Scratch,
    ) {
        let plan = self.plan;
        let product = &plan.typed.product;
        let k = words(plan.lane, product.k());
        let a = direct(&plan.typed, plan.lane, &self.a, item, rows.start).unwrap_or_else(|| {
            let (start, stride) = (scratch.a.start_mut(), a_stride(plan));
            let mut words = Words {
                start: start.cast(),
                stride,
                count: k,
                terms: &mut scratch.terms,
                floats: &mut scratch.row,
            };
            // SAFETY: the buffer has room for a block's rows; a plan's kernels are of instructions that are
            // here.
            unsafe { write(&plan.typed, plan.lane, &self.a, item, rows.clone(), &mut words) };
            Matrix { start, stride, transposed: false }
        });
        let layout = self.output.layout();
        let in_place = plan.in_place();
        let (c, c_stride) = if in_place {
            let index = layout.item_offset(item) + rows.start * layout.leading_dimension() + cols.start;
            (self.output.words().wrapping_add(index), layout.leading_dimension())
        } else {
            (scratch.c.start_mut(), cols.len())
        };
        let results = Results {
            taken_off: columns.taken_off,
            scales: plan.of_columns(&plan.scales, item, cols.start),
            rows: if has_terms(&plan.typed) { scratch.terms.as_ptr() } else { std::ptr::null() },
        };
        let part = Part {
            kernels: plan.kernels,
            blocking: &plan.blocking,
            rows: rows.len(),
            cols: cols.len(),
            k,
            a,
            pack_a: false,
            b: B::Packed(columns.panels),
            finish: Some(self.finish(item, rows, cols, c, c_stride)),
            c,
            c_stride,
            accumulate: false,
            results: if plan.lane == Lane::Int8Quad { &raw const results } else { std::ptr::null() },
            scratch_a: std::ptr::null_mut(),
            scratch_b: std::ptr::null_mut(),
        };
        let mut finisher = Finisher { epilogue: in_place && product.types().output == ElementType::F32 };
        // SAFETY: the executor has checked that the operands cover their layouts for this m; shares of C
        // are disjoint, and so are their scratch memories, which are as long as the plan needs; the results'
        // columns and rows are those of the part.
        unsafe { visit(&part, &mut finisher) };
        if in_place {
            return;
        }
        // The scales of integers have it.
        let alpha = if plan.lane == Lane::Bf16Pair { product.alpha() } else { 1.0 };
        for (i, row) in rows.clone().enumerate() {
            // SAFETY: the sums of a block lie in scratch memory; this share of C is this call's alone.
            unsafe {
                let x = std::slice::from_raw_parts_mut(c.add(i * c_stride), cols.len());
                for x in &mut *x {
                    *x *= alpha;
                }
                self.output.row(item, row, cols.start, x, &mut scratch.row[..cols.len()]);
            }
        }
    }

    /// The epilogue in f32.
    fn finish(
        &self,
        item: usize,
        rows: &Range<usize>,
        cols: &Range<usize>,
        c: *mut f32,
        c_stride: usize,
    ) -> Finish {
        let product = &self.plan.typed.product;
        let integers = self.plan.lane == Lane::Int8Quad;
        Finish {
            c,
            c_stride,
            rows: rows.len(),
            cols: cols.len(),
            // The scales of integers have it.
            alpha: Some(product.alpha()).filter(|alpha| !integers && alpha.to_bits() != 1f32.to_bits()),
            bias: self.bias.as_ref().map(|bias| f32_start(bias).wrapping_add(cols.start)),
            residual: self.residual.as_ref().map(|residual| {
                let layout = residual.layout();
                let index = layout.item_offset(item) + rows.start * layout.leading_dimension() + cols.start;
                (f32_start(residual).wrapping_add(index), layout.leading_dimension())
            }),
            activation: product.activation(),
        }
    }
}

/// The epilogue of a tile while it is in the cache.
struct Finisher {
    epilogue: bool,
}

impl Visitor for Finisher {
    #[inline]
    unsafe fn tile(&mut self, function: TileFn, tile: &Tile) {
        // SAFETY: by the trait's contract.
        unsafe { function(tile) };
    }

    #[inline]
    unsafe fn finish(&mut self, kernels: &Kernels, finish: &Finish, area: Area) {
        let identity = finish.alpha.is_none()
            && finish.bias.is_none()
            && finish.residual.is_none()
            && finish.activation == Activation::None;
        if self.epilogue && !identity {
            // SAFETY: by the trait's contract.
            unsafe { (kernels.finish)(&finish.part(area)) };
        }
    }
}
