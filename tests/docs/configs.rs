//! `portcullis.toml`: whole files, parts of them, single keys.

use std::{collections::BTreeSet, fs, path::Path, sync::LazyLock};

use portcullis_config::Config;
use regex::Regex;
use serde_json::Value;

/// A verifier key, whose signing key was thrown away.
pub const KEY: &str = "acme+10c60977+AQHWOm+JY5mcPvfb5bPoWgMERiKPXn11JHcst9/ay6hP";

/// Where a single `key = value` may stand: what has to be above it for it to be read.
const PLACES: [&str; 30] = [
    "",
    "[listen]\n",
    "[limits]\n",
    "[limits.servers]\n",
    "[policy]\n",
    "[approvals]\n",
    "[telemetry]\n",
    "[engine]\n",
    "[registries]\n",
    "[admin]\n",
    "[admin.roles]\n",
    "[audit]\n",
    "[audit.checkpoint]\n",
    "[audit.retention]\n",
    "[audit.encryption]\n",
    "[[audit.export]]\nname = 'a'\n",
    "[[audit.export]]\nname = 'a'\nto = 'syslog+tls://a.example:6514'\n",
    "[[audit.witness]]\n",
    "[servers.a]\ncommand = ['a']\n",
    "[servers.a]\nurl = 'https://a.example/mcp'\n",
    "[servers.a]\nimage = 'a:1'\n",
    "[servers.a]\ncommand = ['a']\n[servers.a.resources]\n",
    "[[interceptors]]\nuse = 'plugin'\npath = 'a.wasm'\nallow-unpinned = true\n",
    "[[interceptors]]\nuse = 'plugin'\npath = 'a.wasm'\nallow-unpinned = true\n[interceptors.grants]\n",
    "[[interceptors]]\n",
    "[[interceptors]]\nuse = 'secrets'\n",
    "[[interceptors]]\nuse = 'schema'\n",
    "[servers.a]\ncommand = ['a']\n[servers.a.secrets.A]\n",
    "[servers.a]\ncommand = ['a']\n[servers.a.secrets.A]\nfrom = 'env:A'\n",
    "[policy]\nbundle-keys = ['acme+10c60977+AQHWOm+JY5mcPvfb5bPoWgMERiKPXn11JHcst9/ay6hP']\n",
];

/// Parses a config, or a part of one that is completed first.
pub fn check(text: &str) -> Result<(), String> {
    let text = filled(text);
    let mut table: toml::Table = text.parse().map_err(|error| format!("{error}"))?;
    if let Some(toml::Value::Table(servers)) = table.get_mut("servers") {
        for (name, server) in servers {
            let Some(server) = server.as_table_mut() else { continue };
            if !["image", "command", "url"].iter().any(|key| server.contains_key(*key)) {
                server.insert("command".into(), vec![format!("./bin/{name}")].into());
            }
        }
    }
    let text = toml::to_string(&table).map_err(|error| error.to_string())?;
    parsed(&text).map_err(|findings| findings.join("; "))
}

/// Parses the settings of one `[[interceptors]]` entry of a plugin, without the entry.
pub fn check_plugin_entry(text: &str) -> Result<(), String> {
    let entry = "[[interceptors]]\nuse = 'plugin'\npath = 'a.wasm'\nallow-unpinned = true\n";
    parsed(&format!("{entry}{}", filled(text))).map_err(|findings| findings.join("; "))
}

/// Reads a profile, by the code that reads one beside a config.
pub fn check_profile(text: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("profiles")).unwrap();
    fs::write(folder.path().join("profiles/p.toml"), text).unwrap();
    let read = portcullis_catalog::profile_file::Profile::read(folder.path(), "p");
    read.map(drop).map_err(|error| error.to_string())
}

fn parsed(text: &str) -> Result<(), Vec<String>> {
    match portcullis_config::parse(Path::new("/a/portcullis.toml"), text) {
        Ok(_) => Ok(()),
        Err(diagnostics) => {
            let said = |finding: &portcullis_config::Finding| {
                let help = finding.help.as_deref().unwrap_or_default();
                format!("{}: {} {help}", finding.code, finding.message)
            };
            Err(diagnostics.0.iter().map(said).collect())
        }
    }
}

/// Digests and keys that the docs shorten to `…` in full.
fn filled(text: &str) -> String {
    static SHORT: LazyLock<[(Regex, &str); 3]> = LazyLock::new(|| {
        let digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        [
            (Regex::new("sha256:[0-9a-f]*…").unwrap(), "sha256:DIGEST"),
            (Regex::new("sha256 = \"…\"").unwrap(), "sha256 = \"DIGEST\""),
            (Regex::new("\"[a-z./]+\\+…\"").unwrap(), "\"KEY\""),
        ]
        .map(|(short, full)| {
            let full = full.replace("DIGEST", digest).replace("KEY", KEY);
            (short, &*String::leak(full))
        })
    });
    SHORT
        .iter()
        .fold(text.to_owned(), |text, (short, full)| short.replace_all(&text, *full).into_owned())
}

