//! One thread, one UDP socket, one packet port, one engine.
//!
//! ```text
//!            ┌───────────────────────── epoll ────────────────────────┐
//!            │  eventfd          UDP socket        port        timer  │
//!            └────┬──────────────────┬──────────────┬────────────┬────┘
//!                 ▼                  ▼              ▼            ▼
//!             commands         recvmmsg + GRO   super-packet   timers
//!                                    │          in segments      │
//!                                    ▼ open         ▼ seal       │
//!                                Coalescer        Batch ◄────────┘
//!                                    │              │
//!                                    ▼ one write    ▼ sendmmsg + GSO
//!                                  port         UDP socket
//! ```
//! Each input is drained until it has nothing more, up to a bound, so that none starves the others; the lane
//! never waits for more.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use std::{io, thread};

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::inbox::Inbox;
use super::port::{PacketPort, PreparedPort};
use super::sleep::{Ready, Sleep};
use super::udp::{SendNews, UdpSocket};
use super::wake::Wake;
use crate::batch::{Batch, Endpoint};
use crate::engine::{Engine, EngineSettings, Event, PeerChange, Received};
use crate::error::DropReason;
use crate::key::{PrivateKey, PublicKey};
use crate::offload::{Coalescer, Gso, Segments, VNET_BYTES, VnetHeader};
use crate::settings::PeerSettings;
use crate::stats::{LaneSnapshot, Snapshot};

/// Calls to one input before the others have their turn; each brings up to 512 KiB from the socket, 64 KiB from the port.
const SOCKET_CALLS: usize = 4;
const PORT_CALLS: usize = 64;
/// A wait that ends so soon was none: something was there already.
const AT_ONCE: Duration = Duration::from_micros(20);
/// How soon the same failure is worth another line.
const SAY_AGAIN: Duration = Duration::from_secs(10);
/// Failing endpoints that are remembered.
const MOST_UNSENT: usize = 64;
const COMMANDS: usize = 1024;
const PUBLISH_EVERY: Duration = Duration::from_millis(200);
/// A virtio-net header, the longest IP packet, and room for the padding behind it.
const ROOM_BYTES: usize = VNET_BYTES + 65_535 + crate::PADDING;

/// What a lane is made of, prepared so that starting it cannot fail for want of a resource.
pub struct PreparedLane {
    pub socket: UdpSocket,
    pub port: PreparedPort,
    pub wake: Wake,
}

/// What is the same for all lanes of a tunnel.
#[derive(Clone)]
pub(super) struct LaneSettings {
    /// The tunnel's name, for the thread and the log.
    pub(super) name: String,
    /// Which of the tunnel's lanes this is, from 0.
    pub(super) number: u16,
    pub(super) engine: EngineSettings,
    /// Those that there are from the start.
    pub(super) peers: Vec<PeerSettings>,
    /// The processor to stay on.
    pub(super) cpu: Option<usize>,
}

/// The handle of a running lane. Dropping it stops the lane and waits for its thread.
pub(super) struct Lane {
    commands: SyncSender<Command>,
    wake: Wake,
    snapshot: watch::Receiver<Snapshot>,
    thread: Option<JoinHandle<()>>,
}

pub(super) enum Command {
    Change(Box<PeerChange>),
    SetMtu(u32),
    SetPrivateKey(PrivateKey),
    /// Whether the host gives packets to this lane.
    Attach(bool),
    Stop,
}

impl Lane {
    /// Starts the thread. Fails only if the system makes no more threads.
    pub(super) fn start(settings: LaneSettings, prepared: PreparedLane) -> io::Result<Self> {
        let now = Instant::now();
        let (commands, inbox) = sync_channel(COMMANDS);
        let mut engine = Engine::new(settings.engine, now);
        for peer in settings.peers {
            engine.apply(PeerChange::Add(peer), now);
        }
        let PreparedLane { socket, port, wake } = prepared;
        let (publisher, snapshot) =
            watch::channel(engine.snapshot(now, SystemTime::now(), LaneSnapshot::new(settings.number, socket.port())));
        let (name, number, cpu, mtu) = (settings.name, settings.number, settings.cpu, engine.smallest_path());
        let thread = thread::Builder::new().name(format!("lane {number} {name}")).spawn({
            let wake = wake.clone();
            move || {
                let span = tracing::info_span!("tunnel", name, lane = number);
                let _entered = span.enter();
                if let Some(cpu) = cpu {
                    stay_on(cpu);
                }
                let port = PacketPort::open(port, &wake, now);
                let mut running = Running {
                    coalescer: Coalescer::new(port.offloads()),
                    lane: LaneSnapshot::new(number, socket.port()),
                    engine,
                    socket,
                    port,
                    wake,
                    inbox,
                    publisher,
                    published: now,
                    batch: Batch::new(),
                    datagrams: Inbox::new(),
                    room: vec![0; ROOM_BYTES],
                    unsent: HashMap::new(),
                    stale: false,
                    path: mtu,
                    rested: false,
                };
                // A bug must not leave a silent tunnel: the closed snapshot channel tells the supervisor.
                match catch_unwind(AssertUnwindSafe(|| running.run())) {
                    Ok(Ok(())) => debug!("lane stopped"),
                    Ok(Err(error)) => error!(%error, "lane failed"),
                    Err(_) => error!("lane panicked"),
                }
            }
        })?;
        Ok(Self { commands, wake, snapshot, thread: Some(thread) })
    }

