//! The only home of sockets, threads and the clock: lanes that drive an engine.
//!
//! A lane is one OS thread that owns everything it touches: UDP socket, packet port, engine. Nothing on the packet
//! path is shared, so nothing is locked. Control arrives by a bounded queue and a wake-up; counters leave as
//! published snapshots. There is one lane a tunnel for now; the engine and the batch already have the shape that
//! several need.
//!
//! This module and its children hold the crate's only `unsafe`: system calls that no kept library wraps.

mod lane;
mod port;
mod tun;
mod udp;
mod wake;

pub use lane::{Lane, LaneSettings};
pub use port::PreparedPort;
pub use tun::{Tun, TunError};
pub use udp::{MARK, UdpError, UdpSocket};
pub use wake::Wake;
