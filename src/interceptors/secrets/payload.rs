//! Scans a whole payload, and replaces secrets by marks without changing other bytes.

use std::ops::Range;

use bytes::Bytes;
use portcullis_vault::Secret;
use serde::de::IgnoredAny;

use super::{
    Action, assigned,
    handles::MAX_OF_OWNER,
    json_strings::{Malformed, Path, Role, Text, decode, each_text, locate},
    names::{is_named_by_another, is_secret, is_value_key, names_another},
    prefilter::Suspects,
    scan::{Budget, Hit, MAX_NAME_BYTES, Scanner, Spent},
    split::{self, Chain, Joined},
};

/// Limit of the reported secrets of one payload; further ones are counted.
const MAX_REPORTED: usize = 50;

/// Result of scanning a payload.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// In the order of the text, the first [`MAX_REPORTED`].
    pub found: Vec<Found>,
    /// Number of secrets beyond those.
    pub more: usize,
    /// Whether any must be refused.
    pub refuse: bool,
    /// Redacted text, if any secret must be redacted and none refused.
    pub redacted: Option<Bytes>,
}

/// One secret.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Id of the scanner.
    pub id: usize,
    /// JSON pointer; for a key, to its object's member.
    pub place: String,
    pub is_key: bool,
    pub action: Action,
}

/// Reason why a payload could not be scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unscanned {
    #[error("the payload is not JSON")]
    Malformed,
    #[error(
        "the payload has too many keywords of secrets, or too much encoded text, to scan it in time"
    )]
    Spent,
}

