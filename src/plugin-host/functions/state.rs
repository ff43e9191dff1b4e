//! Values that persist across instances and restarts of the proxy.

use std::{
    collections::BTreeMap,
    fs::DirBuilder,
    ops::{Bound, ControlFlow},
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::{Arc, OnceLock, Weak},
};

use parking_lot::Mutex;

use super::super::bindings::portcullis::interceptor::state::Error;

/// Limits of a key and of a value in bytes.
const MAX_KEY_BYTES: usize = 256;
const MAX_VALUE_BYTES: usize = 64 << 10;
/// Approximate overhead of an entry in bytes.
const ENTRY_OVERHEAD_BYTES: u64 = 64;
/// Limit of the keys of one listing.
const MAX_LISTED_KEYS: usize = 1_000;

/// Failure to open the folder.
#[derive(Debug, thiserror::Error)]
#[error(
    "the state of the plugins in `{}` cannot be opened: {why}; check that no other proxy uses the \
     folder, or move it away to start with empty states", path.display()
)]
pub struct Broken {
    path: PathBuf,
    why: String,
}

/// State of all plugins: a store with a tree for each.
pub struct States {
    path: PathBuf,
    store: OnceLock<sled::Db>,
    /// By entry: simultaneous versions of a plugin share them.
    values: Mutex<BTreeMap<String, Values>>,
}

impl States {
    /// State in this folder, which is opened later.
    pub fn at(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, store: OnceLock::new(), values: Mutex::default() })
    }

    /// Values of the plugin of that entry, limited to this number of bytes.
    pub fn of(self: &Arc<Self>, entry: &str, max: u64) -> Values {
        let mut values = self.values.lock();
        let store_key = || StateKey::Store(Arc::downgrade(self));
        values
            .entry(entry.to_owned())
            .or_insert_with(|| Values::at(entry, max, store_key()))
            .clone()
    }

    /// Opens the store. Blocks.
    ///
    /// # Errors
    /// [`Broken`]; plugins must not continue as if their state were empty.
    pub fn open(&self) -> Result<(), Broken> {
        if self.store.get().is_some() {
            return Ok(());
        }
        let broken = |why: String| Broken { path: self.path.clone(), why };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(|error| broken(error.to_string()))?;
        let store = sled::Config::new()
            .path(&self.path)
            .cache_capacity(8 << 20)
            .open()
            .map_err(|error| broken(error.to_string()))?;
        let _ = self.store.set(store);
        Ok(())
    }
}

/// Values of one plugin.
#[derive(Clone)]
pub struct Values(Arc<Inner>);

struct Inner {
    entry: String,
    max: u64,
    store_key: StateKey,
    /// Tree, opened on first use. Everything that writes holds the lock.
    open: Mutex<Option<Open>>,
}

enum StateKey {
    Store(Weak<States>),
    Memory,
}

struct Open {
    storage: Storage,
    used: u64,
}

enum Storage {
    Tree(sled::Tree),
    Memory(BTreeMap<String, Vec<u8>>),
}

impl Values {
    /// Values of a plugin in audit mode, dropped with it.
    pub fn for_now(entry: &str, max: u64) -> Self {
        Self::at(entry, max, StateKey::Memory)
    }

    fn at(entry: &str, max: u64, store_key: StateKey) -> Self {
        let open = Mutex::new(None);
        Self(Arc::new(Inner { entry: entry.to_owned(), max, store_key, open }))
    }

