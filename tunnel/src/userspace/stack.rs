//! The lane's end: smoltcp fed with inner packets, and its sockets joined to the relay's pipes.
//!
//! ```text
//!   packet in ─► by_tuple ─► smoltcp ─┐                      ┌─► timers (smoltcp's next deadline)
//!   pipe woke ─► ready ────► serve ───┼─► pending ─► egress ─┤
//!   timers ───────────────────────────┘      ▲               └─► outbox ─► lane
//!                                            └── has more to send, or the outbox is full
//! ```
//! Whoever drives it calls [`Stack::poll_delay`] last before it sleeps: from then on other threads have to wake it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};
use tokio::sync::{mpsc, oneshot};

use super::device::{Outbox, Port};
use super::flow::{DialReply, Flow, Size};
use super::ready::Ready;
use super::segment::{Segment, Tuple, is_fragment};
use super::stream::{Accepted, DialError, Listener, Stream};
use super::{LARGE_STREAMS, MAX_STREAMS};
use crate::io::Wake;
use crate::offload::{Offloads, VnetHeader};

/// Connections accepted and not yet taken by the relay; one more is reset, but there cannot be more.
const ACCEPT_QUEUE: usize = MAX_STREAMS;
/// Streams that are being opened towards us; the SYN of one more is dropped, and comes again.
const MOST_HALF_OPEN: usize = 512;
/// Packets or super-packets that one flow sends before the next has its turn.
const BURST: usize = 16;
/// Times that what became ready while the lane served is served as well; a bound keeps the lane's other work alive.
const ROUNDS: usize = 4;
/// How often deadlines of dials and of streams that were let go are looked at.
const EXPIRE_EVERY: Duration = Duration::from_millis(100);
/// A flow that says nothing new and still wants to be polled at once waits this long. smoltcp does so when its peer closes
/// its window while our FIN is on its way: in FIN-WAIT-2 its zero-window timer stays expired and no probe is sent that would
/// put it off (0.14, `socket/tcp.rs` 2536, 2738). Such a stream may be a slow reader, so it is slowed down and not ended.
const HOLD: smoltcp::time::Duration = smoltcp::time::Duration::from_millis(100);
/// First port of the ephemeral range (RFC 6335 §6).
const FIRST_PORT: u16 = 49152;
/// IPv6 and TCP without options: no segment is larger than the MTU without them.
const HEADERS_BYTES: usize = 60;

/// How the stack is set up.
#[derive(Debug)]
pub struct StackSettings {
    pub addresses: Vec<IpNet>,
    pub mtu: u32,
    requests: mpsc::Receiver<Request>,
}

/// The relay's handle on the inside of a tunnel. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Network {
    requests: mpsc::Sender<Request>,
    wake: Wake,
}

#[derive(Debug)]
enum Request {
    Dial { to: SocketAddr, deadline: Instant, reply: DialReply },
    Listen { port: u16, accepted: mpsc::Sender<Accepted>, reply: oneshot::Sender<bool> },
}

/// A handle, and the settings that a lane turns into the stack it leads to.
pub fn network(addresses: Vec<IpNet>, mtu: u32, wake: Wake) -> (Network, StackSettings) {
    let (sender, requests) = mpsc::channel(256);
    (Network { requests: sender, wake }, StackSettings { addresses, mtu, requests })
}

impl Network {
    /// Opens a TCP stream to `to` through the tunnel.
    pub async fn dial(&self, to: SocketAddr, deadline: Instant) -> Result<Stream, DialError> {
        let (reply, answer) = oneshot::channel();
        self.request(Request::Dial { to, deadline, reply }).await?;
        answer.await.map_err(|_| DialError::Stopped)?
    }

    /// Listens on `port` on the gateway's own addresses inside the tunnel. None if something listens there already.
    pub async fn listen(&self, port: u16) -> Result<Option<Listener>, DialError> {
        let (reply, answer) = oneshot::channel();
        let (sender, accepted) = mpsc::channel(ACCEPT_QUEUE);
        self.request(Request::Listen { port, accepted: sender, reply }).await?;
        Ok(answer.await.map_err(|_| DialError::Stopped)?.then_some(Listener { accepted }))
    }

    async fn request(&self, request: Request) -> Result<(), DialError> {
        self.requests.send(request).await.map_err(|_| DialError::Stopped)?;
        self.wake.wake();
        Ok(())
    }
}

