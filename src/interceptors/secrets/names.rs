//! Names that give away that their value is a secret, such as `db_password` or `x-api-key`.
//!
//! A name is read as words: `secretAccessKey`, `SECRET_ACCESS_KEY` and `secret-access-key` are the
//! same. In English, the last word says what a thing is: a `password_reset_token` is a token, a
//! `token_count` is a count. So a name is judged by the term at its end ([`TERMS`]). Words behind
//! it that say nothing about what the value is ([`NEUTRAL`]) are skipped. A few terms are so clear
//! ([`STRONG`]) that they count anywhere in a name, unless its last word says that the value only
//! is about the secret ([`ABOUT`]), such as its length or its file.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

/// Bytes of a name that are looked at, from its end.
const MAX_NAME_BYTES: usize = 256;

/// Terms at the end of a name that make its value a secret. Their last word may be a plural.
const TERMS: &[&[&str]] = &[
    // Passwords.
    &["password"],
    &["passwd"],
    &["pwd"],
    &["pw"],
    &["pass"],
    &["passphrase"],
    &["passcode"],
    &["dbpass"],
    // As `passWord` is read.
    &["pass", "word"],
    &["pass", "phrase"],
    &["pass", "code"],
    // Tokens and secrets.
    &["secret"],
    &["secret", "id"],
    &["pat"],
    &["token"],
    &["jwt"],
    &["bearer"],
    &["auth"],
    &["authorization"],
    &["cookie"],
    &["credential"],
    &["cred"],
    &["client", "assertion"],
    &["code", "verifier"],
    &["sas"],
    &["sig"],
    &["amz", "signature"],
    &["goog", "signature"],
    // Keys. A `key` alone, a `primary_key` and a `public_key` are not secrets.
    &["apikey"],
    &["api", "key"],
    &["access", "key"],
    &["secret", "key"],
    &["private", "key"],
    &["priv", "key"],
    &["signing", "key"],
    &["encryption", "key"],
    &["decryption", "key"],
    &["symmetric", "key"],
    &["wrapping", "key"],
    &["master", "key"],
    &["root", "key"],
    &["admin", "key"],
    &["account", "key"],
    &["service", "key"],
    &["role", "key"],
    &["shared", "key"],
    &["auth", "key"],
    &["session", "key"],
    &["client", "key"],
    &["server", "key"],
    &["ssh", "key"],
    &["deploy", "key"],
    &["subscription", "key"],
    &["function", "key"],
    &["app", "key"],
    &["application", "key"],
    &["webhook", "key"],
    &["jwt", "key"],
    &["storage", "key"],
    &["write", "key"],
    &["hmac", "key"],
    &["aes", "key"],
    &["rsa", "key"],
    &["license", "key"],
    &["licence", "key"],
    &["psk"],
    // What a person types to prove who they are.
    &["otp"],
    &["totp"],
    &["cvv"],
    &["cvc"],
    &["pin", "code"],
    &["otp", "code"],
    &["totp", "code"],
    &["mfa", "code"],
    &["one", "time", "code"],
    &["auth", "code"],
    &["authorization", "code"],
    &["device", "code"],
    &["login", "code"],
    &["security", "code"],
    &["verification", "code"],
    &["recovery", "code"],
    &["backup", "code"],
    &["mnemonic"],
    &["seed", "phrase"],
    &["recovery", "phrase"],
];

/// Terms that also end a word without a separator, as in `pgpassword` and `authtoken`.
const JOINED: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "cookie",
    "apikey",
    "accesskey",
    "secretkey",
    "privatekey",
    "credential",
];

/// Terms that count anywhere in a name.
const STRONG: &[&[&str]] = &[
    &["password"],
    &["passwd"],
    &["passphrase"],
    &["apikey"],
    &["api", "key"],
    &["client", "secret"],
    &["secret", "key"],
    &["private", "key"],
    &["access", "token"],
    &["refresh", "token"],
    &["auth", "token"],
    &["bearer", "token"],
];

/// Words at the end of a name that do not change what it is the name of.
const NEUTRAL: &[&str] = &[
    "value",
    "values",
    "string",
    "str",
    "text",
    "data",
    "raw",
    "plain",
    "plaintext",
    "hash",
    "hashed",
    "hex",
    "pem",
    "base",
    "b",
    "bytes",
    "binary",
    "confirm",
    "confirmation",
    "repeat",
    "again",
    "verify",
    "new",
    "old",
    "current",
    "header",
    "headers",
    "encrypted",
    "prod",
    "production",
    "dev",
    "development",
    "staging",
    "test",
    "live",
    "sandbox",
    "local",
];

