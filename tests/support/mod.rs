//! Tests that run once for each kernel of the CPU engine, in processes of their own: a process chooses
//! its kernels once.

use std::path::Path;
use std::process::{Command, Output};

use ane_matmul::{BackendId, Backends};

/// The kernels that the engine has for some machine.
const KERNELS: [&str; 4] = ["avx512", "avx2", "neon", "portable"];

/// Those of dot products, which go with one of [`KERNELS`].
const DOT_KERNELS: [&str; 6] =
    ["avx512-bf16", "avx512-vnni", "avx512-vpmaddwd", "avx2-vpmaddwd", "neon-bf16", "neon-dotprod"];

/// The environment variable that names the kernels of a process.
pub(crate) const FORCE: &str = "ANE_MATMUL_CPU";

/// Set in the processes that [`on_every_kernel`] starts.
const CHILD: &str = "ANE_MATMUL_TEST_CHILD";

/// What a child prints before the reason why its kernels are not here.
const NOT_HERE: &str = "not here: ";

/// How this executable must be started, where an emulator runs it.
fn runner() -> Option<Vec<String>> {
    let aarch64 = cfg!(all(target_arch = "aarch64", target_os = "linux"));
    let command = std::env::var("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER").ok().filter(|_| aarch64)?;
    Some(command.split_whitespace().map(String::from).collect())
}

/// Whether an emulator runs this, which has no time for everything.
#[allow(dead_code, reason = "some tests are short")]
pub(crate) fn emulated() -> bool {
    runner().is_some()
}

/// This executable, to be started once more.
pub(crate) fn this_executable() -> Command {
    let executable = std::env::current_exe().expect("this executable");
    match runner().as_deref() {
        Some([emulator, arguments @ ..]) => {
            let mut command = Command::new(Path::new(emulator));
            command.args(arguments).arg(executable);
            command
        }
        _ => Command::new(executable),
    }
}

/// Starts `test` in processes of its own, each with `variable` at one of the values: whether it survives is
/// what stands beside the value.
///
/// # Panics
/// Where a process fares otherwise.
#[allow(dead_code, reason = "most tests look at no memory beyond theirs")]
pub(crate) fn expect_survival(test: &str, variable: &str, expected: &[(&str, bool)]) {
    for (value, survives) in expected {
        let output = this_executable()
            .args(["--exact", test, "--nocapture"])
            .env(variable, value)
            .output()
            .expect("this executable runs");
        assert_eq!(output.status.success(), *survives, "{value}: {}", output.status);
    }
}

/// Runs `body` on all kernels of this machine for f32; `test` is the test that calls this.
///
/// # Panics
/// With what a child printed last, where one fails or crashes, or where none ran.
#[allow(dead_code, reason = "some tests look at narrow types alone")]
pub(crate) fn on_every_kernel(test: &str, body: fn()) {
    on_kernels(&KERNELS, test, body);
}

/// The same on those of dot products too, each without the others.
///
/// # Panics
/// As [`on_every_kernel`].
#[allow(dead_code, reason = "some tests look at f32 alone")]
pub(crate) fn on_every_kernel_of_narrow_types(test: &str, body: fn()) {
    on_kernels(&[&KERNELS[..], &DOT_KERNELS].concat(), test, body);
}

/// What a process prints that runs `test` on the kernels called `name`.
fn child(name: &str, test: &str) -> Output {
    this_executable()
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(FORCE, name)
        .env(CHILD, "1")
        .output()
        .expect("this executable runs")
}

fn on_kernels(names: &[&str], test: &str, body: fn()) {
    if std::env::var_os(CHILD).is_some() {
        match Backends::new().info(&BackendId::CPU) {
            Ok(info) => {
                let name = std::env::var(FORCE).expect("the parent names the kernels");
                let described = |name: &str| info.description.contains(&format!("{name} kernels"));
                assert!(described(&name), "{name}: {}", info.description);
                // Those that need no extension belong to what their name begins with.
                let own = format!("{name}-vpmaddwd");
                for other in DOT_KERNELS.into_iter().filter(|other| *other != name && *other != own) {
                    assert!(!described(other), "{name}: {}", info.description);
                }
                body();
            }
            Err(reason) => println!("{NOT_HERE}{reason}"),
        }
        return;
    }
    // The others of this machine's cores would have nothing to do meanwhile.
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let children: Vec<_> = names.iter().map(|name| scope.spawn(|| child(name, test))).collect();
        children.into_iter().map(|child| child.join().expect("it only waits")).collect()
    });
    let mut ran = 0;
    for (name, output) in names.iter().zip(outputs) {
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some((_, reason)) = text.split_once(NOT_HERE) {
            println!("not run: {name}: {}", reason.lines().next().unwrap_or(""));
            continue;
        }
        let last = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(30)..].join("\n")
        };
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{name}: {}\n{}\n{}",
            output.status,
            last(&output.stdout),
            last(&output.stderr)
        );
        for (_, line) in text.lines().filter_map(|line| line.split_once(REPORT)) {
            println!("{name}: {line}");
        }
        ran += 1;
    }
    assert!(ran > 0, "no kernels ran");
}

/// Before a line that a child wants to be shown.
const REPORT: &str = "report: ";

/// Shows a line under the name of this process's kernels.
#[allow(dead_code, reason = "some tests have nothing to show")]
pub(crate) fn report(line: &str) {
    println!("{REPORT}{line}");
}
