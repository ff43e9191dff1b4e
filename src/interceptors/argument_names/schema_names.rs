//! The names that a schema has for the members of a value.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    rc::Rc,
};

use serde_json::{Map, Value};

use super::patterns::{Compiled, Pattern, is_one_name, keys, name_in, pattern, patterns_in};
use portcullis_protocol::codec::{References, fold};

/// Parts of a tool's schema that are looked at for the arguments of one call.
pub(super) const PARTS: usize = 100_000;
/// Parts that compiling one pattern of names counts as.
pub(super) const PATTERN_PARTS: usize = 4_000;
/// Bytes of names that may be matched for one part. Matching takes time in proportion to both.
const BYTES_A_PART: usize = 4;

/// What is wrong with names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NameError<'s> {
    /// One stands for this one.
    Spelled(&'s str),
    /// It takes too long to say.
    TooLarge,
    /// This pattern may stand for any.
    Unreadable(&'s str),
}

/// The names that a schema has for members, read as far as arguments ask for them.
pub(super) struct SchemaNames<'s> {
    root: &'s Value,
    references: References<'s>,
    nodes: Vec<SchemaNode<'s>>,
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
    declared: HashMap<&'s str, Option<usize>>,
    folded: HashMap<Cow<'s, str>, &'s str>,
    /// Patterns of other names.
    patterns: Rc<[Pattern<'s>]>,
}

impl<'s> SchemaNames<'s> {
    pub fn of(root: &'s Value) -> Self {
        let references = References::of(root);
        Self {
            root,
            references,
            nodes: Vec::new(),
            met: HashMap::new(),
            all: None,
            compiled: HashMap::new(),
            parts: 0,
        }
    }

    /// Holds arguments to the names of the schema.
    ///
    /// # Errors
    /// What is wrong with the first name that does not fit.
    pub fn hold(mut self, arguments: &Map<String, Value>) -> Result<(), NameError<'s>> {
        let root = self.place(vec![self.root], false)?;
        self.object(root, arguments)
    }

    fn value(&mut self, at: usize, value: &Value) -> Result<(), NameError<'s>> {
        match value {
            Value::Object(object) => self.object(at, object),
            Value::Array(items) => {
                for item in items.iter().filter(|item| item.is_object() || item.is_array()) {
                    let of_items = match self.nodes[at].items {
                        Some(place) => place,
                        None => {
                            let SchemaNode { schemas, unresolved, .. } = &self.nodes[at];
                            let schemas = schemas.iter().copied().flat_map(items_of).collect();
                            let place = self.place(schemas, *unresolved)?;
                            *self.nodes[at].items.insert(place)
                        }
                    };
                    self.value(of_items, item)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn object(&mut self, at: usize, object: &Map<String, Value>) -> Result<(), NameError<'s>> {
        if self.nodes[at].schemas.is_empty() && !self.nodes[at].unresolved {
            return Ok(());
        }
        self.members(at)?;
        let unresolved = self.nodes[at].unresolved;
        for (name, value) in object {
            let members = self.members(at)?;
            let declared =
                members.declared.get_key_value(name.as_str()).map(|(name, to)| (*name, *to));
            if declared.is_none() {
                if let Some(declared) = members.folded.get(&fold(name.into())) {
                    return Err(NameError::Spelled(declared));
                }
                let patterns = Rc::clone(&members.patterns);
                if let Some(pattern) = self.other_case_in(&patterns, name)? {
                    return Err(NameError::Spelled(pattern));
                }
                if unresolved && let Some(other) = self.other_spelling(name)? {
                    return Err(NameError::Spelled(other));
                }
            }
            if !value.is_object() && !value.is_array() {
                continue;
            }
            let to = match (declared, self.nodes[at].others) {
                (Some((_, Some(place))), _) | (None, Some(place)) => place,
                (Some((name, None)), _) => {
                    let schemas = &self.nodes[at].schemas;
                    let schemas = schemas.iter().copied().flat_map(|schema| {
                        match schema.get("properties").and_then(|properties| properties.get(name)) {
                            Some(named) => patterns_of(schema).chain([named]).collect(),
                            None => others_of(schema),
                        }
                    });
                    let place = self.place(schemas.collect(), unresolved)?;
                    if let Some(members) = &mut self.nodes[at].members {
                        members.declared.insert(name, Some(place));
                    }
                    place
                }
                (None, None) => {
                    let schemas = &self.nodes[at].schemas;
                    let schemas = schemas.iter().copied().flat_map(others_of).collect();
                    let place = self.place(schemas, unresolved)?;
                    *self.nodes[at].others.insert(place)
                }
            };
            self.value(to, value)?;
        }
        Ok(())
    }

    fn members(&mut self, at: usize) -> Result<&Members<'s>, NameError<'s>> {
        if self.nodes[at].members.is_none() {
            let schemas = self.nodes[at].schemas.iter();
            let of_names = schemas.filter_map(|schema| schema.get("propertyNames")).collect();
            let of_names = self.place(of_names, false)?;
            self.nodes[at].unresolved |= self.nodes[of_names].unresolved;
            let of_names = self.nodes[of_names].schemas.iter().copied();
            let schemas = self.nodes[at].schemas.iter().copied();
            let patterns = schemas.clone().flat_map(patterns_in);
            let patterns: BTreeSet<_> =
                patterns.chain(of_names.clone().filter_map(pattern)).collect();
            let names = schemas.flat_map(names_of).chain(of_names.flat_map(listed));
            let names = names.chain(patterns.iter().filter_map(|pattern| name_in(pattern.text)));
            let declared: HashMap<_, _> = names.map(|name| (name, None)).collect();
            let patterns = patterns.into_iter().filter(|pattern| !is_one_name(pattern)).collect();
            self.parts += declared.len();
            if self.parts > PARTS {
                return Err(NameError::TooLarge);
            }
            let folded = declared.keys().map(|name| (fold(Cow::Borrowed(*name)), *name)).collect();
            self.nodes[at].members = Some(Members { declared, folded, patterns });
        }
        self.nodes[at].members.as_ref().ok_or(NameError::TooLarge)
    }

    /// A pattern among these that means this name in another case, unless one defines it as spelled.
    fn other_case_in(
        &mut self,
        patterns: &[Pattern<'s>],
        name: &str,
    ) -> Result<Option<&'s str>, NameError<'s>> {
        let mut found = None;
        for &Pattern { text, defines } in patterns {
            self.parts += 1 + name.len() / BYTES_A_PART;
            if self.parts > PARTS {
                return Err(NameError::TooLarge);
            }
            let pattern = match self.compiled.entry(text) {
                Entry::Occupied(existing) => existing.into_mut(),
                Entry::Vacant(new) => {
                    self.parts += PATTERN_PARTS;
                    if self.parts > PARTS {
                        return Err(NameError::TooLarge);
                    }
                    new.insert(Compiled::of(text).ok_or(NameError::Unreadable(text))?)
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
    fn other_spelling(&mut self, name: &str) -> Result<Option<&'s str>, NameError<'s>> {
        if self.all.is_none() {
            self.all = Some(self.all_names()?);
        }
        let Some(all) = &self.all else { return Err(NameError::TooLarge) };
        let same = all.names.get(&fold(name.into())).into_iter().flatten();
        if let Some(other) = same.copied().find(|other| *other != name) {
            return Ok(Some(other));
        }
        let patterns = Rc::clone(&all.patterns);
        self.other_case_in(&patterns, name)
    }

    /// Every name and pattern of the document.
    fn all_names(&mut self) -> Result<All<'s>, NameError<'s>> {
        let mut names: HashMap<_, Vec<_>> = HashMap::new();
        let mut patterns = BTreeSet::new();
        let mut open = vec![self.root];
        while let Some(value) = open.pop() {
            match value {
                Value::Object(schema) => {
                    let of_names = schema.get("propertyNames").into_iter().collect();
                    let of_names = self.place(of_names, false)?;
                    let of_names = self.nodes[of_names].schemas.iter().copied();
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
                return Err(NameError::TooLarge);
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
    ) -> Result<usize, NameError<'s>> {
        let mut met = HashSet::new();
        let mut found = Vec::new();
        while let Some(value) = open.pop() {
            let Value::Object(schema) = value else { continue };
            if !met.insert(std::ptr::from_ref(value)) {
                continue;
            }
            self.parts += 1;
            if self.parts > PARTS {
                return Err(NameError::TooLarge);
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
        let next = self.nodes.len();
        let at = *self.met.entry((key, unresolved)).or_insert(next);
        if at == next {
            let (members, others, items) = (None, None, None);
            self.nodes.push(SchemaNode { schemas: found, unresolved, members, others, items });
        }
        Ok(at)
    }
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
