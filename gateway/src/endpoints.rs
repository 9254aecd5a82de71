//! Where peers are: names become addresses, underlays become interfaces, and both again while a peer does not answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, info, warn};
use tunnel::io::Lanes;
use tunnel::{Endpoint, EndpointSettings, PeerChange, PeerSettings, PeerSnapshot, Snapshot};

use crate::config::UnderlaySettings;
use crate::relay::Resolver;

/// How often an endpoint that did not resolve is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often the names of a peer that is not up are asked for anew.
const REFRESH: Duration = Duration::from_secs(30);

/// What the watcher of one tunnel looks after. Sent anew on every reload.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub peers: Vec<PeerSettings>,
    pub underlays: BTreeMap<String, UnderlaySettings>,
}

/// The last good answer for each name: a name server that falls silent takes no endpoint away.
type Answers = HashMap<String, Vec<IpAddr>>;

/// Keeps the endpoints of one tunnel's peers resolved until `wanted` closes.
pub(crate) async fn watch_endpoints(
    lanes: Arc<Lanes>,
    resolver: Resolver,
    mut wanted: watch::Receiver<Wanted>,
    snapshots: watch::Receiver<Snapshot>,
    told: watch::Sender<Vec<String>>,
) {
    let mut answers = Answers::new();
    // A complaint is made once, not every five seconds.
    let mut complained: Vec<String> = Vec::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        // What needs no asking first: a slow name server must not hold up an address.
        let mut problems = hand_over(&lanes, &now, &answers);
        for host in names(&now.peers) {
            let answer = tokio::select! {
                answer = resolver.resolve(&host) => answer,
                // A reload must not wait behind a name server.
                Ok(()) = wanted.changed() => {
                    wanted.mark_changed();
                    break;
                }
            };
            match answer {
                Ok(mut addresses) => {
                    // Name servers rotate their answers, which is no change of preference.
                    addresses.sort_unstable();
                    answers.insert(host, addresses);
                }
                Err(error) => {
                    let of = |peer: &&PeerSettings| peer.endpoints.iter().any(|endpoint| endpoint.host == host);
                    let peers = now.peers.iter().filter(of).map(|peer| format!("peer {}: endpoint {host}: {error}", peer.name));
                    problems.extend(peers);
                }
            }
        }
        problems.extend(hand_over(&lanes, &now, &answers));
        let complete = problems.is_empty();
        for problem in &problems {
            if !complained.contains(problem) {
                warn!(reason = %problem, "endpoint not usable; trying again");
            }
        }
        for over in complained.iter().filter(|over| !problems.contains(over)) {
            info!(was = %over, "endpoint usable again");
        }
        complained.clone_from(&problems);
        told.send_replace(problems);
        let again = if complete { REFRESH } else { RETRY };
        tokio::select! {
            changed = wanted.changed() => match changed {
                Ok(()) => complained.clear(),
                Err(_) => return,
            },
            () = needed(&snapshots, again, complete) => {}
        }
    }
}

/// Gives the lanes what is known of every peer's endpoints; returns what is wrong with the underlays.
fn hand_over(lanes: &Lanes, wanted: &Wanted, answers: &Answers) -> Vec<String> {
    let mut problems = Vec::new();
    for peer in &wanted.peers {
        let mut missing = Vec::new();
        let endpoints = known(&peer.endpoints, &wanted.underlays, answers, &mut missing);
        problems.extend(missing.into_iter().map(|problem| format!("peer {}: {problem}", peer.name)));
        debug!(peer = peer.public_key.short(), ?endpoints, "endpoints known");
        // Names that have not resolved yet leave what is known alone; a list that was emptied does not.
        if !endpoints.is_empty() || peer.endpoints.is_empty() {
            // A lane that has ended is the supervisor's to notice.
            let _running = lanes.change(&PeerChange::Endpoints(peer.public_key, endpoints));
        }
    }
    problems
}

/// The names among the endpoints, each once.
fn names(peers: &[PeerSettings]) -> BTreeSet<String> {
    let hosts = peers.iter().flat_map(|peer| &peer.endpoints).map(|endpoint| &endpoint.host);
    hosts.filter(|host| host.parse::<IpAddr>().is_err()).cloned().collect()
}

/// All addresses in the order of preference.
fn known(
    endpoints: &[EndpointSettings],
    underlays: &BTreeMap<String, UnderlaySettings>,
    answers: &Answers,
    problems: &mut Vec<String>,
) -> Vec<Endpoint> {
    let mut known = Vec::new();
    for endpoint in endpoints {
        let underlay = endpoint.underlay.as_ref().and_then(|name| underlays.get(name));
        let interface = match underlay.and_then(|underlay| underlay.interface.as_deref()).map(interface_index) {
            None => None,
            Some(Ok(index)) => Some(index),
            Some(Err(problem)) => {
                problems.push(problem);
                continue;
            }
        };
        let literal = endpoint.host.parse::<IpAddr>().ok().map(|address| vec![address]);
        let addresses = literal.or_else(|| answers.get(&endpoint.host).cloned()).unwrap_or_default();
        known.extend(addresses.into_iter().map(|address| Endpoint { address: SocketAddr::new(address, endpoint.port), interface }));
    }
    known
}

/// Waits for `again`, and on while every peer is up by its first endpoint.
async fn needed(snapshots: &watch::Receiver<Snapshot>, again: Duration, complete: bool) {
    loop {
        tokio::time::sleep(again).await;
        // A peer on a standby is up, and its better endpoint may have another address by now.
        let settled = |peer: &PeerSnapshot| peer.answers() && peer.active_endpoint.is_none_or(|active| active == 0);
        if !complete || !snapshots.borrow().peers.iter().all(settled) {
            return;
        }
    }
}

fn interface_index(name: &str) -> Result<u32, String> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).map_err(|_| format!("there is no interface {name}"))?;
    text.trim().parse().map_err(|_| format!("the interface {name} has no index"))
}
