//! A server of an import: what is written for it, and what prevents that.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{
    AddOptions,
    client_policy::policies_of,
    policy_files::{self, ConfiguredPolicyFiles},
};
use crate::manage::new_files::PlannedFiles;
use portcullis_audit::record::{ImageAction, ImageEvent};
use portcullis_catalog::{
    Run, Server,
    lock::{self, ServerPin},
    write::{Replacement, file_name, policy},
};
use portcullis_policy_tools::format;

/// Server that is imported.
pub struct PlannedServer {
    pub server: Server,
    /// Its entry in the lock file. Only confirmations of references in the config entry are left.
    pub old: Option<ServerPin>,
    pub locked: ServerPin,
    /// Content of its image before the import.
    pub was: Option<String>,
    /// Entry that it replaces; `None` for a new server.
    pub replaced: Option<Replaced>,
    pub policies: Policies,
    /// Policies for its clients, and their cases.
    pub client_files: PlannedFiles,
    /// Unconfirmed secrets that the policies which stay may still permit.
    pub perhaps: BTreeSet<String>,
    /// Other policy files that already apply to it, each with the unconfirmed secrets that it may
    /// permit.
    pub elsewhere: Vec<(PathBuf, BTreeSet<String>)>,
}

/// Existing entry that an import replaces.
pub struct Replaced {
    /// New entry; `None` if it has the values of the old one.
    pub entry: Option<Replacement>,
    /// Whether the operator wrote the old entry, or edited it since it was imported.
    pub edited: bool,
    /// Difference in the enabled tools.
    pub tools: Option<String>,
}

/// Result for a server's policies.
pub enum Policies {
    /// There is no folder for policies.
    Nowhere,
    /// Written, in place of a text that the operator edited, if there is one.
    Written { path: PathBuf, text: String, edited: Option<String> },
    /// The file already has this text.
    Same,
    /// A file with other, unknown rules exists: the server is not imported.
    There(PathBuf),
    /// The file was edited and stays; with the text that would be written.
    Changed(PathBuf, String),
}

/// The policies for the start of a server, in the layout of `policy fmt`.
fn start_policy(server: &Server) -> String {
    let text = policy(server);
    format(Path::new(&file_name(&server.name)), &text).unwrap_or(text)
}

impl Policies {
    fn of(
        folder: Option<&Path>,
        server: &Server,
        locked: Option<&ServerPin>,
        add_options: &AddOptions,
        again: bool,
        seen: bool,
    ) -> Self {
        let Some(folder) = folder else { return Self::Nowhere };
        let (path, text) = (folder.join(file_name(&server.name)), start_policy(server));
        let ours = locked.and_then(|locked| locked.policies.as_deref()).filter(|_| again);
        // The operator may have deleted the file on purpose.
        let never = !again || locked.is_none_or(|locked| locked.source.is_none());
        if never && !path.exists() {
            return Self::Written { path, text, edited: None };
        }
        // A file that cannot be read counts as changed.
        let there = std::fs::read(&path).unwrap_or_default();
        if there == text.as_bytes() {
            Self::Same
        } else if seen || ours == Some(&*lock::digest(&there)) {
            Self::Written { path, text, edited: None }
        } else if add_options.overwrite_policies {
            let edited = Some(String::from_utf8_lossy(&there).into_owned());
            Self::Written { path, text, edited }
        } else if !again {
            Self::There(path)
        } else {
            Self::Changed(path, text)
        }
    }

    fn digest(&self, server: &Server) -> Option<String> {
        match self {
            Self::Written { .. } | Self::Same => {
                Some(lock::digest(start_policy(server).as_bytes()))
            }
            Self::Nowhere | Self::There(_) | Self::Changed(..) => None,
        }
    }
}

impl PlannedServer {
    /// Decides the result for its policies, and updates the pin: policies and confirmations.
    pub fn decide_policies(
        &mut self,
        folder: Option<&Path>,
        others: &ConfiguredPolicyFiles,
        add_options: &AddOptions,
    ) {
        let (old, again) = (self.old.as_ref(), self.replaced.is_some());
        // The file had the text of the time before a secret was confirmed.
        let seen = matches!(self.policies, Policies::Same);
        self.policies = Policies::of(folder, &self.server, old, add_options, again, seen);
        self.perhaps = match &self.policies {
            Policies::Changed(path, _) => {
                let names = self.open().map(|(name, _)| name);
                policy_files::perhaps_permitted(
                    &policy_files::policies(path),
                    &self.server.name,
                    names,
                )
            }
            _ => BTreeSet::new(),
        };
        self.elsewhere = self.permitted_elsewhere(folder, others);
        self.locked.policies = self.policies.digest(&self.server);
        self.locked.confirmed = self.locked_references(true);
        self.locked.unconfirmed = self.locked_references(false);
        self.locked.destination = self.server.destination();
    }

