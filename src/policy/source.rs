//! Where policies come from.

use std::path::{Path, PathBuf};

use super::{
    bundle::{Bundle, Origin},
    diagnostics::{Diagnostics, File, Finding},
    load,
};
use crate::config::Config;

/// Where policies come from: from loose files, or from a bundle that somebody signed.
#[derive(Debug, Clone)]
pub enum Source {
    /// Files, and folders whose files are taken (not those in folders within).
    Paths(Vec<PathBuf>),
    Bundle(Bundle),
}

impl Source {
    /// What a config says.
    pub fn of(config: &Config) -> Self {
        let policy = &config.policy;
        match &policy.bundle {
            Some(dir) => Self::Bundle(Bundle {
                dir: dir.clone(),
                // Those that are no keys were refused with the config.
                keys: policy.bundle_keys.iter().filter_map(|key| key.parse().ok()).collect(),
                state: Some(config.state_dir.clone()),
            }),
            None => Self::Paths(policy.paths.clone()),
        }
    }

    /// The paths as they were given.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Self::Paths(paths) => paths,
            Self::Bundle(bundle) => std::slice::from_ref(&bundle.dir),
        }
    }

    /// The same, seen from another folder than that of the config.
    pub fn from_base(self, base: &Path) -> Self {
        match self {
            Self::Paths(paths) => Self::Paths(paths.iter().map(|path| base.join(path)).collect()),
            Self::Bundle(bundle) => Self::Bundle(Bundle { dir: base.join(&bundle.dir), ..bundle }),
        }
    }

    /// The texts of all that belongs to the set, each file once, by their names.
    ///
    /// # Errors
    /// What can't be read. What is in them is not looked at.
    pub fn texts(&self, base: &Path) -> Result<Vec<(PathBuf, String)>, Diagnostics> {
        let mut findings = Vec::new();
        let (files, _) = self.read(base, &mut findings);
        if findings.is_empty() {
            Ok(files.into_iter().map(|file| (file.name, file.text.to_string())).collect())
        } else {
            Err(Diagnostics::new(findings))
        }
    }

    /// Reads all that belongs to the set, each file once.
    pub(super) fn read(
        &self,
        base: &Path,
        findings: &mut Vec<Finding>,
    ) -> (Vec<File>, Option<Origin>) {
        match self {
            Self::Paths(paths) => (load::read(paths, base, findings), None),
            Self::Bundle(bundle) => match bundle.open(base) {
                Ok(opened) => {
                    let mut files = opened.files;
                    files.retain(|file| load::belongs(&file.name));
                    files.sort_by(|a, b| a.name.cmp(&b.name));
                    (files, Some(opened.origin))
                }
                Err(found) => {
                    findings.extend(found);
                    (Vec::new(), None)
                }
            },
        }
    }
}
