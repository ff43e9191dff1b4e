//! Names that mark their value as a secret, such as `db_password` or `x-api-key`.
//!
//! A name is split into words: `secretAccessKey`, `SECRET_ACCESS_KEY` and `secret-access-key` are
//! the same. In English, the last word determines the kind: a `password_reset_token` is a token, a
//! `token_count` is a count. So the term at the end of a name decides ([`TERMS`]). Words after it
//! that do not change the kind ([`NEUTRAL`]) are skipped. A few terms are unambiguous ([`STRONG`])
//! and count anywhere in a name, unless its last word shows that the value is only about the secret
//! ([`ABOUT`]), such as its length or its file.

mod words;

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

use self::words::{
    ABOUT, COUNTED, HARMLESS_PAIRS, HARMLESS_TOKENS, JOINED, NAMING_KEYS, NEUTRAL, PASSWORDS, PINS,
    STEMS, STRONG, TERMS, VALUE_KEYS,
};

/// Number of bytes of a name that are checked, from its end.
const MAX_NAME_BYTES: usize = 256;

/// Limit of digits of a count after one of [`COUNTED`]. Longer numbers can be secrets.
const MAX_COUNT_DIGITS: usize = 6;
/// Limit of digits of a count of tokens.
const MAX_TOKENS_DIGITS: usize = 12;

static IN_EVERY_NAME: LazyLock<AhoCorasick> = LazyLock::new(|| {
    #[expect(clippy::unwrap_used, reason = "a constant, built by every test of this file")]
    AhoCorasick::builder().ascii_case_insensitive(true).build(STEMS).unwrap()
});

/// Whether a text can contain a name that marks a secret.
pub(super) fn may_hold_name(text: &[u8]) -> bool {
    IN_EVERY_NAME.is_match(text)
}

/// Whether a name marks its value as a secret.
pub(super) fn is_secret(name: &str) -> bool {
    let name = end_of(name);
    if !may_hold_name(name.as_bytes()) {
        return false;
    }
    let words = words(name);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let about = words.last().is_some_and(|last| ABOUT.contains(last));
    let end = words.iter().rposition(|word| !NEUTRAL.contains(word)).map_or(0, |last| last + 1);
    let judged = words.get(..end).unwrap_or_default();
    ends_with_term(judged) || (!about && holds_strong_term(&words))
}

/// Whether a name of a secret is that of a password, which a person may have chosen.
pub(super) fn is_password(name: &str) -> bool {
    let words = words(end_of(name));
    words.iter().any(|word| PASSWORDS.iter().any(|part| word.contains(part)))
}

/// Parts of a name that may contain that of a secret.
pub(super) fn stems() -> &'static [&'static str] {
    STEMS
}

/// Whether a key is that of a member which names another member beside it.
pub(super) fn names_another(key: &str) -> bool {
    NAMING_KEYS.iter().any(|one| key.eq_ignore_ascii_case(one))
}

/// Whether a key is that of such another member.
pub(super) fn is_named_by_another(key: &str) -> bool {
    is_value_key(key.as_bytes())
}

/// The same for a key that may not be UTF-8.
pub(super) fn is_value_key(key: &[u8]) -> bool {
    // Most keys are no such word, by their first letter.
    let first = key.first().map(u8::to_ascii_lowercase);
    let mut all = VALUE_KEYS.iter().map(|one| one.as_bytes());
    all.any(|one| first == one.first().copied() && key.eq_ignore_ascii_case(one))
}

/// Kind of values after a name that [`is_secret`] that are counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    None,
    /// Short numbers, as of `cookies`.
    Few,
    /// Numbers, and lists of token ids: `tokens`.
    Tokens,
}

impl Counts {
    pub(super) fn of(name: &str) -> Self {
        match words(end_of(name)).last().map(String::as_str) {
            Some("tokens") => Self::Tokens,
            Some(last) if COUNTED.contains(&last) => Self::Few,
            _ => Self::None,
        }
    }

    /// Whether the whole value is a count.
    pub(super) fn hold(self, value: &str) -> bool {
        let value = value.trim().trim_end_matches([',', ';', '.']);
        match self {
            Self::None => false,
            Self::Few => is_number(value, MAX_COUNT_DIGITS),
            Self::Tokens => {
                let list = value.strip_prefix('[').and_then(|list| list.strip_suffix(']'));
                is_number(value, MAX_TOKENS_DIGITS)
                    || list.is_some_and(|list| {
                        list.split(',').all(|item| is_number(item.trim(), MAX_COUNT_DIGITS))
                    })
            }
        }
    }
}

fn is_number(text: &str, most: usize) -> bool {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let are_digits =
        |text: &str| (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    are_digits(whole) && are_digits(part)
}

/// End of a name, the part that is checked.
fn end_of(name: &str) -> &str {
    name.get(name.ceil_char_boundary(name.len().saturating_sub(MAX_NAME_BYTES))..)
        .unwrap_or_default()
}

/// Words of a name in lower case, without digits.
fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    let chars: Vec<char> = name.chars().collect();
    for (at, &c) in chars.iter().enumerate() {
        if !c.is_alphabetic() {
            words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
            continue;
        }
        let before = at.checked_sub(1).and_then(|before| chars.get(before));
        let is_lower = |c: Option<&char>| c.is_some_and(|c| c.is_lowercase());
        // `secretKey`, and `APIKey` in front of its K.
        let begins = c.is_uppercase()
            && (is_lower(before)
                || before.is_some_and(|c| c.is_uppercase()) && is_lower(chars.get(at + 1)));
        if begins && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        word.extend(c.to_lowercase());
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

fn ends_with_term(words: &[&str]) -> bool {
    let Some((last, before)) = words.split_last() else { return false };
    let previous = before.last().copied().unwrap_or_default();
    let singular = last.strip_suffix('s').unwrap_or(last);
    if singular == "token" {
        return !HARMLESS_TOKENS.contains(&previous)
            && !HARMLESS_PAIRS.iter().any(|pair| before.ends_with(pair));
    }
    if *last == "pin" {
        return before.is_empty() || PINS.contains(&previous);
    }
    if let Some(front) = singular.strip_suffix("token") {
        return !HARMLESS_TOKENS.iter().any(|word| front.ends_with(word) && word.len() > 2);
    }
    TERMS.iter().any(|term| {
        let Some((end, front)) = term.split_last() else { return false };
        (last == end || singular == *end) && before.ends_with(front)
    }) || JOINED.iter().any(|term| singular.ends_with(term))
}

fn holds_strong_term(words: &[&str]) -> bool {
    STRONG.iter().any(|term| words.windows(term.len()).any(|part| part == *term))
}

#[cfg(test)]
mod tests;
