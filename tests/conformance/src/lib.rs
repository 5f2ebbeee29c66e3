//! The cases that every backend of [`ane_matmul`] must pass, against a float64 reference with the stated bound.
//!
//! A [`List`] has its cases; a [`Suite`] runs them on a backend, built in or a shim, and yields an [`Outcome`] for each.
//! `ane-matmul conformance` does so from the command line.
//!
//! ```
//! use ane_matmul::{BackendId, Backends, CompileOptions};
//! use ane_matmul_conformance::{List, Suite};
//!
//! let (backends, options) = (Backends::new(), CompileOptions::default());
//! let list = List::F32;
//! let cases = list.cases();
//! let suite = Suite::new(&backends, &BackendId::CPU, &options).way(list.way());
//! let summary = suite.check(&cases[..100], &[]);
//! assert_eq!(summary.passed, 100);
//! ```
//!
//! Operands lie inside larger allocations: before, between and after their elements stands NaN, so
//! that a backend that reads outside its operands spoils its result. Outputs are filled with a NaN
//! of a certain bit pattern, and whatever is no element of C must still hold it afterwards. Integer
//! operands have guards of a large number instead.

mod amount;
mod cases;
mod checked;
mod data;
mod device;
mod lists;
mod operands;
mod quantized;
mod run;

pub use amount::{some, thorough};
pub use cases::{Case, Contents, Scale, Stride, cases, cases_of_type};
pub use data::{Guarded, normal};
pub use lists::List;
pub use quantized::{integer_cases, narrow_types, shared_cases, weight_only_cases};
pub use run::{Failure, Outcome, Passed, Suite, Summary, Way, compile_on_cpu, run_case, run_suite, with_run};
