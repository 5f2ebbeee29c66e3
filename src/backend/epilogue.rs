//! What follows the sums of a product, element by element, in f32.

use crate::activation::Activation;
use crate::backend::f32_only::f32_view;
use crate::layout::Layout;
use crate::matmul::MatMul;
use crate::view::{AnyView, TensorView};

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
