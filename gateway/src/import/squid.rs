//! A squid.conf, as far as a relay can be told the same: which hosts, which sensors, which way out, where it listens.
//!
//! Squid is a language and skyway's policy is a table, so a translation by directive would lie. The rules of `http_access`
//! are decided instead, in Squid's order, for each host that the file names: what may be reached by CONNECT goes into the
//! catalogue, with its ports. Every directive is answered for: carried over, of no use here, not carried over and why, or
//! dangerous as it stands, which the order of rules easily makes it. Nothing is made up: where Squid allows a whole domain,
//! no host of it is invented, and where it asks nobody who they are, no sensor is.
//!
//! Passwords are neither carried over nor repeated; of directives that may hold one only the name is shown.
//! Deliberately not here: included files and lists in files, conditions (`if`), and what Squid's helpers would say.
//!
//! ```text
//!  text ─► directives ─► Conf: lists, rules, parents, ports ─► carry: decide ─► YAML
//!                          └─────────────────────────────────────┴──────────► findings, one or more a directive
//! ```
//! Source: Squid's src/cf.data.pre and src/cache_cf.cc (lines, comments, continuation).

mod acl;
mod carry;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem;
use std::net::{IpAddr, SocketAddr};

use self::acl::{Acls, Action, Kind, Rule, Term, port_range, source_prefixes};
use super::shown;
use crate::relay::HostName;

/// Reads `text`, the whole file. A text that is no squid.conf gives findings and an empty relay.
pub fn squid(text: &str) -> SquidImport {
    let mut findings = Findings::default();
    let mut conf = Conf::default();
    if text.len() > MAX_TEXT_BYTES {
        findings.add(0, Severity::NotCarried, format!("the file is larger than {} MiB: it is not read", MAX_TEXT_BYTES >> 20));
    } else {
        for directive in directives(text, &mut findings) {
            let words: Vec<&str> = directive.text.split_ascii_whitespace().take_while(|word| !word.starts_with('#')).collect();
            if let [name, arguments @ ..] = words.as_slice() {
                findings.texts.insert(directive.line, display(name, arguments));
                conf.read(directive.line, name, arguments, &mut findings);
            }
        }
    }
    let yaml = carry::carry(&conf, &mut findings);
    SquidImport { yaml, findings: findings.sorted() }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SquidImport {
    /// The section `relay:` of a skyway.yaml.
    pub yaml: String,
    /// Sorted by line, the gravest of a line first.
    pub findings: Vec<Finding>,
}

/// What is to be said of one directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where the directive begins, from 1 on; 0: of the whole file.
    pub line: usize,
    /// The directive as far as it can be shown: no passwords, not long.
    pub text: String,
    pub why: String,
    pub severity: Severity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It stands in the YAML.
    Carried,
    /// A relay has no use for it.
    Note,
    /// It means something that the YAML does not say.
    NotCarried,
    /// As it stands in Squid it lets more through than sensors need.
    Danger,
}

impl Severity {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Carried => "carried over",
            Self::Note => "note",
            Self::NotCarried => "not carried over",
            Self::Danger => "danger",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "the file: {}: {}", self.severity.label(), self.why)
        } else {
            write!(f, "line {}: {}: {}\n    {}", self.line, self.severity.label(), self.why, self.text)
        }
    }
}

#[derive(Default)]
struct Findings {
    /// What is shown of the directive on each line.
    texts: BTreeMap<usize, String>,
    /// In the order in which they are told.
    found: BTreeSet<(usize, Reverse<Severity>, String)>,
}

impl Findings {
    fn add(&mut self, line: usize, severity: Severity, why: impl Into<String>) {
        self.found.insert((line, Reverse(severity), why.into()));
    }

    fn sorted(self) -> Vec<Finding> {
        let text = |line: usize| self.texts.get(&line).cloned().unwrap_or_default();
        self.found
            .iter()
            .map(|(line, Reverse(severity), why)| Finding { line: *line, text: text(*line), why: why.clone(), severity: *severity })
            .collect()
    }
}

