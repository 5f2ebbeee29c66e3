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
