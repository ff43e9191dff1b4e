//! Rules: parsed from TOML, checked and compiled.

use std::{
    ops::Range,
    path::PathBuf,
    sync::{Arc, LazyLock},
};

use regex_syntax::hir::{Hir, HirKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{assigned, gitleaks::AllowList, pattern::Pattern};

/// Built-in rules.
pub(super) const BUILT_IN: &str = include_str!("rules.toml");

/// Compiled built-in rules. Compiling takes longer than everything else that a new known secret
/// needs.
static COMPILED: LazyLock<Result<Vec<Rule>, IllegalRules>> =
    LazyLock::new(|| read(BUILT_IN)?.iter().map(Rule::new).collect());

/// Rules of groups, which are off by default.
pub(super) const OPTIONAL: &str = include_str!("optional.toml");

static COMPILED_OPTIONAL: LazyLock<Result<Vec<Rule>, IllegalRules>> =
    LazyLock::new(|| read(OPTIONAL)?.iter().map(Rule::new).collect());

/// Rules of groups, compiled once.
pub(super) fn optional() -> Result<&'static [Rule], IllegalRules> {
    match &*COMPILED_OPTIONAL {
        Ok(rules) => Ok(rules),
        Err(error) => Err(error.clone()),
    }
}

/// Built-in rules, compiled once.
pub(super) fn built_in() -> Result<&'static [Rule], IllegalRules> {
    match &*COMPILED {
        Ok(rules) => Ok(rules),
        Err(error) => Err(error.clone()),
    }
}

/// Limit in bytes of the part of a secret whose entropy counts.
const MAX_ENTROPY_BYTES: usize = 128;
/// Limit in bytes of the text on each side of a match that counts as its line, for allowlists.
const MAX_LINE_BYTES: usize = 256;
/// Limit in bytes around a keyword for the longest match of a rule.
const MAX_REACH_BYTES: usize = 1 << 20;

/// File of rules.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    pub version: u32,
    pub rule: Vec<Source>,
}

/// Rule as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Source {
    pub id: String,
    pub description: String,
    /// Group that the settings must switch on.
    #[serde(default)]
    pub group: Option<Group>,
    /// Texts, of which every match contains one. Rules of groups may have none.
    pub keywords: Vec<String>,
    /// Whether keywords match in any case.
    #[serde(default)]
    pub ignore_case: bool,
    /// Whether a match may begin before its keyword.
    #[serde(default)]
    pub keyword_inside: bool,
    /// Whether `regex` is only that of a value, which must be assigned to a name of a keyword and a
    /// word for secrets, such as `twitter_api_key`. For formats without a prefix of their own.
    #[serde(default)]
    pub named: bool,
    /// Whether the rule is for random values of any name of a secret, without a regex. `keywords` are
    /// parts of such names.
    #[serde(default)]
    pub any_name: bool,
    /// Whether a match may not continue on the next line. For URLs, which the text of the next line
    /// could continue.
    #[serde(default)]
    pub one_line: bool,
    /// Whether keywords are schemes of URLs, and a match has a user and a password. The regex then runs
    /// only behind schemes with a user.
    #[serde(default)]
    pub needs_user: bool,
    /// Regex of the match. Its first group, or all of it, is the secret.
    #[serde(default)]
    pub regex: String,
    /// For a regex without a longest match: number of bytes after the keyword that are searched.
    #[serde(default)]
    pub reach: Option<usize>,
    /// Minimum Shannon entropy of a secret, in bits per byte.
    #[serde(default)]
    pub entropy: Option<f64>,
    #[serde(default)]
    pub check: Option<Check>,
    /// Regex of matches that are not secrets, applied to the secret.
    #[serde(default)]
    pub unless: Option<String>,
    #[serde(default)]
    pub severity: Severity,
    #[serde(default)]
    pub action: Option<super::Action>,
    /// Templates that this rule must find.
    #[serde(rename = "match")]
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests read the templates"))]
    pub matches: Vec<String>,
    /// Templates that no rule may find.
    #[serde(default)]
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests read the templates"))]
    pub clean: Vec<String>,
}

