//! Reads memory as fast as the widest loads can.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::candidates::{Candidate, Kind, Origin, Product, Rotation};
use crate::operands::Operands;
use crate::shapes::Case;

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
    use std::arch::x86_64::{_mm512_loadu_si512, _mm512_or_si512, _mm512_setzero_si512};
    const REGISTERS: usize = 8;
    let mut bits = [_mm512_setzero_si512(); REGISTERS];
    let chunks = data.chunks_exact(16 * REGISTERS);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (index, bits) in bits.iter_mut().enumerate() {
            // SAFETY: the chunk has 16 floats for each register.
            let loaded = unsafe { _mm512_loadu_si512(chunk.as_ptr().add(16 * index).cast()) };
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
    fn name(&self) -> &str {
        "read of B"
    }

    fn kind(&self) -> Kind {
        Kind::Plain
    }

    fn origin(&self) -> Origin {
        Origin::Ceiling
    }

    fn prepare(&self, case: &Case, _: &Operands) -> Result<Box<dyn Product>, String> {
        if case.shape.m != 1 {
            return Err("for m = 1 alone".to_owned());
        }
        Ok(Box::new(ReadProduct { threads: case.threads, rotation: Rotation::default() }))
    }
}

struct ReadProduct {
    threads: usize,
    rotation: Rotation,
}

impl Product for ReadProduct {
    fn run(&mut self, operands: &mut Operands, calls: usize) {
        let Self { threads, rotation } = self;
        let copies = &operands.b;
        let order: Vec<&[f32]> = (0..calls).map(|_| copies[rotation.next(copies.len())].as_slice()).collect();
        let part = copies[0].as_slice().len().div_ceil(*threads);
        let of = |b: &'_ [f32], index: usize| read(b.chunks(part).nth(index).unwrap_or_default());
        // Helpers spin: a ceiling must not count what waking a thread costs.
        let (begun, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let (order, begun, done, of) = (&order, &begun, &done, &of);
            for index in 1..*threads {
                scope.spawn(move || {
                    for (call, b) in order.iter().enumerate() {
                        wait_for(begun, call + 1);
                        of(b, index);
                        done.fetch_add(1, Ordering::AcqRel);
                    }
                });
            }
            for (call, b) in order.iter().enumerate() {
                begun.store(call + 1, Ordering::Release);
                of(b, 0);
                wait_for(done, (call + 1) * (*threads - 1));
            }
        });
    }
}

fn wait_for(counter: &AtomicUsize, count: usize) {
    let mut spins = 0u32;
    while counter.load(Ordering::Acquire) < count {
        spins += 1;
        // Where the other thread has no core of its own, it gets this one.
        if spins.is_multiple_of(1 << 14) {
            std::thread::yield_now();
        }
        spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
