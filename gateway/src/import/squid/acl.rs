//! Squid's access lists and the rules made of them, decided as Squid does: in order, the first rule that matches, and
//! when none does, the opposite of the last.
//!
//! A squid.conf does not tell everything: helpers, files, addresses and the time of day decide as well. What it leaves
//! open is in doubt, and the one who asks says which way doubt goes.
//!
//! Source: Squid's src/cf.data.pre (`acl`, `http_access`), src/acl/DomainData.cc (a leading dot matches the domain itself
//! too), src/acl/Ip.cc (ranges and masks).

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use crate::relay::HostName;

/// One named list. Values of several lines add up.
pub(super) struct Acl {
    /// As first written.
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Whether every value was understood. What does not match is in doubt otherwise.
    pub(super) whole: bool,
}

/// What a list looks at; its values with the lines that they stand on.
pub(super) enum Kind {
    /// Everything.
    All,
    /// Requests to Squid's cache manager.
    Manager,
    /// Addresses of the proxy itself and of its links: nothing that a catalogue names has one.
    Nearby,
    Domains(Domains),
    Sources(Sources),
    /// First and last of each range.
    Ports(Vec<(u16, u16, usize)>),
    Methods(BTreeSet<String>),
    Users(Users),
    /// Anything else, which may tell who the client is.
    Unknown {
        identifies: bool,
    },
}

#[derive(Default)]
pub(super) struct Domains {
    pub(super) exact: BTreeMap<HostName, usize>,
    /// Without their leading dot.
    pub(super) below: BTreeMap<String, usize>,
}

#[derive(Default)]
pub(super) struct Sources {
    pub(super) prefixes: Vec<(IpNet, usize)>,
    /// Whether one of them is every address there is.
    everything: bool,
    /// Whether one of them can be a sensor's.
    sensors: bool,
}

impl Sources {
    pub(super) fn extend(&mut self, prefixes: Vec<IpNet>, line: usize) {
        self.everything |= prefixes.iter().any(|prefix| prefix.prefix_len() == 0);
        self.sensors |= prefixes.iter().any(|prefix| prefix.prefix_len() > 0 && !is_no_sensors(prefix));
        self.prefixes.extend(prefixes.into_iter().map(|prefix| (prefix, line)));
    }
}

#[derive(Default)]
pub(super) struct Users {
    pub(super) names: BTreeMap<String, usize>,
    /// The line that lets in any user with a password.
    pub(super) anybody: Option<usize>,
}

impl Domains {
    fn contains(&self, host: &HostName) -> bool {
        let mut names = iter::successors(Some(host.as_str()), |name| name.split_once('.').map(|(_, parent)| parent));
        self.exact.contains_key(host) || names.any(|name| self.below.contains_key(name))
    }
}

impl Kind {
    /// What a list of that type looks at, before it has values.
    pub(super) fn of(type_name: &str) -> Self {
        match type_name {
            "dstdomain" => Self::Domains(Domains::default()),
            "src" => Self::Sources(Sources::default()),
            "port" => Self::Ports(Vec::new()),
            "method" => Self::Methods(BTreeSet::new()),
            "proxy_auth" => Self::Users(Users::default()),
            _ => Self::Unknown { identifies: IDENTIFYING_TYPES.contains(&type_name) },
        }
    }
}

/// Types of lists that tell clients apart, other than by source and by user.
const IDENTIFYING_TYPES: &[&str] = &[
    "arp",
    "ca_cert",
    "clientside_mark",
    "client_connection_mark",
    "eui64",
    "ext_user",
    "ext_user_regex",
    "external",
    "ident",
    "ident_regex",
    "localip",
    "localport",
    "myip",
    "myport",
    "myportname",
    "proxy_auth_regex",
    "src_as",
    "srcdom_regex",
    "srcdomain",
    "user_cert",
];

/// All lists, by number and by name. Names are compared without case.
pub(super) struct Acls {
    lists: Vec<Acl>,
    numbers: BTreeMap<String, usize>,
}

