//! The page `docs/ABI.md` and a directory in which its commands run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

const PAGE: &str = include_str!("../../docs/ABI.md");

/// The texts between a line that is `fence` and the next fence.
pub(crate) fn blocks(fence: &str) -> impl Iterator<Item = &str> {
    PAGE.split("\n```")
        .skip(1)
        .step_by(2)
        .filter_map(move |block| block.strip_prefix(fence)?.strip_prefix('\n'))
}

/// A directory that looks like the checkout `root` to a C compiler, with the page's shim in it.
pub(crate) fn checkout(root: &Path) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for folder in ["include", "examples"] {
        symlink(root.join(folder), directory.path().join(folder)).expect("a link");
    }
    let shim = blocks("c").find(|block| block.starts_with("/* naive.c")).expect("the page has a shim");
    fs::write(directory.path().join("naive.c"), shim).expect("a file");
    directory
}

/// Runs a line of the shell, which must succeed, and returns its standard output.
pub(crate) fn shell(directory: &Path, line: &str) -> String {
    let mut command = Command::new("sh");
    // Cargo's `[env]` sets both, and with both a compiler on a Mac compiles for iOS.
    command.env_remove("IPHONEOS_DEPLOYMENT_TARGET");
    let output = command.args(["-ec", line]).current_dir(directory).output().expect("a shell");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}
