//! Random products on the CPU engine against the float64 reference: shapes, strides, transposes,
//! epilogues, threads, constant and dynamic B.

#[path = "support/draws.rs"]
mod draws;

use ane_matmul::accuracy::Reference;
use ane_matmul::{
    Activation, CompileOptions, Element, ElementTypes, Inputs, Layout, MatMul, Operand, TensorView,
    TensorViewMut, Threads,
};
use ane_matmul_conformance::{compile_on_cpu, normal};
use draws::draws;
use fastrand::Rng;
use proptest::prelude::*;

/// The NaN around the elements of C: no arithmetic makes it.
const GUARD: u32 = 0x7fd5_a5a5;

/// f32 or f64.
trait Number: Element {
    /// What lies around the elements of C.
    const GUARD: Self;
    fn rounded(x: f64) -> Self;
    fn bits(self) -> u64;
}

impl Number for f32 {
    const GUARD: Self = f32::from_bits(GUARD);

    #[allow(clippy::cast_possible_truncation, reason = "f32 numbers are wanted")]
    fn rounded(x: f64) -> Self {
        x as f32
    }

    fn bits(self) -> u64 {
        self.to_bits().into()
    }
}

impl Number for f64 {
    const GUARD: Self = f64::from_bits(0x7ffa_5a5a_5a5a_5a5a);

    fn rounded(x: f64) -> Self {
        x
    }

    fn bits(self) -> u64 {
        self.to_bits()
    }
}

/// How an operand lies in memory: the gap after each row and after each item, or one matrix for all
/// items.
#[derive(Debug, Clone, Copy)]
struct Strides {
    row_gap: usize,
    item_gap: usize,
    shared: bool,
}

#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    dims: [usize; 3],
    transposes: [bool; 2],
    /// Of A, B, C and the residual.
    strides: [Strides; 4],
    alpha: f32,
    bias: bool,
    residual: bool,
    activation: Activation,
    constant_b: bool,
    /// The rows to run, where fewer may be.
    rows: Option<usize>,
    threads: usize,
    seed: u64,
    /// Of f64.
    wide: bool,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 1..40usize, 2 => 40..130usize, 1 => Just(1), 1 => Just(0), 1 => 130..700usize]
}

fn strides() -> impl Strategy<Value = Strides> {
    (prop_oneof![Just(0), 1..20usize], prop_oneof![Just(0), 1..20usize], prop::bool::weighted(0.2))
        .prop_map(|(row_gap, item_gap, shared)| Strides { row_gap, item_gap, shared })
}

fn case() -> impl Strategy<Value = Case> {
    let dims = [size(), size(), size()]
        .prop_filter("a product of moderate size", |[m, n, k]| m * n * k <= 3_000_000);
    let epilogue = (
        prop_oneof![Just(1f32), Just(0f32), -2f32..2f32],
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(&Activation::ALL[..]),
    );
    (
        (prop_oneof![3 => Just(1), 1 => 2..6usize], dims, any::<[bool; 2]>()),
        [strides(), strides(), strides(), strides()],
        epilogue,
        (
            any::<bool>(),
            prop::option::weighted(0.2, 0.0..1.0f64),
            1..6usize,
            any::<u64>(),
            prop::bool::weighted(0.3),
        ),
    )
        .prop_map(
            |(
                (batch, dims, transposes),
                strides,
                (alpha, bias, residual, activation),
                (constant_b, rows, threads, seed, wide),
            )| {
                let rows = rows.map(|part| scaled(dims[0], part));
                let batch = if dims.iter().product::<usize>() > 300_000 { 1 } else { batch };
                Case {
                    batch,
                    dims,
                    transposes,
                    strides,
                    alpha,
                    bias,
                    residual,
                    activation,
                    constant_b,
                    rows,
                    threads,
                    seed,
                    wide,
                }
            },
        )
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "some number of rows will do"
)]
fn scaled(length: usize, part: f64) -> usize {
    ((length + 1) as f64 * part) as usize
}

impl Case {
    fn product(&self) -> MatMul {
        let [m, n, k] = self.dims;
        let [ta, tb] = self.transposes;
        let mut builder = MatMul::builder(m, n, k)
            .types(if self.wide { ElementTypes::F64 } else { ElementTypes::F32 })
            .batch(self.batch)
            .transpose_a(ta)
            .transpose_b(tb)
            .variable_m(self.rows.is_some())
            .alpha(self.alpha)
            .bias(self.bias)
            .residual(self.residual)
            .activation(self.activation);
        let shapes = [if ta { (k, m) } else { (m, k) }, if tb { (n, k) } else { (k, n) }, (m, n), (m, n)];
        let operands = [Operand::A, Operand::B, Operand::C, Operand::Residual];
        for ((operand, (rows, cols)), strides) in operands.into_iter().zip(shapes).zip(self.strides) {
            if operand == Operand::Residual && !self.residual {
                continue;
            }
            let leading = cols + strides.row_gap;
            // Items of C may not overlap.
            let shared = strides.shared && operand != Operand::C;
            let stride = if shared { 0 } else { rows * leading + strides.item_gap };
            builder = builder.leading_dimension(operand, leading).batch_stride(operand, stride);
        }
        builder.build().unwrap()
    }
}

