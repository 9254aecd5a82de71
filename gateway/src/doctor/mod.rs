//! The doctor: looks at everything that a gateway depends on, and says what is wrong, why, and what to do.
//!
//! ```text
//!   the file ──► Settings ─┬─► host      capabilities, device, forwarding, rp_filter, limits        (host)
//!                          ├─► clock     against a time server, and against itself                  (clock)
//!   the admin socket       ├─► file      mistakes, keys, certificates                               (file)
//!     └──► Status ─────────┼─► gateway   routes that wait, sensors that fail                        (here)
//!                          ├─► names     each name server, each name                                (names)
//!                          ├─► tunnels   why there is no session, what the path swallows            (tunnels, reach)
//!                          └─► relay     each host by each path, up to its certificate              (paths, trace)
//!                                └────► findings, each with a code that does not change             (finding, print)
//! ```
//! Everything that waits for somebody is done at once, each with its own patience, and all of it ends with [`BUDGET`]: what
//! is not finished by then is a finding too. It changes nothing, sends nothing inside a session, and needs no root; what
//! root alone could tell is said to be so. It works with the gateway running, whose counters know most, and without.
//!
//! Judging is pure wherever it can be: facts in, findings out.

mod clock;
mod file;
mod finding;
mod host;
mod names;
mod paths;
mod print;
mod reach;
mod trace;
mod tunnels;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hyper::Method;
use rustls::pki_types::UnixTime;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tunnel::{Mode, PeerSettings, TunnelSettings};

use crate::admin::client::{self, ClientError};
use crate::admin::{Status, TunnelStatus};
use crate::config::{self, ListenerKind, Loaded, Settings, UnderlaySettings};
use crate::relay::{BoxFuture, NtpServer, Resolver};

use finding::code;
pub use finding::{CODES, Finding, Report, Severity};
use host::{HostFacts, Needs};
use names::ResolvConf;
pub use print::{Marks, text};
use reach::{Reach, reach};
pub use trace::{TraceAnswer, TraceError, TraceStep, ask as ask_trace};
use tunnels::Reaches;

/// For everything together.
const BUDGET: Duration = Duration::from_secs(14);
/// For the gateway to tell its status; it does so at once, unless something holds it.
const STATUS: Duration = Duration::from_secs(3);
/// For the name of an endpoint.
const NAME: Duration = Duration::from_secs(3);
/// Checks under way: enough to be quick, few enough not to be a storm.
const AT_ONCE: usize = 48;

/// What is to be examined.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The file, which has been read.
    pub file: PathBuf,
    /// The admin socket, if not the one that the file names.
    pub socket: Option<PathBuf>,
    /// Time servers, if not those of the file.
    pub time_servers: Vec<NtpServer>,
}

/// One thing to look at.
struct Check {
    subject: String,
    run: BoxFuture<'static, Vec<Finding>>,
}

impl Check {
    fn new(subject: &str, run: impl Future<Output = Vec<Finding>> + Send + 'static) -> Self {
        Self { subject: subject.to_owned(), run: Box::pin(run) }
    }

    /// What is known without waiting.
    fn done(subject: &str, findings: Vec<Finding>) -> Self {
        Self::new(subject, std::future::ready(findings))
    }
}

/// What the admin socket gave.
struct Gateway {
    status: Option<Status>,
    /// Its process, if it can be seen from here.
    process: Option<i32>,
    finding: Finding,
}

/// Examines everything. `tell` hears what is being done.
pub async fn examine(loaded: Loaded, asked: &Asked, tell: &dyn Fn(&str)) -> Report {
    let begun = Instant::now();
    tell("asking the gateway");
    let settings = loaded.settings.clone().map(Arc::new);
    let named = settings.as_ref().map(|settings| settings.gateway.admin.clone());
    let socket = asked.socket.clone().or(named).or_else(|| config::admin_socket(&asked.file).ok());
    let gateway = Gateway::ask(socket.as_deref()).await;
    let checks = checks(&loaded, settings.as_ref(), asked, socket, gateway);
    tell(&format!("{} checks at once, for {} seconds at most", checks.len(), BUDGET.as_secs()));
    let findings = carry_out(checks, begun + BUDGET).await;
    let name = settings.as_ref().map(|settings| settings.gateway.name.clone());
    Report::new(name, findings, begun.elapsed())
}

