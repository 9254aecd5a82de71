//! Whole files: the example of the README, and files with mistakes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tunnel::PrivateKey;

use super::*;
use crate::relay::catalogue::Role;
use crate::relay::chain::Level;
use crate::relay::{HostName, NameRule, NtpServer, OnPathDown, PrivateLink, Protocol, Redirection};

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

/// A relay without a tunnel, `more` below its catalogue of one host.
fn relay(more: &str) -> String {
    format!(
        r"version: 1
gateway: {{ name: vnet-a, level: 3 }}
relay:
  catalogue: {{ hosts: [contoso-hub.azure-devices.net] }}
{more}  limits: {{ hello: 5s }}
"
    )
}

/// What the whole relay is, which must be good, and what is warned about.
fn good(folder: &Folder, text: String) -> (RelaySettings, Vec<String>) {
    let loaded = parse(text, folder.path());
    let shown = loaded.diagnostics.render("skyway.yaml", &loaded.source, false);
    let relay = loaded.settings.unwrap_or_else(|| panic!("{shown}")).relay.expect("a relay");
    (relay, loaded.diagnostics.iter().map(|diagnostic| diagnostic.message.clone()).collect())
}

/// The errors of a file, which must have some.
fn errors(folder: &Folder, text: String) -> Vec<String> {
    let loaded = parse(text, folder.path());
    assert!(loaded.settings.is_none(), "taken:\n{}", loaded.source);
    loaded.diagnostics.iter().filter(|d| d.severity == diagnostic::Severity::Error).map(|d| d.message.clone()).collect()
}

/// The errors that `more` brings into a relay.
fn errors_of(more: &str) -> Vec<String> {
    errors(&Folder::new(), relay(more))
}

impl Folder {
    /// `NAME.pem` and `NAME.pem.key`.
    fn certificate(&self, name: &str) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![format!("{name}.example")]).expect("names");
        let certificate = params.self_signed(&key).expect("a certificate");
        fs::write(self.path().join(format!("{name}.pem")), certificate.pem()).expect("written");
        self.secret(&format!("{name}.pem.key"), &key.serialize_pem());
    }

    fn service_tags(&self, name: &str) {
        let tag = |name: &str| serde_json::json!({ "name": name, "properties": { "addressPrefixes": ["20.0.0.0/8"] } });
        let values = ["AzureIoTHub", "Storage", "EventHub"].map(tag);
        let text = serde_json::json!({ "changeNumber": 7, "cloud": "Public", "values": values }).to_string();
        fs::write(self.path().join(name), text).expect("written");
    }
}

#[test]
fn a_catalogue_has_presets_old_hubs_and_service_tags() {
    let folder = Folder::new();
    folder.service_tags("tags.json");
    let text = relay("").replace(
        "hosts: [contoso-hub.azure-devices.net]",
        "presets: [defender-public], hosts: [contososa.blob.core.windows.net], legacy_hubs: [old-hub, other.azure-devices.us], \
         service_tags: { file: tags.json, mode: enforce }",
    );
    let (relay, _) = good(&folder, text);
    let role = |name: &str| {
        let entry = relay.catalogue.get(&HostName::parse(name).expect("a name")).expect("listed");
        (entry.role, entry.legacy, entry.ports.clone())
    };
    assert_eq!(role("download.microsoft.com"), (Role::Download, false, vec![443]));
    assert_eq!(role("contososa.blob.core.windows.net"), (Role::Blob, false, vec![443]));
    assert_eq!(role("old-hub.azure-devices.net"), (Role::IotHub, true, vec![443]));
    assert_eq!(role("other.azure-devices.us"), (Role::IotHub, true, vec![443]));
    assert_eq!(relay.catalogue.len(), 4);
    let rule = relay.catalogue.service_tags.expect("a rule");
    assert!(rule.enforce && rule.tags.change_number == 7);
}

#[test]
fn a_preset_that_is_derived_says_so() {
    let text = relay("").replace("hosts:", "presets: [defender-us-gov], hosts:");
    let (_, warnings) = good(&Folder::new(), text);
    assert!(warnings.iter().any(|warning| warning.starts_with("this preset is derived")), "{warnings:?}");
}

