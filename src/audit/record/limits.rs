//! Limits of texts in records. Secrets are removed before a text is truncated.

use super::{
    Omission,
    v1::{Record, Target},
};

// Maximum lengths of texts, in bytes as JSON.
pub(super) const NAME: usize = 256;
pub(super) const URI: usize = 512;
pub(super) const WORDS: usize = 512;
pub(super) const DETAIL: usize = 1024;
pub(super) const LABEL: usize = 64;
/// Maximum bytes of one byte of a text as JSON: those of `\u001b`.
pub(super) const ESCAPE: usize = 6;
/// Bytes kept beyond a text's limit until secrets are removed: the maximum length of a secret of
/// the vault, so that no truncation keeps the first part of one.
const MARGIN: usize = 64 << 10;

impl Record {
    /// Passes every text that a client, a server or a fault chose through `scrub`, and then
    /// truncates it. The reverse order would keep the first part of a truncated secret.
    pub(crate) fn scrub_and_truncate(&mut self, scrub: Option<&dyn Fn(&mut String)>) {
        let change = |text: &mut String, most| {
            // Constructors truncate here, at most three bytes earlier for a whole character.
            let cut = text.len() + 3 >= most + MARGIN;
            if let Some(scrub) = scrub {
                scrub(text);
            }
            if cut {
                // The end of the text can be the first part of a secret, and removed secrets before
                // it can have moved it below the limit.
                text.truncate(text.floor_char_boundary(text.len().saturating_sub(MARGIN)));
                text.push('…');
            }
            if let Some(end) = clip_at(text, most) {
                text.truncate(end);
                text.push('…');
            }
        };
        if let Self::Event(event) = self {
            event.what.content_mut().texts(&mut |text| change(text, WORDS));
        }
        let mut lacks = Vec::new();
        if let Some(call) = self.call_mut() {
            let before = (call.method.clone(), call.target.clone());
            call.method.iter_mut().for_each(|method| change(method, NAME));
            call.trace.iter_mut().for_each(|trace| change(trace, LABEL));
            match &mut call.target {
                Some(Target::Tool(name) | Target::Prompt(name)) => change(name, NAME),
                Some(Target::Resource(uri)) => change(uri, URI),
                None => {}
            }
            if before.0 != call.method {
                lacks.push(Omission::Method);
            }
            if before.1 != call.target {
                lacks.push(Omission::Target);
            }
            call.labels = std::mem::take(&mut call.labels)
                .into_iter()
                .map(|mut label| {
                    change(&mut label, LABEL);
                    label
                })
                .collect();
        }
        if let Some(asked) = self.asked_mut() {
            let labels = asked.labels.clone();
            asked.labels = std::mem::take(&mut asked.labels)
                .into_iter()
                .map(|mut label| {
                    change(&mut label, LABEL);
                    label
                })
                .collect();
            if labels != asked.labels {
                lacks.push(Omission::Labels);
            }
            asked.lacks.extend(lacks);
        }
        let refusal = match self {
            Self::Outcome(outcome) => outcome.refusal.as_mut(),
            Self::Refused(refused) => Some(&mut refused.refusal),
            Self::Intent(_) | Self::Event(_) => None,
        };
        if let Some(refusal) = refusal {
            change(&mut refusal.message, WORDS);
            refusal.detail.iter_mut().for_each(|detail| change(detail, DETAIL));
        }
        if let Some(grounds) = self.grounds_mut() {
            for finding in &mut grounds.findings {
                change(&mut finding.message, WORDS);
            }
        }
    }
}

/// URI without user, query, fragment and inline data.
pub fn bare_uri(uri: &str) -> String {
    let end = if uri.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:")) {
        uri.find(',')
    } else {
        uri.find(['?', '#'])
    };
    let bare = &uri[..end.unwrap_or(uri.len())];
    if let Some((scheme, rest)) = bare.split_once("://") {
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if let Some((_, host)) = authority.rsplit_once('@') {
            return format!("{scheme}://{host}{path}");
        }
    }
    bare.to_owned()
}

/// Prefix of a text that is long enough for a record: its limit and [`MARGIN`].
pub(super) fn bound(text: &str, most: usize) -> String {
    text[..text.floor_char_boundary(most + MARGIN)].to_owned()
}

