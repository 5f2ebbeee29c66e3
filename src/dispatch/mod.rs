//! Which backend for which product, and why: the backend `auto`.

mod explanation;
mod model;
mod neural_engine;
mod predictor;
mod rule;
#[cfg(test)]
mod tests;

pub use explanation::{Basis, Candidate, Explanation, Prediction, ProfileState, Verdict};
pub(crate) use explanation::{Ranked, explain, refusal_of_all};
pub use neural_engine::{Consequence, Obstacle, ObstacleKind, why_not_neural_engine};
pub(crate) use predictor::Predictor;
