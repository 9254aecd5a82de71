//! The only home of sockets, threads and the clock: lanes that drive an engine.
//!
//! A lane is one OS thread that owns everything it touches: UDP socket, packet port, engine. Nothing on the packet
//! path is shared, so nothing is locked. Control arrives by a bounded queue and a wake-up; counters leave as
//! published snapshots. A tunnel has one lane or several, each a thread of its own.
//!
//! This module and its children hold the crate's only `unsafe`: system calls that no kept library wraps.

mod control;
mod inbox;
mod lane;
mod lanes;
mod port;
mod sleep;
mod tun;
mod udp;
mod wake;

pub use lane::PreparedLane;
pub use lanes::{Lanes, LanesSettings};
pub use port::PreparedPort;
pub use tun::{Tun, TunError};
pub use udp::{MARK, UdpError, UdpSocket};
pub use wake::Wake;
