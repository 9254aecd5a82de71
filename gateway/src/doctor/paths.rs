//! The relay's ways out: each host of the catalogue by each path, resolved, checked, dialled, up to its certificate.
//!
//! Direct paths, underlays and tunnels with a TUN device are gone by this process itself, with sockets made as the relay's
//! are, so that each path is seen whatever the relay would prefer. A tunnel in userspace mode is a stack inside the gateway's
//! process: where there is one, the gateway is asked to go the way (see [`super::trace`]).
//!
//! Left out: wildcards, which name no host; sending anything inside TLS; and which sensors may go, which `skyway trace` tells.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tunnel::Mode;

use super::Check;
use super::finding::{Finding, code};
use super::trace::{self, TraceAnswer, TraceError};
use crate::admin::Status;
use crate::config::{PathSettings, RelaySettings, Settings, UnderlaySettings, Via};
use crate::relay::catalogue::{Catalogue, HTTPS};
use crate::relay::connect_head::Authority;
use crate::relay::tls::{ChainCheck, Roots, TlsConnectError};
use crate::relay::{DialError, Dialer, DirectDialer, Path, PathParts, Resolver, Side};

/// For one host by one path, with its handshake.
const PATIENCE: Duration = Duration::from_secs(8);

/// How a path can be tried.
enum Way {
    /// By this process.
    Here(Arc<dyn Dialer>),
    /// By the running gateway alone.
    Gateway,
    /// Not now, for this reason.
    Closed(String),
}

/// Who is asked where this process cannot go: the gateway's socket, and the sensor in whose name.
pub(super) struct Asked {
    pub(super) socket: std::path::PathBuf,
    pub(super) sensor: String,
}

/// One check for each path and host.
pub(super) fn checks(settings: &Settings, status: Option<&Status>, asked: Option<&Asked>) -> Vec<Check> {
    let Some(relay) = &settings.relay else { return Vec::new() };
    let catalogue = Arc::new(relay.catalogue.clone());
    let mut checks = Vec::new();
    let mut by_gateway = false;
    for path in &relay.paths {
        let subject = format!("path {}", path.name);
        let trusts_interception = path.probe.as_ref().is_some_and(|probe| probe.health.trust_interception);
        let (path, roots) = match way(settings, &path.via, status) {
            Way::Here(dialer) => match ready(settings, relay, path, dialer) {
                Ok(ready) => ready,
                Err(why) => {
                    checks
                        .push(Check::done(&subject, vec![Finding::problem(code::PATH_DOWN, &subject, why, "the gateway's log says more")]));
                    continue;
                }
            },
            Way::Gateway => {
                by_gateway = true;
                continue;
            }
            Way::Closed(why) => {
                let next = "start skyway, then run skyway doctor again";
                checks.push(Check::done(&subject, vec![Finding::note(code::NOT_TRIED, &subject, why, next)]));
                continue;
            }
        };
        let path = Arc::new(path);
        for authority in hosts(&catalogue) {
            let examined = Examined { subject: format!("{subject}, {}", shown(&authority)), trusts_interception };
            let (path, roots, catalogue) = (Arc::clone(&path), roots.clone(), Arc::clone(&catalogue));
            let name = examined.subject.clone();
            checks.push(Check::new(&name, async move {
                let begun = Instant::now();
                let outcome = path.examine(&authority, &catalogue, &roots, begun + PATIENCE).await;
                vec![examined.judge(outcome, begun.elapsed())]
            }));
        }
    }
    if by_gateway {
        checks.extend(hosts(&catalogue).map(|authority| traced(authority, asked)));
    }
    checks
}

/// What the gateway is asked to try, because only it can.
fn traced(authority: Authority, asked: Option<&Asked>) -> Check {
    let subject = format!("gateway, {}", shown(&authority));
    let Some(asked) = asked else {
        let what = "only the gateway can go by a tunnel in userspace mode, and it goes for a sensor: none is configured";
        let finding = Finding::note(code::NOT_TRIED, &subject, what, "configure the sensors, then run skyway doctor again");
        return Check::done(&subject, vec![finding]);
    };
    let (socket, sensor, name) = (asked.socket.clone(), asked.sensor.clone(), subject.clone());
    Check::new(&name, async move {
        let answer = trace::ask(&socket, &sensor, &authority.host, authority.port).await;
        vec![judge_trace(subject, answer)]
    })
}

/// Exact hosts, by their first port.
fn hosts(catalogue: &Catalogue) -> impl Iterator<Item = Authority> {
    catalogue.iter().map(|(host, entry)| Authority { host: host.clone(), port: entry.ports.first().copied().unwrap_or(HTTPS) })
}

