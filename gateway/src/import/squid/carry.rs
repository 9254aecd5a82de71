//! From what a squid.conf says to a relay: its rules decided for each host, and asked whether they let through what they
//! should not.
//!
//! Doubt goes to the client: what the rules may let through is taken for allowed, so that no sensor is cut off by a
//! condition that cannot be decided here, and no hole is missed; each such condition is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::{host_entry, is_shared, joined, push_list, quoted, quoted_list, shown};
use super::acl::{Acl, Action, Client, Decision, Kind, Request, Rule, Term, Truth, is_no_sensors};
use super::{Conf, Findings, Listener, Parent, Severity};
use crate::relay::HostName;
use crate::relay::catalogue::{Entry, HTTPS, Role};

/// The section `relay:` that comes of `conf`. Puts down what became of its lists and rules.
pub(super) fn carry(conf: &Conf, findings: &mut Findings) -> String {
    let probes = Probes::new(conf);
    let hosts = hosts(conf, &probes, findings);
    let sensors = sensors(conf, &probes, findings);
    rules(conf, &probes, findings);
    dangers(conf, &probes, findings);
    let paths = paths(conf, &probes, findings);
    if hosts.is_empty() {
        let why = "no exact host is carried over: list those of the portal's endpoint details (skyway import endpoints FILE)";
        findings.add(0, Severity::NotCarried, why);
    }
    if sensors.is_empty() {
        findings.add(0, Severity::NotCarried, "no sensor is carried over: nobody is let in until `sensors` names them");
    }
    if conf.listeners.is_empty() {
        findings.add(0, Severity::NotCarried, "no port is carried over: add a listener of the kind connect");
    }
    let mut yaml = String::from("# From a squid.conf. Read what the import found before this is used.\nrelay:\n  catalogue:\n");
    let entry = |host: &HostName, ports: &[u16]| Entry { ports: ports.to_vec(), ..Entry::new(Role::guess(host)) };
    let entries = hosts.iter().map(|(host, ports)| host_entry(host.as_str(), &entry(host, ports)));
    push_list(&mut yaml, 4, "hosts", entries);
    yaml.push_str(if sensors.is_empty() { "  sensors: { }\n" } else { "  sensors:\n" });
    for sensor in &sensors {
        yaml.push_str(&format!("    {}: {}\n", quoted(&sensor.name), sensor.entry()));
    }
    push_list(&mut yaml, 2, "paths", paths);
    push_list(&mut yaml, 2, "listeners", listeners(conf));
    yaml
}

/// What the rules are asked about.
struct Probes {
    /// Hosts of the lists by which `http_access` lets through.
    exact: BTreeSet<HostName>,
    /// Domains of those lists, with a host below each.
    below: BTreeMap<String, HostName>,
    /// A host of no list.
    unlisted: HostName,
    /// 443, and the ports that lists name one by one.
    ports: Vec<u16>,
    /// A port that no list names by itself.
    odd_port: u16,
}

impl Probes {
    fn new(conf: &Conf) -> Self {
        let mut singles = BTreeSet::new();
        for acl in conf.acls.iter() {
            if let Kind::Ports(ranges) = &acl.kind {
                singles.extend(ranges.iter().filter(|(first, last, _)| first == last && *first != 0).map(|(first, ..)| *first));
            }
        }
        let (mut exact, mut below) = (BTreeSet::new(), BTreeMap::new());
        for acl in allowing(conf).iter().filter_map(|number| conf.acls.get(*number)) {
            if let Kind::Domains(domains) = &acl.kind {
                exact.extend(domains.exact.keys().cloned());
                let hosts = domains
                    .below
                    .keys()
                    .filter_map(|domain| Some((domain.clone(), HostName::parse(&format!("any-tenant.{domain}")).ok()?)));
                below.extend(hosts);
            }
        }
        let odd_port = (2222..2300).find(|port| !singles.contains(port)).unwrap_or(2222);
        let ports = [HTTPS].into_iter().chain(singles.into_iter().filter(|port| *port != HTTPS)).take(MAX_PORTS).collect();
        let unlisted = HostName::parse("unlisted.invalid").expect("letters and a dot are a host name");
        Self { exact, below, unlisted, ports, odd_port }
    }

    fn all(&self) -> impl Iterator<Item = &HostName> {
        self.exact.iter().chain(self.below.values()).chain([&self.unlisted])
    }

