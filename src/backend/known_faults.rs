//! Faults of the vendors' software that this crate knows, and what is done about each.

use crate::backend::BackendId;

/// A known fault of a vendor's software.
///
/// ```
/// use ane_matmul::{BackendId, known_faults};
///
/// let mut of_mpsgraph = known_faults().iter().filter(|fault| fault.backend == BackendId::MPSGRAPH);
/// let first = of_mpsgraph.next().expect("there are some");
/// assert_eq!(first.reference, "pytorch#195163");
/// println!("{}: {:?}", first.fault, first.handling);
/// ```
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
}

/// What is done about a [`KnownFault`].
///
/// ```
/// use ane_matmul::{FaultHandling, known_faults};
///
/// // What `CompileOptions::allow_known_faults` lets through.
/// let refused = known_faults().iter().filter(|fault| fault.handling == FaultHandling::Refused);
/// assert!(refused.count() > 0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultHandling {
    /// The backend computes in another way.
    WorkedAround,
    /// [`crate::Backends::supports`] refuses the products that meet it, always: the process would not survive it, or
    /// nothing is known of what lies beyond.
    Limit,
    /// [`crate::Backends::supports`] refuses the products that meet it with
    /// [`crate::RefusalReason::VendorFault`], unless [`crate::CompileOptions::allow_known_faults`] is set.
    Refused,
    /// It takes the process with it: `Probe` tries products out in a process of their own.
    Probe,
}

use FaultHandling::{Limit, Probe, Refused, WorkedAround};

const fn of(
    backend: BackendId,
    handling: FaultHandling,
    fault: &'static str,
    reference: &'static str,
) -> KnownFault {
    KnownFault { backend, fault, reference, handling }
}

/// The conditions themselves are the shims' (`known_fault` and `check_support` in `objc/ane_mpsgraph.m`): only they can
/// ask for the family of the GPU.
static TABLE: [KnownFault; 15] = [
    of(
        BackendId::MPSGRAPH,
        Refused,
        "sums of 32767 and more terms are wrong on GPUs before M3 and A17 where m and n are 16 and more",
        "pytorch#195163",
    ),
    of(
        BackendId::MPSGRAPH,
        Refused,
        "products with a dimension over 32768 are wrong before macOS 14.4 and iOS 17.4, and on GPUs before M3 and A17",
        "pytorch#111634, pytorch#116769, pytorch#118830",
    ),
    of(
        BackendId::MPSGRAPH,
        Refused,
        "batched products are wrong on macOS 13.2 and iOS 16.3",
        "pytorch#95188, pytorch#97239",
    ),
    of(BackendId::MPSGRAPH, Refused, "batched f16 products differ from run to run on M5", "pytorch#180776"),
    of(
        BackendId::MPSGRAPH,
        Refused,
        "what is added to products of one row is dropped on M1 and A14 with system 26",
        "pytorch#188438",
    ),
    of(
        BackendId::MPSGRAPH,
        Refused,
        "f16 products of 16384 x 16384 time out on the Neural Engine, and give NaN",
        "pytorch#110975",
    ),
    of(
        BackendId::MPSGRAPH,
        Refused,
        "products of over 2^42 multiply-adds may keep the GPU for longer than the system lets them",
        "mlx#3302",
    ),
    of(BackendId::MPSGRAPH, Refused, "products are wrong on GPUs of AMD", "pytorch#178697"),
    of(
        BackendId::MPSGRAPH,
        Limit,
        "dimensions over 16384 fail on the Neural Engine",
        "AUTOMATIC1111/stable-diffusion-webui#13527",
    ),
    of(
        BackendId::MPSGRAPH,
        Limit,
        "arrays of 2^32 bytes, temporary ones included, abort the process or come out as zeros, and one of 4.1e9 bytes \
         did: refused from 2^31 bytes on",
        "pytorch#143859, pytorch#154322, pytorch#123716",
    ),
    of(
        BackendId::MPSGRAPH,
        WorkedAround,
        "f32 operands may be truncated to about 11 bits on M5, unless told otherwise",
        "mlx#4411",
    ),
    of(
        BackendId::MPSGRAPH,
        WorkedAround,
        "the order of feeds need not be that of the graph: square products come out as B A",
        "MPSGraphExecutable.feedTensors",
    ),
    of(
        BackendId::MPSGRAPH,
        WorkedAround,
        "an executable from a package need not tell its feeds: products with several operands are not kept in packages",
        "MPSGraphExecutable.feedTensors",
    ),
    of(
        BackendId::MPSGRAPH,
        Probe,
        "an assertion while loading for the Neural Engine aborts the process, and cannot be caught",
        "coreai-torch#67",
    ),
    of(
        BackendId::ACCELERATE,
        WorkedAround,
        "products of one row read C although beta is 0, so that a NaN there stays",
        "mlx#3563",
    ),
];

/// The faults of vendors' software that this crate knows, and what is done about each.
///
/// All of them, whatever this machine is; [`crate::Backends::supports`] says whether a product meets one here. The table
/// is made from public reports, none of which this project has seen for itself.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the shim says to a user whom it refuses is what the table says, with a reference of the row.
    #[test]
    fn the_shim_refuses_what_the_table_says_is_refused() {
        let shim = include_str!("../../objc/ane_mpsgraph.m");
        let said = shim.split("known_fault(").nth(1).unwrap().split("return NULL;").next().unwrap();
        // Strings of C that follow each other are one.
        let said = said.split('"').skip(1).step_by(2).collect::<String>();
        let refused = known_faults().iter().filter(|fault| fault.handling == Refused);
        assert_eq!(said.matches(['(']).count(), refused.clone().count());
        for KnownFault { fault, reference, .. } in refused {
            let (_, after) =
                said.split_once(fault).unwrap_or_else(|| panic!("the shim does not say: {fault}"));
            let cited = after.strip_prefix(" (").and_then(|text| text.split(')').next()).unwrap();
            assert!(cited.split(", ").all(|one| reference.contains(one)), "{cited} is not in {reference}");
        }
    }
}
