//! oneDNN's matrix product, in the version that Debian has and in a newer one.

mod api;

use std::env;
use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libloading::Library;

use self::api::{Api, Argument, BIAS, DESTINATION, Handle, SOURCE, Tag, Type, WEIGHTS};
use super::{Candidate, Candidates, Kind, Origin, Product, Rotation};
use crate::operands::{Buffer, Narrow, Operands};
use crate::shapes::{Case, Precision, Shape};

/// Where the newer oneDNN is: `scripts/bench` sets it.
const PATH_VARIABLE: &str = "ANE_MATMUL_PEERS_ONEDNN";

/// What caps the instructions that oneDNN uses, the name that it looks for first before the older one.
#[cfg(target_arch = "x86_64")]
const CAP_VARIABLES: [&str; 2] = ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"];

/// Why int8 is left out where `int8_saturates`.
const SATURATES: &str =
    "its int8 products saturate without dot-product instructions (AVX-512 VNNI or AVX-VNNI)";

type SetThreads = unsafe extern "C" fn(c_int);

struct OneDnn {
    api: Api,
    openmp: SetThreads,
    /// Keeps `openmp` valid.
    _runtime: Library,
}

pub(super) fn add(candidates: &mut Candidates) {
    // By name, so that the system finds it: which major version it has depends on the release.
    let debian = ["libdnnl.so.2", "libdnnl.so.3"].map(PathBuf::from);
    add_version(candidates, "onednn-debian", &debian, "install it with: apt-get install libdnnl-dev", true);
    let newer = env::var_os(PATH_VARIABLE).map_or_else(default_path, PathBuf::from);
    let hint = format!("scripts/bench fetches it; {PATH_VARIABLE} names another place");
    // Its package has x86-64 libraries alone.
    add_version(candidates, "onednn-pypi", &[newer], &hint, cfg!(target_arch = "x86_64"));
}

/// Beside the directory of the release build.
fn default_path() -> PathBuf {
    let executable = env::current_exe().unwrap_or_default();
    let target = executable.parent().and_then(|directory| directory.parent()).map(PathBuf::from);
    target.unwrap_or_default().join("peers/onednn/libdnnl.so.3")
}

fn add_version(candidates: &mut Candidates, name: &str, paths: &[PathBuf], hint: &str, required: bool) {
    let mut reasons = Vec::new();
    let loaded = paths.iter().find_map(|path| match OneDnn::load(path) {
        Ok(library) => Some((Rc::new(library), path)),
        Err(reason) => {
            reasons.push(reason);
            None
        }
    });
    let Some((library, path)) = loaded else {
        return candidates.add_missing(name, format!("{}; {hint}", reasons.join("; ")), required);
    };
    candidates.add_peer(name, format!("{} ({})", library.api.version(), path.display()));
    let int8 = !int8_saturates_here();
    if !int8 {
        candidates.add_missing(&format!("{name} in int8"), SATURATES, false);
    }
    for (kind, suffix) in [(Kind::Packed, ""), (Kind::Plain, "/dynamic"), (Kind::Fused, "/fused")] {
        let name = format!("{name}{suffix}");
        candidates.add(OneDnnCandidate { name, kind, int8, library: library.clone() });
    }
}

#[cfg(target_arch = "x86_64")]
fn int8_saturates_here() -> bool {
    let mut caps = CAP_VARIABLES.iter().filter_map(|variable| env::var(variable).ok());
    let cap = caps.find(|cap| !cap.is_empty()).unwrap_or_default();
    int8_saturates(is_x86_feature_detected!("avx512vnni"), is_x86_feature_detected!("avxvnni"), &cap)
}

#[cfg(not(target_arch = "x86_64"))]
fn int8_saturates_here() -> bool {
    false
}

/// Whether oneDNN sums pairs of int8 products in 16 bits, with saturation, as it does on x86-64 where
/// neither VNNI is there and within the cap.
#[cfg(target_arch = "x86_64")]
fn int8_saturates(avx512_vnni: bool, avx_vnni: bool, cap: &str) -> bool {
    // Upper and lower case are the same to oneDNN, and a name that it does not know caps nothing.
    let (allows_avx512_vnni, allows_avx_vnni) = match cap.to_ascii_uppercase().as_str() {
        "SSE41" | "AVX" | "AVX2" | "AVX512_CORE" => (false, false),
        "AVX2_VNNI" | "AVX2_VNNI_2" => (false, true),
        "AVX512_CORE_VNNI" | "AVX512_CORE_BF16" => (true, false),
        _ => (true, true),
    };
    !(avx512_vnni && allows_avx512_vnni || avx_vnni && allows_avx_vnni)
}

