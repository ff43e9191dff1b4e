//! Comparison of a verdict with the expected one.

use serde_json::{Map, Value, value::RawValue};
use serde_saphyr::Spanned;

use super::{
    expand::{CaseMessage, Span},
    file::Expect,
    message::{first_text, held_to},
    stubs::SideEffects,
};
use portcullis_chain::{Fault, may_replace};
use portcullis_plugin_host::{Decision, Failure, LoadError, Message, Values, Verdict};
use portcullis_policy::File;
use portcullis_policy_tools::span;

/// Maximum bytes of a payload that a failure shows.
const SHOWN: usize = 1_000;

/// Verdict as the chain accepts it: an invalid replacement is a fault.
///
/// # Errors
/// The reason why the chain does not accept it.
pub fn taken(verdict: Verdict, message: &Message) -> Result<Verdict, Failure> {
    let Decision::Replace(payload) = &verdict.decision else { return Ok(verdict) };
    let (what, caps) = held_to(message.phase, message.is_error);
    let (before, after) = (message.payload.clone().into(), payload.clone().into());
    match may_replace(&before, &after, what, caps) {
        Ok(()) => Ok(verdict),
        Err(Fault(why)) => Err(Failure::Verdict(why)),
    }
}

/// Result of one message.
pub enum CaseOutcome {
    Answered(Result<Verdict, Failure>),
    Unusable(LoadError),
    /// No hook matches the message.
    Unasked(String),
}

impl CaseOutcome {
    /// Result in the terms of cases.
    pub fn as_expected(&self) -> Expect {
        match self {
            Self::Answered(Err(_)) => Expect::Fault,
            Self::Answered(Ok(verdict)) => match verdict.decision {
                Decision::Pass => Expect::Pass,
                Decision::Refuse(_) => Expect::Refuse,
                Decision::Replace(_) => Expect::Replace,
            },
            Self::Unusable(_) => Expect::Unusable,
            Self::Unasked(_) => Expect::Unasked,
        }
    }

    /// Result with its details, as text.
    pub fn shown_as(&self) -> String {
        let word = self.as_expected().as_str();
        match self {
            Self::Answered(Ok(verdict)) => match &verdict.decision {
                Decision::Pass => word.to_owned(),
                Decision::Refuse(refusal) => {
                    format!("{word} with `{}`: {}", refusal.code, refusal.reason)
                }
                Decision::Replace(payload) => format!("{word} by {}", short(payload)),
            },
            Self::Answered(Err(failure)) => format!("{word}: {failure}"),
            Self::Unusable(unusable) => format!("{word}: {unusable}"),
            Self::Unasked(why) => format!("{word}: {why}"),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Answered(Ok(Verdict { decision: Decision::Refuse(refusal), .. })) => {
                refusal.reason.clone()
            }
            Self::Answered(Ok(_)) => String::new(),
            Self::Answered(Err(failure)) => failure.to_string(),
            Self::Unusable(unusable) => unusable.to_string(),
            Self::Unasked(why) => why.clone(),
        }
    }
}

/// Difference from an expectation, with the position of the expectation.
pub struct Miss {
    pub message: String,
    pub place: Span,
    pub label: String,
}

/// Differences between a result and the expectations of its case.
pub fn misses(
    one: &CaseMessage,
    outcome: &CaseOutcome,
    side_effects: &SideEffects,
    values: Option<&Values>,
    file: &File,
) -> Vec<Miss> {
    let mut collector = MissCollector { misses: Vec::new(), file };
    let (expected, actual) = (one.expect, outcome.as_expected());
    if expected != actual {
        let (expected, word) = (expected.as_str(), actual.as_str());
        collector.misses.push(Miss {
            message: format!("expected {expected}, got {word}"),
            place: one.expect_place,
            label: format!("got {}", outcome.shown_as()),
        });
        // All other differences would follow from this one.
        return collector.misses;
    }
    let case = &one.case;
    if let Some(says) = &case.says {
        let words = outcome.words();
        collector.hold(says, words.contains(&says.value), "says something else", &words);
    }
    if let CaseOutcome::Answered(Ok(verdict)) = outcome {
        collector.verdict(one, verdict);
    }
    if let Some(counts) = &case.counts {
        let shown: Vec<_> =
            side_effects.counts.iter().map(|(name, by)| format!("{name}: {by}")).collect();
        let shown = match shown.is_empty() {
            true => "counts nothing".to_owned(),
            false => format!("counts {}", shown.join(", ")),
        };
        collector.hold(
            counts,
            counts.value == side_effects.counts,
            "counts something else",
            &shown,
        );
    }
    if let Some(logs) = &case.logs {
        let found = side_effects.lines.iter().any(|line| line.contains(&logs.value));
        let shown = match side_effects.lines.as_slice() {
            [] => "logs nothing".to_owned(),
            lines => format!("logs {}", lines.join(" | ")),
        };
        collector.hold(logs, found, "logs something else", &shown);
    }
    if let Some(leaves) = &case.leaves {
        for (key, wanted) in &leaves.value {
            let there = values.and_then(|values| values.text(key));
            let same = there.as_deref() == wanted.as_ref().map(|value| value.0.as_str());
            let shown = match &there {
                Some(there) => format!("`{key}` is `{}`", short(there)),
                None => format!("`{key}` is not there; there is {}", state_text(values)),
            };
            collector.hold(leaves, same, "leaves something else", &shown);
        }
    }
    collector.misses
}

