//! Finds the kernels with which a BLAS is right and fastest on this CPU.
//!
//! A library older than the CPU may take kernels that are slow or wrong there, or crash. Which it
//! takes is fixed when it is loaded, so each choice is tried in a process of its own.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use crate::candidates::{BlasLibrary, BlasName, Product as _};
use crate::operands::Operands;
use crate::reference::{Reference, UNIT};
use crate::shapes::{Case, Precision, Shape};
use crate::stats::{geometric_mean, median};

/// The environment variables by which a BLAS is told its kernels, and what to try on x86-64 besides
/// its own choice. BLIS 0.9 takes the numbers of `arch_t`: skx, haswell and zen3.
const fn choices(name: BlasName) -> (&'static str, &'static [&'static str]) {
    match name {
        BlasName::OpenBlas => ("OPENBLAS_CORETYPE", &["SkylakeX", "Cooperlake", "Zen", "Haswell"]),
        BlasName::Blis => ("BLIS_ARCH_TYPE", &["0", "3", "6"]),
    }
}

/// Settings of OpenBLAS's that change its blocking.
const OTHER_VARIABLES: [&str; 1] = ["OPENBLAS_L2_SIZE"];

const SHAPES: [Shape; 3] = [Shape::square(64), Shape::square(512), Shape::new(32, 3072, 768)];

/// One line for the parent: GFLOP/s.
pub(crate) fn child(name: &str) -> Result<(), String> {
    let name = BlasName::ALL.into_iter().find(|known| known.name() == name).ok_or("no such BLAS")?;
    let library = Arc::new(BlasLibrary::load(name)?);
    let rates: Result<Vec<f64>, String> = SHAPES.into_iter().map(|shape| gflops(&library, shape)).collect();
    println!("{}", geometric_mean(rates?));
    Ok(())
}

fn gflops(library: &Arc<BlasLibrary>, shape: Shape) -> Result<f64, String> {
    let case = Case { precision: Precision::F32, shape, threads: 1, cold: false };
    let mut operands = Operands::new(&case, 1)?;
    let mut product = library.product(false, 1);
    product.run(&mut operands, 1);
    Reference::new(&operands).check(operands.c.as_slice(), false, UNIT)?;
    let calls = (1e8 / shape.flops()).ceil() as usize;
    let samples_ns: Vec<f64> = (0..7)
        .map(|_| {
            let start = Instant::now();
            product.run(&mut operands, calls);
            start.elapsed().as_nanos() as f64 / calls as f64
        })
        .collect();
    Ok(shape.flops() / median(&samples_ns))
}

/// An environment variable to set before the libraries are loaded, or to leave unset.
pub(crate) struct Setting {
    pub(crate) variable: &'static str,
    pub(crate) value: Option<&'static str>,
}

/// The best setting for each BLAS, and those that are only cleared.
pub(crate) fn best_settings() -> Vec<Setting> {
    let mut settings: Vec<Setting> =
        OTHER_VARIABLES.iter().map(|variable| Setting { variable, value: None }).collect();
    for name in BlasName::ALL {
        let (variable, values) = choices(name);
        let values = if cfg!(target_arch = "x86_64") { values } else { &[] };
        let tried = std::iter::once(None).chain(values.iter().copied().map(Some));
        let rated = tried.filter_map(|value| {
            let rate = rate(name, variable, value);
            let shown = rate.as_ref().map_or_else(Clone::clone, |gflops| format!("{gflops:.0} GFLOP/s"));
            eprintln!("{name} with {variable}={}: {shown}", value.unwrap_or("(its own choice)"));
            Some((value, rate.ok()?))
        });
        let best = rated.max_by(|a, b| a.1.total_cmp(&b.1));
        settings.push(Setting { variable, value: best.and_then(|(value, _)| value) });
    }
    settings
}

fn rate(name: BlasName, variable: &str, value: Option<&str>) -> Result<f64, String> {
    let executable = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(executable);
    command.args(["--probe", name.name()]).env_remove(variable).stderr(Stdio::piped());
    for variable in OTHER_VARIABLES {
        command.env_remove(variable);
    }
    if let Some(value) = value {
        command.env(variable, value);
    }
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {}", output.status, message.trim()));
    }
    String::from_utf8_lossy(&output.stdout).trim().parse().map_err(|_| "no rate".to_owned())
}
