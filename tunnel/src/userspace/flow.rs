//! One stream as the lane sees it: its socket, alone in a set of its own, and what it is for.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration as StackDuration, Instant as StackInstant};
use tokio::sync::{mpsc, oneshot};

use super::open::{Open, open};
use super::ready::{FlowWaker, Ready};
use super::segment::Tuple;
use super::stream::{Accepted, DialError, Stream};

/// The unit of ring sizes. smoltcp advertises at most this much in its SYN, unscaled as it must be, but then keeps that value
/// as if it had been scaled (0.14, `socket/tcp.rs`: line 2606 makes it, 2828 keeps it, 1707 shifts it): for one round trip it
/// accepts `65,535 << shift` bytes, and if the ring is smaller, an assertion ends what then arrives behind its end
/// (`storage/ring_buffer.rs` 345). The shift is the smallest by which the ring's size fits into 16 bits (line 608). So a
/// ring of exactly `65,535 << n` bytes has the shift n, and what smoltcp accepts by mistake is what there is room for.
const RING_UNIT: usize = 65_535;
/// A SYN that has had its answer is dropped after this long without the third packet: three retransmissions.
const HALF_OPEN: Duration = Duration::from_secs(15);
/// Unacknowledged data this old ends a stream. Longer than any failover, so that streams survive one.
const USER_TIMEOUT: StackDuration = StackDuration::from_secs(120);
const KEEPALIVE: StackDuration = StackDuration::from_secs(30);
/// A second segment is acknowledged with the lane's turn in which it comes, a single one after this. Short beside any round
/// trip that matters: the other end's window is small when single segments come.
const ACK_DELAY: StackDuration = StackDuration::from_millis(2);
/// Half of smoltcp's TIME-WAIT (`CLOSE_DELAY`).
const TIME_WAIT_HALF: StackDuration = StackDuration::from_secs(5);

/// How much memory a stream may use; see the module's statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Large,
    Small,
}

impl Size {
    /// Of the stack's ring, in bytes, each way.
    const fn ring_bytes(self) -> usize {
        match self {
            // 200 Mbit/s over 20 ms are 500,000 bytes in flight; twice that, since nothing is ever on time.
            Self::Large => RING_UNIT << 4,
            Self::Small => RING_UNIT,
        }
    }

    /// Of the pipe to the relay, in bytes, each way.
    const fn pipe_bytes(self) -> usize {
        match self {
            Self::Large => 128 * 1024,
            Self::Small => 16 * 1024,
        }
    }
}

/// A stream of this lane.
pub(super) struct Flow {
    pub(super) tuple: Tuple,
    pub(super) size: Size,
    pub(super) sockets: SocketSet<'static>,
    handle: SocketHandle,
    signal: Arc<FlowWaker>,
    waker: Waker,
    purpose: Purpose,
    /// Waits for its turn to send.
    pub(super) pending: bool,
    /// Its place among the timers.
    pub(super) due: Option<StackInstant>,
    /// The last acknowledgement that smoltcp took: the number of our oldest byte that it keeps. None before it took one.
    pub(super) acknowledged: Option<u32>,
    /// Since when TIME-WAIT has waited for the relay to read.
    unread_since: Option<StackInstant>,
}

pub(super) type DialReply = oneshot::Sender<Result<Stream, DialError>>;

enum Purpose {
    /// Somebody opens it towards us.
    Opening {
        deadline: Instant,
    },
    Dialing {
        deadline: Instant,
        reply: Option<DialReply>,
    },
    Open(Open),
}

impl Flow {
    /// A flow that answers a SYN; the SYN is still to be shown to it. None if the port is no port.
    pub(super) fn opening(tuple: Tuple, size: Size, number: u32, ready: &Arc<Ready>, now: Instant) -> Option<Self> {
        let mut flow = Self::new(tuple, size, number, ready, Purpose::Opening { deadline: now + HALF_OPEN });
        flow.socket().listen(tuple.local).ok()?;
        Some(flow)
    }

    /// A flow that is to be connected by the caller.
    pub(super) fn dialing(tuple: Tuple, size: Size, number: u32, ready: &Arc<Ready>, deadline: Instant, reply: DialReply) -> Self {
        Self::new(tuple, size, number, ready, Purpose::Dialing { deadline, reply: Some(reply) })
    }

