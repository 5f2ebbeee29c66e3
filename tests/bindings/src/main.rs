//! Writes `src/sys/bindings.rs` from the C ABI's header; with `--check` fails when it differs.

use std::path::Path;
use std::process::ExitCode;

#[path = "../../../build/bindings.rs"]
mod bindings;

/// Here so that its test runs on every host.
#[cfg(test)]
#[path = "../../../build/deployment.rs"]
mod deployment;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let committed = root.join("src/sys/bindings.rs");
    let start = std::time::Instant::now();
    let fresh = match bindings::bindings(&root.join("include/ane_graph.h").to_string_lossy()) {
        Ok(fresh) => fresh,
        Err(error) => {
            eprintln!("error: bindgen: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("bindgen took {:?}", start.elapsed());
    if std::env::args().any(|arg| arg == "--check") {
        if std::fs::read_to_string(&committed).is_ok_and(|text| text == fresh) {
            println!("src/sys/bindings.rs is fresh");
            return ExitCode::SUCCESS;
        }
        eprintln!("error: src/sys/bindings.rs differs from the header: cargo run -p ane-matmul-bindings");
        return ExitCode::FAILURE;
    }
    match std::fs::write(&committed, fresh) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}: {error}", committed.display());
            ExitCode::FAILURE
        }
    }
}