struct OneDnnCandidate {
    name: String,
    kind: Kind,
    /// Whether its int8 products are right.
    int8: bool,
    library: Rc<OneDnn>,
}

impl Candidate for OneDnnCandidate {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn origin(&self) -> Origin {
        Origin::NativeLibrary
    }

    fn does(&self, precision: Precision) -> bool {
        match precision {
            Precision::Weights | Precision::F64 => false,
            Precision::Int8 => self.int8,
            Precision::F32 | Precision::Bf16 | Precision::F16 => true,
        }
    }

    fn does_batches(&self) -> bool {
        true
    }

    fn prepare(&self, case: &Case, operands: &Operands) -> Result<Box<dyn Product>, String> {
        // The kernels are chosen for the number of threads that is set when they are.
        self.library.set_threads(case.threads);
        let mut product = OneDnnProduct {
            library: self.library.clone(),
            threads: case.threads,
            packed: self.kind != Kind::Plain,
            primitive: std::ptr::null_mut(),
            arguments: Vec::new(),
            copies: Vec::new(),
            rotation: Rotation::default(),
        };
        product.build(case.shape, self.kind == Kind::Fused, operands)?;
        Ok(Box::new(product))
    }
}

impl OneDnn {
    fn load(path: &Path) -> Result<Self, String> {
        let api = Api::load(path)?;
        // The same runtime that the library was loaded with.
        let runtime = super::open_local("libgomp.so.1".as_ref())?;
        // SAFETY: the OpenMP standard gives it this type.
        let openmp =
            unsafe { *runtime.get::<SetThreads>(b"omp_set_num_threads").map_err(|error| error.to_string())? };
        Ok(Self { api, openmp, _runtime: runtime })
    }

    fn set_threads(&self, threads: usize) {
        // SAFETY: a positive number of threads.
        unsafe { (self.openmp)(c_int::try_from(threads).expect("few threads")) };
    }
}

struct OneDnnProduct {
    library: Rc<OneDnn>,
    threads: usize,
    packed: bool,
    primitive: Handle,
    /// Source, weights, destination, and with an epilogue the bias.
    arguments: Vec<Argument>,
    /// The weights of every copy of B, packed or in place.
    copies: Vec<Handle>,
    rotation: Rotation,
}

/// The type of A and B, A, and the copies of B. oneDNN's memory is never const; these are only read.
fn inputs(operands: &Operands) -> (Type, *mut c_void, Vec<*mut c_void>) {
    fn starts<T: Copy + Default>(b: &[Buffer<T>]) -> Vec<*mut c_void> {
        b.iter().map(start).collect()
    }
    match &operands.narrow {
        Narrow::Nothing | Narrow::Weights(_) | Narrow::F64(_) => {
            (Type::F32, start(&operands.a), starts(&operands.b))
        }
        Narrow::Bf16(pair) => (Type::Bf16, start(&pair.a), starts(&pair.b)),
        Narrow::F16(pair) => (Type::F16, start(&pair.a), starts(&pair.b)),
        Narrow::Int8(pair) => (Type::S8, start(&pair.a), starts(&pair.b)),
    }
}

fn start<T: Copy + Default>(buffer: &Buffer<T>) -> *mut c_void {
    buffer.as_slice().as_ptr().cast_mut().cast()
}

