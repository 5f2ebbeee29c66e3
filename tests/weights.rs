//! Known weights and biases: what is bound to a product, what does not fit it, and running it from any thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ane_matmul::accuracy::Reference;
use ane_matmul::quantize::WeightScheme;
use ane_matmul::{
    Activation, AnyView, BackendId, Backends, CacheLimits, CompileOptions, Compiled, Device, ElementType,
    ElementTypes, Error, ExecutorPool, Inputs, Int4View, Layout, Linear, MatMul, MatMulBuilder,
    MatMulWithWeights, NibbleOrder, Operand, Product, ProductCache, QuantA, QuantB, Quantization,
    RefusalReason, Result, ResultChecker, SelfCheck, ShimLibrary, Tensor, TensorView, TensorViewMut,
    ThreadPool, Threads, Weights, matmul,
};
use ane_matmul_shims::linked_reference;
use half::bf16;

const M: usize = 5;
/// More columns than a vector has, and not a whole number of them.
const N: usize = 37;
/// Three groups of 128 and a part of one; odd, so that rows of 4-bit integers end within a byte.
const K: usize = 387;
const BATCH: usize = 3;

fn bits(c: &Tensor<f32>) -> Vec<u32> {
    assert!(c.data().iter().all(|x| x.is_finite()), "{c:?}");
    c.data().iter().map(|x| x.to_bits()).collect()
}

/// An operand in one of the types that are tried.
enum Stored {
    F32(Tensor<f32>),
    Bf16(Tensor<bf16>),
    I8(Tensor<i8>),
}

