//! A reference to a secret, as configs have it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Source, Unresolved};

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SecretRef {
    /// `env:NAME`: a variable of the proxy's own environment. `file:PATH`: the content of a file,
    /// without the line break at its end. `dotenv:PATH#NAME`: a variable of a `.env` file.
    /// `keyring:SERVICE/ACCOUNT`: an item of the desktop's keyring. `keyctl:DESCRIPTION`: a key that
    /// the kernel keeps. `docker-pass:NAME`: a secret of `docker pass`.
    /// `docker-credential:HELPER/URL`: what a credential helper has for a server.
    /// `vault:PATH#FIELD`: a field of a secret in HashiCorp Vault. `age:PATH#NAME`: a secret of an
    /// encrypted store, which `portcullis secret` keeps.
    pub from: String,
}

impl TryFrom<&SecretRef> for Source {
    type Error = Unresolved;

    fn try_from(reference: &SecretRef) -> Result<Self, Unresolved> {
        reference.from.parse()
    }
}
