//! `docs/dependencies.md` names every direct dependency of the library and of the command line, with the features
//! that bring it, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

const PAGE: &str = include_str!("../docs/dependencies.md");

const LIBRARY: &str = include_str!("../Cargo.toml");

const COMMAND_LINE: &str = include_str!("../cli/Cargo.toml");

/// The library's part of the page, and the command line's.
fn parts() -> [(&'static str, &'static str); 2] {
    let (library, command_line) = PAGE.split_once("\n## Of the command line\n").expect("both parts");
    [(LIBRARY, library), (COMMAND_LINE, command_line)]
}

/// The first two cells of every row about a crate: its name, and where it is used.
fn documented(part: &str) -> BTreeMap<&str, &str> {
    let rows = part.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.map(|(name, rest)| (name, rest.split(" | ").next().unwrap_or_default())).collect()
}

/// The keys of every table of a manifest whose name ends in `dependencies`.
fn declared(manifest: &str) -> BTreeSet<&str> {
    let mut inside = false;
    let mut names = BTreeSet::new();
    for line in manifest.lines() {
        if let Some(table) = line.strip_prefix('[') {
            inside = table.trim_end_matches(']').ends_with("dependencies");
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| inside) {
            names.insert(name);
        }
    }
    names
}

#[test]
fn every_dependency_is_accounted_for() {
    for (manifest, part) in parts() {
        let declared = declared(manifest);
        assert!(declared.len() > 15, "{declared:?}");
        assert_eq!(documented(part).into_keys().collect::<BTreeSet<_>>(), declared);
    }
}

#[test]
fn every_dependency_stands_beside_its_features() {
    for (manifest, part) in parts() {
        let mut features: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (feature, list) in manifest.lines().filter_map(|line| line.split_once(" = [")) {
            for name in list.split('"').filter_map(|item| item.strip_prefix("dep:")) {
                features.entry(name).or_default().insert(feature);
            }
        }
        assert_eq!(features.len() > 10, manifest == LIBRARY, "{features:?}");
        for (name, place) in documented(part) {
            let named: BTreeSet<&str> = place.split('`').skip(1).step_by(2).collect();
            assert_eq!(named, features.get(name).cloned().unwrap_or_default(), "{name}");
        }
    }
}
