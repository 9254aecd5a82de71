//! All peers of one lane: which of them a packet or datagram is for, and what becomes of it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use ipnet::IpNet;
use rand_core::{OsRng, RngCore};

use crate::allowed_ips::AllowedIps;
use crate::batch::{Batch, Endpoint, Outer};
use crate::error::{DropReason, Drops};
use crate::fragment::Fragments;
use crate::gate::{Admission, Gate};
use crate::handshake::Trouble;
use crate::key::{PrivateKey, PublicKey};
use crate::packet::{self, Header};
use crate::peer::{Opened, Peer, PeerContext};
use crate::settings::PeerSettings;
use crate::stats::{LaneSnapshot, PeerSnapshot, PeerState, Snapshot};
use crate::{ecn, mss, probe, too_big};

/// How often timers run. `Tunn` samples its clock only then, so this is the grain of all its timers.
const TICK: Duration = Duration::from_millis(100);
/// Handshake messages a second before cookies are demanded of everybody.
const HANDSHAKES_PER_SECOND: u64 = 100;
/// How often a handshake from a key that is not configured is news.
const UNKNOWN_EVERY: Duration = Duration::from_secs(10);
/// A handshake from an unknown key is recent for so long.
const RECENTLY: Duration = Duration::from_secs(60);
/// Events that wait to be polled; more are not kept (they are news, not state).
const EVENTS: usize = 256;

/// What is fixed when an engine is made, or changes for all peers at once.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    pub key: PrivateKey,
    /// Our own inside the tunnel.
    pub addresses: Vec<IpNet>,
    /// Largest inner packet in bytes.
    pub mtu: u32,
}

/// What is known of a datagram beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    pub from: SocketAddr,
    /// The address of ours that it came to, if the socket is bound to none.
    pub to: Option<IpAddr>,
    /// The two ECN bits of the outer header.
    pub ecn: u8,
}

impl From<SocketAddr> for Arrival {
    fn from(from: SocketAddr) -> Self {
        Self { from, to: None, ecn: 0 }
    }
}

