//! Who is measured: pairs of gateways of one kind, skyway's and others', set up alike.
//!
//! All have an MTU of 1420, know each other's endpoint, carry the tunnel's own addresses and the network behind the other
//! side, and use no preshared key. skyway is configured by its YAML, the others by `wg` and `ip`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

use tempfile::TempDir;

use super::case::{Case, Setting};
use super::line::{FAR, Line, NEAR, PORT, Place};
use super::options::Options;
use super::usage::{cpu_time, peak_rss_bytes, process_in};
use crate::keys::Keys;
use crate::netns::Namespace;
use crate::process::{Process, Signal};
use crate::skyway::{Gateway, binary};
use crate::{seconds, wait_for};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Skyway1,
    Skyway2,
    Skyway4,
    WireguardGo,
    BoringtunOneThread,
    Boringtun,
    Gotatun,
}

/// A program that is there, and which it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    pub path: PathBuf,
    pub version: String,
}

/// The programs that are measured beside skyway, as far as this machine has them.
#[derive(Debug, Default)]
pub struct Tools {
    pub wireguard_go: Option<Tool>,
    pub boringtun: Option<Tool>,
    pub gotatun: Option<Tool>,
    /// Subjects that are left out, and why.
    pub missing: Vec<(Subject, String)>,
}

/// Of the package in bookworm-backports. `tests/bench/tunnel` holds its checksum and unpacks it.
pub const WIREGUARD_GO: &str = "0.0.20231211";
pub const BORINGTUN: &str = "0.7.1";
pub const GOTATUN: &str = "0.10.2";

/// Two gateways that run and have answered each other. Dropping them ends them.
#[derive(Debug)]
pub struct GatewayPair<'a> {
    sides: [Side<'a>; 2],
}

#[derive(Debug)]
enum Side<'a> {
    Skyway { gateway: Gateway, pid: u32 },
    Other(WgSubject<'a>),
}

/// A userspace WireGuard program that makes its own interface and takes its configuration from `wg`.
#[derive(Debug)]
pub struct WgSubject<'a> {
    process: Process,
    namespace: &'a Namespace,
    interface: String,
    pid: u32,
}

static NEXT: AtomicU32 = AtomicU32::new(1);

impl Subject {
    pub const ALL: [Self; 7] =
        [Self::Skyway1, Self::Skyway2, Self::Skyway4, Self::WireguardGo, Self::BoringtunOneThread, Self::Boringtun, Self::Gotatun];

    /// As the command line and the table have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Skyway1 => "skyway-1",
            Self::Skyway2 => "skyway-2",
            Self::Skyway4 => "skyway-4",
            Self::WireguardGo => "wireguard-go",
            Self::BoringtunOneThread => "boringtun-1t",
            Self::Boringtun => "boringtun",
            Self::Gotatun => "gotatun",
        }
    }

    pub const fn about(self) -> &'static str {
        match self {
            Self::Skyway1 => "skyway with one lane",
            Self::Skyway2 => "skyway with two lanes",
            Self::Skyway4 => "skyway with four lanes, for the case `limited` alone",
            Self::WireguardGo => "wireguard-go 0.0.20231211 of bookworm-backports",
            Self::BoringtunOneThread => "boringtun-cli 0.7.1 with `-t 1`",
            Self::Boringtun => "boringtun-cli 0.7.1 with its default of four threads",
            Self::Gotatun => "gotatun-cli 0.10.2",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|subject| subject.name() == name)
    }

    /// None: not skyway.
    pub const fn lanes(self) -> Option<u32> {
        match self {
            Self::Skyway1 => Some(1),
            Self::Skyway2 => Some(2),
            Self::Skyway4 => Some(4),
            Self::WireguardGo | Self::BoringtunOneThread | Self::Boringtun | Self::Gotatun => None,
        }
    }

    /// What stands before the interface's name where it is not skyway: in the foreground, with root's privileges kept.
    const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Skyway1 | Self::Skyway2 | Self::Skyway4 => &[],
            Self::WireguardGo => &["-f"],
            Self::BoringtunOneThread => &["-f", "--disable-drop-privileges", "-t", "1"],
            Self::Boringtun => &["-f", "--disable-drop-privileges"],
            Self::Gotatun => &["-f", "--disable-drop-privileges", "-v", "error"],
        }
    }

    /// What lanes bring under a limit is skyway's own question, of one lane against four.
    pub fn takes_part(self, case: Case) -> bool {
        let limited = case.setting() == Setting::Limited;
        match self {
            Self::Skyway1 => true,
            Self::Skyway4 => limited,
            Self::Skyway2 | Self::WireguardGo | Self::BoringtunOneThread | Self::Boringtun | Self::Gotatun => !limited,
        }
    }
}

