//! A tunnel: one WireGuard interface that joins this gateway's site with its peers.
//!
//! The protocol itself is [`boringtun::noise::Tunn`]; this crate holds what a gateway needs around it and
//! `Tunn` leaves out: which peer a packet is for and whether a peer may send it ([`AllowedIps`]), where a peer
//! is reached and when it roams, a bounded queue while there is no session, what kind of trouble a handshake
//! has, and edits that keep a live session.
//!
//! # The contract
//!
//! [`Engine`] does no I/O. Whoever drives it hands in bytes and `now`, and takes three things out, in this order:
//!
//! ```text
//!   handle_packet(packet, now, batch)          an inner packet that wants out
//!   handle_datagram(datagram, arrival, now, …) an outer datagram that came in  ─► Received::Packet | Quiet | Dropped
//!   handle_timeout(now, batch)                 when poll_timeout() says so
//!        │
//!        ├─► batch        sealed datagrams in runs, each with its outer header
//!        ├─► poll_event   sessions up and down, endpoints moved, trouble, sizes
//!        └─► poll_timeout when to call again
//! ```
//!
//! # The life of one packet
//!
//! A packet rarely comes alone: the kernel hands over a super-packet, up to 64 KiB of one flow behind one header, and takes
//! one back. What happens between is for each of its packets; the header of the next is written over the tail of the last,
//! which is sealed already, so that the copy that `Tunn` makes is the only one.
//!
//! ```text
//!  out  TUN, one read ─► offload::Segments ─┬► Engine::handle_packet: whose? (AllowedIps, destination) ─► MSS clamped
//!                                           │     ─► fits the path? no: fragments, or an ICMP answer
//!                                           │     ─► Peer: session? no: queue and handshake ─► Tunn seals into the Batch
//!                                           └► … the next segment                                  │
//!                               one sendmmsg, each run of equal datagrams one UDP-GSO message ◄────┘
//!
//!  in   UDP, one recvmmsg, runs joined by UDP-GRO ─┬► Engine::handle_datagram: whose? (index) ─► Peer ─► Tunn opens
//!                                                  │     ─► endpoint follows ─► its own? (AllowedIps, source)
//!                                                  │     ─► a probe? answered here ─► ECN joined, MSS clamped
//!                                                  └► … the next datagram                          │
//!                                       TUN, one write ◄─ offload::Coalescer: one behind the other ┘
//! ```
//! All of it happens on one thread, a lane, which owns socket, device queue and engine, and shares nothing; a tunnel has one
//! or several. What a packet is dropped for is a [`DropReason`], counted.
//!
//! Beside packets a peer has a path: probes through the tunnel say whether it works, which endpoint it uses and how large a
//! packet it takes.
//!
//! The `io` feature (default) adds [`io`], the only home of sockets, threads and the clock, and [`userspace`],
//! a TCP/IP stack for places that have no TUN device. Without it the crate is protocol logic alone.

mod allowed_ips;
mod batch;
mod discovery;
mod ecn;
mod engine;
mod error;
mod failover;
mod fragment;
mod gate;
mod handshake;
mod key;
mod mss;
mod mtu;
pub mod offload;
mod packet;
mod path;
mod peer;
mod probe;
mod settings;
mod stats;
mod too_big;

#[cfg(feature = "io")]
pub mod io;
#[cfg(feature = "io")]
pub mod userspace;

pub use allowed_ips::AllowedIps;
pub use batch::{Batch, Endpoint, Outer, Transmit};
pub use engine::{Arrival, Engine, EngineSettings, Event, PeerChange, Received};
pub use error::{DropReason, Drops};
pub use handshake::Trouble;
pub use key::{KeyError, PresharedKey, PrivateKey, PublicKey};
pub use mtu::{Cloud, default_mtu};
pub use packet::PADDING;
pub use settings::{EndpointSettings, Mode, PeerSettings, ProbeSettings, TunnelSettings};
pub use stats::{LaneSnapshot, PeerSnapshot, PeerState, ProbeSnapshot, Snapshot, carries};
