//! Backends that gave wrong results, crashed or hung, and for which products.

use crate::backend::BackendId;
use crate::description::matmul::{ElementTypes, MatMul};
use crate::dispatch::machine::MachineKey;

/// A backend that must not run a class of products, since it got one of them wrong.
///
/// ```
/// use ane_matmul::{BackendId, MachineKey, MatMul, Profile, Quarantine};
///
/// let mut profile = Profile::new(MachineKey::here());
/// let wrong = MatMul::new(100, 100, 100)?;
/// profile.add_quarantine(Quarantine::here(BackendId::METAL, Some(&wrong), "row 3 was NaN"));
/// let entry = profile.quarantined(&BackendId::METAL, &MatMul::new(120, 120, 120)?);
/// assert_eq!(entry.expect("of the same class").reason, "row 3 was NaN");
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quarantine {
    /// The backend.
    pub backend: BackendId,
    /// The products; `None` for all, and where it is of a graph.
    pub shape_class: Option<ShapeClass>,
    /// The graph: BLAKE3, in hexadecimal, over all that compiling it depends on (the graph with its constants, options,
    /// device, and version of the backend). `None` for all graphs, and where it is of products.
    pub graph: Option<String>,
    /// The chip that it happened on ([`MachineKey::chip`]).
    pub chip: String,
    /// The build of the operating system that it happened on ([`MachineKey::os_build`]).
    pub os_build: String,
    /// What happened.
    pub reason: String,
}

impl Quarantine {
    /// An entry for this chip and this OS build: for the class of `product`, or for all products and graphs.
    #[must_use]
    pub fn here(backend: BackendId, product: Option<&MatMul>, reason: impl Into<String>) -> Self {
        let MachineKey { chip, os_build, .. } = MachineKey::here();
        let shape_class = product.map(ShapeClass::of);
        Self { backend, shape_class, graph: None, chip, os_build, reason: reason.into() }
    }

    pub(super) fn replaces(&self, other: &Self) -> bool {
        (&self.backend, &self.shape_class, &self.graph, &self.chip, &self.os_build)
            == (&other.backend, &other.shape_class, &other.graph, &other.chip, &other.os_build)
    }

    /// Whether it is of this backend, chip and OS build.
    pub(super) fn is_of(&self, backend: &BackendId, here: &MachineKey) -> bool {
        self.backend == *backend && self.chip == here.chip && self.os_build == here.os_build
    }
}

/// The products that share a fault: of the same types, with dimensions between the same powers of two.
///
/// ```
/// use ane_matmul::{Error, MatMul, ShapeClass};
///
/// let class = |m| Ok::<_, Error>(ShapeClass::of(&MatMul::new(m, 64, 64)?));
/// assert_eq!(class(1024)?, class(2047)?);
/// assert_ne!(class(2047)?, class(2048)?);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ShapeClass {
    /// The element types.
    pub types: ElementTypes,
    /// The bits that each of batch, m, n and k takes: 0 for 0, 1 for 1, 2 for 2 and 3, 11 for 1024 to
    /// 2047.
    pub bits: [u32; 4],
    /// Whether B is constant.
    pub constant_b: bool,
}

impl ShapeClass {
    /// The class of a product.
    #[must_use]
    pub fn of(product: &MatMul) -> Self {
        let bits = |dimension: usize| usize::BITS - dimension.leading_zeros();
        Self {
            types: *product.types(),
            bits: [product.batch(), product.m(), product.n(), product.k()].map(bits),
            constant_b: product.constant_b(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::profile::{MAXIMUM_QUARANTINE, Profile};

    fn quarantined(profile: &Profile, product: &MatMul) -> Option<Quarantine> {
        profile.quarantined(&BackendId::METAL, product).cloned()
    }

    #[test]
    fn a_class_of_products_is_kept_from_a_backend() {
        let product = |m, n, k| MatMul::new(m, n, k).unwrap();
        let mut profile = Profile::new(MachineKey::here());
        profile.add_quarantine(Quarantine::here(BackendId::METAL, Some(&product(1024, 16, 32767)), "wrong"));
        assert!(quarantined(&profile, &product(2047, 31, 16384)).is_some());
        assert!(quarantined(&profile, &product(2048, 31, 16384)).is_none());
        assert!(profile.quarantined(&BackendId::CPU, &product(1024, 16, 32767)).is_none());
        let f16 = MatMul::builder(1024, 16, 32767).types(ElementTypes::F16).build().unwrap();
        assert!(quarantined(&profile, &f16).is_none());

        let all = Quarantine::here(BackendId::METAL, None, "hung");
        profile.add_quarantine(all.clone());
        assert_eq!(quarantined(&profile, &f16), Some(all.clone()));
        profile.retain_quarantine(|entry| *entry != all);
        assert!(quarantined(&profile, &f16).is_none());
    }

    #[test]
    fn another_chip_or_system_is_not_affected() {
        let product = MatMul::new(2, 2, 2).unwrap();
        let here = Quarantine::here(BackendId::METAL, None, "wrong");
        for entry in [
            Quarantine { chip: "Apple M1".into(), ..here.clone() },
            Quarantine { os_build: "22A380".into(), ..here },
        ] {
            let mut profile = Profile::new(MachineKey::here());
            profile.add_quarantine(entry);
            assert!(profile.quarantined(&BackendId::METAL, &product).is_none());
        }
    }

    #[test]
    fn the_list_is_bounded_and_holds_each_entry_once() {
        let mut profile = Profile::new(MachineKey::here());
        for index in 0..MAXIMUM_QUARANTINE + 2 {
            for reason in ["once", "again"] {
                let backend = BackendId::new(index.to_string());
                profile.add_quarantine(Quarantine::here(backend, None, reason));
            }
        }
        assert_eq!(profile.quarantine().len(), MAXIMUM_QUARANTINE);
        assert_eq!(profile.quarantine()[0].backend.as_str(), "2");
        assert!(profile.quarantine().iter().all(|entry| entry.reason == "again"));
    }
}
