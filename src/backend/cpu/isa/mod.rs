//! Instruction sets: which are here, and vectors of each.
//!
//! Kernels are written once over [`Simd`] and instantiated inside functions that enable the
//! instruction set ([`super::microkernel`]), so everything on vectors must be inlined into those.

/// What differs between the vectors of x86-64 by their instructions alone.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
macro_rules! x86_arithmetic {
    ($number:ty: $set1:ident $loadu:ident $storeu:ident $add:ident $mul:ident $fmadd:ident $max:ident) => {
        type Number = $number;

        #[inline(always)]
        unsafe fn splat(x: $number) -> Self { unsafe { Self($set1(x)) } }
        #[inline(always)]
        unsafe fn load(from: *const $number) -> Self { unsafe { Self($loadu(from)) } }
        #[inline(always)]
        unsafe fn store(self, to: *mut $number) { unsafe { $storeu(to, self.0) } }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self { unsafe { Self($add(self.0, other.0)) } }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self { unsafe { Self($mul(self.0, other.0)) } }
        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self { unsafe { Self($fmadd(self.0, factor.0, addend.0)) } }
        // The instruction gives the second operand if either is NaN.
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self { unsafe { Self($max(self.0, other.0)) } }
        #[inline(always)]
        unsafe fn prefetch<T>(from: *const T) { unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) } }
        #[inline(always)]
        unsafe fn prefetch_l2<T>(from: *const T) { unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) } }
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_dot;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_interleave;
#[cfg(target_arch = "x86_64")]
pub(crate) mod madd;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
#[cfg(all(target_arch = "aarch64", feature = "half"))]
pub(crate) mod neon_bf16;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon_dot;
pub(crate) mod portable;

use std::sync::LazyLock;

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Isa {
    /// AVX-512 F and DQ, with AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2, F16C and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What every 64-bit ARM has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Plain Rust, on every machine.
    Portable,
}

/// Narrow elements whose products are summed in lanes of 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Dot {
    /// Two bf16, summed in f32.
    Bf16,
    /// Four 8-bit integers, signed in B, and in A unsigned on x86-64 and signed on AArch64, summed in i32 modulo
    /// 2^32.
    Int8,
    /// Two 8-bit integers, widened to 16 bits and summed in i32 modulo 2^32: no extension is needed.
    Int8Pairs,
}

impl Dot {
    pub(crate) const ALL: [Self; 3] = [Self::Bf16, Self::Int8, Self::Int8Pairs];

    pub(crate) const fn of_integers(self) -> bool {
        matches!(self, Self::Int8 | Self::Int8Pairs)
    }
}

/// The environment variable that forces an instruction set or an extension by name, for tests.
const FORCE: &str = "ANE_MATMUL_CPU";

/// What [`FORCE`] says; empty is as if it were not there.
static FORCED: LazyLock<Option<String>> = LazyLock::new(|| {
    std::env::var_os(FORCE).filter(|name| !name.is_empty()).map(|name| name.to_string_lossy().into_owned())
});

