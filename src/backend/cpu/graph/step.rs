//! The steps that a graph is computed in, and the parts of each that threads take.

use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use super::attention::AttentionStep;
use super::elementwise::{self, Elements, Loops};
use super::memory::Place;
use super::movement::{self, Slice};
use super::product::{Product, Scratches};
use super::reduce::{self, Reduction};
use crate::backend::cpu::microkernel::instances::VectorFunctions;
use crate::backend::cpu::rows::{NormRows, Softmax, Unary, UnaryFunction};
use crate::backend::cpu::threads::split::Split;
use crate::description::element::ElementType;
use crate::graph::Operator;
use crate::graph::shape::{Shape, TensorType};

/// A part of a step has at least about so many elements: handing it over costs as much as some thousand.
const ELEMENTS_PER_PART: usize = 16 << 10;

/// The most parts of a step for each thread.
const PARTS_PER_THREAD: usize = 4;

/// What one node, or several of them, become.
pub(crate) struct Step {
    /// The node that it is named after, the last of its nodes.
    pub node: usize,
    pub inputs: Vec<Option<usize>>,
    pub outputs: Vec<usize>,
    pub kind: Kind,
}

pub(crate) enum Kind {
    Product(Box<Product>),
    Attention(Box<AttentionStep>),
    /// Over the dimensions from `axis` on; of x, scale and optionally the bias.
    Normalize {
        axis: usize,
        epsilon: f32,
        subtract_mean: bool,
    },
    Softmax {
        axis: usize,
    },
    Unary(UnaryFunction),
    Elementwise {
        kernel: elementwise::Kernel,
        constants: [f32; 2],
    },
    /// A kernel of two inputs over any number of them.
    Fold(elementwise::Kernel),
    Clip(elementwise::Kernel),
    Move(Operator),
    Slice(Slice),
    /// Of x and optionally what fills the margin.
    Pad(Operator),
    Trilu {
        upper: bool,
        k: i64,
    },
    Gather {
        axis: usize,
    },
    Reduce {
        kernel: reduce::Kernel,
        axes: Vec<usize>,
    },
}

/// What the parts of a run have in common.
pub(crate) struct Frame<'a> {
    pub places: &'a [Place],
    /// The types of all values in this run.
    pub types: &'a [TensorType],
    pub arena: *mut u8,
    pub inputs: &'a [*const u8],
    pub outputs: &'a [*mut u8],
    pub vector: &'static VectorFunctions,
    /// How the products of this run are shared out, by step.
    pub splits: &'a [Option<Split>],
    pub failure: &'a Failure,
}

// SAFETY: steps write to what they alone write to, in parts that do not overlap, and read what earlier steps wrote.
unsafe impl Sync for Frame<'_> {}

/// What went wrong first in a run, if anything did.
#[derive(Default)]
pub(crate) struct Failure {
    has_failed: AtomicBool,
    step: AtomicUsize,
    /// The index that is out of range; of no meaning for a division.
    index: AtomicI64,
}

impl Failure {
    pub(crate) fn reset(&mut self) {
        *self.has_failed.get_mut() = false;
    }

    fn note(&self, step: usize, index: i64) {
        if !self.has_failed.swap(true, Ordering::Relaxed) {
            self.step.store(step, Ordering::Relaxed);
            self.index.store(index, Ordering::Relaxed);
        }
    }

    /// The step, and the index.
    pub(crate) fn get(&mut self) -> Option<(usize, i64)> {
        self.has_failed.get_mut().then(|| (*self.step.get_mut(), *self.index.get_mut()))
    }
}

impl Frame<'_> {
    pub(crate) fn shape(&self, value: usize) -> Shape {
        self.types[value].shape
    }

    pub(crate) fn start(&self, value: usize) -> *const u8 {
        match self.places[value] {
            Place::Nowhere => ptr::dangling(),
            Place::Constant(start) => start,
            Place::Input(input) => self.inputs[input],
            Place::Output(output) => self.outputs[output],
            Place::Arena(offset) => self.arena.wrapping_add(offset),
        }
    }

    pub(crate) fn start_mut(&self, value: usize) -> *mut u8 {
        self.start(value).cast_mut()
    }
}

/// `range` of `count` in `parts` even ones.
fn part_of(count: usize, (part, parts): (usize, usize)) -> Range<usize> {
    // Counts of elements of any memory times a number of parts fit.
    let at = |part: usize| (count as u128 * part as u128 / parts as u128) as usize;
    at(part)..at(part + 1)
}

