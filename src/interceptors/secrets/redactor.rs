//! Removes secrets from stored text: records, log lines and whole bodies.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use serde_json::{Map, Value};

use super::{
    Config, Invalid, Known, MIN_KNOWN_BYTES, add,
    documents::{documents, waste_of},
    encodings::{MIN_LIST, encoded},
    files::RuleFiles,
    json_strings::quote_long_numbers,
    layers::Layers,
    named::{self, is_harmless},
    names::{Counts, is_named_by_another, is_secret, names_another},
    once,
    rules::{self, Rule},
    scan::{Budget, Hit, Scanner, Spent},
};

/// Removes secrets from stored text. It knows every built-in rule, whatever the chain's settings, and those of files;
/// the values that servers get, also line by line, because text stored by line contains a
/// multi-line key in parts; their spellings in JSON, once and within another string; and values
/// that only their name marks as secret (see [`super::names`]).
pub struct Scrubber {
    /// Built-in rules, and those of files.
    rules: Vec<Rule>,
    scanner: ArcSwap<Scanner>,
    registered: Mutex<Vec<Known>>,
}

/// Limit of parsed levels of JSON within strings of JSON.
const MAX_NESTED: usize = 4;
/// Replacement of a value that only its name marks as secret.
const NAMED_MARK: &str = "[redacted:secret-name]";

/// Body without its secrets.
#[derive(Debug, PartialEq, Eq)]
pub struct Redacted {
    pub body: Value,
    /// Number of removed secrets.
    pub secrets: usize,
}

/// Reason why a body could not be scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unredacted {
    #[error("it could not be scanned for secrets in time")]
    Spent,
    #[error("it is not JSON, or nested too deeply to scan for secrets")]
    Unreadable,
}

/// JSON with every digit of its numbers.
fn read(text: &[u8]) -> Option<Value> {
    match quote_long_numbers(text) {
        Some(quoted) => serde_json::from_slice(&quoted).ok(),
        None => serde_json::from_slice(text).ok(),
    }
}

/// The text, its JSON spellings within a string, and those within another string.
fn spellings(text: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::from([text.to_owned()]);
    for _ in 0..2 {
        for text in all.clone() {
            let quoted = Value::from(text).to_string();
            let plain = quoted.get(1..quoted.len() - 1).unwrap_or_default();
            let slashes = plain.replace('/', "\\/");
            let ascii = |plain: &str, upper: bool| -> String {
                let mut units = [0; 2];
                let mut out = String::new();
                for c in plain.chars() {
                    if c.is_ascii() {
                        out.push(c);
                        continue;
                    }
                    for unit in c.encode_utf16(&mut units) {
                        out.push_str(&match upper {
                            true => format!("\\u{unit:04X}"),
                            false => format!("\\u{unit:04x}"),
                        });
                    }
                }
                out
            };
            for plain in [plain, &slashes] {
                all.extend([plain.to_owned(), ascii(plain, false), ascii(plain, true)]);
            }
        }
    }
    all
}

/// Whether a number is that of a byte.
fn is_byte(item: &Value) -> bool {
    item.as_f64().is_some_and(|number| number.fract() == 0.0 && (0.0..=255.0).contains(&number))
}

impl Scrubber {
    /// Redactor that also knows these values.
    ///
    /// # Errors
    /// Values with which nothing could be scanned.
    pub fn new(registered: &[Known]) -> Result<Self, Invalid> {
        Self::with_rules(registered, [])
    }

