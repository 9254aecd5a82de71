//! One session of a sensor: connect, ask, greet, and be answered. Sensor's half of what `backend` serves.
//!
//! The ClientHello is canned, and what follows is no TLS: the relay cannot tell, and no cryptography takes the processor
//! that load and backend share.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Ipv4Addr;

use anyhow::{Result, bail};
use socket2::{Domain, SockAddr, Socket, Type};

use super::epoll::{Event, bind_without_port};
use crate::bench_relay::line::{CONNECT, HOST_PORT, Host, SNI};
use crate::hello::Hello;

/// How a sensor gets to its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Without a relay.
    Direct,
    Sni,
    Connect,
}

/// One host, reached in one way. Made once for many sessions.
#[derive(Debug, Clone)]
pub struct Target {
    address: SockAddr,
    /// The CONNECT head.
    request: Option<Vec<u8>>,
    hello: Vec<u8>,
}

/// A session on its way. Dropping it closes it.
#[derive(Debug)]
pub struct Session {
    pub socket: Socket,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Connecting,
    /// For a tunnel; what has come of the answer so far.
    Asked(Vec<u8>),
    Greeted,
    Open,
}

/// A proxy that answers with more than this is not one of ours.
const MAX_HEAD_BYTES: usize = 4096;

impl Via {
    pub const ALL: [Self; 3] = [Self::Direct, Self::Sni, Self::Connect];

    /// As the command line has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Sni => "sni",
            Self::Connect => "connect",
        }
    }

    pub fn from_name(name: &str) -> Result<Self> {
        let Some(via) = Self::ALL.into_iter().find(|via| via.name() == name) else { bail!("{name:?} is no way to a host") };
        Ok(via)
    }
}

impl Target {
    pub fn new(via: Via, host: &Host) -> Self {
        let address = match via {
            Via::Direct => host.place(),
            Via::Sni => SNI,
            Via::Connect => CONNECT,
        };
        let head = || format!("CONNECT {0}:{HOST_PORT} HTTP/1.1\r\nHost: {0}:{HOST_PORT}\r\n\r\n", host.name).into_bytes();
        Self { address: address.into(), request: (via == Via::Connect).then(head), hello: Hello::for_name(host.name).stream() }
    }
}

impl Session {
    /// Begins to connect, from `source` or whatever address the kernel picks.
    pub fn start(target: &Target, source: Option<Ipv4Addr>) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
        if let Some(source) = source {
            bind_without_port(&socket, source)?;
        }
        match socket.connect(&target.address) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            Ok(()) | Err(_) => Ok(Self { socket, stage: Stage::Connecting }),
        }
    }

    /// Goes on by one step, for each change; true when this was the host's answer.
    pub fn advance(&mut self, target: &Target, event: Event) -> io::Result<bool> {
        match &mut self.stage {
            Stage::Connecting => {
                if !event.writable && !event.ended {
                    return Ok(false);
                }
                // If there is no connection, writing says why.
                match &target.request {
                    Some(request) => {
                        write_whole(&self.socket, request)?;
                        self.stage = Stage::Asked(Vec::new());
                    }
                    None => self.greet(target)?,
                }
                Ok(false)
            }
            Stage::Asked(head) => {
                let mut bytes = [0; 512];
                while let Some(count) = read_some(&self.socket, &mut bytes)? {
                    head.extend(bytes.iter().take(count));
                    if head.ends_with(b"\r\n\r\n") {
                        check_answer(head)?;
                        self.greet(target)?;
                        break;
                    }
                    if head.len() > MAX_HEAD_BYTES {
                        return Err(io::Error::new(ErrorKind::InvalidData, "the proxy's answer has no end"));
                    }
                }
                Ok(false)
            }
            Stage::Greeted => {
                let answered = read_some(&self.socket, &mut [0])?.is_some();
                if answered {
                    self.stage = Stage::Open;
                }
                Ok(answered)
            }
            Stage::Open => Ok(false),
        }
    }

    fn greet(&mut self, target: &Target) -> io::Result<()> {
        write_whole(&self.socket, &target.hello)?;
        self.stage = Stage::Greeted;
        Ok(())
    }
}

/// Reads what is there, at least one byte; none if there is nothing yet. Err: also if the other side has ended.
pub(super) fn read_some(mut socket: &Socket, bytes: &mut [u8]) -> io::Result<Option<usize>> {
    match socket.read(bytes) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a few bytes, for which there must be room.
pub(super) fn write_whole(mut socket: &Socket, bytes: &[u8]) -> io::Result<()> {
    let count = socket.write(bytes)?;
    if count < bytes.len() { Err(ErrorKind::WriteZero.into()) } else { Ok(()) }
}

fn check_answer(head: &[u8]) -> io::Result<()> {
    // `HTTP/1.1 200 …`
    if head.starts_with(b"HTTP/1.") && head.get(9) == Some(&b'2') {
        return Ok(());
    }
    let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    Err(io::Error::new(ErrorKind::ConnectionRefused, format!("the proxy says {line:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_relay::line::Serves;

    #[test]
    fn a_proxy_is_asked_before_it_is_greeted() {
        let host = Host::that(Serves::Echo);
        let target = Target::new(Via::Connect, host);
        let request = target.request.expect("a request");
        assert_eq!(request, b"CONNECT echo.bench.azure-devices.net:443 HTTP/1.1\r\nHost: echo.bench.azure-devices.net:443\r\n\r\n");
        assert_eq!(Target::new(Via::Sni, host).request, None);
        assert_eq!(Target::new(Via::Sni, host).hello, target.hello);
    }

    #[test]
    fn any_2xx_opens_a_tunnel_and_nothing_else_does() {
        assert!(check_answer(b"HTTP/1.0 204 Anything\r\n\r\n").is_ok());
        let refused = check_answer(b"HTTP/1.1 403 Forbidden\r\nX: y\r\n\r\n").expect_err("refused");
        assert_eq!(refused.to_string(), "the proxy says \"HTTP/1.1 403 Forbidden\"");
        assert!(check_answer(b"").is_err());
    }
}
