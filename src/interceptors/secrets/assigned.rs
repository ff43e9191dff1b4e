//! Values that a text assigns to the name of a secret: `MY_API_KEY=…`, `"token": "…"`.
//!
//! For messages, so it takes only values that look random: records are redacted by names alone (see
//! [`super::named`]).

use std::ops::Range;

use super::{
    handles, names,
    rules::{has_sequence, in_words, is_mixed, is_random},
};

/// Limit in bytes of a name.
const MAX_NAME_BYTES: usize = 64;
/// Limit of the words of a name with spaces, such as `API key`.
const MAX_WORDS: usize = 3;
/// Limit of the blanks, and of the quotes, beside a sign.
const MAX_BESIDE: usize = 4;
/// Lengths in bytes of values.
const MIN_VALUE_BYTES: usize = 14;
pub(super) const MAX_VALUE_BYTES: usize = 256;
/// Number of bytes behind a keyword in which the sign of its assignment can be.
pub(super) const REACH_BYTES: usize = 40;

/// Words of values that stand for others, in small letters.
const PLACEHOLDERS: &[&str] = &[
    "example",
    "sample",
    "placeholder",
    "changeme",
    "change_me",
    "dummy",
    "fake",
    "mock",
    "test",
    "your",
    "xxxx",
    "redacted",
    "insert",
    "replace",
];

/// Secret that the sign at a position assigns to a name in front of it.
pub(super) fn secret_at(text: &[u8], sign: usize) -> Option<Range<usize>> {
    let byte = |at: usize| text.get(at).copied();
    let before = |at: usize| byte(at.checked_sub(1)?);
    let (mut end, mut start) = (sign, sign + 1);
    match (byte(sign)?, before(sign), byte(sign + 1)) {
        // A comparison, and a path of a program. `:=` is handled at its second character.
        (b'=', Some(b'=' | b'!' | b'<' | b'>' | b'~'), _) | (b'=', _, Some(b'=')) => return None,
        (b':', Some(b':'), _) | (b':', _, Some(b':' | b'=')) => return None,
        (b'=', Some(b':'), _) => end -= 1,
        (b'=', _, Some(b'>')) => start += 1,
        (b'=' | b':', ..) => {}
        _ => return None,
    }
    let value = value(text, start)?;
    let name = name(text, end)?;
    let shown = text.get(value.clone())?;
    // A part of a list with colons, such as an ARN: `arn:aws:…:secret:NAME`.
    let name_start = end.checked_sub(name.len())?;
    let is_part = value.start == sign + 1 && byte(sign) == Some(b':');
    if is_part && before(name_start) == Some(b':') {
        return None;
    }
    // Documentation shortens values: `MIIJKAIBAAKCAgEA2Se7p8…`.
    let after = text.get(value.end..).unwrap_or_default();
    let is_shortened = [&b"..."[..], "…".as_bytes()].iter().any(|dots| after.starts_with(dots));
    let is_secret = is_name(name)
        && is_key(shown)
        && !is_shortened
        && !is_of_name(name, shown)
        && !NAMES_IN_VALUES.iter().any(|word| has_word(shown, word));
    (is_secret && !is_handle(text, name, &value)).then_some(value)
}

/// Words of values that describe a secret instead of being one: `VERYLONGSECRET…`.
const NAMES_IN_VALUES: [&str; 2] = ["secret", "password"];

/// Whether a text has a word, in any case.
fn has_word(text: &[u8], word: &str) -> bool {
    memchr::memmem::find(&text.to_ascii_lowercase(), word.as_bytes()).is_some()
}

/// Length in bytes of a word of a name that a value can begin with.
const MIN_WORD_BYTES: usize = 3;
/// Length in bytes from which the text behind such a word is a key.
const MAX_ID_BYTES: usize = 24;

/// Whether a value begins with a word of its name, as an id does: `acmeSecret: acme-9hk8tf6c2m`.
fn is_of_name(name: &str, value: &[u8]) -> bool {
    let is_separator = |b: &u8| matches!(b, b'-' | b'_');
    let (name, value) = (name.to_ascii_lowercase(), value.to_ascii_lowercase());
    let ends = [value.iter().position(is_separator), value.iter().rposition(is_separator)];
    let starts = ends.into_iter().flatten().filter_map(|end| value.get(..end));
    // Some keys begin with the name of their vendor, and are long.
    let mut starts = starts.filter(|start| value.len() - start.len() < MAX_ID_BYTES);
    starts.any(|start| {
        start.len() >= MIN_WORD_BYTES && memchr::memmem::find(name.as_bytes(), start).is_some()
    })
}

