// The text that metal_matmul.m hands to the Metal compiler: matmul_params.h and matmul.metal as one,
// in a C header. build.rs and the tests include this file.
#![allow(unreachable_pub, reason = "the tests export what build.rs keeps to itself")]

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

/// The kernel source of the directory `objc`, with its own header in place of the `#include`.
///
/// Line directives keep the compiler's messages true to the files.
pub fn metal_source(objc: &Path) -> io::Result<String> {
    let include = "#include \"matmul_params.h\"\n";
    let params = fs::read_to_string(objc.join("matmul_params.h"))?;
    let kernels = fs::read_to_string(objc.join("matmul.metal"))?;
    let (before, after) = kernels.split_once(include).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "matmul.metal does not include matmul_params.h")
    })?;
    let next_line = before.lines().count() + 2;
    Ok(format!(
        "#line 1 \"matmul.metal\"\n{before}#line 1 \"matmul_params.h\"\n{params}#line {next_line} \"matmul.metal\"\n{after}"
    ))
}

/// The C header `ane_metal_source.h`: `static const char ane_metal_source[]`, NUL-terminated.
pub fn metal_source_header(objc: &Path) -> io::Result<String> {
    let mut header = String::from("static const char ane_metal_source[] = {");
    for (i, byte) in metal_source(objc)?.bytes().enumerate() {
        let separator = if i % 24 == 0 { "\n" } else { "" };
        write!(header, "{separator}{byte},").map_err(io::Error::other)?;
    }
    header.push_str("0};\n");
    Ok(header)
}
