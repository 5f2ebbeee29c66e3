//! Sentences as vectors, by an encoder of BERT's architecture: all-MiniLM-L6-v2 and its like.
//!
//! [`Encoder`] makes graphs of a safetensors file, [`Embedder`] compiles and runs them on text.
#![warn(clippy::pedantic)]

mod embedder;
mod encoder;
mod error;

pub use embedder::{Embedder, Options};
pub use encoder::{Config, Encoder};
pub use error::Error;
