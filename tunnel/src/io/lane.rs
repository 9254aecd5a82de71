//! One thread, one UDP socket, one packet port, one engine.
//!
//! ```text
//!            ┌───────────────────────── poll ─────────────────────────┐
//!            │  eventfd          UDP socket        port        timer  │
//!            └────┬──────────────────┬──────────────┬────────────┬────┘
//!                 ▼                  ▼              ▼            ▼
//!             commands          drain: open    drain: seal    timers
//!                                    │              │            │
//!                                    ▼              └── Batch ◄──┘
//!                                  port                  │
//!                                                        ▼ flush
//! ```
//! Each input is drained until it has nothing more, up to a bound, so that none starves the others; the lane
//! never waits for more.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use std::{io, thread};

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::port::{PacketPort, PreparedPort};
use super::udp::UdpSocket;
use super::wake::Wake;
use crate::batch::{Batch, Endpoint};
use crate::engine::{Engine, Event, PeerChange, Received};
use crate::error::DropReason;
use crate::key::{PrivateKey, PublicKey};
use crate::settings::PeerSettings;
use crate::stats::Snapshot;

/// Datagrams or packets taken from one input before the others have their turn.
const TURN: usize = 256;
/// How soon the same failure is worth another line.
const SAY_AGAIN: Duration = Duration::from_secs(10);
/// Failing endpoints that are remembered.
const MOST_UNSENT: usize = 64;
const COMMANDS: usize = 1024;
const PUBLISH_EVERY: Duration = Duration::from_millis(200);
/// The longest IP packet, and room for the padding behind it.
const ROOM_BYTES: usize = 65_535 + crate::PADDING;

/// What a lane is made of, prepared so that starting it cannot fail for want of a resource.
pub struct LaneSettings {
    /// The tunnel's name, for the thread and the log.
    pub name: String,
    pub key: PrivateKey,
    pub mtu: u32,
    /// Those that there are from the start.
    pub peers: Vec<PeerSettings>,
    pub socket: UdpSocket,
    pub port: PreparedPort,
    pub wake: Wake,
}

/// The handle of a running lane. Dropping it stops the lane and waits for its thread.
pub struct Lane {
    commands: SyncSender<Command>,
    wake: Wake,
    snapshot: watch::Receiver<Snapshot>,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    Change(Box<PeerChange>),
    SetMtu(u32),
    Stop,
}

