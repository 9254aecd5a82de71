//! Names: whether each name server answers, and what for, for every name that the file needs.
//!
//! The gateway asks its name servers one after another and is content with the first answer; a dead one only makes it slow,
//! until it is the last. Here each is asked by itself, for every name, all at once.
//!
//! The gateway takes names as complete and looks into /etc/hosts first. Both differ from what `ping` does with the same name,
//! and are told.
//!
//! Left out: name servers of a single path, which are asked through that path and tried with it, and names that a parent
//! resolves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use tokio::task::JoinSet;

use super::finding::{Finding, code};
use crate::config::{RelaySettings, Settings};
use crate::relay::{DialError, HostName, ParentHost, ResolveFault, Resolver, address};

/// For one answer. The resolver asks again after two seconds.
const PATIENCE: Duration = Duration::from_millis(2500);
/// More names than these are not asked of each server: a server that knows so many knows the rest.
const MOST_NAMES: usize = 64;
const DNS: u16 = 53;

/// A name that somebody has to resolve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) name: HostName,
    /// For a host of the catalogue: the private prefixes that it may be in. Other names may be anywhere.
    pub(super) allow: Option<Vec<IpNet>>,
}

/// What one server said to one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Addresses(Vec<IpAddr>),
    /// There is no such name, or it has no address.
    NoAddress,
    /// The server says that it cannot or will not.
    Error(String),
    /// Nothing came, or not from it.
    Silent(String),
}

/// What one server said to all of them.
pub(super) type Answers = (SocketAddr, Vec<(Question, Answer)>);

/// What /etc/resolv.conf says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ResolvConf {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) search: Vec<String>,
}

/// Names and addresses of /etc/hosts; names in lower case.
pub(super) type HostsFile = BTreeMap<String, Vec<IpAddr>>;

impl ResolvConf {
    pub(super) fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    }

    /// Source: resolv.conf(5). Of `search` and `domain` the last counts.
    fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    conf.servers
                        .extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()).map(|address| SocketAddr::new(address, DNS)));
                }
                Some("search" | "domain") => conf.search = words.map(str::to_owned).collect(),
                Some(_) | None => {}
            }
        }
        conf
    }
}

pub(super) fn read_hosts_file() -> HostsFile {
    parse_hosts_file(&std::fs::read_to_string("/etc/hosts").unwrap_or_default())
}

/// Source: hosts(5).
fn parse_hosts_file(text: &str) -> HostsFile {
    let mut hosts = HostsFile::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
        for name in words {
            hosts.entry(name.trim_end_matches('.').to_ascii_lowercase()).or_default().push(address);
        }
    }
    hosts
}

/// What the relay asks its name servers: hosts that it dials itself, and the nearest parents.
pub(super) fn of_relay(relay: &RelaySettings) -> Vec<Question> {
    let shared = || relay.paths.iter().filter(|path| path.name_servers.is_empty());
    let mut questions = Vec::new();
    // Where every path has parents, they resolve.
    if shared().any(|path| path.parents.is_empty()) {
        let asked = relay.catalogue.iter().filter(|(_, entry)| entry.addresses.is_empty());
        questions.extend(asked.map(|(name, entry)| Question { name: name.clone(), allow: Some(entry.allow.clone()) }));
    }
    for nearest in shared().flat_map(|path| &path.parents).filter_map(|chain| chain.first()) {
        if let ParentHost::Name(name) = &nearest.host {
            questions.push(Question { name: name.clone(), allow: None });
        }
    }
    each_once(questions)
}

/// What the tunnels ask the host's name servers.
pub(super) fn of_tunnels(settings: &Settings) -> Vec<Question> {
    let endpoints = settings.tunnels.iter().flat_map(|tunnel| &tunnel.peers).flat_map(|peer| &peer.endpoints);
    let names = endpoints.filter_map(|endpoint| HostName::parse(&endpoint.host).ok());
    each_once(names.map(|name| Question { name, allow: None }).collect())
}

/// Of several questions for one name the first.
pub(super) fn each_once(mut questions: Vec<Question>) -> Vec<Question> {
    let mut seen = BTreeSet::new();
    questions.retain(|question| seen.insert(question.name.clone()));
    questions
}

