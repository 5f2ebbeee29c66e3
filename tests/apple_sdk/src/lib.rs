//! Objective-C declarations of Apple's frameworks, made from the sources of the `objc2-*` crates,
//! which are generated from Apple's SDK: what a shim may send, with its types, on a machine that has
//! no SDK.
//!
//! Left out: whether memory behind a pointer argument is const, generic parameters of collections, blocks (an `id` here), methods with a type that these
//! sources do not declare, variable arguments (`base/variadic.h`). A shim that uses what is left out
//! does not compile, so that nothing passes unchecked.

mod emit;
mod parse;
mod sources;

use std::path::{Path, PathBuf};
use std::{fs, io};

pub use emit::header;
pub use parse::Declarations;
pub use sources::{FRAMEWORKS, source_directories};

/// Writes `apple_sdk.h` and one header for each framework into a directory.
///
/// # Errors
/// When cargo cannot say where the sources are, a source cannot be parsed, or a file not written.
pub fn write_headers(directory: &Path, availability: &str) -> io::Result<()> {
    let mut declarations = Declarations::default();
    for sources in source_directories()? {
        for path in rust_files(&sources)? {
            let text = fs::read_to_string(&path)?;
            declarations.read(&text).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
            })?;
        }
    }
    let text =
        header(&declarations, availability).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    fs::create_dir_all(directory)?;
    fs::write(directory.join("apple_sdk.h"), text)?;
    fs::create_dir_all(directory.join("os"))?;
    fs::write(directory.join("os/log.h"), include_str!("../base/os/log.h"))?;
    fs::write(directory.join("os/signpost.h"), include_str!("../base/os/signpost.h"))?;
    for framework in FRAMEWORKS {
        let inside = directory.join(framework);
        fs::create_dir_all(&inside)?;
        fs::write(inside.join(format!("{framework}.h")), "#include \"../apple_sdk.h\"\n")?;
    }
    Ok(())
}

/// The Rust files of a directory and of those inside, in an order that does not change.
fn rust_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
