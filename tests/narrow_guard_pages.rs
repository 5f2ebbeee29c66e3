//! No kernel of narrow types touches memory beyond what it was given, or keeps: in these processes every
//! allocation, of the caller's operands and scales and of the engine's own packed weights and scratch
//! memory, ends where a page begins that may not be accessed, and in another run begins where one ends.
//! Freed memory may not be accessed either. An access beyond kills the process, whose last line names
//! the product.
#![cfg(unix)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use ane_matmul::{BackendId, Backends, CompileOptions, ElementType, ElementTypes, Threads};
use ane_matmul_conformance::{Case, Scale, cases_of_type, integer_cases, run_case, some, weight_only_cases};
use support::{emulated, on_every_kernel_of_narrow_types, report};

/// Where an allocation lies in its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Anywhere,
    AtTheirEnd,
    AtTheirStart,
}

/// Hands out parts of one closed range of addresses, each once, with a closed page between them.
struct Fence;

/// The address space of a process's allocations; no memory is taken for it.
const RANGE_BYTES: usize = 1 << 35;

static PLACE: AtomicUsize = AtomicUsize::new(Place::Anywhere as usize);
static START: AtomicUsize = AtomicUsize::new(0);
static NEXT: AtomicUsize = AtomicUsize::new(0);
static PAGE: AtomicUsize = AtomicUsize::new(0);

impl Fence {
    const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;

    fn close(place: Place) {
        if START.load(SeqCst) == 0 {
            // SAFETY: new addresses, all closed; and a plain question.
            let (start, page) = unsafe {
                let start =
                    libc::mmap(std::ptr::null_mut(), RANGE_BYTES, libc::PROT_NONE, Self::FLAGS, -1, 0);
                assert_ne!(start, libc::MAP_FAILED);
                (start, libc::sysconf(libc::_SC_PAGESIZE))
            };
            PAGE.store(usize::try_from(page).expect("a page size"), SeqCst);
            START.store(start.expose_provenance(), SeqCst);
            NEXT.store(START.load(SeqCst) + PAGE.load(SeqCst), SeqCst);
        }
        PLACE.store(place as usize, SeqCst);
    }

    fn open() {
        PLACE.store(Place::Anywhere as usize, SeqCst);
    }
}

// SAFETY: an allocation is the system's, or pages of its own that are open as long as it lives and never
// used again.
unsafe impl GlobalAlloc for Fence {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let place = PLACE.load(SeqCst);
        if place == Place::Anywhere as usize {
            // SAFETY: the caller keeps to the contract of `alloc`.
            return unsafe { System.alloc(layout) };
        }
        let page = PAGE.load(SeqCst);
        let bytes = layout.size().next_multiple_of(page);
        let start = NEXT.fetch_add(bytes + page, SeqCst);
        if layout.align() > page || start + bytes + page > START.load(SeqCst) + RANGE_BYTES {
            return std::ptr::null_mut();
        }
        let pages = std::ptr::with_exposed_provenance_mut::<u8>(start);
        // SAFETY: pages of the range that nothing else uses.
        if unsafe { libc::mprotect(pages.cast(), bytes, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return std::ptr::null_mut();
        }
        let offset = if place == Place::AtTheirEnd as usize { bytes - layout.size() } else { 0 };
        pages.wrapping_add(offset & !(layout.align() - 1))
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let start = START.load(SeqCst);
        if start == 0 || !(start..start + RANGE_BYTES).contains(&ptr.addr()) {
            // SAFETY: it came from there, with this layout.
            return unsafe { System.dealloc(ptr, layout) };
        }
        let page = PAGE.load(SeqCst);
        let (pages, bytes) = (ptr.map_addr(|addr| addr & !(page - 1)), layout.size().next_multiple_of(page));
        // New closed pages in their place: of all that gives memory back this alone does on every system, on
        // macOS too (golang/go#47656, openjdk/jdk#294).
        let flags = Self::FLAGS | libc::MAP_FIXED;
        // SAFETY: the pages of this allocation alone, which nothing uses any more.
        let closed = unsafe { libc::mmap(pages.cast(), bytes, libc::PROT_NONE, flags, -1, 0) };
        if closed == libc::MAP_FAILED {
            // Memory that stays open would hide what the test looks for.
            std::process::abort();
        }
    }
}

