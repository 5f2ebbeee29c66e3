//! The reference shim passes the conformance suite, linked in and loaded; broken libraries are
//! refused with a reason.

use ane_matmul::{
    BackendId, Backends, CompileOptions, Device, ElementTypes, Error, Inputs, MatMul, RefusalReason,
    ShimLibrary, Tensor, TensorView, TensorViewMut, Weights,
};
use ane_matmul_conformance::{Scale, cases, run_suite};
use ane_matmul_shims::{BROKEN, LATER_MINOR, REFERENCE, linked_reference};

fn open(path: &str) -> Result<ShimLibrary, Error> {
    // SAFETY: the libraries are built from this repository; those that are broken are so in ways
    // that the loader must notice.
    unsafe { ShimLibrary::open(path) }
}

fn linked() -> ShimLibrary {
    // SAFETY: the reference shim's table is a constant of this program.
    unsafe { ShimLibrary::from_table(linked_reference(), "the linked reference shim") }.expect("a good shim")
}

fn with(shim: ShimLibrary) -> (Backends, BackendId) {
    let mut backends = Backends::new();
    let id = backends.add(shim).expect("a new name");
    (backends, id)
}

#[test]
fn the_reference_shim_conforms_linked_in() {
    let (backends, id) = with(linked());
    let cases = cases(Scale::Full);
    let summary = run_suite(&backends, &id, &CompileOptions::default(), &cases, &[]);
    assert_eq!(summary.passed, cases.len());
}

#[test]
fn the_reference_shim_conforms_loaded() {
    let (backends, id) = with(open(REFERENCE).expect("a good shim"));
    let cases = cases(Scale::Full);
    let summary = run_suite(&backends, &id, &CompileOptions::default(), &cases, &[]);
    assert_eq!(summary.passed, cases.len());
}

#[test]
fn a_shim_is_listed_under_its_own_name() {
    let (mut backends, id) = with(open(REFERENCE).expect("a good shim"));
    assert_eq!(id.as_str(), "reference");
    let info = backends.info(&id).unwrap();
    assert_eq!((info.device, info.is_test_double), (Device::Cpu, false));
    assert!(info.description.contains("reference") && info.device_name.contains("plain C"));
    assert!(backends.available().iter().any(|status| status.id == id));
    assert!(matches!(backends.add(linked()), Err(Error::DuplicateBackend { .. })));
}

#[test]
fn broken_libraries_are_refused_with_the_reason() {
    for (name, path, expected) in BROKEN {
        let text = open(path).expect_err(name).to_string();
        assert!(text.contains(expected), "{name}: {text}");
        assert!(text.contains(path), "{name}: {text}");
    }
    assert!(matches!(open("/nonexistent/shim.so"), Err(Error::Io { .. })));
    let text = open(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).expect_err("no library").to_string();
    assert!(text.contains("cannot be loaded as a dynamic library"), "{text}");
    // SAFETY: null is among what the function accepts.
    let null = unsafe { ShimLibrary::from_table(std::ptr::null(), "nothing") };
    assert!(null.unwrap_err().to_string().contains("returned no table"));
}

/// While the major version is 0, another minor is another ABI.
#[test]
fn a_later_minor_version_is_refused_by_name() {
    let text = open(LATER_MINOR).expect_err("another minor of major 0").to_string();
    assert!(text.contains("it speaks version 0.7 of the ABI, this crate 0.2"), "{text}");
    assert!(text.contains(LATER_MINOR), "{text}");
}

#[test]
fn refusals_keep_their_type_and_message() {
    let (backends, id) = with(linked());
    let refusal = |product: &MatMul, options: &CompileOptions| match backends.supports(&id, product, options)
    {
        Err(Error::Refused { refusal, .. }) => refusal,
        other => panic!("{other:?}"),
    };
    let bf16 = MatMul::builder(2, 2, 2).types(ElementTypes::BF16).build().unwrap();
    let refused = refusal(&bf16, &CompileOptions::default());
    assert_eq!(refused.reason, RefusalReason::ElementType);
    assert!(refused.message.contains("f32 only"));
    let gpu = CompileOptions::default().device(Device::Gpu);
    assert_eq!(refusal(&MatMul::new(2, 2, 2).unwrap(), &gpu).reason, RefusalReason::Device);
}

#[test]
fn a_product_reports_what_the_shim_says() {
    let (backends, id) = with(linked());
    let weights = Weights::from_tensor(Tensor::filled(3, 4, 1f32).unwrap());
    let product = MatMul::new(2, 4, 3).unwrap().with_weights(&weights).unwrap();
    let options = CompileOptions::default().device(Device::Cpu);
    let compiled = backends.compile(&id, &product, &options).unwrap();
    let report = compiled.report();
    assert_eq!((report.requested, report.observed), (Device::Cpu, Device::Cpu));
    assert!(report.bytes_held >= 48);
}

