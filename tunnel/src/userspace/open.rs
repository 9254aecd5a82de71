//! A stream that stands: bytes between the relay's pipe and the stack's socket, both ways, as long as both take them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use smoltcp::socket::tcp;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::stream::{Fate, Stream};

/// A stream that stands.
pub(super) struct Open {
    pipe: DuplexStream,
    pub(super) fate: Arc<Fate>,
    /// The relay will write no more; FIN is on its way.
    sent_end: bool,
    /// The tunnel will send no more; the relay has been told.
    pub(super) received_end: bool,
    /// When the relay was first seen to have let go of its end.
    pub(super) let_go: Option<Instant>,
}

/// A pipe: the relay's end, and the flow's.
pub(super) fn open() -> (Stream, Open) {
    let (theirs, ours) = tokio::io::duplex(PIPE_BYTES);
    let fate = Arc::new(Fate::default());
    (Stream::new(theirs, Arc::clone(&fate)), Open { pipe: ours, fate, sent_end: false, received_end: false, let_go: None })
}

impl Open {
    /// Relay to tunnel.
    pub(super) fn upward(&mut self, socket: &mut tcp::Socket<'_>, cx: &mut Context<'_>) {
        while !self.sent_end && socket.can_send() {
            let pipe = Pin::new(&mut self.pipe);
            let read = socket.send(|room| {
                let mut buffer = ReadBuf::new(room);
                let polled = pipe.poll_read(cx, &mut buffer).map(|result| result.is_ok());
                let length = buffer.filled().len();
                (length, polled.map(|good| good && length > 0))
            });
            match read {
                Ok(Poll::Pending) => break,
                Ok(Poll::Ready(true)) => {}
                // Nothing read from a ready pipe is its end.
                Ok(Poll::Ready(false)) | Err(_) => {
                    self.sent_end = true;
                    socket.close();
                }
            }
        }
    }

    /// Tunnel to relay.
    pub(super) fn downward(&mut self, socket: &mut tcp::Socket<'_>, cx: &mut Context<'_>) {
        while socket.can_recv() {
            let pipe = Pin::new(&mut self.pipe);
            let written = socket.recv(|bytes| match pipe.poll_write(cx, bytes) {
                Poll::Ready(Ok(length)) => (length, Poll::Ready(true)),
                Poll::Ready(Err(_)) => (0, Poll::Ready(false)),
                Poll::Pending => (0, Poll::Pending),
            });
            match written {
                Ok(Poll::Ready(true)) => {}
                Ok(Poll::Pending) => return,
                // The relay dropped its end and bytes still come: tell the sender.
                Ok(Poll::Ready(false)) | Err(_) => {
                    socket.abort();
                    self.received_end = true;
                    return;
                }
            }
        }
        if socket.state() == tcp::State::Closed && !(self.sent_end && self.received_end) {
            self.fate.reset.store(true, Ordering::Release);
        }
        if !self.received_end && !socket.may_recv() {
            self.received_end = true;
            // An in-memory pipe shuts down at once.
            let _done = Pin::new(&mut self.pipe).poll_shutdown(cx);
        }
    }
}

const PIPE_BYTES: usize = 16 * 1024;