/// Harm that a secret can do.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Alone, it permits little: the address of a webhook, a key that is often public.
    Low,
    /// It permits to act in the name of one person or one service, in a limited way.
    Medium,
    /// It permits to use an account of a vendor.
    #[default]
    High,
    /// It permits to use a whole infrastructure, or to sign for others.
    Critical,
}

/// Rules that are off by default: they find data that many tools handle on purpose.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Numbers of payment cards.
    Cards,
    /// Personal data: bank accounts, social security numbers, e-mail addresses, telephone numbers.
    Personal,
}

/// Test of a match beside its regex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Check {
    /// The last six characters are the CRC-32 of the thirty before, in base62.
    GithubCrc32,
    /// What follows the keyword is not an identifier, a UUID or a digest.
    Random,
    /// What follows the keyword is not made of words.
    NotWords,
    /// A UUID or a digest, whose digits are mixed.
    Hash,
    /// The last digit is the check digit of the others (ISO/IEC 7812).
    Luhn,
    /// The check digits behind the country are those of the others (ISO 13616).
    Iban,
    /// A private key with as many digits of base64 as the shortest of its kind: not a sample that
    /// somebody shortened, nor words.
    KeyBody,
}

/// Words between a keyword and the end of its name, for rules with `named`. Other words make the
/// name that of something else, such as a cache key.
const NAME_WORDS: &str = "api|access|account|acl|admin|app|application|auth|bearer|bot|ci|client|\
    cloud|consumer|customer|deploy|deployment|dev|developer|encryption|full|hec|http|ingest|\
    integration|licen[cs]e|live|login|management|master|my|oauth2?|org|organization|personal|prod|\
    production|private|project|read|refresh|rest|root|s3|secret|server|service|session|shared|\
    signing|team|test|upload|user|v[0-9]|webhook|write";
/// Last words of a name of a secret. `key` alone can be that of a table or a cache: it needs one of
/// the words before.
const NAME_ENDS: &str = "tokens?|secrets?|password|passwd|pwd|pat|credentials?";

impl Source {
    /// Regex of the whole match.
    fn pattern(&self) -> String {
        if !self.named {
            return self.regex.clone();
        }
        // A short name is a part of other words.
        let keyword = |keyword: &String| match keyword.len() {
            ..6 => format!("(?:^|[^A-Za-z]){}", regex::escape(keyword)),
            _ => regex::escape(keyword),
        };
        let keywords: Vec<_> = self.keywords.iter().map(keyword).collect();
        format!(
            r#"(?i:(?:{keywords})(?:[_. -]?(?:{NAME_WORDS})){{0,4}}[_. -]?(?:{NAME_ENDS}|(?:{NAME_WORDS})[_. -]?keys?))[\\"'`]{{0,4}}[\t ]{{0,4}}(?:=>|:=|[=:])[\t ]{{0,4}}[\\"'`]{{0,4}}({value})(?:[^A-Za-z0-9_+/=.(\[$@{{:-]|[.:]?(?:\s|$))"#,
            keywords = keywords.join("|"),
            value = self.regex,
        )
    }
}

/// Reason why a file of rules is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IllegalRules {
    #[error("the secret rules cannot be read: {0}")]
    Unreadable(String),
    #[error("the secret rules have version {0}, but only version 1 is supported")]
    Version(u32),
    #[error("secret rule `{id}`: {reason}")]
    Rule { id: String, reason: String },
    #[error("{}:{line}: {problem}; {remedy}", path.display())]
    File { path: PathBuf, line: usize, problem: String, remedy: String },
}

