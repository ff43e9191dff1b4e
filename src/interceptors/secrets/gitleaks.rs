//! Reads rule files of gitleaks (`gitleaks.toml`).
//!
//! A message has no file name and no commit, so rules and allowlists that need one cannot apply.
//! [`File::notices`] lists what of a file has no effect. Go's dialect of expressions differs from
//! that of `regex` in a few characters, which [`translate`] escapes.

use std::{path::Path, sync::Arc};

use aho_corasick::AhoCorasick;
use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;
use toml::Spanned;

use super::{
    encodings::OVERLAP_BYTES,
    pattern::MAX_PATTERN_BYTES,
    rules::{IllegalRules, Kind, Part, Rule, Severity},
};

/// Bytes around a keyword that are searched for a match without a maximum length.
const UNBOUNDED_REACH_BYTES: usize = 16 << 10;
/// Limit of the rules of a file.
const MAX_RULES: usize = 2_000;
/// Limit of the rules of a file without keywords, because their expressions search all texts.
const MAX_RULES_WITHOUT_KEYWORDS: usize = 8;
/// Prefix of the ids of these rules, so that none is that of a built-in rule.
const ID_PREFIX: &str = "gitleaks:";

/// Rules of a file.
#[derive(Debug, Clone, Default)]
pub(super) struct File {
    pub rules: Vec<Rule>,
    /// Parts without effect.
    pub notices: Vec<String>,
}

#[derive(Deserialize)]
struct Source {
    extend: Option<toml::Table>,
    allowlist: Option<Spanned<AllowSource>>,
    #[serde(default)]
    allowlists: Vec<Spanned<AllowSource>>,
    #[serde(default)]
    rules: Vec<Spanned<RuleSource>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleSource {
    #[serde(default)]
    id: String,
    #[serde(default)]
    description: String,
    regex: Option<Spanned<String>>,
    path: Option<String>,
    secret_group: Option<usize>,
    entropy: Option<f64>,
    #[serde(default)]
    keywords: Vec<String>,
    allowlist: Option<Spanned<AllowSource>>,
    #[serde(default)]
    allowlists: Vec<Spanned<AllowSource>>,
    #[serde(default)]
    required: Vec<toml::Table>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AllowSource {
    condition: Option<String>,
    #[serde(default)]
    commits: Vec<String>,
    #[serde(default)]
    paths: Vec<String>,
    regex_target: Option<String>,
    #[serde(default)]
    regexes: Vec<Spanned<String>>,
    #[serde(default)]
    stopwords: Vec<String>,
    #[serde(default)]
    target_rules: Vec<String>,
}

/// Matches that are not secrets.
#[derive(Debug)]
pub(super) struct AllowList {
    /// Whether all conditions must hold. Otherwise one is enough.
    all: bool,
    target: Target,
    regexes: Vec<Regex>,
    stopwords: Option<AhoCorasick>,
}

/// Text to which the expressions of an allowlist apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Secret,
    Match,
    Line,
}

impl AllowList {
    /// Whether a match is not a secret.
    pub(super) fn allows(&self, matched: &[u8], secret: &[u8], line: &[u8]) -> bool {
        let target = match self.target {
            Target::Secret => secret,
            Target::Match => matched,
            Target::Line => line,
        };
        let by_regex = || self.regexes.iter().any(|regex| regex.is_match(target));
        let by_word = || self.stopwords.as_ref().is_some_and(|words| words.is_match(secret));
        match self.all {
            true => {
                (self.regexes.is_empty() || by_regex()) && (self.stopwords.is_none() || by_word())
            }
            false => by_regex() || by_word(),
        }
    }
}

/// Position in a file, for errors.
struct Place<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Place<'_> {
    fn line(&self, offset: usize) -> usize {
        1 + self
            .text
            .get(..offset)
            .map_or(0, |before| memchr::memchr_iter(b'\n', before.as_bytes()).count())
    }

    fn error(&self, offset: usize, problem: String, remedy: &str) -> IllegalRules {
        IllegalRules::File {
            path: self.path.to_owned(),
            line: self.line(offset),
            problem,
            remedy: remedy.to_owned(),
        }
    }
}

