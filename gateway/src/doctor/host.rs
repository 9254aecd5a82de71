//! What the gateway needs of its host: capabilities, the TUN device, the kernel's switches and limits.
//!
//! Reading and judging are apart: [`HostFacts::read`] looks at /proc, /sys and /dev and judges nothing, [`judge`] is pure.
//! Nothing is changed, and nothing of it needs root. Where the gateway runs and its process can be seen, it is the
//! gateway's own capabilities and limits that count; else those of whoever asks, who may be somebody else.
//!
//! Left out: memory limits of cgroup v1, and what a cloud does outside of the host (source/destination check, security groups).
//!
//! Sources: proc(5), capabilities(7); Documentation/networking/ip-sysctl (rp_filter: the larger of `all` and the interface's
//! counts); Linux 5.7 (SO_BINDTODEVICE without CAP_NET_RAW), 5.17 (SO_MARK with CAP_NET_RAW).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustix::process::{Resource, getrlimit};
use tunnel::Mode;

use super::finding::{Finding, code};
use crate::admin::Status;
use crate::config::{Listen, ListenerKind, Settings, Via};
use crate::relay::{Protocol, Redirection};
use crate::secret::effective_user;

/// Bits of a capability set.
const NET_BIND_SERVICE: u32 = 10;
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;

/// Since this kernel binding to a device takes no capability.
const BINDS_FREELY: (u32, u32) = (5, 7);
/// Since this kernel CAP_NET_RAW is enough for a mark.
const MARKS_WITH_RAW: (u32, u32) = (5, 17);
/// What may wait to be accepted before a storm of reconnecting sensors loses connections.
const BACKLOG: u32 = 1024;
/// Of an idle session: two kernel sockets, and what we keep of it. See docs/bench.md for the latter.
const SESSION_BYTES: u64 = 12 * 1024;
/// Less than this and nothing on the host is well.
const LEAST_MEMORY_BYTES: u64 = 64 * 1024 * 1024;
/// Beside two a session, as `privilege::raise_descriptor_limit` reckons.
const OTHER_DESCRIPTORS: u64 = 256;

const STRICT: u32 = 1;

/// What the host is like. What cannot be read is None.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostFacts {
    pub(super) process: Process,
    /// Major and minor version.
    pub(super) kernel: Option<(u32, u32)>,
    pub(super) tun_device: TunDevice,
    /// IPv4, IPv6.
    pub(super) forwarding: [Option<u32>; 2],
    /// IPv4, by interface, with `all`.
    pub(super) rp_filter: BTreeMap<String, u32>,
    pub(super) nft: Nft,
    pub(super) somaxconn: Option<u32>,
    /// Entries and the most there may be; None: the kernel keeps no such table yet.
    pub(super) conntrack: Option<(u64, u64)>,
    /// Bytes that may still be taken, by the host and by the process's cgroup.
    pub(super) memory: Option<u64>,
    /// Ports from this one on may be bound by anybody.
    pub(super) unprivileged_port: u16,
}