    /// Redactor that also knows the rules in the files of these settings. It knows no baselines:
    /// what they allow in messages stays out of records.
    ///
    /// # Errors
    /// Values with which nothing could be scanned; a file that is not valid.
    pub fn with_rules<'a>(
        registered: &[Known],
        settings: impl IntoIterator<Item = &'a Config>,
    ) -> Result<Self, Invalid> {
        let mut rules = rules::built_in()?.to_vec();
        for config in settings {
            let known = |rule: &&Rule| rules.iter().any(|other| other.id == rule.id);
            let of_groups = rules::optional()?.iter();
            let of_groups = of_groups.filter(|rule| config.has(rule) && !known(rule));
            let of_groups: Vec<_> = of_groups.cloned().collect();
            rules.extend(of_groups);
            rules.append(&mut RuleFiles::read(config)?.rules);
        }
        let registered = once(registered);
        let scanner = ArcSwap::from_pointee(Self::scanner(&rules, &registered)?);
        Ok(Self { rules, scanner, registered: Mutex::new(registered) })
    }

    /// Also searches these values from now on. Of older ones the newest are kept, so values in use
    /// must be among these. Blocks for a while.
    ///
    /// # Errors
    /// Values with which nothing could be scanned; then nothing changes.
    pub fn learn(&self, more: &[Known]) -> Result<(), Invalid> {
        let mut registered = self.registered.lock();
        let mut all = registered.clone();
        if add(&mut all, more) {
            self.scanner.store(Arc::new(Self::scanner(&self.rules, &all)?));
        }
        *registered = all;
        Ok(())
    }

    fn scanner(rules: &[Rule], registered: &[Known]) -> Result<Scanner, Invalid> {
        let mut exact = Vec::new();
        for secret in registered {
            let value = secret.value.expose();
            let parts: BTreeSet<_> =
                [value].into_iter().chain(value.lines().map(str::trim)).collect();
            let long = parts.into_iter().filter(|part| part.len() >= MIN_KNOWN_BYTES);
            for part in long {
                let spellings = spellings(part).into_iter().chain(encoded(part));
                exact.extend(spellings.map(|spelling| (secret.id(), spelling)));
            }
        }
        let exact: Vec<_> = exact.iter().map(|(id, text)| (id.clone(), text.as_str())).collect();
        Ok(Scanner::new(rules.to_vec(), &exact)?)
    }

    /// Replaces secrets by `[redacted:RULE]`. A text that is too expensive to scan is replaced
    /// whole.
    pub fn scrub(&self, text: &mut String) {
        let scanner = self.scanner.load();
        match scanner.scan(text.as_bytes(), &mut Budget::of(text.len())) {
            Ok(hits) => {
                take_out(&scanner, text, hits);
                take_out_named(text, &scanner.set);
            }
            Err(Spent) => *text = "[redacted]".into(),
        }
    }

    /// Body with secrets replaced by `[redacted:RULE]`: in its strings, keys and numbers, and in
    /// place of each value that its name marks as secret; also in JSON within a string, and in
    /// lines within an array.
    ///
    /// # Errors
    /// Why it could not be scanned.
    pub fn redact(&self, body: &[u8]) -> Result<Redacted, Unredacted> {
        let value = read(body).ok_or(Unredacted::Unreadable)?;
        let scanner = self.scanner.load();
        let mut taking = Taking {
            scanner: &scanner,
            // Strings are scanned with their names, too, and JSON in strings again.
            budget: Budget::of(body.len().saturating_mul(MAX_NESTED)),
            waste: waste_of(body.len()),
            secrets: 0,
            nested: 0,
        };
        let body = taking.value(value, "").map_err(|Spent| Unredacted::Spent)?;
        Ok(Redacted { body, secrets: taking.secrets })
    }
}

/// Replaces these hits by marks. Returns their number.
fn take_out(scanner: &Scanner, text: &mut String, mut hits: Vec<Hit>) -> usize {
    // Of overlapping hits, the first one covers all.
    hits.sort_by_key(|hit| (hit.range.start, std::cmp::Reverse(hit.range.end)));
    let mut merged: Vec<Hit> = Vec::new();
    for hit in hits {
        match merged.last_mut() {
            Some(last) if hit.range.start < last.range.end => {
                last.range.end = last.range.end.max(hit.range.end);
            }
            _ => merged.push(hit),
        }
    }
    let count = merged.len();
    let marks = merged.into_iter().map(|hit| {
        let id = scanner.ids.get(hit.id).map_or("", String::as_str);
        (hit.range, format!("[redacted:{id}]"))
    });
    replace(text, marks);
    count
}

/// Replaces each range by a mark. They are in order and disjoint. One pass over the text for any
/// number of ranges.
fn replace<M: AsRef<str>>(
    text: &mut String,
    marks: impl ExactSizeIterator<Item = (Range<usize>, M)>,
) {
    if marks.len() == 0 {
        return;
    }
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for (range, mark) in marks {
        out.push_str(text.get(at..range.start).unwrap_or_default());
        out.push_str(mark.as_ref());
        at = range.end;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    *text = out;
}

/// Replaces values that only their name marks as secret. Returns their number.
fn take_out_named(text: &mut String, ids: &HashSet<String>) -> usize {
    let layers = Layers::of(text.as_bytes());
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (depth, layer) in layers.texts().enumerate() {
        let Ok(layer) = std::str::from_utf8(layer) else { continue };
        let mut found = named::values(layer, ids);
        layers.locate(depth, &mut found);
        ranges.extend(found);
    }
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    ranges.dedup_by(|next, last| {
        let joined = next.start < last.end;
        if joined {
            last.end = last.end.max(next.end);
        }
        joined
    });
    replace(text, ranges.iter().map(|range| (range.clone(), NAMED_MARK)));
    ranges.len()
}

struct Taking<'a> {
    scanner: &'a Scanner,
    budget: Budget,
    /// Remaining limit of unsuccessful attempts at JSON in all of the body's strings.
    waste: usize,
    secrets: usize,
    /// Number of surrounding strings of JSON.
    nested: usize,
}

