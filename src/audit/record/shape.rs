//! Shape of arguments and results: their members and types, never their values. It is computed
//! while parsing, so that a large result is not built in memory.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    fmt,
};

use serde::{
    Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use super::v1::Shape;
use crate::digest::DigestKey;

/// Maximum number of members of a shape; further ones are counted.
const MEMBERS: usize = 48;
/// Maximum depth.
const DEPTH: usize = 6;
/// Maximum number of visited values, for huge arrays.
const VISITS: usize = 4096;
/// Maximum length of a shown key.
const KEY: usize = 64;
/// Maximum number of property names collected from a schema.
const NAMES: usize = 1024;
/// Maximum number of visited values of a schema.
const NODES: usize = 20_000;

/// Members that MCP itself names in parameters, results and errors: they contain no data.
const PROTOCOL: &[&str] = &[
    "_meta",
    "action",
    "annotations",
    "argument",
    "arguments",
    "audience",
    "blob",
    "capabilities",
    "clientInfo",
    "code",
    "completion",
    "content",
    "contents",
    "context",
    "costPriority",
    "cursor",
    "data",
    "description",
    "elicitationId",
    "elicitations",
    "hasMore",
    "hints",
    "icons",
    "includeContext",
    "inputRequests",
    "inputResponses",
    "inputSchema",
    "instructions",
    "intelligencePriority",
    "isError",
    "lastModified",
    "level",
    "logger",
    "maxTokens",
    "message",
    "messages",
    "method",
    "mimeType",
    "mode",
    "model",
    "modelPreferences",
    "name",
    "nextCursor",
    "notifications",
    "outputSchema",
    "params",
    "priority",
    "progress",
    "progressToken",
    "prompts",
    "protocolVersion",
    "reason",
    "ref",
    "requestId",
    "requestState",
    "requestedSchema",
    "required",
    "resource",
    "resourceTemplates",
    "resources",
    "resultType",
    "role",
    "roots",
    "serverInfo",
    "size",
    "speedPriority",
    "status",
    "stopReason",
    "stopSequences",
    "structuredContent",
    "supportedVersions",
    "systemPrompt",
    "task",
    "taskId",
    "temperature",
    "text",
    "title",
    "toolChoice",
    "tools",
    "total",
    "ttl",
    "type",
    "uri",
    "uriTemplate",
    "url",
    "values",
    "version",
];

/// Shape of an object in a deserializer, and the number of omitted members. Keys that a schema
/// declares or MCP names are shown; other keys are replaced by keyed digests.
pub(super) fn of<'de>(
    value: impl Deserializer<'de>,
    names: Option<&HashSet<String>>,
    key: &DigestKey,
) -> (Shape, u32) {
    let mut walk = Walk { names, key, types: BTreeMap::new(), visits: 0, omitted: 0 };
    // The top is always an object and is not listed.
    let top = At { walk: &mut walk, at: String::new(), depth: DEPTH + 1 };
    if top.deserialize(value).is_err() {
        // Too deep for the parser: keep what was visited before.
        walk.omit(1);
    }
    walk.types.remove("");
    let shape = walk.types.into_iter().map(|(pointer, types)| (pointer, types.text())).collect();
    (shape, walk.omitted)
}

/// Keys of every `properties` object of a schema, within the limits.
pub(super) fn declared(schema: &Value) -> HashSet<String> {
    let mut found = Declared { names: HashSet::new(), nodes: NODES };
    found.look(schema, DEPTH * 2);
    found.names
}

struct Declared {
    names: HashSet<String>,
    /// Number of values that may still be visited.
    nodes: usize,
}

impl Declared {
    fn look(&mut self, schema: &Value, depth: usize) {
        if depth == 0 || self.nodes == 0 || self.names.len() >= NAMES {
            return;
        }
        self.nodes -= 1;
        match schema {
            Value::Object(members) => {
                if let Some(Value::Object(properties)) = members.get("properties") {
                    let remaining = NAMES - self.names.len();
                    let short = properties.keys().take(NAMES).filter(|name| name.len() <= KEY);
                    self.names.extend(short.take(remaining).cloned());
                }
                members.values().for_each(|member| self.look(member, depth - 1));
            }
            Value::Array(items) => items.iter().for_each(|item| self.look(item, depth - 1)),
            _ => {}
        }
    }
}

