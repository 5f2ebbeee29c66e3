//! What self-checks make of a backend that computes wrong numbers. A program of its own: the reference
//! shim reads its fault from the environment.

use std::num::NonZeroU32;

use ane_matmul::{
    Activation, BackendId, Backends, CheckCounts, CompileOptions, Compiled, Error, Inputs, MatMul,
    OnMismatch, SelfCheck, ShimLibrary, Tensor, Weights,
};
use ane_matmul_shims::REFERENCE;

fn backends(fault: &str) -> (Backends, BackendId) {
    // SAFETY: this program has one test, so no other thread reads the environment.
    unsafe { std::env::set_var("ANE_REFERENCE_FAULT", fault) };
    // SAFETY: the library is built from this repository.
    let shim = unsafe { ShimLibrary::open(REFERENCE) }.expect("a good shim");
    let mut backends = Backends::new();
    let id = backends.add(shim).expect("a new name");
    (backends, id)
}

fn counts(checked: u64, mismatches: u64, reruns: u64) -> CheckCounts {
    let mut counts = CheckCounts::default();
    (counts.checked, counts.mismatches, counts.reruns) = (checked, mismatches, reruns);
    counts
}

#[test]
fn a_wrong_backend_is_found_out() {
    let product = MatMul::new(2, 3, 4).unwrap();
    let (a, b) = (Tensor::filled(2, 4, 1f32).unwrap(), Tensor::filled(4, 3, 2f32).unwrap());
    let inputs = Inputs::new(&a).b(&b);
    let mut c = Tensor::<f32>::zeros(2, 3).unwrap();

    let (backends_wrong, id) = backends("wrong");
    #[cfg(feature = "profile")]
    let wrong_id = id.clone();
    let compile = |product: &MatMul, check| -> Compiled {
        backends_wrong.compile(&id, product, &CompileOptions::default().self_check(check)).unwrap()
    };

    let mut executor = compile(&product, SelfCheck::every_run()).executor().unwrap();
    for run in 1..=2 {
        let Err(Error::WrongResult(mismatch)) = executor.run(inputs, &mut c) else {
            panic!("a wrong result")
        };
        assert_eq!((mismatch.element.row, mismatch.element.col), (0, 0));
        assert_eq!((mismatch.element.expected, mismatch.element.got), (8.0, 17.0));
        let text = Error::WrongResult(mismatch).to_string();
        for part in ["backend `reference`", "2x3x4 f32", "row 0, column 0", "RerunOnCpu"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(executor.checks(), counts(run, run, 0));
    }

    let mut executor =
        compile(&product, SelfCheck::every_run().on_mismatch(OnMismatch::RerunOnCpu)).executor().unwrap();
    for run in 1..=3 {
        executor.run(inputs, &mut c).unwrap();
        assert_eq!(c.data(), [8.0; 6]);
        assert_eq!(executor.checks(), counts(run, run, run));
    }
    assert_eq!(executor.last_mismatch().unwrap().backend, id);

    // f64 operands, and an activation: both rows are recomputed.
    let relu = MatMul::builder(2, 3, 4).activation(Activation::Relu).build().unwrap();
    let check = SelfCheck::every_run().on_mismatch(OnMismatch::RerunOnCpu).failure_probability(1e-3);
    let mut executor = compile(&relu, check).executor().unwrap();
    let (a64, b64) = (Tensor::filled(2, 4, 1f64).unwrap(), Tensor::filled(4, 3, 2f64).unwrap());
    let mut c64 = Tensor::<f64>::zeros(2, 3).unwrap();
    executor.run_f64(Inputs::new(&a64).b(&b64), c64.view_mut()).unwrap();
    assert_eq!((c64.data(), executor.checks()), ([8.0; 6].as_slice(), counts(1, 1, 1)));

    // Not looked for, not found.
    let mut executor = compile(&product, SelfCheck::off()).executor().unwrap();
    executor.run(inputs, &mut c).unwrap();
    assert_eq!((c.data()[0], executor.checks()), (17.0, counts(0, 0, 0)));

    // Every run is doubtful after one that was wrong.
    for check in [SelfCheck::first_run(), SelfCheck::one_in(NonZeroU32::new(3).unwrap())] {
        let mut executor = compile(&product, check.on_mismatch(OnMismatch::RerunOnCpu)).executor().unwrap();
        for _ in 0..5 {
            executor.run(inputs, &mut c).unwrap();
        }
        assert_eq!(executor.checks(), counts(5, 5, 5));
    }

    let (backends_right, id) = backends("");
    for (check, checked) in [
        (SelfCheck::off(), 0),
        (SelfCheck::first_run(), 1),
        (SelfCheck::one_in(NonZeroU32::new(3).unwrap()), 3),
        (SelfCheck::every_run(), 7),
    ] {
        let weights = Weights::new(&b).unwrap();
        let product = MatMul::new(2, 3, 4).unwrap().with_weights(&weights).unwrap();
        let options = CompileOptions::default().self_check(check);
        let compiled = backends_right.compile(&id, &product, &options).unwrap();
        let mut executor = compiled.executor().unwrap();
        for _ in 0..7 {
            executor.run(Inputs::new(&a), &mut c).unwrap();
        }
        assert_eq!(executor.checks(), counts(checked, 0, 0));
        assert_eq!(executor.last_mismatch(), None);
    }

    #[cfg(feature = "profile")]
    {
        use ane_matmul::{Profile, RefusalReason};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile/profile.json");
        let options = CompileOptions::default().self_check(SelfCheck::every_run()).quarantine(&path);
        let compile = |product: &MatMul| backends_wrong.compile(&wrong_id, product, &options);
        let mut executor = compile(&product).unwrap().executor().unwrap();
        assert!(executor.run(inputs, &mut c).is_err());
        let profile = Profile::load(&path).unwrap();
        assert!(profile.quarantine()[0].reason.contains("row 0, column 0"), "{profile:?}");
        match compile(&product) {
            Err(Error::Refused { refusal, .. }) => assert_eq!(refusal.reason, RefusalReason::Quarantined),
            other => panic!("{other:?}"),
        }
        // The same class, and another.
        assert!(compile(&MatMul::new(3, 2, 5).unwrap()).is_err());
        assert!(compile(&MatMul::new(4, 3, 4).unwrap()).is_ok());
        Profile::update(&path, |profile| profile.retain_quarantine(|_| false)).unwrap();
        assert!(compile(&product).is_ok());
    }

    // Before anything is compiled.
    let mut options = CompileOptions::default();
    options.fast_math = true;
    let options = options.self_check(SelfCheck::every_run());
    let result = backends_right.compile(&BackendId::CPU, &product, &options);
    assert!(matches!(result, Err(Error::Description { .. })), "{result:?}");
}
