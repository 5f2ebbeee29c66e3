//! The one error type of the crate.

use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::BackendId;
use crate::backend::refusal::Refusal;
use crate::description::element::ElementType;
use crate::description::options::Device;
use crate::verify::probe::ProbeVerdict;
use crate::verify::self_check::Mismatch;

/// [`std::result::Result`] with this crate's [`Error`].
///
/// ```
/// use ane_matmul::Tensor;
///
/// fn ones(rows: usize) -> ane_matmul::Result<Tensor<f32>> {
///     Tensor::filled(rows, rows, 1.0)
/// }
/// assert_eq!(ones(2)?.data(), [1.0; 4]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operand of a product, for error messages.
///
/// ```
/// use ane_matmul::{MatMul, Operand};
///
/// let product = MatMul::builder(2, 3, 4).leading_dimension(Operand::A, 10).build()?;
/// assert_eq!(product.a().leading_dimension(), 10);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Operand {
    /// The left factor.
    A,
    /// The right factor.
    B,
    /// The vector added to every row.
    Bias,
    /// The matrix added to the product.
    Residual,
    /// The result.
    C,
    /// The scales of a quantised operand.
    Scales,
}

impl std::fmt::Display for Operand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::A => "A",
            Self::B => "B",
            Self::Bias => "bias",
            Self::Residual => "residual",
            Self::C => "C",
            Self::Scales => "scales",
        })
    }
}

