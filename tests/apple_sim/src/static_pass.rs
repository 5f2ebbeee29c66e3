//! Rejects what is not legal Metal, or not of the subset that the kernels keep to, without running
//! anything: rules on tokens, then clang with real address spaces.
//!
//! The rules are those of the Metal Shading Language Specification: C++14 without lambdas, `double`,
//! exceptions or dynamic casts (1.4), an address space on every pointer (4), one attribute to a kernel
//! parameter and one parameter to a buffer index (5.2), program-scope variables in `constant` (4.2),
//! threadgroup variables in kernels only (4.4).

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::compile::{METAL_3_1, cpp_dir, output_of, preprocess};
use crate::token::{Kind, Token, tokenize};
use crate::translate::{Kernel, Mode, Translation, attribute_argument, translate};

const FORBIDDEN: [&str; 22] = [
    "double",
    "long double",
    "new",
    "delete",
    "goto",
    "virtual",
    "throw",
    "try",
    "catch",
    "dynamic_cast",
    "typeid",
    "thread_local",
    "asm",
    "std",
    "noexcept",
    "register",
    "wchar_t",
    // Undocumented, private, or of a later version.
    "thread_elements",
    "simdgroup_async_copy",
    "mpp",
    "atomic_thread_fence",
    "co_await",
];

/// Attributes of kernel parameters, other than those with an argument, and their types.
const BUILTINS: [&str; 6] = [
    "thread_position_in_grid",
    "threadgroup_position_in_grid",
    "thread_position_in_threadgroup",
    "thread_index_in_threadgroup",
    "simdgroup_index_in_threadgroup",
    "thread_index_in_simdgroup",
];

