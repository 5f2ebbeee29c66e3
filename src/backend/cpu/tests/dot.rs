//! Products by dot-product instructions beside the same by plain Rust.

use super::super::blocking::Caches;
use super::super::isa::{Dot, Isa};
use super::super::plan::Algorithm;
use crate::backend::{CompiledProduct, RunArgs};
use crate::description::element::ElementType;
use crate::description::matmul::{ElementTypes, MatMul};
use crate::description::options::{CompileOptions, Threads};
use crate::description::quantization::{QuantA, QuantB, Quantization};
use crate::operands::tensor::Tensor;
use crate::operands::view::{AnyView, AnyViewMut, TensorView, TensorViewMut};
use crate::operands::weights::Weights;
use crate::random::Random;

/// m, n, k: every kind of tile, words that are cut short, several blocks of k.
const SHAPES: [[usize; 3]; 10] = [
    [1, 1, 1],
    [1, 129, 5],
    [3, 130, 64],
    [14, 32, 4],
    [15, 33, 7],
    [29, 47, 31],
    [57, 65, 130],
    [6, 64, 1027],
    [2, 200, 4096],
    [60, 40, 3001],
];

fn bytes(random: &mut Random, count: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..count).map(|_| random.bits().to_le_bytes()[3]).collect();
    // The ends of the range are there.
    for (i, byte) in bytes.iter_mut().enumerate().take(4) {
        *byte = [0x80, 0x7f, 0xff, 0][i];
    }
    bytes
}

fn signed(bytes: &[u8]) -> Vec<i8> {
    bytes.iter().map(|x| x.cast_signed()).collect()
}

fn run(compiled: &dyn CompiledProduct, m: usize, a: AnyView<'_>, c: AnyViewMut<'_>) {
    compiled.open(0).unwrap().run(RunArgs { m, a, b: None, bias: None, residual: None, c }).unwrap();
}

/// The kernels of this machine that are asked for; where there are none, that is said.
fn kernels(wanted: fn(Dot) -> bool) -> Vec<(Isa, Dot)> {
    let of = |isa: Isa| {
        Dot::ALL.into_iter().filter(move |dot| wanted(*dot) && isa.has(*dot)).map(move |dot| (isa, dot))
    };
    let kernels: Vec<_> = Isa::available().flat_map(of).collect();
    if kernels.is_empty() {
        println!("not run: needs AVX-512 BF16 for bf16; for integers AVX2, or the dotprod of ARM");
    }
    kernels
}

/// Compiles for dot products and for plain f32.
fn both(
    (isa, dot): (Isa, Dot),
    product: &MatMul,
    weights: &Weights,
    options: &CompileOptions,
) -> [Box<dyn CompiledProduct>; 2] {
    let cpu = super::cpu(isa, Caches { l1_bytes: 1 << 15, l2_bytes: 1 << 19 });
    let first = if dot.of_integers() { isa.int8().unwrap() } else { dot };
    assert_eq!(cpu.algorithm(product, Some(weights)), Algorithm::Dot(first));
    let threads = super::worthwhile_threads(super::work_ns(product, 4), options.threads.number());
    let compile = |algorithm| -> Box<dyn CompiledProduct> {
        Box::new(cpu.compile_for(algorithm, product, Some(weights), options, threads).unwrap())
    };
    [compile(Algorithm::Dot(dot)), compile(Algorithm::Upcast)]
}

#[test]
fn integers_are_exact_whatever_their_signs_zero_points_and_threads() {
    for kernels in kernels(Dot::of_integers) {
        let mut random = Random::new(7);
        for ([m, n, k], a_type) in
            SHAPES.into_iter().flat_map(|s| [(s, ElementType::I8), (s, ElementType::U8)])
        {
            let (a, b) = (bytes(&mut random, m * k), bytes(&mut random, n * k));
            for (zero_a, zero_b) in [(0, 0), (if a_type == ElementType::U8 { 255 } else { -128 }, 127)] {
                let quantization = Quantization {
                    a: QuantA::Static { scale: 0.25, zero_point: zero_a },
                    b: QuantB::PerColumn { zero_point: zero_b },
                    ..Quantization::default()
                };
                let types = ElementTypes { a: a_type, ..ElementTypes::INT8 };
                for (transpose, threads) in [(false, 1), (true, 3)] {
                    let product = MatMul::builder(m, n, k)
                        .types(types)
                        .quantization(quantization)
                        .transpose_b(transpose)
                        .constant(true)
                        .build()
                        .unwrap();
                    let scales: Vec<f32> = (0..n).map(|col| 0.5 + (col % 7) as f32).collect();
                    let b = signed(&b);
                    let (rows, cols) = if transpose { (n, k) } else { (k, n) };
                    let mut weights = Weights::new(TensorView::new(&b, rows, cols).unwrap()).unwrap();
                    if transpose {
                        weights = weights.transposed().unwrap();
                    }
                    let weights = weights.with_scales(quantization.b, &scales).unwrap();
                    let options = CompileOptions::default().threads(Threads::count(threads).unwrap());
                    let compiled = both(kernels, &product, &weights, &options);
                    let results = compiled.map(|compiled| {
                        let mut c = Tensor::filled(m, n, f32::NAN).unwrap();
                        let signed = signed(&a);
                        let a: AnyView<'_> = if a_type == ElementType::U8 {
                            TensorView::new(&a, m, k).unwrap().into()
                        } else {
                            TensorView::new(&signed, m, k).unwrap().into()
                        };
                        run(compiled.as_ref(), m, a, c.view_mut().into());
                        c.into_vec()
                    });
                    assert_eq!(results[0], results[1], "{product}, zero points {zero_a} and {zero_b}");
                }
            }
        }
    }
}

