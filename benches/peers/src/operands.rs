//! The memory that all candidates of a case share.

use crate::shapes::Shape;

const FLOATS_PER_LINE: usize = 16;
const FLOATS_PER_PAGE: usize = 1024;

/// f32 memory at a chosen cache line of a 4 KiB page.
pub(crate) struct Buffer {
    storage: Vec<f32>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// `line` keeps the operands' addresses apart modulo 4 KiB: a load that looks like an earlier
    /// store by its low bits is delayed.
    pub(crate) fn zeros(length: usize, line: usize) -> Self {
        let storage = vec![0f32; length + 2 * FLOATS_PER_PAGE];
        let misplaced = (storage.as_ptr() as usize / size_of::<f32>()) % FLOATS_PER_PAGE;
        let start = (FLOATS_PER_PAGE - misplaced) + line * FLOATS_PER_LINE % FLOATS_PER_PAGE;
        Self { storage, start, length }
    }

    fn random(length: usize, line: usize, seed: u64) -> Self {
        let mut buffer = Self::zeros(length, line);
        let mut random = Random(seed);
        buffer.as_mut_slice().fill_with(|| random.next());
        buffer
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.storage[self.start..self.start + self.length]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.storage[self.start..self.start + self.length]
    }
}

/// Numbers in [-1, 1): SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // 24 bits: exact in f32.
        ((z >> 40) as f32) / (1u32 << 23) as f32 - 1.0
    }
}

/// Row-major A, B, bias and C of one shape.
pub(crate) struct Operands {
    pub(crate) shape: Shape,
    pub(crate) a: Buffer,
    /// Equal matrices at different places: more than one makes B cold.
    pub(crate) b: Vec<Buffer>,
    pub(crate) bias: Buffer,
    pub(crate) c: Buffer,
}

impl Operands {
    pub(crate) fn new(shape: Shape, copies_of_b: usize) -> Self {
        let Shape { m, n, k } = shape;
        let first = Buffer::random(k * n, 5, 2);
        let mut b = vec![first];
        while b.len() < copies_of_b {
            let mut copy = Buffer::zeros(k * n, 5);
            copy.as_mut_slice().copy_from_slice(b[0].as_slice());
            b.push(copy);
        }
        Self {
            shape,
            a: Buffer::random(m * k, 0, 1),
            b,
            bias: Buffer::random(n, 21, 3),
            c: Buffer::zeros(m * n, 41),
        }
    }
}

/// The copies of B that must be rotated for none to stay in a cache of `cache_bytes`.
pub(crate) fn copies_for_cold(b_bytes: usize, cache_bytes: usize) -> usize {
    (4 * cache_bytes).div_ceil(b_bytes.max(1)).clamp(2, 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_lie_where_asked() {
        for line in [0, 5, 63] {
            let buffer = Buffer::zeros(100, line);
            assert_eq!(buffer.as_slice().as_ptr() as usize % 4096, line * 64);
            assert_eq!(buffer.as_slice().len(), 100);
        }
    }

    #[test]
    fn copies_of_b_are_equal_and_apart() {
        let operands = Operands::new(Shape::new(2, 3, 4), 3);
        assert_eq!(operands.b.len(), 3);
        assert_eq!(operands.b[0].as_slice(), operands.b[2].as_slice());
        assert!(operands.b[0].as_slice().iter().all(|x| (-1.0..1.0).contains(x)));
        assert_ne!(operands.b[0].as_slice().as_ptr(), operands.b[1].as_slice().as_ptr());
    }

    #[test]
    fn cold_copies_exceed_the_cache() {
        assert_eq!(copies_for_cold(10, 100), 40);
        assert_eq!(copies_for_cold(1 << 30, 100), 2);
    }
}
