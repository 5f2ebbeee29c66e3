//! Every kernel of this machine, over shapes that meet every edge of blocks, strips and panels.

use std::sync::Arc;

use super::blocking::{Blocking, Caches};
use super::finish::Finish;
use super::kernel::{Kernels, here};
use super::split::Split;
use super::{Cpu, CpuProduct};
use crate::backend::{CompiledProduct, RunArgs};
use crate::layout::Layout;
use crate::options::{CompileOptions, Threads};
use crate::view::{TensorView, TensorViewMut};
use crate::{Activation, MatMul, Random, Tensor, Weights};

/// Blocks so small that modest products have several of each.
const TINY: Caches = Caches { l1_bytes: 1 << 11, l2_bytes: 1 << 14 };

fn cpu(kernels: &'static Kernels, caches: Caches) -> Cpu {
    let mut blocking = Blocking::new(kernels, caches);
    blocking.cols = blocking.cols.min(3 * kernels.panel());
    Cpu { kernels, blocking, pools: std::sync::Mutex::default() }
}

struct Operands {
    product: MatMul,
    a: Tensor<f32>,
    b: Tensor<f32>,
}

impl Operands {
    /// Integers from -4 to 4, whose sums are exact in any order; else N(0, 1).
    #[allow(clippy::cast_possible_truncation, reason = "f32 numbers are wanted")]
    fn new(dims: [usize; 3], transposes: [bool; 2], constant_b: bool, integers: bool) -> Self {
        let [m, n, k] = dims;
        let mut random = Random::new((m * 31 + n * 7 + k) as u64);
        let mut tensor = |rows: usize, cols: usize, transposed: bool| {
            let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
            Tensor::from_fn(rows, cols, |_, _| {
                let x = random.normal() as f32;
                if integers { (x * 2.0).round().clamp(-4.0, 4.0) } else { x }
            })
            .unwrap()
        };
        let (a, b) = (tensor(m, k, transposes[0]), tensor(k, n, transposes[1]));
        let product = MatMul::builder(m, n, k)
            .transpose_a(transposes[0])
            .transpose_b(transposes[1])
            .constant_b(constant_b)
            .build()
            .unwrap();
        Self { product, a, b }
    }

    /// The result, between guards.
    fn run(&self, cpu: &Cpu, threads: usize) -> Vec<f32> {
        let product = &self.product;
        let weights = product.constant_b().then(|| Weights::new(&self.b).unwrap());
        let compiled = compile(cpu, product, weights.as_ref(), threads);
        let (m, n) = (product.m(), product.n());
        let mut c = vec![f32::NAN; m * n + 2];
        c[0] = 7.0;
        c[m * n + 1] = 7.0;
        let args = RunArgs {
            m,
            a: (&self.a).into(),
            b: (!product.constant_b()).then_some((&self.b).into()),
            bias: None,
            residual: None,
            c: TensorViewMut::new(&mut c[1..=m * n], m, n).unwrap().into(),
        };
        compiled.open().unwrap().run(args).unwrap();
        assert_eq!((c[0], c[m * n + 1]), (7.0, 7.0), "{product}: written beyond C");
        c[1..=m * n].to_vec()
    }

    /// The product in float64, which is exact on integers.
    fn reference(&self) -> Vec<f64> {
        let op = |t: &Tensor<f32>, transposed: bool| {
            let layout = *t.view().layout();
            let (rows, cols) =
                if transposed { (layout.cols(), layout.rows()) } else { (layout.rows(), layout.cols()) };
            let at =
                |r: usize, c: usize| if transposed { t.data()[c * rows + r] } else { t.data()[r * cols + c] };
            (0..rows * cols).map(|i| f64::from(at(i / cols, i % cols))).collect::<Vec<_>>()
        };
        let (a, b) = (op(&self.a, self.product.transpose_a()), op(&self.b, self.product.transpose_b()));
        let (n, k) = (self.product.n(), self.product.k());
        let mut c = vec![0.0; self.product.m() * n];
        for (row, c) in c.chunks_mut(n).enumerate() {
            for (&x, b) in a[row * k..][..k].iter().zip(b.chunks(n)) {
                for (c, &y) in c.iter_mut().zip(b) {
                    *c += x * y;
                }
            }
        }
        c
    }
}

/// As compiled for `threads` threads, however little there is to do.
fn compile(cpu: &Cpu, product: &MatMul, weights: Option<&Weights>, threads: usize) -> CpuProduct {
    let compiled =
        cpu.compile_for(product, weights, &CompileOptions::default().threads(Threads::ONE), 1).unwrap();
    if threads == 1 {
        return compiled;
    }
    let pool = cpu.pool(threads).unwrap();
    let mut plan = Arc::into_inner(compiled.0).unwrap();
    plan.pool = Some(pool);
    plan.threads = threads;
    CpuProduct(Arc::new(plan))
}