impl Tools {
    /// Looks for the programs of the wanted subjects. Err: wireguard-go is not the one that the figures stand against.
    pub fn find(options: &Options) -> Result<Self, String> {
        let wants = |subject: Subject| options.subjects.contains(&subject);
        let mut tools = Self::default();
        if wants(Subject::WireguardGo) {
            tools.wireguard_go = Some(wireguard_go(options)?);
        }
        let of_cargo = options.tools.join("bin");
        let check = |names: &[&str], wanted: &str| of_crate(&of_cargo, names, wanted, options.any_version);
        let boringtuns: Vec<Subject> = [Subject::BoringtunOneThread, Subject::Boringtun].into_iter().filter(|it| wants(*it)).collect();
        if !boringtuns.is_empty() {
            match check(&["boringtun-cli"], BORINGTUN) {
                Ok(tool) => tools.boringtun = Some(tool),
                Err(why) => tools.missing.extend(boringtuns.into_iter().map(|subject| (subject, why.clone()))),
            }
        }
        if wants(Subject::Gotatun) {
            // The package is gotatun-cli, its program gotatun.
            match check(&["gotatun", "gotatun-cli"], GOTATUN) {
                Ok(tool) => tools.gotatun = Some(tool),
                Err(why) => tools.missing.push((Subject::Gotatun, why)),
            }
        }
        Ok(tools)
    }

    pub const fn has(&self, subject: Subject) -> bool {
        match subject {
            Subject::Skyway1 | Subject::Skyway2 | Subject::Skyway4 => true,
            Subject::WireguardGo => self.wireguard_go.is_some(),
            Subject::BoringtunOneThread | Subject::Boringtun => self.boringtun.is_some(),
            Subject::Gotatun => self.gotatun.is_some(),
        }
    }

    /// The program of a subject that is not skyway.
    const fn program(&self, subject: Subject) -> Option<&Tool> {
        match subject {
            Subject::Skyway1 | Subject::Skyway2 | Subject::Skyway4 => None,
            Subject::WireguardGo => self.wireguard_go.as_ref(),
            Subject::BoringtunOneThread | Subject::Boringtun => self.boringtun.as_ref(),
            Subject::Gotatun => self.gotatun.as_ref(),
        }
    }
}

/// The unpacked package; with `--any-version` else whatever is on the path.
///
/// What the program says of itself decides nothing: upstream's version.go still said 0.0.20230223 at that snapshot.
fn wireguard_go(options: &Options) -> Result<Tool, String> {
    let pinned = options.tools.join("wireguard-go/usr/bin/wireguard-go");
    if pinned.is_file() {
        let version = format!("wireguard-go {WIREGUARD_GO} (Debian package, checksum pinned)");
        return Ok(Tool { path: pinned, version });
    }
    if !options.any_version {
        return Err(format!(
            "{} is not there, and another wireguard-go than {WIREGUARD_GO} is not what the targets stand against; run tests/bench/tunnel, \
             which gets it, or take any with --any-version, or none with --only",
            pinned.display()
        ));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join("wireguard-go")).find(|file| file.is_file());
    let path = found.ok_or("no wireguard-go is installed")?;
    let version = format!("{} (not the pinned one)", first_line(&path, "--version")?);
    Ok(Tool { path, version })
}

/// The first of `names` in `folder`, if it is of the version `wanted`.
fn of_crate(folder: &Path, names: &[&str], wanted: &str, any_version: bool) -> Result<Tool, String> {
    let found = names.iter().map(|name| folder.join(name)).find(|file| file.is_file());
    let path = found.ok_or_else(|| format!("{} is not installed in {}", names.join(" or "), folder.display()))?;
    let version = first_line(&path, "--version")?;
    if !any_version && !version.split_whitespace().any(|word| word.trim_start_matches('v') == wanted) {
        return Err(format!("it calls itself {version:?}, and {wanted} is wanted"));
    }
    Ok(Tool { path, version })
}

