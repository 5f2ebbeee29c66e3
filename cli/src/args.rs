//! What the command line accepts.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ane_matmul::{
    Activation, BackendId, CompileOptions, Device, ElementType, ElementTypes, QuantA, QuantB, Quantization,
    Threads,
};
use ane_matmul_conformance::List;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Matrix products compiled once and run many times, on every engine of this machine.
///
/// ANE_MATMUL_SHIM=FILE loads a dynamic library that speaks the C ABI (docs/ABI.md) as a further
/// backend; ANE_MATMUL_SHIM_DEVICE=NUMBER chooses another than the first of its devices, as `devices` lists them.
#[derive(Debug, Parser)]
#[command(
    name = "ane-matmul",
    version,
    about = "Matrix products compiled once and run millions of times: MPSGraph, Metal and Accelerate on Apple hardware, BLAS or a built-in CPU engine elsewhere",
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

// A comment on a variant would take the place of all that its arguments' type says of the command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List every known backend, available or why not, and what this machine is.
    Devices(DevicesArgs),
    Multiply(MultiplyArgs),
    Compare(CompareArgs),
    Calibrate(CalibrateArgs),
    Explain(ExplainArgs),
    Probe(ProbeArgs),
    Conformance(ConformanceArgs),
    /// What `conformance` starts.
    #[command(name = CONFORMANCE_HELPER, hide = true)]
    ConformanceHelper(RunArgs),
    /// What `probe` and `calibrate` start.
    #[command(name = PROBE_HELPER, hide = true)]
    ProbeHelper,
    Verify(VerifyArgs),
    Quantize(QuantizeArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// Print JSON instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Multiply two NumPy files into a third: C = activation(A B + bias).
///
/// Files hold f32 or f64 (big-endian is converted), in C or Fortran order, with 2 dimensions, or 3
/// for a batch; one matrix, also as a batch of one, multiplies every item of a batch. f64 is rounded
/// to f32 for the product, but for --precision f64. NaN and infinity propagate. A file may be a pipe, and one of them `-`, standard
/// input. The result is written whole or not at all; a symbolic link at its path is replaced, not followed.
#[derive(Debug, Args)]
pub(crate) struct MultiplyArgs {
    /// The left factor, m x k (.npy).
    pub(crate) a: PathBuf,
    /// The right factor, k x n (.npy).
    pub(crate) b: PathBuf,
    /// Where to write the result (.npy); `-` is standard output, and what is printed otherwise goes to
    /// standard error then.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// The backend to use; `ane-matmul devices` lists them. `auto` is the fastest for one run, see `explain`.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(crate) backend: String,
    /// The type that the product is computed in; sums are in f32 (int8: in int32, with a scale for each
    /// row of A and each column of B; f64: in f64). With any but f32 and f64 the error against float64 is printed, measured
    /// on all rows, or on 64 random ones beyond 2^31 multiplications.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) precision: Precision,
    /// The type of the result; by default the widest type of the inputs, and f64 with --precision f64.
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) output_type: Option<OutputType>,
    /// The file holds A transposed: k x m.
    #[arg(long)]
    pub(crate) transpose_a: bool,
    /// The file holds B transposed: n x k.
    #[arg(long)]
    pub(crate) transpose_b: bool,
    /// A vector of n elements to add to every row (.npy).
    #[arg(long, value_name = "FILE")]
    pub(crate) bias: Option<PathBuf>,
    /// The function to apply to every element of the result.
    #[arg(long, value_name = "NAME", default_value = "none", value_parser = activation_parser())]
    pub(crate) activation: String,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Verify the result before it is written, by Freivalds' method; with an activation its linear
    /// part, and random rows of the result against a float64 recomputation. With --precision f64 random rows, against sums
    /// in twice the precision.
    #[arg(long)]
    pub(crate) check: bool,
}

