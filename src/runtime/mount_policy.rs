//! Decides which folders and files of this machine a server may see; one rule for every runtime.
//! Checked by `check`, at each launch, and for all servers when the config changes, with symbolic
//! links resolved, because a link may have changed since the last check.
//!
//! INVARIANT: no server sees a path that would give it the operator's rights: the engine, the
//! proxy's state, its config and policies, and the sources of its secrets.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use super::{mount::Mount, process::LaunchFailure};
use super::{
    path_identity::{Overlap, PathChain},
    protected_paths::ProtectedPath,
};
use crate::container;
use portcullis_catalog::sensitive_paths::{
    CREDENTIALS, CREDENTIALS_AT_HOME, NEVER, NEVER_WHOLE, NEVER_WRITABLE,
};

/// Data folders of rootless engines, relative to a home.
const ENGINES_AT_HOME: &[&str] = &[".local/share/containers", ".local/share/docker"];

/// Sensitive paths of this host, found at run time.
#[derive(Debug, Clone, Default)]
pub struct MountPolicy {
    /// Home of the user who runs the proxy.
    home: Option<PathBuf>,
    /// Homes of other users.
    homes: Vec<PathBuf>,
    /// Sockets and data of engines, and other paths that no server may see.
    never: Vec<PathBuf>,
    /// Paths of the proxy itself.
    own: Arc<Vec<ProtectedPath>>,
}

impl MountPolicy {
    /// The present homes of this host, and the engines' usual sockets.
    pub fn of_host() -> Self {
        let mut homes = vec![PathBuf::from("/root")];
        let mut never = container::sockets(None);
        let all = fs::read_dir("/home").and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()
        });
        match all {
            Ok(all) => homes.extend(all),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // The users are unknown.
            Err(_) => never.push("/home".into()),
        }
        Self { home: std::env::home_dir(), homes, never, own: Arc::default() }
    }

    /// This policy extended by sockets and data of another engine.
    #[must_use]
    pub fn with_engine(mut self, engine: impl IntoIterator<Item = PathBuf>) -> Self {
        self.never.extend(engine);
        self
    }

    /// This policy extended by paths of the proxy.
    #[must_use]
    pub fn with_own(self, own: Arc<Vec<ProtectedPath>>) -> Self {
        Self { own, ..self }
    }

    /// Reason why a mount shows a path of the proxy, if that can be determined.
    pub fn exposes(&self, mount: &Mount) -> Option<LaunchFailure> {
        // A path that does not exist shows nothing.
        let source = fs::canonicalize(&mount.source).ok()?;
        let why = self.shows(&PathChain::of(&source), mount.writable)?;
        Some(refusal(&mount.source, &source, &why, NOTHING_OF_THE_PROXY))
    }

    fn shows(&self, source: &PathChain, writable: bool) -> Option<String> {
        self.own.iter().find_map(|own| own.refuses(source, writable))
    }

    /// Source of a mount with its links resolved. Accesses the file system, which may block.
    ///
    /// # Errors
    /// Why the source is refused, and the remedy.
    pub fn check(&self, mount: &Mount) -> Result<PathBuf, LaunchFailure> {
        let requested = &mount.source;
        if requested.as_os_str().as_bytes().starts_with(b"-") || !requested.is_absolute() {
            return Err(failure(
                format!("the mount source {} is not an absolute path", requested.display()),
                "write the folder's whole path, or one relative to the config file",
            ));
        }
        let source = fs::canonicalize(requested).map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::NotFound => "does not exist".to_owned(),
                _ => format!("cannot be read: {error}"),
            };
            failure(
                format!("the mount source {} {why}", requested.display()),
                "make the folder, or correct the path in `mounts`",
            )
        })?;
        // Also by the name as written, which may be a link to another folder.
        let refused = match credentials_in(requested) {
            Some(name) => Some((format!("`{name}` holds credentials"), ONLY_WHAT_IT_NEEDS)),
            None => self.refused(&source, mount.writable),
        };
        let Some((why, remedy)) = refused else { return Ok(source) };
        Err(refusal(requested, &source, &why, remedy))
    }

    /// Reason and remedy if a source with resolved links is refused.
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
            return refused(format!("`{name}` holds credentials"));
        }
        if let Some(name) = CREDENTIALS.iter().find(|name| is_there(&source.join(name))) {
            return refused(format!("`{name}` is inside it"));
        }
        let meets = |place: &&str| chain.meets(Path::new(place));
        if NEVER_WHOLE.iter().filter_map(meets).any(|met| met != Overlap::Within) {
            return refused("it holds sockets and files of other programs".into());
        }
        if writable && NEVER_WRITABLE.iter().filter_map(meets).next().is_some() {
            return refused("it holds programs of the host and would be writable".into());
        }
        None
    }

    /// Reason why a source is refused because of data in a home.
    fn at_home(&self, source: &PathChain) -> Option<String> {
        let ours = self.home.iter().map(|home| (home, true));
        let theirs = self.homes.iter().map(|home| (home, false));
        for (home, ours) in ours.chain(theirs) {
            let met = source.meets(home);
            if matches!(met, Some(Overlap::At | Overlap::Above)) {
                return Some("it contains a whole home folder, with its keys".into());
            }
            // Other users' homes matter only for sources inside them. This user's home may have
            // links to anywhere.
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
                        // A folder such as ~/.config, with a tool's credentials inside.
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

const ONLY_WHAT_IT_NEEDS: &str = "mount a folder with only the files that the server needs";
const NOTHING_OF_THE_PROXY: &str = "mount a folder without files of the proxy, or move \
     the proxy's config, policies, `state-dir` and secrets out of this one";

/// Whether the path exists or may exist, also as a dangling link.
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

fn refusal(requested: &Path, source: &Path, why: &str, remedy: &str) -> LaunchFailure {
    let resolved = if source == requested {
        String::new()
    } else {
        format!(" (which is {})", source.display())
    };
    failure(format!("{}{resolved} may not be mounted: {why}", requested.display()), remedy)
}

fn failure(what: String, remedy: &str) -> LaunchFailure {
    LaunchFailure { what, remedy: Some(remedy.into()) }
}

#[cfg(test)]
mod tests;
