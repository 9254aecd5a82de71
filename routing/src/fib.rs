//! The set of routes that shall be in the kernel, kill switch included.
//!
//! The kill switch is decided here and nowhere else: no caller can install a route into a tunnel and forget it.

use std::collections::{BTreeMap, HashMap, HashSet};

use ipnet::IpNet;

use crate::route::{NextHop, Route};

/// The routes that shall be in our table: at most one for each prefix and metric, in the order of these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fib {
    routes: BTreeMap<(IpNet, u32), Route>,
}

/// A prefix that a tunnel carries (one of its allowed IPs): whatever goes there goes through the tunnel or nowhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protected {
    pub prefix: IpNet,
    /// The tunnel's interface, by name.
    pub interface: String,
}

impl Fib {
    /// Joins what shall be routed with what must not leak. The order of the arguments' elements makes no difference.
    ///
    /// 1. A routed prefix also gets an unreachable route at the kill switch's metric.
    /// 2. So does a protected one, except where a routed prefix through the *same* interface covers it: that one has
    ///    its own kill switch already, and a more specific unreachable route would shadow it.
    /// 3. A protected default (0.0.0.0/0, ::/0) gets none unless `routes` sends it. As an allowed IP it says that the
    ///    peer may be a way to everywhere, not that it is the only one, and an unreachable default in a table that is
    ///    looked up before `main` would cut the host off.
    /// 4. Where more than 1,000 prefixes of one interface are to be unreachable by 2, they are aggregated: fewer routes
    ///    that cover the same addresses. A prefix stays beside its aggregate if a route, which can only be another
    ///    interface's, would come between the two and send it away. So no address is answered otherwise than without.
    ///    Up to 1,000 each prefix has the route that the configuration names.
    ///
    /// Two routes that differ in the next hop alone are an error of the configuration; here the lesser one stays, so
    /// that the outcome does not depend on the order.
    pub fn build(routes: &[Route], protected: &[Protected]) -> Self {
        Self::build_with(routes, protected, MANY)
    }

    fn build_with(routes: &[Route], protected: &[Protected], many: usize) -> Self {
        let mut fib = Self::default();
        for route in routes {
            fib.insert(route.clone());
        }
        let routed: Vec<Route> = fib.routes().cloned().collect();
        // Sets, in which the few prefixes that can cover one are looked up: there may be a hundred thousand on either side.
        let mut sent: HashSet<IpNet> = HashSet::new();
        let mut sent_through: HashMap<&str, HashSet<IpNet>> = HashMap::new();
        for route in &routed {
            fib.insert(Route::kill_switch(route.prefix()));
            sent.insert(route.prefix());
            if let NextHop::Interface(name) = route.next_hop() {
                sent_through.entry(name.as_str()).or_default().insert(route.prefix());
            }
        }
        let mut uncovered: BTreeMap<&str, Vec<IpNet>> = BTreeMap::new();
        for Protected { prefix, interface } in protected {
            let own = sent_through.get(interface.as_str());
            let covered = own.is_some_and(|own| with_supernets(*prefix).any(|wider| own.contains(&wider)));
            if prefix.prefix_len() > 0 && !covered {
                uncovered.entry(interface.as_str()).or_default().push(prefix.trunc());
            }
        }
        for prefixes in uncovered.into_values() {
            let prefixes = if prefixes.len() > many { aggregated(prefixes, &sent) } else { prefixes };
            for prefix in prefixes {
                fib.insert(Route::kill_switch(prefix));
            }
        }
        fib
    }

    fn insert(&mut self, route: Route) {
        self.routes
            .entry(route.key())
            .and_modify(|present| {
                if route.next_hop() < present.next_hop() {
                    *present = route.clone();
                }
            })
            .or_insert(route);
    }

    /// All routes, by prefix and then by metric: the kill switch of a prefix comes after its live routes.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values()
    }

    /// The prefixes under the kill switch.
    pub fn unreachable(&self) -> impl Iterator<Item = IpNet> {
        self.routes().filter(|route| route.is_kill_switch()).map(Route::prefix)
    }

    /// How many routes there are, kill switch included.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

/// How many unreachable routes of one interface are kept as the configuration has them. Every one costs the kernel's
/// dump some microseconds at each maintenance; below this that is nothing, and an operator can find each prefix again.
const MANY: usize = 1_000;

/// `prefix` without host bits, and all that hold it, to the default: at most 33 in IPv4, 129 in IPv6.
fn with_supernets(prefix: IpNet) -> impl Iterator<Item = IpNet> {
    std::iter::successors(Some(prefix.trunc()), IpNet::supernet)
}

