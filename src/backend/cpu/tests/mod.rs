//! Every kernel of this machine, over shapes that meet every edge of blocks and micro-panels.

use std::sync::Arc;

mod attention;
mod dot;
mod rows;
mod shared_b;
mod weight_only;

use super::blocking::{Blocking, Caches, K_MULTIPLE};
use super::epilogue::Epilogue;
use super::isa::Isa;
use super::microkernel::{MicroKernels, instances};
use super::plan::{ConstantB, Method, Plan};
use super::small::SmallProduct;
use super::threads::Team;
use super::threads::split::{self, Cut, Split};
use super::{Cpu, CpuProduct, work_ns, worthwhile_threads};
use crate::backend::{Backend, CompiledProduct, RunArgs};
use crate::description::layout::Layout;
use crate::description::options::{CompileOptions, Device, Threads};
use crate::operands::view::{TensorView, TensorViewMut};
use crate::random::Random;
use crate::{
    Activation, Element, ElementType, ElementTypes, MatMul, MatMulBuilder, QuantA, QuantB, Quantization,
    Tensor, Weights,
};

/// Blocks so small that modest products have several of each.
const TINY: Caches = Caches { l1_bytes: 1 << 11, l2_bytes: 1 << 14 };

fn cpu(isa: Isa, caches: Caches) -> Cpu {
    let kernels = instances::of(isa);
    let blocking = [&kernels.f32, &kernels.f64].map(|kernels| {
        let mut blocking = Blocking::new(kernels, caches);
        blocking.kc = 2 * blocking.kc_l1;
        blocking.nc = blocking.nc.min(3 * kernels.nr());
        blocking
    });
    Cpu { isa, blocking, pools: std::sync::Mutex::default() }
}

fn best() -> Isa {
    Isa::available().next().unwrap()
}

/// As the backend compiles it, for so many threads.
fn compile_for(
    cpu: &Cpu,
    product: &MatMul,
    weights: Option<&Weights>,
    options: &CompileOptions,
    threads: usize,
) -> CpuProduct {
    cpu.compile_for(cpu.algorithm(product, weights), product, weights, options, threads).unwrap()
}

/// What is decided for a product without a constant B, on one thread.
fn plan(cpu: &Cpu, builder: MatMulBuilder) -> Arc<Plan> {
    let product = builder.build().unwrap();
    compile_for(cpu, &product, None, &CompileOptions::default().threads(Threads::ONE), 1).0
}

/// Of f32 or f64.
struct Operands<T = f32> {
    product: MatMul,
    a: Tensor<T>,
    b: Tensor<T>,
}

impl<T: Element + From<f32>> Operands<T> {
    /// Integers from -4 to 4, whose sums are exact in any order; else N(0, 1).
    #[allow(clippy::cast_possible_truncation, reason = "f32 numbers are wanted")]
    fn new(dims: [usize; 3], transposes: [bool; 2], constant_b: bool, integers: bool) -> Self {
        let [m, n, k] = dims;
        let mut random = Random::new((m * 31 + n * 7 + k) as u64);
        let mut tensor = |rows: usize, cols: usize, transposed: bool| {
            let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
            Tensor::from_fn(rows, cols, |_, _| {
                let x = random.normal() as f32;
                T::from(if integers { (x * 2.0).round().clamp(-4.0, 4.0) } else { x })
            })
            .unwrap()
        };
        let (a, b) = (tensor(m, k, transposes[0]), tensor(k, n, transposes[1]));
        let product = MatMul::builder(m, n, k)
            .types(ElementTypes::uniform(T::TYPE))
            .transpose_a(transposes[0])
            .transpose_b(transposes[1])
            .constant(constant_b)
            .build()
            .unwrap();
        Self { product, a, b }
    }

    /// The result, between guards.
    fn run(&self, cpu: &Cpu, threads: usize) -> Vec<T> {
        let product = &self.product;
        let weights = product.constant_b().then(|| Weights::new(&self.b).unwrap());
        let compiled = compile(cpu, product, weights.as_ref(), threads);
        let (m, n) = (product.m(), product.n());
        let mut c = vec![T::from(f32::NAN); m * n + 2];
        let guard = T::from(7.0);
        c[0] = guard;
        c[m * n + 1] = guard;
        let args = RunArgs {
            m,
            a: (&self.a).into(),
            b: (!product.constant_b()).then_some((&self.b).into()),
            bias: None,
            residual: None,
            c: TensorViewMut::new(&mut c[1..=m * n], m, n).unwrap().into(),
        };
        compiled.open(0).unwrap().run(args).unwrap();
        assert_eq!((c[0], c[m * n + 1]), (guard, guard), "{product}: written beyond C");
        c[1..=m * n].to_vec()
    }

