//! Where a server runs: in a container, in the local sandbox, or elsewhere.

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
    process::{LaunchFailure, LaunchSpec, Process, SECRETS},
};
use portcullis_runtime::{config::MountEntry, container, sandbox};

/// Starts servers: knows the engine, where there is one, and who starts them.
pub struct Launcher {
    /// The container engine, or why there is none.
    pub engine: Engines,
    /// This run of the proxy, for labels.
    pub instance: String,
    /// The folder to which the config's relative paths are relative.
    pub base: PathBuf,
    /// Paths of the proxy that no server may see.
    pub protected: ProtectedPaths,
    /// What is taken of a server's messages.
    pub caps: Caps,
    /// Who looks for what servers are handed.
    pub hands: SecretBroker,
    /// Where secrets are handed over as files, once that was needed.
    pub runtime: OnceLock<portcullis_vault::Runtime>,
    /// The programs of this machine that were hashed.
    pub digests: Arc<Digests>,
    /// The folder in which is kept what servers offer, where it is kept.
    pub known: Option<PathBuf>,
    /// What images mean, and who gets them.
    pub images: Arc<Images>,
    /// Who decides what servers reach.
    pub outward: Arc<dyn EgressGates>,
    /// Who signed images.
    pub signatures: SignatureVerifier,
    /// The clients for which nothing is started.
    pub dismissed: RevokedClients,
    /// Looks at the folders of servers, by name and mounts.
    pub looks: FairSemaphore<String>,
}

/// What a start goes by, from the decision on it to its end.
pub struct PreparedLaunch {
    /// The secrets that it is handed.
    pub handed: Arc<SecretSet>,
    /// The image, where it is one.
    pub pinned: Option<Pinned>,
    /// The program of this machine, where it is one.
    pub hashed: Option<Hashed>,
    /// The engine, or why there is none.
    pub engine: Result<container::Engine, String>,
    /// Where it is to run.
    pub place: Placement,
}

impl Launcher {
    /// Gets together what a start goes by. An engine is looked for where one is needed and there was
    /// none.
    ///
    /// # Errors
    /// Where it is not to be found out what the image means.
    pub async fn prepare(
        &self,
        server: &ServerName,
        settings: &config::Server,
        handed: Arc<SecretSet>,
    ) -> Result<PreparedLaunch, LaunchFailure> {
        let hashed = self.hashed(settings).await;
        let mut engine = self.engine.now();
        let in_container =
            matches!(self.place_with(&engine, settings), Placement::Container { .. });
        if engine.is_err() && in_container && settings.pod_socket.is_none() {
            engine = self.engine.look().await;
        }
        let pinned = self.images.pin(&engine, server, settings).await?;
        let place = self.place_with(&engine, settings);
        Ok(PreparedLaunch { handed, pinned, hashed, engine, place })
    }

    /// Where a server would run, as things are.
    pub fn place(&self, settings: &config::Server) -> Placement {
        self.place_with(&self.engine.now(), settings)
    }

