//! The products that are measured.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;

/// The dimensions of a product: A is `m` x `k`, B is `k` x `n`, both for each item of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

impl Shape {
    pub(crate) const fn new(m: usize, n: usize, k: usize) -> Self {
        Self { batch: 1, m, n, k }
    }

    pub(crate) const fn square(size: usize) -> Self {
        Self::new(size, size, size)
    }

    /// So many products, each with an A and a B of its own.
    pub(crate) const fn batch(self, batch: usize) -> Self {
        Self { batch, ..self }
    }

    pub(crate) const fn is_square(&self) -> bool {
        self.m == self.n && self.n == self.k
    }

    pub(crate) fn flops(&self) -> f64 {
        2.0 * self.batch as f64 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch > 1 {
            write!(f, "{}*", self.batch)?;
        }
        if self.is_square() {
            write!(f, "{}^3", self.m)
        } else {
            write!(f, "{}x{}x{}", self.m, self.n, self.k)
        }
    }
}

/// `64^3` or `32x3072x768`, in the order m, n, k, and `100*64^3` for a batch of 100.
impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no shape: write SIZE^3 or MxNxK, and COUNT*SIZE^3 for a batch");
        let number = |part: &str| match part.parse::<usize>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(wrong()),
        };
        let (batch, item) = match text.split_once('*') {
            Some((batch, item)) => (number(batch)?, item),
            None => (1, text),
        };
        if let Some(size) = item.strip_suffix("^3") {
            return Ok(Self::square(number(size)?).batch(batch));
        }
        let parts: Vec<&str> = item.split('x').collect();
        match parts[..] {
            [m, n, k] => Ok(Self::new(number(m)?, number(n)?, number(k)?).batch(batch)),
            _ => Err(wrong()),
        }
    }
}

/// The types of A and B; C and bias are f32 in all but f64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Precision {
    F32,
    /// Summed in f32.
    Bf16,
    /// Summed in f32.
    F16,
    /// i8, summed in i32.
    Int8,
    /// An f32 A, and a B of 8-bit or 4-bit integers with a scale for every group.
    Weights,
    /// f64 throughout.
    F64,
}

impl Precision {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Weights => "weights",
            Self::F64 => "f64",
        }
    }

    /// The bits of an element of B, the narrowest where there are several.
    const fn b_bits(self) -> usize {
        match self {
            Self::F64 => 64,
            Self::F32 => 32,
            Self::Bf16 | Self::F16 => 16,
            Self::Int8 => 8,
            Self::Weights => 4,
        }
    }
}

/// A precision and a number of threads.
pub(crate) type Group = (Precision, usize);

/// A shape under one set of conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Case {
    pub(crate) precision: Precision,
    pub(crate) shape: Shape,
    pub(crate) threads: usize,
    /// Whether every call finds its B in memory rather than in a cache.
    pub(crate) cold: bool,
}

impl Case {
    /// What is plotted and averaged together: a precision and a number of threads.
    pub(crate) const fn group(&self) -> Group {
        (self.precision, self.threads)
    }

    pub(crate) const fn b_bytes(&self) -> usize {
        self.shape.batch * self.shape.n * self.shape.k * self.precision.b_bits() / 8
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.threads == 1 { "" } else { "s" };
        let cold = if self.cold { ", cold B" } else { "" };
        write!(f, "{} {}, {} thread{plural}{cold}", self.precision.name(), self.shape, self.threads)
    }
}

/// The shapes that have targets.
pub(crate) const TARGET_SHAPES: [Shape; 9] = [
    Shape::square(64),
    Shape::square(512),
    Shape::square(2048),
    Shape::new(32, 3072, 768),
    Shape::new(128, 3072, 768),
    Shape::new(1, 3072, 768),
    Shape::square(100),
    Shape::new(127, 511, 255),
    Shape::new(37, 3001, 771),
];

/// Shapes beside them: the layer's second half, scaling from 256 up, the overhead of a call.
pub(crate) const OTHER_SHAPES: [Shape; 4] =
    [Shape::new(32, 768, 3072), Shape::square(256), Shape::square(8), Shape::square(16)];

/// Batches of tiny products, whose overhead counts.
pub(crate) const BATCH_SHAPES: [Shape; 3] =
    [Shape::square(8).batch(4096), Shape::square(16).batch(4096), Shape::square(32).batch(4096)];

