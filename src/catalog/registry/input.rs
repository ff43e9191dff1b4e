//! Inputs of `server.json`: fixed values, settings of the person, and secrets.

use serde_json::Value;

use super::Reader;
use crate::{
    draft::Draft,
    node::Node,
    object::LocatedText,
    report::{Report, brief},
};

/// Maximum number of values of a repeated argument.
const MOST: usize = 64;

/// Value of an input.
pub(super) enum InputValue {
    Values(Vec<String>),
    Secret,
    Nothing,
}

impl Reader {
    pub(super) fn variable(&mut self, draft: &mut Draft<'_>, node: &Node, report: &mut Report) {
        let Some(name) = node.get("name").and_then(Node::text) else {
            report.problem(node.place, "a variable has a `name`");
            return;
        };
        let located = LocatedText { place: node.place, text: name };
        let about = node.get("description").and_then(Node::text).map(str::to_owned);
        match self.input(node, name, report) {
            InputValue::Values(values) => {
                if let Some(value) = values.first() {
                    // Values in the registry are public; values of the person are not.
                    let public = node.get("value").is_some() || node.get("default").is_some();
                    draft.variable(located, value, public && !self.is_set(name), report);
                }
            }
            InputValue::Secret => draft.secret(located, about, report),
            InputValue::Nothing => {}
        }
    }

    fn is_set(&self, name: &str) -> bool {
        self.settings.get(name).is_some()
    }

    pub(super) fn arguments(&mut self, nodes: &[Node], report: &mut Report) -> Vec<String> {
        let mut arguments = Vec::new();
        for node in nodes {
            let kind = node.get("type").and_then(Node::text).unwrap_or("");
            let name = node.get("name").and_then(Node::text);
            let hint =
                node.get("valueHint").or_else(|| node.get("value_hint")).and_then(Node::text);
            let key = name.map(|name| name.trim_start_matches('-')).or(hint).unwrap_or("argument");
            let values = match self.input(node, key, report) {
                InputValue::Values(values) => values,
                InputValue::Secret => {
                    let text =
                        format!("`{}` is a secret, which has no place in arguments", brief(key));
                    report.problem(node.place, text);
                    continue;
                }
                InputValue::Nothing => {
                    let flag = node.get("value").is_none()
                        && node.get("format").is_none()
                        && node.get("valueHint").is_none()
                        && node.get("variables").is_none();
                    // A named argument without a value.
                    if let (Some(name), true, "named") = (name, flag, kind) {
                        arguments.push(name.to_owned());
                    }
                    continue;
                }
            };
            for value in values {
                if value.chars().any(char::is_control) {
                    report.problem(
                        node.place,
                        format!("`{}` has a control character in it", brief(key)),
                    );
                } else if let Some(name) = name {
                    if name.starts_with("--") {
                        arguments.push(format!("{name}={value}"));
                    } else {
                        arguments.extend([name.to_owned(), value]);
                    }
                } else if value.starts_with('-') && node.get("value").is_none() {
                    report.problem(
                        node.place,
                        format!(
                            "the value of `{}` begins with `-`, and would be read as an option",
                            brief(key)
                        ),
                    );
                } else {
                    arguments.push(value);
                }
            }
        }
        arguments
    }

    /// The value of an input: the fixed one, the person's setting, or the default.
    pub(super) fn input(&mut self, node: &Node, key: &str, report: &mut Report) -> InputValue {
        let flag = |name: &str| {
            matches!(
                node.get(name).map(|node| &node.what),
                Some(crate::node::NodeValue::Flag(true))
            )
        };
        let secret = flag("isSecret") || flag("is_secret");
        let required = flag("isRequired") || flag("is_required");
        for (key, inner) in node.get("variables").and_then(Node::entries).unwrap_or_default() {
            match self.input(inner, &key.text, report) {
                InputValue::Values(values) => {
                    if let Some(value) = values.into_iter().next() {
                        self.named.insert(key.text.to_string(), value);
                    }
                }
                // A value that contains a secret is a secret.
                InputValue::Secret => return InputValue::Secret,
                InputValue::Nothing => {}
            }
        }
        let fixed = node.get("value").and_then(Node::scalar).map(|value| vec![self.braces(value)]);
        let set = self.settings.get(key).map(texts);
        let default =
            node.get("default").and_then(Node::scalar).map(|value| vec![value.to_owned()]);
        if secret && fixed.is_none() {
            return InputValue::Secret;
        }
        let values = fixed.or(set).or(default).unwrap_or_default();
        if values.is_empty() && required {
            let text =
                format!("`{}` has no value: give it with `--set {}=VALUE`", brief(key), brief(key));
            report.problem(node.place, text);
        }
        if values.len() > 1 && !flag("isRepeated") && !flag("is_repeated") {
            report.problem(node.place, format!("`{}` takes one value", brief(key)));
            return InputValue::Nothing;
        }
        let choices = node.get("choices").and_then(Node::items).unwrap_or_default();
        let wrong = |value: &String| !choices.iter().any(|choice| choice.scalar() == Some(value));
        if !choices.is_empty() && values.iter().any(wrong) {
            report.problem(
                node.place,
                format!("the value of `{}` is not one of its choices", brief(key)),
            );
        }
        if values.is_empty() {
            InputValue::Nothing
        } else {
            InputValue::Values(values.into_iter().take(MOST).collect())
        }
    }

    /// Replaces `{name}` with known values; unknown ones stay.
    pub(super) fn braces(&self, text: &str) -> String {
        let mut filled = String::new();
        let mut rest = text;
        while let Some(start) = rest.find('{') {
            filled.push_str(&rest[..start]);
            let inner = &rest[start + 1..];
            let end = inner.find('}');
            match end.and_then(|end| Some((end, self.named.get(&inner[..end])?))) {
                Some((end, value)) => {
                    filled.push_str(value);
                    rest = &inner[end + 1..];
                }
                None => {
                    filled.push('{');
                    rest = inner;
                }
            }
            if filled.len() > 64 << 10 {
                break;
            }
        }
        filled.push_str(rest);
        filled
    }
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(texts).take(MOST).collect(),
        Value::String(text) => vec![text.clone()],
        Value::Null | Value::Object(_) => Vec::new(),
        other => vec![other.to_string()],
    }
}
