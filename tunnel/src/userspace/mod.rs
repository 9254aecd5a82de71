//! A TCP/IP stack on a lane: dial and listen *inside* the tunnel, with no device and no privilege.
//!
//! ```text
//!   relay (tokio)                    │   lane thread
//!   Stream ◄──── bounded pipe ─────► │ Flow ◄─► smoltcp socket ◄─► inner packets ◄─► engine
//!   Network::dial, Listener::accept  │
//! ```
//! A full pipe stops the socket's window, a full window stops the pipe: back-pressure end to end. Half-close passes
//! both ways, a reset arrives as an error. Forwarding, UDP and raw IP are not offered: who needs them needs a TUN.
//!
//! **Memory.** A stream holds 64 KiB a direction in the stack from the first byte on, and up to 16 KiB a
//! direction in the pipe while the other side is slow: at most 160 KiB. At most [`MAX_STREAMS`] streams exist, so
//! the whole is bounded by 160 MiB; idle listening sockets count as streams.

mod device;
mod open;
mod ready;
mod stack;
mod stream;

pub(crate) use stack::Stack;
pub use stack::{Network, StackSettings, network};
pub use stream::{Accepted, DialError, Listener, Stream};

/// Streams at once in one tunnel, listening sockets included.
pub const MAX_STREAMS: usize = 1024;
