//! The command line, end to end.

#[path = "support/place.rs"]
mod place;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ane_matmul::npy::{self, NpyTensor};
use ane_matmul::{Activation, Tensor};
use place::Place;

impl Place {
    fn save<T: ane_matmul::Element + npyz::AutoSerialize>(&self, name: &str, tensor: &Tensor<T>) -> PathBuf {
        let path = self.path(name);
        npy::write(&path, tensor).expect("a NumPy file");
        path
    }

    fn bytes(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("a file");
        path
    }
}

fn run(args: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
    command.args(args.iter().map(AsRef::as_ref)).output().expect("the command line runs")
}

fn multiply(a: &Path, b: &Path, c: &Path, more: &[&str]) -> Output {
    let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"multiply", &a, &b, &"-o", &c];
    args.extend(more.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>));
    run(&args)
}

/// Asserts success and returns standard output.
#[track_caller]
fn succeeded(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// Asserts status 1 with one line `error: ...` that contains `text`, after lines of progress where the machine is
/// slow, and nothing on standard output.
#[track_caller]
fn failed(output: &Output, text: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let stderr: String =
        stderr.lines().filter(|line| !line.ends_with(" s]")).map(|l| format!("{l}\n")).collect();
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains(text), "expected {text:?} in: {stderr}");
    assert!(output.stdout.is_empty());
}

#[track_caller]
fn usage(output: &Output, text: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(text), "expected {text:?} in: {stderr}");
}

fn integers(rows: usize, cols: usize) -> Tensor<f32> {
    Tensor::from_fn(rows, cols, |r, c| f32::from(u8::try_from((r * 7 + c * 3) % 5).unwrap()) - 2.0).unwrap()
}

fn product(a: &Tensor<f32>, b: &Tensor<f32>) -> Vec<f32> {
    let (m, n, k) = (a.rows(), b.cols(), a.cols());
    (0..m * n).map(|i| (0..k).map(|p| a.data()[i / n * k + p] * b.data()[p * n + i % n]).sum()).collect()
}

fn read_f32(path: &Path) -> Tensor<f32> {
    match npy::read(path).expect("a result") {
        NpyTensor::F32(tensor) => tensor,
        other => panic!("{other:?}"),
    }
}

#[test]
fn multiply_writes_the_product() {
    let place = Place::new();
    let (a, b) = (integers(3, 5), integers(5, 4));
    let (pa, pb, pc) = (place.save("a.npy", &a), place.save("b.npy", &b), place.path("c.npy"));
    assert_eq!(succeeded(&multiply(&pa, &pb, &pc, &[])), "");
    let c = read_f32(&pc);
    assert_eq!((c.rows(), c.cols(), c.data()), (3, 4, product(&a, &b).as_slice()));
    assert_eq!(place.names(), ["a.npy", "b.npy", "c.npy"]);
}

#[test]
fn transposes_bias_activation_threads_and_check() {
    let place = Place::new();
    let (a, b) = (integers(30, 50), integers(50, 40));
    let pa = place.save("a.npy", &a.transposed().unwrap());
    let pb = place.save("b.npy", &b.transposed().unwrap());
    let bias = place.save("bias.npy", &Tensor::filled(1, 40, 0.5f32).unwrap());
    let pc = place.path("c.npy");
    let bias = bias.to_str().unwrap();
    let arguments = [
        "--transpose-a",
        "--transpose-b",
        "--bias",
        bias,
        "--activation",
        "relu",
        "--threads",
        "2",
        "--check",
    ];
    let text = succeeded(&multiply(&pa, &pb, &pc, &arguments));
    assert!(text.contains("Freivalds' method, 20 vectors, failure probability at most 9.54e-7"), "{text}");
    assert!(text.contains("20 random rows of 30 recomputed in float64"), "{text}");
    let expected: Vec<f32> = product(&a, &b).iter().map(|x| (x + 0.5).max(0.0)).collect();
    assert_eq!(read_f32(&pc).data(), expected);
    for activation in Activation::ALL {
        let text = succeeded(&multiply(
            &pa,
            &pb,
            &pc,
            &["--transpose-a", "--transpose-b", "--activation", activation.name(), "--check"],
        ));
        assert!(text.contains("check passed"), "{text}");
    }
}

#[test]
fn the_result_has_the_widest_input_type_or_the_one_asked_for() {
    let place = Place::new();
    let narrow = place.save("a.npy", &integers(2, 2));
    let wide = place.save("b.npy", &integers(2, 2).to_f64().unwrap());
    let c = place.path("c.npy");
    for (a, b, more, expect_wide) in [
        (&narrow, &narrow, &[][..], false),
        (&narrow, &wide, &[], true),
        (&wide, &narrow, &[], true),
        (&wide, &wide, &["--output-type", "f32"], false),
        (&narrow, &narrow, &["--output-type", "f64"], true),
    ] {
        succeeded(&multiply(a, b, &c, more));
        assert_eq!(matches!(npy::read(&c).unwrap(), NpyTensor::F64(_)), expect_wide, "{more:?}");
    }
}

#[test]
fn a_product_in_f64_is_not_rounded_on_the_way() {
    let place = Place::new();
    let tensor = |data: Vec<f64>, rows, cols| Tensor::from_vec(data, rows, cols).unwrap();
    let (u, v) = (2f64.powi(-40), 2f64.powi(-30));
    let a = place.save("a.npy", &tensor(vec![1.0 + u, v, 1.0 - u, -v], 2, 2));
    let b = place.save("b.npy", &tensor(vec![1.0, v], 2, 1));
    let bias = place.save("bias.npy", &tensor(vec![u], 1, 1));
    let c = place.path("c.npy");
    let result = |more: &[&str]| {
        let text = succeeded(&multiply(&a, &b, &c, more));
        (text, npy::read(&c).unwrap())
    };
    let wide = |x: [f64; 2]| NpyTensor::F64(tensor(x.to_vec(), 2, 1));
    let exact = [1.0 + u + v * v, 1.0 - u - v * v];
    let (text, c_f64) = result(&["--precision", "f64", "--check"]);
    assert_eq!(c_f64, wide(exact));
    assert!(text.contains("check passed: 2 random rows of 2 recomputed"), "{text}");
    let bias = bias.to_str().unwrap();
    let (_, c_relu) = result(&["--precision", "f64", "--bias", bias, "--activation", "relu", "--check"]);
    assert_eq!(c_relu, wide(exact.map(|x| x + u)));
    assert_eq!(result(&[]).1, wide([1.0; 2]), "f32 has no such numbers");
    let (_, rounded) = result(&["--precision", "f64", "--output-type", "f32"]);
    assert_eq!(rounded, NpyTensor::F32(Tensor::filled(2, 1, 1f32).unwrap()));
    let narrow = place.save("narrow.npy", &Tensor::filled(2, 2, 3f32).unwrap());
    succeeded(&multiply(&narrow, &b, &c, &["--precision", "f64"]));
    assert_eq!(npy::read(&c).unwrap(), wide([3.0 + 3.0 * v; 2]));
    let refused = multiply(&a, &b, &c, &["--precision", "f64", "--backend", "blas"]);
    if !cfg!(target_vendor = "apple") && cfg!(feature = "blas") {
        failed(&refused, "runs f32 only");
    }
}

