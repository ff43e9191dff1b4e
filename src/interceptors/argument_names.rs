//! How the names of arguments are spelled.
//!
//! INVARIANT: an argument that a server may take for one of those it says it has is one that the
//! policies saw by that name. They compare names to the letter, and servers may be less strict.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    rc::Rc,
};

use async_trait::async_trait;
use regex::bytes::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use portcullis_chain::{Fault, Interceptor, Verdict};
use portcullis_protocol::{
    codec::{References, fold},
    exchange::{Exchange, Method, Phase, Target},
    refusal::{Code, Refusal},
};

/// Parts of a tool's schema that are looked at for the arguments of one call.
const PARTS: usize = 100_000;
/// Parts that compiling one pattern of names counts as.
const PATTERN_PARTS: usize = 4_000;
/// Bytes of a compiled pattern.
const PATTERN_BYTES: usize = 256 << 10;
/// Bytes of names that may be matched for one part. Matching takes time in proportion to both.
const BYTES_A_PART: usize = 4;

/// Refuses arguments that have a name of the tool's or the prompt's in another case: a policy that
/// forbids its values would not see it, and a server that reads names without case would. It stands
/// behind the policies in every chain.
pub struct ArgumentNames;

#[async_trait]
impl Interceptor for ArgumentNames {
    fn name(&self) -> &str {
        "argument-names"
    }

    fn wants(&self, _: &Method, phase: Phase) -> bool {
        phase == Phase::Request
    }

    async fn inspect(&self, exchange: &Exchange, _: Phase) -> Result<Verdict, Fault> {
        Ok(match check(exchange) {
            Ok(()) => Verdict::pass(),
            Err(refusal) => Verdict::refuse(refusal),
        })
    }
}

