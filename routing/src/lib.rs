//! Routes, the kill switch and the inward filter: what skyway decides about the kernel's forwarding.
//!
//! Who tells us routes: the YAML (`routes.static`); BGP neighbors come later and will end in the same [`Route`]. Who
//! installs them: skyway alone, by netlink, into a table of its own. A tunnel's `allowed_ips` install nothing, they only
//! say what must never leave by another way ([`Protected`]).
//!
//! ```text
//!  routes.static ─► Route ──────┐
//!                               ├─► Fib ─► reconcile ─► io::Kernel ─► table 5359
//!  allowed_ips ───► Protected ──┘              ▲                          │
//!                                              └───── dump: what is there ┘
//!  routes.inbound ► InwardFilter ─► render::nft ─► io::nft ─► table inet skyway_NAME
//!
//!  a packet without our mark               an outer WireGuard datagram, mark 5359
//!     │ rule 5359: not fwmark 5359            │ the rule does not match
//!     ▼                                       ▼
//!  table 5359                              table main: the underlay
//!     ├─ 10.20.0.0/16 dev azure   metric 100          while the tunnel's device is there
//!     └─ 10.20.0.0/16 unreachable metric 4294967295   always: the kill switch
//! ```
//!
//! The kill switch is nothing but routes, so that it needs no process: when skyway dies, the kernel takes the TUN and
//! its live routes away, and the unreachable ones answer in their place. It goes only when a prefix leaves the YAML or
//! on `skyway release`. Two things outside skyway can still remove its IPv6 half, because Linux ties an IPv6
//! unreachable route to `lo`: `lo` going down and `disable_ipv6` being switched on (measured, kernel 6.18); the next
//! [`reconcile()`] puts it back.
//!
//! Everything except [`io`] is a pure function of its arguments. The feature `io` (default) adds netlink and nftables.

mod fib;
mod filter;
mod reconcile;
pub mod render;
mod route;

#[cfg(feature = "io")]
pub mod io;

pub use fib::{Fib, Protected};
pub use filter::{InvalidInterface, InwardFilter, Service, TunnelFilter};
pub use reconcile::{Change, KernelNextHop, KernelRoute, Reconciliation, reconcile};
pub use route::{NextHop, Route};

/// The routing table that holds our routes and no one else's: `ip route show table 5359`.
///
/// Above 255, so it can collide neither with `main`, `local` and `default` nor with the numbers that people pick by
/// hand. A release that changes it must clear the old table, or its kill switch stays for ever.
pub const TABLE: u32 = 5359;

/// The `protocol` of our routes and rules, by which we know our own: what bears another number is left alone.
///
/// None of the numbers that `linux/rtnetlink.h` assigns (0–4, 8–18, 42, 186–189, 192).
pub const PROTOCOL: u8 = 159;

/// The firewall mark of our outer sockets (`SO_MARK`). Our rule skips packets that carry it, so an endpoint inside
/// `allowed_ips`, normal with ExpressRoute, does not loop into its own tunnel.
pub const MARK: u32 = 5359;

/// The priority of our rule, one for each family: `not fwmark 5359 lookup 5359`.
///
/// After `local` (0), so that the host still answers for its own addresses; before `main` (32766), so that nothing
/// in `main` is looked at for a prefix that we know.
pub const RULE_PRIORITY: u32 = 5359;

/// The metric of the kill switch: the worst there is, so that any live route wins. [`Route::new`] keeps routes below it.
pub const KILL_SWITCH_METRIC: u32 = u32::MAX;
