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
        match error {
            ane_matmul::Error::UnknownBackend { .. } if crate::variable(crate::SHIM).is_none() => {
                Self::new(format_args!("{error}; a shim's: set {}", crate::SHIM))
            }
            error => Self::new(error),
        }
    }
}
