//! Freivalds' method on a product without an activation, in one pass over each operand.

use std::sync::Arc;

use crate::alloc;
use crate::description::matmul::MatMul;
use crate::error::{Error, Result};
use crate::executor::Inputs;
use crate::operands::shared_buffer::{HostMemory, SharedBuffer};
use crate::operands::view::AnyView;
use crate::operands::weights::Weights;
use crate::random::Random;
use crate::verify::accuracy::Bounds;
use crate::verify::self_check::multi_vector_gemv::{F32Matrix, Kernels, SUMS, VECTORS, Vectors};

const WHAT: &str = "a self-check's vectors";

/// Numbers from one vector to the next: an odd number of cache lines, so that all vectors fit the
/// first-level cache side by side.
fn stride(length: usize) -> usize {
    length.next_multiple_of(16) | 16
}

/// Room for all vectors of `length` numbers: for each pass `VECTORS` of them and one of weights.
fn vectors(length: usize, passes: usize) -> Result<SharedBuffer> {
    let count = stride(length)
        .checked_mul((VECTORS + 1) * size_of::<f32>())
        .and_then(|bytes| bytes.checked_mul(passes))
        .ok_or(Error::SizeOverflow { what: "vectors x length" })?;
    Ok(SharedBuffer::new(Box::new(HostMemory::zeroed(count, WHAT)?)))
}

/// The vectors of one pass.
fn pass(buffer: &SharedBuffer, length: usize, pass: usize) -> Vectors<'_> {
    let stride = stride(length);
    let start = pass * (VECTORS + 1) * stride;
    Vectors { data: &buffer.elements()[start..][..(VECTORS + 1) * stride], stride }
}

/// The random vectors r, and B r where B is constant.
#[derive(Debug)]
pub(super) struct Projections {
    passes: usize,
    /// For C; the weights are 1.
    random: SharedBuffer,
    /// For each item of a constant B; a single one where all share it.
    constant: Option<Vec<Side>>,
}

/// B r of one item, and the sums of B's rows of magnitudes.
#[derive(Debug)]
struct Side {
    /// For A.
    vectors: SharedBuffer,
    /// The same in float64, for each pass k of them, without the columns left out.
    exact: Vec<[f64; SUMS]>,
    /// Columns of B that hold NaN or infinity.
    skip: Vec<bool>,
    /// Whether something does not fit f32: a column is left out, or B r overflows.
    beyond_f32: bool,
}

impl Projections {
    pub(super) fn new(
        product: &MatMul,
        weights: Option<&Weights>,
        vector_count: usize,
        random: &mut Random,
    ) -> Result<Self> {
        let passes = vector_count.div_ceil(VECTORS);
        let (n, k) = (product.n(), product.k());
        let mut buffer = vectors(n, passes)?;
        let stride = stride(n);
        for vectors in buffer.elements_mut::<f32>().chunks_exact_mut((VECTORS + 1) * stride.max(1)) {
            for vector in vectors.chunks_exact_mut(stride).take(VECTORS) {
                vector[..n].fill_with(|| sign_and_size(random));
            }
            vectors[VECTORS * stride..][..n].fill(1.0);
        }
        let mut projections = Self { passes, random: buffer, constant: None };
        if let Some(weights) = weights {
            let shared = product.b().batch_stride() == 0;
            let items = if shared { product.batch().min(1) } else { product.batch() };
            let mut converted = converted(product, weights.view())?;
            let mut sides = alloc::with_capacity(items, WHAT)?;
            for item in 0..items {
                let mut side = Side::new(n, k, passes)?;
                side.fill(&projections, product, weights.view(), item, &mut converted);
                sides.push(side);
            }
            projections.constant = Some(sides);
        }
        Ok(projections)
    }
}

/// A number from [0.5, 1) of either sign. Signs make each vector miss an error with probability 1/2 at
/// most; sizes, which a fault does not know, keep equal errors from cancelling.
#[allow(clippy::cast_precision_loss, reason = "23 bits fit f32")]
pub(super) fn sign_and_size(random: &mut Random) -> f32 {
    let bits = random.bits();
    let size = 0.5 + (bits >> 41) as f32 * (f32::EPSILON / 2.0);
    if bits & 1 == 0 { size } else { -size }
}

