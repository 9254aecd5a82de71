//! Files as they are written, what comes of each, and that every directive is answered for.

use std::path::Path;

use proptest::prelude::*;

use super::*;

/// The findings of one line, as `severity: why`.
fn told(import: &SquidImport, line: usize) -> Vec<String> {
    let findings = import.findings.iter().filter(|finding| finding.line == line);
    findings.map(|finding| format!("{}: {}", finding.severity.label(), finding.why)).collect()
}

/// Whether some finding of `line` has that severity and says `part`.
fn tells(import: &SquidImport, line: usize, severity: Severity, part: &str) -> bool {
    import.findings.iter().any(|finding| finding.line == line && finding.severity == severity && finding.why.contains(part))
}

#[track_caller]
fn assert_tells(import: &SquidImport, line: usize, severity: Severity, part: &str) {
    assert!(
        tells(import, line, severity, part),
        "line {line} does not tell of {part:?} as {}: {:#?}",
        severity.label(),
        told(import, line)
    );
}

#[track_caller]
fn assert_yaml(import: &SquidImport, lines: &[&str]) {
    for line in lines {
        assert!(import.yaml.lines().any(|written| written == *line), "{line:?} is not in:\n{}", import.yaml);
    }
}

/// Whether the YAML is a relay that skyway takes, apart from secrets that are not there.
#[track_caller]
fn assert_good(import: &SquidImport) {
    // Without a probe, for which the machine would need certificates of its own.
    let relay = import.yaml.replace("via: direct", "via: direct, probe: off");
    let file = format!("version: 1\ngateway: {{ name: gateway-a, site: plant }}\n{relay}");
    let loaded = crate::config::parse(file, Path::new("."));
    assert!(!loaded.diagnostics.has_errors(), "{}", loaded.diagnostics.render("squid.conf", &loaded.source, false));
}

fn dangers(import: &SquidImport) -> Vec<usize> {
    import.findings.iter().filter(|finding| finding.severity == Severity::Danger).map(|finding| finding.line).collect()
}

/// The shape of the recipe that Microsoft publishes for a proxy in Azure: domains first, the port's rule behind them.
const RECIPE: &str = "\
http_port 3128
cache deny all
acl azure_sites dstdomain .azure-devices.net
acl azure_sites dstdomain .blob.core.windows.net
acl azure_sites dstdomain .servicebus.windows.net
acl azure_sites dstdomain .download.microsoft.com
http_access allow azure_sites
acl tls_port port 443
acl CONNECT method CONNECT
http_access deny CONNECT !tls_port
http_access allow localhost
http_access deny all
";

#[test]
fn the_published_recipe_is_told_what_it_lets_through() {
    let import = squid(RECIPE);
    for (line, domain) in [(3, "azure-devices.net"), (4, "blob.core.windows.net"), (5, "servicebus.windows.net")] {
        assert_tells(&import, line, Severity::Danger, &format!("below {domain} every tenant has names"));
    }
    assert_tells(&import, 6, Severity::NotCarried, "only download.microsoft.com itself");
    assert_tells(&import, 7, Severity::Danger, "on any port, 2222 for one");
    assert_tells(&import, 7, Severity::Danger, "the rule on line 10 that would refuse other ports comes too late");
    assert_tells(&import, 7, Severity::Danger, "plain HTTP");
    assert_tells(&import, 7, Severity::Danger, "no acl of the type src");
    assert_tells(&import, 2, Severity::Note, "stores nothing");
    assert_tells(&import, 0, Severity::NotCarried, "no sensor is carried over");
    assert_eq!(dangers(&import), [3, 4, 5, 7, 7, 7], "the rest of it is harmless");
    assert_eq!(
        import.yaml,
        "# From a squid.conf. Read what the import found before this is used.\n\
         relay:\n  \
         catalogue:\n    \
         hosts:\n      \
         - \"download.microsoft.com\"\n  \
         sensors: { }\n  \
         paths:\n    \
         - { name: direct, via: direct }\n  \
         listeners:\n    \
         - { name: \"proxy\", kind: connect, listen: \"0.0.0.0:3128\" }\n"
    );
    assert_good(&import);
}

