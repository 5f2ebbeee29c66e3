//! What follows the sums of any product: bias, residual and activation in f32, and the store.

use std::ops::Range;

#[cfg(feature = "half")]
use half::slice::HalfFloatSliceExt;

use super::Epilogue;
use crate::backend::cpu::pack::upcast::load_run;
use crate::backend::cpu::pack::{Word, start_of_numbers};
use crate::backend::cpu::plan::Plan;
use crate::backend::cpu::run::Block;
use crate::description::activation::Activation;
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::quantization::QuantOutput;
use crate::operands::view::{AnyView, AnyViewMut};

/// What follows the sums of one run, and where its results go.
pub(crate) struct Output<'a> {
    plan: &'a Plan,
    bias: Option<AnyView<'a>>,
    residual: Option<AnyView<'a>>,
    start: *mut u8,
    element: ElementType,
    layout: Layout,
}

// SAFETY: C comes from an exclusive borrow that outlives the run, and each task writes rows and columns
// of its own alone.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    pub(crate) fn new(
        plan: &'a Plan,
        bias: Option<AnyView<'a>>,
        residual: Option<AnyView<'a>>,
        c: &mut AnyViewMut<'_>,
    ) -> Self {
        let (layout, element) = (*c.layout(), c.element_type());
        Self::at(plan, bias, residual, (c.memory().0, element), layout)
    }

    /// Of results that start there, of a type.
    pub(crate) const fn at(
        plan: &'a Plan,
        bias: Option<AnyView<'a>>,
        residual: Option<AnyView<'a>>,
        (start, element): (*mut u8, ElementType),
        layout: Layout,
    ) -> Self {
        Self { plan, bias, residual, start, element, layout }
    }

    /// The part of a C of numbers from `row` and `col` on, and the words from row to row: for all its
    /// writers one pointer, of one borrow.
    #[allow(clippy::cast_ptr_alignment, reason = "C is aligned for its elements")]
    pub(crate) fn place_of(&self, item: usize, row: usize, col: usize) -> (*mut Word, usize) {
        let (stride, words) = (self.layout.leading_dimension(), self.plan.kernels.number_words());
        let index = self.layout.item_offset(item) + row * stride + col;
        // The stride of a single row may be any.
        (self.start.cast::<Word>().wrapping_add(index * words), stride.wrapping_mul(words))
    }

    /// What follows the sums of a part of C that are [`Output::in_place`]; `None` where that is nothing.
    pub(crate) fn epilogue(&self, item: usize, rows: &Range<usize>, cols: &Range<usize>) -> Option<Epilogue> {
        if !self.plan.has_epilogue() {
            return None;
        }
        let (c, c_stride) = self.place_of(item, rows.start, cols.start);
        Some(Epilogue {
            c,
            c_stride,
            words: self.plan.kernels.number_words(),
            rows: rows.len(),
            cols: cols.len(),
            alpha: self.plan.alpha(),
            bias: self.bias.as_ref().map(|bias| {
                let (start, words) = start_of_numbers(bias);
                start.wrapping_add(cols.start * words)
            }),
            residual: self.residual.as_ref().map(|residual| {
                let layout = residual.layout();
                let stride = layout.leading_dimension();
                let index = layout.item_offset(item) + rows.start * stride + cols.start;
                let (start, words) = start_of_numbers(residual);
                (start.wrapping_add(index * words), stride.wrapping_mul(words))
            }),
            activation: self.plan.product.activation(),
        })
    }

    pub(crate) const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// [`Output::row`] for the sums of a block, whose rows are `stride` apart. `scratch` is as long as a row.
    ///
    /// # Safety
    /// The block lies inside C, and nothing else accesses it during the call.
    pub(crate) unsafe fn block(&self, block: &Block, sums: &mut [f32], stride: usize, scratch: &mut [f32]) {
        let cols = block.cols.len();
        for (row, sums) in block.rows.clone().zip(sums.chunks_mut(stride)) {
            // SAFETY: by the function's own contract.
            unsafe { self.row(block.item, row, block.cols.start, &mut sums[..cols], &mut scratch[..cols]) };
        }
    }

    /// Multiplies a part of a row of sums by alpha, adds bias and residual, applies the activation and stores it.
    /// `scratch` is as long as `row`.
    ///
    /// # Safety
    /// The part lies inside C, and nothing else accesses it during the call.
    pub(crate) unsafe fn row(&self, item: usize, row: usize, col: usize, x: &mut [f32], scratch: &mut [f32]) {
        let (vector, product) = (self.plan.kernels.vector, &self.plan.product);
        let cols = col..col + x.len();
        if let Some(alpha) = self.plan.alpha() {
            for x in &mut *x {
                *x *= alpha;
            }
        }
        if let Some(bias) = &self.bias {
            load_run(vector, bias, 0, 0, cols.clone(), scratch);
            add(x, scratch, |y| y);
        }
        if let Some(residual) = &self.residual {
            load_run(vector, residual, item, row, cols, scratch);
            if self.element.is_float() {
                add(x, scratch, |y| y);
            } else {
                let (scale, zero_point) = (self.plan.scales.c, self.zero_point());
                add(x, scratch, |y| scale * (y - zero_point));
            }
        }
        if product.activation() != Activation::None {
            let epilogue = Epilogue::of_row(x, product.activation());
            // SAFETY: the row is this call's alone; the instruction set is here.
            unsafe { (vector.epilogue)(&epilogue) };
        }
        // SAFETY: by this function's own contract.
        unsafe { self.store(item, row, col, x) }
    }

    /// Stores results: rounded to nearest, ties to even; integers saturate, NaN becomes the zero point.
    ///
    /// # Safety
    /// As [`Output::row`].
    unsafe fn store(&self, item: usize, row: usize, col: usize, x: &[f32]) {
        match self.element {
            // SAFETY: as above, with C of this type.
            ElementType::F32 => unsafe { self.put(item, row, col, x, |x: f32| x) },
            #[cfg(feature = "half")]
            // SAFETY: as above, with C of this type.
            ElementType::F16 => unsafe {
                crate::operands::float16::from_f32_slice(self.place::<half::f16>(item, row, col, x.len()), x);
            },
            #[cfg(feature = "half")]
            // SAFETY: as above, with C of this type.
            ElementType::Bf16 => unsafe {
                self.place::<half::bf16>(item, row, col, x.len()).convert_from_f32_slice(x);
            },
            #[allow(clippy::cast_possible_truncation, reason = "within the range of the type")]
            // SAFETY: as above, with C of this type.
            ElementType::I8 => unsafe {
                let integer = self.integer(-128.0, 127.0);
                self.put(item, row, col, x, |x| integer(x) as i8);
            },
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "within the range of the type"
            )]
            // SAFETY: as above, with C of this type.
            ElementType::U8 => unsafe {
                let integer = self.integer(0.0, 255.0);
                self.put(item, row, col, x, |x| integer(x) as u8);
            },
            _ => {}
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "of at most 8 bits")]
    fn zero_point(&self) -> f32 {
        match self.plan.product.quantization().output {
            QuantOutput::None => 0.0,
            QuantOutput::Static { zero_point, .. } => zero_point as f32,
        }
    }

    /// What makes integers from `low` to `high` of results.
    fn integer(&self, low: f32, high: f32) -> impl Fn(f32) -> f32 + use<> {
        let (inverse, zero_point) = (1.0 / self.plan.scales.c, self.zero_point());
        move |x| {
            let x = x * inverse;
            // Also where 0 meets the reciprocal of a subnormal scale.
            if x.is_nan() {
                return zero_point;
            }
            // Clamped before the rounding, so that the sum with the zero point is exact.
            x.clamp(low - zero_point, high - zero_point).round_ties_even() + zero_point
        }
    }

    /// Stores a part of a row as elements of type `T`.
    ///
    /// # Safety
    /// As [`Output::row`], and C is of type `T`.
    pub(crate) unsafe fn put<X: Copy, T>(
        &self,
        item: usize,
        row: usize,
        col: usize,
        x: &[X],
        f: impl Fn(X) -> T,
    ) {
        // SAFETY: by this function's own contract.
        for (to, &x) in unsafe { self.place(item, row, col, x.len()) }.iter_mut().zip(x) {
            *to = f(x);
        }
    }

    /// A part of a row of C.
    ///
    /// # Safety
    /// As [`Output::row`], and C is of type `T`.
    unsafe fn place<'c, T>(&self, item: usize, row: usize, col: usize, len: usize) -> &'c mut [T] {
        let index = self.layout.item_offset(item) + row * self.layout.leading_dimension() + col;
        // SAFETY: by this function's own contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast::<T>().wrapping_add(index), len) }
    }
}

fn add(x: &mut [f32], y: &[f32], f: impl Fn(f32) -> f32) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x += f(y);
    }
}
