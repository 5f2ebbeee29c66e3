//! Compiled products kept on disk between starts: found by what they were made from, never trusted.

use std::fmt::Write as _;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::private_dir;

/// What a shim writes. MPSGraph's own extension: whether it insists on it is not documented.
const PRODUCT: &str = "product.mpsgraphpackage";
const MANIFEST: &str = "manifest.txt";

/// A directory of packages. Each lies in a directory of its own, named by the hash of its key, with a
/// manifest: the whole key, then length and BLAKE3 of every file.
#[derive(Debug)]
pub(crate) struct PackageStore {
    directory: PathBuf,
}

impl PackageStore {
    /// Opens a directory, and makes it where there is none: for its owner alone.
    ///
    /// # Errors
    /// [`Error::Io`], also when others may write to it: a package is code that the owner runs.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let error = |source| Error::io(directory, "keep packages in", source);
        private_dir::create(directory).map_err(error)?;
        fs::metadata(directory).and_then(|metadata| private_dir::check(&metadata)).map_err(error)?;
        Ok(Self { directory: directory.into() })
    }

    fn place(&self, key: &str) -> PathBuf {
        self.directory.join(blake3::hash(key.as_bytes()).to_hex().as_str())
    }

    /// The package of this key, if there is one whose files are what was saved.
    pub(crate) fn find(&self, key: &str) -> Option<PathBuf> {
        let place = self.place(key);
        let product = place.join(PRODUCT);
        let saved = fs::read_to_string(place.join(MANIFEST)).ok()?;
        match manifest(key, &product) {
            Ok(now) if now == saved => Some(product),
            Ok(_) => {
                log::warn!("{}: the package is not what was saved; it is made again", place.display());
                None
            }
            Err(error) => {
                log::warn!("{}: the package cannot be read ({error}); it is made again", place.display());
                None
            }
        }
    }

    /// Keeps what `write` writes at the path that it is given, in place of what was there: whole, or
    /// not at all.
    ///
    /// # Errors
    /// Those of `write`, and [`Error::Io`].
    pub(crate) fn save(&self, key: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        // A name that nobody can guess: the keys of the standard library's hash maps.
        let (place, own) = (self.place(key), RandomState::new().hash_one(key));
        let temporary = |what: &str| self.directory.join(format!(".{what}-{own:016x}"));
        let (new, old) = (temporary("new"), temporary("old"));
        let error = |source| Error::io(&new, "save a package in", source);
        let attempt = || {
            fs::create_dir(&new).map_err(error)?;
            write(&new.join(PRODUCT))?;
            let manifest = manifest(key, &new.join(PRODUCT)).map_err(error)?;
            fs::write(new.join(MANIFEST), manifest).map_err(error)?;
            // A directory cannot be renamed onto another that has files.
            match fs::rename(&place, &old) {
                Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
                moved => moved.map_err(error)?,
            }
            self.put(key, &new).map_err(error)
        };
        let result = attempt();
        for leftover in [&new, &old] {
            if let Err(error) = remove(leftover) {
                log::warn!("{} cannot be removed: {error}", leftover.display());
            }
        }
        result
    }

    /// Moves a package to its place, from which the one before was moved.
    fn put(&self, key: &str, new: &Path) -> io::Result<()> {
        match fs::rename(new, self.place(key)) {
            // Another process was faster, with the same package.
            Err(_) if self.find(key).is_some() => Ok(()),
            moved => moved,
        }
    }
}

/// Removes a directory with all that is in it, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The key, then a line for each file of a package, which may be a file itself.
fn manifest(key: &str, product: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    list(product, &mut files)?;
    files.sort();
    let mut text = format!("{key}\nfiles\n");
    for file in files {
        let bytes = fs::read(&file)?;
        let name = file.strip_prefix(product).unwrap_or(&file).display();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} {} {name}", blake3::hash(&bytes).to_hex(), bytes.len());
    }
    Ok(text)
}

