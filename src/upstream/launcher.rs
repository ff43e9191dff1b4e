//! Launcher: starts the processes of servers in a container or in the sandbox.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{
    engine_handle::Engines,
    image_signatures::{SignatureVerifier, SignedBy},
    images::{Images, Pinned},
    instance_key::RevokedClients,
    placement::{Placement, Program, origin},
    secret_broker::SecretBroker,
    secret_set::{DeliveryMethod, SecretSet},
};
use crate::config::{self, Runtime};
use portcullis_foundation::fair_semaphore::FairSemaphore;
use portcullis_protocol::{codec::Caps, names::ServerName};
use portcullis_runtime::{
    Digests, Hashed, MountPolicy, ProtectedPaths,
    egress_netns::{EgressContext, EgressGates, has_address},
    process::{LaunchFailure, LaunchSpec, SECRETS},
    started::Process,
};
use portcullis_runtime::{config::MountEntry, container, sandbox};

/// Starts the processes of servers.
pub struct Launcher {
    /// Container engine, or the reason why there is none.
    pub engine: Engines,
    /// Id of this run of the proxy, for labels.
    pub instance: String,
    /// Folder to which the config's paths are relative.
    pub base: PathBuf,
    /// Paths of the proxy that no server may see.
    pub protected: ProtectedPaths,
    /// Limits of a server's messages.
    pub caps: Caps,
    /// Registration of delivered secrets for redaction.
    pub broker: SecretBroker,
    /// Runtime folder for secrets that are delivered as files, created at the first need.
    pub runtime: OnceLock<portcullis_vault::Runtime>,
    /// Digests of local programs.
    pub digests: Arc<Digests>,
    /// Folder of the discovery caches, if they are stored.
    pub discovery_cache_dir: Option<PathBuf>,
    /// Resolution and pulls of images.
    pub images: Arc<Images>,
    /// Decisions on egress.
    pub egress_gates: Arc<dyn EgressGates>,
    /// Verification of image signatures.
    pub signatures: SignatureVerifier,
    /// Removed clients, for which no instance starts.
    pub dismissed: RevokedClients,
    /// Turns for file system checks of servers, by server name and mounts.
    pub looks: FairSemaphore<String>,
}

/// Data of a start, fixed from the decision to its end.
pub struct PreparedLaunch {
    /// Secrets to deliver.
    pub secrets: Arc<SecretSet>,
    /// Resolved image, if the server is an image.
    pub pinned: Option<Pinned>,
    /// Hashed local program, if the server is one.
    pub hashed: Option<Hashed>,
    /// Engine, or the reason why there is none.
    pub engine: Result<container::Engine, String>,
    /// Runtime for the start.
    pub placement: Placement,
}

impl Launcher {
    /// Prepares a start. Searches for an engine if one is needed and none was found.
    ///
    /// # Errors
    /// A [`LaunchFailure`] if the image does not resolve.
    pub async fn prepare(
        &self,
        server: &ServerName,
        settings: &config::Server,
        secrets: Arc<SecretSet>,
    ) -> Result<PreparedLaunch, LaunchFailure> {
        let hashed = self.hashed(settings).await;
        let mut engine = self.engine.now();
        let in_container =
            matches!(self.placement_with(&engine, settings), Placement::Container { .. });
        if engine.is_err() && in_container && settings.pod_socket.is_none() {
            engine = self.engine.look().await;
        }
        let pinned = self.images.pin(&engine, server, settings).await?;
        let placement = self.placement_with(&engine, settings);
        Ok(PreparedLaunch { secrets, pinned, hashed, engine, placement })
    }

    /// Runtime of a server if it started now.
    pub fn placement(&self, settings: &config::Server) -> Placement {
        self.placement_with(&self.engine.now(), settings)
    }

