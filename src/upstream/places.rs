//! Which folders and files of this machine a server may see: one rule for whatever runtime it has.
//! Held at `check` and again at each launch, with symbolic links resolved: what the config said
//! yesterday may point elsewhere today.
//!
//! INVARIANT: no server sees what would make it the operator: the engine, the proxy's state, its
//! config and policies, and what its secrets come from.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::process::{LaunchFailure, Mount};
use crate::{
    catalog::{
        lock,
        places::{CREDENTIALS, CREDENTIALS_AT_HOME, NEVER, NEVER_WHOLE, NEVER_WRITABLE},
        profile_file,
    },
    config::{Destination, Loaded, SecretRef, Use},
    container, policy, vault,
};

/// Where engines of ordinary users keep what they have, below a home.
const ENGINES_AT_HOME: &[&str] = &[".local/share/containers", ".local/share/docker"];

/// Where things are on this host that no constant can know.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Home folders.
    pub(crate) homes: Vec<PathBuf>,
    /// Sockets and data of engines.
    pub(crate) engine: Vec<PathBuf>,
    /// What is the proxy's own.
    own: Arc<Vec<Own>>,
}

/// Something that the proxy has or goes by.
#[derive(Debug, Clone)]
struct Own {
    path: PathBuf,
    /// In words: `the config`.
    what: &'static str,
    /// Whether a server may read it all the same.
    readable: bool,
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
        let at_start = own(loaded);
        Self { now: ArcSwap::from_pointee(at_start.clone()), at_start }
    }

    /// Another config counts. What the proxy was started with it has until its end.
    pub fn follow(&self, loaded: &Loaded) {
        self.now.store(Arc::new([self.at_start.clone(), own(loaded)].concat()));
    }
}

impl Places {
    /// The homes of this host as it is now, and the engines' usual sockets and folders.
    pub fn of_host() -> Self {
        let mut homes: Vec<PathBuf> = std::env::home_dir().into_iter().collect();
        homes.push("/root".into());
        if let Ok(entries) = fs::read_dir("/home") {
            homes.extend(entries.flatten().map(|entry| entry.path()));
        }
        let homes: Vec<PathBuf> =
            homes.into_iter().map(|home| fs::canonicalize(&home).unwrap_or(home)).collect();
        let data = homes.iter().flat_map(|home| ENGINES_AT_HOME.iter().map(|at| home.join(at)));
        let mut engine: Vec<PathBuf> = data.filter(|data| data.exists()).collect();
        engine.extend(container::sockets(None));
        Self { homes, engine, own: Arc::default() }
    }

    /// The same with what a config names.
    pub fn of(loaded: &Loaded) -> Self {
        let host = loaded.config.engine.host.as_deref();
        Self::of_host().with_engine(container::sockets(host)).with_own(&OwnPlaces::of(loaded))
    }

    /// The same with sockets and data of one more engine.
    #[must_use]
    pub(crate) fn with_engine(mut self, engine: impl IntoIterator<Item = PathBuf>) -> Self {
        self.engine.extend(engine);
        self
    }

    /// The same with what is the proxy's own now.
    #[must_use]
    pub(crate) fn with_own(self, own: &OwnPlaces) -> Self {
        Self { own: own.now.load_full(), ..self }
    }

