//! Measurement of the scanner: recall, false positives, throughput and the worst inputs.
//!
//! `PORTCULLIS_CORPUS=DIRECTORY PORTCULLIS_GITLEAKS=FILE cargo test --release -p
//! portcullis-interceptors --lib secrets::tests::measurement -- --nocapture --test-threads 1` prints
//! the tables of docs/evidence.md. Without the variables, the tests use this directory and the
//! built-in rules.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use regex_syntax::hir::{Class, Hir, HirKind};

use super::{
    encodings::{ENCODINGS, hostile_texts},
    files::RULES,
    *,
};

/// Whether the samples of a rule are held out: nobody looks at them while rules are changed.
fn is_held_out(id: &str) -> bool {
    crc32fast::hash(id.as_bytes()).is_multiple_of(3)
}

/// Found samples, and all.
#[derive(Default, Clone, Copy)]
struct Share {
    found: usize,
    all: usize,
}

impl Share {
    fn add(&mut self, is_found: bool) {
        self.found += usize::from(is_found);
        self.all += 1;
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = 100.0 * self.found as f64 / self.all.max(1) as f64;
        write!(f, "{} of {} ({percent:.1} %)", self.found, self.all)
    }
}

#[test]
fn every_rule_finds_its_secret_in_every_encoding() {
    let tables = secrets(&Config::default()).tables.load_full();
    let sources = rules::read(rules::BUILT_IN).unwrap();
    println!(
        "| encoding | formats of their own | values behind a name | held out |\n|---|---|---|---|"
    );
    for (name, encode) in ENCODINGS {
        // Of formats, of values that a name makes a secret, and of both if held out.
        let mut shares = [Share::default(); 3];
        let mut missed = Vec::new();
        for (own, source) in sources.iter().enumerate() {
            let sample = expand(&source.matches[0], &mut Seed::new(100 + own as u64));
            // A rule that also finds the plain sample is as good.
            let hits = tables.scanner.scan(sample.as_bytes(), &mut Budget::of(sample.len()));
            let hits = hits.unwrap();
            // The rule for any name finds a value together with the escape in front of it.
            let expected = |id: usize| {
                let is_plain = hits.iter().any(|hit| hit.id == id);
                id == own || is_plain || tables.scanner.ids[id] == "named-secret"
            };
            let encoded = encode(&sample);
            let text = format!("(start) | {encoded} | (end)");
            let raw = json!({ "content": [{ "type": "text", "text": text }] }).to_string();
            let report = tables
                .inspect(Phase::Response, raw.as_bytes(), &[], None, b"")
                .map(|one| one.report)
                .unwrap();
            let group = match is_held_out(&source.id) {
                true => 2,
                false => usize::from(source.named),
            };
            shares[group].add(report.redacted.is_some());
            let Some(redacted) = report.redacted else {
                if group < 2 {
                    missed.push(source.id.as_str());
                }
                continue;
            };
            let value: Value = serde_json::from_slice(&redacted).unwrap();
            let shown = value["content"][0]["text"].as_str().unwrap();
            let what = format!("{} in {name}: {shown}", source.id);
            assert!(report.found.iter().any(|one| expected(one.id)), "{what}");
            assert!(shown.starts_with("(start) | ") && shown.ends_with(" | (end)"), "{what}");
            // No part of the secret stays, whatever its encoding.
            for hit in &hits {
                let secret = encode(&sample[hit.range.clone()]);
                let (first, last) = secret.split_at(secret.floor_char_boundary(secret.len() / 2));
                let last = last.trim_end_matches('=');
                assert!(!shown.contains(first) && !shown.contains(last), "{what}");
            }
            let again = tables
                .inspect(Phase::Response, &redacted, &[], None, b"")
                .map(|one| one.report)
                .unwrap();
            assert_eq!(again, Report::default(), "{what}");
        }
        println!("| {name} | {} | {} | {} |", shares[0], shares[1], shares[2]);
        let (found, all) =
            shares.iter().fold((0, 0), |(f, a), share| (f + share.found, a + share.all));
        assert!(100 * found >= 97 * all, "{name}: {missed:?}");
    }
}

