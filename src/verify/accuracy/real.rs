//! The real numbers that operands stand for, in float64: what `docs/quantization.md` defines.

use crate::alloc;
use crate::description::element::ElementType;
use crate::description::matmul::MatMul;
use crate::description::quantization::{QuantA, QuantB, QuantOutput};
use crate::description::scales::Scales;
use crate::error::Result;
use crate::operands::view::AnyView;

/// What an operand is made from.
pub(super) struct Source<'a> {
    pub view: AnyView<'a>,
    pub item: usize,
    pub transpose: bool,
    pub rows: usize,
    pub cols: usize,
}

impl Source<'_> {
    /// op(X) of one item, packed, each element through `f(row, col, element)`.
    fn packed(&self, mut f: impl FnMut(usize, usize, f64) -> f64) -> Result<Vec<f64>> {
        let mut out = alloc::with_capacity(self.rows * self.cols, "a float64 copy of an operand")?;
        for row in 0..self.rows {
            for col in 0..self.cols {
                let (r, c) = if self.transpose { (col, row) } else { (row, col) };
                out.push(f(row, col, self.view.get(self.item, r, c).unwrap_or(f64::NAN)));
            }
        }
        Ok(out)
    }
}

/// Whether sums are taken over integers, exactly, and scaled afterwards.
pub(crate) fn sums_integers(product: &MatMul) -> bool {
    !product.types().accumulator.is_float()
}

/// op(A), and the scale of each row; empty where all are 1.
pub(super) fn real_a(product: &MatMul, source: &Source<'_>, scales: Scales) -> Result<(Vec<f64>, Vec<f64>)> {
    match product.quantization().a {
        QuantA::None => Ok((source.packed(|_, _, x| x)?, Vec::new())),
        QuantA::Static { zero_point, .. } => {
            let rows = alloc::filled(source.rows, f64::from(scales.a), "the scales of A")?;
            Ok((source.packed(|_, _, x| x - f64::from(zero_point))?, rows))
        }
        QuantA::DynamicPerRow => {
            let mut a = source.packed(|_, _, x| x)?;
            let mut rows = alloc::with_capacity(source.rows, "the scales of A")?;
            for row in a.chunks_mut(source.cols.max(1)).take(source.rows) {
                rows.push(quantize_row(row));
            }
            rows.resize(source.rows, 1.0);
            Ok((a, rows))
        }
    }
}

/// Turns a row into the integers that stand for it, by arithmetic in f32; returns their scale, which is
/// NaN where an element is NaN or infinite.
#[allow(clippy::cast_possible_truncation, reason = "the elements were f32 or narrower")]
pub(crate) fn quantize_row(row: &mut [f64]) -> f64 {
    if row.iter().any(|x| !x.is_finite()) {
        row.fill(0.0);
        return f64::NAN;
    }
    let largest = row.iter().fold(0f64, |largest, x| largest.max(x.abs()));
    let scale = (largest as f32 / 127.0).max(f32::MIN_POSITIVE);
    for x in row.iter_mut() {
        *x = f64::from((*x as f32 / scale).round_ties_even());
    }
    f64::from(scale)
}

/// The terms along k that share a scale of B; at least 1.
pub(crate) fn terms_to_a_scale(product: &MatMul) -> usize {
    let terms = match product.quantization().b {
        QuantB::PerGroup { group_size, .. } => group_size as usize,
        _ => usize::MAX,
    };
    terms.clamp(1, product.k().max(1))
}

/// The scale of op(B)'s elements in group `group` and column `col`: one of `scales_b`, which come with a
/// constant B, or the one of the description.
pub(crate) fn scale_of_b(
    product: &MatMul,
    scales_b: Option<AnyView<'_>>,
    scales: Scales,
    item: usize,
    group: usize,
    col: usize,
) -> f64 {
    let scheme = product.quantization().b;
    match scales_b {
        _ if scheme == QuantB::None => 1.0,
        None => scales.b.into(),
        Some(view) => {
            let item = if view.layout().batch() == 1 { 0 } else { item };
            let col = if matches!(scheme, QuantB::PerTensor { .. }) { 0 } else { col };
            view.get(item, group, col).unwrap_or(f64::NAN)
        }
    }
}

/// op(B) with its scales where sums are of floating-point numbers, without where they are of integers;
/// the magnitudes that may occur on the way to it, where they are larger; the scale of each column,
/// where op(B) is without.
pub(super) struct RealB {
    pub values: Vec<f64>,
    pub magnitudes: Option<Vec<f64>>,
    pub columns: Vec<f64>,
}