impl Stored {
    fn view(&self) -> AnyView<'_> {
        match self {
            Self::F32(tensor) => tensor.into(),
            Self::Bf16(tensor) => tensor.into(),
            Self::I8(tensor) => tensor.into(),
        }
    }

    /// The rows of all items.
    fn rows(&self) -> AnyView<'_> {
        fn of<T: ane_matmul::Element>(tensor: &Tensor<T>) -> TensorView<'_, T> {
            let cols = tensor.cols();
            TensorView::new(tensor.data(), tensor.data().len() / cols, cols).unwrap()
        }
        match self {
            Self::F32(tensor) => of(tensor).into(),
            Self::Bf16(tensor) => of(tensor).into(),
            Self::I8(tensor) => of(tensor).into(),
        }
    }

    fn item(&self, item: usize) -> AnyView<'_> {
        fn of<T: ane_matmul::Element>(tensor: &Tensor<T>, item: usize) -> TensorView<'_, T> {
            let len = tensor.rows() * tensor.cols();
            TensorView::new(&tensor.data()[item * len..][..len], tensor.rows(), tensor.cols()).unwrap()
        }
        match self {
            Self::F32(tensor) => of(tensor, item).into(),
            Self::Bf16(tensor) => of(tensor, item).into(),
            Self::I8(tensor) => of(tensor, item).into(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    F32,
    Bf16,
    /// 8-bit and 4-bit weights of a float A.
    Int8,
    Int4,
    /// Sums of integers, with a scale for each column and with one for all.
    I8ByI8,
    I8ByI8OneScale,
    /// A is quantised by each run.
    DynamicRows,
}

const KINDS: [Kind; 7] =
    [Kind::F32, Kind::Bf16, Kind::Int8, Kind::Int4, Kind::I8ByI8, Kind::I8ByI8OneScale, Kind::DynamicRows];

#[allow(clippy::cast_possible_truncation, reason = "random bytes")]
fn random_bytes(batch: usize, rows: usize, cols: usize, seed: u64) -> Tensor<i8> {
    let mut random = fastrand::Rng::with_seed(seed);
    Tensor::from_fn_batched(batch, rows, cols, |_, _, _| random.i8(..)).unwrap()
}

fn random_floats(batch: usize, rows: usize, cols: usize, seed: u64) -> Tensor<f32> {
    let flat = Tensor::random_normal_f32(batch * rows, cols, 1.0, seed).unwrap();
    Tensor::from_fn_batched(batch, rows, cols, |item, row, col| flat.data()[(item * rows + row) * cols + col])
        .unwrap()
}

impl Kind {
    /// A batch of A.
    fn a(self, batch: usize, m: usize) -> Stored {
        let floats = || random_floats(batch, m, K, 11);
        match self {
            Self::F32 | Self::Int8 | Self::Int4 | Self::DynamicRows => Stored::F32(floats()),
            Self::Bf16 => {
                let floats = floats();
                let at = |item, row, col| bf16::from_f32(floats.data()[(item * m + row) * K + col]);
                Stored::Bf16(Tensor::from_fn_batched(batch, m, K, at).unwrap())
            }
            Self::I8ByI8 | Self::I8ByI8OneScale => Stored::I8(random_bytes(batch, m, K, 11)),
        }
    }

    /// Weights for `n` columns, stored n x k where they are `transposed`: the same numbers both ways. Each item of
    /// a `batch` has the same.
    fn weights(self, n: usize, transposed: bool, batch: usize) -> Weights {
        let (rows, cols) = if transposed { (n, K) } else { (K, n) };
        let stored = |weights: Result<Weights>| {
            let weights = weights.unwrap();
            if transposed { weights.transposed().unwrap() } else { weights }
        };
        let floats = random_floats(1, K, n, 12);
        let float = |_, row: usize, col: usize| {
            let (p, column) = if transposed { (col, row) } else { (row, col) };
            floats.data()[p * n + column]
        };
        let floats = || stored(Weights::new(&Tensor::from_fn_batched(batch, rows, cols, float).unwrap()));
        let bytes = random_bytes(1, K, n, 12);
        let byte = |_, row: usize, col: usize| {
            let (p, column) = if transposed { (col, row) } else { (row, col) };
            bytes.data()[p * n + column]
        };
        let bytes = || stored(Weights::new(&Tensor::from_fn_batched(batch, rows, cols, byte).unwrap()));
        let of_columns: Vec<f32> = (0..n).map(|col| 0.01 * (1 + col) as f32).collect();
        let per_column = |zero_point| QuantB::PerColumn { zero_point };
        match self {
            Self::F32 => floats(),
            Self::Bf16 => {
                let narrow = |item, row, col| bf16::from_f32(float(item, row, col));
                stored(Weights::new(&Tensor::from_fn_batched(batch, rows, cols, narrow).unwrap()))
            }
            Self::Int8 => floats().quantize(&WeightScheme::INT8).unwrap().0,
            Self::Int4 => floats().quantize(&WeightScheme::INT4).unwrap().0,
            Self::I8ByI8 => bytes().with_scales(per_column(-3), &of_columns).unwrap(),
            Self::I8ByI8OneScale => {
                bytes().with_scales(QuantB::PerTensor { zero_point: 7 }, &[0.02f32]).unwrap()
            }
            Self::DynamicRows => bytes().with_scales(per_column(0), &of_columns).unwrap(),
        }
    }

    /// The types of all but B and its scales.
    fn types(self) -> ElementTypes {
        match self {
            Self::F32 | Self::Int8 | Self::Int4 => ElementTypes::F32,
            Self::Bf16 => ElementTypes { a: ElementType::Bf16, ..ElementTypes::F32 },
            Self::I8ByI8 | Self::I8ByI8OneScale => ElementTypes::INT8,
            Self::DynamicRows => ElementTypes { accumulator: ElementType::I32, ..ElementTypes::F32 },
        }
    }

    /// How A is quantised.
    fn quantization(self) -> Quantization {
        let a = match self {
            Self::F32 | Self::Bf16 | Self::Int8 | Self::Int4 => QuantA::None,
            Self::I8ByI8 | Self::I8ByI8OneScale => QuantA::Static { scale: 0.03, zero_point: 5 },
            Self::DynamicRows => QuantA::DynamicPerRow,
        };
        Quantization { a, ..Quantization::default() }
    }

    /// A description that says nothing of B.
    fn describe(self, m: usize, n: usize) -> MatMulBuilder {
        MatMul::builder(m, n, K).types(self.types()).quantization(self.quantization())
    }
}

fn compile(product: Result<MatMulWithWeights>, threads: usize) -> Compiled {
    let options = CompileOptions::default().threads(Threads::count(threads).unwrap());
    product.unwrap().compile_with(&BackendId::CPU, &options).unwrap()
}

/// The product of each item by itself, one after the other.
fn one_by_one(kind: Kind, a: &Stored, (m, n): (usize, usize), weights: &Weights) -> (Compiled, Vec<u32>) {
    let one = compile(kind.describe(m, n).with_weights(weights), 1);
    let all = (0..BATCH).flat_map(|item| bits(&one.run_to_tensor(a.item(item)).unwrap())).collect();
    (one, all)
}

/// All items as rows of one product, which a batch that shares its matrix is compiled as.
fn as_rows(kind: Kind, a: &Stored, (m, n): (usize, usize), weights: &Weights) -> Vec<u32> {
    let compiled = compile(kind.describe(BATCH * m, n).with_weights(weights), 1);
    bits(&compiled.run_to_tensor(a.rows()).unwrap())
}

#[test]
fn a_batch_shares_one_matrix() {
    for kind in KINDS {
        for (m, n, transposed) in [(M, N, false), (M, N, true), (1, N, false), (M, 1, false), (M, 1, true)] {
            let what = format!("{kind:?}, m = {m}, n = {n}, transposed: {transposed}");
            let a = kind.a(BATCH, m);
            let batched = |weights: &Weights, threads| {
                compile(kind.describe(m, n).batch(BATCH).with_weights(weights), threads)
            };
            // What was made of the weights is kept while the product is that it was made for.
            let weights = kind.weights(n, transposed, 1);
            let (one, alone) = one_by_one(kind, &a, (m, n), &weights);
            let expected = as_rows(kind, &a, (m, n), &weights);
            // The sums of weights of integers are in an order that depends on the rows.
            assert!(expected == alone || matches!(kind, Kind::Int8 | Kind::Int4), "{what}");
            let all = batched(&weights, 1);
            assert_eq!(all.product().b().batch_stride(), 0, "{what}");
            assert_eq!(bits(&all.run_to_tensor(a.view()).unwrap()), expected, "{what}");
            assert_eq!(bits(&one.run_to_tensor(a.item(2)).unwrap()), alone[2 * m * n..], "{what}");

            // The other order.
            let weights = kind.weights(n, transposed, 1);
            let all = batched(&weights, 2);
            assert_eq!(bits(&all.run_to_tensor(a.view()).unwrap()), expected, "{what}, the batch first");
            let (_one, again) = one_by_one(kind, &a, (m, n), &weights);
            assert_eq!(again, alone, "{what}, the batch first");
            assert_eq!(bits(&all.run_to_tensor(a.view()).unwrap()), expected, "{what}, the batch again");

            // Not even a batch without items spoils them.
            let weights = kind.weights(n, transposed, 1);
            let none = compile(kind.describe(m, n).batch(0).with_weights(&weights), 1);
            let (_one, after) = one_by_one(kind, &a, (m, n), &weights);
            assert_eq!(after, alone, "{what}, after a batch of none");
            assert!(none.run_to_tensor(kind.a(0, m).view()).unwrap().data().is_empty(), "{what}");

            // A matrix for each item, which are the same.
            let own = batched(&kind.weights(n, transposed, BATCH), 2);
            assert_ne!(own.product().b().batch_stride(), 0, "{what}");
            assert_eq!(bits(&own.run_to_tensor(a.view()).unwrap()), alone, "{what}, a matrix for each item");
        }
    }
}

/// Every backend that is here, a shim among them, which gets the matrix once.
#[test]
fn every_backend_shares_one_matrix() {
    let mut backends = Backends::new();
    // SAFETY: the reference shim's table is a constant of this program.
    let shim = unsafe { ShimLibrary::from_table(linked_reference(), "the linked reference shim") }.unwrap();
    backends.add(shim).unwrap();
    let (a, bias) = (Kind::F32.a(BATCH, M), vec![0.5f32; N]);
    let options = CompileOptions::default().self_check(SelfCheck::every_run());
    let here = backends.available().into_iter().filter(|status| status.state.is_ok());
    let mut ran = 0;
    for status in here {
        for transposed in [false, true] {
            let weights = Kind::F32.weights(N, transposed, 1);
            let product = MatMul::builder(M, N, K).batch(BATCH).with_weights(&weights).unwrap();
            let product = product.with_bias(&bias).unwrap();
            let inputs = Inputs::new(a.view());
            let compiled = backends.compile(&status.id, &product, &options).unwrap();
            let c = compiled.run_to_tensor(inputs).unwrap();
            let deviation = Reference::new(&product, inputs).unwrap().compare(&c).unwrap();
            assert!(deviation.is_within_bound(), "{}: {deviation:?}", status.id);
            assert_eq!((compiled.checks().checked, compiled.checks().reruns), (1, 0), "{}", status.id);
            ran += 1;
        }
    }
    assert!(ran >= 4, "{ran}");
}

#[test]
fn the_reference_and_self_checks_see_the_shared_matrix() {
    for kind in KINDS {
        let weights = kind.weights(N, true, 1);
        let product = kind.describe(M, N).batch(BATCH).with_weights(&weights).unwrap();
        let options = CompileOptions::default().self_check(SelfCheck::every_run());
        let compiled = product.compile_with(&BackendId::CPU, &options).unwrap();
        let a = kind.a(BATCH, M);
        let inputs = Inputs::new(a.view());
        let mut c = compiled.run_to_tensor(inputs).unwrap();
        assert_eq!(compiled.checks().checked, 1);
        for reference in [Reference::new(&product, inputs), Reference::of(&compiled, inputs)] {
            let deviation = reference.unwrap().compare(&c).unwrap();
            assert!(deviation.is_within_bound(), "{kind:?}: {deviation:?}");
        }
        let mut checker = ResultChecker::new(&product, &SelfCheck::every_run()).unwrap();
        assert_eq!(checker.check(inputs, &c).unwrap(), None, "{kind:?}");
        c.data_mut()[M * N + 1] += 1e6;
        let found = checker.check(inputs, &c).unwrap().expect("a wrong element");
        assert_eq!((found.item, found.row, found.col), (1, 0, 1), "{kind:?}");
    }
}

#[test]
fn transposed_weights_are_the_same_weights() {
    for kind in KINDS {
        let a = kind.a(1, M);
        let run = |weights: &Weights| {
            assert_eq!((weights.k(), weights.n()), (K, N));
            bits(&compile(kind.describe(M, N).with_weights(weights), 1).run_to_tensor(a.view()).unwrap())
        };
        let (plain, transposed) = (kind.weights(N, false, 1), kind.weights(N, true, 1));
        assert_eq!((plain.is_transposed(), transposed.is_transposed()), (false, true));
        assert_eq!((transposed.layout().rows(), transposed.layout().cols()), (N, K));
        let expected = run(&plain);
        assert_eq!(run(&transposed), expected, "{kind:?}");
        // The description may say it too.
        let said = kind.describe(M, N).transpose_b(true).with_weights(&transposed);
        assert_eq!(bits(&compile(said, 1).run_to_tensor(a.view()).unwrap()), expected, "{kind:?}");
        if let Ok(twice) = plain.transposed().and_then(|weights| weights.transposed()) {
            assert_eq!(run(&twice), expected, "{kind:?}");
        }
        let real = |weights: &Weights| weights.dequantize().unwrap();
        assert_eq!(real(&transposed).transposed().unwrap(), real(&plain), "{kind:?}");
    }
}

/// Where rows and items lie, the weights say as well, and in which half of a byte the first of two integers is.
#[test]
fn strides_and_nibbles_are_those_of_the_weights() {
    let a = random_floats(BATCH, M, K, 11);
    let numbers = random_floats(BATCH, K, N, 12);
    let packed = Weights::new(&numbers).unwrap();
    let (leading, stride) = (N + 3, K * (N + 3) + 11);
    let layout = Layout::strided(BATCH, K, N, leading, stride).unwrap();
    let mut data = vec![f32::NAN; layout.span()];
    for item in 0..BATCH {
        for row in 0..K {
            let from = &numbers.data()[(item * K + row) * N..][..N];
            data[item * stride + row * leading..][..N].copy_from_slice(from);
        }
    }
    let strided = Weights::new(TensorView::with_layout(&data, layout).unwrap()).unwrap();
    let describe = || MatMul::builder(M, N, K).batch(BATCH);
    let expected = bits(&compile(describe().with_weights(&packed), 1).run_to_tensor(&a).unwrap());
    // What the description says of B's strides is not asked for.
    for builder in [describe(), describe().leading_dimension(Operand::B, N + 1)] {
        let product = builder.with_weights(&strided).unwrap();
        assert_eq!(*product.product().b(), layout);
        assert_eq!(bits(&compile(Ok(product), 1).run_to_tensor(&a).unwrap()), expected);
    }

    let integers: Vec<u8> = (0..K * N).map(|i| (i * 7 % 16) as u8).collect();
    let results = [NibbleOrder::LowFirst, NibbleOrder::HighFirst].map(|order| {
        let low_first = order == NibbleOrder::LowFirst;
        let bytes: Vec<u8> = integers
            .chunks(2)
            .map(|pair| {
                let other = pair.get(1).copied().unwrap_or_default();
                if low_first { pair[0] | other << 4 } else { pair[0] << 4 | other }
            })
            .collect();
        let view = Int4View::unsigned(&bytes, Layout::packed(1, K, N).unwrap(), order).unwrap();
        let scheme = QuantB::PerTensor { zero_point: 8 };
        let weights = Weights::new(view).unwrap().with_scales(scheme, &[0.5f32]).unwrap();
        let product = MatMul::builder(M, N, K).with_weights(&weights).unwrap();
        assert_eq!(product.product().quantization().nibble_order, order);
        assert_eq!(product.product().types().b, ElementType::U4);
        let one = TensorView::new(&a.data()[..M * K], M, K).unwrap();
        bits(&compile(Ok(product), 1).run_to_tensor(one).unwrap())
    });
    assert_eq!(results[0], results[1]);
}

/// All three ways to bind weights.
fn bind(builder: &MatMulBuilder, weights: &Weights) -> Result<MatMulWithWeights> {
    let first = builder.clone().with_weights(weights);
    let ways = [
        builder.clone().build().and_then(|product| product.with_weights(weights)),
        builder.clone().build_constant_b().and_then(|constant| constant.with_weights(weights)),
    ];
    for other in ways {
        match (&first, &other) {
            (Ok(first), Ok(other)) => assert_eq!(first.product(), other.product()),
            // What has scales of weights has no description without weights, and what has scales of its own none
            // of a constant B.
            (_, Err(Error::Description { problem, .. }))
                if ["B comes with every run", "a constant B has a scale"]
                    .iter()
                    .any(|p| problem.starts_with(p)) => {}
            (Err(first), Err(other)) => assert_eq!(first.to_string(), other.to_string()),
            _ => panic!("{first:?}, {other:?}"),
        }
    }
    first
}

#[test]
fn weights_that_contradict_the_description_are_refused() {
    let weights = Weights::new(&random_bytes(1, K, N, 1)).unwrap();
    let transposed = Weights::new(&random_bytes(1, N, K, 1)).unwrap().transposed().unwrap();
    let describe = || MatMul::builder(M, N, K);
    let description = |builder: &MatMulBuilder, weights: &Weights| match bind(builder, weights) {
        Err(error @ Error::Description { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };

    // A transpose.
    assert!(bind(&describe().transpose_b(true), &transposed).is_ok());
    assert!(bind(&describe(), &transposed).unwrap().product().transpose_b());
    let message = description(&describe().transpose_b(true), &weights);
    assert!(message.contains("n x k") && message.contains("Weights::transposed"), "{message}");

    // A scheme.
    let one_scale = QuantB::PerTensor { zero_point: 1 };
    let scaled = weights.with_scales(one_scale, &[0.5f32]).unwrap();
    let types = ElementTypes { b: ElementType::I8, ..ElementTypes::F32 };
    let with = |b| describe().types(types).quantization(Quantization { b, ..Quantization::default() });
    for scheme in [QuantB::None, one_scale] {
        assert_eq!(bind(&with(scheme), &scaled).unwrap().product().quantization().b, one_scale);
    }
    let of_columns = QuantB::PerColumn { zero_point: 1 };
    for (scheme, weights, theirs) in [
        (of_columns, &scaled, "PerTensor { zero_point: 1 }"),
        (QuantB::PerTensor { zero_point: 0 }, &scaled, "PerTensor { zero_point: 1 }"),
        (one_scale, &weights, "None"),
        (QuantB::Static { scale: 0.5, zero_point: 1 }, &scaled, "PerTensor { zero_point: 1 }"),
    ] {
        let message = description(&with(scheme), weights);
        assert!(message.contains(&format!("{scheme:?}")) && message.contains(theirs), "{message}");
        let help = if theirs == "None" { "Weights::with_scales" } else { "leave Quantization::b out" };
        assert!(message.contains(help), "{message}");
    }

    // What only fits together: sums of integers in f32, and k beyond what 32 bits hold.
    let types = ElementTypes { a: ElementType::F32, accumulator: ElementType::I32, ..ElementTypes::F32 };
    let floats = Weights::from_tensor(random_floats(1, K, N, 1));
    assert!(description(&describe().types(types), &floats).contains("cannot be summed in i32"));
    let long = Weights::new(&Tensor::filled(131_072, 1, 1i8).unwrap()).unwrap();
    let sums = MatMul::builder(1, 1, 131_072).types(ElementTypes {
        a: ElementType::I8,
        accumulator: ElementType::I32,
        output: ElementType::I32,
        ..ElementTypes::F32
    });
    assert!(matches!(sums.with_weights(&long), Err(Error::Accumulator { maximum: 131_071, .. })));
}

#[test]
fn weights_of_another_shape_are_refused() {
    let describe = || MatMul::builder(M, N, K);
    let shape = |builder: &MatMulBuilder, weights: &Weights| match bind(builder, weights) {
        Err(error @ Error::Shape { operand: Operand::B, .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let of = |rows, cols| Weights::from_tensor(Tensor::filled(rows, cols, 1f32).unwrap());
    let expected = format!("B: expected k x n = {K} x {N}, for a batch of 1, got ");
    for (rows, cols) in [(K + 1, N), (K, N + 1), (N, N), (K, K), (0, N), (K, 0)] {
        let message = shape(&describe(), &of(rows, cols));
        assert!(message.starts_with(&format!("{expected}{rows} x {cols}")), "{message}");
        assert!(!message.contains("transpose would fit"), "{message}");
    }
    // The right numbers the wrong way round, either way.
    let (swapped, twice) = (of(N, K), of(K, N).transposed().unwrap());
    for weights in [&swapped, &twice] {
        let message = shape(&describe(), weights);
        assert!(message.starts_with(&format!("{expected}{N} x {K}")), "{message}");
        assert!(message.contains("transpose would fit: Weights::transposed"), "{message}");
        assert!(bind(&describe(), &weights.transposed().unwrap()).is_ok());
    }
    // As many matrices as the batch has items, or one.
    for (batch, items, fits) in [
        (1, 1, true),
        (3, 1, true),
        (3, 3, true),
        (0, 1, true),
        (0, 0, true),
        (1, 3, false),
        (3, 2, false),
        (2, 3, false),
        (3, 0, false),
        (0, 3, false),
    ] {
        let weights = Weights::new(&Tensor::from_fn_batched(items, K, N, |_, _, _| 1f32).unwrap()).unwrap();
        let builder = describe().batch(batch);
        if fits {
            let product = bind(&builder, &weights).unwrap();
            assert_eq!(product.product().batch(), batch, "{items} for a batch of {batch}");
            assert_eq!(product.weights().id(), weights.id());
            continue;
        }
        let message = shape(&builder, &weights);
        assert!(message.contains(&format!("for a batch of {batch}")), "{message}");
        assert!(message.contains(&format!("{items} of them")), "{message}");
    }
}

/// A product with everything, to which a bias is added by its runs or beforehand.
fn with_everything(weights: &Weights) -> MatMulBuilder {
    assert_eq!((weights.k(), weights.n()), (K, N));
    MatMul::builder(M, N, K)
        .batch(BATCH)
        .variable_m(true)
        .alpha(0.5)
        .residual(true)
        .activation(Activation::Silu)
}

#[test]
fn a_known_bias_is_that_of_every_run() {
    let weights = Weights::from_tensor(random_floats(1, K, N, 12));
    let (a, residual) = (random_floats(BATCH, M, K, 11), random_floats(BATCH, M, N, 13));
    let bias = random_floats(1, 1, N, 14);
    let inputs = Inputs::new(&a).residual(&residual);
    let every_run = compile(with_everything(&weights).bias(true).with_weights(&weights), 1);
    let expected = bits(&every_run.run_to_tensor(inputs.bias(&bias)).unwrap());

    let options = CompileOptions::default().self_check(SelfCheck::every_run());
    // Whether the description says that there is one.
    for builder in [with_everything(&weights), with_everything(&weights).bias(true)] {
        let product = builder.with_weights(&weights).unwrap().with_bias(&bias).unwrap();
        assert!(product.product().has_bias());
        let compiled = product.compile_with(&BackendId::CPU, &options).unwrap();
        assert_eq!(bits(&compiled.run_to_tensor(inputs).unwrap()), expected);
        let mut c = compiled.run_to_tensor(inputs).unwrap();
        assert_eq!(compiled.checks().checked, 2);
        assert_eq!(compiled.checks().mismatches, 0);

        // A run brings none.
        let (mut executor, pool) = (compiled.executor().unwrap(), compiled.pool(1).unwrap());
        let twice = inputs.bias(&bias);
        for result in [
            executor.run(twice, &mut c),
            executor.run_observed(twice, &mut c).map(drop),
            pool.run(twice, &mut c),
            compiled.run(twice, &mut c),
            compiled.run_to_tensor(twice).map(drop),
            executor.run_to_tensor(twice).map(drop),
            pool.run_to_tensor(twice).map(drop),
        ] {
            assert!(matches!(result, Err(Error::Unexpected { operand: Operand::Bias, .. })), "{result:?}");
        }
        c.data_mut().fill(f32::NAN);
        assert_eq!(executor.run_observed(inputs, &mut c).unwrap().observed, Device::Unknown);
        assert_eq!(bits(&c), expected);

        assert_eq!(bits(&executor.run_to_tensor(inputs).unwrap()), expected);
        assert_eq!(bits(&pool.run_to_tensor(inputs).unwrap()), expected);

        // What verifies results knows it.
        for reference in [Reference::new(&product, inputs), Reference::of(&compiled, inputs)] {
            assert!(reference.unwrap().compare(&c).unwrap().is_within_bound());
        }
        let mut checker =
            ResultChecker::new(&product, &SelfCheck::every_run().failure_probability(1e-12)).unwrap();
        assert_eq!(checker.check(inputs, &c).unwrap(), None);
        let extra = checker.check(twice, &c);
        assert!(matches!(extra, Err(Error::Unexpected { operand: Operand::Bias, .. })), "{extra:?}");
        let other = product.clone().with_bias(&vec![100f32; N]).unwrap();
        assert!(!Reference::new(&other, inputs).unwrap().compare(&c).unwrap().is_within_bound());
        let mut checker = ResultChecker::new(&other, &SelfCheck::every_run()).unwrap();
        assert!(checker.check(inputs, &c).unwrap().is_some());
    }

    // With f64 operands the bias is as it was given.
    let product = MatMul::new(M, N, K).unwrap().with_weights(&weights).unwrap().with_bias(&bias).unwrap();
    let compiled = product.compile(&BackendId::CPU).unwrap();
    let one = Tensor::from_vec(a.data()[..M * K].to_vec(), M, K).unwrap();
    let narrow = compiled.run_to_tensor(&one).unwrap();
    let mut wide = Tensor::<f64>::zeros(M, N).unwrap();
    let one = one.to_f64().unwrap();
    compiled.executor().unwrap().run_f64(Inputs::new(&one), wide.view_mut()).unwrap();
    assert_eq!(wide.to_f32().unwrap(), narrow);
    let twice = Inputs::new(&one).bias(&bias);
    let twice = compiled.executor().unwrap().run_f64(twice, wide.view_mut());
    assert!(matches!(twice, Err(Error::Unexpected { operand: Operand::Bias, .. })), "{twice:?}");
}

#[test]
fn a_known_bias_may_be_of_any_kind_of_product() {
    for kind in KINDS {
        let (a, weights) = (kind.a(1, M), kind.weights(N, true, 1));
        let bias: Vec<f32> = (0..N).map(|col| col as f32 - 7.5).collect();
        let narrow: Vec<bf16> = bias.iter().copied().map(bf16::from_f32).collect();
        let known = kind.describe(M, N).with_weights(&weights).unwrap();
        let brought = compile(kind.describe(M, N).bias(true).with_weights(&weights), 1);
        let expected = bits(&brought.run_to_tensor(Inputs::new(a.view()).bias(&bias)).unwrap());
        let f32s = compile(known.clone().with_bias(&bias), 1);
        assert_eq!(bits(&f32s.run_to_tensor(a.view()).unwrap()), expected, "{kind:?}");
        // All of them are numbers of bf16 too; the bias says what it is of.
        let bf16s = known.with_bias(&narrow).unwrap();
        assert_eq!(bf16s.product().types().bias, ElementType::Bf16);
        match bf16s.compile(&BackendId::CPU) {
            Ok(compiled) => {
                assert_eq!(bits(&compiled.run_to_tensor(a.view()).unwrap()), expected, "{kind:?}")
            }
            Err(Error::Refused { refusal, .. }) => assert_eq!(refusal.reason, RefusalReason::ElementType),
            Err(error) => panic!("{kind:?}: {error}"),
        }
    }
}

#[test]
fn a_bias_that_does_not_fit_is_refused() {
    let weights = Weights::from_tensor(random_floats(1, K, N, 12));
    let product = MatMul::new(M, N, K).unwrap().with_weights(&weights).unwrap();
    for (rows, cols) in [(1, N - 1), (1, N + 1), (N, 1), (2, N), (0, N), (1, 0)] {
        let bias = Tensor::filled(rows, cols, 1f32).unwrap();
        let wrong = product.clone().with_bias(&bias);
        let Err(Error::Shape { operand: Operand::Bias, expected, got, .. }) = &wrong else {
            panic!("{wrong:?}")
        };
        assert_eq!((expected, got), (&format!("1x{N}"), &format!("{rows}x{cols}")));
    }
    let of_bytes = product.clone().with_bias(&vec![1u8; N]);
    assert!(
        matches!(&of_bytes, Err(Error::Description { problem, .. }) if problem.contains("bias of type u8"))
    );
    // Described, and run by nobody.
    let wide = product.with_bias(&vec![1f64; N]).unwrap().compile(&BackendId::CPU);
    assert!(matches!(wide, Err(Error::Refused { .. })), "{wide:?}");
}

#[test]
fn a_cache_compiles_once_for_all_biases() {
    let cache = ProductCache::new(Backends::new(), CacheLimits::default());
    let options = CompileOptions::default();
    let weights = Weights::from_tensor(random_floats(1, K, N, 12));
    let a = random_floats(1, M, K, 11);
    let product = MatMul::new(M, N, K).unwrap().with_weights(&weights).unwrap();
    let biases = [vec![1f32; N], (0..N).map(|col| -3.0 * col as f32).collect()];
    let cached = |bias: &Vec<f32>| {
        cache.compile(&BackendId::CPU, &product.clone().with_bias(bias).unwrap(), &options).unwrap()
    };
    let expected = biases.each_ref().map(|bias| {
        let compiled = product.clone().with_bias(bias).unwrap().compile_with(&BackendId::CPU, &options);
        bits(&compiled.unwrap().run_to_tensor(&a).unwrap())
    });
    assert_ne!(expected[0], expected[1]);
    let compiled = biases.each_ref().map(cached);
    assert_eq!((cache.statistics().misses, cache.statistics().hits), (1, 1));
    // In turn, on what was compiled once.
    for round in 0..3 {
        for (compiled, expected) in compiled.iter().zip(&expected) {
            assert_eq!(bits(&compiled.run_to_tensor(&a).unwrap()), *expected, "round {round}");
        }
    }
    let mut executors = compiled.each_ref().map(|compiled| compiled.executor().unwrap());
    let mut c = Tensor::<f32>::zeros(M, N).unwrap();
    for (executor, expected) in executors.iter_mut().zip(&expected) {
        executor.run(&a, &mut c).unwrap();
        assert_eq!(bits(&c), *expected);
    }
    // The same description, whose runs bring theirs; and another, without any.
    let brought = MatMul::builder(M, N, K).bias(true).with_weights(&weights).unwrap();
    let brought = cache.compile(&BackendId::CPU, &brought, &options).unwrap();
    assert_eq!((cache.statistics().misses, cache.statistics().hits), (1, 2));
    assert_eq!(bits(&brought.run_to_tensor(Inputs::new(&a).bias(&biases[1])).unwrap()), expected[1]);
    assert!(matches!(brought.run_to_tensor(&a), Err(Error::Missing { operand: Operand::Bias, .. })));
    let without = cache.compile(&BackendId::CPU, &product, &options).unwrap();
    assert_eq!((cache.statistics().misses, cache.statistics().hits), (2, 2));
    assert_eq!(without.product(), product.product());
}

const RUNS: usize = 40;
const CALLERS: usize = 8;

/// A layer of f32 that verifies every run, with inputs and what they must give.
fn layer() -> (Compiled, Vec<Tensor<f32>>, Vec<Vec<u32>>) {
    let weights = Weights::from_tensor(random_floats(1, K, N, 12));
    let bias: Vec<f32> = (0..N).map(|col| col as f32).collect();
    let options = CompileOptions::default().threads(Threads::ONE).self_check(SelfCheck::every_run());
    let layer = Linear::new(&weights).max_rows(M).bias(&bias);
    let compiled = layer.compile_with(&BackendId::CPU, &options).unwrap();
    let inputs: Vec<_> =
        (0..CALLERS).map(|caller| random_floats(1, 1 + caller % M, K, caller as u64)).collect();
    let mut executor = compiled.executor().unwrap();
    let expected = inputs
        .iter()
        .map(|a| {
            let mut c = Tensor::<f32>::zeros(a.rows(), N).unwrap();
            executor.run(a, &mut c).unwrap();
            bits(&c)
        })
        .collect();
    (compiled, inputs, expected)
}

/// Runs `run` from all threads at once, each with inputs of its own, and looks at the results.
fn from_all_threads(
    inputs: &[Tensor<f32>],
    expected: &[Vec<u32>],
    run: impl Fn(&Tensor<f32>, &mut Tensor<f32>) -> Result<()> + Sync,
) {
    std::thread::scope(|scope| {
        for (a, expected) in inputs.iter().zip(expected) {
            let run = &run;
            scope.spawn(move || {
                for _ in 0..RUNS {
                    let mut c = Tensor::filled(a.rows(), N, f32::NAN).unwrap();
                    run(a, &mut c).unwrap();
                    assert_eq!(bits(&c), *expected);
                }
            });
        }
    });
}

#[test]
fn a_compiled_product_runs_from_any_thread() {
    let (compiled, inputs, expected) = layer();
    assert_eq!(compiled.checks().checked, 0, "an executor counts its own");
    from_all_threads(&inputs, &expected, |a, c| compiled.run(a, c));
    assert_eq!(compiled.checks().checked, (CALLERS * RUNS) as u64);
    from_all_threads(&inputs, &expected, |a, c| {
        *c = compiled.clone().run_to_tensor(a)?;
        Ok(())
    });
    assert_eq!(compiled.checks().checked, 2 * (CALLERS * RUNS) as u64);
    assert_eq!((compiled.checks().mismatches, compiled.checks().reruns), (0, 0));
    // After an error the executor is as good as before.
    let mut narrow = Tensor::<f32>::zeros(1, N - 1).unwrap();
    assert!(matches!(compiled.run(&inputs[0], &mut narrow), Err(Error::Shape { operand: Operand::C, .. })));
    from_all_threads(&inputs, &expected, |a, c| compiled.run(a, c));
}

#[test]
fn a_pool_runs_from_any_thread() {
    let (compiled, inputs, expected) = layer();
    let pool = compiled.pool(2).unwrap();
    assert_eq!((pool.size(), pool.idle(), pool.checks().checked), (2, 2, 0));
    from_all_threads(&inputs, &expected, |a, c| pool.run(a, c));
    assert_eq!(pool.idle(), 2);
    assert_eq!(pool.checks().checked, (CALLERS * RUNS) as u64);
    from_all_threads(&inputs, &expected, |a, c| pool.get()?.run(a, c));
    assert_eq!(pool.idle(), 2);
    assert_eq!(pool.checks().checked, 2 * (CALLERS * RUNS) as u64);
    assert_eq!((pool.checks().mismatches, pool.checks().reruns), (0, 0));
    assert_eq!(compiled.checks().checked, 0, "a pool counts its own");
    assert_eq!(pool.compiled().product(), compiled.product());

    // More than one at a time is never used by two, or by more than there are.
    let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    from_all_threads(&inputs, &expected, |a, c| {
        let mut executor = pool.get()?;
        most.fetch_max(1 + now.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
        let result = executor.run(a, c);
        now.fetch_sub(1, Ordering::SeqCst);
        result
    });
    assert!((1..=2).contains(&most.into_inner()));
    assert!(matches!(compiled.pool(0), Err(Error::Threads { .. })));
}

#[test]
fn who_finds_no_executor_idle_waits_or_is_told() {
    let (compiled, inputs, expected) = layer();
    let pool = compiled.pool(2).unwrap();
    let one = pool.try_get().unwrap().expect("two are idle");
    let other = pool.get().unwrap();
    assert_eq!(pool.idle(), 0);
    assert!(pool.try_get().unwrap().is_none());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut c = Tensor::<f32>::zeros(inputs[0].rows(), N).unwrap();
            pool.run(&inputs[0], &mut c).unwrap();
            done.store(true, Ordering::SeqCst);
            bits(&c)
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!done.load(Ordering::SeqCst), "it ran with an executor that is held");
        drop(other);
        assert_eq!(waiting.join().unwrap(), expected[0]);
    });
    assert_eq!(pool.idle(), 1);
    drop(one);
    assert_eq!(pool.idle(), 2);
    // What a guard lends is an executor, with all that it does.
    let mut guard = pool.get().unwrap();
    let before = guard.checks().checked;
    let mut c = Tensor::<f32>::zeros(inputs[1].rows(), N).unwrap();
    guard.run_observed(&inputs[1], &mut c).unwrap();
    assert_eq!((guard.checks().checked, bits(&c)), (before + 1, expected[1].clone()));
    assert_eq!(guard.compiled().product(), compiled.product());
}

fn panics<T>(body: impl FnOnce() -> T) {
    let Err(payload) = catch_unwind(AssertUnwindSafe(body)) else { panic!("it ended well") };
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"planted"));
}

#[test]
fn a_panic_costs_a_pool_nothing() {
    let (compiled, inputs, expected) = layer();
    let pool = compiled.pool(2).unwrap();
    let works = |pool: &ExecutorPool| from_all_threads(&inputs, &expected, |a, c| pool.run(a, c));
    let run = |guard: &mut ane_matmul::Executor| {
        let mut c = Tensor::<f32>::zeros(inputs[0].rows(), N).unwrap();
        guard.run(&inputs[0], &mut c).unwrap();
    };
    panics(|| {
        let mut guard = pool.get().unwrap();
        run(&mut guard);
        panic!("planted");
    });
    assert_eq!((pool.idle(), pool.size()), (2, 2));
    works(&pool);
    assert_eq!(pool.idle(), 2);

    // Both at once, and as often as there are executors and more.
    for _ in 0..3 {
        panics(|| {
            let (_one, _other) = (pool.get().unwrap(), pool.try_get().unwrap().expect("the second"));
            assert_eq!(pool.idle(), 0);
            panic!("planted");
        });
        assert_eq!(pool.idle(), 2);
    }
    let (one, other) = (pool.try_get().unwrap(), pool.try_get().unwrap());
    assert!(one.is_some() && other.is_some() && pool.try_get().unwrap().is_none());
    drop((one, other));
    works(&pool);

    // Who waits is not forgotten.
    let only = compiled.pool(1).unwrap();
    let guard = only.get().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| run(&mut only.get().unwrap()));
        std::thread::sleep(std::time::Duration::from_millis(20));
        panics(|| {
            let _guard = guard;
            panic!("planted");
        });
        waiting.join().unwrap();
    });
    assert_eq!(only.idle(), 1);
}

