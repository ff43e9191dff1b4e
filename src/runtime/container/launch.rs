//! Starts a server in a container: create, attach, watch, start.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use bollard::{
    errors::Error,
    models::ContainerCreateBody,
    query_parameters::{AttachContainerOptionsBuilder, CreateContainerOptionsBuilder},
};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    egress_netns,
    process::{LaunchFailure, LaunchSpec, Origin},
    started::Process,
};
use portcullis_vault::Secret;

use super::{
    Engine, Profile, cgroup_check,
    engine_errors::{missing, words},
    failure,
    image::Image,
    label, mount_verification,
    running::{self, Container, Guard},
    stdio::{self, Stdin},
};

/// Prefix of the names of Portcullis's containers.
pub(super) use portcullis_guard::NAME;

pub(super) type Labels = HashMap<String, String>;

impl Engine {
    /// Starts a server in a container with the hardened profile, attached to its streams.
    ///
    /// Never pulls: a missing image is an error, and so is a name without a digest, which could
    /// mean any image. A launch that fails, or whose future is dropped, leaves no container.
    pub async fn launch(&self, spec: &LaunchSpec) -> Result<Process, LaunchFailure> {
        let interrupted = |_| failure("the launch was interrupted", "try again");
        let (engine, spec) = (self.clone(), spec.clone());
        // A separate task: the engine may still process a request whose caller has stopped waiting.
        // So the launch is completed, and its result is dropped, which removes the container.
        let starting = tokio::spawn(async move {
            // A folder on a file server that does not answer blocks only this launch.
            let planning = tokio::task::spawn_blocking(move || {
                let plan = Plan::of(&engine, &spec)?;
                Ok::<_, LaunchFailure>((engine, spec, plan))
            });
            let (engine, spec, plan) = planning.await.map_err(interrupted)??;
            engine.start(plan, &spec).await
        });
        starting.await.map_err(interrupted)?
    }

    async fn start(self, plan: Plan, spec: &LaunchSpec) -> Result<Process, LaunchFailure> {
        let Plan { mut profile, image, name, mut body, secrets } = plan;
        let scrub = |error: &Error| scrub(words(error), &secrets);
        if let Some(runtime) = profile.runtime() {
            self.has_runtime(runtime)?;
        }
        self.confines()?;

        let found = self.docker.inspect_image(image.as_str()).await.map_err(|error| {
            if missing(&error) {
                failure(
                    format!("the image `{image}` is not on this engine"),
                    match &image {
                        Image::Id(_) => {
                            "load or build the image; `docker images --no-trunc` \
                            lists ids"
                        }
                        _ => "pull it: `portcullis server pull`",
                    },
                )
            } else {
                failure(
                    format!("the engine could not look up the image `{image}`: {}", scrub(&error)),
                    "check the engine: `portcullis doctor`",
                )
            }
        })?;
        let image_id = found.id;
        let config = found.config.unwrap_or_default();
        add_home(&mut body, spec, &config.env.unwrap_or_default());
        let volumes = config.volumes.unwrap_or_default();
        profile.complete(&self.facts, volumes);

        let holder = match profile.egress() {
            [] => None,
            _ => {
                let labels = body.labels.clone().unwrap_or_default();
                let holder = self.hold(&name, &profile.holder(&self.facts), &labels).await?;
                profile.join(holder.id());
                Some(holder)
            }
        };
        body.host_config = Some(profile.host_config());
        body.healthcheck = Some(profile.health());
        if let Some(labels) = &mut body.labels {
            labels.insert(label::PROFILE.to_owned(), profile.hash());
        }
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let creating = self.docker.create_container(Some(options), body);
        // Both take about as long. Neither is cancelled: a created container has an owner.
        let holder_id = holder.as_ref().map(|holder| holder.id().to_owned());
        let (created, egress_sockets) = match &holder_id {
            None => (creating.await, Ok(None)),
            Some(holder_id) => {
                let opening = self.open(holder_id, profile.egress());
                let (created, egress_sockets) = tokio::join!(creating, opening);
                (created, egress_sockets.map(Some))
            }
        };
        let created = created.map_err(|error| {
            failure(
                format!("the engine did not create a container of `{image}`: {}", scrub(&error)),
                "compare its profile (`portcullis server inspect`) with `portcullis doctor`",
            )
        })?;
        for warning in &created.warnings {
            tracing::warn!(container = %name, "the engine warns: {warning}");
        }
        let (exit, watched) = watch::channel(None);
        let mut guard = Guard::new(self.docker.clone(), created.id);
        if let Some(holder) = holder {
            guard = holder.end_after(guard, watched.clone());
        }
        let egress_sockets = egress_sockets?;
        if self.facts.podman {
            // The engine reports limits even if, rootless on cgroup v1, it does not apply them.
            cgroup_check::verify_limits(&self.docker, guard.id()).await?;
        }

        let attach = AttachContainerOptionsBuilder::new()
            .stream(true)
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .build();
        let attached =
            self.docker.attach_container(guard.id(), Some(attach)).await.map_err(|error| {
                failure(
                    format!("the engine did not attach to the container: {}", scrub(&error)),
                    "check the engine: `portcullis doctor`",
                )
            })?;
        let (out, stdout) = stdio::pipe();
        let (err, stderr) = stdio::pipe();
        let (ended, streams_ended) = oneshot::channel();
        let over = CancellationToken::new();
        let no_more = over.clone();
        tokio::spawn(async move {
            stdio::demultiplex(attached.output, out, err).await;
            no_more.cancel();
            let _ = ended.send(());
        });

        let memory = profile.memory();
        let watcher = running::watch(
            self.docker.clone(),
            guard.id().to_owned(),
            memory,
            streams_ended,
            Arc::new(exit),
        );
        tokio::spawn(watcher);

        self.docker.start_container(guard.id(), None).await.map_err(|error| {
            failure(
                format!("the engine did not start a container of `{image}`: {}", scrub(&error)),
                "check that the image's program can run as another user, read-only and without \
                network",
            )
        })?;
        mount_verification::mounts(&self.docker, guard.id(), profile.mounts()).await?;
        Ok(Process {
            stdin: Box::new(Stdin::new(attached.input, over)),
            stdout,
            stderr,
            handle: Box::new(Container::new(guard, watched)),
            origin: Origin {
                program: None,
                image_ref: Some(image.as_str().to_owned()),
                image: image_id,
                profile: Some(profile.hash()),
                deviations: profile.deviations().iter().map(ToString::to_string).collect(),
                ..Origin::default()
            },
            egress_sockets,
        })
    }
}

