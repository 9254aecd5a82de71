//! Secrets: referenced in the YAML, never written there; wiped when dropped; never printed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Longer files are no keys and no passwords.
const MAX_BYTES: u64 = 64 * 1024;

/// A secret text. `Debug` shows nothing of it; comparing takes the same time wherever it differs.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    File(PathBuf),
    Env(String),
}

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} can be read by others than its owner (mode {mode:04o})", path.display())]
    Permissions { path: PathBuf, mode: u32 },
    #[error("{} is owned by user {owner}, neither by root nor by the user that skyway runs as", path.display())]
    Owner { path: PathBuf, owner: u32 },
    #[error("{} is no regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("{} is empty", path.display())]
    Empty { path: PathBuf },
    #[error("{} is longer than {MAX_BYTES} bytes", path.display())]
    TooLong { path: PathBuf },
    #[error("{} is not UTF-8 text", path.display())]
    NotText { path: PathBuf },
    #[error("the environment variable {name} is not set, empty or no text")]
    Unset { name: String },
}

impl SecretError {
    /// Nothing is there yet: what to do depends on what it is to be.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// The command that mends it, where there is one.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Permissions { path, .. } => Some(format!("chmod 600 {}", path.display())),
            Self::Owner { path, .. } => Some(format!("chown root {}", path.display())),
            Self::Unset { name } => Some(format!("export {name}, or use {{ file: … }}")),
            Self::Read { .. } | Self::NotAFile { .. } | Self::Empty { .. } | Self::TooLong { .. } | Self::NotText { .. } => None,
        }
    }
}

impl Secret {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Reads a secret; white space around it is not part of it.
    pub fn read(source: &SecretSource) -> Result<Self, SecretError> {
        match source {
            SecretSource::File(path) => read_file(path),
            SecretSource::Env(name) => match std::env::var(name) {
                Ok(text) if text.trim().is_empty() => Err(SecretError::Unset { name: name.clone() }),
                Ok(text) => Ok(Self::new(text.trim().to_owned())),
                Err(_) => Err(SecretError::Unset { name: name.clone() }),
            },
        }
    }

    /// The text, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// A file as it was seen: device, inode, size, time of the last change with nanoseconds, mode. Replaced or rewritten, one of
/// them differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(u64, u64, u64, i64, i64, u32);

impl Stamp {
    /// None: there is no such file. Symbolic links are followed.
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self(metadata.dev(), metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec(), metadata.mode()))
    }
}

/// Files of secrets, each as it was just before it was read.
#[derive(Debug, Clone, Default)]
pub struct WatchedFiles(Vec<(PathBuf, Option<Stamp>)>);

impl WatchedFiles {
    /// To be called before the file is read: a change in between is then seen as one.
    pub fn watch(&mut self, path: &Path) {
        self.0.push((path.to_owned(), Stamp::of(path)));
    }

    /// Whether one has changed since it was watched, or since this was last asked.
    pub fn changed(&mut self) -> bool {
        self.0.iter_mut().fold(false, |changed, (path, seen)| {
            let now = Stamp::of(path);
            (std::mem::replace(seen, now) != now) | changed
        })
    }
}

fn read_file(path: &Path) -> Result<Secret, SecretError> {
    let path = path.to_owned();
    let failed = |source| SecretError::Read { path: path.clone(), source };
    let file = File::options().read(true).custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK).open(&path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(SecretError::NotAFile { path });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretError::Permissions { path, mode });
    }
    let owner = metadata.uid();
    if owner != 0 && owner != effective_user() {
        return Err(SecretError::Owner { path, owner });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(SecretError::TooLong { path });
    }
    let Ok(text) = std::str::from_utf8(&bytes) else { return Err(SecretError::NotText { path }) };
    let text = text.trim();
    if text.is_empty() {
        return Err(SecretError::Empty { path });
    }
    Ok(Secret::new(text.to_owned()))
}

/// The user that the process acts as.
pub fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn file(mode: u32, text: &str) -> (tempfile::TempDir, SecretSource) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode set");
        (folder, SecretSource::File(path))
    }

    #[test]
    fn a_file_of_its_owner_alone_is_read_and_trimmed() {
        let (_folder, source) = file(0o600, "  hunter2\n");
        assert_eq!(Secret::read(&source).expect("read").expose(), "hunter2");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_to_run() {
        for mode in [0o644, 0o640, 0o604, 0o620] {
            let (folder, source) = file(mode, "hunter2");
            let error = Secret::read(&source).expect_err("refused");
            assert!(matches!(error, SecretError::Permissions { mode: found, .. } if found == mode), "{error}");
            assert_eq!(error.help(), Some(format!("chmod 600 {}/key", folder.path().display())));
        }
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        let (_folder, empty) = file(0o600, " \n");
        assert!(matches!(Secret::read(&empty), Err(SecretError::Empty { .. })));
        let missing = SecretSource::File("/nonexistent/key".into());
        assert!(Secret::read(&missing).expect_err("refused").is_missing());
        assert!(matches!(Secret::read(&SecretSource::File("/dev".into())), Err(SecretError::NotAFile { .. })));
        assert!(matches!(Secret::read(&SecretSource::Env("SKYWAY_NOT_SET".into())), Err(SecretError::Unset { .. })));
    }

    #[test]
    fn a_file_that_is_rewritten_or_replaced_has_changed_once() {
        let (folder, _) = file(0o600, "one");
        let path = folder.path().join("key");
        let mut watched = WatchedFiles::default();
        watched.watch(&path);
        assert!(!watched.changed());
        fs::write(&path, "other").expect("written");
        assert!(watched.changed() && !watched.changed());
        let beside = folder.path().join("beside");
        fs::write(&beside, "third").expect("written");
        fs::rename(&beside, &path).expect("replaced");
        assert!(watched.changed() && !watched.changed());
        fs::remove_file(&path).expect("removed");
        assert!(watched.changed() && !watched.changed());
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "Secret(hidden)");
    }
}
