//! Cache of the handshake and lists of a server's last run. With it, list requests do not wait for
//! a start of the server: neither after an idle stop, nor after a restart of the proxy.
//!
//! The cache is a file in the state folder, bound to the server's identity: it is invalid for
//! another program, image or config entry. Calls never use it; they wait for the server's own list.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, OnceCell};

use super::{
    discovery::{Items, List, ListKind},
    handshake::Handshake,
    launcher::Launcher,
    stderr_log::Scrub,
};
use crate::config;
use portcullis_foundation::atomic_file;
use portcullis_protocol::{
    codec::Object,
    exchange::{Payload, Revision},
    names::ServerName,
};

/// Maximum size of one server's file; most lists are smaller. Larger lists are cached in memory
/// only.
const BYTES: usize = 8 << 20;

/// Cached handshake and lists of one server.
pub(super) struct DiscoveryCache {
    name: ServerName,
    settings: Arc<config::Server>,
    launcher: Arc<Launcher>,
    scrub: Scrub,
    handshake: RwLock<Option<Arc<Handshake>>>,
    lists: [RwLock<Option<Items>>; 4],
    /// Set after the file of an earlier proxy was read.
    read: OnceCell<()>,
    /// Held while the file is written.
    writing: Mutex<()>,
}

/// Contents of the file of one server.
#[derive(Serialize, Deserialize)]
struct CachedDiscovery {
    /// Identity of the server, as [`Launcher::what`] returns it.
    of: String,
    revision: String,
    greeting: Box<RawValue>,
    lists: BTreeMap<String, Vec<Box<RawValue>>>,
    /// The members of each list beside its items.
    members: BTreeMap<String, Box<RawValue>>,
}

/// Name of the folder of the state folder that has a file for each server.
pub const KNOWN_FOLDER: &str = "known";

/// The tool definitions that a server listed when it last ran for the proxy of this state folder.
/// `None` if no list is cached.
pub fn kept_tools(state_dir: &Path, server: &ServerName) -> Option<Vec<serde_json::Value>> {
    let path = state_dir.join(KNOWN_FOLDER).join(format!("{server}.json"));
    if fs::metadata(&path).ok()?.len() > BYTES as u64 {
        return None;
    }
    let written: CachedDiscovery = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
    let tools = written.lists.get(ListKind::Tools.method())?;
    tools.iter().map(|tool| serde_json::from_str(tool.get()).ok()).collect()
}

impl DiscoveryCache {
    /// A cache that is read from its file when it is first needed.
    pub fn new(
        name: ServerName,
        settings: Arc<config::Server>,
        launcher: Arc<Launcher>,
        scrub: Scrub,
    ) -> Self {
        Self {
            name,
            settings,
            launcher,
            scrub,
            handshake: RwLock::default(),
            lists: Default::default(),
            read: OnceCell::new(),
            writing: Mutex::default(),
        }
    }

    /// The last known list of a kind.
    pub async fn list(&self, offer: ListKind) -> Option<Items> {
        self.recall().await;
        self.lists[offer as usize].read().clone()
    }

    /// The last known handshake.
    pub async fn handshake(&self) -> Option<Arc<Handshake>> {
        self.recall().await;
        self.handshake.read().clone()
    }

    /// Stores a handshake.
    pub fn store_handshake(&self, handshake: &Arc<Handshake>) {
        *self.handshake.write() = Some(handshake.clone());
    }

    /// Stores a list, and writes the file if the list changed.
    pub fn learn_list(self: &Arc<Self>, offer: ListKind, items: &Items) {
        let before = self.lists[offer as usize].write().replace(items.clone());
        let is_same = |before: Items| before.is_same(items) && before.members() == items.members();
        if !before.is_some_and(is_same) {
            let cache = self.clone();
            tokio::spawn(async move { cache.write_file().await });
        }
    }

    async fn recall(&self) {
        self.read.get_or_init(|| self.read_file()).await;
    }

    fn file(&self) -> Option<PathBuf> {
        let folder = self.launcher.discovery_cache_dir.as_ref()?;
        Some(folder.join(format!("{}.json", self.name)))
    }

