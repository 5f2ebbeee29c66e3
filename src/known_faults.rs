//! Faults of the vendors' software that this crate knows, and what is done about each.

use crate::backend::BackendId;
use crate::element::ElementType;
use crate::machine::MachineKey;
use crate::matmul::MatMul;
use crate::options::{CompileOptions, Device};
use crate::refusal::{Refusal, RefusalReason};

/// A known fault of a vendor's software.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KnownFault {
    /// The backend that meets it.
    pub backend: BackendId,
    /// Where, and what goes wrong.
    pub fault: &'static str,
    /// A public report, or the vendor's documentation.
    pub reference: &'static str,
    /// What is done about it.
    pub handling: FaultHandling,
    /// Whether a product meets it; `None` where that cannot be known beforehand, or where the backend
    /// asks itself.
    applies: Option<fn(&Circumstances<'_>) -> bool>,
}

/// What is done about a [`KnownFault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultHandling {
    /// The backend computes in another way.
    WorkedAround,
    /// The backend's shim refuses the products that meet it, with a reason of its own.
    RefusedByShim,
    /// [`crate::Backends::supports`] refuses the products that meet it with
    /// [`RefusalReason::VendorFault`], unless [`CompileOptions::allow_known_faults`] is set.
    Refused,
    /// It takes the process with it: `Probe` tries products out in a process of their own.
    Probe,
}

/// What a fault may depend on.
#[derive(Debug, Clone, Copy)]
struct Circumstances<'a> {
    product: &'a MatMul,
    options: &'a CompileOptions,
    chip: &'a str,
    device_name: &'a str,
}

static TABLE: [KnownFault; 8] = [
    KnownFault {
        backend: BackendId::MPSGRAPH,
        fault: "sums of 32767 and more terms are wrong on M1, M2, A14 and A15 where m and n are 16 and more",
        reference: "pytorch#195163",
        handling: FaultHandling::WorkedAround,
        applies: None,
    },
    KnownFault {
        backend: BackendId::MPSGRAPH,
        fault: "the same in a virtual machine, whose device does not tell the chip, so that sums are not split",
        reference: "pytorch#195163",
        handling: FaultHandling::Refused,
        applies: Some(|c| {
            let (m, n, k) = (c.product.m(), c.product.n(), c.product.k());
            c.device_name.contains("Paravirtual")
                && !["Apple M3", "Apple M4", "Apple M5"].iter().any(|chip| c.chip.starts_with(chip))
                && k >= 32767
                && m >= 16
                && n >= 16
        }),
    },
    KnownFault {
        backend: BackendId::MPSGRAPH,
        fault: "f16 products of 16384 x 16384 time out on the Neural Engine, and give NaN",
        reference: "pytorch#110975",
        handling: FaultHandling::Refused,
        applies: Some(|c| {
            c.options.device == Device::NeuralEngine
                && c.product.types().a == ElementType::F16
                && c.product.m() >= 16384
                && c.product.n() >= 16384
        }),
    },
    KnownFault {
        backend: BackendId::MPSGRAPH,
        fault: "dimensions over 16384 fail on the Neural Engine",
        reference: "AUTOMATIC1111/stable-diffusion-webui#13527",
        handling: FaultHandling::RefusedByShim,
        applies: None,
    },
    KnownFault {
        backend: BackendId::MPSGRAPH,
        fault: "arrays of 2^32 bytes and more are not taken",
        reference: "pytorch#143859",
        handling: FaultHandling::RefusedByShim,
        applies: None,
    },
    KnownFault {
        backend: BackendId::MPSGRAPH,
        fault: "f32 operands may be truncated to about 11 bits on M5, unless told otherwise",
        reference: "mlx#4411",
        handling: FaultHandling::WorkedAround,
        applies: None,
    },
    KnownFault {
        backend: BackendId::MPSGRAPH,
        fault: "the order of feeds need not be that of the graph: square products come out as B A",
        reference: "MPSGraphExecutable.feedTensors",
        handling: FaultHandling::WorkedAround,
        applies: None,
    },
    KnownFault {
        backend: BackendId::MPSGRAPH,
        fault: "an assertion while loading for the Neural Engine aborts the process, and cannot be caught",
        reference: "coreai-torch#67",
        handling: FaultHandling::Probe,
        applies: None,
    },
];

