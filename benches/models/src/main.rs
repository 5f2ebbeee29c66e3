//! `ane-matmul` as a candidate of `scripts/bench-models`: its protocol is that of `peer.py`, beside this package.
#![warn(clippy::pedantic)]

use std::error::Error;
use std::io::{Write, stdin, stdout};
use std::path::Path;
use std::time::Instant;

use ane_matmul::graph::Array;
use ane_matmul::{BackendId, CompileOptions, Tensor, Threads, npy};
use ane_matmul_example_embeddings::{Config, Encoder};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [directory, ids, threads, output] = &arguments[..] else {
        return Err(
            "expected a model's directory, a file of ids, a number of threads and a file for embeddings"
                .into(),
        );
    };
    let directory = Path::new(directory);
    let ids: Vec<Vec<i64>> = serde_json::from_str(&std::fs::read_to_string(ids)?)?;
    let dims = [ids.len(), ids.first().map_or(0, Vec::len)];
    let ids = Array::new(&dims, ids.concat())?;
    let mask = Array::new(&dims, vec![1i64; dims[0] * dims[1]])?;

    let config = Config::read(&directory.join("config.json"))?;
    let width = config.hidden_size;
    let encoder = Encoder::read(&directory.join("model.safetensors"), config)?;
    let options = CompileOptions::new().threads(Threads::count(threads.parse()?)?);
    let compiled = encoder.graph(dims[0], dims[1])?.compile_with(&BackendId::CPU, &options)?;
    let mut executor = compiled.executor()?;
    let mut embeddings = Array::new(&[dims[0], width], vec![0f32; dims[0] * width])?;
    executor.run(&[&ids, &mask], &mut [&mut embeddings])?;
    let rows = embeddings.data::<f32>().unwrap_or_default().to_vec();
    npy::write(output, &Tensor::from_vec(rows, dims[0], width)?)?;
    println!("ready");

    for line in stdin().lines() {
        let times = (0..line?.trim().parse()?).map(|_| {
            let start = Instant::now();
            executor.run(&[&ids, &mask], &mut [&mut embeddings])?;
            Ok(start.elapsed().as_nanos().to_string())
        });
        println!("{}", times.collect::<Result<Vec<_>, ane_matmul::Error>>()?.join(" "));
        stdout().flush()?;
    }
    Ok(())
}
