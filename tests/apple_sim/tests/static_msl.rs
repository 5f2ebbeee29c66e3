//! The kernels are legal Metal as far as can be told without Apple's compiler, and what is not legal
//! is told.

use std::fs;
use std::path::PathBuf;

use apple_sim::compile::objc_dir;
use apple_sim::static_pass::check;

#[test]
fn the_kernels_are_legal() {
    let objc = objc_dir();
    if let Err(faults) = check(&objc.join("matmul.metal"), &objc) {
        panic!("{}", faults.join("\n"));
    }
}

/// An edit (text, replacement), each illegal in Metal.
const EDITS: [(&str, &str, &str); 24] = [
    (
        "wrong address space in a helper",
        "ulong ld, uint rows, uint columns, bool wide, uint thread_index,\n                             threadgroup T *tile)",
        "ulong ld, uint rows, uint columns, bool wide, uint thread_index,\n                             device T *tile)",
    ),
    (
        "threadgroup pointer where device is wanted",
        "device const T *from = source",
        "threadgroup const T *from = source",
    ),
    ("cast across address spaces", "(threadgroup T *)a_storage", "(device T *)a_storage"),
    ("pointer without an address space", "threadgroup T *a_tile =", "T *a_tile ="),
    ("parameter without an address space", "device uchar *c, ulong c_index", "uchar *c, ulong c_index"),
    (
        "kernel parameter without an address space",
        "device const float *sums [[buffer",
        "const float *sums [[buffer",
    ),
    (
        "write to constant",
        "    float sum = 0.0f;\n    for (uint i = 0; i < p.partitions",
        "    p.m = 1;\n    float sum = 0.0f;\n    for (uint i = 0; i < p.partitions",
    ),
    ("write to a const buffer", "const ulong plane_size =", "sums[0] = 0.0f;\n    const ulong plane_size ="),
    (
        "write to a function constant",
        "    if (direct_store) {",
        "    direct_store = false;\n    if (direct_store) {",
    ),
    ("double literal", "if (z > 10.0f)", "if (z > 10.0)"),
    ("double variable", "const float t = 1.0f /", "const double t = 1.0f /"),
    (
        "duplicate buffer index",
        "device const T *b [[buffer(ANE_METAL_BUFFER_B)]],\n                     device uchar",
        "device const T *b [[buffer(ANE_METAL_BUFFER_A)]],\n                     device uchar",
    ),
    (
        "parameter without attribute",
        "uint lane [[thread_index_in_simdgroup]])\n{\n    constexpr",
        "uint lane)\n{\n    constexpr",
    ),
    (
        "unknown attribute",
        "uint lane [[thread_index_in_simdgroup]])\n{\n    constexpr",
        "uint lane [[lane_index]])\n{\n    constexpr",
    ),
    (
        "attribute of another type",
        "uint3 position [[thread_position_in_grid]]",
        "uint position [[thread_position_in_grid]]",
    ),
    (
        "lambda",
        "    const uint thread_index = simd",
        "    auto one = [&](uint x) { return x; };\n    const uint thread_index = one(0) + simd",
    ),
    (
        "if constexpr",
        "        if (transpose_a) {\n            load_tile",
        "        if constexpr (sizeof(T) == 4) {\n            load_tile",
    ),
    (
        "function pointer",
        "static inline float logistic(float x)\n{",
        "static inline float logistic(float x)\n{\n    float (*f)(float) = gelu_erf;",
    ),
    ("program-scope variable", "#define UNROLL", "uint counter = 0;\n#define UNROLL"),
    (
        "threadgroup array in a helper",
        "    const float z = fabs(x)",
        "    threadgroup float cache[4];\n    const float z = fabs(x)",
    ),
    (
        "two arrays in one declaration",
        "threadgroup float strips[WM * WN * 8 * STRIP];",
        "threadgroup float strips[WM * WN * 8 * STRIP], more[4];",
    ),
    ("unknown function", "precise::tanh(x)", "erf(x)"),
    ("standard library", "precise::tanh(x)", "std::tanh(x)"),
    (
        "implicit narrowing of a sum",
        "const float sum = simd_sum(sums[r]);",
        "const uint sum = simd_sum(sums[r]);",
    ),
];

#[test]
fn illegal_edits_are_rejected() {
    let objc = objc_dir();
    let source = fs::read_to_string(objc.join("matmul.metal")).expect("the kernels can be read");
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("static-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory of ours");
    fs::copy(objc.join("matmul_params.h"), dir.join("matmul_params.h")).expect("the header can be copied");
    for (name, text, replacement) in EDITS {
        assert_eq!(source.matches(text).count(), 1, "the edit `{name}` does not fit the source");
        let metal = dir.join("matmul.metal");
        fs::write(&metal, source.replace(text, replacement)).expect("a file of ours");
        let faults = check(&metal, &dir).expect_err(&format!("`{name}` was accepted"));
        println!("{name}: {}", faults[0].lines().next().unwrap_or_default());
    }
    fs::remove_dir_all(&dir).expect("a directory of ours");
}