#[test]
fn the_same_recipe_in_order_is_carried_over() {
    let import = squid(
        "acl line3 src 10.1.2.0/24 10.1.3.7 # two networks\n\
         acl line4 src 10.1.4.0/255.255.255.0\n\
         acl hosts dstdomain Contoso-Hub.azure-devices.net contososa.blob.core.windows.net\n\
         acl tls_port port 443 8883\n\
         http_access deny CONNECT !tls_port\n\
         http_access deny !CONNECT\n\
         http_access allow line3 hosts\n\
         http_access allow line4 hosts\n\
         http_access deny all\n\
         http_port 10.0.0.4:3128 name=plant\n",
    );
    assert_yaml(
        &import,
        &[
            "      - { host: \"contoso-hub.azure-devices.net\", ports: [443, 8883] }",
            "      - { host: \"contososa.blob.core.windows.net\", ports: [443, 8883] }",
            "    \"line3\": { from: [\"10.1.2.0/24\", \"10.1.3.7/32\"] }",
            "    \"line4\": { from: [\"10.1.4.0/24\"] }",
            "    - { name: \"plant\", kind: connect, listen: \"10.0.0.4:3128\" }",
        ],
    );
    for line in [1, 2, 3, 4, 7, 8, 10] {
        assert!(import.findings.iter().any(|finding| finding.line == line && finding.severity == Severity::Carried), "line {line}");
    }
    assert!(import.findings.iter().all(|finding| finding.severity <= Severity::Note), "{:#?}", import.findings);
    assert_good(&import);
}

#[test]
fn order_decides() {
    let listed = "acl hosts dstdomain a.example.com b.example.com\nacl b dstdomain b.example.com\nacl s src 10.0.0.1\n";
    for (rules, carried) in [
        ("http_access deny b\nhttp_access allow s hosts\nhttp_access deny all\n", vec!["a"]),
        ("http_access allow s hosts\nhttp_access deny b\nhttp_access deny all\n", vec!["a", "b"]),
        ("http_access deny !hosts\nhttp_access allow s\nhttp_access deny all\n", vec!["a", "b"]),
        ("http_access deny all\nhttp_access allow s hosts\n", vec![]),
        ("http_access allow s hosts !b\nhttp_access deny all\n", vec!["a"]),
        ("http_access allow s b\nhttp_access allow manager hosts\nhttp_access deny all\n", vec!["b"]),
        ("", vec![]),
    ] {
        let import = squid(&format!("{listed}{rules}"));
        let hosts: Vec<&str> =
            import.yaml.lines().filter_map(|line| line.strip_prefix("      - \"")?.strip_suffix(".example.com\"")).collect();
        assert_eq!(hosts, carried, "{rules}");
    }
}

#[test]
fn an_open_proxy_is_called_one() {
    let import = squid(
        "acl localnet src 10.0.0.0/8\nacl blocked dstdomain .example.org x.example.com\n\
         http_access deny blocked\nhttp_access allow localnet\n",
    );
    assert_tells(&import, 4, Severity::Danger, "every host there is");
    assert_tells(&import, 4, Severity::Danger, "cache manager");
    assert_tells(&import, 4, Severity::Danger, "no rule keeps CONNECT to port 443");
    assert!(!tells(&import, 4, Severity::Danger, "no acl of the type src"), "{:#?}", told(&import, 4));
    assert_tells(&import, 1, Severity::Note, "all of 10.0.0.0/8 is one sensor");
    assert_tells(&import, 2, Severity::Note, "let through by no rule");
    assert_yaml(&import, &["    hosts: [ ]", "    \"localnet\": { from: [\"10.0.0.0/8\"] }"]);

    let import = squid("acl bad src 10.0.0.1\nhttp_access deny bad\n");
    assert_tells(&import, 2, Severity::Danger, "the opposite of this, the last: it lets CONNECT through to every host");
    assert_tells(&import, 2, Severity::NotCarried, "keep it out of every sensor's `from`");

    let import = squid("http_access allow all\n");
    assert_tells(&import, 1, Severity::Danger, "no acl of the type src");
}

#[test]
fn squids_own_example_is_no_danger_but_for_plain_http() {
    let import = squid(
        "acl localnet src 0.0.0.1-0.255.255.255\n\
         acl localnet src 10.1.0.0/24\n\
         acl SSL_ports port 443\n\
         acl Safe_ports port 80\n\
         acl Safe_ports port 443\n\
         acl Safe_ports port 1025-65535\n\
         acl sites dstdomain a.example.com\n\
         http_access deny !Safe_ports\n\
         http_access deny CONNECT !SSL_ports\n\
         http_access allow localhost manager\n\
         http_access deny manager\n\
         http_access allow localhost\n\
         http_access deny to_localhost\n\
         http_access deny to_linklocal\n\
         http_access allow localnet sites\n\
         http_access deny all\n\
         http_port 3128\n\
         coredump_dir /var/spool/squid\n\
         refresh_pattern . 0 20% 4320\n",
    );
    assert_eq!(dangers(&import), [15]);
    assert_tells(&import, 15, Severity::Danger, "plain HTTP");
    assert_tells(&import, 1, Severity::Note, "no sensor's");
    assert_tells(&import, 6, Severity::Note, "a range of ports");
    assert_yaml(&import, &["      - \"a.example.com\"", "    \"localnet\": { from: [\"10.1.0.0/24\"] }"]);
    assert_good(&import);
}

