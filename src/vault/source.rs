//! References to secrets (`env:NAME`, `file:PATH`) and their resolution.

use std::{
    env, fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

use zeroize::Zeroizing;

use super::Secret;

/// Bytes that a secret's file may have.
const MAX_BYTES: u64 = 64 << 10;

/// Where one secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A variable of the proxy's own environment.
    Env(String),
    /// A file, without the line break at its end.
    File(PathBuf),
}

/// A secret that is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum Unresolved {
    /// Not a reference. What was written is not repeated: it may be the secret itself.
    #[error("a secret comes `from` a reference: write `env:NAME` or `file:PATH`, never the value")]
    Reference,
    #[error("the environment variable `{0}` is not set: export it before the proxy starts")]
    EnvUnset(String),
    #[error("the environment variable `{0}` is not UTF-8 text")]
    EnvText(String),
    #[error("cannot read the secret's file `{}`: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the secret's file `{}` is not UTF-8 text", .0.display())]
    FileText(PathBuf),
    #[error("the secret's file `{}` has more than 64 KiB: is it the right file?", .0.display())]
    FileSize(PathBuf),
    #[error("the secret of `{0}` is empty")]
    Empty(Source),
    #[error("the secret of `{0}` holds a NUL byte, which no environment can hold")]
    Nul(Source),
}

impl FromStr for Source {
    type Err = Unresolved;

    fn from_str(reference: &str) -> Result<Self, Unresolved> {
        match reference.split_once(':') {
            Some(("env", name)) if legal_variable(name) => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() && !path.contains('\0') => {
                Ok(Self::File(path.into()))
            }
            _ => Err(Unresolved::Reference),
        }
    }
}

fn legal_variable(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

impl Source {
    /// The same source, a relative file seen from `base` (the config's folder).
    pub fn relative_to(self, base: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(base.join(path)),
            source => source,
        }
    }

    /// Fetches the value. A file's value ends before the line break (LF or CR LF) that editors put
    /// at its end; nothing else is trimmed, because white space may belong to a secret.
    ///
    /// # Errors
    /// [`Unresolved`], which names the source and never the value.
    pub fn resolve(&self) -> Result<Secret, Unresolved> {
        let mut value = match self {
            Self::Env(name) => match env::var(name) {
                Ok(value) => Zeroizing::new(value),
                Err(env::VarError::NotPresent) => return Err(Unresolved::EnvUnset(name.clone())),
                Err(env::VarError::NotUnicode(_)) => return Err(Unresolved::EnvText(name.clone())),
            },
            Self::File(path) => read(path)?,
        };
        if value.is_empty() {
            return Err(Unresolved::Empty(self.clone()));
        }
        if value.contains('\0') {
            return Err(Unresolved::Nul(self.clone()));
        }
        Ok(Secret::new(std::mem::take(&mut *value)))
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>, Unresolved> {
    let failed = |source| Unresolved::File { path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    // The room for the whole file at once: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES as usize + 1));
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Unresolved::FileSize(path.into()));
    }
    let text = str::from_utf8(&bytes).map_err(|_| Unresolved::FileText(path.into()))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(Zeroizing::new(text.strip_suffix('\r').unwrap_or(text).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_parsed_and_nothing_else_is() {
        for (text, source) in [
            ("env:GITHUB_TOKEN", Source::Env("GITHUB_TOKEN".into())),
            ("file:/run/secrets/x", Source::File("/run/secrets/x".into())),
            ("file:a:b", Source::File("a:b".into())),
        ] {
            assert_eq!(text.parse::<Source>().unwrap(), source);
            assert_eq!(source.to_string(), text);
        }
        for text in ["", "env:", "env:A B", "env:1A", "file:", "vault:x", "hunter2", "ENV:A"] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.starts_with("a secret comes `from` a reference"), "{error}");
            assert!(text.ends_with(':') || text.is_empty() || !error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_file_loses_one_line_break_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for (written, value) in [
            ("value", "value"),
            ("value\n", "value"),
            ("value\r\n", "value"),
            ("value\n\n", "value\n"),
            (" value \n", " value "),
            ("a\nb\n", "a\nb"),
        ] {
            std::fs::write(dir.path().join("secret"), written).unwrap();
            let source = "file:secret".parse::<Source>().unwrap().relative_to(dir.path());
            assert_eq!(source.resolve().unwrap().expose(), value);
        }
    }

    #[test]
    fn errors_name_the_source_and_never_the_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let source = Source::File(path.clone());
        let value = ["hunter", "2"].concat();
        for bytes in [
            Vec::new(),
            b"\n".to_vec(),
            format!("{value}\0").into_bytes(),
            [value.as_bytes(), &[0xff]].concat(),
            value.repeat(20_000).into_bytes(),
        ] {
            std::fs::write(&path, &bytes).unwrap();
            let error = source.resolve().unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains("secret") && !text.contains(&value), "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(source.resolve().unwrap_err().to_string().contains("secret"));
        let unset = Source::Env("PORTCULLIS_TEST_SURELY_UNSET".into()).resolve().unwrap_err();
        assert!(unset.to_string().contains("PORTCULLIS_TEST_SURELY_UNSET"));
    }

    #[test]
    fn a_secret_shows_nothing() {
        let secret = Secret::new(["hunter", "2"].concat());
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }
}
