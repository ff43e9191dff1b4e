//! Tests of the language: parsing and error messages.

use jiff::Zoned;
use miette::{GraphicalReportHandler, GraphicalTheme};
use proptest::{collection::vec, prelude::*, sample::select};

use super::{literal::Network, *};

fn now() -> Zoned {
    "2026-11-21T16:00:00+01:00[Europe/Berlin]".parse().unwrap()
}

fn read(text: &str) -> Result<Filter, IllegalFilter> {
    Filter::parse(text, &now())
}

#[test]
fn filters_are_parsed() {
    for (text, expected) in [
        ("", ""),
        ("  ", ""),
        ("client = ci-bot", "client = ci-bot"),
        ("client==\"ci-bot\"", "client = ci-bot"),
        ("CLIENT = \"a \\\"b\\\" \\\\ \\u{e9}'\"", "client = \"a \\\"b\\\" \\\\ é'\""),
        ("client = \"\"", "client = \"\""),
        ("client = \"and\"", "client = \"and\""),
        ("client = local:bob", "client = local:bob"),
        ("client != dev", "not client = dev"),
        ("method = tools/call", "method = tools/call"),
        ("code in (a)", "code = a"),
        ("code in ( a , b,c )", "code in (a, b, c)"),
        ("code not in (a, b)", "not code in (a, b)"),
        ("tool ~ delete_*", "tool ~ delete_*"),
        ("tool !~ \"a?b\"", "not tool ~ a?b"),
        ("tool contains x", "tool contains x"),
        ("has refusal", "has refusal"),
        ("not has refusal", "not has refusal"),
        ("a = b", "!"),
        ("client=a and server=b or tool=c", "client = a and server = b or tool = c"),
        ("client=a and (server=b or tool=c)", "client = a and (server = b or tool = c)"),
        ("(client=a and (server=b)) and tool=c", "client = a and server = b and tool = c"),
        ("not (client=a or not server=b)", "not (client = a or not server = b)"),
        ("NOT client=a AND server=b", "not client = a and server = b"),
        ("not not client = a", "not not client = a"),
        ("total > 200ms", "total > 200ms"),
        ("total>=1.5s", "total >= 1500ms"),
        ("total < 250us", "total < 250us"),
        ("upstream = 2m", "upstream = 120s"),
        ("request > 64KiB", "request > 65536"),
        ("response <= 1.5MB", "response <= 1500000"),
        ("request != 0", "not request = 0"),
        ("seq >= 12", "seq >= 12"),
        ("addr = 10.1.2.3", "addr = 10.1.2.3"),
        ("addr in (10.0.0.0/8, ::1, ::ffff:10.0.0.0/104)", "addr in (10.0.0.0/8, ::1, 10.0.0.0/8)"),
        ("time > 24h ago", "time > 2026-11-20T15:00:00Z"),
        ("time > 90m ago and kind = event", "time > 2026-11-21T13:30:00Z and kind = event"),
        ("time > 2 weeks ago", "time > 2026-11-07T15:00:00Z"),
        ("time > \"1 day ago\"", "time > 2026-11-20T15:00:00Z"),
        ("time < now", "time < 2026-11-21T15:00:00Z"),
        ("time >= 2026-11-21T08:00:00Z", "time >= 2026-11-21T08:00:00Z"),
        ("time >= 2026-11-21T08:00", "time >= 2026-11-21T07:00:00Z"),
        ("time >= 2026-11-21", "time >= 2026-11-20T23:00:00Z"),
        ("time > 2026-11-21", "time >= 2026-11-21T23:00:00Z"),
        ("time < today", "time < 2026-11-20T23:00:00Z"),
        ("time <= today", "time < 2026-11-21T23:00:00Z"),
        ("time = yesterday", "time >= 2026-11-19T23:00:00Z and time < 2026-11-20T23:00:00Z"),
        // The day on which clocks were set back has 25 hours in this zone.
        ("time = 2026-10-25", "time >= 2026-10-24T22:00:00Z and time < 2026-10-25T23:00:00Z"),
        ("arguments contains \"/etc\"", "arguments contains /etc"),
        (
            "client = \"ci-bot\" and (decision = refused or code in (policy-denied, rate-limited)) \
             and not server = notes and time > 24h ago",
            "client = ci-bot and (decision = refused or code in (policy-denied, rate-limited)) and \
             not server = notes and time > 2026-11-20T15:00:00Z",
        ),
    ] {
        let found = read(text).map_or_else(|_| "!".into(), |filter| filter.to_string());
        assert_eq!(found, expected, "{text}");
    }
}

