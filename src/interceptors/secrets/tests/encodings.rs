//! Encoded secrets, and the measurement of the scanner.

use std::{collections::BTreeMap, fs, io::Write as _, path::PathBuf, time::Instant};

use base64::{
    Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD,
};
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};

use super::*;

/// Name of an encoding, and its function.
type Encoding = (&'static str, fn(&str) -> String);

fn base32(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let group = |group: &[u8]| {
        let mut all = [0; 8];
        all[3..3 + group.len()].copy_from_slice(group);
        let bits = u64::from_be_bytes(all);
        let used = (group.len() * 8).div_ceil(5);
        let digit = |at: usize| char::from(DIGITS[(bits >> (35 - 5 * at) & 31) as usize]);
        (0..8).map(|at| if at < used { digit(at) } else { '=' }).collect::<String>()
    };
    bytes.chunks(5).map(group).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn each(text: &str, map: impl Fn(char) -> String) -> String {
    text.chars().map(map).collect()
}

fn fullwidth(c: char) -> String {
    let wide = c.is_ascii_graphic().then(|| char::from_u32(u32::from(c) + 0xfee0)).flatten();
    wide.unwrap_or(c).to_string()
}

fn homoglyph(c: char) -> String {
    let pairs = "aаeеoоpрcсxхAАKКIІsѕBВ".chars().collect::<Vec<_>>();
    let same = pairs.chunks(2).find(|pair| pair[0] == c);
    same.map_or(c, |pair| pair[1]).to_string()
}

fn quoted_printable(text: &str) -> String {
    let mut out = String::new();
    let mut column = 0;
    for byte in text.bytes() {
        let shown = match byte {
            b'\n' => "\r\n".to_owned(),
            b' '..=b'~' if byte != b'=' => char::from(byte).to_string(),
            _ => format!("={byte:02X}"),
        };
        column = if byte == b'\n' { 0 } else { column + shown.len() };
        if column > 32 {
            out.push_str("=\r\n");
            column = shown.len();
        }
        out.push_str(&shown);
    }
    out
}

fn image(text: &str) -> Vec<u8> {
    let noise = |factor: u32| (0..400_u32).map(move |i| ((i * i * factor) >> 3) as u8);
    let head = b"\x89PNG\r\n\x1a\n".iter().copied().chain(noise(7));
    head.chain(b"tEXtComment\0".iter().copied()).chain(text.bytes()).chain(noise(5)).collect()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

const ENCODINGS: [Encoding; 25] = [
    ("plain", str::to_owned),
    ("base64", |text| STANDARD.encode(text)),
    ("base64url without padding", |text| URL_SAFE_NO_PAD.encode(text)),
    ("base64 behind other text", |text| format!("see /v1/{} there", STANDARD.encode(text))),
    ("base64 in lines", |text| {
        let all = STANDARD.encode(format!("{} {text}", "a file of words ".repeat(8)));
        all.as_bytes().chunks(76).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\r\n")
    }),
    ("base32", |text| base32(text.as_bytes())),
    ("hex", |text| hex(text.as_bytes())),
    ("hex in capitals", |text| hex(text.as_bytes()).to_uppercase()),
    ("percent", percent),
    ("\\x", |text| text.bytes().map(|byte| format!("\\x{byte:02x}")).collect()),
    ("\\u", |text| each(text, |c| format!("\\u{:04x}", u32::from(c)))),
    ("entities", |text| each(text, |c| format!("&#{};", u32::from(c)))),
    ("hex entities", |text| each(text, |c| format!("&#x{:X};", u32::from(c)))),
    ("quoted-printable", quoted_printable),
    ("gzip", |text| STANDARD.encode(gzip(format!("first\n{text}\nlast").as_bytes()))),
    ("zlib", |text| STANDARD.encode(zlib(text.as_bytes()))),
    ("UTF-16", |text| STANDARD.encode(utf16(text))),
    ("zero bytes", |text| each(text, |c| format!("{c}\0"))),
    ("zero-width", |text| each(text, |c| format!("{c}\u{200b}"))),
    ("soft hyphens", |text| each(text, |c| format!("{c}\u{ad}"))),
    ("fullwidth", |text| each(text, fullwidth)),
    ("homoglyphs", |text| each(text, homoglyph)),
    ("image data", |text| STANDARD.encode(image(text))),
    ("base64 of base64", |text| STANDARD.encode(STANDARD.encode(text))),
    ("hex of gzip of base64", |text| hex(&gzip(STANDARD.encode(text).as_bytes()))),
];

#[test]
fn every_rule_finds_its_secret_in_every_encoding() {
    let tables = secrets(&Config::default()).tables.load_full();
    let sources = rules::read(rules::BUILT_IN).unwrap();
    println!("| encoding | found |\n|---|---|");
    for (name, encode) in ENCODINGS {
        let (mut found, mut all) = (0, 0);
        let mut missed = Vec::new();
        for (source, seed) in sources.iter().zip(100..) {
            for template in &source.matches {
                let text = encode(&expand(template, &mut Seed::new(seed)));
                let raw = json!({ "content": [{ "type": "text", "text": text }] }).to_string();
                let report = tables.inspect(Phase::Response, raw.as_bytes()).unwrap();
                all += 1;
                match report.redacted {
                    Some(raw) => {
                        serde_json::from_slice::<Value>(&raw).unwrap();
                        found += 1;
                    }
                    None => missed.push(source.id.as_str()),
                }
            }
        }
        println!("| {name} | {:.1} % of {all} |", 100.0 * f64::from(found) / f64::from(all));
        assert!(100 * found >= 97 * all, "{name}: {missed:?}");
    }
}

#[tokio::test]
async fn encoded_secret_is_redacted_as_a_whole() {
    let secrets = secrets(&Config::default());
    let token = token();
    let mark = "[redacted:github-token]";
    for (text, redacted) in [
        (format!("é {}, end", STANDARD.encode(&token)), format!("é {mark}, end")),
        (format!("a={}&b=%41", percent(&token)), format!("a={mark}&b=%41")),
        (format!("&#97;{}\u{a0}x", each(&token, fullwidth)), format!("&#97;{mark}\u{a0}x")),
        (
            format!("“x” {}", each(&token, |c| format!("{c}\u{200b}"))),
            format!("“x” {mark}\u{200b}"),
        ),
        (format!("{{\"a\":\"{}\\n\"}}", hex(token.as_bytes())), format!("{{\"a\":\"{mark}\\n\"}}")),
    ] {
        let verdict = response(&secrets, &json!({ "text": text }).to_string()).await;
        assert_eq!(replacement(&verdict), json!({ "text": redacted }).to_string());
        let verdict = request(&secrets, &json!({ "text": text }).to_string()).await;
        assert!(matches!(verdict.decision, Decision::Refuse(_)), "{text}");
    }
}

#[tokio::test]
async fn secret_in_two_lines_is_redacted() {
    let secrets = secrets(&Config::default());
    let token = token();
    let (first, last) = token.split_at(25);
    let mark = "[redacted:github-token]";
    for (text, redacted) in [
        (format!("a {first}\n{last} b"), format!("a {mark} b")),
        (format!("k = \"{first}\" +\r\n    \"{last}\";"), format!("k = \"{mark}\";")),
        (format!("# {first}\\\n# {last}\n"), format!("# {mark}\n")),
        // A secret before a line break is complete.
        (
            format!("{token}\nnext-line-with-a-long-word"),
            format!("{mark}\nnext-line-with-a-long-word"),
        ),
        (
            format!("glpat-{}\nnext_line_of_one_word", made("{base62:20}")),
            "[redacted:gitlab-token]\nnext_line_of_one_word".into(),
        ),
    ] {
        let verdict = response(&secrets, &json!({ "text": text }).to_string()).await;
        assert_eq!(replacement(&verdict), json!({ "text": redacted }).to_string());
    }
}

#[tokio::test]
async fn known_secrets_are_found_encoded() {
    for value in [["tr0ub", "4dor"].concat(), ["correct horse", " battery staple"].concat()] {
        let known = Known {
            holder: "s".into(),
            name: "KEY".into(),
            client: None,
            value: Secret::new(value.clone()),
        };
        let secrets = Secrets::new("secrets", &Config::default(), &[known]).unwrap();
        for (name, encode) in ENCODINGS {
            for around in ["", "x", "xy"] {
                // A short secret has a spelling in base64 and in hex only.
                if value.len() < 15 && matches!(name, "base32" | "base64 of base64") {
                    continue;
                }
                let text = encode(&format!("{around}{value}{around}"));
                let verdict = response(&secrets, &json!([text]).to_string()).await;
                let Decision::Replace(raw) = &verdict.decision else {
                    panic!("{name}, {around:?}: {text}")
                };
                assert!(std::str::from_utf8(raw).unwrap().contains("[redacted:vault:s/KEY]"));
            }
        }
    }
}

#[tokio::test]
async fn bad_encodings_are_clean() {
    let secrets = secrets(&Config::default());
    let bomb = STANDARD.encode(gzip(&vec![b'a'; 32 << 20]));
    let mut deep = "x".repeat(64);
    while deep.len() < 1 << 18 {
        deep = STANDARD.encode(&deep);
    }
    let mut broken = gzip(&b"some text ".repeat(50));
    broken.truncate(40);
    for text in [
        bomb,
        deep,
        STANDARD.encode(broken),
        STANDARD.encode(b"\x1f\x8b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        STANDARD.encode(b"\xff\xfe\x00\xd8\x00\xd8\x00\xd8\x00\xd8\x00\xd8\x00\xd8\x00"),
        "%4".repeat(1000),
        "%".repeat(1000),
        "&#x110000;&#99999999999;&#x;&;&amp".repeat(50),
        "==\n==3=\r=Z".repeat(50),
        "\u{200b}".repeat(1000),
        "=".repeat(1000),
        "ABCD".repeat(5000),
    ] {
        let verdict = response(&secrets, &json!([text]).to_string()).await;
        assert_eq!(verdict, Verdict::pass(), "{:.80}", text);
    }
    // The text before the end of a broken archive counts.
    let mut archive = gzip(format!("{} ", token()).repeat(9).as_bytes());
    archive.truncate(archive.len() - 6);
    let verdict = response(&secrets, &json!([STANDARD.encode(archive)]).to_string()).await;
    assert_eq!(replacement(&verdict), r#"["[redacted:github-token]"]"#);
}

proptest! {
    #[test]
    fn arbitrary_text_causes_no_panic(
        text in "([%&=\\\\#x0-9A-Fa-z;\n\u{200b}\u{ff21}а ]|QUtJ|&#65;|%41|=3D){0,60}"
    ) {
        let hits = scanner().scan(text.as_bytes(), &mut Budget::of(text.len()));
        for hit in hits {
            prop_assert!(text.get(hit.range).is_some());
        }
    }
}

fn files(directory: PathBuf, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { files(path, all) } else { all.push(path) }
    }
}

/// Prints the findings per megabyte in the texts below `PORTCULLIS_CORPUS`, by default this
/// directory, and the throughput beside that of a parser. Findings are of one text block each.
#[test]
fn findings_and_throughput_on_a_corpus() {
    let tables = secrets(&Config::default()).tables.load_full();
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    files(std::env::var_os("PORTCULLIS_CORPUS").map_or(here, PathBuf::from), &mut all);
    let (mut bytes, mut scan, mut parse) = (0, 0.0, 0.0);
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for path in all {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let raw = json!({ "content": [{ "type": "text", "text": text }] }).to_string();
        bytes += raw.len();
        let start = Instant::now();
        let value: Value = serde_json::from_str(&raw).unwrap();
        parse += start.elapsed().as_secs_f64();
        drop(value);
        let start = Instant::now();
        let report = tables.inspect(Phase::Response, raw.as_bytes()).unwrap();
        scan += start.elapsed().as_secs_f64();
        assert!(report.redacted.is_none_or(|raw| serde_json::from_slice::<Value>(&raw).is_ok()));
        for one in report.found {
            *found.entry(tables.scanner.ids[one.id].as_str()).or_default() += 1;
        }
    }
    let megabytes = bytes as f64 / 1e6;
    println!(
        "{megabytes:.1} MB; findings per MB: {:.4}",
        found.values().sum::<usize>() as f64 / megabytes
    );
    println!("{found:?}");
    println!("scan: {:.0} MB/s; serde_json: {:.0} MB/s", megabytes / scan, megabytes / parse);
}
