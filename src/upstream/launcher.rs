//! Where a server runs: in a container, in the local sandbox, or elsewhere.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    digest::{Digests, Hashed},
    event::Program,
    outward::{Outward, Reacher},
    process::{LaunchFailure, LaunchSpec, Process},
};
use crate::{
    codec::Caps,
    config::{self, Runtime},
    container,
    names::ServerName,
    sandbox,
    vault::{Secret, Source, Unresolved},
};

/// Starts servers: knows the engine, where there is one, and who starts them.
pub struct Launcher {
    /// The container engine, or why there is none.
    pub engine: Result<container::Engine, String>,
    /// This run of the proxy, for labels.
    pub instance: String,
    /// The folder to which the config's relative paths are relative.
    pub base: PathBuf,
    /// What is taken of a server's messages.
    pub caps: Caps,
    /// What each server is handed, read once: what is looked for in traffic and in logs is what
    /// was handed out, whatever has become of its source.
    pub handed: BTreeMap<ServerName, Handed>,
    /// The programs of this machine that were hashed.
    pub digests: Arc<Digests>,
    /// Who decides what servers reach.
    pub outward: Arc<dyn Outward>,
}

/// The secrets of one server.
#[derive(Debug, Clone, Default)]
pub struct Handed {
    /// For the environment of its process.
    pub secrets: Vec<(String, Secret)>,
    /// For the requests to a remote one.
    pub headers: Vec<(String, Secret)>,
    /// Where each of them came from, by its name.
    pub sources: BTreeMap<String, Source>,
}

/// A secret of a server that is not to be had.
#[derive(Debug)]
pub struct NotHanded {
    /// The name under which the server would get it.
    pub secret: String,
    /// Where it was to come from, where that is a reference.
    pub source: Option<Source>,
    /// In words.
    pub failure: LaunchFailure,
}

impl Handed {
    /// Reads the secrets of a server; files are relative to the config's folder, `base`.
    ///
    /// # Errors
    /// Where a secret cannot be had; the reference is named, never the value.
    pub fn read(settings: &config::Server, base: &Path) -> Result<Self, NotHanded> {
        let mut sources = BTreeMap::new();
        Ok(Self {
            secrets: resolve(&settings.secrets, base, &mut sources)?,
            headers: resolve(&settings.headers, base, &mut sources)?,
            sources,
        })
    }

    /// Reads the secret headers for a URL that is no server's.
    ///
    /// # Errors
    /// As [`Handed::read`].
    pub fn headers(
        refs: &BTreeMap<String, config::SecretRef>,
        base: &Path,
    ) -> Result<Vec<(String, Secret)>, NotHanded> {
        resolve(refs, base, &mut BTreeMap::new())
    }

    /// All of them, by the names under which the server gets them.
    pub fn iter(&self) -> impl Iterator<Item = &(String, Secret)> {
        self.secrets.iter().chain(&self.headers)
    }
}

/// Where a server is to run, and why there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a container of an image, or of the packed program.
    Container {
        why: String,
    },
    Sandbox {
        why: String,
    },
    Remote {
        url: String,
    },
}

impl Place {
    /// The kind in one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Container { .. } => "container",
            Self::Sandbox { .. } => "sandbox",
            Self::Remote { .. } => "remote",
        }
    }

    /// Why there.
    pub fn why(&self) -> &str {
        match self {
            Self::Container { why } | Self::Sandbox { why } => why,
            Self::Remote { url } => url,
        }
    }
}

impl Launcher {
    /// Where a server would run.
    pub fn place(&self, settings: &config::Server) -> Place {
        if let Some(url) = &settings.url {
            return Place::Remote { url: url.clone() };
        }
        if settings.image.is_some() {
            return Place::Container { why: "the config names an image".into() };
        }
        match (settings.runtime, &self.engine) {
            (Runtime::Container, _) => {
                Place::Container { why: "the config says runtime = \"container\"".into() }
            }
            (Runtime::Sandbox, _) => {
                Place::Sandbox { why: "the config says runtime = \"sandbox\"".into() }
            }
            (Runtime::Auto, Err(why)) => Place::Sandbox { why: why.clone() },
            (Runtime::Auto, Ok(_)) => {
                let program = settings.command.as_ref().and_then(|c| c.first());
                match program.map(|program| packable(&self.program(program))) {
                    Some(Err(why)) => Place::Sandbox { why },
                    _ => Place::Container {
                        why: "an engine answers and the program can be packed into an image".into(),
                    },
                }
            }
        }
    }