/// Asks each of `servers` every question that /etc/hosts does not answer.
pub(super) async fn check(servers: Vec<SocketAddr>, questions: Vec<Question>, hosts: &HostsFile, search: &[String]) -> Vec<Finding> {
    let mut findings = around(&questions, hosts, search);
    let mut asked: Vec<Question> = questions.into_iter().filter(|question| !hosts.contains_key(question.name.as_str())).collect();
    asked.truncate(MOST_NAMES);
    if asked.is_empty() {
        return findings;
    }
    let mut running = JoinSet::new();
    for (at, server) in servers.iter().copied().enumerate() {
        let asked = asked.clone();
        running.spawn(async move { (at, (server, ask(server, asked).await)) });
    }
    let mut answers: Vec<(usize, Answers)> = running.join_all().await;
    answers.sort_by_key(|(at, _)| *at);
    findings.extend(judge(&answers.into_iter().map(|(_, answers)| answers).collect::<Vec<_>>()));
    findings
}

/// One server, all names at once.
async fn ask(server: SocketAddr, questions: Vec<Question>) -> Vec<(Question, Answer)> {
    let resolver = match Resolver::new(&[server]) {
        Ok(resolver) => resolver,
        Err(error) => return questions.into_iter().map(|question| (question, Answer::Silent(error.to_string()))).collect(),
    };
    let mut running = JoinSet::new();
    for question in questions {
        let resolver = resolver.clone();
        running.spawn(async move {
            let answer = match tokio::time::timeout(PATIENCE, resolver.resolve(question.name.as_str())).await {
                Ok(Ok(addresses)) => Answer::Addresses(addresses),
                Ok(Err(error)) => Answer::of(&error),
                Err(_) => Answer::Silent("no answer in time".to_owned()),
            };
            (question, answer)
        });
    }
    let mut answers = running.join_all().await;
    answers.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    answers
}

impl Answer {
    fn of(error: &DialError) -> Self {
        let DialError::Resolve { cause } = error else { return Self::Silent(error.to_string()) };
        match cause {
            ResolveFault::NoName | ResolveFault::NoAddress => Self::NoAddress,
            ResolveFault::Refused(response) => Self::Error(response.clone()),
            ResolveFault::Silent(why) => Self::Silent(why.clone()),
        }
    }
}

/// What the answers say; the servers in their order, at least one name each.
pub(super) fn judge(answers: &[Answers]) -> Vec<Finding> {
    if answers.is_empty() {
        return vec![Finding::problem(
            code::NAME_SERVER,
            "name servers",
            "there is none: /etc/resolv.conf names none that could be asked, and neither does the file",
            "write them into relay.name_servers, or into /etc/resolv.conf",
        )];
    }
    let is_silent = |answer: &Answer| matches!(answer, Answer::Silent(_));
    let is_dead = |(_, answers): &Answers| answers.iter().all(|(_, answer)| is_silent(answer));
    let all_dead = answers.iter().all(is_dead);
    let mut findings = Vec::new();
    for server in answers {
        let (address, said) = server;
        let subject = format!("name server {}", shown(*address));
        if is_dead(server) {
            let why = said.iter().find_map(|(_, answer)| if let Answer::Silent(why) = answer { Some(why.as_str()) } else { None });
            let what = format!("answers nothing ({})", why.unwrap_or("no answer in time"));
            let next = format!(
                "let UDP and TCP {} to {} pass, or name another in relay.name_servers or /etc/resolv.conf",
                address.port(),
                address.ip()
            );
            findings.push(if all_dead {
                Finding::problem(code::NAME_SERVER, subject, format!("{what}, and no other does: no name can be resolved"), next)
            } else {
                Finding::warning(code::NAME_SERVER, subject, format!("{what}: each look-up waits for it first"), next)
            });
            continue;
        }
        let good = said.iter().filter(|(_, answer)| matches!(answer, Answer::Addresses(_))).count();
        findings.push(Finding::good(code::NAME_SERVER, &subject, format!("answers; {good} of {} names have an address", said.len())));
        for (question, answer) in said {
            let subject = format!("{subject}, {}", question.name);
            let elsewhere = answers
                .iter()
                .any(|(_, said)| said.iter().any(|(other, answer)| other.name == question.name && matches!(answer, Answer::Addresses(_))));
            findings.extend(judge_answer(subject, question, answer, elsewhere));
        }
    }
    findings
}

