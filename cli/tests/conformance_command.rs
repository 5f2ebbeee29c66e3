//! `ane-matmul conformance` on the reference shim, which misbehaves on demand.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use ane_matmul_shims::{LIAR, REFERENCE};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ane-matmul");

fn command(arguments: &str, fault: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments.split_whitespace()).env("ANE_MATMUL_SHIM", REFERENCE);
    command.env_remove("ANE_MATMUL_SHIM_DEVICE");
    if fault.is_empty() {
        command.env_remove("ANE_REFERENCE_FAULT");
    } else {
        command.env("ANE_REFERENCE_FAULT", fault);
    }
    command
}

/// The command on the reference shim, with a planted fault or without.
fn run(arguments: &str, fault: &str) -> Output {
    let arguments = format!("conformance --backend reference {arguments}");
    command(&arguments, fault).output().expect("the command line runs")
}

/// The status, standard output, and standard error without the lines of progress that a slow machine sees.
fn parts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let stderr = text(&output.stderr).lines().filter(|line| !line.ends_with(" s]")).collect();
    (output.status.code(), text(&output.stdout), stderr)
}

#[track_caller]
fn failed(output: &Output, error: &str) -> String {
    let (status, stdout, stderr) = parts(output);
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.contains(error), "expected {error:?} in: {stderr}");
    stdout
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {:?}", parts(output)))
}

/// The figures of a list: cases, passed, refused, failed, not run.
fn figures(list: &Value) -> [u64; 5] {
    ["cases", "passed", "refused", "failed", "not_run"].map(|key| list[key].as_u64().expect("a number"))
}

#[test]
fn the_reference_passes_and_what_it_refuses_is_counted() {
    let output = run("--list f32,bf16", "");
    let (status, text, stderr) = parts(&output);
    // Progress is for terminals.
    assert_eq!((status, stderr.as_str()), (Some(0), ""), "{text}");
    let words =
        |line: &str| line.split(['|', ' ']).filter(|word| !word.is_empty()).map(String::from).collect();
    let row = |list: &str| -> Vec<String> {
        text.lines().find(|line| line.starts_with(&format!("| {list} "))).map(words).expect("a row")
    };
    assert_eq!(row("f32")[..6], ["f32", "1006", "1006", "0", "0", "0"]);
    assert_eq!(row("bf16")[..7], ["bf16", "1006", "0", "1006", "0", "0", "-"]);
    assert!(text.starts_with("reference: shim `reference`"), "{text}");
    assert!(text.contains("bf16: refused: every case: the reference shim runs f32 only"), "{text}");
    assert!(text.ends_with("(element type)\n"), "{text}");

    let output = run("--list f32,bf16 --json", "");
    let report = json(&output);
    assert_eq!((output.status.code(), &report["backend"]), (Some(0), &"reference".into()));
    assert_eq!(figures(&report["lists"][0]), [1006, 1006, 0, 0, 0]);
    assert_eq!(figures(&report["lists"][1]), [1006, 0, 1006, 0, 0]);
    let refusals = &report["lists"][1]["refusals"];
    assert_eq!(refusals.as_array().map(Vec::len), Some(1));
    assert_eq!((&refusals[0]["reason"], &refusals[0]["first_case"]), (&"element type".into(), &1.into()));
}

#[test]
fn a_refusal_fails_where_it_is_required_not_to_or_where_there_is_nothing_else() {
    failed(
        &run("--list f32,bf16 --require bf16", ""),
        "refuses 1006 of 1006 cases of bf16, which is required",
    );
    assert!(run("--list f32,bf16 --require f32", "").status.success());
    failed(&run("--list bf16,integers", ""), "reference refuses every case, so that nothing was shown");
    failed(&run("--list bf16 --case 3", ""), "refuses every case");
    failed(&run("--list f32 --require bf16", ""), "--require: bf16 is not among the lists");
}

/// Those of a command that is printed, which names the shim.
#[track_caller]
fn arguments_of(command: &str) -> &str {
    let shim = command.strip_prefix(&format!("ANE_MATMUL_SHIM={REFERENCE} "));
    shim.and_then(|rest| rest.strip_prefix("ane-matmul ")).unwrap_or_else(|| panic!("{command}"))
}

