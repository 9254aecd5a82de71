//! The relay's end of a stream inside the tunnel.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

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

/// What both ends of a stream know beside its bytes.
#[derive(Debug, Default)]
pub(super) struct Fate {
    /// The other end reset the connection, or it timed out.
    pub(super) reset: AtomicBool,
    /// The relay dropped its end.
    pub(super) dropped: AtomicBool,
}

/// A TCP stream inside the tunnel. `shutdown` sends FIN; dropping it without one resets if bytes are unread.
#[derive(Debug)]
pub struct Stream {
    pipe: DuplexStream,
    fate: Arc<Fate>,
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
    pub(super) const fn new(pipe: DuplexStream, fate: Arc<Fate>) -> Self {
        Self { pipe, fate }
    }

    fn reset(&self) -> bool {
        self.fate.reset.load(Ordering::Acquire)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.fate.dropped.store(true, Ordering::Release);
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.pipe).poll_read(cx, buf);
        if result.is_ready() && buf.filled().len() == before && self.reset() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        result
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = if self.reset() { Poll::Pending } else { Pin::new(&mut self.pipe).poll_write(cx, bytes) };
        // The lane sets the fate before it lets go of its end of the pipe.
        if self.reset() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}
