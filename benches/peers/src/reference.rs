//! The float64 product that every candidate's numbers are compared with.

use ane_matmul::Activation;

use crate::operands::{Narrow, Operands};
use crate::shapes::Shape;

/// The unit roundoff of f32.
pub(crate) const UNIT: f64 = 1.0 / (1u32 << 24) as f64;

/// What is allowed of f64 for each term: its own rounding, and that of this reference.
const UNIT_F64: f64 = f64::EPSILON;

/// What evaluating a GELU in f32 may add, relative to its argument.
const GELU_ERROR: f64 = 2e-6;

/// The largest slope of GELU.
const GELU_SLOPE: f64 = 1.13;

/// Multiplications that a check may take; larger products are checked on rows spread over C, and
/// all of them against one random vector.
const CHECKED_PRODUCTS: usize = 1 << 24;

struct Row {
    index: usize,
    sums: Vec<f64>,
    magnitudes: Vec<f64>,
}

/// Rows of the exact product, and sums of all of its rows with random signs.
pub(crate) struct Reference {
    shape: Shape,
    rows: Vec<Row>,
    bias: Vec<f64>,
    signs: Vec<f64>,
    signed_sums: Vec<f64>,
    signed_magnitudes: Vec<f64>,
}

impl Reference {
    pub(crate) fn new(operands: &Operands) -> Self {
        let shape = operands.shape;
        let Shape { batch, m, n, k } = shape;
        let (a, b) = (operands.a.as_slice(), operands.b[0].as_slice());
        let row = |index: usize| exact_row(index, a, &b[index / m * k * n..][..k * n], n, k);
        let rows = checked_rows(shape).into_iter().map(row).collect();
        let signs: Vec<f64> = (0..n).map(|j| if (j * j + j / 3) % 5 < 2 { -1.0 } else { 1.0 }).collect();
        let dot = |row: &[f32]| row.iter().zip(&signs).map(|(&x, s)| f64::from(x) * s).sum::<f64>();
        let b_signed: Vec<f64> = b.chunks_exact(n).map(dot).collect();
        let b_total: Vec<f64> =
            b.chunks_exact(n).map(|row| row.iter().map(|&x| f64::from(x.abs())).sum()).collect();
        let mut signed_sums = vec![0.0; batch * m];
        let mut signed_magnitudes = vec![0.0; batch * m];
        for (i, row) in a.chunks_exact(k).enumerate() {
            let first = i / m * k;
            for ((&x, signed), total) in row.iter().zip(&b_signed[first..]).zip(&b_total[first..]) {
                signed_sums[i] += f64::from(x) * signed;
                signed_magnitudes[i] += f64::from(x.abs()) * total;
            }
        }
        let bias = operands.bias.as_slice().iter().map(|&x| f64::from(x)).collect();
        Self { shape, rows, bias, signs, signed_sums, signed_magnitudes }
    }

    /// The largest error of `c` relative to |A||B|, or what is wrong with `c`; `c_unit` is the unit
    /// roundoff of the type in which it was stored.
    pub(crate) fn check(&self, c: &[f32], fused: bool, c_unit: f64) -> Result<f64, String> {
        if fused { self.check_fused(c) } else { self.check_plain(c, UNIT, c_unit) }
    }

    /// [`Reference::check`] of the C that a product of these operands has written.
    pub(crate) fn check_operands(
        &self,
        operands: &Operands,
        fused: bool,
        c_unit: f64,
    ) -> Result<f64, String> {
        match &operands.narrow {
            Narrow::F64(wide) => self.check_plain(wide.c.as_slice(), UNIT_F64, UNIT_F64),
            _ => self.check(operands.c.as_slice(), fused, c_unit),
        }
    }

    fn check_plain<T: Copy + Into<f64>>(&self, c: &[T], unit: f64, c_unit: f64) -> Result<f64, String> {
        let Shape { n, k, .. } = self.shape;
        // Higham, Accuracy and Stability of Numerical Algorithms, 3.5, and the rounding of C.
        let bound = k as f64 * unit / (1.0 - k as f64 * unit) + c_unit;
        let mut worst = 0f64;
        for row in &self.rows {
            let got = &c[row.index * n..][..n];
            for (j, ((&got, sum), magnitude)) in got.iter().zip(&row.sums).zip(&row.magnitudes).enumerate() {
                let error = (got.into() - sum).abs() / magnitude.max(f64::MIN_POSITIVE);
                check_bound(error, bound, row.index, j)?;
                worst = worst.max(error);
            }
        }
        for (i, got) in c.chunks_exact(n).enumerate() {
            let signed: f64 = got.iter().zip(&self.signs).map(|(&x, s)| x.into() * s).sum();
            let error =
                (signed - self.signed_sums[i]).abs() / self.signed_magnitudes[i].max(f64::MIN_POSITIVE);
            if error.is_nan() || error > bound {
                return Err(format!(
                    "row {i} is wrong: its signed sum is off by {error:.1e}, bound {bound:.1e}"
                ));
            }
        }
        Ok(worst)
    }

