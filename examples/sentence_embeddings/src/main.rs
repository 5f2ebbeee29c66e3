//! Embeds sentences with all-MiniLM-L6-v2, and says how similar they are.
#![warn(clippy::pedantic)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use ane_matmul::{CompileOptions, Tensor, Threads, npy};
use ane_matmul_example_embeddings::{Embedder, Error, Options};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

/// Embeds sentences with all-MiniLM-L6-v2 and prints the cosine similarity of each two.
///
/// `scripts/models minilm` fetches the model.
#[derive(Debug, Parser)]
#[command(name = "sentence_embeddings")]
struct Arguments {
    /// The directory with config.json, model.safetensors and tokenizer.json.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The sentences.
    #[arg(value_name = "SENTENCE", required_unless_present = "file", conflicts_with = "file")]
    sentences: Vec<String>,
    /// Embeds the lines of a file, and says how many a second.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Writes the embeddings, a row for each sentence, as a NumPy file.
    #[arg(long, value_name = "FILE.npy")]
    output: Option<PathBuf>,
    /// The most sentences that run together.
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch: usize,
    /// The CPU threads; as many as the process may use without it.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// The most tokens of a sentence; as the model's files say without it.
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let threads = arguments.threads.map_or(Ok(Threads::Auto), Threads::count)?;
    let mut embedder = Embedder::open(
        &arguments.model,
        Options {
            batch: arguments.batch,
            max_length: arguments.max_length,
            compile: CompileOptions::new().threads(threads),
        },
    )?;
    let embeddings = match &arguments.file {
        Some(file) => embed_file(&mut embedder, file)?,
        None => embedder.embed(&arguments.sentences, |_| ())?,
    };
    if embedder.truncated() > 0 {
        let (count, length) = (embedder.truncated(), embedder.max_length());
        eprintln!("truncated to {length} tokens: {count} of {} sentences", embeddings.rows());
    }
    if let Some(path) = &arguments.output {
        npy::write(path, &embeddings)?;
    }
    if arguments.file.is_none() {
        print_pairs(&arguments.sentences, &embeddings);
    }
    Ok(())
}

/// The embeddings of a file's lines.
fn embed_file(embedder: &mut Embedder, path: &Path) -> Result<Tensor<f32>, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let sentences: Vec<String> = text.lines().map(String::from).collect();
    if sentences.is_empty() {
        return Err(Error::Sentences(format!("{} has no lines", path.display())));
    }
    let progress = ProgressBar::new(sentences.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} sentences, {per_sec}, {eta} left")
    {
        progress.set_style(style);
    }
    let start = Instant::now();
    let embeddings = embedder.embed(&sentences, |done| progress.inc(done as u64));
    let all = start.elapsed();
    progress.finish_and_clear();
    let embeddings = embeddings?;
    let (lengths, compiling) = embedder.compiled();
    let lengths: Vec<_> = lengths.iter().map(ToString::to_string).collect();
    #[allow(clippy::cast_precision_loss, reason = "sentences that fit in memory")]
    let rate = sentences.len() as f64 / (all - compiling.min(all)).as_secs_f64();
    println!("{} sentences in {:.2} s, {rate:.1} sentences/s", sentences.len(), all.as_secs_f64());
    println!(
        "{:.2} s of these to compile for {} tokens, not in the rate",
        compiling.as_secs_f64(),
        lengths.join(", ")
    );
    Ok(embeddings)
}

fn print_pairs(sentences: &[String], embeddings: &Tensor<f32>) {
    let row = |index: usize| embeddings.data().chunks_exact(embeddings.cols()).nth(index).unwrap_or_default();
    for (first, one) in sentences.iter().enumerate() {
        for (second, other) in sentences.iter().enumerate().skip(first + 1) {
            let products = row(first).iter().zip(row(second)).map(|(x, y)| f64::from(*x) * f64::from(*y));
            println!("{:>9.6}  {one:?}  {other:?}", products.sum::<f64>());
        }
    }
}
