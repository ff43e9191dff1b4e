//! Projects of plugins: `new` writes them, `build` builds a component from them.

mod build;
mod files;
mod new;
mod tool;
mod watch;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use miette::Diagnostic;

pub use build::{Built, build};
pub use new::new;
pub use watch::SourceWatcher;

/// The languages that projects are made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Language {
    Rust,
    /// JavaScript
    Js,
    Python,
    C,
}

impl Language {
    /// Language of a project, by its files.
    fn of(folder: &Path) -> Option<Self> {
        let candidates = [
            ("Cargo.toml", Self::Rust),
            ("package.json", Self::Js),
            ("requirements.txt", Self::Python),
        ];
        let found = candidates.into_iter().find(|(name, _)| folder.join(name).is_file());
        let found = found.map(|(_, language)| language);
        found.or_else(|| (!with_extension(folder, "c").is_empty()).then_some(Self::C))
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rust => "Rust",
            Self::Js => "JavaScript",
            Self::Python => "Python",
            Self::C => "C",
        })
    }
}

/// Files of a folder with this extension, in order.
fn with_extension(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    found.sort();
    found
}

/// Reason why a project or a component cannot be created.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum Failed {
    #[error("`{name}` is not a name of a plugin")]
    #[diagnostic(
        code("plugin-name"),
        help(
            "write 1 to 64 of a-z, 0-9 and single `-`, beginning with a letter: every language \
             takes that"
        )
    )]
    Name { name: String },

    #[error("there is something at {} already", path.display())]
    #[diagnostic(code("plugin-project-exists"), help("name another folder with `--dir`"))]
    Exists { path: PathBuf },

    #[error("cannot write {}: {source}", path.display())]
    #[diagnostic(code("plugin-unwritable"))]
    Unwritable { path: PathBuf, source: std::io::Error },

    #[error("{} is not a plugin project", path.display())]
    #[diagnostic(
        code("plugin-no-project"),
        help(
            "one in Rust has a `Cargo.toml`, in JavaScript a `package.json`, in Python a \
             `requirements.txt` and one module, in C its `*.c`; `portcullis plugin new` makes them"
        )
    )]
    NoProject { path: PathBuf },

    #[error("{tool} is not installed, which building a plugin in {language} takes")]
    #[diagnostic(code("plugin-tool-missing"), help("{get}"))]
    Missing { tool: &'static str, language: Language, get: &'static str },

    #[error("`{command}` failed{}", ended.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    #[diagnostic(code("plugin-build-failed"), help("its output is above"))]
    Tool { command: String, ended: Option<String> },

    #[error("the project does not fit: {what}")]
    #[diagnostic(code("plugin-project"), help("{help}"))]
    Project { what: String, help: &'static str },
}
