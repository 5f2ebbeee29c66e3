//! How a command ends early.

use std::fmt::Display;

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
