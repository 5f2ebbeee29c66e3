//! Full disks, missing permissions and signals: nothing that was there is lost, and nothing half is left.
#![cfg(all(feature = "cli", unix))]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use ane_matmul::{BackendId, Backends, CompileOptions, Inputs, MatMul, ShimLibrary, Tensor, Weights, npy};
use ane_matmul_shims::REFERENCE;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ane-matmul");

/// Tells this program, when it runs itself, which part to run.
const CHILD: &str = "ANE_MATMUL_TEST_CHILD";

/// Names the shim that such a part loads, where it cannot reach the one of the tests.
const SHIM: &str = "ANE_MATMUL_TEST_SHIM";

/// The user `nobody` of most systems.
const NOBODY: u32 = 65_534;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// An m x 1 and a 1 x n matrix: the product is much larger than they are.
    fn factors(&self, m: usize, n: usize) -> [PathBuf; 2] {
        let paths = [self.path("a.npy"), self.path("b.npy")];
        npy::write(&paths[0], &Tensor::filled(m, 1, 1f32).unwrap()).unwrap();
        npy::write(&paths[1], &Tensor::filled(1, n, 2f32).unwrap()).unwrap();
        paths
    }

    /// A safetensors file of one tensor.
    fn weights(&self) -> PathBuf {
        let header = r#"{"w":{"dtype":"F32","shape":[128,128],"data_offsets":[0,65536]}}       "#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + 65_536, 0);
        fs::write(self.path("w.safetensors"), bytes).unwrap();
        self.path("w.safetensors")
    }
}

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
    let [a, b] = place.factors(200, 200);
    let weights = place.weights();
    let out = place.path("out");
    fs::write(&out, "old").unwrap();
    let before = place.names();
    let commands: [&[&dyn AsRef<std::ffi::OsStr>]; 5] = [
        &[&"multiply", &a, &b, &"-o", &out],
        &[&"quantize", &weights, &out, &"--type", &"int8"],
        &[&"compare", &"--sizes", &"8", &"--samples", &"1", &"--json", &out],
        &[&"compare", &"--sizes", &"8", &"--samples", &"1", &"--svg", &out],
        &[&"compare", &"--sizes", &"8", &"--samples", &"1", &"--report", &out],
    ];
    for arguments in commands {
        let output = limited(1024).args(arguments.iter().map(AsRef::as_ref)).output().unwrap();
        failed(&output, "File too large");
        assert_eq!(fs::read(&out).unwrap(), b"old", "{}", arguments[0].as_ref().display());
        assert_eq!(place.names(), before, "{}", arguments[0].as_ref().display());
        // And with room it is replaced.
        let output = Command::new(PROGRAM).args(arguments.iter().map(AsRef::as_ref)).output().unwrap();
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
    for (path, mode) in [(place.0.path(), 0o755), (&packages, 0o555), (&program, 0o755), (&shim, 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new(&program);
    if user() == "0" {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
        .args(["--exact", "a_directory_for_packages_that_may_not_be_written_to_is_noted", "--nocapture"])
        .current_dir(place.0.path())
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
    let [a, b] = place.factors(20, 20);
    let weights = place.weights();
    let locked = place.path("locked");
    fs::create_dir(&locked).unwrap();
    let out = locked.join("out");
    fs::write(&out, "old").unwrap();
    for (path, mode) in [(place.0.path(), 0o755), (&locked, 0o555), (&program, 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let commands: [&[&dyn AsRef<std::ffi::OsStr>]; 6] = [
        &[&"multiply", &a, &b, &"-o", &out],
        &[&"quantize", &weights, &out, &"--type", &"int8"],
        &[&"compare", &"--sizes", &"8", &"--samples", &"1", &"--json", &out],
        &[&"compare", &"--sizes", &"8", &"--samples", &"1", &"--svg", &out],
        &[&"compare", &"--sizes", &"8", &"--samples", &"1", &"--report", &out],
        &[&"calibrate", &"--backend", &"cpu", &"--profile", &out],
    ];
    for arguments in commands {
        let mut command = Command::new(&program);
        if administrator {
            command.uid(NOBODY).gid(NOBODY);
        }
        let start = Instant::now();
        let output = command.args(arguments.iter().map(AsRef::as_ref)).output().unwrap();
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

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

fn parts(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "part"))
        .collect()
}

#[test]
fn a_signal_while_a_result_is_written_leaves_the_old_one_or_the_new_one() {
    let place = Place::new();
    let side = 3000;
    let [a, b] = place.factors(side, side);
    let out = place.path("out.npy");
    let (mut killed, mut numbers) = (0, [("TERM", 15), ("INT", 2), ("HUP", 1)].into_iter().cycle());
    for _ in 0..12 {
        fs::write(&out, "old").unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["multiply", "--backend", "cpu"]).args([&a, &b]).arg("-o").arg(&out);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (name, number) = numbers.next().unwrap();
        // The file that is being written, not the one that only tries whether that is allowed.
        let writing =
            || parts(place.0.path()).iter().any(|part| fs::metadata(part).is_ok_and(|data| data.len() > 0));
        while !writing() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        signal(&child, name);
        let status = child.wait().unwrap();
        let whole = fs::metadata(&out).unwrap().len() == (side * side * 4 + 128) as u64;
        let old = fs::read(&out).unwrap() == b"old";
        assert!(whole || old, "a half file");
        assert_eq!(parts(place.0.path()), [] as [PathBuf; 0], "{status}");
        if status.signal() == Some(number) {
            killed += 1;
        } else {
            assert!(status.success() && whole, "{status}");
        }
    }
    assert!(killed > 0, "no signal came while the result was written");
    println!("{killed} of 12 were ended while they wrote");
}

#[test]
fn a_signal_ends_calibrate_and_leaves_its_profile() {
    let place = Place::new();
    let profile = place.path("profile.json");
    fs::write(&profile, "old").unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["calibrate", "--backend", "cpu", "--threads", "1", "--profile"]).arg(&profile);
    let mut child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(child.try_wait().unwrap(), None, "it measured nothing");
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    assert_eq!(
        (fs::read(&profile).unwrap(), place.names()),
        (b"old".to_vec(), vec!["profile.json".to_owned()])
    );
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let place = Place::new();
    let [a, b] = place.factors(1500, 1500);
    let out = place.path("out.npy");
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", PROGRAM, "multiply"])
        .args([&a, &b])
        .arg("-o")
        .arg(&out);
    let mut child = command.spawn().unwrap();
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(20));
        // It may have ended.
        let _ =
            Command::new("kill").args(["-s", "HUP", &child.id().to_string()]).stderr(Stdio::null()).status();
    }
    assert!(child.wait().unwrap().success());
    assert!(out.exists());
}
