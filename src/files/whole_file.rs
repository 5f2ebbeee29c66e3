//! Files that are written whole or not at all (features `npy`, `profile` and `safetensors`).

use std::fs;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// A file that appears at its path when it is complete, and not before.
///
/// It is written beside its path under a random name, flushed to the disk and renamed. Until
/// [`WholeFile::commit`] succeeds, whatever was at the path stays as it was; a symbolic link there
/// is replaced, not followed. A file that was there leaves its permissions, and its owner where this
/// user may. One that is a mount point cannot be replaced, and is written to at the end. Dropping it
/// without `commit` removes what was written.
#[derive(Debug)]
#[must_use = "nothing is at its path before commit() is called"]
pub(crate) struct WholeFile {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl WholeFile {
    /// Begins a file that is to appear at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when its directory cannot be written to, or when something other than a regular file is at
    /// `path`, or at the end of a symbolic link there.
    #[cfg(any(feature = "npy", feature = "safetensors"))]
    pub(crate) fn create(path: impl AsRef<Path>) -> Result<Self> {
        Self::with_mode(path.as_ref(), ANY_NEW_FILE)
    }

    /// Begins a file that its owner alone may read and write.
    #[cfg(feature = "profile")]
    pub(crate) fn create_private(path: &Path) -> Result<Self> {
        Self::with_mode(path, 0o600)
    }

    #[cfg_attr(not(unix), allow(unused_variables))]
    fn with_mode(path: &Path, mode: u32) -> Result<Self> {
        let error = |action, source| Error::io(path, action, source);
        let replaced = replaced(path).map_err(|source| error("write", source))?;
        if path.file_name().is_none() {
            return Err(error("write", io::Error::other("does not name a file")));
        }
        let (prefix, mut builder) = (prefix(), tempfile::Builder::new());
        builder.prefix(&prefix).suffix(SUFFIX).rand_bytes(RANDOM_CHARACTERS);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            // Nobody opens what replaces a private file before it is as private.
            let mode = if replaced.is_some() { 0o600 } else { mode };
            builder.permissions(fs::Permissions::from_mode(mode));
        }
        let file = builder.tempfile_in(directory_of(path)).map_err(|source| error("write", source))?;
        if let Some(replaced) = replaced.filter(|_| mode == ANY_NEW_FILE) {
            take_after(file.as_file(), &replaced).map_err(|source| error("write", source))?;
        }
        Ok(Self { path: path.into(), file: BufWriter::new(file) })
    }

    /// Puts the finished file at its path.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk is full or the path cannot be replaced; nothing has changed then.
    pub(crate) fn commit(self) -> Result<()> {
        let Self { path, file } = self;
        let result = file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.as_file().sync_all().map(|()| file))
            .and_then(|file| put(file, &path));
        result.map_err(|source| Error::io(path, "write", source))
    }

    /// Begins, writes and commits in one step.
    ///
    /// # Errors
    /// [`Error::Io`], also when `write` fails.
    #[cfg(feature = "npy")]
    pub(crate) fn write_all(
        path: impl AsRef<Path>,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()> {
        let mut file = Self::create(path)?;
        write(&mut file.file).map_err(|source| Error::io(&file.path, "write", source))?;
        file.commit()
    }
}

/// What is at a path, which a file may take the place of: a regular file, or `None` for a link to one and for
/// nothing.
fn replaced(path: &Path) -> io::Result<Option<fs::Metadata>> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(None);
    };
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(io::Error::other("is a directory; name a file in it"));
    }
    // Every program relies on links such as /dev/stdout, which leads to what is open, be it a regular file.
    let special = |path: &Path| {
        fs::read_link(path).is_ok_and(|target| target.starts_with("/proc"))
            || fs::metadata(path).is_ok_and(|target| !target.is_file())
    };
    if !kind.is_file() && (!kind.is_symlink() || special(path)) {
        return Err(io::Error::other("is not a regular file; name a file"));
    }
    Ok(kind.is_file().then_some(metadata))
}

