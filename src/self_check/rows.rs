//! Rows of a product recomputed in float64.

use crate::accuracy::{Bounds, ratio};
use crate::alloc;
use crate::element::Element;
use crate::error::Result;
use crate::executor::Inputs;
use crate::matmul::MatMul;
use crate::self_check::WrongElement;
use crate::view::{AnyView, TensorView};

/// One row in float64, with its error bounds.
#[derive(Debug)]
pub(super) struct Row {
    values: Vec<f64>,
    bounds: Vec<f64>,
}

impl Row {
    pub(super) fn new(n: usize) -> Result<Self> {
        const WHAT: &str = "a row in float64";
        Ok(Self { values: alloc::filled(n, 0.0, WHAT)?, bounds: alloc::filled(n, 0.0, WHAT)? })
    }

    /// Computes row `row` of item `item`; `b` is B as stored.
    pub(super) fn compute(
        &mut self,
        product: &MatMul,
        bounds: &Bounds,
        inputs: &Inputs<'_>,
        b: AnyView<'_>,
        (item, row): (usize, usize),
    ) -> &[f64] {
        self.values.fill(0.0);
        self.bounds.fill(0.0);
        let (a, transpose_a) = (inputs.a_view(), product.transpose_a());
        let a = |p| if transpose_a { a.get(item, p, row) } else { a.get(item, row, p) }.unwrap_or(f64::NAN);
        macro_rules! add {
            ($($(#[$meta:meta])* $variant:ident),*) => {
                match b {
                    $($(#[$meta])* AnyView::$variant(b) => self.add(product, a, b, item),)*
                    // Quantised products are refused when a check is prepared.
                    AnyView::Int4(_) => self.bounds.fill(f64::INFINITY),
                }
            };
        }
        add!(
            F64,
            F32,
            #[cfg(feature = "half")]
            F16,
            #[cfg(feature = "half")]
            Bf16,
            I32,
            I8,
            U8
        );
        for (col, (value, bound)) in self.values.iter_mut().zip(&mut self.bounds).enumerate() {
            let addend = |view: Option<AnyView<'_>>, item, row| {
                view.map_or(0.0, |view| view.get(item, row, col).unwrap_or(f64::NAN))
            };
            let (bias, residual) =
                (addend(inputs.bias_view(), 0, 0), addend(inputs.residual_view(), item, row));
            (*value, *bound) = bounds.element(*value, *bound, bias, residual);
        }
        &self.values
    }

    /// The sums over k and those of the terms' magnitudes.
    fn add<T: Element>(
        &mut self,
        product: &MatMul,
        a: impl Fn(usize) -> f64,
        b: TensorView<'_, T>,
        item: usize,
    ) {
        if product.transpose_b() {
            for (col, (sum, size)) in self.values.iter_mut().zip(&mut self.bounds).enumerate() {
                for (p, b) in b.row(item, col).unwrap_or_default().iter().enumerate() {
                    let term = a(p) * b.to_f64();
                    *sum += term;
                    *size += term.abs();
                }
            }
        } else {
            for p in 0..product.k() {
                let a = a(p);
                let b = b.row(item, p).unwrap_or_default();
                for ((sum, size), b) in self.values.iter_mut().zip(&mut self.bounds).zip(b) {
                    let term = a * b.to_f64();
                    *sum += term;
                    *size += term.abs();
                }
            }
        }
    }

    /// The worst element of what [`Row::compute`] computed last, where one is beyond its bound.
    pub(super) fn compare(
        &self,
        bounds: &Bounds,
        c: AnyView<'_>,
        (item, row): (usize, usize),
    ) -> Option<WrongElement> {
        let mut worst = (1.0, None);
        for (col, (&expected, &bound)) in self.values.iter().zip(&self.bounds).enumerate() {
            let got = c.get(item, row, col).unwrap_or(f64::NAN);
            let ratio = ratio(expected, got, bound, bounds.overflow);
            if ratio > worst.0 {
                worst = (ratio, Some(WrongElement { item, row, col, expected, got, bound }));
            }
        }
        worst.1
    }
}
