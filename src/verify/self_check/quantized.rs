//! Freivalds' method on a product of integers, or with integer weights, without an activation: in float64,
//! which is exact for the sums of integers.

use crate::alloc;
use crate::description::activation::Activation;
use crate::description::matmul::MatMul;
use crate::error::{Error, Result};
use crate::random::Random;
use crate::verify::accuracy::Bounds;
use crate::verify::self_check::freivalds::{self, Arithmetic, Pass, Source, WHAT, per_col, sign_and_size};
use crate::verify::self_check::reals::{Reals, read};

/// The random vectors, one after the other, n numbers each.
#[derive(Debug)]
pub(super) struct Vectors {
    numbers: Vec<f64>,
    count: usize,
    n: usize,
}

impl Vectors {
    fn get(&self, index: usize) -> &[f64] {
        &self.numbers[index * self.n..][..self.n]
    }
}

/// B r of one item, with B's scales, and the sums of B's rows of magnitudes.
#[derive(Debug)]
pub(super) struct Projected {
    /// One after the other, k numbers each.
    vectors: Vec<f64>,
    sizes: Vec<f64>,
}

/// A row of each operand, and a run of B.
#[derive(Debug)]
pub(super) struct Quantized {
    a: Vec<f64>,
    c: Vec<f64>,
    residual: Vec<f64>,
    bias: Vec<f64>,
    run: Vec<f64>,
    /// One group's scales, and their products with a vector.
    scales: Vec<f64>,
    scaled: Vec<f64>,
}

impl Arithmetic for Quantized {
    type Vectors = Vectors;
    type Projected = Projected;

    fn new(product: &MatMul) -> Result<Self> {
        let room = |count| alloc::filled(count, 0.0, WHAT);
        let (n, k) = (product.n(), product.k());
        let by_rows = if product.transpose_b() { 0 } else { n };
        Ok(Self {
            a: room(k)?,
            c: room(n)?,
            residual: room(if product.residual().is_some() { n } else { 0 })?,
            bias: room(if product.has_bias() { n } else { 0 })?,
            run: room(if product.transpose_b() { k } else { n })?,
            scales: room(by_rows)?,
            scaled: room(by_rows)?,
        })
    }

    fn vectors(product: &MatMul, count: usize, random: &mut Random) -> Result<Vectors> {
        let n = product.n();
        let numbers = n.checked_mul(count).ok_or(Error::SizeOverflow { what: "n x vectors" })?;
        let mut numbers = alloc::filled(numbers, 0.0, WHAT)?;
        numbers.fill_with(|| f64::from(sign_and_size(random)));
        Ok(Vectors { numbers, count, n })
    }

    fn room(product: &MatMul, vectors: &Vectors) -> Result<Projected> {
        let k = product.k();
        let count = k.checked_mul(vectors.count).ok_or(Error::SizeOverflow { what: "k x vectors" })?;
        Ok(Projected { vectors: alloc::filled(count, 0.0, WHAT)?, sizes: alloc::filled(k, 0.0, WHAT)? })
    }

    fn project(&mut self, vectors: &Vectors, b: Source<'_>, projected: &mut Projected) {
        projected.vectors.fill(0.0);
        projected.sizes.fill(0.0);
        if b.reals.product.transpose_b() {
            self.add_columns(vectors, b, projected);
        } else {
            self.add_rows(vectors, b, projected);
        }
    }

    fn passes(_: &Vectors) -> usize {
        1
    }

    fn start(&mut self, pass: &Pass<'_, Self>) {
        if let Some(view) = pass.operands.inputs.bias_view() {
            read(view, 0, 0, &mut self.bias);
        }
    }

    fn ratio(&mut self, pass: &Pass<'_, Self>, row: usize) -> Option<f64> {
        let Pass { operands, vectors, projected, item, .. } = *pass;
        let (reals, bounds, inputs) = (operands.reals, operands.bounds, operands.inputs);
        let Self { a, c, residual, bias, .. } = self;
        let scale = bounds.alpha * reals.row_of_a(inputs.a_view(), item, row, a);
        read(operands.c, item, row, c);
        if let Some(view) = inputs.residual_view() {
            read(view, item, row, residual);
        }
        let tolerance = tolerance(reals, bounds, scale, [a, &projected.sizes, c, residual, bias]);
        let mut largest = 0.0;
        for index in 0..vectors.count {
            let r = vectors.get(index);
            let ab = dot(a, &projected.vectors[index * a.len()..][..a.len()]);
            let expected = scale * ab + dot(residual, r) + dot(bias, r);
            if !expected.is_finite() {
                return None;
            }
            let residue = (dot(c, r) - expected).abs();
            let ratio = residue / tolerance;
            if !residue.is_finite() || ratio.is_nan() {
                return Some(f64::INFINITY);
            }
            largest = f64::max(largest, ratio);
        }
        Some(largest)
    }
}

