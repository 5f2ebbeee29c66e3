//! One run of a compiled product: its shares, and their blocks one after the other.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::buffer::Buffer;
use super::epilogue::requantize::RowTerms;
use super::epilogue::store::Output;
use super::macrokernel::{scratch_a_len, scratch_b_len};
use super::pack::interleave_a::{SLACK_WORDS, has_subnormals};
use super::pack::interleave_b::Packer;
use super::pack::upcast::run_stride;
use super::pack::weight_only::PackedIntegers;
use super::pack::{PackedB, packed_b_len};
use super::plan::{Algorithm, ConstantB, Plan, interleaved_a_stride, is_loaded_first};
use super::small::{Items, SmallProduct};
use super::threads::split::{Cut, Operands, Share, Split};
use super::threads::workers::Workers;
use crate::alloc;
use crate::backend::{Run, RunArgs};
use crate::description::element::ElementType;
use crate::description::quantization::QuantA;
use crate::error::{Error, Operand, Result};
use crate::operands::view::AnyView;

/// The run context of one executor: memory for each thread of the product.
pub(crate) struct CpuRun {
    plan: Arc<Plan>,
    workers: Workers<Scratch>,
    /// How the last run was shared, for its number of rows.
    split: Option<(usize, Split)>,
    /// For operands with subnormal elements.
    for_subnormals: Option<Box<Self>>,
}

/// The memory of one thread. What an algorithm does not need is empty.
#[derive(Default)]
pub(crate) struct Scratch {
    /// For all rows and columns of items.
    pub small: Option<SmallProduct>,
    /// Rows of A in the form that the kernels read.
    pub a: Buffer,
    /// Micro-panels of B that are packed in the run.
    pub b: Buffer,
    /// [`Algorithm::Upcast`]: B as f32, where it is yet to be packed.
    pub upcast_b: Buffer,
    /// Sums that C cannot hold.
    pub c: Buffer,
    /// [`Algorithm::Upcast`]: sums of integers.
    pub sums: Vec<i32>,
    /// A row of A as f32, or part of a row of bias or residual.
    pub row: Vec<f32>,
    pub row_terms: Vec<RowTerms>,
    /// [`Algorithm::Upcast`]: the scales of all rows of A.
    pub row_scales: Vec<f32>,
    /// [`Algorithm::Dot`], for a dynamic B.
    pub interleave: Option<Packer>,
    /// The zero-point compensation of its columns.
    pub compensation: Vec<i32>,
    /// The item and its rows of A that `a` holds, or whose `row_scales` are known.
    rows_held: Option<(usize, Range<usize>)>,
}