pub(super) fn real_b(
    product: &MatMul,
    source: &Source<'_>,
    scales_b: Option<AnyView<'_>>,
    scales: Scales,
) -> Result<RealB> {
    let scheme = product.quantization().b;
    if scheme == QuantB::None {
        return Ok(RealB { values: source.packed(|_, _, x| x)?, magnitudes: None, columns: Vec::new() });
    }
    let group = terms_to_a_scale(product);
    let scale = |p: usize, col| scale_of_b(product, scales_b, scales, source.item, p / group, col);
    let zero = f64::from(scheme.zero_point());
    if sums_integers(product) {
        let mut columns = alloc::with_capacity(source.cols, "the scales of B")?;
        columns.extend((0..source.cols).map(|col| scale(0, col)));
        return Ok(RealB { values: source.packed(|_, _, x| x - zero)?, magnitudes: None, columns });
    }
    let values = source.packed(|p, col, x| scale(p, col) * (x - zero))?;
    let magnitudes = (zero != 0.0)
        .then(|| source.packed(|p, col, x| scale(p, col) * (x.abs() + zero.abs())))
        .transpose()?;
    Ok(RealB { values, magnitudes, columns: Vec::new() })
}

/// How an integer output stands for a real number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IntegerOutput {
    low: f64,
    high: f64,
    scale: f64,
    zero: f64,
}

impl IntegerOutput {
    /// `None` where the output is floating-point.
    pub(crate) fn new(product: &MatMul, scales: Scales) -> Option<Self> {
        let (low, high) = match product.types().output {
            ElementType::I32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
            ElementType::I8 => (-128.0, 127.0),
            ElementType::U8 => (0.0, 255.0),
            _ => return None,
        };
        let zero = match product.quantization().output {
            QuantOutput::None => 0.0,
            QuantOutput::Static { zero_point, .. } => f64::from(zero_point),
        };
        Some(Self { low, high, scale: f64::from(scales.c), zero })
    }

    /// The integer for a real number: NaN is given the zero point.
    fn integer(&self, quotient: f64) -> f64 {
        if quotient.is_nan() {
            return self.zero;
        }
        (quotient.round_ties_even() + self.zero).clamp(self.low, self.high)
    }

    /// The integer for `x`, and how far the integers for numbers within `bound` of it may lie from it.
    pub(crate) fn round(&self, x: f64, bound: f64) -> (f64, f64) {
        let quotient = x / self.scale;
        // The reciprocal of the scale and the product with it are rounded to f32 each.
        let error = bound / self.scale + if bound == 0.0 { 0.0 } else { 2f64.powi(-22) * quotient.abs() };
        let value = self.integer(quotient);
        let away = |to: f64| (self.integer(to) - value).abs();
        (value, away(quotient + error).max(away(quotient - error)))
    }

