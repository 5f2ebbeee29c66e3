//! Where the values of a run lie.

use crate::backend::cpu::pack::Word;
use crate::operands::shared_buffer::ALIGNMENT_BYTES;

/// Where a value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In no memory: within a step that computes on.
    Nowhere,
    /// In the graph's constants, or a copy of one.
    Constant(*const u8),
    /// In an input of the run.
    Input(usize),
    /// In an output of the run.
    Output(usize),
    /// In the executor's memory, from this byte on.
    Arena(usize),
}

// SAFETY: constants are read only, and live as long as the plan that has their places.
unsafe impl Send for Place {}
// SAFETY: as for Send.
unsafe impl Sync for Place {}

/// A part of an executor's memory: the steps from the one that writes it to the last that reads it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lifetime {
    pub bytes: usize,
    pub first: usize,
    pub last: usize,
}

/// The first byte of each part, and the bytes of all: parts that are needed at the same time do not overlap. More bytes than
/// can be counted are the most that can, which no allocator gives.
///
/// The largest come first, each at the lowest place that is free throughout its lifetime (greedy by size: Pisarchyk and
/// Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020).
pub(crate) fn arrange(parts: &[Lifetime]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|part| (std::cmp::Reverse(parts[*part].bytes), parts[*part].first));
    let mut starts = vec![0; parts.len()];
    let mut total = 0usize;
    let mut placed: Vec<usize> = Vec::with_capacity(parts.len());
    for part in order {
        let Lifetime { bytes, first, last } = parts[part];
        let size = bytes.next_multiple_of(ALIGNMENT_BYTES);
        let mut start = 0usize;
        // In the order of their places: the first gap that is large enough.
        for other in &placed {
            let Lifetime { bytes: other_bytes, first: other_first, last: other_last } = parts[*other];
            if other_first > last || first > other_last {
                continue;
            }
            if start.saturating_add(size) <= starts[*other] {
                break;
            }
            let end = starts[*other].saturating_add(other_bytes.next_multiple_of(ALIGNMENT_BYTES));
            start = start.max(end);
        }
        starts[part] = start;
        total = total.max(start.saturating_add(size));
        let at = placed.partition_point(|other| starts[*other] <= start);
        placed.insert(at, part);
    }
    (starts, total)
}

const _: () = assert!(ALIGNMENT_BYTES.is_multiple_of(size_of::<Word>()));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_same_time_lie_apart_and_others_on_each_other() {
        let random =
            |seed: u64| seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut seed = 1;
        for _ in 0..200 {
            let parts: Vec<_> = (0..30)
                .map(|_| {
                    seed = random(seed);
                    let first = (seed >> 40) as usize % 40;
                    Lifetime {
                        bytes: (seed >> 20) as usize % 5000,
                        first,
                        last: first + (seed >> 50) as usize % 10,
                    }
                })
                .collect();
            let (starts, total) = arrange(&parts);
            let live =
                |step: usize| parts.iter().filter(move |part| (part.first..=part.last).contains(&step));
            let largest =
                (0..50).map(|step| live(step).map(|part| part.bytes).sum::<usize>()).max().unwrap_or(0);
            assert!(total >= largest && total <= 2 * largest + 64 * parts.len(), "{total} for {largest}");
            for (i, a) in parts.iter().enumerate() {
                assert!(starts[i].is_multiple_of(ALIGNMENT_BYTES) && starts[i] + a.bytes <= total);
                for (j, b) in parts.iter().enumerate().skip(i + 1) {
                    let together = a.first <= b.last && b.first <= a.last;
                    let overlap = starts[i] < starts[j] + b.bytes && starts[j] < starts[i] + a.bytes;
                    assert!(!(together && overlap && a.bytes > 0 && b.bytes > 0), "{a:?} and {b:?}");
                }
            }
        }
        // A chain needs no more than its two largest neighbours.
        let chain: Vec<_> =
            (0..10).map(|step| Lifetime { bytes: 640, first: step, last: step + 1 }).collect();
        assert_eq!(arrange(&chain).1, 1280);
    }
}