impl Quantized {
    fn add_rows(&mut self, vectors: &Vectors, b: Source<'_>, projected: &mut Projected) {
        let Self { run, scales, scaled, .. } = self;
        let Source { reals, b, item } = b;
        let k = reals.product.k();
        for (group, first) in (0..k).step_by(reals.group).enumerate() {
            for (col, scale) in scales.iter_mut().enumerate() {
                *scale = reals.scale_of_b(item, group, col);
            }
            let rows = first..k.min(first + reals.group);
            for index in 0..vectors.count {
                for ((x, scale), r) in scaled.iter_mut().zip(&*scales).zip(vectors.get(index)) {
                    *x = scale * r;
                }
                for p in rows.clone() {
                    read(b, item, p, run);
                    for x in run.iter_mut() {
                        *x -= reals.zero;
                    }
                    projected.vectors[index * k + p] = dot(run, scaled);
                }
            }
            for p in rows {
                read(b, item, p, run);
                for x in run.iter_mut() {
                    *x = reals.magnitude(*x);
                }
                projected.sizes[p] = dot(run, scales);
            }
        }
    }

    fn add_columns(&mut self, vectors: &Vectors, b: Source<'_>, projected: &mut Projected) {
        let Source { reals, b, item } = b;
        let (n, k) = (reals.product.n(), reals.product.k());
        for col in 0..n {
            read(b, item, col, &mut self.run);
            for (group, run) in self.run.chunks(reals.group).enumerate() {
                let (first, scale) = (group * reals.group, reals.scale_of_b(item, group, col));
                for index in 0..vectors.count {
                    let factor = scale * vectors.get(index)[col];
                    let sums = &mut projected.vectors[index * k + first..][..run.len()];
                    for (sum, b) in sums.iter_mut().zip(run) {
                        *sum += (b - reals.zero) * factor;
                    }
                }
                for (size, &b) in projected.sizes[first..].iter_mut().zip(run) {
                    *size += scale * reals.magnitude(b);
                }
            }
        }
    }
}

/// [`freivalds::tolerance`]; a quarter at least where the results are integers, which are off by one at least.
#[allow(clippy::cast_precision_loss, reason = "a share of a bound")]
fn tolerance(reals: &Reals, bounds: &Bounds, scale: f64, [a, sizes, c, residual, bias]: [&[f64]; 5]) -> f64 {
    let total = |row: &[f64]| row.iter().map(|x| x.abs()).sum::<f64>();
    let (result, addends) = (total(c), total(residual) + total(bias));
    let sums = scale.abs() * a.iter().zip(sizes).map(|(a, size)| a.abs() * size).sum::<f64>();
    // Of integers only the size of their exact sum counts, which the results tell.
    let size = if reals.sums_integers { result + addends } else { sums };
    // The residue is rounded too, which shows where exact sums come to nothing.
    let own = (a.len() + c.len()) as f64 * f64::EPSILON * (sums + result + addends);
    let tolerance = freivalds::tolerance(bounds, per_col(c.len()), [size, addends, result, own]);
    if reals.output.is_some() { tolerance.max(0.25) } else { tolerance }
}

/// Whether Freivalds' method sees the whole of an integer product: sums that are scaled to
/// floating-point numbers, or the sums themselves.
pub(super) fn is_linear(reals: &Reals, bounds: &Bounds) -> bool {
    let product = &reals.product;
    // Sums of integers that nothing rounds are those that are put out as they are, in i32.
    let is_sum = reals.sums_integers && bounds.gamma_e == 0.0;
    product.activation() == Activation::None && (product.types().output.is_float() || is_sum)
}

