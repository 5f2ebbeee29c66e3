//! The probe's side: a helper process from its start to its end.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::files::private_dir;
use crate::verify::probe::ProbeVerdict;
use crate::verify::probe::protocol::{FAILED, PASSED, READY, Request, WRONG};

/// The end of standard error that is kept, and the longest line of standard output; the rest is read and
/// dropped.
const KEPT_BYTES: usize = 64 << 10;

/// How much of standard error a verdict holds.
const STDERR_BYTES: usize = 4 << 10;

/// How long streams may stay open after the helper has ended: a process that it started may hold them.
const STREAMS_LIMIT: Duration = Duration::from_secs(2);

/// How often is looked whether the helper has ended.
const POLL: Duration = Duration::from_millis(5);

/// A running helper, killed and waited for when dropped.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where it has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A helper that answers requests, one after the other.
#[derive(Debug)]
pub(super) struct Helper {
    program: PathBuf,
    running: Running,
    /// While it works, its end ends the helper; while it waits, the helper exits. A thread has it while a request is sent.
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Receiver<Vec<u8>>,
    has_answered: bool,
}

fn problem(problem: String) -> Error {
    Error::Probe { problem }
}

/// Reads or writes a stream on a thread, so that neither side waits for the other.
fn on_a_thread(work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name("ane-matmul probe".into())
        .spawn(work)
        .map(drop)
        .map_err(|error| Error::Threads { problem: format!("a thread cannot be started: {error}") })
}

/// The last bytes of a stream, once it ends.
fn end_of_stream(mut stream: impl Read + Send + 'static) -> Result<Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    on_a_thread(move || {
        let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            kept.extend_from_slice(&buffer[..count]);
            if kept.len() > 2 * KEPT_BYTES {
                kept.drain(..kept.len() - KEPT_BYTES);
            }
        }
        // Whoever waited may have given up.
        let _ = sender.send(kept);
    })?;
    Ok(receiver)
}

/// The lines of a stream that could be answers, as they come.
fn answers(stream: impl Read + Send + 'static) -> Result<Receiver<String>> {
    let (sender, receiver) = mpsc::channel();
    on_a_thread(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            match stream.by_ref().take(KEPT_BYTES as u64).read_until(b'\n', &mut line) {
                Ok(1..) => {}
                _ => break,
            }
            let text = String::from_utf8_lossy(&line);
            if text.starts_with(Request::TOKEN) && sender.send(text.trim_end().to_owned()).is_err() {
                break;
            }
        }
    })?;
    Ok(receiver)
}

/// What came of asking.
pub(super) enum Answer {
    /// The verdict, and the helper where it can be asked again.
    Verdict(ProbeVerdict, Option<Helper>),
    /// The helper ended while it waited to be asked again, which is no fault of the product.
    Gone,
}