#[test]
fn a_wildcard_takes_a_flag_and_warns_even_then() {
    let folder = Folder::new();
    let with = |catalogue: &str| relay("").replace("hosts: [contoso-hub.azure-devices.net]", catalogue);
    let (relay, warnings) = good(&folder, with("hosts: [\"*.blob.core.windows.net\"], allow_tenant_wildcard: true"));
    let host = HostName::parse("any.blob.core.windows.net").expect("a name");
    assert_eq!(relay.catalogue.get(&host).map(|entry| entry.role), Some(Role::Blob));
    assert!(warnings.iter().any(|warning| warning.contains("those of other tenants too")), "{warnings:?}");
    for (catalogue, error) in [
        ("hosts: [\"*.blob.core.windows.net\"]", "a wildcard takes allow_tenant_wildcard: true"),
        ("hosts: [\"*.net\"], allow_tenant_wildcard: true", "that would be every host of a top-level domain"),
        ("hosts: [\".azure-devices.net\"], allow_tenant_wildcard: true", "neither an exact host nor a wildcard for one label"),
        ("hosts: [\"hub*.azure-devices.net\"], allow_tenant_wildcard: true", "neither an exact host nor a wildcard for one label"),
        (
            "hosts: [{ host: \"*.azure-devices.net\", addresses: [20.1.2.3] }], allow_tenant_wildcard: true",
            "one address for every host of a domain",
        ),
    ] {
        assert_eq!(errors(&folder, with(catalogue)), [error], "{catalogue}");
    }
}

#[test]
fn a_catalogue_with_mistakes_is_refused() {
    let folder = Folder::new();
    fs::write(folder.path().join("cut.json"), "{}").expect("written");
    for (catalogue, error) in [
        ("hosts: [a.example.net], legacy_hubs: [contososa.blob.core.windows.net]", "not an IoT hub"),
        ("hosts: [a.azure-devices.net], legacy_hubs: [A]", "the host is listed twice"),
        ("presets: [defender-privat]", "unknown value `defender-privat`"),
        ("hosts: [a.example.net], service_tags: { file: cut.json }", "not Microsoft's service tags in JSON"),
        ("hosts: [a.example.net], service_tags: { file: none.json }", "cannot be read"),
        ("hosts: [a.example.net], service_tags: { mode: warn }", "`file` is missing"),
    ] {
        let found = errors(&folder, relay("").replace("hosts: [contoso-hub.azure-devices.net]", catalogue));
        assert!(matches!(found.as_slice(), [only] if only.contains(error)), "{catalogue}: {found:?}");
    }
}

#[test]
fn sensors_are_known_by_whatever_can_tell_them_apart() {
    let folder = Folder::new();
    let sensors = r"  sensors:
    a: { client_certificate: line-a, sessions: 200 }
    b: { client_certificate: [line-b, line-b2], gateway: true }
    c: { private_link: { azure_link_id: 7 } }
";
    let (relay, warnings) = good(&folder, relay(sensors));
    let sensor = |name: &str| relay.sensors.get(name).cloned().expect("a sensor");
    assert_eq!((sensor("a").client_certificates, sensor("a").sessions), (vec!["line-a".to_owned()], Some(200)));
    assert_eq!((sensor("b").client_certificates.len(), sensor("b").is_gateway), (2, true));
    assert_eq!(sensor("c").private_link, Some(PrivateLink::AzureLinkId(7)));
    assert!(warnings.iter().any(|warning| warning == "no listener asks for client certificates"), "{warnings:?}");
    assert!(warnings.iter().any(|warning| warning.starts_with("no listener takes a PROXY header")), "{warnings:?}");
}

#[test]
fn two_sensors_that_nothing_tells_apart_are_refused() {
    for (sensors, error) in [
        ("a: { client_certificate: Line }, b: { client_certificate: [x, line] }", "certificates for line are the sensor a's already"),
        ("a: { private_link: { azure_link_id: 7 } }, b: { private_link: { azure_link_id: 7 } }", "that is the sensor a's already"),
        ("a: { private_link: { azure_link_id: 7, gcp_psc_connection: 7 } }", "not one private connection"),
        ("a: { private_link: { aws_vpc_endpoint: eni-1 } }", "not the id of a VPC endpoint"),
        ("a: { client_certificate: [] }", "not the name in a certificate"),
        ("a: { from: [10.1.0.0/16], sessions: 0 }", "no session of this sensor could ever begin"),
        ("a: { from: [0.0.0.0/0], gateway: true }", "anybody could come as this gateway and name any sensor as its own"),
        ("a: { gateway: true }", "nothing says how this sensor is recognised"),
    ] {
        assert_eq!(errors_of(&format!("  sensors: {{ {sensors} }}\n")), [error], "{sensors}");
    }
}