    /// Whether a rule can have a say in a CONNECT that a sensor makes.
    fn reach(&self, conf: &Conf, rule: &Rule) -> bool {
        let can_match = |host: &HostName, port: &u16| conf.acls.truth(rule, &Request::connect(host, *port)) != Truth::No;
        self.all().any(|host| self.ports.iter().any(|port| can_match(host, port)))
    }
}

/// The lists by which rules let through: named by an `allow`, or all but excluded by a `deny`.
fn allowing(conf: &Conf) -> BTreeSet<usize> {
    let mut lists = BTreeSet::new();
    for rule in &conf.access {
        let lets_through = rule.terms.iter().filter(|term| term.negated == (rule.action == Action::Deny));
        lists.extend(lets_through.filter_map(|term| term.acl));
    }
    lists
}

fn decide(conf: &Conf, request: &Request<'_>) -> Decision {
    conf.acls.decide(&conf.access, request, Action::Allow)
}

fn allows(conf: &Conf, request: &Request<'_>) -> bool {
    decide(conf, request).action == Action::Allow
}

/// The ports on which the rules let CONNECT through to `host`. Where they let through any port, that was not meant: 443.
fn ports(conf: &Conf, probes: &Probes, host: &HostName) -> Vec<u16> {
    let allowed = |port: u16| allows(conf, &Request::connect(host, port));
    let wanted: &[u16] = if allowed(probes.odd_port) { &[HTTPS] } else { &probes.ports };
    let mut ports: Vec<u16> = wanted.iter().copied().filter(|port| allowed(*port)).collect();
    ports.sort_unstable();
    ports
}

/// The catalogue, and a finding for each line that names hosts.
fn hosts(conf: &Conf, probes: &Probes, findings: &mut Findings) -> BTreeMap<HostName, Vec<u16>> {
    let mut hosts: BTreeMap<HostName, Vec<u16>> = BTreeMap::new();
    for host in &probes.exact {
        let ports = ports(conf, probes, host);
        if !ports.is_empty() {
            hosts.insert(host.clone(), ports);
        }
    }
    for (domain, probe) in &probes.below {
        let ports = ports(conf, probes, probe);
        // A leading dot stands for the domain itself as well.
        if let Ok(host) = HostName::parse(domain)
            && !ports.is_empty()
            && !is_shared(domain)
            && domain.contains('.')
        {
            hosts.entry(host).or_insert(ports);
        }
    }
    for acl in conf.acls.iter() {
        match &acl.kind {
            Kind::Domains(domains) => {
                let mut by_line: BTreeMap<usize, (Vec<&str>, usize)> = BTreeMap::new();
                for (host, line) in &domains.exact {
                    let (carried, refused) = by_line.entry(*line).or_default();
                    if hosts.contains_key(host) { carried.push(host.as_str()) } else { *refused += 1 }
                }
                for (line, (carried, refused)) in by_line {
                    if !carried.is_empty() {
                        findings.add(line, Severity::Carried, format!("into the catalogue: {}", some_of(&carried)));
                    }
                    if refused > 0 {
                        findings.add(line, Severity::Note, format!("{refused} of its hosts are let through by no rule of http_access"));
                    }
                }
                for (domain, line) in &domains.below {
                    let (severity, why) =
                        domain_finding(domain, probes.below.get(domain).is_some_and(|probe| !ports(conf, probes, probe).is_empty()));
                    findings.add(*line, severity, why);
                }
            }
            Kind::Ports(ranges) => {
                for (first, last, line) in ranges {
                    if first == last {
                        findings.add(*line, Severity::Carried, "as the ports of the hosts for which the rules allow them");
                    } else {
                        findings.add(
                            *line,
                            Severity::Note,
                            "a range of ports is not carried over: list single ports at a host if it needs them",
                        );
                    }
                }
            }
            Kind::All | Kind::Manager | Kind::Nearby | Kind::Sources(_) | Kind::Methods(_) | Kind::Users(_) | Kind::Unknown { .. } => {}
        }
    }
    hosts
}

fn domain_finding(domain: &str, allowed: bool) -> (Severity, String) {
    let domain_shown = shown(domain);
    if !allowed {
        (Severity::Note, format!("what lies below {domain_shown} is let through by no rule of http_access"))
    } else if is_shared(domain) {
        let why = format!(
            "below {domain_shown} every tenant has names, not you alone: a sensor could be made to send data to a stranger's. \
             Not carried over: list the exact hosts of the portal's endpoint details"
        );
        (Severity::Danger, why)
    } else {
        (Severity::NotCarried, format!("only {domain_shown} itself goes into the catalogue: list the exact hosts below it that are needed"))
    }
}

