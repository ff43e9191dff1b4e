//! Keeps the secrets that a plugin was handed out of all that it says.

use aho_corasick::{AhoCorasick, MatchKind};

use portcullis_vault::Secret;

/// Bytes of a value, below which it cannot be told from any other text.
const SHORTEST: usize = 4;
/// What stands in the place of one.
const COVERED: &str = "[redacted]";

/// Knows the values of some secrets. It finds them as they are and as JSON spells them; a plugin that
/// means to give one away can spell it otherwise, which nobody can see.
#[derive(Default)]
pub struct SecretRedactor(Option<AhoCorasick>);

impl SecretRedactor {
    /// Of these values.
    ///
    /// # Errors
    /// Where they are too many to be looked for.
    pub fn over<'a>(secrets: impl Iterator<Item = &'a Secret>) -> Result<Self, String> {
        let mut all = Vec::new();
        for secret in secrets {
            let value = secret.expose();
            let lines = value.lines().map(str::trim).chain([value]);
            for part in lines.filter(|part| part.len() >= SHORTEST) {
                let json = serde_json::Value::from(part).to_string();
                all.push(part.to_owned());
                all.push(json[1..json.len() - 1].to_owned());
            }
        }
        if all.is_empty() {
            return Ok(Self(None));
        }
        let made = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(all);
        made.map(|found| Self(Some(found))).map_err(|error| error.to_string())
    }

    /// Whether a text holds one.
    pub fn hides(&self, text: &str) -> bool {
        self.0.as_ref().is_some_and(|values| values.is_match(text))
    }

    /// Takes them out of a text.
    pub fn cover(&self, text: &mut String) {
        if let Some(values) = &self.0
            && values.is_match(text.as_str())
        {
            let mut covered = String::with_capacity(text.len());
            values.replace_all_with(text, &mut covered, |_, _, out| {
                out.push_str(COVERED);
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
    fn values_are_covered_however_json_spells_them() {
        let value = ["hunter", "\"2\nsecond line"].concat();
        let veil = SecretRedactor::over([Secret::new(value.clone())].iter()).unwrap();
        let json = serde_json::json!({ "a": value }).to_string();
        for text in [value.as_str(), &json, "x second line y"] {
            let mut covered = text.to_owned();
            assert!(veil.hides(text));
            veil.cover(&mut covered);
            assert!(!covered.contains("hunter") && !covered.contains("second line"), "{covered}");
            assert!(covered.contains(COVERED));
        }
        assert!(!veil.hides("a second"));
        assert!(!SecretRedactor::default().hides("anything"));
    }
}