fn check(exchange: &Exchange) -> Result<(), Refusal> {
    let (what, found) = match &exchange.target {
        Target::Tool { tool: Some(tool), .. } => {
            let schema = tool.definition.value().get("inputSchema");
            let (Some(schema), Some(arguments)) = (schema, exchange.arguments()) else {
                return Ok(());
            };
            ("tool", SchemaNames::of(schema).hold(arguments))
        }
        Target::Prompt { prompt: Some(prompt), .. } => {
            let listed = prompt.definition.value().get("arguments");
            ("prompt", listed_names(listed, exchange.request.value()))
        }
        _ => return Ok(()),
    };
    found.map_err(|wrong| match wrong {
        Wrong::Spelled(name) => {
            let words = format!(
                "the arguments have a name that differs from one of the {what}'s only in case"
            );
            Refusal::new(Code::ArgumentsInvalid, words)
                .detail(format!("the {what}'s name for it is {name:?}"))
        }
        Wrong::TooLarge => {
            let words = "the tool's schema is too large to check the names of these arguments";
            Refusal::new(Code::ArgumentsInvalid, words)
                .detail(format!("the arguments match more than {PARTS} parts of the schema"))
        }
        Wrong::Unreadable(pattern) => {
            let words = format!("the {what}'s schema has a pattern of names that cannot be read");
            Refusal::new(Code::ArgumentsInvalid, words).detail(format!("it is {pattern:?}"))
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
    /// This pattern may stand for any.
    Unreadable(&'s str),
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
struct SchemaNames<'s> {
    root: &'s Value,
    references: References<'s>,
    places: Vec<SchemaNode<'s>>,
    /// The places of schemas that apply together, and whether a reference among them leads nowhere.
    met: HashMap<(Vec<*const Value>, bool), usize>,
    /// Every name in the schema. Collected when the first is asked for.
    all: Option<All<'s>>,
    compiled: HashMap<&'s str, Compiled>,
    parts: usize,
}

struct All<'s> {
    /// By their folded forms.
    names: HashMap<Cow<'s, str>, Vec<&'s str>>,
    patterns: Rc<[Pattern<'s>]>,
}

/// All schemas that may apply to one value.
struct SchemaNode<'s> {
    schemas: Vec<&'s Map<String, Value>>,
    /// Whether one of them, or of a value around this one, refers to what is not in the document.
    /// What is named there is not known, so every name of the document counts.
    unresolved: bool,
    members: Option<Members<'s>>,
    others: Option<usize>,
    items: Option<usize>,
}

struct Members<'s> {
    /// Where the schemas of each lead, once that was asked.
    known: HashMap<&'s str, Option<usize>>,
    folded: HashMap<Cow<'s, str>, &'s str>,
    /// Patterns of other names.
    patterns: Rc<[Pattern<'s>]>,
}

/// A pattern of names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pattern<'s> {
    text: &'s str,
    /// Whether it defines the members that it matches, as `patternProperties` does. `propertyNames`
    /// only restricts their names.
    defines: bool,
}

/// A pattern of names, as it is written and in any case.
struct Compiled {
    written: Regex,
    any_case: Regex,
}

impl Compiled {
    /// The pattern as JSON Schema reads it (ECMA-262), where it needs neither look-around nor
    /// back-references.
    fn of(text: &str) -> Option<Self> {
        let text = jsonschema_regex::to_rust_regex(text).ok()?;
        let build = |unicode, any_case| {
            let mut builder = RegexBuilder::new(&text);
            builder.unicode(unicode).case_insensitive(any_case);
            builder.size_limit(PATTERN_BYTES).build().ok()
        };
        // By bytes, which takes a hundredth of the memory: names of other letters are matched in their
        // lower and upper case, too. Classes of such letters need Unicode.
        let of = |unicode| {
            Some(Self { written: build(unicode, false)?, any_case: build(unicode, true)? })
        };
        of(false).or_else(|| of(true))
    }

    /// Whether it means a name in another case.
    fn means_other_case_of(&self, name: &str) -> bool {
        let others = [fold(name.into()), name.to_lowercase().into(), name.to_uppercase().into()];
        !self.written.is_match(name.as_bytes())
            && (self.any_case.is_match(name.as_bytes())
                || others.iter().any(|other| self.any_case.is_match(other.as_bytes())))
    }

    /// Whether it means a name as it is spelled, and not just any case of it.
    fn means_case_of(&self, name: &str) -> bool {
        self.written.is_match(name.as_bytes())
            && !(self.written.is_match(name.to_lowercase().as_bytes())
                && self.written.is_match(name.to_uppercase().as_bytes()))
    }
}

impl<'s> SchemaNames<'s> {
    fn of(root: &'s Value) -> Self {
        let references = References::of(root);
        Self {
            root,
            references,
            places: Vec::new(),
            met: HashMap::new(),
            all: None,
            compiled: HashMap::new(),
            parts: 0,
        }
    }

    fn hold(mut self, arguments: &Map<String, Value>) -> Result<(), Wrong<'s>> {
        let root = self.place(vec![self.root], false)?;
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
                            let SchemaNode { schemas, unresolved, .. } = &self.places[at];
                            let schemas = schemas.iter().copied().flat_map(items_of).collect();
                            let place = self.place(schemas, *unresolved)?;
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
        if self.places[at].schemas.is_empty() && !self.places[at].unresolved {
            return Ok(());
        }
        self.members(at)?;
        let unresolved = self.places[at].unresolved;
        for (name, value) in object {
            let members = self.members(at)?;
            let known = members.known.get_key_value(name.as_str()).map(|(name, to)| (*name, *to));
            if known.is_none() {
                if let Some(known) = members.folded.get(&fold(name.into())) {
                    return Err(Wrong::Spelled(known));
                }
                let patterns = Rc::clone(&members.patterns);
                if let Some(pattern) = self.other_case_in(&patterns, name)? {
                    return Err(Wrong::Spelled(pattern));
                }
                if unresolved && let Some(other) = self.other_spelling(name)? {
                    return Err(Wrong::Spelled(other));
                }
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
                            Some(named) => patterns_of(schema).chain([named]).collect(),
                            None => others_of(schema),
                        }
                    });
                    let place = self.place(schemas.collect(), unresolved)?;
                    if let Some(members) = &mut self.places[at].members {
                        members.known.insert(name, Some(place));
                    }
                    place
                }
                (None, None) => {
                    let schemas = &self.places[at].schemas;
                    let schemas = schemas.iter().copied().flat_map(others_of).collect();
                    let place = self.place(schemas, unresolved)?;
                    *self.places[at].others.insert(place)
                }
            };
            self.value(to, value)?;
        }
        Ok(())
    }

    fn members(&mut self, at: usize) -> Result<&Members<'s>, Wrong<'s>> {
        if self.places[at].members.is_none() {
            let schemas = self.places[at].schemas.iter();
            let of_names = schemas.filter_map(|schema| schema.get("propertyNames")).collect();
            let of_names = self.place(of_names, false)?;
            self.places[at].unresolved |= self.places[of_names].unresolved;
            let of_names = self.places[of_names].schemas.iter().copied();
            let schemas = self.places[at].schemas.iter().copied();
            let patterns = schemas.clone().flat_map(patterns_in);
            let patterns: BTreeSet<_> =
                patterns.chain(of_names.clone().filter_map(pattern)).collect();
            let names = schemas.flat_map(names_of).chain(of_names.flat_map(listed));
            let names = names.chain(patterns.iter().filter_map(|pattern| name_in(pattern.text)));
            let known: HashMap<_, _> = names.map(|name| (name, None)).collect();
            let patterns = patterns.into_iter().filter(|pattern| !is_one_name(pattern)).collect();
            self.parts += known.len();
            if self.parts > PARTS {
                return Err(Wrong::TooLarge);
            }
            let folded = known.keys().map(|name| (fold(Cow::Borrowed(*name)), *name)).collect();
            self.places[at].members = Some(Members { known, folded, patterns });
        }
        self.places[at].members.as_ref().ok_or(Wrong::TooLarge)
    }

    /// A pattern among these that means this name in another case, unless one defines it as spelled.
    fn other_case_in(
        &mut self,
        patterns: &[Pattern<'s>],
        name: &str,
    ) -> Result<Option<&'s str>, Wrong<'s>> {
        let mut found = None;
        for &Pattern { text, defines } in patterns {
            self.parts += 1 + name.len() / BYTES_A_PART;
            if self.parts > PARTS {
                return Err(Wrong::TooLarge);
            }
            let pattern = match self.compiled.entry(text) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    self.parts += PATTERN_PARTS;
                    if self.parts > PARTS {
                        return Err(Wrong::TooLarge);
                    }
                    new.insert(Compiled::of(text).ok_or(Wrong::Unreadable(text))?)
                }
            };
            if defines && pattern.means_case_of(name) {
                return Ok(None);
            }
            if pattern.means_other_case_of(name) {
                found = Some(text);
            }
        }
        Ok(found)
    }

    /// A name or a pattern anywhere in the document that means this name in another case.
    fn other_spelling(&mut self, name: &str) -> Result<Option<&'s str>, Wrong<'s>> {
        if self.all.is_none() {
            self.all = Some(self.all_names()?);
        }
        let Some(all) = &self.all else { return Err(Wrong::TooLarge) };
        let same = all.names.get(&fold(name.into())).into_iter().flatten();
        if let Some(other) = same.copied().find(|other| *other != name) {
            return Ok(Some(other));
        }
        let patterns = Rc::clone(&all.patterns);
        self.other_case_in(&patterns, name)
    }

    /// Every name and pattern of the document.
    fn all_names(&mut self) -> Result<All<'s>, Wrong<'s>> {
        let mut names: HashMap<_, Vec<_>> = HashMap::new();
        let mut patterns = BTreeSet::new();
        let mut open = vec![self.root];
        while let Some(value) = open.pop() {
            match value {
                Value::Object(schema) => {
                    let of_names = schema.get("propertyNames").into_iter().collect();
                    let of_names = self.place(of_names, false)?;
                    let of_names = self.places[of_names].schemas.iter().copied();
                    patterns.extend(patterns_in(schema));
                    patterns.extend(of_names.clone().filter_map(pattern));
                    for name in names_of(schema).chain(of_names.flat_map(listed)) {
                        self.parts += 1;
                        names.entry(fold(name.into())).or_default().push(name);
                    }
                    open.extend(schema.values());
                }
                Value::Array(items) => open.extend(items),
                _ => {}
            }
            self.parts += 1;
            if self.parts > PARTS {
                return Err(Wrong::TooLarge);
            }
        }
        for name in patterns.iter().filter_map(|pattern| name_in(pattern.text)) {
            names.entry(fold(name.into())).or_default().push(name);
        }
        let patterns = patterns.into_iter().filter(|pattern| !is_one_name(pattern)).collect();
        Ok(All { names, patterns })
    }

    /// The place of all that these schemas say of one value, in whichever of their branches.
    fn place(
        &mut self,
        mut open: Vec<&'s Value>,
        mut unresolved: bool,
    ) -> Result<usize, Wrong<'s>> {
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
                    ("if" | "then" | "else" | "not", schema) => open.push(schema),
                    ("dependentSchemas" | "dependencies", Value::Object(schemas)) => {
                        open.extend(schemas.values());
                    }
                    ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(reference)) => {
                        self.parts += self.references.breadth();
                        match self.references.possible_targets(reference) {
                            Some(targets) => open.extend(targets),
                            None => unresolved = true,
                        }
                    }
                    _ => {}
                }
            }
        }
        let mut key: Vec<_> = met.into_iter().collect();
        key.sort_unstable();
        let next = self.places.len();
        let at = *self.met.entry((key, unresolved)).or_insert(next);
        if at == next {
            let (members, others, items) = (None, None, None);
            self.places.push(SchemaNode { schemas: found, unresolved, members, others, items });
        }
        Ok(at)
    }
}

