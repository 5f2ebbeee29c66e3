//! Matrix products compiled once and run millions of times.
//!
//! ```
//! use ane_matmul::{Activation, BackendId, Inputs, Linear, MatMul, Tensor, Weights, matmul};
//!
//! # fn main() -> Result<(), ane_matmul::Error> {
//! let (x, w) = (Tensor::random_normal_f32(8, 32, 1.0, 1)?, Tensor::random_normal_f32(32, 64, 0.02, 2)?);
//! let mut y = matmul(&x, &w)?; // once, on the CPU
//!
//! let product = MatMul::new(8, 64, 32)?.compile_default()?; // for many runs, on the fastest backend
//! product.run(Inputs::new(&x).b(&w), &mut y)?;
//!
//! let weights = Weights::from_tensor(w); // a layer: W and bias are known
//! let layer = Linear::new(&weights).max_rows(32).bias(&[0.1f32; 64]).activation(Activation::Relu);
//! let layer = layer.compile(&BackendId::AUTO)?;
//! layer.run(&x, &mut y)?; // from any thread
//! assert!(y.data().iter().all(|&y| y >= 0.0));
//! # Ok(())
//! # }
//! ```
//!
//! - [`MatMul`] describes `C = activation(alpha * op(A) op(B) + bias + residual)`, row-major, batched, with
//!   transposes and strides; [`MatMulWithWeights`] has its B, and [`Linear`] makes one for a layer.
//! - [`Weights`] know their type, scheme and scales: f16, bf16, 8-bit integers, and 8 and 4 bits
//!   ([`Weights::quantize`]). [`ElementTypes`] and [`Quantization`] describe the other operands.
//! - [`Backends`] and [`available`] say which engines are here and why others are not.
//! - [`BackendId::AUTO`] stands for the fastest of them, by measurement ([`calibrate`]); [`explain`] says
//!   why.
//! - [`Compiled`] is shared by threads. [`Compiled::run`] runs in any of them, an [`Executor`] belongs to one
//!   at a time, an [`ExecutorPool`] is a bounded number of them. [`ProductCache`] keeps products of many
//!   shapes within bounds.
//! - [`DeviceMemory`] keeps operands on a device between runs; [`Executor::submit`] and [`Executor::scope`] start runs
//!   that are waited for later.
//! - [`accuracy`] computes float64 references and error bounds; [`SelfCheck`] verifies results while a program
//!   runs; [`probe`] tries products out that may crash or hang.
//! - [`ShimLibrary`] loads engines of other makers by a C ABI.
//! - [`graph`] describes whole graphs of operators; no backend compiles them yet.
//!
//! What goes wrong is an [`Error`] that says what to do; what a backend does not do is a [`Refusal`] with its
//! reason, before anything is compiled. Nothing falls back to another backend unless it is asked to.
//!
//! # Features
//! None is on by default.
//!
//! - `blas`: the system's CBLAS as backend `blas`. Apple systems have `accelerate` without it.
//! - `half`: elements of `half::f16` and `half::bf16`.
//! - `ndarray`: conversions from and to `ndarray` arrays.
//! - `npy`, `safetensors`: files.
//! - `profile`: the measured profile of a machine, in a file, for the backend `auto`.
//! - `evidence`: which device ran a product; with `energy` the chip's energy counters too, on macOS.
//! - `bindgen`: the bindings of the C ABI are made while building, by libclang, and not taken as committed.
#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::pedantic)]
#![cfg_attr(test, allow(clippy::cast_precision_loss, reason = "small test figures"))]
#![allow(
    clippy::module_name_repetitions,
    clippy::many_single_char_names,
    clippy::similar_names,
    reason = "m, n, k, a, b, c are the field's names"
)]
#![allow(
    clippy::doc_markdown,
    clippy::float_cmp,
    clippy::match_same_arms,
    clippy::missing_panics_doc,
    clippy::struct_excessive_bools,
    reason = "product names, exact comparisons, tables and flags are meant"
)]

