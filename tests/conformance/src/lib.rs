//! The cases that every backend must pass, against a float64 reference with the stated bound.
//!
//! Operands lie inside larger allocations: before, between and after their elements stands NaN, so
//! that a backend that reads outside its operands spoils its result. Outputs are filled with a NaN
//! of a certain bit pattern, and whatever is no element of C must still hold it afterwards. Integer
//! operands have guards of a large number instead.

mod amount;
mod cases;
mod checked;
mod data;
mod quantized;
mod run;

pub use amount::{some, thorough};
pub use cases::{Case, Contents, Scale, Stride, cases, cases_of_type};
pub use data::{Guarded, normal};
pub use quantized::{integer_cases, narrow_types, shared_cases, weight_only_cases};
pub use run::{Failure, Passed, Summary, compile_on_cpu, run_case, run_suite, with_run};
