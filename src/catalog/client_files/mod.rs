//! Config files of MCP clients: adds an entry that starts Portcullis, and removes it again.
//!
//! # Invariants
//! - A change touches the entry only. [`ClientKind::insert`] and [`ClientKind::remove`] parse the
//!   result and compare it with the file before.
//! - Removing an entry that nobody changed restores the file byte for byte.
//! - An entry names a file with a key, and contains no key.

mod in_json;
mod in_toml;
mod in_yaml;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    json,
    node::{MAX_BYTES, Node, NodeValue},
    report::{Location, Problem},
    tomls, yaml,
};

/// Format of a client's config file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON, with comments and trailing commas.
    Json,
    Toml,
    Yaml,
}

/// Folder of a user's config files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The home folder.
    Home,
    /// `$XDG_CONFIG_HOME`, or else `.config` in the home folder.
    Config,
}

/// A user's config file of a client.
#[derive(Debug)]
pub struct UserFile {
    pub base: Base,
    /// Paths that the client reads. The first one that exists is used, or else the first one.
    pub names: &'static [&'static str],
}

/// A member of an entry.
#[derive(Debug, Clone, Copy)]
enum Member {
    Text(&'static str),
    Number(u32),
    Flag(bool),
    /// The entry's own name.
    Name,
    /// The program.
    Program,
    /// The program's arguments.
    Arguments,
    /// The program and its arguments in one list.
    CommandLine,
    EmptyMap,
    EmptyList,
}

/// Members of the entry of most clients.
const COMMON: &[(&str, Member)] = &[("command", Member::Program), ("args", Member::Arguments)];

/// Members of the entry of clients that name the transport.
const WITH_TYPE: &[(&str, Member)] =
    &[("type", Member::Text("stdio")), ("command", Member::Program), ("args", Member::Arguments)];

/// An MCP client and the form of its config file.
#[derive(Debug)]
pub struct ClientKind {
    /// Name on the command line.
    pub name: &'static str,
    /// Name of the product.
    pub title: &'static str,
    pub format: Format,
    /// A user's file on Linux.
    pub linux: UserFile,
    /// A user's file on macOS.
    pub macos: UserFile,
    /// Paths of a project's file in the project's folder, if the client has such a file. The first
    /// one that exists is used, or else the first one.
    pub project: Option<&'static [&'static str]>,
    /// Key of the map of servers.
    section: &'static str,
    entry: &'static [(&'static str, Member)],
}

const fn home(names: &'static [&'static str]) -> UserFile {
    UserFile { base: Base::Home, names }
}

const fn config(names: &'static [&'static str]) -> UserFile {
    UserFile { base: Base::Config, names }
}