#[test]
fn a_second_start_loads_what_the_first_compiled() {
    let directory = std::env::temp_dir().join(format!("ane-matmul-packages-{}", std::process::id()));
    let product = MatMul::new(2, 4, 3).unwrap();
    let options = CompileOptions::default().packages(&directory);
    let input = Tensor::from_fn(2, 3, |r, c| (r * 3 + c) as f32).unwrap();
    let start = |value: f32| {
        let (backends, id) = with(open(REFERENCE).expect("a good shim"));
        let weights = Weights::from_tensor(Tensor::filled(3, 4, value).unwrap());
        let compiled = backends.compile(&id, &product.with_weights(&weights).unwrap(), &options).unwrap();
        let c = compiled.run_to_tensor(Inputs::new(&input)).unwrap();
        let expected: Vec<f32> = [3.0, 12.0].into_iter().flat_map(|sum| [sum * value; 4]).collect();
        assert_eq!(c.data(), expected);
        compiled.report().from_package
    };
    assert_eq!(
        [start(1.0), start(1.0), start(2.0), start(2.0), start(1.0)],
        [false, true, false, true, true]
    );
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn shared_buffers_hold_operands() {
    #[repr(align(64))]
    struct Aligned([f32; 16]);
    let (backends, id) = with(open(REFERENCE).expect("a good shim"));
    let mut page = Aligned([2.0; 16]);
    // SAFETY: the array outlives the buffer, and nothing else uses it meanwhile.
    let b = unsafe { backends.wrap_memory(&id, page.0.as_mut_ptr().cast(), 64) }.unwrap();
    let mut a = backends.shared_buffer(&id, 24).unwrap();
    let mut c = backends.shared_buffer(&id, 100).unwrap();
    a.elements_mut::<f32>().fill(1.0);
    c.elements_mut::<f32>().fill(f32::NAN);
    let mut executor = backends
        .compile(&id, &MatMul::new(2, 4, 3).unwrap(), &CompileOptions::default())
        .unwrap()
        .executor()
        .unwrap();
    let (a, b) = (TensorView::new(a.elements::<f32>(), 2, 3), TensorView::new(b.elements::<f32>(), 3, 4));
    let target = TensorViewMut::new(&mut c.elements_mut::<f32>()[1..], 2, 4).unwrap();
    executor.run(Inputs::new(a.unwrap()).b(b.unwrap()), target).unwrap();
    assert_eq!(c.elements::<f32>()[1..9], [6.0; 8]);
    assert!(c.elements::<f32>()[0].is_nan() && c.elements::<f32>()[9..].iter().all(|x| x.is_nan()));
}

#[test]
fn everything_outlives_the_handles_it_came_from() {
    let (backends, id) = with(open(REFERENCE).expect("a good shim"));
    let product = MatMul::new(2, 2, 2).unwrap();
    let compiled = backends.compile(&id, &product, &CompileOptions::default()).unwrap();
    let mut executor = compiled.executor().unwrap();
    drop((backends, compiled));
    let one = Tensor::filled(2, 2, 1f32).unwrap();
    let mut c = Tensor::<f32>::zeros(2, 2).unwrap();
    executor.run(Inputs::new(&one).b(&one), &mut c).unwrap();
    assert_eq!(c.data(), [2.0; 4]);
}

#[test]
fn eight_threads_with_an_executor_each_and_one_that_moves() {
    let (backends, id) = with(linked());
    let compiled = backends.compile(&id, &MatMul::new(9, 8, 7).unwrap(), &CompileOptions::default()).unwrap();
    let a = Tensor::random_normal_f32(9, 7, 1.0, 1).unwrap();
    let b = Tensor::random_normal_f32(7, 8, 1.0, 2).unwrap();
    let inputs = Inputs::new(&a).b(&b);
    let expected = compiled.run_to_tensor(inputs).unwrap();
    let check = |executor: &mut ane_matmul::Executor| {
        let mut c = Tensor::<f32>::zeros(9, 8).unwrap();
        executor.run(inputs, &mut c).unwrap();
        assert_eq!(c, expected);
    };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut executor = compiled.executor().unwrap();
                for _ in 0..100 {
                    check(&mut executor);
                }
            });
        }
    });
    let mut moving = compiled.executor().unwrap();
    for _ in 0..4 {
        moving = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let mut executor = moving;
                    check(&mut executor);
                    executor
                })
                .join()
                .unwrap()
        });
    }
    check(&mut moving);
}