impl Isa {
    /// The fastest first.
    pub(crate) const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
        Self::Portable,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }

    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "the others have no choice"))]
    fn is_in(self, features: Features) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Self::Avx2.is_in(features) && features.avx512f && features.avx512dq,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => features.avx2 && features.f16c && features.fma,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            Self::Portable => true,
        }
    }

    /// Those that this machine has, the fastest first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        let features = Features::of_this_machine();
        Self::ALL.iter().copied().filter(move |isa| isa.is_in(features))
    }

    /// The fastest of this machine, or the one that `ANE_MATMUL_CPU` names, itself or by an extension.
    ///
    /// # Errors
    /// With what there is, where the machine lacks what is named.
    pub(crate) fn detect() -> Result<Self, String> {
        let names = |isa: Self| {
            let features = Features::of_this_machine();
            let extensions = Dot::ALL.into_iter().filter_map(move |dot| isa.extension_in(dot, features));
            std::iter::once(isa.name()).chain(extensions)
        };
        let fits = |isa: &Self| FORCED.as_ref().is_none_or(|wanted| names(*isa).any(|name| name == wanted));
        Self::available().find(fits).ok_or_else(|| {
            let wanted = FORCED.as_deref().unwrap_or_default();
            let here = Self::available().flat_map(names).collect::<Vec<_>>().join(", ");
            format!("{FORCE}={wanted} names no kernels that this machine has; here: {here}")
        })
    }

    /// The name of the kernels with dot products, where there are any.
    const fn extension(self, dot: Dot) -> Option<&'static str> {
        match (self, dot) {
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512, Dot::Bf16) => {
                if cfg!(feature = "half") {
                    Some("avx512-bf16")
                } else {
                    None
                }
            }
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512, Dot::Int8) => Some("avx512-vnni"),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512, Dot::Int8Pairs) => Some("avx512-vpmaddwd"),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, Dot::Int8Pairs) => Some("avx2-vpmaddwd"),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, Dot::Bf16 | Dot::Int8) => None,
            #[cfg(target_arch = "aarch64")]
            (Self::Neon, Dot::Int8Pairs) => None,
            // The first element of a word is its lowest byte, and lies first in memory.
            #[cfg(target_arch = "aarch64")]
            (Self::Neon, Dot::Bf16) => {
                if cfg!(all(feature = "half", target_endian = "little")) {
                    Some("neon-bf16")
                } else {
                    None
                }
            }
            #[cfg(target_arch = "aarch64")]
            (Self::Neon, Dot::Int8) => {
                if cfg!(target_endian = "little") {
                    Some("neon-dotprod")
                } else {
                    None
                }
            }
            (Self::Portable, Dot::Bf16 | Dot::Int8 | Dot::Int8Pairs) => None,
        }
    }

    /// [`Isa::extension`], where the processor has it.
    fn extension_in(self, dot: Dot, features: Features) -> Option<&'static str> {
        #[cfg(target_arch = "x86_64")]
        let available = match dot {
            Dot::Int8Pairs => self == Self::Avx2 || features.avx512bw,
            Dot::Bf16 => features.avx512bw && features.avx512vl && features.avx512bf16,
            Dot::Int8 => features.avx512bw && features.avx512vl && features.avx512vnni,
        };
        #[cfg(target_arch = "aarch64")]
        let available = match dot {
            Dot::Bf16 => features.bf16,
            Dot::Int8 => features.dotprod,
            Dot::Int8Pairs => false,
        };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let available = false;
        self.extension(dot).filter(|_| self.is_in(features) && available)
    }

    /// Whether dot products of such elements are here and faster than what they replace, or the kernels that are
    /// forced.
    pub(crate) fn has(self, dot: Dot) -> bool {
        self.chooses(dot, Features::of_this_machine(), FORCED.as_deref())
    }

    /// The fastest that [`Isa::has`] for products of 8-bit integers.
    pub(crate) fn int8(self) -> Option<Dot> {
        [Dot::Int8, Dot::Int8Pairs].into_iter().find(|dot| self.has(*dot))
    }

    fn chooses(self, dot: Dot, features: Features, forced: Option<&str>) -> bool {
        self.extension_in(dot, features).is_some_and(|name| match forced {
            // Plain instructions are among those of the instruction set.
            Some(wanted) => wanted == name || dot == Dot::Int8Pairs && wanted == self.name(),
            None => dot != Dot::Bf16 || !features.has_slow_bf16,
        })
    }
}

/// What kernels need of a processor, where the system lets programs use it.
#[derive(Debug, Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools, reason = "as processors state them")]
struct Features {
    #[cfg(target_arch = "x86_64")]
    avx2: bool,
    #[cfg(target_arch = "x86_64")]
    f16c: bool,
    #[cfg(target_arch = "x86_64")]
    fma: bool,
    #[cfg(target_arch = "x86_64")]
    avx512f: bool,
    #[cfg(target_arch = "x86_64")]
    avx512dq: bool,
    #[cfg(target_arch = "x86_64")]
    avx512bw: bool,
    #[cfg(target_arch = "x86_64")]
    avx512vl: bool,
    #[cfg(target_arch = "x86_64")]
    avx512bf16: bool,
    #[cfg(target_arch = "x86_64")]
    avx512vnni: bool,
    #[cfg(target_arch = "aarch64")]
    bf16: bool,
    #[cfg(target_arch = "aarch64")]
    dotprod: bool,
    /// Whether dot products of bf16 are slower than f32 multiply-adds of as many elements.
    has_slow_bf16: bool,
}