/// Checks a kernel file.
///
/// # Errors
/// A line for each thing that is wrong.
pub fn check(metal: &Path, include: &Path) -> Result<(), Vec<String>> {
    let one = |e: String| vec![e];
    let preprocessed = preprocess(metal, include, METAL_3_1).map_err(one)?;
    let mut faults = token_faults(&preprocessed);
    match translate(&preprocessed, Mode::Check) {
        Ok(translation) => {
            for kernel in &translation.kernels {
                faults.extend(parameter_faults(kernel));
            }
            faults.extend(clang_faults(&translation));
        }
        Err(fault) => faults.push(fault),
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn clang_faults(translation: &Translation) -> Option<String> {
    let path = std::env::temp_dir().join(format!(
        "metal-check-{}-{:?}.cpp",
        std::process::id(),
        std::thread::current().id()
    ));
    let text = format!("#include \"check.hpp\"\nusing namespace metal;\n{}", translation.text);
    let result = fs::write(&path, text).map_err(|e| e.to_string()).and_then(|()| {
        output_of(
            Command::new("clang++-19")
                .args(["-std=c++14", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wdouble-promotion"])
                .args([
                    "-Wno-unused-parameter",
                    "-Wno-unknown-attributes",
                    "-Wno-unused-function",
                    "-Wfloat-conversion",
                ])
                .args(["-Wno-undefined-internal", "-Wno-unused-const-variable", "-Wno-unused-template"])
                .arg("-I")
                .arg(cpp_dir())
                .arg(&path),
        )
    });
    // What was written is not needed any more; that it stays behind harms nobody.
    let _ = fs::remove_file(&path);
    result.err()
}

fn parameter_faults(kernel: &Kernel) -> Vec<String> {
    let mut faults = Vec::new();
    let mut buffers = HashSet::new();
    for p in &kernel.parameters {
        let mut fault =
            |what: &str| faults.push(format!("{}: parameter `{}` {what}", kernel.name, p.declaration));
        let optional = attribute_argument(p, "function_constant").is_some();
        if p.attributes.len() != 1 + usize::from(optional) {
            fault("does not have exactly one attribute");
            continue;
        }
        let points = p.declaration.contains(['*', '&']);
        match attribute_argument(p, "buffer") {
            Some(index) => {
                if !index.parse::<u32>().is_ok_and(|i| i < 31) {
                    fault("has an impossible buffer index");
                }
                if !buffers.insert(index.to_owned()) {
                    fault("has the buffer index of another");
                }
                if !points {
                    fault("is a buffer but neither pointer nor reference");
                }
                if !["device", "constant"]
                    .iter()
                    .any(|space| p.declaration.split_whitespace().any(|w| w == *space))
                {
                    fault("has no address space");
                }
            }
            None if !BUILTINS.contains(&p.attributes[0].as_str()) => {
                fault("has an attribute that is not known")
            }
            None if points => fault("is a pointer but no buffer"),
            None => {
                let vector = p.attributes[0].contains("_position_");
                let kind = p.declaration.split_whitespace().next().unwrap_or_default();
                if vector != kind.ends_with('3') {
                    fault("has another type than its attribute");
                }
            }
        }
    }
    faults
}

/// The line of a token, for messages: that of the preprocessed text.
fn place(text: &str, token: &Token<'_>) -> String {
    let start = text[..token.at].rfind('\n').map_or(0, |n| n + 1);
    text[start..].lines().next().unwrap_or_default().trim().to_owned()
}

fn token_faults(text: &str) -> Vec<String> {
    let tokens = tokenize(text);
    let solid: Vec<&Token<'_>> = tokens.iter().filter(|t| t.kind != Kind::Space).collect();
    let spaced = |i: usize| solid[i].at > 0 && text.as_bytes()[solid[i].at - 1].is_ascii_whitespace();
    let word = |i: usize| solid.get(i).map_or("", |t| t.text);
    let mut faults = Vec::new();
    let mut depth = 0i32;
    let mut statement = 0;
    for (i, token) in solid.iter().enumerate() {
        let mut fault = |what: &str| faults.push(format!("{what}: {}", place(text, token)));
        match token.kind {
            Kind::Word if FORBIDDEN.contains(&token.text) => fault(&format!("`{}` is not Metal", token.text)),
            Kind::Word if token.text == "if" && word(i + 1) == "constexpr" => {
                fault("`if constexpr` is not C++14")
            }
            Kind::Number => {
                let hex = token.text.starts_with("0x");
                let float = !hex && token.text.contains(['.', 'e', 'E']);
                if float && !token.text.ends_with(['f', 'h']) {
                    fault("a literal of type double");
                }
            }
            // A pointer is written `T *name`, a product `a * b`, and a dereference follows a mark.
            Kind::Mark if token.text == "*" && i > 0 => {
                let before = solid[i - 1];
                let declares = (before.kind == Kind::Word || before.text == ">")
                    && spaced(i)
                    && !matches!(before.text, "return" | "case");
                let tight = solid.get(i + 1).is_some_and(|next| next.at == token.at + 1);
                let cast = word(i + 1) == ")";
                if declares && (tight || cast) {
                    let from = (0..i)
                        .rev()
                        .find(|&t| matches!(word(t), ";" | "{" | "}" | "," | "("))
                        .map_or(0, |t| t + 1);
                    // Template arguments have commas of their own.
                    let from = from.min(
                        (0..i).rev().find(|&t| matches!(word(t), ";" | "{" | "}" | "(")).map_or(0, |t| t + 1),
                    );
                    let spaces = ["device", "constant", "threadgroup", "thread"];
                    if !(from..i).any(|t| spaces.contains(&word(t))) {
                        fault("a pointer without an address space");
                    }
                }
                if before.text == "("
                    && solid.get(i + 1).is_some_and(|n| n.kind == Kind::Word)
                    && word(i + 2) == ")"
                    && word(i + 3) == "("
                {
                    fault("a function pointer");
                }
            }
            Kind::Mark if token.text == "[" => {
                let after = i > 0
                    && !matches!(word(i - 1), "[")
                    && (solid[i - 1].kind == Kind::Mark)
                    && !matches!(word(i - 1), ")" | "]" | ">");
                let lambda = matches!(word(i + 1), "]" | "&" | "=") && after && word(i + 1) != "[";
                if lambda {
                    fault("a lambda");
                }
            }
            _ => {}
        }
        // A variable at program scope.
        if depth == 0 && token.text == ";" {
            let words: Vec<&str> = (statement..i).map(word).collect();
            let first = words.first().copied().unwrap_or_default();
            let declares = !matches!(
                first,
                "constant" | "using" | "typedef" | "template" | "struct" | "enum" | "" | "}" | "namespace"
            );
            // One word is the name that ends a typedef.
            if declares && words.len() > 1 && !words.contains(&"(") {
                faults
                    .push(format!("a variable at program scope that is not `constant`: {}", words.join(" ")));
            }
        }
        match token.text {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if matches!(token.text, ";" | "}") || (token.text == "{" && depth == 1) {
            statement = i + 1;
        }
    }
    faults
}
