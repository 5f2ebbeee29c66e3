//! Compiling and running: what fits, what does not, and what is reported.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ane_matmul::{
    BackendId, Backends, CompileOptions, Compiled, Device, ElementType, ElementTypes, Error, Executor,
    ExecutorPool, Inputs, Layout, Linear, MatMul, MatMulWithWeights, Operand, PooledExecutor, QuantB,
    Quantization, RefusalReason, ResultChecker, SelfCheck, SharedBuffer, ShimLibrary, Tensor, TensorView,
    TensorViewMut, ThreadPool, Threads, Weights, matmul_f64,
};
use ane_matmul_conformance::{Case, Failure, run_case, shared_cases};
use approx::assert_abs_diff_eq;

const fn sync<T: Send + Sync>() {}
const fn send<T: Send>() {}
const _: () = {
    sync::<MatMul>();
    sync::<MatMulWithWeights>();
    sync::<Linear>();
    sync::<Weights>();
    sync::<Compiled>();
    sync::<ExecutorPool>();
    sync::<Backends>();
    sync::<CompileOptions>();
    sync::<Error>();
    sync::<Inputs<'_>>();
    sync::<Tensor<f32>>();
    sync::<TensorView<'_, f32>>();
    sync::<TensorViewMut<'_, f32>>();
    sync::<SharedBuffer>();
    sync::<ShimLibrary>();
    send::<Executor>();
    send::<PooledExecutor<'_>>();
};

/// `Executor` is not `Sync`: this would be ambiguous if it were.
#[test]
fn executors_are_not_sync() {
    trait Ambiguous<A> {
        fn check() {}
    }
    impl<T: ?Sized> Ambiguous<()> for T {}
    struct IfSync;
    impl<T: ?Sized + Sync> Ambiguous<IfSync> for T {}
    <Executor as Ambiguous<_>>::check();
}

fn compile(product: &MatMul) -> Compiled {
    product.compile(&BackendId::CPU).unwrap()
}

fn tensors() -> (Tensor<f32>, Tensor<f32>, Tensor<f32>) {
    (
        Tensor::random_normal_f32(3, 5, 1.0, 1).unwrap(),
        Tensor::random_normal_f32(5, 4, 1.0, 2).unwrap(),
        Tensor::zeros(3, 4).unwrap(),
    )
}

#[test]
fn operands_that_do_not_fit_are_errors_and_the_executor_lives_on() {
    let (a, b, mut c) = tensors();
    let mut executor = compile(&MatMul::new(3, 4, 5).unwrap()).executor().unwrap();
    let wrong = Tensor::<f32>::zeros(5, 3).unwrap();
    let mut small = Tensor::<f32>::zeros(3, 3).unwrap();
    let mut tall = Tensor::<f32>::zeros(4, 4).unwrap();
    let is = |result: Result<(), Error>, operand: Operand| {
        assert!(matches!(&result, Err(Error::Shape { operand: got, .. }) if *got == operand), "{result:?}");
    };
    is(executor.run(Inputs::new(&wrong).b(&b), &mut c), Operand::A);
    is(executor.run(Inputs::new(&a).b(&wrong), &mut c), Operand::B);
    is(executor.run(Inputs::new(&a).b(&b), &mut small), Operand::C);
    let rows = executor.run(Inputs::new(&a).b(&b), &mut tall);
    assert!(matches!(rows, Err(Error::Rows { compiled: 3, got: 4, variable: false })));
    let missing = executor.run(Inputs::new(&a), &mut c);
    assert!(matches!(missing, Err(Error::Missing { operand: Operand::B, .. })));
    let extra = executor.run(Inputs::new(&a).b(&b).bias(&[0f32; 4]), &mut c);
    assert!(matches!(extra, Err(Error::Unexpected { operand: Operand::Bias, .. })));
    let extra = executor.run(Inputs::new(&a).b(&b).residual(&a), &mut c);
    assert!(matches!(extra, Err(Error::Unexpected { operand: Operand::Residual, .. })));
    let wide = a.to_f64().unwrap();
    let typed = executor.run(Inputs::new(&wide).b(&b), &mut c);
    assert!(matches!(
        typed,
        Err(Error::Type { operand: Operand::A, expected: ElementType::F32, got: ElementType::F64 })
    ));
    let mut c64 = Tensor::<f64>::zeros(3, 4).unwrap();
    let mixed = executor.run_f64(Inputs::new(&wide).b(&b), c64.view_mut());
    assert!(matches!(mixed, Err(Error::Type { operand: Operand::B, got: ElementType::F32, .. })));
    executor.run(Inputs::new(&a).b(&b), &mut c).unwrap();
    assert!(c.data().iter().all(|&x| x != 0.0));
}

