//! What an examination finds: a code that does not change, how bad it is, what is the matter, and what to do.

use serde::Serialize;

/// How bad it is. The order is that of badness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Good,
    /// Good to know, or not to be told.
    Note,
    /// Something works less well than it should, or will stop to.
    Warning,
    /// Something does not work.
    Problem,
}

/// One thing that was looked at and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// One of [`CODES`].
    pub code: &'static str,
    pub severity: Severity,
    /// What was looked at: `tunnel azure, peer vnet-a`.
    pub subject: String,
    /// What is the matter, in words.
    pub what: String,
    /// What to do; empty if nothing is to be done.
    pub next: String,
}

impl Finding {
    pub(super) fn good(code: &'static str, subject: impl Into<String>, what: impl Into<String>) -> Self {
        Self { code, severity: Severity::Good, subject: subject.into(), what: what.into(), next: String::new() }
    }

    pub(super) fn note(code: &'static str, subject: impl Into<String>, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { code, severity: Severity::Note, subject: subject.into(), what: what.into(), next: next.into() }
    }

    pub(super) fn warning(code: &'static str, subject: impl Into<String>, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { code, severity: Severity::Warning, subject: subject.into(), what: what.into(), next: next.into() }
    }

    pub(super) fn problem(code: &'static str, subject: impl Into<String>, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { code, severity: Severity::Problem, subject: subject.into(), what: what.into(), next: next.into() }
    }
}

/// Everything that one examination found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// By the file; none: the file does not say.
    pub gateway: Option<String>,
    /// The worst of the findings.
    pub verdict: Severity,
    pub took_ms: u64,
    /// In the order in which things depend on each other: host, clock, file, gateway, names, tunnels, relay.
    pub findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(gateway: Option<String>, findings: Vec<Finding>, took: std::time::Duration) -> Self {
        let verdict = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Good);
        Self { gateway, verdict, took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX), findings }
    }

    pub(super) fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

macro_rules! codes {
    ($($name:ident = $code:literal, $meaning:literal;)*) => {
        /// The codes by name.
        pub(super) mod code {
            $(
                #[doc = $meaning]
                pub(in crate::doctor) const $name: &str = $code;
            )*
        }

        /// Every code with what it is about. A code is never given to something else; findings of one code differ in severity.
        pub const CODES: &[(&str, &str)] = &[$(($code, $meaning),)*];
    };
}

codes! {
    CAPABILITIES = "SKY-H01", "capabilities that the file asks for";
    TUN_DEVICE = "SKY-H02", "/dev/net/tun";
    FORWARDING = "SKY-H03", "whether the host forwards packets, where routes lead through it";
    REVERSE_PATH = "SKY-H04", "strict reverse-path filtering";
    NFT = "SKY-H05", "the program nft";
    DESCRIPTORS = "SKY-H06", "the limit on open files against relay.limits.sessions";
    BACKLOG = "SKY-H07", "connections that may wait to be accepted (net.core.somaxconn)";
    CONNTRACK = "SKY-H08", "room in the kernel's connection table";
    MEMORY = "SKY-H09", "memory against relay.limits.sessions";

    CLOCK = "SKY-C01", "this host's clock against a time server";
    CLOCK_WENT_BACK = "SKY-C02", "this host's clock against times that it has shown before";

    FILE = "SKY-K01", "the configuration file and the secrets that it names";
    KEYS_DIFFER = "SKY-K02", "keys of the file against those of the running gateway";
    CERTIFICATE_EXPIRES = "SKY-K03", "when certificates of our own expire";

    GATEWAY = "SKY-G01", "whether the gateway runs and answers";
    ROUTE_WAITS = "SKY-G02", "a route whose device is down";
    SENSOR_FAILS = "SKY-G03", "a sensor whose last session failed";
    DRAINING = "SKY-G04", "the relay takes no new sessions";

    NAME_SERVER = "SKY-N01", "whether a name server answers";
    NAME_NOT_RESOLVED = "SKY-N02", "a name that does not resolve";
    ADDRESS_FORBIDDEN = "SKY-N03", "a name that resolves to what may not be dialled";
    SEARCH_DOMAIN = "SKY-N04", "a name that only a search domain would complete";
    HOSTS_FILE = "SKY-N05", "a name that stands in /etc/hosts";

    SESSION = "SKY-T01", "the session with a peer";
    NO_ANSWER = "SKY-T02", "handshakes that nothing answers: blocked UDP, no peer, or wrong keys";
    WRONG_KEY_HERE = "SKY-T03", "a handshake from a key that is not configured: a wrong key in this file";
    WRONG_KEY_THERE = "SKY-T04", "a handshake for another key than ours: a wrong key in the peer's file";
    PRESHARED_KEY = "SKY-T05", "preshared keys that differ";
    NOT_CONFIRMED = "SKY-T06", "handshakes that we answer and nobody confirms";
    PATH_MTU = "SKY-T07", "the size of packets that the path takes: MTU black holes";
    NOT_COME = "SKY-T08", "a peer that is to come to us and has not";
    PEER_SILENT = "SKY-T09", "a session whose probes nobody answers";
    STANDBY = "SKY-T10", "a peer that is reached by a standby endpoint";
    HANDSHAKE_REPLAY = "SKY-T11", "handshakes with an old timestamp: a clock that was set back";
    LANE = "SKY-T12", "a lane without a session";
    NOTHING_LISTENS = "SKY-T13", "an endpoint whose host says that nobody listens there";
    NOT_SENT = "SKY-T14", "datagrams that do not leave this host";
    SOURCE_NOT_ALLOWED = "SKY-T15", "packets from addresses that are not in the peer's allowed_ips";
    FLOOD = "SKY-T16", "more handshakes than peers need";

    HOST_REACHED = "SKY-R01", "a host of the catalogue by a path, up to its certificate";
    PATH_DOWN = "SKY-R02", "a path that does not lead out";
    NOT_CONNECTED = "SKY-R03", "a host that takes no TCP connection";
    PARENT = "SKY-R04", "a parent proxy that refuses or cannot be reached";
    TLS_FAILED = "SKY-R05", "a TLS handshake that does not come about";
    INTERCEPTED = "SKY-R06", "TLS that somebody intercepts";
    CERTIFICATE_DATES = "SKY-R07", "a certificate that is not valid by this host's clock";
    NOT_TRIED = "SKY-R08", "what could not be tried from here";

    NOT_FINISHED = "SKY-X01", "what was not finished in time";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_code_is_there_once_and_well_formed() {
        let codes: BTreeSet<&str> = CODES.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes.len(), CODES.len());
        for (code, meaning) in CODES {
            let rest = code.strip_prefix("SKY-").expect("the prefix");
            let (letter, number) = rest.split_at(1);
            assert!(letter.chars().all(|c| c.is_ascii_uppercase()) && number.len() == 2 && number.parse::<u8>().is_ok(), "{code}");
            assert!(!meaning.is_empty() && !meaning.ends_with('.'), "{code}");
        }
    }

    #[test]
    fn the_verdict_is_the_worst() {
        let of = |findings| Report::new(None, findings, std::time::Duration::from_millis(1)).verdict;
        assert_eq!(of(Vec::new()), Severity::Good);
        let good = Finding::good(code::CLOCK, "clock", "right");
        let warning = Finding::warning(code::MEMORY, "memory", "little", "more");
        let note = Finding::note(code::GATEWAY, "gateway", "does not run", "start it");
        assert_eq!(of(vec![good.clone(), note.clone()]), Severity::Note);
        assert_eq!(of(vec![warning, good, note]), Severity::Warning);
    }
}