/// The process whose rights and limits are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    /// Effective.
    pub(super) capabilities: Option<u64>,
    /// The hard limit on open files.
    pub(super) descriptors: Option<u64>,
    pub(super) whose: Whose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The running gateway's.
    Gateway,
    /// Root's, who asks.
    Root,
    /// Another user's, who asks.
    User,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TunDevice {
    Usable,
    Missing,
    Refused(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Nft {
    Found,
    /// There, but in no folder of PATH.
    OffPath(PathBuf),
    Missing,
}

/// What the file asks of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) tun: Tun,
    /// The gateway runs, and has its TUN devices.
    pub(super) has_devices: bool,
    /// Routes of IPv4, of IPv6.
    pub(super) routes: [bool; 2],
    /// Of tunnels in TUN mode.
    pub(super) devices: Vec<String>,
    /// Of underlays.
    pub(super) interfaces: Vec<String>,
    /// Of several underlays answers may come by another than the routing table's.
    pub(super) underlays: usize,
    /// An endpoint lies inside the prefixes of its own tunnel.
    pub(super) endpoint_inside: bool,
    pub(super) marks: bool,
    pub(super) binds_devices: bool,
    /// A listener takes connections that are meant for other addresses, by TPROXY.
    pub(super) transparent: bool,
    /// Listeners on the host's own addresses.
    pub(super) ports: Vec<u16>,
    /// At once; 0: no relay.
    pub(super) sessions: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Tun {
    #[default]
    No,
    /// `mode: auto`, and nothing that takes the kernel.
    Wanted,
    Must,
}

impl Needs {
    pub(super) fn of(settings: &Settings, status: Option<&Status>) -> Self {
        let routed = |name: &str| settings.routes.fixed.iter().any(|route| route.tunnel == name);
        let kernel = |name: &str| routed(name) || !settings.routes.inbound.is_empty();
        let mut needs = Self::default();
        for tunnel in &settings.tunnels {
            let tun = match tunnel.mode {
                Mode::Userspace => continue,
                Mode::Tun => Tun::Must,
                Mode::Auto if kernel(&tunnel.name) => Tun::Must,
                Mode::Auto => Tun::Wanted,
            };
            if tun == Tun::Must || needs.tun == Tun::No {
                needs.tun = tun;
            }
            needs.devices.push(tunnel.name.clone());
            let inside = |host: &str| {
                let address = host.parse::<IpAddr>();
                address.is_ok_and(|address| tunnel.peers.iter().flat_map(|peer| peer.allowed_ips.iter()).any(|own| own.contains(&address)))
            };
            needs.endpoint_inside |= tunnel.peers.iter().flat_map(|peer| &peer.endpoints).any(|endpoint| inside(&endpoint.host));
        }
        let running =
            |name: &String| status.is_some_and(|status| status.tunnels.iter().any(|tunnel| tunnel.name == *name && tunnel.mode == "tun"));
        needs.has_devices = !needs.devices.is_empty() && needs.devices.iter().all(running);
        let routes = |ipv4: bool| settings.routes.fixed.iter().any(|route| matches!(route.prefix, IpNet::V4(_)) == ipv4);
        needs.routes = [routes(true), routes(false)];
        needs.underlays = settings.underlays.len();
        needs.interfaces = settings.underlays.values().filter_map(|underlay| underlay.interface.clone()).collect();
        needs.marks = settings.underlays.values().any(|underlay| underlay.mark.is_some());
        if let Some(relay) = &settings.relay {
            let bound = |via: &Via| match via {
                Via::Direct => false,
                Via::Tunnel(name) => needs.devices.contains(name),
                Via::Underlay(name) => settings.underlays.get(name).is_some_and(|underlay| underlay.interface.is_some()),
            };
            needs.binds_devices = relay.paths.iter().any(|path| bound(&path.via));
            needs.sessions = relay.limits.sessions as u64;
            needs.transparent = relay.listeners.iter().any(|listener| is_transparent(&listener.kind));
            let port = |listen: &Listen| match listen {
                Listen::Host(address) => Some(address.port()),
                Listen::Tunnel { tunnel, port, .. } => needs.devices.contains(tunnel).then_some(*port),
            };
            needs.ports = relay.listeners.iter().filter_map(|listener| port(&listener.listen)).collect();
        }
        needs
            .ports
            .extend([settings.gateway.metrics, settings.gateway.health].into_iter().flatten().map(|address: SocketAddr| address.port()));
        needs
    }
}

impl HostFacts {
    /// `gateway`: the process of the running gateway, if it is known.
    pub(super) fn read(gateway: Option<i32>) -> Self {
        let process = gateway.and_then(Process::of).unwrap_or_else(Process::own);
        let folder = match (process.whose, gateway) {
            (Whose::Gateway, Some(process)) => format!("/proc/{process}"),
            (Whose::Gateway | Whose::Root | Whose::User, _) => "/proc/self".to_owned(),
        };
        Self {
            process,
            kernel: read("/proc/sys/kernel/osrelease").and_then(|text| kernel_version(&text)),
            tun_device: TunDevice::look(),
            forwarding: [number("/proc/sys/net/ipv4/ip_forward"), number("/proc/sys/net/ipv6/conf/all/forwarding")],
            rp_filter: rp_filters(),
            nft: Nft::look(),
            somaxconn: number("/proc/sys/net/core/somaxconn"),
            conntrack: number("/proc/sys/net/netfilter/nf_conntrack_count").zip(number("/proc/sys/net/netfilter/nf_conntrack_max")),
            memory: memory(&folder),
            unprivileged_port: number("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or(1024),
        }
    }
}

impl Process {
    /// None: it cannot be seen from here.
    fn of(process: i32) -> Option<Self> {
        let status = read(format!("/proc/{process}/status"))?;
        let limits = read(format!("/proc/{process}/limits"));
        let descriptors = limits.and_then(|text| open_files(&text));
        Some(Self { capabilities: Some(capabilities(&status)?), descriptors, whose: Whose::Gateway })
    }

    fn own() -> Self {
        Self {
            capabilities: read("/proc/self/status").and_then(|status| capabilities(&status)),
            // No limit is as good as any.
            descriptors: Some(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)),
            whose: if effective_user() == 0 { Whose::Root } else { Whose::User },
        }
    }

    /// Whether it has the capability; None: that is not to be known.
    fn has(&self, bit: u32) -> Option<bool> {
        self.capabilities.map(|set| set & (1 << bit) != 0)
    }
}

impl TunDevice {
    fn look() -> Self {
        const DEVICE: &str = "/dev/net/tun";
        // To open it makes no device yet.
        match File::options().read(true).write(true).open(DEVICE) {
            Ok(_) => Self::Usable,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::Missing,
            Err(error) => Self::Refused(error.to_string()),
        }
    }
}

impl Nft {
    fn look() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if std::env::split_paths(&path).any(|folder| folder.join("nft").is_file()) {
            return Self::Found;
        }
        let elsewhere = ["/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft"].map(PathBuf::from);
        elsewhere.into_iter().find(|program| program.is_file()).map_or(Self::Missing, Self::OffPath)
    }
}

/// What is the matter with the host, everything that is good included.
pub(super) fn judge(facts: &HostFacts, needs: &Needs) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(judge_capabilities(facts, needs));
    if needs.tun != Tun::No {
        findings.push(judge_tun_device(facts, needs));
        findings.push(judge_nft(facts, needs));
    }
    findings.extend(judge_forwarding(facts, needs));
    findings.extend(judge_reverse_path(facts, needs));
    findings.extend(judge_descriptors(facts, needs));
    if !needs.ports.is_empty() && needs.sessions > 0 {
        findings.extend(facts.somaxconn.map(judge_backlog));
    }
    findings.extend(judge_conntrack(facts, needs));
    findings.extend(judge_memory(facts, needs));
    findings
}