fn keys(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value.and_then(Value::as_object).into_iter().flat_map(Map::keys).map(String::as_str)
}

fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// The members that a schema names, whatever it says of them.
fn names_of(schema: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let by_name = ["properties", "dependentRequired", "dependentSchemas", "dependencies"];
    let lists = ["dependentRequired", "dependencies"];
    let lists = lists.into_iter().filter_map(|keyword| schema.get(keyword)?.as_object());
    by_name
        .into_iter()
        .flat_map(|keyword| keys(schema.get(keyword)))
        .chain(texts(schema.get("required")))
        .chain(lists.flat_map(Map::values).flat_map(|names| texts(Some(names))))
}

/// The texts that a schema of a text lists.
fn listed(schema: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let one = schema.get("const").and_then(Value::as_str);
    texts(schema.get("enum")).chain(one)
}

/// The pattern that a schema of a member's name has.
fn pattern(schema: &Map<String, Value>) -> Option<Pattern<'_>> {
    let text = schema.get("pattern")?.as_str()?;
    Some(Pattern { text, defines: false })
}

/// The patterns by which a schema defines members.
fn patterns_in(schema: &Map<String, Value>) -> impl Iterator<Item = Pattern<'_>> {
    keys(schema.get("patternProperties")).map(|text| Pattern { text, defines: true })
}

