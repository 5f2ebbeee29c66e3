//! The description of a product: plain, validated data.

use std::fmt;

use crate::description::activation::Activation;
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::quantization::{QuantA, QuantB, QuantOutput, Quantization};
use crate::description::scales;
use crate::description::with_weights::{ConstantB, MatMulWithWeights};
use crate::error::{Error, Operand, Result};
use crate::operands::view::AnyView;
use crate::operands::weights::Weights;

/// The element types of a product's operands.
///
/// ```
/// use ane_matmul::{ElementType, ElementTypes, MatMul};
///
/// let types = ElementTypes { output: ElementType::Bf16, ..ElementTypes::BF16 };
/// let product = MatMul::builder(8, 64, 256).types(types).build()?;
/// assert_eq!((product.types().a, product.types().accumulator), (ElementType::Bf16, ElementType::F32));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ElementTypes {
    /// Of A.
    pub a: ElementType,
    /// Of B.
    pub b: ElementType,
    /// Of the sums over k.
    pub accumulator: ElementType,
    /// Of C and of the residual.
    pub output: ElementType,
    /// Of the bias.
    pub bias: ElementType,
    /// Of the scales of quantised operands.
    pub scales: ElementType,
}

impl ElementTypes {
    /// Everything in f32.
    pub const F32: Self = Self::uniform(ElementType::F32);
    /// Everything in f64.
    pub const F64: Self = Self::uniform(ElementType::F64);
    /// bf16 inputs, the rest in f32.
    pub const BF16: Self = Self { a: ElementType::Bf16, b: ElementType::Bf16, ..Self::F32 };
    /// f16 inputs, the rest in f32.
    pub const F16: Self = Self { a: ElementType::F16, b: ElementType::F16, ..Self::F32 };
    /// int8 inputs, sums in int32, f32 output, bias and scales.
    pub const INT8: Self =
        Self { a: ElementType::I8, b: ElementType::I8, accumulator: ElementType::I32, ..Self::F32 };

    /// The same type everywhere.
    #[must_use]
    pub const fn uniform(element: ElementType) -> Self {
        Self { a: element, b: element, accumulator: element, output: element, bias: element, scales: element }
    }
}

impl Default for ElementTypes {
    fn default() -> Self {
        Self::F32
    }
}

/// A matrix product of fixed dimensions: `C = activation(alpha * op(A) op(B) + bias + residual)`
/// for every item of a batch.
///
/// All matrices are row-major; `op(X)` is X or its transpose. A description is validated when it
/// is built, compares and hashes by value, and holds no data.
///
/// B comes with every run. Where it is known, bind it: [`MatMul::with_weights`], or [`crate::Linear`] for
/// a layer. The description of such a product ([`MatMul::constant_b`]) is a `MatMul` too, to ask about; without
/// its weights it is no product to compile or to check ([`Error::Missing`]).
///
/// ```
/// use ane_matmul::{Activation, BackendId, Inputs, MatMul, Tensor};
///
/// let product = MatMul::builder(2, 4, 3).bias(true).activation(Activation::Relu).build()?;
/// assert_eq!(product.to_string(), "2x4x3 f32 +bias relu");
///
/// let (a, b) = (Tensor::filled(2, 3, 1f32)?, Tensor::filled(3, 4, 2f32)?);
/// let mut c = Tensor::<f32>::zeros(2, 4)?;
/// let compiled = product.compile(&BackendId::CPU)?;
/// compiled.run(&Inputs::new(&a).b(&b).bias(&[-7f32, 0.0, 1.0, 2.0]), &mut c)?;
/// assert_eq!(c.data(), [0.0, 6.0, 7.0, 8.0, 0.0, 6.0, 7.0, 8.0]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MatMul {
    parameters: Parameters,
    residual: Option<Layout>,
    a: Layout,
    b: Layout,
    c: Layout,
}

/// What a [`MatMul`] and its builder both hold: all but the layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Parameters {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    transpose_a: bool,
    transpose_b: bool,
    constant_b: bool,
    variable_m: bool,
    bias: bool,
    types: ElementTypes,
    quantization: Quantization,
    /// An `f32`, compared and hashed by its bits.
    alpha_bits: u32,
    activation: Activation,
}

