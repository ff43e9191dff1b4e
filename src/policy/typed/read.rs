//! Reads files with a server's tools.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    super::diagnostics::{File, Finding},
    ENDING, Tool, shape,
};
use portcullis_protocol::names::ServerName;

const INVALID: &str = "typed-tools";
const SAVE: &str = "`portcullis server tools SERVER --save FILE` writes such a file";

/// The server of a file, from the file's name.
pub(super) fn server(file: &File, findings: &mut Vec<Finding>) -> Option<ServerName> {
    let name = file.name.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = name.strip_suffix(ENDING).unwrap_or(name);
    match name.parse() {
        Ok(server) => Some(server),
        Err(error) => {
            let message = format!("{} begins with no server's name: {error}", file.name.display());
            let help = format!("call it SERVER{ENDING}");
            findings.push(Finding::error(INVALID, message).file(&file.name).help(help));
            None
        }
    }
}

/// The finding that two files are about one server.
pub(super) fn twice(file: &File, first: &File, server: &ServerName) -> Finding {
    let message = format!("{} is the second file with tools of `{server}`", file.name.display());
    let help = format!("the first is {}; take one of them out", first.name.display());
    Finding::error(INVALID, message).file(&file.name).help(help)
}

/// The content of a file: a response to `tools/list`, its result, or only the list.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<Vec<&'a RawValue>>,
    #[serde(rename = "nextCursor")]
    next: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    name: String,
    #[serde(borrow)]
    input_schema: Option<&'a RawValue>,
}

/// The tools of a file.
pub(super) fn tools(file: &File, findings: &mut Vec<Finding>) -> Vec<Tool> {
    let mut seen = HashSet::new();
    let mut tools = Vec::new();
    let listed = match list(&file.text) {
        Ok(listed) => listed,
        Err((problem, offset)) => {
            let message = format!("{} holds no result of `tools/list`", file.name.display());
            let finding = Finding::error(INVALID, message).at(file, offset, 0, &problem);
            findings.push(finding.help(SAVE));
            return tools;
        }
    };
    for raw in listed {
        let mut wrong = |at: &str, length: usize, message: String, label: &str, help: &str| {
            let start = (at.as_ptr() as usize).saturating_sub(file.text.as_ptr() as usize);
            let finding = Finding::error(INVALID, message).at(file, start, length, label);
            findings.push(finding.help(help));
        };
        let Listed { name, input_schema } = match serde_json::from_str(raw.get()) {
            Ok(tool) => tool,
            Err(error) => {
                let label = error.to_string();
                wrong(raw.get(), 1, "this is not a tool".to_owned(), &label, SAVE);
                continue;
            }
        };
        let shown = name.escape_debug().to_string();
        if !seen.insert(name.clone()) {
            let message = format!("the tool `{shown}` is listed twice");
            wrong(raw.get(), 1, message, "for the second time", "take one of the two out");
            continue;
        }
        let Some(schema) = input_schema else {
            let message = format!("the tool `{shown}` has no `inputSchema`");
            wrong(raw.get(), 1, message, "does not describe its arguments", UNTYPED);
            continue;
        };
        let parsed = serde_json::from_str(schema.get()).ok();
        match parsed.as_ref().ok_or(shape::Untypable::NoObject).and_then(shape::input) {
            Ok(input) => tools.push(Tool { name, input }),
            Err(problem) => {
                let message = format!("no action can be built from `inputSchema` of `{shown}`");
                wrong(schema.get(), 1, message, &problem.to_string(), UNTYPED);
            }
        }
    }
    tools
}

const UNTYPED: &str = "take the tool out of the file: policies decide on it by `call_tool` and \
                       `context.args` then";

type ReadError = (String, usize);

fn list(text: &str) -> Result<Vec<&RawValue>, ReadError> {
    let read_error = |error: serde_json::Error| {
        let before: usize =
            text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
        (error.to_string(), (before + error.column().saturating_sub(1)).min(text.len()))
    };
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(read_error);
    }
    let answer: Answer<'_> = serde_json::from_str(text).map_err(read_error)?;
    let (tools, next) = match answer.result {
        Some(result) => {
            let inner: Answer<'_> =
                serde_json::from_str(result.get()).map_err(|error| (error.to_string(), 0))?;
            (inner.tools, inner.next)
        }
        None => (answer.tools, answer.next),
    };
    match (tools, next) {
        (_, Some(_)) => Err(("is one page of several: it has a `nextCursor`".to_owned(), 0)),
        (Some(tools), None) => Ok(tools),
        (None, None) => Err(("has no `tools`".to_owned(), 0)),
    }
}
