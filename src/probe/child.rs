//! The probe's side: a helper process from its start to its end.

use std::ffi::OsString;
use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::private_dir;
use crate::probe::ProbeVerdict;
use crate::probe::protocol::{FAILED, PASSED, READY, Request, WRONG};

/// The end of each stream that is kept; the rest is read and dropped.
const KEPT_BYTES: usize = 64 << 10;

/// How much of standard error a verdict holds.
const STDERR_BYTES: usize = 4 << 10;

/// How long streams may stay open after the helper has ended: a process that it started may hold them.
const STREAMS_LIMIT: Duration = Duration::from_secs(2);

/// A running helper, killed and waited for when dropped.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        // Both fail only where it has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads a stream to its end on a thread, so that the helper never waits for a reader; gives its last
/// bytes.
fn drain(mut stream: impl Read + Send + 'static) -> Result<Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .name("ane-matmul probe".into())
        .spawn(move || {
            let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                kept.extend_from_slice(&buffer[..count]);
                if kept.len() > 2 * KEPT_BYTES {
                    kept.drain(..kept.len() - KEPT_BYTES);
                }
            }
            // Whoever waited may have given up.
            let _ = sender.send(kept);
        })
        .map_err(|error| Error::Threads { problem: format!("a thread cannot be started: {error}") })?;
    Ok(receiver)
}

pub(super) fn run(
    program: &Path,
    arguments: &[OsString],
    time_limit: Duration,
    request: &Request,
) -> Result<ProbeVerdict> {
    let problem = |problem: String| Error::Probe { problem };
    if let Some(who) = private_dir::writable_by_others(program) {
        log::warn!("{} is a program that a probe starts, and {who}", program.display());
    }
    let start = Instant::now();
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            problem(format!("{}: cannot be started: {error}; name a helper program", program.display()))
        })?;
    let mut helper = Helper(child);
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (helper.0.stdin.take(), helper.0.stdout.take(), helper.0.stderr.take())
    else {
        return Err(problem("a helper's streams are missing".into()));
    };
    let (stdout, stderr) = (drain(stdout)?, drain(stderr)?);
    // A request fits a pipe. It fails where the helper ends without reading, which shows below; and stdin
    // stays open until the helper has ended, which ends by it otherwise.
    let sent = stdin.write_all(request.to_text().as_bytes()).and_then(|()| stdin.flush());
    let status = wait(&mut helper.0, start, time_limit)
        .map_err(|error| problem(format!("the helper cannot be waited for: {error}")))?;
    drop(helper);
    drop(stdin);
    let text = |stream: &Receiver<Vec<u8>>| {
        let bytes = stream.recv_timeout(STREAMS_LIMIT).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (text(&stdout), text(&stderr));
    let answers: Vec<&str> = stdout
        .lines()
        .filter_map(|line| line.strip_prefix(request.token.as_str())?.strip_prefix(' '))
        .collect();
    let last = answers.last().copied().unwrap_or_default();
    let (word, rest) = last.split_once(' ').unwrap_or((last, ""));
    let Some(ended) = status else {
        if answers.is_empty() {
            return Err(problem(format!(
                "{} did not get ready within {time_limit:?}; its main must call ane_matmul::probe::serve",
                program.display()
            )));
        }
        return Ok(ProbeVerdict::Hung { time_limit });
    };
    if answers.is_empty() && signal(ended).is_none() {
        let sent = sent.err().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(problem(format!(
            "{} is no helper: it ended with {ended} without an answer{sent}; its main must call ane_matmul::probe::serve: {}",
            program.display(),
            end_of(&stderr, 200)
        )));
    }
    // An abort while the process exits counts: it would end the user's process too.
    if !ended.success() || word == READY || word.is_empty() {
        return Ok(ProbeVerdict::Crashed {
            signal: signal(ended),
            status: ended.code(),
            stderr: end_of(&stderr, STDERR_BYTES).to_owned(),
        });
    }
    match word {
        PASSED => match rest.parse() {
            Ok(ns) => Ok(ProbeVerdict::Passed { first_run: Duration::from_nanos(ns) }),
            Err(_) => Err(problem(format!("the helper answered `{last}`"))),
        },
        WRONG => Ok(ProbeVerdict::WrongResult { message: rest.to_owned() }),
        FAILED => Ok(ProbeVerdict::Failed { message: rest.to_owned() }),
        _ => Err(problem(format!("the helper answered `{last}`"))),
    }
}

/// The status of the helper; `None` where the time limit passed first.
fn wait(child: &mut Child, start: Instant, time_limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = time_limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(unix)]
fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[cfg(not(unix))]
fn signal(_: ExitStatus) -> Option<i32> {
    None
}

/// The last bytes of a text, from the start of a character on.
fn end_of(text: &str, bytes: usize) -> &str {
    let text = text.trim();
    let mut start = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text_starts_with_a_whole_character() {
        assert_eq!(end_of("  short \n", 100), "short");
        assert_eq!(end_of("abcdef", 3), "def");
        // Two bytes each: the third from the end is the second half of one.
        assert_eq!(end_of("\u{e4}\u{f6}\u{fc}", 3), "\u{fc}");
        assert_eq!(end_of("", 3), "");
    }

    #[test]
    fn the_last_bytes_of_a_long_stream_are_kept() {
        let bytes: Vec<u8> = (0..=250).cycle().take(3 * KEPT_BYTES + 1000).collect();
        let kept = drain(std::io::Cursor::new(bytes.clone())).unwrap().recv().unwrap();
        assert!((KEPT_BYTES..=2 * KEPT_BYTES).contains(&kept.len()) && bytes.ends_with(&kept));
        let whole = bytes[..KEPT_BYTES].to_vec();
        assert_eq!(drain(std::io::Cursor::new(whole.clone())).unwrap().recv().unwrap(), whole);
    }
}
