//! Values of a record in each column.

use std::{borrow::Cow, net::IpAddr};

use jiff::Timestamp;
use serde_json::Value;

use super::filter::{Column, Compare, Expr, Filter, Test, Type};
use crate::{
    record::{AdminAction, Direction, Entry, Event, KeptBody, Record, Transport},
    store::{decision, kind},
};

/// Values of one column.
type Values<'a> = Vec<Cow<'a, str>>;

impl Column {
    /// Texts of a record in this column, in the order of the record. A number, a time or JSON gives
    /// its one text form.
    pub fn values(self, entry: &Entry) -> Values<'_> {
        let record = &entry.record;
        let call = record.call();
        match self {
            Self::Time => vec![entry.recorded.to_string().into()],
            Self::Day => vec![day(entry.recorded).into()],
            Self::Hour => vec![hour(entry.recorded).into()],
            Self::Id => vec![record.id().to_string().into()],
            Self::Kind => vec![kind(record.kind()).into()],
            Self::Event => many(record.event()),
            Self::Decision => many(record.decision().map(decision)),
            Self::Code => many(record.code()),
            Self::Refusal => {
                let refusal = record.refusal();
                let shown = refusal.map(|refusal| refusal.message.as_str());
                many(shown.into_iter().chain(refusal.and_then(|refusal| refusal.detail.as_deref())))
            }
            Self::Client => many(record.principal()),
            Self::User => many(user(record)),
            Self::Group => {
                call.map(|call| many(call.groups.iter().map(String::as_str))).unwrap_or_default()
            }
            Self::Key => many(call.and_then(|call| call.key_id.as_deref())),
            Self::Addr => {
                let addr = call.and_then(|call| call.client_addr);
                let addr = addr.map(|addr| addr.ip().to_canonical().to_string().into());
                let network = record.refusals().and_then(|group| group.network.as_deref());
                addr.or(network.map(Cow::Borrowed)).into_iter().collect()
            }
            Self::Transport => many(call.map(|call| transport(call.transport))),
            Self::Session => many(record.session()),
            Self::Trace => many(call.and_then(|call| call.trace.as_deref())),
            Self::Server => many(record.server()),
            Self::Image => many(call.and_then(|call| call.image.as_deref())),
            Self::Tool => many(record.tool()),
            Self::Pin => many(call.and_then(|call| call.pin.as_deref())),
            Self::Target => many(record.target()),
            Self::Method => many(call.and_then(|call| call.method.as_deref())),
            Self::Direction => many(call.map(|call| match call.direction {
                Direction::ClientToServer => "client-to-server",
                Direction::ServerToClient => "server-to-client",
            })),
            Self::Revision => many(call.and_then(|call| call.revision.as_deref())),
            Self::Rule => rules(record),
            Self::Finding => {
                let findings = record.grounds().into_iter().flat_map(|grounds| &grounds.findings);
                many(findings.map(|finding| finding.message.as_str()))
            }
            Self::Policy => many(record.grounds().and_then(|g| g.policy_revision.as_deref())),
            Self::Label => {
                call.map(|call| many(call.labels.iter().map(String::as_str))).unwrap_or_default()
            }
            Self::Seq | Self::Total | Self::Upstream | Self::Request | Self::Response => {
                let number = self.number(entry);
                number.map(|number| number.to_string().into()).into_iter().collect()
            }
            Self::Arguments | Self::Result => {
                let kept = self.kept_body(record).and_then(|kept| kept.body.as_ref());
                kept.map(|body| body.to_string().into()).into_iter().collect()
            }
            Self::Text => serde_json::to_string(entry).map(Cow::from).into_iter().collect(),
        }
    }

    /// Number of a record in this column: microseconds, bytes, or a position.
    pub fn number(self, entry: &Entry) -> Option<u64> {
        let record = &entry.record;
        match self {
            Self::Seq => Some(entry.seq.0),
            Self::Total => record.timing().map(|timing| timing.total_us),
            Self::Upstream => record.timing().and_then(|timing| timing.server_us),
            Self::Request => match record {
                Record::Intent(intent) => Some(intent.request.bytes),
                Record::Refused(refused) => refused.request.as_ref().map(|body| body.bytes),
                Record::Outcome(_) | Record::Event(_) => None,
            },
            Self::Response => match record {
                Record::Outcome(outcome) => outcome.response.as_ref().map(|body| body.bytes),
                _ => None,
            },
            _ => None,
        }
    }

    /// Value of a record in this column as JSON: a list if the column can have several values.
    pub fn json(self, entry: &Entry) -> Value {
        let texts = self.values(entry);
        match (self, self.ty()) {
            (several, _) if several.has_several() => {
                texts.into_iter().map(Cow::into_owned).collect()
            }
            (_, Type::Duration | Type::Bytes | Type::Number) => self.number(entry).into(),
            (Self::Text, _) => serde_json::to_value(entry).unwrap_or_default(),
            (_, Type::Body) => {
                self.kept_body(&entry.record).and_then(|kept| kept.body.clone()).unwrap_or_default()
            }
            _ => texts.into_iter().next().map(Cow::into_owned).into(),
        }
    }

    /// Whether one record can have several values in this column.
    pub fn has_several(self) -> bool {
        matches!(self, Self::Refusal | Self::Group | Self::Rule | Self::Finding | Self::Label)
    }

    fn kept_body(self, record: &Record) -> Option<&KeptBody> {
        match (self, record) {
            (Self::Arguments, Record::Intent(_) | Record::Refused(_))
            | (Self::Result, Record::Outcome(_)) => record.kept_body(),
            _ => None,
        }
    }

    fn contains(self, entry: &Entry, fits: &mut impl FnMut(&str) -> bool) -> bool {
        match self {
            Self::Text => serde_json::to_value(entry).is_ok_and(|value| any_text(&value, fits)),
            Self::Arguments | Self::Result => {
                let kept = self.kept_body(&entry.record).and_then(|kept| kept.body.as_ref());
                kept.is_some_and(|body| any_text(body, fits))
            }
            _ => self.values(entry).iter().any(|text| fits(text)),
        }
    }
}

