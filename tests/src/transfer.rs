//! Bytes over TCP from one namespace to another, compared by their SHA-256 at both ends.
//!
//! The receiver answers with the digest of what came, so a transfer that is done has also brought something back. Both ends
//! are threads of the test. BBR is taken where the host has it: what is tested is the tunnel, and Cubic on a path that
//! loses every fifth segment takes minutes for a megabyte.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::SupportedCipherSuite;
use rustls::crypto::hash::{Context, Hash};
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use socket2::SockRef;

use crate::inside::inside;
use crate::netns::Namespace;
use crate::random::Random;
use crate::{seconds, wait_for};

/// A transfer that is to be.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    pub from: &'a Namespace,
    pub to: &'a Namespace,
    /// Where the receiver listens, an address of `to`.
    pub target: SocketAddr,
    pub bytes: u64,
    /// None: as fast as it goes.
    pub bytes_per_second: Option<u64>,
}

/// A running transfer. Dropping it ends both threads.
#[derive(Debug)]
pub struct Transfer {
    order: String,
    bytes: u64,
    received: Arc<AtomicU64>,
    /// To end what is still under way.
    stream: TcpStream,
    sender: Option<JoinHandle<io::Result<(Digest, Digest)>>>,
    receiver: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

/// Sent with one call, and what is hashed at once.
const BLOCK_BYTES: usize = 64 * 1024;
/// Until the connection stands. A lost SYN is sent again after 1, 3, 7, 15 and 31 seconds.
const CONNECT: Duration = seconds(60);
/// Without a byte either way: longer than any outage of the suites.
const SILENCE: Duration = seconds(300);

impl Transfer {
    /// Connects and starts.
    #[track_caller]
    pub fn start(order: Order<'_>) -> Self {
        let Order { from, to, target, bytes, bytes_per_second } = order;
        let listener = inside(to, || TcpListener::bind(target)).unwrap_or_else(|error| panic!("{target}: {error}"));
        let received = Arc::new(AtomicU64::new(0));
        let receiver = thread::spawn({
            let received = Arc::clone(&received);
            move || receive(&listener, &received)
        });
        let connected = inside(from, || TcpStream::connect_timeout(&target, CONNECT));
        let stream = connected.unwrap_or_else(|error| panic!("{target}: {error}"));
        let sending = stream.try_clone().expect("a descriptor more");
        let sender = thread::spawn(move || send(sending, bytes, bytes_per_second));
        let order = format!("{bytes} bytes from {} to {target}", from.name());
        Self { order, bytes, received, stream, sender: Some(sender), receiver: Some(receiver) }
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether some of it has not come yet.
    pub fn is_under_way(&self) -> bool {
        self.received() < self.bytes
    }

    /// Waits until so many bytes have come.
    #[track_caller]
    pub fn wait_until_received(&self, bytes: u64, within: Duration) {
        wait_for(&format!("{bytes} bytes of: {}", self.order), within, || self.received() >= bytes);
    }

    /// Waits until all has come and been answered; what came must be what was sent.
    #[track_caller]
    pub fn finish(mut self, within: Duration) {
        let sender = self.sender.take().expect("only taken here and when dropped");
        wait_for(&self.order, within, || sender.is_finished());
        let ended = sender.join().expect("the sender does not panic");
        let (sent, came) = ended.unwrap_or_else(|error| panic!("{}: {error}, after {} bytes", self.order, self.received()));
        assert_eq!(self.received(), self.bytes, "{}", self.order);
        assert_eq!(sent, came, "{}", self.order);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let _ended_already = self.stream.shutdown(Shutdown::Both);
        if let Some(sender) = self.sender.take() {
            let _ended = sender.join();
        }
        // The receiver is not waited for: if its end of the connection was never told, it stays until its time limit.
        drop(self.receiver.take());
    }
}

fn send(mut stream: TcpStream, bytes: u64, bytes_per_second: Option<u64>) -> io::Result<(Digest, Digest)> {
    prepare(&stream)?;
    // The same bytes again and again, each block with its number in front.
    let mut block = Random::new(bytes).bytes(BLOCK_BYTES);
    let mut hash = sha256();
    let begin = Instant::now();
    let (mut sent, mut number) = (0u64, 0u64);
    while sent < bytes {
        if let Some(rate) = bytes_per_second {
            let due = begin + Duration::from_secs_f64(sent as f64 / rate as f64);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        block[..8].copy_from_slice(&number.to_be_bytes());
        number += 1;
        let length = usize::try_from(bytes - sent).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        hash.update(&block[..length]);
        stream.write_all(&block[..length])?;
        sent += length as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = [0u8; 32];
    stream.read_exact(&mut answer)?;
    Ok((finish(hash), Digest(answer)))
}

fn receive(listener: &TcpListener, received: &AtomicU64) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    prepare(&stream)?;
    let mut buffer = vec![0u8; BLOCK_BYTES];
    let mut hash = sha256();
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        hash.update(&buffer[..length]);
        received.fetch_add(length as u64, Ordering::Relaxed);
    }
    stream.write_all(&finish(hash).0)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let _as_the_host_has_it = SockRef::from(stream).set_tcp_congestion(b"bbr");
    Ok(())
}

/// That of the TLS library, so that no other crate is needed.
fn sha256() -> Box<dyn Context> {
    let hash: &'static dyn Hash = match TLS13_AES_128_GCM_SHA256 {
        SupportedCipherSuite::Tls12(suite) => suite.common.hash_provider,
        SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider,
    };
    hash.start()
}

fn finish(hash: Box<dyn Context>) -> Digest {
    let output = hash.finish();
    let bytes: &[u8] = output.as_ref();
    Digest(bytes.try_into().expect("SHA-256 has 32 bytes"))
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.1.
    #[test]
    fn the_digest_is_sha256() {
        let mut hash = sha256();
        hash.update(b"a");
        hash.update(b"bc");
        assert_eq!(finish(hash).to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
