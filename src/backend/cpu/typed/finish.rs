//! What follows the sums of any product: bias, residual and activation in f32, and the store.

#[cfg(feature = "half")]
use half::slice::HalfFloatSliceExt;

use super::super::finish::Finish;
use super::super::kernel::Kernels;
use super::load::load_run;
use crate::description::activation::Activation;
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::matmul::MatMul;
use crate::description::quantization::QuantOutput;
use crate::description::scales::Scales;
use crate::operands::view::{AnyView, AnyViewMut};

/// The epilogue and the output of one run.
pub(in super::super) struct Output<'a> {
    kernels: &'static Kernels,
    bias: Option<AnyView<'a>>,
    residual: Option<AnyView<'a>>,
    activation: Activation,
    scale: f32,
    inverse: f32,
    zero_point: f32,
    start: *mut u8,
    element: ElementType,
    layout: Layout,
}

// SAFETY: C comes from an exclusive borrow that outlives the run, and each task writes rows and columns
// of its own alone.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    pub(in super::super) fn new(
        kernels: &'static Kernels,
        product: &MatMul,
        scales: Scales,
        bias: Option<AnyView<'a>>,
        residual: Option<AnyView<'a>>,
        c: &mut AnyViewMut<'a>,
    ) -> Self {
        let zero_point = match product.quantization().output {
            QuantOutput::None => 0,
            QuantOutput::Static { zero_point } => zero_point,
        };
        Self {
            kernels,
            bias,
            residual,
            activation: product.activation(),
            scale: scales.c,
            inverse: 1.0 / scales.c,
            #[allow(clippy::cast_precision_loss, reason = "of at most 8 bits")]
            zero_point: zero_point as f32,
            layout: *c.layout(),
            element: c.element_type(),
            start: c.memory().0,
        }
    }

    pub(in super::super) const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Where a C of 4-byte elements starts: for all its writers one pointer, of one borrow.
    #[allow(clippy::cast_ptr_alignment, reason = "C is aligned for its elements")]
    pub(in super::super) const fn words(&self) -> *mut f32 {
        self.start.cast()
    }

    /// Adds bias and residual to a part of a row of scaled sums, applies the activation and stores it.
    /// `scratch` is as long as `row`.
    ///
    /// # Safety
    /// The part lies inside C, and nothing else accesses it during the call.
    pub(in super::super) unsafe fn row(
        &self,
        item: usize,
        row: usize,
        col: usize,
        x: &mut [f32],
        scratch: &mut [f32],
    ) {
        let cols = col..col + x.len();
        if let Some(bias) = &self.bias {
            load_run(self.kernels, bias, 0, 0, cols.clone(), scratch);
            add(x, scratch, |y| y);
        }
        if let Some(residual) = &self.residual {
            load_run(self.kernels, residual, item, row, cols, scratch);
            if self.element.is_float() {
                add(x, scratch, |y| y);
            } else {
                add(x, scratch, |y| self.scale * (y - self.zero_point));
            }
        }
        if self.activation != Activation::None {
            let finish = Finish {
                c: x.as_mut_ptr(),
                c_stride: x.len(),
                rows: 1,
                cols: x.len(),
                alpha: None,
                bias: None,
                residual: None,
                activation: self.activation,
            };
            // SAFETY: the row is this call's alone; the instruction set of the kernels is here.
            unsafe { (self.kernels.finish)(&finish) };
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
                self.put(item, row, col, x, |x| self.integer(x, -128.0, 127.0) as i8);
            },
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "within the range of the type"
            )]
            // SAFETY: as above, with C of this type.
            ElementType::U8 => unsafe {
                self.put(item, row, col, x, |x| self.integer(x, 0.0, 255.0) as u8);
            },
            _ => {}
        }
    }

    fn integer(&self, x: f32, low: f32, high: f32) -> f32 {
        let x = x * self.inverse;
        // Also where 0 meets the reciprocal of a subnormal scale.
        if x.is_nan() {
            return self.zero_point;
        }
        // Clamped before the rounding, so that the sum with the zero point is exact.
        x.clamp(low - self.zero_point, high - self.zero_point).round_ties_even() + self.zero_point
    }

    /// Stores a part of a row as elements of type `T`.
    ///
    /// # Safety
    /// As [`Output::row`], and C is of type `T`.
    pub(in super::super) unsafe fn put<X: Copy, T>(
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
