//! The lane's end: smoltcp fed with inner packets, and its sockets joined to the relay's pipes.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint};
use tokio::sync::{mpsc, oneshot};

use super::MAX_STREAMS;
use super::device::Device;
use super::open::{Open, open};
use super::ready::{FlowWaker, Ready};
use super::stream::{Accepted, DialError, Listener, Stream};
use crate::io::Wake;

/// Below 64 KiB, so that windows need no scaling: smoltcp takes the unscaled window of its SYN for a scaled one, and what
/// then arrives beyond the buffer is an assertion.
const BUFFER_BYTES: usize = 65_535;
const _: () = assert!(BUFFER_BYTES <= u16::MAX as usize, "a window that needs scaling");
/// Listening sockets held ready for each port: a socket takes one connection.
const BACKLOG: usize = 16;
/// Connections accepted and not yet taken by the relay; one more is reset.
const ACCEPT_QUEUE: usize = 128;
/// Unacknowledged data this old ends a stream. Longer than any failover, so that streams survive one.
const USER_TIMEOUT: Duration = Duration::from_secs(120);
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Listening and half-open sockets of one port; opening more has to wait.
const MOST_LISTENING: usize = 128;
/// A stream that the relay let go may take this long to end in order (Linux's tcp_fin_timeout).
const LAST_WORDS: Duration = Duration::from_secs(60);
/// First port of the ephemeral range (RFC 6335 §6).
const FIRST_PORT: u16 = 49152;
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
    Dial { to: SocketAddr, deadline: Instant, reply: oneshot::Sender<Result<Stream, DialError>> },
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
    device: Device,
    sockets: SocketSet<'static>,
    flows: HashMap<SocketHandle, Flow>,
    ports: HashMap<u16, mpsc::Sender<Accepted>>,
    requests: mpsc::Receiver<Request>,
    ready: Arc<Ready>,
    /// Handles taken from `ready`, kept to use its memory again.
    serving: Vec<SocketHandle>,
    addresses: Vec<IpNet>,
    next_port: u16,
    epoch: Instant,
}

/// A socket and what it is for.
struct Flow {
    waker: Waker,
    purpose: Purpose,
}

enum Purpose {
    /// `replaced`: another socket listens in its stead already.
    Listening {
        port: u16,
        replaced: bool,
    },
    Dialing {
        deadline: Instant,
        reply: Option<oneshot::Sender<Result<Stream, DialError>>>,
    },
    Open(Open),
}

impl Stack {
    pub(crate) fn new(settings: StackSettings, wake: Wake, now: Instant) -> Self {
        let mut device = Device { mtu: settings.mtu as usize, inbox: None, outbox: VecDeque::new(), spare: Vec::new() };
        let interface = interface(&settings.addresses, &mut device, StackInstant::ZERO);
        Self {
            interface,
            device,
            sockets: SocketSet::new(Vec::new()),
            flows: HashMap::new(),
            ports: HashMap::new(),
            requests: settings.requests,
            ready: Arc::new(Ready { handles: Mutex::new(Vec::new()), wake }),
            serving: Vec::new(),
            addresses: settings.addresses,
            next_port: FIRST_PORT,
            epoch: now,
        }
    }

    /// Takes an inner packet that came out of the tunnel.
    pub(crate) fn handle_packet(&mut self, packet: &[u8], now: Instant) {
        let mut buffer = self.device.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(packet);
        self.device.inbox = Some(buffer);
        let now = self.time(now);
        while self.device.inbox.is_some() {
            self.interface.poll_ingress_single(now, &mut self.device, &mut self.sockets);
        }
        // A connection takes a listening socket with it: the next one in the same burst must find another.
        if opens_connection(packet) {
            self.serve_ready();
        }
    }

    /// Puts the next packet that wants into the tunnel into `room`.
    pub(crate) fn take_packet(&mut self, room: &mut [u8]) -> Option<usize> {
        let packet = self.device.outbox.pop_front()?;
        let length = packet.len().min(room.len());
        room[..length].copy_from_slice(&packet[..length]);
        self.device.spare.push(packet);
        Some(length)
    }

