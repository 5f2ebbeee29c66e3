//! Why a backend does not run a product: one vocabulary for all backends.

use std::fmt;

use crate::backend::BackendId;
use crate::error::{Error, NativeError};
use crate::graph::Graph;

/// A backend's answer that it does not run a product.
///
/// ```
/// use ane_matmul::{BackendId, CompileOptions, Device, Error, MatMul, RefusalReason};
///
/// let options = CompileOptions::default().device(Device::Gpu);
/// let result = MatMul::new(2, 4, 3)?.compile_with(&BackendId::CPU, &options);
/// let Err(Error::Refused { refusal, .. }) = result else { panic!("the CPU is no GPU") };
/// assert_eq!(refusal.reason, RefusalReason::Device);
/// assert!(refusal.message.contains("choose another backend"));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// Why, as a type.
    pub reason: RefusalReason,
    /// Why, in words, and what to do where something can be done.
    pub message: String,
    /// The failure of an engine that could not say whether it runs the product.
    fault: Option<Box<NativeError>>,
}

impl Refusal {
    /// A refusal with its explanation.
    #[must_use]
    pub fn new(reason: RefusalReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), fault: None }
    }

    /// Of an engine that failed where it was asked.
    pub(crate) fn of_failure(error: Error) -> Self {
        match error {
            Error::Refused { refusal, .. } => refusal,
            Error::Native(fault) => {
                Self { fault: Some(fault.clone()), ..Self::new(RefusalReason::Other, fault.to_string()) }
            }
            error => Self::new(RefusalReason::Other, error.to_string()),
        }
    }

    /// The error for a product that was to run on `backend`.
    pub(crate) fn into_error(mut self, backend: &BackendId) -> Error {
        match self.fault.take() {
            Some(fault) => Error::Native(fault),
            None => Error::Refused { backend: backend.clone(), refusal: self },
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.reason)
    }
}

/// A backend's answer that it does not run a node of a graph.
///
/// ```
/// use ane_matmul::graph::{Array, GraphBuilder, Groups, Window};
/// use ane_matmul::{BackendId, Backends, CompileOptions, ElementType};
///
/// let mut g = GraphBuilder::new();
/// let x = g.input("x", ElementType::F32, &[1, 3, 8, 8])?;
/// let w = g.constant("w", Array::new(&[4, 3, 3, 3], vec![0f32; 108])?)?;
/// let y = g.named("stem").conv(x, w, None, Window::default(), Groups(1))?;
/// let graph = g.finish(&[("y", y)])?;
/// for refused in Backends::new().refused_nodes(&BackendId::CPU, &graph, &CompileOptions::default())? {
///     println!("{refused}"); // node `stem`: Conv: ...
/// }
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeRefusal {
    /// The node's name.
    pub node: String,
    /// Its operator.
    pub operator: &'static str,
    /// Why.
    pub refusal: Refusal,
}

impl NodeRefusal {
    pub(crate) fn new(graph: &Graph, node: usize, refusal: Refusal) -> Self {
        let node = &graph.nodes[node];
        Self { node: node.name.clone(), operator: node.operator.name(), refusal }
    }

    /// Every node of a graph, for one reason.
    pub(crate) fn of_all(graph: &Graph, message: &str) -> Vec<Self> {
        let refusal = || Refusal::new(RefusalReason::Other, message);
        (0..graph.nodes.len()).map(|node| Self::new(graph, node, refusal())).collect()
    }
}

impl fmt::Display for NodeRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node `{}`: {}: {}", self.node, self.operator, self.refusal)
    }
}

/// The kinds of refusal: the `ANE_REFUSAL_*` constants of `include/ane_matmul.h`.
///
/// ```
/// use ane_matmul::{BackendId, ElementType, ElementTypes, Error, MatMul, RefusalReason};
///
/// let f16s = MatMul::builder(2, 2, 2).types(ElementTypes::uniform(ElementType::F16)).build()?;
/// let error = f16s.compile(&BackendId::CPU).expect_err("it sums in f32");
/// assert!(matches!(error, Error::Refused { refusal, .. } if refusal.reason == RefusalReason::ElementType));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RefusalReason {
    /// A combination of element types that is not implemented.
    ElementType,
    /// A quantisation scheme that is not implemented.
    Quantization,
    /// A dimension beyond what the engine or the device takes.
    Dimension,
    /// An array beyond what the engine or the device takes.
    Bytes,
    /// Leading dimensions, strides or transposes.
    Layout,
    /// Batching, or broadcasting within a batch.
    Batch,
    /// Running with fewer rows than compiled for.
    VariableM,
    /// B must be constant, or must not be.
    ConstantB,
    /// Alpha, bias, residual or activation.
    Epilogue,
    /// The requested device cannot be reached through this backend.
    Device,
    /// Only f16 products are candidates for the Neural Engine.
    NeuralEngineType,
    /// Needs a later operating system.
    OsVersion,
    /// Needs an instruction or a feature that this machine lacks.
    Hardware,
    /// The vendor's software is known to give wrong results here.
    VendorFault,
    /// The number or kind of threads cannot be honoured.
    Threads,
    /// Fast math or reduced precision cannot be granted or excluded.
    Precision,
    /// Left out of this build: platform, feature or SDK.
    NotBuilt,
    /// Gave a wrong result or crashed before.
    Quarantined,
    /// Something without a kind of its own: read the message.
    Other,
}

impl RefusalReason {
    /// Every reason, in the order of the ABI's constants (which count from 1).
    pub const ALL: [Self; 19] = [
        Self::ElementType,
        Self::Quantization,
        Self::Dimension,
        Self::Bytes,
        Self::Layout,
        Self::Batch,
        Self::VariableM,
        Self::ConstantB,
        Self::Epilogue,
        Self::Device,
        Self::NeuralEngineType,
        Self::OsVersion,
        Self::Hardware,
        Self::VendorFault,
        Self::Threads,
        Self::Precision,
        Self::NotBuilt,
        Self::Quarantined,
        Self::Other,
    ];
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ElementType => "element type",
            Self::Quantization => "quantisation",
            Self::Dimension => "dimension limit",
            Self::Bytes => "size limit",
            Self::Layout => "layout",
            Self::Batch => "batch",
            Self::VariableM => "variable m",
            Self::ConstantB => "constant B",
            Self::Epilogue => "epilogue",
            Self::Device => "device",
            Self::NeuralEngineType => "Neural Engine needs f16",
            Self::OsVersion => "OS version",
            Self::Hardware => "hardware",
            Self::VendorFault => "known vendor fault",
            Self::Threads => "threads",
            Self::Precision => "precision",
            Self::NotBuilt => "not in this build",
            Self::Quarantined => "quarantined",
            Self::Other => "other",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: std::collections::HashSet<_> =
            RefusalReason::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), RefusalReason::ALL.len());
        assert!(names.iter().all(|name| !name.is_empty()));
    }
}
