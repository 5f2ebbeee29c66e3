//! Operators on each element by itself, whose inputs are broadcast to each other.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::description::element::ElementType::{self, Bool, F32, I8, I32, I64, U8};
use crate::graph::Operator;
use crate::graph::shape::{MAX_RANK, Shape};

/// The most inputs of a kernel.
const MOST: usize = 3;

/// Elements whose inputs lie evenly spaced.
pub(crate) struct Elements<'a> {
    pub count: usize,
    pub y: *mut u8,
    pub x: [*const u8; MOST],
    /// From element to element of each input: 0 where it is the same for all.
    pub strides: [usize; MOST],
    /// Attributes of the operator.
    pub constants: [f32; 2],
    /// Set where an integer was divided by 0.
    pub divided_by_zero: &'a AtomicBool,
}

/// # Safety
/// The inputs' elements and `count` of y are there, and of the types that the kernel was chosen for; y overlaps no input
/// but one that starts where it does and has a stride of 1 and elements of its size.
pub(crate) type Kernel = unsafe fn(&Elements<'_>);

/// The elements that are loaded before any is stored, so that y may be an input, and the compiler may take vectors.
const BLOCK: usize = 16;

/// # Safety
/// As [`Kernel`].
#[inline(always)]
unsafe fn each<const N: usize, X: Copy, Y: Copy + Default>(e: &Elements<'_>, function: impl Fn([X; N]) -> Y) {
    let y: *mut Y = e.y.cast();
    let x: [*const X; N] = std::array::from_fn(|input| e.x[input].cast());
    let whole = e.count / BLOCK * BLOCK;
    // SAFETY: by the function's own contract.
    unsafe {
        if (0..N).all(|input| e.strides[input] <= 1) && whole > 0 {
            let single: [[X; BLOCK]; N] = std::array::from_fn(|input| [x[input].read(); BLOCK]);
            for start in (0..whole).step_by(BLOCK) {
                let block: [[X; BLOCK]; N] = std::array::from_fn(|input| {
                    if e.strides[input] == 0 {
                        single[input]
                    } else {
                        x[input].add(start).cast::<[X; BLOCK]>().read_unaligned()
                    }
                });
                let mut results = [Y::default(); BLOCK];
                for (index, result) in results.iter_mut().enumerate() {
                    *result = function(std::array::from_fn(|input| block[input][index]));
                }
                y.add(start).cast::<[Y; BLOCK]>().write_unaligned(results);
            }
            for index in whole..e.count {
                y.add(index).write(function(std::array::from_fn(|input| {
                    if e.strides[input] == 0 { single[input][0] } else { x[input].add(index).read() }
                })));
            }
        } else {
            for index in 0..e.count {
                y.add(index).write(function(std::array::from_fn(|input| {
                    x[input].add(index * e.strides[input]).read()
                })));
            }
        }
    }
}

macro_rules! kernel {
    ($n:literal, $x:ty => $y:ty, |$e:ident, $args:pat_param| $result:expr) => {{
        unsafe fn kernel($e: &Elements<'_>) {
            // SAFETY: the contract of `Kernel`.
            unsafe { each::<$n, $x, $y>($e, |$args: [$x; $n]| $result) }
        }
        Some(kernel as Kernel)
    }};
}

/// For each numeric type.
macro_rules! of_numbers {
    ($element:expr, |$e:ident, $args:pat_param| $float:expr, $integer:expr) => {
        match $element {
            F32 => kernel!(2, f32 => f32, |$e, $args| $float),
            I64 => kernel!(2, i64 => i64, |$e, $args| $integer),
            I32 => kernel!(2, i32 => i32, |$e, $args| $integer),
            _ => None,
        }
    };
}

macro_rules! compare {
    ($element:expr, $operator:tt) => {
        match $element {
            F32 => kernel!(2, f32 => bool, |_e, [a, b]| a $operator b),
            I64 => kernel!(2, i64 => bool, |_e, [a, b]| a $operator b),
            I32 => kernel!(2, i32 => bool, |_e, [a, b]| a $operator b),
            _ => None,
        }
    };
}

macro_rules! casts {
    ($from:expr, $to:expr; $($x:ident $x_type:ty => $($y:ident $y_type:ty),*;)*) => {
        match ($from, $to) {
            $($(($x, $y) => kernel!(1, $x_type => $y_type, |_e, [x]| x as $y_type),)*)*
            (F32, Bool) => kernel!(1, f32 => bool, |_e, [x]| x != 0.0),
            (I64, Bool) => kernel!(1, i64 => bool, |_e, [x]| x != 0),
            (I32, Bool) => kernel!(1, i32 => bool, |_e, [x]| x != 0),
            (I8 | U8, Bool) => kernel!(1, u8 => bool, |_e, [x]| x != 0),
            (Bool, F32) => kernel!(1, bool => f32, |_e, [x]| f32::from(u8::from(x))),
            (Bool, I64) => kernel!(1, bool => i64, |_e, [x]| i64::from(x)),
            (Bool, I32) => kernel!(1, bool => i32, |_e, [x]| i32::from(x)),
            (Bool, I8 | U8) => kernel!(1, bool => u8, |_e, [x]| u8::from(x)),
            _ => None,
        }
    };
}

/// NaN where one is NaN.
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

fn smaller(a: f32, b: f32) -> f32 {
    if a.is_nan() || a < b { a } else { b }
}

/// The quotient, towards 0; 0 for a divisor of 0, which is noted.
macro_rules! quotient {
    ($e:ident, $a:ident, $b:ident) => {
        if $b == 0 {
            $e.divided_by_zero.store(true, Ordering::Relaxed);
            0
        } else {
            $a.wrapping_div($b)
        }
    };
}

/// The kernel of an operator for inputs of these types; `None` where there is none. Min and Max, which take any number of
/// inputs, are of two here, and Clip has both bounds.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "casts are what is asked for: floats saturate, integers wrap"
)]
#[allow(clippy::too_many_lines, reason = "a table of operators")]
pub(crate) fn kernel_of(operator: &Operator, x: ElementType) -> Option<Kernel> {
    match operator {
        Operator::Abs => match x {
            F32 => kernel!(1, f32 => f32, |_e, [x]| x.abs()),
            I64 => kernel!(1, i64 => i64, |_e, [x]| x.wrapping_abs()),
            I32 => kernel!(1, i32 => i32, |_e, [x]| x.wrapping_abs()),
            _ => None,
        },
        Operator::Neg => match x {
            F32 => kernel!(1, f32 => f32, |_e, [x]| -x),
            I64 => kernel!(1, i64 => i64, |_e, [x]| x.wrapping_neg()),
            I32 => kernel!(1, i32 => i32, |_e, [x]| x.wrapping_neg()),
            _ => None,
        },
        Operator::Relu => match x {
            F32 => kernel!(1, f32 => f32, |_e, [x]| larger(x, 0.0)),
            I64 => kernel!(1, i64 => i64, |_e, [x]| x.max(0)),
            I32 => kernel!(1, i32 => i32, |_e, [x]| x.max(0)),
            _ => None,
        },
        Operator::Add => of_numbers!(x, |_e, [a, b]| a + b, a.wrapping_add(b)),
        Operator::Sub => of_numbers!(x, |_e, [a, b]| a - b, a.wrapping_sub(b)),
        Operator::Mul => of_numbers!(x, |_e, [a, b]| a * b, a.wrapping_mul(b)),
        Operator::Div => of_numbers!(
            x,
            |e, [a, b]| {
                let _ = e;
                a / b
            },
            quotient!(e, a, b)
        ),
        Operator::Min => of_numbers!(x, |_e, [a, b]| smaller(a, b), a.min(b)),
        Operator::Max => of_numbers!(x, |_e, [a, b]| larger(a, b), a.max(b)),
        Operator::Equal => match x {
            Bool => kernel!(2, bool => bool, |_e, [a, b]| a == b),
            x => compare!(x, ==),
        },
        Operator::Greater => compare!(x, >),
        Operator::GreaterOrEqual => compare!(x, >=),
        Operator::Less => compare!(x, <),
        Operator::LessOrEqual => compare!(x, <=),
        Operator::And => kernel!(2, bool => bool, |_e, [a, b]| a & b),
        Operator::Or => kernel!(2, bool => bool, |_e, [a, b]| a | b),
        Operator::Not => kernel!(1, bool => bool, |_e, [x]| !x),
        Operator::Clip => match x {
            F32 => kernel!(3, f32 => f32, |_e, [x, low, high]| smaller(high, larger(low, x))),
            I64 => kernel!(3, i64 => i64, |_e, [x, low, high]| high.min(low.max(x))),
            I32 => kernel!(3, i32 => i32, |_e, [x, low, high]| high.min(low.max(x))),
            _ => None,
        },
        Operator::Cast { to } => casts! {
            x, *to;
            F32 f32 => F32 f32, I64 i64, I32 i32, I8 i8, U8 u8;
            I64 i64 => F32 f32, I64 i64, I32 i32, I8 i8, U8 u8;
            I32 i32 => F32 f32, I64 i64, I32 i32, I8 i8, U8 u8;
            I8 i8 => F32 f32, I64 i64, I32 i32, I8 i8, U8 u8;
            U8 u8 => F32 f32, I64 i64, I32 i32, I8 i8, U8 u8;
        },
        operator if x == F32 => float_kernel_of(operator),
        _ => None,
    }
}

