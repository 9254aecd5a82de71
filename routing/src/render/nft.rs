//! The inward filter as an nftables script (`nft -f`). Accepted by nft 1.0.6 and checked against it.
//!
//! A gateway owns one table and no rule outside it, so it cannot disturb another's rules, and removing the filter is
//! removing the table. `accept` here ends this table's verdict only: a rule of the host's own can still drop.
//!
//! The script replaces the table in one transaction, so there is no moment without a filter. Connections live on, as
//! conntrack is not the table's; the counters start again from zero.

use ipnet::IpNet;

use crate::filter::{InwardFilter, Service, TunnelFilter};

/// The script that installs `filter`, or puts it in the place of what `gateway` had before.
///
/// Named counters, one for each interface and hook, hold what was dropped: `dropped_azure_forward`.
pub fn inward_filter_script(gateway: &str, filter: &InwardFilter) -> String {
    let mut script = release_script(gateway);
    script.push_str(&format!("table inet {} {{\n", table_name(gateway)));
    for tunnel in &filter.tunnels {
        for hook in [Hook::Forward, Hook::Input] {
            script.push_str(&format!("\tcounter {} {{ }}\n", counter_name(tunnel, hook)));
        }
    }
    for hook in [Hook::Forward, Hook::Input] {
        script.push_str(&chain(hook, &filter.tunnels));
    }
    script.push_str("}\n");
    script
}

/// The script that removes the filter of `gateway`; not an error when there is none, thanks to the `add` before it.
pub fn release_script(gateway: &str) -> String {
    let table = table_name(gateway);
    format!("add table inet {table}\ndelete table inet {table}\n")
}

/// The name of a gateway's table (family `inet`), so that several gateways can share a host: `skyway_aws_use1_a`.
///
/// What is not an ASCII letter or digit becomes `_`; names that differ in such characters alone share a table.
pub fn table_name(gateway: &str) -> String {
    let name: String = gateway.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("skyway_{name}")
}

/// Where the kernel asks us: about packets that pass through this host, and about those for the host itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    Forward,
    Input,
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Input => "input",
        }
    }
}

fn chain(hook: Hook, tunnels: &[TunnelFilter]) -> String {
    let name = hook.name();
    let mut chain = format!("\n\tchain inward_{name} {{\n\t\ttype filter hook {name} priority filter; policy accept;\n");
    for tunnel in tunnels {
        for rule in rules(hook, tunnel) {
            chain.push_str(&format!("\t\tiifname \"{}\" {rule}\n", tunnel.interface()));
        }
    }
    chain.push_str("\t}\n");
    chain
}

/// The rules for what comes out of one tunnel, first match wins, the last one matches all.
///
/// ICMP errors, path MTU among them, belong to a connection of ours or are nobody's: `related` lets them in. There is no
/// neighbour discovery on a TUN.
fn rules(hook: Hook, tunnel: &TunnelFilter) -> Vec<String> {
    let drop = format!("counter name \"{}\" drop", counter_name(tunnel, hook));
    let mut rules = vec!["ct state established,related accept".to_owned(), format!("ct state invalid {drop}")];
    rules.extend(inbound_rules(tunnel.inbound()));
    match hook {
        Hook::Forward => {}
        Hook::Input => {
            rules.push("icmp type echo-request accept".to_owned());
            rules.push("icmpv6 type echo-request accept".to_owned());
            rules.extend(tunnel.services().iter().map(service_rule));
        }
    }
    rules.push(drop);
    rules
}

fn inbound_rules(inbound: &[IpNet]) -> impl Iterator<Item = String> {
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = inbound.iter().copied().partition(|prefix| prefix.addr().is_ipv4());
    [("ip", v4), ("ip6", v6)].into_iter().filter(|(_, prefixes)| !prefixes.is_empty()).map(|(family, prefixes)| {
        let prefixes: Vec<String> = prefixes.iter().map(IpNet::to_string).collect();
        format!("{family} daddr {{ {} }} accept", prefixes.join(", "))
    })
}

fn service_rule(service: &Service) -> String {
    let Service { address, port } = service;
    let family = if address.is_ipv4() { "ip" } else { "ip6" };
    format!("{family} daddr {address} tcp dport {port} accept")
}