/// Everything that can go wrong: what was expected, what was got, and what to do.
///
/// Cloning shares the operating system's error: several threads may wait for one compilation.
///
/// ```
/// use ane_matmul::{BackendId, Error, MatMul, Operand, Tensor};
///
/// let compiled = MatMul::new(2, 3, 4)?.compile(&BackendId::CPU)?;
/// let error = compiled.run_to_tensor(&Tensor::filled(2, 4, 1f32)?).expect_err("there is no B");
/// assert_eq!(error.to_string(), "B is missing: pass it with Inputs::b, or bind weights (MatMul::with_weights)");
/// assert!(matches!(error, Error::Missing { operand: Operand::B, .. }));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size does not fit the address space.
    #[error("{what} overflows the address space: use smaller dimensions or strides")]
    SizeOverflow {
        /// The quantity that overflowed.
        what: &'static str,
    },
    /// Rows would overlap.
    #[error("expected a leading dimension of at least {minimum} (the columns as stored), got {got}")]
    LeadingDimension {
        /// The smallest one allowed, in elements.
        minimum: usize,
        /// The one given, in elements.
        got: usize,
    },
    /// The data are shorter than their layout, or longer where they must not be.
    #[error("expected {expected} elements for {layout}, got {got}: pass as many, or other dimensions")]
    DataLength {
        /// The layout asked for.
        layout: String,
        /// Elements needed.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// The description of a product contradicts itself.
    #[error("invalid product: {problem}; {help}")]
    Description {
        /// What is wrong.
        problem: String,
        /// What to do about it.
        help: &'static str,
    },
    /// A graph contradicts itself, or it does not take the operands of a run.
    #[error("graph: {}{problem}", if node.is_empty() { String::new() } else { format!("node `{node}`: ") })]
    Graph {
        /// The node, where it is one's; else empty.
        node: String,
        /// What is wrong.
        problem: String,
    },
    /// The sum over k may overflow the accumulator.
    #[error(
        "k = {k} cannot be summed in {accumulator}: products of {a} and {b} may overflow it beyond k = {maximum}; split k or use f32"
    )]
    Accumulator {
        /// The length of the sum.
        k: usize,
        /// The largest k that cannot overflow.
        maximum: usize,
        /// The accumulator's type.
        accumulator: ElementType,
        /// The type of A.
        a: ElementType,
        /// The type of B.
        b: ElementType,
    },
    /// An operand's shape or strides are not those of the description.
    #[error("{operand}: expected {expected}, got {got}; {help}")]
    Shape {
        /// The operand.
        operand: Operand,
        /// The layout described.
        expected: String,
        /// The layout passed.
        got: String,
        /// What to do about it.
        help: &'static str,
    },
    /// An operand's element type is not that of the description.
    #[error(
        "{operand}: expected elements of type {expected}, got {got}; {}", if *got == ElementType::F64 { "convert them (Tensor::to_f32), describe a product of f64 (ElementTypes::F64), or run one of f32 on f64 operands (Executor::run_f64)".to_owned() } else { format!("convert them or describe the product with {got}") }
    )]
    Type {
        /// The operand.
        operand: Operand,
        /// The type described.
        expected: ElementType,
        /// The type passed.
        got: ElementType,
    },
    /// A scale of a quantised operand is not a positive, finite number of its type.
    #[error(
        "scale {index} is {value}, which is no positive, finite number of type {element}; pass scales that are"
    )]
    Scale {
        /// Which of the scales, row by row; 0 for a single one.
        index: usize,
        /// The scale given.
        value: f32,
        /// The type of the scales.
        element: ElementType,
    },
    /// An operand that the description asks for was not passed.
    #[error("{operand} is missing: {help}")]
    Missing {
        /// The operand.
        operand: Operand,
        /// How to pass it.
        help: &'static str,
    },
    /// An operand was passed that the description does not have.
    #[error("{operand} was passed but the product does not use it: {help}")]
    Unexpected {
        /// The operand.
        operand: Operand,
        /// How to describe it.
        help: &'static str,
    },
    /// More rows than the product was compiled for, or fewer without variable m.
    #[error("the product was compiled for m = {compiled}{}, got m = {got}; describe it with {}", if *variable { " rows at most" } else { "" }, if got > compiled { "a larger m (of a Linear: max_rows)" } else { "variable_m(true) to run fewer rows" })]
    Rows {
        /// The m of the description.
        compiled: usize,
        /// The m of the run.
        got: usize,
        /// Whether fewer rows are allowed.
        variable: bool,
    },
    /// The backend does not do this product, or this graph.
    #[error("refused by backend `{backend}`: {refusal}")]
    Refused {
        /// The backend.
        backend: BackendId,
        /// Why, as a type and in words.
        refusal: Refusal,
    },
    /// The backend is known but not here.
    #[error("backend `{backend}` is not available here: {reason}")]
    Unavailable {
        /// The backend.
        backend: BackendId,
        /// Why.
        reason: String,
    },
    /// No backend has this name.
    #[error("unknown backend `{name}`; known backends: {known}")]
    UnknownBackend {
        /// The name asked for.
        name: String,
        /// The known names, separated by commas.
        known: String,
    },
    /// Memory cannot be wrapped as it lies.
    #[error("backend `{backend}` cannot wrap this memory: {}", match alignment_bytes { Some(bytes) => format!("its address and length, which may not be 0, must be multiples of {bytes} bytes"), None => "it wraps none; use a shared buffer of its own".to_owned() })]
    WrapAlignment {
        /// The backend.
        backend: BackendId,
        /// What address and length must be multiples of; `None` where the backend wraps no memory.
        alignment_bytes: Option<usize>,
    },
    /// A matrix does not lie where it must: on another device, on the host, in another shape.
    #[error("memory: {problem}")]
    Memory {
        /// What is wrong and what to do.
        problem: String,
    },
    /// A submission that the executor cannot take, or a ticket that it does not know.
    #[error("queue: {problem}")]
    Queue {
        /// What is wrong and what to do.
        problem: String,
    },
    /// A backend of this name is there already.
    #[error("a backend named `{backend}` is registered already; give the shim another name")]
    DuplicateBackend {
        /// The name.
        backend: BackendId,
    },
    /// Memory could not be allocated.
    #[error("out of memory: {bytes} bytes for {what}; use smaller dimensions or free memory")]
    OutOfMemory {
        /// What was to be allocated.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
    /// A self-check found a wrong result ([`crate::SelfCheck`]).
    #[error(
        "{0}; do not use this result: run on another backend or choose OnMismatch::RerunOnCpu, and please report it"
    )]
    WrongResult(Box<Mismatch>),
    /// A probe came to no verdict ([`probe`](crate::verify::probe)).
    #[error("probe: {problem}")]
    Probe {
        /// What is wrong and what to do.
        problem: String,
    },
    /// A probe found that a product or a graph must not be run here ([`crate::CompileOptions::probe`]).
    #[error("backend `{backend}` does not stand the probe: it {verdict}; use another backend")]
    Probed {
        /// The backend.
        backend: BackendId,
        /// What happened in the helper process.
        verdict: Box<ProbeVerdict>,
    },
    /// The number of threads, or of a pool's executors, is 0 or too large, threads could not be started, or a pool of the caller's did not
    /// call each task once.
    #[error("threads: {problem}")]
    Threads {
        /// What is wrong and what to do.
        problem: String,
    },
    /// It was required that a device did the work, and that is not proved.
    #[error("not proved that {required} did the work (observed: {observed}): {reason}")]
    Unproven {
        /// The device that was required.
        required: Device,
        /// The device that was observed, perhaps on too little evidence.
        observed: Device,
        /// Why, in words.
        reason: String,
    },
    /// An error of a native library, as it reported it.
    #[error(transparent)]
    Native(#[from] Box<NativeError>),
    /// A dynamic library is not a usable shim.
    #[error("{}: not a usable shim: {problem}", path.display())]
    Shim {
        /// The library, or the name of a table that came from elsewhere.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The caller's progress callback asked to stop.
    #[error("calibration was interrupted; nothing was kept")]
    Interrupted,
    /// What was measured of a machine makes no sense.
    #[error("profile: {problem}")]
    Profile {
        /// What is wrong.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The operating system's error.
        source: Arc<std::io::Error>,
    },
    /// A file's contents are not what they should be.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl Error {
    /// Of a graph as a whole.
    pub(crate) fn graph(problem: String) -> Self {
        Self::Graph { node: String::new(), problem }
    }

    pub(crate) fn io(path: impl Into<PathBuf>, action: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), action, source: Arc::new(source) }
    }

    /// On one line, with control characters escaped: a problem quotes the file, which anyone may have made.
    #[cfg(any(feature = "npy", feature = "profile", feature = "safetensors"))]
    pub(crate) fn format(path: impl Into<PathBuf>, mut problem: String) -> Self {
        if problem.contains(char::is_control) {
            let harmless = |c: char| match c {
                '\n' | '\r' | '\t' => " ".into(),
                c if c.is_control() => c.escape_default().to_string(),
                c => c.to_string(),
            };
            problem = problem.chars().map(harmless).collect();
        }
        Self::Format { path: path.into(), problem }
    }
}

