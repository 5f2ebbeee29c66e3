//! Misuse that must not compile: each file of `tests/misuse`, with the compiler's words beside it.
//!
//! After an update of the compiler has changed them: `TRYBUILD=overwrite cargo test --test misuse`, and
//! look at what changed.

#[test]
#[ignore = "compiles for a minute; scripts/test runs it"]
fn misuse_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/misuse/*.rs");
}
