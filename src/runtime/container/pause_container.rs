//! Pause container: holds the network namespace of a server with `egress`.
//!
//! An engine creates a container's network namespace only when it starts the container's program.
//! So the pause container gets the namespace first, the egress sockets are opened in it, and then
//! the server starts in the same namespace. The sockets therefore exist before the server's first
//! instruction.
//!
//! The pause container's program belongs to Portcullis and does nothing: it reads its input until
//! the end of input, which the engine causes when the proxy ends, however it ends. The container is
//! at least as confined as a server.

use std::sync::LazyLock;

use bollard::{
    container::AttachContainerResults,
    errors::Error,
    models::ContainerCreateBody,
    query_parameters::{AttachContainerOptionsBuilder, CreateContainerOptionsBuilder},
};
use tokio::sync::watch;

use crate::{
    egress_netns::EgressSockets,
    process::{Exit, LaunchFailure},
};
use portcullis_egress::Destination;

use super::{
    Engine, Profile,
    engine_errors::words,
    failure, label,
    launch::Labels,
    namespace,
    running::{Guard, remove},
};

/// Pause container, with the writing end of its input.
pub(super) struct PauseContainer {
    guard: Guard,
    input: AttachContainerResults,
}

impl Engine {
    /// Creates the pause container for a server's container with that name, without starting it.
    pub(super) async fn hold(
        &self,
        server: &str,
        profile: &Profile,
        labels: &Labels,
    ) -> Result<PauseContainer, LaunchFailure> {
        let image = self.holder_image().await?;
        let mut labels = labels.clone();
        labels.insert(label::PROFILE.to_owned(), profile.hash());
        labels.insert(label::HOLDS.to_owned(), server.to_owned());
        let body = ContainerCreateBody {
            image: Some(image),
            user: Some(profile.user().to_owned()),
            attach_stdin: Some(true),
            open_stdin: Some(true),
            stdin_once: Some(true),
            tty: Some(false),
            stop_signal: Some("SIGTERM".to_owned()),
            labels: Some(labels),
            healthcheck: Some(profile.health()),
            host_config: Some(profile.host_config()),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::new().name(&format!("{server}-net")).build();
        let created = self.docker.create_container(Some(options), body).await;
        let guard = Guard::new(self.docker.clone(), created.map_err(did_not("create"))?.id);
        let attach = AttachContainerOptionsBuilder::new().stream(true).stdin(true).build();
        let input = self.docker.attach_container(guard.id(), Some(attach)).await;
        Ok(PauseContainer { guard, input: input.map_err(did_not("attach to"))? })
    }

    /// Starts the pause container with that id, and opens the egress sockets in its namespace.
    pub(super) async fn open(
        &self,
        holder: &str,
        listed: &[Destination],
    ) -> Result<EgressSockets, LaunchFailure> {
        self.docker.start_container(holder, None).await.map_err(did_not("start"))?;
        EgressSockets::open(namespace::of(&self.docker, holder).await?, listed).await
    }
}

fn did_not(what: &'static str) -> impl Fn(Error) -> LaunchFailure {
    move |error| {
        failure(
            format!("the engine did not {what} the pause container: {}", words(&error)),
            "check the engine: `portcullis doctor`",
        )
    }
}

impl PauseContainer {
    pub(super) fn id(&self) -> &str {
        self.guard.id()
    }

    /// Ends the pause container after its server, with which it is removed. The returned guard owns
    /// both.
    pub(super) fn end_after(self, server: Guard, mut exit: watch::Receiver<Option<Exit>>) -> Guard {
        let Self { guard, input } = self;
        let (docker, ids) = (server.docker().clone(), [server.id(), guard.id()].map(str::to_owned));
        tokio::spawn(async move {
            let _ = exit.wait_for(Option::is_some).await;
            // In this order, because an engine may refuse to remove a container that another one
            // joined.
            let _ = remove(&docker, &ids[0]).await;
            drop(input);
            let _ = remove(&docker, &ids[1]).await;
        });
        server.with(guard)
    }
}

/// Digests of the layers of pause containers' images, for a guard that permits only these.
pub(super) static LAYERS: LazyLock<Vec<String>> = LazyLock::new(|| {
    ["x86_64", "aarch64"].into_iter().filter_map(super::image_builder::holder_layer).collect()
});
