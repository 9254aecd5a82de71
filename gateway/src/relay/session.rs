//! One session from accept to its access line. The picture is in the module above.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use tracing::info;

use super::Stream;
use super::client_hello::{ClientHelloReader, Progress, ServerName, alert, alert_record};
use super::connect_head::{Authority, ConnectHead, ConnectHeadReader};
use super::head_lines::HeadProgress;
use super::listener::{ListenerSettings, Protocol};
use super::path::{self, Connected};
use super::policy::{Policy, Refusal};
use super::pump::{Early, EndedBy, Silence, pump};
use super::response_head::response;
use super::stats::Stats;

/// TLS alerts for what is not the client's fault in TLS terms (RFC 8446 §6.2).
const ACCESS_DENIED: u8 = 49;
const INTERNAL_ERROR: u8 = 80;

/// What all sessions of a relay share.
pub(super) struct Shared {
    pub(super) policy: ArcSwap<Policy>,
    pub(super) stats: Stats,
    pub(super) next_session: AtomicU64,
    /// No more sessions begin.
    pub(super) draining: watch::Sender<bool>,
    /// Sessions that stand end now.
    pub(super) stop: watch::Sender<bool>,
    /// How many may be told at once why they are turned away.
    pub(super) telling: Semaphore,
}

/// What is known of a session so far; becomes the access line.
struct Record {
    id: u64,
    listener: Arc<ListenerSettings>,
    downstream: SocketAddr,
    sensor: Option<Arc<str>>,
    host: Option<String>,
    port: Option<u16>,
    path: Option<Arc<str>>,
    started: Instant,
    relayed: bool,
}

/// How a session ended.
struct Outcome {
    bytes_up: u64,
    bytes_down: u64,
    ended_by: EndedBy,
    reason: &'static str,
    /// In words, where the reason alone does not say it.
    detail: Option<String>,
    /// Which side failed, if one did.
    fault: Option<&'static str>,
}

/// Runs one session and accounts for it.
pub(super) async fn run(shared: Arc<Shared>, listener: Arc<ListenerSettings>, mut downstream: Box<dyn Stream>, from: SocketAddr) {
    let policy = shared.policy.load_full();
    let mut record = Record {
        id: shared.next_session.fetch_add(1, Ordering::Relaxed),
        listener,
        downstream: from,
        sensor: policy.sensor(from.ip()).ok(),
        host: None,
        port: None,
        path: None,
        started: Instant::now(),
        relayed: false,
    };
    // Who cannot be a sensor, whatever it sends, takes no slot from those that are.
    let unknown = record.sensor.is_none() && !(record.listener.protocol == Protocol::Connect && policy.sensors.any_user());
    let slot = if unknown { Err(Refusal::UnknownSensor) } else { Slot::take(&shared, policy.limits.sessions) };
    let outcome = match &slot {
        Err(refusal) => turn_away(&shared, &record, &mut *downstream, *refusal).await,
        Ok(_) => {
            let protocol = record.listener.protocol;
            let session = async {
                match protocol {
                    Protocol::Connect => by_connect(&shared, &policy, &mut record, &mut *downstream).await,
                    Protocol::Sni => by_sni(&shared, &policy, &mut record, &mut *downstream).await,
                }
            };
            tokio::select! {
                biased;
                outcome = session => outcome,
                () = stop_and_grace(shared.stop.subscribe()) => Outcome::refused("drained"),
            }
        }
    };
    account(&shared, &record, &outcome);
}

/// One of the sessions that the limit counts. Given back when dropped, also by a panic.
struct Slot(Arc<Shared>);

