//! Which backend of this machine is fastest for one product, and is it right?
//!
//! `cargo run --release --example compare_backends`

use std::time::{Duration, Instant};

use ane_matmul::accuracy::Reference;
use ane_matmul::{Error, Inputs, MatMul, Tensor, available};

const RUNS: usize = 20;

fn main() -> Result<(), Error> {
    let product = MatMul::new(128, 512, 256)?;
    let a = Tensor::random_normal_f32(128, 256, 0.02, 1)?;
    let b = Tensor::random_normal_f32(256, 512, 0.02, 2)?;
    let inputs = Inputs::new(&a).b(&b);
    let reference = Reference::new(&product, inputs)?;

    let mut fastest: Option<(Duration, String)> = None;
    for status in available() {
        if let Err(reason) = status.state {
            println!("{:<12} not here: {reason}", status.id);
            continue;
        }
        let mut executor = product.compile(&status.id)?.executor()?;
        let mut c = Tensor::<f32>::zeros(128, 512)?;
        let mut times = Vec::new();
        for _ in 0..RUNS {
            let start = Instant::now();
            executor.run(inputs, &mut c)?;
            times.push(start.elapsed());
        }
        times.sort();
        let median = times[RUNS / 2];
        let deviation = reference.compare(&c)?;
        assert!(deviation.is_within_bound());
        println!(
            "{:<12} {median:?} median of {RUNS}, largest error {:.1e} ({:.1} % of its bound at worst)",
            status.id,
            deviation.max_abs_error,
            100.0 * deviation.worst_ratio
        );
        if fastest.as_ref().is_none_or(|(time, _)| median < *time) {
            fastest = Some((median, status.id.to_string()));
        }
    }
    if let Some((_, name)) = fastest {
        println!("fastest for {product}: {name}");
    }
    Ok(())
}
