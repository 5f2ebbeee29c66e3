//! Freivalds' method on floating-point products without an activation: multi-vector GEMV in f32, a few
//! vectors in each pass over the operands.

use crate::alloc;
use crate::description::element::ElementType;
use crate::description::matmul::MatMul;
use crate::error::{Error, Result};
use crate::operands::shared_buffer::{HostMemory, SharedBuffer};
use crate::operands::view::AnyView;
use crate::random::Random;
use crate::verify::accuracy::Bounds;
use crate::verify::self_check::freivalds::{
    Arithmetic, Pass, Source, WHAT, per_col, sign_and_size, tolerance,
};
use crate::verify::self_check::multi_vector_gemv::{F32Matrix, Kernels, SUMS, VECTORS, Vectors};

/// The vectors of all passes: for each `VECTORS` of them and one of weights.
#[derive(Debug)]
pub(super) struct Passes {
    buffer: SharedBuffer,
    count: usize,
    /// Numbers from one vector to the next: an odd number of cache lines, so that all vectors fit the
    /// first-level cache side by side.
    stride: usize,
}

impl Passes {
    fn zeroed(length: usize, count: usize) -> Result<Self> {
        let padded = length.checked_next_multiple_of(16).map(|stride| stride | 16);
        let bytes = padded
            .and_then(|stride| stride.checked_mul((VECTORS + 1) * size_of::<f32>()))
            .and_then(|bytes| bytes.checked_mul(count));
        let (Some(stride), Some(bytes)) = (padded, bytes) else {
            return Err(Error::SizeOverflow { what: "vectors x length" });
        };
        Ok(Self { buffer: SharedBuffer::new(Box::new(HostMemory::zeroed(bytes, WHAT)?)), count, stride })
    }

    fn get(&self, pass: usize) -> Vectors<'_> {
        let numbers = (VECTORS + 1) * self.stride;
        Vectors { data: &self.buffer.elements()[pass * numbers..][..numbers], stride: self.stride }
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.buffer.elements_mut().chunks_exact_mut((VECTORS + 1) * self.stride)
    }
}

/// B r of one item, and the sums of B's rows of magnitudes.
#[derive(Debug)]
pub(super) struct Projected {
    /// For A.
    vectors: Passes,
    /// The same in float64, for each pass k of them, without the columns left out.
    exact: Vec<[f64; SUMS]>,
    /// Columns of B that hold NaN or infinity.
    skip: Vec<bool>,
    /// Whether something does not fit f32: a column is left out, or B r overflows.
    beyond_f32: bool,
}

/// The sums of a pass.
#[derive(Debug)]
pub(super) struct Linear {
    /// Whether C is rounded more coarsely than it is summed: then its rounding counts.
    narrow: bool,
    per_col: f64,
    /// C r, A (B r), and the residual's; those of the bias.
    c: Vec<[f64; SUMS]>,
    ab: Vec<[f64; SUMS]>,
    residual: Vec<[f64; SUMS]>,
    bias: [f64; SUMS],
    /// A run of what is not f32.
    converted: Vec<f32>,
}

impl Arithmetic for Linear {
    type Vectors = Passes;
    type Projected = Projected;

    fn new(product: &MatMul) -> Result<Self> {
        let rows = |needed: bool| alloc::filled(if needed { product.m() } else { 0 }, [0.0; SUMS], WHAT);
        let types = product.types();
        let f32_only = [types.a, types.b, types.output].iter().all(|&t| t == ElementType::F32);
        let longest = product.n().max(product.k()).max(product.m());
        Ok(Self {
            narrow: types.output.unit_roundoff() > types.accumulator.unit_roundoff(),
            per_col: per_col(product.n()),
            c: rows(true)?,
            ab: rows(true)?,
            residual: rows(product.residual().is_some())?,
            bias: [0.0; SUMS],
            converted: alloc::filled(if f32_only { 0 } else { longest }, 0.0, WHAT)?,
        })
    }