    async fn read_file(&self) {
        let Some(path) = self.file() else { return };
        let (launcher, settings) = (self.launcher.clone(), self.settings.clone());
        let server = self.name.clone();
        let read = tokio::task::spawn_blocking(move || -> io::Result<Option<CachedDiscovery>> {
            if fs::metadata(&path)?.len() > BYTES as u64 {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            let written: CachedDiscovery = serde_json::from_slice(&fs::read(&path)?)?;
            Ok((written.of == launcher.what(&server, &settings)).then_some(written))
        });
        // Without a valid file, callers wait for the server.
        let Ok(Ok(Some(written))) = read.await else { return };
        let Some(revision) = Revision::parse(&written.revision) else { return };
        for offer in ListKind::ALL {
            let Some(items) = written.lists.get(offer.method()) else { continue };
            let members = written.members.get(offer.method()).map(AsRef::as_ref);
            let list = List::of(&self.name, offer, revision.is_modern(), items, members);
            self.lists[offer as usize].write().get_or_insert(Items::new(list));
        }
        let words = Payload::new(Bytes::from(written.greeting.get().to_owned()));
        let mut stored = self.handshake.write();
        stored.get_or_insert_with(|| Arc::new(Handshake { revision, words }));
    }

    async fn write_file(&self) {
        let _one_at_a_time = self.writing.lock().await;
        let (Some(path), Some(handshake)) = (self.file(), self.handshake.read().clone()) else {
            return;
        };
        let raw = |text: &Bytes| serde_json::from_slice::<Box<RawValue>>(text).ok();
        let Some(words) = raw(handshake.words.raw()) else { return };
        let (mut lists, mut members) = (BTreeMap::new(), BTreeMap::new());
        for offer in ListKind::ALL {
            if let Some(items) = &*self.lists[offer as usize].read() {
                let texts = items.iter().filter_map(|item| raw(item.definition.raw()));
                lists.insert(offer.method().to_owned(), texts.collect());
                let beside = items.members().and_then(|members| raw(&members.text));
                members.extend(beside.map(|text| (offer.method().to_owned(), text)));
            }
        }
        let (launcher, settings, scrub) =
            (self.launcher.clone(), self.settings.clone(), self.scrub.clone());
        let revision = handshake.revision.as_str().to_owned();
        let server = self.name.clone();
        let name = server.clone();
        let written = tokio::task::spawn_blocking(move || -> io::Result<()> {
            let of = launcher.what(&name, &settings);
            let cached = CachedDiscovery { of, revision, greeting: words, lists, members };
            let text = serde_json::to_string(&cached)?;
            let mut clean = text.clone();
            scrub(&mut clean);
            // A list with a secret in it is not written; callers wait for the server.
            if clean != text || text.len() > BYTES {
                return match fs::remove_file(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    done => done,
                };
            }
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            atomic_file::write(&path, text.as_bytes())
        });
        if let Ok(Err(error)) = written.await {
            tracing::debug!(%server, %error, "discovery cache could not be written");
        }
    }
}

impl Launcher {
    /// Digest of a server's config entry, and of its program or image as far as known without a
    /// start. Reads files: call it outside the async threads.
    fn what(&self, server: &ServerName, settings: &config::Server) -> String {
        let mut hash = Sha256::new();
        hash.update(serde_json::to_vec(settings).unwrap_or_default());
        let program = settings.command.as_ref().and_then(|command| command.first());
        if let Some(program) = program.filter(|_| settings.image.is_none()) {
            let stamp = portcullis_runtime::Stamp::of(&self.program(program)).ok();
            hash.update(format!("{stamp:?}"));
        }
        if let Some(image) = &settings.image {
            hash.update(format!("{:?}", self.images.pinned_image(server, image)));
        }
        hex::encode(hash.finalize())
    }
}

impl List {
    /// A list of cached items, with its other members. Without members, the server has no such list.
    fn of(
        server: &ServerName,
        offer: ListKind,
        modern: bool,
        items: &[Box<RawValue>],
        members: Option<&RawValue>,
    ) -> Self {
        let list = || {
            let items: Vec<_> = items.iter().map(|item| item.get()).collect();
            let items = format!("[{}]", items.join(","));
            let members = Object::parse(members?.get().to_owned().into()).ok()?;
            let page = members.with(&[(offer.member(), Some(items.as_bytes()))]);
            Self::of_page(server, offer, modern, page).ok()
        };
        list().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::server_shared::tests::launcher;

    fn cache(folder: &Path, settings: config::Server) -> Arc<DiscoveryCache> {
        let scrub: Scrub = Arc::new(|text| *text = text.replace("secret", "[redacted]"));
        let launcher = launcher("/".into(), Some(folder.to_owned()));
        Arc::new(DiscoveryCache::new("s".parse().unwrap(), Arc::new(settings), launcher, scrub))
    }

    fn tools(page: &'static str) -> Items {
        let page = Bytes::from_static(page.as_bytes());
        let list = List::of_page(&"s".parse().unwrap(), ListKind::Tools, false, page);
        Items::new(list.unwrap())
    }

    async fn until(condition: impl Fn() -> bool) {
        let met = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), met).await.unwrap();
    }

    #[tokio::test]
    async fn cached_lists_survive_a_restart_of_the_same_server() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.json");
        let first = cache(folder.path(), config::Server::default());
        assert!(first.list(ListKind::Tools).await.is_none() && first.handshake().await.is_none());
        let words = Payload::new(Bytes::from_static(br#"{"capabilities":{"tools":{}}}"#));
        let revision = Revision::LATEST_LEGACY;
        first.store_handshake(&Arc::new(Handshake { revision, words }));
        first.learn_list(ListKind::Tools, &tools(r#"{"tools":[{"name":"a"}],"x":1.0}"#));
        until(|| file.exists()).await;

        let reopened = cache(folder.path(), config::Server::default());
        let list = reopened.list(ListKind::Tools).await.unwrap();
        assert_eq!(list[0].name, "a");
        assert_eq!(list.members().unwrap().text, r#"{"x":1.0}"#);
        assert!(reopened.list(ListKind::Prompts).await.is_none());
        assert_eq!(reopened.handshake().await.unwrap().revision, revision);
        let changed = config::Server { concurrent: 1, ..Default::default() };
        assert!(cache(folder.path(), changed).list(ListKind::Tools).await.is_none());

        // A list that contains a secret is not kept on disk.
        first.learn_list(ListKind::Tools, &tools(r#"{"tools":[{"name":"secret"}]}"#));
        until(|| !file.exists()).await;
        assert_eq!(first.list(ListKind::Tools).await.unwrap()[0].name, "secret");
    }
}
