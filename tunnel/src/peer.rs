//! One peer around its `Tunn`: endpoint and roaming, the queue while there is no session, keepalive, and the
//! changeover after an edit that needs a new `Tunn`.
//!
//! ```text
//!              packet and no session                response opens / first data
//!   Idle ─────────────────────────────► Connecting ────────────────────────────► Up
//!    ▲        start, edit, keepalive        │  ▲ initiation every 5 s, for ever    │
//!    │                                      │  └── every third unanswered one      │
//!    │                                      │      goes to the next endpoint       │
//!    └──────────── 180 s old and nothing asks for a session ◄────────────────────┘
//! ```
//!
//! A changed preshared key or private key means a new `Tunn`. The old one goes on carrying data, both ways, until
//! the new one has its session or the old one is 180 s older; only the new one handshakes.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};

use crate::batch::{Batch, Endpoint, Outer};
use crate::ecn;
use crate::engine::{Arrival, Event};
use crate::error::DropReason;
use crate::handshake::HandshakeLog;
use crate::key::{PrivateKey, PublicKey};
use crate::path::{Path, Step};
use crate::settings::PeerSettings;
use crate::stats::PeerState;

/// Packets that wait for a session; the kernel's WireGuard stages as many (MAX_STAGED_PACKETS).
const QUEUE_PACKETS: usize = 128;
/// How long a packet may wait: longer, and its sender has given up or sent again.
const QUEUE_AGE: Duration = Duration::from_secs(15);
/// How long datagrams of a replaced session may still arrive.
const STRAGGLERS: Duration = Duration::from_secs(15);
/// A session is used no longer than this (REJECT_AFTER_TIME, whitepaper §6.1).
const SESSION_LIFETIME: Duration = Duration::from_secs(180);
/// The initiator makes a new session when the old is this old (REKEY_AFTER_TIME); `Tunn` does so only on data,
/// we also when nothing but keepalives pass, so that a quiet tunnel never lacks a session.
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Heard nothing for a keepalive and this much more, we ask (`Tunn` asks only when data goes unanswered).
const SILENCE_AFTER_KEEPALIVE: Duration = Duration::from_secs(5);
/// After this many unanswered initiations (5 s apart) the next endpoint is tried.
const INITIATIONS_PER_ENDPOINT: u32 = 3;
/// After this many, while a key change is announced, the peer's other key.
const INITIATIONS_PER_KEY: u32 = 2;
/// Not before this long after the first of them: an answer may be on its way.
const PATIENCE_PER_KEY: Duration = Duration::from_secs(10);
/// After an initiation or an answer the other side has this long before we ask by ourselves (REKEY_TIMEOUT, whitepaper §6.1):
/// two that ask each other at once would never come to an end over a long way.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// `Tunn` keeps eight sessions, by an index that every initiation and every answer takes the next of. When so many were taken
/// since the last session was confirmed, that one is moved out of their way.
const INDICES_PER_TUNN: u32 = 6;
/// How long an endpoint that we left is not followed: its datagrams were on their way.
const LATE: Duration = Duration::from_secs(3);
/// Events that wait to be polled.
const EVENTS: usize = 16;
/// How long a candidate stands before another initiation may replace it.
const CANDIDATE: Duration = Duration::from_secs(5);
const INITIATION: u8 = 1;

pub(crate) struct Peer {
    pub(crate) settings: PeerSettings,
    tunn: Tunn,
    /// The key that `tunn` was made for: `public_key` or, during a change, `next_public_key`.
    active_key: PublicKey,
    /// Initiations made for that key since anything was heard by it, and when the first was.
    tries: u32,
    trying_since: Option<Instant>,
    /// Answered an initiation by the other key; takes over when data opens.
    candidate: Option<Candidate>,
    /// When we last asked or answered.
    asked: Option<Instant>,
    /// When a cookie last made us ask again.
    cookie_at: Option<Instant>,
    /// Indices of `tunn` taken since that of its confirmed session, and the newest of them.
    indices_taken: u32,
    newest_index: u32,
    /// The 24 bits that lead the session indices of `tunn`.
    index: u32,
    previous: Option<Previous>,
    session: bool,
    /// We made the session, so renewing it falls to us.
    initiator: bool,
    /// Indices of sessions that we answered and that no data has confirmed, the newest last.
    unconfirmed: [Option<u32>; 4],
    /// A session is wanted although no packet waits: start, edit, new address.
    wanted: bool,
    /// A handshake is due whatever stands: after a change of address.
    renew: bool,
    queue: VecDeque<(Instant, Vec<u8>)>,
    endpoints: Vec<Endpoint>,
    active: usize,
    endpoint: Option<Endpoint>,
    /// The address of ours that the peer last wrote to.
    source: Option<IpAddr>,
    /// The address that we left by our own verdict, and until when it is not followed.
    left: Option<(SocketAddr, Instant)>,
    /// Probes, failover and the size of the path.
    path: Path,
    /// Where a probe is written.
    echo: Vec<u8>,
    events: VecDeque<Event>,
    last_sent: Instant,
    last_received: Instant,
    pub(crate) handshakes: HandshakeLog,
    pub(crate) last_handshake: Option<Instant>,
    pub(crate) traffic: Traffic,
}

