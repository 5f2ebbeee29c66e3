//! The cases that every kernel goes through.

use std::collections::BTreeMap;

use crate::case::{Case, Data, Random};
use crate::library::{Kernels, Schedule};
use crate::plan::{Overrides, element};

/// The schedules that each case runs under.
pub const SCHEDULES: [Schedule; 5] =
    [Schedule::Ahead(0), Schedule::Lockstep, Schedule::Ahead(1), Schedule::Reverse, Schedule::Random(7)];

/// The tiles of `matmul_params.h`: rows, columns, depth.
pub const TILES: [(usize, usize, usize); 5] =
    [(64, 64, 16), (64, 64, 16), (64, 32, 32), (32, 64, 16), (32, 32, 16)];

const TRANSPOSES: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];
const TYPES: [i32; 3] = [element::F32, element::F16, element::BF16];

/// Draws what a case leaves open: types of the output, epilogue, gaps, batch, contents.
fn vary(mut case: Case, random: &mut Random) -> Case {
    case.output = random.pick(&[element::F32, case.input]);
    case.bias = random.pick(&[None, Some(element::F32), Some(case.input)]);
    case.residual = random.pick(&[false, false, true]);
    case.activation = random.pick(&[0, 0, 0, 1, 2, 3, 4, 5, 6]);
    case.alpha = random.pick(&[1.0, 1.0, -1.0, 0.37]);
    for padding in &mut case.padding {
        *padding = random.pick(&[0, 0, 1, 4, 5]);
    }
    case.batch = random.pick(&[1, 1, 1, 2, 3]);
    case.shared_b = case.batch > 1 && random.pick(&[false, true]);
    case.overrides.no_vectors = random.pick(&[0, 0, 0, 1]);
    case.data = random.pick(&[Data::Uniform, Data::Integers, Data::Integers, Data::Special]);
    case.device_class = random.pick(&[0, 1, 2]);
    case.seed = random.next_u64();
    case
}

fn gemm_cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for (tile, (bm, bn, bk)) in TILES.into_iter().enumerate() {
        for input in TYPES {
            for (transpose_a, transpose_b) in TRANSPOSES {
                let overrides = Overrides {
                    tile_plus_one: tile as u32 + 1,
                    no_gemv: 1,
                    partitions: 1,
                    ..Overrides::default()
                };
                let base = Case { transpose_a, transpose_b, input, overrides, ..Case::default() };
                // Whole tiles and the plain result: the direct store.
                let (m, n, k) = (bm, bn * 2, bk * 2);
                cases.push(Case { m, n, k, data: Data::Integers, seed: random.next_u64(), ..base.clone() });
                // Whole tiles and one thing that the direct store leaves out.
                let whole = Case { m, n, k, data: Data::Integers, ..base.clone() };
                for case in [
                    Case { alpha: -1.0, ..whole.clone() },
                    Case { bias: Some(element::F32), ..whole.clone() },
                    Case { residual: true, ..whole.clone() },
                    Case { activation: 1, ..whole },
                ] {
                    cases.push(Case { seed: random.next_u64(), ..case });
                }
                // Plain results of which one side is no whole tile: no direct store.
                for (m, n) in [(bm - 3, bn), (bm, bn + 5)] {
                    cases.push(Case {
                        m,
                        n,
                        k: bk,
                        data: Data::Integers,
                        seed: random.next_u64(),
                        ..base.clone()
                    });
                }
                let mut shapes = vec![(bm, bn, bk), (bm + 1, bn - 1, bk + 1), (bm - 1, bn + 1, bk - 1)];
                shapes.push((
                    random.pick(&[1, 2, 7, 8, 9, 17, 31, 33]),
                    random.pick(&[1, 3, 8, 15, 33, 67]),
                    3,
                ));
                shapes.push((
                    random.pick(&[5, 29, 97]),
                    random.pick(&[13, 37, 101]),
                    random.pick(&[0, 1, 53, 131]),
                ));
                for (m, n, k) in shapes {
                    cases.push(vary(Case { m, n, k, ..base.clone() }, random));
                }
            }
        }
    }
    cases
}

fn gemv_cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for input in TYPES {
        for (transpose_a, transpose_b) in TRANSPOSES {
            for one_row in [true, false] {
                for outputs in [1, 2, 3, 4, 15, 16, 17, 127, 128, 129, 261] {
                    let k = random.pick(&[0, 1, 3, 4, 5, 31, 32, 127, 128, 129, 130, 257, 509]);
                    let (m, n) = if one_row { (1, outputs) } else { (outputs, 1) };
                    let partitions = random.pick(&[0, 1, 2, 3]);
                    let overrides = Overrides { partitions, ..Overrides::default() };
                    cases.push(vary(
                        Case { m, n, k, transpose_a, transpose_b, input, overrides, ..Case::default() },
                        random,
                    ));
                }
            }
        }
    }
    cases
}

