use super::*;

#[test]
fn shows_place_allowed_names_and_the_nearest() {
    let source = "version: 1\ntunnels:\n  azure:\n    peers:\n      vnet-a:\n        keepalvie: 25s\n";
    let place = place(Span::new(6, 9, 9), "tunnels.azure.peers.vnet-a", None);
    let mut diagnostics = Diagnostics::default();
    diagnostics.push(
        Diagnostic::error(place, "unknown key `keepalvie`")
            .one_of("keepalvie", &["allowed_ips", "cloud", "keepalive"])
            .help("see `skyway schema`"),
    );

    assert_eq!(
        diagnostics.render("skyway.yaml", source, false),
        text(&[
            "error: unknown key `keepalvie`",
            " --> skyway.yaml:6:9",
            "  |",
            "6 |         keepalvie: 25s",
            "  |         ^^^^^^^^^ in tunnels.azure.peers.vnet-a",
            "  = expected: one of allowed_ips, cloud, keepalive",
            "  = did you mean: keepalive",
            "  = help: see `skyway schema`",
            "",
            "1 error in skyway.yaml",
        ])
    );
}

#[test]
fn goes_by_position_and_shows_related_places() {
    let source = "tunnels:\n  azure:\n    listen: 51820\n    mtu: 9000\n    listen: 51821\n";
    let listen = place(Span::new(5, 5, 6), "tunnels.azure", None);
    let mtu = place(Span::new(4, 10, 4), "tunnels.azure.mtu", Some("9000"));
    let mut diagnostics = Diagnostics::default();
    diagnostics.push(Diagnostic::error(listen, "key `listen` appears twice").related(Span::new(3, 5, 6), "first used here"));
    diagnostics.push(Diagnostic::warning(mtu, "Azure fragments this").help("one\ntwo"));

    assert_eq!(
        diagnostics.render("skyway.yaml", source, false),
        text(&[
            "warning: Azure fragments this",
            " --> skyway.yaml:4:10",
            "  |",
            "4 |     mtu: 9000",
            "  |          ^^^^ in tunnels.azure.mtu",
            "  = help: one",
            "          two",
            "",
            "error: key `listen` appears twice",
            " --> skyway.yaml:5:5",
            "  |",
            "5 |     listen: 51821",
            "  |     ^^^^^^ in tunnels.azure",
            " ::: skyway.yaml:3:5",
            "  |",
            "3 |     listen: 51820",
            "  |     ------ first used here",
            "",
            "1 error, 1 warning in skyway.yaml",
        ])
    );
    assert_eq!((diagnostics.errors(), diagnostics.warnings()), (1, 1));
    diagnostics.sort();
    let lines: Vec<u32> = diagnostics.iter().map(|other| other.span.line).collect();
    assert_eq!(lines, [4, 5]);
}

#[test]
fn aligns_line_numbers_of_different_width() {
    let source = "a: 1\n".to_owned() + &"\n".repeat(8) + "a: 2\n";
    let mut diagnostics = Diagnostics::default();
    diagnostics.push(
        Diagnostic::error(place(Span::new(10, 1, 1), "", None), "key `a` appears twice").related(Span::new(1, 1, 1), "first used here"),
    );

    assert_eq!(
        diagnostics.render("f", &source, false),
        text(&[
            "error: key `a` appears twice",
            "  --> f:10:1",
            "   |",
            "10 | a: 2",
            "   | ^",
            "  ::: f:1:1",
            "   |",
            "1  | a: 1",
            "   | - first used here",
            "",
            "1 error in f",
        ])
    );
}

#[test]
fn escapes_control_characters() {
    let source = "a: \"x\u{1b}[2J\ty\"\n";
    let place = place(Span::new(1, 4, 9), "a", Some("\u{1b}\n\u{202e}"));
    let mut diagnostics = Diagnostics::default();
    diagnostics.error(place, format!("no such name {}", quote("x\u{1b}[2J")));
    diagnostics.error(Place::WHOLE_FILE, "not readable\r");

    assert_eq!(
        diagnostics.render("f\u{7}", source, false),
        text(&[
            "error: not readable\\r",
            " --> f\\u{7}",
            "",
            "error: no such name `x\\u{1b}[2J`",
            " --> f\\u{7}:1:4",
            "  |",
            "1 | a: \"x\u{fffd}[2J y\"",
            "  |    ^^^^^^^^^ in a",
            "  = found: \\u{1b}\\n\\u{202e}",
            "",
            "2 errors in f\\u{7}",
        ])
    );
}

