//! Signals that end a command: what was there is whole, and nothing half is left.
#![cfg(unix)]

#[path = "support/place.rs"]
mod place;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use place::Place;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ane-matmul");

/// Those after which a command cleans up.
const SIGNALS: [(&str, i32); 3] = [("TERM", libc::SIGTERM), ("INT", libc::SIGINT), ("HUP", libc::SIGHUP)];

/// Others that end a program and can be caught.
const OTHERS: [(&str, i32); 6] = [
    ("QUIT", libc::SIGQUIT),
    ("ALRM", libc::SIGALRM),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

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
    let (mut killed, mut numbers) = (0, SIGNALS.into_iter().chain(OTHERS).cycle());
    for _ in 0..18 {
        fs::write(&out, "old").unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["multiply", "--backend", "cpu"]).args([&a, &b]).arg("-o").arg(&out);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (name, number) = numbers.next().unwrap();
        // The file that is being written, not the one that only tries whether that is allowed.
        let writing = || {
            parts(place.directory()).iter().any(|part| fs::metadata(part).is_ok_and(|data| data.len() > 0))
        };
        while !writing() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        signal(&child, name);
        let status = child.wait().unwrap();
        let whole = fs::metadata(&out).unwrap().len() == (side * side * 4 + 128) as u64;
        let old = fs::read(&out).unwrap() == b"old";
        assert!(whole || old, "a half file");
        assert_eq!(parts(place.directory()), [] as [PathBuf; 0], "{status}");
        if status.signal() == Some(number) {
            killed += 1;
        } else {
            assert!(status.success() && whole, "{status}");
        }
    }
    assert!(killed > 0, "no signal came while the result was written");
    println!("{killed} of 18 were ended while they wrote");
}

#[test]
fn a_signal_ends_calibrate_and_leaves_its_profile() {
    let place = Place::new();
    let profile = place.path("profile.json");
    let damaged = b"{\"format\": damaged";
    fs::write(&profile, damaged).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["calibrate", "--backend", "cpu", "--threads", "1", "--profile"]).arg(&profile);
    let mut child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(child.try_wait().unwrap(), None, "it measured nothing");
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    assert_eq!(
        (fs::read(&profile).unwrap(), place.names()),
        (damaged.to_vec(), vec!["profile.json".to_owned()])
    );
}

/// Where the system's dynamic linker can put a function before the C library's.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod between_the_last_byte_and_the_rename {
    use ane_matmul::{BackendId, Profile, Quarantine};
    use ane_matmul_shims::{REFERENCE, SIGNAL_AT_FSYNC};

    use super::*;

    /// The program, which ends at a signal even where these tests run in the background of a shell that had
    /// signals ignored.
    fn program() -> Command {
        let mut command = Command::new("env");
        command.args(["--default-signal", PROGRAM]);
        command
    }

    /// Runs a command until it flushes what it has written, where `number` must end it.
    fn end(command: &mut Command, number: i32) {
        command.env("LD_PRELOAD", SIGNAL_AT_FSYNC).env("ANE_MATMUL_TEST_SIGNAL", number.to_string());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(number), "{}: {text}", output.status);
    }

    #[test]
    fn the_old_file_is_whole() {
        let place = Place::new();
        let out = place.path("out");
        let commands = place.writers(&out);
        fs::write(&out, "old").unwrap();
        let before = place.names();
        for (arguments, number) in
            commands.iter().flat_map(|command| SIGNALS.map(|(_, number)| (command, number)))
        {
            end(program().args(arguments), number);
            assert_eq!(
                (fs::read(&out).unwrap(), place.names()),
                (b"old".to_vec(), before.clone()),
                "{arguments:?}"
            );
        }
    }

    /// A profile that knows something, and how it stands on the disk.
    fn profile(place: &Place) -> (PathBuf, Vec<u8>) {
        let path = place.path("profile.json");
        let entry = Quarantine::here(BackendId::new("gone"), None, "crashed");
        Profile::update(&path, |profile| profile.add_quarantine(entry)).unwrap();
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    }

    #[test]
    fn the_old_profile_is_whole_after_calibrate() {
        std::thread::scope(|scope| {
            for (_, number) in SIGNALS {
                scope.spawn(move || {
                    let place = Place::new();
                    let (profile, before) = profile(&place);
                    let names = place.names();
                    let mut command = program();
                    command.args(["calibrate", "--backend", "cpu", "--threads", "1", "--profile"]);
                    end(command.arg(&profile), number);
                    assert_eq!((fs::read(&profile).unwrap(), place.names()), (before, names), "{number}");
                });
            }
        });
    }

    #[test]
    fn the_old_profile_is_whole_after_probe() {
        let place = Place::new();
        let (profile, before) = profile(&place);
        let names = place.names();
        for (_, number) in SIGNALS {
            let mut command = program();
            // It writes what it finds.
            command.env("ANE_MATMUL_SHIM", REFERENCE).env("ANE_REFERENCE_FAULT", "wrong");
            command.args(["probe", "8x8x8", "--backend", "reference", "--quarantine"]);
            end(command.arg(&profile), number);
            assert_eq!(
                (fs::read(&profile).unwrap(), place.names()),
                (before.clone(), names.clone()),
                "{number}"
            );
        }
    }
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
