use proptest::prelude::*;

use serde::Deserialize;

use super::super::diagnostic::Span;
use super::super::field::{Entries, Field, ScalarOr};
use super::*;
use crate::config::yaml::parse;

#[test]
fn reads_a_correct_file() {
    let (sample, mistakes) = read_sample(
        "version: 1
tunnels:
  azure:
    mode: userspace
    listen: 51820
    private_key: { file: /etc/skyway/azure.key }
    via: { tunnel: other }
    addresses: [10.99.0.1/30, \"fd00::1/64\"]
    nat: true
    ratio: 1.5
  other: { via: direct }
routes:
  - { prefix: 10.0.0.0/8, metric: 100 }
",
    );
    assert_eq!(mistakes, [""; 0]);
    assert_eq!(sample.version.get(), Some(&1));

    let azure = tunnel(&sample, 0);
    assert_eq!(azure.mode.get(), Some(&RawMode::Userspace));
    assert_eq!(azure.listen.get(), Some(&51820));
    let key = azure.private_key.get().expect("private_key");
    assert_eq!(key.file.get().map(String::as_str), Some("/etc/skyway/azure.key"));
    assert!(!key.env.is_present());
    let Some(ScalarOr::Mapping(via)) = azure.via.get() else {
        panic!("{:?} is not a mapping", azure.via);
    };
    assert_eq!(via.tunnel.get().map(String::as_str), Some("other"));
    let addresses = azure.addresses.get().expect("addresses");
    let addresses: Vec<_> = addresses.iter().filter_map(Field::get).collect();
    assert_eq!(addresses, ["10.99.0.1/30", "fd00::1/64"]);
    assert_eq!(azure.nat.get(), Some(&true));
    assert_eq!(azure.ratio.get(), Some(&1.5));

    let other = tunnel(&sample, 1);
    assert!(matches!(other.via.get(), Some(ScalarOr::Scalar(word)) if word == "direct"));
    assert!(!other.listen.is_present());

    let routes = sample.routes.get().expect("routes");
    let route = routes[0].get().expect("route");
    assert_eq!(route.prefix.path, "routes[0].prefix");
    assert_eq!(route.prefix.span(), Span::new(13, 15, 10));
    assert_eq!(route.metric.get(), Some(&100));
}

#[test]
fn finds_every_mistake() {
    let source = "version: one
tunnels:
  azure:
    mode: tunn
    listen: 70000
    lissten: 1
    nat: yes
    ratio: inf
    addresses: 10.0.0.1/8
";
    let (sample, mistakes) = read_sample(source);
    assert_eq!(
        mistakes,
        [
            "1:10 `one` is not a whole number",
            "4:11 unknown value `tunn`",
            "5:13 `70000` is out of range",
            "6:5 unknown key `lissten`",
            "7:10 `yes` is not a boolean",
            "8:12 `inf` is not a number",
            "9:16 expected a sequence, found a string",
        ]
    );
    assert!(sample.version.is_present());
    assert_eq!(sample.version.get(), None);
}

#[test]
fn says_what_is_allowed_and_what_is_near() {
    let source = "tunnels:\n  azure:\n    mode: tunn\n    lissten: 1\n    nat: off\n";
    let diagnostics = mistakes_in(source);
    assert_eq!(
        diagnostics.render("skyway.yaml", source, false),
        "error: unknown value `tunn`
 --> skyway.yaml:3:11
  |
3 |     mode: tunn
  |           ^^^^ in tunnels.azure.mode
  = expected: one of auto, tun, userspace
  = did you mean: tun

error: unknown key `lissten`
 --> skyway.yaml:4:5
  |
4 |     lissten: 1
  |     ^^^^^^^ in tunnels.azure
  = expected: one of addresses, listen, mode, nat, private_key, ratio, via
  = did you mean: listen

error: `off` is not a boolean
 --> skyway.yaml:5:10
  |
5 |     nat: off
  |          ^^^ in tunnels.azure.nat
  = expected: true or false
  = did you mean: false

3 errors in skyway.yaml
"
    );
}

#[test]
fn goes_on_behind_a_broken_element() {
    let (sample, mistakes) = read_sample(
        "routes:
  - { prefix: [], metric: 1 }
  - 7
  - { prefix: 10.0.0.0/8, metrik: 1 }
",
    );
    assert_eq!(
        mistakes,
        ["2:15 expected a string, found a sequence", "3:5 expected a mapping, found a number", "4:27 unknown key `metrik`",]
    );
    let routes = sample.routes.get().expect("routes");
    let metric = |at: usize| routes[at].get().and_then(|route| route.metric.get());
    assert_eq!((metric(0), metric(2)), (Some(&1), None));
    assert_eq!(routes[1].path, "routes[1]");
    assert!(routes[1].get().is_none());
}

#[test]
fn keeps_entries_in_order_and_reports_a_name_used_twice() {
    let (sample, mistakes) = read_sample(
        "tunnels:
  b: { listen: 1 }
  \"a.x\": { listen: 2 }
  b: { listen: 3 }
",
    );
    assert_eq!(mistakes, ["4:3 key `b` appears twice"]);
    let tunnels = &sample.tunnels.get().expect("tunnels").0;
    let names: Vec<_> = tunnels.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["b", "a.x"]);
    assert_eq!(tunnels[1].name_span, Span::new(3, 3, 5));
    assert_eq!(tunnels[1].value.path, "tunnels.\"a.x\"");
    assert_eq!(tunnel(&sample, 0).listen.get(), Some(&1));

    let twice = mistakes_in("version: 1\nversion: 1\n");
    let related = twice.iter().map(|diagnostic| diagnostic.related.clone());
    let first = (Span::new(1, 1, 7), "first used here".to_owned());
    assert_eq!(related.collect::<Vec<_>>(), [[first]]);
}

