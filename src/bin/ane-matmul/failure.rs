//! How a command ends early.

use std::fmt::Display;
use std::io::{self, Write as _};

/// What a command returns.
pub(crate) type Output<T = ()> = Result<T, Failure>;

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The reader of our output went away.
    BrokenPipe,
    /// An error for the user.
    Message(String),
}

impl Failure {
    pub(crate) fn new(message: impl Display) -> Self {
        Self::Message(message.to_string())
    }
}

impl From<ane_matmul::Error> for Failure {
    fn from(error: ane_matmul::Error) -> Self {
        Self::new(error)
    }
}

/// Writes to standard output.
pub(crate) fn print_bytes(bytes: &[u8]) -> Output {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Failure::BrokenPipe
        } else {
            Failure::new(format!("standard output: {error}"))
        }
    })
}

/// Writes a text, ended by a newline, to standard output.
pub(crate) fn print(text: impl Display) -> Output {
    print_bytes(format!("{text}\n").as_bytes())
}
