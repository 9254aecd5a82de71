//! The set of routes that shall be in the kernel, kill switch included.
//!
//! The kill switch is decided here and nowhere else: no caller can install a route into a tunnel and forget it.

use std::collections::BTreeMap;

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
    ///
    /// Two routes that differ in the next hop alone are an error of the configuration; here the lesser one stays, so
    /// that the outcome does not depend on the order.
    pub fn build(routes: &[Route], protected: &[Protected]) -> Self {
        let mut fib = Self::default();
        for route in routes {
            fib.insert(route.clone());
        }
        let routed: Vec<Route> = fib.routes().cloned().collect();
        for route in &routed {
            fib.insert(Route::kill_switch(route.prefix()));
        }
        for Protected { prefix, interface } in protected {
            let covered = routed.iter().any(|route| leads_to(route, interface) && route.prefix().contains(prefix));
            if prefix.prefix_len() > 0 && !covered {
                fib.insert(Route::kill_switch(*prefix));
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

fn leads_to(route: &Route, interface: &str) -> bool {
    match route.next_hop() {
        NextHop::Interface(name) => name == interface,
        NextHop::Unreachable => false,
    }
}

#[cfg(test)]
mod tests {
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

    proptest! {
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
