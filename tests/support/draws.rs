//! Random products: the same in every quick run, others in every thorough one.

use ane_matmul_conformance::thorough;
use proptest::test_runner::{Config, RngSeed};

/// The environment variable that names the seed of random products.
const SEED: &str = "ANE_MATMUL_TEST_SEED";

/// So many cases, in a quick run and in a thorough one; prints what repeats them.
///
/// # Panics
/// Where the environment names a seed that is no number.
pub(crate) fn draws(quick: u32, in_full: u32) -> Config {
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().unwrap_or_else(|_| panic!("{SEED}={seed} is no number")),
        Err(_) if thorough() => fastrand::u64(..),
        Err(_) => 1,
    };
    let full = if thorough() { " ANE_MATMUL_THOROUGH=1" } else { "" };
    println!("to repeat these random products: {SEED}={seed}{full} cargo test");
    Config {
        cases: if thorough() { in_full } else { quick },
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    }
}