/// A sensor as the YAML names it.
struct Sensor {
    name: String,
    from: Vec<IpNet>,
    user: Option<String>,
}

impl Sensor {
    fn entry(&self) -> String {
        let mut members = Vec::new();
        if !self.from.is_empty() {
            members.push(format!("from: [{}]", quoted_list(&self.from)));
        }
        if let Some(user) = &self.user {
            members.push(format!("proxy_user: {}", user_entry(user, &self.name)));
        }
        format!("{{ {} }}", members.join(", "))
    }
}

/// A user whose password stands in a file of that name.
fn user_entry(user: &str, file: &str) -> String {
    let file = quoted(&format!("{SECRETS}/{file}.pw"));
    format!("{{ name: {}, password: {{ file: {file} }} }}", quoted(user))
}

/// The sensors, and a finding for each line that names sources or users.
fn sensors(conf: &Conf, probes: &Probes, findings: &mut Findings) -> Vec<Sensor> {
    let mut sensors = SensorList::default();
    // What `deny !list` asks of every later rule.
    let (mut sources, mut users) = (Vec::new(), Vec::new());
    for rule in &conf.access {
        if rule.action == Action::Deny {
            match rule.terms.as_slice() {
                [Term { negated: true, acl: Some(number) }] => match conf.acls.get(*number).map(|acl| &acl.kind) {
                    Some(Kind::Sources(_)) => sources = vec![*number],
                    Some(Kind::Users(_)) => users = vec![*number],
                    Some(_) | None => {}
                },
                terms if terms.iter().all(|term| !term.negated && is(conf, term, |kind| matches!(kind, Kind::All))) => break,
                _ => {}
            }
            continue;
        }
        if !probes.reach(conf, rule) {
            continue;
        }
        let own = |wanted: fn(&Kind) -> bool, else_of: &[usize]| {
            let terms = rule.terms.iter().filter(|term| !term.negated && is(conf, term, wanted));
            let numbers: Vec<usize> = terms.filter_map(|term| term.acl).collect();
            if numbers.is_empty() { else_of.to_vec() } else { numbers }
        };
        let rule_sources = own(|kind| matches!(kind, Kind::Sources(_)), &sources);
        let rule_users = own(|kind| matches!(kind, Kind::Users(_)), &users);
        if rule_sources.len() > 1 {
            findings.add(rule.line, Severity::NotCarried, "a rule that asks for two sources at once gives no sensor");
            continue;
        }
        let source = rule_sources.first().and_then(|number| Some((*number, conf.acls.get(*number)?)));
        sensors.add(conf, rule, source, &rule_users, findings);
    }
    sensors.tell(conf, findings);
    sensors.list
}

/// Sensors on their way into the YAML, which wants names, prefixes and users to be told apart.
#[derive(Default)]
struct SensorList {
    list: Vec<Sensor>,
    names: BTreeSet<String>,
    /// Lists of sources that are used up.
    sources: BTreeSet<usize>,
    prefixes: BTreeSet<IpNet>,
    /// Lines of which something was carried over.
    lines: BTreeSet<usize>,
}

impl SensorList {
    /// What one rule adds: its source as a sensor, or its users, or one user at that source.
    fn add(&mut self, conf: &Conf, rule: &Rule, source: Option<(usize, &Acl)>, users: &[usize], findings: &mut Findings) {
        let mut names: Vec<&str> = Vec::new();
        for acl in users.iter().filter_map(|number| conf.acls.get(*number)) {
            if let Kind::Users(users) = &acl.kind {
                names.extend(users.names.keys().map(String::as_str));
                if users.anybody.is_some() {
                    let why = "any user of Squid's password file may enter here, and their names are not in this file: \
                               give each sensor its proxy_user";
                    findings.add(rule.line, Severity::NotCarried, why);
                }
            }
        }
        let is_new = source.is_some_and(|(number, _)| self.sources.insert(number));
        match (source, names.as_slice()) {
            (None, names) => names.iter().for_each(|user| self.add_user(user, Vec::new())),
            (Some((_, acl)), []) if is_new => {
                let from = self.prefixes_of(acl, findings);
                self.push(&acl.name, from, None);
            }
            (Some(_), []) => {}
            (Some((_, acl)), [user]) if is_new => {
                let from = self.prefixes_of(acl, findings);
                self.add_user(user, from);
            }
            (Some(_), names) => {
                let why = "several users at one source: skyway knows a source as one sensor, and refuses another's user there. \
                           They are known by their passwords alone, from anywhere";
                findings.add(rule.line, Severity::NotCarried, why);
                names.iter().for_each(|user| self.add_user(user, Vec::new()));
            }
        }
    }