/// Random text that an expression matches. Assertions are left to a test of the result.
fn sample(hir: &Hir, seed: &mut Seed, out: &mut Vec<u8>) {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => out.extend_from_slice(&literal.0),
        HirKind::Class(class) => {
            // Control characters and blanks are legal in many classes, and rare in secrets.
            let mut all: Vec<u8> = match class {
                Class::Bytes(class) => {
                    class.iter().flat_map(|range| range.start()..=range.end()).collect()
                }
                Class::Unicode(class) => class
                    .iter()
                    .flat_map(|range| range.start()..=range.end())
                    .filter_map(|c| u8::try_from(c).ok())
                    .collect(),
            };
            if all.iter().any(u8::is_ascii_graphic) {
                all.retain(u8::is_ascii_graphic);
            }
            out.push(all[seed.below(all.len())]);
        }
        HirKind::Repetition(repetition) => {
            let least = repetition.min;
            let most = repetition.max.unwrap_or(least + 16).min(least + 40);
            // An optional part is absent or short, as in most texts.
            let most = if least == 0 { most.min(1) } else { most };
            let count = least as usize + seed.below((most - least) as usize + 1);
            (0..count).for_each(|_| sample(&repetition.sub, seed, out));
        }
        HirKind::Capture(capture) => sample(&capture.sub, seed, out),
        HirKind::Concat(parts) => parts.iter().for_each(|part| sample(part, seed, out)),
        HirKind::Alternation(parts) => sample(&parts[seed.below(parts.len())], seed, out),
    }
}

