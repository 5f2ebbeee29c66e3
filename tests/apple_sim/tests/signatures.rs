//! The double's `Metal.h` declares what Apple's SDK has: every selector and every enum value is in the
//! sources of `objc2-metal`, which are generated from the SDK. clang checks the shim against `Metal.h`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The generated sources of the crate, as one text.
fn declarations() -> String {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO")).args(args).output().expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run(&["fetch", "--quiet"]);
    let metadata = run(&["metadata", "--format-version", "1"]);
    let end = metadata.find("/Cargo.toml\",\"metadata\"").and(
        metadata.match_indices("objc2-metal-0.").find_map(|(at, _)| {
            // The path of a manifest, not an identifier of the package.
            metadata[at..].find("/Cargo.toml").filter(|n| *n < 32).map(|n| at + n)
        }),
    );
    let end = end.expect("objc2-metal is among the dependencies");
    let start = metadata[..end].rfind('"').expect("a path is quoted") + 1;
    let dir: PathBuf = Path::new(&metadata[start..end]).join("src/generated");
    let mut paths: Vec<_> = fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .flatten()
        .map(|e| e.path())
        .collect();
    paths.sort();
    paths.iter().map(|p| fs::read_to_string(p).expect("a generated source can be read")).collect()
}

fn header() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("sim/include/Metal/Metal.h");
    fs::read_to_string(path).expect("Metal.h can be read")
}

/// The selectors of the methods that a header declares.
fn selectors(header: &str) -> Vec<String> {
    let mut found = Vec::new();
    for declaration in header.split("\n- (").skip(1) {
        let text = declaration.split(';').next().unwrap_or_default();
        let text = &text[text.find(')').map_or(0, |n| n + 1)..];
        let mut selector = String::new();
        for part in text.split_whitespace() {
            match part.split_once(':') {
                Some((name, _)) => selector += &format!("{name}:"),
                None if selector.is_empty() => selector += part,
                None => {}
            }
        }
        found.push(selector);
    }
    found
}

/// `NAME = VALUE` of the header's enums.
fn values(header: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for (at, _) in header.match_indices(" = ") {
        let name: String =
            header[..at].chars().rev().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let value = header[at + 3..].split([',', '}', '\n']).next().unwrap_or_default();
        found.push((name.chars().rev().collect(), number(value)));
    }
    found
}

/// A number, or `(3 << 16) + 1`.
fn number(text: &str) -> u64 {
    let part = |text: &str| {
        text.trim().trim_matches(['(', ')']).parse::<u64>().unwrap_or_else(|e| panic!("`{text}`: {e}"))
    };
    let (shifted, rest) = text.trim().split_once('+').unwrap_or((text, "0"));
    let shifted =
        shifted.split_once("<<").map_or_else(|| part(shifted), |(a, b): (&str, &str)| part(a) << part(b));
    shifted + part(rest)
}

#[test]
fn the_double_declares_what_the_sdk_has() {
    let (header, declarations) = (header(), declarations());
    let (selectors, values) = (selectors(&header), values(&header));
    assert!(selectors.len() >= 30 && values.len() >= 15, "{selectors:?} {values:?}");
    for selector in &selectors {
        let known = [format!("method({selector})"), format!("method({selector}_)")];
        // A property's setter and getter stand in the same form.
        assert!(known.iter().any(|k| declarations.contains(k)), "Metal has no method `{selector}`");
    }
    for (name, value) in &values {
        let alias = format!("#[doc(alias = \"{name}\")]");
        let at = declarations.find(&alias).unwrap_or_else(|| panic!("Metal has no `{name}`"));
        let line = declarations[at..].lines().nth(1).unwrap_or_default();
        let told = line.split_once("Self(").and_then(|(_, v)| v.strip_suffix(");"));
        match told {
            Some(told) => assert_eq!(number(told), *value, "{name}"),
            // A kind of storage, shifted by four (MTLResource.h).
            None => {
                let mode = name.strip_prefix("MTLResourceStorageMode").unwrap_or_default();
                let shifted = format!("MTLStorageMode::{mode}.0<<MTLResourceStorageModeShift;");
                let declared = format!("pub const {mode}: Self = Self({});", value >> 4);
                assert!(line.contains(&shifted) && declarations.contains(&declared), "{name}: {line}");
            }
        }
    }
}

#[test]
fn a_misspelt_selector_is_noticed() {
    let declarations = declarations();
    assert!(!declarations.contains("method(setBuffer:offset:index:)"));
    assert_eq!(
        selectors("\n- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset;"),
        ["setBuffer:offset:"]
    );
    assert_eq!(number("(3 << 16) + 1"), 196_609);
}
