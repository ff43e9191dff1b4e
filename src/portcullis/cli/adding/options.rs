//! Options of the command line beside a reference or a file.

use std::{collections::BTreeMap, path::PathBuf};

use crate::cli::{
    Usage,
    catalog::{Fetched, file},
};
use portcullis_catalog::{
    Options, Packages, Problem, brief,
    lock::{ServerPin, same_origin},
    set, settings, tool_lists,
};
use portcullis_vault::Source;

/// Options of a verb that adds servers, beside a reference or a file.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct AddOptions {
    /// Set a configuration value of the catalog entry; repeatable. The value may be JSON
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Read settings of several servers from a Docker `config.yaml`
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Read the enabled tools from a Docker `tools.yaml`
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    /// Set the source of a secret by its variable or header, such as `TOKEN=env:MY_TOKEN`, and
    /// confirm its delivery to the server; repeatable. With several servers:
    /// `SERVER/TOKEN=env:MY_TOKEN`
    #[arg(long = "secret", value_name = "[SERVER/]NAME=REFERENCE")]
    secrets: Vec<String>,
    /// Select how npx and uvx packages run
    #[arg(long, value_enum, default_value_t = PackageRuntime::Process)]
    packages: PackageRuntime,
    /// Replace servers that were added from the same source, whatever its tag or digest, and whose
    /// entries you did not edit. `--replace=SERVER` replaces that server, whatever its source,
    /// and your edits of its entry; repeatable
    #[arg(
        long,
        value_name = "SERVER",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ""
    )]
    pub(super) replace: Vec<String>,
    /// With `--replace`: overwrite `server-NAME.cedar` even if it was edited
    #[arg(long, requires = "replace")]
    pub(super) overwrite_policies: bool,
    /// Allow going back to an image that was replaced earlier
    #[arg(long)]
    pub(super) allow_downgrade: bool,
    /// Print the changes without writing them
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Confirm servers, programs, hosts, folders and variables without a prompt. Secrets and
    /// headers need `--secret`
    #[arg(long)]
    pub(in crate::cli) yes: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum PackageRuntime {
    /// Run them as local processes in the sandbox
    Process,
    /// Run them in a container of the language's official image
    Container,
}

/// A `--secret`: the server, if named, the variable or header, and the reference.
pub(in crate::cli) type SecretFrom<'a> = (Option<&'a str>, &'a str, &'a str);

impl AddOptions {
    /// Whether this is a dry run.
    pub fn is_dry(&self) -> bool {
        self.dry_run
    }

    /// Whether servers of the same origin are replaced.
    pub fn replaces(&self) -> bool {
        self.replace.iter().any(String::is_empty)
    }

    /// Whether `--replace` names the server.
    pub(super) fn names(&self, server: &str) -> bool {
        self.replace.iter().any(|name| name == server)
    }

    /// Whether the operator must confirm servers before they are written.
    pub(super) fn asks(&self) -> bool {
        !self.yes && !self.dry_run
    }

    /// Checks whether a server from `source` may replace an existing server. `edited`: its entry is
    /// not the imported one. `moved`: what it runs now, and what it would run.
    pub(super) fn may_replace(
        &self,
        server: &str,
        locked: Option<&ServerPin>,
        edited: bool,
        moved: Option<&(String, String)>,
        source: &str,
    ) -> Result<(), String> {
        if self.names(server) {
            return Ok(());
        }
        let origin = match locked.and_then(|locked| locked.source.as_deref()) {
            Some(origin) if same_origin(origin, source) && edited => {
                return Err(format!(
                    "`{server}` came from {}, and its entry was edited since: to replace it and lose the edits, say \
                     `--replace={server}` (with `--dry-run`, it only shows the difference)",
                    brief(origin)
                ));
            }
            Some(origin) if same_origin(origin, source) => {
                let Some((was, is)) = moved else { return Ok(()) };
                return Err(format!(
                    "`{server}` runs {} and would run {}, with the references that you gave it: if that is meant, \
                     say `--replace={server}`",
                    brief(was),
                    brief(is)
                ));
            }
            Some(origin) => format!("came from {}", brief(origin)),
            None => "was not taken from anywhere".to_owned(),
        };
        Err(format!(
            "the config has a server `{server}`, which {origin}: it would become another's; if that is meant, \
             say `--replace={server}`"
        ))
    }

    /// Lists of enabled tools, by server.
    pub(super) fn tool_lists(&self) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
        let Some(path) = &self.tools else { return Ok(BTreeMap::new()) };
        let fetched = file(path)?;
        tool_lists(&fetched.text).map_err(|problem| broken(&fetched, &problem))
    }

    /// The references that `--secret` names.
    pub fn secrets(&self) -> Result<Vec<SecretFrom<'_>>, Usage> {
        self.secrets
            .iter()
            .map(|text| {
                // The error does not repeat the given text: it may be the secret.
                let (place, from) = text
                    .split_once('=')
                    .filter(|(_, from)| from.parse::<Source>().is_ok())
                    .ok_or_else(|| {
                        let text = "write `--secret NAME=REFERENCE`, such as `env:VARIABLE`, `file:PATH` or \
                                    `vault:PATH#KEY` (docs/concepts/secrets.md has them all), never the value";
                        Usage(text.to_owned())
                    })?;
                let (server, name) = place
                    .rsplit_once('/')
                    .map_or((None, place), |(server, name)| (Some(server), name));
                Ok((server, name, from))
            })
            .collect()
    }

    /// Options for the reader of descriptions. Settings without a name belong to `server`.
    pub fn options(&self, server: Option<&str>) -> anyhow::Result<Options> {
        let mut options = Options {
            packages: match self.packages {
                PackageRuntime::Process => Packages::Process,
                PackageRuntime::Container => Packages::Container,
            },
            ..Options::default()
        };
        if let Some(path) = &self.settings {
            let fetched = file(path)?;
            options.values =
                settings(&fetched.text).map_err(|problem| broken(&fetched, &problem))?;
        }
        options.only = self.tool_lists()?;
        for text in &self.set {
            let key = text.split('=').next().unwrap_or("");
            let named = server.or_else(|| key.split_once('.').map(|(server, _)| server));
            let Some(named) = named else {
                return Err(
                    Usage("of several servers, write `--set SERVER.KEY=VALUE`".to_owned()).into()
                );
            };
            set(&mut options.values, named, text).map_err(Usage)?;
        }
        for (of, name, from) in self.secrets()? {
            let Some(of) = of.or(server) else {
                let text = "of several servers, write `--secret SERVER/NAME=REFERENCE`: each would get it that \
                            asks for that name";
                return Err(Usage(text.to_owned()).into());
            };
            let secrets = options.secrets.entry(of.to_owned()).or_default();
            secrets.insert(name.to_owned(), from.to_owned());
        }
        Ok(options)
    }
}

fn broken(file: &Fetched, problem: &Problem) -> anyhow::Error {
    let place = problem.place.map_or(String::new(), |place| format!(":{place}"));
    anyhow::anyhow!("{}{place}: {problem}", file.name)
}
