//! A stream that stands: bytes between the relay's pipes and the stack's socket, both ways, as long as both take them.

use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

use smoltcp::socket::tcp;

use super::pipe::{Taken, Written};
use super::stream::{Channel, Stream};

/// A stream that stands.
pub(super) struct Open {
    channel: Arc<Channel>,
    /// The relay will write no more; FIN is on its way.
    sent_end: bool,
    /// The tunnel will send no more; the relay has been told.
    received_end: bool,
    /// When the relay was first seen to have let go of its end.
    let_go: Option<Instant>,
}

/// How far one move got.
enum Moved {
    Some,
    /// The other side has nothing, or no room, for now.
    Wait,
    /// The other side has ended.
    End,
}

/// The relay's end of a stream and the flow's, with `pipe_bytes` each way between them.
pub(super) fn open(pipe_bytes: usize) -> (Stream, Open) {
    let channel = Arc::new(Channel::new(pipe_bytes));
    (Stream::new(Arc::clone(&channel)), Open { channel, sent_end: false, received_end: false, let_go: None })
}

impl Open {
    /// Relay to tunnel.
    pub(super) fn upward(&mut self, socket: &mut tcp::Socket<'_>, cx: &Context<'_>) {
        while !self.sent_end && socket.can_send() {
            let pipe = &self.channel.up;
            let moved = socket.send(|room| match pipe.read(room, cx) {
                Taken::Bytes(count) => (count, Moved::Some),
                Taken::Empty => (0, Moved::Wait),
                Taken::Ended => (0, Moved::End),
            });
            match moved {
                Ok(Moved::Some) => {}
                Ok(Moved::Wait) => break,
                Ok(Moved::End) | Err(_) => {
                    self.sent_end = true;
                    socket.close();
                }
            }
        }
    }

    /// Tunnel to relay.
    pub(super) fn downward(&mut self, socket: &mut tcp::Socket<'_>, cx: &Context<'_>) {
        while socket.can_recv() {
            let pipe = &self.channel.down;
            let moved = socket.recv(|bytes| match pipe.write(bytes, cx) {
                Written::Bytes(count) => (count, Moved::Some),
                Written::Full => (0, Moved::Wait),
                Written::Deserted => (0, Moved::End),
            });
            match moved {
                Ok(Moved::Some) => {}
                Ok(Moved::Wait) => return,
                // The relay dropped its end and bytes still come: tell the sender.
                Ok(Moved::End) | Err(_) => {
                    socket.abort();
                    self.received_end = true;
                    return;
                }
            }
        }
        // smoltcp tells a FIN that has been reached from every other end.
        let in_order = matches!(socket.recv(|_| (0, ())), Err(tcp::RecvError::Finished));
        if !self.received_end && !socket.may_recv() {
            self.received_end = true;
            if in_order {
                self.channel.down.end();
            } else {
                self.channel.fail();
            }
        }
        if socket.state() == tcp::State::Closed && !self.sent_end {
            self.sent_end = true;
            self.channel.fail();
        }
    }

    /// Whether nothing is left to be done for it.
    pub(super) fn is_over(&self, socket: &tcp::Socket<'_>) -> bool {
        socket.state() == tcp::State::Closed && (self.received_end || self.channel.is_dropped())
    }

    /// Since when the relay has let go of it, as far as it was seen; `now` is when it is looked at.
    pub(super) fn let_go(&mut self, now: Instant) -> Option<Instant> {
        self.channel.is_dropped().then(|| *self.let_go.get_or_insert(now))
    }
}

impl Drop for Open {
    /// What did not end in order must not look as if it had, as when the lane stops.
    fn drop(&mut self) {
        if !(self.sent_end && self.received_end) {
            self.channel.fail();
        }
    }
}
