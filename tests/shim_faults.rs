//! What a failing shim does reaches the user. A program of its own: the reference shim reads its
//! fault from the environment, which all tests of a program share.

use ane_matmul::{
    BackendId, Backends, CompileOptions, Error, Inputs, MatMul, NativeStatus, ShimLibrary, Tensor,
};
use ane_matmul_shims::REFERENCE;

fn with_fault(fault: &str, test: impl FnOnce(&Backends, &BackendId)) {
    // SAFETY: this program has one test, so no other thread reads the environment.
    unsafe { std::env::set_var("ANE_REFERENCE_FAULT", fault) };
    // SAFETY: the library is built from this repository.
    let shim = unsafe { ShimLibrary::open(REFERENCE) }.expect("a good shim");
    let mut backends = Backends::new();
    let id = backends.add(shim).expect("a new name");
    test(&backends, &id);
}

#[test]
fn planted_faults_are_reported() {
    let product = MatMul::new(2, 2, 2).unwrap();
    let options = CompileOptions::default();
    let native = |error: &Error| match error {
        Error::Native(native) => (native.step, native.status, native.message.clone()),
        other => panic!("{other:?}"),
    };
    let planted = |step| (step, NativeStatus::Internal, "planted fault".to_owned());
    with_fault("fail@open", |backends, id| {
        let text = backends.compile(id, &product, None, &options).unwrap_err().to_string();
        assert!(text.contains("not available here") && text.contains("planted fault"), "{text}");
    });
    with_fault("fail@compile", |backends, id| {
        let error = backends.compile(id, &product, None, &options).unwrap_err();
        assert_eq!(native(&error), planted("compile"));
    });
    with_fault("fail@executor", |backends, id| {
        let compiled = backends.compile(id, &product, None, &options).unwrap();
        assert_eq!(native(&compiled.executor().unwrap_err()), planted("executor_create"));
    });
    let one = Tensor::filled(2, 2, 1f32).unwrap();
    let inputs = Inputs::new(&one).b(&one);
    with_fault("fail", |backends, id| {
        let compiled = backends.compile(id, &product, None, &options).unwrap();
        assert_eq!(native(&compiled.run_once(&inputs).unwrap_err()), planted("executor_run"));
    });
    with_fault("wrong", |backends, id| {
        let c = backends.compile(id, &product, None, &options).unwrap().run_once(&inputs).unwrap();
        assert_eq!(c.data(), [5.0, 2.0, 2.0, 2.0]);
    });
    with_fault("slow:20000000", |backends, id| {
        let compiled = backends.compile(id, &product, None, &options).unwrap();
        let start = std::time::Instant::now();
        compiled.run_once(&inputs).unwrap();
        assert!(start.elapsed() >= std::time::Duration::from_millis(20));
    });
}
