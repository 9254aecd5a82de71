//! All peers of one lane: which of them a packet or datagram is for, and what becomes of it.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use rand_core::{OsRng, RngCore};

use crate::allowed_ips::AllowedIps;
use crate::batch::{Batch, Endpoint};
use crate::error::{DropReason, Drops};
use crate::handshake::Trouble;
use crate::key::{PrivateKey, PublicKey};
use crate::packet::{self, Header};
use crate::peer::{Opened, Peer};
use crate::settings::PeerSettings;
use crate::stats::{PeerSnapshot, PeerState, Snapshot};

/// How often timers run. `Tunn` samples its clock only then, so this is the grain of all its timers.
const TICK: Duration = Duration::from_millis(100);
/// Handshake messages a second before cookies are demanded of everybody.
const HANDSHAKES_PER_SECOND: u64 = 100;
/// How often a handshake from a key that is not configured is news.
const UNKNOWN_EVERY: Duration = Duration::from_secs(10);
/// Events that wait to be polled; more are not kept (they are news, not state).
const EVENTS: usize = 256;

/// The WireGuard engine of one lane. See the crate's documentation for the order of calls.
pub struct Engine {
    key: PrivateKey,
    public: PublicKey,
    mtu: usize,
    /// In front of all peers: checks mac1 and, under load, the cookie.
    limiter: RateLimiter,
    /// Behind it: each `Tunn` would count the same message again.
    unlimited: Arc<RateLimiter>,
    /// By slot; a slot is not used again while the engine lives, so that no stale reference finds another peer.
    peers: Vec<Option<Peer>>,
    by_key: HashMap<PublicKey, usize>,
    /// The leading 24 bits of a session index, to its peer.
    by_index: HashMap<u32, usize>,
    allowed_ips: AllowedIps<usize>,
    drops: Drops,
    unknown_initiations: u64,
    last_unknown: Option<(PublicKey, SocketAddr)>,
    unknown_reported: Option<Instant>,
    events: VecDeque<Event>,
    next_tick: Instant,
}

/// What became of a datagram.
#[derive(Debug)]
pub enum Received<'a> {
    /// An inner packet for the port.
    Packet(&'a mut [u8]),
    /// Authenticated or answered; nothing for the port.
    Quiet,
    Dropped(DropReason),
}

/// News that an operator cares about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    SessionUp {
        peer: PublicKey,
        endpoint: SocketAddr,
    },
    SessionDown {
        peer: PublicKey,
    },
    EndpointMoved {
        peer: PublicKey,
        from: Option<SocketAddr>,
        to: SocketAddr,
    },
    Trouble {
        peer: PublicKey,
        trouble: Trouble,
    },
    /// A handshake from a key that is not configured. At most one in ten seconds.
    UnknownKey {
        key: PublicKey,
        from: SocketAddr,
    },
}

/// One edit of the peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerChange {
    Add(PeerSettings),
    /// Same public key, anything else may differ; a live session stays.
    Edit(PeerSettings),
    Remove(PublicKey),
    /// Where a peer is reached, its names resolved.
    Endpoints(PublicKey, Vec<Endpoint>),
}

impl Engine {
    pub fn new(key: PrivateKey, mtu: u32, now: Instant) -> Self {
        let public = key.public_key();
        Self {
            limiter: RateLimiter::new(&public.point(), HANDSHAKES_PER_SECOND),
            unlimited: Arc::new(RateLimiter::new(&public.point(), u64::MAX)),
            key,
            public,
            mtu: mtu as usize,
            peers: Vec::new(),
            by_key: HashMap::new(),
            by_index: HashMap::new(),
            allowed_ips: AllowedIps::new(),
            drops: Drops::new(),
            unknown_initiations: 0,
            last_unknown: None,
            unknown_reported: None,
            events: VecDeque::new(),
            next_tick: now,
        }
    }

    /// Carries out one edit. Edits of peers that do not exist (any more) do nothing.
    pub fn apply(&mut self, change: PeerChange, now: Instant) {
        match change {
            PeerChange::Add(settings) => self.add(settings, now),
            PeerChange::Edit(settings) => self.edit(settings, now),
            PeerChange::Remove(key) => self.remove(&key),
            PeerChange::Endpoints(key, endpoints) => {
                if let Some(peer) = self.peer_by_key(&key) {
                    peer.set_endpoints(endpoints);
                }
            }
        }
        self.next_tick = now;
    }

