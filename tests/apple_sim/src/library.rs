//! A loaded kernel library, and one dispatch of a kernel of it.

use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::Library;

use crate::compile::output_of;

/// What a dispatch can be found guilty of; the numbers of `emu.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
#[allow(missing_docs, reason = "the names say it; emu.h has the sentences")]
pub enum Fault {
    RaceThreadgroup = 1,
    RaceDevice = 2,
    OutOfBounds = 3,
    Uninitialised = 4,
    Misaligned = 5,
    WriteToInput = 6,
    ReadOfOutput = 7,
    Divergence = 8,
    ThreadgroupMemory = 9,
    Launch = 10,
}

impl Fault {
    fn from_number(number: i32) -> Option<Self> {
        use Fault::*;
        let all = [
            RaceThreadgroup,
            RaceDevice,
            OutOfBounds,
            Uninitialised,
            Misaligned,
            WriteToInput,
            ReadOfOutput,
            Divergence,
            ThreadgroupMemory,
            Launch,
        ];
        all.into_iter().find(|f| *f as i32 == number)
    }
}

/// The order in which threads run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Threads take turns.
    Lockstep,
    /// The simdgroup of this number (modulo their count) runs as far as the barriers allow.
    Ahead(u64),
    /// The last simdgroup first, and threadgroups from the last to the first.
    Reverse,
    /// By this seed.
    Random(u64),
}

impl Schedule {
    fn numbers(self) -> (i32, u64) {
        match self {
            Self::Lockstep => (0, 0),
            Self::Ahead(simd) => (1, simd),
            Self::Reverse => (2, 0),
            Self::Random(seed) => (3, seed),
        }
    }
}

/// `EmuBinding` of `emu.h`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Binding {
    data: *mut u8,
    bytes: u64,
    offset: u64,
    initialised: *mut u8,
}

impl Binding {
    /// Nothing is bound.
    pub const NONE: Self =
        Self { data: std::ptr::null_mut(), bytes: 0, offset: 0, initialised: std::ptr::null_mut() };
}

/// Memory to bind, with the bytes of it that count as written.
#[derive(Debug, Clone)]
pub struct Memory {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// For each byte 1 when somebody wrote it.
    pub initialised: Vec<u8>,
}

impl Memory {
    /// Memory with contents.
    #[must_use]
    pub fn with(bytes: Vec<u8>) -> Self {
        let initialised = vec![1; bytes.len()];
        Self { bytes, initialised }
    }

    /// Memory that nobody wrote, filled with NaN patterns.
    #[must_use]
    pub fn uninitialised(bytes: usize) -> Self {
        Self { bytes: vec![0xff; bytes], initialised: vec![0; bytes] }
    }

    /// Binds it at an offset.
    pub fn bind(&mut self, offset: usize) -> Binding {
        Binding {
            data: self.bytes.as_mut_ptr(),
            bytes: self.bytes.len() as u64,
            offset: offset as u64,
            initialised: self.initialised.as_mut_ptr(),
        }
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct RawReport {
    fault: i32,
    buffer: i32,
    pc: u64,
    other_pc: u64,
    byte: u64,
    group: [u32; 3],
    thread: u32,
    other_thread: u32,
    threadgroup_bytes: u32,
    accesses: u64,
    barriers: u64,
    text: [c_char; 256],
}

/// What was counted in a dispatch without a fault.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Accesses to threadgroup and device memory that were checked.
    pub accesses: u64,
    /// Barriers that were passed.
    pub barriers: u64,
    /// Threadgroup memory that the kernel declares.
    pub threadgroup_bytes: u32,
}

/// A fault, and where in the kernel file.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its kind.
    pub fault: Fault,
    /// What the checker says.
    pub text: String,
    /// `file:line` of the access or barrier.
    pub line: String,
    /// `file:line` of the access that it conflicts with.
    pub other_line: Option<String>,
    /// The buffer's index.
    pub buffer: Option<u32>,
    /// The byte in the buffer or threadgroup array.
    pub byte: u64,
    /// The threadgroup, and the thread in it.
    pub thread: ([u32; 3], u32),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {} at {}", self.fault, self.text, self.line)?;
        if let Some(other) = &self.other_line {
            write!(f, ", against {other}")?;
        }
        if let Some(buffer) = self.buffer {
            write!(f, ", buffer {buffer}")?;
        }
        write!(f, ", byte {}, threadgroup {:?}, thread {}", self.byte, self.thread.0, self.thread.1)
    }
}