/// The WireGuard engine of one lane. See the crate's documentation for the order of calls.
pub struct Engine {
    key: PrivateKey,
    public: PublicKey,
    addresses: Vec<IpNet>,
    mtu: usize,
    /// In front of everything that costs: how often a sender may ask.
    gate: Gate,
    /// Says whether there is load: more handshakes of strangers in a second than are answered unasked.
    limiter: RateLimiter,
    /// Gives cookies and checks them.
    strict: RateLimiter,
    /// Checks mac1; and behind it each `Tunn` would count the same message again.
    unlimited: Arc<RateLimiter>,
    /// By slot; a slot is not used again while the engine lives, so that no stale reference finds another peer.
    peers: Vec<Option<Peer>>,
    by_key: HashMap<PublicKey, usize>,
    /// The leading 24 bits of a session index, to its peer.
    by_index: HashMap<u32, usize>,
    allowed_ips: AllowedIps<usize>,
    /// The last answers of `allowed_ips`, outward and inward: flows repeat.
    recent: [Option<(IpAddr, usize)>; 2],
    /// Where a fragment is made.
    fragment: Vec<u8>,
    answers: too_big::Budget,
    drops: Drops,
    unknown_initiations: u64,
    last_unknown: Option<(PublicKey, SocketAddr)>,
    last_unknown_at: Option<Instant>,
    last_misaddressed: Option<SocketAddr>,
    unknown_reported: Option<Instant>,
    events: VecDeque<Event>,
    next_tick: Instant,
    /// The next tick, or a probe before it.
    next_due: Instant,
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
    /// Probes say that the endpoint in use is dead, or (`back`) that a better one works again.
    Switched {
        peer: PublicKey,
        to: SocketAddr,
        back: bool,
    },
    /// The path to a peer takes packets of another size, in bytes.
    Resized {
        peer: PublicKey,
        from: u32,
        to: u32,
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
    pub fn new(settings: EngineSettings, now: Instant) -> Self {
        let EngineSettings { key, addresses, mtu } = settings;
        let public = key.public_key();
        Self {
            gate: Gate::new(),
            limiter: RateLimiter::new(&public.point(), HANDSHAKES_PER_SECOND),
            strict: RateLimiter::new(&public.point(), 0),
            unlimited: Arc::new(RateLimiter::new(&public.point(), u64::MAX)),
            key,
            public,
            addresses,
            mtu: mtu as usize,
            peers: Vec::new(),
            by_key: HashMap::new(),
            by_index: HashMap::new(),
            allowed_ips: AllowedIps::new(),
            recent: [None; 2],
            fragment: Vec::new(),
            answers: too_big::Budget::new(now),
            drops: Drops::new(),
            unknown_initiations: 0,
            last_unknown: None,
            last_unknown_at: None,
            last_misaddressed: None,
            unknown_reported: None,
            events: VecDeque::new(),
            next_tick: now,
            next_due: now,
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
                    peer.set_endpoints(endpoints, now);
                }
            }
        }
        self.recent = [None; 2];
        let endpoints = self.peers.iter().flatten().flat_map(Peer::endpoints);
        self.gate.set_configured(endpoints.map(|endpoint| endpoint.address.ip()));
        (self.next_tick, self.next_due) = (now, now);
    }

    /// Takes another private key. What stands goes on until each peer has a session by the new one.
    pub fn set_private_key(&mut self, key: PrivateKey, now: Instant) {
        if key == self.key {
            return;
        }
        self.public = key.public_key();
        self.key = key;
        self.limiter = RateLimiter::new(&self.public.point(), HANDSHAKES_PER_SECOND);
        self.strict = RateLimiter::new(&self.public.point(), 0);
        self.unlimited = Arc::new(RateLimiter::new(&self.public.point(), u64::MAX));
        for slot in 0..self.peers.len() {
            let (index, unlimited) = (self.fresh_index(), Arc::clone(&self.unlimited));
            let Some(peer) = self.peers.get_mut(slot).and_then(Option::as_mut) else { continue };
            peer.rekey(&self.key, index, unlimited, now);
            self.reindex(slot);
        }
        (self.next_tick, self.next_due) = (now, now);
    }

    /// Seals the inner packet `room[..length]` for the peer whose allowed IPs contain its destination.
    ///
    /// `room` should reach up to 15 bytes past the packet: that many are zeroed for padding while it is sealed, and
    /// put back. Without a session the packet is queued, which is no drop. One that does not fit the peer's path is
    /// fragmented if it may be, else dropped; [`Self::answer_too_big`] then says what to tell its sender.
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
        arrival: impl Into<Arrival>,
        now: Instant,
        plain: &'a mut [u8],
        batch: &mut Batch,
    ) -> Received<'a> {
        match self.receive(datagram, arrival.into(), now, plain, batch) {
            Ok(Opened::Packet(packet)) => Received::Packet(packet),
            Ok(Opened::Quiet) => Received::Quiet,
            Err(reason) => {
                self.drops.count(reason);
                Received::Dropped(reason)
            }
        }
    }

    /// Runs timers: retransmissions, rekeys, keepalives, expiry, probes.
    pub fn handle_timeout(&mut self, now: Instant, batch: &mut Batch) {
        if now < self.next_due {
            return;
        }
        let tick = now >= self.next_tick;
        if tick {
            self.next_tick = now + TICK;
            self.limiter.reset_count();
        }
        for slot in 0..self.peers.len() {
            // Between ticks only probes are due, and not every peer's.
            let due = self.peers.get(slot).and_then(Option::as_ref).and_then(Peer::poll_timeout).is_some_and(|due| due <= now);
            if !tick && !due {
                continue;
            }
            if tick {
                self.refresh(slot, now);
            }
            let mut expired = 0;
            self.watch(slot, |peer| if tick { expired = peer.handle_timeout(now, batch) } else { peer.probe(now, batch) });
            for _ in 0..expired {
                self.drops.count(DropReason::QueueExpired);
            }
            while let Some(event) = self.peers.get_mut(slot).and_then(Option::as_mut).and_then(Peer::poll_event) {
                self.report(event);
            }
        }
        // What was due has been done; what found no room waits for the tick.
        let due = self.peers.iter().flatten().filter_map(Peer::poll_timeout).filter(|due| *due > now);
        self.next_due = due.fold(self.next_tick, Instant::min);
    }

    /// Gives a peer a new `Tunn` where it needs one: the old is worn, or was made for a key that nobody answers by.
    fn refresh(&mut self, slot: usize, now: Instant) {
        let Some(peer) = self.peers.get(slot).and_then(Option::as_ref) else { return };
        let (worn, other_key) = (peer.is_worn(), peer.wants_other_key(now));
        if !worn && !other_key {
            return;
        }
        let (index, unlimited) = (self.fresh_index(), Arc::clone(&self.unlimited));
        let Some(peer) = self.peers.get_mut(slot).and_then(Option::as_mut) else { return };
        if other_key {
            peer.change_key();
        }
        peer.rekey(&self.key, index, unlimited, now);
        self.reindex(slot);
    }

    /// The moment at which `handle_timeout` has something to do.
    pub const fn poll_timeout(&self) -> Instant {
        self.next_due
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Largest inner packet from now on, in bytes.
    pub fn set_mtu(&mut self, mtu: u32, now: Instant) {
        self.mtu = mtu as usize;
        for peer in self.peers.iter_mut().flatten() {
            peer.set_mtu(mtu, now);
        }
    }

    /// Writes into `room` what the sender of a packet that was dropped as too big is to be told, as an inner packet for
    /// the port, and returns its length. None if it is to be told nothing.
    pub fn answer_too_big(&mut self, packet: &[u8], now: Instant, room: &mut [u8]) -> Option<usize> {
        let header = Header::parse(packet)?;
        let slot = self.allowed_ips.lookup(header.destination)?;
        let largest = largest_of(&header, self.peers.get(slot)?.as_ref()?.largest_packet()).min(self.mtu);
        too_big::answer(packet, largest as u32, room).filter(|_| self.answers.take(now))
    }

    /// The largest inner packet that every peer's path takes, as far as is known, in bytes.
    pub fn smallest_path(&self) -> u32 {
        let paths = self.peers.iter().flatten().map(Peer::largest_packet);
        paths.fold(self.mtu, usize::min) as u32
    }

    /// `source` is no address of this host any more: peers are answered from another.
    pub fn forget_source(&mut self, source: IpAddr) {
        for peer in self.peers.iter_mut().flatten() {
            peer.forget_source(source);
        }
    }

    /// Counts a drop that the driver saw: the kernel refused a datagram or a packet.
    pub const fn count(&mut self, reason: DropReason) {
        self.drops.count(reason);
    }

    pub const fn public_key(&self) -> PublicKey {
        self.public
    }

    /// Everything that can be told, at `now` by both clocks.
    pub fn snapshot(&self, now: Instant, wall: SystemTime, mut lane: LaneSnapshot) -> Snapshot {
        lane.sent_packets = self.peers.iter().flatten().map(|peer| peer.traffic.sent_packets).sum();
        lane.received_packets = self.peers.iter().flatten().map(|peer| peer.traffic.received_packets).sum();
        let peers: Vec<PeerSnapshot> = self.peers.iter().flatten().map(|peer| peer_snapshot(peer, now, wall)).collect();
        lane.standby_peers = peers.iter().filter(|peer| peer.active_endpoint.is_some_and(|active| active > 0)).count();
        Snapshot {
            public_key: self.public,
            listen_port: lane.port,
            lanes: vec![lane],
            mtu: self.mtu as u32,
            peers,
            drops: self.drops.clone(),
            unknown_initiations: self.unknown_initiations,
            last_unknown: self.last_unknown,
            unknown_recently: self.last_unknown_at.is_some_and(|at| now.saturating_duration_since(at) < RECENTLY),
            last_misaddressed: self.last_misaddressed,
            streams: None,
        }
    }

    fn add(&mut self, settings: PeerSettings, now: Instant) {
        // Its own key, that is: the same key may be announced as another's next, whose it then is no more.
        if self.slot_of(&settings.public_key).is_some() {
            return self.edit(settings, now);
        }
        // A place that a removed peer left is taken again: whoever comes and goes for years must not leave a trace each time.
        let slot = self.peers.iter().position(Option::is_none).unwrap_or(self.peers.len());
        let index = self.fresh_index();
        for key in std::iter::once(settings.public_key).chain(settings.next_public_key) {
            self.by_key.insert(key, slot);
        }
        self.by_index.insert(index, slot);
        for prefix in settings.allowed_ips.iter() {
            self.allowed_ips.insert(*prefix, slot);
        }
        let own: Vec<IpAddr> = self.addresses.iter().map(IpNet::addr).collect();
        let context = PeerContext { key: &self.key, own: &own, mtu: self.mtu as u32 };
        let peer = Some(Peer::new(settings, context, index, Arc::clone(&self.unlimited), now));
        match self.peers.get_mut(slot) {
            Some(place) => *place = peer,
            None => self.peers.push(peer),
        }
    }

    fn edit(&mut self, settings: PeerSettings, now: Instant) {
        // A peer that has changed to its next key is still the same peer.
        let Some(&slot) = self.by_key.get(&settings.public_key) else { return };
        let index = self.fresh_index();
        let Some(peer) = self.peers.get_mut(slot).and_then(Option::as_mut) else { return };
        if !Arc::ptr_eq(&peer.settings.allowed_ips, &settings.allowed_ips) {
            let kept: HashSet<IpNet> = settings.allowed_ips.iter().copied().collect();
            for prefix in peer.settings.allowed_ips.iter().filter(|prefix| !kept.contains(prefix)) {
                self.allowed_ips.remove(*prefix, slot);
            }
        }
        for prefix in settings.allowed_ips.iter() {
            self.allowed_ips.insert(*prefix, slot);
        }
        self.by_key.retain(|_, owner| *owner != slot);
        for key in std::iter::once(settings.public_key).chain(settings.next_public_key) {
            self.by_key.insert(key, slot);
        }
        if peer.edit(settings, now) {
            peer.rekey(&self.key, index, Arc::clone(&self.unlimited), now);
            self.reindex(slot);
        }
    }

    fn remove(&mut self, key: &PublicKey) {
        let Some(slot) = self.slot_of(key) else { return };
        self.by_key.retain(|_, owner| *owner != slot);
        if let Some(peer) = self.peers.get_mut(slot).and_then(Option::take) {
            for prefix in peer.settings.allowed_ips.iter() {
                self.allowed_ips.remove(*prefix, slot);
            }
        }
        self.by_index.retain(|_, owner| *owner != slot);
    }

    fn send(&mut self, room: &mut [u8], length: usize, now: Instant, batch: &mut Batch) -> Result<(), DropReason> {
        let header = room.get(..length).and_then(Header::parse).ok_or(DropReason::NotIp)?;
        let slot = self.owner(header.destination, OUTWARD).ok_or_else(|| nobody(header.destination))?;
        let peer = self.peers.get_mut(slot).and_then(Option::as_mut).ok_or(DropReason::NoPeer)?;
        let largest = peer.largest_packet().min(self.mtu);
        mss::clamp(&mut room[..header.length], largest);
        let largest = largest_of(&header, largest).min(self.mtu);
        if header.length <= largest {
            return seal(peer, room, header.length, largest, now, batch);
        }
        let mut fragments = Fragments::new(&room[..header.length], largest).ok_or(DropReason::TooBig)?;
        self.fragment.resize(largest + packet::PADDING, 0);
        while let Some(length) = fragments.next(&mut self.fragment) {
            seal(peer, &mut self.fragment, length, largest, now, batch)?;
        }
        Ok(())
    }

    fn receive<'a>(
        &mut self,
        datagram: &[u8],
        arrival: Arrival,
        now: Instant,
        plain: &'a mut [u8],
        batch: &mut Batch,
    ) -> Result<Opened<'a>, DropReason> {
        match datagram.first() {
            Some(&DATA) => {}
            Some(&INITIATION) => return self.receive_initiation(datagram, arrival, now, batch).map(|()| Opened::Quiet),
            _ => return self.receive_answer(datagram, arrival, now, plain, batch).map(|()| Opened::Quiet),
        }
        let Ok(Packet::PacketData(data)) = Tunn::parse_incoming_packet(datagram) else { return Err(DropReason::Malformed) };
        let index = data.receiver_idx;
        let slot = self.slot(index)?;
        if plain.len() < datagram.len() || !batch.has_room(datagram.len()) {
            return Err(DropReason::BatchFull);
        }
        let opened =
            self.watch(slot, |peer| peer.receive(datagram, index, arrival, now, plain, batch)).unwrap_or(Err(DropReason::UnknownIndex))?;
        let Opened::Packet(packet) = opened else { return Ok(opened) };
        let header = Header::parse(packet).ok_or(DropReason::NotIpInside)?;
        if self.owner(header.source, INWARD) != Some(slot) {
            return Err(DropReason::SourceNotAllowed);
        }
        let peer = self.peers.get_mut(slot).and_then(Option::as_mut).ok_or(DropReason::UnknownIndex)?;
        if peer.is_probe_answer(packet, now) {
            return Ok(Opened::Quiet);
        }
        if probe::answer(packet, &self.addresses) {
            peer.answer_probe(packet, now, batch);
            return Ok(Opened::Quiet);
        }
        peer.traffic.received_packets += 1;
        if !ecn::inward(packet, arrival.ecn) {
            return Err(DropReason::Congested);
        }
        mss::clamp(packet, peer.largest_packet().min(self.mtu));
        Ok(Opened::Packet(packet))
    }

    fn receive_initiation(&mut self, datagram: &[u8], arrival: Arrival, now: Instant, batch: &mut Batch) -> Result<(), DropReason> {
        let from = arrival.from;
        let mut cookie = [0u8; 64];
        // First that it is made for us, so that nobody who does not even know our key empties a peer's bucket.
        let initiation = match self.unlimited.verify_packet(None, datagram, &mut cookie) {
            Ok(Packet::HandshakeInit(initiation)) => initiation,
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => {
                self.addressed_to_other_key(from);
                return Err(DropReason::BadMac1);
            }
            Ok(Packet::HandshakeResponse(_) | Packet::PacketCookieReply(_) | Packet::PacketData(_)) | Err(_) => {
                return Err(DropReason::Malformed);
            }
        };
        let admission = self.gate.admit(from.ip(), now);
        let loaded = match admission {
            Admission::Trusted => false,
            // Without an address it only says whether there is load: all cookies are of one secret.
            Admission::Stranger => self.limiter.verify_packet(None, datagram, &mut cookie).is_err(),
            Admission::TooMany => true,
        };
        if loaded && let Err(TunnResult::WriteToNetwork(cookie)) = self.strict.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            let length = cookie.len();
            if batch.has_room(length) {
                batch.space()[..length].copy_from_slice(cookie);
                batch.commit(length, Outer { endpoint: Endpoint { address: from, interface: None }, source: arrival.to, ecn: 0 });
            }
            return Err(DropReason::UnderLoad);
        }
        if admission == Admission::TooMany && !self.gate.admit_proven(from.ip(), now) {
            return Err(DropReason::TooManyHandshakes);
        }
        if !batch.has_room(datagram.len()) {
            return Err(DropReason::BatchFull);
        }
        let half = parse_handshake_anon(&self.key.secret(), &self.public.point(), &initiation).map_err(|_| DropReason::HandshakeRefused)?;
        let key = PublicKey::from_bytes(half.peer_static_public);
        let Some(&slot) = self.by_key.get(&key) else {
            self.unknown_key(key, from, now);
            return Err(DropReason::UnknownKey);
        };
        self.refresh(slot, now);
        let other_key = self.peers.get(slot).and_then(Option::as_ref).is_some_and(|peer| peer.active_key() != key);
        if other_key {
            return self.receive_from_other_key(slot, datagram, arrival, now, batch);
        }
        self.watch(slot, |peer| peer.receive_initiation(datagram, arrival, now, batch)).unwrap_or(Err(DropReason::UnknownKey))
    }

    /// The peer has changed its key, or says so: only if what it sent opens is that believed.
    fn receive_from_other_key(
        &mut self,
        slot: usize,
        datagram: &[u8],
        arrival: Arrival,
        now: Instant,
        batch: &mut Batch,
    ) -> Result<(), DropReason> {
        let (index, unlimited) = (self.fresh_index(), Arc::clone(&self.unlimited));
        let key = self.key.clone();
        let answered =
            self.watch(slot, |peer| peer.receive_initiation_by_other_key(datagram, arrival, (&key, index, unlimited), now, batch));
        let answered = answered.unwrap_or(Err(DropReason::UnknownKey));
        if answered.is_ok() {
            self.reindex(slot);
        }
        answered
    }

    /// A response or a cookie. Both name a handshake of ours; whatever names none costs nothing.
    fn receive_answer(
        &mut self,
        datagram: &[u8],
        arrival: Arrival,
        now: Instant,
        plain: &mut [u8],
        batch: &mut Batch,
    ) -> Result<(), DropReason> {
        if plain.len() < datagram.len() || !batch.has_room(datagram.len()) {
            return Err(DropReason::BatchFull);
        }
        match Tunn::parse_incoming_packet(datagram) {
            Ok(Packet::HandshakeResponse(response)) => {
                let slot = self.slot(response.receiver_idx)?;
                let mut unused = [0u8; 64];
                match self.unlimited.verify_packet(Some(arrival.from.ip()), datagram, &mut unused) {
                    Ok(_) => {}
                    Err(TunnResult::Err(WireGuardError::InvalidMac)) => return Err(DropReason::BadMac1),
                    Err(_) => return Err(DropReason::Malformed),
                }
                self.watch(slot, |peer| peer.receive_response(datagram, arrival, now, batch)).unwrap_or(Err(DropReason::UnknownIndex))
            }
            Ok(Packet::PacketCookieReply(reply)) => {
                let slot = self.slot(reply.receiver_idx)?;
                self.watch(slot, |peer| peer.receive_cookie(datagram, plain, now, batch)).unwrap_or(Err(DropReason::UnknownIndex))
            }
            Ok(Packet::HandshakeInit(_) | Packet::PacketData(_)) | Err(_) => Err(DropReason::Malformed),
        }
    }

    /// The peer whose allowed IPs contain `address`.
    fn owner(&mut self, address: IpAddr, direction: usize) -> Option<usize> {
        let recent = self.recent.get_mut(direction)?;
        match recent {
            Some((known, slot)) if *known == address => Some(*slot),
            _ => {
                let slot = self.allowed_ips.lookup(address)?;
                *recent = Some((address, slot));
                Some(slot)
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
        if let Some(due) = peer.poll_timeout() {
            self.next_due = self.next_due.min(due);
        }
        // A switch by the probes' verdict is told as such.
        if before.1 != after.1
            && !peer.has_switched()
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

    /// After a change of a peer's `Tunn`: its indices, and no others, lead to it.
    fn reindex(&mut self, slot: usize) {
        self.by_index.retain(|_, owner| *owner != slot);
        if let Some(peer) = self.peers.get(slot).and_then(Option::as_ref) {
            self.by_index.extend(peer.indices().map(|index| (index, slot)));
        }
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
        self.last_unknown_at = Some(now);
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
        } else {
            self.last_misaddressed = Some(from);
        }
    }

    fn slot(&self, index: u32) -> Result<usize, DropReason> {
        self.by_index.get(&(index >> 8)).copied().ok_or(DropReason::UnknownIndex)
    }

    /// The peer whose own key that is, and not merely its next.
    fn slot_of(&self, key: &PublicKey) -> Option<usize> {
        self.peers.iter().position(|peer| peer.as_ref().is_some_and(|peer| peer.settings.public_key == *key))
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

const OUTWARD: usize = 0;
const INWARD: usize = 1;
/// The first byte of a message (whitepaper §5.4.2 and §5.4.6).
const INITIATION: u8 = 1;
const DATA: u8 = 4;

/// Why a packet for `destination` has no peer.
const fn nobody(destination: IpAddr) -> DropReason {
    if destination.is_multicast() { DropReason::Multicast } else { DropReason::NoPeer }
}

/// What a packet of this IP version may be told to be at most: every link carries IPv6 packets of 1280 bytes (RFC 8200 §5).
/// A path that does not is worked around for TCP, by its MSS.
fn largest_of(header: &Header, largest: usize) -> usize {
    if header.source.is_ipv6() { largest.max(1280) } else { largest }
}

/// Seals `room[..length]` padded; the bytes behind it are zeroed meanwhile, and put back.
fn seal(peer: &mut Peer, room: &mut [u8], length: usize, largest: usize, now: Instant, batch: &mut Batch) -> Result<(), DropReason> {
    let padded = packet::padded_length(length, largest).min(room.len());
    let padding = padded - length;
    let mut behind = [0u8; packet::PADDING];
    behind[..padding].copy_from_slice(&room[length..padded]);
    room[length..padded].fill(0);
    let sent = peer.send(&room[..padded], now, batch);
    room[length..padded].copy_from_slice(&behind[..padding]);
    sent
}

fn peer_snapshot(peer: &Peer, now: Instant, wall: SystemTime) -> PeerSnapshot {
    let state = peer.state();
    PeerSnapshot {
        name: peer.settings.name.clone(),
        public_key: peer.settings.public_key,
        has_preshared_key: peer.settings.preshared_key.is_some(),
        endpoint: peer.endpoint().map(|endpoint| endpoint.address),
        roamed: peer.roamed(),
        allowed_ips: Arc::clone(&peer.settings.allowed_ips),
        keepalive_secs: peer.settings.keepalive.map(|keepalive| keepalive.as_secs()),
        state,
        trouble: peer.handshakes.trouble(),
        last_handshake: peer.last_handshake.and_then(|at| wall.checked_sub(now.saturating_duration_since(at))),
        received_bytes: peer.traffic.received_bytes,
        sent_bytes: peer.traffic.sent_bytes,
        received_packets: peer.traffic.received_packets,
        sent_packets: peer.traffic.sent_packets,
        queued_packets: peer.queued(),
        uses_next_key: peer.active_key() != peer.settings.public_key,
        active_endpoint: peer.active_endpoint(),
        path_mtu: peer.path().path_mtu(),
        path_limited: peer.path().is_limited(),
        probe: peer.path().snapshot(),
    }
}

#[cfg(test)]
mod tests;
