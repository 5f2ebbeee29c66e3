//! One run of a graph.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::memory::Place;
use super::product::Scratches;
use super::step::{Failure, Frame, Kind};
use super::{Memory, Program};
use crate::alloc;
use crate::backend::GraphRun;
use crate::backend::cpu::threads::split::Split;
use crate::backend::cpu::threads::workers::{Progress, Workers};
use crate::error::{Error, Result};
use crate::graph::description::Source;
use crate::graph::shape::TensorType;
use crate::graph::{Array, Operator};
use crate::operands::shared_buffer::{BufferMemory, HostMemory};

/// The run context of one executor.
pub(crate) struct CpuGraphRun {
    workers: Workers<Scratches>,
    progress: Vec<Progress>,
    state: State,
}

/// What the threads of a run share.
struct State {
    program: Arc<Program>,
    memory: Arc<Memory>,
    arena: HostMemory,
    failure: Failure,
    /// What follows is that of the last run's leading dimension.
    leading: Option<usize>,
    types: Vec<TensorType>,
    splits: Vec<Option<Split>>,
    parts: Vec<usize>,
    /// Of this run's operands.
    inputs: Vec<*const u8>,
    outputs: Vec<*mut u8>,
}

// SAFETY: the addresses are those of a run's operands, and of no meaning between runs.
unsafe impl Send for State {}

const WHAT: &str = "a graph's run context";

impl CpuGraphRun {
    pub(crate) fn new(program: Arc<Program>, memory: Arc<Memory>) -> Result<Self> {
        let (graph, steps) = (&program.graph, program.steps.len());
        let plans = || program.products().map(|product| &product.plan);
        let attention = program.attention_words();
        let mut types = alloc::with_capacity(graph.values.len(), WHAT)?;
        types.extend(graph.values.iter().map(|value| value.tensor_type));
        let mut progress = alloc::with_capacity(steps, WHAT)?;
        progress.extend((0..steps).map(|_| Progress::default()));
        Ok(Self {
            workers: Workers::new(program.threads, || Scratches::new(plans(), attention))?,
            progress,
            state: State {
                arena: HostMemory::zeroed(memory.arena_bytes, "the values of a graph")?,
                failure: Failure::default(),
                leading: None,
                types,
                splits: alloc::filled(steps, None, WHAT)?,
                parts: alloc::filled(steps, 0, WHAT)?,
                inputs: alloc::filled(graph.inputs.len(), std::ptr::null(), WHAT)?,
                outputs: alloc::filled(graph.outputs.len(), std::ptr::null_mut(), WHAT)?,
                program,
                memory,
            },
        })
    }
}

impl GraphRun for CpuGraphRun {
    fn run(
        &mut self,
        leading: usize,
        inputs: &[&Array],
        outputs: &mut [&mut Array],
        step_ns: Option<&mut [u64]>,
    ) -> Result<()> {
        let Self { workers, progress, state } = self;
        for (start, array) in state.inputs.iter_mut().zip(inputs) {
            *start = array.elements().start();
        }
        for (start, array) in state.outputs.iter_mut().zip(&mut *outputs) {
            *start = array.elements_mut().start_mut();
        }
        state.prepare(leading);
        state.failure.reset();
        let (program, parts, frame) = (&*state.program, &state.parts, state.frame());
        let task = |step: usize, part: usize, scratch: &mut Scratches| {
            // SAFETY: the operands are as the graph says; steps follow each other, and parts do not overlap; the
            // instruction set is here.
            unsafe { program.steps[step].run(step, (part, parts[step]), &frame, scratch) };
        };
        let team = program.team.as_ref();
        match step_ns {
            None => workers.run_series(team, parts, progress, task, |_| ())?,
            Some(step_ns) => {
                let start = Instant::now();
                let ends: Vec<AtomicU64> = step_ns.iter().map(|_| AtomicU64::new(0)).collect();
                let now_ns = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                let after = |step: usize| {
                    if let Some(end) = ends.get(step) {
                        end.store(now_ns(), Ordering::Relaxed);
                    }
                };
                workers.run_series(team, parts, progress, task, after)?;
                let mut last = 0;
                for (ns, end) in step_ns.iter_mut().zip(ends) {
                    let end = end.into_inner();
                    *ns = end.saturating_sub(last);
                    last = end;
                }
            }
        }
        state.finish(leading, outputs)
    }

