//! `skyway run`: the gateway's life from its file to its last signal.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;
use tracing::{error, info, warn};

use super::check::load;
use super::{INVALID, RunArgs};
use crate::admin::{Admin, explain};
use crate::config::Settings;
use crate::privilege;
use crate::secret::WatchedFiles;
use crate::supervisor::{Shared, Supervisor};
use crate::telemetry;
use crate::terminal::complain;
use crate::uapi::Uapi;

/// How often routes, rules and addresses are held against what they should be.
const MAINTENANCE: std::time::Duration = std::time::Duration::from_secs(2);

pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let loaded = load(&args.config.config)?;
    let file = args.config.config.display().to_string();
    let shown = loaded.diagnostics.render(&file, &loaded.source, std::io::IsTerminal::is_terminal(&std::io::stderr()));
    if !shown.is_empty() {
        complain(&shown);
    }
    let Some(settings) = loaded.settings else {
        complain("nothing was started");
        return Ok(ExitCode::from(INVALID));
    };
    telemetry::start(args.log.as_deref(), args.log_format).map_err(anyhow::Error::msg)?;
    privilege::forbid_dumps();
    privilege::raise_descriptor_limit(settings.relay.as_ref().map_or(0, |relay| relay.limits.sessions));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime cannot be started")?;
    let code = runtime.block_on(live(args, settings, loaded.source, loaded.secrets));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    code
}

async fn live(args: &RunArgs, settings: Settings, text: String, secrets: WatchedFiles) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new().context("signals cannot be caught")?;
    let admin = match Admin::bind(&settings.gateway).await {
        Ok(admin) => admin,
        Err(error) => return Ok(refuse(&error)),
    };
    let mut uapi = Vec::new();
    for tunnel in settings.tunnels.iter().filter(|tunnel| tunnel.uapi) {
        match Uapi::bind(&tunnel.name).await {
            Ok(bound) => uapi.push(bound),
            Err(error) => return Ok(refuse(&error)),
        }
    }
    let name = settings.gateway.name.clone();
    let supervisor = match Supervisor::start(args.config.config.clone(), text, secrets, settings).await {
        Ok(supervisor) => supervisor,
        Err(error) => return Ok(refuse(&error)),
    };
    let (lane_ended, asked_to_leave) = (supervisor.lane_ended(), supervisor.asked_to_leave());
    let supervisor: Shared = Arc::new(Mutex::new(supervisor));
    let socket = admin.serve(Arc::clone(&supervisor));
    let uapi: Vec<_> = uapi.into_iter().map(|uapi| uapi.serve(Arc::clone(&supervisor))).collect();
    let maintenance = tokio::spawn(maintain(Arc::clone(&supervisor)));
    info!(gateway = name, version = env!("CARGO_PKG_VERSION"), "ready");
    let file = args.config.config.display().to_string();
    let code = tokio::select! {
        () = signals.until_stopped(&supervisor, &file) => ExitCode::SUCCESS,
        () = asked_to_leave => ExitCode::SUCCESS,
        tunnel = lane_ended => {
            // Nothing can drain through a tunnel that is gone; whoever restarts us is needed now.
            error!(tunnel, "a lane has ended; the gateway stops at once");
            return Ok(ExitCode::from(INVALID));
        }
    };
    maintenance.abort();
    drop(uapi);
    info!("stopping: no new sessions; a second signal stops at once");
    tokio::select! {
        () = stop(supervisor) => info!("stopped"),
        () = signals.any_stop() => warn!("stopped at once; sessions were cut"),
    }
    // Last: as long as anything of the gateway is there, it answers, and `release` keeps its hands off.
    drop(socket);
    Ok(code)
}

/// Puts back what somebody else changed in the kernel.
async fn maintain(supervisor: Shared) {
    let mut every = tokio::time::interval(MAINTENANCE);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let filter = supervisor.lock().await.filter_to_look_at();
        let gone = match filter {
            Some(filter) => !filter.is_loaded().await,
            None => false,
        };
        supervisor.lock().await.maintain(gone).await;
    }
}

async fn stop(supervisor: Shared) {
    // The drain is long; status and health must be answered meanwhile.
    let relay = {
        let mut supervisor = supervisor.lock().await;
        supervisor.set_leaving();
        supervisor.relay().cloned()
    };
    if let Some(relay) = relay {
        let cut = relay.drain().await;
        if cut > 0 {
            warn!(sessions = cut, "sessions were cut at the end of the drain");
        }
    }
    supervisor.lock().await.stop().await;
}

fn refuse(error: &dyn std::error::Error) -> ExitCode {
    complain(&format!("error: {error}\nnothing was started"));
    ExitCode::from(INVALID)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Reloads at every SIGHUP; returns at SIGTERM or SIGINT.
    async fn until_stopped(&mut self, supervisor: &Shared, file: &str) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    if let Err(error) = supervisor.lock().await.reload().await {
                        error!("reload refused: {}", explain(&error, file));
                    }
                }
            }
        }
    }

    async fn any_stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
