//! References to secrets, each one line.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::Unresolved;

/// Source of one secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Variable of the proxy's environment.
    Env(String),
    /// File, without the line break at its end.
    File(PathBuf),
    /// Variable of a `.env` file.
    Dotenv { path: PathBuf, name: String },
    /// Item of the desktop's keyring (Secret Service), by its attributes `service` and `username`.
    Keyring { service: String, account: String },
    /// Key of type `user` in the kernel's keyrings of this session or user.
    Keyctl(String),
    /// Secret of `docker pass`.
    DockerPass(String),
    /// Credential that `docker-credential-HELPER` has for a server.
    DockerCredential { helper: String, url: String },
    /// Field of a secret in HashiCorp Vault's key-value engine.
    Vault { path: String, field: String },
    /// Secret of an encrypted store of Portcullis.
    Age { path: PathBuf, name: String },
}

impl FromStr for Source {
    type Err = Unresolved;

    fn from_str(reference: &str) -> Result<Self, Unresolved> {
        parse(reference).ok_or(Unresolved::Reference)
    }
}

fn parse(reference: &str) -> Option<Source> {
    let (kind, rest) = reference.split_once(':')?;
    if rest.is_empty() || rest.contains(char::is_control) {
        return None;
    }
    let both = |(one, other): (&str, &str)| {
        (!one.is_empty() && !other.is_empty()).then(|| (one.to_owned(), other.to_owned()))
    };
    Some(match kind {
        "env" => Source::Env(legal_variable(rest).then(|| rest.to_owned())?),
        "file" => Source::File(rest.into()),
        "dotenv" => {
            let (path, name) = both(rest.rsplit_once('#')?)?;
            Source::Dotenv { path: path.into(), name: Some(name).filter(|n| legal_variable(n))? }
        }
        "keyring" => {
            let (service, account) = both(rest.rsplit_once('/')?)?;
            Source::Keyring { service, account }
        }
        "keyctl" => Source::Keyctl(rest.to_owned()),
        "docker-pass" => Source::DockerPass(legal_name(rest, "/._-").then(|| rest.to_owned())?),
        "docker-credential" => {
            let (helper, url) = both(rest.split_once('/')?)?;
            Source::DockerCredential { helper: Some(helper).filter(|h| legal_name(h, "._-"))?, url }
        }
        "vault" => {
            let (path, field) = both(rest.rsplit_once('#')?)?;
            let odd = |part: &str| matches!(part, "" | "." | "..");
            let path = path.trim_matches('/').to_owned();
            Source::Vault { path: Some(path).filter(|p| !p.split('/').any(odd))?, field }
        }
        "age" => {
            let (path, name) = both(rest.rsplit_once('#')?)?;
            Source::Age { path: path.into(), name: Some(name).filter(|n| is_secret_name(n))? }
        }
        _ => return None,
    })
}

/// Whether the text is a legal name in an encrypted store.
pub fn is_secret_name(name: &str) -> bool {
    name.len() <= 128 && legal_name(name, "._-")
}

/// A name must not look like an option of a program.
fn legal_name(name: &str, besides: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || besides.contains(c))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

pub(crate) fn legal_variable(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Self::Env(rest) | Self::Keyctl(rest) | Self::DockerPass(rest) => {
                write!(f, "{kind}:{rest}")
            }
            Self::File(path) => write!(f, "{kind}:{}", path.display()),
            Self::Dotenv { path, name } | Self::Age { path, name } => {
                write!(f, "{kind}:{}#{name}", path.display())
            }
            Self::Keyring { service: one, account: other }
            | Self::DockerCredential { helper: one, url: other } => {
                write!(f, "{kind}:{one}/{other}")
            }
            Self::Vault { path, field } => write!(f, "{kind}:{path}#{field}"),
        }
    }
}

impl Source {
    /// Kind: the word before the colon.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Env(_) => "env",
            Self::File(_) => "file",
            Self::Dotenv { .. } => "dotenv",
            Self::Keyring { .. } => "keyring",
            Self::Keyctl(_) => "keyctl",
            Self::DockerPass(_) => "docker-pass",
            Self::DockerCredential { .. } => "docker-credential",
            Self::Vault { .. } => "vault",
            Self::Age { .. } => "age",
        }
    }

    /// File with the value, if it can be watched.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Dotenv { path, .. } | Self::Age { path, .. } => Some(path),
            _ => None,
        }
    }

    /// The same source, with a relative file resolved against `base` (the config's folder).
    pub fn relative_to(mut self, base: &Path) -> Self {
        if let Self::File(path) | Self::Dotenv { path, .. } | Self::Age { path, .. } = &mut self {
            *path = base.join(&*path);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_references_are_parsed() {
        let owned = str::to_owned;
        for (text, source) in [
            ("env:GITHUB_TOKEN", Source::Env("GITHUB_TOKEN".into())),
            ("file:/run/secrets/x", Source::File("/run/secrets/x".into())),
            ("file:a:b", Source::File("a:b".into())),
            ("dotenv:a#b/.env#KEY", Source::Dotenv { path: "a#b/.env".into(), name: owned("KEY") }),
            (
                "keyring:https://x.example/me",
                Source::Keyring { service: owned("https://x.example"), account: owned("me") },
            ),
            ("keyctl:my key", Source::Keyctl(owned("my key"))),
            ("docker-pass:app/token", Source::DockerPass(owned("app/token"))),
            (
                "docker-credential:pass/https://x.example/v1/",
                Source::DockerCredential {
                    helper: owned("pass"),
                    url: owned("https://x.example/v1/"),
                },
            ),
            (
                "vault:secret/app#token",
                Source::Vault { path: owned("secret/app"), field: owned("token") },
            ),
            ("age:s.age#A.b", Source::Age { path: "s.age".into(), name: owned("A.b") }),
        ] {
            assert_eq!(text.parse::<Source>().unwrap(), source);
            assert_eq!(source.to_string(), text);
            assert!(text.starts_with(&format!("{}:", source.kind())));
        }
    }

    #[test]
    fn illegal_reference_is_not_repeated() {
        let long = format!("age:a#{}", "b".repeat(129));
        for text in [
            "",
            "env:",
            "env:A B",
            "env:1A",
            "file:",
            "hunter2",
            "ENV:A",
            "dotenv:x",
            "dotenv:#A",
            "dotenv:x#",
            "dotenv:x#a b",
            "keyring:a",
            "keyring:/a",
            "keyring:a/",
            "keyctl:",
            "docker-pass:--help",
            "docker-pass:a b",
            "docker-credential:pass",
            "docker-credential:../x/u",
            "docker-credential:-x/u",
            "vault:a",
            "vault:a/../b#c",
            "vault:#c",
            "vault:/#c",
            "age:x",
            "age:x#-",
            "file:a\nb",
            "vault:a\0#b",
            &long,
        ] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.starts_with("a secret comes `from` a reference"), "{error}");
            assert!(text.ends_with(':') || text.is_empty() || !error.contains(text), "{error}");
        }
    }

    #[test]
    fn relative_files_are_resolved_against_the_configs_folder() {
        for (text, seen) in [
            ("file:a", "file:/base/a"),
            ("dotenv:.env#A", "dotenv:/base/.env#A"),
            ("age:/s.age#A", "age:/s.age#A"),
            ("vault:a/b#c", "vault:a/b#c"),
        ] {
            let source = text.parse::<Source>().unwrap().relative_to(Path::new("/base"));
            assert_eq!(source.to_string(), seen);
        }
    }
}
