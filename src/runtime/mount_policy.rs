//! Which folders and files of this machine a server may see: one rule for whatever runtime it has.
//! Held at `check`, at each launch, and for all servers when the config changes, with symbolic links
//! resolved: what the config said yesterday may point elsewhere today.
//!
//! INVARIANT: no server sees what would make it the operator: the engine, the proxy's state, its
//! config and policies, and what its secrets come from.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use super::process::{LaunchFailure, Mount};
use super::{
    path_identity::{Overlap, PathChain},
    protected_paths::ProtectedPath,
};
use crate::container;
use portcullis_catalog::places::{
    CREDENTIALS, CREDENTIALS_AT_HOME, NEVER, NEVER_WHOLE, NEVER_WRITABLE,
};

/// Where engines of ordinary users keep what they have, below a home.
const ENGINES_AT_HOME: &[&str] = &[".local/share/containers", ".local/share/docker"];

/// Where things are on this host that no constant can know.
#[derive(Debug, Clone, Default)]
pub struct MountPolicy {
    /// The home of whom the proxy runs as.
    home: Option<PathBuf>,
    /// Homes of others.
    homes: Vec<PathBuf>,
    /// Sockets and data of engines, and what else is no server's.
    never: Vec<PathBuf>,
    /// What is the proxy's own.
    own: Arc<Vec<ProtectedPath>>,
}

impl MountPolicy {
    /// The homes of this host as it is now, and the engines' usual sockets.
    pub fn of_host() -> Self {
        let mut homes = vec![PathBuf::from("/root")];
        let mut never = container::sockets(None);
        let all = fs::read_dir("/home").and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()
        });
        match all {
            Ok(all) => homes.extend(all),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Which they are is not known.
            Err(_) => never.push("/home".into()),
        }
        Self { home: std::env::home_dir(), homes, never, own: Arc::default() }
    }

    /// The same with sockets and data of one more engine.
    #[must_use]
    pub fn with_engine(mut self, engine: impl IntoIterator<Item = PathBuf>) -> Self {
        self.never.extend(engine);
        self
    }

    /// The same with what is the proxy's own.
    #[must_use]
    pub fn with_own(self, own: Arc<Vec<ProtectedPath>>) -> Self {
        Self { own, ..self }
    }

    /// Why a mount shows a path of the proxy, as far as that can be seen.
    pub fn exposes(&self, mount: &Mount) -> Option<LaunchFailure> {
        // Nobody sees a path that does not exist.
        let source = fs::canonicalize(&mount.source).ok()?;
        let why = self.shows(&PathChain::of(&source), mount.writable)?;
        Some(refusal(&mount.source, &source, &why, NOTHING_OF_THE_PROXY))
    }

    fn shows(&self, source: &PathChain, writable: bool) -> Option<String> {
        self.own.iter().find_map(|own| own.refuses(source, writable))
    }

    /// The source of a mount with its links resolved. Asks the file system, which may take its time.
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
        // By the name that is written, too: what is called so may be a link to elsewhere.
        let refused = match credentials_in(given) {
            Some(name) => {
                Some((format!("`{name}` is where credentials are kept"), ONLY_WHAT_IT_NEEDS))
            }
            None => self.refused(&source, mount.writable),
        };
        let Some((why, remedy)) = refused else { return Ok(source) };
        Err(refusal(given, &source, &why, remedy))
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
        let chain = PathChain::of(source);
        for never in NEVER.iter().map(Path::new).chain(self.never.iter().map(PathBuf::as_path)) {
            match chain.meets(never) {
                Some(Overlap::At | Overlap::Within) => {
                    return refused(format!("it is in {}", never.display()));
                }
                Some(Overlap::Above) => {
                    return refused(format!("{} is inside it", never.display()));
                }
                None => {}
            }
        }
        if let Some(why) = self.shows(&chain, writable) {
            return Some((why, NOTHING_OF_THE_PROXY));
        }
        if let Some(why) = self.at_home(&chain) {
            return refused(why);
        }
        if let Some(name) = credentials_in(source) {
            return refused(format!("`{name}` is where credentials are kept"));
        }
        if let Some(name) = CREDENTIALS.iter().find(|name| is_there(&source.join(name))) {
            return refused(format!("`{name}` is inside it"));
        }
        let meets = |place: &&str| chain.meets(Path::new(place));
        if NEVER_WHOLE.iter().filter_map(meets).any(|met| met != Overlap::Within) {
            return refused("other programs keep their sockets and files in it".into());
        }
        if writable && NEVER_WRITABLE.iter().filter_map(meets).next().is_some() {
            return refused("programs of the host are in it, and it would be writable".into());
        }
        None
    }

    /// Why a source is refused for what people keep at home.
    fn at_home(&self, source: &PathChain) -> Option<String> {
        let ours = self.home.iter().map(|home| (home, true));
        let theirs = self.homes.iter().map(|home| (home, false));
        for (home, ours) in ours.chain(theirs) {
            let met = source.meets(home);
            if matches!(met, Some(Overlap::At | Overlap::Above)) {
                return Some("it holds a whole home folder, with its keys".into());
            }
            // Those of others are looked into for what is in them alone. Ours may have links to anywhere.
            if met.is_none() && !ours {
                continue;
            }
            for (what, names) in [
                ("credentials are", CREDENTIALS),
                ("credentials are", CREDENTIALS_AT_HOME),
                ("data of a container engine is", ENGINES_AT_HOME),
            ] {
                for place in names.iter().map(|name| home.join(name)) {
                    let there = match source.meets(&place) {
                        // A folder such as ~/.config, with the credentials of a tool inside.
                        Some(Overlap::Above) => is_there(&place),
                        met => met.is_some(),
                    };
                    if there {
                        return Some(format!("{what} in {}", place.display()));
                    }
                }
            }
        }
        None
    }
}

const ONLY_WHAT_IT_NEEDS: &str = "mount a folder that holds only what the server needs";
const NOTHING_OF_THE_PROXY: &str = "mount a folder that has nothing of the proxy's in it, or move \
     the proxy's config, policies, `state-dir` and secrets out of this one";

/// Whether something is there, be it a link to nowhere, or may be.
fn is_there(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) => {
            !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        }
    }
}

fn credentials_in(path: &Path) -> Option<&'static str> {
    path.components().find_map(|component| match component {
        Component::Normal(name) => CREDENTIALS.iter().copied().find(|c| name == *c),
        _ => None,
    })
}

fn refusal(given: &Path, source: &Path, why: &str, remedy: &str) -> LaunchFailure {
    let resolved =
        if source == given { String::new() } else { format!(" (which is {})", source.display()) };
    failure(format!("{}{resolved} may not be mounted: {why}", given.display()), remedy)
}

fn failure(what: String, remedy: &str) -> LaunchFailure {
    LaunchFailure { what, remedy: Some(remedy.into()) }
}

#[cfg(test)]
mod tests;