/// Room to convert a row of what is not f32.
fn converted(product: &MatMul, b: AnyView<'_>) -> Result<Vec<f32>> {
    let longest = product.n().max(product.k()).max(product.m());
    let f32_only = matches!(b, AnyView::F32(_));
    alloc::filled(if f32_only { 0 } else { longest }, 0.0, WHAT)
}

impl Side {
    fn new(n: usize, k: usize, passes: usize) -> Result<Self> {
        let exact = k.checked_mul(passes).ok_or(Error::SizeOverflow { what: "k x vectors" })?;
        Ok(Self {
            vectors: vectors(k, passes)?,
            exact: alloc::filled(exact, [0.0; SUMS], WHAT)?,
            skip: alloc::filled(n, false, WHAT)?,
            beyond_f32: false,
        })
    }

    #[allow(clippy::cast_possible_truncation, reason = "rounded, and checked for overflow")]
    fn fill(
        &mut self,
        projections: &Projections,
        product: &MatMul,
        b: AnyView<'_>,
        item: usize,
        converted: &mut [f32],
    ) {
        let (n, k) = (product.n(), product.k());
        let matrix = Matrix { view: b, item, rows: k, cols: n, transposed: product.transpose_b() };
        self.beyond_f32 = false;
        self.skip.fill(false);
        self.exact.fill([0.0; SUMS]);
        let stride = stride(k);
        for index in 0..projections.passes {
            let exact = &mut self.exact[index * k..][..k];
            matrix.gemv(&pass(&projections.random, n, index), true, exact, converted);
            let first = index * (VECTORS + 1) * stride;
            let vectors = &mut self.vectors.elements_mut::<f32>()[first..];
            for (p, sums) in exact.iter().enumerate() {
                for (i, &sum) in sums.iter().enumerate() {
                    vectors[i * stride + p] = sum as f32;
                    self.beyond_f32 |= !(sum as f32).is_finite();
                }
            }
        }
        if self.beyond_f32 {
            for p in 0..k {
                for (col, skip) in self.skip.iter_mut().enumerate() {
                    *skip |= !matrix.get(p, col).is_finite();
                }
            }
            for index in 0..projections.passes {
                let vectors = pass(&projections.random, n, index);
                for (p, sums) in self.exact[index * k..][..k].iter_mut().enumerate() {
                    *sums = matrix.row_exactly(p, &self.skip, |i, col| {
                        f64::from(vectors.data[i * vectors.stride + col])
                    });
                }
            }
        }
    }
}

/// A matrix of one item, as the product sees it.
#[derive(Debug, Clone, Copy)]
struct Matrix<'a> {
    view: AnyView<'a>,
    item: usize,
    rows: usize,
    cols: usize,
    transposed: bool,
}

impl Matrix<'_> {
    fn get(&self, row: usize, col: usize) -> f64 {
        let (row, col) = if self.transposed { (col, row) } else { (row, col) };
        self.view.get(self.item, row, col).unwrap_or(f64::NAN)
    }

    /// [`Kernels::gemv`]; what is not f32 is converted run by run.
    #[allow(clippy::cast_possible_truncation, reason = "f16 and bf16 are exact in f32")]
    fn gemv(&self, vectors: &Vectors<'_>, sizes: bool, sums: &mut [[f64; SUMS]], converted: &mut [f32]) {
        let kernels = Kernels::best();
        let Self { view, item, rows, cols, transposed } = *self;
        if let AnyView::F32(view) = view {
            let (stride, start) = (view.layout().leading_dimension(), view.layout().item_offset(item));
            let data = view.data().get(start..).unwrap_or_default();
            kernels.gemv(&F32Matrix { data, stride, rows, cols, transposed }, vectors, sizes, sums);
            return;
        }
        let (runs, run) = if transposed { (cols, rows) } else { (rows, cols) };
        for index in 0..runs {
            for (at, x) in converted[..run].iter_mut().enumerate() {
                *x = view.get(item, index, at).unwrap_or(f64::NAN) as f32;
            }
            let data = &converted[..run];
            if transposed {
                let term = Vectors { data: &vectors.data[index..], stride: vectors.stride };
                let run = F32Matrix { data, stride: rows, rows, cols: 1, transposed };
                kernels.gemv(&run, &term, sizes, sums);
            } else {
                let run = F32Matrix { data, stride: cols, rows: 1, cols, transposed };
                kernels.gemv(&run, vectors, sizes, &mut sums[index..]);
            }
        }
    }

    /// The products of a row with vectors in float64, and its sum of weighted magnitudes; columns in
    /// `skip` are left out.
    fn row_exactly(&self, row: usize, skip: &[bool], vector: impl Fn(usize, usize) -> f64) -> [f64; SUMS] {
        let mut sums = [0.0; SUMS];
        for col in (0..self.cols).filter(|&col| !skip.get(col).copied().unwrap_or(false)) {
            let x = self.get(row, col);
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = if i == VECTORS { x.abs() } else { x };
                *sum += x * vector(i, col);
            }
        }
        sums
    }
}

