//! Full disks and missing permissions where packages are kept: nothing that was there is lost, and nothing half
//! is left. The command line's tests have the files.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use ane_matmul::{BackendId, Backends, CompileOptions, Inputs, MatMul, ShimLibrary, Tensor, Weights};
use ane_matmul_shims::REFERENCE;

/// Tells this program, when it runs itself, which part to run.
const CHILD: &str = "ANE_MATMUL_TEST_CHILD";

/// Names the shim that such a part loads, where it cannot reach the one of the tests.
const SHIM: &str = "ANE_MATMUL_TEST_SHIM";

/// The user `nobody` of most systems.
const NOBODY: u32 = 65_534;

/// Packages are written by a shim: here a child whose files have a limit.
#[test]
fn a_full_disk_costs_a_package_and_nothing_else() {
    // With a copy of the weights in the package.
    // SAFETY: what reads it without the standard library's lock is the shim, which no other test of this program loads.
    unsafe { std::env::set_var("ANE_REFERENCE_MEMORY", "embed") };
    if let Some(directory) = std::env::var_os(CHILD) {
        return compile_package(Path::new(&directory));
    }
    let place = tempfile::tempdir().unwrap();
    let packages = place.path().join("packages");
    compile_package(&packages);
    let package =
        fs::read_dir(&packages).unwrap().next().unwrap().unwrap().path().join("product.mpsgraphpackage");
    assert!(fs::metadata(&package).unwrap().len() > 10_000);
    // What is damaged is made again, which fails.
    fs::write(&package, "damaged").unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap());
    command.args(["--exact", "a_full_disk_costs_a_package_and_nothing_else", "--nocapture"]);
    let output = command.env(CHILD, &packages).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("not kept for the next start: "), "{text}");
    assert_eq!(fs::read(&package).unwrap(), b"damaged");
    assert_eq!(fs::read_dir(&packages).unwrap().count(), 1, "something is left over");
    compile_package(&packages);
    assert!(fs::metadata(&package).unwrap().len() > 10_000);
}

#[test]
fn a_directory_for_packages_that_may_not_be_written_to_is_noted() {
    if let Some(directory) = std::env::var_os(CHILD) {
        return compile_package(Path::new(&directory));
    }
    let place = tempfile::tempdir().unwrap();
    let [program, shim, packages] = ["program", "shim.so", "packages"].map(|name| place.path().join(name));
    copy_program(&std::env::current_exe().unwrap(), &program);
    fs::copy(REFERENCE, &shim).unwrap();
    fs::create_dir(&packages).unwrap();
    for (path, mode) in [(place.path(), 0o755), (&packages, 0o555), (&program, 0o755), (&shim, 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new(&program);
    if user() == "0" {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
        .args(["--exact", "a_directory_for_packages_that_may_not_be_written_to_is_noted", "--nocapture"])
        .current_dir(place.path())
        .envs([(CHILD, &packages), (SHIM, &shim)]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("not kept for the next start: ") && text.contains("ermission denied"), "{text}");
    assert_eq!(fs::read_dir(&packages).unwrap().count(), 0);
}

/// Copies a program. In a process of its own: while this one has the copy open for writing, a child that another
/// test starts inherits that, and nobody may run the copy (`ETXTBSY`).
fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").args([from, to]).status().unwrap().success());
}

fn compile_package(directory: &Path) {
    let shim = std::env::var_os(SHIM).unwrap_or(REFERENCE.into());
    // SAFETY: the library is built from this repository.
    let shim = unsafe { ShimLibrary::open(shim) }.unwrap();
    let mut backends = Backends::new();
    let id = backends.add(shim).unwrap();
    let weights = Weights::new(&Tensor::filled(64, 64, 1f32).unwrap()).unwrap();
    let product = MatMul::new(1, 64, 64).unwrap().with_weights(&weights).unwrap();
    let options = CompileOptions::default().packages(directory);
    let compiled = backends.compile(&id, &product, &options).unwrap();
    println!("note: {:?}", compiled.report().note);
    let y = compiled.run_to_tensor(Inputs::new(&Tensor::filled(1, 64, 1f32).unwrap())).unwrap();
    assert_eq!(y.data(), [64.0; 64]);
    assert_ne!(compiled.report().backend, BackendId::CPU);
}

fn user() -> String {
    let output = Command::new("id").arg("-u").output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
