//! What keeps a product off the Neural Engine: rules from public sources, each with its source.

use std::fmt;

use crate::description::element::ElementType;
use crate::description::matmul::MatMul;
use crate::description::quantization::Quantization;

/// The largest dimension that the Neural Engine takes.
const MAXIMUM_DIMENSION: usize = 16384;

/// Arrays of so many bytes are refused.
const MAXIMUM_BYTES: u128 = 1 << 32;

/// The operations of a product of 512^3, below which handing it over takes most of a run.
const SMALLEST_FLOPS: f64 = 2.0 * 512.0 * 512.0 * 512.0;

/// The operations of a product of 16384^3, which timed out there and gave NaN.
const TIMED_OUT_FLOPS: f64 = 2.0 * 16384.0 * 16384.0 * 16384.0;

/// A series of measurements of the M4's Neural Engine through private interfaces, by one author.
const M4_BENCHMARKS: &str = "maderix.substack.com/p/inside-the-m4-apple-neural-engine-615";

/// Something that keeps a product off the Neural Engine.
///
/// ```
/// use ane_matmul::{Consequence, MatMul, ObstacleKind, why_not_neural_engine};
///
/// let obstacles = why_not_neural_engine(&MatMul::new(512, 512, 20000)?);
/// let long = obstacles.iter().find(|obstacle| obstacle.kind == ObstacleKind::Dimension).expect("k is long");
/// assert_eq!(long.consequence, Consequence::Impossible);
/// assert_eq!(long.message, "k = 20000 is over 16384: split it");
/// println!("see {}", long.source);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Obstacle {
    /// What it is about.
    pub kind: ObstacleKind,
    /// How much it matters.
    pub consequence: Consequence,
    /// What it is, and what to do where something can be done.
    pub message: String,
    /// Where the rule comes from.
    pub source: &'static str,
}

/// What an [`Obstacle`] is about.
///
/// ```
/// use ane_matmul::{MatMul, ObstacleKind, why_not_neural_engine};
///
/// let f32s = why_not_neural_engine(&MatMul::new(512, 512, 512)?);
/// assert!(f32s.iter().any(|obstacle| obstacle.kind == ObstacleKind::Type)); // only f16 runs there
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ObstacleKind {
    /// Element types or quantisation.
    Type,
    /// The length of a dimension.
    Dimension,
    /// The bytes of an operand, or too little work.
    Size,
    /// This machine and its operating system: the only kind that is not about the product.
    OsVersion,
    /// Too few operations in one graph.
    Depth,
    /// A fault of the vendor's.
    VendorFault,
}

/// How much an [`Obstacle`] matters.
///
/// ```
/// use ane_matmul::{Consequence, MatMul, why_not_neural_engine};
///
/// let obstacles = why_not_neural_engine(&MatMul::new(512, 512, 512)?);
/// let worst = obstacles.iter().map(|obstacle| obstacle.consequence).max();
/// assert_eq!(worst, Some(Consequence::Impossible)); // f32
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Consequence {
    /// It runs there, at a fraction of the speed.
    Slow,
    /// It was seen to fail there, or to give wrong results.
    Unreliable,
    /// It cannot run there.
    Impossible,
}

impl fmt::Display for ObstacleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Type => "type",
            Self::Dimension => "dimension",
            Self::Size => "size",
            Self::OsVersion => "OS version",
            Self::Depth => "depth",
            Self::VendorFault => "vendor fault",
        })
    }
}

impl fmt::Display for Consequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Slow => "slow",
            Self::Unreliable => "unreliable",
            Self::Impossible => "impossible",
        })
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {} [{}]", self.kind, self.consequence, self.message, self.source)
    }
}