pub(crate) struct Stack {
    interface: Interface,
    addresses: Vec<IpNet>,
    mtu: usize,
    outbox: Outbox,
    /// By number; the free numbers are in `free`.
    flows: Vec<Option<Box<Flow>>>,
    free: Vec<u32>,
    by_tuple: HashMap<Tuple, u32>,
    half_open: usize,
    large: usize,
    ports: HashMap<u16, mpsc::Sender<Accepted>>,
    requests: mpsc::Receiver<Request>,
    ready: Arc<Ready>,
    /// Numbers taken from `ready`, kept to use its memory again.
    serving: Vec<u32>,
    /// A packet that had to be changed before smoltcp sees it, kept for the same reason.
    changed: Vec<u8>,
    /// Flows that may have something to send, in turn.
    pending: VecDeque<u32>,
    /// When smoltcp wants to be asked again, for each flow that it is so.
    timers: BTreeSet<(StackInstant, u32)>,
    /// For packets that belong to no flow: smoltcp answers pings and refuses connections.
    nobody: SocketSet<'static>,
    next_port: u16,
    next_expiry: Instant,
    epoch: Instant,
}

impl Stack {
    /// What may be delivered: TCP super-packets, over IPv4 and IPv6.
    pub(crate) const OFFLOADS: Offloads = Offloads { tcp: true, udp: false };

    pub(crate) fn new(settings: StackSettings, wake: Wake, now: Instant) -> Self {
        let (mut outbox, mtu) = (Outbox::default(), settings.mtu as usize);
        Self {
            interface: interface(&settings.addresses, &mut outbox, mtu, StackInstant::ZERO),
            addresses: settings.addresses,
            mtu,
            outbox,
            flows: Vec::new(),
            free: Vec::new(),
            by_tuple: HashMap::new(),
            half_open: 0,
            large: 0,
            ports: HashMap::new(),
            requests: settings.requests,
            ready: Arc::new(Ready::new(wake)),
            serving: Vec::new(),
            changed: Vec::new(),
            pending: VecDeque::new(),
            timers: BTreeSet::new(),
            nobody: SocketSet::new(Vec::new()),
            next_port: FIRST_PORT,
            next_expiry: now,
            epoch: now,
        }
    }

