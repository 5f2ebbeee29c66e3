//! The process that runs the cases, from both sides. It is asked for one case at a time, so that whoever asks knows which
//! one ended it.

use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use ane_matmul::CompileOptions;
use ane_matmul_conformance::{Case, Failure as CaseFailure, List, Passed, Suite};
use serde_json::{Value, json};

use crate::args::{CONFORMANCE_HELPER, RunArgs, backend_id};
use crate::failure::{Failure, Output};
use crate::output::print_bytes;

/// What came of a case.
#[derive(Debug)]
pub(super) enum Answer {
    Passed { worst_ratio: f64 },
    Refused { reason: String, message: String },
    Failed(String),
    Ended(Ended),
}

/// How the process ended that was asked.
#[derive(Debug)]
pub(super) enum Ended {
    Crashed(ExitStatus),
    /// It was killed.
    Late,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crashed(status) => write!(f, "the process ended: {status}"),
            Self::Late => f.write_str("the process was killed, it took longer than --time-limit"),
        }
    }
}

/// A process that runs cases, killed when dropped.
pub(super) struct Helper {
    child: Child,
    /// Its end is the process's.
    stdin: Option<ChildStdin>,
    answers: Receiver<String>,
    time_limit: Duration,
    backend: Value,
}

impl Helper {
    /// Starts one that has opened its backend.
    pub(super) fn start(run: &RunArgs, time_limit: Duration) -> Output<Self> {
        let cannot = |error| Failure::new(format!("the process of the cases cannot be started: {error}"));
        let mut child = Command::new(std::env::current_exe().map_err(cannot)?)
            .arg(CONFORMANCE_HELPER)
            .args(run.to_arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(cannot)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (sender, answers) = mpsc::channel();
        let mut helper = Self { child, stdin, answers, time_limit, backend: Value::Null };
        std::thread::Builder::new()
            .spawn(move || {
                let lines = stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines());
                // Whoever waited may have given up.
                let _ = lines.map_while(Result::ok).try_for_each(|line| sender.send(line));
            })
            .map_err(cannot)?;
        let id = backend_id(&run.backend);
        let opened = helper.answer().map_err(|ended| {
            Failure::new(format!(
                "{id}: {ended}, before it was open; `ane-matmul devices` opens it in one process"
            ))
        })?;
        if let Some(error) = opened["error"].as_str() {
            return Err(Failure::new(error));
        }
        helper.backend = opened;
        Ok(helper)
    }

    /// What `devices --json` says of the backend.
    pub(super) fn backend(&self) -> Value {
        self.backend.clone()
    }

    /// What comes of a case, and the process where it can be asked again.
    pub(super) fn ask(mut self, list: List, number: usize) -> (Answer, Option<Self>) {
        // Where nobody reads this, no answer comes.
        if let Some(stdin) = &mut self.stdin {
            let _ = writeln!(stdin, "{list} {number}");
        }
        match self.answer() {
            Ok(value) => (Answer::from_json(&value), Some(self)),
            Err(ended) => (Answer::Ended(ended), None),
        }
    }

    fn answer(&mut self) -> Result<Value, Ended> {
        match self.answers.recv_timeout(self.time_limit) {
            // What is no answer comes to be one that failed.
            Ok(line) => Ok(serde_json::from_str(&line).unwrap_or(Value::String(line))),
            Err(RecvTimeoutError::Disconnected) => Err(self.wait()),
            Err(RecvTimeoutError::Timeout) => Err(Ended::Late),
        }
    }

    /// Lets it end.
    pub(super) fn finish(mut self) -> Result<(), Ended> {
        drop(self.stdin.take());
        match self.wait() {
            Ended::Crashed(status) if status.success() => Ok(()),
            ended => Err(ended),
        }
    }

    fn wait(&mut self) -> Ended {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ended::Crashed(status),
                Ok(None) if start.elapsed() < self.time_limit => std::thread::sleep(Duration::from_millis(5)),
                _ => return Ended::Late,
            }
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Both fail only where it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Answer {
    fn to_json(result: &Result<Passed, CaseFailure>) -> Value {
        match result {
            Ok(passed) => json!({ "passed": passed.worst_ratio }),
            Err(CaseFailure::Refused(reason, message)) => {
                json!({ "refused": reason.to_string(), "message": message })
            }
            Err(CaseFailure::Wrong(message)) => json!({ "failed": message }),
        }
    }

    fn from_json(value: &Value) -> Self {
        let text = |key: &str| value[key].as_str().map(ToOwned::to_owned);
        if let Some(worst_ratio) = value["passed"].as_f64() {
            return Self::Passed { worst_ratio };
        }
        match (text("refused"), text("message"), text("failed")) {
            (Some(reason), Some(message), _) => Self::Refused { reason, message },
            (_, _, Some(message)) => Self::Failed(message),
            _ => Self::Failed(format!("the process answered {value}")),
        }
    }
}

/// The process's side: runs the cases that standard input names, and answers each with a line.
pub(crate) fn serve(args: &RunArgs) -> Output {
    let id = backend_id(&args.backend);
    let opened = crate::backends().and_then(|backends| {
        let backend = crate::devices::info_json(&id, &backends.info(&id)?);
        Ok((backends, backend))
    });
    let (backends, backend) = match opened {
        Ok(opened) => opened,
        Err(Failure(error)) => return answer(&json!({ "error": error })),
    };
    answer(&backend)?;
    let (options, mut known): (CompileOptions, Vec<(List, Vec<Case>)>) = (args.options(), Vec::new());
    for line in requests() {
        let request = line.split_once(' ').and_then(|(list, number)| {
            Some((list.parse::<List>().ok()?, number.parse::<usize>().ok()?.checked_sub(1)?))
        });
        let Some((list, index)) = request else { break };
        if known.iter().all(|(other, _)| *other != list) {
            known.push((list, list.cases()));
        }
        let case = known.iter().find(|(other, _)| *other == list).and_then(|(_, cases)| cases.get(index));
        let Some(case) = case else { break };
        let suite = Suite::new(&backends, &id, &options).way(list.way());
        answer(&Answer::to_json(&suite.run(case, seed(args.seed, index + 1))))?;
    }
    Ok(())
}

/// What the numbers of a case are drawn with: its own, where no seed was asked for.
const fn seed(seed: u64, number: usize) -> u64 {
    // The golden ratio's fraction: the cases of one seed are not those of another.
    (number as u64).wrapping_add(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn answer(value: &Value) -> Output {
    print_bytes(format!("{value}\n").as_bytes())
}

/// The lines of standard input. Whoever asks may go away: what hangs then has nobody else to end it.
fn requests() -> Receiver<String> {
    const EXIT_LIMIT: Duration = Duration::from_secs(60);
    let (sender, receiver) = mpsc::channel();
    // Without the thread there are no requests.
    let _ = std::thread::Builder::new().spawn(move || {
        let lines = std::io::stdin().lines().map_while(Result::ok);
        let _ = lines.map(|line| sender.send(line)).take_while(Result::is_ok).count();
        drop(sender);
        std::thread::sleep(EXIT_LIMIT);
        std::process::abort();
    });
    receiver
}