/// Compiled rule.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub id: String,
    pub description: String,
    pub keywords: Vec<String>,
    pub ignore_case: bool,
    /// Whether a match is a value after its name.
    pub named: bool,
    /// Where the rule finds secrets.
    pub kind: Kind,
    /// Whether a match is on one line.
    pub one_line: bool,
    /// Whether a keyword counts only in front of the user of a URL.
    pub needs_user: bool,
    /// Whether the format has a line at its end.
    pub has_end: bool,
    pub severity: Severity,
    pub action: Option<super::Action>,
    /// Number of bytes before and after a keyword that a match can reach.
    pub before: usize,
    pub after: usize,
    /// Whether another match is searched within a rejected one.
    pub retries_within: bool,
    /// Length of the shortest match in bytes.
    pub shortest: usize,
    pub regex: Pattern,
    /// Group that the settings must switch on.
    pub optional: Option<Group>,
    /// Part of a match that is the secret.
    pub group: Part,
    pub entropy: Option<f64>,
    pub check: Option<Check>,
    pub unless: Option<Pattern>,
    /// Matches that are not secrets.
    pub allowed: Vec<Arc<AllowList>>,
}

/// Texts that a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Matches of its regex.
    Pattern,
    /// Random values that a text assigns to any name of a secret.
    AnyName,
    /// Members, elements and arguments with the name of a secret.
    Member,
}

/// Id of the rule of [`Kind::Member`].
pub(super) const MEMBER: &str = "named-member";

/// Part of a match that is the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Number(usize),
    /// First group that matched a text; without, the whole match.
    FirstWithText,
}

/// Parses a file of rules.
pub(super) fn read(text: &str) -> Result<Vec<Source>, IllegalRules> {
    let file: File =
        toml::from_str(text).map_err(|error| IllegalRules::Unreadable(error.to_string()))?;
    if file.version != 1 {
        return Err(IllegalRules::Version(file.version));
    }
    Ok(file.rule)
}

impl Rule {
    /// Compiles a rule.
    pub(super) fn new(source: &Source) -> Result<Self, IllegalRules> {
        let illegal = |reason: String| IllegalRules::Rule { id: source.id.clone(), reason };
        let id_is_legal = !source.id.is_empty()
            && source.id.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if !id_is_legal {
            return Err(illegal("`id` may contain a-z, 0-9 and `-`".into()));
        }
        if source.keywords.is_empty() && source.group.is_none()
            || source.keywords.iter().any(|k| k.len() < 2)
        {
            return Err(illegal("`keywords` needs texts of two or more bytes".into()));
        }
        let parse = |key: &str, pattern: &str| {
            let mut parser = regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build();
            parser.parse(pattern).map_err(|error| illegal(format!("`{key}`: {error}")))
        };
        if source.any_name != source.regex.is_empty() {
            return Err(illegal("`any-name` excludes `regex`, and others need it".into()));
        }
        // A value of its own would be part of the pattern around it.
        parse("regex", &source.regex)?;
        let pattern = source.pattern();
        let hir = parse("regex", &pattern)?;
        if let Some(unless) = &source.unless {
            parse("unless", unless)?;
        }
        let (shortest, longest) = (hir.properties().minimum_len(), hir.properties().maximum_len());
        let reach = match (longest, source.reach) {
            (Some(_), Some(_)) => {
                return Err(illegal("`reach` is only for a regex without a longest match".into()));
            }
            (Some(longest), None) => longest,
            (None, Some(reach)) => reach,
            (None, None) => {
                return Err(illegal("the regex has no longest match: set `reach`".into()));
            }
        };
        let reach = if source.any_name { assigned::REACH_BYTES } else { reach };
        if reach > MAX_REACH_BYTES {
            return Err(illegal(format!("a match can reach further than {MAX_REACH_BYTES} bytes")));
        }
        Ok(Self {
            id: source.id.clone(),
            description: source.description.clone(),
            keywords: source.keywords.clone(),
            ignore_case: source.ignore_case || source.named || source.any_name,
            named: source.named,
            kind: if source.any_name { Kind::AnyName } else { Kind::Pattern },
            one_line: source.one_line || source.named || source.any_name,
            needs_user: source.needs_user,
            has_end: source.regex.contains("-----END"),
            severity: source.severity,
            action: source.action,
            before: match source.keyword_inside {
                true => reach,
                // The character before a short keyword.
                false => usize::from(source.named),
            },
            after: reach,
            retries_within: true,
            shortest: shortest.unwrap_or(0),
            optional: source.group,
            regex: Pattern::new(pattern),
            group: if is_whole(&hir) { Part::Whole } else { Part::Number(1) },
            entropy: source.entropy,
            check: source.check,
            unless: source.unless.clone().map(Pattern::new),
            allowed: Vec::new(),
        })
    }