/// What claims to be the peer by its other key. A recorded initiation opens on it as well as a fresh one, so it replaces
/// nothing before data has opened.
struct Candidate {
    tunn: Tunn,
    index: u32,
    key: PublicKey,
    since: Instant,
}

/// The `Tunn` from before an edit.
struct Previous {
    tunn: Tunn,
    index: u32,
    until: Instant,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Traffic {
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_packets: u64,
    pub(crate) sent_packets: u64,
}

/// What `Tunn` made of a datagram.
pub(crate) enum Opened<'a> {
    Packet(&'a mut [u8]),
    /// Authenticated, nothing for the port: a keepalive or a handshake message.
    Quiet,
}

/// What a peer needs to know of its engine.
pub(crate) struct PeerContext<'a> {
    pub(crate) key: &'a PrivateKey,
    /// Our own addresses inside the tunnel.
    pub(crate) own: &'a [IpAddr],
    pub(crate) mtu: u32,
}

impl Peer {
    pub(crate) fn new(settings: PeerSettings, context: PeerContext<'_>, index: u32, unlimited: Arc<RateLimiter>, now: Instant) -> Self {
        let active_key = settings.public_key;
        Self {
            tunn: new_tunn(&settings, &active_key, context.key, index, unlimited),
            active_key,
            tries: 0,
            trying_since: None,
            candidate: None,
            asked: None,
            cookie_at: None,
            indices_taken: 0,
            newest_index: 0,
            left: None,
            path: Path::new(&settings, context.own, context.mtu, now),
            source: None,
            echo: Vec::new(),
            events: VecDeque::new(),
            settings,
            index,
            previous: None,
            session: false,
            initiator: false,
            unconfirmed: [None; 4],
            wanted: true,
            renew: false,
            queue: VecDeque::new(),
            endpoints: Vec::new(),
            active: 0,
            endpoint: None,
            last_sent: now,
            last_received: now,
            handshakes: HandshakeLog::default(),
            last_handshake: None,
            traffic: Traffic::default(),
        }
    }

    /// Replaces the `Tunn` after a change of a key; the old one carries data until the new one can.
    pub(crate) fn rekey(&mut self, key: &PrivateKey, index: u32, unlimited: Arc<RateLimiter>, now: Instant) {
        let tunn = new_tunn(&self.settings, &self.active_key, key, index, unlimited);
        self.replace(tunn, index, now);
        self.wanted = true;
    }

    fn replace(&mut self, tunn: Tunn, index: u32, now: Instant) {
        let tunn = std::mem::replace(&mut self.tunn, tunn);
        let old_index = std::mem::replace(&mut self.index, index);
        if self.session {
            let until = self.last_handshake.unwrap_or(now) + SESSION_LIFETIME;
            self.previous = Some(Previous { tunn, index: old_index, until });
        }
        self.session = false;
        self.initiator = false;
        self.unconfirmed = [None; 4];
        self.tries = 0;
        self.trying_since = None;
        self.candidate = None;
        self.asked = None;
        self.indices_taken = 0;
        self.newest_index = 0;
    }

    /// The ring of sessions is about to come round to the one that stands: a `rekey` has to follow.
    pub(crate) const fn is_worn(&self) -> bool {
        self.session && self.indices_taken >= INDICES_PER_TUNN
    }