/// Error message as a terminal shows it.
fn rendered(text: &str) -> String {
    let illegal = read(text).expect_err(text);
    let mut rendered = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_links(false)
        .with_width(100)
        .render_report(&mut rendered, &illegal)
        .unwrap();
    rendered.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn error_marks_the_position() {
    let text = "client = ci-bot and decison = refused";
    insta::assert_snapshot!(rendered(text), @r##"
    audit-filter
      × there is no field `decison`
       ╭────
     1 │ client = ci-bot and decison = refused
       ·                     ───┬───
       ·                        ╰── unknown
       ╰────
      help: did you mean `decision`?
    "##);
}

#[test]
fn errors_name_the_cause_and_position() {
    let wrong = [
        "clint = ci-bot",
        "took > 1s",
        "zzz = 1",
        "client ci-bot",
        "client",
        "client =",
        "client = and",
        "client = 'x'",
        "client = \"x",
        "client = \"\\q\"",
        "client < a",
        "client = a server = b",
        "client = a && server = b",
        "(client = a",
        "(client = a tool = b)",
        "client = a)",
        "and client = a",
        "not",
        "decision = denied",
        "decision = refsued",
        "decision ~ x",
        "code in policy-denied",
        "code in (a, b",
        "code in (a b)",
        "total > 200",
        "total > fast",
        "request > 1x",
        "seq = -1",
        "time > tomorrow",
        "time = 24h ago",
        "time != today",
        "time > 5",
        "addr = 10.0.0",
        "arguments = x",
    ];
    let rendered = wrong.map(|text| {
        let illegal = read(text).expect_err(text);
        let label = miette::Diagnostic::labels(&illegal).unwrap().next().unwrap();
        let (at, arrows) = (" ".repeat(label.offset()), "^".repeat(label.len()));
        format!("{text}\n{at}{arrows} {}\n{}\n", label.label().unwrap_or("-"), illegal.advice())
    });
    insta::assert_snapshot!(rendered.join("\n"), @r##"
    clint = ci-bot
    ^^^^^ unknown
    there is no field `clint`: did you mean `client`?

    took > 1s
    ^^^^ unknown
    there is no field `took`: did you mean `total`?

    zzz = 1
    ^^^ unknown
    there is no field `zzz`: fields are time, day, hour, seq, id, kind, event, decision, code, refusal, client, user, group, key, addr, transport, session, trace, server, image, tool, pin, target, method, direction, revision, rule, finding, policy, label, total, upstream, request, response, arguments, result, text

    client ci-bot
           ^^^^^^ expected a comparison
    `ci-bot` is not a comparison of `client`: `client` takes =, !=, in (…), ~, !~ and contains

    client
          ^ expected a comparison
    `client` has no comparison: `client` takes =, !=, in (…), ~, !~ and contains

    client =
            ^ expected a value
    a value is missing at the end

    client = and
             ^^^ expected a value
    `and` is a word of this language: write "and" where it is meant as a value

    client = 'x'
             ^ expected a value
    values stand in double quotes, or in none

    client = "x
             ^ opened here
    this quote is not closed

    client = "\q"
              ^^ unknown
    an unknown escape in quotes: escapes are \" \\ \n \r \t \0 and \u{1f600}

    client < a
           ^ does not fit
    `client` is not compared like this: `client` takes =, !=, in (…), ~, !~ and contains; for example: client = ci-bot

    client = a server = b
               ^^^^^^ expected `and` or `or`
    two conditions need a word between them

    client = a && server = b
               ^^ expected `and` or `or`
    two conditions need a word between them: write `and`

    (client = a
    ^ opened here
    this `(` is not closed

    (client = a tool = b)
                ^^^^ expected `)`, `and` or `or`
    this `(` is not closed

    client = a)
              ^ no `(` before it
    there is nothing that this closes

    and client = a
    ^^^ expected a field
    a condition begins with a field, not with `and`: for example: client = ci-bot and not server = notes and time > 24h ago

    not
       ^ expected a field
    a condition is missing at the end: for example: client = ci-bot and not server = notes and time > 24h ago

    decision = denied
               ^^^^^^ not understood
    `denied` is not a value of `decision`: it is one of allowed, refused, failed, cancelled

    decision = refsued
               ^^^^^^^ not understood
    `refsued` is not a value of `decision`: did you mean `refused`?

    decision ~ x
             ^ does not fit
    `decision` is not compared like this: `decision` takes =, != and in (…); for example: decision in (refused, failed)

    code in policy-denied
            ^^^^^^^^^^^^^ expected `(`
    `in` takes a list: for example: code in (a, b)

    code in (a, b
                 ^ expected `,` or `)`
    the list is not closed

    code in (a b)
               ^ expected `,` or `)`
    the list is not closed

    total > 200
            ^^^ not understood
    `200` is not a value of `total`: give it a unit: 250us, 200ms, 1.5s, 2m or 1h

    total > fast
            ^^^^ not understood
    `fast` is not a value of `total`: give it a unit: 250us, 200ms, 1.5s, 2m or 1h

    request > 1x
              ^^ not understood
    `1x` is not a value of `request`: for example: 512, 64KiB or 1.5MB

    seq = -1
          ^^ not understood
    `-1` is not a value of `seq`: give a whole number

    time > tomorrow
           ^^^^^^^^ not understood
    `tomorrow` is not a time: for example: 24h ago, 2 weeks ago, today, 2026-11-21, 2026-11-21T08:00 or 2026-11-21T08:00:00Z

    time = 24h ago
           ^^^^^^^ not a day
    no record has exactly this time: compare with <, <=, > or >=, or give a day: time = 2026-11-21, time = today

    time != today
         ^^ does not fit
    `time` is not compared like this: `time` takes <, <=, >, >=, and = with a day; for example: time > 24h ago

    time > 5
           ^ not understood
    `5` is not a time: for example: 24h ago, 2 weeks ago, today, 2026-11-21, 2026-11-21T08:00 or 2026-11-21T08:00:00Z

    addr = 10.0.0
           ^^^^^^ not understood
    `10.0.0` is not a value of `addr`: give an address such as 10.1.2.3 or ::1, or a network such as 10.0.0.0/8

    arguments = x
              ^ does not fit
    `arguments` is not compared like this: `arguments` takes contains; for example: arguments contains "/etc/passwd"
    "##);
}

#[test]
fn filter_size_is_limited() {
    let deep = format!("{}client = a{}", "(".repeat(40), ")".repeat(40));
    let nots = format!("{}client = a", "not ".repeat(40));
    let many = vec!["client = a"; 300].join(" or ");
    let long = format!("client = \"{}\"", "x".repeat(9000));
    for (text, expected) in [
        (deep, "at most 32 parentheses"),
        (nots, "at most 32 parentheses"),
        (many, "at most 256 values"),
        (long, "at most 8192 bytes"),
    ] {
        let illegal = read(&text).unwrap_err();
        assert!(illegal.to_string().contains(expected), "{illegal}");
        assert!(rendered(&text).len() < 3000);
    }
    let fits = format!("{}client = a{}", "(".repeat(30), ")".repeat(30));
    assert_eq!(read(&fits).unwrap().to_string(), "client = a");
}

#[test]
fn error_cannot_control_a_terminal() {
    let rendered = rendered("client = a \u{1b}[2J\u{7} \u{9b}");
    assert!(!rendered.contains(|c: char| c.is_control() && c != '\n'), "{rendered:?}");
}

#[test]
fn examples_are_parsed() {
    for column in Column::ALL {
        let example = column.example();
        let filter = read(example).unwrap_or_else(|illegal| panic!("{example}: {illegal}"));
        let mut found = false;
        filter.expr().tests(&mut |test| found |= test.column() == *column);
        assert!(found, "{example} is not of {column}");
        assert_eq!(column.name().parse(), Ok(*column));
    }
}

#[test]
fn patterns_match_whole_texts_and_parts() {
    for (glob, text, fits) in [
        ("delete_*", "delete_repo", true),
        ("delete_*", "undelete_repo", false),
        ("*.txt", "a.txt", true),
        ("*.txt", "atxt", false),
        ("a?c", "abc", true),
        ("a?c", "ac", false),
        ("a*", "a\nb", true),
        ("A*", "ab", false),
        ("", "", true),
        ("", "a", false),
        ("[a-z]+", "abc", false),
    ] {
        assert_eq!(Pattern::glob(glob).unwrap().fits(text), fits, "{glob} {text:?}");
    }
    for (part, text, fits) in [("ÉCOLE", "une école", true), ("a.c", "abc", false), ("", "x", true)]
    {
        assert_eq!(Pattern::part(part).unwrap().fits(text), fits, "{part} {text:?}");
    }
}

#[test]
fn addresses_are_matched_by_network() {
    for (network, address, has) in [
        ("10.0.0.0/8", "10.255.0.1", true),
        ("10.0.0.0/8", "11.0.0.1", false),
        ("10.1.2.3", "10.1.2.3", true),
        ("0.0.0.0/0", "1.2.3.4", true),
        ("0.0.0.0/0", "::1", false),
        ("10.0.0.0/8", "::ffff:10.0.0.1", true),
        ("::ffff:10.0.0.0/104", "10.0.0.1", true),
        ("fd00::/8", "fd12::1", true),
        ("::/0", "fd12::1", true),
    ] {
        let network = super::literal::network(network).unwrap();
        assert_eq!(network.has(address.parse().unwrap()), has, "{network} {address}");
    }
    for no in ["", "x", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "::ffff:10.0.0.0/8"] {
        assert_eq!(super::literal::network(no), None, "{no}");
    }
}

fn tests_of(column: Column) -> BoxedStrategy<Expr> {
    let text = || "[ -~é\n\"\\\\]{0,8}";
    let number = (any::<u64>(), select(&[Compare::Less, Compare::AtLeast, Compare::Equal][..]));
    match column.ty() {
        Type::Text => prop_oneof![
            vec(text(), 1..3).prop_map(move |values| Test::In(column, values)),
            text().prop_map(move |text| Test::Like(column, Pattern::glob(&text).unwrap())),
            text().prop_map(move |text| Test::Contains(column, Pattern::part(&text).unwrap())),
            Just(Test::Has(column)),
        ]
        .boxed(),
        Type::Word(words) => vec(select(words), 1..3)
            .prop_map(move |words| Test::In(column, words.into_iter().map(Into::into).collect()))
            .boxed(),
        Type::Time => (0..4_000_000_000_000_000_i64, select(&[Compare::More, Compare::AtMost][..]))
            .prop_map(|(at, compare)| Test::Time(compare, Timestamp::from_microsecond(at).unwrap()))
            .boxed(),
        Type::Duration | Type::Bytes | Type::Number => {
            number.prop_map(move |(number, compare)| Test::Number(column, compare, number)).boxed()
        }
        Type::Address => (any::<std::net::Ipv4Addr>(), 0..33_u8)
            .prop_map(|(address, bits)| {
                Test::Address(vec![Network { address: address.into(), bits }])
            })
            .boxed(),
        Type::Body => text()
            .prop_map(move |text| Test::Contains(column, Pattern::part(&text).unwrap()))
            .boxed(),
    }
    .prop_map(Expr::Test)
    .boxed()
}

fn exprs() -> impl Strategy<Value = Expr> {
    let test = select(Column::ALL).prop_flat_map(tests_of);
    test.prop_recursive(4, 24, 4, |part| {
        prop_oneof![
            vec(part.clone(), 2..4).prop_map(Expr::all),
            vec(part.clone(), 2..4).prop_map(Expr::any),
            part.prop_map(|part| Expr::Not(Box::new(part))),
        ]
    })
}

proptest! {
    #[test]
    fn filter_round_trips(expr in exprs()) {
        let text = expr.to_string();
        prop_assert_eq!(read(&text).map_err(|e| e.advice()), Ok(Filter(expr)), "{}", text);
    }

    #[test]
    fn arbitrary_text_causes_no_panic(text in "\\PC{0,60}") {
        let _ = read(&text).map_err(|illegal| rendered(&text) + &illegal.advice());
    }

    #[test]
    fn arbitrary_words_cause_no_panic(words in vec(select(&[
        "client", "time", "=", "!=", "~", "<", ">=", "(", ")", "\"", "\"a b\"", "and", "or", "not",
        "in", "has", "contains", ",", "24h", "ago", "today", "x", "'", "\\", "é", "1.5s", "addr",
    ][..]), 0..20), gap in select(&["", " "][..])) {
        let text = words.join(gap);
        let _ = read(&text).map_err(|illegal| rendered(&text) + &illegal.advice());
    }
}