#[test]
fn a_failure_comes_with_the_command_that_fails_again() {
    let output = run("--list f32 --json --seed 5 --threads 2", "wrong%6");
    failed(&output, "cases failed on reference");
    let report = json(&output);
    let [cases, passed, refused, wrong, not_run] = figures(&report["lists"][0]);
    assert!(passed > 0 && wrong > 100, "{passed} passed, {wrong} failed");
    assert_eq!((passed + wrong, refused, not_run), (cases, 0, 0));
    let failures = report["lists"][0]["failures"].as_array().expect("a list");
    assert_eq!(failures.len() as u64, wrong);
    for failure in failures.iter().step_by(failures.len() / 4) {
        let again = failure["command"].as_str().expect("a command");
        let arguments = arguments_of(again);
        assert!(arguments.contains("--seed 5 --threads 2"), "{arguments}");
        // Which calls of a process are wrong differs.
        let output = command(&format!("{arguments} --json"), "wrong").output().expect("it runs");
        failed(&output, "1 of 1 cases failed on reference");
        let same = &json(&output)["lists"][0]["failures"][0];
        assert_eq!((&same["case"], &same["product"]), (&failure["case"], &failure["product"]));
        // And only for the fault.
        assert!(command(arguments, "").output().expect("it runs").status.success(), "{arguments}");
    }
    let text = failed(&run("--list f32", "wrong%6"), "cases failed on reference");
    let again = text.lines().filter_map(|line| line.strip_prefix("    ")).map(arguments_of);
    let same = |arguments: &&str| arguments.starts_with("conformance --backend reference --list f32 --case ");
    assert_eq!(again.filter(same).count(), 20);
    assert!(text.contains(" more failed; --json has them"), "{text}");
}

#[test]
fn a_seed_draws_other_numbers() {
    let ratio = |arguments: &str| {
        let report = json(&run(&format!("--list f32 --case 61 --json {arguments}"), ""));
        report["lists"][0]["worst_error_to_bound"].as_f64().expect("it passed").to_bits()
    };
    assert_eq!(ratio(""), ratio("--seed 0"));
    assert_ne!(ratio("--seed 1"), ratio(""));
}

#[test]
fn a_case_that_ends_the_process_is_named_and_the_others_run() {
    for (fault, problem) in [("exit", "exit status: 3"), ("abort", if cfg!(unix) { "SIGABRT" } else { "" })] {
        let text = failed(&run("--list f32 --case 12,40", fault), "2 of 2 cases failed");
        for case in [12, 40] {
            let line = format!("f32: case {case} failed: ");
            let line = text.lines().find(|text| text.starts_with(&line)).unwrap_or_else(|| panic!("{text}"));
            assert!(line.contains(": the process ended: ") && line.contains(problem), "{line}");
        }
    }
    let report = json(&run("--list f32,bf16 --json", "abort"));
    assert_eq!(figures(&report["lists"][0]), [1006, 0, 0, 10, 996]);
    assert_eq!(figures(&report["lists"][1]), [1006, 0, 1006, 0, 0]);
}

#[test]
fn a_case_that_hangs_is_ended_and_its_list_with_it() {
    let output = run("--list f32 --case 12,40 --time-limit 1 --json", "hang");
    failed(&output, "1 of 2 cases failed");
    let list = &json(&output)["lists"][0];
    assert_eq!(figures(list), [2, 0, 0, 1, 1]);
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    assert!(text(&list["failures"][0]["problem"]).contains("--time-limit"), "{list}");
    assert!(text(&list["not_run_because"]).contains("--time-limit"), "{list}");
    let command = text(&list["failures"][0]["command"]);
    assert!(arguments_of(&command).ends_with(" --time-limit 1 --list f32 --case 12"), "{command}");
    assert!(arguments_of(&text(&list["go_on_with"])).ends_with(" --list f32 --case 40.."), "{list}");

    let text = failed(&run("--list f32 --case 1000.. --time-limit 1", "hang"), "1 of 7 cases failed");
    let rest = "f32: not run: the last 6 cases: a case took longer than --time-limit; go on with\n    ANE_MATMUL_SHIM=";
    assert!(text.contains(rest) && text.contains(" --case 1001..\n"), "{text}");
    let text = failed(&run("--list f32", "abort"), "10 of 1006 cases failed");
    assert!(text.contains("f32: not run: the last 996 cases: ten cases ended their process"), "{text}");
}

