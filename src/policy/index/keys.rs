//! Keys of arguments that policies name.
//!
//! Policies compare keys exactly. Some servers do not: Go's `encoding/json` takes `FORCE` for
//! `force`, and uses the last one of both. So a key that differs only in case from a named one is
//! refused, at every level, also if the exact key is present. Other keys may differ only in case:
//! an environment may contain `http_proxy` and `HTTP_PROXY`.

use std::collections::{BTreeSet, HashMap, HashSet};

use cedar_policy_core::ast::{BinaryOp, Expr, ExprKind, Literal, Var};
use serde_json::{Map, Value};
use smol_str::SmolStr;

use crate::{
    conditions::{Node, literal_text, parts},
    normalize,
};
use portcullis_protocol::{
    arguments::{self, Unshowable},
    codec::fold,
};

/// Approximate bytes of a pointer's token in [`NamedKeys`].
const TOKEN: u64 = 192;

/// The JSON pointers of arguments that one policy reads.
#[derive(Debug, Clone, Default)]
pub(super) struct TagKeys {
    pointers: BTreeSet<SmolStr>,
    /// The pointers that are read from `context.paths`.
    paths: BTreeSet<SmolStr>,
    /// Whether a pointer is computed, and so may have any value.
    computed: bool,
    /// Whether a computed pointer is read from `context.paths`.
    computed_path: bool,
}

impl TagKeys {
    /// Adds the keys of a condition.
    pub(super) fn add(&mut self, condition: &Node) {
        match condition.kind.parts() {
            [] => self.add_leaf(condition.expr()),
            parts => parts.iter().for_each(|part| self.add(part)),
        }
    }

    /// Adds the keys of an unsplit part. Its values are never compared with those of another part.
    fn add_leaf(&mut self, leaf: &Expr) {
        // An explicit stack: a chain of `&&` is as deep as it is long.
        let mut pending = vec![leaf];
        let mut texts = Vec::new();
        // Whether names of arguments are compared with unknown values.
        let mut loose = false;
        while let Some(expr) = pending.pop() {
            match expr.expr_kind() {
                ExprKind::BinaryApp { op: BinaryOp::GetTag | BinaryOp::HasTag, arg1, arg2 } => {
                    let is_path =
                        !["args", "urls", "lists"].iter().any(|name| is_member(arg1, name));
                    self.add_tag(arg2, is_path);
                    pending.extend([&**arg1, arg2]);
                }
                ExprKind::BinaryApp { arg1, arg2, .. } => {
                    for (of, names) in [(arg1, arg2), (arg2, arg1)] {
                        match of.expr_kind() {
                            ExprKind::GetAttr { expr, attr }
                                if is_keys(attr) && self.add_names(names) =>
                            {
                                pending.push(expr);
                            }
                            _ => pending.push(of),
                        }
                    }
                }
                ExprKind::GetAttr { expr, attr } => {
                    loose |= is_keys(attr);
                    pending.push(expr);
                }
                ExprKind::Lit(Literal::String(text)) => texts.push(text),
                _ => match parts(expr) {
                    Some(parts) => pending.extend(parts),
                    // Forms that future versions of Cedar may add can read any argument.
                    None => (self.computed, self.computed_path) = (true, true),
                },
            }
        }
        if loose {
            // Each text of the part may be such a name.
            texts.into_iter().for_each(|text| self.add_name(text));
        }
    }

    fn add_tag(&mut self, key: &Expr, is_path: bool) {
        match key.expr_kind() {
            ExprKind::Lit(Literal::String(pointer)) => {
                if is_path {
                    self.paths.insert(pointer.clone());
                }
                self.pointers.insert(pointer.clone());
            }
            ExprKind::If { then_expr, else_expr, .. } => {
                self.add_tag(then_expr, is_path);
                self.add_tag(else_expr, is_path);
            }
            _ => {
                self.computed = true;
                self.computed_path |= is_path;
            }
        }
    }

    /// Adds names that are compared with `context.args.keys`, if they are literals.
    fn add_names(&mut self, names: &Expr) -> bool {
        match names.expr_kind() {
            ExprKind::Set(names) => names.iter().all(|name| self.add_names(name)),
            _ => literal_text(names).inspect(|name| self.add_name(name)).is_some(),
        }
    }

    fn add_name(&mut self, name: &str) {
        let mut pointer = String::new();
        arguments::push_token(&mut pointer, name);
        self.pointers.insert(pointer.into());
    }
}

/// Whether it is `context.NAME`.
fn is_member(expr: &Expr, name: &str) -> bool {
    matches!(expr.expr_kind(), ExprKind::GetAttr { expr, attr }
        if attr == name && matches!(expr.expr_kind(), ExprKind::Var(Var::Context)))
}