fn way(settings: &Settings, via: &Via, status: Option<&Status>) -> Way {
    let dialer = match via {
        Via::Direct => DirectDialer::default(),
        Via::Underlay(name) => {
            let UnderlaySettings { interface, source, mark } = settings.underlays.get(name).cloned().unwrap_or_default();
            DirectDialer { interface, source, mark, ..DirectDialer::default() }
        }
        Via::Tunnel(name) => {
            let running = status.and_then(|status| status.tunnels.iter().find(|tunnel| tunnel.name == *name));
            match running {
                Some(running) if running.mode == "tun" => DirectDialer { interface: Some(name.clone()), ..DirectDialer::default() },
                Some(_) => return Way::Gateway,
                None if settings.tunnel(name).is_some_and(|tunnel| tunnel.mode == Mode::Userspace) => {
                    return Way::Closed(format!("the tunnel {name} is a part of the running gateway, and that cannot be asked"));
                }
                None => return Way::Closed(format!("the tunnel {name} stands only while the gateway runs")),
            }
        }
    };
    Way::Here(Arc::new(dialer))
}

/// The path as the relay has it, and whom its probe trusts.
fn ready(settings: &Settings, relay: &RelaySettings, path: &PathSettings, dialer: Arc<dyn Dialer>) -> Result<(Path, Roots), String> {
    let resolver = if path.name_servers.is_empty() {
        Resolver::new(&relay.name_servers)
    } else {
        Resolver::through(&path.name_servers, Arc::clone(&dialer))
    };
    let roots = match &path.probe {
        Some(probe) => probe.roots.clone(),
        None => Roots::load(None).map_err(|error| error.to_string())?,
    };
    let parts = PathParts {
        name: path.name.as_str().into(),
        dialer,
        resolver: resolver.map_err(|error| error.to_string())?,
        parents: path.parents.clone(),
        probe: None,
        on_down: path.on_down,
        gateway: settings.gateway.name.as_str().into(),
        level: settings.gateway.level,
    };
    Ok((Path::new(parts, 0, Instant::now()), roots))
}

fn shown(authority: &Authority) -> String {
    if authority.port == HTTPS { authority.host.to_string() } else { authority.to_string() }
}

/// A host by a path.
struct Examined {
    subject: String,
    /// The file says that whoever intercepts is meant to be there.
    trusts_interception: bool,
}

impl Examined {
    fn judge(self, outcome: Result<ChainCheck, DialError>, took: Duration) -> Finding {
        match outcome {
            Err(error) => judge_dial(self.subject, &error),
            Ok(ChainCheck::Good { issuer, version, .. }) => Finding::good(
                code::HOST_REACHED,
                self.subject,
                format!("reached in {} ms: {version}, the certificate issued by {issuer}", took.as_millis()),
            ),
            Ok(ChainCheck::Failed(error)) => judge_tls(self.subject, &error),
            Ok(ChainCheck::Intercepted { issuer, why }) if is_about_the_clock(&why) => Finding::problem(
                code::CERTIFICATE_DATES,
                self.subject,
                format!("{why} (issued by {issuer})"),
                "if this host's clock is wrong, set it (see SKY-C01); else the other side has to renew it",
            ),
            Ok(ChainCheck::Intercepted { issuer, why }) if self.trusts_interception => Finding::note(
                code::INTERCEPTED,
                self.subject,
                format!("TLS is intercepted by {issuer}, as the file says ({why})"),
                "sensors have to trust that authority too; Defender itself advises against it",
            ),
            Ok(ChainCheck::Intercepted { issuer, why }) => Finding::problem(
                code::INTERCEPTED,
                self.subject,
                format!("TLS is intercepted: the certificate was issued by {issuer}, not by an authority that sensors know; {why}"),
                "exempt the host from TLS inspection where that is done (a proxy or firewall of that name); if it is meant so, say trust_interception: true in the path's probe",
            ),
        }
    }
}