#[test]
fn parents_are_proxies_and_chains_of_them() {
    let folder = Folder::new();
    folder.certificate("ca");
    folder.certificate("own");
    let paths = r#"  paths:
    - name: out
      via: direct
      parents:
        - "http://10.8.0.1:3128"
        - url: "https://proxy.example.net:8443"
          auth: { name: vnet-a, password: { file: line-3.pw } }
          ca: ca.pem
          client_cert: { certificate: own.pem, key: { file: own.pem.key } }
          gateway: true
          level: 3.5
        - chain: ["http://10.8.0.1:3128", { url: "http://10.9.0.1:3128", gateway: true, level: 4 }]
      name_servers: [10.8.0.53, "10.8.0.54:5353"]
      on_path_down: drain
"#;
    let (relay, warnings) = good(&folder, relay(paths));
    let path = &relay.paths[0];
    let chains: Vec<usize> = path.parents.iter().map(Vec::len).collect();
    assert_eq!(chains, [1, 1, 2]);
    let (plain, encrypted) = (&path.parents[0][0], &path.parents[1][0]);
    assert_eq!((plain.tls.is_some(), plain.auth.is_some(), plain.is_gateway), (false, false, false));
    assert_eq!((encrypted.tls.is_some(), encrypted.auth.is_some(), encrypted.is_gateway, encrypted.port), (true, true, true, 8443));
    assert_eq!(encrypted.level, Level::parse("3.5"));
    assert_eq!(path.name_servers.iter().map(|server| server.port()).collect::<Vec<_>>(), [53, 5353]);
    assert_eq!(path.on_down, OnPathDown::Drain);
    assert_eq!(warnings.iter().filter(|warning| warning.starts_with("the last proxy is no skyway")).count(), 1, "{warnings:?}");
}

#[test]
fn the_other_end_of_a_tunnel_is_a_skyway_unless_said_otherwise() {
    let folder = Folder::new();
    let foreign = |warnings: &[String]| warnings.iter().any(|warning| warning.starts_with("the last proxy is no skyway"));
    let (relay, warnings) = good(&folder, example());
    assert!(relay.paths[0].parents[0][0].is_gateway && !foreign(&warnings), "{warnings:?}");
    let text = example().replace("\"http://10.99.0.2:3128\"", "{ url: \"http://10.99.0.2:3128\", gateway: false }");
    let (relay, warnings) = good(&folder, text);
    assert!(!relay.paths[0].parents[0][0].is_gateway && foreign(&warnings), "{warnings:?}");
}

#[test]
fn parents_with_mistakes_are_refused() {
    for (parent, error) in [
        ("\"http://user:word@10.8.0.1:3128\"", "credentials do not stand in a URL"),
        ("\"socks://10.8.0.1:1080\"", "not a parent proxy"),
        ("\"https://10.8.0.1\"", "not a parent proxy"),
        ("{ gateway: true }", "`url` is missing"),
        ("{ url: \"http://10.8.0.1:3128\", ca: ca.pem }", "that is for a parent that is reached by TLS"),
        ("{ url: \"https://10.8.0.1:3128\", ca: none.pem }", "none.pem cannot be read"),
        ("{ chain: [] }", "a chain without a proxy"),
        ("{ chain: [\"http://10.8.0.1:3128\"], gateway: true }", "a chain has no settings of its own"),
        ("{ chain: [{ chain: [\"http://10.8.0.1:3128\"] }] }", "a chain inside a chain"),
        ("{ url: \"http://10.8.0.1:3128\", level: 3.2 }", "not a level of the Purdue model"),
    ] {
        let found = errors_of(&format!("  paths: [{{ name: out, via: direct, parents: [{parent}] }}]\n"));
        assert!(matches!(found.as_slice(), [only] if only.contains(error)), "{parent}: {found:?}");
    }
}

#[test]
fn a_password_in_a_url_is_never_shown() {
    let text = relay("  paths: [{ name: out, via: direct, parents: [\"http://user:hunter2@10.8.0.1:3128\"] }]\n");
    let loaded = parse(text, Folder::new().path());
    let shown = loaded.diagnostics.render("skyway.yaml", &loaded.source, false);
    assert!(!shown.contains("hunter2") && !loaded.diagnostics.to_json().to_string().contains("hunter2"), "{shown}");
}