fn many<'a>(texts: impl IntoIterator<Item = &'a str>) -> Values<'a> {
    texts.into_iter().map(Cow::Borrowed).collect()
}

/// Address of the client. For refusals that share an id, the first address of their network.
fn address(record: &Record) -> Option<IpAddr> {
    let network = record.refusals().and_then(|group| group.network.as_deref());
    let network = network.and_then(|network| network.split('/').next()?.parse().ok());
    record.call().and_then(|call| call.client_addr).map(|addr| addr.ip()).or(network)
}

/// Day of a time, in the format of the column.
pub(super) fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}

/// Hour of a time, in the format of the column.
pub(super) fn hour(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H").to_string()
}

fn transport(transport: Transport) -> &'static str {
    match transport {
        Transport::Http => "http",
        Transport::Unix => "unix",
        Transport::Stdio => "stdio",
        Transport::Cli => "cli",
    }
}

/// Prefix of a local user's principal name.
pub(super) const LOCAL: &str = "local:";

fn user(record: &Record) -> Option<&str> {
    if let Record::Event(event) = record
        && let Event::AdminAction(AdminAction { user, .. }) = &event.what
    {
        return user.as_deref();
    }
    record.principal()?.strip_prefix(LOCAL)
}

/// Ids of rules that decided or found something, without duplicates.
fn rules(record: &Record) -> Values<'_> {
    let mut ids: Vec<&str> = Vec::new();
    if let Some(grounds) = record.grounds() {
        for rule in grounds.decisive() {
            if !ids.contains(&rule.id.as_str()) {
                ids.push(&rule.id);
            }
        }
    }
    many(ids)
}

