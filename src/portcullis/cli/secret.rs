//! `portcullis secret`: an encrypted store of secrets, and rotation of a running server's secrets.

use std::{
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use nix::sys::termios::{self, LocalFlags, SetArg, Termios};
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    Context, Exit, Usage,
    proxy_client::{self, Located},
};
use portcullis_protocol::names::ServerName;
use portcullis_upstream::RotationReport;
use portcullis_vault::{MAX_BYTES, Secret, Store};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Set a secret in an encrypted store; reads the value from standard input or a prompt
    Set {
        /// The name of the secret in the store
        name: String,
        #[command(flatten)]
        store_path: StorePath,
    },
    /// List the names of the secrets in an encrypted store
    Ls {
        #[command(flatten)]
        store_path: StorePath,
    },
    /// Remove a secret from an encrypted store
    Rm {
        /// The name of the secret in the store
        name: String,
        #[command(flatten)]
        store_path: StorePath,
    },
    /// Encrypt a store to a new identity, and delete the old identity
    RotateKey {
        #[command(flatten)]
        store_path: StorePath,
    },
    /// Make the running proxy read a server's secrets again and update those that are delivered as files
    Rotate {
        /// The server's name
        server: ServerName,
    },
}

#[derive(Debug, clap::Args)]
pub struct StorePath {
    /// The file of the store. Its identity is the file in PORTCULLIS_AGE_IDENTITY. Default: the
    /// store's name with `.key`
    #[arg(long, value_name = "FILE", default_value = "secrets.age")]
    store: PathBuf,
}

/// Runs the verb.
pub async fn run(verb: Verb, ctx: &Context) -> anyhow::Result<Exit> {
    match verb {
        Verb::Set { name, store_path } => set(ctx, &name, &store_path),
        Verb::Ls { store_path } => {
            let names = Store::at(&store_path.store).names()?;
            if ctx.is_json() {
                ctx.json(&json!({ "secrets": names }))?;
            } else {
                names.iter().try_for_each(|name| ctx.line(name))?;
            }
            Ok(Exit::Ok)
        }
        Verb::Rm { name, store_path } => {
            if !Store::at(&store_path.store).remove(&name)? {
                bail!("the store {} has no secret `{name}`", store_path.store.display());
            }
            Ok(Exit::Ok)
        }
        Verb::RotateKey { store_path } => {
            let store = Store::at(&store_path.store);
            store.rotate_key()?;
            ctx.note(format!(
                "The store opens with the new identity in {} alone. Copies of the old store still \
                 open with copies of the old identity.",
                store.identity().display()
            ));
            Ok(Exit::Ok)
        }
        Verb::Rotate { server } => rotate(ctx, &server).await,
    }
}

fn set(ctx: &Context, name: &str, store_path: &StorePath) -> anyhow::Result<Exit> {
    let store = Store::at(&store_path.store);
    let had_identity = store.identity().exists();
    let is_new = store.set(name, &value()?)?;
    let from = format!("age:{}#{name}", store_path.store.display());
    if ctx.is_json() {
        ctx.json(&json!({ "secret": name, "new": is_new, "from": from }))?;
    } else {
        ctx.line(format!("{{ from = \"{from}\" }}"))?;
    }
    if !had_identity {
        ctx.note(format!(
            "The store opens with the identity in {}: keep it apart from copies of the store.",
            store.identity().display()
        ));
    }
    Ok(Exit::Ok)
}

/// Value of a secret: standard input without the final line break, or hidden input of a person.
/// Never an argument, which the list of processes would show.
fn value() -> anyhow::Result<Secret> {
    let stdin = io::stdin();
    let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES + 2));
    if stdin.is_terminal() {
        let _hidden_input = HiddenInput::begin()?;
        eprint!("Value: ");
        io::stderr().flush()?;
        stdin.read_line(&mut text).context("the value could not be read")?;
        eprintln!();
    } else {
        let limit = MAX_BYTES as u64 + 2;
        stdin.take(limit).read_to_string(&mut text).context("standard input is not UTF-8 text")?;
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err(Usage("the value is empty: write it to standard input".to_owned()).into());
    }
    if line.len() > MAX_BYTES {
        bail!("the value has more than {} KiB", MAX_BYTES >> 10);
    }
    if line.contains('\0') {
        bail!("the value holds a NUL byte, which no environment can hold");
    }
    Ok(Secret::new(line.to_owned()))
}

/// Terminal with hidden input.
struct HiddenInput(Termios);

impl HiddenInput {
    fn begin() -> anyhow::Result<Self> {
        let before = termios::tcgetattr(io::stdin()).context("the terminal can't be asked")?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        termios::tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &hidden)
            .context("the terminal can't be kept from showing what is typed")?;
        Ok(Self(before))
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

async fn rotate(ctx: &Context, server: &ServerName) -> anyhow::Result<Exit> {
    let Located::Running(proxy, _) = proxy_client::find(ctx).await? else {
        bail!("no proxy runs with this config: the next start reads all secrets");
    };
    let path = format!("/v1/servers/{server}/secrets");
    let rotated: RotationReport = proxy.post_json_slowly(&path, &()).await?;
    if ctx.is_json() {
        ctx.json(&json!({ "server": server, "rotation": rotated }))?;
        return Ok(Exit::Ok);
    }
    let RotationReport { secrets, instances, later } = rotated;
    ctx.line(format!(
        "{} secrets of `{server}` were read again; running instances with the new files: {instances}",
        secrets.len()
    ))?;
    if !later.is_empty() {
        ctx.note(format!("Only its next start hands over: {}.", later.join(", ")));
    }
    Ok(Exit::Ok)
}
