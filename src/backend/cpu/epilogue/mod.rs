//! What follows the sums: alpha, bias, residual and activation, on a part of C that is still in the cache.
//!
//! - this file: in place, all of it f32 or all f64; [`activations`]: its functions on vectors;
//! - [`requantize`]: results from sums of integers, in the micro-kernel; [`store`]: operands and results of any
//!   type, row by row.

pub(crate) mod activations;
pub(crate) mod requantize;
pub(crate) mod store;

use super::isa::{Simd, Vector, words_of};
use super::macrokernel::Area;
use super::pack::Word;
use crate::description::activation::Activation;

/// A part of C, and what follows its sums. Strides are in words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epilogue {
    pub c: *mut Word,
    pub c_stride: usize,
    /// The words of a number.
    pub words: usize,
    pub rows: usize,
    pub cols: usize,
    /// `None` for 1.
    pub alpha: Option<f32>,
    /// For the first of the columns.
    pub bias: Option<*const Word>,
    /// For the first element, with its stride.
    pub residual: Option<(*const Word, usize)>,
    pub activation: Activation,
}

impl Epilogue {
    /// An activation alone, of a row.
    pub(crate) fn of_row(x: &mut [f32], activation: Activation) -> Self {
        Self {
            c: x.as_mut_ptr().cast(),
            c_stride: x.len(),
            words: 1,
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
        let col = col * self.words;
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
pub(crate) trait Function<V: Vector>: Copy {
    /// # Safety
    /// As [`Vector`].
    unsafe fn apply(self, x: V) -> V;
}

#[derive(Clone, Copy)]
pub(crate) struct Identity;

impl<V: Vector> Function<V> for Identity {
    #[inline(always)]
    unsafe fn apply(self, x: V) -> V {
        x
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Relu;

impl<V: Vector> Function<V> for Relu {
    #[inline(always)]
    unsafe fn apply(self, x: V) -> V {
        // SAFETY: by the trait's contract.
        unsafe { activations::relu(x) }
    }
}

/// [`Activation::apply_f64`], lane by lane: its values are the definition, and no product of f64 is waited for.
#[derive(Clone, Copy)]
struct ByLane(Activation);

impl<V: Vector<Number = f64>> Function<V> for ByLane {
    #[inline(always)]
    unsafe fn apply(self, x: V) -> V {
        /// The most lanes of a vector.
        const LANES: usize = 8;
        let mut lanes = [0.0; LANES];
        // SAFETY: by the trait's contract; no vector has more lanes.
        unsafe {
            x.store(lanes.as_mut_ptr());
            for lane in &mut lanes[..V::LANES] {
                *lane = self.0.apply_f64(*lane);
            }
            V::load(lanes.as_ptr())
        }
    }
}

macro_rules! functions {
    ($($name:ident: $function:expr,)*) => {$(
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl<V: Simd> Function<V> for $name {
            #[inline(always)]
            unsafe fn apply(self, x: V) -> V {
                // SAFETY: by the trait's contract.
                unsafe { $function(x) }
            }
        }
    )*};
}

functions! {
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
/// As [`Vector`]; C, bias and residual cover `rows` x `cols`, and nothing else accesses C meanwhile.
#[inline(always)]
pub(crate) unsafe fn apply<V: Simd>(e: &Epilogue) {
    // SAFETY: by the function's own contract.
    unsafe {
        match e.activation {
            Activation::None => each::<V, _>(e, Identity),
            Activation::Relu => each::<V, _>(e, Relu),
            Activation::Gelu => each::<V, _>(e, Gelu),
            Activation::GeluTanh => each::<V, _>(e, GeluTanh),
            Activation::Silu => each::<V, _>(e, Silu),
            Activation::Sigmoid => each::<V, _>(e, Sigmoid),
            Activation::Tanh => each::<V, _>(e, Tanh),
        }
    }
}

/// [`apply`] of f64.
///
/// # Safety
/// As [`apply`].
#[inline(always)]
pub(crate) unsafe fn apply_f64<V: Vector<Number = f64>>(e: &Epilogue) {
    // SAFETY: by the function's own contract.
    unsafe {
        match e.activation {
            Activation::None => each::<V, _>(e, Identity),
            Activation::Relu => each::<V, _>(e, Relu),
            activation => each::<V, _>(e, ByLane(activation)),
        }
    }
}

#[inline(always)]
unsafe fn each<V: Vector, F: Function<V>>(e: &Epilogue, f: F) {
    // SAFETY: by the contract of [`apply`].
    unsafe {
        let whole = e.cols / V::LANES * V::LANES;
        for row in 0..e.rows {
            for col in (0..whole).step_by(V::LANES) {
                vectors::<V, F, 1>(e, f, (row, col), None);
            }
        }
        if whole < e.cols {
            // A masked load waits for a masked store just before it in memory: several rows are loaded before one is
            // stored.
            let mask = Some(V::mask(e.cols - whole));
            let fours = e.rows / 4 * 4;
            for row in (0..fours).step_by(4) {
                vectors::<V, F, 4>(e, f, (row, whole), mask);
            }
            for row in fours..e.rows {
                vectors::<V, F, 1>(e, f, (row, whole), mask);
            }
        }
    }
}

/// A vector of results in each of `ROWS` rows.
#[inline(always)]
unsafe fn vectors<V: Vector, F: Function<V>, const ROWS: usize>(
    e: &Epilogue,
    f: F,
    (row, col): (usize, usize),
    mask: Option<V::Mask>,
) {
    // SAFETY: by the contract of [`apply`].
    unsafe {
        let col = col * words_of::<V>();
        let c = e.c.add(row * e.c_stride + col);
        let mut results = [V::zero(); ROWS];
        for (i, result) in results.iter_mut().enumerate() {
            let mut x = V::load_part(c.add(i * e.c_stride).cast(), mask);
            if let Some(alpha) = e.alpha {
                x = x.mul(V::splat(alpha.into()));
            }
            if let Some(bias) = e.bias {
                x = x.add(V::load_part(bias.add(col).cast(), mask));
            }
            if let Some((residual, stride)) = e.residual {
                x = x.add(V::load_part(residual.add((row + i) * stride + col).cast(), mask));
            }
            *result = f.apply(x);
        }
        for (i, result) in results.into_iter().enumerate() {
            result.store_part(c.add(i * e.c_stride).cast(), mask);
        }
    }
}
