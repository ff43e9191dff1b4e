//! Servers that a person names on the command line: a command or a URL, as an entry of a client's
//! file. They are read by the same rules.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use url::{Host, Url};

use crate::packages;

/// Programs that run a script.
const INTERPRETERS: &[&str] =
    &["python", "python3", "node", "deno", "bun", "ruby", "perl", "java", "dotnet"];
/// First labels of hosts that do not name a server.
const GENERIC_LABELS: &[&str] = &["mcp", "api", "www"];

/// A server of the command line.
#[derive(Debug, Clone, Copy)]
pub enum Named<'a> {
    /// A program and its arguments.
    Command(&'a [String]),
    /// The endpoint of a remote server.
    Url(&'a Url),
}

impl Named<'_> {
    /// A short name: of the package, the script, the program or the host. `None` if there is none.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let name = match self {
            Self::Command(command) => name_of_command(command)?,
            Self::Url(url) => name_of_host(url)?,
        };
        crate::ours(&short(&name)).ok()
    }

    /// A client's file with the server under `name`. It refers to `secrets`: variables of a
    /// program, headers of a remote server.
    #[must_use]
    pub fn document(
        &self,
        name: &str,
        env: &BTreeMap<String, String>,
        secrets: impl Iterator<Item = String>,
    ) -> String {
        let references = secrets.map(|secret| {
            let reference = format!("${{{}}}", secret.replace(|c: char| !is_of_variable(c), "_"));
            (secret, Value::String(reference))
        });
        let mut variables: Map<String, Value> =
            env.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        let entry = match self {
            Self::Command(command) => {
                variables.extend(references);
                let (program, arguments) = command.split_first().unzip();
                json!({ "command": program, "args": arguments.unwrap_or_default(), "env": variables })
            }
            Self::Url(url) => {
                json!({ "url": url.as_str(), "headers": references.collect::<Map<_, _>>() })
            }
        };
        json!({ "mcpServers": { name: entry } }).to_string()
    }
}

fn is_of_variable(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn name_of_command(command: &[String]) -> Option<String> {
    let (program, arguments) = command.split_first()?;
    let base = program.rsplit('/').next().unwrap_or(program);
    // An image has a command of its own.
    if matches!(base, "docker" | "podman" | "nerdctl") {
        return None;
    }
    if let Some(fetcher) = packages::of(base, arguments) {
        let package = packages::packages_of(fetcher, arguments).into_iter().next()?;
        let package = packages::without_version(package);
        return Some(package.rsplit('/').next().unwrap_or(package).to_owned());
    }
    if INTERPRETERS.contains(&base) {
        let script = arguments.iter().find(|argument| !argument.starts_with('-'))?;
        let file = script.rsplit('/').next().unwrap_or(script);
        return Some(file.split('.').next().unwrap_or(file).to_owned());
    }
    Some(base.to_owned())
}

fn name_of_host(url: &Url) -> Option<String> {
    let Some(Host::Domain(domain)) = url.host() else { return None };
    let labels: Vec<&str> = domain.split('.').collect();
    let specific = labels.iter().find(|label| !GENERIC_LABELS.contains(label))?;
    // The top-level domain names nothing.
    (labels.len() > 1 && Some(specific) != labels.last()).then(|| (*specific).to_owned())
}

/// A name without the words that most servers have in theirs.
fn short(name: &str) -> String {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let without =
        ["mcp-server-", "server-", "mcp-"].iter().find_map(|word| name.strip_prefix(word));
    let name = without.unwrap_or(&name);
    let without =
        ["-mcp-server", "-server", "-mcp"].iter().find_map(|word| name.strip_suffix(word));
    without.unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_that_of_the_package_the_script_or_the_host() {
        for (command, name) in [
            ("uvx mcp-server-time", Some("time")),
            ("uvx mcp-server-time==2026.1.1 --local-timezone UTC", Some("time")),
            ("npx -y @modelcontextprotocol/server-filesystem@2026.8.31 /a", Some("filesystem")),
            ("uvx --from git+https://e.example/r@0a1b excel-mcp-server", None),
            ("uvx excel-mcp-server", Some("excel")),
            ("uvx --from mcp_server_git git", Some("git")),
            ("python3 /srv/my_tools.py --stdio", Some("my-tools")),
            ("python -m weather", Some("weather")),
            ("/usr/local/bin/notes-server", Some("notes")),
            ("docker run -i --rm x", None),
            ("server", Some("server")),
        ] {
            let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
            let found = Named::Command(&words).name();
            match name {
                Some(_) => assert_eq!(found.as_deref(), name, "{command}"),
                None => assert!(found.is_none_or(|found| crate::is_legal(&found)), "{command}"),
            }
        }
        for (url, name) in [
            ("https://mcp.example.com/mcp", Some("example")),
            ("https://tickets.example/mcp", Some("tickets")),
            ("https://api.githubcopilot.com/mcp/", Some("githubcopilot")),
            ("https://mcp.example", None),
            ("http://localhost:8000/mcp", None),
            ("https://10.0.0.1/mcp", None),
        ] {
            let url: Url = url.parse().unwrap();
            assert_eq!(Named::Url(&url).name().as_deref(), name, "{url}");
        }
    }

    #[test]
    fn document_is_read_as_a_client_file() {
        let words: Vec<String> = ["uvx", "a b", "\"$x\""].map(str::to_owned).into();
        let env = [("LEVEL".to_owned(), "info".to_owned())].into();
        let options = crate::Options {
            secrets: [("x".to_owned(), [("KEY".to_owned(), "env:MINE".to_owned())].into())].into(),
            ..crate::Options::default()
        };
        let document =
            Named::Command(&words[..1]).document("x", &env, std::iter::once("KEY".to_owned()));
        let found = crate::read(&document, &options).unwrap();
        let server = found.servers[0].server.as_ref().unwrap();
        assert_eq!(server.env["LEVEL"], "info");
        assert_eq!(server.secrets["KEY"].from, "env:MINE");

        let url: Url = "https://far.example/mcp".parse().unwrap();
        let secrets = ["X-Api-Key", "Authorization"].map(str::to_owned);
        let document = Named::Url(&url).document("x", &BTreeMap::new(), secrets.into_iter());
        let found = crate::read(&document, &crate::Options::default()).unwrap();
        let server = found.servers[0].server.as_ref().unwrap();
        let headers: Vec<_> = server.references().map(|(name, _)| name.as_str()).collect();
        assert_eq!(headers, ["Authorization", "X-Api-Key"]);
    }
}
