//! The real numbers that the operands of one product stand for, a row at a time, without an allocation:
//! the arithmetic of `docs/quantization.md`, as `accuracy::Reference` has it.

use crate::description::element::Element;
use crate::description::matmul::MatMul;
use crate::description::quantization::QuantA;
use crate::description::scales::Scales;
use crate::executor::Inputs;
use crate::operands::view::{AnyView, TensorView};
use crate::operands::weights::Weights;
use crate::verify::accuracy::{IntegerOutput, quantize_row, scale_of_b, sums_integers, terms_to_a_scale};

/// What the elements of a product stand for.
#[derive(Debug)]
pub(super) struct Reals {
    pub(super) product: MatMul,
    pub(super) scales: Scales,
    /// Holds the scales of a constant B.
    pub(super) weights: Option<Weights>,
    /// How an integer output is rounded.
    pub(super) output: Option<IntegerOutput>,
    /// Whether sums are taken over integers, exactly, and scaled afterwards.
    pub(super) sums_integers: bool,
    /// The terms along k with one scale; at least 1.
    pub(super) group: usize,
    /// B's zero point.
    pub(super) zero: f64,
}

impl Reals {
    pub(super) fn new(product: &MatMul, weights: Option<&Weights>) -> Self {
        let scales = Scales::of(product);
        Self {
            scales,
            weights: weights.map(Weights::for_product),
            output: IntegerOutput::new(product, scales),
            sums_integers: sums_integers(product),
            group: terms_to_a_scale(product),
            zero: f64::from(product.quantization().b.zero_point()),
            product: product.clone(),
        }
    }

    /// B as stored: that of the run, or the constant one.
    pub(super) fn b<'a>(&'a self, inputs: &Inputs<'a>) -> Option<AnyView<'a>> {
        inputs.b_view().or(self.weights.as_ref().map(|weights| weights.view_for(&self.product)))
    }

    /// Row `row` of op(A), without its scale, which is returned: NaN for a row that cannot be quantised.
    pub(super) fn row_of_a(&self, a: AnyView<'_>, item: usize, row: usize, out: &mut [f64]) -> f64 {
        if self.product.transpose_a() {
            for (p, x) in out.iter_mut().enumerate() {
                *x = a.get(item, p, row).unwrap_or(f64::NAN);
            }
        } else {
            read(a, item, row, out);
        }
        match self.product.quantization().a {
            QuantA::None => 1.0,
            QuantA::Static { zero_point, .. } => {
                for x in out.iter_mut() {
                    *x -= f64::from(zero_point);
                }
                self.scales.a.into()
            }
            QuantA::DynamicPerRow => quantize_row(out),
        }
    }

    /// The scale of B's elements in column `col` and group `group` of op(B).
    pub(super) fn scale_of_b(&self, item: usize, group: usize, col: usize) -> f64 {
        let scales_b = self.weights.as_ref().and_then(Weights::scales);
        scale_of_b(&self.product, scales_b, self.scales, item, group, col)
    }

    /// Whether all items of a batch have the same scales of B.
    pub(super) fn shares_scales(&self) -> bool {
        self.weights.as_ref().and_then(Weights::scales).is_none_or(|scales| scales.layout().batch() == 1)
    }

    /// What a term of B counts in the error bound: where a zero point is taken off a sum of floating-point
    /// numbers, both parts of it.
    pub(super) fn magnitude(&self, b: f64) -> f64 {
        if self.sums_integers { (b - self.zero).abs() } else { b.abs() + self.zero.abs() }
    }

    /// What an element of the residual stands for.
    pub(super) fn residual(&self, x: f64) -> f64 {
        self.output.map_or(x, |output| output.real(x))
    }
}

/// A row of a matrix as stored.
pub(super) fn read(view: AnyView<'_>, item: usize, row: usize, out: &mut [f64]) {
    fn copy<T: Element>(view: TensorView<'_, T>, item: usize, row: usize, out: &mut [f64]) {
        for (x, &element) in out.iter_mut().zip(view.row(item, row).unwrap_or_default()) {
            *x = element.to_f64();
        }
    }
    match view {
        AnyView::F64(view) => copy(view, item, row, out),
        AnyView::F32(view) => copy(view, item, row, out),
        #[cfg(feature = "half")]
        AnyView::F16(view) => copy(view, item, row, out),
        #[cfg(feature = "half")]
        AnyView::Bf16(view) => copy(view, item, row, out),
        AnyView::I32(view) => copy(view, item, row, out),
        AnyView::I8(view) => copy(view, item, row, out),
        AnyView::U8(view) => copy(view, item, row, out),
        AnyView::Device(_) => debug_assert!(false, "what is verified lies on the host"),
        AnyView::Int4(view) => {
            let start = view.layout().item_offset(item) + row * view.layout().leading_dimension();
            for (index, x) in out.iter_mut().enumerate() {
                *x = view.at(start + index).into();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::layout::Layout;
    use crate::description::quantization::NibbleOrder;
    use crate::operands::int4::Int4View;

    #[test]
    fn rows_of_4_bit_integers_are_read_where_they_lie() {
        let bytes: Vec<u8> = (0..20u8).map(|i| i.wrapping_mul(37)).collect();
        let layout = Layout::strided(2, 2, 5, 7, 17).unwrap();
        for order in [NibbleOrder::LowFirst, NibbleOrder::HighFirst] {
            let view = Int4View::signed(&bytes, layout, order).unwrap();
            for (item, row) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let mut out = [f64::NAN; 5];
                read(AnyView::Int4(view), item, row, &mut out);
                let expected = [0, 1, 2, 3, 4].map(|col| f64::from(view.get(item, row, col).unwrap()));
                assert_eq!(out, expected, "item {item}, row {row}");
            }
        }
    }
}