/// What keeps a product off the Neural Engine, by the public record: no rule was measured by this
/// project. Works on every system, so that a product can be checked before it is deployed.
///
/// An empty list is no promise: what the system then chooses is observed, not predicted.
///
/// ```
/// use ane_matmul::{ElementType, ElementTypes, MatMul, ObstacleKind, why_not_neural_engine};
///
/// let of_product = |product: &MatMul| {
///     let mut obstacles = why_not_neural_engine(product);
///     obstacles.retain(|obstacle| obstacle.kind != ObstacleKind::OsVersion);
///     obstacles
/// };
/// let f32 = MatMul::new(2048, 2048, 2048)?;
/// assert_eq!(of_product(&f32)[0].kind, ObstacleKind::Type);
/// let f16 = MatMul::builder(2048, 2048, 2048).types(ElementTypes::uniform(ElementType::F16)).build()?;
/// assert!(of_product(&f16).iter().all(|obstacle| obstacle.kind == ObstacleKind::Depth));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[must_use]
pub fn why_not_neural_engine(product: &MatMul) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let mut add = |kind, consequence, message: String, source| {
        found.push(Obstacle { kind, consequence, message, source });
    };
    let types = product.types();
    let half = [types.a, types.b, types.accumulator, types.output].iter().all(|&t| t == ElementType::F16)
        && (!product.has_bias() || types.bias == ElementType::F16);
    if !half {
        add(
            ObstacleKind::Type,
            Consequence::Impossible,
            format!(
                "only products that are f16 throughout are candidates, not {} x {} summed in {} to {}: describe it with ElementTypes::uniform(ElementType::F16)",
                types.a, types.b, types.accumulator, types.output
            ),
            "github.com/pytorch/pytorch/issues/110975",
        );
    }
    if *product.quantization() != Quantization::default() {
        add(
            ObstacleKind::Type,
            Consequence::Impossible,
            "quantised operands cannot be given to MPSGraph by this crate: dequantise to f16".into(),
            "docs/mpsgraph.md",
        );
    }
    for (name, dimension) in
        [("batch", product.batch()), ("m", product.m()), ("n", product.n()), ("k", product.k())]
    {
        if dimension > MAXIMUM_DIMENSION {
            add(
                ObstacleKind::Dimension,
                Consequence::Impossible,
                format!("{name} = {dimension} is over {MAXIMUM_DIMENSION}: split it"),
                "github.com/AUTOMATIC1111/stable-diffusion-webui/issues/13527",
            );
        }
    }
    for (name, layout, bits) in [
        ("A", product.a(), types.a.bits()),
        ("B", product.b(), types.b.bits()),
        ("C", product.c(), types.output.bits()),
    ] {
        let bytes = layout.span() as u128 * bits as u128 / 8;
        if bytes >= MAXIMUM_BYTES {
            add(
                ObstacleKind::Size,
                Consequence::Impossible,
                format!(
                    "{name} takes {bytes} bytes, and arrays of 2^32 bytes and more are refused: split it"
                ),
                "github.com/pytorch/pytorch/issues/143859",
            );
        }
    }
    if product.flops() >= TIMED_OUT_FLOPS {
        add(
            ObstacleKind::VendorFault,
            Consequence::Unreliable,
            "a product of 16384^3 timed out on the Neural Engine and gave NaN: split it".into(),
            "github.com/pytorch/pytorch/issues/110975",
        );
    }
    if product.flops() < SMALLEST_FLOPS {
        add(
            ObstacleKind::Size,
            Consequence::Slow,
            "below 512^3 handing over takes most of a run: at 256^3 95 of 101 us on an M4: batch more rows"
                .into(),
            M4_BENCHMARKS,
        );
    }
    add(
        ObstacleKind::Depth,
        Consequence::Slow,
        "a single product reached 5.7 TFLOPS on an M4, where 16 to 64 operations in one program reach 19: this crate compiles single products".into(),
        M4_BENCHMARKS,
    );
    if let Some(message) = this_system() {
        add(ObstacleKind::OsVersion, Consequence::Impossible, message, "docs/mpsgraph.md");
    }
    found
}