/// Reads the rules of a file. `path` is the name in errors.
///
/// # Errors
/// The first part that is not valid, with its line and a remedy.
pub(super) fn read(path: &Path, text: &str) -> Result<File, IllegalRules> {
    let place = Place { path, text };
    let source: Source = toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        place.error(offset, error.message().to_owned(), "correct the file as TOML of gitleaks")
    })?;
    if source.rules.len() > MAX_RULES {
        let what = format!("the file has more than {MAX_RULES} rules");
        return Err(place.error(0, what, "remove rules"));
    }
    let mut file = File::default();
    if source.extend.is_some() {
        file.notices.push("`extend` has no effect: list the other file, too".into());
    }
    if let (Some(old), [_, ..]) = (&source.allowlist, &source.allowlists[..]) {
        let what = "`allowlist` and `allowlists` exclude each other".to_owned();
        return Err(place.error(old.span().start, what, "move the former to the latter"));
    }
    let mut global = Vec::new();
    for list in source.allowlist.iter().chain(&source.allowlists) {
        if let Some(compiled) = allow_list(list, &place, "the file", &mut file.notices)? {
            global.push((list.get_ref().target_rules.clone(), Arc::new(compiled)));
        }
    }
    let mut without_keywords = 0;
    for spanned in &source.rules {
        let rule = spanned.get_ref();
        let start = spanned.span().start;
        if rule.id.is_empty() {
            let what = "a rule has no `id`".to_owned();
            return Err(place.error(start, what, "give it an `id`"));
        }
        let id = format!("{ID_PREFIX}{}", rule.id);
        let is_legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if !rule.id.bytes().all(is_legal) {
            let what = format!("the id `{}` has other characters", rule.id.escape_debug());
            return Err(place.error(start, what, "use letters, digits, `-`, `_` and `.`"));
        }
        if file.rules.iter().any(|other| other.id == id) {
            let what = format!("two rules have the id `{}`", rule.id);
            return Err(place.error(start, what, "rename one of them"));
        }
        if rule.path.is_some() {
            let what = "has a `path`, which no message has: it is not used";
            file.notices.push(format!("rule `{}` {what}", rule.id));
            continue;
        }
        let Some(regex) = &rule.regex else {
            if source.extend.is_some() {
                // Such a rule only changes one of the extended file.
                file.notices.push(format!("rule `{}` has no `regex`: it is not used", rule.id));
                continue;
            }
            let what = format!("rule `{}` has neither `regex` nor `path`", rule.id);
            return Err(place.error(start, what, "add a `regex`"));
        };
        if !rule.required.is_empty() {
            let what = "is used without its `required` rules";
            file.notices.push(format!("rule `{}` {what}", rule.id));
        }
        let mut allowed = Vec::new();
        for list in rule.allowlist.iter().chain(&rule.allowlists) {
            let of = format!("rule `{}`", rule.id);
            allowed.extend(allow_list(list, &place, &of, &mut file.notices)?.map(Arc::new));
        }
        let applies = |targets: &[String]| targets.is_empty() || targets.contains(&rule.id);
        allowed.extend(
            global.iter().filter(|(targets, _)| applies(targets)).map(|(_, list)| list.clone()),
        );
        let keywords: Vec<String> =
            rule.keywords.iter().filter(|k| !k.is_empty()).cloned().collect();
        if keywords.is_empty() {
            without_keywords += 1;
            if without_keywords > MAX_RULES_WITHOUT_KEYWORDS {
                let what = format!(
                    "rule `{}` has no `keywords`, as {MAX_RULES_WITHOUT_KEYWORDS} rules before it",
                    rule.id
                );
                let remedy = "add `keywords`, one of which is in every match";
                return Err(place.error(start, what, remedy));
            }
        }
        file.rules.push(compiled(rule, id, regex, keywords, allowed, &place)?);
    }
    Ok(file)
}

/// Compiles a rule.
fn compiled(
    rule: &RuleSource,
    id: String,
    regex: &Spanned<String>,
    keywords: Vec<String>,
    allowed: Vec<Arc<AllowList>>,
    place: &Place<'_>,
) -> Result<Rule, IllegalRules> {
    let (expression, is_unicode) = expression(regex, place, &format!("rule `{}`", rule.id))?;
    let properties = regex_syntax::ParserBuilder::new()
        .unicode(is_unicode)
        .utf8(false)
        .build()
        .parse(expression.as_str())
        .map(|hir| hir.properties().clone());
    let length = |of: fn(&regex_syntax::hir::Properties) -> Option<usize>| {
        properties.as_ref().ok().and_then(of)
    };
    let group = match rule.secret_group {
        None | Some(0) => Part::FirstWithText,
        Some(group) if group < expression.captures_len() => Part::Number(group),
        Some(group) => {
            let what = format!("rule `{}` has no group {group}", rule.id);
            return Err(place.error(regex.span().start, what, "correct its `secretGroup`"));
        }
    };
    let reach = length(regex_syntax::hir::Properties::maximum_len).unwrap_or(UNBOUNDED_REACH_BYTES);
    // A text is scanned in parts that have this much in common.
    let reach = reach.min(OVERLAP_BYTES);
    Ok(Rule {
        id,
        description: rule.description.clone(),
        keywords,
        ignore_case: true,
        named: false,
        kind: Kind::Pattern,
        one_line: false,
        needs_user: false,
        has_end: false,
        action: None,
        severity: Severity::default(),
        before: reach,
        after: reach,
        retries_within: false,
        shortest: length(regex_syntax::hir::Properties::minimum_len).unwrap_or(0),
        optional: None,
        group: if expression.captures_len() == 1 { Part::Whole } else { group },
        regex: expression.into(),
        entropy: rule.entropy.filter(|least| *least > 0.0),
        check: None,
        unless: None,
        allowed,
    })
}