impl Acls {
    /// Those that Squid defines by itself.
    pub(super) fn built_in() -> Self {
        let mut acls = Self { lists: Vec::new(), numbers: BTreeMap::new() };
        let mut local = Sources::default();
        local.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(IpNet::from).to_vec(), 0);
        for (name, kind) in [
            ("all", Kind::All),
            ("manager", Kind::Manager),
            ("to_localhost", Kind::Nearby),
            ("to_linklocal", Kind::Nearby),
            ("localhost", Kind::Sources(local)),
            ("CONNECT", Kind::Methods(BTreeSet::from(["CONNECT".to_owned()]))),
        ] {
            acls.add(name, kind);
        }
        acls
    }

    pub(super) fn add(&mut self, name: &str, kind: Kind) -> usize {
        let number = self.lists.len();
        self.lists.push(Acl { name: name.to_owned(), kind, whole: true });
        self.numbers.insert(name.to_ascii_lowercase(), number);
        number
    }

    pub(super) fn number(&self, name: &str) -> Option<usize> {
        self.numbers.get(&name.to_ascii_lowercase()).copied()
    }

    pub(super) fn get(&self, number: usize) -> Option<&Acl> {
        self.lists.get(number)
    }

    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut Acl> {
        self.lists.get_mut(number)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Acl> {
        self.lists.iter()
    }

    /// What the rules make of a request. Where the file leaves it open, `doubt` is the answer.
    pub(super) fn decide(&self, rules: &[Rule], request: &Request<'_>, doubt: Action) -> Decision {
        let matching = rules.iter().find(|rule| match self.truth(rule, request) {
            Truth::Yes => true,
            Truth::No => false,
            Truth::Maybe => rule.action == doubt,
        });
        match (matching, rules.last()) {
            (Some(rule), _) => Decision { action: rule.action, line: rule.line, by_default: false },
            (None, Some(last)) => Decision { action: last.action.opposite(), line: last.line, by_default: true },
            (None, None) => Decision { action: Action::Deny, line: 0, by_default: true },
        }
    }

    /// Whether a rule matches: all its terms have to.
    pub(super) fn truth(&self, rule: &Rule, request: &Request<'_>) -> Truth {
        rule.terms.iter().map(|term| self.term(term, request)).fold(Truth::Yes, |all, term| match (all, term) {
            (Truth::No, _) | (_, Truth::No) => Truth::No,
            (Truth::Maybe, _) | (_, Truth::Maybe) => Truth::Maybe,
            (Truth::Yes, Truth::Yes) => Truth::Yes,
        })
    }

    fn term(&self, term: &Term, request: &Request<'_>) -> Truth {
        let undefined = if request.strict { Truth::No } else { Truth::Maybe };
        let truth = term.acl.and_then(|number| self.get(number)).map_or(undefined, |acl| acl.truth(request));
        match truth {
            Truth::Yes if term.negated => Truth::No,
            Truth::No if term.negated => Truth::Yes,
            Truth::Yes | Truth::No | Truth::Maybe => truth,
        }
    }
}

impl Acl {
    fn truth(&self, request: &Request<'_>) -> Truth {
        let known = |matches: bool| match (matches, self.whole) {
            (true, _) => Truth::Yes,
            (false, true) => Truth::No,
            (false, false) if request.strict => Truth::No,
            (false, false) => Truth::Maybe,
        };
        match &self.kind {
            Kind::All => Truth::Yes,
            Kind::Manager => known(request.manager),
            Kind::Nearby => Truth::No,
            Kind::Domains(domains) => known(domains.contains(request.host)),
            Kind::Ports(ranges) => known(ranges.iter().any(|(first, last, _)| (*first..=*last).contains(&request.port))),
            Kind::Methods(methods) => known(methods.contains(request.method)),
            Kind::Sources(sources) if sources.everything => Truth::Yes,
            Kind::Sources(sources) if request.client == Client::Listed && (sources.sensors || !self.whole) => Truth::Maybe,
            Kind::Sources(_) => Truth::No,
            Kind::Users(_) | Kind::Unknown { identifies: true } if request.client == Client::Stranger => Truth::No,
            Kind::Unknown { identifies: false } if request.strict => Truth::No,
            Kind::Users(_) | Kind::Unknown { .. } => Truth::Maybe,
        }
    }
}

