//! Log of a server's standard error, bounded and redacted.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::secret_set::SecretSet;

/// Maximum number of kept lines.
const LINES: usize = 500;
/// Maximum number of kept bytes of a line.
const LINE_BYTES: usize = 2_000;
/// Maximum length of a line. Nothing of a longer line is kept: the cut could split a secret into
/// two unrecognizable parts.
const LINE_READ: usize = 16 << 10;

/// Maximum number of lines of a private key that are omitted: an OpenPGP key with many signatures
/// has thousands.
const KEY_LINES: usize = 4096;
/// Number of consecutive lines without key data after which a key has ended: they can be headers
/// of a key, or text that only mentions a key's first line.
const STRANGE_LINES: usize = 8;
/// Number of consecutive base64 characters, not all hexadecimal, that are key data.
const ARMOR: usize = 48;
/// Number of bytes before a cut that are searched again for the beginning of a key.
const OVERLAP: usize = 128;

/// Redacts the secrets in a text before it is kept.
pub type Scrub = Arc<dyn Fn(&mut String) + Send + Sync>;

/// The last lines, oldest first.
pub(super) type Log = Arc<Mutex<VecDeque<String>>>;

/// Detector of private keys over several lines, which no rule for single lines finds.
#[derive(Default)]
struct Key {
    /// Maximum number of further lines of the key; 0 outside a key.
    remaining: usize,
    /// Number of lines since the last one with key data.
    strange: usize,
}

impl Key {
    /// Whether the line is kept. A line with the beginning of a key is cut there.
    fn leaves(&mut self, line: &mut String) -> bool {
        self.strange = if is_armor(line) { 0 } else { self.strange + 1 };
        let in_key = self.remaining > 0 && self.strange <= STRANGE_LINES;
        self.remaining = if in_key { self.remaining - 1 } else { 0 };
        let end = line.rfind("-----END");
        let mut begins = line.match_indices("-----BEGIN").map(|(at, _)| at);
        let begun = begins.find(|&at| {
            end.is_none_or(|end| end < at)
                && line.get(at..).is_some_and(|rest| rest.contains("PRIVATE KEY"))
        });
        if let Some(at) = begun {
            (self.remaining, self.strange) = (KEY_LINES, 0);
            // The text before it may be the end of another key.
            line.truncate(if in_key { 0 } else { at });
            line.push_str("[redacted:private-key]");
            return true;
        }
        if end.is_some() {
            self.remaining = 0;
        }
        !in_key
    }
}

fn is_armor(line: &str) -> bool {
    let is_of_it = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
    let mut runs = line.as_bytes().split(|b| !is_of_it(b));
    runs.any(|run| run.len() >= ARMOR && !run.iter().all(u8::is_ascii_hexdigit))
}