/// Checks one line of a config, such as `runtime = "sandbox"`, wherever its key may stand.
pub fn check_line(line: &str) -> Result<(), String> {
    // `{ from = "env:NAME" }` is a value with one key.
    let line = line.strip_prefix("{ ").and_then(|line| line.strip_suffix(" }")).unwrap_or(line);
    let form = [("\"…\"", "\"env:A\""), ("HOST:PORT", "a.example:443"), ("UID:GID", "1000:1000")];
    let line = form.iter().fold(filled(line), |line, (word, value)| line.replace(word, value));
    if line.parse::<toml::Table>().is_err() {
        return Err("it is not TOML".into());
    }
    let mut why = String::new();
    for place in PLACES {
        let number = u32::try_from(place.matches('\n').count() + 1).unwrap_or(u32::MAX);
        let text = format!("{place}{line}\n");
        let Err(diagnostics) = portcullis_config::parse(Path::new("/a/portcullis.toml"), &text)
        else {
            return Ok(());
        };
        // A table that lacks a key that it needs was not looked at any further.
        let lacks = |finding: &portcullis_config::Finding| {
            finding.code == portcullis_config::Code::MissingKey
        };
        if !line.starts_with("use = ") && diagnostics.0.iter().any(lacks) {
            continue;
        }
        let here = |finding: &&portcullis_config::Finding| {
            finding.position().is_none_or(|(at, _)| at == number)
        };
        let here = diagnostics.0.iter().find(here);
        match here {
            None => return Ok(()),
            Some(finding)
                if !matches!(
                    finding.code,
                    portcullis_config::Code::UnknownKey | portcullis_config::Code::Syntax
                ) =>
            {
                why = finding.message.clone();
            }
            Some(_) => {}
        }
    }
    Err(match why.as_str() {
        "" => "no table of the config has that key".to_owned(),
        _ => why,
    })
}

/// Checks the name of a table, such as `servers.NAME.tools.TOOL`.
pub fn check_table(name: &str) -> Result<(), String> {
    match Keys::of_the_schema().has_from_the_top(name) {
        true => Ok(()),
        false => Err("the config has no such table".into()),
    }
}

/// The keys of the config, as paths in which `*` stands for any name.
pub struct Keys {
    paths: Vec<Vec<String>>,
    names: BTreeSet<String>,
}

impl Keys {
    pub fn of_the_schema() -> Self {
        let schema = schemars::schema_for!(Config).to_value();
        let mut paths = Vec::new();
        walk(&schema, &schema, &mut Vec::new(), &mut paths);
        let names = paths.iter().flatten().cloned().collect();
        Self { paths, names }
    }

    /// Whether a table or a value of the config has this name.
    pub fn has_name(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Whether there is such a path, from the top or from within a table.
    pub fn has(&self, dotted: &str) -> bool {
        let parts: Vec<_> = dotted.split('.').collect();
        let ends = |path: &Vec<String>| {
            let from = path.len().checked_sub(parts.len());
            from.is_some_and(|from| path[from] != "*" && fits(&path[from..], &parts))
        };
        self.paths.iter().any(ends)
    }

    fn has_from_the_top(&self, dotted: &str) -> bool {
        let parts: Vec<_> = dotted.split('.').collect();
        self.paths.iter().any(|path| fits(path, &parts))
    }
}

fn fits(path: &[String], parts: &[&str]) -> bool {
    let fit = |(key, part): (&String, &&str)| key == part || key == "*";
    path.len() == parts.len() && path.iter().zip(parts).all(fit)
}

fn walk(root: &Value, schema: &Value, path: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    if path.len() > 6 {
        return;
    }
    if let Some(target) = schema["$ref"].as_str().and_then(|to| root.pointer(&to[1..])) {
        walk(root, target, path, paths);
    }
    for (key, each) in schema["properties"].as_object().into_iter().flatten() {
        path.push(key.clone());
        paths.push(path.clone());
        walk(root, each, path, paths);
        path.pop();
    }
    if schema["additionalProperties"].is_object() {
        path.push("*".into());
        paths.push(path.clone());
        walk(root, &schema["additionalProperties"], path, paths);
        path.pop();
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        for each in schema[key].as_array().into_iter().flatten() {
            walk(root, each, path, paths);
        }
    }
    if schema["items"].is_object() {
        walk(root, &schema["items"], path, paths);
    }
}

#[test]
fn unknown_config_keys_are_found() {
    assert!(check("[servers.a]\nidle-stop = 3").is_err());
    assert!(check("[[audit.export]]\nname = 'a'\nto = 'syslog+tls://a.example:1'\nfilter = 'record = event'").is_err());
    assert!(check_line("runtime = \"vm\"").is_err());
    assert!(check_line("nothing = 1").is_err());
    assert!(check_line("runtime = \"sandbox\"").is_ok());
    let keys = Keys::of_the_schema();
    for key in ["audit.dir", "servers.NAME.secrets", "hardening.user", "limits.servers"] {
        assert!(keys.has(key), "{key}");
    }
    for key in ["audit.folder", "hardening.root", "container.image"] {
        assert!(!keys.has(key), "{key}");
    }
}
