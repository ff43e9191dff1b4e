//! `{{server.key|filter}}` in Docker's catalogs: inserts the person's values into commands, volumes
//! and variables.
//!
//! Invariant: an inserted value stays within its position. It is never read as a template, begins
//! no option, and adds no arguments except if the whole argument is one list.

use serde_json::Value;

use crate::report::brief;

/// Maximum number of parts of one template.
const MOST_TERMS: usize = 64;
/// Maximum size of the result.
const LONGEST: usize = 16 << 10;

/// Position of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
    Argument,
    Variable,
    Volume,
    User,
}

/// Why a template cannot be filled in; the texts name its expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("`{{{{{}}}}}` has no value: give it with `--set {}=VALUE`", brief(.0), brief(.0))]
    Missing(String),
    #[error("`{{{{{}}}}}` is a setting of another server", brief(.0))]
    Others(String),
    #[error("the value of `{}` begins with `-`, and would be read as an option", brief(.0))]
    Option(String),
    #[error("the value of `{}` has a control character in it", brief(.0))]
    Control(String),
    #[error("the value of `{}` cannot stand in a volume: it is an absolute path without `:` and `..`", brief(.0))]
    Path(String),
    #[error("the value of `{}` is neither a text, a number, a flag nor a list of those", brief(.0))]
    Kind(String),
    #[error("`{}` is not a filter of a template", brief(.0))]
    Filter(String),
    #[error("`{}` is not a template", brief(.0))]
    Form(String),
    #[error("what the template becomes is too long")]
    Long,
}

/// A value between filters.
#[derive(Debug, Clone, PartialEq)]
enum TemplateValue {
    Missing,
    One(String),
    Many(Vec<String>),
}

/// Whether a text contains an expression.
pub(crate) fn is_template(text: &str) -> bool {
    text.contains("{{")
}

/// Fills in a template from the settings of a server, under its name. Empty if the template is only
/// a value that is missing.
///
/// # Errors
/// [`TemplateError`]
pub(crate) fn fill(
    template: &str,
    values: &Value,
    into: Into,
) -> Result<Vec<String>, TemplateError> {
    let terms = terms(template)?;
    if let [Term::Value { path, filters }] = terms.as_slice() {
        return match value(path, filters, values, into, true)? {
            TemplateValue::Missing => Ok(Vec::new()),
            TemplateValue::One(text) => Ok(vec![text]),
            TemplateValue::Many(all) => Ok(all),
        };
    }
    let mut filled = String::new();
    for (at, term) in terms.iter().enumerate() {
        match term {
            Term::Plain(text) => filled.push_str(text),
            Term::Value { path, filters } => {
                // Only a value at the beginning can make it an option; one after `--x=` cannot.
                match value(path, filters, values, into, at == 0)? {
                    TemplateValue::Missing => {
                        return Err(TemplateError::Missing((*path).to_owned()));
                    }
                    TemplateValue::One(text) => filled.push_str(&text),
                    TemplateValue::Many(_) => return Err(TemplateError::Kind((*path).to_owned())),
                }
            }
        }
        if filled.len() > LONGEST {
            return Err(TemplateError::Long);
        }
    }
    Ok(vec![filled])
}

enum Term<'a> {
    Plain(&'a str),
    Value { path: &'a str, filters: Vec<&'a str> },
}

fn terms(template: &str) -> Result<Vec<Term<'_>>, TemplateError> {
    let mut terms = Vec::new();
    let mut rest = template;
    while !rest.is_empty() {
        if terms.len() >= MOST_TERMS {
            return Err(TemplateError::Long);
        }
        let Some(start) = rest.find("{{") else {
            terms.push(Term::Plain(rest));
            break;
        };
        if start > 0 {
            terms.push(Term::Plain(&rest[..start]));
        }
        let inner = &rest[start + 2..];
        let end = inner.find("}}").ok_or_else(|| TemplateError::Form(template.to_owned()))?;
        let mut parts = inner[..end].split('|').map(str::trim);
        let path = parts.next().unwrap_or("");
        if path.is_empty() || path.contains(['{', '}']) {
            return Err(TemplateError::Form(template.to_owned()));
        }
        terms.push(Term::Value { path, filters: parts.collect() });
        rest = &inner[end + 2..];
    }
    Ok(terms)
}

