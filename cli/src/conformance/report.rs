//! What `conformance` says.

use std::fmt::Write as _;
use std::time::Duration;

use ane_matmul_conformance::{Case, List};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::args::ConformanceArgs;
use crate::conformance::command;
use crate::conformance::helper::Answer;
use crate::machine::Machine;
use crate::output::time;

/// The failures of a list that are shown as text.
const SHOWN: usize = 20;

/// What came of a list.
#[derive(Debug)]
pub(super) struct Tally {
    list: List,
    cases: usize,
    passed: usize,
    not_run: Option<NotRun>,
    refused: Vec<Refused>,
    failures: Vec<Failed>,
    worst_ratio: f64,
    pub(super) time: Duration,
}

/// Cases that were refused for the same reason.
#[derive(Debug)]
struct Refused {
    reason: String,
    count: usize,
    /// The first of them.
    number: usize,
    message: String,
}

/// Cases at the end of a list.
#[derive(Debug)]
struct NotRun {
    count: usize,
    /// The first of them.
    number: usize,
    why: &'static str,
}

/// A case that failed.
#[derive(Debug)]
struct Failed {
    number: usize,
    case: String,
    problem: String,
}

impl Tally {
    pub(super) fn new(list: List, cases: usize) -> Self {
        Self {
            list,
            cases,
            passed: 0,
            not_run: None,
            refused: Vec::new(),
            failures: Vec::new(),
            worst_ratio: 0.0,
            time: Duration::ZERO,
        }
    }

    pub(super) fn add(&mut self, number: usize, case: &Case, answer: Answer) {
        let problem = match answer {
            Answer::Passed { worst_ratio } => {
                self.passed += 1;
                self.worst_ratio = self.worst_ratio.max(worst_ratio);
                return;
            }
            Answer::Refused { reason, message } => {
                match self.refused.iter_mut().find(|refused| refused.reason == reason) {
                    Some(refused) => refused.count += 1,
                    None => self.refused.push(Refused { reason, count: 1, number, message }),
                }
                return;
            }
            Answer::Failed(problem) => problem,
            Answer::Ended(ended) => ended.to_string(),
        };
        self.failures.push(Failed { number, case: case.to_string(), problem });
    }

    /// Counts a case that is not run.
    pub(super) fn leave_out(&mut self, number: usize, why: &'static str) {
        self.not_run.get_or_insert(NotRun { count: 0, number, why }).count += 1;
    }

    fn not_run(&self) -> usize {
        self.not_run.as_ref().map_or(0, |left| left.count)
    }

    fn refused(&self) -> usize {
        self.refused.iter().map(|refused| refused.count).sum()
    }

    fn row(&self) -> [String; 8] {
        let ran = self.passed > 0;
        [
            self.list.to_string(),
            self.cases.to_string(),
            self.passed.to_string(),
            self.refused().to_string(),
            self.failures.len().to_string(),
            self.not_run().to_string(),
            if ran { format!("{:.2}", self.worst_ratio) } else { "-".into() },
            #[allow(clippy::cast_precision_loss, reason = "a time to be read")]
            time(self.time.as_nanos() as f64),
        ]
    }

    fn refusals_text(&self) -> String {
        let mut text = String::new();
        for Refused { reason, count, number, message } in &self.refused {
            let of = match (*count, self.cases) {
                (count, cases) if count == cases => "every case".to_owned(),
                (1, _) => format!("case {number}"),
                _ => format!("{count} cases, the first is {number}"),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}: refused: {of}: {message} ({reason})", self.list);
        }
        text
    }

    fn failures_text(&self, args: &ConformanceArgs) -> String {
        let mut text = String::new();
        for Failed { number, case, problem } in self.failures.iter().take(SHOWN) {
            let _ = writeln!(text, "{}: case {number} failed: {case}: {problem}", self.list);
            let _ = writeln!(text, "    {}", command(self.list, &number.to_string(), args));
        }
        if let Some(more @ 1..) = self.failures.len().checked_sub(SHOWN) {
            let _ = writeln!(text, "{}: {more} more failed; --json has them", self.list);
        }
        if let Some(NotRun { count, number, why }) = &self.not_run {
            let _ = writeln!(text, "{}: not run: the last {count} cases: {why}; go on with", self.list);
            let _ = writeln!(text, "    {}", command(self.list, &format!("{number}.."), args));
        }
        text
    }

