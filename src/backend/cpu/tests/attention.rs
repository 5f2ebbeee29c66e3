//! Attention beside the graph's interpretation in float64.

use super::rows::{U, array, guarded, interpret, is_close, normal};
use super::*;
use crate::backend::cpu::attention::{Attention, AttentionOperands, Heads, MaskKind};
use crate::graph::{self, Array, Operator};

#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    q_heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    size: usize,
    value_size: usize,
    is_causal: bool,
    scale: Option<f32>,
    /// Whether heads lie behind one another in each place of a sequence.
    is_flat: bool,
}

const PLAIN: Case = Case {
    batch: 1,
    q_heads: 1,
    kv_heads: 1,
    queries: 5,
    keys: 7,
    size: 32,
    value_size: 32,
    is_causal: false,
    scale: None,
    is_flat: false,
};

/// A mask for some of batch, heads, queries and keys, broadcast to the others.
#[derive(Debug, Clone)]
enum MaskData {
    None,
    Added([usize; 4], Vec<f32>),
    Seen([usize; 4], Vec<bool>),
}

impl MaskData {
    fn new(kind: MaskKind, dims: [usize; 4], seed: usize) -> Self {
        let numbers = normal(dims.iter().product(), seed);
        match kind {
            MaskKind::None => Self::None,
            MaskKind::Added => {
                let some = |x: f32| if x > 1.0 { f32::NEG_INFINITY } else { x };
                Self::Added(dims, numbers.into_iter().map(some).collect())
            }
            MaskKind::Seen => Self::Seen(dims, numbers.into_iter().map(|x| x < 0.7).collect()),
        }
    }

    fn array(&self) -> Option<Array> {
        match self {
            Self::None => None,
            Self::Added(dims, data) => Some(array(dims, data)),
            Self::Seen(dims, data) => Some(Array::new(dims, data.clone()).unwrap()),
        }
    }

    fn place(&self) -> (MaskKind, *const u8, [usize; 4]) {
        let (kind, dims, start) = match self {
            Self::None => return (MaskKind::None, std::ptr::null(), [0; 4]),
            Self::Added(dims, data) => (MaskKind::Added, dims, data.as_ptr().cast()),
            Self::Seen(dims, data) => (MaskKind::Seen, dims, data.as_ptr().cast()),
        };
        let stride = |axis: usize| if dims[axis] == 1 { 0 } else { dims[axis + 1..].iter().product() };
        (kind, start, [stride(0), stride(1), stride(2), stride(3)])
    }

    /// The largest magnitude that is not infinite.
    fn largest(&self) -> f64 {
        match self {
            Self::Added(_, data) => {
                data.iter().filter(|x| x.is_finite()).fold(0.0, |most, x| f64::from(x.abs()).max(most))
            }
            Self::None | Self::Seen(..) => 0.0,
        }
    }
}

struct Vectors {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn vectors(&self) -> Vectors {
        let Self { batch, q_heads, kv_heads, queries, keys, size, value_size, .. } = *self;
        Vectors {
            q: normal(batch * q_heads * queries * size, 1 + queries),
            k: normal(batch * kv_heads * keys * size, 2 + keys),
            v: normal(batch * kv_heads * keys * value_size, 3 + size),
        }
    }

    fn dims(&self, heads: usize, rows: usize, size: usize) -> Vec<usize> {
        if self.is_flat { vec![self.batch, rows, heads * size] } else { vec![self.batch, heads, rows, size] }
    }

    fn place<P>(&self, start: P, heads: usize, rows: usize, size: usize) -> Heads<P> {
        let (head, row) = if self.is_flat { (size, heads * size) } else { (rows * size, size) };
        Heads { start, item: heads * rows * size, head, row }
    }