/// Panics in a run, as long as it is told to.
#[derive(Debug, Default)]
struct Panicking(AtomicBool);

impl ThreadPool for Panicking {
    fn threads(&self) -> usize {
        2
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        assert!(!self.0.load(Ordering::SeqCst), "planted");
        (0..tasks).for_each(task);
    }
}

#[test]
fn a_run_that_panics_costs_nothing_either() {
    let threads = Arc::new(Panicking::default());
    let options = CompileOptions::default().threads(Threads::Pool(threads.clone()));
    let (n, k) = (300, 300);
    let weights = Weights::from_tensor(random_floats(1, k, n, 1));
    let compiled = Linear::new(&weights).max_rows(200).compile_with(&BackendId::CPU, &options).unwrap();
    let pool = compiled.pool(1).unwrap();
    let a = random_floats(1, 200, k, 2);
    let expected = bits(&compiled.run_to_tensor(&a).unwrap());
    let mut c = Tensor::<f32>::zeros(200, n).unwrap();
    for _ in 0..3 {
        threads.0.store(true, Ordering::SeqCst);
        panics(|| compiled.run(&a, &mut c));
        panics(|| pool.run(&a, &mut c));
        threads.0.store(false, Ordering::SeqCst);
        assert_eq!(pool.idle(), 1);
        assert_eq!(bits(&compiled.run_to_tensor(&a).unwrap()), expected);
        pool.run(&a, &mut c).unwrap();
        assert_eq!(bits(&c), expected);
    }
}