/// The faults of vendors' software that this crate knows, and what is done about each.
///
/// ```
/// for fault in ane_matmul::known_faults() {
///     println!("{}: {} ({}): {:?}", fault.backend, fault.fault, fault.reference, fault.handling);
/// }
/// ```
#[must_use]
pub fn known_faults() -> &'static [KnownFault] {
    &TABLE
}

/// The refusal of a product that meets a fault which nobody else takes care of.
pub(crate) fn check(
    backend: &BackendId,
    device_name: &str,
    product: &MatMul,
    options: &CompileOptions,
) -> Result<(), Refusal> {
    let mut of_backend = known_faults()
        .iter()
        .filter(|fault| fault.backend == *backend)
        .filter_map(|fault| Some((fault, fault.applies?)))
        .peekable();
    if options.allow_known_faults || of_backend.peek().is_none() {
        return Ok(());
    }
    let chip = MachineKey::here().chip;
    let circumstances = Circumstances { product, options, chip: &chip, device_name };
    match of_backend.find(|(_, applies)| applies(&circumstances)) {
        None => Ok(()),
        Some((fault, _)) => Err(Refusal::new(
            RefusalReason::VendorFault,
            format!(
                "{} ({}); use another backend, or set CompileOptions::allow_known_faults with a self-check",
                fault.fault, fault.reference
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::ElementTypes;

    fn refused(backend: &BackendId, device_name: &str, product: &MatMul, options: &CompileOptions) -> bool {
        match check(backend, device_name, product, options) {
            Ok(()) => false,
            Err(refusal) => {
                assert_eq!(refusal.reason, RefusalReason::VendorFault);
                assert!(refusal.message.contains('#'), "{refusal}");
                true
            }
        }
    }

    #[test]
    fn every_fault_is_refused_or_handled_elsewhere() {
        for fault in known_faults() {
            assert_eq!(fault.applies.is_some(), fault.handling == FaultHandling::Refused, "{fault:?}");
            assert!(!fault.reference.is_empty() && !fault.fault.is_empty());
        }
    }

    #[test]
    fn long_sums_are_refused_where_the_chip_is_not_known() {
        let (options, device) = (CompileOptions::default(), "Apple Paravirtual device");
        let product = |m, n, k| MatMul::new(m, n, k).unwrap();
        assert!(refused(&BackendId::MPSGRAPH, device, &product(16, 16, 32767), &options));
        assert!(!refused(&BackendId::MPSGRAPH, device, &product(16, 16, 32766), &options));
        assert!(!refused(&BackendId::MPSGRAPH, device, &product(15, 16, 32767), &options));
        assert!(!refused(&BackendId::MPSGRAPH, "Apple M1", &product(16, 16, 32767), &options));
        assert!(!refused(&BackendId::METAL, device, &product(16, 16, 32767), &options));
        let allowed = options.allow_known_faults(true);
        assert!(!refused(&BackendId::MPSGRAPH, device, &product(16, 16, 32767), &allowed));
    }

    #[test]
    fn the_largest_f16_products_are_kept_from_the_neural_engine() {
        let product = |m, n, types| MatMul::builder(m, n, 8).types(types).build().unwrap();
        let f16 = ElementTypes::uniform(ElementType::F16);
        let options = CompileOptions::default().device(Device::NeuralEngine);
        let refused = |product, options| refused(&BackendId::MPSGRAPH, "Apple M1", &product, options);
        assert!(refused(product(16384, 16384, f16), &options));
        assert!(!refused(product(16384, 16383, f16), &options));
        assert!(!refused(product(16384, 16384, ElementTypes::F32), &options));
        assert!(!refused(product(16384, 16384, f16), &CompileOptions::default()));
    }
}
