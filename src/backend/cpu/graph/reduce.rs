//! Reductions over axes.

use crate::description::element::ElementType::{self, F32, I32, I64};
use crate::graph::Operator;
use crate::graph::shape::{MAX_RANK, Shape};

use super::elementwise::{Loops, larger};

/// Partial sums of a run of elements, in a fixed order whoever computes them.
const LANES: usize = 16;

/// The sum of some elements, or what stands for it.
pub(crate) struct Reduction {
    /// Over the results: the offset of each in x.
    kept: Loops<1>,
    /// Over the elements of each.
    reduced: Loops<1>,
    count: usize,
}

/// Computes some of the results, of which `to` has all.
///
/// # Safety
/// The elements of x and the results are there, of the type that the kernel was chosen for; nothing else accesses these
/// results.
pub(crate) type Kernel = unsafe fn(&Reduction, std::ops::Range<usize>, *mut u8, *const u8);

impl Reduction {
    /// Over `axes` of `x`.
    pub(crate) fn new(x: &Shape, axes: &[usize]) -> Self {
        let strides = x.strides();
        let of = |is_reduced: bool| {
            let (mut dims, mut of_axes) = (*x, [0; MAX_RANK]);
            for axis in 0..x.rank() {
                if axes.contains(&axis) == is_reduced {
                    of_axes[axis] = strides[axis];
                } else {
                    dims = dims.with_dim(axis, 1);
                }
            }
            (Loops::new(&dims, [of_axes]), dims.count())
        };
        let ((kept, _), (reduced, count)) = (of(false), of(true));
        Self { kept, reduced, count }
    }

    /// # Safety
    /// As [`Kernel`].
    unsafe fn run<T: Copy>(
        &self,
        range: std::ops::Range<usize>,
        to: *mut T,
        x: *const T,
        (zero, add, join, finish): (T, impl Fn(T, T) -> T, impl Fn(T, T) -> T, impl Fn(T) -> T),
    ) {
        let (cols, [col_stride]) = self.kept.inner();
        let (count, [stride]) = self.reduced.inner();
        // Adjacent results are summed next to each other, where their elements are adjacent; others in lanes.
        let across = col_stride == 1 && stride != 1;
        let rows = range.start / cols..range.end.div_ceil(cols);
        let mut result = range.start;
        self.kept.for_each(rows, |row, [row_offset]| {
            let end = ((row + 1) * cols).min(range.end);
            while result < end {
                let col = result - row * cols;
                let width = if across { LANES.min(end - result) } else { 1 };
                let x = x.wrapping_add(row_offset + col * col_stride);
                let mut sums = [zero; LANES];
                self.reduced.for_each(0..self.reduced.outer(), |_, [offset]| {
                    let x = x.wrapping_add(offset);
                    // SAFETY: by this function's own contract.
                    unsafe {
                        if across {
                            for index in 0..count {
                                for (lane, sum) in sums[..width].iter_mut().enumerate() {
                                    *sum = add(*sum, x.wrapping_add(index * stride + lane).read());
                                }
                            }
                            return;
                        }
                        let whole = count / LANES * LANES;
                        for start in (0..whole).step_by(LANES) {
                            for (lane, sum) in sums.iter_mut().enumerate() {
                                *sum = add(*sum, x.wrapping_add((start + lane) * stride).read());
                            }
                        }
                        for index in whole..count {
                            sums[0] = add(sums[0], x.wrapping_add(index * stride).read());
                        }
                    }
                });
                if !across {
                    sums[0] = sums.into_iter().reduce(&join).unwrap_or(zero);
                }
                for sum in &sums[..width] {
                    // SAFETY: by this function's own contract.
                    unsafe { to.add(result).write(finish(*sum)) };
                    result += 1;
                }
            }
        });
    }
}

macro_rules! kernel {
    ($type:ty, $zero:expr, $add:expr, $join:expr, |$r:ident, $sum:ident| $finish:expr) => {{
        unsafe fn kernel($r: &Reduction, range: std::ops::Range<usize>, to: *mut u8, x: *const u8) {
            // SAFETY: the contract of `Kernel`.
            unsafe { $r.run::<$type>(range, to.cast(), x.cast(), ($zero, $add, $join, |$sum| $finish)) }
        }
        Some(kernel as Kernel)
    }};
}

/// The kernel of an operator for elements of a type; `None` where there is none.
#[allow(clippy::cast_precision_loss, reason = "counts of elements")]
pub(crate) fn kernel_of(operator: &Operator, x: ElementType) -> Option<Kernel> {
    match (operator, x) {
        (Operator::ReduceSum(_), F32) => kernel!(f32, 0.0, |s, x| s + x, |a, b| a + b, |_r, s| s),
        (Operator::ReduceSum(_), I64) => {
            kernel!(i64, 0, i64::wrapping_add, i64::wrapping_add, |_r, s| s)
        }
        (Operator::ReduceSum(_), I32) => {
            kernel!(i32, 0, i32::wrapping_add, i32::wrapping_add, |_r, s| s)
        }
        (Operator::ReduceMean(_), F32) => {
            kernel!(f32, 0.0, |s, x| s + x, |a, b| a + b, |r, s| s / r.count as f32)
        }
        // Without mul_add, which is a call where not every processor of the target has it.
        (Operator::ReduceL2(_), F32) => {
            kernel!(f32, 0.0, |s, x| s + x * x, |a, b| a + b, |_r, s| s.sqrt())
        }
        (Operator::ReduceMax(_), F32) => kernel!(f32, f32::NEG_INFINITY, larger, larger, |_r, s| s),
        (Operator::ReduceMax(_), I64) => kernel!(i64, i64::MIN, i64::max, i64::max, |_r, s| s),
        (Operator::ReduceMax(_), I32) => kernel!(i32, i32::MIN, i32::max, i32::max, |_r, s| s),
        _ => None,
    }
}
