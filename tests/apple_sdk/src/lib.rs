//! An SDK of Apple's as far as the shims and this workspace use it, for a machine that has none: Objective-C
//! declarations made from the sources of the `objc2-*` crates, which are generated from Apple's SDK, so that a
//! compiler checks what a shim sends; stubs of the libraries, so that a linker checks what a program needs.
//!
//! Left out of the declarations: whether memory behind a pointer argument is const, generic parameters of
//! collections, blocks (an `id` here), methods with a type that these sources do not declare, variable arguments
//! (`base/variadic.h`). A shim that uses what is left out does not compile, so that nothing passes unchecked. The
//! stubs have names only: that a system has a symbol is the table of first systems' word.

mod emit;
pub mod mach_o;
mod parse;
mod sources;
mod stubs;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

pub use emit::{Since, availability, header};
pub use parse::Declarations;
pub use sources::{FRAMEWORKS, source_directories};
use stubs::Exports;

/// First systems of what the shims use.
pub const AVAILABILITY: &str = include_str!("../availability.txt");

/// Frameworks that have no declarations here, only stubs.
const ONLY_STUBS: [&str; 3] = ["Accelerate", "CoreFoundation", "CoreGraphics"];

/// What the sources of the `objc2-*` crates declare.
#[derive(Debug)]
pub struct Declared {
    all: Declarations,
    /// Of each framework.
    exports: Vec<(&'static str, Exports)>,
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl Declared {
    /// Reads the sources.
    ///
    /// # Errors
    /// When cargo cannot say where they are, or one cannot be parsed.
    pub fn read() -> io::Result<Self> {
        let mut all = Declarations::default();
        let mut exports = Vec::new();
        let mut seen = BTreeSet::new();
        for (framework, sources) in FRAMEWORKS.iter().zip(source_directories()?) {
            let by_hand = (*framework == "Metal").then(|| sources.with_file_name("device.rs"));
            for path in rust_files(&sources)?.into_iter().chain(by_hand) {
                let text = fs::read_to_string(&path)?;
                all.read(&text).map_err(|error| invalid(format!("{}: {error}", path.display())))?;
            }
            exports.push((*framework, Exports::of_framework(framework, &all, &mut seen)));
        }
        Ok(Self { all, exports })
    }

    /// Writes the SDK of a macOS into a directory, laid out as Apple's are. `darwin` has the C headers and
    /// `libSystem.tbd` of Darwin as the PyPI package `ziglang` carries them.
    ///
    /// # Errors
    /// When a file is not there, not as it is today, or not written.
    pub fn write_sdk(&self, sdk: &Path, darwin: &Path, newest_macos: u32) -> io::Result<()> {
        let (include, lib) = (sdk.join("usr/include"), sdk.join("usr/lib"));
        copy(&darwin.join("include/any-darwin-any"), &include)?;
        let internal = include.join("AvailabilityInternal.h");
        let versions = of_version(&fs::read_to_string(&internal)?, newest_macos);
        fs::write(&internal, versions.ok_or_else(|| invalid("Darwin's headers name no newest system"))?)?;
        let header = header(self.all.clone(), AVAILABILITY, newest_macos).map_err(invalid)?;
        fs::write(include.join("apple_sdk.h"), header)?;
        fs::write(include.join("os/log.h"), include_str!("../base/os/log.h"))?;
        fs::write(include.join("os/signpost.h"), include_str!("../base/os/signpost.h"))?;

        let frameworks = sdk.join("System/Library/Frameworks");
        let only_stubs = ONLY_STUBS.map(|framework| (framework, Exports::of_framework_by_hand(framework)));
        for (framework, exports) in self.exports.iter().chain(&only_stubs) {
            let inside = frameworks.join(format!("{framework}.framework"));
            fs::create_dir_all(inside.join("Headers"))?;
            fs::write(inside.join(format!("{framework}.tbd")), exports.stub())?;
            if FRAMEWORKS.contains(framework) {
                fs::write(inside.join(format!("Headers/{framework}.h")), "#include <apple_sdk.h>\n")?;
            }
        }
        fs::create_dir_all(&lib)?;
        let system = fs::read_to_string(darwin.join("darwin/libSystem.tbd"))?;
        let system = Exports::of_stub("/usr/lib/libSystem.B.dylib", &system).stub();
        for name in ["libSystem", "libc", "libm"] {
            fs::write(lib.join(format!("{name}.tbd")), &system)?;
        }
        // By the name that a program asks for, and by that under which another library hands it on.
        for (name, other) in [("libiconv", "libiconv.2"), ("libobjc", "libobjc.A")] {
            let stub = Exports::default().by_hand(name).stub();
            fs::write(lib.join(format!("{name}.tbd")), &stub)?;
            fs::write(lib.join(format!("{other}.tbd")), &stub)?;
        }
        // A linker writes the SDK's version into programs.
        fs::write(
            sdk.join("SDKSettings.json"),
            format!(
                "{{\"CanonicalName\": \"macosx{newest_macos}.0\", \"Version\": \"{newest_macos}.0\", \"MaximumDeploymentTarget\": \"{newest_macos}.99\"}}\n"
            ),
        )
    }
}

/// Darwin's header with the newest systems that an SDK of that macOS knows; nothing where it names none.
fn of_version(header: &str, macos: u32) -> Option<String> {
    // iOS was three ahead before they were numbered alike.
    let ios = if macos < 26 { macos + 3 } else { macos };
    let newest = [
        ("#define __MAC_OS_X_VERSION_MAX_ALLOWED ", macos),
        ("#define __IPHONE_OS_VERSION_MAX_ALLOWED ", ios),
    ];
    let mut seen = [false; 2];
    let lines: Vec<String> = header
        .lines()
        .map(|line| match newest.iter().position(|(define, _)| line.trim_start().starts_with(define)) {
            Some(which) => {
                seen[which] = true;
                format!("{}{}0000", newest[which].0, newest[which].1)
            }
            None => line.to_owned(),
        })
        .collect();
    (seen == [true; 2]).then(|| lines.join("\n") + "\n")
}

/// Copies a directory and all inside.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            fs::copy(&path, &target)?;
        }
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
