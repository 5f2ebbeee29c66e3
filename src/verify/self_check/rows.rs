//! Rows of a product recomputed in float64.

use crate::alloc;
use crate::description::matmul::MatMul;
use crate::error::Result;
use crate::executor::Inputs;
use crate::operands::view::AnyView;
use crate::verify::accuracy::{Bounds, add_product, is_twofold, ratio, term_size, total};
use crate::verify::self_check::WrongElement;
use crate::verify::self_check::reals::{Reals, read};

/// One row in float64, with its error bounds.
#[derive(Debug)]
pub(super) struct Row {
    values: Vec<f64>,
    bounds: Vec<f64>,
    a: Vec<f64>,
    /// A run of B as stored.
    b: Vec<f64>,
    /// The sums of one group, those of their magnitudes, and the errors of the first.
    group: [Vec<f64>; 3],
}

impl Row {
    pub(super) fn new(product: &MatMul) -> Result<Self> {
        let room = |count| alloc::filled(count, 0.0, "a row in float64");
        let (n, k) = (product.n(), product.k());
        let per_group = if product.transpose_b() { 0 } else { n };
        Ok(Self {
            values: room(n)?,
            bounds: room(n)?,
            a: room(k)?,
            b: room(if product.transpose_b() { k } else { n })?,
            group: [room(per_group)?, room(per_group)?, room(per_group)?],
        })
    }

    /// Computes row `row` of item `item`; `b` is B as stored.
    pub(super) fn compute(
        &mut self,
        reals: &Reals,
        bounds: &Bounds,
        inputs: &Inputs<'_>,
        b: AnyView<'_>,
        (item, row): (usize, usize),
    ) -> &[f64] {
        self.values.fill(0.0);
        self.bounds.fill(0.0);
        let scale = reals.row_of_a(inputs.a_view(), item, row, &mut self.a);
        match (reals.product.transpose_b(), is_twofold(&reals.product)) {
            (true, true) => self.add_columns::<true>(reals, b, item),
            (true, false) => self.add_columns::<false>(reals, b, item),
            (false, true) => self.add_rows::<true>(reals, b, item),
            (false, false) => self.add_rows::<false>(reals, b, item),
        }
        for (col, (value, bound)) in self.values.iter_mut().zip(&mut self.bounds).enumerate() {
            let addend = |view: Option<AnyView<'_>>, item, row| {
                view.map(|view| view.get(item, row, col).unwrap_or(f64::NAN))
            };
            let bias = addend(inputs.bias_view(), 0, 0).unwrap_or(0.0);
            let residual = addend(inputs.residual_view(), item, row).map_or(0.0, |x| reals.residual(x));
            (*value, *bound) = bounds.element(*value * scale, *bound * scale, bias, residual);
            if let Some(output) = &reals.output {
                (*value, *bound) = output.round(*value, *bound);
            }
        }
        &self.values
    }

    /// The sums over k and those of the terms' magnitudes, of a B that is stored by rows.
    fn add_rows<const TWOFOLD: bool>(&mut self, reals: &Reals, b: AnyView<'_>, item: usize) {
        let Self { values, bounds, a, b: run, group: [sums, sizes, errors] } = self;
        for (group, a) in a.chunks(reals.group).enumerate() {
            sums.fill(0.0);
            sizes.fill(0.0);
            errors.fill(0.0);
            for (p, &a) in a.iter().enumerate() {
                read(b, item, group * reals.group + p, run);
                let sums = sums.iter_mut().zip(&mut *errors);
                for (((sum, error), size), &b) in sums.zip(sizes.iter_mut()).zip(&*run) {
                    add_product::<TWOFOLD>(sum, error, a, b - reals.zero);
                    *size += term_size::<TWOFOLD>(a, reals.magnitude(b));
                }
            }
            for (col, (value, bound)) in values.iter_mut().zip(&mut *bounds).enumerate() {
                let scale = reals.scale_of_b(item, group, col);
                *value += scale * total(sums[col], errors[col]);
                *bound += scale * sizes[col];
            }
        }
    }

    /// The same of a B that is stored by columns.
    fn add_columns<const TWOFOLD: bool>(&mut self, reals: &Reals, b: AnyView<'_>, item: usize) {
        for (col, (value, bound)) in self.values.iter_mut().zip(&mut self.bounds).enumerate() {
            read(b, item, col, &mut self.b);
            for (group, (a, b)) in self.a.chunks(reals.group).zip(self.b.chunks(reals.group)).enumerate() {
                let (mut sum, mut error, mut size) = (0.0, 0.0, 0.0);
                for (a, &b) in a.iter().zip(b) {
                    add_product::<TWOFOLD>(&mut sum, &mut error, *a, b - reals.zero);
                    size += term_size::<TWOFOLD>(*a, reals.magnitude(b));
                }
                let scale = reals.scale_of_b(item, group, col);
                *value += scale * total(sum, error);
                *bound += scale * size;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::self_check::tests::Integers;

    #[test]
    fn rows_of_integers_are_what_they_stand_for() {
        for numbers in Integers::all() {
            let mut row = Row::new(&numbers.product).unwrap();
            for (item, at) in [(0, 2), (1, 0), (1, 1)] {
                row.compute(&numbers.reals, &numbers.bounds, &numbers.inputs(), numbers.b(), (item, at));
                for col in 0..Integers::N {
                    let terms = |of_b: fn(&Integers, usize, usize, usize) -> f64| {
                        (0..Integers::K)
                            .map(move |p| (p, of_b))
                            .map(|(p, of_b)| (numbers.real_a(item, at, p), of_b(&numbers, item, p, col)))
                    };
                    let sum = terms(Integers::real_b).map(|(a, b)| a * b).sum();
                    let size = terms(Integers::size_b).map(|(a, b)| term_size::<false>(a, b)).sum();
                    let (bias, residual) = (numbers.bias(col), numbers.residual(item, at, col));
                    let (value, bound) = numbers.bounds.element(sum, size, bias, residual);
                    assert_eq!(row.values[col], value, "{}", numbers.product);
                    assert!((row.bounds[col] / bound - 1.0).abs() < 1e-9, "{}", numbers.product);
                }
            }
        }
    }
}
