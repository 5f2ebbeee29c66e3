//! What is multiplied.

use std::fmt;

use ane_matmul::{
    Activation, ElementType, ElementTypes, MatMul, MatMulBuilder, MatMulWithWeights, NibbleOrder, Operand,
    QuantB, Quantization, Result, Weights,
};

/// How much to run: emulators and interpreters are slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Every case.
    Full,
    /// Cases of at most some ten thousand multiplications.
    Small,
    /// A handful of each kind, for interpreters.
    Tiny,
}

/// What the operands hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Numbers from N(0, 1).
    Normal,
    /// Numbers from N(0, 0.02^2), as in the project's origin.
    Origin,
    /// Integers from -4 to 4: sums are exact, so results must be too.
    SmallIntegers,
    /// N(0, 1) with NaN, infinities and signed zeros strewn in.
    Special,
    /// Numbers whose products underflow to subnormals or zero.
    Tiny,
    /// The identity times ones.
    IdentityTimesOnes,
    /// The largest integers of A's type, the lowest of B's; of floats, 4 and -4.
    Extremes,
    /// The lowest integers of both types; of floats, -4.
    Lowest,
}

/// The strides of an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stride {
    /// No gaps.
    #[default]
    Packed,
    /// This many elements between rows, and more between items.
    Padded(usize),
    /// One matrix for all items.
    Shared,
}

/// Whose strides [`Case::strides`] has.
const STRIDED: [Operand; 4] = [Operand::A, Operand::B, Operand::C, Operand::Residual];

/// One product with its data.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Dimensions: batch, m, n, k.
    pub dims: [usize; 4],
    /// Transposes of A and B.
    pub transposes: [bool; 2],
    /// Strides of A, B, C and the residual.
    pub strides: [Stride; 4],
    /// The factor.
    pub alpha: f32,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether there is a residual.
    pub residual: bool,
    /// The activation.
    pub activation: Activation,
    /// Whether B is known when the product is compiled.
    pub constant_b: bool,
    /// The rows to run, where they are fewer than m.
    pub rows: Option<usize>,
    /// What the operands hold.
    pub contents: Contents,
    /// The element types.
    pub types: ElementTypes,
    /// The quantisation scheme. Scales are drawn when the case runs; where one scale belongs to a B that comes
    /// with every run, it is the description's.
    pub quantization: Quantization,
    /// Whether items of a batch have scales of B of their own; `None`: those that share no B.
    pub scales_of_items: Option<bool>,
    /// Whether operands are without guards, in memory that ends where they do.
    pub bare: bool,
}

