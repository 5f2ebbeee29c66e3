//! The CPU engine against the float64 reference: shapes, strides, types, schemes and numbers at random.
#![no_main]

use std::sync::LazyLock;

use ane_matmul::accuracy::Reference;
use ane_matmul::{
    Activation, AnyView, BackendId, Backends, CompileOptions, ElementType, ElementTypes, Inputs, Layout,
    MatMul, MatMulBuilder, NibbleOrder, Operand, Product, QuantA, QuantB, QuantOutput, Quantization, Threads,
};
use ane_matmul_conformance::Guarded;
use ane_matmul_fuzz::operands::{self, Contents};
use ane_matmul_fuzz::products::{self, OPERANDS, Scheme, Size, Type};
use arbitrary::Arbitrary;
use fastrand::Rng;
use libfuzzer_sys::fuzz_target;

use ElementType::{Bf16, F16, F32, I4, I8, I32, U4, U8};

const FLOATS: [ElementType; 3] = [F32, F16, Bf16];

static BACKENDS: LazyLock<Backends> = LazyLock::new(Backends::new);

#[derive(Debug, Arbitrary)]
struct Case {
    sizes: [Size; 3],
    batch: u8,
    flags: u8,
    /// Of A, B, C and the residual: the gap after each row and each item, and whether items are one.
    gaps: [(u8, u8, bool); 4],
    kind: Kind,
    types: [Type; 5],
    scheme: Scheme,
    alpha: Factor,
    activation: u8,
    rows: Option<u8>,
    threads: bool,
    contents: [Contents; 4],
    scales: [i8; 3],
    seed: u64,
}

#[derive(Debug, Arbitrary)]
enum Kind {
    F32,
    Floats,
    WeightOnly,
    Integers,
}

#[derive(Debug, Arbitrary)]
enum Factor {
    One,
    Zero,
    Small(i8),
    Bits(u32),
}

/// The largest product, in multiplications.
const LARGEST: usize = 200_000;

impl Case {
    fn flag(&self, bit: u8) -> bool {
        self.flags >> bit & 1 != 0
    }

    fn types(&self) -> (ElementTypes, Quantization) {
        let [a, b, output, bias, scales] = self.types;
        let floats = |accumulator| ElementTypes {
            a: a.of(&FLOATS),
            b: b.of(&FLOATS),
            accumulator,
            output: output.of(&FLOATS),
            bias: bias.of(&FLOATS),
            scales: scales.of(&FLOATS),
        };
        let any_output = output.of(&[F32, F16, Bf16, I8, U8]);
        match self.kind {
            Kind::F32 => (ElementTypes::F32, Quantization::default()),
            Kind::Floats => (floats(F32), Quantization::default()),
            Kind::WeightOnly => {
                let b = b.of(&[I8, U8, I4, U4]);
                let types = ElementTypes { b, output: any_output, ..floats(F32) };
                (types, self.quantization(&types, false))
            }
            Kind::Integers => {
                let a = a.of(&[I8, U8, F32, F16, Bf16]);
                let output = if self.scheme.group_size % 4 == 0 { I32 } else { any_output };
                let types = ElementTypes { a, b: I8, output, ..floats(I32) };
                (types, self.quantization(&types, true))
            }
        }
    }

    /// A scheme that these types can have.
    fn quantization(&self, types: &ElementTypes, integers: bool) -> Quantization {
        let zero_point = |index: usize| {
            let (element, byte) = ([types.a, types.b, types.output][index], self.scheme.zero_points[index]);
            match element {
                I8 => byte as i8 as i32,
                U8 => byte as u8 as i32,
                I4 => (byte & 15) - 8,
                U4 => byte & 15,
                _ => 0,
            }
        };
        let mut scheme = self.scheme.quantization(zero_point, |index| self.scale(index));
        if let QuantB::PerGroup { group_size, zero_point } = scheme.b {
            scheme.b = if integers {
                QuantB::PerTensor { zero_point }
            } else {
                QuantB::PerGroup { group_size: group_size % 70 + 1, zero_point }
            };
        }
        scheme.a = match (integers, types.a.is_float(), scheme.a) {
            (true, true, _) => QuantA::DynamicPerRow,
            (true, false, a @ QuantA::Static { .. }) => a,
            _ => QuantA::None,
        };
        if types.output == I32 {
            scheme = Quantization { nibble_order: scheme.nibble_order, ..Quantization::default() };
            scheme.a = if types.a.is_float() { QuantA::DynamicPerRow } else { QuantA::None };
        } else if types.output.is_float() {
            scheme.output = QuantOutput::None;
        }
        scheme
    }

