//! Logins to registries, as stored by `docker login`.

use std::{
    env, fmt,
    fs::File,
    io::Read as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use docker_credential::{CredentialRetrievalError as Failure, DockerCredential};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::{Error, Reference, error::Redacted};

/// Limit of a docker config in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Time limit for a credential helper, which may ask a keyring or a person.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// Source of logins.
#[derive(Debug, Clone, Default)]
pub enum Logins {
    /// `config.json` in `DOCKER_CONFIG`, else in `~/.docker`: its `auths`, `credsStore` and
    /// `credHelpers`.
    #[default]
    Docker,
    /// `config.json` in this folder.
    DockerIn(PathBuf),
    /// No logins: public registries only.
    Nobody,
}

/// A login. Its `Debug` shows nothing.
#[derive(Clone)]
pub enum Login {
    /// User and password.
    Password {
        /// User.
        user: String,
        /// Password.
        password: Zeroizing<String>,
    },
    /// Identity token, which a registry's token service exchanges for tokens.
    Identity(Zeroizing<String>),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Login").field(&Redacted).finish()
    }
}

impl Logins {
    /// Login for a registry, if there is one and it is found before the deadline.
    pub(crate) async fn of(
        &self,
        reference: &Reference,
        until: Instant,
    ) -> Result<Option<Login>, Error> {
        let folder = match self {
            Self::Nobody => return Ok(None),
            Self::DockerIn(folder) => folder.clone(),
            Self::Docker => match folder() {
                Some(folder) => folder,
                None => return Ok(None),
            },
        };
        let host = reference.host().to_owned();
        let failed = |why: &str| Error::Login { host: host.clone(), why: why.to_owned() };
        let (sender, receiver) = oneshot::channel();
        let name = reference.login_name().to_owned();
        // A credential helper is a program that may never end. On a thread of the async runtime, it
        // would block the runtime's shutdown, too.
        std::thread::Builder::new()
            .name("registry-login".into())
            .spawn(move || drop(sender.send(find(&folder, &name))))
            .map_err(|error| failed(&error.to_string()))?;
        let remaining = until.saturating_duration_since(Instant::now());
        match tokio::time::timeout(remaining.min(HELPER_TIMEOUT), receiver).await {
            Ok(Ok(found)) => found.map_err(|why| failed(&why)),
            Ok(Err(_)) => Err(failed("the credential helper could not be started")),
            Err(_) => Err(failed("the credential helper does not answer")),
        }
    }
}

fn folder() -> Option<PathBuf> {
    let configured =
        env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    configured.or_else(|| env::home_dir().map(|home| home.join(".docker")))
}

fn find(folder: &std::path::Path, name: &str) -> Result<Option<Login>, String> {
    let path = folder.join("config.json");
    let mut config = Zeroizing::new(Vec::new());
    match File::open(&path).and_then(|file| file.take(MAX_CONFIG_BYTES).read_to_end(&mut config)) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    }
    match docker_credential::get_credential_from_reader(&config[..], name) {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Ok(Some(Login::Password { user, password: password.into() }))
        }
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Login::Identity(token.into()))),
        Err(Failure::NoCredentialConfigured | Failure::ConfigNotFound) => Ok(None),
        // Helpers report a missing login this way; their protocol has no other.
        Err(Failure::HelperFailure { ref stdout, ref stderr, .. })
            if [stdout, stderr].iter().any(|output| output.contains("credentials not found")) =>
        {
            Ok(None)
        }
        // A helper's output can contain its secrets.
        Err(Failure::HelperFailure { helper, .. }) => Err(format!("`{helper}` failed")),
        Err(Failure::HelperCommunicationError) => {
            Err("the credential helper of `config.json` cannot be started".into())
        }
        Err(Failure::MalformedHelperResponse) => {
            Err("the credential helper's answer is invalid".into())
        }
        Err(Failure::CredentialDecodingError) => {
            Err(format!("`auth` in {} is not USER:PASSWORD in base64", path.display()))
        }
        Err(Failure::CredentialMismatchError) => {
            Err(format!("`auth` and `username` in {} contradict each other", path.display()))
        }
        Err(Failure::ConfigReadError) => Err(format!("{} is not a docker config", path.display())),
    }
}