struct MissCollector<'a> {
    misses: Vec<Miss>,
    file: &'a File,
}

impl MissCollector<'_> {
    fn hold<T>(&mut self, wanted: &Spanned<T>, holds: bool, message: &str, label: &str) {
        if !holds {
            let place = span(self.file, wanted.referenced);
            self.misses.push(Miss { message: message.into(), place, label: label.into() });
        }
    }

    fn verdict(&mut self, one: &CaseMessage, verdict: &Verdict) {
        let case = &one.case;
        match &verdict.decision {
            Decision::Refuse(refusal) => {
                if let Some(code) = &case.code {
                    let label = format!("refuses with `{}`: {}", refusal.code, refusal.reason);
                    let same = code.value == refusal.code;
                    self.hold(code, same, "refuses with another code", &label);
                }
            }
            Decision::Replace(payload) => {
                let label = format!("becomes {}", short(payload));
                if let Some(wanted) = &case.becomes {
                    let same = same_text(&wanted.value, payload);
                    self.hold(wanted, same, "becomes something else", &label);
                }
                if let Some(wanted) = &case.becomes_payload {
                    let same = wanted.value == *payload;
                    self.hold(wanted, same, "becomes something else", &label);
                }
                if let Some(wanted) = &case.becomes_text {
                    let text = first_text(payload);
                    let same = text.as_ref() == Some(&wanted.value);
                    let label = match &text {
                        Some(text) => format!("becomes {}", short(text)),
                        None => format!("has no text: {label}"),
                    };
                    self.hold(wanted, same, "becomes something else", &label);
                }
            }
            Decision::Pass => {}
        }
        if let Some(wanted) = &case.gives {
            let returned = verdict.labels.iter().cloned().collect();
            let label = format!("gives [{}]", verdict.labels.join(", "));
            self.hold(wanted, wanted.value == returned, "gives other labels", &label);
        }
        if let Some(wanted) = &case.reports {
            let codes: Vec<_> = verdict.findings.iter().map(|found| found.code.clone()).collect();
            let label = format!("reports [{}]", codes.join(", "));
            self.hold(wanted, wanted.value == codes, "reports something else", &label);
        }
    }
}

/// Values of `state`, as text.
fn state_text(values: Option<&Values>) -> String {
    let all = values.map(Values::texts).unwrap_or_default();
    let shown: Vec<_> = all.iter().map(|(key, value)| format!("`{key}`: `{value}`")).collect();
    match shown.is_empty() {
        true => "nothing".to_owned(),
        false => short(&shown.join(", ")),
    }
}

fn short(text: &str) -> String {
    match text.len() > SHOWN {
        true => format!("{}…", &text[..text.floor_char_boundary(SHOWN)]),
        false => text.to_owned(),
    }
}

/// Whether a JSON text equals this object: numbers digit for digit, members in any order.
fn same_text(wanted: &Map<String, Value>, text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text)
        .is_ok_and(|actual| same(&Value::Object(wanted.clone()), actual))
}

fn same(wanted: &Value, actual: &RawValue) -> bool {
    let text = actual.get();
    match wanted {
        Value::Object(wanted) => serde_json::from_str::<indexmap::IndexMap<String, &RawValue>>(
            text,
        )
        .is_ok_and(|actual| {
            actual.len() == wanted.len()
                && wanted
                    .iter()
                    .all(|(key, value)| actual.get(key).is_some_and(|actual| same(value, actual)))
        }),
        Value::Array(wanted) => serde_json::from_str::<Vec<&RawValue>>(text).is_ok_and(|actual| {
            actual.len() == wanted.len()
                && wanted.iter().zip(actual).all(|(value, actual)| same(value, actual))
        }),
        // Compared as text, since `1.50` would become `1.5`.
        Value::Number(wanted) => wanted.to_string() == text,
        other => serde_json::from_str::<Value>(text).is_ok_and(|actual| *other == actual),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_comparison_respects_digits_and_ignores_order() {
        let wanted = r#"{"a":[1.5,{"b":null}],"c":"é"}"#;
        let wanted: Map<String, Value> = serde_json::from_str(wanted).unwrap();
        for (text, is) in [
            (r#"{"c":"\u00e9", "a":[1.5,{"b":null}]}"#, true),
            (r#"{"c":"é","a":[1.50,{"b":null}]}"#, false),
            (r#"{"c":"é","a":[1.5,{"b":null},2]}"#, false),
            (r#"{"c":"é","a":[1.5,{"b":0}]}"#, false),
            (r#"{"c":"é","a":[1.5,{}]}"#, false),
            (r#"{"c":"é"}"#, false),
            (r#"{"c":"é","a":[1.5,{"b":null}],"d":1}"#, false),
            ("[]", false),
            ("{", false),
        ] {
            assert_eq!(same_text(&wanted, text), is, "{text}");
        }
    }
}
