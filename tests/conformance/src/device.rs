//! Runs on operands in memory of the device's: submitted, and one after the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ane_matmul::{AnyView, DeviceTensor, Error, Executor, Inputs, Quantization, Submission, Ticket};

use crate::cases::{Case, Contents, Stride};
use crate::data::Guarded;
use crate::operands::Operands;
use crate::run::{Failure, Passed, Suite, Trial, wrong};

/// The submissions of a case, of two sets of numbers in turn, ...
const SUBMISSIONS: usize = 5;

/// ... and how many are in flight, where the backend takes so many.
const DEPTH: usize = 3;

/// The columns of the product that a result is an operand of.
const NEXT_COLUMNS: usize = 5;

/// A set of operands on the device.
struct Uploaded {
    a: Arc<DeviceTensor>,
    b: Option<Arc<DeviceTensor>>,
    bias: Option<Arc<DeviceTensor>>,
    residual: Option<Arc<DeviceTensor>>,
}

impl Uploaded {
    fn new(trial: &Trial<'_>, operands: &Operands) -> Result<Self, Failure> {
        let upload = |operand: &Guarded| trial.compiled.memory().upload(operand.view()).map(Arc::new);
        let optional = |operand: Option<&Guarded>| operand.map(upload).transpose();
        Ok(Self {
            a: upload(&operands.a)?,
            b: optional(trial.b(operands))?,
            bias: optional(operands.bias.as_ref())?,
            residual: optional(operands.residual.as_ref())?,
        })
    }

    /// All of them, with this A.
    fn with_a<'o>(&'o self, a: impl Into<AnyView<'o>>) -> Inputs<'o> {
        let mut inputs = Inputs::new(a);
        if let Some(b) = &self.b {
            inputs = inputs.b(&**b);
        }
        if let Some(bias) = &self.bias {
            inputs = inputs.bias(&**bias);
        }
        if let Some(residual) = &self.residual {
            inputs = inputs.residual(&**residual);
        }
        inputs
    }

    fn inputs(&self) -> Inputs<'_> {
        self.with_a(&*self.a)
    }

    fn submission(&self, c: DeviceTensor, rows: Option<usize>) -> Submission {
        let mut submission = Submission::new(Arc::clone(&self.a), c);
        submission.b.clone_from(&self.b);
        submission.bias.clone_from(&self.bias);
        submission.residual.clone_from(&self.residual);
        submission.rows = rows;
        submission
    }

    /// Whether the device still holds what was uploaded.
    fn check(&self, trial: &Trial<'_>, operands: &Operands) -> Result<(), Failure> {
        let here = [Some(&self.a), self.b.as_ref(), self.bias.as_ref(), self.residual.as_ref()];
        let there =
            [Some(&operands.a), trial.b(operands), operands.bias.as_ref(), operands.residual.as_ref()];
        for (tensor, operand) in here.into_iter().zip(there) {
            if let (Some(tensor), Some(operand)) = (tensor, operand)
                && downloaded(tensor, operand)?.bits() != operand.bits()
            {
                return wrong(
                    "an input on the device was written to, or did not come back as it was uploaded",
                );
            }
        }
        Ok(())
    }
}

/// What the device holds, in guards like those of `like`.
fn downloaded(tensor: &DeviceTensor, like: &Guarded) -> Result<Guarded, Failure> {
    let mut copy = like.clone();
    copy.clear();
    tensor.download_into(copy.view_mut())?;
    Ok(copy)
}

/// Holds each set's first result to the reference, and its later ones to the first. Sets take turns.
struct Results {
    /// What is counted.
    runs: &'static str,
    /// With the number of the run, from 0.
    first: [Option<(usize, Passed)>; 2],
}

impl Results {
    const fn of(runs: &'static str) -> Self {
        Self { runs, first: [None, None] }
    }

