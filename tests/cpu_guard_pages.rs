//! No kernel of the CPU engine touches memory beyond the caller's operands: each ends where a page
//! begins that may not be accessed, and in another run begins where one ends. An access beyond kills
//! the process, whose last line names the product.
#![cfg(unix)]

mod support;

use ane_matmul::{
    Activation, AnyView, CompileOptions, Element, ElementTypes, Executor, Inputs, Layout, MatMul, Operand,
    TensorView, TensorViewMut, Threads,
};
use ane_matmul_conformance::{compile_on_cpu, some};
use support::{emulated, on_every_kernel, report};

const EDGES: [usize; 19] = [1, 2, 7, 13, 14, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 100, 129];

/// Where an operand lies in its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    AtTheirEnd,
    AtTheirStart,
}

/// Memory between two pages that may not be accessed.
struct Arena {
    start: *mut u8,
    bytes: usize,
}

impl Arena {
    fn new(bytes: usize) -> Self {
        // SAFETY: a plain question.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("a page size");
        let bytes = bytes.next_multiple_of(page);
        // SAFETY: new memory, all of it closed but what lies between the first page and the last.
        unsafe {
            let all = libc::mmap(
                std::ptr::null_mut(),
                bytes + 2 * page,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANON,
                -1,
                0,
            );
            assert_ne!(all, libc::MAP_FAILED);
            let start = all.cast::<u8>().add(page);
            assert_eq!(libc::mprotect(start.cast(), bytes, libc::PROT_READ | libc::PROT_WRITE), 0);
            Self { start, bytes }
        }
    }

    /// `count` numbers.
    fn slice<T: Number>(&mut self, place: Place, count: usize) -> &mut [T] {
        let bytes = count * size_of::<T>();
        assert!(bytes <= self.bytes);
        let offset = if place == Place::AtTheirEnd { self.bytes - bytes } else { 0 };
        // SAFETY: readable and writable memory of this arena, borrowed with it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset).cast(), count) }
    }
}

/// f32 or f64.
trait Number: Element + From<f32> {}

impl Number for f32 {}
impl Number for f64 {}

struct Arenas([Arena; 5]);

impl Arenas {
    fn new(bytes: usize) -> Self {
        Self(std::array::from_fn(|_| Arena::new(bytes)))
    }
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    transpose_a: bool,
    transpose_b: bool,
    constant_b: bool,
    epilogue: bool,
    /// Between a row and the next.
    gap: usize,
    threads: usize,
}

/// Factors of which every operand is a product: sums are exact, and cheap to foretell.
fn factor(i: usize, seed: usize) -> f32 {
    f32::from(u8::try_from((i * 7 + seed * 3) % 4).expect("below 4")) - 1.0
}

/// Writes `f(row, col)` of op(X) to where it is stored.
fn fill<T: Number>(data: &mut [T], layout: &Layout, transposed: bool, f: impl Fn(usize, usize) -> f32) {
    data.fill(f32::NAN.into());
    for row in 0..layout.rows() {
        for col in 0..layout.cols() {
            let (r, c) = if transposed { (col, row) } else { (row, col) };
            data[row * layout.leading_dimension() + col] = f(r, c).into();
        }
    }
}

impl Shape {
    fn product(&self, types: ElementTypes) -> MatMul {
        let Self { m, n, k, transpose_a, transpose_b, epilogue, gap, .. } = *self;
        MatMul::builder(m, n, k)
            .types(types)
            .transpose_a(transpose_a)
            .transpose_b(transpose_b)
            .bias(epilogue)
            .residual(epilogue)
            .activation(if epilogue { Activation::Relu } else { Activation::None })
            .leading_dimension(Operand::A, gap + if transpose_a { m } else { k })
            .leading_dimension(Operand::B, gap + if transpose_b { k } else { n })
            .leading_dimension(Operand::C, gap + n)
            .build()
            .expect("a valid product")
    }

    fn executor(&self, product: &MatMul, b: AnyView<'_>) -> Executor {
        let options = CompileOptions::default().threads(Threads::count(self.threads).expect("not 0"));
        compile_on_cpu(product, self.constant_b.then_some(b), &options)
            .and_then(|compiled| compiled.executor())
            .expect("it compiles")
    }

    fn run(&self, arenas: &mut Arenas, place: Place) {
        self.run_of::<f32>(arenas, place);
        self.run_of::<f64>(arenas, place);
    }

