//! Resolves a reference on a separate thread within a deadline: files may be pipes, secret stores
//! may be programs, and both may wait for a person.

use std::{env, fs::File, io::Read, path::Path, sync::mpsc, thread, time::Duration};

use tokio::{sync::oneshot, time::timeout};
use zeroize::Zeroizing;

use crate::{
    MAX_BYTES, RESOLVE_TIMEOUT, Secret, Source, Unresolved, dotenv, error::BackendError, hashicorp,
    keyctl, providers, store,
};

/// Time that a thread may take beyond its own deadline before it is abandoned.
const GRACE_PERIOD: Duration = Duration::from_secs(2);

impl Source {
    /// Resolves the value and blocks meanwhile. The value of a file ends before the line break (LF
    /// or CR LF) that editors add at its end. Nothing else is trimmed, because white space may
    /// belong to a secret.
    ///
    /// # Errors
    /// [`Unresolved`], which names the source and never the value.
    pub fn resolve(&self) -> Result<Secret, Unresolved> {
        if let Self::Env(_) = self {
            return self.at_once();
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        self.begin(move |outcome| drop(sender.send(outcome)));
        receiver
            .recv_timeout(RESOLVE_TIMEOUT + GRACE_PERIOD)
            .unwrap_or_else(|_| Err(Unresolved::Late(self.clone())))
    }

    /// As [`Source::resolve`], without blocking.
    ///
    /// # Errors
    /// As [`Source::resolve`].
    pub async fn fetch(&self) -> Result<Secret, Unresolved> {
        if let Self::Env(_) = self {
            return self.at_once();
        }
        let (sender, receiver) = oneshot::channel();
        self.begin(move |outcome| drop(sender.send(outcome)));
        match timeout(RESOLVE_TIMEOUT + GRACE_PERIOD, receiver).await {
            Ok(Ok(outcome)) => outcome,
            _ => Err(Unresolved::Late(self.clone())),
        }
    }

    fn begin(&self, sender: impl FnOnce(Result<Secret, Unresolved>) + Send + 'static) {
        let source = self.clone();
        // If no thread can be started, nothing is sent, and the receiver reports a timeout.
        let _ = thread::Builder::new()
            .name("secret".to_owned())
            .spawn(move || sender(source.at_once()));
    }

    fn at_once(&self) -> Result<Secret, Unresolved> {
        let keep_previous = |why: BackendError| Unresolved::Kept { from: self.clone(), why };
        let mut value = match self {
            Self::Env(name) => match env::var(name) {
                Ok(value) => Zeroizing::new(value),
                Err(env::VarError::NotPresent) => return Err(Unresolved::EnvUnset(name.clone())),
                Err(env::VarError::NotUnicode(_)) => return Err(Unresolved::EnvText(name.clone())),
            },
            Self::File(path) => {
                let text = read(path)?;
                let line = text.strip_suffix('\n').unwrap_or(&text);
                Zeroizing::new(line.strip_suffix('\r').unwrap_or(line).to_owned())
            }
            Self::Dotenv { path, name } => {
                dotenv::find(&read(path)?, name).map_err(keep_previous)?
            }
            Self::Keyctl(description) => keyctl::key(description).map_err(keep_previous)?,
            Self::Age { path, name } => store::Store::at(path).get(name).map_err(keep_previous)?,
            Self::Keyring { service, account } => {
                self.wait(providers::keyring(service, account))?.map_err(keep_previous)?
            }
            Self::DockerPass(name) => {
                self.wait(providers::docker_pass(name))?.map_err(keep_previous)?
            }
            Self::DockerCredential { helper, url } => {
                self.wait(providers::docker_credential(helper, url))?.map_err(keep_previous)?
            }
            Self::Vault { path, field } => {
                self.wait(hashicorp::field(path, field))?.map_err(keep_previous)?
            }
        };
        if value.is_empty() {
            return Err(Unresolved::Empty(self.clone()));
        }
        if value.contains('\0') {
            return Err(Unresolved::Nul(self.clone()));
        }
        Ok(Secret::new(std::mem::take(&mut *value)))
    }

    /// Runs on this thread, which [`Source::begin`] started.
    fn wait<T>(&self, what: impl Future<Output = T>) -> Result<T, Unresolved> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Unresolved::Kept {
            from: self.clone(),
            why: BackendError::new(format!("no async runtime could be started: {error}")),
        })?;
        let outcome = runtime.block_on(async { timeout(RESOLVE_TIMEOUT, what).await });
        // The lookup of a host name cannot be cancelled.
        runtime.shutdown_background();
        outcome.map_err(|_| Unresolved::Late(self.clone()))
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>, Unresolved> {
    let failed = |source| Unresolved::File { path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    // Allocated in full: a growing buffer leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_BYTES {
        return Err(Unresolved::FileSize(path.into()));
    }
    crate::utf8::text(bytes).ok_or_else(|| Unresolved::FileText(path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_value_loses_only_one_final_line_break() {
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

    #[tokio::test]
    async fn waiting_source_does_not_block_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let created = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(created.success());
        let source = Source::File(path.clone());
        // On one thread: the value is written while the reader waits for it.
        let (secret, written) = tokio::join!(source.fetch(), async {
            tokio::task::spawn_blocking(move || std::fs::write(path, "late\n")).await
        });
        written.unwrap().unwrap();
        assert_eq!(secret.unwrap().expose(), "late");
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
}
