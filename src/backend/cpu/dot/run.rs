//! One run: rows of A become words block by block, and the sums are finished tile by tile or row by row.

use std::sync::Arc;

use super::super::buffer::Buffer;
use super::super::finish::Finish;
use super::super::kernel::{Kernels, Lane, TileFn};
use super::super::pack::{Matrix, Panels};
use super::super::product::{Area, B, Part, Visitor, visit};
#[cfg(target_arch = "x86_64")]
use super::super::simd::avx512_dot::dequantize;
use super::super::split::{Share, Split};
use super::super::tile::Tile;
use super::super::typed::Plan;
use super::super::typed::TypedRun;
use super::super::typed::finish::Output;
use super::rows::{RowTerms, direct, direct_terms, has_subnormals, offset, write};
use super::words::words;
use super::{DotPlan, SET_WORDS};
use crate::activation::Activation;
use crate::alloc;
use crate::backend::{Run, RunArgs};
use crate::element::ElementType;
use crate::error::Result;
use crate::view::AnyView;

/// Rows whose sums lie in scratch memory, where C cannot hold them: four strips of tiles.
const ROWS_APART: usize = 56;

pub(super) struct DotRun {
    plan: Arc<DotPlan>,
    scratch: Vec<Scratch>,
    /// For an A with subnormal elements.
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

impl DotRun {
    pub(super) fn new(plan: Arc<DotPlan>) -> Result<Self> {
        const WHAT: &str = "packed operands";
        let (n, k) = (plan.typed.product.n(), plan.typed.product.k());
        let rows = block_rows(&plan);
        let mut scratch = Vec::new();
        for _ in 0..plan.typed.threads {
            scratch.push(Scratch {
                a: Buffer::zeroed(rows.saturating_mul(a_stride(&plan)), WHAT)?,
                c: Buffer::zeroed(if plan.in_place() { 0 } else { rows.saturating_mul(n) }, WHAT)?,
                terms: alloc::filled(rows, RowTerms::default(), WHAT)?,
                row: alloc::filled(n.max(k), 0f32, WHAT)?,
            });
        }
        let exact = match plan.lane {
            Lane::Bf16Pair => Some(TypedRun::new(Arc::clone(&plan.typed))?),
            Lane::Int8Quad => None,
        };
        Ok(Self { plan, scratch, exact })
    }
}

impl Run for DotRun {
    fn run(&mut self, mut args: RunArgs<'_>) -> Result<()> {
        // SAFETY: the kernels of a plan are of AVX-512.
        if let Some(exact) = self.exact.as_mut().filter(|_| unsafe { has_subnormals(&args.a) }) {
            return exact.run(args);
        }
        let plan = &*self.plan;
        let typed = &*plan.typed;
        let layout = *args.c.layout();
        let output =
            Output::new(typed.kernels, &typed.product, typed.scales, args.bias, args.residual, &mut args.c);
        if layout.is_empty() {
            return Ok(());
        }
        let call = Call {
            plan,
            a: args.a,
            bias: args.bias,
            residual: args.residual,
            output,
            scratch: self.scratch.as_mut_ptr(),
        };
        let (items, rows, cols) = (layout.batch(), layout.rows(), layout.cols());
        match &typed.pool {
            None => call.compute(0, &Share { items: 0..items, rows: 0..rows, cols: 0..cols }),
            Some(pool) => {
                let split = Split::new(plan.kernels, typed.threads, items, rows, cols, false);
                pool.run(split.parts(), &|index| {
                    call.compute(index, &split.share(plan.kernels, index, items, rows, cols));
                });
            }
        }
        Ok(())
    }
}

struct Call<'a> {
    plan: &'a DotPlan,
    a: AnyView<'a>,
    bias: Option<AnyView<'a>>,
    residual: Option<AnyView<'a>>,
    output: Output<'a>,
    scratch: *mut Scratch,
}

// SAFETY: C and the scratch memory come from exclusive borrows that outlive the run; each share accesses
// its own part of them alone.
unsafe impl Sync for Call<'_> {}

fn f32_start(view: &AnyView<'_>) -> *const f32 {
    match view {
        AnyView::F32(view) => view.data().as_ptr(),
        _ => std::ptr::null(),
    }
}

