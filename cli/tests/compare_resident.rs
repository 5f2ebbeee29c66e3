//! `ane-matmul compare --resident`, on the reference shim with memory of its own.

use std::process::{Command, Output};

use ane_matmul_shims::REFERENCE;
use serde_json::Value;

fn compare(arguments: &[&str], memory: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
    command.args(["compare", "--samples", "2", "--resident"]).args(arguments);
    command.env("ANE_MATMUL_SHIM", REFERENCE).env("ANE_REFERENCE_MEMORY", memory);
    command.output().expect("the command line runs")
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Backend and memory of each result.
fn results(json: &Value) -> Vec<[&str; 2]> {
    json["results"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|result| ["backend", "memory"].map(|key| result[key].as_str().expect("a name")))
        .collect()
}

#[test]
fn a_device_with_memory_of_its_own_is_timed_on_both() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("out.json");
    let json = |more: &[&str], memory: &str| -> (String, Value) {
        let mut arguments = vec!["--backend", "cpu,reference", "--json", path.to_str().expect("UTF-8")];
        arguments.extend(more);
        let text = succeeded(&compare(&arguments, memory));
        (text, serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON"))
    };
    for more in [&["--shapes", "5x7x3"][..], &["--shapes", "5x7x3", "--constant-b"]] {
        let (text, figures) = json(more, "device");
        let both = [["cpu", "host"], ["reference", "host"], ["reference", "device"]];
        assert_eq!(results(&figures), both, "{text}");
        assert_eq!(figures["memory"], "host and device");
        assert!(text.contains("| reference, resident |") && text.contains("\nmemory: A"), "{text}");
        assert!(text.contains("note: cpu: its memory is the host's"), "{text}");
    }
    // What lies in the host's memory lies there in any case.
    let (text, figures) = json(&["--shapes", "5x7x3"], "");
    assert_eq!(results(&figures), [["cpu", "host"], ["reference", "host"]], "{text}");
    assert!(text.contains("note: reference: its memory is the host's"), "{text}");
    assert!(!text.contains("memory: A") && figures["memory"] == "host", "{text}");
}

/// The result that is checked comes from the device: without reads of its memory there is none.
#[test]
fn what_stays_on_the_device_is_downloaded_to_be_checked() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
        command.args(["compare", "--samples", "1", "--backend", "reference", "--sizes", "9"]).args(arguments);
        command.env("ANE_MATMUL_SHIM", REFERENCE).env("ANE_REFERENCE_MEMORY", "device");
        command.env("ANE_REFERENCE_FAULT", "fail@read").output().expect("the command line runs")
    };
    succeeded(&run(&[]));
    let output = run(&["--resident"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("buffer_read failed: planted fault"), "{text}");
}

#[test]
fn whose_shim_is_wrong_is_told_to_test_it() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
    command.args(["compare", "--samples", "1", "--backend", "reference", "--sizes", "9"]);
    command.env("ANE_MATMUL_SHIM", REFERENCE).env("ANE_REFERENCE_FAULT", "wrong");
    let output = command.output().expect("the command line runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.ends_with("not timed; run ane-matmul conformance --backend reference\n"), "{text}");
}
