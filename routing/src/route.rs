//! One route: a prefix, where it leads, and how good it is.

use std::fmt;

use ipnet::IpNet;

use crate::KILL_SWITCH_METRIC;

/// A route that shall be in the kernel. Its prefix has no host bits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    prefix: IpNet,
    metric: u32,
    next_hop: NextHop,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NextHop {
    /// Out of the interface of this name, without a gateway: a TUN has no neighbours to ask for.
    Interface(String),
    /// Nowhere: the sender is told "host unreachable".
    Unreachable,
}

impl Route {
    /// A route with `prefix` made canonical (10.20.7.1/16 becomes 10.20.0.0/16).
    ///
    /// `metric`: lower is better; brought into 1 to 4294967294. The kernel turns an IPv6 metric of 0 into 1024, which
    /// would look like a foreign change for ever, and the worst metric belongs to the kill switch.
    pub fn new(prefix: IpNet, next_hop: NextHop, metric: u32) -> Self {
        Self { prefix: prefix.trunc(), metric: metric.clamp(1, KILL_SWITCH_METRIC - 1), next_hop }
    }

    pub(crate) fn kill_switch(prefix: IpNet) -> Self {
        Self { prefix: prefix.trunc(), metric: KILL_SWITCH_METRIC, next_hop: NextHop::Unreachable }
    }

    pub fn prefix(&self) -> IpNet {
        self.prefix
    }

    pub fn next_hop(&self) -> &NextHop {
        &self.next_hop
    }

    pub fn metric(&self) -> u32 {
        self.metric
    }

    /// Whether this is the kill switch of its prefix, rather than a route that somebody told us.
    pub fn is_kill_switch(&self) -> bool {
        self.metric == KILL_SWITCH_METRIC
    }

    /// What the kernel tells two routes of one table apart by. `replace` with another metric adds a second route.
    pub(crate) fn key(&self) -> (IpNet, u32) {
        (self.prefix, self.metric)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} metric {}", self.prefix, self.next_hop, self.metric)
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "dev {name}"),
            Self::Unreachable => f.write_str("unreachable"),
        }
    }
}

/// What the property tests of this crate draw from: few values, so that they meet.
#[cfg(test)]
pub(crate) mod strategy {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn prefix() -> impl Strategy<Value = IpNet> {
        let v4 = (0u8..4, prop::sample::select(vec![0u8, 8, 9, 10, 16, 32])).prop_map(|(n, length)| (format!("10.{}.0.0", n << 6), length));
        let v6 = (0u16..4, prop::sample::select(vec![0u8, 32, 33, 34, 48, 128]))
            .prop_map(|(n, length)| (format!("2001:db8:{:x}::", n << 14), length));
        prop_oneof![v4, v6].prop_map(|(address, length)| format!("{address}/{length}").parse::<IpNet>().expect("well formed").trunc())
    }

    pub(crate) fn interface() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["sky0", "sky1", "sky2"]).prop_map(str::to_owned)
    }

    pub(crate) fn route() -> impl Strategy<Value = Route> {
        let next_hop = prop_oneof![
            4 => interface().prop_map(NextHop::Interface),
            1 => Just(NextHop::Unreachable),
        ];
        (prefix(), next_hop, prop::sample::select(vec![1, 100])).prop_map(|(prefix, next_hop, metric)| Route::new(prefix, next_hop, metric))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_host_bits() {
        let route = route("10.20.7.1/16", 100);
        assert_eq!(route.to_string(), "10.20.0.0/16 dev sky0 metric 100");
    }

    #[test]
    fn keeps_the_metric_between_one_and_the_kill_switch() {
        assert_eq!(route("10.20.0.0/16", 0).metric(), 1);
        assert_eq!(route("10.20.0.0/16", u32::MAX).metric(), u32::MAX - 1);
        assert!(!route("10.20.0.0/16", u32::MAX).is_kill_switch());
    }

    fn route(prefix: &str, metric: u32) -> Route {
        let prefix = prefix.parse().expect("well formed");
        Route::new(prefix, NextHop::Interface("sky0".to_owned()), metric)
    }
}