/// Compiles an allowlist. `None` if nothing of it can apply.
fn allow_list(
    list: &Spanned<AllowSource>,
    place: &Place<'_>,
    of: &str,
    notices: &mut Vec<String>,
) -> Result<Option<AllowList>, IllegalRules> {
    let start = list.span().start;
    let source = list.get_ref();
    let all = match source.condition.as_deref() {
        None => false,
        Some(word) if ["OR", "||"].iter().any(|or| word.eq_ignore_ascii_case(or)) => false,
        Some(word) if ["AND", "&&"].iter().any(|and| word.eq_ignore_ascii_case(and)) => true,
        Some(word) => {
            let what = format!("the condition `{}` is unknown", word.escape_debug());
            return Err(place.error(start, what, "write `OR` or `AND`"));
        }
    };
    let target = match source.regex_target.as_deref() {
        None | Some("" | "secret") => Target::Secret,
        Some("match") => Target::Match,
        Some("line") => Target::Line,
        Some(word) => {
            let what = format!("the target `{}` is unknown", word.escape_debug());
            return Err(place.error(start, what, "write `secret`, `match` or `line`"));
        }
    };
    let needs_file = !source.paths.is_empty() || !source.commits.is_empty();
    if !needs_file && source.regexes.is_empty() && source.stopwords.is_empty() {
        let what = format!("an allowlist of {of} has no condition");
        return Err(place.error(start, what, "add `regexes` or `stopwords`, or remove it"));
    }
    if needs_file {
        let what = "`paths` and `commits`, which no message has";
        notices.push(format!("an allowlist of {of} has {what}"));
    }
    if source.regexes.is_empty() && source.stopwords.is_empty() || needs_file && all {
        return Ok(None);
    }
    let regexes = source
        .regexes
        .iter()
        .map(|regex| Ok(expression(regex, place, of)?.0))
        .collect::<Result<_, _>>()?;
    let words = source.stopwords.iter().filter(|word| !word.is_empty());
    let stopwords = AhoCorasick::builder().ascii_case_insensitive(true).build(words);
    let stopwords = stopwords.map_err(|error| {
        place.error(start, format!("the stopwords of {of}: {error}"), "shorten the list")
    })?;
    let stopwords = (stopwords.patterns_len() > 0).then_some(stopwords);
    Ok(Some(AllowList { all, target, regexes, stopwords }))
}

/// Compiles an expression, and returns whether it needs Unicode: over bytes, expressions are much
/// faster.
fn expression(
    regex: &Spanned<String>,
    place: &Place<'_>,
    of: &str,
) -> Result<(Regex, bool), IllegalRules> {
    let pattern = translate(regex.get_ref());
    let compile = |is_unicode: bool| {
        RegexBuilder::new(&pattern).unicode(is_unicode).size_limit(MAX_PATTERN_BYTES).build()
    };
    let first = match compile(false) {
        Ok(regex) => return Ok((regex, false)),
        Err(error) => error,
    };
    if let Ok(regex) = compile(true) {
        return Ok((regex, true));
    }
    // The last line of the error has the reason, those before repeat the expression.
    let error = first.to_string();
    let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
    let what = format!("the expression of {of} is not valid: {reason}");
    let remedy =
        "write it without look-around, backreferences and `\\Q`, or with smaller repetitions";
    Err(place.error(regex.span().start, what, remedy))
}

/// Expression of Go in the dialect of `regex`: escapes a brace that begins no repetition, and the
/// signs of set operations in a class.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    let mut in_class = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                let escaped = after.chars().next().map_or(0, char::len_utf8);
                out.push_str(&rest[..1 + escaped]);
                rest = &after[escaped..];
                continue;
            }
            '[' if in_class => match after.starts_with(':').then(|| after.find(":]")).flatten() {
                Some(end) => {
                    out.push_str(&rest[..1 + end + 2]);
                    rest = &after[end + 2..];
                    continue;
                }
                None => out.push_str("\\["),
            },
            '[' => {
                in_class = true;
                out.push('[');
                // A bracket that begins a class is one of its characters.
                let negated = usize::from(after.starts_with('^'));
                out.push_str(&after[..negated]);
                rest = &after[negated..];
                if let Some(more) = rest.strip_prefix(']') {
                    out.push_str("\\]");
                    rest = more;
                }
                continue;
            }
            ']' => {
                in_class = false;
                out.push(']');
            }
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            '-' if in_class && after.starts_with('-') => {
                out.push_str("-\\-");
                rest = &after[1..];
                continue;
            }
            '{' if !in_class && !is_repetition(after) => out.push_str("\\{"),
            c => out.push(c),
        }
        rest = after;
    }
    out
}

/// Whether the text behind a brace is a repetition: `3}`, `3,}` or `3,5}`.
fn is_repetition(after: &str) -> bool {
    let Some((inner, _)) = after.split_once('}') else { return false };
    let (least, most) = inner.split_once(',').unwrap_or((inner, ""));
    let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    !least.is_empty() && is_number(least) && is_number(most)
}
