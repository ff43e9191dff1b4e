//! The data of a call in policies: its circumstances are the context, its arguments the tags of an
//! entity. They are built as values of Cedar's evaluator: evaluating expressions for them costs
//! more than the decision, and a time costs twice as much as everything else.
//!
//! INVARIANT: a value equals Cedar's value of its expression (the property tests of the index
//! compare every decision with plain Cedar, which gets expressions).

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwapOption;
use cedar_policy::{EntityUid, RestrictedExpression};
pub(super) use cedar_policy_core::{ast::Request as CoreRequest, entities::Entities};
use cedar_policy_core::{
    ast::{
        Context, Entity, EntityUID, EntityUIDEntry, ExtensionFunction, Literal, Name, PartialValue,
        Value,
    },
    entities::{NoEntitiesSchema, TCComputation},
    evaluator::RestrictedEvaluator,
    extensions::Extensions,
};
use jiff::{Timestamp, tz::TimeZone};
use quick_cache::sync::Cache;
use serde_json::{Map, Value as Json};
use smol_str::SmolStr;

use super::{
    conditions::ContextUsage,
    normalize::{self, Url},
    request::{Circumstances, Request},
    request_error::RequestError,
};
use portcullis_protocol::arguments::{self, Arguments};
use portcullis_protocol::exchange::{Revision, Transport};

/// Maximum number of cached client addresses, in Cedar's form.
const ADDRESSES: usize = 1024;

/// Converts calls to Cedar's values.
pub(super) struct Calls {
    args: CallEntity,
    paths: CallEntity,
    urls: CallEntity,
    lists: CallEntity,
    no_labels: Value,
    clock: Clock,
    ip: Function,
    addresses: Cache<IpAddr, Value>,
}

/// An entity with only the data of a call.
struct CallEntity {
    uid: EntityUID,
    value: Value,
}

type Function = &'static ExtensionFunction;

/// Principal, action and resource.
pub(super) type Uids = [EntityUIDEntry; 3];

/// Converts three uids.
pub(super) fn uids(uids: [EntityUid; 3]) -> Uids {
    uids.map(|uid| EntityUIDEntry::known(uid.into(), None))
}

impl Calls {
    /// Takes the uids of the entities whose tags are the arguments: as written, as paths, as URLs,
    /// and as lengths of arrays.
    pub(super) fn new([args, paths, urls, lists]: [EntityUid; 4]) -> Result<Self, RequestError> {
        let shown = |uid: EntityUid| {
            let uid = EntityUID::from(uid);
            CallEntity { value: Value::from(uid.clone()), uid }
        };
        Ok(Self {
            args: shown(args),
            paths: shown(paths),
            urls: shown(urls),
            lists: shown(lists),
            no_labels: Value::empty_set(None),
            clock: Clock::new()?,
            ip: function("ip")?,
            addresses: Cache::new(ADDRESSES),
        })
    }

    /// The complete request. Data that no policy reads is left out.
    ///
    /// Not checked against the schema: the part that does not depend on the call has been checked,
    /// and the context lacks data that no policy reads.
    pub(super) fn question(
        &self,
        [subject, action, resource]: Uids,
        input: Option<Value>,
        entities: Option<&Entities>,
        request: &Request<'_>,
        reads: ContextUsage,
    ) -> Result<(CoreRequest, Entities), RequestError> {
        let context = self.context(&request.circumstances, input, reads)?;
        let cedar_request = CoreRequest::new_unchecked(subject, action, resource, Some(context));
        let entities = entities.cloned().unwrap_or_default();
        if !reads.has(ContextUsage::ARGUMENTS) {
            return Ok((cedar_request, entities));
        }
        let shown = self.arguments(request, reads)?;
        // They have no ancestors, so the ancestors of the others need not be computed again.
        let entities = entities
            .add_entities(
                shown,
                None::<&NoEntitiesSchema>,
                TCComputation::AssumeAlreadyComputed,
                Extensions::all_available(),
            )
            .map_err(|_| RequestError::SchemaMismatch("set of entities"))?;
        Ok((cedar_request, entities))
    }

