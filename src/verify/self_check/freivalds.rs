//! Freivalds' method: the walk over items, vectors and rows, whatever the arithmetic.

use std::fmt::Debug;
use std::sync::Arc;

use crate::alloc;
use crate::description::matmul::MatMul;
use crate::error::Result;
use crate::executor::Inputs;
use crate::operands::view::AnyView;
use crate::random::Random;
use crate::verify::accuracy::Bounds;
use crate::verify::self_check::reals::Reals;

pub(super) const WHAT: &str = "a self-check's vectors";

/// The arithmetic for a kind of products, with the scratch memory of one executor.
pub(super) trait Arithmetic: Debug + Sized {
    /// The random vectors r.
    type Vectors: Debug;
    /// B r of one item, and the sums of B's rows of magnitudes.
    type Projected: Debug;

    fn new(product: &MatMul) -> Result<Self>;
    /// At least `count` vectors.
    fn vectors(product: &MatMul, count: usize, random: &mut Random) -> Result<Self::Vectors>;
    /// Room for B r.
    fn room(product: &MatMul, vectors: &Self::Vectors) -> Result<Self::Projected>;
    /// Computes B r.
    fn project(&mut self, vectors: &Self::Vectors, b: Source<'_>, projected: &mut Self::Projected);
    /// In how many passes over its rows an item is compared with all vectors.
    fn passes(vectors: &Self::Vectors) -> usize;
    /// What a pass does before its first row.
    fn start(&mut self, pass: &Pass<'_, Self>);
    /// The largest residue of a row over what an error of the row's mean error bound shows at least; `None`
    /// where an input of the row is NaN or infinite, infinite where the result alone is.
    fn ratio(&mut self, pass: &Pass<'_, Self>, row: usize) -> Option<f64>;
}

/// B of one item, as it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub reals: &'a Reals,
    pub b: AnyView<'a>,
    pub item: usize,
}

/// The operands of a run and its result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands<'a> {
    pub reals: &'a Reals,
    pub bounds: &'a Bounds,
    pub inputs: &'a Inputs<'a>,
    pub b: AnyView<'a>,
    pub c: AnyView<'a>,
}

/// One pass over the rows of one item.
pub(super) struct Pass<'a, A: Arithmetic> {
    pub operands: &'a Operands<'a>,
    pub vectors: &'a A::Vectors,
    pub projected: &'a A::Projected,
    pub item: usize,
    pub index: usize,
}

/// The random vectors r, and B r where B is constant.
#[derive(Debug)]
pub(super) struct Projections<A: Arithmetic> {
    pub vectors: A::Vectors,
    /// For each item of a constant B; a single one where all share it.
    pub constant: Option<Vec<A::Projected>>,
}

impl<A: Arithmetic> Projections<A> {
    /// `b` is B where it is constant.
    pub(super) fn new(
        reals: &Reals,
        b: Option<AnyView<'_>>,
        count: usize,
        random: &mut Random,
    ) -> Result<Self> {
        let product = &reals.product;
        let vectors = A::vectors(product, count, random)?;
        let Some(b) = b else { return Ok(Self { vectors, constant: None }) };
        let shared = product.b().batch_stride() == 0 && reals.shares_scales();
        let items = if shared { product.batch().min(1) } else { product.batch() };
        let mut arithmetic = A::new(product)?;
        let mut constant = alloc::with_capacity(items, WHAT)?;
        for item in 0..items {
            let mut projected = A::room(product, &vectors)?;
            arithmetic.project(&vectors, Source { reals, b, item }, &mut projected);
            constant.push(projected);
        }
        Ok(Self { vectors, constant: Some(constant) })
    }
}

/// The state of one executor.
#[derive(Debug)]
pub(super) struct Freivalds<A: Arithmetic> {
    projections: Arc<Projections<A>>,
    /// B r of this run; not used where B is constant.
    projected: Option<A::Projected>,
    arithmetic: A,
}

impl<A: Arithmetic> Freivalds<A> {
    pub(super) fn new(product: &MatMul, projections: Arc<Projections<A>>) -> Result<Self> {
        let projected = match projections.constant {
            Some(_) => None,
            None => Some(A::room(product, &projections.vectors)?),
        };
        Ok(Self { projections, projected, arithmetic: A::new(product)? })
    }

    /// Compares C r with alpha A (B r) + bias r + residual r, for all rows and vectors.
    pub(super) fn suspects(&mut self, operands: &Operands<'_>, random: &mut Random) -> Suspects {
        let Self { projections, projected, arithmetic } = self;
        let Projections { vectors, constant } = &**projections;
        let Operands { reals, b, c, .. } = *operands;
        let mut worst_ratio = 1.0;
        let (mut worst, mut infinite, mut unverifiable) = (None, Choice::default(), Choice::default());
        for item in 0..reals.product.batch() {
            let projected = match (constant, &mut *projected) {
                (Some(items), _) => &items[item.min(items.len() - 1)],
                (None, Some(projected)) => {
                    if item == 0 || reals.product.b().batch_stride() != 0 {
                        arithmetic.project(vectors, Source { reals, b, item }, projected);
                    }
                    &*projected
                }
                (None, None) => continue,
            };
            for index in 0..A::passes(vectors) {
                let pass = Pass { operands, vectors, projected, item, index };
                arithmetic.start(&pass);
                for row in 0..c.layout().rows() {
                    match arithmetic.ratio(&pass, row) {
                        Some(f64::INFINITY) => infinite.offer((item, row), random),
                        Some(ratio) if ratio > worst_ratio => {
                            (worst_ratio, worst) = (ratio, Some((item, row)));
                        }
                        None if index == 0 => unverifiable.offer((item, row), random),
                        _ => {}
                    }
                }
            }
        }
        Suspects { worst, infinite: infinite.chosen, unverifiable: unverifiable.chosen }
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

/// One choice among those that count the same.
#[derive(Debug, Default)]
struct Choice {
    chosen: Option<(usize, usize)>,
    seen: usize,
}

impl Choice {
    fn offer(&mut self, row: (usize, usize), random: &mut Random) {
        self.seen += 1;
        if random.below(self.seen) == 0 {
            self.chosen = Some(row);
        }
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

/// What an error of a row's mean error bound shows at least, half of it, since the numbers of r do. `size`,
/// `addends` and `result` are the row's sums of magnitudes, `own` is what the residue's rounding adds, and
/// `per_col` is 1 / n.
#[inline]
pub(super) fn tolerance(bounds: &Bounds, per_col: f64, [size, addends, result, own]: [f64; 4]) -> f64 {
    let bound = bounds.gamma_k * size + bounds.gamma_e * (size + addends) + bounds.u_out * result;
    0.5 * ((bound + own) * per_col + bounds.underflow)
}

/// 1 / n.
#[allow(clippy::cast_precision_loss, reason = "a share of a bound")]
pub(super) fn per_col(n: usize) -> f64 {
    1.0 / n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn each_of_those_that_count_the_same_may_be_chosen() {
        let mut chosen = [0; 3];
        for seed in 0..300 {
            let (mut choice, mut random) = (Choice::default(), Random::new(seed));
            (0..3).for_each(|row| choice.offer((0, row), &mut random));
            chosen[choice.chosen.unwrap().1] += 1;
        }
        assert!(chosen.iter().all(|count| (60..140).contains(count)), "{chosen:?}");
    }
}
