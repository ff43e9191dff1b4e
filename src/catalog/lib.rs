//! Descriptions of MCP servers by others, read and converted: Docker's catalogs and profiles,
//! `server.json` of the MCP registry, and `mcpServers` of desktop clients.
//!
//! # Invariants
//! - All input is hostile until it is a [`Server`].
//! - No input makes a reader panic, take more memory than a small multiple of its size, or recurse
//!   deeper than [`MAX_DEPTH`].
//! - A `Server` holds references to secrets and never a secret in plain text. A server that may
//!   hold a secret where none can be delivered is refused, and its value is in no message.
//! - Only the person can weaken the hardened profile: folders that they named, and a user by
//!   number. Everything else becomes a [`Note`].
//! - An invalid server does not affect the others of its file; each problem has its position.

pub mod client_files;
mod clients;
mod command_line;
mod docker;
mod draft;
mod image;
mod interpolation;
mod json;
pub mod lock;
mod mount;
mod name;
mod node;
mod object;
mod options;
mod package_run;
mod packages;
pub mod profile_file;
mod reference;
mod registry;
mod report;
mod secret_heuristics;
pub mod sensitive_paths;
mod server;
mod template;
mod tomls;
mod values;
mod variables;
pub mod write;
mod yaml;

use std::collections::BTreeMap;

use object::LocatedText;
use serde::Serialize;

pub use command_line::Named;
pub use docker::{
    CATALOG, Described, PROFILE, SERVERS, artifact, describe, enabled, member, profile, settings,
    tool_lists,
};
pub use image::NoImage;
pub use name::{NameError, Names, is_legal, ours, own_variables};
pub use node::{Key, MAX_BYTES, MAX_DEPTH, MAX_NODES, Node, NodeValue};
pub use options::{Options, Packages};
pub use reference::{NoReference, Reference};
pub use report::{Kind, Location, Note, Problem, brief, quoted};
pub use secret_heuristics::{
    argument_holds_secret, begins_as_key, holds_key, names_secret, segment_holds_secret,
    url_holds_secret,
};
pub use server::{Delivery, DeliveryKind, Image, Mount, Run, Secret, Server, Tool, Transport};
pub use values::{Values, set};

/// Content of a file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ParsedFile {
    /// Name of the format.
    pub format: &'static str,
    /// Title of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    pub servers: Vec<Entry>,
    /// Notes about the file as a whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
    /// Settings of its servers, if it is a profile.
    #[serde(skip)]
    pub values: Values,
}

/// One server of a file.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Its name in the file.
    pub name: String,
    pub place: Location,
    /// The server, or all of its problems.
    pub server: Result<Server, Vec<Problem>>,
}

/// Reads a document of YAML, JSON or TOML.
///
/// # Errors
/// If it is in none of these formats, too large, or has a duplicate key.
pub fn parse(text: &str) -> Result<Node, Problem> {
    if text.len() > MAX_BYTES {
        return Err(Problem::of(format!("the file has more than {} MiB", MAX_BYTES >> 20)));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let begins = text.trim_start();
    if begins.starts_with(['{', '/']) || (begins.starts_with('[') && !is_toml(begins)) {
        return json::read(text);
    }
    if is_toml(begins) { tomls::read(text) } else { yaml::read(text) }
}

/// Whether a file begins with a table or an assignment of TOML, which would be plain text in YAML.
fn is_toml(text: &str) -> bool {
    let line =
        text.lines().find(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    line.is_some_and(|line| {
        let line = line.trim();
        let name = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        let table =
            line.strip_prefix('[').and_then(|line| line.strip_suffix(']')).is_some_and(name);
        let assigned = line.split_once('=').is_some_and(|(key, _)| name(key.trim()));
        table || assigned
    })
}

/// Reads the servers of a file in any format.
///
/// # Errors
/// If the file as a whole cannot be read. Problems of a single server are in its entry.
pub fn read(text: &str, options: &Options) -> Result<ParsedFile, Problem> {
    let node = parse(text)?;
    if node.entries().is_none() {
        return Err(Problem::at(node.place, "a file that describes servers is a map"));
    }
    if registry::is_file(&node) {
        registry::file(&node, options)
    } else if docker::is_catalog(&node) {
        docker::catalog(&node, options)
    } else if docker::is_entry(&node) {
        Ok(docker::single(&node, options))
    } else if docker::is_list(&node) {
        docker::list(&node, options)
    } else if clients::is_file(&node) {
        clients::file(&node, options)
    } else {
        Err(Problem::at(
            node.place,
            "this is nothing that describes servers: a catalog, a profile, a `server.json` or a file with \
             `mcpServers`",
        ))
    }
}

/// A server of which only the image is known, with plain variables and the references of secrets
/// that the person named.
#[must_use]
pub fn of_image(
    image: &Image,
    name: Option<&str>,
    described: Option<&Described>,
    env: &BTreeMap<String, String>,
    secrets: &BTreeMap<String, String>,
) -> Entry {
    let last = image.name.rsplit('/').next().unwrap_or(&image.name);
    let last = last.split(':').next().unwrap_or(last);
    let place = Location { line: 1, column: 1 };
    let options = Options { name: name.map(str::to_owned), ..Options::default() };
    let mut report = report::Report::default();
    if image.is_id() && name.is_none() {
        report
            .problem(place, "an image's id says no name for the server: choose one with `--name`");
    }
    let server = draft::Draft::of(last, &options, &mut report, place).and_then(|mut draft| {
        if let Some(described) = described {
            draft.title.clone_from(&described.title);
            draft.description.clone_from(&described.description);
            draft.tools.clone_from(&described.tools);
            let named = |variable: &String| env.contains_key(variable) || secrets.contains_key(variable);
            for variable in described.variables.iter().filter(|variable| !named(variable)) {
                report.advice(
                    place,
                    format!("the image says that it reads `{variable}`: set it in `env` or `secrets` if it needs it"),
                );
            }
        }
        for (name, from) in secrets {
            draft.secret_from(LocatedText { place, text: name }, from.clone(), None, &mut report);
        }
        for (name, value) in env {
            draft.variable(LocatedText { place, text: name }, value, false, &mut report);
        }
        let run = Run::Image { image: image.clone(), arguments: Vec::new() };
        draft.finish(run, &mut report)
    });
    Entry { name: last.to_owned(), place, server: server.ok_or(report.problems) }
}