    /// The real number that an element of the residual stands for.
    pub(crate) fn real(&self, integer: f64) -> f64 {
        self.scale * (integer - self.zero)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::matmul::{ElementTypes, MatMulBuilder};
    use crate::description::quantization::Quantization;
    use crate::operands::tensor::Tensor;

    const SCALES: Scales = Scales { a: 0.5, b: 0.25, c: 0.5 };

    fn floats(b: QuantB) -> MatMulBuilder {
        let types = ElementTypes { b: ElementType::U8, ..ElementTypes::F32 };
        let quantization = Quantization { b, ..Quantization::default() };
        MatMul::builder(1, 2, 3).constant(true).types(types).quantization(quantization)
    }

    fn integers(quantization: Quantization) -> MatMul {
        MatMul::builder(2, 2, 3).types(ElementTypes::INT8).quantization(quantization).build().unwrap()
    }

    fn source(view: AnyView<'_>, rows: usize, cols: usize) -> Source<'_> {
        Source { view, item: 0, transpose: false, rows, cols }
    }

    #[test]
    fn a_static_a_is_what_its_zero_point_leaves() {
        let a = Tensor::from_vec(vec![3i8, 4, -128, 127, 0, 1], 2, 3).unwrap();
        let quantization =
            Quantization { a: QuantA::Static { scale: 0.5, zero_point: 3 }, ..Default::default() };
        let real = real_a(&integers(quantization), &source(a.view().erased(), 2, 3), SCALES).unwrap();
        assert_eq!(real, (vec![0.0, 1.0, -131.0, 124.0, -3.0, -2.0], vec![0.5; 2]));
    }

    #[test]
    fn a_row_is_quantised_by_a_127th_of_its_largest_magnitude() {
        let quantized = |mut row: Vec<f64>| (quantize_row(&mut row), row);
        assert_eq!(quantized(vec![3.0, -254.0, 5.0, 100.9]), (2.0, vec![2.0, -127.0, 2.0, 50.0]));
        assert_eq!(quantized(vec![0.0; 2]), (f64::from(f32::MIN_POSITIVE), vec![0.0; 2]));
        for wrong in [f64::NAN, f64::INFINITY] {
            let (scale, row) = quantized(vec![1.0, wrong]);
            assert!(scale.is_nan());
            assert_eq!(row, [0.0; 2]);
        }
    }

    #[test]
    fn a_scale_of_b_belongs_to_its_item_group_and_column() {
        let by_group = QuantB::PerGroup { group_size: 2, zero_point: 0 };
        let product = |b: QuantB| floats(b).build().unwrap();
        let terms = |b: QuantB| terms_to_a_scale(&product(b));
        assert_eq!(terms(by_group), 2);
        assert_eq!(terms(QuantB::PerGroup { group_size: 9, zero_point: 0 }), 3);
        assert_eq!(terms(QuantB::PerColumn { zero_point: 0 }), 3);

        let one = Tensor::from_vec(vec![1f32, 2.0, 3.0, 4.0], 2, 2).unwrap();
        let two = Tensor::from_vec_batched(vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 2, 2, 2).unwrap();
        let scale = |b: QuantB, scales: Option<AnyView<'_>>, item, group, col| {
            scale_of_b(&product(b), scales, SCALES, item, group, col)
        };
        let (one, two) = (one.view().erased(), two.view().erased());
        assert_eq!(scale(by_group, Some(two), 0, 1, 0), 3.0);
        assert_eq!(scale(by_group, Some(two), 1, 1, 0), 7.0);
        assert_eq!(scale(by_group, Some(one), 1, 1, 1), 4.0);
        assert_eq!(scale(QuantB::PerColumn { zero_point: 0 }, Some(one), 0, 0, 1), 2.0);
        assert_eq!(scale(QuantB::PerTensor { zero_point: 0 }, Some(one), 0, 0, 1), 1.0);
        assert_eq!(scale(QuantB::PerTensor { zero_point: 0 }, None, 0, 0, 1), 0.25);
        assert_eq!(scale(QuantB::None, Some(one), 0, 0, 1), 1.0);
    }

    #[test]
    fn weights_of_a_sum_of_floats_carry_their_scales() {
        let b = Tensor::from_vec(vec![8u8, 9, 10, 0, 6, 11], 3, 2).unwrap();
        let scales = Tensor::from_vec(vec![1f32, 2.0, 4.0, 8.0], 2, 2).unwrap();
        let real = |zero_point| {
            let product = floats(QuantB::PerGroup { group_size: 2, zero_point }).build().unwrap();
            real_b(&product, &source(b.view().erased(), 3, 2), Some(scales.view().erased()), SCALES).unwrap()
        };
        let shifted = real(8);
        assert_eq!(shifted.values, [0.0, 2.0, 2.0, -16.0, -8.0, 24.0]);
        assert_eq!(shifted.magnitudes.unwrap(), [16.0, 34.0, 18.0, 16.0, 56.0, 152.0]);
        assert!(shifted.columns.is_empty());
        assert!(real(0).magnitudes.is_none());
    }

    #[test]
    fn weights_of_a_sum_of_integers_are_integers() {
        let b = Tensor::from_vec(vec![8i8, 9, 10, 0, -6, 11], 3, 2).unwrap();
        let scales = Tensor::from_vec(vec![1f32, 2.0], 1, 2).unwrap();
        let quantization = Quantization { b: QuantB::PerColumn { zero_point: 1 }, ..Default::default() };
        let product = MatMul::builder(2, 2, 3)
            .constant(true)
            .types(ElementTypes::INT8)
            .quantization(quantization)
            .build()
            .unwrap();
        let scales = Some(scales.view().erased());
        let real = real_b(&product, &source(b.view().erased(), 3, 2), scales, SCALES).unwrap();
        assert_eq!(real.values, [7.0, 8.0, 9.0, -1.0, -7.0, 10.0]);
        assert_eq!(real.columns, [1.0, 2.0]);
        assert!(real.magnitudes.is_none());
    }

    #[test]
    fn a_number_becomes_the_nearest_integer_or_one_within_its_bound() {
        let types = ElementTypes { output: ElementType::I8, ..ElementTypes::INT8 };
        let quantization = Quantization {
            a: QuantA::Static { scale: 0.5, zero_point: 0 },
            output: QuantOutput::Static { scale: 0.5, zero_point: 5 },
            ..Default::default()
        };
        let product = MatMul::builder(1, 1, 1).types(types).quantization(quantization).build().unwrap();
        let output = IntegerOutput::new(&product, SCALES).unwrap();
        assert_eq!(output.real(9.0), 2.0);
        assert_eq!(output.round(1.0, 0.0), (7.0, 0.0));
        assert_eq!(output.round(f64::NAN, 0.0), (5.0, 0.0));
        assert_eq!((output.round(1e9, 0.0).0, output.round(-1e9, 0.0).0), (127.0, -128.0));
        // Ties go to even, and a bound of 0 allows no other integer.
        assert_eq!(output.round(1.25, 0.0), (7.0, 0.0));
        // In units of the scale: 2.485 and 2.515, 0.02 to either side of them.
        assert_eq!(output.round(1.2425, 0.01), (7.0, 1.0));
        assert_eq!(output.round(1.2575, 0.01), (8.0, 1.0));
        // Two roundings to f32 may carry a number that is hardly away from the middle over it, and no other.
        assert_eq!(output.round(0.5 * (2.5 - 2f64.powi(-22)), 1e-300), (7.0, 1.0));
        assert_eq!(output.round(1.0, 1e-9), (7.0, 0.0));
        // Neither half of this error reaches the middle alone.
        assert_eq!(output.round(0.5 * (2.5 - 2f64.powi(-20)), 0.5 * 2f64.powi(-21)), (7.0, 1.0));
    }
}
