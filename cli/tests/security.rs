//! What `SECURITY.md` says of the command line and its surroundings.
#![cfg(unix)]

#[path = "support/place.rs"]
mod place;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::{Command, Output};

use ane_matmul::ShimLibrary;
use ane_matmul_shims::REFERENCE;
use place::Place;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ane-matmul");

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn code_from_a_place_that_everybody_may_write_to_is_named() {
    let place = Place::new();
    let shim = place.path("shim.so");
    fs::copy(REFERENCE, &shim).unwrap();
    let devices = || {
        let output = Command::new(PROGRAM).arg("devices").env("ANE_MATMUL_SHIM", &shim).output().unwrap();
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(devices(), "");
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o777)).unwrap();
    let text = devices();
    assert!(text.contains("ANE_MATMUL_SHIM") && text.contains("everybody may write to"), "{text}");
    // SAFETY: the library is built from this repository.
    let library = unsafe { ShimLibrary::open(&shim) }.unwrap();
    assert!(library.writable_by_others().unwrap().ends_with("shim.so"));
}

#[test]
fn links_are_replaced_and_never_followed() {
    let place = Place::new();
    let [out, target] = ["out", "target"].map(|name| place.path(name));
    let probe = ["probe", "8x8x8", "--backend", "reference", "--quarantine"].map(OsString::from);
    let probe = probe.into_iter().chain([out.clone().into()]).collect();
    for arguments in place.writers(&out).into_iter().chain([probe]) {
        let name = arguments[0].display().to_string();
        fs::write(&target, "target").unwrap();
        let _ = fs::remove_file(&out);
        symlink(&target, &out).unwrap();
        let mut command = Command::new(PROGRAM);
        if name == "probe" {
            // It writes what it finds.
            command.env("ANE_MATMUL_SHIM", REFERENCE).env("ANE_REFERENCE_FAULT", "wrong");
        }
        let output = command.args(arguments).output().unwrap();
        if name != "probe" {
            succeeded(&output);
        }
        assert!(!fs::symlink_metadata(&out).unwrap().is_symlink(), "{name} wrote nothing");
        assert_eq!(fs::read(&target).unwrap(), b"target", "{name} followed a link");
    }
}

#[test]
fn nothing_is_loaded_from_the_working_directory() {
    let (place, empty) = (Place::new(), Place::new());
    let profile = "profile.json";
    for name in ["shim.so", "reference.so", "libane_matmul.so", "ane-matmul", "libc.so.6", "libblas.so.3"] {
        fs::copy(REFERENCE, place.path(name)).unwrap();
    }
    fs::write(place.path(profile), "{").unwrap();
    let devices = |place: &Place| {
        let mut command = Command::new(PROGRAM);
        let output = command.arg("devices").current_dir(place.directory()).env("HOME", empty.directory());
        let output = output.env_remove("XDG_DATA_HOME").output().unwrap();
        succeeded(&output);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(devices(&place), devices(&empty));

    // A name without a directory is a file here, and not a library of the system's.
    let mut command = Command::new(PROGRAM);
    command.arg("devices").current_dir(empty.directory()).env("ANE_MATMUL_SHIM", "libc.so.6");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("libc.so.6: load: No such file"), "{text}");
}

/// Names come from files that others made.
#[test]
fn names_in_files_reach_no_terminal_as_they_are() {
    let place = Place::new();
    let input = place.path("in.safetensors");
    // An escape sequence, a forged note, and a text that runs backwards; the last is quantised, and in the table.
    let header = concat!(
        r#"{"a\u001b[2Jb\nnote: forged\u202e":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"#,
        r#""c\u001b[31md\nnote: forged":{"dtype":"F32","shape":[8,8],"data_offsets":[8,264]}}"#
    );
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    let values = (0..64u8).flat_map(|i| f32::from(i).to_le_bytes());
    bytes.extend([0; 8].into_iter().chain(values));
    fs::write(&input, bytes).unwrap();
    let out = place.path("out.safetensors");
    let quantize = || {
        let mut command = Command::new(PROGRAM);
        command.arg("quantize").args([&input, &out]).args(["--type", "int8", "--group-size", "8"]);
        command
    };
    let output = quantize().output().unwrap();
    succeeded(&output);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let forged = |line: &str| line.starts_with("note: forged");
    assert!(text.contains(r"a\u{1b}[2Jb\nnote: forged\u{202e}"), "{text}");
    assert!(text.contains(r"c\u{1b}[31md\nnote: forged"), "{text}");
    assert!(!text.contains(['\u{1b}', '\u{202e}']) && !text.lines().any(forged), "{text}");
    // JSON has escapes of its own.
    let output = quantize().arg("--json").output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        json["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .any(|tensor| tensor["name"] == "c\u{1b}[31md\nnote: forged")
    );
    // A damaged file's names, in an error.
    fs::write(&input, [&8u64.to_le_bytes()[..], b"{\"\x1b[2J\""].concat()).unwrap();
    let output = quantize().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!output.stderr.contains(&0x1b), "{}", String::from_utf8_lossy(&output.stderr));
}