    /// Rule for members by their names. It has no texts of its own.
    pub(super) fn of_members() -> Self {
        Self {
            id: MEMBER.to_owned(),
            description: "Value of a member, an element or an argument with the name of a secret"
                .into(),
            keywords: Vec::new(),
            ignore_case: true,
            named: false,
            kind: Kind::Member,
            one_line: true,
            needs_user: false,
            has_end: false,
            severity: Severity::Medium,
            action: None,
            before: 0,
            after: 0,
            retries_within: false,
            shortest: usize::MAX,
            optional: None,
            regex: Pattern::new(String::new()),
            group: Part::Whole,
            entropy: None,
            check: None,
            unless: None,
            allowed: Vec::new(),
        }
    }

    /// Range of the secret in a match.
    pub(super) fn secret(&self, text: &[u8], matched: &Range<usize>) -> Range<usize> {
        let groups = || self.regex.get().ok()?.captures_at(text, matched.start);
        let group = match self.group {
            Part::Whole => None,
            Part::Number(number) => groups().and_then(|groups| groups.get(number)),
            Part::FirstWithText => groups()
                .and_then(|groups| groups.iter().skip(1).flatten().find(|one| !one.is_empty())),
        };
        group.map_or_else(|| matched.clone(), |group| group.range())
    }

    /// Whether an allowlist has a match.
    pub(super) fn is_allowed(
        &self,
        text: &[u8],
        matched: &Range<usize>,
        secret: &Range<usize>,
    ) -> bool {
        if self.allowed.is_empty() {
            return false;
        }
        // A line may be as long as the text, and have many matches.
        let first = matched.start.saturating_sub(MAX_LINE_BYTES);
        let last = text.len().min(matched.end + MAX_LINE_BYTES);
        let before = text.get(first..matched.start).unwrap_or_default();
        let after = text.get(matched.end..last).unwrap_or_default();
        let start = memchr::memrchr(b'\n', before).map_or(first, |end| first + end + 1);
        let end = memchr::memchr(b'\n', after).map_or(last, |length| matched.end + length);
        let part = |range: Range<usize>| text.get(range).unwrap_or_default();
        let (line, all) = (part(start..end), part(matched.clone()));
        self.allowed.iter().any(|list| list.allows(all, part(secret.clone()), line))
    }

    /// Position at which the next match can begin after a rejected one.
    pub(super) fn next_start(&self, text: &[u8], matched: &Range<usize>) -> usize {
        match self.entropy {
            Some(least) if self.group == Part::Whole => next_start(text, matched, least),
            _ => matched.start + 1,
        }
    }

    /// Whether a match of the regex is a secret.
    pub(super) fn accepts(&self, secret: &[u8]) -> bool {
        self.entropy.is_none_or(|least| entropy(secret) >= least)
            && self.check.is_none_or(|check| check.holds(secret, self.value(secret)))
            && !self
                .unless
                .as_ref()
                .is_some_and(|unless| unless.get().is_ok_and(|unless| unless.is_match(secret)))
            && !(self.named && self.has_keyword(secret))
    }

    /// Secret without the keyword in front.
    fn value<'a>(&self, secret: &'a [u8]) -> &'a [u8] {
        let keywords = self.keywords.iter().filter(|_| !self.named);
        let values = keywords.filter_map(|keyword| secret.strip_prefix(keyword.as_bytes()));
        values.min_by_key(|value| value.len()).unwrap_or(secret)
    }

    /// Whether a value has the vendor's name: it is a name itself.
    fn has_keyword(&self, value: &[u8]) -> bool {
        let value = value.to_ascii_lowercase();
        let mut keywords = self.keywords.iter().filter(|keyword| keyword.len() >= 4);
        keywords.any(|keyword| memchr::memmem::find(&value, keyword.as_bytes()).is_some())
    }
}

