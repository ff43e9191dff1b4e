//! Obligations of a policy: its annotations except `@id` and `@reason`.

use std::{collections::BTreeSet, num::NonZeroU32, time::Duration};

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::{codec::Pointer, exchange::Phase};

/// Maximum period of `@rate`.
const MAX_RATE_PERIOD: Duration = Duration::from_secs(31 * 24 * 3600);
/// Limit of a label in characters.
const MAX_LABEL_CHARS: usize = 64;
/// Limit in characters of a text for a person or an agent.
const MAX_TEXT_CHARS: usize = 1_000;

/// Obligations of one policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obligations {
    /// `@keep`: bodies that the audit log keeps of messages that the policy decides.
    pub keep: Keep,
    /// `@mode("shadow")`: it decides nothing; the record says what it would have decided.
    pub shadow: bool,
    /// `@redact`: fields that are overwritten before the message is forwarded.
    pub redact: Redact,
    /// `@approve`: text for the person who must approve.
    pub approve: Option<String>,
    /// `@rate`: how often it permits, for each principal.
    pub rate: Option<Rate>,
    /// `@note`: text for the agent beside the result.
    pub note: Option<String>,
    /// `@label`: labels that the session has from then on.
    pub labels: BTreeSet<String>,
    /// `@secrets`: actions for the secrets in the message and its response.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretAction>,
}

/// Action for secrets of a message that a policy permits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretAction {
    /// Half of the exchange; `None` for both.
    pub phase: Option<Phase>,
    /// Rule of the secrets; `None` for all rules, except for the secrets of servers.
    pub rule: Option<String>,
    pub treatment: SecretTreatment,
}

/// Treatment of a secret that is found, in the order of strictness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretTreatment {
    Allow,
    Report,
    Redact,
    Refuse,
}

/// Bodies that the audit log keeps; of others it has only shape and digest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    pub arguments: bool,
    pub result: bool,
}

/// Fields that are overwritten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redact {
    /// Of the arguments (for methods other than `tools/call` and `prompts/get`: of `params`).
    pub arguments: Vec<Pointer>,
    pub result: Vec<Pointer>,
}

impl Redact {
    /// Whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.arguments.is_empty() && self.result.is_empty()
    }
}

/// Number of calls in a period, spread evenly except for a burst of all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rate {
    pub calls: NonZeroU32,
    pub window: Duration,
}

/// Reason why an annotation is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Illegal {
    pub problem: String,
    pub help: String,
}

fn illegal(problem: impl Into<String>, help: impl Into<String>) -> Illegal {
    Illegal { problem: problem.into(), help: help.into() }
}

impl Obligations {
    /// Names of all annotations that are obligations.
    pub const NAMES: [&str; 8] =
        ["keep", "mode", "redact", "approve", "rate", "note", "label", "secrets"];

    /// Obligations that apply to permitted messages: they mean nothing on a `forbid`.
    pub const OF_PERMITS: [&str; 6] = ["redact", "approve", "rate", "note", "label", "secrets"];

    /// Names of the annotations that require something of a permitted message.
    pub fn annotations(&self) -> Vec<&'static str> {
        let requested = [
            !self.redact.is_empty(),
            self.approve.is_some(),
            self.rate.is_some(),
            self.note.is_some(),
            !self.labels.is_empty(),
            !self.secrets.is_empty(),
        ];
        let names = Self::OF_PERMITS.into_iter().zip(requested);
        names.filter_map(|(name, requested)| requested.then_some(name)).collect()
    }

    /// Adds an annotation.
    ///
    /// # Errors
    /// If its text is invalid.
    pub fn take(&mut self, name: &str, text: &str) -> Result<(), Illegal> {
        match name {
            "keep" => self.keep = keep(text)?,
            "mode" if text == "shadow" => self.shadow = true,
            "mode" => {
                return Err(illegal(
                    format!("`{}` is not a mode", text.escape_debug()),
                    "write `@mode(\"shadow\")`, or remove the annotation to enforce the policy",
                ));
            }
            "redact" => self.redact = redact(text)?,
            "approve" => self.approve = Some(words(text)?),
            "rate" => self.rate = Some(rate(text)?),
            "note" => self.note = Some(words(text)?),
            "label" => self.labels = labels(text)?,
            "secrets" => self.secrets = secrets(text)?,
            _ => {}
        }
        Ok(())
    }
}

fn keep(text: &str) -> Result<Keep, Illegal> {
    let mut keep = Keep::default();
    for word in text.split(',').map(str::trim) {
        match word {
            "arguments" => keep.arguments = true,
            "result" => keep.result = true,
            _ => {
                return Err(illegal(
                    format!("`@keep` does not know `{}`", word.escape_debug()),
                    "write `@keep(\"arguments\")`, `@keep(\"result\")` or \
                     `@keep(\"arguments,result\")`",
                ));
            }
        }
    }
    Ok(keep)
}

fn redact(text: &str) -> Result<Redact, Illegal> {
    let mut redact = Redact::default();
    for field in text.split(',').map(str::trim) {
        let (pointers, pointer) = match field.strip_prefix("result:") {
            Some(pointer) => (&mut redact.result, pointer),
            None => (&mut redact.arguments, field),
        };
        let pointer = pointer.parse().map_err(|_| {
            illegal(
                format!("`{}` is not a field", field.escape_debug()),
                "name fields by JSON pointers (RFC 6901), with `*` for every member or element: \
                 `@redact(\"/password, /users/*/email, result:/structuredContent/email\")`",
            )
        })?;
        pointers.push(pointer);
    }
    Ok(redact)
}