/// First group of an expression.
fn first_group(hir: &Hir) -> Option<&Hir> {
    match hir.kind() {
        HirKind::Capture(capture) if capture.index == 1 => Some(&capture.sub),
        HirKind::Capture(capture) => first_group(&capture.sub),
        HirKind::Repetition(repetition) => first_group(&repetition.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().find_map(first_group),
        _ => None,
    }
}

/// Rules of gitleaks, of those that are not held out, whose samples cannot be secrets: tokens without
/// their checksum, their dot or their last part, JWTs without a header, ids and public keys.
const NOT_ISSUED: [&str; 13] = [
    "artifactory-reference-token",
    "asana-client-id",
    "aws-amazon-bedrock-api-key-short-lived",
    "discord-client-id",
    "flutterwave-public-key",
    "github-oauth",
    "github-pat",
    "github-refresh-token",
    "jwt",
    "jwt-base64",
    "sendgrid-api-token",
    "slack-app-token",
    "slack-bot-token",
];

/// Number of samples of each rule of gitleaks.
const SAMPLES: usize = 27;

/// Texts with a secret of a rule of gitleaks, and the range of the secret.
fn samples_of(rule: &rules::Rule) -> Vec<(Vec<u8>, std::ops::Range<usize>)> {
    let parser = || regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build();
    // Rules ignore the case of prefixes, and vendors write them as the rules do.
    let as_written = rule.regex.as_str().replace("(?i)", "").replace("(?i:", "(?:");
    let hir = parser().parse(&as_written).unwrap();
    let mut seed = Seed::new(u64::from(crc32fast::hash(rule.id.as_bytes())));
    let name = rule.keywords.first().map_or("", String::as_str).trim_end_matches(['-', '_']);
    let all = (0..SAMPLES).filter_map(|n| {
        let mut secret = Vec::new();
        let text = match first_group(&hir).filter(|_| is_named(rule)) {
            Some(group) => {
                sample(group, &mut seed, &mut secret);
                let secret = String::from_utf8(secret).ok()?;
                match n % 3 {
                    0 => format!("{name}_api_key = \"{secret}\"\n"),
                    1 => format!("export {}_TOKEN={secret}\n", name.to_uppercase()),
                    _ => format!("{{\"{name}Secret\": \"{secret}\"}}"),
                }
                .into_bytes()
            }
            None => {
                sample(&hir, &mut seed, &mut secret);
                [&b"x = "[..], &secret, b"\n"].concat()
            }
        };
        let matched = rule.regex.get().unwrap().find(&text)?.range();
        let secret = rule.secret(&text, &matched);
        let is_secret =
            rule.accepts(text.get(secret.clone())?) && !rule.is_allowed(&text, &matched, &secret);
        (is_secret && std::str::from_utf8(&text).is_ok()).then_some((text, secret))
    });
    all.collect()
}

/// Whether a rule of gitleaks is for a value after a name: then it has the signs between them.
fn is_named(rule: &rules::Rule) -> bool {
    rule.regex.as_str().contains("(?:=|>|")
}

/// Prints the share of samples of gitleaks' rules that the built-in rules find, and the rules of
/// which most are missed, except of held out ones. The rules are those of `PORTCULLIS_GITLEAKS`, by
/// default a few of our own. All of them must find their samples.
#[test]
fn recall_of_the_rules_of_gitleaks() {
    let path = std::env::var_os("PORTCULLIS_GITLEAKS").map(PathBuf::from);
    let text =
        path.as_ref().map_or_else(|| RULES.to_owned(), |path| fs::read_to_string(path).unwrap());
    let file = gitleaks::read(&path.unwrap_or_default(), &text).unwrap();
    println!("{} rules; {}", file.rules.len(), file.notices.join("; "));
    let mut scanner = scanner();
    let mut shares = BTreeMap::<_, Share>::new();
    let mut missed = Vec::new();
    let mut unsampled = Vec::new();
    let mut impossible = Share::default();
    for rule in &file.rules {
        let mut own = Share::default();
        for (text, secret) in samples_of(rule) {
            let hits = scanner.scan(&text, &mut Budget::of(text.len())).unwrap();
            let touches =
                |hit: &scan::Hit| hit.range.start < secret.end && secret.start < hit.range.end;
            own.add(hits.iter().any(touches));
        }
        if own.all == 0 {
            unsampled.push(rule.id.as_str());
        }
        if NOT_ISSUED.iter().any(|id| rule.id.strip_prefix("gitleaks:") == Some(id)) {
            impossible.found += own.found;
            impossible.all += own.all;
            continue;
        }
        let group = (is_named(rule), is_held_out(&rule.id));
        let share = shares.entry(group).or_default();
        share.found += own.found;
        share.all += own.all;
        if !group.1 && 2 * own.found < own.all {
            missed.push(format!("{} {own}", rule.id));
        }
    }
    println!("| formats of gitleaks | tuned | held out |\n|---|---|---|");
    for (is_named, name) in [(false, "with a shape of their own"), (true, "behind a name")] {
        let share = |is_held_out| shares.get(&(is_named, is_held_out)).copied().unwrap_or_default();
        println!("| {name} | {} | {} |", share(false), share(true));
    }
    println!("not issued by any vendor, or no secrets: {impossible}");
    println!("without a sample: {unsampled:?}\nmissed: {missed:#?}");
    // All of its rules beside the built-in ones.
    let rules = rules::built_in().unwrap().iter().chain(&file.rules).cloned().collect();
    scanner = Scanner::new(rules, &[]).unwrap();
    let mut share = Share::default();
    let mut missed = Vec::new();
    for rule in &file.rules {
        let mut own = Share::default();
        for (text, _) in samples_of(rule) {
            let hits = scanner.scan(&text, &mut Budget::of(text.len())).unwrap();
            own.add(hits.iter().any(|hit| scanner.ids[hit.id] == rule.id));
        }
        share.found += own.found;
        share.all += own.all;
        if own.found < own.all {
            missed.push(format!("{} {own}", rule.id));
        }
    }
    println!("found by the loaded rules: {share}; missed: {missed:#?}");
    assert!(share.all > 0 && 100 * share.found >= 97 * share.all, "{share}");
}

/// Files below a directory.
fn files(directory: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() { files(&path, all) } else { all.push(path) }
    }
}

