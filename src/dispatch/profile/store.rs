//! Profiles on disk: private to their owner, written whole or not at all.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use etcetera::BaseStrategy as _;

use super::{Profile, file};
use crate::dispatch::machine::MachineKey;
use crate::error::{Error, Result};
use crate::files::private_dir;
use crate::files::whole_file::WholeFile;

/// The most bytes that a profile's file may have: ten times what `calibrate --full` writes.
const MAXIMUM_BYTES: u64 = 8 << 20;

/// How long [`Profile::check_update`] waits for a lock: many times what it takes to write a profile.
const PATIENCE: Duration = Duration::from_secs(2);

/// Names another file than that in the platform's data directory.
const VARIABLE: &str = "ANE_MATMUL_PROFILE";

impl Profile {
    /// Where the profile of this machine is kept: what the environment variable `ANE_MATMUL_PROFILE`
    /// names, or `ane-matmul/profile.json` in the platform's data directory (`~/Library/Application
    /// Support` on Apple systems, `$XDG_DATA_HOME` or `~/.local/share` on Linux, `%APPDATA%` on Windows).
    ///
    /// # Errors
    /// [`Error::Profile`] where there is no home directory.
    pub fn default_path() -> Result<PathBuf> {
        if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            return Ok(path.into());
        }
        let base = etcetera::base_strategy::choose_native_strategy().map_err(|error| Error::Profile {
            problem: format!("no data directory is known ({error}); name a file in {VARIABLE}"),
        })?;
        Ok(base.data_dir().join("ane-matmul").join("profile.json"))
    }

    /// Reads a profile, whatever machine it is of; [`Profile::for_this_machine`] checks that.
    ///
    /// # Errors
    /// [`Error::Io`] when there is none, or when others may write to it or to its directory;
    /// [`Error::Format`] when it is damaged, of another format or over 8 MiB.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let error = |source| Error::io(path, "read a profile from", source);
        let format = |problem: String| Error::format(path, problem);
        // Opening a pipe would wait for its writer.
        let metadata = fs::metadata(path).map_err(error)?;
        if !metadata.is_file() {
            return Err(error(io::Error::other("is not a regular file")));
        }
        private_dir::check(&metadata).map_err(error)?;
        let directory = parent(path);
        fs::metadata(directory)
            .and_then(|metadata| private_dir::check(&metadata))
            .map_err(|source| Error::io(directory, "read a profile from", source))?;
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(error)?;
        file.take(MAXIMUM_BYTES + 1).read_to_end(&mut bytes).map_err(error)?;
        if bytes.len() as u64 > MAXIMUM_BYTES {
            return Err(format(format!("not a profile: over {MAXIMUM_BYTES} bytes")));
        }
        file::from_json(&bytes).map_err(format)
    }

    /// Writes the profile: whole or not at all, for its owner alone. A missing directory is made, for its
    /// owner alone too; a symbolic link at `path` is replaced, not followed.
    ///
    /// To change a profile that others change too, use [`Profile::update`].
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let error = |source| Error::io(path, "write a profile to", source);
        let bytes = file::to_json(self).map_err(|source| error(source.into()))?;
        private_dir::create(parent(path)).map_err(error)?;
        let mut file = WholeFile::create_private(path)?;
        file.write_all(&bytes).map_err(error)?;
        file.commit()
    }

    /// Changes the profile at `path`, under a lock that keeps other processes from losing it; starts with
    /// an empty one where there is none, or where it is damaged or of another format, which is logged.
    ///
    /// ```no_run
    /// # use ane_matmul::{BackendId, MatMul, Profile, Quarantine};
    /// # let product = MatMul::new(1, 1, 1)?;
    /// let entry = Quarantine::here(BackendId::MPSGRAPH, Some(&product), "gave a wrong result");
    /// Profile::update(Profile::default_path()?, |profile| profile.add_quarantine(entry))?;
    /// # Ok::<(), ane_matmul::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be locked or written; [`Error::Format`] when something else than a profile is at
    /// `path`.
    pub fn update(path: impl AsRef<Path>, change: impl FnOnce(&mut Self)) -> Result<Self> {
        let path = path.as_ref();
        let _lock = lock(path)?;
        check_replaced(path)?;
        let mut profile = match Self::load(path) {
            Ok(profile) => profile,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Self::new(MachineKey::here())
            }
            Err(error) => {
                log::warn!("{error}; the profile is made anew");
                Self::new(MachineKey::here())
            }
        };
        change(&mut profile);
        profile.save(path)?;
        Ok(profile)
    }

    /// Fails where [`Profile::update`] would: to be asked before what is to be kept is measured.
    ///
    /// It takes the lock and gives it back. A missing directory is made, for its owner alone; nothing else is
    /// left behind.
    ///
    /// # Errors
    /// [`Error::Io`], also when another process holds the lock for two seconds; [`Error::Format`].
    pub fn check_update(path: impl AsRef<Path>) -> Result<()> {
        try_lock(path.as_ref(), PATIENCE)?;
        check_replaced(path.as_ref())?;
        WholeFile::create_private(path.as_ref()).map(drop)
    }
}