    /// Queues a command. False if the lane has ended.
    pub(super) fn command(&self, mut command: Command) -> bool {
        loop {
            match self.commands.try_send(command) {
                Ok(()) => {
                    self.wake.wake();
                    return true;
                }
                Err(TrySendError::Full(back)) => {
                    command = back;
                    self.wake.wake();
                    thread::yield_now();
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
    }

    /// The newest snapshot. The channel closes when the lane ends, for whatever reason.
    pub(super) fn snapshots(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.clone()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let _ended = self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

struct Running {
    engine: Engine,
    socket: UdpSocket,
    port: PacketPort,
    wake: Wake,
    inbox: Receiver<Command>,
    publisher: watch::Sender<Snapshot>,
    published: Instant,
    batch: Batch,
    coalescer: Coalescer,
    datagrams: Inbox,
    /// Where a packet is read to and answered from.
    room: Vec<u8>,
    lane: LaneSnapshot,
    /// Endpoints that datagrams could not be sent to, and when that was last said.
    unsent: HashMap<Endpoint, Instant>,
    /// An edit has made the published snapshot untrue.
    stale: bool,
    /// The largest packet that the port was told of.
    path: u32,
    /// The lane has slept since the turn before.
    rested: bool,
}

impl Running {
    fn run(&mut self) -> io::Result<()> {
        let mut ready = Ready { socket: true, wake: false, port: true };
        let mut sleep = Sleep::new(self.socket.fd(), self.wake.fd())?;
        loop {
            let now = Instant::now();
            if !self.obey(now) {
                return Ok(());
            }
            let mut more = false;
            if ready.socket {
                let delivered = self.drain_socket(now, &mut more)?;
                // The host answers an echo or a segment at once.
                ready.port |= delivered;
            }
            if ready.port || self.port.fd().is_none() {
                more |= self.drain_port(now)?;
            }
            let now = Instant::now();
            self.engine.handle_timeout(now, &mut self.batch);
            self.port.handle_timeout(now);
            if self.port.fd().is_none() {
                // What the stack just wrote leaves now, not at the next wake-up.
                more |= self.drain_port(now)?;
            }
            self.flush(now);
            self.tell(now);
            let until = self.engine.poll_timeout().saturating_duration_since(now);
            let delay = self.port.poll_delay(now).map_or(until, |delay| delay.min(until));
            let delay = if more { Duration::ZERO } else { delay };
            sleep.watch_port(self.port.fd())?;
            ready = sleep.wait(now, delay)?;
            self.rested = now.elapsed() > AT_ONCE;
            if ready.wake {
                self.wake.clear();
            }
        }
    }

    /// Carries out commands; false when told to stop.
    fn obey(&mut self, now: Instant) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Change(change)) => self.engine.apply(*change, now),
                Ok(Command::SetMtu(mtu)) => {
                    self.engine.set_mtu(mtu, now);
                    self.port.set_mtu(self.engine.smallest_path(), now);
                }
                Ok(Command::SetPrivateKey(key)) => self.engine.set_private_key(key, now),
                Ok(Command::Attach(attached)) => {
                    if !attached {
                        // What waits in the queue would be dropped with it. A port that fails does so again in its turn.
                        let _failed = self.drain_port(now);
                        self.flush(now);
                    }
                    if let Err(error) = self.port.attach(attached) {
                        error!(%error, attached, "the device's queue does not follow");
                    }
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
            self.stale = true;
        }
    }

    /// UDP to port. Whether anything was delivered; `more` if there may be more.
    fn drain_socket(&mut self, now: Instant, more: &mut bool) -> io::Result<bool> {
        let mut delivered = false;
        for _ in 0..SOCKET_CALLS {
            let count = self.socket.receive(&mut self.datagrams)?;
            let Self { engine, socket, port, batch, coalescer, datagrams, lane, unsent, .. } = self;
            let mut delivery = Delivery { port, now, taken: false, refused: 0, refused_whole: None };
            for run in datagrams.runs() {
                if run.bytes.is_empty() {
                    engine.count(DropReason::Malformed);
                }
                for datagram in run.bytes.chunks(run.segment_bytes.max(1)) {
                    let plain = coalescer.space(datagram.len(), &mut |packet| delivery.write(packet));
                    match engine.handle_datagram(datagram, run.arrival, now, plain, batch) {
                        Received::Packet(packet) => {
                            let length = packet.len();
                            coalescer.push(length, &mut |packet| delivery.write(packet));
                        }
                        Received::Quiet | Received::Dropped(_) => coalescer.cancel(),
                    }
                    if batch.is_full() {
                        send(socket, batch, engine, lane, unsent, now);
                    }
                }
            }
            coalescer.flush(&mut |packet| delivery.write(packet));
            let Delivery { refused, refused_whole, taken, .. } = delivery;
            delivered |= taken;
            for _ in 0..refused {
                engine.count(DropReason::PortRefused);
            }
            if let Some(error) = refused_whole {
                self.write_singly(&error);
            }
            self.flush(now);
            if count < Inbox::MESSAGES {
                return Ok(delivered);
            }
        }
        *more = true;
        Ok(delivered)
    }

    /// Port to UDP. True if there may be more.
    fn drain_port(&mut self, now: Instant) -> io::Result<bool> {
        for turn in 0..if self.rested && self.port.fd().is_some() { 1 } else { PORT_CALLS } {
            let taken = match self.port.take(&mut self.room) {
                // The device is down, as before it is set up or after somebody took it down: no packets.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(false),
                taken => taken?,
            };
            let Some((header, length)) = taken else { return Ok(false) };
            self.seal(header, length, now);
            // The first does not wait to see whether there are others: a lone packet leaves a system call earlier.
            if turn == 0 || self.batch.is_full() {
                self.flush(now);
            }
        }
        // After a rest one packet is likely alone: whether it is, the next wait tells.
        Ok(!self.rested)
    }

    /// Seals what lies in the room, segment by segment.
    fn seal(&mut self, header: VnetHeader, length: usize, now: Instant) {
        let mut too_big = None;
        match Segments::new(header, &mut self.room[VNET_BYTES..], length) {
            Ok(mut segments) => {
                while let Some((packet, length)) = segments.next() {
                    match self.engine.handle_packet(packet, length, now, &mut self.batch) {
                        Ok(()) => {}
                        Err(DropReason::TooBig) if too_big.is_none() => {
                            // The kernel's next attempt is smaller; one answer for a super-packet is enough.
                            let mut answer = [0u8; VNET_BYTES + TOO_BIG_BYTES];
                            let answered =
                                packet.get(..length).and_then(|packet| self.engine.answer_too_big(packet, now, &mut answer[VNET_BYTES..]));
                            too_big = Some(answered.map(|length| (answer, VNET_BYTES + length)));
                        }
                        Err(reason) => debug!(%reason, length, "packet dropped"),
                    }
                    if self.batch.is_full() {
                        send(&mut self.socket, &mut self.batch, &mut self.engine, &mut self.lane, &mut self.unsent, now);
                    }
                }
            }
            Err(reason) => {
                self.engine.count(reason);
                debug!(%reason, length, "packet dropped");
            }
        }
        if let Some((answer, length)) = too_big.flatten()
            && let Some(answer) = answer.get(..length)
            && let Err(error) = self.port.deliver(answer, now)
        {
            debug!(%error, "port refused an answer");
        }
    }

    fn flush(&mut self, now: Instant) {
        if !self.batch.is_empty() {
            send(&mut self.socket, &mut self.batch, &mut self.engine, &mut self.lane, &mut self.unsent, now);
        }
    }

    /// The kernel does not take super-packets, whatever it said: from now on packets are written one by one.
    fn write_singly(&mut self, error: &io::Error) {
        self.lane.refused_super_packets += 1;
        if self.lane.coalescing {
            warn!(%error, "this kernel takes no super-packets from the tunnel: it works, and is slower");
            self.lane.coalescing = false;
            self.coalescer.set_offloads(crate::offload::Offloads { tcp: false, udp: false });
        }
    }

    /// Logs news and publishes counters.
    fn tell(&mut self, now: Instant) {
        let mut news = std::mem::take(&mut self.stale);
        while let Some(event) = self.engine.poll_event() {
            news = true;
            log(&event);
        }
        // The kernel learns of a smaller path by ICMP; the stack inside the process is told.
        let path = self.engine.smallest_path();
        if std::mem::replace(&mut self.path, path) != path {
            self.port.set_mtu(path, now);
        }
        if news || now.saturating_duration_since(self.published) >= PUBLISH_EVERY {
            self.published = now;
            self.lane.attached = self.port.is_attached();
            let mut snapshot = self.engine.snapshot(now, SystemTime::now(), self.lane.clone());
            snapshot.streams = self.port.streams();
            self.publisher.send_replace(snapshot);
        }
    }
}

/// The largest ICMP message about a packet that is too big: RFC 4443 §3.2 allows 1280 bytes.
const TOO_BIG_BYTES: usize = 1280;

/// Where the coalescer writes to.
struct Delivery<'a> {
    port: &'a mut PacketPort,
    now: Instant,
    taken: bool,
    refused: usize,
    /// A super-packet was refused as such.
    refused_whole: Option<io::Error>,
}

impl Delivery<'_> {
    fn write(&mut self, packet: &[u8]) {
        let Err(error) = self.port.deliver(packet, self.now) else {
            self.taken = true;
            return;
        };
        let header = VnetHeader::parse(packet).unwrap_or(VnetHeader::PLAIN);
        if header.gso == Gso::None || !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO | libc::EOPNOTSUPP)) {
            debug!(%error, "port refused a packet");
            self.refused += 1;
            return;
        }
        // It leaves in its segments: nothing is lost for having been joined. This happens once in the life of a lane.
        let mut copy = packet.to_vec();
        let length = copy.len() - VNET_BYTES;
        let Ok(mut segments) = Segments::new(header, &mut copy[VNET_BYTES..], length) else {
            self.refused += 1;
            return;
        };
        let mut plain = [0u8; VNET_BYTES].to_vec();
        let mut taken = false;
        while let Some((segment, length)) = segments.next() {
            plain.truncate(VNET_BYTES);
            plain.extend_from_slice(segment.get(..length).unwrap_or_default());
            match self.port.deliver(&plain, self.now) {
                Ok(()) => taken = true,
                Err(_) => self.refused += 1,
            }
        }
        // A device that is down takes nothing, which says nothing about super-packets.
        if taken {
            self.refused_whole = Some(error);
        }
    }
}