    fn add(
        &mut self,
        trial: &Trial<'_>,
        sets: &[Operands; 2],
        run: usize,
        c: &Guarded,
    ) -> Result<(), Failure> {
        let (runs, set) = (self.runs, run % 2);
        match &self.first[set] {
            Some((_, first)) if first.bits == c.bits_but_of_nan() => Ok(()),
            Some((first, _)) => wrong(format!(
                "{runs} {} gave other bits than {runs} {} of the same numbers",
                run + 1,
                first + 1
            )),
            None => {
                self.first[set] = Some((run, trial.judge(&sets[set], c)?));
                Ok(())
            }
        }
    }

    fn passed(self) -> Result<Passed, Failure> {
        let [Some((_, first)), Some(_)] = self.first else { return wrong("a set of numbers was not run") };
        Ok(first)
    }
}

/// [`crate::Way::Submitted`].
pub(crate) fn submitted(
    suite: &Suite<'_>,
    trial: &Trial<'_>,
    sets: &[Operands; 2],
) -> Result<Passed, Failure> {
    let depth = match suite.backends.info(suite.id)?.max_queue_depth {
        0 => DEPTH,
        most => DEPTH.min(most),
    };
    let memory = trial.compiled.memory();
    let mut executor = trial.compiled.executor_with_depth(depth)?;
    let uploaded = [Uploaded::new(trial, &sets[0])?, Uploaded::new(trial, &sets[1])?];

    // Submissions that own their operands.
    let mut results = Results::of("submission");
    let whole = trial.whole_output();
    let mut in_flight: VecDeque<(usize, Ticket)> = VecDeque::new();
    for index in 0..SUBMISSIONS {
        if in_flight.len() == depth
            && let Some((index, ticket)) = in_flight.pop_front()
        {
            results.add(trial, sets, index, &wait(&mut executor, ticket, trial)?)?;
        }
        let c = memory.upload(whole.view())?;
        let submission = uploaded[index % 2].submission(c, trial.case.rows);
        in_flight.push_back((index, executor.submit(submission).map_err(Error::from)?));
    }
    // When the last is complete, so are those before it.
    if let Some((index, ticket)) = in_flight.pop_back() {
        results.add(trial, sets, index, &wait(&mut executor, ticket, trial)?)?;
    }
    for (index, ticket) in in_flight {
        let looked = executor.wait_timeout(ticket, Duration::ZERO).map_err(Error::from)?;
        let Some(done) = looked else {
            return wrong("a submission is in flight after a later one was complete");
        };
        results.add(trial, sets, index, &c_of(&done.submission.c, trial)?)?;
    }
    let passed = results.passed()?;

    // Submissions of borrowed operands, that lie within buffers or fill them.
    let mut results = Results::of("submission of the scope");
    let output = trial.output();
    let mut outputs = (0..SUBMISSIONS).map(|_| output.in_buffer(memory)).collect::<Result<Vec<_>, _>>()?;
    let buffers = [sets[0].a.in_buffer(memory)?, sets[1].a.in_buffer(memory)?];
    executor.scope(|queue| {
        for (index, c) in outputs.iter_mut().enumerate() {
            let set = index % 2;
            queue.submit(uploaded[set].with_a(sets[set].a.view_in(&buffers[set])), output.view_in_mut(c))?;
        }
        Ok(())
    })?;
    for (index, buffer) in outputs.iter().enumerate() {
        let mut c = output.clone();
        c.read_from(buffer);
        results.add(trial, sets, index, &c)?;
    }
    results.passed()?;

    for (set, operands) in sets.iter().enumerate() {
        uploaded[set].check(trial, operands)?;
        let mut copy = operands.a.clone();
        copy.read_from(&buffers[set]);
        if copy.bits() != operands.a.bits() {
            return wrong("an input in a shared buffer was written to");
        }
    }
    Ok(passed)
}

fn wait(executor: &mut Executor, ticket: Ticket, trial: &Trial<'_>) -> Result<Guarded, Failure> {
    let done = executor.wait(ticket).map_err(Error::from)?;
    c_of(&done.submission.c, trial)
}

/// A result of all rows on the device: those of the run, and the others as guards.
fn c_of(tensor: &DeviceTensor, trial: &Trial<'_>) -> Result<Guarded, Failure> {
    Ok(downloaded(tensor, &trial.whole_output())?.first_rows(trial.rows()))
}