/// All that there is to look at, in the order in which it is told.
fn checks(loaded: &Loaded, settings: Option<&Arc<Settings>>, asked: &Asked, socket: Option<PathBuf>, gateway: Gateway) -> Vec<Check> {
    let Gateway { status, process, finding } = gateway;
    let file = asked.file.display().to_string();
    let needs = settings.map(|settings| Needs::of(settings, status.as_ref())).unwrap_or_default();
    let mut checks = vec![Check::done("host", host::judge(&HostFacts::read(process), &needs)), clock(settings, asked)];
    checks.push(Check::done("clock", clock::went_back(written(&asked.file), status.as_ref(), SystemTime::now())));
    checks.push(Check::done("file", file::judge(&file, &loaded.diagnostics)));
    if let Some(settings) = settings {
        checks.push(Check::done("certificates", file::judge_certificates(settings, UnixTime::now())));
        for tunnel in &settings.tunnels {
            let running = status.iter().flat_map(|status| &status.tunnels).find(|running| running.name == tunnel.name);
            if let Some(running) = running {
                checks.push(Check::done(&tunnel.name, file::judge_keys(running, tunnel)));
            }
        }
    }
    checks.push(Check::done("gateway", vec![finding]));
    checks.push(Check::done("gateway", status.as_ref().map(judge_gateway).unwrap_or_default()));
    if let Some(settings) = settings {
        checks.extend(name_checks(settings));
    }
    match (&status, settings) {
        (Some(status), _) => checks.extend(status.tunnels.iter().map(|tunnel| running_tunnel(tunnel.clone(), settings.cloned()))),
        (None, Some(settings)) => checks.extend(settings.tunnels.iter().flat_map(|tunnel| resting_tunnel(settings, tunnel))),
        (None, None) => {}
    }
    if let Some(settings) = settings {
        let asked = socket.zip(paths::anybody(settings)).map(|(socket, sensor)| paths::Asked { socket, sensor });
        checks.extend(paths::checks(settings, status.as_ref(), asked.as_ref()));
    }
    checks
}

/// All checks at once, as many as may be; what is not done by `deadline` is told as such.
async fn carry_out(checks: Vec<Check>, deadline: Instant) -> Vec<Finding> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut results: Vec<(String, Option<Vec<Finding>>)> = Vec::with_capacity(checks.len());
    let mut running = JoinSet::new();
    for (at, check) in checks.into_iter().enumerate() {
        results.push((check.subject, None));
        let (places, run) = (Arc::clone(&places), check.run);
        running.spawn(async move {
            let _place = places.acquire_owned().await;
            (at, run.await)
        });
    }
    while let Ok(Some(joined)) = tokio::time::timeout_at(deadline.into(), running.join_next()).await {
        if let Ok((at, findings)) = joined
            && let Some((_, result)) = results.get_mut(at)
        {
            *result = Some(findings);
        }
    }
    let findings = results.into_iter().map(|(subject, findings)| {
        findings.unwrap_or_else(|| {
            let what = "not finished in time: something that it waits for does not answer";
            vec![Finding::note(code::NOT_FINISHED, subject, what, "see what else is wrong, then run skyway doctor again")]
        })
    });
    findings.flatten().collect()
}