/// Quantise the weights of a safetensors file to 8 or 4-bit integers.
///
/// Every tensor of 2 dimensions and of f32, f16 or bf16 becomes integers with an f16 scale for each
/// group of its elements along k; the others are copied unchanged, with a note, and so are output heads,
/// embeddings and routers. Prints the error of each tensor. One tensor at a time is kept in memory; the
/// file is mapped and must not be changed meanwhile, but for a pipe, which is read whole. The result is
/// written whole or not at all; docs/quantization.md describes it.
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// The file to read (.safetensors); or the index of a checkpoint's shards
    /// (model.safetensors.index.json), which become one file; or the directory of either; or `-`, standard
    /// input.
    pub(crate) input: PathBuf,
    /// The file to write (.safetensors).
    pub(crate) output: PathBuf,
    /// The type of the integers.
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub(crate) element: QuantizedType,
    /// The elements along k that share a scale.
    #[arg(long, value_name = "N", default_value = "128")]
    pub(crate) group_size: NonZeroU32,
    /// Tensors are stored k x n, in x out; by default n x k, as PyTorch stores a linear layer.
    #[arg(long)]
    pub(crate) in_out: bool,
    /// Copy the tensors whose whole name matches this pattern, in which `*` stands for any characters and `?`
    /// for one. May be given several times.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,
    /// Quantise output heads, embeddings and routers too; by default all are copied that match *lm_head*,
    /// output.weight, *predictions.decoder*, *classifier*, score.weight, *embed*, *embd*, *wte.weight,
    /// *wpe.weight, shared.weight, *.gate.weight, *router*, *shared_expert_gate* or *ffn_gate_inp*.
    #[arg(long)]
    pub(crate) no_default_excludes: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Types to quantise to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum QuantizedType {
    /// 8-bit integers.
    Int8,
    /// 4-bit integers.
    Int4,
}

impl QuantizedType {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// Time every backend of this machine on the same products, side by side.
///
/// Every result is checked before anything is timed. Up to 2^27 multiplications (512^3) each element is
/// compared with a float64 reference (f64: always), and the largest error and error bound are printed. Larger results
/// are checked by random projections (Freivalds' method, docs/self-check.md), which miss an error as large
/// as the mean bound of its row with probability 2^-10 at most and measure none: the errors are then "-",
/// and null in JSON. Samples of the backends are interleaved, so that all of them meet the same
/// disturbances. Operands and results are in host memory, in and out of every run, but for what --resident adds:
/// winners and crossover hold for that.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Square products to time, by their size [default: 256,512,1024,2048 unless --shapes is given].
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub(crate) sizes: Vec<usize>,
    /// Products to time, as MxNxK: an M x K matrix by a K x N matrix.
    #[arg(long, value_name = "MxNxK,...", value_delimiter = ',')]
    pub(crate) shapes: Vec<Shape>,
    /// The type of the operands; sums and results are in f32 (int8: sums in int32; GFLOP/s then counts
    /// operations on integers; f64: all in f64).
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) precision: Precision,
    /// B is constant, and given when the product is compiled.
    #[arg(long)]
    pub(crate) constant_b: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Time runs on operands that stay on the device too, as backends of their own, where a device has memory of its
    /// own: A and B are uploaded once, and C is left there.
    #[arg(long)]
    pub(crate) resident: bool,
    /// The backends to time [default: all that are here]. `auto` among them has a line of its own, which
    /// names the backend that it stands for, and wins nothing.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub(crate) backend: Vec<String>,
    /// Samples to take of each backend and product [default: 7 to 101, by the product's time].
    #[arg(long, value_name = "N")]
    pub(crate) samples: Option<NonZeroUsize>,
    /// Write the figures to a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Draw GFLOP/s by size into a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Write a page with tables and plots into a file: one HTML file that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}

/// Measure this machine, so that the backend `auto` knows which backend is the fastest for a product.
///
/// The profile is kept in the platform's data directory, or in the file that ANE_MATMUL_PROFILE names.
/// It holds for this chip, OS build, version and features of the program. Before everything is measured nothing
/// is written, but for a missing directory and the quarantine of what crashed, hung or computed wrong numbers. Leave the machine alone meanwhile.
#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    /// Measure for about half a minute: as many products as that takes [the default].
    #[arg(long)]
    pub(crate) quick: bool,
    /// Measure more products, for a few minutes.
    #[arg(long, conflicts_with = "quick")]
    pub(crate) full: bool,
    /// The numbers of CPU threads to measure with [default: 1 and as many as this process may use].
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub(crate) threads: Vec<NonZeroUsize>,
    /// The backends to measure [default: all that are here]; what is known of others is kept.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub(crate) backend: Vec<String>,
    /// Where to keep the profile, instead of the data directory. Other commands find it where
    /// ANE_MATMUL_PROFILE names it.
    #[arg(long, value_name = "FILE")]
    pub(crate) profile: Option<PathBuf>,
}

