//! A server that keeps what it is sent, byte for byte: the referee of what a relay lets through.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crate::seconds;

/// Takes one connection after another. Each is read to its end, then answered with [`ANSWER`] and closed.
#[derive(Debug)]
pub struct Sink {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    accepted: AtomicUsize,
    received: Mutex<Vec<Vec<u8>>>,
    stop: AtomicBool,
}

/// What a client reads once all that it sent has been kept.
pub const ANSWER: &[u8] = b"kept";

impl Sink {
    #[track_caller]
    pub fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        let shared = Arc::new(Shared::default());
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while let Ok((stream, _)) = listener.accept() {
                    if shared.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    shared.accepted.fetch_add(1, Ordering::Relaxed);
                    shared.keep(stream);
                }
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// How many connections there were.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// What each connection that has ended brought, oldest first.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.shared.received.lock().expect("no thread panics with it").clone()
    }
}

impl Shared {
    fn keep(&self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        let _limited = stream.set_read_timeout(Some(seconds(30)));
        // What came before a reset or a time-out came all the same.
        let _broken = stream.read_to_end(&mut bytes);
        self.received.lock().expect("no thread panics with it").push(bytes);
        let _unheard = stream.write_all(ANSWER);
        let _closed = stream.shutdown(Shutdown::Both);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes it from `accept`.
        let _connected = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}