impl Gateway {
    async fn ask(socket: Option<&Path>) -> Self {
        let Some(socket) = socket else {
            let what = "the file does not say where its admin socket is, so whether it runs cannot be told";
            return Self::absent(Finding::note(code::GATEWAY, "gateway", what, "correct the file, or name the socket with --socket"));
        };
        let subject = socket.display().to_string();
        let answer = match tokio::time::timeout(STATUS, client::ask(socket, Method::GET, "/v1/status")).await {
            Ok(Ok((_, body))) => serde_json::from_slice::<Status>(&body).map_err(|error| error.to_string()),
            Ok(Err(ClientError::NotRunning { .. })) => {
                let what = "no gateway runs there: only what the file and this host tell can be examined";
                return Self::absent(Finding::note(
                    code::GATEWAY,
                    subject,
                    what,
                    "start it (skyway run -c FILE) to have the tunnels examined too",
                ));
            }
            Ok(Err(error @ ClientError::NotPermitted { .. })) => {
                return Self::absent(Finding::warning(
                    code::GATEWAY,
                    subject,
                    error.to_string(),
                    "run skyway doctor as the user that the gateway runs as",
                ));
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer in {} s", STATUS.as_secs())),
        };
        match answer {
            Ok(status) => {
                let finding = judge_version(&status, subject);
                Self { process: process_behind(socket).await, status: Some(status), finding }
            }
            Err(why) => Self::absent(Finding::problem(
                code::GATEWAY,
                subject,
                format!("the gateway cannot be asked: {why}"),
                "the gateway's log says what holds it",
            )),
        }
    }

    fn absent(finding: Finding) -> Self {
        Self { status: None, process: None, finding }
    }
}

fn judge_version(status: &Status, subject: String) -> Finding {
    const OURS: &str = env!("CARGO_PKG_VERSION");
    if status.version == OURS {
        return Finding::good(code::GATEWAY, subject, format!("runs, generation {} of its configuration", status.generation));
    }
    let what = format!("the gateway that runs is of version {}, and this is {OURS}", status.version);
    Finding::note(code::GATEWAY, subject, what, "restart it when it suits, if that was an upgrade")
}

/// What the gateway says of itself, tunnels and paths apart.
fn judge_gateway(status: &Status) -> Vec<Finding> {
    let mut findings = Vec::new();
    for route in status.routes.iter().filter(|route| route.state == "waiting") {
        findings.push(Finding::problem(
            code::ROUTE_WAITS,
            format!("route {}", route.prefix),
            format!("waits for {}: its device is down, and the kill switch answers", route.next_hop),
            "ip link set DEVICE up; the gateway leaves a device down that somebody took down",
        ));
    }
    let Some(relay) = &status.relay else { return findings };
    for (name, sensor) in &relay.sensors {
        if let Some(failure) = &sensor.last_failure {
            findings.push(Finding::warning(
                code::SENSOR_FAILS,
                format!("sensor {name}"),
                format!("its last session failed: {failure}"),
                format!("see below; skyway trace {name} HOST goes the way for it"),
            ));
        }
    }
    if relay.draining {
        findings.push(Finding::warning(code::DRAINING, "relay", "it drains: no new sessions are taken", "wait for its end, or restart it"));
    }
    findings
}

/// The process that listens at `socket`, if it is a skyway.
async fn process_behind(socket: &Path) -> Option<i32> {
    let process = UnixStream::connect(socket).await.ok()?.peer_cred().ok()?.pid()?;
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
    (name.trim() == "skyway").then_some(process)
}

fn written(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok()
}

fn clock(settings: Option<&Arc<Settings>>, asked: &Asked) -> Check {
    let relay = settings.and_then(|settings| settings.relay.as_ref());
    let listeners = relay.iter().flat_map(|relay| &relay.listeners);
    let mut servers = asked.time_servers.clone();
    if servers.is_empty() {
        for listener in listeners {
            match &listener.kind {
                ListenerKind::Ntp(ntp) => servers.extend(ntp.servers.iter().cloned()),
                ListenerKind::Sessions { .. } | ListenerKind::Dns(_) => {}
            }
        }
    }
    let name_servers = relay.map(|relay| relay.name_servers.clone()).unwrap_or_default();
    Check::new("clock", async move {
        let measured = match Resolver::new(&name_servers) {
            Ok(resolver) => clock::measure(servers, resolver).await,
            Err(error) => clock::Measured::Unknown(vec![error.to_string()]),
        };
        vec![clock::judge(&measured)]
    })
}

/// The relay's names and the tunnels', each at the name servers that it is asked of.
fn name_checks(settings: &Settings) -> Vec<Check> {
    let conf = Arc::new(ResolvConf::read());
    let hosts = Arc::new(names::read_hosts_file());
    let of_tunnels = names::of_tunnels(settings);
    let relay = settings.relay.as_ref();
    let own = relay.map(|relay| relay.name_servers.clone()).unwrap_or_default();
    let of_relay = relay.map(names::of_relay).unwrap_or_default();
    let asked = if own.is_empty() {
        // The same servers are not asked twice.
        vec![(conf.servers.clone(), names::each_once(of_relay.into_iter().chain(of_tunnels).collect()))]
    } else {
        vec![(own, of_relay), (conf.servers.clone(), of_tunnels)]
    };
    let checks = asked.into_iter().filter(|(_, questions)| !questions.is_empty()).map(|(servers, questions)| {
        let (conf, hosts) = (Arc::clone(&conf), Arc::clone(&hosts));
        Check::new("names", async move { names::check(servers, questions, &hosts, &conf.search).await })
    });
    checks.collect()
}

/// A tunnel of the running gateway; datagrams are tried where nothing answers.
fn running_tunnel(tunnel: TunnelStatus, settings: Option<Arc<Settings>>) -> Check {
    let subject = format!("tunnel {}", tunnel.name);
    Check::new(&subject, async move {
        let configured = settings.as_ref().and_then(|settings| settings.tunnel(&tunnel.name));
        let mut trying = JoinSet::new();
        for (peer, endpoint) in tunnels::unanswered(&tunnel) {
            let known = configured.and_then(|configured| configured.peers.iter().find(|known| known.name == peer.name));
            let underlay = settings.as_ref().zip(known).map(|(settings, known)| underlay(settings, known, endpoint)).unwrap_or_default();
            let inside = tunnel.mode == "tun" && configured.is_some_and(|configured| is_inside(configured, endpoint.ip()));
            trying.spawn(async move { (endpoint, reach(endpoint, &underlay, inside).await) });
        }
        let reaches: Reaches = trying.join_all().await.into_iter().collect();
        tunnels::judge(&tunnel, configured, &reaches)
    })
}

/// A tunnel without a gateway: whether datagrams leave towards its peers.
fn resting_tunnel(settings: &Arc<Settings>, tunnel: &TunnelSettings) -> Vec<Check> {
    let peers = tunnel.peers.iter().filter(|peer| !peer.endpoints.is_empty());
    let checks = peers.map(|peer| {
        let (settings, tunnel, peer) = (Arc::clone(settings), tunnel.clone(), peer.clone());
        Check::new(&format!("tunnel {}, peer {}", tunnel.name, peer.name), async move {
            let mut tried: Vec<(SocketAddr, Reach)> = Vec::new();
            for endpoint in addresses(&peer).await {
                // The kill switch outlives the gateway, so its prefixes are closed also now.
                let inside = tunnel.mode != Mode::Userspace && is_inside(&tunnel, endpoint.ip());
                tried.push((endpoint, reach(endpoint, &underlay(&settings, &peer, endpoint), inside).await));
            }
            tunnels::judge_without_gateway(&tunnel.name, &peer.name, &tried)
        })
    });
    checks.collect()
}

/// Every address of the peer's endpoints; what does not resolve is told with the names.
async fn addresses(peer: &PeerSettings) -> Vec<SocketAddr> {
    let Ok(resolver) = Resolver::new(&[]) else { return Vec::new() };
    let mut addresses = Vec::new();
    for endpoint in &peer.endpoints {
        let known = match endpoint.host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => match tokio::time::timeout(NAME, resolver.resolve(&endpoint.host)).await {
                Ok(Ok(addresses)) => addresses,
                Ok(Err(_)) | Err(_) => Vec::new(),
            },
        };
        addresses.extend(known.into_iter().map(|address| SocketAddr::new(address, endpoint.port)));
    }
    addresses
}

