//! The memory that all candidates of a case share.

use ane_matmul::quantize::WeightScheme;
use ane_matmul::{AnyView, TensorView, Weights};
use half::{bf16, f16};

use crate::shapes::{Case, Precision, Shape};

const LINE_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;

/// Memory at a chosen cache line of a 4 KiB page.
#[derive(Default)]
pub(crate) struct Buffer<T = f32> {
    storage: Vec<T>,
    start: usize,
    length: usize,
}

impl<T: Copy + Default> Buffer<T> {
    /// `line` keeps the operands' addresses apart modulo 4 KiB: a load that looks like an earlier
    /// store by its low bits is delayed.
    pub(crate) fn zeros(length: usize, line: usize) -> Self {
        let per_page = PAGE_BYTES / size_of::<T>();
        let per_line = LINE_BYTES / size_of::<T>();
        let storage = vec![T::default(); length + 2 * per_page];
        let misplaced = (storage.as_ptr() as usize / size_of::<T>()) % per_page;
        let start = (per_page - misplaced) + line * per_line % per_page;
        Self { storage, start, length }
    }

    fn of(values: impl ExactSizeIterator<Item = T>, line: usize) -> Self {
        let mut buffer = Self::zeros(values.len(), line);
        for (place, value) in buffer.as_mut_slice().iter_mut().zip(values) {
            *place = value;
        }
        buffer
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        &self.storage[self.start..self.start + self.length]
    }