#[test]
fn a_layer_is_the_product_built_by_hand() {
    for kind in KINDS {
        for transposed in [false, true] {
            let weights = kind.weights(N, transposed, 1);
            let bias: Vec<f32> = (0..N).map(|col| 0.25 * col as f32 - 3.0).collect();
            let by_hand = kind.describe(M, N).variable_m(true).activation(Activation::Gelu);
            let product = by_hand.with_weights(&weights).unwrap().with_bias(&bias).unwrap();
            let layer = Linear::new(&weights)
                .max_rows(M)
                .bias(&bias)
                .activation(Activation::Gelu)
                .types(kind.types())
                .quantization(kind.quantization());
            let built = layer.build().unwrap();
            assert_eq!(built.product(), product.product(), "{kind:?}");
            assert_eq!(built.weights().id(), weights.id());
            assert_eq!(Product::bias(&built).map(|bias| bias.element_type()), Some(ElementType::F32));
            let (compiled, expected) = (layer.compile(&BackendId::CPU).unwrap(), compile(Ok(product), 1));
            for rows in 0..=M {
                let a = kind.a(1, rows);
                let c = compiled.run_to_tensor(a.view()).unwrap();
                assert_eq!((c.rows(), c.cols()), (rows, N), "{kind:?}");
                assert_eq!(
                    bits(&c),
                    bits(&expected.run_to_tensor(a.view()).unwrap()),
                    "{kind:?}, {rows} rows"
                );
                let mut d = Tensor::filled(rows, N, f32::NAN).unwrap();
                compiled.run(a.view(), &mut d).unwrap();
                assert_eq!(d, c, "{kind:?}, {rows} rows");
            }
        }
    }
}

