//! Aggregates of many records: counts by value, times and sizes. Each block of the store has stored
//! aggregates. Those of whole blocks are merged, so that the summary of a day reads only the
//! records at its edges.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{
    record::{Decision, Kind},
    store::{
        decision,
        index_terms::{Facts, Field},
        kind,
    },
};

/// Values of a field that are kept when there are too many. Up to twice as many are held.
const VALUES: usize = 2000;
/// Maximum number of servers with their own times.
const SERVERS: usize = 64;
/// Maximum number of tools with their own times.
const TOOLS: usize = 256;
/// Maximum number of timeline slots before their width doubles.
const SLOTS: usize = 1500;

/// Number of records, and the number of refused ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// All records.
    pub all: u64,
    /// Records with the decision `refused`.
    pub refused: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.all = self.all.saturating_add(other.all);
        self.refused = self.refused.saturating_add(other.refused);
    }
}

/// Counts by value. If there are too many values (a client can invent names of tools), the rarest
/// are counted together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(serialize = "K: Serialize", deserialize = "K: Deserialize<'de>"))]
pub struct Counts<K: Ord = String> {
    #[serde(with = "pairs")]
    by: BTreeMap<K, Count>,
    others: Count,
    /// Whether `by` lacks some values.
    cut: bool,
}

/// Maps serialized as lists of pairs: JSON only has text keys.
mod pairs {
    use super::*;

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Vec::deserialize(deserializer).map(BTreeMap::from_iter)
    }
}

impl<K: Ord + Clone> Counts<K> {
    pub(super) fn add(&mut self, value: K, count: Count) {
        self.by.entry(value).or_default().add(count);
        if self.by.len() > 2 * VALUES {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let mut sizes: Vec<u64> = self.by.values().map(|count| count.all).collect();
        let (_, &mut least, _) = sizes.select_nth_unstable_by(VALUES, |a, b| b.cmp(a));
        let mut remaining = VALUES;
        self.cut = true;
        let (by, others) = (&mut self.by, &mut self.others);
        by.retain(|_, count| {
            let keep = count.all >= least && remaining > 0;
            if keep {
                remaining -= 1;
            } else {
                others.add(*count);
            }
            keep
        });
    }

    fn merge(&mut self, other: &Self) {
        for (value, count) in &other.by {
            match self.by.get_mut(value) {
                Some(mine) => mine.add(*count),
                None => self.add(value.clone(), *count),
            }
        }
        self.others.add(other.others);
        self.cut |= other.cut;
    }

    /// Every value in any of the records, including values with a count of 0. `None` if some values
    /// were cut.
    pub(super) fn values(&self) -> Option<impl Iterator<Item = &K>> {
        (!self.cut).then(|| self.by.keys())
    }

    /// Counts by value, in the order of values.
    pub fn iter(&self) -> impl Iterator<Item = (&K, Count)> {
        self.by.iter().map(|(value, count)| (value, *count))
    }

    /// Count of all values without their own count.
    pub fn others(&self) -> Count {
        self.others
    }

    /// Count of one value, if it has its own count.
    pub fn get(&self, value: &K) -> Count {
        self.by.get(value).copied().unwrap_or_default()
    }

    /// The most frequent values, and the count of all others.
    pub fn top(&self, most: usize) -> (Vec<(&K, Count)>, Count) {
        let mut all: Vec<_> = self.iter().filter(|(_, count)| count.all > 0).collect();
        all.sort_by(|(a, x), (b, y)| y.all.cmp(&x.all).then_with(|| a.cmp(b)));
        let rest = all.split_off(most.min(all.len()));
        let mut others = self.others;
        rest.into_iter().for_each(|(_, count)| others.add(count));
        (all, others)
    }

    /// Number of values with their own count.
    pub fn len(&self) -> usize {
        self.by.values().filter(|count| count.all > 0).count()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.others == Count::default()
    }
}

/// Histogram of durations in microseconds, to two significant digits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Times(Option<Histogram<u32>>);

/// Maximum duration: a day. Longer durations are counted as this one.
const LONGEST: u64 = 86_400_000_000;

impl Times {
    fn record(&mut self, micros: u64, times: u32) {
        if self.0.is_none() {
            // The range grows automatically. Two digits are a valid precision.
            self.0 = Histogram::new(2).ok();
        }
        if let Some(histogram) = &mut self.0 {
            // Cannot fail: the histogram has no upper bound.
            let _ = histogram.record_n(micros.clamp(1, LONGEST), times);
        }
    }

