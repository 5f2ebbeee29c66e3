//! Standard input, standard output and pipes in the place of files.
#![cfg(unix)]

#[path = "support/place.rs"]
mod place;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ane_matmul::npy::{self, NpyTensor};
use ane_matmul::{Tensor, safetensors::SafetensorsFile};
use place::Place;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ane-matmul");

/// A place with a 3 x 5 matrix, a 5 x 4 one and a vector of 4, and the bytes of their product.
fn place() -> (Place, Vec<u8>) {
    let place = Place::new();
    let integers = |rows, cols| {
        Tensor::from_fn(rows, cols, |r, c| f32::from(u8::try_from((r * 7 + c * 3) % 5).unwrap()) - 2.0)
    };
    for (name, rows, cols) in [("a.npy", 3, 5), ("b.npy", 5, 4), ("bias.npy", 1, 4)] {
        npy::write(place.path(name), &integers(rows, cols).unwrap()).unwrap();
    }
    succeeded(&shell(&place, r#""$0" multiply a.npy b.npy --bias bias.npy -o c.npy"#));
    let product = fs::read(place.path("c.npy")).unwrap();
    (place, product)
}

/// Runs a script in a place, whose `$0` is the command line. Bash has process substitutions.
fn shell(place: &Place, script: &str) -> Output {
    let mut command = Command::new("bash");
    command.args(["-c", script, PROGRAM]).current_dir(place.directory());
    command.env("OPENBLAS_NUM_THREADS", "1").output().expect("bash runs")
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn failed(output: &Output, part: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("error: ") && text.lines().count() == 1 && text.contains(part), "{text}");
    assert!(output.stdout.is_empty(), "something went to standard output");
}

/// Results, errors and statuses are the same where nobody reads what is printed.
#[test]
fn a_reader_that_goes_away_decides_nothing() {
    let (place, product) = place();
    let run = |arguments: &str| {
        shell(
            &place,
            &format!(r#"set -o pipefail; {{ "$0" {arguments}; echo $? >status; }} | true; sleep 0.1"#),
        );
        fs::read_to_string(place.path("status")).unwrap().trim().to_owned()
    };
    // `true` may end before or after the first byte: often enough before.
    for _ in 0..5 {
        assert_eq!(run("multiply a.npy b.npy --bias bias.npy --check -o checked.npy"), "0");
        assert_eq!(fs::read(place.path("checked.npy")).unwrap(), product);
        fs::remove_file(place.path("checked.npy")).unwrap();
    }
    assert_eq!(run("verify 64x64x64 --backend cpu --seconds 0.1 --require neural-engine"), "1");
    assert_eq!(run("conformance --backend cpu --list f32 --case 1,2"), "0");
    assert_eq!(run("devices"), "0");
}

#[test]
fn factors_come_from_pipes_and_the_product_goes_to_standard_output() {
    let (place, product) = place();
    for script in [
        r#""$0" multiply a.npy b.npy --bias bias.npy -o -"#,
        r#""$0" multiply - b.npy --bias bias.npy -o - <a.npy"#,
        r#"cat a.npy | "$0" multiply - b.npy --bias bias.npy --output=-"#,
        r#"cat b.npy | "$0" multiply a.npy - --bias bias.npy -o -"#,
        r#"cat bias.npy | "$0" multiply a.npy b.npy --bias - -o -"#,
        r#""$0" multiply <(cat a.npy) <(cat b.npy) --bias <(cat bias.npy) -o -"#,
        r#"mkfifo fifo; cat a.npy >fifo & "$0" multiply fifo b.npy --bias bias.npy -o - | cat"#,
    ] {
        let output = shell(&place, script);
        succeeded(&output);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{script}");
        assert!(output.stdout == product, "{script}");
    }
    // What is said of the result goes elsewhere.
    let output =
        shell(&place, r#""$0" multiply a.npy b.npy -o - --check --precision bf16 --output-type f64"#);
    succeeded(&output);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("check passed") && text.lines().count() > 1, "{text}");
    let result = npy::read_from(&output.stdout[..], "standard output").unwrap();
    assert!(matches!(result, NpyTensor::F64(_)));
    assert!(!place.path("-").exists());
}

#[test]
fn a_pipe_that_gives_too_little_too_much_or_never_ends_is_an_error() {
    let (place, _) = place();
    let header =
        format!("{:<117}\n", "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }");
    let bytes = [b"\x93NUMPY\x01\x00\x76\x00", header.as_bytes()].concat();
    fs::write(place.path("huge.npy"), bytes).unwrap();
    for (script, part) in [
        (r#"head -c 150 a.npy | "$0" multiply - b.npy -o -"#, "standard input: is truncated"),
        (r#": | "$0" multiply - b.npy -o -"#, "standard input: is not a NumPy file"),
        (r#"(cat a.npy; echo) | "$0" multiply - b.npy -o -"#, "more bytes after its array"),
        (r#"(cat a.npy; cat /dev/zero) | "$0" multiply - b.npy -o -"#, "more bytes after its array"),
        (r#""$0" multiply <(cat a.npy /dev/zero) b.npy -o -"#, "more bytes after its array"),
        (r#""$0" multiply /dev/zero b.npy -o -"#, "/dev/zero: is not a NumPy file"),
        (r#"cat huge.npy | "$0" multiply - b.npy -o -"#, "promises 8000000000128 bytes, it ended before"),
        // As much as there is memory, and no more; other systems cannot limit it.
        #[cfg(target_os = "linux")]
        (r#"ulimit -v 400000 && cat huge.npy /dev/zero | "$0" multiply - b.npy -o -"#, "out of memory"),
        (r#""$0" multiply - - -o - <a.npy"#, "only one of the inputs"),
        (r#""$0" multiply - b.npy --bias - -o - <a.npy"#, "only one of the inputs"),
        (r#""$0" multiply a.npy b.npy -o - --backend none"#, "unknown backend"),
    ] {
        println!("{script}");
        failed(&shell(&place, script), part);
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error_and_a_full_disk_is() {
    let (place, _) = place();
    let [a, b] = place.factors(1000, 1000);
    let mut command = Command::new(PROGRAM);
    command.arg("multiply").args([a, b]).args(["-o", "-"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    succeeded(&output);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    if Path::new("/dev/full").exists() {
        let output = command.stdout(File::create("/dev/full").unwrap()).output().unwrap();
        failed(&output, "standard output: write: No space left");
    }
}

/// A terminal, as its user and as the program behind its screen have it.
#[allow(unsafe_code, reason = "openpty is a C function")]
fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut screen, mut user) = (0, 0);
    let null = std::ptr::null_mut();
    // SAFETY: both descriptors are written to, and null pointers ask for nothing.
    let status = unsafe { libc::openpty(&raw mut screen, &raw mut user, null, null.cast(), null.cast()) };
    assert_eq!(status, 0, "no terminal: {}", std::io::Error::last_os_error());
    // SAFETY: both were opened just now, and nobody else has them.
    unsafe { (OwnedFd::from_raw_fd(screen), OwnedFd::from_raw_fd(user)) }
}

#[test]
fn a_terminal_takes_and_gives_no_matrices() {
    let (place, product) = place();
    let (_screen, user) = terminal();
    let multiply = |arguments: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.arg("multiply").args(arguments).current_dir(place.directory());
        command.stdin(user.try_clone().unwrap()).stdout(user.try_clone().unwrap());
        command
    };
    let output = multiply(&["a.npy", "b.npy", "-o", "-"]).stderr(Stdio::piped()).output().unwrap();
    failed(&output, "standard output is a terminal");
    let output = multiply(&["-", "b.npy", "-o", "d.npy"]).stderr(Stdio::piped()).output().unwrap();
    failed(&output, "standard input is a terminal");
    // With neither of the two it does no harm.
    let command = ["a.npy", "b.npy", "--bias", "bias.npy", "-o", "d.npy"];
    succeeded(&multiply(&command).stderr(Stdio::piped()).output().unwrap());
    assert_eq!(fs::read(place.path("d.npy")).unwrap(), product);
}

/// A file of one tensor of 8 x 128 zeros.
fn weights(place: &Place) -> PathBuf {
    let header = r#"{"w":{"dtype":"F32","shape":[8,128],"data_offsets":[0,4096]}}   "#;
    let mut file = File::create(place.path("w.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.write_all(&[0; 4096]).unwrap();
    place.path("w.safetensors")
}

#[test]
fn weights_come_from_pipes_and_no_more_than_their_header_asks_for() {
    let place = Place::new();
    weights(&place);
    let out = "out.safetensors --type int8";
    for script in [
        format!(r#"cat w.safetensors | "$0" quantize - {out}"#),
        format!(r#""$0" quantize - {out} <w.safetensors"#),
        format!(r#""$0" quantize <(cat w.safetensors) {out}"#),
    ] {
        succeeded(&shell(&place, &script));
        let file = SafetensorsFile::read(place.path("out.safetensors")).unwrap();
        assert_eq!(file.quantized_names(), ["w"], "{script}");
        fs::remove_file(place.path("out.safetensors")).unwrap();
    }
    for (from, part) in [
        ("head -c 3000 w.safetensors", "standard input: is truncated"),
        ("head -c 20 w.safetensors", "standard input: is truncated"),
        ("cat w.safetensors /dev/zero", "more bytes than its header says"),
        ("cat /dev/zero", "standard input: "),
        ("yes", "standard input: not a valid safetensors file"),
    ] {
        let limit = if cfg!(target_os = "linux") { "ulimit -v 800000 &&" } else { "" };
        let script = format!(r#"{limit} {from} | "$0" quantize - {out}"#);
        println!("{script}");
        failed(&shell(&place, &script), part);
    }
    let script = r#""$0" quantize w.safetensors - --type int8"#;
    failed(&shell(&place, script), "`-` is no file");
    assert_eq!(place.names(), ["w.safetensors"]);
}
