//! What is known of a session and how it ended: the counters and the access line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tracing::info;

use super::super::dial::DialError;
use super::super::host::HostName;
use super::super::listener::ListenerSettings;
use super::super::policy::Policy;
use super::super::pump::EndedBy;
use super::super::stats::LegacyUse;
use super::Shared;

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Request,
    Connecting,
    Relaying,
}

/// What is known of a session so far; becomes the access line.
pub(super) struct Record {
    pub(super) number: u64,
    /// As the log and the other gateways of a chain name it.
    pub(super) id: String,
    pub(super) listener: Arc<ListenerSettings>,
    pub(super) downstream: SocketAddr,
    pub(super) sensor: Option<Arc<str>>,
    /// The sensor's name at the gateway that it dialled, if that is another.
    pub(super) origin: Option<String>,
    pub(super) host: Option<HostName>,
    pub(super) port: Option<u16>,
    pub(super) path: Option<Arc<str>>,
    pub(super) via: Vec<String>,
    pub(super) phase: Phase,
    pub(super) accepted: Instant,
    pub(super) requested: Option<Instant>,
    pub(super) connected: Option<Instant>,
    pub(super) first_byte: Option<Instant>,
}

/// How a session ended.
pub(super) struct Outcome {
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
    pub(super) ended_by: EndedBy,
    pub(super) reason: &'static str,
    /// In words, where the reason alone does not say it.
    pub(super) detail: Option<String>,
    /// Which side failed, if one did.
    pub(super) fault: Option<&'static str>,
}

pub(super) fn count_relayed(shared: &Shared, policy: &Policy, record: &Record) {
    let legacy = record.host.as_ref().filter(|host| policy.catalogue.get(host).is_some_and(|entry| entry.legacy));
    shared.stats.with(|stats| {
        let told = &mut stats.told;
        told.relayed += 1;
        if let Some(path) = &record.path {
            *told.paths.entry(Arc::clone(path)).or_default() += 1;
        }
        if let Some(sensor) = &record.sensor {
            let sensor = told.sensors.entry(Arc::clone(sensor)).or_default();
            sensor.relayed += 1;
            sensor.last_failure = None;
        }
        if let (Some(host), Some(sensor)) = (legacy, &record.sensor) {
            let key = (host.clone(), Arc::clone(sensor));
            let seen = told.legacy.entry(key).or_insert_with(|| LegacyUse { sessions: 0, last: SystemTime::UNIX_EPOCH });
            seen.sessions += 1;
            seen.last = SystemTime::now();
        }
    });
}

/// Nobody wanted anything: a load balancer's probe.
const QUIET: [&str; 2] = ["no_data", "health_check"];

pub(super) fn account(shared: &Shared, record: &Record, outcome: &Outcome) {
    let relayed = record.phase == Phase::Relaying;
    let quiet = QUIET.contains(&outcome.reason);
    shared.stats.with(|stats| {
        let told = &mut stats.told;
        *told.ended.entry(outcome.reason).or_default() += 1;
        told.refused += u64::from(!relayed && !quiet);
        if let Some(requested) = record.requested {
            told.hello.record(requested - record.accepted);
            if let Some(connected) = record.connected {
                told.connect.record(connected - requested);
                if let Some(first) = record.first_byte {
                    told.first_byte.record(first - connected);
                }
            }
        }
        if let Some(sensor) = &record.sensor {
            let sensor = told.sensors.entry(Arc::clone(sensor)).or_default();
            sensor.bytes_up += outcome.bytes_up;
            sensor.bytes_down += outcome.bytes_down;
            if !relayed && !quiet {
                sensor.refused += 1;
                // What policy refused is the sensor's affair; what a side failed at is the operator's.
                if outcome.fault.is_some() {
                    let host = record.host.as_ref().map_or("-", HostName::as_str);
                    sensor.last_failure = Some(format!("{host}: {}", outcome.detail.as_deref().unwrap_or(outcome.reason)));
                }
            }
        }
    });
    let since = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
        (Some(from), Some(to)) => i64::try_from((to - from).as_millis()).unwrap_or(i64::MAX),
        _ => -1,
    };
    info!(
        target: "skyway::access",
        session = record.id,
        listener = record.listener.name,
        sensor = record.sensor.as_deref().unwrap_or("-"),
        origin = record.origin.as_deref().unwrap_or("-"),
        downstream = %record.downstream,
        host = record.host.as_ref().map_or("-", HostName::as_str),
        port = record.port.unwrap_or_default(),
        path = record.path.as_deref().unwrap_or("-"),
        via = if record.via.is_empty() { "-".to_owned() } else { record.via.join(",") },
        bytes_up = outcome.bytes_up,
        bytes_down = outcome.bytes_down,
        hello_ms = since(Some(record.accepted), record.requested),
        connect_ms = since(record.requested, record.connected),
        first_byte_ms = since(record.connected, record.first_byte),
        duration_ms = u64::try_from(record.accepted.elapsed().as_millis()).unwrap_or(u64::MAX),
        relayed,
        code = code(record.phase, outcome),
        ended_by = outcome.ended_by.label(),
        reason = outcome.reason,
        fault = outcome.fault.unwrap_or("-"),
        detail = outcome.detail.as_deref().unwrap_or("-"),
        "session ended"
    );
}

