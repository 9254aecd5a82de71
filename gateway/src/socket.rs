//! Unix sockets that only their owner may use: bound, taken over from a crash, removed in the end.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Removes the socket file when it is dropped.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Whoever made it is alive.
    #[error("somebody answers there already")]
    Answered,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Binds `path` with mode 0600; its folder is made with `folder_mode` if there is none. A socket that nobody answers at is
/// left over from a crash and replaced; anything else that lies there is left alone.
pub(crate) async fn bind_private(path: &Path, folder_mode: u32) -> Result<(UnixListener, SocketFile), SocketError> {
    if let Some(folder) = path.parent()
        && !folder.exists()
    {
        std::fs::create_dir_all(folder)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(folder_mode))?;
    }
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(io::Error::other("something that is no socket is there").into());
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(SocketError::Answered);
        }
    }
    // Bound under another name first, so that nobody can connect before the mode is right; the rename replaces the old one.
    let fresh = path.with_extension("new");
    let _stale = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok((listener, SocketFile(path.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_its_owners_alone_and_goes_with_its_guard() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("below").join("a.sock");
        let (_listener, guard) = bind_private(&path, 0o700).await.expect("bound");
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().expect("a folder"))), (0o600, 0o700));
        assert!(!path.with_extension("new").exists());
        UnixStream::connect(&path).await.expect("somebody listens there");
        drop(guard);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_is_taken_over_if_nobody_answers_and_left_alone_if_somebody_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.sock");
        let (listener, guard) = bind_private(&path, 0o700).await.expect("bound");
        drop(listener);
        // As after a crash: nobody listens, and the file is there.
        std::mem::forget(guard);
        assert!(path.exists());
        let (_listener, _guard) = bind_private(&path, 0o700).await.expect("bound again");
        assert!(matches!(bind_private(&path, 0o700).await, Err(SocketError::Answered)));
        let file = folder.path().join("file");
        std::fs::write(&file, "mine").expect("written");
        assert!(matches!(bind_private(&file, 0o700).await, Err(SocketError::Io(_))));
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "mine");
    }
}
