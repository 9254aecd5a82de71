//! Tunnels: what the running gateway tells of them, turned into causes.
//!
//! ```text
//!  an answer that does not open ....................... the preshared keys differ
//!  a handshake for another key than ours .............. the peer's file has a wrong key for us
//!  a handshake from a key that is not configured ...... this file has a wrong key for the peer
//!  a handshake with an old timestamp .................. somebody's clock was set back
//!  answers that nobody confirms ....................... they do not arrive, or the preshared keys differ
//!  nothing at all, and our firewall drops it .......... UDP is blocked here
//!  nothing at all, and "forbidden" by ICMP ............ UDP is blocked on the way
//!  nothing at all, and "nobody listens" by ICMP ....... the peer does not run, or another port
//!  nothing at all ..................................... UDP is blocked, or nobody is there, or the keys are wrong
//! ```
//! The last cannot be told from here alone: WireGuard is silent towards whoever has a wrong key. The same examination at the
//! peer can: if our handshakes arrive there, it counts them and says which key is wrong.
//!
//! Pure. What asks nobody's leave is in [`super::reach`]. Without a running gateway there are no handshakes, and so all that
//! can be said is whether datagrams leave.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use tunnel::{PeerSettings, TunnelSettings};

use super::finding::{Finding, code};
use super::reach::Reach;
use crate::admin::{PeerStatus, TunnelStatus, UnknownKeyStatus};

/// What datagrams to endpoints met with.
pub(super) type Reaches = BTreeMap<SocketAddr, Reach>;

/// IPv6 demands as much of every link: less cannot be configured.
const LEAST_MTU: u32 = 1280;
/// What WireGuard and the outer headers add to an inner packet, in bytes.
const OVERHEAD_IPV4: u32 = 60;
const OVERHEAD_IPV6: u32 = 80;

const OPEN: &str = "let the UDP port pass in security groups, NSGs, firewalls and NAT at both ends";

/// Peers that nothing comes back from, with their endpoints: for these it is worth to look how far datagrams get.
pub(super) fn unanswered(tunnel: &TunnelStatus) -> impl Iterator<Item = (&PeerStatus, SocketAddr)> {
    let silent = tunnel.peers.iter().filter(|peer| peer.trouble.as_deref() == Some("no_answer") || peer.silent);
    silent.filter_map(|peer| Some((peer, peer.endpoint.as_ref()?.parse().ok()?)))
}

/// What a running tunnel tells. `settings`: those of the file, if it still has the tunnel.
pub(super) fn judge(tunnel: &TunnelStatus, settings: Option<&TunnelSettings>, reaches: &Reaches) -> Vec<Finding> {
    let tunnel = Tunnel { status: tunnel, settings, reaches, down: tunnel.peers.iter().filter(|peer| peer.state != "up").count() };
    let mut findings = Vec::new();
    for peer in &tunnel.status.peers {
        findings.push(tunnel.session(peer));
        findings.extend(tunnel.path(peer));
    }
    findings.extend(tunnel.counted());
    findings.extend(tunnel.lanes());
    findings
}

/// What can be said of a peer while no gateway runs. `tried`: its endpoints with what datagrams to them met with.
pub(super) fn judge_without_gateway(tunnel: &str, peer: &str, tried: &[(SocketAddr, Reach)]) -> Vec<Finding> {
    let subject = format!("tunnel {tunnel}, peer {peer}");
    let told = tried.iter().filter_map(|(endpoint, reach)| unwelcome(&subject, *endpoint, reach));
    let mut findings: Vec<Finding> = told.collect();
    if findings.is_empty() {
        let untried = tried.iter().find_map(|(_, reach)| if let Reach::NotTried(why) = reach { Some(why) } else { None });
        let what = match untried {
            Some(_) | None if tried.is_empty() => "none of its endpoints has an address: see the names above".to_owned(),
            Some(why) => format!("whether datagrams to it leave was not tried: {why}"),
            None => "datagrams to it leave, and nobody refuses them; whether it answers shows only while the gateway runs".to_owned(),
        };
        findings.push(Finding::note(code::SESSION, subject, what, "start skyway, then run skyway doctor again"));
    }
    findings
}

