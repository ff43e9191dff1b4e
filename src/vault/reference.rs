//! Reference to a secret in the config.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Source, Unresolved};

/// Reference to a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SecretRef {
    /// `env:NAME`: variable of the proxy's environment. `file:PATH`: content of a file, without the
    /// line break at its end. `dotenv:PATH#NAME`: variable of a `.env` file.
    /// `keyring:SERVICE/ACCOUNT`: item of the desktop's keyring. `keyctl:DESCRIPTION`: key in the
    /// kernel's keyring. `docker-pass:NAME`: secret of `docker pass`.
    /// `docker-credential:HELPER/URL`: entry of a credential helper for a server.
    /// `vault:PATH#FIELD`: field of a secret in HashiCorp Vault. `age:PATH#NAME`: secret of an
    /// encrypted store, written by `portcullis secret`.
    pub from: String,
}

impl TryFrom<&SecretRef> for Source {
    type Error = Unresolved;

    fn try_from(reference: &SecretRef) -> Result<Self, Unresolved> {
        reference.from.parse()
    }
}