    /// Takes an inner packet that came out of the tunnel, or a TCP super-packet made of several, with a right checksum or
    /// with the pseudo-header's sum in its place.
    ///
    /// Dropped, as by any host and without a counter of ours: wrong checksums, fragments, SYNs for which there is no room.
    pub(crate) fn handle_packet(&mut self, packet: &[u8], now: Instant) {
        self.ready.stay_awake();
        let at = self.time(now);
        let Some(segment) = Segment::parse(packet) else {
            if !is_fragment(packet) {
                self.answer(packet, at);
            }
            return;
        };
        if !segment.checksum_holds() {
            return;
        }
        let tuple = segment.tuple();
        if segment.opens() {
            self.make_way(tuple, at);
        }
        let number = match self.by_tuple.get(&tuple).copied() {
            Some(number) => number,
            None if segment.opens() && self.listens(tuple.local) => match self.open(tuple, now) {
                Some(number) => number,
                None => return,
            },
            None => return self.answer(packet, at),
        };
        let largest = u32::try_from(self.mtu.saturating_sub(HEADERS_BYTES)).unwrap_or(u32::MAX);
        let Some(flow) = self.flows.get_mut(number as usize).and_then(Option::as_mut) else { return };
        let mut show = |packet: &[u8], sockets: &mut SocketSet<'static>| {
            let mut port = Port { packet: Some(packet), outbox: &mut self.outbox, mtu: self.mtu, urgent: false };
            self.interface.poll_ingress_single(at, &mut port, sockets);
        };
        if segment.opens() && flow.is_synchronized() {
            if let Some(acknowledged) = flow.acknowledged {
                show(segment.challenged(acknowledged).packet(), &mut flow.sockets);
            }
            return;
        }
        let unacknowledged = flow.unacknowledged();
        if let Some(mut steps) = flow.acknowledged.and_then(|before| segment.steps(before, unacknowledged, largest)) {
            while let Some(step) = steps.next() {
                show(step, &mut flow.sockets);
            }
        }
        flow.acknowledge_at_once(segment.payload_bytes() > self.mtu);
        if segment.ends_behind_payload() {
            segment.put_without_fin(&mut self.changed);
            show(&self.changed, &mut flow.sockets);
            show(segment.fin_alone().packet(), &mut flow.sockets);
        } else {
            show(packet, &mut flow.sockets);
        }
        flow.note_acknowledged(unacknowledged, segment.acknowledges());
        if flow.is_broken_off() {
            self.remove(number, at);
        } else {
            self.mark(number);
        }
    }

    /// Puts the next packet or super-packet that wants into the tunnel into `room`: what it is, and its length. The
    /// checksum of TCP is still to be completed.
    pub(crate) fn take_packet(&mut self, room: &mut [u8]) -> Option<(VnetHeader, usize)> {
        self.outbox.take(room)
    }

    /// Serves requests, streams that became ready, and the stack's own timers.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.ready.stay_awake();
        let at = self.time(now);
        while let Ok(request) = self.requests.try_recv() {
            self.obey(request, now);
        }
        while let Some((due, number)) = self.timers.first().copied()
            && due <= at
        {
            self.timers.pop_first();
            if let Some(flow) = self.flows.get_mut(number as usize).and_then(Option::as_mut) {
                flow.due = None;
            }
            self.mark(number);
        }
        // Serving frees room in sockets, and sending makes others ready.
        for _ in 0..ROUNDS {
            self.serve_ready(at);
            self.send_pending(at);
            if self.ready.is_empty() {
                break;
            }
        }
        if now >= self.next_expiry {
            self.next_expiry = now + EXPIRE_EVERY;
            self.expire(now);
        }
    }

    /// How long the lane may sleep; None if nothing but a packet or a wake-up matters.
    pub(crate) fn poll_delay(&mut self, now: Instant) -> Option<Duration> {
        let at = self.time(now);
        self.interface.poll_maintenance(at);
        if !self.pending.is_empty() || !self.ready.fall_asleep() {
            return Some(Duration::ZERO);
        }
        if self.by_tuple.is_empty() {
            return None;
        }
        let timer = match self.timers.first() {
            Some((due, _)) if *due > at => Duration::from(*due - at),
            Some(_) => Duration::ZERO,
            None => EXPIRE_EVERY,
        };
        Some(timer.min(EXPIRE_EVERY))
    }

    /// smoltcp reads the device's MTU once, so the interface is made anew; sockets live apart from it.
    pub(crate) fn set_mtu(&mut self, mtu: u32, now: Instant) {
        self.mtu = mtu as usize;
        let at = self.time(now);
        self.interface = interface(&self.addresses, &mut self.outbox, self.mtu, at);
    }

    /// Streams that stand or are being dialled.
    pub(crate) fn streams(&self) -> usize {
        self.by_tuple.len() - self.half_open
    }

    fn obey(&mut self, request: Request, now: Instant) {
        match request {
            Request::Dial { to, deadline, reply } => {
                if let Err((reply, error)) = self.dial(to, deadline, reply, now) {
                    // The relay may have given up already.
                    let _gone = reply.map(|reply| reply.send(Err(error)));
                }
            }
            Request::Listen { port, accepted, reply } => {
                let free = port != 0 && self.ports.get(&port).is_none_or(mpsc::Sender::is_closed);
                if free {
                    self.ports.insert(port, accepted);
                }
                let _gone = reply.send(free);
            }
        }
    }

    fn dial(&mut self, to: SocketAddr, deadline: Instant, reply: DialReply, now: Instant) -> Result<(), (Option<DialReply>, DialError)> {
        if now >= deadline {
            return Err((Some(reply), DialError::TimedOut));
        }
        let Some(own) = self.addresses.iter().map(IpNet::addr).find(|own| own.is_ipv4() == to.is_ipv4()) else {
            return Err((Some(reply), DialError::NoAddress));
        };
        let remote = SocketAddr::new(to.ip(), to.port());
        let Some(tuple) = self.free_tuple(own, remote) else {
            return Err((Some(reply), DialError::TooMany));
        };
        let Some(number) = self.free_number(self.time(now)) else {
            return Err((Some(reply), DialError::TooMany));
        };
        let size = self.free_size(false);
        let mut flow = Flow::dialing(tuple, size, number, &self.ready, deadline, reply);
        let local = (IpAddress::from(own), tuple.local.port());
        if flow.socket().connect(self.interface.context(), IpEndpoint::from(remote), local).is_err() {
            self.free.push(number);
            return Err((flow.into_reply(), DialError::NoAddress));
        }
        self.add(number, flow);
        Ok(())
    }

    /// Removes what only lingers of a flow, for a SYN with its four-tuple (RFC 9293 §3.6.1, MAY-2). Not followed of it: our new
    /// sequence numbers are random and not larger than the old ones, and an old duplicate does not bring TIME-WAIT back.
    fn make_way(&mut self, tuple: Tuple, at: StackInstant) {
        if let Some(number) = self.by_tuple.get(&tuple).copied()
            && self.flows.get(number as usize).and_then(Option::as_ref).is_some_and(|flow| flow.is_lingering())
        {
            self.remove(number, at);
        }
    }

    /// Whether SYNs to `local` are answered.
    fn listens(&self, local: SocketAddr) -> bool {
        self.addresses.iter().any(|own| own.addr() == local.ip())
            && self.ports.get(&local.port()).is_some_and(|accepted| !accepted.is_closed())
    }

    /// Makes a flow for a SYN. None if there are too many.
    fn open(&mut self, tuple: Tuple, now: Instant) -> Option<u32> {
        if self.half_open >= MOST_HALF_OPEN {
            return None;
        }
        let number = self.free_number(self.time(now))?;
        let size = self.free_size(true);
        let Some(flow) = Flow::opening(tuple, size, number, &self.ready, now) else {
            self.free.push(number);
            return None;
        };
        self.add(number, flow);
        Some(number)
    }

    /// A number for one more flow, if there may be one more. It is given back by being pushed to `free`.
    fn free_number(&mut self, at: StackInstant) -> Option<u32> {
        if self.by_tuple.len() >= MAX_STREAMS {
            let lingering = self.flows.iter().position(|flow| flow.as_ref().is_some_and(|flow| flow.is_lingering()))?;
            self.remove(u32::try_from(lingering).ok()?, at);
        }
        if self.free.is_empty() {
            self.free.push(u32::try_from(self.flows.len()).ok()?);
            self.flows.push(None);
        }
        self.free.pop()
    }

    /// The size of the next flow. smoltcp wants the rings with the SYN, when nobody knows yet whether a third packet will come:
    /// what is half open may hold half of the large places at most.
    const fn free_size(&self, opening: bool) -> Size {
        let may_be_large = !opening || self.half_open < LARGE_STREAMS / 2;
        if self.large < LARGE_STREAMS && may_be_large { Size::Large } else { Size::Small }
    }

    /// A four-tuple of ours to `remote` that no flow has.
    fn free_tuple(&mut self, own: IpAddr, remote: SocketAddr) -> Option<Tuple> {
        for _ in FIRST_PORT..=u16::MAX {
            let tuple = Tuple { local: SocketAddr::new(own, self.next_port), remote };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.by_tuple.contains_key(&tuple) {
                return Some(tuple);
            }
        }
        None
    }

    fn add(&mut self, number: u32, flow: Flow) {
        self.half_open += usize::from(flow.is_opening());
        self.large += usize::from(flow.size == Size::Large);
        self.by_tuple.insert(flow.tuple, number);
        if let Some(place) = self.flows.get_mut(number as usize) {
            *place = Some(Box::new(flow));
        }
        self.mark(number);
    }

    /// Ends a flow. If it was aborted, its RST goes out first.
    fn remove(&mut self, number: u32, at: StackInstant) {
        let Some(mut flow) = self.flows.get_mut(number as usize).and_then(Option::take) else { return };
        let mut port = Port { packet: None, outbox: &mut self.outbox, mtu: self.mtu, urgent: true };
        self.interface.poll_egress(at, &mut port, &mut flow.sockets);
        self.half_open -= usize::from(flow.is_opening());
        self.large -= usize::from(flow.size == Size::Large);
        self.by_tuple.remove(&flow.tuple);
        if let Some(due) = flow.due {
            self.timers.remove(&(due, number));
        }
        self.free.push(number);
    }

    /// Has the flow take its turn to send.
    fn mark(&mut self, number: u32) {
        if let Some(flow) = self.flows.get_mut(number as usize).and_then(Option::as_mut)
            && !flow.pending
        {
            flow.pending = true;
            self.pending.push_back(number);
        }
    }

    fn serve_ready(&mut self, at: StackInstant) {
        let mut serving = std::mem::take(&mut self.serving);
        self.ready.take(&mut serving);
        for number in serving.drain(..) {
            let Some(flow) = self.flows.get_mut(number as usize).and_then(Option::as_mut) else { continue };
            let was_opening = flow.is_opening();
            let stands = flow.serve(&self.ports);
            if was_opening && !flow.is_opening() {
                self.half_open -= 1;
            }
            if stands {
                self.mark(number);
            } else {
                self.remove(number, at);
            }
        }
        self.serving = serving;
    }

    /// Gives each flow that may have something to send its turn, until the outbox is full.
    fn send_pending(&mut self, at: StackInstant) {
        while !self.outbox.is_full()
            && let Some(number) = self.pending.pop_front()
        {
            self.send(number, at);
        }
    }

    fn send(&mut self, number: u32, at: StackInstant) {
        let Some(flow) = self.flows.get_mut(number as usize).and_then(Option::as_mut) else { return };
        // The number may have been another flow's, or the flow have had its turn already.
        if !std::mem::take(&mut flow.pending) {
            return;
        }
        let mut due = None;
        let mut again = false;
        if !flow.waits_for_reader(at) {
            // What carries no payload is the last word of a flow: there is nothing behind it for now.
            let mut said_all = false;
            for _ in 0..BURST {
                if self.outbox.is_full() {
                    break;
                }
                let mut port = Port { packet: None, outbox: &mut self.outbox, mtu: self.mtu, urgent: false };
                let sent = self.interface.poll_egress(at, &mut port, &mut flow.sockets);
                if sent == PollResult::None || self.outbox.ends_bare() {
                    said_all = true;
                    break;
                }
            }
            match self.interface.poll_at(at, &flow.sockets) {
                Some(next) if next <= at && said_all => due = Some(at + HOLD),
                Some(next) if next <= at => again = true,
                next => due = next,
            }
        }
        if flow.due != due {
            if let Some(before) = flow.due {
                self.timers.remove(&(before, number));
            }
            if let Some(due) = due {
                self.timers.insert((due, number));
            }
            flow.due = due;
        }
        if again {
            self.mark(number);
        }
    }

    /// Ends flows whose time has passed, and forgets ports whose listener is gone.
    fn expire(&mut self, now: Instant) {
        let at = self.time(now);
        for number in 0..self.flows.len() {
            let Some(flow) = self.flows.get_mut(number).and_then(Option::as_mut) else { continue };
            if flow.has_expired(&self.ports, now) {
                flow.socket().abort();
                if let Ok(number) = u32::try_from(number) {
                    self.remove(number, at);
                }
            }
        }
        self.ports.retain(|_, accepted| !accepted.is_closed());
    }

    /// Shows smoltcp a packet of no flow: an answer, if there is one, goes to the outbox.
    fn answer(&mut self, packet: &[u8], at: StackInstant) {
        let mut port = Port { packet: Some(packet), outbox: &mut self.outbox, mtu: self.mtu, urgent: false };
        self.interface.poll_ingress_single(at, &mut port, &mut self.nobody);
    }

    fn time(&self, now: Instant) -> StackInstant {
        StackInstant::from_micros(i64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(i64::MAX))
    }
}

/// An interface with these addresses, and everything else behind the tunnel.
fn interface(addresses: &[IpNet], outbox: &mut Outbox, mtu: usize, now: StackInstant) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = rand_core::RngCore::next_u64(&mut rand_core::OsRng);
    let mut interface = Interface::new(config, &mut Port { packet: None, outbox, mtu, urgent: false }, now);
    interface.update_ip_addrs(|taken| {
        for address in addresses.iter().take(taken.capacity()) {
            // Cannot fail: no more than the capacity are taken.
            let _fits = taken.push(IpCidr::new(address.addr().into(), address.prefix_len()));
        }
    });
    // There is no link layer: whatever is not local goes into the tunnel. The next hop is never asked for.
    for address in addresses {
        match address.addr() {
            IpAddr::V4(own) => drop(interface.routes_mut().add_default_ipv4_route(own)),
            IpAddr::V6(own) => drop(interface.routes_mut().add_default_ipv6_route(own)),
        }
    }
    interface
}

#[cfg(test)]
mod tests;