/// The first line that a program answers `word` with.
pub(crate) fn first_line(program: &Path, word: &str) -> Result<String, String> {
    let output = Command::new(program).arg(word).output().map_err(|error| format!("{}: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty());
    line.ok_or_else(|| format!("{} {word} says nothing", program.display()))
}

impl<'a> GatewayPair<'a> {
    /// Starts both and waits for the first answer through them, in both families. `tools` must have the subject.
    #[track_caller]
    pub fn start(subject: Subject, tools: &Tools, line: &'a Line, ipv6_outside: bool) -> Self {
        let [near_keys, far_keys] = [Keys::generate(), Keys::generate()];
        let [near_outside, far_outside] = line.outside(ipv6_outside);
        let near =
            Setup { namespace: &line.near, keys: &near_keys, own: NEAR, other: FAR, other_key: &far_keys.public, endpoint: far_outside };
        let far =
            Setup { namespace: &line.far, keys: &far_keys, own: FAR, other: NEAR, other_key: &near_keys.public, endpoint: near_outside };
        // The far one first, so that the near one's first handshake is answered.
        let far = far.start(subject, tools);
        let near = near.start(subject, tools);
        if let Side::Skyway { gateway, .. } = &near {
            gateway.wait_until_up(seconds(20));
        }
        for address in FAR.inside {
            wait_for(&format!("{} answers at {address}", subject.name()), seconds(20), || line.near.ping(address, 1, "") == 1);
        }
        Self { sides: [near, far] }
    }

    pub fn pids(&self) -> [u32; 2] {
        self.sides.each_ref().map(Side::pid)
    }

    /// CPU time of both so far, user and system, in seconds.
    #[track_caller]
    pub fn cpu_seconds(&self) -> f64 {
        let times = self.pids().map(|pid| cpu_time(pid).expect("both gateways run"));
        times.iter().map(|time| time.user + time.system).sum()
    }

    /// The most memory that the larger of both had resident so far, in MiB.
    #[track_caller]
    pub fn peak_rss_mib(&self) -> f64 {
        let peaks = self.pids().map(|pid| peak_rss_bytes(pid).expect("both gateways run"));
        let largest = peaks.into_iter().max().unwrap_or(0);
        largest as f64 / f64::from(1 << 20)
    }
}

impl Side<'_> {
    const fn pid(&self) -> u32 {
        match self {
            Self::Skyway { pid, .. } => *pid,
            Self::Other(subject) => subject.pid,
        }
    }
}

/// What one gateway is told, whatever program it is.
struct Setup<'a, 'b> {
    namespace: &'a Namespace,
    keys: &'b Keys,
    own: Place,
    other: Place,
    other_key: &'b str,
    endpoint: &'b str,
}

impl<'a> Setup<'a, '_> {
    #[track_caller]
    fn start(&self, subject: Subject, tools: &Tools) -> Side<'a> {
        if let Some(lanes) = subject.lanes() {
            return self.start_skyway(lanes);
        }
        let Some(tool) = tools.program(subject) else { panic!("{} is not installed", subject.name()) };
        Side::Other(self.start_other(subject, &tool.path))
    }

    #[track_caller]
    fn start_skyway(&self, lanes: u32) -> Side<'a> {
        let mut gateway = Gateway::new(&format!("skyway-{lanes}")).inside(self.namespace);
        gateway.write_secret("key", &self.keys.private);
        gateway.write(&self.yaml(lanes));
        gateway.start();
        let pid = process_in(self.namespace, &binary());
        Side::Skyway { gateway, pid }
    }

    /// What the other side opens may reach this gateway and the network behind it: it carries tests both ways.
    fn yaml(&self, lanes: u32) -> String {
        let Place { inside, inside_with_length, lan, host: _ } = self.own;
        format!(
            r#"version: 1
gateway: {{ name: bench, cloud: other, admin: FOLDER/admin.sock, metrics: off }}
tunnels:
  bench:
    mode: tun
    private_key: {{ file: key }}
    listen: {PORT}
    lanes: {lanes}
    addresses: [{own_addresses}]
    mtu: 1420
    peers:
      other:
        public_key: "{key}"
        endpoints: ["{endpoint}"]
        allowed_ips: [{allowed_ips}]
        keepalive: 25s
        cloud: other
        probe: off
routes:
  static: [{routes}]
  inbound: [{inbound}]
"#,
            own_addresses = quoted(&inside_with_length),
            key = self.other_key,
            endpoint = self.endpoint,
            allowed_ips = quoted(&self.allowed_ips()),
            routes = self.other.lan.map(|prefix| format!("{{ prefix: \"{prefix}\", via: {{ tunnel: bench }} }}")).join(", "),
            inbound = quoted(&[&inside[..], &lan[..]].concat()),
        )
    }

    #[track_caller]
    fn start_other(&self, subject: Subject, program: &Path) -> WgSubject<'a> {
        let started = WgSubject::start(self.namespace, subject.name(), program, subject.arguments());
        let folder = tempfile::tempdir().expect("a folder for the key");
        let key = key_file(&folder, &self.keys.private);
        started.set(&["private-key", &key, "listen-port", &PORT.to_string()]);
        let allowed_ips = self.allowed_ips().join(",");
        let peer = ["peer", self.other_key, "endpoint", self.endpoint, "persistent-keepalive", "25", "allowed-ips", &allowed_ips];
        started.set(&peer);
        started.bring_up(&self.own.inside_with_length, &self.other.lan);
        started
    }

    /// What the other side carries.
    fn allowed_ips(&self) -> Vec<&'static str> {
        [&self.other.inside[..], &self.other.lan[..]].concat()
    }
}