#[global_allocator]
static FENCE: Fence = Fence;

/// Some cases of every type and scheme, the large ones among them for threads.
fn cases() -> Vec<Case> {
    let bf16_stored =
        ElementTypes { output: ElementType::Bf16, bias: ElementType::Bf16, ..ElementTypes::BF16 };
    let (scale, step) = if emulated() { (Scale::Small, 50) } else { (Scale::Full, 7) };
    let float = |types| cases_of_type(types, scale).into_iter().step_by(2 * step);
    let whole = integer_cases(scale).into_iter().chain(weight_only_cases(scale)).step_by(step);
    let all =
        float(ElementTypes::F16).chain(float(ElementTypes::BF16)).chain(float(bf16_stored)).chain(whole);
    some(all.map(|case| Case { bare: true, ..case }).collect(), 0, 4)
}

fn fenced() {
    let backends = Backends::new();
    let cases = cases();
    for place in [Place::AtTheirEnd, Place::AtTheirStart] {
        for (seed, case) in (1..).zip(&cases) {
            let threads = 1 + case.dims[2] % 3;
            println!("{place:?}, threads: {threads}: {case}");
            let options = CompileOptions::default().threads(Threads::count(threads).expect("not 0"));
            Fence::close(place);
            let result = run_case(&backends, &BackendId::CPU, &options, case, seed);
            Fence::open();
            result.expect("within its bound");
        }
    }
    report(&format!("{} products at the edges of memory", 2 * cases.len()));
}

#[test]
fn products_of_narrow_types_stay_within_their_memory() {
    on_every_kernel_of_narrow_types("products_of_narrow_types_stay_within_their_memory", fenced);
}

/// The fence fences: an access beyond an allocation, or to freed memory, kills a process.
#[test]
fn an_access_beyond_kills_the_process() {
    const BEYOND: &str = "ANE_MATMUL_TEST_BEYOND";
    const TEST: &str = "an_access_beyond_kills_the_process";
    let read = |place, offset: isize, freed: bool| {
        Fence::close(place);
        let mut memory = Some(vec![1u8; 5]);
        let start = memory.as_ref().expect("just made").as_ptr();
        if freed {
            memory = None;
        }
        // SAFETY: none: this is the access that must not succeed.
        let x = unsafe { start.wrapping_offset(offset).read_volatile() };
        Fence::open();
        println!("{x}, {memory:?}");
    };
    match std::env::var(BEYOND).as_deref() {
        Ok("end") => read(Place::AtTheirEnd, 5, false),
        Ok("start") => read(Place::AtTheirStart, -1, false),
        Ok("freed") => read(Place::AtTheirEnd, 0, true),
        Ok(_) => read(Place::AtTheirEnd, 4, false),
        Err(_) => support::expect_survival(
            TEST,
            BEYOND,
            &[("end", false), ("start", false), ("freed", false), ("nowhere", true)],
        ),
    }
}

/// The most memory that this process ever held.
fn peak_bytes() -> usize {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: room for the answer, of which zeros are valid; and it is filled.
    let usage = unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()), 0);
        usage.assume_init()
    };
    // In bytes on Apple's systems, else in KiB.
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    usize::try_from(usage.ru_maxrss).expect("not negative") * unit
}

/// Every product's memory goes when the product does: on a system that kept it, a run would hold gigabytes.
#[test]
fn freed_memory_is_given_back() {
    const GIVEN_BACK: &str = "ANE_MATMUL_TEST_GIVEN_BACK";
    const TEST: &str = "freed_memory_is_given_back";
    const BYTES: usize = 16 << 20;
    if support::emulated() {
        println!("not run: the emulator holds what is given back to it (qemu 7.2)");
        return;
    }
    if std::env::var_os(GIVEN_BACK).is_none() {
        support::expect_survival(TEST, GIVEN_BACK, &[("alone", true)]);
        return;
    }
    let before = peak_bytes();
    for place in [Place::AtTheirEnd, Place::AtTheirStart].into_iter().cycle().take(16) {
        Fence::close(place);
        drop(std::hint::black_box(vec![1u8; BYTES]));
        Fence::open();
    }
    let held = peak_bytes() - before;
    assert!(held < 3 * BYTES, "{held} bytes are held of {} in turn", 16 * BYTES);
}
