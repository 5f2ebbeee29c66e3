//! Which backend for which product, and why: the backend `auto`, and the measurements that it goes by.

pub(crate) mod calibrate;
mod explanation;
pub(crate) mod machine;
mod model;
mod neural_engine;
mod predictor;
pub(crate) mod profile;
mod rule;
#[cfg(test)]
mod tests;

pub use explanation::{Basis, Candidate, Explanation, Prediction, ProfileState, Verdict};
pub(crate) use explanation::{Ranked, explain, may_be_chosen, refusal_of_all};
pub use neural_engine::{Consequence, Obstacle, ObstacleKind, why_not_neural_engine};
pub(crate) use predictor::Predictor;
pub(crate) use rule::rank;
