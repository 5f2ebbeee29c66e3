//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::shapes::{Precision, Shape};

pub(crate) const USAGE: &str = "\
usage: ane-matmul-peers [OPTIONS]

Measures ane-matmul beside its peers. Progress goes to standard error, the report to standard output.

  --quick             the shapes that have targets, without the sweep over sizes
  --json FILE         write the figures as JSON
  --plots DIR         where the plots go (target/peers/plots)
  --runs N            repetitions of the whole (5)
  --threads LIST      numbers of threads (1,2)
  --precisions LIST   of f32, bf16, f16, int8 and weights (all)
  --shapes LIST       only these, such as 64^3,32x3072x768
  --candidates LIST   only these, such as ane-matmul,faer
  --patience SECONDS  how long to wait for busy cores, all waits together (60)
  --allow-missing     do not fail when a peer could not be loaded
";

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) quick: bool,
    pub(crate) json: Option<PathBuf>,
    pub(crate) plots: Option<PathBuf>,
    pub(crate) runs: usize,
    pub(crate) threads: Vec<usize>,
    pub(crate) precisions: Vec<Precision>,
    pub(crate) shapes: Vec<Shape>,
    pub(crate) candidates: Vec<String>,
    pub(crate) patience: Duration,
    pub(crate) allow_missing: bool,
    /// The BLAS to rate, in a process started for that.
    pub(crate) probe: Option<String>,
    pub(crate) help: bool,
}

impl Args {
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            quick: false,
            json: None,
            plots: None,
            runs: 5,
            threads: vec![1, 2],
            precisions: Precision::ALL.to_vec(),
            shapes: Vec::new(),
            candidates: Vec::new(),
            patience: Duration::from_secs(60),
            allow_missing: false,
            probe: None,
            help: false,
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--quick" => args.quick = true,
                "--json" => args.json = Some(value()?.into()),
                "--plots" => args.plots = Some(value()?.into()),
                "--runs" => args.runs = positive(&value()?)?,
                "--threads" => args.threads = list(&value()?, positive)?,
                "--precisions" => args.precisions = list(&value()?, str::parse)?,
                "--shapes" => args.shapes = list(&value()?, str::parse)?,
                "--candidates" => args.candidates = list(&value()?, |name| Ok(name.to_owned()))?,
                "--patience" => args.patience = Duration::from_secs(positive(&value()?)? as u64),
                "--allow-missing" => args.allow_missing = true,
                "--probe" => args.probe = Some(value()?),
                "--help" | "-h" => args.help = true,
                _ => return Err(format!("unknown option {word}")),
            }
        }
        args.threads.sort_unstable();
        args.threads.dedup();
        args.precisions.sort_unstable();
        args.precisions.dedup();
        Ok(args)
    }
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{text:?} is no positive number")),
    }
}

fn list<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').map(|part| parse(part.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_contract_parses() {
        let args = parse("--quick --json out.json").unwrap();
        assert!(args.quick);
        assert_eq!(args.json, Some(PathBuf::from("out.json")));
        assert_eq!((args.runs, args.threads), (5, vec![1, 2]));
    }

    #[test]
    fn lists_parse() {
        let args =
            parse("--shapes 64^3,1x2x3 --threads 2,1,2 --candidates a,b --runs 7 --precisions int8,bf16")
                .unwrap();
        assert_eq!(args.shapes, [Shape::square(64), Shape::new(1, 2, 3)]);
        assert_eq!(args.threads, [1, 2]);
        assert_eq!(args.candidates, ["a", "b"]);
        assert_eq!(args.precisions, [Precision::Bf16, Precision::Int8]);
        assert_eq!(args.runs, 7);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("--slow", "--slow"),
            ("--json", "value"),
            ("--runs 0", "positive"),
            ("--precisions f8", "bf16"),
            ("--shapes 3", "3"),
        ] {
            assert!(parse(line).is_err_and(|message| message.contains(part)), "{line}");
        }
    }
}