impl MatMul {
    /// Starts the description of a product of an `m` x `k` and a `k` x `n` matrix.
    pub fn builder(m: usize, n: usize, k: usize) -> MatMulBuilder {
        MatMulBuilder {
            parameters: Parameters {
                batch: 1,
                m,
                n,
                k,
                transpose_a: false,
                transpose_b: false,
                constant_b: false,
                variable_m: false,
                bias: false,
                types: ElementTypes::default(),
                quantization: Quantization::default(),
                alpha_bits: 1f32.to_bits(),
                activation: Activation::None,
            },
            residual: false,
            strides: [Strides::default(); 4],
        }
    }

    /// The plain f32 product of an `m` x `k` and a `k` x `n` matrix.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`].
    pub fn new(m: usize, n: usize, k: usize) -> Result<Self> {
        Self::builder(m, n, k).build()
    }

    /// The number of products in the batch.
    #[must_use]
    pub const fn batch(&self) -> usize {
        self.parameters.batch
    }

    /// The rows of op(A) and C: with [`MatMul::variable_m`] the largest number.
    #[must_use]
    pub const fn m(&self) -> usize {
        self.parameters.m
    }

    /// The columns of op(B) and C.
    #[must_use]
    pub const fn n(&self) -> usize {
        self.parameters.n
    }

    /// The columns of op(A) and rows of op(B).
    #[must_use]
    pub const fn k(&self) -> usize {
        self.parameters.k
    }

    /// Whether A is stored k x m.
    #[must_use]
    pub const fn transpose_a(&self) -> bool {
        self.parameters.transpose_a
    }

    /// Whether B is stored n x k.
    #[must_use]
    pub const fn transpose_b(&self) -> bool {
        self.parameters.transpose_b
    }

    /// Whether B is known when the product is compiled ([`MatMul::with_weights`]), instead of coming with
    /// every run.
    #[must_use]
    pub const fn constant_b(&self) -> bool {
        self.parameters.constant_b
    }

    /// Whether a run may use fewer rows than [`MatMul::m`].
    #[must_use]
    pub const fn variable_m(&self) -> bool {
        self.parameters.variable_m
    }

    /// Whether every run adds a bias of n elements to each row.
    #[must_use]
    pub const fn has_bias(&self) -> bool {
        self.parameters.bias
    }

    /// The layout of the matrix added to the product, if there is one.
    #[must_use]
    pub const fn residual(&self) -> Option<&Layout> {
        self.residual.as_ref()
    }

    /// The layout of A as stored.
    #[must_use]
    pub const fn a(&self) -> &Layout {
        &self.a
    }

    /// The layout of B as stored.
    #[must_use]
    pub const fn b(&self) -> &Layout {
        &self.b
    }

    /// The layout of C.
    #[must_use]
    pub const fn c(&self) -> &Layout {
        &self.c
    }

    /// The element types.
    #[must_use]
    pub const fn types(&self) -> &ElementTypes {
        &self.parameters.types
    }

    /// The quantisation scheme.
    #[must_use]
    pub const fn quantization(&self) -> &Quantization {
        &self.parameters.quantization
    }

    /// The factor of the product.
    #[must_use]
    pub const fn alpha(&self) -> f32 {
        self.parameters.alpha()
    }

    /// The function applied last.
    #[must_use]
    pub const fn activation(&self) -> Activation {
        self.parameters.activation
    }

    /// The floating-point operations of one run at full m: `2 * batch * m * n * k`.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a figure to divide by, not an index")]
    pub fn flops(&self) -> f64 {
        let Parameters { batch, m, n, k, .. } = self.parameters;
        2.0 * batch as f64 * m as f64 * n as f64 * k as f64
    }

    /// Whether all operands and sums are f32.
    pub(crate) fn has_f32_types(&self) -> bool {
        self.has_types(ElementType::F32)
    }

    fn has_types(&self, element: ElementType) -> bool {
        let types = self.types();
        let bias = if self.has_bias() { types.bias } else { element };
        (ElementTypes { bias, scales: element, ..*types }) == ElementTypes::uniform(element)
    }

