//! Takes the members of a map one by one, and reports those that are left.

use crate::{
    node::{Key, Node},
    report::{Location, Report, brief},
};

/// A map whose members are taken.
pub(crate) struct Object<'a> {
    entries: &'a [(Key, Node)],
    taken: Vec<bool>,
    /// Requested names, present or not.
    expected: Vec<&'static str>,
    pub place: Location,
}

impl<'a> Object<'a> {
    /// The map of a node. Any other value is a problem.
    pub fn of(node: &'a Node, what: &str, report: &mut Report) -> Option<Self> {
        match node.entries() {
            Some(entries) => Some(Self {
                entries,
                taken: vec![false; entries.len()],
                expected: Vec::new(),
                place: node.place,
            }),
            None => {
                report.problem(node.place, format!("{what} is a map, and this is {}", node.kind()));
                None
            }
        }
    }

    /// A member, unless it is absent or null.
    pub fn get(&mut self, name: &'static str) -> Option<&'a Node> {
        self.expected.push(name);
        let at = self.entries.iter().position(|(key, _)| &*key.text == name)?;
        self.taken[at] = true;
        let node = &self.entries[at].1;
        (node.what != crate::node::NodeValue::Null).then_some(node)
    }

    /// A text. Numbers and flags, which many authors write, keep their original text.
    pub fn text(&mut self, name: &'static str, report: &mut Report) -> Option<LocatedText<'a>> {
        let node = self.get(name)?;
        located(node, name, report)
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &'static str, report: &mut Report) -> Option<bool> {
        let node = self.get(name)?;
        match &node.what {
            crate::node::NodeValue::Flag(flag) => Some(*flag),
            _ => {
                let text = format!("`{name}` is true or false, and this is {}", node.kind());
                report.problem(node.place, text);
                None
            }
        }
    }

    /// A list.
    pub fn list(&mut self, name: &'static str, report: &mut Report) -> &'a [Node] {
        let Some(node) = self.get(name) else { return &[] };
        node.items().unwrap_or_else(|| {
            report.problem(node.place, format!("`{name}` is a list, and this is {}", node.kind()));
            &[]
        })
    }

    /// A list of texts.
    pub fn texts(&mut self, name: &'static str, report: &mut Report) -> Vec<LocatedText<'a>> {
        let items = self.list(name, report);
        items.iter().filter_map(|item| located(item, name, report)).collect()
    }

    /// A list of maps.
    pub fn maps(&mut self, name: &'static str, report: &mut Report) -> Vec<Object<'a>> {
        let items = self.list(name, report);
        let what = format!("an entry of `{name}`");
        items.iter().filter_map(|item| Self::of(item, &what, report)).collect()
    }

    /// A map.
    pub fn map(&mut self, name: &'static str, report: &mut Report) -> Option<Object<'a>> {
        let node = self.get(name)?;
        Self::of(node, &format!("`{name}`"), report)
    }

    /// The members of a map whose values are texts.
    pub fn pairs(
        &mut self,
        name: &'static str,
        report: &mut Report,
    ) -> Vec<(&'a Key, LocatedText<'a>)> {
        let Some(node) = self.get(name) else { return Vec::new() };
        let Some(entries) = node.entries() else {
            report.problem(node.place, format!("`{name}` is a map, and this is {}", node.kind()));
            return Vec::new();
        };
        entries
            .iter()
            .filter(|(_, node)| node.what != crate::node::NodeValue::Null)
            .filter_map(|(key, node)| Some((key, located(node, &key.text, report)?)))
            .collect()
    }

    /// Takes descriptive members, which have no effect.
    pub fn describing(&mut self, names: &[&'static str]) {
        for name in names {
            self.get(name);
        }
    }

    /// Notes that the remaining members are left out. A known name in another case is a problem,
    /// because some readers accept it.
    pub fn rest(self, report: &mut Report) {
        for ((key, _), taken) in self.entries.iter().zip(&self.taken) {
            if *taken {
                continue;
            }
            match self.expected.iter().find(|expected| expected.eq_ignore_ascii_case(&key.text)) {
                Some(expected) => report.problem(
                    key.place,
                    format!("`{}` could be taken for `{expected}`", brief(&key.text)),
                ),
                None => report.left_out(
                    key.place,
                    format!("`{}` is not known here and has no effect", brief(&key.text)),
                ),
            }
        }
    }
}

/// A text and its position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocatedText<'a> {
    pub place: Location,
    pub text: &'a str,
}

fn located<'a>(node: &'a Node, name: &str, report: &mut Report) -> Option<LocatedText<'a>> {
    let text = node.scalar();
    if text.is_none() {
        let text = format!("`{}` is a text, and this is {}", brief(name), node.kind());
        report.problem(node.place, text);
    }
    text.map(|text| LocatedText { place: node.place, text })
}
