//! Standard output, which is ours alone, and standard input.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use indicatif::ProgressBar;

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

/// Whether a path stands for standard input or standard output.
pub(crate) fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// What standard input and standard output are called in errors.
pub(crate) const STDIN: &str = "standard input";
pub(crate) const STDOUT: &str = "standard output";

/// Standard input, unless it is a terminal, which would never end it.
pub(crate) fn stdin() -> Output<io::Stdin> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Failure::new("standard input is a terminal; redirect it, or name a file instead of `-`"));
    }
    Ok(stdin)
}

/// Hands standard output to `write`.
pub(crate) fn with_stdout<T>(write: impl FnOnce(&mut dyn Write) -> T) -> T {
    match OURS.get() {
        Some(mut ours) => write(&mut ours),
        None => write(&mut io::stdout().lock()),
    }
}

/// An error where standard output is a terminal, on which bytes that are no text do harm.
pub(crate) fn refuse_terminal() -> Output {
    if OURS.get().map_or_else(|| io::stdout().is_terminal(), |ours| ours.is_terminal()) {
        return Err(Failure::new("standard output is a terminal; redirect it, or name a file with --output"));
    }
    Ok(())
}

/// Writes to standard output. A reader who has seen enough decides nothing of what the command does.
pub(crate) fn print_bytes(bytes: &[u8]) -> Output {
    match with_stdout(|out| out.write_all(bytes).and_then(|()| out.flush())) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("{STDOUT}: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a text, ended by a newline, to standard output, each line [`escaped`].
pub(crate) fn print(text: impl Display) -> Output {
    let lines: String = text.to_string().lines().map(|line| escaped(line) + "\n").collect();
    print_bytes(lines.as_bytes())
}

/// Writes JSON, which escapes by its own rules, to standard output.
pub(crate) fn print_json(value: &serde_json::Value) -> Output {
    print_bytes(format!("{value:#}\n").as_bytes())
}

/// Writes a line to standard error, with what could steer a terminal or forge a line escaped: names come from files.
///
/// What cannot be told there decides nothing.
pub(crate) fn tell(text: impl Display) {
    let _ = writeln!(io::stderr(), "{}", escaped(&text.to_string()));
}

/// [`tell`]s what a user should know of what was done.
pub(crate) fn note(text: impl Display) {
    tell(format_args!("note: {text}"));
}

/// Without control characters.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmless(c) { escaped.push(c) } else { escaped.extend(c.escape_default()) }
    }
    escaped
}

/// Not a control character, nor one that reorders what stands around it (Unicode Standard Annex 9, explicit
/// directional formatting).
fn is_harmless(c: char) -> bool {
    !(c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
}

/// How often a line tells of long work where no bar is seen.
const INTERVAL: Duration = Duration::from_secs(10);

/// Has a bar show that time passes, and where standard error is no terminal a line now and then; where a thread
/// can be started for that.
pub(crate) fn keep_ticking(progress: &ProgressBar) {
    if !progress.is_hidden() {
        let one = std::thread::Builder::new().spawn(|| {});
        if one.is_ok_and(|thread| thread.join().is_ok()) {
            progress.enable_steady_tick(Duration::from_millis(200));
        }
        return;
    }
    let progress = progress.downgrade();
    let _ = std::thread::Builder::new().spawn(move || {
        loop {
            std::thread::sleep(INTERVAL);
            match progress.upgrade() {
                Some(progress) if !progress.is_finished() => tell(line(&progress)),
                _ => return,
            }
        }
    });
}

/// What a bar would show.
fn line(progress: &ProgressBar) -> String {
    let of =
        progress.length().map(|length| format!("{} of {length}, ", progress.position())).unwrap_or_default();
    format!("{} [{of}{:.0} s]", progress.message(), progress.elapsed().as_secs_f64())
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
    fn a_line_has_what_a_bar_would_show() {
        let bar = ProgressBar::hidden();
        bar.set_message("looking");
        assert_eq!(line(&bar), "looking [0 s]");
        let bar = ProgressBar::with_draw_target(Some(7), indicatif::ProgressDrawTarget::hidden());
        bar.set_message("8x8x8");
        bar.inc(3);
        assert_eq!(line(&bar), "8x8x8 [3 of 7, 0 s]");
    }

    #[test]
    fn times_have_the_unit_that_suits_them() {
        let times = [999.0, 1e3, 999_900.0, 1e6, 1e9, 2.5e9].map(time);
        assert_eq!(times, ["999 ns", "1.0 us", "999.9 us", "1.00 ms", "1.00 s", "2.50 s"]);
    }

    #[test]
    fn control_characters_are_escaped() {
        let text = "w\u{1b}[2J\nnote: all is well\r\u{9b}31m\u{202e}x";
        assert_eq!(escaped(text), r"w\u{1b}[2J\nnote: all is well\r\u{9b}31m\u{202e}x");
        assert_eq!(escaped("w\u{e9}ight.0"), "w\u{e9}ight.0");
    }
}