/// Of f32 alone.
fn float_kernel_of(operator: &Operator) -> Option<Kernel> {
    match operator {
        Operator::Reciprocal => kernel!(1, f32 => f32, |_e, [x]| 1.0 / x),
        Operator::Sqrt => kernel!(1, f32 => f32, |_e, [x]| x.sqrt()),
        Operator::Log => kernel!(1, f32 => f32, |_e, [x]| libm::logf(x)),
        Operator::Erf => kernel!(1, f32 => f32, |_e, [x]| libm::erff(x)),
        Operator::Pow => kernel!(2, f32 => f32, |_e, [a, b]| libm::powf(a, b)),
        Operator::LeakyRelu { .. } => {
            kernel!(1, f32 => f32, |e, [x]| if x < 0.0 { e.constants[0] * x } else { x })
        }
        Operator::HardSigmoid { .. } => {
            kernel!(1, f32 => f32, |e, [x]| unit_interval(e.constants[0] * x + e.constants[1]))
        }
        Operator::HardSwish => kernel!(1, f32 => f32, |_e, [x]| x * unit_interval(x / 6.0 + 0.5)),
        _ => None,
    }
}

/// NaN stays.
fn unit_interval(x: f32) -> f32 {
    larger(0.0, smaller(1.0, x))
}

