//! `ane-matmul conformance`.

mod helper;
mod report;

use std::time::Instant;

use ane_matmul_conformance::List;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::ConformanceArgs;
use crate::failure::{Failure, Output};
use crate::output::{keep_ticking, print, print_json};
use crate::{SHIM, SHIM_DEVICE};

pub(crate) use helper::serve;
use helper::{Answer, Ended, Helper};
use report::{Report, Tally};

/// Of so many crashes in a list the rest of it would say no more.
const CRASHES: usize = 10;

const NOT_OPENED: &str = "the backend could not be opened again";

pub(crate) fn run(args: &ConformanceArgs) -> Output {
    let lists = select(args)?;
    let start = || Helper::start(&args.run, args.time_limit);
    let first = start()?;
    let mut report = Report::new(first.backend(), args);
    let mut helper = Some(first);

    let total: usize = lists.iter().map(|(_, numbers)| numbers.len()).sum();
    let progress = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {wide_msg} [{pos}/{len} cases, {elapsed}]");
    if let Ok(style) = style {
        progress.set_style(style);
    }
    keep_ticking(&progress);
    for (list, numbers) in lists {
        let cases = list.cases();
        let mut tally = Tally::new(list, numbers.len());
        let (began, mut crashes) = (Instant::now(), 0);
        let mut stopped = report.problem.as_ref().map(|_| NOT_OPENED);
        for number in numbers {
            progress.inc(1);
            if let Some(why) = stopped {
                tally.leave_out(number, why);
                continue;
            }
            progress.set_message(format!("{list}, case {number}"));
            let running = match helper.take().map_or_else(start, Ok) {
                Ok(running) => running,
                // What was found until then is worth something.
                Err(Failure(problem)) => {
                    report.problem = Some(format!("after a case that ended it: {problem}"));
                    stopped = Some(NOT_OPENED);
                    tally.leave_out(number, NOT_OPENED);
                    continue;
                }
            };
            let (answer, kept) = running.ask(list, number);
            helper = kept;
            match answer {
                // What hangs once would take its time each time.
                Answer::Ended(Ended::Late) => stopped = Some("a case took longer than --time-limit"),
                Answer::Ended(Ended::Crashed(_)) => {
                    crashes += 1;
                    if crashes == CRASHES {
                        stopped = Some("ten cases ended their process");
                    }
                }
                _ => {}
            }
            tally.add(number, &cases[number - 1], answer);
        }
        tally.time = began.elapsed();
        report.tallies.push(tally);
    }
    if let Some(Err(ended)) = helper.map(Helper::finish) {
        report.problem = Some(format!("after the last case: {ended}"));
    }
    progress.finish_and_clear();

    if args.json {
        print_json(&report.to_json())?
    } else {
        print(report.to_text())?
    }
    report.verdict(&args.require).map_err(Failure)
}

/// The lists to run, each once, with the numbers of their cases.
fn select(args: &ConformanceArgs) -> Output<Vec<(List, Vec<usize>)>> {
    let named = if args.lists.is_empty() { &List::ALL[..] } else { &args.lists };
    let mut lists: Vec<List> = Vec::new();
    for &list in named {
        if !lists.contains(&list) {
            lists.push(list);
        }
    }
    if let Some(list) = args.require.iter().find(|list| !lists.contains(list)) {
        return Err(Failure::new(format!("--require: {list} is not among the lists to run")));
    }
    if args.cases.is_empty() {
        return Ok(lists.into_iter().map(|list| (list, (1..=list.cases().len()).collect())).collect());
    }
    let [list] = lists[..] else {
        return Err(Failure::new(format!("--case: name one list with --list, got {}", lists.len())));
    };
    let count = list.cases().len();
    let mut numbers = Vec::new();
    for cases in &args.cases {
        let first = cases.first.get();
        if first > count {
            return Err(Failure::new(format!("--case: {list} has the cases 1 to {count}, got {first}")));
        }
        numbers.extend(first..=if cases.to_the_last { count } else { first });
    }
    Ok(vec![(list, numbers)])
}

/// The command that runs cases again.
fn command(list: List, cases: &str, args: &ConformanceArgs) -> String {
    let mut line = String::new();
    for name in [SHIM, SHIM_DEVICE] {
        if let Some(value) = crate::variable(name) {
            line += &format!("{name}={} ", quoted(&value.to_string_lossy()));
        }
    }
    line + "ane-matmul conformance " + &args.of_cases(list, cases)
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@%".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_one_for_a_shell() {
        assert_eq!(quoted("./lib-x.so"), "./lib-x.so");
        assert_eq!(quoted("it's $HOME"), "'it'\\''s $HOME'");
    }
}
