//! What to change so that the kernel's table holds exactly the FIB: pure, and empty when there is nothing to do.
//!
//! Order is the point. Unreachable routes go in before live ones and out after them, so that there is no moment in
//! which a prefix of ours falls through to `main`:
//!
//! ```text
//!  install unreachable ─► install live ─► remove live ─► remove unreachable
//! ```

use std::collections::{BTreeMap, HashMap};

use ipnet::IpNet;

use crate::PROTOCOL;
use crate::fib::Fib;
use crate::route::{NextHop, Route};

/// One route of our table as the kernel's dump has it, whoever put it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelRoute {
    pub prefix: IpNet,
    pub metric: u32,
    /// Whose it is: ours bear [`PROTOCOL`].
    pub protocol: u8,
    pub next_hop: KernelNextHop,
}

/// Where a route in the kernel leads, as far as we tell routes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KernelNextHop {
    /// Out of the interface with this index, without a gateway.
    Interface(u32),
    /// Nowhere. The dump names `lo` as the device of an IPv6 one; that says nothing.
    Unreachable,
    /// Anything that we never install: a gateway, several next hops, a blackhole.
    Other,
}

/// One step from the kernel's table to the FIB. Positions are those in the dump that [`reconcile`] was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Install {
        route: Route,
        /// The index of the route's interface; none for an unreachable route.
        interface: Option<u32>,
        /// The route of ours with the same prefix and metric whose place it takes, in one step and without a gap.
        replaces: Option<usize>,
    },
    Remove {
        index: usize,
    },
}

/// What [`reconcile`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciliation {
    /// In the order in which to make them.
    pub changes: Vec<Change>,
    /// Live routes whose interface does not exist. Until it does, the kill switch of their prefix answers.
    pub waiting: Vec<Route>,
}

/// Compares `kernel`, a dump of our table, with what shall be there. `interfaces`: index of each interface by name.
///
/// Only routes with our protocol are ours to change; a foreign one that holds the place of ours makes the kernel refuse
/// the installation, which is for the operator to see.
pub fn reconcile(kernel: &[KernelRoute], desired: &Fib, interfaces: &HashMap<String, u32>) -> Reconciliation {
    let mut ours: BTreeMap<(IpNet, u32), Vec<usize>> = BTreeMap::new();
    for (index, route) in kernel.iter().enumerate() {
        if route.protocol == PROTOCOL {
            ours.entry((route.prefix, route.metric)).or_default().push(index);
        }
    }

    let mut waiting = Vec::new();
    let mut changes = Vec::new();
    for route in desired.routes() {
        let interface = match route.next_hop() {
            NextHop::Unreachable => None,
            NextHop::Interface(name) => match interfaces.get(name) {
                Some(&index) => Some(index),
                None => {
                    waiting.push(route.clone());
                    continue;
                }
            },
        };
        let wanted = interface.map_or(KernelNextHop::Unreachable, KernelNextHop::Interface);
        let mut present = ours.remove(&route.key()).unwrap_or_default();
        if let Some(position) = present.iter().position(|&index| kernel[index].next_hop == wanted) {
            present.remove(position);
        } else {
            let replaces = (!present.is_empty()).then(|| present.remove(0));
            changes.push(Change::Install { route: route.clone(), interface, replaces });
        }
        // IPv6 allows several routes with one prefix and metric; one of them is enough.
        changes.extend(present.into_iter().map(|index| Change::Remove { index }));
    }
    let unwanted = ours.into_values().flatten();
    changes.extend(unwanted.map(|index| Change::Remove { index }));

    changes.sort_by_key(|change| Phase::of(change, kernel));
    Reconciliation { changes, waiting }
}

/// When a change is made, first to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    InstallUnreachable,
    InstallLive,
    RemoveLive,
    RemoveUnreachable,
}