impl Taking<'_> {
    /// Value of a member, or of an element or the whole body (an empty key).
    fn value(&mut self, value: Value, key: &str) -> Result<Value, Spent> {
        Ok(match value {
            Value::String(text) => Value::String(self.string(text, key)?),
            Value::Array(items) => Value::Array(self.items(items, key)?),
            Value::Object(members) => Value::Object(self.members(members)?),
            Value::Number(number) => {
                let text = number.to_string();
                let shown = self.text(text.clone(), key)?;
                if shown == text { Value::Number(number) } else { Value::String(shown) }
            }
            plain => plain,
        })
    }

    fn members(&mut self, members: Map<String, Value>) -> Result<Map<String, Value>, Spent> {
        let naming = members.iter().find_map(|(key, value)| {
            let name = value.as_str().filter(|_| names_another(key))?;
            is_secret(name).then(|| name.to_owned())
        });
        let mut redacted = Map::with_capacity(members.len());
        let mut same: HashMap<String, usize> = HashMap::new();
        for (name, member) in members {
            let member = match &naming {
                _ if is_secret(&name) => self.named(member, &name)?,
                Some(naming) if is_named_by_another(&name) => self.named(member, naming)?,
                _ => self.value(member, &name)?,
            };
            let mut name = self.text(name, "")?;
            self.secrets += take_out_named(&mut name, &self.scanner.set);
            // Two redacted keys can become equal.
            if redacted.contains_key(&name) {
                let times = same.entry(name.clone()).or_insert(1);
                *times += 1;
                name = format!("{name}#{times}");
            }
            redacted.insert(name, member);
        }
        Ok(redacted)
    }

    /// Elements of an array, each of which may be named by the previous one: a flag of a command
    /// line (`["--token", "…"]`), or a list of names and values.
    fn items(&mut self, mut items: Vec<Value>, key: &str) -> Result<Vec<Value>, Spent> {
        self.lines(&mut items)?;
        self.byte_lists(&mut items, key)?;
        let pairs =
            items.len().is_multiple_of(2) && items.iter().step_by(2).all(|name| name.is_string());
        let mut redacted = Vec::with_capacity(items.len());
        let mut naming: Option<String> = None;
        for (at, item) in items.into_iter().enumerate() {
            let text = item.as_str().unwrap_or_default();
            let is_flag = text.starts_with('-');
            let next = (is_flag || pairs && at.is_multiple_of(2)).then(|| text.trim_matches('-'));
            let next = next.filter(|name| is_secret(name) && !name.contains(['=', ':']));
            let next = next.map(str::to_owned);
            redacted.push(match naming.filter(|_| !is_flag) {
                Some(name) => self.named(item, &name)?,
                None => self.value(item, key)?,
            });
            naming = next;
        }
        Ok(redacted)
    }

    /// Replaces lists of bytes within an array that encode a secret by a string.
    fn byte_lists(&mut self, items: &mut Vec<Value>, key: &str) -> Result<(), Spent> {
        let mut end = items.len();
        while end > 0 {
            let before = items.get(..end).unwrap_or_default();
            let start = before.iter().rposition(|item| !is_byte(item)).map_or(0, |last| last + 1);
            if end - start >= MIN_LIST {
                let list = before.get(start..).unwrap_or_default();
                let numbers = list.iter().filter_map(Value::as_f64).map(|byte| byte.to_string());
                let text = numbers.collect::<Vec<_>>().join(",");
                let shown = self.text(text.clone(), key)?;
                if shown != text {
                    items.splice(start..end, [Value::String(shown)]);
                }
            }
            end = start.saturating_sub(1);
        }
        Ok(())
    }

    /// Value of a member whose name marks a secret: redacted as a whole, of any type. Booleans and
    /// counts stay.
    fn named(&mut self, value: Value, name: &str) -> Result<Value, Spent> {
        let counts = Counts::of(name);
        let is_count = |value: &Value| match value {
            Value::Number(_) => counts.hold(&value.to_string()),
            Value::Array(items) => {
                counts == Counts::Tokens
                    && items
                        .iter()
                        .all(|item| item.is_number() && Counts::Few.hold(&item.to_string()))
            }
            _ => false,
        };
        match &value {
            Value::Null | Value::Bool(_) => return Ok(value),
            Value::Array(items) if items.is_empty() => return Ok(value),
            Value::Object(members) if members.is_empty() => return Ok(value),
            value if is_count(value) => return Ok(value.clone()),
            _ => {}
        }
        let before = self.secrets;
        if let Value::String(text) = value {
            // Values that a rule knows get the rule's name.
            let text = self.text(text, name)?;
            if is_harmless(&text, &self.scanner.set) {
                return Ok(Value::String(text));
            }
        }
        self.secrets = before + 1;
        Ok(NAMED_MARK.into())
    }

    /// String that may contain JSON documents.
    fn string(&mut self, text: String, key: &str) -> Result<String, Spent> {
        let text = self.text(text, key)?;
        let documents = match self.nested < MAX_NESTED {
            true => documents(&text, &mut self.waste)?,
            false => Vec::new(),
        };
        let mut shown = String::with_capacity(text.len());
        let mut at = 0;
        for document in documents {
            let Some(raw) = text.get(document.clone()) else { continue };
            if let Some(redacted) = self.document(raw)? {
                self.plain(text.get(at..document.start).unwrap_or_default(), &mut shown);
                shown.push_str(&redacted);
                at = document.end;
            }
        }
        self.plain(text.get(at..).unwrap_or_default(), &mut shown);
        Ok(shown)
    }

    /// JSON document in a text, if it contains secrets. Others stay as written.
    fn document(&mut self, raw: &str) -> Result<Option<String>, Spent> {
        self.budget.spend(raw.len())?;
        let Some(value) = read(raw.as_bytes()) else { return Ok(None) };
        let before = self.secrets;
        self.nested += 1;
        let value = self.value(value, "");
        self.nested -= 1;
        let value = value?;
        Ok((self.secrets > before).then(|| value.to_string()))
    }

    /// Adds a part of a text that is not a JSON document.
    fn plain(&mut self, part: &str, shown: &mut String) {
        let mut part = part.to_owned();
        self.secrets += take_out_named(&mut part, &self.scanner.set);
        shown.push_str(&part);
    }

    /// Redacts a secret that spans several strings of an array, such as the lines of a key.
    fn lines(&mut self, items: &mut [Value]) -> Result<(), Spent> {
        if items.len() < 2 || !items.iter().all(Value::is_string) {
            return Ok(());
        }
        let mut starts = Vec::with_capacity(items.len());
        let mut joined = String::new();
        for item in items.iter() {
            starts.push(joined.len());
            joined.push_str(item.as_str().unwrap_or_default());
            joined.push('\n');
        }
        self.budget.spend(joined.len())?;
        let mut hits = self.scanner.scan(joined.as_bytes(), &mut self.budget)?;
        hits.retain(|hit| {
            joined
                .get(hit.range.clone())
                .is_some_and(|text| text.trim_end_matches('\n').contains('\n'))
        });
        // From the end, so that earlier positions stay valid.
        hits.sort_by_key(|hit| std::cmp::Reverse(hit.range.start));
        let mut until = usize::MAX;
        for hit in hits {
            let end = hit.range.end.min(until);
            until = hit.range.start;
            let mark =
                format!("[redacted:{}]", self.scanner.ids.get(hit.id).map_or("", String::as_str));
            let first = starts.partition_point(|start| *start <= hit.range.start).saturating_sub(1);
            for (item, start) in
                items.iter_mut().zip(&starts).skip(first).take_while(|(_, start)| **start < end)
            {
                let Value::String(text) = item else { continue };
                let from = hit.range.start.saturating_sub(*start).min(text.len());
                let to = end.saturating_sub(*start).min(text.len());
                if from < to {
                    text.replace_range(from..to, &mark);
                }
            }
            self.secrets += 1;
        }
        Ok(())
    }

    fn text(&mut self, mut text: String, key: &str) -> Result<String, Spent> {
        let scanner = self.scanner;
        let mut hits = scanner.scan(text.as_bytes(), &mut self.budget)?;
        if scanner.has_keyword(key.as_bytes()) {
            // Some secrets are recognized only by the name before them, which is the key here.
            let named = format!("{key}={text}");
            let before = key.len() + 1;
            let found = scanner.scan(named.as_bytes(), &mut self.budget)?;
            hits.extend(found.into_iter().filter(|hit| hit.range.end > before).map(|hit| {
                let Range { start, end } = hit.range;
                Hit { range: start.saturating_sub(before)..end - before, ..hit }
            }));
        }
        self.secrets += take_out(scanner, &mut text, hits);
        Ok(text)
    }
}