    /// Starts the server's process, where its program is still the one that was hashed.
    ///
    /// # Errors
    /// A [`LaunchFailure`], in words for the operator.
    pub async fn start(
        &self,
        reacher: Reacher,
        settings: &config::Server,
        hashed: Option<&Hashed>,
    ) -> Result<(Process, Place), LaunchFailure> {
        let server = &reacher.server.clone();
        let place = self.place(settings);
        let unchanged = || match hashed {
            Some(hashed) if !hashed.is_still() => Err(LaunchFailure {
                what: "its program changed while it was being started".into(),
                remedy: Some("try again once it is in place".into()),
            }),
            _ => Ok(()),
        };
        let mut spec = self.spec(server, settings)?;
        let mut process = match &place {
            Place::Container { .. } => {
                let engine = self.engine.as_ref().map_err(|why| LaunchFailure {
                    what: format!("no container engine answers: {why}"),
                    remedy: Some("start Docker, or say runtime = \"sandbox\"".into()),
                })?;
                if spec.image.is_none() {
                    let program = spec.command.first().map(PathBuf::from).unwrap_or_default();
                    spec.image = Some(engine.pack(&program).await?);
                    spec.command.remove(0);
                }
                unchanged()?;
                engine.launch(&spec).await?
            }
            _ => {
                unchanged()?;
                let mut process = sandbox::launch(&spec).await?;
                // The sandbox keeps to the same defaults, but has neither image nor capabilities.
                if let Ok(profile) = container::Profile::of(&spec) {
                    let changed = profile.deviations();
                    process.origin.deviations = changed.iter().map(ToString::to_string).collect();
                }
                process
            }
        };
        if let Some(door) = process.door.take() {
            let gate = self.outward.gate(reacher);
            process.handle = door.serve(server, spec.egress, gate, process.handle)?;
        }
        Ok((process, place))
    }

    /// The program of this machine that a server is, by what is in its file; nothing where it is
    /// none, or can't be read.
    pub async fn hashed(&self, settings: &config::Server) -> Option<Hashed> {
        if settings.url.is_some() || settings.image.is_some() {
            return None;
        }
        let program = self.program(settings.command.as_ref()?.first()?);
        let digests = self.digests.clone();
        tokio::task::spawn_blocking(move || digests.of(&program).ok()).await.ok().flatten()
    }

    /// What would run of a server, for whoever decides whether it may.
    ///
    /// # Errors
    /// Where nothing can be started of it.
    pub fn program_of(
        &self,
        server: &ServerName,
        settings: &config::Server,
    ) -> Result<Program, LaunchFailure> {
        let named = settings.url.as_ref().or(settings.image.as_ref());
        let first = settings.command.as_ref().and_then(|command| command.first());
        let name = named.or(first).cloned().unwrap_or_default();
        let digest = settings.image.as_deref().and_then(|image| {
            let (_, digest) = image.rsplit_once("sha256:")?;
            Some(format!("sha256:{digest}"))
        });
        let mut deviations = Vec::new();
        if settings.url.is_none() {
            let profile = container::Profile::of(&self.spec_without_secrets(server, settings)?)?;
            deviations = profile.deviations().iter().map(|d| d.config_key).collect();
            deviations.dedup();
        }
        Ok(Program { name, digest, deviations })
    }

    /// The secrets that a server is handed.
    ///
    /// # Errors
    /// Where they were not read when the proxy started.
    pub fn handed(&self, server: &ServerName) -> Result<&Handed, LaunchFailure> {
        self.handed.get(server).ok_or_else(|| LaunchFailure {
            what: "its secrets were not read when the proxy started".into(),
            remedy: Some("start the proxy again".into()),
        })
    }

