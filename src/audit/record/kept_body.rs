//! Truncated bodies that a policy keeps. Secrets are removed before: truncation first could leave
//! the first part of a secret, which would not be recognized.

use serde_json::{Map, Value};

use super::v1::KeptBody;

/// Maximum bytes of JSON of one kept body.
const MOST: usize = 16 << 10;
/// Bytes of a member beyond its text: quotes, a colon, a comma.
const AROUND: usize = 4;
/// Maximum kept depth: parsers of the record stop at 128 levels.
const DEPTH: usize = 64;

impl KeptBody {
    /// Truncated body, from which `redacted` secrets were removed.
    pub fn of(body: Value, redacted: usize) -> Self {
        let mut budget = BodyBudget { bytes: MOST, cut: false };
        let body = budget.value(body, DEPTH);
        Self {
            body: Some(body),
            redacted: u32::try_from(redacted).unwrap_or(u32::MAX),
            cut: budget.cut,
            failure: None,
        }
    }

    /// Reason why no body is kept.
    pub fn failed(why: impl Into<String>) -> Self {
        Self { failure: Some(why.into()), ..Self::default() }
    }
}

struct BodyBudget {
    bytes: usize,
    cut: bool,
}

impl BodyBudget {
    fn take(&mut self, bytes: usize) -> bool {
        match self.bytes.checked_sub(bytes) {
            Some(rest) => self.bytes = rest,
            None => {
                self.bytes = 0;
                self.cut = true;
            }
        }
        !self.cut
    }

    fn value(&mut self, value: Value, depth: usize) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => {
                let mut retained = Vec::new();
                for item in items {
                    if !self.enter(depth) {
                        break;
                    }
                    retained.push(self.value(item, depth - 1));
                }
                Value::Array(retained)
            }
            Value::Object(members) => {
                let mut retained = Map::new();
                for (name, member) in members {
                    if !self.enter(depth) || !self.take(written(&name)) {
                        break;
                    }
                    let member = self.value(member, depth - 1);
                    retained.insert(name, member);
                }
                Value::Object(retained)
            }
            // A number has at most some twenty digits and is not truncated.
            plain => {
                self.take(plain.to_string().len());
                plain
            }
        }
    }

    fn enter(&mut self, depth: usize) -> bool {
        self.cut |= depth <= 1;
        self.take(AROUND)
    }

    fn text(&mut self, text: String) -> String {
        let before = self.bytes;
        if self.take(written(&text)) {
            return text;
        }
        let mut end = 0;
        let mut bytes = 0;
        for (at, c) in text.char_indices() {
            bytes += width(c);
            if bytes > before {
                break;
            }
            end = at + c.len_utf8();
        }
        format!("{}…", &text[..end])
    }
}

fn written(text: &str) -> usize {
    text.chars().map(width).sum()
}

/// Bytes of a character in JSON.
fn width(c: char) -> usize {
    match c {
        '"' | '\\' => 2,
        c if c.is_ascii_control() => 6,
        c => c.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn small_body_is_kept_whole() {
        let body = json!({"a": [1, 2.5, null, true, "x\n\"é"], "b": {"c": {}}});
        let kept = KeptBody::of(body.clone(), 3);
        assert_eq!(kept, KeptBody { body: Some(body), redacted: 3, cut: false, failure: None });
    }

    #[test]
    fn oversized_body_is_truncated_to_valid_json() {
        let mut deep = json!("x");
        for _ in 0..120 {
            deep = json!([deep]);
        }
        for body in [
            json!({"a": "é\"".repeat(MOST)}),
            json!({"a": vec!["some text"; MOST]}),
            json!((0..MOST).map(|i| (format!("key{i}"), json!(i))).collect::<Map<_, _>>()),
            json!("\u{1}".repeat(MOST)),
            deep,
        ] {
            let kept = KeptBody::of(body, 0);
            assert!(kept.cut);
            let text = kept.body.unwrap().to_string();
            assert!(text.len() <= MOST + 16, "{}", text.len());
            assert!(text.len() > MOST / 2 || text.contains("[[["), "{}", text.len());
        }
    }
}