    fn add_user(&mut self, user: &str, from: Vec<IpNet>) {
        match self.list.iter_mut().find(|sensor| sensor.user.as_deref() == Some(user)) {
            Some(known) => known.from.extend(from),
            None => self.push(user, from, Some(user)),
        }
    }

    fn push(&mut self, name: &str, from: Vec<IpNet>, user: Option<&str>) {
        if !from.is_empty() || user.is_some() {
            let name = unique(&mut self.names, &usable_name(name));
            self.list.push(Sensor { name, from, user: user.map(str::to_owned) });
        }
    }

    /// The prefixes of a list that can be a sensor's and are no other's.
    fn prefixes_of(&mut self, acl: &Acl, findings: &mut Findings) -> Vec<IpNet> {
        let Kind::Sources(sources) = &acl.kind else { return Vec::new() };
        let mut kept = Vec::new();
        for (prefix, line) in &sources.prefixes {
            if prefix.prefix_len() == 0 {
                findings.add(*line, Severity::NotCarried, "every address there is: name the sensors' own");
            } else if is_no_sensors(prefix) {
                findings.add(*line, Severity::Note, "loopback and 0.0.0.0/8 are no sensor's");
            } else if !self.prefixes.insert(*prefix) {
                findings.add(*line, Severity::Note, format!("{prefix} is a sensor's already"));
            } else {
                if matches!(prefix.network(), IpAddr::V4(_)) && prefix.prefix_len() <= WIDE_PREFIX {
                    let why = format!("all of {prefix} is one sensor: skyway limits, counts and logs by sensor, so name each");
                    findings.add(*line, Severity::Note, why);
                }
                self.lines.insert(*line);
                kept.push(*prefix);
            }
        }
        kept
    }

    /// Puts down what became of each line that names sources or users.
    fn tell(&self, conf: &Conf, findings: &mut Findings) {
        for acl in conf.acls.iter() {
            match &acl.kind {
                Kind::Sources(sources) => {
                    for (_, line) in sources.prefixes.iter().filter(|(_, line)| *line > 0) {
                        if self.lines.contains(line) {
                            findings.add(*line, Severity::Carried, "as the sensor that comes from there");
                        } else {
                            findings.add(*line, Severity::Note, "no sensor is made of it: no rule lets one through by these sources");
                        }
                    }
                }
                Kind::Users(users) => {
                    if let Some(line) = users.anybody {
                        findings.add(line, Severity::NotCarried, "REQUIRED stands for users that only Squid's password file names");
                    }
                    for (user, line) in &users.names {
                        if self.list.iter().any(|sensor| sensor.user.as_ref() == Some(user)) {
                            let why = "as a proxy_user: write the password into the file that the YAML names, readable by its owner alone \
                                       (mode 0600); Squid has only a hash of it";
                            findings.add(*line, Severity::Carried, why);
                        } else {
                            findings.add(*line, Severity::Note, "no sensor is made of it: no rule lets one through by these users");
                        }
                    }
                }
                Kind::All | Kind::Manager | Kind::Nearby | Kind::Domains(_) | Kind::Ports(_) | Kind::Methods(_) | Kind::Unknown { .. } => {}
            }
        }
    }
}

