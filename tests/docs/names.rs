//! Inline code: commands, flags, keys of the config, filters, policies, files, codes, events,
//! metrics. Text in the form of one of these must exist in the code. Text in another form (`null`,
//! `Debug`) is only counted.

use std::{collections::BTreeSet, fs};

use portcullis_audit::record::Entry;
use portcullis_protocol::refusal;
use regex::Regex;
use serde_json::Value;

use crate::{
    commands::{self, Whole},
    configs::{self, Keys},
    pages::{self, Page, root},
    policies,
};

/// Words in the form of ours that belong to other software, or that are examples, by page.
const OTHERS: &str = include_str!("others.txt");

/// The endings of files of this tree that pages name.
const ENDINGS: [&str; 9] = [".rs", ".md", ".py", ".cedar", ".yaml", ".wit", ".toml", ".json", ".c"];

/// Pages about the tests, whose words are those of the tests.
const OF_TESTS: [&str; 5] = [
    "docs/reference/escapes.md",
    "docs/concepts/isolation.md",
    "docs/reference/matrix.md",
    "docs/start/servers.md",
    "tests/",
];

pub struct Names {
    files: Vec<String>,
    flags: BTreeSet<String>,
    verbs: BTreeSet<String>,
    keys: Keys,
    metrics: BTreeSet<String>,
    /// Codes, events, keys and values of the schemas, verbs.
    tables: BTreeSet<String>,
    /// Words of the code that is shipped.
    code: BTreeSet<String>,
    /// Words of the tests.
    tests: BTreeSet<String>,
}

impl Names {
    pub fn of_the_tree() -> Self {
        let files = pages::files();
        let mut tables = commands::words();
        tables.extend(refusal::Code::ALL.iter().map(|code| code.as_str().to_owned()));
        tables.extend(portcullis_config::Code::ALL.iter().map(|code| code.as_str().to_owned()));
        for schema in
            [schemars::schema_for!(Entry), schemars::schema_for!(portcullis_config::Config)]
        {
            strings(&schema.to_value(), &mut tables);
        }
        let metrics = fs::read_to_string(root().join("src/telemetry/metrics.rs")).unwrap();
        let metric = Regex::new(r#""((?:portcullis|mcp)_[a-z_]+)""#).unwrap();
        let metrics = metric.captures_iter(&metrics).map(|found| found[1].to_owned()).collect();
        let shipped = ["src/", "policies/", "examples/", "plugins/", "Cargo.toml"];
        Self {
            flags: commands::flags(),
            verbs: commands::verbs(),
            keys: Keys::of_the_schema(),
            metrics,
            tables,
            code: words(&files, |path| shipped.iter().any(|top| path.starts_with(top))),
            tests: words(&files, |path| {
                path.starts_with("tests/") && !path.starts_with("tests/docs/")
            }),
            files,
        }
    }

    /// The kind of a name, and what is wrong with it.
    pub fn check(&self, page: &Page, text: &str) -> (&'static str, Result<(), String>) {
        let others = OTHERS.lines().filter_map(|line| line.split_once(": "));
        let mut others = others.filter(|(path, _)| *path == page.path || *path == "*");
        if others.any(|(_, word)| word == text) {
            return ("names of other software and examples (others.txt)", Ok(()));
        }
        let first = text.split([' ', '=']).next().unwrap_or_default();
        let is_command = first == "portcullis" && text.contains(' ');
        let is_verb = text.split_once(' ').is_some_and(|(verb, rest)| {
            self.verbs.contains(verb)
                && rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '[' || c == '-')
                && !rest.starts_with("in ")
        });
        if is_command {
            return ("commands", commands::shell(&without_brackets(text), Whole::NameOnly));
        }
        if text.starts_with("--") {
            return ("flags", self.flag(text));
        }
        if is_annotation(text) {
            return ("annotations of policies", policies::check_annotation(text));
        }
        if text.starts_with("Portcullis::") {
            return ("entities of policies", policies::check_entity(text));
        }
        if let Some(attribute) = attribute(text) {
            let has = policies::has_word(attribute);
            let why = || format!("the Cedar schema has no `{attribute}`");
            return ("attributes of policies", has.then_some(()).ok_or_else(why));
        }
        if let Some(line) = table(text) {
            return ("tables of the config", configs::check_table(&line));
        }
        if is_verb {
            let command = format!("portcullis {}", without_brackets(text));
            return ("commands", commands::shell(&command, Whole::NameOnly));
        }
        if let Some((method, path)) = endpoint(text) {
            return ("endpoints", self.endpoint(method, path));
        }
        if text.contains(" = ")
            || [" != ", " ~ ", " !~ ", " > ", " >= ", " contains ", " in ("]
                .iter()
                .any(|sign| text.contains(sign))
        {
            return ("lines of the config and filters", line_or_filter(text));
        }
        if text.starts_with("PORTCULLIS_") {
            let name = text.split('=').next().unwrap_or_default();
            let has = self.code.contains(name) || self.tests.contains(name);
            return ("environment variables", has.then_some(()).ok_or("nothing reads it".into()));
        }
        if text.starts_with("portcullis_") || text.starts_with("mcp_") {
            return ("metrics", self.metric(text));
        }
        if let Some(outcome) = self.file(page, text) {
            return ("files", outcome);
        }
        if let Some(outcome) = self.key(text) {
            return ("keys of the config", outcome);
        }
        if is_code(text) && page.path == "docs/reference/conformance.md" {
            return ("checks of the conformance suite, which tests/conformance compares", Ok(()));
        }
        if is_code(text) {
            return ("codes, events and other words of the code", self.word(page, text));
        }
        ("other inline code, which is not checked", Ok(()))
    }

