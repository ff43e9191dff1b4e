//! Changes of server entries in the config: enabling, disabling, removal.
//!
//! Invariant: only a config that passes its checks is written. A file of policies that the operator
//! edited is never removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use portcullis_catalog::{
    lock::{self, Lock, digest},
    profile_file::Profile,
    write::{self, file_name},
};
use portcullis_config::{Config, Loaded};
use portcullis_foundation::atomic_file;
use portcullis_protocol::names::ServerName;
use portcullis_upstream::KNOWN_FOLDER;

use super::servers::unknown;

/// Files of a removed server, relative to the config.
#[derive(Debug, Default)]
pub struct Removed {
    /// Removed policies and cases.
    pub removed: Vec<PathBuf>,
    /// Policies that stay, because they were edited.
    pub kept: Vec<PathBuf>,
    /// Other policies that still name the server.
    pub naming: Vec<PathBuf>,
}

/// Enables or disables a server. Returns whether the config changed.
///
/// # Errors
/// The config has no such server, or cannot be written.
pub fn enable(loaded: &Loaded, name: &ServerName, enabled: bool) -> anyhow::Result<bool> {
    let text = read(&loaded.path)?;
    let changed = write::enable(&text, name.as_str(), enabled)?;
    let changed = changed.ok_or_else(|| unknown(loaded, name))?;
    if changed == text {
        return Ok(false);
    }
    write_config(loaded, &changed)?;
    Ok(true)
}

/// Removes a server: its entry, its pin, its policies that `add` and `server import` wrote, and its
/// cached lists.
///
/// # Errors
/// The config has no such server, a profile has it, or a file cannot be changed. A removal that was
/// interrupted can be repeated.
pub fn remove(loaded: &Loaded, name: &ServerName) -> anyhow::Result<Removed> {
    let lock = Lock::read(&loaded.base)?;
    let text = read(&loaded.path)?;
    for profile in Profile::all(&loaded.base)? {
        if Profile::read(&loaded.base, &profile)?.servers.iter().any(|one| one == name.as_str()) {
            bail!(
                "the profile `{profile}` has the server `{name}`: remove it from {} first",
                Profile::path(&loaded.base, &profile)?.display()
            );
        }
    }
    match write::remove(&text, name.as_str())? {
        Some(text) => write_config(loaded, &text)?,
        None if lock.servers.contains_key(name.as_str()) => {}
        None => return Err(unknown(loaded, name)),
    }
    let mut removed = Removed::default();
    for (path, digest) in policy_files(loaded, &lock, name) {
        remove_policies(&mut removed, &loaded.base, &path, &digest)?;
    }
    let known = loaded.config.state_dir.join(KNOWN_FOLDER).join(format!("{name}.json"));
    remove_file(&known)?;
    let lock = Lock::change(&loaded.base, |lock| drop(lock.servers.remove(name.as_str())))?;
    if lock.servers.is_empty() && lock.catalogs.is_empty() {
        remove_file(&loaded.base.join(lock::FILE))?;
    }
    let naming = policies_naming(loaded, name).into_iter();
    removed.naming = naming.filter(|path| !removed.kept.contains(path)).collect();
    Ok(removed)
}

/// Files of policies that name a server or something of it. Unreadable files are left out.
fn policies_naming(loaded: &Loaded, name: &ServerName) -> Vec<PathBuf> {
    let folder = policies_folder(&loaded.config, &loaded.base);
    let entries = folder.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten();
    let names = |text: &str| {
        text.contains(&format!("::Server::\"{name}\"")) || text.contains(&format!("::\"{name}/"))
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut naming: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "cedar"))
        .filter(|path| fs::read_to_string(path).is_ok_and(|text| names(&text)))
        .map(|path| path.strip_prefix(&loaded.base).unwrap_or(&path).to_owned())
        .collect();
    naming.sort();
    naming
}

/// Files of policies that were written for a server and for no other one, with their digests.
fn policy_files(loaded: &Loaded, lock: &Lock, name: &ServerName) -> Vec<(PathBuf, String)> {
    let Some(pin) = lock.servers.get(name.as_str()) else { return Vec::new() };
    let Some(folder) = policies_folder(&loaded.config, &loaded.base) else { return Vec::new() };
    let mut files = Vec::new();
    let own = folder.join(file_name(name.as_str()));
    files.extend(pin.policies.clone().map(|digest| (own, digest)));
    let others = || lock.servers.iter().filter(|(other, _)| other.as_str() != name.as_str());
    for (file, digest) in &pin.client_policies {
        let path = loaded.base.join(file);
        let is_shared = others().any(|(_, pin)| pin.client_policies.contains_key(file));
        // The lock file may come with a repository, and names nothing but policies.
        let is_policy = path.parent() == Some(&folder)
            && (file.ends_with(".cedar") || file.ends_with(".test.yaml"));
        if is_policy && !is_shared {
            files.push((path, digest.clone()));
        }
    }
    files
}

fn remove_policies(
    removed: &mut Removed,
    base: &Path,
    path: &Path,
    written: &str,
) -> anyhow::Result<()> {
    let name = path.strip_prefix(base).unwrap_or(path).to_owned();
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    if digest(&text) != written {
        removed.kept.push(name);
        return Ok(());
    }
    remove_file(path)?;
    removed.removed.push(name);
    Ok(())
}

/// Removes a file that may be missing.
fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("cannot remove {}", path.display())),
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a changed text of the config, if it passes the checks.
fn write_config(loaded: &Loaded, text: &str) -> anyhow::Result<()> {
    let path = loaded.path.display();
    if let Err(findings) = portcullis_config::parse(&loaded.path, text) {
        bail!("{path} would be invalid, and is not changed: {findings}");
    }
    atomic_file::replace(&loaded.path, text.as_bytes())
        .with_context(|| format!("cannot write {path}"))
}

/// Folder of the config's policies, which new policies are written to. `None`: the config names
/// files or a signed bundle.
pub fn policies_folder(config: &Config, base: &Path) -> Option<PathBuf> {
    if config.policy.bundle.is_some() {
        return None;
    }
    let paths = config.policy.paths.iter().map(|path| base.join(path));
    let mut folders =
        paths.filter(|path| path.is_dir() || (!path.exists() && path.extension().is_none()));
    folders.next()
}