#[test]
fn the_rest_of_a_list_runs_from_a_case_on() {
    let output = run("--list f32 --case 3,1000.. --json", "");
    assert_eq!(figures(&json(&output)["lists"][0]), [8, 8, 0, 0, 0]);
}

/// A list that a backend passes by doing less than the list is about says so.
#[test]
fn what_a_list_does_not_show_is_said() {
    let notes = |shim: &str, memory: &str| {
        let name = if shim == LIAR { "liar" } else { "reference" };
        let line = format!("conformance --backend {name} --list asynchronous,resident,f32 --case 61");
        ["asynchronous", "resident", "f32"].map(|list| {
            let line = line.replace("asynchronous,resident,f32", list);
            let text = |json: &str| {
                let mut command = command(&format!("{line}{json}"), "");
                command.env("ANE_MATMUL_SHIM", shim).env("ANE_REFERENCE_MEMORY", memory);
                parts(&command.output().expect("the command line runs")).1
            };
            let report: Value = serde_json::from_str(&text(" --json")).expect("JSON");
            let note = report["lists"][0]["note"].as_str().map(ToOwned::to_owned);
            let printed = text("").lines().any(|line| line.starts_with(&format!("{list}: note: ")));
            assert_eq!(note.is_some(), printed, "{list}");
            note.unwrap_or_default()
        })
    };
    let [asynchronous, resident, f32] = notes(LIAR, "");
    assert!(asynchronous.contains("takes no submissions") && resident.contains("the host's"));
    assert_eq!(f32, "");
    assert_eq!(notes(REFERENCE, "device"), [""; 3]);
}

/// The liar says that the GPU ran, whatever was asked for.
#[test]
fn another_device_than_was_asked_for_is_a_failure() {
    let run = |device: &str| {
        let mut command =
            command(&format!("conformance --backend liar --list f32 --case 61 --device {device}"), "");
        command.env("ANE_MATMUL_SHIM", LIAR).env("ANE_LIAR", "gpu").output().expect("the command line runs")
    };
    let text = failed(&run("cpu"), "1 of 1 cases failed");
    assert!(
        text.contains("the device cpu was asked for, and by the backend's own report it was gpu"),
        "{text}"
    );
    assert!(run("unknown").status.success());
}

/// An error of `supports` that is no refusal.
#[test]
fn a_question_that_fails_is_no_refusal() {
    let text = failed(&run("--list f32 --case 61", "fail@supports"), "1 of 1 cases failed");
    assert!(text.contains("supports failed: planted fault"), "{text}");
}

#[test]
fn a_planted_fault_that_there_is_not_is_an_error() {
    for fault in ["wrogn", "wrong@rum", "slow:soon", "wrong%often@work"] {
        failed(&run("--list f32 --case 1", fault), "ANE_REFERENCE_FAULT: unknown word `");
    }
    let mut command = command("conformance --backend reference --list f32 --case 1", "");
    let output = command.env("ANE_REFERENCE_MEMORY", "device,embeds").output();
    failed(&output.expect("it runs"), "ANE_REFERENCE_MEMORY: unknown word `embeds`; one of device embed");
}

#[test]
fn a_fault_in_one_of_some_calls_is_not_in_the_first() {
    assert!(run("--list f32 --case 61", "fail%6").status.success());
    let [_, passed, _, wrong, _] = figures(&json(&run("--list f32 --json", "fail%6"))["lists"][0]);
    assert!(passed > 100 && wrong > 100, "{passed} passed, {wrong} failed");
}

