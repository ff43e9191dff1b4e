//! Typed actions: each tool of a saved `tools/list` has its own action, whose `context.input` has
//! the type that the tool's `inputSchema` describes. So `context.input.repo like "acme/*"` is
//! validated when policies load, and arguments of another form are refused.
//!
//! A list is saved as `SERVER.tools.json` among the policies, and is part of the set. It is a
//! statement of the operator: later statements of the server do not change it. A call is decided
//! under `call_tool` and under the tool's own action, and the results of both count.
//!
//! `cedar-policy-mcp-schema-generator` 0.7 makes such actions too. It is not used, because it
//! - requires one exact version of Cedar's core (`=4.14.0`): no fix of Cedar could be used before
//!   its next release;
//! - uses names of tools and properties as Cedar identifiers, and refuses a list that contains
//!   `get-file` or `user-agent`, which are legal and common;
//! - gives an action the members `input` and one for each stub, so the circumstances would differ
//!   from those of all other actions, and no policy for several actions would validate;
//! - makes entities of enums, numbers, objects and `format`s, and a record of alternatives of each
//!   `anyOf`, so `like` and `==` would not work on the most common forms (an optional text is
//!   `anyOf: [string, null]`);
//! - parses a call's arguments with its own JSON parser. No parser may read a message differently
//!   from ours.

mod read;
mod shape;
mod text;
mod value;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use cedar_policy::RestrictedExpression;
use serde_json::{Map, Value};

use self::shape::Record;
pub(super) use self::value::InputMismatch;
use super::diagnostics::{File, Finding};
use portcullis_protocol::names::ServerName;

/// Suffix of files with a server's tools.
const ENDING: &str = ".tools.json";

/// The tools that have their own action.
#[derive(Debug, Default)]
pub(super) struct Typed {
    /// The schema with their actions. `None` if there are no files.
    schema: Option<String>,
    /// The servers, each with the file of its tools.
    files: Vec<(ServerName, PathBuf)>,
    tools: HashMap<ServerName, HashMap<String, Record>>,
}

/// A tool with the type of its arguments.
struct Tool {
    name: String,
    input: Record,
}

/// Whether a file of this name lists a server's tools.
pub fn is_tools_file(name: &Path) -> bool {
    name.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(ENDING))
}

impl Typed {
    /// Reads the lists among these files.
    pub(super) fn read(files: &[File], findings: &mut Vec<Finding>) -> Self {
        let mut read: Vec<(&File, ServerName, Vec<Tool>)> = Vec::new();
        for file in files.iter().filter(|file| is_tools_file(&file.name)) {
            let Some(server) = read::server(file, findings) else { continue };
            if let Some((first, ..)) = read.iter().find(|(_, other, _)| *other == server) {
                findings.push(read::twice(file, first, &server));
                continue;
            }
            read.push((file, server, read::tools(file, findings)));
        }
        if read.is_empty() {
            return Self::default();
        }
        let all = read.iter().map(|(file, server, tools)| (*file, server, tools.iter().collect()));
        let schema = Some(text::schema(all));
        let files =
            read.iter().map(|(file, server, _)| (server.clone(), file.name.clone())).collect();
        let tools = read.into_iter().map(|(_, server, tools)| {
            (server, tools.into_iter().map(|tool| (tool.name, tool.input)).collect())
        });
        Self { tools: tools.collect(), files, schema }
    }

    /// The schema with the typed actions. `None` if there are none.
    pub(super) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The servers, each with the file of its tools.
    pub(super) fn files(&self) -> &[(ServerName, PathBuf)] {
        &self.files
    }

    /// Every tool.
    pub(super) fn tools(&self) -> impl Iterator<Item = (&ServerName, &str)> {
        self.tools
            .iter()
            .flat_map(|(server, tools)| tools.keys().map(move |name| (server, name.as_str())))
    }

    /// The arguments of a call as `context.input` of the tool's action.
    ///
    /// # Errors
    /// If they do not fit the type, or the tool does not have one.
    pub(super) fn input(
        &self,
        server: &ServerName,
        tool: &str,
        args: Option<&Map<String, Value>>,
    ) -> Result<RestrictedExpression, InputMismatch> {
        match self.tools.get(server).and_then(|tools| tools.get(tool)) {
            Some(record) => value::input(record, args),
            None => value::input(&Record { closed: true, ..Record::default() }, args),
        }
    }
}
