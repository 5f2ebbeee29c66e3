//! The helper's side: answers requests, one after the other.

use std::io::{Read, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::alloc;
use crate::backend::{BackendId, Backends};
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::matmul::MatMul;
use crate::description::options::CompileOptions;
use crate::error::{Error, Result};
use crate::executor::Inputs;
use crate::graph::check::{check_outputs, flops_of_outputs};
use crate::graph::{Array, Graph};
use crate::operands::view::{AnyView, AnyViewMut, TensorView, TensorViewMut};
use crate::operands::weights::Weights;
use crate::random::Random;
use crate::verify::probe::protocol::{FAILED, MAXIMUM_REQUEST_BYTES, PASSED, READY, Request, Subject, WRONG};
use crate::verify::self_check::{ResultChecker, SelfCheck};

/// How long this process may take to exit.
const EXIT_LIMIT: Duration = Duration::from_secs(60);

/// Whether a product is being tried out.
static BUSY: AtomicBool = AtomicBool::new(false);

/// What the `main` of a helper program calls: reads requests of a [`crate::probe::Probe`] from standard input,
/// tries each product out on one of `backends`, and answers on standard output.
///
/// Give it the backends of the program that probes, shims included. When the probing program goes away, so
/// does this process, even if a product hangs: standard input ends. The status tells a person whether a
/// probe asked; probes read the answers.
#[must_use]
pub fn serve(backends: &Backends) -> ExitCode {
    let first = match read_request(std::io::stdin().lock()) {
        Ok(request) => request,
        Err(error) => {
            eprintln!("error: {error}; this program is started by a probe, not by hand");
            return ExitCode::from(2);
        }
    };
    BUSY.store(true, Ordering::SeqCst);
    let later = later_requests();
    let mut next = Some(first);
    while let Some(request) = next {
        // Nobody listens: nothing is tried out.
        if !answer(&request, READY) {
            return ExitCode::FAILURE;
        }
        let line = match attempt(backends, &request) {
            Ok((None, first_run)) => format!("{PASSED} {}", first_run.as_nanos()),
            Ok((Some(wrong), _)) => format!("{WRONG} {wrong}"),
            Err(error) => format!("{FAILED} {error}"),
        };
        BUSY.store(false, Ordering::SeqCst);
        if !answer(&request, &line) {
            return ExitCode::FAILURE;
        }
        next = later.as_ref().and_then(|later| later.recv().ok());
    }
    ExitCode::SUCCESS
}

fn answer(request: &Request, line: &str) -> bool {
    let mut out = std::io::stdout().lock();
    // One line, after whatever somebody printed without ending it.
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    writeln!(out, "\n{} {line}", request.token).and_then(|()| out.flush()).is_ok()
}

/// Reads what else comes on a thread, which ends this process when the probing program goes away while a
/// product is tried out. Without the thread one request is all, and this process ends a little later.
fn later_requests() -> Option<mpsc::Receiver<Request>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .spawn(move || {
            while let Ok(request) = read_request(std::io::stdin().lock()) {
                BUSY.store(true, Ordering::SeqCst);
                if sender.send(request).is_err() {
                    return;
                }
            }
            drop(sender);
            // What hangs while this process exits has nobody to kill it, either.
            if !BUSY.load(Ordering::SeqCst) {
                std::thread::sleep(EXIT_LIMIT);
            }
            std::process::abort();
        })
        .ok()
        .map(|_| receiver)
}

fn read_request(mut input: impl Read) -> Result<Request> {
    let problem = |problem: String| Error::Probe { problem };
    let mut text = Vec::new();
    let mut byte = [0];
    while !Request::is_whole(&text) {
        match input.read(&mut byte) {
            Ok(1) if text.len() < MAXIMUM_REQUEST_BYTES => text.push(byte[0]),
            Ok(1) => return Err(problem("the request is too long".into())),
            Ok(_) => return Err(problem("no request came on standard input".into())),
            Err(error) => return Err(problem(format!("standard input: {error}"))),
        }
    }
    let text = std::str::from_utf8(&text).map_err(|error| problem(error.to_string()))?;
    let (mut request, more) = Request::from_text(text)?;
    if let Subject::Graph(graph) = &mut request.subject {
        alloc::reserve(graph, more, "a graph")?;
        let read = input.take(more as u64).read_to_end(graph);
        let read = read.map_err(|error| problem(format!("standard input: {error}")))?;
        if read < more {
            return Err(problem("the request is cut short".into()));
        }
    }
    Ok(request)
}

