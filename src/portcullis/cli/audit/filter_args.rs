//! Selection of records: the filter language, and equivalent options.

use jiff::Zoned;

use crate::cli::{Reports, Usage};
use portcullis_audit::{Column, Filter, Query, record::Decision};

/// Help text about the language.
pub(in crate::cli) const LANGUAGE: &str = "\
Filters:
  client = ci-bot and (decision = refused or code in (policy-denied, rate-limited))
  tool ~ \"delete_*\" and not server = notes and time > 24h ago
  total > 200ms or response > 1MiB
  arguments contains \"/etc/passwd\"

  Fields are compared with =, !=, in (…), ~ (with * and ?), !~, contains, <, <=, >, >=; `has FIELD`
  asks for any value. Conditions are joined with and, or, not and parentheses. All fields are in
  docs/reference/audit-queries.md; `--fields help` lists them.";

/// A filter, and options that narrow it.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct FilterArgs {
    /// A filter, such as `client = ci-bot and time > 24h ago`
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// The client's name, `local:USER` or `anonymous`
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// The server's name
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// The tool's name on its server
    #[arg(long, value_name = "NAME")]
    tool: Option<String>,
    /// The method, such as `tools/call`
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// The decision
    #[arg(long, value_enum, value_name = "DECISION")]
    decision: Option<Decision>,
    /// The code of the refusal, such as `policy-denied`
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// The id of the rule that decided
    #[arg(long, value_name = "ID")]
    rule: Option<String>,
    /// A label that an interceptor added
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
    /// Start time: `2026-11-21T08:00:00Z`, or relative: `90m`, `24h`, `7d`
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End time, in the form of `--since`
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only decisions on messages, without events such as questions about the log
    #[arg(long)]
    calls: bool,
    /// Show intents even if their outcome is recorded
    #[arg(long)]
    intents: bool,
}

impl FilterArgs {
    /// Query of these options.
    pub fn query(self) -> anyhow::Result<Query> {
        let intents = self.intents;
        Ok(Query { filter: self.filter()?, intents, ..Query::default() })
    }

    /// Filter that combines all options.
    pub fn filter(self) -> anyhow::Result<Filter> {
        let now = Zoned::now();
        let text = self.filter.join(" ");
        let mut filter =
            Filter::parse(&text, &now).map_err(|illegal| Reports(vec![Box::new(illegal)]))?;
        if self.calls {
            filter = filter.and(
                Filter::parse("kind in (outcome, refused)", &now)
                    .map_err(|illegal| Reports(vec![Box::new(illegal)]))?,
            );
        }
        let decision = self.decision.map(|decision| match decision {
            Decision::Allowed => "allowed",
            Decision::Refused => "refused",
            Decision::Failed => "failed",
            Decision::Cancelled => "cancelled",
        });
        for (column, value) in [
            (Column::Client, self.client.as_deref()),
            (Column::Server, self.server.as_deref()),
            (Column::Tool, self.tool.as_deref()),
            (Column::Method, self.method.as_deref()),
            (Column::Decision, decision),
            (Column::Code, self.code.as_deref()),
            (Column::Rule, self.rule.as_deref()),
            (Column::Label, self.label.as_deref()),
        ] {
            if let Some(value) = value
                && let Some(more) = Filter::equals(column, value)
            {
                filter = filter.and(more);
            }
        }
        Ok(filter.and(self.times(&now)?))
    }

    /// Filter of the start and the end time alone.
    pub fn times(&self, now: &Zoned) -> anyhow::Result<Filter> {
        let mut filter =
            Filter::parse("", now).map_err(|illegal| Reports(vec![Box::new(illegal)]))?;
        for (name, sign, time) in [("since", ">=", &self.since), ("until", "<", &self.until)] {
            if let Some(time) = time {
                filter = filter.and(moment(sign, time, now).ok_or_else(|| {
                    Usage(format!(
                        "--{name} takes a time such as 2026-11-21T08:00:00Z, a day such as \
                         2026-11-21 or today, or a while ago such as 90m, 24h or 7d"
                    ))
                })?);
            }
        }
        Ok(filter)
    }

    /// Whether a start or an end time is given.
    pub fn uses_time(&self) -> bool {
        self.since.is_some() || self.until.is_some()
    }
}

/// Filter for an absolute time, or a relative time with or without `ago`.
fn moment(sign: &str, text: &str, now: &Zoned) -> Option<Filter> {
    let text = text.trim();
    // Only a value is valid here; other syntax belongs in a filter.
    if text.contains(['"', '(', ')', '\\']) {
        return None;
    }
    let read = |text: &str| Filter::parse(&format!("time {sign} \"{text}\""), now).ok();
    read(text).or_else(|| read(&format!("{text} ago")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_local_and_relative_times_are_parsed() {
        let now: Zoned = "2026-11-21T16:00:00+01:00[Europe/Berlin]".parse().unwrap();
        for (text, expected) in [
            ("2026-11-21T08:00:00Z", "time >= 2026-11-21T08:00:00Z"),
            ("90m", "time >= 2026-11-21T13:30:00Z"),
            ("24h ago", "time >= 2026-11-20T15:00:00Z"),
            ("7d", "time >= 2026-11-14T15:00:00Z"),
            ("1h30m", "time >= 2026-11-21T13:30:00Z"),
            ("2 weeks", "time >= 2026-11-07T15:00:00Z"),
            ("2026-11-21", "time >= 2026-11-20T23:00:00Z"),
            ("today", "time >= 2026-11-20T23:00:00Z"),
            ("2026-11-21T08:00", "time >= 2026-11-21T07:00:00Z"),
        ] {
            let found = moment(">=", text, &now).map(|filter| filter.to_string());
            assert_eq!(found.as_deref(), Some(expected), "{text}");
        }
        for nonsense in ["", "tomorrow", "5", "1x", "99999999999y", "1h\" or time < \"1h"] {
            assert_eq!(moment(">=", nonsense, &now), None, "{nonsense}");
        }
    }
}