impl Case {
    /// An f32 product of random numbers.
    pub fn new(m: usize, n: usize, k: usize) -> Self {
        Self {
            dims: [1, m, n, k],
            transposes: [false; 2],
            strides: [Stride::Packed; 4],
            alpha: 1.0,
            bias: false,
            residual: false,
            activation: Activation::None,
            constant_b: false,
            rows: None,
            contents: Contents::Normal,
            types: ElementTypes::F32,
            quantization: Quantization::default(),
            scales_of_items: None,
            bare: false,
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The description of the product.
    pub fn describe(&self) -> Result<MatMul> {
        let builder = self.builder(true).types(self.types).quantization(self.quantization_with(1.0));
        if self.constant_b { Ok(builder.build_constant_b()?.product().clone()) } else { builder.build() }
    }

    /// The product with its B, of which the weights alone say what they are.
    pub(crate) fn describe_with(&self, weights: &Weights) -> Result<MatMulWithWeights> {
        let types = ElementTypes { b: ElementType::F32, ..self.types };
        let mut quantization = Quantization { b: QuantB::None, ..self.quantization };
        if matches!(self.types.b, ElementType::I4 | ElementType::U4) {
            quantization.nibble_order = NibbleOrder::default();
        }
        self.builder(false).types(types).quantization(quantization).with_weights(weights)
    }

    /// The quantisation, with this scale of a B that comes with every run and has none yet.
    pub(crate) fn quantization_with(&self, scale_b: f32) -> Quantization {
        match self.quantization.b {
            QuantB::PerTensor { zero_point } if !self.constant_b => {
                Quantization { b: QuantB::Static { scale: scale_b, zero_point }, ..self.quantization }
            }
            _ => self.quantization,
        }
    }

    /// All but types and quantisation; without B's transpose and strides where its weights say them.
    fn builder(&self, of_b: bool) -> MatMulBuilder {
        let [batch, m, n, k] = self.dims;
        let [transpose_a, transpose_b] = self.transposes;
        let mut builder = MatMul::builder(m, n, k)
            .batch(batch)
            .transpose_a(transpose_a)
            .transpose_b(transpose_b && of_b)
            .variable_m(self.rows.is_some())
            .alpha(self.alpha)
            .bias(self.bias)
            .residual(self.residual)
            .activation(self.activation);
        let shapes = [
            if transpose_a { (k, m) } else { (m, k) },
            if transpose_b { (n, k) } else { (k, n) },
            (m, n),
            (m, n),
        ];
        for ((operand, (rows, cols)), stride) in STRIDED.into_iter().zip(shapes).zip(self.strides) {
            if operand == Operand::B && !of_b {
                continue;
            }
            match stride {
                Stride::Packed => {}
                Stride::Padded(gap) => {
                    builder = builder
                        .leading_dimension(operand, cols + gap)
                        .batch_stride(operand, rows * (cols + gap) + 2 * gap + 1);
                }
                Stride::Shared => builder = builder.batch_stride(operand, 0),
            }
        }
        builder
    }

    /// Whether small integers come out exactly: f16 holds integers up to 2048 only, bf16 up to 256.
    pub(crate) fn is_exact(&self) -> bool {
        let largest_k = match self.types.output {
            ElementType::F16 => 100,
            ElementType::Bf16 => 16,
            ElementType::I8 | ElementType::U8 => 0,
            _ => usize::MAX,
        };
        self.dims[3] <= largest_k
    }

    fn multiplications(&self) -> usize {
        self.dims.iter().product()
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Ok(product) => write!(f, "{product}")?,
            Err(error) => write!(f, "{error}")?,
        }
        write!(f, ", {:?}", self.contents)?;
        for (operand, stride) in STRIDED.into_iter().zip(self.strides) {
            if stride != Stride::Packed {
                write!(f, ", {operand} {stride:?}")?;
            }
        }
        if self.quantization != Quantization::default() {
            write!(f, ", {:?}, scales {}", self.quantization, self.types.scales)?;
        }
        if let Some(of_items) = self.scales_of_items {
            write!(f, ", of each item: {of_items}")?;
        }
        if let Some(rows) = self.rows {
            write!(f, ", {rows} rows")?;
        }
        Ok(())
    }
}

/// Every f32 case.
pub fn cases(scale: Scale) -> Vec<Case> {
    cases_of_type(ElementTypes::F32, scale)
}

/// Every case for operands of some floating-point type.
pub fn cases_of_type(types: ElementTypes, scale: Scale) -> Vec<Case> {
    let mut cases = Vec::new();
    shapes(&mut cases);
    layouts(&mut cases);
    epilogues(&mut cases);
    values(&mut cases);
    batches(&mut cases);
    fewer_rows(&mut cases);
    for case in &mut cases {
        case.types = types;
    }
    cases.retain(|case| case.contents != Contents::SmallIntegers || case.is_exact());
    match scale {
        Scale::Full => {}
        Scale::Small => cases.retain(|case| case.multiplications() <= 50_000),
        Scale::Tiny => {
            cases.retain(|case| case.multiplications() <= 1_000);
            cases = cases.into_iter().step_by(3).collect();
        }
    }
    cases
}

/// Sizes around register tiles and cache blocks, primes, zero, one, long sums.
fn shapes(cases: &mut Vec<Case>) {
    for size in (0..=17).chain([23, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129]) {
        cases.push(Case::new(size, size, size));
        cases.push(Case::new(size, size, size).with(|case| case.contents = Contents::SmallIntegers));
    }
    for (m, n, k) in [
        (0, 5, 3),
        (5, 0, 3),
        (5, 3, 0),
        (0, 0, 0),
        (1, 300, 200),
        (300, 1, 200),
        (1, 1, 1000),
        (2, 1, 7),
        (1, 2, 7),
        (16, 1, 1),
        (1, 16, 1),
        (5, 7, 1),
        (37, 41, 43),
        (6, 16, 256),
        (7, 17, 257),
        (5, 15, 255),
        (127, 129, 31),
        (3, 5, 10_007),
        (1, 1, 32_768),
        (17, 16, 4_099),
        (257, 300, 70),
        (100, 513, 33),
        (1025, 3, 5),
        (3, 1025, 5),
    ] {
        cases.push(Case::new(m, n, k));
        cases.push(Case::new(m, n, k).with(|case| case.contents = Contents::SmallIntegers));
    }
}

/// Transposes, leading dimensions, constant B; fewer rows than compiled for with a constant B and a bias.
fn layouts(cases: &mut Vec<Case>) {
    let shapes =
        [(17, 33, 9), (64, 48, 96), (1, 7, 5), (7, 1, 5), (1, 1, 9), (33, 65, 129), (2, 100, 3), (5, 3, 0)];
    for (m, n, k) in shapes {
        for bits in 0..4 {
            let case = Case::new(m, n, k).with(|case| {
                case.transposes = [bits & 1 != 0, bits & 2 != 0];
                case.contents = if bits == 1 { Contents::SmallIntegers } else { Contents::Normal };
            });
            for constant_b in [false, true] {
                for strides in [
                    [Stride::Packed; 4],
                    [Stride::Padded(3), Stride::Packed, Stride::Packed, Stride::Packed],
                    [Stride::Packed, Stride::Padded(5), Stride::Packed, Stride::Packed],
                    [Stride::Packed, Stride::Packed, Stride::Padded(1), Stride::Packed],
                    [Stride::Padded(16), Stride::Padded(1), Stride::Padded(7), Stride::Packed],
                ] {
                    cases.push(
                        case.clone().with(|case| (case.constant_b, case.strides) = (constant_b, strides)),
                    );
                }
            }
            for rows in [0, 1, m / 2, m.saturating_sub(1)] {
                cases.push(case.clone().with(|case| {
                    case.rows = Some(rows);
                    case.constant_b = true;
                    case.bias = true;
                }));
            }
        }
    }
}

/// Alpha, bias, residual and activation, alone and together.
fn epilogues(cases: &mut Vec<Case>) {
    for activation in Activation::ALL {
        for (m, n, k) in [(5, 19, 8), (33, 64, 17), (1, 40, 12), (40, 1, 12), (4, 6, 0)] {
            for bits in 0..4 {
                cases.push(Case::new(m, n, k).with(|case| {
                    case.activation = activation;
                    (case.bias, case.residual) = (bits & 1 != 0, bits & 2 != 0);
                    case.alpha = [1.0, 0.5, -1.25, 1.0][bits];
                    case.constant_b = bits == 3;
                }));
            }
        }
        cases.push(Case::new(9, 21, 14).with(|case| {
            case.activation = activation;
            (case.bias, case.residual) = (true, true);
            case.strides = [Stride::Padded(2), Stride::Packed, Stride::Padded(3), Stride::Padded(9)];
            case.transposes = [true, true];
        }));
    }
    cases.push(Case::new(6, 7, 8).with(|case| case.alpha = 0.0));
}

/// NaN, infinity, subnormals, the origin's data.
fn values(cases: &mut Vec<Case>) {
    for activation in Activation::ALL {
        cases.push(Case::new(23, 31, 11).with(|case| {
            case.contents = Contents::Special;
            case.activation = activation;
        }));
    }
    for (m, n, k) in [(1, 50, 20), (50, 1, 20), (8, 8, 8), (65, 49, 40)] {
        for bits in 0..8 {
            cases.push(Case::new(m, n, k).with(|case| {
                case.contents = Contents::Special;
                case.transposes = [bits & 1 != 0, bits & 2 != 0];
                case.constant_b = bits & 4 != 0;
                case.alpha = if bits == 6 { 0.0 } else { 1.0 };
            }));
        }
        cases.push(Case::new(m, n, k).with(|case| case.contents = Contents::Tiny));
    }
    for size in [4, 8, 16, 32, 64] {
        cases.push(Case::new(size, size, size).with(|case| case.contents = Contents::Origin));
        cases.push(Case::new(size, size, size).with(|case| case.contents = Contents::IdentityTimesOnes));
    }
}

/// Batches: packed, padded, shared operands, none at all.
fn batches(cases: &mut Vec<Case>) {
    use Stride::{Packed, Padded, Shared};
    for (batch, m, n, k) in
        [(3, 5, 7, 9), (2, 33, 17, 20), (7, 1, 12, 6), (4, 12, 1, 6), (0, 3, 4, 5), (5, 2, 3, 0)]
    {
        for strides in [
            [Packed; 4],
            [Shared, Packed, Packed, Packed],
            [Packed, Shared, Packed, Shared],
            [Shared, Shared, Padded(2), Packed],
            [Padded(1), Padded(4), Padded(3), Padded(5)],
        ] {
            for bits in 0..4 {
                cases.push(Case::new(m, n, k).with(|case| {
                    case.dims[0] = batch;
                    case.strides = strides;
                    case.transposes = [bits & 1 != 0, bits & 2 != 0];
                    case.residual = bits & 1 != 0;
                    case.bias = bits & 2 != 0;
                    case.constant_b = bits == 2;
                    case.contents = if bits == 0 { Contents::SmallIntegers } else { Contents::Normal };
                }));
            }
        }
    }
}

/// Fewer rows than compiled for: of plain products, with a constant B or a bias alone, with strides and in a batch.
fn fewer_rows(cases: &mut Vec<Case>) {
    use Stride::{Packed, Padded};
    for (m, n, k) in [(17, 33, 9), (33, 65, 129), (7, 1, 5)] {
        for bits in 0..4 {
            for rows in [1, m - 1] {
                let case = Case::new(m, n, k).with(|case| {
                    case.transposes = [bits & 1 != 0, bits & 2 != 0];
                    case.rows = Some(rows);
                });
                cases.push(case.clone());
                cases.push(case.clone().with(|case| case.constant_b = true));
                cases.push(case.clone().with(|case| case.bias = true));
                cases.push(
                    case.clone().with(|case| case.strides = [Padded(16), Padded(1), Padded(7), Packed]),
                );
                cases.push(case.with(|case| {
                    case.dims[0] = 3;
                    case.strides = [Padded(1), Packed, Padded(3), Padded(5)];
                    case.residual = true;
                }));
            }
        }
    }
    cases.push(Case::new(5, 7, 9).with(|case| case.rows = Some(0)));
}