/// Whether the first group, or its absence, is the whole match: beside it are only assertions.
fn is_whole(hir: &Hir) -> bool {
    let is_group = |hir: &Hir| matches!(hir.kind(), HirKind::Capture(_));
    match hir.kind() {
        HirKind::Concat(parts) => {
            let mut rest = parts.iter().filter(|part| !matches!(part.kind(), HirKind::Look(_)));
            hir.properties().explicit_captures_len() == 0
                || rest.next().is_some_and(is_group) && rest.next().is_none()
        }
        _ => is_group(hir) || hir.properties().explicit_captures_len() == 0,
    }
}

impl Check {
    fn holds(self, secret: &[u8], value: &[u8]) -> bool {
        match self {
            // Some tokens with a prefix have no digits.
            Self::NotWords => !is_words(value),
            Self::Random if value.len() < secret.len() => !is_words(value) && !has_uuid(value),
            Self::Random => {
                value.iter().any(u8::is_ascii_digit)
                    && value.iter().any(u8::is_ascii_alphabetic)
                    && !is_words(value)
                    && !is_identifier(value)
                    && !has_uuid(value)
                    && !has_digest(value)
            }
            Self::Hash => {
                value.iter().any(u8::is_ascii_digit)
                    && value.iter().any(u8::is_ascii_alphabetic)
                    && entropy(value) >= MIN_HASH_ENTROPY
            }
            Self::KeyBody => is_key(secret),
            Self::Luhn => luhn(secret) == 0,
            Self::Iban => iban(secret) == 1,
            Self::GithubCrc32 => secret
                .split_last_chunk::<6>()
                .and_then(|(token, sum)| Some((token.split_last_chunk::<30>()?.1, sum)))
                .is_some_and(|(random, sum)| base62(crc32fast::hash(random)) == *sum),
        }
    }
}

/// Sum of the digits of a text modulo 10, of which every second from the end counts twice. 0 with the
/// check digit.
pub(super) fn luhn(text: &[u8]) -> u32 {
    let digits = text.iter().rev().filter(|b| b.is_ascii_digit()).map(|b| u32::from(b - b'0'));
    let sum = digits.enumerate().map(|(at, digit)| match at % 2 {
        0 => digit,
        _ => 2 * digit / 10 + 2 * digit % 10,
    });
    sum.sum::<u32>() % 10
}

/// Remainder modulo 97 of an account number, with its first four characters behind the others. 1 with
/// the check digits.
pub(super) fn iban(text: &[u8]) -> u32 {
    let text: Vec<u8> = text.iter().copied().filter(u8::is_ascii_alphanumeric).collect();
    let (first, rest) = text.split_at(text.len().min(4));
    rest.iter().chain(first).fold(0, |sum, byte| match byte {
        b'0'..=b'9' => (10 * sum + u32::from(byte - b'0')) % 97,
        byte => (100 * sum + u32::from(byte.to_ascii_uppercase() - b'A') + 10) % 97,
    })
}

/// Minimum number of digits of base64 of an RSA, DSA, OpenSSH or PGP key, and of any other, such as
/// an Ed25519 key in PKCS #8.
const MIN_RSA_DIGITS: usize = 300;
const MIN_KEY_DIGITS: usize = 60;
/// Minimum number of digits in a line of a private key.
const MIN_KEY_LINE: usize = 40;

/// Whether a text in PEM has as many digits as a private key.
fn is_key(text: &[u8]) -> bool {
    let at = memchr::memmem::find(text, b"KEY").unwrap_or_default();
    let (header, body) = text.split_at(at);
    let is_long = [&b"RSA"[..], b"DSA", b"OPENSSH", b"PGP"]
        .iter()
        .any(|kind| memchr::memmem::find(header, kind).is_some());
    let least = if is_long { MIN_RSA_DIGITS } else { MIN_KEY_DIGITS };
    let is_digit = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
    let digits = body.iter().filter(|b| is_digit(b)).count();
    digits >= least && body.split(|b| !is_digit(b)).any(|line| line.len() >= MIN_KEY_LINE)
}

