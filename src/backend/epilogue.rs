//! What follows the sums of a product, element by element, in f32.

use crate::backend::f32_only::f32_view;
use crate::description::activation::Activation;
use crate::description::layout::Layout;
use crate::description::matmul::MatMul;
use crate::operands::view::{AnyView, TensorView};

/// The epilogue of one run, for backends whose library computes sums only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    alpha: f32,
    activation: Activation,
    bias: Option<&'a [f32]>,
    residual: Option<TensorView<'a, f32>>,
}

impl<'a> Epilogue<'a> {
    /// `bias` and `residual` are f32, as backends that use this have checked in `supports`.
    pub(crate) fn new(product: &MatMul, bias: Option<AnyView<'a>>, residual: Option<AnyView<'a>>) -> Self {
        Self {
            alpha: product.alpha(),
            activation: product.activation(),
            bias: bias.and_then(f32_view).map(|view| view.data()),
            residual: residual.and_then(f32_view),
        }
    }

    /// Whether the sums are the result.
    pub(crate) fn is_identity(&self) -> bool {
        self.alpha.to_bits() == 1f32.to_bits()
            && self.activation == Activation::None
            && self.bias.is_none()
            && self.residual.is_none()
    }

    /// Turns the sums of columns `first_col..first_col + row.len()` of a row into results.
    pub(crate) fn apply(&self, item: usize, row_index: usize, first_col: usize, row: &mut [f32]) {
        let cols = first_col..first_col + row.len();
        if self.alpha.to_bits() != 1f32.to_bits() {
            for x in row.iter_mut() {
                *x *= self.alpha;
            }
        }
        let bias = self.bias.map(|bias| &bias[cols.clone()]);
        let residual = self.residual.and_then(|view| view.row(item, row_index)).map(|row| &row[cols]);
        for addend in [bias, residual].into_iter().flatten() {
            for (x, &y) in row.iter_mut().zip(addend) {
                *x += y;
            }
        }
        if self.activation != Activation::None {
            for x in row.iter_mut() {
                *x = self.activation.apply(*x);
            }
        }
    }

    /// The epilogue of a batch of products whose sums are all in `c`.
    pub(crate) fn apply_all(&self, c: &mut [f32], layout: &Layout) {
        if self.is_identity() {
            return;
        }
        for (item, row, span) in layout.row_spans() {
            self.apply(item, row, 0, &mut c[span]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::matmul::MatMulBuilder;

    fn applied(builder: MatMulBuilder, bias: Option<&[f32]>, residual: Option<&[f32]>) -> (bool, Vec<f32>) {
        let product = builder.build().unwrap();
        let bias = bias.map(|bias| TensorView::new(bias, 1, 2).unwrap().erased());
        let residual = residual
            .map(|data| TensorView::with_layout(data, *product.residual().unwrap()).unwrap().erased());
        let epilogue = Epilogue::new(&product, bias, residual);
        let mut c: Vec<f32> = (0..8u8).map(|i| f32::from(i) - 3.0).collect();
        epilogue.apply_all(&mut c, product.c());
        (epilogue.is_identity(), c)
    }

    #[test]
    fn each_part_of_an_epilogue_is_applied() {
        let plain = || MatMul::builder(2, 2, 3).batch(2);
        let residual = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0];
        assert_eq!(applied(plain(), None, None), (true, vec![-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]));
        let (identity, c) = applied(plain().alpha(-2.0), None, None);
        assert_eq!((identity, c), (false, vec![6.0, 4.0, 2.0, -0.0, -2.0, -4.0, -6.0, -8.0]));
        let (identity, c) = applied(plain().bias(true), Some(&[1.0, -1.0]), None);
        assert_eq!((identity, c), (false, vec![-2.0, -3.0, 0.0, -1.0, 2.0, 1.0, 4.0, 3.0]));
        let (identity, c) = applied(plain().residual(true), None, Some(&residual));
        assert_eq!((identity, c), (false, vec![7.0, 18.0, 29.0, 40.0, 51.0, 62.0, 73.0, 84.0]));
        let (identity, c) = applied(plain().activation(Activation::Relu), None, None);
        assert_eq!((identity, c), (false, vec![0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]));
    }

    #[test]
    fn some_columns_of_a_row_meet_their_own_bias_and_residual() {
        let product = MatMul::builder(2, 4, 3).alpha(0.5).bias(true).residual(true).build().unwrap();
        let residual: Vec<f32> = (0..8u8).map(f32::from).collect();
        let residual = TensorView::new(&residual, 2, 4).unwrap().erased();
        let bias = [10f32, 20.0, 30.0, 40.0];
        let bias = TensorView::new(&bias, 1, 4).unwrap().erased();
        let epilogue = Epilogue::new(&product, Some(bias), Some(residual));
        let mut row = [2.0, 4.0];
        epilogue.apply(0, 1, 2, &mut row);
        assert_eq!(row, [37.0, 49.0]);
    }
}
