//! The epilogue on a tile of C whose sums are complete and still in the cache.

use super::math;
use super::product::Area;
use super::simd::Simd;
use crate::description::activation::Activation;

/// A part of C, and what follows its sums.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finish {
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

impl Finish {
    /// The epilogue of a part of C.
    pub(super) fn part(&self, Area { row, rows, col, cols }: Area) -> Self {
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
trait Function {
    /// # Safety
    /// As [`Simd`].
    unsafe fn apply<V: Simd>(x: V) -> V;
}

struct Identity;

impl Function for Identity {
    #[inline(always)]
    unsafe fn apply<V: Simd>(x: V) -> V {
        x
    }
}

macro_rules! functions {
    ($($name:ident: $function:expr,)*) => {$(
        struct $name;

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
    Relu: math::relu,
    Gelu: math::gelu,
    GeluTanh: math::gelu_tanh,
    Silu: math::silu,
    Sigmoid: math::sigmoid,
    Tanh: math::tanh,
}

/// `activation(alpha * c + bias + residual)` in place, in that order.
///
/// # Safety
/// As [`Simd`]; C, bias and residual cover `rows` x `cols`, and nothing else accesses C meanwhile.
#[inline(always)]
pub(super) unsafe fn finish<V: Simd>(f: &Finish) {
    // SAFETY: by the function's own contract.
    unsafe {
        match f.activation {
            Activation::None => each::<V, Identity>(f),
            Activation::Relu => each::<V, Relu>(f),
            Activation::Gelu => each::<V, Gelu>(f),
            Activation::GeluTanh => each::<V, GeluTanh>(f),
            Activation::Silu => each::<V, Silu>(f),
            Activation::Sigmoid => each::<V, Sigmoid>(f),
            Activation::Tanh => each::<V, Tanh>(f),
        }
    }
}

#[inline(always)]
unsafe fn each<V: Simd, F: Function>(f: &Finish) {
    // SAFETY: by the contract of `finish`.
    unsafe {
        let whole = f.cols / V::LANES * V::LANES;
        let mask = V::mask(f.cols - whole);
        for row in 0..f.rows {
            for col in (0..whole).step_by(V::LANES) {
                element::<V, F>(f, row, col, None);
            }
            if whole < f.cols {
                element::<V, F>(f, row, whole, Some(mask));
            }
        }
    }
}

/// One vector of results.
#[inline(always)]
unsafe fn element<V: Simd, F: Function>(f: &Finish, row: usize, col: usize, mask: Option<V::Mask>) {
    // SAFETY: by the contract of `finish`.
    unsafe {
        let c = f.c.add(row * f.c_stride + col);
        let mut x = V::load_part(c, mask);
        if let Some(alpha) = f.alpha {
            x = x.mul(V::splat(alpha));
        }
        if let Some(bias) = f.bias {
            x = x.add(V::load_part(bias.add(col), mask));
        }
        if let Some((residual, stride)) = f.residual {
            x = x.add(V::load_part(residual.add(row * stride + col), mask));
        }
        F::apply(x).store_part(c, mask);
    }
}