/// One directive, its continuation lines joined.
struct Directive {
    /// Of its first line.
    line: usize,
    text: String,
}

/// Splits a file as Squid does: blank lines and comments are skipped even where a line goes on, which it does behind a
/// backslash.
fn directives(text: &str, findings: &mut Findings) -> Vec<Directive> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut directives = Vec::new();
    let mut begun: Option<Directive> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.split('\r').next().unwrap_or_default().trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if directives.len() == MAX_LINES {
            findings.add(0, Severity::NotCarried, format!("from line {} on: the file has more than {MAX_LINES} directives", index + 1));
            return directives;
        }
        let directive = begun.get_or_insert_with(|| Directive { line: index + 1, text: String::new() });
        match line.strip_suffix('\\') {
            Some(part) => directive.text.push_str(part),
            None => {
                directive.text.push_str(line);
                directives.extend(begun.take());
            }
        }
    }
    if let Some(unfinished) = begun {
        findings.add(unfinished.line, Severity::NotCarried, "the file ends behind a backslash: Squid drops this directive");
    }
    directives
}

/// A directive as a finding shows it. What may hold a password or a key is left out.
fn display(name: &str, arguments: &[&str]) -> String {
    let kept = match name {
        "acl" => match arguments.get(1) {
            Some(&("dst" | "dstdomain" | "method" | "port" | "proto" | "proxy_auth" | "src" | "time")) => arguments.len(),
            Some(_) | None => 2,
        },
        "auth_param" => 2,
        // Host, type and ports: the options hold the password.
        "cache_peer" => 4,
        "always_direct"
        | "cache"
        | "dns_nameservers"
        | "http_access"
        | "http_port"
        | "https_port"
        | "if"
        | "include"
        | "never_direct"
        | "tcp_outgoing_address" => arguments.len(),
        _ => 0,
    };
    let mut text = name.to_owned();
    for argument in arguments.iter().take(kept) {
        text.push(' ');
        text.push_str(argument);
    }
    if arguments.len() > kept {
        text.push_str(" …");
    }
    shown(&text)
}

/// What a file says, as far as it matters to a relay.
struct Conf {
    acls: Acls,
    /// Values of all lists together.
    values: usize,
    access: Vec<Rule>,
    never_direct: Vec<Rule>,
    always_direct: Vec<Rule>,
    parents: Vec<Parent>,
    listeners: Vec<Listener>,
    name_servers: Vec<IpAddr>,
}

impl Default for Conf {
    fn default() -> Self {
        Self {
            acls: Acls::built_in(),
            values: 0,
            access: Vec::new(),
            never_direct: Vec::new(),
            always_direct: Vec::new(),
            parents: Vec::new(),
            listeners: Vec::new(),
            name_servers: Vec::new(),
        }
    }
}

/// A `cache_peer` that is a next proxy.
struct Parent {
    line: usize,
    url: String,
    /// To whom a password belongs that the file holds.
    user: Option<String>,
}

struct Listener {
    name: Option<String>,
    address: SocketAddr,
}