/// Minimum Shannon entropy of a digest in bits per byte. Random ones have 3.2 and more.
const MIN_HASH_ENTROPY: f64 = 3.0;
/// Minimum Shannon entropy of a random text of 24 bytes and more, and of a shorter one.
const MIN_RANDOM_ENTROPY: (f64, f64) = (3.5, 2.9);

/// Whether a text has a low entropy, or is made of words: an identifier, a path, a name in capitals.
fn is_words(text: &[u8]) -> bool {
    let has = |test: fn(&u8) -> bool| text.iter().any(test);
    let least = match text.len() {
        24.. if text.iter().all(u8::is_ascii_hexdigit) => MIN_HASH_ENTROPY,
        24.. => MIN_RANDOM_ENTROPY.0,
        _ => MIN_RANDOM_ENTROPY.1,
    };
    if entropy(text) < least {
        return true;
    }
    let one_case = !has(u8::is_ascii_lowercase) || !has(u8::is_ascii_uppercase);
    10 * changes(text) <= text.len() && (one_case || 3 * in_words(text) >= 2 * text.len())
}

/// Whether a value looks random: digits and letters mixed, no words, no identifier.
pub(super) fn is_random(value: &[u8]) -> bool {
    let has = |test: fn(&u8) -> bool| value.iter().any(test);
    has(u8::is_ascii_digit)
        && has(u8::is_ascii_alphabetic)
        && !is_words(value)
        && !(is_identifier(value) && 6 * changes(value) <= value.len())
        && !(changes(value) <= 2 && 5 * in_words(value) >= 2 * value.len())
        // A UUID behind other text is the id of something.
        && (value.len() == UUID_BYTES || !has_uuid(value))
}

/// Whether a text has letters and digits only, capitals and small ones, and is not made of words.
pub(super) fn is_mixed(value: &[u8]) -> bool {
    let has = |test: fn(&u8) -> bool| value.iter().any(test);
    has(u8::is_ascii_lowercase)
        && has(u8::is_ascii_uppercase)
        && value.iter().all(u8::is_ascii_alphanumeric)
        && !is_words(value)
        && 4 * in_words(value) <= value.len()
}

/// Length of a UUID in bytes.
const UUID_BYTES: usize = 36;

/// Number of characters of one value, or in the order of the alphabet, that no random text has.
const SEQUENCE: usize = 6;

/// Whether a text has characters in a row, as `012345`, or the same one several times.
pub(super) fn has_sequence(text: &[u8]) -> bool {
    [0, 1].into_iter().any(|step| {
        let mut length = 1;
        text.windows(2).any(|pair| {
            let follows = matches!(pair, [a, b] if a.wrapping_add(step) == *b);
            length = if follows { length + 1 } else { 1 };
            length >= SEQUENCE
        })
    })
}

/// Number of digits beside letters. Digits are spread in a random text, and at the ends of words in an
/// identifier.
fn changes(text: &[u8]) -> usize {
    let kind = |byte: &u8| match byte {
        b'0'..=b'9' => Some(true),
        byte if byte.is_ascii_alphabetic() => Some(false),
        _ => None,
    };
    let is_change = |pair: &&[u8]| match pair {
        [a, b] => kind(a).zip(kind(b)).is_some_and(|(a, b)| a != b),
        _ => false,
    };
    text.windows(2).filter(is_change).count()
}

/// Number of bytes in words: three and more small letters after at most one capital, or four and
/// more capitals without other letters beside them.
pub(super) fn in_words(text: &[u8]) -> usize {
    let mut total = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = text.get(at..).unwrap_or_default();
        let capitals = rest.iter().take_while(|b| b.is_ascii_uppercase()).count();
        let after = rest.get(capitals..).unwrap_or_default();
        let small = after.iter().take_while(|b| b.is_ascii_lowercase()).count();
        let is_inside = at.checked_sub(1).and_then(|last| text.get(last));
        let is_inside = is_inside.is_some_and(u8::is_ascii_alphabetic);
        total += if capitals >= 4 && small == 0 && !is_inside { capitals } else { 0 };
        total += if small >= 3 { small + usize::from(capitals > 0) } else { 0 };
        at += (capitals + small).max(1);
    }
    total
}