mod alloc;
mod backend;
mod cache;
mod description;
mod dispatch;
mod error;
mod executor;
mod executor_pool;
mod files;
pub mod graph;
mod matmul;
mod operands;
mod random;
#[allow(unsafe_code, reason = "foreign types")]
mod sys;
mod verify;

pub use backend::auto::explain;
pub use backend::instant_start::InstantStart;
pub use backend::known_faults::{FaultHandling, KnownFault, known_faults};
pub use backend::refusal::{NodeRefusal, Refusal, RefusalReason};
#[cfg(all(feature = "blas", unix, not(target_vendor = "apple")))]
pub use backend::set_blas_threads;
pub use backend::{BackendId, BackendInfo, BackendStatus, Backends, ShimDevice, ShimLibrary, available};
pub use cache::{CacheLimits, CacheStatistics, ProductCache};
pub use description::activation::{Activation, UnknownActivation};
pub use description::element::{Element, ElementType};
pub use description::layout::Layout;
pub use description::linear::Linear;
pub use description::matmul::{ElementTypes, MatMul, MatMulBuilder};
pub use description::options::{CompileOptions, Device, ThreadPool, Threads, UnknownDevice};
pub use description::quantization::{NibbleOrder, QuantA, QuantB, QuantOutput, Quantization};
pub use description::with_weights::{ConstantB, MatMulWithWeights, Product};
pub use dispatch::calibrate::{CalibrateOptions, CalibrateProgress, Effort, calibrate};
pub use dispatch::machine::MachineKey;
pub use dispatch::profile::{Profile, Quarantine, Sample, Series, ShapeClass};
pub use dispatch::{
    Basis, Candidate, Consequence, Explanation, Obstacle, ObstacleKind, Prediction, ProfileState, Verdict,
    why_not_neural_engine,
};
pub use error::{Error, NativeError, NativeStatus, Operand, Result};
pub use executor::queue::{Completed, Queue, Submission, SubmissionError, Ticket};
pub use executor::{Arithmetic, Compiled, Executor, Inputs, IntoInputs, Report, RunObservation};
pub use executor_pool::{ExecutorPool, PooledExecutor};
pub use matmul::{matmul, matmul_f64};
pub use operands::device_tensor::{DeviceMemory, DeviceTensor, DeviceView, DeviceViewMut};
pub use operands::int4::Int4View;
pub use operands::shared_buffer::SharedBuffer;
pub use operands::tensor::Tensor;
pub use operands::view::{AnyView, AnyViewMut, IntoView, IntoViewMut, TensorView, TensorViewMut};
pub use operands::weights::Weights;
pub use verify::self_check::{
    CheckCounts, CheckSchedule, Mismatch, OnMismatch, ResultChecker, SelfCheck, WrongElement,
};

#[cfg(feature = "npy")]
pub use files::npy;
#[cfg(feature = "safetensors")]
pub use files::safetensors;
pub use operands::quantize;
#[cfg(feature = "evidence")]
pub use verify::evidence;
pub use verify::{accuracy, probe};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;

#[cfg(doctest)]
#[doc = include_str!("../docs/ABI.md")]
struct AbiExamples;

#[cfg(doctest)]
#[doc = include_str!("../docs/accuracy.md")]
struct AccuracyExamples;

#[cfg(doctest)]
#[doc = include_str!("../docs/auto.md")]
struct AutoExamples;

#[cfg(doctest)]
#[doc = include_str!("../docs/cache.md")]
struct CacheExamples;

#[cfg(doctest)]
#[doc = include_str!("../docs/device-memory.md")]
struct DeviceMemoryExamples;

#[cfg(all(doctest, feature = "safetensors"))]
#[doc = include_str!("../docs/getting-started.md")]
struct GettingStartedExamples;

#[cfg(doctest)]
#[doc = include_str!("../docs/graphs.md")]
struct GraphExamples;

#[cfg(doctest)]
#[doc = include_str!("../docs/self-check.md")]
struct SelfCheckExamples;
