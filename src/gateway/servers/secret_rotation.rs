//! Rotation of servers' secrets: files are watched, and an operator can have all secrets read
//! again. The servers deliver the new values (`Server::rotate_secrets`).

use std::{path::PathBuf, sync::Arc};

use super::Servers;
use crate::file_watcher::Files;
use portcullis_protocol::exchange::View;
use portcullis_upstream::{ReloadScope, Server};

impl Servers {
    /// Reads the secrets of all servers again from all sources, and delivers changed values.
    /// Secrets that cannot be read or delivered are logged and recorded. Servers do not wait for
    /// each other.
    pub fn reread_secrets(self: &Arc<Self>) {
        self.secrets_changed.notify_one();
        let servers = self.router.servers(&View::All).into_iter();
        let with_secrets =
            servers.filter(|server| server.settings.secret_bindings().next().is_some());
        with_secrets.for_each(|server| self.reread(server, ReloadScope::All));
    }

    /// Watches secret files until the proxy stops.
    pub(crate) async fn keep_secrets(self: Arc<Self>) {
        let mut files = None;
        loop {
            if let Err(error) = self.follow_secrets(&mut files) {
                tracing::warn!(%error, "file watcher of secrets failed; changes may be missed");
            }
            // Includes changes from before the files were watched.
            let servers = self.router.servers(&View::All);
            let of_files = servers.into_iter().filter(|server| !server.secret_files().is_empty());
            of_files.for_each(|server| self.reread(server, ReloadScope::Files));
            let changed = async {
                match &mut files {
                    Some(files) => files.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changed => if !changed { return },
                () = self.secrets_changed.notified() => {}
                () = self.closing.cancelled() => return,
            }
        }
    }

    fn follow_secrets(&self, files: &mut Option<Files>) -> notify::Result<()> {
        let servers = self.router.servers(&View::All);
        let mut paths: Vec<PathBuf> =
            servers.iter().flat_map(|server| server.secret_files()).collect();
        paths.sort();
        paths.dedup();
        match files {
            Some(files) => files.follow(paths),
            None if paths.is_empty() => Ok(()),
            None => files.insert(Files::none()?).follow(paths),
        }
    }

    /// Reads the secrets of one server again, on a task of its own, so that a hanging server delays
    /// neither other servers nor the file watcher. One run at a time; requests during a run cause
    /// one more run.
    fn reread(self: &Arc<Self>, server: Arc<Server>, which: ReloadScope) {
        server.rereads.ask(which);
        let servers = self.clone();
        self.until_closing(async move { servers.run_rereads(&server).await });
    }

    async fn run_rereads(self: &Arc<Self>, server: &Arc<Server>) {
        while server.rereads.is_pending() && server.ensure_active().is_ok() {
            let Some(mut turn) = server.rereads.turn() else { return };
            while let Some(which) = turn.take() {
                let reading = server.reread(which).await;
                if which == ReloadScope::All {
                    tracing::info!(server = %server.name, "secrets re-read");
                }
                // On separate tasks: an instance that hangs at its start delays neither the others
                // nor the next run.
                for instance in server.with_secrets_of(&reading) {
                    let (servers, server) = (self.clone(), server.name.clone());
                    self.until_closing(async move {
                        if let Err(why) = instance.rotate_coalesced(&*servers).await {
                            let why = servers.recorder.shown(&why);
                            tracing::warn!(%server, why, "not all secrets could be redelivered");
                        }
                    });
                }
                let server = server.clone();
                self.until_closing(async move { server.rotate_warm_processes().await });
            }
        }
    }
}
