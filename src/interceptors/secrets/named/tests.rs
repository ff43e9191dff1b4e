use proptest::prelude::*;

use super::*;

fn ids() -> HashSet<String> {
    ["jwt".to_owned(), "vault:s/KEY".to_owned()].into()
}

fn masked(text: &str) -> String {
    let mut out = text.to_owned();
    for range in values(text, &ids()).into_iter().rev() {
        out.replace_range(range, "#");
    }
    out
}

#[test]
fn values_are_found_by_their_names() {
    for (text, expected) in [
        // Files of variables.
        ("PASSWORD=hunter2", "PASSWORD=#"),
        ("A=1\nexport DB_PASSWORD='a b'\nB=2", "A=1\nexport DB_PASSWORD='#'\nB=2"),
        ("API_KEY = correct horse\nB=2", "API_KEY = #\nB=2"),
        ("PASSWORD=a&b;c,d", "PASSWORD=#"),
        ("$env:TOKEN=\"x\"", "$env:TOKEN=\"#\""),
        // Headers.
        ("Authorization: Bearer abc def\r\nHost: a", "Authorization: #\r\nHost: a"),
        ("> X-Api-Key: abc", "> X-Api-Key: #"),
        ("Set-Cookie: sid=1; Path=/", "Set-Cookie: #"),
        ("curl -H 'Authorization: Basic YTpi' x", "curl -H 'Authorization: #' x"),
        ("sent Authorization: Bearer abc to b", "sent Authorization: # to b"),
        ("it sent bearer abcdefg1 today", "it sent bearer # today"),
        // URLs and forms.
        ("https://a.example/x?token=abc&n=1", "https://a.example/x?token=#&n=1"),
        ("grant=x&client_secret=abc&n=1", "grant=x&client_secret=#&n=1"),
        ("password=abc&user=bob", "password=#&user=bob"),
        ("see postgres://u:pw@db/x", "see postgres://u:#@db/x"),
        ("DATABASE_URL=postgres://u:postgres@db/x", "DATABASE_URL=postgres://u:#@db/x"),
        ("ftp://u:p@ss@h", "ftp://u:#@h"),
        // Command lines.
        ("run --password=abc --v", "run --password=# --v"),
        ("run --api-key abc --v", "run --api-key # --v"),
        ("run -token \"a b\" c", "run -token \"#\" c"),
        ("['run', '--token', 'a b', 'c']", "['run', '--token', '#', 'c']"),
        // Parts of JSON, Python, YAML, TOML, XML.
        (r#"{"password": "a\"b", "x": 1}"#, r##"{"password": "#", "x": 1}"##),
        (r#""pin":1234,"x":1"#, r##""pin":#,"x":1"##),
        (r#""credentials": {"a": "}", "b": 1}, "c": 1"#, r##""credentials": #, "c": 1"##),
        ("{'token': b'abc', 'x': 1}", "{'token': b'#', 'x': 1}"),
        ("secret => 'abc'", "secret => '#'"),
        ("user: a\npassword: a b c\nx: 1", "user: a\npassword: #\nx: 1"),
        ("- api_key: abc", "- api_key: #"),
        ("private_key: |\n  a\n  b\nx: 1", "private_key: #x: 1"),
        ("password:\n  a\u{e9}\nx: 1", "password:#x: 1"),
        ("password:\r\n  a\u{e9}\r\nx: 1", "password:#x: 1"),
        ("password:\r  a\u{e9}\rx: 1", "password:#x: 1"),
        ("password:\r\n  a\u{e9}", "password:#"),
        ("a:\n  secret: |\n    a\n\n    b\n  x: 1", "a:\n  secret: #  x: 1"),
        ("<password>abc</password>", "<password>#</password>"),
        ("Server=a;Password=b", "Server=a;Password=#"),
        // Names in brackets of a program.
        ("config[\"password\"] = \"a b\"", "config[\"password\"] = \"#\""),
        ("os.environ['TOKEN']=abc; run()", "os.environ['TOKEN']=# run()"),
        ("params[:password] = abc", "params[:password] = #"),
        // Markdown.
        ("- **Password**: a b\nx", "- **Password**: #\nx"),
        ("- **Password:** a b\nx", "- **Password:** #\nx"),
        ("the *password*: abc or", "the *password*: # or"),
        ("the **password:** abc or", "the **password:** # or"),
        ("set `password` = 'a b' or", "set `password` = '#' or"),
        ("`API key` = `a b`", "`API key` = `#`"),
        // A name in front of its value.
        (
            "- name: DB_PASSWORD\n  value: a b\n- name: A\n  value: b",
            "- name: DB_PASSWORD\n  value: #\n- name: A\n  value: b",
        ),
        ("name = \"TOKEN\"\r\nvalue = 'a'", "name = \"TOKEN\"\r\nvalue = '#'"),
        ("  name: TOKEN\n  value: |\n    a\n    b\nx", "  name: TOKEN\n  value: #x"),
        ("<add key=\"password\" value=\"a\"/>", "<add key=\"password\" value=\"#\"/>"),
        ("<db name='a' password='b'/>", "<db name='a' password='#'/>"),
        (r#"{"name": "API_KEY", "value": "a", "n"#, r##"{"name": "API_KEY", "value": "#", "n"##),
        ("Header(name='Cookie', value='a b')", "Header(name='Cookie', value='#')"),
        // Cookies within a line.
        ("sent Cookie: a=1; b=2 to c", "sent Cookie: # to c"),
        ("got Set-Cookie: sid=1; Path=/; Secure in", "got Set-Cookie: # in"),
        ("sent Cookie: a=\"1 2\"; b=x&c=2; d=\"3\" to e", "sent Cookie: # to e"),
        ("sent Cookie: a=\"1", "sent Cookie: #"),
        ("sent Cookie: a=\"1\nHost: \"b\"", "sent Cookie: #\nHost: \"b\""),
        ("session_cookie=abc&page=2", "session_cookie=#&page=2"),
        ("?session_cookie=abc&page=2", "?session_cookie=#&page=2"),
        ("Cookie: q=x&sid=2; token=3\nHost: a", "Cookie: #\nHost: a"),
        // Marks that this proxy does not write.
        ("password: [redacted:hunter2]", "password: #"),
        ("token=[redacted:vault:s/hunter2]", "token=#"),
        ("Authorization: Bearer [redacted:hunter2]", "Authorization: #"),
        // Natural language.
        ("the API key: abc.", "the API key: #"),
        (
            "My secret access key is: x, secret access key = abc",
            "My secret access key is: x, secret access key = #",
        ),
        // Truncated text.
        (r#"{"password": "abc"#, r##"{"password": "#"##),
        ("token: [1, 2", "token: #"),
        // Numbers that are not counts.
        ("DB_PASS=48151623", "DB_PASS=#"),
        (r#""pass": 48151623, "x": 1"#, r##""pass": #, "x": 1"##),
        (r#""pass": "1 HUNT""#, r##""pass": "#""##),
        (r#""credentials": [48151623, 1], "x": 1"#, r##""credentials": #, "x": 1"##),
        (r#""tokens": [1, "HUNT"]"#, r##""tokens": #"##),
        ("tokens: 12 HUNT", "tokens: #"),
        ("tokens=12, HUNT", "tokens=#"),
        ("secrets=48151623", "secrets=#"),
        ("<password a=\"b>c\">abc</password>", "<password a=\"#\">#</password>"),
    ] {
        assert_eq!(masked(text), expected, "{text}");
    }
}

#[test]
fn other_values_stay() {
    for text in [
        "",
        "max_tokens=500",
        "tokens=12, n=3 and more",
        "\"tokens\": [1, 2, 30], \"x\": 1",
        "used tokens: 12, cookies=3",
        "token_count: 3, next_page_token=abc",
        "password: true",
        "\"password\": null, \"x\": 1",
        "password=",
        "author: me",
        "if token == x { }",
        "a::token::b",
        "https://a.example/x?user=a@b",
        "https://user@host/",
        "primary_key: id",
        "see <token-list> and </password>",
        "Vec<Token> = x",
        "the bearer of this letter",
        "Bearer authentication",
        "keyboard: us",
        "password: [redacted:secret-name]",
        "Authorization: Bearer [redacted:jwt]",
        "--no-token --verbose",
        "password: [redacted]",
        "token=[redacted:vault:s/KEY]",
        "- name: LEVEL\n  value: debug",
        "name: TOKEN\n\nother: x\nvalue: y",
        "<add key=\"color\" value=\"red\"/>",
        "the value: x, the text: y",
        "rows[\"id\"] = 5",
        "**Note**: x",
        "secret `TOKEN`: the variable is not set",
    ] {
        assert_eq!(masked(text), text);
    }
}

#[test]
fn work_for_each_byte_is_limited() {
    let steps = |unit: &str, bytes: usize| {
        let text = unit.repeat(bytes / unit.len());
        values_within(&text, &ids(), usize::MAX).1
    };
    for unit in [
        "tokens=[1 ",
        "tokens=[1,",
        "\"tokens\":1 ",
        "\"tokens\":1,",
        "tokens=1 ",
        "tokens=1, ",
        "tokens=1, a=1, ",
        "tokens: 1\n",
        "\"tokens\":[1],",
        "'tokens=1, ",
        "\"tokens\":\"1",
        "key key key=",
        "key key key= ",
        "<token >",
        "<token ",
        "<token>",
        ">",
        "\">",
        "<a token=\"\">",
        "token>",
        "[1,",
        "token=[",
        "token={\"",
        "token:\n",
        " token:\n",
        "token: |\n a\n",
        "token=&",
        "token=a&",
        "token=",
        "token= ",
        "token:",
        "\"token\":",
        "\"token\": \"",
        "\"token\":\n",
        "token=\"\"",
        "token=null ",
        "\"token\": null,",
        "token=[redacted:a] ",
        "token: [redacted:a",
        "token=[redacted:a]]",
        "--token ",
        "--token",
        "--token \"",
        "-ab \"",
        "- ",
        "-",
        "bearer ",
        "bearer a",
        "Bearer  ",
        "token: bearer ",
        "://",
        "://a:",
        "://a@",
        "://a:b@",
        "'",
        "\"",
        "\":",
        "':\":",
        "secret access key ",
        "\n",
        "\r",
        " ",
        "password",
        "token =",
        "token        =",
        "é=",
        "token=é",
        "$token=",
        "\\\"token\\\":",
        "export token=",
        "<token></",
        "&token=",
        "=",
        "==",
        "=>",
        ":=",
        "aaaaaaaa=",
        "\"token\"]=",
        "[\"token\"] = a;",
        "**token**: ",
        "`token`: a ",
        "**token:** ",
        "token:*",
        "*",
        "`",
        "v=",
        "v=1 ",
        "key=token v=1 ",
        "name: token\nvalue: ",
        "name: token\nvalue: |\n",
        "\"value\":\"",
        "value",
        "v:,,,,,,,,",
        "Cookie: a; ",
        "cookie=; ",
        ";",
        "passwords:\n\n",
        "\"",
    ] {
        // A unit may contain no name: some surrounding text does.
        for unit in [unit.to_owned(), format!("{unit}token"), format!("x{unit} ")] {
            let (few, many) = (steps(&unit, 16 << 10), steps(&unit, 64 << 10));
            assert!(many <= 5 * few + 1024, "{unit:?}: {few} and {many} steps");
            assert!(many <= MAX_STEPS_PER_BYTE * (64 << 10), "{unit:?}: {many} steps");
        }
    }
}

/// Effect of a prefix on a long tail that the reader checks repeatedly.
#[test]
fn long_tail_is_read_a_limited_number_of_times() {
    for head in ["tokens=[1 ", "<token ", "token=", "--token ", "bearer ", "\"token\":"] {
        for tail in [">", " ", "\n", "=", "\"", "-", "&", "[", ":", "a ", "1 ", "1,", "<"] {
            let text = format!("{head}{}", tail.repeat((128 << 10) / tail.len()));
            let (_, steps) = values_within(&text, &ids(), usize::MAX);
            assert!(steps <= 24 * text.len(), "{head}, {tail:?}: {steps} steps");
        }
    }
}

#[test]
fn rest_is_one_value_when_the_steps_are_used_up() {
    let text = "x token=a ".repeat(100);
    let (found, _) = values_within(&text, &ids(), 500);
    assert!(found.len() > 1 && found.len() < 100);
    assert_eq!(found.last().unwrap().end, text.len());
}

proptest! {
    #[test]
    fn ranges_are_in_order_and_between_characters(
        parts in prop::collection::vec(
            prop_oneof![
                Just("password"), Just("token"), Just("="), Just(":"), Just("\""), Just("'"),
                Just("{"), Just("]"), Just("\n"), Just(" "), Just("é"), Just("--"), Just("://"),
                Just("@"), Just("\\"), Just("&"), Just("<"), Just(">"), Just("|"), Just("x"),
                Just("bearer "), Just("[redacted:a]"),
            ],
            0..40,
        )
    ) {
        let text = parts.concat();
        let mut end = 0;
        for range in values(&text, &ids()) {
            prop_assert!(range.start >= end && range.end >= range.start);
            prop_assert!(text.get(range.clone()).is_some());
            end = range.end;
        }
    }
}