/// What Freivalds' method leaves to be recomputed exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Suspects {
    /// Item and row of the largest finite residue, where it is beyond the row's tolerance.
    pub worst: Option<(usize, usize)>,
    /// A random row of those where C holds NaN or infinity, though the inputs there are finite: a fault, or
    /// a sum beyond the range of C's type.
    pub infinite: Option<(usize, usize)>,
    /// A random row of those that no vector can verify: A holds NaN or infinity there.
    pub unverifiable: Option<(usize, usize)>,
}

impl Suspects {
    pub(super) fn rows(self) -> impl Iterator<Item = (usize, usize)> {
        [self.worst, self.infinite, self.unverifiable].into_iter().flatten()
    }
}

/// The state of one executor.
#[derive(Debug)]
pub(super) struct Linear {
    projections: Arc<Projections>,
    /// B r of this run, where B is not constant.
    side: Option<Side>,
    /// Whether C is rounded more coarsely than it is summed: then its rounding counts.
    narrow: bool,
    /// C r, A (B r), and the residual's.
    c: Vec<[f64; SUMS]>,
    ab: Vec<[f64; SUMS]>,
    residual: Vec<[f64; SUMS]>,
    converted: Vec<f32>,
}

/// One item of a run.
struct Item<'a> {
    a: Matrix<'a>,
    c: Matrix<'a>,
    residual: Option<Matrix<'a>>,
    side: &'a Side,
}

/// One choice among those that count the same.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub chosen: Option<(usize, usize)>,
    seen: usize,
}

impl Choice {
    pub(super) fn offer(&mut self, row: (usize, usize), random: &mut Random) {
        self.seen += 1;
        if random.below(self.seen) == 0 {
            self.chosen = Some(row);
        }
    }
}

impl Linear {
    pub(super) fn new(product: &MatMul, projections: Arc<Projections>) -> Result<Self> {
        let rows = |needed: bool| alloc::filled(if needed { product.m() } else { 0 }, [0.0; SUMS], WHAT);
        let types = product.types();
        let f32_only = [types.a, types.b, types.output].iter().all(|&t| t == crate::ElementType::F32);
        let longest = product.n().max(product.k()).max(product.m());
        Ok(Self {
            side: match projections.constant {
                Some(_) => None,
                None => Some(Side::new(product.n(), product.k(), projections.passes)?),
            },
            projections,
            narrow: types.output.unit_roundoff() > types.accumulator.unit_roundoff(),
            c: rows(true)?,
            ab: rows(true)?,
            residual: rows(product.residual().is_some())?,
            converted: alloc::filled(if f32_only { 0 } else { longest }, 0.0, WHAT)?,
        })
    }

