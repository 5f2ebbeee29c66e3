//! How much slower the backend that `auto` chooses is than the best one, on products that were not
//! calibrated with: `scripts/regret`.
//!
//! `cargo bench -p ane-matmul-benches --features blas --bench regret -- [--full] [--profile FILE] [--json FILE]`
//!
//! Measures a profile (or reads the one of `--profile`), then times every backend on 120 products with one
//! thread and again with all, the backends in turn. The reference shim is loaded as a third
//! backend.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use ane_matmul::{
    BackendId, Backends, CalibrateOptions, CompileOptions, Effort, Executor, Inputs, MatMul, Profile,
    ShimLibrary, Tensor, TensorView, TensorViewMut, Threads, Verdict, Weights, calibrate,
};
use fastrand::Rng;

/// Products for each number of threads.
const PRODUCTS: usize = 120;

/// Elements of an operand, and multiply-adds of a product, at most.
const ELEMENTS: usize = 1 << 22;
const WORK: usize = 1 << 31;

/// Each backend is timed in three blocks, between those of the others, of so many samples, fewer where they
/// take longer than the budget; a sample lasts so long at least. The block with the lowest median counts: what
/// disturbs a machine only ever adds time.
const BLOCKS: usize = 3;
const SAMPLES: usize = 8;
const SAMPLE_NS: f64 = 400_000.0;
const BUDGET_NS: f64 = 30_000_000.0;

/// Idle threads of OpenBLAS keep a core busy for 2^26 cycles: until they sleep, another backend runs untimed.
const SETTLE: Duration = Duration::from_millis(25);

struct Case {
    product: MatMul,
    threads: usize,
    /// Predicted and measured times of a run by backend, in nanoseconds.
    times: Vec<(BackendId, f64, f64)>,
    chosen: BackendId,
}

impl Case {
    fn measured(&self, id: &BackendId) -> f64 {
        self.times.iter().find(|(other, ..)| other == id).map_or(f64::NAN, |(.., ns)| *ns)
    }

    fn best(&self) -> f64 {
        self.times.iter().map(|(.., ns)| *ns).fold(f64::INFINITY, f64::min)
    }

    fn regret(&self) -> f64 {
        self.measured(&self.chosen) / self.best()
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut effort, mut file, mut json) = (Effort::Quick, None, None);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--full" => effort = Effort::Full,
            "--profile" => file = args.next(),
            "--json" => json = args.next(),
            // What `cargo bench -- --test` and `cargo test --benches` pass.
            "--test" => return,
            _ => {}
        }
    }
    let mut backends = Backends::new();
    // SAFETY: the reference shim is built from this repository.
    let shim = unsafe { ShimLibrary::open(ane_matmul_shims::REFERENCE) }.expect("the reference shim");
    backends.add(shim).expect("a new name");
    let profile = file
        .map_or_else(|| measure_profile(&backends, effort), |path| Profile::load(path).expect("a profile"));
    backends.set_profile(Some(profile));

    let mut cases = Vec::new();
    let counts = [1, Threads::Auto.number()];
    for threads in counts {
        #[cfg(all(feature = "blas", unix, not(target_vendor = "apple")))]
        ane_matmul::set_blas_threads(std::num::NonZeroUsize::new(threads).expect("not 0"));
        let options = CompileOptions::default().threads(Threads::count(threads).expect("few threads"));
        for product in products(threads as u64) {
            cases.push(measure(&backends, product, threads, &options));
        }
        if counts[0] == counts[1] {
            break;
        }
    }
    report(&cases);
    if let Some(path) = json {
        std::fs::write(path, to_json(&cases)).expect("a writable file");
    }
}

fn measure_profile(backends: &Backends, effort: Effort) -> Profile {
    let start = Instant::now();
    let mut options = CalibrateOptions::new(effort);
    options.set_blas_threads = true;
    let profile = calibrate(backends, &options, |_| ControlFlow::Continue(())).expect("a profile");
    println!("calibrated ({effort:?}) in {:.1} s", start.elapsed().as_secs_f64());
    profile
}

/// Random products: every size from 1 up in the logarithm, half of them rounded to multiples of 8 as layers
/// of networks are.
fn products(seed: u64) -> Vec<MatMul> {
    let mut random = Rng::with_seed(2000 + seed);
    let mut products = Vec::new();
    while products.len() < PRODUCTS {
        let even = random.bool();
        let mut dimension = || {
            let size = 2048f64.powf(random.f64()).round().max(1.0) as usize;
            if even && size > 8 { size.next_multiple_of(8) } else { size }
        };
        let (m, n, k) = (dimension(), dimension(), dimension());
        let batch = if random.usize(..5) == 0 { 2 + random.usize(..15) } else { 1 };
        let fits = [m * k, k * n, m * n].into_iter().all(|elements| batch * elements <= ELEMENTS);
        if fits && batch * m * n * k <= WORK {
            let constant_b = random.bool();
            let builder = MatMul::builder(m, n, k).batch(batch);
            products.push(if constant_b {
                builder.build_constant_b().expect("a product").product().clone()
            } else {
                builder.build().expect("a product")
            });
        }
    }
    products
}