/// Who says that datagrams are not welcome; None if nobody does.
fn unwelcome(subject: &str, endpoint: SocketAddr, reach: &Reach) -> Option<Finding> {
    let port = endpoint.port();
    Some(match reach {
        Reach::Silent | Reach::NotTried(_) => return None,
        Reach::Refused => Finding::problem(
            code::NOTHING_LISTENS,
            subject,
            format!("{} says that nobody listens on UDP {port}: its UDP can be reached, and no WireGuard is there", endpoint.ip()),
            "start the peer, or correct the port of its endpoint; with NAT in front of it, look where the port is forwarded to",
        ),
        Reach::Prohibited => Finding::problem(
            code::NO_ANSWER,
            subject,
            format!("UDP is blocked on the way: somebody between here and {endpoint} answers that it is forbidden"),
            OPEN,
        ),
        Reach::BlockedHere => Finding::problem(
            code::NOT_SENT,
            subject,
            format!("UDP is blocked here: this host's own firewall drops datagrams to {endpoint}"),
            format!("allow UDP to port {port} in the output chain (nft list ruleset, iptables -S OUTPUT)"),
        ),
        Reach::NoWay(why) => Finding::problem(
            code::NOT_SENT,
            subject,
            format!("datagrams to {endpoint} do not leave this host: {why}"),
            format!("ip route get {} says which way they would go", endpoint.ip()),
        ),
    })
}

/// A tunnel and all that is known around it.
struct Tunnel<'a> {
    status: &'a TunnelStatus,
    settings: Option<&'a TunnelSettings>,
    reaches: &'a Reaches,
    /// Peers that are not up.
    down: usize,
}

