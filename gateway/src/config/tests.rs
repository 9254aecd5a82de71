//! Whole files: the example of the README, and files with mistakes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tunnel::PrivateKey;

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    /// A folder with the secrets that the example refers to.
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        folder.secret("azure.key", &PrivateKey::generate().to_base64());
        folder.secret("vnet-a.psk", "FnX2bMJpfZtCsFPVHvAT0hDB5GzzHMQZ1dZBYuC7dQs=");
        folder.secret("line-3.pw", "hunter2");
        folder
    }

    fn secret(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

const PEER_KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// The example of the design, its secrets relative to the file.
fn example() -> String {
    format!(
        r#"version: 1
gateway: {{ name: aws-use1-a, site: aws-use1, cloud: aws }}
underlays:
  expressroute: {{ interface: ens6 }}
  internet: {{ }}
tunnels:
  azure:
    mode: auto
    private_key: {{ file: azure.key }}
    listen: 51820
    addresses: [10.99.0.1/30]
    lanes: 1
    peers:
      vnet-a:
        public_key: "{PEER_KEY}"
        preshared_key: {{ file: vnet-a.psk }}
        endpoints:
          - {{ via: expressroute, address: "10.20.0.4:51820" }}
          - {{ via: internet, address: "vnet-a.example.net:51820" }}
        allowed_ips: [10.99.0.2/32, 10.20.0.0/16]
        keepalive: 25s
        probe: {{ target: 10.99.0.2, every: 300ms, misses: 3 }}
routes:
  static:
    - {{ prefix: 10.20.0.0/16, via: {{ tunnel: azure }}, metric: 100 }}
  inbound: [ ]
  bgp: {{ }}
peerings: {{ }}
relay:
  catalogue: {{ hosts: [ "contoso-hub.azure-devices.net", "contososa.blob.core.windows.net" ] }}
  sensors: {{ line-3: {{ from: [10.1.2.0/24], proxy_user: {{ name: line-3, password: {{ file: line-3.pw }} }} }} }}
  paths:
    - {{ name: vnet, via: {{ tunnel: azure }}, parents: ["http://10.99.0.2:3128"] }}
  listeners:
    - {{ name: proxy, kind: connect, listen: "0.0.0.0:3128" }}
    - {{ name: tls, kind: sni, listen: "0.0.0.0:443" }}
"#
    )
}

fn messages(loaded: &Loaded) -> Vec<String> {
    loaded.diagnostics.iter().map(|diagnostic| format!("{}: {}", diagnostic.span.line, diagnostic.message)).collect()
}

/// What is wrong with the example once `from` is replaced by `to`.
fn broken(from: &str, to: &str) -> Vec<String> {
    let folder = Folder::new();
    let text = example();
    assert!(text.contains(from), "{from:?} is not in the example");
    let loaded = parse(text.replacen(from, to, 1), folder.path());
    assert!(loaded.settings.is_none(), "{to:?} was taken");
    loaded.diagnostics.iter().filter(|d| d.severity == diagnostic::Severity::Error).map(|d| d.message.clone()).collect()
}

#[test]
fn the_example_is_good() {
    let folder = Folder::new();
    let loaded = parse(example(), folder.path());
    let settings = loaded.settings.unwrap_or_else(|| panic!("{}", loaded.diagnostics.render("example", &loaded.source, false)));
    assert_eq!(settings.gateway.name, "aws-use1-a");
    assert_eq!(settings.tunnels[0].mtu, 1320, "one endpoint is a name, which may turn out to be IPv6");
    assert_eq!(settings.tunnels[0].peers[0].endpoints[1].host, "vnet-a.example.net");
    let relay = settings.relay.expect("a relay");
    assert_eq!((relay.catalogue.len(), relay.paths.len(), relay.listeners.len()), (2, 1, 2));
    assert_eq!(settings.routes.fixed[0].metric, 100);
}

#[test]
fn three_mistakes_are_three_diagnostics() {
    let folder = Folder::new();
    let text = example().replace("keepalive:", "keepalvie:").replace("mode: auto", "mode: fast").replace("metric: 100", "metric: many");
    let loaded = parse(text, folder.path());
    assert!(loaded.settings.is_none());
    let errors = loaded.diagnostics.errors();
    let shown = loaded.diagnostics.render("skyway.yaml", &loaded.source, false);
    assert_eq!(errors, 3, "{shown}");
    for part in ["did you mean: keepalive", "auto, tun, userspace", "--> skyway.yaml:21:9", "3 errors"] {
        assert!(shown.contains(part), "{part:?} is not in:\n{shown}");
    }
}

#[test]
fn what_must_not_be_twice_is_refused() {
    let second = |key: &str, allowed: &str| format!("  other: {{ public_key: \"{key}\", allowed_ips: [{allowed}] }}\n      vnet-a:\n");
    assert_eq!(broken("  vnet-a:\n", &second(PEER_KEY, "10.30.0.0/16")), ["the same public key twice"]);
    let other = PrivateKey::generate().public_key().to_string();
    assert_eq!(broken("  vnet-a:\n", &second(&other, "10.20.0.0/16")), ["already allowed for peer other"]);
    let tunnel = "  aws:\n    private_key: { file: azure.key }\n    listen: 51821\n    addresses: [10.99.0.2/30]\nroutes:\n";
    assert_eq!(broken("routes:\n", tunnel), ["overlaps 10.99.0.1/30 of the tunnel azure"]);
}

#[test]
fn bad_keys_are_named() {
    let folder = Folder::new();
    let own = PrivateKey::generate();
    folder.secret("azure.key", &own.to_base64());
    let loaded = parse(example().replace(PEER_KEY, &own.public_key().to_string()), folder.path());
    assert!(messages(&loaded).iter().any(|message| message.contains("this gateway's own public key")), "{:?}", messages(&loaded));
    assert_eq!(
        broken(PEER_KEY, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ["that is a low-order key: whoever used it would share its secrets with everybody"]
    );
    assert!(broken(PEER_KEY, "short")[0].starts_with("not a WireGuard key"));
}

#[test]
fn a_key_file_that_others_can_read_is_refused_with_the_chmod() {
    let folder = Folder::new();
    let path = folder.path().join("azure.key");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("mode");
    let loaded = parse(example(), folder.path());
    let shown = loaded.diagnostics.render("skyway.yaml", &loaded.source, false);
    assert!(shown.contains(&format!("chmod 600 {}", path.display())), "{shown}");
}

#[test]
fn a_secret_written_inline_is_refused_and_never_shown() {
    let folder = Folder::new();
    let secret = PrivateKey::generate().to_base64();
    let loaded = parse(example().replace("{ file: azure.key }", &secret), folder.path());
    let shown = loaded.diagnostics.render("skyway.yaml", &loaded.source, false);
    assert!(loaded.settings.is_none());
    assert!(!shown.contains(&*secret), "{shown}");
}

#[test]
fn names_that_nothing_has_are_answered_with_the_nearest() {
    let folder = Folder::new();
    let loaded = parse(example().replace("via: { tunnel: azure }, parents", "via: { tunnel: azur }, parents"), folder.path());
    let shown = loaded.diagnostics.render("skyway.yaml", &loaded.source, false);
    assert!(shown.contains("no tunnel has that name") && shown.contains("did you mean: azure"), "{shown}");
}

#[test]
fn what_this_version_does_not_do_is_said() {
    assert_eq!(broken("bgp: { }", "bgp: { asn: 65010 }"), ["BGP is not part of this version of skyway"]);
    assert_eq!(broken("contoso-hub.azure", "*.azure"), ["wildcards are not part of this version of skyway"]);
}

#[test]
fn lanes_take_ports_and_a_device() {
    let folder = Folder::new();
    let loaded = parse(example().replace("lanes: 1", "lanes: 4\n    cpus: [0, 1]"), folder.path());
    let settings = loaded.settings.unwrap_or_else(|| panic!("{}", loaded.diagnostics.render("example", &loaded.source, false)));
    assert_eq!((settings.tunnels[0].lanes, settings.tunnels[0].cpus.as_slice()), (4, [0, 1].as_slice()));
    for (lanes, error) in [("0", "not a number of lanes"), ("17", "not a number of lanes")] {
        assert_eq!(broken("lanes: 1", &format!("lanes: {lanes}")), [error]);
    }
    assert_eq!(
        broken("listen: 51820\n    addresses: [10.99.0.1/30]\n    lanes: 1", "listen: 65534\n    addresses: [10.99.0.1/30]\n    lanes: 4"),
        ["each lane takes a UDP port of its own, from 65534 on"]
    );
    assert_eq!(broken("lanes: 1", "lanes: 1\n    cpus: [5000]"), ["not the number of a processor"]);
    let other = "  aws:\n    private_key: { file: azure.key }\n    listen: 51823\n    addresses: [10.98.0.2/30]\nroutes:\n";
    let loaded = parse(example().replace("lanes: 1", "lanes: 4").replacen("routes:\n", other, 1), folder.path());
    let shown = loaded.diagnostics.render("example", &loaded.source, false);
    assert!(loaded.settings.is_none() && shown.contains("the tunnel azure listens there already"), "{shown}");
}

#[test]
fn probes_ask_what_the_peer_carries_and_we_can_ask() {
    let folder = Folder::new();
    let probe = "probe: { target: 10.99.0.2, every: 300ms, misses: 3 }";
    let settings = |probe_written: &str| {
        let loaded = parse(example().replace(probe, probe_written), folder.path());
        loaded.settings.unwrap_or_else(|| panic!("{}", loaded.diagnostics.render("example", &loaded.source, false)))
    };
    let usual = settings("").tunnels[0].peers[0].probe.clone().expect("probed without a word");
    assert_eq!((usual.target.to_string().as_str(), usual.every, usual.misses), ("10.99.0.2", Duration::from_secs(1), 3));
    assert_eq!(settings("probe: off").tunnels[0].peers[0].probe, None);
    let written = settings("probe: { every: 300ms, hold_down: 5s }").tunnels[0].peers[0].probe.clone().expect("a probe");
    assert_eq!((written.target.to_string().as_str(), written.hold_down), ("10.99.0.2", Duration::from_secs(5)));
    for (wrong, error) in [
        ("probe: { target: 10.77.0.2 }", "not one of the peer's allowed_ips: its answers would be dropped"),
        ("probe: { every: 10ms }", "too often"),
        ("probe: { misses: 0 }", "not a usable number of misses"),
        ("probe: on", "not a probe"),
    ] {
        assert_eq!(broken(probe, wrong), [error]);
    }
}

#[test]
fn a_route_that_no_peer_carries_is_refused() {
    assert_eq!(broken("prefix: 10.20.0.0/16", "prefix: 10.30.0.0/16"), ["no peer of the tunnel azure has that prefix in its allowed_ips"]);
}

#[test]
fn an_empty_file_says_what_is_missing() {
    let loaded = parse(String::new(), Path::new("/"));
    assert!(loaded.settings.is_none());
    assert!(loaded.diagnostics.has_errors());
}

#[test]
fn a_parent_that_no_peer_carries_is_refused_where_it_stands() {
    let folder = Folder::new();
    let loaded = parse(example().replace("http://10.99.0.2:3128", "http://10.98.0.2:3128"), folder.path());
    assert!(loaded.settings.is_none());
    let error = loaded.diagnostics.iter().find(|diagnostic| diagnostic.path == "relay.paths[0].parents[0]").expect("an error there");
    assert_eq!(error.message, "the parent lies in no peer's allowed_ips of the tunnel azure");
}

#[test]
fn a_parent_that_no_route_leads_to_is_only_warned_about() {
    let folder = Folder::new();
    let text =
        example().replace("10.99.0.2/32, ", "10.99.0.2/32, 10.40.0.2/32, ").replace("http://10.99.0.2:3128", "http://10.40.0.2:3128");
    let loaded = parse(text, folder.path());
    assert!(loaded.settings.is_some(), "{}", loaded.diagnostics.render("example", &loaded.source, false));
    assert!(loaded.diagnostics.iter().any(|diagnostic| diagnostic.message.starts_with("no route leads to the parent")));
}

#[test]
fn a_broken_tunnel_causes_no_errors_elsewhere() {
    assert_eq!(broken("{ file: azure.key }", "{ file: missing.key }").len(), 1);
    assert_eq!(broken(PEER_KEY, "short").len(), 1);
}
