//! A test double of hardware is never taken for hardware.

use std::process::{Command, Output};

use ane_matmul_shims::TEST_DOUBLE;

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
    command.args(arguments).env("ANE_MATMUL_SHIM", TEST_DOUBLE).output().expect("the command line runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn compare_does_not_time_it() {
    let asked = run(&["compare", "--sizes", "16", "--samples", "3", "--backend", "double"]);
    assert_eq!(asked.status.code(), Some(1), "{asked:?}");
    assert!(text(&asked.stderr).contains("backend `double` is not timed"), "{asked:?}");
    assert_eq!(text(&asked.stdout), "");

    let among_others = run(&["compare", "--sizes", "16", "--samples", "3"]);
    assert!(among_others.status.success(), "{among_others:?}");
    let table = text(&among_others.stdout);
    let mut lines = table.lines().filter(|line| line.contains("double"));
    assert!(lines.all(|line| line.contains("its times mean nothing")), "{table}");
    assert!(table.contains("its times mean nothing"), "{table}");
}

#[test]
fn devices_says_what_it_is() {
    let listed = text(&run(&["devices"]).stdout);
    assert!(listed.contains("(a test double, not hardware)"), "{listed}");
    let json: serde_json::Value = serde_json::from_slice(&run(&["devices", "--json"]).stdout).expect("JSON");
    let marked = |name: &str| {
        let list = json["backends"].as_array().expect("a list");
        let backend = list.iter().find(|backend| backend["backend"] == name).expect("it is listed");
        backend["test_double"].as_bool()
    };
    assert_eq!((marked("double"), marked("cpu")), (Some(true), Some(false)));
}

#[test]
fn verify_believes_nothing_of_it() {
    let receipt = run(&["verify", "16x16x16", "--backend", "double", "--seconds", "0.02"]);
    assert!(receipt.status.success(), "{receipt:?}");
    let receipt = text(&receipt.stdout);
    assert!(receipt.contains("observed:   unknown") && receipt.contains("a test double"), "{receipt}");
    let required =
        run(&["verify", "16x16x16", "--backend", "double", "--seconds", "0.02", "--require", "cpu"]);
    assert_eq!(required.status.code(), Some(1), "{required:?}");
}