/// A finding for each rule of `http_access`: what became of it.
fn rules(conf: &Conf, probes: &Probes, findings: &mut Findings) {
    let hosts_of = |rule: &Rule| -> BTreeSet<usize> {
        let lists = rule.terms.iter().filter(|term| !term.negated && is(conf, term, |kind| matches!(kind, Kind::Domains(_))));
        lists.filter_map(|term| term.acl).collect()
    };
    let by_client = |rule: &Rule| {
        rule.terms.iter().any(|term| !term.negated && is(conf, term, |kind| matches!(kind, Kind::Sources(_) | Kind::Users(_))))
    };
    let carried: Vec<bool> = conf.access.iter().map(|rule| rule.action == Action::Allow && probes.reach(conf, rule)).collect();
    let mut reached = conf.access.iter().zip(&carried).filter(|(_, carried)| **carried).map(|(rule, _)| hosts_of(rule));
    let first = reached.next();
    let differ = reached.any(|hosts| Some(&hosts) != first.as_ref());
    for (rule, carried) in conf.access.iter().zip(carried) {
        let unknown: Vec<&str> = rule
            .terms
            .iter()
            .filter(|term| is(conf, term, |kind| matches!(kind, Kind::Unknown { .. })))
            .filter_map(|term| Some(conf.acls.get(term.acl?)?.name.as_str()))
            .collect();
        if !unknown.is_empty() {
            let why = format!("the condition {} is not carried over: skyway decides without it", some_of(&unknown));
            findings.add(rule.line, Severity::NotCarried, why);
        }
        match rule.action {
            Action::Allow if carried => {
                findings.add(rule.line, Severity::Carried, "by the catalogue and the sensors");
                if differ && by_client(rule) && !hosts_of(rule).is_empty() {
                    let why = "these clients' own hosts: in skyway every sensor may reach every host of the catalogue";
                    findings.add(rule.line, Severity::NotCarried, why);
                }
            }
            Action::Allow => findings.add(rule.line, Severity::Note, "lets no sensor's CONNECT through: nothing to carry over"),
            Action::Deny if by_client(rule) => {
                let why = "skyway has no rule that refuses one client: keep it out of every sensor's `from`";
                findings.add(rule.line, Severity::NotCarried, why);
            }
            Action::Deny => findings.add(rule.line, Severity::Note, "skyway refuses whatever is not listed: it needs no rule for that"),
        }
    }
}

/// What a rule lets through and should not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Danger {
    Open,
    AnyPort,
    PlainHttp,
    Anybody,
    Manager,
}

/// Asks the rules for what they should refuse, and puts down which rule does not.
fn dangers(conf: &Conf, probes: &Probes, findings: &mut Findings) {
    let unlisted = Request { strict: true, ..Request::connect(&probes.unlisted, HTTPS) };
    let is_open = allows(conf, &unlisted);
    let mut questions = vec![(Danger::Open, unlisted), (Danger::Manager, Request { method: "GET", port: HTTP, manager: true, ..unlisted })];
    for host in probes.all().filter(|host| is_open || **host != probes.unlisted) {
        let request = Request { strict: *host == probes.unlisted, ..Request::connect(host, HTTPS) };
        questions.push((Danger::AnyPort, Request { port: probes.odd_port, ..request }));
        questions.push((Danger::PlainHttp, Request { method: "GET", port: HTTP, ..request }));
        questions.push((Danger::Anybody, Request { client: Client::Stranger, ..request }));
    }
    let mut found: BTreeMap<(usize, Danger), (bool, Vec<&str>)> = BTreeMap::new();
    for (danger, request) in &questions {
        let decision = decide(conf, request);
        if decision.action == Action::Allow {
            let (by_default, hosts) = found.entry((decision.line, *danger)).or_default();
            *by_default |= decision.by_default;
            hosts.push(request.host.as_str());
        }
    }
    for ((line, danger), (by_default, hosts)) in found {
        let because = if by_default { "no rule matches, and Squid then does the opposite of this, the last: it " } else { "" };
        let hosts = some_of(&hosts);
        let what = match danger {
            Danger::Open => "lets CONNECT through to every host there is".to_owned(),
            Danger::AnyPort => {
                format!("lets CONNECT through on any port, {} for one, to {hosts}; {}", probes.odd_port, port_rule(conf, line))
            }
            Danger::PlainHttp => format!("lets plain HTTP through, which is encrypted nowhere, to {hosts}; skyway takes CONNECT alone"),
            Danger::Anybody => {
                format!("asks for no source (no acl of the type src) and no password: whoever reaches the port may go to {hosts}")
            }
            Danger::Manager => "lets clients ask Squid's cache manager, which tells of its settings and of what others do".to_owned(),
        };
        findings.add(line, Severity::Danger, format!("{because}{what}"));
    }
}

/// Where the rule is that would keep CONNECT to some ports, had it not come behind `line`.
fn port_rule(conf: &Conf, line: usize) -> String {
    let limits_ports = |term: &Term| term.negated && is(conf, term, |kind| matches!(kind, Kind::Ports(_)));
    let late = conf.access.iter().find(|rule| rule.line > line && rule.action == Action::Deny && rule.terms.iter().any(limits_ports));
    match late {
        Some(rule) => {
            format!("the rule on line {} that would refuse other ports comes too late: the first that matches decides", rule.line)
        }
        None => "no rule keeps CONNECT to port 443".to_owned(),
    }
}

