//! What a probe and its helper say to each other: lines of text, since either may be a debug build, but
//! both of one version.

use std::fmt::Write as _;

use crate::alloc;
use crate::backend::BackendId;
use crate::description::activation::Activation;
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::matmul::{ElementTypes, MatMul};
use crate::description::options::{CompileOptions, Device, Threads};
use crate::description::quantization::Quantization;
use crate::error::{Error, Operand, Result};
use crate::graph::Graph;
use crate::graph::bytes::Contents;

/// The longest request that a helper reads.
pub(super) const MAXIMUM_REQUEST_BYTES: usize = 1 << 14;

const FIRST: &str = concat!("ane-matmul probe ", env!("CARGO_PKG_VERSION"));
const LAST: &str = "end";
/// Before the number of bytes that describe a graph.
const GRAPH: &str = "graph";

/// What a helper answers, after a word that nothing else prints.
pub(super) const READY: &str = "ready";
pub(super) const PASSED: &str = "passed";
pub(super) const FAILED: &str = "failed";
pub(super) const WRONG: &str = "wrong";

/// What a helper is asked for.
#[derive(Debug)]
pub(super) struct Request {
    /// Begins every line of the answer, since frameworks print to standard output too.
    pub token: String,
    pub backend: BackendId,
    pub subject: Subject,
    pub options: CompileOptions,
}

/// What is to be tried out.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a request has one")]
pub(super) enum Subject {
    Product(MatMul),
    /// Its bytes, which follow the text.
    Graph(Vec<u8>),
}

const TYPES: [ElementType; 9] = [
    ElementType::F64,
    ElementType::F32,
    ElementType::F16,
    ElementType::Bf16,
    ElementType::I32,
    ElementType::I8,
    ElementType::U8,
    ElementType::I4,
    ElementType::U4,
];

fn problem<T>(problem: impl Into<String>) -> Result<T> {
    Err(Error::Probe { problem: problem.into() })
}

impl Request {
    /// What every token starts with.
    pub(super) const TOKEN: &str = "ane-matmul-probe-";

    pub(super) fn new(backend: &BackendId, product: &MatMul, options: &CompileOptions) -> Result<Self> {
        if *product.quantization() != Quantization::default() {
            return problem("quantised products cannot be tried out yet; probe the same shape in f16");
        }
        Self::of(backend, Subject::Product(product.clone()), options)
    }

    pub(super) fn of_graph(backend: &BackendId, graph: &Graph, options: &CompileOptions) -> Result<Self> {
        Self::of(backend, Subject::Graph(graph.to_bytes(Contents::Elements)?), options)
    }

    fn of(backend: &BackendId, subject: Subject, options: &CompileOptions) -> Result<Self> {
        use std::hash::BuildHasher as _;
        if backend.as_str().contains(char::is_whitespace) {
            return problem(format!("`{backend}` is no backend's name"));
        }
        let mut own = CompileOptions::default()
            .threads(Threads::count(options.threads.number())?)
            .device(options.device)
            .allow_known_faults(options.allow_known_faults);
        (own.fast_math, own.reduced_precision) = (options.fast_math, options.reduced_precision);
        let token = std::hash::RandomState::new().hash_one(std::process::id());
        Ok(Self {
            token: format!("{}{token:016x}", Self::TOKEN),
            backend: backend.clone(),
            subject,
            options: own,
        })
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = self.to_text().into_bytes();
        if let Subject::Graph(graph) = &self.subject {
            alloc::reserve(&mut bytes, graph.len(), "a graph for a helper")?;
            bytes.extend_from_slice(graph);
        }
        Ok(bytes)
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = format!("{FIRST}\n{}\n{}\n", self.token, self.backend);
        // Writing to a string cannot fail.
        match &self.subject {
            Subject::Product(product) => {
                for line in lines_of(product) {
                    let _ = writeln!(text, "{line}");
                }
            }
            Subject::Graph(bytes) => {
                let _ = writeln!(text, "{GRAPH} {}", bytes.len());
            }
        }
        let options = &self.options;
        let _ = writeln!(
            text,
            "{} {} {} {} {}",
            options.threads.number(),
            options.device,
            options.fast_math,
            options.reduced_precision,
            options.allow_known_faults
        );
        text + LAST + "\n"
    }