#[test]
fn a_backend_that_cannot_be_opened_or_closed_is_a_failure() {
    failed(&run("--list f32", "fail@open"), "planted fault");
    failed(&run("--list f32", "abort@open"), "the process ended");
    let text = failed(&run("--list f32 --case 1", "abort@close"), "after the last case: the process ended");
    assert!(text.contains("after the last case: "), "{text}");
}

#[test]
fn a_backend_that_prints_does_not_disturb() {
    for fault in ["print", "flood%9"] {
        let output = run("--list f32 --case 1,2,3 --json", fault);
        assert_eq!(output.status.code(), Some(0), "{:?}", parts(&output));
        assert_eq!(figures(&json(&output)["lists"][0]), [3, 3, 0, 0, 0]);
    }
}

#[test]
fn names_and_numbers_that_there_are_not_are_errors() {
    let unknown = command("conformance --backend cuda", "").output().expect("the command line runs");
    failed(&unknown, "unknown backend `cuda`; known backends: cpu");
    let none = command("conformance --backend cuda", "").env_remove("ANE_MATMUL_SHIM").output();
    failed(&none.expect("the command line runs"), "; a shim's: set ANE_MATMUL_SHIM");
    for (arguments, status, error) in [
        ("--list f32 --case 1007", 1, "f32 has the cases 1 to 1006, got 1007"),
        ("--list f32,bf16 --case 1", 1, "name one list with --list, got 2"),
        ("--list f32 --case 0", 2, "--case"),
        ("--list f32 --case -1", 2, "-1"),
        ("--list f32 --case 99999999999999999999", 2, "--case"),
        ("--case 1", 2, "--list"),
        ("--list f8", 2, "weight-only"),
        ("--require f8", 2, "weight-only"),
        ("--list f32 --seed -1", 2, "-1"),
    ] {
        let (got, stdout, stderr) = parts(&run(arguments, ""));
        assert_eq!(got, Some(status), "{arguments}: {stderr}");
        assert!(stderr.contains(error) && stdout.is_empty(), "{arguments}: {stderr}");
    }
}

/// The hidden side ends when nobody asks, or asks for nothing that there is.
#[test]
fn the_process_of_the_cases_ends_with_its_requests() {
    for requests in ["", "f32 1\n", "f32 0\n", "f32 1007\n", "f8 1\n", "nonsense\n", "f32 1"] {
        let mut child = command("conformance-helper --backend reference", "")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the command line runs");
        child.stdin.take().expect("a pipe").write_all(requests.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        let (status, stdout, stderr) = parts(&output);
        assert_eq!((status, stderr.as_str()), (Some(0), ""), "{requests:?}");
        let answers = if requests.trim_end() == "f32 1" { 2 } else { 1 };
        assert_eq!(stdout.lines().count(), answers, "{requests:?}: {stdout}");
    }
}

/// Submissions, and operands that stay on the device, on memory of the host's and apart from it.
#[test]
fn cases_on_the_device_pass_and_fail_by_themselves() {
    let run = |list: &str, memory: &str, fault: &str| {
        let arguments = format!("conformance --backend reference --list {list} --case 61,200,500 --json");
        let output = command(&arguments, fault).env("ANE_REFERENCE_MEMORY", memory).output();
        figures(&json(&output.expect("the command line runs"))["lists"][0])
    };
    let (passed, failed) = ([3, 3, 0, 0, 0], [3, 0, 0, 3, 0]);
    for memory in ["", "device"] {
        for list in ["asynchronous", "resident"] {
            assert_eq!(run(list, memory, ""), passed, "{list}, {memory}");
        }
        assert_eq!(run("asynchronous", memory, "wrong@work"), failed, "{memory}");
        assert_eq!(run("resident", memory, "wrong@work"), passed, "{memory}");
        assert_eq!(run("resident", memory, "wrong"), failed, "{memory}");
    }
    for list in ["asynchronous", "resident"] {
        assert_eq!(
            (run(list, "", "fail@read"), run(list, "device", "fail@read")),
            (passed, failed),
            "{list}"
        );
    }
}
