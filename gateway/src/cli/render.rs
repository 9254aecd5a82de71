//! `skyway render`: configuration for what stands beside the gateway, printed and never applied.

use std::fmt::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Subcommand;
use ipnet::IpNet;

use super::check::load;
use super::{ConfigArgs, INVALID};
use crate::config::{Listen, ListenerKind, RelaySettings};
use crate::relay::catalogue::HTTPS;
use crate::relay::{Protocol, Redirection};
use crate::terminal::{complain, say};

#[derive(Debug, Subcommand)]
pub(super) enum RenderCommand {
    /// nftables rules that lead sensors' TLS sessions to the transparent listeners of the file
    ///
    /// Load them with:   skyway render nft -c FILE | nft -f -      and see them with:   nft list ruleset
    Nft {
        #[command(flatten)]
        config: ConfigArgs,
    },
}

pub(super) fn run(command: &RenderCommand) -> anyhow::Result<ExitCode> {
    let RenderCommand::Nft { config } = command;
    let loaded = load(&config.config)?;
    let file = config.config.display().to_string();
    let Some(settings) = loaded.settings else {
        complain(&loaded.diagnostics.render(&file, &loaded.source, false));
        return Ok(ExitCode::from(INVALID));
    };
    match settings.relay.as_ref().map(nft) {
        Some(Some(text)) => {
            say(&text);
            Ok(ExitCode::SUCCESS)
        }
        Some(None) | None => {
            complain(&format!("{file} has no listener of kind transparent: there is nothing to lead to one"));
            Ok(ExitCode::from(INVALID))
        }
    }
}

/// Firewall mark and routing table of connections that TPROXY keeps; 5359 is the tunnels' own.
const TPROXY: u32 = 5360;

/// The rules for every transparent listener; None if there is none.
///
/// Verified by `nft -c` and by sessions in the tests.
fn nft(relay: &RelaySettings) -> Option<String> {
    let from: Vec<IpNet> = relay.sensors.iter().flat_map(|sensor| sensor.from.iter().copied()).collect();
    let ports: Vec<String> = {
        let mut ports: Vec<u16> = relay.catalogue.iter().flat_map(|(_, entry)| entry.ports.iter().copied()).collect();
        ports.sort_unstable();
        ports.dedup();
        if ports.is_empty() { vec![HTTPS.to_string()] } else { ports.iter().map(u16::to_string).collect() }
    };
    let ports = ports.join(", ");
    let (mut redirects, mut tproxies) = (Vec::new(), Vec::new());
    for at in &relay.listeners {
        let (Listen::Host(address), ListenerKind::Sessions { protocol: Protocol::Transparent { by, .. }, .. }) = (&at.listen, &at.kind)
        else {
            continue;
        };
        for (family, sources) in families(&from, *address) {
            let place = format!("        # {}\n        {family} saddr {{ {sources} }} tcp dport {{ {ports} }}", at.name);
            match by {
                Redirection::Redirect => redirects.push(format!("{place} redirect to :{}", address.port())),
                Redirection::Tproxy => {
                    tproxies.push(format!("{place} tproxy {family} to :{} meta mark set {TPROXY} accept", address.port()))
                }
            }
        }
    }
    if redirects.is_empty() && tproxies.is_empty() {
        return None;
    }
    let mut text = String::from("# Leads sensors' TLS sessions to skyway. What is in this table is replaced whole.\n");
    // Writing to a string cannot fail.
    let mut line = |text_line: &str| {
        let _written = writeln!(text, "{text_line}");
    };
    if !tproxies.is_empty() {
        line("# Beside it, once a boot, as TPROXY keeps the destination's address, which is not this host's:");
        for family in ["-4", "-6"] {
            line(&format!(
                "#   ip {family} rule add fwmark {TPROXY} lookup {TPROXY}; ip {family} route add local default dev lo table {TPROXY}"
            ));
        }
    }
    line("table inet skyway_transparent");
    line("delete table inet skyway_transparent");
    line("table inet skyway_transparent {");
    if !redirects.is_empty() {
        line("    chain redirect_sensors {");
        line("        type nat hook prerouting priority dstnat; policy accept;");
        redirects.iter().for_each(|rule| line(rule));
        line("    }");
    }
    if !tproxies.is_empty() {
        line("    chain keep_sensors {");
        line("        type filter hook prerouting priority mangle; policy accept;");
        tproxies.iter().for_each(|rule| line(rule));
        line("    }");
    }
    line("}");
    Some(text.trim_end().to_owned())
}

/// The sensors' prefixes by IP version, as far as a listener at `address` can serve it.
fn families(from: &[IpNet], address: SocketAddr) -> Vec<(&'static str, String)> {
    let both = address.is_ipv6() && address.ip().is_unspecified();
    let of = |is_v4: bool| {
        let prefixes: Vec<String> = from.iter().filter(|prefix| prefix.addr().is_ipv4() == is_v4).map(ToString::to_string).collect();
        prefixes.join(", ")
    };
    let wanted = [("ip", of(true), both || address.is_ipv4()), ("ip6", of(false), address.is_ipv6())];
    wanted
        .into_iter()
        .filter(|(_, prefixes, serves)| *serves && !prefixes.is_empty())
        .map(|(family, prefixes, _)| (family, prefixes))
        .collect()
}
