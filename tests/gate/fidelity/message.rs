//! Generated messages, as text.

use proptest::{collection::vec, option, prelude::*, sample::select};

/// A call of `record`, piece by piece.
#[derive(Debug, Clone)]
pub struct Message {
    pub id: String,
    token: Option<String>,
    /// White space where the text may have some.
    gap: String,
    /// Members are texts of a key and of a value.
    arguments: Vec<(String, String)>,
    meta: Vec<(String, String)>,
    /// Members of `params` that no revision knows.
    more: Vec<(String, String)>,
    /// How far the members of each object are turned.
    turn: usize,
    stream: bool,
    fails: bool,
    /// Members of the result, or of the error.
    answer: Vec<(String, String)>,
}

impl Message {
    /// The same under another id and progress token.
    pub fn under(mut self, id: &str, token: Option<&str>) -> Self {
        assert_eq!(self.token.is_some(), token.is_some(), "a token is lost: {self:#?}");
        self.id = id.to_owned();
        self.token = token.map(str::to_owned);
        self
    }

    /// The text of the request.
    pub fn request(&self, modern: bool, tool: &str) -> String {
        let mut arguments = self.arguments.clone();
        let told = [self.answer(false), self.answer(true)].map(serde_json::Value::from);
        arguments.push(("\"stream\"".into(), self.stream.to_string()));
        arguments.push(("\"legacy\"".into(), told[0].to_string()));
        arguments.push(("\"modern\"".into(), told[1].to_string()));
        let mut meta = self.meta.clone();
        if let Some(token) = &self.token {
            meta.push(("\"progressToken\"".into(), token.clone()));
        }
        if modern {
            for (key, value) in [
                ("protocolVersion", "\"2026-07-28\""),
                ("clientCapabilities", "{ }"),
                ("clientInfo", "{\"name\" : \"fidelity\",\"version\":\"1\"}"),
            ] {
                meta.push((format!("\"io.modelcontextprotocol/{key}\""), value.into()));
            }
        }
        let mut params = self.more.clone();
        params.push(("\"arguments\"".into(), self.object(arguments)));
        params.push(("\"name\"".into(), format!("\"{tool}\"")));
        if !meta.is_empty() {
            params.push(("\"_meta\"".into(), self.object(meta)));
        }
        self.object(vec![
            ("\"jsonrpc\"".into(), "\"2.0\"".into()),
            ("\"method\"".into(), "\"tools/call\"".into()),
            ("\"params\"".into(), self.object(params)),
            ("\"id\"".into(), self.id.clone()),
        ])
    }

    /// What the server is told to answer: a member.
    pub fn answer(&self, modern: bool) -> String {
        let mut members = self.answer.clone();
        if self.fails {
            members.push(("\"code\"".into(), "-7".into()));
            members.push(("\"message\"".into(), "\"as told\\u0021\"".into()));
            return format!("\"error\":{}{}", self.gap, self.object(members));
        }
        members.push(("\"content\"".into(), "[ ]".into()));
        if modern {
            members.push(("\"resultType\"".into(), "\"complete\"".into()));
        }
        format!("\"result\"{}:{}", self.gap, self.object(members))
    }

    fn object(&self, mut members: Vec<(String, String)>) -> String {
        let turn = self.turn % members.len().max(1);
        members.rotate_left(turn);
        let gap = &self.gap;
        let members: Vec<_> =
            members.iter().map(|(key, value)| format!("{key}{gap}:{value}{gap}")).collect();
        format!("{{{gap}{}}}", members.join(","))
    }
}

/// Any message.
pub fn any() -> impl Strategy<Value = Message> {
    let id =
        select(vec!["1", "\"a\"", "\"\\u0041\"", "9007199254740993", "-7", "\"é\\n😀\"", "1.0"]);
    let token = option::of(select(vec!["\"t\"", "5", "\"\\u0074\\/\"", "1.50", "\"\""]));
    let gap = select(vec!["", "", " ", "\n", "\t \n "]);
    let parts = (entries(), entries(), entries(), entries());
    let flags = (0..7usize, proptest::bool::ANY, proptest::bool::weighted(0.3));
    (id, token, gap, parts, flags).prop_map(|(id, token, gap, parts, flags)| {
        let (arguments, meta, more, answer) = parts;
        let (turn, stream, fails) = flags;
        Message {
            id: id.into(),
            token: token.map(str::to_owned),
            gap: gap.into(),
            arguments,
            meta,
            more,
            turn,
            stream,
            fails,
            answer,
        }
    })
}

fn entries() -> impl Strategy<Value = Vec<(String, String)>> {
    vec((text(), json()), 0..4).prop_map(distinct)
}

/// Keys that differ in more than case, and that nobody knows.
fn distinct(entries: Vec<(String, String)>) -> Vec<(String, String)> {
    let number = |(at, (key, value)): (usize, (String, String))| (format!("\"{key}{at}\""), value);
    entries.into_iter().enumerate().map(number).collect()
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![number(), text().prop_map(|text| format!("\"{text}\"")), word()];
    leaf.prop_recursive(3, 20, 4, |inner| {
        let gap = || select(vec!["", "", " ", "\n", " \t"]);
        prop_oneof![
            (vec(inner.clone(), 0..4), gap()).prop_map(|(items, gap)| {
                format!("[{gap}{}{gap}]", items.join(&format!("{gap},")))
            }),
            (vec((text(), inner), 0..4), gap()).prop_map(|(entries, gap)| {
                let entries: Vec<_> = distinct(entries)
                    .into_iter()
                    .map(|(key, value)| format!("{key}{gap}:{gap}{value}"))
                    .collect();
                format!("{{{gap}{}}}", entries.join(","))
            }),
        ]
    })
}

fn word() -> impl Strategy<Value = String> {
    select(vec!["null", "true", "false"]).prop_map(str::to_owned)
}

fn number() -> impl Strategy<Value = String> {
    select(vec![
        "0",
        "-0",
        "-0.0",
        "50",
        "50.0",
        "50.00",
        "1e2",
        "1E+2",
        "100E-2",
        "-1.50",
        "0.1",
        "9007199254740993",
        "18446744073709551616",
        "123456789012345678901234567890",
        "1.00000000000000000001",
        "1e-320",
        "2.5e300",
    ])
    .prop_map(str::to_owned)
}

/// The inside of a string.
fn text() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "a",
        "Z",
        "key",
        " ",
        "-",
        "_",
        ".",
        "$",
        "/",
        "\\/",
        "\\u0041",
        "\\u00e9",
        "é",
        "\\n",
        "\\\"",
        "\\\\",
        "\\ud83d\\ude00",
        "😀",
        "\u{2028}",
        "\u{7f}",
        "\\u0000",
        "{",
        "]",
        ":",
        ",",
        "__proto__",
        "İ",
        "ß",
    ]);
    vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

/// The members of an object as they stand in its text: key with its quotes, and value.
pub fn members(text: &str) -> Vec<(String, String)> {
    let bytes = text.trim().as_bytes();
    assert_eq!((bytes.first(), bytes.last()), (Some(&b'{'), Some(&b'}')), "no object: {text}");
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    let (mut start, mut colon) = (1, None);
    let mut found = Vec::new();
    let piece =
        |from: usize, to: usize| std::str::from_utf8(&bytes[from..to]).unwrap().trim().to_owned();
    for (at, &byte) in bytes.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b':' if depth == 0 => colon = Some(at),
            b',' | b'}' if depth == 0 => {
                if let Some(colon) = colon.take() {
                    found.push((piece(start, colon), piece(colon + 1, at)));
                }
                start = at + 1;
            }
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    found
}
