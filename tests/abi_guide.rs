//! `docs/ABI.md` works as written: its shim compiles and conforms, and its commands give what it says.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use ane_matmul::{Backends, CompileOptions, Inputs, MatMul, RefusalReason, ShimLibrary, Tensor};
use ane_matmul_conformance::{Scale, cases, run_suite};

const PAGE: &str = include_str!("../docs/ABI.md");

/// How the page starts the command line.
#[cfg(feature = "cli")]
const CARGO_RUN: &str = "cargo run --release --features cli --";

/// The texts between a line that is `fence` and the next fence.
fn blocks(fence: &str) -> impl Iterator<Item = &str> {
    PAGE.split("\n```")
        .skip(1)
        .step_by(2)
        .filter_map(move |block| block.strip_prefix(fence)?.strip_prefix('\n'))
}

/// A directory that looks like a checkout to a C compiler, with the page's shim in it.
fn checkout() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["include", "examples"] {
        symlink(root.join(folder), directory.path().join(folder)).expect("a link");
    }
    let shim = blocks("c").find(|block| block.starts_with("/* naive.c")).expect("the page has a shim");
    fs::write(directory.path().join("naive.c"), shim).expect("a file");
    directory
}

/// Runs a line of the shell, which must succeed, and returns its standard output.
fn shell(directory: &Path, line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).current_dir(directory).output().expect("a shell");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A line with one space between words: columns are as wide as their widest row.
#[cfg(feature = "cli")]
fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_shim_conforms_or_refuses_the_epilogue() {
    let directory = checkout();
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
    let compiled = backends.compile(&naive, &product, None, &CompileOptions::default()).unwrap();
    let (a, b) = (Tensor::filled(2, 3, 1f32).unwrap(), Tensor::filled(3, 4, 2f32).unwrap());
    assert_eq!(compiled.run_once(&Inputs::new(&a).b(&b)).unwrap().data(), [6.0; 8]);
}

#[cfg(feature = "cli")]
#[test]
fn every_command_gives_what_the_page_says() {
    let mut commands = 0;
    let directory = checkout();
    for block in blocks("console") {
        // What a block exports stays for its later commands.
        let mut exports = String::new();
        let mut steps: Vec<(&str, Vec<&str>)> = Vec::new();
        for line in block.lines() {
            match line.strip_prefix("$ ") {
                Some(command) => steps.push((command, Vec::new())),
                None => steps.last_mut().expect("a command comes first").1.push(line),
            }
        }
        for (command, expected) in steps {
            if command.starts_with("export ") {
                exports = format!("{exports}{command}; ");
                continue;
            }
            let line = command.replace(CARGO_RUN, concat!("'", env!("CARGO_BIN_EXE_ane-matmul"), "'"));
            let printed = shell(directory.path(), &format!("{exports}{line}"));
            for expected in expected {
                let expected = words(expected);
                let (start, open) =
                    expected.strip_suffix("...").map_or((&*expected, false), |start| (start, true));
                let right = |line: String| if open { line.starts_with(start) } else { line == start };
                assert!(
                    printed.lines().map(words).any(right),
                    "{command}: expected {expected:?} in\n{printed}"
                );
            }
            commands += 1;
        }
    }
    assert!(commands >= 7, "{commands} commands ran");
}