#[test]
fn batches_and_shared_matrices() {
    let place = Place::new();
    let batch =
        Tensor::from_vec_batched([integers(3, 5).data(), integers(3, 5).data()].concat(), 2, 3, 5).unwrap();
    let (pa, pb) = (place.save("a.npy", &batch), place.save("b.npy", &integers(5, 4)));
    let c = place.path("c.npy");
    succeeded(&multiply(&pa, &pb, &c, &["--check"]));
    let expected = product(&integers(3, 5), &integers(5, 4));
    let result = read_f32(&c);
    assert!(result.is_batched());
    assert_eq!(result.data(), [expected.as_slice(), &expected].concat());
    // A batch of one is as NumPy has it, in every type, on either side.
    let one = |name: &str, tensor: Tensor<f32>| {
        let (rows, cols) = (tensor.rows(), tensor.cols());
        place.save(name, &Tensor::from_vec_batched(tensor.into_vec(), 1, rows, cols).unwrap())
    };
    for precision in ["f32", "bf16", "int8"] {
        let mut results = Vec::new();
        for b in [&pb, &one("one.npy", integers(5, 4))] {
            succeeded(&multiply(&pa, b, &c, &["--check", "--precision", precision]));
            results.push(read_f32(&c));
        }
        assert_eq!(results[0], results[1], "{precision}");
    }
    let twice = Tensor::from_vec_batched([integers(5, 4).data(); 2].concat(), 2, 5, 4).unwrap();
    succeeded(&multiply(
        &one("left.npy", integers(3, 5)),
        &place.save("twice.npy", &twice),
        &c,
        &["--check"],
    ));
    assert_eq!(read_f32(&c), result);
    let none = place.save("none.npy", &Tensor::<f32>::zeros_batched(0, 5, 4).unwrap());
    succeeded(&multiply(&one("left.npy", integers(3, 5)), &none, &c, &[]));
    assert_eq!((read_f32(&c).batch(), read_f32(&c).rows()), (0, 3));
    let three = place.save("three.npy", &Tensor::<f32>::zeros_batched(3, 5, 4).unwrap());
    failed(&multiply(&pa, &three, &c, &[]), "holds 2 matrices and");
}

#[test]
fn zero_and_one_are_dimensions() {
    let place = Place::new();
    for (m, n, k) in [(0, 3, 2), (3, 0, 2), (3, 2, 0), (1, 1, 1), (0, 0, 0)] {
        let a = place.save("a.npy", &integers(m, k));
        let b = place.save("b.npy", &integers(k, n));
        let c = place.path("c.npy");
        succeeded(&multiply(&a, &b, &c, &["--check"]));
        let result = read_f32(&c);
        assert_eq!((result.rows(), result.cols()), (m, n));
        assert_eq!(result.data(), product(&integers(m, k), &integers(k, n)));
    }
}

#[test]
fn nan_and_infinity_propagate() {
    let place = Place::new();
    let mut a = integers(3, 3);
    a.data_mut()[0] = f32::NAN;
    a.data_mut()[4] = f32::INFINITY;
    let b = Tensor::filled(3, 2, 1f32).unwrap();
    let c = place.path("c.npy");
    let output = multiply(&place.save("a.npy", &a), &place.save("b.npy", &b), &c, &["--check"]);
    assert!(succeeded(&output).contains("2 rows of 3 hold NaN or infinity"));
    let c = read_f32(&c);
    assert!(c.data()[0].is_nan() && c.data()[2].is_infinite() && c.data()[4].is_finite());
}

#[test]
fn numbers_beyond_f32_become_infinity_and_are_counted() {
    let place = Place::new();
    let a = place.save("a.npy", &Tensor::filled(1, 2, 1e300).unwrap());
    let b = place.save("b.npy", &Tensor::filled(2, 1, 1.0).unwrap());
    let c = place.path("c.npy");
    let output = multiply(&a, &b, &c, &[]);
    succeeded(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("2 elements beyond f32's range"));
    assert_eq!(npy::read(&c).unwrap().view().get(0, 0, 0), Some(f64::INFINITY));
    let a = place.save("a.npy", &Tensor::filled(1, 2, 1e-60).unwrap());
    let b = place.save("b.npy", &Tensor::filled(2, 1, 1e30).unwrap());
    let output = multiply(&a, &b, &c, &[]);
    succeeded(&output);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("a.npy: 2 elements beyond f32's range became 0") && text.lines().count() == 1,
        "{text}"
    );
    // Numbers within it whose products are beyond it: infinity is the right result.
    let a = place.save("a.npy", &Tensor::filled(1, 2, 1e30f32).unwrap());
    let b = place.save("b.npy", &Tensor::filled(2, 1, 1e30f32).unwrap());
    let text = succeeded(&multiply(&a, &b, &c, &["--check"]));
    assert!(text.contains("1 rows of 1 hold NaN or infinity"), "{text}");
    assert_eq!(read_f32(&c).data(), [f32::INFINITY]);
}

#[test]
fn bad_input_is_an_error_and_leaves_the_output_alone() {
    let place = Place::new();
    let a = place.save("a.npy", &integers(3, 5));
    let b = place.save("b.npy", &integers(5, 4));
    let c = place.bytes("c.npy", b"precious");
    let good = fs::read(&a).unwrap();
    let truncated = place.bytes("truncated.npy", &good[..good.len() - 3]);
    let longer = place.bytes("longer.npy", &[good.as_slice(), b"xyz"].concat());
    let text = place.bytes("text.npy", b"1 2 3\n");
    let header = |descr: &str, shape: &str| {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend([0; 64]);
        bytes
    };
    let complex = place.bytes("complex.npy", &header("<c8", "(2, 4)"));
    let int64 = place.bytes("int64.npy", &header("<i8", "(2, 4)"));
    let huge = place.bytes("huge.npy", &header("<f4", "(4294967296, 4294967296, 4294967296)"));
    let flat = place.bytes("flat.npy", &header("<f4", "(16,)"));
    let wide = place.save("wide.npy", &integers(4, 4));
    let bias = place.save("bias.npy", &Tensor::filled(1, 3, 0f32).unwrap());
    let missing = place.path("missing.npy");

    failed(&multiply(&missing, &b, &c, &[]), "missing.npy: read: No such file");
    failed(&multiply(&truncated, &b, &c, &[]), "is truncated");
    failed(&multiply(&longer, &b, &c, &[]), "3 bytes after its array");
    failed(&multiply(&text, &b, &c, &[]), "is not a NumPy file");
    failed(&multiply(&complex, &b, &c, &[]), "elements of type <c8");
    failed(&multiply(&int64, &b, &c, &[]), "elements of type <i8");
    failed(&multiply(&huge, &b, &c, &[]), "overflow");
    failed(&multiply(&flat, &b, &c, &[]), "has shape (16)");
    failed(&multiply(&a, &wide, &c, &[]), "shapes do not fit");
    failed(&multiply(&a, &b, &c, &["--bias", bias.to_str().unwrap()]), "expected 4 elements");
    failed(&multiply(&a, &b, &c, &["--backend", "cuda"]), "known backends: cpu");
    if cfg!(all(feature = "blas", unix, not(target_vendor = "apple"))) {
        failed(&multiply(&a, &b, &c, &["--backend", "blas", "--precision", "int8"]), "runs f32 only");
    }
    failed(&multiply(&a, &b, &c, &["--threads", "1000000"]), "expected at most 4096 threads");
    if !cfg!(target_vendor = "apple") {
        failed(&multiply(&a, &b, &c, &["--backend", "metal"]), "Metal exists on macOS and iOS only");
    }
    failed(&multiply(place.directory(), &b, &c, &[]), "is a directory; expected a .npy file");
    assert_eq!(fs::read(&c).unwrap(), b"precious");

    failed(&multiply(&a, &b, place.directory(), &[]), "is a directory");
    failed(&multiply(&a, &b, &place.path("no/such/c.npy"), &[]), "No such file");
    usage(&multiply(&a, &b, &c, &["--threads", "0"]), "--threads");
    usage(&multiply(&a, &b, &c, &["--threads=-1"]), "--threads");
    usage(&multiply(&a, &b, &c, &["--activation", "swish"]), "silu");
    usage(&multiply(&a, &b, &c, &["--precision", "f8"]), "bf16");
    usage(&run(&[&"multiply", &a, &b]), "--output");
    usage(&run(&[&"frobnicate"]), "frobnicate");
    usage(&run(&[]), "Usage");
    assert_eq!(fs::read(&c).unwrap(), b"precious");
    assert!(!place.names().iter().any(|name| name.contains(".part")), "{:?}", place.names());
}