impl Conf {
    fn read(&mut self, line: usize, name: &str, arguments: &[&str], findings: &mut Findings) {
        match name {
            "acl" => self.acl(line, arguments, findings),
            "http_access" => {
                let rule = self.rule(line, arguments, self.access.len(), findings);
                self.access.extend(rule);
            }
            "never_direct" => {
                let rule = self.rule(line, arguments, self.never_direct.len(), findings);
                self.never_direct.extend(rule);
            }
            "always_direct" => {
                let rule = self.rule(line, arguments, self.always_direct.len(), findings);
                self.always_direct.extend(rule);
            }
            "http_port" | "ascii_port" => self.http_port(line, arguments, findings),
            "cache_peer" => self.cache_peer(line, arguments, findings),
            "dns_nameservers" => self.dns_nameservers(line, arguments, findings),
            "ssl_bump" if arguments.iter().any(|word| matches!(*word, "bump" | "allow") || word.ends_with("-first")) => {
                findings.add(line, Severity::Danger, BUMP);
            }
            "auth_param" if arguments.first().is_some_and(|scheme| *scheme != "basic") => {
                findings.add(line, Severity::NotCarried, "skyway asks for passwords by Basic authentication alone");
            }
            "auth_param" => findings.add(
                line,
                Severity::Note,
                "Squid asks a helper whether a password is right; skyway compares it with the file of each sensor's proxy_user",
            ),
            _ => match reason_for(name) {
                Some((severity, why)) => findings.add(line, severity, why),
                None => findings.add(line, Severity::NotCarried, format!("{} is not understood", shown(name))),
            },
        }
    }

    fn acl(&mut self, line: usize, arguments: &[&str], findings: &mut Findings) {
        let [name, type_name, values @ ..] = arguments else {
            findings.add(line, Severity::NotCarried, "a list needs a name and a type");
            return;
        };
        let kind = Kind::of(type_name);
        let number = match self.acls.number(name) {
            Some(number) => number,
            None if self.acls.iter().count() >= MAX_ACLS => {
                findings.add(line, Severity::NotCarried, format!("the file has more than {MAX_ACLS} lists"));
                return;
            }
            None => self.acls.add(name, Kind::of(type_name)),
        };
        let Some(acl) = self.acls.get_mut(number) else { return };
        if matches!(acl.kind, Kind::All | Kind::Manager | Kind::Nearby) {
            findings.add(line, Severity::Note, "Squid has this list by itself");
            return;
        }
        if mem::discriminant(&acl.kind) != mem::discriminant(&kind) {
            findings.add(line, Severity::NotCarried, "a list of that name has another type: Squid refuses the file");
            return;
        }
        let mut values = values.iter().skip_while(|value| value.starts_with(['-', '+'])).peekable();
        if values.peek().is_none() {
            findings.add(line, Severity::NotCarried, "the list has no values");
        }
        for value in values {
            self.values += 1;
            if self.values > MAX_VALUES {
                acl.whole = false;
                findings.add(line, Severity::NotCarried, format!("the lists hold more than {MAX_VALUES} values"));
                return;
            }
            if value.starts_with(['"', '\'']) || value.starts_with("parameters(") {
                acl.whole = false;
                findings.add(line, Severity::NotCarried, "values in another file are not read: put them on this line, and import again");
                continue;
            }
            let taken = match &mut acl.kind {
                Kind::Domains(domains) => domain(value).map(|(host, below)| {
                    let first = if below {
                        domains.below.entry(host.to_string()).or_insert(line)
                    } else {
                        domains.exact.entry(host).or_insert(line)
                    };
                    if *first != line {
                        findings.add(line, Severity::Note, format!("{} stands on line {first} already", shown(value)));
                    }
                }),
                Kind::Sources(sources) => source_prefixes(value)
                    .map(|prefixes| {
                        self.values += prefixes.len();
                        sources.extend(prefixes, line);
                    })
                    .map_err(str::to_owned),
                Kind::Ports(ranges) if ranges.len() >= MAX_PORTS => Err(format!("a list of more than {MAX_PORTS} ports is not read whole")),
                Kind::Ports(ranges) => port_range(value)
                    .map(|(first, last)| ranges.push((first, last, line)))
                    .ok_or_else(|| format!("{} is not a port", shown(value))),
                Kind::Methods(methods) => {
                    methods.insert(value.to_ascii_uppercase());
                    Ok(())
                }
                Kind::Users(users) => {
                    let first = if *value == "REQUIRED" {
                        users.anybody.get_or_insert(line)
                    } else {
                        users.names.entry((*value).to_owned()).or_insert(line)
                    };
                    if *first != line {
                        findings.add(line, Severity::Note, format!("{} stands on line {first} already", shown(value)));
                    }
                    Ok(())
                }
                Kind::All | Kind::Manager | Kind::Nearby | Kind::Unknown { .. } => Ok(()),
            };
            if let Err(why) = taken {
                acl.whole = false;
                findings.add(line, Severity::NotCarried, why);
            }
        }
        if matches!(acl.kind, Kind::Unknown { .. }) {
            findings.add(line, Severity::NotCarried, format!("lists of the type {} are not carried over", shown(type_name)));
        }
        if matches!(acl.kind, Kind::Methods(_)) {
            findings.add(line, Severity::Note, "skyway knows one method, CONNECT, and answers every other with 405");
        }
    }