struct Walk<'a> {
    names: Option<&'a HashSet<String>>,
    key: &'a DigestKey,
    types: BTreeMap<String, Types>,
    visits: usize,
    omitted: u32,
}

impl Walk<'_> {
    fn omit(&mut self, members: u32) {
        self.omitted = self.omitted.saturating_add(members);
    }

    /// Key as a shape shows it. `None` if the shape has no room for it.
    fn step(&self, name: &str) -> Option<String> {
        let declared = self.names.is_some_and(|names| names.contains(name));
        if declared || PROTOCOL.binary_search(&name).is_ok() {
            Some(match name.contains(['~', '/']) {
                true => name.replace('~', "~0").replace('/', "~1"),
                false => name.to_owned(),
            })
        } else {
            // Skip the cost of a digest that would not be listed.
            (self.types.len() <= MEMBERS).then(|| self.key.key_digest(name))
        }
    }
}

/// Position whose value is visited.
struct At<'w, 'a> {
    walk: &'w mut Walk<'a>,
    at: String,
    depth: usize,
}

impl At<'_, '_> {
    /// Records the type. Returns whether to visit the members.
    fn is(&mut self, kind: Types) -> bool {
        self.walk.visits += 1;
        let count = self.walk.types.len();
        match self.walk.types.get_mut(&self.at) {
            _ if self.walk.visits > VISITS => return self.leave_out(),
            Some(types) => types.0 |= kind.0,
            // The top does not count as a member.
            None if count > MEMBERS => return self.leave_out(),
            None => drop(self.walk.types.insert(self.at.clone(), kind)),
        }
        self.depth > 1
    }

    fn leave_out(&mut self) -> bool {
        self.walk.omit(1);
        false
    }
}

/// Set of JSON types.
#[derive(Debug, Clone, Copy)]
struct Types(u8);

impl Types {
    const ARRAY: Self = Self(1);
    const BOOLEAN: Self = Self(1 << 1);
    const NULL: Self = Self(1 << 2);
    const NUMBER: Self = Self(1 << 3);
    const OBJECT: Self = Self(1 << 4);
    const STRING: Self = Self(1 << 5);
    const NAMES: [(Self, &str); 6] = [
        (Self::ARRAY, "array"),
        (Self::BOOLEAN, "boolean"),
        (Self::NULL, "null"),
        (Self::NUMBER, "number"),
        (Self::OBJECT, "object"),
        (Self::STRING, "string"),
    ];

    /// Names of the types in alphabetical order, joined by `|`.
    fn text(self) -> Cow<'static, str> {
        let mut names = Self::NAMES.iter().filter(|(kind, _)| self.0 & kind.0 != 0);
        let first = names.next().map_or("", |(_, name)| *name);
        names.fold(Cow::Borrowed(first), |text, (_, name)| format!("{text}|{name}").into())
    }
}