#[test]
fn a_layer_says_what_does_not_fit() {
    let weights = Weights::from_tensor(random_floats(1, K, N, 12));
    let layer = Linear::new(&weights).max_rows(M);
    for bias in [vec![1f32; N - 1], vec![1f32; N + 1], Vec::new()] {
        let wrong = layer.clone().bias(&bias).compile(&BackendId::CPU);
        assert!(matches!(wrong, Err(Error::Shape { operand: Operand::Bias, .. })), "{wrong:?}");
        assert!(layer.clone().bias(&bias).build().is_err());
        // The last one counts.
        assert!(layer.clone().bias(&bias).bias(&vec![1f32; N]).build().is_ok());
    }
    let integers = ElementTypes { accumulator: ElementType::I32, ..ElementTypes::F32 };
    assert!(matches!(layer.clone().types(integers).compile_default(), Err(Error::Description { .. })));

    let compiled = layer.compile(&BackendId::CPU).unwrap();
    let (x, mut y) = (random_floats(1, M + 1, K, 1), Tensor::<f32>::zeros(M + 1, N).unwrap());
    match compiled.run(&x, &mut y) {
        Err(Error::Rows { compiled: M, got, variable: true }) => assert_eq!(got, M + 1),
        other => panic!("{other:?}"),
    }
    let once = compiled.run_to_tensor(&x);
    assert!(matches!(once, Err(Error::Rows { .. } | Error::Shape { operand: Operand::A, .. })), "{once:?}");
    let narrow = compiled.run_to_tensor(&random_floats(1, M, K - 1, 1));
    assert!(matches!(narrow, Err(Error::Shape { operand: Operand::A, .. })), "{narrow:?}");

    // For one row, if nothing is said.
    let one = Linear::new(&weights).compile(&BackendId::CPU).unwrap();
    assert_eq!((one.product().m(), one.product().variable_m()), (1, false));
    let mut y = Tensor::<f32>::zeros(2, N).unwrap();
    let two = one.run(&random_floats(1, 2, K, 1), &mut y);
    assert!(matches!(two, Err(Error::Rows { compiled: 1, got: 2, variable: false })), "{two:?}");
    let x: Vec<f32> = random_floats(1, 1, K, 1).into_vec();
    assert_eq!(one.run_to_tensor(&x).unwrap().cols(), N, "a vector is a row");
    // A layer of a batch of weights has a batch of inputs.
    let batched = Linear::new(&Weights::new(&random_floats(BATCH, K, N, 12)).unwrap()).max_rows(M);
    let compiled = batched.compile(&BackendId::CPU).unwrap();
    let c = compiled.run_to_tensor(&random_floats(BATCH, M, K, 1)).unwrap();
    assert_eq!((c.batch(), c.rows(), c.cols()), (BATCH, M, N));
    // Items of fewer rows lie apart in C as described, which a tensor does not have.
    let x = random_floats(BATCH, M, K, 1);
    let gaps = Layout::strided(BATCH, 2, N, N, M * N).unwrap();
    let few = Layout::strided(BATCH, 2, K, K, M * K).unwrap();
    let few = TensorView::with_layout(x.data(), few).unwrap();
    assert!(matches!(compiled.run_to_tensor(few), Err(Error::Shape { operand: Operand::C, .. })));
    let mut y = vec![f32::NAN; gaps.span()];
    compiled.run(few, TensorViewMut::with_layout(&mut y, gaps).unwrap()).unwrap();
    for item in 0..BATCH {
        assert_eq!(y[item * M * N..][..2 * N], c.data()[item * M * N..][..2 * N]);
    }
}