    fn run_of<T: Number>(&self, arenas: &mut Arenas, place: Place) {
        println!("{place:?}: {self:?} of {}", T::TYPE);
        let product = self.product(ElementTypes::uniform(T::TYPE));
        let Self { m, n, k, .. } = *self;
        let [a, b, c, bias, residual] = &mut arenas.0;
        let a = a.slice::<T>(place, product.a().span());
        let b = b.slice::<T>(place, product.b().span());
        let c = c.slice::<T>(place, product.c().span());
        let bias = bias.slice::<T>(place, n);
        fill(a, product.a(), self.transpose_a, |r, p| factor(r, 1) * factor(p, 2));
        fill(b, product.b(), self.transpose_b, |p, c| factor(p, 5) * factor(c, 4));
        fill(c, product.c(), false, |_, _| f32::NAN);
        for (c, bias) in bias.iter_mut().enumerate() {
            *bias = factor(c, 6).into();
        }
        fn view<T: Number>(data: &[T], layout: Layout) -> AnyView<'_> {
            TensorView::with_layout(data, layout).expect("it covers its layout").erased()
        }
        let b = view(b, *product.b());
        let mut inputs = Inputs::new(view(a, *product.a()));
        if !self.constant_b {
            inputs = inputs.b(b);
        }
        if let Some(layout) = product.residual() {
            let residual = residual.slice::<T>(place, layout.span());
            fill(residual, layout, false, |r, c| factor(r + c, 3));
            inputs = inputs.bias(view(bias, Layout::packed(1, 1, n).expect("a row")));
            inputs = inputs.residual(view(residual, *layout));
        }
        let mut executor = self.executor(&product, b);
        let c_view = TensorViewMut::with_layout(c, *product.c()).expect("it covers its layout");
        executor.run(inputs, c_view).expect("it runs");

        let dot: f32 = (0..k).map(|p| factor(p, 2) * factor(p, 5)).sum();
        for row in 0..m {
            for col in 0..n {
                let mut expected = factor(row, 1) * factor(col, 4) * dot;
                if self.epilogue {
                    expected = (expected + factor(col, 6) + factor(row + col, 3)).max(0.0);
                }
                let x = c[row * product.c().leading_dimension() + col].to_f64();
                assert!(
                    (x - f64::from(expected)).abs() < 0.5,
                    "{self:?}: ({row}, {col}) is {x}, not {expected}"
                );
            }
        }
    }
}

fn edges() {
    let mut arenas = Arenas::new(size_of::<f64>() * 132 * 132);
    let mut runs = 0;
    for (i, m) in EDGES.into_iter().enumerate() {
        for (j, n) in EDGES.into_iter().enumerate() {
            for (l, k) in EDGES.into_iter().enumerate() {
                // Every pair of sizes meets; not every three do.
                if (i + j + l) % if emulated() { EDGES.len() } else { 4 } != 0 {
                    continue;
                }
                for form in 0..8 {
                    let shape = Shape {
                        m,
                        n,
                        k,
                        transpose_a: form & 1 != 0,
                        transpose_b: form & 2 != 0,
                        constant_b: form & 4 != 0,
                        epilogue: (i + j + form) % 2 == 0,
                        gap: [0, 3][(j + form / 2) % 2],
                        threads: 1,
                    };
                    shape.run(&mut arenas, Place::AtTheirEnd);
                    shape.run(&mut arenas, Place::AtTheirStart);
                    runs += 2;
                }
            }
        }
    }
    report(&format!("{runs} products at the edges of memory"));
}

/// The combinations of transposes, a constant B and an epilogue, as bits.
fn forms() -> Vec<usize> {
    if emulated() { vec![0, 1] } else { some((0..16).collect(), 0, 4) }
}

/// Products that are cut into blocks and shared among threads.
fn blocks_and_threads() {
    let mut arenas = Arenas::new(size_of::<f64>() * (1100 * 1310));
    let mut runs = 0;
    for [m, n, k] in [[150, 331, 1037], [67, 1301, 67], [1025, 35, 129], [1, 1301, 1037], [1025, 1, 1037]] {
        for form in forms() {
            let shape = Shape {
                m,
                n,
                k,
                transpose_a: form & 1 != 0,
                transpose_b: form & 2 != 0,
                constant_b: form & 4 != 0,
                epilogue: form & 8 != 0,
                gap: 0,
                threads: 1 + form % 3,
            };
            shape.run(&mut arenas, Place::AtTheirEnd);
            shape.run(&mut arenas, Place::AtTheirStart);
            runs += 2;
        }
    }
    report(&format!("{runs} products of several blocks at the edges of memory"));
}

#[test]
fn small_products_stay_within_their_operands() {
    on_every_kernel("small_products_stay_within_their_operands", edges);
}

#[test]
fn products_of_several_blocks_stay_within_their_operands() {
    on_every_kernel("products_of_several_blocks_stay_within_their_operands", blocks_and_threads);
}

/// The guard guards: a read one number beyond it kills a process.
#[test]
fn an_access_beyond_kills_the_process() {
    const BEYOND: &str = "ANE_MATMUL_TEST_BEYOND";
    const TEST: &str = "an_access_beyond_kills_the_process";
    let mut arena = Arena::new(64);
    let read = |slice: &mut [f32], offset: isize| {
        // SAFETY: none: this is the access that must not succeed.
        unsafe { slice.as_ptr().offset(offset).read_volatile() }
    };
    match std::env::var(BEYOND).as_deref() {
        Ok("end") => println!("{}", read(arena.slice(Place::AtTheirEnd, 5), 5)),
        Ok("start") => println!("{}", read(arena.slice(Place::AtTheirStart, 5), -1)),
        Ok(_) => println!("{}", read(arena.slice(Place::AtTheirEnd, 5), 4)),
        Err(_) => {
            support::expect_survival(TEST, BEYOND, &[("end", false), ("start", false), ("nowhere", true)])
        }
    }
}
