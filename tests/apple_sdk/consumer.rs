//! A library for C that uses the crate, as an app would embed it: `scripts/test-apple-types` builds it as a dynamic
//! library, and twice as a static one.

/// How many backends there are, under the name that the build gives.
#[unsafe(export_name = env!("CONSUMER"))]
pub extern "C" fn consumer() -> usize {
    ane_matmul::Backends::new().available().len()
}