#[test]
fn masks_secrets_in_every_excerpt() {
    let source = "{ key: s3cret, listen: x }\n";
    let secret = Span::new(1, 8, 6);
    let mut diagnostics = Diagnostics::default();
    diagnostics.error(place(secret, "key", Some("s3cret")), "not a reference");
    diagnostics.conceal(secret);
    diagnostics.error(place(secret, "key", Some("s3cret")), "not a reference");
    diagnostics.error(place(Span::new(1, 24, 1), "listen", Some("x")), "not a port");

    let rendered = diagnostics.render("f", source, false);
    assert!(rendered.contains("1 | { key: ******, listen: x }\n"));
    assert!(!rendered.contains("s3cret"));
    assert!(!diagnostics.to_json().to_string().contains("s3cret"));
}

#[test]
fn shows_the_part_of_a_long_line_that_matters() {
    let source = format!("a: {}", "x".repeat(400));
    let mut diagnostics = Diagnostics::default();
    diagnostics.error(place(Span::new(1, 200, 500), "a", None), "too long");

    let rendered = diagnostics.render("f", &source, false);
    let lines: Vec<&str> = rendered.lines().collect();
    assert_eq!(lines[3], format!("1 | …{}…", "x".repeat(120)));
    assert_eq!(lines[4], format!("  | {}{} in a", " ".repeat(41), "^".repeat(80)));
}

#[test]
fn survives_places_outside_the_source() {
    let mut diagnostics = Diagnostics::default();
    for span in [Span::new(9, 9, 9), Span::new(1, 9, 9), Span::new(1, 0, 0)] {
        diagnostics.error(place(span, "a", Some("b")), "gone");
    }
    let far = Span::new(u32::MAX, u32::MAX, u32::MAX);
    diagnostics.push(Diagnostic::error(place(far, "", None), "far").related(far, "farther"));
    diagnostics.conceal(far);
    assert!(diagnostics.render("f", "a: 1", true).contains("4 errors in f"));
}

#[test]
fn colors_only_when_asked() {
    let mut diagnostics = Diagnostics::default();
    diagnostics.error(place(Span::new(1, 1, 1), "a", None), "wrong");
    let colored = diagnostics.render("f", "a: 1", true);
    assert!(colored.starts_with("\u{1b}[1;31merror\u{1b}[0m\u{1b}[1m: wrong\u{1b}[0m\n"));
    assert!(!diagnostics.render("f", "a: 1", false).contains('\u{1b}'));
    assert_eq!(Diagnostics::default().render("f", "a: 1", true), "");
}

#[test]
fn tells_machines_the_same() {
    let mut diagnostics = Diagnostics::default();
    diagnostics.push(
        Diagnostic::error(place(Span::new(4, 11, 4), "t.mode", Some("tunn")), "unknown value `tunn`")
            .one_of("tunn", &["auto", "tun"])
            .related(Span::new(1, 1, 2), "here"),
    );

    let expected = json!([{
        "severity": "error", "path": "t.mode", "line": 4, "column": 11, "length": 4,
        "message": "unknown value `tunn`", "value": "tunn",
        "expected": "one of auto, tun", "suggestion": "tun", "help": null,
        "related": [{ "line": 1, "column": 1, "length": 2, "message": "here" }],
    }]);
    assert_eq!(diagnostics.to_json(), expected);
}

#[test]
fn finds_the_nearest_name_only_if_it_is_near() {
    let keys = ["allowed_ips", "public_key", "preshared_key", "mtu", "keepalive"];
    let near = |word: &str| nearest(word, keys);
    assert_eq!(near("keepalvie"), Some("keepalive"));
    assert_eq!(near("AllowedIPs"), Some("allowed_ips"));
    assert_eq!(near("publicKey"), Some("public_key"));
    assert_eq!(near("mut"), Some("mtu"));
    assert_eq!(near("listen"), None);
    assert_eq!(near("mtu"), None);
    assert_eq!(near("x"), None);
    assert_eq!(near(""), None);
    assert_eq!(near("---"), None);
    assert_eq!(near(&"keepalive".repeat(1000)), None);
}

#[test]
fn counts_lines_as_yaml_does() {
    assert_eq!(lines("\u{feff}a\r\nb\rc\n\nd"), ["a", "b", "c", "", "d"]);
    assert_eq!(lines("a\n\n"), ["a", "", ""]);
    assert_eq!(lines(""), [""]);
}

fn place<'a>(span: Span, path: &'a str, written: Option<&'a str>) -> Place<'a> {
    Place { span, path, written }
}

fn text(lines: &[&str]) -> String {
    lines.join("\n") + "\n"
}
