//! One session from accept to its access line. The picture is in the module above.

mod ending;
mod place;
mod record;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};

use super::catalogue::Entry;
use super::chain::Passage;
use super::client_hello::{ClientHelloReader, Progress, ServerName, alert, alert_record};
use super::connect_head::{Authority, ConnectHead, ConnectHeadReader};
use super::head_lines::HeadProgress;
use super::listener::{ListenerSettings, NameRule, Protocol};
use super::path::{self, Connected, Wanted};
use super::policy::{Policy, Refusal};
use super::proxy_protocol::{Attributes, Command, ProxyHeader, ProxyHeaderReader};
use super::pump::{Early, EndedBy, Pumped, Silence, pump};
use super::response_head::{established, response};
use super::sensor::{Evidence, Sensor, agree};
use super::stats::Stats;
use super::tls::PeerName;
use super::{Accepted, Stream};
pub(super) use ending::Ending;
use ending::{end_of, stop_and_grace};
use place::Place;
use record::{Outcome, Phase, Record, account, count_relayed};

/// TLS alerts for what is not the client's fault in TLS terms (RFC 8446 §6.2).
const ACCESS_DENIED: u8 = 49;
const INTERNAL_ERROR: u8 = 80;
/// A load balancer sends its PROXY header at once.
const PROXY_HEADER: Duration = Duration::from_secs(3);
/// The longest that a wrong password waits for its answer.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(8);

/// What all sessions of a relay share.
pub(super) struct Shared {
    pub(super) policy: ArcSwap<Policy>,
    pub(super) stats: Stats,
    /// Tells this run's sessions from another's.
    pub(super) run: u32,
    pub(super) next_session: AtomicU64,
    /// No more sessions begin.
    pub(super) draining: watch::Sender<bool>,
    /// When sessions that stand end.
    pub(super) stop: watch::Sender<Option<Ending>>,
    /// How many may be told at once why they are turned away.
    pub(super) telling: Semaphore,
}

/// A session that may begin to move bytes.
struct Established {
    downstream: Box<dyn Stream>,
    connected: Connected,
    received: Vec<u8>,
}

/// Runs one session and accounts for it.
pub(super) async fn run(shared: Arc<Shared>, listener: Arc<ListenerSettings>, accepted: Accepted) {
    let policy = shared.policy.load_full();
    let number = shared.next_session.fetch_add(1, Ordering::Relaxed);
    let mut record = Record {
        number,
        id: format!("{:08x}-{number}", shared.run),
        listener,
        downstream: accepted.from,
        sensor: None,
        origin: None,
        host: None,
        port: None,
        path: None,
        via: Vec::new(),
        phase: Phase::Request,
        accepted: Instant::now(),
        requested: None,
        connected: None,
        first_byte: None,
    };
    let mut place = Place::default();
    // What it takes to get there is much more than what is needed afterwards, and is given back.
    let setting_up = Box::pin(set_up(&shared, &policy, &mut record, &mut place, accepted));
    let established = tokio::select! {
        biased;
        established = setting_up => established,
        () = stop_and_grace(shared.stop.subscribe(), number) => Err(Outcome::refused("drained")),
    };
    let outcome = match established {
        Ok(established) => relay(&shared, policy, &mut record, established).await,
        Err(outcome) => outcome,
    };
    drop(place);
    account(&shared, &record, &outcome);
}

