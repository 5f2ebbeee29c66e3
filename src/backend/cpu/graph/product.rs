//! Products as steps of a graph.

use std::mem;
use std::sync::atomic::AtomicBool;

use super::step::Frame;
use crate::backend::cpu::buffer::Buffer;
use crate::backend::cpu::epilogue::store::Output;
use crate::backend::cpu::plan::{ConstantB, Plan};
use crate::backend::cpu::run::{Call, RunB, Scratch};
use crate::backend::cpu::small::SmallProduct;
use crate::backend::cpu::threads::split::{Share, Split};
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::error::Result;
use crate::graph::shape::{Shape, TensorType};
use crate::operands::view::{AnyView, TensorView};

/// Every item of a batch by itself: a batch of a graph is broadcast as no layout has it.
pub(crate) struct Product {
    pub plan: Plan,
    /// Among the products of the graph.
    pub number: usize,
    pub a: usize,
    /// `None` where it is constant, and in the plan.
    pub b: Option<usize>,
    pub bias: Option<usize>,
    pub residual: Option<usize>,
    pub c: usize,
    /// With items, the axes of C that are a matrix's; without, the rows are all of C's.
    pub matrix_axes: Option<usize>,
}

/// The memory of one thread for all products of a graph, one at a time.
pub(crate) struct Scratches {
    scratch: Scratch,
    /// For each product.
    small: Vec<Option<SmallProduct>>,
    /// For attention.
    pub(super) attention: Buffer,
}

impl Scratches {
    /// For the plans of all products, in the order of their numbers, and so many words for attention.
    pub(crate) fn new<'a>(plans: impl Iterator<Item = &'a Plan>, attention_words: usize) -> Result<Self> {
        let (mut all, mut small) = (Scratch::default(), Vec::new());
        for plan in plans {
            let mut scratch = Scratch::new(plan)?;
            small.push(scratch.small.take());
            all.absorb(scratch);
        }
        Ok(Self { scratch: all, small, attention: Buffer::zeroed(attention_words, "scores of attention")? })
    }
}

impl Product {
    fn rows(&self, types: &[TensorType]) -> usize {
        let product = &self.plan.product;
        if self.matrix_axes.is_some() {
            product.m()
        } else {
            types[self.c].shape.count() / product.n().max(1)
        }
    }

    fn items(&self, types: &[TensorType]) -> usize {
        let product = &self.plan.product;
        match types[self.c].shape.count() {
            0 => 0,
            _ if self.matrix_axes.is_none() => 1,
            count => count / (product.m() * product.n()),
        }
    }

    /// How an item is shared out among the plan's threads; `None` for an item that one of them takes whole.
    ///
    /// # Safety
    /// As [`Product::run`].
    pub(crate) unsafe fn split(&self, frame: &Frame<'_>) -> Option<Split> {
        let (items, threads) = (self.items(frame.types), self.plan.threads);
        if threads == 1 || items == 0 || items >= 2 * threads {
            return None;
        }
        // SAFETY: by the function's own contract.
        unsafe { self.with_call(frame, 0, |call| Some(call.split())) }
    }

    pub(crate) fn parts(&self, types: &[TensorType], split: Option<&Split>) -> usize {
        self.items(types) * split.map_or(1, |split| split.shares() * split.pieces())
    }

    /// Computes a part.
    ///
    /// # Safety
    /// As [`super::step::Step::run`].
    pub(crate) unsafe fn run(&self, step: usize, part: usize, frame: &Frame<'_>, scratches: &mut Scratches) {
        let split = frame.splits[step].as_ref();
        let of_item = split.map_or(1, |split| split.shares() * split.pieces());
        let (item, part) = (part / of_item, part % of_item);
        let Scratches { scratch, small, .. } = scratches;
        mem::swap(&mut scratch.small, &mut small[self.number]);
        // SAFETY: by the function's own contract.
        unsafe {
            self.with_call(frame, item, |call| {
                let layout = call.output.layout();
                let share = match split {
                    None => Share::all_of(layout),
                    // The first pieces of all shares come first: they are the largest.
                    Some(split) => split.piece(part % split.shares(), part / split.shares(), layout),
                };
                scratch.forget_rows();
                call.compute(&share, scratch);
            });
        }
        mem::swap(&mut scratch.small, &mut small[self.number]);
    }

    /// # Safety
    /// As [`Product::run`].
    unsafe fn with_call<R>(&self, frame: &Frame<'_>, item: usize, use_it: impl FnOnce(&Call<'_>) -> R) -> R {
        let plan = &self.plan;
        let product = &plan.product;
        let m = self.rows(frame.types);
        let (a_layout, c_layout) = (product.a_for(m), product.c_for(m));
        let result = frame.shape(self.c);
        let place = |value: usize, matrix: usize| {
            let of_item = |axes| offset_of(&frame.shape(value), (&result, axes), item) * matrix;
            let offset = self.matrix_axes.map_or(0, of_item);
            frame.start(value).cast::<f32>().wrapping_add(offset)
        };
        let view = |value: usize, layout: Layout| {
            let start = place(value, layout.span());
            // SAFETY: by the function's own contract, the operand's elements are there.
            let elements = unsafe { std::slice::from_raw_parts(start, layout.span()) };
            AnyView::F32(TensorView::from_parts(elements, layout))
        };
        let b = match (&plan.b, self.b) {
            (ConstantB::Packed(packed), _) => RunB::Packed(packed),
            (ConstantB::Integers(packed), _) => RunB::Integers(packed),
            (ConstantB::Plain(weights), _) => RunB::View(weights.view_for(product)),
            (ConstantB::None, b) => RunB::View(view(b.unwrap_or(self.a), *product.b())),
        };
        let bias = self.bias.map(|value| view(value, Layout::row(product.n())));
        let residual = self.residual.map(|value| view(value, c_layout));
        let start = frame.start_mut(self.c).cast::<f32>().wrapping_add(item * c_layout.span());
        let output = Output::at(plan, bias, residual, (start.cast(), ElementType::F32), c_layout);
        let a = view(self.a, a_layout);
        use_it(&Call { plan, m, a, b, output, subnormal_b: AtomicBool::new(false) })
    }
}

/// The matrix of an operand that belongs to item `item` of the result, whose batch the operand's is broadcast to. So
/// many axes of the result are a matrix's.
fn offset_of(operand: &Shape, (result, matrix_axes): (&Shape, usize), item: usize) -> usize {
    let (dims, operand_dims) = (result.dims(), operand.dims());
    let (rank, operand_rank) = (result.rank() - matrix_axes, operand.rank().saturating_sub(2));
    let (mut rest, mut offset, mut stride) = (item, 0, 1);
    for axis in (0..rank).rev() {
        let index = rest % dims[axis];
        rest /= dims[axis];
        if let Some(own) = (axis + operand_rank).checked_sub(rank) {
            if operand_dims[own] != 1 {
                offset += index * stride;
            }
            stride *= operand_dims[own];
        }
    }
    offset
}
