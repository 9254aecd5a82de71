//! The generator: sensors and hosts for the relay bench, run as `relay_load` in processes of their own.
//!
//! ```text
//!  backend    the hosts behind the relay
//!  session    one sensor's session until it is answered
//!   ├ rate      a storm of new ones
//!   ├ latency   round trips through standing ones, at a fixed rate
//!   ├ bulk      bytes one way
//!   └ hold      very many idle ones
//!  histogram  times
//!  epoll      what it asks of the kernel
//! ```
//! Each load measures itself: it looks at the clock, the processors and the relay's processes when its measured time begins
//! and when it ends, and prints a JSON object.

pub mod backend;
pub mod bulk;
pub mod epoll;
pub mod histogram;
pub mod hold;
pub mod latency;
pub mod rate;
pub mod session;

use std::time::Duration;

use crate::bench_relay::line::{HOSTS, Host, Serves};

/// Before anything is measured: caches fill, windows open.
pub const WARM_UP: Duration = Duration::from_millis(500);
/// How long sessions may take to be opened without any of them making progress.
pub const OPENING: Duration = Duration::from_secs(10);
/// At least so often a load looks at the clock.
const LOOK_EVERY: Duration = Duration::from_millis(20);

fn answering_hosts() -> impl Iterator<Item = &'static Host> {
    HOSTS.iter().filter(|host| host.serves == Serves::Answer)
}