    /// Seals the inner packet `room[..length]` for the peer whose allowed IPs contain its destination.
    ///
    /// `room` should reach up to 15 bytes past the packet: that many are zeroed for padding while it is sealed, and
    /// put back. Without a session the packet is queued, which is no drop.
    pub fn handle_packet(&mut self, room: &mut [u8], length: usize, now: Instant, batch: &mut Batch) -> Result<(), DropReason> {
        let result = self.send(room, length, now, batch);
        if let Err(reason) = result {
            self.drops.count(reason);
        }
        result
    }

    /// Takes an outer datagram. `plain` receives what it opens to and must be at least as long as `datagram`;
    /// answers go to `batch`.
    pub fn handle_datagram<'a>(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
        plain: &'a mut [u8],
        batch: &mut Batch,
    ) -> Received<'a> {
        match self.receive(datagram, from, now, plain, batch) {
            Ok(Opened::Packet(packet)) => Received::Packet(packet),
            Ok(Opened::Quiet) => Received::Quiet,
            Err(reason) => {
                self.drops.count(reason);
                Received::Dropped(reason)
            }
        }
    }

    /// Runs timers: retransmissions, rekeys, keepalives, expiry.
    pub fn handle_timeout(&mut self, now: Instant, batch: &mut Batch) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        self.limiter.reset_count();
        for slot in 0..self.peers.len() {
            let mut expired = 0;
            self.watch(slot, |peer| expired = peer.handle_timeout(now, batch));
            for _ in 0..expired {
                self.drops.count(DropReason::QueueExpired);
            }
        }
    }

    /// The moment at which `handle_timeout` has something to do.
    pub const fn poll_timeout(&self) -> Instant {
        self.next_tick
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Largest inner packet from now on, in bytes.
    pub const fn set_mtu(&mut self, mtu: u32) {
        self.mtu = mtu as usize;
    }

    /// Counts a drop that the driver saw: the kernel refused a datagram or a packet.
    pub const fn count(&mut self, reason: DropReason) {
        self.drops.count(reason);
    }

    pub const fn public_key(&self) -> PublicKey {
        self.public
    }

    /// Everything that can be told, at `now` by both clocks.
    pub fn snapshot(&self, now: Instant, wall: SystemTime, listen_port: u16) -> Snapshot {
        Snapshot {
            public_key: self.public,
            listen_port,
            mtu: self.mtu as u32,
            peers: self.peers.iter().flatten().map(|peer| peer_snapshot(peer, now, wall)).collect(),
            drops: self.drops.clone(),
            unknown_initiations: self.unknown_initiations,
            last_unknown: self.last_unknown,
            streams: None,
        }
    }

    fn add(&mut self, settings: PeerSettings, now: Instant) {
        if self.by_key.contains_key(&settings.public_key) {
            return self.edit(settings, now);
        }
        let (slot, index) = (self.peers.len(), self.fresh_index());
        self.by_key.insert(settings.public_key, slot);
        self.by_index.insert(index, slot);
        for prefix in &settings.allowed_ips {
            self.allowed_ips.insert(*prefix, slot);
        }
        self.peers.push(Some(Peer::new(settings, &self.key, index, Arc::clone(&self.unlimited), now)));
    }

    fn edit(&mut self, settings: PeerSettings, now: Instant) {
        let Some(&slot) = self.by_key.get(&settings.public_key) else { return };
        let index = self.fresh_index();
        let Some(peer) = self.peers.get_mut(slot).and_then(Option::as_mut) else { return };
        for prefix in &peer.settings.allowed_ips {
            if !settings.allowed_ips.contains(prefix) {
                self.allowed_ips.remove(*prefix, slot);
            }
        }
        for prefix in &settings.allowed_ips {
            self.allowed_ips.insert(*prefix, slot);
        }
        if peer.settings.preshared_key == settings.preshared_key {
            peer.settings = settings;
            peer.want_session();
        } else {
            peer.rekey(settings, &self.key, index, Arc::clone(&self.unlimited), now);
            self.by_index.insert(index, slot);
        }
    }

    fn remove(&mut self, key: &PublicKey) {
        let Some(slot) = self.by_key.remove(key) else { return };
        if let Some(peer) = self.peers.get_mut(slot).and_then(Option::take) {
            for prefix in &peer.settings.allowed_ips {
                self.allowed_ips.remove(*prefix, slot);
            }
        }
        self.by_index.retain(|_, owner| *owner != slot);
    }

    fn send(&mut self, room: &mut [u8], length: usize, now: Instant, batch: &mut Batch) -> Result<(), DropReason> {
        let header = room.get(..length).and_then(Header::parse).ok_or(DropReason::NotIp)?;
        if header.length > self.mtu {
            return Err(DropReason::TooBig);
        }
        let nobody = if header.destination.is_multicast() { DropReason::Multicast } else { DropReason::NoPeer };
        let slot = self.allowed_ips.lookup(header.destination).ok_or(nobody)?;
        let peer = self.peers.get_mut(slot).and_then(Option::as_mut).ok_or(DropReason::NoPeer)?;
        let padded = packet::padded_length(header.length, self.mtu).min(room.len());
        let padding = padded - header.length;
        let mut behind = [0u8; packet::PADDING];
        behind[..padding].copy_from_slice(&room[header.length..padded]);
        room[header.length..padded].fill(0);
        let sent = peer.send(&room[..padded], now, batch);
        room[header.length..padded].copy_from_slice(&behind[..padding]);
        sent
    }

    fn receive<'a>(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
        plain: &'a mut [u8],
        batch: &mut Batch,
    ) -> Result<Opened<'a>, DropReason> {
        let mut cookie = [0u8; 64];
        let message = match self.limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(message) => message,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                let length = cookie.len();
                if batch.has_room(length) {
                    batch.space()[..length].copy_from_slice(cookie);
                    batch.commit(length, Endpoint { address: from, interface: None });
                }
                return Err(DropReason::UnderLoad);
            }
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => {
                self.addressed_to_other_key(from);
                return Err(DropReason::BadMac1);
            }
            Err(_) => return Err(DropReason::Malformed),
        };
        if plain.len() < datagram.len() || !batch.has_room(datagram.len()) {
            return Err(DropReason::BatchFull);
        }
        match message {
            Packet::HandshakeInit(initiation) => {
                let half = parse_handshake_anon(&self.key.secret(), &self.public.point(), &initiation)
                    .map_err(|_| DropReason::HandshakeRefused)?;
                let key = PublicKey::from_bytes(half.peer_static_public);
                let Some(&slot) = self.by_key.get(&key) else {
                    self.unknown_key(key, from, now);
                    return Err(DropReason::UnknownKey);
                };
                self.watch(slot, |peer| peer.receive_initiation(datagram, from, now, batch)).unwrap_or(Err(DropReason::UnknownKey))?;
                Ok(Opened::Quiet)
            }
            Packet::HandshakeResponse(response) => {
                let slot = self.slot(response.receiver_idx)?;
                self.watch(slot, |peer| peer.receive_response(datagram, from, now, batch)).unwrap_or(Err(DropReason::UnknownIndex))?;
                Ok(Opened::Quiet)
            }
            Packet::PacketCookieReply(reply) => {
                let slot = self.slot(reply.receiver_idx)?;
                self.watch(slot, |peer| peer.receive_cookie(datagram, plain)).unwrap_or(Err(DropReason::UnknownIndex))?;
                Ok(Opened::Quiet)
            }
            Packet::PacketData(data) => {
                let index = data.receiver_idx;
                let slot = self.slot(index)?;
                let opened = self
                    .watch(slot, |peer| peer.receive(datagram, index, from, now, plain, batch))
                    .unwrap_or(Err(DropReason::UnknownIndex))?;
                if let Opened::Packet(packet) = &opened {
                    let header = Header::parse(packet).ok_or(DropReason::NotIpInside)?;
                    if self.allowed_ips.lookup(header.source) != Some(slot) {
                        return Err(DropReason::SourceNotAllowed);
                    }
                    if let Some(peer) = self.peers.get_mut(slot).and_then(Option::as_mut) {
                        peer.traffic.received_packets += 1;
                    }
                }
                Ok(opened)
            }
        }
    }

    /// Lets `act` on a peer and reports what changed by it.
    fn watch<T>(&mut self, slot: usize, act: impl FnOnce(&mut Peer) -> T) -> Option<T> {
        let peer = self.peers.get_mut(slot)?.as_mut()?;
        let before =
            (peer.state() == PeerState::Up, peer.endpoint(), peer.handshakes.trouble().map(|trouble| std::mem::discriminant(&trouble)));
        let result = act(peer);
        let trouble = peer.handshakes.trouble();
        let after = (peer.state() == PeerState::Up, peer.endpoint(), trouble.map(|trouble| std::mem::discriminant(&trouble)));
        if before == after {
            return Some(result);
        }
        let key = peer.settings.public_key;
        for index in peer.indices() {
            self.by_index.insert(index, slot);
        }
        if before.1 != after.1
            && let Some(to) = after.1
        {
            self.report(Event::EndpointMoved { peer: key, from: before.1.map(|endpoint| endpoint.address), to: to.address });
        }
        match (before.0, after.0, after.1) {
            (false, true, Some(endpoint)) => self.report(Event::SessionUp { peer: key, endpoint: endpoint.address }),
            (true, false, _) => self.report(Event::SessionDown { peer: key }),
            _ => {}
        }
        if before.2 != after.2
            && let Some(trouble) = trouble
        {
            self.report(Event::Trouble { peer: key, trouble });
        }
        Some(result)
    }

    fn report(&mut self, event: Event) {
        if self.events.len() < EVENTS {
            self.events.push_back(event);
        }
    }

    fn unknown_key(&mut self, key: PublicKey, from: SocketAddr, now: Instant) {
        self.unknown_initiations += 1;
        // Anybody who knows our public key can make these: a line once in a while is enough.
        if self.unknown_reported.is_none_or(|at| now.saturating_duration_since(at) >= UNKNOWN_EVERY) {
            self.unknown_reported = Some(now);
            self.report(Event::UnknownKey { key, from });
        }
        self.last_unknown = Some((key, from));
    }

    /// A handshake for another key than ours, if it comes from where a peer is, is that peer's trouble.
    fn addressed_to_other_key(&mut self, from: SocketAddr) {
        let slot =
            self.peers.iter().position(|peer| peer.as_ref().and_then(Peer::endpoint).is_some_and(|endpoint| endpoint.address == from));
        if let Some(slot) = slot {
            self.watch(slot, |peer| {
                if peer.state() != PeerState::Up {
                    peer.handshakes.addressed_to_other_key();
                }
            });
        }
    }

    fn slot(&self, index: u32) -> Result<usize, DropReason> {
        self.by_index.get(&(index >> 8)).copied().ok_or(DropReason::UnknownIndex)
    }

    fn peer_by_key(&mut self, key: &PublicKey) -> Option<&mut Peer> {
        let slot = *self.by_key.get(key)?;
        self.peers.get_mut(slot)?.as_mut()
    }

    /// 24 random bits that no session of ours leads with.
    fn fresh_index(&self) -> u32 {
        loop {
            let index = OsRng.next_u32() >> 8;
            if !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }
}

fn peer_snapshot(peer: &Peer, now: Instant, wall: SystemTime) -> PeerSnapshot {
    let state = peer.state();
    PeerSnapshot {
        name: peer.settings.name.clone(),
        public_key: peer.settings.public_key,
        has_preshared_key: peer.settings.preshared_key.is_some(),
        endpoint: peer.endpoint().map(|endpoint| endpoint.address),
        roamed: peer.roamed(),
        allowed_ips: peer.settings.allowed_ips.clone(),
        keepalive_secs: peer.settings.keepalive.map(|keepalive| keepalive.as_secs()),
        state,
        trouble: peer.handshakes.trouble(),
        last_handshake: peer.last_handshake.and_then(|at| wall.checked_sub(now.saturating_duration_since(at))),
        received_bytes: peer.traffic.received_bytes,
        sent_bytes: peer.traffic.sent_bytes,
        received_packets: peer.traffic.received_packets,
        sent_packets: peer.traffic.sent_packets,
        queued_packets: peer.queued(),
    }
}

#[cfg(test)]
mod tests;
