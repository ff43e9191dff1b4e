//! Location of an audit log, and access of this user to it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use nix::unistd::{Gid, Uid};

use super::super::{
    Context,
    proxy_client::{self, Located},
};
use portcullis_audit::{Keys, Pruned, Reader, Unavailable, config::Encryption};
use portcullis_config::Config;
use portcullis_gateway::admin::Client;
use portcullis_protocol::identity::Role;

/// Maximum wait for a store that another command is reading.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How the log is named on the command line.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct LogLocation {
    /// The state folder, instead of the config's `state-dir`
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The running proxy's `admin.socket`, for users with a role who cannot read the config
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "PORTCULLIS_ADMIN_SOCKET",
        conflicts_with = "state_dir"
    )]
    socket: Option<PathBuf>,
    /// The folder of the store, such as a backup, instead of the config's
    #[arg(long, global = true, value_name = "DIR", conflicts_with_all = ["state_dir", "socket"])]
    store: Option<PathBuf>,
}

/// Audit log: of a running proxy, or the files of a proxy that does not run.
pub(super) enum AuditSource {
    Proxy(Client),
    Files(Files),
}

/// Files of a log that no proxy has open.
pub(super) struct Files {
    /// Folder of the store.
    pub store: PathBuf,
    /// Config that opens the store, if the config gave its location.
    config: Option<Box<Config>>,
    /// Encryption of its records.
    encryption: Option<Encryption>,
}

pub(super) fn unavailable(unavailable: Unavailable) -> anyhow::Error {
    anyhow::anyhow!("{unavailable}: {}", unavailable.remedy())
}

impl LogLocation {
    /// Finds the log.
    pub(super) async fn find(&self, ctx: &Context) -> anyhow::Result<AuditSource> {
        if let Some(store) = &self.store {
            return Ok(AuditSource::Files(Files::copy(store.clone(), ctx)));
        }
        if let Some(socket) = &self.socket {
            return Ok(AuditSource::Proxy(proxy_client::connect(socket).await?));
        }
        if let Some(state_dir) = &self.state_dir {
            if let Some(client) = Client::connect(state_dir).await {
                return Ok(AuditSource::Proxy(client));
            }
            return Ok(AuditSource::Files(Files::below(state_dir, ctx)));
        }
        Ok(match proxy_client::find(ctx).await? {
            Located::Running(client, _) => AuditSource::Proxy(client),
            Located::Alone(loaded) => AuditSource::Files(Files::of(loaded.config).files),
        })
    }

    /// Whether the running proxy's socket is given.
    pub fn names_socket(&self) -> bool {
        self.socket.is_some()
    }

    /// The folder of the store, if the command line gives it.
    pub fn store(&self) -> Option<&Path> {
        self.store.as_deref()
    }

    /// Folders of the log, even if a proxy has it open; for operations that need no lock.
    pub(super) fn folders(&self, ctx: &Context) -> anyhow::Result<Folders> {
        if let Some(store) = &self.store {
            let files = Files::copy(store.clone(), ctx);
            return Ok(Folders { state_dir: store.clone(), files });
        }
        Ok(match &self.state_dir {
            Some(state_dir) => {
                let files = Files::below(state_dir, ctx);
                Folders { state_dir: state_dir.clone(), files }
            }
            None => Files::of(ctx.load()?.config),
        })
    }
}

/// Folders of a log, whether or not a proxy runs.
pub(super) struct Folders {
    pub state_dir: PathBuf,
    pub files: Files,
}

impl Files {
    fn of(config: Config) -> Folders {
        let state_dir = config.state_dir.clone();
        let store = config.audit.dir.clone().unwrap_or_else(|| state_dir.join("audit"));
        let encryption = config.audit.encryption.clone();
        Folders { state_dir, files: Self { store, config: Some(Box::new(config)), encryption } }
    }

    /// Files below a given state folder.
    fn below(state_dir: &Path, ctx: &Context) -> Self {
        Self::copy(state_dir.join("audit"), ctx)
    }

    /// Files of a given store. The config is read only for the keys of an encrypted store.
    fn copy(store: PathBuf, ctx: &Context) -> Self {
        let config = portcullis_audit::is_encrypted(&store).then(|| ctx.load().ok()).flatten();
        let encryption = config.and_then(|loaded| loaded.config.audit.encryption);
        Self { store, config: None, encryption }
    }

    /// Checks that this user may use the log with this role. File modes already keep others out;
    /// this check gives a reason, and also holds if somebody widened the modes.
    pub fn permit(&self, role: Role) -> anyhow::Result<()> {
        let owner = match fs::metadata(&self.store) {
            Ok(meta) => meta.uid(),
            // The caller that opens the store reports this.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                let store = self.store.display();
                let advice = "ask the running proxy: start it, and name its `admin.socket`";
                return Err(anyhow::Error::new(error).context(format!("{store}: {advice}")));
            }
        };
        let (uid, gid) = (Uid::effective(), Gid::effective());
        let own = uid.is_root() || uid.as_raw() == owner;
        anyhow::ensure!(
            own || self.config.as_ref().is_some_and(|config| {
                config.admin.roles.grant(role, uid.as_raw(), gid.as_raw())
            }),
            "this is for root, the owner of {}, and those with the role `{role}`: have the \
             operator name you in `admin.roles.{role}` of the config",
            self.store.display()
        );
        Ok(())
    }

    /// Keys that the config names.
    pub fn keys(&self) -> anyhow::Result<Option<Keys>> {
        let keys = self.encryption.as_ref().map(Keys::fetch).transpose();
        Ok(keys.map_err(|(_, trouble)| trouble)?)
    }

    /// Deletes the records beyond the config's retention.
    pub async fn prune(&self, dry: bool) -> anyhow::Result<Pruned> {
        let config = self.config.as_ref().context(
            "`audit.retention` of a config says what is dropped: name the config, no state folder",
        )?;
        portcullis_gateway::prune_offline(config, dry).await
    }

    /// Opens the log to read its records.
    pub async fn read(&self) -> anyhow::Result<Reader> {
        self.permit(Role::Auditor)?;
        let (store, keys) = (self.store.clone(), self.keys()?);
        let open = move || Reader::open(&store, PATIENCE, keys.as_ref());
        tokio::task::spawn_blocking(open).await?.map_err(unavailable)
    }
}

/// Absolute form of a path, for another process.
pub(super) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot look at {}", path.display()))
}
