use super::*;

#[test]
fn keeps_order_text_and_places() {
    let root = parse("b: 1\na:\n  - \"x\" # quoted\n  - 'it''s'  \n  - null\n").expect("YAML");
    let expected = mapping(
        (1, 1, 1),
        vec![
            (plain((1, 1, 1), "b"), plain((1, 4, 1), "1")),
            (
                plain((2, 1, 1), "a"),
                Node {
                    span: at((3, 3, 1)),
                    value: Value::Sequence(vec![quoted((3, 5, 3), "x"), quoted((4, 5, 7), "it's"), null((5, 5, 4))]),
                },
            ),
        ],
    );
    assert_eq!(root, expected);
}

#[test]
fn counts_columns_in_characters() {
    let root = parse("\u{feff}{ 名前: \"é\\\"\", b: c }").expect("YAML");
    let expected =
        mapping((1, 1, 1), vec![(plain((1, 3, 2), "名前"), quoted((1, 7, 5), "é\"")), (plain((1, 14, 1), "b"), plain((1, 17, 1), "c"))]);
    assert_eq!(root, expected);
}

#[test]
fn reads_nothing_as_null() {
    for source in ["", "\n\n", "# only a comment\n", "---\n", "~", "null"] {
        assert_eq!(parse(source).expect("YAML").value, Value::Null, "{source:?}");
    }
    let root = parse("a:\nb: \"null\"\n").expect("YAML");
    let expected = mapping((1, 1, 1), vec![(plain((1, 1, 1), "a"), null((1, 2, 1))), (plain((2, 1, 1), "b"), quoted((2, 4, 6), "null"))]);
    assert_eq!(root, expected);
}

#[test]
fn refuses_what_changes_meaning_elsewhere() {
    for (source, place, message) in [
        ("a: &x 1", (1, 4, 2), "anchor `&x` is not supported"),
        ("a: &x\n  b: 1", (1, 4, 2), "anchor `&x` is not supported"),
        ("a: *x", (1, 4, 2), "alias `*x` is not supported"),
        ("a: [*.b.net]", (1, 5, 7), "alias `*.b.net` is not supported"),
        ("a: * 1", (1, 4, 1), "alias `*` is not supported"),
        ("a: !!str 1", (1, 4, 5), "tag `!!str` is not supported"),
        ("a: !x [1]", (1, 4, 2), "tag `!x` is not supported"),
        ("<<: 1", (1, 1, 2), "merge key `<<` is not supported"),
        ("a: 1\n---\nb: 1", (2, 1, 3), "several documents in one file"),
        ("[a, b]: c", (1, 1, 1), "a key must be a name, not a sequence"),
        ("a: {{ b }}", (1, 5, 1), "a key must be a name, not a mapping"),
        ("~: 1", (1, 1, 1), "a key is missing"),
    ] {
        let diagnostic = parse(source).expect_err(source);
        assert_eq!(diagnostic.message, message, "{source:?}");
        assert_eq!(diagnostic.span, at(place), "{source:?}");
    }
    let diagnostic = parse("hosts: [*.b.net]").expect_err("alias");
    let help = Some("if it is text, put it into quotes: \"*.b.net\"");
    assert_eq!(diagnostic.help.as_deref(), help);
}

#[test]
fn refuses_what_is_too_deep_or_too_large() {
    let nested = |depth: usize| parse(&("[".repeat(depth) + &"]".repeat(depth)));
    nested(64).expect("allowed");
    for depth in [65, 300] {
        let diagnostic = nested(depth).expect_err("too deep");
        assert_eq!(diagnostic.message, "nested deeper than 64 levels");
    }
    let diagnostic = parse(&"#".repeat(MAX_BYTES + 1)).expect_err("too large");
    assert_eq!(diagnostic.message, "the file is too large: 1048577 bytes");
}

#[test]
fn passes_on_what_the_parser_says() {
    let diagnostic = parse("a:\n\tb: 1\n").expect_err("tab");
    assert_eq!(diagnostic.span.line, 2);
    assert_eq!(diagnostic.help.as_deref(), Some("indent with spaces"));

    let diagnostic = parse("a: b: c\n").expect_err("colon");
    assert!(diagnostic.message.contains("mapping values"), "{diagnostic:?}");
    assert_eq!(diagnostic.span.line, 1);

    for source in ["a: [", "a: \"", "{a: 1", "a: 1\n  b: 2\n]", "\u{0}", "a: @b", "? \n- :"] {
        let lines = lines(source).len();
        if let Err(diagnostic) = parse(source) {
            assert!((1..=lines).contains(&(diagnostic.span.line as usize)), "{source:?}");
        }
    }
}

fn mapping(place: (u32, u32, u32), members: Vec<(Node, Node)>) -> Node {
    Node { span: at(place), value: Value::Mapping(members) }
}

fn plain(place: (u32, u32, u32), text: &str) -> Node {
    scalar(place, text, true)
}

fn quoted(place: (u32, u32, u32), text: &str) -> Node {
    scalar(place, text, false)
}

fn null(place: (u32, u32, u32)) -> Node {
    Node { span: at(place), value: Value::Null }
}

fn scalar(place: (u32, u32, u32), text: &str, plain: bool) -> Node {
    let text = text.to_owned();
    Node { span: at(place), value: Value::Scalar { text, plain } }
}

fn at((line, column, length): (u32, u32, u32)) -> Span {
    Span::new(line, column, length)
}