/// Keeps the last lines of standard error, without delivered secrets.
pub(super) async fn keep(
    mut stderr: impl AsyncRead + Unpin,
    log: Log,
    scrub: Scrub,
    secrets: impl Fn() -> Vec<Arc<SecretSet>>,
) {
    let mut chunk = vec![0; 4096];
    let mut line = Vec::new();
    let mut is_long = false;
    let mut key = Key::default();
    let mut keep = |line: &mut Vec<u8>, is_whole: bool| {
        let mut text = String::from_utf8_lossy(line).trim_end().to_owned();
        let leaves = key.leaves(&mut text);
        if !is_whole {
            is_long = true;
            line.drain(..line.len() - OVERLAP);
            return;
        }
        line.clear();
        if std::mem::take(&mut is_long) {
            text = format!("[a line of more than {LINE_READ} bytes]");
        } else if !leaves {
            return;
        }
        scrub(&mut text);
        // This also redacts values that are too short for the redaction of messages.
        for secret in secrets().iter().flat_map(|secrets| &secrets.0) {
            let value = secret.value.expose();
            if !value.is_empty() && text.contains(value) {
                text = text.replace(value, "[redacted]");
            }
        }
        text.truncate(text.floor_char_boundary(LINE_BYTES));
        let mut log = log.lock();
        if log.len() == LINES {
            log.pop_front();
        }
        log.push_back(text);
    };
    loop {
        match stderr.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                for &byte in &chunk[..n] {
                    if byte == b'\n' {
                        keep(&mut line, true);
                        continue;
                    }
                    line.push(byte);
                    if line.len() > LINE_READ {
                        keep(&mut line, false);
                    }
                }
            }
        }
    }
    if !line.is_empty() {
        keep(&mut line, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeliveredSecret, DeliveryMethod};
    use portcullis_vault::{Secret, Source};

    #[test]
    fn multi_line_key_becomes_one_mark() {
        let (begin, end) = ("-----BEGIN", "-----END");
        let rsa = ["RSA PRIVATE", "KEY-----"].join(" ");
        let text = format!(
            "before\nkey: {begin} {rsa}\nMIIE\nowIB\n{end} {rsa}\nafter\n\
             {begin} CERTIFICATE-----\nMIIC\n{end} CERTIFICATE-----\n\
             {end} CERTIFICATE-----{begin} {rsa}\nMIIE\n{end} {rsa}{begin} {rsa}\nMIIE\n{end} {rsa}\n\
             in one: {begin} {rsa}\\nMIIE\\n{end} {rsa}\nlast\n{begin} {rsa}\n"
        );
        let mut key = Key::default();
        let mut lines = Vec::new();
        let (body, headers) = ("MIIE".repeat(16), ["MIIE"; STRANGE_LINES]);
        let endless = [body.as_str()].into_iter().chain(headers).cycle().take(KEY_LINES);
        for line in text.lines().chain(endless).chain(["beyond"]) {
            let mut line = line.to_owned();
            if key.leaves(&mut line) {
                lines.push(line);
            }
        }
        let in_one = format!("in one: {begin} {rsa}\\nMIIE\\n{end} {rsa}");
        assert_eq!(
            lines,
            [
                "before",
                "key: [redacted:private-key]",
                "after",
                "-----BEGIN CERTIFICATE-----",
                "MIIC",
                "-----END CERTIFICATE-----",
                "-----END CERTIFICATE-----[redacted:private-key]",
                "[redacted:private-key]",
                // The rules for single lines redact this.
                &in_one,
                "last",
                "[redacted:private-key]",
                "beyond",
            ]
        );
    }

    #[tokio::test]
    async fn log_is_limited_and_contains_no_secrets() {
        let log = Arc::default();
        let value = ["hunter", "2-is-long"].concat();
        let secrets = Arc::new(SecretSet(vec![DeliveredSecret {
            name: "K".to_owned(),
            value: Secret::new(value.clone()),
            source: Source::Env("K".to_owned()),
            by: DeliveryMethod::Environment,
            client: None,
        }]));
        let mut text = format!("key {value}\n");
        // No part of a secret is left at the cut of a line, or at the end of a read.
        text.push_str(&format!("{}{value}\n", "x".repeat(LINE_BYTES - 3)));
        text.push_str(&format!("{}{value}\n", "x".repeat(LINE_READ - 3)));
        // A key can begin in a long line at any position, or only be mentioned.
        let (begin, end, kind) = ("-----BEGIN", "-----END", ["PRIVATE", "KEY-----"].join(" "));
        let body = "MIIE".repeat(16);
        for before in [2 * LINE_READ, LINE_READ - 20, LINE_READ - 8] {
            let long = "x".repeat(before);
            text.push_str(&format!("{long}{begin} {kind}\n{body}\n{body}\n{end} {kind}\n"));
        }
        text.push_str(&format!("no {begin} {kind} there\n"));
        for n in 0..=STRANGE_LINES {
            text.push_str(&format!("{n} words {}\n", "0123456789abcdef".repeat(4)));
        }
        for n in 0..LINES - 8 {
            text.push_str(&format!("{n}{}\n", "x".repeat(LINE_BYTES)));
        }
        let scrub: Scrub = Arc::new(|text| *text = text.replace("key", "word"));
        keep(text.as_bytes(), Arc::clone(&log), scrub, || vec![secrets.clone()]).await;
        let log = log.lock();
        assert_eq!(log.len(), LINES);
        assert_eq!(log[0], "word [redacted]");
        assert!(log[1].ends_with("x[re"), "{}", log[1]);
        let long = format!("[a line of more than {LINE_READ} bytes]");
        assert_eq!(log.range(2..6).collect::<Vec<_>>(), [&long; 4]);
        assert_eq!(log[6], "no [redacted:private-word]");
        assert!(log[7].starts_with(&format!("{STRANGE_LINES} words")));
        assert_eq!(log[8].len(), LINE_BYTES);
    }
}
