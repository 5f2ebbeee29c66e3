//! What the pages name exists: relative links and their anchors, and paths in backquotes; and every page and
//! plot is reached from `README.md`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders of this repository: what begins with one of them, in backquotes, is a path.
const FOLDERS: [&str; 11] = [
    "benches/",
    "build/",
    "cli/",
    "docs/",
    "examples/",
    "fuzz/",
    "include/",
    "objc/",
    "scripts/",
    "src/",
    "tests/",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a folder that end in `.extension`, relative to the root.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).expect("a folder of pages");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let paths = names.map(|name| Path::new(folder).join(name));
    paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}

fn pages() -> Vec<PathBuf> {
    let mut pages = files("", "md");
    pages.extend(files("docs", "md"));
    assert!(pages.len() > 12, "{pages:?}");
    pages
}

fn text(page: &Path) -> String {
    fs::read_to_string(root().join(page)).expect("a page in UTF-8")
}

/// The steps that `scripts/test` knows and those that the nightly workflow runs are the same.
#[test]
fn every_step_runs_at_night() {
    let (script, workflow) =
        (text(Path::new("scripts/test")), text(Path::new(".github/workflows/thorough.yml")));
    let words = |text: &str| text.split_whitespace().map(String::from).collect::<BTreeSet<_>>();
    let known: BTreeSet<_> = ["tests=(", "checks=(", "thorough=("]
        .into_iter()
        .flat_map(|array| {
            let line = script.lines().find_map(|line| line.strip_prefix(array)).expect("an array of steps");
            words(line.trim_end_matches(')'))
        })
        // A job of ci.yml has it.
        .filter(|step| step != "report")
        .collect();
    let nightly: BTreeSet<_> =
        workflow.lines().filter_map(|line| line.strip_prefix("          - ")).flat_map(words).collect();
    assert!(known.len() > 15);
    let differing: Vec<_> = known.symmetric_difference(&nightly).collect();
    assert!(differing.is_empty(), "scripts/test and .github/workflows/thorough.yml differ in {differing:?}");
}

/// The page without what stands in fences, which are code.
fn prose(page: &Path) -> String {
    let text = text(page);
    let mut inside = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The targets of the page's links and pictures that are not on another site.
fn links(page: &Path) -> Vec<String> {
    let prose = prose(page);
    let targets = prose.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
    targets.filter(|target| !target.contains("://")).collect()
}

/// What the page shows as code within a line.
fn code(page: &Path) -> Vec<String> {
    prose(page).split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect()
}

/// A page's headings, as the anchors that GitHub makes of them.
fn anchors(page: &Path) -> BTreeSet<String> {
    let prose = prose(page);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let title = heading.trim_start_matches('#').trim().to_lowercase();
        title.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// A path of a page, relative to the root, without `.` and `..`.
fn resolve(page: &Path, target: &str) -> PathBuf {
    let mut path = page.parent().expect("a file lies in a folder").to_path_buf();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => assert!(path.pop(), "{}: {target} leaves the repository", page.display()),
            part => path.push(part),
        }
    }
    path
}

#[test]
fn every_link_leads_somewhere() {
    let mut links_seen = 0;
    for page in pages() {
        for link in links(&page) {
            let (target, anchor) = link.split_once('#').map_or((&*link, None), |(t, a)| (t, Some(a)));
            let path = if target.is_empty() { page.clone() } else { resolve(&page, target) };
            assert!(root().join(&path).exists(), "{}: a dead link to {link}", page.display());
            if let Some(anchor) = anchor {
                assert!(anchors(&path).contains(anchor), "{}: no heading for {link}", page.display());
            }
            links_seen += 1;
        }
    }
    assert!(links_seen > 50, "{links_seen} links");
}

#[test]
fn every_path_in_backquotes_exists() {
    let mut paths_seen = 0;
    for page in pages() {
        for code in code(&page) {
            // A command's arguments are no part of the path, nor is a line of an error or an item.
            let word = code.split([' ', ':']).next().unwrap_or_default();
            if !FOLDERS.iter().any(|folder| word.starts_with(folder)) {
                continue;
            }
            // Where names vary, the folder must be there.
            let fixed =
                word.split_once('*').map_or(word, |(before, _)| before.rsplit_once('/').map_or("", |p| p.0));
            assert!(root().join(fixed).exists(), "{}: there is no {word}", page.display());
            paths_seen += 1;
        }
    }
    assert!(paths_seen > 100, "{paths_seen} paths");
}

#[test]
fn every_page_is_in_the_index() {
    let readme = Path::new("README.md");
    let linked: BTreeSet<PathBuf> = links(readme).iter().map(|link| resolve(readme, link)).collect();
    for page in files("docs", "md") {
        assert!(linked.contains(&page), "README.md does not link to {}", page.display());
    }
    for picture in files("docs", "svg").into_iter().chain(files("docs/plots", "svg")) {
        let shown = pages().iter().any(|page| links(page).iter().any(|link| resolve(page, link) == picture));
        assert!(shown, "no page shows {}", picture.display());
    }
}

/// The sources of the library, tests and the bindings of C aside.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).expect("a folder of sources");
    let paths = entries.map(|entry| folder.join(entry.expect("an entry").file_name()));
    let kept = paths.filter(|path| !["sys", "tests", "tests.rs"].iter().any(|name| path.ends_with(name)));
    let (folders, files): (Vec<_>, Vec<_>) = kept.partition(|path| root().join(path).is_dir());
    files.into_iter().chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

#[test]
fn every_public_type_has_an_example() {
    const KINDS: [&str; 4] = ["pub enum ", "pub struct ", "pub trait ", "pub type "];
    let (mut types_seen, mut without) = (0, Vec::new());
    for file in sources(Path::new("src")) {
        let text = text(&file);
        let lines: Vec<_> = text.lines().map(str::trim).take_while(|line| *line != "mod tests {").collect();
        for (index, line) in lines.iter().enumerate() {
            let public = KINDS.iter().find_map(|kind| line.strip_prefix(kind));
            // Nobody outside can name a trait that seals another.
            let Some(name) = public.filter(|name| !name.starts_with("Sealed ")) else { continue };
            // Comment and attributes, up to what stands before the type.
            let own = |line: &&&str| {
                line.starts_with("///") || !(line.is_empty() || line.ends_with(['{', '}', ';']))
            };
            let mut own = lines[..index].iter().rev().take_while(own);
            if !own.any(|line| line.contains("```") || line.contains("has an example")) {
                without.push(format!("{}:{}: {name}", file.display(), index + 1));
            }
            types_seen += 1;
        }
    }
    assert!(types_seen > 80, "{types_seen} types");
    assert!(without.is_empty(), "add an example, or say which type \"has an example\": {without:#?}");
}
