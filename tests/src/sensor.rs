//! A sensor's end of a session, as bytes: well behaved, or as bad as a test wants it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::seconds;

/// What a proxy said to a CONNECT, and the stream behind it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub stream: TcpStream,
}

/// What a sensor does when it has said its piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Ends its direction and listens.
    Finish,
    /// Listens and goes on holding its direction open.
    Hold,
}

/// A stream to `address` on which nothing waits for ever.
#[track_caller]
pub fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, seconds(10)).unwrap_or_else(|error| panic!("{address}: {error}"));
    stream.set_read_timeout(Some(seconds(30))).expect("a time limit");
    stream.set_write_timeout(Some(seconds(30))).expect("a time limit");
    // So that pieces leave as pieces.
    stream.set_nodelay(true).expect("no delay");
    stream
}

/// Asks `proxy` for a tunnel to `authority` (`HOST:PORT`).
#[track_caller]
pub fn connect(proxy: SocketAddr, authority: &str) -> Answer {
    let mut stream = dial(proxy);
    write!(stream, "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").expect("the request is sent");
    let mut head = Vec::new();
    let mut byte = [0u8];
    // Byte by byte, so that nothing behind the head is taken from the stream.
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            ended => panic!("no answer to CONNECT {authority}: {ended:?} after {:?}", String::from_utf8_lossy(&head)),
        }
    }
    Answer { status: status(&head), head: String::from_utf8_lossy(&head).into_owned(), stream }
}

/// The status in the first line of an answer; 0 if there is none.
pub fn status(answer: &[u8]) -> u16 {
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.split(' ').next());
    status.and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Sends `bytes` in pieces of `piece` and returns all that comes back. A reset, by either side, is an end like any other.
pub fn converse(stream: &mut TcpStream, bytes: &[u8], piece: usize, then: Then) -> Vec<u8> {
    // Who is refused in the middle cannot send the rest.
    let _refused = bytes.chunks(piece.max(1)).try_for_each(|piece| stream.write_all(piece));
    if then == Then::Finish {
        let _ended = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => answer,
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => answer,
        Err(error) => panic!("no end after {answer:?}: {error}"),
    }
}

/// Connects to `address` and says `bytes` at once.
#[track_caller]
pub fn say(address: SocketAddr, bytes: &[u8], then: Then) -> Vec<u8> {
    converse(&mut dial(address), bytes, usize::MAX, then)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_status() {
        assert_eq!(status(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n"), 403);
        assert_eq!(status(b"\x15\x03\x03\x00\x02\x02\x70"), 0);
        assert_eq!(status(b""), 0);
    }
}