    /// The source of a mount with its links resolved.
    ///
    /// # Errors
    /// Why it is refused, and what to do.
    pub fn check(&self, mount: &Mount) -> Result<PathBuf, LaunchFailure> {
        let given = &mount.source;
        if given.as_os_str().as_bytes().starts_with(b"-") || !given.is_absolute() {
            return Err(failure(
                format!("the mount source {} is not an absolute path", given.display()),
                "write the folder's whole path, or one relative to the config file",
            ));
        }
        let source = fs::canonicalize(given).map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::NotFound => "does not exist".to_owned(),
                _ => format!("cannot be read: {error}"),
            };
            failure(
                format!("the mount source {} {why}", given.display()),
                "make the folder, or correct the path in `mounts`",
            )
        })?;
        let Some((why, remedy)) = self.refused(&source, mount.writable) else { return Ok(source) };
        let resolved = if source == *given {
            String::new()
        } else {
            format!(" (which is {})", source.display())
        };
        let given = given.display();
        Err(failure(format!("{given}{resolved} may not be mounted: {why}"), remedy))
    }

    /// Why a source whose links are resolved is refused, and what to do.
    fn refused(&self, source: &Path, writable: bool) -> Option<(String, &'static str)> {
        let refused = |why: String| Some((why, ONLY_WHAT_IT_NEEDS));
        let kind = match fs::metadata(source) {
            Ok(meta) => meta.file_type(),
            Err(error) => return refused(format!("it cannot be read: {error}")),
        };
        if !kind.is_dir() && !kind.is_file() {
            return refused("it is a socket, a device or a pipe".into());
        }
        let chain = Chain::of(source);
        let engine = self.engine.iter().map(PathBuf::as_path);
        for never in NEVER.iter().map(Path::new).chain(engine) {
            match chain.meets(never) {
                Some(Meeting::At | Meeting::Within) => {
                    return refused(format!("it is in {}", never.display()));
                }
                Some(Meeting::Above) => {
                    return refused(format!("{} is inside it", never.display()));
                }
                None => {}
            }
        }
        for Own { path, what, readable } in self.own.iter().filter(|own| writable || !own.readable)
        {
            let place = path.display();
            let open = if *readable { ", and it would be writable" } else { "" };
            let why = match chain.meets(path) {
                Some(Meeting::At) => format!("it is {what}{open}"),
                Some(Meeting::Within) => format!("it is in {what}, {place}{open}"),
                Some(Meeting::Above) => format!("{what}, {place}, is inside it{open}"),
                None => continue,
            };
            return Some((why, NOTHING_OF_THE_PROXY));
        }
        for home in &self.homes {
            if matches!(chain.meets(home), Some(Meeting::At | Meeting::Above)) {
                return refused("it holds a whole home folder, with its keys".into());
            }
            // A folder such as ~/.config, with the credentials of a tool inside.
            for within in CREDENTIALS_AT_HOME {
                let within = home.join(within);
                let there = match chain.meets(&within) {
                    Some(Meeting::Above) => within.exists(),
                    met => met.is_some(),
                };
                if there {
                    return refused(format!("credentials are in {}", within.display()));
                }
            }
        }
        if let Some(name) = credentials_in(source) {
            return refused(format!("`{name}` is where credentials are kept"));
        }
        if let Some(name) = CREDENTIALS.iter().find(|name| source.join(name).exists()) {
            return refused(format!("`{name}` is inside it"));
        }
        if NEVER_WHOLE.iter().any(|whole| source == Path::new(whole)) {
            return refused("other programs keep their sockets and files in it".into());
        }
        if writable && NEVER_WRITABLE.iter().any(|never| source.starts_with(never)) {
            return refused("programs of the host are in it, and it would be writable".into());
        }
        None
    }
}

const ONLY_WHAT_IT_NEEDS: &str = "mount a folder that holds only what the server needs";
const NOTHING_OF_THE_PROXY: &str = "mount a folder that has nothing of the proxy's in it, or move \
     the proxy's config, policies, `state-dir` and secrets out of this one";

/// How a source stands to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meeting {
    At,
    Within,
    Above,
}

/// A path with all that is above it, each with what the file system knows it by: a folder may be
/// mounted at two places, and be found by names that differ in case alone.
struct Chain(Vec<(PathBuf, Option<(u64, u64)>)>);

impl Chain {
    fn of(path: &Path) -> Self {
        let known = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        Self(path.ancestors().map(|path| (path.to_owned(), known(path))).collect())
    }

    /// How this one stands to a place, or to what a link there leads to.
    fn meets(&self, place: &Path) -> Option<Meeting> {
        let linked = place.parent().zip(place.file_name());
        let linked = linked.map(|(above, name)| resolved(above).join(name));
        let there = resolved(place);
        let linked = linked.filter(|linked| *linked != there);
        [Some(there), linked]
            .into_iter()
            .flatten()
            .find_map(|place| self.stands_to(&Self::of(&place)))
            .or_else(|| links(place).iter().any(|link| self.holds(link)).then_some(Meeting::Above))
    }