/// `elsewhere`: another server has an address for it.
fn judge_answer(subject: String, question: &Question, answer: &Answer, elsewhere: bool) -> Option<Finding> {
    let (what, next) = match answer {
        Answer::Addresses(addresses) => return forbidden(subject, question, addresses),
        Answer::NoAddress => (
            "there is no such name, or it has no address".to_owned(),
            "compare it with the portal's endpoint details; a private zone has to be linked to the network of the name server",
        ),
        Answer::Error(response) => (format!("the server answers with an error: {response}"), "look at the name server, or ask another"),
        Answer::Silent(why) => {
            (format!("no answer, though the server answers other names ({why})"), "run skyway doctor again; then look at the name server")
        }
    };
    Some(if elsewhere {
        Finding::warning(code::NAME_NOT_RESOLVED, subject, format!("{what}; another name server has an address"), next)
    } else {
        Finding::problem(code::NAME_NOT_RESOLVED, subject, what, next)
    })
}

/// A single bad address condemns the name, as in the relay.
fn forbidden(subject: String, question: &Question, addresses: &[IpAddr]) -> Option<Finding> {
    let allow = question.allow.as_ref()?;
    let bad = addresses.iter().map(IpAddr::to_canonical).find_map(|address| Some((address, address::check(address, allow).err()?)));
    bad.map(|(address, why)| {
        Finding::problem(
            code::ADDRESS_FORBIDDEN,
            subject,
            format!("resolves to {address}, which {why}"),
            "with Private Link list the endpoint's prefix in `allow` of that host; otherwise somebody answers falsely: ask another name server",
        )
    })
}

/// What decides before any name server is asked.
fn around(questions: &[Question], hosts: &HostsFile, search: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for question in questions {
        let name = question.name.as_str();
        if let Some(addresses) = hosts.get(name) {
            let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let subject = format!("/etc/hosts, {name}");
            findings.push(forbidden(subject.clone(), question, addresses).unwrap_or_else(|| {
                Finding::note(
                    code::HOSTS_FILE,
                    subject,
                    format!("stands there as {}, so no name server is asked", shown.join(", ")),
                    "take it out unless that is meant: it does not follow when the host moves",
                )
            }));
        } else if let (false, Some(domain)) = (name.contains('.'), search.first()) {
            findings.push(Finding::warning(
                code::SEARCH_DOMAIN,
                name,
                "has no domain, and skyway takes names as complete, unlike ping",
                format!("write {name}.{domain}, if that is meant"),
            ));
        }
    }
    findings
}