    /// Takes other settings; whether they need another `Tunn`.
    pub(crate) fn edit(&mut self, settings: PeerSettings, now: Instant) -> bool {
        let known = settings.public_key == self.active_key || settings.next_public_key == Some(self.active_key);
        let rekey = !known || settings.preshared_key != self.settings.preshared_key;
        if !known {
            self.active_key = settings.public_key;
        }
        if rekey {
            self.handshakes = HandshakeLog::default();
        } else {
            self.wanted = !self.session;
        }
        // A key that is announced no more takes nothing over.
        let announced = |candidate: &Candidate| candidate.key == settings.public_key || settings.next_public_key == Some(candidate.key);
        self.candidate = self.candidate.take().filter(announced);
        self.path.edit(&settings, self.endpoints.len(), self.active_endpoint().or_else(|| self.endpoints.is_empty().then_some(0)), now);
        self.settings = settings;
        rekey
    }

    /// The key that handshakes are made for.
    pub(crate) const fn active_key(&self) -> PublicKey {
        self.active_key
    }

    /// Nobody answers by the active key, and there is another.
    pub(crate) fn wants_other_key(&self, now: Instant) -> bool {
        let patience = self.trying_since.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE_PER_KEY);
        self.settings.next_public_key.is_some() && self.tries >= INITIATIONS_PER_KEY && patience
    }

    /// From the one key to the other; a `rekey` has to follow.
    pub(crate) fn change_key(&mut self) {
        if let Some(next) = self.settings.next_public_key {
            self.active_key = if self.active_key == next { self.settings.public_key } else { next };
        }
    }

    /// The session-index prefixes that are this peer's.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> {
        let previous = self.previous.as_ref().map(|previous| previous.index);
        std::iter::once(self.index).chain(previous).chain(self.candidate.as_ref().map(|candidate| candidate.index))
    }

    /// Where the peer may be reached, in order. A roamed address stands as long as the list is the same.
    pub(crate) fn set_endpoints(&mut self, endpoints: Vec<Endpoint>, now: Instant) {
        if self.endpoints == endpoints {
            return;
        }
        if self.has_endpoints(&endpoints) {
            // Another order is another preference, and no reason to leave the one in use.
            let roamed = self.roamed();
            self.active = self.endpoint.and_then(|current| endpoints.iter().position(|endpoint| *endpoint == current)).unwrap_or(0);
            self.endpoints = endpoints;
            self.path.set_endpoints(self.endpoints.len(), (!roamed).then_some(self.active), now);
            return;
        }
        // Before there is a session there is nothing to keep: the first is to be preferred.
        let current = self.endpoint.filter(|_| self.has_session());
        let kept = current.and_then(|current| endpoints.iter().position(|endpoint| *endpoint == current));
        self.active = kept.unwrap_or(0);
        if kept.is_none() && !endpoints.is_empty() {
            self.endpoint = endpoints.first().copied();
            self.source = None;
            self.wanted = true;
            self.renew = true;
        }
        self.endpoints = endpoints;
        self.path.set_endpoints(self.endpoints.len(), Some(self.active), now);
    }

    pub(crate) const fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint
    }

    /// The configured ones, in order of preference.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    pub(crate) fn forget_source(&mut self, source: IpAddr) {
        if self.source == Some(source) {
            self.source = None;
        }
    }

    /// The largest inner packet that the peer's path takes, as far as is known, in bytes.
    pub(crate) fn largest_packet(&self) -> usize {
        self.path.largest_packet()
    }

    pub(crate) const fn path(&self) -> &Path {
        &self.path
    }

    /// Which of the endpoints is in use.
    pub(crate) fn active_endpoint(&self) -> Option<usize> {
        self.endpoints.get(self.active).filter(|active| self.endpoint == Some(**active)).map(|_| self.active)
    }

    /// Takes the answer to a probe of ours; false if `packet` is none.
    pub(crate) fn is_probe_answer(&mut self, packet: &[u8], now: Instant) -> bool {
        self.path.is_answer(packet, now)
    }

    /// When a probe is due, between the engine's ticks. The first is as soon as there is a session.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if self.path.is_behind(self.has_session()) { Some(self.last_received) } else { self.path.poll_timeout() }
    }

    /// The newest of these events is a change of endpoint.
    pub(crate) fn has_switched(&self) -> bool {
        matches!(self.events.back(), Some(Event::Switched { .. }))
    }

    /// What probes have brought about, oldest first.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) fn set_mtu(&mut self, mtu: u32, now: Instant) {
        self.path.set_mtu(mtu, now);
    }

    pub(crate) fn roamed(&self) -> bool {
        !self.endpoints.is_empty() && self.endpoint.is_some_and(|endpoint| !self.endpoints.contains(&endpoint))
    }

    pub(crate) const fn has_session(&self) -> bool {
        self.session || self.previous.is_some()
    }

    fn has_endpoints(&self, endpoints: &[Endpoint]) -> bool {
        self.endpoints.len() == endpoints.len() && endpoints.iter().all(|endpoint| self.endpoints.contains(endpoint))
    }

    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn state(&self) -> PeerState {
        if self.has_session() && !self.handshakes.is_unanswered() {
            PeerState::Up
        } else if self.endpoint.is_some() && self.wants_session() {
            PeerState::Connecting
        } else {
            PeerState::Idle
        }
    }

    /// Seals `packet`, padding included, or queues it and asks for a session.
    pub(crate) fn send(&mut self, packet: &[u8], now: Instant, batch: &mut Batch) -> Result<(), DropReason> {
        if !self.has_session() {
            if self.queue.len() >= QUEUE_PACKETS {
                return Err(DropReason::QueueFull);
            }
            self.queue.push_back((now, packet.to_vec()));
            self.initiate(false, now, batch);
            return Ok(());
        }
        self.seal(packet, now, batch)?;
        self.traffic.sent_packets += 1;
        Ok(())
    }

    /// Seals the answer to a probe: no packet of anybody's, and not padded, because it was as long as it was for a reason.
    pub(crate) fn answer_probe(&mut self, packet: &[u8], now: Instant, batch: &mut Batch) {
        if self.has_session() {
            // What finds no room is a lost answer.
            let _lost = self.seal(packet, now, batch);
        }
    }

    /// Opens a datagram that carries one of our indices, and lets the endpoint follow if it authenticates.
    pub(crate) fn receive<'a>(
        &mut self,
        datagram: &[u8],
        index: u32,
        arrival: Arrival,
        now: Instant,
        plain: &'a mut [u8],
        batch: &mut Batch,
    ) -> Result<Opened<'a>, DropReason> {
        let whose = index >> 8;
        let candidate = self.candidate.as_ref().is_some_and(|candidate| candidate.index == whose);
        let current = candidate || whose == self.index;
        let tunn = match (&mut self.candidate, &mut self.previous) {
            (Some(candidate), _) if candidate.index == whose => &mut candidate.tunn,
            (_, Some(previous)) if !current => &mut previous.tunn,
            _ => &mut self.tunn,
        };
        let opened = match tunn.decapsulate(None, datagram, plain) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => Ok(Opened::Packet(packet)),
            TunnResult::Done | TunnResult::WriteToNetwork(_) => Ok(Opened::Quiet),
            TunnResult::Err(WireGuardError::InvalidPacket) => Err(DropReason::NotIpInside),
            TunnResult::Err(error) => return Err(data_drop(&error)),
        };
        if current && (!self.session || self.unconfirmed.contains(&Some(index))) {
            // A new session is no late datagram.
            self.left = None;
        }
        self.authenticated(datagram.len(), arrival, now);
        if candidate {
            self.take_candidate(now);
        }
        if current {
            self.heard_by_key();
            if !self.session || self.unconfirmed.contains(&Some(index)) {
                // The initiator's first data confirms the session that we answered.
                // What was taken since lies between this session and its place in the ring.
                let taken = self.newest_index.wrapping_sub(index) & 0xff;
                self.confirm(false, now, batch);
                self.indices_taken = taken;
            }
        }
        opened
    }

    /// Data has opened: the peer really has its other key.
    fn take_candidate(&mut self, now: Instant) {
        if let Some(Candidate { tunn, index, key, .. }) = self.candidate.take() {
            self.active_key = key;
            self.replace(tunn, index, now);
        }
    }

    const fn heard_by_key(&mut self) {
        self.tries = 0;
        self.trying_since = None;
    }

    /// Handles a handshake initiation that is known to name this peer's active key.
    ///
    /// The answer goes to where the initiation came from; the endpoint follows only when data confirms the session, because
    /// an initiation can be replayed: to another lane, or after a restart.
    pub(crate) fn receive_initiation(
        &mut self,
        datagram: &[u8],
        arrival: Arrival,
        now: Instant,
        batch: &mut Batch,
    ) -> Result<(), DropReason> {
        let length = answer(&mut self.tunn, datagram, batch)?;
        let response = batch.space().get(4..8).and_then(|index| index.try_into().ok());
        self.unconfirmed.rotate_left(1);
        self.unconfirmed[3] = response.map(u32::from_le_bytes);
        self.newest_index = self.unconfirmed[3].unwrap_or(self.newest_index);
        self.indices_taken += 1;
        self.handshakes.answer_sent();
        // Twice in vain is enough: perhaps our answers do not arrive, and what we ask does.
        if self.handshakes.unconfirmed_answers() <= 2 {
            self.asked = Some(now);
        }
        self.answered(length, arrival, now, batch);
        Ok(())
    }

    /// The same for one that names the key that the peer is not known to use yet. If data opens on what comes of it, the peer
    /// has changed to that key.
    pub(crate) fn receive_initiation_by_other_key(
        &mut self,
        datagram: &[u8],
        arrival: Arrival,
        (key, index, unlimited): (&PrivateKey, u32, Arc<RateLimiter>),
        now: Instant,
        batch: &mut Batch,
    ) -> Result<(), DropReason> {
        let Some(next) = self.settings.next_public_key else { return Err(DropReason::UnknownKey) };
        let other = if self.active_key == next { self.settings.public_key } else { next };
        let stands = |candidate: &Candidate| candidate.key == other && now.saturating_duration_since(candidate.since) < CANDIDATE;
        let length = match &mut self.candidate {
            Some(candidate) if stands(candidate) => answer(&mut candidate.tunn, datagram, batch)?,
            _ => {
                let mut tunn = new_tunn(&self.settings, &other, key, index, unlimited);
                let length = answer(&mut tunn, datagram, batch)?;
                self.candidate = Some(Candidate { tunn, index, key: other, since: now });
                length
            }
        };
        self.answered(length, arrival, now, batch);
        Ok(())
    }

    /// Sends the answer to where the initiation came from.
    fn answered(&mut self, length: usize, arrival: Arrival, now: Instant, batch: &mut Batch) {
        let known = self.endpoints.iter().find(|endpoint| endpoint.address == arrival.from).copied();
        let active = self.endpoint.filter(|endpoint| endpoint.address == arrival.from);
        let endpoint = active.or(known).unwrap_or(Endpoint { address: arrival.from, interface: None });
        batch.commit(length, Outer { endpoint, source: source(endpoint, arrival), ecn: ecn::NOT_ECT });
        self.traffic.sent_bytes += length as u64;
        self.last_sent = now;
    }

    /// Handles the answer to an initiation of ours.
    pub(crate) fn receive_response(
        &mut self,
        datagram: &[u8],
        arrival: Arrival,
        now: Instant,
        batch: &mut Batch,
    ) -> Result<(), DropReason> {
        match self.tunn.decapsulate(None, datagram, batch.space()) {
            TunnResult::WriteToNetwork(keepalive) => {
                let length = keepalive.len();
                self.authenticated(datagram.len(), arrival, now);
                self.heard_by_key();
                if self.endpoint.is_some_and(|endpoint| endpoint.address == arrival.from) {
                    self.path.proven();
                }
                self.transmit(length, ecn::NOT_ECT, now, batch);
                self.confirm(true, now, batch);
                Ok(())
            }
            TunnResult::Err(error) => {
                if matches!(error, WireGuardError::InvalidAeadTag) {
                    self.handshakes.answer_refused();
                }
                Err(DropReason::HandshakeRefused)
            }
            TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => Err(DropReason::HandshakeRefused),
        }
    }

    /// Takes a cookie and asks again with it. The endpoint does not move: a cookie proves no key.
    pub(crate) fn receive_cookie(&mut self, datagram: &[u8], plain: &mut [u8], now: Instant, batch: &mut Batch) -> Result<(), DropReason> {
        match self.tunn.decapsulate(None, datagram, plain) {
            TunnResult::Done => {
                // Not for one that comes again when all is done, and not twice in a row: the next is left to the timer.
                let first = self.cookie_at.is_none_or(|at| now.saturating_duration_since(at) >= ASK_AGAIN);
                if self.handshakes.unanswered > 0 && first && self.initiate(true, now, batch) {
                    self.cookie_at = Some(now);
                }
                Ok(())
            }
            TunnResult::Err(_) | TunnResult::WriteToNetwork(_) | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                Err(DropReason::HandshakeRefused)
            }
        }
    }

    /// Runs the protocol's timers; returns how many queued packets grew too old.
    pub(crate) fn handle_timeout(&mut self, now: Instant, batch: &mut Batch) -> usize {
        if self.previous.as_ref().is_some_and(|previous| now >= previous.until) {
            self.previous = None;
        }
        // Its timers do not run: its session must not outlive what one may.
        let spent = |candidate: &Candidate| now.saturating_duration_since(candidate.since) >= SESSION_LIFETIME;
        self.candidate = self.candidate.take().filter(|candidate| !spent(candidate));
        if batch.has_room(crate::PADDING + 32) {
            if let TunnResult::WriteToNetwork(datagram) = self.tunn.update_timers(batch.space()) {
                let (length, kind) = (datagram.len(), datagram[0]);
                self.emit(length, kind, now, batch);
            }
            // Only data or a response confirms a session; here it can only end. (`Tunn` also counts one that we answered
            // and nobody confirmed, if it happens to lie in the slot of the current one.)
            self.session &= self.tunn.time_since_last_handshake().is_some();
        }
        let expired = self.expire_queue(now);
        let due = if self.session { self.is_stale(now) || self.is_silent(now) } else { self.wants_session() };
        if (due || self.renew) && self.initiate(self.renew, now, batch) {
            self.renew = false;
        }
        if self.session {
            self.drain_queue(now, batch);
        }
        self.probe(now, batch);
        if let Some(keepalive) = self.settings.keepalive
            && self.has_session()
            && now.saturating_duration_since(self.last_sent) >= keepalive
        {
            // A full batch only delays the keepalive to the next tick.
            let _later = self.seal(&[], now, batch);
        }
        expired
    }

    fn wants_session(&self) -> bool {
        self.wanted || self.settings.keepalive.is_some() || !self.queue.is_empty()
    }

    /// The session is due to be renewed, and renewing it falls to us.
    fn is_stale(&self, now: Instant) -> bool {
        // By our own clock: `Tunn` takes an answer that nobody confirmed for a session.
        let old = self.last_handshake.is_some_and(|at| now.saturating_duration_since(at) >= REKEY_AFTER);
        self.initiator && self.settings.keepalive.is_some() && old
    }

    /// A peer that keeps alive has not been heard for too long: a handshake tells whether it is still there.
    fn is_silent(&self, now: Instant) -> bool {
        let silence = now.saturating_duration_since(self.last_received);
        self.settings.keepalive.is_some_and(|keepalive| silence >= keepalive + SILENCE_AFTER_KEEPALIVE)
    }

    /// Sends an initiation unless one is under way, or it is the other side's turn; whether one was sent.
    fn initiate(&mut self, force: bool, now: Instant, batch: &mut Batch) -> bool {
        let lately = self.asked.is_some_and(|at| now.saturating_duration_since(at) < ASK_AGAIN);
        if (lately && !force) || self.endpoint.is_none() || !batch.has_room(148) {
            return false;
        }
        let TunnResult::WriteToNetwork(initiation) = self.tunn.format_handshake_initiation(batch.space(), force) else { return false };
        let (length, kind) = (initiation.len(), initiation[0]);
        self.emit(length, kind, now, batch);
        true
    }

    fn emit(&mut self, length: usize, kind: u8, now: Instant, batch: &mut Batch) {
        if kind == INITIATION {
            // While a session stands, probes judge the endpoint if there are any.
            let unanswered = self.handshakes.unanswered;
            let judged = self.has_session() && self.path.is_probed();
            if !judged && unanswered > 0 && unanswered.is_multiple_of(INITIATIONS_PER_ENDPOINT) {
                self.next_endpoint(now);
            }
            self.handshakes.initiation_sent(now);
            self.tries += 1;
            self.trying_since.get_or_insert(now);
            let index = batch.space().get(4..8).and_then(|index| index.try_into().ok());
            self.newest_index = index.map_or(self.newest_index, u32::from_le_bytes);
            self.indices_taken += 1;
            self.asked = Some(now);
        }
        self.transmit(length, ecn::NOT_ECT, now, batch);
    }

    /// Moves on to the next configured endpoint; from a roamed one back to the configured.
    fn next_endpoint(&mut self, now: Instant) {
        if self.endpoints.is_empty() {
            return;
        }
        if !self.roamed() {
            self.active = (self.active + 1) % self.endpoints.len();
        }
        self.go_to(self.active);
        self.path.followed(Some(self.active), now);
    }

    fn go_to(&mut self, endpoint: usize) {
        self.active = endpoint;
        self.endpoint = self.endpoints.get(endpoint).copied();
        self.source = None;
    }

    /// Does what the path wants: probes, failover, a handshake.
    pub(crate) fn probe(&mut self, now: Instant, batch: &mut Batch) {
        while batch.has_room(self.echo.len() + 32 + 148)
            && let Some(step) = self.path.next_step(self.has_session(), now)
        {
            let peer = self.settings.public_key;
            match step {
                Step::Echo { by, sequence, length } => {
                    let mut echo = std::mem::take(&mut self.echo);
                    echo.resize(echo.len().max(length), 0);
                    if self.path.write_echo(sequence, length, &mut echo).is_some() {
                        let usual = (self.endpoint, self.source);
                        if let Some(trial) = by.and_then(|by| self.endpoints.get(by).copied()) {
                            (self.endpoint, self.source) = (Some(trial), None);
                        }
                        // Each by itself: a device that judges a run as a whole must not judge a probe by its neighbour. A probe
                        // that cannot be sent is a probe that is not answered.
                        batch.end_run();
                        let _unsent = self.seal(&echo[..length], now, batch);
                        batch.end_run();
                        (self.endpoint, self.source) = usual;
                    }
                    self.echo = echo;
                }
                Step::Move { to, back } => {
                    self.left = self.endpoint.map(|endpoint| (endpoint.address, now + LATE));
                    self.go_to(to);
                    if let Some(endpoint) = self.endpoint {
                        self.report(Event::Switched { peer, to: endpoint.address, back });
                    }
                }
                Step::Ask => {
                    // With a full batch the next window asks.
                    let _asked = self.initiate(true, now, batch);
                }
                Step::Resized { from, to } => self.report(Event::Resized { peer, from, to }),
            }
        }
    }

    fn report(&mut self, event: Event) {
        if self.events.len() < EVENTS {
            self.events.push_back(event);
        }
    }

    fn seal(&mut self, packet: &[u8], now: Instant, batch: &mut Batch) -> Result<(), DropReason> {
        if self.endpoint.is_none() {
            return Err(DropReason::NoEndpoint);
        }
        if !batch.has_room(packet.len() + 32) {
            return Err(DropReason::BatchFull);
        }
        let tunn = match &mut self.previous {
            Some(previous) if !self.session => &mut previous.tunn,
            _ => &mut self.tunn,
        };
        if let TunnResult::WriteToNetwork(datagram) = tunn.encapsulate(packet, batch.space()) {
            let (length, kind) = (datagram.len(), datagram[0]);
            if kind == INITIATION {
                // The session went in this very moment; the packet waits inside `tunn`, where it would be lost.
                self.session = false;
                return Err(DropReason::NoSession);
            }
            self.transmit(length, ecn::outward(ecn::of(packet)), now, batch);
            return Ok(());
        }
        // Without a session `tunn` keeps the packet for itself, where it would be lost.
        self.session = false;
        Err(DropReason::NoSession)
    }

    fn transmit(&mut self, length: usize, ecn: u8, now: Instant, batch: &mut Batch) {
        if let Some(endpoint) = self.endpoint {
            batch.commit(length, Outer { endpoint, source: self.source, ecn });
            self.traffic.sent_bytes += length as u64;
            self.last_sent = now;
        }
    }

    fn authenticated(&mut self, length: usize, arrival: Arrival, now: Instant) {
        self.last_received = now;
        self.handshakes.heard();
        self.traffic.received_bytes += length as u64;
        if let Some(endpoint) = self.endpoint.filter(|endpoint| endpoint.address == arrival.from) {
            self.source = source(endpoint, arrival);
        } else if self.settings.roaming || self.endpoint.is_none() {
            let configured = self.endpoints.iter().position(|endpoint| endpoint.address == arrival.from);
            let late = self.left.is_some_and(|(left, until)| left == arrival.from && now < until);
            if !late && configured.is_none_or(|endpoint| self.path.may_follow(endpoint, now)) {
                self.follow(arrival);
                self.path.followed(configured, now);
            }
        }
    }

    /// The peer is where its datagram came from.
    fn follow(&mut self, arrival: Arrival) {
        let from = arrival.from;
        let configured = self.endpoints.iter().position(|endpoint| endpoint.address == from);
        self.active = configured.unwrap_or(self.active);
        self.endpoint = configured.and_then(|at| self.endpoints.get(at).copied()).or_else(|| {
            // The same host by another port is still reached by its underlay.
            let known = self.endpoints.iter().find(|endpoint| endpoint.address.ip() == from.ip());
            Some(Endpoint { address: from, interface: known.and_then(|endpoint| endpoint.interface) })
        });
        self.source = self.endpoint.and_then(|endpoint| source(endpoint, arrival));
    }

    /// A session stands: the old `Tunn` goes, the queue leaves.
    fn confirm(&mut self, initiator: bool, now: Instant, batch: &mut Batch) {
        self.session = true;
        self.initiator = initiator;
        self.unconfirmed = [None; 4];
        self.indices_taken = 0;
        self.wanted = false;
        // What the peer sealed before it heard of the new session is still on its way.
        if let Some(previous) = &mut self.previous {
            previous.until = previous.until.min(now + STRAGGLERS);
        }
        self.last_handshake = Some(now);
        self.handshakes.session_confirmed();
        self.drain_queue(now, batch);
    }

    /// Seals what waited. What does not fit into this batch stays for the next tick.
    fn drain_queue(&mut self, now: Instant, batch: &mut Batch) {
        while let Some((since, packet)) = self.queue.pop_front() {
            if self.seal(&packet, now, batch).is_err() {
                self.queue.push_front((since, packet));
                break;
            }
            self.traffic.sent_packets += 1;
        }
    }

    fn expire_queue(&mut self, now: Instant) -> usize {
        let before = self.queue.len();
        while self.queue.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) > QUEUE_AGE) {
            self.queue.pop_front();
        }
        before - self.queue.len()
    }
}

