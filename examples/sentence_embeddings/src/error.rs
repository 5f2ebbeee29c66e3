use std::path::{Path, PathBuf};

/// Why there are no embeddings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the model, or one of sentences, that cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file that says what this program does not take, or does not say what it needs.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is, and what would be right.
        problem: String,
    },
    /// A directory that has no model.
    #[error(
        "{} has no {}; a model's directory holds config.json, model.safetensors and tokenizer.json: \
         `scripts/models minilm` fetches one",
        directory.display(),
        missing.join(", no ")
    )]
    NoModel {
        /// The directory.
        directory: PathBuf,
        /// The files that are not there.
        missing: Vec<String>,
    },
    /// Sentences that cannot be embedded.
    #[error("{0}")]
    Sentences(String),
    /// The library's.
    #[error(transparent)]
    Engine(#[from] ane_matmul::Error),
}

impl Error {
    pub(crate) fn format(path: &Path, problem: impl Into<String>) -> Self {
        Self::Format { path: path.into(), problem: problem.into() }
    }
}

/// The text of a file.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })
}