#[test]
fn tells_a_missing_value_from_a_wrong_one() {
    assert_eq!(
        read_sample(
            "version:
tunnels:
  azure: ~
  other:
    mode: null
    listen: \"1\"
    via: [direct]
    private_key:
routes: {}
"
        )
        .1,
        [
            "1:8 a value is missing",
            "3:10 a value is missing",
            "5:11 a value is missing",
            "6:13 expected a whole number from 0 to 65535, found a quoted string",
            "7:10 expected a string or a mapping, found a sequence",
            "8:16 a value is missing",
            "9:9 expected a sequence, found a mapping",
        ]
    );
    assert_eq!(all(&mistakes_in("")), ["1:1 the file is empty"]);
    assert_eq!(all(&mistakes_in("[]")), ["1:1 expected a mapping, found a sequence"]);
}

#[test]
fn refuses_numbers_that_are_not_plain_decimals() {
    for text in ["0x10", "010", "1_000", "1.0", "+", "1e3", "١"] {
        let mistakes = all(&mistakes_in(&format!("version: {text}")));
        assert_eq!(mistakes, [format!("1:10 `{text}` is not a whole number")]);
    }
    let huge = "9".repeat(50);
    for text in ["-1", "4294967296", huge.as_str()] {
        let mistakes = all(&mistakes_in(&format!("version: {text}")));
        assert_eq!(mistakes, [format!("1:10 `{text}` is out of range")]);
    }
    for (text, number) in [("0", 0), ("+7", 7), ("4294967295", u32::MAX)] {
        let (sample, mistakes) = read_sample(&format!("version: {text}"));
        assert_eq!((sample.version.get(), mistakes.len()), (Some(&number), 0));
    }
}

#[test]
fn never_repeats_a_secret() {
    for (key, mistake) in [
        ("s3cret", "expected a mapping, found a string"),
        ("\"s3cret\"", "expected a mapping, found a quoted string"),
        ("[s3cret, [s3cret]]", "expected a mapping, found a sequence"),
        ("{ value: s3cret }", "unknown key `value`"),
        ("{ value: [{ x: s3cret }] }", "unknown key `value`"),
    ] {
        let source = format!("tunnels: {{ a: {{ mode: no, private_key: {key} }} }}\n");
        let diagnostics = mistakes_in(&source);
        let mistakes = all(&diagnostics);
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(mistakes[1].ends_with(mistake), "{mistakes:?}");
        let rendered = diagnostics.render("f", &source, false);
        assert!(!rendered.contains("s3cret"), "{rendered}");
        assert!(!diagnostics.to_json().to_string().contains("s3cret"));
    }

    let source = "tunnels: { a: { private_key: s3cret } }";
    let (sample, _) = read_sample(source);
    let field = &tunnel(&sample, 0).private_key;
    assert!(Place::from(field).written.is_none());
    assert!(!format!("{field:?}").contains("s3cret"));
    let diagnostics = mistakes_in(source);
    let help = diagnostics.iter().find_map(|other| other.help.as_deref());
    assert!(help.is_some_and(|help| help.contains("{ file: PATH }")));
}

#[test]
fn serves_whoever_resolves_the_structs() {
    let source = "tunnels:\n  azure: { listen: 5, via: direct, mode: bad }\n";
    let root = parse(source).expect("YAML");
    let mut diagnostics = Diagnostics::default();
    let sample: RawSample = read(&root, &mut diagnostics).expect("a struct");
    let entry = &sample.tunnels.get().expect("tunnels").0[0];
    let azure = entry.value.get().expect("azure");

    diagnostics.error(&azure.listen, "a privileged port");
    assert!(azure.private_key.require("private_key", entry, &mut diagnostics).is_none());
    assert!(azure.mode.require("mode", entry, &mut diagnostics).is_none());
    assert!(azure.via.require("via", entry, &mut diagnostics).is_some());
    diagnostics.warning(&azure.listen, "odd");
    diagnostics.sort();

    let found: Vec<_> = diagnostics.iter().map(|other| (other.message.as_str(), other.path.as_str(), other.value.as_deref())).collect();
    assert_eq!(
        found,
        [
            ("`private_key` is missing", "tunnels.azure", None),
            ("a privileged port", "tunnels.azure.listen", Some("5")),
            ("odd", "tunnels.azure.listen", Some("5")),
            ("unknown value `bad`", "tunnels.azure.mode", Some("bad")),
        ]
    );
}