/// Whether a value is the rest of a handle: `[secret:RULE:DIGITS]`.
fn is_handle(text: &[u8], name: &str, value: &Range<usize>) -> bool {
    let digits = text.get(value.clone()).and_then(|value| value.rsplit(|b| *b == b':').next());
    let is_digits = digits.is_some_and(|digits| {
        handles::DIGITS.contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit)
    });
    let before = value.start.checked_sub("[secret:".len()).and_then(|start| text.get(start..));
    is_digits
        && name == "secret"
        && before.is_some_and(|before| before.starts_with(b"[secret:"))
        && text.get(value.end) == Some(&b']')
}

/// Range of a value that begins here, perhaps in quotes.
fn value(text: &[u8], from: usize) -> Option<Range<usize>> {
    let count = |at: usize, is_one: fn(&u8) -> bool| {
        text.get(at..).unwrap_or_default().iter().take(MAX_BESIDE).take_while(|b| is_one(b)).count()
    };
    let at = from + count(from, |b| matches!(b, b' ' | b'\t'));
    let quotes = count(at, |b| matches!(b, b'"' | b'\'' | b'`' | b'\\'));
    let start = at + quotes;
    let rest = text.get(start..)?;
    if !rest.first()?.is_ascii_alphanumeric() {
        return None;
    }
    let of_value = |b: &u8| b.is_ascii_alphanumeric() || b"_+/=.~:-".contains(b);
    let length = rest.iter().take(MAX_VALUE_BYTES + 1).take_while(|b| of_value(b)).count();
    let value = rest.get(..length)?;
    // Punctuation ends a sentence.
    let length = length - trailing(value, b".:");
    let value = value.get(..length)?;
    let is_program = quotes == 0 && (value.contains(&b'.') || is_type(value));
    let is_end = match rest.get(length) {
        // A control character is between two parts of a view.
        Some(b) => {
            b.is_ascii_whitespace() || b.is_ascii_control() || b"\"'`\\,;)}]<>|&.:".contains(b)
        }
        None => true,
    };
    // The name of a field: `Set-Cookie: id=…`.
    let field = value.split(|b| *b == b'=').next().unwrap_or_default();
    let is_field = field.len() + 2 < length && !field.iter().any(u8::is_ascii_digit);
    let is_long = (MIN_VALUE_BYTES..=MAX_VALUE_BYTES).contains(&length);
    (is_long && is_end && !is_program && !is_field).then_some(start..start + length)
}

/// Whether a value is the name of a type, in words and with digits only at its end:
/// `XmlStringMaxLen256`.
fn is_type(value: &[u8]) -> bool {
    let letters = value.iter().take_while(|b| b.is_ascii_alphabetic()).count();
    let (letters, digits) = value.split_at(letters);
    !digits.is_empty()
        && digits.iter().all(u8::is_ascii_digit)
        && 4 * in_words(letters) >= value.len()
}

fn trailing(value: &[u8], marks: &[u8]) -> usize {
    value.iter().rev().take_while(|b| marks.contains(b)).count()
}

/// Name that ends here, perhaps in quotes.
fn name(text: &[u8], end: usize) -> Option<&str> {
    let text = text.get(..end)?;
    let count = |text: &[u8], is_one: fn(&u8) -> bool| {
        text.iter().rev().take(MAX_BESIDE).take_while(|b| is_one(b)).count()
    };
    let text = text.get(..end - count(text, |b| matches!(b, b' ' | b'\t')))?;
    let text = text.get(..text.len() - count(text, |b| b"\"'`\\]*".contains(b)))?;
    let of_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let mut start = text.len();
    for _ in 0..MAX_WORDS {
        let before = text.get(..start)?;
        let word = before.iter().rev().take(MAX_NAME_BYTES).take_while(|b| of_name(b)).count();
        start -= word;
        if word == 0
            || text.len() - start > MAX_NAME_BYTES
            || before.get(..start)?.last() != Some(&b' ')
        {
            break;
        }
        start -= 1;
    }
    std::str::from_utf8(text.get(start..)?).ok()
}

/// Whether a keyword in front of this text can be in a name to which a value is assigned.
pub(super) fn is_assigned(after: &[u8]) -> bool {
    let of_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let skip = |text: &[u8], most: usize, is_one: &dyn Fn(&u8) -> bool| {
        text.iter().take(most).take_while(|b| is_one(b)).count()
    };
    let mut at = skip(after, REACH_BYTES - 2 * MAX_BESIDE, &of_name);
    for marks in [&b"\"'`\\]*"[..], b" \t"] {
        at += skip(after.get(at..).unwrap_or_default(), MAX_BESIDE, &|b| marks.contains(b));
    }
    matches!(after.get(at), Some(b'=' | b':'))
}

/// Whether a keyword in front of this text can be in a string of a JSON text that is a name.
pub(super) fn is_in_name(after: &[u8]) -> bool {
    let of_name = |b: &&u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b' ');
    let length = after.iter().take(MAX_NAME_BYTES).take_while(of_name).count();
    after.get(length) == Some(&b'"')
}