/// Whether an attribute is the names of arguments. No other attribute in the schema has this name.
fn is_keys(attribute: &str) -> bool {
    attribute == "keys"
}

/// The arguments that some policies name, merged.
#[derive(Debug, Default)]
pub(super) struct NamedKeys {
    root: Token,
    tokens: u64,
    computed: bool,
    computed_path: bool,
}

#[derive(Debug, Default)]
struct Token {
    /// Children, by key.
    below: HashMap<Box<str>, Token>,
    /// The same keys, with case folded.
    folded: HashSet<Box<str>>,
    /// Whether the value is read as a path.
    is_path: bool,
}

impl NamedKeys {
    /// Adds the keys of a policy.
    pub(super) fn add(&mut self, keys: &TagKeys) {
        self.computed |= keys.computed;
        self.computed_path |= keys.computed_path;
        for pointer in &keys.pointers {
            // A text that is not a pointer names no argument.
            let Some(tokens) = pointer.strip_prefix('/') else { continue };
            let mut node = &mut self.root;
            for token in tokens.split('/') {
                let token = token.replace("~1", "/").replace("~0", "~");
                node.folded.insert(fold(token.as_str().into()).into());
                self.tokens += 1;
                node = node.below.entry(token.into()).or_default();
            }
            node.is_path |= keys.paths.contains(pointer);
        }
    }

    /// Approximate size in bytes.
    pub(super) fn weight(&self) -> u64 {
        self.tokens * TOKEN
    }

    /// Checks that every server reads these arguments as the policies do: no key differs only in
    /// case from a named one, and no path that policies read contains NUL. If policies compute
    /// pointers, no two keys of an object may differ only in case, and no text may contain NUL.
    ///
    /// # Errors
    /// [`Unshowable::Misspelled`], [`Unshowable::CaseTwins`] and [`Unshowable::NulInPath`].
    pub(super) fn check(&self, args: Option<&Map<String, Value>>) -> Result<(), Unshowable> {
        let everywhere = self.computed || self.computed_path;
        let Some(args) = args.filter(|_| everywhere || !self.root.below.is_empty()) else {
            return Ok(());
        };
        let mut open = Vec::new();
        self.members(Some(&self.root), args, &mut open)?;
        while let Some((node, value)) = open.pop() {
            match value {
                Value::Object(members) => self.members(node, members, &mut open)?,
                Value::Array(items) => {
                    let node = node.filter(|node| !node.below.is_empty());
                    if node.is_none() && !everywhere {
                        continue;
                    }
                    for (index, item) in items.iter().enumerate() {
                        let below = node.and_then(|node| node.below.get(&*index.to_string()));
                        if everywhere || below.is_some() {
                            open.push((below, item));
                        }
                    }
                }
                Value::String(text) => {
                    let is_path = self.computed_path || node.is_some_and(|node| node.is_path);
                    if is_path && normalize::holds_nul(text) {
                        return Err(Unshowable::NulInPath);
                    }
                }
                Value::Null | Value::Bool(_) | Value::Number(_) => {}
            }
        }
        Ok(())
    }

