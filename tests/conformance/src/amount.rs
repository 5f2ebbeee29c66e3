//! How much of what there is to test a run takes.

/// Whether everything is to be tested (`ANE_MATMUL_THOROUGH` is set, as `scripts/test --thorough` does), or what fits
/// into minutes.
#[must_use]
pub fn thorough() -> bool {
    std::env::var_os("ANE_MATMUL_THOROUGH").is_some()
}

/// All of them in a thorough run, else the `part`th of `parts` parts: always the same, and scattered, since cases next to
/// each other differ in one thing.
#[must_use]
pub fn some<T>(all: Vec<T>, part: usize, parts: usize) -> Vec<T> {
    if thorough() { all } else { scattered(all, part, parts) }
}

/// The `part`th of `parts` parts.
pub(crate) fn scattered<T>(all: Vec<T>, part: usize, parts: usize) -> Vec<T> {
    // The golden ratio's fraction (Knuth, The Art of Computer Programming, volume 3, section 6.4): no period.
    let scattered = |i: u64| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize;
    (0..).zip(all).filter(|(i, _)| scattered(*i) % parts == part % parts).map(|(_, case)| case).collect()
}
