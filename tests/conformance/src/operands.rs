//! The operands of a case.

use ane_matmul::{
    AnyView, Error, Inputs, Layout, MatMul, NibbleOrder, Product, QuantA, QuantB, QuantOutput, Weights,
};
use fastrand::Rng;

use crate::cases::Case;
use crate::data::{GUARD, Guarded, normal, number, with_rows};
use crate::run::Failure;

impl Case {
    /// Elements of guard before each operand, and after it.
    pub(crate) const fn guard(&self) -> usize {
        if self.bare { 0 } else { GUARD }
    }
}

pub(crate) struct Operands {
    pub(crate) a: Guarded,
    pub(crate) b: Guarded,
    pub(crate) bias: Option<Guarded>,
    pub(crate) residual: Option<Guarded>,
    /// What their numbers were drawn with.
    pub(crate) seed: u64,
}

impl Operands {
    pub(crate) fn new(case: &Case, product: &MatMul, rows: usize, seed: u64) -> Result<Self, Error> {
        let mut random = Rng::with_seed(seed);
        let types = case.types;
        let contents = case.contents;
        let full = *product.a();
        let (r, c) = if product.transpose_a() { (full.rows(), rows) } else { (rows, full.cols()) };
        let a_layout = Layout::strided(full.batch(), r, c, full.leading_dimension(), full.batch_stride())?;
        let mut input = |element, layout, left| {
            Guarded::input(element, layout, case.quantization.nibble_order, case.guard(), |_, row, col| {
                number(element, contents, &mut random, left, row, col)
            })
        };
        // The identity must stay one when A is stored transposed, and it does.
        let a = input(types.a, a_layout, true);
        let b = input(types.b, *product.b(), false);
        let bias =
            case.bias.then(|| input(types.bias, Layout::packed(1, 1, product.n()).expect("a row"), false));
        let residual = product.residual().map(|full| input(types.output, with_rows(full, rows), false));
        Ok(Self { a, b, bias, residual, seed })
    }

    pub(crate) fn inputs(&self, constant_b: bool) -> Inputs<'_> {
        let mut inputs = Inputs::new(self.a.view());
        if !constant_b {
            inputs = inputs.b(self.b.view());
        }
        if let Some(bias) = &self.bias {
            inputs = inputs.bias(bias.view());
        }
        if let Some(residual) = &self.residual {
            inputs = inputs.residual(residual.view());
        }
        inputs
    }

    pub(crate) fn bits(&self) -> Vec<Vec<u64>> {
        [Some(&self.a), Some(&self.b), self.bias.as_ref(), self.residual.as_ref()]
            .into_iter()
            .flatten()
            .map(Guarded::bits)
            .collect()
    }
}

/// What is compiled: with its B, or without.
///
/// # Errors
/// Where weights say something else of B than the case.
pub(crate) fn whole(case: &Case, b: AnyView<'_>, seed: u64) -> Result<Box<dyn Product>, Failure> {
    let product = case.describe()?;
    if !case.constant_b {
        return Ok(Box::new(product));
    }
    let whole = case.describe_with(&weights(case, &product, b, seed)?)?;
    if *whole.product() != product {
        return Err(Failure::Wrong(format!("its weights make it {:?}", whole.product())));
    }
    Ok(Box::new(whole))
}

/// B with scales of the described type.
fn weights(case: &Case, product: &MatMul, b: AnyView<'_>, seed: u64) -> Result<Weights, Error> {
    let weights = Weights::new(b)?;
    let weights = if product.transpose_b() { weights.transposed()? } else { weights };
    let scheme = product.quantization().b;
    let (rows, cols) = match scheme {
        QuantB::PerTensor { .. } => (1, 1),
        QuantB::PerColumn { .. } => (1, product.n()),
        QuantB::PerGroup { group_size, .. } => (product.k().div_ceil(group_size as usize), product.n()),
        _ => return Ok(weights),
    };
    let mut random = Rng::with_seed(!seed);
    let own = case.scales_of_items.unwrap_or(product.b().batch_stride() != 0);
    let items = if own { product.b().batch() } else { 1 };
    let layout = Layout::packed(items, rows, cols)?;
    let scales =
        Guarded::input(product.types().scales, layout, NibbleOrder::LowFirst, case.guard(), |_, _, _| {
            0.002 + 0.02 * normal(&mut random).abs()
        });
    weights.with_scales(scheme, scales.view())
}

/// The case with scales of its description; C's fits the sums of random integers.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
pub(crate) fn with_scales(case: &Case, seed: u64) -> Case {
    let mut random = Rng::with_seed(seed ^ 0x5CA1E5);
    let mut around = |around: f64| (around * (0.5 + random.f64())) as f32;
    let mut case = case.clone();
    if let QuantA::Static { scale, .. } = &mut case.quantization.a {
        *scale = around(0.03);
    }
    if case.quantization.b != QuantB::None && !case.constant_b {
        case.quantization = case.quantization_with(around(0.02));
    }
    if let QuantOutput::Static { scale, .. } = &mut case.quantization.output {
        *scale = around(0.04 * (case.dims[3] as f64 + 1.0).sqrt());
    }
    case
}