impl Tunnel<'_> {
    fn session(&self, peer: &PeerStatus) -> Finding {
        let subject = self.subject(peer);
        let own_key = &self.status.public_key;
        // What runs on an old session is lost with it.
        let standing = if peer.state == "up" { "; the old session stands for now, at most three minutes" } else { "" };
        match peer.trouble.as_deref() {
            Some("answer_does_not_open") => Finding::problem(
                code::PRESHARED_KEY,
                subject,
                format!("the peer answers handshakes, and its answers do not open: the preshared keys of the two sides differ{standing}"),
                "put the same output of skyway genpsk into the files of `preshared_key` on both sides, or leave it out on both",
            ),
            Some("other_key") => Finding::problem(
                code::WRONG_KEY_THERE,
                subject,
                format!(
                    "the peer's handshakes are made for another public key than ours: its file has a wrong key for this gateway{standing}"
                ),
                format!("give the peer this gateway's public key: {own_key}"),
            ),
            Some("not_confirmed") => Finding::problem(
                code::NOT_CONFIRMED,
                subject,
                format!(
                    "the peer asks, we answer, and nothing follows: the preshared keys differ, or our answers do not reach it{standing}"
                ),
                "look at the peer: if it says that answers do not open, it is the preshared key; if it says that nothing comes, it is UDP on the way back",
            ),
            Some("no_answer") => self.silence(peer),
            Some(_) => Finding::problem(
                code::SESSION,
                subject,
                peer.trouble_text.clone().unwrap_or_else(|| "handshakes fail".to_owned()),
                "the gateway's log says more",
            ),
            None if peer.state == "up" && peer.silent => self.silent(peer),
            None if peer.state == "up" => {
                let rtt = peer.probe_rtt_ms.map(|rtt| format!(", round trip {rtt:.1} ms")).unwrap_or_default();
                let by = peer.endpoint.as_ref().map(|endpoint| format!(", by {endpoint}")).unwrap_or_default();
                Finding::good(code::SESSION, subject, format!("the session stands{by}{rtt}"))
            }
            None => self.idle(peer),
        }
    }

    /// We ask, and nothing comes back.
    fn silence(&self, peer: &PeerStatus) -> Finding {
        let subject = self.subject(peer);
        if let Some(unknown) = self.introduced_itself(peer) {
            return self.wrong_key_here(peer, unknown);
        }
        let endpoint = peer.endpoint.as_ref().and_then(|endpoint| endpoint.parse::<SocketAddr>().ok());
        let refusal = endpoint.and_then(|endpoint| unwelcome(&subject, endpoint, self.reaches.get(&endpoint)?));
        if let Some(refusal) = refusal {
            return refusal;
        }
        let to = peer.endpoint.as_deref().unwrap_or("the peer");
        let unsent = match self.status.drops.get("send_failed") {
            Some(count) => format!(" ({count} datagrams of this tunnel could not even be sent: the log says why)"),
            None => String::new(),
        };
        if peer.last_handshake_unix.is_some() {
            return Finding::problem(
                code::NO_ANSWER,
                subject,
                format!(
                    "nothing answers handshakes to {to} any more{unsent}. There was a session, so the keys were right: UDP is blocked since, or the peer is down"
                ),
                format!("see whether the peer runs; {OPEN}"),
            );
        }
        Finding::problem(
            code::NO_ANSWER,
            subject,
            format!(
                "nothing answers handshakes to {to}{unsent}, and nothing else came from there: UDP is blocked on the way, the peer does not run, or a key is wrong"
            ),
            format!(
                "{OPEN}; then run skyway doctor at the peer: if our handshakes arrive there, it says which key is wrong, and if it says nothing of them, it is UDP. \
                 This gateway's public key is {}",
                self.status.public_key
            ),
        )
    }

    /// A session, and probes that nobody answers.
    fn silent(&self, peer: &PeerStatus) -> Finding {
        let subject = self.subject(peer);
        let endpoint = peer.endpoint.as_ref().and_then(|endpoint| endpoint.parse::<SocketAddr>().ok());
        if let Some(refusal) = endpoint.and_then(|endpoint| unwelcome(&subject, endpoint, self.reaches.get(&endpoint)?)) {
            return refusal;
        }
        Finding::problem(
            code::PEER_SILENT,
            subject,
            "the session stands, and neither probes nor handshakes are answered: the path or the peer has just died",
            format!("see whether the peer runs; {OPEN}"),
        )
    }

    /// Nothing asks the peer: it comes to us, or there is no need.
    fn idle(&self, peer: &PeerStatus) -> Finding {
        let subject = self.subject(peer);
        if peer.state == "connecting" {
            return Finding::note(code::SESSION, subject, "a handshake is under way", "ask again in a few seconds");
        }
        if let Some(unknown) = self.introduced_itself(peer) {
            return self.wrong_key_here(peer, unknown);
        }
        if peer.endpoint.is_some() {
            let what = "no session, and nothing asks for one: `keepalive: off` and no traffic";
            return Finding::note(code::SESSION, subject, what, "leave `keepalive` on if the session shall stand");
        }
        let for_others = self.count("bad_mac1");
        if for_others > 0 && self.down == 1 {
            return Finding::problem(
                code::WRONG_KEY_THERE,
                subject,
                format!(
                    "it has not come, but {for_others} handshakes came that were made for another public key than ours: the peer's file has a wrong key for this gateway"
                ),
                format!("give the peer this gateway's public key: {}", self.status.public_key),
            );
        }
        let names = self.configured(peer).map_or(0, |configured| configured.endpoints.len());
        if names > 0 {
            let what = "no session: none of its endpoints is resolved yet";
            return Finding::problem(code::NOT_COME, subject, what, "see the names above; the log says `endpoint not usable`");
        }
        Finding::problem(
            code::NOT_COME,
            subject,
            format!("it is to come to us, to UDP {}, and has not: nothing of it has arrived", self.status.listen_port),
            format!("see whether the peer runs and has this gateway's address as its endpoint; {OPEN}"),
        )
    }

    fn wrong_key_here(&self, peer: &PeerStatus, unknown: &UnknownKeyStatus) -> Finding {
        Finding::problem(
            code::WRONG_KEY_HERE,
            self.subject(peer),
            format!(
                "{} asks with the key {}, which is not configured; the file has {} for this peer: one of the two is wrong",
                unknown.from, unknown.key, peer.public_key
            ),
            "compare with what skyway pubkey (or wg show) prints at the peer, and put that into `public_key`",
        )
    }

    /// The handshake from a key that is not configured, if it must be this peer's.
    fn introduced_itself(&self, peer: &PeerStatus) -> Option<&UnknownKeyStatus> {
        let unknown = self.status.unknown_key.as_ref()?;
        let from = unknown.from.parse::<SocketAddr>().ok()?.ip();
        let is_at = |endpoint: &String| endpoint.parse::<SocketAddr>().is_ok_and(|endpoint| endpoint.ip() == from);
        let literal = |host: &str| host.parse::<IpAddr>().is_ok_and(|address| address == from);
        let configured = self.configured(peer).is_some_and(|peer| peer.endpoints.iter().any(|endpoint| literal(&endpoint.host)));
        // Whoever is the only one missing is probably the one who asks.
        let its_own = peer.endpoint.as_ref().is_some_and(is_at) || configured || (peer.endpoint.is_none() && self.down == 1);
        its_own.then_some(unknown)
    }

    /// The size of what gets through, and by which endpoint.
    fn path(&self, peer: &PeerStatus) -> Vec<Finding> {
        let mut findings = Vec::new();
        match peer.path_mtu {
            Some(size) if peer.path_limited => {
                let is_ipv6 = peer
                    .endpoint
                    .as_ref()
                    .and_then(|endpoint| endpoint.parse().ok())
                    .is_some_and(|endpoint: SocketAddr| endpoint.is_ipv6());
                let outer = size + if is_ipv6 { OVERHEAD_IPV6 } else { OVERHEAD_IPV4 };
                let next =
                    "find out what lies on the path: another VPN, a tunnel of the provider's, a firewall that drops fragments and ICMP";
                findings.push(Finding::warning(
                    code::PATH_MTU,
                    self.subject(peer),
                    format!(
                        "MTU black hole: the path swallows packets over {size} bytes (datagrams over {outer}) without a word, though the tunnel's MTU is {}; smaller ones are sent meanwhile",
                        self.status.mtu
                    ),
                    if size >= LEAST_MTU { format!("{next}; if it is to stay so, set mtu: {size} at both ends") } else { next.to_owned() },
                ));
            }
            Some(size) => {
                findings.push(Finding::good(code::PATH_MTU, self.subject(peer), format!("packets of {size} bytes get through both ways")))
            }
            None if peer.state == "up" && self.configured(peer).is_some_and(|configured| configured.probe.is_none()) => {
                let what = "the size of packets that get through is not measured: the peer is not probed";
                findings.push(Finding::note(
                    code::PATH_MTU,
                    self.subject(peer),
                    what,
                    "give the peer a `probe`, or set `mtu` to what the path takes",
                ));
            }
            None => {}
        }
        if let (Some(active), Some(endpoint)) = (peer.active_endpoint.filter(|active| *active > 0), &peer.endpoint) {
            findings.push(Finding::warning(
                code::STANDBY,
                self.subject(peer),
                format!("reached by a standby endpoint, {endpoint}, the number {} of its endpoints", active + 1),
                "see why the better ones do not answer; it returns to them by itself",
            ));
        }
        findings
    }

    /// What the tunnel's counters say of all peers together.
    fn counted(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let subject = format!("tunnel {}", self.status.name);
        let told = |trouble: &str| self.status.peers.iter().any(|peer| peer.trouble.as_deref() == Some(trouble));
        let replayed = self.count("handshake_replay");
        if replayed > 0 && self.down > 0 {
            findings.push(Finding::problem(
                code::HANDSHAKE_REPLAY,
                &subject,
                format!("{replayed} handshakes came with a timestamp that is not newer than the last: the peer's clock was set back, or two hosts use one private key"),
                "correct the peer's clock (skyway doctor there), and restart the tunnel on this side; a machine that was restored or copied needs a key of its own",
            ));
        }
        if let Some(unknown) = self.status.unknown_key.as_ref().filter(|_| self.down > 0)
            && !self.status.peers.iter().any(|peer| peer.state != "up" && self.introduced_itself(peer).is_some())
        {
            findings.push(Finding::warning(
                code::WRONG_KEY_HERE,
                &subject,
                format!(
                    "{} handshakes came from keys that are not configured, the last {} from {}",
                    unknown.count, unknown.key, unknown.from
                ),
                "if that is a peer of this tunnel, the file has a wrong `public_key` for it",
            ));
        }
        let for_others = self.count("bad_mac1");
        if for_others > 0 && self.down > 1 && !told("other_key") {
            findings.push(Finding::warning(
                code::WRONG_KEY_THERE,
                &subject,
                format!("{for_others} handshakes came that were made for another public key than ours: some peer may have a wrong key for this gateway"),
                format!("this gateway's public key is {}", self.status.public_key),
            ));
        }
        let foreign = self.count("source_not_allowed");
        if foreign > 0 {
            findings.push(Finding::warning(
                code::SOURCE_NOT_ALLOWED,
                &subject,
                format!(
                    "{foreign} packets came out of the tunnel from addresses that are not in their peer's allowed_ips, and were dropped"
                ),
                "add the prefixes that are behind the peer to its allowed_ips; or masquerade at the peer",
            ));
        }
        let flood = self.count("too_many_handshakes") + self.count("under_load");
        if flood > 0 {
            findings.push(Finding::note(
                code::FLOOD,
                &subject,
                format!("{flood} handshakes were put off, because more came than peers need"),
                "docs/operations.md, \"Handshake floods\"",
            ));
        }
        findings
    }

    fn lanes(&self) -> Vec<Finding> {
        if self.down == self.status.peers.len() {
            return Vec::new();
        }
        let idle = self.status.lanes.iter().filter(|lane| !lane.attached);
        let told = idle.map(|lane| {
            Finding::warning(
                code::LANE,
                format!("tunnel {}, lane {}", self.status.name, lane.number),
                format!("no session, and so it carries nothing: UDP {} is filtered on the way, or the peer has fewer lanes", lane.port),
                "open the ports of all lanes; give both sides the same number of lanes",
            )
        });
        told.collect()
    }

    fn configured(&self, peer: &PeerStatus) -> Option<&PeerSettings> {
        self.settings?.peers.iter().find(|configured| configured.name == peer.name)
    }

    fn subject(&self, peer: &PeerStatus) -> String {
        format!("tunnel {}, peer {}", self.status.name, peer.name)
    }

    fn count(&self, reason: &str) -> u64 {
        self.status.drops.get(reason).copied().unwrap_or_default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::finding::Severity;
    use super::*;
    use crate::admin::{LaneStatus, Status, Verdict};

    const ENDPOINT: &str = "192.0.2.7:51820";

    pub(in crate::doctor) fn status(tunnels: Vec<TunnelStatus>) -> Status {
        Status {
            gateway: "a".into(),
            site: None,
            version: "0".into(),
            verdict: Verdict::Up,
            problems: Vec::new(),
            uptime_seconds: 60,
            generation: 1,
            tunnels,
            routes: Vec::new(),
            relay: None,
        }
    }

    pub(in crate::doctor) fn tunnel(peers: Vec<PeerStatus>) -> TunnelStatus {
        TunnelStatus {
            name: "azure".into(),
            mode: "tun".into(),
            public_key: "OURS".into(),
            listen_port: 51820,
            mtu: 1320,
            lanes: vec![lane(0, true)],
            peers,
            drops: BTreeMap::new(),
            streams: None,
            unknown_key: None,
        }
    }

    /// One that is up and well.
    pub(in crate::doctor) fn peer() -> PeerStatus {
        PeerStatus {
            name: "vnet-a".into(),
            public_key: "THEIRS".into(),
            state: "up".into(),
            endpoint: Some(ENDPOINT.into()),
            roamed: false,
            last_handshake_unix: Some(1_900_000_000),
            received_bytes: 1,
            sent_bytes: 1,
            received_packets: 1,
            sent_packets: 1,
            queued_packets: 0,
            active_endpoint: Some(0),
            endpoint_switches: 0,
            endpoint_on_trial: None,
            uses_next_key: false,
            path_mtu: Some(1320),
            path_limited: false,
            silent: false,
            probe_rtt_ms: Some(12.3),
            probes_sent: 10,
            probes_answered: 10,
            trouble: None,
            trouble_text: None,
        }
    }

    fn lane(number: u16, attached: bool) -> LaneStatus {
        LaneStatus {
            number,
            port: 51820 + number,
            attached,
            segmentation: true,
            coalescing: true,
            refused_super_packets: 0,
            sent_packets: 0,
            received_packets: 0,
        }
    }

    /// A peer that was never up, with this trouble.
    fn troubled(trouble: &str) -> PeerStatus {
        PeerStatus {
            state: "connecting".into(),
            last_handshake_unix: None,
            path_mtu: None,
            probe_rtt_ms: None,
            trouble: Some(trouble.into()),
            trouble_text: Some("in words".into()),
            ..peer()
        }
    }

    /// A peer that is to come to us.
    fn awaited() -> PeerStatus {
        PeerStatus { state: "idle".into(), endpoint: None, active_endpoint: None, trouble: None, trouble_text: None, ..troubled("") }
    }

    fn unknown(from: &str) -> UnknownKeyStatus {
        UnknownKeyStatus { count: 3, key: "STRANGE".into(), from: from.into() }
    }

    /// The codes of what is not good.
    fn told(tunnel: &TunnelStatus, reaches: &[(&str, Reach)]) -> Vec<(&'static str, Severity)> {
        let reaches = reaches.iter().map(|(endpoint, reach)| (endpoint.parse().expect("an endpoint"), reach.clone())).collect();
        let findings = judge(tunnel, None, &reaches);
        let bad = findings.iter().filter(|finding| finding.severity > Severity::Good);
        bad.map(|finding| (finding.code, finding.severity)).collect()
    }

    fn problem(tunnel: &TunnelStatus, reaches: &[(&str, Reach)]) -> &'static str {
        let told = told(tunnel, reaches);
        match told[..] {
            [(code, Severity::Problem)] => code,
            _ => panic!("{told:?}"),
        }
    }

    #[test]
    fn a_tunnel_that_is_well_is_good() {
        assert!(told(&tunnel(vec![peer()]), &[]).is_empty());
    }

    #[test]
    fn each_trouble_has_its_cause() {
        for (trouble, code) in [
            ("answer_does_not_open", code::PRESHARED_KEY),
            ("other_key", code::WRONG_KEY_THERE),
            ("not_confirmed", code::NOT_CONFIRMED),
            ("no_answer", code::NO_ANSWER),
            ("something_new", code::SESSION),
        ] {
            assert_eq!(problem(&tunnel(vec![troubled(trouble)]), &[]), code, "{trouble}");
            let standing = PeerStatus { trouble: Some(trouble.into()), ..peer() };
            assert_eq!(problem(&tunnel(vec![standing]), &[]), code, "{trouble}, and the old session stands");
        }
    }

    #[test]
    fn what_datagrams_meet_with_says_why_nothing_answers() {
        let tunnel = tunnel(vec![troubled("no_answer")]);
        for (reach, code) in [
            (Reach::Silent, code::NO_ANSWER),
            (Reach::Prohibited, code::NO_ANSWER),
            (Reach::Refused, code::NOTHING_LISTENS),
            (Reach::BlockedHere, code::NOT_SENT),
            (Reach::NoWay("no route to host".into()), code::NOT_SENT),
            (Reach::NotTried("not root".into()), code::NO_ANSWER),
        ] {
            assert_eq!(problem(&tunnel, &[(ENDPOINT, reach.clone())]), code, "{reach:?}");
        }
    }

    #[test]
    fn a_session_that_was_clears_the_keys() {
        let before = PeerStatus { last_handshake_unix: Some(1), ..troubled("no_answer") };
        let findings = judge(&tunnel(vec![before]), None, &Reaches::new());
        assert!(findings[0].what.contains("the keys were right") && findings[0].what.contains("UDP is blocked"), "{findings:?}");
        let findings = judge(&tunnel(vec![troubled("no_answer")]), None, &Reaches::new());
        assert!(findings[0].what.contains("UDP is blocked") && findings[0].what.contains("a key is wrong"), "{findings:?}");
        assert!(findings[0].next.contains("OURS"), "{findings:?}");
    }

    #[test]
    fn a_peer_that_asks_with_another_key_shows_that_ours_for_it_is_wrong() {
        let mut tunnel = tunnel(vec![troubled("no_answer")]);
        tunnel.unknown_key = Some(unknown("192.0.2.7:40000"));
        assert_eq!(problem(&tunnel, &[]), code::WRONG_KEY_HERE);
        tunnel.unknown_key = Some(unknown("198.51.100.1:40000"));
        assert_eq!(told(&tunnel, &[]), [(code::NO_ANSWER, Severity::Problem), (code::WRONG_KEY_HERE, Severity::Warning)]);
        let mut tunnel = tests::tunnel(vec![awaited(), PeerStatus { name: "other".into(), ..peer() }]);
        tunnel.unknown_key = Some(unknown("198.51.100.1:40000"));
        assert_eq!(problem(&tunnel, &[]), code::WRONG_KEY_HERE, "the only one that is missing");
        // Once all are up, it was somebody else.
        let mut tunnel = tests::tunnel(vec![peer()]);
        tunnel.unknown_key = Some(unknown("192.0.2.7:40000"));
        assert!(told(&tunnel, &[]).is_empty());
    }

    #[test]
    fn a_peer_that_has_not_come_may_have_a_wrong_key() {
        let mut tunnel = tunnel(vec![awaited()]);
        assert_eq!(problem(&tunnel, &[]), code::NOT_COME);
        tunnel.drops.insert("bad_mac1".into(), 4);
        assert_eq!(problem(&tunnel, &[]), code::WRONG_KEY_THERE);
    }

    #[test]
    fn a_black_hole_is_named_by_its_size() {
        let limited = PeerStatus { path_mtu: Some(1159), path_limited: true, ..peer() };
        let findings = judge(&tunnel(vec![limited.clone()]), None, &Reaches::new());
        let hole = findings.iter().find(|finding| finding.code == code::PATH_MTU).expect("told");
        assert!(hole.what.contains("1159") && hole.what.contains("1219") && hole.what.contains("1320"), "{hole:?}");
        assert!(!hole.next.contains("mtu:"), "it cannot be set: {hole:?}");
        let wide = PeerStatus { path_mtu: Some(1300), endpoint: Some("[2001:db8::7]:51820".into()), ..limited };
        let findings = judge(&tunnel(vec![wide]), None, &Reaches::new());
        let hole = findings.iter().find(|finding| finding.code == code::PATH_MTU).expect("told");
        assert!(hole.what.contains("1380") && hole.next.contains("mtu: 1300"), "{hole:?}");
    }

    #[test]
    fn silence_standbys_lanes_and_counters_are_told() {
        let silent = PeerStatus { silent: true, ..peer() };
        assert_eq!(problem(&tunnel(vec![silent]), &[]), code::PEER_SILENT);
        let standby = PeerStatus { active_endpoint: Some(1), ..peer() };
        assert_eq!(told(&tunnel(vec![standby]), &[]), [(code::STANDBY, Severity::Warning)]);
        let mut lanes = tunnel(vec![peer()]);
        lanes.lanes.push(lane(1, false));
        assert_eq!(told(&lanes, &[]), [(code::LANE, Severity::Warning)]);
        let mut counted = tunnel(vec![peer()]);
        counted.drops = [("source_not_allowed", 2), ("under_load", 1), ("handshake_replay", 9), ("bad_mac1", 5)]
            .map(|(reason, count)| (reason.to_owned(), count))
            .into();
        assert_eq!(told(&counted, &[]), [(code::SOURCE_NOT_ALLOWED, Severity::Warning), (code::FLOOD, Severity::Note)]);
        let mut replayed = tunnel(vec![troubled("no_answer")]);
        replayed.drops.insert("handshake_replay".into(), 9);
        assert!(told(&replayed, &[]).contains(&(code::HANDSHAKE_REPLAY, Severity::Problem)));
    }

    #[test]
    fn only_endpoints_that_nothing_comes_from_are_tried() {
        let tunnel = tunnel(vec![peer(), troubled("no_answer"), troubled("other_key"), awaited()]);
        let endpoints: Vec<String> = unanswered(&tunnel).map(|(_, endpoint)| endpoint.to_string()).collect();
        assert_eq!(endpoints, [ENDPOINT]);
    }

    #[test]
    fn without_a_gateway_only_refusals_are_told() {
        let endpoint: SocketAddr = ENDPOINT.parse().expect("an endpoint");
        let codes = |tried: &[(SocketAddr, Reach)]| {
            let findings = judge_without_gateway("azure", "vnet-a", tried);
            findings.iter().map(|finding| (finding.code, finding.severity)).collect::<Vec<_>>()
        };
        assert_eq!(codes(&[(endpoint, Reach::Silent)]), [(code::SESSION, Severity::Note)]);
        assert_eq!(codes(&[(endpoint, Reach::Refused)]), [(code::NOTHING_LISTENS, Severity::Problem)]);
        assert_eq!(codes(&[]), [(code::SESSION, Severity::Note)]);
    }
}