impl Call<'_> {
    fn compute(&self, index: usize, share: &Share) {
        if share.rows.is_empty() || share.cols.is_empty() {
            return;
        }
        // SAFETY: every share has scratch memory of its own.
        let scratch = unsafe { &mut *self.scratch.add(index) };
        let block = block_rows(self.plan);
        for item in share.items.clone() {
            for first in share.rows.clone().step_by(block) {
                let rows = first..share.rows.end.min(first + block);
                self.block(item, &Share { items: item..item + 1, rows, cols: share.cols.clone() }, scratch);
            }
        }
    }

    fn block(&self, item: usize, share: &Share, scratch: &mut Scratch) {
        let plan = self.plan;
        let product = &plan.typed.product;
        let (rows, cols) = (share.rows.len(), share.cols.len());
        let (k, stride) = (words(plan.lane, product.k()), a_stride(plan));
        let direct = direct(&plan.typed, plan.lane, &self.a, item, share.rows.start);
        let a = if let Some(a) = direct {
            scratch.terms[..rows].fill(direct_terms(&plan.typed));
            a
        } else {
            let a = scratch.a.start_mut();
            for (i, row) in share.rows.clone().enumerate() {
                // SAFETY: the buffer has room for a block's rows.
                let out = unsafe { std::slice::from_raw_parts_mut(a.add(i * stride).cast::<u32>(), k) };
                // SAFETY: the kernels of a plan are of AVX-512.
                scratch.terms[i] =
                    unsafe { write(&plan.typed, plan.lane, &self.a, item, row, out, &mut scratch.row) };
            }
            Matrix { start: a.cast_const(), stride, transposed: false }
        };
        let layout = self.output.layout();
        let in_place = plan.in_place();
        let (c, c_stride) = if in_place {
            let index =
                layout.item_offset(item) + share.rows.start * layout.leading_dimension() + share.cols.start;
            (self.output.words().wrapping_add(index), layout.leading_dimension())
        } else {
            (scratch.c.start_mut(), cols)
        };
        let start = plan.b.item(item).wrapping_add(share.cols.start * k);
        let part = Part {
            kernels: plan.kernels,
            blocking: &plan.blocking,
            rows,
            cols,
            k,
            a,
            pack_a: false,
            b: B::Packed(Panels::packed(plan.kernels, start, k, product.n() - share.cols.start)),
            finish: Some(self.finish(item, share, c, c_stride)),
            c,
            c_stride,
            accumulate: false,
            scratch_a: std::ptr::null_mut(),
            scratch_b: std::ptr::null_mut(),
        };
        let mut finisher = Finisher {
            sums: (plan.lane == Lane::Int8Quad).then(|| IntegerSums::new(plan, item, share, &scratch.terms)),
            epilogue: in_place && product.types().output == ElementType::F32,
        };
        // SAFETY: the executor has checked that the operands cover their layouts for this m; shares of C
        // are disjoint, and so are their scratch memories, which are as long as the plan needs.
        unsafe { visit(&part, &mut finisher) };
        if in_place {
            return;
        }
        // The scales of integers have it.
        let alpha = if plan.lane == Lane::Bf16Pair { product.alpha() } else { 1.0 };
        for (i, row) in share.rows.clone().enumerate() {
            // SAFETY: the sums of a block lie in scratch memory; this share of C is this call's alone.
            unsafe {
                let x = std::slice::from_raw_parts_mut(c.add(i * cols), cols);
                for x in &mut *x {
                    *x *= alpha;
                }
                self.output.row(item, row, share.cols.start, x, &mut scratch.row[..cols]);
            }
        }
    }

    /// The epilogue in f32.
    fn finish(&self, item: usize, share: &Share, c: *mut f32, c_stride: usize) -> Finish {
        let product = &self.plan.typed.product;
        let integers = self.plan.lane == Lane::Int8Quad;
        Finish {
            c,
            c_stride,
            rows: share.rows.len(),
            cols: share.cols.len(),
            // The scales of integers have it.
            alpha: Some(product.alpha()).filter(|alpha| !integers && alpha.to_bits() != 1f32.to_bits()),
            bias: self.bias.as_ref().map(|bias| f32_start(bias).wrapping_add(share.cols.start)),
            residual: self.residual.as_ref().map(|residual| {
                let layout = residual.layout();
                let index = layout.item_offset(item)
                    + share.rows.start * layout.leading_dimension()
                    + share.cols.start;
                (f32_start(residual).wrapping_add(index), layout.leading_dimension())
            }),
            activation: product.activation(),
        }
    }
}

/// Turns the sums of a tile into results while they are in the cache.
struct Finisher<'a> {
    sums: Option<IntegerSums<'a>>,
    epilogue: bool,
}

impl Visitor for Finisher<'_> {
    #[inline]
    unsafe fn tile(&mut self, function: TileFn, tile: &Tile) {
        // SAFETY: by the trait's contract.
        unsafe { function(tile) };
    }

    unsafe fn finish(&mut self, kernels: &Kernels, finish: &Finish, area: Area) {
        let part = finish.part(area);
        // SAFETY: by the trait's contract: the area's sums are complete; a plan's kernels are of AVX-512.
        unsafe {
            if let Some(sums) = &self.sums {
                #[cfg(target_arch = "x86_64")]
                dequantize(sums, area, part.c, part.c_stride);
                #[cfg(not(target_arch = "x86_64"))]
                unreachable!("kernels of AVX-512 at {part:?}, {:?}", sums.terms);
            }
            let identity = part.alpha.is_none()
                && part.bias.is_none()
                && part.residual.is_none()
                && part.activation == Activation::None;
            if self.epilogue && !identity {
                (kernels.finish)(&part);
            }
        }
    }
}

/// What turns sums over unsigned elements of A into those of the description, for a share of C.
pub(in super::super) struct IntegerSums<'a> {
    /// For each row.
    pub terms: &'a [RowTerms],
    /// The sums of B's columns.
    pub column_sums: &'a [i32],
    /// What column sums are multiplied by and taken off.
    pub offset: i32,
    /// The scale of each column, or else `shared`.
    pub columns: Option<&'a [f32]>,
    pub shared: f32,
    /// Whether the results are the sums, as i32.
    pub whole: bool,
}

impl<'a> IntegerSums<'a> {
    fn new(plan: &'a DotPlan, item: usize, share: &Share, terms: &'a [RowTerms]) -> Self {
        let typed: &Plan = &plan.typed;
        let product = &typed.product;
        Self {
            terms,
            column_sums: plan.b.sums(item, share.cols.start, product.n()),
            offset: offset(typed),
            columns: typed.column_scales(item, share.cols.start),
            shared: product.alpha() * typed.shared_scale(item),
            whole: product.types().output == ElementType::I32,
        }
    }
}