impl<'de> DeserializeSeed<'de> for At<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(mut self) -> Result<(), E> {
        self.is(Types::NULL);
        Ok(())
    }

    fn visit_bool<E>(mut self, _: bool) -> Result<(), E> {
        self.is(Types::BOOLEAN);
        Ok(())
    }

    fn visit_i64<E>(mut self, _: i64) -> Result<(), E> {
        self.is(Types::NUMBER);
        Ok(())
    }

    fn visit_u64<E>(mut self, _: u64) -> Result<(), E> {
        self.is(Types::NUMBER);
        Ok(())
    }

    fn visit_f64<E>(mut self, _: f64) -> Result<(), E> {
        self.is(Types::NUMBER);
        Ok(())
    }

    fn visit_str<E>(mut self, _: &str) -> Result<(), E> {
        self.is(Types::STRING);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        let enter = self.is(Types::ARRAY);
        while enter && self.walk.visits <= VISITS {
            let at = [&self.at, "/*"].concat();
            let item = At { walk: self.walk, at, depth: self.depth - 1 };
            if items.next_element_seed(item)?.is_none() {
                return Ok(());
            }
        }
        while items.next_element::<IgnoredAny>()?.is_some() {
            if enter {
                self.walk.omit(1);
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        let enter = self.is(Types::OBJECT);
        while enter && self.walk.visits <= VISITS {
            let Some(name) = members.next_key::<String>()? else { return Ok(()) };
            let Some(step) = self.walk.step(&name) else {
                members.next_value::<IgnoredAny>()?;
                self.walk.visits += 1;
                self.walk.omit(1);
                continue;
            };
            let at = [&self.at, "/", &step].concat();
            members.next_value_seed(At { walk: self.walk, at, depth: self.depth - 1 })?;
        }
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            if enter {
                self.walk.omit(1);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    fn shape(arguments: Value, schema: Value) -> (Shape, u32) {
        let key = DigestKey::for_tests();
        let names = declared(&schema);
        let read = of(&arguments, Some(&names), &key);
        let text = arguments.to_string();
        let streamed = of(&mut serde_json::Deserializer::from_str(&text), Some(&names), &key);
        assert_eq!(read, streamed, "a text has the shape of its value");
        read
    }

    #[test]
    fn protocol_names_are_sorted() {
        assert!(PROTOCOL.is_sorted());
    }

    #[test]
    fn only_declared_keys_are_shown() {
        let (shape, omitted) = shape(
            json!({"path": "v", "tags": ["v", 1], "opts": {"deep": null, "s3cret": true}}),
            json!({"properties": {"path": {}, "tags": {}, "opts": {"properties": {"deep": {}}}}}),
        );
        let hidden = DigestKey::for_tests().key_digest("s3cret");
        let expected: Shape = [
            ("/path".to_owned(), "string"),
            ("/tags".to_owned(), "array"),
            ("/tags/*".to_owned(), "number|string"),
            ("/opts".to_owned(), "object"),
            ("/opts/deep".to_owned(), "null"),
            (format!("/opts/{hidden}"), "boolean"),
        ]
        .into_iter()
        .map(|(k, v)| (k, v.into()))
        .collect();
        assert_eq!((shape, omitted), (expected, 0));
    }

    #[test]
    fn result_shape_shows_protocol_members() {
        let (shape, _) = shape(
            json!({"content": [{"type": "text", "text": "v"}], "structuredContent": {"v": 1}}),
            json!({}),
        );
        assert_eq!(shape["/content/*/text"], "string");
        assert!(!shape.contains_key("/structuredContent/v"), "{shape:?}");
    }

    #[test]
    fn huge_schema_is_read_only_in_part() {
        let values: Vec<Value> = (0..2 * NODES).map(|at| json!({ "at": at })).collect();
        let schema = json!({ "properties": { "a": {} }, "enum": values, "not": { "properties": { "z": {} } } });
        let names = declared(&schema);
        assert!(names.contains("a") && !names.contains("z"), "{names:?}");
        let many: Map<String, Value> =
            (0..2 * NAMES).map(|at| (at.to_string(), json!({}))).collect();
        assert_eq!(declared(&json!({ "properties": many })).len(), NAMES);
    }

    #[test]
    fn shape_size_is_limited() {
        let wide: Map<String, Value> = (0..500).map(|i| (i.to_string(), json!(1))).collect();
        let (wide, omitted) = shape(Value::Object(wide), json!({}));
        assert_eq!(wide.len(), MEMBERS);
        assert_eq!(omitted as usize, 500 - MEMBERS);

        let mut deep = json!(1);
        for _ in 0..60 {
            deep = json!({ "a": deep });
        }
        assert_eq!(shape(deep, json!({})).0.len(), DEPTH);

        let long = json!({ "a": vec![json!({"b": 1}); 100_000] });
        let (long, omitted) = shape(long, json!({}));
        assert!(long.len() == 3 && omitted > 0);
    }
}