fn measure(backends: &Backends, product: MatMul, threads: usize, options: &CompileOptions) -> Case {
    let explanation = backends.explain(&product, options);
    let (chosen, _) = explanation.choice.clone().expect("the CPU runs everything in f32");
    let random =
        |count: usize, seed| Tensor::random_normal_f32(1, count, 0.02, seed).expect("memory").into_vec();
    let (a, b) = (random(product.a().span(), 1), random(product.b().span(), 2));
    let mut c = vec![0f32; product.c().span()];
    let a = TensorView::with_layout(&a, *product.a()).expect("A");
    let b = TensorView::with_layout(&b, *product.b()).expect("B");
    let with_weights = product
        .constant_b()
        .then(|| product.with_weights(&Weights::new(b).expect("memory")).expect("the described B"));
    let inputs = if product.constant_b() { Inputs::new(a) } else { Inputs::new(a).b(b) };
    let mut run = |executor: &mut Executor, runs: usize| {
        let start = Instant::now();
        for _ in 0..runs {
            let view = TensorViewMut::with_layout(&mut c, *product.c()).expect("C");
            executor.run(black_box(&inputs), view).expect("a run");
        }
        start.elapsed().as_nanos() as f64 / runs as f64
    };
    let mut candidates = Vec::new();
    for candidate in &explanation.candidates {
        let Verdict::Predicted(prediction) = &candidate.verdict else { continue };
        let id = candidate.backend.clone();
        let compiled = match &with_weights {
            Some(product) => backends.compile(&id, product, options),
            None => backends.compile(&id, &product, options),
        };
        let mut executor =
            compiled.and_then(|compiled| compiled.executor()).expect("a backend that was measured");
        run(&mut executor, 1);
        let once_ns = run(&mut executor, 1).max(1.0);
        candidates.push((
            id,
            prediction.run_ns,
            executor,
            (SAMPLE_NS / once_ns).ceil() as usize,
            once_ns,
            Vec::new(),
        ));
    }
    for _ in 0..BLOCKS {
        for (_, _, executor, runs, once_ns, medians) in &mut candidates {
            let start = Instant::now();
            while threads > 1 && start.elapsed() < SETTLE {
                run(executor, 1);
            }
            let mut block = Vec::new();
            let affordable = BUDGET_NS / (*once_ns * *runs as f64);
            for _ in 0..SAMPLES.min(affordable as usize).max(1) {
                run(executor, 1);
                block.push(run(executor, *runs));
            }
            block.sort_by(f64::total_cmp);
            medians.push(block[(block.len() - 1) / 2]);
        }
    }
    let times = candidates
        .into_iter()
        .map(|(id, predicted, .., medians)| {
            (id, predicted, medians.into_iter().fold(f64::INFINITY, f64::min))
        })
        .collect();
    Case { product, threads, times, chosen }
}

fn geometric_mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value.ln(), count + 1));
    (sum / count.max(1) as f64).exp()
}

fn report(cases: &[Case]) {
    let worst = cases.iter().map(Case::regret).fold(0.0, f64::max);
    println!("{} products, none of them calibrated with", cases.len());
    println!(
        "auto           regret: geometric mean {:.3}, worst {worst:.3}",
        geometric_mean(cases.iter().map(Case::regret))
    );
    let mut ids: Vec<&BackendId> =
        cases.iter().flat_map(|case| case.times.iter().map(|(id, ..)| id)).collect();
    ids.sort();
    ids.dedup();
    for id in ids {
        let ratio = |case: &Case| case.measured(id) / case.best();
        let chosen = cases.iter().filter(|case| case.chosen == *id).count();
        let best = cases.iter().filter(|case| ratio(case) == 1.0).count();
        let errors = cases.iter().flat_map(|case| {
            case.times
                .iter()
                .filter(|(other, ..)| other == id)
                .map(|(_, predicted, ns)| (predicted / ns).ln().abs())
        });
        let mut errors: Vec<f64> = errors.collect();
        errors.sort_by(f64::total_cmp);
        println!(
            "always {id:<10} regret: geometric mean {:.3}, worst {:.3}; best {best} times, chosen {chosen} times; median error of predictions {:.1} %",
            geometric_mean(cases.iter().map(ratio)),
            cases.iter().map(ratio).fold(0.0, f64::max),
            100.0 * (errors[errors.len() / 2].exp() - 1.0),
        );
    }
    let mut by_regret: Vec<&Case> = cases.iter().collect();
    by_regret.sort_by(|a, b| b.regret().total_cmp(&a.regret()));
    println!("the worst choices:");
    for case in by_regret.iter().take(8) {
        print!("  {:.3} {} threads {}: {}", case.regret(), case.product, case.threads, case.chosen);
        for (id, predicted, ns) in &case.times {
            print!("; {id} {ns:.0} ns, predicted {predicted:.0}");
        }
        println!();
    }
}

fn to_json(cases: &[Case]) -> String {
    let lines: Vec<String> = cases
        .iter()
        .map(|case| {
            let times: Vec<String> = case
                .times
                .iter()
                .map(|(id, predicted, ns)| {
                    format!("{{\"backend\":\"{id}\",\"predicted_ns\":{predicted},\"run_ns\":{ns}}}")
                })
                .collect();
            format!(
                "{{\"product\":\"{}\",\"threads\":{},\"chosen\":\"{}\",\"regret\":{},\"times\":[{}]}}",
                case.product,
                case.threads,
                case.chosen,
                case.regret(),
                times.join(",")
            )
        })
        .collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}