/// All supported clients.
///
/// Sources of paths, keys and forms:
///
/// | client | source |
/// |---|---|
/// | Claude Code | <https://code.claude.com/docs/en/mcp> |
/// | Claude Desktop | <https://modelcontextprotocol.io/docs/develop/connect-local-servers> |
/// | VS Code | <https://code.visualstudio.com/docs/agents/reference/mcp-configuration> |
/// | Cursor | <https://cursor.com/docs/context/mcp> |
/// | Gemini CLI | <https://github.com/google-gemini/gemini-cli/blob/main/docs/tools/mcp-server.md> |
/// | Continue | <https://docs.continue.dev/customize/deep-dives/mcp>, and `loadJsonMcpConfigs.ts` of <https://github.com/continuedev/continue> for the user's folder |
/// | Codex | <https://developers.openai.com/codex/mcp> |
/// | Goose | <https://block.github.io/goose/docs/guides/config-files> |
/// | Zed | <https://zed.dev/docs/ai/mcp>, <https://zed.dev/docs/configuring-zed> |
/// | Windsurf | <https://docs.windsurf.com/windsurf/cascade/mcp> |
/// | LM Studio | <https://lmstudio.ai/docs/app/plugins/mcp> |
/// | OpenCode | <https://opencode.ai/docs/mcp-servers>, <https://opencode.ai/docs/config> |
///
/// Continue reads every JSON file in its folder `mcpServers`, so its entry has a file of its own.
pub static CLIENTS: &[ClientKind] = &[
    ClientKind {
        name: "claude-code",
        title: "Claude Code",
        format: Format::Json,
        linux: home(&[".claude.json"]),
        macos: home(&[".claude.json"]),
        project: Some(&[".mcp.json"]),
        section: "mcpServers",
        entry: WITH_TYPE,
    },
    ClientKind {
        name: "claude-desktop",
        title: "Claude Desktop",
        format: Format::Json,
        linux: config(&["Claude/claude_desktop_config.json"]),
        macos: home(&["Library/Application Support/Claude/claude_desktop_config.json"]),
        project: None,
        section: "mcpServers",
        entry: COMMON,
    },
    ClientKind {
        name: "vscode",
        title: "VS Code",
        format: Format::Json,
        linux: config(&["Code/User/mcp.json"]),
        macos: home(&["Library/Application Support/Code/User/mcp.json"]),
        project: Some(&[".vscode/mcp.json"]),
        section: "servers",
        entry: WITH_TYPE,
    },
    ClientKind {
        name: "cursor",
        title: "Cursor",
        format: Format::Json,
        linux: home(&[".cursor/mcp.json"]),
        macos: home(&[".cursor/mcp.json"]),
        project: Some(&[".cursor/mcp.json"]),
        section: "mcpServers",
        entry: COMMON,
    },
    ClientKind {
        name: "gemini",
        title: "Gemini CLI",
        format: Format::Json,
        linux: home(&[".gemini/settings.json"]),
        macos: home(&[".gemini/settings.json"]),
        project: Some(&[".gemini/settings.json"]),
        section: "mcpServers",
        entry: COMMON,
    },
    ClientKind {
        name: "continue",
        title: "Continue",
        format: Format::Json,
        linux: home(&[".continue/mcpServers/portcullis.json"]),
        macos: home(&[".continue/mcpServers/portcullis.json"]),
        project: Some(&[".continue/mcpServers/portcullis.json"]),
        section: "mcpServers",
        entry: COMMON,
    },
    ClientKind {
        name: "codex",
        title: "Codex",
        format: Format::Toml,
        linux: home(&[".codex/config.toml"]),
        macos: home(&[".codex/config.toml"]),
        project: Some(&[".codex/config.toml"]),
        section: "mcp_servers",
        entry: COMMON,
    },
    ClientKind {
        name: "goose",
        title: "Goose",
        format: Format::Yaml,
        linux: config(&["goose/config.yaml"]),
        macos: home(&[".config/goose/config.yaml"]),
        project: None,
        section: "extensions",
        entry: &[
            ("enabled", Member::Flag(true)),
            ("type", Member::Text("stdio")),
            ("name", Member::Name),
            ("cmd", Member::Program),
            ("args", Member::Arguments),
            ("envs", Member::EmptyMap),
            ("env_keys", Member::EmptyList),
            ("timeout", Member::Number(300)),
        ],
    },
    ClientKind {
        name: "zed",
        title: "Zed",
        format: Format::Json,
        linux: config(&["zed/settings.json"]),
        macos: home(&[".config/zed/settings.json"]),
        project: Some(&[".zed/settings.json"]),
        section: "context_servers",
        entry: &[
            ("source", Member::Text("custom")),
            ("command", Member::Program),
            ("args", Member::Arguments),
            ("env", Member::EmptyMap),
        ],
    },
    ClientKind {
        name: "windsurf",
        title: "Windsurf",
        format: Format::Json,
        linux: home(&[".codeium/windsurf/mcp_config.json"]),
        macos: home(&[".codeium/windsurf/mcp_config.json"]),
        project: None,
        section: "mcpServers",
        entry: COMMON,
    },
    ClientKind {
        name: "lmstudio",
        title: "LM Studio",
        format: Format::Json,
        linux: home(&[".lmstudio/mcp.json"]),
        macos: home(&[".lmstudio/mcp.json"]),
        project: None,
        section: "mcpServers",
        entry: COMMON,
    },
    ClientKind {
        name: "opencode",
        title: "OpenCode",
        format: Format::Json,
        linux: config(&["opencode/opencode.json", "opencode/opencode.jsonc"]),
        macos: home(&[".config/opencode/opencode.json", ".config/opencode/opencode.jsonc"]),
        project: Some(&["opencode.json", "opencode.jsonc"]),
        section: "mcp",
        entry: &[
            ("type", Member::Text("local")),
            ("command", Member::CommandLine),
            ("enabled", Member::Flag(true)),
        ],
    },
];

