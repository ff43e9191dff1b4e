//! Servers of a config: lookup, their secrets as policies evaluate them, the verifier of their images,
//! and a launcher to examine them with; and the user who runs the command.

use portcullis_audit::record::CommandUser;
use portcullis_config::{Loaded, protected_paths};
use portcullis_policy::{DeliveredAs, LaunchSecret};
use portcullis_protocol::names::ServerName;
use portcullis_runtime::ProtectedPaths;
use portcullis_upstream::{Engines, Launcher, SignatureVerifier, config::SecretDeliveryMethod};

/// Settings of a server of the config.
///
/// # Errors
/// The config has no such server.
pub fn configured<'a>(
    loaded: &'a Loaded,
    name: &ServerName,
) -> anyhow::Result<&'a portcullis_upstream::config::Server> {
    loaded.config.servers.get(name).ok_or_else(|| unknown(loaded, name))
}

/// Error of a server that the config does not have, or has disabled.
pub fn unknown(loaded: &Loaded, name: &ServerName) -> anyhow::Error {
    if loaded.disabled.contains_key(name) {
        return anyhow::anyhow!(
            "server `{name}` is disabled: `portcullis server enable {name}` enables it"
        );
    }
    let servers = loaded.config.servers.keys().chain(loaded.disabled.keys());
    let names: Vec<_> = servers.map(|name| name.as_str()).collect();
    let near = portcullis_protocol::names::nearest(name.as_str(), names.iter().copied());
    match near.first() {
        Some(near) => anyhow::anyhow!("there is no server `{name}`; did you mean `{near}`?"),
        None if names.is_empty() => anyhow::anyhow!(
            "there is no server `{name}`: the config has no servers, and `portcullis add` adds one"
        ),
        None => {
            anyhow::anyhow!("there is no server `{name}`; the config has `{}`", names.join("`, `"))
        }
    }
}

/// Secrets of a server, as policies evaluate them. The config's own checks report a secret that
/// cannot be parsed as a reference.
pub fn launch_secrets(settings: &portcullis_upstream::config::Server) -> Vec<LaunchSecret<'_>> {
    let all = settings.secret_bindings().flat_map(|binding| {
        let delivery = match binding.delivery {
            Some(SecretDeliveryMethod::Env) => DeliveredAs::Env,
            Some(SecretDeliveryMethod::File) => DeliveredAs::File,
            None => DeliveredAs::Header,
        };
        binding.references().filter_map(move |(client, from)| {
            let source = from.parse::<portcullis_vault::Source>().ok()?.kind();
            Some(LaunchSecret { name: binding.name, source, delivery, client })
        })
    });
    all.collect()
}

/// Launcher that resolves images, programs and placements, and starts nothing.
pub async fn launcher(loaded: &Loaded) -> Launcher {
    Launcher {
        engine: Engines::find(loaded.config.engine.host.as_deref()).await,
        instance: String::new(),
        base: loaded.base.clone(),
        protected: ProtectedPaths::new(protected_paths(loaded)),
        caps: loaded.config.limits.response_caps(),
        // Nothing is started here.
        broker: Default::default(),
        runtime: Default::default(),
        discovery_cache_dir: None,
        digests: Default::default(),
        images: std::sync::Arc::new(loaded.images()),
        egress_gates: std::sync::Arc::new(portcullis_runtime::egress_netns::DenyAllEgress),
        signatures: Default::default(),
        dismissed: Default::default(),
        looks: portcullis_foundation::fair_semaphore::FairSemaphore::one_each(),
    }
}

/// Verifier of signatures with the signers in the config.
///
/// # Errors
/// A signer is invalid.
pub fn signatures(loaded: &Loaded) -> anyhow::Result<SignatureVerifier> {
    loaded.signatures().map_err(|(pointer, why)| {
        let line = loaded.line(&pointer).map_or_else(String::new, |line| format!(":{line}"));
        anyhow::anyhow!("{}{line}: {why}", loaded.path.display())
    })
}

/// User who runs this command.
pub fn current_user() -> CommandUser {
    let uid = nix::unistd::getuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    CommandUser { uid: Some(uid.as_raw()), user }
}