    fn merge(&mut self, other: &Self) {
        match (&mut self.0, &other.0) {
            (Some(mine), Some(other)) => {
                // Cannot fail, for the same reason.
                let _ = mine.add(other);
            }
            (None, Some(other)) => self.0 = Some(other.clone()),
            (_, None) => {}
        }
    }

    /// Number of measured durations.
    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, Histogram::len)
    }

    /// Bounds of the durations, not tighter than the exact ones.
    pub(super) fn range(&self) -> Option<(u64, u64)> {
        let histogram = self.0.as_ref().filter(|histogram| !histogram.is_empty())?;
        let most = histogram.max();
        let most = if most >= LONGEST { u64::MAX } else { most };
        // A duration of zero is counted as one microsecond.
        let least = if histogram.min() <= 1 { 0 } else { histogram.min() };
        Some((least, most))
    }

    /// Quantile in microseconds; `share` is from 0 to 1.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let histogram = self.0.as_ref()?;
        Some(histogram.value_at_quantile(share).min(histogram.max()))
    }
}

/// Serialized as steps: the difference to the preceding value, and the count.
impl Serialize for Times {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut before = 0;
        let recorded = self.0.iter().flat_map(|histogram| histogram.iter_recorded());
        let steps: Vec<(u64, u32)> = recorded
            .map(|step| {
                let up = step.value_iterated_to() - before;
                before = step.value_iterated_to();
                (up, step.count_at_value())
            })
            .collect();
        steps.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Times {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut times = Self::default();
        let mut value: u64 = 0;
        for (up, count) in Vec::<(u64, u32)>::deserialize(deserializer)? {
            value = value.saturating_add(up);
            times.record(value, count);
        }
        Ok(times)
    }
}

/// Counts by time. Begins with one slot per minute; the width doubles if there are too many slots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Binary logarithm of the slot width in minutes.
    #[serde(deserialize_with = "power")]
    power: u8,
    /// Counts by the number of the slot since 1970.
    slots: BTreeMap<u32, Count>,
}

impl Timeline {
    pub(super) fn add(&mut self, at: Timestamp, count: Count) {
        let minute = u32::try_from(at.as_second().max(0) / 60).unwrap_or(u32::MAX);
        self.slots.entry(minute >> self.power).or_default().add(count);
        self.widen(self.power);
    }

    fn merge(&mut self, other: &Self) {
        self.widen(other.power);
        let shift = self.power - other.power;
        for (slot, count) in &other.slots {
            self.slots.entry(slot >> shift).or_default().add(*count);
        }
        self.widen(self.power);
    }

    /// Widens slots to at least this power, and further while there are too many.
    fn widen(&mut self, least: u8) {
        while self.power < least || (self.slots.len() > SLOTS && self.power < WIDEST) {
            self.power += 1;
            for (slot, count) in std::mem::take(&mut self.slots) {
                self.slots.entry(slot >> 1).or_default().add(count);
            }
        }
    }

    /// Width of a slot in seconds.
    pub fn width(&self) -> i64 {
        60 << self.power
    }

    /// Start of each nonempty slot, in seconds since 1970, and its count.
    pub fn iter(&self) -> impl Iterator<Item = (i64, Count)> {
        self.slots.iter().map(|(slot, count)| (i64::from(*slot) * self.width(), *count))
    }
}

/// Power at which all time since 1970 is one slot.
const WIDEST: u8 = 31;

fn power<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let power = u8::deserialize(deserializer)?;
    if power > WIDEST {
        return Err(D::Error::custom("a timeline with slots of more than all time"));
    }
    Ok(power)
}