#[test]
fn a_chain_climbs_the_levels_one_at_a_time() {
    let folder = Folder::new();
    let chain = |levels: &str| {
        let hops: Vec<String> = levels
            .split_whitespace()
            .map(|level| {
                let level = if level == "?" { String::new() } else { format!(", level: {level}") };
                format!("{{ url: \"http://10.8.0.1:3128\", gateway: true{level} }}")
            })
            .collect();
        relay(&format!("  paths: [{{ name: out, via: direct, parents: [{{ chain: [{}] }}] }}]\n", hops.join(", ")))
    };
    for levels in ["3", "3.5", "3 3.5 4 5", "? 4", "3.5 ? 5", "?"] {
        let (_, warnings) = good(&folder, chain(levels));
        assert!(warnings.is_empty(), "{levels}: {warnings:?}");
    }
    for (levels, from, to) in [("4", "3", "4"), ("2", "3", "2"), ("3.5 5", "3.5", "5"), ("3.5 4 3", "4", "3"), ("3.5 ? 3", "3.5", "3")] {
        assert_eq!(errors(&folder, chain(levels)), [format!("no chain leads from level {from} to level {to}")], "{levels}");
    }
    let (_, warnings) = good(&folder, chain("4").replace(", level: 3 }", " }"));
    assert!(matches!(warnings.as_slice(), [only] if only.starts_with("whether this level may follow")), "{warnings:?}");
}

#[test]
fn a_path_is_probed_by_an_iot_hub_unless_said_otherwise() {
    let folder = Folder::new();
    let hosts = "hosts: [{ host: contososa.blob.core.windows.net }, { host: contoso-hub.azure-devices.net, ports: [8443] }]";
    let with = |probe: &str| {
        let text = relay(&format!("  paths: [{{ name: out, via: direct{probe} }}]\n"));
        text.replace("hosts: [contoso-hub.azure-devices.net]", hosts)
    };
    let probe = |written: &str| good(&folder, with(written)).0.paths[0].probe.clone();
    let usual = probe("").expect("probed without a word");
    assert_eq!((usual.host.as_str(), usual.port), ("contoso-hub.azure-devices.net", 8443));
    assert_eq!((usual.health.every, usual.health.failures, usual.health.successes), (Duration::from_secs(10), 3, 2));
    assert_eq!(probe(", probe: off"), None);
    let written =
        probe(", probe: { host: contososa.blob.core.windows.net, every: 1s, failures: 1, hold_down: 5s, trust_interception: true }");
    let written = written.expect("a probe");
    assert_eq!((written.host.as_str(), written.port), ("contososa.blob.core.windows.net", 443));
    assert_eq!((written.health.every, written.health.failures), (Duration::from_secs(1), 1));
    assert!(written.health.trust_interception && written.health.hold_down == Duration::from_secs(5));
    for (wrong, error) in [
        ("{ host: other.example.net }", "the catalogue does not list that host"),
        ("{ host: 10.8.0.1 }", "an address stands where a host name is expected"),
        ("{ every: 10ms }", "too often"),
        ("{ failures: 0 }", "not a usable number of probes"),
        ("on", "not a probe"),
        ("{ ca: none.pem }", "none.pem cannot be read"),
    ] {
        let found = errors(&folder, with(&format!(", probe: {wrong}")));
        assert!(matches!(found.as_slice(), [only] if only.contains(error)), "{wrong}: {found:?}");
    }
    let (_, warnings) = good(&folder, with(", probe: { every: 1m }"));
    assert_eq!(warnings, ["longer than the 30 s within which /readyz wants a success"]);
}