#[cfg(unix)]
#[test]
fn an_unwritable_or_unreadable_path_is_an_error() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    let (a, b) = (place.save("a.npy", &integers(2, 2)), place.save("b.npy", &integers(2, 2)));
    failed(&multiply(&a, &b, Path::new("/proc/c.npy"), &[]), "/proc/c.npy: write:");
    // The superuser may read and write everything: nothing to see then.
    let locked = place.path("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(locked.join("probe"), "").is_err() {
        failed(&multiply(&a, &b, &locked.join("c.npy"), &[]), "Permission denied");
        fs::set_permissions(&a, fs::Permissions::from_mode(0o0)).unwrap();
        failed(&multiply(&a, &b, &place.path("c.npy"), &[]), "Permission denied");
    } else {
        println!("not run as the superuser: permission errors");
    }
}

#[test]
fn devices_lists_every_known_backend() {
    let text = succeeded(&run(&[&"devices"]));
    let json: serde_json::Value = serde_json::from_str(&succeeded(&run(&[&"devices", &"--json"]))).unwrap();
    let backends = json["backends"].as_array().unwrap();
    for name in ["cpu", "blas", "accelerate", "metal", "mpsgraph"] {
        assert!(text.contains(name), "{text}");
        let entry = backends.iter().find(|entry| entry["backend"] == name).unwrap();
        assert!(entry["available"] == true || entry["reason"].is_string(), "{entry}");
    }
    assert!(json["machine"]["cpu"].is_string());
    assert!(json["machine"]["cores"].as_u64() > Some(0));
    assert!(json["machine"]["instruction_sets"].is_array());
}

#[test]
fn compare_keeps_its_contract() {
    let place = Place::new();
    let (json, svg, report) = (place.path("out.json"), place.path("out.svg"), place.path("out.html"));
    let text = succeeded(&run(&[
        &"compare",
        &"--sizes",
        &"8,16",
        &"--shapes",
        &"3x5x7,1x1x2",
        &"--samples",
        &"3",
        &"--threads",
        &"1",
        &"--json",
        &json,
        &"--svg",
        &svg,
        &"--report",
        &report,
    ]));
    for word in ["8x8x8", "16x16x16", "3x5x7", "1x1x2", "GFLOP/s", "of best", "winner", "crossover", "cpu"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    for key in ["machine", "results", "unavailable", "winners", "crossover"] {
        assert!(json.get(key).is_some(), "{key}");
    }
    let results = json["results"].as_array().unwrap();
    assert!(results.len() >= 4);
    for result in results {
        for key in [
            "batch",
            "m",
            "n",
            "k",
            "compile_ns",
            "first_run_ns",
            "median_ns",
            "min_ns",
            "gflops",
            "max_abs_error",
            "error_bound",
        ] {
            assert!(result[key].is_number(), "{key} in {result}");
        }
        assert_eq!(result["precision"], "f32");
        assert_eq!((&result["constant_b"], &result["check"]), (&false.into(), &"reference".into()));
        assert!(result["stands_for"].is_null(), "{result}");
        assert!(result["backend"].is_string() && result["requested"] == "unknown");
        assert!(result["max_abs_error"].as_f64() <= result["error_bound"].as_f64());
        assert!(result["min_ns"].as_f64() <= result["median_ns"].as_f64());
    }
    assert!(results.iter().filter(|result| result["backend"] == "cpu").all(|result| result["threads"] == 1));
    assert_eq!(json["winners"].as_array().unwrap().len(), 4);
    for entry in json["unavailable"].as_array().unwrap() {
        assert!(entry["backend"].is_string() && entry["reason"].is_string());
        assert!(text.contains(&format!("not here: {}", entry["backend"].as_str().unwrap())), "{text}");
    }
    let picture = fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    assert!(picture.contains("GFLOP/s") && picture.contains("cpu"));
    let page = fs::read_to_string(&report).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
    for word in ["8x8x8", "GFLOP/s by size", "rossover", "pays for", "Evidence", env!("CARGO_PKG_VERSION")] {
        assert!(page.contains(word), "{word} in {page}");
    }
}

#[test]
fn compare_refuses_bad_requests() {
    let place = Place::new();
    failed(&run(&[&"compare", &"--backend", &"cpu,cuda"]), "unknown backend `cuda`");
    failed(&run(&[&"compare", &"--sizes", &"8", &"--json", &place.directory()]), "is a directory");
    let same = place.path("same");
    failed(
        &run(&[&"compare", &"--sizes", &"8", &"--json", &same, &"--svg", &same]),
        "--json and --svg name the same file",
    );
    failed(
        &run(&[&"compare", &"--sizes", &"8", &"--svg", &same, &"--report", &same]),
        "--svg and --report name the same file",
    );
    failed(&run(&[&"compare", &"--sizes", &"8", &"--report", &place.directory()]), "is a directory");
    assert!(!same.exists());
    failed(&run(&[&"compare", &"--sizes", &"18446744073709551615"]), "overflow");
    failed(&run(&[&"compare", &"--sizes", &"100000000"]), "out of memory");
    failed(&run(&[&"compare", &"--shapes", &"1099511627776x0x0"]), "nothing to be timed");
    failed(&run(&[&"compare", &"--sizes", &"8", &"--shapes", &"0x2x2"]), "0x2x2 has nothing to be timed");
    usage(&run(&[&"compare", &"--sizes", &"x"]), "invalid digit");
    usage(&run(&[&"compare", &"--shapes", &"3x4"]), "MxNxK");
    usage(&run(&[&"compare", &"--samples", &"0"]), "--samples");
    usage(&run(&[&"compare", &"--threads", &"0"]), "--threads");
}

#[test]
fn verify_says_what_was_seen_and_what_was_not() {
    let verify = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
        command.args(["verify", "16x16x16", "--seconds", "0.05"]).args(more);
        command.env("ANE_MATMUL_PROFILE", "/no/such/profile.json");
        command.env("ANE_MATMUL_SHIM", ane_matmul_shims::REFERENCE);
        // Each run waits 50 ms: the CPU does nothing most of the time.
        command.env("ANE_REFERENCE_FAULT", "slow:50000000").output().expect("the command line runs")
    };
    let text = succeeded(&verify(&["--backend", "cpu"]));
    for part in ["requested:  unknown", "observed:   ", "the backend says cpu", "energy is absent"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let waiting = succeeded(&verify(&["--backend", "reference"]));
    assert!(waiting.contains("observed:   cpu\n"), "{waiting}");
    // Whoever names no backend gets the one that a user of `auto` would.
    if cfg!(not(target_vendor = "apple")) {
        let default = verify(&["--json"]);
        let default: serde_json::Value = serde_json::from_slice(&default.stdout).expect("JSON");
        assert_eq!((&default["backend"], &default["requested"]), (&"cpu".into(), &"unknown".into()));
        let unproved = verify(&["--require", "neural-engine"]);
        assert!(String::from_utf8_lossy(&unproved.stdout).contains("requested:  unknown"), "{unproved:?}");
        let stderr = String::from_utf8_lossy(&unproved.stderr).into_owned();
        assert!(stderr.starts_with("note: no backend here takes the neural-engine"), "{stderr}");
        assert!(stderr.contains("error: not proved that neural-engine did the work"), "{stderr}");
    }

    for command in ["verify", "probe"] {
        usage(&run(&[&command, &"8x8x8", &"--backend", &"cpu", &"--precision", &"int8"]), "f32, f16, bf16");
    }
    let output = verify(&["--backend", "cpu", "--require", "neural-engine", "--json"]);
    let json: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("the receipt comes all the same");
    let unproved = Output { stdout: Vec::new(), ..output };
    failed(&unproved, "not proved that neural-engine did the work");
    assert_eq!((&json["required"], &json["proved"]), (&"neural-engine".into(), &false.into()));
    assert_ne!(json["observed"], "neural-engine");
    for witness in json["witnesses"].as_array().unwrap() {
        assert!(witness["witness"].is_string() && witness.get("says").is_some(), "{witness}");
    }
    failed(&verify(&["--backend", "reference", "--precision", "bf16"]), "refused by backend `reference`");
    failed(&verify(&["--backend", "none"]), "unknown backend `none`");
    failed(&run(&[&"verify", &"8x8x8", &"--seconds", &"0"]), "--seconds: expected more than 0");
    failed(&run(&[&"verify", &"8x8x8", &"--seconds", &"nan"]), "--seconds: expected more than 0");
    usage(&run(&[&"verify", &"8x8"]), "MxNxK");
    usage(&run(&[&"verify", &"8x8x8", &"--require", &"mixed"]), "possible values");
}

#[test]
fn an_empty_variable_is_as_if_it_were_not_there() {
    let explain = |value: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
        command.args(["explain", "8x8x8", "--json"]).env("ANE_MATMUL_PROFILE", "/no/such/profile.json");
        let output = command.env("ANE_MATMUL_CPU", value).env("ANE_MATMUL_SHIM", "").output();
        let text = succeeded(&output.expect("the command line runs"));
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")
    };
    let verdict = |explained: &serde_json::Value| explained["candidates"][0].clone();
    assert_eq!(verdict(&explain("")), verdict(&explain("portable")));
    let none = verdict(&explain("none"));
    assert!(none.to_string().contains("ANE_MATMUL_CPU=none names no kernels"), "{none}");
}

