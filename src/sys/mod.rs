//! The C ABI as `bindgen` reads it, and nothing else: see `include/ane_matmul.h`.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    non_camel_case_types,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    reason = "generated code; the header documents it"
)]

#[cfg(ane_matmul_fresh_bindings)]
include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
#[cfg(not(ane_matmul_fresh_bindings))]
include!("bindings.rs");
