//! A new gateway folder: a config, and a first policy with its cases.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use super::new_files::{self, NewFile};
use portcullis_policy_tools::{PolicyPrincipal, connect};
use portcullis_protocol::names::Group;

/// Name of the config in a gateway folder.
pub const CONFIG: &str = "portcullis.toml";
/// Folder of the policies in a gateway folder.
const POLICIES: &str = "policies";

/// Config of a new gateway.
const CONFIG_TEXT: &str = r#"# Config of a Portcullis gateway. `portcullis add` writes servers to it, `portcullis check` finds
# its errors, and `portcullis schema config` prints all keys.

[listen]
http = "127.0.0.1:8811"
"#;

/// Files that a repository of the folder must not contain.
const IGNORED: &str = "# Keys, secrets and the audit log\n/.portcullis/\n";

/// Creates the files of a gateway, and returns them. Clients of `group` may connect.
///
/// # Errors
/// The folder already has a config or policies, or cannot be written. Then nothing is created.
pub fn init(folder: &Path, group: &Group) -> anyhow::Result<Vec<PathBuf>> {
    let policies = folder.join(POLICIES);
    if let Some(there) = [folder.join(CONFIG), policies.clone()]
        .into_iter()
        .find(|path| path.symlink_metadata().is_ok())
    {
        bail!("{} exists already: name another folder, or remove it", there.display());
    }
    let first = connect(&PolicyPrincipal::Group(group.clone())).map_err(|findings| {
        let findings: Vec<String> = findings.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the first policy is invalid: {}", findings.join("; "))
    })?;
    let mut files = Vec::from_iter(ignoring(folder));
    for (name, text, _) in first.files() {
        files.push(NewFile { path: policies.join(name), text: text.to_owned() });
    }
    // Last, so that a folder with a config is complete.
    files.push(NewFile { path: folder.join(CONFIG), text: CONFIG_TEXT.to_owned() });
    let made = make_folders(&policies)?;
    if let Err(error) = new_files::create(&files) {
        made.iter().for_each(|folder| drop(fs::remove_dir(folder)));
        return Err(error);
    }
    Ok(files.into_iter().map(|file| file.path).collect())
}

/// Keeps the state of a gateway out of a repository of its folder, unless the folder has a list of
/// ignored files.
///
/// # Errors
/// The folder cannot be written.
pub fn ignore_state(folder: &Path) -> anyhow::Result<()> {
    new_files::create(&Vec::from_iter(ignoring(folder)))
}

fn ignoring(folder: &Path) -> Option<NewFile> {
    let path = folder.join(".gitignore");
    let missing = path.symlink_metadata().is_err();
    missing.then(|| NewFile { path, text: IGNORED.to_owned() })
}

/// Makes a folder with the missing ones above it. Returns those that it made, the innermost first.
fn make_folders(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let above = folder.ancestors().filter(|path| !path.as_os_str().is_empty());
    let missing: Vec<PathBuf> =
        above.take_while(|path| !path.exists()).map(Path::to_owned).collect();
    let made: io::Result<()> = missing.iter().rev().try_for_each(fs::create_dir);
    if let Err(error) = made {
        missing.iter().for_each(|folder| drop(fs::remove_dir(folder)));
        return Err(error).with_context(|| format!("cannot make {}", folder.display()));
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_that_cannot_be_completed_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let group = "agents".parse().unwrap();
        let (new, file) = (folder.path().join("a/b"), folder.path().join("file"));
        fs::write(&file, "").unwrap();
        assert!(init(&file.join("gateway"), &group).is_err());
        assert_eq!(init(&new, &group).unwrap().len(), 4);
        // A second time: nothing is overwritten.
        fs::write(new.join(CONFIG), "# Mine\n").unwrap();
        let error = init(&new, &group).unwrap_err().to_string();
        assert!(error.contains("portcullis.toml exists already"), "{error}");
        assert_eq!(fs::read_to_string(new.join(CONFIG)).unwrap(), "# Mine\n");
        fs::remove_file(new.join(CONFIG)).unwrap();
        let error = init(&new, &group).unwrap_err().to_string();
        assert!(error.contains("policies exists already"), "{error}");
        assert!(!new.join(CONFIG).exists());
    }
}