    fn flag(&self, text: &str) -> Result<(), String> {
        let name = text[2..].split([' ', '=', ',']).next().unwrap_or_default();
        match self.flags.contains(name) {
            true => Ok(()),
            false => Err(format!("no command has the option --{name}")),
        }
    }

    fn metric(&self, text: &str) -> Result<(), String> {
        let name = text.split('{').next().unwrap_or_default();
        let mut base = ["_total", "_bucket", "_sum", "_count"].iter();
        let base = base.find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
        let has = self.metrics.contains(name) || self.metrics.contains(base);
        has.then_some(()).ok_or_else(|| "there is no such metric".into())
    }

    /// A file of the tree, where the text has the form of one.
    fn file(&self, page: &Page, text: &str) -> Option<Result<(), String>> {
        let top = text.split('/').next().unwrap_or_default();
        let tops = ["docs", "examples", "plugins", "policies", "src", "tests"];
        let plain = |c: char| c.is_alphanumeric() || "/._-".contains(c);
        if !text.chars().all(plain) {
            return None;
        }
        if tops.contains(&top) && text.contains('/') {
            let folder = page.path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let there = root().join(text).exists() || root().join(folder).join(text).exists();
            return Some(there.then_some(()).ok_or_else(|| "there is no such file".into()));
        }
        let is_source = text.ends_with(".rs");
        let in_the_map = page.path == "ARCHITECTURE.md";
        let named = ENDINGS.iter().any(|ending| text.ends_with(ending)) || text.ends_with('/');
        if !(is_source || in_the_map && named && !text.starts_with('/')) {
            return None;
        }
        let end = format!("/{text}");
        let within =
            |path: &String| path.ends_with(&end) || path.contains(&end) && end.ends_with('/');
        let there = self.files.iter().any(|path| within(&format!("/{path}")));
        Some(there.then_some(()).ok_or_else(|| "the tree has no such file".into()))
    }

    fn endpoint(&self, method: &str, path: &str) -> Result<(), String> {
        let fixed = path.split(|c: char| c.is_ascii_uppercase()).next().unwrap_or_default();
        let fixed = fixed.trim_end_matches(['/', '…', '?']);
        let last = fixed.rsplit('/').next().unwrap_or_default();
        let has = last.is_empty() || self.code.contains(last);
        has.then_some(()).ok_or_else(|| format!("nothing answers {method} {path}"))
    }

    /// A dotted key of the config, where the text has the form of one.
    fn key(&self, text: &str) -> Option<Result<(), String>> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let first = text.split('.').next()?;
        if !text.contains('.') || !text.chars().all(plain) || !self.keys.has_name(first) {
            return None;
        }
        Some(self.keys.has(text).then_some(()).ok_or_else(|| "the config has no such key".into()))
    }

    fn word(&self, page: &Page, text: &str) -> Result<(), String> {
        let of_tests = OF_TESTS.iter().any(|path| page.path.starts_with(path));
        let has = self.tables.contains(text)
            || self.code.contains(text)
            || of_tests && self.tests.contains(text);
        has.then_some(()).ok_or_else(|| {
            "neither the code nor a table has it (or write it into tests/docs/others.txt)".into()
        })
    }
}

/// `@approve`, `@approve("why")`: no package of npm (`@scope/name`).
fn is_annotation(text: &str) -> bool {
    let Some(text) = text.strip_prefix('@') else { return false };
    let name = text.split('(').next().unwrap_or_default();
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphabetic())
}

