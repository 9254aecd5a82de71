//! What may be opened from a tunnel: the model behind the stateful inward filter. `render::nft` turns it into rules.
//!
//! Only the site side initiates. A connection that comes out of a tunnel is new to this host and is dropped, whether it
//! wants the gateway or the site behind it, unless it is listed here; answers to what the site opened pass.

use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

/// The inward filter of one gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InwardFilter {
    /// One for each interface; interfaces that are not named here are not filtered.
    pub tunnels: Vec<TunnelFilter>,
}

/// What may be opened from one tunnel, besides an ICMP echo request to the gateway itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelFilter {
    interface: String,
    inbound: Vec<IpNet>,
    services: Vec<Service>,
}

/// A TCP listener of the gateway's own, bound to an address inside a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    pub address: IpAddr,
    pub port: u16,
}

/// An interface name that nftables might read as more than this one interface, or not as a name at all.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("interface name {0:?} cannot be filtered: 1 to 15 characters of A-Z, a-z, 0-9, '.', '_' and '-' are allowed")]
pub struct InvalidInterface(pub String);

impl TunnelFilter {
    /// `inbound`: prefixes (`routes.inbound`) that may be reached from the tunnel, forwarded or on this host, with any
    /// protocol. `services`: the gateway's own listeners.
    ///
    /// Refuses a name that is not plain. Linux allows more, but a trailing `*` is a wildcard to nftables and there is no
    /// way to write a quotation mark, and a filter that matches the wrong interface is no filter.
    pub fn new(interface: &str, inbound: &[IpNet], services: &[Service]) -> Result<Self, InvalidInterface> {
        if !is_plain(interface) {
            return Err(InvalidInterface(interface.to_owned()));
        }
        let mut services = services.to_vec();
        services.sort_unstable();
        services.dedup();
        Ok(Self { interface: interface.to_owned(), inbound: without_covered(inbound), services })
    }

    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// In order, without host bits, none inside another.
    pub fn inbound(&self) -> &[IpNet] {
        &self.inbound
    }

    /// In order, each once.
    pub fn services(&self) -> &[Service] {
        &self.services
    }
}

fn is_plain(interface: &str) -> bool {
    (1..=MAX_INTERFACE_BYTES).contains(&interface.len())
        && interface.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Drops what another prefix covers: an nftables set refuses or merges overlapping intervals, depending on its version.
fn without_covered(prefixes: &[IpNet]) -> Vec<IpNet> {
    let mut sorted: Vec<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
    sorted.sort_unstable();
    let mut kept: Vec<IpNet> = Vec::with_capacity(sorted.len());
    for prefix in sorted {
        // By address and then by length, so a covering prefix is always the last one kept.
        if !kept.last().is_some_and(|wider| wider.contains(&prefix)) {
            kept.push(prefix);
        }
    }
    kept
}

/// `IFNAMSIZ` without its NUL (linux/if.h).
const MAX_INTERFACE_BYTES: usize = 15;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::route::strategy;

    #[test]
    fn refuses_a_name_that_nftables_could_misread() {
        for name in ["", "sky*", "sky\"0", "sky 0", "sky\n", "a-name-of-16-byt"] {
            let refused = TunnelFilter::new(name, &[], &[]);
            assert_eq!(refused, Err(InvalidInterface(name.to_owned())));
        }
        assert!(TunnelFilter::new("sky-0.1_a-15byt", &[], &[]).is_ok());
    }

    #[test]
    fn keeps_each_service_once() {
        let service = Service { address: IpAddr::from([10, 99, 0, 1]), port: 3128 };
        let filter = TunnelFilter::new("sky0", &[], &[service, service]);
        assert_eq!(filter.expect("a plain name").services(), [service]);
    }

    proptest! {
        #[test]
        fn inbound_prefixes_do_not_overlap_and_lose_nothing(
            prefixes in prop::collection::vec(strategy::prefix(), 0..12),
        ) {
            let kept = without_covered(&prefixes);
            for (position, prefix) in kept.iter().enumerate() {
                for other in kept.iter().skip(position + 1) {
                    prop_assert!(!prefix.contains(other) && !other.contains(prefix));
                }
            }
            for prefix in &prefixes {
                prop_assert!(kept.iter().any(|wider| wider.contains(prefix)));
            }
        }
    }
}
