//! What a child does with the products of the process that it was forked from, whose threads it does not have.
#![cfg(unix)]
#![allow(unsafe_code, reason = "a fork is")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use ane_matmul::{BackendId, CompileOptions, Inputs, MatMul, Tensor, Threads};

/// Whether `body` ends well in a child of this process.
fn in_a_child(body: impl FnOnce()) -> bool {
    // SAFETY: the child leaves by `_exit`, and takes no lock that another thread of the parent may hold: these
    // tests are alone in their process but for idle workers and the harness, which waits.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", std::io::Error::last_os_error());
    if child == 0 {
        let ended_well = catch_unwind(AssertUnwindSafe(body)).is_ok();
        // SAFETY: it ends this process alone.
        unsafe { libc::_exit(i32::from(!ended_well)) }
    }
    let mut status = 0;
    // SAFETY: the child is this process's, and `status` can be written.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    waited == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

#[test]
fn a_child_runs_drops_and_compiles_products() {
    let options = CompileOptions::default().threads(Threads::count(2).unwrap());
    let product = MatMul::new(200, 200, 200).unwrap();
    let compile = || product.compile_with(&BackendId::CPU, &options).unwrap();
    let a = Tensor::random_normal_f32(200, 200, 1.0, 1).unwrap();
    let compiled = compile();
    let mut executor = compiled.executor().unwrap();
    let mut expected = Tensor::<f32>::zeros(200, 200).unwrap();
    executor.run(Inputs::new(&a).b(&a), &mut expected).unwrap();
    let other = compile();

    assert!(in_a_child(|| {
        let mut c = Tensor::<f32>::zeros(200, 200).unwrap();
        executor.run(Inputs::new(&a).b(&a), &mut c).unwrap();
        assert_eq!(c, expected);
        // A pool of the child's own, beside that of the parent.
        assert_eq!(compile().run_to_tensor(Inputs::new(&a).b(&a)).unwrap(), expected);
        drop((executor, compiled, other));
    }));
    assert_eq!(compile().run_to_tensor(Inputs::new(&a).b(&a)).unwrap(), expected);
    assert!(!in_a_child(|| panic!("seen")));
}