    fn rule(&self, line: usize, arguments: &[&str], rules: usize, findings: &mut Findings) -> Option<Rule> {
        let refuse = |findings: &mut Findings, why: String| {
            findings.add(line, Severity::NotCarried, why);
            None
        };
        let (action, terms) = match arguments {
            ["allow", terms @ ..] => (Action::Allow, terms),
            ["deny", terms @ ..] => (Action::Deny, terms),
            _ => return refuse(findings, "a rule begins with allow or deny".to_owned()),
        };
        if terms.is_empty() {
            return refuse(findings, "the rule names no list: Squid skips it".to_owned());
        }
        if rules >= MAX_RULES || terms.len() > MAX_TERMS {
            return refuse(findings, format!("more than {MAX_RULES} rules, or {MAX_TERMS} lists in one, are not read"));
        }
        let term = |term: &&str| {
            let (negated, name) = term.strip_prefix('!').map_or((false, *term), |name| (true, name));
            Term { negated, acl: self.acls.number(name) }
        };
        let rule = Rule { line, action, terms: terms.iter().map(term).collect() };
        for (word, _) in terms.iter().zip(&rule.terms).filter(|(_, term)| term.acl.is_none()) {
            findings.add(line, Severity::NotCarried, format!("no list above is called {}: Squid refuses the file", shown(word)));
        }
        Some(rule)
    }

    fn http_port(&mut self, line: usize, arguments: &[&str], findings: &mut Findings) {
        let [place, options @ ..] = arguments else {
            findings.add(line, Severity::NotCarried, "a port without its number");
            return;
        };
        let mut name = None;
        let mut others = Vec::new();
        for option in options {
            match option.split_once('=').map_or(*option, |(key, _)| key) {
                "accel" | "vhost" | "vport" | "defaultsite" => {
                    findings.add(line, Severity::NotCarried, "skyway is no reverse proxy: the port is left out");
                    return;
                }
                "intercept" | "transparent" | "tproxy" => {
                    let why = "sessions that are diverted here come without CONNECT: use a listener of the kind sni or transparent";
                    findings.add(line, Severity::NotCarried, why);
                    return;
                }
                "ssl-bump" => findings.add(line, Severity::Danger, BUMP),
                "require-proxy-header" => {
                    let why = "a load balancer sends the PROXY protocol here: name its prefixes at the listener, or its sessions fail";
                    findings.add(line, Severity::NotCarried, why);
                }
                "name" => name = option.strip_prefix("name=").map(carry::usable_name),
                other => others.push(other),
            }
        }
        if !others.is_empty() {
            findings.add(line, Severity::Note, format!("skyway has no use for the options {}", shown(&others.join(", "))));
        }
        if self.listeners.len() >= MAX_LISTENERS {
            findings.add(line, Severity::NotCarried, format!("more than {MAX_LISTENERS} ports"));
            return;
        }
        let address = match place.parse::<u16>() {
            Ok(port) => Some(SocketAddr::from(([0, 0, 0, 0], port))),
            Err(_) => place.parse().ok(),
        };
        match address {
            Some(address) if address.port() != 0 => {
                self.listeners.push(Listener { name, address });
                let why = if *place == address.port().to_string() {
                    "as a listener of the kind connect, on IPv4; Squid listens on IPv6 too: write [::] instead of 0.0.0.0 for both"
                } else {
                    "as a listener of the kind connect"
                };
                findings.add(line, Severity::Carried, why);
            }
            Some(_) | None => findings.add(line, Severity::NotCarried, "skyway listens at ADDRESS:PORT, not at a name"),
        }
    }

