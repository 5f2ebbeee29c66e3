//! Nothing is copied on the way in or out, and the numbers are candle's.
#![warn(clippy::pedantic)]

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;

use ane_matmul::accuracy::Reference;
use ane_matmul::{Activation, BackendId, CompileOptions, Compiled, Inputs, Linear, TensorView, Threads};
use ane_matmul_example_candle::{Dense, elements, linear, weights};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor};

/// The system's allocator, which counts the bytes that this thread asks for.
struct Counting;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on as it comes.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        BYTES.set(BYTES.get() + memory.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(memory) }
    }

    unsafe fn alloc_zeroed(&self, memory: Memory) -> *mut u8 {
        BYTES.set(BYTES.get() + memory.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(memory) }
    }

    unsafe fn realloc(&self, old: *mut u8, memory: Memory, size: usize) -> *mut u8 {
        BYTES.set(BYTES.get() + size);
        // SAFETY: as above.
        unsafe { System.realloc(old, memory, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, of: Memory) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, of) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn normal(shape: impl Into<Shape>) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
}

fn compiled(layer: &Linear) -> Compiled {
    // The thread that counts does all the work.
    let options = CompileOptions::new().threads(Threads::ONE);
    layer.compile_with(&BackendId::CPU, &options).unwrap()
}

/// A layer in front of which, and behind which, addresses are noted.
struct Noting<'a> {
    layer: Dense<'a>,
    seen: Cell<[*const f32; 2]>,
}

impl CustomOp1 for Noting<'_> {
    fn name(&self) -> &'static str {
        "noting"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (output, shape) = self.layer.cpu_fwd(storage, layout)?;
        // What the layer makes its view of.
        self.seen.set([elements(storage, layout)?.as_ptr(), output.as_slice::<f32>()?.as_ptr()]);
        Ok((output, shape))
    }
}

/// Where a tensor's elements are.
fn address(tensor: &Tensor) -> *const f32 {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(storage)) = &*storage else { panic!("not f32 on the CPU") };
    storage[layout.start_offset()..].as_ptr()
}

#[test]
fn the_layer_reads_what_candle_stores_and_candle_keeps_what_it_wrote() {
    let w = normal((32, 64));
    let layer = compiled(&Linear::new(&weights(&w).unwrap()).max_rows(512));
    let whole = normal((600, 64));
    let base = address(&whole);
    for (x, offset) in [(whole.clone(), 0), (whole.narrow(0, 100, 500).unwrap(), 100 * 64)] {
        let noting = Noting { layer: Dense(&layer), seen: Cell::new([std::ptr::null(); 2]) };
        let y = x.apply_op1_no_bwd(&noting).unwrap();
        assert_eq!(noting.seen.get(), [base.wrapping_add(offset), address(&y)]);
    }
}

#[test]
fn a_run_allocates_its_result_and_nothing_of_the_size_of_an_operand() {
    let (rows, inputs, outputs) = (512, 512, 384);
    let layer = compiled(&Linear::new(&weights(&normal((outputs, inputs))).unwrap()).max_rows(rows));
    let x = normal((rows, inputs));
    linear(&layer, &x).unwrap(); // its executor is open now
    let before = BYTES.get();
    let y = linear(&layer, &x).unwrap();
    let bytes = BYTES.get() - before;
    let result = rows * outputs * size_of::<f32>();
    assert!((result..result + 4096).contains(&bytes), "{bytes} bytes for a result of {result}");
    assert_eq!(y.dims(), [rows, outputs]);
}

#[test]
fn the_numbers_are_candles_within_the_bounds_of_both() {
    let (inputs, outputs, max_rows) = (200, 72, 16);
    let (w, bias) = (normal((outputs, inputs)), normal(outputs));
    let description = Linear::new(&weights(&w).unwrap())
        .max_rows(max_rows)
        .bias(&bias.to_vec1::<f32>().unwrap())
        .activation(Activation::Relu);
    let layer = compiled(&description);
    // One row, a block, several blocks and a part of one, a batch.
    for shape in [vec![1, inputs], vec![inputs], vec![16, inputs], vec![50, inputs], vec![2, 3, 7, inputs]] {
        let x = normal(shape.clone());
        let y = linear(&layer, &x).unwrap();
        assert_eq!(y.dims(), [&shape[..shape.len() - 1], &[outputs]].concat());
        let rows = x.elem_count() / inputs;
        let (x, y) = (x.reshape((rows, inputs)).unwrap(), y.reshape((rows, outputs)).unwrap());
        let of_candle = x.matmul(&w.t().unwrap()).unwrap().broadcast_add(&bias).unwrap().relu().unwrap();
        let x = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let reference = {
            let product = description.clone().max_rows(rows).build().unwrap();
            let x = TensorView::new(&x, rows, inputs).unwrap();
            Reference::new(&product, &Inputs::new(x)).unwrap()
        };
        for of in [y, of_candle] {
            let c = of.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let deviation = reference.compare(TensorView::new(&c, rows, outputs).unwrap()).unwrap();
            assert!(deviation.is_within_bound(), "{shape:?}: {deviation:?}");
        }
    }
}

#[test]
fn no_rows_give_no_rows() {
    let layer = compiled(&Linear::new(&weights(&normal((3, 4))).unwrap()).max_rows(2));
    assert_eq!(linear(&layer, &normal((0, 4))).unwrap().dims(), [0, 3]);
}

#[test]
fn weights_may_lie_in_any_order() {
    let w = normal((4, 3)); // inputs x outputs
    let layer = compiled(&Linear::new(&weights(&w.t().unwrap()).unwrap()));
    let eye = Tensor::new(&[0f32, 1.0, 0.0, 0.0], &Device::Cpu).unwrap();
    let y = linear(&layer, &eye).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(y, w.get(1).unwrap().to_vec1::<f32>().unwrap());
}

#[test]
fn what_cannot_be_borrowed_is_an_error() {
    let layer = compiled(&Linear::new(&weights(&normal((3, 4))).unwrap()).max_rows(2));
    let square = normal((4, 4));
    for (x, words) in [
        (square.t().unwrap(), "call Tensor::contiguous"),
        (square.to_dtype(DType::F64).unwrap(), "unexpected dtype"),
        (normal((2, 3)), "expected a last dimension of 4"),
        (normal(()), "got a scalar"),
    ] {
        let error = linear(&layer, &x).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(linear(&layer, &square.t().unwrap().contiguous().unwrap()).is_ok());
}
