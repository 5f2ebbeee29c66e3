//! Whatever a shim's table holds it is taken or refused, and whatever its functions answer is a result or
//! an error.
#![no_main]

use ane_matmul::{Backends, CompileOptions, Inputs, MatMul, ShimLibrary, Tensor, Threads, Weights};
use ane_matmul_fuzz::shim::{Distortion, Table, with_plan};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Case {
    table: Distortion,
    constant_b: bool,
    packages: bool,
    plan: Vec<u8>,
}

fn use_shim(table: &Table, case: &Case) -> ane_matmul::Result<()> {
    // SAFETY: as many bytes are readable as the table says, its strings end in NUL, and its functions
    // keep to the contract.
    let shim = unsafe { ShimLibrary::from_table(table.as_ptr(), "garbage") }?;
    assert!(!shim.name().as_str().is_empty() && !format!("{shim:?}").is_empty());
    let mut backends = Backends::new();
    let id = backends.add(shim)?;
    assert!(!format!("{backends:?}").is_empty());
    let product = MatMul::builder(2, 3, 4);
    let product =
        if case.constant_b { product.build_constant_b()?.product().clone() } else { product.build()? };
    let mut options = CompileOptions::default().threads(Threads::ONE);
    if case.packages {
        options = options.packages(ane_matmul_fuzz::place().join("garbage"));
    }
    let _ = format!("{:?}", backends.explain(&product, &options));
    let _ = backends.supports(&id, &product, &options);
    let (a, b) = (Tensor::filled(2, 4, 1f32)?, Tensor::filled(4, 3, 2f32)?);
    for bytes in [0, 64] {
        if let Ok(mut buffer) = backends.shared_buffer(&id, bytes) {
            assert!(!format!("{buffer:?}").is_empty());
            buffer.elements_mut::<f32>().fill(1.0);
        }
    }
    let compiled = if case.constant_b {
        backends.compile(&id, &product.with_weights(&Weights::new(&b)?)?, &options)?
    } else {
        backends.compile(&id, &product, &options)?
    };
    assert!(!format!("{:?}", compiled.report()).is_empty());
    let mut executor = compiled.executor()?;
    let mut c = Tensor::<f32>::zeros(2, 3)?;
    let inputs = Inputs::new(&a);
    let inputs = if case.constant_b { inputs } else { inputs.b(&b) };
    let _ = executor.run(&inputs, &mut c);
    executor.run_observed(&inputs, &mut c)?;
    Ok(())
}

fuzz_target!(|case: Case| {
    let table = Table::new(&case.table);
    with_plan(&case.plan, || {
        if let Err(error) = use_shim(&table, &case) {
            assert!(!error.to_string().is_empty());
        }
    });
});