#[test]
fn sums_of_integers_are_the_whole_of_32_bits() {
    for kernels in kernels(Dot::of_integers) {
        // As many products of -128 and -128 as i32 holds.
        let k = 131_071;
        let (m, n) = (2, 3);
        let product = MatMul::builder(m, n, k)
            .types(ElementTypes { output: ElementType::I32, ..ElementTypes::INT8 })
            .constant(true)
            .build()
            .unwrap();
        let (a, b) = (vec![-128i8; m * k], vec![-128i8; k * n]);
        let weights = Weights::new(TensorView::new(&b, k, n).unwrap()).unwrap();
        let [by_dot, _] = both(kernels, &product, &weights, &CompileOptions::default());
        let mut c = vec![0i32; m * n];
        let view = TensorViewMut::new(&mut c, m, n).unwrap();
        run(by_dot.as_ref(), m, TensorView::new(&a, m, k).unwrap().into(), view.into());
        assert_eq!(c, vec![131_071 * 16_384; m * n]);
    }
}

#[test]
fn rows_quantised_on_the_way_are_those_of_plain_rust() {
    for kernels in kernels(Dot::of_integers) {
        for [m, n, k] in SHAPES {
            let quantization = Quantization {
                a: QuantA::DynamicPerRow,
                b: QuantB::PerColumn { zero_point: 3 },
                ..Quantization::default()
            };
            let product = MatMul::builder(m, n, k)
                .types(ElementTypes { a: ElementType::F32, ..ElementTypes::INT8 })
                .quantization(quantization)
                .constant(true)
                .build()
                .unwrap();
            let b = signed(&bytes(&mut Random::new(3), n * k));
            let scales = vec![0.125f32; n];
            let weights = Weights::new(TensorView::new(&b, k, n).unwrap())
                .unwrap()
                .with_scales(quantization.b, &scales)
                .unwrap();
            let mut a = Tensor::random_normal_f32(m, k, 3.0, 5).unwrap();
            if m > 2 {
                a.data_mut()[k] = f32::INFINITY;
                a.data_mut()[2 * k..3 * k].fill(0.0);
            }
            let compiled = both(kernels, &product, &weights, &CompileOptions::default());
            let [by_dot, plain] = compiled.map(|compiled| {
                let mut c = Tensor::filled(m, n, 7f32).unwrap();
                run(compiled.as_ref(), m, a.view().into(), c.view_mut().into());
                c.into_vec().into_iter().map(|x| if x.is_nan() { None } else { Some(x) }).collect::<Vec<_>>()
            });
            assert_eq!(by_dot, plain, "{product}");
            if m > 2 {
                assert!(by_dot[n..2 * n].iter().all(Option::is_none) && by_dot[2 * n] == Some(0.0));
            }
        }
    }
}

#[cfg(feature = "half")]
#[test]
fn bf16_integers_are_exact_and_subnormals_are_not_lost() {
    use half::bf16;
    for kernels in kernels(|dot| !dot.of_integers()) {
        for ([m, n, k], output) in
            SHAPES.into_iter().flat_map(|shape| [(shape, ElementType::F32), (shape, ElementType::Bf16)])
        {
            let product = MatMul::builder(m, n, k)
                .types(ElementTypes { output, ..ElementTypes::BF16 })
                .constant(true)
                .alpha(0.5)
                .build()
                .unwrap();
            let small = |seed, count| {
                let mut random = Random::new(seed);
                (0..count).map(|_| bf16::from_f32((random.bits() % 7) as f32 - 3.0)).collect::<Vec<_>>()
            };
            let (mut a, b) = (small(1, m * k), small(2, k * n));
            let weights = Weights::new(TensorView::new(&b, k, n).unwrap()).unwrap();
            let compiled = both(kernels, &product, &weights, &CompileOptions::default());
            for subnormal in [false, true] {
                if subnormal {
                    a[0] = bf16::from_bits(1);
                }
                let [by_dot, plain] = compiled.each_ref().map(|compiled| {
                    let a = TensorView::new(&a, m, k).unwrap().into();
                    if output == ElementType::F32 {
                        let mut c = Tensor::filled(m, n, f32::NAN).unwrap();
                        run(compiled.as_ref(), m, a, c.view_mut().into());
                        c.into_vec()
                    } else {
                        let mut c = vec![bf16::NAN; m * n];
                        run(compiled.as_ref(), m, a, TensorViewMut::new(&mut c, m, n).unwrap().into());
                        c.into_iter().map(bf16::to_f32).collect()
                    }
                });
                assert_eq!(by_dot, plain, "{product}, a subnormal: {subnormal}");
            }
        }
    }
}

