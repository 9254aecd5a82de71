//! The file: whether it is good, whether the gateway runs with the keys that it names, and how long its certificates last.
//!
//! Whether secrets can be read by others is for reading them to say: such a file is refused, and stands among the mistakes.

use rustls::pki_types::UnixTime;
use tunnel::TunnelSettings;

use super::finding::{Finding, code};
use crate::admin::TunnelStatus;
use crate::config::diagnostic::{Diagnostic, Severity};
use crate::config::{Diagnostics, ListenerKind, Settings};

const DAY_SECS: u64 = 86_400;
/// Time enough to have one renewed by hand.
const SOON_DAYS: u64 = 30;

/// What reading it found. `file`: its name, to be shown.
pub(super) fn judge(file: &str, diagnostics: &Diagnostics) -> Vec<Finding> {
    let mut findings: Vec<Finding> = diagnostics.iter().map(|diagnostic| of(file, diagnostic)).collect();
    if !diagnostics.has_errors() {
        findings.push(Finding::good(code::FILE, file, "good; every secret that it names can be read by its owner alone"));
    }
    findings
}

fn of(file: &str, diagnostic: &Diagnostic) -> Finding {
    let place = if diagnostic.path.is_empty() { String::new() } else { format!(", {}", diagnostic.path) };
    let subject = format!("{file}:{}{place}", diagnostic.span.line);
    let expected = diagnostic.expected.as_ref().map(|expected| format!("expected {expected}"));
    let next = diagnostic.help.clone().or(expected).unwrap_or_else(|| format!("skyway check -c {file} shows the place"));
    match diagnostic.severity {
        Severity::Error => Finding::problem(code::FILE, subject, &diagnostic.message, next),
        Severity::Warning => Finding::warning(code::FILE, subject, &diagnostic.message, next),
    }
}

/// Whether a running tunnel uses the keys of the file: after an edit it does so only once it has been reloaded.
pub(super) fn judge_keys(running: &TunnelStatus, settings: &TunnelSettings) -> Vec<Finding> {
    let subject = format!("tunnel {}", running.name);
    let next = "skyway reload";
    let mut findings = Vec::new();
    let own = settings.private_key.public_key().to_string();
    if own != running.public_key {
        findings.push(Finding::problem(
            code::KEYS_DIFFER,
            &subject,
            format!("the file's private key belongs to {own}, and the running gateway is {}", running.public_key),
            next,
        ));
    }
    for peer in &settings.peers {
        let Some(known) = running.peers.iter().find(|known| known.name == peer.name) else {
            findings.push(Finding::warning(
                code::KEYS_DIFFER,
                &subject,
                format!("the running gateway does not know the peer {} yet", peer.name),
                next,
            ));
            continue;
        };
        let mut keys = std::iter::once(&peer.public_key).chain(&peer.next_public_key);
        if !keys.any(|key| key.to_string() == known.public_key) {
            findings.push(Finding::problem(
                code::KEYS_DIFFER,
                format!("{subject}, peer {}", peer.name),
                format!("the file has the key {}, and the running gateway uses {}", peer.public_key, known.public_key),
                next,
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good(code::KEYS_DIFFER, subject, "runs with the keys of the file"));
    }
    findings
}

/// When the listeners' own certificates expire.
pub(super) fn judge_certificates(settings: &Settings, now: UnixTime) -> Vec<Finding> {
    let listeners = settings.relay.iter().flat_map(|relay| &relay.listeners);
    let certificates = listeners.filter_map(|listener| match &listener.kind {
        ListenerKind::Sessions { tls, .. } => tls.as_ref().map(|tls| (format!("listener {}", listener.name), tls.not_after())),
        ListenerKind::Dns(_) | ListenerKind::Ntp(_) => None,
    });
    certificates.map(|(subject, not_after)| expiry(subject, not_after, now)).collect()
}

fn expiry(subject: String, not_after: UnixTime, now: UnixTime) -> Finding {
    let left = not_after.as_secs().saturating_sub(now.as_secs()) / DAY_SECS;
    let next = "renew it; the file is watched, and the new one is in use at once";
    if not_after <= now {
        Finding::problem(code::CERTIFICATE_EXPIRES, subject, "its certificate has expired: sensors refuse it", next)
    } else if left < SOON_DAYS {
        Finding::warning(code::CERTIFICATE_EXPIRES, subject, format!("its certificate expires in {left} days"), next)
    } else {
        Finding::good(code::CERTIFICATE_EXPIRES, subject, format!("its certificate is valid for {left} more days"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::finding::Severity as Badness;
    use super::super::tunnels::tests::{peer, tunnel};
    use super::*;
    use crate::config;

    fn parsed(more: &str) -> config::Loaded {
        let folder = tempfile::tempdir().expect("a folder");
        let key = folder.path().join("key");
        std::fs::write(&key, &*tunnel::PrivateKey::generate().to_base64()).expect("written");
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
        let text = format!(
            "version: 1
gateway: {{ name: a }}
tunnels:
  azure:
    private_key: {{ file: key }}
    listen: 51820
    addresses: [10.99.0.1/30]
    peers: {{ vnet-a: {{ public_key: {}, allowed_ips: [10.99.0.2/32] }} }}
{more}",
            tunnel::PrivateKey::generate().public_key()
        );
        config::parse(text, folder.path())
    }

    #[test]
    fn a_good_file_is_good_and_each_mistake_is_a_finding() {
        let good = parsed("");
        assert!(matches!(&judge("a.yaml", &good.diagnostics)[..], [only] if only.severity == Badness::Good));
        let bad = parsed("routes: { static: [ { prefix: 10.20.0.0/16, via: { tunnel: azur } } ] }\n");
        let findings = judge("a.yaml", &bad.diagnostics);
        assert!(
            findings.iter().any(|finding| finding.severity == Badness::Problem && finding.subject.starts_with("a.yaml:9, routes")),
            "{findings:?}"
        );
        assert!(findings.iter().all(|finding| finding.severity != Badness::Good && !finding.next.is_empty()), "{findings:?}");
    }

    #[test]
    fn a_file_that_was_not_reloaded_is_told() {
        let settings = parsed("").settings.expect("settings");
        let tunnel_settings = &settings.tunnels[0];
        let mut known = peer();
        known.public_key = tunnel_settings.peers[0].public_key.to_string();
        let mut running = tunnel(vec![known]);
        running.public_key = tunnel_settings.private_key.public_key().to_string();
        let severities = |running: &TunnelStatus| -> Vec<Badness> {
            judge_keys(running, tunnel_settings).iter().map(|finding| finding.severity).collect()
        };
        assert_eq!(severities(&running), [Badness::Good]);
        running.peers[0].public_key = "ANOTHER".into();
        assert_eq!(severities(&running), [Badness::Problem]);
        running.public_key = "ANOTHER".into();
        assert_eq!(severities(&running), [Badness::Problem, Badness::Problem]);
        running.peers.clear();
        assert_eq!(severities(&running), [Badness::Problem, Badness::Warning]);
    }

    #[test]
    fn certificates_that_expire_soon_are_told_in_time() {
        let at = |days: u64| UnixTime::since_unix_epoch(Duration::from_secs(days * DAY_SECS));
        let of = |days| expiry("listener proxy".into(), at(days), at(1000)).severity;
        assert_eq!([of(999), of(1000), of(1001), of(1029), of(1030)].map(|severity| severity as u8), [3, 3, 2, 2, 0]);
    }
}
