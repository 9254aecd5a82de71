//! A TLS session as one of the relay's streams.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::Stream;

/// `S` is tokio-rustls's stream, of either side.
///
/// - It has no descriptor to give: bytes that went by it would bypass TLS.
/// - What is written is sealed at once and sent as far as the stream below takes it. The rest, one write's at most, goes with the
///   next call of any kind, reading included, so that who only reads after a write is not waiting for an answer
///   to what was never sent. Hence one task must own it whole.
/// - A stream that ends without TLS's farewell has ended: many clients and proxies send none, and what the relay carries
///   is TLS again, which notices a missing end itself.
pub(super) struct Encrypted<S> {
    tls: S,
    unsent: bool,
}

impl<S> Encrypted<S> {
    pub(super) const fn new(tls: S) -> Self {
        Self { tls, unsent: false }
    }
}

impl<S: AsyncWrite + Unpin> Encrypted<S> {
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent {
            ready!(Pin::new(&mut self.tls).poll_flush(cx))?;
            self.unsent = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for Encrypted<S> {}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Its errors are the writer's to meet: there may still be something to read.
        let _sent = this.poll_sent(cx);
        match ready!(Pin::new(&mut this.tls).poll_read(cx, buffer)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_sent(cx))?;
        let length = ready!(Pin::new(&mut this.tls).poll_write(cx, bytes))?;
        this.unsent = true;
        match this.poll_sent(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(length)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.tls).poll_flush(cx))?;
        this.unsent = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_shutdown(cx)
    }
}
