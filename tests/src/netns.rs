//! Network namespaces by `ip netns`: each with its own links, routes, firewall, names, and nothing of the host's.

use std::fs;
use std::path::PathBuf;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::process::{Finished, Process, finish};

/// A namespace `sky-PID-NUMBER`, gone when it is dropped.
///
/// In it `lo` is up, duplicate address detection is off, and rp_filter is 2, as systemd sets it on Debian.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// One end of a link.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    pub namespace: &'a Namespace,
    pub interface: &'a str,
    /// With the lengths of their prefixes, IPv4 or IPv6.
    pub addresses: &'a [&'a str],
}

static NEXT: AtomicU32 = AtomicU32::new(1);

/// For tools that answer at once or not at all.
const TOOL: Duration = Duration::from_secs(20);

impl Namespace {
    #[track_caller]
    pub fn create() -> Self {
        let name = format!("sky-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let namespace = Self { name };
        namespace.set_hosts(&[]);
        // Nobody listens there: a name that is not in the hosts file is refused at once, whatever the host's own file says.
        fs::write(namespace.folder().join("resolv.conf"), "nameserver 127.0.0.1\n").expect("a resolv.conf");
        namespace.ip("link set lo up");
        namespace.sysctl(&[
            "net.ipv6.conf.all.accept_dad=0",
            "net.ipv6.conf.default.accept_dad=0",
            "net.ipv4.conf.all.rp_filter=2",
            "net.ipv4.conf.default.rp_filter=2",
        ]);
        namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside; it becomes the program itself, so that its pid is the program's.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(words);
        command
    }

    /// Runs a program inside to its end.
    #[track_caller]
    pub fn exec(&self, words: &[&str]) -> Finished {
        finish(&mut self.command(words), TOOL)
    }

    /// Starts a program inside that runs on.
    #[track_caller]
    pub fn start(&self, words: &[&str]) -> Process {
        Process::start(&words.join(" "), &mut self.command(words))
    }

    /// Runs `ip` on this namespace; it must succeed. `words` are split at spaces.
    #[track_caller]
    pub fn ip(&self, words: &str) -> String {
        self.try_ip(words).success()
    }

    #[track_caller]
    pub fn try_ip(&self, words: &str) -> Finished {
        finish(Command::new("ip").args(["-n", &self.name]).args(words.split_whitespace()), TOOL)
    }

    /// Packets may pass through.
    #[track_caller]
    pub fn forward(&self) {
        self.sysctl(&["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
    }

    #[track_caller]
    pub fn sysctl(&self, settings: &[&str]) {
        self.exec(&[&["sysctl", "-q", "-w"][..], settings].concat()).success();
    }

    /// What /etc/hosts says in programs that start inside from now on.
    #[track_caller]
    pub fn set_hosts(&self, entries: &[(&str, &str)]) {
        let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for (address, name) in entries {
            hosts.push_str(&format!("{address} {name}\n"));
        }
        fs::create_dir_all(self.folder()).expect("a folder in /etc/netns");
        fs::write(self.folder().join("hosts"), hosts).expect("a hosts file");
    }

    /// `ip netns exec` binds what lies there over /etc.
    fn folder(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }

    /// How many of `count` echo requests were answered. `options`: those of ping, split at spaces.
    #[track_caller]
    pub fn ping(&self, to: &str, count: u32, options: &str) -> u32 {
        let count = count.to_string();
        let mut words = vec!["ping", "-q", "-n", "-i", "0.1", "-W", "1", "-c", &count];
        words.extend(options.split_whitespace());
        words.push(to);
        received(&self.exec(&words).stdout)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _not_there = Command::new("ip").args(["netns", "del", &self.name]).output();
        let _not_there = fs::remove_dir_all(self.folder());
    }
}

/// Joins two namespaces by a veth pair and gives its ends their addresses.
#[track_caller]
pub fn join(one: End<'_>, other: End<'_>) {
    let End { namespace: Namespace { name: here }, interface, .. } = one;
    let End { namespace: Namespace { name: there }, interface: peer, .. } = other;
    ip(&["link", "add", interface, "netns", here, "type", "veth", "peer", "name", peer, "netns", there]);
    for end in [one, other] {
        for address in end.addresses {
            // Off for IPv6 alone, and wrong for IPv4.
            let nodad = if address.contains(':') { "nodad" } else { "" };
            end.namespace.ip(&format!("address add {address} dev {} {nodad}", end.interface));
        }
        end.namespace.ip(&format!("link set {} up", end.interface));
    }
}

/// The answers that `ping` counted in its summary; none if there is no summary.
pub fn received(summary: &str) -> u32 {
    let line = summary.lines().find(|line| line.contains("packets transmitted"));
    let count = line.and_then(|line| line.split(", ").find_map(|part| part.strip_suffix(" received")));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[track_caller]
fn ip(words: &[&str]) {
    finish(Command::new("ip").args(words), TOOL).success();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_summary_of_ping() {
        assert_eq!(received("3 packets transmitted, 2 received, 33% packet loss, time 28ms\n"), 2);
        assert_eq!(received("3 packets transmitted, 0 received, +3 errors, 100% packet loss, time 28ms\n"), 0);
        assert_eq!(received("ping: connect: No route to host\n"), 0);
    }
}
