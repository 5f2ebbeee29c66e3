//! How many wrong results self-checks find, by the kind of fault.
//!
//! `cargo test --release --test self_check_detection -- --nocapture` prints the table.

use ane_matmul::accuracy::Reference;
use ane_matmul::{Activation, Inputs, MatMul, ResultChecker, SelfCheck, Tensor};
use fastrand::Rng;

const N: usize = 96;

/// Wrong results of each kind.
const PLANTED: usize = 1000;

/// A right result, its bounds, and the result of the run before.
struct Run {
    right: Vec<f32>,
    bounds: Vec<f64>,
    stale: Vec<f32>,
    a: Tensor<f32>,
    b: Tensor<f32>,
}

type Plant = fn(&Run, &mut [f32], &mut Rng);

fn at(random: &mut Rng) -> usize {
    random.usize(..N * N)
}

#[allow(clippy::cast_possible_truncation)]
fn beyond_bound(run: &Run, c: &mut [f32], random: &mut Rng, ratio: f64) {
    let at = at(random);
    let sign = if random.bool() { 1.0 } else { -1.0 };
    c[at] = (f64::from(c[at]) + sign * ratio * run.bounds[at]) as f32;
}

/// What the terms from `from` on contribute to an element.
fn slice(run: &Run, from: usize, row: usize, col: usize) -> f32 {
    (from..from + 16).map(|p| run.a.data()[row * N + p] * run.b.data()[p * N + col]).sum()
}

const KINDS: [(&str, Plant); 12] = [
    ("one element, 1.2 times its bound", |run, c, random| beyond_bound(run, c, random, 1.2)),
    ("one element, 4 times its bound", |run, c, random| beyond_bound(run, c, random, 4.0)),
    ("one bit of one element", |_, c, random| {
        let at = at(random);
        c[at] = f32::from_bits(c[at].to_bits() ^ (1 << random.usize(..32)));
    }),
    ("one element is NaN", |_, c, random| c[at(random)] = f32::NAN),
    ("one element is that of its neighbour", |_, c, random| {
        let at = at(random).max(1);
        c[at] = c[at - 1];
    }),
    ("two rows swapped", |_, c, random| {
        let (one, other) = (random.usize(..N), random.usize(..N));
        (0..N).for_each(|col| c.swap(one * N + col, other * N + col));
    }),
    ("two columns swapped", |_, c, random| {
        let (one, other) = (random.usize(..N), random.usize(..N));
        (0..N).for_each(|row| c.swap(row * N + one, row * N + other));
    }),
    ("a tile of 8 x 8 zeroed", |_, c, random| {
        let (row, col) = (random.usize(..N / 8) * 8, random.usize(..N / 8) * 8);
        (row..row + 8).for_each(|row| c[row * N + col..][..8].fill(0.0));
    }),
    ("a slice of k left out in a tile of 8 x 8", |run, c, random| {
        let (row, col) = (random.usize(..N / 8) * 8, random.usize(..N / 8) * 8);
        let from = random.usize(..N / 16) * 16;
        for row in row..row + 8 {
            for col in col..col + 8 {
                c[row * N + col] -= slice(run, from, row, col);
            }
        }
    }),
    ("every column one to the right", |_, c, _| c.rotate_right(1)),
    ("the result of the run before", |run, c, _| c.copy_from_slice(&run.stale)),
    ("the last row not written", |run, c, _| c[N * (N - 1)..].copy_from_slice(&run.stale[N * (N - 1)..])),
];

/// For each kind: wrong results that were planted, and found.
fn detect(activation: Activation, check: SelfCheck) -> Vec<(usize, usize)> {
    let layer = MatMul::builder(N, N, N).activation(activation).build().unwrap();
    let mut tally = vec![(0, 0); KINDS.len()];
    let mut random = Rng::with_seed(1);
    let mut turn = 0;
    while tally.iter().any(|&(planted, _)| planted < PLANTED) {
        let draw = |seed| Tensor::random_normal_f32(N, N, 1.0, seed).unwrap();
        let (a, b, before) = (draw(3 * turn), draw(3 * turn + 1), draw(3 * turn + 2));
        turn += 1;
        let inputs = Inputs::new(&a).b(&b);
        let reference = Reference::new(&layer, inputs).unwrap();
        #[allow(clippy::cast_possible_truncation)]
        let f32s = |reference: &Reference| reference.values().iter().map(|&x| x as f32).collect::<Vec<_>>();
        let run = Run {
            right: f32s(&reference),
            bounds: reference.bounds().to_vec(),
            stale: f32s(&Reference::new(&layer, Inputs::new(&before).b(&b)).unwrap()),
            a: a.clone(),
            b: b.clone(),
        };
        let mut checker = ResultChecker::new(&layer, &check).unwrap();
        let mut c = Tensor::<f32>::zeros(N, N).unwrap();
        c.data_mut().copy_from_slice(&run.right);
        assert_eq!(checker.check(inputs, &c).unwrap(), None, "a false alarm");
        for ((_, plant), (planted, found)) in KINDS.iter().zip(&mut tally) {
            for _ in 0..50 {
                c.data_mut().copy_from_slice(&run.right);
                plant(&run, c.data_mut(), &mut random);
                // A fault that keeps every element within its bound makes no wrong result.
                if *planted < PLANTED && !reference.compare(&c).unwrap().is_within_bound() {
                    *planted += 1;
                    *found += usize::from(checker.check(inputs, &c).unwrap().is_some());
                }
            }
        }
    }
    tally
}

fn print(name: &str, tally: &[(usize, usize)]) {
    println!("{name}");
    for ((kind, _), (planted, found)) in KINDS.iter().zip(tally) {
        println!("{found:5} of {planted} found: {kind}");
    }
}

#[test]
fn freivalds_finds_every_kind_of_fault() {
    let tally = detect(Activation::None, SelfCheck::every_run());
    print("Freivalds' method, 2 vectors", &tally);
    for ((kind, _), &(planted, found)) in KINDS.iter().zip(&tally) {
        assert_eq!(planted, PLANTED, "{kind}");
        assert!(found * 100 >= planted * 97, "{kind}: {found} of {planted}");
    }
}

#[test]
fn random_rows_find_faults_by_the_share_of_rows_they_spoil() {
    // 8 rows of 96: a fault of one row is found with probability 8 / 96, of 8 rows with
    // 1 - (88 / 96)^8 = 50 %, of all rows always.
    let check = SelfCheck::every_run().failure_probability(1.0 / 256.0);
    let tally = detect(Activation::Gelu, check);
    print("random rows, 8 of 96", &tally);
    for ((kind, _), &(planted, found)) in KINDS.iter().zip(&tally) {
        let least = match *kind {
            "every column one to the right" | "the result of the run before" => 1.0,
            "two columns swapped" => 0.99,
            kind if kind.contains("8 x 8") => 0.4,
            _ => 0.05,
        };
        #[allow(clippy::cast_precision_loss)]
        let share = found as f64 / planted as f64;
        assert!(share >= least, "{kind}: {share}");
    }
}
