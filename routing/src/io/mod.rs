//! The kernel: routes, rules and addresses by netlink, the inward filter by `nft`. The only part of this crate that
//! does I/O; it needs a tokio runtime and, for every change, CAP_NET_ADMIN.

mod error;
mod message;
mod netlink;
pub mod nft;

pub use error::{KernelError, Operation};
pub use message::Family;
pub use netlink::{Kernel, Report};