#[test]
fn sensors_by_user_and_password() {
    let import = squid(
        "auth_param basic program /usr/lib/squid/basic_ldap_auth -w hunter2 ldap.example.com\n\
         acl hosts dstdomain a.example.com\n\
         acl net src 10.1.2.0/24\n\
         acl one proxy_auth line-3\n\
         acl two proxy_auth line-4 line-5\n\
         http_access allow net one hosts\n\
         http_access allow two hosts\n\
         http_access deny all\n",
    );
    assert_yaml(
        &import,
        &[
            "    \"line-3\": { from: [\"10.1.2.0/24\"], proxy_user: { name: \"line-3\", password: { file: \"/etc/skyway/line-3.pw\" } } }",
            "    \"line-4\": { proxy_user: { name: \"line-4\", password: { file: \"/etc/skyway/line-4.pw\" } } }",
            "    \"line-5\": { proxy_user: { name: \"line-5\", password: { file: \"/etc/skyway/line-5.pw\" } } }",
        ],
    );
    assert_tells(&import, 5, Severity::Carried, "mode 0600");
    assert!(!tells(&import, 7, Severity::Danger, "no acl of the type src"), "a password is asked for: {:#?}", told(&import, 7));

    let import = squid(
        "acl hosts dstdomain a.example.com\nacl net src 10.1.2.0/24\nacl any proxy_auth REQUIRED\n\
         http_access deny !any\nhttp_access allow net hosts\n",
    );
    assert_tells(&import, 5, Severity::NotCarried, "give each sensor its proxy_user");
    assert_yaml(&import, &["    \"net\": { from: [\"10.1.2.0/24\"] }"]);

    let import =
        squid("acl net src 10.1.2.0/24\nacl two proxy_auth a b\nacl hosts dstdomain a.example.com\nhttp_access allow net two hosts\n");
    assert_tells(&import, 4, Severity::NotCarried, "several users at one source");
    assert_yaml(&import, &["    \"a\": { proxy_user: { name: \"a\", password: { file: \"/etc/skyway/a.pw\" } } }"]);
}

#[test]
fn names_that_yaml_would_not_take_are_made_usable() {
    let import = squid(
        "acl h dstdomain a.example.com\nacl ../../x! src 10.0.0.1\nacl --x! src 10.0.0.2\nacl u proxy_auth ../../x!\n\
         http_access allow ../../x! h\nhttp_access allow --x! h\nhttp_access allow u h\n",
    );
    assert_yaml(
        &import,
        &[
            "    \"x-\": { from: [\"10.0.0.1/32\"] }",
            "    \"x--2\": { from: [\"10.0.0.2/32\"] }",
            "    \"x--3\": { proxy_user: { name: \"../../x!\", password: { file: \"/etc/skyway/x--3.pw\" } } }",
        ],
    );
    assert!(!import.yaml.contains("/etc/skyway/.."), "{}", import.yaml);
}

#[test]
fn parents_become_the_path() {
    let import = squid(
        "cache_peer 10.9.0.2 parent 3128 0 no-query default\n\
         cache_peer proxy.example.com parent 8080 0 login=plant:hunter2 tls\n\
         cache_peer [2001:db8::7] parent 3128 0 login=PASS\n\
         cache_peer sibling.example.com sibling 3128 3130\n\
         never_direct allow all\n\
         dns_nameservers 10.0.0.53 10.0.0.54\n",
    );
    assert_yaml(
        &import,
        &["    - { name: parents, via: direct, parents: [\"http://10.9.0.2:3128\", \
           { url: \"https://proxy.example.com:8080\", auth: { name: \"plant\", password: { file: \"/etc/skyway/parent-2.pw\" } } }, \
           \"http://[2001:db8::7]:3128\"], name_servers: [\"10.0.0.53\", \"10.0.0.54\"] }"],
    );
    assert_tells(&import, 1, Severity::Carried, "as a parent");
    assert_tells(&import, 2, Severity::NotCarried, "the parent's password");
    assert_tells(&import, 3, Severity::NotCarried, "hands no sensor's credentials on");
    assert_tells(&import, 4, Severity::NotCarried, "only a parent");
    assert_tells(&import, 5, Severity::Carried, "nothing leaves but by a parent");
    assert!(dangers(&import).is_empty());
}