fn quoted(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    words.join(", ")
}

fn key_file(folder: &TempDir, key: &str) -> String {
    let path = folder.path().join("private");
    fs::write(&path, format!("{key}\n")).expect("a key file");
    path.to_str().expect("a plain path").to_owned()
}

impl<'a> WgSubject<'a> {
    /// Starts `program` with `arguments` and the name of a new interface. It has no key and no peer yet.
    #[track_caller]
    pub fn start(namespace: &'a Namespace, name: &str, program: &Path, arguments: &[&str]) -> Self {
        // Its socket lies in a folder that all namespaces share, so the name must be new on the whole host.
        let interface = format!("wg{}x{}", process::id() % 100_000, NEXT.fetch_add(1, Ordering::Relaxed));
        let program_word = program.to_str().expect("a plain path");
        let words = [&[program_word][..], arguments, &[interface.as_str()][..]].concat();
        let process = Process::start(name, &mut namespace.command(&words));
        // From here on dropping it clears up, whatever goes wrong below.
        let mut started = Self { process, namespace, interface, pid: 0 };
        let Self { process, interface, .. } = &mut started;
        wait_for(&format!("{name} listens for wg"), seconds(10), || {
            assert!(process.is_running(), "{name} ended at its start");
            socket(interface).exists()
        });
        started.pid = process_in(namespace, program);
        started
    }

    /// `wg set INTERFACE …`
    #[track_caller]
    pub fn set(&self, words: &[&str]) {
        self.namespace.exec(&[&["wg", "set", self.interface.as_str()][..], words].concat()).success();
    }

    /// Gives the interface its addresses and routes `prefixes` into it.
    #[track_caller]
    fn bring_up(&self, addresses: &[&str], prefixes: &[&str]) {
        let Self { namespace, interface, .. } = self;
        for address in addresses {
            namespace.ip(&format!("address add {address} dev {interface}"));
        }
        namespace.ip(&format!("link set {interface} mtu 1420 up"));
        for prefix in prefixes {
            let family = if prefix.contains(':') { "-6 " } else { "" };
            namespace.ip(&format!("{family}route add {prefix} dev {interface}"));
        }
    }
}

impl Drop for WgSubject<'_> {
    fn drop(&mut self) {
        // In order, because some leave their sockets behind otherwise; who does not obey is killed with the process.
        if self.process.is_running() {
            self.process.signal(Signal::Terminate);
            super::load::until(seconds(3), || !self.process.is_running());
        }
        let _gone_already = fs::remove_file(socket(&self.interface));
    }
}

fn socket(interface: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{interface}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_has_a_name_of_its_own() {
        for (index, subject) in Subject::ALL.into_iter().enumerate() {
            assert_eq!(Subject::ALL.iter().position(|other| other.name() == subject.name()), Some(index), "{subject:?}");
            assert_eq!(Subject::from_name(subject.name()), Some(subject));
        }
    }

    #[test]
    fn four_lanes_are_measured_under_the_limit_alone_and_others_never() {
        let under_the_limit: Vec<Subject> = Subject::ALL.into_iter().filter(|subject| subject.takes_part(Case::Limited)).collect();
        assert_eq!(under_the_limit, [Subject::Skyway1, Subject::Skyway4]);
        assert!(!Subject::Skyway4.takes_part(Case::Tcp1) && Subject::Skyway2.takes_part(Case::Tcp1));
    }
}