    /// Whether a link stands in this one, by its own place and not by what it leads to.
    fn holds(&self, link: &Path) -> bool {
        let above = link.parent().and_then(|above| self.stands_to(&Self::of(above)));
        matches!(above, Some(Meeting::At | Meeting::Above))
    }

    fn stands_to(&self, place: &Self) -> Option<Meeting> {
        let same = |(one, known): &(PathBuf, Option<_>), (other, too): &(PathBuf, Option<_>)| {
            one == other || (known.is_some() && known == too)
        };
        let (source, above_source) = self.0.split_first()?;
        let (place, above_place) = place.0.split_first()?;
        if same(source, place) {
            Some(Meeting::At)
        } else if above_source.iter().any(|above| same(above, place)) {
            Some(Meeting::Within)
        } else if above_place.iter().any(|above| same(above, source)) {
            Some(Meeting::Above)
        } else {
            None
        }
    }
}

/// A path with its links resolved, as far as it is there.
fn resolved(path: &Path) -> PathBuf {
    let there = path.ancestors().find_map(|above| {
        let real = fs::canonicalize(above).ok()?;
        let rest = path.strip_prefix(above).ok().filter(|rest| !rest.as_os_str().is_empty());
        Some(rest.map_or_else(|| real.clone(), |rest| real.join(rest)))
    });
    there.unwrap_or_else(|| path.to_owned())
}

/// The links that are followed on the way to a path: whoever can change one leads elsewhere.
fn links(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut at = PathBuf::from("/");
    let mut left: Vec<_> =
        path.components().rev().map(|part| part.as_os_str().to_owned()).collect();
    while let Some(part) = left.pop() {
        match Path::new(&part).components().next() {
            Some(Component::RootDir) => at = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(at.pop()),
            Some(Component::Normal(name)) => {
                let next = at.join(name);
                match fs::read_link(&next) {
                    // As many as the kernel follows.
                    Ok(target) if found.len() < 40 => {
                        found.push(next);
                        let parts = target.components().rev();
                        left.extend(parts.map(|part| part.as_os_str().to_owned()));
                    }
                    _ => at = next,
                }
            }
            _ => {}
        }
    }
    found
}

/// What the proxy has and goes by, by its config.
fn own(loaded: &Loaded) -> Vec<Own> {
    let Loaded { config, base, path, .. } = loaded;
    let config_file = path.file_name().map(|name| base.join(name));
    let never = |what| move |path| Own { path, what, readable: false };
    let mut all: Vec<Own> = Vec::new();
    all.extend(config_file.map(never("the proxy's config")));
    all.push(never("the lock file")(base.join(lock::FILE)));
    all.push(never("the profiles")(base.join(profile_file::FOLDER)));
    // Keepers of secrets are asked with what stands in these.
    let keepers = ["VAULT_TOKEN_FILE", "VAULT_SECRET_ID_FILE"].into_iter();
    let keepers = keepers.filter_map(std::env::var_os).map(PathBuf::from);
    let docker = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let keepers = keepers.chain(docker.map(|folder| folder.join("config.json")));
    all.extend(keepers.map(never("a file that secrets come from")));
    all.push(never("the proxy's state folder")(config.state_dir.clone()));
    all.extend(config.audit.dir.clone().map(never("the audit log")));
    all.extend(config.admin.socket.clone().map(never("the operator's socket")));
    let policies = policy::Source::of(config);
    let policies: Vec<PathBuf> = policies.paths().iter().map(|path| base.join(path)).collect();
    // A policy may be a link out of its folder.
    let files = policies.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let linked = files.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    all.extend(linked.map(|entry| entry.path()).map(never("a policy")));
    all.extend(policies.into_iter().map(never("the policies")));
    let secrets = secret_files(loaded).map(never("a file that secrets come from"));
    all.extend(secrets);
    let fixed = |what| move |path: &PathBuf| Own { path: base.join(path), what, readable: true };
    let signers = config.signers.values();
    let signers = signers.flat_map(|signer| signer.key.iter().chain(&signer.trusted_root));
    all.extend(signers.map(fixed("a signer's key")));
    let exports = config.audit.export.iter().filter_map(|export| export.ca_file.as_ref());
    let authorities = config.registries.ca_file.iter().chain(exports);
    all.extend(authorities.map(fixed("a list of authorities that the proxy trusts")));
    let witnesses = config.audit.witness.iter().filter_map(|witness| witness.file.as_ref());
    all.extend(witnesses.map(fixed("a witness of the audit log")));
    let plugins = config.interceptors.iter().filter_map(|entry| match &entry.kind {
        Use::Plugin(plugin) => plugin.path.as_ref(),
        _ => None,
    });
    all.extend(plugins.map(fixed("a plugin")));
    all.extend(std::env::current_exe().iter().map(fixed("the proxy's own program")));
    all
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

fn credentials_in(path: &Path) -> Option<&'static str> {
    path.components().find_map(|component| match component {
        Component::Normal(name) => CREDENTIALS.iter().copied().find(|c| name == *c),
        _ => None,
    })
}