    /// Runtime of a server if it started with this engine.
    pub fn placement_with(
        &self,
        engine: &Result<container::Engine, String>,
        settings: &config::Server,
    ) -> Placement {
        if let Some(url) = &settings.url {
            return Placement::Remote { url: origin(url) };
        }
        if settings.pod_socket.is_some() {
            return Placement::Container {
                why: "the config names the socket of its container".into(),
            };
        }
        if settings.runtime == Runtime::Runsc {
            return Placement::Container { why: "the config has runtime = \"runsc\"".into() };
        }
        if settings.image.is_some() {
            return Placement::Container { why: "the config names an image".into() };
        }
        match (settings.runtime, engine) {
            (Runtime::Container | Runtime::Runsc, _) => {
                Placement::Container { why: "the config has runtime = \"container\"".into() }
            }
            (Runtime::Sandbox, _) => {
                Placement::Sandbox { why: "the config has runtime = \"sandbox\"".into() }
            }
            (Runtime::Auto, Err(why)) => Placement::Sandbox { why: why.clone() },
            (Runtime::Auto, Ok(engine)) => {
                if let Err(lacking) = engine.confines() {
                    return Placement::Sandbox { why: lacking.what };
                }
                let program = settings.command.as_ref().and_then(|c| c.first());
                match program.map(|program| packable(&self.program(program))) {
                    Some(Err(why)) => Placement::Sandbox { why },
                    _ => Placement::Container {
                        why: "an engine answers and the program can be packed into an image".into(),
                    },
                }
            }
        }
    }