impl Features {
    fn of_this_machine() -> Self {
        Self {
            #[cfg(target_arch = "x86_64")]
            avx2: is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            f16c: is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            fma: is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            avx512f: is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            avx512dq: is_x86_feature_detected!("avx512dq"),
            #[cfg(target_arch = "x86_64")]
            avx512bw: is_x86_feature_detected!("avx512bw"),
            #[cfg(target_arch = "x86_64")]
            avx512vl: is_x86_feature_detected!("avx512vl"),
            #[cfg(target_arch = "x86_64")]
            avx512bf16: is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            avx512vnni: is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "aarch64")]
            bf16: std::arch::is_aarch64_feature_detected!("bf16"),
            #[cfg(target_arch = "aarch64")]
            dotprod: std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            has_slow_bf16: is_x86_feature_detected!("avx512bf16") && {
                use std::arch::x86_64::{__cpuid, __cpuid_count};
                let vendor = __cpuid(0);
                has_slow_bf16([vendor.ebx, vendor.edx, vendor.ecx], __cpuid_count(7, 1).eax)
            },
            #[cfg(not(all(target_arch = "x86_64", not(miri))))]
            has_slow_bf16: false,
        }
    }
}

/// Whether a processor with AVX-512 BF16 takes four micro-operations for its dot product, at half the rate of f32:
/// Intel's from Golden Cove on (LLVM's model of Sapphire Rapids), which have matrix tiles for bf16.
///
/// `vendor` is EBX, EDX and ECX of CPUID's leaf 0, `leaf_7_1` EAX of leaf 7, subleaf 1.
#[cfg(all(target_arch = "x86_64", any(test, not(miri))))]
fn has_slow_bf16(vendor: [u32; 3], leaf_7_1: u32) -> bool {
    /// Cooper Lake, the only one with BF16 before, lacks it.
    const AVX_VNNI: u32 = 1 << 4;
    let intel = [*b"Genu", *b"ineI", *b"ntel"].map(u32::from_le_bytes);
    vendor == intel && leaf_7_1 & AVX_VNNI != 0
}

/// A vector of [`Vector::LANES`] numbers, f32 or f64.
///
/// # Safety
/// All functions may be called only where the instruction set is there and, for speed, inside a
/// function that enables it. Pointers need no alignment beyond that of a number; `load` and `store` access
/// [`Vector::LANES`] numbers, the masked forms only those that the mask selects.
pub(crate) unsafe trait Vector: Copy {
    /// f32 or f64.
    type Number: Copy + Default + From<f32>;
    /// The numbers in a vector.
    const LANES: usize;
    /// Which lanes a masked access touches.
    type Mask: Copy;

    unsafe fn splat(x: Self::Number) -> Self;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self::splat(Self::Number::default()) }
    }
    unsafe fn load(from: *const Self::Number) -> Self;
    unsafe fn store(self, to: *mut Self::Number);
    /// The first `count` lanes, at most all.
    unsafe fn mask(count: usize) -> Self::Mask;
    /// Lanes that the mask does not select are 0.
    unsafe fn load_masked(from: *const Self::Number, mask: Self::Mask) -> Self;
    unsafe fn store_masked(self, to: *mut Self::Number, mask: Self::Mask);
    /// A masked load, or one of all lanes.
    #[inline(always)]
    unsafe fn load_part(from: *const Self::Number, mask: Option<Self::Mask>) -> Self {
        // SAFETY: by the trait's contract.
        unsafe {
            match mask {
                Some(mask) => Self::load_masked(from, mask),
                None => Self::load(from),
            }
        }
    }
    /// A masked store, or one of all lanes.
    #[inline(always)]
    unsafe fn store_part(self, to: *mut Self::Number, mask: Option<Self::Mask>) {
        // SAFETY: by the trait's contract.
        unsafe {
            match mask {
                Some(mask) => self.store_masked(to, mask),
                None => self.store(to),
            }
        }
    }
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once where the instruction set can.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The greater, where neither is NaN; NaN where `other` is.
    unsafe fn max(self, other: Self) -> Self;
    /// The sum of the lanes, in an order that is always the same.
    unsafe fn sum(self) -> Self::Number;
    /// Prefetches a cache line; any address will do.
    unsafe fn prefetch<T>(from: *const T);
    /// The same into the second-level cache alone, where there is an instruction for it.
    #[inline(always)]
    unsafe fn prefetch_l2<T>(from: *const T) {
        // SAFETY: by the trait's contract.
        unsafe { Self::prefetch(from) }
    }
    /// `LANES` rows of `LANES` numbers, `from_stride` apart, written as columns: row `i` of the result
    /// at `to + i * to_stride`. Only the first `rows` rows are read, the others count as 0; only the
    /// first `cols` numbers of a row are read and only so many rows written.
    unsafe fn transpose(
        from: *const Self::Number,
        from_stride: usize,
        rows: usize,
        cols: usize,
        to: *mut Self::Number,
        to_stride: usize,
    );
}