/// The name that a pattern is, where it is one, and maybe bound to the whole of one.
fn name_in(pattern: &str) -> Option<&str> {
    let name = pattern.strip_prefix('^').unwrap_or(pattern);
    let name = name.strip_suffix('$').unwrap_or(name);
    let is_name = |c: char| c.is_alphanumeric() || "_-".contains(c);
    (!name.is_empty() && name.chars().all(is_name)).then_some(name)
}

/// Whether a pattern matches one name only. Without an anchor it matches parts of other names, too.
fn is_one_name(Pattern { text, .. }: &Pattern) -> bool {
    text.starts_with('^') && text.ends_with('$') && name_in(text).is_some()
}

/// What a schema says of the members that it does not name. Patterns are not looked at: each may be
/// meant.
fn others_of(schema: &Map<String, Value>) -> Vec<&Value> {
    let all = ["additionalProperties", "unevaluatedProperties"];
    let all = all.iter().filter_map(|keyword| schema.get(*keyword));
    all.chain(patterns_of(schema)).collect()
}

/// What a schema says of members by patterns of their names.
fn patterns_of(schema: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    schema.get("patternProperties").and_then(Value::as_object).into_iter().flat_map(Map::values)
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
        match SchemaNames::of(schema).hold(arguments.as_object().unwrap()) {
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
            (json!({ "not": path }), &wrong),
            (json!({ "required": ["path"] }), &wrong),
            (json!({ "dependentRequired": { "b": ["path"] } }), &wrong),
            (json!({ "dependentSchemas": { "path": {} } }), &wrong),
            (json!({ "dependencies": { "path": ["b"] } }), &wrong),
            (json!({ "propertyNames": { "enum": ["path"] } }), &wrong),
            (json!({ "propertyNames": { "$ref": "#/$defs/N" } }), &wrong),
            (
                json!({ "propertyNames": { "anyOf": [{ "const": "path" }, { "type": "x" }] } }),
                &wrong,
            ),
            (json!({ "propertyNames": { "allOf": [{ "pattern": "^path$" }] } }), &wrong),
            (json!({ "patternProperties": { "^path$": {} } }), &wrong),
            (json!({ "dependentSchemas": { "b": path } }), &wrong),
            (json!({ "dependencies": { "b": path } }), &wrong),
            (json!({ "items": to("#/$defs/W") }), &list),
            (json!({ "prefixItems": [{}, path] }), &list),
            (json!({ "items": [path] }), &list),
            (json!({ "items": { "anyOf": [{ "items": to("#/$defs/W") }, {}] } }), &lists),
            (json!({ "additionalProperties": to("#/$defs/W") }), &other),
            (json!({ "patternProperties": { "^o": path } }), &other),
            (json!({ "properties": { "other": {} }, "patternProperties": { "^o": path } }), &other),
            (
                json!({ "properties": { "other": {} }, "allOf": [{ "additionalProperties": path }] }),
                &other,
            ),
        ] {
            let named = json!({ "$anchor": "w", "properties": { "path": {} } });
            let defs = json!({ "W": named, "N": { "enum": ["path"] }, "T": { "properties": { "where": schema } } });
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
    fn a_pattern_of_names_is_held_to_its_case() {
        let of = |patterns: &[&str]| -> Value {
            let patterns: Map<_, _> = patterns.iter().map(|p| ((*p).into(), json!({}))).collect();
            json!({ "patternProperties": patterns })
        };
        let refers = json!({ "propertyNames": { "$ref": "#/$defs/N" },
            "$defs": { "N": { "pattern": "^(path|dir)$" } } });
        let elsewhere = json!({ "$ref": "urn:elsewhere", "$defs": { "O": of(&["^(path|dir)$"]) } });
        let unknown = json!({ "propertyNames": { "$ref": "urn:elsewhere" },
            "$defs": { "N": { "required": ["path"] } } });
        let listed_elsewhere = json!({ "$ref": "urn:elsewhere", "$defs": {
            "O": { "propertyNames": { "anyOf": [{ "$ref": "#/$defs/N" }, { "maxLength": 1 }] } },
            "N": { "enum": ["path"] } } });
        let camel_case = json!({ "propertyNames": { "pattern": "^[a-z][A-Za-z_]*$" },
            "patternProperties": { "^(path|dir)_name$": {} } });
        for (schema, right, wrong) in [
            (of(&["^(path|dir)$"]), "path", "Path"),
            (of(&["^(path|dir)$"]), "other", "DIR"),
            (of(&["^(?:path|dir)_name$"]), "dir_name", "dir_Name"),
            (of(&["^[a-z]+$"]), "path", "PATH"),
            (of(&["_key$"]), "api_key", "API_KEY"),
            (of(&["^[\\w.-]{1,64}$", "^(path|dir)$"]), "path", "PATH"),
            (of(&["^[A-Za-z0-9._-]{1,253}$", "^(path|dir)$"]), "path", "PATH"),
            (of(&["^.{1,256}$", "^[^/]{1,128}$", "^(path|dir)$"]), "path", "PATH"),
            (of(&["^\\S{1,100}$", "^(größe|dir)$"]), "größe", "GrÖße"),
            (of(&["^(GRÖẞE|dir)$"]), "GRÖẞE", "grÖẞE"),
            (of(&["^\\p{L}[\\p{L}\\d_]{0,3}$", "^(ab|dir)$"]), "ab", "AB"),
            (of(&["^\\cA(path|dir)$"]), "path", "\u{1}PATH"),
            (of(&["^x-"]), "x-force", "X-Force"),
            (of(&["^k$"]), "k", "\u{212a}"),
            (of(&["^(k|l)$"]), "k", "\u{212a}"),
            (json!({ "propertyNames": { "pattern": "^(path|dir)$" } }), "path", "Path"),
            (refers, "path", "PATH"),
            (elsewhere, "path", "PATH"),
            (unknown, "path", "PATH"),
            (listed_elsewhere, "path", "PATH"),
            (camel_case, "path_name", "path_Name"),
            // A pattern of any case excuses none that another means; one of this case does.
            (of(&[".", "^(path|dir)$"]), "path", "PATH"),
            (of(&["^[a-z]+$", "^[A-Z]+$"]), "PATH", "Path"),
        ] {
            assert_eq!(misspelled(&schema, &json!({ right: 1 })), None, "{schema}");
            assert!(misspelled(&schema, &json!({ wrong: 1 })).is_some(), "{schema}");
        }
        // What cannot be read may mean any name.
        let unreadable = of(&["^(?!a)(path|dir)$"]);
        let hold = |given: Value| SchemaNames::of(&unreadable).hold(given.as_object().unwrap());
        assert_eq!(hold(json!({ "path": 1 })), Err(Wrong::Unreadable("^(?!a)(path|dir)$")));
        assert_eq!(hold(json!({})), Ok(()));
        let many: Vec<_> = (0..=PARTS / PATTERN_PARTS).map(|at| format!("^(a{at}|b)$")).collect();
        let many = of(&many.iter().map(String::as_str).collect::<Vec<_>>());
        let given = json!({ "c": 1 });
        assert_eq!(SchemaNames::of(&many).hold(given.as_object().unwrap()), Err(Wrong::TooLarge));
        // Matching is charged by the bytes of the names.
        let one = of(&["^(path|dir)$"]);
        let long: Map<_, _> =
            (0..5).map(|at| (format!("{at}{}", "x".repeat(90_000)), json!(1))).collect();
        assert_eq!(SchemaNames::of(&one).hold(&long), Err(Wrong::TooLarge));
    }

    /// `opts`, which refers to a definition that names `force`, and to carol `Force` is the same.
    #[test]
    fn references_by_identifier_are_followed() {
        let named = json!({ "properties": { "force": {} } });
        let decoy = json!({ "properties": { "other": {} } });
        let to = |reference: &str| json!({ "opts": { "$ref": reference } });
        for schema in [
            json!({ "$id": "urn:x", "properties": to("urn:x#/$defs/O"), "$defs": { "O": named } }),
            json!({ "$id": "https://h.example/s.json", "properties": to("s.json#/$defs/O"), "$defs": { "O": named } }),
            json!({ "$id": "https://h.example/s.json", "properties": to("/s.json#/%24defs/O"), "$defs": { "O": named } }),
            json!({ "id": "urn:x", "properties": to("urn:x#/definitions/O"), "definitions": { "O": named } }),
            json!({ "$id": "urn:x", "properties": to("o.json"), "$defs": { "O": { "$id": "o.json", "allOf": [named] } } }),
            json!({ "$id": "urn:x", "properties": to("o"), "$defs": { "O": { "$id": "urn:o", "allOf": [named] } } }),
            json!({ "properties": to("#o"), "definitions": { "O": { "$id": "#o", "allOf": [named] } } }),
            json!({ "properties": to("#o"), "definitions": { "O": { "id": "#o", "allOf": [named] } } }),
            json!({ "$id": "urn:x", "properties": to("urn:x#o"), "$defs": { "O": { "$anchor": "o", "allOf": [named] } } }),
            json!({ "properties": { "opts": { "$dynamicRef": "#o" } },
                "$defs": { "O": { "$dynamicAnchor": "o", "allOf": [named] } } }),
            // Within an embedded resource, `#` is that resource, and to some the document.
            json!({ "$defs": { "O": decoy }, "properties": { "opts": {
                "$id": "urn:y", "$ref": "#/$defs/O", "$defs": { "O": named } } } }),
            json!({ "$defs": { "O": named }, "properties": { "opts": {
                "$id": "urn:y", "$ref": "#/$defs/O", "$defs": { "O": decoy } } } }),
            json!({ "properties": { "opts": { "$id": "urn:y", "$recursiveAnchor": true,
                "allOf": [named, { "additionalProperties": { "$recursiveRef": "#" } }] } } }),
            // What leads out of the document may name what the document names somewhere.
            json!({ "properties": to("https://elsewhere.example/o.json"), "$defs": { "O": named } }),
            json!({ "properties": to("#/$defs/none"), "$defs": { "O": named } }),
            json!({ "properties": to("o.json#/$defs/O"), "$defs": { "O": named } }),
            json!({ "allOf": [{ "$ref": "urn:elsewhere" }], "$defs": { "O": named } }),
            json!({ "additionalProperties": { "$ref": "urn:elsewhere" }, "$defs": { "O": named } }),
        ] {
            for wrong in [json!({ "Force": true }), json!({ "force": false, "Force": true })] {
                let wrong = json!({ "opts": wrong });
                assert_eq!(misspelled(&schema, &wrong).as_deref(), Some("force"), "{schema}");
            }
            for right in [json!({ "force": true }), json!({ "http_proxy": 1, "HTTP_PROXY": 1 })] {
                assert_eq!(misspelled(&schema, &json!({ "opts": right })), None, "{schema}");
            }
        }
        // Below what is not known nothing is known either.
        let schema = json!({ "properties": to("urn:x"), "$defs": { "O": named } });
        for wrong in [json!({ "a": { "FORCE": 1 } }), json!({ "a": [[{ "FORCE": 1 }]] })] {
            assert!(misspelled(&schema, &json!({ "opts": wrong })).is_some(), "{wrong}");
        }
        assert_eq!(misspelled(&schema, &json!({ "other": { "FORCE": 1 } })), None);
        let both =
            json!({ "properties": to("urn:x"), "$defs": { "O": { "required": ["a", "A"] } } });
        assert!(misspelled(&both, &json!({ "opts": { "a": 1 } })).is_some());
    }

    #[test]
    fn many_resources_cannot_make_a_lookup_long() {
        let resources: Map<_, _> = (0..1000)
            .map(|at| (format!("r{at}"), json!({ "$id": format!("urn:r{at}") })))
            .collect();
        let all: Vec<_> = (0..1000).map(|at| json!({ "$ref": format!("#/$defs/r{at}") })).collect();
        let large = json!({ "allOf": all, "$defs": resources });
        let given = json!({ "n": 1 });
        assert_eq!(SchemaNames::of(&large).hold(given.as_object().unwrap()), Err(Wrong::TooLarge));
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
        assert_eq!(SchemaNames::of(&large).hold(given.as_object().unwrap()), Err(Wrong::TooLarge));
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