impl Scratch {
    pub(crate) fn new(plan: &Plan) -> Result<Self> {
        const WHAT: &str = "packed operands";
        let (product, kernels, blocks) = (&plan.product, plan.kernels, &plan.blocks);
        let (m, n, k) = (product.m(), product.n(), product.k());
        let dynamic_b = matches!(plan.b, ConstantB::None);
        let words = |count: usize| Buffer::zeroed(count, WHAT);
        let mut scratch = Self::default();
        match plan.algorithm {
            Algorithm::Direct => {
                scratch.small = SmallProduct::of(plan);
                let for_a = scratch_a_len(kernels, &plan.blocking, m, k);
                let for_b = if dynamic_b { scratch_b_len(kernels, &plan.blocking, n, k) } else { 0 };
                // A product with a vector keeps x in the one and y in the other.
                let vector = m == 1 || n == 1 || product.variable_m();
                let numbers = |count: usize| count.saturating_mul(kernels.number_words());
                scratch.a = words(if vector { for_a.max(numbers(k)) } else { for_a })?;
                scratch.b = words(if vector && n == 1 { for_b.max(numbers(m)) } else { for_b })?;
            }
            Algorithm::Dot(dot) => {
                let a = blocks.rows.saturating_mul(interleaved_a_stride(kernels, k));
                scratch.a = words(a.saturating_add(SLACK_WORDS))?;
                if dynamic_b {
                    scratch.interleave = Some(Packer::new(kernels, product)?);
                    scratch.b = words(packed_b_len(kernels, kernels.format.words(k), blocks.cols))?;
                    let sums = if dot.of_integers() { blocks.cols } else { 0 };
                    scratch.compensation = alloc::filled(sums, 0, WHAT)?;
                }
                let apart = if plan.in_place() { 0 } else { blocks.rows.saturating_mul(blocks.cols) };
                scratch.c = words(apart)?;
                scratch.row_terms = alloc::filled(blocks.rows, RowTerms::default(), WHAT)?;
                scratch.row = alloc::filled(n.max(k), 0.0, WHAT)?;
            }
            Algorithm::WeightOnly => {
                let ConstantB::Integers(packed) = &plan.b else {
                    unreachable!("the plan of this algorithm has packed integers");
                };
                let rows = blocks.rows.next_power_of_two();
                scratch.a = words(rows.saturating_mul(packed.padded_k()))?;
                scratch.c = words(rows * kernels.lanes())?;
                scratch.row = alloc::filled(k.max(kernels.lanes()), 0.0, WHAT)?;
            }
            Algorithm::Upcast => {
                let block = |transposed: bool, rows: usize, cols: usize| {
                    let (runs, elements) = if transposed { (cols, rows) } else { (rows, cols) };
                    words(runs * run_stride(elements))
                };
                let integers = product.types().accumulator == ElementType::I32;
                let is_row = plan.is_row_by_16_bits(1);
                let c = match plan.upcasts_in_place() {
                    true if is_row => blocks.cols,
                    true => 0,
                    false => blocks.rows * blocks.cols,
                };
                scratch.a = block(product.transpose_a(), blocks.rows, blocks.k)?;
                if !matches!(plan.b, ConstantB::Packed(_)) && is_loaded_first(product) {
                    scratch.upcast_b = block(product.transpose_b(), blocks.k, blocks.cols)?;
                }
                // A single row reads a B of 16-bit elements as it lies.
                if !plan.is_row_by_16_bits(m) {
                    scratch.b = words(packed_b_len(kernels, blocks.k, blocks.cols))?;
                }
                scratch.c = words(c)?;
                scratch.sums = alloc::filled(if integers { c } else { 0 }, 0, WHAT)?;
                scratch.row = alloc::filled(blocks.cols.max(if is_row { k } else { 0 }), 0.0, WHAT)?;
                let dynamic = product.quantization().a == QuantA::DynamicPerRow;
                scratch.row_scales = alloc::filled(if dynamic { m } else { 0 }, 0.0, WHAT)?;
            }
        }
        Ok(scratch)
    }

    /// Takes over what is longer there, so that this serves the products of both, of f32 by f32 or by weights of integers.
    pub(crate) fn absorb(&mut self, other: Self) {
        let keep = |own: &mut Buffer, other: Buffer| {
            if own.bytes() < other.bytes() {
                *own = other;
            }
        };
        keep(&mut self.a, other.a);
        keep(&mut self.b, other.b);
        keep(&mut self.upcast_b, other.upcast_b);
        keep(&mut self.c, other.c);
        if self.row.len() < other.row.len() {
            self.row = other.row;
        }
    }

    /// Another product follows.
    pub(crate) fn forget_rows(&mut self) {
        self.rows_held = None;
    }

    /// Whether these rows of A are yet to be brought into their form; the scratch memory counts as having them then.
    pub(crate) fn lacks(&mut self, item: usize, rows: &Range<usize>) -> bool {
        let held = matches!(&self.rows_held, Some((of, held)) if *of == item && held == rows);
        if !held {
            self.rows_held = Some((item, rows.clone()));
        }
        !held
    }
}

impl CpuRun {
    pub(crate) fn new(plan: Arc<Plan>) -> Result<Self> {
        let for_subnormals = match &plan.for_subnormals {
            Some(plan) => Some(Box::new(Self::new(Arc::clone(plan))?)),
            None => None,
        };
        let workers = Workers::new(plan.threads, || Scratch::new(&plan))?;
        Ok(Self { plan, workers, split: None, for_subnormals })
    }
}

impl Run for CpuRun {
    fn is_plain(&mut self) -> bool {
        self.plan.product.is_f32()
            && self.plan.team.is_none()
            && !self.plan.has_epilogue()
            && self.workers.caller().small.is_some()
    }