/// A checked launch, before any request to the engine.
struct Plan {
    profile: Profile,
    image: Image,
    name: String,
    body: ContainerCreateBody,
    secrets: Vec<Secret>,
}

impl Plan {
    fn of(engine: &Engine, spec: &LaunchSpec) -> Result<Self, LaunchFailure> {
        let Some(image) = &spec.image else {
            return Err(failure(
                format!("the server `{}` has no image to launch", spec.server),
                "set `image`, or `command` to have a program packed into an image",
            ));
        };
        let image: Image = image.parse().map_err(|illegal: super::IllegalImage| {
            failure(
                illegal.to_string(),
                "name it as NAME@sha256:DIGEST, or by its local id sha256:ID",
            )
        })?;
        if matches!(image, Image::Tag(_)) {
            return Err(failure(
                format!(
                    "the image `{image}` is named by a tag, which can be moved to other \
                    content"
                ),
                "name it as NAME@sha256:DIGEST, or by its local id sha256:ID",
            ));
        }
        // Paths of this engine, whatever the spec has.
        let mount_policy = spec.mount_policy.as_ref().clone().with_engine(engine.host_paths());
        let profile = Profile::new(spec, &mount_policy)?;
        if spec.command.iter().any(|argument| argument.contains('\0')) {
            return Err(failure(
                "an argument of the command contains a NUL byte",
                "correct `command`",
            ));
        }
        let labels = Labels::from([
            (label::INSTANCE.to_owned(), spec.instance.clone()),
            (label::SERVER.to_owned(), spec.server.to_string()),
            (label::OWNER.to_owned(), engine.facts.owner.to_string()),
            // A guard writes its name here. Without a guard, a label of the image must not count.
            (label::GUARD.to_owned(), String::new()),
        ]);
        let body = ContainerCreateBody {
            image: Some(image.as_str().to_owned()),
            cmd: (!spec.command.is_empty()).then(|| spec.command.clone()),
            env: Some(environment(spec)?),
            user: Some(profile.user().to_owned()),
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            open_stdin: Some(true),
            // The engine closes the server's input when this process ends, however it ends.
            stdin_once: Some(true),
            tty: Some(false),
            stop_signal: Some("SIGTERM".to_owned()),
            labels: Some(labels),
            ..ContainerCreateBody::default()
        };
        let unique = Uuid::now_v7().simple().to_string();
        Ok(Self {
            profile,
            image,
            name: format!("{NAME}{}-{unique}", spec.server),
            body,
            secrets: spec.secrets.iter().map(|(_, secret)| secret.clone()).collect(),
        })
    }
}

