//! Files that a program needs inside: itself, the interpreter of its first line, and the package
//! folder that contains it. Nothing else of the host becomes visible for it.

use std::{
    env, fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

use super::{mounts::Rules, protocol::Bind};
use crate::process::LaunchFailure;

/// Program path inside.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Name that means the running executable.
const OURSELVES: &str = "portcullis";

/// Limit of links and interpreters from one file to the next.
const MAX_HOPS: usize = 16;

/// Finds a program and the mounts that it needs.
#[derive(Debug)]
pub(super) struct Search {
    /// Mounts: the given ones, then those for the program.
    pub binds: Vec<Bind>,
    /// Folders to put in front of [`PATH`].
    pub path: Vec<PathBuf>,
    /// Folders of the host that contain programs.
    folders: Vec<PathBuf>,
    rules: Rules,
    hops: usize,
}

impl Search {
    /// Starts with the given mounts. `path` is the server's own PATH, if it has one.
    pub(super) fn new(binds: Vec<Bind>, path: Option<&str>, rules: Rules) -> Self {
        let host = env::var_os("PATH").unwrap_or_default();
        let folders = match path {
            Some(path) => env::split_paths(path).collect(),
            None => env::split_paths(&host)
                // A version manager's shims need the whole manager, so their targets are used
                // instead.
                .filter(|folder| !folder.ends_with("shims"))
                .chain(env::split_paths(PATH))
                .collect::<Vec<_>>(),
        };
        Self { binds, path: Vec::new(), folders, rules, hops: 0 }
    }

    /// Finds the program by a command's first word. Returns its path inside.
    pub(super) fn find(&mut self, word: &str, ourselves: &Path) -> Result<PathBuf, LaunchFailure> {
        if word == OURSELVES {
            let ourselves = fs::read_link(ourselves).unwrap_or_else(|_| ourselves.to_owned());
            return self.admit(&ourselves);
        }
        let candidate = if word.contains('/') { self.absolute(word)? } else { self.locate(word)? };
        self.admit(&candidate)
    }

    fn absolute(&self, word: &str) -> Result<PathBuf, LaunchFailure> {
        let current = env::current_dir().map_err(|error| missing(word, &error.to_string()))?;
        Ok(normalize(&current.join(word)))
    }

    fn locate(&self, name: &str) -> Result<PathBuf, LaunchFailure> {
        let is_program = |candidate: &PathBuf| {
            let host = self.on_host(candidate).unwrap_or_else(|| candidate.clone());
            fs::metadata(host)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let mut candidates = self.folders.iter().filter(|folder| folder.is_absolute());
        candidates
            .find_map(|folder| Some(folder.join(name)).filter(is_program))
            .ok_or_else(|| missing(name, "it is in no folder of PATH"))
    }

    /// Host file behind a path inside, if it is in a mount.
    fn on_host(&self, inside: &Path) -> Option<PathBuf> {
        let bind = self
            .binds
            .iter()
            .filter(|bind| inside.starts_with(&bind.target))
            .max_by_key(|bind| bind.target.components().count())?;
        let rest = inside.strip_prefix(&bind.target).ok()?;
        Some(if rest.as_os_str().is_empty() { bind.source.clone() } else { bind.source.join(rest) })
    }

    /// Makes a program visible, and everything needed to execute it. Returns its path inside: the
    /// same one, or its link target.
    fn admit(&mut self, candidate: &Path) -> Result<PathBuf, LaunchFailure> {
        self.hops += 1;
        if self.hops > MAX_HOPS {
            return Err(missing(
                &candidate.display().to_string(),
                "too many links and interpreters",
            ));
        }
        let failed =
            |error: std::io::Error| missing(&candidate.display().to_string(), &error.to_string());
        if let Some(host) = self.on_host(candidate) {
            if let Ok(link) = fs::read_link(&host) {
                let folder = candidate.parent().unwrap_or(Path::new("/"));
                self.admit(&normalize(&folder.join(link)))?;
            } else {
                self.admit_interpreter(&host)?;
            }
            return Ok(candidate.to_owned());
        }
        let canonical = fs::canonicalize(candidate).map_err(failed)?;
        if let Some(folder) = package(candidate) {
            let source = fs::canonicalize(&folder).map_err(failed)?;
            self.mount(&source, &folder)?;
            return self.admit(candidate);
        }
        if canonical != candidate {
            return self.admit(&canonical);
        }
        if !fs::metadata(candidate).map_err(failed)?.is_file() {
            return Err(missing(&candidate.display().to_string(), "it is not a file"));
        }
        self.mount(candidate, candidate)?;
        if let Some(beside) = beside(candidate) {
            self.mount(&beside, &beside)?;
        }
        if let Some(library) = library(candidate) {
            self.mount(&library, &library)?;
        }
        self.admit_interpreter(candidate)?;
        Ok(candidate.to_owned())
    }

    /// Makes the interpreter of a script visible.
    fn admit_interpreter(&mut self, host: &Path) -> Result<(), LaunchFailure> {
        let Some(line) = shebang(host) else { return Ok(()) };
        let mut words = line.split_ascii_whitespace();
        let Some(interpreter) = words.next() else { return Ok(()) };
        self.admit_at(Path::new(interpreter))?;
        if interpreter.ends_with("/env") {
            let mut words = words.skip_while(|word| word.starts_with('-') || word.contains('='));
            if let Some(name) = words.next() {
                let candidate = self.locate(name)?;
                self.admit_at(&candidate)?;
                let folder = candidate.parent().unwrap_or(Path::new("/")).to_owned();
                if !env::split_paths(PATH).any(|known| known == folder) {
                    self.path.push(folder);
                }
            }
        }
        Ok(())
    }

    /// Makes a program visible at exactly this path, because a script names it.
    fn admit_at(&mut self, candidate: &Path) -> Result<(), LaunchFailure> {
        let found = self.admit(candidate)?;
        if found == candidate { Ok(()) } else { self.mount(&found, candidate) }
    }

    fn mount(&mut self, source: &Path, target: &Path) -> Result<(), LaunchFailure> {
        self.rules.check_program(source)?;
        self.binds.push(Bind::read_only(source, target));
        Ok(())
    }
}

/// The program that this one runs from its own folder: `uvx` runs `uv`.
fn beside(program: &Path) -> Option<PathBuf> {
    let uv = program.with_file_name("uv");
    (program.ends_with("uvx") && uv.is_file()).then_some(uv)
}

/// Package folder that contains a program: a Python environment, or `node_modules`.
fn package(candidate: &Path) -> Option<PathBuf> {
    let environment = candidate.parent()?.parent()?;
    if candidate.parent()?.ends_with("bin") && environment.join("pyvenv.cfg").is_file() {
        return Some(environment.to_owned());
    }
    let outermost = candidate.ancestors().filter(|folder| folder.ends_with("node_modules")).last();
    outermost.map(Path::to_owned)
}

/// Standard library of a Python that is not the system's.
fn library(program: &Path) -> Option<PathBuf> {
    let name = program.file_name()?.to_str()?;
    let bin = program.parent()?;
    let prefix = bin.parent().filter(|_| bin.ends_with("bin"))?;
    let version = name.strip_prefix("python").or_else(|| name.strip_prefix("pypy"))?;
    let versioned = prefix.join(format!("lib/python{version}"));
    (versioned.is_dir() && prefix.parent().is_some()).then(|| prefix.join("lib"))
}

/// Text after `#!` in a file's first line.
fn shebang(file: &Path) -> Option<String> {
    let mut head = Vec::new();
    fs::File::open(file).ok()?.take(512).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    String::from_utf8(line.to_owned()).ok()
}

/// The path without `.` and `..`, by its text only.
fn normalize(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut so_far, part| {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(so_far.pop()),
            part => so_far.push(part),
        }
        so_far
    })
}