/// One `allow` or `deny`.
pub(super) struct Rule {
    pub(super) line: usize,
    pub(super) action: Action,
    pub(super) terms: Vec<Term>,
}

pub(super) struct Term {
    pub(super) negated: bool,
    /// None: no list has that name.
    pub(super) acl: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    Deny,
}

impl Action {
    const fn opposite(self) -> Self {
        match self {
            Self::Allow => Self::Deny,
            Self::Deny => Self::Allow,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    Yes,
    No,
    Maybe,
}

/// What a client asks of the proxy.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    pub(super) host: &'a HostName,
    pub(super) port: u16,
    pub(super) client: Client,
    pub(super) manager: bool,
    /// Whether lists that tell destinations apart, and cannot be decided, are taken not to match.
    pub(super) strict: bool,
}

impl<'a> Request<'a> {
    /// A CONNECT of a client that the file may know.
    pub(super) const fn connect(host: &'a HostName, port: u16) -> Self {
        Self { method: "CONNECT", host, port, client: Client::Listed, manager: false, strict: false }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// One of those that the lists name: which, is open.
    Listed,
    /// One that no list names, without a password.
    Stranger,
}

pub(super) struct Decision {
    pub(super) action: Action,
    /// Of the rule that decided; 0 if there is none at all.
    pub(super) line: usize,
    /// Whether no rule matched.
    pub(super) by_default: bool,
}

/// The prefixes of one value of a list of type `src`. Bits behind a mask are dropped, as Squid does.
pub(super) fn source_prefixes(value: &str) -> Result<Vec<IpNet>, &'static str> {
    let everything = || [IpAddr::from([0_u8; 4]), IpAddr::from([0_u16; 8])].into_iter().filter_map(|first| IpNet::new(first, 0).ok());
    match value.to_ascii_lowercase().as_str() {
        "all" => return Ok(everything().collect()),
        "ipv4" => return Ok(everything().filter(|prefix| prefix.addr().is_ipv4()).collect()),
        "ipv6" => return Ok(everything().filter(|prefix| prefix.addr().is_ipv6()).collect()),
        _ => {}
    }
    if let Some((first, last)) = value.split_once('-')
        && let Ok(first) = first.parse::<IpAddr>()
    {
        return match (first, last.parse::<IpAddr>()) {
            (IpAddr::V4(first), Ok(IpAddr::V4(last))) if first <= last => Ok(Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()),
            (IpAddr::V6(first), Ok(IpAddr::V6(last))) if first <= last => Ok(Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()),
            _ => Err("a range that is no range, or has a mask, is not carried over: write its prefixes"),
        };
    }
    if let Ok(address) = value.parse::<IpAddr>() {
        return Ok(vec![address.into()]);
    }
    if let Ok(prefix) = value.parse::<IpNet>() {
        return Ok(vec![prefix.trunc()]);
    }
    let masked = value.split_once('/').and_then(|(address, mask)| IpNet::with_netmask(address.parse().ok()?, mask.parse().ok()?).ok());
    match masked {
        Some(prefix) => Ok(vec![prefix.trunc()]),
        None => Err("a source that is a name is not carried over: skyway knows sensors by address, or by proxy user"),
    }
}

/// First and last port of one value of a list of type `port`.
pub(super) fn port_range(value: &str) -> Option<(u16, u16)> {
    let (first, last) = value.split_once('-').unwrap_or((value, value));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

/// Prefixes that no sensor comes from: this network (RFC 1122 §3.2.1.3), which Squid's sample lists, and loopback.
pub(super) fn is_no_sensors(prefix: &IpNet) -> bool {
    match prefix.network() {
        IpAddr::V4(first) => first.is_loopback() || (first.octets()[0] == 0 && prefix.prefix_len() >= 8),
        IpAddr::V6(first) => first.is_loopback(),
    }
}
