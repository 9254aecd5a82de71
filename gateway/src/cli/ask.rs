//! `skyway status`, `show`, `reload` and `drain`: questions to the running gateway.

use std::path::PathBuf;
use std::process::ExitCode;

use hyper::{Method, StatusCode};

use super::{AskArgs, INVALID, StatusArgs, small_runtime};
use crate::admin::{ReloadAnswer, Status, Verdict, client};
use crate::config;
use crate::terminal::{complain, say};

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let (_, body) = ask(&args.ask, Method::GET, "/v1/status")?;
    let status: Status = serde_json::from_slice(&body)?;
    if args.json {
        say(&serde_json::to_string_pretty(&status)?);
    } else {
        say(&status.to_string());
    }
    Ok(if status.verdict == Verdict::Up { ExitCode::SUCCESS } else { ExitCode::from(INVALID) })
}

pub(super) fn show(args: &AskArgs) -> anyhow::Result<ExitCode> {
    let (_, body) = ask(args, Method::GET, "/v1/show")?;
    say(&String::from_utf8_lossy(&body));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn reload(args: &AskArgs) -> anyhow::Result<ExitCode> {
    let (code, body) = ask(args, Method::POST, "/v1/reload")?;
    let answer: ReloadAnswer = serde_json::from_slice(&body)?;
    if code != StatusCode::OK {
        complain(answer.error.as_deref().unwrap_or("the reload was refused"));
        return Ok(ExitCode::from(INVALID));
    }
    if answer.changes.is_empty() {
        say(&format!("nothing has changed in {}; generation {}", answer.file, answer.generation));
    } else {
        for change in &answer.changes {
            say(change);
        }
        say(&format!("reloaded {}; generation {}", answer.file, answer.generation));
    }
    Ok(ExitCode::SUCCESS)
}

/// How often a gateway that drains is looked at.
const LOOK: std::time::Duration = std::time::Duration::from_millis(200);

pub(super) fn drain(args: &AskArgs) -> anyhow::Result<ExitCode> {
    let (code, _) = ask(args, Method::POST, "/v1/drain")?;
    anyhow::ensure!(code == StatusCode::ACCEPTED, "the running gateway does not drain on request ({code}): it is older than this skyway");
    let (mut told, mut uptime) = (None, 0);
    // It answers until the last session is gone, or cut at the end of its limits.
    while let Ok((_, body)) = ask(args, Method::GET, "/v1/status") {
        let status: Status = serde_json::from_slice(&body)?;
        // Whoever keeps it running has started it again.
        if std::mem::replace(&mut uptime, status.uptime_seconds) > status.uptime_seconds {
            break;
        }
        let open = status.relay.map_or(0, |relay| relay.open);
        if told.replace(open) != Some(open) {
            complain(&format!("draining: {open} sessions"));
        }
        std::thread::sleep(LOOK);
    }
    say("drained; the gateway has ended");
    Ok(ExitCode::SUCCESS)
}

fn ask(args: &AskArgs, method: Method, resource: &str) -> anyhow::Result<(StatusCode, Vec<u8>)> {
    let socket: PathBuf = match &args.socket {
        Some(socket) => socket.clone(),
        None => config::admin_socket(&args.config.config)?,
    };
    Ok(small_runtime()?.block_on(client::ask(&socket, method, resource))?)
}