    /// Serves requests, streams that became ready, and the stack's own timers.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Ok(request) = self.requests.try_recv() {
            self.obey(request, now);
        }
        // Serving frees room in sockets and polling makes others ready; a bound keeps the lane's other work alive.
        for _ in 0..4 {
            self.serve_ready();
            let at = self.time(now);
            self.interface.poll(at, &mut self.device, &mut self.sockets);
            if self.ready.is_empty() {
                break;
            }
        }
        self.expire(now);
    }

    pub(crate) fn poll_delay(&mut self, now: Instant) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let at = self.time(now);
        self.interface.poll_delay(at, &self.sockets).map(Duration::from)
    }

    /// smoltcp reads the device's MTU once, so the interface is made anew; sockets live apart from it.
    pub(crate) fn set_mtu(&mut self, mtu: u32, now: Instant) {
        self.device.mtu = mtu as usize;
        let now = self.time(now);
        self.interface = interface(&self.addresses, &mut self.device, now);
    }

    pub(crate) fn streams(&self) -> usize {
        self.flows.values().filter(|flow| !matches!(flow.purpose, Purpose::Listening { .. })).count()
    }

    fn obey(&mut self, request: Request, now: Instant) {
        match request {
            Request::Dial { to, deadline, reply } => {
                if let Err((reply, error)) = self.dial(to, deadline, reply, now) {
                    // The relay may have given up already.
                    let _gone = reply.send(Err(error));
                }
            }
            Request::Listen { port, accepted, reply } => {
                let free = self.ports.get(&port).is_none_or(mpsc::Sender::is_closed);
                if free {
                    self.ports.insert(port, accepted);
                    for _ in 0..BACKLOG {
                        self.listen(port);
                    }
                }
                let _gone = reply.send(free);
            }
        }
    }

    fn dial(
        &mut self,
        to: SocketAddr,
        deadline: Instant,
        reply: oneshot::Sender<Result<Stream, DialError>>,
        now: Instant,
    ) -> Result<(), (oneshot::Sender<Result<Stream, DialError>>, DialError)> {
        if now >= deadline {
            return Err((reply, DialError::TimedOut));
        }
        let Some(own) = self.addresses.iter().map(IpNet::addr).find(|own| own.is_ipv4() == to.is_ipv4()) else {
            return Err((reply, DialError::NoAddress));
        };
        let (Some(handle), Some(port)) = (self.add_socket(), self.free_port()) else {
            return Err((reply, DialError::TooMany));
        };
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.connect(self.interface.context(), IpEndpoint::from(to), (IpAddress::from(own), port)).is_err() {
            self.sockets.remove(handle);
            return Err((reply, DialError::NoAddress));
        }
        self.add_flow(handle, Purpose::Dialing { deadline, reply: Some(reply) });
        Ok(())
    }

    /// Adds one listening socket for `port`, if there is room.
    fn listen(&mut self, port: u16) {
        let Some(handle) = self.add_socket() else { return };
        if self.sockets.get_mut::<tcp::Socket<'_>>(handle).listen(IpListenEndpoint::from(port)).is_ok() {
            self.add_flow(handle, Purpose::Listening { port, replaced: false });
        } else {
            self.sockets.remove(handle);
        }
    }

    /// Sockets of `port` that listen or are half open.
    fn listening(&self, port: u16) -> usize {
        self.flows.values().filter(|flow| matches!(flow.purpose, Purpose::Listening { port: listening, .. } if listening == port)).count()
    }

    fn add_socket(&mut self) -> Option<SocketHandle> {
        if self.flows.len() >= MAX_STREAMS {
            return None;
        }
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_congestion_control(tcp::CongestionControl::Cubic);
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(USER_TIMEOUT.into()));
        socket.set_keep_alive(Some(KEEPALIVE.into()));
        Some(self.sockets.add(socket))
    }

    fn add_flow(&mut self, handle: SocketHandle, purpose: Purpose) {
        let waker = Waker::from(Arc::new(FlowWaker { handle, ready: Arc::clone(&self.ready) }));
        self.flows.insert(handle, Flow { waker, purpose });
        self.ready.push(handle);
    }

    fn free_port(&mut self) -> Option<u16> {
        let taken = |sockets: &SocketSet<'_>, port: u16| {
            sockets.iter().any(|(_, socket)| match socket {
                smoltcp::socket::Socket::Tcp(socket) => socket.local_endpoint().is_some_and(|endpoint| endpoint.port == port),
            })
        };
        for _ in 0..=(u16::MAX - FIRST_PORT) {
            let port = self.next_port;
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !taken(&self.sockets, port) {
                return Some(port);
            }
        }
        None
    }

    fn serve_ready(&mut self) {
        let mut serving = std::mem::take(&mut self.serving);
        self.ready.take(&mut serving);
        for handle in serving.drain(..) {
            self.serve(handle);
        }
        self.serving = serving;
    }

    /// Moves what can be moved for one flow and asks to be woken for the rest.
    fn serve(&mut self, handle: SocketHandle) {
        let Some(mut flow) = self.flows.remove(&handle) else { return };
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.register_recv_waker(&flow.waker);
        socket.register_send_waker(&flow.waker);
        let (mut replenish, mut keep) = (None, true);
        match &mut flow.purpose {
            Purpose::Listening { port, replaced } => {
                let port = *port;
                let state = socket.state();
                if state != tcp::State::Listen && !std::mem::replace(replaced, true) {
                    replenish = Some(port);
                }
                match state {
                    // An opening that was broken off: another socket listens in its stead.
                    tcp::State::Listen if *replaced => keep = false,
                    tcp::State::Listen | tcp::State::SynReceived | tcp::State::SynSent => {}
                    tcp::State::Closed => keep = false,
                    tcp::State::Established
                    | tcp::State::FinWait1
                    | tcp::State::FinWait2
                    | tcp::State::CloseWait
                    | tcp::State::Closing
                    | tcp::State::LastAck
                    | tcp::State::TimeWait => match self.ports.get(&port).and_then(|accepted| accept(socket, accepted)) {
                        Some(open) => flow.purpose = Purpose::Open(open),
                        None => {
                            socket.abort();
                            keep = false;
                        }
                    },
                }
            }
            Purpose::Dialing { reply, .. } => {
                if socket.may_send() {
                    let (stream, open) = open();
                    flow.purpose = match reply.take().map(|reply| reply.send(Ok(stream))) {
                        Some(Ok(())) => Purpose::Open(open),
                        _ => {
                            socket.abort();
                            Purpose::Dialing { deadline: self.epoch, reply: None }
                        }
                    };
                } else if socket.state() == tcp::State::Closed {
                    keep = false;
                    if let Some(reply) = reply.take() {
                        let _gone = reply.send(Err(DialError::Refused));
                    }
                }
            }
            Purpose::Open(_) => {}
        }
        if let Purpose::Open(open) = &mut flow.purpose {
            let mut cx = Context::from_waker(&flow.waker);
            open.upward(socket, &mut cx);
            open.downward(socket, &mut cx);
            keep = !(socket.state() == tcp::State::Closed && (open.received_end || open.fate.dropped.load(Ordering::Acquire)));
        }
        if keep {
            self.flows.insert(handle, flow);
        } else {
            // The RST of an aborted socket still has to be sent; `poll` does it before the socket is gone.
            let at = self.time(Instant::now());
            self.interface.poll_egress(at, &mut self.device, &mut self.sockets);
            self.sockets.remove(handle);
        }
        if let Some(port) = replenish
            && self.listening(port) < MOST_LISTENING
            && self.ports.get(&port).is_some_and(|accepted| !accepted.is_closed())
        {
            self.listen(port);
        }
    }

    /// Ends dials whose deadline has passed and ports whose listener is gone.
    fn expire(&mut self, now: Instant) {
        let mut ended = Vec::new();
        let mut listening: HashMap<u16, usize> = HashMap::new();
        for (handle, flow) in &mut self.flows {
            match &mut flow.purpose {
                Purpose::Dialing { deadline, reply } => {
                    let gone = reply.as_ref().is_none_or(oneshot::Sender::is_closed);
                    if now >= *deadline || gone {
                        if let Some(reply) = reply.take() {
                            let _gone = reply.send(Err(DialError::TimedOut));
                        }
                        ended.push(*handle);
                    }
                }
                Purpose::Listening { port, replaced } => {
                    *listening.entry(*port).or_default() += usize::from(!*replaced);
                    if self.ports.get(port).is_none_or(mpsc::Sender::is_closed) {
                        ended.push(*handle);
                    }
                }
                Purpose::Open(open) => {
                    if open.fate.dropped.load(Ordering::Acquire) && now >= *open.let_go.get_or_insert(now) + LAST_WORDS {
                        ended.push(*handle);
                    }
                }
            }
        }
        self.ports.retain(|_, accepted| !accepted.is_closed());
        // Where the bound on streams kept a listening socket from being replaced, it is now.
        let short: Vec<u16> = self.ports.keys().filter(|port| listening.get(port).is_none_or(|count| *count < BACKLOG)).copied().collect();
        for port in short {
            self.listen(port);
        }
        if ended.is_empty() {
            return;
        }
        for handle in &ended {
            self.sockets.get_mut::<tcp::Socket<'_>>(*handle).abort();
        }
        let at = self.time(now);
        self.interface.poll_egress(at, &mut self.device, &mut self.sockets);
        for handle in ended {
            self.flows.remove(&handle);
            self.sockets.remove(handle);
        }
    }

    fn time(&self, now: Instant) -> StackInstant {
        StackInstant::from_micros(i64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(i64::MAX))
    }
}

