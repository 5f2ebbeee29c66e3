//! What a failing shim does reaches the user. A program of its own: the reference shim reads its
//! fault from the environment, which all tests of a program share.

use ane_matmul::{
    BackendId, Backends, CompileOptions, Error, Inputs, MatMul, NativeStatus, ShimLibrary, Tensor,
};
use ane_matmul_shims::REFERENCE;

/// Tells this program, when it runs itself, to run the product and nothing else.
const CHILD: &str = "ANE_MATMUL_TEST_CHILD";

/// Aborts and hangs take the process with them: a process of their own.
fn child(fault: &str) -> std::process::Child {
    let program = std::env::current_exe().expect("this program");
    let mut command = std::process::Command::new(program);
    command.args(["--exact", "planted_faults_are_reported"]).env(CHILD, fault);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command.spawn().expect("this program runs")
}

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
    let one = Tensor::filled(2, 2, 1f32).unwrap();
    let inputs = Inputs::new(&one).b(&one);
    if let Ok(fault) = std::env::var(CHILD) {
        with_fault(&fault, |backends, id| {
            backends.compile(id, &product, &options).unwrap().run_to_tensor(inputs).unwrap();
        });
        return;
    }
    assert!(child("slow:1").wait().unwrap().success());
    let aborted = child("abort").wait().unwrap();
    #[cfg(unix)]
    assert!(std::os::unix::process::ExitStatusExt::signal(&aborted).is_some(), "{aborted}");
    assert!(!aborted.success());
    let mut hanging = child("hang");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let waiting = hanging.try_wait().unwrap();
    hanging.kill().unwrap();
    hanging.wait().unwrap();
    assert_eq!(waiting, None, "it ended");

    let planted = |step| (step, NativeStatus::Internal, "planted fault".to_owned());
    with_fault("fail@open", |backends, id| {
        let text = backends.compile(id, &product, &options).unwrap_err().to_string();
        assert!(text.contains("not available here") && text.contains("planted fault"), "{text}");
    });
    with_fault("fail@compile", |backends, id| {
        let error = backends.compile(id, &product, &options).unwrap_err();
        assert_eq!(native(&error), planted("compile"));
    });
    with_fault("fail@executor", |backends, id| {
        let compiled = backends.compile(id, &product, &options).unwrap();
        assert_eq!(native(&compiled.executor().unwrap_err()), planted("executor_create"));
    });
    with_fault("fail", |backends, id| {
        let compiled = backends.compile(id, &product, &options).unwrap();
        assert_eq!(native(&compiled.run_to_tensor(inputs).unwrap_err()), planted("executor_run"));
    });
    with_fault("wrong", |backends, id| {
        let c = backends.compile(id, &product, &options).unwrap().run_to_tensor(inputs).unwrap();
        assert_eq!(c.data(), [5.0, 2.0, 2.0, 2.0]);
    });
    with_fault("slow:20000000", |backends, id| {
        let compiled = backends.compile(id, &product, &options).unwrap();
        let start = std::time::Instant::now();
        compiled.run_to_tensor(inputs).unwrap();
        assert!(start.elapsed() >= std::time::Duration::from_millis(20));
    });
}