    fn describe(&self) -> Option<MatMul> {
        let (types, mut quantization) = self.types();
        let constant_b =
            self.flag(2) || matches!(quantization.b, QuantB::PerColumn { .. } | QuantB::PerGroup { .. });
        if constant_b {
            let constant = self.builder(types, quantization, true)?.build_constant_b().ok()?;
            return Some(constant.product().clone());
        }
        quantization.b = products::of_every_run(quantization.b, self.scale(1));
        self.builder(types, quantization, true)?.build().ok()
    }

    /// What weights say of B is left out of the description.
    fn describe_without_b(&self) -> Option<MatMulBuilder> {
        let (mut types, mut quantization) = self.types();
        if quantization.b != QuantB::None {
            types.scales = F32;
        }
        if [I4, U4].contains(&types.b) {
            quantization.nibble_order = NibbleOrder::default();
        }
        (types.b, quantization.b) = (F32, QuantB::None);
        self.builder(types, quantization, false)
    }

    /// The description, but for whether B is known; `of_b`: with B's transpose and strides.
    fn builder(&self, types: ElementTypes, quantization: Quantization, of_b: bool) -> Option<MatMulBuilder> {
        let [m, n, k] = self.sizes.map(Size::bounded);
        let batch = if self.batch < 200 { 1 } else { usize::from(self.batch) % 4 };
        if m.max(1) * n.max(1) * k.max(1) * batch.max(1) > LARGEST {
            return None;
        }
        let (ta, tb, residual) = (self.flag(0), self.flag(1), self.flag(5));
        let mut builder = MatMul::builder(m, n, k)
            .batch(batch)
            .transpose_a(ta)
            .transpose_b(tb && of_b)
            .variable_m(self.rows.is_some())
            .types(types)
            .quantization(quantization);
        if types.output != I32 {
            builder = builder
                .bias(self.flag(4))
                .residual(residual)
                .activation(Activation::ALL[usize::from(self.activation) % Activation::ALL.len()])
                .alpha(match self.alpha {
                    Factor::One => 1.0,
                    Factor::Zero => 0.0,
                    Factor::Small(x) => f32::from(x) / 16.0,
                    Factor::Bits(bits) => f32::from_bits(bits),
                });
        }
        let shapes = [if ta { (k, m) } else { (m, k) }, if tb { (n, k) } else { (k, n) }, (m, n), (m, n)];
        for (index, (rows, cols)) in shapes.into_iter().enumerate() {
            let (row, item, shared) = self.gaps[index];
            let leading = cols + if row < 128 { 0 } else { usize::from(row) % 20 };
            let stride = rows * leading + if item < 128 { 0 } else { usize::from(item) % 20 };
            let stride = if shared && index != 2 { 0 } else { stride };
            if of_b || OPERANDS[index] != Operand::B {
                builder =
                    builder.leading_dimension(OPERANDS[index], leading).batch_stride(OPERANDS[index], stride);
            }
        }
        Some(builder)
    }

    fn scale(&self, index: usize) -> f32 {
        2f32.powi(i32::from(self.scales[index]) / 8)
    }

    fn options(threads: usize) -> CompileOptions {
        CompileOptions::default().threads(Threads::count(threads).expect("1 or 2"))
    }

    /// Whether what is computed in f32 on the way to a scaled result may leave f32's normal range where the
    /// result does not, which docs/quantization.md does not promise: sums of numbers of A by integers that are
    /// not yet scaled, and scales and alpha multiplied with each other.
    fn may_leave_the_range(&self, product: &MatMul, a: AnyView<'_>) -> bool {
        let alpha = f64::from(product.alpha()).abs();
        let bound = match self.kind {
            Kind::F32 | Kind::Floats => return false,
            Kind::Integers
                if alpha != 0.0 && alpha * f64::from(self.scale(1)) < f64::from(f32::MIN_POSITIVE) =>
            {
                return true;
            }
            // An integer and its zero point are 255 at most.
            Kind::WeightOnly => largest(a) * 510.0 * product.k() as f64,
            Kind::Integers => {
                // The scales of columns come first.
                let scale_a =
                    if product.types().a.is_float() { largest(a) } else { f64::from(self.scale(0)) }.max(1.0);
                scale_a * 2.0 * f64::from(self.scale(1)) * alpha.max(1.0)
            }
        };
        bound >= f64::from(f32::MAX)
    }

