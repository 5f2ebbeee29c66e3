//! What a client is told when there is no result: a status, and JSON that says why.

use std::fmt::Display;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    problem: String,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, problem: impl Into<String>) -> Self {
        Self { status, problem: problem.into() }
    }

    /// Not the client's fault: the log has the details.
    pub(crate) fn internal(error: impl Display) -> Self {
        log::error!("{error}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
    }
}

/// Operands are checked before a run, so that an error of the library is no client's.
impl From<ane_matmul::Error> for Failure {
    fn from(error: ane_matmul::Error) -> Self {
        Self::internal(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.problem }).to_string();
        let json = (header::CONTENT_TYPE, "application/json");
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            (self.status, [json, (header::RETRY_AFTER, "1")], body).into_response()
        } else {
            (self.status, [json], body).into_response()
        }
    }
}