    /// The weights are 1.
    fn vectors(product: &MatMul, count: usize, random: &mut Random) -> Result<Passes> {
        let n = product.n();
        let mut passes = Passes::zeroed(n, count.div_ceil(VECTORS))?;
        let stride = passes.stride;
        for vectors in passes.iter_mut() {
            for vector in vectors.chunks_exact_mut(stride).take(VECTORS) {
                vector[..n].fill_with(|| sign_and_size(random));
            }
            vectors[VECTORS * stride..][..n].fill(1.0);
        }
        Ok(passes)
    }

    fn room(product: &MatMul, vectors: &Passes) -> Result<Projected> {
        let k = product.k();
        let exact = k.checked_mul(vectors.count).ok_or(Error::SizeOverflow { what: "k x vectors" })?;
        Ok(Projected {
            vectors: Passes::zeroed(k, vectors.count)?,
            exact: alloc::filled(exact, [0.0; SUMS], WHAT)?,
            skip: alloc::filled(product.n(), false, WHAT)?,
            beyond_f32: false,
        })
    }

    #[allow(clippy::cast_possible_truncation, reason = "rounded, and checked for overflow")]
    fn project(&mut self, random: &Passes, b: Source<'_>, projected: &mut Projected) {
        let Source { reals, b, item } = b;
        let product = &reals.product;
        let (n, k) = (product.n(), product.k());
        let b = Matrix { view: b, item, rows: k, cols: n, transposed: product.transpose_b() };
        let Projected { vectors, exact, skip, beyond_f32 } = projected;
        *beyond_f32 = false;
        skip.fill(false);
        exact.fill([0.0; SUMS]);
        let stride = vectors.stride;
        for (index, vectors) in vectors.iter_mut().enumerate() {
            let exact = &mut exact[index * k..][..k];
            b.gemv(&random.get(index), true, exact, &mut self.converted);
            for (p, sums) in exact.iter().enumerate() {
                for (i, &sum) in sums.iter().enumerate() {
                    vectors[i * stride + p] = sum as f32;
                    *beyond_f32 |= !(sum as f32).is_finite();
                }
            }
        }
        if *beyond_f32 {
            for p in 0..k {
                for (col, skip) in skip.iter_mut().enumerate() {
                    *skip |= !b.get(p, col).is_finite();
                }
            }
            for index in 0..random.count {
                for (p, sums) in exact[index * k..][..k].iter_mut().enumerate() {
                    *sums = b.row_exactly(p, skip, number(&random.get(index)));
                }
            }
        }
    }

    fn passes(vectors: &Passes) -> usize {
        vectors.count
    }

    fn start(&mut self, pass: &Pass<'_, Self>) {
        let (vectors, projected) = (pass.vectors.get(pass.index), pass.projected);
        self.bias =
            pass.bias().map_or([0.0; SUMS], |bias| bias.row_exactly(0, &projected.skip, number(&vectors)));
        // A residue from the sums in f32 is worth nothing where B r is not what it should be.
        if projected.beyond_f32 {
            return;
        }
        let converted = &mut self.converted;
        let mut gemv = |matrix: Matrix<'_>, vectors: &Vectors<'_>, sizes, sums: &mut [[f64; SUMS]]| {
            let sums = &mut sums[..matrix.rows];
            sums.fill([0.0; SUMS]);
            matrix.gemv(vectors, sizes, sums, converted);
        };
        gemv(pass.c(), &vectors, self.narrow, &mut self.c);
        gemv(pass.a(), &projected.vectors.get(pass.index), true, &mut self.ab);
        if let Some(residual) = pass.residual() {
            gemv(residual, &vectors, true, &mut self.residual);
        }
    }

    #[inline]
    fn ratio(&mut self, pass: &Pass<'_, Self>, row: usize) -> Option<f64> {
        if !pass.projected.beyond_f32 {
            let residual = self.residual.get(row).copied().unwrap_or([0.0; SUMS]);
            let sums = [self.c[row], self.ab[row], residual, self.bias];
            let ratio = residue(pass.operands.bounds, self.per_col, sums);
            if !ratio.is_nan() {
                return Some(ratio);
            }
        }
        self.ratio_exactly(pass, row)
    }
}

