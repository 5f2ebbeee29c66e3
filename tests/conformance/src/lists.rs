//! The lists of cases, by name.

use std::fmt;
use std::str::FromStr;

use ane_matmul::{ElementType, ElementTypes};

use crate::amount::scattered;
use crate::cases::{Case, Scale, cases_of_type};
use crate::quantized::{integer_cases, weight_only_cases};
use crate::run::Way;

/// A list of cases, with the way in which they are run. A case is known by its list and its number in it.
///
/// ```
/// use ane_matmul_conformance::{List, Way};
///
/// let list: List = "weight-only".parse()?;
/// assert_eq!((list, list.way()), (List::WeightOnly, Way::Host));
/// assert!(list.cases().len() > 1000);
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum List {
    /// f32 throughout.
    F32,
    /// f64 throughout.
    F64,
    /// f16 operands, sums and results in f32.
    F16,
    /// f16 operands, bias and results, sums in f32.
    F16Stored,
    /// f16 operands, sums and results.
    F16Throughout,
    /// bf16 operands, sums and results in f32.
    Bf16,
    /// bf16 operands, bias and results, sums in f32.
    Bf16Stored,
    /// Sums of integers: of i8, u8 and float A, with every kind of scale and output.
    Integers,
    /// A float A with 8 and 4-bit weights.
    WeightOnly,
    /// Submissions that are waited for: every f32 case, and some of each other type.
    Asynchronous,
    /// Operands that stay on the device: the same cases.
    Resident,
}

impl List {
    /// Every list.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F64,
        Self::F16,
        Self::F16Stored,
        Self::F16Throughout,
        Self::Bf16,
        Self::Bf16Stored,
        Self::Integers,
        Self::WeightOnly,
        Self::Asynchronous,
        Self::Resident,
    ];

    /// The name on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::F16 => "f16",
            Self::F16Stored => "f16-stored",
            Self::F16Throughout => "f16-throughout",
            Self::Bf16 => "bf16",
            Self::Bf16Stored => "bf16-stored",
            Self::Integers => "integers",
            Self::WeightOnly => "weight-only",
            Self::Asynchronous => "asynchronous",
            Self::Resident => "resident",
        }
    }

    /// How its cases are run.
    #[must_use]
    pub const fn way(self) -> Way {
        match self {
            Self::Asynchronous => Way::Submitted,
            Self::Resident => Way::Resident,
            _ => Way::Host,
        }
    }

    /// All its cases. The first has number 1.
    #[must_use]
    pub fn cases(self) -> Vec<Case> {
        let stored = |types: ElementTypes| ElementTypes { output: types.a, bias: types.a, ..types };
        let f16_stored = stored(ElementTypes::F16);
        let types = match self {
            Self::F32 => ElementTypes::F32,
            Self::F64 => ElementTypes::F64,
            Self::F16 => ElementTypes::F16,
            Self::F16Stored => f16_stored,
            Self::F16Throughout => ElementTypes { accumulator: ElementType::F16, ..f16_stored },
            Self::Bf16 => ElementTypes::BF16,
            Self::Bf16Stored => stored(ElementTypes::BF16),
            Self::Integers => return integer_cases(Scale::Full),
            Self::WeightOnly => return weight_only_cases(Scale::Full),
            Self::Asynchronous | Self::Resident => return on_device(),
        };
        cases_of_type(types, Scale::Full)
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for List {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|list| list.name() == name).ok_or_else(|| {
            format!("no list is called `{name}`; there are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// The cases of lists on the device: other types than f32 differ in the sizes and places of their operands alone.
fn on_device() -> Vec<Case> {
    let mut cases = List::F32.cases();
    for list in [List::F16, List::F16Stored, List::Bf16, List::Bf16Stored, List::Integers, List::WeightOnly] {
        cases.extend(scattered(list.cases(), 0, 16));
    }
    for case in &mut cases {
        // 4-bit integers are weights.
        case.constant_b |= matches!(case.types.b, ElementType::I4 | ElementType::U4);
    }
    cases
}