/// From a stream to a session that has passed every check and has its upstream.
async fn set_up(
    shared: &Arc<Shared>,
    policy: &Policy,
    record: &mut Record,
    place: &mut Place,
    accepted: Accepted,
) -> Result<Established, Outcome> {
    let Accepted { mut stream, from, destination } = accepted;
    let listener = Arc::clone(&record.listener);
    let is_balancer = listener.proxy_protocol.iter().any(|prefix| prefix.contains(&from.ip()));
    // Who cannot be a sensor, whatever it sends, takes no place from those that are.
    if !is_balancer && listener.tls.is_none() {
        let known = policy.sensors.identify(Evidence { source: Some(from.ip()), certificate: None, attributes: None });
        record.sensor = known.ok().flatten().map(|sensor| Arc::clone(&sensor.name));
        if record.sensor.is_none() && !(listener.protocol == Protocol::Connect && policy.sensors.any_user()) {
            return Err(turn_away(shared, record, &mut *stream, Refusal::UnknownSensor).await);
        }
    }
    if let Err(refusal) = place.take(shared, policy.limits.sessions) {
        return Err(turn_away(shared, record, &mut *stream, refusal).await);
    }
    let (mut attributes, mut source) = (None, Some(from.ip()));
    if is_balancer {
        let header = read_proxy_header(&mut *stream).await?;
        if header.command == Command::Local {
            return Err(Outcome::ended(EndedBy::Downstream, "health_check"));
        }
        source = header.source.map(|source| source.ip());
        record.downstream = header.source.unwrap_or(from);
        attributes = Some(header.attributes);
    }
    let is_gateway = record.sensor.as_ref().is_some_and(|name| policy.sensors.get(name).is_some_and(|sensor| sensor.is_gateway));
    if let Some(source) = source.filter(|_| !is_gateway)
        && let Err(refusal) = place.take_of_source(source, policy.limits.connections_per_source)
    {
        return Err(turn_away(shared, record, &mut *stream, refusal).await);
    }
    let mut certificate = None;
    if let Some(tls) = &listener.tls {
        let deadline = Instant::now() + policy.limits.hello;
        (stream, certificate) = match tls.accept(stream, deadline).await {
            Ok(accepted) => accepted,
            Err(error) => {
                let outcome = Outcome::ended(EndedBy::Downstream, error.reason());
                return Err(Outcome { detail: Some(error.to_string()), ..outcome });
            }
        };
    }
    let evidence = Shown { source, certificate, attributes };
    match listener.protocol {
        Protocol::Connect => by_connect(shared, policy, record, place, stream, &evidence).await,
        Protocol::Sni => by_sni(policy, record, place, stream, &evidence, None).await,
        Protocol::Transparent { name, .. } => {
            let meant = destination.map(|address| Meant { address, may_lack_name: name == NameRule::IfPresent });
            by_sni(policy, record, place, stream, &evidence, meant).await
        }
    }
}

/// What who dialled has shown.
struct Shown {
    source: Option<IpAddr>,
    certificate: Option<PeerName>,
    attributes: Option<Attributes>,
}

impl Shown {
    fn sensor<'a>(&self, policy: &'a Policy) -> Result<Option<&'a Sensor>, Refusal> {
        let Self { source, certificate, attributes } = self;
        policy.sensors.identify(Evidence { source: *source, certificate: certificate.as_ref(), attributes: attributes.as_ref() })
    }
}

/// Refuses before a byte is read. Only so many are told why at once: the rest of a flood finds the door shut.
async fn turn_away(shared: &Shared, record: &Record, downstream: &mut dyn Stream, refusal: Refusal) -> Outcome {
    let Ok(_told) = shared.telling.try_acquire() else { return Outcome::refused(refusal.reason()) };
    let busy = matches!(refusal, Refusal::TooManySessions | Refusal::TooManyOfSource | Refusal::TooManyOfSensor);
    match record.listener.protocol {
        // Whoever expects TLS would not understand.
        Protocol::Connect if record.listener.tls.is_some() => {}
        Protocol::Connect => answer(downstream, refusal.status(), refusal.reason()).await,
        Protocol::Sni | Protocol::Transparent { .. } if busy => send_alert(downstream, INTERNAL_ERROR).await,
        Protocol::Sni | Protocol::Transparent { .. } => send_alert(downstream, ACCESS_DENIED).await,
    }
    Outcome::refused(refusal.reason())
}

async fn by_connect(
    shared: &Shared,
    policy: &Policy,
    record: &mut Record,
    place: &mut Place,
    mut downstream: Box<dyn Stream>,
    shown: &Shown,
) -> Result<Established, Outcome> {
    let deadline = Instant::now() + policy.limits.hello;
    let mut received = Vec::with_capacity(512);
    let head = read_head(&mut *downstream, &mut received, deadline).await?;
    record.requested = Some(Instant::now());
    let authority = head.authority.clone();
    record.host = Some(authority.host.clone());
    record.port = Some(authority.port);
    received.drain(..head.length.min(received.len()));
    let decided = match identify(policy, record, shown, &head) {
        Ok((sensor, passage)) => {
            let place = place.take_of_sensor(sensor, policy);
            place.and_then(|()| policy.entry(&authority.host, authority.port)).map(|entry| (entry, passage))
        }
        Err(refusal) => Err(refusal),
    };
    let (entry, passage) = match decided {
        Ok(decided) => decided,
        Err(refusal) => {
            if refusal == Refusal::WrongCredentials {
                back_off(shared, record.downstream.ip()).await;
            }
            answer(&mut *downstream, refusal.status(), refusal.reason()).await;
            return Err(Outcome::refused(refusal.reason()));
        }
    };
    if head.proxy_authorization.is_some() {
        shared.stats.with(|stats| stats.offenders.remove(&record.downstream.ip()));
    }
    let is_passed_on = !passage.via.is_empty();
    let connected = match connect(policy, record, &authority, entry, &passage).await {
        Ok(connected) => connected,
        Err((outcome, status)) => {
            answer(&mut *downstream, status, outcome.reason).await;
            return Err(outcome);
        }
    };
    let granted = if is_passed_on {
        let own = [policy.gateway.to_string()];
        established(&own.into_iter().chain(connected.via.iter().cloned()).collect::<Vec<_>>())
    } else {
        response(200, "")
    };
    if downstream.write_all(granted.as_bytes()).await.is_err() || downstream.flush().await.is_err() {
        return Err(Outcome::ended(EndedBy::Downstream, "reset"));
    }
    let hello = read_hello(&mut *downstream, &mut received, Instant::now() + policy.limits.hello).await?;
    // What the sensor asked for and what it says inside must be one name, or the catalogue checks nothing.
    if !matches!(&hello, ServerName::Host(name) if *name == authority.host) {
        send_alert(&mut *downstream, alert::UNRECOGNIZED_NAME).await;
        let detail = match hello {
            ServerName::Host(name) => format!("the ClientHello names {name}"),
            ServerName::Absent => "the ClientHello names no host".into(),
            ServerName::AddressLiteral => "the ClientHello names an address".into(),
        };
        return Err(Outcome { detail: Some(detail), ..Outcome::refused("sni_mismatch") });
    }
    Ok(Established { downstream, connected, received })
}