/// Command that a client starts.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    pub program: &'a str,
    pub arguments: &'a [String],
}

/// A change of a file at one position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Edit {
    /// Byte offset in the text before.
    pub at: usize,
    /// Text at that offset before: white space, a comment, or an empty value.
    pub removed: String,
    /// Text at that offset afterwards.
    pub inserted: String,
    /// Whether it added the map of servers, too.
    pub added_section: bool,
}

impl Edit {
    /// The text after the change, if the change fits the text.
    pub fn apply(&self, text: &str) -> Option<String> {
        let rest = text.get(self.at..)?.strip_prefix(self.removed.as_str())?;
        Some([text.get(..self.at)?, &self.inserted, rest].concat())
    }

    /// The text before the change, if the inserted text is still there, once.
    fn undo(&self, text: &str) -> Option<String> {
        let unmoved = text.get(self.at..).is_some_and(|rest| rest.starts_with(&self.inserted));
        let at = if unmoved {
            self.at
        } else {
            let mut found = text.match_indices(self.inserted.as_str());
            let (at, _) = found.next()?;
            if found.next().is_some() {
                return None;
            }
            at
        };
        Some([text.get(..at)?, &self.removed, text.get(at + self.inserted.len()..)?].concat())
    }
}

/// Client with that name.
pub fn named(name: &str) -> Option<&'static ClientKind> {
    CLIENTS.iter().find(|kind| kind.name == name)
}

impl ClientKind {
    /// Position of the entry with that name, if the file has one.
    ///
    /// # Errors
    /// If the file does not have the client's format, or its servers are not a map.
    pub fn find(&self, text: &str, name: &str) -> Result<Option<Location>, Problem> {
        let Some(document) = self.document(text)? else { return Ok(None) };
        let Some(section) = document.get(self.section) else { return Ok(None) };
        match &section.what {
            NodeValue::Null => Ok(None),
            NodeValue::Map(entries) => {
                let mut keys = entries.iter().map(|(key, _)| key);
                Ok(keys.find(|key| &*key.text == name).map(|key| key.place))
            }
            _ => Err(Problem::at(
                section.place,
                format!(
                    "`{}` is {}, not a map of servers: correct it",
                    self.section,
                    section.kind()
                ),
            )),
        }
    }

    /// The change that adds an entry.
    ///
    /// # Errors
    /// If [`ClientKind::find`] fails or finds the name, or no entry can be added without another
    /// change.
    pub fn insert(&self, text: &str, name: &str, launch: Launch<'_>) -> Result<Edit, Problem> {
        if let Some(place) = self.find(text, name)? {
            return Err(Problem::at(place, format!("there is an entry `{name}` already")));
        }
        self.content(text)?;
        let entry = self.entry(name, launch);
        let (mark, body) = split_mark(text);
        let mut edit = match self.format {
            Format::Json => in_json::insert(body, self.section, name, &entry)?,
            Format::Toml => in_toml::insert(body, self.section, name, &entry)?,
            Format::Yaml => {
                let document = self.document(text)?;
                in_yaml::insert(body, document.as_ref(), self.section, name, &entry)?
            }
        };
        edit.at += mark.len();
        let after = edit.apply(text).ok_or_else(|| self.no_place())?;
        let added = self.content(&after).map_err(|_| self.no_place())?;
        let added = added.get(self.section).and_then(|section| section.get(name));
        if added != Some(&entry) || !self.is_difference(text, &after, name).unwrap_or(false) {
            return Err(self.no_place());
        }
        Ok(edit)
    }

