//! The description of an image in its label `io.docker.server.metadata`.
//!
//! Invariant: the publisher of the image wrote it, so it describes and never shapes how the server
//! runs: no command, mount, user, host, secret or value is taken from it.

use serde::Serialize;

use crate::{
    node::Node,
    report::{Problem, brief},
    server::Tool,
};

/// Name of the label.
pub const LABEL: &str = "io.docker.server.metadata";

/// Maximum size of the label.
const LONGEST: usize = 256 << 10;

/// The description of an image by its publisher.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Described {
    pub name: Option<String>,
    pub title: Option<String>,
    pub description: Option<String>,
    pub tools: Vec<Tool>,
    /// Names of the variables that it reads.
    pub variables: Vec<String>,
}

/// Reads the label of an image.
///
/// # Errors
/// If it is not a YAML map, or is too long.
pub fn describe(label: &str) -> Result<Described, Problem> {
    if label.len() > LONGEST {
        return Err(Problem::of(format!("the label `{LABEL}` is too long")));
    }
    let node = crate::yaml::read(label)?;
    if node.entries().is_none() {
        return Err(Problem::at(node.place, format!("the label `{LABEL}` is not a map")));
    }
    let text = |node: &Node, key: &str| node.get(key).and_then(Node::scalar).map(str::to_owned);
    let items = |key: &str| node.get(key).and_then(Node::items).unwrap_or_default();
    let names = |key: &str, name: &str| {
        items(key)
            .iter()
            .filter_map(|item| text(item, name))
            .map(|name| brief(&name))
            .collect::<Vec<_>>()
    };
    let mut variables = names("env", "name");
    variables.extend(names("secrets", "env"));
    Ok(Described {
        name: text(&node, "name"),
        title: text(&node, "title"),
        description: text(&node, "description"),
        tools: items("tools")
            .iter()
            .filter_map(|tool| {
                Some(Tool { name: text(tool, "name")?, description: text(tool, "description") })
            })
            .collect(),
        variables,
    })
}
