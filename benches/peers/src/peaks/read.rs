//! Reads memory as fast as the widest loads can.

use rayon::ThreadPool;

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
        let pool = match case.threads {
            1 => None,
            threads => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .map_err(|error| error.to_string())?,
            ),
        };
        Ok(Box::new(ReadProduct { pool, threads: case.threads, rotation: Rotation::default() }))
    }
}

struct ReadProduct {
    pool: Option<ThreadPool>,
    threads: usize,
    rotation: Rotation,
}

impl Product for ReadProduct {
    fn run(&mut self, operands: &mut Operands, calls: usize) {
        let Self { pool, threads, rotation } = self;
        for _ in 0..calls {
            let b = operands.b[rotation.next(operands.b.len())].as_slice();
            match pool {
                None => read(b),
                Some(pool) => {
                    let part = b.len().div_ceil(*threads);
                    pool.install(|| {
                        rayon::scope(|scope| {
                            b.chunks(part).for_each(|part| scope.spawn(move |_| read(part)))
                        });
                    });
                }
            }
        }
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
