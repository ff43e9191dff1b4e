//! A submission to Docker's catalog (`server.yaml`): the same data in another layout.

use crate::{
    node::{Key, Node, NodeValue},
    options::Options,
    report::{Location, Report},
    server::Server,
};

/// Reads a submission by converting it to an entry of a catalog.
pub(super) fn read(node: &Node, options: &Options, report: &mut Report) -> Option<Server> {
    let entries = node.entries()?;
    let mut flat = Vec::new();
    for (key, node) in entries {
        match &*key.text {
            // Build and presentation.
            "source" | "meta" | "dynamic" | "requirement" => {}
            "about" => flat.extend(members(node, &["title", "description"])),
            "run" => {
                for (key, node) in node.entries().unwrap_or_default() {
                    // Fixed variables are a map here, and a list in a catalog.
                    if &*key.text == "env" {
                        let pairs = node.entries().unwrap_or_default();
                        variables(&mut flat, key.place, pairs.iter().map(pair).collect());
                    } else {
                        flat.push((key.clone(), node.clone()));
                    }
                }
            }
            "config" => config(&mut flat, node, entries),
            "oauth" => {
                let providers = Key { place: key.place, text: "providers".into() };
                let what = NodeValue::Map(vec![(providers, node.clone())]);
                flat.push((key.clone(), Node { place: node.place, what }));
            }
            _ => flat.push((key.clone(), node.clone())),
        }
    }
    if let Some((key, _)) = twice(&flat) {
        report.problem(key.place, format!("`{}` is said in two places", key.text));
        return None;
    }
    super::entry::read(
        None,
        &Node { place: node.place, what: NodeValue::Map(flat) },
        options,
        report,
    )
}

fn members(node: &Node, names: &[&str]) -> Vec<(Key, Node)> {
    let entries = node.entries().unwrap_or_default().iter();
    entries.filter(|(key, _)| names.contains(&&*key.text)).cloned().collect()
}

fn pair((key, value): &(Key, Node)) -> Node {
    let name = Node { place: key.place, what: NodeValue::Text(key.text.clone()) };
    let entry = |text: &str, node: Node| (Key { place: key.place, text: text.into() }, node);
    let what = NodeValue::Map(vec![entry("name", name), entry("value", value.clone())]);
    Node { place: key.place, what }
}

/// Appends variables.
fn variables(flat: &mut Vec<(Key, Node)>, place: Location, more: Vec<Node>) {
    let there = flat.iter_mut().find(|(key, _)| &*key.text == "env");
    match there {
        Some((_, Node { what: NodeValue::List(items), .. })) => items.extend(more),
        _ => flat
            .push((Key { place, text: "env".into() }, Node { place, what: NodeValue::List(more) })),
    }
}

fn config(flat: &mut Vec<(Key, Node)>, node: &Node, entries: &[(Key, Node)]) {
    let mut schema = Vec::new();
    for (key, inner) in node.entries().unwrap_or_default() {
        match &*key.text {
            "secrets" => flat.push((key.clone(), inner.clone())),
            "env" => variables(flat, key.place, inner.items().unwrap_or_default().to_vec()),
            "parameters" => schema.extend(inner.entries().unwrap_or_default().iter().cloned()),
            "anyOf" => schema.push((key.clone(), inner.clone())),
            _ => {}
        }
    }
    if schema.is_empty() {
        return;
    }
    schema.retain(|(key, _)| &*key.text != "name");
    let own = entries.iter().find(|(key, _)| &*key.text == "name");
    if let Some((key, name)) = own {
        schema.push((key.clone(), name.clone()));
    }
    let place = node.place;
    let schema = Node { place, what: NodeValue::Map(schema) };
    let list = Node { place, what: NodeValue::List(vec![schema]) };
    flat.push((Key { place, text: "config".into() }, list));
}

fn twice(entries: &[(Key, Node)]) -> Option<&(Key, Node)> {
    let mut seen = std::collections::HashSet::new();
    entries.iter().find(|(key, _)| !seen.insert(&key.text))
}