/// Whether any text in a JSON value, including names of members, fits. The parser of records bounds
/// the recursion depth.
fn any_text(value: &Value, fits: &mut impl FnMut(&str) -> bool) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(_) | Value::Number(_) => fits(&value.to_string()),
        Value::String(text) => fits(text),
        Value::Array(items) => items.iter().any(|item| any_text(item, fits)),
        Value::Object(members) => {
            members.iter().any(|(name, member)| fits(name) || any_text(member, fits))
        }
    }
}

impl Filter {
    /// Whether a record matches the filter.
    pub fn matches(&self, entry: &Entry) -> bool {
        holds(self.expr(), entry)
    }

    /// Whether the filter tests the kind of record, or fields that only intents have. Then intents
    /// are shown even if their outcomes are recorded.
    pub fn asks_for_intents(&self) -> bool {
        let mut asks = false;
        self.expr().tests(&mut |test| {
            let column = test.column();
            asks |= matches!(column, Column::Kind | Column::Arguments | Column::Request);
        });
        asks
    }
}

pub(super) fn holds(expr: &Expr, entry: &Entry) -> bool {
    match expr {
        Expr::And(parts) => parts.iter().all(|part| holds(part, entry)),
        Expr::Or(parts) => parts.iter().any(|part| holds(part, entry)),
        Expr::Not(part) => !holds(part, entry),
        Expr::Test(test) => test_holds(test, entry),
    }
}

fn test_holds(test: &Test, entry: &Entry) -> bool {
    match test {
        Test::In(column, wanted) => {
            column.values(entry).iter().any(|value| wanted.iter().any(|wanted| wanted == value))
        }
        Test::Like(column, pattern) | Test::Contains(column, pattern) => {
            column.contains(entry, &mut |text| pattern.fits(text))
        }
        Test::Number(column, compare, wanted) => {
            column.number(entry).is_some_and(|number| compare.holds(&number, wanted))
        }
        Test::Time(compare, wanted) => compare.holds(&entry.recorded, wanted),
        Test::Address(networks) => {
            let addr = address(&entry.record);
            addr.is_some_and(|addr| networks.iter().any(|network| network.has(addr)))
        }
        Test::Has(column) => match column {
            Column::Arguments | Column::Result => column.kept_body(&entry.record).is_some(),
            column => !column.values(entry).is_empty(),
        },
    }
}

/// Times from which (inclusive) and until which (exclusive) records can match.
pub(super) fn window(expr: &Expr) -> (Option<Timestamp>, Option<Timestamp>) {
    let after = |time: Timestamp| time.checked_add(jiff::SignedDuration::from_nanos(1)).ok();
    match expr {
        Expr::Test(Test::Time(compare, time)) => match compare {
            Compare::Less => (None, Some(*time)),
            Compare::AtMost => (None, after(*time)),
            Compare::More | Compare::AtLeast => (Some(*time), None),
            Compare::Equal => (Some(*time), after(*time)),
        },
        Expr::And(parts) => parts.iter().map(window).fold((None, None), |(since, until), part| {
            let until = match (until, part.1) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            // `None` is less than any time.
            (since.max(part.0), until)
        }),
        _ => (None, None),
    }
}

/// First and last `seq` at which records can match.
pub(super) fn seq_range(expr: &Expr) -> (u64, u64) {
    match expr {
        Expr::Test(Test::Number(Column::Seq, compare, seq)) => match compare {
            Compare::Less => (0, seq.saturating_sub(1)),
            Compare::AtMost => (0, *seq),
            Compare::More => (seq.saturating_add(1), u64::MAX),
            Compare::AtLeast => (*seq, u64::MAX),
            Compare::Equal => (*seq, *seq),
        },
        Expr::And(parts) => parts
            .iter()
            .map(seq_range)
            .fold((0, u64::MAX), |(first, last), part| (first.max(part.0), last.min(part.1))),
        _ => (0, u64::MAX),
    }
}
