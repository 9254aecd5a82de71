//! Files in several shapes, what each names, and what none of them may bring into an allow list.

use proptest::prelude::*;

use super::*;
use crate::relay::catalogue::{Catalogue, Entry};

fn imported(text: &str) -> Imported {
    endpoints(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// `host role ports place` of each host.
fn hosts(text: &str) -> Vec<String> {
    let line = |host: &ImportedHost| format!("{} {} {:?} {}", host.host, host.role.label(), host.ports, host.place);
    imported(text).hosts.iter().map(line).collect()
}

fn names(text: &str) -> Vec<String> {
    imported(text).hosts.iter().map(|host| host.host.to_string()).collect()
}

#[test]
fn objects_with_their_ports_beside_them() {
    let text = r#"{
        "version": "1.0",
        "endpoints": [
            { "service": "IoT Hub", "fqdn": "Contoso-Hub.azure-devices.net", "port": 443, "protocol": "HTTPS" },
            { "service": "Aria", "fqdn": "telemetry.example.com", "ports": ["443", "TCP/8443"] },
            { "service": "Storage", "url": "https://contososa.blob.core.windows.net/container?x=1" }
        ]
    }"#;
    assert_eq!(
        hosts(text),
        [
            "contoso-hub.azure-devices.net iot-hub [443] endpoints[0].fqdn",
            "contososa.blob.core.windows.net blob [] endpoints[2].url",
            "telemetry.example.com aria [443, 8443] endpoints[1].fqdn",
        ]
    );
}

#[test]
fn hosts_by_service_in_lists() {
    let text = r#"{
        "properties": {
            "IoTHub": ["hub.azure-devices.net:443"],
            "eventHubs": { "hosts": ["contoso.servicebus.windows.net."] },
            "download_center": ["download.microsoft.com", "https://cdn.example.com"],
            "aria": ["one.example.com two.example.com;443"]
        }
    }"#;
    assert_eq!(
        hosts(text),
        [
            "cdn.example.com download [] properties.download_center[1]",
            "contoso.servicebus.windows.net event-hub [] properties.eventHubs.hosts[0]",
            "download.microsoft.com download [] properties.download_center[0]",
            "hub.azure-devices.net iot-hub [443] properties.IoTHub[0]",
            "one.example.com aria [] properties.aria[0]",
            "two.example.com aria [] properties.aria[0]",
        ]
    );
}

#[test]
fn hosts_as_keys_and_rows() {
    let text = r#"[
        { "hub.azure-devices.net": { "port": 8883 }, "sa.blob.core.windows.net": true },
        ["Aria", "one.example.com", 443],
        ["Aria", "two.example.com", "Download", "three.example.com"]
    ]"#;
    assert_eq!(
        hosts(text),
        [
            "hub.azure-devices.net iot-hub [8883] [0][\"hub.azure-devices.net\"]",
            "one.example.com aria [] [1][1]",
            "sa.blob.core.windows.net blob [] [0][\"sa.blob.core.windows.net\"]",
            "three.example.com other [] [2][3]",
            "two.example.com other [] [2][1]",
        ]
    );
}