/// [`crate::Way::Resident`].
pub(crate) fn resident(
    suite: &Suite<'_>,
    trial: &Trial<'_>,
    sets: &[Operands; 2],
) -> Result<Passed, Failure> {
    let memory = trial.compiled.memory();
    let mut executor = trial.compiled.executor()?;
    let uploaded = [Uploaded::new(trial, &sets[0])?, Uploaded::new(trial, &sets[1])?];
    let whole = trial.whole_output();
    let mut c = memory.upload(whole.view())?;
    let mut results = Results::of("run");
    for index in 0..3 {
        c.upload(whole.view())?;
        executor.run(uploaded[index % 2].inputs(), c.first_rows_mut(trial.rows()))?;
        results.add(trial, sets, index, &c_of(&c, trial)?)?;
    }
    let passed = results.passed()?;
    uploaded[0].check(trial, &sets[0])?;
    uploaded[1].check(trial, &sets[1])?;

    // The last one's result is an operand where it lies.
    if let Some(next) = next(&trial.case) {
        let (next, [mut operands, _]) = Trial::new(suite, &next, sets[0].seed)?;
        operands.a = c_of(&c, trial)?;
        let b = next.compiled.memory().upload(operands.b.view())?;
        let mut d = next.compiled.memory().upload(next.whole_output().view())?;
        let inputs = Inputs::new(c.first_rows(trial.rows())).b(&b);
        next.compiled.run(inputs, d.first_rows_mut(trial.rows()))?;
        next.judge(&operands, &c_of(&d, &next)?)?;
    }

    // Some operands on the host, and others on the device.
    let mut on_host = trial.output();
    executor.run(uploaded[0].with_a(sets[0].a.view()), c.first_rows_mut(trial.rows()))?;
    executor.run(uploaded[1].inputs(), on_host.view_mut())?;
    for (operands, c) in sets.iter().zip([c_of(&c, trial)?, on_host]) {
        trial.judge(operands, &c)?;
    }
    in_wrapped_memory(suite, trial, &uploaded[0], &sets[0], &mut executor)?;
    Ok(passed)
}

/// A run on an A and a C in memory that the device wraps, where it wraps any.
fn in_wrapped_memory(
    suite: &Suite<'_>,
    trial: &Trial<'_>,
    uploaded: &Uploaded,
    operands: &Operands,
    executor: &mut Executor,
) -> Result<(), Failure> {
    let Some(alignment) = suite.backends.info(suite.id)?.wrap_alignment_bytes else { return Ok(()) };
    let output = trial.output();
    let wrap = |operand: &Guarded| operand.in_wrapped(suite.backends, suite.id, alignment);
    let (a, mut c) = (wrap(&operands.a)?, wrap(&output)?);
    let inputs = uploaded.with_a(operands.a.view_in(&a.buffer));
    executor.run(inputs, output.view_in_mut(&mut c.buffer))?;
    let mut result = output.clone();
    result.read_from(&c.buffer);
    trial.judge(operands, &result)?;
    let mut copy = operands.a.clone();
    copy.read_from(&a.buffer);
    if copy.bits() != operands.a.bits() {
        return wrong("an input in wrapped memory was written to");
    }
    Ok(())
}

/// A product of the same types whose A is the result of `case`, as of one layer after another; `None` where a result is
/// no operand.
fn next(case: &Case) -> Option<Case> {
    let types = case.types;
    let goes_on = [types.a, types.b].iter().all(|&element| element == types.output && element.is_float())
        && case.quantization == Quantization::default();
    let [batch, m, n, _] = case.dims;
    goes_on.then(|| Case {
        dims: [batch, m, NEXT_COLUMNS, n],
        strides: [case.strides[2], Stride::Packed, Stride::Packed, Stride::Packed],
        rows: case.rows,
        contents: if case.contents == Contents::Special { Contents::Special } else { Contents::Normal },
        types,
        bare: case.bare,
        ..Case::new(m, NEXT_COLUMNS, n)
    })
}