/// What a process does once is no product's: a helper that takes long to open its device. What compiling and a
/// first run take is told apart.
#[test]
fn calibrate_attributes_what_takes_long() {
    let measured = |fault: &str| {
        let workplace = Place::new();
        let profile = workplace.path("data/profile.json");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
        command.args(["calibrate", "--backend", "reference", "--threads", "1", "--profile"]).arg(&profile);
        command.env("ANE_MATMUL_SHIM", ane_matmul_shims::REFERENCE).env("ANE_REFERENCE_FAULT", fault);
        succeeded(&command.output().expect("the command line runs"));
        let profile = ane_matmul::Profile::load(&profile).unwrap();
        let [series] = profile.series() else { panic!("{profile:?}") };
        series.samples.clone()
    };
    // A busy machine makes anything long, but not everything.
    let long = |samples: &[ane_matmul::Sample], ns: fn(&ane_matmul::Sample) -> f64, planted: f64| {
        samples.iter().all(|sample| ns(sample) >= 0.9 * planted)
    };
    let opened = measured("slow:700000000@open");
    assert!(!long(&opened, |sample| sample.compile_ns + sample.first_run_ns, 700e6), "{opened:?}");
    if std::env::var_os("ANE_MATMUL_THOROUGH").is_some() {
        let compiled = measured("slow:300000000@compile");
        assert!(long(&compiled, |sample| sample.compile_ns, 300e6), "{compiled:?}");
        assert!(!long(&compiled, |sample| sample.first_run_ns, 300e6), "{compiled:?}");
        let ran = measured("slow:300000000@first");
        assert!(long(&ran, |sample| sample.first_run_ns, 200e6), "{ran:?}");
        assert!(!long(&ran, |sample| sample.compile_ns, 300e6), "{ran:?}");
    }
}

/// A backend that lies about itself, in one field and in all of them, and one that has a device of its own.
///
/// Not on Apple's systems, where Accelerate needs so little CPU time that a larger product would be wanted.
#[test]
#[cfg(all(unix, not(target_vendor = "apple")))]
fn verify_takes_no_backends_word() {
    let verify = |lies: &str| {
        // A product that another device would take next to nothing for, beside the CPU; computed once.
        let shape = if lies.contains("replay") { "192x192x16384" } else { "32x32x2048" };
        let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
        command.args(["verify", shape, "--seconds", "0.2", "--backend", "liar", "--require", "gpu"]);
        command.env("ANE_MATMUL_SHIM", ane_matmul_shims::LIAR).env("ANE_LIAR", lies);
        command.output().expect("the command line runs")
    };
    let receipt = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let worked = "spent the CPU time that the CPU would need";
    for (lies, observed, reason) in [
        ("gpu", "unknown", worked),
        ("time", "unknown", "gives timestamps of a device"),
        ("hour", "unknown", "command buffers 3600.000s of a run's"),
        ("gpu,time", "unknown", worked),
        ("gpu,hour", "unknown", "command buffers 3600.000s of a run's"),
        ("gpu,sleep", "unknown", worked),
        ("gpu,time,sleep", "unknown", worked),
        ("replay", "unknown", "too little CPU time"),
        ("time,replay", "unknown", "gives timestamps of a device"),
    ] {
        let output = verify(lies);
        let text = receipt(&output);
        assert!(
            text.contains(&format!("observed:   {observed}\n")) && text.contains(reason),
            "{lies}: {text}"
        );
        failed(&Output { stdout: Vec::new(), ..output }, "not proved that gpu did the work");
    }
    failed(&verify("gpu,time,skip"), "backend `liar` computed 32x32x2048 f32 wrong");
    for honest in ["gpu,time,replay", "gpu,time,replay,spin", "gpu,replay"] {
        let text = succeeded(&verify(honest));
        assert!(text.contains("observed:   gpu\nconfidence: strong"), "{honest}: {text}");
    }
}

/// The figure after `what` in a text.
fn figure(text: &str, what: &str) -> f64 {
    let rest = text.split_once(what).unwrap_or_else(|| panic!("no {what} in {text}")).1;
    let number = rest.trim_start().split([',', ';', '\n', ' ']).next().unwrap_or_default();
    number.parse().unwrap_or_else(|error| panic!("{number}: {error} in {text}"))
}

#[test]
fn multiply_in_narrow_types_says_what_that_costs() {
    let place = Place::new();
    let a = Tensor::random_normal_f32(20, 64, 1.0, 1).unwrap();
    let b = Tensor::random_normal_f32(64, 30, 1.0, 2).unwrap();
    let bias = place.save("bias.npy", &Tensor::filled(1, 30, 0.5f32).unwrap());
    let (pc, bias) = (place.path("c.npy"), bias.to_str().unwrap());
    let expected: Vec<f64> = product(&a, &b).iter().map(|&x| f64::from(x) + 0.5).collect();
    for transposed in [false, true] {
        let stored = |t: &Tensor<f32>| if transposed { t.transposed().unwrap() } else { t.clone() };
        let (pa, pb) = (place.save("a.npy", &stored(&a)), place.save("b.npy", &stored(&b)));
        // Half a unit of bf16 is 2^-9, of f16 2^-12, of int8 a 254th of the largest magnitude.
        for (precision, largest) in [("bf16", 0.2), ("f16", 0.03), ("int8", 0.8)] {
            let mut arguments = vec!["--precision", precision, "--bias", bias, "--check"];
            if transposed {
                arguments.extend(["--transpose-a", "--transpose-b"]);
            }
            let text = succeeded(&multiply(&pa, &pb, &pc, &arguments));
            assert!(text.contains("check passed") && text.contains("on all 20 rows"), "{text}");
            let c = read_f32(&pc);
            let off = |(x, y): (&f32, &f64)| (f64::from(*x) - y).abs();
            let measured = c.data().iter().zip(&expected).map(off).fold(0f64, f64::max);
            let said = figure(&text, "largest");
            assert!((said - measured).abs() < 0.01 * measured + 1e-5, "{precision}: {said}, {measured}");
            assert!(measured > 0.0 && measured < largest, "{precision}: {measured}");
        }
    }
    // A matrix for every item of a batch.
    let batch = Tensor::from_vec_batched(a.data().to_vec(), 4, 5, 64).unwrap();
    let (pa, pb) = (place.save("batch.npy", &batch), place.save("b.npy", &b));
    for precision in ["bf16", "int8"] {
        let text = succeeded(&multiply(&pa, &pb, &pc, &["--precision", precision, "--check"]));
        assert!(text.contains("on all 20 rows"), "{text}");
        assert_eq!((read_f32(&pc).batch(), read_f32(&pc).rows()), (4, 5));
    }
    let nan = place.save("nan.npy", &Tensor::filled(64, 30, f32::NAN).unwrap());
    failed(&multiply(&place.path("a.npy"), &nan, &pc, &["--precision", "int8", "--transpose-a"]), "NaN");
}

