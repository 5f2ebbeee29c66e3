//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, ValueEnum as _};

use crate::shapes::{Precision, Shape};

/// Measures ane-matmul beside its peers. Progress goes to standard error, the report to standard output.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "ane-matmul-peers")]
pub(crate) struct Args {
    /// The shapes that have targets, without the sweep over sizes.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Where the plots go, instead of target/peers/plots.
    #[arg(long, value_name = "DIR")]
    pub(crate) plots: Option<PathBuf>,
    /// Repetitions of the whole.
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive())]
    pub(crate) runs: usize,
    /// Numbers of threads.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,2", value_parser = positive())]
    pub(crate) threads: Vec<usize>,
    /// Element types of A and B; `weights` are an f32 A and a B of 8-bit or 4-bit integers.
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',')]
    #[arg(default_values_t = Precision::value_variants().to_vec())]
    pub(crate) precisions: Vec<Precision>,
    /// Only these, such as 64^3,32x3072x768.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) shapes: Vec<Shape>,
    /// Only these, such as ane-matmul,faer.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) candidates: Vec<String>,
    /// How long to wait for busy cores, all waits together.
    #[arg(long = "patience", value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) patience_s: u64,
    /// Do not fail when a peer could not be loaded.
    #[arg(long)]
    pub(crate) allow_missing: bool,
    /// The BLAS to rate, in a process started for that.
    #[arg(long, value_name = "BLAS", hide = true)]
    pub(crate) probe: Option<String>,
    /// The candidate to run, in a process of its own.
    #[arg(long, value_name = "CANDIDATE", hide = true)]
    pub(crate) apart: Option<String>,
}

fn positive() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

impl Args {
    /// Numbers of threads and precisions come in order, each once.
    pub(crate) fn read(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut args = Self::try_parse_from(words)?;
        args.threads.sort_unstable();
        args.threads.dedup();
        args.precisions.sort_unstable();
        args.precisions.dedup();
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::read(["ane-matmul-peers"].into_iter().chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn the_contract_parses() {
        Args::command().debug_assert();
        let args = parse("--quick --json out.json").unwrap();
        assert!(args.quick);
        assert_eq!(args.json, Some(PathBuf::from("out.json")));
        assert_eq!((args.runs, args.threads, args.patience_s), (5, vec![1, 2], 60));
        assert_eq!(args.precisions, Precision::value_variants());
        assert!(args.shapes.is_empty() && args.candidates.is_empty());
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
            ("--runs 0", "1.."),
            ("--threads 1,0", "1.."),
            ("--precisions f8", "bf16"),
            ("--shapes 3", "SIZE^3"),
        ] {
            assert!(parse(line).is_err_and(|message| message.to_string().contains(part)), "{line}");
        }
    }
}