/// Whether a text has separators, and letters of one case: `pagerduty-9hk8tf6c2m`.
fn is_identifier(text: &[u8]) -> bool {
    let has = |test: fn(&u8) -> bool| text.iter().any(test);
    let one_case = !has(u8::is_ascii_lowercase) || !has(u8::is_ascii_uppercase);
    one_case && has(|b| matches!(b, b'-' | b'_'))
}

/// Whether a text has a UUID.
fn has_uuid(text: &[u8]) -> bool {
    text.windows(UUID_BYTES).any(|text| {
        text.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    })
}

/// Whether a text, or a part of it, has the length and the digits of a digest.
fn has_digest(text: &[u8]) -> bool {
    let mut parts = text.split(|b| matches!(b, b'-' | b'_' | b':' | b'.' | b'/' | b'+' | b'='));
    parts.any(|part| {
        matches!(part.len(), 32 | 40 | 56 | 64 | 96 | 128) && part.iter().all(u8::is_ascii_hexdigit)
    })
}

/// Six digits of base62, most significant first.
pub(super) fn base62(mut number: u32) -> [u8; 6] {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut out = [b'0'; 6];
    for digit in out.iter_mut().rev() {
        *digit = DIGITS[(number % 62) as usize];
        number /= 62;
    }
    out
}

/// Position behind `start` at which a secret can begin in a match with too low an entropy. Up to
/// there, the entropy of the bytes that count is too low, too. Visits each byte once.
pub(super) fn next_start(text: &[u8], matched: &Range<usize>, least: f64) -> usize {
    let bytes = text.get(matched.clone()).unwrap_or_default();
    let Some((window, _)) = bytes.split_at_checked(MAX_ENTROPY_BYTES) else {
        return matched.start + 1;
    };
    let mut counts = [0_u32; 256];
    window.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    // Sum of `n log n`, from which the entropy follows.
    let term =
        |count: u32| if count < 2 { 0.0 } else { f64::from(count) * f64::from(count).log2() };
    let mut sum: f64 = counts.iter().map(|count| term(*count)).sum();
    let total = MAX_ENTROPY_BYTES as f64;
    for (passed, (first, next)) in
        bytes.iter().zip(bytes.iter().skip(MAX_ENTROPY_BYTES)).enumerate()
    {
        if first != next {
            let (old, new) = (counts[usize::from(*first)], counts[usize::from(*next)]);
            sum += term(old - 1) - term(old) + term(new + 1) - term(new);
            counts[usize::from(*first)] -= 1;
            counts[usize::from(*next)] += 1;
        }
        if total.log2() - sum / total >= least {
            return matched.start + passed + 1;
        }
    }
    matched.end - MAX_ENTROPY_BYTES + 1
}