/// A matrix that needs more multiplications than all its rows are compared with: two items whose rows
/// differ in size, so that the wrong row would show.
#[test]
fn a_large_product_in_narrow_types_is_compared_by_random_rows() {
    let place = Place::new();
    let (items, m, n, k) = (2, 4100, 512, 513);
    let a = Tensor::from_fn_batched(items, m, k, |item, row, p| {
        #[allow(clippy::cast_precision_loss)]
        let x = (1.0 + (item * m + row) as f32) * if p % 3 == 0 { 1.0 } else { -0.25 };
        x
    })
    .unwrap();
    let b = Tensor::random_normal_f32(k, n, 1.0, 2).unwrap();
    let (pa, pb, pc) = (place.save("a.npy", &a), place.save("b.npy", &b), place.path("c.npy"));
    let text = succeeded(&multiply(&pa, &pb, &pc, &["--precision", "int8"]));
    assert!(text.contains("on 64 random rows of 8200"), "{text}");
    let (largest, rms, size) =
        (figure(&text, "largest"), figure(&text, ", RMS"), figure(&text, "of the result"));
    assert!(0.0 < rms && rms < largest && rms < 0.01 * size && largest < 0.1 * size, "{text}");
    // The root of the mean of (1 + i)^2 over all rows i, times that of a row of A by B; within what 64
    // rows tell of it.
    let expected = 8200f64 / 3f64.sqrt() * (171.0 + 342.0 / 16.0f64).sqrt();
    assert!((0.6..1.5).contains(&(size / expected)), "{size}, {expected}");
}

/// A number beyond f16 becomes infinity: its row counts neither as error nor as size.
#[test]
fn elements_that_are_not_compared_do_not_count() {
    let place = Place::new();
    let a = Tensor::from_fn(2, 64, |row, _| if row == 0 { 1e6f32 } else { 1.0 }).unwrap();
    let (pa, pb) = (place.save("a.npy", &a), place.save("b.npy", &Tensor::filled(64, 5, 1f32).unwrap()));
    let text = succeeded(&multiply(&pa, &pb, &place.path("c.npy"), &["--precision", "f16"]));
    assert!(text.contains("; 5 elements NaN or infinite in one alone, not counted"), "{text}");
    assert_eq!((figure(&text, "RMS of the result"), figure(&text, "largest")), (64.0, 0.0), "{text}");
}

#[test]
fn quantize_writes_a_file_that_loads_back() {
    use ane_matmul::safetensors::SafetensorsFile;

    let place = Place::new();
    let w = Tensor::random_normal_f32(8, 256, 0.02, 1).unwrap();
    let data: Vec<u8> = w.data().iter().flat_map(|x| x.to_le_bytes()).collect();
    let header = format!(
        r#"{{"w":{{"dtype":"F32","shape":[8,256],"data_offsets":[0,{0}]}},"bias":{{"dtype":"F32","shape":[2],"data_offsets":[{0},{1}]}}}}"#,
        data.len(),
        data.len() + 8
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes.extend([1; 8]);
    let (input, output) = (place.bytes("in.safetensors", &bytes), place.path("out.safetensors"));
    let quantize = |more: &[&str]| {
        let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"quantize", &input, &output];
        args.extend(more.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>));
        run(&args)
    };
    let done = quantize(&["--type", "int4", "--json"]);
    assert!(String::from_utf8_lossy(&done.stderr).contains("note: `bias` is copied unchanged: 1 dimensions"));
    let json: serde_json::Value = serde_json::from_str(&succeeded(&done)).unwrap();
    assert_eq!(
        (&json["tensors"][0]["name"], &json["tensors"][0]["quantized"]),
        (&"bias".into(), &false.into())
    );
    assert!(json["tensors"][0]["reason"].as_str().unwrap().contains("1 dimensions"), "{json}");
    let quantized = SafetensorsFile::read(&output).unwrap().quantized("w").unwrap();
    assert_eq!((quantized.k(), quantized.n(), quantized.is_transposed()), (256, 8, true));
    let back = quantized.dequantize().unwrap();
    let off = w.data().iter().zip(back.data()).fold(0f32, |off, (x, y)| off.max((x - y).abs()));
    let said = json["tensors"][1]["max_abs_error"].as_f64().unwrap();
    assert!((said - f64::from(off)).abs() < 1e-6 && off > 0.0, "{json}");
    assert_eq!(json["tensors"][1]["bytes_after"], 8 * 256 / 2 + 8 * 2 * 2);

    let text = succeeded(&quantize(&["--type", "int8", "--group-size", "32"]));
    // A byte for each element, and a scale of two for every 32.
    let sum = "1 tensors quantised, 8192 bytes to 2176; 1 copied unchanged";
    assert!(text.contains(sum) && text.contains("largest error"), "{text}");
    assert!(text.contains("of its RMS") && text.contains(" % "), "{text}");
    let before = fs::read(&output).unwrap();
    failed(&run(&[&"quantize", &output, &output, &"--type", &"int4"]), "name another output");
    failed(&run(&[&"quantize", &output, &place.path("twice"), &"--type", &"int4"]), "quantised already");
    failed(&run(&[&"quantize", &place.path("no"), &output, &"--type", &"int4"]), "No such file");
    assert_eq!(fs::read(&output).unwrap(), before, "a failure leaves the file as it was");
    usage(&quantize(&["--type", "int3"]), "int4");
    usage(&quantize(&["--type", "int4", "--group-size", "0"]), "--group-size");
    usage(&quantize(&[]), "--type");
    assert!(!place.names().iter().any(|name| name.contains(".part")), "{:?}", place.names());
}