/// The parts that threads take of so many elements in so many pieces.
fn parts(threads: usize, elements: usize, pieces: usize) -> usize {
    if elements == 0 || pieces == 0 {
        return 0;
    }
    let most = if threads == 1 { 1 } else { threads * PARTS_PER_THREAD };
    (elements / ELEMENTS_PER_PART).clamp(1, most).min(pieces)
}

/// The product of the dimensions before an axis, and of those from it on.
fn split_at(shape: &Shape, axis: usize) -> (usize, usize) {
    let (before, rest) = shape.dims().split_at(axis);
    (before.iter().product(), rest.iter().product())
}

/// From how many slices of the data a Gather takes each index. Where there are no results, indices are checked once.
fn gathered_slices(data: &Shape, axis: usize, results: usize) -> usize {
    if results == 0 { 1 } else { data.dims()[..axis].iter().product() }
}

impl Step {
    fn input(&self, index: usize) -> Option<usize> {
        self.inputs.get(index).copied().flatten()
    }

    /// The first input, which every operator has.
    fn x(&self) -> usize {
        self.input(0).unwrap_or(0)
    }

    /// How many parts threads may take, for values of these types.
    pub(crate) fn parts(&self, types: &[TensorType], split: Option<&Split>, threads: usize) -> usize {
        let result = types[self.outputs[0]].shape;
        let count = result.count();
        match &self.kind {
            Kind::Product(product) => product.parts(types, split),
            Kind::Attention(attention) => attention.sized(&types[self.x()].shape).pieces(threads),
            Kind::Normalize { axis, .. } => parts(threads, count, split_at(&result, *axis).0),
            Kind::Softmax { axis } => {
                let pieces = split_at(&result, *axis).0;
                // An exponential costs about as much as ten moves.
                parts(threads, count.saturating_mul(10), pieces)
            }
            Kind::Unary(_) => parts(threads, count.saturating_mul(10), count),
            Kind::Elementwise { .. }
            | Kind::Fold(_)
            | Kind::Clip(_)
            | Kind::Slice(_)
            | Kind::Trilu { .. } => parts(threads, count, count),
            Kind::Move(_) => {
                let of = |value: &usize| types[*value].shape.count();
                let count: usize = self.outputs.iter().map(of).sum();
                // Each part takes its share of every movement.
                parts(threads, count, count)
            }
            Kind::Pad(_) => usize::from(count > 0),
            Kind::Gather { axis } => {
                let indices = self.input(1).map_or(0, |value| types[value].shape.count());
                let rows = gathered_slices(&types[self.x()].shape, *axis, count) * indices;
                parts(threads, count.max(1), rows)
            }
            Kind::Reduce { .. } => {
                let elements = types[self.x()].shape.count().max(count);
                parts(threads, elements, count)
            }
        }
    }

