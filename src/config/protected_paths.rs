//! Paths of the proxy that no server may see or change, and the mounts that show them.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{Code, Finding, Loaded};
use portcullis_audit::{config::Destination, export::Target};
use portcullis_catalog::{lock, profile_file};
use portcullis_interceptors::InterceptorKind;
use portcullis_runtime::{
    MountPolicy, ProtectedPath, Protection, container, mount::Mount, process::LaunchFailure,
};
use portcullis_upstream::config::Server;
use portcullis_vault::SecretRef;

/// Protected paths of a config and of this process's environment.
pub fn protected_paths(loaded: &Loaded) -> Vec<ProtectedPath> {
    collect(loaded, &|name| env::var_os(name))
}

/// Files and folders of the proxy, from its config and environment variables.
fn collect(loaded: &Loaded, env: &dyn Fn(&str) -> Option<OsString>) -> Vec<ProtectedPath> {
    let Loaded { config, base, path, aside, .. } = loaded;
    let from_base = |path: &PathBuf| base.join(path);
    let variable = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut all = List::default();

    let config_file = path.file_name().map(|name| base.join(name));
    all.add(Protection::Hidden, "the proxy's config", config_file);
    all.add(Protection::Hidden, "the lock file", [base.join(lock::FILE)]);
    all.add(Protection::Folder, "the profiles", [base.join(profile_file::FOLDER)]);
    let policies = portcullis_policy::Source::of(&config.policy, &config.state_dir);
    all.add(Protection::Folder, "the policies", policies.paths().iter().map(from_base));
    all.add(Protection::Hidden, "the proxy's state folder", [config.state_dir.clone()]);
    all.add(Protection::Hidden, "the audit log", config.audit.dir.clone());
    all.add(Protection::Hidden, "the operator's socket", config.admin.socket.clone());
    let exports = config.audit.export.iter().filter_map(|export| match &export.to {
        Destination::Plain(to) => match Target::parse(to, base) {
            Ok(Target::File(path)) => Some(path),
            _ => None,
        },
        Destination::Secret(_) => None,
    });
    all.add(Protection::Hidden, "an export of the audit log", exports);
    // Files with credentials for secret stores.
    let keepers = ["VAULT_TOKEN_FILE", "VAULT_SECRET_ID_FILE"].into_iter().filter_map(variable);
    let logins = variable("DOCKER_CONFIG").map(|folder| folder.join("config.json"));
    let secrets = secret_files(loaded).chain(keepers).chain(logins);
    all.add(Protection::Hidden, "a source file of secrets", secrets);
    all.add(
        Protection::Hidden,
        "the secrets that are delivered to \
        servers",
        portcullis_vault::folders(),
    );

    let signers = config.signers.values();
    let signers = signers.flat_map(|signer| signer.key.iter().chain(&signer.trusted_root));
    all.add(Protection::Fixed, "a signer's key", signers.map(from_base));
    let exports = config.audit.export.iter().filter_map(|export| export.ca_file.as_ref());
    let authorities = config.registries.ca_file.iter().chain(exports).map(from_base);
    let authorities = authorities.chain(variable("VAULT_CACERT"));
    all.add(Protection::Fixed, "a list of authorities that the proxy trusts", authorities);
    let witnesses = config.audit.witness.iter().filter_map(|witness| witness.file.as_ref());
    all.add(Protection::Fixed, "a witness of the audit log", witnesses.map(from_base));
    let plugins = config.interceptors.iter().filter_map(|entry| match &entry.kind {
        InterceptorKind::Plugin(plugin) => plugin.path.as_ref(),
        _ => None,
    });
    all.add(Protection::Fixed, "a plugin", plugins.map(from_base));
    all.add(Protection::Fixed, "the proxy's own program", env::current_exe());
    let programs = config.servers.values().chain(aside).filter_map(program);
    all.add(
        Protection::Fixed,
        "the program of a server",
        programs.map(|program| base.join(program)),
    );
    // Programs of secret stores also run from there, with the proxy's rights.
    let path = env("PATH").filter(|path| !path.is_empty());
    // An empty entry means the working folder.
    let folders = path.iter().flat_map(env::split_paths).map(|folder| Path::new(".").join(folder));
    all.add(Protection::Fixed, "a folder of programs that the proxy runs", folders);
    all.0
}

#[derive(Default)]
struct List(Vec<ProtectedPath>);

