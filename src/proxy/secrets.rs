//! Secrets of servers that change while the proxy runs: files are followed, and all are asked for again
//! when an operator says so. What becomes of new values is the servers' to do (`Server::rehand`).

use std::{path::PathBuf, sync::Arc};

use super::{Proxy, files::Files};
use crate::{
    router::View,
    upstream::{Reread, Server},
};

impl Proxy {
    /// Reads the secrets of all servers again, from wherever they come, and hands over what is new. What
    /// cannot be had, or cannot be handed over, is told in the log, and on record.
    pub async fn reread_secrets(self: &Arc<Self>) {
        self.secrets_moved.notify_one();
        let servers = self.router.servers(&View::All);
        self.reread(servers.into_iter(), Reread::All).await;
        tracing::info!("secrets were read again");
    }

    /// Follows the files from which secrets come until the proxy stops.
    pub(super) async fn keep_secrets(self: Arc<Self>) {
        let mut files = None;
        loop {
            if let Err(error) = self.follow_secrets(&mut files) {
                tracing::warn!(%error, "changes of files of secrets may go unseen");
            }
            // Also what changed before they were watched.
            let servers = self.router.servers(&View::All);
            let of_files = servers.into_iter().filter(|server| !server.secret_files().is_empty());
            self.reread(of_files, Reread::Files).await;
            let changed = async {
                match &mut files {
                    Some(files) => files.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changed => if !changed { return },
                () = self.secrets_moved.notified() => {}
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

    async fn reread(self: &Arc<Self>, servers: impl Iterator<Item = Arc<Server>>, which: Reread) {
        let all = servers.map(|server| async move {
            if let Err(why) = server.rehand(self.as_ref(), which).await {
                let (server, why) = (&server.name, self.shown(&why));
                tracing::warn!(%server, why, "not all secrets could be handed over anew");
            }
        });
        futures_util::future::join_all(all).await;
    }
}