    /// Whether this is a product of f64 alone, with nothing quantised.
    pub(crate) fn is_f64(&self) -> bool {
        self.has_types(ElementType::F64) && *self.quantization() == Quantization::default()
    }

    /// Whether this is a product of f32 alone, with nothing quantised.
    pub(crate) fn is_f32(&self) -> bool {
        self.has_f32_types() && *self.quantization() == Quantization::default()
    }

    /// This product with a B of its own, given once: see [`MatMulBuilder::with_weights`].
    ///
    /// ```
    /// use ane_matmul::{BackendId, MatMul, Tensor, Weights};
    ///
    /// let weights = Weights::from_tensor(Tensor::filled(3, 4, 2f32)?);
    /// let compiled = MatMul::new(2, 4, 3)?.with_weights(&weights)?.compile(&BackendId::CPU)?;
    /// let c = compiled.run_to_tensor(&Tensor::filled(2, 3, 1f32)?)?;
    /// assert_eq!(c.data(), [6.0; 8]);
    /// # Ok::<(), ane_matmul::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`MatMulBuilder::with_weights`].
    pub fn with_weights(&self, weights: &Weights) -> Result<MatMulWithWeights> {
        self.to_builder().with_weights(weights)
    }

    fn to_builder(&self) -> MatMulBuilder {
        let residual = self.residual.as_ref().map(Strides::of);
        MatMulBuilder {
            parameters: self.parameters,
            residual: residual.is_some(),
            strides: [
                Strides::of(&self.a),
                Strides::of(&self.b),
                Strides::of(&self.c),
                residual.unwrap_or_default(),
            ],
        }
    }

    /// The same product with a bias of this type in every run.
    pub(crate) fn with_bias_of(&self, element: ElementType) -> Result<Self> {
        let mut builder = self.to_builder().bias(true);
        builder.parameters.types.bias = element;
        builder.build()
    }

    /// The same product as `self` without bias, residual and activation, all else equal.
    #[must_use]
    pub fn linear_part(&self) -> Self {
        let parameters = Parameters { bias: false, activation: Activation::None, ..self.parameters };
        Self { parameters, residual: None, ..self.clone() }
    }

    /// The same product with the rows of all items as those of one, where the items share B and their rows lie evenly
    /// behind one another. Fewer rows of each item than m would not.
    pub(crate) fn as_rows(&self) -> Option<Self> {
        let parameters = &self.parameters;
        let shared = parameters.batch > 1 && self.b.batch_stride() == 0 && !self.c.is_empty();
        if !shared || parameters.transpose_a || parameters.variable_m {
            return None;
        }
        let c = self.c.as_rows()?;
        let residual = match self.residual {
            Some(residual) => Some(residual.as_rows()?),
            None => None,
        };
        let parameters = Parameters { batch: 1, m: c.rows(), ..*parameters };
        Some(Self { parameters, residual, a: self.a.as_rows()?, b: self.b.first_item(), c })
    }

    /// The layout of A for a run with `m` rows.
    pub(crate) const fn a_for(&self, m: usize) -> Layout {
        if self.parameters.transpose_a { self.a.with_cols(m) } else { self.a.with_rows(m) }
    }

    /// The layout of C for a run with `m` rows.
    pub(crate) const fn c_for(&self, m: usize) -> Layout {
        self.c.with_rows(m)
    }
}