/// Last words of a name with a [`STRONG`] term whose value is not the secret.
const ABOUT: &[&str] = &[
    "id",
    "ids",
    "name",
    "names",
    "url",
    "uri",
    "link",
    "endpoint",
    "host",
    "file",
    "filename",
    "path",
    "dir",
    "folder",
    "type",
    "types",
    "kind",
    "policy",
    "policies",
    "length",
    "len",
    "size",
    "count",
    "min",
    "max",
    "minimum",
    "maximum",
    "expiry",
    "expires",
    "expiration",
    "expired",
    "in",
    "at",
    "on",
    "age",
    "ttl",
    "days",
    "date",
    "time",
    "timestamp",
    "lifetime",
    "required",
    "enabled",
    "disabled",
    "supported",
    "allowed",
    "hint",
    "label",
    "title",
    "prompt",
    "placeholder",
    "description",
    "help",
    "reset",
    "change",
    "changed",
    "manager",
    "strength",
    "score",
    "env",
    "var",
    "variable",
    "ref",
    "reference",
    "arn",
    "format",
    "pattern",
    "regex",
    "created",
    "updated",
    "modified",
    "rotated",
    "used",
    "version",
    "rotation",
    "status",
    "state",
    "valid",
    "index",
    "limit",
    "algorithm",
    "alg",
    "scheme",
    "scope",
    "scopes",
    "strategy",
    "provider",
    "providers",
    "store",
    "storage",
    "encoder",
    "validator",
    "generator",
    "service",
    "location",
    "source",
    "owner",
    "usage",
    "error",
    "errors",
    "attempts",
    "retries",
    "history",
    "rule",
    "rules",
    "settings",
    "options",
    "config",
    "form",
    "button",
    "selector",
    "locator",
    "page",
    "field",
    "fields",
    "column",
    "columns",
    "input",
    "element",
    "less",
    "protected",
    "grant",
    "method",
    "mode",
    "fingerprint",
    "prefix",
    "last",
    "exists",
    "present",
    "set",
    "check",
    "checker",
];

/// Words in front of `token` that make it a cursor, a handle of a protocol, or a part of a text.
const HARMLESS_TOKENS: &[&str] = &[
    // Cursors and handles: they say where to go on, and open nothing.
    "page",
    "next",
    "previous",
    "prev",
    "continuation",
    "continue",
    "cursor",
    "pagination",
    "progress",
    "sync",
    "delta",
    "skip",
    "resume",
    "change",
    "cancel",
    "cancellation",
    "idempotency",
    // Words of models.
    "eos",
    "bos",
    "pad",
    "unk",
    "sep",
    "mask",
    "cls",
    "stop",
    "start",
    "end",
    "special",
    "first",
    "last",
    "max",
    "min",
    "total",
    "prompt",
    "completion",
    "input",
    "output",
    "num",
    "number",
    "n",
    "of",
    "used",
    "remaining",
    "context",
    "cached",
    "cache",
    "reasoning",
    "thinking",
    "budget",
    "audio",
    "image",
    "generated",
    "estimated",
    "read",
    "creation",
    "response",
];

/// Words in front of `pin` that make it a secret; others are pins of boards and maps.
const PINS: &[&str] = &[
    "card", "credit", "debit", "sim", "user", "customer", "account", "bank", "atm", "login",
    "access", "unlock", "device", "security",
];

/// Last words of names that are also names of counts.
const COUNTED: &[&str] = &["cookies", "secrets", "credentials", "keys"];
/// Digits of the longest count behind one of [`COUNTED`]. Longer numbers can be secrets.
const COUNT_DIGITS: usize = 6;
/// Digits of the longest count of tokens.
const TOKENS_DIGITS: usize = 12;

/// Parts of which one is in every name that gives a secret away.
const STEMS: &[&str] = &[
    "pass",
    "pat",
    "pwd",
    "pw",
    "secret",
    "token",
    "jwt",
    "bearer",
    "auth",
    "cookie",
    "cred",
    "assertion",
    "verifier",
    "sas",
    "sig",
    "key",
    "psk",
    "otp",
    "cvv",
    "cvc",
    "code",
    "mnemonic",
    "phrase",
    "pin",
];

static IN_EVERY_NAME: LazyLock<AhoCorasick> = LazyLock::new(|| {
    #[expect(clippy::unwrap_used, reason = "a constant, built by every test of this file")]
    AhoCorasick::builder().ascii_case_insensitive(true).build(STEMS).unwrap()
});

/// Whether a text can hold a name that gives a secret away.
pub(super) fn may_hold_name(text: &[u8]) -> bool {
    IN_EVERY_NAME.is_match(text)
}

/// Whether a name says that its value is a secret.
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

