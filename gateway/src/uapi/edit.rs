//! What a tunnel shall be once a `set` has been carried out. Pure: the plan and the supervisor make it so.
//!
//! A request is one step: either all of it can be had, or nothing is changed. Within it, order counts as in the kernel: an
//! allowed IP belongs to the last peer that claimed it, and is taken from whoever had it.
//!
//! What this protocol has no word for stays with a peer as long as its key comes back in the same request: its name in the
//! YAML, cloud, roaming, probe. `wg setconf` and `replace_peers=true` therefore make no stranger of a peer that they list again,
//! and its session stands. A peer that has announced its next key goes by either. A probe ends if its target is taken from the peer.
//!
//! Left out: whether the running gateway can take the outcome without a restart, which the plan knows.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tunnel::io::MARK;
use tunnel::{Cloud, EndpointSettings, PeerSettings, PrivateKey, PublicKey, TunnelSettings};

use super::parse::{AllowedIpEdit, PeerEdit, SetRequest};

/// Why a request that was understood is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("listen_port: the tunnel listens on {present}, not {asked}; another port takes another `listen` in the YAML and a restart")]
    ListenPort { asked: u16, present: u16 },
    #[error("fwmark: outer datagrams bear the mark {MARK}, which keeps them out of the tunnel's own routes, and never {asked}")]
    Fwmark { asked: u32 },
    #[error("peer {peer}: that is a low-order key: whoever used it would share its secrets with everybody")]
    LowOrder { peer: String },
}

impl Refusal {
    /// For the answer, positive.
    pub(super) const fn errno(&self) -> i32 {
        match self {
            Self::ListenPort { .. } | Self::Fwmark { .. } => libc::EOPNOTSUPP,
            Self::LowOrder { .. } => libc::EINVAL,
        }
    }
}

/// The tunnel's settings after `set`. Equal to `settings` if it asks for what is.
///
/// Zero as port or mark is taken for nothing said: `wg setconf` and `wg syncconf` send it if their file has none.
pub(super) fn apply(settings: &TunnelSettings, set: &SetRequest) -> Result<TunnelSettings, Refusal> {
    let present = settings.listen.port();
    if let Some(asked) = set.listen_port
        && asked != 0
        && asked != present
    {
        return Err(Refusal::ListenPort { asked, present });
    }
    if let Some(asked) = set.fwmark
        && asked != 0
        && asked != MARK
    {
        return Err(Refusal::Fwmark { asked });
    }
    let private_key = set.private_key.as_ref().unwrap_or(&settings.private_key);
    let own = private_key.public_key();
    let mut table = Table::new(&settings.peers);
    if set.replace_peers {
        table.clear();
    }
    // A gateway is no peer of its own: silently so, as in the kernel and in wireguard-go, since one file may go to both sides.
    table.remove(&own);
    for edit in set.peers.iter().filter(|edit| edit.public_key != own) {
        table.edit(edit, private_key)?;
    }
    let mut desired = settings.clone();
    desired.private_key.clone_from(private_key);
    desired.peers = table.into_peers();
    Ok(desired)
}

/// The peers while they are being edited. Every step takes the same time however many allowed IPs there are.
struct Table<'a> {
    /// Those of the running settings, by either key.
    known: HashMap<PublicKey, &'a PeerSettings>,
    /// By slot; a slot is not used again.
    peers: Vec<Option<Edited>>,
    /// By either key.
    by_key: HashMap<PublicKey, usize>,
    owners: HashMap<IpNet, usize>,
    names: HashSet<String>,
}

/// A peer while it is being edited.
struct Edited {
    /// All but its allowed IPs, which are as they were here.
    settings: PeerSettings,
    /// Those that it had or was given, in order. Some may have gone since: `owners` tells.
    allowed_ips: Vec<IpNet>,
}

impl<'a> Table<'a> {
    fn new(running: &'a [PeerSettings]) -> Self {
        let mut table = Self {
            known: running.iter().flat_map(|peer| keys(peer).map(move |key| (key, peer))).collect(),
            peers: Vec::with_capacity(running.len()),
            by_key: HashMap::new(),
            owners: HashMap::new(),
            names: running.iter().map(|peer| peer.name.clone()).collect(),
        };
        for peer in running {
            let slot = table.insert(peer.clone());
            table.owners.extend(peer.allowed_ips.iter().map(|prefix| (*prefix, slot)));
        }
        table
    }

