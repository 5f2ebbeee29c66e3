//! Candidates in processes of their own, which take their samples when they are told to. Each has its operands, and
//! loads its own library alone.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use clap::ValueEnum as _;
use serde_json::{Value, json};

use crate::candidates::{Candidate, Candidates};
use crate::machine::Machine;
use crate::measure::{Contestant, NotRun, Sample, operands};
use crate::operands::Operands;
use crate::peaks::ReadB;
use crate::reference::Reference;
use crate::shapes::{Case, Precision};

/// A process that runs one candidate.
pub(crate) struct Child {
    candidate: String,
    process: std::process::Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Child {
    /// # Errors
    /// Says why it could not be started.
    pub(crate) fn start(candidate: &str, threads: usize) -> Result<Self, String> {
        let executable = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(executable);
        command.args(["--apart", candidate, "--threads", &threads.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(|error| error.to_string())?;
        let (Some(questions), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("no pipes".to_owned());
        };
        Ok(Self { candidate: candidate.to_owned(), process, questions, answers: BufReader::new(answers) })
    }

    fn ask(&mut self, question: &Value) -> Result<Value, String> {
        let mut answer = String::new();
        let asked = writeln!(self.questions, "{question}").and_then(|()| self.answers.read_line(&mut answer));
        let answered = asked.map_err(|error| error.to_string());
        answered
            .and_then(|_| serde_json::from_str(&answer).map_err(|error| error.to_string()))
            .map_err(|error| format!("the process of {}: {error}", self.candidate))
    }

    /// Makes the candidate ready for a case; its error, if it was to `check` the numbers.
    ///
    /// # Errors
    /// Says why the candidate does not run the case.
    pub(crate) fn prepare(
        &mut self,
        case: &Case,
        check: bool,
        sample: Duration,
    ) -> Result<Option<f64>, NotRun> {
        let question = json!({
            "precision": case.precision.name(),
            "shape": case.shape.to_string(),
            "threads": case.threads,
            "cold": case.cold,
            "check": check,
            "sample_ns": sample.as_nanos() as f64,
        });
        let answer = self.ask(&question).unwrap_or_else(|reason| json!({"not_run": reason}));
        match answer["not_run"].as_str() {
            Some(reason) => Err(NotRun {
                candidate: self.candidate.clone(),
                reason: reason.to_owned(),
                wrong: answer["wrong"] == true,
            }),
            None => Ok(answer["max_rel_error"].as_f64()),
        }
    }

    /// # Errors
    /// Says why the process gave none.
    pub(crate) fn sample(&mut self) -> Result<Sample, String> {
        let answer = self.ask(&json!("sample"))?;
        let call_ns = answer["call_ns"].as_f64().ok_or_else(|| format!("{}: {answer}", self.candidate))?;
        Ok(Sample { call_ns, disturbed: answer["disturbed"] == true })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The other end: answers until no question comes.
///
/// # Errors
/// Says what is wrong with a question.
pub(crate) fn child(name: &str, threads: usize) -> Result<(), String> {
    let mut candidates = Candidates::load(threads, Some(name));
    candidates.all.push(Box::new(ReadB));
    let candidate =
        candidates.all.iter().find(|candidate| candidate.name() == name).ok_or("no such candidate")?;
    let last_level_bytes = Machine::read().last_level_bytes();
    let mut ready: Option<(Contestant, Operands, usize)> = None;
    for line in std::io::stdin().lines() {
        let question = line.map_err(|error| error.to_string())?;
        let question: Value = serde_json::from_str(&question).map_err(|error| error.to_string())?;
        let answer = if question == "sample" {
            let (contestant, operands, threads) = ready.as_mut().ok_or("no case")?;
            let sample = contestant.sample(operands, *threads);
            json!({"call_ns": sample.call_ns, "disturbed": sample.disturbed})
        } else {
            // The last case's memory first.
            drop(ready.take());
            let case = case(&question)?;
            match prepare(candidate.as_ref(), &case, &question, last_level_bytes) {
                Ok((contestant, operands)) => {
                    let max_rel_error = contestant.max_rel_error;
                    ready = Some((contestant, operands, case.threads));
                    json!({"max_rel_error": max_rel_error})
                }
                Err(not_run) => json!({"not_run": not_run.reason, "wrong": not_run.wrong}),
            }
        };
        println!("{answer}");
    }
    Ok(())
}

fn case(question: &Value) -> Result<Case, String> {
    let text = |field: &str| question[field].as_str().unwrap_or_default();
    let threads = question["threads"].as_u64().and_then(|threads| usize::try_from(threads).ok());
    Ok(Case {
        precision: Precision::from_str(text("precision"), false)?,
        shape: text("shape").parse()?,
        threads: threads.ok_or("no threads")?,
        cold: question["cold"] == true,
    })
}

fn prepare(
    candidate: &dyn Candidate,
    case: &Case,
    question: &Value,
    last_level_bytes: usize,
) -> Result<(Contestant, Operands), NotRun> {
    let refuse = |reason| NotRun { candidate: candidate.name().to_owned(), reason, wrong: false };
    let mut operands = operands(case, last_level_bytes).map_err(refuse)?;
    let reference = (question["check"] == true).then(|| Reference::new(&operands));
    let sample = Duration::from_nanos(question["sample_ns"].as_f64().unwrap_or_default() as u64);
    let contestant = Contestant::new(candidate, case, &mut operands, reference.as_ref(), sample)?;
    Ok((contestant, operands))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::Shape;

    #[test]
    fn a_case_arrives_as_it_was_sent() {
        for (precision, cold) in Precision::value_variants().iter().zip([true, false].into_iter().cycle()) {
            let sent = Case { precision: *precision, shape: Shape::new(1, 30, 20), threads: 2, cold };
            let question = json!({
                "precision": sent.precision.name(),
                "shape": sent.shape.to_string(),
                "threads": sent.threads,
                "cold": sent.cold,
            });
            assert_eq!(case(&question), Ok(sent));
        }
        assert!(case(&json!("sample")).is_err());
    }
}