    /// Stores a value: text or the digits of a counter.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn put(&self, key: &str, value: &str) -> Result<(), String> {
        self.set(key, Some(value.as_bytes())).map_err(|error| format!("{error:?}"))
    }

    /// Value as text.
    pub fn text(&self, key: &str) -> Option<String> {
        let value = self.get(key).ok().flatten()?;
        Some(String::from_utf8_lossy(&value).into_owned())
    }

    /// All values as text; the first ones if there are very many.
    pub fn texts(&self) -> BTreeMap<String, String> {
        let keys = self.keys("", None).unwrap_or_default();
        keys.into_iter().filter_map(|key| Some((key.clone(), self.text(&key)?))).collect()
    }

    fn with<T>(&self, act: impl FnOnce(&mut Open, u64) -> Result<T, Fault>) -> Result<T, Error> {
        let mut open = self.0.open.lock();
        let done = match &mut *open {
            Some(open) => act(open, self.0.max),
            none => match self.0.begin() {
                Ok(begun) => act(none.insert(begun), self.0.max),
                Err(fault) => Err(fault),
            },
        };
        done.map_err(|fault| match fault {
            Fault::Answered(error) => error,
            Fault::Store(error) => {
                let plugin = &self.0.entry;
                tracing::error!(interceptor = %plugin, %error, "the plugin's state is unavailable");
                Error::Unavailable
            }
        })
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        legal(key, None)?;
        self.with(|open, _| open.get(key))
    }

    pub(super) fn set(&self, key: &str, value: Option<&[u8]>) -> Result<(), Error> {
        legal(key, value)?;
        self.with(|open, max| open.put(key, value, max))
    }

    pub(super) fn add(&self, key: &str, delta: i64) -> Result<i64, Error> {
        legal(key, None)?;
        self.with(|open, max| {
            let before = match open.get(key)? {
                None => 0,
                Some(bytes) => std::str::from_utf8(&bytes)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .ok_or(Fault::Answered(Error::NotANumber))?,
            };
            let after = i64::saturating_add(before, delta);
            open.put(key, Some(after.to_string().as_bytes()), max)?;
            Ok(after)
        })
    }

    pub(super) fn swap(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool, Error> {
        legal(key, new)?;
        self.with(|open, max| {
            let same = open.get(key)?.as_deref() == old;
            if same {
                open.put(key, new, max)?;
            }
            Ok(same)
        })
    }

    pub(super) fn keys(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>, Error> {
        if prefix.len() > MAX_KEY_BYTES || after.is_some_and(|after| after.len() > MAX_KEY_BYTES) {
            return Err(Error::TooLarge);
        }
        self.with(|open, _| {
            let mut keys = Vec::new();
            open.each_after(prefix, after, |key, _| {
                keys.push(String::from_utf8_lossy(key).into_owned());
                if keys.len() < MAX_LISTED_KEYS {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })?;
            Ok(keys)
        })
    }
}

/// Reason of a failure.
enum Fault {
    Answered(Error),
    Store(String),
}

impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Self {
        Self::Store(error.to_string())
    }
}

impl Inner {
    fn begin(&self) -> Result<Open, Fault> {
        let storage = match &self.store_key {
            StateKey::Memory => Storage::Memory(BTreeMap::new()),
            StateKey::Store(states) => {
                let states = states.upgrade();
                let store = states.as_ref().and_then(|states| states.store.get());
                let store = store.ok_or_else(|| Fault::Store("the store is not open".into()))?;
                Storage::Tree(store.open_tree(format!("plugin:{}", self.entry))?)
            }
        };
        let mut open = Open { storage, used: 0 };
        let mut used = 0;
        open.each("", |key, value| {
            used += size(key.len(), value.len());
            ControlFlow::Continue(())
        })?;
        open.used = used;
        Ok(open)
    }
}

fn size(key: usize, value: usize) -> u64 {
    ENTRY_OVERHEAD_BYTES + key as u64 + value as u64
}

fn legal(key: &str, value: Option<&[u8]>) -> Result<(), Error> {
    let legal = (1..=MAX_KEY_BYTES).contains(&key.len())
        && value.is_none_or(|value| value.len() <= MAX_VALUE_BYTES);
    if legal { Ok(()) } else { Err(Error::TooLarge) }
}

impl Open {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Fault> {
        Ok(match &self.storage {
            Storage::Tree(tree) => tree.get(key)?.map(|value| value.to_vec()),
            Storage::Memory(map) => map.get(key).cloned(),
        })
    }

    fn put(&mut self, key: &str, value: Option<&[u8]>, max: u64) -> Result<(), Fault> {
        let before = self.get(key)?.map_or(0, |value| size(key.len(), value.len()));
        let after = value.map_or(0, |value| size(key.len(), value.len()));
        let used = self.used.saturating_sub(before).saturating_add(after);
        if after > before && used > max {
            return Err(Fault::Answered(Error::Full));
        }
        match (&mut self.storage, value) {
            (Storage::Tree(tree), Some(value)) => drop(tree.insert(key, value)?),
            (Storage::Tree(tree), None) => drop(tree.remove(key)?),
            (Storage::Memory(map), Some(value)) => drop(map.insert(key.to_owned(), value.to_vec())),
            (Storage::Memory(map), None) => drop(map.remove(key)),
        }
        self.used = used;
        Ok(())
    }

    /// Visits every entry whose key has this prefix, in order.
    fn each(
        &self,
        prefix: &str,
        show: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        self.each_after(prefix, None, show)
    }

    /// Same, after a key.
    fn each_after(
        &self,
        prefix: &str,
        after: Option<&str>,
        mut show: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        match &self.storage {
            Storage::Tree(tree) => {
                let range = (from.map(str::as_bytes), Bound::Unbounded);
                for entry in tree.range::<&[u8], _>(range) {
                    let (key, value) = entry?;
                    if !key.starts_with(prefix.as_bytes()) {
                        break;
                    }
                    if show(&key, &value).is_break() {
                        break;
                    }
                }
            }
            Storage::Memory(map) => {
                let from = map.range::<str, _>((from, Bound::Unbounded));
                for (key, value) in from.take_while(|(key, _)| key.starts_with(prefix)) {
                    if show(key.as_bytes(), value).is_break() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(max: u64) -> (tempfile::TempDir, Arc<States>, [Values; 2]) {
        let folder = tempfile::tempdir().unwrap();
        let states = States::at(folder.path().join("state"));
        states.open().unwrap();
        (folder, states.clone(), [states.of("a", max), Values::for_now("a", max)])
    }

    #[test]
    fn counters_and_swaps() {
        let (_folder, _states, both) = both(1 << 20);
        for values in both {
            assert_eq!(values.add("n", 5).unwrap(), 5);
            assert_eq!(values.add("n", -7).unwrap(), -2);
            assert_eq!(values.get("n").unwrap().as_deref(), Some(&b"-2"[..]));
            assert_eq!(values.add("n", i64::MIN).unwrap(), i64::MIN);
            values.set("text", Some(b"x")).unwrap();
            assert!(matches!(values.add("text", 1), Err(Error::NotANumber)));

            assert!(!values.swap("text", None, Some(b"y")).unwrap());
            assert!(values.swap("text", Some(b"x"), Some(b"y")).unwrap());
            assert!(values.swap("text", Some(b"y"), None).unwrap());
            assert!(values.swap("text", None, None).unwrap());
            assert_eq!(values.get("text").unwrap(), None);
        }
    }

    #[test]
    fn keys_are_listed_in_order_up_to_the_limit() {
        let (_folder, _states, both) = both(1 << 20);
        for values in both {
            for at in 0..MAX_LISTED_KEYS + 5 {
                values.set(&format!("k{at:05}"), Some(b"")).unwrap();
            }
            values.set("other", Some(b"")).unwrap();
            assert_eq!(values.keys("o", None).unwrap(), ["other"]);
            let keys = values.keys("k", None).unwrap();
            assert_eq!((keys.len(), keys[1].as_str()), (MAX_LISTED_KEYS, "k00001"));
            let rest = values.keys("k", keys.last().map(String::as_str)).unwrap();
            assert_eq!((rest.len(), rest[0].as_str()), (5, "k01000"));
            assert!(values.keys("k", Some("other")).unwrap().is_empty());
            assert_eq!(values.keys("other", Some("k")).unwrap(), ["other"]);
        }
    }

    #[test]
    fn size_is_limited_by_the_grant() {
        let (_folder, _states, both) = both(2 * size(1, 100));
        for values in both {
            values.set("a", Some(&[1; 100])).unwrap();
            values.set("b", Some(&[1; 100])).unwrap();
            assert!(matches!(values.set("c", Some(b"")), Err(Error::Full)));
            assert!(matches!(values.set("a", Some(&[1; 101])), Err(Error::Full)));
            assert!(matches!(values.add("c", 1), Err(Error::Full)));
            assert!(matches!(values.swap("c", None, Some(b"x")), Err(Error::Full)));
            values.set("a", Some(&[1; 10])).unwrap();
            values.set("b", None).unwrap();
            values.set("c", Some(b"")).unwrap();
            for (key, value) in
                [("", 0), (&"k".repeat(MAX_KEY_BYTES + 1), 0), ("k", MAX_VALUE_BYTES + 1)]
            {
                assert!(matches!(values.set(key, Some(&vec![1; value])), Err(Error::TooLarge)));
            }
        }
    }

    #[test]
    fn values_persist_and_are_separate_for_each_plugin() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let open = || {
            let states = States::at(path.clone());
            states.open().unwrap();
            states
        };
        let states = open();
        let values = states.of("a", 200);
        values.set("k", Some(&[1; 100])).unwrap();
        assert_eq!(states.of("b", 200).get("k").unwrap(), None);
        drop((values, states));
        let states = open();
        let reopened = states.of("a", 200);
        assert_eq!(reopened.get("k").unwrap(), Some(vec![1; 100]));
        // The size of earlier values counts.
        assert!(matches!(reopened.set("l", Some(&[1; 100])), Err(Error::Full)));
    }

    #[test]
    fn concurrent_counters_lose_nothing() {
        let (_folder, _states, both) = both(1 << 20);
        for values in both {
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| (0..100).for_each(|_| assert!(values.add("n", 1).is_ok())));
                }
            });
            assert_eq!(values.add("n", 0).unwrap(), 800);
        }
    }

    #[test]
    fn unopened_store_is_unavailable() {
        let folder = tempfile::tempdir().unwrap();
        let states = States::at(folder.path().join("state"));
        let values = states.of("a", 200);
        assert!(matches!(values.get("k"), Err(Error::Unavailable)));
    }

    /// The store's size on disk is limited, not only that of its values.
    #[test]
    fn rewritten_values_do_not_grow_the_store() {
        let (folder, _states, [values, _]) = both(1 << 20);
        let write = || {
            for at in 0..1_000_u32 {
                let value = vec![u8::try_from(at % 251).unwrap(); MAX_VALUE_BYTES];
                values.set(&format!("k{}", at % 4), Some(&value)).unwrap();
            }
        };
        let size = |path: &std::path::Path| {
            let mut all = 0;
            let mut folders = vec![path.to_owned()];
            while let Some(folder) = folders.pop() {
                for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                    match entry.metadata() {
                        Ok(found) if found.is_dir() => folders.push(entry.path()),
                        Ok(found) => all += found.len(),
                        // Deleted in between.
                        Err(_) => {}
                    }
                }
            }
            all
        };
        // 62 MiB are written each time. The store frees unused space at its own time, as more is
        // written.
        let used = (0..20).map(|_| {
            write();
            size(folder.path())
        });
        let used: Vec<_> = used.take_while(|used| *used >= 31 << 20).collect();
        assert!(used.len() < 20, "{used:?}");
    }
}