fn judge_capabilities(facts: &HostFacts, needs: &Needs) -> Finding {
    const SUBJECT: &str = "capabilities";
    let older = |version| facts.kernel.is_some_and(|kernel| kernel < version);
    let mut wanted: Vec<(u32, &str, &str)> = Vec::new();
    if needs.tun == Tun::Must && !needs.has_devices {
        wanted.push((NET_ADMIN, "CAP_NET_ADMIN", "TUN devices, routes and the filter"));
    }
    if needs.marks {
        let raw = !older(MARKS_WITH_RAW) && facts.process.has(NET_RAW) == Some(true);
        if !raw {
            wanted.push((NET_ADMIN, "CAP_NET_ADMIN", "marks of underlays"));
        }
    }
    if needs.transparent {
        wanted.push((NET_ADMIN, "CAP_NET_ADMIN", "transparent listeners"));
    }
    if needs.binds_devices && older(BINDS_FREELY) {
        wanted.push((NET_RAW, "CAP_NET_RAW", "paths that are bound to an interface, with this kernel"));
    }
    if needs.ports.iter().any(|port| *port != 0 && *port < facts.unprivileged_port) {
        wanted.push((NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE", "listeners on low ports"));
    }
    if wanted.is_empty() && needs.tun == Tun::Wanted && !needs.has_devices && facts.process.has(NET_ADMIN) == Some(false) {
        let what = format!(
            "{} lacks CAP_NET_ADMIN: tunnels with mode: auto run in userspace mode, for the relay alone",
            facts.process.whose.name()
        );
        return Finding::note(code::CAPABILITIES, SUBJECT, what, "grant it if the host's own programs shall use the tunnels");
    }
    if wanted.is_empty() {
        return Finding::good(code::CAPABILITIES, SUBJECT, "all that the file asks for");
    }
    if facts.process.capabilities.is_none() {
        return Finding::note(code::CAPABILITIES, SUBJECT, "which ones there are cannot be told", "run skyway doctor as root");
    }
    let missing: Vec<String> =
        wanted.iter().filter(|(bit, ..)| facts.process.has(*bit) == Some(false)).map(|(_, name, why)| format!("{name} ({why})")).collect();
    if missing.is_empty() {
        return Finding::good(code::CAPABILITIES, SUBJECT, format!("{} has all that the file asks for", facts.process.whose.name()));
    }
    let what = format!("{} lacks {}", facts.process.whose.name(), missing.join(", "));
    let next = "run skyway as root or grant them (systemd: AmbientCapabilities=, containers: --cap-add)";
    match facts.process.whose {
        Whose::Gateway | Whose::Root => Finding::problem(code::CAPABILITIES, SUBJECT, what, next),
        // The gateway may be somebody else's to run.
        Whose::User => Finding::note(
            code::CAPABILITIES,
            SUBJECT,
            what,
            format!("if skyway runs as another user, run skyway doctor as that one; else {next}"),
        ),
    }
}

fn judge_tun_device(facts: &HostFacts, needs: &Needs) -> Finding {
    const SUBJECT: &str = "/dev/net/tun";
    if needs.has_devices {
        return Finding::good(code::TUN_DEVICE, SUBJECT, "the gateway has its devices");
    }
    let (what, next) = match &facts.tun_device {
        TunDevice::Usable => return Finding::good(code::TUN_DEVICE, SUBJECT, "there, and can be opened"),
        TunDevice::Missing => ("is not there".to_owned(), "modprobe tun; in a container --device /dev/net/tun"),
        TunDevice::Refused(why) => (format!("cannot be opened: {why}"), "run skyway as root, or give its user and container the device"),
    };
    match (needs.tun, facts.process.whose, &facts.tun_device) {
        (Tun::Must, Whose::Gateway | Whose::Root, _) | (Tun::Must, Whose::User, TunDevice::Missing) => {
            Finding::problem(code::TUN_DEVICE, SUBJECT, what, format!("{next}; or mode: userspace, if the relay alone uses the tunnel"))
        }
        (Tun::Must, Whose::User, TunDevice::Usable | TunDevice::Refused(_)) => Finding::note(code::TUN_DEVICE, SUBJECT, what, next),
        (Tun::Wanted | Tun::No, ..) => {
            Finding::note(code::TUN_DEVICE, SUBJECT, format!("{what}: tunnels with mode: auto run in userspace mode"), next)
        }
    }
}

fn judge_nft(facts: &HostFacts, needs: &Needs) -> Finding {
    const SUBJECT: &str = "nft";
    match &facts.nft {
        Nft::Found => Finding::good(code::NFT, SUBJECT, "installed"),
        Nft::OffPath(path) if needs.has_devices => Finding::good(code::NFT, SUBJECT, format!("installed, at {}", path.display())),
        Nft::OffPath(path) => Finding::note(
            code::NFT,
            SUBJECT,
            format!("installed at {}, which is not in this PATH", path.display()),
            "make sure that its folder is in the PATH that skyway runs with",
        ),
        Nft::Missing => {
            let what = "not installed, and without it nothing would filter what a tunnel opens";
            let next = "install the package nftables";
            if needs.tun == Tun::Must {
                Finding::problem(code::NFT, SUBJECT, what, next)
            } else {
                Finding::warning(code::NFT, SUBJECT, what, next)
            }
        }
    }
}

fn judge_forwarding(facts: &HostFacts, needs: &Needs) -> Vec<Finding> {
    let mut findings = Vec::new();
    for ((used, value), name) in needs.routes.into_iter().zip(facts.forwarding).zip(["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"])
    {
        match value {
            Some(0) if used => findings.push(Finding::warning(
                code::FORWARDING,
                name,
                "this host does not forward packets: other hosts of the site cannot use the routes",
                format!("sysctl -w {name}=1, and put it into /etc/sysctl.d; a cloud has to allow it too (AWS: source/destination check off, Azure: IP forwarding on, GCP: canIpForward)"),
            )),
            Some(_) if used => findings.push(Finding::good(code::FORWARDING, name, "this host forwards packets")),
            Some(_) | None => {}
        }
    }
    findings
}

/// Strict filtering drops a packet whose way back is by another interface than it came by.
fn judge_reverse_path(facts: &HostFacts, needs: &Needs) -> Vec<Finding> {
    if needs.tun == Tun::No {
        return Vec::new();
    }
    let all = facts.rp_filter.get("all").copied().unwrap_or_default();
    let is_strict = |interface: &&String| facts.rp_filter.get(*interface).is_some_and(|own| all.max(*own) == STRICT);
    let outside = |interface: &&String| !needs.devices.contains(interface);
    // Where no underlay names an interface, outer datagrams come in by one of the others.
    let others: Vec<&String> = if needs.interfaces.is_empty() {
        facts.rp_filter.keys().filter(|name| !["all", "default", "lo"].contains(&name.as_str())).filter(outside).collect()
    } else {
        needs.interfaces.iter().collect()
    };
    let outer: Vec<&str> = others.into_iter().filter(is_strict).map(String::as_str).collect();
    let inner: Vec<&str> = needs.devices.iter().filter(is_strict).map(String::as_str).collect();
    let subject = "reverse-path filter";
    let next = |interfaces: &[&str]| {
        let one = |interface: &&str| format!("sysctl -w net/ipv4/conf/{interface}/rp_filter=2");
        format!("{} (loose); the same in /etc/sysctl.d", interfaces.iter().map(one).collect::<Vec<_>>().join("; "))
    };
    let mut findings = Vec::new();
    if needs.endpoint_inside && !outer.is_empty() {
        let what = format!(
            "an endpoint lies inside the prefixes of its tunnel, and strict filtering on {} drops its answers: their way back is the tunnel",
            outer.join(", ")
        );
        findings.push(Finding::problem(code::REVERSE_PATH, subject, what, next(&outer)));
    } else if needs.underlays > 1 && !outer.is_empty() {
        let what = format!("strict on {}: what comes by another underlay than the routing table's is dropped", outer.join(", "));
        findings.push(Finding::warning(code::REVERSE_PATH, subject, what, next(&outer)));
    }
    if !inner.is_empty() {
        let what =
            format!("strict on {}: packets out of the tunnel from prefixes that no route leads into it are dropped", inner.join(", "));
        findings.push(Finding::note(code::REVERSE_PATH, subject, what, next(&inner)));
    }
    if findings.is_empty() {
        findings.push(Finding::good(code::REVERSE_PATH, subject, "drops nothing of what is configured"));
    }
    findings
}

fn judge_descriptors(facts: &HostFacts, needs: &Needs) -> Option<Finding> {
    let limit = facts.process.descriptors.filter(|_| needs.sessions > 0)?;
    let wanted = needs.sessions.saturating_mul(2).saturating_add(OTHER_DESCRIPTORS);
    let subject = "open files";
    if limit >= wanted {
        return Some(Finding::good(code::DESCRIPTORS, subject, format!("room for {} sessions", needs.sessions)));
    }
    let what = format!(
        "{} may open {limit} files, and {} sessions take {wanted}: beyond {} nobody is let in any more",
        facts.process.whose.name(),
        needs.sessions,
        limit.saturating_sub(OTHER_DESCRIPTORS) / 2
    );
    let next = "raise the hard limit (systemd: LimitNOFILE=, containers: --ulimit nofile=), or lower relay.limits.sessions";
    Some(match facts.process.whose {
        Whose::Gateway => Finding::warning(code::DESCRIPTORS, subject, what, next),
        // A service has another limit than a shell.
        Whose::Root | Whose::User => Finding::note(code::DESCRIPTORS, subject, what, next),
    })
}

fn judge_backlog(somaxconn: u32) -> Finding {
    let subject = "net.core.somaxconn";
    if somaxconn >= BACKLOG {
        return Finding::good(code::BACKLOG, subject, format!("{somaxconn} connections may wait"));
    }
    let what = format!("{somaxconn} connections may wait to be accepted: when all sensors come back at once, some have to try again");
    Finding::note(code::BACKLOG, subject, what, "sysctl -w net.core.somaxconn=4096")
}

fn judge_conntrack(facts: &HostFacts, needs: &Needs) -> Option<Finding> {
    let (count, most) = facts.conntrack?;
    let subject = "connection table";
    let next = "sysctl -w net.netfilter.nf_conntrack_max=262144, and put it into /etc/sysctl.d";
    if count.saturating_mul(10) >= most.saturating_mul(9) {
        let what = format!("{count} of {most} entries are taken: when it is full, new connections are dropped");
        return Some(Finding::problem(code::CONNTRACK, subject, what, next));
    }
    // One from the sensor and one to the upstream.
    let wanted = needs.sessions.saturating_mul(2);
    if wanted > most {
        let what = format!("{most} entries, and {} sessions take {wanted}", needs.sessions);
        return Some(Finding::warning(code::CONNTRACK, subject, what, next));
    }
    Some(Finding::good(code::CONNTRACK, subject, format!("{count} of {most} entries are taken")))
}

fn judge_memory(facts: &HostFacts, needs: &Needs) -> Option<Finding> {
    let free = facts.memory?;
    let subject = "memory";
    let wanted = needs.sessions.saturating_mul(SESSION_BYTES);
    let mebibytes = |bytes: u64| bytes / (1024 * 1024);
    if free < LEAST_MEMORY_BYTES {
        let what = format!("only {} MiB are left", mebibytes(free));
        return Some(Finding::warning(code::MEMORY, subject, what, "give the host or the container more, or find out what takes it"));
    }
    if free < wanted {
        let what = format!("{} MiB are left, and {} sessions take about {} MiB", mebibytes(free), needs.sessions, mebibytes(wanted));
        return Some(Finding::note(code::MEMORY, subject, what, "give it more, or lower relay.limits.sessions"));
    }
    Some(Finding::good(code::MEMORY, subject, format!("{} MiB are left", mebibytes(free))))
}

impl Whose {
    const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "the running gateway",
            Self::Root => "root, here,",
            Self::User => "this user",
        }
    }
}