impl fmt::Display for MatMul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parameters = &self.parameters;
        let Parameters { m, n, k, types, .. } = parameters;
        if parameters.batch != 1 {
            write!(f, "{} x ", parameters.batch)?;
        }
        write!(f, "{m}x{n}x{k} {}", types.a)?;
        for (set, text) in [
            (types.b != types.a, format!(" x {}", types.b)),
            (types.output != types.a, format!(" -> {}", types.output)),
            (parameters.transpose_a, " A^T".into()),
            (parameters.transpose_b, " B^T".into()),
            (parameters.constant_b, " constant B".into()),
            (parameters.variable_m, " variable m".into()),
            (parameters.alpha_bits != 1f32.to_bits(), format!(" alpha {}", parameters.alpha())),
            (parameters.bias, " +bias".into()),
            (self.residual.is_some(), " +residual".into()),
            (parameters.activation != Activation::None, format!(" {}", parameters.activation)),
        ] {
            if set {
                f.write_str(&text)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Strides {
    leading_dimension: Option<usize>,
    batch_stride: Option<usize>,
}

/// Collects the parts of a [`MatMul`]; every setter has a default.
///
/// ```
/// use ane_matmul::{Activation, MatMul, Operand};
///
/// let product = MatMul::builder(8, 64, 256)
///     .batch(3)
///     .transpose_a(true)
///     .batch_stride(Operand::B, 0) // the items share one B
///     .activation(Activation::Silu)
///     .build()?;
/// assert_eq!((product.a().rows(), product.a().cols()), (256, 8)); // as stored
/// assert_eq!(product.to_string(), "3 x 8x64x256 f32 A^T silu");
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until build() is called"]
pub struct MatMulBuilder {
    parameters: Parameters,
    residual: bool,
    strides: [Strides; 4],
}

impl Strides {
    const fn of(layout: &Layout) -> Self {
        Self {
            leading_dimension: Some(layout.leading_dimension()),
            batch_stride: Some(layout.batch_stride()),
        }
    }
}

fn strides_index(operand: Operand) -> Option<usize> {
    match operand {
        Operand::A => Some(0),
        Operand::B => Some(1),
        Operand::C => Some(2),
        Operand::Residual => Some(3),
        Operand::Bias | Operand::Scales => None,
    }
}

impl MatMulBuilder {
    /// The number of products; 1 by default.
    pub const fn batch(mut self, batch: usize) -> Self {
        self.parameters.batch = batch;
        self
    }

    /// A is stored k x m.
    pub const fn transpose_a(mut self, transpose: bool) -> Self {
        self.parameters.transpose_a = transpose;
        self
    }

    /// B is stored n x k.
    pub const fn transpose_b(mut self, transpose: bool) -> Self {
        self.parameters.transpose_b = transpose;
        self
    }

    /// B is known when the product is compiled. Outside of the crate a description says so by its type:
    /// [`MatMulBuilder::with_weights`], [`MatMulBuilder::build_constant_b`].
    pub(crate) const fn constant(mut self, constant: bool) -> Self {
        self.parameters.constant_b = constant;
        self
    }

    /// A run may use fewer rows than m, without repacking; m becomes the largest number.
    pub const fn variable_m(mut self, variable: bool) -> Self {
        self.parameters.variable_m = variable;
        self
    }

    /// Every run adds a vector of n elements to each row.
    pub const fn bias(mut self, bias: bool) -> Self {
        self.parameters.bias = bias;
        self
    }

    /// Every run adds a matrix of C's shape and type before the activation.
    pub const fn residual(mut self, residual: bool) -> Self {
        self.residual = residual;
        self
    }

    /// The leading dimension of an operand as stored, in elements; by default its columns.
    ///
    /// It has no meaning for bias and scales, where it is ignored.
    pub fn leading_dimension(mut self, operand: Operand, elements: usize) -> Self {
        if let Some(index) = strides_index(operand) {
            self.strides[index].leading_dimension = Some(elements);
        }
        self
    }

    /// The distance between items of the batch, in elements; by default rows x leading dimension.
    /// 0 shares one matrix among all items, which C may not.
    ///
    /// It has no meaning for bias and scales, where it is ignored.
    pub fn batch_stride(mut self, operand: Operand, elements: usize) -> Self {
        if let Some(index) = strides_index(operand) {
            self.strides[index].batch_stride = Some(elements);
        }
        self
    }

    /// The element types; [`ElementTypes::F32`] by default.
    pub const fn types(mut self, types: ElementTypes) -> Self {
        self.parameters.types = types;
        self
    }

    /// The quantisation; none by default.
    pub const fn quantization(mut self, quantization: Quantization) -> Self {
        self.parameters.quantization = quantization;
        self
    }

    /// The factor of the product; 1 by default. It is an f32 in products of f64 too, which multiply by that number. 0 multiplies like any other number: it does not
    /// hide NaN or infinity in A and B.
    pub const fn alpha(mut self, alpha: f32) -> Self {
        self.parameters.alpha_bits = alpha.to_bits();
        self
    }

    /// The function applied last; none by default.
    pub const fn activation(mut self, activation: Activation) -> Self {
        self.parameters.activation = activation;
        self
    }

    /// Validates the description of a product with a B of its own, given once.
    ///
    /// Of B the weights decide: type, scheme, how and in which strides it is stored. One matrix is shared by
    /// all items of a batch. What the description says of them must not contradict: a transpose that the
    /// weights do not have, another scheme. All scales of a product have one type: with f16 scales of weights
    /// ([`crate::quantize::WeightScheme::INT8`]) static scales of A and C are rounded to f16 too.
    ///
    /// # Errors
    /// As [`MatMulBuilder::build`]; [`Error::Shape`] where the weights are not k x n, or neither one matrix
    /// nor as many as the batch has items.
    pub fn with_weights(mut self, weights: &Weights) -> Result<MatMulWithWeights> {
        let parameters = &mut self.parameters;
        if parameters.transpose_b && !weights.is_transposed() {
            return Err(Error::Description {
                problem: "the description says that B is stored n x k, its weights that it is stored k x n"
                    .into(),
                help: "say it once, of the weights: Weights::transposed",
            });
        }
        let scheme = parameters.quantization.b;
        if scheme != QuantB::None && scheme != weights.scheme() {
            return Err(Error::Description {
                problem: format!("B is described with {scheme:?}, its weights with {:?}", weights.scheme()),
                help: if weights.scheme() == QuantB::None {
                    "give the weights their scheme and scales: Weights::with_scales"
                } else {
                    "leave Quantization::b out: the weights have a scheme of their own"
                },
            });
        }
        let layout = weights.layout();
        if (weights.k(), weights.n()) != (parameters.k, parameters.n)
            || ![1, parameters.batch].contains(&layout.batch())
        {
            let swapped = (weights.n(), weights.k()) == (parameters.k, parameters.n);
            let help = if swapped && parameters.k != parameters.n {
                "their transpose would fit: Weights::transposed"
            } else {
                "describe the product with the dimensions of its weights, as m, n, k"
            };
            return Err(Error::Shape {
                operand: Operand::B,
                expected: format!(
                    "k x n = {} x {}, for a batch of {}",
                    parameters.k, parameters.n, parameters.batch
                ),
                got: format!("{} x {}, {} of them", weights.k(), weights.n(), layout.batch()),
                help,
            });
        }
        parameters.transpose_b = weights.is_transposed();
        parameters.types.b = weights.element_type();
        parameters.quantization.b = weights.scheme();
        if let Some(scales) = weights.scales() {
            parameters.types.scales = scales.element_type();
        }
        if let AnyView::Int4(view) = weights.view() {
            parameters.quantization.nibble_order = view.nibble_order();
        }
        self.strides[1] = Strides::of(&layout.broadcast(parameters.batch));
        Ok(MatMulWithWeights::new(self.constant(true).build()?, weights))
    }

    /// Validates the description of a product whose B will be known when it is compiled, before there are
    /// weights: to ask [`crate::explain`], [`crate::Backends::supports`] or [`crate::probe`] about.
    ///
    /// # Errors
    /// As [`MatMulBuilder::build`].
    pub fn build_constant_b(self) -> Result<ConstantB> {
        self.constant(true).build().map(ConstantB)
    }

    /// Validates the description.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], [`Error::LeadingDimension`], [`Error::Accumulator`] when a sum over
    /// k could overflow an integer accumulator, [`Error::Scale`], and [`Error::Description`] for the rest:
    /// items of C that overlap, a factor that is not finite, contradictory types or quantisation.
    pub fn build(mut self) -> Result<MatMul> {
        let Parameters { batch, m, n, k, transpose_a, transpose_b, .. } = self.parameters;
        let (rows_a, cols_a) = if transpose_a { (k, m) } else { (m, k) };
        let (rows_b, cols_b) = if transpose_b { (n, k) } else { (k, n) };
        let a = self.layout(0, rows_a, cols_a)?;
        let b = self.layout(1, rows_b, cols_b)?;
        let c = self.layout(2, m, n)?;
        let residual = if self.residual { Some(self.layout(3, m, n)?) } else { None };
        if batch > 1 && c.batch_stride() < c.item_span() {
            return Err(Error::Description {
                problem: format!(
                    "items of C overlap: batch stride {} for {} elements each",
                    c.batch_stride(),
                    c.item_span()
                ),
                help: "give C a batch stride of at least rows x leading dimension",
            });
        }
        let alpha = self.parameters.alpha();
        if !alpha.is_finite() {
            return Err(Error::Description {
                problem: format!("alpha is {alpha}"),
                help: "pass a finite factor",
            });
        }
        self.parameters.check_types()?;
        self.parameters.check_scales()?;
        self.parameters.check_accumulator()?;
        Ok(MatMul { parameters: self.parameters, residual, a, b, c })
    }

    fn layout(&self, index: usize, rows: usize, cols: usize) -> Result<Layout> {
        let strides = self.strides[index];
        let leading_dimension = strides.leading_dimension.unwrap_or(cols);
        let batch_stride = match strides.batch_stride {
            Some(stride) => stride,
            None => rows
                .checked_mul(leading_dimension)
                .ok_or(Error::SizeOverflow { what: "rows x leading dimension" })?,
        };
        Layout::strided(self.parameters.batch, rows, cols, leading_dimension, batch_stride)
    }
}

impl Parameters {
    const fn alpha(&self) -> f32 {
        f32::from_bits(self.alpha_bits)
    }

    fn check_types(&self) -> Result<()> {
        let types = &self.types;
        let quantization = &self.quantization;
        let problem = |problem: String, help| Err(Error::Description { problem, help });
        let all = [types.a, types.b, types.accumulator, types.output, types.bias, types.scales];
        if let Some(element) =
            all.into_iter().find(|element| matches!(element, ElementType::I64 | ElementType::Bool))
        {
            return problem(format!("elements of type {element}"), "only graphs have them");
        }
        if types.a.is_float() && types.b.is_float() && !types.accumulator.is_float() {
            return problem(
                format!("{} x {} cannot be summed in {}", types.a, types.b, types.accumulator),
                "use a floating-point accumulator",
            );
        }
        if self.bias && !types.bias.is_float() && types.bias != ElementType::I32 {
            return problem(format!("a bias of type {}", types.bias), "use a floating-point or i32 bias");
        }
        if let QuantA::Static { zero_point, .. } = quantization.a {
            check_zero_point(Operand::A, types.a, zero_point)?;
        }
        if quantization.a == QuantA::DynamicPerRow && !types.a.is_float() {
            return problem(
                format!("A of type {} cannot be quantised per row at run time", types.a),
                "pass a floating-point A or a static scale",
            );
        }
        check_scheme(types.b, quantization.b)?;
        if let QuantOutput::Static { zero_point, .. } = quantization.output {
            check_zero_point(Operand::C, types.output, zero_point)?;
        }
        Ok(())
    }

    /// Scales positive, finite, and rounded to their type, where the B that they are for has them.
    fn check_scales(&mut self) -> Result<()> {
        let b = self.quantization.b;
        if !self.constant_b && b.is_of_weights() {
            return Err(Error::Description {
                problem: format!("B comes with every run and has {b:?}"),
                help: "give it one scale (QuantB::Static), or bind weights that have theirs (MatMul::with_weights)",
            });
        }
        if self.constant_b && matches!(b, QuantB::Static { .. }) {
            return Err(Error::Description {
                problem: "a constant B has a scale in the description".into(),
                help: "add it to the weights: Weights::with_scales",
            });
        }
        let element = self.types.scales;
        let Quantization { a, b, output, .. } = &mut self.quantization;
        if let QuantA::Static { scale, .. } = a {
            *scale = scales::checked(*scale, element)?;
        }
        if let QuantB::Static { scale, .. } = b {
            *scale = scales::checked(*scale, element)?;
        }
        if let QuantOutput::Static { scale, .. } = output {
            let given = *scale;
            *scale = scales::checked(given, element)?;
            // The output is multiplied by the reciprocal, in f32.
            if !scale.recip().is_finite() {
                return Err(Error::Scale { index: 0, value: given, element });
            }
        }
        Ok(())
    }

    fn check_accumulator(&self) -> Result<()> {
        let types = &self.types;
        let magnitude_a = match self.quantization.a {
            // Quantised to -127 to 127 when the product runs.
            QuantA::DynamicPerRow => Some(127),
            QuantA::None | QuantA::Static { .. } => magnitude(types.a, self.quantization.a.zero_point()),
        };
        let (Some(a), Some(b)) = (magnitude_a, magnitude(types.b, self.quantization.b.zero_point())) else {
            return Ok(());
        };
        let limit = match types.accumulator {
            ElementType::I32 => i64::from(i32::MAX),
            accumulator if accumulator.is_float() => return Ok(()),
            accumulator => {
                return Err(Error::Description {
                    problem: format!("{} x {} cannot be summed in {accumulator}", types.a, types.b),
                    help: "use i32 or f32 as the accumulator",
                });
            }
        };
        let maximum = usize::try_from(limit / a.saturating_mul(b)).unwrap_or(usize::MAX);
        if self.k > maximum {
            return Err(Error::Accumulator {
                k: self.k,
                maximum,
                accumulator: types.accumulator,
                a: types.a,
                b: types.b,
            });
        }
        Ok(())
    }
}

/// The largest magnitude of an integer of the type, before and after its zero point is subtracted.
fn magnitude(element: ElementType, zero_point: i32) -> Option<i64> {
    let (low, high) = element.integer_range()?;
    let zero = i64::from(zero_point);
    Some(low.abs().max(high).max((low - zero).abs()).max((high - zero).abs()))
}

/// Checks that B's elements can be the integers of a scheme.
pub(crate) fn check_scheme(b: ElementType, scheme: QuantB) -> Result<()> {
    match scheme {
        QuantB::None => return Ok(()),
        QuantB::PerGroup { group_size: 0, .. } => {
            return Err(Error::Description {
                problem: "a group size of 0".into(),
                help: "use a group of at least one row, such as 128",
            });
        }
        _ => {}
    }
    check_zero_point(Operand::B, b, scheme.zero_point())
}

fn check_zero_point(operand: Operand, element: ElementType, zero_point: i32) -> Result<()> {
    match element.integer_range() {
        None => Err(Error::Description {
            problem: format!("{operand} of type {element} has a scale"),
            help: "quantised operands are integers: use i8, u8, i4 or u4",
        }),
        Some((low, high)) if !(low..=high).contains(&i64::from(zero_point)) => Err(Error::Description {
            problem: format!("{operand}: zero point {zero_point} is no {element} ({low} to {high})"),
            help: "use a zero point within the range of the type",
        }),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_may_be_summed_in_floats() {
        let types = ElementTypes { accumulator: ElementType::F32, ..ElementTypes::INT8 };
        assert!(MatMul::builder(2, 3, 4).types(types).build().is_ok());
        let types = ElementTypes { accumulator: ElementType::I8, ..ElementTypes::INT8 };
        assert!(MatMul::builder(2, 3, 4).types(types).build().is_err());
    }

    #[test]
    fn a_batch_with_one_b_is_a_product_of_its_rows() {
        let plain = || MatMul::builder(2, 3, 4).batch(5).batch_stride(Operand::B, 0).residual(true);
        let rows = plain().build().unwrap().as_rows().unwrap();
        assert_eq!((rows.batch(), rows.m(), rows.to_string()), (1, 10, "10x3x4 f32 +residual".into()));
        assert_eq!([rows.a(), rows.c(), rows.residual().unwrap()].map(Layout::rows), [10; 3]);
        for other in [
            plain().batch_stride(Operand::B, 12),
            plain().batch_stride(Operand::A, 9),
            plain().batch_stride(Operand::C, 7),
            plain().batch_stride(Operand::Residual, 0),
            plain().transpose_a(true),
            plain().variable_m(true),
            plain().batch(1),
            plain().batch(0),
        ] {
            let product = other.build().unwrap();
            assert_eq!(product.as_rows(), None, "{product}");
        }
    }
}