    unsafe fn run_plain(&mut self, a: &[f32], b: Option<&[f32]>, c: &mut [f32]) {
        let plan = &*self.plan;
        let product = &plan.product;
        let b = match (&plan.b, b) {
            (ConstantB::Packed(packed), _) => packed.items(),
            (_, Some(b)) => (b.as_ptr().cast(), product.b().batch_stride()),
            (_, None) => return,
        };
        let items = Items {
            a: (a.as_ptr().cast(), product.a().batch_stride()),
            b,
            c: (c.as_mut_ptr().cast(), product.c().batch_stride()),
        };
        if let Some(small) = &mut self.workers.caller().small {
            // SAFETY: the operands cover the layouts of the product, by the trait's contract.
            unsafe { small.run(plan, 0..product.batch(), &items, |_| None) };
        }
    }

    fn run(&mut self, mut args: RunArgs<'_>) -> Result<()> {
        let plan = &*self.plan;
        if args.c.layout().batch() != plan.product.batch() {
            let args = args.into_rows_of(&plan.product);
            return self.run(args);
        }
        if let Some(other) = &mut self.for_subnormals
            // SAFETY: a plan's kernels are of instructions that are here.
            && unsafe { has_subnormals(&args.a) }
        {
            return other.run(args);
        }
        let b = match (&plan.b, args.b) {
            (ConstantB::None, Some(b)) => RunB::View(b),
            (ConstantB::None, None) => {
                return Err(Error::Missing {
                    operand: Operand::B,
                    help: "pass B with the inputs of the run",
                });
            }
            (ConstantB::Plain(weights), _) => RunB::View(weights.view_for(&plan.product)),
            (ConstantB::Packed(packed), _) => RunB::Packed(packed),
            (ConstantB::Integers(packed), _) => RunB::Integers(packed),
        };
        let output = Output::new(plan, args.bias, args.residual, &mut args.c);
        let layout = *output.layout();
        if layout.is_empty() {
            return Ok(());
        }
        let call = Call { plan, m: args.m, a: args.a, b, output, subnormal_b: AtomicBool::new(false) };
        match &plan.team {
            None => {
                let scratch = self.workers.caller();
                scratch.forget_rows();
                call.compute(&Share::all_of(&layout), scratch);
            }
            Some(team) => {
                let known = self.split.filter(|(m, _)| *m == call.m);
                let (_, split) = *self.split.insert(known.unwrap_or_else(|| (call.m, call.split())));
                self.workers.run(team, split.shares(), split.pieces(), |pieces, scratch| {
                    scratch.forget_rows();
                    for (share, piece) in pieces {
                        call.compute(&split.piece(share, piece, &layout), scratch);
                    }
                })?;
            }
        }
        if let Some(other) = &mut self.for_subnormals
            && call.subnormal_b.into_inner()
        {
            return other.run(args);
        }
        Ok(())
    }
}