/// The words with a dash or an underscore: codes and events.
fn is_code(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
    let parts: Vec<_> = text.split(['-', '_']).collect();
    text.chars().all(plain)
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && parts.len() > 1
        && parts.iter().all(|part| !part.is_empty())
}

/// `context.paths`, `resource.deviations`: the attribute.
fn attribute(text: &str) -> Option<&str> {
    let (variable, rest) = text.split_once('.')?;
    if !["context", "principal", "resource"].contains(&variable) {
        return None;
    }
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
    Some(&rest[..end])
}

/// `[servers.NAME]`: as it would stand in a config.
fn table(text: &str) -> Option<String> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let inner = inner.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(inner);
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_table = !inner.is_empty()
        && inner.chars().all(plain)
        && inner.starts_with(|c: char| c.is_ascii_lowercase());
    is_table.then(|| inner.to_owned())
}

fn endpoint(text: &str) -> Option<(&str, &str)> {
    let (method, path) = text.split_once(' ')?;
    let is_method = ["GET", "POST", "PUT", "DELETE", "HEAD"].contains(&method);
    (is_method && path.starts_with('/')).then_some((method, path))
}

/// `audit tail [-f] [FILTER]` with what is optional.
fn without_brackets(text: &str) -> String {
    text.replace(['[', ']'], "")
        .replace("\\|", "|")
        .split('|')
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// A line of the config, a filter, or both.
fn line_or_filter(text: &str) -> Result<(), String> {
    let line = configs::check_line(text);
    let filter = commands::filter(text);
    match (line, filter) {
        (Err(line), Err(filter)) => {
            Err(format!("neither a line of the config ({line}) nor a filter ({filter})"))
        }
        _ => Ok(()),
    }
}

/// Every string of a schema that is a name: properties, constants, values.
fn strings(schema: &Value, all: &mut BTreeSet<String>) {
    match schema {
        Value::Object(members) => {
            for (key, each) in members {
                if key == "properties" {
                    all.extend(each.as_object().into_iter().flat_map(|each| each.keys().cloned()));
                }
                match (key.as_str(), each) {
                    ("const", Value::String(value)) => {
                        all.insert(value.clone());
                    }
                    ("enum", Value::Array(values)) => {
                        all.extend(values.iter().filter_map(Value::as_str).map(str::to_owned));
                    }
                    _ => strings(each, all),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|each| strings(each, all)),
        _ => {}
    }
}

/// The words of files of the tree, with dashes and underscores within and without.
fn words(files: &[String], wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let word = Regex::new(r"[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+)*").unwrap();
    let mut all = BTreeSet::new();
    for path in files.iter().filter(|path| wanted(path) && !path.ends_with(".md")) {
        let Ok(text) = fs::read_to_string(root().join(path)) else { continue };
        for found in word.find_iter(&text) {
            all.insert(found.as_str().to_owned());
            all.extend(found.as_str().split('-').map(str::to_owned));
            // As serde spells variants and fields.
            all.insert(kebab(found.as_str()));
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        all.extend(word.find_iter(name).map(|part| part.as_str().to_owned()));
        all.extend(path.split('/').map(str::to_owned));
    }
    all
}

/// `ChainBroken` and `chain_broken` as `chain-broken`.
fn kebab(word: &str) -> String {
    let mut kebab = String::new();
    for c in word.chars() {
        if c.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(if c == '_' { '-' } else { c.to_ascii_lowercase() });
    }
    kebab
}

#[test]
fn unknown_names_are_found() {
    let names = Names::of_the_tree();
    let page = Page::empty("docs/a.md");
    for wrong in [
        "portcullis servers",
        "server restart --now",
        "--no-such-flag",
        "portcullis_lost_total",
        "audit.folder",
        "policy-refused-today",
        "src/nowhere.rs",
        "no_such_file.rs",
        "idle-stop = 3",
        "record = event",
        "[servers.NAME.limits]",
        "@aprove",
        "context.argumints",
        "PORTCULLIS_NOTHING",
        "GET /v1/nothing-of-ours",
    ] {
        let (kind, outcome) = names.check(&page, wrong);
        assert!(outcome.is_err(), "{wrong} ({kind})");
    }
    for right in ["policy-denied", "server-launched", "audit.dir", "portcullis_audit_missed_total"]
    {
        assert_eq!(names.check(&page, right).1, Ok(()), "{right}");
    }
}