/// The underlay that the peer is reached by at `endpoint`: that of the address, else that of a name with this port.
fn underlay(settings: &Settings, peer: &PeerSettings, endpoint: SocketAddr) -> UnderlaySettings {
    let here = || peer.endpoints.iter().filter(|configured| configured.port == endpoint.port());
    let literal = here().find(|configured| configured.host.parse::<IpAddr>() == Ok(endpoint.ip()));
    let configured = literal.or_else(|| here().find(|configured| configured.host.parse::<IpAddr>().is_err()));
    let name = configured.and_then(|configured| configured.underlay.as_ref());
    name.and_then(|name| settings.underlays.get(name)).cloned().unwrap_or_default()
}

fn is_inside(tunnel: &TunnelSettings, address: IpAddr) -> bool {
    tunnel.peers.iter().flat_map(|peer| peer.allowed_ips.iter()).any(|prefix| prefix.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::tunnels::tests::{peer, status, tunnel};
    use super::*;

    fn good(subject: &str) -> Finding {
        Finding::good(code::SESSION, subject, "good")
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_in_time_is_told_and_the_rest_is_kept_in_order() {
        let checks = vec![
            Check::done("first", vec![good("first")]),
            Check::new("never", std::future::pending()),
            Check::new("late", async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                vec![good("late"), good("later")]
            }),
        ];
        let findings = carry_out(checks, Instant::now() + BUDGET).await;
        let told: Vec<(&str, &str)> = findings.iter().map(|finding| (finding.code, finding.subject.as_str())).collect();
        let never = (code::NOT_FINISHED, "never");
        assert_eq!(told, [(code::SESSION, "first"), never, (code::SESSION, "late"), (code::SESSION, "later")]);
    }

    #[tokio::test(start_paused = true)]
    async fn more_checks_than_places_are_all_done() {
        let checks = (0..AT_ONCE * 3).map(|_| {
            Check::new("one", async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                vec![good("one")]
            })
        });
        let findings = carry_out(checks.collect(), Instant::now() + BUDGET).await;
        assert_eq!(findings, vec![good("one"); AT_ONCE * 3]);
    }

    #[tokio::test]
    async fn a_gateway_that_does_not_run_is_a_note() {
        let folder = tempfile::tempdir().expect("a folder");
        let gateway = Gateway::ask(Some(&folder.path().join("a.sock"))).await;
        assert!(gateway.status.is_none());
        assert_eq!((gateway.finding.code, gateway.finding.severity), (code::GATEWAY, Severity::Note));
    }

    #[test]
    fn what_the_gateway_complains_of_is_told() {
        let mut status = status(vec![tunnel(vec![peer()])]);
        status.version = env!("CARGO_PKG_VERSION").into();
        assert_eq!(judge_version(&status, "a".into()).severity, Severity::Good);
        assert!(judge_gateway(&status).is_empty());
        status.version = "0.0.1".into();
        assert_eq!(judge_version(&status, "a".into()).severity, Severity::Note);
    }

    #[test]
    fn an_endpoint_has_the_underlay_of_its_address_or_of_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = folder.path().join("key");
        std::fs::write(&key, &*::tunnel::PrivateKey::generate().to_base64()).expect("written");
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
        let text = format!(
            "version: 1
gateway: {{ name: a }}
underlays: {{ one: {{ interface: ens5 }}, two: {{ interface: ens6 }} }}
tunnels:
  azure:
    private_key: {{ file: key }}
    listen: 51820
    addresses: [10.99.0.1/30]
    peers:
      vnet-a:
        public_key: {}
        allowed_ips: [10.99.0.2/32, 10.20.0.0/16]
        endpoints:
          - {{ via: one, address: \"10.20.0.4:51820\" }}
          - {{ via: two, address: \"vnet-a.example.net:51820\" }}
",
            ::tunnel::PrivateKey::generate().public_key()
        );
        let settings = config::parse(text, folder.path()).settings.expect("settings");
        let azure = &settings.tunnels[0];
        let of = |endpoint: &str| underlay(&settings, &azure.peers[0], endpoint.parse().expect("an endpoint")).interface;
        assert_eq!(of("10.20.0.4:51820").as_deref(), Some("ens5"));
        assert_eq!(of("192.0.2.7:51820").as_deref(), Some("ens6"));
        assert_eq!(of("192.0.2.7:1"), None);
        assert!(is_inside(azure, "10.20.0.4".parse().expect("an address")));
        assert!(!is_inside(azure, "192.0.2.7".parse().expect("an address")));
    }
}