    fn value(&self, value: usize) -> Result<Option<Array>> {
        let state = &self.state;
        let from = match (state.memory.places[value], &state.program.graph.values[value].source) {
            (Place::Arena(offset), _) => state.arena.start().as_ptr().wrapping_add(offset).cast_const(),
            // What a pass has computed.
            (Place::Constant(start), Source::Constant(_)) => start,
            _ => return Ok(None),
        };
        let mut array = Array::zeros(state.types[value])?;
        let bytes = state.types[value].bytes();
        // SAFETY: the value has so many bytes there, as its type says, and so has the array.
        unsafe {
            from.copy_to_nonoverlapping(array.elements_mut().start_mut(), bytes);
        }
        Ok(Some(array))
    }
}

impl State {
    fn frame(&self) -> Frame<'_> {
        Frame {
            places: &self.memory.places,
            types: &self.types,
            arena: self.arena.start().as_ptr(),
            inputs: &self.inputs,
            outputs: &self.outputs,
            vector: self.program.vector,
            splits: &self.splits,
            failure: &self.failure,
        }
    }

    /// What depends on the leading dimension.
    fn prepare(&mut self, leading: usize) {
        if self.leading == Some(leading) {
            return;
        }
        let program = Arc::clone(&self.program);
        for (value, tensor_type) in self.types.iter_mut().enumerate() {
            *tensor_type = program.graph.type_for(value, leading);
        }
        for (index, step) in program.steps.iter().enumerate() {
            self.splits[index] = match &step.kind {
                // SAFETY: the operands of this run are there, of these types.
                Kind::Product(product) => unsafe { product.split(&self.frame()) },
                _ => None,
            };
            self.parts[index] = step.parts(&self.types, self.splits[index].as_ref(), program.threads);
        }
        self.leading = Some(leading);
    }

    /// Copies what does not lie in its output, clears what is beyond the leading dimension, and says what failed.
    fn finish(&mut self, leading: usize, outputs: &mut [&mut Array]) -> Result<()> {
        if let Some((step, index)) = self.failure.get() {
            return Err(self.error_of(step, index));
        }
        let program = &*self.program;
        for (output, value) in &self.memory.copied_outputs {
            let from = match self.memory.places[*value] {
                Place::Nowhere => continue,
                Place::Constant(start) => start,
                Place::Input(input) => self.inputs[input],
                Place::Output(other) => self.outputs[other].cast_const(),
                Place::Arena(offset) => self.arena.start().as_ptr().wrapping_add(offset).cast_const(),
            };
            let bytes = self.types[program.graph.outputs[*output].1].bytes();
            // SAFETY: both have so many bytes, and outputs are borrowed apart from all else.
            unsafe { from.copy_to_nonoverlapping(self.outputs[*output], bytes) };
        }
        for (array, (_, value)) in outputs.iter_mut().zip(&program.graph.outputs) {
            let (written, all) =
                (program.graph.type_for(*value, leading).bytes(), array.tensor_type().bytes());
            // SAFETY: the output has so many bytes; all types have 0 in bytes of 0.
            unsafe { array.elements_mut().start_mut().add(written).write_bytes(0, all - written) };
        }
        Ok(())
    }

    fn error_of(&self, step: usize, index: i64) -> Error {
        let program = &*self.program;
        let node = &program.graph.nodes[program.steps[step].node];
        let problem = match &node.operator {
            Operator::Gather { axis } => {
                let shape = node.inputs[0].map(|value| self.types[value].shape);
                let shape = shape.unwrap_or(crate::graph::Shape::SCALAR);
                format!("index {index} is out of range: axis {axis} of {shape}")
            }
            _ => "division by 0".into(),
        };
        Error::Graph { node: node.name.clone(), problem: format!("{}: {problem}", node.operator) }
    }
}
