//! `skyway check`: the file and everything that it refers to.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use super::{CheckArgs, INVALID};
use crate::config::{self, Loaded};
use crate::terminal::{complain, say};

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let loaded = load(&args.config.config)?;
    let file = args.config.config.display().to_string();
    if args.json {
        say(&serde_json::to_string_pretty(&loaded.diagnostics.to_json())?);
    } else {
        complain(&loaded.diagnostics.render(&file, &loaded.source, std::io::stderr().is_terminal()));
    }
    match loaded.settings {
        Some(settings) if !args.json => {
            let peers: usize = settings.tunnels.iter().map(|tunnel| tunnel.peers.len()).sum();
            let relay = settings
                .relay
                .as_ref()
                .map_or_else(String::new, |relay| format!(", hosts: {}, listeners: {}", relay.catalogue.len(), relay.listeners.len()));
            say(&format!("{file} is good: gateway {}, tunnels: {}, peers: {peers}{relay}", settings.gateway.name, settings.tunnels.len()));
            Ok(ExitCode::SUCCESS)
        }
        Some(_) => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::from(INVALID)),
    }
}

/// Reads the file; one that is not there is the most common mistake of all.
pub(super) fn load(path: &Path) -> anyhow::Result<Loaded> {
    config::load(path).map_err(|error| {
        let hint = if error.source.kind() == std::io::ErrorKind::NotFound { "; name it with -c FILE" } else { "" };
        anyhow::anyhow!("{error}{hint}")
    })
}