#[test]
fn messages_say_what_to_do() {
    let (a, b, mut c) = tensors();
    let product = MatMul::builder(3, 4, 5).leading_dimension(Operand::A, 8).build().unwrap();
    let error = compile(&product).executor().unwrap().run(Inputs::new(&a).b(&b), &mut c).unwrap_err();
    assert_eq!(
        error.to_string(),
        "A: expected 3x5 with leading dimension 8, got 3x5; copy the operand, or describe the product with its \
         strides (leading_dimension, batch_stride)"
    );
}

#[test]
fn weights_and_description_must_agree() {
    let (a, b, mut c) = tensors();
    let weights = Weights::new(&b).unwrap();
    let constant = MatMul::builder(3, 4, 5).build_constant_b().unwrap();
    let transposed = MatMul::builder(3, 4, 5).transpose_b(true).build_constant_b().unwrap();
    let compiled = constant.with_weights(&weights).unwrap().compile(&BackendId::CPU).unwrap();
    let missing = constant.product().compile(&BackendId::CPU);
    assert!(matches!(missing, Err(Error::Missing { operand: Operand::B, .. })), "{missing:?}");
    assert!(matches!(transposed.with_weights(&weights), Err(Error::Description { .. })));
    let twice = compiled.executor().unwrap().run(Inputs::new(&a).b(&b), &mut c);
    assert!(matches!(twice, Err(Error::Unexpected { operand: Operand::B, .. })), "{twice:?}");
    // The weights say what they are of; no backend mixes these.
    let wide = constant.with_weights(&Weights::new(&b.to_f64().unwrap()).unwrap()).unwrap();
    assert_eq!(wide.product().types().b, ElementType::F64);
    match wide.compile(&BackendId::CPU) {
        Err(Error::Refused { refusal, .. }) => assert_eq!(refusal.reason, RefusalReason::ElementType),
        other => panic!("{other:?}"),
    }
}

#[test]
fn products_of_different_m_share_weights() {
    let weights = Weights::from_tensor(Tensor::random_normal_f32(5, 4, 1.0, 2).unwrap());
    let x = Tensor::random_normal_f32(8, 5, 1.0, 3).unwrap();
    let mut whole = Tensor::<f32>::zeros(8, 4).unwrap();
    for m in [8, 3, 1] {
        let product = MatMul::new(m, 4, 5).unwrap().with_weights(&weights).unwrap();
        let compiled = product.compile(&BackendId::CPU).unwrap();
        assert_eq!(compiled.weights(), Some(&weights));
        let a = x.view().slice(0..m, 0..5).unwrap();
        let c = whole.view_mut().slice(0..m, 0..4).unwrap();
        compiled.executor().unwrap().run(Inputs::new(a), c).unwrap();
    }
    let variable = MatMul::builder(8, 4, 5).variable_m(true).with_weights(&weights).unwrap();
    let compiled = variable.compile(&BackendId::CPU).unwrap();
    let mut executor = compiled.executor().unwrap();
    for m in [8, 0, 5] {
        let mut c = Tensor::<f32>::zeros(m, 4).unwrap();
        executor.run(Inputs::new(x.view().slice(0..m, 0..5).unwrap()), &mut c).unwrap();
        assert_abs_diff_eq!(*c.data(), whole.data()[..c.data().len()], epsilon = 1e-5);
    }
    let mut c = Tensor::<f32>::zeros(9, 4).unwrap();
    let error = executor.run(Inputs::new(&x), &mut c).unwrap_err();
    assert!(error.to_string().contains("m = 8 rows at most, got m = 9"), "{error}");
}