/// Gives a file the permissions of the one that it takes the place of, and its owner where this user may.
#[cfg(unix)]
fn take_after(file: &fs::File, replaced: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
    let (owner, group) = (Some(replaced.uid()), Some(replaced.gid()));
    if fchown(file, owner, group).is_err() {
        // Most may give files to a group of theirs only.
        let _ = fchown(file, None, group);
    }
    // What a group might do was not said of another.
    let ours = if file.metadata()?.gid() == replaced.gid() { 0o777 } else { 0o707 };
    file.set_permissions(fs::Permissions::from_mode(replaced.permissions().mode() & ours))
}

#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps, reason = "elsewhere it can fail")]
fn take_after(_: &fs::File, _: &fs::Metadata) -> io::Result<()> {
    Ok(())
}

/// Renames a finished file to its path.
fn put(file: NamedTempFile, path: &Path) -> io::Result<()> {
    let Err(error) = file.persist(path) else {
        return Ok(());
    };
    if error.error.kind() != io::ErrorKind::ResourceBusy {
        return Err(error.error);
    }
    // A file that is mounted, as containers are given some, can only be written to.
    let mut mounted = fs::OpenOptions::new().write(true).truncate(true).open(path)?;
    io::copy(&mut fs::File::open(error.file.path())?, &mut mounted)?;
    mounted.sync_all()
}

/// The permissions of any new file, of which the umask leaves some.
const ANY_NEW_FILE: u32 = 0o666;

/// The end of the name of a file that is not yet whole. The command line removes files of such names after a
/// signal: `cli/src/whole_file.rs` names them alike.
const SUFFIX: &str = ".part";

/// Of 62 characters each: 71 bits, which nobody guesses.
const RANDOM_CHARACTERS: usize = 12;

/// The beginning of such names of this process's.
fn prefix() -> String {
    format!(".ane-matmul-{}-", std::process::id())
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for WholeFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[cfg(all(test, feature = "npy"))]
mod tests {
    use super::*;

    #[test]
    fn nothing_changes_before_commit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        fs::write(&path, "old").unwrap();
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(file);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        WholeFile::write_all(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failing_writer_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        fs::write(&path, "old").unwrap();
        let result = WholeFile::write_all(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("disk full"))
        });
        assert!(result.unwrap_err().to_string().ends_with("write: disk full"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn unfinished_files_have_unpredictable_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let files = [WholeFile::create(&path).unwrap(), WholeFile::create(&path).unwrap()];
        let parts: Vec<String> = fs::read_dir(directory.path())
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .filter_map(|name| Some(name.strip_prefix(&prefix())?.strip_suffix(SUFFIX)?.to_owned()))
            .collect();
        assert!(parts.len() == 2 && parts[0] != parts[1], "{parts:?}");
        assert!(parts.iter().all(|part| part.len() == RANDOM_CHARACTERS), "{parts:?}");
        drop(files);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_somebody_removed_cannot_be_committed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        fs::write(&path, "old").unwrap();
        let file = WholeFile::create(&path).unwrap();
        fs::remove_file(file.file.get_ref().path()).unwrap();
        assert!(matches!(file.commit(), Err(Error::Io { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn what_was_flushed_is_in_the_file_before_it_has_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = WholeFile::create(directory.path().join("out")).unwrap();
        file.write_all(b"new").unwrap();
        file.flush().unwrap();
        let part = fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
        assert_eq!(fs::read(part).unwrap(), b"new");
    }

    #[test]
    fn directories_and_devices_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(WholeFile::create(directory.path()).unwrap_err().to_string().contains("is a directory"));
        assert!(WholeFile::create(directory.path().join("no/such")).is_err());
        #[cfg(unix)]
        assert!(WholeFile::create("/dev/null").unwrap_err().to_string().contains("not a regular file"));
    }

    #[cfg(unix)]
    #[test]
    fn a_symbolic_link_is_replaced_and_permissions_follow_the_umask() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        fs::write(&target, "target").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        WholeFile::write_all(&link, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"target");
        let plain = directory.path().join("plain");
        fs::write(&plain, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&link), mode(&plain));
    }
}