    /// What is started, as the runtimes take it.
    ///
    /// # Errors
    /// Where a mount or the program is not to be had, or the secrets were not read.
    pub fn spec(
        &self,
        server: &ServerName,
        settings: &config::Server,
    ) -> Result<LaunchSpec, LaunchFailure> {
        let spec = self.spec_without_secrets(server, settings)?;
        Ok(LaunchSpec { secrets: self.handed(server)?.secrets.clone(), ..spec })
    }

    /// The same for whoever only looks at it.
    ///
    /// # Errors
    /// Where a mount or the program is not to be had.
    pub fn spec_without_secrets(
        &self,
        server: &ServerName,
        settings: &config::Server,
    ) -> Result<LaunchSpec, LaunchFailure> {
        let mut command = settings.command.clone().unwrap_or_default();
        if settings.image.is_none()
            && let Some(program) = command.first_mut()
        {
            *program = self.program(program).to_string_lossy().into_owned();
        }
        Ok(LaunchSpec {
            server: server.clone(),
            command,
            image: settings.image.clone(),
            env: settings.env.clone().into_iter().collect(),
            secrets: Vec::new(),
            mounts: settings
                .mounts
                .iter()
                .map(|mount| {
                    mount.resolve().map_err(|error| LaunchFailure {
                        what: format!("mount `{mount}`: {error}"),
                        remedy: Some("make the folder, or name another".into()),
                    })
                })
                .collect::<Result<_, _>>()?,
            resources: settings.resources.clone(),
            hardening: settings.hardening.clone(),
            egress: settings.egress.clone(),
            instance: self.instance.clone(),
        })
    }

    /// The program that a `command` names: `portcullis` is this very executable, a path is
    /// relative to the config, a bare name is looked up in `PATH`.
    fn program(&self, name: &str) -> PathBuf {
        if name == "portcullis"
            && let Ok(own) = std::env::current_exe()
        {
            return own;
        }
        if name.contains('/') {
            return self.base.join(name);
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|folder| folder.join(name))
            .find(|candidate| candidate.is_file())
            .unwrap_or_else(|| PathBuf::from(name))
    }
}

fn resolve(
    refs: &BTreeMap<String, config::SecretRef>,
    base: &Path,
    sources: &mut BTreeMap<String, Source>,
) -> Result<Vec<(String, Secret)>, NotHanded> {
    refs.iter()
        .map(|(name, reference)| {
            let not_handed = |source: Option<Source>, what: Unresolved| NotHanded {
                secret: name.clone(),
                source,
                failure: LaunchFailure {
                    what: format!("secret `{name}`: {what}"),
                    remedy: Some("set it, or name another source in the config".into()),
                },
            };
            let source: Source =
                reference.from.parse().map_err(|what: Unresolved| not_handed(None, what))?;
            let resolved = source.clone().relative_to(base).resolve();
            let secret = resolved.map_err(|what| not_handed(Some(source.clone()), what))?;
            sources.insert(name.clone(), source);
            Ok((name.clone(), secret))
        })
        .collect()
}

/// Programs that run other programs' text: packed alone they would lack their own libraries.
const INTERPRETERS: [&str; 16] = [
    "python", "node", "npx", "npm", "uv", "uvx", "deno", "bun", "ruby", "perl", "php", "java",
    "sh", "bash", "dash", "env",
];

/// Whether a program is one file that can be packed with its libraries; if not, why not.
fn packable(program: &Path) -> Result<(), String> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    if INTERPRETERS.contains(&stem) {
        return Err(format!(
            "`{name}` needs files of this machine that an image of it would lack; name an `image` to run it in a container"
        ));
    }
    let mut magic = [0; 4];
    let read = std::fs::File::open(program)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    match read {
        Ok(()) if &magic == b"\x7fELF" => Ok(()),
        _ => Err(format!(
            "`{name}` is no executable that can be packed; name an `image` to run it in a container"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_packed() {
        assert_eq!(packable(&std::env::current_exe().unwrap()), Ok(()));
        for program in
            ["/usr/bin/python3.11", "/usr/bin/env", "/bin/sh", "/etc/passwd", "/nonexistent"]
        {
            assert!(packable(Path::new(program)).is_err(), "{program}");
        }
    }
}
