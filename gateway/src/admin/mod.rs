//! What others may ask the running gateway: HTTP/JSON on a unix socket for its operator, metrics and health on
//! listeners of their own.
//!
//! The socket's mode (0600) is its access control. Nothing here returns a key or a password.

pub mod client;
mod health;
mod metrics;
mod show;
mod status;
mod trace;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use axum::Json;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};

use crate::config::GatewaySettings;
use crate::relay::HostName;
use crate::socket::{SocketError, SocketFile, bind_private};
use crate::supervisor::{ReloadError, Reloaded, Shared};

pub use status::{LaneStatus, PathStatus, PeerStatus, Status, TunnelStatus, UnknownKeyStatus, Verdict};

/// The sockets of the admin interface, bound and not yet served.
pub struct Admin {
    socket: UnixListener,
    file: SocketFile,
    metrics: Option<TcpListener>,
    health: Option<TcpListener>,
}

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("another skyway runs already: it answers at {}", path.display())]
    Running { path: PathBuf },
    #[error("the admin socket {} cannot be made: {source}; `gateway.admin` names another place", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("{what}: {address} is taken by another program: `gateway.{what}` names another address, or off")]
    Taken { what: &'static str, address: SocketAddr },
    #[error("{what}: {address} cannot be bound: {source}")]
    Bind { what: &'static str, address: SocketAddr, source: io::Error },
}

/// What a reload answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReloadAnswer {
    pub ok: bool,
    /// The file that the gateway reads, which it was started with.
    pub file: String,
    pub generation: u64,
    pub changes: Vec<String>,
    /// Why not, if not; with every diagnostic, where the file is at fault.
    pub error: Option<String>,
}

impl Admin {
    /// Binds everything. A socket that nobody answers at is left over from a crash and taken over.
    pub async fn bind(settings: &GatewaySettings) -> Result<Self, AdminError> {
        let path = settings.admin.clone();
        // Only under /run, which is root's, may others look in.
        let folder_mode = if path.starts_with("/run") { 0o755 } else { 0o700 };
        // From here on the socket file is ours and goes with us.
        let (socket, file) = bind_private(&path, folder_mode).await.map_err(|error| match error {
            SocketError::Answered => AdminError::Running { path },
            SocketError::Io(source) => AdminError::Socket { path, source },
        })?;
        let metrics = bind_tcp("metrics", settings.metrics).await?;
        let health = bind_tcp("health", settings.health).await?;
        Ok(Self { socket, file, metrics, health })
    }

    /// Serves until the process ends; the guard removes the socket file.
    pub fn serve(mut self, supervisor: Shared) -> SocketFile {
        let api = Router::new()
            .route("/v1/status", get(answer_status))
            .route("/v1/show", get(answer_show))
            .route("/v1/reload", post(answer_reload))
            .route("/v1/drain", post(answer_drain))
            .route("/v1/trace", get(answer_trace))
            .route("/metrics", get(answer_metrics))
            .with_state(supervisor.clone());
        tokio::spawn(async move {
            if let Err(error) = axum::serve(self.socket, api).await {
                tracing::error!(%error, "admin socket stopped");
            }
        });
        if let Some(listener) = self.metrics.take() {
            let router = Router::new().route("/metrics", get(answer_metrics)).with_state(supervisor.clone());
            tokio::spawn(async move { axum::serve(listener, router).await });
        }
        if let Some(listener) = self.health.take() {
            tokio::spawn(async move { axum::serve(listener, health::router(supervisor)).await });
        }
        self.file
    }
}

async fn bind_tcp(what: &'static str, address: Option<SocketAddr>) -> Result<Option<TcpListener>, AdminError> {
    let Some(address) = address else { return Ok(None) };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(source) if source.kind() == io::ErrorKind::AddrInUse => Err(AdminError::Taken { what, address }),
        Err(source) => Err(AdminError::Bind { what, address, source }),
    }
}

async fn answer_status(State(supervisor): State<Shared>) -> Json<Status> {
    Json(status::of(&*supervisor.lock().await))
}

async fn answer_show(State(supervisor): State<Shared>) -> String {
    show::text(supervisor.lock().await.tunnels())
}

async fn answer_metrics(State(supervisor): State<Shared>) -> Response {
    let text = metrics::text(&*supervisor.lock().await);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn answer_reload(State(supervisor): State<Shared>) -> (StatusCode, Json<ReloadAnswer>) {
    // In a task of its own: whoever asked may hang up, and a reload is carried out whole or not at all.
    let task = tokio::spawn(async move { reload(&supervisor).await });
    task.await.unwrap_or_else(|_| {
        let error = Some("the reload broke off; the log says why".to_owned());
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            Json(ReloadAnswer { ok: false, file: String::new(), generation: 0, changes: Vec::new(), error }),
        )
    })
}

/// The gateway drains and ends, as by SIGTERM.
async fn answer_drain(State(supervisor): State<Shared>) -> StatusCode {
    supervisor.lock().await.leave();
    StatusCode::ACCEPTED
}

#[derive(Debug, Deserialize)]
struct TraceQuery {
    sensor: String,
    host: String,
    port: u16,
}

async fn answer_trace(State(supervisor): State<Shared>, Query(query): Query<TraceQuery>) -> Response {
    let refused = |why: String| (StatusCode::BAD_REQUEST, why).into_response();
    // A trace takes seconds; nobody should wait for it.
    let policy = supervisor.lock().await.relay().map(crate::relay::Relay::policy);
    let Some(policy) = policy else { return refused("this gateway has no relay".into()) };
    match HostName::parse(&query.host) {
        Ok(host) => Json(trace::trace(&policy, &query.sensor, &host, query.port).await).into_response(),
        Err(error) => refused(error.to_string()),
    }
}

async fn reload(supervisor: &Shared) -> (StatusCode, Json<ReloadAnswer>) {
    let mut supervisor = supervisor.lock().await;
    let file = supervisor.file().display().to_string();
    match supervisor.reload().await {
        Ok(Reloaded { changes, generation }) => (StatusCode::OK, Json(ReloadAnswer { ok: true, file, generation, changes, error: None })),
        Err(error) => {
            let text = explain(&error, &file);
            tracing::error!("reload refused: {text}");
            let generation = supervisor.generation;
            (StatusCode::CONFLICT, Json(ReloadAnswer { ok: false, file, generation, changes: Vec::new(), error: Some(text) }))
        }
    }
}

/// The error with everything that helps to mend it.
pub fn explain(error: &ReloadError, file: &str) -> String {
    match error {
        ReloadError::Invalid { diagnostics, text } => format!("{}\nnothing was changed", diagnostics.render(file, text, false).trim_end()),
        ReloadError::Read(_) | ReloadError::NeedsRestart(_) | ReloadError::Prepare(_) => error.to_string(),
    }
}
