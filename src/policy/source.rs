//! Sources of policies.

use std::path::{Path, PathBuf};

use super::{
    bundle::{Bundle, Origin},
    diagnostics::{Diagnostics, File, Finding},
    files,
};
use portcullis_catalog::profile_file::Profile;

use super::Policy;

/// Source of policies: loose files or a signed bundle.
#[derive(Debug, Clone)]
pub enum Source {
    /// Files and folders. Subfolders are not read.
    Paths(Vec<PathBuf>),
    Bundle(Bundle),
    /// Another source, narrowed to the tools that a profile enables.
    Narrowed {
        of: Box<Source>,
        profile: String,
    },
}

impl Source {
    /// The source in the config, with the state folder of the proxy.
    pub fn of(policy: &Policy, state_dir: &Path) -> Self {
        match &policy.bundle {
            Some(dir) => Self::Bundle(Bundle {
                dir: dir.clone(),
                // Invalid keys were refused when the config was loaded.
                keys: policy.bundle_keys.iter().filter_map(|key| key.parse().ok()).collect(),
                state: Some(state_dir.to_owned()),
            }),
            None => Self::Paths(policy.paths.clone()),
        }
    }

    /// The same source, narrowed to the tools that a profile in the config enables.
    pub fn narrowed(self, profile: Option<&str>) -> Self {
        match profile {
            Some(profile) => Self::Narrowed { of: Box::new(self), profile: profile.to_owned() },
            None => self,
        }
    }

    /// The bundle, if the source is one.
    pub(super) fn bundle(&self) -> Option<&Bundle> {
        match self {
            Self::Paths(_) => None,
            Self::Bundle(bundle) => Some(bundle),
            Self::Narrowed { of, .. } => of.bundle(),
        }
    }

    /// All paths that it is read from, below `base`.
    pub(super) fn sources(&self, base: &Path) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = self.paths().iter().map(|path| base.join(path)).collect();
        if let Self::Narrowed { profile, .. } = self {
            all.extend(Profile::path(base, profile));
        }
        all
    }

    /// The paths as they were given.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Self::Paths(paths) => paths,
            Self::Bundle(bundle) => std::slice::from_ref(&bundle.dir),
            Self::Narrowed { of, .. } => of.paths(),
        }
    }

    /// The same source, relative to another folder than that of the config.
    pub fn from_base(self, base: &Path) -> Self {
        match self {
            Self::Paths(paths) => Self::Paths(paths.iter().map(|path| base.join(path)).collect()),
            Self::Bundle(bundle) => Self::Bundle(Bundle { dir: base.join(&bundle.dir), ..bundle }),
            Self::Narrowed { of, profile } => {
                Self::Narrowed { of: Box::new(of.from_base(base)), profile }
            }
        }
    }

    /// The texts of all files of the set, each once, with their names.
    ///
    /// # Errors
    /// Files that cannot be read. Their contents are not checked.
    pub fn texts(&self, base: &Path) -> Result<Vec<(PathBuf, String)>, Diagnostics> {
        let mut findings = Vec::new();
        let (files, _) = self.read(base, &mut findings);
        if findings.is_empty() {
            Ok(files.into_iter().map(|file| (file.name, file.text.to_string())).collect())
        } else {
            Err(Diagnostics::new(findings))
        }
    }

    /// Reads all files of the set, each once.
    pub(super) fn read(
        &self,
        base: &Path,
        findings: &mut Vec<Finding>,
    ) -> (Vec<File>, Option<Origin>) {
        match self {
            Self::Paths(paths) => (files::read(paths, base, findings), None),
            Self::Bundle(bundle) => match bundle.open(base) {
                Ok(opened) => {
                    let mut files = opened.files;
                    files.retain(|file| files::belongs(&file.name));
                    files.sort_by(|a, b| a.name.cmp(&b.name));
                    (files, Some(opened.origin))
                }
                Err(found) => {
                    findings.extend(found);
                    (Vec::new(), None)
                }
            },
            Self::Narrowed { of, profile } => {
                let (mut files, origin) = of.read(base, findings);
                match Profile::policies(base, profile) {
                    Ok(text) => {
                        let path = Profile::path(Path::new(""), profile).unwrap_or_default();
                        files.push(File { name: path, text: text.into() });
                    }
                    Err(error) => {
                        findings.push(Finding::error("policy-unreadable", error.to_string()));
                    }
                }
                (files, origin)
            }
        }
    }
}
