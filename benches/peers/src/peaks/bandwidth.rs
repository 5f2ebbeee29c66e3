//! The rate of reading from each level of memory.

use super::read::read;
use super::{LONG_ENOUGH, in_parallel};
use crate::machine::Machine;
use crate::operands::Buffer;

/// The rate at one level on a number of threads.
#[derive(Debug, Clone)]
pub(crate) struct Bandwidth {
    pub(crate) level: String,
    pub(crate) threads: usize,
    /// Of all threads together.
    pub(crate) working_set_bytes: usize,
    pub(crate) gbytes_per_s: f64,
}

/// The best rate of each level in `tries` goes.
pub(crate) fn measure_bandwidth(machine: &Machine, threads: &[usize], tries: usize) -> Vec<Bandwidth> {
    let mut levels = Vec::new();
    for cache in &machine.caches {
        // Half of it, or of the last one a third: neighbours may use that too.
        let share = if cache.bytes == machine.last_level_bytes() { 3 } else { 2 };
        levels.push((format!("L{}", cache.level), cache.bytes / share, cache.level < 3));
    }
    levels.push(("memory".to_owned(), 6 * machine.last_level_bytes(), false));
    let mut bandwidths = Vec::new();
    for (level, bytes, per_core) in levels {
        for &threads in threads {
            let part_bytes = if per_core { bytes } else { bytes / threads };
            let parts = parts(part_bytes, threads);
            let bytes_per_s = (0..tries).map(|_| rate(&parts)).fold(0.0, f64::max);
            bandwidths.push(Bandwidth {
                level: level.clone(),
                threads,
                working_set_bytes: part_bytes * threads,
                gbytes_per_s: bytes_per_s / 1e9,
            });
        }
    }
    bandwidths
}

/// Memory for each thread.
fn parts(part_bytes: usize, threads: usize) -> Vec<Buffer> {
    let mut parts: Vec<Buffer> =
        (0..threads).map(|_| Buffer::zeros(part_bytes / size_of::<f32>(), 0)).collect();
    // Written, so that the pages differ.
    for part in &mut parts {
        part.as_mut_slice().fill(1.0);
    }
    parts
}

/// Bytes per second of one thread for each part, all at once.
fn rate(parts: &[Buffer]) -> f64 {
    let bytes: usize = parts.iter().map(|part| size_of_val(part.as_slice())).sum();
    let mut passes = 1;
    loop {
        let elapsed = in_parallel(parts.len(), |index| {
            for _ in 0..passes {
                read(std::hint::black_box(parts[index].as_slice()));
            }
        });
        if elapsed >= LONG_ENOUGH {
            return (bytes * passes) as f64 / elapsed.as_secs_f64();
        }
        passes *= 4;
    }
}
