//! How the names of arguments are spelled.
//!
//! INVARIANT: an argument that a server may take for one of those it says it has is one that the
//! policies saw by that name. They compare names to the letter, and servers may be less strict.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use serde_json::{Map, Value};

use crate::{
    codec::{References, fold},
    exchange::{Exchange, Target},
    refusal::{Code, Refusal},
};

/// Parts of a tool's schema that are looked at for the arguments of one call.
const PARTS: usize = 100_000;

/// Refuses arguments that have a name of the tool's or the prompt's in another case: a policy that
/// forbids its values would not see it, and a server that reads names without case would.
///
/// # Errors
/// `arguments-invalid`.
pub(super) fn well_spelled(exchange: &Exchange) -> Result<(), Refusal> {
    let (what, found) = match &exchange.target {
        Target::Tool { tool: Some(tool), .. } => {
            let schema = tool.definition.value().get("inputSchema");
            let (Some(schema), Some(arguments)) = (schema, exchange.arguments()) else {
                return Ok(());
            };
            ("tool", Names::of(schema).hold(arguments))
        }
        Target::Prompt { prompt: Some(prompt), .. } => {
            let listed = prompt.definition.value().get("arguments");
            ("prompt", listed_names(listed, exchange.request.value()))
        }
        _ => return Ok(()),
    };
    found.map_err(|wrong| match wrong {
        Wrong::Spelled(name) => {
            let words =
                format!("the arguments have a name that is one of the {what}'s but for case");
            Refusal::new(Code::ArgumentsInvalid, words)
                .detail(format!("the {what}'s name for it is {name:?}"))
        }
        Wrong::TooLarge => {
            let words = "the tool's schema is too large to hold the names of these arguments to it";
            Refusal::new(Code::ArgumentsInvalid, words)
                .detail(format!("they meet more than {PARTS} parts of it"))
        }
    })
}

/// What is wrong with names.
#[derive(Debug, PartialEq, Eq)]
enum Wrong<'s> {
    /// One stands for this one.
    Spelled(&'s str),
    /// It takes too long to say.
    TooLarge,
}

/// Holds the names that a message has for a prompt's arguments to those that its server lists.
fn listed_names<'s>(listed: Option<&'s Value>, params: &Value) -> Result<(), Wrong<'s>> {
    let listed = listed.and_then(Value::as_array).into_iter().flatten();
    let listed = listed.filter_map(|argument| argument.get("name")?.as_str());
    let folded: HashMap<_, _> = listed.clone().map(|name| (fold(name.into()), name)).collect();
    let listed: HashSet<_> = listed.collect();
    // `prompts/get` has them all, `completion/complete` one, and those that were completed before.
    let several = ["/arguments", "/context/arguments"];
    let several = several.iter().filter_map(|place| params.pointer(place)?.as_object());
    let names = several.flat_map(Map::keys).map(String::as_str);
    let one = params.pointer("/argument/name").and_then(Value::as_str);
    for name in names.chain(one).filter(|name| !listed.contains(name)) {
        if let Some(known) = folded.get(&fold(name.into())) {
            return Err(Wrong::Spelled(known));
        }
    }
    Ok(())
}

/// The names that a schema has for members, read as far as arguments ask for them.
struct Names<'s> {
    root: &'s Value,
    references: References<'s>,
    places: Vec<Place<'s>>,
    /// The places of schemas that apply together.
    met: HashMap<Vec<*const Value>, usize>,
    parts: usize,
}

/// All schemas that may apply to one value.
struct Place<'s> {
    schemas: Vec<&'s Map<String, Value>>,
    members: Option<Members<'s>>,
    others: Option<usize>,
    items: Option<usize>,
}

struct Members<'s> {
    /// Where the schemas of each lead, once that was asked.
    known: HashMap<&'s str, Option<usize>>,
    folded: HashMap<Cow<'s, str>, &'s str>,
}

impl<'s> Names<'s> {
    fn of(root: &'s Value) -> Self {
        let references = References::of(root);
        Self { root, references, places: Vec::new(), met: HashMap::new(), parts: 0 }
    }

