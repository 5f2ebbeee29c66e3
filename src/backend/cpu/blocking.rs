//! How a product is cut to fit the caches.

use super::macrokernel::LINE;
use super::microkernel::MicroKernels;
use super::pack::Word;

/// Cache sizes of one core, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caches {
    pub l1_bytes: usize,
    pub l2_bytes: usize,
}

/// Block sizes, in numbers (or words of several elements) unless they are said to be other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocking {
    /// KC: k of a block of A that stays in the second-level cache while micro-panels of B pass by.
    pub kc: usize,
    /// The part of KC for which a micro-panel of B stays in the first-level cache while those of A pass by.
    pub kc_l1: usize,
    /// MC in micro-panels of A.
    pub mc_panels: usize,
    /// NC: the columns of B that are packed at a time, where B is not constant.
    pub nc: usize,
    /// A of up to so many bytes may stay as it is.
    pub l2_bytes: usize,
}

impl Blocking {
    pub(crate) fn new(kernels: &MicroKernels, caches: Caches) -> Self {
        let words = |bytes: usize| bytes / size_of::<Word>();
        // As much of a micro-panel as the first-level cache holds: A and C pass through it quickly, and what
        // they push out comes back from the second level in time (of 192 to 512, 384 was fastest on a
        // Zen 5 core with 48 KiB, 2026-11-24).
        let kc_l1 = (words(caches.l1_bytes) / kernels.panel_words()).next_multiple_of(K_MULTIPLE);
        // Half of the second level for A; micro-panels of B and C pass through the other half.
        let numbers = |bytes: usize| words(bytes) / kernels.number_words();
        let mc_panels = |kc: usize| (numbers(caches.l2_bytes) / 2 / kc / kernels.mr()).max(1);
        // Two such parts of k, unless few rows then fit: with one, products by a dynamic B took up to 14 % less time and
        // others as long (AVX2, 512 KiB; Zen 1, 2026-12-01). Wide micro-panels were measured with two.
        let few_rows = mc_panels(2 * kc_l1) * kernels.mr() < MIN_ROWS && kernels.panel_words() <= LINE;
        let kc = if few_rows { kc_l1 } else { 2 * kc_l1 };
        let mc_panels = mc_panels(kc);
        let nc = (numbers(PACKED_B_BYTES) / kc).next_multiple_of(kernels.nr());
        Self { kc, kc_l1, mc_panels, nc, l2_bytes: caches.l2_bytes }
    }
}

/// Blocks of k but the last are multiples of this: of every vector's lanes, so that packing works on
/// whole vectors.
pub(crate) const K_MULTIPLE: usize = 16;

/// The rows of A that make a block of two parts of k worth it.
const MIN_ROWS: usize = 64;

/// What is packed of a B that is not constant at a time: a part of a last-level cache.
const PACKED_B_BYTES: usize = 4 << 20;

impl Caches {
    /// 32 KiB and 512 KiB where the machine does not say: small for what has been made since 2017.
    const DEFAULT: Self = Self { l1_bytes: 32 << 10, l2_bytes: 512 << 10 };

    pub(crate) fn of_this_machine() -> Self {
        Self::or_default(Self::read())
    }

    /// What was read, unless it is too small to be true.
    fn or_default(read: Option<Self>) -> Self {
        read.filter(|caches| caches.l1_bytes >= 8 << 10 && caches.l2_bytes >= caches.l1_bytes)
            .unwrap_or(Self::DEFAULT)
    }