/// Text truncated to the maximum length of prose in a record.
pub fn clip_words(text: &str) -> String {
    clip(text, WORDS)
}

/// Prefix of a text with at most `most` bytes as JSON, with `…` if it was truncated.
pub(super) fn clip(text: &str, most: usize) -> String {
    clip_at(text, most).map_or_else(|| text.to_owned(), |end| format!("{}…", &text[..end]))
}

/// Position at which a text is truncated to `most` bytes as JSON. `None` if it fits.
fn clip_at(text: &str, most: usize) -> Option<usize> {
    // Nearly all texts fit, most of them by their length alone.
    if text.len() * ESCAPE <= most || text.bytes().map(json_bytes).sum::<usize>() <= most {
        return None;
    }
    let mut bytes = 0;
    text.char_indices().find_map(|(at, c)| {
        bytes += text[at..at + c.len_utf8()].bytes().map(json_bytes).sum::<usize>();
        (bytes > most).then_some(at)
    })
}

/// Bytes of a byte of a text as JSON, as far as limits count them.
fn json_bytes(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' => 2,
        byte if byte.is_ascii_control() => ESCAPE,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use portcullis_test_support::exchange;

    use crate::{DecisionContext, DigestKey, Intent};
    use portcullis_protocol::exchange;

    #[test]
    fn recorded_uri_omits_credentials_and_query() {
        for (uri, bare) in [
            ("file:///srv/a.txt", "file:///srv/a.txt"),
            ("https://u:p@host/x?token=1#f", "https://host/x"),
            ("https://host", "https://host"),
            ("https://u@host#x@y/z", "https://host"),
            ("data:text/plain,hello", "data:text/plain"),
            ("notes:today?x", "notes:today"),
            ("é", "é"),
        ] {
            assert_eq!(bare_uri(uri), bare);
        }
    }

    #[test]
    fn texts_are_truncated_at_character_boundaries() {
        assert_eq!(clip("ab", 2), "ab");
        assert_eq!(clip("äöü", 4), "äö…");
        assert_eq!(clip("\u{1}\u{1}", 6), "\u{1}…");
    }

    proptest! {
        #[test]
        fn truncated_text_is_the_longest_fitting_prefix(text in "[a-c\"\\\\\\x00-\\x1f\\x7féß日\u{1f512}]{0,40}", most in 0_usize..80) {
            let size = |text: &str| -> usize {
                text.chars()
                    .map(|c| match c {
                        '"' | '\\' => 2,
                        c if c.is_ascii_control() => 6,
                        c => c.len_utf8(),
                    })
                    .sum()
            };
            let clipped = clip(&text, most);
            if size(&text) <= most {
                prop_assert_eq!(clipped, text);
            } else {
                let prefix = clipped.strip_suffix('…').unwrap();
                let next = text[prefix.len()..].chars().next().unwrap();
                prop_assert!(text.starts_with(prefix) && size(prefix) <= most);
                prop_assert!(size(prefix) + size(&next.to_string()) > most);
            }
        }
    }

    #[test]
    fn secrets_are_redacted_before_truncation() {
        let secret = ["S3", "CR3T"].concat();
        let scrub = |text: &mut String| *text = text.replace(&secret, "[x]");
        let of = |name: &str| {
            let exchange = exchange(|exchange| {
                exchange.target = exchange::Target::Tool { name: name.into(), tool: None };
            });
            let key = DigestKey::for_tests();
            let mut record = Record::from(Intent::of(&exchange, DecisionContext::default(), &key));
            record.scrub_and_truncate(Some(&scrub));
            match record.call().and_then(|call| call.target.clone()) {
                Some(Target::Tool(name)) => name,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(of("short"), "short");
        // Around the limit, and around the position of the first truncation.
        for at in [NAME, NAME + MARGIN] {
            for before in at - 10..at + 4 {
                let name = of(&format!("{}{secret}", "a".repeat(before)));
                assert!(!name.contains("S3"), "{before}: {name}");
                assert!(name.len() <= NAME + '…'.len_utf8(), "{before}: {}", name.len());
            }
        }
        // Removal moves the following text to the front.
        let name = of(&secret.repeat((NAME + MARGIN) / secret.len() + 1));
        assert!(!name.contains("S3]") && !name.contains("]S"), "{name}");
    }
}
