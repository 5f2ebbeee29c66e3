//! What a self-check makes of a result that is right, and of one that is not.

use ane_matmul::accuracy::Reference;
use ane_matmul::{Activation, CompileOptions, ElementType, Inputs, Product, ResultChecker, SelfCheck};
use fastrand::Rng;

use crate::cases::{Case, Contents};
use crate::data::Guarded;
use crate::run::Failure;

/// Products with an activation or an integer output are verified by random rows: this draws all of them.
const CHECK: SelfCheck = SelfCheck::every_run().wrong_share(1e-4).failure_probability(1e-3);

/// The result `c`, which `reference` found right, passes; with one wrong element it does not, and the
/// element found is what the reference says it is.
pub(crate) fn check(
    case: &Case,
    whole: &dyn Product,
    options: &CompileOptions,
    inputs: &Inputs<'_>,
    c: &Guarded,
    reference: &Reference,
    seed: u64,
) -> Result<(), Failure> {
    let wrong = |message: String| Err(Failure::Wrong(format!("self-check: {message}")));
    let mut checker = ResultChecker::with_options(whole, &CHECK, options)?;
    if let Some(found) = checker.check(inputs, c.view())? {
        return wrong(format!("a false alarm: {found}"));
    }
    let layout = *c.view().layout();
    if layout.is_empty() || !matches!(case.contents, Contents::Normal | Contents::SmallIntegers) {
        return Ok(());
    }
    let mut random = Rng::with_seed(seed);
    let at = (random.usize(..layout.batch()), random.usize(..layout.rows()), random.usize(..layout.cols()));
    let (item, row, col) = at;
    let index = (item * layout.rows() + row) * layout.cols() + col;
    let (value, bound) = (reference.values()[index], reference.bounds()[index]);
    let largest = reference.values().iter().fold(0f64, |largest, x| largest.max(x.abs()));
    let planted = match case.types.output {
        ElementType::I32 if value < 0.0 => value + 1.0,
        ElementType::I32 => value - 1.0,
        ElementType::I8 => {
            if value < 0.0 {
                127.0
            } else {
                -128.0
            }
        }
        ElementType::U8 => {
            if value < 128.0 {
                255.0
            } else {
                0.0
            }
        }
        // Beyond the roundings of a whole row.
        _ => value - largest - 1.0,
    };
    if (planted - value).abs() <= 2.0 * bound {
        return Ok(());
    }
    let mut spoilt = c.clone();
    spoilt.set(layout.item_offset(item) + row * layout.leading_dimension() + col, planted);
    let infinite = |item, row| {
        (0..layout.cols()).any(|col| spoilt.view().get(item, row, col).is_some_and(|x| !x.is_finite()))
    };
    let infinite_rows = (0..layout.batch())
        .flat_map(|item| (0..layout.rows()).map(move |row| (item, row)))
        .filter(|&(item, row)| infinite(item, row))
        .count();
    // Freivalds' method draws one of the rows that hold infinity, as sums beyond the range of C's type are:
    // 40 draws for each of n rows miss one with (1 - 1/n)^40n, less than e^-40.
    let drawn = case.activation == Activation::None && infinite(item, row) && infinite_rows > 1;
    let draws = if drawn { 40 * infinite_rows } else { 1 };
    let found = (0..draws).find_map(|_| checker.check(inputs, spoilt.view()).transpose()).transpose()?;
    let Some(found) = found else {
        return wrong(format!("{planted} instead of {value} +- {bound:e} at {at:?} was missed"));
    };
    let slack = 1e-9 * (value.abs() + bound);
    if (found.item, found.row, found.col) != at
        || (found.expected - value).abs() > slack
        || (found.bound - bound).abs() > slack
    {
        return wrong(format!("planted at {at:?}, {value} +- {bound:e}; found {found:?}"));
    }
    Ok(())
}