/// Sizes around every edge: vectors, panels, strips.
fn edges(kernels: &Kernels) -> (Vec<usize>, Vec<usize>, Vec<usize>) {
    let (rows, panel, lanes) = (kernels.max_rows(), kernels.panel(), kernels.lanes);
    let around = |sizes: &[usize]| {
        let mut all: Vec<usize> = sizes.iter().flat_map(|&x| [x - 1, x, x + 1]).filter(|&x| x > 0).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    let m = around(&[2, rows, 3 * rows]);
    let n = around(&[lanes, panel, 4 * panel, 7 * panel]);
    (m, n, if cfg!(miri) { vec![1, 19] } else { vec![1, 2, 15, 33, 100, 163] })
}

#[test]
fn every_kernel_is_exact_on_integers_at_every_edge() {
    for kernels in here() {
        let (m, n, k) = edges(kernels);
        let cpu = cpu(kernels, TINY);
        let mut cases = 0;
        for (i, &m) in m.iter().enumerate() {
            for (j, &n) in n.iter().enumerate() {
                for (l, &k) in k.iter().enumerate() {
                    // An interpreter has time for some.
                    if cfg!(miri) && (i + j + l) % 11 != 0 {
                        continue;
                    }
                    for form in 0..8 {
                        let transposes = [form & 1 != 0, form & 2 != 0];
                        let operands = Operands::new([m, n, k], transposes, form & 4 != 0, true);
                        let threads = 1 + (i + j + l + form) % 3;
                        let c = operands.run(&cpu, threads);
                        for (index, (&x, expected)) in c.iter().zip(operands.reference()).enumerate() {
                            assert!(
                                f64::from(x) == expected,
                                "{}: {} on {threads} threads: element {index} is {x}, not {expected}",
                                kernels.name,
                                operands.product
                            );
                        }
                        cases += 1;
                    }
                }
            }
        }
        println!("{}: {cases} products", kernels.name);
        assert!(cases > 50);
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_blocks() {
    let (dims, counts) =
        if cfg!(miri) { ([9, 17, 19], &[1, 3][..]) } else { ([61, 203, 347], &[1, 2, 3, 5, 8][..]) };
    for kernels in here() {
        for form in 0..8 {
            let operands = Operands::new(dims, [form & 1 != 0, form & 2 != 0], form & 4 != 0, false);
            let expected = operands.run(&cpu(kernels, TINY), 1);
            for &threads in counts {
                for caches in [TINY, Caches { l1_bytes: 32 << 10, l2_bytes: 512 << 10 }] {
                    let c = operands.run(&cpu(kernels, caches), threads);
                    assert!(c == expected, "{} on {threads} threads, {caches:?}", kernels.name);
                }
            }
        }
    }
}

#[test]
fn bits_of_a_row_do_not_depend_on_m_with_a_constant_b() {
    let [rows, n, k] = if cfg!(miri) { [16, 21, 19] } else { [29, 75, 131] };
    for kernels in here() {
        let all = Operands::new([rows, n, k], [false; 2], true, false);
        let whole = all.run(&cpu(kernels, TINY), 1);
        for m in [1, 2, 3, 6, 7, 14, 15] {
            let a = Tensor::from_fn(m, k, |r, c| all.a.view().get(0, r, c).unwrap()).unwrap();
            let product = MatMul::builder(m, n, k).constant_b(true).build().unwrap();
            let few = Operands { product, a, b: all.b.clone() };
            assert!(few.run(&cpu(kernels, TINY), 1) == whole[..m * n], "{}: m = {m}", kernels.name);
        }
    }
}

#[test]
fn instruction_sets_with_fused_multiply_adds_agree_bit_for_bit() {
    let operands =
        Operands::new(if cfg!(miri) { [5, 9, 11] } else { [23, 57, 301] }, [false, true], false, false);
    let results: Vec<_> = here()
        .iter()
        .filter(|kernels| kernels.name != "portable")
        .map(|kernels| operands.run(&cpu(kernels, TINY), 1))
        .collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

fn finish(kernels: &Kernels, x: &mut [f32], activation: Activation) {
    let finish = Finish {
        c: x.as_mut_ptr(),
        c_stride: x.len(),
        rows: 1,
        cols: x.len(),
        alpha: None,
        bias: None,
        residual: None,
        activation,
    };
    // SAFETY: `here` lists what this machine has, and the row is the slice.
    unsafe { (kernels.finish)(&finish) };
}

#[test]
fn vector_activations_stay_within_the_stated_error() {
    // Every 2^14th number that there is, and every 60th of a unit where the functions bend.
    let step = if cfg!(miri) { 1 << 26 } else { 1 << 14 };
    let samples: Vec<f32> = (0..=u32::MAX / step)
        .map(|i| f32::from_bits(i * step))
        .chain((-1200i16..=1200).step_by(if cfg!(miri) { 80 } else { 1 }).map(|i| f32::from(i) / 60.0))
        .chain([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, 5.5, -5.5, 0.625, 88.4, -88.4])
        .collect();
    for kernels in here() {
        for activation in Activation::ALL {
            let mut results = samples.clone();
            finish(kernels, &mut results, activation);
            let mut worst = 0f64;
            for (&x, &y) in samples.iter().zip(&results) {
                let (x, y) = (f64::from(x), f64::from(y));
                let expected = activation.apply_f64(x);
                if x.is_nan() {
                    assert!(y.is_nan(), "{}: {activation}(NaN) is {y}", kernels.name);
                } else if y != expected {
                    let bound = activation.error_f32(x, expected) + 2f64.powi(-126);
                    let error = (y - expected).abs();
                    assert!(
                        error <= bound,
                        "{}: {activation}({x}) is {y}, not {expected} +- {bound:e}",
                        kernels.name
                    );
                    worst = worst.max(error / bound);
                }
            }
            println!("{}: {activation}: at most {worst:.2} of the bound", kernels.name);
        }
    }
}

#[test]
fn an_epilogue_is_the_same_wherever_an_element_lies() {
    for kernels in here() {
        for activation in Activation::ALL {
            let x: Vec<f32> = (0..67u8).map(|i| f32::from(i) / 9.0 - 4.0).collect();
            let mut whole = x.clone();
            finish(kernels, &mut whole, activation);
            for start in (0..x.len()).step_by(if cfg!(miri) { 33 } else { 1 }) {
                let mut part = x[start..].to_vec();
                finish(kernels, &mut part, activation);
                assert_eq!(part, whole[start..], "{}: {activation} from {start}", kernels.name);
            }
        }
    }
}

#[test]
fn shares_cover_c_exactly_once() {
    for kernels in here() {
        for (items, rows, cols) in
            [(1, 1, 1), (1, 100, 7), (3, 7, 100), (2, 96, 96), (5, 1, 1000), (16, 3, 40)]
        {
            for threads in 1..7 {
                for pack_b in [false, true] {
                    let split = Split::new(kernels, threads, items, rows, cols, pack_b);
                    assert!(split.parts() <= threads);
                    let mut seen = vec![0u8; items * rows * cols];
                    for index in 0..split.parts() {
                        let share = split.share(kernels, index, items, rows, cols);
                        for item in share.items {
                            for row in share.rows.clone() {
                                for col in share.cols.clone() {
                                    seen[(item * rows + row) * cols + col] += 1;
                                }
                            }
                        }
                    }
                    assert!(seen.iter().all(|&count| count == 1), "{items}x{rows}x{cols} on {threads}");
                }
            }
        }
    }
}

#[test]
fn weights_are_packed_once_for_products_of_different_m() {
    let cpu = cpu(here()[0], TINY);
    let weights = Weights::from_tensor(Tensor::filled(8, 40, 1f32).unwrap());
    let options = CompileOptions::default().threads(Threads::ONE);
    let packed = |m: usize| {
        let product = MatMul::builder(m, 40, 8).constant_b(true).build().unwrap();
        let compiled = cpu.compile_for(&product, Some(&weights), &options, 1).unwrap();
        match &compiled.0.b {
            super::ConstantB::Packed(packed) => Arc::clone(packed),
            _ => panic!("not packed"),
        }
    };
    let (one, other) = (packed(3), packed(50));
    assert!(Arc::ptr_eq(&one, &other));
    drop((one, other));
    assert_eq!(packed(3).item_stride, packed(4).item_stride);
}

#[test]
fn caches_are_of_a_plausible_size() {
    let Caches { l1_bytes, l2_bytes } = Caches::of_this_machine();
    println!("first level {l1_bytes} bytes, second {l2_bytes}");
    assert!((8 << 10..=1 << 20).contains(&l1_bytes) && (64 << 10..=1 << 28).contains(&l2_bytes));
    for kernels in here() {
        for caches in [TINY, Caches { l1_bytes, l2_bytes }] {
            let blocking = Blocking::new(kernels, caches);
            assert!(blocking.k_inner > 0 && blocking.strips > 0);
            assert!(blocking.cols.is_multiple_of(kernels.panel()));
        }
    }
}

#[test]
fn a_batch_that_shares_b_packs_it_once() {
    let cpu = cpu(here()[0], TINY);
    let b = Tensor::from_fn(9, 20, |r, c| (r + c) as f32).unwrap();
    let layout = Layout::strided(5, 9, 20, 20, 0).unwrap();
    let weights = Weights::new(TensorView::with_layout(b.data(), layout).unwrap()).unwrap();
    let product = MatMul::builder(2, 20, 9)
        .batch(5)
        .constant_b(true)
        .batch_stride(crate::Operand::B, 0)
        .build()
        .unwrap();
    let one_item = cpu.compile_for(&product, Some(&weights), &CompileOptions::default(), 1).unwrap();
    let bytes = one_item.facts().bytes_held;
    assert!(bytes < 2 * 9 * 32 * 4 + 4096, "{bytes} bytes");
}