/// Sends the batch, counts what did not leave, and says so once in a while.
fn send(
    socket: &mut UdpSocket,
    batch: &mut Batch,
    engine: &mut Engine,
    lane: &mut LaneSnapshot,
    unsent: &mut HashMap<Endpoint, Instant>,
    now: Instant,
) {
    socket.send(batch, |news| match news {
        SendNews::Failed { outer, datagrams, error } => {
            for _ in 0..datagrams {
                engine.count(DropReason::SendFailed);
            }
            let endpoint = outer.endpoint;
            // To an operator it is news, not state: a line for an endpoint once in a while.
            if unsent.get(&endpoint).is_none_or(|said| now.saturating_duration_since(*said) >= SAY_AGAIN) {
                warn!(%error, endpoint = %endpoint.address, "datagrams cannot be sent to this endpoint");
                if unsent.len() >= MOST_UNSENT {
                    unsent.clear();
                }
                unsent.insert(endpoint, now);
            }
        }
        SendNews::SourceGone(source) => {
            debug!(%source, "the address that the peer wrote to is no longer ours");
            engine.forget_source(source);
        }
        SendNews::NoSegmentation(error) => {
            warn!(%error, "this kernel or device segments no datagrams: the tunnel works, and is slower");
            lane.segmentation = false;
        }
    });
    batch.clear();
}

