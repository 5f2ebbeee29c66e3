//! `docs/dependencies.md` names every direct dependency, and nothing else.

use std::collections::BTreeSet;

/// The keys of every table of `Cargo.toml` whose name ends in `dependencies`.
fn declared() -> BTreeSet<String> {
    let manifest = include_str!("../Cargo.toml");
    let mut inside = false;
    let mut names = BTreeSet::new();
    for line in manifest.lines() {
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
    let documented: BTreeSet<String> = include_str!("../docs/dependencies.md")
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect();
    let declared = declared();
    assert!(declared.len() > 30, "{declared:?}");
    assert_eq!(documented, declared);
}
