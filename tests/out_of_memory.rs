//! Memory that is refused is an error: of every allocation that input sizes, one after the other fails, and
//! what was asked for fails with it and works again afterwards.
//!
//! A program of its own, whose allocator refuses what it is told to, run in a process of its own: where an
//! allocation cannot fail with an error, Rust ends the process.

use std::alloc::{GlobalAlloc, Layout as AllocLayout, System};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use ane_matmul::accuracy::Reference;
use ane_matmul::{
    Activation, BackendId, Backends, CacheLimits, CompileOptions, ElementType, ElementTypes, Error, Inputs,
    Linear, MatMul, ProductCache, QuantB, Result, ResultChecker, SelfCheck, Tensor, Threads, Weights, matmul,
    quantize,
};

/// What input sizes here is larger, and whatever else is allocated smaller: the buffer of a file that is
/// read has 64 KiB.
const LARGE_BYTES: usize = 70_000;

struct Refusing;

/// The large allocations until the one that fails; beyond it all succeed.
static LEFT: AtomicUsize = AtomicUsize::new(usize::MAX);
static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged, or fails, as it may.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: AllocLayout) -> *mut u8 {
        if layout.size() >= LARGE_BYTES {
            COUNT.fetch_add(1, Ordering::Relaxed);
            if LEFT.fetch_sub(1, Ordering::Relaxed) == 0 {
                return std::ptr::null_mut();
            }
        }
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: AllocLayout) {
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static REFUSING: Refusing = Refusing;

const SIDE: usize = 160;

/// What steps share: made while memory is there.
struct Given {
    x: Tensor<f32>,
    wide: Tensor<f64>,
    b: Tensor<f32>,
    cpu: BackendId,
    options: CompileOptions,
    directory: tempfile::TempDir,
}

impl Given {
    #[cfg_attr(not(feature = "npy"), allow(dead_code))]
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

type Step = Box<dyn Fn(&Given) -> Result<()>>;

fn is_out_of_memory(error: &Error) -> bool {
    match error {
        Error::OutOfMemory { .. } => true,
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::OutOfMemory,
        _ => false,
    }
}

fn run_through(name: &str, given: &Given, step: &Step) -> usize {
    // Lazy statics, and what is allocated once.
    step(given).unwrap_or_else(|error| panic!("{name}: {error}"));
    let before = COUNT.load(Ordering::Relaxed);
    step(given).unwrap();
    let count = COUNT.load(Ordering::Relaxed) - before;
    assert!(count > 0, "{name}: nothing is large");
    for index in 0..count {
        println!("{name}: allocation {} of {count}", index + 1);
        std::io::stdout().flush().unwrap();
        LEFT.store(index, Ordering::Relaxed);
        let result = step(given);
        LEFT.store(usize::MAX, Ordering::Relaxed);
        match result {
            Err(error) => assert!(is_out_of_memory(&error), "{name}: {error:?}"),
            Ok(()) => panic!("{name}: nothing failed"),
        }
    }
    step(given).unwrap_or_else(|error| panic!("{name}, afterwards: {error}"));
    count
}

fn compile_and_run(
    given: &Given,
    product: &MatMul,
    weights: Option<&Weights>,
    options: &CompileOptions,
) -> Result<()> {
    let compiled = match weights {
        Some(weights) => product.with_weights(weights)?.compile_with(&given.cpu, options)?,
        None => product.compile_with(&given.cpu, options)?,
    };
    let mut executor = compiled.executor()?;
    let mut c = Tensor::<f32>::zeros(product.m(), product.n())?;
    let inputs = Inputs::new(&given.x);
    executor.run(if weights.is_some() { inputs } else { inputs.b(&given.b) }, &mut c)
}

fn tensors() -> Vec<(&'static str, Step)> {
    vec![
        ("zeros", Box::new(|_| Tensor::<f32>::zeros(SIDE, SIDE).map(drop))),
        ("filled", Box::new(|_| Tensor::filled(SIDE, SIDE, 1f64).map(drop))),
        ("from_fn", Box::new(|_| Tensor::from_fn(SIDE, SIDE, |r, c| (r + c) as f32).map(drop))),
        (
            "from_fn_batched",
            Box::new(|_| Tensor::from_fn_batched(2, SIDE, SIDE, |_, r, _| r as f32).map(drop)),
        ),
        ("from_view", Box::new(|given| Tensor::from_view(given.x.view()).map(drop))),
        ("transposed", Box::new(|given| given.x.transposed().map(drop))),
        ("to_f64", Box::new(|given| given.x.to_f64().map(drop))),
        ("to_f32", Box::new(|given| given.wide.to_f32().map(drop))),
        ("random", Box::new(|_| Tensor::random_normal_f32(SIDE, SIDE, 1.0, 1).map(drop))),
        ("weights", Box::new(|given| Weights::new(&given.b).map(drop))),
        ("shared buffer", Box::new(|given| Backends::new().shared_buffer(&given.cpu, 1 << 20).map(drop))),
    ]
}

fn products() -> Vec<(&'static str, Step)> {
    let square = || MatMul::builder(SIDE, SIDE, SIDE);
    let product =
        move |change: fn(ane_matmul::MatMulBuilder) -> ane_matmul::MatMulBuilder| change(square()).build();
    vec![
        (
            "B with every run",
            Box::new(move |given| compile_and_run(given, &product(|b| b)?, None, &given.options)),
        ),
        (
            "transposed",
            Box::new(move |given| {
                compile_and_run(
                    given,
                    &product(|b| b.transpose_a(true).transpose_b(true))?,
                    None,
                    &given.options,
                )
            }),
        ),
        (
            "constant B",
            Box::new(move |given| {
                // New weights: what is packed of others is kept.
                let weights = Weights::new(&given.b)?;
                compile_and_run(given, &product(|b| b)?, Some(&weights), &given.options)
            }),
        ),
        (
            "constant B, transposed, two threads",
            Box::new(move |given| {
                let weights = Weights::new(&given.b)?.transposed()?;
                let options = CompileOptions::default().threads(Threads::count(2)?);
                let product = product(|b| b.activation(Activation::Gelu))?;
                compile_and_run(given, &product, Some(&weights), &options)
            }),
        ),
        (
            "f64 operands",
            Box::new(move |given| {
                let compiled = product(|b| b)?.compile_with(&given.cpu, &given.options)?;
                let mut c = Tensor::<f64>::zeros(SIDE, SIDE)?;
                compiled.executor()?.run_f64(Inputs::new(&given.wide).b(&given.wide), c.view_mut())
            }),
        ),
        (
            "self-check by Freivalds' method",
            Box::new(move |given| {
                let options =
                    given.options.clone().self_check(SelfCheck::every_run().failure_probability(1e-20));
                let weights = Weights::new(&given.b)?;
                compile_and_run(given, &product(|b| b)?, Some(&weights), &options)
            }),
        ),
        (
            "self-check by rows",
            Box::new(move |given| {
                let options = given.options.clone().self_check(SelfCheck::every_run());
                compile_and_run(given, &product(|b| b.activation(Activation::Relu))?, None, &options)
            }),
        ),
        (
            "a cache",
            Box::new(move |given| {
                let cache = ProductCache::new(Backends::new(), CacheLimits::default());
                let weights = Weights::new(&given.b)?;
                let product = product(|b| b)?.with_weights(&weights)?;
                cache.compile(&given.cpu, &product, &given.options).map(drop)
            }),
        ),
        (
            "a layer with a bias, in a pool",
            Box::new(|given| {
                const N: usize = 20_000;
                let weights = Weights::from_tensor(Tensor::filled(1, N, 1f32)?);
                let bias = Tensor::filled(1, N, 1f32)?;
                let layer =
                    Linear::new(&weights).bias(bias.data()).compile_with(&given.cpu, &given.options)?;
                let mut y = Tensor::<f32>::zeros(1, N)?;
                layer.pool(2)?.run(&[1f32], &mut y)?;
                layer.run(&[1f32], &mut y)?;
                layer.run_to_tensor(&[1f32]).map(drop)
            }),
        ),
        ("a product computed once", Box::new(|given| matmul(&given.x, &given.b).map(drop))),
        (
            "a reference",
            Box::new(move |given| {
                let inputs = Inputs::new(&given.x).b(&given.b);
                let reference = Reference::new(&product(|b| b)?, inputs)?;
                reference.compare(&given.b).map(drop)
            }),
        ),
        (
            "a checker of results by Freivalds' method",
            Box::new(|_| {
                let (column, row) = (Tensor::filled(9000, 1, 1f32)?, Tensor::filled(1, 9000, 1f32)?);
                let product = MatMul::new(9000, 1, 1)?;
                let inputs = Inputs::new(&column).b(row.view().slice(0..1, 0..1)?);
                ResultChecker::new(&product, &SelfCheck::every_run())?.check(inputs, &column).map(drop)
            }),
        ),
        (
            "a checker of results by rows",
            Box::new(|_| {
                let (m, n) = (2, 9000);
                let product = MatMul::builder(m, n, 1).activation(Activation::Relu).build()?;
                let mut checker = ResultChecker::new(&product, &SelfCheck::every_run())?;
                let (a, b) = (Tensor::filled(m, 1, 1f32)?, Tensor::filled(1, n, 0f32)?);
                checker.check(Inputs::new(&a).b(&b), &Tensor::filled(m, n, 0f32)?).map(drop)
            }),
        ),
        (
            "quantising and back",
            Box::new(|given| {
                let scheme = quantize::WeightScheme::INT8.with_scales(ElementType::F32);
                let (weights, _) = Weights::new(&given.b)?.quantize(&scheme)?;
                weights.dequantize().map(drop)
            }),
        ),
        ("8-bit weights", Box::new(move |given| narrow(given, ElementType::I8))),
        ("4-bit weights", Box::new(move |given| narrow(given, ElementType::I4))),
    ]
}

/// A product with quantised weights.
fn narrow(given: &Given, element: ElementType) -> Result<()> {
    let groups = QuantB::PerGroup { group_size: 32, zero_point: 0 };
    let scheme = quantize::WeightScheme { element, ..quantize::WeightScheme::INT8 }
        .with_scheme(groups)
        .with_scales(ElementType::F32);
    let side = 2 * SIDE;
    let b = Tensor::from_fn(side, side, |row, col| (row % 7) as f32 - (col % 5) as f32)?;
    let (weights, _) = Weights::from_tensor(b).quantize(&scheme)?;
    let compiled =
        MatMul::new(4, side, side)?.with_weights(&weights)?.compile_with(&given.cpu, &given.options)?;
    let x = Tensor::filled(4, side, 1f32)?;
    let mut c = Tensor::<f32>::zeros(4, side)?;
    compiled.executor()?.run(Inputs::new(&x), &mut c)?;
    Reference::of(&compiled, Inputs::new(&x))?.compare(&c).map(drop)
}

#[cfg(feature = "half")]
fn half_products() -> Vec<(&'static str, Step)> {
    fn half<T: ane_matmul::Element>(given: &Given, types: ElementTypes, one: T) -> Result<()> {
        let (a, weights) =
            (Tensor::filled(SIDE, SIDE, one)?, Weights::new(&Tensor::filled(SIDE, SIDE, one)?)?);
        for constant in [true, false] {
            let product = MatMul::builder(SIDE, SIDE, SIDE).types(types).build()?;
            let compiled = if constant {
                product.with_weights(&weights)?.compile_with(&given.cpu, &given.options)?
            } else {
                product.compile_with(&given.cpu, &given.options)?
            };
            let inputs = if constant { Inputs::new(&a) } else { Inputs::new(&a).b(&a) };
            let mut c = Tensor::<f32>::zeros(SIDE, SIDE)?;
            compiled.executor()?.run(inputs, &mut c)?;
        }
        Ok(())
    }
    vec![
        ("bf16", Box::new(|given| half(given, ElementTypes::BF16, half::bf16::ONE))),
        ("f16", Box::new(|given| half(given, ElementTypes::F16, half::f16::ONE))),
        (
            "int8",
            Box::new(|given| {
                let types = ElementTypes { output: ElementType::I32, ..ElementTypes::INT8 };
                let (a, weights) =
                    (Tensor::filled(256, 256, 1i8)?, Weights::new(&Tensor::filled(256, 256, 1i8)?)?);
                let product = MatMul::builder(256, 256, 256).types(types).with_weights(&weights)?;
                let compiled = product.compile_with(&given.cpu, &given.options)?;
                let mut c = Tensor::<i32>::zeros(256, 256)?;
                compiled.executor()?.run(Inputs::new(&a), &mut c)
            }),
        ),
    ]
}

#[cfg(not(feature = "half"))]
fn half_products() -> Vec<(&'static str, Step)> {
    Vec::new()
}

/// A file of the right form, made while memory is there.
fn file(directory: &Path, name: &str, header: &[u8], zeros: usize) {
    let mut bytes = header.to_vec();
    bytes.resize(header.len() + zeros, 0);
    std::fs::write(directory.join(name), bytes).unwrap();
}

fn prepare(directory: &Path) {
    let header = format!("{:<69}\n", "{'descr': '<f4', 'fortran_order': True, 'shape': (200, 100), }");
    file(directory, "f.npy", &[b"\x93NUMPY\x01\x00\x46\x00", header.as_bytes()].concat(), 80_000);
    for (name, padding) in [("aligned.safetensors", 0), ("unaligned.safetensors", 1)] {
        let mut header = r#"{"w":{"dtype":"F32","shape":[400,400],"data_offsets":[0,640000]},"h":{"dtype":"F16","shape":[400,400],"data_offsets":[640000,960000]}}"#.to_owned();
        while header.len() % 8 != padding {
            header.push(' ');
        }
        let length = (header.len() as u64).to_le_bytes();
        file(directory, name, &[&length[..], header.as_bytes()].concat(), 960_000);
    }
}

#[cfg(feature = "npy")]
fn files() -> Vec<(&'static str, Step)> {
    use ane_matmul::npy;
    vec![
        (
            "a NumPy file",
            Box::new(|given| {
                npy::write(given.path("x.npy"), &given.x)?;
                npy::read(given.path("x.npy"))?.into_f64().map(drop)
            }),
        ),
        ("a NumPy file in Fortran order", Box::new(|given| npy::read(given.path("f.npy")).map(drop))),
    ]
}

#[cfg(not(feature = "npy"))]
fn files() -> Vec<(&'static str, Step)> {
    Vec::new()
}

#[cfg(feature = "safetensors")]
fn weight_files() -> Vec<(&'static str, Step)> {
    use ane_matmul::safetensors::{QuantizeOptions, SafetensorsFile};
    vec![
        (
            "a safetensors file",
            Box::new(|given| {
                let file = SafetensorsFile::read(given.path("unaligned.safetensors"))?;
                file.weights("w")?;
                file.weights_f32("h").map(drop)
            }),
        ),
        (
            "quantising a safetensors file",
            Box::new(|given| {
                let file = SafetensorsFile::read(given.path("aligned.safetensors"))?;
                let out = given.path("q.safetensors");
                file.quantize(&QuantizeOptions::new(ElementType::I8), &out, |_, _| ())?;
                SafetensorsFile::read(out)?.quantized("w").map(drop)
            }),
        ),
    ]
}

#[cfg(not(feature = "safetensors"))]
fn weight_files() -> Vec<(&'static str, Step)> {
    Vec::new()
}

fn child() {
    let b = Tensor::random_normal_f32(SIDE, SIDE, 1.0, 2).unwrap();
    let given = Given {
        x: Tensor::random_normal_f32(SIDE, SIDE, 1.0, 1).unwrap(),
        wide: Tensor::random_normal(SIDE, SIDE, 1.0, 1).unwrap(),
        b,
        cpu: BackendId::CPU,
        options: CompileOptions::default().threads(Threads::ONE),
        directory: tempfile::tempdir().unwrap(),
    };
    prepare(given.directory.path());
    let (mut steps, mut failures) = (0, 0);
    for (name, step) in
        [tensors(), products(), half_products(), files(), weight_files()].into_iter().flatten()
    {
        failures += run_through(name, &given, &step);
        steps += 1;
    }
    println!("{steps} calls, {failures} allocations that failed: errors, and nothing else");
    println!("1 passed, 0 failed");
}

fn main() {
    const CHILD: &str = "ANE_MATMUL_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let output =
        std::process::Command::new(std::env::current_exe().unwrap()).env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let last: Vec<&str> = text.lines().rev().take(2).collect();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}\n{errors}", output.status, last.first().unwrap_or(&"nothing"));
    for line in last.iter().rev() {
        println!("{line}");
    }
}
