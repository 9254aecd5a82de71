//! A TCP/IP stack on a lane: dial and listen *inside* the tunnel, with no device and no privilege.
//!
//! ```text
//!   relay (tokio)                    │   lane thread
//!   Stream ◄──── two pipes ────────► │ Flow ◄─► smoltcp socket ◄─► inner packets ◄─► engine
//!   Network::dial, Listener::accept  │    ▲
//!                                    │    └── by the packet's four-tuple; timers in one sorted set
//! ```
//! A full pipe stops the socket's window, a full window stops the pipe: back-pressure end to end. Half-close passes
//! both ways, a reset arrives as an error. Forwarding, UDP and raw IP are not offered: who needs them needs a TUN.
//!
//! **Many streams.** smoltcp asks every socket of a set for each packet in and for each packet out (0.14,
//! `iface/interface/tcp.rs` 32, `iface/interface/mod.rs` 725). So each stream has a set of its own, and the stack finds it
//! by its four-tuple, by a list of those that want to send, and by one sorted set of timers: what one stream costs does not
//! depend on how many there are. A listening port is an entry in a map; a socket is made when a SYN comes.
//!
//! **Speed.** One stream needs a window of its path's bandwidth times its round trip: 500,000 bytes are 200 Mbit/s over 20
//! ms, and a large ring is twice that. Over IPv4 packets leave as super-packets and may come in as such. Loss is repaired more slowly than by a kernel:
//! smoltcp's sender makes no use of selective acknowledgements, retransmits one segment for each loss that it is told of, and
//! otherwise waits a second.
//!
//! **Memory.** Bounds, in bytes for each stream, both directions together:
//!
//! | | rings of the stack | pipes to the relay | together | of them |
//! |---|---|---|---|---|
//! | large | 2 × 1,048,560 | 2 × 131,072 | 2.25 MiB | [`LARGE_STREAMS`], first come |
//! | small | 2 × 65,535 | 2 × 16,384 | 160 KiB | the rest of [`MAX_STREAMS`] |
//!
//! With 32 and 992 of them that is 72 + 155 = 227 MiB at most. It is asked of the system zeroed and not touched before it is
//! used, so that what is resident is as a rule far less. Packets on their way out add at most 1 MiB, buffers kept for them 4
//! MiB. Streams in TIME-WAIT count; they give way when the last place is asked for. Streams that are being opened towards us
//! count too; they may be half of the large ones, so that SYNs alone do not take every large place.

mod device;
mod flow;
mod open;
mod pipe;
mod ready;
mod segment;
mod stack;
mod stream;

pub(crate) use stack::Stack;
pub use stack::{Network, StackSettings, network};
pub use stream::{Accepted, DialError, Listener, Stream};

/// Streams at once in one tunnel.
pub const MAX_STREAMS: usize = 1024;
/// Of them those that may fill a long path; more streams at once have a smaller window each.
pub const LARGE_STREAMS: usize = 32;
