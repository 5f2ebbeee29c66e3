//! Full disks and missing permissions: nothing that was there is lost, and nothing half is left.
#![cfg(all(feature = "cli", unix))]

#[path = "support/place.rs"]
mod place;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ane_matmul::{BackendId, Backends, CompileOptions, Inputs, MatMul, ShimLibrary, Tensor, Weights};
use ane_matmul_shims::REFERENCE;
use place::Place;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ane-matmul");

/// Tells this program, when it runs itself, which part to run.
const CHILD: &str = "ANE_MATMUL_TEST_CHILD";

/// Names the shim that such a part loads, where it cannot reach the one of the tests.
const SHIM: &str = "ANE_MATMUL_TEST_SHIM";

/// The user `nobody` of most systems.
const NOBODY: u32 = 65_534;

/// The command line whose files may have so many bytes; a write beyond fails as on a full disk.
fn limited(bytes: usize) -> Command {
    let mut command = Command::new("sh");
    // Both a unit of 512 bytes and one of 1024 occur.
    command.args(["-c", &format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", bytes / 1024), PROGRAM]);
    command
}

#[track_caller]
fn failed(output: &Output, part: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{}: {text}", output.status);
    assert!(text.contains("error: ") && text.contains(part), "{text}");
}

#[test]
fn a_full_disk_loses_nothing() {
    let place = Place::new();
    let out = place.path("out");
    let commands = place.writers(&out);
    fs::write(&out, "old").unwrap();
    let before = place.names();
    for arguments in commands {
        failed(&limited(1024).args(&arguments).output().unwrap(), "File too large");
        assert_eq!(
            (fs::read(&out).unwrap(), place.names()),
            (b"old".to_vec(), before.clone()),
            "{arguments:?}"
        );
        // And with room it is replaced.
        let output = Command::new(PROGRAM).args(&arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(fs::metadata(&out).unwrap().len() > 1024);
        fs::write(&out, "old").unwrap();
    }
}

#[test]
fn a_full_disk_loses_no_profile() {
    let place = Place::new();
    let profile = place.path("profile.json");
    let probe = |mut command: Command, shape: &str| {
        command.env("ANE_MATMUL_SHIM", REFERENCE).env("ANE_REFERENCE_FAULT", "wrong");
        command.args(["probe", shape, "--backend", "reference", "--quarantine"]).arg(&profile);
        command.output().unwrap()
    };
    failed(&probe(Command::new(PROGRAM), "8x8x8"), "wrong result");
    let before = fs::read(&profile).unwrap();
    assert!(!before.is_empty());
    let names = place.names();
    fs::write(&profile, padded(&before)).unwrap();
    let before = fs::read(&profile).unwrap();
    let output = probe(limited(1024), "64x64x64");
    assert!(!output.status.success());
    assert_eq!((fs::read(&profile).unwrap(), place.names()), (before, names));
}

/// A profile with so much white space that a kilobyte does not hold what is written of it.
fn padded(profile: &[u8]) -> Vec<u8> {
    let entry = String::from_utf8(profile.to_vec()).unwrap();
    let long = "x".repeat(4000);
    entry.replacen("\"reason\":\"", &format!("\"reason\":\"{long} "), 1).into_bytes()
}

/// On a file system of its own, where this user may mount one.
#[test]
fn a_small_file_system_loses_nothing() {
    let place = Place::new();
    let [a, b] = place.factors(200, 200);
    let mount = place.path("mount");
    fs::create_dir(&mount).unwrap();
    let script = r#"
        mount -t tmpfs -o size=64k tmpfs "$1" || exit 77
        printf old >"$1/out"
        "$0" multiply "$2" "$3" -o "$1/out" && exit 1
        [ "$(cat "$1/out")" = old ] || exit 2
        [ "$(ls -A "$1")" = out ] || exit 3
    "#;
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", script, PROGRAM]).args([&mount, &a, &b]);
    match command.output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains("No space left on device"), "{text}");
        }
        Ok(output) if matches!(output.status.code(), Some(1..=3)) && !is_denied(&output) => {
            panic!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(_) | Err(_) => println!("not run: this user may not mount a file system"),
    }
}

fn is_denied(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains("unshare:")
}

/// Packages are written by a shim: here a child whose files have a limit.
#[test]
fn a_full_disk_costs_a_package_and_nothing_else() {
    if let Some(directory) = std::env::var_os(CHILD) {
        return compile_package(Path::new(&directory));
    }
    let place = Place::new();
    let packages = place.path("packages");
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
    let place = Place::new();
    let [program, shim, packages] = ["program", "shim.so", "packages"].map(|name| place.path(name));
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::copy(REFERENCE, &shim).unwrap();
    fs::create_dir(&packages).unwrap();
    for (path, mode) in [(place.directory(), 0o755), (&packages, 0o555), (&program, 0o755), (&shim, 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new(&program);
    if user() == "0" {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
        .args(["--exact", "a_directory_for_packages_that_may_not_be_written_to_is_noted", "--nocapture"])
        .current_dir(place.directory())
        .envs([(CHILD, &packages), (SHIM, &shim)]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("not kept for the next start: ") && text.contains("ermission denied"), "{text}");
    assert_eq!(fs::read_dir(&packages).unwrap().count(), 0);
}

fn compile_package(directory: &Path) {
    let shim = std::env::var_os(SHIM).unwrap_or(REFERENCE.into());
    // SAFETY: the library is built from this repository.
    let shim = unsafe { ShimLibrary::open(shim) }.unwrap();
    let mut backends = Backends::new();
    let id = backends.add(shim).unwrap();
    let product = MatMul::builder(1, 64, 64).constant_b(true).build().unwrap();
    let weights = Weights::new(&Tensor::filled(64, 64, 1f32).unwrap()).unwrap();
    let options = CompileOptions::default().packages(directory);
    let compiled = backends.compile(&id, &product, Some(&weights), &options).unwrap();
    println!("note: {:?}", compiled.report().note);
    let y = compiled.run_once(&Inputs::new(&Tensor::filled(1, 64, 1f32).unwrap())).unwrap();
    assert_eq!(y.data(), [64.0; 64]);
    assert_ne!(compiled.report().backend, BackendId::CPU);
}

#[test]
fn a_directory_that_may_not_be_written_to_keeps_its_files() {
    let place = Place::new();
    // Whoever may do everything does it as somebody else, who must be able to reach the program.
    let administrator = user() == "0";
    let program = place.path("program");
    fs::copy(PROGRAM, &program).unwrap();
    let locked = place.path("locked");
    fs::create_dir(&locked).unwrap();
    let out = locked.join("out");
    let calibrate = ["calibrate", "--backend", "cpu", "--profile"].map(OsString::from);
    let calibrate = calibrate.into_iter().chain([out.clone().into()]).collect();
    let commands = place.writers(&out).into_iter().chain([calibrate]);
    fs::write(&out, "old").unwrap();
    for (path, mode) in [(place.directory(), 0o755), (&locked, 0o555), (&program, 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    for arguments in commands {
        let mut command = Command::new(&program);
        if administrator {
            command.uid(NOBODY).gid(NOBODY);
        }
        let start = Instant::now();
        let output = command.args(arguments).output().unwrap();
        failed(&output, "ermission denied");
        assert!(start.elapsed() < Duration::from_secs(60), "it measured before it failed");
        assert_eq!(fs::read(&out).unwrap(), b"old");
        assert_eq!(fs::read_dir(&locked).unwrap().count(), 1);
    }
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
}

fn user() -> String {
    let output = Command::new("id").arg("-u").output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