#[test]
fn products_of_f64_take_their_operands_as_they_are() {
    let wide = 1.0 + 2f64.powi(-40);
    let (a, b) = (Tensor::filled(2, 3, wide).unwrap(), Tensor::filled(3, 2, 1.0).unwrap());
    let bias = [2f64.powi(-45), -wide];
    let residual = Tensor::filled(2, 2, 2f64.powi(-48)).unwrap();
    let expected = |plus: f64| Tensor::from_fn(2, 2, |_, col| 1.5 * wide + bias[col] + plus).unwrap();
    let builder = || MatMul::builder(2, 2, 3).types(ElementTypes::F64).alpha(0.5).bias(true).residual(true);
    let inputs = Inputs::new(&a).bias(&bias).residual(&residual);
    let compiled = builder().build().unwrap().compile(&BackendId::AUTO).unwrap();
    assert_eq!(compiled.report().backend, BackendId::CPU);
    let mut c = Tensor::zeros(2, 2).unwrap();
    let mut executor = compiled.executor().unwrap();
    executor.run(inputs.b(&b), &mut c).unwrap();
    assert_eq!(c, expected(2f64.powi(-48)));
    // Of such a product, the run that rounds for products of f32 rounds nothing.
    executor.run_f64(inputs.b(&b), c.view_mut()).unwrap();
    assert_eq!(c, expected(2f64.powi(-48)));

    let weights = Weights::new(&b).unwrap();
    let compiled = builder().with_weights(&weights).unwrap().compile(&BackendId::CPU).unwrap();
    compiled.run(inputs, &mut c).unwrap();
    assert_eq!(c, expected(2f64.powi(-48)));
    let layer = Linear::new(&weights).max_rows(2).bias(&bias).build().unwrap();
    layer.compile(&BackendId::CPU).unwrap().run(Inputs::new(&a), &mut c).unwrap();
    assert_eq!(c, Tensor::from_fn(2, 2, |_, col| 3.0 * wide + bias[col]).unwrap());
    assert_eq!(matmul_f64(&a, &b).unwrap(), Tensor::filled(2, 2, 3.0 * wide).unwrap());

    let (narrow, mut narrow_c) = (b.to_f32().unwrap(), Tensor::<f32>::zeros(2, 2).unwrap());
    for operand in [executor.run(inputs.b(&narrow), &mut c), executor.run(inputs.b(&b), &mut narrow_c)] {
        assert!(matches!(operand, Err(Error::Type { .. })), "{operand:?}");
    }
    assert!(matches!(matmul_f64(&a, &narrow), Err(Error::Type { operand: Operand::B, .. })));
    // Freivalds' method has no precision left: rows are verified.
    let mut checker = ResultChecker::new(&builder().build().unwrap(), &SelfCheck::every_run()).unwrap();
    let mut c = expected(2f64.powi(-48));
    assert_eq!(checker.check(inputs.b(&b), &c).unwrap(), None);
    c.data_mut().fill(1.5);
    assert!(checker.check(inputs.b(&b), &c).unwrap().is_some());
}

#[test]
fn types_that_no_backend_runs_are_refused_with_the_reason() {
    let mixed = ElementTypes { b: ElementType::F32, ..ElementTypes::F64 };
    for types in [ElementTypes::uniform(ElementType::F16), mixed] {
        let product = MatMul::builder(2, 2, 2).types(types).build().unwrap();
        match product.compile(&BackendId::CPU) {
            Err(Error::Refused { refusal, .. }) => assert_eq!(refusal.reason, RefusalReason::ElementType),
            other => panic!("{other:?}"),
        }
    }
    let quantization = Quantization { b: QuantB::PerColumn { zero_point: 0 }, ..Quantization::default() };
    let types = ElementTypes { b: ElementType::I8, ..ElementTypes::F32 };
    // Scales of columns are those of weights: this is no product at all.
    let product = MatMul::builder(2, 2, 2).types(types).quantization(quantization).build();
    assert!(matches!(product, Err(Error::Description { .. })), "{product:?}");
    let gpu = CompileOptions::default().device(Device::Gpu);
    match MatMul::new(2, 2, 2).unwrap().compile_with(&BackendId::CPU, &gpu) {
        Err(Error::Refused { refusal, .. }) => assert_eq!(refusal.reason, RefusalReason::Device),
        other => panic!("{other:?}"),
    }
}

