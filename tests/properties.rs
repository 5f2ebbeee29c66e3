//! Algebraic properties on random shapes. Small integers make every comparison exact.

#[path = "support/draws.rs"]
mod draws;

use ane_matmul::{
    BackendId, CompileOptions, Inputs, Layout, MatMul, Operand, Tensor, TensorView, TensorViewMut, Threads,
};
use draws::draws;
use fastrand::Rng;
use proptest::prelude::*;

fn integers(rows: usize, cols: usize, seed: u64) -> Tensor<f32> {
    let mut random = Rng::with_seed(seed);
    Tensor::from_fn(rows, cols, |_, _| f32::from(random.i8(-4..=4))).unwrap()
}

fn multiply(a: &Tensor<f32>, b: &Tensor<f32>) -> Tensor<f32> {
    run(&MatMul::new(a.rows(), b.cols(), a.cols()).unwrap(), a, b)
}

fn run(product: &MatMul, a: &Tensor<f32>, b: &Tensor<f32>) -> Tensor<f32> {
    let options = CompileOptions::default().threads(Threads::count(2).unwrap());
    let compiled = product.compile_with(&BackendId::CPU, &options).unwrap();
    compiled.run_to_tensor(Inputs::new(a).b(b)).unwrap()
}

proptest! {
    #![proptest_config(draws(64, 500))]

    #[test]
    fn transpose_of_a_product((m, n, k) in (0..60usize, 0..60usize, 0..60usize), seed: u64) {
        let (a, b) = (integers(m, k, seed), integers(k, n, seed ^ 1));
        let ab_t = multiply(&a, &b).transposed().unwrap();
        let bt_at = multiply(&b.transposed().unwrap(), &a.transposed().unwrap());
        prop_assert_eq!(ab_t, bt_at);
    }

    #[test]
    fn described_transposes_equal_explicit_ones((m, n, k) in (0..60usize, 0..60usize, 0..60usize), bits in 0..4u8, seed: u64) {
        let (a, b) = (integers(m, k, seed), integers(k, n, seed ^ 1));
        let (ta, tb) = (bits & 1 != 0, bits & 2 != 0);
        let product = MatMul::builder(m, n, k).transpose_a(ta).transpose_b(tb).build().unwrap();
        let stored_a = if ta { a.transposed().unwrap() } else { a.clone() };
        let stored_b = if tb { b.transposed().unwrap() } else { b.clone() };
        prop_assert_eq!(run(&product, &stored_a, &stored_b), multiply(&a, &b));
    }

    #[test]
    fn products_are_linear((m, n, k) in (1..40usize, 1..40usize, 0..40usize), seed: u64) {
        let (a1, a2, b) = (integers(m, k, seed), integers(m, k, seed ^ 1), integers(k, n, seed ^ 2));
        let sum = Tensor::from_fn(m, k, |r, c| 2.0 * a1.data()[r * k + c] + a2.data()[r * k + c]).unwrap();
        let (p1, p2) = (multiply(&a1, &b), multiply(&a2, &b));
        let expected = Tensor::from_fn(m, n, |r, c| 2.0 * p1.data()[r * n + c] + p2.data()[r * n + c]).unwrap();
        prop_assert_eq!(multiply(&sum, &b), expected);
    }

    #[test]
    fn a_batch_equals_a_loop(batch in 1..6usize, (m, n, k) in (1..30usize, 1..30usize, 1..30usize), shared in any::<bool>(), seed: u64) {
        let a = integers(batch * m, k, seed);
        let b = integers(if shared { k } else { batch * k }, n, seed ^ 1);
        let stride = if shared { 0 } else { k * n };
        let product = MatMul::builder(m, n, k).batch(batch).batch_stride(Operand::B, stride).build().unwrap();
        let compiled = product.compile(&BackendId::CPU).unwrap();
        let mut c = Tensor::<f32>::zeros_batched(batch, m, n).unwrap();
        let a_view = TensorView::with_layout(a.data(), Layout::packed(batch, m, k).unwrap()).unwrap();
        let b_view = TensorView::with_layout(b.data(), Layout::strided(batch, k, n, n, stride).unwrap()).unwrap();
        compiled.executor().unwrap().run(Inputs::new(a_view).b(b_view), &mut c).unwrap();
        for item in 0..batch {
            let a = Tensor::from_vec(a.data()[item * m * k..][..m * k].to_vec(), m, k).unwrap();
            let b = Tensor::from_vec(b.data()[item * stride..][..k * n].to_vec(), k, n).unwrap();
            let expected = multiply(&a, &b);
            prop_assert_eq!(&c.data()[item * m * n..][..m * n], expected.data());
        }
    }

    #[test]
    fn strided_equals_packed((m, n, k) in (1..40usize, 1..40usize, 1..40usize), gaps in [0..9usize, 0..9usize, 0..9usize], seed: u64) {
        let (a, b) = (integers(m, k, seed), integers(k, n, seed ^ 1));
        let spread = |tensor: &Tensor<f32>, gap: usize| {
            let ld = tensor.cols() + gap;
            let mut data = vec![f32::NAN; tensor.rows() * ld];
            for (row, source) in data.chunks_mut(ld).zip(tensor.data().chunks(tensor.cols())) {
                row[..source.len()].copy_from_slice(source);
            }
            (data, Layout::strided(1, tensor.rows(), tensor.cols(), ld, 0).unwrap())
        };
        let (a_data, a_layout) = spread(&a, gaps[0]);
        let (b_data, b_layout) = spread(&b, gaps[1]);
        let ldc = n + gaps[2];
        let product = MatMul::builder(m, n, k)
            .leading_dimension(Operand::A, a_layout.leading_dimension())
            .leading_dimension(Operand::B, b_layout.leading_dimension())
            .leading_dimension(Operand::C, ldc)
            .build()
            .unwrap();
        let mut c = vec![f32::NAN; m * ldc];
        let c_layout = Layout::strided(1, m, n, ldc, 0).unwrap();
        let compiled = product.compile(&BackendId::CPU).unwrap();
        let inputs = Inputs::new(TensorView::with_layout(&a_data, a_layout).unwrap())
            .b(TensorView::with_layout(&b_data, b_layout).unwrap());
        compiled.executor().unwrap().run(inputs, TensorViewMut::with_layout(&mut c, c_layout).unwrap()).unwrap();
        let got = Tensor::from_view(TensorView::with_layout(&c, c_layout).unwrap()).unwrap();
        prop_assert_eq!(got, multiply(&a, &b));
    }

    /// Every combination of fields either builds or is an error; none panics.
    #[test]
    fn any_description_builds_or_is_an_error(fields in any::<[usize; 8]>(), shifts in any::<[u8; 8]>(), flags: u8, alpha: f32) {
        let x = |i: usize| fields[i] >> (shifts[i] % 64);
        let result = MatMul::builder(x(0), x(1), x(2))
            .batch(x(3))
            .transpose_a(flags & 1 != 0)
            .transpose_b(flags & 2 != 0)
            .residual(flags & 4 != 0)
            .bias(flags & 8 != 0)
            .leading_dimension(Operand::A, x(4))
            .batch_stride(Operand::B, x(5))
            .batch_stride(Operand::C, x(6))
            .leading_dimension(Operand::Residual, x(7))
            .alpha(alpha)
            .build();
        if let Ok(product) = result {
            prop_assert!(product.c().span() >= product.c().item_span());
            let _ = product.to_string();
        }
    }
}