    /// The text without the entry that `edit` added: the text before `edit`, if the entry is
    /// unchanged. The same text, if it has no such entry.
    ///
    /// # Errors
    /// If [`ClientKind::find`] fails, or the entry cannot be removed without another change.
    pub fn remove(&self, text: &str, name: &str, edit: &Edit) -> Result<String, Problem> {
        let Some(place) = self.find(text, name)? else { return Ok(text.to_owned()) };
        if let Some(before) = edit.undo(text)
            && self.is_difference(&before, text, name).unwrap_or(false)
        {
            return Ok(before);
        }
        let (mark, body) = split_mark(text);
        let removed = match self.format {
            Format::Json => in_json::remove(body, self.section, name, edit.added_section),
            Format::Toml => in_toml::remove(body, self.section, name),
            Format::Yaml => {
                let document = self.document(text)?;
                in_yaml::remove(body, document.as_ref(), self.section, name, edit.added_section)
            }
        };
        let by_hand = || {
            let text = format!(
                "the entry `{name}` cannot be removed without a change to the rest of the file: \
                 remove it by hand"
            );
            Problem::at(place, text)
        };
        let before = [mark, &removed.ok_or_else(by_hand)?].concat();
        if !self.is_difference(&before, text, name).unwrap_or(false) {
            return Err(by_hand());
        }
        Ok(before)
    }

    /// Whether a file with this text configures nothing.
    pub fn is_blank(text: &str) -> bool {
        matches!(text.trim(), "" | "{}")
    }

    /// The entry.
    fn entry(&self, name: &str, Launch { program, arguments }: Launch<'_>) -> Value {
        let mut entry = Map::new();
        for (key, member) in self.entry {
            let value: Value = match *member {
                Member::Text(text) => text.into(),
                Member::Number(number) => number.into(),
                Member::Flag(flag) => flag.into(),
                Member::Name => name.into(),
                Member::Program => program.into(),
                Member::Arguments => arguments.to_vec().into(),
                Member::CommandLine => {
                    let line = std::iter::once(program).chain(arguments.iter().map(String::as_str));
                    Value::Array(line.map(Value::from).collect())
                }
                Member::EmptyMap => Value::Object(Map::new()),
                Member::EmptyList => Value::Array(Vec::new()),
            };
            entry.insert((*key).to_owned(), value);
        }
        Value::Object(entry)
    }

    /// The document. `None` if the file is empty.
    fn document(&self, text: &str) -> Result<Option<Node>, Problem> {
        if text.len() > MAX_BYTES {
            return Err(Problem::of(format!("the file has more than {} MiB", MAX_BYTES >> 20)));
        }
        let (_, body) = split_mark(text);
        let is_empty = match self.format {
            Format::Json | Format::Toml => body.trim().is_empty(),
            Format::Yaml => body.lines().map(str::trim).all(|l| l.is_empty() || l.starts_with('#')),
        };
        if is_empty {
            return Ok(None);
        }
        match self.format {
            Format::Json => json::read(body),
            Format::Toml => tomls::read(body),
            Format::Yaml => yaml::read(body),
        }
        .map(Some)
    }

    /// The document as a map.
    fn content(&self, text: &str) -> Result<Map<String, Value>, Problem> {
        let Some(document) = self.document(text)? else { return Ok(Map::new()) };
        match document.to_json() {
            Value::Object(content) => Ok(content),
            Value::Null => Ok(Map::new()),
            _ => {
                let text = format!("the file is {}, not a map of settings", document.kind());
                Err(Problem::at(document.place, text))
            }
        }
    }

    /// Whether the entry is the only difference between two texts: `without` lacks it.
    fn is_difference(&self, without: &str, with: &str, name: &str) -> Result<bool, Problem> {
        let rest = |text| {
            let mut content = self.content(text)?;
            let is_empty = match content.get_mut(self.section) {
                Some(Value::Object(servers)) => {
                    servers.shift_remove(name);
                    servers.is_empty()
                }
                Some(Value::Null) => true,
                _ => false,
            };
            if is_empty {
                content.shift_remove(self.section);
            }
            Ok::<_, Problem>(content)
        };
        Ok(self.find(without, name)?.is_none() && rest(without)? == rest(with)?)
    }

    fn no_place(&self) -> Problem {
        let text = format!(
            "no entry can be added without a change to the rest of the file: write `{}` as a map with \
             one key a line",
            self.section
        );
        Problem::of(text)
    }
}

/// The byte order mark, if there is one, and the text behind it.
fn split_mark(text: &str) -> (&str, &str) {
    text.split_at(if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 })
}

/// The line break of a text.
fn newline(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}