    /// Names and digests of the policies for its clients that this import writes. Names are relative
    /// to `base`.
    pub fn written_client_files(&self, base: &Path) -> impl Iterator<Item = (String, String)> {
        let new = self.client_files.new.iter();
        new.map(|file| (relative(&file.path, base), lock::digest(file.text.as_bytes())))
    }

    /// Notes the policies for its clients in the pin, so that `server rm` can remove them. `written`
    /// has those of this and of earlier imports; other files are the operator's.
    pub fn lock_client_files(&mut self, base: &Path, written: &BTreeMap<String, String>) {
        let kept = self.client_files.kept.iter().map(|path| relative(path, base));
        let kept = kept.filter_map(|path| written.get_key_value(&path));
        let kept: Vec<_> = kept.map(|(path, digest)| (path.clone(), digest.clone())).collect();
        self.locked.client_policies = self.written_client_files(base).chain(kept).collect();
    }

    /// Paths and texts of the policies that this import writes.
    pub fn written(&self) -> impl Iterator<Item = (&Path, &str)> {
        let start = match &self.policies {
            Policies::Written { path, text, .. } => Some((path.as_path(), text.as_str())),
            _ => None,
        };
        let new = policies_of(&self.client_files.new);
        start.into_iter().chain(new.map(|file| (file.path.as_path(), file.text.as_str())))
    }

    /// Whether policies let clients use it that this import writes or keeps.
    pub fn has_client_policies(&self) -> bool {
        !self.client_files.new.is_empty() || !self.client_files.kept.is_empty()
    }

    /// Whether it changes the entry or the policies.
    pub fn is_change(&self) -> bool {
        let changed = |replaced: &Replaced| replaced.entry.is_some();
        self.replaced.as_ref().is_none_or(changed)
            || matches!(self.policies, Policies::Written { .. })
    }

    /// Reason not to write it: existing policies may permit what nobody confirmed.
    pub fn hindered(&self) -> Option<String> {
        if let Policies::There(path) = &self.policies {
            return Some(format!(
                "{} exists and has other rules; remove it, or let the import write it with `--replace \
                 --overwrite-policies`",
                path.display()
            ));
        }
        if !self.is_change() {
            return None;
        }
        let listed = |secrets: &BTreeSet<String>| {
            let names: Vec<String> = secrets.iter().map(|name| format!("`{name}`")).collect();
            names.join(", ")
        };
        if let Policies::Changed(path, _) = &self.policies
            && !self.perhaps.is_empty()
        {
            return Some(format!(
                "{} was changed by hand and may permit {}, which is unconfirmed: confirm it with `--secret \
                 NAME=REFERENCE`, or let the import write the file with `--overwrite-policies`",
                path.display(),
                listed(&self.perhaps)
            ));
        }
        // A reference of an existing server may be the operator's own.
        let mut elsewhere = self.elsewhere.iter().filter(|_| self.replaced.is_some());
        let (path, secrets) = elsewhere.find(|(_, secrets)| !secrets.is_empty())?;
        Some(format!(
            "{} may permit {}, which is unconfirmed: confirm it with `--secret NAME=REFERENCE`",
            path.display(),
            listed(secrets)
        ))
    }

    /// Audit record to write before a new or changed image is locked.
    pub fn locking(&self) -> Option<ImageEvent> {
        let Run::Image { image, .. } = &self.server.run else { return None };
        let digest = self.locked.content()?.to_owned();
        (self.was.as_deref() != Some(&*digest)).then_some(ImageEvent {
            server: self.server.name.parse().ok()?,
            image: image.to_string(),
            digest,
            what: ImageAction::Locked { was: self.was.clone() },
        })
    }
}

fn relative(path: &Path, base: &Path) -> String {
    path.strip_prefix(base).unwrap_or(path).display().to_string()
}