    /// The product in float64, which is exact on integers.
    fn reference(&self) -> Vec<f64> {
        let op = |t: &Tensor<T>, transposed: bool| {
            let layout = *t.view().layout();
            let (rows, cols) =
                if transposed { (layout.cols(), layout.rows()) } else { (layout.rows(), layout.cols()) };
            let at =
                |r: usize, c: usize| if transposed { t.data()[c * rows + r] } else { t.data()[r * cols + c] };
            (0..rows * cols).map(|i| at(i / cols, i % cols).to_f64()).collect::<Vec<_>>()
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
    let compiled = compile_for(cpu, product, weights, &CompileOptions::default().threads(Threads::ONE), 1);
    if threads == 1 {
        return compiled;
    }
    let pool = cpu.pool(threads, true).unwrap();
    let mut plan = Arc::into_inner(compiled.0).unwrap();
    plan.team = Some(Team::Own { pool, long: true });
    plan.threads = threads;
    CpuProduct(Arc::new(plan))
}

/// Sizes around every edge: vectors and micro-panels.
fn edges(kernels: &MicroKernels) -> (Vec<usize>, Vec<usize>, Vec<usize>) {
    let (rows, panel, lanes) = (kernels.mr(), kernels.nr(), kernels.lanes());
    let around = |sizes: &[usize]| {
        let mut all: Vec<usize> = sizes.iter().flat_map(|&x| [x - 1, x, x + 1]).filter(|&x| x > 0).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    // An interpreter has time for few.
    if cfg!(miri) {
        return (around(&[2, rows, 2 * rows]), around(&[lanes, panel, 3 * panel]), vec![1, 2, 19]);
    }
    let m = around(&[2, rows, 3 * rows]);
    let n = around(&[lanes, panel, 4 * panel, 7 * panel]);
    (m, n, vec![1, 2, 15, 33, 100, 163])
}

#[test]
fn every_kernel_is_exact_on_integers_at_every_edge() {
    for isa in Isa::available() {
        let kernels = instances::of(isa);
        exact_on_integers::<f32>(isa, &kernels.f32);
        exact_on_integers::<f64>(isa, &kernels.f64);
    }
}

fn exact_on_integers<T: Element + From<f32>>(isa: Isa, kernels: &MicroKernels) {
    let (m, n, k) = edges(kernels);
    let cpu = cpu(isa, TINY);
    let mut cases = 0;
    for (i, &m) in m.iter().enumerate() {
        for (j, &n) in n.iter().enumerate() {
            for (l, &k) in k.iter().enumerate() {
                for form in 0..8 {
                    if cfg!(miri) && ((i + j) % 2, form) != (0, (3 * i + j + 5 * l) % 8) {
                        continue;
                    }
                    let transposes = [form & 1 != 0, form & 2 != 0];
                    let operands = Operands::<T>::new([m, n, k], transposes, form & 4 != 0, true);
                    let threads = 1 + (i + j + l + form) % 3;
                    let c = operands.run(&cpu, threads);
                    for (index, (&x, expected)) in c.iter().zip(operands.reference()).enumerate() {
                        assert!(
                            x.to_f64() == expected,
                            "{}: {} on {threads} threads: element {index} is {x:?}, not {expected}",
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

fn bits_are_those_of_one_thread<T: Element + From<f32>>(dims: [usize; 3], counts: &[usize], isa: Isa) {
    for form in 0..8 {
        let operands = Operands::<T>::new(dims, [form & 1 != 0, form & 2 != 0], form & 4 != 0, false);
        let expected = operands.run(&cpu(isa, TINY), 1);
        for &threads in counts {
            for caches in [TINY, Caches { l1_bytes: 32 << 10, l2_bytes: 512 << 10 }] {
                let c = operands.run(&cpu(isa, caches), threads);
                assert!(c == expected, "{} on {threads} threads, {caches:?}, {}", isa.name(), T::TYPE);
            }
        }
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_blocks() {
    let (dims, counts) =
        if cfg!(miri) { ([7, 9, 17], &[1, 3][..]) } else { ([61, 203, 347], &[1, 2, 3, 5, 8][..]) };
    for isa in Isa::available() {
        bits_are_those_of_one_thread::<f32>(dims, counts, isa);
        bits_are_those_of_one_thread::<f64>(dims, counts, isa);
    }
}

#[test]
fn bits_of_a_row_do_not_depend_on_m_with_a_constant_b() {
    let [rows, n, k] = if cfg!(miri) { [16, 21, 19] } else { [29, 75, 131] };
    for isa in Isa::available() {
        let all = Operands::<f32>::new([rows, n, k], [false; 2], true, false);
        let whole = all.run(&cpu(isa, TINY), 1);
        for m in [1, 2, 3, 6, 7, 14, 15] {
            let a = Tensor::from_fn(m, k, |r, c| all.a.view().get(0, r, c).unwrap()).unwrap();
            let product = MatMul::builder(m, n, k).constant(true).build().unwrap();
            let few = Operands { product, a, b: all.b.clone() };
            assert!(few.run(&cpu(isa, TINY), 1) == whole[..m * n], "{}: m = {m}", isa.name());
        }
    }
}

/// One row reads them as they lie where that is faster.
#[cfg(feature = "half")]
#[test]
fn bits_of_a_row_do_not_depend_on_m_with_constant_weights_of_16_bits() {
    #[allow(clippy::cast_possible_truncation, reason = "f32 numbers are wanted")]
    fn check<T: Element>(types: ElementTypes, of: fn(f32) -> T) {
        // More than 4 MiB, but in an interpreter.
        let [n, k] = if cfg!(miri) { [21, 19] } else { [1031, 2049] };
        for (isa, transposed) in Isa::available().flat_map(|isa| [(isa, false), (isa, true)]) {
            let mut random = Random::new(16);
            let mut matrix =
                |rows, cols| Tensor::from_fn(rows, cols, |_, _| of(random.normal() as f32)).unwrap();
            let (a, b) = (matrix(5, k), if transposed { matrix(n, k) } else { matrix(k, n) });
            let (cpu, weights) = (cpu(isa, TINY), Weights::new(&b).unwrap());
            let run = |m: usize, threads: usize| {
                let product = MatMul::builder(m, n, k).types(types).transpose_b(transposed).constant(true);
                let compiled = compile(&cpu, &product.build().unwrap(), Some(&weights), threads);
                let as_it_lies = m == 1 && isa.name() == "avx2" && !transposed && !cfg!(miri);
                assert_eq!(matches!(compiled.0.b, ConstantB::Plain(_)), as_it_lies, "{}", isa.name());
                let mut c = vec![0f32; m * n];
                let args = RunArgs {
                    m,
                    a: TensorView::new(&a.data()[..m * k], m, k).unwrap().into(),
                    b: None,
                    bias: None,
                    residual: None,
                    c: TensorViewMut::new(&mut c, m, n).unwrap().into(),
                };
                compiled.open(0).unwrap().run(args).unwrap();
                c
            };
            let rows = run(5, 1);
            for threads in [1, 3] {
                assert!(run(1, threads) == rows[..n], "{}, {transposed}, {threads} threads", isa.name());
            }
        }
    }
    check(ElementTypes::F16, half::f16::from_f32);
    check(ElementTypes::BF16, half::bf16::from_f32);
}

#[test]
fn instruction_sets_with_fused_multiply_adds_agree_bit_for_bit() {
    let operands = Operands::<f32>::new(
        if cfg!(miri) { [5, 9, 11] } else { [23, 57, 301] },
        [false, true],
        false,
        false,
    );
    let results: Vec<_> = Isa::available()
        .filter(|isa| *isa != Isa::Portable)
        .map(|isa| operands.run(&cpu(isa, TINY), 1))
        .collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

fn apply(isa: Isa, x: &mut [f32], activation: Activation) {
    let epilogue = Epilogue::of_row(x, activation);
    // SAFETY: the instruction set is available, and the row is the slice.
    unsafe { (instances::of(isa).f32.vector.epilogue)(&epilogue) };
}

/// How far results of an activation may be off in f32.
struct Errors {
    activation: Activation,
    /// The largest relative error of a normal result, and its argument.
    worst: (f64, f32),
}

impl Errors {
    fn check(&mut self, name: &str, x: f32, expected: f64, y: f32) {
        let (activation, wide) = (self.activation, f64::from(y));
        let smallest = f64::from(f32::MIN_POSITIVE);
        if x.is_nan() {
            assert!(y.is_nan(), "{name}: {activation}(NaN) is {y}");
            return;
        }
        assert!(
            wide == 0.0 || expected == 0.0 || (wide < 0.0) == (expected < 0.0),
            "{name}: {activation}({x:e}) is {y:e}, not {expected:e}"
        );
        if wide == expected {
            return;
        }
        let error = (wide - expected).abs();
        let bound = activation.error_f32(f64::from(x), expected);
        let bound = if expected.abs() < smallest { smallest } else { bound };
        assert!(error <= bound, "{name}: {activation}({x:e}) is {y:e}, not {expected:e} +- {bound:e}");
        if expected.abs() >= smallest && error / expected.abs() > self.worst.0 {
            self.worst = (error / expected.abs(), x);
        }
    }
}

/// The activations of the numbers with these bits, on every instruction set.
fn check_activations(bits: impl Iterator<Item = u32>, errors: &mut [Vec<Errors>]) {
    let samples: Vec<f32> = bits.map(f32::from_bits).collect();
    for (activation, errors) in Activation::ALL.into_iter().zip(errors) {
        let expected: Vec<f64> = samples.iter().map(|&x| activation.apply_f64(f64::from(x))).collect();
        for (isa, errors) in Isa::available().zip(errors) {
            let mut results = samples.clone();
            apply(isa, &mut results, activation);
            for ((&x, &expected), &y) in samples.iter().zip(&expected).zip(&results) {
                errors.check(isa.name(), x, expected, y);
            }
        }
    }
}

/// For each activation those of every instruction set.
fn no_errors() -> Vec<Vec<Errors>> {
    let none = |activation| {
        (0..Isa::available().count()).map(|_| Errors { activation, worst: (0.0, 0.0) }).collect()
    };
    Activation::ALL.into_iter().map(none).collect()
}

fn print_errors(errors: &[Vec<Errors>]) {
    for errors in errors {
        for (isa, Errors { activation, worst: (error, x) }) in Isa::available().zip(errors) {
            println!("{activation}, {}: at most 2^{:.2} = {error:.2e}, at {x:e}", isa.name(), error.log2());
        }
    }
}

#[test]
fn activations_stay_within_the_stated_error() {
    // Every so manyth number that there is, and every 600th of a unit where the functions bend.
    let step: u32 = if cfg!(miri) { (1 << 26) + 1 } else { 10_007 };
    let bends = (-12_000i16..=12_000).step_by(if cfg!(miri) { 800 } else { 1 });
    let corners = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, 0.0, -0.0, f32::MAX, f32::MIN];
    let bits = (0..=u32::MAX / step)
        .map(|i| i * step)
        .chain(bends.map(|i| (f32::from(i) / 600.0).to_bits()))
        .chain(corners.map(f32::to_bits));
    let mut errors = no_errors();
    check_activations(bits, &mut errors);
    print_errors(&errors);
}

/// What docs/accuracy.md states. Eight minutes on one core (Zen 4), in a release build.
#[test]
#[ignore = "all of f32 takes long; scripts/test --thorough cpu runs it"]
fn activations_of_every_number_stay_within_the_stated_error() {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get().min(256));
    let step = u32::try_from(threads).unwrap();
    let parts: Vec<_> = std::thread::scope(|scope| {
        let spawn = |first: u32| {
            scope.spawn(move || {
                let mut errors = no_errors();
                // Blocks of 2^12 numbers.
                for block in (first..1 << 20).step_by(threads) {
                    check_activations((0..1 << 12).map(|i| (block << 12) | i), &mut errors);
                }
                errors
            })
        };
        (0..step).map(spawn).collect::<Vec<_>>().into_iter().map(|part| part.join().unwrap()).collect()
    });
    let mut errors = no_errors();
    for part in parts {
        for (worst, of_part) in errors.iter_mut().flatten().zip(part.into_iter().flatten()) {
            if of_part.worst.0 > worst.worst.0 {
                worst.worst = of_part.worst;
            }
        }
    }
    print_errors(&errors);
}

#[test]
fn an_epilogue_is_the_same_wherever_an_element_lies() {
    for isa in Isa::available() {
        for activation in Activation::ALL {
            let x: Vec<f32> = (0..67u8).map(|i| f32::from(i) / 9.0 - 4.0).collect();
            let mut whole = x.clone();
            apply(isa, &mut whole, activation);
            for start in (0..x.len()).step_by(if cfg!(miri) { 33 } else { 1 }) {
                let mut part = x[start..].to_vec();
                apply(isa, &mut part, activation);
                assert_eq!(part, whole[start..], "{}: {activation} from {start}", isa.name());
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe arithmetic, which takes an interpreter minutes")]
fn shares_cover_c_exactly_once() {
    for isa in Isa::available() {
        for (items, rows, cols) in
            [(1, 1, 1), (1, 100, 7), (3, 7, 100), (2, 96, 96), (5, 1, 1000), (16, 3, 40)]
        {
            for threads in 1..7 {
                let nr = instances::of(isa).f32.nr();
                let cuts = [Cut::Nowhere, Cut::Rows(3), Cut::Cols(nr)];
                for (pack_b, cut) in [false, true].into_iter().flat_map(|b| cuts.map(|cut| (b, cut))) {
                    let c = Layout::packed(items, rows, cols).unwrap();
                    let operands = split::Operands { pack_a: false, pack_b, mc: 28 };
                    let split = Split::new(nr, threads, &c, operands).cut(&c, [cut, Cut::Nowhere]);
                    assert!(split.shares() <= threads);
                    let mut seen = vec![0u8; items * rows * cols];
                    let pieces =
                        (0..split.shares()).flat_map(|share| (0..split.pieces()).map(move |p| (share, p)));
                    for (share, piece) in pieces {
                        let share = split.piece(share, piece, &c);
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
    let cpu = cpu(best(), TINY);
    let weights = Weights::from_tensor(Tensor::filled(8, 40, 1f32).unwrap());
    let options = CompileOptions::default().threads(Threads::ONE);
    let packed = |m: usize| {
        let product = MatMul::builder(m, 40, 8).constant(true).build().unwrap();
        let compiled = compile_for(&cpu, &product, Some(&weights), &options, 1);
        match &compiled.0.b {
            ConstantB::Packed(packed) => Arc::clone(packed),
            _ => panic!("not packed"),
        }
    };
    let (one, other) = (packed(3), packed(50));
    assert!(Arc::ptr_eq(&one, &other));
    drop((one, other));
}

/// Its other dimension may be of any size: to go through it could take years.
#[test]
fn an_empty_constant_b_is_not_packed() {
    let cpu = cpu(best(), TINY);
    for (n, k) in [(0, 5), (5, 0)] {
        let weights = Weights::from_tensor(Tensor::filled(k, n, 1f32).unwrap());
        let product = MatMul::builder(3, n, k).constant(true).build().unwrap();
        let compiled = compile_for(&cpu, &product, Some(&weights), &CompileOptions::default(), 1);
        assert!(matches!(compiled.0.b, ConstantB::Plain(_)), "{product}");
    }
}

#[test]
fn caches_are_of_a_plausible_size() {
    let Caches { l1_bytes, l2_bytes } = Caches::of_this_machine();
    println!("first level {l1_bytes} bytes, second {l2_bytes}");
    assert!((8 << 10..=1 << 20).contains(&l1_bytes) && (64 << 10..=1 << 28).contains(&l2_bytes));
    for isa in Isa::available() {
        for caches in [TINY, Caches { l1_bytes, l2_bytes }] {
            let kernels = &instances::of(isa).f32;
            let blocking = Blocking::new(kernels, caches);
            assert!(blocking.kc_l1 > 0 && blocking.mc_panels > 0);
            assert!(blocking.nc.is_multiple_of(kernels.nr()));
        }
    }
}

#[test]
fn a_batch_that_shares_b_packs_it_once() {
    let cpu = cpu(best(), TINY);
    let b = Tensor::from_fn(9, 20, |r, c| (r + c) as f32).unwrap();
    let layout = Layout::strided(5, 9, 20, 20, 0).unwrap();
    let weights = Weights::new(TensorView::with_layout(b.data(), layout).unwrap()).unwrap();
    let product =
        MatMul::builder(2, 20, 9).batch(5).constant(true).batch_stride(crate::Operand::B, 0).build().unwrap();
    let one_item = compile_for(&cpu, &product, Some(&weights), &CompileOptions::default(), 1);
    let bytes = one_item.info().bytes_held;
    assert!(bytes < 2 * 9 * 32 * 4 + 4096, "{bytes} bytes");
}

#[test]
fn blocks_are_as_large_as_their_caches_allow() {
    for isa in Isa::available() {
        let caches = |l1_bytes, l2_bytes| Caches { l1_bytes, l2_bytes };
        for caches in [TINY, caches(32 << 10, 512 << 10), caches(48 << 10, 1 << 20)] {
            let kernels = &instances::of(isa).f32;
            let Blocking { kc, kc_l1, mc_panels, nc, l2_bytes } = Blocking::new(kernels, caches);
            let of_b = |k: usize| k * kernels.nr() * 4;
            assert!(kc_l1.is_multiple_of(K_MULTIPLE) && of_b(kc_l1) >= caches.l1_bytes);
            assert!(of_b(kc_l1 - K_MULTIPLE) < caches.l1_bytes);
            let rows_of_two = caches.l2_bytes / 2 / (2 * kc_l1 * kernels.mr() * 4) * kernels.mr();
            let parts = if kernels.nr() * 4 <= 64 && rows_of_two < 64 { 1 } else { 2 };
            assert_eq!(kc, parts * kc_l1);
            let of_a = |panels: usize| panels * kernels.mr() * kc * 4;
            assert!(mc_panels == 1 || of_a(mc_panels) <= caches.l2_bytes / 2);
            assert!(of_a(mc_panels + 1) > caches.l2_bytes / 2);
            assert_eq!(l2_bytes, caches.l2_bytes);
            let packed = |cols: usize| cols * kc * 4;
            assert!(packed(nc + 1) > 4 << 20 && packed(nc - kernels.nr()) < 4 << 20);
        }
    }
}

#[test]
fn threads_are_used_for_the_work_that_pays_for_them() {
    let threads = |product: &MatMul, elements| worthwhile_threads(work_ns(product, elements), 16);
    // 2.34 million multiply-adds at 60 in a nanosecond: 6.5 times 6 microseconds. 64 at a time take less
    // than the bytes of the operands, 2.3 times as long.
    let product = MatMul::new(60, 100, 390).unwrap();
    assert_eq!([threads(&product, 1), threads(&product, 2), threads(&product, 64)], [6, 3, 2]);
    assert_eq!(worthwhile_threads(work_ns(&product, 1), 4), 4);
    // 1.2 MB at 20 bytes in a nanosecond: 10.04 times.
    let vector = |types| MatMul::builder(1, 300, 1000).types(types).build().unwrap();
    assert_eq!(threads(&vector(ElementTypes::F32), 1), 10);
    assert_eq!(threads(&vector(ElementTypes::INT8), 4), 2);
    assert_eq!(threads(&MatMul::new(1, 1, 1).unwrap(), 1), 1);
}

#[test]
fn a_pool_is_shared_by_products_of_as_many_threads() {
    let cpu = cpu(best(), TINY);
    assert!(cpu.team(&CompileOptions::default(), 1, 0.0).unwrap().0.is_none());
    let pool = |threads: usize| match cpu.team(&CompileOptions::default(), threads, 0.0).unwrap() {
        (Some(Team::Own { pool, .. }), count) if count == threads => pool,
        other => panic!("{other:?}"),
    };
    let (one, same, other) = (pool(2), pool(2), pool(3));
    assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
    assert_eq!(cpu.pools.lock().unwrap().len(), 2);
    drop((one, same, other));
    let again = pool(2);
    assert_eq!(cpu.pools.lock().unwrap().len(), 1);
    drop(again);
}

#[test]
fn a_product_knows_its_method() {
    let cpu = cpu(best(), Caches { l1_bytes: 32 << 10, l2_bytes: 512 << 10 });
    let rows = instances::of(cpu.isa).f32.mr();
    let method = |builder: MatMulBuilder, m: usize| plan(&cpu, builder).method(m);
    assert_eq!(method(MatMul::builder(9, 1, 100), 9), Method::ATimesColumn);
    assert_eq!(method(MatMul::builder(9, 1, 100), 1), Method::ATimesColumn);
    assert_eq!(method(MatMul::builder(9, 500, 500), 1), Method::RowTimesB);
    assert_eq!(method(MatMul::builder(rows, 500, 500), rows), Method::Plain);
    assert_eq!(method(MatMul::builder(rows + 1, 500, 500), rows + 1), Method::Pack);
    assert_eq!(method(MatMul::builder(2, 500, 500).transpose_b(true), 2), Method::Pack);
    // 32 KiB of B, and a little more.
    assert_eq!(method(MatMul::builder(200, 64, 128), 200), Method::Plain);
    assert_eq!(method(MatMul::builder(200, 64, 129), 200), Method::Pack);
}

#[test]
fn a_is_packed_where_it_is_read_often_and_badly() {
    let cpu = cpu(best(), Caches { l1_bytes: 32 << 10, l2_bytes: 512 << 10 });
    let packs = |m: usize, k: usize, transposed: bool, cols: usize| {
        plan(&cpu, MatMul::builder(m, 192, k).transpose_a(transposed)).packs_a(m, cols)
    };
    // Rows of 4 KiB, columns, 512 KiB and a little more; fewer columns of C than pay.
    assert!(packs(4, 1024, false, 192) && !packs(4, 1024, false, 191));
    assert!(!packs(4, 1000, false, 192));
    assert!(packs(4, 1000, true, 192) && !packs(4, 1000, true, 191));
    assert!(!packs(512, 256, false, 192) && packs(513, 256, false, 192));
}

#[test]
fn an_epilogue_is_what_is_not_the_plain_product() {
    let cpu = cpu(best(), TINY);
    let plain = || MatMul::builder(2, 3, 4);
    let parts = |builder: MatMulBuilder| {
        let plan = plan(&cpu, builder);
        (plan.alpha(), plan.has_epilogue())
    };
    assert_eq!(parts(plain()), (None, false));
    assert_eq!(parts(plain().alpha(0.5)), (Some(0.5), true));
    assert_eq!(parts(plain().bias(true)), (None, true));
    assert_eq!(parts(plain().residual(true)), (None, true));
    assert_eq!(parts(plain().activation(Activation::Relu)), (None, true));
}

#[test]
fn small_products_are_listed_and_others_are_not() {
    let cpu = cpu(best(), Caches { l1_bytes: 32 << 10, l2_bytes: 512 << 10 });
    let listed = |builder: MatMulBuilder| SmallProduct::of(&plan(&cpu, builder)).is_some();
    assert!(listed(MatMul::builder(8, 32, 32)));
    assert!(listed(MatMul::builder(8, 32, 32).bias(true).transpose_a(true)));
    assert!(listed(MatMul::builder(8, 32, 32).batch(2)));
    // Empty, to be packed, of too many tiles.
    for (m, n, k) in [(0, 32, 32), (8, 0, 32), (8, 32, 0), (4, 192, 1024), (64 * 16 * 8, 16, 16)] {
        assert!(!listed(MatMul::builder(m, n, k)), "{m}x{n}x{k}");
    }
    assert!(!listed(MatMul::builder(8, 32, 32).transpose_b(true)));
}

#[test]
fn plain_runs_are_those_of_small_products_with_nothing_after_the_sums_on_one_thread() {
    let cpu = cpu(best(), TINY);
    let plain = |builder: MatMulBuilder, threads| {
        let product = builder.build().unwrap();
        compile_for(&cpu, &product, None, &CompileOptions::default(), threads).open(0).unwrap().is_plain()
    };
    assert!(plain(MatMul::builder(8, 32, 32), 1));
    assert!(!plain(MatMul::builder(8, 32, 32), 2));
    assert!(!plain(MatMul::builder(8, 32, 32).alpha(2.0), 1));
    assert!(!plain(MatMul::builder(8, 32, 32).bias(true), 1));
    assert!(!plain(MatMul::builder(8, 32, 32).transpose_b(true), 1));
}

#[test]
fn a_plain_run_computes_the_items_of_other_runs_and_nothing_between_them() {
    let cpu = cpu(best(), TINY);
    for ((m, n, k), constant) in
        [(8, 8, 8), (3, 37, 5), (2, 7, 1)].into_iter().flat_map(|dims| [(dims, false), (dims, true)])
    {
        let product = MatMul::builder(m, n, k)
            .batch(3)
            .constant(constant)
            .leading_dimension(crate::Operand::A, k + 2)
            .leading_dimension(crate::Operand::C, n + 3)
            .batch_stride(crate::Operand::C, m * (n + 3) + 5)
            .build()
            .unwrap();
        let mut random = Random::new((m * n + k) as u64);
        let mut draw = |count: usize| -> Vec<f32> {
            (0..count).map(|_| f32::from(u8::try_from(random.below(200)).unwrap()) / 7.0 - 9.0).collect()
        };
        let (a, b) = (draw(product.a().span()), draw(product.b().span()));
        let b_view = TensorView::with_layout(&b, *product.b()).unwrap();
        let weights = constant.then(|| Weights::new(b_view).unwrap());
        let run = |threads: usize, plain: bool| {
            let mut c = vec![f32::NAN; product.c().span()];
            let mut run = compile(&cpu, &product, weights.as_ref(), threads).open(0).unwrap();
            if plain {
                assert!(run.is_plain());
                // SAFETY: it is plain, and the operands have the elements of the description.
                unsafe { run.run_plain(&a, (!constant).then_some(&b), &mut c) };
            } else {
                let args = RunArgs {
                    m,
                    a: TensorView::with_layout(&a, *product.a()).unwrap().into(),
                    b: (!constant).then_some(b_view.into()),
                    bias: None,
                    residual: None,
                    c: TensorViewMut::with_layout(&mut c, *product.c()).unwrap().into(),
                };
                run.run(args).unwrap();
            }
            c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let mut expected = vec![f32::NAN; product.c().span()];
        for (item, row, span) in product.c().row_spans() {
            for (col, c) in expected[span].iter_mut().enumerate() {
                let a = &a[product.a().item_offset(item) + row * (k + 2)..];
                *c = (0..k).fold(0.0, |sum, p| a[p].mul_add(b[(item * k + p) * n + col], sum));
            }
        }
        let expected: Vec<_> = expected.into_iter().map(f32::to_bits).collect();
        if cpu.isa != Isa::Portable {
            assert_eq!(run(1, true), expected, "{product}");
        }
        assert_eq!(run(1, true), run(1, false), "{product}");
        assert_eq!(run(1, true), run(3, false), "{product}");
    }
}

#[test]
fn a_compiled_product_tells_what_it_holds() {
    let cpu = cpu(best(), TINY);
    assert_eq!(cpu.device().0, Device::Cpu);
    assert!(cpu.describe().contains(cpu.isa.name()));
    let weights = Weights::from_tensor(Tensor::filled(8, 40, 1f32).unwrap());
    let product = MatMul::builder(3, 40, 8).constant(true).build().unwrap();
    let info = compile_for(&cpu, &product, Some(&weights), &CompileOptions::default(), 2).info();
    let (_, packed) = info.shared[0].unwrap();
    assert!(packed >= 8 * 40 * 4 && info.bytes_held > packed);
    assert_eq!(info.threads, Some(2));
    // What is bound by the reading of A, or reads nothing, packs nothing.
    for (n, k) in [(1, 8), (40, 0)] {
        let weights = Weights::from_tensor(Tensor::filled(k, n, 1f32).unwrap());
        let product = MatMul::builder(3, n, k).constant(true).build().unwrap();
        let compiled = compile_for(&cpu, &product, Some(&weights), &CompileOptions::default(), 1);
        assert!(compiled.info().shared == [None; 2]);
    }
}

#[test]
fn every_part_of_c_has_its_own_epilogue() {
    let cpu = cpu(best(), TINY);
    let dims = if cfg!(miri) {
        &[(5, 3, 4), (1, 20, 5), (20, 1, 5), (4, 7, 0)][..]
    } else {
        &[(5, 3, 4), (70, 70, 40), (37, 200, 40), (1, 300, 50), (300, 1, 50), (40, 70, 0)]
    };
    for ((m, n, k), (constant_b, threads)) in dims
        .iter()
        .copied()
        .flat_map(|dims| [(false, 1), (true, 1), (false, 3), (true, 3)].map(|how| (dims, how)))
    {
        let product = MatMul::builder(m, n, k)
            .batch(2)
            .alpha(2.0)
            .bias(true)
            .residual(true)
            .activation(Activation::Relu)
            .constant(constant_b)
            .leading_dimension(crate::Operand::C, n + 3)
            .leading_dimension(crate::Operand::Residual, n + 5)
            .build()
            .unwrap();
        let mut random = Random::new((m * n + k) as u64);
        let mut draw = |count: usize| -> Vec<f32> {
            (0..count).map(|_| f32::from(u8::try_from(random.below(9)).unwrap()) - 4.0).collect()
        };
        let residual_layout = *product.residual().unwrap();
        let (a, b, bias) = (draw(product.a().span()), draw(product.b().span()), draw(n));
        let residual = draw(residual_layout.span());
        let b_view = TensorView::with_layout(&b, *product.b()).unwrap();
        let weights = constant_b.then(|| Weights::new(b_view).unwrap());
        let mut c = vec![f32::NAN; product.c().span()];
        let args = RunArgs {
            m,
            a: TensorView::with_layout(&a, *product.a()).unwrap().into(),
            b: (!constant_b).then_some(b_view.into()),
            bias: Some(TensorView::new(&bias, 1, n).unwrap().into()),
            residual: Some(TensorView::with_layout(&residual, residual_layout).unwrap().into()),
            c: TensorViewMut::with_layout(&mut c, *product.c()).unwrap().into(),
        };
        compile(&cpu, &product, weights.as_ref(), threads).open(0).unwrap().run(args).unwrap();
        for (item, row, span) in product.c().row_spans() {
            for (col, got) in c[span].iter().enumerate() {
                let sum: f32 =
                    (0..k).map(|p| a[(item * m + row) * k + p] * b[(item * k + p) * n + col]).sum();
                let residual = residual[residual_layout.item_offset(item) + row * (n + 5) + col];
                let expected = (2.0 * sum + bias[col] + residual).max(0.0);
                assert_eq!(*got, expected, "{product} on {threads} threads: {item}, {row}, {col}");
            }
        }
    }
}

#[test]
fn a_run_keeps_nothing_of_the_last_one() {
    let (m, n, k) = (5, 96, 40);
    let b = QuantB::PerColumn { zero_point: 0 };
    let scales = vec![0.5f32; n];
    let weights = Tensor::from_fn(k, n, |row, col| i8::try_from((row * 7 + col * 3) % 100).unwrap()).unwrap();
    let weights = Weights::new(&weights).unwrap().with_scales(b, &scales).unwrap();
    let [first, second] = [1, 2].map(|seed| Tensor::random_normal_f32(m, k, 1.0, seed).unwrap());
    let weight_only = (ElementTypes { b: ElementType::I8, ..ElementTypes::F32 }, QuantA::None);
    let quantised = (ElementTypes { a: ElementType::F32, ..ElementTypes::INT8 }, QuantA::DynamicPerRow);
    for (isa, (types, a)) in Isa::available().flat_map(|isa| [(isa, weight_only), (isa, quantised)]) {
        let quantization = Quantization { a, b, ..Quantization::default() };
        let product = MatMul::builder(m, n, k).types(types).quantization(quantization).constant(true);
        let product = product.build().unwrap();
        for threads in if cfg!(miri) { 1..=1 } else { 1..=3 } {
            let cpu = cpu(isa, TINY);
            let compiled = compile(&cpu, &product, Some(&weights), threads);
            let run = |context: &mut dyn crate::backend::Run, a: &Tensor<f32>| {
                let mut c = Tensor::filled(m, n, f32::NAN).unwrap();
                let args =
                    RunArgs { m, a: a.into(), b: None, bias: None, residual: None, c: c.view_mut().into() };
                context.run(args).unwrap();
                c.into_vec()
            };
            let mut used = compiled.open(0).unwrap();
            run(used.as_mut(), &first);
            let expected = run(compiled.open(0).unwrap().as_mut(), &second);
            assert_eq!(run(used.as_mut(), &second), expected, "{}: {product} on {threads}", isa.name());
        }
    }
}