/// Where a run finds B.
pub(crate) enum RunB<'a> {
    /// As it lies.
    View(AnyView<'a>),
    Packed(&'a PackedB),
    Integers(&'a PackedIntegers),
}

/// One run.
pub(crate) struct Call<'a> {
    pub plan: &'a Plan,
    pub m: usize,
    pub a: AnyView<'a>,
    pub b: RunB<'a>,
    pub output: Output<'a>,
    /// Whether packing met a subnormal bf16, so that C is not what it should be.
    pub subnormal_b: AtomicBool,
}

/// Rows and columns of one item.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub item: usize,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

impl Call<'_> {
    /// Shares of the threads, and their pieces: these are cut so that no thread packs more than it would for its
    /// whole share.
    pub(crate) fn split(&self) -> Split {
        let (plan, layout, threads) = (self.plan, self.output.layout(), self.plan.threads);
        let (kernels, blocks) = (plan.kernels, &plan.blocks);
        // A micro-kernel for few rows spans several micro-panels.
        let span = kernels.nr() * kernels.max_panels(layout.rows());
        let unit = if layout.cols() >= 2 * threads * span { span } else { kernels.nr() };
        // Fewer rows read B in vain.
        let rows = Cut::Rows(2 * kernels.mr());
        let mc = plan.blocking.mc_panels * kernels.mr();
        match plan.algorithm {
            Algorithm::Direct => {
                let pack_a = plan.packs_a(layout.rows(), layout.cols());
                let pack_b = self.packs_direct_b();
                let split = Split::new(unit, threads, layout, Operands { pack_a, pack_b, mc });
                let by_cols = match self.b {
                    _ if pack_a => Cut::Nowhere,
                    // Short runs of each of its rows are read more slowly than all of them.
                    RunB::View(_) if self.m == 1 => Cut::Nowhere,
                    _ => Cut::Cols(unit),
                };
                split.cut(layout, [by_cols, if pack_b { Cut::Nowhere } else { rows }])
            }
            Algorithm::Dot(_) => {
                let pack_b = matches!(plan.b, ConstantB::None);
                let split = Split::new(unit, threads, layout, Operands { pack_a: true, pack_b, mc });
                let held = layout.rows().div_ceil(split.rows()) <= blocks.rows;
                let by_rows = if pack_b { Cut::Nowhere } else { rows };
                split.cut(layout, [if held { Cut::Cols(unit) } else { Cut::Nowhere }, by_rows])
            }
            // All of A and B is upcast block by block.
            Algorithm::Upcast => {
                let split =
                    Split::new(kernels.nr(), threads, layout, Operands { pack_a: true, pack_b: true, mc });
                // Where B is converted once for all rows, fewer would convert it again.
                let by_rows = if plan.upcasts_in_place() { Cut::Nowhere } else { Cut::Rows(blocks.rows) };
                split.cut(layout, [Cut::Cols(blocks.cols), by_rows])
            }
            // All rows of A are packed by every thread.
            Algorithm::WeightOnly => {
                let split = Split::columns(kernels.lanes(), threads);
                let held = layout.rows() <= blocks.rows;
                let cols = if held { Cut::Cols(kernels.lanes()) } else { Cut::Nowhere };
                split.cut(layout, [cols, Cut::Rows(blocks.rows)])
            }
        }
    }

    /// One thread's part.
    pub(crate) fn compute(&self, share: &Share, scratch: &mut Scratch) {
        if share.rows.is_empty() || share.cols.is_empty() {
            return;
        }
        let plan = self.plan;
        let whole = (share.rows.len(), share.cols.len()) == (plan.product.m(), plan.product.n());
        if let Some(small) = scratch.small.as_mut().filter(|_| whole) {
            self.small_items(small, share.items.clone());
            return;
        }
        let in_place = plan.upcasts_in_place() && !plan.is_row_by_16_bits(self.m);
        // Items that share B read each block of it in turn.
        let shared =
            plan.product.b().batch_stride() == 0 && (matches!(plan.algorithm, Algorithm::Dot(_)) || in_place);
        for items in blocks(&share.items, if shared { share.items.len() } else { 1 }) {
            if plan.algorithm == Algorithm::Upcast && scratch.lacks(items.start, &share.rows) {
                self.row_scales(items.start, &share.rows, scratch);
            }
            for cols in blocks(&share.cols, plan.blocks.cols) {
                if let Algorithm::Dot(_) = plan.algorithm {
                    self.interleave_b(items.start, &cols, scratch);
                }
                if in_place {
                    self.upcast_in_place(&items, &share.rows, &cols, scratch);
                    continue;
                }
                for item in items.clone() {
                    for rows in blocks(&share.rows, plan.blocks.rows) {
                        let block = Block { item, rows, cols: cols.clone() };
                        match plan.algorithm {
                            Algorithm::Direct => self.direct_block(&block, scratch),
                            Algorithm::Dot(dot) => self.dot_block(&block, dot, scratch),
                            Algorithm::WeightOnly => self.weight_only_block(&block, scratch),
                            Algorithm::Upcast => self.upcast_block(&block, scratch),
                        }
                    }
                }
            }
        }
    }
}

/// `range` in blocks of at most `size`. Stepped ranges would divide.
pub(crate) fn blocks(range: &Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let (mut next, end) = (range.start, range.end);
    std::iter::from_fn(move || {
        let start = next;
        next = end.min(start.saturating_add(size.max(1)));
        (start < end).then_some(start..next)
    })
}