/// Say what every backend would take for a product, which one `auto` chooses, and what keeps the
/// product off the Neural Engine.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The product, as MxNxK: an M x K matrix by a K x N matrix.
    #[arg(value_name = "MxNxK")]
    pub(crate) shape: Shape,
    /// Products in the batch.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) batch: usize,
    /// B is constant, and given when the product is compiled.
    #[arg(long)]
    pub(crate) constant_b: bool,
    /// The type of the operands; sums are in f32 (int8: in int32; f64: all in f64).
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) precision: Precision,
    /// Sums and results in the type of the operands too: the Neural Engine takes f16 only so.
    #[arg(long)]
    pub(crate) uniform: bool,
    /// How often the product will run [default: so often that compiling does not count].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) runs: Option<u64>,
    /// The device to ask for: unknown (no preference), cpu, gpu or neural-engine.
    #[arg(long, value_name = "DEVICE", default_value = "unknown")]
    pub(crate) device: Device,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Print JSON instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Run a product for some seconds and say which device did the work, with the evidence.
///
/// What was requested is never taken for what was observed: without witnesses the device is
/// unknown. The load lasts four seconds with the defaults, or two where there is no control; leave
/// the machine idle otherwise.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The product, as MxNxK: an M x K matrix by a K x N matrix.
    #[arg(value_name = "MxNxK")]
    pub(crate) shape: Shape,
    /// The backend to run [default: auto, the one that `explain` names].
    #[arg(long, value_name = "NAME")]
    pub(crate) backend: Option<String>,
    /// The type that the product is computed in; f16 for the Neural Engine has f16 sums [default: f16
    /// where the Neural Engine is requested, else f32].
    #[arg(long, value_parser = precision_of(&[Precision::F32, Precision::F16, Precision::Bf16]))]
    pub(crate) precision: Option<Precision>,
    /// The device to request [default: neural-engine on mpsgraph, and on auto where it is required, but for
    /// another precision than f16; else none].
    #[arg(long, value_name = "DEVICE", value_parser = ["cpu", "gpu", "neural-engine"])]
    pub(crate) device: Option<String>,
    /// Fail unless it is proved that this device did the work.
    #[arg(long, value_name = "DEVICE", value_parser = ["cpu", "gpu", "neural-engine"])]
    pub(crate) require: Option<String>,
    /// Seconds under load each time; there are two, and two more of the control where there is one.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub(crate) seconds: f64,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Print JSON instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Try a product out in a process of its own, which may crash or hang: compile it, run it once on random
/// numbers, and verify the result.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// The product, as MxNxK: an M x K matrix by a K x N matrix.
    #[arg(value_name = "MxNxK")]
    pub(crate) shape: Shape,
    /// The backend to try; `ane-matmul devices` lists them.
    #[arg(long, value_name = "NAME")]
    pub(crate) backend: String,
    /// B is constant, and given when the product is compiled.
    #[arg(long)]
    pub(crate) constant_b: bool,
    /// The type of the operands.
    #[arg(long, value_parser = precision_of(&[Precision::F32, Precision::F16, Precision::Bf16, Precision::F64]), default_value = "f32")]
    pub(crate) precision: Precision,
    /// Sums and results in the type of the operands too: the Neural Engine takes f16 only so.
    #[arg(long)]
    pub(crate) uniform: bool,
    /// The device to ask for: unknown (no preference), cpu, gpu or neural-engine.
    #[arg(long, value_name = "DEVICE", default_value = "unknown")]
    pub(crate) device: Device,
    /// Try what the backend refuses for a known fault of its vendor's; that it passes once proves nothing.
    #[arg(long)]
    pub(crate) allow_known_faults: bool,
    /// How long it may take before it is killed.
    #[arg(long, value_name = "SECONDS", default_value = "180", value_parser = seconds)]
    pub(crate) time_limit: Duration,
    /// Note a crash, a hang or a wrong result in this profile.
    #[arg(long, value_name = "FILE")]
    pub(crate) quarantine: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
}

/// The name of the subcommand that a probe starts.
pub(crate) const PROBE_HELPER: &str = "probe-helper";

