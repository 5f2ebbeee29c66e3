//! Sentence embeddings with all-MiniLM-L6-v2: a whole encoder as a graph.
//!
//! `cargo run --release --example sentence_embeddings -- --model DIR SENTENCE SENTENCE...`
//!
//! The program is a package of its own, `examples/sentence_embeddings`, so that the library's tests need not build a
//! tokenizer. This runs it.

use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/sentence_embeddings/Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let mut command = Command::new(cargo);
    command.args(["run", "--quiet", "--profile", profile, "--manifest-path"]).arg(manifest);
    match command.arg("--").args(std::env::args_os().skip(1)).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        // Cargo and the program have said why.
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        Err(error) => {
            eprintln!("error: {}: {error}", command.get_program().display());
            ExitCode::FAILURE
        }
    }
}