#[test]
fn backends_that_are_not_here_say_why() {
    let product = MatMul::new(2, 2, 2).unwrap();
    let compile = |name: &str| product.compile(&BackendId::new(name)).unwrap_err();
    let unknown = compile("cuda").to_string();
    assert!(unknown.contains("unknown backend `cuda`"), "{unknown}");
    for name in ["cpu", "blas", "accelerate", "metal", "mpsgraph"] {
        assert!(unknown.contains(name), "{unknown}");
    }
    let statuses = ane_matmul::available();
    assert_eq!(statuses.len(), 5);
    for status in statuses {
        if let Err(reason) = status.state {
            assert!(!reason.is_empty());
            assert!(compile(status.id.as_str()).to_string().contains(&reason));
        }
    }
}

#[test]
fn the_report_separates_requested_from_observed() {
    let options = CompileOptions::default().threads(Threads::ONE).device(Device::Cpu);
    let report = MatMul::new(64, 64, 64).unwrap().compile_with(&BackendId::CPU, &options).unwrap().report();
    assert_eq!(report.backend, BackendId::CPU);
    assert_eq!((report.requested, report.observed), (Device::Cpu, Device::Cpu));
    assert_eq!(report.threads, Some(1));
    assert!(report.compile_time.as_nanos() > 0);
}

#[derive(Debug)]
struct Counting(AtomicUsize);

impl ThreadPool for Counting {
    fn threads(&self) -> usize {
        2
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.0.fetch_add(tasks, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for index in 0..tasks {
                scope.spawn(move || task(index));
            }
        });
    }
}

#[test]
fn a_pool_of_the_callers_is_used() {
    let pool = Arc::new(Counting(AtomicUsize::new(0)));
    let options = CompileOptions::default().threads(Threads::Pool(pool.clone()));
    let compiled = MatMul::new(200, 200, 200).unwrap().compile_with(&BackendId::CPU, &options).unwrap();
    let a = Tensor::filled(200, 200, 1f32).unwrap();
    let c = compiled.run_to_tensor(Inputs::new(&a).b(&a)).unwrap();
    assert!(c.data().iter().all(|&x| x == 200.0));
    assert!(pool.0.load(Ordering::Relaxed) >= 2);
    assert_eq!(compiled.report().threads, Some(2));
}

/// Calls what it was not asked to call, in code without a line that is unsafe.
#[derive(Debug)]
enum Wrong {
    OutOfRange,
    Twice,
    AtOnce,
    OneShort,
    None,
}

impl ThreadPool for Wrong {
    fn threads(&self) -> usize {
        2
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        match self {
            Self::OutOfRange => (0..=tasks).chain([usize::MAX]).for_each(task),
            Self::Twice => (0..tasks).chain(0..tasks).for_each(task),
            Self::AtOnce => std::thread::scope(|scope| {
                for index in (0..tasks).chain(0..tasks) {
                    scope.spawn(move || task(index));
                }
            }),
            Self::OneShort => (1..tasks).for_each(task),
            Self::None => {}
        }
    }
}

#[test]
fn a_pool_that_calls_other_tasks_than_it_should_is_an_error() {
    let backends = Backends::new();
    for pool in [Wrong::OutOfRange, Wrong::Twice, Wrong::AtOnce, Wrong::OneShort, Wrong::None] {
        let name = format!("{pool:?}");
        let options = CompileOptions::default().threads(Threads::Pool(Arc::new(pool)));
        // Every way to compute a product, each worth two threads.
        for case in shared_cases().into_iter().step_by(2).chain([Case::new(1, 1, 1)]) {
            let case = Case { dims: [1, 300, 300, 300], ..case };
            match run_case(&backends, &BackendId::CPU, &options, &case, 1) {
                Err(Failure::Wrong(problem)) => {
                    assert!(
                        problem.contains(&format!("threads: the pool {name} finished")),
                        "{case}: {problem}"
                    );
                }
                Err(Failure::Refused(_, message)) => panic!("{name}: {case}: {message}"),
                Ok(_) => panic!("{name}: {case}: no error"),
            }
        }
    }
}