fn shown(server: SocketAddr) -> String {
    if server.port() == DNS { server.ip().to_string() } else { server.to_string() }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::finding::Severity;
    use super::*;

    fn question(name: &str) -> Question {
        Question { name: HostName::parse(name).expect("a name"), allow: Some(Vec::new()) }
    }

    fn said(server: u8, answers: &[(&str, Answer)]) -> Answers {
        let server = SocketAddr::new(Ipv4Addr::new(10, 0, 0, server).into(), DNS);
        (server, answers.iter().map(|(name, answer)| (question(name), answer.clone())).collect())
    }

    fn public() -> Answer {
        Answer::Addresses(vec![Ipv4Addr::new(20, 50, 1, 4).into()])
    }

    fn silent() -> Answer {
        Answer::Silent("no answer in time".into())
    }

    fn bad(answers: &[Answers]) -> Vec<(&'static str, Severity, String)> {
        let findings = judge(answers);
        let bad = findings.into_iter().filter(|finding| finding.severity > Severity::Good);
        bad.map(|finding| (finding.code, finding.severity, finding.subject)).collect()
    }

    #[test]
    fn a_server_that_answers_nothing_is_dead() {
        let dead = said(1, &[("a.example", silent()), ("b.example", silent())]);
        let good = said(2, &[("a.example", public()), ("b.example", public())]);
        assert_eq!(bad(std::slice::from_ref(&dead)), [(code::NAME_SERVER, Severity::Problem, "name server 10.0.0.1".to_owned())]);
        assert_eq!(bad(&[dead, good.clone()]), [(code::NAME_SERVER, Severity::Warning, "name server 10.0.0.1".to_owned())]);
        assert!(bad(&[good]).is_empty());
        assert!(matches!(&judge(&[])[..], [only] if only.code == code::NAME_SERVER && only.severity == Severity::Problem));
    }

    #[test]
    fn a_name_that_does_not_resolve_is_a_problem_unless_another_server_has_it() {
        let missing = said(1, &[("a.example", public()), ("b.example", Answer::NoAddress)]);
        let subject = "name server 10.0.0.1, b.example".to_owned();
        assert_eq!(bad(std::slice::from_ref(&missing)), [(code::NAME_NOT_RESOLVED, Severity::Problem, subject.clone())]);
        let good = said(2, &[("a.example", public()), ("b.example", public())]);
        assert_eq!(bad(&[missing, good]), [(code::NAME_NOT_RESOLVED, Severity::Warning, subject)]);
        for answer in [silent(), Answer::Error("Server Failure".into())] {
            let one = said(1, &[("a.example", public()), ("b.example", answer)]);
            assert!(matches!(&bad(&[one])[..], [(code::NAME_NOT_RESOLVED, Severity::Problem, _)]));
        }
    }

    #[test]
    fn an_address_that_may_not_be_dialled_is_a_problem() {
        let private = Answer::Addresses(vec![Ipv4Addr::new(20, 50, 1, 4).into(), Ipv4Addr::new(10, 1, 2, 3).into()]);
        let (server, mut answers) = said(1, &[("a.example", private)]);
        assert!(matches!(&bad(&[(server, answers.clone())])[..], [(code::ADDRESS_FORBIDDEN, Severity::Problem, _)]));
        answers[0].0.allow = Some(vec!["10.1.0.0/16".parse().expect("a prefix")]);
        assert!(bad(&[(server, answers.clone())]).is_empty());
        answers[0].0.allow = None;
        assert!(bad(&[(server, answers)]).is_empty(), "a parent may be anywhere");
    }

    /// A server that says "no such name" was once told as one that answers nothing.
    #[test]
    fn a_server_that_knows_no_such_name_is_not_silent() {
        let of = |cause: ResolveFault| Answer::of(&DialError::Resolve { cause });
        assert_eq!(of(ResolveFault::NoName), Answer::NoAddress);
        assert_eq!(of(ResolveFault::NoAddress), Answer::NoAddress);
        assert_eq!(of(ResolveFault::Refused("Server Failure".into())), Answer::Error("Server Failure".into()));
        assert!(matches!(of(ResolveFault::Silent("timeout".into())), Answer::Silent(why) if why.contains("timeout")));
    }

    #[test]
    fn the_hosts_file_and_search_domains_are_told() {
        let hosts =
            parse_hosts_file("127.0.0.1 localhost\n20.50.1.4\tHub.Example. hub # old\n::1 localhost\nnonsense\n10.0.0.1 # nobody\n");
        assert_eq!(hosts["hub.example"], [IpAddr::from(Ipv4Addr::new(20, 50, 1, 4))]);
        assert_eq!(hosts["localhost"].len(), 2);
        let search = ["plant.example".to_owned()];
        let questions = ["hub.example", "localhost", "proxy", "a.example"].map(question);
        let told: Vec<(&str, String)> =
            around(&questions, &hosts, &search).into_iter().map(|finding| (finding.code, finding.next)).collect();
        assert!(matches!(&told[..], [(code::HOSTS_FILE, _), (code::ADDRESS_FORBIDDEN, _), (code::SEARCH_DOMAIN, _)]), "{told:?}");
        assert!(told[2].1.contains("proxy.plant.example"));
        assert!(around(&questions[2..3], &hosts, &[]).is_empty(), "nothing would complete it");
    }

    #[test]
    fn reads_resolv_conf() {
        let text = "# by hand\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\nnameserver 2001:db8::53\nsearch a.example b.example\noptions ndots:2\n";
        let conf = ResolvConf::parse(text);
        assert_eq!(conf.servers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.2:53", "[2001:db8::53]:53"]);
        assert_eq!(conf.search, ["a.example", "b.example"]);
        assert_eq!(ResolvConf::parse(""), ResolvConf::default());
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_at_is_a_dead_server() {
        let taken = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
        let server = taken.local_addr().expect("an address");
        drop(taken);
        let findings = check(vec![server], vec![question("hub.example")], &HostsFile::new(), &[]).await;
        assert!(matches!(&findings[..], [only] if only.code == code::NAME_SERVER && only.severity == Severity::Problem), "{findings:?}");
    }
}
