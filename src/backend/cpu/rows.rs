//! Normalisations, softmax and functions of single numbers, on packed f32.
//!
//! Each is written once over [`Simd`]; [`RowFunctions`] has those of an instruction set. In what follows u is 2^-24,
//! the most by which a rounding is off.

use super::epilogue::activations::exp_of_negative;
use super::epilogue::{Exp, Function, Gelu, GeluTanh, Identity, Relu, Sigmoid, Silu, Tanh};
use super::isa::Simd;
use crate::description::activation::Activation;

/// The functions of an instruction set.
pub(crate) struct RowFunctions {
    /// [`normalize`].
    pub normalize: unsafe fn(&NormRows),
    /// [`softmax`].
    pub softmax: unsafe fn(&Softmax),
    /// [`unary`].
    pub unary: unsafe fn(&Unary),
}

/// `rows` rows of `cols` numbers to normalise, one behind the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormRows {
    pub x: *const f32,
    /// What is added to x first, of its size; null for nothing.
    pub residual: *const f32,
    /// May be x or the residual.
    pub y: *mut f32,
    /// Of `cols` numbers.
    pub scale: *const f32,
    /// Of `cols` numbers; null for none.
    pub bias: *const f32,
    pub rows: usize,
    pub cols: usize,
    pub epsilon: f32,
    /// Whether the mean is subtracted first, as LayerNorm does and RMSNorm does not.
    pub subtract_mean: bool,
}

/// `outer` times `len` times `inner` numbers, of which each `len` that are `inner` apart become e^x over their sum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Softmax {
    pub x: *const f32,
    /// May be x.
    pub y: *mut f32,
    pub outer: usize,
    pub len: usize,
    pub inner: usize,
}

/// A function of each of `count` numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unary {
    pub function: UnaryFunction,
    pub x: *const f32,
    /// May be x.
    pub y: *mut f32,
    pub count: usize,
}

/// A function of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnaryFunction {
    /// Within [`Activation::error_f32`].
    Activation(Activation),
    /// e^x, whose relative error is below 2^-18.8; a subnormal one is off by up to 2^-150 more.
    Exp,
}

/// The lanes of a vector that is not whole.
#[derive(Clone, Copy)]
pub(super) struct Tail<V: Simd> {
    pub mask: V::Mask,
    pub count: usize,
    index: V,
    /// `count` in each lane.
    lanes: V,
}

impl<V: Simd> Tail<V> {
    /// The first `count` lanes, less than all.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(super) unsafe fn new(count: usize) -> Self {
        static INDICES: [f32; 16] =
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
        const { assert!(V::LANES <= INDICES.len()) };
        // SAFETY: by the function's own contract; there is an index for each lane.
        unsafe {
            Self {
                mask: V::mask(count),
                count,
                index: V::load(INDICES.as_ptr()),
                lanes: V::splat(as_f32(count)),
            }
        }
    }

    /// x, and `fill` in the lanes that are not there.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(super) unsafe fn fill(tail: Option<Self>, x: V, fill: f32) -> V {
        // SAFETY: by the function's own contract.
        unsafe {
            match tail {
                Some(Self { index, lanes, .. }) => index.select_less(lanes, x, V::splat(fill)),
                None => x,
            }
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "rounded once")]
fn as_f32(count: usize) -> f32 {
    count as f32
}

/// Where the numbers of a row come from.
pub(super) trait Source<V: Simd> {
    /// The vector from a column on; lanes that are not there hold any numbers.
    ///
    /// # Safety
    /// As [`Simd`], for the columns.
    unsafe fn at(&self, col: usize, tail: Option<Tail<V>>) -> V;
}

/// What is done with each vector of a row, and what comes of all.
pub(super) trait Pass<V: Simd> {
    /// What each lane starts from.
    const START: f32;
    /// The vector from a column on. What lanes that are not there hold must leave the result as it is.
    ///
    /// # Safety
    /// As [`Simd`], for the columns.
    unsafe fn vector(&self, col: usize, tail: Option<Tail<V>>) -> V;
    /// # Safety
    /// As [`Simd`].
    unsafe fn fold(so_far: V, x: V) -> V;
    /// Of two results of [`Pass::fold`] one.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn merge(one: V, other: V) -> V {
        // SAFETY: by the trait's contract.
        unsafe { Self::fold(one, other) }
    }
}

/// The vectors that are folded side by side: an addition takes 4 cycles and more.
const CHAINS: usize = 4;

