//! `docs/dependencies.md` names every direct dependency with the features that bring it, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

const MANIFEST: &str = include_str!("../Cargo.toml");

/// The first two cells of every row about a crate: its name, and where it is used.
fn documented() -> BTreeMap<&'static str, &'static str> {
    let rows = include_str!("../docs/dependencies.md").lines();
    let rows = rows.filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.map(|(name, rest)| (name, rest.split(" | ").next().unwrap_or_default())).collect()
}

/// The keys of every table of `Cargo.toml` whose name ends in `dependencies`.
fn declared() -> BTreeSet<String> {
    let mut inside = false;
    let mut names = BTreeSet::new();
    for line in MANIFEST.lines() {
        if let Some(table) = line.strip_prefix('[') {
            inside = table.trim_end_matches(']').ends_with("dependencies");
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| inside) {
            names.insert(name.to_owned());
        }
    }
    names
}

#[test]
fn every_dependency_is_accounted_for() {
    let documented: BTreeSet<String> = documented().into_keys().map(String::from).collect();
    let declared = declared();
    assert!(declared.len() > 30, "{declared:?}");
    assert_eq!(documented, declared);
}

#[test]
fn every_dependency_stands_beside_its_features() {
    let mut features: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (feature, list) in MANIFEST.lines().filter_map(|line| line.split_once(" = [")) {
        for name in list.split('"').filter_map(|item| item.strip_prefix("dep:")) {
            features.entry(name).or_default().insert(feature);
        }
    }
    assert!(features.len() > 15, "{features:?}");
    for (name, place) in documented() {
        let named: BTreeSet<&str> = place.split('`').skip(1).step_by(2).collect();
        assert_eq!(named, features.get(name).cloned().unwrap_or_default(), "{name}");
    }
}
