//! The products to measure.

use crate::description::matmul::{ElementTypes, MatMul};
use crate::error::Result;

/// How many products, and the largest dimension.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) scattered: usize,
    pub(crate) maximum: usize,
}

pub(crate) const QUICK: Extent = Extent { scattered: 120, maximum: 2048 };
pub(crate) const FULL: Extent = Extent { scattered: 360, maximum: 4096 };

/// The elements that an operand may have: 16 Mi, 64 MiB of f32.
const ELEMENTS: u64 = 1 << 24;

/// The multiply-adds that a product may have: those of 2048^3.
const WORK: u64 = 1 << 33;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    constant_b: bool,
}

impl Shape {
    pub(crate) fn product(&self, types: ElementTypes) -> Result<MatMul> {
        MatMul::builder(self.m, self.n, self.k)
            .batch(self.batch)
            .constant(self.constant_b)
            .types(types)
            .build()
    }

    fn work(&self) -> u64 {
        [self.batch, self.m, self.n, self.k].map(|size| size as u64).into_iter().product()
    }

    fn fits(&self) -> bool {
        let Self { batch, m, n, k, .. } = *self;
        let elements = |rows: usize, cols: usize| batch as u64 * rows as u64 * cols as u64;
        self.work() <= WORK && [elements(m, k), elements(k, n), elements(m, n)].iter().all(|&x| x <= ELEMENTS)
    }
}

/// How often one goes through the list from the least work to the most, each time over others.
pub(crate) const PASSES: usize = 4;

/// Shapes that cover the logarithms of all dimensions evenly, and square ones: in [`PASSES`] passes, the least
/// work first in each, so that whoever stops after one has some of every kind.
///
/// Every size of product from one to the largest dimension matters, and all ratios of dimensions; a grid
/// of all combinations would have too many. The additive recurrence of the generalised golden ratio covers
/// space more evenly than random numbers do (M. Roberts, "The Unreasonable Effectiveness of Quasirandom
/// Sequences", 2018).
pub(crate) fn shapes(extent: Extent) -> Vec<Shape> {
    let mut shapes = Vec::new();
    let mut square = 1;
    while square <= extent.maximum {
        for constant_b in [false, true] {
            shapes.push(Shape { batch: 1, m: square, n: square, k: square, constant_b });
        }
        square *= 2;
    }
    // The root of x^6 = x + 1.
    let ratio = 1.134_724_138_401_519_5_f64;
    let mut index = 0u32;
    let wanted = shapes.len() + extent.scattered;
    while shapes.len() < wanted {
        index += 1;
        let place = |power: i32| (0.5 + f64::from(index) * ratio.powi(-power)).fract();
        let shape = Shape {
            batch: batch(place(4)),
            m: dimension(place(1), extent.maximum),
            n: dimension(place(2), extent.maximum),
            k: dimension(place(3), extent.maximum),
            constant_b: place(5) < 0.5,
        };
        if shape.fits() && !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    shapes.retain(Shape::fits);
    shapes.sort_by_key(Shape::work);
    (0..PASSES).flat_map(|pass| shapes.iter().skip(pass).step_by(PASSES).copied()).collect()
}

/// 1 for an eighth of the places, where the exponent is negative, then evenly in the logarithm.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn dimension(place: f64, maximum: usize) -> usize {
    (maximum as f64).powf((place - 0.125) / 0.875).round().max(1.0) as usize
}

/// 1 for three quarters of the places, then up to 32.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn batch(place: f64) -> usize {
    if place < 0.75 { 1 } else { 32f64.powf((place - 0.75) / 0.25).round().max(2.0) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_many_different_and_cover_the_range() {
        for extent in [QUICK, FULL] {
            let shapes = shapes(extent);
            assert!(shapes.len() >= extent.scattered);
            let unique: std::collections::HashSet<_> = shapes.iter().collect();
            assert_eq!(unique.len(), shapes.len());
            let passes = shapes.chunk_by(|one, next| one.work() <= next.work());
            assert!(passes.clone().count() <= PASSES);
            for pass in passes {
                let octaves: Vec<u32> = pass.iter().map(|shape| shape.work().ilog2()).collect();
                assert!(octaves[0] <= 4 && octaves[octaves.len() - 1] >= 27, "{octaves:?}");
                assert!(octaves.windows(2).all(|pair| pair[1] - pair[0] <= 4), "{octaves:?}");
            }
            for dimension in [|s: &Shape| s.m, |s: &Shape| s.n, |s: &Shape| s.k] {
                let values: Vec<usize> = shapes.iter().map(dimension).collect();
                for octave in 0..extent.maximum.ilog2() {
                    let count = values.iter().filter(|value| value.ilog2() == octave).count();
                    assert!(count >= extent.scattered / 30, "{count} in octave {octave}");
                }
            }
            assert!(shapes.iter().filter(|shape| shape.batch > 1).count() >= extent.scattered / 10);
            assert!(shapes.iter().filter(|shape| shape.constant_b).count() >= extent.scattered / 3);
        }
    }

    fn shape(batch: usize, m: usize, n: usize, k: usize) -> Shape {
        Shape { batch, m, n, k, constant_b: false }
    }

    #[test]
    fn what_is_too_large_does_not_fit() {
        assert_eq!(shape(2, 3, 5, 7).work(), 210);
        for fits in [shape(1, 2048, 2048, 2048), shape(1, 4096, 1, 4096), shape(2, 1, 4096, 2048)] {
            assert!(fits.fits(), "{fits:?}");
        }
        // The work of the first, an operand of each of the others.
        let beyond = [
            shape(1, 2048, 2049, 2048),
            shape(1, 8192, 1, 4096),
            shape(1, 1, 8192, 4096),
            shape(1, 8192, 4096, 1),
            shape(2, 4096, 1, 4096),
        ];
        for beyond in beyond {
            assert!(!beyond.fits(), "{beyond:?}");
        }
    }

    #[test]
    fn places_become_dimensions_and_batches() {
        let dimensions = [0.0, 0.125, 0.5625, 1.0].map(|place| dimension(place, 2048));
        assert_eq!(dimensions, [1, 1, 45, 2048]);
        assert_eq!([0.0, 0.74, 0.75, 0.875, 1.0].map(batch), [1, 1, 2, 6, 32]);
    }

    #[test]
    fn squares_and_as_many_scattered_shapes_as_wanted() {
        for (extent, squares, beyond) in [(QUICK, 12, 0), (FULL, 13, 1)] {
            let shapes = shapes(extent);
            assert_eq!(shapes.len(), 2 * (squares - beyond) + extent.scattered);
            for square in (0..squares - beyond).map(|octave| 1 << octave) {
                for constant_b in [false, true] {
                    assert!(shapes.contains(&Shape { constant_b, ..shape(1, square, square, square) }));
                }
            }
        }
        // The first of the sequence: its places are the fractions of 0.5 + ratio^-1, ratio^-2 and so on.
        assert!(shapes(QUICK).contains(&Shape { constant_b: true, ..shape(1, 9, 4, 2) }));
    }
}