#[test]
fn a_pool_of_too_many_threads_is_an_error() {
    #[derive(Debug)]
    struct Endless;
    impl ThreadPool for Endless {
        fn threads(&self) -> usize {
            usize::MAX
        }

        fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
            (0..tasks).for_each(task);
        }
    }
    let options = CompileOptions::default().threads(Threads::Pool(Arc::new(Endless)));
    let error = MatMul::new(1000, 1000, 1000).unwrap().compile_with(&BackendId::CPU, &options).unwrap_err();
    assert!(matches!(&error, Error::Threads { problem } if problem.contains("at most 4096")), "{error}");
}

#[test]
fn one_compiled_product_runs_in_many_threads() {
    let compiled = compile(&MatMul::new(60, 70, 80).unwrap());
    let a = Tensor::random_normal_f32(60, 80, 1.0, 1).unwrap();
    let b = Tensor::random_normal_f32(80, 70, 1.0, 2).unwrap();
    let expected = compiled.run_to_tensor(Inputs::new(&a).b(&b)).unwrap();
    let mut moved = compiled.executor().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut executor = compiled.executor().unwrap();
                let mut c = Tensor::<f32>::zeros(60, 70).unwrap();
                for _ in 0..50 {
                    executor.run(Inputs::new(&a).b(&b), &mut c).unwrap();
                    assert_eq!(c, expected);
                }
            });
        }
        let (a, b, expected) = (&a, &b, &expected);
        scope.spawn(move || {
            let mut c = Tensor::<f32>::zeros(60, 70).unwrap();
            moved.run(Inputs::new(a).b(b), &mut c).unwrap();
            assert_eq!(&c, expected);
        });
    });
}

#[test]
fn executors_outlive_the_handle_they_came_from() {
    let (a, b, mut c) = tensors();
    let compiled = compile(&MatMul::new(3, 4, 5).unwrap());
    let mut executor = compiled.executor().unwrap();
    drop(compiled);
    executor.run(Inputs::new(&a).b(&b), &mut c).unwrap();
    assert_eq!(executor.compiled().product().m(), 3);
}

#[test]
fn runs_write_into_a_part_of_a_larger_matrix() {
    let (a, b, _) = tensors();
    let mut big = vec![9f32; 6 * 10];
    let product = MatMul::builder(3, 4, 5).leading_dimension(Operand::C, 10).build().unwrap();
    let layout = Layout::strided(1, 6, 10, 10, 60).unwrap();
    let part = TensorViewMut::with_layout(&mut big, layout).unwrap().slice(2..5, 3..7).unwrap();
    compile(&product).executor().unwrap().run(Inputs::new(&a).b(&b), part).unwrap();
    let view = TensorView::with_layout(&big, layout).unwrap();
    for row in 0..6 {
        for col in 0..10 {
            let inside = (2..5).contains(&row) && (3..7).contains(&col);
            assert_eq!(view.get(0, row, col) == Some(9.0), !inside, "{row} {col}");
        }
    }
}

#[test]
fn too_many_threads_are_an_error_or_work() {
    let count = |count| CompileOptions::default().threads(Threads::Count(NonZeroUsize::new(count).unwrap()));
    // So many that each would find no room for its stack.
    for status in ane_matmul::available().iter().filter(|status| status.state.is_ok()) {
        let product = MatMul::new(1000, 1000, 1000).unwrap();
        let error = product.compile_with(&status.id, &count(1_000_000)).unwrap_err();
        assert!(error.to_string().contains("at most 4096 threads, got 1000000"), "{error}");
    }
    let options = count(64);
    let compiled = MatMul::new(100, 100, 100).unwrap().compile_with(&BackendId::CPU, &options).unwrap();
    let a = Tensor::filled(100, 100, 1f32).unwrap();
    assert_eq!(compiled.run_to_tensor(Inputs::new(&a).b(&a)).unwrap().data()[0], 100.0);
}
