//! From the YAML file to settings that cannot be wrong.
//!
//! ```text
//!  text ─► yaml (tree with places) ─► de + raw (serde, unknown keys) ─► resolve (meaning, cross-checks) ─► Settings
//!                  └──────────────────────────┴─────────────────────────────┴──────► diagnostics, all at once
//! ```
//! `raw` mirrors the file and has no logic; `resolve` gives it meaning and reads the secrets that it refers to. Every
//! mistake is put down with its place, and the file is good only if there is none.

mod de;
pub mod diagnostic;
mod field;
mod raw;
mod resolve;
mod settings;
mod yaml;

use std::io;
use std::path::{Path, PathBuf};

use crate::secret::WatchedFiles;

pub use diagnostic::{Diagnostic, Diagnostics};
pub use settings::{
    GatewaySettings, Listen, ListenerAt, ListenerKind, PathSettings, RelaySettings, RouteSettings, Settings, StaticRoute, UnderlaySettings,
    Via,
};

/// What reading a file gave: settings if there was no error, and everything that was noticed.
#[derive(Debug)]
pub struct Loaded {
    pub settings: Option<Settings>,
    pub diagnostics: Diagnostics,
    pub source: String,
    /// The files that it names: of secrets, certificates and service tags.
    pub secrets: WatchedFiles,
}

#[derive(Debug, thiserror::Error)]
#[error("{} cannot be read: {source}", path.display())]
pub struct ReadError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// Reads and validates the file at `path`.
pub fn load(path: &Path) -> Result<Loaded, ReadError> {
    let source = std::fs::read_to_string(path).map_err(|source| ReadError { path: path.to_owned(), source })?;
    Ok(parse(source, folder_of(path)))
}

/// Where relative paths of the file at `path` start.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Validates `source`; files that it names are relative to `folder`.
pub fn parse(source: String, folder: &Path) -> Loaded {
    let mut diagnostics = Diagnostics::default();
    let mut secrets = WatchedFiles::default();
    let settings = match yaml::parse(&source) {
        Ok(root) => {
            let raw = de::read::<raw::RawConfig>(&root, &mut diagnostics);
            raw.and_then(|raw| resolve::resolve(&raw, folder, &mut diagnostics, &mut secrets))
        }
        Err(diagnostic) => {
            diagnostics.push(diagnostic);
            None
        }
    };
    diagnostics.sort();
    let settings = settings.filter(|_| !diagnostics.has_errors());
    Loaded { settings, diagnostics, source, secrets }
}

/// What tells one gateway from another on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    /// Path of the admin socket.
    pub socket: PathBuf,
}

/// Reads it even from a file that has mistakes elsewhere.
pub fn identity(path: &Path) -> Result<Identity, IdentityError> {
    let source = std::fs::read_to_string(path).map_err(|source| ReadError { path: path.to_owned(), source })?;
    let unknown = || IdentityError::Unknown { path: path.to_owned() };
    let root = yaml::parse(&source).map_err(|_| unknown())?;
    let raw = de::read::<raw::RawConfig>(&root, &mut Diagnostics::default()).ok_or_else(unknown)?;
    resolve::identity(&raw, folder_of(path)).ok_or_else(unknown)
}

pub fn admin_socket(path: &Path) -> Result<PathBuf, IdentityError> {
    identity(path).map(|identity| identity.socket)
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(
        "{} does not tell which gateway it is for: skyway check -c {} says what is wrong with it; status, show and reload also take --socket PATH",
        path.display(), path.display()
    )]
    Unknown { path: PathBuf },
}

#[cfg(test)]
mod tests;