impl Slot {
    fn take(shared: &Arc<Shared>, limit: usize) -> Result<Self, Refusal> {
        let taken = shared.stats.with(|stats| {
            let room = usize::try_from(stats.open).is_ok_and(|open| open < limit);
            stats.open += u64::from(room);
            room
        });
        if taken { Ok(Self(Arc::clone(shared))) } else { Err(Refusal::TooManySessions) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.stats.with(|stats| stats.open = stats.open.saturating_sub(1));
    }
}

/// Ready a moment after sessions were told to end: a pump sees it first and leaves its counts; what has not got that far
/// is ended here.
async fn stop_and_grace(mut stop: watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
}

/// Refuses before a byte is read. Only so many are told why at once: the rest of a flood finds the door shut.
async fn turn_away(shared: &Shared, record: &Record, downstream: &mut dyn Stream, refusal: Refusal) -> Outcome {
    let Ok(_told) = shared.telling.try_acquire() else { return Outcome::refused(refusal.reason()) };
    match record.listener.protocol {
        Protocol::Connect => answer(downstream, refusal.status(), refusal.reason()).await,
        Protocol::Sni if refusal == Refusal::TooManySessions => send_alert(downstream, INTERNAL_ERROR).await,
        Protocol::Sni => send_alert(downstream, ACCESS_DENIED).await,
    }
    Outcome::refused(refusal.reason())
}

async fn by_connect(shared: &Shared, policy: &Policy, record: &mut Record, downstream: &mut dyn Stream) -> Outcome {
    let deadline = Instant::now() + policy.limits.hello;
    let mut received = Vec::with_capacity(512);
    let head = match read_head(downstream, &mut received, deadline).await {
        Ok(head) => head,
        Err(outcome) => return outcome,
    };
    let authority = head.authority.clone();
    record.host = Some(authority.host.to_string());
    record.port = Some(authority.port);
    received.drain(..head.length.min(received.len()));
    let decided = identify(policy, record, &head).and_then(|()| policy.entry(&authority.host, authority.port));
    let entry = match decided {
        Ok(entry) => entry,
        Err(refusal) => {
            answer(downstream, refusal.status(), refusal.reason()).await;
            return Outcome::refused(refusal.reason());
        }
    };
    let connected = match path::connect(&policy.paths, &authority, entry, Instant::now() + policy.limits.connect).await {
        Ok(connected) => connected,
        Err((path, error)) => {
            record.path = path;
            answer(downstream, error.status(), error.reason()).await;
            return Outcome::failed(&error);
        }
    };
    if downstream.write_all(response(200, "").as_bytes()).await.is_err() {
        return Outcome::ended(EndedBy::Downstream, "reset");
    }
    let hello = match read_hello(downstream, &mut received, Instant::now() + policy.limits.hello).await {
        Ok(hello) => hello,
        Err(outcome) => return outcome,
    };
    // What the sensor asked for and what it says inside must be one name, or the catalogue checks nothing.
    if !matches!(&hello, ServerName::Host(name) if *name == authority.host) {
        send_alert(downstream, alert::UNRECOGNIZED_NAME).await;
        let detail = match hello {
            ServerName::Host(name) => format!("the ClientHello names {name}"),
            ServerName::Absent => "the ClientHello names no host".into(),
            ServerName::AddressLiteral => "the ClientHello names an address".into(),
        };
        return Outcome { detail: Some(detail), ..Outcome::refused("sni_mismatch") };
    }
    relay(shared, policy, record, downstream, connected, received).await
}

async fn by_sni(shared: &Shared, policy: &Policy, record: &mut Record, downstream: &mut dyn Stream) -> Outcome {
    let deadline = Instant::now() + policy.limits.hello;
    let mut received = Vec::with_capacity(1024);
    let name = match read_hello(downstream, &mut received, deadline).await {
        Ok(name) => name,
        Err(outcome) => return outcome,
    };
    let ServerName::Host(host) = name else {
        send_alert(downstream, alert::UNRECOGNIZED_NAME).await;
        return Outcome::refused(if matches!(name, ServerName::Absent) { "no_server_name" } else { "address_literal" });
    };
    record.host = Some(host.to_string());
    let known = record.sensor.as_ref().map(|_| ()).ok_or(Refusal::UnknownSensor);
    let decided = known.and_then(|()| policy.catalogue.get(&host).ok_or(Refusal::HostNotListed));
    let entry = match decided {
        Ok(entry) => entry,
        Err(refusal) => {
            let description = if refusal == Refusal::HostNotListed { alert::UNRECOGNIZED_NAME } else { ACCESS_DENIED };
            send_alert(downstream, description).await;
            return Outcome::refused(refusal.reason());
        }
    };
    // TLS alone names no port: the first that the catalogue lists is meant.
    let port = entry.ports.first().copied().unwrap_or(443);
    record.port = Some(port);
    let authority = Authority { host, port };
    match path::connect(&policy.paths, &authority, entry, Instant::now() + policy.limits.connect).await {
        Ok(connected) => relay(shared, policy, record, downstream, connected, received).await,
        Err((path, error)) => {
            record.path = path;
            send_alert(downstream, INTERNAL_ERROR).await;
            Outcome::failed(&error)
        }
    }
}

/// A sensor is known by its address, by its proxy user, or by both if they agree.
fn identify(policy: &Policy, record: &mut Record, head: &ConnectHead) -> Result<(), Refusal> {
    if let Some(credentials) = &head.proxy_authorization {
        let user = policy.sensors.authenticate(&credentials.user, credentials.password()).ok_or(Refusal::WrongCredentials)?;
        if record.sensor.as_ref().is_some_and(|sensor| *sensor != user) {
            return Err(Refusal::IdentityMismatch);
        }
        record.sensor = Some(user);
    }
    let unknown = if policy.sensors.any_user() { Refusal::CredentialsWanted } else { Refusal::UnknownSensor };
    record.sensor.as_ref().map(|_| ()).ok_or(unknown)
}

/// Pumps a session that has passed every check, the bytes read so far first.
async fn relay(
    shared: &Shared,
    policy: &Policy,
    record: &mut Record,
    downstream: &mut dyn Stream,
    connected: Connected,
    received: Vec<u8>,
) -> Outcome {
    let Connected { mut stream, path, early } = connected;
    record.path = Some(path);
    record.relayed = true;
    shared.stats.with(|stats| {
        stats.relayed += 1;
        if let Some(sensor) = &record.sensor {
            let sensor = stats.sensors.entry(Arc::clone(sensor)).or_default();
            sensor.relayed += 1;
            sensor.open += 1;
            sensor.last_failure = None;
        }
    });
    let silence = Silence { idle: policy.limits.idle, half_close: policy.limits.half_close };
    let pumped = pump(downstream, &mut *stream, Early { up: received, down: early }, silence, shared.stop.subscribe()).await;
    Outcome {
        bytes_up: pumped.bytes_up,
        bytes_down: pumped.bytes_down,
        ended_by: pumped.ended_by,
        reason: pumped.reason,
        detail: None,
        fault: None,
    }
}

async fn read_head(downstream: &mut dyn Stream, received: &mut Vec<u8>, deadline: Instant) -> Result<ConnectHead, Outcome> {
    let mut reader = ConnectHeadReader::new();
    loop {
        match tokio::time::timeout_at(deadline.into(), downstream.read_buf(received)).await {
            Err(_) => {
                answer(downstream, 408, "head_timeout").await;
                return Err(Outcome::refused("head_timeout"));
            }
            // A load balancer's probe connects and closes: no error, no answer.
            Ok(Ok(0)) if received.is_empty() => return Err(Outcome::ended(EndedBy::Downstream, "no_data")),
            Ok(Ok(0)) => return Err(Outcome::ended(EndedBy::Downstream, "closed_in_head")),
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(Outcome::ended(EndedBy::Downstream, "reset")),
        }
        match reader.handle_bytes(received) {
            HeadProgress::NeedMore => {}
            HeadProgress::Complete(head) => return Ok(head),
            HeadProgress::Rejected(error) => {
                if let Some(status) = error.status() {
                    answer(downstream, status, error.reason()).await;
                }
                return Err(Outcome { detail: Some(error.to_string()), ..Outcome::refused(error.reason()) });
            }
        }
    }
}

/// Reads until the ClientHello is whole; `received` may hold its beginning and keeps all of it.
async fn read_hello(downstream: &mut dyn Stream, received: &mut Vec<u8>, deadline: Instant) -> Result<ServerName, Outcome> {
    let mut reader = ClientHelloReader::new();
    loop {
        match reader.handle_bytes(received) {
            Progress::NeedMore => {}
            Progress::Complete(hello) => return Ok(hello.server_name),
            Progress::Rejected(error) => {
                if let Some(description) = error.alert() {
                    send_alert(downstream, description).await;
                }
                return Err(Outcome { detail: Some(error.to_string()), ..Outcome::refused(error.reason()) });
            }
        }
        match tokio::time::timeout_at(deadline.into(), downstream.read_buf(received)).await {
            Err(_) => return Err(Outcome::refused("hello_timeout")),
            Ok(Ok(0)) if received.is_empty() => return Err(Outcome::ended(EndedBy::Downstream, "no_data")),
            Ok(Ok(0)) => return Err(Outcome::ended(EndedBy::Downstream, "closed_in_hello")),
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(Outcome::ended(EndedBy::Downstream, "reset")),
        }
    }
}

/// Answers a refused CONNECT and ends the stream (RFC 9931: nothing may follow a refusal).
async fn answer(downstream: &mut dyn Stream, status: u16, reason: &str) {
    farewell(downstream, response(status, reason).as_bytes()).await;
}

async fn send_alert(downstream: &mut dyn Stream, description: u8) {
    farewell(downstream, &alert_record(description)).await;
}

/// Sends last words and closes so that they arrive: unread bytes at a close would turn it into a reset.
async fn farewell(downstream: &mut dyn Stream, words: &[u8]) {
    let sending = async {
        downstream.write_all(words).await?;
        downstream.shutdown().await?;
        let mut unread = [0u8; 1024];
        while downstream.read(&mut unread).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whoever does not read what is said to it has had its chance.
    let _unheard = tokio::time::timeout(std::time::Duration::from_secs(2), sending).await;
}

fn account(shared: &Shared, record: &Record, outcome: &Outcome) {
    shared.stats.with(|stats| {
        *stats.ended.entry(outcome.reason).or_default() += 1;
        let quiet = outcome.reason == "no_data";
        if !record.relayed && !quiet {
            stats.refused += 1;
        }
        if let Some(sensor) = &record.sensor {
            let sensor = stats.sensors.entry(Arc::clone(sensor)).or_default();
            sensor.bytes_up += outcome.bytes_up;
            sensor.bytes_down += outcome.bytes_down;
            if record.relayed {
                sensor.open = sensor.open.saturating_sub(1);
            } else if !quiet {
                sensor.refused += 1;
                // What policy refused is the sensor's affair; what a side failed at is the operator's.
                if outcome.fault.is_some() {
                    let host = record.host.as_deref().unwrap_or("-");
                    sensor.last_failure = Some(format!("{host}: {}", outcome.detail.as_deref().unwrap_or(outcome.reason)));
                }
            }
        }
    });
    info!(
        target: "skyway::access",
        session = record.id,
        listener = record.listener.name,
        sensor = record.sensor.as_deref().unwrap_or("-"),
        downstream = %record.downstream,
        host = record.host.as_deref().unwrap_or("-"),
        port = record.port.unwrap_or_default(),
        path = record.path.as_deref().unwrap_or("-"),
        bytes_up = outcome.bytes_up,
        bytes_down = outcome.bytes_down,
        duration_ms = u64::try_from(record.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        relayed = record.relayed,
        ended_by = outcome.ended_by.label(),
        reason = outcome.reason,
        fault = outcome.fault.unwrap_or("-"),
        detail = outcome.detail.as_deref().unwrap_or("-"),
        "session ended"
    );
}

impl Outcome {
    const fn ended(ended_by: EndedBy, reason: &'static str) -> Self {
        Self { bytes_up: 0, bytes_down: 0, ended_by, reason, detail: None, fault: None }
    }

    const fn refused(reason: &'static str) -> Self {
        Self::ended(EndedBy::Relay, reason)
    }

    fn failed(error: &super::DialError) -> Self {
        Self { detail: Some(error.to_string()), fault: Some(error.side().label()), ..Self::ended(EndedBy::Relay, error.reason()) }
    }
}