    /// Starts the prepared process, provided that its program still has the digest of the
    /// preparation.
    ///
    /// # Errors
    /// A [`LaunchFailure`] with a text for the operator.
    pub async fn start(
        self: &Arc<Self>,
        egress_context: EgressContext,
        settings: &config::Server,
        PreparedLaunch { secrets, pinned, hashed, engine, placement }: &PreparedLaunch,
    ) -> Result<(Process, Option<portcullis_vault::Folder>), LaunchFailure> {
        let server = &egress_context.server.clone();
        let unchanged = || match hashed {
            Some(hashed) if !hashed.is_still() => Err(LaunchFailure {
                what: "its program changed while it was being started".into(),
                remedy: Some("try again once it is in place".into()),
            }),
            _ => Ok(()),
        };
        let spec = |launcher: &Self, server: &ServerName, settings: &config::Server| {
            Ok(launcher.spec_without_secrets(server, settings))
        };
        let mut spec = self.looking(server, settings, spec).await?;
        spec.image = pinned.as_ref().map(Pinned::image);
        spec.secrets = secrets.by(DeliveryMethod::Environment);
        let files = secrets.by(DeliveryMethod::File).into_iter();
        spec.env
            .extend(files.map(|(name, _)| (format!("{name}_FILE"), format!("{SECRETS}/{name}"))));
        let changed = async || -> Result<Vec<String>, LaunchFailure> {
            let changed = self.looking(server, settings, Self::deviations).await?;
            Ok(changed.iter().map(ToString::to_string).collect())
        };
        if let Some(socket) = &settings.pod_socket {
            let changed = changed().await?;
            let mut process = sandbox::launch_in_pod(socket, &spec).await?;
            process.origin.deviations = changed;
            // The pod mounts the secrets on files.
            return Ok((process, None));
        }
        let folder = self.on_files(secrets, settings, placement)?;
        spec.secret_files = folder.as_ref().map(|folder| folder.path().to_owned());
        let mut process = match placement {
            Placement::Container { .. } => {
                let engine = engine.as_ref().map_err(|why| LaunchFailure {
                    what: why.to_string(),
                    remedy: Some(match settings.image {
                        Some(_) => "start Docker or Podman".into(),
                        None => "start Docker or Podman, or set runtime = \"sandbox\"".into(),
                    }),
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
                // The sandbox has the same defaults, except for image and capabilities.
                let changed = changed().await?;
                unchanged()?;
                let mut process = sandbox::launch(&spec).await?;
                process.origin.deviations = changed;
                process
            }
        };
        process.origin.egress_tried = process.egress_sockets.is_some();
        if let Some(sockets) = process.egress_sockets.take() {
            let hidden = spec.egress.iter().filter(|to| !has_address(&spec.egress, to));
            let hidden: Vec<_> = hidden.map(ToString::to_string).collect();
            if !hidden.is_empty() {
                tracing::info!(
                    %server, hosts = hidden.join(", "),
                    "hosts are reachable only through HTTPS_PROXY; programs that ignore it cannot resolve them"
                );
            }
            let gate = self.egress_gates.gate(egress_context);
            let limits = settings.egress_limits.limits();
            process.handle = sockets.serve(server, spec.egress, limits, gate, process.handle)?;
        }
        Ok((process, folder))
    }

    /// Runs a check of local folders for one server on a thread of its own. A file system that
    /// hangs delays only this server.
    ///
    /// # Errors
    /// The errors of `look`, and a [`LaunchFailure`] after half of the server's start timeout.
    pub async fn looking<T: Send + 'static>(
        self: &Arc<Self>,
        server: &ServerName,
        settings: &config::Server,
        look: impl FnOnce(&Self, &ServerName, &config::Server) -> Result<T, LaunchFailure>
        + Send
        + 'static,
    ) -> Result<T, LaunchFailure> {
        let patience = Duration::from_secs(settings.start_timeout_s) / 2;
        let (launcher, server, settings) = (self.clone(), server.clone(), settings.clone());
        let looking = async {
            // Held by the thread: while one hangs, no other begins.
            let turn = self.looks.next(&format!("{server} {:?}", settings.mounts)).await;
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                look(&launcher, &server, &settings)
            })
            .await
        };
        match tokio::time::timeout(patience, looking).await {
            Ok(Ok(looked)) => looked,
            Ok(Err(_)) => Err(LaunchFailure {
                what: "its folders could not be looked at".into(),
                remedy: Some("try again".into()),
            }),
            Err(_) => Err(LaunchFailure {
                what: format!(
                    "its folders could not be looked at within {} s: one of them, or of those that \
                     no server may see, does not answer",
                    patience.as_secs()
                ),
                remedy: Some(
                    "see what of this machine is mounted from elsewhere, such as NFS".into(),
                ),
            }),
        }
    }

    /// Hash of the local program of a server. `None` if the server is not a local program, or the
    /// file cannot be read.
    pub async fn hashed(&self, settings: &config::Server) -> Option<Hashed> {
        if settings.url.is_some() || settings.image.is_some() {
            return None;
        }
        let program = self.program(settings.command.as_ref()?.first()?);
        let digests = self.digests.clone();
        tokio::task::spawn_blocking(move || digests.of(&program).ok()).await.ok().flatten()
    }

    /// The program of a server, for the decision on its start.
    ///
    /// # Errors
    /// A [`LaunchFailure`] if the server cannot start at all.
    pub fn program_of(
        &self,
        server: &ServerName,
        settings: &config::Server,
        pinned: Option<&Pinned>,
    ) -> Result<Program, LaunchFailure> {
        let named = settings.url.as_ref().or(settings.image.as_ref());
        let first = settings.command.as_ref().and_then(|command| command.first());
        let name = named.or(first).cloned().unwrap_or_default();
        let digest = pinned.map(|pinned| pinned.digest().to_owned());
        let mut deviations = Vec::new();
        if settings.url.is_none() {
            let changed = self.deviations(server, settings)?;
            deviations = changed.iter().map(|deviation| deviation.config_key).collect();
            deviations.dedup();
        }
        Ok(Program { name, digest, deviations, signed: SignedBy::default() })
    }

    /// Deviations of a server's config from the hardened profile.
    ///
    /// # Errors
    /// A [`LaunchFailure`] if the config has a value that no server may have.
    fn deviations(
        &self,
        server: &ServerName,
        settings: &config::Server,
    ) -> Result<Vec<container::Deviation>, LaunchFailure> {
        let profile = container::Profile::of(&self.spec_without_secrets(server, settings))?;
        let mut changed = profile.deviations();
        if let Some(socket) = &settings.pod_socket {
            // The pod confines the process, and its mounts are not folders of this machine.
            if !settings.mounts.is_empty() {
                let all: Vec<_> = settings.mounts.iter().map(ToString::to_string).collect();
                changed.push(container::Deviation {
                    field: "Mounts",
                    default: "none".into(),
                    actual: all.join(", "),
                    config_key: "mounts",
                });
            }
            changed.push(container::Deviation {
                field: "Container",
                default: "ours".into(),
                actual: format!("its pod's, at {}", socket.display()),
                config_key: "pod-socket",
            });
        }
        Ok(changed)
    }

    /// The present rules for mounts.
    pub fn mount_policy(&self) -> MountPolicy {
        MountPolicy::of_host().with_engine(self.engine.host_paths()).with_own(self.protected.now())
    }

    /// Signers of the server's image.
    ///
    /// # Errors
    /// A [`LaunchFailure`] if a required signature is missing.
    pub async fn signed(
        &self,
        server: &ServerName,
        settings: &config::Server,
        pinned: &Pinned,
    ) -> Result<SignedBy, LaunchFailure> {
        self.signatures.of(server, settings, &self.images, pinned.reference.as_ref()).await
    }

    /// Writes the secrets with file delivery to a folder in memory, if there are any.
    fn on_files(
        &self,
        secrets: &SecretSet,
        settings: &config::Server,
        placement: &Placement,
    ) -> Result<Option<portcullis_vault::Folder>, LaunchFailure> {
        let files = secrets.by(DeliveryMethod::File);
        if files.is_empty() {
            return Ok(None);
        }
        let failed = |why: portcullis_vault::BackendError| LaunchFailure {
            what: format!("its secrets cannot be delivered as files: {why}"),
            remedy: Some("run the proxy where it has a tmpfs, such as /dev/shm".into()),
        };
        let runtime = match self.runtime.get() {
            Some(runtime) => runtime,
            None => {
                let runtime = portcullis_vault::Runtime::make().map_err(failed)?;
                self.runtime.get_or_init(|| runtime)
            }
        };
        let reader = match placement {
            // Only the engine knows the host's id of the container's user.
            Placement::Container { .. } => None,
            _ => {
                let user = settings.hardening.user.as_deref();
                let ids = user.unwrap_or("65534:65534").split_once(':');
                match sandbox::outside(user) {
                    sandbox::Outside::Ourselves { .. } => Some(portcullis_vault::Reader::Ourselves),
                    // Changing the owner of files takes root.
                    sandbox::Outside::Same if !nix::unistd::geteuid().is_root() => None,
                    sandbox::Outside::Same => ids.and_then(|(user, group)| {
                        Some(portcullis_vault::Reader::Other(
                            user.parse().ok()?,
                            group.parse().ok()?,
                        ))
                    }),
                }
            }
        };
        let folder = runtime.folder(reader).map_err(failed)?;
        for (name, value) in &files {
            folder.put(name, value).map_err(failed)?;
        }
        Ok(Some(folder))
    }

    /// Launch spec of a server, without secrets.
    pub fn spec_without_secrets(
        &self,
        server: &ServerName,
        settings: &config::Server,
    ) -> LaunchSpec {
        let mut command = settings.command.clone().unwrap_or_default();
        if settings.image.is_none()
            && let Some(program) = command.first_mut()
        {
            *program = self.program(program).to_string_lossy().into_owned();
        }
        LaunchSpec {
            server: server.clone(),
            command,
            image: settings.image.clone(),
            env: settings.env.clone().into_iter().collect(),
            secrets: Vec::new(),
            secret_files: None,
            mounts: settings
                .mounts
                .iter()
                .filter(|_| settings.pod_socket.is_none())
                .map(MountEntry::as_mount)
                .collect(),
            mount_policy: Arc::new(self.mount_policy()),
            resources: settings.resources.clone(),
            runtime: settings.runtime.oci(),
            hardening: settings.hardening.clone(),
            egress: settings.egress.clone(),
            instance: self.instance.clone(),
        }
    }

    /// Path of the program that a `command` names: `portcullis` is this executable, a path is
    /// relative to the config, a bare name is looked up in `PATH`.
    pub(super) fn program(&self, name: &str) -> PathBuf {
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

/// Interpreters. A packed one would lack its own libraries.
const INTERPRETERS: [&str; 16] = [
    "python", "node", "npx", "npm", "uv", "uvx", "deno", "bun", "ruby", "perl", "php", "java",
    "sh", "bash", "dash", "env",
];

/// Checks whether a program can be packed with its libraries. The error is the reason.
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
            "`{name}` is not an executable that can be packed; set `image` to run it in a container"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_native_programs_are_packable() {
        assert_eq!(packable(&std::env::current_exe().unwrap()), Ok(()));
        for program in
            ["/usr/bin/python3.11", "/usr/bin/env", "/bin/sh", "/etc/passwd", "/nonexistent"]
        {
            assert!(packable(Path::new(program)).is_err(), "{program}");
        }
    }
}
