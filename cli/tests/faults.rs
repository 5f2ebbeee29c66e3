//! Full disks and missing permissions: nothing that was there is lost, and nothing half is left.
#![cfg(unix)]

#[path = "support/place.rs"]
mod place;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ane_matmul_shims::REFERENCE;
use place::Place;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ane-matmul");

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