impl OneDnnProduct {
    fn build(&mut self, shape: Shape, fused: bool, operands: &Operands) -> Result<(), String> {
        let library = self.library.clone();
        let api = &library.api;
        let Shape { batch, m, n, k } = shape;
        let (element, a, copies_of_b) = inputs(operands);
        let matrix = |batch: usize, rows: usize, cols: usize| {
            if shape.batch == 1 { vec![rows, cols] } else { vec![batch, rows, cols] }
        };
        let source = api.descriptor(&matrix(batch, m, k), element, Tag::RowMajor)?;
        let plain = api.descriptor(&matrix(batch, k, n), element, Tag::RowMajor)?;
        let wanted = api.descriptor(
            &matrix(batch, k, n),
            element,
            if self.packed { Tag::Any } else { Tag::RowMajor },
        )?;
        let destination = api.descriptor(&matrix(batch, m, n), Type::F32, Tag::RowMajor)?;
        let bias =
            if fused { Some(api.descriptor(&matrix(1, 1, n), Type::F32, Tag::RowMajor)?) } else { None };
        let attributes = if fused { api.gelu_attributes()? } else { std::ptr::null_mut() };
        let description = api.matmul([&source, &wanted, &destination], bias.as_ref(), attributes);
        if fused {
            api.destroy_attributes(attributes);
        }
        let description = description?;
        let packing = api.weights_descriptor(description);
        for copy in copies_of_b {
            let in_place = api.memory(plain.as_ptr(), copy)?;
            if !self.packed {
                self.copies.push(in_place);
                continue;
            }
            let packed = api.memory(packing, std::ptr::null_mut())?;
            self.copies.push(packed);
            let reorder = api.primitive(api.reorder(plain.as_ptr(), packing)?)?;
            let arguments = [
                Argument { index: SOURCE, memory: in_place },
                Argument { index: DESTINATION, memory: packed },
            ];
            // SAFETY: both memories are valid, and the destination was just made.
            unsafe { api.execute(reorder, &arguments)? };
            api.destroy_primitive(reorder);
            api.destroy_memory(in_place);
        }
        // After the descriptor of the packed weights was used: it belongs to the description.
        self.primitive = api.primitive(description)?;
        let mut add = |index, descriptor: &api::Descriptor<'_>, data: *mut c_void| {
            let memory = api.memory(descriptor.as_ptr(), data)?;
            self.arguments.push(Argument { index, memory });
            Ok::<(), String>(())
        };
        add(SOURCE, &source, a)?;
        add(DESTINATION, &destination, start(&operands.c))?;
        if let Some(bias) = &bias {
            add(BIAS, bias, start(&operands.bias))?;
        }
        self.arguments.push(Argument { index: WEIGHTS, memory: self.copies[0] });
        Ok(())
    }
}

impl Product for OneDnnProduct {
    fn run(&mut self, operands: &mut Operands, calls: usize) {
        let api = &self.library.api;
        self.library.set_threads(self.threads);
        // The pointers taken when the arguments were made may not be written through.
        let c = operands.c.as_mut_slice().as_mut_ptr();
        // SAFETY: C has the size that its descriptor says.
        unsafe { api.set_memory(self.arguments[1].memory, c.cast()) };
        let weights = self.arguments.len() - 1;
        for _ in 0..calls {
            self.arguments[weights].memory = self.copies[self.rotation.next(self.copies.len())];
            // SAFETY: the handles are this product's, and C is this call's alone.
            let result = unsafe { api.execute(self.primitive, &self.arguments) };
            result.expect("a valid run");
        }
    }
}

impl Drop for OneDnnProduct {
    fn drop(&mut self) {
        let api = &self.library.api;
        // The last argument, the weights, is one of the copies.
        self.arguments.pop();
        for memory in self.copies.drain(..).chain(self.arguments.drain(..).map(|argument| argument.memory)) {
            api.destroy_memory(memory);
        }
        if !self.primitive.is_null() {
            api.destroy_primitive(self.primitive);
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn int8_saturates_where_no_vnni_is_within_the_cap() {
        // On processors with neither VNNI, with AVX-512's, with AVX's, and with both.
        let cases: [(&[&str], [bool; 4]); 4] = [
            (&["", "ALL", "DEFAULT", "AVX512_CORE_AMX", "no such name"], [true, false, false, false]),
            (&["AVX512_CORE_VNNI", "AVX512_CORE_BF16"], [true, false, true, false]),
            (&["AVX2_VNNI", "AVX2_VNNI_2"], [true, true, false, false]),
            (&["SSE41", "AVX", "AVX2", "avx2", "AVX512_CORE"], [true, true, true, true]),
        ];
        for (caps, expected) in cases {
            for cap in caps {
                let processors = [(false, false), (true, false), (false, true), (true, true)];
                let saturates =
                    processors.map(|(avx512_vnni, avx_vnni)| int8_saturates(avx512_vnni, avx_vnni, cap));
                assert_eq!(saturates, expected, "{cap}");
            }
        }
    }
}