fn judge_dial(subject: String, error: &DialError) -> Finding {
    let what = error.to_string();
    match error.side() {
        Side::Resolver if error.reason() == "dns_failed" => Finding::problem(
            code::NAME_NOT_RESOLVED,
            subject,
            what,
            "see what is said of the name servers; or name others in relay.name_servers",
        ),
        Side::Resolver => Finding::problem(
            code::ADDRESS_FORBIDDEN,
            subject,
            what,
            "with Private Link list the endpoint's prefix in `allow` of that host; otherwise somebody answers falsely: ask another name server",
        ),
        Side::Upstream => {
            let next = match error.reason() {
                "connection_refused" => {
                    "a firewall that rejects, or nothing at that port: compare host and port with the portal's endpoint details"
                }
                "connect_timeout" => {
                    "let TCP to that port pass towards it (security group, NSG, firewall), and see that this way leads to the internet at all (NAT gateway)"
                }
                _ => "see that this host has a way there: ip route get ADDRESS",
            };
            Finding::problem(code::NOT_CONNECTED, subject, what, next)
        }
        Side::Path => Finding::problem(
            code::PATH_DOWN,
            subject,
            what,
            "see what is said of the tunnel; its peer has to have the address in allowed_ips",
        ),
        Side::Parent => Finding::problem(code::PARENT, subject, what, ask_the_parent(error)),
        Side::Gateway => Finding::problem(
            code::PATH_DOWN,
            subject,
            what,
            "see the capabilities and limits above; an underlay's interface has to be there",
        ),
    }
}

fn ask_the_parent(error: &DialError) -> &'static str {
    if let DialError::ParentRefused { status, .. } = error {
        match status {
            401 | 407 => "the parent wants credentials: give it `auth` with a user and a password that it knows",
            403 => "add the host to what the parent lets through; where it is a skyway, to its catalogue, and this gateway to its sensors",
            502..=504 => "the parent cannot reach the host: run skyway doctor there, or look at its log",
            508 => "the chain of parents leads back to itself: look where each of them points",
            _ => "look at the parent's log: is it a proxy that takes CONNECT?",
        }
    } else {
        "see that the parent runs and listens there, and that its port is open from here"
    }
}

fn judge_tls(subject: String, error: &TlsConnectError) -> Finding {
    let next = match error.reason() {
        "tls_timeout" => {
            "TCP connects and TLS does not: larger packets are swallowed on the way (an MTU black hole: lower the MTU or clamp the MSS), or something inspects TLS and holds it"
        }
        "closed_in_tls" => "something on the way looks into the ClientHello and cuts it: allow the host by its name in the firewall",
        "not_tls" => "something else than the host answers: a captive portal, or a proxy that wants to be asked by CONNECT",
        "tls_version" => "something on the way speaks only old versions of TLS",
        _ => "see what lies between here and the host",
    };
    Finding::problem(code::TLS_FAILED, subject, error.to_string(), next)
}

/// The words of `CertificateFault` for dates.
fn is_about_the_clock(why: &str) -> bool {
    why.contains("by this host's clock")
}

fn judge_trace(subject: String, answer: Result<TraceAnswer, TraceError>) -> Finding {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Finding::note(code::NOT_TRIED, subject, error.to_string(), "ask again once the gateway answers"),
    };
    let Some(step) = answer.failure() else {
        return Finding::good(code::HOST_REACHED, subject, answer.verdict);
    };
    let code = match step.step.as_str() {
        "sensor" | "catalogue" | "port" => code::NOT_TRIED,
        "resolve" => code::NAME_NOT_RESOLVED,
        "address" => code::ADDRESS_FORBIDDEN,
        "dial" => code::NOT_CONNECTED,
        "parent" => code::PARENT,
        "tls" if step.rule == "intercepted" => code::INTERCEPTED,
        "tls" => code::TLS_FAILED,
        _ => code::PATH_DOWN,
    };
    let next = format!("skyway trace {} {}:{} shows each step", answer.sensor, answer.host, answer.port);
    Finding::problem(code, subject, answer.verdict, next)
}