    fn check_fused(&self, c: &[f32]) -> Result<f64, String> {
        let Shape { n, k, .. } = self.shape;
        let bound = GELU_SLOPE * (k + 3) as f64 * UNIT + GELU_ERROR;
        let mut worst = 0f64;
        for row in &self.rows {
            for (j, &got) in c[row.index * n..][..n].iter().enumerate() {
                let exact = Activation::Gelu.apply_f64(row.sums[j] + self.bias[j]);
                let error = (f64::from(got) - exact).abs() / (row.magnitudes[j] + self.bias[j].abs());
                check_bound(error, bound, row.index, j)?;
                worst = worst.max(error);
            }
        }
        Ok(worst)
    }
}

fn check_bound(error: f64, bound: f64, row: usize, col: usize) -> Result<(), String> {
    if error.is_nan() || error > bound {
        return Err(format!("C[{row}, {col}] is off by {error:.1e} of |A||B|, bound {bound:.1e}"));
    }
    Ok(())
}

fn checked_rows(shape: Shape) -> Vec<usize> {
    let rows = shape.batch * shape.m;
    let count = (CHECKED_PRODUCTS / (shape.n * shape.k)).clamp(4, rows.max(4)).min(rows);
    if count == rows {
        return (0..count).collect();
    }
    // From the first to the last.
    (0..count).map(|i| i * (rows - 1) / (count - 1)).collect()
}

fn exact_row(index: usize, a: &[f32], b: &[f32], n: usize, k: usize) -> Row {
    let mut row = Row { index, sums: vec![0.0; n], magnitudes: vec![0.0; n] };
    for (&x, b_row) in a[index * k..][..k].iter().zip(b.chunks_exact(n)) {
        let x = f64::from(x);
        for ((sum, magnitude), &y) in row.sums.iter_mut().zip(&mut row.magnitudes).zip(b_row) {
            let product = x * f64::from(y);
            *sum += product;
            *magnitude += product.abs();
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::{Case, Precision};

    fn operands(shape: Shape) -> Operands {
        let case = Case { precision: Precision::F32, shape, threads: 1, cold: false };
        Operands::new(&case, 1).unwrap()
    }

    fn product(operands: &Operands) -> Vec<f32> {
        let Shape { batch, m, n, k } = operands.shape;
        let (a, b) = (operands.a.as_slice(), operands.b[0].as_slice());
        let element = |index: usize| {
            let (i, j) = (index / n, index % n);
            let b = &b[i / m * k * n..];
            (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum::<f64>() as f32
        };
        (0..batch * m * n).map(element).collect()
    }

    #[test]
    fn right_results_pass_and_wrong_ones_do_not() {
        let operands = operands(Shape::new(5, 7, 9));
        let reference = Reference::new(&operands);
        let mut c = product(&operands);
        assert!(reference.check(&c, false, UNIT).is_ok_and(|error| error < 1e-6));
        c[12] += 0.01;
        assert!(reference.check(&c, false, UNIT).is_err_and(|message| message.contains("C[1, 5]")));
        c[12] = f32::NAN;
        assert!(reference.check(&c, false, UNIT).is_err());
    }

    #[test]
    fn a_wrong_row_between_the_checked_ones_shows() {
        let operands = operands(Shape::new(4000, 128, 128));
        let reference = Reference::new(&operands);
        assert!(reference.rows.len() < 4000);
        let mut c = product(&operands);
        assert!(reference.check(&c, false, UNIT).is_ok());
        let unchecked = (0..4000).find(|i| reference.rows.iter().all(|row| row.index != *i)).unwrap();
        c[unchecked * 128..][..128].fill(0.0);
        assert!(reference.check(&c, false, UNIT).is_err());
    }

    #[test]
    fn every_item_of_a_batch_has_its_own_b() {
        let operands = operands(Shape::new(5, 7, 9).batch(3));
        let reference = Reference::new(&operands);
        let mut c = product(&operands);
        assert!(reference.check(&c, false, UNIT).is_ok());
        let (first, others) = c.split_at_mut(35);
        others[..35].copy_from_slice(first);
        assert!(reference.check(&c, false, UNIT).is_err_and(|message| message.contains("C[5, 0]")));
    }

    #[test]
    fn the_epilogue_is_checked() {
        let operands = operands(Shape::new(3, 4, 5));
        let reference = Reference::new(&operands);
        let plain = product(&operands);
        let fused: Vec<f32> = plain
            .iter()
            .enumerate()
            .map(|(i, &x)| Activation::Gelu.apply_f64(f64::from(x + operands.bias.as_slice()[i % 4])) as f32)
            .collect();
        assert!(reference.check(&fused, true, UNIT).is_ok());
        assert!(reference.check(&plain, true, UNIT).is_err());
    }

    #[test]
    fn checked_rows_reach_both_ends() {
        let rows = checked_rows(Shape::new(2048, 2048, 2048));
        assert_eq!((rows[0], rows[rows.len() - 1]), (0, 2047));
        assert_eq!(checked_rows(Shape::new(1, 3072, 768)), [0]);
        assert_eq!(checked_rows(Shape::new(3, 40_000, 40_000)), [0, 1, 2]);
    }
}