#[test]
fn a_parent_that_squid_may_pass_by_is_a_danger() {
    let import = squid("cache_peer 10.9.0.2 parent 3128 0\n");
    assert_tells(&import, 1, Severity::Danger, "straight out");
    let some = "acl local dstdomain .example.com\ncache_peer 10.9.0.2 parent 3128 0\n\
                never_direct deny local\nnever_direct allow all\nhttp_access allow local\n";
    let import = squid(some);
    assert_tells(&import, 3, Severity::NotCarried, "a path is for every host");
    let import = squid("cache_peer 10.9.0.2 parent 3128 0\nalways_direct allow all\n");
    assert_yaml(&import, &["    - { name: direct, via: direct }"]);
    assert_tells(&import, 1, Severity::NotCarried, "passes by every parent");
    let import = squid("never_direct allow all\n");
    assert_yaml(&import, &["  paths: [ ]"]);
}

#[test]
fn what_a_port_does_besides_is_told() {
    for (line, severity, part) in [
        ("http_port 3129 intercept", Severity::NotCarried, "come without CONNECT"),
        ("http_port 3129 tproxy", Severity::NotCarried, "come without CONNECT"),
        ("http_port 80 accel defaultsite=x", Severity::NotCarried, "reverse proxy"),
        ("http_port 3128 ssl-bump tls-cert=/x.pem", Severity::Danger, "decrypts"),
        ("http_port 3128 require-proxy-header", Severity::NotCarried, "PROXY protocol"),
        ("http_port proxy.example.com:3128", Severity::NotCarried, "not at a name"),
        ("http_port 0", Severity::NotCarried, "ADDRESS:PORT"),
        ("http_port", Severity::NotCarried, "without its number"),
        ("http_port 3128 tcpkeepalive=60,30,3", Severity::Note, "tcpkeepalive"),
        ("https_port 3130 tls-cert=/x.pem", Severity::NotCarried, "listener of the kind connect with tls"),
        ("ssl_bump bump all", Severity::Danger, "decrypts"),
        ("ssl_bump splice all", Severity::NotCarried, "never decrypts"),
        ("tcp_outgoing_address 10.0.0.9", Severity::NotCarried, "underlay"),
        ("include /etc/squid/conf.d/*.conf", Severity::NotCarried, "not read"),
        ("if ${process_number} = 1", Severity::NotCarried, "as though all of them held"),
        ("auth_param negotiate program /x", Severity::NotCarried, "Basic"),
        ("cachemgr_passwd hunter2 all", Severity::Note, "no cache manager"),
        ("frobnicate yes", Severity::NotCarried, "frobnicate is not understood"),
        ("acl x", Severity::NotCarried, "a name and a type"),
        ("acl x src", Severity::NotCarried, "no values"),
        ("acl x src plc-7.example.com", Severity::NotCarried, "a source that is a name"),
        ("acl x src 10.0.0.9-10.0.0.1", Severity::NotCarried, "a range"),
        ("acl x port https", Severity::NotCarried, "not a port"),
        ("acl x dstdomain 10.0.0.1", Severity::NotCarried, "an address stands where"),
        ("acl x dstdomain *.example.com", Severity::NotCarried, "'*' cannot stand"),
        ("acl x dstdomain \"/etc/squid/sites\"", Severity::NotCarried, "another file"),
        ("acl x dstdom_regex ^a", Severity::NotCarried, "type dstdom_regex"),
        ("acl localhost dstdomain x.example.com", Severity::NotCarried, "another type"),
        ("acl all src 0.0.0.0/0", Severity::Note, "by itself"),
        ("http_access permit all", Severity::NotCarried, "allow or deny"),
        ("http_access allow", Severity::NotCarried, "names no list"),
        ("http_access allow nobody", Severity::NotCarried, "no list above is called nobody"),
        ("cache_peer x", Severity::NotCarried, "a host, a type and a port"),
        ("cache_peer x parent 0 0", Severity::NotCarried, "can dial"),
        ("dns_nameservers ns1", Severity::NotCarried, "not an address"),
    ] {
        assert_tells(&squid(line), 1, severity, part);
    }
}

#[test]
fn passwords_are_repeated_nowhere() {
    let text = "cache_peer p.example.com parent 3128 0 login=plant:hunter2\n\
                cache_peer p.example.com parent 3128 0 login = plant:hunter2\n\
                cachemgr_passwd hunter2 all\n\
                auth_param basic program /usr/lib/squid/basic_ldap_auth -w hunter2\n\
                external_acl_type check /usr/lib/squid/helper --secret hunter2\n\
                request_header_add Proxy-Authorization hunter2\n\
                acl x req_header Authorization hunter2\n\
                unheard_of hunter2\n";
    assert!(!format!("{:?}", squid(text)).contains("hunter2"));
}

