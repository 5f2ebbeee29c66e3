//! Batches whose items share one B.

use super::super::Cpu;
use crate::backend::{BackendId, CompiledProduct, RunArgs};
use crate::description::activation::Activation;
use crate::description::layout::Layout;
use crate::description::matmul::{ElementTypes, MatMul};
use crate::description::options::{CompileOptions, Threads};
use crate::description::quantization::QuantB;
use crate::error::Operand;
use crate::operands::tensor::Tensor;
use crate::operands::view::{AnyView, TensorView, TensorViewMut};
use crate::operands::weights::Weights;
use crate::random::Random;

const BATCH: usize = 3;

/// How the items of A lie, and whether they are rows of one product then.
#[derive(Debug, Clone, Copy)]
enum Items {
    Adjacent,
    Apart,
    Transposed,
}

/// Small integers of both types.
fn numbers(random: &mut Random, count: usize) -> (Vec<f32>, Vec<i8>) {
    let integers: Vec<i8> = (0..count).map(|_| i8::try_from(random.below(9)).unwrap() - 4).collect();
    (integers.iter().map(|&x| x.into()).collect(), integers)
}

fn view((floats, integers): &(Vec<f32>, Vec<i8>), layout: Layout, as_integers: bool) -> AnyView<'_> {
    if as_integers {
        TensorView::with_layout(integers, layout).unwrap().into()
    } else {
        TensorView::with_layout(floats, layout).unwrap().into()
    }
}

fn check([m, n, k]: [usize; 3], items: Items, integers: bool, constant_b: bool, threads: usize) {
    let transposed = matches!(items, Items::Transposed);
    let gap = if matches!(items, Items::Apart) { k + 3 } else { 0 };
    let product = MatMul::builder(m, n, k)
        .batch(BATCH)
        .types(if integers { ElementTypes::INT8 } else { ElementTypes::F32 })
        .transpose_a(transposed)
        .constant(constant_b)
        .batch_stride(Operand::A, m * k + gap)
        .batch_stride(Operand::B, 0)
        .leading_dimension(Operand::C, n + 2)
        .leading_dimension(Operand::Residual, n + 1)
        .bias(true)
        .residual(true)
        .activation(Activation::Relu)
        .build()
        .unwrap();
    let what = format!("{product}, {items:?}, integers: {integers}, {threads} threads");
    let mut random = Random::new(5);
    let (a, b) = (numbers(&mut random, product.a().span()), numbers(&mut random, k * n));
    let bias = numbers(&mut random, n).0;
    let residual_layout = *product.residual().unwrap();
    let residual = numbers(&mut random, residual_layout.span()).0;
    let weights =
        constant_b.then(|| Weights::new(view(&b, Layout::packed(1, k, n).unwrap(), integers)).unwrap());
    let options = CompileOptions::default().threads(Threads::count(threads).unwrap());
    let compiled = Cpu::new().unwrap().compile_product(&product, weights.as_ref(), &options).unwrap();
    let folded = m == 1 || matches!(items, Items::Adjacent);
    assert_eq!(compiled.0.product.batch(), if folded && !transposed { 1 } else { BATCH }, "{what}");
    let mut c = vec![f32::NAN; product.c().span()];
    let args = RunArgs {
        m,
        a: view(&a, *product.a(), integers),
        b: (!constant_b).then(|| view(&b, *product.b(), integers)),
        bias: Some(TensorView::new(&bias, 1, n).unwrap().into()),
        residual: Some(TensorView::with_layout(&residual, residual_layout).unwrap().into()),
        c: TensorViewMut::with_layout(&mut c, *product.c()).unwrap().into(),
    };
    compiled.open(0).unwrap().run(args).unwrap();
    for (item, row, span) in product.c().row_spans() {
        for (col, got) in c[span].iter().enumerate() {
            let of_a = |p: usize| if transposed { p * m + row } else { row * k + p };
            let sum: f32 =
                (0..k).map(|p| a.0[product.a().item_offset(item) + of_a(p)] * b.0[p * n + col]).sum();
            let residual = residual[residual_layout.item_offset(item) + row * (n + 1) + col];
            assert_eq!(*got, (sum + bias[col] + residual).max(0.0), "{what}: {item}, {row}, {col}");
        }
    }
}

#[test]
fn items_that_share_b_are_rows_of_one_product_or_read_it_in_turn() {
    let dims =
        if cfg!(miri) { &[[1, 5, 3], [5, 7, 9]][..] } else { &[[1, 70, 40], [5, 130, 67], [33, 40, 9]] };
    for &dims in dims {
        for items in [Items::Adjacent, Items::Apart, Items::Transposed] {
            for bits in 0..8 {
                let threads = if bits & 4 != 0 { 3 } else { 1 };
                check(dims, items, bits & 1 != 0, bits & 2 != 0, threads);
            }
        }
    }
}

#[test]
fn items_with_scales_of_their_own_stay_apart() {
    let ones = [1i8; 6];
    let shared = Layout::strided(BATCH, 2, 2, 2, 0).unwrap();
    let scales = Tensor::from_fn_batched(BATCH, 1, 1, |item, _, _| (1 + item) as f32).unwrap();
    let weights = Weights::new(TensorView::with_layout(&ones[..4], shared).unwrap())
        .and_then(|weights| weights.with_scales(QuantB::PerTensor { zero_point: 0 }, &scales))
        .unwrap();
    let product = MatMul::builder(1, 2, 2).batch(BATCH).types(ElementTypes::INT8).with_weights(&weights);
    let compiled = product.unwrap().compile(&BackendId::CPU).unwrap();
    let a = TensorView::with_layout(&ones, Layout::packed(BATCH, 1, 2).unwrap()).unwrap();
    assert_eq!(compiled.run_to_tensor(a).unwrap().data(), [2.0, 2.0, 4.0, 4.0, 6.0, 6.0]);
}
