//! Misuse that must not compile: each file of `programs`, with the compiler's words beside it.
//!
//! After an update of the compiler has changed them: `TRYBUILD=overwrite cargo test -p ane-matmul-misuse`,
//! and look at what changed.

#[test]
fn misuse_does_not_compile() {
    trybuild::TestCases::new().compile_fail("programs/*.rs");
}