impl From<Malformed> for Unscanned {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<Spent> for Unscanned {
    fn from(_: Spent) -> Self {
        Self::Spent
    }
}

/// Part of a payload that a mark replaces.
struct Cut {
    range: Range<usize>,
    /// Id of the scanner.
    id: usize,
    /// Quote around the mark.
    quote: &'static str,
    /// The secret, if a handle can stand for it.
    secret: Option<String>,
}

/// Function for the digits of a handle, by the id of the scanner and the secret. `None` if the secret
/// gets none.
pub(super) type MakeHandle<'a> = dyn Fn(usize, &str) -> Option<String> + 'a;

/// Scans every string, key and number of a JSON text. `actions` has an action for each id. `before`
/// is the end of the message before, if it may be the beginning of a secret. Also returns that of
/// this message.
pub(super) fn inspect(
    scanner: &Scanner,
    actions: &[Action],
    raw: &[u8],
    handle: Option<&MakeHandle<'_>>,
    before: &[u8],
) -> Result<(Report, Option<String>), Unscanned> {
    inspect_within(&mut Budget::of(raw.len()), scanner, actions, raw, handle, before)
}

/// The same within a budget.
pub(super) fn inspect_within(
    budget: &mut Budget,
    scanner: &Scanner,
    actions: &[Action],
    raw: &[u8],
    handle: Option<&MakeHandle<'_>>,
    before: &[u8],
) -> Result<(Report, Option<String>), Unscanned> {
    let mut report = Report::default();
    let mut cuts: Vec<Cut> = Vec::new();
    let suspects = scanner.suspects(raw);
    let members = scanner.of_members();
    let mut chain = Chain::behind(before);
    let has_names = suspects.as_ref().is_none_or(Suspects::has_names);
    let is_divided = |before: &[u8], after: &[u8]| scanner.is_divided(before, after);
    each_text::<Unscanned>(raw, |path, text| {
        let is_suspicious =
            |part: &Range<usize>| suspects.as_ref().is_none_or(|all| all.has(raw, part));
        let is_named = text.role == Role::Value && path.member_key().is_some_and(is_suspicious);
        let member = members.and_then(|id| {
            let name = member_name(raw, path, &text, suspects.as_ref())?;
            let is_secret = assigned::is_member_secret(&name, &text.decoded)
                && !scanner.is_allowed(&text.decoded);
            is_secret.then(|| Hit { id, range: 0..text.decoded.len() })
        });
        let is_joined = text.role == Role::Value && !text.decoded.is_empty() && !is_kind(raw, path);
        let is_scanned = member.is_some() || is_named || is_suspicious(&text.span);
        if !is_scanned {
            budget.decoded.earn(text.span.len());
            let may_be_named =
                || has_names && may_have_neighbour(raw, path, &text, suspects.as_ref());
            if !is_joined || !may_be_named() && chain.passes(raw, &text.span, is_divided) {
                return Ok(false);
            }
        }
        let mut hits = match text.role {
            _ if !is_scanned => Vec::new(),
            Role::Numbers => scanner.scan_numbers(&text.decoded, budget)?,
            Role::Key | Role::Value => scanner.scan(&text.decoded, budget)?,
        };
        if is_named
            && Scanner::may_be_named(&text.decoded)
            && let Some(name) = path.member(raw, MAX_NAME_BYTES)
        {
            hits.extend(scanner.scan_member(name, &text.decoded, budget)?);
        }
        if hits.is_empty() {
            hits.extend(member);
        }
        if is_joined {
            let next = split::Next {
                span: &text.span,
                decoded: &text.decoded,
                has_keyword: suspects.as_ref().is_none_or(|all| all.has_keyword(&text.span)),
                has_secret: hits.iter().any(|hit| scanner.is_of_format(hit)),
            };
            if let Some(joined) = chain.add(raw, is_divided, &next) {
                add_divided(scanner, actions, raw, &joined, budget, &mut report, &mut cuts)?;
            }
        }
        if let Some((id, span)) = members.zip(value_before(raw, path, &text, suspects.as_ref()))
            && !scanner.is_allowed(&decode(raw.get(span.clone()).unwrap_or_default()))
        {
            let action = actions.get(id).copied().unwrap_or(Action::Refuse);
            let whole = 0..decode(raw.get(span.clone()).unwrap_or_default()).len();
            add_elsewhere(
                raw,
                id,
                action,
                path.pointer(raw),
                &[(span, whole)],
                &mut report,
                &mut cuts,
            );
        }
        if hits.is_empty() {
            return Ok(false);
        }
        let hits = join(hits, actions);
        let mut redact = Vec::new();
        for (hit, action) in &hits {
            // A key cannot be redacted, because another name is another member.
            let action = match action {
                Action::Redact if text.role == Role::Key => Action::Refuse,
                action => *action,
            };
            report.refuse |= action == Action::Refuse;
            if action == Action::Redact {
                redact.push(hit);
            }
            if report.found.len() < MAX_REPORTED {
                let place = path.pointer(raw);
                report.found.push(Found {
                    id: hit.id,
                    place,
                    is_key: text.role == Role::Key,
                    action,
                });
            } else {
                report.more += 1;
            }
        }
        let mut ranges: Vec<_> = redact.iter().map(|hit| hit.range.clone()).collect();
        if text.role == Role::Numbers {
            cuts.extend(redact.iter().map(|hit| Cut {
                range: hit.range.start + text.span.start..hit.range.end + text.span.start,
                id: hit.id,
                quote: "\"",
                secret: None,
            }));
            return Ok(true);
        }
        // JSON in a string stays JSON: if marks would break it, all of it becomes one JSON string.
        let as_json = breaks_json(&text.decoded, &ranges);
        if as_json {
            redact.truncate(1);
            ranges.clear();
            ranges.push(0..text.decoded.len());
        }
        let places = locate(raw.get(text.span.clone()).unwrap_or_default(), &ranges);
        let secret = |range: &Range<usize>| {
            let bytes = text.decoded.get(range.clone()).filter(|_| handle.is_some() && !as_json)?;
            std::str::from_utf8(bytes).ok().map(str::to_owned)
        };
        cuts.extend(places.into_iter().zip(redact).map(|(place, hit)| Cut {
            range: place.start + text.span.start..place.end + text.span.start,
            id: hit.id,
            quote: if as_json { "\\\"" } else { "" },
            secret: secret(&hit.range),
        }));
        Ok(true)
    })?;
    let beginning = chain.beginning(raw);
    let found = report.found.len() + report.more;
    if let Some(joined) = chain.end(raw) {
        add_divided(scanner, actions, raw, &joined, budget, &mut report, &mut cuts)?;
    }
    // What is found already begins nothing.
    let beginning = beginning.filter(|_| found == report.found.len() + report.more);
    if !report.refuse && !cuts.is_empty() {
        in_order(&mut cuts);
        report.redacted = Some(splice(scanner, raw, &cuts, handle));
    }
    Ok((report, beginning))
}

/// Whether a string is the kind of a text block, which is between its text and that of the block
/// before, or the name of a tool before its arguments, or metadata behind them.
fn is_kind(raw: &[u8], path: &Path) -> bool {
    if path.is_metadata(raw) {
        return true;
    }
    match path.member_key().and_then(|key| raw.get(key.clone())) {
        Some(b"type") => true,
        Some(b"name") => path.is_outermost(),
        _ => false,
    }
}

/// Adds the secrets that are divided between the strings of a chain.
#[cold]
fn add_divided(
    scanner: &Scanner,
    actions: &[Action],
    raw: &[u8],
    joined: &Joined,
    budget: &mut Budget,
    report: &mut Report,
    cuts: &mut Vec<Cut>,
) -> Result<(), Unscanned> {
    let mut hits = scanner.scan_joined(&joined.text, budget)?;
    // The end of the message before may be no part of a secret, and must hide none.
    let start = joined.before();
    if start > 0 {
        let text = joined.text.get(start..).unwrap_or_default();
        hits.extend(
            scanner
                .scan_joined(text, budget)?
                .into_iter()
                .map(|hit| Hit { range: hit.range.start + start..hit.range.end + start, ..hit }),
        );
    }
    hits.retain(|hit| joined.is_divided(&hit.range));
    for (hit, action) in join(hits, actions) {
        let parts = joined.parts(&hit.range);
        let Some((last, _)) = parts.last() else { continue };
        let is_shown = report.found.len() < MAX_REPORTED;
        let place = if is_shown { place_of(scanner, raw, last) } else { String::new() };
        add_elsewhere(raw, hit.id, action, place, &parts, report, cuts);
    }
    Ok(())
}

/// Pointer to a string, without keys that may have a secret.
fn place_of(scanner: &Scanner, raw: &[u8], string: &Range<usize>) -> String {
    let mut place = String::new();
    let suspects = scanner.suspects(raw);
    let _ = each_text::<Malformed>(raw, |path, text| {
        if text.span == *string {
            place = path.pointer(raw);
        }
        Ok(suspects.as_ref().is_none_or(|all| all.has(raw, &text.span)))
    });
    place
}

/// Adds a secret in other strings than the visited one. `parts` has their positions, and ranges of
/// them, decoded.
#[cold]
fn add_elsewhere(
    raw: &[u8],
    id: usize,
    action: Action,
    place: String,
    parts: &[(Range<usize>, Range<usize>)],
    report: &mut Report,
    cuts: &mut Vec<Cut>,
) {
    if action == Action::Off {
        return;
    }
    report.refuse |= action == Action::Refuse;
    if report.found.len() < MAX_REPORTED {
        report.found.push(Found { id, place, is_key: false, action });
    } else {
        report.more += 1;
    }
    if action != Action::Redact {
        return;
    }
    for (span, part) in parts {
        let string = raw.get(span.clone()).unwrap_or_default();
        let places = locate(string, std::slice::from_ref(part));
        cuts.extend(places.into_iter().map(|place| Cut {
            range: place.start + span.start..place.end + span.start,
            id,
            quote: "",
            secret: None,
        }));
    }
}

/// Puts cuts in order, and joins those that overlap.
fn in_order(cuts: &mut Vec<Cut>) {
    cuts.sort_by_key(|cut| (cut.range.start, std::cmp::Reverse(cut.range.end)));
    cuts.dedup_by(|next, last| {
        let overlaps = next.range.start < last.range.end;
        if overlaps && next.range.end > last.range.end {
            last.range.end = next.range.end;
            last.secret = None;
        }
        overlaps
    });
}

/// Limit in bytes of a string that names another one.
const MAX_NAMING_BYTES: usize = 128;

/// Name of a secret that a string is the value of: that of its member, of a member before it, or the
/// element before it. Remembers strings that name others.
fn member_name(
    raw: &[u8],
    path: &Path,
    text: &Text<'_>,
    suspects: Option<&Suspects>,
) -> Option<String> {
    if text.role != Role::Value {
        return None;
    }
    let may_name = |part: &Range<usize>| suspects.is_none_or(|all| all.may_name(part));
    let secret_name = |bytes: &[u8]| {
        let name = std::str::from_utf8(bytes.strip_prefix(b"--").unwrap_or(bytes)).ok()?;
        // The first line of a key is in lists of lines.
        let is_name = name.len() <= MAX_NAMING_BYTES && !name.ends_with("-----");
        (is_name && is_secret(name)).then(|| name.to_owned())
    };
    let is_element = path.is_element();
    if suspects.is_some_and(|all| !all.has_names()) {
        return None;
    }
    // Of a list, only a random text is a value: lists of names are frequent.
    let of_list = |name: String| if is_element { String::new() } else { name };
    if path.member_key().is_some_and(may_name)
        && let Some(name) = path.member(raw, MAX_NAME_BYTES)
        && let Some(name) = secret_name(name)
    {
        return Some(of_list(name));
    }
    let is_name = text.span.len() <= MAX_NAMING_BYTES && may_name(&text.span);
    let naming = path.naming();
    if !is_name && naming.is_none() {
        return None;
    }
    let key = path.member(raw, MAX_NAME_BYTES).and_then(|key| std::str::from_utf8(key).ok());
    let names = is_element || key.is_some_and(names_another);
    let is_named = is_element || key.is_some_and(is_named_by_another);
    if names {
        let is_name = is_name && secret_name(&text.decoded).is_some();
        if is_name || is_element {
            path.set_naming(is_name.then(|| text.span.clone()));
        }
    }
    let naming = decode(raw.get(naming.filter(|_| is_named)?)?);
    let name = secret_name(&naming)?;
    Some(if naming.starts_with(b"-") { name } else { of_list(name) })
}

/// Whether a string can name a member in front of it, or be the value of one behind it.
fn may_have_neighbour(
    raw: &[u8],
    path: &Path,
    text: &Text<'_>,
    suspects: Option<&Suspects>,
) -> bool {
    let key = path.member_key().and_then(|key| raw.get(key.clone()));
    suspects.is_none_or(|all| all.may_name(&text.span)) || key.is_some_and(is_value_key)
}

/// Position of the value of a secret in front of the member that names it: `{"value": "…", "name":
/// "API_KEY"}`. Remembers such values.
fn value_before(
    raw: &[u8],
    path: &Path,
    text: &Text<'_>,
    suspects: Option<&Suspects>,
) -> Option<Range<usize>> {
    let has_names = suspects.is_none_or(Suspects::has_names);
    if !has_names || text.role != Role::Value || path.is_element() {
        return None;
    }
    let key = raw.get(path.member_key()?.clone())?;
    if is_value_key(key) {
        if path.naming().is_none() {
            path.set_value(text.span.clone());
        }
        return None;
    }
    let is_name = text.span.len() <= MAX_NAMING_BYTES
        && suspects.is_none_or(|all| all.may_name(&text.span))
        && std::str::from_utf8(key).is_ok_and(names_another);
    let name = std::str::from_utf8(&text.decoded).ok().filter(|_| is_name)?;
    let span = path.value().filter(|_| is_secret(name))?;
    let value = decode(raw.get(span.clone())?);
    assigned::is_member_secret(name, &value).then_some(span)
}

/// Whether a text is JSON and would not be JSON with marks in place of these ranges: a known secret
/// can be a number there, or span two strings.
fn breaks_json(text: &[u8], ranges: &[Range<usize>]) -> bool {
    let is_json = |text: &[u8]| serde_json::from_slice::<IgnoredAny>(text).is_ok();
    let begins = text.trim_ascii_start().first();
    if ranges.is_empty() || !matches!(begins, Some(b'{' | b'[' | b'"')) || !is_json(text) {
        return false;
    }
    let mut remaining = Vec::with_capacity(text.len());
    let mut at = 0;
    for range in ranges {
        remaining.extend_from_slice(text.get(at..range.start).unwrap_or_default());
        // A letter can represent a mark: neither contains anything that JSON would escape.
        remaining.push(b'x');
        at = range.end;
    }
    remaining.extend_from_slice(text.get(at..).unwrap_or_default());
    !is_json(&remaining)
}

/// Hits in order and disjoint. Of overlapping ones, the first longest gives its name, and the
/// strictest its action. Hits that are off, or reported beside a stricter one, are dropped.
fn join(mut hits: Vec<Hit>, actions: &[Action]) -> Vec<(Hit, Action)> {
    hits.sort_by_key(|hit| (hit.range.start, std::cmp::Reverse(hit.range.end), hit.id));
    let mut joined: Vec<(Hit, Action)> = Vec::new();
    for hit in hits {
        let action = actions.get(hit.id).copied().unwrap_or(Action::Refuse);
        if action == Action::Off {
            continue;
        }
        match joined.last_mut() {
            Some((last, strictest)) if hit.range.start < last.range.end => {
                last.range.end = last.range.end.max(hit.range.end);
                *strictest = (*strictest).max(action);
            }
            _ => joined.push((hit, action)),
        }
    }
    joined
}

/// Text with a mark in place of each cut. Cuts are in order and disjoint.
fn splice(scanner: &Scanner, raw: &[u8], cuts: &[Cut], handle: Option<&MakeHandle<'_>>) -> Bytes {
    let mut out = Vec::with_capacity(raw.len());
    let mut at = 0;
    // More handles than are kept for one owner would displace each other.
    let mut left = MAX_OF_OWNER;
    for Cut { range, id, quote, secret } in cuts {
        out.extend_from_slice(raw.get(at..range.start).unwrap_or_default());
        let name = scanner.ids.get(*id).map_or("", String::as_str);
        let digits = secret.as_deref().filter(|_| left > 0).and_then(|secret| handle?(*id, secret));
        left -= usize::from(digits.is_some());
        // Ids contain nothing that JSON would escape.
        let mark = match digits {
            Some(digits) => format!("[secret:{name}:{digits}]"),
            None => format!("{quote}[redacted:{name}]{quote}"),
        };
        out.extend_from_slice(mark.as_bytes());
        at = range.end;
    }
    out.extend_from_slice(raw.get(at..).unwrap_or_default());
    out.into()
}

/// Text of `params` with values in place of handles, in the strings of `arguments`. `resolve` returns
/// the handles of a string. A value stands only where the scanner finds it. `None` without handles.
pub(super) fn resolve_handles(
    scanner: &Scanner,
    raw: &[u8],
    resolve: impl Fn(&[u8]) -> Vec<(Range<usize>, Secret)>,
) -> Result<Option<Bytes>, Unscanned> {
    let mut budget = Budget::of(raw.len());
    let mut places: Vec<(Range<usize>, String)> = Vec::new();
    each_text::<Unscanned>(raw, |path, text| {
        if text.role != Role::Value || !path.is_below(raw, b"arguments") {
            return Ok(false);
        }
        let handles = resolve(&text.decoded);
        if handles.is_empty() {
            return Ok(false);
        }
        let mut shown = Vec::new();
        let mut values = Vec::new();
        let mut at = 0;
        for (range, value) in &handles {
            shown.extend_from_slice(text.decoded.get(at..range.start).unwrap_or_default());
            let start = shown.len();
            shown.extend_from_slice(value.expose().as_bytes());
            values.push(start..shown.len());
            at = range.end;
        }
        shown.extend_from_slice(text.decoded.get(at..).unwrap_or_default());
        let hits = scanner.scan(&shown, &mut budget)?;
        // Records redact such a member as a whole.
        let name = path.member(raw, MAX_NAME_BYTES).and_then(|name| std::str::from_utf8(name).ok());
        let is_member = name.is_some_and(|name| {
            is_secret(name)
                && matches!(&values[..], [all] if *all == (0..shown.len()))
                && assigned::is_member_secret(name, &shown)
        });
        let is_found = |value: &Range<usize>| {
            let covers = |hit: &Hit| hit.range.start <= value.start && value.end <= hit.range.end;
            hits.iter().any(covers)
        };
        if !is_member && !values.iter().all(is_found) {
            return Ok(false);
        }
        let ranges: Vec<_> = handles.iter().map(|(range, _)| range.clone()).collect();
        let located = locate(raw.get(text.span.clone()).unwrap_or_default(), &ranges);
        places.extend(located.into_iter().zip(handles).map(|(place, (_, value))| {
            let quoted = serde_json::Value::from(value.expose()).to_string();
            let inner = quoted.get(1..quoted.len() - 1).unwrap_or_default().to_owned();
            (place.start + text.span.start..place.end + text.span.start, inner)
        }));
        Ok(false)
    })?;
    if places.is_empty() {
        return Ok(None);
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut at = 0;
    for (range, value) in places {
        out.extend_from_slice(raw.get(at..range.start).unwrap_or_default());
        out.extend_from_slice(value.as_bytes());
        at = range.end;
    }
    out.extend_from_slice(raw.get(at..).unwrap_or_default());
    Ok(Some(out.into()))
}