/// An error where a file that is no profile would be replaced by one. A damaged one still begins as one.
fn check_replaced(path: &Path) -> Result<()> {
    let mut start = Vec::new();
    // What cannot be read here is the reader's and the writer's to name.
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
        && let Ok(file) = File::open(path)
        && file.take(64).read_to_end(&mut start).is_ok()
        && !start.is_empty()
        && !String::from_utf8_lossy(&start).contains("\"format\"")
    {
        return Err(Error::format(path, "is no profile; name another file, or remove it".into()));
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path of the lock beside a profile, which is itself replaced at every write. A missing directory is made.
fn lock_path(path: &Path) -> Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let error = |source| lock_error(&path, source);
    let directory = parent(&path);
    private_dir::create(directory).map_err(error)?;
    // Where others may write, they may put a link here after it was looked for.
    fs::metadata(directory).and_then(|metadata| private_dir::check(&metadata)).map_err(error)?;
    match fs::symlink_metadata(&path) {
        Ok(metadata) if !metadata.is_file() => {
            return Err(error(io::Error::other("is not a regular file; remove it")));
        }
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
        _ => {}
    }
    Ok(path)
}

fn lock_error(path: &Path, source: io::Error) -> Error {
    Error::io(path, "lock a profile with", source)
}

fn lock(path: &Path) -> Result<File> {
    let path = lock_path(path)?;
    let error = |source| lock_error(&path, source);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    let file = options.open(&path).map_err(error)?;
    file.lock().map_err(error)?;
    Ok(file)
}

/// Takes the lock and gives it back.
fn try_lock(path: &Path, patience: Duration) -> Result<()> {
    let path = lock_path(path)?;
    let error = |source| lock_error(&path, source);
    let file = match OpenOptions::new().write(true).open(&path) {
        // Whether this place has locks at all: a lock that is made here could not be removed, since others may
        // have it by then.
        Err(source) if source.kind() == io::ErrorKind::NotFound => tempfile::tempfile_in(parent(&path)),
        opened => opened,
    };
    let file = file.map_err(error)?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(source)) => return Err(error(source)),
            Err(TryLockError::WouldBlock) if start.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                let problem = "another process holds it; end that process, or name another file";
                return Err(error(io::Error::new(io::ErrorKind::WouldBlock, problem)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BackendId;
    use crate::dispatch::profile::Quarantine;
    use crate::dispatch::profile::tests::series;

    fn profile() -> Profile {
        let mut profile = Profile::new(MachineKey::here());
        profile.add_series(series(1, 1.0)).unwrap();
        profile
    }

    #[test]
    fn the_default_place_is_named_or_of_the_user() {
        let path = Profile::default_path().unwrap();
        match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            Some(named) => assert_eq!(path, PathBuf::from(named)),
            None => assert!(path.is_absolute() && path.ends_with("ane-matmul/profile.json"), "{path:?}"),
        }
    }

    #[test]
    fn a_profile_is_saved_and_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/deep/profile.json");
        assert!(matches!(Profile::load(&path), Err(Error::Io { .. })));
        profile().save(&path).unwrap();
        assert_eq!(Profile::load(&path).unwrap(), profile());
    }

    #[test]
    fn what_is_no_profile_is_not_replaced_by_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.npy");
        fs::write(&path, b"\x93NUMPY\x01\x00precious").unwrap();
        for refused in [Profile::check_update(&path), Profile::update(&path, |_| ()).map(drop)] {
            let text = refused.unwrap_err().to_string();
            assert!(text.contains("a.npy") && text.contains("is no profile"), "{text}");
        }
        assert_eq!(fs::read(&path).unwrap(), b"\x93NUMPY\x01\x00precious");
        // An empty file is nobody's.
        fs::write(&path, "").unwrap();
        Profile::update(&path, |_| ()).unwrap();
    }

    #[test]
    fn a_damaged_profile_is_an_error_and_replaced_by_an_update() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.json");
        fs::write(&path, "{\"format\":2,").unwrap();
        assert!(matches!(Profile::load(&path), Err(Error::Format { .. })));
        Profile::update(&path, |profile| profile.add_series(series(1, 1.0)).unwrap()).unwrap();
        assert_eq!(Profile::load(&path).unwrap(), profile());
        let file = File::create(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        let text = Profile::load(&path).unwrap_err().to_string();
        assert!(text.contains("over 8388608 bytes"), "{text}");
    }

    #[test]
    fn updates_at_the_same_time_are_all_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.json");
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    let entry = Quarantine::here(BackendId::new(thread.to_string()), None, "hung");
                    Profile::update(path, |profile| profile.add_quarantine(entry)).unwrap();
                });
            }
        });
        assert_eq!(Profile::load(&path).unwrap().quarantine().len(), 8);
    }

    #[test]
    fn what_cannot_be_locked_or_written_is_known_before_there_is_anything_to_keep() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        let entries = |path: &Path| fs::read_dir(path).unwrap().count();
        Profile::check_update(place("new/deep/profile.json")).unwrap();
        assert_eq!(entries(&place("new/deep")), 0);
        Profile::update(place("new/profile.json"), |_| ()).unwrap();
        Profile::check_update(place("new/profile.json")).unwrap();
        assert_eq!(entries(&place("new")), 3);

        fs::write(place("file"), "").unwrap();
        fs::create_dir(place("a.json.lock")).unwrap();
        fs::create_dir(place("b.json")).unwrap();
        for (name, part) in
            [("file/profile.json", "lock"), ("a.json", "not a regular file"), ("b.json", "is a directory")]
        {
            let text = Profile::check_update(place(name)).unwrap_err().to_string();
            assert!(text.contains(part), "{name}: {text}");
            assert!(Profile::update(place(name), |_| ()).is_err(), "{name}");
        }

        let path = place("new/profile.json");
        let held = lock(&path).unwrap();
        let text = try_lock(&path, Duration::ZERO).unwrap_err().to_string();
        assert!(text.contains("profile.json.lock") && text.contains("another process holds it"), "{text}");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| try_lock(&path, Duration::from_secs(600)));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
        // It was given back.
        drop(lock(&path).unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn files_are_the_owners_alone_and_links_are_not_followed() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/profile.json");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        Profile::update(&path, |_| ()).unwrap();
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&directory.path().join("new/profile.json.lock")), 0o600);

        let target = directory.path().join("target");
        fs::write(&target, "target").unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&target, &path).unwrap();
        profile().save(&path).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"target");
        assert_eq!(Profile::load(&path).unwrap(), profile());

        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
        let text = Profile::load(&path).unwrap_err().to_string();
        assert!(text.contains("chmod go-w"), "{text}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o702)).unwrap();
        assert!(Profile::load(&path).is_err());

        let lock = directory.path().join("other.json.lock");
        symlink(&target, &lock).unwrap();
        assert!(Profile::update(directory.path().join("other.json"), |_| ()).is_err());
        assert!(Profile::load("/dev/zero").is_err());
    }
}
