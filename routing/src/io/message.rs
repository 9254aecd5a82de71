//! Our routes, rules and addresses as rtnetlink messages, and back. The kernel's ways of saying things stay in here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage};
use rtnetlink::IpVersion;

use crate::reconcile::{KernelNextHop, KernelRoute};
use crate::route::{NextHop, Route};
use crate::{MARK, PROTOCOL, RULE_PRIORITY, TABLE};

/// An IP version: the kernel keeps routes and rules apart by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    pub(super) fn address_family(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }

    pub(super) fn ip_version(self) -> IpVersion {
        match self {
            Self::V4 => IpVersion::V4,
            Self::V6 => IpVersion::V6,
        }
    }

    fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The message that adds `route`, with the index of its interface, to our table.
///
/// Written out instead of built by `RouteMessageBuilder`, whose defaults (table main, protocol static, kind unicast)
/// are each wrong for us.
pub(super) fn route_message(route: &Route, interface: Option<u32>) -> RouteMessage {
    let prefix = route.prefix();
    let family = Family::of(&prefix);
    // IPv4 takes a route without a gateway as one to the link, as `ip route` does; IPv6 has no scopes.
    let (kind, scope) = match (route.next_hop(), family) {
        (NextHop::Unreachable, _) => (RouteType::Unreachable, RouteScope::Universe),
        (NextHop::Interface(_), Family::V4) => (RouteType::Unicast, RouteScope::Link),
        (NextHop::Interface(_), Family::V6) => (RouteType::Unicast, RouteScope::Universe),
    };
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family.address_family(),
        destination_prefix_length: prefix.prefix_len(),
        table: RouteHeader::RT_TABLE_UNSPEC, // our table's number does not fit here
        protocol: RouteProtocol::from(PROTOCOL),
        scope,
        kind,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::from(prefix.network())),
        RouteAttribute::Priority(route.metric()),
        RouteAttribute::Table(TABLE),
    ];
    message.attributes.extend(interface.map(RouteAttribute::Oif));
    message
}

/// A dumped route of `family`, if it is in our table.
///
/// Filtered here and not by the kernel: without strict checking it ignores our filter, with it the request's kind
/// hides unreachable routes. A kernel without IPv6 answers a dump of it with IPv4 routes. Cached exceptions (a path MTU
/// that was learned) bear the protocol of the route they come from, but the Cloned flag too.
pub(super) fn kernel_route(family: Family, message: &RouteMessage) -> Option<KernelRoute> {
    let header = &message.header;
    if header.address_family != family.address_family() || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut table = u32::from(header.table);
    let mut metric = 0;
    let mut destination = family.unspecified(); // a default route has no destination attribute
    let mut interface = None;
    let mut plain = header.tos == 0 && header.source_prefix_length == 0;
    for attribute in &message.attributes {
        if let RouteAttribute::Table(value) = attribute {
            table = *value; // the header says 252, "look here", for every number above 255
        } else if let RouteAttribute::Priority(value) = attribute {
            metric = *value;
        } else if let RouteAttribute::Destination(RouteAddress::Inet(address)) = attribute {
            destination = IpAddr::V4(*address);
        } else if let RouteAttribute::Destination(RouteAddress::Inet6(address)) = attribute {
            destination = IpAddr::V6(*address);
        } else if let RouteAttribute::Oif(index) = attribute {
            interface = Some(*index);
        } else if matches!(
            attribute,
            RouteAttribute::Gateway(_)
                | RouteAttribute::Via(_)
                | RouteAttribute::MultiPath(_)
                | RouteAttribute::NhId(_)
                | RouteAttribute::Encap(_)
        ) {
            plain = false;
        }
    }
    if table != TABLE {
        return None;
    }
    let next_hop = match interface {
        _ if plain && header.kind == RouteType::Unreachable => KernelNextHop::Unreachable,
        Some(index) if plain && header.kind == RouteType::Unicast => KernelNextHop::Interface(index),
        Some(_) | None => KernelNextHop::Other,
    };
    Some(KernelRoute {
        prefix: IpNet::new(destination, header.destination_prefix_length).ok()?.trunc(),
        metric,
        protocol: header.protocol.into(),
        next_hop,
    })
}