    /// From the processor: leaf 4 of CPUID on Intel's, 0x8000001D, laid out alike, on AMD's.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    fn read() -> Option<Self> {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        let amd = __cpuid(0x8000_0000).eax >= 0x8000_001d && __cpuid(0x8000_0001).ecx & (1 << 22) != 0;
        let leaf = if amd { 0x8000_001d } else { 4 };
        if !amd && __cpuid(0).eax < 4 {
            return None;
        }
        let mut levels = [0; 3];
        for index in 0..8 {
            let cache = __cpuid_count(leaf, index);
            let (kind, level) = (cache.eax & 31, (cache.eax >> 5 & 7) as usize);
            // 1 is a data cache, 3 a unified one.
            if (kind == 1 || kind == 3) && level < levels.len() {
                let (ways, partitions, line) = (cache.ebx >> 22, cache.ebx >> 12 & 0x3ff, cache.ebx & 0xfff);
                levels[level] = (ways as usize + 1)
                    * (partitions as usize + 1)
                    * (line as usize + 1)
                    * (cache.ecx as usize + 1);
            }
        }
        Some(Self { l1_bytes: levels[1], l2_bytes: levels[2] })
    }

    /// From the kernel's tables.
    #[cfg(all(target_os = "linux", not(target_arch = "x86_64"), not(miri)))]
    fn read() -> Option<Self> {
        let mut caches = Self { l1_bytes: 0, l2_bytes: 0 };
        for index in 0..8 {
            let read = |name: &str| {
                std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}"))
            };
            let (Ok(level), Ok(kind), Ok(size)) = (read("level"), read("type"), read("size")) else {
                break;
            };
            let Some(Ok(kib)) = size.trim().strip_suffix('K').map(str::parse::<usize>) else {
                continue;
            };
            match (level.trim(), kind.trim()) {
                ("1", "Data" | "Unified") => caches.l1_bytes = kib << 10,
                ("2", "Data" | "Unified") => caches.l2_bytes = kib << 10,
                _ => {}
            }
        }
        (caches.l1_bytes > 0 || caches.l2_bytes > 0).then_some(caches)
    }

    /// Apple's performance cores since M1: 128 KiB, and 12 MiB or more shared by a cluster
    /// (`hw.perflevel0.l1dcachesize` and `hw.perflevel0.l2cachesize`).
    #[cfg(all(target_vendor = "apple", target_arch = "aarch64", not(miri)))]
    #[allow(clippy::unnecessary_wraps, reason = "other systems may not say")]
    fn read() -> Option<Self> {
        Some(Self { l1_bytes: 128 << 10, l2_bytes: 2 << 20 })
    }

    #[cfg(any(
        miri,
        not(any(
            target_arch = "x86_64",
            target_os = "linux",
            all(target_vendor = "apple", target_arch = "aarch64")
        ))
    ))]
    fn read() -> Option<Self> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
    use crate::description::options::Threads;

    #[test]
    fn what_is_too_small_to_be_true_is_not_taken() {
        let caches = |l1_bytes, l2_bytes| Some(Caches { l1_bytes, l2_bytes });
        for (read, taken) in [
            (None, false),
            (caches(8 << 10, 8 << 10), true),
            (caches((8 << 10) - 1, 1 << 20), false),
            (caches(64 << 10, 32 << 10), false),
        ] {
            let expected = if taken { read.unwrap() } else { Caches::DEFAULT };
            assert_eq!(Caches::or_default(read), expected, "{read:?}");
        }
    }

    #[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
    #[test]
    fn the_processor_says_what_the_kernel_says_of_its_caches() {
        let read = |cpu: usize, index: usize, name: &str| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/cache/index{index}/{name}");
            std::fs::read_to_string(path).map(|text| text.trim().to_owned()).ok()
        };
        // Cores may differ, and a kernel may have no tables.
        let (mut l1, mut l2) = (Vec::new(), Vec::new());
        for (cpu, index) in (0..Threads::Auto.number()).flat_map(|cpu| (0..8).map(move |index| (cpu, index)))
        {
            let (Some(level), Some(kind), Some(size)) =
                (read(cpu, index, "level"), read(cpu, index, "type"), read(cpu, index, "size"))
            else {
                continue;
            };
            let bytes = size.trim_end_matches('K').parse::<usize>().unwrap() << 10;
            match (level.as_str(), kind.as_str()) {
                ("1", "Data" | "Unified") => l1.push(bytes),
                ("2", "Data" | "Unified") => l2.push(bytes),
                _ => {}
            }
        }
        let Some(Caches { l1_bytes, l2_bytes }) = Caches::read() else {
            assert!(l1.is_empty() && l2.is_empty(), "{l1:?} and {l2:?} were not read");
            return;
        };
        assert!((8 << 10..=1 << 20).contains(&l1_bytes) && (64 << 10..=1 << 28).contains(&l2_bytes));
        assert!(l1.is_empty() || l1.contains(&l1_bytes), "{l1_bytes} is none of {l1:?}");
        assert!(l2.is_empty() || l2.contains(&l2_bytes), "{l2_bytes} is none of {l2:?}");
    }
}