    fn interpret(&self, vectors: &Vectors, v: &[f32], mask: &MaskData) -> Vec<f64> {
        let Self { q_heads, kv_heads, queries, keys, size, value_size, .. } = *self;
        let mut attributes = graph::Attention::new().causal(self.is_causal);
        attributes.scale = self.scale;
        attributes.heads = self.is_flat.then_some((q_heads, kv_heads));
        let operands = [
            Some(array(&self.dims(q_heads, queries, size), &vectors.q)),
            Some(array(&self.dims(kv_heads, keys, size), &vectors.k)),
            Some(array(&self.dims(kv_heads, keys, value_size), v)),
            mask.array(),
        ];
        interpret(Operator::Attention(attributes), &operands)
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a factor")]
    fn scale(&self) -> f32 {
        self.scale.unwrap_or((1.0 / (self.size as f64).sqrt()) as f32)
    }

    /// The largest sum |scale q k|.
    fn largest_score(&self, vectors: &Vectors) -> f64 {
        let largest = |x: &[f32]| {
            let of = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            x.chunks(self.size.max(1)).map(of).filter(|x| x.is_finite()).fold(0.0, f64::max)
        };
        // The inequality of Cauchy and Schwarz.
        f64::from(self.scale().abs()) * largest(&vectors.q) * largest(&vectors.k)
    }

    fn run(&self, cpu: &Cpu, vectors: &Vectors, mask: &MaskData, threads: usize) -> Vec<f32> {
        let Self { batch, q_heads, kv_heads, queries, keys, size, value_size, is_causal, .. } = *self;
        let (kind, mask, mask_strides) = mask.place();
        let attention = Attention {
            kernels: &instances::of(cpu.isa).f32,
            blocking: cpu.blocking[0],
            scale: self.scale(),
            is_causal,
            mask: kind,
            batch,
            q_heads,
            kv_heads,
            queries,
            keys,
            size,
            value_size,
        };
        let y = vec![f32::NAN; batch * q_heads * queries * value_size];
        guarded(&y, |y| {
            let operands = AttentionOperands {
                q: self.place(vectors.q.as_ptr(), q_heads, queries, size),
                k: self.place(vectors.k.as_ptr(), kv_heads, keys, size),
                v: self.place(vectors.v.as_ptr(), kv_heads, keys, value_size),
                y: self.place(y, q_heads, queries, value_size),
                mask,
                mask_strides,
            };
            let pieces = attention.pieces(threads);
            for piece in (0..pieces).rev() {
                let unused = vec![f32::NAN; attention.scratch_words()];
                guarded(&unused, |scratch| {
                    // SAFETY: the operands are as long as the sizes say, and so is the scratch memory; the
                    // instruction set is here.
                    unsafe { attention.piece(&operands, piece, pieces, scratch) };
                });
            }
        })
    }

    #[allow(clippy::cast_precision_loss, reason = "small numbers")]
    fn check(&self, vectors: &Vectors, mask: &MaskData) {
        let expected = self.interpret(vectors, &vectors.v, mask);
        let magnitudes: Vec<f32> = vectors.v.iter().map(|v| v.abs()).collect();
        let magnitudes = self.interpret(vectors, &magnitudes, mask);
        let (score, keys) = (self.largest_score(vectors) + mask.largest(), self.keys as f64);
        let relative = 2.0 * (self.size as f64 + 2.0) * U * score + 2f64.powi(-16) + (2.0 * keys + 16.0) * U;
        for isa in Isa::available() {
            for caches in [TINY, Caches::of_this_machine()] {
                let cpu = cpu(isa, caches);
                let y = self.run(&cpu, vectors, mask, 1);
                for (at, (y, expected)) in y.iter().zip(&expected).enumerate() {
                    let bound = relative * magnitudes[at] + 2f64.powi(-120);
                    assert!(
                        is_close(*y, *expected, bound),
                        "{isa:?}, {self:?}: {y} at {at}, expected {expected}, bound {bound}"
                    );
                }
                let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                for threads in [2, 100] {
                    let divided = self.run(&cpu, vectors, mask, threads);
                    assert_eq!(bits(&divided), bits(&y), "{isa:?}, {self:?}: {threads} threads");
                }
            }
        }
    }
}

fn check(case: Case, kind: MaskKind, dims: [usize; 4]) {
    case.check(&case.vectors(), &MaskData::new(kind, dims, case.keys));
}

/// Sizes of heads, queries and keys around those of vectors, micro-panels and blocks. The faults it finds: weights of
/// earlier keys that are not rescaled, missing lanes that count, a block that is left out or counted twice.
#[test]
fn attention_is_that_of_the_interpreter() {
    for (queries, keys, size, value_size) in [
        (1, 1, 1, 1),
        (1, 130, 64, 64),
        (2, 65, 7, 9),
        (3, 31, 32, 1),
        (9, 33, 7, 80),
        (64, 64, 32, 32),
        (57, 128, 80, 80),
        (29, 129, 128, 128),
        (31, 513, 64, 64),
        (7, 1030, 32, 33),
    ] {
        for is_flat in [false, true] {
            check(Case { queries, keys, size, value_size, is_flat, ..PLAIN }, MaskKind::None, [1; 4]);
        }
    }
}

#[test]
fn heads_of_a_batch_share_keys_as_in_the_interpreter() {
    for (batch, q_heads, kv_heads) in [(2, 1, 1), (1, 3, 3), (2, 4, 2), (1, 6, 1), (3, 4, 4)] {
        for (queries, is_flat) in [(1, true), (2, false), (61, true), (61, false)] {
            let case = Case { batch, q_heads, kv_heads, queries, keys: 70, size: 16, is_flat, ..PLAIN };
            check(case, MaskKind::None, [1; 4]);
            check(Case { is_causal: true, ..case }, MaskKind::None, [1; 4]);
        }
    }
}

/// Queries before, at and beyond the last key; blocks of keys that some, all or no queries of a block see.
#[test]
fn causal_attention_is_that_of_the_interpreter() {
    for (queries, keys) in
        [(1, 5), (2, 1), (7, 7), (70, 70), (200, 200), (80, 60), (80, 30), (130, 40), (40, 130), (3, 600)]
    {
        let case = Case { queries, keys, size: 8, value_size: 20, is_causal: true, ..PLAIN };
        check(case, MaskKind::None, [1; 4]);
        check(case, MaskKind::Added, [1, 1, queries, keys]);
    }
}

/// Every axis of a mask as it is, or broadcast; of keys that no query sees whole rows and whole blocks too.
#[test]
fn masks_are_broadcast_as_in_the_interpreter() {
    let case = Case { batch: 2, q_heads: 4, kv_heads: 2, queries: 21, keys: 75, size: 5, ..PLAIN };
    for choice in 0..16 {
        let whole = [case.batch, case.q_heads, case.queries, case.keys];
        let dims = [0, 1, 2, 3].map(|axis| if choice >> axis & 1 == 0 { 1 } else { whole[axis] });
        for kind in [MaskKind::Added, MaskKind::Seen] {
            check(case, kind, dims);
        }
    }
    check(Case { is_causal: true, is_flat: true, ..case }, MaskKind::Seen, [2, 1, 1, 75]);
    // Few queries read K and V as they lie.
    let case = Case { queries: 1, keys: 133, is_flat: true, ..PLAIN };
    check(case, MaskKind::Seen, [1, 1, 1, 133]);
    check(case, MaskKind::Added, [1, 1, 1, 133]);
    let case = Case { queries: 4, keys: 200, ..PLAIN };
    let ranges = [0..200, 0..10, 130..200, 70..71];
    let seen = ranges.into_iter().flat_map(|range| (0..200).map(move |key| range.contains(&key))).collect();
    case.check(&case.vectors(), &MaskData::Seen([1, 1, 4, 200], seen));
}

#[test]
fn a_query_that_sees_no_key_has_no_number() {
    let case = Case { queries: 9, keys: 150, ..PLAIN };
    let seen: Vec<bool> = (0..9 * 150).map(|at| at / 150 != 2).collect();
    let added = seen.iter().map(|seen| if *seen { 0.5 } else { f32::NEG_INFINITY }).collect();
    for mask in [MaskData::Seen([1, 1, 9, 150], seen), MaskData::Added([1, 1, 9, 150], added)] {
        let y = case.run(&cpu(best(), TINY), &case.vectors(), &mask, 1);
        assert!(y.iter().enumerate().all(|(at, y)| y.is_nan() == (at / 32 == 2)));
        case.check(&case.vectors(), &mask);
    }
}

/// In the first block of keys, a later one, and the last.
#[test]
fn scores_that_are_not_finite_are_those_of_the_interpreter() {
    let case = Case { queries: 9, keys: 150, size: 4, ..PLAIN };
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for key in [0, 100, 149] {
            let mask = (0..9 * 150).map(|at| if at == 2 * 150 + key { special } else { 0.25 }).collect();
            case.check(&case.vectors(), &MaskData::Added([1, 1, 9, 150], mask));
            let mut vectors = case.vectors();
            vectors.v[key * 32 + 3] = special;
            case.check(&vectors, &MaskData::None);
        }
    }
}