fn rate(text: &str) -> Result<Rate, Illegal> {
    let parse = || {
        let (calls, window) = text.split_once('/')?;
        let window: SignedDuration = window.trim().parse().ok()?;
        let window = Duration::try_from(window).ok()?;
        let legal = window >= Duration::from_millis(1) && window <= MAX_RATE_PERIOD;
        legal.then_some(Rate { calls: calls.trim().parse().ok()?, window })
    };
    parse().ok_or_else(|| {
        illegal(
            format!("`{}` is not a rate", text.escape_debug()),
            "write a number and a time of up to 31 days: `@rate(\"10/1m\")`, `@rate(\"5/1h\")`",
        )
    })
}

fn words(text: &str) -> Result<String, Illegal> {
    if text.chars().count() > MAX_TEXT_CHARS || text.chars().any(char::is_control) {
        let problem = format!(
            "the text has control characters or more than {MAX_TEXT_CHARS} \
            characters"
        );
        return Err(illegal(problem, "write one short line"));
    }
    Ok(text.to_owned())
}

fn labels(text: &str) -> Result<BTreeSet<String>, Illegal> {
    let legal = |label: &str| {
        let mut chars = label.chars();
        label.len() <= MAX_LABEL_CHARS
            && chars.next().is_some_and(|c| c.is_ascii_lowercase())
            && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c))
    };
    let labels = text.split(',').map(str::trim);
    labels
        .map(|label| match legal(label) {
            true => Ok(label.to_owned()),
            false => Err(illegal(
                format!("`{}` is not a label", label.escape_debug()),
                format!(
                    "a label begins with a letter and has lower-case letters, digits, `-`, `_` \
                    and `.`, \
                     at most {MAX_LABEL_CHARS}; write `@label(\"tainted\")` or `@label(\"a,b\")`"
                ),
            )),
        })
        .collect()
}

/// Actions such as `request: jwt = report`, separated by commas.
fn secrets(text: &str) -> Result<Vec<SecretAction>, Illegal> {
    let action = |part: &str| {
        let (phase, rest) = match part.split_once(':') {
            Some(("request", rest)) => (Some(Phase::Request), rest),
            Some(("response", rest)) => (Some(Phase::Response), rest),
            _ => (None, part),
        };
        let (rule, word) = match rest.split_once('=') {
            Some((rule, word)) => (Some(rule.trim()), word),
            None => (None, rest),
        };
        let treatment = match word.trim() {
            "allow" => SecretTreatment::Allow,
            "report" => SecretTreatment::Report,
            "redact" => SecretTreatment::Redact,
            "refuse" => SecretTreatment::Refuse,
            _ => return None,
        };
        let is_legal = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if rule.is_some_and(|rule| rule.is_empty() || !rule.chars().all(is_legal)) {
            return None;
        }
        Some(SecretAction { phase, rule: rule.map(str::to_owned), treatment })
    };
    let actions = text.split(',').map(str::trim);
    actions
        .map(|part| {
            action(part).ok_or_else(|| {
                illegal(
                    format!("`{}` is not an action for secrets", part.escape_debug()),
                    "write `allow`, `report`, `redact` or `refuse`, with a phase, a rule or both in \
                     front: `@secrets(\"response: redact, request: jwt = report\")`",
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(name: &str, text: &str) -> Result<Obligations, String> {
        let mut obligations = Obligations::default();
        obligations.take(name, text).map_err(|illegal| illegal.problem)?;
        Ok(obligations)
    }

    #[test]
    fn invalid_annotations_are_refused() {
        let rate = |text| take("rate", text).unwrap().rate.unwrap();
        assert_eq!((rate("10/1m").calls.get(), rate("10/1m").window.as_secs()), (10, 60));
        assert_eq!(rate(" 1 / 1h30m ").window.as_secs(), 5400);
        let redact = take("redact", "/a, /b/*/c,result:/d").unwrap().redact;
        assert_eq!((redact.arguments.len(), redact.result.len()), (2, 1));
        assert_eq!(take("label", "a, b-1").unwrap().labels.len(), 2);
        assert!(take("mode", "shadow").unwrap().shadow);
        let secrets = take("secrets", "redact, request: gitleaks:a-b = allow").unwrap().secrets;
        let action = |phase, rule: Option<&str>, treatment| SecretAction {
            phase,
            rule: rule.map(str::to_owned),
            treatment,
        };
        assert_eq!(
            secrets,
            [
                action(None, None, SecretTreatment::Redact),
                action(Some(Phase::Request), Some("gitleaks:a-b"), SecretTreatment::Allow),
            ]
        );
        for (name, text, problem) in [
            ("rate", "10", "`10` is not a rate"),
            ("rate", "0/1m", "`0/1m` is not a rate"),
            ("rate", "1/0s", "`1/0s` is not a rate"),
            ("rate", "1/-1m", "`1/-1m` is not a rate"),
            ("rate", "1/32d", "`1/32d` is not a rate"),
            ("rate", "1/month", "`1/month` is not a rate"),
            ("redact", "password", "`password` is not a field"),
            ("redact", "/a,,/b", "`` is not a field"),
            ("redact", "/a~2", "`/a~2` is not a field"),
            ("label", "Tainted", "`Tainted` is not a label"),
            ("label", "a b", "`a b` is not a label"),
            ("secrets", "off", "`off` is not an action for secrets"),
            ("secrets", "answer: redact", "`answer: redact` is not an action for secrets"),
            ("secrets", "= report", "`= report` is not an action for secrets"),
            ("mode", "audit", "`audit` is not a mode"),
            ("keep", "all", "`@keep` does not know `all`"),
            ("note", "a\nb", "the text has control characters or more than 1000 characters"),
        ] {
            assert_eq!(take(name, text), Err(problem.to_owned()), "{name} {text}");
        }
    }
}
