//! Allocation that fails with an error: sizes come from input.

use crate::error::{Error, Result};

/// An empty vector with room for `count` elements.
pub(crate) fn with_capacity<T>(count: usize, what: &'static str) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    reserve(&mut vec, count, what)?;
    Ok(vec)
}

/// Room for `more` elements behind those of a vector.
pub(crate) fn reserve<T>(vec: &mut Vec<T>, more: usize, what: &'static str) -> Result<()> {
    let bytes = (vec.len().saturating_add(more)).saturating_mul(size_of::<T>());
    vec.try_reserve_exact(more).map_err(|_| Error::OutOfMemory { what, bytes })
}

/// A vector of `count` copies of `value`.
pub(crate) fn filled<T: Clone>(count: usize, value: T, what: &'static str) -> Result<Vec<T>> {
    let mut vec = with_capacity(count, what)?;
    vec.resize(count, value);
    Ok(vec)
}

/// A copy of `source`.
pub(crate) fn copied<T: Clone>(source: &[T], what: &'static str) -> Result<Vec<T>> {
    let mut vec = with_capacity(source.len(), what)?;
    vec.extend_from_slice(source);
    Ok(vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "an interpreter ends where memory does")]
    fn absurd_sizes_are_errors() {
        assert!(matches!(
            filled(usize::MAX / 16, 0f64, "a test"),
            Err(Error::OutOfMemory { what: "a test", .. })
        ));
    }
}
