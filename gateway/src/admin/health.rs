//! `/livez`: the process serves. `/readyz`: it is of use, to load balancers and whoever replaces instances.
//!
//! Ready is a relay of which some path was seen to reach Defender within the last half minute, or, where there is no relay,
//! a tunnel with a session that is younger than its three minutes. A gateway that drains is not ready.

use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use crate::relay::Relay;
use crate::supervisor::{Shared, Supervisor};

/// A path's last success counts for so long.
const FRESH: Duration = Duration::from_secs(30);
/// A session carries no data after that (whitepaper §6.1, Reject-After-Time).
const SESSION: Duration = Duration::from_secs(180);

pub(super) fn router(supervisor: Shared) -> Router {
    Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).with_state(supervisor)
}

/// 200 as long as the supervisor can be asked: a reload that hangs would show here.
async fn livez(State(supervisor): State<Shared>) -> String {
    let supervisor = supervisor.lock().await;
    format!("alive, generation {}\n", supervisor.generation)
}

/// 200 or 503, and why in words.
async fn readyz(State(supervisor): State<Shared>) -> (StatusCode, String) {
    match ready(&*supervisor.lock().await) {
        Ok(why) => (StatusCode::OK, format!("ready: {why}\n")),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

fn ready(supervisor: &Supervisor) -> Result<String, String> {
    let relay = supervisor.relay();
    if relay.is_some_and(Relay::is_draining) || supervisor.is_leaving() {
        return Err("draining".into());
    }
    let Some(relay) = relay else { return tunnel_is_up(supervisor, None) };
    let paths = relay.paths();
    let fresh = |at: std::time::Instant| at.elapsed() <= FRESH;
    if let Some(path) = paths.iter().find(|path| path.health.last_success.is_some_and(fresh)) {
        return Ok(format!("the path {} reaches Defender", path.name));
    }
    // What is not probed is judged by what it stands on.
    for path in paths.iter().filter(|path| !path.is_probed) {
        match supervisor.tunnel_of(&path.name) {
            None => return Ok(format!("the path {} is not probed", path.name)),
            Some(tunnel) => {
                if let Ok(why) = tunnel_is_up(supervisor, Some(tunnel)) {
                    return Ok(why);
                }
            }
        }
    }
    let why = paths.iter().find_map(|path| Some(format!("{}: {}", path.name, path.health.last_failure.as_deref()?)));
    Err(why.unwrap_or_else(|| "no path has been seen to reach Defender yet".into()))
}

/// `only`: the one tunnel that counts.
fn tunnel_is_up(supervisor: &Supervisor, only: Option<&str>) -> Result<String, String> {
    let now = SystemTime::now();
    for tunnel in supervisor.tunnels().iter().filter(|tunnel| only.is_none_or(|only| tunnel.name == only)) {
        let snapshot = tunnel.snapshots.borrow().clone();
        let young = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age < SESSION);
        if let Some(peer) = snapshot.peers.iter().find(|peer| peer.last_handshake.is_some_and(young)) {
            return Ok(format!("the tunnel {} has a session with {}", tunnel.name, peer.name));
        }
    }
    Err(if supervisor.tunnels().is_empty() { "there is neither relay nor tunnel".into() } else { "no tunnel has a session".into() })
}