    /// Whether the text so far is a whole request.
    pub(super) fn is_whole(text: &[u8]) -> bool {
        text.ends_with(format!("\n{LAST}\n").as_bytes())
    }

    /// # Errors
    /// [`Error::Probe`] for anything but what [`Request::to_text`] writes; those of the description.
    ///
    /// Also the bytes of a graph that follow, and are the caller's to read.
    pub(super) fn from_text(text: &str) -> Result<(Self, usize)> {
        let mut lines = text.lines();
        if lines.next() != Some(FIRST) {
            return problem(format!("expected `{FIRST}`: probe and helper must be built from one version"));
        }
        let mut line =
            || lines.next().ok_or_else(|| Error::Probe { problem: "the request is cut short".into() });
        let token = line()?.to_owned();
        let backend = BackendId::new(line()?);
        let first = line()?;
        let (subject, bytes) = match first.strip_prefix(GRAPH) {
            Some(length) => (Subject::Graph(Vec::new()), numbers::<1>(length.trim_start())?[0]),
            None => (Subject::Product(product(first, &mut line)?), 0),
        };
        let [threads, device, fast_math, reduced_precision, allow_known_faults] = words(line()?)?;
        let (Ok(threads), Ok(device)) = (threads.parse(), device.parse::<Device>()) else {
            return problem("threads or device make no sense");
        };
        let mut options = CompileOptions::default()
            .threads(Threads::count(threads)?)
            .device(device)
            .allow_known_faults(allow_known_faults == "true");
        (options.fast_math, options.reduced_precision) = (fast_math == "true", reduced_precision == "true");
        Ok((Self { token, backend, subject, options }, bytes))
    }
}

fn lines_of(product: &MatMul) -> [String; 8] {
    let types = product.types();
    let layout = |layout: &Layout| format!("{} {}", layout.leading_dimension(), layout.batch_stride());
    [
        format!("{} {} {} {}", product.batch(), product.m(), product.n(), product.k()),
        format!(
            "{} {} {} {} {}",
            product.transpose_a(),
            product.transpose_b(),
            product.constant_b(),
            product.variable_m(),
            product.has_bias()
        ),
        layout(product.a()),
        layout(product.b()),
        layout(product.c()),
        product.residual().map_or_else(|| "none".into(), layout),
        format!(
            "{} {} {} {} {} {}",
            types.a, types.b, types.accumulator, types.output, types.bias, types.scales
        ),
        format!("{} {}", product.alpha().to_bits(), product.activation()),
    ]
}

/// The product of the first of [`lines_of`] and those that follow.
fn product<'a>(first: &str, mut line: impl FnMut() -> Result<&'a str>) -> Result<MatMul> {
    let [batch, m, n, k] = numbers(first)?;
    let [transpose_a, transpose_b, constant_b, variable_m, bias] = words(line()?)?.map(|word| word == "true");
    let strides = [line()?, line()?, line()?];
    let residual = line()?;
    let mut types = [ElementType::F32; 6];
    for (slot, word) in types.iter_mut().zip(words::<6>(line()?)?) {
        let Some(element) = TYPES.into_iter().find(|element| element.to_string() == word) else {
            return problem(format!("`{word}` is no element type"));
        };
        *slot = element;
    }
    let [a, b, accumulator, output, bias_type, scales] = types;
    let [alpha, activation] = words(line()?)?;
    let Ok(alpha) = alpha.parse().map(f32::from_bits) else { return problem("alpha is no number") };
    let Ok(activation) = activation.parse::<Activation>() else {
        return problem("an unknown activation");
    };
    let mut builder = MatMul::builder(m, n, k)
        .batch(batch)
        .transpose_a(transpose_a)
        .transpose_b(transpose_b)
        .constant(constant_b)
        .variable_m(variable_m)
        .bias(bias)
        .residual(residual != "none")
        .types(ElementTypes { a, b, accumulator, output, bias: bias_type, scales })
        .alpha(alpha)
        .activation(activation);
    for (operand, line) in [Operand::A, Operand::B, Operand::C].into_iter().zip(strides) {
        let [leading, stride] = numbers(line)?;
        builder = builder.leading_dimension(operand, leading).batch_stride(operand, stride);
    }
    if residual != "none" {
        let [leading, stride] = numbers(residual)?;
        builder =
            builder.leading_dimension(Operand::Residual, leading).batch_stride(Operand::Residual, stride);
    }
    builder.build()
}