/// Where a redirected connection was to go.
#[derive(Clone, Copy)]
struct Meant {
    address: SocketAddr,
    /// A ClientHello without a name may lead there, if the catalogue lists the address itself.
    may_lack_name: bool,
}

async fn by_sni(
    policy: &Policy,
    record: &mut Record,
    place: &mut Place,
    mut downstream: Box<dyn Stream>,
    shown: &Shown,
    meant: Option<Meant>,
) -> Result<Established, Outcome> {
    let deadline = Instant::now() + policy.limits.hello;
    let mut received = Vec::with_capacity(1024);
    let name = read_hello(&mut *downstream, &mut received, deadline).await?;
    record.requested = Some(Instant::now());
    let port = meant.map(|meant| meant.address.port());
    let listed = match (&name, meant) {
        (ServerName::Host(host), _) => Ok((host.clone(), port)),
        // Without a name, an address that the catalogue itself lists says which host is meant.
        (ServerName::Absent, Some(Meant { address, may_lack_name: true })) => {
            let listed = policy.catalogue.iter().find(|(_, entry)| entry.addresses.contains(&address.ip()));
            listed.map(|(host, _)| (host.clone(), port)).ok_or("no_server_name")
        }
        (ServerName::Absent, _) => Err("no_server_name"),
        (ServerName::AddressLiteral, _) => Err("address_literal"),
    };
    let (host, port) = match listed {
        Ok(listed) => listed,
        Err(reason) => {
            send_alert(&mut *downstream, alert::UNRECOGNIZED_NAME).await;
            return Err(Outcome::refused(reason));
        }
    };
    record.host = Some(host.clone());
    let decided = shown.sensor(policy).and_then(|sensor| {
        let sensor = sensor.ok_or(Refusal::UnknownSensor)?;
        record.sensor = Some(Arc::clone(&sensor.name));
        place.take_of_sensor(sensor, policy)?;
        let entry = policy.catalogue.get(&host).ok_or(Refusal::HostNotListed)?;
        // TLS alone names no port: the first that the catalogue lists is meant.
        let port = port.or_else(|| entry.ports.first().copied()).unwrap_or(super::catalogue::HTTPS);
        policy.entry(&host, port).map(|entry| (entry, port))
    });
    let (entry, port) = match decided {
        Ok(decided) => decided,
        Err(refusal) => {
            let description = if refusal == Refusal::HostNotListed { alert::UNRECOGNIZED_NAME } else { ACCESS_DENIED };
            send_alert(&mut *downstream, description).await;
            return Err(Outcome::refused(refusal.reason()));
        }
    };
    record.port = Some(port);
    let authority = Authority { host, port };
    let passage = Passage { session: record.id.clone(), sensor: record.sensor.as_deref().map(str::to_owned), ..Passage::default() };
    match connect(policy, record, &authority, entry, &passage).await {
        Ok(connected) => Ok(Established { downstream, connected, received }),
        Err((outcome, _)) => {
            send_alert(&mut *downstream, INTERNAL_ERROR).await;
            Err(outcome)
        }
    }
}

