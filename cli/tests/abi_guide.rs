//! The commands of `docs/ABI.md` give what it says.
#![cfg(unix)]

#[path = "../../tests/support/abi_page.rs"]
mod abi_page;

use std::path::Path;

use abi_page::{blocks, checkout, shell};

/// How the page starts the command line.
const CARGO_RUN: &str = "cargo run --release -p ane-matmul-cli --";

/// A line with one space between words: columns are as wide as their widest row.
fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_command_gives_what_the_page_says() {
    let mut commands = 0;
    let directory = checkout(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
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

/// What the conformance command says of the page's shim with `right` replaced.
fn conformance_of(right: &str, fault: &str, arguments: &str) -> String {
    let directory = checkout(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let page = std::fs::read_to_string(directory.path().join("naive.c")).expect("the page's shim");
    assert!(page.contains(right), "the page has no {right}");
    std::fs::write(directory.path().join("naive.c"), page.replace(right, fault)).expect("a file");
    let program = env!("CARGO_BIN_EXE_ane-matmul");
    let line = format!(
        "cc -std=c11 -O2 -fPIC -shared -Iinclude naive.c -o libnaive.so; \
         ANE_MATMUL_SHIM=./libnaive.so '{program}' conformance --backend naive {arguments} 2>/dev/null || true"
    );
    shell(directory.path(), &line)
}

#[test]
fn a_shim_that_runs_all_rows_of_a_description_fails_each_list() {
    let text = conformance_of("i < args->m", "i < d->m", "--list f32,asynchronous,resident");
    for list in ["f32", "asynchronous", "resident"] {
        let failed = format!("{list}: case 886 failed: 17x33x9 f32 variable m");
        assert!(text.contains(&failed), "{list}: {text}");
    }
}

#[test]
fn a_shim_that_wraps_no_memory_though_it_says_so_fails() {
    let (right, fault) = ("return make_buffer(data, 0, out, err);", "return not_offered(err);");
    let text = conformance_of(right, fault, "--list resident --case 61");
    assert!(text.contains("resident: case 61 failed: ") && text.contains("buffer_wrap failed"), "{text}");
}
