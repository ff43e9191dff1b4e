//! What the proxy has and goes by, by its config and the environment.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::way::{Chain, Meeting};
use crate::{
    audit::export::Target,
    catalog::{lock, profile_file},
    config::{Destination, Loaded, SecretRef, Server, Use},
    policy, vault,
};

/// Something that the proxy has or goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Absolute.
    path: PathBuf,
    /// In words: `the config`.
    what: &'static str,
    hold: Hold,
}

/// What a server may not do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// See it.
    Hidden,
    /// See it, nor what links in this folder lead to.
    Folder,
    /// Write it.
    Fixed,
}

impl Own {
    /// Why a server may not see a source, or not so, where this has to do with it.
    pub(super) fn refuses(&self, source: &Chain, writable: bool) -> Option<String> {
        if self.hold == Hold::Fixed && !writable {
            return None;
        }
        let (what, place) = (self.what, self.path.display());
        let open = if self.hold == Hold::Fixed { ", and it would be writable" } else { "" };
        match source.meets(&self.path) {
            Some(Meeting::At) => Some(format!("it is {what}{open}")),
            Some(Meeting::Within) => Some(format!("it is in {what}, {place}{open}")),
            Some(Meeting::Above) => Some(format!("{what}, {place}, is inside it{open}")),
            None if self.hold == Hold::Folder => match links(&self.path) {
                Ok(links) => links.into_iter().find_map(|path| {
                    Self { path, what, hold: Hold::Hidden }.refuses(source, writable)
                }),
                Err(error) => {
                    Some(format!("where links in {what}, {place}, lead can't be seen: {error}"))
                }
            },
            None => None,
        }
    }
}

/// The links in a folder, as they are now.
fn links(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        // Nothing is in there: it is not there yet, or it is a file.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let mut links = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_symlink() {
            links.push(entry.path());
        }
    }
    Ok(links)
}

/// What is the proxy's own, by the config that it was started with and the one that its servers are
/// of now.
#[derive(Debug, Default)]
pub struct OwnPlaces {
    at_start: Vec<Own>,
    now: ArcSwap<Vec<Own>>,
}

impl OwnPlaces {
    /// By this config.
    pub fn of(loaded: &Loaded) -> Self {
        let at_start = own(loaded, &|name| env::var_os(name));
        Self { now: ArcSwap::from_pointee(at_start.clone()), at_start }
    }

    /// As it is.
    pub fn now(&self) -> Arc<Vec<Own>> {
        self.now.load_full()
    }

    /// As it would be if servers were of another config. What the proxy was started with it has until
    /// its end.
    pub fn with(&self, loaded: &Loaded) -> Arc<Vec<Own>> {
        let theirs = own(loaded, &|name| env::var_os(name));
        Arc::new([self.at_start.clone(), theirs].concat())
    }

    /// From now on it is so.
    pub fn follow(&self, now: Arc<Vec<Own>>) {
        self.now.store(now);
    }
}

