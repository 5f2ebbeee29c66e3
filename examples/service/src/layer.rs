//! The layer: from a request's JSON to the answer's.

use std::num::NonZeroU32;

use ane_matmul::safetensors::SafetensorsFile;
use ane_matmul::{
    Activation, BackendId, CompileOptions, ExecutorPool, Linear, OnMismatch, SelfCheck, Tensor, TensorView,
    TensorViewMut, Threads, Weights,
};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::Arguments;
use crate::failure::Failure;

/// The random layer that stands in where no file is given.
const RANDOM_INPUTS: usize = 768;
const RANDOM_OUTPUTS: usize = 3072;

/// One run in so many is verified.
const CHECK_ONE_IN: NonZeroU32 = NonZeroU32::new(100).unwrap();

/// The most bytes that a number of a request takes: all digits of an f64, a comma, and a space.
const BYTES_PER_NUMBER: usize = 32;

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) pool: ExecutorPool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    rows: Vec<Vec<f32>>,
}

#[derive(Serialize)]
struct Answer<'a> {
    rows: Vec<&'a [f32]>,
}

impl Layer {
    pub(crate) fn open(arguments: &Arguments) -> ane_matmul::Result<Self> {
        let layer = match &arguments.model {
            Some(path) => SafetensorsFile::read(path)?.linear(&arguments.layer)?,
            None => random()?,
        };
        let check = SelfCheck::one_in(CHECK_ONE_IN).on_mismatch(OnMismatch::RerunOnCpu);
        let options =
            CompileOptions::new().threads(Threads::count(arguments.threads_per_run)?).self_check(check);
        let compiled = layer
            .max_rows(arguments.max_rows)
            .activation(Activation::Gelu)
            .compile_with(&BackendId::AUTO, &options)?;
        log::info!("{}: {:?}", compiled.product(), compiled.report());
        Ok(Self { pool: compiled.pool(arguments.executors)? })
    }

    pub(crate) fn max_rows(&self) -> usize {
        self.pool.compiled().product().m()
    }

    pub(crate) fn inputs(&self) -> usize {
        self.pool.compiled().product().k()
    }

    fn outputs(&self) -> usize {
        self.pool.compiled().product().n()
    }

    /// The most bytes that a request needs.
    pub(crate) fn body_limit(&self) -> usize {
        (self.max_rows() * self.inputs()).saturating_mul(BYTES_PER_NUMBER).saturating_add(1024)
    }

    /// What a request looks like, for those that do not.
    fn expected(&self) -> String {
        let (rows, inputs) = (self.max_rows(), self.inputs());
        format!(r#"expected {{"rows": [[...], ...]}} with 1 to {rows} rows of {inputs} numbers each"#)
    }

    /// Parses a request, runs the layer, and writes the answer: the number of rows, and its JSON.
    ///
    /// Takes milliseconds of a CPU: call it from a thread that may block.
    pub(crate) fn forward(&self, body: &[u8]) -> Result<(usize, Vec<u8>), Failure> {
        let (rows, x) = self.parse(body)?;
        let mut y = vec![0f32; rows * self.outputs()];
        self.pool.run(
            TensorView::new(&x, rows, self.inputs())?,
            TensorViewMut::new(&mut y, rows, self.outputs())?,
        )?;
        if !y.iter().all(|y| y.is_finite()) {
            let problem = "the result is not finite: the numbers of the request are too large";
            return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, problem));
        }
        let answer = Answer { rows: y.chunks(self.outputs().max(1)).collect() };
        Ok((rows, serde_json::to_vec(&answer).map_err(Failure::internal)?))
    }

    /// The rows of a request, and their elements one after the other.
    fn parse(&self, body: &[u8]) -> Result<(usize, Vec<f32>), Failure> {
        let Request { rows } = serde_json::from_slice(body).map_err(|error| {
            Failure::new(StatusCode::BAD_REQUEST, format!("{error}; {}", self.expected()))
        })?;
        let wrong = |problem: String| {
            Failure::new(StatusCode::UNPROCESSABLE_ENTITY, format!("{problem}; {}", self.expected()))
        };
        if rows.is_empty() || rows.len() > self.max_rows() {
            return Err(wrong(format!("got {} rows", rows.len())));
        }
        let mut elements = Vec::with_capacity(rows.len() * self.inputs());
        for (index, row) in rows.iter().enumerate() {
            if row.len() != self.inputs() {
                return Err(wrong(format!("row {index} has {} numbers", row.len())));
            }
            elements.extend_from_slice(row);
        }
        Ok((rows.len(), elements))
    }
}

fn random() -> ane_matmul::Result<Linear> {
    let weights = Tensor::random_normal_f32(RANDOM_INPUTS, RANDOM_OUTPUTS, 0.02, 1)?;
    Ok(Linear::new(&Weights::from_tensor(weights)).bias(&vec![0.01f32; RANDOM_OUTPUTS]))
}