#[test]
fn listeners_of_every_kind_are_read() {
    let folder = Folder::new();
    folder.certificate("proxy");
    folder.certificate("ca");
    let listeners = r#"  listeners:
    - name: proxy
      kind: connect
      listen: "10.1.0.1:3128"
      tls: { certificate: proxy.pem, key: { file: proxy.pem.key }, client_ca: ca.pem, client_certificates: optional }
      proxy_protocol: [10.1.0.128/26]
    - { name: tls, kind: sni, listen: "10.1.0.1:443" }
    - { name: led, kind: transparent, listen: "0.0.0.0:8443", transparent: { by: tproxy, sni: if_present } }
    - { name: names, kind: dns, listen: "10.1.0.1:53", dns: { ttl: 30s, forward: [10.8.0.53] } }
    - { name: time, kind: ntp, listen: "0.0.0.0:123", ntp: { servers: [time.example.net, 10.8.0.123] } }
"#;
    let (relay, _) = good(&folder, relay(listeners));
    let kinds: Vec<&ListenerKind> = relay.listeners.iter().map(|listener| &listener.kind).collect();
    let [proxy, tls, led, names, time] = kinds.as_slice() else { panic!("{kinds:?}") };
    assert!(
        matches!(proxy, ListenerKind::Sessions { protocol: Protocol::Connect, tls: Some(_), proxy_protocol } if proxy_protocol.len() == 1)
    );
    assert!(matches!(tls, ListenerKind::Sessions { protocol: Protocol::Sni, tls: None, .. }));
    let expected = Protocol::Transparent { by: Redirection::Tproxy, name: NameRule::IfPresent };
    assert!(matches!(led, ListenerKind::Sessions { protocol, .. } if *protocol == expected));
    let ListenerKind::Dns(dns) = names else { panic!("{names:?}") };
    assert_eq!((dns.answers.len(), dns.answers[0].to_string().as_str(), dns.ttl), (1, "10.1.0.1", Duration::from_secs(30)));
    assert_eq!(dns.forward[0].to_string(), "10.8.0.53:53");
    let ListenerKind::Ntp(ntp) = time else { panic!("{time:?}") };
    let address = NtpServer::Address("10.8.0.123:123".parse().expect("an address"));
    let name = NtpServer::Name { host: HostName::parse("time.example.net").expect("a name"), port: 123 };
    assert_eq!(ntp.servers, [name, address]);
}

#[test]
fn listeners_with_mistakes_are_refused() {
    let folder = Folder::new();
    folder.certificate("proxy");
    let tls = "tls: { certificate: proxy.pem, key: { file: proxy.pem.key }";
    for (listener, error) in [
        (format!("kind: sni, listen: \"0.0.0.0:443\", {tls} }}"), "only listeners of the kind connect have that"),
        (
            "kind: transparent, listen: \"0.0.0.0:443\", proxy_protocol: [10.0.0.0/8]".into(),
            "only listeners of the kind connect and sni have that",
        ),
        ("kind: connect, listen: \"0.0.0.0:443\", dns: { ttl: 60s }".into(), "only listeners of the kind dns have that"),
        (
            format!("kind: connect, listen: \"0.0.0.0:443\", {tls}, client_certificates: required }}"),
            "no authority is named that could vouch for them",
        ),
        ("kind: connect, listen: \"0.0.0.0:443\", tls: { certificate: proxy.pem }".into(), "`key` is missing"),
        (
            "kind: connect, listen: \"0.0.0.0:443\", tls: { certificate: proxy.pem, key: { file: line-3.pw } }".into(),
            "there is no private key; expected PEM with its line breaks: PKCS#8, PKCS#1 or SEC1",
        ),
        ("kind: dns, listen: \"0.0.0.0:53\"".into(), "on every address of the host: which one are sensors answered with?"),
        ("kind: dns, listen: \"10.1.0.1:53\", dns: { forward: [10.1.0.1] }".into(), "that is this listener itself"),
        ("kind: dns, listen: \"10.1.0.1:53\", dns: { ttl: 1500ms }".into(), "not whole seconds"),
        ("kind: dns, listen: \"10.1.0.1:53\", dns: { answers: [0.0.0.0] }".into(), "not an address that a sensor can connect to"),
        ("kind: ntp, listen: \"0.0.0.0:123\"".into(), "`ntp` is missing"),
        ("kind: ntp, listen: \"0.0.0.0:123\", ntp: { servers: [] }".into(), "no server: nobody would be answered"),
    ] {
        assert_eq!(errors(&folder, relay(&format!("  listeners: [{{ name: one, {listener} }}]\n"))), [error], "{listener}");
    }
    let inside = example().replace("listen: \"0.0.0.0:443\"", "listen: { tunnel: azure, port: 53 }").replace("kind: sni", "kind: dns");
    let found = errors(&folder, inside);
    assert_eq!(found, ["dns listeners are on the host's addresses alone, not in a tunnel"]);
}

#[test]
fn time_and_tls_may_have_the_same_port() {
    let listener = |name: &str, kind: &str| format!("{{ name: {name}, kind: {kind}, listen: \"10.1.0.1:123\" }}");
    let time = "{ name: time, kind: ntp, listen: \"10.1.0.1:123\", ntp: { servers: [10.8.0.123] } }";
    let (relay_settings, _) = good(&Folder::new(), relay(&format!("  listeners: [{time}, {}]\n", listener("tls", "sni"))));
    assert_eq!(relay_settings.listeners.len(), 2);
    assert_eq!(errors_of(&format!("  listeners: [{time}, {}]\n", listener("names", "dns"))), ["the listener time is there already"]);
}