/// Whether a name is that of a secret.
fn is_name(name: &str) -> bool {
    names::is_secret(name.trim_start())
}

/// Whether a value looks like a random key.
fn is_key(value: &[u8]) -> bool {
    let is_random = is_random(value) || value.len() >= MIN_MIXED_BYTES && is_mixed(value);
    is_random && !has_sequence(value) && !is_repetitive(value) && !is_placeholder(value)
}

/// Whether a text has the same characters more often than a random one, or its first half twice: a
/// hand on a keyboard writes `43t43REGTrk43934t34qT43t4dge`.
pub(super) fn is_repetitive(value: &[u8]) -> bool {
    let (first, last) = value.split_at(value.len() / 2);
    if first == last {
        return true;
    }
    let mut counts = [0_u32; 256];
    let letters = value.iter().filter(|b| b.is_ascii_alphanumeric());
    letters.for_each(|byte| counts[usize::from(*byte)] += 1);
    let has = |test: fn(&u8) -> bool| value.iter().any(test);
    let alphabet = match (has(u8::is_ascii_lowercase), has(u8::is_ascii_uppercase)) {
        (true, true) => 62.0,
        _ if value.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-') => 16.0,
        _ => 36.0,
    };
    let length = f64::from(counts.iter().sum::<u32>());
    let pairs: u32 = counts.iter().map(|count| count * count.saturating_sub(1) / 2).sum();
    // Number of pairs of one character in a random text, and four standard deviations.
    let expected = length * (length - 1.0).max(0.0) / 2.0 / alphabet;
    f64::from(pairs) > expected + 4.0 * expected.sqrt() + 2.0
}

/// Whether a value stands for another.
fn is_placeholder(value: &[u8]) -> bool {
    let lower = value.to_ascii_lowercase();
    PLACEHOLDERS.iter().any(|word| memchr::memmem::find(&lower, word.as_bytes()).is_some())
}

/// Length in bytes of passwords. Of others, words and numbers are more frequent.
const PASSWORD_BYTES: std::ops::RangeInclusive<usize> = 6..=128;
/// Minimum length in bytes of a random text of letters.
const MIN_MIXED_BYTES: usize = 20;
/// Limit in bytes of a value of a member.
const MAX_MEMBER_BYTES: usize = 16 << 10;
/// Signs around a reference to a value.
const REFERENCES: [(&str, &str); 7] = [
    ("${", "}"),
    ("$(", ")"),
    ("{", "}"),
    ("<", ">"),
    ("%", "%"),
    ("[redacted:", "]"),
    ("[secret:", "]"),
];

/// Whether a value is a reference to another, such as `$TOKEN` or `${TOKEN}`.
fn is_reference(value: &[u8]) -> bool {
    let of_name = |b: &u8| b.is_ascii_uppercase() || *b == b'_';
    let has_signs = |(first, last): &(&str, &str)| {
        value.starts_with(first.as_bytes()) && value.ends_with(last.as_bytes())
    };
    REFERENCES.iter().any(has_signs)
        || value.strip_prefix(b"$").is_some_and(|name| name.iter().all(of_name))
}

/// Whether the value of a member, whose name is that of a secret, is the secret: a random text, or
/// for the name of a password also a short one that is not a word.
pub(super) fn is_member_secret(name: &str, value: &[u8]) -> bool {
    if value.len() > MAX_MEMBER_BYTES || is_reference(value) {
        return false;
    }
    let mut parts = value.split(|b| b.is_ascii_whitespace() || matches!(b, b';' | b','));
    // A long random text may have no digits.
    let is_secret = |part: &[u8]| match part.len() {
        MIN_MIXED_BYTES.. if is_mixed(part) => true,
        MIN_VALUE_BYTES.. => is_random(part),
        _ => false,
    };
    if parts.any(|part| is_secret(part) && !is_repetitive(part) && !is_placeholder(part)) {
        return true;
    }
    let has = |test: fn(&u8) -> bool| value.iter().any(test);
    let kinds = [u8::is_ascii_lowercase, u8::is_ascii_uppercase, u8::is_ascii_digit]
        .into_iter()
        .chain([|b: &u8| b.is_ascii_punctuation() && !b"-_./:".contains(b)] as [fn(&u8) -> bool; 1])
        .filter(|kind| has(*kind))
        .count();
    PASSWORD_BYTES.contains(&value.len())
        && !has(|b| b.is_ascii_whitespace() || *b == b'/')
        && kinds >= 2
        && has(|b| b.is_ascii_digit() || b.is_ascii_punctuation())
        && !is_placeholder(value)
        && names::is_password(name)
}