    fn context(
        &self,
        circumstances: &Circumstances<'_>,
        input: Option<Value>,
        reads: ContextUsage,
    ) -> Result<Context, RequestError> {
        let Circumstances { method, transport, revision, .. } = *circumstances;
        let mut shown = BTreeMap::new();
        let mut show = |name, value| shown.insert(SmolStr::new_static(name), value);
        if let Some(input) = input {
            show("input", input);
        }
        if reads.has(ContextUsage::METHOD) {
            show("method", Value::from(method));
        }
        if reads.has(ContextUsage::TRANSPORT) {
            show("transport", word(transport.map_or("", written)));
        }
        if reads.has(ContextUsage::REVISION) {
            show("revision", word(revision.map_or("", Revision::as_str)));
        }
        if reads.has(ContextUsage::SESSION_CALLS) {
            show("session_calls", long(circumstances.session_calls));
        }
        if reads.has(ContextUsage::ARGS | ContextUsage::SUMMARY) {
            show("args", self.args.value.clone());
        }
        if reads.has(ContextUsage::PATHS) {
            show("paths", self.paths.value.clone());
        }
        if reads.has(ContextUsage::URLS) {
            show("urls", self.urls.value.clone());
        }
        if reads.has(ContextUsage::LISTS) {
            show("lists", self.lists.value.clone());
        }
        if reads.has(ContextUsage::LABELS) {
            let none = circumstances.labels.is_empty();
            show("labels", if none { self.no_labels.clone() } else { texts(circumstances.labels) });
        }
        if reads.has(ContextUsage::NOW) {
            show("now", self.clock.at(circumstances.now)?);
            show("weekday", weekday(circumstances.now));
        }
        if let Some(address) = circumstances.source_ip
            && reads.has(ContextUsage::SOURCE_IP)
        {
            show("source_ip", self.address(address.to_canonical())?);
        }
        Ok(Context::Value(Arc::new(shown)))
    }

    fn address(&self, address: IpAddr) -> Result<Value, RequestError> {
        if let Some(cached) = self.addresses.get(&address) {
            return Ok(cached);
        }
        let created = call(self.ip, &[Value::from(address.to_string())])?;
        self.addresses.insert(address, created.clone());
        Ok(created)
    }

    /// The entities of the arguments that are read.
    fn arguments(
        &self,
        request: &Request<'_>,
        reads: ContextUsage,
    ) -> Result<Vec<Arc<Entity>>, RequestError> {
        // Leaves first: too many of them are refused before the whole text is read.
        let Arguments { leaves, lists } =
            request.args.map(Arguments::of).transpose()?.unwrap_or_default();
        arguments::exact(request.written)?;
        let mut shown = Vec::new();
        let texts = || leaves.iter().filter_map(|leaf| Some((leaf, leaf.text()?)));
        if reads.has(ContextUsage::PATHS) {
            let paths = texts()
                .map(|(leaf, text)| {
                    Ok((leaf.pointer.as_str().into(), Value::from(normalize::path(text)?)))
                })
                .collect::<Result<Vec<_>, RequestError>>()?;
            shown.push(self.paths.with(Vec::new(), paths));
        }
        if reads.has(ContextUsage::URLS) {
            let urls = texts()
                .filter_map(|(leaf, text)| Some((leaf.pointer.as_str().into(), Url::read(text)?)))
                .map(|(pointer, url)| (pointer, web(url)))
                .collect();
            shown.push(self.urls.with(Vec::new(), urls));
        }
        if reads.has(ContextUsage::LISTS) {
            let lengths =
                lists.into_iter().map(|list| (list.pointer.into(), long(list.length as u64)));
            shown.push(self.lists.with(Vec::new(), lengths.collect()));
        }
        if reads.has(ContextUsage::ARGS | ContextUsage::SUMMARY) {
            let summary = if reads.has(ContextUsage::SUMMARY) {
                summary(request.args, &leaves)
            } else {
                Vec::new()
            };
            let tags =
                leaves.into_iter().map(|leaf| (leaf.pointer.into(), Value::from(leaf.value)));
            shown.push(self.args.with(summary, tags.collect()));
        }
        Ok(shown)
    }
}