/// Which values behind a name that [`is_secret`] are counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    None,
    /// Short numbers, as of `cookies`.
    Few,
    /// Numbers, and lists of the numbers that stand for words: `tokens`.
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

    /// Whether a value is a count: the whole of it.
    pub(super) fn hold(self, value: &str) -> bool {
        let value = value.trim().trim_end_matches([',', ';', '.']);
        match self {
            Self::None => false,
            Self::Few => is_number(value, COUNT_DIGITS),
            Self::Tokens => {
                let list = value.strip_prefix('[').and_then(|list| list.strip_suffix(']'));
                is_number(value, TOKENS_DIGITS)
                    || list.is_some_and(|list| {
                        list.split(',').all(|item| is_number(item.trim(), COUNT_DIGITS))
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

/// The end of a name, which is what is looked at.
fn end_of(name: &str) -> &str {
    name.get(name.ceil_char_boundary(name.len().saturating_sub(MAX_NAME_BYTES))..)
        .unwrap_or_default()
}

/// The words of a name in lower case, without its digits.
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
        return !HARMLESS_TOKENS.contains(&previous);
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
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_known() {
        // As schemas of MCP servers, their environment, and files of well-known programs have them.
        for name in [
            "password",
            "Password",
            "db_password",
            "PGPASSWORD",
            "POSTGRES_PASSWORD",
            "MYSQL_PASS",
            "passwd",
            "pwd",
            "passphrase",
            "newPassword",
            "passwordConfirmation",
            "password2",
            "user[password]",
            "api_key",
            "apiKey",
            "APIKey",
            "apikey",
            "x-api-key",
            "OPENAI_API_KEY",
            "BRAVE_API_KEY",
            "API_KEY_1",
            "Ocp-Apim-Subscription-Key",
            "token",
            "GITHUB_PERSONAL_ACCESS_TOKEN",
            "SLACK_BOT_TOKEN",
            "refreshToken",
            "access_token",
            "authToken",
            "//registry.example/:_authToken",
            "csrf_token",
            "tokens",
            "secret",
            "client_secret",
            "clientSecret",
            "secretAccessKey",
            "AWS_SECRET_ACCESS_KEY",
            "aws.secret.access.key",
            "SecretString",
            "secret_key_base",
            "private_key",
            "privateKeyPem",
            "ssh-private-key",
            "client-key-data",
            "AccountKey",
            "SUPABASE_SERVICE_ROLE_KEY",
            "authorization",
            "Proxy-Authorization",
            "auth",
            "_auth",
            "auth_header",
            "Cookie",
            "Set-Cookie",
            "session_cookie",
            "bearer",
            "jwt",
            "credentials",
            "awsCredentials",
            "creds",
            "otp",
            "one_time_code",
            "pin",
            "card_pin",
            "recoveryCodes",
            "seed phrase",
            "sig",
            "X-Amz-Signature",
            "code_verifier",
            "password_for_backup",
            "secret_id",
            "GITHUB_PAT",
            "passWord",
            "passPhrase",
            "passCode",
            "dbpass",
            "jwt_key",
            "storage_key",
        ] {
            assert!(is_secret(name), "{name}");
        }
    }

    #[test]
    fn other_names_are_not_taken_for_secrets() {
        for name in [
            "",
            "name",
            "max_tokens",
            "maxTokens",
            "max_new_tokens_total",
            "token_count",
            "tokenCount",
            "tokens_used",
            "prompt_tokens",
            "completionTokens",
            "total_tokens",
            "token_type",
            "token_endpoint",
            "token_url",
            "eos_token",
            "next_page_token",
            "nextToken",
            "pageToken",
            "nextpagetoken",
            "continuationToken",
            "progressToken",
            "passwordless",
            "password_policy",
            "password_file",
            "passwordHint",
            "min_password_length",
            "tokenizer",
            "detokenize",
            "secretary",
            "secretariat",
            "secret_name",
            "keyboard",
            "key",
            "keys",
            "primary_key",
            "foreignKey",
            "public_key",
            "access_key_id",
            "private_key_id",
            "api_key_name",
            "author",
            "authors",
            "authority",
            "oauth",
            "auth_type",
            "authorization_url",
            "pinned",
            "gpio_pin",
            "pincode",
            "compass",
            "bypass",
            "cookie_policy",
            "country_code",
            "zip_code",
            "status_code",
            "session_id",
            "signature",
            "credential_id",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn every_name_holds_a_stem() {
        let terms = TERMS.iter().chain(STRONG).map(|term| term.join("_"));
        for name in terms.chain(JOINED.iter().map(|term| format!("x{term}"))) {
            assert!(is_secret(&name), "{name}");
        }
    }

    #[test]
    fn a_plural_may_be_a_count() {
        for (name, value, is_count) in [
            ("tokens", "48151623", true),
            ("tokens", "[1, 2, 100257]", true),
            ("tokens", "[1, 48151623]", false),
            ("tokens", "12 x", false),
            ("tokens", "[1, \"x\"]", false),
            ("sessionCookies", "3", true),
            ("credentials", "48151623", false),
            ("credentials", "[1]", false),
            ("credentials", "", false),
            // The password of many programs.
            ("pass", "3", false),
            ("DB_PASS", "48151623", false),
            ("token", "1", false),
            ("pin", "1", false),
            ("recoveryCodes", "1", false),
        ] {
            assert_eq!(Counts::of(name).hold(value), is_count, "{name}: {value}");
        }
    }

    #[test]
    fn the_end_of_a_long_name_counts() {
        assert!(is_secret(&format!("{}_password", "é".repeat(500))));
    }
}