/// An interface with these addresses, and everything else behind the tunnel.
fn interface(addresses: &[IpNet], device: &mut Device, now: StackInstant) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = rand_core::RngCore::next_u64(&mut rand_core::OsRng);
    let mut interface = Interface::new(config, device, now);
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

/// Whether `packet` is a TCP SYN without ACK. Extension headers are not followed: such a connection waits for the
/// lane's next turn.
fn opens_connection(packet: &[u8]) -> bool {
    let (protocol, header) = match packet.first().map(|byte| byte >> 4) {
        Some(4) => (packet.get(9), usize::from(packet.first().map_or(0, |byte| byte & 0x0f)) * 4),
        Some(6) => (packet.get(6), 40),
        _ => return false,
    };
    const TCP: u8 = 6;
    protocol == Some(&TCP) && packet.get(header + 13).is_some_and(|flags| flags & 0x12 == 0x02)
}

/// Hands a new connection to the listener; None if it is gone or cannot keep up.
fn accept(socket: &tcp::Socket<'_>, accepted: &mpsc::Sender<Accepted>) -> Option<Open> {
    let from = socket.remote_endpoint()?;
    let from = SocketAddr::new(from.addr.into(), from.port);
    let (stream, open) = open();
    accepted.try_send(Accepted { stream, from }).ok().map(|()| open)
}