fn list(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_file() {
        files.push(path.into());
    } else if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            list(&entry?.path(), files)?;
        }
    } else {
        return Err(io::Error::other(format!("{} is neither a file nor a directory", path.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(store: &PackageStore, key: &str, contents: &str) {
        let write = |path: &Path| {
            fs::create_dir_all(path.join("inner")).unwrap();
            fs::write(path.join("inner/data"), contents).unwrap();
            fs::write(path.join("empty"), "").unwrap();
            Ok(())
        };
        store.save(key, write).unwrap();
    }

    fn entries(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn a_package_is_found_by_its_whole_key() {
        let directory = tempfile::tempdir().unwrap();
        let store = PackageStore::open(&directory.path().join("new/packages")).unwrap();
        assert_eq!(store.find("one"), None);
        save(&store, "one", "1");
        save(&store, "two", "2");
        let read = |key| fs::read_to_string(store.find(key).unwrap().join("inner/data")).unwrap();
        assert_eq!((read("one"), read("two")), ("1".into(), "2".into()));
        assert_eq!(store.find("on"), None);
        save(&store, "one", "again");
        assert_eq!(read("one"), "again");
        assert_eq!(entries(&store.directory), 2, "something is left over");
        // The same name with another key in it: as if two keys had one hash.
        fs::rename(store.place("one"), store.place("three")).unwrap();
        assert_eq!(store.find("three"), None);
    }

    #[test]
    fn what_was_changed_is_not_found() {
        let directory = tempfile::tempdir().unwrap();
        let store = PackageStore::open(directory.path()).unwrap();
        let changes: [fn(&Path); 5] = [
            |product| fs::write(product.join("inner/data"), "2").unwrap(),
            |product| fs::remove_file(product.join("empty")).unwrap(),
            |product| fs::write(product.join("more"), "").unwrap(),
            |product| fs::rename(product.join("empty"), product.join("inner/empty")).unwrap(),
            |product| fs::remove_dir_all(product).unwrap(),
        ];
        for change in changes {
            save(&store, "key", "1");
            change(&store.find("key").unwrap());
            assert_eq!(store.find("key"), None);
        }
        save(&store, "key", "1");
        fs::remove_file(store.place("key").join(MANIFEST)).unwrap();
        assert_eq!(store.find("key"), None);
    }

    #[test]
    fn a_place_that_was_taken_meanwhile_is_left_where_it_has_the_same_package() {
        let directory = tempfile::tempdir().unwrap();
        let store = PackageStore::open(directory.path()).unwrap();
        let new = directory.path().join("new");
        fs::create_dir(&new).unwrap();
        save(&store, "key", "1");
        store.put("key", &new).unwrap();
        let product = store.find("key").unwrap();
        fs::write(product.join("more"), "").unwrap();
        assert!(store.put("key", &new).is_err());
        assert!(product.join("more").exists() && new.exists());
    }

    #[cfg(unix)]
    #[test]
    fn links_in_a_package_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let store = PackageStore::open(directory.path()).unwrap();
        let result = store.save("key", |path| {
            std::os::unix::fs::symlink("/dev/zero", path).unwrap();
            Ok(())
        });
        assert!(matches!(result, Err(Error::Io { .. })), "{result:?}");
        assert_eq!(entries(directory.path()), 0);
    }

    #[test]
    fn a_failure_keeps_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let store = PackageStore::open(directory.path()).unwrap();
        save(&store, "key", "1");
        let result = store.save("key", |path| {
            fs::write(path, "half").unwrap();
            Err(Error::SizeOverflow { what: "a planted error" })
        });
        assert!(matches!(result, Err(Error::SizeOverflow { .. })));
        assert!(matches!(store.save("key", |_| Ok(())), Err(Error::Io { .. })), "nothing was written");
        assert!(store.find("key").is_some());
        assert_eq!(entries(directory.path()), 1, "something is left over");
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_is_the_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("packages");
        PackageStore::open(&path).unwrap();
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode() & 0o077, 0);
        for open in [0o770, 0o702] {
            fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
            let text = PackageStore::open(&path).unwrap_err().to_string();
            assert!(text.contains("chmod go-w"), "{text}");
        }
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(PackageStore::open(&file), Err(Error::Io { .. })));
    }
}