impl Helper {
    pub(super) fn start(program: &Path, arguments: &[OsString]) -> Result<Self> {
        if let Some(who) = private_dir::writable_by_others(program) {
            log::warn!("{} is a program that a probe starts, and {who}", program.display());
        }
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| {
                problem(format!("{}: cannot be started: {error}; name a helper program", program.display()))
            })?;
        let mut running = Running(child);
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (running.0.stdin.take(), running.0.stdout.take(), running.0.stderr.take())
        else {
            return Err(problem("a helper's streams are missing".into()));
        };
        let (lines, stderr) = (answers(stdout)?, end_of_stream(stderr)?);
        let stdin = Some(stdin);
        Ok(Self { program: program.to_owned(), running, stdin, lines, stderr, has_answered: false })
    }

    /// What becomes of the product within a time limit from `start` on.
    pub(super) fn ask(mut self, request: &Request, start: Instant, time_limit: Duration) -> Result<Answer> {
        let sent = self.send(request.to_bytes()?)?;
        let mut ready = false;
        loop {
            let left = time_limit.saturating_sub(start.elapsed());
            let line = match self.lines.recv_timeout(POLL.min(left)) {
                Ok(line) => line,
                Err(error) => {
                    let ended = self.status()?;
                    if ended.is_some() || error == RecvTimeoutError::Disconnected {
                        // What it said before it ended may still be on its way.
                        match self.lines.recv_timeout(STREAMS_LIMIT.min(left)) {
                            Ok(line) => line,
                            Err(_) => return self.ended(ready, &sent, start, time_limit),
                        }
                    } else if left.is_zero() {
                        return self.late(ready, time_limit);
                    } else {
                        continue;
                    }
                }
            };
            let Some(answer) = line.strip_prefix(request.token.as_str()) else { continue };
            let (word, rest) = answer.trim_start().split_once(' ').unwrap_or((answer.trim_start(), ""));
            let verdict = match word {
                READY => {
                    ready = true;
                    continue;
                }
                PASSED => match rest.parse() {
                    Ok(ns) => ProbeVerdict::Passed { first_run: Duration::from_nanos(ns) },
                    Err(_) => return Err(problem(format!("the helper answered `{answer}`"))),
                },
                WRONG => ProbeVerdict::WrongResult { message: rest.to_owned() },
                FAILED => ProbeVerdict::Failed { message: rest.to_owned() },
                _ => return Err(problem(format!("the helper answered `{answer}`"))),
            };
            self.has_answered = true;
            self.stdin = sent.recv_timeout(STREAMS_LIMIT).ok().and_then(Result::ok);
            return Ok(Answer::Verdict(verdict, Some(self)));
        }
    }

    /// Sends bytes on a thread, since a helper that hangs reads none. Where it ends first, that is an error.
    fn send(&mut self, bytes: Vec<u8>) -> Result<Receiver<Result<ChildStdin, std::io::Error>>> {
        let (sender, receiver) = mpsc::channel();
        let mut stdin =
            self.stdin.take().ok_or_else(|| problem("the helper did not read a request".into()))?;
        on_a_thread(move || {
            let sent = stdin.write_all(&bytes).and_then(|()| stdin.flush()).map(|()| stdin);
            // Whoever waited may have given up.
            let _ = sender.send(sent);
        })?;
        Ok(receiver)
    }

    /// Ends the helper: that it aborts while it exits would end the user's process too, and counts.
    pub(super) fn finish(
        self,
        verdict: ProbeVerdict,
        start: Instant,
        time_limit: Duration,
    ) -> Result<ProbeVerdict> {
        let Self { mut running, stdin, stderr, .. } = self;
        drop(stdin);
        match wait(&mut running.0, start, time_limit)? {
            None => Ok(ProbeVerdict::Hung { time_limit }),
            Some(status) if status.success() => Ok(verdict),
            Some(status) => Ok(crashed(status, &stderr)),
        }
    }

    fn status(&mut self) -> Result<Option<ExitStatus>> {
        self.running.0.try_wait().map_err(|error| cannot_wait(&error))
    }

    /// It ended, or closed its standard output, without a verdict.
    fn ended(
        mut self,
        ready: bool,
        sent: &Receiver<Result<ChildStdin, std::io::Error>>,
        start: Instant,
        time_limit: Duration,
    ) -> Result<Answer> {
        let Some(status) = wait(&mut self.running.0, start, time_limit)? else {
            return self.late(ready, time_limit);
        };
        if !ready && self.has_answered {
            return Ok(Answer::Gone);
        }
        if !ready && signal(status).is_none() {
            let not_sent = match sent.recv_timeout(STREAMS_LIMIT) {
                Ok(Err(error)) => format!(" ({error})"),
                _ => String::new(),
            };
            return Err(problem(format!(
                "{} is no helper: it ended with {status} without an answer{not_sent}; a shim that it loads ended it while its device was opened, or its main does not call ane_matmul::probe::serve: {}",
                self.program.display(),
                end_of(&last(&self.stderr), 200)
            )));
        }
        Ok(Answer::Verdict(crashed(status, &self.stderr), None))
    }

    /// The time limit passed.
    fn late(self, ready: bool, time_limit: Duration) -> Result<Answer> {
        if ready {
            return Ok(Answer::Verdict(ProbeVerdict::Hung { time_limit }, None));
        }
        Err(problem(format!(
            "{} did not get ready within {time_limit:?}: a shim that it loads hangs while its device is opened, or its main does not call ane_matmul::probe::serve",
            self.program.display()
        )))
    }
}

fn last(stream: &Receiver<Vec<u8>>) -> String {
    let bytes = stream.recv_timeout(STREAMS_LIMIT).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn crashed(status: ExitStatus, stderr: &Receiver<Vec<u8>>) -> ProbeVerdict {
    ProbeVerdict::Crashed {
        signal: signal(status),
        status: status.code(),
        stderr: end_of(&last(stderr), STDERR_BYTES).to_owned(),
    }
}

fn cannot_wait(error: &std::io::Error) -> Error {
    problem(format!("the helper cannot be waited for: {error}"))
}

/// The status of the helper; `None` where the time limit passed first.
fn wait(child: &mut Child, start: Instant, time_limit: Duration) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait().map_err(|error| cannot_wait(&error))? {
            return Ok(Some(status));
        }
        let left = time_limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        std::thread::sleep(POLL.min(left));
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
        let kept = end_of_stream(std::io::Cursor::new(bytes.clone())).unwrap().recv().unwrap();
        assert!((KEPT_BYTES..=2 * KEPT_BYTES).contains(&kept.len()) && bytes.ends_with(&kept));
        let whole = bytes[..KEPT_BYTES].to_vec();
        assert_eq!(end_of_stream(std::io::Cursor::new(whole.clone())).unwrap().recv().unwrap(), whole);
    }

    #[test]
    fn answers_are_the_lines_with_a_token_however_long_the_others_are() {
        let long = "x".repeat(3 * KEPT_BYTES);
        let token = Request::TOKEN;
        let text = format!("noise\n{long}\n{token}1 ready\n{token}2 passed 5\r\nmore {token}\n{token}3 cut");
        let lines: Vec<String> = answers(std::io::Cursor::new(text)).unwrap().iter().collect();
        assert_eq!(lines, ["1 ready", "2 passed 5", "3 cut"].map(|rest| format!("{token}{rest}")));
    }
}