/// A pass over a row; each element goes through `cols / (4 LANES)` folds or one more, and 2 merges.
///
/// # Safety
/// As [`Simd`], for all columns.
#[inline(always)]
pub(super) unsafe fn fold_row<V: Simd, P: Pass<V>>(pass: &P, cols: usize) -> V {
    let step = CHAINS * V::LANES;
    let whole = cols - cols % step;
    // SAFETY: by the function's own contract.
    unsafe {
        let mut chains = [V::splat(P::START); CHAINS];
        let mut col = 0;
        while col < whole {
            for (i, chain) in chains.iter_mut().enumerate() {
                *chain = P::fold(*chain, pass.vector(col + i * V::LANES, None));
            }
            col += step;
        }
        for chain in &mut chains {
            if col + V::LANES <= cols {
                *chain = P::fold(*chain, pass.vector(col, None));
            } else if col < cols {
                *chain = P::fold(*chain, pass.vector(col, Some(Tail::new(cols - col))));
            }
            col += V::LANES;
        }
        let [a, b, c, d] = chains;
        P::merge(P::merge(a, b), P::merge(c, d))
    }
}

/// `scale (x - mean) / sqrt(variance + epsilon) + bias`, where the variance is the mean of (x - mean)^2; or
/// `scale x / sqrt(mean of x^2 + epsilon) + bias`.
///
/// With s the square root that is divided by and n = cols / (4 LANES) + 8 the additions that an element goes through,
/// q = (x - mean) / s is off by up to u ((n / 2 + 6) |q| + (n + 2) mean |x| / s) to first order, the second term only
/// where the mean is subtracted; x is the sum with the residual, which rounds once. That follows from the error of a
/// sum, u n times that of magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 4.2): it shifts the mean,
/// which changes the variance to second order only. Squares must neither overflow nor, where epsilon is 0, be
/// subnormal.
///
/// # Safety
/// As [`Simd`]; the pointers cover what [`NormRows`] says, and nothing else accesses y meanwhile.
#[inline(always)]
pub(crate) unsafe fn normalize<V: Simd>(n: &NormRows) {
    for row in 0..n.rows {
        let first = row * n.cols;
        // SAFETY: by the function's own contract; the row is one of `rows`.
        unsafe {
            let (x, y) = (n.x.add(first), n.y.add(first));
            let (x, sum) = if n.residual.is_null() {
                let sum = if n.subtract_mean { fold_row(&Plain { x }, n.cols) } else { V::splat(0.0) };
                (x, sum)
            } else {
                let added = Added { x, residual: n.residual.add(first), y };
                let sum = fold_row::<V, _>(&added, n.cols);
                (y.cast_const(), sum)
            };
            let cols = as_f32(n.cols);
            let mean = V::splat(if n.subtract_mean { sum.sum() / cols } else { 0.0 });
            let squares = fold_row::<V, _>(&Centred { x, mean }, n.cols).sum();
            let factor = V::splat(1.0 / (squares / cols + n.epsilon).sqrt());
            fold_row::<V, _>(&Normalized { x, mean, factor, scale: n.scale, bias: n.bias, y }, n.cols);
        }
    }
}

macro_rules! sums {
    () => {
        const START: f32 = 0.0;

        #[inline(always)]
        unsafe fn fold(so_far: V, x: V) -> V {
            // SAFETY: by the trait's contract.
            unsafe { so_far.add(x) }
        }
    };
}

/// Passes that only write.
macro_rules! results {
    () => {
        const START: f32 = 0.0;

        #[inline(always)]
        unsafe fn fold(so_far: V, _: V) -> V {
            so_far
        }
    };
}

/// x as it is; as a pass, its sum.
struct Plain {
    x: *const f32,
}

impl<V: Simd> Source<V> for Plain {
    #[inline(always)]
    unsafe fn at(&self, col: usize, tail: Option<Tail<V>>) -> V {
        // SAFETY: by the trait's contract.
        unsafe { V::load_part(self.x.add(col), tail.map(|tail| tail.mask)) }
    }
}

impl<V: Simd> Pass<V> for Plain {
    sums!();

    #[inline(always)]
    unsafe fn vector(&self, col: usize, tail: Option<Tail<V>>) -> V {
        // SAFETY: by the trait's contract; lanes that are not there are 0.
        unsafe { self.at(col, tail) }
    }
}

/// y = x + residual, and its sum.
struct Added {
    x: *const f32,
    residual: *const f32,
    y: *mut f32,
}

impl<V: Simd> Pass<V> for Added {
    sums!();

