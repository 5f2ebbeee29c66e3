//! Standard output, which is ours alone.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::sync::OnceLock;

use crate::failure::{Failure, Output};

/// What standard output was when the program started.
static OURS: OnceLock<File> = OnceLock::new();

/// Sends what anyone else in this process prints to standard error: Apple's frameworks print while
/// they compile for the Neural Engine, and tables and JSON of ours must stay clean.
#[cfg(unix)]
pub(crate) fn keep_to_ourselves() {
    use std::os::fd::AsFd as _;
    // Where it is closed there is nothing to keep.
    if let Ok(ours) = io::stdout().as_fd().try_clone_to_owned()
        && rustix::stdio::dup2_stdout(io::stderr()).is_ok()
    {
        // The only call of this function.
        let _ = OURS.set(File::from(ours));
    }
}

/// Elsewhere no framework is known to print.
#[cfg(not(unix))]
pub(crate) fn keep_to_ourselves() {}

/// Writes to standard output.
pub(crate) fn print_bytes(bytes: &[u8]) -> Output {
    fn write(mut out: impl Write, bytes: &[u8]) -> io::Result<()> {
        out.write_all(bytes)?;
        out.flush()
    }
    let result = match OURS.get() {
        Some(ours) => write(ours, bytes),
        None => write(io::stdout().lock(), bytes),
    };
    result.map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Failure::BrokenPipe
        } else {
            Failure::new(format!("standard output: {error}"))
        }
    })
}

/// Writes a text, ended by a newline, to standard output.
pub(crate) fn print(text: impl Display) -> Output {
    print_bytes(format!("{text}\n").as_bytes())
}

/// A time with a unit that suits it.
pub(crate) fn time(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.1} us", ns / 1e3),
        ns if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_unit_that_suits_them() {
        let times = [999.0, 1e3, 999_900.0, 1e6, 1e9, 2.5e9].map(time);
        assert_eq!(times, ["999 ns", "1.0 us", "999.9 us", "1.00 ms", "1.00 s", "2.50 s"]);
    }
}