fn split_k_cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for input in TYPES {
        for (transpose_a, transpose_b) in TRANSPOSES {
            for partitions in [2, 3, 8] {
                let overrides = Overrides {
                    partitions,
                    tile_plus_one: random.pick(&[1, 2, 3, 4, 5]),
                    no_gemv: 1,
                    ..Overrides::default()
                };
                let (m, n) = (random.pick(&[16, 33, 64, 65]), random.pick(&[7, 32, 64, 65]));
                // Also fewer steps of k than partitions.
                let k = random.pick(&[1, 40, 128, 130, 257]);
                cases.push(vary(
                    Case { m, n, k, transpose_a, transpose_b, input, overrides, ..Case::default() },
                    random,
                ));
            }
        }
    }
    cases
}

/// What the tables choose, by class; and runs of fewer rows.
fn planned_cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = [
        (128, 128, 64),
        (64, 64, 512),
        (8, 96, 160),
        (96, 8, 160),
        (1, 300, 70),
        (300, 1, 70),
        (1, 16, 900),
        (16, 1, 900),
        (65, 129, 33),
        (0, 5, 3),
        (5, 0, 3),
        (5, 3, 0),
        (1, 1, 1),
    ];
    for device_class in 0..3 {
        for (m, n, k) in shapes {
            let (transpose_a, transpose_b) = random.pick(&TRANSPOSES);
            let input = random.pick(&TYPES);
            let case = vary(Case { m, n, k, transpose_a, transpose_b, input, ..Case::default() }, random);
            cases.push(Case { device_class, ..case });
        }
    }
    for (m, n, k) in [(70, 40, 50), (64, 64, 256), (33, 1, 70), (16, 5, 300)] {
        for rows in [0, 1, 2, m - 1, m] {
            for (transpose_a, transpose_b) in TRANSPOSES {
                let input = random.pick(&TYPES);
                let case =
                    Case { m, n, k, rows: Some(rows), transpose_a, transpose_b, input, ..Case::default() };
                cases.push(vary(case, random));
            }
        }
    }
    // A batch that folds into rows, every activation, and sums with many terms.
    for activation in 0..=6 {
        for data in [Data::Uniform, Data::Special] {
            let case = Case {
                m: 20,
                n: 24,
                k: 17,
                activation,
                data,
                alpha: 4.0,
                bias: Some(element::F32),
                ..Case::default()
            };
            cases.push(Case { batch: 3, shared_b: true, seed: random.next_u64(), ..case.clone() });
            cases.push(Case { m: 1, seed: random.next_u64(), ..case });
        }
    }
    cases.push(Case { m: 33, n: 40, k: 4099, seed: 5, ..Case::default() });
    cases.push(Case { m: 1, n: 40, k: 4099, input: element::F16, seed: 5, ..Case::default() });
    cases
}

/// Launches in parts: of a row of threadgroups, of some, and of whole planes.
fn parted_cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for input in TYPES {
        // A row of threadgroups of two tiles' width has 2 x 64 x 64 x 20 multiply-adds at most.
        for macs_per_command_buffer in [1, 330_000, 1_000_000] {
            for (batch, partitions) in [(1, 1), (3, 1), (1, 3), (2, 2)] {
                let overrides = Overrides { macs_per_command_buffer, partitions, ..Overrides::default() };
                let (m, n, k) = (150, 70, 20 * partitions as usize);
                cases.push(vary(Case { m, n, k, input, overrides, ..Case::default() }, random));
                cases.push(Case { batch, m, n, k, input, overrides, ..Case::default() });
                let transpose_b = random.pick(&[false, true]);
                cases.push(Case {
                    batch: batch + 1,
                    m: 1,
                    n,
                    k,
                    transpose_b,
                    input,
                    overrides,
                    ..Case::default()
                });
            }
        }
    }
    cases
}

/// All cases; the same each time.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut random = Random(2026);
    let mut cases = gemm_cases(&mut random);
    cases.extend(gemv_cases(&mut random));
    cases.extend(split_k_cases(&mut random));
    cases.extend(planned_cases(&mut random));
    cases.extend(parted_cases(&mut random));
    cases
}

/// What a kernel went through.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Cases.
    pub cases: u32,
    /// Dispatches, over the schedules.
    pub dispatches: u32,
    /// Threadgroup memory in bytes.
    pub threadgroup_bytes: u32,
}

/// Runs cases under schedules: tallies by kernel, or the first failures.
///
/// # Errors
/// A line for each case that failed, up to `most`.
pub fn run(
    kernels: &Kernels,
    cases: &[Case],
    schedules: &[Schedule],
    most: usize,
) -> Result<BTreeMap<String, Tally>, Vec<String>> {
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    let mut failures = Vec::new();
    for case in cases {
        match case.run(kernels, schedules) {
            Ok(outcome) => {
                for launch in &outcome.plan.launches[..outcome.plan.launch_count as usize] {
                    let tally = tallies.entry(launch.function()).or_default();
                    tally.cases += 1;
                    tally.dispatches += schedules.len() as u32;
                    tally.threadgroup_bytes = launch.threadgroup_bytes;
                }
            }
            Err(failure) => failures.push(failure),
        }
        if failures.len() >= most {
            break;
        }
    }
    if failures.is_empty() { Ok(tallies) } else { Err(failures) }
}