type Dispatch = unsafe extern "C" fn(
    *const c_char,
    *const u32,
    u32,
    *const Binding,
    u32,
    *const [u32; 3],
    *const [u32; 3],
    i32,
    u64,
    *mut RawReport,
) -> i32;

/// A loaded kernel library.
#[derive(Debug)]
pub struct Kernels {
    library: Library,
    path: PathBuf,
}

impl Kernels {
    /// Loads a library that [`crate::compile::build`] made.
    ///
    /// # Errors
    /// What the loader said.
    pub fn open(path: &Path) -> Result<Self, String> {
        // SAFETY: the library is the product of this crate's own compile step; it has no initialisers
        // with requirements.
        let library = unsafe { Library::new(path) }.map_err(|e| e.to_string())?;
        Ok(Self { library, path: path.to_owned() })
    }

    /// A function of the library.
    ///
    /// # Panics
    /// When it has none of the name.
    ///
    /// # Safety
    /// `T` must be the function's type.
    pub(crate) unsafe fn function<T: Copy>(&self, name: &str) -> T {
        // SAFETY: the caller's promise.
        *unsafe { self.library.get::<T>(name.as_bytes()) }.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The names of the kernels.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        // SAFETY: the types are those of emu.h.
        let (count, name) = unsafe {
            (
                self.function::<unsafe extern "C" fn() -> u32>("emu_kernel_count"),
                self.function::<unsafe extern "C" fn(u32) -> *const c_char>("emu_kernel_name"),
            )
        };
        // SAFETY: indices below the count give NUL-terminated names that live as long as the library.
        (0..unsafe { count() })
            .map(|i| unsafe { CStr::from_ptr(name(i)) }.to_string_lossy().into_owned())
            .collect()
    }

    /// Runs a kernel over `bindings`.
    ///
    /// # Errors
    /// The first fault that the checker found; the rest of the dispatch did not run.
    ///
    /// # Panics
    /// When `kernel` has a NUL.
    pub fn dispatch(
        &self,
        kernel: &str,
        constants: &[u32],
        bindings: &[Binding],
        grid: [u32; 3],
        threads: [u32; 3],
        schedule: Schedule,
    ) -> Result<Counts, Report> {
        let name = CString::new(kernel).expect("a kernel's name has no NUL");
        let (schedule, seed) = schedule.numbers();
        let mut raw = RawReport {
            fault: 0,
            buffer: -1,
            pc: 0,
            other_pc: 0,
            byte: 0,
            group: [0; 3],
            thread: 0,
            other_thread: 0,
            threadgroup_bytes: 0,
            accesses: 0,
            barriers: 0,
            text: [0; 256],
        };
        // SAFETY: the type is that of emu.h.
        let dispatch = unsafe { self.function::<Dispatch>("emu_dispatch") };
        // SAFETY: pointers and counts belong together; bindings come from live `Memory`, which the
        // caller keeps borrowed only by convention, but dispatch is synchronous.
        unsafe {
            dispatch(
                name.as_ptr(),
                constants.as_ptr(),
                constants.len() as u32,
                bindings.as_ptr(),
                bindings.len() as u32,
                &raw const grid,
                &raw const threads,
                schedule,
                seed,
                &raw mut raw,
            )
        };
        let Some(fault) = Fault::from_number(raw.fault) else {
            return Ok(Counts {
                accesses: raw.accesses,
                barriers: raw.barriers,
                threadgroup_bytes: raw.threadgroup_bytes,
            });
        };
        // SAFETY: the library ends the text with a NUL.
        let text = unsafe { CStr::from_ptr(raw.text.as_ptr()) }.to_string_lossy().into_owned();
        Err(Report {
            fault,
            text,
            line: self.line(raw.pc),
            other_line: (raw.other_pc != 0).then(|| self.line(raw.other_pc)),
            buffer: u32::try_from(raw.buffer).ok(),
            byte: raw.byte,
            thread: (raw.group, raw.thread),
        })
    }

    /// `file:line` of an offset in the library, the innermost that is in a kernel file.
    fn line(&self, pc: u64) -> String {
        let text =
            output_of(Command::new("addr2line").arg("-i").arg("-e").arg(&self.path).arg(format!("{pc:#x}")));
        let text = text.unwrap_or_else(|e| e);
        let metal = text.lines().find(|l| l.contains(".metal:"));
        let line = metal.or_else(|| text.lines().next()).unwrap_or("?");
        line.rsplit('/').next().unwrap_or(line).split(' ').next().unwrap_or(line).to_owned()
    }
}
