//! How a command ends early.

use std::fmt::Display;

/// What a command returns.
pub(crate) type Output<T = ()> = Result<T, Failure>;

/// Why a command ended early: an error for the user.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl Failure {
    pub(crate) fn new(message: impl Display) -> Self {
        Self(message.to_string())
    }
}

impl From<ane_matmul::Error> for Failure {
    fn from(error: ane_matmul::Error) -> Self {
        Self::new(error)
    }
}
