//! Upper bounds of the work of a schema, computed before its use.
//!
//! A schema is untrusted text of a server. A few hundred bytes of `$ref` and `anyOf` can cause 2^64
//! evaluations, or an endless recursion, and a validating thread cannot be interrupted. So each
//! schema is read as a graph once. Its edges either stay at the same instance (`allOf`, `$ref`,
//! `if`, …) or go to a child of it (`properties`, `items`, …). For every depth this gives the
//! maximum work for one instance value at that depth, and the maximum of nested evaluations. An
//! instance is validated only if both are within limits.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use portcullis_protocol::codec::References;

/// Limit of an instance's nesting for which a bound is known.
pub(super) const MAX_DEPTH: usize = 64;
/// Limit of the schemas within one schema.
const MAX_SCHEMAS: usize = 10_000;
/// Limit of the regular expressions within one schema.
pub(super) const MAX_PATTERNS: usize = 128;
/// Units of work to match a pattern in linear time.
pub(super) const LINEAR_PATTERN: u64 = 8;

/// Reason why a schema is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unbounded {
    #[error("has more than {MAX_SCHEMAS} schemas within it")]
    Size,
    #[error("has more than {MAX_PATTERNS} patterns")]
    Patterns,
    #[error("refers to `{0}`, which is not within it")]
    Reference(String),
    #[error("has an `$id` within it, which changes what its references mean")]
    Id,
    #[error("refers to itself without an end")]
    Endless,
}

/// Upper bounds of one schema's validation cost, by the depth of the instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bound {
    /// Units of work for each value of an instance of this depth. Saturates.
    work: Vec<u64>,
    /// Number of nested evaluations.
    nesting: Vec<u64>,
    /// Property names in the schema.
    pub names: HashSet<String>,
    pub patterns: usize,
}

impl Bound {
    /// Analyzes a schema. `pattern_work` is the maximum work to match one pattern.
    pub(super) fn of(schema: &Value, pattern_work: u64) -> Result<Self, Unbounded> {
        let mut graph = Graph::new(schema, pattern_work);
        graph.walk()?;
        let order = graph.order()?;
        let (work, nesting) = graph.measure(&order);
        Ok(Self { work, nesting, names: graph.names, patterns: graph.patterns })
    }

    /// Maximum work per value, and maximum number of nested evaluations, for an instance of this
    /// depth. `None` beyond [`MAX_DEPTH`].
    pub(super) fn at(&self, depth: usize) -> Option<(u64, u64)> {
        Some((*self.work.get(depth)?, *self.nesting.get(depth)?))
    }
}

#[derive(Default)]
struct Node {
    /// Work at one instance value, without subschemas.
    own: u64,
    /// Schemas applied to the same value.
    same: Vec<usize>,
    /// Schemas applied to any child.
    any: Vec<usize>,
    /// Schemas applied to one child each, never two to the same.
    apart: Vec<usize>,
}

/// The schemas within a schema; the root is the first. A schema is identified by its address.
struct Graph<'a> {
    reference_table: References<'a>,
    ids: HashMap<usize, usize>,
    found: Vec<&'a Value>,
    nodes: Vec<Node>,
    names: HashSet<String>,
    patterns: usize,
    pattern_work: u64,
    references: bool,
    inner_id: bool,
}

impl<'a> Graph<'a> {
    fn new(root: &'a Value, pattern_work: u64) -> Self {
        let mut graph = Self {
            reference_table: References::of(root),
            ids: HashMap::new(),
            found: Vec::new(),
            nodes: Vec::new(),
            names: HashSet::new(),
            patterns: 0,
            pattern_work,
            references: false,
            inner_id: false,
        };
        graph.id(root);
        graph
    }

    fn id(&mut self, schema: &'a Value) -> usize {
        let next = self.found.len();
        let id = *self.ids.entry(std::ptr::from_ref(schema).addr()).or_insert(next);
        if id == next {
            self.found.push(schema);
        }
        id
    }

    /// Adds a node for every reachable schema.
    fn walk(&mut self) -> Result<(), Unbounded> {
        let mut at = 0;
        while let Some(&schema) = self.found.get(at) {
            let node = match schema {
                Value::Object(schema) => self.node(schema, at == 0)?,
                _ => Node { own: 1, ..Node::default() },
            };
            self.nodes.push(node);
            if self.found.len() > MAX_SCHEMAS {
                return Err(Unbounded::Size);
            }
            if self.patterns > MAX_PATTERNS {
                return Err(Unbounded::Patterns);
            }
            at += 1;
        }
        if self.inner_id && self.references { Err(Unbounded::Id) } else { Ok(()) }
    }