/// The address of ours to answer from: the one that was written to, unless an interface is named, which has its own.
fn source(endpoint: Endpoint, arrival: Arrival) -> Option<IpAddr> {
    arrival.to.filter(|_| endpoint.interface.is_none())
}

/// Has `tunn` answer an initiation into the batch's space; the length of the answer.
fn answer(tunn: &mut Tunn, datagram: &[u8], batch: &mut Batch) -> Result<usize, DropReason> {
    match tunn.decapsulate(None, datagram, batch.space()) {
        TunnResult::WriteToNetwork(response) => Ok(response.len()),
        TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => Err(DropReason::HandshakeReplay),
        TunnResult::Err(_) | TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
            Err(DropReason::HandshakeRefused)
        }
    }
}

fn new_tunn(settings: &PeerSettings, peer: &PublicKey, key: &PrivateKey, index: u32, unlimited: Arc<RateLimiter>) -> Tunn {
    let preshared = settings.preshared_key.as_ref().map(|key| key.bytes());
    // The keepalive is ours (it can then be edited in place); the limiter in front of all peers has counted already.
    Tunn::new(key.secret(), peer.point(), preshared, None, index, Some(unlimited))
}

const fn data_drop(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => DropReason::Replay,
        WireGuardError::InvalidAeadTag => DropReason::BadTag,
        WireGuardError::WrongIndex => DropReason::UnknownIndex,
        WireGuardError::NoCurrentSession | WireGuardError::ConnectionExpired => DropReason::NoSession,
        WireGuardError::DestinationBufferTooSmall
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::UnexpectedPacket
        | WireGuardError::WrongPacketType
        | WireGuardError::WrongKey
        | WireGuardError::InvalidTai64nTimestamp
        | WireGuardError::WrongTai64nTimestamp
        | WireGuardError::InvalidMac
        | WireGuardError::InvalidPacket
        | WireGuardError::LockFailed
        | WireGuardError::UnderLoad => DropReason::Malformed,
    }
}