fn is_transparent(kind: &ListenerKind) -> bool {
    matches!(kind, ListenerKind::Sessions { protocol: Protocol::Transparent { by: Redirection::Tproxy, .. }, .. })
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn number<T: std::str::FromStr>(path: impl AsRef<Path>) -> Option<T> {
    read(path)?.trim().parse().ok()
}

fn rp_filters() -> BTreeMap<String, u32> {
    let folders = fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten().flatten();
    folders.filter_map(|folder| Some((folder.file_name().into_string().ok()?, number(folder.path().join("rp_filter"))?))).collect()
}

/// What is left to the process in `folder` of /proc.
fn memory(folder: &str) -> Option<u64> {
    let host = read("/proc/meminfo").and_then(|text| available(&text));
    let group = read(format!("{folder}/cgroup")).and_then(|text| group_folder(&text)).and_then(|group| {
        let most: u64 = number(group.join("memory.max"))?;
        let taken: u64 = number(group.join("memory.current"))?;
        Some(most.saturating_sub(taken))
    });
    host.into_iter().chain(group).min()
}

/// `CapEff: 000001ffffffffff` of /proc/PID/status.
fn capabilities(status: &str) -> Option<u64> {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

/// `Max open files            1024                 1048576              files` of /proc/PID/limits; the second.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let hard = line.split_whitespace().nth(1)?;
    if hard == "unlimited" { Some(u64::MAX) } else { hard.parse().ok() }
}

/// `MemAvailable:   12345 kB` of /proc/meminfo, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// `0::/system.slice/skyway.service` of /proc/PID/cgroup, as a folder.
fn group_folder(cgroup: &str) -> Option<PathBuf> {
    let group = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new("/sys/fs/cgroup").join(group))
}