fn value(
    path: &str,
    filters: &[&str],
    values: &Value,
    into: Into,
    first: bool,
) -> Result<TemplateValue, TemplateError> {
    let whose = path.split('.').next().unwrap_or("").trim();
    if values.get(whose).is_none() {
        return Err(TemplateError::Others(path.to_owned()));
    }
    let found = path.split('.').try_fold(values, |value, key| value.get(key.trim()));
    let mut filled = match found {
        None | Some(Value::Null) => TemplateValue::Missing,
        Some(Value::Array(items)) => TemplateValue::Many(
            items
                .iter()
                .map(|item| scalar(item).ok_or_else(|| TemplateError::Kind(path.to_owned())))
                .collect::<Result<_, _>>()?,
        ),
        Some(value) => match scalar(value) {
            Some(text) if text.is_empty() => TemplateValue::Missing,
            Some(text) => TemplateValue::One(text),
            None => return Err(TemplateError::Kind(path.to_owned())),
        },
    };
    // The person's text is checked for its position; text that filters add is the catalog's.
    for text in filled.texts() {
        hold(path, text, into, first)?;
    }
    for filter in filters {
        filled = filtered(filled, filter)?;
    }
    Ok(filled)
}

impl TemplateValue {
    fn texts(&self) -> &[String] {
        match self {
            Self::Missing => &[],
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }

    fn map(self, change: impl Fn(&str) -> String) -> Self {
        match self {
            Self::Missing => Self::Missing,
            Self::One(text) => Self::One(change(&text)),
            Self::Many(texts) => Self::Many(texts.iter().map(|text| change(text)).collect()),
        }
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn hold(path: &str, text: &str, into: Into, first: bool) -> Result<(), TemplateError> {
    let named = || path.to_owned();
    if text.len() > LONGEST {
        return Err(TemplateError::Long);
    }
    let control = |c: char| c.is_control() && !(into == Into::Variable && matches!(c, '\n' | '\t'));
    if text.chars().any(control) {
        return Err(TemplateError::Control(named()));
    }
    match into {
        Into::Argument if first && text.starts_with('-') => Err(TemplateError::Option(named())),
        Into::Volume
            if !text.starts_with('/')
                || text.contains(':')
                || text.split('/').any(|part| part == "..") =>
        {
            Err(TemplateError::Path(named()))
        }
        _ => Ok(()),
    }
}

fn filtered(value: TemplateValue, filter: &str) -> Result<TemplateValue, TemplateError> {
    Ok(match filter.split_once(':').map_or((filter, None), |(name, rest)| (name, Some(rest))) {
        ("volume", None) => value.map(|path| format!("{path}:{path}")),
        ("volume-target", None) => value,
        ("into", None) => match value {
            TemplateValue::Missing => TemplateValue::Missing,
            TemplateValue::One(text) => TemplateValue::Many(vec![text]),
            many @ TemplateValue::Many(_) => many,
        },
        ("first", None) => match value {
            TemplateValue::Many(texts) => {
                texts.into_iter().next().map_or(TemplateValue::Missing, TemplateValue::One)
            }
            other => other,
        },
        ("last", None) => match value {
            TemplateValue::Many(texts) => {
                texts.into_iter().next_back().map_or(TemplateValue::Missing, TemplateValue::One)
            }
            other => other,
        },
        ("or", Some(default)) => match value {
            TemplateValue::Missing => or(default),
            TemplateValue::Many(texts) if texts.is_empty() => or(default),
            there => there,
        },
        ("mount_as", Some(target)) => match value {
            TemplateValue::Many(texts) => texts.first().map_or(TemplateValue::Missing, |source| {
                TemplateValue::One(format!("{source}:{}", target.trim()))
            }),
            other => other.map(|source| format!("{source}:{}", target.trim())),
        },
        _ => return Err(TemplateError::Filter(filter.to_owned())),
    })
}

fn or(default: &str) -> TemplateValue {
    match default.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some("") => TemplateValue::Many(Vec::new()),
        Some(list) => TemplateValue::Many(list.split(',').map(str::to_owned).collect()),
        None if default.is_empty() => TemplateValue::Missing,
        None => TemplateValue::One(default.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn values() -> Value {
        json!({ "s": {
            "host": "db.example.com", "port": 5432, "tls": true, "empty": "", "none": null,
            "paths": ["/srv/a", "/srv/b"], "no": [], "deep": { "er": "x" },
            "option": "--privileged", "line": "a\nb", "braces": "{{s.host}}", "colon": "/a:/etc",
            "object": {}, "up": "/a/../etc",
        }})
    }

    fn filled(template: &str, into: Into) -> Result<Vec<String>, TemplateError> {
        fill(template, &values(), into)
    }

    #[test]
    fn templates_are_rendered() {
        for (template, into, expected) in [
            ("plain", Into::Argument, vec!["plain"]),
            ("{{s.host}}", Into::Argument, vec!["db.example.com"]),
            ("{{ s . host }}", Into::Argument, vec!["db.example.com"]),
            ("--h={{s.host}}:{{s.port}}", Into::Argument, vec!["--h=db.example.com:5432"]),
            ("{{s.tls}}", Into::Variable, vec!["true"]),
            ("{{s.deep.er}}", Into::Argument, vec!["x"]),
            ("{{s.paths}}", Into::Argument, vec!["/srv/a", "/srv/b"]),
            ("{{s.paths|volume|into}}", Into::Volume, vec!["/srv/a:/srv/a", "/srv/b:/srv/b"]),
            ("{{s.paths|volume-target|into}}", Into::Argument, vec!["/srv/a", "/srv/b"]),
            ("{{s.paths|first|mount_as:/x:ro}}", Into::Volume, vec!["/srv/a:/x:ro"]),
            ("{{s.paths|last}}:/y", Into::Volume, vec!["/srv/b:/y"]),
            ("{{s.nothing}}", Into::Argument, vec![]),
            ("{{s.empty|or:d}}", Into::Argument, vec!["d"]),
            ("{{s.no|or:[a,b]}}", Into::Argument, vec!["a", "b"]),
            ("{{s.no|or:[]}}", Into::Argument, vec![]),
            ("{{s.host|or:d}}", Into::Argument, vec!["db.example.com"]),
            ("{{s.braces}}", Into::Argument, vec!["{{s.host}}"]),
            ("--x={{s.option}}", Into::Argument, vec!["--x=--privileged"]),
            ("{{s.line}}", Into::Variable, vec!["a\nb"]),
        ] {
            let got = filled(template, into);
            assert_eq!(got, Ok(expected.into_iter().map(str::to_owned).collect()), "{template}");
        }
    }

    #[test]
    fn values_cannot_leave_their_position() {
        for (template, into) in [
            ("{{s.option}}", Into::Argument),
            ("{{s.line}}", Into::Argument),
            ("--x={{s.line}}", Into::Argument),
            ("{{s.colon}}", Into::Volume),
            ("{{s.colon}}:/x", Into::Volume),
            ("{{s.up}}:/x", Into::Volume),
            ("{{s.host}}:/x", Into::Volume),
            ("--x={{s.paths}}", Into::Argument),
            ("--x={{s.nothing}}", Into::Argument),
            ("{{s.object}}", Into::Argument),
            ("{{s.host|shell}}", Into::Argument),
            ("{{s.host", Into::Argument),
            ("{{}}", Into::Argument),
            ("{{a{{b}}}}", Into::Argument),
            ("{{other.host}}", Into::Variable),
            ("{{other|or:x}}", Into::Argument),
        ] {
            assert!(filled(template, into).is_err(), "{template}");
        }
    }

    proptest! {
        #[test]
        fn value_never_becomes_another_argument(value in ".*", before in "[a-z=-]{0,6}") {
            let values = json!({ "s": { "v": value.clone() } });
            if let Ok(arguments) = fill(&format!("{before}{{{{s.v}}}}"), &values, Into::Argument) {
                prop_assert!(arguments.len() <= 1);
                for argument in arguments {
                    prop_assert_eq!(&argument, &format!("{before}{value}"));
                    prop_assert!(!before.is_empty() || !argument.starts_with('-'));
                    prop_assert!(!argument.contains(['\n', '\r', '\0']));
                }
            }
        }

        #[test]
        fn arbitrary_template_causes_no_panic(template in "[ -~]{0,40}|(\\{\\{|\\}\\}|s|\\.|\\||or:|paths|,|\\[|\\]|é)*") {
            for into in [Into::Argument, Into::Variable, Into::Volume, Into::User] {
                let _ = filled(&template, into);
            }
        }
    }
}