impl CallEntity {
    fn with(&self, attributes: Vec<(SmolStr, Value)>, tags: Vec<(SmolStr, Value)>) -> Arc<Entity> {
        let concrete = |(name, value)| (name, PartialValue::Value(value));
        Arc::new(Entity::new_with_attr_partial_value(
            self.uid.clone(),
            attributes.into_iter().map(concrete),
            HashSet::new(),
            HashSet::new(),
            tags.into_iter().map(concrete),
        ))
    }
}

/// The day of the week in UTC: 1 is Monday, 7 is Sunday.
fn weekday(now: Timestamp) -> Value {
    let day = now.to_zoned(TimeZone::UTC).weekday();
    Value::from(i64::from(day.to_monday_one_offset()))
}

/// The attributes that describe all arguments together.
fn summary(args: Option<&Map<String, Json>>, leaves: &[arguments::Leaf]) -> Vec<(SmolStr, Value)> {
    let size = leaves.iter().map(|leaf| leaf.value.len() as u64).sum();
    let keys = texts(args.into_iter().flat_map(Map::keys));
    let all = [("keys", keys), ("leaves", long(leaves.len() as u64)), ("size", long(size))];
    all.map(|(name, value)| (SmolStr::new_static(name), value)).into()
}

/// Times as values of Cedar. Cedar parses them from text, slowly: a second is parsed once, and the
/// rest is added to it.
struct Clock {
    datetime: Function,
    duration: Function,
    offset: Function,
    second: ArcSwapOption<(i64, Value)>,
    /// The durations below a second, by milliseconds.
    durations: Box<[OnceLock<Value>]>,
}

impl Clock {
    fn new() -> Result<Self, RequestError> {
        Ok(Self {
            datetime: function("datetime")?,
            duration: function("duration")?,
            offset: function("offset")?,
            second: ArcSwapOption::empty(),
            durations: (0..1000).map(|_| OnceLock::new()).collect(),
        })
    }

    fn at(&self, time: Timestamp) -> Result<Value, RequestError> {
        let time = time.as_millisecond();
        let (second, millis) = (time.div_euclid(1000), time.rem_euclid(1000));
        let cached = self.second.load();
        let began = match &*cached {
            Some(cached) if cached.0 == second => cached.1.clone(),
            _ => {
                let time = Timestamp::from_second(second);
                let time = time.map_err(|_| RequestError::SchemaMismatch("time"))?;
                let text = time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                let created = call(self.datetime, &[Value::from(text)])?;
                self.second.store(Some(Arc::new((second, created.clone()))));
                created
            }
        };
        let Some(slot) = self.durations.get(millis as usize).filter(|_| millis > 0) else {
            return Ok(began);
        };
        let duration = match slot.get() {
            Some(duration) => duration,
            None => {
                let created = call(self.duration, &[Value::from(format!("{millis}ms"))])?;
                slot.get_or_init(|| created)
            }
        };
        call(self.offset, &[began, duration.clone()])
    }
}

fn function(name: &str) -> Result<Function, RequestError> {
    let name = Name::parse_unqualified_name(name);
    let found = name.ok().and_then(|name| Extensions::all_available().func(&name).ok());
    found.ok_or(RequestError::SchemaMismatch("extension function"))
}

fn call(function: Function, args: &[Value]) -> Result<Value, RequestError> {
    match function.call(args) {
        Ok(PartialValue::Value(value)) => Ok(value),
        _ => Err(RequestError::SchemaMismatch("context")),
    }
}

/// The value of an expression that refers to no entity.
pub(super) fn value(expression: &RestrictedExpression) -> Result<Value, RequestError> {
    RestrictedEvaluator::new(Extensions::all_available())
        .interpret(expression.as_ref().as_borrowed())
        .map_err(|_| RequestError::SchemaMismatch("context"))
}