#[test]
fn scores_of_any_size_and_scale_are_those_of_the_interpreter() {
    for scale in [0.0, -0.7, 3.0, 1e-20] {
        let case = Case { queries: 9, keys: 140, size: 3, scale: Some(scale), ..PLAIN };
        check(case, MaskKind::None, [1; 4]);
    }
    // Far below 0: the largest one counts, and not what is beyond a row's end.
    let case = Case { queries: 8, keys: 77, ..PLAIN };
    case.check(&case.vectors(), &MaskData::Added([1; 4], vec![-500.0]));
    case.check(&case.vectors(), &MaskData::Added([1, 1, 1, 77], vec![-500.0; 77]));
    // Scores that grow or fall from block to block, by more than the weights' range.
    for step in [2.0, -2.0, 1e30] {
        let case = Case { queries: 8, keys: 200, size: 0, scale: Some(1.0), ..PLAIN };
        let mask = (0..200u8).map(|key| step * f32::from(key)).collect();
        case.check(&case.vectors(), &MaskData::Added([1, 1, 1, 200], mask));
    }
}

#[test]
fn there_may_be_nothing_to_attend_to() {
    for (batch, q_heads, kv_heads, queries, keys, value_size) in [
        (0, 2, 1, 3, 4, 5),
        (1, 0, 1, 3, 4, 5),
        (1, 2, 1, 0, 4, 5),
        (1, 2, 1, 3, 0, 5),
        (1, 2, 1, 3, 4, 0),
        (1, 2, 2, 0, 0, 0),
    ] {
        for is_causal in [false, true] {
            let case = Case { batch, q_heads, kv_heads, queries, keys, value_size, is_causal, ..PLAIN };
            check(case, MaskKind::None, [1; 4]);
        }
    }
}
