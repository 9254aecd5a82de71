//! What fits through which pair of clouds.
//!
//! An inner packet may be as large as the outer path allows less WireGuard's overhead. Azure fragments above
//! 1,400 bytes and drops fragments that come out of order, Google's default network has 1,460, the rest 1,500.
//! That is what a tunnel starts with; `mtu:` overrides. A path that silently takes less is found by `discovery`, peer by peer.

/// Where a gateway stands, as far as the path's size depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cloud {
    Aws,
    #[default]
    Azure,
    Gcp,
    Other,
}

/// Outer IP header, UDP header, WireGuard header (16) and tag (16), in bytes (whitepaper §5.4.6).
const OVERHEAD_IPV4_BYTES: u32 = 20 + 8 + 32;
const OVERHEAD_IPV6_BYTES: u32 = 40 + 8 + 32;

impl Cloud {
    /// The largest outer datagram, IP header included, that leaves this cloud whole.
    const fn path_bytes(self) -> u32 {
        match self {
            Self::Azure => 1400,
            Self::Gcp => 1460,
            Self::Aws | Self::Other => 1500,
        }
    }
}

/// The inner MTU between two clouds; `outer_ipv6` if any endpoint may be reached over IPv6.
pub fn default_mtu(here: Cloud, there: Cloud, outer_ipv6: bool) -> u32 {
    let overhead = if outer_ipv6 { OVERHEAD_IPV6_BYTES } else { OVERHEAD_IPV4_BYTES };
    here.path_bytes().min(there.path_bytes()) - overhead
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azure_at_either_end_bounds_the_path() {
        assert_eq!(default_mtu(Cloud::Aws, Cloud::Azure, false), 1340);
        assert_eq!(default_mtu(Cloud::Azure, Cloud::Gcp, true), 1320);
        assert_eq!(default_mtu(Cloud::Aws, Cloud::Gcp, false), 1400);
        assert_eq!(default_mtu(Cloud::Aws, Cloud::Other, true), 1420);
    }
}