/// `condition ? x : y` of elements of so many bytes, of any type. The condition is the first input.
pub(crate) fn select_of(bytes: usize) -> Option<Kernel> {
    macro_rules! select {
        ($word:ty) => {{
            /// # Safety
            /// As [`Kernel`].
            unsafe fn kernel(e: &Elements<'_>) {
                for index in 0..e.count {
                    // SAFETY: by the function's own contract.
                    unsafe {
                        let condition = e.x[0].add(index * e.strides[0]).read() != 0;
                        let [_, x, y] = e.x.map(|x| x.cast::<$word>());
                        let x = x.add(index * e.strides[1]).read();
                        let y = y.add(index * e.strides[2]).read();
                        e.y.cast::<$word>().add(index).write(if condition { x } else { y });
                    }
                }
            }
            Some(kernel as Kernel)
        }};
    }
    match bytes {
        1 => select!(u8),
        2 => select!(u16),
        4 => select!(u32),
        8 => select!(u64),
        _ => None,
    }
}

/// The attributes of an operator for [`Elements::constants`].
pub(crate) fn constants_of(operator: &Operator) -> [f32; 2] {
    match operator {
        Operator::LeakyRelu { alpha } => [*alpha, 0.0],
        Operator::HardSigmoid { alpha, beta } => [*alpha, *beta],
        _ => [0.0; 2],
    }
}