fn failure(what: String, remedy: &str) -> LaunchFailure {
    LaunchFailure { what, remedy: Some(remedy.into()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;
    use crate::config;

    fn mount(source: impl Into<PathBuf>, writable: bool) -> Mount {
        Mount { source: source.into(), target: "/data".into(), writable }
    }

    fn refusal(mount: Mount, places: &Places) -> Option<String> {
        places.check(&mount).err().map(|failure| failure.what)
    }

    #[test]
    fn folders_of_the_host_that_no_server_gets() {
        let places = Places::of_host();
        for source in [
            "/",
            "/proc",
            "/proc/self",
            "/sys",
            "/dev",
            "/dev/null",
            "/dev/shm",
            "/etc",
            "/etc/ssl",
            "/etc/passwd",
            "/run",
            "/var/run",
            "/var",
            "/var/lib",
            "/root",
            "/home",
            "/boot",
            "/tmp",
            "/var/tmp",
            "-v",
            "relative",
            "",
            "/no/such/folder",
            "/tmp/../etc",
            "/proc/1/root",
            "/usr/../root",
        ] {
            assert!(refusal(mount(source, false), &places).is_some(), "{source}");
        }
        assert_eq!(refusal(mount("/usr/share", false), &places), None);
        assert!(refusal(mount("/usr/share", true), &places).is_some());
    }

    #[test]
    fn links_are_resolved_before_the_check() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::of_host();
        for (name, to) in [("a", "/etc"), ("b", "/"), ("c", "/var/run"), ("d", "/proc/self/root")] {
            let link = folder.path().join(name);
            symlink(to, &link).unwrap();
            let why = refusal(mount(&link, false), &places).unwrap();
            assert!(why.contains("which is /"), "{why}");
        }
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        symlink(&data, folder.path().join("link")).unwrap();
        let checked = places.check(&mount(folder.path().join("link"), true)).unwrap();
        assert_eq!(checked, fs::canonicalize(&data).unwrap());
    }

    #[test]
    fn credentials_sockets_and_the_engine_are_refused_wherever_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home/me");
        for within in [".ssh", "project/.aws", ".config/gh", "plain", "engine"] {
            fs::create_dir_all(home.join(within)).unwrap();
        }
        let _socket = UnixListener::bind(home.join("plain/agent.sock")).unwrap();
        let homes = vec![home.clone()];
        let places = Places { homes, ..Places::default() }.with_engine([home.join("engine")]);
        for within in [
            "",
            ".ssh",
            "project",
            "project/.aws",
            ".config",
            ".config/gh",
            "plain/agent.sock",
            "engine",
        ] {
            assert!(refusal(mount(home.join(within), false), &places).is_some(), "{within}");
        }
        assert!(refusal(mount(folder.path().join("home"), false), &places).is_some());
        assert_eq!(refusal(mount(home.join("plain"), false), &places), None);
    }

    #[test]
    fn what_is_the_proxys_own_is_no_servers() {
        let folder = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(folder.path()).unwrap();
        let at = |name: &str| folder.join(name);
        for within in [
            "real/conf.d",
            "proxy/policies/old",
            "proxy/profiles",
            "proxy/state/known",
            "proxy/notes/sub",
            "proxy/secret",
            "proxy/age",
            "proxy/keys",
            "records",
            "door",
        ] {
            fs::create_dir_all(at(within)).unwrap();
        }
        fs::write(at("proxy/secret/token"), "").unwrap();
        symlink(at("real/conf.d"), at("proxy/more")).unwrap();
        symlink(at("proxy"), at("alias")).unwrap();
        symlink(at("proxy/state"), at("proxy/notes/state")).unwrap();
        let text = "state-dir = 'state'\n\
            policy.paths = ['policies', 'more']\n\
            audit.dir = '../records'\n\
            admin.socket = '../door/admin.sock'\n\
            signers.acme.key = 'keys/acme.pem'\n\
            [servers.a]\ncommand = ['/bin/true']\n\
            secrets.ONE.from = 'file:secret/token'\n\
            secrets.TWO.from = 'age:age/store#TWO'\n";
        let loaded = config::parse(&at("proxy/portcullis.toml"), text).unwrap();
        fs::write(at("proxy/portcullis.toml"), text).unwrap();
        let places = Places::default().with_own(&OwnPlaces::of(&loaded));
        // Whether it is refused for reading, and for writing.
        for (source, read, write) in [
            ("", true, true),
            ("proxy", true, true),
            ("alias", true, true),
            ("proxy/portcullis.toml", true, true),
            ("proxy/state", true, true),
            ("proxy/state/known", true, true),
            ("proxy/notes/state", true, true),
            ("proxy/policies", true, true),
            ("proxy/profiles", true, true),
            ("proxy/policies/old", true, true),
            ("real", true, true),
            ("real/conf.d", true, true),
            ("records", true, true),
            ("door", true, true),
            ("proxy/secret", true, true),
            ("proxy/secret/token", true, true),
            ("proxy/age", true, true),
            ("proxy/keys", false, true),
            ("proxy/notes", false, false),
            ("proxy/notes/sub", false, false),
            ("alias/notes", false, false),
        ] {
            for (writable, refused) in [(false, read), (true, write)] {
                let why = refusal(mount(at(source), writable), &places);
                assert_eq!(why.is_some(), refused, "{source}, writable: {writable}: {why:?}");
            }
        }
        let failure = places.check(&mount(at("proxy"), false)).unwrap_err();
        assert!(failure.what.contains("the proxy's config, "), "{failure:?}");
        assert!(failure.remedy.is_some_and(|remedy| remedy.contains("`state-dir`")));
    }

    #[test]
    fn the_config_that_is_followed_counts_beside_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("portcullis.toml");
        let with = |dir: &str| config::parse(&path, &format!("state-dir = '{dir}'")).unwrap();
        let own = OwnPlaces::of(&with("one"));
        own.follow(&with("two"));
        own.follow(&with("three"));
        let places = Places::default().with_own(&own);
        for (name, refused) in [("one", true), ("two", false), ("three", true)] {
            fs::create_dir(folder.path().join(name)).unwrap();
            let why = refusal(mount(folder.path().join(name), false), &places);
            assert_eq!(why.is_some(), refused, "{name}: {why:?}");
        }
    }

    #[test]
    fn a_folder_is_known_by_what_it_is_whatever_it_is_called() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("key"), "").unwrap();
        fs::hard_link(folder.path().join("key"), folder.path().join("other")).unwrap();
        let chain = Chain::of(&folder.path().join("other"));
        assert_eq!(chain.meets(&folder.path().join("key")), Some(Meeting::At));
        assert_eq!(chain.meets(folder.path()), Some(Meeting::Within));
        assert_eq!(chain.meets(&folder.path().join("absent/key")), None);
        assert_eq!(
            Chain::of(folder.path()).meets(&folder.path().join("absent/key")),
            Some(Meeting::Above)
        );
    }
}