    fn members<'a>(
        &'a self,
        node: Option<&'a Token>,
        members: &'a Map<String, Value>,
        open: &mut Vec<(Option<&'a Token>, &'a Value)>,
    ) -> Result<(), Unshowable> {
        let mut met = HashSet::new();
        for (key, value) in members {
            let below = node.and_then(|node| node.below.get(key.as_str()));
            if let (Some(node), None) = (node, below)
                && !node.folded.is_empty()
                && node.folded.contains(&*fold(key.into()))
            {
                return Err(Unshowable::Misspelled);
            }
            if self.computed && !met.insert(fold(key.into())) {
                return Err(Unshowable::CaseTwins);
            }
            if self.computed || self.computed_path || below.is_some() {
                open.push((below, value));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cedar_policy::Policy;
    use serde_json::json;

    use super::*;

    fn check(condition: &str, args: &Value) -> Result<(), Unshowable> {
        let text = format!("permit (principal, action, resource) when {{ {condition} }};");
        let mut keys = TagKeys::default();
        keys.add(&Node::of(&text.parse::<Policy>().unwrap()).unwrap());
        let mut named = NamedKeys::default();
        named.add(&keys);
        named.check(args.as_object())
    }

    const FORCE: &str =
        r#"context.args.hasTag("/cfg/force") && context.args.getTag("/cfg/force") == "false""#;

    #[test]
    fn misspelled_case_of_a_named_key_is_refused() {
        for args in [
            json!({ "cfg": { "force": false } }),
            json!({ "cfg": { "other": 1, "OTHER": 2 }, "env": { "http_proxy": 1, "HTTP_PROXY": 2 } }),
            json!({ "cfg": [{ "FORCE": true }], "force": { "FORCE": 1 }, "FORCE": 2 }),
            json!({}),
        ] {
            assert_eq!(check(FORCE, &args), Ok(()), "{args}");
        }
        for args in [
            json!({ "cfg": { "force": false, "FORCE": true } }),
            json!({ "cfg": { "FORCE": true, "force": false } }),
            json!({ "cfg": { "Force": true } }),
            json!({ "Cfg": { "force": true } }),
            json!({ "CFG": 1 }),
        ] {
            assert_eq!(check(FORCE, &args), Err(Unshowable::Misspelled), "{args}");
        }
        for (condition, args) in [
            (r#"context.args.hasTag("/l/0/ask")"#, json!({ "l": [{ "a\u{17f}k": 1 }] })),
            (r#"context.urls.getTag("/a~1b/~0k").port == 1"#, json!({ "a/b": { "~\u{212a}": 1 } })),
            (r#"context.lists.getTag("/l/m") == 1"#, json!({ "l": { "M": [1, 2] } })),
            (r#"context.args.keys.contains("force")"#, json!({ "Force": 1 })),
            (r#"["path", "a/b"].containsAll(context.args.keys)"#, json!({ "A/B": 1 })),
            (r#"{k: context.args.keys}.k.contains("force")"#, json!({ "Force": 1 })),
            (r#"{k: context.args.keys} == {k: ["a", "force"]}"#, json!({ "Force": 1 })),
            (
                r#"(if principal.verified then context.args.keys else []).contains("force")"#,
                json!({ "Force": 1 }),
            ),
            (
                r#"context.args.keys.contains(if principal.verified then "a" else "force")"#,
                json!({ "Force": 1 }),
            ),
            (r#"{c: context.args}.c.hasTag("/a/b")"#, json!({ "a": { "B": 1 } })),
            (
                r#"context.args.hasTag(if principal.verified then "/a/b" else "/a/c")"#,
                json!({ "a": { "C": 1 } }),
            ),
        ] {
            assert_eq!(check(condition, &args), Err(Unshowable::Misspelled), "{condition} {args}");
        }
    }

    #[test]
    fn other_string_literals_name_no_argument() {
        let text = r#"context.args.keys.contains("force") && principal.name == "Bob""#;
        assert_eq!(check(text, &json!({ "bob": 1, "force": 1 })), Ok(()));
    }

    #[test]
    fn computed_key_refuses_keys_that_differ_only_in_case() {
        let computed = "context.args.hasTag(principal.name)";
        for (args, expected) in [
            (json!({ "a": { "b": 1, "c": 2 } }), Ok(())),
            (json!({ "a": { "b": 1, "B": 2 } }), Err(Unshowable::CaseTwins)),
            (json!({ "a": [[{ "d": { "b": 1, "B": 2 } }]] }), Err(Unshowable::CaseTwins)),
            (json!({ "a": "\0" }), Ok(())),
        ] {
            assert_eq!(check(computed, &args), expected, "{args}");
        }
        assert_eq!(
            check("context.paths.hasTag(principal.name)", &json!({ "a": ["\0"] })),
            Err(Unshowable::NulInPath)
        );
    }

    #[test]
    fn path_with_nul_is_refused_if_a_policy_reads_paths() {
        let text = r#"context.paths.getTag("/path") like "*.txt""#;
        for args in [
            json!({ "path": "/etc/passwd\0.txt" }),
            json!({ "path": "/etc/passwd%00.txt" }),
            json!({ "path": "file:///etc/shadow%00.txt" }),
            json!({ "path": "file:///etc/shadow%2500.txt" }),
            json!({ "path": "\0" }),
        ] {
            assert_eq!(check(text, &args), Err(Unshowable::NulInPath), "{args}");
        }
        for args in [
            json!({ "path": "/srv/a.txt", "content": "binary \0 text, 100%00" }),
            json!({ "path": ["\0"], "paths": "\0" }),
        ] {
            assert_eq!(check(text, &args), Ok(()), "{args}");
        }
        let as_it_is = r#"context.args.getTag("/path") like "*.txt""#;
        assert_eq!(check(as_it_is, &json!({ "path": "a\0.txt" })), Ok(()));
    }

    #[test]
    fn weight_counts_the_tokens() {
        let mut keys = TagKeys::default();
        keys.pointers.extend(["/a/b".into(), "/a".into(), "no pointer".into()]);
        let mut named = NamedKeys::default();
        named.add(&keys);
        assert_eq!(named.weight(), 3 * TOKEN);
    }
}
