//! Whether results are right, what computed them, and what happens to a process that tries.

pub mod accuracy;
#[cfg(feature = "evidence")]
pub mod evidence;
pub mod probe;
pub(crate) mod self_check;