fn missing(program: &str, why: &str) -> LaunchFailure {
    LaunchFailure {
        what: format!("the program `{program}` can't be started: {why}"),
        remedy: Some(
            "name it by its absolute path, or install it in a folder of the proxy's PATH".into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, sync::Arc};

    use super::*;
    use crate::MountPolicy;

    fn rules() -> Rules {
        Rules::of(&Arc::new(MountPolicy::of_host()))
    }

    fn program(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn program_mounts_itself_its_interpreter_and_its_packages_only() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        let at = |name: &str| dir.join(name);
        program(&at("plain/bin/tool"), "binary");
        program(&at("python/bin/python3.99"), "binary");
        fs::create_dir_all(at("python/lib/python3.99")).unwrap();
        program(&at("venv/bin/server"), &format!("#!{}\n", at("venv/bin/python").display()));
        fs::write(at("venv/pyvenv.cfg"), "").unwrap();
        symlink(at("python/bin/python3.99"), at("venv/bin/python")).unwrap();
        program(&at("uv/bin/uvx"), "binary");
        program(&at("uv/bin/uv"), "binary");
        fs::create_dir_all(at("links")).unwrap();
        symlink(at("venv/bin/server"), at("links/server")).unwrap();
        program(&at("app/node_modules/pkg/index.js"), "#!/bin/sh\n");
        fs::create_dir_all(at("app/node_modules/.bin")).unwrap();
        symlink("../pkg/index.js", at("app/node_modules/.bin/pkg")).unwrap();
        let python = ["venv", "python/bin/python3.99", "python/lib"];
        for (word, exec, mounted) in [
            ("plain/bin/tool", "plain/bin/tool", &["plain/bin/tool"][..]),
            ("uv/bin/uvx", "uv/bin/uvx", &["uv/bin/uvx", "uv/bin/uv"]),
            ("venv/bin/server", "venv/bin/server", &python),
            ("links/server", "venv/bin/server", &python),
            ("app/node_modules/.bin/pkg", "app/node_modules/.bin/pkg", &["app/node_modules"]),
        ] {
            let system = ["/usr", "/bin"].map(|tree| Bind::read_only(tree, tree));
            let mut search = Search::new(system.into(), None, rules());
            let found = search.find(at(word).to_str().unwrap(), Path::new("/")).unwrap();
            assert_eq!(found, at(exec), "{word}");
            let sources: Vec<_> = search.binds.iter().skip(2).map(|b| b.source.clone()).collect();
            assert_eq!(sources, mounted.iter().map(|name| at(name)).collect::<Vec<_>>(), "{word}");
        }
    }

    #[test]
    fn program_in_a_mount_has_its_path_inside() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        program(&dir.join("tool"), "binary");
        let mut search =
            Search::new(vec![Bind::read_only(&dir, "/srv/tools")], Some("/srv/tools"), rules());
        for word in ["tool", "/srv/tools/tool"] {
            let found = search.find(word, Path::new("/")).unwrap();
            assert_eq!(found, Path::new("/srv/tools/tool"));
        }
        assert_eq!(search.binds.len(), 1);
        let failure = search.find("no-such-tool", Path::new("/")).unwrap_err();
        assert!(failure.what.contains("`no-such-tool`") && failure.remedy.is_some());
    }
}