/// The sensor in whose name the gateway is asked.
pub(super) fn anybody(settings: &Settings) -> Option<String> {
    settings.relay.as_ref()?.sensors.iter().next().map(|sensor| sensor.name.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use rustls::pki_types::UnixTime;

    use super::super::finding::Severity;
    use super::super::trace::tests::{answer, step};
    use super::*;
    use crate::relay::tls::CertificateFault;

    fn judged(outcome: Result<ChainCheck, DialError>) -> (&'static str, Severity, Finding) {
        let examined = Examined { subject: "path out, hub.example".into(), trusts_interception: false };
        let finding = examined.judge(outcome, Duration::from_millis(84));
        (finding.code, finding.severity, finding)
    }

    fn intercepted(why: &str) -> ChainCheck {
        ChainCheck::Intercepted { issuer: "Plant CA".into(), why: why.into() }
    }

    fn upstream() -> SocketAddr {
        "192.0.2.1:443".parse().expect("an address")
    }

    #[test]
    fn what_is_reached_shows_its_issuer() {
        let not_after = UnixTime::since_unix_epoch(Duration::from_secs(1));
        let (code, severity, finding) = judged(Ok(ChainCheck::Good { issuer: "DigiCert".into(), not_after, version: "TLS 1.3" }));
        assert_eq!((code, severity), (code::HOST_REACHED, Severity::Good));
        assert!(finding.what.contains("DigiCert") && finding.what.contains("84 ms"), "{finding:?}");
    }

    #[test]
    fn an_interceptor_is_named() {
        let (code, severity, finding) = judged(Ok(intercepted("the certificate comes from an authority that is not trusted")));
        assert_eq!((code, severity), (code::INTERCEPTED, Severity::Problem));
        assert!(finding.what.contains("Plant CA"), "{finding:?}");
        let meant = Examined { subject: "path out".into(), trusts_interception: true };
        assert_eq!(meant.judge(Ok(intercepted("so")), Duration::ZERO).severity, Severity::Note);
    }

    #[test]
    fn dates_are_told_apart_from_interception() {
        let of = |fault: CertificateFault| judged(Ok(intercepted(&format!("the certificate {fault}")))).0;
        assert_eq!(of(CertificateFault::Expired { on: "then".into(), clock: "now".into() }), code::CERTIFICATE_DATES);
        assert_eq!(of(CertificateFault::NotYetValid { from: "then".into(), clock: "now".into() }), code::CERTIFICATE_DATES);
        assert_eq!(of(CertificateFault::UnknownIssuer), code::INTERCEPTED);
        assert_eq!(of(CertificateFault::SelfSigned), code::INTERCEPTED);
    }

    #[test]
    fn each_side_at_fault_has_its_code() {
        let address = upstream();
        for (error, code) in [
            (DialError::Resolve { cause: crate::relay::ResolveFault::NoName }, code::NAME_NOT_RESOLVED),
            (DialError::Forbidden { address: address.ip(), why: crate::relay::address::Forbidden::Private }, code::ADDRESS_FORBIDDEN),
            (DialError::Refused { address }, code::NOT_CONNECTED),
            (DialError::TimedOut { address }, code::NOT_CONNECTED),
            (DialError::TunnelDown { tunnel: "azure".into(), address }, code::PATH_DOWN),
            (DialError::ParentSilent { parent: "http://p:3128".into() }, code::PARENT),
            (DialError::Socket { detail: "no interface".into() }, code::PATH_DOWN),
        ] {
            let (found, severity, finding) = judged(Err(error));
            assert_eq!((found, severity), (code, Severity::Problem), "{finding:?}");
            assert!(!finding.next.is_empty());
        }
    }

    #[test]
    fn a_parents_status_says_what_to_do() {
        let of = |status| {
            let error = DialError::ParentRefused { parent: "http://p:3128".into(), status, reason: None };
            judged(Err(error)).2
        };
        assert!(of(407).next.contains("credentials") && of(407).what.contains("407"));
        assert!(of(403).next.contains("catalogue"));
        assert!(of(504).next.contains("there"));
        assert!(of(302).next.contains("CONNECT"));
    }

    #[test]
    fn tls_that_hangs_may_be_a_black_hole() {
        let (code, _, finding) = judged(Ok(ChainCheck::Failed(TlsConnectError::TimedOut)));
        assert!(code == code::TLS_FAILED && finding.next.contains("MTU black hole"), "{finding:?}");
        assert_eq!(judged(Ok(ChainCheck::Failed(TlsConnectError::NotTls))).0, code::TLS_FAILED);
    }

    #[test]
    fn a_trace_of_the_gateways_is_as_good_as_ones_own() {
        let of = |answer: TraceAnswer| judge_trace("gateway, hub.example".into(), Ok(answer));
        assert_eq!(of(answer(true, vec![step("tls", true, "", "")])).severity, Severity::Good);
        for (name, rule, code) in [
            ("resolve", "dns_failed", code::NAME_NOT_RESOLVED),
            ("address", "private", code::ADDRESS_FORBIDDEN),
            ("path:vnet", "tunnel_down", code::PATH_DOWN),
            ("dial", "connect_timeout", code::NOT_CONNECTED),
            ("parent", "parent_refused", code::PARENT),
            ("tls", "intercepted", code::INTERCEPTED),
            ("tls", "tls_timeout", code::TLS_FAILED),
            ("catalogue", "host_not_listed", code::NOT_TRIED),
        ] {
            let finding = of(answer(true, vec![step(name, false, rule, "")]));
            assert_eq!((finding.code, finding.severity), (code, Severity::Problem), "{name}");
        }
        let older = judge_trace("gateway".into(), Err(TraceError::Older { path: "/run/skyway/a.sock".into() }));
        assert_eq!(older.severity, Severity::Note);
    }
}