/// Shares of rows and of columns find their own part of C, the bias and the residual.
#[test]
fn shares_add_the_part_of_bias_and_residual_that_is_theirs() {
    const K: usize = 260;
    for kernels in kernels(Dot::of_integers) {
        for (m, n) in [(1500, 33), (40, 2001)] {
            let mut random = Random::new(11);
            let (a, b) = (signed(&bytes(&mut random, m * K)), signed(&bytes(&mut random, K * n)));
            let bias = Tensor::from_fn(1, n, |_, col| col as f32).unwrap();
            let residual = Tensor::from_fn(m, n, |row, col| (row * n + col) as f32).unwrap();
            let product = MatMul::builder(m, n, K)
                .types(ElementTypes::INT8)
                .constant(true)
                .bias(true)
                .residual(true)
                .build()
                .unwrap();
            let weights = Weights::new(TensorView::new(&b, K, n).unwrap()).unwrap();
            let options = CompileOptions::default().threads(Threads::count(3).unwrap());
            let compiled = both(kernels, &product, &weights, &options);
            assert_eq!(compiled[0].info().threads, Some(3), "the product is worth threads");
            let [by_dot, plain] = compiled.map(|compiled| {
                let mut c = Tensor::filled(m, n, f32::NAN).unwrap();
                let args = RunArgs {
                    m,
                    a: TensorView::new(&a, m, K).unwrap().into(),
                    b: None,
                    bias: Some(bias.view().into()),
                    residual: Some(residual.view().into()),
                    c: c.view_mut().into(),
                };
                compiled.open(0).unwrap().run(args).unwrap();
                c.into_vec()
            });
            assert!(by_dot == plain, "{product}: the part of another share");
        }
    }
}

/// Read as it lies, transposed or not, by one thread or by several: what a constant B gives.
#[cfg(feature = "half")]
#[test]
fn a_row_by_a_dynamic_b_of_16_bits_is_that_by_a_constant_one() {
    use half::f16;
    let small = |seed, count| {
        let mut random = Random::new(seed);
        (0..count).map(|_| f16::from_f32((random.bits() % 7) as f32 - 3.0)).collect::<Vec<_>>()
    };
    for isa in Isa::available() {
        let cpu = super::cpu(isa, Caches { l1_bytes: 1 << 15, l2_bytes: 1 << 19 });
        for ([n, k], transpose, threads) in [
            ([1, 1], false, 1),
            ([37, 9], false, 1),
            ([37, 29], true, 1),
            ([2100, 70], false, 3),
            ([130, 70], true, 3),
        ] {
            let types = ElementTypes { output: ElementType::F32, ..ElementTypes::F16 };
            let builder = MatMul::builder(1, n, k).types(types).transpose_b(transpose);
            let (a, b) = (small(1, k), small(2, k * n));
            let (rows, cols) = if transpose { (n, k) } else { (k, n) };
            let b = TensorView::new(&b, rows, cols).unwrap();
            let mut weights = Weights::new(b).unwrap();
            if transpose {
                weights = weights.transposed().unwrap();
            }
            let results = [None, Some(&weights)].map(|weights| {
                let product = builder.clone().constant(weights.is_some()).build().unwrap();
                let options = CompileOptions::default().threads(Threads::count(threads).unwrap());
                let compiled =
                    cpu.compile_for(Algorithm::Upcast, &product, weights, &options, threads).unwrap();
                let mut c = vec![f32::NAN; n];
                let args = RunArgs {
                    m: 1,
                    a: TensorView::new(&a, 1, k).unwrap().into(),
                    b: weights.is_none().then(|| b.into()),
                    bias: None,
                    residual: None,
                    c: TensorViewMut::new(&mut c, 1, n).unwrap().into(),
                };
                compiled.open(0).unwrap().run(args).unwrap();
                c
            });
            assert_eq!(results[0], results[1], "{}: {n} x {k}, transposed: {transpose}", isa.name());
        }
    }
}