    fn clear(&mut self) {
        self.peers.clear();
        self.by_key.clear();
        self.owners.clear();
    }

    /// The slot of the peer, whose allowed IPs are not claimed yet.
    fn insert(&mut self, settings: PeerSettings) -> usize {
        let slot = self.peers.len();
        self.by_key.extend(keys(&settings).map(|key| (key, slot)));
        let allowed_ips = settings.allowed_ips.to_vec();
        self.peers.push(Some(Edited { settings, allowed_ips }));
        slot
    }

    fn remove(&mut self, key: &PublicKey) {
        let Some(slot) = self.by_key.get(key).copied() else { return };
        let Some(peer) = self.peers.get_mut(slot).and_then(Option::take) else { return };
        for key in keys(&peer.settings) {
            self.by_key.remove(&key);
        }
        for prefix in &peer.allowed_ips {
            release(&mut self.owners, prefix, slot);
        }
    }

    fn edit(&mut self, edit: &PeerEdit, own: &PrivateKey) -> Result<(), Refusal> {
        if edit.remove {
            self.remove(&edit.public_key);
            return Ok(());
        }
        let slot = match self.by_key.get(&edit.public_key).copied() {
            Some(slot) => slot,
            None if edit.update_only => return Ok(()),
            None => self.add(edit.public_key, own)?,
        };
        let Some(peer) = self.peers.get_mut(slot).and_then(Option::as_mut) else { return Ok(()) };
        let settings = &mut peer.settings;
        if let Some(preshared_key) = &edit.preshared_key {
            settings.preshared_key.clone_from(preshared_key);
        }
        if let Some(address) = edit.endpoint {
            settings.endpoints = vec![endpoint(&settings.endpoints, address)];
        }
        if let Some(secs) = edit.keepalive_secs {
            settings.keepalive = (secs != 0).then(|| Duration::from_secs(secs.into()));
        }
        for change in &edit.allowed_ips {
            match change {
                AllowedIpEdit::Add(prefix) => {
                    if self.owners.insert(*prefix, slot) != Some(slot) {
                        peer.allowed_ips.push(*prefix);
                    }
                }
                AllowedIpEdit::Remove(prefix) => {
                    release(&mut self.owners, prefix, slot);
                }
                AllowedIpEdit::RemoveAll => {
                    for prefix in peer.allowed_ips.drain(..) {
                        release(&mut self.owners, &prefix, slot);
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes a peer and returns its slot.
    fn add(&mut self, key: PublicKey, own: &PrivateKey) -> Result<usize, Refusal> {
        let peer = match self.known.get(&key).copied() {
            Some(known) => {
                PeerSettings { preshared_key: None, endpoints: Vec::new(), allowed_ips: Arc::default(), keepalive: None, ..known.clone() }
            }
            None if !own.agrees_with(&key) => return Err(Refusal::LowOrder { peer: key.short() }),
            None => new_peer(self.new_name(&key), key),
        };
        Ok(self.insert(peer))
    }

    /// `wg-` and the first eight characters of the key; with the whole key, should another peer have that name.
    fn new_name(&mut self, key: &PublicKey) -> String {
        let short = format!("wg-{}", key.short());
        let name = if self.names.contains(&short) { format!("wg-{key}") } else { short };
        self.names.insert(name.clone());
        name
    }

    fn into_peers(self) -> Vec<PeerSettings> {
        let Self { known, peers, mut owners, .. } = self;
        let mut kept = Vec::with_capacity(peers.len());
        for (slot, peer) in peers.into_iter().enumerate() {
            let Some(Edited { mut settings, mut allowed_ips }) = peer else { continue };
            // Taken from the owners as it is found, so that a prefix which came, went and came again is listed once.
            allowed_ips.retain(|prefix| release(&mut owners, prefix, slot));
            settings.allowed_ips = match known.get(&settings.public_key) {
                // The same list stays the same memory: whoever compares it is done at once.
                Some(before) if *before.allowed_ips == *allowed_ips => Arc::clone(&before.allowed_ips),
                Some(_) | None => {
                    settings.probe = settings.probe.take().filter(|probe| allowed_ips.iter().any(|prefix| prefix.contains(&probe.target)));
                    allowed_ips.into()
                }
            };
            kept.push(settings);
        }
        kept
    }
}

/// The keys that a peer goes by.
fn keys(peer: &PeerSettings) -> impl Iterator<Item = PublicKey> + use<> {
    std::iter::once(peer.public_key).chain(peer.next_public_key)
}

/// Takes `prefix` from `slot`; false if it is somebody else's, or nobody's.
fn release(owners: &mut HashMap<IpNet, usize>, prefix: &IpNet, slot: usize) -> bool {
    owners.get(prefix) == Some(&slot) && owners.remove(prefix).is_some()
}

/// A peer of which nothing but its key has been said.
fn new_peer(name: String, public_key: PublicKey) -> PeerSettings {
    PeerSettings {
        name,
        public_key,
        next_public_key: None,
        preshared_key: None,
        endpoints: Vec::new(),
        allowed_ips: Arc::default(),
        keepalive: None,
        roaming: true,
        cloud: Cloud::default(),
        probe: None,
    }
}

/// `address` as the only endpoint. If it is among `present`, the underlay that is written there stays.
fn endpoint(present: &[EndpointSettings], address: SocketAddr) -> EndpointSettings {
    let same = |known: &&EndpointSettings| known.port == address.port() && known.host.parse::<IpAddr>() == Ok(address.ip());
    present.iter().find(same).cloned().unwrap_or_else(|| EndpointSettings {
        underlay: None,
        host: address.ip().to_string(),
        port: address.port(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tunnel::ProbeSettings;

    use super::super::parse::{Request, RequestReader};
    use super::*;

    /// A tunnel with the peers `one` and `two`.
    struct Example {
        settings: TunnelSettings,
        one: PublicKey,
        two: PublicKey,
    }

    fn example() -> Example {
        let folder = tempfile::tempdir().expect("a folder");
        for (file, key) in [("key", PrivateKey::generate().to_base64()), ("psk", PrivateKey::generate().to_base64())] {
            let path = folder.path().join(file);
            std::fs::write(&path, key.as_str()).expect("written");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
        }
        let (one, two) = (PrivateKey::generate().public_key(), PrivateKey::generate().public_key());
        let text = format!(
            "version: 1
gateway: {{ name: a }}
underlays: {{ wan: {{ interface: ens6 }} }}
tunnels:
  azure:
    private_key: {{ file: key }}
    listen: 51820
    addresses: [10.99.0.1/30]
    peers:
      one:
        public_key: {one}
        preshared_key: {{ file: psk }}
        endpoints: [ {{ via: wan, address: \"192.0.2.1:51820\" }}, \"one.example.net:51820\" ]
        allowed_ips: [10.99.0.2/32, 10.20.0.0/16, 10.30.0.0/16]
        keepalive: 25s
        roaming: off
        cloud: gcp
      two:
        public_key: {two}
        allowed_ips: [10.40.0.0/16]
"
        );
        let loaded = crate::config::parse(text, folder.path());
        let settings = loaded.settings.unwrap_or_else(|| panic!("{}", loaded.diagnostics.render("example", &loaded.source, false)));
        Example { settings: settings.tunnels.into_iter().next().expect("a tunnel"), one, two }
    }

    fn hex(key: &PublicKey) -> String {
        key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn request(lines: &str) -> SetRequest {
        match RequestReader::new().handle_bytes(format!("set=1\n{lines}\n").as_bytes()) {
            (_, Some(Ok(Request::Set(set)))) => set,
            other => panic!("{lines:?}: {other:?}"),
        }
    }

    #[track_caller]
    fn applied(settings: &TunnelSettings, lines: &str) -> TunnelSettings {
        apply(settings, &request(lines)).unwrap_or_else(|refusal| panic!("{lines:?}: {refusal}"))
    }

    #[track_caller]
    fn allowed(settings: &TunnelSettings, key: &PublicKey) -> Vec<String> {
        settings.peer(key).expect("the peer").allowed_ips.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_said_changes_nothing() {
        let Example { settings, one, .. } = example();
        for lines in [
            String::new(),
            "listen_port=51820\nfwmark=5359\n".to_owned(),
            "listen_port=0\nfwmark=0\n".to_owned(),
            format!("private_key={}\n", "0".repeat(64)),
            format!("public_key={}\n", hex(&one)),
            format!("public_key={}\nallowed_ip=10.20.0.0/16\npersistent_keepalive_interval=25\n", hex(&one)),
            format!("public_key={}\nremove=true\n", "07".repeat(32)),
            format!("public_key={}\nupdate_only=true\nallowed_ip=10.20.0.0/16\n", "07".repeat(32)),
        ] {
            assert!(applied(&settings, &lines) == settings, "{lines:?}");
        }
    }

    #[test]
    fn everything_of_a_peer_can_be_set_and_what_is_not_said_stays() {
        let Example { settings, one, two } = example();
        let desired = applied(
            &settings,
            &format!(
                "public_key={}\npreshared_key={}\nendpoint=[2001:db8::1]:7\npersistent_keepalive_interval=0\nallowed_ip=10.50.0.0/16\n",
                hex(&one),
                "0".repeat(64)
            ),
        );
        let before = settings.peer(&one).expect("the peer");
        let mut expected = before.clone();
        expected.preshared_key = None;
        expected.endpoints = vec![EndpointSettings { underlay: None, host: "2001:db8::1".into(), port: 7 }];
        expected.keepalive = None;
        expected.allowed_ips = before.allowed_ips.iter().copied().chain(["10.50.0.0/16".parse().expect("a prefix")]).collect();
        assert_eq!(desired.peers.first(), Some(&expected));
        assert_eq!(desired.peer(&two), settings.peer(&two));

        let back =
            applied(&desired, &format!("public_key={}\npersistent_keepalive_interval=7\npreshared_key={}\n", hex(&one), "11".repeat(32)));
        let peer = back.peer(&one).expect("the peer");
        assert_eq!(peer.keepalive, Some(Duration::from_secs(7)));
        assert!(peer.preshared_key.is_some() && peer.preshared_key != before.preshared_key);
    }

    #[test]
    fn an_endpoint_that_is_written_keeps_its_underlay() {
        let Example { settings, one, .. } = example();
        let desired = applied(&settings, &format!("public_key={}\nendpoint=192.0.2.1:51820\n", hex(&one)));
        let endpoints = &desired.peer(&one).expect("the peer").endpoints;
        assert_eq!(*endpoints, [EndpointSettings { underlay: Some("wan".into()), host: "192.0.2.1".into(), port: 51820 }]);
    }

    #[test]
    fn a_new_peer_is_named_after_its_key_and_comes_last() {
        let Example { settings, .. } = example();
        let key = PrivateKey::generate().public_key();
        let desired = applied(&settings, &format!("public_key={}\nallowed_ip=10.60.0.0/16\n", hex(&key)));
        let mut expected = new_peer(format!("wg-{}", key.short()), key);
        expected.allowed_ips = Arc::from(["10.60.0.0/16".parse::<IpNet>().expect("a prefix")]);
        assert_eq!(desired.peers.last(), Some(&expected));
        assert_eq!(desired.peers.len(), 3);
        assert!(expected.roaming && expected.endpoints.is_empty() && expected.keepalive.is_none());
        assert!(applied(&desired, &format!("public_key={}\nremove=true\n", hex(&key))) == settings);
    }

    #[test]
    fn a_name_that_is_taken_is_not_given_twice() {
        let Example { mut settings, .. } = example();
        let key = PrivateKey::generate().public_key();
        settings.peers[0].name = format!("wg-{}", key.short());
        let desired = applied(&settings, &format!("public_key={}\n", hex(&key)));
        assert_eq!(desired.peers.last().map(|peer| peer.name.clone()), Some(format!("wg-{key}")));
    }

    #[test]
    fn an_allowed_ip_goes_to_whoever_claims_it_last() {
        let Example { settings, one, two } = example();
        let desired = applied(&settings, &format!("public_key={}\nallowed_ip=10.20.0.0/16\n", hex(&two)));
        assert_eq!(allowed(&desired, &one), ["10.99.0.2/32", "10.30.0.0/16"]);
        assert_eq!(allowed(&desired, &two), ["10.40.0.0/16", "10.20.0.0/16"]);
        // There and back in one request: it is listed once.
        let lines = format!("public_key={}\nallowed_ip=10.20.0.0/16\npublic_key={}\nallowed_ip=10.20.0.0/16\n", hex(&two), hex(&one));
        let desired = applied(&settings, &lines);
        assert_eq!(allowed(&desired, &one), ["10.99.0.2/32", "10.20.0.0/16", "10.30.0.0/16"]);
        assert_eq!(allowed(&desired, &two), ["10.40.0.0/16"]);
        // A more specific prefix is another prefix.
        let desired = applied(&settings, &format!("public_key={}\nallowed_ip=10.20.4.0/24\n", hex(&two)));
        assert_eq!(allowed(&desired, &one), ["10.99.0.2/32", "10.20.0.0/16", "10.30.0.0/16"]);
    }

    #[test]
    fn allowed_ips_are_replaced_and_taken_away() {
        let Example { settings, one, two } = example();
        let replace = |lines: &str| format!("public_key={}\n{lines}", hex(&one));
        let desired = applied(&settings, &replace("replace_allowed_ips=true\nallowed_ip=10.30.0.0/16\nallowed_ip=10.70.0.0/16\n"));
        assert_eq!(allowed(&desired, &one), ["10.30.0.0/16", "10.70.0.0/16"]);
        let desired = applied(&settings, &replace("allowed_ip=10.70.0.0/16\nreplace_allowed_ips=true\n"));
        assert_eq!(allowed(&desired, &one), Vec::<String>::new());
        let desired = applied(&settings, &replace("allowed_ip=-10.20.0.0/16\nallowed_ip=-10.80.0.0/16\n"));
        assert_eq!(allowed(&desired, &one), ["10.99.0.2/32", "10.30.0.0/16"]);
        // What is another's is not taken away.
        let desired = applied(&settings, &replace("allowed_ip=-10.40.0.0/16\n"));
        assert_eq!(allowed(&desired, &two), ["10.40.0.0/16"]);
        let desired = applied(&settings, &replace("allowed_ip=-10.20.0.0/16\nallowed_ip=10.20.0.0/16\n"));
        assert_eq!(allowed(&desired, &one), ["10.99.0.2/32", "10.20.0.0/16", "10.30.0.0/16"]);
    }

    #[test]
    fn replaced_peers_keep_what_the_protocol_has_no_word_for() {
        let Example { settings, one, two } = example();
        assert!(applied(&settings, "replace_peers=true\n").peers.is_empty());
        let new = PrivateKey::generate().public_key();
        let lines = format!("replace_peers=true\npublic_key={}\npublic_key={}\nallowed_ip=10.20.0.0/16\n", hex(&new), hex(&one));
        let desired = applied(&settings, &lines);
        assert_eq!(desired.peers.iter().map(|peer| peer.public_key).collect::<Vec<_>>(), [new, one]);
        assert!(desired.peer(&two).is_none());
        let (before, after) = (settings.peer(&one).expect("the peer"), desired.peer(&one).expect("the peer"));
        assert_eq!((&after.name, after.cloud, after.roaming), (&before.name, before.cloud, before.roaming));
        assert!(after.preshared_key.is_none() && after.endpoints.is_empty() && after.keepalive.is_none());
        assert_eq!(allowed(&desired, &one), ["10.20.0.0/16"]);
    }

    #[test]
    fn a_peer_goes_by_its_next_key_too() {
        let Example { mut settings, one, two } = example();
        let next = PrivateKey::generate().public_key();
        settings.peers[0].next_public_key = Some(next);
        let desired = applied(&settings, &format!("public_key={}\npersistent_keepalive_interval=9\n", hex(&next)));
        assert_eq!(desired.peers.len(), 2);
        assert_eq!(desired.peer(&one).and_then(|peer| peer.keepalive), Some(Duration::from_secs(9)));
        for key in [&next, &one] {
            let desired = applied(&settings, &format!("public_key={}\nremove=true\n", hex(key)));
            assert_eq!(desired.peers.iter().map(|peer| peer.public_key).collect::<Vec<_>>(), [two]);
        }
    }

    #[test]
    fn a_probe_ends_with_the_allowed_ip_that_it_asks() {
        let Example { mut settings, one, .. } = example();
        settings.peers[0].probe = ProbeSettings::usual(&settings.peers[0].allowed_ips, &settings.addresses);
        assert!(settings.peers[0].probe.is_some());
        let more = applied(&settings, &format!("public_key={}\nallowed_ip=10.70.0.0/16\n", hex(&one)));
        assert_eq!(more.peers[0].probe, settings.peers[0].probe);
        let less = applied(&settings, &format!("public_key={}\nallowed_ip=-10.99.0.2/32\n", hex(&one)));
        assert_eq!(less.peers[0].probe, None);
    }

    #[test]
    fn allowed_ips_that_stay_are_the_same_memory() {
        let Example { settings, one, .. } = example();
        let before = &settings.peer(&one).expect("the peer").allowed_ips;
        let listed: String = before.iter().map(|prefix| format!("allowed_ip={prefix}\n")).collect();
        for lines in [format!("replace_peers=true\npublic_key={}\n{listed}", hex(&one)), format!("public_key={}\n", hex(&one))] {
            let desired = applied(&settings, &lines);
            assert!(Arc::ptr_eq(before, &desired.peer(&one).expect("the peer").allowed_ips), "{lines:?}");
        }
    }

    #[test]
    fn a_removed_peer_may_come_again_in_the_same_request() {
        let Example { settings, one, .. } = example();
        let lines = format!("public_key={0}\nremove=true\npublic_key={0}\nallowed_ip=10.20.0.0/16\n", hex(&one));
        let desired = applied(&settings, &lines);
        assert_eq!(desired.peer(&one).map(|peer| peer.name.as_str()), Some("one"));
        assert_eq!(allowed(&desired, &one), ["10.20.0.0/16"]);
    }

    #[test]
    fn the_gateway_itself_is_no_peer() {
        let Example { settings, one, .. } = example();
        let own = settings.private_key.public_key();
        assert!(applied(&settings, &format!("public_key={}\nallowed_ip=10.20.0.0/16\n", hex(&own))) == settings);
        // Nor is one whose private key it takes over.
        let new = PrivateKey::generate();
        let mut running = settings;
        running.peers.push(new_peer("to be".into(), new.public_key()));
        let set = SetRequest { private_key: Some(new.clone()), ..SetRequest::default() };
        let desired = apply(&running, &set).expect("carried out");
        assert_eq!(desired.private_key, new);
        assert!(desired.peer(&new.public_key()).is_none() && desired.peer(&one).is_some());
    }

    #[test]
    fn what_cannot_be_is_refused_as_a_whole() {
        let Example { settings, .. } = example();
        let port = Refusal::ListenPort { asked: 51821, present: 51820 };
        assert_eq!(apply(&settings, &request("listen_port=51821\nreplace_peers=true\n")), Err(port.clone()));
        assert_eq!(apply(&settings, &request("fwmark=1\n")), Err(Refusal::Fwmark { asked: 1 }));
        let low = apply(&settings, &request(&format!("public_key={}\n", "0".repeat(64)))).expect_err("refused");
        assert!(matches!(low, Refusal::LowOrder { .. }), "{low}");
        assert_eq!((port.errno(), low.errno()), (libc::EOPNOTSUPP, libc::EINVAL));
        assert!(port.to_string().contains("restart"), "{port}");
    }

    #[test]
    fn a_hundred_thousand_allowed_ips_come_move_and_go_in_no_time() {
        let Example { settings, one, two } = example();
        let prefixes: Vec<IpNet> = (0..100_000u32).map(|at| IpNet::from(IpAddr::from((0x0B00_0000 + at).to_be_bytes()))).collect();
        let claim = |key: &PublicKey| {
            let mut edit = PeerEdit::new(*key);
            edit.allowed_ips = prefixes.iter().copied().map(AllowedIpEdit::Add).collect();
            edit
        };
        let mut gone = PeerEdit::new(two);
        gone.allowed_ips = prefixes.iter().copied().map(AllowedIpEdit::Remove).collect();
        let started = Instant::now();
        let set = SetRequest { peers: vec![claim(&one), claim(&two), gone], ..SetRequest::default() };
        assert!(apply(&settings, &set).expect("carried out") == settings);
        let set = SetRequest { peers: vec![claim(&one)], ..SetRequest::default() };
        assert_eq!(apply(&settings, &set).expect("carried out").peer(&one).map(|peer| peer.allowed_ips.len()), Some(100_003));
        // Quadratic, it would be a minute.
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}