    /// Computes a part.
    ///
    /// # Safety
    /// The frame's memory is as its types say; the inputs are computed, nothing else accesses the outputs' elements of
    /// this part, and the instruction set is here.
    #[allow(clippy::too_many_lines, reason = "a table of steps")]
    pub(crate) unsafe fn run(
        &self,
        index: usize,
        part: (usize, usize),
        frame: &Frame<'_>,
        scratch: &mut Scratches,
    ) {
        let y = self.outputs[0];
        let result = frame.shape(y);
        // SAFETY: by this function's own contract.
        unsafe {
            match &self.kind {
                Kind::Product(product) => product.run(index, part.0, frame, scratch),
                Kind::Attention(attention) => {
                    let values = [0, 1, 2].map(|input| self.input(input).unwrap_or(0));
                    attention.run((values, self.input(3), y), part, frame, scratch);
                }
                Kind::Normalize { axis, epsilon, subtract_mean } => {
                    let (rows, cols) = split_at(&result, *axis);
                    let range = part_of(rows, part);
                    let offset = range.start * cols;
                    let of = |input: usize| {
                        self.input(input).map_or(ptr::null(), |value| frame.start(value).cast::<f32>())
                    };
                    (frame.vector.rows.normalize)(&NormRows {
                        x: of(0).wrapping_add(offset),
                        residual: ptr::null(),
                        y: frame.start_mut(y).cast::<f32>().wrapping_add(offset),
                        scale: of(1),
                        bias: of(2),
                        rows: range.len(),
                        cols,
                        epsilon: *epsilon,
                        subtract_mean: *subtract_mean,
                    });
                }
                Kind::Softmax { axis } => {
                    let (outer, rest) = split_at(&result, *axis);
                    let len = result.dims()[*axis];
                    let range = part_of(outer, part);
                    let offset = range.start * rest;
                    (frame.vector.rows.softmax)(&Softmax {
                        x: frame.start(self.x()).cast::<f32>().wrapping_add(offset),
                        y: frame.start_mut(y).cast::<f32>().wrapping_add(offset),
                        outer: range.len(),
                        len,
                        inner: rest / len,
                    });
                }
                Kind::Unary(function) => {
                    let range = part_of(result.count(), part);
                    (frame.vector.rows.unary)(&Unary {
                        function: *function,
                        x: frame.start(self.x()).cast::<f32>().wrapping_add(range.start),
                        y: frame.start_mut(y).cast::<f32>().wrapping_add(range.start),
                        count: range.len(),
                    });
                }
                Kind::Elementwise { kernel, constants } => {
                    let inputs = [0, 1, 2].map(|input| self.input(input).map(|value| frame.operand(value)));
                    frame.each(index, (*kernel, *constants), y, &inputs, part);
                }
                Kind::Fold(kernel) => {
                    let mut first = frame.operand(self.x());
                    for input in self.inputs.iter().skip(1).flatten() {
                        let inputs = [Some(first), Some(frame.operand(*input)), None];
                        frame.each(index, (*kernel, [0.0; 2]), y, &inputs, part);
                        first = frame.operand(y);
                    }
                }
                Kind::Clip(kernel) => {
                    let bounds: [*const u8; 2] = match frame.types[y].element {
                        ElementType::F32 => [(&raw const NO_F32[0]).cast(), (&raw const NO_F32[1]).cast()],
                        ElementType::I64 => [(&raw const NO_I64[0]).cast(), (&raw const NO_I64[1]).cast()],
                        _ => [(&raw const NO_I32[0]).cast(), (&raw const NO_I32[1]).cast()],
                    };
                    let bound = |input: usize| {
                        let given = self.input(input).map(|value| frame.operand(value));
                        given.unwrap_or((bounds[input - 1], Shape::SCALAR, 0))
                    };
                    let inputs = [Some(frame.operand(self.x())), Some(bound(1)), Some(bound(2))];
                    frame.each(index, (*kernel, [0.0; 2]), y, &inputs, part);
                }
                Kind::Move(operator) => self.move_elements(operator, part, frame),
                Kind::Slice(slice) => {
                    let movement = slice.movement(&result, &frame.shape(self.x()));
                    movement.run(part, frame.bytes(y), frame.start_mut(y), frame.start(self.x()));
                }
                Kind::Pad(operator) => {
                    let bytes = frame.bytes(y);
                    let to = frame.start_mut(y);
                    match self.input(1).map(|value| frame.start(value)) {
                        None => to.write_bytes(0, result.count() * bytes),
                        Some(fill) => {
                            for element in 0..result.count() {
                                fill.copy_to_nonoverlapping(to.add(element * bytes), bytes);
                            }
                        }
                    }
                    self.move_elements(operator, part, frame);
                }
                Kind::Trilu { upper, k } => {
                    let [.., rows, cols] = *result.dims() else { return };
                    let bytes = frame.bytes(y);
                    let (to, from) = (frame.start_mut(y), frame.start(self.x()));
                    for element in part_of(result.count(), part) {
                        let signed = |index: usize| i64::try_from(index).unwrap_or(i64::MAX);
                        let diagonal = signed(element % cols) - signed(element / cols % rows);
                        let stays = if *upper { diagonal >= *k } else { diagonal <= *k };
                        let to = to.add(element * bytes);
                        if stays {
                            from.add(element * bytes).copy_to_nonoverlapping(to, bytes);
                        } else {
                            to.write_bytes(0, bytes);
                        }
                    }
                }
                Kind::Gather { axis } => self.gather(index, *axis, part, frame),
                Kind::Reduce { kernel, axes } => {
                    let x = self.x();
                    let range = part_of(result.count(), part);
                    let reduction = Reduction::new(&frame.shape(x), axes);
                    kernel(&reduction, range, frame.start_mut(y), frame.start(x));
                }
            }
        }
    }

