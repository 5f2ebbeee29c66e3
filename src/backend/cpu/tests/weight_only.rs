//! Every kernel of this machine, over groups, tiles and panels that are not whole.

use super::super::Cpu;
use super::super::blocking::Caches;
use super::super::isa::Isa;
use super::super::plan::Algorithm;
use crate::backend::{Backend as _, RunArgs};
use crate::description::options::{CompileOptions, Threads};
use crate::description::quantization::{NibbleOrder, QuantB, Quantization};
use crate::operands::int4::pack;
use crate::operands::view::TensorViewMut;
use crate::random::Random;
use crate::{ElementType, ElementTypes, Int4View, Layout, MatMul, Tensor, Weights};

const CACHES: Caches = Caches { l1_bytes: 1 << 15, l2_bytes: 1 << 19 };

/// The same product on the plain path and on every kernel: sums in another order, so nearly equal.
#[test]
fn every_kernel_agrees_with_the_plain_path_on_any_number_of_threads() {
    let shapes = if cfg!(miri) {
        vec![(3, 5, 17, 16)]
    } else {
        vec![
            (1, 1, 1, 128),
            (1, 33, 257, 128),
            (2, 16, 128, 32),
            (5, 17, 130, 16),
            (16, 40, 300, 128),
            (71, 35, 65, 17),
            // The last group ends within a word, where other rows have left numbers.
            (101, 9, 17, 16),
        ]
    };
    for isa in Isa::available() {
        let cpu = super::cpu(isa, CACHES);
        for &(m, n, k, group_size) in &shapes {
            for (b, zero_point) in [
                (ElementType::I8, 0),
                (ElementType::U8, 128),
                (ElementType::I4, 0),
                (ElementType::U4, 8),
                (ElementType::U4, 3),
            ] {
                check(&cpu, (m, n, k), b, QuantB::PerGroup { group_size, zero_point });
            }
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "f32 numbers are wanted")]
fn check(cpu: &Cpu, (m, n, k): (usize, usize, usize), b: ElementType, scheme: QuantB) {
    let types = ElementTypes { b, ..ElementTypes::F32 };
    let product = MatMul::builder(m, n, k)
        .types(types)
        .constant(true)
        .alpha(0.5)
        .quantization(Quantization { b: scheme, ..Quantization::default() })
        .build()
        .unwrap();
    assert_eq!(Algorithm::of(&product, cpu.isa), Algorithm::WeightOnly);
    assert!(cpu.supports(&product, &CompileOptions::default()).is_ok());
    let mut random = Random::new((m * 7 + n * 3 + k) as u64);
    let a = Tensor::from_fn(m, k, |_, _| random.normal() as f32).unwrap();
    let bytes: Vec<u8> = (0..n * k).map(|_| random.below(256) as u8).collect();
    let signed: Vec<i8> = bytes.iter().map(|x| x.cast_signed()).collect();
    let layout = Layout::packed(1, k, n).unwrap();
    let mut nibbles = Vec::new();
    pack(signed.iter().copied(), NibbleOrder::LowFirst, &mut nibbles);
    let weights = match b {
        ElementType::I8 => Weights::new(&Tensor::from_vec(signed, k, n).unwrap()),
        ElementType::U8 => Weights::new(&Tensor::from_vec(bytes, k, n).unwrap()),
        ElementType::I4 => Weights::new(Int4View::signed(&nibbles, layout, NibbleOrder::LowFirst).unwrap()),
        _ => Weights::new(Int4View::unsigned(&nibbles, layout, NibbleOrder::LowFirst).unwrap()),
    };
    let (rows, cols) = crate::description::scales::shape_of_b(scheme, n, k).unwrap();
    let scales = Tensor::from_fn(rows, cols, |_, _| 0.01 + random.normal().abs() as f32).unwrap();
    let weights = weights.unwrap().with_scales(scheme, &scales).unwrap();

    let run = |compiled: &dyn crate::backend::CompiledProduct| {
        let mut c = vec![f32::NAN; m * n];
        let view = TensorViewMut::new(&mut c, m, n).unwrap();
        let args = RunArgs { m, a: (&a).into(), b: None, bias: None, residual: None, c: view.into() };
        compiled.open(0).unwrap().run(args).unwrap();
        c
    };
    let options = CompileOptions::default().threads(Threads::ONE);
    let expected = run(&cpu.compile_for(Algorithm::Upcast, &product, Some(&weights), &options, 1).unwrap());
    let got = run(&super::compile_for(cpu, &product, Some(&weights), &options, 1));
    // What the float64 reference holds them to is tested elsewhere: here a slip shows.
    let size = expected.iter().fold(1f32, |size, x| size.max(x.abs()));
    for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert!(
            (got - expected).abs() <= 1e-5 * size,
            "{}: {product} {scheme:?}: {got} instead of {expected} at {index}",
            cpu.isa.name()
        );
    }
    // Pools of threads take an interpreter long.
    let counts: &[usize] = if cfg!(miri) { &[] } else { &[2, 3] };
    for &threads in counts {
        let options = CompileOptions::default().threads(Threads::count(threads).unwrap());
        let shared = run(&super::compile_for(cpu, &product, Some(&weights), &options, threads));
        assert_eq!(got, shared, "{}: {product} on {threads} threads", cpu.isa.name());
    }
}