    fn cache_peer(&mut self, line: usize, arguments: &[&str], findings: &mut Findings) {
        let [host, kind, port, options @ ..] = arguments else {
            findings.add(line, Severity::NotCarried, "a peer needs a host, a type and a port");
            return;
        };
        if self.parents.len() >= MAX_PARENTS {
            findings.add(line, Severity::NotCarried, format!("more than {MAX_PARENTS} parents"));
            return;
        }
        // The first is the port for ICP.
        let options = options.get(1..).unwrap_or_default();
        if *kind != "parent" || options.contains(&"originserver") {
            findings.add(line, Severity::NotCarried, "only a parent is a next proxy; siblings and origin servers are for caches");
            return;
        }
        let host = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => Some(address.to_string()),
            Ok(IpAddr::V6(address)) => Some(format!("[{address}]")),
            Err(_) => HostName::parse(host).ok().map(|name| name.to_string()),
        };
        let (Some(host), Some(port)) = (host, port.parse::<u16>().ok().filter(|port| *port != 0)) else {
            findings.add(line, Severity::NotCarried, "not a host and a port that skyway can dial");
            return;
        };
        let mut parent = Parent { line, url: format!("http://{host}:{port}"), user: None };
        for option in options {
            let (key, value) = option.split_once('=').unwrap_or((*option, ""));
            match key {
                "login" => parent.user = login(line, value, findings),
                "tls" | "ssl" => {
                    parent.url = format!("https://{host}:{port}");
                    findings.add(
                        line,
                        Severity::NotCarried,
                        "the parent is asked over TLS: its CA and a client certificate are not carried over",
                    );
                }
                "sslflags" if value.contains("DONT_VERIFY") => {
                    findings.add(line, Severity::Danger, "the parent's certificate is not checked: whoever stands between may be it");
                }
                "round-robin" | "weighted-round-robin" | "carp" | "userhash" | "sourcehash" | "weight" | "default" => {
                    findings.add(line, Severity::Note, "skyway asks parents in the order of the list, the next when one fails");
                }
                _ => {}
            }
        }
        self.parents.push(parent);
    }

    fn dns_nameservers(&mut self, line: usize, arguments: &[&str], findings: &mut Findings) {
        if arguments.is_empty() {
            findings.add(line, Severity::NotCarried, "no name server stands here");
        }
        for argument in arguments {
            match argument.parse::<IpAddr>() {
                Ok(address) if self.name_servers.contains(&address) => {
                    findings.add(line, Severity::Note, format!("{address} is a name server already"));
                }
                Ok(_) if self.name_servers.len() >= MAX_NAME_SERVERS => {
                    findings.add(line, Severity::NotCarried, format!("more than {MAX_NAME_SERVERS} name servers"));
                }
                Ok(address) => {
                    self.name_servers.push(address);
                    findings.add(line, Severity::Carried, "as the name servers of the path");
                }
                Err(_) => findings.add(line, Severity::NotCarried, format!("{} is not an address", shown(argument))),
            }
        }
    }
}

/// A value of a list of type `dstdomain`, and whether it stands for all that lies below it as well.
fn domain(value: &str) -> Result<(HostName, bool), String> {
    let (name, below) = value.strip_prefix('.').map_or((value, false), |name| (name, true));
    match HostName::parse(name) {
        Ok(host) => Ok((host, below)),
        Err(error) => Err(format!("{} is not carried over: {error}", shown(value))),
    }
}

