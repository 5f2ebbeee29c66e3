//! `docs/ABI.md` works as written: its shim compiles and conforms. The command line's tests run its commands.
#![cfg(unix)]

#[path = "support/abi_page.rs"]
mod abi_page;

use std::path::Path;

use abi_page::{checkout, shell};
use ane_matmul::{Backends, CompileOptions, Inputs, MatMul, RefusalReason, ShimLibrary, Tensor};
use ane_matmul_conformance::{Scale, cases, run_suite};

#[test]
fn the_shim_conforms_or_refuses_the_epilogue() {
    let directory = checkout(Path::new(env!("CARGO_MANIFEST_DIR")));
    shell(
        directory.path(),
        "cc -std=c11 -Wall -Wextra -Werror -O2 -fPIC -shared -Iinclude naive.c -o libnaive.so",
    );
    // SAFETY: the library was built from the page, whose author vouches for it.
    let shim = unsafe { ShimLibrary::open(directory.path().join("libnaive.so")) }.expect("a good shim");
    let mut backends = Backends::new();
    let naive = backends.add(shim).expect("a new name");
    let cases = cases(Scale::Full);
    let summary =
        run_suite(&backends, &naive, &CompileOptions::default(), &cases, &[RefusalReason::Epilogue]);
    assert!(summary.passed > 300, "only {} of {} cases ran", summary.passed, cases.len());
    assert_eq!(summary.passed + summary.refused.len(), cases.len());

    // What the page's Rust does.
    let product = MatMul::new(2, 4, 3).unwrap();
    let compiled = backends.compile(&naive, &product, &CompileOptions::default()).unwrap();
    let (a, b) = (Tensor::filled(2, 3, 1f32).unwrap(), Tensor::filled(3, 4, 2f32).unwrap());
    assert_eq!(compiled.run_to_tensor(Inputs::new(&a).b(&b)).unwrap().data(), [6.0; 8]);
}