#[test]
fn a_product_computed_once_is_that_of_the_cpu() {
    let (a, b) = (random_floats(1, M, K, 1), random_floats(1, K, N, 2));
    let compiled = MatMul::new(M, N, K).unwrap().compile(&BackendId::CPU).unwrap();
    let expected = bits(&compiled.run_to_tensor(Inputs::new(&a).b(&b)).unwrap());
    assert_eq!(bits(&matmul(&a, &b).unwrap()), expected);

    // One matrix for all items of the other's batch, on either side.
    let many_a = random_floats(BATCH, M, K, 3);
    let many_b = random_floats(BATCH, K, N, 4);
    let item = |tensor: &Tensor<f32>, item: usize| {
        let len = tensor.rows() * tensor.cols();
        Tensor::from_vec(tensor.data()[item * len..][..len].to_vec(), tensor.rows(), tensor.cols()).unwrap()
    };
    for (a, b) in [(&many_a, &b), (&a, &many_b), (&many_a, &many_b)] {
        let c = matmul(a, b).unwrap();
        assert_eq!(c.batch(), BATCH);
        for index in 0..BATCH {
            let one = |tensor: &Tensor<f32>| item(tensor, if tensor.batch() == 1 { 0 } else { index });
            assert_eq!(item(&c, index), matmul(&one(a), &one(b)).unwrap(), "{index}");
        }
    }

    // Exact sums of integers, and other types that run without a word.
    let (left, right) = (random_bytes(1, M, K, 5), random_bytes(1, K, N, 6));
    let sum = |row: usize, col: usize| {
        let term = |p: usize| i32::from(left.data()[row * K + p]) * i32::from(right.data()[p * N + col]);
        (0..K).map(term).sum::<i32>() as f32
    };
    assert_eq!(matmul(&left, &right).unwrap(), Tensor::from_fn(M, N, sum).unwrap());
    assert!(matmul(&a, &right).is_ok());

    let wide = a.to_f64().unwrap();
    for (result, operand) in [(matmul(&wide, &b), Operand::A), (matmul(&a, &b.to_f64().unwrap()), Operand::B)]
    {
        match result {
            Err(Error::Type { operand: got, got: ElementType::F64, .. }) => assert_eq!(got, operand),
            other => panic!("{other:?}"),
        }
    }
    for (a, b) in [(&a, &a), (&many_a, &random_floats(BATCH + 1, K, N, 1)), (&a, &many_a)] {
        assert!(matches!(matmul(a, b), Err(Error::Shape { operand: Operand::B, .. })));
    }
}