    #[inline(always)]
    unsafe fn vector(&self, col: usize, tail: Option<Tail<V>>) -> V {
        // SAFETY: by the trait's contract.
        unsafe {
            let mask = tail.map(|tail| tail.mask);
            let sum = V::load_part(self.x.add(col), mask).add(V::load_part(self.residual.add(col), mask));
            sum.store_part(self.y.add(col), mask);
            sum
        }
    }
}

/// The sum of (x - mean)^2.
struct Centred<V> {
    x: *const f32,
    mean: V,
}

impl<V: Simd> Pass<V> for Centred<V> {
    const START: f32 = 0.0;

    #[inline(always)]
    unsafe fn vector(&self, col: usize, tail: Option<Tail<V>>) -> V {
        // SAFETY: by the trait's contract.
        unsafe {
            let x = V::load_part(self.x.add(col), tail.map(|tail| tail.mask));
            Tail::fill(tail, x.sub(self.mean), 0.0)
        }
    }

    #[inline(always)]
    unsafe fn fold(so_far: V, x: V) -> V {
        // SAFETY: by the trait's contract.
        unsafe { x.mul_add(x, so_far) }
    }

    #[inline(always)]
    unsafe fn merge(one: V, other: V) -> V {
        // SAFETY: by the trait's contract.
        unsafe { one.add(other) }
    }
}

/// y = scale (x - mean) factor + bias.
struct Normalized<V> {
    x: *const f32,
    mean: V,
    factor: V,
    scale: *const f32,
    bias: *const f32,
    y: *mut f32,
}

impl<V: Simd> Pass<V> for Normalized<V> {
    results!();

    #[inline(always)]
    unsafe fn vector(&self, col: usize, tail: Option<Tail<V>>) -> V {
        // SAFETY: by the trait's contract.
        unsafe {
            let mask = tail.map(|tail| tail.mask);
            let x = V::load_part(self.x.add(col), mask).sub(self.mean).mul(self.factor);
            let scale = V::load_part(self.scale.add(col), mask);
            let y = if self.bias.is_null() {
                x.mul(scale)
            } else {
                x.mul_add(scale, V::load_part(self.bias.add(col), mask))
            };
            y.store_part(self.y.add(col), mask);
            y
        }
    }
}

/// e^(x - max) over the sum of these; NaN all along where an x is NaN or infinite, or all are minus infinity.
///
/// A result's relative error is up to 2^-17 + (len + 8) u, of which 2^-17 are those of x - max and of log2 e where
/// x - max is large; one below 2^-126 may be any number from 0 to that.
///
/// # Safety
/// As [`Simd`]; the pointers cover what [`Softmax`] says, and nothing else accesses y meanwhile.
#[inline(always)]
pub(crate) unsafe fn softmax<V: Simd>(s: &Softmax) {
    // SAFETY: by the function's own contract; places stay below the sizes.
    unsafe {
        if s.inner == 1 {
            for row in 0..s.outer {
                softmax_row::<V>(s.x.add(row * s.len), s.y.add(row * s.len), s.len);
            }
            return;
        }
        for item in 0..s.outer {
            let first = item * s.len * s.inner;
            let mut col = 0;
            while col + WIDE * V::LANES <= s.inner {
                softmax_columns::<V, WIDE>(s, first + col, None);
                col += WIDE * V::LANES;
            }
            while col < s.inner {
                let mask = (col + V::LANES > s.inner).then(|| V::mask(s.inner - col));
                softmax_columns::<V, 1>(s, first + col, mask);
                col += V::LANES;
            }
        }
    }
}

/// # Safety
/// As [`softmax`].
#[inline(always)]
unsafe fn softmax_row<V: Simd>(x: *const f32, y: *mut f32, len: usize) {
    // SAFETY: by the function's own contract.
    unsafe {
        let x = &Plain { x };
        let base = V::splat(fold_row::<V, _>(&Largest { x }, len).largest());
        let sum = fold_row(&Exponentials { x, base, y }, len).sum();
        fold_row::<V, _>(&Scaled { y, factor: V::splat(1.0 / sum) }, len);
    }
}

/// The largest x, where none is NaN.
pub(super) struct Largest<'a, S> {
    pub x: &'a S,
}

impl<V: Simd, S: Source<V>> Pass<V> for Largest<'_, S> {
    const START: f32 = f32::NEG_INFINITY;

    #[inline(always)]
    unsafe fn vector(&self, col: usize, tail: Option<Tail<V>>) -> V {
        // SAFETY: by the trait's contract.
        unsafe { Tail::fill(tail, self.x.at(col, tail), f32::NEG_INFINITY) }
    }

    #[inline(always)]
    unsafe fn fold(so_far: V, x: V) -> V {
        // SAFETY: by the trait's contract.
        unsafe { so_far.max(x) }
    }
}

