//! Checkpoints of several files, the shards, and the index that says which tensor is in which:
//! `model.safetensors.index.json`, as Hugging Face's libraries write it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::{MAXIMUM_HEADER_BYTES, SafetensorsFile, Shard};
use crate::error::{Error, Result};

/// What a directory may hold, in this order of preference, which is that of Hugging Face's libraries.
const NAMES: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];

/// The missing shards that an error names, at most: more than a large model has.
const MISSING_SHOWN: usize = 1000;

/// What an index says of tensors; it says more, which is not needed.
#[derive(serde::Deserialize)]
struct Index {
    /// The shard of each tensor.
    #[serde(deserialize_with = "each_once")]
    weight_map: BTreeMap<String, String>,
}

/// A map whose keys are all different.
fn each_once<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct EachOnce;

    impl<'de> Visitor<'de> for EachOnce {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a map of tensors to files")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((name, shard)) = entries.next_entry::<String, String>()? {
                if map.contains_key(&name) {
                    return Err(A::Error::custom(format_args!("it names `{name}` twice")));
                }
                map.insert(name, shard);
            }
            Ok(map)
        }
    }

    deserializer.deserialize_map(EachOnce)
}

/// What stands for a path: the file that a directory holds, or the path itself.
pub(super) fn resolve(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let mut files = NAMES.iter().map(|name| path.join(name));
    files.find(|file| file.is_file()).ok_or_else(|| {
        Error::format(path, format!("holds neither {} nor {}; name the file itself", NAMES[0], NAMES[1]))
    })
}