/// Run the conformance cases on a backend, such as a shim of yours, and say which of them fail.
///
/// The cases are products of every type, shape, stride and epilogue, each held to a float64 reference with its error
/// bound. They run in a process of their own, so that one that crashes or hangs is a failure too. After a case that takes
/// longer than --time-limit, or ten that crash, the rest of the list is not run, and the command that goes on is printed. A
/// case that the backend refuses neither passes nor fails. The numbers of a case are the same in every run, and each failure comes with
/// the command that runs its case alone. The status is 0 where no case failed, and at least one passed.
#[derive(Debug, Args)]
pub(crate) struct ConformanceArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// The lists to run [default: all].
    #[arg(long = "list", visible_alias = "precision", value_name = "LIST,...", value_delimiter = ',', value_parser = list_parser())]
    pub(crate) lists: Vec<List>,
    /// The cases of one list to run, by their numbers; `N..` is all from N on [default: all].
    #[arg(long = "case", value_name = "N,...", value_delimiter = ',', requires = "lists")]
    pub(crate) cases: Vec<CaseNumbers>,
    /// Fail where the backend refuses a case of these lists.
    #[arg(long, value_name = "LIST,...", value_delimiter = ',', value_parser = list_parser())]
    pub(crate) require: Vec<List>,
    /// How long one case may take before its process is killed.
    #[arg(long, value_name = "SECONDS", default_value = CASE_SECONDS, value_parser = seconds)]
    pub(crate) time_limit: Duration,
    /// Print JSON instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How long a case may take.
const CASE_SECONDS: &str = "180";

impl ConformanceArgs {
    /// The arguments that run `cases` of a list as these do, without defaults.
    pub(crate) fn of_cases(&self, list: List, cases: &str) -> String {
        let mut arguments = self.run.to_arguments();
        let seconds = self.time_limit.as_secs_f64().to_string();
        if seconds != CASE_SECONDS {
            arguments.extend(["--time-limit".to_owned(), seconds]);
        }
        format!("{} --list {list} --case {cases}", arguments.join(" "))
    }
}

/// A case of a list, or all from one on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CaseNumbers {
    pub(crate) first: NonZeroUsize,
    pub(crate) to_the_last: bool,
}

impl FromStr for CaseNumbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, to_the_last) = text.strip_suffix("..").map_or((text, false), |first| (first, true));
        let first =
            first.parse().map_err(|_| format!("expected a number from 1 up, or N.., got `{text}`"))?;
        Ok(Self { first, to_the_last })
    }
}

/// Where and with what a conformance case runs.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The backend to run them on; `ane-matmul devices` lists them.
    #[arg(long, value_name = "NAME")]
    pub(crate) backend: String,
    /// Draw other numbers for the operands.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// The device to ask for: unknown (no preference), cpu, gpu or neural-engine.
    #[arg(long, value_name = "DEVICE", default_value = "unknown")]
    pub(crate) device: Device,
    /// Let operands be rounded before they are multiplied, to tf32 say, and allow for it.
    #[arg(long)]
    pub(crate) reduced_precision: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
}

impl RunArgs {
    pub(crate) fn options(&self) -> CompileOptions {
        let mut options = self.threads.options().device(self.device);
        options.reduced_precision = self.reduced_precision;
        options
    }

    /// The arguments that give these, without defaults.
    pub(crate) fn to_arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--backend".to_owned(), backend_id(&self.backend).to_string()];
        let mut push = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        if self.seed != 0 {
            push("--seed", self.seed.to_string());
        }
        if self.device != Device::Unknown {
            push("--device", self.device.name().to_owned());
        }
        if let Some(threads) = self.threads.threads {
            push("--threads", threads.to_string());
        }
        if self.reduced_precision {
            arguments.push("--reduced-precision".to_owned());
        }
        arguments
    }
}

/// The name of the subcommand that `conformance` starts.
pub(crate) const CONFORMANCE_HELPER: &str = "conformance-helper";

fn list_parser() -> impl TypedValueParser<Value = List> {
    PossibleValuesParser::new(List::ALL.map(List::name)).try_map(|name| name.parse::<List>())
}

/// A length of time of at least a millisecond, and at most a day.
fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.001..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("expected seconds from 0.001 to 86400, got `{text}`"))
}

#[derive(Debug, Args)]
pub(crate) struct ThreadArgs {
    /// CPU threads, 1 to 4096 [default: as many as this process may use].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl ThreadArgs {
    /// The options to compile with. A BLAS that can be told the number of threads is told.
    pub(crate) fn options(&self) -> CompileOptions {
        let threads = self.threads.map_or(Threads::Auto, Threads::Count);
        #[cfg(all(feature = "blas", unix, not(target_vendor = "apple")))]
        if let Some(count) = self.threads {
            ane_matmul::set_blas_threads(count);
        }
        CompileOptions::default().threads(threads).device(Device::Unknown)
    }
}

/// Types to compute a product in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit integers.
    Int8,
    /// 64-bit floats: operands, sums and results.
    F64,
}

