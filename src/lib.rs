//! Matrix products compiled once and run millions of times.
//!
//! Describe a product, compile it for a backend, open an executor in each thread, run:
//!
//! ```
//! use ane_matmul::{Activation, BackendId, CompileOptions, Inputs, MatMul, Tensor, Weights};
//!
//! # fn main() -> Result<(), ane_matmul::Error> {
//! let layer = MatMul::builder(8, 64, 32).constant_b(true).bias(true).activation(Activation::Relu).build()?;
//! let weights = Weights::from_tensor(Tensor::random_normal_f32(32, 64, 0.02, 1)?);
//! let compiled = layer.compile(&BackendId::CPU, Some(&weights), &CompileOptions::default())?;
//!
//! let (x, bias) = (Tensor::random_normal_f32(8, 32, 1.0, 2)?, vec![0.1f32; 64]);
//! let mut y = Tensor::<f32>::zeros(8, 64)?;
//! let mut executor = compiled.executor()?;
//! executor.run(&Inputs::new(&x).bias(&bias), &mut y)?;
//! assert!(y.data().iter().all(|&y| y >= 0.0));
//! # Ok(())
//! # }
//! ```
//!
//! - [`MatMul`] describes `C = activation(alpha * op(A) op(B) + bias + residual)`, row-major,
//!   batched, with transposes and strides.
//! - [`Backends`] and [`available`] say which engines are here and why others are not.
//! - [`BackendId::AUTO`] stands for the fastest of them, by measurement ([`calibrate`]); [`explain`] says
//!   why.
//! - [`Compiled`] is shared by threads; an [`Executor`] belongs to one at a time. [`ProductCache`] keeps
//!   products of many shapes within bounds.
//! - [`ElementTypes`] and [`Quantization`] describe f16, bf16, 8-bit integers and 8 and 4-bit weights, which
//!   [`quantize`] makes.
//! - [`accuracy`] computes float64 references and error bounds; [`SelfCheck`] verifies results while a program
//!   runs; [`probe`] tries products out that may crash or hang.
//! - [`ShimLibrary`] loads engines of other makers by a C ABI.
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

pub mod accuracy;
mod activation;
mod alloc;
mod backend;
mod cache;
mod calibrate;
mod dispatch;
mod element;
mod error;
#[cfg(feature = "evidence")]
pub mod evidence;
mod executor;
#[cfg(feature = "half")]
mod float16;
mod instant_start;
mod int4;
#[cfg(feature = "ndarray")]
mod interop_ndarray;
mod known_faults;
mod layout;
mod machine;
mod matmul;
#[cfg(feature = "npy")]
pub mod npy;
mod options;
mod package;
mod private_dir;
pub mod probe;
mod profile;
mod quantization;
pub mod quantize;
mod random;
mod refusal;
#[cfg(feature = "safetensors")]
pub mod safetensors;
mod scales;
mod self_check;
#[allow(unsafe_code, reason = "memory of devices")]
mod shared_buffer;
#[allow(unsafe_code, reason = "foreign types")]
mod sys;
mod tensor;
mod view;
mod weights;
#[cfg(any(feature = "npy", feature = "profile", feature = "safetensors"))]
mod whole_file;

pub use activation::{Activation, UnknownActivation};
pub use backend::auto::explain;
#[cfg(all(feature = "blas", unix, not(target_vendor = "apple")))]
pub use backend::set_blas_threads;
pub use backend::{BackendId, BackendInfo, BackendStatus, Backends, ShimLibrary, available};
pub use cache::{CacheLimits, CacheStatistics, ProductCache};
pub use calibrate::{CalibrateOptions, CalibrateProgress, Effort, calibrate};
pub use dispatch::{
    Basis, Candidate, Consequence, Explanation, Obstacle, ObstacleKind, Prediction, ProfileState, Verdict,
    why_not_neural_engine,
};
pub use element::{Element, ElementType};
pub use error::{Error, NativeError, NativeStatus, Operand, Result};
pub use executor::{Compiled, Executor, Inputs, Report, RunObservation};
pub use instant_start::InstantStart;
pub use int4::Int4View;
pub use known_faults::{FaultHandling, KnownFault, known_faults};
pub use layout::Layout;
pub use machine::MachineKey;
pub use matmul::{ElementTypes, MatMul, MatMulBuilder};
pub use options::{CompileOptions, Device, ThreadPool, Threads, UnknownDevice};
pub use profile::{Profile, Quarantine, Sample, Series, ShapeClass};
pub use quantization::{NibbleOrder, QuantA, QuantB, QuantOutput, Quantization};
pub use refusal::{Refusal, RefusalReason};
pub use self_check::{
    CheckCounts, CheckSchedule, Mismatch, OnMismatch, ResultChecker, SelfCheck, WrongElement,
};
pub use shared_buffer::SharedBuffer;
pub use tensor::Tensor;
pub use view::{AnyView, AnyViewMut, TensorView, TensorViewMut};
pub use weights::Weights;

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
#[doc = include_str!("../docs/cache.md")]
struct CacheExamples;

#[cfg(doctest)]
#[doc = include_str!("../docs/self-check.md")]
struct SelfCheckExamples;