impl Linear {
    /// [`Arithmetic::ratio`] in float64.
    #[cold]
    fn ratio_exactly(&self, pass: &Pass<'_, Self>, row: usize) -> Option<f64> {
        let (vectors, skip) = (pass.vectors.get(pass.index), &pass.projected.skip);
        let a = pass.a();
        let exact = &pass.projected.exact[pass.index * a.cols..][..a.cols];
        let finite = |sums: [f64; SUMS]| sums.iter().all(|x| x.is_finite()).then_some(sums);
        let ab = finite(a.row_exactly(row, &[], |i, p| exact[p][i]))?;
        let residual = pass.residual();
        let residual = residual.map_or([0.0; SUMS], |matrix| matrix.row_exactly(row, skip, number(&vectors)));
        let (residual, bias) = (finite(residual)?, finite(self.bias)?);
        let c = pass.c().row_exactly(row, skip, number(&vectors));
        let ratio = residue(pass.operands.bounds, self.per_col, [c, ab, residual, bias]);
        Some(if ratio.is_nan() { f64::INFINITY } else { ratio })
    }
}

/// The operands of a pass.
impl<'a> Pass<'a, Linear> {
    fn a(&self) -> Matrix<'a> {
        let product = &self.operands.reals.product;
        let (rows, cols) = (self.operands.c.layout().rows(), product.k());
        let view = self.operands.inputs.a_view();
        Matrix { view, item: self.item, rows, cols, transposed: product.transpose_a() }
    }

    /// In the layout of C.
    fn like_c(&self, view: AnyView<'a>) -> Matrix<'a> {
        let (rows, cols) = (view.layout().rows(), view.layout().cols());
        Matrix { view, item: self.item, rows, cols, transposed: false }
    }

    fn c(&self) -> Matrix<'a> {
        self.like_c(self.operands.c)
    }

    fn residual(&self) -> Option<Matrix<'a>> {
        self.operands.inputs.residual_view().map(|view| self.like_c(view))
    }

    fn bias(&self) -> Option<Matrix<'a>> {
        self.operands.inputs.bias_view().map(|view| Matrix { item: 0, ..self.like_c(view) })
    }
}