/// The shapes that are also run with B cold in memory.
pub(crate) const COLD_SHAPES: [Shape; 2] = [Shape::new(1, 3072, 768), Shape::new(32, 3072, 768)];

/// The sizes of the plot: powers of two and the sizes beside them, tile edges, odd sizes.
pub(crate) fn sweep_sizes() -> Vec<usize> {
    let mut sizes = BTreeSet::from([8, 4096]);
    for exponent in 4..=11 {
        let power = 1usize << exponent;
        sizes.extend([power - 1, power, power + 1, power + power / 2]);
    }
    // Multiples of the heights and widths that register tiles have on the instruction sets at hand.
    for tile in [6, 12, 14, 24, 48] {
        for count in [1, 4, 16] {
            let edge = tile * count;
            sizes.extend([edge - 1, edge, edge + 1]);
        }
    }
    sizes.extend([100, 333, 777, 1000, 1501, 2500]);
    sizes.into_iter().filter(|&size| size >= 8).collect()
}

/// The shapes that quantised weights are for: few rows.
pub(crate) const WEIGHTS_SHAPES: [Shape; 3] =
    [Shape::new(1, 3072, 768), Shape::new(4, 3072, 768), Shape::new(16, 3072, 768)];

/// Every case of a run: one shape's cases follow each other, since they are compared.
pub(crate) fn cases(quick: bool, precisions: &[Precision], only: &[Shape], threads: &[usize]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &precision in precisions {
        for shape in shapes(quick, precision, only) {
            let cold = COLD_SHAPES.contains(&shape) || precision == Precision::Weights;
            for cold in [false, true].into_iter().take(1 + usize::from(cold)) {
                cases.extend(threads.iter().map(|&threads| Case { precision, shape, threads, cold }));
            }
        }
    }
    cases
}

fn shapes(quick: bool, precision: Precision, only: &[Shape]) -> Vec<Shape> {
    if !only.is_empty() {
        return only.to_vec();
    }
    if precision == Precision::Weights {
        return WEIGHTS_SHAPES.to_vec();
    }
    let mut shapes: Vec<Shape> = TARGET_SHAPES.into_iter().chain(OTHER_SHAPES).collect();
    if precision == Precision::F32 {
        shapes.extend(BATCH_SHAPES);
    }
    if !quick {
        let sweep = sweep_sizes().into_iter().map(Shape::square).filter(|shape| !shapes.contains(shape));
        shapes.extend(sweep.collect::<Vec<_>>());
    }
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_parse_as_they_print() {
        for shape in TARGET_SHAPES.into_iter().chain(OTHER_SHAPES).chain(BATCH_SHAPES) {
            assert_eq!(shape.to_string().parse(), Ok(shape));
        }
        assert_eq!("7x8x9".parse(), Ok(Shape::new(7, 8, 9)));
        assert_eq!("2*7x8x9".parse(), Ok(Shape::new(7, 8, 9).batch(2)));
        for wrong in ["", "8", "0*8^3", "*8^3", "2*3*8^3", "8^2", "0^3", "8x8", "1x2x3x4", "ax2x3", "1x0x3"] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn quick_cases_cover_the_targets_warm_cold_and_threaded() {
        let cases = cases(true, &[Precision::F32, Precision::Int8], &[], &[1, 2]);
        for shape in TARGET_SHAPES {
            for threads in [1, 2] {
                for precision in [Precision::F32, Precision::Int8] {
                    assert!(cases.contains(&Case { precision, shape, threads, cold: false }));
                }
            }
        }
        assert_eq!(cases.iter().filter(|case| case.cold).count(), 8);
        assert_eq!(cases.iter().collect::<BTreeSet<_>>().len(), cases.len());
    }

    #[test]
    fn the_sweep_spans_8_to_4096_without_repeats() {
        let sizes = sweep_sizes();
        assert_eq!((sizes[0], sizes[sizes.len() - 1]), (8, 4096));
        assert!(sizes.windows(2).all(|pair| pair[0] < pair[1]));
        for size in [15, 16, 17, 511, 512, 513, 2048, 333] {
            assert!(sizes.contains(&size), "{size}");
        }
        let all = cases(false, Precision::value_variants(), &[], &[1]);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn cases_print_their_conditions() {
        let case = Case { precision: Precision::Bf16, shape: Shape::new(1, 2, 3), threads: 2, cold: true };
        assert_eq!(case.to_string(), "bf16 1x2x3, 2 threads, cold B");
        assert_eq!(case.b_bytes(), 12);
    }
}
