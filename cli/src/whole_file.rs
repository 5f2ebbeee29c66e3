//! Files that are written whole or not at all.

use std::fs;
use std::io::{Error, ErrorKind, Result, Write as _, copy};
use std::path::Path;

use tempfile::NamedTempFile;

use crate::failure::{Failure, Output};

/// The end of the name of a file that is not yet whole. The library names its own alike
/// (`src/whole_file.rs`), so that a signal removes them too.
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

/// Begins a file beside its path, with the permissions of the one there, or of any new file: what the umask leaves.
fn begin(path: &Path) -> Result<NamedTempFile> {
    let replaced = replaced(path)?;
    if path.file_name().is_none() {
        return Err(Error::other("does not name a file"));
    }
    let (prefix, mut builder) = (prefix(), tempfile::Builder::new());
    builder.prefix(&prefix).suffix(SUFFIX).rand_bytes(RANDOM_CHARACTERS);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        // Nobody opens what replaces a private file before it is as private.
        let mode = if replaced.is_some() { 0o600 } else { 0o666 };
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    let file = builder.tempfile_in(directory_of(path))?;
    if let Some(replaced) = replaced {
        take_after(file.as_file(), &replaced)?;
    }
    Ok(file)
}

/// What is at a path, which a file may take the place of: a regular file, or `None` for a link to one and for
/// nothing.
fn replaced(path: &Path) -> Result<Option<fs::Metadata>> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(None);
    };
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(Error::other("is a directory; name a file in it"));
    }
    // Every program relies on links such as /dev/stdout, which leads to what is open, be it a regular file.
    let special = |path: &Path| {
        fs::read_link(path).is_ok_and(|target| target.starts_with("/proc"))
            || fs::metadata(path).is_ok_and(|target| !target.is_file())
    };
    if !kind.is_file() && (!kind.is_symlink() || special(path)) {
        return Err(Error::other("is not a regular file; name a file"));
    }
    Ok(kind.is_file().then_some(metadata))
}

/// Gives a file the permissions of the one that it takes the place of, and its owner where this user may.
#[cfg(unix)]
fn take_after(file: &fs::File, replaced: &fs::Metadata) -> Result<()> {
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
fn take_after(_: &fs::File, _: &fs::Metadata) -> Result<()> {
    Ok(())
}

/// Renames a finished file to its path.
fn put(file: NamedTempFile, path: &Path) -> Result<()> {
    let Err(error) = file.persist(path) else {
        return Ok(());
    };
    if error.error.kind() != ErrorKind::ResourceBusy {
        return Err(error.error);
    }
    // A file that is mounted, as containers are given some, can only be written to.
    let mut mounted = fs::OpenOptions::new().write(true).truncate(true).open(path)?;
    copy(&mut fs::File::open(error.file.path())?, &mut mounted)?;
    mounted.sync_all()
}

fn told<T>(path: &Path, result: Result<T>) -> Output<T> {
    result.map_err(|error| Failure::new(format!("{}: write: {error}", path.display())))
}

/// Fails where a file cannot be written: before the work, not after it.
pub(crate) fn check(path: &Path) -> Output {
    if crate::output::is_standard(path) {
        return Err(Failure::new("`-` is no file, and this does not go to standard output; name a file"));
    }
    told(path, begin(path).map(drop))
}

/// Writes a file, flushes it to the disk and renames it to its path, where a symbolic link is replaced and
/// not followed. Where that fails, whatever was there stays as it was. A file that is a mount point is written to.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Output {
    let write = |mut file: NamedTempFile| {
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        put(file, path)
    };
    told(path, begin(path).and_then(write))
}

/// Removes what this process has begun beside `path` and not finished, whatever it is for. A file that is
/// about to be renamed is not there then.
#[cfg(any(unix, test))]
pub(crate) fn remove_unfinished(path: &Path) -> Result<()> {
    let (prefix, mut result) = (prefix(), Ok(()));
    for entry in fs::read_dir(directory_of(path))? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with(&prefix) && name.ends_with(SUFFIX));
        if ours
            && let Err(error) = fs::remove_file(entry.path())
            && error.kind() != ErrorKind::NotFound
        {
            result = Err(error);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use ane_matmul::ElementType;
    use ane_matmul::safetensors::{QuantizeOptions, SafetensorsFile};

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let told = |path: &Path| match (check(path), write(path, b"new")) {
            (Err(Failure(checked)), Err(Failure(written))) if checked == written => checked,
            other => panic!("{other:?}"),
        };
        let text = told(directory.path());
        assert_eq!(text, format!("{}: write: is a directory; name a file in it", directory.path().display()));
        assert!(told(Path::new("")).ends_with(": write: does not name a file"));
        assert!(check(&directory.path().join("no/such")).is_err());
        #[cfg(unix)]
        assert_eq!(told(Path::new("/dev/null")), "/dev/null: write: is not a regular file; name a file");
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn a_file_is_replaced_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        fs::write(&path, "old").unwrap();
        check(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        write(&path, b"new").unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), names(directory.path())),
            (b"new".to_vec(), vec!["out".into()])
        );
    }

    #[test]
    fn unfinished_files_have_unpredictable_names_and_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        fs::write(&path, "old").unwrap();
        let others = directory.path().join(".ane-matmul-1-AAAAAAAAAAAA.part");
        fs::write(&others, "of another process").unwrap();
        let files = [begin(&path).unwrap(), begin(&path).unwrap()];
        let parts: Vec<String> = names(directory.path())
            .iter()
            .filter_map(|name| Some(name.strip_prefix(&prefix())?.strip_suffix(SUFFIX)?.to_owned()))
            .collect();
        assert!(parts.len() == 2 && parts[0] != parts[1], "{parts:?}");
        assert!(parts.iter().all(|part| part.len() == RANDOM_CHARACTERS), "{parts:?}");
        remove_unfinished(&path).unwrap();
        assert_eq!(names(directory.path()).len(), 2);
        assert_eq!((fs::read(&path).unwrap(), others.exists()), (b"old".to_vec(), true));
        assert!(files.into_iter().all(|file| file.persist(&path).is_err()));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert!(remove_unfinished(Path::new("/nonexistent/out")).is_err());
    }

    #[test]
    fn what_cannot_be_removed_is_told_and_the_rest_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let file = begin(&path).unwrap();
        let kept = format!("{}kept{SUFFIX}", prefix());
        fs::create_dir(directory.path().join(&kept)).unwrap();
        assert!(remove_unfinished(&path).is_err());
        assert_eq!(names(directory.path()), [kept]);
        drop(file);
    }

    #[test]
    fn what_the_library_has_begun_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let [input, out] = ["in", "out"].map(|name| directory.path().join(name));
        let header = r#"{"w":{"dtype":"F32","shape":[8,8],"data_offsets":[0,256]}}      "#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + 256, 0);
        fs::write(&input, bytes).unwrap();
        let mut begun = false;
        let file = SafetensorsFile::read(&input).unwrap();
        let written = file.quantize(&QuantizeOptions::new(ElementType::I8), &out, |_, _| {
            begun = names(directory.path()).len() == 2;
            remove_unfinished(&out).unwrap();
        });
        assert!(begun && written.is_err(), "{written:?}");
        assert_eq!(names(directory.path()), ["in"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_symbolic_link_is_replaced_and_permissions_follow_the_umask() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let [target, link, plain] = ["target", "link", "plain"].map(|name| directory.path().join(name));
        fs::write(&target, "target").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write(&link, b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"target");
        fs::write(&plain, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&link), mode(&plain));
    }
}
