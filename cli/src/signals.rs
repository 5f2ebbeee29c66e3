//! An end by a signal, which leaves no half file.

use std::path::PathBuf;

use ane_matmul::Profile;

use crate::args::Command;
use crate::output::is_standard;

/// The files that a command writes.
fn outputs(command: &Command) -> Vec<PathBuf> {
    match command {
        Command::Multiply(args) if is_standard(&args.output) => Vec::new(),
        Command::Multiply(args) => vec![args.output.clone()],
        Command::Quantize(args) => vec![args.output.clone()],
        Command::Compare(args) => {
            [&args.json, &args.svg, &args.report].into_iter().flatten().cloned().collect()
        }
        Command::Calibrate(args) => {
            args.profile.clone().or_else(|| Profile::default_path().ok()).into_iter().collect()
        }
        Command::Probe(args) => args.quarantine.clone().into_iter().collect(),
        Command::Conformance(_)
        | Command::ConformanceHelper(_)
        | Command::Devices(_)
        | Command::Explain(_)
        | Command::ProbeHelper
        | Command::Verify(_)
        | Command::Completions { .. } => Vec::new(),
    }
}

/// The signals that end a program from outside or by a limit, and can be caught. Rust has SIGPIPE ignored.
#[cfg(unix)]
const ENDING: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGALRM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];

/// Has [`ENDING`] signals remove what `command` has half written before they end the process. Where there is no
/// thread to wait for them, they end it all the same.
#[cfg(unix)]
pub(crate) fn clean_up(command: &Command) {
    use signal_hook::iterator::Signals;
    use signal_hook::low_level::emulate_default_handler;

    use crate::whole_file;

    let paths = outputs(command);
    if paths.is_empty() {
        return;
    }
    let (sender, receiver) = std::sync::mpsc::channel::<Signals>();
    let wait = move || {
        let Ok(mut signals) = receiver.recv() else {
            return;
        };

        for signal in signals.forever() {
            for path in &paths {
                // There is nobody left to tell.
                let _ = whole_file::remove_unfinished(path);
            }
            let _ = emulate_default_handler(signal);
        }
    };
    if std::thread::Builder::new().name("signals".into()).spawn(wait).is_err() {
        return;
    }
    // Only now: a signal that is caught and that nobody waits for would end nothing.
    if let Ok(signals) = Signals::new(ENDING.into_iter().filter(|&signal| !is_ignored(signal))) {
        let _ = sender.send(signals);
    }
}

/// Whether whoever started this program has it ignore a signal, as `nohup` does.
#[cfg(unix)]
#[allow(unsafe_code, reason = "sigaction is a C function")]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: all-zero bytes are a valid sigaction: integers and a null pointer.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is set, and `now` is valid for the call.
    let status = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut now) };
    status == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// Elsewhere there are no such signals.
#[cfg(not(unix))]
pub(crate) fn clean_up(command: &Command) {
    let _ = outputs(command);
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn what_a_command_writes_is_known() {
        let written = |arguments: &str| {
            let cli = Cli::parse_from(arguments.split(' '));
            outputs(&cli.command)
        };
        assert_eq!(written("ane-matmul multiply a.npy b.npy --output c.npy"), [PathBuf::from("c.npy")]);
        assert_eq!(written("ane-matmul calibrate --profile p.json"), [PathBuf::from("p.json")]);
        let compare = written("ane-matmul compare --json a.json --svg b.svg");
        assert_eq!(compare, ["a.json", "b.svg"].map(PathBuf::from));
        assert!(written("ane-matmul devices").is_empty());
        assert!(written("ane-matmul multiply a.npy b.npy --output -").is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn ignored_signals_are_told_from_others() {
        // Rust has every program ignore SIGPIPE.
        assert!(is_ignored(libc::SIGPIPE));
        assert!(!is_ignored(libc::SIGTERM));
        assert!(!is_ignored(-1));
    }
}
