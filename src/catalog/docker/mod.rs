//! Docker's formats: catalogs, the artifacts of newer ones, profiles, and files of settings.
//!
//! The formats follow the documentation of Docker's gateway, and the input that it accepts.

mod artifact;
mod entry;
mod files;
mod label;
mod submission;

use crate::{
    Entry, ParsedFile,
    node::{Key, Node},
    object::{LocatedText, Object},
    options::Options,
    report::{Problem, Report, brief},
    server::{Image, Run, Server},
    values::Values,
};

pub use artifact::{artifact, member, profile};
pub use files::{enabled, settings, tool_lists};
pub use label::{Described, describe};

/// The media type of a catalog as an artifact.
pub const CATALOG: &str = "application/vnd.docker.mcp.catalog.v1+json";
/// The media type of a profile as an artifact.
pub const PROFILE: &str = "application/vnd.docker.mcp.profile.v1+json";
/// The media type of a self-contained catalog of the MCP registry's entries.
pub const SERVERS: &str = "application/vnd.docker.mcp.server";

/// Maximum number of entries in one file.
const MOST: usize = 10_000;

/// Whether it is a catalog: servers by name under `registry`.
pub(crate) fn is_catalog(node: &Node) -> bool {
    node.get("registry").is_some_and(|registry| registry.entries().is_some())
}

/// Reads a catalog.
pub(crate) fn catalog(node: &Node, options: &Options) -> Result<ParsedFile, Problem> {
    let mut report = Report::default();
    let Some(mut file) = Object::of(node, "a catalog", &mut report) else {
        return Err(first(report));
    };
    let title = file.text("displayName", &mut report);
    let title = title.or(file.text("name", &mut report)).map(|located| located.text.to_owned());
    file.describing(&["version"]);
    denied(&mut file)?;
    let servers = file.get("registry").and_then(Node::entries).unwrap_or_default();
    limit(servers.len(), node)?;
    let listed = servers.iter().all(|(_, node)| {
        node.entries().is_some_and(|entries| {
            !entries.is_empty()
                && entries.iter().all(|(key, _)| matches!(&*key.text, "ref" | "config"))
        })
    });
    if listed && !servers.is_empty() {
        return Err(Problem::at(
            node.place,
            "this file says which servers of a catalog are on: read the catalog, with this file as `--enabled`",
        ));
    }
    file.rest(&mut report);
    let read = |(key, node): &(Key, Node)| {
        let located = LocatedText { place: key.place, text: &key.text };
        one(&key.text, node, |report| entry::read(Some(located), node, options, report))
    };
    let servers = servers.iter().map(read).collect();
    Ok(ParsedFile {
        format: "Docker catalog",
        title,
        servers,
        notes: report.notes,
        values: Values::new(),
    })
}

/// Whether it is a single entry, or a submission to Docker's catalog.
pub(crate) fn is_entry(node: &Node) -> bool {
    let kind = node.get("type").and_then(Node::text);
    matches!(kind, Some("server" | "remote" | "poci")) && node.get("name").is_some()
}

/// Reads a file with one server.
pub(crate) fn single(node: &Node, options: &Options) -> ParsedFile {
    let name = node.get("name").and_then(Node::scalar).unwrap_or("");
    let submitted = ["about", "run", "meta"].iter().any(|key| node.get(key).is_some());
    let server = one(name, node, |report| {
        if submitted {
            submission::read(node, options, report)
        } else {
            entry::read(None, node, options, report)
        }
    });
    let format = if submitted { "Docker catalog submission" } else { "Docker server entry" };
    ParsedFile {
        format,
        title: None,
        servers: vec![server],
        notes: Vec::new(),
        values: Values::new(),
    }
}

/// Whether it is a profile, or the catalog of an artifact: a list of servers with snapshots.
pub(crate) fn is_list(node: &Node) -> bool {
    let servers = node.get("servers").and_then(Node::items);
    servers.is_some()
        && (node.get("title").is_some()
            || node.get("version").is_some()
            || node.get("id").is_some())
}

/// Reads a profile, or the catalog of an artifact.
pub(crate) fn list(node: &Node, options: &Options) -> Result<ParsedFile, Problem> {
    let mut report = Report::default();
    let Some(mut file) = Object::of(node, "a profile", &mut report) else {
        return Err(first(report));
    };
    // A catalog has a title and lists all tools. Others may be profiles: only listed tools are on.
    let profile =
        ["id", "secrets"].iter().any(|key| node.get(key).is_some()) || node.get("title").is_none();
    let title = file.text("title", &mut report).or(file.text("name", &mut report));
    let title = title.or(file.text("id", &mut report)).map(|located| located.text.to_owned());
    if let Some(version) = file.text("version", &mut report)
        && version.text != "1"
    {
        let text = format!("version {} of profiles is not known here", brief(version.text));
        return Err(Problem::at(version.place, text));
    }
    file.describing(&["id", "ref", "source", "digest", "secrets"]);
    denied(&mut file)?;
    let servers = file.list("servers", &mut report);
    limit(servers.len(), node)?;
    file.rest(&mut report);
    let mut values = Values::new();
    let servers = servers
        .iter()
        .map(|node| {
            let inner = node.get("snapshot").and_then(|snapshot| snapshot.get("server"));
            let name = inner.and_then(|server| server.get("name")).and_then(Node::scalar);
            let name = name.unwrap_or("(no name)");
            if let Some(config) = node.get("config") {
                values.insert(name.to_owned(), config.to_json());
            }
            one(name, node, |report| listed(name, node, profile, options, report))
        })
        .collect();
    let format = if profile { "Docker profile" } else { "Docker catalog artifact" };
    Ok(ParsedFile { format, title, servers, notes: report.notes, values })
}