/// Random numbers of one element type.
enum Data {
    F64(Vec<f64>),
    F32(Vec<f32>),
    #[cfg(feature = "half")]
    F16(Vec<half::f16>),
    #[cfg(feature = "half")]
    Bf16(Vec<half::bf16>),
}

impl Data {
    #[allow(clippy::cast_possible_truncation, reason = "random numbers, rounded")]
    fn new(element: ElementType, layout: &Layout, random: &mut Random) -> Result<Self> {
        const WHAT: &str = "an operand of a probe";
        let count = layout.span();
        let mut draw = || random.normal();
        let fill = |draw: &mut dyn FnMut() -> f64| -> Result<Vec<f64>> {
            let mut data = crate::alloc::filled(count, 0.0, WHAT)?;
            data.fill_with(draw);
            Ok(data)
        };
        Ok(match element {
            ElementType::F64 => Self::F64(fill(&mut draw)?),
            ElementType::F32 => {
                let mut data = crate::alloc::filled(count, 0f32, WHAT)?;
                data.fill_with(|| draw() as f32);
                Self::F32(data)
            }
            #[cfg(feature = "half")]
            ElementType::F16 => {
                let mut data = crate::alloc::filled(count, half::f16::ZERO, WHAT)?;
                data.fill_with(|| crate::operands::float16::from_f64(draw()));
                Self::F16(data)
            }
            #[cfg(feature = "half")]
            ElementType::Bf16 => {
                let mut data = crate::alloc::filled(count, half::bf16::ZERO, WHAT)?;
                data.fill_with(|| half::bf16::from_f64(draw()));
                Self::Bf16(data)
            }
            other => {
                return Err(Error::Probe { problem: format!("this helper has no elements of type {other}") });
            }
        })
    }

    fn view(&self, layout: Layout) -> Result<AnyView<'_>> {
        Ok(match self {
            Self::F64(data) => TensorView::with_layout(data, layout)?.erased(),
            Self::F32(data) => TensorView::with_layout(data, layout)?.erased(),
            #[cfg(feature = "half")]
            Self::F16(data) => TensorView::with_layout(data, layout)?.erased(),
            #[cfg(feature = "half")]
            Self::Bf16(data) => TensorView::with_layout(data, layout)?.erased(),
        })
    }

    fn view_mut(&mut self, layout: Layout) -> Result<AnyViewMut<'_>> {
        Ok(match self {
            Self::F64(data) => TensorViewMut::with_layout(data, layout)?.erased(),
            Self::F32(data) => TensorViewMut::with_layout(data, layout)?.erased(),
            #[cfg(feature = "half")]
            Self::F16(data) => TensorViewMut::with_layout(data, layout)?.erased(),
            #[cfg(feature = "half")]
            Self::Bf16(data) => TensorViewMut::with_layout(data, layout)?.erased(),
        })
    }
}

/// Compiles, runs once and verifies: the wrong element, if there is one, and how long the first two took.
fn attempt(backends: &Backends, request: &Request) -> Result<(Option<String>, Duration)> {
    let Request { backend, subject, options, .. } = request;
    match subject {
        Subject::Product(product) => attempt_product(backends, backend, product, options),
        Subject::Graph(bytes) => attempt_graph(backends, backend, &Graph::from_bytes(bytes)?, options),
    }
}

/// The operations of a graph, at one index of its leading dimension, that take the interpreter a minute or so.
const MOST_FLOPS: u64 = 1 << 35;