impl Lane {
    /// Starts the thread. Fails only if the system makes no more threads.
    pub fn start(settings: LaneSettings) -> io::Result<Self> {
        let now = Instant::now();
        let (commands, inbox) = sync_channel(COMMANDS);
        let mut engine = Engine::new(settings.key, settings.mtu, now);
        for peer in settings.peers {
            engine.apply(PeerChange::Add(peer), now);
        }
        let (publisher, snapshot) = watch::channel(engine.snapshot(now, SystemTime::now(), settings.socket.port()));
        let wake = settings.wake.clone();
        let name = settings.name;
        let (socket, prepared) = (settings.socket, settings.port);
        let thread = thread::Builder::new().name(format!("lane {name}")).spawn({
            let wake = wake.clone();
            move || {
                let span = tracing::info_span!("tunnel", name);
                let _entered = span.enter();
                let port = PacketPort::open(prepared, &wake, now);
                let mut running = Running {
                    engine,
                    socket,
                    port,
                    wake,
                    inbox,
                    publisher,
                    published: now,
                    batch: Batch::new(),
                    unsent: HashMap::new(),
                    stale: false,
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

    /// Queues an edit of the peers. False if the lane has ended.
    pub fn change(&self, change: PeerChange) -> bool {
        self.command(Command::Change(Box::new(change)))
    }

    /// Queues a new MTU. False if the lane has ended.
    pub fn set_mtu(&self, mtu: u32) -> bool {
        self.command(Command::SetMtu(mtu))
    }

    fn command(&self, mut command: Command) -> bool {
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
    pub fn snapshots(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.clone()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let _ended = self.commands.try_send(Command::Stop);
        self.wake.wake();
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
    /// Endpoints that datagrams could not be sent to, and when that was last said.
    unsent: HashMap<Endpoint, Instant>,
    /// An edit has made the published snapshot untrue.
    stale: bool,
}

impl Running {
    fn run(&mut self) -> io::Result<()> {
        let mut datagram = vec![0u8; ROOM_BYTES];
        let mut room = vec![0u8; ROOM_BYTES];
        loop {
            let now = Instant::now();
            if !self.obey(now) {
                return Ok(());
            }
            let more = self.drain_socket(&mut datagram, &mut room)? | self.drain_port(&mut room)?;
            let now = Instant::now();
            self.engine.handle_timeout(now, &mut self.batch);
            self.port.handle_timeout(now);
            // What the stack just wrote leaves now, not at the next wake-up.
            let more = more | self.drain_port(&mut room)?;
            self.flush();
            self.tell(now);
            if !more {
                let until = self.engine.poll_timeout().saturating_duration_since(now);
                let delay = self.port.poll_delay(now).map_or(until, |delay| delay.min(until));
                wait([self.socket.fd(), self.wake.fd(), self.port.fd().unwrap_or(-1)], delay)?;
                self.wake.clear();
            }
        }
    }

    /// Carries out commands; false when told to stop.
    fn obey(&mut self, now: Instant) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Change(change)) => {
                    self.engine.apply(*change, now);
                    self.stale = true;
                }
                Ok(Command::SetMtu(mtu)) => {
                    self.engine.set_mtu(mtu);
                    self.port.set_mtu(mtu, now);
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    /// UDP to port. True if there may be more.
    fn drain_socket(&mut self, datagram: &mut [u8], plain: &mut [u8]) -> io::Result<bool> {
        let now = Instant::now();
        for _ in 0..TURN {
            let Some((length, from)) = self.socket.receive(datagram)? else { return Ok(false) };
            let Some(bytes) = datagram.get(..length) else { continue };
            if let Received::Packet(packet) = self.engine.handle_datagram(bytes, from, now, plain, &mut self.batch)
                && let Err(error) = self.port.deliver(packet, now)
            {
                debug!(%error, "port refused a packet");
                self.engine.count(DropReason::PortRefused);
            }
            if self.batch.is_full() {
                self.flush();
            }
        }
        Ok(true)
    }

    /// Port to UDP. True if there may be more.
    fn drain_port(&mut self, room: &mut [u8]) -> io::Result<bool> {
        let now = Instant::now();
        for _ in 0..TURN {
            let taken = match self.port.take(room) {
                // The device is down, as before it is set up or after somebody took it down: no packets.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(false),
                taken => taken?,
            };
            let Some(length) = taken else { return Ok(false) };
            if let Err(reason) = self.engine.handle_packet(room, length, now, &mut self.batch) {
                debug!(%reason, length, "packet dropped");
            }
            if self.batch.is_full() {
                self.flush();
            }
        }
        Ok(true)
    }

    fn flush(&mut self) {
        for (datagram, endpoint) in self.batch.iter() {
            let error = self.socket.send(datagram, endpoint).err();
            if error.is_some() {
                self.engine.count(DropReason::SendFailed);
            }
            // To an operator it is news, not state: a line for an endpoint once in a while.
            if let Some(error) = error
                && self.unsent.get(&endpoint).is_none_or(|said| said.elapsed() >= SAY_AGAIN)
            {
                warn!(%error, endpoint = %endpoint.address, "datagrams cannot be sent to this endpoint");
                if self.unsent.len() >= MOST_UNSENT {
                    self.unsent.clear();
                }
                self.unsent.insert(endpoint, Instant::now());
            }
        }
        self.batch.clear();
    }

    /// Logs news and publishes counters.
    fn tell(&mut self, now: Instant) {
        let mut news = std::mem::take(&mut self.stale);
        while let Some(event) = self.engine.poll_event() {
            news = true;
            log(&event);
        }
        if news || now.saturating_duration_since(self.published) >= PUBLISH_EVERY {
            self.published = now;
            let mut snapshot = self.engine.snapshot(now, SystemTime::now(), self.socket.port());
            snapshot.streams = self.port.streams();
            self.publisher.send_replace(snapshot);
        }
    }
}

fn log(event: &Event) {
    let short = PublicKey::short;
    match event {
        Event::SessionUp { peer, endpoint } => info!(peer = short(peer), %endpoint, "session up"),
        Event::SessionDown { peer } => warn!(peer = short(peer), "session down"),
        Event::EndpointMoved { peer, from, to } => info!(peer = short(peer), from = ?from, %to, "endpoint moved"),
        Event::Trouble { peer, trouble } => warn!(peer = short(peer), reason = trouble.label(), "{trouble}"),
        Event::UnknownKey { key, from } => warn!(key = %key, %from, "handshake from a key that is not configured"),
    }
}

/// Sleeps until one of `fds` is readable or `delay` has passed. A negative descriptor is ignored.
#[expect(unsafe_code, reason = "poll has no wrapper in std")]
fn wait(fds: [RawFd; 3], delay: Duration) -> io::Result<()> {
    let mut polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let timeout = libc::timespec { tv_sec: delay.as_secs() as libc::time_t, tv_nsec: delay.subsec_nanos() as libc::c_long };
    // SAFETY: `polled` and `timeout` live through the call, the count is theirs, and no signal mask is given.
    let ready = unsafe { libc::ppoll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, &raw const timeout, std::ptr::null()) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}