/// A sensor is known by what it has shown, by its proxy user, or by both if they agree. A gateway's word for what is behind
/// it is taken.
fn identify<'a>(policy: &'a Policy, record: &mut Record, shown: &Shown, head: &ConnectHead) -> Result<(&'a Sensor, Passage), Refusal> {
    let mut known = shown.sensor(policy)?;
    if let Some(credentials) = &head.proxy_authorization {
        let user = policy.sensors.authenticate(&credentials.user, credentials.password()).ok_or(Refusal::WrongCredentials)?;
        known = agree(known, Some(user))?;
    }
    let unknown = if policy.sensors.any_user() { Refusal::CredentialsWanted } else { Refusal::UnknownSensor };
    let sensor = known.ok_or(unknown)?;
    record.sensor = Some(Arc::clone(&sensor.name));
    let believed = head.passage.clone().filter(|_| sensor.is_gateway);
    if let Some(passage) = &believed {
        record.id.clone_from(&passage.session);
        record.origin.clone_from(&passage.sensor);
    }
    // Whoever says so: it would only come round again.
    if head.passage.as_ref().is_some_and(|passage| passage.via.iter().any(|gateway| **gateway == *policy.gateway)) {
        return Err(Refusal::Loop);
    }
    let Some(passage) = believed else {
        return Ok((sensor, Passage { session: record.id.clone(), sensor: Some(sensor.name.to_string()), ..Passage::default() }));
    };
    if let (Some(below), Some(own)) = (passage.level, policy.level)
        && !below.leads_to(own)
    {
        return Err(Refusal::WrongLevel);
    }
    Ok((sensor, passage))
}

/// An upstream stream, by the first path that brings one; else what to say of it, and as which HTTP status.
async fn connect(
    policy: &Policy,
    record: &mut Record,
    authority: &Authority,
    entry: &Entry,
    passage: &Passage,
) -> Result<Connected, (Outcome, u16)> {
    record.phase = Phase::Connecting;
    let wanted = Wanted { authority, entry, service_tags: policy.catalogue.service_tags.as_ref(), passage };
    match path::connect(&policy.paths, wanted, Instant::now() + policy.limits.connect).await {
        Ok(connected) => {
            record.connected = Some(Instant::now());
            record.path = Some(Arc::clone(connected.path.name()));
            record.via.clone_from(&connected.via);
            Ok(connected)
        }
        Err((path, error)) => {
            record.path = path;
            Err((Outcome::failed(&error), error.status()))
        }
    }
}

/// The more wrong passwords in a row came from an address, the longer the next one waits for its answer.
async fn back_off(shared: &Shared, source: IpAddr) {
    let row = shared.stats.with(|stats| stats.offend(source));
    // The first few are somebody's typing.
    if let Some(doubled) = row.checked_sub(3) {
        tokio::time::sleep(LONGEST_BACK_OFF.min(Duration::from_millis(250) * 2u32.saturating_pow(doubled.min(8)))).await;
    }
}

/// Pumps a session that has passed every check, the bytes read so far first.
async fn relay(shared: &Shared, policy: Arc<Policy>, record: &mut Record, session: Established) -> Outcome {
    let Established { mut downstream, connected, received } = session;
    let Connected { mut stream, path, early, via: _ } = connected;
    record.phase = Phase::Relaying;
    count_relayed(shared, &policy, record);
    let limits = &policy.limits;
    let until = limits.lifetime.map(|lifetime| (record.accepted + lifetime).into());
    let silence = Silence { idle: limits.idle, half_close: limits.half_close, until };
    let spread = limits.drain.spread;
    // It may stand for weeks: the policy of its beginning need not.
    drop(policy);
    let ended = std::pin::pin!(end_of(shared.stop.subscribe(), &path, record.number, spread));
    let early = Early { up: received, down: early };
    let Pumped { bytes_up, bytes_down, ended_by, reason, first_byte } = pump(&mut *downstream, &mut *stream, early, silence, ended).await;
    record.first_byte = first_byte.map(Into::into);
    Outcome { bytes_up, bytes_down, ended_by, reason, detail: None, fault: None }
}

/// Reads a PROXY header and not a byte more.
async fn read_proxy_header(stream: &mut dyn Stream) -> Result<ProxyHeader, Outcome> {
    let deadline = Instant::now() + PROXY_HEADER;
    let mut received = Vec::with_capacity(64);
    let mut reader = ProxyHeaderReader::new();
    loop {
        match reader.handle_bytes(&received) {
            HeadProgress::Complete(header) => return Ok(header),
            HeadProgress::Rejected(error) => {
                return Err(Outcome { detail: Some(error.to_string()), ..Outcome::refused(error.reason()) });
            }
            HeadProgress::NeedMore => {}
        }
        let mut next = (&mut *stream).take(ProxyHeaderReader::least_more(&received) as u64);
        match tokio::time::timeout_at(deadline.into(), next.read_buf(&mut received)).await {
            Err(_) => return Err(Outcome::refused("proxy_header_timeout")),
            Ok(Ok(0)) if received.is_empty() => return Err(Outcome::ended(EndedBy::Downstream, "no_data")),
            Ok(Ok(0)) => return Err(Outcome::ended(EndedBy::Downstream, "closed_in_head")),
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(Outcome::ended(EndedBy::Downstream, "reset")),
        }
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
    let _unheard = tokio::time::timeout(Duration::from_secs(2), sending).await;
}