    /// Compares C r with alpha A (B r) + bias r + residual r, for all rows and vectors.
    pub(super) fn suspects(
        &mut self,
        product: &MatMul,
        bounds: &Bounds,
        inputs: &Inputs<'_>,
        b: AnyView<'_>,
        c: AnyView<'_>,
        random: &mut Random,
    ) -> Suspects {
        let Self { projections, side, narrow, c: c_sums, ab, residual: residual_sums, converted } = self;
        let (m, n, k) = (c.layout().rows(), product.n(), product.k());
        let mut worst_ratio = 1.0;
        let (mut worst, mut infinite, mut unverifiable) = (None, Choice::default(), Choice::default());
        for item in 0..product.batch() {
            let side = match (&projections.constant, &mut *side) {
                (Some(sides), _) => &sides[item.min(sides.len() - 1)],
                (None, Some(side)) => {
                    if item == 0 || product.b().batch_stride() != 0 {
                        side.fill(projections, product, b, item, converted);
                    }
                    &*side
                }
                (None, None) => continue,
            };
            let matrix = |view, rows, cols, transposed| Matrix { view, item, rows, cols, transposed };
            let operands = Item {
                a: matrix(inputs.a_view(), m, k, product.transpose_a()),
                c: matrix(c, m, n, false),
                residual: inputs.residual_view().map(|view| matrix(view, m, n, false)),
                side,
            };
            for index in 0..projections.passes {
                let vectors = pass(&projections.random, n, index);
                let [c_sums, ab] = [&mut *c_sums, &mut *ab].map(|sums| {
                    sums[..m].fill([0.0; SUMS]);
                    &mut sums[..m]
                });
                // A residue from the sums in f32 is worth nothing where B r is not what it should be.
                if !side.beyond_f32 {
                    operands.c.gemv(&vectors, *narrow, c_sums, converted);
                    operands.a.gemv(&pass(&side.vectors, k, index), true, ab, converted);
                    if let Some(residual) = &operands.residual {
                        residual_sums[..m].fill([0.0; SUMS]);
                        residual.gemv(&vectors, true, &mut residual_sums[..m], converted);
                    }
                }
                let per_col = per_col(n);
                let bias = bias(inputs.bias_view(), &vectors, &side.skip);
                let has_residual = operands.residual.is_some();
                for (row, (c, ab)) in c_sums.iter().zip(&*ab).enumerate() {
                    let residual = if has_residual { residual_sums[row] } else { [0.0; SUMS] };
                    let mut ratio = if side.beyond_f32 {
                        f64::NAN
                    } else {
                        residue(bounds, per_col, [*c, *ab, residual, bias])
                    };
                    if ratio <= worst_ratio {
                        continue;
                    }
                    if ratio.is_nan() {
                        let exact = &side.exact[index * k..][..k];
                        let Some(exactly) = operands.residue_exactly(bounds, row, &vectors, exact, bias)
                        else {
                            if index == 0 {
                                unverifiable.offer((item, row), random);
                            }
                            continue;
                        };
                        ratio = exactly;
                    }
                    if ratio == f64::INFINITY {
                        infinite.offer((item, row), random);
                    } else if ratio > worst_ratio {
                        (worst_ratio, worst) = (ratio, Some((item, row)));
                    }
                }
            }
        }
        Suspects { worst, infinite: infinite.chosen, unverifiable: unverifiable.chosen }
    }
}

impl Item<'_> {
    /// The residue of a row in float64; `None` where an input of the row is NaN or infinite, infinite
    /// where the result is.
    fn residue_exactly(
        &self,
        bounds: &Bounds,
        row: usize,
        vectors: &Vectors<'_>,
        exact: &[[f64; SUMS]],
        bias: [f64; SUMS],
    ) -> Option<f64> {
        let random = |i: usize, col: usize| f64::from(vectors.data[i * vectors.stride + col]);
        let finite = |sums: [f64; SUMS]| sums.iter().all(|x| x.is_finite()).then_some(sums);
        let ab = finite(self.a.row_exactly(row, &[], |i, p| exact[p][i]))?;
        let residual =
            self.residual.map_or([0.0; SUMS], |residual| residual.row_exactly(row, &self.side.skip, random));
        let residual = finite(residual)?;
        let bias = finite(bias)?;
        let c = self.c.row_exactly(row, &self.side.skip, random);
        let ratio = residue(bounds, per_col(self.c.cols), [c, ab, residual, bias]);
        Some(if ratio.is_nan() { f64::INFINITY } else { ratio })
    }
}

/// The bias's products with the vectors and its sum of magnitudes.
fn bias(bias: Option<AnyView<'_>>, vectors: &Vectors<'_>, skip: &[bool]) -> [f64; SUMS] {
    bias.map_or([0.0; SUMS], |view| {
        let cols = view.layout().cols();
        Matrix { view, item: 0, rows: 1, cols, transposed: false }
            .row_exactly(0, skip, |i, col| f64::from(vectors.data[i * vectors.stride + col]))
    })
}