/// The message that adds our rule: `not fwmark 5359 lookup 5359`.
///
/// Without the action the kernel makes a rule that does nothing.
pub(super) fn rule_message(family: Family) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header =
        RuleHeader { family: family.address_family(), action: RuleAction::ToTable, flags: RuleFlags::Invert, ..RuleHeader::default() };
    message.attributes = vec![
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::FwMark(MARK),
        RuleAttribute::Table(TABLE),
        RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
    ];
    message
}

/// Whether a dumped rule is the one that [`rule_message`] makes; the kernel adds attributes of its own.
pub(super) fn is_our_rule(family: Family, rule: &RuleMessage) -> bool {
    let ours = rule_message(family);
    rule.header.family == ours.header.family
        && rule.header.action == ours.header.action
        && rule.header.flags.contains(RuleFlags::Invert)
        && ours.attributes.iter().all(|attribute| rule.attributes.contains(attribute))
}

/// The flag under which we add addresses. Without it the kernel puts the on-link prefix into table main, where neither
/// the mark nor the kill switch counts; our table carries it instead.
pub(super) const ADDRESS_FLAGS: AddressFlags = AddressFlags::Noprefixroute;

/// An interface's address with its prefix length; host bits stay.
pub(super) fn address(message: &AddressMessage) -> Option<IpNet> {
    let mut local = None;
    let mut address = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(value) = attribute {
            local = Some(*value);
        } else if let AddressAttribute::Address(value) = attribute {
            address = Some(*value);
        }
    }
    // On a point-to-point link "address" is the other end's; IPv6 has no "local" unless there is such a one.
    IpNet::new(local.or(address)?, message.header.prefix_len).ok()
}

/// Whether an address was added as we add them.
pub(super) fn has_our_flags(message: &AddressMessage) -> bool {
    message.attributes.iter().any(|attribute| matches!(attribute, AddressAttribute::Flags(flags) if flags.contains(ADDRESS_FLAGS)))
}