/// Number `col` of vector `i`.
fn number(vectors: &Vectors<'_>) -> impl Fn(usize, usize) -> f64 {
    |i, col| f64::from(vectors.data[i * vectors.stride + col])
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

/// The largest residue of a row's vectors over its [`tolerance`]. NaN where a sum is not finite.
#[inline]
fn residue(bounds: &Bounds, per_col: f64, [c, ab, residual, bias]: [[f64; SUMS]; 4]) -> f64 {
    let addends = residual[VECTORS] + bias[VECTORS];
    let tolerance = tolerance(bounds, per_col, [bounds.alpha.abs() * ab[VECTORS], addends, c[VECTORS], 0.0]);
    let residues: [f64; VECTORS] =
        std::array::from_fn(|i| (c[i] - bounds.alpha * ab[i] - residual[i] - bias[i]).abs());
    // f64::max drops NaN, the sum keeps it.
    let largest = residues.iter().fold(0.0, |largest, &residue| f64::max(largest, residue));
    let total: f64 = residues.iter().sum();
    if (total + tolerance).is_finite() { largest / tolerance } else { f64::NAN }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use approx::assert_abs_diff_eq;

    use super::*;
    use crate::executor::Inputs;
    use crate::operands::tensor::Tensor;
    use crate::verify::self_check::freivalds::{Freivalds, Operands, Projections, Suspects};
    use crate::verify::self_check::reals::Reals;

    const M: usize = 4;
    const N: usize = 19;
    const K: usize = 7;

    fn reals(product: &MatMul) -> Reals {
        Reals::new(product, None)
    }

    /// Three passes over a product without a constant B.
    fn setup() -> (Reals, Tensor<f32>, Tensor<f32>, Projections<Linear>) {
        let reals = reals(&MatMul::new(M, N, K).unwrap());
        let a = Tensor::random_normal_f32(M, K, 1.0, 1).unwrap();
        let b = Tensor::random_normal_f32(K, N, 1.0, 2).unwrap();
        let projections = Projections::<Linear>::new(&reals, None, 3 * VECTORS, &mut Random::new(3)).unwrap();
        assert_eq!(projections.vectors.count, 3);
        (reals, a, b, projections)
    }

    fn project(reals: &Reals, b: &Tensor<f32>, vectors: &Passes) -> Projected {
        let mut projected = Linear::room(&reals.product, vectors).unwrap();
        let source = Source { reals, b: b.view().erased(), item: 0 };
        Linear::new(&reals.product).unwrap().project(vectors, source, &mut projected);
        projected
    }

    #[test]
    fn every_pass_has_vectors_of_its_own() {
        let (reals, _, b, Projections { vectors, .. }) = setup();
        let found = project(&reals, &b, &vectors);
        assert!(!found.beyond_f32);
        for index in 0..3 {
            let random = vectors.get(index);
            let projected = found.vectors.get(index);
            for other in 0..index {
                assert_ne!(random.data, vectors.get(other).data);
            }
            for p in 0..K {
                for i in 0..VECTORS {
                    let expected: f64 = (0..N)
                        .map(|col| {
                            f64::from(b.data()[p * N + col]) * f64::from(random.data[i * random.stride + col])
                        })
                        .sum();
                    assert_abs_diff_eq!(found.exact[index * K + p][i], expected, epsilon = 1e-5);
                    let projected = f64::from(projected.data[i * projected.stride + p]);
                    assert_abs_diff_eq!(projected, expected, epsilon = 1e-5);
                }
            }
        }
    }

    #[test]
    fn a_column_that_overflows_f32_is_known() {
        let (reals, _, mut b, projections) = setup();
        b.data_mut()[2 * N..3 * N].fill(f32::MAX);
        assert!(project(&reals, &b, &projections.vectors).beyond_f32);
    }

    #[test]
    fn nan_is_recomputed_with_the_vectors_of_each_pass() {
        let (reals, mut a, mut b, projections) = setup();
        b.data_mut()[N + 3] = f32::NAN;
        a.data_mut()[2 * K + 4] = f32::INFINITY;
        #[allow(clippy::cast_possible_truncation)]
        let c = Tensor::from_fn(M, N, |row, col| {
            let term = |p: usize| f64::from(a.data()[row * K + p]) * f64::from(b.data()[p * N + col]);
            (0..K).map(term).sum::<f64>() as f32
        })
        .unwrap();
        let mut state = Freivalds::new(&reals.product, Arc::new(projections)).unwrap();
        let bounds = Bounds::new(&reals.product);
        let mut suspects = |c: &Tensor<f32>| {
            let (inputs, mut random) = (Inputs::new(&a).b(&b), Random::new(4));
            let (b, c) = (b.view().erased(), c.view().erased());
            let operands = Operands { reals: &reals, bounds: &bounds, inputs: &inputs, b, c };
            state.suspects(&operands, &mut random)
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
        let product = MatMul::builder(M, N, K).constant(true).types(ElementTypes::F16).build().unwrap();
        let weights = crate::Weights::new(&b).unwrap();
        let b_view = Some(weights.view());
        let projections = Projections::<Linear>::new(&reals(&product), b_view, VECTORS, &mut Random::new(5));
        let Projections { vectors, constant } = projections.unwrap();
        let random = vectors.get(0);
        for (p, sums) in constant.unwrap()[0].exact.iter().enumerate() {
            let number = |col: usize| b.data()[p * N + col].to_f64();
            let expected: f64 = (0..N).map(|col| number(col) * f64::from(random.data[col])).sum();
            assert_abs_diff_eq!(sums[0], expected, epsilon = 1e-4);
        }
    }
}