/// The words of 32 bits in a number of a vector.
pub(crate) const fn words_of<V: Vector>() -> usize {
    size_of::<V::Number>() / size_of::<f32>()
}

/// Vectors of f32, with what activations and narrower elements need.
///
/// # Safety
/// As [`Vector`].
pub(crate) unsafe trait Simd: Vector<Number = f32> {
    /// Whether [`Simd::look_up`] costs about as much as arithmetic.
    const LOOKS_UP: bool = false;
    /// The powers of 2 between 1 and 2 that [`Simd::exp2_split`] gives.
    const EXP2_STEPS: u32 = 1;
    /// [`Vector::LANES`] words of packed integers.
    type Words: Copy;

    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// [`Vector::mul_add`], rounded once on every instruction set.
    #[inline(always)]
    unsafe fn fused_mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { self.mul_add(factor, addend) }
    }
    /// The lesser, where neither is NaN; NaN where `other` is.
    unsafe fn min(self, other: Self) -> Self;
    /// Where `self < other` the lane of `yes`, elsewhere (NaN included) of `no`.
    unsafe fn select_less(self, other: Self, yes: Self, no: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// The magnitude of `self` with the sign of `sign`.
    unsafe fn copysign(self, sign: Self) -> Self;
    /// With n the multiple of 1 / [`Simd::EXP2_STEPS`] next to `self * factor`, which is from -256 to 0: `offset`, a
    /// small multiple as well, minus n; and 2^n, where below the smallest normal number any from 0 to that.
    unsafe fn exp2_split(self, factor: Self, offset: f32) -> (Self, Self);
    /// For numbers from 1 to 16 what tables have for the eighth of an octave that each lies in: the first entry
    /// is for 2 to 2.25, the last for 1.875 to 2.
    #[inline(always)]
    unsafe fn look_up<const N: usize>(self, tables: &[[f32; 32]; N]) -> [Self; N] {
        let mut lanes = [0.0; 16];
        // SAFETY: by the trait's contract; no vector has more lanes.
        unsafe {
            self.store(lanes.as_mut_ptr());
            let index = lanes.map(|y| (y.to_bits() >> 20) as usize % 32);
            tables.each_ref().map(|table| Self::load(index.map(|i| table[i]).as_ptr()))
        }
    }
    /// The greatest of the lanes, where none is NaN; else any number or NaN.
    unsafe fn largest(self) -> f32;
    /// Upcasts `LANES` IEEE 754 binary16 numbers.
    #[cfg(feature = "half")]
    unsafe fn from_f16(from: *const u16) -> Self;
    /// Upcasts `LANES` bf16 numbers, the upper halves of f32.
    #[cfg(feature = "half")]
    unsafe fn from_bf16(from: *const u16) -> Self;
    /// Upcasts `LANES` integers.
    unsafe fn from_i8(from: *const i8) -> Self;
    /// Upcasts `LANES` integers.
    unsafe fn from_u8(from: *const u8) -> Self;
    unsafe fn load_words(from: *const u32) -> Self::Words;
    /// Upcasts the signed integer of `BITS` bits, 4 or 8, that begins at bit `BITS * index` of each word.
    unsafe fn unpack<const BITS: u32>(words: Self::Words, index: u32) -> Self;
    /// Whether words of 4-bit integers lie as [`Simd::for_each_integer`] reads them by shuffles: of each four adjacent
    /// words the low halves first, then the high ones.
    const HALVES_APART: bool = false;
    /// Calls `f` with each index of an integer in a word, in any order, and the upcast integers.
    #[inline(always)]
    unsafe fn for_each_integer<const BITS: u32>(words: Self::Words, mut f: impl FnMut(usize, Self)) {
        for index in 0..32 / BITS {
            // SAFETY: by the trait's contract.
            f(index as usize, unsafe { Self::unpack::<BITS>(words, index) });
        }
    }
}