/// A server of a list, with its snapshot: the catalog's entry at the time it was added.
fn listed(
    name: &str,
    node: &Node,
    profile: bool,
    options: &Options,
    report: &mut Report,
) -> Option<Server> {
    let mut outer = Object::of(node, "a server", report)?;
    let kind = outer.text("type", report);
    let image = outer.text("image", report);
    let endpoint = outer.text("endpoint", report);
    let source = outer.text("source", report);
    let left_on = outer.get("tools").is_some();
    let tools = outer.texts("tools", report);
    let config = outer.get("config").map(Node::to_json);
    outer.describing(&["secrets", "catalog_ref", "catalogRef"]);
    denied(&mut outer).map_err(|problem| report.problems.push(problem)).ok()?;
    let place = outer.place;
    let snapshot = outer.map("snapshot", report);
    outer.rest(report);
    let inner = snapshot.and_then(|mut snapshot| snapshot.get("server"));
    let Some(inner) = inner else {
        let from = source.or(image).or(endpoint).map_or("", |located| located.text);
        report.problem(place, format!("it has no `snapshot`: add `{}` by itself", brief(from)));
        return None;
    };
    let mut options = options.clone();
    if let Some(config) = config {
        options.theirs.insert(name.to_owned(), config);
    }
    // A profile lists the tools that its owner enabled; a catalog lists all.
    if left_on && (profile || node.get("config").is_some()) {
        let tools = tools.iter().map(|tool| tool.text.to_owned()).collect();
        options.only.entry(name.to_owned()).or_insert(tools);
    }
    let mut server = entry::read(None, inner, &options, report)?;
    match (kind.map(|kind| kind.text), image, endpoint) {
        (Some("image"), Some(outer), _) => {
            let image: Image = outer
                .text
                .parse()
                .map_err(|error: crate::image::NoImage| {
                    report.problem(outer.place, error.to_string())
                })
                .ok()?;
            match &mut server.run {
                Run::Image { image: inner, .. } => *inner = image,
                _ => {
                    report.problem(outer.place, "it is an image here and none in its `snapshot`");
                    return None;
                }
            }
        }
        (Some("remote"), _, Some(outer)) => {
            let same = matches!(&server.run, Run::Remote { url, .. } if url == outer.text);
            if !same {
                report.problem(outer.place, "its `snapshot` has another endpoint");
                return None;
            }
        }
        (Some("registry" | "image" | "remote"), ..) => {}
        (kind, ..) => {
            let text = format!("`{}` is not a type of server here", brief(kind.unwrap_or("")));
            report.problem(place, text);
            return None;
        }
    }
    Some(server)
}

/// Runs a reader for one server, and collects the problems of that server.
pub(crate) fn one(
    name: &str,
    node: &Node,
    read: impl FnOnce(&mut Report) -> Option<Server>,
) -> Entry {
    let mut report = Report::default();
    let server = read(&mut report);
    let name = name.to_owned();
    match server {
        Some(mut server) if report.problems.is_empty() => {
            server.notes.append(&mut report.notes);
            Entry { name, place: node.place, server: Ok(server) }
        }
        _ => {
            if report.problems.is_empty() {
                report.problem(node.place, "it cannot be read");
            }
            Entry { name, place: node.place, server: Err(report.problems) }
        }
    }
}

fn denied(file: &mut Object<'_>) -> Result<(), Problem> {
    let Some(policy) = file.get("policy") else { return Ok(()) };
    let allowed = policy.get("allowed").map(|node| &node.what);
    if allowed == Some(&crate::node::NodeValue::Flag(true)) {
        return Ok(());
    }
    let reason = policy.get("reason").and_then(Node::text).unwrap_or("");
    Err(Problem::at(policy.place, format!("its author does not allow it: {}", brief(reason))))
}

fn limit(servers: usize, node: &Node) -> Result<(), Problem> {
    if servers > MOST {
        return Err(Problem::at(node.place, format!("more than {MOST} servers in one file")));
    }
    Ok(())
}

fn first(report: Report) -> Problem {
    report.problems.into_iter().next().unwrap_or_else(|| Problem::of("it cannot be read"))
}