/// The way out: by the parents alone if there are any, because nothing may leave by a way that nobody wrote down.
fn paths(conf: &Conf, probes: &Probes, findings: &mut Findings) -> Vec<String> {
    let for_all = |rules: &[Rule]| {
        let allowed = |host: &HostName| conf.acls.decide(rules, &Request::connect(host, HTTPS), Action::Deny).action == Action::Allow;
        probes.all().all(allowed)
    };
    let (never_direct, always_direct) = (for_all(&conf.never_direct), for_all(&conf.always_direct));
    for rule in &conf.never_direct {
        if never_direct {
            findings.add(rule.line, Severity::Carried, "nothing leaves but by a parent");
        } else {
            findings.add(rule.line, Severity::NotCarried, "a path is for every host: that some may not leave directly is not carried over");
        }
    }
    for rule in &conf.always_direct {
        if always_direct {
            findings.add(rule.line, Severity::Carried, "the path has no parents");
        } else {
            findings.add(rule.line, Severity::NotCarried, "a path is for every host: that some pass by the parents is not carried over");
        }
    }
    for (index, parent) in conf.parents.iter().enumerate() {
        if always_direct {
            findings.add(parent.line, Severity::NotCarried, "always_direct passes by every parent: the path has none");
            continue;
        }
        findings.add(parent.line, Severity::Carried, "as a parent of the path");
        if index == 0 && !never_direct {
            let why = "no never_direct forbids it, so Squid may send CONNECT straight out, past its parents. The path has parents alone: \
                       add { name: direct, via: direct } behind it if sessions may leave without them";
            findings.add(parent.line, Severity::Danger, why);
        }
    }
    let parents: &[Parent] = if always_direct { &[] } else { &conf.parents };
    if parents.is_empty() && never_direct && !always_direct {
        findings.add(0, Severity::NotCarried, "never_direct without a parent lets nothing leave: no path is written");
        return Vec::new();
    }
    let mut members = vec![format!("name: {}, via: direct", if parents.is_empty() { "direct" } else { "parents" })];
    if !parents.is_empty() {
        let entries: Vec<String> = parents.iter().enumerate().map(|(index, parent)| parent_entry(parent, index + 1)).collect();
        members.push(format!("parents: [{}]", entries.join(", ")));
    }
    if !conf.name_servers.is_empty() {
        members.push(format!("name_servers: [{}]", quoted_list(&conf.name_servers)));
    }
    vec![format!("{{ {} }}", members.join(", "))]
}

fn parent_entry(parent: &Parent, number: usize) -> String {
    let url = quoted(&parent.url);
    match &parent.user {
        None => url,
        Some(user) => format!("{{ url: {url}, auth: {} }}", user_entry(user, &format!("parent-{number}"))),
    }
}

fn listeners(conf: &Conf) -> Vec<String> {
    let mut names = BTreeSet::new();
    let entry = |listener: &Listener| {
        let name = unique(&mut names, listener.name.as_deref().unwrap_or("proxy"));
        format!("{{ name: {}, kind: connect, listen: {} }}", quoted(&name), quoted(&listener.address.to_string()))
    };
    conf.listeners.iter().map(entry).collect()
}

/// `text` as a name that a skyway.yaml takes.
pub(super) fn usable_name(text: &str) -> String {
    let usable = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = text.chars().map(usable).skip_while(|c| matches!(c, '.' | '-')).take(LONGEST_NAME).collect();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

/// `wanted`, numbered if it is taken.
fn unique(taken: &mut BTreeSet<String>, wanted: &str) -> String {
    let mut name = wanted.to_owned();
    let mut number = 1;
    while !taken.insert(name.clone()) {
        number += 1;
        name = format!("{wanted}-{number}");
    }
    name
}

fn is(conf: &Conf, term: &Term, wanted: impl Fn(&Kind) -> bool) -> bool {
    term.acl.and_then(|number| conf.acls.get(number)).is_some_and(|acl| wanted(&acl.kind))
}

/// The first few of `names`, and how many more there are.
fn some_of(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(3).map(|name| shown(name)).collect();
    match names.len() - shown.len() {
        0 => joined(&shown),
        more => format!("{} and {more} more", joined(&shown)),
    }
}

/// Where the YAML looks for passwords, as skyway's documentation has it.
const SECRETS: &str = "/etc/skyway";

/// A prefix so short, or shorter, is hardly one sensor's.
const WIDE_PREFIX: u8 = 16;

/// Most ports that hosts are asked for.
const MAX_PORTS: usize = 8;

/// Characters of a name: the YAML takes 64, and a number may follow.
const LONGEST_NAME: usize = 56;

const HTTP: u16 = 80;