/// Numbers where elements lie, NaN elsewhere.
fn input<T: Number>(layout: &Layout, random: &mut Rng) -> Vec<T> {
    let mut data = vec![T::rounded(f64::NAN); layout.span()];
    for index in elements(layout) {
        data[index] = T::rounded(normal(random));
    }
    data
}

/// The indices of a layout's elements.
fn elements(layout: &Layout) -> impl Iterator<Item = usize> {
    let layout = *layout;
    (0..layout.batch()).flat_map(move |item| {
        (0..layout.rows()).flat_map(move |row| {
            (0..layout.cols())
                .map(move |col| item * layout.batch_stride() + row * layout.leading_dimension() + col)
        })
    })
}

/// The layout of the rows to run.
fn with_rows(layout: &Layout, rows: usize) -> Layout {
    Layout::strided(layout.batch(), rows, layout.cols(), layout.leading_dimension(), layout.batch_stride())
        .unwrap()
}

fn check(case: &Case) -> Result<(), TestCaseError> {
    if case.wide { check_of::<f64>(case) } else { check_of::<f32>(case) }
}

fn check_of<T: Number>(case: &Case) -> Result<(), TestCaseError> {
    let product = case.product();
    let rows = case.rows.unwrap_or(product.m());
    let mut random = Rng::with_seed(case.seed);
    let full = *product.a();
    let a_layout = if product.transpose_a() {
        Layout::strided(full.batch(), full.rows(), rows, full.leading_dimension(), full.batch_stride())
            .unwrap()
    } else {
        with_rows(&full, rows)
    };
    let (a, b) = (input::<T>(&a_layout, &mut random), input::<T>(product.b(), &mut random));
    let bias = input::<T>(&Layout::packed(1, 1, product.n()).unwrap(), &mut random);
    let residual_layout = product.residual().map(|full| with_rows(full, rows));
    let residual = residual_layout.map(|layout| input::<T>(&layout, &mut random)).unwrap_or_default();
    let c_layout = with_rows(product.c(), rows);

    let b_view = TensorView::with_layout(&b, *product.b()).unwrap().erased();
    let mut inputs = Inputs::new(TensorView::with_layout(&a, a_layout).unwrap().erased());
    if case.bias {
        inputs = inputs.bias(TensorView::new(&bias, 1, product.n()).unwrap().erased());
    }
    if let Some(layout) = residual_layout {
        inputs = inputs.residual(TensorView::with_layout(&residual, layout).unwrap().erased());
    }
    let with_b = inputs.b(b_view);
    let reference = Reference::new(&product, with_b).unwrap();

    let known_b = case.constant_b.then_some(b_view);
    let run = |threads: usize| {
        let options = CompileOptions::default().threads(Threads::count(threads).unwrap());
        let compiled = compile_on_cpu(&product, known_b, &options).unwrap();
        let mut c = vec![T::GUARD; c_layout.span()];
        let view = TensorViewMut::with_layout(&mut c, c_layout).unwrap().erased();
        let inputs = if case.constant_b { &inputs } else { &with_b };
        compiled.executor().unwrap().run(inputs, view).unwrap();
        c
    };
    let mut c = run(case.threads);
    let deviation = reference.compare(TensorView::with_layout(&c, c_layout).unwrap().erased()).unwrap();
    prop_assert!(deviation.is_within_bound(), "{product}: {deviation:?}");
    let bits = |c: &[T]| c.iter().map(|x| x.bits()).collect::<Vec<_>>();
    prop_assert_eq!(bits(&c), bits(&run(1)), "{} on 1 and on {} threads", product, case.threads);
    for index in elements(&c_layout) {
        c[index] = T::GUARD;
    }
    prop_assert!(c.iter().all(|x| x.bits() == T::GUARD.bits()), "{product}: written between the rows of C");
    Ok(())
}

proptest! {
    #![proptest_config(draws(400, 1500))]

    #[test]
    fn any_product_is_within_its_bound_on_any_number_of_threads(case in case()) {
        check(&case)?;
    }
}

/// Products large enough that threads are worth their hand-over.
#[test]
fn a_large_product_is_within_its_bound_on_threads() {
    let no_gap = Strides { row_gap: 0, item_gap: 0, shared: false };
    for (bits, threads) in (0..16).zip([2, 3, 4, 5, 2, 3, 4, 7].into_iter().cycle()) {
        let case = Case {
            batch: 1,
            dims: [129, 301, 257],
            transposes: [bits & 1 != 0, bits & 2 != 0],
            strides: [no_gap, Strides { row_gap: 3, ..no_gap }, Strides { row_gap: 1, ..no_gap }, no_gap],
            alpha: 0.75,
            bias: true,
            residual: true,
            activation: Activation::Gelu,
            constant_b: bits & 4 != 0,
            rows: None,
            threads,
            seed: bits,
            wide: bits & 8 != 0,
        };
        check(&case).unwrap();
    }
}