fn environment(spec: &LaunchSpec) -> Result<Vec<String>, LaunchFailure> {
    let plain = spec.env.iter().map(|(name, value)| (name, value.as_str()));
    let secret = spec.secrets.iter().map(|(name, value)| (name, value.expose()));
    let mut names = BTreeSet::new();
    let mut environment = Vec::new();
    for (name, value) in plain.chain(secret) {
        let legal = !name.is_empty()
            && !name.starts_with('-')
            && name.bytes().all(|b| b.is_ascii_graphic() && b != b'=');
        if !legal {
            return Err(failure(
                format!("`{}` is not a name of an environment variable", name.escape_debug()),
                "correct it in `env` or `secrets`",
            ));
        }
        if value.contains('\0') {
            return Err(failure(
                format!("the value of the environment variable `{name}` contains a NUL byte"),
                "correct it in `env` or `secrets`",
            ));
        }
        if !names.insert(name) {
            return Err(failure(
                format!("the environment variable `{name}` is set twice"),
                "set it once, in `env` or in `secrets`",
            ));
        }
        environment.push(format!("{name}={value}"));
    }
    let variables =
        egress_netns::environment(&spec.egress, |name| names.iter().any(|set| *set == name));
    environment.extend(variables.into_iter().map(|(name, value)| format!("{name}={value}")));
    Ok(environment)
}

/// Adds variables that the image does not set. A `HOME` that the engine takes from the image's
/// `/etc/passwd` (`/nonexistent`, `/`) is not writable.
fn add_home(body: &mut ContainerCreateBody, spec: &LaunchSpec, image: &[String]) {
    let environment = body.env.get_or_insert_default();
    let home = spec.home(|name| {
        let is = |set: &String| set.split_once('=').is_some_and(|(set, _)| set == name);
        environment.iter().chain(image).any(is)
    });
    environment.extend(home.into_iter().map(|(name, value)| format!("{name}={value}")));
}

/// Removes secrets from an engine's message, in case the engine repeats the request.
fn scrub(mut words: String, secrets: &[Secret]) -> String {
    for secret in secrets {
        let value = secret.expose();
        if !value.is_empty() && words.contains(value) {
            words = words.replace(value, "[secret]");
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(env: &[(&str, &str)], secrets: &[(&str, &str)]) -> LaunchSpec {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        LaunchSpec {
            env: env.iter().map(owned).collect(),
            secrets: secrets.iter().map(owned).map(|(n, v)| (n, Secret::new(v))).collect(),
            ..LaunchSpec::bare("notes".parse().unwrap(), Vec::new(), "test")
        }
    }

    #[test]
    fn invalid_environment_variables_are_refused() {
        let taken = environment(&spec(&[("A", "1"), ("b.c", "x=y")], &[("TOKEN", "t")]));
        assert_eq!(taken.unwrap(), ["A=1", "b.c=x=y", "TOKEN=t"]);
        for (env, secrets) in [
            (&[("", "x")][..], &[][..]),
            (&[("A=B", "x")], &[]),
            (&[("-e", "x")], &[]),
            (&[("A B", "x")], &[]),
            (&[("A", "x\0y")], &[]),
            (&[("A", "1"), ("A", "2")], &[]),
            (&[("A", "1")], &[("A", "hidden")]),
            (&[], &[("A\n", "hidden")]),
            (&[], &[("A", "hid\0den")]),
        ] {
            let refused = environment(&spec(env, secrets)).unwrap_err();
            assert!(!format!("{refused:?}").contains("hid"), "{refused:?}");
        }
    }

    #[test]
    fn home_set_by_the_image_is_kept() {
        let settled = |image: &[&str], spec: &LaunchSpec| {
            let mut body =
                ContainerCreateBody { env: Some(vec!["A=1".into()]), ..Default::default() };
            let image: Vec<_> = image.iter().map(|set| (*set).to_owned()).collect();
            add_home(&mut body, spec, &image);
            body.env.unwrap()
        };
        let mut spec = spec(&[], &[]);
        assert_eq!(settled(&["PATH=/bin"], &spec), ["A=1", "HOME=/tmp"]);
        assert_eq!(settled(&["HOME=/app"], &spec), ["A=1"]);
        spec.mounts.push(crate::mount::Mount {
            source: "/srv".into(),
            target: "/srv".into(),
            writable: false,
        });
        let git = ["GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"];
        assert_eq!(settled(&["HOME=/app"], &spec)[1..], git);
        assert_eq!(settled(&["HOME=/app", "GIT_CONFIG_COUNT=0"], &spec), ["A=1"]);
    }

    #[test]
    fn secrets_in_engine_messages_are_redacted() {
        let secrets = [Secret::new("s3".to_owned()), Secret::new(String::new())];
        assert_eq!(
            scrub("bad value s3 in A=s3".into(), &secrets),
            "bad value [secret] in A=[secret]"
        );
    }
}
