//! All hosts of the catalogue in one process: each takes a ClientHello, answers one byte, and then does what it serves.
//!
//! Bulk data costs it next to nothing: what comes is thrown away without being copied, what goes out comes from the page
//! cache. It never ends a session of its own accord.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};

use super::epoll::{Epoll, Event, Interest};
use super::session::{read_some, write_whole};
use crate::bench_relay::line::{HOSTS, Host, Serves};
use crate::hello::RECORD_HEADER_BYTES;

/// Said on stderr once all hosts listen.
pub const LISTENING: &str = "all hosts listen";

pub struct Backend {
    epoll: Epoll,
    /// By their descriptors.
    places: Vec<Option<Place>>,
    payload: Payload,
    scratch: Scratch,
}

/// What is behind a descriptor.
enum Place {
    Listener(Socket, Serves),
    Connection(Connection),
}

struct Connection {
    socket: Socket,
    serves: Serves,
    /// Of the ClientHello, as long as it is not complete.
    received: Vec<u8>,
    greeted: bool,
}

/// Bytes to send that lie in the page cache.
pub(super) struct Payload(File);

/// Where bytes go that nobody wants.
pub(super) struct Scratch(Vec<MaybeUninit<u8>>);

/// Sent or thrown away with one call.
const CHUNK: NonZeroUsize = NonZeroUsize::new(256 * 1024).expect("not zero");
/// More than any load has waiting; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
const READ_BYTES: usize = 64 * 1024;

impl Backend {
    /// Listens for every host.
    pub fn bind() -> Result<Self> {
        let mut backend = Self { epoll: Epoll::new()?, places: Vec::new(), payload: Payload::new()?, scratch: Scratch::new() };
        for host in &HOSTS {
            let socket = listen(host).with_context(|| host.place().to_string())?;
            backend.keep(Place::Listener(socket, host.serves))?;
        }
        Ok(backend)
    }

    /// Serves until it is killed.
    pub fn run(mut self) -> Result<()> {
        writeln!(io::stderr(), "{LISTENING}").context("stderr")?;
        let (mut events, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
        loop {
            self.epoll.wait(&mut events, Duration::from_secs(60))?;
            for event in &events {
                self.handle(*event, &mut buffer)?;
            }
        }
    }

    fn handle(&mut self, event: Event, buffer: &mut [u8]) -> Result<()> {
        let index = usize::try_from(event.token)?;
        let Some(place) = self.places.get_mut(index) else { return Ok(()) };
        match place {
            None => {}
            Some(Place::Listener(socket, serves)) => {
                let serves = *serves;
                match socket.accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) {
                    Ok((socket, _)) => {
                        self.keep(Place::Connection(Connection { socket, serves, received: Vec::new(), greeted: false }))?;
                    }
                    // Whoever it was has gone again.
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {}
                    Err(error) => return Err(error).context("accept"),
                }
            }
            Some(Place::Connection(connection)) => {
                let served = if connection.greeted {
                    connection.serve(event, &self.payload, &mut self.scratch, buffer)
                } else {
                    connection.greet(buffer, &self.epoll, event.token)
                };
                if served.is_err() {
                    *place = None;
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, place: Place) -> Result<()> {
        let socket = match &place {
            Place::Listener(socket, _) | Place::Connection(Connection { socket, .. }) => socket,
        };
        let index = usize::try_from(socket.as_raw_fd())?;
        self.epoll.add(socket, u64::try_from(index)?, Interest::Reading)?;
        if self.places.len() <= index {
            self.places.resize_with(index + 1, || None);
        }
        if let Some(free) = self.places.get_mut(index) {
            *free = Some(place);
        }
        Ok(())
    }
}

impl Connection {
    /// Reads the ClientHello; once it is whole, answers.
    fn greet(&mut self, buffer: &mut [u8], epoll: &Epoll, token: u64) -> io::Result<()> {
        let Some(count) = read_some(&self.socket, buffer)? else { return Ok(()) };
        self.received.extend(buffer.iter().take(count));
        if record_bytes(&self.received).is_none_or(|bytes| self.received.len() < bytes) {
            return Ok(());
        }
        self.received = Vec::new();
        self.greeted = true;
        write_whole(&self.socket, b"!")?;
        if self.serves == Serves::Source {
            epoll.change(&self.socket, token, Interest::Writing)?;
        }
        Ok(())
    }

    /// Err: the session is over.
    fn serve(&self, event: Event, payload: &Payload, scratch: &mut Scratch, buffer: &mut [u8]) -> io::Result<()> {
        match self.serves {
            // Nothing comes any more but the end.
            Serves::Answer => read_some(&self.socket, buffer).map(drop),
            Serves::Echo => match read_some(&self.socket, buffer)? {
                Some(count) => write_whole(&self.socket, buffer.get(..count).unwrap_or_default()),
                None => Ok(()),
            },
            Serves::Sink => scratch.receive(&self.socket).map(drop),
            Serves::Source if event.ended => Err(ErrorKind::UnexpectedEof.into()),
            Serves::Source => payload.send(&self.socket).map(drop),
        }
    }
}

impl Payload {
    pub(super) fn new() -> Result<Self> {
        let mut file = tempfile::tempfile().context("a file to send")?;
        file.write_all(&vec![b'x'; CHUNK.get()]).context("a file to send")?;
        Ok(Self(file))
    }

    /// Sends as much as there is room for, in bytes; none if there is no room.
    pub(super) fn send(&self, socket: &Socket) -> io::Result<usize> {
        none_if_it_would_block(socket.sendfile(&self.0, 0, Some(CHUNK)))
    }
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self(vec![MaybeUninit::uninit(); CHUNK.get()])
    }

    /// Takes what has come and throws it away, without a copy (MSG_TRUNC, man 7 tcp). Err: also if the other side has ended.
    pub(super) fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        match socket.recv_with_flags(&mut self.0, libc::MSG_TRUNC) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            received => none_if_it_would_block(received),
        }
    }
}

fn none_if_it_would_block(count: io::Result<usize>) -> io::Result<usize> {
    match count {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Ok(_) | Err(_) => count,
    }
}

fn listen(host: &Host) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    // What is accepted has it from here.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&host.place().into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// How long the first TLS record is, with its header. None: that cannot be told yet.
fn record_bytes(received: &[u8]) -> Option<usize> {
    let &[_, _, _, high, low, ..] = received else { return None };
    Some(RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([high, low])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::Hello;

    #[test]
    fn a_hello_is_whole_with_its_last_byte() {
        let hello = Hello::for_name("hub-0.bench.azure-devices.net").stream();
        assert_eq!(record_bytes(&hello), Some(hello.len()));
        assert_eq!(record_bytes(&[22, 3, 1, 0]), None);
        assert_eq!(record_bytes(&[22, 3, 1, 1, 2]), Some(5 + 258));
    }
}
