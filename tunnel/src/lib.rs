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
//!   handle_packet(packet, now, batch)       an inner packet that wants out
//!   handle_datagram(datagram, from, now, …) an outer datagram that came in  ─► Received::Packet | Quiet | Dropped
//!   handle_timeout(now, batch)              when poll_timeout() says so
//!        │
//!        ├─► batch        sealed datagrams, each with the endpoint it goes to
//!        ├─► poll_event   sessions up and down, endpoints moved, trouble
//!        └─► poll_timeout when to call again
//! ```
//!
//! # The life of one packet
//!
//! ```text
//!  port ──► Engine::handle_packet ──► AllowedIps (destination) ──► Peer ──► session? ─► Tunn seals into the Batch ─► UDP
//!                                          │ none: DropReason            └─ no: queue, handshake
//!  UDP ──► Engine::handle_datagram ──► index ──► Peer ──► Tunn opens ──► AllowedIps (source) ──► roam ──► port
//! ```
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