/// y = e^(x - base), and its sum, which is NaN where an x is. The base is no less than x.
pub(super) struct Exponentials<'a, V, S> {
    pub x: &'a S,
    pub base: V,
    pub y: *mut f32,
}

impl<V: Simd, S: Source<V>> Pass<V> for Exponentials<'_, V, S> {
    sums!();

    #[inline(always)]
    unsafe fn vector(&self, col: usize, tail: Option<Tail<V>>) -> V {
        // SAFETY: by the trait's contract.
        unsafe {
            let e = exp_of_negative(self.x.at(col, tail).sub(self.base));
            e.store_part(self.y.add(col), tail.map(|tail| tail.mask));
            Tail::fill(tail, e, 0.0)
        }
    }
}

/// y = y factor.
pub(super) struct Scaled<V> {
    pub y: *mut f32,
    pub factor: V,
}

impl<V: Simd> Pass<V> for Scaled<V> {
    results!();

    #[inline(always)]
    unsafe fn vector(&self, col: usize, tail: Option<Tail<V>>) -> V {
        // SAFETY: by the trait's contract.
        unsafe {
            let (mask, y) = (tail.map(|tail| tail.mask), self.y.add(col));
            let scaled = V::load_part(y, mask).mul(self.factor);
            scaled.store_part(y, mask);
            scaled
        }
    }
}

/// The vectors of columns that go down together, where there are so many: whole cache lines.
const WIDE: usize = 4;

/// `N` vectors of columns, or the part of one, from place `first` on.
///
/// # Safety
/// As [`softmax`].
#[inline(always)]
unsafe fn softmax_columns<V: Simd, const N: usize>(s: &Softmax, first: usize, mask: Option<V::Mask>) {
    // SAFETY: by the function's own contract.
    unsafe {
        let (x, y) = (s.x.add(first), s.y.add(first));
        let mut max = [V::splat(f32::NEG_INFINITY); N];
        for row in 0..s.len {
            for (i, max) in max.iter_mut().enumerate() {
                *max = max.max(V::load_part(x.add(row * s.inner + i * V::LANES), mask));
            }
        }
        let mut sums = [V::splat(0.0); N];
        for row in 0..s.len {
            for (i, sum) in sums.iter_mut().enumerate() {
                let at = row * s.inner + i * V::LANES;
                let e = exp_of_negative(V::load_part(x.add(at), mask).sub(max[i]));
                e.store_part(y.add(at), mask);
                *sum = sum.add(e);
            }
        }
        let factors = sums.map(|sum| V::splat(1.0).div(sum));
        for row in 0..s.len {
            for (i, factor) in factors.iter().enumerate() {
                let y = y.add(row * s.inner + i * V::LANES);
                V::load_part(y.cast_const(), mask).mul(*factor).store_part(y, mask);
            }
        }
    }
}

/// The function of each number.
///
/// # Safety
/// As [`Simd`]; the pointers cover what [`Unary`] says, and nothing else accesses y meanwhile.
#[inline(always)]
pub(crate) unsafe fn unary<V: Simd>(u: &Unary) {
    // SAFETY: by the function's own contract.
    unsafe {
        match u.function {
            UnaryFunction::Activation(Activation::None) => map::<V, Identity>(u, Identity),
            UnaryFunction::Activation(Activation::Relu) => map::<V, Relu>(u, Relu),
            UnaryFunction::Activation(Activation::Gelu) => map::<V, Gelu>(u, Gelu),
            UnaryFunction::Activation(Activation::GeluTanh) => map::<V, GeluTanh>(u, GeluTanh),
            UnaryFunction::Activation(Activation::Silu) => map::<V, Silu>(u, Silu),
            UnaryFunction::Activation(Activation::Sigmoid) => map::<V, Sigmoid>(u, Sigmoid),
            UnaryFunction::Activation(Activation::Tanh) => map::<V, Tanh>(u, Tanh),
            UnaryFunction::Exp => map::<V, Exp>(u, Exp),
        }
    }
}

#[inline(always)]
unsafe fn map<V: Simd, F: Function<V>>(u: &Unary, function: F) {
    let whole = u.count - u.count % V::LANES;
    // SAFETY: by the contract of [`unary`].
    unsafe {
        let mut at = 0;
        while at < whole {
            function.apply(V::load(u.x.add(at))).store(u.y.add(at));
            at += V::LANES;
        }
        if whole < u.count {
            let mask = V::mask(u.count - whole);
            function.apply(V::load_masked(u.x.add(whole), mask)).store_masked(u.y.add(whole), mask);
        }
    }
}