#[test]
fn gives_a_place_to_what_serde_says() {
    #[derive(Debug, Deserialize)]
    struct Plain {
        count: std::num::NonZeroU8,
        pair: (u8, u8),
        address: std::net::IpAddr,
    }
    let plain = |source: &str| {
        let root = parse(source).expect("YAML");
        let mut diagnostics = Diagnostics::default();
        let plain = read::<Plain>(&root, &mut diagnostics);
        (plain, all(&diagnostics))
    };

    let (good, mistakes) = plain("count: 1\npair: [1, 2]\naddress: 10.0.0.1\n");
    let good = good.expect("a struct");
    assert_eq!((good.count.get(), good.pair), (1, (1, 2)));
    assert_eq!(good.address.to_string(), "10.0.0.1");
    assert_eq!(mistakes, [""; 0]);

    for (source, mistake) in [
        ("count: 0", "1:8 integer `0` is not allowed here"),
        ("pair: [1]", "1:7 found 1 elements"),
        ("pair: [1, 2, 3]", "1:7 found 3 elements"),
        ("address: here", "1:10 invalid IP address syntax"),
        ("{}", "1:1 `count` is missing"),
    ] {
        let (plain, mistakes) = plain(source);
        assert!(plain.is_none());
        assert_eq!(mistakes, [mistake], "{source:?}");
    }
}

proptest! {
    #[test]
    fn survives_any_text(source in any::<String>()) {
        survives(&source);
    }

    #[test]
    fn survives_any_order_of_tokens(
        tokens in prop::collection::vec(prop::sample::select(TOKENS), 0..80),
    ) {
        survives(&tokens.concat());
    }
}

const TOKENS: &[&str] = &[
    "version",
    "tunnels",
    "azure",
    "mode",
    "listen",
    "private_key",
    "via",
    "addresses",
    "nat",
    "ratio",
    "routes",
    "prefix",
    "metric",
    "file",
    ": ",
    ":",
    "\n",
    "\r\n",
    "\n  ",
    "\n    ",
    "\n      ",
    "- ",
    "-",
    "[",
    "]",
    "{",
    "}",
    ", ",
    ",",
    "\"",
    "'",
    "# ",
    "&a ",
    "*a ",
    "!t ",
    "| ",
    ">-",
    "? ",
    "?",
    "~",
    "<<",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "\t",
    "\\",
    "\u{feff}",
    "\0",
    "\u{1b}",
    "1",
    "70000",
    "true",
    "é",
    " ",
    "  ",
];

fn survives(source: &str) {
    let mut diagnostics = Diagnostics::default();
    match parse(source) {
        Ok(root) => {
            read::<RawSample>(&root, &mut diagnostics);
        }
        Err(diagnostic) => diagnostics.push(diagnostic),
    }
    diagnostics.render("fuzz.yaml", source, true);
    diagnostics.to_json();
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSample {
    version: Field<u32>,
    tunnels: Field<Entries<RawTunnel>>,
    routes: Field<Vec<Field<RawRoute>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTunnel {
    mode: Field<RawMode>,
    listen: Field<u16>,
    private_key: Field<RawSecret>,
    via: Field<ScalarOr<RawVia>>,
    addresses: Field<Vec<Field<String>>>,
    nat: Field<bool>,
    ratio: Field<f64>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum RawMode {
    Auto,
    Tun,
    Userspace,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSecret {
    file: Field<String>,
    env: Field<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawVia {
    tunnel: Field<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRoute {
    prefix: Field<String>,
    metric: Field<u32>,
}

fn read_sample(source: &str) -> (RawSample, Vec<String>) {
    let root = parse(source).expect("YAML");
    let mut diagnostics = Diagnostics::default();
    let sample = read(&root, &mut diagnostics);
    (sample.unwrap_or_default(), all(&diagnostics))
}

fn mistakes_in(source: &str) -> Diagnostics {
    let root = parse(source).expect("YAML");
    let mut diagnostics = Diagnostics::default();
    read::<RawSample>(&root, &mut diagnostics);
    diagnostics
}

/// `line:column message` of each, by position.
fn all(diagnostics: &Diagnostics) -> Vec<String> {
    let mut diagnostics = diagnostics.clone();
    diagnostics.sort();
    let lines = diagnostics.iter().map(|diagnostic| {
        let Span { line, column, .. } = diagnostic.span;
        format!("{line}:{column} {}", diagnostic.message)
    });
    lines.collect()
}

fn tunnel(sample: &RawSample, at: usize) -> &RawTunnel {
    let tunnels = sample.tunnels.get().expect("tunnels");
    tunnels.0[at].value.get().expect("a tunnel")
}