    fn new(tuple: Tuple, size: Size, number: u32, ready: &Arc<Ready>, purpose: Purpose) -> Self {
        let ring = || tcp::SocketBuffer::new(vec![0; size.ring_bytes()]);
        let mut socket = tcp::Socket::new(ring(), ring());
        socket.set_congestion_control(tcp::CongestionControl::Cubic);
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket.set_timeout(Some(USER_TIMEOUT));
        socket.set_keep_alive(Some(KEEPALIVE));
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        let signal = Arc::new(FlowWaker::new(number, Arc::clone(ready)));
        let waker = Waker::from(Arc::clone(&signal));
        // Its first service registers it with its socket.
        waker.wake_by_ref();
        Self { tuple, size, sockets, handle, signal, waker, purpose, pending: false, due: None, acknowledged: None, unread_since: None }
    }

    pub(super) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut::<tcp::Socket<'static>>(self.handle)
    }

    /// Whether the packet to come is several segments: smoltcp counts it as one, whose acknowledgement may wait.
    pub(super) fn acknowledge_at_once(&mut self, several: bool) {
        self.socket().set_ack_delay(if several { None } else { Some(ACK_DELAY) });
    }

    fn state(&self) -> tcp::State {
        self.sockets.get::<tcp::Socket<'static>>(self.handle).state()
    }

    /// Whether both ends have agreed on the connection, and nobody has broken it off (RFC 9293 §3.5.2).
    pub(super) fn is_synchronized(&self) -> bool {
        !matches!(self.state(), tcp::State::Closed | tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived)
    }

    /// How many sequence numbers behind `acknowledged` smoltcp takes an acknowledgement for: queued bytes and our FIN.
    pub(super) fn unacknowledged(&self) -> u32 {
        let socket = self.sockets.get::<tcp::Socket<'static>>(self.handle);
        let fin = matches!(socket.state(), tcp::State::FinWait1 | tcp::State::Closing | tcp::State::LastAck);
        u32::try_from(socket.send_queue() + usize::from(fin)).unwrap_or(u32::MAX)
    }

    /// Notes what smoltcp took of a segment that acknowledges `number`; `before` was unacknowledged before it was shown.
    pub(super) fn note_acknowledged(&mut self, before: u32, number: Option<u32>) {
        self.acknowledged = match self.acknowledged {
            Some(last) => Some(last.wrapping_add(before.saturating_sub(self.unacknowledged()))),
            // The number that opens a connection is checked to be the only one possible.
            None if self.is_synchronized() => number,
            None => None,
        };
    }

    /// Takes back the reply of a dial that could not begin.
    pub(super) fn into_reply(self) -> Option<DialReply> {
        match self.purpose {
            Purpose::Dialing { reply, .. } => reply,
            Purpose::Opening { .. } | Purpose::Open(_) => None,
        }
    }

    pub(super) const fn is_opening(&self) -> bool {
        matches!(self.purpose, Purpose::Opening { .. })
    }

    /// An opening that was broken off: smoltcp would have the socket listen again, for anybody.
    pub(super) fn is_broken_off(&self) -> bool {
        self.is_opening() && matches!(self.state(), tcp::State::Listen | tcp::State::Closed)
    }

    /// All was said and read and told, and only TIME-WAIT is left, or less: it may go if its place is needed.
    pub(super) fn is_lingering(&self) -> bool {
        let told = match &self.purpose {
            Purpose::Open(open) => open.is_told(),
            Purpose::Opening { .. } | Purpose::Dialing { .. } => false,
        };
        let socket = self.sockets.get::<tcp::Socket<'static>>(self.handle);
        told && matches!(socket.state(), tcp::State::TimeWait | tcp::State::Closed) && !socket.can_recv()
    }

    /// TIME-WAIT ends by throwing away what the relay has not read yet (`reset`): it must not, however slow the relay is.
    pub(super) fn waits_for_reader(&mut self, at: StackInstant) -> bool {
        let socket = self.sockets.get::<tcp::Socket<'static>>(self.handle);
        if socket.state() != tcp::State::TimeWait || !socket.can_recv() {
            return false;
        }
        // The other end's FIN is still acknowledged.
        at >= *self.unread_since.get_or_insert(at) + TIME_WAIT_HALF
    }

    /// Moves what can be moved and asks to be woken for the rest. False if it has ended.
    pub(super) fn serve(&mut self, ports: &HashMap<u16, mpsc::Sender<Accepted>>) -> bool {
        self.signal.served();
        let socket = self.sockets.get_mut::<tcp::Socket<'static>>(self.handle);
        socket.register_recv_waker(&self.waker);
        socket.register_send_waker(&self.waker);
        match &mut self.purpose {
            Purpose::Opening { .. } => match socket.state() {
                tcp::State::Listen | tcp::State::SynReceived | tcp::State::SynSent => return true,
                tcp::State::Closed => return false,
                tcp::State::Established
                | tcp::State::FinWait1
                | tcp::State::FinWait2
                | tcp::State::CloseWait
                | tcp::State::Closing
                | tcp::State::LastAck
                | tcp::State::TimeWait => match accept(self.tuple, self.size, ports) {
                    Some(open) => self.purpose = Purpose::Open(open),
                    // The listener is gone, or cannot keep up.
                    None => {
                        socket.abort();
                        return false;
                    }
                },
            },
            Purpose::Dialing { reply, .. } => {
                if socket.may_send() {
                    let (stream, open) = open(self.size.pipe_bytes());
                    match reply.take().map(|reply| reply.send(Ok(stream))) {
                        Some(Ok(())) => self.purpose = Purpose::Open(open),
                        // The relay has given up.
                        Some(Err(_)) | None => {
                            socket.abort();
                            return false;
                        }
                    }
                } else if socket.state() == tcp::State::Closed {
                    if let Some(reply) = reply.take() {
                        let _gone = reply.send(Err(DialError::Refused));
                    }
                    return false;
                } else {
                    return true;
                }
            }
            Purpose::Open(_) => {}
        }
        let Purpose::Open(open) = &mut self.purpose else { return true };
        let cx = Context::from_waker(&self.waker);
        open.upward(socket, &cx);
        open.downward(socket, &cx);
        // Asked last: whoever saw the relay's end above sees this too.
        if open.is_abandoned() {
            socket.abort();
            return false;
        }
        !open.is_over(socket)
    }

    /// Whether its time has passed, at `now`. A dial is told so.
    pub(super) fn has_expired(&mut self, ports: &HashMap<u16, mpsc::Sender<Accepted>>, now: Instant) -> bool {
        match &mut self.purpose {
            Purpose::Opening { deadline } => now >= *deadline || ports.get(&self.tuple.local.port()).is_none_or(mpsc::Sender::is_closed),
            Purpose::Dialing { deadline, reply } => {
                let gone = reply.as_ref().is_none_or(oneshot::Sender::is_closed);
                if now < *deadline && !gone {
                    return false;
                }
                if let Some(reply) = reply.take() {
                    let _gone = reply.send(Err(DialError::TimedOut));
                }
                true
            }
            Purpose::Open(open) => open.has_expired(self.sockets.get::<tcp::Socket<'static>>(self.handle), now),
        }
    }
}

/// Hands a new connection to the listener of its port; None if it is gone or cannot keep up.
fn accept(tuple: Tuple, size: Size, ports: &HashMap<u16, mpsc::Sender<Accepted>>) -> Option<Open> {
    let accepted = ports.get(&tuple.local.port())?;
    let (stream, open) = open(size.pipe_bytes());
    accepted.try_send(Accepted { stream, from: tuple.remote }).ok().map(|()| open)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// smoltcp's rule (`Socket::new`), and what it accepts after a SYN.
    #[test]
    fn what_smoltcp_accepts_after_its_syn_fits_into_the_ring() {
        for size in [Size::Large, Size::Small] {
            let ring = size.ring_bytes();
            let bits = usize::BITS - ring.leading_zeros();
            assert!(RING_UNIT << bits.saturating_sub(16) <= ring, "{size:?}");
        }
    }
}
