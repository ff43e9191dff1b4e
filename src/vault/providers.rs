//! Secret stores that are accessed through their programs.
//!
//! The desktop's keyring is read with `secret-tool`, which its developers ship: a client in the
//! proxy would need a whole D-Bus stack.

use std::borrow::Cow;

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{error::BackendError, helper::run, utf8::text};

type Value = Result<Zeroizing<String>, BackendError>;

fn not_text() -> BackendError {
    BackendError::new("it is not UTF-8 text")
}

/// Item of the Secret Service.
pub(crate) async fn keyring(service: &str, account: &str) -> Value {
    const PROGRAM: &str = "secret-tool";
    let output = run(PROGRAM, &["lookup", "service", service, "username", account], b"").await?;
    // The program does not distinguish a missing item, a locked keyring and a missing keyring.
    if output.code == Some(1) {
        return Err(BackendError::new(
            "the keyring does not have this item, is locked, or does not run in this session: \
             `secret-tool store --label=LABEL service SERVICE username ACCOUNT` adds one",
        ));
    }
    // The program adds a line break only for terminals.
    text(output.well(PROGRAM)?).ok_or_else(not_text)
}

/// Secret of `docker pass`.
pub(crate) async fn docker_pass(name: &str) -> Value {
    const PROGRAM: &str = "docker pass";
    let output = run("docker", &["pass", "get", "--reveal", name], b"").await?;
    let all = text(output.well(PROGRAM)?).ok_or_else(not_text)?;
    let value = all.split_once('\n').and_then(|(id, rest)| {
        id.strip_prefix("ID: ").filter(|id| *id == name)?;
        rest.strip_prefix("Value: ")?.strip_suffix('\n')
    });
    let odd =
        || BackendError::new(format!("`{PROGRAM} get --reveal` answered in an unknown format"));
    value.map(|value| Zeroizing::new(value.to_owned())).ok_or_else(odd)
}

/// Credential that a helper has for a server.
pub(crate) async fn docker_credential(helper: &str, url: &str) -> Value {
    #[derive(Deserialize)]
    struct Credential<'a> {
        #[serde(rename = "Secret", borrow)]
        secret: Cow<'a, str>,
    }
    let program = format!("docker-credential-{helper}");
    let output = run(&program, &["get"], format!("{url}\n").as_bytes()).await?;
    // The protocol reports errors on standard output. Only this one is known to contain no secret.
    if output.code != Some(0)
        && output.out.trim_ascii() == b"credentials not found in native keychain"
    {
        return Err(BackendError::new(format!("`{program}` has no credentials for this server")));
    }
    let out = output.well(&program)?;
    let credential: Credential<'_> = serde_json::from_slice(&out).map_err(|_| {
        BackendError::new(format!(
            "`{program}` does not follow the protocol of credential \
            helpers"
        ))
    })?;
    Ok(Zeroizing::new(credential.secret.into_owned()))
}
