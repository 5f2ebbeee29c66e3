//! Directories and files that nobody but their owner and the administrator may write to.

use std::fs::{self, Metadata};
use std::io;
use std::path::Path;

/// Makes a directory where there is none, with its parents: for its owner alone.
pub(crate) fn create(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt as _;
        builder.mode(0o700);
    }
    builder.create(directory)
}

/// An error where others may write, or where it is another user's.
#[cfg(unix)]
pub(crate) fn check(metadata: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let problem = if metadata.mode() & 0o022 != 0 {
        "others may write to it, and what is kept there is trusted: chmod go-w it, or name another place"
    } else if !is_trusted(metadata.uid()) {
        "it belongs to another user, and what is kept there is trusted: name a place of your own"
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
}

/// Elsewhere it is not known.
#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps, reason = "as on Unix")]
pub(crate) fn check(_: &Metadata) -> io::Result<()> {
    Ok(())
}

/// Who, beside this user and the administrator, may change what is at `path`, in words: who
/// owns it or a directory on the way to it, or everybody, who may write to one of them.
pub(crate) fn writable_by_others(path: &Path) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        /// In such a directory only an entry's owner may replace it.
        const STICKY: u32 = 0o1000;
        let path = fs::canonicalize(path).ok()?;
        for part in path.ancestors() {
            let metadata = fs::metadata(part).ok()?;
            if !is_trusted(metadata.uid()) {
                return Some(format!("{} belongs to user {}", part.display(), metadata.uid()));
            }
            // Not the group: on many systems every user has one of their own.
            let everybody = metadata.mode() & 0o002 != 0;
            if everybody && !(metadata.is_dir() && metadata.mode() & STICKY != 0) {
                return Some(format!("everybody may write to {}", part.display()));
            }
        }
    }
    let _ = path;
    None
}

/// Whether a user is this process's, or the administrator.
#[cfg(unix)]
#[allow(unsafe_code, reason = "the standard library does not say who runs the process")]
fn is_trusted(user: u32) -> bool {
    unsafe extern "C" {
        // POSIX: always successful. uid_t is u32 on every Unix that Rust's standard library knows, and
        // the standard library links libc.
        safe fn geteuid() -> u32;
    }
    user == 0 || user == geteuid()
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn who_may_write_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("inner");
        let file = inner.join("file");
        create(&inner).unwrap();
        fs::write(&file, "").unwrap();
        set_mode(&file, 0o755);
        // The temporary directory itself is everybody's, and sticky.
        assert_eq!(writable_by_others(&file), None);
        for (path, mode) in [(&file, 0o757), (&inner, 0o777)] {
            set_mode(path, mode);
            let text = writable_by_others(&file).unwrap();
            assert!(text.contains("everybody") && text.ends_with(path.to_str().unwrap()), "{text}");
            assert!(check(&fs::metadata(path).unwrap()).is_err());
            set_mode(path, 0o755);
        }
        set_mode(&inner, 0o1777);
        assert_eq!(writable_by_others(&file), None);
        assert_eq!(writable_by_others(&inner.join("absent")), None);
    }

    #[test]
    #[cfg_attr(miri, ignore = "it calls chown")]
    fn what_is_another_users_is_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        if chown(directory.path(), Some(65_534), None).is_err() {
            println!("not run: only an administrator may give files away");
            return;
        }
        let text = check(&fs::metadata(directory.path()).unwrap()).unwrap_err().to_string();
        assert!(text.contains("another user"), "{text}");
        assert!(writable_by_others(directory.path()).unwrap().contains("belongs to user 65534"));
    }
}