/// What the description of a product alone is not enough for, and what does not fit, is refused by those who judge
/// results too.
#[test]
fn a_reference_is_of_operands_that_fit() {
    let weights = Weights::new(TensorView::new(&[1i8, 2, 3, 4], 2, 2).unwrap()).unwrap();
    let scheme = QuantB::PerColumn { zero_point: 0 };
    let weights = weights.with_scales(scheme, &[0.5f32, 4.0]).unwrap();
    let product = MatMul::new(1, 2, 2).unwrap().with_weights(&weights).unwrap();
    let product = product.with_bias(&[1f32, 2.0]).unwrap();
    let (a, b) = ([1f32, 1.0], TensorView::new(&[1i8, 2, 3, 4], 2, 2).unwrap());
    let reference = Reference::new(&product, &a).unwrap();
    assert_eq!(reference.values(), [3.0, 26.0]);
    let missing = |result: Result<()>| {
        assert!(matches!(result, Err(Error::Missing { operand: Operand::B, .. })), "{result:?}");
    };
    let alone = product.product();
    let bias = [1f32, 2.0];
    missing(Reference::new(alone, Inputs::new(&a).bias(&bias)).map(drop));
    missing(ResultChecker::new(alone, &SelfCheck::every_run()).map(drop));
    missing(alone.compile(&BackendId::CPU).map(drop));
    let unexpected = |inputs: Inputs<'_>, of: Operand| {
        for result in [Reference::new(&product, inputs).map(drop), Reference::new(alone, inputs).map(drop)] {
            assert!(matches!(result, Err(Error::Unexpected { operand, .. }) if operand == of), "{result:?}");
        }
    };
    unexpected(Inputs::new(&a).b(b), Operand::B);
    let both = Reference::new(&product, Inputs::new(&a).bias(&bias)).map(drop);
    assert!(matches!(both, Err(Error::Unexpected { operand: Operand::Bias, .. })), "{both:?}");
    for wrong in [&[1f32][..], &[1.0, 2.0, 3.0]] {
        let result = Reference::new(&product, wrong).map(drop);
        assert!(matches!(result, Err(Error::Shape { operand: Operand::A, .. })), "{result:?}");
    }
}