/// `6.1.0-18-cloud-amd64`
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    /// A host on which everything is well.
    fn facts() -> HostFacts {
        HostFacts {
            process: Process { capabilities: Some(u64::MAX), descriptors: Some(1_048_576), whose: Whose::Gateway },
            kernel: Some((6, 1)),
            tun_device: TunDevice::Usable,
            forwarding: [Some(1), Some(1)],
            rp_filter: [("all", 0), ("default", 0), ("lo", 0), ("ens5", 0), ("ens6", 0), ("azure", 0)]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            nft: Nft::Found,
            somaxconn: Some(4096),
            conntrack: Some((100, 262_144)),
            memory: Some(4 << 30),
            unprivileged_port: 1024,
        }
    }

    /// A gateway with all that there is.
    fn needs() -> Needs {
        Needs {
            tun: Tun::Must,
            has_devices: false,
            routes: [true, true],
            devices: vec!["azure".into()],
            interfaces: vec!["ens5".into(), "ens6".into()],
            underlays: 2,
            endpoint_inside: true,
            marks: true,
            binds_devices: true,
            transparent: true,
            ports: vec![443, 3128],
            sessions: 10_000,
        }
    }

    fn worst(facts: &HostFacts, needs: &Needs, code: &str) -> (Severity, String) {
        let findings = judge(facts, needs);
        let found = findings.iter().filter(|finding| finding.code == code).max_by_key(|finding| finding.severity);
        found.map(|finding| (finding.severity, finding.what.clone())).unwrap_or_else(|| panic!("no {code} in {findings:?}"))
    }

    #[test]
    fn a_good_host_is_good_in_everything() {
        let findings = judge(&facts(), &needs());
        assert!(findings.iter().all(|finding| finding.severity == Severity::Good && finding.next.is_empty()), "{findings:?}");
        assert_eq!(findings.len(), 10, "{findings:?}");
    }

    #[test]
    fn what_nobody_asks_for_is_not_looked_at() {
        let bare = HostFacts { tun_device: TunDevice::Missing, nft: Nft::Missing, forwarding: [Some(0), Some(0)], ..facts() };
        let findings = judge(&bare, &Needs::default());
        assert!(findings.iter().all(|finding| finding.severity == Severity::Good), "{findings:?}");
    }

    #[test]
    fn names_the_capabilities_that_are_missing() {
        let without = |set, whose| HostFacts { process: Process { capabilities: Some(set), whose, ..facts().process }, ..facts() };
        let (severity, what) = worst(&without(0, Whose::Gateway), &needs(), code::CAPABILITIES);
        assert_eq!(severity, Severity::Problem);
        assert!(what.contains("CAP_NET_ADMIN") && what.contains("CAP_NET_BIND_SERVICE") && !what.contains("CAP_NET_RAW"), "{what}");
        assert_eq!(worst(&without(0, Whose::User), &needs(), code::CAPABILITIES).0, Severity::Note, "somebody else may run it");
        let old = HostFacts { kernel: Some((4, 19)), ..without(0, Whose::Root) };
        assert!(worst(&old, &needs(), code::CAPABILITIES).1.contains("CAP_NET_RAW"));
        let auto = Needs { tun: Tun::Wanted, marks: false, transparent: false, ports: vec![3128], ..needs() };
        let (severity, what) = worst(&without(0, Whose::Root), &auto, code::CAPABILITIES);
        assert!(severity == Severity::Note && what.contains("userspace"), "{what}");
        let marking = Needs { tun: Tun::No, transparent: false, ports: Vec::new(), ..needs() };
        assert_eq!(worst(&without(1 << NET_RAW, Whose::Root), &marking, code::CAPABILITIES).0, Severity::Good);
    }

    #[test]
    fn a_missing_device_is_a_problem_only_where_it_must_be_there() {
        let missing = HostFacts { tun_device: TunDevice::Missing, ..facts() };
        assert_eq!(worst(&missing, &needs(), code::TUN_DEVICE).0, Severity::Problem);
        assert_eq!(worst(&missing, &Needs { tun: Tun::Wanted, ..needs() }, code::TUN_DEVICE).0, Severity::Note);
        assert_eq!(worst(&missing, &Needs { has_devices: true, ..needs() }, code::TUN_DEVICE).0, Severity::Good);
        let user = Process { whose: Whose::User, ..facts().process };
        let refused = HostFacts { tun_device: TunDevice::Refused("no".into()), process: user, ..facts() };
        assert_eq!(worst(&refused, &needs(), code::TUN_DEVICE).0, Severity::Note);
    }

    #[test]
    fn strict_filtering_matters_where_answers_come_another_way() {
        let with = |name: &str, value| {
            let mut facts = facts();
            facts.rp_filter.insert(name.to_owned(), value);
            facts
        };
        let (severity, what) = worst(&with("ens6", 1), &needs(), code::REVERSE_PATH);
        assert!(severity == Severity::Problem && what.contains("ens6") && !what.contains("ens5"), "{what}");
        let apart = Needs { endpoint_inside: false, ..needs() };
        assert_eq!(worst(&with("all", 1), &apart, code::REVERSE_PATH).0, Severity::Warning);
        let single = Needs { endpoint_inside: false, underlays: 0, interfaces: Vec::new(), ..needs() };
        let (severity, what) = worst(&with("azure", 1), &single, code::REVERSE_PATH);
        assert!(severity == Severity::Note && what.contains("azure"), "{what}");
        assert_eq!(worst(&with("ens5", 1), &single, code::REVERSE_PATH).0, Severity::Good);
        let mut loose = with("ens6", 1);
        loose.rp_filter.insert("all".into(), 2);
        assert_eq!(worst(&loose, &needs(), code::REVERSE_PATH).0, Severity::Good, "the larger value counts");
    }

    #[test]
    fn limits_are_held_against_the_sessions() {
        let few = HostFacts { process: Process { descriptors: Some(4096), ..facts().process }, ..facts() };
        let (severity, what) = worst(&few, &needs(), code::DESCRIPTORS);
        assert!(severity == Severity::Warning && what.contains("beyond 1920"), "{what}");
        let full = HostFacts { conntrack: Some((9_500, 10_000)), ..facts() };
        assert_eq!(worst(&full, &needs(), code::CONNTRACK).0, Severity::Problem);
        let small = HostFacts { conntrack: Some((10, 10_000)), ..facts() };
        assert_eq!(worst(&small, &needs(), code::CONNTRACK).0, Severity::Warning);
        let short = HostFacts { somaxconn: Some(128), ..facts() };
        assert_eq!(worst(&short, &needs(), code::BACKLOG).0, Severity::Note);
        let tight = HostFacts { memory: Some(100 << 20), ..facts() };
        assert_eq!(worst(&tight, &needs(), code::MEMORY).0, Severity::Note);
        let out = HostFacts { memory: Some(10 << 20), ..facts() };
        assert_eq!(worst(&out, &needs(), code::MEMORY).0, Severity::Warning);
    }

    #[test]
    fn a_host_that_does_not_forward_is_told_by_family() {
        let still = HostFacts { forwarding: [Some(1), Some(0)], ..facts() };
        let findings = judge(&still, &needs());
        let told: Vec<&str> =
            findings.iter().filter(|finding| finding.severity == Severity::Warning).map(|finding| finding.subject.as_str()).collect();
        assert_eq!(told, ["net.ipv6.conf.all.forwarding"]);
    }

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(capabilities("Name:\tskyway\nCapPrm:\t0\nCapEff:\t0000000000001400\n"), Some(1 << 12 | 1 << 10));
        assert_eq!(capabilities("Name:\tskyway\n"), None);
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 1048576              files     \n";
        assert_eq!(open_files(limits), Some(1_048_576));
        assert_eq!(open_files("Max open files  unlimited  unlimited  files"), Some(u64::MAX));
        assert_eq!(available("MemTotal:  8000000 kB\nMemAvailable:     2048 kB\n"), Some(2_097_152));
        assert_eq!(
            group_folder("1:name=systemd:/x\n0::/system.slice/skyway.service\n"),
            Some("/sys/fs/cgroup/system.slice/skyway.service".into())
        );
        assert_eq!(kernel_version("6.1.0-18-cloud-amd64\n"), Some((6, 1)));
        assert_eq!(kernel_version("5.15.167.4-microsoft-standard-WSL2"), Some((5, 15)));
        assert_eq!(kernel_version("unknown"), None);
    }

    #[test]
    fn this_host_can_be_read() {
        let facts = HostFacts::read(None);
        assert!(facts.process.capabilities.is_some() && facts.kernel.is_some(), "{facts:?}");
        assert_ne!(facts.process.whose, Whose::Gateway);
        let own = i32::try_from(std::process::id()).expect("an id");
        assert_eq!(HostFacts::read(Some(own)).process.whose, Whose::Gateway);
    }
}