    fn node(&mut self, schema: &'a Map<String, Value>, is_root: bool) -> Result<Node, Unbounded> {
        let mut node = Node { own: 1, ..Node::default() };
        let mut twice = false;
        for (keyword, value) in schema {
            node.own += 1;
            match (keyword.as_str(), value) {
                ("allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => {
                    self.extend(&mut node.same, schemas);
                }
                ("not" | "if" | "then" | "else", schema) => node.same.push(self.id(schema)),
                ("dependentSchemas" | "dependencies", Value::Object(schemas)) => {
                    let schemas = schemas.values().filter(|s| s.is_object() || s.is_boolean());
                    self.extend(&mut node.same, schemas);
                }
                ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(reference)) => {
                    self.references = true;
                    let targets = self.targets(reference)?;
                    self.extend(&mut node.same, targets);
                }
                ("$id" | "id", Value::String(_)) => self.inner_id |= !is_root,
                ("properties", Value::Object(schemas)) => {
                    self.names.extend(schemas.keys().cloned());
                    node.own += schemas.len() as u64;
                    self.extend(&mut node.apart, schemas.values());
                }
                ("items" | "prefixItems", Value::Array(schemas)) => {
                    self.extend(&mut node.apart, schemas);
                }
                ("patternProperties", Value::Object(schemas)) => {
                    self.patterns += schemas.len();
                    node.own += self.pattern_work.saturating_mul(schemas.len() as u64);
                    self.extend(&mut node.any, schemas.values());
                }
                (
                    "items"
                    | "additionalItems"
                    | "contains"
                    | "additionalProperties"
                    | "propertyNames",
                    schema,
                ) => node.any.push(self.id(schema)),
                ("unevaluatedItems" | "unevaluatedProperties", schema) => {
                    // Finding evaluated parts needs a second evaluation.
                    twice = true;
                    node.any.push(self.id(schema));
                }
                ("pattern", _) => {
                    self.patterns += 1;
                    node.own += self.pattern_work;
                }
                ("enum" | "required", Value::Array(values)) => node.own += values.len() as u64,
                ("uniqueItems", _) => node.own += 8,
                _ => {}
            }
        }
        if twice {
            node.own *= 2;
            node.same.extend_from_within(..);
            node.any.extend_from_within(..);
            // A child that two of these match is evaluated twice: counted as if each applied to any
            // child.
            node.any.extend_from_slice(&node.apart);
        }
        Ok(node)
    }

    fn extend(&mut self, edges: &mut Vec<usize>, schemas: impl IntoIterator<Item = &'a Value>) {
        for schema in schemas {
            let id = self.id(schema);
            edges.push(id);
        }
    }

    /// Possible targets of a reference: a JSON pointer or an anchor in the same document.
    fn targets(&self, reference: &str) -> Result<Vec<&'a Value>, Unbounded> {
        let targets = self.reference_table.targets(reference);
        if targets.is_empty() {
            return Err(Unbounded::Reference(crate::schema::short(reference)));
        }
        Ok(targets)
    }

    /// Nodes in topological order: after all that they apply to the same value.
    fn order(&self) -> Result<Vec<usize>, Unbounded> {
        #[derive(Clone, Copy, PartialEq)]
        enum VisitState {
            New,
            Open,
            Done,
        }
        let mut states = vec![VisitState::New; self.nodes.len()];
        let mut order = Vec::with_capacity(self.nodes.len());
        for start in 0..self.nodes.len() {
            let mut stack = vec![(start, 0)];
            while let Some((id, next)) = stack.pop() {
                if next == 0 {
                    if states[id] == VisitState::Done {
                        continue;
                    }
                    states[id] = VisitState::Open;
                }
                match self.nodes[id].same.get(next) {
                    Some(&inner) => {
                        stack.push((id, next + 1));
                        match states[inner] {
                            VisitState::New => stack.push((inner, 0)),
                            VisitState::Open => return Err(Unbounded::Endless),
                            VisitState::Done => {}
                        }
                    }
                    None => {
                        states[id] = VisitState::Done;
                        order.push(id);
                    }
                }
            }
        }
        Ok(order)
    }

    /// For each depth up to [`MAX_DEPTH`]: the maximum work of the root at one value of at most that
    /// depth, and the maximum number of nested evaluations.
    fn measure(&self, order: &[usize]) -> (Vec<u64>, Vec<u64>) {
        let sum = |row: &[u64], ids: &[usize]| {
            ids.iter().fold(0u64, |sum, &id| sum.saturating_add(row[id]))
        };
        let most = |row: &[u64], ids: &[usize]| ids.iter().map(|&id| row[id]).max().unwrap_or(0);
        let mut above = vec![0u64; self.nodes.len()];
        let mut nested_above = above.clone();
        let (mut work, mut nesting) = (Vec::new(), Vec::new());
        for depth in 0..=MAX_DEPTH {
            let mut row = vec![0u64; self.nodes.len()];
            let mut nested = row.clone();
            for &id in order {
                let node = &self.nodes[id];
                let here = if depth == 0 {
                    node.own
                } else {
                    sum(&above, &node.any).saturating_add(most(&above, &node.apart))
                };
                row[id] = here.saturating_add(sum(&row, &node.same));
                nested[id] = 1 + most(&nested, &node.same)
                    .max(most(&nested_above, &node.any))
                    .max(most(&nested_above, &node.apart));
            }
            let so_far = work.last().copied().unwrap_or(0);
            work.push(row[0].max(so_far));
            nesting.push(nested[0]);
            (above, nested_above) = (row, nested);
        }
        (work, nesting)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn work(schema: &Value, depth: usize) -> u64 {
        Bound::of(schema, LINEAR_PATTERN).unwrap().at(depth).unwrap().0
    }

    /// `levels` definitions, each of which applies the next one twice.
    fn doubling(levels: usize, apply: impl Fn(&str) -> Value) -> Value {
        let mut defs = Map::new();
        for level in 0..levels {
            defs.insert(format!("d{level}"), apply(&format!("#/$defs/d{}", level + 1)));
        }
        defs.insert(format!("d{levels}"), json!({ "type": "string" }));
        json!({ "$ref": "#/$defs/d0", "$defs": defs })
    }

    #[test]
    fn simple_schemas_have_small_bounds() {
        let schema = json!({
            "type": "object",
            "required": ["path"],
            "properties": {
                "path": { "type": "string" },
                "tags": { "type": "array", "items": { "type": "string" } },
            },
        });
        for depth in 0..=MAX_DEPTH {
            assert!(work(&schema, depth) < 20);
        }
        let bound = Bound::of(&schema, LINEAR_PATTERN).unwrap();
        assert_eq!(bound.at(MAX_DEPTH + 1), None);
        assert!(bound.names.contains("tags"));
    }

    #[test]
    fn doubling_at_one_value_is_counted() {
        let schema = doubling(60, |next| json!({ "anyOf": [{ "$ref": next }, { "$ref": next }] }));
        assert!(work(&schema, 0) > 1 << 60);
        let schema = doubling(10, |next| json!({ "allOf": [{ "$ref": next }, { "$ref": next }] }));
        assert!((1 << 10..1 << 14).contains(&work(&schema, 0)));
    }

    #[test]
    fn doubling_by_depth_is_counted() {
        let twice = json!({ "$ref": "#" });
        let recursive = json!({ "properties": { "a": { "anyOf": [twice, twice] } } });
        assert!(work(&recursive, 2) < 100);
        assert!(work(&recursive, 60) > 1 << 60);
    }

    #[test]
    fn recursive_tree_does_not_double() {
        let twice = json!({ "$ref": "#" });
        let tree = json!({
            "properties": { "left": twice, "right": twice, "children": { "items": twice } }
        });
        assert!(work(&tree, 64) < 100);
    }

    #[test]
    fn unevaluated_keywords_count_twice() {
        let mut schema = json!({ "type": "object" });
        for _ in 0..30 {
            schema = json!({ "allOf": [schema], "unevaluatedProperties": false });
        }
        assert!(work(&schema, 0) > 1 << 30);
    }

    #[test]
    fn endless_recursion_is_refused() {
        for schema in [
            json!({ "$ref": "#" }),
            json!({ "allOf": [{ "not": { "$ref": "#" } }] }),
            json!({ "$ref": "#/$defs/a", "$defs": {
                "a": { "$ref": "#/$defs/b" }, "b": { "anyOf": [true, { "$ref": "#/$defs/a" }] } } }),
            json!({ "$dynamicAnchor": "x", "$dynamicRef": "#x" }),
            json!({ "properties": { "a": { "$ref": "#/properties/a" } } }),
        ] {
            assert_eq!(Bound::of(&schema, LINEAR_PATTERN), Err(Unbounded::Endless), "{schema}");
        }
    }

    #[test]
    fn external_references_are_refused() {
        for reference in [
            "https://example.com/schema.json",
            "file:///etc/passwd",
            "other.json#/a",
            "#/nowhere",
            "#nowhere",
            "#/%zz",
            "",
        ] {
            let schema = json!({ "items": { "$ref": reference } });
            assert!(
                matches!(Bound::of(&schema, LINEAR_PATTERN), Err(Unbounded::Reference(_))),
                "{reference}"
            );
        }
        for schema in [
            json!({ "items": { "$ref": "#/x-y~1z/a%20b" }, "x-y/z": { "a b": true } }),
            json!({ "items": { "$ref": "#here" }, "$defs": { "a": { "$anchor": "here" } } }),
            json!({ "$id": "https://example.com/s", "items": { "$ref": "#/$defs/a" }, "$defs": { "a": {} } }),
        ] {
            assert!(Bound::of(&schema, LINEAR_PATTERN).is_ok(), "{schema}");
        }
        let inner =
            json!({ "items": { "$id": "https://example.com/i", "items": { "$ref": "#" } } });
        assert_eq!(Bound::of(&inner, LINEAR_PATTERN), Err(Unbounded::Id));
    }

    #[test]
    fn size_is_limited() {
        let many: Vec<Value> = (0..=MAX_SCHEMAS).map(|_| json!({})).collect();
        assert_eq!(Bound::of(&json!({ "anyOf": many }), LINEAR_PATTERN), Err(Unbounded::Size));
        let many: Vec<Value> = (0..=MAX_PATTERNS).map(|_| json!({ "pattern": "a" })).collect();
        assert_eq!(Bound::of(&json!({ "anyOf": many }), LINEAR_PATTERN), Err(Unbounded::Patterns));
    }
}