fn attempt_graph(
    backends: &Backends,
    backend: &BackendId,
    graph: &Graph,
    options: &CompileOptions,
) -> Result<(Option<String>, Duration)> {
    let start = Instant::now();
    let compiled = backends.compile_graph(backend, graph, options)?;
    let mut executor = compiled.executor()?;
    let whole = match &graph.leading {
        Some(leading) => graph.with_leading(leading.most)?,
        None => graph.clone(),
    };
    let mut random = Random::new(1);
    let mut failure = Error::Probe { problem: "there are no inputs to try".into() };
    // What integers mean nobody says: 0 and 1 are indices nearly everywhere, 1 a divisor.
    for integers in [[0, 1], [1, 1], [0, 0]] {
        let mut inputs = alloc::with_capacity(whole.inputs.len(), "inputs")?;
        for (_, of) in whole.inputs() {
            inputs.push(Array::random(of, integers, &mut random)?);
        }
        let inputs: Vec<_> = inputs.iter().collect();
        let outputs = match executor.run_to_arrays(&inputs) {
            Ok(outputs) => outputs,
            Err(error @ Error::Graph { .. }) => {
                failure = error;
                continue;
            }
            Err(error) => return Err(error),
        };
        let first_run = start.elapsed();
        // Without an error bound it is held to nothing but that it ends.
        if options.fast_math || options.reduced_precision || flops_of_outputs(&whole)? > MOST_FLOPS {
            return Ok((None, first_run));
        }
        match check_outputs(&whole, &inputs, &outputs.iter().collect::<Vec<_>>(), 1, &mut random) {
            Ok(wrong) => return Ok((wrong.map(|(what, element)| format!("{what}: {element}")), first_run)),
            Err(error @ Error::Graph { .. }) => failure = error,
            Err(error) => return Err(error),
        }
    }
    Err(failure)
}

fn attempt_product(
    backends: &Backends,
    backend: &BackendId,
    product: &MatMul,
    options: &CompileOptions,
) -> Result<(Option<String>, Duration)> {
    let types = product.types();
    let mut random = Random::new(1);
    let mut data = |element, layout: &Layout| Data::new(element, layout, &mut random);
    let a = data(types.a, product.a())?;
    let b = data(types.b, product.b())?;
    let bias_layout = Layout::row(product.n());
    let bias = data(if product.has_bias() { types.bias } else { ElementType::F32 }, &bias_layout)?;
    let residual = product.residual().map(|layout| data(types.output, layout)).transpose()?;
    let mut c = data(types.output, product.c())?;
    let weights = if product.constant_b() { Some(Weights::new(b.view(*product.b())?)?) } else { None };
    let inputs = inputs(product, [&a, &b, &bias], residual.as_ref(), bias_layout)?;

    let start = Instant::now();
    let compiled = backends.compile_parts(backend, product, weights.as_ref(), options)?;
    let mut executor = compiled.executor()?;
    executor.run(inputs, c.view_mut(*product.c())?)?;
    let first_run = start.elapsed();

    // Products without an error bound are held to nothing but that they end.
    let check = SelfCheck::every_run().failure_probability(1e-3);
    let wrong = match ResultChecker::of_parts(product, weights.as_ref(), &check, options) {
        Ok(mut checker) => checker.check(inputs, c.view(*product.c())?)?.map(|wrong| wrong.to_string()),
        Err(Error::Description { .. }) => None,
        Err(error) => return Err(error),
    };
    Ok((wrong, first_run))
}

fn inputs<'a>(
    product: &MatMul,
    [a, b, bias]: [&'a Data; 3],
    residual: Option<&'a Data>,
    bias_layout: Layout,
) -> Result<Inputs<'a>> {
    let mut inputs = Inputs::new(a.view(*product.a())?);
    if !product.constant_b() {
        inputs = inputs.b(b.view(*product.b())?);
    }
    if product.has_bias() {
        inputs = inputs.bias(bias.view(bias_layout)?);
    }
    if let (Some(residual), Some(layout)) = (residual, product.residual()) {
        inputs = inputs.residual(residual.view(*layout)?);
    }
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_to_its_end_and_no_further_than_its_longest() {
        let product = MatMul::new(2, 3, 4).unwrap();
        let request = Request::new(&crate::BackendId::CPU, &product, &crate::CompileOptions::default());
        let text = request.unwrap().to_text();
        let read = read_request((text + "more").as_bytes()).unwrap();
        assert!(matches!(read.subject, Subject::Product(read) if read == product));
        let problem = |bytes: usize| {
            let text = vec![b'x'; bytes];
            read_request(text.as_slice()).unwrap_err().to_string()
        };
        assert!(problem(0).contains("no request came"), "{}", problem(0));
        let longest = problem(MAXIMUM_REQUEST_BYTES);
        assert!(longest.contains("no request came"), "{longest}");
        let longer = problem(MAXIMUM_REQUEST_BYTES + 1);
        assert!(longer.contains("too long"), "{longer}");
    }
}