/// 1 / n.
#[allow(clippy::cast_precision_loss, reason = "a share of a bound")]
fn per_col(n: usize) -> f64 {
    1.0 / n as f64
}

/// The largest residue of a row's vectors over what an error of the row's mean error bound shows at
/// least, half of it, since the numbers of r do; `per_col` is 1 / n. NaN where a sum is not finite.
#[inline]
fn residue(bounds: &Bounds, per_col: f64, [c, ab, residual, bias]: [[f64; SUMS]; 4]) -> f64 {
    let size = bounds.alpha.abs() * ab[VECTORS];
    let addends = residual[VECTORS] + bias[VECTORS];
    let bound = bounds.gamma_k * size + bounds.gamma_e * (size + addends) + bounds.u_out * c[VECTORS];
    let tolerance = 0.5 * (bound * per_col + bounds.underflow);
    let residues: [f64; VECTORS] =
        std::array::from_fn(|i| (c[i] - bounds.alpha * ab[i] - residual[i] - bias[i]).abs());
    // f64::max drops NaN, the sum keeps it.
    let largest = residues.iter().fold(0.0, |largest, &residue| f64::max(largest, residue));
    let total: f64 = residues.iter().sum();
    if (total + tolerance).is_finite() { largest / tolerance } else { f64::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operands::tensor::Tensor;

    const M: usize = 4;
    const N: usize = 19;
    const K: usize = 7;

    /// Three passes over a product without a constant B.
    fn setup() -> (MatMul, Tensor<f32>, Tensor<f32>, Projections) {
        let product = MatMul::new(M, N, K).unwrap();
        let a = Tensor::random_normal_f32(M, K, 1.0, 1).unwrap();
        let b = Tensor::random_normal_f32(K, N, 1.0, 2).unwrap();
        let projections = Projections::new(&product, None, 3 * VECTORS, &mut Random::new(3)).unwrap();
        assert_eq!(projections.passes, 3);
        (product, a, b, projections)
    }

    fn fill(product: &MatMul, b: &Tensor<f32>, projections: &Projections) -> Side {
        let mut side = Side::new(N, K, projections.passes).unwrap();
        side.fill(projections, product, b.view().erased(), 0, &mut []);
        side
    }

    #[test]
    fn numbers_of_vectors_have_both_signs_and_all_sizes_from_a_half_on() {
        let mut random = Random::new(1);
        let numbers: Vec<f32> = (0..1000).map(|_| sign_and_size(&mut random)).collect();
        assert!(numbers.iter().all(|x| (0.5..1.0).contains(&x.abs())));
        let positive = numbers.iter().filter(|x| **x > 0.0).count();
        assert!((400..600).contains(&positive), "{positive}");
        for tenth in [0.5, 0.6, 0.7, 0.8, 0.9] {
            assert!(numbers.iter().any(|x| (tenth..tenth + 0.1).contains(&x.abs())), "{tenth}");
        }
    }

    #[test]
    fn every_pass_has_vectors_of_its_own() {
        let (product, _, b, projections) = setup();
        let side = fill(&product, &b, &projections);
        assert!(!side.beyond_f32);
        for index in 0..3 {
            let random = pass(&projections.random, N, index);
            let projected = pass(&side.vectors, K, index);
            for other in 0..index {
                assert_ne!(random.data, pass(&projections.random, N, other).data);
            }
            for p in 0..K {
                for i in 0..VECTORS {
                    let expected: f64 = (0..N)
                        .map(|col| {
                            f64::from(b.data()[p * N + col]) * f64::from(random.data[i * random.stride + col])
                        })
                        .sum();
                    assert!((side.exact[index * K + p][i] - expected).abs() < 1e-5);
                    assert!((f64::from(projected.data[i * projected.stride + p]) - expected).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn a_column_that_overflows_f32_is_known() {
        let (product, _, mut b, projections) = setup();
        b.data_mut()[2 * N..3 * N].fill(f32::MAX);
        assert!(fill(&product, &b, &projections).beyond_f32);
    }

    #[test]
    fn nan_is_recomputed_with_the_vectors_of_each_pass() {
        let (product, mut a, mut b, projections) = setup();
        b.data_mut()[N + 3] = f32::NAN;
        a.data_mut()[2 * K + 4] = f32::INFINITY;
        #[allow(clippy::cast_possible_truncation)]
        let c = Tensor::from_fn(M, N, |row, col| {
            let term = |p: usize| f64::from(a.data()[row * K + p]) * f64::from(b.data()[p * N + col]);
            (0..K).map(term).sum::<f64>() as f32
        })
        .unwrap();
        let mut state = Linear::new(&product, Arc::new(projections)).unwrap();
        let bounds = Bounds::new(&product);
        let mut suspects = |c: &Tensor<f32>| {
            let (inputs, mut random) = (Inputs::new(&a).b(&b), Random::new(4));
            let (b, c) = (b.view().erased(), c.view().erased());
            state.suspects(&product, &bounds, &inputs, b, c, &mut random)
        };
        let mut expected = Suspects { unverifiable: Some((0, 2)), ..Suspects::default() };
        assert_eq!(suspects(&c), expected);
        let mut wrong = c;
        wrong.data_mut()[N + 5] += 0.01;
        expected.worst = Some((0, 1));
        assert_eq!(suspects(&wrong), expected);
        // An infinity hides no other row.
        wrong.data_mut()[3 * N + 5] = f32::INFINITY;
        expected.infinite = Some((0, 3));
        assert_eq!(suspects(&wrong), expected);
    }

    #[test]
    fn each_of_those_that_count_the_same_may_be_chosen() {
        let mut chosen = [0; 3];
        for seed in 0..300 {
            let (mut choice, mut random) = (Choice::default(), Random::new(seed));
            (0..3).for_each(|row| choice.offer((0, row), &mut random));
            chosen[choice.chosen.unwrap().1] += 1;
        }
        assert!(chosen.iter().all(|count| (60..140).contains(count)), "{chosen:?}");
    }

    #[test]
    fn a_residue_is_a_share_of_half_the_mean_bound() {
        let mut bounds = Bounds::new(&MatMul::builder(1, 1, 1).alpha(-2.0).build().unwrap());
        (bounds.gamma_k, bounds.gamma_e, bounds.u_out, bounds.underflow) = (0.25, 0.125, 0.0625, 2.0);
        // |alpha| |A| |B r| is 22, bias and residual are 4, the results 32; of four columns.
        let [ab, residual, bias] = [[-3.0, 0.5, 11.0], [1.5, 1.0, 3.0], [0.5, 2.0, 1.0]];
        let ratio = |c: [f64; SUMS]| residue(&bounds, per_col(4), [c, ab, residual, bias]);
        let tolerance = 0.5 * ((5.5 + 3.25 + 2.0) / 4.0 + 2.0);
        assert_eq!(ratio([8.0, 2.0, 32.0]), 0.0);
        assert_eq!(ratio([8.0 - tolerance, 2.0 + 2.0 * tolerance, 32.0]), 2.0);
        assert_eq!(ratio([8.0 - 4.0 * tolerance, 2.0, 32.0]), 4.0);
        for c in [[f64::NAN, 2.0, 32.0], [8.0, f64::INFINITY, 32.0], [8.0, 2.0, f64::INFINITY]] {
            assert!(ratio(c).is_nan());
        }
    }

    #[cfg(feature = "half")]
    #[test]
    fn weights_in_f16_are_converted_run_by_run() {
        use crate::description::matmul::ElementTypes;
        let b =
            Tensor::from_fn(K, N, |p, col| half::f16::from_f32_const(p as f32 - col as f32 * 0.5)).unwrap();
        let product = MatMul::builder(M, N, K).constant_b(true).types(ElementTypes::F16).build().unwrap();
        let weights = Weights::new(&b).unwrap();
        let projections = Projections::new(&product, Some(&weights), VECTORS, &mut Random::new(5)).unwrap();
        let random = pass(&projections.random, N, 0);
        for (p, sums) in projections.constant.as_ref().unwrap()[0].exact.iter().enumerate() {
            let number = |col: usize| b.data()[p * N + col].to_f64();
            let expected: f64 = (0..N).map(|col| number(col) * f64::from(random.data[col])).sum();
            assert!((sums[0] - expected).abs() < 1e-4, "{} {expected}", sums[0]);
        }
    }
}