/// Limit of the shown files of a rule.
const MAX_SHOWN_FILES: usize = 20;
/// Number of the slowest files shown.
const MAX_SHOWN_WORST: usize = 10;
/// Size in bytes from which a file is one of the worst.
const MIN_WORST_BYTES: usize = 64 << 10;

/// Prints the findings per megabyte in the texts below `PORTCULLIS_CORPUS`, by default this
/// directory, some files of each rule, the files that are a fault, the slowest files, and the
/// throughput beside that of a parser. Each file is a text block, and once more JSON in one. No file
/// of this directory is a fault.
#[test]
fn findings_and_throughput_on_a_corpus() {
    let tables = secrets(&Config::default()).tables.load_full();
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let corpus = std::env::var_os("PORTCULLIS_CORPUS");
    let is_here = corpus.is_none();
    let mut all = Vec::new();
    files(&corpus.map_or(here, PathBuf::from), &mut all);
    all.sort();
    let (mut bytes, mut searched, mut scan, mut parse) = (0, 0, 0.0, 0.0);
    let mut faults = Vec::new();
    let mut found: BTreeMap<&str, Vec<(&PathBuf, String)>> = BTreeMap::new();
    let mut worst: Vec<(f64, &PathBuf)> = Vec::new();
    let mut count = 0;
    let texts = all.iter().filter_map(|path| Some((path, fs::read_to_string(path).ok()?)));
    let twice = texts.flat_map(|(path, text)| {
        let json = json!({ "file": text }).to_string();
        [(path, text), (path, json)]
    });
    for (path, text) in twice {
        let raw = json!({ "content": [{ "type": "text", "text": text }] }).to_string();
        bytes += raw.len();
        let start = Instant::now();
        let value: Value = serde_json::from_str(&raw).unwrap();
        parse += start.elapsed().as_secs_f64();
        drop(value);
        let start = Instant::now();
        let mut budget = Budget::of(raw.len());
        let report = payload::inspect_within(
            &mut budget,
            &tables.scanner,
            &tables.response,
            raw.as_bytes(),
            None,
            b"",
        );
        let seconds = start.elapsed().as_secs_f64();
        searched += budget.scanned;
        scan += seconds;
        if raw.len() >= MIN_WORST_BYTES {
            worst.push((seconds * 1e9 / raw.len() as f64, path));
        }
        let Ok((report, _)) = report else {
            faults.push(path);
            continue;
        };
        assert!(report.redacted.is_none_or(|raw| serde_json::from_slice::<Value>(&raw).is_ok()));
        count += report.found.len() + report.more;
        for one in report.found {
            let id = tables.scanner.ids[one.id].as_str();
            found.entry(id).or_default().push((path, one.place));
        }
    }
    let megabytes = bytes as f64 / 1e6;
    println!("{megabytes:.1} MB; findings: {count}, per MB: {:.4}", count as f64 / megabytes);
    for (id, places) in &mut found {
        println!("{id}: {}", places.len());
        places.dedup_by_key(|(path, _)| *path);
        let shown = places.iter().take(MAX_SHOWN_FILES);
        shown.for_each(|(path, place)| println!("  {} {place}", path.display()));
    }
    println!("faults: {faults:?}");
    assert!(!is_here || faults.is_empty(), "{faults:?}");
    worst.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    for (cost, path) in worst.iter().take(MAX_SHOWN_WORST) {
        println!("{cost:.1} ms a MB: {}", path.display());
    }
    println!("searched for keywords: {:.1} bytes a byte", searched as f64 / bytes as f64);
    println!("scan: {:.0} MB/s; serde_json: {:.0} MB/s", megabytes / scan, megabytes / parse);
}