/// A safetensors file of a 2 x 4 tensor of ones for each name.
fn ones(names: &[&str]) -> Vec<u8> {
    let entry = |(i, name): (usize, &&str)| {
        let offsets = [32 * i, 32 * (i + 1)];
        format!(r#"{name:?}:{{"dtype":"F32","shape":[2,4],"data_offsets":{offsets:?}}}"#)
    };
    let header = format!("{{{}}}", names.iter().enumerate().map(entry).collect::<Vec<_>>().join(","));
    let data = (0..8 * names.len()).flat_map(|_| 1f32.to_le_bytes());
    (header.len() as u64).to_le_bytes().into_iter().chain(header.bytes()).chain(data).collect()
}

#[test]
fn quantize_joins_shards_and_copies_what_is_excluded() {
    use ane_matmul::safetensors::SafetensorsFile;

    let place = Place::new();
    place.bytes("one.safetensors", &ones(&["lm_head.weight", "layers.0.up.weight"]));
    place.bytes("two.safetensors", &ones(&["layers.1.up.weight", "model.embed_tokens.weight"]));
    let index = |names: [&str; 2]| {
        let map = format!(r#"{{"lm_head.weight":{:?},"layers.1.up.weight":{:?}}}"#, names[0], names[1]);
        let text = format!(r#"{{"metadata":{{"total_size":128}},"weight_map":{map}}}"#);
        place.bytes("model.safetensors.index.json", text.as_bytes())
    };
    let path = index(["one.safetensors", "two.safetensors"]);
    let output = place.path("out.safetensors");
    let quantize = |input: &Path, more: &[&str]| {
        let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> =
            vec![&"quantize", &input, &output, &"--type", &"int8"];
        args.extend(more.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>));
        run(&args)
    };
    let layers = ["layers.0.up.weight", "layers.1.up.weight"];
    for (input, more, quantized, notes) in [
        (
            &*path,
            &[][..],
            &layers[..],
            &["`lm_head.weight` is copied unchanged: its name matches `*lm_head*`"][..],
        ),
        (
            place.directory(),
            &["--exclude", "*.1.*", "--exclude=none?"],
            &layers[..1],
            &[
                "--exclude none? matches no tensor",
                "`layers.1.up.weight` is copied unchanged: its name matches `*.1.*`",
                "`model.embed_tokens.weight` is copied unchanged: its name matches `*embed*`",
            ],
        ),
        (&path, &["--no-default-excludes", "--exclude", "l*"], &["model.embed_tokens.weight"], &[]),
    ] {
        let done = quantize(input, more);
        succeeded(&done);
        let stderr = String::from_utf8_lossy(&done.stderr);
        for note in notes {
            assert!(stderr.lines().any(|line| line == format!("note: {note}")), "{note} in {stderr}");
        }
        let file = SafetensorsFile::read(&output).unwrap();
        assert_eq!(
            (file.quantized_names(), file.names().len()),
            (quantized.iter().map(ToString::to_string).collect(), 4 + quantized.len()),
            "{more:?}"
        );
    }

    let before = fs::read(&output).unwrap();
    let path = index(["x.safetensors", "y.safetensors"]);
    failed(&quantize(&path, &[]), "2 of its 2 shards are missing beside it: x.safetensors, y.safetensors");
    failed(&quantize(&index(["../one.safetensors", "two.safetensors"]), &[]), "must lie in the directory");
    failed(
        &quantize(&index(["two.safetensors", "two.safetensors"]), &[]),
        "is not in two.safetensors, as it says",
    );
    assert_eq!(fs::read(&output).unwrap(), before, "a failure leaves the file as it was");
}

#[test]
fn a_tensor_too_small_for_its_scales_is_copied_with_a_note() {
    let place = Place::new();
    // The smallest number of f16 is 6e-8: a scale of 3e-10 would become that, and every element 0.
    for (sigma, is_quantized) in [(1e-8, false), (1e-3, true)] {
        let w = Tensor::random_normal_f32(8, 128, sigma, 1).unwrap();
        let header = r#"{"w":{"dtype":"F32","shape":[8,128],"data_offsets":[0,4096]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(w.data().iter().flat_map(|x| x.to_le_bytes()));
        let (input, output) = (place.bytes("in.safetensors", &bytes), place.path("out.safetensors"));
        let done = run(&[&"quantize", &input, &output, &"--type", &"int8", &"--json"]);
        let json: serde_json::Value = serde_json::from_str(&succeeded(&done)).unwrap();
        let tensor = &json["tensors"][0];
        assert_eq!(tensor["quantized"], is_quantized, "{json}");
        let stderr = String::from_utf8_lossy(&done.stderr);
        if is_quantized {
            assert!(tensor["relative_rms_error"].as_f64().unwrap() < 0.02, "{json}");
        } else {
            assert!(
                stderr.contains("note: `w` is copied unchanged: too small for scales of f16"),
                "{stderr}"
            );
        }
    }
}

/// A file that is larger than the memory that its process may have, of which OpenBLAS takes 32 MiB.
#[cfg(target_os = "linux")]
#[test]
fn quantize_keeps_one_tensor_at_a_time_in_memory() {
    use ane_matmul::safetensors::SafetensorsFile;
    use std::io::Write as _;

    let place = Place::new();
    let input = place.path("in.safetensors");
    let (tensors, rows, cols) = (12, 1024, 2048);
    let bytes = rows * cols * 4;
    let entry = |i: usize| {
        format!(
            r#""t{i}":{{"dtype":"F32","shape":[{rows},{cols}],"data_offsets":[{},{}]}}"#,
            i * bytes,
            (i + 1) * bytes
        )
    };
    let header = format!("{{{}}}", (0..tensors).map(entry).collect::<Vec<_>>().join(","));
    let mut file = fs::File::create(&input).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let row: Vec<u8> = (0..cols).flat_map(|i| ((i % 255) as f32 - 127.0).to_le_bytes()).collect();
    for _ in 0..tensors * rows {
        file.write_all(&row).unwrap();
    }
    drop(file);
    let output = place.path("out.safetensors");
    let done = Command::new("sh")
        .args(["-c", r#"ulimit -d 73728 && exec "$@""#, "sh", env!("CARGO_BIN_EXE_ane-matmul"), "quantize"])
        .args([&input, &output])
        .args(["--type", "int8"])
        .env("OPENBLAS_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert!(succeeded(&done).contains("12 tensors quantised"));
    assert_eq!(SafetensorsFile::read(&output).unwrap().quantized_names().len(), tensors);

    // A pipe has no length to map.
    let pipe = Command::new("sh")
        .args(["-c", r#"cat "$2" | "$1" quantize /dev/stdin "$3" --type int4"#, "sh"])
        .args([Path::new(env!("CARGO_BIN_EXE_ane-matmul")), &input, &output])
        .output()
        .unwrap();
    assert!(succeeded(&pipe).contains("12 tensors quantised"));
}

#[test]
fn a_closed_pipe_is_no_error() {
    for arguments in [&["devices"][..], &["completions", "bash"], &["--help"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ane-matmul"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn help_and_completions_name_everything() {
    let help = succeeded(&run(&[&"--help"]));
    for command in ["devices", "multiply", "compare", "quantize", "verify", "completions"] {
        assert!(help.contains(command), "{help}");
    }
    let help = succeeded(&run(&[&"multiply", &"--help"]));
    for flag in [
        "--output",
        "--backend",
        "--precision",
        "--output-type",
        "--transpose-a",
        "--transpose-b",
        "--bias",
        "--activation",
        "--threads",
        "--check",
    ] {
        assert!(help.contains(flag), "{flag} in {help}");
    }
    let help = succeeded(&run(&[&"compare", &"--help"]));
    for flag in [
        "--sizes",
        "--shapes",
        "--precision",
        "--constant-b",
        "--threads",
        "--backend",
        "--samples",
        "--json",
        "--svg",
        "--report",
    ] {
        assert!(help.contains(flag), "{flag} in {help}");
    }
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(succeeded(&run(&[&"completions", &shell])).contains("ane-matmul"));
    }
    assert!(succeeded(&run(&[&"--version"])).contains(env!("CARGO_PKG_VERSION")));
}

#[cfg(unix)]
#[test]
fn a_crash_is_a_verdict() {
    let place = Place::new();
    let profile = place.path("new/profile.json");
    let run = |fault: &str, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
        command.args(args).env("ANE_MATMUL_SHIM", ane_matmul_shims::REFERENCE);
        command.env("ANE_REFERENCE_FAULT", fault).env("ANE_MATMUL_PROFILE", &profile);
        command.output().expect("the command line runs")
    };
    let probe = |more: &[&'static str]| [&["probe", "8x9x10", "--backend", "reference"], more].concat();
    let text = succeeded(&run("flood", &probe(&[])));
    assert!(text.starts_with("8x9x10 f32 on reference: passed, compiled and run in "), "{text}");
    assert_eq!(text.lines().count(), 1);
    assert!(succeeded(&run("known", &probe(&["--allow-known-faults"]))).contains("passed"));
    let limit = ["--time-limit", "0.5"];
    for (fault, more, part) in [
        ("abort@compile", &[][..], "crashed: killed by signal 6 (SIGABRT)"),
        ("exit", &[], "exited with status 3"),
        ("hang", &limit, "hung: killed after 500ms"),
        ("wrong", &["--constant-b"], "gave a wrong result: row 0, column 0"),
        ("", &["--precision", "f16"], "failed: "),
        ("known", &[], "products are wrong here"),
    ] {
        failed(&run(fault, &probe(more)), part);
    }
    assert!(!profile.exists());
    failed(&run("", &["probe", "8x9x10", "--backend", "nobody"]), "unknown backend `nobody`");
    usage(&run("", &probe(&["--time-limit", "0"])), "expected seconds from 0.001 to 86400");

    // Calibrating goes on, and says who was left out.
    let output = run("abort", &["calibrate", "--backend", "reference", "--threads", "1"]);
    succeeded(&output);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        stderr.contains("reference is now in quarantine, probe: crashed: killed by signal 6"),
        "{stderr}"
    );
    let profile = ane_matmul::Profile::load(&profile).unwrap();
    assert!(profile.series().is_empty());
    assert_eq!(profile.quarantine().len(), 1, "{:?}", profile.quarantine());
    // A helper by hand is no helper.
    usage(&run("", &["probe-helper"]), "not by hand");
}

#[test]
fn a_shim_named_in_the_environment_is_a_backend() {
    let run = |shim: &str, fault: &str, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
        command.args(args).env("ANE_MATMUL_SHIM", shim).env("ANE_REFERENCE_FAULT", fault);
        command.output().expect("the command line runs")
    };
    let shim = ane_matmul_shims::REFERENCE;
    assert!(succeeded(&run(shim, "", &["devices"])).contains("shim `reference`, version 1.0"));
    let text = succeeded(&run(
        shim,
        "",
        &["compare", "--sizes", "16", "--samples", "3", "--backend", "cpu,reference"],
    ));
    assert!(text.contains("reference"), "{text}");
    failed(
        &run(shim, "wrong", &["compare", "--sizes", "16", "--backend", "reference"]),
        "reference is wrong at 16x16x16",
    );
    failed(&run("/nonexistent.so", "", &["devices"]), "/nonexistent.so: load: No such file");
    // What a framework prints stays out of our output.
    let output = run(shim, "print@open", &["devices", "--json"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("a framework prints"), "{output:?}");
    serde_json::from_str::<serde_json::Value>(&succeeded(&output)).expect("JSON and nothing else");
    for (name, path, expected) in ane_matmul_shims::BROKEN {
        let output = run(path, "", &["devices"]);
        println!("{name}");
        failed(&output, expected);
    }
    let place = Place::new();
    let (a, b, c) =
        (place.save("a.npy", &integers(3, 5)), place.save("b.npy", &integers(5, 4)), place.path("c.npy"));
    let arguments = [
        "multiply",
        a.to_str().unwrap(),
        b.to_str().unwrap(),
        "-o",
        c.to_str().unwrap(),
        "--backend",
        "reference",
        "--check",
    ];
    failed(&run(shim, "wrong", &arguments), "check failed: row 0, column 0 of item 0 is ");
    failed(&run(shim, "fail", &arguments), "executor_run failed: planted fault");
    assert!(!c.exists());
    succeeded(&run(shim, "", &arguments));
    assert_eq!(read_f32(&c).data(), product(&integers(3, 5), &integers(5, 4)));
}

/// Runs a Python program with NumPy; `PYTHON` may name another interpreter than `python3`.
fn python(program: &str, directory: &Path) {
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let output =
        Command::new(python).arg("-c").arg(program).current_dir(directory).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "needs python3 with numpy; scripts/test runs it"]
fn numpy_reads_what_is_written_and_the_reverse() {
    let place = Place::new();
    python(
        "import numpy as np
rng = np.random.default_rng(1)
def integers(*shape): return rng.integers(-4, 5, shape)
for name, dtype in [('f4', '<f4'), ('f8', '<f8'), ('be', '>f4')]:
    a, b = integers(3, 17, 29), integers(3, 29, 13)
    np.save(f'a_{name}.npy', a.astype(dtype)); np.save(f'b_{name}.npy', np.asfortranarray(b.astype(dtype)))
    np.save(f'c_{name}.npy', a @ b)
    np.save(f'a2_{name}.npy', np.asfortranarray(a[0].astype(dtype))); np.save(f'b2_{name}.npy', b[0].astype(dtype))
    np.save(f'c2_{name}.npy', a[0] @ b[0])",
        place.directory(),
    );
    for name in ["f4", "f8", "be"] {
        for kind in ["", "2"] {
            let file = |stem: &str| place.path(&format!("{stem}{kind}_{name}.npy"));
            succeeded(&multiply(&file("a"), &file("b"), &file("out"), &["--check"]));
        }
    }
    python(
        "import numpy as np
for name, dtype in [('f4', np.float32), ('f8', np.float64), ('be', np.float32)]:
    for kind in ['', '2']:
        out, c = np.load(f'out{kind}_{name}.npy'), np.load(f'c{kind}_{name}.npy')
        assert out.dtype == dtype and out.flags.c_contiguous, (name, out.dtype)
        assert out.shape == c.shape and (out == c).all(), (name, kind)",
        place.directory(),
    );
}

/// The command line with a profile of its own.
fn with_profile(workplace: &Place, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
    command.env("ANE_MATMUL_PROFILE", workplace.path("data/profile.json"));
    command.args(args).output().expect("the command line runs")
}

#[test]
fn a_damaged_profile_is_ignored_with_a_message_rebuilt_and_used() {
    let workplace = Place::new();
    let json = |output: &Output| serde_json::from_str::<serde_json::Value>(&succeeded(output)).expect("JSON");
    let stderr = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let explain = ["explain", "32x64x96", "--threads", "1", "--runs", "1", "--json"];
    assert_eq!(json(&with_profile(&workplace, &explain))["profile"]["state"], "absent");

    fs::create_dir(workplace.path("data")).unwrap();
    let damaged = b"{\"format\": 1, \"machine\"";
    let path = workplace.bytes("data/profile.json", damaged);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(workplace.path("data"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let output = with_profile(&workplace, &explain);
    assert_eq!(json(&output)["profile"]["state"], "ignored");
    assert!(stderr(&output).contains("not a profile"), "{}", stderr(&output));
    assert!(stderr(&output).contains("ane-matmul calibrate"), "{}", stderr(&output));
    assert_eq!(fs::read(&path).unwrap(), damaged, "explain does not write");

    let output = with_profile(&workplace, &["calibrate", "--quick", "--backend", "cpu", "--threads", "1"]);
    assert!(succeeded(&output).contains("profile.json"));
    assert!(stderr(&output).contains("it is made anew"), "{}", stderr(&output));
    assert_eq!(fs::read_dir(workplace.path("data")).unwrap().count(), 2, "a profile and its lock");

    let output = with_profile(&workplace, &explain);
    assert_eq!(stderr(&output), "");
    let explained = json(&output);
    assert_eq!(explained["profile"]["state"], "used");
    assert_eq!(explained["choice"]["backend"], "cpu");
    assert_eq!(explained["product"]["k"], 96);
    let cpu = explained["candidates"].as_array().unwrap().iter().find(|c| c["backend"] == "cpu").unwrap();
    assert_eq!(cpu["verdict"], "predicted");
    assert!(cpu["run_ns"].as_f64().unwrap() > 0.0);
    assert!(cpu["amortised_ns"].as_f64() > cpu["run_ns"].as_f64());
    let obstacles = explained["neural_engine_obstacles"].as_array().unwrap();
    assert!(
        obstacles.iter().any(|o| o["kind"] == "type" && o["source"].as_str().unwrap().contains("110975"))
    );

    let text = succeeded(&with_profile(&workplace, &["explain", "32x64x96", "--threads", "1"]));
    assert!(text.contains("auto is cpu") && text.contains("chosen"), "{text}");
}

#[test]
fn only_a_choice_by_the_profile_tells_that_it_is_ignored() {
    let place = Place::new();
    fs::create_dir(place.path("data")).unwrap();
    place.bytes("data/profile.json", b"damaged");
    let explained = succeeded(&with_profile(&place, &["explain", "8x8x8", "--json"]));
    let explained: serde_json::Value = serde_json::from_str(&explained).unwrap();
    assert_eq!(explained["profile"]["state"], "ignored");
    let (a, c) = (place.save("a.npy", &integers(2, 2)), place.path("c.npy"));
    let (a, c) = (a.to_str().unwrap(), c.to_str().unwrap());
    for (backend, told) in [("auto", true), ("cpu", false)] {
        let output = with_profile(&place, &["multiply", a, a, "-o", c, "--backend", backend]);
        succeeded(&output);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.contains("profile.json") && stderr.contains("it is ignored"), told, "{stderr}");
    }
}

/// With a backend that is left out at once, since it crashes.
#[cfg(unix)]
#[test]
fn a_calibration_of_some_backends_keeps_what_was_measured_of_others_on_this_machine() {
    use ane_matmul::{BackendId, Device, ElementTypes, MachineKey, MatMul, Profile, Sample, Series};
    let place = Place::new();
    let path = place.path("data/profile.json");
    let kept = |machine: MachineKey| {
        let mut series = Series::new(BackendId::CPU, "a test", ElementTypes::F32, Device::Unknown, 1);
        series.samples = vec![Sample::new(&MatMul::new(2, 2, 2).unwrap(), 1.0, 1.0)];
        let mut profile = Profile::new(machine);
        profile.add_series(series).unwrap();
        profile.save(&path).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
        command.args(["calibrate", "--backend", "reference"]).env("ANE_MATMUL_PROFILE", &path);
        command.env("ANE_MATMUL_SHIM", ane_matmul_shims::REFERENCE).env("ANE_REFERENCE_FAULT", "abort");
        succeeded(&command.output().expect("the command line runs"));
        let profile = Profile::load(&path).unwrap();
        assert_eq!(profile.machine().os_build, MachineKey::here().os_build);
        profile.series().len()
    };
    let mut other = MachineKey::here();
    other.os_build = "another".into();
    assert_eq!((kept(MachineKey::here()), kept(other)), (1, 0));
}

#[test]
fn an_interrupted_calibration_changes_nothing() {
    use std::io::Read as _;
    let workplace = Place::new();
    fs::create_dir(workplace.path("data")).unwrap();
    let damaged = b"{\"format\": damaged";
    let path = workplace.bytes("data/profile.json", damaged);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ane-matmul"))
        .args(["calibrate", "--full", "--backend", "cpu"])
        .env("ANE_MATMUL_PROFILE", &path)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command line runs");
    // The note on the damaged profile comes before the measurement, which takes many times longer.
    child.stderr.take().unwrap().read_exact(&mut [0; 5]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it was done before it could be interrupted");
    assert_eq!(fs::read(&path).unwrap(), damaged);
    assert_eq!(fs::read_dir(workplace.path("data")).unwrap().count(), 1);
}

/// What is wrong with the place comes before what is wrong with the request, which comes before the work.
#[test]
fn a_profile_that_cannot_be_kept_is_refused_before_anything_is_measured() {
    let place = Place::new();
    place.bytes("file", b"");
    for name in ["locked.json.lock", "directory.json"] {
        fs::create_dir(place.path(name)).unwrap();
    }
    let held = fs::File::create(place.path("held.json.lock")).unwrap();
    held.lock().unwrap();
    let before = place.names();
    for (name, part) in [
        ("file/profile.json", "File exists"),
        ("locked.json", "locked.json.lock: lock a profile with: is not a regular file"),
        ("directory.json", "is a directory"),
        ("held.json", "another process holds it"),
        ("good.json", "unknown backend `nothing`"),
    ] {
        let path = place.path(name);
        failed(&run(&[&"calibrate", &"--backend", &"nothing", &"--profile", &path]), part);
        failed(&run(&[&"probe", &"8x8x8", &"--backend", &"nothing", &"--quarantine", &path]), part);
    }
    assert_eq!(place.names(), before);
}

#[test]
fn calibrate_refuses_what_it_cannot_measure() {
    let workplace = Place::new();
    failed(&with_profile(&workplace, &["calibrate", "--backend", "nothing"]), "unknown backend `nothing`");
    failed(&with_profile(&workplace, &["calibrate", "--backend", "auto"]), "name another");
    usage(&with_profile(&workplace, &["calibrate", "--quick", "--full"]), "cannot be used with");
    usage(&with_profile(&workplace, &["explain", "8x8"]), "MxNxK");
    usage(&with_profile(&workplace, &["explain", "8x8x8", "--runs", "0"]), "--runs");
}

#[test]
fn compare_times_auto_beside_the_others() {
    let workplace = Place::new();
    let args = ["compare", "--sizes", "16", "--backend", "auto,cpu", "--samples", "3", "--threads", "1"];
    let text = succeeded(&with_profile(&workplace, &args));
    assert!(text.contains("note: auto at 16x16x16 is cpu: without a profile"), "{text}");
    let line = text.lines().find(|line| line.contains("auto (cpu)")).expect("a line of its own");
    assert!(!line.contains("winner") && text.matches("winner |").count() == 1, "{text}");
}

#[test]
fn compare_times_every_precision_with_and_without_a_constant_b() {
    let place = Place::new();
    let (json, svg, report) = (place.path("out.json"), place.path("out.svg"), place.path("out.html"));
    for precision in ["f32", "f16", "bf16", "int8", "f64"] {
        for constant_b in [false, true] {
            let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![
                &"compare",
                &"--shapes",
                &"9x8x7",
                &"--samples",
                &"1",
                &"--threads",
                &"1",
                &"--precision",
                &precision,
                &"--json",
                &json,
                &"--svg",
                &svg,
                &"--report",
                &report,
            ];
            if constant_b {
                args.push(&"--constant-b");
            }
            let text = succeeded(&run(&args));
            let kind = format!("{precision}{}", if constant_b { ", B constant" } else { "" });
            assert!(text.lines().next().unwrap().ends_with(&format!("; {kind}")), "{text}");
            let page = fs::read_to_string(&report).unwrap();
            assert!(page.contains(&format!("<p>{kind}, measured")), "{page}");
            assert!(fs::read_to_string(&svg).unwrap().contains(&format!("({kind})")));
            let json: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
            let results = json["results"].as_array().unwrap();
            let cpu = results.iter().find(|result| result["backend"] == "cpu").expect("the CPU runs all");
            assert_eq!((&cpu["precision"], &cpu["constant_b"]), (&precision.into(), &constant_b.into()));
            assert!(cpu["max_abs_error"].as_f64() <= cpu["error_bound"].as_f64(), "{cpu}");
        }
    }
    usage(&run(&[&"compare", &"--precision", &"f8"]), "possible values: f32, f16, bf16, int8, f64");
}

#[test]
fn compare_checks_large_products_by_projections() {
    let place = Place::new();
    let json = place.path("out.json");
    // More than 2^27 multiplications.
    let run = |fault: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
        command.args(["compare", "--shapes", "1025x1024x128", "--samples", "1", "--backend", "reference"]);
        command.arg("--json").arg(&json);
        command.env("ANE_MATMUL_SHIM", ane_matmul_shims::REFERENCE).env("ANE_REFERENCE_FAULT", fault);
        command.output().expect("the command line runs")
    };
    failed(&run("wrong"), "reference is wrong at 1025x1024x128: row 0, column 0 of item 0 is");
    assert!(!json.exists());
    let text = succeeded(&run(""));
    assert!(text.contains("checked: by random projections"), "{text}");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let result = &json["results"][0];
    assert_eq!(
        (&result["check"], &result["max_abs_error"]),
        (&"projections".into(), &serde_json::Value::Null)
    );
    assert_eq!((&result["error_bound"], &result["worst_error_to_bound"]), (&().into(), &().into()));
}

#[test]
fn the_devices_of_a_shim_are_listed_and_chosen_by_their_numbers() {
    let on = |device: &str, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ane-matmul"));
        command.args(args).env("ANE_MATMUL_SHIM", ane_matmul_shims::REFERENCE);
        command.env("ANE_MATMUL_SHIM_DEVICE", device).output().expect("the command line runs")
    };
    let text = succeeded(&on("", &["devices"]));
    let line = text.lines().find(|line| line.starts_with("reference:1 ")).expect("the other device");
    assert!(line.contains("not chosen") && line.ends_with("set ANE_MATMUL_SHIM_DEVICE=1"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&succeeded(&on("1", &["devices", "--json"]))).unwrap();
    let of = |name: &str| {
        let all = json["backends"].as_array().expect("a list");
        all.iter().find(|backend| backend["backend"] == name).expect("it is listed").clone()
    };
    assert_eq!(
        (&of("reference:1")["available"], &of("reference")["available"]),
        (&true.into(), &false.into())
    );
    succeeded(&on("1", &["probe", "8x8x8", "--backend", "reference:1"]));
    failed(&on("1", &["probe", "8x8x8", "--backend", "reference"]), "unknown backend `reference`");
    failed(&on("one", &["devices"]), "ANE_MATMUL_SHIM_DEVICE is one, which is no number");
    let text = succeeded(&on("2", &["devices"]));
    assert!(text.contains("not here") && text.contains("there is no device 2: the shim finds 2"), "{text}");
}
