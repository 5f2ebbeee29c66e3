//! The command line of ane-matmul.

// Both panic where nothing can be written, and write what they are given: `output` does neither.
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod args;
mod calibrate;
mod check;
mod compare;
mod conformance;
mod devices;
mod explain;
mod failure;
mod machine;
mod multiply;
mod output;
mod precision;
mod probe;
mod quantize;
mod signals;
mod verify;
mod whole_file;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{Cli, Command};
use failure::{Failure, Output};
use output::note;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::ProbeHelper = cli.command {
        return probe_helper();
    }
    output::keep_to_ourselves();
    signals::clean_up(&cli.command);
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(message)) => {
            // One line, whatever a library's message looks like.
            let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
            output::tell(format_args!("error: {message}"));
            ExitCode::from(1)
        }
    }
}

fn run(command: Command) -> Output {
    match command {
        Command::Devices(args) => devices::run(&args),
        Command::Multiply(args) => multiply::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::ConformanceHelper(args) => conformance::serve(&args),
        Command::ProbeHelper => Ok(()),
        Command::Quantize(args) => quantize::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ane-matmul", &mut script);
            output::print_bytes(&script)
        }
    }
}

/// The helper of a probe, whose answers go to the standard output that this process was given.
fn probe_helper() -> ExitCode {
    match backends() {
        Ok(backends) => ane_matmul::probe::serve(&backends),
        Err(_) => ExitCode::from(2),
    }
}

/// Says that there is a profile that cannot be used.
fn note_profile(state: &ane_matmul::ProfileState) {
    if let ane_matmul::ProfileState::Ignored(problem) = state {
        note(format_args!("{problem}; it is ignored, `ane-matmul calibrate` makes a new one"));
    }
}

/// Describes a product whose B comes with every run, or is known, though not here yet.
fn describe(builder: ane_matmul::MatMulBuilder, constant_b: bool) -> Output<ane_matmul::MatMul> {
    Ok(if constant_b { builder.build_constant_b()?.product().clone() } else { builder.build()? })
}

/// Names the library of a shim.
const SHIM: &str = "ANE_MATMUL_SHIM";

/// Chooses one of its devices.
const SHIM_DEVICE: &str = "ANE_MATMUL_SHIM_DEVICE";

/// An environment variable that is set, and not empty.
fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The backends of this process: the built-in ones, and the shim that `ANE_MATMUL_SHIM` names.
fn backends() -> Output<ane_matmul::Backends> {
    backends_with(shim()?)
}

fn backends_with(shim: Option<ane_matmul::ShimLibrary>) -> Output<ane_matmul::Backends> {
    let mut backends = ane_matmul::Backends::new();
    if let Some(shim) = shim {
        backends.add_device(shim, shim_device()?)?;
    }
    Ok(backends)
}

/// The shim that `ANE_MATMUL_SHIM` names.
#[allow(unsafe_code, reason = "the user asks for foreign code to be loaded")]
fn shim() -> Output<Option<ane_matmul::ShimLibrary>> {
    let Some(path) = variable(SHIM) else { return Ok(None) };
    let path = std::path::PathBuf::from(path);
    // SAFETY: whoever sets the variable vouches for the library, as with any plug-in.
    let shim = unsafe { ane_matmul::ShimLibrary::open(&path) }?;
    if let Some(who) = shim.writable_by_others() {
        note(format_args!("{} is code that this program runs, named by {SHIM}, and {who}", path.display()));
    }
    Ok(Some(shim))
}

/// Which of the shim's devices to use: the first, if `ANE_MATMUL_SHIM_DEVICE` names no other by its number.
fn shim_device() -> Output<u32> {
    match variable(SHIM_DEVICE) {
        None => Ok(0),
        Some(number) => number.to_str().and_then(|number| number.parse().ok()).ok_or_else(|| {
            let number = number.display();
            Failure::new(format_args!("{SHIM_DEVICE} is {number}, which is no number of a device"))
        }),
    }
}