/// Whether a path names an index.
pub(super) fn is_index(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// Opens all shards of an index.
pub(super) fn open(path: &Path, open: impl Fn(&Path) -> Result<Shard>) -> Result<SafetensorsFile> {
    let format = |problem: String| Error::format(path, problem);
    let map = read(path)?;
    let names: BTreeSet<&str> = map.values().map(String::as_str).collect();
    let is_inside = |name: &str| {
        let mut parts = Path::new(name).components().peekable();
        parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
    };
    if let Some(name) = names.iter().find(|name| !is_inside(name)) {
        return Err(format(format!(
            "names a shard `{name}`; shards must lie in the directory of their index"
        )));
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    let (mut shards, mut missing) = (Vec::with_capacity(names.len()), Vec::new());
    for &name in &names {
        let shard = directory.join(name);
        match fs::metadata(&shard) {
            Ok(metadata) if metadata.is_file() => shards.push(shard),
            Ok(_) => return Err(Error::format(shard, "is not a regular file; expected a shard".into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(name),
            Err(source) => return Err(Error::io(shard, "read", source)),
        }
    }
    if !missing.is_empty() {
        let shown = missing.iter().take(MISSING_SHOWN).copied().collect::<Vec<_>>().join(", ");
        let more = missing.len().saturating_sub(MISSING_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let problem = format!(
            "{} of its {} shards are missing beside it: {shown}{more}; download them",
            missing.len(),
            names.len()
        );
        return Err(format(problem));
    }
    let shards = shards.iter().map(|shard| open(shard)).collect::<Result<Vec<_>>>()?;
    let file = SafetensorsFile::new(path, shards)?;
    for (name, shard) in &map {
        let found = file.tensors.get(name).map(|&index| &file.shards[index].path);
        if found != Some(&directory.join(shard)) {
            let problem = format!("`{name}` is not in {shard}, as it says; download both again");
            return Err(format(problem));
        }
    }
    Ok(file)
}

/// The shard of each tensor.
fn read(path: &Path) -> Result<BTreeMap<String, String>> {
    let io = |source| Error::io(path, "read", source);
    let format = |problem: String| {
        Error::format(
            path,
            format!("not an index of shards: {problem}; expected model.safetensors.index.json"),
        )
    };
    // Opening a pipe would wait for its writer, and there is no directory beside it.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(format("it is not a regular file".into()));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io)?;
    file.take(MAXIMUM_HEADER_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAXIMUM_HEADER_BYTES {
        return Err(format(format!("it has over {MAXIMUM_HEADER_BYTES} bytes")));
    }
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| format(error.to_string()))?;
    if index.weight_map.is_empty() {
        return Err(format("its `weight_map` is empty".into()));
    }
    Ok(index.weight_map)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{both, write_file};
    use super::*;

    const INDEX: &str = "model.safetensors.index.json";

    /// Two shards of two tensors each, and an index that may be another.
    fn checkpoint(weight_map: &str) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        let bytes = |x: f32| x.to_le_bytes().to_vec();
        for (shard, names) in [("one.safetensors", ["a", "d"]), ("two.safetensors", ["b", "c"])] {
            let entries = names.map(|name| {
                let number = f32::from(name.as_bytes()[0] - b'a');
                (name, "F32", &[1, 1][..], bytes(number))
            });
            fs::write(place.path().join(shard), write_file(&entries, 0)).unwrap();
        }
        let index = format!(r#"{{"metadata":{{"total_size":16}},"weight_map":{weight_map}}}"#);
        fs::write(place.path().join(INDEX), index).unwrap();
        place
    }

    const MAP: &str = r#"{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}"#;

    #[track_caller]
    fn problem(place: &tempfile::TempDir) -> String {
        let path = place.path().join(INDEX);
        let text = SafetensorsFile::read(&path).unwrap_err().to_string();
        text.strip_prefix(place.path().to_str().unwrap()).unwrap_or(&text).to_owned()
    }

    #[test]
    fn shards_are_one_file_by_their_index_or_their_directory() {
        let place = checkpoint(MAP);
        for path in [place.path().to_owned(), place.path().join(INDEX)] {
            for file in both(&path) {
                // One that the index leaves out is there all the same.
                assert_eq!(file.names(), ["a", "b", "c", "d"]);
                for (number, name) in [0.0, 1.0, 2.0, 3.0].into_iter().zip(["a", "b", "c", "d"]) {
                    assert_eq!(file.weights(name).unwrap().view().get(0, 0, 0), Some(number), "{name}");
                }
                let text = file.weights("e").unwrap_err().to_string();
                assert!(text.contains("index.json: no tensor named `e`"), "{text}");
            }
        }
        // A single file is preferred; the other shards are not looked at then.
        fs::rename(place.path().join("two.safetensors"), place.path().join("model.safetensors")).unwrap();
        assert_eq!(SafetensorsFile::read(place.path()).unwrap().names(), ["b", "c"]);
        let empty = tempfile::tempdir().unwrap();
        let text = SafetensorsFile::read(empty.path()).unwrap_err().to_string();
        assert!(text.contains("holds neither model.safetensors nor model.safetensors.index.json"), "{text}");
    }

    #[test]
    fn every_missing_shard_is_named() {
        let map = r#"{"a":"one.safetensors","b":"x.safetensors","c":"y.safetensors","d":"y.safetensors"}"#;
        let text = problem(&checkpoint(map));
        let expected = "2 of its 3 shards are missing beside it: x.safetensors, y.safetensors; download them";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn an_index_that_its_shards_contradict_is_refused() {
        let map = r#"{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}"#;
        let text = problem(&checkpoint(map));
        assert!(text.contains("`b` is not in one.safetensors, as it says"), "{text}");
        let text =
            problem(&checkpoint(r#"{"a":"one.safetensors","b":"two.safetensors","x":"two.safetensors"}"#));
        assert!(text.contains("`x` is not in two.safetensors"), "{text}");

        let place = checkpoint(MAP);
        fs::copy(place.path().join("one.safetensors"), place.path().join("two.safetensors")).unwrap();
        let text = problem(&place);
        assert!(text.contains("`a` is in both one.safetensors and two.safetensors"), "{text}");

        fs::write(place.path().join("two.safetensors"), "damaged").unwrap();
        assert!(problem(&place).starts_with("/two.safetensors: not a valid safetensors file"));
        fs::remove_file(place.path().join("two.safetensors")).unwrap();
        fs::create_dir(place.path().join("two.safetensors")).unwrap();
        assert!(problem(&place).starts_with("/two.safetensors: is not a regular file"));
    }

    #[test]
    fn shards_lie_beside_their_index() {
        let inside = checkpoint(MAP);
        fs::create_dir(inside.path().join("deep")).unwrap();
        fs::rename(inside.path().join("two.safetensors"), inside.path().join("deep/two.safetensors"))
            .unwrap();
        fs::write(
            inside.path().join(INDEX),
            r#"{"weight_map":{"a":"one.safetensors","b":"deep/two.safetensors"}}"#,
        )
        .unwrap();
        assert_eq!(SafetensorsFile::read(inside.path()).unwrap().names().len(), 4);

        let outside = checkpoint(MAP);
        let absolute = outside.path().join("one.safetensors");
        for name in
            ["../one.safetensors", "deep/../../one.safetensors", "..", ".", "", absolute.to_str().unwrap()]
        {
            fs::write(inside.path().join(INDEX), format!(r#"{{"weight_map":{{"a":{name:?}}}}}"#)).unwrap();
            let text = problem(&inside);
            assert!(text.contains("shards must lie in the directory of their index"), "{name}: {text}");
        }
    }

    #[test]
    fn what_is_no_index_is_told() {
        for (map, part) in [
            (r#"{"a":"one.safetensors","a":"one.safetensors"}"#, "it names `a` twice"),
            (r#"{"a":1}"#, "invalid type: integer `1`, expected a string"),
            (r#"["a"]"#, "expected a map of tensors to files"),
            ("{}", "`weight_map` is empty"),
            ("", "expected value"),
        ] {
            let text = problem(&checkpoint(map));
            assert!(text.contains("not an index of shards") && text.contains(part), "{map}: {text}");
        }
        let place = checkpoint(MAP);
        fs::write(place.path().join(INDEX), "{}").unwrap();
        assert!(problem(&place).contains("missing field `weight_map`"));
        fs::write(place.path().join(INDEX), format!(r#"{{"metadata":{}"#, "[".repeat(100_000))).unwrap();
        assert!(problem(&place).contains("not an index of shards: EOF while parsing"));
        File::create(place.path().join(INDEX)).unwrap().set_len(1 << 40).unwrap();
        assert!(problem(&place).contains("over 100000000 bytes"));
    }
}