/// What a native library reported.
///
/// ```
/// use ane_matmul::Error;
///
/// /// One line, and below it what a kernel compiler has to say.
/// fn describe(error: &Error) -> String {
///     match error {
///         Error::Native(native) if !native.log.is_empty() => format!("{native}\n{}", native.log),
///         other => other.to_string(),
///     }
/// }
/// assert_eq!(describe(&Error::Interrupted), "calibration was interrupted; nothing was kept");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backend `{backend}`: {step} failed: {message} ({status}{}{})", if domain.is_empty() { String::new() } else { format!(", {domain}") }, if *code == 0 { String::new() } else { format!(" {code}") })]
#[non_exhaustive]
pub struct NativeError {
    /// The backend.
    pub backend: BackendId,
    /// What was being done.
    pub step: &'static str,
    /// The kind of failure.
    pub status: NativeStatus,
    /// The native code: NSError's, errno, a BLAS's; 0 when there is none.
    pub code: i64,
    /// The native domain, or empty.
    pub domain: String,
    /// The native message.
    pub message: String,
    /// A longer text, such as the log of a kernel compiler; may be empty.
    pub log: String,
}

/// The kind of a native failure: the `ANE_STATUS_*` constants of `include/ane_matmul.h`.
///
/// ```
/// use ane_matmul::{Error, NativeStatus};
///
/// /// Whether the same run may succeed later.
/// fn may_pass(error: &Error) -> bool {
///     matches!(error, Error::Native(native) if native.status == NativeStatus::Background)
/// }
/// assert!(!may_pass(&Error::Interrupted));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NativeStatus {
    /// The contract was broken: a bug of this crate's or of the shim's.
    InvalidArgument,
    /// A refusal where none was expected.
    Refused,
    /// Host or device memory ran out.
    OutOfMemory,
    /// There is no device, or it went away.
    NoDevice,
    /// The engine rejected the product.
    CompileFailed,
    /// The engine reported a fault while running.
    RunFailed,
    /// An exception was caught.
    Exception,
    /// A time limit passed.
    Timeout,
    /// The system denies the GPU to an app in the background.
    Background,
    /// A file could not be read or written.
    Io,
    /// A saved package is damaged or belongs to something else.
    PackageMismatch,
    /// A service that the shim does not offer.
    NotImplemented,
    /// A fault of the shim's own, or a status without a name.
    Internal,
}

impl std::fmt::Display for NativeStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::InvalidArgument => "invalid argument",
            Self::Refused => "refused",
            Self::OutOfMemory => "out of memory",
            Self::NoDevice => "no device",
            Self::CompileFailed => "compilation failed",
            Self::RunFailed => "run failed",
            Self::Exception => "exception",
            Self::Timeout => "time limit passed",
            Self::Background => "GPU denied in the background",
            Self::Io => "file error",
            Self::PackageMismatch => "package mismatch",
            Self::NotImplemented => "not implemented",
            Self::Internal => "internal fault",
        })
    }
}