    fn to_json(&self, args: &ConformanceArgs) -> Value {
        let refusals: Vec<Value> = self
            .refused
            .iter()
            .map(|refused| {
                json!({
                    "reason": refused.reason,
                    "cases": refused.count,
                    "first_case": refused.number,
                    "message": refused.message,
                })
            })
            .collect();
        let failures: Vec<Value> = self
            .failures
            .iter()
            .map(|failed| {
                json!({
                    "case": failed.number,
                    "product": failed.case,
                    "problem": failed.problem,
                    "command": command(self.list, &failed.number.to_string(), args),
                })
            })
            .collect();
        let go_on_with =
            self.not_run.as_ref().map(|left| command(self.list, &format!("{}..", left.number), args));
        json!({
            "list": self.list.name(),
            "cases": self.cases,
            "passed": self.passed,
            "refused": self.refused(),
            "failed": self.failures.len(),
            "not_run": self.not_run(),
            "not_run_because": self.not_run.as_ref().map(|left| left.why),
            "go_on_with": go_on_with,
            "worst_error_to_bound": (self.passed > 0).then_some(self.worst_ratio),
            "time_ns": u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX),
            "refusals": refusals,
            "failures": failures,
        })
    }
}

/// Everything that was found.
pub(super) struct Report<'a> {
    args: &'a ConformanceArgs,
    /// As `devices --json` has it.
    backend: Value,
    pub(super) tallies: Vec<Tally>,
    /// What went wrong between cases: the backend could not be opened again, or closed.
    pub(super) problem: Option<String>,
}

impl<'a> Report<'a> {
    pub(super) const fn new(backend: Value, args: &'a ConformanceArgs) -> Self {
        Self { args, backend, tallies: Vec::new(), problem: None }
    }

    fn id(&self) -> &str {
        self.backend["backend"].as_str().unwrap_or_default()
    }

    fn count(&self, of: impl Fn(&Tally) -> usize) -> usize {
        self.tallies.iter().map(of).sum()
    }

    /// What a list shows less of than its name says.
    fn note(&self, tally: &Tally) -> Option<&'static str> {
        let fact = |key: &str, value: Value| tally.passed > 0 && self.backend[key] == value;
        match tally.list {
            List::Asynchronous if fact("max_queue_depth", json!(0)) => {
                Some("it takes no submissions (max_queue_depth is 0): each was computed by a run, at once")
            }
            List::Resident if fact("copies_host_operands", json!(false)) => {
                Some("its memory is the host's: operands on the device are no other than those on the host")
            }
            _ => None,
        }
    }

    pub(super) fn to_text(&self) -> String {
        let fact = |key: &str| self.backend[key].as_str().unwrap_or_default();
        let double = if self.backend["test_double"] == true { " (a test double, not hardware)" } else { "" };
        let mut text = format!(
            "{}: {}; on {}, {}{double}\n\n",
            self.id(),
            fact("description"),
            fact("device"),
            fact("device_name")
        );
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "list",
            "cases",
            "passed",
            "refused",
            "failed",
            "not run",
            "error / bound",
            "time",
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.add_rows(self.tallies.iter().map(Tally::row));
        let _ = writeln!(text, "{table}\n");
        text.extend(self.tallies.iter().map(Tally::refusals_text));
        for tally in &self.tallies {
            if let Some(note) = self.note(tally) {
                let _ = writeln!(text, "{}: note: {note}", tally.list);
            }
        }
        text.extend(self.tallies.iter().map(|tally| tally.failures_text(self.args)));
        if let Some(problem) = &self.problem {
            let _ = writeln!(text, "{problem}");
        }
        text.trim_end().to_owned()
    }

    pub(super) fn to_json(&self) -> Value {
        let list = |tally: &Tally| {
            let mut value = tally.to_json(self.args);
            value["note"] = json!(self.note(tally));
            value
        };
        let lists: Vec<Value> = self.tallies.iter().map(list).collect();
        let mut value = json!({
            "machine": Machine::new().to_json(),
            "seed": self.args.run.seed,
            "lists": lists,
            "problem": self.problem,
        });
        for key in ["backend", "description", "device", "device_name", "test_double"] {
            value[key] = self.backend[key].clone();
        }
        value
    }

    /// # Errors
    /// What keeps the backend from conforming.
    pub(super) fn verdict(&self, required: &[List]) -> Result<(), String> {
        let id = self.id();
        let (failed, cases) = (self.count(|tally| tally.failures.len()), self.count(|tally| tally.cases));
        if failed > 0 {
            return Err(format!("{failed} of {cases} cases failed on {id}"));
        }
        if let Some(problem) = &self.problem {
            return Err(format!("{id}, {problem}"));
        }
        let refused = |tally: &&Tally| required.contains(&tally.list) && tally.refused() > 0;
        if let Some(tally) = self.tallies.iter().find(refused) {
            return Err(format!(
                "{id} refuses {} of {} cases of {}, which is required",
                tally.refused(),
                tally.cases,
                tally.list
            ));
        }
        if self.count(|tally| tally.passed) == 0 {
            return Err(format!("{id} refuses every case, so that nothing was shown"));
        }
        Ok(())
    }
}
