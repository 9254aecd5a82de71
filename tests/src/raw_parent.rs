//! A parent proxy that answers what it is told to, whatever it is asked, and keeps what it was asked.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crate::relays::read_head;
use crate::seconds;
use crate::sink::ANSWER;

/// Takes one connection after another. After a 2xx it reads to the end, and answers with [`ANSWER`].
#[derive(Debug)]
pub struct RawParent {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    says: Mutex<String>,
    requests: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl RawParent {
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
                    shared.serve(stream);
                }
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// What it answers from now on.
    pub fn will_say(&self, head: &str) {
        head.clone_into(&mut self.shared.says.lock().expect("no thread panics with it"));
    }

    /// The heads of all requests, oldest first.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().expect("no thread panics with it").clone()
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) {
        let _limited = stream.set_read_timeout(Some(seconds(10)));
        let head = String::from_utf8_lossy(&read_head(&mut stream)).into_owned();
        self.requests.lock().expect("no thread panics with it").push(head);
        let says = self.says.lock().expect("no thread panics with it").clone();
        let _unheard = stream.write_all(says.as_bytes());
        if says.starts_with("HTTP/1.1 2") {
            let mut rest = Vec::new();
            let _broken = stream.read_to_end(&mut rest);
            let _unheard = stream.write_all(ANSWER);
        }
        let _closed = stream.shutdown(Shutdown::Both);
    }
}

impl Drop for RawParent {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes it from `accept`.
        let _connected = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}
