//! Rules: parsed from TOML, checked and compiled.

use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;

/// Built-in rules.
pub(super) const BUILT_IN: &str = include_str!("rules.toml");

/// Limit of a compiled rule in bytes.
const MAX_RULE_BYTES: usize = 4 << 20;
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
    /// Texts, of which every match contains one.
    pub keywords: Vec<String>,
    /// Whether keywords match in any case.
    #[serde(default)]
    pub ignore_case: bool,
    /// Whether a match may begin before its keyword.
    #[serde(default)]
    pub keyword_inside: bool,
    /// Regex of the match. Its first group, or all of it, is the secret.
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

/// Published checksum of a vendor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Check {
    /// The last six characters are the CRC-32 of the thirty before, in base62.
    GithubCrc32,
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
}

/// Compiled rule.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub id: String,
    pub description: String,
    pub keywords: Vec<String>,
    pub ignore_case: bool,
    pub action: Option<super::Action>,
    /// Number of bytes before and after a keyword that a match can reach.
    pub before: usize,
    pub after: usize,
    /// Length of the shortest match in bytes.
    pub shortest: usize,
    pub regex: Regex,
    entropy: Option<f64>,
    check: Option<Check>,
    unless: Option<Regex>,
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
        if source.keywords.is_empty() || source.keywords.iter().any(|k| k.len() < 2) {
            return Err(illegal("`keywords` needs texts of two or more bytes".into()));
        }
        let compile = |key: &str, pattern: &str| {
            // Bytes, not characters: Unicode classes make scanning ten times slower.
            RegexBuilder::new(pattern)
                .unicode(false)
                .size_limit(MAX_RULE_BYTES)
                .build()
                .map_err(|error| illegal(format!("`{key}`: {error}")))
        };
        let regex = compile("regex", &source.regex)?;
        let properties = regex_syntax::ParserBuilder::new()
            .unicode(false)
            .utf8(false)
            .build()
            .parse(&source.regex)
            .map(|hir| (hir.properties().minimum_len(), hir.properties().maximum_len()))
            .map_err(|error| illegal(format!("`regex`: {error}")))?;
        let (shortest, longest) = properties;
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
        if reach > MAX_REACH_BYTES {
            return Err(illegal(format!("a match can reach further than {MAX_REACH_BYTES} bytes")));
        }
        Ok(Self {
            id: source.id.clone(),
            description: source.description.clone(),
            keywords: source.keywords.clone(),
            ignore_case: source.ignore_case,
            action: source.action,
            before: if source.keyword_inside { reach } else { 0 },
            after: reach,
            shortest: shortest.unwrap_or(0),
            regex,
            entropy: source.entropy,
            check: source.check,
            unless: source.unless.as_deref().map(|p| compile("unless", p)).transpose()?,
        })
    }

    /// Whether a match of the regex is a secret.
    pub(super) fn accepts(&self, secret: &[u8]) -> bool {
        self.entropy.is_none_or(|least| entropy(secret) >= least)
            && self.check.is_none_or(|check| check.holds(secret))
            && self.unless.as_ref().is_none_or(|unless| !unless.is_match(secret))
    }
}

impl Check {
    fn holds(self, secret: &[u8]) -> bool {
        match self {
            Self::GithubCrc32 => secret
                .split_last_chunk::<6>()
                .and_then(|(token, sum)| Some((token.split_last_chunk::<30>()?.1, sum)))
                .is_some_and(|(random, sum)| base62(crc32fast::hash(random)) == *sum),
        }
    }
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

/// Shannon entropy in bits per byte.
fn entropy(text: &[u8]) -> f64 {
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
    fn entropy_is_in_bits() {
        assert_eq!(entropy(b""), 0.0);
        assert_eq!(entropy(b"aaaa"), 0.0);
        assert_eq!(entropy(b"abab"), 1.0);
        assert_eq!(entropy(b"abcd"), 2.0);
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
            (rule("keywords = ['aa']\nregex = '(((a{99}){99}){99}){9}'"), "size limit"),
            (rule("keywords = ['aa']\nregex = 'aa'\nunless = '['"), "`unless`"),
        ] {
            let error = compiled(&text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
