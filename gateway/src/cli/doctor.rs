//! `skyway doctor`: what is wrong and what to do. `skyway trace`: whether a sensor may reach a host, and does.

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::check::load;
use super::{AskArgs, INVALID, small_runtime};
use crate::config;
use crate::doctor::{self, Asked, Marks, Severity};
use crate::relay::catalogue::HTTPS;
use crate::relay::{HostName, NtpServer};
use crate::terminal::{complain, say};

/// Of NTP.
const NTP: u16 = 123;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Ask this time server instead of those of the file, or of time.windows.com; may be given again
    #[arg(long, value_name = "HOST[:PORT]", value_parser = time_server)]
    ntp: Vec<NtpServer>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    /// The sensor, by its name in the file
    sensor: String,
    /// The host, and its port if it is not 443
    #[arg(value_name = "HOST[:PORT]", value_parser = target)]
    host: (HostName, u16),
    #[command(flatten)]
    ask: AskArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn examine(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let loaded = load(&args.ask.config.config)?;
    let asked = Asked { file: args.ask.config.config.clone(), socket: args.ask.socket.clone(), time_servers: args.ntp.clone() };
    // Whoever reads a file or a pipe does not wait.
    let watched = std::io::stderr().is_terminal() && !args.json;
    let tell = |what: &str| {
        if watched {
            complain(&format!("{what} …"));
        }
    };
    let report = small_runtime()?.block_on(doctor::examine(loaded, &asked, &tell));
    if args.json {
        say(&serde_json::to_string_pretty(&report)?);
    } else {
        say(&doctor::text(&report, Marks::of_terminal(std::io::stdout().is_terminal())));
    }
    Ok(match report.verdict {
        Severity::Good | Severity::Note => ExitCode::SUCCESS,
        Severity::Warning | Severity::Problem => ExitCode::from(INVALID),
    })
}

pub(super) fn trace(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let socket: PathBuf = match &args.ask.socket {
        Some(socket) => socket.clone(),
        None => config::admin_socket(&args.ask.config.config)?,
    };
    let (host, port) = &args.host;
    let answer = small_runtime()?.block_on(doctor::ask_trace(&socket, &args.sensor, host, *port))?;
    if args.json {
        say(&serde_json::to_string_pretty(&answer)?);
    } else {
        say(&answer.text(Marks::of_terminal(std::io::stdout().is_terminal())));
    }
    Ok(if answer.is_reached() { ExitCode::SUCCESS } else { ExitCode::from(INVALID) })
}

/// `HOST` or `HOST:PORT`.
fn target(text: &str) -> Result<(HostName, u16), String> {
    let (host, port) = match text.rsplit_once(':') {
        // More colons are an IPv6 address, which is no host.
        Some((host, port)) if !host.contains(':') => (host, read_port(port)?),
        Some(_) | None => (text, HTTPS),
    };
    Ok((HostName::parse(host).map_err(|error| error.to_string())?, port))
}

/// `HOST`, `HOST:PORT`, an address, or an address and a port.
fn time_server(text: &str) -> Result<NtpServer, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(NtpServer::Address(address));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(NtpServer::Address(SocketAddr::new(address, NTP)));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, read_port(port)?),
        None => (text, NTP),
    };
    Ok(NtpServer::Name { host: HostName::parse(host).map_err(|error| error.to_string())?, port })
}

fn read_port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port != 0).ok_or_else(|| "not a port: expected 1 to 65535".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_host_and_perhaps_a_port() {
        let of = |text: &str| target(text).map(|(host, port)| (host.to_string(), port));
        assert_eq!(of("Hub.Example"), Ok(("hub.example".into(), 443)));
        assert_eq!(of("hub.example:8443"), Ok(("hub.example".into(), 8443)));
        for bad in ["", "hub.example:", "hub.example:0", "hub.example:65536", "10.0.0.1", "[::1]:443", "::1", "*.example"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_time_server_is_a_name_or_an_address() {
        let name = |host: &str, port| NtpServer::Name { host: HostName::parse(host).expect("a name"), port };
        let address = |text: &str| NtpServer::Address(text.parse().expect("an address"));
        assert_eq!(time_server("time.example"), Ok(name("time.example", 123)));
        assert_eq!(time_server("time.example:1123"), Ok(name("time.example", 1123)));
        assert_eq!(time_server("10.0.0.1"), Ok(address("10.0.0.1:123")));
        assert_eq!(time_server("10.0.0.1:1123"), Ok(address("10.0.0.1:1123")));
        assert_eq!(time_server("2001:db8::1"), Ok(address("[2001:db8::1]:123")));
        assert!(time_server("time.example:x").is_err() && time_server("a b").is_err());
    }
}
