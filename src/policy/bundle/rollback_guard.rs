//! The bundles that were in force last, stored in the state folder. An attacker who can only write
//! to the bundles' folder cannot bring back an old one with a hole that was fixed since.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::Origin;
use crate::diagnostics::Finding;
use portcullis_foundation::atomic_file;

/// Name of the file in the state folder.
const FILE: &str = "policy-bundles.json";

/// The last bundle of each name that was in force.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Memory(BTreeMap<String, Last>);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    version: u64,
    sha256: String,
    /// Whether a bundle of another name was in force after it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    followed: bool,
}

impl Memory {
    /// Reads the file in the state folder.
    ///
    /// # Errors
    /// If it cannot be read. Then no bundle is used.
    pub fn read(state: &Path) -> Result<Self, Finding> {
        let path = state.join(FILE);
        let broken = |problem: String| {
            let message = format!(
                "cannot determine which bundles were in force: {}: {problem}",
                path.display()
            );
            Finding::error("policy-bundle-memory", message).help(
                "restore the file; remove it only if you know that the bundle is the newest, since \
                 any that is signed is taken then",
            )
        };
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| broken(error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(broken(error.to_string())),
        }
    }

    /// Checks that a bundle may follow those that were in force: no newer one of its name was, and
    /// none of another name since.
    pub fn permits(&self, origin: &Origin) -> Result<(), Finding> {
        let Some(last) = self.0.get(&origin.name) else { return Ok(()) };
        let Origin { name, version, .. } = origin;
        if last.followed {
            let now = self.0.iter().find(|(_, last)| !last.followed).map(|(name, _)| name.as_str());
            let now = now.unwrap_or("another name");
            let message = format!("a bundle of `{now}` was in force after those of `{name}`");
            return Err(Finding::error("policy-bundle-rollback", message)
                .help(format!("sign what is to be in force with the key `{now}`")));
        }
        let refused = |message: String| {
            Err(Finding::error("policy-bundle-rollback", message).help(format!(
                "sign what is to be in force as version {} or later",
                last.version.saturating_add(1)
            )))
        };
        if *version < last.version {
            let was = last.version;
            refused(format!(
                "version {version} of `{name}` is older than {was}, which was in force"
            ))
        } else if *version == last.version && origin.sha256 != last.sha256 {
            refused(format!(
                "another version {version} of `{name}` was in force, with other content"
            ))
        } else {
            Ok(())
        }
    }

    /// Stores that the bundle is in force; it is on disk when this returns.
    pub fn keep(mut self, state: &Path, origin: &Origin) -> Result<(), Finding> {
        self.permits(origin)?;
        let last = Last { version: origin.version, sha256: origin.sha256.clone(), followed: false };
        if self.0.get(&origin.name) == Some(&last) {
            return Ok(());
        }
        self.0.values_mut().for_each(|other| other.followed = true);
        self.0.insert(origin.name.clone(), last);
        let created = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state)
            .and_then(|()| Ok(serde_json::to_vec_pretty(&self)?))
            .and_then(|text| atomic_file::write(&state.join(FILE), &text));
        created.map_err(|error| {
            let path = state.join(FILE);
            let message = format!(
                "cannot keep that the bundle is in force, so it is not: {}: {error}",
                path.display()
            );
            let help = "make room on the disk, and let the user who runs Portcullis write there";
            Finding::error("policy-bundle-memory", message).help(help)
        })
    }
}
