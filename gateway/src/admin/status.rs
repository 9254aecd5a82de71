//! How the gateway is, the verdict first. The JSON form is what `skyway status --json` prints.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tunnel::{LaneSnapshot, Mode, PeerSnapshot, PeerState};

use crate::relay::{PathSnapshot, Relay};
use crate::supervisor::{RunningTunnel, Supervisor};

/// The whole answer. Fields are added, never renamed, within `version` 1 of the API.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    pub gateway: String,
    pub site: Option<String>,
    pub version: String,
    pub verdict: Verdict,
    /// In words, the worst first.
    pub problems: Vec<String>,
    pub uptime_seconds: u64,
    pub generation: u64,
    pub tunnels: Vec<TunnelStatus>,
    pub routes: Vec<RouteStatus>,
    pub relay: Option<RelayStatus>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Up,
    Degraded,
    Down,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TunnelStatus {
    pub name: String,
    pub mode: String,
    pub public_key: String,
    pub listen_port: u16,
    pub mtu: u32,
    pub lanes: Vec<LaneStatus>,
    pub peers: Vec<PeerStatus>,
    /// Dropped packets and datagrams by reason; those at zero are left out.
    pub drops: BTreeMap<String, u64>,
    pub streams: Option<usize>,
    /// Handshakes from keys that are not configured: how many, and the last.
    #[serde(default)]
    pub unknown_key: Option<UnknownKeyStatus>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UnknownKeyStatus {
    pub count: u64,
    pub key: String,
    pub from: String,
}

/// One of the WireGuard sessions side by side that a tunnel is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaneStatus {
    pub number: u16,
    pub port: u16,
    /// Whether it carries packets; false: no session with a peer that the first lane has one with.
    pub attached: bool,
    pub segmentation: bool,
    pub coalescing: bool,
    pub refused_super_packets: u64,
    pub sent_packets: u64,
    pub received_packets: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerStatus {
    pub name: String,
    pub public_key: String,
    pub state: String,
    pub endpoint: Option<String>,
    pub roamed: bool,
    pub last_handshake_unix: Option<u64>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub received_packets: u64,
    pub sent_packets: u64,
    pub queued_packets: usize,
    /// Which of the configured endpoints is in use, from 0; none if it was roamed to another address.
    pub active_endpoint: Option<usize>,
    /// Endpoints left by our own verdict, back and forth.
    pub endpoint_switches: u64,
    /// The better endpoint that is being tried, from 0.
    pub endpoint_on_trial: Option<usize>,
    /// The announced next key is in use.
    pub uses_next_key: bool,
    /// The largest inner packet seen to get through both ways, in bytes.
    pub path_mtu: Option<u32>,
    pub probe_rtt_ms: Option<f64>,
    pub probes_sent: u64,
    pub probes_answered: u64,
    pub trouble: Option<String>,
    pub trouble_text: Option<String>,
    /// Probes, and handshakes if there were any, have met with silence.
    #[serde(default)]
    pub silent: bool,
    /// The path takes less than the tunnel's MTU.
    #[serde(default)]
    pub path_limited: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RouteStatus {
    pub prefix: String,
    pub next_hop: String,
    pub metric: u32,
    /// `live`, or `waiting` for its interface.
    pub state: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RelayStatus {
    pub open: u64,
    pub relayed: u64,
    pub refused: u64,
    pub ended: BTreeMap<String, u64>,
    pub sensors: BTreeMap<String, SensorStatus>,
    #[serde(default)]
    pub paths: Vec<PathStatus>,
    /// Which sensors still use which of the customer's own hubs.
    #[serde(default)]
    pub legacy: Vec<LegacyStatus>,
    /// The customer's own hubs that nobody has used since the start.
    #[serde(default)]
    pub unused_legacy_hubs: Vec<String>,
    pub draining: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PathStatus {
    pub name: String,
    /// `unknown` (not probed yet, or never), `up`, `down`, `returning`.
    pub state: String,
    pub state_seconds: u64,
    pub is_probed: bool,
    pub last_success_seconds_ago: Option<u64>,
    /// How long the last probe that succeeded took.
    pub probe_ms: Option<f64>,
    pub last_failure: Option<String>,
    pub flaps: u64,
    /// Whose certificates are shown instead of Defender's.
    pub intercepted_by: Option<String>,
    /// Chains of proxies, the nearest first.
    pub parents: Vec<Vec<String>>,
    /// The gateways that carried the last session, the nearest first.
    pub via: Vec<String>,
    /// Sessions that took it since the start.
    pub sessions: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LegacyStatus {
    pub hub: String,
    pub sensor: String,
    pub sessions: u64,
    pub last_unix: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SensorStatus {
    pub open: u64,
    pub relayed: u64,
    pub refused: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub last_failure: Option<String>,
}

pub(super) fn of(supervisor: &Supervisor) -> Status {
    let settings = supervisor.settings();
    let tunnels: Vec<TunnelStatus> = supervisor.tunnels().iter().map(tunnel).collect();
    let relay = supervisor.relay().map(relay);
    let (verdict, problems) = judge(supervisor, relay.as_ref());
    let routes = settings.routes.fixed.iter().map(|route| {
        let waits = supervisor.waiting().iter().any(|waiting| waiting.prefix() == route.prefix && waiting.metric() == route.metric);
        RouteStatus {
            prefix: route.prefix.to_string(),
            next_hop: format!("tunnel {}", route.tunnel),
            metric: route.metric,
            state: if waits { "waiting" } else { "live" }.into(),
        }
    });
    Status {
        gateway: settings.gateway.name.clone(),
        site: settings.gateway.site.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        verdict,
        problems,
        uptime_seconds: supervisor.started.elapsed().as_secs(),
        generation: supervisor.generation,
        tunnels,
        routes: routes.collect(),
        relay,
    }
}

/// Up if every peer is; down if there are peers and none is.
fn judge(supervisor: &Supervisor, relay: Option<&RelayStatus>) -> (Verdict, Vec<String>) {
    let (mut peers, mut up, mut problems) = (0, 0, Vec::new());
    for tunnel in supervisor.tunnels() {
        let snapshot = tunnel.snapshots.borrow().clone();
        for peer in &snapshot.peers {
            peers += 1;
            if peer.state == PeerState::Up {
                up += 1;
            }
            if peer.state != PeerState::Up || peer.trouble.is_some() {
                problems.push(format!("tunnel {}, peer {}: {}", tunnel.name, peer.name, why(peer)));
            } else if peer.is_silent() {
                problems.push(format!("tunnel {}, peer {}: probes are not answered", tunnel.name, peer.name));
            }
            if peer.active_endpoint.is_some_and(|active| active > 0) {
                let endpoint = peer.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
                problems.push(format!("tunnel {}, peer {}: reached by a standby endpoint, {endpoint}", tunnel.name, peer.name));
            }
            if let (true, Some(size)) = (peer.path_limited, peer.path_mtu) {
                problems.push(format!(
                    "tunnel {}, peer {}: the path swallows packets over {size} bytes, though the tunnel's MTU is {}; smaller ones are sent",
                    tunnel.name, peer.name, snapshot.mtu
                ));
            }
        }
        problems.extend(tunnel.endpoint_problems.borrow().iter().map(|problem| format!("tunnel {}, {problem}", tunnel.name)));
        let by_first = snapshot.peers.iter().all(|peer| peer.active_endpoint.is_none_or(|active| active == 0));
        for lane in snapshot.lanes.iter().skip(1).filter(|lane| by_first && lane.attached && lane.standby_peers > 0) {
            problems.push(format!("tunnel {}: lane {} (UDP {}) reaches a peer by a standby endpoint", tunnel.name, lane.number, lane.port));
        }
        if snapshot.peers.iter().any(|peer| peer.state == PeerState::Up) {
            for lane in snapshot.lanes.iter().filter(|lane| !lane.attached) {
                problems.push(format!(
                    "tunnel {}: lane {} (UDP {}) has no session and carries nothing: its port is filtered on the way, or the peer has fewer lanes",
                    tunnel.name, lane.number, lane.port
                ));
            }
        }
        let waits = snapshot.peers.iter().any(|peer| peer.state != PeerState::Up);
        if let Some(from) = snapshot.last_misaddressed.filter(|_| waits) {
            problems.push(format!(
                "tunnel {}: handshakes came that were made for another public key than ours, the last from {from}: whoever sends them has a wrong key \
                 for this gateway",
                tunnel.name
            ));
        }
        // From where a peer is, it is likely the peer itself, with another key than before.
        let is_peers = |from: SocketAddr| snapshot.peers.iter().filter_map(|peer| peer.endpoint).any(|endpoint| endpoint.ip() == from.ip());
        if let Some((key, from)) = snapshot.last_unknown
            && (waits || snapshot.unknown_recently && is_peers(from))
        {
            let count = snapshot.unknown_initiations;
            problems.push(format!(
                "tunnel {}: {count} handshakes came from keys that are not configured, the last {key} from {from}",
                tunnel.name
            ));
        }
    }
    problems.extend(supervisor.on_disk().map(str::to_owned));
    if supervisor.is_edited() {
        problems.push("a tunnel was changed by wg: the next reload undoes it".into());
    }
    if relay.is_some_and(|relay| relay.draining) {
        problems.push("the relay drains: no new sessions are taken".into());
    }
    for path in relay.iter().flat_map(|relay| &relay.paths).filter(|path| path.is_probed) {
        if let Some(issuer) = &path.intercepted_by {
            problems.push(format!("path {}: TLS is intercepted: the certificates come from {issuer}", path.name));
        } else if path.state == "down" || path.state == "returning" {
            problems.push(format!("path {}: {}: {}", path.name, path.state, path.last_failure.as_deref().unwrap_or("-")));
        }
    }
    // A sensor that a reload took away is nobody's problem any more.
    let known = |name: &str| supervisor.settings().relay.iter().flat_map(|relay| relay.sensors.iter()).any(|sensor| *sensor.name == *name);
    let failing = relay
        .iter()
        .flat_map(|relay| &relay.sensors)
        .filter(|(name, _)| known(name))
        .filter_map(|(name, sensor)| Some((name, sensor.last_failure.as_ref()?)));
    problems.extend(failing.map(|(name, failure)| format!("sensor {name}: the last session failed: {failure}")));
    problems.extend(supervisor.waiting().iter().map(|route| format!("route {}: waits for {}", route.prefix(), route.next_hop())));
    let verdict = if peers > 0 && up == 0 {
        Verdict::Down
    } else if problems.is_empty() {
        Verdict::Up
    } else {
        Verdict::Degraded
    };
    (verdict, problems)
}

fn why(peer: &PeerSnapshot) -> String {
    match (peer.trouble, peer.state, peer.endpoint) {
        (Some(trouble), _, Some(endpoint)) => format!("{trouble} (endpoint {endpoint})"),
        (Some(trouble), _, None) => trouble.to_string(),
        (None, PeerState::Connecting, _) => "handshake under way".into(),
        (None, PeerState::Idle, None) => "has not come yet, and no endpoint of it is known or resolved".into(),
        (None, _, _) => "no session, and nothing asks for one".into(),
    }
}

fn tunnel(running: &RunningTunnel) -> TunnelStatus {
    let snapshot = running.snapshots.borrow().clone();
    TunnelStatus {
        name: running.name.clone(),
        mode: if running.mode == Mode::Tun { "tun" } else { "userspace" }.into(),
        public_key: snapshot.public_key.to_string(),
        listen_port: snapshot.listen_port,
        mtu: snapshot.mtu,
        lanes: snapshot.lanes.iter().map(lane).collect(),
        peers: snapshot.peers.iter().map(peer).collect(),
        drops: snapshot.drops.iter().filter(|(_, count)| *count > 0).map(|(reason, count)| (reason.label().to_owned(), count)).collect(),
        streams: snapshot.streams,
        unknown_key: snapshot.last_unknown.map(|(key, from)| UnknownKeyStatus {
            count: snapshot.unknown_initiations,
            key: key.to_string(),
            from: from.to_string(),
        }),
    }
}

const fn lane(lane: &LaneSnapshot) -> LaneStatus {
    LaneStatus {
        number: lane.number,
        port: lane.port,
        attached: lane.attached,
        segmentation: lane.segmentation,
        coalescing: lane.coalescing,
        refused_super_packets: lane.refused_super_packets,
        sent_packets: lane.sent_packets,
        received_packets: lane.received_packets,
    }
}

fn peer(peer: &PeerSnapshot) -> PeerStatus {
    PeerStatus {
        name: peer.name.clone(),
        public_key: peer.public_key.to_string(),
        state: peer.state.label().into(),
        endpoint: peer.endpoint.map(|endpoint| endpoint.to_string()),
        roamed: peer.roamed,
        last_handshake_unix: peer.last_handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs()),
        received_bytes: peer.received_bytes,
        sent_bytes: peer.sent_bytes,
        received_packets: peer.received_packets,
        sent_packets: peer.sent_packets,
        queued_packets: peer.queued_packets,
        active_endpoint: peer.active_endpoint,
        endpoint_switches: peer.probe.map_or(0, |probe| probe.switches),
        endpoint_on_trial: peer.probe.and_then(|probe| probe.on_trial),
        uses_next_key: peer.uses_next_key,
        path_mtu: peer.path_mtu,
        probe_rtt_ms: peer.probe.and_then(|probe| probe.rtt).map(|rtt| rtt.as_secs_f64() * 1000.0),
        probes_sent: peer.probe.map_or(0, |probe| probe.sent),
        probes_answered: peer.probe.map_or(0, |probe| probe.answered),
        trouble: peer.trouble.map(|trouble| trouble.label().into()),
        trouble_text: peer.trouble.map(|trouble| trouble.to_string()),
        silent: peer.is_silent(),
        path_limited: peer.path_limited,
    }
}

fn relay(relay: &Relay) -> RelayStatus {
    let snapshot = relay.snapshot();
    let unix = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let policy = relay.policy();
    let is_unused = |host: &crate::relay::HostName| !snapshot.legacy.keys().any(|(used, _)| used == host);
    RelayStatus {
        open: snapshot.open,
        relayed: snapshot.relayed,
        refused: snapshot.refused,
        ended: snapshot.ended.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
        sensors: snapshot
            .sensors
            .iter()
            .map(|(name, sensor)| {
                let sensor = SensorStatus {
                    open: sensor.open,
                    relayed: sensor.relayed,
                    refused: sensor.refused,
                    bytes_up: sensor.bytes_up,
                    bytes_down: sensor.bytes_down,
                    last_failure: sensor.last_failure.clone(),
                };
                (name.to_string(), sensor)
            })
            .collect(),
        paths: relay.paths().iter().map(|path| path_status(path, snapshot.paths.get(&path.name).copied().unwrap_or_default())).collect(),
        legacy: snapshot
            .legacy
            .iter()
            .map(|((hub, sensor), seen)| LegacyStatus {
                hub: hub.to_string(),
                sensor: sensor.to_string(),
                sessions: seen.sessions,
                last_unix: unix(seen.last),
            })
            .collect(),
        unused_legacy_hubs: policy
            .catalogue
            .iter()
            .filter(|(host, entry)| entry.legacy && is_unused(host))
            .map(|(host, _)| host.to_string())
            .collect(),
        draining: snapshot.draining,
    }
}

fn path_status(path: &PathSnapshot, sessions: u64) -> PathStatus {
    let health = &path.health;
    PathStatus {
        name: path.name.to_string(),
        state: health.state.into(),
        state_seconds: health.since.elapsed().as_secs(),
        is_probed: path.is_probed,
        last_success_seconds_ago: health.last_success.map(|at| at.elapsed().as_secs()),
        probe_ms: health.took.map(|took| took.as_secs_f64() * 1000.0),
        last_failure: health.last_failure.clone(),
        flaps: health.flaps,
        intercepted_by: health.intercepted_by.clone(),
        parents: path.parents.clone(),
        via: path.via.clone(),
        sessions,
    }
}

impl Verdict {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Up => "UP",
            Self::Degraded => "DEGRADED",
            Self::Down => "DOWN",
        }
    }
}

/// One screen for people, the verdict and its reasons first.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let site = self.site.as_deref().map(|site| format!(" at {site}")).unwrap_or_default();
        writeln!(
            f,
            "{}{site}  {}  up {}  generation {}  v{}",
            self.gateway,
            self.verdict.word(),
            span(self.uptime_seconds),
            self.generation,
            self.version
        )?;
        for problem in &self.problems {
            writeln!(f, "  ! {problem}")?;
        }
        for tunnel in &self.tunnels {
            let lanes = tunnel.lanes.len();
            let several = if lanes > 1 {
                format!(", {} of {lanes} lanes", tunnel.lanes.iter().filter(|lane| lane.attached).count())
            } else {
                String::new()
            };
            writeln!(f, "TUNNEL {}  {} mode, UDP {}{several}, MTU {}", tunnel.name, tunnel.mode, tunnel.listen_port, tunnel.mtu)?;
            for peer in &tunnel.peers {
                let endpoint = peer.endpoint.as_deref().unwrap_or("(none)");
                let roamed = if peer.roamed { " (roamed)" } else { "" };
                let path = match (peer.probe_rtt_ms, peer.path_mtu) {
                    (Some(rtt), Some(mtu)) => format!("  RTT {rtt:.1} ms, path {mtu} bytes"),
                    (Some(rtt), None) => format!("  RTT {rtt:.1} ms"),
                    (None, _) => String::new(),
                };
                writeln!(
                    f,
                    "  peer {:<16} {:<10} endpoint {endpoint}{roamed}{path}  handshake {}  received {}  sent {}",
                    peer.name,
                    peer.state,
                    ago(peer.last_handshake_unix),
                    bytes(peer.received_bytes),
                    bytes(peer.sent_bytes)
                )?;
            }
            if !tunnel.drops.is_empty() {
                let drops: Vec<String> = tunnel.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
                writeln!(f, "  dropped: {}", drops.join(", "))?;
            }
        }
        for route in &self.routes {
            writeln!(f, "ROUTE {} via {} metric {}  {}", route.prefix, route.next_hop, route.metric, route.state)?;
        }
        if let Some(relay) = &self.relay {
            writeln!(f, "RELAY {} sessions open, {} relayed, {} refused", relay.open, relay.relayed, relay.refused)?;
            for path in &relay.paths {
                write!(f, "  path {:<16} {:<10}", path.name, if path.is_probed { path.state.as_str() } else { "not probed" })?;
                if let Some(probe) = path.probe_ms {
                    write!(f, " probe {probe:.0} ms")?;
                }
                if !path.via.is_empty() {
                    write!(f, "  through {}", path.via.join(" → "))?;
                }
                writeln!(f, "  {} sessions", path.sessions)?;
            }
            for legacy in &relay.legacy {
                writeln!(f, "  legacy hub {}: sensor {} used it {}", legacy.hub, legacy.sensor, ago(Some(legacy.last_unix)))?;
            }
            for hub in &relay.unused_legacy_hubs {
                writeln!(f, "  legacy hub {hub}: unused since the start; when that is long enough, it can go")?;
            }
            for (name, sensor) in &relay.sensors {
                writeln!(
                    f,
                    "  sensor {name:<14} {} open, {} relayed, {} refused, {} up, {} down",
                    sensor.open,
                    sensor.relayed,
                    sensor.refused,
                    bytes(sensor.bytes_up),
                    bytes(sensor.bytes_down)
                )?;
            }
        }
        Ok(())
    }
}

/// `12d 4h`, `3m 20s`: the two largest units.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

fn ago(unix: Option<u64>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    unix.map_or_else(|| "never".into(), |at| format!("{} ago", span(now.saturating_sub(at))))
}

pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS.get(unit).copied().unwrap_or("PiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_read_well() {
        assert_eq!((span(5), span(200), span(4000), span(100_000)), ("5s".into(), "3m 20s".into(), "1h 6m".into(), "1d 3h".into()));
        assert_eq!((bytes(1023), bytes(1024), bytes(1_572_864)), ("1023 B".into(), "1.00 KiB".into(), "1.50 MiB".into()));
    }
}