/// The sum of products, in eight sums side by side.
fn dot(x: &[f64], y: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (x_chunks, y_chunks) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest: f64 = x_chunks.remainder().iter().zip(y_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in x_chunks.zip(y_chunks) {
        for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum += x * y;
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use approx::{assert_abs_diff_eq, assert_relative_eq};

    use super::*;
    use crate::description::element::ElementType;
    use crate::description::matmul::ElementTypes;
    use crate::description::quantization::{QuantA, QuantOutput, Quantization};
    use crate::executor::Inputs;
    use crate::operands::view::TensorView;
    use crate::verify::self_check::freivalds::{Freivalds, Operands, Projections, Suspects};
    use crate::verify::self_check::tests::{Integers, Scheme};

    const VECTORS: usize = 3;

    fn projections(numbers: &Integers) -> Projections<Quantized> {
        Projections::new(&numbers.reals, numbers.constant_b(), VECTORS, &mut Random::new(1)).unwrap()
    }

    fn suspects(numbers: &Integers, c: &[f32]) -> Suspects {
        let mut state = Freivalds::new(&numbers.product, Arc::new(projections(numbers))).unwrap();
        let c = TensorView::with_layout(c, *numbers.product.c()).unwrap().erased();
        let (inputs, mut random) = (numbers.inputs(), Random::new(2));
        let (reals, bounds, inputs) = (&numbers.reals, &numbers.bounds, &inputs);
        state.suspects(&Operands { reals, bounds, inputs, b: numbers.b(), c }, &mut random)
    }

    fn close(got: f64, expected: f64) {
        assert_relative_eq!(got, expected, epsilon = 1e-12, max_relative = 1e-12);
    }

    #[test]
    fn a_right_result_has_no_suspects_and_a_wrong_element_is_in_one() {
        for numbers in Integers::all() {
            let right = numbers.c.data();
            assert_eq!(suspects(&numbers, right), Suspects::default(), "{}", numbers.product);
            for at in 0..right.len() {
                let row = Some((at / Integers::N / Integers::M, at / Integers::N % Integers::M));
                for wrong in [right[at] + 0.01, f32::NAN, f32::INFINITY] {
                    let mut c = right.to_vec();
                    c[at] = wrong;
                    let expected = if wrong.is_finite() {
                        Suspects { worst: row, ..Suspects::default() }
                    } else {
                        Suspects { infinite: row, ..Suspects::default() }
                    };
                    assert_eq!(suspects(&numbers, &c), expected, "{wrong} in {}", numbers.product);
                }
            }
        }
    }

    #[test]
    fn the_worst_row_is_named() {
        for numbers in Integers::all() {
            for worst in [0, 1] {
                let mut c = numbers.c.data().to_vec();
                c[Integers::N] += if worst == 0 { 100.0 } else { 1.0 };
                c[4 * Integers::N] += if worst == 0 { 1.0 } else { 100.0 };
                assert_eq!(suspects(&numbers, &c).worst, Some([(0, 1), (1, 1)][worst]));
            }
        }
    }

    #[test]
    fn a_row_of_nan_cannot_be_verified() {
        let mut numbers = Integers::new(Scheme::Weights, false);
        numbers.a_floats[Integers::K * 2 + 1] = f32::NAN;
        let mut c = numbers.c.data().to_vec();
        c[2 * Integers::N..][..Integers::N].fill(f32::NAN);
        let mut expected = Suspects { unverifiable: Some((0, 2)), ..Suspects::default() };
        assert_eq!(suspects(&numbers, &c), expected);
        c[5 * Integers::N] += 1.0;
        expected.worst = Some((1, 2));
        assert_eq!(suspects(&numbers, &c), expected);
        // An infinity hides no other row.
        c[4 * Integers::N] = f32::INFINITY;
        expected.infinite = Some((1, 1));
        assert_eq!(suspects(&numbers, &c), expected);
    }

    #[test]
    fn b_is_projected_with_its_scales() {
        for numbers in Integers::all() {
            let projections = projections(&numbers);
            let (product, vectors) = (&numbers.product, &projections.vectors);
            for item in 0..Integers::ITEMS {
                let mut projected = Quantized::room(product, vectors).unwrap();
                // What an earlier run left does not count.
                projected.vectors.fill(1.0);
                projected.sizes.fill(1.0);
                let b = Source { reals: &numbers.reals, b: numbers.b(), item };
                Quantized::new(product).unwrap().project(vectors, b, &mut projected);
                for p in 0..Integers::K {
                    for index in 0..VECTORS {
                        let r = projections.vectors.get(index);
                        close(
                            projected.vectors[index * Integers::K + p],
                            (0..Integers::N).map(|col| numbers.real_b(item, p, col) * r[col]).sum(),
                        );
                    }
                    let size = (0..Integers::N).map(|col| numbers.size_b(item, p, col)).sum();
                    close(projected.sizes[p], size);
                }
                if let Some(constant) = &projections.constant {
                    assert_eq!(constant[item].vectors, projected.vectors);
                }
            }
        }
    }

    #[test]
    fn every_vector_is_another() {
        let numbers = Integers::new(Scheme::Columns, false);
        let projections = projections(&numbers);
        let [first, second, third] = [0, 1, 2].map(|index| projections.vectors.get(index));
        assert!(first != second && second != third && first != third);
        assert_eq!(third.len(), Integers::N);
    }

    #[test]
    fn a_tolerance_is_half_the_mean_bound_and_float64_s_own_rounding() {
        let numbers = Integers::new(Scheme::Weights, false);
        let mut bounds = numbers.bounds;
        (bounds.gamma_k, bounds.gamma_e, bounds.u_out, bounds.underflow) = (0.25, 0.125, 0.0625, 2.0);
        let rows: [&[f64]; 5] =
            [&[1.0, -2.0], &[3.0, 4.0], &[4.0, -4.0, 8.0, 16.0], &[1.0, -1.0], &[-1.0, 2.0]];
        // |scale| |a| sizes are 22, the results 32, bias and residual 5.
        close(tolerance(&numbers.reals, &bounds, -2.0, rows), 0.5 * ((5.5 + 3.375 + 2.0) / 4.0 + 2.0));
        // Of integers the results and addends count: 37.
        let integers = Integers::new(Scheme::Columns, false).reals;
        close(tolerance(&integers, &bounds, -2.0, rows), 0.5 * ((9.25 + 5.25 + 2.0) / 4.0 + 2.0));
        (bounds.gamma_k, bounds.gamma_e, bounds.u_out, bounds.underflow) = (0.0, 0.0, 0.0, 0.0);
        let own = tolerance(&numbers.reals, &bounds, -2.0, rows);
        assert_abs_diff_eq!(own / (0.5 * 6.0 * f64::EPSILON * 59.0 / 4.0), 1.0, epsilon = 1e-12);
    }

    #[test]
    fn sums_and_scaled_sums_are_linear_and_rounded_ones_are_not() {
        let linear = |types: ElementTypes, quantization: Quantization, activation, bias| {
            let product = MatMul::builder(2, 3, 4)
                .types(types)
                .quantization(quantization)
                .activation(activation)
                .bias(bias)
                .build()
                .unwrap();
            is_linear(&Reals::new(&product, None), &Bounds::new(&product))
        };
        let none = Quantization::default();
        let scaled = Quantization { a: QuantA::Static { scale: 1.0, zero_point: 0 }, ..none };
        let rounded = Quantization { output: QuantOutput::Static { scale: 1.0, zero_point: 0 }, ..scaled };
        let sums = ElementTypes { output: ElementType::I32, ..ElementTypes::INT8 };
        let bytes = ElementTypes { output: ElementType::I8, ..ElementTypes::INT8 };
        assert!(linear(ElementTypes::INT8, scaled, Activation::None, true));
        assert!(!linear(ElementTypes::INT8, scaled, Activation::Relu, false));
        assert!(linear(sums, none, Activation::None, false));
        assert!(!linear(sums, none, Activation::None, true));
        assert!(!linear(sums, none, Activation::Relu, false));
        let rounded_sums = ElementTypes { output: ElementType::I32, ..ElementTypes::F32 };
        assert!(!linear(rounded_sums, none, Activation::None, false));
        assert!(!linear(bytes, rounded, Activation::None, false));
    }

    #[test]
    fn a_dot_product_of_any_length() {
        for length in 0..20u8 {
            let x: Vec<f64> = (0..length).map(|i| f64::from(i) + 2.0).collect();
            let y: Vec<f64> = (0..length).map(|i| f64::from(i) * 3.0 - 1.0).collect();
            assert_eq!(dot(&x, &y), x.iter().zip(&y).map(|(x, y)| x * y).sum::<f64>());
        }
    }

    #[test]
    fn items_that_share_b_and_its_scales_are_projected_once() {
        use crate::description::quantization::QuantB;
        let quantization = Quantization { b: QuantB::PerColumn { zero_point: 0 }, ..Quantization::default() };
        let product = MatMul::builder(2, 3, 4)
            .batch(2)
            .batch_stride(crate::Operand::B, 0)
            .constant(true)
            .types(ElementTypes { b: ElementType::I8, ..ElementTypes::F32 })
            .quantization(quantization)
            .build()
            .unwrap();
        let (b, scales) = ([1i8; 12], [1f32; 6]);
        let b = TensorView::with_layout(&b, *product.b()).unwrap();
        let sides = |batch: usize| {
            let layout = crate::description::layout::Layout::packed(batch, 1, 3).unwrap();
            let scales = TensorView::with_layout(&scales[..batch * 3], layout).unwrap();
            let weights = crate::Weights::new(b).unwrap().with_scales(quantization.b, scales).unwrap();
            let reals = Reals::new(&product, Some(&weights));
            let check = crate::SelfCheck::every_run();
            let options = crate::CompileOptions::default();
            let mut checker =
                crate::ResultChecker::of_parts(&product, Some(&weights), &check, &options).unwrap();
            let a = crate::Tensor::from_vec_batched(vec![1f32; 16], 2, 2, 4).unwrap();
            let mut c = crate::Tensor::from_vec_batched(vec![4f32; 12], 2, 2, 3).unwrap();
            assert_eq!(checker.check(Inputs::new(&a), &c).unwrap(), None);
            c.data_mut()[10] = 5.0;
            let found = checker.check(Inputs::new(&a), &c).unwrap().unwrap();
            assert_eq!((found.item, found.row, found.col), (1, 1, 1));
            let projections =
                Projections::<Quantized>::new(&reals, Some(b.erased()), 2, &mut Random::new(1)).unwrap();
            projections.constant.unwrap().len()
        };
        assert_eq!([sides(1), sides(2)], [1, 2]);
    }
}