fn words<const N: usize>(line: &str) -> Result<[&str; N]> {
    let words: Vec<_> = line.split(' ').collect();
    words.try_into().or_else(|_| problem(format!("expected {N} words, got `{line}`")))
}

fn numbers<const N: usize>(line: &str) -> Result<[usize; N]> {
    let mut numbers = [0; N];
    for (number, word) in numbers.iter_mut().zip(words::<N>(line)?) {
        let Ok(parsed) = word.parse() else { return problem(format!("`{word}` is no number")) };
        *number = parsed;
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_round_trip() {
        let plain = MatMul::builder(3, 4, 5);
        for builder in [
            plain.clone(),
            plain.clone().alpha(-0.1).bias(true).residual(true).leading_dimension(Operand::Residual, 9),
            plain
                .clone()
                .batch(3)
                .transpose_a(true)
                .transpose_b(true)
                .batch_stride(Operand::B, 0)
                .leading_dimension(Operand::A, 8)
                .leading_dimension(Operand::C, 7)
                .batch_stride(Operand::C, 100),
            plain.types(ElementTypes::BF16).constant(true).variable_m(true).activation(Activation::GeluTanh),
        ] {
            let mut options = CompileOptions::default().device(Device::NeuralEngine).threads(Threads::ONE);
            options.reduced_precision = true;
            let request = Request::new(&BackendId::METAL, &builder.build().unwrap(), &options).unwrap();
            let text = request.to_text();
            assert!(text.len() < MAXIMUM_REQUEST_BYTES && Request::is_whole(text.as_bytes()));
            let (read, more) = Request::from_text(&text).unwrap();
            assert_eq!((&read.token, &read.backend, more), (&request.token, &request.backend, 0));
            assert_eq!(format!("{:?}", read.subject), format!("{:?}", request.subject));
            assert_eq!((read.options.device, read.options.threads.number()), (Device::NeuralEngine, 1));
            assert!(
                read.options.reduced_precision && !read.options.fast_math && !read.options.allow_known_faults
            );
            for cut in 0..text.len() - 5 {
                assert!(
                    Request::from_text(&text[..cut]).is_err() || !Request::is_whole(&text.as_bytes()[..cut])
                );
            }
        }
    }

    #[test]
    fn the_bytes_of_a_graph_follow_its_request() {
        let (_, graph, _) = crate::graph::tests::cases::cases().remove(0);
        let options = CompileOptions::default();
        let request = Request::of_graph(&BackendId::CPU, &graph, &options).unwrap();
        let (text, bytes) = (request.to_text(), request.to_bytes().unwrap());
        let (read, more) = Request::from_text(&text).unwrap();
        assert!(matches!(&read.subject, Subject::Graph(bytes) if bytes.is_empty()), "{read:?}");
        assert_eq!(bytes.len(), text.len() + more);
        assert_eq!(Graph::from_bytes(&bytes[text.len()..]).unwrap().to_string(), graph.to_string());
    }

    #[test]
    fn quantised_products_are_refused() {
        let quantization =
            Quantization { b: crate::QuantB::Static { scale: 1.0, zero_point: 0 }, ..Default::default() };
        let product =
            MatMul::builder(2, 2, 2).types(ElementTypes::INT8).quantization(quantization).build().unwrap();
        let result = Request::new(&BackendId::CPU, &product, &CompileOptions::default());
        assert!(matches!(result, Err(Error::Probe { .. })));
    }
}