/// Why this system does not reach the Neural Engine.
#[cfg_attr(
    not(target_vendor = "apple"),
    allow(clippy::unnecessary_wraps, reason = "Apple systems may reach it")
)]
fn this_system() -> Option<String> {
    let needed = "the Neural Engine is reached on macOS 13, iOS 16 and later";
    #[cfg(any(target_os = "macos", target_os = "ios"))]
    {
        let version = crate::dispatch::machine::sysctl(c"kern.osproductversion")?;
        let major: u32 = version.split('.').next()?.parse().ok()?;
        let first = if cfg!(target_os = "macos") { 13 } else { 16 };
        if cfg!(not(target_arch = "aarch64")) {
            return Some("this is an Intel Mac, which has no Neural Engine".into());
        }
        (major < first).then(|| format!("{needed}; this is {version}"))
    }
    #[cfg(not(any(target_os = "macos", target_os = "ios")))]
    Some(format!("{needed}; this is {}", std::env::consts::OS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::matmul::ElementTypes;

    const F16: ElementTypes = ElementTypes::uniform(ElementType::F16);

    fn kinds(product: &MatMul) -> Vec<(ObstacleKind, Consequence)> {
        let of_product =
            |obstacle: &Obstacle| !matches!(obstacle.kind, ObstacleKind::OsVersion | ObstacleKind::Depth);
        let obstacles = why_not_neural_engine(product);
        assert!(obstacles.iter().all(|obstacle| !obstacle.source.is_empty()));
        obstacles.iter().filter(|o| of_product(o)).map(|o| (o.kind, o.consequence)).collect()
    }

    fn f16(m: usize, n: usize, k: usize) -> MatMul {
        MatMul::builder(m, n, k).types(F16).build().unwrap()
    }

    #[test]
    fn each_rule_at_its_limit() {
        use Consequence::{Impossible, Slow, Unreliable};
        use ObstacleKind::{Dimension, Size, Type, VendorFault};
        assert_eq!(kinds(&f16(512, 512, 512)), []);
        assert_eq!(kinds(&f16(511, 512, 512)), [(Size, Slow)]);
        assert_eq!(kinds(&f16(16384, 512, 512)), []);
        assert_eq!(kinds(&f16(16385, 512, 512)), [(Dimension, Impossible)]);
        let cube = |k| f16(16384, 16384, k);
        assert_eq!(kinds(&cube(16383)), []);
        assert_eq!(kinds(&cube(16384)), [(VendorFault, Unreliable)]);
        let batch = |batch| MatMul::builder(16384, 8192, 8).batch(batch).types(F16).build().unwrap();
        assert_eq!(kinds(&batch(15)), []);
        assert_eq!(kinds(&batch(16)), [(Size, Impossible)]);
        let mixed = |types| MatMul::builder(512, 512, 512).types(types).build().unwrap();
        for types in [ElementTypes::F32, ElementTypes::BF16, ElementTypes::F16, ElementTypes::INT8] {
            assert_eq!(kinds(&mixed(types)), [(Type, Impossible)], "{types:?}");
        }
        let bias = MatMul::builder(512, 512, 512).types(ElementTypes { bias: ElementType::F32, ..F16 });
        assert_eq!(kinds(&bias.clone().build().unwrap()), []);
        assert_eq!(kinds(&bias.bias(true).build().unwrap()), [(Type, Impossible)]);
    }

    #[cfg(not(target_vendor = "apple"))]
    #[test]
    fn another_system_is_an_obstacle() {
        let last = why_not_neural_engine(&f16(512, 512, 512)).pop().unwrap();
        assert_eq!(last.kind, ObstacleKind::OsVersion);
        assert!(last.message.ends_with(std::env::consts::OS), "{last}");
    }

    #[test]
    fn an_obstacle_says_what_it_is_what_follows_and_who_says_so() {
        let obstacle = Obstacle {
            kind: ObstacleKind::VendorFault,
            consequence: Consequence::Unreliable,
            message: "it fails".into(),
            source: "a page",
        };
        assert_eq!(obstacle.to_string(), "vendor fault (unreliable): it fails [a page]");
    }
}