    /// The memory as whole words, to read: what is left of a last word is not among them.
    pub(crate) fn words(&self) -> &[f32] {
        let words = self.length * size_of::<T>() / size_of::<f32>();
        // SAFETY: the start is that of a cache line, the elements are plain numbers, and so many words lie
        // within them.
        unsafe { std::slice::from_raw_parts(self.as_slice().as_ptr().cast(), words) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
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

/// A, and equal copies of B at different places.
pub(crate) struct Pair<T> {
    pub(crate) a: Buffer<T>,
    pub(crate) b: Vec<Buffer<T>>,
}

/// B in the integers of weight-only products, in as many copies.
pub(crate) struct QuantizedB {
    pub(crate) int8: Vec<Weights>,
    pub(crate) int4: Vec<Weights>,
}

/// A, B and C of f64; C is this one.
pub(crate) struct Wide {
    pub(crate) pair: Pair<f64>,
    pub(crate) c: Buffer<f64>,
}

/// The operands as a precision other than f32 has them; their numbers are those of the f32 ones.
pub(crate) enum Narrow {
    Nothing,
    Bf16(Pair<bf16>),
    F16(Pair<f16>),
    Int8(Pair<i8>),
    Weights(QuantizedB),
    F64(Wide),
}

/// Row-major A, B, bias and C of one case; the items of a batch lie one after the other.
pub(crate) struct Operands {
    pub(crate) shape: Shape,
    pub(crate) a: Buffer,
    /// Equal matrices at different places, more than one where B is cold; one alone beside narrow ones.
    pub(crate) b: Vec<Buffer>,
    pub(crate) bias: Buffer,
    pub(crate) c: Buffer,
    pub(crate) narrow: Narrow,
}

const A_LINE: usize = 0;
const B_LINE: usize = 5;
const C_LINE: usize = 41;

impl Operands {
    /// # Errors
    /// Says why weights could not be quantised.
    pub(crate) fn new(case: &Case, copies_of_b: usize) -> Result<Self, String> {
        let Shape { batch, m, n, k } = case.shape;
        let numbers = |length: usize, seed| {
            let mut random = Random(seed);
            (0..length).map(move |_| rounded(case.precision, random.next()))
        };
        let a = Buffer::of(numbers(batch * m * k, 1), A_LINE);
        let mut b = Buffer::of(numbers(batch * k * n, 2), B_LINE);
        let narrow = match case.precision {
            Precision::F32 => Narrow::Nothing,
            Precision::Bf16 => Narrow::Bf16(pair(&a, &b, copies_of_b, bf16::from_f32)),
            Precision::F16 => Narrow::F16(pair(&a, &b, copies_of_b, f16::from_f32)),
            Precision::Int8 => Narrow::Int8(pair(&a, &b, copies_of_b, |x| x as i8)),
            Precision::F64 => Narrow::F64(Wide {
                pair: pair(&a, &b, copies_of_b, f64::from),
                c: Buffer::zeros(m * n, C_LINE),
            }),
            Precision::Weights => {
                let weights = quantized(&mut b, k, n, copies_of_b);
                Narrow::Weights(weights.map_err(|error| error.to_string())?)
            }
        };
        let copies = if matches!(narrow, Narrow::Nothing) { copies_of_b } else { 1 };
        let more: Vec<Buffer> =
            (1..copies).map(|_| Buffer::of(b.as_slice().iter().copied(), B_LINE)).collect();
        Ok(Self {
            shape: case.shape,
            a,
            b: std::iter::once(b).chain(more).collect(),
            bias: Buffer::of(numbers(n, 3), 21),
            c: Buffer::zeros(batch * m * n, C_LINE),
            narrow,
        })
    }
}

impl Operands {
    /// So that what C held before is seen where it is read.
    pub(crate) fn spoil_c(&mut self) {
        match &mut self.narrow {
            Narrow::F64(wide) => wide.c.as_mut_slice().fill(f64::NAN),
            _ => self.c.as_mut_slice().fill(f32::NAN),
        }
    }

    pub(crate) fn copies_of_b(&self) -> usize {
        match &self.narrow {
            Narrow::Nothing => self.b.len(),
            Narrow::Bf16(pair) => pair.b.len(),
            Narrow::F16(pair) => pair.b.len(),
            Narrow::Int8(pair) => pair.b.len(),
            Narrow::F64(wide) => wide.pair.b.len(),
            Narrow::Weights(weights) => weights.int4.len(),
        }
    }
}

/// A number that the precision has.
fn rounded(precision: Precision, x: f32) -> f32 {
    match precision {
        Precision::F32 | Precision::F64 | Precision::Weights => x,
        Precision::Bf16 => bf16::from_f32(x).to_f32(),
        Precision::F16 => f16::from_f32(x).to_f32(),
        Precision::Int8 => (x * 127.0).round(),
    }
}

fn pair<T: Copy + Default>(a: &Buffer, b: &Buffer, copies: usize, narrow: impl Fn(f32) -> T) -> Pair<T> {
    let narrow = |from: &Buffer, line| Buffer::of(from.as_slice().iter().map(|&x| narrow(x)), line);
    Pair { a: narrow(a, A_LINE), b: (0..copies).map(|_| narrow(b, B_LINE)).collect() }
}

/// Quantises B to 4 bits, leaves in it what that stands for, and has the same numbers in 8 bits.
fn quantized(b: &mut Buffer, k: usize, n: usize, copies: usize) -> ane_matmul::Result<QuantizedB> {
    let (int4, _) = Weights::new(TensorView::new(b.as_slice(), k, n)?)?.quantize(&WeightScheme::INT4)?;
    b.as_mut_slice().copy_from_slice(int4.dequantize()?.data());
    let element = |index: usize| int4.view().get(0, index / n, index % n).map_or(0, |x| x as i8);
    let integers: Vec<i8> = (0..k * n).map(element).collect();
    let scales = int4.scales().expect("quantised weights have scales");
    // Each copy is packed to memory of its own.
    let copies_of = |b: AnyView<'_>| -> ane_matmul::Result<Vec<Weights>> {
        (0..copies).map(|_| Weights::new(b)?.with_scales(int4.scheme(), scales)).collect()
    };
    let int8 = copies_of(TensorView::new(&integers, k, n)?.into())?;
    Ok(QuantizedB { int8, int4: copies_of(int4.view())? })
}

/// The copies of B that must be rotated for none to stay in a cache of `cache_bytes`.
pub(crate) fn copies_for_cold(b_bytes: usize, cache_bytes: usize) -> usize {
    (4 * cache_bytes).div_ceil(b_bytes.max(1)).clamp(2, 256)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operands(precision: Precision, shape: Shape, copies: usize) -> Operands {
        Operands::new(&Case { precision, shape, threads: 1, cold: copies > 1 }, copies).unwrap()
    }

    #[test]
    fn buffers_lie_where_asked() {
        for line in [0, 5, 63] {
            let buffer = Buffer::<f32>::zeros(100, line);
            assert_eq!(buffer.as_slice().as_ptr() as usize % 4096, line * 64);
            assert_eq!(buffer.as_slice().len(), 100);
            assert_eq!(Buffer::<i8>::zeros(100, line).as_slice().as_ptr() as usize % 4096, line * 64);
        }
    }

    #[test]
    fn copies_of_b_are_equal_and_apart() {
        let operands = operands(Precision::F32, Shape::new(2, 3, 4), 3);
        assert_eq!(operands.b.len(), 3);
        assert_eq!(operands.b[0].as_slice(), operands.b[2].as_slice());
        assert!(operands.b[0].as_slice().iter().all(|x| (-1.0..1.0).contains(x)));
        assert_ne!(operands.b[0].as_slice().as_ptr(), operands.b[1].as_slice().as_ptr());
    }

    #[test]
    fn narrow_numbers_are_those_of_f32() {
        let shape = Shape::new(2, 30, 400);
        let of_bf16 = operands(Precision::Bf16, shape, 2);
        let Narrow::Bf16(pair) = &of_bf16.narrow else { panic!("bf16 was asked for") };
        assert_eq!((of_bf16.b.len(), pair.b.len()), (1, 2));
        assert!(pair.b[1].as_slice().iter().zip(of_bf16.b[0].as_slice()).all(|(x, y)| x.to_f32() == *y));
        let of_f16 = operands(Precision::F16, shape, 1);
        let Narrow::F16(pair) = &of_f16.narrow else { panic!("f16 was asked for") };
        assert!(pair.a.as_slice().iter().zip(of_f16.a.as_slice()).all(|(x, y)| x.to_f32() == *y));
        let of_int8 = operands(Precision::Int8, shape, 1);
        let Narrow::Int8(pair) = &of_int8.narrow else { panic!("int8 was asked for") };
        assert!(pair.a.as_slice().iter().zip(of_int8.a.as_slice()).all(|(&x, &y)| f32::from(x) == y));
        assert!(pair.a.as_slice().iter().any(|&x| x < -100));
        let of_weights = operands(Precision::Weights, shape, 1);
        let Narrow::Weights(weights) = &of_weights.narrow else { panic!("weights were asked for") };
        for weights in [&weights.int8[0], &weights.int4[0]] {
            assert_eq!(weights.scheme(), WeightScheme::INT4.scheme);
            assert_eq!(weights.dequantize().unwrap().data(), of_weights.b[0].as_slice());
        }
    }

    #[test]
    fn cold_copies_exceed_the_cache() {
        assert_eq!(copies_for_cold(10, 100), 40);
        assert_eq!(copies_for_cold(1 << 30, 100), 2);
    }
}
