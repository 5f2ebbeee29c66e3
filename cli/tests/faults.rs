//! Full disks and missing permissions: nothing that was there is lost, and nothing half is left.
#![cfg(unix)]

#[path = "support/place.rs"]
mod place;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ane_matmul::{Tensor, npy};
use ane_matmul_shims::REFERENCE;
use place::Place;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ane-matmul");

/// The user `nobody` of most systems.
const NOBODY: u32 = 65_534;

/// Copies a program. In a process of its own: while this one has the copy open for writing, a child that another
/// test starts inherits that, and nobody may run the copy (`ETXTBSY`).
fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").args([from, to]).status().unwrap().success());
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
    if let Some(output) = with_mounts(script, &[&mount, &a, &b]) {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("No space left on device"), "{text}");
    }
}

/// A file that is mounted, as containers are given some, can be written to, not replaced.
#[test]
fn a_file_that_is_a_mount_point_is_written_to() {
    let place = Place::new();
    let [a, b] = place.factors(20, 20);
    let [out, other] = ["out", "other"].map(|name| place.path(name));
    let script = r#"
        printf old >"$1"; printf old >"$2"
        mount --bind "$2" "$1" || exit 77
        "$0" multiply "$3" "$4" -o "$1" || exit 1
        cmp -s "$1" "$2" || exit 2
        [ "$(ls -A "$(dirname "$1")" | wc -l)" = 4 ] || exit 3
    "#;
    if with_mounts(script, &[&out, &other, &a, &b]).is_some() {
        assert!(fs::metadata(&other).unwrap().len() > 1600);
    }
}

#[test]
fn a_file_keeps_its_permissions() {
    let place = Place::new();
    let out = place.path("out");
    for mode in [0o600, 0o664] {
        for arguments in place.writers(&out) {
            fs::write(&out, "old").unwrap();
            fs::set_permissions(&out, fs::Permissions::from_mode(mode)).unwrap();
            let output = Command::new(PROGRAM).args(&arguments).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let now = fs::metadata(&out).unwrap();
            assert_eq!((now.permissions().mode() & 0o777, now.len() > 1024), (mode, true), "{arguments:?}");
        }
    }
}

/// A link such as /dev/stdout belongs to every program.
#[test]
fn a_link_to_what_is_no_regular_file_is_left_alone() {
    let place = Place::new();
    let out = place.path("out");
    // What is open as standard output, a regular file too, and a device.
    for target in ["/proc/self/fd/1", "/dev/null"].into_iter().filter(|target| Path::new(target).exists()) {
        symlink(target, &out).unwrap();
        for arguments in place.writers(&out) {
            let stdout = fs::File::create(place.path("stdout")).unwrap();
            let output = Command::new(PROGRAM).args(&arguments).stdout(stdout).output().unwrap();
            failed(&output, "is not a regular file");
            assert_eq!(fs::read_link(&out).unwrap(), Path::new(target), "{arguments:?}");
        }
        fs::remove_file(&out).unwrap();
    }
}

/// What cannot be told on standard error decides nothing.
#[test]
fn a_note_that_nobody_can_read_keeps_no_result_from_being_written() {
    let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else {
        println!("not run: there is no /dev/full");
        return;
    };
    let place = Place::new();
    let [a, b, c] = ["a.npy", "b.npy", "c.npy"].map(|name| place.path(name));
    npy::write(&a, &Tensor::filled(2, 2, 1e300f64).unwrap()).unwrap();
    npy::write(&b, &Tensor::filled(2, 2, 1f64).unwrap()).unwrap();
    let multiply = |a: &Path, stderr: fs::File| {
        let command = [Path::new("multiply"), a, &b, Path::new("-o"), &c];
        Command::new(PROGRAM).args(command).stderr(stderr).status().unwrap().code()
    };
    assert_eq!(multiply(&a, full.try_clone().unwrap()), Some(0));
    assert!(c.exists());
    assert_eq!(multiply(&place.path("none.npy"), full), Some(1));
}

/// Threads that wait for signals or show progress are a convenience, and nobody asked for more of the others.
#[test]
#[allow(unsafe_code, reason = "a limit is set between fork and exec")]
fn a_user_who_may_start_no_thread_gets_every_result() {
    let place = Place::new();
    let program = place.path("program");
    copy_program(Path::new(PROGRAM), &program);
    let writable = place.path("writable");
    fs::create_dir(&writable).unwrap();
    let out = writable.join("out");
    // Worth several threads.
    npy::write(place.path("square.npy"), &Tensor::filled(500, 500, 1f32).unwrap()).unwrap();
    let square = || place.path("square.npy").into_os_string();
    let multiply = ["multiply".into(), square(), square(), "-o".into(), out.clone().into(), "--check".into()];
    let one_thread = multiply.iter().cloned().chain(["--threads", "1"].map(OsString::from)).collect();
    let verify = ["verify", "300x300x300", "--backend", "cpu", "--seconds", "0.1"];
    let commands = [multiply.to_vec(), one_thread, verify.map(OsString::from).to_vec()];
    for path in [place.directory(), &writable, &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    for arguments in commands.into_iter().chain(place.writers(&out)) {
        let mut command = Command::new(&program);
        // OpenBLAS ends a process that cannot have its threads.
        command.args(&arguments).env("OPENBLAS_NUM_THREADS", "1");
        // A limit of threads does not hold for an administrator.
        if user() == "0" {
            command.uid(NOBODY).gid(NOBODY);
        }
        let limit = || {
            let one = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
            // SAFETY: it reads `one` alone.
            let status = unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &raw const one) };
            if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: it does nothing but a system call.
        unsafe { command.pre_exec(limit) };
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Runs a script whose `$0` is the command line, and which may mount; it fails with 1 to 3. `None` where this user
/// may not.
///
/// # Panics
/// Where it fails.
#[track_caller]
fn with_mounts(script: &str, arguments: &[&Path]) -> Option<Output> {
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", script, PROGRAM]).args(arguments);
    match command.output() {
        Ok(output) if output.status.success() => Some(output),
        Ok(output) if matches!(output.status.code(), Some(1..=3)) && !is_denied(&output) => {
            panic!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(_) | Err(_) => {
            println!("not run: this user may not mount");
            None
        }
    }
}

fn is_denied(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains("unshare:")
}

#[test]
fn a_directory_that_may_not_be_written_to_keeps_its_files() {
    let place = Place::new();
    // Whoever may do everything does it as somebody else, who must be able to reach the program.
    let administrator = user() == "0";
    let program = place.path("program");
    copy_program(Path::new(PROGRAM), &program);
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