/// Loops over the elements of a result, with as few axes as its inputs allow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loops<const N: usize> {
    rank: usize,
    dims: [usize; MAX_RANK],
    /// From index to index of each input, in its elements; modulo 2^64, as they may be negative.
    strides: [[usize; MAX_RANK]; N],
}

impl<const N: usize> Loops<N> {
    /// For inputs that are broadcast to `result`.
    pub(crate) fn broadcast(result: &Shape, inputs: [Shape; N]) -> Self {
        Self::new(result, inputs.map(|input| broadcast_strides(&input, result)))
    }

    /// For inputs of these strides; neighbouring axes are merged where all inputs allow it.
    pub(crate) fn new(result: &Shape, strides: [[usize; MAX_RANK]; N]) -> Self {
        let mut loops = Self { rank: 0, dims: [1; MAX_RANK], strides: [[0; MAX_RANK]; N] };
        for (axis, dim) in result.dims().iter().enumerate() {
            if *dim == 1 {
                continue;
            }
            let merges = loops.rank > 0
                && (0..N).all(|input| {
                    loops.strides[input][loops.rank - 1] == strides[input][axis].wrapping_mul(*dim)
                });
            let at = if merges { loops.rank - 1 } else { loops.rank };
            loops.dims[at] = if merges { loops.dims[at] * dim } else { *dim };
            for (own, of_input) in loops.strides.iter_mut().zip(&strides) {
                own[at] = of_input[axis];
            }
            loops.rank = at + 1;
        }
        loops.rank = loops.rank.max(1);
        loops
    }

    /// The elements along the last axis, and from one to the next of each input.
    pub(crate) fn inner(&self) -> (usize, [usize; N]) {
        let last = self.rank - 1;
        (self.dims[last], std::array::from_fn(|input| self.strides[input][last]))
    }

    /// How many runs of inner elements there are.
    pub(crate) fn outer(&self) -> usize {
        self.dims[..self.rank - 1].iter().product()
    }

    /// Calls `run` for each of these runs, with its number and the offset of its first element in each input.
    pub(crate) fn for_each(&self, runs: std::ops::Range<usize>, mut run: impl FnMut(usize, [usize; N])) {
        if runs.is_empty() {
            return;
        }
        let outer = self.rank - 1;
        let mut index = [0; MAX_RANK];
        let mut rest = runs.start;
        for axis in (0..outer).rev() {
            index[axis] = rest % self.dims[axis];
            rest /= self.dims[axis];
        }
        let mut offsets: [usize; N] = std::array::from_fn(|input| {
            (0..outer).fold(0usize, |offset, axis| {
                offset.wrapping_add(index[axis].wrapping_mul(self.strides[input][axis]))
            })
        });
        for number in runs {
            run(number, offsets);
            for axis in (0..outer).rev() {
                index[axis] += 1;
                for (offset, strides) in offsets.iter_mut().zip(&self.strides) {
                    *offset = offset.wrapping_add(strides[axis]);
                }
                if index[axis] < self.dims[axis] {
                    break;
                }
                index[axis] = 0;
                for (offset, strides) in offsets.iter_mut().zip(&self.strides) {
                    *offset = offset.wrapping_sub(strides[axis].wrapping_mul(self.dims[axis]));
                }
            }
        }
    }
}

/// Strides by which an array is read as if it had the dimensions that it is broadcast to.
pub(crate) fn broadcast_strides(from: &Shape, to: &Shape) -> [usize; MAX_RANK] {
    let (strides, mut broadcast) = (from.strides(), [0; MAX_RANK]);
    let added = to.rank() - from.rank();
    for (axis, dim) in from.dims().iter().enumerate() {
        broadcast[added + axis] = if *dim == 1 { 0 } else { strides[axis] };
    }
    broadcast
}