#[test]
fn a_domain_tells_more_than_a_key() {
    assert_eq!(hosts(r#"{"download": ["hub.azure-devices.net"]}"#), ["hub.azure-devices.net iot-hub [] download[0]"]);
    assert_eq!(hosts(r#"{"storage and event hub": ["x.example.com"]}"#), ["x.example.com other [] [\"storage and event hub\"][0]"]);
}

#[test]
fn a_host_named_twice_is_one() {
    let text = r#"{"a": ["x.example.com"], "aria": [{"host": "X.example.com:443"}, "x.example.com:8443"]}"#;
    assert_eq!(hosts(text), ["x.example.com aria [443, 8443] a[0]"]);
}

#[test]
fn lists_and_csv() {
    assert_eq!(
        names("hub.azure-devices.net\r\n# old.example.com\n\nsa.blob.core.windows.net # storage\n"),
        ["hub.azure-devices.net", "sa.blob.core.windows.net",]
    );
    assert_eq!(
        names("\u{feff}a.example.com, b.example.com;c.example.com\thttps://d.example.com/x"),
        ["a.example.com", "b.example.com", "c.example.com", "d.example.com",]
    );
    let csv = "No,Service,\"Host, exact\",Port\n1,\"Aria, telemetry\",x.example.com,\"443, 8443\"\n2,IoT Hub,hub.azure-devices.net,443\n";
    assert_eq!(hosts(csv), ["hub.azure-devices.net iot-hub [443] line 3", "x.example.com aria [443, 8443] line 2"]);
    assert_eq!(hosts("x.example.com 8883"), ["x.example.com other [] line 1"], "a number is a port where it is called one");
    assert_eq!(names("a.example.com/,https://b.example.com/p,https://c.example.com"), ["a.example.com", "b.example.com", "c.example.com"]);
}

#[test]
fn what_only_looks_like_a_host_is_ignored_and_told() {
    for (text, why) in [
        ("10.1.2.3", "an address"),
        ("10.0.0.0/8", "an address"),
        ("[2001:db8::1]:443", "an address"),
        ("https://10.1.2.3/x", "an address"),
        ("127.1", "a version or a short form"),
        ("22.3.4.1162", "a version or a short form"),
        ("v22.3.beta", "is a version"),
        ("ops@contoso.example", "mail address"),
        ("endpoints.json", "name of a file"),
        ("Microsoft.Devices", "resource provider"),
        ("System.String", "name of a type"),
        ("a.example.c0m", "does not end"),
        ("a.example.com:0", "behind its colon"),
        ("a.example.com:65536", "behind its colon"),
        ("a.example.com:https", "behind its colon"),
        ("{hub}.azure-devices.net", "gap to fill in"),
        ("<hub>.azure-devices.net", "gap to fill in"),
        ("https://localhost/x", "no host name with a dot"),
        ("see learn.microsoft.com for more", "in a sentence"),
    ] {
        let imported = imported(&serde_json::json!({ "value": text }).to_string());
        assert!(imported.hosts.is_empty(), "{text}");
        let ignored: Vec<&(String, String)> = imported.ignored.iter().collect();
        assert!(matches!(ignored.as_slice(), [(place, told)] if place == "value" && told.contains(why)), "{text}: {ignored:?}");
    }
    let quiet = r#"{"id": "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "at": "2026-01-01T10:00:00.000Z", "path": "/a/b.c", "ok": true, "n": 443,
        "text": "Outbound rules", "scope": "/subscriptions/1/providers/Microsoft.IoTSecurity", "tls": "1", "empty": ""}"#;
    assert_eq!(imported(quiet), Imported::default());
}

#[test]
fn what_describes_the_file_is_no_endpoint() {
    let text =
        r#"{"$schema": "https://schema.example.com/x.json", "documentation": "https://learn.microsoft.com/x", "host": "x.example.com"}"#;
    assert_eq!(names(text), ["x.example.com"]);
    assert_eq!(imported(text).ignored.len(), 2);
}

#[test]
fn a_url_with_a_password_is_not_repeated() {
    for text in ["https://user:hunter2@x.example.com/", "user:hunter2@x.example.com", r#"{"url": "https://hunter2@x.example.com"}"#] {
        let imported = imported(text);
        assert!(imported.hosts.is_empty());
        assert_eq!(imported.ignored.len(), 1);
        assert!(!format!("{imported:?}").contains("hunter2"), "{imported:?}");
    }
}

#[test]
fn wildcards_are_kept_apart_with_their_risk() {
    let imported = imported(r#"["*.blob.core.windows.net", ".download.microsoft.com", "hub-*.example.com:443", "*.pdf"]"#);
    assert!(imported.hosts.is_empty());
    let patterns: Vec<&str> = imported.wildcards.iter().map(|(pattern, _)| pattern.as_str()).collect();
    assert_eq!(patterns, ["*.blob.core.windows.net", ".download.microsoft.com", "hub-*.example.com"]);
    let risky: Vec<bool> = imported.wildcards.iter().map(|(_, why)| why.contains("whoever rents a name there")).collect();
    assert_eq!(risky, [true, false, false]);
    assert!(imported.wildcards[0].1.starts_with("[0]: exact names are needed"), "{:?}", imported.wildcards);
}

#[test]
fn what_is_too_much_is_refused_before_it_takes_memory() {
    let many: Vec<String> = (0..=MAX_HOSTS).map(|number| format!("h{number}.example.com")).collect();
    let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    for (text, reason) in [
        (" ".repeat(MAX_TEXT_BYTES + 1), "too_large"),
        (deep(MAX_DEPTH + 1), "too_deep"),
        (deep(1_000_000), "too_deep"),
        (format!("[{}0]", "0,".repeat(MAX_VALUES)), "too_many_values"),
        (",".repeat(MAX_VALUES + 1), "too_many_values"),
        (many.join("\n"), "too_many_hosts"),
        (format!("[{}]", many.iter().map(|host| format!("\"*.{host}\"")).collect::<Vec<_>>().join(",")), "too_many_hosts"),
        ("{".to_owned(), "not_json"),
        ("[1] [2]".to_owned(), "not_json"),
    ] {
        assert_eq!(endpoints(&text).map_err(|error| error.reason()), Err(reason), "{}", shown(&text));
    }
    assert_eq!(imported(&deep(MAX_DEPTH)), Imported::default());
    assert_eq!(imported(&many[..MAX_HOSTS].join("\n")).hosts.len(), MAX_HOSTS);
    let brackets_in_text = format!("[\"{}\", \"x.example.com\"]", "[".repeat(1000) + "\\\"");
    assert_eq!(names(&brackets_in_text), ["x.example.com"]);
}

fn entry(role: Role, ports: &[u16]) -> Entry {
    Entry { ports: ports.to_vec(), allow: vec!["10.20.0.0/16".parse().expect("a prefix")], ..Entry::new(role) }
}

fn catalogue(entries: &[(&str, Role, &[u16])]) -> Catalogue {
    let host = |name: &str| HostName::parse(name).expect("a name");
    Catalogue::new(entries.iter().map(|(name, role, ports)| (host(name), entry(*role, ports))).collect(), BTreeMap::new())
}

#[test]
fn a_difference_says_what_comes_goes_and_stays() {
    let imported = imported(
        r#"["new.azure-devices.net", "kept.azure-devices.net", "moved.azure-devices.net:8443", "moved.azure-devices.net:443",
            "unknown.example.com", "*.servicebus.windows.net", "*-sa.blob.core.windows.net", "new.blob.core.windows.net"]"#,
    );
    let configured = catalogue(&[
        ("kept.azure-devices.net", Role::IotHub, &[8883]),
        ("moved.azure-devices.net", Role::IotHub, &[443]),
        ("old.azure-devices.net", Role::IotHub, &[443]),
        ("x.servicebus.windows.net", Role::EventHub, &[443]),
        ("my-sa.blob.core.windows.net", Role::Blob, &[443]),
        ("own.example.com", Role::Other, &[443]),
        ("download.microsoft.com", Role::Download, &[443]),
    ]);
    let difference = difference(&imported, &configured);
    let names = |hosts: &[Configured]| hosts.iter().map(|(host, _)| host.to_string()).collect::<Vec<_>>();
    let added: Vec<&str> = difference.added.iter().map(|host| host.host.as_str()).collect();
    assert_eq!(added, ["new.azure-devices.net", "new.blob.core.windows.net", "unknown.example.com"]);
    assert_eq!(names(&difference.removed), ["old.azure-devices.net"]);
    assert_eq!(names(&difference.kept), ["kept.azure-devices.net"]);
    assert_eq!(
        names(&difference.unspoken),
        ["download.microsoft.com", "my-sa.blob.core.windows.net", "own.example.com", "x.servicebus.windows.net"]
    );
    assert_eq!(difference.ports.iter().map(|change| change.ports.as_slice()).collect::<Vec<_>>(), [[443, 8443]]);
    assert!(!difference.is_empty());

    let shown = difference.to_string();
    for line in [
        "3 new, 1 gone from the file, 1 with other ports, 5 unchanged",
        "+ new.azure-devices.net  iot-hub  port 443  at [0]",
        "- old.azure-devices.net  iot-hub",
        "~ moved.azure-devices.net  port 443 configured, 443, 8443 in the file",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line:?} is not in:\n{shown}");
    }
    assert!(shown.contains("* *.servicebus.windows.net") && shown.contains("under legacy_hubs"), "{shown}");

    let yaml = difference.to_yaml();
    for line in [
        "hosts:",
        "  - \"new.azure-devices.net\"",
        "  - { host: \"kept.azure-devices.net\", ports: [8883], allow: [\"10.20.0.0/16\"] }",
        "  - { host: \"moved.azure-devices.net\", ports: [443, 8443], allow: [\"10.20.0.0/16\"] }",
        "  # not in the file: - { host: \"old.azure-devices.net\", allow: [\"10.20.0.0/16\"] }",
    ] {
        assert!(yaml.lines().any(|shown| shown == line), "{line:?} is not in:\n{yaml}");
    }
    assert_eq!(yaml.lines().count(), 11, "{yaml}");
}

#[test]
fn the_same_file_again_makes_no_difference() {
    let imported = imported("hub.azure-devices.net:443\nsa.blob.core.windows.net\n");
    let configured = catalogue(&[("hub.azure-devices.net", Role::IotHub, &[443]), ("sa.blob.core.windows.net", Role::Blob, &[443])]);
    assert!(difference(&imported, &configured).is_empty());
    assert_eq!(difference(&Imported::default(), &Catalogue::default()).to_yaml(), "hosts: [ ]\n");
}

#[test]
fn old_hubs_and_wildcards_of_the_catalogue_stay_what_they_are() {
    let imported = imported("new.azure-devices.net\nsa.blob.core.windows.net\nlegacy-b.azure-devices.net\n");
    let host = |name: &str| HostName::parse(name).expect("a name");
    let hub = || Entry { legacy: true, ..Entry::new(Role::IotHub) };
    let hubs = ["legacy-a.azure-devices.net", "legacy-b.azure-devices.net"].map(|name| (host(name), hub()));
    let wildcards = BTreeMap::from([(host("blob.core.windows.net"), Entry::new(Role::Blob))]);
    let difference = difference(&imported, &Catalogue::new(BTreeMap::from(hubs), wildcards));
    let added: Vec<&str> = difference.added.iter().map(|host| host.host.as_str()).collect();
    assert_eq!(added, ["new.azure-devices.net", "sa.blob.core.windows.net"], "an exact name is worth having beside a wildcard");
    assert!(difference.removed.is_empty());
    assert_eq!(
        difference.to_yaml(),
        "hosts:\n  - \"*.blob.core.windows.net\"\n  - \"new.azure-devices.net\"\n  - \"sa.blob.core.windows.net\"\n"
    );
}

#[test]
fn patterns_stand_for_what_lies_below_them() {
    let host = HostName::parse("a.b.example.com").expect("a name");
    for (pattern, matched) in [
        ("*.example.com", true),
        (".example.com", true),
        ("*.b.example.com", true),
        ("a*.example.com", true),
        ("*.a.b.example.com", false),
        ("*xample.com", true),
        ("*.other.com", false),
        (".xample.com", false),
    ] {
        assert_eq!(matches_pattern(pattern, &host), matched, "{pattern}");
    }
}

proptest! {
    #[test]
    fn any_text_gives_exact_hosts_or_an_error(text in "[\\[{\"a-z.:,@*/ 0-9\\]}\n-]{0,200}") {
        if let Ok(imported) = endpoints(&text) {
            for host in &imported.hosts {
                prop_assert_eq!(HostName::parse(host.host.as_str()), Ok(host.host.clone()));
                prop_assert!(host.host.as_str().contains('.'));
                prop_assert!(!host.ports.contains(&0));
            }
        }
    }

    #[test]
    fn hosts_are_found_in_any_json(
        labels in proptest::collection::vec("[a-z][a-z0-9-]{0,10}[a-z0-9]", 1..20),
        depth in 0_usize..30,
    ) {
        let hosts: BTreeSet<String> = labels.iter().map(|label| format!("{label}.azure-devices.net")).collect();
        let list = serde_json::json!(hosts);
        let wrap = |inner: Value, level: usize| if level.is_multiple_of(2) { serde_json::json!([inner]) } else { serde_json::json!({ "k": inner }) };
        let nested = (0..depth).fold(list, wrap);
        prop_assert_eq!(names(&nested.to_string()), hosts.into_iter().collect::<Vec<_>>());
    }
}