impl List {
    fn add(
        &mut self,
        protection: Protection,
        what: &'static str,
        paths: impl IntoIterator<Item = PathBuf>,
    ) {
        // Paths of the environment are relative to the working folder.
        let paths = paths.into_iter().map(|path| std::path::absolute(&path).unwrap_or(path));
        self.0.extend(paths.map(|path| ProtectedPath { path, what, protection }));
    }
}

/// Program of this machine that a server's `command` names by path.
fn program(server: &Server) -> Option<&str> {
    let elsewhere = server.image.is_some() || server.url.is_some() || server.pod_socket.is_some();
    let first = server.command.as_ref().filter(|_| !elsewhere)?.first()?;
    first.contains('/').then_some(first.as_str())
}

/// Files that contain secrets of the config, and those that decrypt them.
fn secret_files(loaded: &Loaded) -> impl Iterator<Item = PathBuf> + '_ {
    let Loaded { config, base, aside, .. } = loaded;
    let of_servers =
        config.servers.values().chain(aside).flat_map(|server| server.secret_bindings());
    let of_servers = of_servers.flat_map(|binding| binding.references()).map(|(_, from)| from);
    fn plain(secret: &SecretRef) -> &str {
        &secret.from
    }
    let encryption = config.audit.encryption.iter();
    let keys = encryption.flat_map(|keys| std::iter::once(&keys.key).chain(&keys.old_keys));
    let exports = config.audit.export.iter().flat_map(|export| {
        let to = match &export.to {
            Destination::Secret(secret) => Some(secret),
            Destination::Plain(_) => None,
        };
        export.headers.values().chain(to)
    });
    let webhook = config.approvals.webhook.iter().flat_map(|webhook| webhook.headers.values());
    let plugins = config.interceptors.iter().filter_map(|entry| match &entry.kind {
        InterceptorKind::Plugin(plugin) => plugin.grants.secrets.as_ref(),
        _ => None,
    });
    let plugins = plugins.flat_map(|secrets| secrets.values());
    let of_proxy = keys.chain(exports).chain(webhook).chain(plugins).map(plain);
    of_servers
        .chain(of_proxy)
        .filter_map(|from| from.parse::<portcullis_vault::Source>().ok())
        .flat_map(move |source| {
            let source = source.relative_to(base);
            let identity = match &source {
                portcullis_vault::Source::Age { path, .. } => {
                    Some(portcullis_vault::Store::at(path).identity().to_owned())
                }
                _ => None,
            };
            [source.file().map(Path::to_owned), identity].into_iter().flatten().collect::<Vec<_>>()
        })
}

/// Rules for mounts of a config's servers.
pub fn mount_policy(loaded: &Loaded) -> MountPolicy {
    let engine = container::sockets(loaded.config.engine.host.as_deref());
    MountPolicy::of_host().with_engine(engine).with_own(Arc::new(protected_paths(loaded)))
}

/// Mounts of a config's servers that `policy` refuses.
pub fn refused_mounts(policy: &MountPolicy, loaded: &Loaded) -> Vec<Finding> {
    findings(loaded, |mount| policy.check(mount).err())
}

/// Mounts of a config's servers that show paths of the proxy.
pub fn exposing_mounts(policy: &MountPolicy, loaded: &Loaded) -> Vec<Finding> {
    findings(loaded, |mount| policy.exposes(mount))
}

/// Findings about the mounts of a config's servers. Mounts of containers in pods are not made by
/// the proxy.
fn findings(loaded: &Loaded, refused: impl Fn(&Mount) -> Option<LaunchFailure>) -> Vec<Finding> {
    let servers = loaded.config.servers.iter();
    let servers = servers.filter(|(_, settings)| settings.pod_socket.is_none());
    let mounts = servers.flat_map(|(name, settings)| {
        settings.mounts.iter().enumerate().map(move |(at, mount)| (name, at, mount))
    });
    let refusals = mounts.filter_map(|(name, at, mount)| {
        let LaunchFailure { what, remedy } = refused(&mount.as_mount())?;
        let pointer = format!("/servers/{name}/mounts/{at}");
        let finding = loaded.finding(&pointer, Code::BadValue, what);
        Some(match remedy {
            Some(remedy) => finding.help(remedy),
            None => finding,
        })
    });
    refusals.collect()
}

#[cfg(test)]
mod tests;
