//! Removes the secrets that a plugin gets from its output.

use aho_corasick::{AhoCorasick, MatchKind};

use portcullis_vault::Secret;

/// Minimum length in bytes of a value; shorter ones occur in any text.
const MIN_SECRET_BYTES: usize = 4;
/// Replacement of a secret.
const REPLACEMENT: &str = "[redacted]";

/// Finds the values of some secrets, as they are and in JSON spellings. A malicious plugin can
/// encode them in other ways, which cannot be detected.
#[derive(Default)]
pub struct SecretRedactor(Option<AhoCorasick>);

impl SecretRedactor {
    /// Redactor of these values.
    ///
    /// # Errors
    /// If there are too many.
    pub fn over<'a>(secrets: impl Iterator<Item = &'a Secret>) -> Result<Self, String> {
        let mut all = Vec::new();
        for secret in secrets {
            let value = secret.expose();
            let lines = value.lines().map(str::trim).chain([value]);
            for part in lines.filter(|part| part.len() >= MIN_SECRET_BYTES) {
                let json = serde_json::Value::from(part).to_string();
                all.push(part.to_owned());
                all.push(json[1..json.len() - 1].to_owned());
            }
        }
        if all.is_empty() {
            return Ok(Self(None));
        }
        let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(all);
        built.map(|found| Self(Some(found))).map_err(|error| error.to_string())
    }

    /// Whether a text contains one.
    pub fn hides(&self, text: &str) -> bool {
        self.0.as_ref().is_some_and(|values| values.is_match(text))
    }

    /// Redacts them in a text.
    pub fn cover(&self, text: &mut String) {
        if let Some(values) = &self.0
            && values.is_match(text.as_str())
        {
            let mut covered = String::with_capacity(text.len());
            values.replace_all_with(text, &mut covered, |_, _, out| {
                out.push_str(REPLACEMENT);
                true
            });
            *text = covered;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_redacted_in_every_json_spelling() {
        let value = ["hunter", "\"2\nsecond line"].concat();
        let veil = SecretRedactor::over([Secret::new(value.clone())].iter()).unwrap();
        let json = serde_json::json!({ "a": value }).to_string();
        for text in [value.as_str(), &json, "x second line y"] {
            let mut covered = text.to_owned();
            assert!(veil.hides(text));
            veil.cover(&mut covered);
            assert!(!covered.contains("hunter") && !covered.contains("second line"), "{covered}");
            assert!(covered.contains(REPLACEMENT));
        }
        assert!(!veil.hides("a second"));
        assert!(!SecretRedactor::default().hides("anything"));
    }
}