/// The fewest prefixes that cover the same addresses, and with them each of `prefixes` that lies inside one of `sent`
/// which in turn is its aggregate or lies inside it. `prefixes`: without host bits.
fn aggregated(prefixes: Vec<IpNet>, sent: &HashSet<IpNet>) -> Vec<IpNet> {
    let aggregates: HashSet<IpNet> = IpNet::aggregate(&prefixes).into_iter().collect();
    let stays = |prefix: &IpNet| {
        for wider in with_supernets(*prefix) {
            if wider != *prefix && sent.contains(&wider) {
                return true;
            }
            if aggregates.contains(&wider) {
                return false;
            }
        }
        true
    };
    let beside: Vec<IpNet> = prefixes.into_iter().filter(stays).collect();
    aggregates.iter().copied().chain(beside).collect()
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::route::strategy;

    #[test]
    fn a_routed_prefix_has_its_kill_switch() {
        let fib = Fib::build(&[route("10.20.0.0/16", "sky0")], &[]);
        assert_eq!(shown(&fib), ["10.20.0.0/16 dev sky0 metric 100", "10.20.0.0/16 unreachable metric 4294967295"]);
    }

    #[test]
    fn a_protected_prefix_without_a_route_is_unreachable() {
        let fib = Fib::build(&[], &[protected("10.20.3.0/24", "sky0"), protected("2001:db8::1/32", "sky0")]);
        assert_eq!(shown(&fib), ["10.20.3.0/24 unreachable metric 4294967295", "2001:db8::/32 unreachable metric 4294967295"]);
    }

    #[test]
    fn a_live_route_is_not_shadowed_by_its_own_tunnel() {
        let carried = [protected("10.20.3.0/24", "sky0"), protected("10.20.0.0/16", "sky0")];
        let fib = Fib::build(&[route("10.20.0.0/16", "sky0")], &carried);
        assert_eq!(unreachable(&fib), ["10.20.0.0/16"]);
    }

    #[test]
    fn another_tunnels_prefix_does_not_leave_by_a_wider_route() {
        let fib = Fib::build(&[route("10.0.0.0/8", "sky0")], &[protected("10.20.0.0/16", "sky1")]);
        assert_eq!(unreachable(&fib), ["10.0.0.0/8", "10.20.0.0/16"]);
    }

    #[test]
    fn a_narrower_route_does_not_cover_a_wider_prefix() {
        let fib = Fib::build(&[route("10.20.3.0/24", "sky0")], &[protected("10.20.0.0/16", "sky0")]);
        assert_eq!(unreachable(&fib), ["10.20.0.0/16", "10.20.3.0/24"]);
    }

    #[test]
    fn a_default_is_protected_only_if_it_is_routed() {
        let defaults = [protected("0.0.0.0/0", "sky0"), protected("::/0", "sky0")];
        assert!(Fib::build(&[], &defaults).is_empty());
        let fib = Fib::build(&[route("0.0.0.0/0", "sky0")], &defaults);
        assert_eq!(unreachable(&fib), ["0.0.0.0/0"]);
    }

    #[test]
    fn backup_routes_share_one_kill_switch() {
        let backup = Route::new(prefix("10.20.0.0/16"), NextHop::Interface("sky1".to_owned()), 200);
        let fib = Fib::build(&[route("10.20.0.0/16", "sky0"), backup], &[]);
        assert_eq!(fib.len(), 3);
    }

    #[test]
    fn a_thousand_prefixes_stay_and_more_are_aggregated() {
        let carried = slash_24s();
        assert_eq!(Fib::build(&[], &carried[..1_000]).len(), 1_000);
        assert_eq!(unreachable(&Fib::build(&[], &carried)), ["10.20.0.0/14"]);
        // Each interface for itself.
        let mut of_two = carried;
        for other in &mut of_two[..512] {
            other.interface = "sky1".to_owned();
        }
        assert_eq!(Fib::build(&[], &of_two).len(), 1_024);
    }

    #[test]
    fn a_route_between_a_prefix_and_its_aggregate_takes_nothing() {
        let elsewhere = [route("10.21.0.0/16", "sky1")];
        let fib = Fib::build(&elsewhere, &slash_24s());
        // The aggregate, the kill switch of the route, and the 256 prefixes inside the route.
        assert_eq!(fib.unreachable().count(), 258);
        assert_eq!(answer(&fib, address("10.21.7.1")), Some(&NextHop::Unreachable));
        assert_eq!(answer(&fib, address("10.22.7.1")), Some(&NextHop::Unreachable));
    }

    #[test]
    fn an_aggregate_does_not_shadow_a_live_route() {
        let own = [route("10.21.7.0/25", "sky0"), route("10.22.7.0/25", "sky1")];
        let fib = Fib::build(&own, &slash_24s());
        assert_eq!(unreachable(&fib), ["10.20.0.0/14", "10.21.7.0/25", "10.22.7.0/25"]);
        assert_eq!(answer(&fib, address("10.21.7.1")), Some(&NextHop::Interface("sky0".to_owned())));
        assert_eq!(answer(&fib, address("10.22.7.1")), Some(&NextHop::Interface("sky1".to_owned())));
        assert_eq!(answer(&fib, address("10.22.7.129")), Some(&NextHop::Unreachable));
    }

    #[test]
    fn a_hundred_thousand_prefixes_beside_as_many_routes() {
        // Compared one with another this would take minutes.
        let nth = |n: u32| IpNet::new(IpAddr::from((n << 9).to_be_bytes()), 24).expect("a length of IPv4");
        let routes: Vec<Route> = (0..100_000).map(|n| Route::new(nth(n), NextHop::Interface("sky0".to_owned()), 100)).collect();
        let carried: Vec<Protected> = (0..100_000).map(|n| Protected { prefix: nth(n), interface: "sky0".to_owned() }).collect();
        let fib = Fib::build(&routes, &carried);
        assert_eq!(fib.len(), 200_000);
    }

    proptest! {
        #[test]
        fn aggregation_changes_no_answer(
            routes in prop::collection::vec(strategy::route(), 0..8),
            carried in prop::collection::vec(some_protected(), 0..12),
        ) {
            let (plain, fewer) = (Fib::build_with(&routes, &carried, usize::MAX), Fib::build_with(&routes, &carried, 0));
            let beyond = ["9.255.255.255", "11.0.0.0", "2001:db7:ffff::", "2001:db9::"].map(address);
            let prefixes = plain.routes().chain(fewer.routes()).map(Route::prefix);
            for address in prefixes.flat_map(|prefix| [prefix.network(), prefix.broadcast()]).chain(beyond) {
                prop_assert_eq!(answer(&plain, address), answer(&fewer, address), "{}", address);
            }
        }

        #[test]
        fn order_makes_no_difference(
            (routes, shuffled) in in_two_orders(strategy::route()),
            (carried, carried_shuffled) in in_two_orders(some_protected()),
        ) {
            prop_assert_eq!(Fib::build(&routes, &carried), Fib::build(&shuffled, &carried_shuffled));
        }

        #[test]
        fn nothing_that_is_routed_or_protected_can_leak(
            routes in prop::collection::vec(strategy::route(), 0..8),
            carried in prop::collection::vec(some_protected(), 0..8),
        ) {
            let fib = Fib::build(&routes, &carried);
            for route in &routes {
                prop_assert!(fib.unreachable().any(|prefix| prefix == route.prefix()));
            }
            for Protected { prefix, .. } in carried.iter().filter(|carried| carried.prefix.prefix_len() > 0) {
                prop_assert!(fib.unreachable().any(|unreachable| unreachable.contains(prefix)));
            }
            for route in fib.routes().filter(|route| route.is_kill_switch()) {
                prop_assert_eq!(route.next_hop(), &NextHop::Unreachable);
            }
        }
    }

    fn in_two_orders<T: Clone + std::fmt::Debug>(element: impl Strategy<Value = T>) -> impl Strategy<Value = (Vec<T>, Vec<T>)> {
        prop::collection::vec(element, 0..8).prop_flat_map(|elements| (Just(elements.clone()), Just(elements).prop_shuffle()))
    }

    fn some_protected() -> impl Strategy<Value = Protected> {
        (strategy::prefix(), strategy::interface()).prop_map(|(prefix, interface)| Protected { prefix, interface })
    }

    /// 1,024 prefixes that are 10.20.0.0/14 together, carried by `sky0`.
    fn slash_24s() -> Vec<Protected> {
        (0..1_024).map(|n| protected(&format!("10.{}.{}.0/24", 20 + n / 256, n % 256), "sky0")).collect()
    }

    /// Where the kernel would send a packet for `address`.
    fn answer(fib: &Fib, address: IpAddr) -> Option<&NextHop> {
        let matching = fib.routes().filter(|route| route.prefix().contains(&address));
        matching.max_by_key(|route| (route.prefix().prefix_len(), Reverse(route.metric()))).map(Route::next_hop)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("well formed")
    }

    fn shown(fib: &Fib) -> Vec<String> {
        fib.routes().map(Route::to_string).collect()
    }

    fn unreachable(fib: &Fib) -> Vec<String> {
        fib.unreachable().map(|prefix| prefix.to_string()).collect()
    }

    fn route(destination: &str, interface: &str) -> Route {
        Route::new(prefix(destination), NextHop::Interface(interface.to_owned()), 100)
    }

    fn protected(destination: &str, interface: &str) -> Protected {
        Protected { prefix: prefix(destination), interface: interface.to_owned() }
    }

    fn prefix(text: &str) -> IpNet {
        text.parse().expect("well formed")
    }
}
