//! Relays without a tunnel, alone or one behind the other, each on a loopback address of its own.
//!
//! What a suite wants of a relay it writes as lines of YAML; OWN in them is the relay's address. A path `via: { underlay: own }`
//! leaves from that address, so that the next relay can tell who comes. The sensors of a suite come from 127.0.0.1, or from
//! the address that [`dial_from`] is told.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::hello::Hello;
use crate::loopback::{TLS_PORT, address};
use crate::process::{Finished, finish};
use crate::sensor::{Answer, Then, converse, say, status};
use crate::skyway::{Gateway, User};
use crate::tls::Authority;
use crate::{replaced, seconds};

pub struct Relay {
    pub gateway: Gateway,
    pub address: Ipv4Addr,
    pub yaml: String,
}

/// What differs from relay to relay: the items of the lists and mappings of that name, one a line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parts<'a> {
    /// More of the mapping `gateway`, such as `level: 3`.
    pub gateway: &'a str,
    pub hosts: &'a [&'a str],
    pub sensors: &'a [&'a str],
    pub paths: &'a [&'a str],
    /// None: [`PROXY`] alone.
    pub listeners: &'a [&'a str],
    pub limits: &'a str,
}

/// Where curl and whoever else does not choose comes from, on Linux.
pub const USUAL_SOURCE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// The sensor at [`USUAL_SOURCE`].
pub const LINE_3: &str = "line-3: { from: [127.0.0.1/32] }";
pub const PROXY: &str = r#"{ name: proxy, kind: connect, listen: "OWN:3128" }"#;
/// The path of a relay that dials the hosts itself.
pub const OUT: &str = "{ name: out, via: direct, probe: off }";

const YAML: &str = r#"version: 1
gateway: { name: NAME, admin: FOLDER/admin.sock, metrics: off, health: "OWN:8080"MORE }
underlays: { own: { source: OWN } }
relay:
  catalogue:
    hosts:
HOSTS  sensors:
SENSORS  paths:
PATHS  listeners:
LISTENERS  limits: { LIMITS }
"#;

impl Relay {
    /// The relay's files; it does not run yet.
    #[track_caller]
    pub fn build(name: &str, parts: &Parts<'_>) -> Self {
        Self::build_at(address(), name, parts)
    }

    /// As [`Self::build`], where others have to know the address before.
    #[track_caller]
    pub fn build_at(address: Ipv4Addr, name: &str, parts: &Parts<'_>) -> Self {
        let more = if parts.gateway.is_empty() { String::new() } else { format!(", {}", parts.gateway) };
        let listeners = if parts.listeners.is_empty() { std::slice::from_ref(&PROXY) } else { parts.listeners };
        let yaml = YAML
            .replace("NAME", name)
            .replace("MORE", &more)
            .replace("LIMITS", parts.limits)
            .replace("HOSTS", &items("      - ", parts.hosts))
            .replace("SENSORS", &items("    ", parts.sensors))
            .replace("PATHS", &items("    - ", parts.paths))
            .replace("LISTENERS", &items("    - ", listeners))
            .replace("OWN", &address.to_string());
        let gateway = Gateway::new(name).run_as(User::Nobody);
        gateway.write(&yaml);
        Self { gateway, address, yaml }
    }

    #[track_caller]
    pub fn start(name: &str, parts: &Parts<'_>) -> Self {
        let mut relay = Self::build(name, parts);
        relay.gateway.start();
        relay
    }

    /// Changes the file, and reloads it.
    #[track_caller]
    pub fn change(&mut self, from: &str, to: &str) {
        self.yaml = replaced(&self.yaml, from, to);
        self.gateway.write(&self.yaml);
        self.gateway.reload().success();
    }

    /// Where [`PROXY`] is.
    pub fn connect(&self) -> SocketAddr {
        self.at(3128)
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address.into(), port)
    }

    /// What `/readyz` answers.
    #[track_caller]
    pub fn ready(&self) -> u16 {
        status(&say(self.at(8080), b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", Then::Hold))
    }

    /// What status says of its path number `at`.
    #[track_caller]
    pub fn path(&self, at: usize) -> Value {
        self.gateway.status()["relay"]["paths"][at].clone()
    }

    /// A session with the server of `host` by an unmodified curl, `words` saying how it gets there. Prints what the server answers.
    #[track_caller]
    pub fn curl(&self, authority: &Authority, host: &str, words: &[&str]) -> Finished {
        self.gateway.write_file("authority.pem", &authority.pem, 0o644);
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "15", "--cacert"]).arg(self.gateway.folder().join("authority.pem")).args(words);
        finish(curl.arg(format!("https://{host}:{TLS_PORT}/")), seconds(20))
    }
}

fn items(before: &str, lines: &[&str]) -> String {
    lines.iter().map(|line| format!("{before}{line}\n")).collect()
}

/// A host of the catalogue at `address`, port [`TLS_PORT`].
pub fn host(name: &str, address: Ipv4Addr) -> String {
    format!("{{ host: {name}, ports: [{TLS_PORT}], addresses: [{address}], allow: [127.0.0.0/8] }}")
}

/// A host that a parent knows more of.
pub fn host_elsewhere(name: &str) -> String {
    format!("{{ host: {name}, ports: [{TLS_PORT}] }}")
}

pub fn authority_of(host: &str) -> String {
    format!("{host}:{TLS_PORT}")
}

/// A stream from `source`, an address on loopback, on which nothing waits for ever.
#[track_caller]
pub fn dial_from(source: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::new(source.into(), 0).into()).expect("all of loopback is ours");
    socket.connect_timeout(&to.into(), seconds(10)).unwrap_or_else(|error| panic!("{to}: {error}"));
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(seconds(20))).expect("a time limit");
    stream.set_write_timeout(Some(seconds(20))).expect("a time limit");
    stream
}

/// Asks for a tunnel to `host` on a stream that leads to a proxy: `preface` first, then CONNECT with `fields`. The status is 0
/// if there was no answer.
pub fn ask_on(mut stream: TcpStream, preface: &[u8], host: &str, fields: &[&str]) -> Answer {
    let authority = authority_of(host);
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{fields}\r\n");
    // Who is refused before that cannot send it.
    let _refused = stream.write_all(&[preface, request.as_bytes()].concat());
    let head = read_head(&mut stream);
    Answer { status: status(&head), head: String::from_utf8_lossy(&head).into_owned(), stream }
}

/// The head of an answer and not a byte more; what there is if the stream ends before that.
pub fn read_head(stream: &mut impl Read) -> Vec<u8> {
    let mut head = Vec::new();
    let mut byte = [0u8];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    head
}

/// The rest of a session that was granted: TLS for `host`, and the end. Returns what comes back.
pub fn go_through(answer: &mut Answer, host: &str) -> Vec<u8> {
    converse(&mut answer.stream, &Hello::for_name(host).stream(), usize::MAX, Then::Finish)
}

/// Lets a session that was granted begin, and leaves it open.
#[track_caller]
pub fn begin(answer: &mut Answer, host: &str) {
    assert_eq!(answer.status, 200, "{}", answer.head);
    answer.stream.write_all(&Hello::for_name(host).stream()).expect("the hello is sent");
}

/// Ends a session that has begun, and returns what comes back.
pub fn end(answer: &mut Answer) -> Vec<u8> {
    converse(&mut answer.stream, b"", 1, Then::Finish)
}