impl Precision {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::F64 => "f64",
        }
    }

    pub(crate) const fn types(self) -> ElementTypes {
        match self {
            Self::F32 => ElementTypes::F32,
            Self::F16 => ElementTypes::F16,
            Self::Bf16 => ElementTypes::BF16,
            Self::Int8 => ElementTypes::INT8,
            Self::F64 => ElementTypes::F64,
        }
    }

    /// Types and scheme of a product of floats, which int8 quantises: A when it runs.
    pub(crate) fn of_floats(self) -> (ElementTypes, Quantization) {
        match self {
            Self::Int8 => (
                ElementTypes { a: ElementType::F32, ..ElementTypes::INT8 },
                Quantization {
                    a: QuantA::DynamicPerRow,
                    b: QuantB::PerColumn { zero_point: 0 },
                    ..Quantization::default()
                },
            ),
            Self::F32 | Self::F16 | Self::Bf16 | Self::F64 => (self.types(), Quantization::default()),
        }
    }
}

/// The types that operands are made up in.
fn precision_of(types: &[Precision]) -> impl TypedValueParser<Value = Precision> + use<> {
    let names = types.iter().filter_map(ValueEnum::to_possible_value);
    PossibleValuesParser::new(names).try_map(|name| Precision::from_str(&name, false))
}

/// Types that results are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputType {
    /// 32-bit floats.
    F32,
    /// 64-bit floats.
    F64,
}

impl OutputType {
    /// The widest of some element types.
    pub(crate) fn widest(types: impl IntoIterator<Item = ElementType>) -> Self {
        if types.into_iter().any(|element| element == ElementType::F64) { Self::F64 } else { Self::F32 }
    }
}

fn activation_parser() -> PossibleValuesParser {
    PossibleValuesParser::new(Activation::ALL.map(Activation::name))
}

/// The dimensions of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let dims: Option<Vec<usize>> = text.split(['x', 'X']).map(|dim| dim.trim().parse().ok()).collect();
        match dims.as_deref() {
            Some(&[m, n, k]) => Ok(Self { m, n, k }),
            _ => Err("expected three whole numbers as MxNxK, such as 32x3072x768".into()),
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{}x{}x{}", self.m, self.n, self.k))
    }
}

/// A backend by its name on the command line.
pub(crate) fn backend_id(name: &str) -> BackendId {
    BackendId::new(name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn shapes() {
        assert_eq!("32x3072x768".parse(), Ok(Shape { m: 32, n: 3072, k: 768 }));
        for bad in ["", "1x2", "1x2x3x4", "ax2x3", "-1x2x3", "1 2 3"] {
            assert!(bad.parse::<Shape>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_conformance_case_is_run_again_with_the_arguments_that_it_had() {
        for line in [
            "--backend cuda:1",
            "--backend cuda:1 --seed 7 --device neural-engine --threads 3 --reduced-precision",
            "--backend cpu --seed 18446744073709551615",
        ] {
            let words = ["ane-matmul", CONFORMANCE_HELPER].into_iter().chain(line.split(' '));
            let Command::ConformanceHelper(args) = Cli::parse_from(words).command else { panic!("{line}") };
            assert_eq!(args.to_arguments().join(" "), line);
        }
        for line in
            ["--backend cpu --list f32 --case 3", "--backend cpu --time-limit 0.5 --list f16 --case 7.."]
        {
            let words = ["ane-matmul", "conformance"].into_iter().chain(line.split(' '));
            let Command::Conformance(args) = Cli::parse_from(words).command else { panic!("{line}") };
            let case = args.cases[0];
            let cases = format!("{}{}", case.first, if case.to_the_last { ".." } else { "" });
            assert_eq!(args.of_cases(args.lists[0], &cases), line);
        }
    }

    #[test]
    fn the_help_has_every_pattern_that_excludes_by_default() {
        let mut command = Cli::command();
        let quantize = command.find_subcommand_mut("quantize").unwrap();
        let help = quantize.render_long_help().to_string();
        let words: Vec<&str> =
            help.split_whitespace().map(|word| word.trim_end_matches([',', '.'])).collect();
        for pattern in ane_matmul::safetensors::QuantizeOptions::EXCLUDED {
            assert!(words.contains(pattern), "{pattern} in {help}");
        }
    }

    #[test]
    fn types_of_integers_have_names() {
        assert_eq!([QuantizedType::Int8, QuantizedType::Int4].map(QuantizedType::name), ["int8", "int4"]);
    }
}
