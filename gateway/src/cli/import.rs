//! `skyway import`: what others have written down, as skyway's YAML. Changes no file.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;

use super::{ConfigArgs, INVALID};
use crate::config;
use crate::import::endpoints::{difference, endpoints};
use crate::import::squid::{Severity, squid};
use crate::relay::catalogue::Catalogue;
use crate::terminal::{complain, say};

#[derive(Debug, Subcommand)]
pub(super) enum ImportCommand {
    /// The portal's "Download endpoint details": shows what it has that the file has not, and the YAML to paste
    ///
    /// Takes JSON of any shape, CSV or plain lines. Exit code 0 if the file has it all, 1 if they differ.
    Endpoints {
        /// The file from the portal
        file: PathBuf,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// A squid.conf: prints the `relay:` section that comes nearest, and says line by line what it could not carry over
    ///
    /// Exit code 0 if everything was carried over, 1 if not.
    Squid {
        /// The squid.conf
        file: PathBuf,
    },
}

pub(super) fn run(command: &ImportCommand) -> anyhow::Result<ExitCode> {
    match command {
        ImportCommand::Endpoints { file, config } => from_portal(file, &config.config),
        ImportCommand::Squid { file } => from_squid(file),
    }
}

fn from_portal(file: &Path, config: &Path) -> anyhow::Result<ExitCode> {
    let imported = endpoints(&read(file)?).with_context(|| file.display().to_string())?;
    let configured = match config::load(config) {
        Ok(loaded) => loaded.settings.and_then(|settings| settings.relay).map(|relay| relay.catalogue),
        // Who begins has no file yet: everything is new.
        Err(_) => None,
    };
    if configured.is_none() {
        complain(&format!("{} has no catalogue that can be read: everything counts as new", config.display()));
    }
    let difference = difference(&imported, &configured.unwrap_or_else(|| Catalogue::new(Default::default(), Default::default())));
    complain(&difference.to_string());
    say(&difference.to_yaml());
    Ok(if difference.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(INVALID) })
}

fn from_squid(file: &Path) -> anyhow::Result<ExitCode> {
    let imported = squid(&read(file)?);
    for finding in &imported.findings {
        complain(&finding.to_string());
    }
    say(&imported.yaml);
    let whole = imported.findings.iter().all(|finding| matches!(finding.severity, Severity::Carried | Severity::Note));
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(INVALID) })
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))
}
