//! Text-based stubs of the frameworks' libraries (`.tbd`, version 4): the names of their symbols, for a linker.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::parse::Declarations;

/// Libraries whose names are not in the `objc2` sources: what the shims, `std` and this crate use of them.
const BY_HAND: &str = include_str!("../base/symbols.txt");

/// Apple's targets that the stubs serve.
const TARGETS: &str = "[ arm64-macos, x86_64-macos, arm64-ios, arm64-ios-simulator, x86_64-ios-simulator ]";

/// What a library exports, by kind.
#[derive(Debug, Default)]
pub struct Exports {
    /// Where programs find it.
    install_name: String,
    /// Install names of the libraries whose symbols it passes on.
    reexported: Vec<String>,
    classes: BTreeSet<String>,
    exception_types: BTreeSet<String>,
    symbols: BTreeSet<String>,
}

impl Exports {
    /// Those of a framework that is not declared.
    pub fn of_framework_by_hand(framework: &str) -> Self {
        let install_name = format!("/System/Library/Frameworks/{framework}.framework/{framework}");
        Self { install_name, ..Self::default() }.by_hand(framework)
    }

    /// Those of a framework whose sources were the last to be read: what was not seen before.
    pub fn of_framework(framework: &str, known: &Declarations, seen: &mut BTreeSet<String>) -> Self {
        let mut exports = Self::of_framework_by_hand(framework);
        let declared = known.classes.iter().filter(|(_, class)| class.declared);
        let functions = known.functions.iter().map(|signature| format!("_{}", signature.ident));
        let variables = known.statics.iter().map(|(name, _)| format!("_{name}"));
        exports
            .classes
            .extend(declared.map(|(name, _)| name.clone()).filter(|name| seen.insert(name.clone())));
        exports.symbols.extend(functions.chain(variables).filter(|name| seen.insert(name.clone())));
        exports
    }

    /// Adds what `base/symbols.txt` has of a library: `library kind names...`.
    pub fn by_hand(mut self, library: &str) -> Self {
        for line in BY_HAND.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split_whitespace();
            if words.next() != Some(library) {
                continue;
            }
            let kind = words.next();
            let names = words.map(str::to_owned);
            match kind {
                Some("install-name") => self.install_name = names.collect(),
                Some("reexports") => self.reexported.extend(names),
                Some("classes") => self.classes.extend(names),
                Some("exception-types") => self.exception_types.extend(names),
                _ => self.symbols.extend(names),
            }
        }
        self
    }

    /// The symbols of all libraries that a stub with several documents describes, as one library: Darwin's C
    /// library as the PyPI package `ziglang` carries it, for targets that its file does not name.
    pub fn of_stub(install_name: &str, stub: &str) -> Self {
        let mut symbols = BTreeSet::new();
        for list in stub.split("symbols:").skip(1) {
            let list = list.split_once('[').and_then(|(_, list)| list.split_once(']')).unwrap_or_default().0;
            let names = list.split(',').map(|name| name.trim().trim_matches('\''));
            // Directives to the linker, for older systems.
            symbols
                .extend(names.filter(|name| !name.is_empty() && !name.contains("$ld$")).map(str::to_owned));
        }
        Self { install_name: install_name.into(), symbols, ..Self::default() }
    }

    /// The stub.
    pub fn stub(&self) -> String {
        let list = |names: &mut dyn Iterator<Item = &String>| {
            names.map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
        };
        let mut out = format!(
            "--- !tapi-tbd\ntbd-version: 4\ntargets: {TARGETS}\ninstall-name: '{}'\n",
            self.install_name
        );
        if !self.reexported.is_empty() {
            let libraries = list(&mut self.reexported.iter());
            let _ = writeln!(
                out,
                "reexported-libraries:\n  - targets: {TARGETS}\n    libraries: [ {libraries} ]"
            );
        }
        let _ = writeln!(out, "exports:\n  - targets: {TARGETS}");
        for (key, names) in [
            ("symbols", &self.symbols),
            ("objc-classes", &self.classes),
            ("objc-eh-types", &self.exception_types),
        ] {
            if !names.is_empty() {
                let _ = writeln!(out, "    {key}: [ {} ]", list(&mut names.iter()));
            }
        }
        out + "...\n"
    }
}