#[test]
fn a_listener_that_believes_everybody_or_leads_nowhere_is_warned_about() {
    let folder = Folder::new();
    let (_, warnings) =
        good(&folder, relay("  listeners: [{ name: a, kind: connect, listen: \"0.0.0.0:3128\", proxy_protocol: [0.0.0.0/0] }]\n"));
    assert!(warnings.iter().any(|warning| warning.starts_with("anybody can claim to be any sensor")), "{warnings:?}");
    let (_, warnings) = good(&folder, relay("  listeners: [{ name: names, kind: dns, listen: \"10.1.0.1:53\" }]\n"));
    assert!(warnings.iter().any(|warning| warning.starts_with("no sni listener is on port 443")), "{warnings:?}");
}

#[test]
fn a_renewed_certificate_is_a_change_and_an_unchanged_one_is_none() {
    let folder = Folder::new();
    folder.certificate("proxy");
    folder.certificate("other");
    let tls = "tls: { certificate: proxy.pem, key: { file: proxy.pem.key } }";
    let text = relay(&format!("  listeners: [{{ name: a, kind: connect, listen: \"0.0.0.0:3128\", {tls} }}]\n"));
    let mut loaded = parse(text.clone(), folder.path());
    let (first, again) = (good(&folder, text.clone()).0, good(&folder, text.clone()).0);
    assert_eq!(first, again);
    assert!(!loaded.secrets.changed());
    for (from, to) in [("other.pem", "proxy.pem"), ("other.pem.key", "proxy.pem.key")] {
        fs::rename(folder.path().join(from), folder.path().join(to)).expect("replaced");
    }
    assert!(loaded.secrets.changed(), "the certificate is watched");
    let renewed = good(&folder, text).0;
    assert!(first != renewed);
    let shown = format!("{renewed:?}");
    assert!(!shown.contains("PRIVATE KEY"), "{shown}");
}

#[test]
fn limits_are_read_and_held_against_each_other() {
    let folder = Folder::new();
    let with = |limits: &str| relay("").replace("hello: 5s", limits);
    let (old, _) = good(&folder, with("drain: 5s"));
    assert_eq!((old.limits.drain.limit, old.limits.drain.spread), (Duration::from_secs(5), Duration::from_secs(5)));
    let written = "idle: 30m, lifetime: 12h, sessions: 500, sessions_per_sensor: 50, connections_per_source: 20, keepalive: 45s, \
                   user_timeout: 90s, drain: 5m, drain_notice: 20s, drain_spread: 1m";
    let (new, _) = good(&folder, with(written));
    let limits = &new.limits;
    assert_eq!((limits.lifetime, limits.sessions, limits.sessions_per_sensor), (Some(Duration::from_secs(43_200)), 500, 50));
    assert_eq!((limits.connections_per_source, limits.tuning.keepalive), (20, Duration::from_secs(45)));
    assert_eq!((limits.drain.notice, limits.drain.spread), (Duration::from_secs(20), Duration::from_secs(60)));
    for (limits, error) in [
        ("sessions_per_sensor: 0", "no session of a sensor could ever begin"),
        ("connections_per_source: 0", "nobody could ever connect"),
        ("drain: 5s, drain_spread: 6s", "longer than drain, whose last part it is"),
        ("lifetime: 0s", "not a length of time"),
    ] {
        assert_eq!(errors(&folder, with(limits)), [error], "{limits}");
    }
    for (limits, warning) in [
        ("lifetime: 10m, idle: 20m", "longer than lifetime"),
        ("sessions: 10, sessions_per_sensor: 20", "more than sessions, 10"),
        ("keepalive: 4m", "an Azure load balancer forgets a connection after 240 s"),
    ] {
        let (_, warnings) = good(&folder, with(limits));
        assert!(warnings.iter().any(|found| found.starts_with(warning)), "{limits}: {warnings:?}");
    }
    let (_, warnings) = good(&folder, with("keepalive: 4m").replace("level: 3", "cloud: gcp"));
    assert!(!warnings.iter().any(|found| found.contains("load balancer")), "{warnings:?}");
}