/// IPv6 link-local addresses (fe80::/10) come and go with the interface. IPv4 ones are like any other: AWS hands out
/// 169.254.0.0/16 inside its tunnels.
pub(super) fn is_link_local(address: &IpNet) -> bool {
    matches!(address.addr(), IpAddr::V6(address) if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Parseable;

    use super::*;
    use crate::KILL_SWITCH_METRIC;

    // Dumped by Linux 6.18 after `ip route add … table 5359 proto 159`.
    const V4_DEFAULT: &str = "02000000fc9ffd010000000008000f00ef14000008000600070000000800040003000000";
    const V4_UNREACHABLE: &str = "02100000fc9f00070000000008000f00ef140000080001000a14000008000600ffffffff";
    const V6_LIVE: &str = "0a200000fc9f00010000000008000f00ef1400001400010020010db8000000000000000000000000\
         0800060064000000080004000300000024000c000000000000000000000000000000000000000000\
         0000000000000000000000000500140000000000";
    const V6_UNREACHABLE: &str = "0a200000fc9f00070000000008000f00ef1400001400010020010db8000000000000000000000000\
         08000600ffffffff080004000100000024000c000000000000000000000000000000000000000000\
         0000000000000000000000000500140000000000";
    const V4_RULE: &str = "02000000fc0000010200000008000f00ef14000008000e00ffffffff050015009f00000008000600\
         ef14000008000a00ef14000008001000ffffffff";

    #[test]
    fn reads_a_route_of_a_table_above_255() {
        let message = dumped_route(V6_LIVE);
        assert_eq!(message.header.table, 252);
        assert_eq!(kernel_route(Family::V6, &message), Some(expected("2001:db8::/32", 100, KernelNextHop::Interface(3))));
    }

    #[test]
    fn reads_a_default_route() {
        assert_eq!(kernel_route(Family::V4, &dumped_route(V4_DEFAULT)), Some(expected("0.0.0.0/0", 7, KernelNextHop::Interface(3))));
    }

    #[test]
    fn an_ipv6_unreachable_route_is_not_a_route_through_lo() {
        let metric = KILL_SWITCH_METRIC;
        assert_eq!(
            kernel_route(Family::V6, &dumped_route(V6_UNREACHABLE)),
            Some(expected("2001:db8::/32", metric, KernelNextHop::Unreachable))
        );
        assert_eq!(
            kernel_route(Family::V4, &dumped_route(V4_UNREACHABLE)),
            Some(expected("10.20.0.0/16", metric, KernelNextHop::Unreachable))
        );
    }

    #[test]
    fn passes_over_other_tables_other_families_and_cached_routes() {
        let mut elsewhere = dumped_route(V6_LIVE);
        elsewhere.attributes[0] = RouteAttribute::Table(254);
        assert_eq!(kernel_route(Family::V6, &elsewhere), None);

        assert_eq!(kernel_route(Family::V6, &dumped_route(V4_DEFAULT)), None);

        let mut cached = dumped_route(V6_LIVE);
        cached.header.flags = RouteFlags::Cloned;
        assert_eq!(kernel_route(Family::V6, &cached), None);
    }

    #[test]
    fn a_route_over_a_gateway_is_none_that_we_install() {
        let mut message = dumped_route(V4_DEFAULT);
        let gateway = RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 1));
        message.attributes.push(RouteAttribute::Gateway(gateway));
        assert_eq!(kernel_route(Family::V4, &message).map(|route| route.next_hop), Some(KernelNextHop::Other));
    }

    #[test]
    fn what_we_add_is_what_we_read_back() {
        for prefix in ["10.20.0.0/16", "0.0.0.0/0", "2001:db8::/32", "::/0"] {
            let net: IpNet = prefix.parse().expect("well formed");
            let live = Route::new(net, NextHop::Interface("sky0".to_owned()), 100);
            assert_eq!(
                kernel_route(Family::of(&net), &route_message(&live, Some(3))),
                Some(expected(prefix, 100, KernelNextHop::Interface(3)))
            );
            let switch = Route::kill_switch(net);
            assert_eq!(
                kernel_route(Family::of(&net), &route_message(&switch, None)),
                Some(expected(prefix, KILL_SWITCH_METRIC, KernelNextHop::Unreachable))
            );
        }
    }

    #[test]
    fn knows_its_rule_from_others() {
        let rule = RuleMessage::parse(bytes(V4_RULE).as_slice()).expect("a rule");
        assert!(is_our_rule(Family::V4, &rule));
        assert!(!is_our_rule(Family::V6, &rule));
        assert!(is_our_rule(Family::V6, &rule_message(Family::V6)));

        let mut not_inverted = rule.clone();
        not_inverted.header.flags = RuleFlags::empty();
        assert!(!is_our_rule(Family::V4, &not_inverted));

        let mut without_action = rule;
        without_action.header.action = RuleAction::Unspec;
        assert!(!is_our_rule(Family::V4, &without_action));
    }

    #[test]
    fn reads_the_local_end_of_a_point_to_point_address() {
        let mut message = AddressMessage::default();
        message.header.prefix_len = 30;
        message.attributes = vec![
            AddressAttribute::Address(IpAddr::from([10, 99, 0, 2])),
            AddressAttribute::Local(IpAddr::from([10, 99, 0, 1])),
            AddressAttribute::Flags(AddressFlags::Permanent | AddressFlags::Noprefixroute),
        ];
        assert_eq!(address(&message), "10.99.0.1/30".parse().ok());
        assert!(has_our_flags(&message));
    }

    #[test]
    fn only_ipv6_link_local_addresses_are_the_kernels_own() {
        let is_link_local = |text: &str| is_link_local(&text.parse().expect("well formed"));
        assert!(is_link_local("fe80::1/64"));
        assert!(!is_link_local("169.254.7.1/30"));
        assert!(!is_link_local("fd00::1/64"));
    }

    fn expected(prefix: &str, metric: u32, next_hop: KernelNextHop) -> KernelRoute {
        KernelRoute { prefix: prefix.parse().expect("well formed"), metric, protocol: PROTOCOL, next_hop }
    }

    fn dumped_route(hex: &str) -> RouteMessage {
        RouteMessage::parse(bytes(hex).as_slice()).expect("a route")
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
    }
}
