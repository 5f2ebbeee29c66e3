//! Reads memory as fast as the widest loads can.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::candidates::{Candidate, Kind, Origin, Product, Rotation};
use crate::operands::{Narrow, Operands};
use crate::shapes::{Case, Precision};

/// Reads all of `data` once.
pub(super) fn read(data: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: just detected.
        return unsafe { read_512(data) };
    }
    std::hint::black_box(read_portable(data));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn read_512(data: &[f32]) {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm512_loadu_si512, _mm512_or_si512, _mm512_setzero_si512,
    };
    const REGISTERS: usize = 8;
    /// What is asked for ahead of the loads from slower levels; from the fast ones asking costs more
    /// than it brings.
    const AHEAD: usize = 512;
    const FAST_BYTES: usize = 256 << 10;
    let ahead = size_of_val(data) > FAST_BYTES;
    let mut bits = [_mm512_setzero_si512(); REGISTERS];
    let chunks = data.chunks_exact(16 * REGISTERS);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (index, bits) in bits.iter_mut().enumerate() {
            let start = chunk.as_ptr().wrapping_add(16 * index);
            if ahead {
                #[allow(unused_unsafe, reason = "safe in newer versions of Rust")]
                // SAFETY: a prefetch may name any address.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(AHEAD).cast());
                }
            }
            // SAFETY: the chunk has 16 floats for each register.
            let loaded = unsafe { _mm512_loadu_si512(start.cast()) };
            *bits = _mm512_or_si512(*bits, loaded);
        }
    }
    std::hint::black_box((bits, read_portable(rest)));
}

fn read_portable(data: &[f32]) -> u32 {
    const LANES: usize = 64;
    let mut bits = [0u32; LANES];
    let chunks = data.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(0, |bits, x| bits | x.to_bits());
    for chunk in chunks {
        for (bits, x) in bits.iter_mut().zip(chunk) {
            *bits |= x.to_bits();
        }
    }
    bits.into_iter().fold(rest, |all, bits| all | bits)
}

/// Reads B and computes nothing: what a product of one row cannot outrun. It takes its turns with
/// the candidates, so that both meet the same memory.
pub(crate) struct ReadB;

impl Candidate for ReadB {
    fn name(&self) -> &'static str {
        "read of B"
    }

    fn kind(&self) -> Kind {
        Kind::Plain
    }

    fn origin(&self) -> Origin {
        Origin::Ceiling
    }

    fn does(&self, precision: Precision) -> bool {
        precision != Precision::Weights
    }

    fn prepare(&self, case: &Case, _: &Operands) -> Result<Box<dyn Product>, String> {
        if case.shape.m != 1 {
            return Err("for m = 1 alone".to_owned());
        }
        let helpers = (1..case.threads).map(|_| Helper::start()).collect();
        Ok(Box::new(ReadProduct { helpers, rotation: Rotation::default() }))
    }
}

struct ReadProduct {
    helpers: Vec<Helper>,
    rotation: Rotation,
}

impl Product for ReadProduct {
    fn run(&mut self, operands: &mut Operands, calls: usize) {
        let Self { helpers, rotation } = self;
        for _ in 0..calls {
            let copy = rotation.next(operands.copies_of_b());
            let b = match &operands.narrow {
                Narrow::Nothing | Narrow::Weights(_) => operands.b[copy].words(),
                Narrow::Bf16(pair) => pair.b[copy].words(),
                Narrow::F16(pair) => pair.b[copy].words(),
                Narrow::Int8(pair) => pair.b[copy].words(),
                Narrow::F64(wide) => wide.pair.b[copy].words(),
            };
            let mut parts = b.chunks(b.len().div_ceil(helpers.len() + 1));
            let own = parts.next().unwrap_or_default();
            for helper in helpers.iter_mut() {
                helper.begin(parts.next().unwrap_or_default());
            }
            read(own);
            helpers.iter().for_each(Helper::wait);
        }
    }
}

/// A thread that reads what it is given. It spins between the calls of a batch, since a ceiling must
/// not count what waking a thread costs.
struct Helper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    begun: usize,
}

#[derive(Default)]
struct Shared {
    start: AtomicPtr<f32>,
    length: AtomicUsize,
    /// Counts the calls; the largest number ends the thread.
    begun: AtomicUsize,
    done: AtomicUsize,
}

/// Longer than the time between two calls of a batch.
const SPINNING: Duration = Duration::from_millis(3);

impl Helper {
    fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || help(&of_thread));
        Self { shared, thread: Some(thread), begun: 0 }
    }

    /// `wait` must follow before the borrow of `part` ends.
    fn begin(&mut self, part: &[f32]) {
        self.shared.start.store(part.as_ptr().cast_mut(), Ordering::Relaxed);
        self.shared.length.store(part.len(), Ordering::Relaxed);
        self.begun += 1;
        self.tell(self.begun);
    }

    fn tell(&self, begun: usize) {
        self.shared.begun.store(begun, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    fn wait(&self) {
        while self.shared.done.load(Ordering::Acquire) != self.begun {
            spin_loop();
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.tell(usize::MAX);
        if let Some(thread) = self.thread.take() {
            // It only reads.
            let _ = thread.join();
        }
    }
}

fn help(shared: &Shared) {
    let mut done = 0;
    loop {
        let idle = Instant::now();
        let begun = loop {
            let begun = shared.begun.load(Ordering::Acquire);
            if begun != done {
                break begun;
            }
            if idle.elapsed() > SPINNING {
                std::thread::park();
            }
            spin_loop();
        };
        if begun == usize::MAX {
            return;
        }
        let (start, length) = (shared.start.load(Ordering::Relaxed), shared.length.load(Ordering::Relaxed));
        // SAFETY: the caller of `begin` keeps the slice until `done` says that it was read.
        read(unsafe { std::slice::from_raw_parts(start, length) });
        done = begun;
        shared.done.store(done, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_read_every_call() {
        let data = vec![1f32; 1000];
        let mut helper = Helper::start();
        for _ in 0..100 {
            helper.begin(&data);
            helper.wait();
        }
        assert_eq!(helper.shared.done.load(Ordering::Acquire), 100);
    }

    #[test]
    fn every_element_is_read() {
        for length in [0, 1, 63, 64, 200] {
            for one in 0..length {
                let mut data = vec![0f32; length];
                data[one] = f32::from_bits(1);
                assert_eq!(read_portable(&data), 1);
            }
        }
    }
}