#[test]
fn pools_and_results_have_bounds() {
    let compiled = MatMul::new(2, 2, 2).unwrap().compile(&BackendId::CPU).unwrap();
    for size in [0, Threads::MAXIMUM + 1, usize::MAX] {
        assert!(matches!(compiled.pool(size), Err(Error::Threads { .. })));
    }
    let layer = Linear::new(&Weights::new(&[1f32]).unwrap()).max_rows(2);
    let layer = layer.compile(&BackendId::CPU).unwrap();
    let three = Tensor::filled(3, 1, 1f32).unwrap();
    assert!(matches!(layer.run_to_tensor(&three), Err(Error::Rows { compiled: 2, got: 3, variable: true })));
    // As many columns as there can be: vectors of a check cannot be as long.
    let options = CompileOptions::new().self_check(SelfCheck::every_run());
    let wide = MatMul::new(0, usize::MAX, 0).unwrap().compile_with(&BackendId::CPU, &options);
    assert!(matches!(wide, Err(Error::SizeOverflow { .. })), "{wide:?}");
}

#[test]
fn a_once_computed_product_takes_both_orders_of_nibbles() {
    let bytes = [0x21, 0x43];
    let layout = Layout::packed(1, 2, 2).unwrap();
    for (order, sums) in [(NibbleOrder::LowFirst, [4.0, 6.0]), (NibbleOrder::HighFirst, [6.0, 4.0])] {
        let b = Int4View::signed(&bytes, layout, order).unwrap();
        assert_eq!(matmul(&[1f32, 1.0], b).unwrap().data(), sums);
    }
}
