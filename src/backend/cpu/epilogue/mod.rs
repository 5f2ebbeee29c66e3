//! What follows the sums: alpha, bias, residual and activation, on a part of C that is still in the cache.
//!
//! - this file: in place, all of it f32; [`activations`]: its functions on vectors;
//! - [`requantize`]: results from sums of integers, in the micro-kernel; [`store`]: operands and results of any
//!   type, row by row.

pub(crate) mod activations;
pub(crate) mod requantize;
pub(crate) mod store;

use super::isa::Simd;
use super::macrokernel::Area;
use crate::description::activation::Activation;

/// A part of C, and what follows its sums.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epilogue {
    pub c: *mut f32,
    pub c_stride: usize,
    pub rows: usize,
    pub cols: usize,
    /// `None` for 1.
    pub alpha: Option<f32>,
    /// For the first of the columns.
    pub bias: Option<*const f32>,
    /// For the first element, with its stride.
    pub residual: Option<(*const f32, usize)>,
    pub activation: Activation,
}

impl Epilogue {
    /// An activation alone, of a row.
    pub(crate) fn of_row(x: &mut [f32], activation: Activation) -> Self {
        Self {
            c: x.as_mut_ptr(),
            c_stride: x.len(),
            rows: 1,
            cols: x.len(),
            alpha: None,
            bias: None,
            residual: None,
            activation,
        }
    }

    /// The epilogue of a part of C.
    pub(crate) fn part(&self, Area { row, rows, col, cols }: Area) -> Self {
        Self {
            c: self.c.wrapping_add(row * self.c_stride + col),
            rows,
            cols,
            bias: self.bias.map(|bias| bias.wrapping_add(col)),
            residual: self.residual.map(|(first, stride)| (first.wrapping_add(row * stride + col), stride)),
            ..*self
        }
    }
}

/// A function of vectors.
pub(crate) trait Function {
    /// # Safety
    /// As [`Simd`].
    unsafe fn apply<V: Simd>(x: V) -> V;
}

pub(crate) struct Identity;

impl Function for Identity {
    #[inline(always)]
    unsafe fn apply<V: Simd>(x: V) -> V {
        x
    }
}

macro_rules! functions {
    ($($name:ident: $function:expr,)*) => {$(
        pub(crate) struct $name;

        impl Function for $name {
            #[inline(always)]
            unsafe fn apply<V: Simd>(x: V) -> V {
                // SAFETY: by the trait's contract.
                unsafe { $function(x) }
            }
        }
    )*};
}

functions! {
    Relu: activations::relu,
    Gelu: activations::gelu,
    GeluTanh: activations::gelu_tanh,
    Silu: activations::silu,
    Sigmoid: activations::sigmoid,
    Tanh: activations::tanh,
    Exp: activations::exp,
}

/// `activation(alpha * c + bias + residual)` in place, in that order.
///
/// # Safety
/// As [`Simd`]; C, bias and residual cover `rows` x `cols`, and nothing else accesses C meanwhile.
#[inline(always)]
pub(crate) unsafe fn apply<V: Simd>(e: &Epilogue) {
    // SAFETY: by the function's own contract.
    unsafe {
        match e.activation {
            Activation::None => each::<V, Identity>(e),
            Activation::Relu => each::<V, Relu>(e),
            Activation::Gelu => each::<V, Gelu>(e),
            Activation::GeluTanh => each::<V, GeluTanh>(e),
            Activation::Silu => each::<V, Silu>(e),
            Activation::Sigmoid => each::<V, Sigmoid>(e),
            Activation::Tanh => each::<V, Tanh>(e),
        }
    }
}

#[inline(always)]
unsafe fn each<V: Simd, F: Function>(e: &Epilogue) {
    // SAFETY: by the contract of [`apply`].
    unsafe {
        let whole = e.cols / V::LANES * V::LANES;
        let mask = V::mask(e.cols - whole);
        for row in 0..e.rows {
            for col in (0..whole).step_by(V::LANES) {
                element::<V, F>(e, row, col, None);
            }
            if whole < e.cols {
                element::<V, F>(e, row, whole, Some(mask));
            }
        }
    }
}

/// One vector of results.
#[inline(always)]
unsafe fn element<V: Simd, F: Function>(e: &Epilogue, row: usize, col: usize, mask: Option<V::Mask>) {
    // SAFETY: by the contract of [`apply`].
    unsafe {
        let c = e.c.add(row * e.c_stride + col);
        let mut x = V::load_part(c, mask);
        if let Some(alpha) = e.alpha {
            x = x.mul(V::splat(alpha));
        }
        if let Some(bias) = e.bias {
            x = x.add(V::load_part(bias.add(col), mask));
        }
        if let Some((residual, stride)) = e.residual {
            x = x.add(V::load_part(residual.add(row * stride + col), mask));
        }
        F::apply(x).store_part(c, mask);
    }
}
