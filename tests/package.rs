//! What `cargo package` puts into the crate: all that its users build from, and none of what only tests need.

use std::process::Command;

/// What users build from or read.
const INSIDE: [&str; 19] = [
    "build.rs",
    "build/bindings.rs",
    "build/deployment.rs",
    "include/ane_graph.h",
    "include/ane_matmul.h",
    "objc/ane_mpsgraph.m",
    "docs/cross-compiling.md",
    "objc/matmul.metal",
    "objc/metal_source.rs",
    "objc/metal_matmul.m",
    "objc/shim_support.h",
    "examples/dense_layer.rs",
    "examples/shims/reference.c",
    "examples/shims/reference_graph.c",
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
];

/// The command line, the test double, the corpora, the peers of the benchmarks, examples that are packages and the scripts: a checkout has
/// them.
const OUTSIDE: [&str; 10] = [
    "cli/",
    "tests/",
    "fuzz/",
    "scripts/",
    "benches/peers/",
    "examples/service/",
    "examples/candle/",
    "examples/sentence_embeddings",
    "target/",
    ".",
];

fn packaged() -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["package", "--list", "--allow-dirty", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).expect("paths in UTF-8");
    // Cargo writes this one itself.
    list.lines().map(|line| line.replace('\\', "/")).filter(|path| path != ".cargo_vcs_info.json").collect()
}

#[test]
fn the_package_has_what_users_build_from_and_nothing_of_the_tests() {
    let packaged = packaged();
    for path in INSIDE {
        assert!(packaged.iter().any(|packaged| packaged == path), "{path} is missing");
    }
    for path in &packaged {
        assert!(!OUTSIDE.iter().any(|folder| path.starts_with(folder)), "{path} is for tests alone");
    }
    // Kernels and readers: every source file that the checkout has.
    for path in sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        assert!(packaged.contains(&path), "{path} is missing");
    }
}

/// The files below `folder`, relative to the manifest, with `/` between names.
fn sources(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else {
            let relative =
                path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("inside the manifest's folder");
            found.push(relative.to_string_lossy().replace('\\', "/"));
        }
    }
    assert!(!found.is_empty());
    found
}