/// Prints the throughput of one megabyte of ordinary JSON beside that of a parser.
#[test]
fn throughput_of_ordinary_answers() {
    let tables = secrets(&Config::default()).tables.load_full();
    let mut seed = Seed::new(9);
    let mut records = |template: &str| {
        let mut raw = String::from("{\"content\":[{\"type\":\"text\",\"text\":\"\"}],\"rows\":[");
        while raw.len() < 1_000_000 {
            raw.push_str(&expand(template, &mut seed));
            raw.push(',');
        }
        raw + "0]}"
    };
    let plain = records(
        r#"{"id":{digit19:6},"name":"{lower:7} {lower:9}","state":"open","note":"The {lower:6} of {lower:5} was changed by {lower:8} and is {lower:9} now.","created_at":"2026-07-{digits:2}T10:00:00Z","tags":["{lower:5}","{lower:6}"]}"#,
    );
    let urls = records(
        r#"{"id":{digit19:6},"html_url":"https://{lower:6}.example.com/repos/{lower:5}/{lower:8}/issues/{digits:4}","avatar_url":"https://avatars.example.com/u/{digits:7}?v=4","sha":"{hex:40}","node_id":"{base64:24}"}"#,
    );
    let text = {
        let value: Value = serde_json::from_str(&urls).unwrap();
        json!({ "content": [{ "type": "text", "text": value.to_string() }] }).to_string()
    };
    println!("| 1 MB of | scan | serde_json |\n|---|---|---|");
    for (name, raw) in [("records", plain), ("URLs", urls), ("URLs as JSON in a text block", text)]
    {
        let best = |work: &dyn Fn()| {
            let times = (0..15).map(|_| {
                let start = Instant::now();
                work();
                start.elapsed().as_secs_f64()
            });
            raw.len() as f64 / 1e6 / times.fold(f64::MAX, f64::min)
        };
        let scan = best(&|| {
            let report = tables
                .inspect(Phase::Response, raw.as_bytes(), &[], None, b"")
                .map(|one| one.report)
                .unwrap();
            assert_eq!(report, Report::default());
        });
        let parse = best(&|| drop(serde_json::from_str::<Value>(&raw).unwrap()));
        println!("| {name} | {scan:.0} MB/s | {parse:.0} MB/s |");
    }
}

/// Prints the time of the inputs that cause most work.
#[test]
fn time_of_the_worst_inputs() {
    let tables = secrets(&Config::default()).tables.load_full();
    println!("| input of 1 MB | time | result |\n|---|---|---|");
    let measured = |text: &str| {
        let raw = json!([text]).to_string();
        let start = Instant::now();
        let report =
            tables.inspect(Phase::Response, raw.as_bytes(), &[], None, b"").map(|one| one.report);
        (start.elapsed().as_secs_f64() * 1e3 / (raw.len() as f64 / 1e6), report)
    };
    for (text, _) in hostile_texts(1 << 20) {
        let (time, report) = measured(&text);
        let result = match report {
            Ok(report) if report == Report::default() => "clean".to_owned(),
            Ok(report) => format!("{} found", report.found.len() + report.more),
            Err(_) => "fault".to_owned(),
        };
        println!(
            "| `{}…` | {time:.0} ms/MB | {result} |",
            text[..text.floor_char_boundary(32)].escape_debug()
        );
    }
    let sources = rules::read(rules::BUILT_IN).unwrap();
    let mut keywords: Vec<&str> =
        sources.iter().flat_map(|rule| &rule.keywords).map(String::as_str).collect();
    keywords.sort_unstable();
    keywords.dedup();
    let mut times: Vec<_> = keywords
        .iter()
        .map(|keyword| {
            let (time, report) = measured(&keyword.repeat((1 << 20) / keyword.len()));
            (time, *keyword, report.is_err())
        })
        .collect();
    times.sort_by(|(a, ..), (b, ..)| b.total_cmp(a));
    let faults: Vec<_> = times.iter().filter(|(.., is_fault)| *is_fault).collect();
    println!("{} keywords, each repeated over 1 MB; faults: {faults:?}", times.len());
    times.iter().take(5).for_each(|(time, keyword, _)| println!("{time:.0} ms/MB: {keyword}"));
}
