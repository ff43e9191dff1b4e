//! Files of a policy set.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    diagnostics::{File, Finding},
    typed::is_tools_file,
};

/// The files of these paths, each once, sorted by name.
pub fn read(paths: &[PathBuf], base: &Path, findings: &mut Vec<Finding>) -> Vec<File> {
    let mut names = Vec::new();
    for path in paths {
        let path = path.strip_prefix(base).unwrap_or(path);
        match list(path, base) {
            Ok(found) => names.extend(found),
            Err(error) => findings.push(unreadable(path, &error)),
        }
    }
    names.sort();
    names.dedup();
    let mut files = Vec::new();
    for name in names {
        match fs::read_to_string(base.join(&name)) {
            Ok(text) => files.push(File { name, text: text.into() }),
            Err(error) => findings.push(unreadable(&name, &error)),
        }
    }
    files
}

/// Whether a file of that name in a policy folder belongs to the set.
pub(super) fn belongs(name: &Path) -> bool {
    name.extension().is_some_and(|extension| extension == "cedar") || is_tools_file(name)
}

fn list(path: &Path, base: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(base.join(path))?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(base.join(path))? {
        let name = path.join(entry?.file_name());
        if belongs(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

fn unreadable(name: &Path, error: &io::Error) -> Finding {
    let help = match error.kind() {
        io::ErrorKind::NotFound => "make the file or folder, or correct `paths` under `[policy]`",
        io::ErrorKind::InvalidData => "policies are UTF-8 text",
        _ => "let the user who runs Portcullis read it",
    };
    Finding::error("policy-unreadable", format!("cannot read {}: {error}", name.display()))
        .file(name)
        .help(help)
}