/// A text of a small fixed set.
fn word(word: &'static str) -> Value {
    Value::from(SmolStr::new_static(word))
}

fn texts<'t>(texts: impl IntoIterator<Item = &'t String>) -> Value {
    Value::set_of_lits(texts.into_iter().map(|text| Literal::from(text.as_str())), None)
}

fn long(value: u64) -> Value {
    Value::from(i64::try_from(value).unwrap_or(i64::MAX))
}

fn written(transport: Transport) -> &'static str {
    match transport {
        Transport::Http => "http",
        Transport::Unix => "unix",
        Transport::Stdio => "stdio",
        Transport::Cli => "cli",
    }
}

pub(super) fn web(url: Url) -> Value {
    let fields = [
        ("href", Value::from(url.href)),
        ("scheme", Value::from(url.scheme)),
        ("host", Value::from(url.host)),
        ("port", long(url.port.into())),
        ("path", Value::from(url.path)),
        ("login", Value::from(url.login)),
        ("verbatim", Value::from(url.verbatim)),
    ];
    Value::record(fields.map(|(name, value)| (SmolStr::new_static(name), value)), None)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn calls() -> Calls {
        let uid = |kind: &str| format!(r#"Portcullis::{kind}::"x""#).parse().unwrap();
        Calls::new(["Args", "Paths", "Urls", "Lists"].map(uid)).unwrap()
    }

    fn shown(calls: &Calls, now: Timestamp, source_ip: IpAddr) -> Result<Context, RequestError> {
        let labels = BTreeSet::new();
        let own = Circumstances::own(now);
        let circumstances =
            Circumstances { now, source_ip: Some(source_ip), labels: &labels, ..own };
        calls.context(&circumstances, None, ContextUsage::NOW | ContextUsage::SOURCE_IP)
    }

    #[test]
    fn times_and_addresses_match_cedars_parser() {
        let calls = calls();
        let times = [
            "2026-11-21T08:30:00Z",
            "2026-11-21T08:30:00.001Z",
            "2026-11-21T08:30:00.999999999Z",
            "2026-11-21T08:30:01.010Z",
            "2024-02-29T23:59:59.500Z",
            "1970-01-01T00:00:00Z",
            "1969-12-31T23:59:59.250Z",
            "0001-01-01T00:00:00.100Z",
            "9999-12-30T21:59:59.999Z",
        ];
        let addresses = ["10.1.2.3", "::1", "2001:db8::7", "::ffff:192.0.2.1", "0.0.0.0"];
        // The first pass builds the value, the second one takes it from the cache.
        for _ in 0..2 {
            for (time, address) in times.iter().flat_map(|t| addresses.map(|a| (t, a))) {
                let now: Timestamp = time.parse().unwrap();
                let address: IpAddr = address.parse().unwrap();
                let text = now.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
                let plain = cedar_policy::Context::from_pairs([
                    ("now".to_owned(), RestrictedExpression::new_datetime(text)),
                    ("weekday".to_owned(), RestrictedExpression::new_long(weekday_of(now))),
                    (
                        "source_ip".to_owned(),
                        RestrictedExpression::new_ip(address.to_canonical().to_string()),
                    ),
                ]);
                let shown = shown(&calls, now, address).unwrap();
                assert_eq!(cedar_policy::Context::from(shown), plain.unwrap(), "{time} {address}");
            }
        }
    }

    /// The day of the week by counting days since a Thursday.
    fn weekday_of(now: Timestamp) -> i64 {
        (now.as_millisecond().div_euclid(86_400_000) + 3).rem_euclid(7) + 1
    }

    #[test]
    fn time_outside_cedars_range_is_an_error() {
        let now = "-000004-01-01T00:00:00Z".parse().unwrap();
        let created = shown(&calls(), now, [127, 0, 0, 1].into());
        assert_eq!(created, Err(RequestError::SchemaMismatch("context")));
    }
}