    /// Where a server would run with that engine.
    pub fn place_with(
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
            return Placement::Container { why: "the config says runtime = \"runsc\"".into() };
        }
        if settings.image.is_some() {
            return Placement::Container { why: "the config names an image".into() };
        }
        match (settings.runtime, engine) {
            (Runtime::Container | Runtime::Runsc, _) => {
                Placement::Container { why: "the config says runtime = \"container\"".into() }
            }
            (Runtime::Sandbox, _) => {
                Placement::Sandbox { why: "the config says runtime = \"sandbox\"".into() }
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

    /// Starts the server's process as it was prepared, where its program is still the one that was
    /// hashed.
    ///
    /// # Errors
    /// A [`LaunchFailure`], in words for the operator.
    pub async fn start(
        self: &Arc<Self>,
        reacher: EgressContext,
        settings: &config::Server,
        PreparedLaunch { handed, pinned, hashed, engine, place }: &PreparedLaunch,
    ) -> Result<(Process, Option<portcullis_vault::Folder>), LaunchFailure> {
        let server = &reacher.server.clone();
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
        spec.secrets = handed.by(DeliveryMethod::Environment);
        let files = handed.by(DeliveryMethod::File).into_iter();
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
            // Its secrets on files are its pod's to mount.
            return Ok((process, None));
        }
        let folder = self.on_files(handed, settings, place)?;
        spec.secret_files = folder.as_ref().map(|folder| folder.path().to_owned());
        let mut process = match place {
            Placement::Container { .. } => {
                let engine = engine.as_ref().map_err(|why| LaunchFailure {
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
                // The sandbox keeps to the same defaults, but has neither image nor capabilities.
                let changed = changed().await?;
                unchanged()?;
                let mut process = sandbox::launch(&spec).await?;
                process.origin.deviations = changed;
                process
            }
        };
        process.origin.egress_tried = process.door.is_some();
        if let Some(door) = process.door.take() {
            let hidden = spec.egress.iter().filter(|to| !has_address(&spec.egress, to));
            let hidden: Vec<_> = hidden.map(ToString::to_string).collect();
            if !hidden.is_empty() {
                tracing::info!(
                    %server, hosts = hidden.join(", "),
                    "hosts are reachable only through HTTPS_PROXY; programs that ignore it cannot resolve them"
                );
            }
            let gate = self.outward.gate(reacher);
            let limits = settings.egress_limits.limits();
            process.handle = door.serve(server, spec.egress, limits, gate, process.handle)?;
        }
        Ok((process, folder))
    }

    /// Does what looks at folders of this machine, for one server, on a thread of its own: one that does
    /// not answer holds up this server, and nobody else.
    ///
    /// # Errors
    /// Those of `look`, and where it takes longer than half of the time that the server has to start.
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
            // Held by the thread: beside one that hangs no other is begun.
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

    /// What the config changes of a server against the default profile.
    ///
    /// # Errors
    /// Where it asks for what no server can have.
    fn deviations(
        &self,
        server: &ServerName,
        settings: &config::Server,
    ) -> Result<Vec<container::Deviation>, LaunchFailure> {
        let profile = container::Profile::of(&self.spec_without_secrets(server, settings))?;
        let mut changed = profile.deviations();
        if let Some(socket) = &settings.pod_socket {
            // It is not ours to confine, nor are its mounts folders of this machine.
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

    /// The rules for mounts as things are now.
    pub fn mount_policy(&self) -> MountPolicy {
        MountPolicy::of_host().with_engine(self.engine.host_paths()).with_own(self.protected.now())
    }

    /// Who signed its image.
    ///
    /// # Errors
    /// Where none of those did who have to have signed it.
    pub async fn signed(
        &self,
        server: &ServerName,
        settings: &config::Server,
        pinned: &Pinned,
    ) -> Result<SignedBy, LaunchFailure> {
        self.signatures.of(server, settings, &self.images, pinned.reference.as_ref()).await
    }

    /// Puts secrets on files of a folder in memory, where a server is to get any as files.
    fn on_files(
        &self,
        handed: &SecretSet,
        settings: &config::Server,
        place: &Placement,
    ) -> Result<Option<portcullis_vault::Folder>, LaunchFailure> {
        let files = handed.by(DeliveryMethod::File);
        if files.is_empty() {
            return Ok(None);
        }
        let failed = |why: portcullis_vault::Why| LaunchFailure {
            what: format!("its secrets cannot be delivered as files: {why}"),
            remedy: Some("run the proxy where it has a tmpfs, such as /dev/shm".into()),
        };
        let runtime = match self.runtime.get() {
            Some(runtime) => runtime,
            None => {
                let made = portcullis_vault::Runtime::make().map_err(failed)?;
                self.runtime.get_or_init(|| made)
            }
        };
        let reader = match place {
            // What an engine calls that user on the host is for the engine alone to know.
            Placement::Container { .. } => None,
            _ => {
                let user = settings.hardening.user.as_deref();
                let ids = user.unwrap_or("65534:65534").split_once(':');
                match sandbox::outside(user) {
                    sandbox::Outside::Ourselves { .. } => Some(portcullis_vault::Reader::Ourselves),
                    // To give files away takes more than to become another.
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

    /// What is started, in the form of the runtimes, without secrets.
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
            places: Arc::new(self.mount_policy()),
            resources: settings.resources.clone(),
            runtime: settings.runtime.oci(),
            hardening: settings.hardening.clone(),
            egress: settings.egress.clone(),
            instance: self.instance.clone(),
        }
    }

    /// The program that a `command` names: `portcullis` is this very executable, a path is
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
            "`{name}` is not an executable that can be packed; set `image` to run it in a container"
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
