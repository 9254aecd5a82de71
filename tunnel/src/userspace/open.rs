//! A stream that stands: bytes between the relay's pipes and the stack's socket, both ways, as long as both take them.

use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use smoltcp::socket::tcp;

use super::pipe::{Taken, Written};
use super::stream::{Channel, Stream};

/// A stream that the relay let go is cut when for so long none of its bytes got on (Linux's tcp_fin_timeout).
const LAST_WORDS: Duration = Duration::from_secs(60);
/// And after so long in any case: a peer that acknowledges byte by byte must not hold a place for ever.
const MOST_LAST_WORDS: Duration = Duration::from_secs(600);

/// A stream that stands.
pub(super) struct Open {
    channel: Arc<Channel>,
    /// The relay will write no more; FIN is on its way.
    sent_end: bool,
    /// The tunnel will send no more; the relay has been told.
    received_end: bool,
    /// What became of it since the relay let go of its end.
    last_words: Option<LastWords>,
}

/// The end of a stream that the relay let go.
struct LastWords {
    /// When that was first seen.
    began: Instant,
    /// When bytes were last seen to have got on.
    moved: Instant,
    /// Bytes that the other end has not acknowledged.
    left: usize,
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
    (Stream::new(Arc::clone(&channel)), Open { channel, sent_end: false, received_end: false, last_words: None })
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
        // Closed, and not by us: a reset or a timeout. The relay hears of it when it writes, even if it does not read.
        if socket.state() == tcp::State::Closed && !self.sent_end {
            self.sent_end = true;
            self.channel.fail_up();
        }
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
    }

    /// Whether nothing is left to be done for it.
    pub(super) fn is_over(&self, socket: &tcp::Socket<'_>) -> bool {
        socket.state() == tcp::State::Closed && (self.received_end || self.channel.is_dropped())
    }

    /// Whether both ends were sent and told: nothing is lost with it.
    pub(super) const fn is_told(&self) -> bool {
        self.sent_end && self.received_end
    }

    /// Whether the relay let go of it with bytes unread: it is to be reset.
    pub(super) fn is_abandoned(&self) -> bool {
        self.channel.is_abandoned()
    }

    /// Whether it is to be cut although it has not ended, at `now`: the relay let go of it, and its last words take too long.
    /// What is not looked at often is given more time.
    pub(super) fn has_expired(&mut self, socket: &tcp::Socket<'_>, now: Instant) -> bool {
        if !self.channel.is_dropped() {
            return false;
        }
        let left = socket.send_queue() + self.channel.up.bytes();
        let last_words = self.last_words.get_or_insert(LastWords { began: now, moved: now, left });
        if left < last_words.left {
            last_words.left = left;
            last_words.moved = now;
        }
        self.channel.is_abandoned() || now >= last_words.moved + LAST_WORDS || now >= last_words.began + MOST_LAST_WORDS
    }
}

impl Drop for Open {
    /// What did not end in order must not look as if it had, as when the lane stops.
    fn drop(&mut self) {
        if !self.is_told() {
            self.channel.fail();
        }
    }
}