/// The user of `login=`, if it is one whose password skyway can be given.
fn login(line: usize, value: &str, findings: &mut Findings) -> Option<String> {
    match value.split_once(':') {
        Some((user, _)) if !user.is_empty() && !user.starts_with('*') && user != "NEGOTIATE" => {
            findings.add(
                line,
                Severity::NotCarried,
                "the parent's password: write it into the file that the YAML names, readable by its owner alone (mode 0600)",
            );
            // Written with the escapes of a URL.
            if user.contains('%') {
                findings.add(line, Severity::NotCarried, "the user's name holds an escape (%20): write the character itself");
            }
            Some(user.to_owned())
        }
        Some(_) | None => {
            let why = "skyway hands no sensor's credentials on, and speaks no Kerberos: give the parent a user of its own, or none";
            findings.add(line, Severity::NotCarried, why);
            None
        }
    }
}

/// Why directives that need no reading are left out.
fn reason_for(name: &str) -> Option<(Severity, &'static str)> {
    use Severity::{NotCarried, Note};
    let reason = match name {
        "include" => (NotCarried, "the file named here is not read: put its lines in place of this one, and import again"),
        "if" | "else" | "endif" => (NotCarried, "conditions are not decided: the lines within are read as though all of them held"),
        "https_port" => (
            NotCarried,
            "a port with TLS needs a certificate: write a listener of the kind connect with tls; sensors themselves ask in the clear",
        ),
        "tcp_outgoing_address" => (
            NotCarried,
            "name the interface that has this address under `underlays`, and let the path leave by it: via: { underlay: NAME }",
        ),
        "ssl_bump" => (NotCarried, "skyway never decrypts: there is nothing to choose"),
        "cache_peer_access" | "cache_peer_domain" | "cache_host_domain" => {
            (NotCarried, "all hosts take the same parents, in the order of the list")
        }
        "adapted_http_access" | "http_access2" | "http_reply_access" | "miss_access" | "reply_body_max_size" => {
            (NotCarried, "a second set of rules is not carried over: the catalogue decides alone")
        }
        "follow_x_forwarded_for" | "proxy_protocol_access" | "acl_uses_indirect_client" => {
            (NotCarried, "a client's address behind a load balancer comes by the PROXY protocol, set at the listener")
        }
        "client_ip_max_connections" | "client_delay_pools" | "delay_access" | "delay_class" | "delay_parameters" | "delay_pools" => {
            (NotCarried, "limits are set by relay.limits")
        }
        "client_lifetime"
        | "connect_timeout"
        | "forward_max_tries"
        | "forward_timeout"
        | "half_closed_clients"
        | "peer_connect_timeout"
        | "read_timeout"
        | "request_start_timeout"
        | "request_timeout"
        | "shutdown_lifetime"
        | "write_timeout"
        | "dead_peer_timeout"
        | "client_idle_pconn_timeout"
        | "server_idle_pconn_timeout"
        | "pconn_timeout" => (Note, "skyway's times have values for sensors from the start: see relay.limits"),
        "adaptation_access"
        | "ecap_enable"
        | "ecap_service"
        | "icap_enable"
        | "icap_service"
        | "url_rewrite_access"
        | "url_rewrite_children"
        | "url_rewrite_program"
        | "external_acl_type" => {
            (NotCarried, "helpers and adaptation are not carried over: what passes is neither judged by others nor changed")
        }
        "cache"
        | "no_cache"
        | "cache_dir"
        | "cache_mem"
        | "cache_replacement_policy"
        | "cache_swap_high"
        | "cache_swap_low"
        | "maximum_object_size"
        | "maximum_object_size_in_memory"
        | "memory_replacement_policy"
        | "minimum_object_size"
        | "quick_abort_max"
        | "quick_abort_min"
        | "quick_abort_pct"
        | "range_offset_limit"
        | "refresh_pattern"
        | "memory_cache_mode"
        | "store_id_program"
        | "collapsed_forwarding"
        | "offline_mode"
        | "negative_ttl"
        | "digest_generation" => (Note, "skyway stores nothing"),
        "access_log" | "buffered_logs" | "cache_access_log" | "cache_log" | "cache_store_log" | "coredump_dir" | "debug_options"
        | "log_mime_hdrs" | "logfile_daemon" | "logfile_rotate" | "logformat" | "mime_table" | "netdb_filename" | "pid_filename"
        | "strip_query_terms" => (Note, "skyway has logs of its own, and keeps no files"),
        "cache_mgr"
        | "deny_info"
        | "email_err_data"
        | "err_html_text"
        | "error_default_language"
        | "error_directory"
        | "hostname_aliases"
        | "httpd_suppress_version_string"
        | "icon_directory"
        | "unique_hostname"
        | "visible_hostname" => (Note, "skyway shows no pages; its gateway has a name of its own"),
        "cache_effective_group" | "cache_effective_user" | "chroot" | "cpu_affinity_map" | "max_filedescriptors" | "umask" | "workers" => {
            (Note, "for skyway this is systemd's, or the container's")
        }
        "cachemgr_passwd" => (Note, "skyway has no cache manager; its admin socket is local"),
        "forwarded_for"
        | "header_access"
        | "relaxed_header_parser"
        | "reply_header_access"
        | "reply_header_replace"
        | "request_body_max_size"
        | "request_header_access"
        | "request_header_add"
        | "request_header_max_size"
        | "request_header_replace"
        | "via" => (Note, "what a sensor sends is inside TLS: skyway neither reads nor changes it"),
        "background_ping_rate"
        | "htcp_access"
        | "htcp_port"
        | "icp_access"
        | "icp_port"
        | "log_icp_queries"
        | "pinger_enable"
        | "pinger_program"
        | "query_icmp"
        | "snmp_access"
        | "snmp_port"
        | "udp_incoming_address"
        | "udp_outgoing_address" => (Note, "skyway asks no other caches and has metrics instead of SNMP"),
        "append_domain"
        | "check_hostnames"
        | "dns_defnames"
        | "dns_packet_max"
        | "dns_retransmit_interval"
        | "dns_timeout"
        | "dns_v4_first"
        | "fqdncache_size"
        | "hosts_file"
        | "ipcache_high"
        | "ipcache_low"
        | "ipcache_size"
        | "negative_dns_ttl"
        | "positive_dns_ttl" => (Note, "skyway resolves the catalogue's full names, and keeps an answer as long as it says"),
        "ftp_epsv" | "ftp_passive" | "ftp_port" | "ftp_user" => (Note, "skyway knows CONNECT alone"),
        "nonhierarchical_direct" | "prefer_direct" => (Note, "skyway leaves by its paths in their order, and not otherwise"),
        _ => return None,
    };
    Some(reason)
}

const BUMP: &str = "decrypts what passes between a sensor and Azure: whoever holds this proxy reads it, and skyway never does";

/// Longest file. Squid's own, with all its comments, has 350 KB.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Most directives. Each makes a finding or more.
const MAX_LINES: usize = 20_000;

/// Most lists.
const MAX_ACLS: usize = 1024;

/// Most values of all lists together. Every host of them is decided by all rules for several ports.
const MAX_VALUES: usize = 2048;

/// Most ports, or ranges of them, in one list.
const MAX_PORTS: usize = 64;

/// Most rules of one kind, and lists in one rule.
const MAX_RULES: usize = 256;
const MAX_TERMS: usize = 16;

/// Most ports of Squid's own, and most parents.
const MAX_LISTENERS: usize = 64;
const MAX_PARENTS: usize = 64;

/// Most name servers; a resolver asks them one after the other.
const MAX_NAME_SERVERS: usize = 8;

#[cfg(test)]
mod tests;
