//! Files of rules and of baselines that the settings name.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Config,
    baseline::Baseline,
    gitleaks,
    rules::{IllegalRules, Rule},
};

/// Limit of a file in bytes.
const MAX_FILE_BYTES: u64 = 32 << 20;

/// Content of the files that settings name.
#[derive(Debug, Clone, Default)]
pub(super) struct RuleFiles {
    pub rules: Vec<Rule>,
    pub baseline: Arc<Baseline>,
}

impl RuleFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// The first one that is not valid.
    pub(super) fn read(config: &Config) -> Result<Self, IllegalRules> {
        let mut rules: Vec<Rule> = Vec::new();
        for path in &config.gitleaks {
            let file = gitleaks::read(path, &text(path)?)?;
            for notice in file.notices {
                tracing::warn!(file = %path.display(), "part of a rule file has no effect: {notice}");
            }
            for rule in file.rules {
                if rules.iter().any(|other| other.id == rule.id) {
                    return Err(unusable(
                        path,
                        format!("an earlier file has the rule `{}`, too", rule.id),
                        "rename one of them",
                    ));
                }
                rules.push(rule);
            }
        }
        let mut baseline = Baseline::published();
        for path in &config.baselines {
            baseline.add(path, &text(path)?)?;
        }
        Ok(Self { rules, baseline: Arc::new(baseline) })
    }
}

fn unusable(path: &Path, problem: String, remedy: &str) -> IllegalRules {
    let (path, remedy) = (PathBuf::from(path), remedy.to_owned());
    IllegalRules::File { path, line: 1, problem, remedy }
}

/// Text of a file.
fn text(path: &Path) -> Result<String, IllegalRules> {
    let mut text = String::new();
    let read =
        File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
    match read {
        Err(error) => Err(unusable(path, error.to_string(), "correct the path or the file")),
        Ok(_) if text.len() as u64 > MAX_FILE_BYTES => {
            let what = format!("the file has more than {MAX_FILE_BYTES} bytes");
            Err(unusable(path, what, "divide or shorten it"))
        }
        Ok(_) => Ok(text),
    }
}
