//! Elements that are moved without being computed on.

use super::elementwise::{Loops, broadcast_strides};
use crate::graph::Operator;
use crate::graph::shape::{MAX_RANK, Shape};

/// Elements of one array that go to another, of any strides in either.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Movement {
    loops: Loops<2>,
    /// The first element that is written, and the first that is read.
    first: [usize; 2],
}

impl Movement {
    fn new(dims: &Shape, to: (usize, [usize; MAX_RANK]), from: (usize, [usize; MAX_RANK])) -> Self {
        Self { loops: Loops::new(dims, [to.1, from.1]), first: [to.0, from.0] }
    }

    /// A part of `parts` of the runs of elements, of so many bytes each.
    ///
    /// # Safety
    /// The elements are there, and nothing else accesses those of this part in `to`.
    pub(crate) unsafe fn run(
        &self,
        (part, parts): (usize, usize),
        bytes: usize,
        to: *mut u8,
        from: *const u8,
    ) {
        let (count, [to_stride, from_stride]) = self.loops.inner();
        let outer = self.loops.outer();
        let runs = outer * part / parts..outer * (part + 1) / parts;
        self.loops.for_each(runs, |_, offsets| {
            let to = to.wrapping_add(self.first[0].wrapping_add(offsets[0]).wrapping_mul(bytes));
            let from = from.wrapping_add(self.first[1].wrapping_add(offsets[1]).wrapping_mul(bytes));
            // SAFETY: by this function's own contract.
            unsafe {
                match bytes {
                    _ if (to_stride, from_stride) == (1, 1) => from.copy_to_nonoverlapping(to, count * bytes),
                    1 => copy::<u8>(count, (to, to_stride), (from, from_stride)),
                    2 => copy::<u16>(count, (to, to_stride), (from, from_stride)),
                    4 => copy::<u32>(count, (to, to_stride), (from, from_stride)),
                    _ => copy::<u64>(count, (to, to_stride), (from, from_stride)),
                }
            }
        });
    }
}

/// # Safety
/// The elements are there, and aligned.
unsafe fn copy<T: Copy>(count: usize, to: (*mut u8, usize), from: (*const u8, usize)) {
    let (to_start, from_start) = (to.0.cast::<T>(), from.0.cast::<T>());
    for index in 0..count {
        // SAFETY: by the function's own contract.
        unsafe {
            to_start
                .wrapping_add(index.wrapping_mul(to.1))
                .write(from_start.wrapping_add(index.wrapping_mul(from.1)).read());
        }
    }
}

/// The number of movements of an operator: from each input, or to each result.
pub(crate) fn count_of(operator: &Operator, inputs: usize, outputs: usize) -> usize {
    match operator {
        Operator::Concat { .. } => inputs,
        Operator::Split { .. } => outputs,
        _ => 1,
    }
}

/// Where a Slice begins along each axis of its input, and how far it goes on from index to index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slice {
    first: [usize; MAX_RANK],
    step: [isize; MAX_RANK],
}

impl Slice {
    /// Of an operator and its largest input: they are the same for a smaller leading dimension, which no Slice cuts.
    pub(crate) fn of(operator: &Operator, source: &Shape) -> Result<Self, String> {
        let mut slice = Self { first: [0; MAX_RANK], step: [1; MAX_RANK] };
        for (axis, first, count, step) in operator.slices(source)? {
            slice.first[axis] = first;
            // A single element has no next one, however far the step.
            slice.step[axis] =
                if count > 1 { isize::try_from(step).map_err(|_| "a step beyond memory")? } else { 1 };
        }
        Ok(slice)
    }

    pub(crate) fn movement(&self, result: &Shape, source: &Shape) -> Movement {
        let packed = source.strides();
        let (mut first, mut strides) = (0, packed);
        for axis in 0..source.rank() {
            first += self.first[axis] * packed[axis];
            strides[axis] = packed[axis].wrapping_mul(self.step[axis].cast_unsigned());
        }
        Movement::new(result, (0, result.strides()), (first, strides))
    }
}

/// The movement `index` of an operator other than Slice, with the numbers of its output and its input, for inputs and results of these
/// shapes. `None` for one without elements.
pub(crate) fn movement_of(
    operator: &Operator,
    index: usize,
    input: impl Fn(usize) -> Shape,
    output: impl Fn(usize) -> Shape,
) -> Option<(Movement, usize, usize)> {
    let along = |axis: i64| input(0).axis(axis).unwrap_or(0);
    let (result, source) = (output(0), input(0));
    let movement = match operator {
        Operator::Concat { axis } => {
            let (axis, dims) = (along(*axis), input(index));
            let before: usize = (0..index).map(|other| input(other).dims()[axis]).sum();
            let strides = result.strides();
            return (dims.count() > 0).then(|| {
                (Movement::new(&dims, (before * strides[axis], strides), (0, dims.strides())), 0, index)
            });
        }
        Operator::Split { axis, .. } => {
            let (axis, dims) = (along(*axis), output(index));
            let before: usize = (0..index).map(|other| output(other).dims()[axis]).sum();
            let strides = source.strides();
            return (dims.count() > 0).then(|| {
                (Movement::new(&dims, (0, dims.strides()), (before * strides[axis], strides)), index, 0)
            });
        }
        Operator::Expand { .. } => {
            Movement::new(&result, (0, result.strides()), (0, broadcast_strides(&source, &result)))
        }
        Operator::Transpose { perm } => {
            let strides = source.strides();
            let mut permuted = [0; MAX_RANK];
            for (permuted, axis) in permuted.iter_mut().zip(perm) {
                *permuted = strides[*axis];
            }
            Movement::new(&result, (0, result.strides()), (0, permuted))
        }
        // The result is filled before.
        Operator::Pad { pads } => {
            let (to, from) = (result.strides(), source.strides());
            let (mut dims, mut first) = (source, [0, 0]);
            for (axis, before) in pads[..source.rank()].iter().enumerate() {
                let (before, after) = (*before, pads[axis + source.rank()]);
                let cut = |pad: i64| usize::try_from(pad.min(0).unsigned_abs()).unwrap_or(usize::MAX);
                let left = source.dims()[axis].saturating_sub(cut(before)).saturating_sub(cut(after));
                first[0] += usize::try_from(before).unwrap_or(0) * to[axis];
                first[1] += cut(before).min(source.dims()[axis]) * from[axis];
                dims = dims.with_dim(axis, left);
            }
            return (dims.count() > 0)
                .then(|| (Movement::new(&dims, (first[0], to), (first[1], from)), 0, 0));
        }
        _ => return None,
    };
    (result.count() > 0).then_some((movement, 0, 0))
}