/// Aggregates of many records. `kinds`, `events`, `summarized` and the sizes count every record.
/// Other fields count only decisions on messages, once each: by the outcome or the refusal, not by
/// the intent or by events.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Aggregates {
    pub(super) records: u64,
    pub(super) kinds: Counts,
    pub(super) principals: Counts,
    pub(super) servers: Counts,
    /// Counts by server and tool name.
    pub(super) tools: Counts<(String, String)>,
    pub(super) methods: Counts,
    pub(super) decisions: Counts,
    pub(super) codes: Counts,
    pub(super) rules: Counts,
    pub(super) labels: Counts,
    pub(super) events: Counts,
    /// Refusals without their own records, by code.
    pub(super) summarized: Counts,
    pub(super) total: Times,
    /// Time that the servers took, a part of the total.
    pub(super) server: Times,
    pub(super) by_server: BTreeMap<String, Times>,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) timeline: Timeline,
    /// Times of servers by server and tool name. The last field: see [`Aggregates::decode`].
    #[serde(with = "pairs")]
    pub(super) by_tool: BTreeMap<(String, String), Times>,
}

impl Aggregates {
    /// Reads stored aggregates. Those of earlier versions lack the last field.
    ///
    /// # Errors
    /// The bytes are not aggregates.
    pub(crate) fn decode(bytes: &[u8]) -> postcard::Result<Self> {
        postcard::from_bytes(bytes).or_else(|error| {
            let no_tools = [bytes, &[0]].concat();
            postcard::from_bytes(&no_tools).map_err(|_| error)
        })
    }

    /// Counts by decision.
    pub fn decisions(&self) -> &Counts {
        &self.decisions
    }

    /// Counts a record.
    pub(crate) fn add(&mut self, recorded: Timestamp, facts: &Facts) {
        let first = |wanted| facts.term(wanted);
        let decided = first(Field::Decision);
        let refused = decided == Some(decision(Decision::Refused));
        let one = Count { all: 1, refused: u64::from(refused) };
        self.records += 1;
        self.request_bytes = self.request_bytes.saturating_add(facts.request_bytes.unwrap_or(0));
        let decides = [Kind::Outcome, Kind::Refused].map(kind).map(Some);
        let decides = decides.contains(&first(Field::Kind));
        if let Some(kind) = first(Field::Kind) {
            self.kinds.add(kind.to_owned(), one);
        }
        if let (Some(count), Some(code)) = (facts.summarized, first(Field::Code)) {
            self.summarized.add(code.to_owned(), Count { all: count, refused: count });
        }
        // Values of other records are kept with a count of 0, so that `values` is complete.
        let counted = if decides { one } else { Count::default() };
        self.response_bytes = self.response_bytes.saturating_add(facts.response_bytes.unwrap_or(0));
        for (field, value) in &facts.terms {
            let counts = match field {
                Field::Principal => &mut self.principals,
                Field::Server => &mut self.servers,
                Field::Method => &mut self.methods,
                Field::Decision => &mut self.decisions,
                Field::Code => &mut self.codes,
                Field::Rule => &mut self.rules,
                Field::Event => {
                    self.events.add(value.to_string(), one);
                    continue;
                }
                Field::Label => &mut self.labels,
                Field::Tool => {
                    let server = first(Field::Server).unwrap_or_default().to_owned();
                    self.tools.add((server, value.to_string()), counted);
                    continue;
                }
                Field::Kind | Field::Id | Field::Trace | Field::Session | Field::Target => continue,
            };
            counts.add(value.to_string(), counted);
        }
        if decides {
            self.add_times(facts);
            self.timeline.add(recorded, one);
        }
    }