    /// # Safety
    /// As [`Step::run`].
    unsafe fn move_elements(&self, operator: &Operator, part: (usize, usize), frame: &Frame<'_>) {
        for index in 0..movement::count_of(operator, self.inputs.len(), self.outputs.len()) {
            let moved = movement::movement_of(
                operator,
                index,
                |input| self.input(input).map_or(Shape::SCALAR, |value| frame.shape(value)),
                |output| frame.shape(self.outputs[output]),
            );
            if let (Some((movement, output, input)), Some(bytes)) =
                (moved, self.outputs.first().map(|value| frame.bytes(*value)))
            {
                let (to, from) = (self.outputs[output], self.input(input).unwrap_or(0));
                // SAFETY: by this function's own contract.
                unsafe { movement.run(part, bytes, frame.start_mut(to), frame.start(from)) };
            }
        }
    }

    /// # Safety
    /// As [`Step::run`].
    unsafe fn gather(&self, index: usize, axis: usize, part: (usize, usize), frame: &Frame<'_>) {
        let (data, y) = (self.x(), self.outputs[0]);
        let Some(at) = self.input(1) else { return };
        let shape = frame.shape(data);
        let dim = shape.dims()[axis];
        let inner = shape.dims()[axis + 1..].iter().product::<usize>() * frame.bytes(y);
        let (count, results) = (frame.shape(at).count(), frame.shape(y).count());
        let rows = part_of(gathered_slices(&shape, axis, results) * count, part);
        for row in rows {
            // SAFETY: by this function's own contract.
            let given = unsafe {
                match frame.types[at].element {
                    ElementType::I32 => i64::from(frame.start(at).cast::<i32>().add(row % count).read()),
                    _ => frame.start(at).cast::<i64>().add(row % count).read(),
                }
            };
            let from_start = if given < 0 { given.checked_add_unsigned(dim as u64) } else { Some(given) };
            let found = from_start.and_then(|index| usize::try_from(index).ok()).filter(|found| *found < dim);
            if found.is_none() {
                frame.failure.note(index, given);
            }
            if results == 0 {
                continue;
            }
            // SAFETY: by this function's own contract; an index that was found is in range. The steps that follow read
            // the row even so: what lay there before may be no boolean.
            unsafe {
                let to = frame.start_mut(y).add(row * inner);
                match found {
                    Some(found) => {
                        let from = (row / count * dim + found) * inner;
                        frame.start(data).add(from).copy_to_nonoverlapping(to, inner);
                    }
                    None => to.write_bytes(0, inner),
                }
            }
        }
    }
}

/// Bounds of a Clip that has none.
static NO_F32: [f32; 2] = [f32::NEG_INFINITY, f32::INFINITY];
static NO_I64: [i64; 2] = [i64::MIN, i64::MAX];
static NO_I32: [i32; 2] = [i32::MIN, i32::MAX];

/// An input: where it starts, its dimensions and the bytes of its elements.
type Operand = (*const u8, Shape, usize);

impl Frame<'_> {
    fn operand(&self, value: usize) -> Operand {
        (self.start(value), self.shape(value), self.bytes(value))
    }

    /// The bytes of an element of a value, none of which has fewer than one.
    fn bytes(&self, value: usize) -> usize {
        self.types[value].element.bits() / 8
    }

    /// A part of the elements of y by a kernel, of inputs that are broadcast to it.
    ///
    /// # Safety
    /// As [`Step::run`]; the kernel takes these types.
    unsafe fn each(
        &self,
        step: usize,
        (kernel, constants): (elementwise::Kernel, [f32; 2]),
        y: usize,
        inputs: &[Option<Operand>; 3],
        part: (usize, usize),
    ) {
        let (result, bytes) = (self.shape(y), self.bytes(y));
        let inputs = inputs.map(|input| input.unwrap_or((ptr::dangling(), Shape::SCALAR, 0)));
        let loops = Loops::broadcast(&result, inputs.map(|(_, shape, _)| shape));
        let (count, strides) = loops.inner();
        let range = part_of(result.count(), part);
        let divided_by_zero = AtomicBool::new(false);
        let start = self.start_mut(y);
        loops.for_each(range.start / count..range.end.div_ceil(count), |run, offsets| {
            let (first, end) = (range.start.max(run * count), range.end.min((run + 1) * count));
            let skipped = first - run * count;
            let x = std::array::from_fn(|input| {
                let (start, _, bytes) = inputs[input];
                start.wrapping_add((offsets[input] + skipped * strides[input]) * bytes)
            });
            let elements = Elements {
                count: end - first,
                y: start.wrapping_add(first * bytes),
                x,
                strides,
                constants,
                divided_by_zero: &divided_by_zero,
            };
            // SAFETY: by this function's own contract.
            unsafe { kernel(&elements) };
        });
        if divided_by_zero.into_inner() {
            self.failure.note(step, 0);
        }
    }
}
