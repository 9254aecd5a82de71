//! The relay's end of a stream inside the tunnel.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::coop::poll_proceed;

use super::pipe::{Pipe, Taken, Written};

/// Why a dial inside the tunnel failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    #[error("connection refused")]
    Refused,
    #[error("no answer in time")]
    TimedOut,
    #[error("the tunnel has no address of that family")]
    NoAddress,
    #[error("too many streams in the tunnel")]
    TooMany,
    #[error("the tunnel has stopped")]
    Stopped,
}

/// What joins both ends of a stream.
pub(super) struct Channel {
    /// Relay to tunnel.
    pub(super) up: Pipe,
    /// Tunnel to relay.
    pub(super) down: Pipe,
    /// The other end reset the connection, or it timed out.
    reset: AtomicBool,
    /// The relay dropped its end.
    dropped: AtomicBool,
    /// And that with bytes unread: the other end must not believe that they were.
    abandoned: AtomicBool,
}

impl Channel {
    /// A channel that holds up to `bytes` bytes each way.
    pub(super) fn new(bytes: usize) -> Self {
        let [reset, dropped, abandoned] = [false; 3].map(AtomicBool::new);
        Self { up: Pipe::new(bytes), down: Pipe::new(bytes), reset, dropped, abandoned }
    }

    /// The connection is broken: the relay reads what has arrived, and then an error.
    pub(super) fn fail(&self) {
        self.fail_up();
        self.down.end();
    }

    /// The connection is broken, and more of what has arrived is to be handed over before [`Self::fail`]: writes fail at once.
    pub(super) fn fail_up(&self) {
        self.reset.store(true, Ordering::Release);
        self.up.desert();
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    fn is_reset(&self) -> bool {
        self.reset.load(Ordering::Acquire)
    }
}

/// A TCP stream inside the tunnel. `shutdown` sends FIN; dropping it without one resets if bytes are unread.
pub struct Stream {
    channel: Arc<Channel>,
    /// `shutdown` was asked for.
    finished: bool,
}

/// A stream that somebody in the tunnel opened, and who.
#[derive(Debug)]
pub struct Accepted {
    pub stream: Stream,
    pub from: SocketAddr,
}

/// Streams that arrive at one port inside the tunnel.
#[derive(Debug)]
pub struct Listener {
    pub(super) accepted: mpsc::Receiver<Accepted>,
}

impl Listener {
    /// The next stream; None when the tunnel has stopped.
    pub async fn accept(&mut self) -> Option<Accepted> {
        self.accepted.recv().await
    }
}

impl Stream {
    pub(super) const fn new(channel: Arc<Channel>) -> Self {
        Self { channel, finished: false }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("reset", &self.channel.is_reset()).finish_non_exhaustive()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let unread = self.channel.down.desert();
        // Before the end of `up`, so that the lane does not take that for one in order.
        self.channel.abandoned.store(unread && !self.finished, Ordering::Release);
        self.channel.dropped.store(true, Ordering::Release);
        self.channel.up.end();
    }
}

/// Reads and writes count against tokio's budget for a task: one whose other end keeps up would never give way otherwise.
impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let budget = ready!(poll_proceed(cx));
        let polled = match self.channel.down.read(buf.initialize_unfilled(), cx) {
            Taken::Bytes(count) => {
                buf.advance(count);
                Poll::Ready(Ok(()))
            }
            Taken::Ended if self.channel.is_reset() => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Taken::Ended => Poll::Ready(Ok(())),
            Taken::Empty => Poll::Pending,
        };
        if polled.is_ready() {
            budget.made_progress();
        }
        polled
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let budget = ready!(poll_proceed(cx));
        let polled = match self.channel.up.write(bytes, cx) {
            Written::Bytes(count) => Poll::Ready(Ok(count)),
            Written::Full => Poll::Pending,
            // The lane says that it is broken before it lets go of its end.
            Written::Deserted if self.channel.is_reset() => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Written::Deserted => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        if polled.is_ready() {
            budget.made_progress();
        }
        polled
    }

    /// The lane takes what is written by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        self.channel.up.end();
        Poll::Ready(Ok(()))
    }
}