/// Vectors whose lanes are taken for i32, where an instruction set has dot products of integers.
///
/// # Safety
/// As [`Simd`].
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "no other has dot products of integers")
)]
pub(crate) unsafe trait SimdInteger: Simd {
    unsafe fn splat_i32(x: i32) -> Self;
    /// Modulo 2^32.
    unsafe fn add_i32(self, other: Self) -> Self;
    /// Modulo 2^32.
    unsafe fn sub_i32(self, other: Self) -> Self;
    /// The nearest f32 of each lane.
    unsafe fn i32_to_f32(self) -> Self;
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    const AVX2: Features = Features { avx2: true, f16c: true, fma: true, ..NOTHING };
    const NOTHING: Features = Features {
        avx2: false,
        f16c: false,
        fma: false,
        avx512f: false,
        avx512dq: false,
        avx512bw: false,
        avx512vl: false,
        avx512bf16: false,
        avx512vnni: false,
        has_slow_bf16: false,
    };
    const SKYLAKE: Features =
        Features { avx512f: true, avx512dq: true, avx512bw: true, avx512vl: true, ..AVX2 };
    const CASCADE_LAKE: Features = Features { avx512vnni: true, ..SKYLAKE };
    const COOPER_LAKE: Features = Features { avx512bf16: true, ..CASCADE_LAKE };
    const SAPPHIRE_RAPIDS: Features = Features { has_slow_bf16: true, ..COOPER_LAKE };

    #[test]
    fn kernels_are_those_that_are_fastest_on_a_processor() {
        let half = cfg!(feature = "half");
        for (name, features, isa, bf16, int8) in [
            ("no AVX", NOTHING, Isa::Portable, false, false),
            ("without FMA", Features { fma: false, ..AVX2 }, Isa::Portable, false, false),
            ("Zen 3", AVX2, Isa::Avx2, false, false),
            // A system that does not save the state of AVX-512: then none of it is stated.
            ("Zen 4 without the state", AVX2, Isa::Avx2, false, false),
            ("AVX-512 F alone", Features { avx512f: true, ..AVX2 }, Isa::Avx2, false, false),
            ("BF16 without AVX2", Features { avx2: false, ..COOPER_LAKE }, Isa::Portable, false, false),
            ("Skylake-X", SKYLAKE, Isa::Avx512, false, false),
            ("Cascade Lake", CASCADE_LAKE, Isa::Avx512, false, true),
            ("without BW", Features { avx512bw: false, ..COOPER_LAKE }, Isa::Avx512, false, false),
            ("Cooper Lake, Zen 4", COOPER_LAKE, Isa::Avx512, half, true),
            ("Sapphire Rapids", SAPPHIRE_RAPIDS, Isa::Avx512, false, true),
        ] {
            let best = Isa::ALL.iter().find(|isa| isa.is_in(features));
            assert_eq!(best, Some(&isa), "{name}");
            let has = |dot| isa.chooses(dot, features, None);
            assert_eq!((has(Dot::Bf16), has(Dot::Int8)), (bf16, int8), "{name}");
            assert!(!isa.chooses(Dot::Int8, features, Some("avx512")), "{name}");
        }
        // By name the slow one too.
        let named = |dot| Isa::Avx512.chooses(dot, SAPPHIRE_RAPIDS, Some("avx512-bf16"));
        assert_eq!((named(Dot::Bf16), named(Dot::Int8)), (half, false));
        assert!(!Isa::Avx512.chooses(Dot::Bf16, CASCADE_LAKE, Some("avx512-bf16")));
    }

    #[test]
    fn a_slow_dot_product_is_known_by_vendor_and_generation() {
        let vendor =
            |name: &[u8; 12]| [0, 4, 8].map(|at| u32::from_le_bytes(std::array::from_fn(|i| name[at + i])));
        let (intel, amd) = (vendor(b"GenuineIntel"), vendor(b"AuthenticAMD"));
        // EAX of leaf 7, subleaf 1: AVX-VNNI is bit 4, AVX-512 BF16 bit 5.
        assert!(!has_slow_bf16(intel, 0x20), "Cooper Lake");
        assert!(has_slow_bf16(intel, 0x1c30), "Sapphire Rapids");
        assert!(!has_slow_bf16(amd, 0x20), "Zen 4");
        assert!(!has_slow_bf16(amd, 0x30), "Zen 5");
        assert!(!has_slow_bf16(intel, 0), "Cascade Lake");
    }
}