fn log(event: &Event) {
    let short = PublicKey::short;
    match event {
        Event::SessionUp { peer, endpoint } => info!(peer = short(peer), %endpoint, "session up"),
        Event::SessionDown { peer } => warn!(peer = short(peer), "session down"),
        Event::EndpointMoved { peer, from, to } => info!(peer = short(peer), from = ?from, %to, "endpoint moved"),
        Event::Trouble { peer, trouble } => warn!(peer = short(peer), reason = trouble.label(), "{trouble}"),
        Event::Switched { peer, to, back: false } => warn!(peer = short(peer), %to, "no answer to probes: the next endpoint takes over"),
        Event::Switched { peer, to, back: true } => info!(peer = short(peer), %to, "back to the better endpoint, which answers again"),
        Event::Resized { peer, from, to } if to < from => {
            warn!(peer = short(peer), from, to, "the path swallows large packets: smaller ones from now on");
        }
        Event::Resized { peer, from, to } => info!(peer = short(peer), from, to, "the path takes larger packets again"),
        Event::UnknownKey { key, from } => warn!(key = %key, %from, "handshake from a key that is not configured"),
    }
}

/// Keeps this thread on one processor.
#[expect(unsafe_code, reason = "sched_setaffinity has no wrapper in std")]
fn stay_on(cpu: usize) {
    // SAFETY: an all-zero cpu_set_t is the empty set; CPU_SET is given a number below CPU_SETSIZE, as the configuration checks
    // and the comparison makes sure; the set outlives the call.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if cpu < libc::CPU_SETSIZE as usize {
            libc::CPU_SET(cpu, &mut set);
        }
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result < 0 {
        warn!(cpu, error = %io::Error::last_os_error(), "the lane is not bound to its processor");
    }
}
