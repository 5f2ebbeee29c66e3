//! Apple's frameworks as far as the shims use them, on the CPU of a Linux machine.
//!
//! Metal kernels run unchanged: translated to C++ ([`translate`]), compiled with clang ([`compile`]),
//! and executed with one fiber per GPU thread under a memory checker ([`library`]). What it finds: races
//! per address space and barrier flag, accesses out of bounds, reads of what nobody wrote, misaligned
//! vectors, writes to inputs, reads of outputs, barriers and simdgroup operations that not all threads
//! reach, and too much threadgroup memory. What it cannot tell: that Apple's compiler accepts the
//! source, what Apple's hardware rounds, and how fast it is.
//!
//! The shims `objc/*.m` run unchanged too ([`host`]), against test doubles of Metal and MPSGraph in
//! `sim/` that are hostile where Apple's documentation leaves room, and that fail when told to.

pub mod case;
pub mod compile;
pub mod drive;
pub mod host;
pub mod library;
pub mod plan;
pub mod static_pass;
pub mod submissions;
pub mod sweep;
pub mod token;
pub mod translate;