    fn hold(mut self, arguments: &Map<String, Value>) -> Result<(), Wrong<'s>> {
        let root = self.place(vec![self.root])?;
        self.object(root, arguments)
    }

    fn value(&mut self, at: usize, value: &Value) -> Result<(), Wrong<'s>> {
        match value {
            Value::Object(object) => self.object(at, object),
            Value::Array(items) => {
                for item in items.iter().filter(|item| item.is_object() || item.is_array()) {
                    let of_items = match self.places[at].items {
                        Some(place) => place,
                        None => {
                            let schemas = &self.places[at].schemas;
                            let place =
                                self.place(schemas.iter().copied().flat_map(items_of).collect())?;
                            *self.places[at].items.insert(place)
                        }
                    };
                    self.value(of_items, item)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn object(&mut self, at: usize, object: &Map<String, Value>) -> Result<(), Wrong<'s>> {
        if self.places[at].schemas.is_empty() {
            return Ok(());
        }
        for (name, value) in object {
            let members = self.members(at)?;
            let known = members.known.get_key_value(name.as_str()).map(|(name, to)| (*name, *to));
            if known.is_none()
                && let Some(known) = members.folded.get(&fold(name.into()))
            {
                return Err(Wrong::Spelled(known));
            }
            if !value.is_object() && !value.is_array() {
                continue;
            }
            let to = match (known, self.places[at].others) {
                (Some((_, Some(place))), _) | (None, Some(place)) => place,
                (Some((name, None)), _) => {
                    let schemas = &self.places[at].schemas;
                    let schemas = schemas.iter().copied().flat_map(|schema| {
                        match schema.get("properties").and_then(|properties| properties.get(name)) {
                            Some(schema) => vec![schema],
                            None => others_of(schema),
                        }
                    });
                    let place = self.place(schemas.collect())?;
                    if let Some(members) = &mut self.places[at].members {
                        members.known.insert(name, Some(place));
                    }
                    place
                }
                (None, None) => {
                    let schemas = &self.places[at].schemas;
                    let place =
                        self.place(schemas.iter().copied().flat_map(others_of).collect())?;
                    *self.places[at].others.insert(place)
                }
            };
            self.value(to, value)?;
        }
        Ok(())
    }

    fn members(&mut self, at: usize) -> Result<&Members<'s>, Wrong<'s>> {
        let place = &mut self.places[at];
        if place.members.is_none() {
            let named = place.schemas.iter().copied();
            let named = named.filter_map(|schema| schema.get("properties")?.as_object());
            let names = named.flat_map(Map::keys).map(String::as_str);
            let known: HashMap<_, _> = names.map(|name| (name, None)).collect();
            self.parts += known.len();
            if self.parts > PARTS {
                return Err(Wrong::TooLarge);
            }
            let folded = known.keys().map(|name| (fold(Cow::Borrowed(*name)), *name)).collect();
            place.members = Some(Members { known, folded });
        }
        place.members.as_ref().ok_or(Wrong::TooLarge)
    }

    /// The place of all that these schemas say of one value, in whichever of their branches.
    fn place(&mut self, mut open: Vec<&'s Value>) -> Result<usize, Wrong<'s>> {
        let mut met = HashSet::new();
        let mut found = Vec::new();
        while let Some(value) = open.pop() {
            let Value::Object(schema) = value else { continue };
            if !met.insert(std::ptr::from_ref(value)) {
                continue;
            }
            self.parts += 1;
            if self.parts > PARTS {
                return Err(Wrong::TooLarge);
            }
            found.push(schema);
            for (keyword, value) in schema {
                match (keyword.as_str(), value) {
                    ("allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => open.extend(schemas),
                    ("if" | "then" | "else", schema) => open.push(schema),
                    ("dependentSchemas" | "dependencies", Value::Object(schemas)) => {
                        open.extend(schemas.values());
                    }
                    ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(reference)) => {
                        open.extend(self.references.targets(reference));
                    }
                    _ => {}
                }
            }
        }
        let mut key: Vec<_> = met.into_iter().collect();
        key.sort_unstable();
        let next = self.places.len();
        let at = *self.met.entry(key).or_insert(next);
        if at == next {
            let place = Place { schemas: found, members: None, others: None, items: None };
            self.places.push(place);
        }
        Ok(at)
    }
}

/// What a schema says of the members that it does not name. Patterns are not looked at: each may be
/// meant.
fn others_of(schema: &Map<String, Value>) -> Vec<&Value> {
    let all = ["additionalProperties", "unevaluatedProperties"];
    let all = all.iter().filter_map(|keyword| schema.get(*keyword));
    let patterns = schema.get("patternProperties").and_then(Value::as_object);
    all.chain(patterns.into_iter().flat_map(Map::values)).collect()
}

/// What a schema says of the items of an array, wherever they stand.
fn items_of(schema: &Map<String, Value>) -> Vec<&Value> {
    let all = ["items", "prefixItems", "additionalItems", "unevaluatedItems", "contains"];
    let all = all.iter().filter_map(|keyword| schema.get(*keyword));
    all.flat_map(|of| match of {
        Value::Array(each) => each.as_slice(),
        one => std::slice::from_ref(one),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn misspelled(schema: &Value, arguments: &Value) -> Option<String> {
        match Names::of(schema).hold(arguments.as_object().unwrap()) {
            Ok(()) => None,
            // Of two names that differ in case alone, either is one.
            Err(Wrong::Spelled(name)) => Some(name.to_lowercase()),
            Err(wrong) => panic!("{wrong:?}"),
        }
    }

    #[test]
    fn a_name_of_another_case_is_found() {
        let schema = json!({ "properties": {
            "path": {},
            "Key": {},
            "key": {},
            "in": { "properties": { "deep": {} } },
            "all": { "items": { "properties": { "each": {} } } },
        } });
        for (arguments, found) in [
            (json!({ "path": 1, "Key": 1, "key": 1 }), None),
            (json!({ "other": 1, "p\u{430}th": 1, "": 1 }), None),
            (json!({ "Path": 1 }), Some("path")),
            (json!({ "\u{212a}ey": 1 }), Some("key")),
            (json!({ "in": { "Deep": 1 } }), Some("deep")),
            (json!({ "in": { "more": { "DEEP": 1 } } }), None),
            (json!({ "all": [1, { "each": 1 }, { "eAch": 1 }] }), Some("each")),
        ] {
            assert_eq!(misspelled(&schema, &arguments).as_deref(), found, "{arguments}");
        }
        let any = json!({ "Path": 1 });
        for schema in [json!({}), json!(true), json!({ "properties": [] })] {
            assert_eq!(misspelled(&schema, &any), None, "{schema}");
        }
    }

    #[test]
    fn it_is_found_wherever_the_schema_says_the_name() {
        let path = json!({ "properties": { "path": {} } });
        let to = |place: &str| json!({ "$ref": place });
        let wrong = json!({ "where": { "Path": 1 } });
        let (list, lists) =
            (json!({ "where": [{ "Path": 1 }] }), json!({ "where": [[{ "Path": 1 }]] }));
        let other = json!({ "where": { "other": { "Path": 1 } } });
        for (schema, arguments) in [
            (to("#/$defs/W"), &wrong),
            (to("#/%24defs/W"), &wrong),
            (to("#w"), &wrong),
            (json!({ "anyOf": [to("#/$defs/W"), { "type": "null" }] }), &wrong),
            (json!({ "oneOf": [{ "type": "null" }, path] }), &wrong),
            (json!({ "allOf": [to("#/$defs/W"), { "properties": { "b": {} } }] }), &wrong),
            (json!({ "if": {}, "then": path }), &wrong),
            (json!({ "dependentSchemas": { "b": path } }), &wrong),
            (json!({ "items": to("#/$defs/W") }), &list),
            (json!({ "prefixItems": [{}, path] }), &list),
            (json!({ "items": [path] }), &list),
            (json!({ "items": { "anyOf": [{ "items": to("#/$defs/W") }, {}] } }), &lists),
            (json!({ "additionalProperties": to("#/$defs/W") }), &other),
            (json!({ "patternProperties": { "^o": path } }), &other),
            (
                json!({ "properties": { "other": {} }, "allOf": [{ "additionalProperties": path }] }),
                &other,
            ),
        ] {
            let named = json!({ "$anchor": "w", "properties": { "path": {} } });
            let defs = json!({ "W": named, "T": { "properties": { "where": schema } } });
            let direct = json!({ "properties": { "where": schema }, "$defs": defs });
            let root = json!({ "$ref": "#/$defs/T", "$defs": defs });
            let combined = json!({ "allOf": [{ "$ref": "#/$defs/T" }], "$defs": defs });
            for tool in [direct, root, combined] {
                let right = arguments.to_string().replace("Path", "path");
                let right = serde_json::from_str(&right).unwrap();
                assert_eq!(misspelled(&tool, arguments).as_deref(), Some("path"), "{tool}");
                assert_eq!(misspelled(&tool, &right), None, "{tool}");
            }
        }
        // A branch's own name is its own, whatever another has.
        let both = json!({ "anyOf": [path, { "properties": { "Path": {} } }] });
        assert_eq!(misspelled(&both, &json!({ "Path": 1, "path": 1 })), None);
    }

    #[test]
    fn what_refers_to_itself_is_followed_and_what_is_too_much_refused() {
        let tree = json!({ "$ref": "#/$defs/T", "$defs": { "T": {
            "anyOf": [{ "$ref": "#" }, { "$ref": "#/$defs/T" }],
            "properties": { "left": { "$ref": "#/$defs/T" }, "right": { "$ref": "#" }, "name": {} },
        } } });
        let grown =
            |leaf: Value| (0..50).fold(leaf, |tree, _| json!({ "left": { "right": tree } }));
        assert_eq!(misspelled(&tree, &grown(json!({ "name": 1 }))), None);
        assert_eq!(misspelled(&tree, &grown(json!({ "Name": 1 }))).as_deref(), Some("name"));
        let names: Map<_, _> = (0..=PARTS).map(|at| (format!("n{at}"), json!({}))).collect();
        let large = json!({ "properties": names });
        let given = json!({ "n1": 1 });
        assert_eq!(Names::of(&large).hold(given.as_object().unwrap()), Err(Wrong::TooLarge));
    }

    #[test]
    fn names_of_a_prompts_arguments_are_held_to_its_list() {
        let listed = json!([{ "name": "path" }, { "name": "Key" }, { "name": "key" }, {}]);
        let hold = |params: Value| listed_names(Some(&listed), &params).is_err();
        assert!(!hold(
            json!({ "name": "p", "arguments": { "path": "x", "Key": "x", "more": "x" } })
        ));
        assert!(hold(json!({ "name": "p", "arguments": { "Path": "x" } })));
        assert!(!hold(json!({ "argument": { "name": "path", "value": "Path" } })));
        assert!(hold(json!({ "argument": { "name": "PATH", "value": "x" } })));
        let before =
            json!({ "argument": { "name": "key" }, "context": { "arguments": { "Path": "" } } });
        assert!(hold(before));
        assert_eq!(listed_names(None, &json!({ "arguments": { "Path": "x" } })), Ok(()));
    }
}