/// Shannon entropy in bits per byte, of the first [`MAX_ENTROPY_BYTES`].
fn entropy(text: &[u8]) -> f64 {
    let text = text.get(..MAX_ENTROPY_BYTES).unwrap_or(text);
    let mut counts = [0u32; 256];
    for &byte in text {
        counts[usize::from(byte)] += 1;
    }
    let total = text.len() as f64;
    counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| f64::from(count) / total)
        .map(|share| -share * share.log2())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_equals_githubs() {
        // Published example, in two parts.
        let random = ["zQWBuTSOoRi4A9sp", "HcVY5ncnsDkxkJ"].concat();
        assert_eq!(&base62(crc32fast::hash(random.as_bytes())), b"0mLq17");
        assert_eq!(&base62(0), b"000000");
        assert_eq!(&base62(61), b"00000z");
    }

    #[test]
    fn random_text_is_not_made_of_words() {
        for text in [
            "twitter_consumer_secret_for_account_2",
            "getUserNameByIdFromCacheV2",
            "TWITTER_CONSUMER_SECRET_KEY_V2",
            "fab-button-container-23",
            "src/config/production/keys2/file",
            "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
            "d41d8cd98f00b204e9800998ecf8427e",
            "aaaaaaaaaaaaaaaaaaaa1",
            "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            "pagerduty-9hk8tf6c2m",
            "prod-6ba7b810-9dad-11d1-80b4-00c04fd430c8",
            "parseHTMLDocumentsFromSource2",
            "config/PRODUCTION/keys2/file",
            "Z3_d41d8cd98f00b204e9800998ecf8427e",
        ] {
            let text = text.as_bytes();
            assert!(!Check::Random.holds(text, text), "{}", text.escape_ascii());
        }
        let found = |template: &str| {
            let all = (0..1000).map(|seed| {
                super::super::templates::expand(
                    template,
                    &mut super::super::templates::Seed::new(seed),
                )
            });
            all.filter(|text| Check::Random.holds(text.as_bytes(), text.as_bytes())).count()
        };
        assert!(found("{base62:20}") > 950);
        assert!(found("{base62:32}") > 990);
        assert!(found("{base36:24}") > 990);
        assert!(found("{base64url:40}") > 990);
        assert!(!Check::Hash.holds(b"", b"00000000000000000000000000000000"));
    }

    #[test]
    fn secret_behind_text_of_low_entropy_is_not_skipped() {
        let low = b"glpat-".repeat(60);
        let high: Vec<u8> = (b'0'..=b'z').filter(u8::is_ascii_alphanumeric).collect();
        let text = [&low[..], &high, &high, &high].concat();
        let entropy_at = |at: usize| entropy(&text[at..]);
        let next = next_start(&text, &(0..text.len()), 3.2);
        assert!((1..next).all(|at| entropy_at(at) < 3.2 + 1e-9) && entropy_at(next) > 3.2 - 1e-9);
        assert_eq!(next_start(&low, &(0..low.len()), 3.2), low.len() - MAX_ENTROPY_BYTES + 1);
        assert_eq!(next_start(b"short", &(0..5), 3.2), 1);
    }

    #[test]
    fn entropy_is_in_bits() {
        assert_eq!(entropy(b""), 0.0);
        assert_eq!(entropy(b"aaaa"), 0.0);
        assert_eq!(entropy(b"abab"), 1.0);
        assert_eq!(entropy(b"abcd"), 2.0);
    }

    #[test]
    fn regexes_of_built_in_rules_compile() {
        for rule in built_in().unwrap() {
            rule.regex.get().unwrap();
            rule.unless.iter().for_each(|unless| assert!(unless.get().is_ok()));
        }
    }

    #[test]
    fn illegal_rule_error_has_the_reason() {
        let rule = |more: &str| {
            format!("version = 1\n[[rule]]\nid = 'a'\ndescription = ''\nmatch = []\n{more}")
        };
        let compiled = |text: &str| {
            read(text).and_then(|rules| rules.iter().map(Rule::new).collect::<Result<Vec<_>, _>>())
        };
        for (text, words) in [
            ("version = 2\nrule = []".to_owned(), "version 2"),
            ("version = 1".to_owned(), "missing field `rule`"),
            (rule("keywords = ['aa']\nregex = 'aa'\nretch = 1"), "unknown field `retch`"),
            (rule("keywords = []\nregex = 'aa'"), "`keywords` needs texts"),
            (rule("keywords = ['a']\nregex = 'a'"), "`keywords` needs texts"),
            (rule("keywords = ['aa']\nregex = 'aa('"), "secret rule `a`: `regex`"),
            (rule("keywords = ['aa']\nregex = 'aa+'"), "set `reach`"),
            (rule("keywords = ['aa']\nregex = 'aa'\nreach = 9"), "only for a regex without"),
            (rule("keywords = ['aa']\nregex = 'aa+'\nreach = 99999999"), "reach further"),
            (rule("keywords = ['aa']\nregex = '(((a{99}){99}){99}){9}'"), "reach further"),
            (rule("keywords = ['aa']\nregex = 'aa'\nunless = '['"), "`unless`"),
        ] {
            let error = compiled(&text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