impl Phase {
    fn of(change: &Change, kernel: &[KernelRoute]) -> Self {
        match change {
            Change::Install { interface: None, .. } => Self::InstallUnreachable,
            Change::Install { interface: Some(_), .. } => Self::InstallLive,
            Change::Remove { index } => match kernel[*index].next_hop {
                KernelNextHop::Unreachable => Self::RemoveUnreachable,
                KernelNextHop::Interface(_) | KernelNextHop::Other => Self::RemoveLive,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::KILL_SWITCH_METRIC;
    use crate::fib::Protected;
    use crate::route::strategy;

    const FOREIGN: u8 = 4; // "static": what an administrator's `ip route add` leaves

    #[test]
    fn installs_the_kill_switch_before_the_live_route() {
        let fib = fib("10.20.0.0/16", "sky0");
        let Reconciliation { changes, waiting } = reconcile(&[], &fib, &interfaces());
        assert_eq!(shown(&changes), ["install 10.20.0.0/16 unreachable metric 4294967295", "install 10.20.0.0/16 dev sky0 metric 100",]);
        assert!(waiting.is_empty());
    }

    #[test]
    fn removes_the_kill_switch_after_the_live_route() {
        let kernel = [
            kernel_route("10.20.0.0/16", KILL_SWITCH_METRIC, KernelNextHop::Unreachable),
            kernel_route("10.20.0.0/16", 100, KernelNextHop::Interface(1)),
        ];
        let changes = reconcile(&kernel, &Fib::default(), &interfaces()).changes;
        assert_eq!(shown(&changes), ["remove 1", "remove 0"]);
    }

    #[test]
    fn moves_from_one_prefix_to_another_without_a_gap() {
        let kernel = [
            kernel_route("10.20.0.0/16", KILL_SWITCH_METRIC, KernelNextHop::Unreachable),
            kernel_route("10.20.0.0/16", 100, KernelNextHop::Interface(1)),
        ];
        let changes = reconcile(&kernel, &fib("10.0.0.0/8", "sky0"), &interfaces()).changes;
        assert_eq!(
            shown(&changes),
            ["install 10.0.0.0/8 unreachable metric 4294967295", "install 10.0.0.0/8 dev sky0 metric 100", "remove 1", "remove 0",]
        );
    }

    #[test]
    fn the_same_routes_twice_change_nothing() {
        let kernel = [
            kernel_route("10.20.0.0/16", 100, KernelNextHop::Interface(1)),
            kernel_route("10.20.0.0/16", KILL_SWITCH_METRIC, KernelNextHop::Unreachable),
        ];
        let outcome = reconcile(&kernel, &fib("10.20.0.0/16", "sky0"), &interfaces());
        assert_eq!(outcome, Reconciliation::default());
    }

    #[test]
    fn replaces_a_route_through_another_interface_in_one_step() {
        let kernel = [
            kernel_route("10.20.0.0/16", KILL_SWITCH_METRIC, KernelNextHop::Unreachable),
            kernel_route("10.20.0.0/16", 100, KernelNextHop::Interface(7)),
        ];
        let changes = reconcile(&kernel, &fib("10.20.0.0/16", "sky0"), &interfaces()).changes;
        assert_eq!(shown(&changes), ["install 10.20.0.0/16 dev sky0 metric 100 for 1"]);
    }

    #[test]
    fn a_route_waits_for_its_interface_behind_the_kill_switch() {
        let fib = fib("10.20.0.0/16", "absent");
        let Reconciliation { changes, waiting } = reconcile(&[], &fib, &interfaces());
        assert_eq!(shown(&changes), ["install 10.20.0.0/16 unreachable metric 4294967295"]);
        assert_eq!(waiting[0].to_string(), "10.20.0.0/16 dev absent metric 100");
    }

    #[test]
    fn leaves_foreign_routes_alone() {
        let foreign = KernelRoute { protocol: FOREIGN, ..kernel_route("10.30.0.0/16", 100, KernelNextHop::Interface(1)) };
        let outcome = reconcile(&[foreign], &Fib::default(), &interfaces());
        assert_eq!(outcome, Reconciliation::default());
    }

    proptest! {
        #[test]
        fn the_changes_lead_to_the_fib_and_then_there_are_none(
            kernel in prop::collection::vec(some_kernel_route(), 0..12),
            fib in some_fib(),
        ) {
            let Reconciliation { changes, waiting } = reconcile(&kernel, &fib, &interfaces());
            let after = apply(&kernel, &changes);

            let mut expected: Vec<KernelRoute> = fib
                .routes()
                .filter(|route| !waiting.contains(route))
                .map(installed)
                .chain(kernel.iter().copied().filter(|route| route.protocol != PROTOCOL))
                .collect();
            expected.sort_unstable();
            let mut found = after.clone();
            found.sort_unstable();
            prop_assert_eq!(found, expected);

            let again = reconcile(&after, &fib, &interfaces());
            prop_assert!(again.changes.is_empty());
            prop_assert_eq!(again.waiting, waiting);
        }

        #[test]
        fn no_prefix_is_without_its_kill_switch_on_the_way(
            before in some_fib(),
            after in some_fib(),
        ) {
            let start: Vec<KernelRoute> = apply(&[], &reconcile(&[], &before, &interfaces()).changes);
            let changes = reconcile(&start, &after, &interfaces()).changes;
            for done in 0..=changes.len() {
                let table = apply(&start, &changes[..done]);
                for live in table.iter().filter(|route| route.next_hop != KernelNextHop::Unreachable) {
                    let switch = KernelRoute {
                        metric: KILL_SWITCH_METRIC,
                        next_hop: KernelNextHop::Unreachable,
                        ..*live
                    };
                    prop_assert!(table.contains(&switch));
                }
            }
        }
    }

    /// What the kernel does with `changes`.
    fn apply(kernel: &[KernelRoute], changes: &[Change]) -> Vec<KernelRoute> {
        let mut table: Vec<Option<KernelRoute>> = kernel.iter().copied().map(Some).collect();
        for change in changes {
            match change {
                Change::Install { route, replaces, .. } => match replaces {
                    Some(index) => table[*index] = Some(installed(route)),
                    None => table.push(Some(installed(route))),
                },
                Change::Remove { index } => table[*index] = None,
            }
        }
        table.into_iter().flatten().collect()
    }

    fn installed(route: &Route) -> KernelRoute {
        KernelRoute {
            prefix: route.prefix(),
            metric: route.metric(),
            protocol: PROTOCOL,
            next_hop: match route.next_hop() {
                NextHop::Interface(name) => KernelNextHop::Interface(interfaces()[name]),
                NextHop::Unreachable => KernelNextHop::Unreachable,
            },
        }
    }

    fn shown(changes: &[Change]) -> Vec<String> {
        let show = |change: &Change| match change {
            Change::Install { route, replaces: Some(index), .. } => format!("install {route} for {index}"),
            Change::Install { route, replaces: None, .. } => format!("install {route}"),
            Change::Remove { index } => format!("remove {index}"),
        };
        changes.iter().map(show).collect()
    }

    fn some_kernel_route() -> impl Strategy<Value = KernelRoute> {
        let next_hop =
            prop_oneof![(1u32..4).prop_map(KernelNextHop::Interface), Just(KernelNextHop::Unreachable), Just(KernelNextHop::Other),];
        let metric = prop::sample::select(vec![1, 100, KILL_SWITCH_METRIC]);
        let protocol = prop::sample::select(vec![PROTOCOL, FOREIGN]);
        (strategy::prefix(), metric, protocol, next_hop).prop_map(|(prefix, metric, protocol, next_hop)| KernelRoute {
            prefix,
            metric,
            protocol,
            next_hop,
        })
    }

    fn some_fib() -> impl Strategy<Value = Fib> {
        let protected = (strategy::prefix(), strategy::interface()).prop_map(|(prefix, interface)| Protected { prefix, interface });
        (prop::collection::vec(strategy::route(), 0..6), prop::collection::vec(protected, 0..6))
            .prop_map(|(routes, protected)| Fib::build(&routes, &protected))
    }

    /// `sky2`, which the strategies use too, does not exist.
    fn interfaces() -> HashMap<String, u32> {
        HashMap::from([("sky0".to_owned(), 1), ("sky1".to_owned(), 2)])
    }

    fn fib(prefix: &str, interface: &str) -> Fib {
        let next_hop = NextHop::Interface(interface.to_owned());
        let prefix = prefix.parse().expect("well formed");
        Fib::build(&[Route::new(prefix, next_hop, 100)], &[])
    }

    fn kernel_route(prefix: &str, metric: u32, next_hop: KernelNextHop) -> KernelRoute {
        KernelRoute { prefix: prefix.parse().expect("well formed"), metric, protocol: PROTOCOL, next_hop }
    }
}