/// Interface names are plain ([`TunnelFilter::new`]) and may stand in an identifier as they are.
fn counter_name(tunnel: &TunnelFilter, hook: Hook) -> String {
    format!("dropped_{}_{}", tunnel.interface(), hook.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_what_may_be_opened_over_both_families() {
        let inbound = ["10.1.0.0/16", "10.2.3.4/32", "2001:db8:1::/48"];
        let services = [("10.99.0.1", 3128), ("fd00:99::1", 443)];
        let filter = InwardFilter { tunnels: vec![tunnel("azure", &inbound, &services)] };
        assert_eq!(
            inward_filter_script("aws-use1-a", &filter),
            r#"add table inet skyway_aws_use1_a
delete table inet skyway_aws_use1_a
table inet skyway_aws_use1_a {
	counter dropped_azure_forward { }
	counter dropped_azure_input { }

	chain inward_forward {
		type filter hook forward priority filter; policy accept;
		iifname "azure" ct state established,related accept
		iifname "azure" ct state invalid counter name "dropped_azure_forward" drop
		iifname "azure" ip daddr { 10.1.0.0/16, 10.2.3.4/32 } accept
		iifname "azure" ip6 daddr { 2001:db8:1::/48 } accept
		iifname "azure" counter name "dropped_azure_forward" drop
	}

	chain inward_input {
		type filter hook input priority filter; policy accept;
		iifname "azure" ct state established,related accept
		iifname "azure" ct state invalid counter name "dropped_azure_input" drop
		iifname "azure" ip daddr { 10.1.0.0/16, 10.2.3.4/32 } accept
		iifname "azure" ip6 daddr { 2001:db8:1::/48 } accept
		iifname "azure" icmp type echo-request accept
		iifname "azure" icmpv6 type echo-request accept
		iifname "azure" ip daddr 10.99.0.1 tcp dport 3128 accept
		iifname "azure" ip6 daddr fd00:99::1 tcp dport 443 accept
		iifname "azure" counter name "dropped_azure_input" drop
	}
}
"#
        );
    }

    #[test]
    fn without_inbound_and_services_only_answers_and_echo_pass() {
        let filter = InwardFilter { tunnels: vec![tunnel("sky-0.1", &[], &[])] };
        assert_eq!(
            inward_filter_script("a", &filter),
            r#"add table inet skyway_a
delete table inet skyway_a
table inet skyway_a {
	counter dropped_sky-0.1_forward { }
	counter dropped_sky-0.1_input { }

	chain inward_forward {
		type filter hook forward priority filter; policy accept;
		iifname "sky-0.1" ct state established,related accept
		iifname "sky-0.1" ct state invalid counter name "dropped_sky-0.1_forward" drop
		iifname "sky-0.1" counter name "dropped_sky-0.1_forward" drop
	}

	chain inward_input {
		type filter hook input priority filter; policy accept;
		iifname "sky-0.1" ct state established,related accept
		iifname "sky-0.1" ct state invalid counter name "dropped_sky-0.1_input" drop
		iifname "sky-0.1" icmp type echo-request accept
		iifname "sky-0.1" icmpv6 type echo-request accept
		iifname "sky-0.1" counter name "dropped_sky-0.1_input" drop
	}
}
"#
        );
    }

    #[test]
    fn without_a_tunnel_the_table_filters_nothing() {
        let script = inward_filter_script("a", &InwardFilter::default());
        assert!(!script.contains("drop"));
        assert!(script.contains("hook input"));
    }

    #[test]
    fn a_gateways_name_cannot_leave_the_tables_name() {
        assert_eq!(table_name("aws use1;}\n\"é"), "skyway_aws_use1_____");
        assert_eq!(
            release_script("a; flush ruleset"),
            "add table inet skyway_a__flush_ruleset\ndelete table inet skyway_a__flush_ruleset\n"
        );
    }

    fn tunnel(interface: &str, inbound: &[&str], services: &[(&str, u16)]) -> TunnelFilter {
        let inbound: Vec<IpNet> = inbound.iter().map(|prefix| prefix.parse().expect("well formed")).collect();
        let services: Vec<Service> =
            services.iter().map(|&(address, port)| Service { address: address.parse().expect("well formed"), port }).collect();
        TunnelFilter::new(interface, &inbound, &services).expect("a plain name")
    }
}