    /// Adds the times of a record.
    pub(super) fn add_times(&mut self, facts: &Facts) {
        if let Some(micros) = facts.total_us {
            self.total.record(micros, 1);
        }
        if let Some(micros) = facts.server_us {
            self.server.record(micros, 1);
            if let Some(name) = facts.term(Field::Server) {
                if let Some(times) = self.by_server.get_mut(name) {
                    times.record(micros, 1);
                } else if self.by_server.len() < SERVERS {
                    self.by_server.entry(name.to_owned()).or_default().record(micros, 1);
                }
                if let Some(tool) = facts.term(Field::Tool) {
                    let key = (name.to_owned(), tool.to_owned());
                    if self.by_tool.len() < TOOLS || self.by_tool.contains_key(&key) {
                        self.by_tool.entry(key).or_default().record(micros, 1);
                    }
                }
            }
        }
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.records = self.records.saturating_add(other.records);
        for (mine, other) in [
            (&mut self.kinds, &other.kinds),
            (&mut self.principals, &other.principals),
            (&mut self.servers, &other.servers),
            (&mut self.methods, &other.methods),
            (&mut self.decisions, &other.decisions),
            (&mut self.codes, &other.codes),
            (&mut self.rules, &other.rules),
            (&mut self.labels, &other.labels),
            (&mut self.events, &other.events),
            (&mut self.summarized, &other.summarized),
        ] {
            mine.merge(other);
        }
        self.tools.merge(&other.tools);
        self.total.merge(&other.total);
        self.server.merge(&other.server);
        for (name, times) in &other.by_server {
            if let Some(mine) = self.by_server.get_mut(name) {
                mine.merge(times);
            } else if self.by_server.len() < SERVERS {
                self.by_server.insert(name.clone(), times.clone());
            }
        }
        for (key, times) in &other.by_tool {
            if let Some(mine) = self.by_tool.get_mut(key) {
                mine.merge(times);
            } else if self.by_tool.len() < TOOLS {
                self.by_tool.insert(key.clone(), times.clone());
            }
        }
        self.request_bytes = self.request_bytes.saturating_add(other.request_bytes);
        self.response_bytes = self.response_bytes.saturating_add(other.response_bytes);
        self.timeline.merge(&other.timeline);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_795_248_000 + second).unwrap()
    }

    fn facts(terms: &[(Field, &str)]) -> Facts {
        let terms = terms.iter().map(|(field, value)| (*field, (*value).into())).collect();
        Facts { terms, ..Facts::default() }
    }

    fn call(client: &str, tool: &str, micros: u64) -> Facts {
        let terms = [
            (Field::Kind, "outcome"),
            (Field::Principal, client),
            (Field::Server, "notes"),
            (Field::Tool, tool),
            (Field::Decision, "allowed"),
        ];
        Facts { total_us: Some(micros), server_us: Some(micros / 2), ..facts(&terms) }
    }

    #[test]
    fn decision_is_counted_once() {
        let mut tally = Aggregates::default();
        let intent = [(Field::Kind, "intent"), (Field::Principal, "dev")];
        tally.add(at(0), &Facts { request_bytes: Some(41), ..facts(&intent) });
        tally.add(at(1), &Facts { response_bytes: Some(7), ..call("dev", "read", 2000) });
        let refused = [
            (Field::Kind, "refused"),
            (Field::Principal, "dev"),
            (Field::Decision, "refused"),
            (Field::Code, "policy-denied"),
            (Field::Rule, "no-destructive"),
        ];
        tally.add(at(60), &facts(&refused));
        let event = [
            (Field::Kind, "event"),
            (Field::Event, "refusals-summarized"),
            (Field::Principal, "dev"),
            (Field::Server, "notes"),
            (Field::Decision, "refused"),
            (Field::Code, "malformed"),
        ];
        tally.add(at(61), &Facts { summarized: Some(900), ..facts(&event) });
        assert_eq!(tally.records, 4);
        assert_eq!(tally.servers.get(&"notes".into()), Count { all: 1, refused: 0 });
        assert_eq!(tally.summarized.get(&"malformed".into()), Count { all: 900, refused: 900 });
        assert_eq!(tally.codes.get(&"malformed".into()), Count::default());
        assert_eq!(tally.principals.get(&"dev".into()), Count { all: 2, refused: 1 });
        assert_eq!(tally.rules.get(&"no-destructive".into()), Count { all: 1, refused: 1 });
        assert_eq!(tally.kinds.get(&"intent".into()).all, 1);
        assert_eq!(tally.events.get(&"refusals-summarized".into()).all, 1);
        assert_eq!(tally.tools.get(&("notes".into(), "read".into())).all, 1);
        assert_eq!((tally.request_bytes, tally.response_bytes), (41, 7));
        let slots: Vec<_> = tally.timeline.iter().map(|(slot, count)| (slot, count.all)).collect();
        assert_eq!(slots, [(1_795_248_000, 1), (1_795_248_060, 1)]);
    }

    #[test]
    fn quantiles_are_within_one_percent() {
        let mut tally = Aggregates::default();
        for micros in 1..=1000 {
            tally.add(at(0), &call("dev", "read", micros * 1000));
        }
        for (share, micros) in [(0.5, 500_000.0), (0.99, 990_000.0), (1.0, 1_000_000.0)] {
            let found = tally.total.quantile(share).unwrap() as f64;
            assert!((found / micros - 1.0).abs() < 0.01, "{share}: {found}");
        }
        assert_eq!(tally.by_server["notes"].count(), 1000);
        tally.add(at(0), &call("dev", "write", 8000));
        let of = |tool: &str| &tally.by_tool[&("notes".to_owned(), tool.to_owned())];
        assert_eq!((of("read").count(), of("write").count()), (1000, 1));
        assert!(of("write").quantile(0.95).unwrap().abs_diff(4000) < 40);
        assert_eq!(Times::default().quantile(0.5), None);
    }

    #[test]
    fn invented_names_do_not_displace_used_ones() {
        let mut tally = Aggregates::default();
        let mut calls = 0;
        for round in 0..10 {
            let mut block = Aggregates::default();
            for n in 0..1500 {
                block.add(at(n), &call("evil", &format!("tool-{round}-{n}"), 1));
                block.add(at(n), &call("dev", "read", 1));
                calls += 2;
            }
            tally.merge(&block);
        }
        assert_eq!(tally.tools.get(&("notes".into(), "read".into())).all, 15_000);
        assert!(tally.tools.iter().count() <= 2 * VALUES);
        let total: u64 = tally.tools.iter().map(|(_, count)| count.all).sum();
        assert_eq!(total + tally.tools.others().all, calls);
    }

    #[test]
    fn timeline_of_years_is_limited() {
        let mut timeline = Timeline::default();
        for hour in 0..30_000 {
            timeline.add(at(hour * 3600), Count { all: 1, refused: 0 });
        }
        assert!(timeline.slots.len() <= SLOTS);
        assert_eq!(timeline.iter().map(|(_, count)| count.all).sum::<u64>(), 30_000);
        let mut other = Timeline::default();
        other.add(at(0), Count { all: 5, refused: 0 });
        other.merge(&timeline);
        assert_eq!(other.iter().next().map(|(_, count)| count.all), {
            let first = timeline.iter().next();
            first.map(|(_, count)| count.all + 5)
        });
    }

    fn records() -> impl Strategy<Value = Vec<(u8, u8, u64, u32)>> {
        proptest::collection::vec(
            (0..5_u8, 0..5_u8, 0..10_000_000_000_u64, 0..1_000_000_u32),
            0..60,
        )
    }

    fn tally(records: &[(u8, u8, u64, u32)]) -> Aggregates {
        let mut tally = Aggregates::default();
        for (client, tool, micros, second) in records {
            let facts = call(&format!("c{client}"), &format!("t{tool}"), *micros);
            tally.add(at(i64::from(*second)), &facts);
        }
        tally
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn merged_parts_equal_the_whole(records in records(), cut in any::<prop::sample::Index>()) {
            let (left, right) = records.split_at(cut.index(records.len() + 1));
            let mut merged = tally(left);
            merged.merge(&tally(right));
            prop_assert_eq!(merged, tally(&records));
        }

        #[test]
        fn aggregates_round_trip(records in records()) {
            let tally = tally(&records);
            let bytes = postcard::to_allocvec(&tally).unwrap();
            prop_assert_eq!(&Aggregates::decode(&bytes).unwrap(), &tally);
            let earlier = Aggregates { by_tool: BTreeMap::new(), ..tally };
            let bytes = postcard::to_allocvec(&earlier).unwrap();
            prop_assert_eq!(Aggregates::decode(&bytes[..bytes.len() - 1]).unwrap(), earlier);
        }
    }
}