#[test]
fn lines_go_on_behind_a_backslash_and_end_at_a_comment() {
    let import = squid(
        "# a comment\r\n\tacl hosts dstdomain a.example.com \\\r\n# another\r\n\r\n\
         \x20 b.example.com#c.example.com d.example.com # e.example.com\r\n\
         acl s src 10.0.0.1\nhttp_access allow s hosts\nhttp_port 3128 \\",
    );
    let finding = import.findings.iter().find(|finding| finding.severity == Severity::Carried).expect("something is carried over");
    assert_eq!((finding.line, finding.text.as_str()), (2, "acl hosts dstdomain a.example.com b.example.com#c.example.com d.example.com"));
    assert_yaml(&import, &["      - \"a.example.com\"", "      - \"d.example.com\"", "  listeners: [ ]"]);
    assert_tells(&import, 2, Severity::NotCarried, "b.example.com#c.example.com is not carried over");
    assert_tells(&import, 8, Severity::NotCarried, "behind a backslash");
}

#[test]
fn conditions_that_cannot_be_decided_leave_hosts_in_and_are_told() {
    let import = squid(
        "acl hosts dstdomain a.example.com\nacl s src 10.0.0.1\nacl worktime time MTWHF 08:00-18:00\nacl re dstdom_regex ^x\n\
         http_access allow s hosts worktime\nhttp_access allow s re\nhttp_access deny all\n",
    );
    assert_yaml(&import, &["      - \"a.example.com\""]);
    assert_tells(&import, 5, Severity::NotCarried, "the condition worktime is not carried over");
    assert!(!tells(&import, 6, Severity::Danger, "every host there is"), "a pattern is not every host");
}

#[test]
fn what_is_too_much_is_not_read() {
    let import = squid(&"#".repeat(MAX_TEXT_BYTES + 1));
    assert_tells(&import, 0, Severity::NotCarried, "larger than");
    let import = squid(&"via on\n".repeat(MAX_LINES + 1));
    assert_tells(&import, 0, Severity::NotCarried, "from line 20001 on");
    let many: String = (0..=MAX_VALUES).map(|number| format!("acl hosts dstdomain h{number}.example.com\n")).collect();
    assert_tells(&squid(&many), MAX_VALUES + 1, Severity::NotCarried, "more than 2048 values");
    assert_tells(&squid(&"http_access deny all\n".repeat(MAX_RULES + 1)), MAX_RULES + 1, Severity::NotCarried, "are not read");
    let long = format!("http_access deny {}\n", "all ".repeat(MAX_TERMS + 1));
    assert_tells(&squid(&long), 1, Severity::NotCarried, "are not read");
}

/// A directive, good or bad.
fn directive() -> impl Strategy<Value = String> {
    let words = [
        "all",
        "!all",
        "x",
        "!x",
        "y",
        "allow",
        "deny",
        "src",
        "dstdomain",
        "port",
        "proxy_auth",
        "REQUIRED",
        "443",
        "1-9",
        "10.0.0.1",
        "10.0.0.0-10.0.0.9",
        "a.example.com",
        ".example.com",
        "parent",
        "login=a:b",
        "CONNECT",
        "\"file\"",
        "-i",
        "\\",
    ];
    let names =
        ["acl", "http_access", "http_port", "cache_peer", "never_direct", "always_direct", "dns_nameservers", "auth_param", "via", "what"];
    let (name, word) = (proptest::sample::select(names.to_vec()), proptest::sample::select(words.to_vec()));
    (name, proptest::collection::vec(word, 0..6)).prop_map(|(name, words)| format!("{name} {}", words.join(" ")))
}

proptest! {
    #[test]
    fn every_directive_is_answered_for(lines in proptest::collection::vec(directive(), 0..20)) {
        let text = lines.join("\n");
        let import = squid(&text);
        let mut goes_on = false;
        for (index, line) in lines.iter().enumerate() {
            let answered = import.findings.iter().any(|finding| finding.line == index + 1);
            prop_assert!(goes_on || answered, "line {} of:\n{}\n{:#?}", index + 1, text, import.findings);
            goes_on = line.ends_with('\\');
        }
    }

    #[test]
    fn any_text_is_read(text in any::<String>()) {
        prop_assert!(squid(&text).yaml.contains("relay:"));
    }
}