/// Two letters that say at a glance who ended a session and when, after HAProxy's: who (`C` the sensor, `S` the upstream, `P`
/// policy, `R` a limit, `K` a stop, `c`/`s` a timeout on that side, `-` nobody: it was over), and in which phase (`R` request, `C`
/// connecting, `D` data, `-` done).
fn code(phase: Phase, outcome: &Outcome) -> &'static str {
    let timed_out = outcome.reason.ends_with("timeout");
    match (phase, outcome.ended_by) {
        (Phase::Relaying, _) if outcome.reason == "closed" => "--",
        (Phase::Relaying, EndedBy::Downstream) => "CD",
        (Phase::Relaying, EndedBy::Upstream) => "SD",
        (Phase::Relaying, EndedBy::Relay) if timed_out => "cD",
        (Phase::Relaying, EndedBy::Relay) => "KD",
        (Phase::Connecting, EndedBy::Downstream) => "CC",
        (Phase::Connecting, _) if outcome.fault.is_some() && timed_out => "sC",
        (Phase::Connecting, _) if outcome.fault.is_some() => "SC",
        (Phase::Connecting, EndedBy::Upstream) => "SC",
        (Phase::Connecting, EndedBy::Relay) if timed_out => "cC",
        (Phase::Connecting, EndedBy::Relay) if outcome.reason == "drained" => "KC",
        (Phase::Connecting, EndedBy::Relay) => "PC",
        (Phase::Request, EndedBy::Downstream | EndedBy::Upstream) => "CR",
        (Phase::Request, EndedBy::Relay) if timed_out => "cR",
        (Phase::Request, EndedBy::Relay) if outcome.reason.starts_with("limit_") => "RR",
        (Phase::Request, EndedBy::Relay) if outcome.reason == "drained" => "KR",
        (Phase::Request, EndedBy::Relay) => "PR",
    }
}

impl Outcome {
    pub(super) const fn ended(ended_by: EndedBy, reason: &'static str) -> Self {
        Self { bytes_up: 0, bytes_down: 0, ended_by, reason, detail: None, fault: None }
    }

    pub(super) const fn refused(reason: &'static str) -> Self {
        Self::ended(EndedBy::Relay, reason)
    }

    pub(super) fn failed(error: &DialError) -> Self {
        Self { detail: Some(error.to_string()), fault: Some(error.side().label()), ..Self::ended(EndedBy::Relay, error.reason()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_letters_say_who_ended_a_session_and_when() {
        let failed = Outcome::failed(&DialError::TimedOut { address: SocketAddr::from(([192, 0, 2, 1], 443)) });
        assert_eq!(code(Phase::Connecting, &failed), "sC");
        assert_eq!(code(Phase::Relaying, &Outcome::ended(EndedBy::Upstream, "reset")), "SD");
        assert_eq!(code(Phase::Relaying, &Outcome::ended(EndedBy::Downstream, "closed")), "--");
        assert_eq!(code(Phase::Relaying, &Outcome::refused("idle_timeout")), "cD");
        assert_eq!(code(Phase::Request, &Outcome::refused("host_not_listed")), "PR");
        assert_eq!(code(Phase::Request, &Outcome::refused("limit_sensor")), "RR");
    }
}