/// What the proxy has and goes by, by its config and the variables of its environment.
pub(super) fn own(loaded: &Loaded, env: &dyn Fn(&str) -> Option<OsString>) -> Vec<Own> {
    let Loaded { config, base, path, aside, .. } = loaded;
    let from_base = |path: &PathBuf| base.join(path);
    let variable = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut all = List::default();

    let config_file = path.file_name().map(|name| base.join(name));
    all.add(Hold::Hidden, "the proxy's config", config_file);
    all.add(Hold::Hidden, "the lock file", [base.join(lock::FILE)]);
    all.add(Hold::Folder, "the profiles", [base.join(profile_file::FOLDER)]);
    let policies = policy::Source::of(config);
    all.add(Hold::Folder, "the policies", policies.paths().iter().map(from_base));
    all.add(Hold::Hidden, "the proxy's state folder", [config.state_dir.clone()]);
    all.add(Hold::Hidden, "the audit log", config.audit.dir.clone());
    all.add(Hold::Hidden, "the operator's socket", config.admin.socket.clone());
    let exports = config.audit.export.iter().filter_map(|export| match &export.to {
        Destination::Plain(to) => match Target::parse(to, base) {
            Ok(Target::File(path)) => Some(path),
            _ => None,
        },
        Destination::Secret(_) => None,
    });
    all.add(Hold::Hidden, "an export of the audit log", exports);
    // Keepers of secrets are asked with what stands in these.
    let keepers = ["VAULT_TOKEN_FILE", "VAULT_SECRET_ID_FILE"].into_iter().filter_map(variable);
    let logins = variable("DOCKER_CONFIG").map(|folder| folder.join("config.json"));
    let secrets = secret_files(loaded).chain(keepers).chain(logins);
    all.add(Hold::Hidden, "a file that secrets come from", secrets);
    all.add(Hold::Hidden, "the secrets that servers are handed", vault::folders());

    let signers = config.signers.values();
    let signers = signers.flat_map(|signer| signer.key.iter().chain(&signer.trusted_root));
    all.add(Hold::Fixed, "a signer's key", signers.map(from_base));
    let exports = config.audit.export.iter().filter_map(|export| export.ca_file.as_ref());
    let authorities = config.registries.ca_file.iter().chain(exports).map(from_base);
    let authorities = authorities.chain(variable("VAULT_CACERT"));
    all.add(Hold::Fixed, "a list of authorities that the proxy trusts", authorities);
    let witnesses = config.audit.witness.iter().filter_map(|witness| witness.file.as_ref());
    all.add(Hold::Fixed, "a witness of the audit log", witnesses.map(from_base));
    let plugins = config.interceptors.iter().filter_map(|entry| match &entry.kind {
        Use::Plugin(plugin) => plugin.path.as_ref(),
        _ => None,
    });
    all.add(Hold::Fixed, "a plugin", plugins.map(from_base));
    all.add(Hold::Fixed, "the proxy's own program", env::current_exe());
    let programs = config.servers.values().chain(aside).filter_map(program);
    all.add(Hold::Fixed, "the program of a server", programs.map(|program| base.join(program)));
    // Those that keep secrets are run from there, too, and may do what the proxy may.
    let path = env("PATH").filter(|path| !path.is_empty());
    // One without a name is the working folder.
    let folders = path.iter().flat_map(env::split_paths).map(|folder| Path::new(".").join(folder));
    all.add(Hold::Fixed, "a folder of programs that the proxy runs", folders);
    all.0
}

#[derive(Default)]
struct List(Vec<Own>);

impl List {
    fn add(&mut self, hold: Hold, what: &'static str, paths: impl IntoIterator<Item = PathBuf>) {
        // Those of the environment are seen from the working folder.
        let paths = paths.into_iter().map(|path| std::path::absolute(&path).unwrap_or(path));
        self.0.extend(paths.map(|path| Own { path, what, hold }));
    }
}

/// The program of this machine that a server's `command` names by its path.
fn program(server: &Server) -> Option<&str> {
    let elsewhere = server.image.is_some() || server.url.is_some() || server.pod_socket.is_some();
    let first = server.command.as_ref().filter(|_| !elsewhere)?.first()?;
    first.contains('/').then_some(first.as_str())
}

/// The files in which secrets of the config stand, and those that decrypt them.
fn secret_files(loaded: &Loaded) -> impl Iterator<Item = PathBuf> + '_ {
    let Loaded { config, base, aside, .. } = loaded;
    let of_servers = config.servers.values().chain(aside).flat_map(|server| server.given());
    let of_servers = of_servers.flat_map(|given| given.references()).map(|(_, from)| from);
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
        Use::Plugin(plugin) => plugin.grants.secrets.as_ref(),
        _ => None,
    });
    let plugins = plugins.flat_map(|secrets| secrets.values());
    let of_proxy = keys.chain(exports).chain(webhook).chain(plugins).map(plain);
    of_servers.chain(of_proxy).filter_map(|from| from.parse::<vault::Source>().ok()).flat_map(
        move |source| {
            let source = source.relative_to(base);
            let identity = match &source {
                vault::Source::Age { path, .. } => {
                    Some(vault::Store::at(path).identity().to_owned())
                }
                _ => None,
            };
            [source.file().map(Path::to_owned), identity].into_iter().flatten().collect::<Vec<_>>()
        },
    )
}