    fn check(&self) {
        let Some(product) = self.describe() else { return };
        let rows = self.rows.map_or(product.m(), |rows| usize::from(rows) % (product.m() + 1));
        let (types, order) = (*product.types(), product.quantization().nibble_order);
        let mut random = Rng::with_seed(self.seed);
        let mut input =
            |element, layout, contents| operands::random(element, layout, order, contents, &mut random);
        let a_layout =
            if product.transpose_a() { cols(product.a(), rows) } else { with_rows(product.a(), rows) };
        let a = input(types.a, a_layout, self.contents[0]);
        // Weights that a batch shares are as many matrices in one place, or one.
        let (_, item, shared) = self.gaps[1];
        let one = product.constant_b() && shared && item >= 128;
        let b_layout = if one { first(product.b()) } else { *product.b() };
        let b = input(types.b, b_layout, self.contents[1]);
        let row = Layout::packed(1, 1, product.n()).expect("a small row");
        let bias = product.has_bias().then(|| input(types.bias, row, self.contents[2]));
        let residual =
            product.residual().map(|layout| input(types.output, with_rows(layout, rows), self.contents[3]));

        let mut inputs = Inputs::new(a.view());
        if let Some(residual) = &residual {
            inputs = inputs.residual(residual.view());
        }
        if !product.constant_b() {
            inputs = inputs.b(b.view());
            if let Some(bias) = &bias {
                inputs = inputs.bias(bias.view());
            }
            return self.check_runs(&product, &inputs, rows);
        }
        let scale = || self.scale(1) * (1.0 + f32::from(random.u8(..8)) / 8.0);
        let weights = products::weights(&product, b.view(), scale).expect("weights as described");
        let mut bound = product.with_weights(&weights).expect("weights as described");
        let by_weights = self.describe_without_b().expect("described before").with_weights(&weights);
        assert_eq!(by_weights.expect("a description without B").product(), &product);
        match &bias {
            Some(bias) if self.flag(3) => bound = bound.with_bias(bias.view()).expect("a bias as described"),
            Some(bias) => inputs = inputs.bias(bias.view()),
            None => {}
        }
        assert_eq!(bound.product(), &product);
        self.check_runs(&bound, &inputs, rows);
    }

    fn check_runs(&self, bound: &impl Product, inputs: &Inputs<'_>, rows: usize) {
        let (product, types) = (bound.product(), bound.product().types());
        let compiled = match BACKENDS.compile(&BackendId::CPU, bound, &Self::options(1)) {
            Ok(compiled) => compiled,
            Err(ane_matmul::Error::Refused { .. }) => return,
            Err(error) => panic!("{product}: {error}"),
        };
        let run = |compiled: &ane_matmul::Compiled| {
            let mut c = Guarded::output(types.output, with_rows(product.c(), rows), 0);
            let mut executor = compiled.executor().expect("an executor");
            executor.run(inputs, c.view_mut()).expect("operands that fit");
            c
        };
        let c = run(&compiled);
        assert_eq!(c.damaged_guard(), None, "{product}: a gap of C was written to");
        if self.may_leave_the_range(product, inputs.a_view()) {
            return;
        }
        let reference = Reference::of(&compiled, inputs).expect("a small reference");
        let deviation = reference.compare(c.view()).expect("the same shape");
        if !deviation.is_within_bound() {
            let (item, row, col) = deviation.worst;
            let index = (item * rows + row) * product.n() + col;
            panic!(
                "{product}, {types:?}, {:?}: {deviation:?}: {:?} instead of {} +- {}",
                product.quantization(),
                c.view().get(item, row, col),
                reference.values()[index],
                reference.bounds()[index],
            );
        }
        if self.threads {
            let compiled = BACKENDS.compile(&BackendId::CPU, bound, &Self::options(2)).expect("as before");
            assert_eq!(
                run(&compiled).bits_but_of_nan(),
                c.bits_but_of_nan(),
                "{product}: other bits on two threads"
            );
        }
    }
}

/// The largest finite magnitude.
fn largest(view: AnyView<'_>) -> f64 {
    let layout = *view.layout();
    let mut largest = 0f64;
    for item in 0..layout.batch() {
        for row in 0..layout.rows() {
            for col in 0..layout.cols() {
                let size = view.get(item, row, col).unwrap_or(0.0).abs();
                largest = if size.is_finite() { largest.max(size) } else { largest };
            }
        }
    }
    largest
}

fn with_rows(layout: &Layout, rows: usize) -> Layout {
    Layout::strided(layout.batch(), rows, layout.cols(), layout.leading_dimension(), layout.batch_stride())
        .expect("fewer rows than a valid layout")
}

/// One matrix of a batch that shares it.
fn first(layout: &Layout) -> Layout {
    Layout::strided(1, layout.rows(), layout.cols(), layout.leading_dimension(), layout.batch_stride())
        .expect("fewer items than a valid layout")
}

fn cols(layout: &Layout, cols: usize) -> Layout {
    Layout::strided(layout.batch(), layout.rows(), cols, layout.leading_dimension(), layout.batch_stride())
        .expect("fewer columns than a valid layout")
}

fuzz_target!(|case: Case| case.check());
